"""The host side's fit: fields against dense formulas, values at given parameters, and what is compiled when."""

from collections import defaultdict
from contextlib import contextmanager
from fractions import Fraction
from functools import cache

import jax
import layouts
import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.errors import Outcome
from jmixed.fit import estimate, host
from jmixed.inference.curvature import curvature
from jmixed.runtime import compilation, memory

LAYOUTS = ("slope", "identity", "nested three", "nested and crossed", "crossed", "related", "equations")


@cache
def fitted(name, reml=True, seed=1):
    return host.fit(layouts.case(name, seed).design, reml=reml)


# ---- the fields of a fit -------------------------------------------------------------------------------------------


@pytest.mark.sweep(4)
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_estimates_are_those_of_dense_matrices(name, reml):
    case, fit = layouts.case(name, seed=1), fitted(name, reml)
    assert fit.converged
    sigmas = [f @ f.T for f in layouts.factors(case, fit.theta)]
    d = layouts.generalised(case, sigmas, reml)
    scale = d.rss / d.nu
    np.testing.assert_allclose(fit.objective, layouts.deviance(case, fit.theta, reml), rtol=1e-10)
    np.testing.assert_allclose(fit.log_likelihood, -fit.objective / 2)
    np.testing.assert_allclose(fit.beta, d.beta, rtol=1e-8)
    np.testing.assert_allclose(fit.sigma, np.sqrt(scale), rtol=1e-9)
    np.testing.assert_allclose(fit.vcov_beta, scale * np.linalg.inv(d.A), rtol=1e-7)
    for label, modes in layouts.modes(case, fit.theta).items():
        np.testing.assert_allclose(fit.b[label], modes, atol=1e-9)
    for t, sigma in zip(case.terms, sigmas, strict=True):
        np.testing.assert_allclose(fit.covariances[t.label], scale * sigma, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(fit.scale_variance, 2 * scale**2 / d.nu, rtol=1e-8)


@pytest.mark.parametrize("name", LAYOUTS)
def test_theta_is_rectified(name):
    case, fit = layouts.case(name, seed=1), fitted(name)
    for factor in layouts.factors(case, fit.theta):
        assert np.all(np.diag(factor) >= 0)
        for j in np.flatnonzero(np.diag(factor) == 0):
            assert not factor[:, j].any()


@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_information(name, reml):
    case, fit = layouts.case(name, seed=1), fitted(name, reml)
    psi = layouts.psi_of(case, fit.theta)
    hessian = layouts.psi_derivatives(case, psi, reml)[1]
    assert_inverse(fit.uncertainty.vcov_psi, hessian, any(fit.singular))
    d = layouts.generalised(case, layouts.covariances(case, psi), reml)
    step = 1e-5
    scales = [
        [layouts.generalised(case, layouts.covariances(case, psi + k * step * unit), reml).rss / d.nu for k in (-1, 1)]
        for unit in np.eye(len(psi))
    ]
    differences = (np.array(scales) @ [-1, 1]) / (2 * step)
    np.testing.assert_allclose(fit.uncertainty.scale_gradient, differences, rtol=1e-5, atol=1e-7)
    slopes = [
        [layouts.deviance_gradient(case, fit.theta + k * step * unit, reml)["theta"] for k in (-1, 1)]
        for unit in np.eye(len(psi))
    ]
    hessian = np.einsum("k,ikj->ij", [-1, 1], np.array(slopes)) / (2 * step)
    assert_inverse(fit.uncertainty.vcov_theta, hessian, any(fit.singular), 1e-4)


def assert_inverse(covariance, hessian, singular, tolerance=1e-6):
    """The covariance is 2 H^-1 of what is not on its boundary; nan there, and where H is not positive definite."""
    known = ~np.isnan(np.diagonal(covariance))
    values = np.linalg.eigvalsh(hessian)
    assert known.all() or singular or values[0] <= 1e-9 * values[-1]
    assert np.isnan(covariance[~known]).all()
    assert np.isnan(covariance[:, ~known]).all()
    among = np.ix_(known, known)
    np.testing.assert_allclose(covariance[among] @ hessian[among] / 2, np.eye(known.sum()), atol=tolerance)


@pytest.mark.parametrize("name", ["slope", "crossed"])
def test_one_program_or_two_give_the_same(name, monkeypatch):
    together = fitted(name)
    monkeypatch.setattr(estimate, "SMALL", 0)
    apart = host.fit(layouts.case(name, seed=1).design)
    assert "cross_products" not in together.timings
    assert apart.timings["cross_products"] > 0
    np.testing.assert_allclose(apart.objective, together.objective, rtol=1e-12)
    np.testing.assert_allclose(apart.theta, together.theta, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(apart.uncertainty.vcov_psi, together.uncertainty.vcov_psi, rtol=1e-5)


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("name", "width"), [("slope", 9), ("nested three", 4), ("crossed", 5), ("equations", 4)])
def test_columns_that_are_padding_change_no_figure(name, width, monkeypatch):
    design = layouts.case(name, seed=1).design
    firm, bends = [], []
    monkeypatch.setattr(host, "SLIM", 0)
    for columns in (1, width):
        monkeypatch.setattr(host, "WIDTH", columns)
        firm.append([host.design_moments(design)])
        bends.append([])
        for reml in (True, False):
            fit = host.fit(design, reml=reml)
            bent = curvature(design, fit.theta, fit.sigma, reml)
            firm[-1].append((fit.outcome.value, fit.theta, fit.beta, fit.sigma, fit.objective, fit.vcov_beta, fit.b))
            firm[-1].append((bent.to_beta, bent.inverse, bent.first))
            bends[-1].append((bent.second, bent.hessian, bent.joint_covariance))
    assert firm[1][0].padding is None
    # Second derivatives of sparse equations are differences of numbers that are larger by some 1e8, and what is lost
    # there the inverse of the Hessian has ten times.
    for (plain, padded), tolerance in ((firm, 1e-10), (bends, 1e-6 if name == "equations" else 1e-8)):
        for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(padded), strict=True):
            np.testing.assert_allclose(other, one, rtol=tolerance, atol=tolerance * np.max(np.abs(one), initial=1))


