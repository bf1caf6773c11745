"""Adapters: estimated marginal means by marginaleffects against emmeans, draws for ArviZ against the covariance."""

import functools
import importlib
import json
import sys
import warnings
from contextlib import nullcontext

import jax
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from generalized import counts, cows, ticks, wine
from references import ROOT, case

import jmixed as jm

EMMEANS = json.loads((ROOT / "emmeans.json").read_text(encoding="utf-8"))


@functools.cache
def sleep():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


@pytest.fixture(scope="module", autouse=True)
def _precision_of_marginaleffects():
    """Its import turns double precision on for the process, in whichever test comes first."""
    before = jax.config.jax_enable_x64
    importlib.import_module("marginaleffects.autodiff")
    yield
    jax.config.update("jax_enable_x64", before)


@functools.cache
def adapted(name):
    fit, data = case(name)
    with pytest.warns(jm.SingularWarning) if fit["flags"]["singular"] else nullcontext():
        result = jm.mixedlm(fit["lme4_formula_py"], data).fit()
    return jm.interop.to_marginaleffects(result), EMMEANS[name]


@pytest.mark.parametrize("name", EMMEANS)
class TestMarginalMeans:
    """Every combination of the factors once and covariates at their mean, as emmeans has them."""

    def test_means(self, name):
        from marginaleffects import predictions

        model, expected = adapted(name)
        means = predictions(model, newdata="balanced", by=expected["spec"])
        assert means[expected["spec"]].to_list() == [row["level"] for row in expected["means"]]
        errors = np.array([row["se"] for row in expected["means"]])
        distances = means["estimate"].to_numpy() - [row["mean"] for row in expected["means"]]
        assert np.all(np.abs(distances) < 1e-6 * errors)
        np.testing.assert_allclose(means["std_error"], errors, rtol=1e-6)

    def test_differences(self, name):
        from marginaleffects import predictions

        model, expected = adapted(name)
        grid = {"newdata": "balanced", "by": expected["spec"]}
        found = predictions(model, hypothesis="difference ~ pairwise", **grid)
        # marginaleffects names a difference (B) - (A), emmeans A - B.
        found = dict(zip(found["term"], zip(found["estimate"], found["std_error"], strict=True), strict=True))
        for row in expected["pairs"]:
            first, second = row["contrast"].split(" - ")
            estimate, error = found[f"({second}) - ({first})"]
            assert estimate == pytest.approx(-row["estimate"], abs=1e-6 * row["se"])
            assert error == pytest.approx(row["se"], rel=1e-6)


