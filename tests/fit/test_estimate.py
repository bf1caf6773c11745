"""The fit as a function of arrays: its derivatives against complete refits, batches, the pytree."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pandas as pd
import pytest
from scipy import optimize

import jmixed as jm
from jmixed.errors import Outcome
from jmixed.fit import host
from jmixed.likelihood import moments
from jmixed.runtime.precision import FLOAT, double_precision

FIELDS = ("theta", "beta", "sigma", "b", "vcov_beta", "objective", "log_likelihood")


ARRAYS = ("y", "X", "Z", "weights", "offset")


@jax.jit
def estimate_with_derivatives(design, direction, cotangent, reml=True):
    """Estimate; its derivative along a direction of all arrays; its transpose applied to a cotangent."""

    def of(data):
        found = jm.estimate(design.replace(**data), reml)
        return {name: getattr(found, name) for name in FIELDS}

    data = {name: getattr(design, name) for name in ARRAYS}
    value, push = jax.linearize(of, data)
    (pulled,) = jax.linear_transpose(push, data)(cotangent)
    return value, push(direction), pulled


def fields(fit):
    return {name: getattr(fit, name) for name in FIELDS}


def draw_like(tree, seed):
    r = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: r.normal(size=np.shape(leaf)), tree)


def inner(left, right):
    return sum(np.sum(a * b) for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True))


def arrays_of(case):
    Z = {term.label: term.Z for term in case.terms}
    return {name: Z if name == "Z" else getattr(case, name) for name in ARRAYS}


def moved(case, direction, step):
    """The case with all arrays moved along a direction; the smallest weight stays positive."""
    arrays = jax.tree.map(lambda a, d: a + step * d, arrays_of(case), direction)
    Z = arrays.pop("Z")
    return replace(case, **arrays, terms=tuple(replace(term, Z=Z[term.label]) for term in case.terms))


def differences_of_refits(case, direction, reml=True, step=1e-4):
    """Derivative along a direction by fourth-order central differences of complete fits."""
    refits = [fields(host.fit(moved(case, direction, s * step).design, reml=reml)) for s in (-2, -1, 1, 2)]
    return jax.tree.map(lambda a, b, c, d: (a - 8 * b + 8 * c - d) / (12 * step), *refits)


# Seeds whose optimum is not singular.
CASES = (("slope", 0, True), ("nested three", 0, False), ("crossed", 13, True), ("related", 2, True))


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("name", "seed", "reml"), CASES)
def test_estimate_and_its_derivatives(name, seed, reml):
    case = layouts.case(name, seed)
    expected = host.fit(case.design, reml=reml)
    assert not any(expected.singular)
    design = case.design
    direction = draw_like(arrays_of(case), 3)
    cotangent = draw_like(fields(expected), 4)
    with double_precision():
        value, pushed, pulled = jax.device_get(estimate_with_derivatives(design, direction, cotangent, reml))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-7 * np.max(np.abs(e))), value, fields(expected)
    )
    refits = differences_of_refits(case, direction, reml)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-6 * np.max(np.abs(e))), pushed, refits
    )
    np.testing.assert_allclose(inner(cotangent, pushed), inner(pulled, direction), rtol=1e-9)


@jax.jit
def second_derivative(design, direction, cotangent):
    """Of a combination of all fields, twice along a direction of all arrays, forward over reverse."""

    def along(t):
        data = {name: getattr(design, name) for name in ARRAYS}
        found = jm.estimate(design.replace(**jax.tree.map(lambda a, d: a + t * d, data, direction)))
        pairs = jax.tree.map(lambda a, c: (a * c).sum(), {name: getattr(found, name) for name in FIELDS}, cotangent)
        return sum(jax.tree.leaves(pairs))

    return jax.jvp(jax.grad(along), (0.0,), (1.0,))[1]


@pytest.mark.thorough
@pytest.mark.parametrize(("name", "seed"), [("slope", 0)])
def test_second_derivatives_are_differences_of_first_ones(name, seed):
    case, step = layouts.case(name, seed), 1e-4
    direction, cotangent = draw_like(arrays_of(case), 3), draw_like(fields(host.fit(case.design)), 4)
    with double_precision():
        second = float(second_derivative(case.design, direction, cotangent))
        first = [
            jax.device_get(estimate_with_derivatives(moved(case, direction, s * step).design, direction, cotangent)[1])
            for s in (-2, -1, 1, 2)
        ]
    a, b, c, d = (inner(cotangent, pushed) for pushed in first)
    np.testing.assert_allclose(second, (a - 8 * b + 8 * c - d) / (12 * step), rtol=1e-7)


def test_derivatives_at_a_singular_optimum():
    # The response varies less between groups than its residuals do: all of Sigma vanishes, and stays so nearby.
    case = layouts.case("slope", seed=1)
    r = np.random.default_rng(0)
    basis = np.concatenate(
        [case.terms[0].Z[:, [j]] * (case.terms[0].codes[:, None] == np.arange(7)) for j in (0, 1)], 1
    )
    noise = r.normal(size=layouts.ROWS)
    noise -= basis @ np.linalg.lstsq(basis, noise, rcond=None)[0]
    case = replace(case, y=case.X @ [1, 2, 0.1] + case.offset + noise)
    expected = host.fit(case.design)
    assert expected.converged
    np.testing.assert_allclose(expected.theta, 0, atol=1e-8)
    direction = draw_like(arrays_of(case), 3)
    with double_precision():
        value, pushed, pulled = jax.device_get(
            estimate_with_derivatives(case.design, direction, draw_like(fields(expected), 4))
        )
    np.testing.assert_allclose(value["beta"], expected.beta, rtol=1e-9)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((pushed, pulled)))
    np.testing.assert_allclose(pushed["theta"], 0, atol=1e-6)
    refits = differences_of_refits(case, direction)
    for name in ("beta", "sigma", "objective"):
        np.testing.assert_allclose(pushed[name], refits[name], rtol=1e-6, atol=1e-6 * np.max(np.abs(refits[name])))


@pytest.mark.thorough
def test_vmap_over_responses_from_a_given_start():
    case = layouts.case("slope", seed=1)
    design, r = case.design, np.random.default_rng(0)
    responses = np.stack([case.y, case.y[::-1], case.X @ [1, 2, 0.1] + case.offset + r.normal(size=layouts.ROWS)])
    with double_precision():
        batch = jax.device_get(
            jax.jit(jax.vmap(lambda y: jm.estimate(design.replace(y=y), theta0=np.ones(3))))(responses)
        )
    assert isinstance(batch, jm.Estimate)
    for k, y in enumerate(responses):
        alone = host.fit(replace(case, y=y).design)
        one = jax.tree.map(lambda leaf, k=k: leaf[k], batch)
        assert Outcome(int(one.outcome)).ok
        np.testing.assert_allclose(one.objective, alone.objective, rtol=1e-10)
        np.testing.assert_allclose(one.log_likelihood, alone.log_likelihood, rtol=1e-10)
        np.testing.assert_allclose(one.theta, alone.theta, atol=1e-5)
        np.testing.assert_allclose(one.beta, alone.beta, rtol=1e-6)
        np.testing.assert_allclose(one.vcov_beta, alone.vcov_beta, rtol=1e-5)


def test_an_estimate_is_a_pytree():
    leaves = {
        name: np.full(2, float(k)) for k, name in enumerate((*FIELDS, "log_likelihood", "outcome")) if name != "b"
    }
    estimate = jm.Estimate(b={"x | g": np.ones((7, 2))}, **leaves)
    assert len(jax.tree.leaves(estimate)) == 8
    doubled = jax.tree.map(lambda leaf: 2 * leaf, estimate)
    assert isinstance(doubled, jm.Estimate)
    np.testing.assert_array_equal(doubled.b["x | g"], 2 * np.ones((7, 2)))
    np.testing.assert_array_equal(doubled.sigma, 2 * estimate.sigma)


@pytest.mark.thorough
def test_jvp_and_vmap_commute_and_estimate_many_has_the_same_derivatives():
    case, r = layouts.case("intercept"), np.random.default_rng(0)
    design = case.design
    responses = np.stack([case.y, case.y + r.normal(size=layouts.ROWS)])
    directions = r.normal(size=responses.shape)

    def of(y):
        found = jm.estimate(design.replace(y=y))
        return found.theta, found.beta, found.sigma, found.log_likelihood, found.b

    def batch(Y):
        found = jm.estimate_many(design, Y)
        return found.theta, found.beta, found.sigma, found.log_likelihood, found.b

    @layouts.quick_jit
    def both_ways(Y, D):
        push = jax.vmap(lambda y, d: jax.jvp(of, (y,), (d,))[1])(Y, D)
        return push, jax.jvp(jax.vmap(of), (Y,), (D,))[1], jax.jvp(batch, (Y,), (D,))[1]

    with double_precision():
        first, second, third = jax.device_get(both_ways(responses, directions))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-8, atol=1e-10), second, first)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-6, atol=1e-8), third, first)


@pytest.mark.parametrize("name", ["slope"])
def test_single_precision_has_the_stated_accuracy(name):
    accuracy = 2e-3
    design, direction = layouts.case(name).design, np.random.default_rng(5).normal(size=layouts.ROWS)

    @layouts.quick_jit
    def of(design, direction):
        def fields(y):
            found = jm.estimate(design.replace(y=y))
            return found.theta, found.beta, found.sigma, found.log_likelihood

        return jax.jvp(fields, (design.y,), (direction,))

    def narrow(leaf):
        return np.asarray(leaf, np.float32) if np.asarray(leaf).dtype == FLOAT else leaf

    with double_precision():
        wide = jax.device_get(of(design, direction))
    found = jax.device_get(of(jax.tree.map(narrow, design), direction.astype(np.float32)))
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(found))
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=accuracy, atol=accuracy * np.max(np.abs(e))), found, wide
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused_where_it_is_seen_and_else_an_outcome(value):
    case = layouts.case("slope")
    design, y, Z = case.design, case.y.copy(), case.terms[0].Z.copy()
    y[7] = Z[9, 1] = value
    with pytest.raises(jm.DataError, match=r"y is missing or infinite in 1 of 60 rows, the first of them row 7"):
        design.replace(y=y)
    with pytest.raises(jm.DataError, match=r"Z\['x \| g'\] is missing or infinite.*row 9"):
        design.replace(Z={"x | g": Z})
    with double_precision():
        outcome = layouts.quick_jit(lambda y: jm.estimate(design.replace(y=y)).outcome)(y)
    assert not jm.Outcome(int(outcome)).ok


def test_what_does_not_fit_the_design_is_named():
    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    with jax.enable_x64(True):
        with pytest.raises(jm.DataError, match=r"theta has shape \(2,\), but this design needs \(3,\)"):
            jm.profiled_deviance(np.ones(2), model.design)
        with pytest.raises(jm.DataError, match=r"beta has shape \(3,\), but this design needs \(2,\)"):
            jm.log_likelihood(np.ones(3), np.ones(3), 1.0, model.design)
        with pytest.raises(jm.DataError, match=r"theta0 has shape \(2,\)"):
            jm.estimate(model.design, theta0=np.ones(2))
        with pytest.raises(jm.DataError, match=r"theta has shape \(1,\)"):
            jm.marginal_loss(model.endog, np.ones(1), model.design)
        with pytest.raises(jm.DataError, match=r"design is a MixedLM; give the design of a model, model\.design"):
            jm.estimate(model)


def penalty(weight):
    """One that pulls coefficients to 1 and keeps standard deviations off zero."""
    return lambda beta, theta: weight * jnp.sum((beta - 1) ** 2) - 2 * jnp.log(theta[0]) - 2 * jnp.log(theta[2])


def penalised_criterion(case, weight, reml):
    """The deviance at given coefficients plus that penalty, by dense matrices."""

    def criterion(x):
        beta, theta = x[:3], x[3:]
        d = layouts.generalised(case, [f @ f.T for f in layouts.factors(case, theta)], reml, beta)
        logdet = np.linalg.slogdet(d.V)[1] + (np.linalg.slogdet(d.A)[1] if reml else 0)
        added = weight * np.sum((beta - 1) ** 2) - 2 * np.log(abs(theta[0])) - 2 * np.log(abs(theta[2]))
        return logdet + d.nu * (1 + np.log(2 * np.pi * d.rss / d.nu)) + added

    return criterion


def test_a_penalised_estimate_and_its_derivatives():
    case, step = layouts.case("slope", seed=1), 1e-4
    direction = np.random.default_rng(0).normal(size=layouts.ROWS)

    @layouts.quick_jit
    def both(y, weight):
        def of(y, weight):
            found = jm.estimate(case.design.replace(y=y), penalty=penalty(weight))
            return found, found.beta.sum() + found.theta.sum() + found.sigma

        def total(y, weight):
            return of(y, weight)[1]

        return of(y, weight), jax.grad(total, argnums=(0, 1))(y, weight)

    with double_precision():
        (found, _), (by_y, by_weight) = jax.device_get(both(case.y, 5.0))
        along = [float(both(case.y + s * step * direction, 5.0)[0][1]) for s in (-2, -1, 1, 2)]
        weights = [float(both(case.y, 5.0 + s * step)[0][1]) for s in (-2, -1, 1, 2)]
    criterion = penalised_criterion(case, 5.0, True)
    assert Outcome(int(found.outcome)) == Outcome.CONVERGED
    np.testing.assert_allclose(found.objective, criterion(np.concatenate([found.beta, found.theta])), rtol=1e-10)
    start = np.concatenate([found.beta, found.theta]) + 0.1
    best = optimize.minimize(criterion, start, method="BFGS", options={"gtol": 1e-6})
    np.testing.assert_allclose(np.concatenate([found.beta, found.theta]), best.x, atol=1e-4)
    assert found.objective <= best.fun + 1e-8
    for pulled, (a, b, c, d) in ((by_y @ direction, along), (by_weight, weights)):
        np.testing.assert_allclose(pulled, (a - 8 * b + 8 * c - d) / (12 * step), rtol=1e-6)


@pytest.mark.thorough
def test_without_a_penalty_to_speak_of_the_estimate_is_the_one_without():
    design = layouts.case("slope", seed=1).design
    free = host.fit(design, reml=False)
    with double_precision():
        none = jax.device_get(jm.estimate(design, False, penalty=lambda beta, theta: 0 * beta.sum()))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-7, atol=1e-9), fields(none), fields(free))


@pytest.mark.parametrize("reml", [True, False])
def test_an_estimate_at_a_given_theta(reml):
    case = layouts.case("nested and crossed")
    theta = layouts.draw_theta(case)
    with double_precision():
        found = jax.device_get(jm.estimate(case.design, reml, theta=theta))
        slope = layouts.quick_jit(jax.jacfwd(lambda theta: jm.estimate(case.design, reml, theta=theta).beta))(theta)
    dense = layouts.generalised(case, [f @ f.T for f in layouts.factors(case, theta)], reml)
    np.testing.assert_allclose(found.beta, dense.beta, rtol=1e-9)
    np.testing.assert_allclose(found.sigma, np.sqrt(dense.rss / dense.nu), rtol=1e-10)
    np.testing.assert_allclose(found.objective, layouts.deviance(case, theta, reml), rtol=1e-10)
    np.testing.assert_allclose(found.vcov_beta, found.sigma**2 * np.linalg.inv(dense.A), rtol=1e-8)
    np.testing.assert_allclose(np.abs(found.theta), np.abs(theta), rtol=1e-12)
    assert Outcome(int(found.outcome)) == Outcome.CONVERGED
    for label, modes in layouts.modes(case, theta).items():
        np.testing.assert_allclose(found.b[label], modes, rtol=1e-8, atol=1e-10)
    step = 1e-5 * np.eye(len(theta))[0]
    ends = [
        layouts.generalised(case, [f @ f.T for f in layouts.factors(case, theta + s * step)], reml).beta
        for s in (-1, 1)
    ]
    np.testing.assert_allclose(slope[:, 0], (ends[1] - ends[0]) / 2e-5, rtol=1e-5, atol=1e-8)


def test_what_excludes_each_other_is_named():
    design = layouts.case("intercept").design
    with double_precision():
        with pytest.raises(jm.DataError, match="theta and penalty exclude each other"):
            jm.estimate(design, theta=np.ones(1), penalty=lambda beta, theta: 0.0)
        with pytest.raises(jm.DataError, match="theta and theta0 exclude each other"):
            jm.estimate(design, theta=np.ones(1), theta0=np.ones(1))
        with pytest.raises(jm.DataError, match=r"penalty is a float; give a function of \(beta, theta\)"):
            jm.estimate(design, penalty=1.0)
        with pytest.raises(jm.DataError, match="design is a Moments"):
            jm.estimate(jm.moments(design))


def test_the_suite_traces_the_second_way_of_counting_only_where_a_test_asks_for_it(monkeypatch):
    def refuse(*_):
        raise AssertionError("the second way of counting was traced")

    monkeypatch.setattr(moments, "counted_from_estimates", refuse)
    design = layouts.case("intercept").design
    with double_precision():
        jax.eval_shape(lambda y: jm.estimate(design.replace(y=y)).theta, design.y)


@pytest.mark.drowned
def test_digits_of_large_ratios_under_jit_vmap_and_grad():
    """Balanced groups: sigma^2 is the mean square within, and its slope in y the deviations from the groups' means."""
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(20), 5)
    y = 1e6 * rng.normal(size=20)[group] + rng.normal(size=100)
    data = pd.DataFrame({"y": y, "group": group})
    design = jm.mixedlm("y ~ 1 + (1 | group)", data).design
    deviations = y - data.groupby("group").y.transform("mean").to_numpy()
    variance = deviations @ deviations / 80
    with double_precision():
        found = jm.estimate(design)
        slope = jax.grad(lambda y: jm.estimate(design.replace(y=y)).sigma ** 2)(design.y)
        many = jm.estimate_many(design, np.stack([design.y, design.y / 1e6]))
        held = jm.estimate(design, theta=found.theta)
    assert Outcome(int(found.outcome)).ok
    np.testing.assert_allclose(found.sigma**2, variance, rtol=1e-9)
    np.testing.assert_allclose(held.sigma**2, variance, rtol=1e-9)
    np.testing.assert_allclose(slope, deviations / 40, rtol=0, atol=1e-7)
    np.testing.assert_allclose(many.sigma**2, [variance, variance / 1e12], rtol=1e-9)
