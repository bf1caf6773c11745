"""Simulation from a fit and refits, against the fitted moments and against fits from the start."""

import functools
import time
import warnings

import jax
import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.fit.many import fit_responses
from jmixed.reports import bootstrap

SLEEP = jm.datasets.load("sleepstudy")


@functools.cache
def fitted(formula="Reaction ~ Days + (Days | Subject)", reml=True, weights=None):
    return jm.mixedlm(formula, SLEEP, weights=weights).fit(reml=reml)


def dense_covariance(result):
    """Z Sigma Z' + sigma^2 W^-1 from the tables alone."""
    spec = result.model.spec
    V = np.diag(result.scale / spec.weights)
    for term in spec.terms:
        own = term.Z @ result.fitted.fit.covariances[term.label] @ term.Z.T
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

    @pytest.mark.parametrize("weights", [None, np.linspace(0.3, 3, 180)], ids=["plain", "weighted"])
    def test_given_the_random_effects(self, weights):
        """Mean and covariance of 20,000 draws are those of the fitted values and the residuals alone."""
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", SLEEP, weights=weights).fit()
        y = result.simulate(20_000, key=3, random_effects="conditional")
        sd = result.sigma / np.sqrt(np.ones(180) if weights is None else weights)
        z = (y.mean(axis=0) - result.fittedvalues) / sd * np.sqrt(len(y))
        assert np.max(np.abs(z)) < 5
        assert np.mean(z**2) == pytest.approx(1, abs=0.5)
        correlation = np.cov(y.T) / np.outer(sd, sd)
        assert np.max(np.abs(correlation - np.eye(180))) < 6 * np.sqrt(2 / len(y))

    def test_given_those_of_some_factors(self):
        result = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin")).fit()
        y = result.simulate(5_000, key=0, random_effects="plate")
        np.testing.assert_array_equal(y, result.simulate(5_000, key=0, random_effects=["plate"]))
        plate, sample = result.model.spec.terms
        V = result.scale * np.eye(len(plate.codes))
        V += np.where(sample.codes[:, None] == sample.codes, result.fitted.fit.covariances[sample.label], 0)
        assert np.max(np.abs(np.cov(y.T) - V)) < 6 * V.max() * np.sqrt(2 / len(y))
        wanted = result.predict(random_effects="plate")
        assert np.max(np.abs(y.mean(axis=0) - wanted)) < 5 * np.sqrt(V.max() / len(y))
        both = result.simulate(2, key=1, random_effects=["plate", "sample"])
        np.testing.assert_array_equal(both, result.simulate(2, key=1, random_effects="conditional"))

    @pytest.mark.parametrize("bad", ["old", True, [], ["plate", "lab"]])
    def test_random_effects_that_there_are_none_of(self, bad):
        result = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin")).fit()
        for other in (None, 3):
            with pytest.raises(jm.ModelError, match="random_effects is"):
                result.simulate(1, random_effects=other)
        with pytest.raises(jm.DataError, match=r"'conditional' .* out of \['plate', 'sample'\]"):
            result.simulate(1, random_effects=bad)


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

    def test_of_a_series_goes_by_its_labels(self):
        result = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).fit()
        y = pd.Series(result.model.endog + np.arange(180.0), index=result.model.data.row_labels)
        shuffled = result.refit(y.sample(frac=1, random_state=1))
        assert shuffled.objective == pytest.approx(result.refit(y).objective, rel=1e-13)

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


