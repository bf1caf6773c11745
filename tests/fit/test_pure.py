"""Pure functions at given parameters against dense normal densities, against loops, and in batches."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom, norm

import jmixed as jm
from jmixed.fit import host
from jmixed.runtime.precision import double_precision

BETA, SIGMA = np.array([1.0, 2.0, 0.1]), 0.8


def bare(case, beta=BETA):
    """The case of the residuals at beta: what a dense reference of any X needs."""
    return replace(case, y=case.y - case.X @ beta, X=np.zeros((len(case.y), 0)))


def rows_of_top_levels(case):
    """Rows of each level of the factor with the fewest levels."""
    top = min(case.terms, key=lambda term: len(term.levels))
    return [np.flatnonzero(top.codes == level) for level in top.levels]


def renumbered(case):
    """Terms whose levels are numbered without gaps, as those of a part of the rows are to be."""
    terms = (replace(t, codes=np.unique(t.codes, return_inverse=True)[1].astype(np.int32)) for t in case.terms)
    return replace(case, terms=tuple(terms))


@pytest.mark.parametrize("name", ["slope", "identity", "nested three"])
def test_log_likelihood_by_group(name):
    against_dense_densities_of_groups(name)


@pytest.mark.drowned
@pytest.mark.parametrize("name", ["nested", "nested three"])
def test_log_likelihood_by_group_of_groups_far_apart(name):
    against_dense_densities_of_groups(name, 1e4)


def against_dense_densities_of_groups(name, spread=0):
    case = layouts.case(name)
    term = max(case.terms, key=lambda term: len(term.levels))
    case = replace(case, y=case.y + spread * np.random.default_rng(1).normal(size=len(term.levels))[term.codes])
    theta = layouts.draw_theta(case)

    @layouts.quick_jit
    def each(beta, theta, sigma, design):
        return jm.log_likelihood_by_group(beta, theta, sigma, design), jm.log_likelihood(beta, theta, sigma, design)

    with double_precision():
        found, whole = jax.device_get(each(BETA, theta, SIGMA, case.design))
    parts = [renumbered(bare(case).take(rows)) for rows in rows_of_top_levels(case)]
    expected = [layouts.log_density(part, np.zeros(0), theta, SIGMA) for part in parts]
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.sum(), whole, rtol=1e-12)


def test_scores_by_group():
    case = layouts.case("slope")
    theta = layouts.draw_theta(case)
    with double_precision():
        scores = layouts.quick_jit(jax.jacfwd(jm.log_likelihood_by_group, argnums=(0, 1, 2)))(
            BETA, theta, np.asarray(SIGMA), case.design
        )
    for k, rows in enumerate(rows_of_top_levels(case)):
        own = case.take(rows)
        expected = layouts.density_gradient(renumbered(bare(own)), np.zeros(0), theta, SIGMA)
        np.testing.assert_allclose(scores[0][k], -own.X.T @ expected["y"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(scores[1][k], expected["theta"], rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(scores[2][k], expected["sigma"], rtol=1e-9, atol=1e-9)


def test_groups_that_are_not_independent_have_no_densities_of_their_own():
    with double_precision():
        for name in ("crossed", "sparse", "no random effects"):
            case = layouts.case(name)
            with pytest.raises(jm.ModelError, match="groups that are independent of each other"):
                jm.log_likelihood_by_group(BETA, layouts.draw_theta(case), SIGMA, case.design)


@pytest.mark.parametrize(
    ("name", "collinear"),
    [
        ("slope", True),
        ("nested and crossed", False),
        ("crossed", True),
        ("sparse", False),
        ("nested three", False),
        ("related and others", False),
        ("equations", False),
    ],
)
def test_conditional_modes(name, collinear):
    case = layouts.case(name)
    if collinear:
        case = replace(case, X=np.column_stack([case.X[:, :2], 3 * case.X[:, 1]]))
    theta = layouts.draw_theta(case)
    with double_precision():
        found = jax.device_get(
            layouts.quick_jit(lambda design: jm.conditional_modes(BETA, theta, SIGMA, design))(case.design)
        )
    expected = layouts.modes(bare(case), theta, np.zeros(0))
    assert set(found) == {term.label for term in case.terms}
    for label, modes in expected.items():
        np.testing.assert_allclose(found[label], modes, rtol=1e-9, atol=1e-9)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("gap", [0.0, 1e-12, 1e-9])
def test_densities_do_not_ask_for_independent_columns(gap):
    case = layouts.case("slope")
    X = case.X.copy()
    X[:, 2] = 2 * X[:, 0] + 3 * X[:, 1] + gap * X[:, 2]
    case, theta = replace(case, X=X), layouts.draw_theta(case)
    residuals = bare(case)
    value = layouts.log_density(residuals, np.zeros(0), theta, SIGMA)
    slope = layouts.density_gradient(residuals, np.zeros(0), theta, SIGMA)
    with double_precision():
        for data in (case.design, jm.moments(case.design)):
            found, (beta, own, sigma) = layouts.quick_jit(jax.value_and_grad(jm.log_likelihood, argnums=(0, 1, 2)))(
                BETA, theta, np.asarray(SIGMA), data
            )
            np.testing.assert_allclose(found, value, rtol=1e-11)
            np.testing.assert_allclose(beta, -X.T @ slope["y"], rtol=1e-9)
            np.testing.assert_allclose(own, slope["theta"], rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(sigma, slope["sigma"], rtol=1e-9)
        outcome = jm.estimate(case.design).outcome
    assert jm.Outcome(int(outcome)) == jm.Outcome.RANK_DEFICIENT


@pytest.mark.parametrize(("dtype", "accuracy"), [("f8", 1e-10), ("f4", 2e-5)])
def test_densities_of_mini_batches(dtype, accuracy):
    """Groups of two rows, of which a batch holds those of one arm, one group, or one twice; weights may be zero."""
    r, groups = np.random.default_rng(0), np.repeat(np.arange(8), 2)
    arm = (groups % 2).astype(float)
    X = np.column_stack([np.ones(16), arm, 1 - arm, r.normal(size=16)])
    y, weights = X @ [1, 2, 0, 1] + r.normal(size=8)[groups] + r.normal(size=16), np.ones(16)
    weights[4] = 0
    term = layouts.term("g", groups, np.ones(16), intercept=0)
    case = layouts.Case(y, X, weights, np.zeros(16), (term,))
    batches = np.array([[0, 2], [1, 3], [2, 2], [7, 7]])
    parameters = np.array([1.0, 2.0, 0.5, 1.0], dtype), np.array([0.7], dtype), np.asarray(1.1, dtype)

    def of(batch, design, parameters):
        rows, part = jm.take_groups(design, batch)
        return jm.log_likelihood(*parameters, part)

    with jax.enable_x64(dtype == "f8"):
        design = jax.tree.map(lambda a: np.asarray(a, dtype) if a.dtype.kind == "f" else a, case.design)
        both = layouts.quick_jit(
            jax.vmap(lambda batch, at: jax.value_and_grad(of, argnums=2)(batch, design, at), in_axes=(0, None))
        )
        value, slopes = jax.device_get(both(batches, parameters))
    for k, batch in enumerate(batches):
        rows = [np.flatnonzero((groups == g) & (weights > 0)) for g in batch]
        beta, theta, sigma = parameters
        parts = [renumbered(bare(case.take(own), beta)) for own in rows]
        expected = sum(layouts.log_density(part, np.zeros(0), theta, sigma) for part in parts)
        np.testing.assert_allclose(value[k], expected, rtol=accuracy)
        gradients = [layouts.density_gradient(part, np.zeros(0), theta, sigma) for part in parts]
        expected = -sum(X[own].T @ g["y"] for own, g in zip(rows, gradients, strict=True))
        np.testing.assert_allclose(slopes[0][k], expected, rtol=10 * accuracy, atol=10 * accuracy)
        np.testing.assert_allclose(slopes[1][k], sum(g["theta"] for g in gradients), rtol=10 * accuracy, atol=1e-4)


def test_a_batch_without_a_row_has_the_density_of_nothing():
    design = layouts.case("slope").design
    with double_precision():
        empty = design.replace(weights=np.zeros(layouts.ROWS))
        value, slope = jax.value_and_grad(lambda b: jm.log_likelihood(b, np.ones(3), SIGMA, empty))(BETA)
    assert float(value) == 0
    np.testing.assert_array_equal(slope, 0)


WEIGHTS = np.where(np.arange(layouts.ROWS) % 3 == 0, [[1.0], [0.0]], 1.0)
"""Those of two members of a batch, by which the weights of a case are multiplied."""


@pytest.mark.parametrize("columns", [0, 3])
def test_densities_with_weights_that_differ_between_the_members_of_a_batch(columns):
    case = layouts.case("slope")
    case = replace(case, X=case.X[:, :columns])
    design, theta, beta = case.design, layouts.draw_theta(case), BETA[:columns]

    def of(weights):
        changed = design.replace(weights=weights)
        groups = jm.log_likelihood_by_group(beta, theta, SIGMA, changed)
        return jm.log_likelihood(beta, theta, SIGMA, changed), groups, jm.marginal_loss(case.y, theta, changed, SIGMA)

    with double_precision():
        whole, groups, losses = jax.device_get(layouts.quick_jit(jax.vmap(of))(case.weights * WEIGHTS))
        alone = [jm.marginal_loss(case.y, theta, design.replace(weights=case.weights * own), SIGMA) for own in WEIGHTS]
    for k, own in enumerate(WEIGHTS):
        part = renumbered(bare(case, beta).take(np.flatnonzero(own)))
        density = layouts.log_density(part, np.zeros(0), theta, SIGMA)
        np.testing.assert_allclose([whole[k], groups[k].sum()], density, rtol=1e-10)
        np.testing.assert_allclose(losses[k], alone[k], rtol=1e-10)


@pytest.mark.thorough
def test_fits_with_weights_that_differ_between_the_members_of_a_batch():
    case = layouts.case("slope")
    design, weights = case.design, case.weights * WEIGHTS
    with double_precision():
        fits = layouts.quick_jit(jax.vmap(lambda own: jm.estimate(design.replace(weights=own))))(weights)
        found = [fits, jm.estimate_many(design, np.stack([case.y, case.y]), weights=weights)]
        found = jax.device_get([(many.objective, many.theta, many.beta, many.b) for many in found])
    for k, own in enumerate(weights):
        alone = host.fit(design.replace(weights=own))
        for many in found:
            one = jax.tree.map(lambda leaf, k=k: leaf[k], many)
            fields = alone.objective, alone.theta, alone.beta, alone.b
            jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6), one, fields)


def test_predictions():
    case = layouts.case("nested three", seed=3)
    with double_precision():
        fit = jax.device_get(jm.estimate(case.design))
        found = np.asarray(jm.predict(fit, case.design))
        inside = np.asarray(layouts.quick_jit(jm.predict)(fit, case.design))
    expected = case.offset + case.X @ fit.beta
    for term in case.terms:
        expected = expected + np.sum(term.Z * fit.b[term.label][term.codes], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(inside, expected, rtol=1e-12)


def test_predictions_of_new_rows_match_levels_by_their_names():
    r, n = np.random.default_rng(0), 120
    groups, items, x = r.choice(list("fdacbe"), n), r.integers(0, 10, n) * 10, r.normal(size=n)
    X, y = np.column_stack([np.ones(n), x]), r.normal(size=n) + x
    labels = {"who": groups, "item": items}
    new_groups, new_items = np.array(["e", "zz", "a", "a"]), np.array([90, 5, 0, 20])
    new_X = np.column_stack([np.ones(4), [1.0, 2, 3, 4]])
    with double_precision():
        design = jm.design(y, X, labels)
        new = jm.design(np.zeros(4), new_X, {"who": new_groups, "item": new_items}, offset=np.arange(4.0))
        fit = jax.device_get(jm.estimate(design, theta=np.array([0.8, 0.5])))
        found = jm.predict(fit, design, new)
        slope = jax.jacobian(lambda x: jm.predict(fit, design, new.replace(X=x)))(new_X)
        fits = jax.device_get(jm.estimate_many(design, np.stack([y, 2 * y])))
        many = np.asarray(jm.predict(fits, design, new))
        other = jm.design(np.zeros(4), new_X, {"who": new_groups, "item": new_items.astype(str)})
        with pytest.raises(jm.DataError, match="'0', .* are of another type than those of the design, 0"):
            jm.predict(fit, design, other)
        with pytest.raises(jm.DataError, match="close over both designs"):
            jax.jit(jm.predict)(fit, design, new)
    known, numbers = sorted(set(groups)), sorted(set(items.tolist()))

    def predicted(beta, who, item):
        rows = new_X @ beta + np.arange(4.0)
        for k in range(4):
            if new_groups[k] in known:
                rows[k] += who[known.index(new_groups[k]), 0]
            if new_items[k] in numbers:
                rows[k] += item[numbers.index(new_items[k]), 0]
        return rows

    np.testing.assert_allclose(found, predicted(fit.beta, fit.b["who"], fit.b["item"]), rtol=1e-12)
    np.testing.assert_allclose(np.einsum("iij->ij", slope), np.tile(fit.beta, (4, 1)), rtol=1e-12)
    for k in range(2):
        expected = predicted(fits.beta[k], fits.b["who"][k], fits.b["item"][k])
        np.testing.assert_allclose(many[k], expected, rtol=1e-12)


def test_simulated_responses_have_the_moments_of_the_model():
    case, n = layouts.case("slope", seed=2), 20_000
    theta, sigma = np.array([0.8, -0.3, 0.6]), 0.5
    with double_precision():
        fit = replace(jm.estimate(case.design, theta=theta), beta=BETA, sigma=jnp.asarray(sigma))
        Y = np.asarray(jm.simulate(fit, case.design, 0, n))
        again = np.asarray(jax.jit(lambda key: jm.simulate(fit, case.design, key, n))(jax.random.key(0)))
        slope = jax.grad(lambda beta: jm.simulate(replace(fit, beta=beta), case.design, 0, 3)[1, 7])(BETA)
    np.testing.assert_allclose(Y, again, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(slope, case.X[7], rtol=1e-12)
    V = sigma**2 * layouts.relative_covariance(case, [f @ f.T for f in layouts.factors(case, theta)])
    sd = np.sqrt(np.diag(V))
    # Five standard errors of means and covariances of normal numbers.
    np.testing.assert_array_less(np.abs(Y.mean(0) - case.X @ BETA - case.offset), 5 * sd / np.sqrt(n))
    error = np.sqrt((V**2 + np.outer(sd, sd) ** 2) / n)
    np.testing.assert_array_less(np.abs(np.cov(Y.T) - V), 5 * error)


def test_what_does_not_belong_together_is_named():
    slope, nested = layouts.case("slope").design, layouts.case("nested").design
    with double_precision():
        fit = jm.estimate(slope, theta=np.ones(3))
        with pytest.raises(jm.DataError, match="give the design that the estimate is of"):
            jm.predict(fit, nested)
        with pytest.raises(jm.DataError, match="give what jm.estimate returns"):
            jm.predict(fit.beta, slope)
        with pytest.raises(jm.DataError, match="entries of theta"):
            jm.simulate(fit, nested, 0, 3)
        with pytest.raises(jm.DataError, match="n is 0.5"):
            jm.simulate(fit, slope, 0, 0.5)
        with pytest.raises(jm.ModelError, match=r"sigma is a ndarray of shape \(2,\); it must be a number"):
            jm.conditional_modes(BETA, np.ones(3), np.ones(2), slope)


# Responses with a family.


def rates(case, theta=0.9):
    """A number of events for each row of a case, with one random effect a group, and what the model is of them."""
    rng = np.random.default_rng(3)
    mean = np.exp(0.2 + 0.3 * case.X[:, 1] + theta * rng.normal(size=len(case.terms[0].levels))[case.terms[0].codes])
    return pd.DataFrame({"y": rng.poisson(mean), "x": case.X[:, 1], "g": case.terms[0].codes})


def density_of_group(rows, beta, theta, log_size=None):
    """The log of the integral over the group's effect, by scipy."""
    y, eta = rows.y.to_numpy(), beta[0] + beta[1] * rows.x.to_numpy()

    def log_integrand(u):
        mean = np.exp(eta + theta * u)
        size = np.exp(log_size)
        return np.sum(nbinom.logpmf(y, size, size / (size + mean))) + norm.logpdf(u)

    mode = minimize_scalar(lambda u: -log_integrand(u), bracket=(-1, 1), tol=1e-10).x
    top = log_integrand(mode)
    inside = quad(lambda u: np.exp(log_integrand(u) - top), mode - 12, mode + 12, points=[mode], epsabs=1e-12)[0]
    return top + np.log(inside), theta * mode


