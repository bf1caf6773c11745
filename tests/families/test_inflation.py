"""Zeros of their own, beside those of a family of counts or successes."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jmixed.errors import ModelError
from jmixed.families import Binomial, Family, Gamma, NegativeBinomial, Ordinal, Poisson, ZeroInflated
from jmixed.runtime.precision import double_precision


def test_it_takes_what_the_family_has_and_adds_a_logit():
    family = ZeroInflated(NegativeBinomial())
    assert family.extras == ("dispersion", "zero")
    assert family.name == "ZeroInflated(NegativeBinomial)"
    assert family.link == "log"
    assert ZeroInflated().family == Poisson()
    assert ZeroInflated(Binomial(link="probit")).link == "probit"
    assert ZeroInflated(Binomial()).response == "successes"
    assert family == ZeroInflated(NegativeBinomial())
    assert hash(family) == hash(ZeroInflated(NegativeBinomial()))
    assert family != ZeroInflated(Poisson())


def test_means_are_of_all_responses_or_of_the_counts():
    eta, extras = np.array([0.3, 1.0]), np.array([0.2, -0.9])
    family = ZeroInflated(NegativeBinomial())
    with double_precision():
        every, counts = family.mean(eta, extras), family.count_mean(eta, extras)
    np.testing.assert_allclose(counts, np.exp(eta), rtol=1e-14)
    np.testing.assert_allclose(every, scipy.special.expit(0.9) * np.exp(eta), rtol=1e-14)


def test_the_variance_on_the_linear_scale_is_that_of_all_responses():
    extras, mean = np.array([-0.9]), np.array([0.5, 2.0])
    p = scipy.special.expit(-0.9)
    counts = mean / (1 - p)
    variance = (1 - p) * (counts + p * counts**2)
    with double_precision():
        on_scale = ZeroInflated(Poisson()).observation_variance(mean, extras, np.ones(2))
        np.testing.assert_allclose(on_scale, np.log(1 + variance / mean**2), rtol=1e-13)
        with pytest.raises(ModelError, match=r"ZeroInflated\(Binomial\) does not have a variance on the scale"):
            ZeroInflated(Binomial()).observation_variance(mean, extras, np.ones(2))


@pytest.mark.parametrize("family", [Gamma(), Ordinal(categories=3), ZeroInflated()])
def test_families_without_zeros_or_with_are_refused(family):
    with pytest.raises(ModelError, match="cannot have zeros of its own: only counts and successes can"):
        ZeroInflated(family)


@dataclass(frozen=True)
class Geometric(Family):
    """Counts of a family of one's own."""

    links = ("logit",)
    link: str = "logit"

    def log_density(self, y, eta, extras, trials):
        return -jnp.logaddexp(jnp.zeros_like(eta), -eta) - y * jnp.logaddexp(jnp.zeros_like(eta), eta)


def test_a_family_of_ones_own_may_have_them():
    y, eta, extras = np.array([0.0, 3.0]), np.array([0.3, -0.5]), np.array([-0.9])
    p, q = scipy.special.expit(-0.9), scipy.special.expit(eta)
    with double_precision():
        value = ZeroInflated(Geometric()).log_density(y, eta, extras, np.ones(2))
        score = ZeroInflated(Geometric()).derivatives(y, eta, extras, np.ones(2)).score
    expected = np.log([p + (1 - p) * q[0], (1 - p) * q[1] * (1 - q[1]) ** 3])
    np.testing.assert_allclose(value, expected, rtol=1e-13)
    slope = (1 - p) * q[0] * (1 - q[0]) / (p + (1 - p) * q[0])
    np.testing.assert_allclose(score, [slope, 1 - q[1] - 3 * q[1]], rtol=1e-12)
