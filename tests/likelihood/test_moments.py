"""Cross-products and preconditioners against their definitions."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest

import jmixed as jm
from jmixed.algebra.sums import BLOCK, SHORT
from jmixed.layout.index import Grouping
from jmixed.likelihood.derivatives import derivatives
from jmixed.likelihood.estimates import by_level, estimates
from jmixed.likelihood.gaussian import deviance_of_theta, factors_of, precondition, psi_of, squares
from jmixed.likelihood.moments import moments
from jmixed.likelihood.products import crossproduct
from jmixed.runtime.precision import double_precision


def held_of(case, size=None, **options):
    with double_precision():
        return jax.device_get(layouts.quick_jit(lambda rows: moments(rows, **options))(case.design.rows(size)))


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
    held = held_of(case, counted=False)
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


@pytest.mark.parametrize("padding", [0, SHORT], ids=["few chunks", "many chunks"])
def test_runs_of_chunks_are_summed(padding):
    r = np.random.default_rng(0)
    left, right = r.normal(size=(7, 2)), r.normal(size=(7, 3))
    rows, segments = np.array([[0, 3, 5, 9], [2, 9, 6, 9]], np.int32), np.array([0, 0, 2, 2], np.int32)
    rows, segments = np.pad(rows, [(0, 0), (0, padding)], constant_values=9), np.pad(segments, (0, padding), "edge")
    with double_precision():
        grouping = Grouping(rows, segments, 3)
        (total,) = crossproduct(grouping, lambda arrays, _: (arrays[0].T, (arrays[1].T,)), (left, right), ())
    expected = np.stack([left[i].T @ right[i] for i in ([0, 2, 3], [], [5, 6])], axis=-1)
    np.testing.assert_allclose(total, expected, atol=1e-14)


def many_rows(collinear):
    """A slope model whose rows and groups are both worked on in blocks once `MANY` is small."""
    r, groups = np.random.default_rng(3), np.repeat(np.arange(4 * BLOCK), 3)
    n = len(groups)
    x = 2000 + r.normal(size=n)
    X = np.column_stack([np.ones(n), x, x + collinear * r.normal(size=n)])
    shuffled = r.permutation(n)
    return jm.MixedLM(r.normal(size=n), X[shuffled], groups[shuffled], exog_re=X[shuffled, :2]).design.rows()


def blocks_from(monkeypatch, many):
    for module in ("moments", "preconditioning", "products"):
        monkeypatch.setattr(f"jmixed.likelihood.{module}.MANY", many)


@pytest.mark.parametrize("collinear", [1, 1e-2])
def test_many_rows_in_blocks_give_what_they_give_at_once(monkeypatch, collinear):
    rows = many_rows(collinear)
    found = []
    for many in (10**6, 4):
        blocks_from(monkeypatch, many)
        with double_precision():
            found.append(jax.device_get(jax.jit(lambda rows: moments(rows))(rows)))
    plain, blocked = found
    np.testing.assert_allclose(np.abs(blocked.R), np.abs(plain.R), rtol=1e-6)
    signs = np.append(np.sign(np.diag(plain.R) * np.diag(blocked.R)), 1)
    size = np.sqrt(np.diag(plain.G))
    np.testing.assert_allclose(blocked.G, plain.G * np.outer(signs, signs), atol=1e-7 * np.outer(size, size).max())
    np.testing.assert_allclose(blocked.C[0], plain.C[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(blocked.B[0], plain.B[0] * signs[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(blocked.total, plain.total, rtol=1e-12)
    with double_precision():
        values = [jax.jit(lambda held: deviance_of_theta(np.array([1.0, 1e-4, 1e-4]), held, True))(h) for h in found]
    np.testing.assert_allclose(values[1], values[0], rtol=1e-11)


def test_derivatives_of_many_rows_are_those_of_the_sums(monkeypatch):
    rows = many_rows(1)

    def slope(rows):
        return jax.jit(jax.grad(lambda y: jnp.sum(jnp.cos(moments(replace(rows, y=y)).B[0]))))(rows.y)

    with double_precision():
        plain = slope(rows)
        blocks_from(monkeypatch, 4)
        blocked = slope(rows)
    np.testing.assert_allclose(blocked, plain, rtol=1e-5, atol=1e-6)


# Slopes in the data take most of the time to compile, and the elimination's own rules have their tests.
@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    ("name", "slopes"), [("identity", False), ("nested three", True), ("nested and crossed", False), ("sparse", False)]
)
def test_effects_counted_from_estimates_change_no_result(name, slopes):
    case = layouts.case(name, seed=3)
    theta = layouts.draw_theta(case)

    def everything(rows, counted):
        held = moments(rows, counted=counted)
        roots = precondition(factors_of(theta, held), held.T)
        psi = psi_of(squares(roots), held.layout.terms, held.G.dtype)
        at = derivatives(psi, roots, held, True)
        found = estimates(roots, held, True)
        return at, {**found, "modes": by_level(found["modes"], held)}, held.shift

    def deviance(arrays, rows, counted):
        return deviance_of_theta(theta, moments(replace(rows, **arrays), counted=counted), True)

    @partial(layouts.quick_jit, static_argnums=2)
    def found_and_slopes(arrays, rows, counted):
        return everything(rows, counted), jax.grad(deviance)(arrays, rows, counted) if slopes else ()

    with double_precision():
        rows = jax.tree.map(jnp.asarray, case.design.rows())
        arrays = {"y": rows.y, "X": rows.X, "Z": rows.Z, "weights": rows.weights}
        results = []
        for counted in (False, True):
            (*found, shift), tangents = jax.device_get(found_and_slopes(arrays, rows, counted))
            results.append((*found, tangents))
            assert all(np.any(own) == counted for own in shift)
    for one, other in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(other, one, rtol=1e-8, atol=1e-9 * np.max(np.abs(one), initial=0.0))


def test_columns_that_nearly_coincide_keep_their_digits_where_no_effects_are_counted():
    """An origin far away: intercepts and slopes of huge variances cancel."""
    r, g = np.random.default_rng(0), np.repeat(np.arange(24), 6)
    x = 2000 + np.tile(np.arange(6.0), 24)
    y = 9 * r.normal(size=24)[g] * (x - 2002.5) + r.normal(size=144)
    terms = layouts.term("1 | g", g, np.ones(144), intercept=0), layouts.term("0 + x | g", g, x)
    case = layouts.Case(y, np.column_stack([np.ones(144), x]), np.ones(144), np.zeros(144), terms)
    theta = np.array([18000.0, 9.0])

    def deviance(rows, counted):
        return deviance_of_theta(theta, moments(rows, counted=counted), True)

    with double_precision():
        both, plain = (float(jax.jit(partial(deviance, counted=way))(case.design.rows())) for way in (None, False))
    np.testing.assert_allclose(both, plain, rtol=1e-10)
