"""Fits of responses with a family: invariances, the linear model as a special case, outcomes, derivatives, many."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pandas as pd
import pytest
from generalized import counts_frame
from scipy import optimize, special
from scipy.optimize import minimize

import jmixed as jm
from jmixed.fit import many
from jmixed.fit.separation import separated_columns
from jmixed.runtime.precision import double_precision

RNG = np.random.default_rng(3)
G = np.repeat(np.arange(30), 6)
X = RNG.normal(size=180)
FRAME = pd.DataFrame({"x": X, "g": G, "size": RNG.integers(1, 6, 180).astype(float)})
CHANCE = 1 / (1 + np.exp(-(0.3 + 0.6 * X + 0.9 * RNG.normal(size=30)[G])))
FRAME["won"] = RNG.binomial(FRAME["size"].astype(int), CHANCE).astype(float)
FRAME["lost"] = FRAME["size"] - FRAME["won"]
FRAME["count"] = RNG.poisson(2 * CHANCE).astype(float)
FRAME["events"] = RNG.poisson(RNG.gamma(1.5, 3 * CHANCE / 1.5)).astype(float)
FRAME["amount"] = 2 + X + RNG.normal(size=30)[G] + 0.7 * RNG.normal(size=180)


def estimates(result):
    """What a fit says, in one vector."""
    fit = result.fitted.fit
    return np.concatenate([fit.beta, fit.theta, fit.kappa, np.sqrt(np.diag(fit.vcov_beta)), [fit.objective]])


def test_a_normal_response_is_the_linear_model():
    linear = jm.mixedlm("amount ~ x + (1 | g)", FRAME).fit(reml=False)
    general = jm.mixedglm("amount ~ x + (1 | g)", FRAME, "gaussian").fit()
    np.testing.assert_allclose(general.objective, linear.objective, rtol=1e-11)
    np.testing.assert_allclose(general.fe_params, linear.fe_params, rtol=1e-9)
    np.testing.assert_allclose(general.theta, linear.theta * linear.sigma, rtol=1e-8)
    np.testing.assert_allclose(np.exp(general.fitted.fit.kappa), [linear.sigma**2], rtol=1e-8)


@pytest.mark.parametrize(
    ("random", "nodes"), [("(1 | g)", 1), ("(x | g)", 1), ("(1 | g)", 5), ("(1 | g) + (1 | size)", 1)]
)
def test_thresholds_take_up_the_origin_of_a_column(random, nodes):
    """A day's number as astronomers count them; the optimum was missed by tens of units of deviance."""
    rated = pd.cut(FRAME["amount"], [-np.inf, 1, 2, 3, np.inf], labels=False)
    frame = FRAME.assign(rated=rated, z=np.tile([0.0, 1.0, 1.0], 60))
    near, far = (
        jm.mixedglm(f"rated ~ x + z + {random}", frame.assign(x=X + origin), "ordinal", quadrature=nodes).fit()
        for origin in (0, 2_460_000)
    )
    assert near.converged
    assert far.converged
    assert far.objective == pytest.approx(near.objective, abs=1e-7)
    np.testing.assert_allclose(far.fe_params, near.fe_params, rtol=1e-6)
    np.testing.assert_allclose(far.bse_fe, near.bse_fe, rtol=1e-6)
    shift = far.fe_params["x"] * 2_460_000
    np.testing.assert_allclose(far.thresholds - shift, near.thresholds, atol=1e-6)
    kinds = {"kind": "probability"}
    np.testing.assert_allclose(far.predict(**kinds), near.predict(**kinds), atol=1e-6)
    if random == "(1 | g)" and nodes == 1:
        limits = [np.asarray(result.confint("profile")) for result in (near, far)]
        np.testing.assert_allclose(limits[1][:3], limits[0][:3], rtol=1e-5)
        # Where x is zero thresholds are not known to a million, and their order is.
        assert np.isfinite(limits[1]).all()
        assert (np.diff(limits[1][3:], axis=0) > 0).all()
        fits = far.model.fit_many(np.stack([rated, rated]))
        np.testing.assert_allclose(fits.objective, near.objective, rtol=1e-9)


