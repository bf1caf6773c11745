"""Estimates without one cluster against fits to the other rows alone."""

import functools

import layouts
import numpy as np
import pytest
from generalized import counts_frame, cows, wine

import jmixed as jm
from jmixed.errors import Outcome
from jmixed.fit import host
from jmixed.inference import leave_one_out as module
from jmixed.inference.leave_one_out import _steps_by_level, leave_one_out, one_step_of_family


@functools.cache
def fitted(name, reml):
    case = layouts.case(name, seed=1)
    return case, host.fit(case.design, reml=reml)


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("name", "reml", "checked"), [("slope", True, 7), ("nested and crossed", False, 1)])
def test_estimates_are_those_of_the_other_rows(name, reml, checked):
    """Weights, an offset, groups of one row, and the number of rows in nu are all in it."""
    case, fit = fitted(name, reml)
    clusters = case.terms[0].codes
    found = leave_one_out(case.design, fit, clusters, reml)
    for cluster in range(checked):
        rest = case.take(np.flatnonzero(clusters != cluster))
        terms = [layouts.term(t.label, t.codes, t.Z, structure=t.structure) for t in rest.terms]
        alone = host.fit(layouts.Case(rest.y, rest.X, rest.weights, rest.offset, tuple(terms)).design, reml=reml)
        assert Outcome(int(found.outcome[cluster])).ok
        assert alone.converged
        np.testing.assert_allclose(found.beta[cluster], alone.beta, atol=1e-6 * np.sqrt(np.diag(alone.vcov_beta)).min())
        np.testing.assert_allclose(found.sigma[cluster], alone.sigma, rtol=1e-6)
        np.testing.assert_allclose(found.vcov_beta[cluster], alone.vcov_beta, rtol=1e-5)
        np.testing.assert_allclose(found.theta[cluster], alone.theta, atol=1e-5 * max(1, np.abs(alone.theta).max()))


def test_one_step_is_a_newton_step():
    """Its error is of second order: small where a cluster moves the estimate little, and far below the move itself."""
    case, fit = fitted("slope", True)
    clusters = case.terms[0].codes
    exact = leave_one_out(case.design, fit, clusters, True)
    step = leave_one_out(case.design, fit, clusters, True, one_step=True)
    moved, left = (np.linalg.norm(a - b, axis=1) for a, b in ((exact.beta, fit.beta), (exact.beta, step.beta)))
    assert np.all(left < 0.5 * moved)
    least = np.argmin(np.linalg.norm(exact.theta - fit.theta, axis=1))
    assert np.linalg.norm(step.theta[least] - exact.theta[least]) < 0.2 * np.linalg.norm(exact.theta[least] - fit.theta)


def test_a_coefficient_that_the_rest_does_not_tell_is_nan():
    case = layouts.case("slope", seed=1)
    clusters = case.terms[0].codes
    only = (clusters == 3) * 1.0
    case = layouts.Case(case.y, np.column_stack([case.X, only]), case.weights, case.offset, case.terms)
    found = leave_one_out(case.design, host.fit(case.design), clusters, True)
    assert np.isnan(found.beta[3]).all()
    assert np.isnan(found.sigma[3])
    assert np.isfinite(np.delete(found.beta, 3, axis=0)).all()


def test_one_step_of_a_family():
    """Against complete refits: where a group matters most, the step is most of the way."""
    exact, step = cows().influence(), cows().influence(method="onestep")
    error, moved = cows().bse_fe, exact.fixed - cows().fe_params
    assert np.max(np.abs(moved / error)) > 1
    assert np.max(np.abs((step.fixed - exact.fixed) / error)) < 0.1
    assert np.corrcoef(step.cooks_distance, exact.cooks_distance)[0, 1] > 0.99
    assert not step.converged.any()
    sd = exact.ran_pars["sd_Intercept|herd"]
    far = np.max(np.abs(sd - cows().var_corr()["sdcor"][0]))
    assert np.max(np.abs(step.ran_pars["sd_Intercept|herd"] - sd)) < far / 2


def long_groups():
    """Counts with more rows in a group than one chunk of a stack has."""
    data = counts_frame().assign(g=[int(g[1:]) % 7 for g in counts_frame()["g"]])
    return jm.mixedglm("y ~ x + (1 | g)", data, "nbinom2", dispersion="~ w").fit()


@pytest.mark.parametrize("fit", [cows, wine, long_groups])
def test_one_step_by_sums_over_the_other_levels_is_that_of_weights_of_zero(fit, monkeypatch):
    fitted = fit().fitted
    arguments = fitted.model.design, fitted.fit, fitted.spec.terms[0].codes
    found, wanted = one_step_of_family(*arguments, levels=True), one_step_of_family(*arguments)
    for name in ("theta", "beta", "kappa"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=1e-7, atol=1e-9, err_msg=name)
    # With one evaluation less, the curvature is that of the same place; of long steps it is that of where they end.
    monkeypatch.setattr(module, "ONE_STEP", 1)
    monkeypatch.setattr(module, "_family_program", layouts.quick_jit(module._family_program.__wrapped__))
    at_start = one_step_of_family(*arguments)
    _, short = _steps_by_level(fitted.model.design, fitted.fit)
    assert short.any()
    curvature = np.where(short[:, None, None], at_start.vcov_beta, wanted.vcov_beta)
    np.testing.assert_allclose(found.vcov_beta, curvature, rtol=1e-7)


def test_a_coefficient_that_one_level_alone_tells_has_no_step():
    data = counts_frame()
    result = jm.mixedglm("y ~ x + only + (1 | g)", data.assign(only=1.0 * (data["g"] == "g03")), "nbinom2").fit()
    found = one_step_of_family(result.model.design, result.fitted.fit, result.fitted.spec.terms[0].codes, levels=True)
    assert np.isnan(found.beta[3]).all()
    assert np.isfinite(np.delete(found.beta, 3, axis=0)).all()


def test_several_factors_have_no_sums_by_level():
    data = counts_frame().assign(h=np.arange(320) % 9)
    result = jm.mixedglm("y ~ x + (1 | g) + (1 | h)", data, "poisson").fit()
    assert _steps_by_level(result.model.design, result.fitted.fit) is None