def test_padding_hides_no_column_that_others_explain():
    frame = pd.DataFrame({"x": np.arange(60) % 7.0, "g": np.arange(60) // 6, "y": np.sin(np.arange(60))})
    design = jm.mixedlm("y ~ x + (1 | g)", frame).design
    doubled = design.replace(X=np.column_stack([np.ones(60), np.ones(60)]))
    assert host.fit(doubled).outcome is Outcome.RANK_DEFICIENT
    zero = design.replace(X=np.column_stack([np.ones(60), np.zeros(60)]))
    assert host.fit(zero).outcome is Outcome.RANK_DEFICIENT


def test_a_covariate_more_is_no_other_program():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.normal(size=90) for name in "abcdey"} | {"g": np.arange(90) // 6})
    frame["y"] += 2 * rng.normal(size=15)[frame["g"]]
    for same in (("a", "a + b", "1"), ("a * b", "a + b + c + d + e", "a + b + c")):
        jm.mixedlm(f"y ~ {same[0]} + (1 | g)", frame).fit().test()
        before = compilation._traces()
        for fixed in same[1:]:
            jm.mixedlm(f"y ~ {fixed} + (1 | g)", frame).fit().test()
        assert compilation._traces() == before


def test_freed_memory_is_given_back_by_large_fits_alone(monkeypatch):
    design, given = layouts.case("slope", seed=1).design, []
    monkeypatch.setattr(memory, "give_back", lambda: given.append(1))
    host.fit(design)
    assert given == []
    monkeypatch.setattr(memory, "LARGE", 0)
    monkeypatch.setattr(estimate, "SMALL", 0)
    host.fit(design)
    assert len(given) == 2


# ---- at given parameters -------------------------------------------------------------------------------------------


@pytest.mark.sweep(4)
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("at_beta", [False, True], ids=["profiled", "at beta"])
@pytest.mark.parametrize("name", ["slope", "identity", "nested and crossed"])
def test_evaluate(name, at_beta, reml):
    case = layouts.case(name, seed=2)
    psi = layouts.psi_of(case, layouts.draw_theta(case))
    beta = np.array([0.7, 1.5, 0.15]) if at_beta else None
    value = -layouts.deviance_at(case, layouts.covariances(case, psi), reml, beta) / 2
    gradient, hessian = (-part / 2 for part in layouts.psi_derivatives(case, psi, reml, beta))
    found = [host.evaluate(case.design, psi, beta, reml, order) for order in (0, 1, 2)]
    assert isinstance(found[0], float)
    np.testing.assert_allclose([found[0], found[1][0], found[2][0]], value, rtol=1e-10)
    for slope in (found[1][1], found[2][1]):
        np.testing.assert_allclose(slope, gradient, rtol=0, atol=1e-9 * np.abs(gradient).max())
    np.testing.assert_allclose(found[2][2], hessian, rtol=0, atol=1e-9 * np.abs(hessian).max())


def test_evaluate_on_and_beyond_the_border():
    case = layouts.case("slope", seed=2)
    for psi in (np.zeros(3), np.array([1.0, 0.5, 0.25])):
        value = -layouts.deviance_at(case, layouts.covariances(case, psi), True) / 2
        np.testing.assert_allclose(host.evaluate(case.design, psi), value, rtol=1e-10)
    for psi in (np.array([-0.1, 0, 1]), np.array([1.0, 2.0, 1.0])):
        assert host.evaluate(case.design, psi) == -np.inf
        value, gradient, hessian = host.evaluate(case.design, psi, order=2)
        assert value == -np.inf
        assert np.isnan(gradient).all()
        assert np.isnan(hessian).all()


# ---- what is compiled when -----------------------------------------------------------------------------------------


@contextmanager
def counted_traces():
    """Counts how often JAX traces a function to be compiled."""
    events = []

    def listen(event, duration, **kwargs):
        if event == "/jax/core/compile/jaxpr_trace_duration":
            events.append(kwargs.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def slopes_by_group(sizes, seed=0):
    """A random slope for groups of the given sizes."""
    r = np.random.default_rng(seed)
    codes = np.repeat(np.arange(len(sizes)), sizes)
    n, one = len(codes), np.ones(len(codes))
    x = r.normal(size=n)
    y = 1 + x + r.normal(size=len(sizes))[codes] + 0.5 * r.normal(size=len(sizes))[codes] * x + r.normal(size=n)
    term = layouts.term("x | g", codes, one, x, intercept=0)
    return layouts.Case(y, np.column_stack([one, x]), one, 0 * one, (term,)).design


def crossed(levels, seed=0):
    """Two crossed intercepts, every pair of levels observed twice."""
    r = np.random.default_rng(seed)
    g, h = (np.tile(codes.ravel(), 2) for codes in np.indices(levels))
    one = np.ones(len(g))
    y = r.normal(size=levels[0])[g] + r.normal(size=levels[1])[h] + r.normal(size=len(g))
    terms = (layouts.term("1 | g", g, one, intercept=0), layouts.term("1 | h", h, one, intercept=0))
    return layouts.Case(y, np.column_stack([one, r.normal(size=len(g))]), one, 0 * one, terms).design


def test_the_counter_counts():
    with counted_traces() as traces:
        jax.jit(lambda x: x + 1)(np.ones(3, np.float32))
    assert traces


def test_a_second_fit_traces_nothing():
    host.fit(slopes_by_group([10] * 18, seed=0))
    with counted_traces() as traces:
        second = host.fit(slopes_by_group([10] * 18, seed=1))
        other_criterion = host.fit(slopes_by_group([10] * 18, seed=1), reml=False)
    assert second.converged
    assert second.objective != other_criterion.objective
    assert traces == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (slopes_by_group([10] * 18), slopes_by_group([10] * 19)),
        (slopes_by_group([10] * 18), slopes_by_group([9, 10, 8] * 6)),
        # Groups too large for one chunk each, and unequal.
        (slopes_by_group([25, 31, 18] * 7), slopes_by_group([24, 33, 17] * 7, seed=1)),
        (crossed((12, 6)), crossed((13, 6), seed=1)),
    ],
    ids=["one group more", "unequal sizes", "large unequal groups", "crossed"],
)
def test_data_of_similar_size_share_a_program(first, second):
    host.fit(first)
    with counted_traces() as traces:
        assert host.fit(second).converged
    assert traces == []


def test_few_groups_may_have_several_minima_and_the_lowest_is_taken():
    """Two groups and three correlated columns: the first start ends in a minimum that is not the lowest."""
    rng = np.random.default_rng(266)
    lowest = []
    for _ in range(6):
        g = np.repeat([0, 1], [14, 3])
        Z = np.column_stack([np.ones(17), rng.normal(size=(17, 2))])
        y = 1 + 0.5 * Z[:, 1] + Z[:, 2] * np.array([0.5, -2.0])[g] + rng.normal(size=17)
        data = pd.DataFrame({"y": y, "x": Z[:, 1], "z": Z[:, 2], "g": g})
        design = jm.mixedlm("y ~ x + (x + z | g)", data).design
        found = host.fit(design, reml=False)
        starts = rng.normal(size=(6, 6)) * 10 ** rng.uniform(-2, 2, size=(6, 1))
        others = [host.fit(design, reml=False, theta0=start) for start in starts]
        lowest.append(found.objective - min(other.objective for other in others if other.converged))
    assert max(lowest) < 1e-6


def test_four_rows_are_no_optimum_where_the_deviance_has_none():
    # Two coefficients and two or three levels fit four rows perfectly, and the deviance falls without end in some.
    outcomes = set()
    for seed in range(12):
        r = np.random.default_rng(seed)
        codes, x = np.array([[0, 0, 0, 1], [0, 1, 1, 2], [0, 0, 1, 2]][seed % 3]), r.normal(size=4)
        y = 1 + 0.5 * x + r.normal(size=3)[codes] * r.lognormal() + r.normal(size=4)
        term = layouts.term("1 | g", codes, np.ones(4), intercept=0)
        design = layouts.Case(y, np.stack([np.ones(4), x], 1), np.ones(4), np.zeros(4), (term,)).design
        found = host.fit(design, reml=False)
        others = [host.fit(design, reml=False, theta0=np.array([10.0**k])).objective for k in (-2, 0, 2, 3)]
        assert not found.converged or found.objective <= min(others) + 1e-5
        outcomes.add(found.outcome.name)
    assert {"CONVERGED", "PERFECT_FIT"} <= outcomes


def mean_squares(y, *levels):
    """Mean squares of a balanced nest, the innermost last, in rational arithmetic."""
    rows = [Fraction(value) for value in y.tolist()]
    sums, counts = [], []
    for codes in (np.zeros(len(y), int), *levels, np.arange(len(y))):
        total = defaultdict(Fraction)
        for code, value in zip(codes.tolist(), rows, strict=True):
            total[code] += value
        sums.append(sum(value * value for value in total.values()) * len(total) / len(rows))
        counts.append(len(total))
    return [(b - a) / (m - k) for a, b, k, m in zip(sums, sums[1:], counts, counts[1:], strict=False)]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("large", "ratio"), [("sample", 1e3), ("sample", 1e6), ("batch", 1e6), ("both", 1e6)])