def test_trials_are_rows_of_zeros_and_ones():
    together = jm.mixedglm("cbind(won, lost) ~ x + (1 | g)", FRAME).fit()
    pieces = [
        np.append(np.ones(int(won)), np.zeros(int(lost))) for won, lost in zip(FRAME.won, FRAME.lost, strict=True)
    ]
    apart = FRAME.loc[FRAME.index.repeat(FRAME["size"].astype(int))].assign(y=np.concatenate(pieces))
    single = jm.mixedglm("y ~ x + (1 | g)", apart).fit()
    np.testing.assert_allclose(estimates(single)[:-1], estimates(together)[:-1], rtol=1e-7)


def test_weights_of_counts_are_rows_that_are_there_so_often():
    weighted = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson", weights="size").fit()
    repeated = FRAME.loc[FRAME.index.repeat(FRAME["size"].astype(int))]
    often = jm.mixedglm("count ~ x + (1 | g)", repeated, "poisson").fit()
    np.testing.assert_allclose(estimates(weighted), estimates(often), rtol=1e-8)


def test_the_order_of_rows_and_the_names_of_groups_do_not_matter():
    plain = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").fit()
    other = FRAME.sample(frac=1, random_state=0).assign(g=lambda d: [f"z{100 - g}" for g in d.g])
    moved = jm.mixedglm("count ~ x + (1 | g)", other, "poisson").fit()
    np.testing.assert_allclose(estimates(moved), estimates(plain), rtol=1e-8)


def test_the_unit_of_a_predictor_is_that_of_its_coefficient():
    plain = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").fit()
    scaled = jm.mixedglm("count ~ x + (1 | g)", FRAME.assign(x=1e4 * FRAME.x + 3e4), "poisson").fit()
    np.testing.assert_allclose(scaled.fe_params["x"] * 1e4, plain.fe_params["x"], rtol=1e-8)
    np.testing.assert_allclose(scaled.objective, plain.objective, rtol=1e-11)


@dataclass(frozen=True)
class Counts(jm.families.Family):
    """Poisson counts, from their log density alone."""

    links = ("log",)
    link: str = "log"

    def log_density(self, y, eta, extras, trials):
        """l."""
        return y * eta - jnp.exp(eta) - jax.scipy.special.gammaln(y + 1)


def test_a_family_needs_a_log_density_and_no_more():
    own = jm.mixedglm("count ~ x + (1 | g)", FRAME, Counts()).fit()
    known = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").fit()
    assert own.converged
    np.testing.assert_allclose(estimates(own), estimates(known), rtol=1e-7)


def test_separation_is_an_outcome_that_names_the_columns():
    kind = np.where(np.arange(180) % 5 == 0, "b", "a")
    y = np.where(kind == "b", 1.0, FRAME["count"] > 1)
    with pytest.warns(jm.ConvergenceWarning, match=r"SEPARATED.*kind\[T\.b\]"):
        result = jm.mixedglm("y ~ x + kind + (1 | g)", FRAME.assign(y=y, kind=kind)).fit()
    assert result.outcome.name == "SEPARATED"
    assert not result.converged
    assert result.bse_fe.isna().tolist() == [False, False, True]


@pytest.mark.parametrize(("size", "rows"), [(2, 4000), (3, 3000)])
def test_rare_events_have_several_minima_and_the_lowest_is_taken(size, rows):
    """A search from moments ends at a variance of zero, another minimum of Laplace's criterion, here by NumPy."""
    rng, groups = np.random.default_rng(1), rows // size
    x, g = rng.normal(size=rows), np.arange(rows) % groups
    y = (rng.random(rows) < 1 / (1 + np.exp(3.5 - 0.5 * x))).astype(float)

    def criterion(intercept, slope, sd):
        fixed, u = intercept + slope * x, np.zeros(groups)

        def density(u):
            eta = fixed + sd * u[g]
            return np.bincount(g, y * eta - np.logaddexp(0, eta)) - u**2 / 2

        for _ in range(60):
            p = 1 / (1 + np.exp(-fixed - sd * u[g]))
            bend = 1 + sd**2 * np.bincount(g, p * (1 - p))
            step = (sd * np.bincount(g, y - p) - u) / bend
            for _ in range(8):
                step = np.where(density(u + step) < density(u) - 1e-14, step / 2, step)
            u = u + step
        return -2 * np.sum(density(u)) + np.sum(np.log(bend))

    result = jm.mixedglm("y ~ x + (1 | g)", pd.DataFrame({"y": y, "x": x, "g": g})).fit()
    found = np.array([*result.fe_params, result.theta[0]])
    assert result.converged
    assert result.optimizer.starts == 4
    assert result.objective == pytest.approx(criterion(*found), abs=1e-8)
    for k in range(3):
        for step in (-0.05, 0.05):
            assert criterion(*(found + step * np.eye(3)[k])) > result.objective
    without = optimize.minimize(lambda params: criterion(*params, 0.0), [-3.5, 0.5])
    assert result.objective < without.fun - 10