class TestBootstrap:
    @pytest.mark.parametrize("reml", [True, False])
    def test_replicates_are_refits_of_simulated_responses(self, reml):
        result = fitted(reml=reml)
        boot = result.bootstrap(20, key=11)
        assert boot.replicates.columns.tolist() == result.confint().index.tolist()
        for y, (_, row) in list(zip(result.simulate(20, key=11), boot.replicates.iterrows(), strict=True))[::7]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", jm.SingularWarning)
                refit = result.refit(y)
            table = refit.var_corr().set_index(["var1", "var2"])["sdcor"]
            expected = [*refit.fe_params, table.iloc[0], table.iloc[2], table.iloc[1], refit.sigma]
            np.testing.assert_allclose(row, expected, rtol=1e-6, atol=1e-6)
        own = result.var_corr()["sdcor"].iloc[[0, 2, 1, 3]]
        np.testing.assert_allclose(boot.estimates, [*result.fe_params, *own], rtol=1e-9)

    def test_given_the_random_effects(self):
        result = fitted(reml=False)
        boot = result.bootstrap(20, key=11, random_effects="conditional")
        simulated = result.simulate(20, key=11, random_effects="conditional")
        for y, (_, row) in list(zip(simulated, boot.replicates.iterrows(), strict=True))[::9]:
            refit = result.refit(y)
            np.testing.assert_allclose(row[["Intercept", "Days", "sigma"]], [*refit.fe_params, refit.sigma], rtol=1e-6)
        assert boot.bse["Intercept"] < result.bootstrap(20, key=11).bse["Intercept"]

    def test_with_redundant_columns(self):
        """An empty cell of an interaction: a column is left out, and all others are there."""
        data = SLEEP.assign(a=np.tile(list("xyz"), 60), b=np.repeat(list("uvwuvw"), 30))
        data = data[(data.a != "z") | (data.b != "w")]
        with pytest.warns(jm.RankWarning):
            result = jm.mixedlm("Reaction ~ a * b + (1 | Subject)", data).fit()
        boot = result.bootstrap(20, key=2)
        assert boot.replicates.columns.tolist() == result.confint().index.tolist()
        refit = result.refit(result.simulate(20, key=2)[3])
        np.testing.assert_allclose(boot.replicates.iloc[3, :8], refit.fe_params, rtol=1e-6)
        assert boot.confint().notna().all(axis=None)

    def test_keys_and_chunks(self, monkeypatch):
        result = fitted()
        first = result.bootstrap(20, key=3).replicates
        pd.testing.assert_frame_equal(first, result.bootstrap(20, jax.random.key(3)).replicates)
        assert not np.any(first == result.bootstrap(20, key=4).replicates)
        monkeypatch.setattr(bootstrap, "DRAWN", 8 * 180 * 7)
        pd.testing.assert_frame_equal(first, result.bootstrap(20, key=3).replicates, rtol=1e-7)

    def test_intervals(self):
        boot = fitted().bootstrap(20, key=5)
        table, basic = boot.confint(0.8), boot.confint(0.8, "basic")
        for name, column in boot.replicates.items():
            low, high = np.quantile(column, [0.1, 0.9])
            np.testing.assert_allclose(table.loc[name], [low, high])
            np.testing.assert_allclose(
                basic.loc[name], [2 * boot.estimates[name] - high, 2 * boot.estimates[name] - low]
            )
        direct = fitted().confint("bootstrap", 0.8, n=20, key=5, which=["sigma", "Days"])
        pd.testing.assert_frame_equal(direct, table.loc[["sigma", "Days"]])
        np.testing.assert_allclose(fitted().confint("bootstrap", 0.8, n=20, key=5, kind="basic"), basic)
        np.testing.assert_allclose(boot.bse["Days"], np.std(boot.replicates["Days"], ddof=1))
        np.testing.assert_allclose(boot.bias["Days"], np.mean(boot.replicates["Days"]) - boot.estimates["Days"])

    def test_replicates_without_an_optimum_or_a_value_are_left_out(self):
        boot = fitted().bootstrap(20, key=5)
        values, converged = boot.replicates.copy(), np.ones(20, bool)
        values.iloc[0], values.iloc[1, 3], converged[0] = 1e6, np.nan, False
        found = bootstrap.Bootstrap(boot.estimates, values, boot.outcome, converged).confint()
        for name, column in boot.replicates.items():
            kept = column.iloc[2:] if name.startswith("cor") else column.iloc[1:]
            np.testing.assert_allclose(found.loc[name], np.quantile(kept, [0.025, 0.975]))

    def test_agrees_with_the_profile(self):
        """100 groups of 6: the two ways give the same limits, within the noise of 2,000 replicates."""
        rng = np.random.default_rng(2)
        g, x = np.repeat(np.arange(100), 6), rng.normal(size=600)
        y = 1 + x + rng.normal(size=100)[g] + rng.normal(size=600)
        result = jm.mixedlm("y ~ x + (1 | g)", pd.DataFrame({"y": y, "x": x, "g": g})).fit(reml=False)
        profile, boot = result.confint("profile").to_numpy(), result.bootstrap(2000, key=1)
        width = np.diff(profile)
        # An ML estimate of a variance is too small on average: percentiles carry that bias twice, basic limits do not.
        assert np.max(np.abs(boot.confint(kind="basic") - profile) / width) < 0.06
        assert np.max(np.abs(boot.confint() - profile)[:2] / width[:2]) < 0.06
        assert np.max(np.abs(np.diff(boot.confint()) / width - 1)) < 0.06

    def test_refits_that_failed_are_counted(self, monkeypatch):
        def failing(*args, **kwargs):
            found = fit_responses(*args, **kwargs)
            found.outcome[:2] = jm.Outcome.MAX_ITERATIONS.value
            return found

        monkeypatch.setattr(bootstrap, "fit_responses", failing)
        with pytest.warns(jm.ConvergenceWarning, match=r"2 of 20 refits .*'MAX_ITERATIONS': 2"):
            assert fitted().bootstrap(20).converged.sum() == 18

    def test_progress(self, capsys):
        fitted().bootstrap(20, progress=True)
        assert "20" in capsys.readouterr().err
        fitted().bootstrap(20)
        assert capsys.readouterr().err == ""

    def test_refusals(self):
        result = fitted()
        for bad in (0, 2.5, True):
            with pytest.raises(jm.DataError, match="bootstrap: n is"):
                result.bootstrap(bad)
        with pytest.raises(jm.DataError, match="key is"):
            result.bootstrap(2, key="a")
        for call in (lambda: result.bootstrap(20).confint(kind="bca"), lambda: result.confint("bootstrap", kind="bca")):
            with pytest.raises(jm.ModelError, match="kind='bca'; use 'percentile' or 'basic'"):
                call()
        with pytest.raises(jm.ModelError, match="level is"):
            result.bootstrap(20).confint(1.5)
        with pytest.raises(jm.DataError, match=r"random_effects=True: use 'new', 'conditional'"):
            result.bootstrap(2, random_effects=True)
        model = jm.mixedlm("Reaction ~ Days", SLEEP, groups="Subject", re_formula="~Days")
        held = model.fit(free=jm.MixedLMParams.from_components(np.ones(2), cov_re=np.eye(2)))
        with pytest.raises(jm.ModelError, match="held"):
            held.bootstrap(5)
