"""Functions of densities against SciPy's and against their own limits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jmixed.families.chains import FourDerivatives, composed, log_logistic_derivatives, times
from jmixed.families.gammas import log_gamma_derivatives, log_gamma_rest, log_rising, log_rising_derivatives
from jmixed.families.links import LINKS
from jmixed.families.normal import log_ndtr, log_ndtr_derivatives
from jmixed.families.special import (
    bounded_exp,
    log1m_exp_minus,
    logistic,
    mean_over_rows,
    ratio_of_sums,
    relative_entropy,
    softplus,
)
from jmixed.runtime.precision import double_precision

A = np.array([1e-6, 0.02, 0.7, 3.0, 7.9, 8.0, 8.1, 12.5, 60.0, 2e3])


def test_log_gamma_functions_are_those_of_scipy():
    y = np.array([0.0, 0.5, 1, 4, 9, 30, 2, 7, 0.25, 11])
    with double_precision():
        rest, rising = np.asarray(log_gamma_rest(A, np.log(A))), np.asarray(log_rising(A, np.log(A), y))
    np.testing.assert_allclose(rest - A + A * np.log(A), scipy.special.gammaln(1 + A), rtol=1e-13, atol=1e-13)
    expected = np.log(scipy.special.poch(A, y)) - y * np.log(A)
    np.testing.assert_allclose(rising, expected, rtol=1e-11, atol=1e-12)


def test_log_gamma_at_nothing_and_at_much_has_its_limits():
    with double_precision():
        nothing = log_gamma_rest(np.zeros(1), np.full(1, -1e3))
        much = log_gamma_rest(np.full(1, 1e100), np.full(1, 100 * math.log(10)))
        no_steps = log_rising(np.zeros(1), np.full(1, -1e3), np.zeros(1))
    np.testing.assert_allclose(nothing, 0, atol=1e-14)
    np.testing.assert_allclose(much, 0.5 * math.log(2 * math.pi) + 50 * math.log(10), rtol=1e-14)
    np.testing.assert_allclose(no_steps, 0, atol=1e-14)


def powers(a, polygammas):
    """Derivatives in log a from those in a."""
    f1, f2, f3, f4 = (a**k * value for k, value in enumerate(polygammas, 1))
    return np.array([f1, f1 + f2, f1 + 3 * f2 + f3, f1 + 7 * f2 + 6 * f3 + f4])


def test_derivatives_of_gamma_functions_are_polygamma_functions():
    y = np.array([0.0, 0.5, 1, 4, 9, 30, 2, 7, 0.25, 11])
    polygamma = scipy.special.polygamma
    with double_precision():
        single = np.asarray(jnp.stack(log_gamma_derivatives(A, np.log(A))))
        rising = np.asarray(jnp.stack(log_rising_derivatives(A, np.log(A), y)))
    # log Gamma(a) - a log a + a has the derivatives psi(a) - log a, psi'(a) - 1 / a, ...
    leading = [np.log(A), 1 / A, -1 / A**2, 2 / A**3]
    expected = powers(A, [polygamma(k, A) - leading[k] for k in range(4)])
    np.testing.assert_allclose(single, expected, rtol=1e-9, atol=1e-9)
    expected = powers(A, [polygamma(k, A + y) - polygamma(k, A) for k in range(4)])
    expected[0] -= y
    np.testing.assert_allclose(rising, expected, rtol=1e-9, atol=1e-9)


def test_jax_differentiates_them_further():
    order = 6
    a = np.array([0.3, 7.99, 8.01, 40.0])

    def derivative(a):
        # The fourth derivative in a, from those in log a.
        f1, f2, f3, f4 = log_gamma_derivatives(a, jnp.log(a))
        return (f4 - 6 * f3 + 11 * f2 - 6 * f1) / a**4

    for _ in range(order - 4):
        derivative = jax.grad(derivative)
    with double_precision():
        values = jax.jit(jax.vmap(derivative))(a)
    leading = (-1) ** order * math.factorial(order - 2) / a ** (order - 1)
    np.testing.assert_allclose(values, scipy.special.polygamma(order - 1, a) - leading, rtol=1e-8)


def test_the_normal_distribution_function_is_that_of_scipy():
    x = np.concatenate([np.linspace(-500, -6.1, 200), np.linspace(-6.1, 9, 300)])
    with double_precision():
        values = log_ndtr(x)
    np.testing.assert_allclose(values, scipy.special.log_ndtr(x), rtol=1e-12)


def test_its_derivatives_far_in_the_tail_are_those_of_a_parabola():
    x = -np.array([1e3, 1e5])
    with double_precision():
        first, second, third, fourth = (np.asarray(value) for value in log_ndtr_derivatives(x))
    # From the asymptotic series of Mills' ratio, log Phi(-t) = -t^2 / 2 - log t - 1 / t^2 + ...
    np.testing.assert_allclose(first, -x - 1 / x, rtol=1e-11)
    np.testing.assert_allclose(second, -1 + 1 / x**2, rtol=1e-11)
    np.testing.assert_allclose(third, -2 / x**3, rtol=2e-5)
    np.testing.assert_allclose(fourth, 6 / x**4, rtol=1e-4)


def test_softplus_keeps_its_digits_and_has_all_derivatives():
    x = np.concatenate([np.linspace(-60, 60, 2001), [-700.0, 700.0, 1e9, -np.inf, np.inf]])
    whole = np.array([-3.0, -0.5, 0.0, 0.5, 3.0])
    derivatives = [softplus]
    for _ in range(3):
        derivatives.append(jax.grad(derivatives[-1]))
    with double_precision():
        values = softplus(jnp.asarray(x))
        first, second, third = (jax.vmap(function)(whole) for function in derivatives[1:])
    np.testing.assert_allclose(values, np.logaddexp(0, x), rtol=1e-15)
    assert np.isnan(softplus(jnp.nan))
    p = scipy.special.expit(whole)
    np.testing.assert_allclose(first, p, rtol=1e-15)
    np.testing.assert_allclose(second, p * (1 - p), rtol=1e-15)
    np.testing.assert_allclose(third, p * (1 - p) * (1 - 2 * p), rtol=1e-14, atol=1e-17)


def test_logistic_functions_have_all_derivatives_at_zero_too():
    eta = np.array([-800.0, -40.0, -1.0, 0.0, 1.0, 40.0, 800.0])
    p, q = scipy.special.expit(eta), scipy.special.expit(-eta)
    with double_precision():
        values = logistic(jnp.asarray(eta))
        first = jax.vmap(jax.jacfwd(logistic))(jnp.asarray(eta))
        second = jax.vmap(jax.jacfwd(jax.jacfwd(logistic)))(jnp.asarray(eta))
    for found, expected in zip(values, (p, q, p * q), strict=True):
        np.testing.assert_allclose(found, expected, rtol=4e-16)
    for found, expected in zip(first, (p * q, -p * q, p * q * (q - p)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-15)
    v = p * q
    for found, expected in zip(second, (v * (q - p), v * (p - q), v * (1 - 6 * v)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14)


def test_log1m_exp_minus_keeps_its_digits():
    hazard = np.array([1e-300, 1e-9, 0.0499, 0.0501, 0.6, 3.0, 40.0, 800.0])
    with double_precision():
        values = log1m_exp_minus(hazard, np.log(hazard))
    expected = np.append(np.log(-np.expm1(-hazard[:5])), np.log1p(-np.exp(-hazard[5:])))
    np.testing.assert_allclose(values, expected, rtol=1e-13, atol=1e-16)


def test_relative_entropy_is_that_of_scipy():
    y, mean = np.array([0.0, 0.3, 5, 5, 5, 1e3]), np.array([2.0, 1e-200, 5.0, 5.0 + 1e-9, 50, 1e-3])
    with double_precision():
        values = relative_entropy(y, mean, np.log(mean))
    expected = scipy.special.kl_div(y, mean)
    # Half the squared change over the mean, where the two are close.
    expected[3] = 1e-18 / 10
    np.testing.assert_allclose(values, expected, rtol=1e-6, atol=0)


def test_sums_that_cannot_be_divided_by_give_the_lower_limit():
    with double_precision():
        assert ratio_of_sums(np.ones(3), np.zeros(3), (0.1, 2.0)) == 0.1
        assert ratio_of_sums(np.ones(3), np.ones(3) / 10, (0.1, 2.0)) == 2
        assert ratio_of_sums(np.full(3, np.nan), np.ones(3), (0.1, 2.0)) == 0.1
        mean = mean_over_rows(np.array([1.0, 2, np.nan]), np.array([2.0, 4, 0]), (0.0, 100.0))
    np.testing.assert_allclose(mean, 5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_exponentials_are_bounded_with_their_squares(dtype):
    with double_precision():
        values = np.asarray(bounded_exp(np.array([-1e4, -3.0, 2.0, 1e4], dtype)))
        assert np.isfinite(values**2).all()
        assert (values > 0).all()
    np.testing.assert_allclose(values[1:3], np.exp([-3.0, 2.0]), rtol=1e-6)


def test_derivatives_of_compositions_are_those_of_jax():
    def nested(function, x):
        rows = []
        for _ in range(4):
            function = jax.jit(jax.grad(function))
            rows.append(function(x))
        return np.array(rows)

    x = 0.3
    with double_precision():
        sine = FourDerivatives(jnp.cos(jnp.exp(x)), -jnp.sin(jnp.exp(x)), -jnp.cos(jnp.exp(x)), jnp.sin(jnp.exp(x)))
        chained = composed(sine, times(1, (jnp.exp(x),) * 4))
        np.testing.assert_allclose(chained, nested(lambda x: jnp.sin(jnp.exp(x)), x), rtol=1e-12)
        success, failure = log_logistic_derivatives(jnp.asarray(x))
        np.testing.assert_allclose(success, nested(jax.nn.log_sigmoid, x), rtol=1e-12)
        np.testing.assert_allclose(failure, nested(lambda x: jax.nn.log_sigmoid(-x), x), rtol=1e-12)


@pytest.mark.parametrize("name", LINKS)
def test_links_are_inverses(name):
    mean = np.array([0.05, 0.4, 0.93])
    with double_precision():
        np.testing.assert_allclose(LINKS[name].mean(LINKS[name].predictor(mean)), mean, rtol=1e-12)
