"""Leverages, influence, explained variance and joint covariances of a result: values, labels and bad input."""

import functools
import json
import warnings
from contextlib import nullcontext

import numpy as np
import pandas as pd
import performance
import pytest
from references import ROOT, case, data

import jmixed as jm
from jmixed.inference.responses import evaluate
from jmixed.reports import diagnostics

R2 = json.loads((ROOT / "r2.json").read_text(encoding="utf-8"))
CASES = ("sleepstudy_slope_reml", "sleepstudy_weights_ml", "pastes_reml", "penicillin_reml", "machines_slopes_ml")
CASES += ("dietox_offset_reml", "airquality_int_ml", "sleepstudy_uncorr_reml")


@functools.cache
def reference(name):
    fit, frame = case(name)
    model = jm.mixedlm(fit["lme4_formula_py"], frame, missing="drop", weights=fit["weights"], offset=fit["offset"])
    with pytest.warns(jm.SingularWarning) if fit["flags"]["singular"] else nullcontext():
        return model.fit(reml=fit["method"] == "REML"), fit


@functools.cache
def sleep():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


@pytest.mark.parametrize("name", CASES)
class TestAgainstLme4:
    def test_leverages(self, name):
        result, expected = reference(name)
        position = {int(row): k for k, row in enumerate(result.model.spec.rows)}
        at = [position[i] for i in expected["rows"]["index0"]]
        np.testing.assert_allclose(result.augment()[".hat"].to_numpy()[at], expected["rows"]["hat"], rtol=1e-6)

    def test_conditional_variances(self, name):
        result, expected = reference(name)
        _, covariances = result.ranef(cond_var=True)
        modes = result.ranef()
        for block in expected["ranef"]:
            group = next(g for g in modes if set(g.split(":")) == set(block["group"].split(":")))
            places = {frozenset(str(label).split(":")): k for k, label in enumerate(modes[group].index)}
            at = [places[frozenset(level["level"].split(":"))] for level in block["levels"]]
            cov = np.array([level["cov"] for level in block["levels"]])
            sizes = np.sqrt(np.einsum("lii->li", cov))
            scale = sizes[:, :, None] * sizes[:, None]
            assert np.all(np.abs(covariances[group][at] - cov) <= 1e-6 * scale)

    def test_r2_and_icc(self, name):
        result, _ = reference(name)
        found, icc, expected = result.r2(), result.icc(), R2[name]
        assert found.marginal == pytest.approx(expected["marginal"], abs=1e-7)
        assert found.conditional == pytest.approx(expected["conditional"], abs=1e-7)
        assert icc.adjusted == pytest.approx(expected["icc_adjusted"], abs=1e-7)
        assert icc.unadjusted == pytest.approx(expected["icc_unadjusted"], abs=1e-7)
        assert sum(icc.by_group.values()) == pytest.approx(icc.adjusted, abs=1e-12)


@pytest.mark.parametrize("name", performance.CASES)
def test_as_performance(name):
    """What performance says of a fit; lme4's optimum is known to 1e-7. Of counts the two take the mean at which an
    observation varies differently, and the variances of the predictors are compared.
    """
    result, expected = performance.fit(name), performance.answers()[name]
    explained, shares = result.r2(), result.icc()
    near = {"abs": 2e-7, "rel": 2e-7}
    assert explained.fixed == pytest.approx(expected["variance_fixed"], **near)
    assert explained.random == pytest.approx(expected["variance_random"], **near)
    if name not in performance.COUNTS:
        assert explained.marginal == pytest.approx(expected["r2_marginal"], **near)
        assert explained.conditional == pytest.approx(expected["r2_conditional"], **near)
        assert shares.adjusted == pytest.approx(expected["icc"], **near)
        assert shares.unadjusted == pytest.approx(expected["icc_unadjusted"], **near)
    for group, share in (expected["icc_by_group"] or {}).items():
        mine = next(name for name in shares.by_group if set(name.split(":")) == set(group.split(":")))
        assert shares.by_group[mine] == pytest.approx(share, **near)
    glance = result.glance().iloc[0]
    assert glance["AIC"] == pytest.approx(expected["aic"], abs=1e-6)
    assert glance["BIC"] == pytest.approx(expected["bic"], abs=1e-6)
    assert np.sqrt(np.mean(np.asarray(result.resid) ** 2)) == pytest.approx(expected["rmse"], rel=2e-7)
    if result.fitted.family is None:
        assert np.sqrt(result.scale) == pytest.approx(expected["sigma"], rel=2e-7)
    assert result.singular == expected["singular"]


