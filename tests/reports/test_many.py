"""Many responses with names: against one result after another, and bad input."""

import functools

import jax
import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.errors import ConvergenceWarning, DataError, ModelError


@functools.cache
def model():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))


def table():
    """Three responses: the data's own, another with missing values, and one without variation between subjects."""
    data, r = jm.datasets.load("sleepstudy"), np.random.default_rng(0)
    other = np.where(r.uniform(size=180) < 0.1, np.nan, data.Reaction + r.normal(0, 20, 180))
    return pd.DataFrame({"own": data.Reaction, "gaps": other, "flat": 3.0 + r.normal(size=180)}, index=data.index)


@functools.cache
def fitted():
    return model().fit_many(table().sample(frac=1, random_state=1))


@pytest.mark.parametrize("name", ["own", "gaps", "flat"])
@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
def test_every_table_holds_what_the_single_fit_says(name):
    many = fitted()
    data = jm.datasets.load("sleepstudy").assign(Reaction=table()[name])
    one = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data, missing="drop").fit()
    assert many.objective[name] == pytest.approx(one.objective, rel=1e-10)
    assert many.sigma[name] == pytest.approx(one.sigma, rel=1e-7)
    assert (many.converged[name], many.singular[name], many.nobs[name]) == (one.converged, one.singular, one.nobs)
    np.testing.assert_allclose(many.fe_params.loc[name], one.fe_params, rtol=1e-6)
    np.testing.assert_allclose(many.bse_fe.loc[name], one.bse_fe, rtol=1e-6)
    np.testing.assert_allclose(many.theta.loc[name], one.theta, atol=1e-5)
    sdcor = dict(zip(one.confint().index[2:], one.var_corr().sdcor.iloc[[0, 2, 1, 3]], strict=True))
    for component, value in sdcor.items():
        if not one.singular:
            assert many.var_corr.loc[name, component] == pytest.approx(value, rel=1e-5)
    assert list(many.var_corr.columns) == list(sdcor)


def test_an_array_has_a_row_for_each_response(capsys):
    many = model().fit_many(table().to_numpy().T, progress=True)
    np.testing.assert_allclose(many.objective, fitted().objective, rtol=1e-12)
    assert "3/3" in capsys.readouterr().err
    assert "3 responses, REML" in repr(many)


def test_a_response_without_optimum_is_named():
    with pytest.warns(ConvergenceWarning, match="1 of 2 responses.*'constant'.*PERFECT_FIT"):
        many = model().fit_many(table()[["own"]].assign(constant=1.0))
    assert many.converged.tolist() == [True, False]


@pytest.mark.parametrize(
    ("Y", "message"),
    [
        (np.zeros((180, 2)), r"shape \(180, 2\), but numbers of shape \(m, 180\)"),
        (np.full((2, 180), "a"), "numbers of shape"),
        (pd.DataFrame({"a": np.arange(4.0)}), "4 rows whose labels are not those of the model's 180 rows"),
        (pd.DataFrame({"a": ["x"] * 180}), "column 'a' does not hold numbers"),
    ],
)
def test_bad_responses(Y, message):
    with pytest.raises(DataError, match=message):
        model().fit_many(Y)


def test_a_traced_response_is_sent_to_the_array_side():
    with pytest.raises(DataError, match=r"use jm\.estimate_many"):
        jax.jit(lambda Y: model().fit_many(Y).objective.to_numpy())(np.zeros((2, 180)))


def test_memory_is_positive():
    with pytest.raises(ModelError, match="memory is 0"):
        model().fit_many(np.zeros((2, 180)), memory=0)