def test_groups_that_are_all_failure_or_success_diverge():
    y = (np.random.default_rng(0).random(30) < 0.5)[G].astype(float)
    with pytest.warns(jm.ConvergenceWarning, match=r"DIVERGING.*1 \| g"):
        result = jm.mixedglm("y ~ 1 + (1 | g)", FRAME.assign(y=y)).fit()
    assert result.outcome.name == "DIVERGING"


def test_separated_columns_are_found_and_no_others():
    X = np.column_stack([np.ones(8), [1, 2, 3, 4, 5, 6, 7, 8], [1, -1, 1, -1, 1, -1, 1, -1]]).astype(float)
    assert separated_columns(X, np.array([-1, -1, -1, -1, 1, 1, 1, 1]))[1]
    assert not separated_columns(X, np.array([-1, 1, -1, -1, 1, 1, -1, 1])).any()
    # A count above zero holds the predictor where it is: here all of three rows that span the columns.
    assert not separated_columns(X, np.array([-1, 0, 0, 0, -1, -1, -1, -1])).any()


@pytest.mark.sweep(1)
@pytest.mark.parametrize("crossed", [False, True])
def test_derivatives_through_a_fit_are_those_of_refits(crossed):
    design = jm.mixedglm("events ~ x + (1 | g)" + " + (1 | size)" * crossed, FRAME, "nbinom2").design
    direction = np.random.default_rng(1).normal(size=180)

    def fitted(offset):
        estimate = jm.estimate(design.replace(offset=offset))
        return jnp.concatenate([estimate.beta, estimate.theta, estimate.rho, estimate.objective[None]])

    with jax.enable_x64(True):
        zero = np.zeros(180)
        _, slope = layouts.quick_jit(lambda at: jax.jvp(fitted, (at,), (direction,)))(zero)
        up, down = (np.asarray(fitted(sign * 1e-4 * direction)) for sign in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / 2e-4, rtol=1e-5, atol=1e-6)


def test_many_responses_are_fitted_as_each_by_itself():
    model = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson")
    Y = np.random.default_rng(2).poisson(1.5, (5, 180)).astype(float)
    Y[1, :7] = np.nan
    fits = model.fit_many(Y)
    for k in (0, 4):
        alone = model.with_response(Y[k]).fit()
        np.testing.assert_allclose(fits.objective[k], alone.objective, rtol=1e-10)
        np.testing.assert_allclose(fits.fe_params.loc[k], alone.fe_params, rtol=1e-6, atol=1e-8)
    assert fits.nobs.tolist() == [180, 173, 180, 180, 180]


def test_threads_share_a_batch_without_a_trace(monkeypatch):
    design = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").design
    Y = np.random.default_rng(3).poisson(1.5, (17, 180)).astype(float)
    with double_precision():
        alone = jm.estimate_many(design, Y[:7], reml=False)
        # Two parts, of which the second is filled up; each thread has its own part.
        monkeypatch.setattr(many, "threads", lambda: 2)
        shared = jm.estimate_many(design, Y, reml=False)
        with jax.debug_nans(True):
            assert many._workers(5) == 1
        assert many._workers(5) == 2
        assert many._workers(1) == 1
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(shared), strict=True):
        np.testing.assert_allclose(other[:7], one, rtol=1e-10, atol=1e-10)
    assert shared.sigma.shape == (17,)


def test_a_network_and_a_mini_batch():
    design = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").design
    with jax.enable_x64(True):
        estimate = jm.estimate(design)
        predictor = design.X @ np.asarray(estimate.beta)
        loss = jm.marginal_loss(predictor, estimate.theta, design)
        np.testing.assert_allclose(loss, -estimate.log_likelihood, rtol=1e-10)
        halves = []
        for groups in (np.arange(15), np.arange(15, 30)):
            rows, part = jm.take_groups(design, groups)
            halves.append(jm.marginal_loss(jnp.asarray(predictor)[rows], estimate.theta, part))
        np.testing.assert_allclose(sum(map(float, halves)), loss, rtol=1e-10)