@pytest.mark.thorough
def test_groups_of_a_family_one_by_one():
    """Log-likelihoods by quadrature and modes against scipy's integrals; scores of groups add up to those of all."""
    frame = rates(layouts.case("slope"))
    design = jm.mixedglm("y ~ x + (1 | g)", frame, "negativebinomial", quadrature=25).design
    beta, theta, rho = np.array([0.1, 0.4]), np.array([0.8]), np.array([1.0])

    @layouts.quick_jit
    def of(beta, theta, rho, design):
        def each(theta):
            return jm.log_likelihood_by_group(beta, theta, 1.0, design, rho)

        scores = jax.jacfwd(each)(theta)
        together = jax.grad(lambda theta: jm.log_likelihood(beta, theta, 1.0, design, rho))(theta)
        return each(theta), scores, together, jm.conditional_modes(beta, theta, 1.0, design, rho)

    with double_precision():
        each, scores, together, modes = jax.device_get(of(beta, theta, rho, design))
    expected = [density_of_group(rows, beta, theta[0], rho[0]) for _, rows in frame.groupby("g")]
    np.testing.assert_allclose(each, [value for value, _ in expected], rtol=1e-8)
    np.testing.assert_allclose(modes["1 | g"][:, 0], [mode for _, mode in expected], atol=1e-6)
    np.testing.assert_allclose(scores.sum(0), together, rtol=1e-9)


