"""The optimum from every start; held entries; how a fit ends."""

import warnings
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pandas as pd
import pytest
from scipy import optimize as scipy_optimize

import jmixed as jm
from jmixed.errors import Outcome
from jmixed.fit.host import fit
from jmixed.fit.outcome import outcome_of
from jmixed.likelihood.estimates import estimates
from jmixed.likelihood.gaussian import precondition
from jmixed.likelihood.moments import moments
from jmixed.runtime.precision import double_precision

# ---- the optimum ---------------------------------------------------------------------------------------------------


@cache
def default_fit(name, seed, reml=True):
    return fit(layouts.case(name, seed).design, reml=reml)


def assert_same_optimum(found, expected, tolerance=1e-6):
    assert found.converged
    assert abs(found.objective - expected.objective) < 1e-8
    np.testing.assert_allclose(found.theta, expected.theta, atol=tolerance)


@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("name", ["slope", "crossed"])
def test_every_start_reaches_the_same_optimum(name, reml):
    case = layouts.case(name, seed=1)
    expected = default_fit(name, 1, reml)
    assert expected.converged
    r = np.random.default_rng(0)
    starts = [np.zeros(case.size), np.full(case.size, 1e-3)]
    starts += [scale * r.normal(size=case.size) for scale in (0.1, 1.0, 10.0)]
    for start in starts:
        assert_same_optimum(fit(case.design, reml=reml, theta0=start), expected)


@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("name", ["slope", "nested three", "crossed", "related and others", "equations"])
def test_no_neighbour_and_no_other_optimiser_is_better(name, reml):
    case, found = layouts.case(name, seed=1), default_fit(name, 1, reml)
    np.testing.assert_allclose(found.objective, layouts.deviance(case, found.theta, reml), rtol=1e-10)
    slope = layouts.deviance_gradient(case, found.theta, reml)["theta"]
    np.testing.assert_allclose(slope, 0, atol=1e-5)
    other = scipy_optimize.minimize(
        lambda theta: layouts.deviance(case, theta, reml),
        np.where(np.isin(found.theta, 0), 0.3, found.theta) + 0.3,
        jac=lambda theta: layouts.deviance_gradient(case, theta, reml)["theta"],
        method="BFGS",
        options={"gtol": 1e-6},
    )
    assert found.objective <= other.fun + 1e-8


def without_effects(name, seed):
    """A case whose response has residuals that sum to zero in every level of the first factor: variances vanish."""
    case = layouts.case(name, seed)
    r = np.random.default_rng(seed + 50)
    basis = np.concatenate([t.Z[:, [0]] * (t.codes[:, None] == t.levels) for t in case.terms], axis=1)
    noise = r.normal(size=layouts.ROWS)
    noise -= basis @ np.linalg.lstsq(basis, noise, rcond=None)[0]
    one = np.ones(layouts.ROWS)
    return replace(case, y=case.X @ [1, 2, 0.1] + noise, weights=one, offset=0 * one)


@pytest.mark.parametrize(("name", "seed"), [("slope", 0), ("crossed", 1)])
def test_a_singular_optimum_is_an_ordinary_minimum(name, seed):
    case = without_effects(name, seed)
    found = fit(case.design)
    assert found.outcome in (Outcome.CONVERGED, Outcome.PRECISION_LIMIT)
    assert any(found.singular)
    assert np.all(found.hessian_eigenvalues > 0)
    assert found.checked_beyond_zero
    np.testing.assert_allclose(found.gradient, 0, atol=1e-5)
    r = np.random.default_rng(0)
    for size in (1e-3, 0.1, 1.0):
        nearby = found.theta + size * r.normal(size=(10, case.size))
        assert all(layouts.deviance(case, theta, reml=True) > found.objective for theta in nearby)
    # From elsewhere too, and from the very zero.
    for start in (np.zeros(case.size), np.ones(case.size)):
        assert_same_optimum(fit(case.design, theta0=start), found, 1e-4)


def test_lbfgs_equals_newton():
    case = layouts.case("slope", seed=1)
    assert_same_optimum(fit(case.design, method="lbfgs"), default_fit("slope", 1))


# ---- held entries --------------------------------------------------------------------------------------------------


