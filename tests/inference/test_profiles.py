"""Profiles: limits against R's re-optimised deviance, derivatives against differences, points against the density."""

import dataclasses
import functools
import warnings

import jax
import numpy as np
import pandas as pd
import pytest
from generalized import cows, wine
from references import beside, case
from scipy.optimize import brentq, minimize, minimize_scalar
from scipy.stats import multivariate_normal, norm

import jmixed as jm
from jmixed.algebra.newton import Point
from jmixed.fit import host
from jmixed.inference import profiles
from jmixed.layout.design import without_coefficients
from jmixed.likelihood.constrained import ConstrainedDeviance
from jmixed.reports.components import named_parameters
from jmixed.reports.intervals import ml_estimate, warn_of_traces
from jmixed.runtime.precision import double_precision

LIMITS = beside("profile_ci")
# One factor, a correlation that its profile does not confine, a nest, crossed factors, weights of one: a program each.
CASES = ("sleepstudy_slope_reml", "orthodont_slope_ml", "pastes_reml", "penicillin_ml", "airquality_na_reml")


@functools.cache
def fitted(name):
    reference, data = case(name)
    model = jm.mixedlm(reference["lme4_formula_py"], data, missing="drop", weights=reference["weights"])
    return reference, model.fit(reml=reference["method"] == "REML")


def plain(name, reference):
    """A parameter's name without what differs between R and Python: coefficients by formulaic, the order in a nest."""
    names = {row["name_r"]: row["name_formulaic"] for row in reference["fixef"]}
    kind, _, group = names.get(name, name.replace("(Intercept)", "Intercept")).partition("|")
    return kind, ":".join(sorted(group.split(":")))


@pytest.mark.parametrize("name", CASES)
def test_limits_against_r(name):
    """To 1e-6 of the width of the interval; a thousandth of it would do for any use."""
    reference, result = fitted(name)
    table = result.confint("profile")
    ours = {plain(label, reference): row for label, row in zip(table.index, table.to_numpy(), strict=True)}
    assert len(ours) == len(LIMITS[name])
    for row in LIMITS[name]:
        limits = np.array([row["lower"], row["upper"]])
        assert np.max(np.abs(ours[plain(row["param"], reference)] - limits)) < 1e-6 * (limits[1] - limits[0])


DENSITY = jax.jit(jm.log_likelihood)


def density(result, row):
    """-2 log-likelihood at a row of the table, from the parameters on the scale of the data."""
    spec = result.model.spec
    beta = row[list(spec.exog_names)].to_numpy(float)
    theta, sigma = [], row["sigma"]
    for term in spec.terms:
        sd = np.array([row[f"sd_{column}|{term.group}"] for column in term.columns])
        correlation = np.eye(len(sd))
        for i in range(len(sd)):
            for j in range(i):
                rho = row[f"cor_{term.columns[i]}.{term.columns[j]}|{term.group}"]
                correlation[i, j] = correlation[j, i] = rho
        factor = np.linalg.cholesky(correlation * np.outer(sd, sd)) / sigma
        theta.append(factor.T[np.triu_indices(len(sd))])
    with double_precision():
        return -2 * float(DENSITY(beta, np.concatenate(theta), sigma, host.design_moments(result.model.design)))


def test_zeta_is_the_root_of_the_rise_of_the_deviance():
    """Every point of the trace, put into the likelihood, is as much above the minimum as zeta says."""
    _, result = fitted("sleepstudy_slope_reml")
    profile = result.profile(level=0.9, steps=3)
    best = jm.mixedlm("Reaction ~ Days + (Days | Subject)", case("sleepstudy_slope_reml")[1]).fit(reml=False).objective
    assert set(profile.table["parameter"]) == set(profile.estimates.index)
    for _, row in profile.table.iterrows():
        assert density(result, row) - best == pytest.approx(row["zeta"] ** 2, abs=1e-7)
        assert row[row["parameter"]] == pytest.approx(row["value"], rel=1e-9)


def test_slope_is_the_derivative_of_zeta():
    """Where a level is reached, against the difference of levels close by."""
    _, result = fitted("sleepstudy_slope_reml")
    step = 1e-4
    levels = [0.9 - step, 0.9, 0.9 + step]
    traces = {level: result.profile(level=level, steps=0) for level in levels}
    cuts = [cut(level) for level in levels]
    for name, rows in traces[0.9].table.groupby("parameter"):
        row = rows.iloc[np.argmin(np.abs(rows["zeta"] - cuts[1]))]
        assert row["zeta"] == pytest.approx(cuts[1], abs=1e-6)
        ends = [traces[level].confint(level).loc[name, "upper"] for level in levels]
        assert row["slope"] == pytest.approx((cuts[2] - cuts[0]) / (ends[2] - ends[0]), rel=1e-4)