NAKAGAWA = json.loads((ROOT / "performance" / "nakagawa.json").read_text(encoding="utf-8"))
COUNTED = {
    "poisson": jm.families.Poisson(),
    "nbinom2": jm.families.NegativeBinomial(),
    "nbinom1": jm.families.NegativeBinomial1(),
}


@pytest.mark.parametrize("name", [name for name, case in NAKAGAWA.items() if "lambda" in case])
def test_counts_as_nakagawa(name):
    """Variances of the predictors, and the formula at their mean, are theirs; our mean is not that of another fit.

    It moves R2 by as much as 0.025 here; delta and trigamma in the place of the lognormal formula by up to 0.1.
    """
    expected = NAKAGAWA[name]
    result = jm.mixedglm(expected["r"], data("grouseticks"), family=COUNTED[expected["family"]]).fit()
    explained = result.r2()
    assert explained.fixed == pytest.approx(expected["fixed"], rel=1e-6)
    assert explained.random == pytest.approx(expected["random"], rel=1e-6)
    assert explained.conditional == pytest.approx(expected["conditional"]["lognormal"], abs=0.025)
    mean, extras = np.full(1, expected["lambda"]), result.fitted.at_modes.extras[:, :1]
    at_their_mean = evaluate(result.fitted.own_family, "observation_variance", mean, extras, np.ones(1))
    assert at_their_mean[0] == pytest.approx(expected["residual"]["lognormal"], rel=1e-6)


@pytest.mark.parametrize("name", [name for name, case in NAKAGAWA.items() if "lambda" in case])
@pytest.mark.parametrize("approximation", ["lognormal", "delta", "trigamma"])
def test_approximations_as_nakagawa(name, approximation, monkeypatch):
    """At their mean all three variances of an observation, and the R2 that follow, are theirs."""
    expected = NAKAGAWA[name]
    result = jm.mixedglm(expected["r"], data("grouseticks"), family=COUNTED[expected["family"]]).fit()
    monkeypatch.setattr("jmixed.reports.diagnostics.averaged", lambda *_: np.full(result.nobs, expected["lambda"]))
    explained, shares = result.r2(approximation), result.icc(approximation)
    assert explained.residual == pytest.approx(expected["residual"][approximation], rel=1e-6)
    assert explained.conditional == pytest.approx(expected["conditional"][approximation], rel=1e-6)
    assert shares.adjusted == pytest.approx(explained.random / (explained.random + explained.residual))


def test_approximations_that_a_link_has(monkeypatch):
    table = data("cbpp")
    cows = jm.mixedglm("cbind(incidence, size - incidence) ~ period + (1 | herd)", table, "binomial").fit()
    monkeypatch.setattr("jmixed.reports.diagnostics.averaged", lambda *_: np.full(len(table), 0.2))
    assert cows.r2("delta").residual == pytest.approx(np.mean(1 / (table["size"] * 0.2 * 0.8)))
    assert cows.r2().residual == pytest.approx(np.pi**2 / 3)
    with pytest.raises(jm.ModelError, match="a Binomial response with the link logit has 'delta', or None"):
        cows.r2("trigamma")


def test_an_offset_is_no_fixed_effect_and_moves_the_mean():
    """Twice the exposure of every row is another unit of the rate: the same predictions, and so the same R2."""
    ticks = data("grouseticks").assign(area=lambda d: np.exp(d["cHEIGHT"] / 100))
    once, twice = (
        jm.mixedglm(f"TICKS ~ YEAR + (1 | BROOD) + offset(np.log({k} * area))", ticks, "poisson").fit().r2()
        for k in (1, 2)
    )
    for name in ("fixed", "random", "residual", "marginal"):
        assert getattr(once, name) == pytest.approx(getattr(twice, name), rel=1e-5)