def best_over(case, theta, free):
    """The least deviance over the free entries of theta, by a general optimiser."""

    if not free.any():
        return layouts.deviance(case, theta, reml=True)

    def place(entries):
        full = theta.copy()
        full[free] = entries
        return full

    found = scipy_optimize.minimize(
        lambda entries: layouts.deviance(case, place(entries), reml=True),
        np.full(free.sum(), 0.5),
        jac=lambda entries: layouts.deviance_gradient(case, place(entries), reml=True)["theta"][free],
        method="BFGS",
        options={"gtol": 1e-7},
    )
    return found.fun


@pytest.mark.parametrize(
    ("name", "theta0", "free"),
    [
        ("slope", [1.0, 0.0, 1.0], [True, False, True]),
        ("slope", [0.4, 0.3, 0.2], [False, False, True]),
        ("slope", [0.4, 0.3, 0.2], [False, False, False]),
        ("identity", [1.0, 0.35], [True, False]),
        ("identity", [0.8, 1.0], [False, True]),
    ],
)
def test_held_entries_stay(name, theta0, free):
    case, theta0, free = layouts.case(name, seed=1), np.array(theta0), np.array(free)
    found = fit(case.design, theta0=theta0, free=free)
    assert found.converged
    np.testing.assert_allclose(found.theta[~free], theta0[~free], atol=1e-9)
    np.testing.assert_allclose(found.objective, layouts.deviance(case, found.theta, reml=True), rtol=1e-10)
    assert abs(found.objective - best_over(case, theta0, free)) < 1e-6


def test_held_entries_default_to_the_identity():
    found = fit(layouts.case("slope", seed=1).design, free=np.array([False, False, True]))
    np.testing.assert_allclose(found.theta[:2], [1, 0], atol=1e-12)


# ---- outcomes ------------------------------------------------------------------------------------------------------


def test_too_few_iterations():
    found = fit(layouts.case("slope", seed=1).design, maxiter=1)
    assert found.outcome is Outcome.MAX_ITERATIONS
    assert not found.converged
    assert not found.checked_beyond_zero
    assert np.isfinite(found.objective)


def test_the_same_term_twice_is_flat():
    case = layouts.case("independent", seed=1)
    intercept = case.terms[0]
    twice = replace(case, terms=(intercept, replace(case.terms[1], Z=intercept.Z, intercept=0)))
    assert fit(case.design).converged
    found = fit(twice.design)
    assert found.outcome is Outcome.FLAT
    assert not found.converged


@cache
def group_dummies():
    case = layouts.case("intercept", seed=1)
    codes = case.terms[0].codes
    return replace(case, X=(codes[:, None] == np.unique(codes)).astype(float))


def test_group_dummies_make_the_restricted_likelihood_flat():
    found = fit(group_dummies().design, reml=True)
    assert found.outcome is Outcome.FLAT
    assert not found.converged


def test_group_dummies_leave_nothing_to_the_variance_under_ml():
    found = fit(group_dummies().design, reml=False)
    assert found.converged
    assert found.singular == (True,)


def test_a_response_that_the_fixed_effects_reproduce():
    case = layouts.case("slope")
    for y in (case.X @ [1, 2, 0.1] + case.offset, case.offset + 0 * case.y):
        found = fit(replace(case, y=y).design)
        assert found.outcome is Outcome.PERFECT_FIT
        assert not found.converged


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_value_that_is_not_finite(bad):
    case = layouts.case("slope")
    found = fit(replace(case, y=np.append(bad, case.y[1:])).design)
    assert found.outcome is Outcome.NOT_FINITE
    assert not found.converged


def test_nothing_to_optimise():
    case = layouts.case("no random effects")
    found = fit(case.design)
    assert found.converged
    assert found.theta.shape == (0,)
    np.testing.assert_allclose(found.objective, layouts.deviance(case, np.zeros(0), reml=True), rtol=1e-12)
    np.testing.assert_allclose(found.beta, layouts.generalised(case, [], True).beta, rtol=1e-10)


def absorbed(seed, groups=4, n=200):
    rng = np.random.default_rng(seed)
    g, x, c = rng.integers(0, groups, n), rng.normal(size=n), rng.integers(0, 2, n)
    b = 0.5 * rng.normal(size=(groups, 3))
    y = rng.normal(size=n) + b[g, 0] + b[g, 1] * x + b[g, 2] * c
    return pd.DataFrame({"y": y, "g": g, "x": x, "c": np.array(["X", "Y"])[c]})


