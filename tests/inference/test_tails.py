"""The normal distribution against scipy's."""

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from jmixed.inference import tails


def test_quantiles():
    probabilities = np.concatenate(
        [np.logspace(-300, -1, 300), np.linspace(0.01, 0.99, 99), 1 - np.logspace(-15, -1, 99)]
    )
    ours = [tails.quantile(probability) for probability in probabilities]
    np.testing.assert_allclose(ours, ndtri(probabilities), rtol=4e-15, atol=1e-16)


@pytest.mark.parametrize("probability", [0, 1, -0.1, 1.1, np.nan])
def test_quantiles_of_the_ends_and_beyond(probability):
    assert tails.quantile(probability) == pytest.approx(ndtri(probability), nan_ok=True)


def test_two_sided_probabilities():
    z = np.array([[0.0, -0.3, 1.959963984540054], [8.5, -37.0, np.nan], [np.inf, -np.inf, 1e-12]])
    np.testing.assert_allclose(tails.two_sided(z), 2 * ndtr(-np.abs(z)), rtol=1e-12)
    assert tails.two_sided(1.0).shape == ()


def test_an_interval_holds_its_level():
    assert ndtr(tails.half_width(0.9)) - ndtr(-tails.half_width(0.9)) == pytest.approx(0.9, rel=1e-14)