def cut(level):
    return norm.ppf((1 + level) / 2)


@jax.jit
def derivatives_of(held, moments, z):
    return ConstrainedDeviance(held, moments, z[-1]).derivatives(Point((), z[:-1]))


@pytest.mark.parametrize("kind", [profiles.SD, profiles.CORRELATION, profiles.SIGMA, profiles.COEFFICIENT])
def test_derivatives_in_the_chart(kind):
    """Gradient and Hessian of the constrained deviance against differences of value and gradient."""
    _, result = fitted("sleepstudy_slope_reml")
    estimate = ml_estimate(result.model.design, None)
    parameter = next(p for _, p in named_parameters(result.model.spec) if p.kind == kind)
    held, u, free = profiles._chart(estimate, parameter)
    z = np.append(free, u) + np.linspace(0.03, -0.05, len(free) + 1)
    with double_precision():
        _, gradient, hessian, _ = derivatives_of(held, estimate.moments, z)
        for k, step in enumerate(1e-5 * np.eye(len(z))):
            above, below = (derivatives_of(held, estimate.moments, place) for place in (z + step, z - step))
            assert gradient[k] == pytest.approx((above[0] - below[0]) / 2e-5, abs=1e-6 * np.max(np.abs(gradient)))
            slopes = (above[1] - below[1]) / 2e-5
            np.testing.assert_allclose(hessian[k], slopes, atol=1e-7 * np.max(np.abs(hessian)))