@pytest.mark.parametrize("formula", ["y ~ C(g) + x + (x | g)", "y ~ C(g) + (0 + c | g)", "y ~ x:C(g) + (x | g)"])
def test_what_dummies_absorb_is_flat_however_far_out(formula):
    for seed in (1, 4, 13, 18):
        model = jm.mixedlm(formula, absorbed(seed))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jm.SingularWarning)
            with pytest.warns(jm.ConvergenceWarning, match="FLAT"):
                assert model.fit().outcome is Outcome.FLAT
            # ML tells: dummies take the variance to zero.
            assert model.fit(reml=False).converged


def test_what_few_groups_tell_is_not_flat():
    for formula in ("y ~ x + (x | g)", "y ~ c + (0 + c | g)"):
        for seed in range(3):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", jm.SingularWarning)
                assert jm.mixedlm(formula, absorbed(seed, groups=8)).fit().converged


SERIES = pd.DataFrame({"g": np.repeat(np.arange(20), 5), "t": np.tile(np.arange(5), 20)})


def without_a_maximum(kind):
    """Responses whose likelihood has no maximum, and the words of the model."""
    rng = np.random.default_rng(3)
    of_groups, noise = rng.normal(size=20)[SERIES.g], rng.normal(size=len(SERIES))
    if kind == "rows that repeat each other":
        return of_groups, {"residual": "ar1(t | g)"}
    if kind == "rows that sum to zero":
        return noise - pd.Series(noise).groupby(SERIES.g).transform("mean"), {"residual": "cs(1 | g)"}
    if kind == "a group without spread":
        return np.where(SERIES.t == 0, 1.0, noise), {"dispersion": "~ I(t == 0)"}
    return np.where(SERIES.t == 0, of_groups, 2 * of_groups + noise * (SERIES.t > 1)), {"residual": "us(t | g)"}


@pytest.mark.parametrize(
    "kind",
    ["rows that repeat each other", "rows that sum to zero", "a group without spread", "a visit that repeats another"],
)
def test_residuals_without_a_maximum_are_no_estimate(kind):
    y, words = without_a_maximum(kind)
    with pytest.warns(jm.ConvergenceWarning):
        result = jm.mixedlm("y ~ C(t)", SERIES.assign(y=y), **words).fit()
    assert not result.converged
    assert result.outcome in (jm.Outcome.DIVERGING, jm.Outcome.MAX_ITERATIONS, jm.Outcome.FLAT)


def test_a_spread_on_its_way_to_zero_is_told_by_its_slope():
    """Rounding may end such a search anywhere, with a Hessian that is rubbish: no step seems to be worth its while."""
    data = SERIES.assign(y=np.arange(100.0) % 7, half=SERIES.t > 2)
    design = jm.mixedlm("y ~ t + (1 | g)", data, dispersion="~ I(2.0 * half)").design
    with double_precision():
        rows, residual = jax.tree.map(jnp.asarray, design.rows()), design.layout.residual

        def diverges(rho, slope):
            return bool(residual.diverges(jnp.array([rho]), jnp.array([slope]), rows))

        assert diverges(-5.0, 8.0)
        assert not diverges(-5.0, 1e-3)
        assert not diverges(-2.0, 8.0)
        assert diverges(-9.0, 0.0)


def outcomes_of(model, y, reml):
    """How two responses end by `fit_many`, one by `estimate`, and two by `estimate_many`."""
    ignored = warnings.catch_warnings(category=jm.ConvergenceWarning, action="ignore")
    with jax.enable_x64(True), ignored:
        many = model.fit_many(np.stack([y, 2 * y]), reml=reml)
        one, two = jm.estimate(model.design, reml), jm.estimate_many(model.design, np.stack([y, 2 * y]), reml)
    numbers = [int(one.outcome), *np.asarray(two.outcome).tolist()]
    return [*(jm.Outcome[name] for name in many.outcome), *map(jm.Outcome, numbers)]


def test_a_missing_response_may_leave_rows_that_coefficients_fit_exactly():
    rng, level = np.random.default_rng(1), np.repeat(["a", "b"], [3, 57])
    data = pd.DataFrame({"x": rng.normal(size=60), "g": np.arange(60) % 10, "level": level})
    y = np.asarray(1 + data.x + rng.normal(size=10)[data.g] + rng.normal(size=60))
    model = jm.mixedlm("y ~ x + (1 | g)", data.assign(y=y), dispersion="~ level")
    Y = np.stack([y, np.where(data.index == 0, np.nan, y), np.where(data.index == 9, np.nan, y)])
    with pytest.warns(jm.ConvergenceWarning, match="1 of 3 responses .* DIVERGING"):
        many = model.fit_many(Y, reml=False)
    with jax.enable_x64(True):
        estimates = jm.estimate_many(model.design, Y, reml=False)
    assert many.outcome.tolist() == ["CONVERGED", "DIVERGING", "CONVERGED"]
    assert [jm.Outcome(int(k)).name for k in estimates.outcome] == many.outcome.tolist()


