"""Cross-products and preconditioners against their definitions."""

from dataclasses import replace

import jax
import layouts
import numpy as np
import pytest

from jmixed.data import Grouping
from jmixed.likelihood.moments import crossproduct, moments
from jmixed.precision import double_precision


def held_of(case, size=None):
    with double_precision():
        return jax.device_get(layouts.quick_jit(moments)(case.design.rows(size)))


def test_fixed_effects_are_orthonormalised():
    case = layouts.case("slope")
    held = held_of(case)
    W, y = np.diag(case.weights), case.y - case.offset
    np.testing.assert_allclose(held.R, np.triu(held.R))
    np.testing.assert_allclose(held.R.T @ held.R, case.X.T @ W @ case.X, rtol=1e-12)
    beta = np.linalg.solve(case.X.T @ W @ case.X, case.X.T @ W @ y)
    np.testing.assert_allclose(held.beta0, beta, rtol=1e-10)
    residual = y - case.X @ beta
    expected = np.diag([1, 1, 1, residual @ W @ residual])
    np.testing.assert_allclose(held.G, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("size", [None, layouts.ROWS + 20])
def test_totals_leave_padding_out(size):
    case = layouts.case("slope")
    held = held_of(case, size)
    assert held.nobs == layouts.ROWS
    np.testing.assert_allclose(held.log_weights, np.sum(np.log(case.weights)))
    np.testing.assert_allclose(held.total, np.sum(case.weights * (case.y - case.offset) ** 2))


def test_random_columns_have_unit_size_and_are_uncorrelated_within_their_term():
    case = layouts.case("crossed")
    shifted = replace(case.terms[0], Z=case.terms[0].Z * [1, 1e3] + [0, 2000])
    case = replace(case, terms=(shifted, replace(case.terms[1], intercept=None), case.terms[2]))
    held = held_of(case)
    for term, T in zip(case.terms, held.T, strict=True):
        columns = term.Z @ T
        product = columns.T @ (case.weights[:, None] * columns) / layouts.ROWS
        np.testing.assert_allclose(product, np.eye(T.shape[0]), atol=1e-9)
        assert np.all(np.diag(T) > 0)
        np.testing.assert_array_equal(T, np.triu(T))


def test_a_column_that_others_explain_keeps_its_direction():
    case = layouts.case("slope")
    double = replace(case.terms[0], Z=case.terms[0].Z[:, [0, 0]])
    held = held_of(replace(case, terms=(double,)))
    np.testing.assert_allclose(held.T[0], held.T[0][0, 0] * np.eye(2), rtol=1e-12)


def test_an_identity_term_keeps_its_shape_and_a_column_of_zeros_its_scale():
    case = layouts.case("identity")
    case = replace(case, terms=(replace(case.terms[0], Z=np.zeros((layouts.ROWS, 1)), intercept=None), case.terms[1]))
    held = held_of(case)
    np.testing.assert_array_equal(held.T[0], [[1]])
    np.testing.assert_allclose(held.T[1], held.T[1][0, 0] * np.eye(3))
    Z = case.terms[1].Z * held.T[1][0, 0]
    np.testing.assert_allclose(np.mean(case.weights @ Z**2) / layouts.ROWS, 1)


def test_cross_products_of_a_nest():
    case = layouts.case("nested")
    held = held_of(case)
    top, inner = case.terms
    Z, y = top.Z @ held.T[0], inner.Z @ held.T[1]
    fixed = np.column_stack([case.X @ np.linalg.inv(held.R), case.y - case.offset - case.X @ held.beta0])
    for level in top.levels:
        own = (top.codes == level) * case.weights
        np.testing.assert_allclose(held.C[1][:, :, level], Z.T @ (own[:, None] * Z), atol=1e-10)
        np.testing.assert_allclose(held.B[1][:, :, level], Z.T @ (own[:, None] * fixed), atol=1e-10)
    position = case.design.index.position[1]
    for level in inner.levels:
        own = (inner.codes == level) * case.weights
        expected = y.T @ (own[:, None] * np.column_stack([Z, fixed]))
        np.testing.assert_allclose(held.B[0][:, :, position[level]], expected, atol=1e-10)
    assert not np.any(held.C[0][:, :, len(inner.levels) :])


def test_runs_of_chunks_are_summed():
    r = np.random.default_rng(0)
    left, right = r.normal(size=(7, 2)), r.normal(size=(7, 3))
    rows, segments = np.array([[0, 3, 5, 9], [2, 9, 6, 9]], np.int32), np.array([0, 0, 2, 2], np.int32)
    with double_precision():
        total = crossproduct(Grouping(rows, segments, 3), left, right)
    expected = np.stack([left[i].T @ right[i] for i in ([0, 2, 3], [], [5, 6])], axis=-1)
    np.testing.assert_allclose(total, expected, atol=1e-14)