class TestMarginaleffects:
    def test_slopes_with_normal_limits_and_robust_covariance(self):
        from marginaleffects import avg_slopes

        slope = avg_slopes(jm.interop.to_marginaleffects(sleep()), vcov="CR1", eps_vcov=1.0)
        error = np.sqrt(sleep().robust_cov("CR1").loc["Days", "Days"])
        assert slope["estimate"].item() == pytest.approx(sleep().fe_params["Days"], rel=1e-6)
        assert slope["std_error"].item() == pytest.approx(error, rel=1e-5)
        half = (slope["conf_high"] - slope["conf_low"]).item() / 2
        assert half == pytest.approx(1.959963984540054 * error, rel=1e-5)

    @staticmethod
    @functools.cache
    def two_factors():
        shift = np.where(np.arange(54) % 5 < 2, "night", "day")
        data = jm.datasets.load("machines").assign(shift=shift, load=np.linspace(-1, 1, 54) ** 2)
        return jm.mixedlm("score ~ Machine * shift + load + (1 | Worker)", data).fit()

    def test_comparisons_of_categories(self):
        """They are coefficients where nothing interacts; averages over the rows where something does."""
        from marginaleffects import avg_comparisons

        result = jm.mixedlm("score ~ Machine + (1 | Worker)", jm.datasets.load("machines")).fit()
        found = avg_comparisons(jm.interop.to_marginaleffects(result), variables="Machine")
        assert found["contrast"].to_list() == ["B - A", "C - A"]
        np.testing.assert_allclose(found["estimate"], result.fe_params.iloc[1:], rtol=1e-8)
        np.testing.assert_allclose(found["std_error"], result.bse_fe.iloc[1:], rtol=1e-6)
        result = self.two_factors()
        found = avg_comparisons(jm.interop.to_marginaleffects(result), variables="shift")
        data = result.model.data.frame
        expected = (result.predict(data.assign(shift="night")) - result.predict(data.assign(shift="day"))).mean()
        assert found["estimate"].item() == pytest.approx(expected, rel=1e-8)

    def test_new_rows_with_categories_as_text(self):
        from marginaleffects import predictions

        result = self.two_factors()
        new = pd.DataFrame({"Machine": ["A", "C"], "shift": ["night", "day"], "load": [0.0, 0.5]})
        for rows in (new, new.astype({"Machine": "category"}), result.model.data.frame.head(3)):
            found = predictions(jm.interop.to_marginaleffects(result), newdata=rows)
            np.testing.assert_allclose(found["estimate"], result.predict(rows), rtol=1e-10)

    def test_hypotheses_within_groups_are_the_same_every_time(self):
        from marginaleffects import predictions

        result = self.two_factors()
        model, names = jm.interop.to_marginaleffects(result), list(result.fe_params.index)
        by = {"newdata": "balanced", "by": ["Machine", "shift"]}
        for _ in range(12):
            found = predictions(model, hypothesis="difference ~ reference | shift", **by)
            # The order of the words in a label is that of a set.
            labels = [tuple(frozenset(side.strip("()").split(", ")) for side in t.split(" - ")) for t in found["term"]]
            terms = dict(zip(labels, zip(found["estimate"], found["std_error"], strict=True), strict=True))
            for shift in ("day", "night"):
                for machine in "BC":
                    L = np.zeros(len(names))
                    L[names.index(f"Machine[T.{machine}]")] = 1
                    L[names.index(f"Machine[T.{machine}]:shift[T.night]")] = shift == "night"
                    estimate, error = terms[frozenset({machine, shift}), frozenset({"A", shift})]
                    assert estimate == pytest.approx(L @ result.fe_params, rel=1e-7)
                    assert error == pytest.approx(np.sqrt(L @ result.vcov() @ L), rel=1e-5)

    def test_offset_missing_values_and_unused_categories(self):
        from marginaleffects import predictions

        data = jm.datasets.load("machines").assign(base=lambda d: np.arange(len(d)) / 10, notes=None)
        data["Machine"] = pd.Categorical(data["Machine"], categories=["C", "B", "unused", "A"])
        data.loc[3, "score"] = np.nan
        result = jm.mixedlm("score ~ Machine + (1 | Worker)", data, offset="base", missing="drop").fit()
        found = predictions(jm.interop.to_marginaleffects(result))
        np.testing.assert_allclose(found["estimate"], result.predict(), rtol=1e-10)

    def test_a_model_of_arrays_is_refused(self):
        data = jm.datasets.load("sleepstudy")
        X = np.column_stack([np.ones(len(data)), data["Days"]])
        result = jm.MixedLM(data["Reaction"].to_numpy(), X, data["Subject"].to_numpy()).fit()
        with pytest.raises(jm.DataError, match="formula"):
            jm.interop.to_marginaleffects(result)


class TestArviz:
    @staticmethod
    def draws(result, **options):
        with warnings.catch_warnings():
            # ArviZ announces its next version when it is imported.
            warnings.simplefilter("ignore", FutureWarning)
            return jm.interop.to_arviz(result, **options)

    def test_draws_have_the_joint_covariance(self):
        result = jm.mixedlm("strength ~ 1 + (1 | batch/cask)", jm.datasets.load("pastes")).fit()
        number = 20000
        posterior = self.draws(result, draws=number, key=3).posterior
        names = ["beta", "1 | batch", "1 | batch:cask"]
        draws = np.concatenate([np.asarray(posterior[name]).reshape(number, -1) for name in names], axis=1)
        expected = result.vcov(full=True).to_numpy()
        sd = np.sqrt(np.diag(expected))
        centre = np.concatenate([result.fe_params, *(table.to_numpy().ravel() for table in result.ranef().values())])
        assert np.all(np.abs(draws.mean(axis=0) - centre) < 5 * sd / np.sqrt(number))
        # The standard error of a correlation from so many draws is at most 0.007.
        np.testing.assert_allclose(np.cov(draws.T) / np.outer(sd, sd), expected / np.outer(sd, sd), atol=0.04)

    def test_groups_and_coordinates(self):
        found = self.draws(sleep(), draws=200)
        assert found.posterior["beta"].coords["coefficient"].values.tolist() == ["Intercept", "Days"]
        assert found.posterior["Days | Subject"].shape == (1, 200, 18, 2)
        np.testing.assert_array_equal(found.observed_data["Reaction"], sleep().model.endog)
        replicated = found.posterior_predictive["Reaction"].values[0]
        assert replicated.std(axis=0).mean() == pytest.approx(sleep().sigma, rel=0.2)
        density = found.log_likelihood["Reaction"].values[0]
        mean = np.log(1 / (sleep().sigma * np.sqrt(2 * np.pi))) - np.mean(sleep().resid ** 2) / (2 * sleep().scale)
        assert density.mean() == pytest.approx(mean, abs=0.25)
        assert self.draws(sleep(), draws=2).posterior.equals(self.draws(sleep(), draws=2).posterior)

    def test_responses_with_a_family(self):
        found = self.draws(cows(), draws=4000, key=2)
        posterior, names = found.posterior, ["beta", "1 | herd"]
        draws = np.concatenate([np.asarray(posterior[name]).reshape(4000, -1) for name in names], axis=1)
        expected = cows().vcov(full=True).to_numpy()
        sd = np.sqrt(np.diag(expected))
        np.testing.assert_allclose(np.cov(draws.T) / np.outer(sd, sd), expected / np.outer(sd, sd), atol=0.08)
        y, m = cows().model.endog, cows().model.trials
        term = cows().model.spec.terms[0]
        eta = draws[:, :4] @ cows().model.exog.T + draws[:, 4:][:, term.codes]
        name = cows().model.endog_names
        density = scipy.stats.binom.logpmf(y, m, 1 / (1 + np.exp(-eta)))
        np.testing.assert_allclose(found.log_likelihood[name].values[0], density, rtol=1e-8)
        drawn = found.posterior_predictive[name].values[0]
        mean = (m / (1 + np.exp(-eta))).mean(axis=0)
        np.testing.assert_allclose(drawn.mean(axis=0), mean, atol=5 * drawn.std() / np.sqrt(4000))
        np.testing.assert_array_equal(found.constant_data["trials"], m)

    def test_bad_input(self):
        with pytest.raises(jm.ModelError, match="draws is 0"):
            self.draws(sleep(), draws=0)


