"""The deviance of whitened rows: value, gradient and Hessian against the dense density, differentiated by JAX."""

from functools import cache

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import residual_cases
from scipy.linalg import block_diag

from jmixed.algebra.newton import Point
from jmixed.likelihood.constrained import Border, ConstrainedDeviance, HeldParameter, HeldResidual
from jmixed.likelihood.contract import minimum
from jmixed.likelihood.preconditioning import preconditioners
from jmixed.likelihood.whitened import reads_rows, whitened_deviance
from jmixed.runtime.precision import double_precision

# Without random effects, visits whose variances differ by visit alone are fitted from sums by pattern.
CASES = [
    *(("slope", word, 2) for word in residual_cases.WORDS),
    *(("no random effects", word, residual_cases.BY_VISIT) for word in ("us", "toep")),
    ("no random effects", "cs", 0),
    ("nested", "ar1", 1),
    ("crossed", "independent", 2),
]


@cache
def dense(layout, word, columns):
    """A case with its theta and rho, and a function of (x, reml) that gives what follows from the dense density.

    That is, at x = (psi, rho), the profiled deviance, its gradient and Hessian, and the gradient of the profiled
    sigma^2.
    """
    case = residual_cases.case(layout, word, columns)
    X, y = jnp.asarray(case.X), jnp.asarray(case.y - case.offset)
    n, p = X.shape
    m = case.size

    def parts(x, reml):
        root = jnp.linalg.cholesky(residual_cases.relative_covariance(case, x[:m], x[m:]))
        white = jax.scipy.linalg.solve_triangular(root, jnp.column_stack([X, y]), lower=True)
        A = white[:, :p].T @ white[:, :p]
        b, nu = white[:, :p].T @ white[:, p], n - p * reml
        rss = white[:, p] @ white[:, p] - b @ jnp.linalg.solve(A, b)
        logs = 2 * jnp.sum(jnp.log(jnp.diagonal(root))) + reml * jnp.linalg.slogdet(A)[1]
        return logs + nu * (1 + jnp.log(2 * jnp.pi * rss / nu)), rss / nu

    def value(x, reml):
        return parts(x, reml)[0]

    def everything(x, reml):
        scale = jax.grad(lambda x: parts(x, reml)[1])(x)
        return value(x, reml), jax.grad(value)(x, reml), jax.hessian(value)(x, reml), scale

    return case, layouts.draw_theta(case), residual_cases.draw_rho(case), layouts.quick_jit(everything)


@layouts.quick_jit
def whitened(rows, factors, rho, reml):
    """The deviance's derivatives at a theta in factors, and the preconditioners of the columns."""
    conditioned = preconditioners(rows)
    roots = tuple(jnp.linalg.solve(T, factor) for T, factor in zip(conditioned.T, factors, strict=True))
    psi = [(root @ root.T)[np.tril_indices(len(root))] for root in roots]
    psi = jnp.concatenate([jnp.zeros(0), *psi])
    return whitened_deviance(rows, conditioned, reml).derivatives(psi, roots, rho), conditioned.T


def arrays(case, theta):
    """Rows of a case and factors at theta, as arrays of JAX."""
    return jax.tree.map(jnp.asarray, (case.design.rows(64), tuple(layouts.factors(case, theta))))


def in_original_columns(case, T):
    """d psi~ / d psi (m, m): psi of preconditioned columns is T^-1 Sigma T^-T."""
    blocks = []
    for term, basis in zip(case.terms, T, strict=True):
        inverse, (rows, columns) = np.linalg.inv(basis), np.tril_indices(term.Z.shape[1])
        block = []
        for i, j in zip(rows, columns, strict=True):
            unit = np.zeros_like(inverse)
            unit[i, j] = unit[j, i] = 1
            block.append((inverse @ unit @ inverse.T)[rows, columns])
        blocks.append(np.array(block).T)
    return block_diag(*blocks) if blocks else np.zeros((0, 0))