def test_what_a_slope_is_counted_from_does_not_matter():
    """A raw calendar year as slope, or days since an epoch: what does not depend on the origin is the same.

    The correlation with the intercept is -0.99998 and beyond.
    """
    rng = np.random.default_rng(1)
    g, year = np.repeat(np.arange(40), 8), rng.integers(1990, 2020, 320)
    b = rng.normal(size=(40, 2)) * [3, 0.3]
    y = 10 + 0.2 * (year - 2005) + b[g, 0] + b[g, 1] * (year - 2005) + rng.normal(size=320)
    data = [pd.DataFrame({"y": y, "year": year - origin, "g": g}) for origin in (0.0, 2005.0, -1e5)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        tables = [jm.mixedlm("y ~ year + (year | g)", frame).fit().confint("profile") for frame in data]
    same = ["year", "sd_year|g", "sigma"]
    for table in tables[::2]:
        np.testing.assert_allclose(table.loc[same], tables[1].loc[same], rtol=1e-6)
    assert tables[0].loc["cor_year.Intercept|g", "upper"] < -0.9999


def test_singular_fit():
    """The estimate is at the end of the range: no lower limit, the upper one by brute force over the likelihood."""
    reference, data = case("dyestuff2_ml")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        result = jm.mixedlm(reference["lme4_formula_py"], data).fit(reml=False)
    limits = result.confint("profile")
    assert limits.loc["sd_Intercept|Batch", "lower"] == 0

    residual, same = data.Yield - data.Yield.mean(), np.equal.outer(*[data.Batch.to_numpy()] * 2)

    def rise(sd):
        """Over sigma by golden section; in balanced data the mean stays where it is."""

        def value(log_sigma):
            V = np.exp(2 * log_sigma) * np.eye(len(data)) + sd**2 * same
            return -2 * multivariate_normal.logpdf(residual, cov=V)

        return minimize_scalar(value, bracket=(1.0, 1.5), tol=1e-12).fun - result.objective - cut(0.95) ** 2

    assert limits.loc["sd_Intercept|Batch", "upper"] == pytest.approx(brentq(rise, 0.5, 6, xtol=1e-7), abs=1e-5)


def test_an_optimum_that_was_missed_is_noticed():
    """A fit that ended above the minimum: the profile goes below it."""
    _, result = fitted("sleepstudy_slope_reml")
    estimate = ml_estimate(result.model.design, None)
    missed = dataclasses.replace(estimate, objective=estimate.objective + 0.5)
    traces = [profiles.profile(own, [profiles.Parameter(profiles.SIGMA)], [1.0]) for own in (estimate, missed)]
    assert [trace[0].improved for trace in traces] == [False, True]
    with pytest.warns(jm.ConvergenceWarning, match="better optimum"):
        warn_of_traces(traces[1], ["sigma"])


def test_batches_change_nothing(monkeypatch):
    _, result = fitted("pastes_reml")
    together = result.confint("profile")
    monkeypatch.setattr(profiles, "MEMORY", 4 * result.model.design.layout.fit_bytes(2))
    np.testing.assert_allclose(result.confint("profile"), together, rtol=1e-7)


def test_coefficients_are_profiled_without_a_design_matrix_of_their_own():
    """Holding a coefficient is a fit without its column and with its part in the offset."""
    _, result = fitted("airquality_na_reml")
    row = result.profile("Temp", level=0.5, steps=1).table.iloc[0]
    design = result.model.design
    place = result.model.exog_names.index("Temp")
    beta, free = np.zeros(4), np.arange(4) != place
    beta[place] = row["value"]
    refit = host.fit(without_coefficients(design, beta, free), reml=False)
    best = host.fit(design, reml=False)
    assert refit.objective - best.objective == pytest.approx(row["zeta"] ** 2, abs=1e-7)
    assert refit.sigma == pytest.approx(row["sigma"], rel=1e-5)


class Balanced:
    """Groups of the same rows, y = a + b t + u0 + u1 t: the dense deviance, minimised from many starts."""

    def __init__(self, seed, groups=12, rows=4, spread=(0.5, 0.4), correlation=0.3):
        r = np.random.default_rng(seed)
        t = np.arange(float(rows))
        self.Z, self.groups = np.column_stack([np.ones(rows), t]), groups
        u = r.normal(size=(groups, 2))
        u[:, 1] = correlation * u[:, 0] + np.sqrt(1 - correlation**2) * u[:, 1]
        y = (u * spread) @ self.Z.T + r.normal(size=(groups, rows))
        self.data = pd.DataFrame(
            {"y": y.ravel(), "t": np.tile(t, groups), "g": np.repeat(np.arange(groups), rows).astype(str)}
        )
        rest = y - y.mean(axis=0) @ self.Z @ np.linalg.solve(self.Z.T @ self.Z, self.Z.T)
        self.products = rest.T @ rest

    def deviance(self, sd, correlation, sigma):
        root = np.array(sd)[:, None] * [[1, 0], [correlation, np.sqrt(max(1 - correlation**2, 0))]]
        V = sigma**2 * np.eye(len(self.Z)) + self.Z @ root @ root.T @ self.Z.T
        value = self.groups * (np.linalg.slogdet(V)[1] + len(V) * np.log(2 * np.pi))
        return value + np.trace(np.linalg.solve(V, self.products))

    def lowest(self, name, value, correlated=True):
        """The best of the models in which one parameter has a value."""

        def at(x):
            sd, rho, sigma = np.abs(x[:2]), np.tanh(x[2]) if correlated else 0.0, np.exp(x[3])
            held = {"sd_Intercept|g": 0, "sd_t|g": 1}.get(name)
            if held is not None:
                sd[held] = value
            return self.deviance(sd, value if name.startswith("cor") else rho, value if name == "sigma" else sigma)

        correlations = (-1.5, 0, 1.5) if correlated else (0,)
        tries = [(a, b, c, 0.0) for a in (0.03, 0.3, 0.8) for b in (0.03, 0.3, 0.8) for c in correlations]
        found = [minimize(at, start, method="BFGS", options={"gtol": 1e-7}) for start in tries]
        # Absolute values have edges, which slopes do not see.
        exact = {"xatol": 1e-6, "fatol": 1e-9, "maxiter": 2000}
        best = sorted(found, key=lambda one: one.fun)[:3]
        return min(minimize(at, one.x, method="Nelder-Mead", options=exact).fun for one in best)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("seed", [12, 18])
def test_the_profile_of_a_correlation_is_that_of_the_best_constrained_fits(seed):
    """Each point against a dense search; no rise above that of the models without either effect; the range's ends."""
    own = Balanced(seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        result = jm.mixedlm("y ~ t + (t | g)", own.data).fit(reml=False)
        bound = min(jm.mixedlm(f"y ~ t + ({text} | g)", own.data).fit(reml=False).objective for text in ("1", "0 + t"))
    name = "cor_t.Intercept|g"
    profile = result.profile([name, "sd_t|g"], level=0.95, steps=2)
    limits = profile.confint(0.95)
    for _, row in profile.table.iterrows():
        rise = own.lowest(row["parameter"], row["value"]) - result.objective
        assert row["zeta"] ** 2 == pytest.approx(max(rise, 0), abs=1e-5), (row["parameter"], row["value"])
        if row["parameter"] == name:
            assert row["zeta"] ** 2 < bound - result.objective + 1e-6
    for value, end in zip(limits.loc[name], (-1, 1), strict=True):
        zeta = np.sqrt(own.lowest(name, value) - result.objective)
        assert zeta == pytest.approx(cut(0.95), abs=1e-5) if value != end else zeta < cut(0.95)


@pytest.mark.parametrize("seed", [0])
def test_the_profile_of_independent_effects_is_that_of_the_best_constrained_fits(seed):
    own = Balanced(seed, correlation=-0.9, spread=(2, 1))
    result = jm.mixedlm("y ~ t + (t || g)", own.data).fit(reml=False)
    profile = result.profile(["sd_Intercept|g", "sd_t|g", "sigma"], level=0.95, steps=2)
    for _, row in profile.table.iterrows():
        rise = own.lowest(row["parameter"], row["value"], correlated=False) - result.objective
        assert row["zeta"] ** 2 == pytest.approx(max(rise, 0), abs=1e-5), (row["parameter"], row["value"])


# ---- residuals with a structure ----


def visits():
    """Three visits of eighteen subjects with any covariance, some of them missing."""
    r = np.random.default_rng(4)
    frame = pd.DataFrame({"g": np.repeat(np.arange(18), 3), "visit": np.tile([1, 2, 3], 18), "x": r.normal(size=54)})
    frame["y"] = frame.x + r.normal(size=18)[frame.g] + frame.visit * r.normal(size=54)
    return frame.drop(index=[4, 9, 23, 26, 48])


def growth():
    """A first-order process beside a random intercept, with standard deviations that grow."""
    r = np.random.default_rng(7)
    frame = pd.DataFrame({"g": np.repeat(np.arange(15), 6), "t": np.tile(np.arange(6.0), 15)})
    level, e = 1.5 * r.normal(size=15)[frame.g], r.normal(size=(15, 6))
    for t in range(1, 6):
        e[:, t] = 0.5 * e[:, t - 1] + 0.85 * e[:, t]
    return frame.assign(y=level + 0.3 * frame.t + e.ravel() * np.exp(0.1 * frame.t))


def dense_deviance(frame, X, covariance):
    """-2 log-likelihood at a row of a profile's table, by the density of all rows."""
    same = np.equal.outer(frame.g.to_numpy(), frame.g.to_numpy())

    def value(row):
        left, V = frame.y.to_numpy() - X @ row[: X.shape[1]], np.where(same, covariance(row, frame), 0)
        if np.linalg.eigvalsh(V)[0] <= 0:
            return 1e6
        return np.linalg.slogdet(2 * np.pi * V)[1] + left @ np.linalg.solve(V, left)

    return value


def us_covariance(row, frame):
    """Of a row (b0, b1, sigma, logsd 2, logsd 3, r 12, r 13, r 23)."""
    sd, seen = row[2] * np.exp([0, row[3], row[4]]), frame.visit.to_numpy() - 1
    R = np.array([[1, row[5], row[6]], [row[5], 1, row[7]], [row[6], row[7], 1]])
    return (sd[:, None] * R * sd)[np.ix_(seen, seen)]


def ar1_covariance(row, frame):
    """Of a row (b0, b1, sd, sigma, logsd, phi)."""
    t = frame.t.to_numpy()
    sd = row[3] * np.exp(row[4] * t)
    return row[2] ** 2 + sd[:, None] * row[5] ** np.abs(np.subtract.outer(t, t)) * sd


STRUCTURED = {
    "us": (visits, "y ~ x", {"residual": "us(visit | g)"}, us_covariance),
    "ar1": (growth, "y ~ t + (1 | g)", {"residual": "ar1(t | g)", "dispersion": "~ t"}, ar1_covariance),
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", STRUCTURED)
def test_profiles_of_residuals_are_those_of_the_dense_density(name):
    """Of every parameter: points have the density that zeta says, and none with the same value has a higher one."""
    data, formula, words, covariance = STRUCTURED[name]
    frame = data()
    X = np.column_stack([np.ones(len(frame)), frame.x if name == "us" else frame.t])
    result = jm.mixedlm(formula, frame, **words).fit(reml=False)
    profile, deviance = result.profile(level=0.9, steps=1), dense_deviance(frame, X, covariance)
    names = [*profile.estimates.index]
    best = profile.estimates.to_numpy()
    for held, rows in profile.table.groupby("parameter"):
        place = names.index(held)
        for _, row in rows.iloc[[0, -1]].iterrows():
            at = row[names].to_numpy(float)
            assert at[place] == pytest.approx(row["value"], rel=1e-9)
            assert deviance(at) - result.objective == pytest.approx(row["zeta"] ** 2, abs=1e-8)

            def value(others, place=place, at=at):
                return deviance(np.insert(others, place, at[place]))

            # From the estimates, not from where the profile has been.
            others = np.delete(best, place)
            found = minimize(value, others, method="BFGS", options={"gtol": 1e-6})
            assert found.fun - result.objective == pytest.approx(row["zeta"] ** 2, abs=1e-5), held


# lme4 1.1-31: confint(glmer(cbind(incidence, size - incidence) ~ period + (1 | herd), cbpp, binomial)), its search for
# the optimum to a radius of 1e-10; limits are interpolated there.
HERDS = {
    "Intercept": (-1.9012120176, -0.9477539753),
    "period[T.p2]": (-1.6167832700, -0.4077630516),
    "period[T.p3]": (-1.8010243921, -0.5115360470),
    "period[T.p4]": (-2.5007504672, -0.8007553569),
    "sd_Intercept|herd": (0.3460731949, 1.0999747873),
}


def test_limits_of_a_family_against_r():
    limits = cows().confint("profile")
    for name, expected in HERDS.items():
        width = expected[1] - expected[0]
        np.testing.assert_allclose(limits.loc[name], expected, atol=1e-4 * width)


@jax.jit
def of_family(x, design):
    p, k = 2, 4
    return -2 * jm.log_likelihood(x[:p], x[p : p + 1], 1.0, design, x[p + 1 : p + 1 + k])


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["3|4", "sd_Intercept|judge"])
def test_limits_of_a_family_by_a_search_of_another_kind(name):
    """At each limit: the likelihood of all other parameters, optimised by scipy under a constraint."""
    result, limits = wine(), wine().confint("profile", which=name)
    fit, design, slope = result.fitted.fit, result.model.design, jax.jit(jax.grad(of_family))

    def held(x):
        return x[3] + np.sum(np.exp(x[4:6])) if name == "3|4" else x[2]

    with double_precision():
        for limit in limits.loc[name]:
            found = minimize(
                lambda x: float(of_family(x, design)),
                np.concatenate([fit.beta, fit.theta, fit.kappa]),
                jac=lambda x: np.asarray(slope(x, design)),
                constraints=[{"type": "eq", "fun": lambda x, limit=limit: held(x) - limit}],
                method="SLSQP",
                options={"ftol": 1e-12, "maxiter": 200},
            )
            assert found.fun - result.objective == pytest.approx(cut(0.95) ** 2, abs=1e-6)


@functools.cache
def plain_counts():
    """Counts whose groups do not differ, and which are no more dispersed than Poisson's."""
    rng = np.random.default_rng(4)
    data = pd.DataFrame({"g": np.repeat(np.arange(10), 5), "x": rng.normal(size=50)})
    mean = np.exp(1 + 0.3 * data.x)
    return data.assign(y=np.round(mean + 0.5 * rng.normal(size=50) * np.sqrt(mean)).clip(0))


@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
def test_a_variance_of_zero_is_the_end_of_its_range():
    result = jm.mixedglm("y ~ x + (1 | g)", plain_counts(), "poisson").fit()
    profile = result.profile("sd_Intercept|g", level=0.95, steps=2)
    lower, upper = profile.confint(0.95).loc["sd_Intercept|g"]
    assert lower == 0 < upper
    design = result.model.design
    with double_precision():
        at_limit = jm.estimate(design, theta=np.array([upper]))
    assert float(at_limit.objective) - result.objective == pytest.approx(cut(0.95) ** 2, abs=1e-7)


def test_a_profile_that_levels_off_has_no_limit():
    """Nobody of those in the second group answers yes: the profile of what distinguishes it levels off below."""
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(np.arange(15), 4), "z": np.tile([0, 0, 0, 1], 15)})
    data["y"] = np.where(data.z, np.arange(60) == 3, rng.random(60) < 0.5).astype(float)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        result = jm.mixedglm("y ~ z + (1 | g)", data).fit()
    lower, upper = result.confint("profile", 0.995, which="z").loc["z"]
    assert np.isfinite(upper)
    assert upper < 0.5
    assert lower < -5
