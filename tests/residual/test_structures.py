"""Every structure of the registry: whitening, log-determinant and draws against dense matrices, and its boundaries."""

from dataclasses import replace
from decimal import Decimal, localcontext
from functools import partial

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import residual_cases
from residual_cases import WORDS

from jmixed.residual.registry import residual_structure
from jmixed.residual.series import series_of, taken
from jmixed.runtime.precision import double_precision

PADDED = layouts.ROWS + 4
VISITS = residual_cases.VISITS
CORRELATED = [word for word in WORDS if residual_structure(word, 0, VISITS, 0).correlations]
ABSENT = (3, 10, 11, 27)


def sorted_by_series(case):
    """The same rows, those of a series together in the order of their places."""
    return residual_cases.take(case, np.lexsort((case.residual.places, case.residual.codes)))


@layouts.quick_jit
def worked_out(rho, rows):
    """What a structure makes of the rows, with the identity for columns and for normal numbers."""
    structure, unit = rows.layout.residual, jnp.eye(len(rows.y), dtype=rows.y.dtype)
    white = structure.whiten(rho, replace(rows, X=unit))
    root = white.X * jnp.sqrt(white.weights)[:, None]
    return (
        (white, root),
        structure.log_determinant(rho, rows),
        structure.draw(rho, rows, unit),
        structure.variances(rho, rows),
    )


def at(case):
    """The case's rows with some of weight zero and some behind that pad, and what comes of them."""
    weights = case.weights.copy()
    weights[list(ABSENT)] = 0
    rows = replace(case, weights=np.where(weights > 0, weights, 1)).design.rows(PADDED)
    rows = replace(rows, weights=np.append(weights, np.zeros(PADDED - layouts.ROWS)))
    rho = residual_cases.draw_rho(case)
    return rows, rho, jax.device_get(worked_out(rho, jax.tree.map(jnp.asarray, rows)))