@pytest.mark.sweep(4)
@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize(("layout", "word", "columns"), CASES)
def test_value_gradient_and_hessian_are_those_of_the_dense_density(layout, word, columns, reml):
    with double_precision():
        case, theta, rho, program = dense(layout, word, columns)
        x = np.append(layouts.psi_of(case, theta), rho)
        value, gradient, hessian, slope = jax.device_get(program(x, jnp.asarray(float(reml))))
        at, T = jax.device_get(whitened(*arrays(case, theta), rho, jnp.asarray(reml)))
    jacobian = block_diag(in_original_columns(case, T), np.eye(len(rho)))
    assert float(at.value) == pytest.approx(float(value), rel=1e-11)
    for found, wanted in (
        (at.gradient @ jacobian, gradient),
        (jacobian.T @ at.hessian @ jacobian, hessian),
        (at.scale_gradient @ jacobian, slope),
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-9 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("layout", "word", "columns", "reads"),
    [
        ("slope", "ar1", 0, False),
        ("slope", "ar1", 2, True),
        ("slope", "us", 0, True),
        ("no random effects", "us", 0, False),
        ("slope", None, 0, False),
    ],
)
def test_evaluations_read_the_rows_where_no_sums_say_all(layout, word, columns, reads):
    case = residual_cases.case(layout, word, columns, seed=1) if word else layouts.case(layout, seed=1)
    rows = case.design.rows(64)
    assert reads_rows(rows) is reads
    if word:
        rows = jax.tree.map(jnp.asarray, rows)
        deviance = whitened_deviance(rows, preconditioners(rows), True)
        assert reads is (deviance.patterns is None and deviance.combined is None)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("layout", "word", "columns"),
    [
        ("slope", "ar1", 2),
        ("no random effects", "us", residual_cases.BY_VISIT),
    ],
)
def test_derivatives_in_the_chart_are_those_of_the_value_at_the_same_place(layout, word, columns):
    case = residual_cases.case(layout, word, columns, seed=1)

    @layouts.quick_jit
    def both(rows):
        criterion = whitened_deviance(rows, preconditioners(rows), True)
        frame, x = jax.tree.map(lambda a: a[0], criterion.starts().points)
        point = Point(frame, x + jnp.linspace(0.1, 0.3, len(x)))
        return layouts.at_the_same_place(criterion, point)

    with double_precision():
        rows = jax.tree.map(jnp.asarray, case.design.rows(64))
        layouts.assert_at_the_same_place(*jax.device_get(both(rows)))


@pytest.mark.thorough
@pytest.mark.parametrize(("layout", "word"), [("slope", "ar1"), ("no random effects", "cs")])
def test_nothing_is_lower_beside_its_minimum(layout, word):
    case = residual_cases.case(layout, word, 1)

    @layouts.quick_jit
    def search(rows):
        criterion = whitened_deviance(rows, preconditioners(rows), True)
        found = minimum(criterion, criterion.starts(), 100)
        frame, x = found.at.point
        moves = 0.01 * jnp.asarray(np.random.default_rng(0).normal(size=(8, len(x))))
        return found, jax.vmap(lambda move: criterion.value(Point(frame, x + move)))(moves)

    with double_precision():
        found, around = jax.device_get(search(jax.tree.map(jnp.asarray, case.design.rows(64))))
    assert found.outcome == 0
    assert np.all(around > found.at.value)


@pytest.mark.parametrize("word", ["ar1", "us"])
def test_the_order_of_the_rows_does_not_matter(word):
    case = residual_cases.case("slope", word)
    theta, rho, other = layouts.draw_theta(case), residual_cases.draw_rho(case), np.random.default_rng(3)
    shuffled = residual_cases.take(case, other.permutation(len(case.y)))

    with double_precision():
        first, second = (whitened(*arrays(one, theta), rho, jnp.asarray(True))[0].value for one in (case, shuffled))
    assert float(first) == pytest.approx(float(second), rel=1e-12)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(
    ("layout", "word", "columns", "entry", "number"),
    [
        ("slope", "ar1", 1, None, 0),
        ("no random effects", "us", residual_cases.BY_VISIT, None, 4),
        ("crossed", "independent", 2, 0, -1),
    ],
)
def test_derivatives_with_a_parameter_of_the_residuals_held(layout, word, columns, entry, number):
    """Against JAX's of the value, which is made from the rows, also where derivatives are from sums."""
    case = residual_cases.case(layout, word, columns)
    p, m, k = case.X.shape[1], case.size, case.residual.form.size
    with double_precision():
        rows = jax.tree.map(jnp.asarray, case.design.rows(64))

    def both(rows, x):
        none = jnp.zeros(m)
        border = Border(jnp.eye(p), jnp.zeros(p), jnp.zeros(p))
        bases = tuple(jnp.eye(term.q) for term in rows.layout.terms)
        entries = jnp.zeros(k) if entry is None else jnp.zeros(k).at[entry].set(1)
        residual = HeldResidual(entries, jnp.asarray(number, jnp.int32), jnp.zeros_like(entries))
        held = HeldParameter(
            bases, none + 1, none, none, none, none, jnp.zeros(()), border, jnp.ones(m + 1 + k, bool), residual
        )
        deviance = ConstrainedDeviance(held, whitened_deviance(rows, preconditioners(rows), False), jnp.asarray(0.3))
        return layouts.at_the_same_place(deviance, Point((), x))

    with double_precision():
        x = np.concatenate([np.linspace(0.4, 0.8, m), [0.2], residual_cases.draw_rho(case)])
        layouts.assert_at_the_same_place(*jax.device_get(layouts.quick_jit(both)(rows, x)))
