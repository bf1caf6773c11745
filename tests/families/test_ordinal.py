"""Ordered categories: their thresholds, their probabilities, and what they do not have."""

import numpy as np
import pytest
import scipy.stats

from jmixed.errors import ModelError
from jmixed.families import Ordinal
from jmixed.runtime.precision import double_precision

LATENT = {"logit": scipy.stats.logistic, "probit": scipy.stats.norm}
THETA = np.array([-0.7, 0.2, -1.4])
ALPHA = -0.7 + np.array([0, np.exp(0.2), np.exp(0.2) + np.exp(-1.4)])


def test_further_predictors_are_the_thresholds():
    assert Ordinal(categories=4).extras == ("threshold 1", "threshold 2", "threshold 3")
    with double_precision():
        np.testing.assert_allclose(Ordinal(categories=4).thresholds(THETA), ALPHA, rtol=1e-14)
        by_row = Ordinal(categories=4).thresholds(np.stack([THETA, THETA + 1], 1))
    np.testing.assert_allclose(by_row[:, 0], ALPHA, rtol=1e-14)
    assert by_row.shape == (3, 2)


@pytest.mark.parametrize("link", LATENT)
def test_probabilities_are_differences_of_the_distribution_function(link):
    eta = np.array([[-2.0, 0.3, 1.1], [4.0, 0.0, -0.2]])
    with double_precision():
        p = np.asarray(Ordinal(link=link, categories=4).probabilities(eta, THETA))
    ends = np.concatenate([[-np.inf], ALPHA, [np.inf]])
    np.testing.assert_allclose(p, np.diff(LATENT[link].cdf(ends - eta[..., None])), rtol=1e-12)


def test_with_two_categories_it_is_binomial_with_the_sign_of_the_threshold():
    eta = np.linspace(-3, 3, 7)
    with double_precision():
        p = Ordinal(categories=2).probabilities(eta, np.array([0.4]))
    np.testing.assert_allclose(p[:, 1], scipy.stats.logistic.cdf(eta - 0.4), rtol=1e-14)


def test_starts_are_the_thresholds_of_the_shares():
    y, weights = np.array([0.0, 0, 1, 2, 2, 2, 3]), np.array([1.0, 1, 2, 1, 1, 0, 1])
    with double_precision():
        theta = Ordinal(link="probit", categories=4).start_extras(y, y, np.ones(7), weights)
        alpha = Ordinal(link="probit", categories=4).thresholds(theta)
    np.testing.assert_allclose(scipy.stats.norm.cdf(alpha), np.array([2.5, 5, 7.5]) / 9, rtol=1e-12)


def test_means_are_refused_by_name():
    with pytest.raises(ModelError, match=r'categories have no mean: ask for their probabilities, kind="probability"'):
        Ordinal(categories=3).mean(np.zeros(2), THETA[:2])
    with pytest.raises(ModelError, match="Ordinal does not have a variance"):
        Ordinal(categories=3).variance(np.zeros(2), THETA[:2], np.ones(2))