def test_variances_keep_their_digits_beside_larger_ones(large, ratio):
    """In a balanced nest REML's estimates are those of the analysis of variance, where none of these is negative."""
    rng = np.random.default_rng(1)
    batch, sample = np.repeat(np.arange(12), 20), np.repeat(np.arange(48), 5)
    sizes = {"sample": (ratio, ratio), "batch": (ratio, 1), "both": (ratio**1.4, ratio)}[large]
    y = 20 + sizes[0] * rng.normal(size=12)[batch] + sizes[1] * rng.normal(size=48)[sample] + rng.normal(size=240)
    data = pd.DataFrame({"y": y, "batch": batch, "sample": sample})
    result = jm.mixedlm("y ~ 1 + (1 | batch) + (1 | sample)", data).fit()
    between, within, residual = mean_squares(y, batch, sample)
    expected = [(between - within) / 20, (within - residual) / 5, residual]
    assert result.converged
    np.testing.assert_allclose(result.var_corr().vcov, [float(value) for value in expected], rtol=1e-6)
    np.testing.assert_allclose(result.bse_fe, np.sqrt(float(between) / 240), rtol=1e-6)
    np.testing.assert_allclose(result.test()["df"], 11, rtol=1e-6)
    one = jm.mixedlm("y ~ 1 + (1 | sample)", data).fit()
    _, residual = mean_squares(y, sample)
    np.testing.assert_allclose(one.sigma, np.sqrt(float(residual)), rtol=1e-8)
    means = data.groupby("sample").y.mean().to_numpy()
    modes = np.asarray(one.predict(random_effects=True))[::5]
    np.testing.assert_allclose(modes, means, rtol=0, atol=1e-3 * float(residual) ** 0.5)