@pytest.mark.parametrize(("rows", "unbounded"), [(1, True), (2, True), (3, False), ("2 alike", False)])
def test_rows_that_coefficients_fit_exactly_have_no_variance_of_their_own_by_ml(rows, unbounded):
    """Told by the dense density along the way down, where the variances of the level and of the intercepts vanish."""
    rng, count = np.random.default_rng(1), int(str(rows)[0])
    level = np.repeat(["a", "b"], [count, 60 - count])
    data = pd.DataFrame({"x": rng.normal(size=60), "g": np.arange(60) % 10, "level": level})
    if rows == "2 alike":
        data["x"] = np.arange(60) // 2 % 5 - 2.0
    data["y"] = 1 + data.x + rng.normal(size=10)[data.g] + rng.normal(size=60)
    X, y = np.column_stack([np.ones(60), data.x]), data.y.to_numpy()

    def deviance(variance):
        V = np.where(data.level == "a", variance, 2.0)
        left = y - X @ np.linalg.solve((X.T / V) @ X, (X.T / V) @ y)
        return np.sum(np.log(2 * np.pi * V) + left**2 / V)

    assert (deviance(1e-9) < deviance(1e-6) - 5) == unbounded
    model = jm.mixedlm("y ~ x + (1 | g)", data, dispersion="~ level")
    assert model.fit().converged
    outcome = jm.Outcome.DIVERGING if unbounded else jm.Outcome.CONVERGED
    for reml, ended in ((True, jm.Outcome.CONVERGED), (False, outcome)):
        assert outcomes_of(model, y, reml) == [ended] * 5
    if not unbounded:
        assert model.fit(reml=False).converged
        return
    with pytest.warns(
        jm.ConvergenceWarning, match=f"DIVERGING.* at positions {', '.join('01'[:count])}, .*REML is bounded"
    ):
        result = model.fit(reml=False)
    assert not result.converged
    assert deviance(1e-8) - deviance(1e-10) == pytest.approx(count * np.log(100), abs=0.01)


def test_an_autoregression_next_to_minus_one_is_at_its_optimum():
    """Sums of differences of rows lose digits there: the deviance was 0.1 too low, and its optimum elsewhere."""
    rng = np.random.default_rng(5)
    y = rng.normal(size=20)[SERIES.g] * (-1.0) ** SERIES.t + 1e-3 * rng.normal(size=len(SERIES))
    result = jm.mixedlm("y ~ t", SERIES.assign(y=y), residual="ar1(t | g)").fit()
    rho, X = result.fitted.fit.rho, result.model.exog
    phi, sigma = np.tanh(rho[0]), result.sigma
    V = sigma**2 * np.kron(np.eye(20), phi ** np.abs(np.subtract.outer(np.arange(5.0), np.arange(5.0)).astype(int)))
    A = X.T @ np.linalg.solve(V, X)
    left = result.model.endog - X @ result.fe_params
    dense = np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1] + left @ np.linalg.solve(V, left)
    assert result.converged
    assert phi < -0.9999
    assert result.objective == pytest.approx(dense + (len(y) - 2) * np.log(2 * np.pi), abs=1e-4)


def test_a_ridge_is_flat_whether_the_data_or_the_caller_decide_how_effects_are_counted():
    """Far out on it, where fixed effects absorb intercepts that are not counted from estimates."""
    rng, g = np.random.default_rng(3), np.repeat(np.arange(12), 6)
    data = pd.DataFrame({"x": rng.normal(size=72), "g": g, "y": rng.normal(size=12)[g] + rng.normal(size=72)})
    design = jm.mixedlm("y ~ C(g) + x + (1 | g)", data).design
    flat = jnp.asarray(Outcome.FLAT.value)
    with jax.enable_x64(True):
        for counted in (None, False):
            sums = moments(design.rows(), counted=counted)
            roots = precondition([np.array([[1e7]])], sums.T)
            at = estimates(roots, sums, True)
            assert outcome_of(flat, roots, at["sigma"], at["vcov_beta"], sums) == flat