def test_what_is_for_normal_responses_says_so():
    design = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").design
    for call in (jm.moments, lambda d: jm.profiled_deviance(np.ones(1), d)):
        with jax.enable_x64(True), pytest.raises(jm.ModelError, match="linear mixed models only"):
            call(design)


def whole(design, x, p, m):
    """-2 log-likelihood at (beta, theta, kappa)."""
    return -2 * jm.log_likelihood(x[:p], x[p : p + m], 1.0, design, x[p + m :])


@pytest.mark.thorough
def test_an_estimate_at_a_given_theta():
    """The best coefficients there by scipy, and how they move with theta by refits."""
    design, theta = jm.mixedglm("events ~ x + (1 | g)", FRAME, "negativebinomial").design, np.array([0.5])
    value = jax.jit(lambda x, theta: whole(design, jnp.concatenate([x[:2], theta, x[2:]]), 2, 1))
    slope = jax.jit(jax.grad(value))

    @layouts.quick_jit
    def at(theta):
        def beta_and_all(theta):
            found = jm.estimate(design, theta=theta)
            return found.beta, found

        return jax.jacfwd(beta_and_all, has_aux=True)(theta)

    with jax.enable_x64(True):
        slopes, found = jax.device_get(at(theta))
        known = np.append(found.beta, found.rho)
        best = minimize(lambda x: float(value(x, theta)), known + 0.1, jac=lambda x: np.asarray(slope(x, theta)))
        np.testing.assert_allclose(known, best.x, atol=1e-5)
        np.testing.assert_allclose(found.objective, value(known, theta), rtol=1e-12)
        moved = (at(theta + 1e-5)[1].beta - at(theta - 1e-5)[1].beta) / 2e-5
        np.testing.assert_allclose(slopes[:, 0], moved, rtol=1e-6, atol=1e-9)
        modes = jm.conditional_modes(found.beta, theta, 1.0, design, found.rho)
    assert jm.Outcome(int(found.outcome)).ok
    np.testing.assert_allclose(found.b["1 | g"], modes["1 | g"], atol=1e-9)


def test_a_penalty_on_coefficients_and_theta():
    design = jm.mixedglm("count ~ x + (1 | g)", FRAME, "poisson").design

    def penalty(beta, theta, strength=20.0):
        return strength * beta[1] ** 2 + 10 * jnp.sum(theta**2)

    value = jax.jit(lambda x: whole(design, x, 2, 1) + penalty(x[:2], x[2:3]))
    slope = jax.jit(jax.grad(value))

    @layouts.quick_jit
    def of_strength(strength):
        def slope_and_all(strength):
            found = jm.estimate(design, penalty=lambda beta, theta: penalty(beta, theta, strength))
            return found.beta[1], found

        return jax.grad(slope_and_all, has_aux=True)(strength)

    with jax.enable_x64(True):
        by_strength, found = jax.device_get(of_strength(20.0))
        known = np.append(found.beta, found.theta)
        best = minimize(lambda x: float(value(x)), known + 0.1, jac=lambda x: np.asarray(slope(x)))
        np.testing.assert_allclose(known, best.x, atol=1e-5)
        np.testing.assert_allclose(found.objective, best.fun, rtol=1e-10)
        moved = (of_strength(20.01)[1].beta[1] - of_strength(19.99)[1].beta[1]) / 0.02
        np.testing.assert_allclose(by_strength, moved, rtol=1e-5)
    assert jm.Outcome(int(found.outcome)).ok


@pytest.mark.thorough
def test_single_precision():
    """Within the digits that the criterion has; a negative binomial has least."""
    formula = "y ~ x + offset(np.log(exposure)) + (1 | g)"
    wide = jm.mixedglm(formula, counts_frame(), "negativebinomial").fit()
    with jax.enable_x64(True):
        # In a program that has both, one number of 64 bits among those of 32 would be an error.
        found = jax.device_get(layouts.quick_jit(jm.estimate)(jax.tree.map(narrow, wide.model.design)))
    assert found.beta.dtype == found.theta.dtype == np.float32
    assert jm.Outcome(int(found.outcome)).ok
    error = wide.bse_fe.to_numpy()
    np.testing.assert_allclose(found.beta, wide.fe_params, atol=0.05 * error.min())
    np.testing.assert_allclose(found.theta, wide.theta, rtol=0.03)
    np.testing.assert_allclose(np.sqrt(np.diag(found.vcov_beta)), error, rtol=0.01)