@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
@pytest.mark.parametrize("link", ["logit", "probit", "cloglog"])
def test_successes_with_slopes_as_performance(link):
    """At a correlation of one, where theirs is known to about a millionth."""
    ticks, expected = data("grouseticks"), NAKAGAWA[link]
    ticks["any"] = (ticks["TICKS"] > 0) * 1
    family = jm.families.Binomial(link=link)
    result = jm.mixedglm("any ~ YEAR + cHEIGHT + (cHEIGHT | LOCATION)", ticks, family=family).fit()
    assert result.objective <= expected["objective"] + 1e-9
    explained, shares = result.r2(), result.icc()
    found = [explained.marginal, explained.conditional, shares.adjusted, shares.unadjusted]
    theirs = [expected[name] for name in ("marginal", "conditional", "icc", "icc_unadjusted")]
    np.testing.assert_allclose(found, theirs, atol=3e-6)


class TestAugment:
    def test_residuals_and_distances_follow_from_each_other(self):
        result, _ = reference("sleepstudy_weights_ml")
        table = result.augment()
        y, w, hat = table["Reaction"], table["w"], table[".hat"]
        np.testing.assert_allclose(table[".resid"], y - table[".fitted"])
        np.testing.assert_allclose(table[".fixed.resid"], y - table[".fixed"])
        np.testing.assert_allclose(table[".wtres"], np.sqrt(w) * table[".resid"])
        np.testing.assert_allclose(table[".std.resid"], table[".wtres"] / (result.sigma * np.sqrt(1 - hat)))
        # lme4:::cooks.distance.merMod
        expected = (table[".wtres"] / (1 - hat)) ** 2 * hat / (result.scale * 2)
        np.testing.assert_allclose(table[".cooksd"], expected)
        np.testing.assert_array_equal(table[".weights"], w)

    def test_a_leverage_is_the_derivative_of_the_fitted_value(self):
        """At fixed variance parameters the fitted values are linear in the response."""
        result = sleep()
        spec, relative = result.model.spec, result.cov_re.to_numpy() / result.scale
        term = spec.terms[0]
        D = (term.Z @ relative @ term.Z.T) * (term.codes[:, None] == term.codes)
        inverse = np.linalg.inv(np.eye(len(D)) + D)
        fixed = spec.X @ np.linalg.solve(spec.X.T @ inverse @ spec.X, spec.X.T @ inverse)
        hat = fixed + D @ inverse @ (np.eye(len(D)) - fixed)
        np.testing.assert_allclose(hat @ spec.y, result.fittedvalues, rtol=1e-9)
        np.testing.assert_allclose(result.augment()[".hat"], np.diag(hat), rtol=1e-8)


