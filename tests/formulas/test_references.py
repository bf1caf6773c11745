"""Every reference model: both ways of writing it give the rows, columns and levels that lme4 had."""

import numpy as np
import pytest
import references

from jmixed.formulas.statement import from_formula, new_rows


def level_counts(model):
    """Numbers of levels of the distinct grouping factors."""
    return sorted({t.codes.tobytes(): len(t.levels) for t in model.terms}.values())


def statsmodels_arguments(fit, data):
    words = dict(fit["statsmodels"])
    if words["groups"] == "__const__":
        words["groups"] = np.zeros(len(data))
    elif words["groups"] == "recrep":
        words["groups"] = (data["recipe"] + ":" + data["replicate"]).to_numpy()
    return words


def check(model, fit):
    assert len(model.y) == len(model.rows) == fit["n_obs"]
    assert model.exog_names == tuple(column["name_formulaic"] for column in fit["fixef"])
    assert model.X.shape == (fit["n_obs"], fit["n_fixef"])
    assert len(model.dropped) == len(fit["dropped_columns_r"])
    assert level_counts(model) == sorted(group["n_levels"] for group in fit["groups"])
    sizes = sorted(np.bincount(t.codes).min() for t in {t.codes.tobytes(): t for t in model.terms}.values())
    assert sizes == sorted(group["min_size"] for group in fit["groups"])
    shown = fit["rows"]
    positions = np.searchsorted(model.rows, shown["index0"])
    np.testing.assert_allclose(model.y[positions], shown["y"], rtol=1e-12)
    beta = np.array([column["estimate"] for column in fit["fixef"]])
    fixed = model.X[positions] @ beta + model.offset[positions]
    np.testing.assert_allclose(fixed, shown["fitted_fixed"], rtol=1e-6, atol=1e-6 * fit["sigma"])


@pytest.mark.parametrize("name", references.names())
def test_bars(name):
    fit, data = references.case(name)
    model = from_formula(fit["lme4_formula_py"], data, missing="drop", weights=fit["weights"], offset=fit["offset"])
    check(model, fit)
    again = new_rows(model, data.iloc[model.rows], random=True)
    np.testing.assert_allclose(again.X, model.X, rtol=1e-12, atol=1e-12)
    for term, codes, Z in zip(model.terms, again.codes, again.Z, strict=True):
        np.testing.assert_array_equal(codes, term.codes)
        np.testing.assert_allclose(Z, term.Z, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [n for n in references.names() if references.case(n)[0]["statsmodels"]])
def test_statsmodels_arguments(name):
    fit, data = references.case(name)
    words = statsmodels_arguments(fit, data)
    model = from_formula(**words, data=data, missing="drop", weights=fit["weights"], offset=fit["offset"])
    check(model, references.as_in_patsy(fit))
    assert model.groups is not None
    assert len(model.groups) == fit["n_obs"]
