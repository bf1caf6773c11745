"""Formulas of every form against lme4, and forms that mean the same."""

import functools
import json
from contextlib import nullcontext

import numpy as np
import pandas as pd
import pytest
from references import ROOT

import jmixed as jm

CASES = json.loads((ROOT / "grammar.json").read_text(encoding="utf-8"))


@functools.cache
def data():
    return pd.read_csv(ROOT / "grammar.csv.gz")


@functools.cache
def fitted(formula, weights=None, **arguments):
    return jm.mixedlm(formula, data(), weights=weights, **arguments).fit()


def sds(result):
    rows = result.var_corr()
    return np.sort(rows.loc[rows.var2.isna(), "sdcor"].to_numpy(float))


@pytest.mark.sweep(5)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case["formula"])
def test_formulas_mean_what_they_mean_in_lme4(case):
    with pytest.warns(jm.SingularWarning) if case["singular"] else nullcontext():
        result = fitted(case["formula"], case["weights"])
    assert result.converged
    assert result.singular == case["singular"]
    assert result.objective == pytest.approx(case["objective"], abs=1e-6)
    assert result.objective < case["objective"] + 1e-8
    np.testing.assert_allclose(result.fe_params, case["fixef"], atol=1e-5 * result.bse_fe.max())
    # lme4 keeps a variance that the covariances of a category hold already, at zero in all of these.
    left_out = len(case["sds"]) - len(sds(result))
    assert left_out == {"y ~ x + (f||i)": 1, "y ~ x + (C(f, contr.sum)||a) + (1|i)": 1, "y ~ x + (x*f||s)": 2}.get(
        case["formula"], 0
    )
    np.testing.assert_allclose(case["sds"][:left_out], 0, atol=1e-5)
    np.testing.assert_allclose(sds(result), case["sds"][left_out:], atol=1e-4 * result.sigma)


NEST = "y ~ x + (1 | a/b)"


def test_a_nest_may_be_written_in_three_ways():
    nest, terms = fitted(NEST), fitted("y ~ x + (1 | a) + (1 | a:b)")
    component = jm.mixedlm("y ~ x", data(), groups="a", re_formula="1", vc_formula={"b": "0 + C(b)"}).fit()
    for other in (terms, component):
        assert other.objective == pytest.approx(nest.objective, abs=1e-9)
        np.testing.assert_allclose(other.fe_params, nest.fe_params, rtol=1e-8)
        np.testing.assert_allclose(sds(other), sds(nest), rtol=1e-6)
    np.testing.assert_allclose(terms.ranef()["a:b"], nest.ranef()["a:b"], atol=1e-7)
    np.testing.assert_allclose(terms.fittedvalues, component.fittedvalues, atol=1e-7)


def test_nesting_is_seen_in_the_labels():
    """A factor whose levels each lie in one level of another is eliminated before it, written as a nest or not."""
    unique = data().assign(b=data()["a"] + data()["b"])
    result = jm.mixedlm("y ~ x + (1 | a) + (1 | b)", unique).fit()
    assert not result.model.design.layout.crossed
    assert result.objective == pytest.approx(fitted(NEST).objective, abs=1e-9)


CROSSED = "y ~ x + (x | s) + (1 | i) + (1 | a)"


@pytest.mark.thorough
def test_order_of_terms_changes_only_the_order():
    result, other = fitted(CROSSED), fitted("y ~ x + (1 | a) + (1 + x | s) + (1 | i)")
    assert other.objective == pytest.approx(result.objective, abs=1e-9)
    for group in ("s", "i", "a"):
        pd.testing.assert_frame_equal(other.ranef()[group], result.ranef()[group], atol=1e-6, rtol=1e-6)


def test_names_of_levels_and_order_of_rows_change_nothing():
    r = np.random.default_rng(0)
    rows = data().sample(frac=1, random_state=1)
    for factor in ("s", "i", "a"):
        labels = rows[factor].unique()
        rows[factor] = rows[factor].map(dict(zip(labels, r.permutation(1000)[: len(labels)], strict=True)))
    result, other = fitted(CROSSED), jm.mixedlm(CROSSED, rows).fit()
    assert other.objective == pytest.approx(result.objective, abs=1e-9)
    np.testing.assert_allclose(other.theta, result.theta, atol=1e-6)
    np.testing.assert_allclose(other.fittedvalues.sort_index(), result.fittedvalues, atol=1e-6)


def test_terms_that_share_a_factor_are_eliminated_together():
    merged = fitted("y ~ x + (1 | s) + (0 + x | s)")
    assert merged.model.design.layout.factors == ((0, 1),)
    assert merged.objective == pytest.approx(fitted("y ~ x + (x || s)").objective, abs=1e-9)


def test_double_bars_take_the_terms_apart_and_leave_a_factor_whole():
    """As lme4 has it, whatever the coding: ``(f || i)`` has the likelihood of ``(1 | i) + (0 + f | i)``, and of one."""
    for formula in ("y ~ x + (f || i)", "y ~ x + (C(f, contr.sum) || i)", "y ~ x + (C(f, Treatment('r')) || i)"):
        model = jm.mixedlm(formula, data())
        assert [len(term.columns) for term in model.spec.terms] == [3]
        assert [term.structure for term in model.spec.terms] == ["unstructured"]
        with pytest.warns(jm.SingularWarning):
            assert model.fit().objective == pytest.approx(1604.247877898, abs=1e-6)