def test_groups_of_a_family_that_hold_others():
    """By Laplace's approximation: each as the rows of that group alone."""
    frame = rates(layouts.case("slope"))
    frame["inner"] = np.arange(len(frame)) % 3
    design = jm.mixedglm("y ~ x + (1 | g / inner)", frame, "poisson").design
    beta, theta = np.array([0.1, 0.4]), np.array([0.5, 0.8])
    with double_precision():
        each = np.asarray(jm.log_likelihood_by_group(beta, theta, 1.0, design))
        of_weights = jax.jit(lambda w: jm.log_likelihood(beta, theta, 1.0, design.replace(weights=w)))
        alone = [float(of_weights((frame.g == g).to_numpy(float))) for g in sorted(frame.g.unique())[:3]]
    np.testing.assert_allclose(each[:3], alone, rtol=1e-10)


@pytest.mark.thorough
def test_simulated_responses_of_a_family_have_the_moments_of_the_model():
    frame, n = rates(layouts.case("slope")), 4000
    design = jm.mixedglm("y ~ x + (1 | g)", frame, "negativebinomial").design
    beta, theta, size = np.array([0.1, 0.4]), 0.5, 3.0
    with double_precision():
        fit = replace(
            jm.estimate(design, theta=np.array([theta])), beta=jnp.asarray(beta), rho=jnp.log(jnp.array([size]))
        )
        Y = np.asarray(jm.simulate(fit, design, 0, n))
    assert Y.shape == (n, len(frame))
    assert np.all(np.round(Y) == Y)
    # Of lognormal means m with E[m^2] = e2, the variance is E[m] + e2 (1 + 1 / size) - E[m]^2.
    mean = np.exp(beta[0] + beta[1] * frame.x + theta**2 / 2).to_numpy()
    second = mean**2 * np.exp(theta**2)
    variance = mean + second * (1 + 1 / size) - mean**2
    np.testing.assert_array_less(np.abs(Y.mean(0) - mean), 5 * np.sqrt(variance / n))
    assert abs(np.mean(Y.var(0) / variance) - 1) < 0.1
    # Rows of one group share their effect.
    first, other = np.flatnonzero(frame.g == frame.g.mode()[0])[:2]
    across = mean[first] * mean[other] * (np.exp(theta**2) - 1)
    error = np.sqrt(variance[first] * variance[other] / n)
    assert abs(np.cov(Y[:, first], Y[:, other])[0, 1] - across) < 8 * error