def test_batches_keep_digits_where_one_of_them_needs_it():
    rng = np.random.default_rng(2)
    group = np.repeat(np.arange(30), 6)
    effects, noise = rng.normal(size=30)[group], rng.normal(size=180)
    Y = pd.DataFrame({"small": effects + noise, "large": 1e6 * effects + noise})
    model = jm.mixedlm("small ~ 1 + (1 | group)", Y.assign(group=group))
    found = model.fit_many(Y)
    for name in Y:
        _, residual = mean_squares(Y[name].to_numpy(), group)
        np.testing.assert_allclose(found.sigma[name], np.sqrt(float(residual)), rtol=1e-8)
    assert found.converged.all()


def test_what_no_digits_are_left_for_is_said():
    rng = np.random.default_rng(3)
    a, b = np.repeat(np.arange(20), 12), np.tile(np.arange(12), 20)
    y = 1e6 * rng.normal(size=20)[a] + 1e6 * rng.normal(size=12)[b] + rng.normal(size=240)
    with pytest.warns(jm.ConvergenceWarning, match="ROUNDED: .* few digits of the variances are certain"):
        assert jm.mixedlm("y ~ 1 + (1 | a) + (1 | b)", {"y": y, "a": a, "b": b}).fit().outcome is Outcome.ROUNDED