@pytest.mark.parametrize(
    ("columns", "arranged"),
    [(0, lambda case: case), (2, lambda case: case), (2, sorted_by_series)],
    ids=["no dispersion", "dispersion", "sorted"],
)
@pytest.mark.parametrize("word", WORDS)
def test_rows_are_whitened_and_drawn_as_the_dense_covariance_has_them(word, columns, arranged):
    case = arranged(residual_cases.case("slope", word, columns))
    with double_precision():
        if not case.residual.form.size:
            rows = case.design.rows()
            assert case.residual.form.whiten((), rows) is rows
            return
        rows, rho, ((white, root), logdet, drawn, variances) = at(case)
        E = np.asarray(residual_cases.covariance(case, rho))
    assert (rows.series.order is None) == (arranged is sorted_by_series)
    there = np.flatnonzero(rows.weights > 0)
    full = np.zeros((PADDED, PADDED))
    full[np.ix_(there, there)] = E[np.ix_(there, there)]
    np.testing.assert_allclose(variances, np.diag(full), rtol=1e-12)
    np.testing.assert_allclose(root @ full @ root.T, np.diag(1.0 * (rows.weights > 0)), atol=1e-12)
    np.testing.assert_allclose(drawn.T @ drawn, full, atol=1e-12)
    logs = logdet - np.sum(np.log(white.weights[there]))
    np.testing.assert_allclose(logs, np.linalg.slogdet(full[np.ix_(there, there)])[1], rtol=1e-11)
    # The columns of the random effects, the response and the offset are taken along like any other.
    columns = [*rows.Z, rows.y[:, None], rows.offset[:, None]]
    for before, after in zip(columns, [*white.Z, white.y[:, None], white.offset[:, None]], strict=True):
        products = after.T @ (white.weights[:, None] * after)
        np.testing.assert_allclose(products, (root @ before).T @ (root @ before), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("word", CORRELATED)
def test_what_is_drawn_is_white_again(word):
    case = residual_cases.case("slope", word)
    rho = residual_cases.draw_rho(case)
    normal = np.random.default_rng(1).normal(size=(2, layouts.ROWS))

    @layouts.quick_jit
    def there_and_back(rows, normal):
        drawn = rows.layout.residual.draw(rho, rows, normal)
        return rows.layout.residual.whiten(rho, replace(rows, X=drawn.T)).X.T

    with double_precision():
        found = there_and_back(jax.tree.map(jnp.asarray, case.design.rows(layouts.ROWS)), jnp.asarray(normal))
    np.testing.assert_allclose(found, normal, atol=1e-12)


def correlations(word, tau, places):
    """R by its textbook definition, from the parameters that people know."""
    structure = residual_structure(word, 0, VISITS, 0)
    lags = np.abs(np.subtract.outer(places, places))
    numbers = np.asarray(structure.readable(jnp.asarray(tau), 1.0))
    if word in ("ar1", "car1"):
        return numbers[0] ** lags
    if word == "cs":
        return np.where(lags == 0, 1, numbers[0])
    if word == "toep":
        return np.append(1, numbers)[lags.astype(int)]
    R = np.eye(VISITS)
    R[np.tril_indices(VISITS, -1)] = numbers
    return (R + R.T - np.eye(VISITS))[np.ix_(places.astype(int), places.astype(int))]


@pytest.mark.parametrize("word", CORRELATED)
def test_parameters_mean_what_people_call_them(word):
    structure = residual_structure(word, 0, VISITS, 0)
    places = np.arange(1.0 * VISITS)
    for seed in range(5):
        tau = np.random.default_rng(seed).normal(size=structure.correlations)
        with double_precision():
            R = np.asarray(structure.matrix(jnp.asarray(tau), places, places))
            np.testing.assert_allclose(R, correlations(word, tau, places), atol=1e-14)
        assert np.linalg.eigvalsh(R)[0] > 0
        np.testing.assert_allclose(np.diag(R), 1, atol=1e-15)
    names = structure.names(["a", "b", "c", "d"])
    assert len(names) == len(set(names)) == structure.correlations
    assert all(len(start) == structure.correlations for start in structure.starts)


def test_names_of_correlations_say_which():
    assert residual_structure("us", 0, 3, 0).names(["m1", "m2", "m6"]) == ["m1, m2", "m1, m6", "m2, m6"]
    assert residual_structure("toep", 0, 3, 0).names(["m1", "m2", "m6"]) == ["lag 1", "lag 2"]
    assert [residual_structure(word, 0, 3, 0).names([]) for word in ("ar1", "car1", "cs")] == [["phi"], ["phi"], ["r"]]


@pytest.mark.parametrize("word", CORRELATED)
def test_the_first_start_has_little_correlation(word):
    structure = residual_structure(word, 0, VISITS, 0)
    places = np.arange(1.0 * VISITS)
    with double_precision():
        R = np.asarray(structure.matrix(jnp.asarray(structure.starts[0]), places, places))
    assert np.max(np.abs(R - np.eye(VISITS))) < 0.3


def test_toeplitz_has_the_partial_autocorrelations_it_is_given():
    """Those of Yule and Walker's equations: the last coefficient of the regression on so many visits before."""
    tau = np.array([0.6, -0.4, 1.1])
    with double_precision():
        R = np.asarray(residual_structure("toep", 0, 4, 0).correlation(jnp.asarray(tau)))
    for k in (1, 2, 3):
        assert np.linalg.solve(R[:k, :k], R[k, :k])[0] == pytest.approx(np.tanh(tau[k - 1]), rel=1e-12)


def rows_of(word, places, codes, y):
    """Rows without random effects, whose residuals are y, with a structure without a dispersion."""
    n = len(y)
    none = np.zeros((n, 0))
    longest = int(np.bincount(codes).max())
    own = residual_cases.Residuals(word, np.asarray(codes), np.asarray(places, float), none, longest)
    case = layouts.Case(np.asarray(y), np.ones((n, 1)), np.ones(n), np.zeros(n), (), residual=own)
    return jax.tree.map(jnp.asarray, case.design.rows(n))


def criterion(rows, tau):
    """log|R| + y'R^-1 y."""
    structure = rows.layout.residual
    return jnp.sum(structure.whiten(tau, rows).y ** 2) + structure.log_determinant(tau, rows)


@pytest.mark.parametrize("tau", [0.0, -0.7, 0.9])
def test_ar1_has_all_its_derivatives_at_zero_and_below(tau):
    """Steps of one, two and three, in series of no order."""
    places, codes = [3, 0, 1, 5, 2, 4, 7, 0], [0, 0, 0, 1, 1, 1, 1, 2]
    y = np.random.default_rng(0).normal(size=8)

    def dense(tau):
        phi = jnp.tanh(tau[0])
        powers = jnp.stack([jnp.prod(jnp.full(lag, 1.0) * phi) for lag in range(8)])
        lags = np.abs(np.subtract.outer(places, places))
        R = jnp.where(np.equal.outer(codes, codes), powers[lags], 0)
        return y @ jnp.linalg.solve(R, jnp.asarray(y)) + jnp.linalg.slogdet(R)[1]

    with double_precision():
        rows, x = rows_of("ar1", places, codes, y), jnp.asarray([tau])
        whitened = layouts.quick_jit(
            lambda rows, x: [f(partial(criterion, rows))(x) for f in (lambda g: g, jax.grad, jax.hessian)]
        )(rows, x)
        wanted = layouts.quick_jit(lambda x: [dense(x), jax.grad(dense)(x), jax.hessian(dense)(x)])(x)
    for a, b in zip(whitened, wanted, strict=True):
        np.testing.assert_allclose(np.ravel(a), np.ravel(b), rtol=1e-10, atol=1e-10)
    if tau == 0:
        assert float(whitened[0]) == pytest.approx(y @ y, rel=1e-14)


def in_decimals(log_phi, gaps, y):
    """log|R| + y'R^-1 y of one series of a first-order process, in sixty digits."""
    with localcontext() as context:
        context.prec = 60
        values = [Decimal(float(v)) for v in y]
        total = values[0] ** 2
        for gap, before, after in zip(gaps, values[:-1], values[1:], strict=True):
            power = (log_phi() * Decimal(float(gap))).exp()
            left = 1 - power**2
            total += (after - power * before) ** 2 / left + left.ln()
        return float(total)


@pytest.mark.parametrize("tau", [-2.0, 1.5, 12.0])
def test_car1_keeps_its_digits_over_tiny_gaps(tau):
    """Two rows a hundred-millionth apart, in which 1 - phi^(2 gap) taken plainly has half its digits."""
    places = np.array([0.0, 1e-8, 1.0, 1.0 + 2.0**-30, 40.0])
    y = np.array([0.3, 0.3, 1.0, 1.0, -0.4])
    wanted = in_decimals(lambda: -(1 + (-Decimal(tau)).exp()).ln(), np.diff(places), y)
    with double_precision():
        found = criterion(rows_of("car1", places, np.zeros(5, int), y), jnp.asarray([tau]))
    assert float(found) == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize("tau", [9.0, 14.0, 0.3])
def test_ar1_keeps_its_digits_near_one(tau):
    places, y = np.array([0.0, 1, 2, 5, 6]), np.array([0.3, 0.31, 0.32, 0.3, 0.3])

    def log_phi():
        twice = (2 * Decimal(tau)).exp()
        return ((twice - 1) / (twice + 1)).ln()

    with double_precision():
        found = criterion(rows_of("ar1", places, np.zeros(5, int), y), jnp.asarray([tau]))
    assert float(found) == pytest.approx(in_decimals(log_phi, np.diff(places), y), rel=1e-12)


@pytest.mark.parametrize("r", [-0.33, -0.1, 0.0, 0.999])
def test_compound_symmetry_reaches_from_its_lower_bound_to_one(r):
    """Series of four rows have -1/3 < r; shorter ones have the same r."""
    codes, y = np.array([0, 1, 0, 0, 1, 0, 2]), np.random.default_rng(0).normal(size=7)
    tau = np.log((1 + 3 * r) / (1 - r))
    R = np.where(np.equal.outer(codes, codes), r, 0) + (1 - r) * np.eye(7)
    with double_precision():
        rows = rows_of("cs", np.zeros(7), codes, y)
        found = criterion(rows, jnp.asarray([tau]))
        assert float(rows.layout.residual.readable(jnp.asarray([tau]), 1.0)[0]) == pytest.approx(r, abs=1e-14)
    assert float(found) == pytest.approx(y @ np.linalg.solve(R, y) + np.linalg.slogdet(R)[1], rel=1e-11)


def test_compound_symmetry_below_zero_is_at_its_bound_as_tau_runs_off():
    structure = residual_structure("cs", 0, 4, 0)
    with double_precision():
        ends = [float(structure.readable(jnp.asarray([tau]), 1.0)[0]) for tau in (-40.0, 40.0)]
    np.testing.assert_allclose(ends, [-1 / 3, 1], rtol=1e-15)


def test_phi_of_continuous_time_belongs_to_the_callers_unit():
    structure = residual_structure("car1", 0, 4, 0)
    with double_precision():
        steps, days = (float(structure.readable(jnp.asarray([0.4]), unit)[0]) for unit in (1.0, 7.0))
    assert days**7 == pytest.approx(steps, rel=1e-14)


def test_rows_taken_out_of_their_series_keep_their_dispersion_alone():
    dispersion = np.arange(8.0).reshape(4, 2)
    series = series_of(np.array([1, 0, 1, 0]), np.array([1.0, 1, 0, 0]), 2, dispersion)
    with double_precision():
        picked = taken(series, np.array([2, 0]))
    np.testing.assert_array_equal(picked.dispersion, dispersion[[2, 0]])
    assert picked.order is picked.rank is None
    np.testing.assert_array_equal(picked.place, 0)


@pytest.mark.parametrize(("tau", "unit", "phi"), [(0.8, 1.0, np.tanh(0.8)), (0.8, 2.0, np.tanh(0.8) ** 0.5)])
def test_phi_belongs_to_one_unit_of_the_positions(tau, unit, phi):
    structure = residual_structure("ar1", 0, 5, 0)
    with double_precision():
        np.testing.assert_allclose(structure.readable(jnp.array([tau]), unit), [phi])
        np.testing.assert_allclose(structure.readable(jnp.array([-tau]), 3.0), [-(np.tanh(tau) ** (1 / 3))])
        assert np.isnan(structure.readable(jnp.array([-tau]), 2.0))


@pytest.mark.parametrize("word", CORRELATED)
def test_a_correlation_is_held_beside_the_others(word):
    """Each in turn: there and back, and where u says whatever the others are."""
    form = residual_structure(word, 0, VISITS, 0)
    tau = 0.5 * np.random.default_rng(2).normal(size=form.correlations)
    program = layouts.quick_jit(form.beside)
    with double_precision():
        for number in range(form.correlations):
            v, u, place = form.chart_beside(jnp.asarray(tau), number)
            np.testing.assert_allclose(program(v, u, number), tau, rtol=1e-12, atol=1e-14)
            moved = np.where(np.arange(len(tau)) == place, v, 0.9 * np.asarray(v))
            there = program(jnp.asarray(moved), u + 0.1, number)
            assert np.all(np.delete(np.asarray(there - tau), place) != 0) or len(tau) == 1
            assert form.readable(there, 2.0)[number] == pytest.approx(float(form.value_beside(u + 0.1, 2.0)), rel=1e-12)
