"""What every covariance structure owes: one sweep over all that there are, and one whose Sigma is not linear in psi."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import structures

from jmixed.covariance.chart import Chart, chart_at, chart_map, chart_of_entries, chart_roots, chart_sizes
from jmixed.covariance.identity import Identity
from jmixed.covariance.registry import STRUCTURES, structure_of
from jmixed.covariance.scales import psi_map
from jmixed.covariance.structure import rectified
from jmixed.covariance.unstructured import Unstructured
from jmixed.errors import ModelError
from jmixed.runtime.precision import double_precision

ALL = [structure_of(word, q) for word in STRUCTURES for q in (1, 3)] + [structures.Decay(3)]
COLUMNS = ("a", "b", "c")


@pytest.fixture(params=ALL, ids=repr)
def structure(request):
    return request.param


def parameters(structure, seed=0):
    """psi of a positive definite Sigma of the structure, and that Sigma."""
    r = np.random.default_rng(seed)
    psi = structures.psi_within(structure, r)
    return psi, np.asarray(structure.covariance(psi))


def derivative(function, at):
    with double_precision():
        return np.asarray(jax.jacobian(lambda x: jnp.asarray(function(x)))(jnp.asarray(at)))


def test_the_registry_knows_each_by_its_word():
    assert isinstance(structure_of("identity", 4), Identity)
    assert structure_of("unstructured", 2, 1) == Unstructured(2, intercept=1)


def test_parameters_survive_the_way_there_and_back(structure):
    psi, sigma = parameters(structure)
    assert psi.shape == (structure.size,)
    np.testing.assert_allclose(structure.psi(sigma), psi, rtol=1e-13)
    factor = np.linalg.cholesky(sigma)
    theta = np.asarray(structure.theta(factor))
    np.testing.assert_allclose(structure.factor(theta), factor, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(structure.factor(np.stack([theta, theta])), [factor, factor], rtol=1e-12, atol=1e-13)


@pytest.mark.sweep(8)
def test_directions_and_bends_are_derivatives_of_sigma(structure):
    psi, _ = parameters(structure)
    with double_precision():
        directions, bends = np.asarray(structure.directions(psi)), structure.bends(jnp.asarray(psi))
        first = jax.jacobian(structure.covariance)(jnp.asarray(psi))
        second = jax.hessian(structure.covariance)(jnp.asarray(psi))
    np.testing.assert_allclose(directions, np.moveaxis(first, -1, 0), rtol=1e-12, atol=1e-13)
    assert (bends is None) == structure.is_linear
    bends = np.zeros(np.shape(second)) if bends is None else np.moveaxis(np.asarray(bends), (0, 1), (2, 3))
    np.testing.assert_allclose(bends, second, rtol=1e-12, atol=1e-13)


@pytest.mark.sweep(4)
def test_a_chart_holds_sigma_and_knows_its_derivatives(structure):
    _, sigma = parameters(structure)
    with double_precision():
        chart = chart_at([jnp.asarray(sigma)], [structure], sigma.dtype)
        (root,) = chart_roots(chart, [structure])
        np.testing.assert_allclose(root @ root.T, sigma, rtol=1e-11, atol=1e-12)
        # Away from the point at which the basis was taken.
        chart = Chart(chart.bases, chart.phi + np.linspace(0.1, 0.3, structure.size))

        def psi_at(phi):
            (root,) = chart_roots(Chart(chart.bases, phi), [structure])
            return structure.psi(root @ root.T)

        slope = jnp.asarray(np.random.default_rng(1).normal(size=structure.size))
        jacobian, bend = chart_map(chart, [structure], slope)
        np.testing.assert_allclose(jacobian, jax.jacobian(psi_at)(chart.phi), rtol=1e-10, atol=1e-11)
        np.testing.assert_allclose(bend, jax.hessian(lambda phi: slope @ psi_at(phi))(chart.phi), rtol=1e-9, atol=1e-10)
        assert chart_sizes(chart, [structure]).shape == (structure.size,)
        assert np.all(chart_sizes(chart, [structure]) >= 0)


def test_a_vanishing_sigma_is_an_ordinary_point_of_the_chart(structure):
    with double_precision():
        chart = chart_at([jnp.zeros((structure.q,) * 2)], [structure], np.zeros(0).dtype)
        (root,) = chart_roots(chart, [structure])
        jacobian, _ = chart_map(chart, [structure], jnp.ones(structure.size))
    np.testing.assert_allclose(np.asarray(root), 0, atol=1e-14)
    assert np.isfinite(np.asarray(jacobian)).all()


def test_preconditioned_columns_keep_the_structure_and_are_of_unit_size(structure):
    psi, sigma = parameters(structure)
    r = np.random.default_rng(2)
    Z = r.normal(size=(40, structure.q)) * [3.0, 1.0, 0.2][: structure.q]
    size = np.sqrt(np.mean(Z**2, axis=0))
    triangle = np.linalg.qr(Z / size / np.sqrt(40), mode="r")
    triangle = triangle * np.where(np.diag(triangle) < 0, -1, 1)[:, None]
    T = np.asarray(structure.preconditioner(size, triangle))
    np.testing.assert_allclose(np.mean((Z @ T) ** 2), 1, rtol=1e-10)
    inside = T @ sigma @ T.T
    np.testing.assert_allclose(structure.covariance(structure.psi(inside)), inside, rtol=1e-10, atol=1e-12)
    moved = psi_map([structure], [T]) @ psi if structure.is_linear else structure.psi_map(T) @ psi
    np.testing.assert_allclose(moved, structure.psi(inside), rtol=1e-10, atol=1e-12)


def test_moment_vectors_span_the_structure(structure):
    vectors, owner = structure.moment_vectors()
    squares = np.einsum("ki,kj->kij", vectors, vectors)
    table = np.stack([np.sum(squares[owner == v], axis=0) for v in range(owner.max() + 1)])
    _, sigma = parameters(structure)
    if structure.is_linear:
        weights = np.linalg.lstsq(table.reshape(len(table), -1).T, sigma.ravel(), rcond=None)[0]
        np.testing.assert_allclose(np.einsum("v,vij->ij", weights, table), sigma, atol=1e-10)
    with double_precision():
        np.testing.assert_allclose(structure.nearest(jnp.asarray(sigma)), sigma, rtol=1e-10, atol=1e-12)


def test_readable_entries_have_names_and_places(structure):
    columns = COLUMNS[: structure.q]
    readable = structure.readable(columns)
    assert {entry.second is None for entry in readable} <= {True, False}
    assert all((entry.row == entry.column) == (entry.second is None) for entry in readable)
    assert len({(entry.first, entry.second) for entry in readable}) == len(readable)
    assert len(structure.psi_names(columns)) == len(structure.theta_names(columns)) == structure.size
    assert structure_of("identity", 3).readable(COLUMNS, "all")[0].first == "all"
    assert structure_of("identity", 3).readable(COLUMNS)[0].first == "a, b, c"


@pytest.mark.sweep(4)
def test_theta_in_psi_and_back(structure):
    _, sigma = parameters(structure)
    T = np.asarray(structure.preconditioner(np.full(structure.q, 0.5), np.eye(structure.q)))
    factor = np.linalg.cholesky(sigma)
    theta = np.asarray(structure.theta(factor))
    first, second = structure.psi_of_theta(theta)

    def psi_of(theta):
        factor = structure.factor(theta)
        return structure.psi(factor @ factor.T)

    np.testing.assert_allclose(first.T, derivative(psi_of, theta), rtol=1e-10, atol=1e-12)
    bends = derivative(lambda t: jax.jacobian(psi_of)(t), theta)
    np.testing.assert_allclose(np.moveaxis(second, -1, 0), bends, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
        structure.theta_slopes(factor, T), np.linalg.inv(first.T) @ structure.psi_map(T), rtol=1e-9, atol=1e-12
    )


def test_what_is_told_of_a_covariance_and_when_it_is_singular(structure):
    _, sigma = parameters(structure)
    factor, T = np.linalg.cholesky(sigma), np.eye(structure.q)
    assert structure.told_psi(np.ones(structure.q, bool)).all()
    assert structure.told_theta(factor).all()
    assert not structure.told_psi(np.zeros(structure.q, bool)).any()
    assert not structure.is_singular(factor, T)
    assert structure.is_singular(1e-6 * factor, T)
    np.testing.assert_allclose(structure.settled(factor, np.zeros(structure.q, bool)), structure.theta(factor))
    nothing = structure.factor(structure.settled(factor, np.ones(structure.q, bool)))
    np.testing.assert_array_equal(nothing, 0)
    root = structure.root_of_psi(structure.psi(sigma))
    np.testing.assert_allclose(root @ root.T, sigma, rtol=1e-11, atol=1e-12)
    assert structure.root_of_psi(structure.psi(-sigma)) is None


def test_tangents_keep_the_rank(structure):
    _, sigma = parameters(structure)
    slope = np.random.default_rng(3).normal(size=structure.size)
    moves, bend = structure.tangents(np.linalg.cholesky(sigma), slope)
    assert np.linalg.matrix_rank(moves) == structure.size
    assert bend.shape == (structure.size,) * 2
    none, bend = structure.tangents(np.zeros((structure.q,) * 2), slope)
    assert (none.shape, bend.shape) == ((structure.size, 0), (0, 0))


HELD = [structure for structure in ALL if isinstance(structure, Unstructured | Identity)]


@pytest.mark.parametrize("structure", HELD, ids=repr)
def test_the_chart_of_entries_has_the_factor_as_its_coordinates(structure):
    _, sigma = parameters(structure)
    factor = np.linalg.cholesky(sigma)
    T = np.asarray(structure.preconditioner(np.full(structure.q, 0.5), np.eye(structure.q)))
    with double_precision():
        chart = chart_of_entries([jnp.asarray(factor)], [T], [structure], factor.dtype)
        root = np.asarray(chart_roots(chart, [structure])[0])
    np.testing.assert_allclose(T @ root @ root.T @ T.T, sigma, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("structure", HELD, ids=repr)
def test_the_chart_beside_a_column_has_its_deviation_first(structure):
    _, sigma = parameters(structure)
    factor, k = np.linalg.cholesky(sigma), structure.q - 1
    T = np.asarray(structure.preconditioner(np.full(structure.q, 0.5), np.eye(structure.q)))
    basis, phi = structure.chart_beside([k], factor, T)
    np.testing.assert_allclose(phi[0] * np.linalg.norm(T[k]), np.sqrt(sigma[k, k]), rtol=1e-11)
    with double_precision():
        root = T @ np.asarray(structure.chart_root(basis, phi))
    np.testing.assert_allclose(root @ root.T, sigma, rtol=1e-11, atol=1e-12)


def test_a_structure_without_such_charts_says_so():
    with pytest.raises(ModelError, match="can be held"):
        structures.Decay(3).chart_of_entries(np.eye(3), np.eye(3))
    with pytest.raises(ModelError, match="no profile"):
        structures.Decay(3).chart_beside([0], np.eye(3), np.eye(3))


def test_rectified_is_rectify_for_stacks():
    roots = np.random.default_rng(0).normal(size=(4, 3, 3))
    np.testing.assert_allclose(rectified(roots), [np.linalg.cholesky(root @ root.T) for root in roots], rtol=1e-9)
