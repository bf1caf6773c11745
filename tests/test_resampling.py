"""Simulation from a fit and refits, against the fitted moments and against fits from the start."""

import functools
import time

import jax
import numpy as np
import pandas as pd
import pytest

import jmixed as jm

SLEEP = jm.datasets.load("sleepstudy")


@functools.cache
def fitted(formula="Reaction ~ Days + (Days | Subject)", reml=True, weights=None):
    return jm.mixedlm(formula, SLEEP, weights=weights).fit(reml=reml)


def dense_covariance(result):
    """Z Sigma Z' + sigma^2 W^-1 from the tables alone."""
    spec = result.model.spec
    V = np.diag(result.scale / spec.weights)
    for term in spec.terms:
        own = term.Z @ result._fit.covariances[term.label] @ term.Z.T
        V += np.where(term.codes[:, None] == term.codes, own, 0)
    return V


class TestSimulate:
    @pytest.mark.parametrize("weights", [None, np.linspace(0.3, 3, 180)], ids=["plain", "weighted"])
    def test_mean_and_covariance(self, weights):
        """Over 20,000 draws, mean and covariance are the model's within what chance allows."""
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", SLEEP, weights=weights).fit()
        y, V = result.simulate(20_000, key=3), dense_covariance(result)
        spread = np.sqrt(np.diag(V))
        z = (y.mean(axis=0) - result.model.exog @ result.fe_params) / spread * np.sqrt(len(y))
        assert np.max(np.abs(z)) < 5
        assert np.mean(z**2) == pytest.approx(1, abs=0.6)
        correlation = np.cov(y.T) / np.outer(spread, spread)
        assert np.max(np.abs(correlation - V / np.outer(spread, spread))) < 6 * np.sqrt(2 / len(y))

    def test_rows_of_a_crossed_model(self):
        result = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin")).fit()
        y, V = result.simulate(5_000, key=0), dense_covariance(result)
        assert np.max(np.abs(np.cov(y.T) - V)) < 6 * V.max() * np.sqrt(2 / len(y))

    def test_keys(self):
        result = fitted()
        y = result.simulate(2, key=7)
        np.testing.assert_array_equal(y, result.simulate(2, key=jax.random.key(7)))
        np.testing.assert_array_equal(y, result.simulate(2, key=jax.random.PRNGKey(7)))
        np.testing.assert_array_equal(y[0], result.simulate(1, key=7)[0])
        assert not np.any(y == result.simulate(2, key=8))
        for bad in ("seven", -1, 1.5, True, None, np.zeros((2, 2), np.uint32)):
            with pytest.raises(jm.DataError, match="key is"):
                result.simulate(1, key=bad)
        for bad in (0, 1.5, True):
            with pytest.raises(jm.DataError, match="n is"):
                result.simulate(bad)


class TestRefit:
    def test_is_the_fit_of_the_new_response(self):
        result = fitted(reml=False)
        y = result.simulate(1, key=2)[0]
        again = result.refit(y)
        direct = jm.mixedlm("Reaction ~ Days + (Days | Subject)", SLEEP.assign(Reaction=y)).fit(reml=False)
        assert again.objective == pytest.approx(direct.objective, rel=1e-12)
        pd.testing.assert_series_equal(again.fe_params, direct.fe_params)
        np.testing.assert_array_equal(again.model.endog, y)
        np.testing.assert_allclose(again.resid + again.fittedvalues, y)
        assert not again.reml
        np.testing.assert_array_equal(again.augment()["Reaction"], y)
        np.testing.assert_array_equal(again.model.update(". ~ . + I(Days**2)").endog, y)
        assert result.model.endog[0] == SLEEP.Reaction[0]
        assert result.model.data.frame["Reaction"].iloc[0] == SLEEP.Reaction[0]

    def test_of_a_transformed_response(self):
        model = jm.mixedlm("np.log(Reaction) ~ Days + (1 | Subject)", SLEEP)
        y = model.endog + 1
        refitted = model.fit().refit(y)
        assert refitted.fe_params["Intercept"] == pytest.approx(model.fit().fe_params["Intercept"] + 1)
        np.testing.assert_array_equal(refitted.model.update(". ~ . + I(Days**2)").endog, y)

    def test_held_parameters_stay_held(self):
        model = jm.mixedlm("Reaction ~ Days", SLEEP, groups="Subject", re_formula="~Days")
        free = jm.MixedLMParams.from_components(np.ones(2), cov_re=np.eye(2))
        result = model.fit(free=free)
        again = result.refit(result.simulate(1, key=1)[0])
        assert again.cov_re.iloc[0, 1] == 0
        assert again.cov_re.iloc[0, 0] != result.cov_re.iloc[0, 0]

    def test_compiles_nothing(self):
        result = fitted()
        responses = result.simulate(20, key=5)
        result.refit(responses[0])
        compiled = []
        jax.monitoring.register_event_duration_secs_listener(lambda event, *_, **__: compiled.append(event))
        try:
            began = time.perf_counter()
            for y in responses:
                result.refit(y)
        finally:
            jax.monitoring.clear_event_listeners()
        assert not [event for event in compiled if "compile" in event or "trace" in event]
        assert (time.perf_counter() - began) / 20 < 0.05

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (np.ones(179), r"shape \(179,\).*180 rows"),
            (np.full(180, np.nan), "not finite, the first in row 0"),
            (np.ones(180), "constant"),
            (["a"] * 180, "must hold numbers"),
        ],
    )
    def test_bad_responses(self, y, message):
        with pytest.raises(jm.DataError, match=message):
            fitted().refit(y)

    def test_without_data(self):
        result = jm.mixedlm("Reaction ~ Days + (1 | Subject)", SLEEP).fit()
        result.remove_data()
        for call in (lambda: result.simulate(1), lambda: result.refit(SLEEP.Reaction)):
            with pytest.raises(jm.DataError, match="remove_data"):
                call()