class TestInfluence:
    def test_a_group_left_out_is_a_fit_without_it(self):
        data = jm.datasets.load("sleepstudy")
        influence = sleep().influence()
        assert influence.group == "Subject"
        assert influence.fixed.index.tolist() == sorted(data["Subject"].unique())
        assert influence.converged.all()
        alone = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data[data["Subject"] != "337"]).fit()
        np.testing.assert_allclose(influence.fixed.loc["337"], alone.fe_params, rtol=1e-8)
        expected = alone.tidy("ran_pars")["estimate"].to_numpy()
        np.testing.assert_allclose(influence.ran_pars.loc["337"], expected, rtol=1e-6)
        moved = sleep().fe_params - alone.fe_params
        np.testing.assert_allclose(influence.dfbetas.loc["337"], moved / alone.bse_fe, rtol=1e-6)
        cooks = moved @ np.linalg.solve(sleep().vcov(), moved) / 2
        assert influence.cooks_distance["337"] == pytest.approx(cooks, rel=1e-6)

    def test_one_step_comes_near(self):
        exact, step = sleep().influence(), sleep().influence(method="onestep")
        full = sleep().tidy("ran_pars")["estimate"].to_numpy()
        moved = np.linalg.norm(exact.ran_pars - full, axis=0)
        assert np.all(np.linalg.norm(step.ran_pars - exact.ran_pars, axis=0) < 0.6 * moved)

    def test_the_top_of_a_nest_is_left_out_and_others_on_demand(self):
        result, _ = reference("pastes_reml")
        assert diagnostics.clusters(result.fitted.spec, "influence", None)[0] == "batch"
        influence = result.influence("batch:cask")
        assert influence.fixed.index.name == "batch:cask"
        assert influence.ran_pars.shape == (30, 3)

    @pytest.mark.parametrize("method", ["exact", "onestep"])
    @pytest.mark.parametrize("reml", [True, False])
    def test_one_group_left_has_no_estimates(self, method, reml):
        """mixedlm refuses what is left, so there is nothing to report of it."""
        data = jm.datasets.load("sleepstudy")
        two = data[data["Subject"].isin(["308", "309"])]
        with pytest.raises(jm.ModelError, match="one level"):
            jm.mixedlm("Reaction ~ Days + (1 | Subject)", data[data["Subject"] == "308"])
        influence = jm.mixedlm("Reaction ~ Days + (1 | Subject)", two).fit(reml=reml).influence(method=method)
        assert influence.fixed.shape == influence.dfbetas.shape == influence.ran_pars.shape == (2, 2)
        for table in (influence.fixed, influence.ran_pars, influence.dfbetas, influence.cooks_distance):
            assert np.all(np.isnan(table))
        assert not influence.converged.any()

    def test_one_level_left_of_another_factor(self):
        data = jm.datasets.load("sleepstudy").assign(half=lambda d: np.where(d["Subject"] < "335", "early", "late"))
        data = data[~data["Subject"].isin(["308", "309", "310", "330", "331", "332", "333"])]
        with pytest.warns(jm.SingularWarning):
            result = jm.mixedlm("Reaction ~ Days + (1 | Subject) + (1 | half)", data).fit()
        found = result.influence("Subject")
        lost = found.fixed.isna().any(axis=1)
        assert lost[lost].index.tolist() == ["334"]
        assert found.ran_pars.isna().any(axis=1).equals(lost)
        assert not found.converged["334"]

    def test_bad_input(self):
        with pytest.raises(jm.ModelError, match="'exact' or 'onestep'"):
            sleep().influence(method="newton")
        with pytest.raises(jm.ModelError, match=r"'school' is not a grouping factor.*Subject"):
            sleep().influence("school")
        with pytest.raises(jm.ModelError, match=r"plate.*sample.*crossed"):
            reference("penicillin_reml")[0].influence()


class TestCovariances:
    def test_of_the_coefficients(self):
        pd.testing.assert_series_equal(
            pd.Series(np.sqrt(np.diag(sleep().vcov())), sleep().vcov().index), sleep().bse_fe, check_names=False
        )

    def test_joint_with_labels(self):
        table = sleep().vcov(full=True)
        assert table.index.tolist()[:4] == ["Intercept", "Days", "Intercept|Subject[308]", "Days|Subject[308]"]
        np.testing.assert_allclose(table.iloc[:2, :2], sleep().vcov())
        rows = np.array([1.0, 3.0, 1.0, 3.0])
        new = pd.DataFrame({"Days": [3.0], "Subject": ["308"]})
        se = sleep().predict(new, random_effects=True, interval="confidence")["se"].iloc[0]
        assert se**2 == pytest.approx(rows @ table.iloc[:4, :4].to_numpy() @ rows, rel=1e-9)

    def test_too_large_to_be_made_whole(self, monkeypatch):
        monkeypatch.setattr("jmixed.reports.diagnostics.MOST_ROWS", 30)
        with pytest.raises(jm.ModelError, match="38 rows, more than 30"):
            sleep().vcov(full=True)


class TestPrincipalComponents:
    def test_those_of_lme4(self):
        """rePCA(lmer(Reaction ~ Days + (Days | Subject), sleepstudy)) in lme4, at its default tolerance."""
        table = sleep().re_pca()["Subject"]
        np.testing.assert_allclose(table["sd"], [0.966867972252, 0.230879814201], rtol=1e-4)
        np.testing.assert_allclose(np.abs(table[["Intercept", "Days"]]), [[0.99986, 0.01664], [0.01664, 0.99986]], 1e-2)
        assert table["cumulative"].iloc[-1] == pytest.approx(1)

    def test_components_make_up_the_covariance(self):
        result, _ = reference("machines_slopes_ml")
        table = result.re_pca()["Worker"]
        loadings = table.iloc[:, 3:].to_numpy()
        rebuilt = loadings.T @ np.diag(table["sd"] ** 2) @ loadings * result.scale
        np.testing.assert_allclose(rebuilt, result.cov_re, rtol=1e-8)


