"""Standard deviations times correlations: the ends of their ranges, and how they are read."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmixed.covariance.registry import structure_of
from jmixed.covariance.structure import shared_name
from jmixed.runtime.precision import double_precision

WORDS = ("cs", "homcs", "ar1", "hetar1", "toep")
LEAST = {"cs": -1 / 3, "homcs": -1 / 3}


def at_end(word, sign, q=4):
    """A structure with its psi where the first correlation is at an end of its range, and what C is there."""
    structure = structure_of(word, q)
    r = 1.0 if sign > 0 else LEAST.get(word, -1.0)
    lag = np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
    C = np.where(lag > 0, r, 1.0) if word in LEAST else r**lag
    s = np.arange(1.0, structure.deviations + 1)
    told = r ** np.arange(1, structure.correlations + 1) if word == "toep" else [r]
    return structure, np.append(s, told), np.outer(s * np.ones(q), s * np.ones(q)) * C


@pytest.mark.sweep(4)
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_an_end_of_a_range_is_an_ordinary_point(word, sign):
    structure, psi, sigma = at_end(word, sign)
    np.testing.assert_allclose(structure.covariance(psi), sigma, atol=1e-12)
    np.testing.assert_allclose(structure.psi(sigma), psi, atol=1e-12)
    factor = structure.factor(psi)
    np.testing.assert_allclose(factor @ factor.T, sigma, atol=1e-12)
    assert structure.is_singular(factor, np.eye(4))
    assert not structure.told_theta(factor)[structure.deviations :].any()
    slope = np.random.default_rng(0).normal(size=structure.size)
    with double_precision():
        basis, phi = structure.chart(jnp.asarray(sigma), jnp.ones(4))
        root = structure.chart_root(basis, phi)
        np.testing.assert_allclose(root @ root.T, sigma, atol=1e-12)
        jacobian, bend = structure.chart_slopes(basis, root, phi, jnp.asarray(slope))
        # Beyond the end Sigma comes back: it is even there.
        step = jnp.zeros(structure.size).at[structure.deviations].set(1e-3)
        beyond, before = (np.asarray(structure.chart_root(basis, phi + side * step)) for side in (1, -1))
    np.testing.assert_allclose(beyond @ beyond.T, before @ before.T, atol=1e-9)
    np.testing.assert_allclose(np.asarray(jacobian)[:, structure.deviations], 0, atol=1e-7)
    assert np.isfinite(np.asarray(bend)).all()
    moves, _ = structure.tangents(np.asarray(root), slope)
    assert moves.shape == (structure.size, structure.deviations)


@pytest.mark.parametrize("word", WORDS)
def test_correlations_of_nothing_have_no_slope_and_a_unit_of_curvature(word):
    structure = structure_of(word, 4)
    with double_precision():
        basis, phi = structure.chart(jnp.zeros((4, 4)), jnp.ones(4))
        gradient = jnp.ones(structure.size)
        jacobian, bend = structure.chart_slopes(basis, structure.chart_root(basis, phi), phi, gradient)
    k = structure.deviations
    np.testing.assert_array_equal(np.asarray(jacobian)[:, k:], 0)
    np.testing.assert_array_equal(np.asarray(bend)[k:, k:], np.eye(structure.correlations))


def test_a_lag_that_others_decide_has_a_unit_of_curvature():
    structure = structure_of("toep", 4)
    sigma = np.outer(np.arange(1.0, 5), np.arange(1.0, 5))
    with double_precision():
        basis, phi = structure.chart(jnp.asarray(sigma), jnp.ones(4))
        _, bend = structure.chart_slopes(basis, structure.chart_root(basis, phi), phi, jnp.ones(7))
    np.testing.assert_allclose(np.asarray(bend)[5:, 5:], np.eye(2), atol=1e-12)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("word", WORDS)
def test_the_lower_triangle_can_be_differentiated_without_correlations(word):
    structure = structure_of(word, 3)
    theta = np.append(np.ones(structure.deviations), np.zeros(structure.correlations))
    with double_precision():
        first = jax.jacobian(structure.factor)(jnp.asarray(theta))
        second = jax.hessian(structure.factor)(jnp.asarray(theta))
        back = jax.jacobian(lambda theta: structure.theta(structure.factor(theta)))(jnp.asarray(theta))
    assert np.isfinite(np.asarray(first)).all()
    assert np.isfinite(np.asarray(second)).all()
    np.testing.assert_allclose(back, np.eye(structure.size), atol=1e-12)


@pytest.mark.parametrize("word", ["homcs", "ar1"])
def test_one_standard_deviation_stands_first_beside_a_column(word):
    structure = structure_of(word, 3)
    psi = np.array([1.5, 0.4])
    T = np.eye(3) * 0.5
    factor = structure.factor(psi)
    basis, phi = structure.chart_beside([0], factor, T)
    assert phi[0] * np.linalg.norm(T[0]) == pytest.approx(1.5)
    with double_precision():
        root = T @ np.asarray(structure.chart_root(basis, jnp.asarray(phi)))
    np.testing.assert_allclose(root @ root.T, factor @ factor.T, rtol=1e-12)
    assert structure.has_profile([0])
    assert not structure.has_profile([0, 1])


def test_columns_without_a_variance_tell_no_correlation():
    structure = structure_of("cs", 4)
    covariance = structure.covariance(np.array([0.0, 2.0, 1.0, 3.0, 0.4]))
    np.testing.assert_allclose(structure.values(covariance), [0, 2, 1, 3, 0.4])
    assert np.isnan(structure.values(np.diag([0.0, 0, 0, 1]))[-1])


def test_what_columns_share_is_called_by_what_their_names_share():
    assert shared_name(["C(day)[1]", "C(day)[2]"]) == "C(day)"
    assert shared_name(["f[a]|g", "f[b]|g"]) == "f|g"
    assert shared_name(["f[a]"]) == "f[a]"
    assert shared_name(["a", "b"], "all") == "all"
    assert shared_name(["a", "b", "c", "d", "e"]) == "a, ..., e"