def test_three_correlated_columns_of_very_different_size_have_the_optimum_of_equal_ones():
    """A random column 5e4 times larger has a covariance as much smaller, and the same likelihood."""
    rng = np.random.default_rng(3)
    g = np.repeat(np.arange(10), 8)
    root = np.tril(rng.normal(size=(3, 3)))
    data = pd.DataFrame({"g": g, "x": rng.normal(size=80), "z": rng.normal(size=80) + 1})
    effects = (rng.normal(size=(10, 3)) @ root.T)[g]
    data["y"] = effects[:, 0] + effects[:, 1] * data["x"] + effects[:, 2] * data["z"] + rng.normal(size=80)
    data["large"] = 5e4 * data["z"]
    for reml in (True, False):
        equal, apart = (host.fit(jm.mixedlm(f"y ~ x + (x + {z} | g)", data).design, reml) for z in ("z", "large"))
        assert equal.outcome is apart.outcome is Outcome.CONVERGED
        assert apart.objective == pytest.approx(equal.objective, abs=1e-8)
        scale = np.array([1, 1, 1 / 5e4])
        ((_, one),), ((_, other),) = equal.covariances.items(), apart.covariances.items()
        np.testing.assert_allclose(other / (scale[:, None] * scale), one, rtol=1e-5)