@pytest.mark.parametrize(
    ("response", "family", "options"),
    [
        ("cbind(won, lost)", "binomial", {"quadrature": 5}),
        ("cbind(won, lost)", "betabinomial", {}),
        ("events", "nbinom1", {}),
        ("events", "poisson", {"zero_inflation": "~ x"}),
        ("amount", "student", {}),
        ("np.exp(amount)", "gamma", {"dispersion": "~ x"}),
        ("size", "ordinal", {}),
    ],
)
def test_single_precision_stays_single_beside_double(response, family, options):
    design = jm.mixedglm(f"{response} ~ x + (1 | g)", FRAME, family, **options).design
    with jax.enable_x64(True):
        found = jax.eval_shape(jm.estimate, jax.tree.map(narrow, design))
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("f4"), np.dtype("i4")}


def narrow(leaf):
    """In 32 bits, what is in 64."""
    return np.asarray(leaf, np.float32) if np.asarray(leaf).dtype == np.dtype("f8") else leaf


def test_standard_errors_by_quadrature_are_those_of_its_criterion():
    """Of 111 groups of four answers, as clinical trials have them: nine nodes a group, and central differences."""
    rng, group = np.random.default_rng(0), np.repeat(np.arange(111), 4)
    frame = pd.DataFrame({"x": rng.normal(size=444), "treated": rng.integers(0, 2, 111)[group], "g": group})
    chance = special.expit(0.5 - 0.8 * frame.treated + 0.5 * frame.x + 2 * rng.normal(size=111)[group])
    frame["y"] = rng.binomial(1, chance)
    result = jm.mixedglm("y ~ treated + x + (1 | g)", frame, quadrature=9).fit()
    columns, signs = np.column_stack([np.ones(444), frame.treated, frame.x]), 2 * frame.y.to_numpy() - 1
    nodes, weights = special.roots_hermite(9)

    def deviance(at):
        """Nodes about the mode of each group, by the curvature there."""
        fixed, theta, modes = columns @ at[:-1], at[-1], np.zeros(111)
        for _ in range(50):
            p = special.expit(fixed + theta * modes[group])
            curvature = 1 + np.bincount(group, theta**2 * p * (1 - p))
            modes += (np.bincount(group, theta * (frame.y - p)) - modes) / curvature
        effects = modes[:, None] + np.sqrt(2 / curvature)[:, None] * nodes
        rows = -np.logaddexp(0, -signs[:, None] * (fixed[:, None] + theta * effects[group]))
        logs = rows.reshape(111, 4, 9).sum(axis=1) - effects**2 / 2 + nodes**2 + np.log(weights)
        return -2 * np.sum(special.logsumexp(logs, axis=1) - np.log(np.pi * curvature) / 2)

    optimum, sizes = np.append(result.fe_params, result.theta), np.append(result.bse_fe, 0.3)
    units = np.diag(sizes)

    def hessian(step):
        def mixed(u, v):
            return sum(s * t * deviance(optimum + step * (s * u + t * v)) for s in (-1, 1) for t in (-1, 1))

        return np.array([[mixed(u, v) for v in units] for u in units]) / (4 * step**2 * np.outer(sizes, sizes))

    # Richardson's extrapolation.
    covariance = 2 * np.linalg.inv((4 * hessian(0.04) - hessian(0.08)) / 3)
    assert deviance(optimum) == pytest.approx(result.objective, rel=1e-12)
    np.testing.assert_allclose(result.bse_fe, np.sqrt(np.diag(covariance))[:3], rtol=1e-6)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
def test_how_far_the_approximation_is_from_the_truth():
    laplace = jm.mixedglm("cbind(won, lost) ~ x + (1 | g)", FRAME).fit()
    told = laplace.approximation()
    exact = jm.mixedglm("cbind(won, lost) ~ x + (1 | g)", FRAME, quadrature=25).fit()
    np.testing.assert_allclose(told.shift * laplace.bse_fe, exact.fe_params - laplace.fe_params, rtol=0.05, atol=1e-5)
    # By draws, of the same model with a second factor that explains nothing.
    crossed = jm.mixedglm("cbind(won, lost) ~ x + (1 | g) + (1 | size)", FRAME)
    drawn = crossed.fit(theta0=[*laplace.theta, 0.0]).approximation(draws=4000)
    assert abs(drawn.criterion - told.criterion) < 4 * drawn.error + 0.05
    assert drawn.shift is None
