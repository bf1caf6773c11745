"""Distribution functions where dispersions are extreme, against SciPy's and what they go to."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jmixed.families.tails import beta_cdf, gamma_cdf, negative_binomial_cdf, student_cdf
from jmixed.runtime.precision import double_precision

Z = np.array([-6.0, -2.5, -1, -1e-3, 0, 1e-4, 0.3, 2, 5])


@pytest.mark.parametrize("shape", [0.3, 40.0, 9e4, 2e5, 1e8])
def test_gamma_numbers(shape):
    ratio = np.maximum(1 + Z / np.sqrt(shape), 0)
    with double_precision():
        values = gamma_cdf(ratio, np.full(9, shape))
    # In the tail of the largest shape SciPy's own has lost digits.
    np.testing.assert_allclose(values, scipy.stats.gamma.cdf(ratio * shape, shape), rtol=1e-7, atol=5e-10)


@pytest.mark.parametrize(("a", "b"), [(0.4, 3.0), (9e4, 2e5), (2e5, 5e7), (3e8, 1e8)])
def test_proportions(a, b):
    mean = a / (a + b)
    y = np.clip(mean + Z * np.sqrt(mean * (1 - mean) / (a + b)), 0, 1)
    with double_precision():
        values = beta_cdf(y, np.full(9, a), np.full(9, b))
        np.testing.assert_array_equal(beta_cdf(np.array([-1.0, 0, 1, 2]), np.full(4, a), np.full(4, b)), [0, 0, 1, 1])
    np.testing.assert_allclose(values, scipy.stats.beta.cdf(y, a, b), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("size", [0.2, 1e3, 1e6, 1e8])
def test_counts(size):
    y, mean = np.array([0.0, 2, 9, 40, 1010]), np.array([0.3, 2.5, 7.0, 60, 1000])
    with double_precision():
        values = negative_binomial_cdf(y, mean, np.full(5, size))
        limit = negative_binomial_cdf(y, mean, np.full(5, 1e30))
    np.testing.assert_allclose(values, scipy.stats.nbinom.cdf(y, size, size / (size + mean)), rtol=1e-6)
    np.testing.assert_allclose(limit, scipy.stats.poisson.cdf(y, mean), rtol=1e-12)


@pytest.mark.parametrize("df", [0.5, 3.0, 1e4, 9e5, 2e6, 1e9])
def test_numbers_with_heavy_tails(df):
    with double_precision():
        values = student_cdf(Z, np.full(9, df))
    np.testing.assert_allclose(values, scipy.stats.t.cdf(Z, df), rtol=1e-8)


def test_32_bits_have_their_own_limits():
    shape = np.array([30.0, 900, 1100, 1e6])
    ratio, single, z = (np.asarray(array, np.float32) for array in (1 + 0.5 / np.sqrt(shape), shape, np.full(4, 0.7)))
    with double_precision():
        gamma, student = gamma_cdf(ratio, single), student_cdf(z, single)
        counts = negative_binomial_cdf(jnp.full_like(single, 4), jnp.full_like(single, 5), single)
    assert gamma.dtype == student.dtype == counts.dtype == np.float32
    np.testing.assert_allclose(gamma, scipy.stats.gamma.cdf(ratio * shape, shape), rtol=2e-4)
    np.testing.assert_allclose(student, scipy.stats.t.cdf(0.7, shape), rtol=2e-5)
    np.testing.assert_allclose(counts, scipy.stats.nbinom.cdf(4, shape, shape / (shape + 5)), rtol=2e-3)