def test_categories_of_numbers_and_truth_values():
    """Averages by a category are those of the fixed part, and contrasts the coefficients."""
    from marginaleffects import avg_comparisons, avg_predictions

    sleep = jm.datasets.load("sleepstudy")
    data = sleep.assign(year=pd.Categorical(sleep.Days % 3 + 2019), late=sleep.Days > 4)
    result = jm.mixedlm("Reaction ~ year + late + (1 | Subject)", data).fit()
    model, b = jm.interop.to_marginaleffects(result), result.fe_params
    fixed = data.assign(fixed=result.model.exog @ b)
    for name in ("year", "late"):
        found = avg_predictions(model, by=name).sort(name)
        np.testing.assert_allclose(found["estimate"], fixed.groupby(name, observed=True)["fixed"].mean(), rtol=1e-12)
    np.testing.assert_allclose(avg_comparisons(model, variables="late")["estimate"], b[["late[T.True]"]], rtol=1e-9)


class TestMeansOfFamilies:
    def test_predictions(self):
        from marginaleffects import predictions

        model = jm.interop.to_marginaleffects(cows())
        table = predictions(model, by="period")
        expected = cows().predict({"period": table["period"].to_list()}, interval="confidence")
        np.testing.assert_allclose(table["estimate"], expected["fit"], rtol=1e-9)
        np.testing.assert_allclose(table["std_error"], expected["se"], rtol=1e-5)

    def test_offset(self):
        from marginaleffects import avg_predictions

        found = avg_predictions(jm.interop.to_marginaleffects(counts()))
        assert found["estimate"].item() == pytest.approx(counts().predict().mean(), rel=1e-9)

    def test_what_there_is_not(self):
        for result in (ticks(), wine()):
            with pytest.raises(jm.ModelError, match="depend on more than the coefficients that it varies"):
                jm.interop.to_marginaleffects(result)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jmixed\[interop\]'"):
        jm.interop.to_arviz(sleep())


def test_a_cell_without_rows_has_no_marginal_mean():
    from marginaleffects import predictions

    data = jm.datasets.load("machines").assign(block=lambda d: np.where(d.Worker.isin(["W1", "W2"]), "u", "v"))
    data = data[(data.Machine != "C") | (data.block != "v")]
    with pytest.warns(jm.RankWarning):
        result = jm.mixedlm("score ~ Machine * block + (1 | Worker)", data).fit()
    model = jm.interop.to_marginaleffects(result)
    with pytest.warns(jm.RankWarning, match="1 of 6 new rows"):
        table = predictions(model, newdata="balanced", by=["Machine", "block"]).to_pandas()
    table = table.set_index(["Machine", "block"])
    assert np.isnan(table.estimate["C", "v"])
    assert table.estimate.notna().sum() == 5
    assert table.std_error.notna().sum() == 5