def test_after_the_rows_are_gone():
    result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    result.remove_data()
    for call in (result.influence, result.robust_cov, result.r2, result.icc, lambda: result.vcov(full=True)):
        with pytest.raises(jm.DataError, match="remove_data"):
            call()
    assert result.vcov().shape == (2, 2)
    assert len(result.re_pca()["Subject"]) == 2


class TestWithoutFixedEffects:
    """Everything works, with tables that have no rows or no columns."""

    @staticmethod
    @functools.cache
    def result():
        return jm.mixedlm("Reaction ~ 0 + (1 | Subject)", jm.datasets.load("sleepstudy")).fit()

    def test_every_table(self):
        result = self.result()
        assert result.fe_params.shape == result.bse_fe.shape == (0,)
        for ddf in ("satterthwaite", "kenward-roger", "residual", "none"):
            assert result.test(ddf=ddf).shape == (0, 5)
            assert result.anova(ddf=ddf).shape == (0, 6)
            assert "Subject Var" in str(result.summary(ddf=ddf))
        assert result.drop1().index.tolist() == ["<none>"]
        assert result.tidy().shape == (0, 7)
        assert result.confint().index.tolist() == ["sd_Intercept|Subject", "sigma"]
        assert result.vcov_kenward_roger.shape == result.robust_cov().shape == (0, 0)
        assert result.wald_test_terms().table.shape == (0, 3)
        assert np.isnan(result.f_test(np.zeros((0, 0))).pvalue)
        assert result.t_test(np.zeros((0, 0))).effect.shape == (0,)
        assert result.r2().marginal == 0
        assert result.robust_test().shape == (0, 5)
        assert "influential groups" not in result.check().frame.index
        assert "no estimate" not in str(result.influence(method="onestep"))

    def test_joint_covariance_is_that_of_the_random_effects(self):
        result, table = self.result(), self.result().vcov(full=True)
        n, ratio = 10, result.theta[0] ** 2
        # y_ij = b_i + e_ij: the conditional variance of b_i is sigma^2 / (n + 1 / theta^2).
        np.testing.assert_allclose(table, np.eye(18) * result.scale / (n + 1 / ratio), rtol=1e-10)

    def test_augment(self):
        table, result = self.result().augment(), self.result()
        assert table[".hat"].sum() == pytest.approx(18 * 10 / (10 + 1 / result.theta[0] ** 2))
        assert table[".cooksd"].isna().all()
        assert table[".fixed"].eq(0).all()

    @pytest.mark.parametrize("method", ["exact", "onestep"])
    def test_influence(self, method):
        found = self.result().influence(method=method)
        assert found.fixed.shape == found.dfbetas.shape == (18, 0)
        assert found.cooks_distance.isna().all()
        if method == "exact":
            data = jm.datasets.load("sleepstudy")
            alone = jm.mixedlm("Reaction ~ 0 + (1 | Subject)", data[data["Subject"] != "309"]).fit()
            np.testing.assert_allclose(found.ran_pars.loc["309"], alone.tidy("ran_pars")["estimate"], rtol=1e-6)


@pytest.mark.parametrize("family", ["poisson", "ordinal"])
def test_groups_that_a_coefficient_rests_on_have_no_distance(family):
    """Fits of a response with a family kept the start of such a coefficient, and had a distance all the same."""
    rng = np.random.default_rng(1)
    data = pd.DataFrame({"g": np.repeat(list("abcdef"), 8)})
    data["arm"] = data["g"].map(dict(zip("abcdef", "xxyyzw", strict=True)))
    data["n"] = np.minimum(rng.poisson(3, 48), 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.errors.SingularWarning)
        result = jm.mixedglm("n ~ arm + (1 | g)", data, family=family).fit()
        exact = result.influence()
        linear = jm.mixedlm("n ~ arm + (1 | g)", data).fit()
    for found in (exact, result.influence(method="onestep")):
        assert found.cooks_distance.index[found.cooks_distance.isna()].tolist() == ["e", "f"]
        assert not found.converged[["e", "f"]].any()
        assert found.fixed.loc[["e", "f"]].isna().all(axis=None)
    assert "without 2 of them some coefficients have no estimate" in " ".join(repr(exact).split())
    assert linear.influence().cooks_distance.isna().tolist() == [False] * 4 + [True] * 2
    assert "without g e a coefficient has no estimate" in repr(linear.check())
