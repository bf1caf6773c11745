"""The result object: statsmodels' names and labels, lme4's numbers, and independence of everything that comes later."""

import copy
import errno
import functools
import io
import os
import pickle
import time
import warnings

import numpy as np
import pandas as pd
import pytest
from references import case
from scipy import stats

import jmixed as jm
from jmixed.runtime import files

BARS = "Reaction ~ Days + (Days | Subject)"


@functools.cache
def sleep(reml=True):
    return jm.mixedlm(BARS, jm.datasets.load("sleepstudy")).fit(reml=reml)


@functools.cache
def sleep_by_groups():
    data = jm.datasets.load("sleepstudy")
    return jm.mixedlm("Reaction ~ Days", data, groups="Subject", re_formula="~Days").fit()


@functools.cache
def pastes():
    data = jm.datasets.load("pastes")
    return jm.mixedlm("strength ~ 1", data, groups="batch", re_formula="1", vc_formula={"cask": "0 + C(cask)"}).fit()


def arrays(labelled=False):
    data = jm.datasets.load("sleepstudy")
    X = np.column_stack([np.ones(len(data)), data["Days"]])
    if labelled:
        X = pd.DataFrame(X, columns=["one", "Days"])
        return jm.MixedLM(data["Reaction"], X, data["Subject"], exog_re=X).fit()
    return jm.MixedLM(data["Reaction"].to_numpy(), X, data["Subject"].to_numpy(), exog_re=X).fit()


def dense_log_likelihood(parameters, y, X, Z, groups, reml):
    """Log-likelihood of (lower triangle of the covariance, residual variance), coefficients maximised out."""
    q = Z.shape[1]
    cov = np.zeros((q, q))
    cov[np.tril_indices(q)] = parameters[:-1]
    cov = cov + np.tril(cov, -1).T
    V = parameters[-1] * np.eye(len(y)) + (Z @ cov @ Z.T) * (groups[:, None] == groups[None, :])
    root = np.linalg.cholesky(V)
    Xw, yw = np.linalg.solve(root, X), np.linalg.solve(root, y)
    residual = yw - Xw @ np.linalg.lstsq(Xw, yw, rcond=None)[0]
    nu = len(y) - (X.shape[1] if reml else 0)
    value = -nu / 2 * np.log(2 * np.pi) - np.log(np.diag(root)).sum() - residual @ residual / 2
    return value - np.linalg.slogdet(Xw.T @ Xw)[1] / 2 if reml else value


def numerical_hessian(f, x):
    step = 1e-3 * np.abs(x) + 1e-4 * np.abs(x).mean() * (np.abs(x) < 0.05 * np.abs(x).mean())
    units = np.diag(step)
    hessian = np.empty((len(x), len(x)))
    for i, a in enumerate(units):
        for j, b in enumerate(units):
            corners = f(x + a + b) - f(x + a - b) - f(x - a + b) + f(x - a - b)
            hessian[i, j] = corners / (4 * step[i] * step[j])
    return hessian


class TestSleepstudy:
    def test_estimates_are_those_of_lme4(self):
        result = sleep()
        assert result.sigma == pytest.approx(25.5918, abs=1e-4)
        assert result.scale == pytest.approx(25.5918**2, rel=1e-5)
        assert result.objective == pytest.approx(1743.6282720, abs=1e-6)
        assert result.llf == pytest.approx(-871.8141360, abs=1e-6)
        np.testing.assert_allclose(result.fe_params, [251.405105, 10.467286], rtol=1e-7)
        np.testing.assert_allclose(result.bse_fe, [6.824597, 1.545790], rtol=1e-4)
        table = result.var_corr()
        assert table.columns.tolist() == ["group", "var1", "var2", "vcov", "sdcor"]
        np.testing.assert_allclose(table["sdcor"], [24.74045, 5.92213, 0.06555, 25.59182], rtol=0, atol=1e-5)
        assert table["group"].tolist() == ["Subject", "Subject", "Subject", "Residual"]
        assert table["var2"].tolist() == [None, None, "Days", None]
        assert table["var1"].tolist() == ["Intercept", "Days", "Intercept", None]

    def test_labels(self):
        result = sleep()
        variance = ["Subject Var", "Subject x Days Cov", "Days Var"]
        assert result.params.index.tolist() == ["Intercept", "Days", *variance]
        for name in ("bse", "tvalues", "pvalues"):
            assert getattr(result, name).index.tolist() == ["Intercept", "Days", *variance]
        assert result.bse_re.index.tolist() == variance
        assert result.cov_re.index.tolist() == result.cov_re.columns.tolist() == ["Subject", "Days"]
        assert result.cov_params().columns.tolist() == ["Intercept", "Days", *variance]
        assert (result.k_fe, result.k_re, result.k_re2, result.k_vc) == (2, 2, 3, 0)

    def test_both_grammars_give_the_same(self):
        first, second = sleep(), sleep_by_groups()
        pd.testing.assert_series_equal(first.params, second.params, rtol=1e-9)
        pd.testing.assert_series_equal(first.bse, second.bse, rtol=1e-8)
        pd.testing.assert_series_equal(first.random_effects["308"], second.random_effects["308"], rtol=1e-8)

    def test_arrays_without_labels_give_arrays(self):
        labelled, plain = sleep(), arrays()
        for name in ("params", "bse", "bse_fe", "bse_re", "cov_re", "fe_params", "tvalues", "fittedvalues", "resid"):
            value = getattr(plain, name)
            assert type(value) is np.ndarray, name
            np.testing.assert_allclose(value, getattr(labelled, name), rtol=1e-7)
        assert type(plain.cov_params()) is np.ndarray
        assert type(plain.conf_int()) is np.ndarray
        assert type(plain.random_effects["308"]) is pd.Series
        assert type(plain.random_effects_cov["308"]) is pd.DataFrame

    def test_data_frames_in_the_array_interface_give_labels(self):
        result = arrays(labelled=True)
        assert result.fe_params.index.tolist() == ["one", "Days"]
        assert result.cov_re.columns.tolist() == ["one", "Days"]

    def test_changing_what_was_given_out_changes_nothing(self):
        result = sleep()
        for name in ("params", "fe_params", "bse", "cov_re", "fittedvalues", "resid", "theta", "vcov_theta", "vcomp"):
            value = getattr(result, name)
            before = value.copy()
            place = getattr(value, "iloc", value)
            place[...] = 0
            np.testing.assert_array_equal(getattr(result, name), before, err_msg=name)
        assert result.theta[0] > 0.9


class TestAgainstStatsmodels:
    @pytest.fixture(scope="class")
    @classmethod
    def theirs(cls):
        smf = pytest.importorskip("statsmodels.formula.api")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data = jm.datasets.load("sleepstudy")
            model = smf.mixedlm("Reaction ~ Days", data, groups="Subject", re_formula="~Days")
            return model.fit(gtol=1e-9)

    @pytest.fixture(scope="class")
    @classmethod
    def their_pastes(cls):
        smf = pytest.importorskip("statsmodels.formula.api")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            vc = {"cask": "0 + C(cask)"}
            model = smf.mixedlm(
                "strength ~ 1", jm.datasets.load("pastes"), groups="batch", re_formula="1", vc_formula=vc
            )
            return model.fit(gtol=1e-9)

    @pytest.mark.parametrize("name", ["params", "bse", "tvalues", "fe_params", "bse_fe", "cov_re_unscaled", "cov_re"])
    def test_labelled_attributes(self, theirs, name):
        ours, other = getattr(sleep_by_groups(), name), getattr(theirs, name)
        assert ours.index.tolist() == other.index.tolist()
        np.testing.assert_allclose(ours, other, rtol=5e-3)

    @pytest.mark.parametrize("name", ["nobs", "df_resid", "k_fe", "k_re", "k_re2", "k_vc", "method", "use_t", "reml"])
    def test_plain_attributes(self, theirs, name):
        assert getattr(sleep_by_groups(), name) == getattr(theirs, name)

    def test_pvalues_and_intervals(self, theirs):
        ours = sleep_by_groups()
        np.testing.assert_allclose(ours.pvalues, theirs.pvalues, rtol=5e-2, atol=1e-12)
        limits, other = ours.conf_int(0.1), theirs.conf_int(0.1)
        assert limits.columns.tolist() == other.columns.tolist()
        np.testing.assert_allclose(limits, other, rtol=5e-3, atol=2e-3)
        np.testing.assert_allclose(ours.conf_int(0.1, cols=[1]), other.iloc[[1]], rtol=5e-3)

    def test_covariances_of_parameters(self, theirs):
        ours = sleep_by_groups()
        np.testing.assert_allclose(ours.cov_params(), theirs.cov_params(), rtol=2e-2, atol=2e-4)
        np.testing.assert_allclose(
            ours.normalized_cov_params * ours.scale, np.asarray(ours.cov_params()), rtol=1e-12, atol=0
        )
        assert ours.cov_params(column=1) == pytest.approx(ours.bse["Days"] ** 2)
        R = np.array([[1.0, 2.0, 0, 0, 0]])
        assert ours.cov_params(r_matrix=R).shape == (1, 1)
        np.testing.assert_allclose(ours.cov_params(scale=2 * ours.scale), 2 * ours.cov_params())

    def test_likelihood_and_criteria(self, theirs):
        assert sleep_by_groups().llf == pytest.approx(theirs.llf, abs=1e-5)
        assert np.isnan(sleep_by_groups().aic)
        assert np.isnan(sleep_by_groups().bic)

    def test_random_effects(self, theirs):
        ours = sleep_by_groups()
        assert list(ours.random_effects) == list(theirs.random_effects)
        for label in ("308", "372"):
            pd.testing.assert_series_equal(ours.random_effects[label], theirs.random_effects[label], rtol=1e-2)
            mine, other = ours.random_effects_cov[label], theirs.random_effects_cov[label]
            assert mine.columns.tolist() == other.columns.tolist()
            np.testing.assert_allclose(mine, other, rtol=1e-2)

    def test_variance_components(self, their_pastes):
        ours = pastes()
        assert ours.params.index.tolist() == their_pastes.params.index.tolist()
        np.testing.assert_allclose(ours.vcomp, their_pastes.vcomp, rtol=1e-3)
        assert type(ours.vcomp) is np.ndarray
        assert list(ours.random_effects) == list(their_pastes.random_effects)
        for label in ("A", "J"):
            mine, other = ours.random_effects[label], their_pastes.random_effects[label]
            assert mine.index.tolist() == other.index.tolist()
            np.testing.assert_allclose(mine, other, rtol=1e-3)
            mine, other = ours.random_effects_cov[label], their_pastes.random_effects_cov[label]
            assert mine.index.tolist() == mine.columns.tolist() == other.columns.tolist()
            np.testing.assert_allclose(mine, other, rtol=5e-3, atol=1e-5)

    def test_fitted_values(self, theirs, their_pastes):
        pd.testing.assert_series_equal(sleep_by_groups().fittedvalues, theirs.fittedvalues, rtol=1e-4)
        pd.testing.assert_series_equal(pastes().resid, their_pastes.resid, rtol=1e-3, atol=1e-4)

    def test_contrasts(self, theirs):
        ours = sleep_by_groups()
        R = np.array([[1.0, 2.0], [0.0, 1.0]])
        mine, other = ours.t_test(R), theirs.t_test(R)
        for name in ("effect", "sd", "tvalue", "statistic", "pvalue"):
            np.testing.assert_allclose(getattr(mine, name), getattr(other, name), rtol=1e-4)
        np.testing.assert_allclose(mine.conf_int(0.1), other.conf_int(0.1), rtol=1e-4)
        np.testing.assert_allclose(ours.t_test(R, use_t=True).pvalue, theirs.t_test(R, use_t=True).pvalue, rtol=1e-3)
        assert mine.df_denom == theirs.t_test(R, use_t=True).df_denom

    def test_joint_tests(self, theirs):
        ours = sleep_by_groups()
        mine, other = ours.wald_test("Days = 5"), theirs.wald_test("Days = 5", scalar=True)
        assert mine.statistic == pytest.approx(other.statistic, rel=1e-3)
        assert mine.pvalue == pytest.approx(float(other.pvalue), rel=1e-2)
        mine, other = ours.f_test("Days = 0, Intercept = 250"), theirs.f_test("Days = 0, Intercept = 250")
        assert mine.fvalue == pytest.approx(float(other.fvalue), rel=1e-3)
        assert (mine.df_num, mine.df_denom) == (other.df_num, other.df_denom)
        mine, other = ours.wald_test_terms(), theirs.wald_test_terms()
        assert mine.table.index.tolist() == other.table.index.tolist()
        np.testing.assert_allclose(mine.statistic, other.table["statistic"], rtol=1e-3)


class TestStandardErrorsOfVariances:
    @pytest.mark.parametrize("reml", [True, False])
    def test_they_are_those_of_the_full_information(self, reml):
        result, data = sleep(reml), jm.datasets.load("sleepstudy")
        X = np.column_stack([np.ones(len(data)), data["Days"]])
        y, groups = data["Reaction"].to_numpy(), data["Subject"].to_numpy()
        at = np.append(np.asarray(result.cov_re)[np.tril_indices(2)], result.scale)
        assert dense_log_likelihood(at, y, X, X, groups, reml) == pytest.approx(result.llf, abs=1e-7)
        hessian = numerical_hessian(lambda p: dense_log_likelihood(p, y, X, X, groups, reml), at)
        expected = np.sqrt(np.diag(np.linalg.inv(-hessian)))
        np.testing.assert_allclose(result.bse_re, expected[:3], rtol=2e-3)

    def test_they_scale_with_the_square_of_the_response(self):
        data = jm.datasets.load("sleepstudy")
        ten = jm.mixedlm(BARS, data.assign(Reaction=10 * data["Reaction"])).fit()
        np.testing.assert_allclose(ten.bse_re, 100 * sleep().bse_re, rtol=1e-6)
        np.testing.assert_allclose(ten.bse.iloc[2:], sleep().bse.iloc[2:], rtol=1e-6)

    def test_they_exist_with_variance_components(self):
        assert pastes().bse_re.index.tolist() == ["batch Var", "cask Var"]
        assert np.all(pastes().bse_re > 0)


class TestVariancesOfZero:
    """A variance of zero is zero and has no error; a correlation with it is none; all else is as without the effect."""

    @staticmethod
    @functools.cache
    def data():
        """Slopes that differ by group, and group means that do not: the variance of the intercepts is zero."""
        rng = np.random.default_rng(5)
        g, x = np.repeat(np.arange(10), 5), np.tile(np.arange(-2.0, 3), 10)
        y = 3 + x + rng.normal(size=10)[g] * x + rng.normal(size=50)
        data = pd.DataFrame({"g": [f"g{k}" for k in g], "x": x, "y": y})
        return data.assign(y=y - data.assign(y=y).groupby("g")["y"].transform("mean") + 3)

    @classmethod
    @functools.cache
    def fits(cls, formula):
        full = jm.mixedlm(f"y ~ x + {formula}", cls.data())
        with pytest.warns(jm.SingularWarning):
            result = full.fit()
        return result, jm.mixedlm("y ~ x + (0 + x | g)", cls.data()).fit()

    @pytest.mark.parametrize("formula", ["(x | g)", "(x || g)", "(1 | g) + (0 + x | g)"])
    def test_in_every_table(self, formula):
        result, without = self.fits(formula)
        assert result.objective == pytest.approx(without.objective, abs=1e-8)
        zero = [name for name in result.bse_re.index if name != "x Var"]
        for errors in (result.bse_re, result.bse, result.tvalues, result.pvalues):
            assert errors[zero].isna().all()
        assert result.conf_int().loc[zero].isna().all(axis=None)
        assert np.isnan(np.diag(result.cov_params().loc[zero, zero])).all()
        assert (result.params[zero] == 0).all()
        # The others have the errors of the model that leaves the effect out.
        for mine, theirs in ((result.bse_re, without.bse_re), (result.bse, without.bse)):
            assert mine["x Var"] == pytest.approx(theirs["x Var"], rel=1e-6)
        np.testing.assert_allclose(np.diag(result.vcov_theta)[-1], without.vcov_theta[0, 0], rtol=1e-6)
        assert np.isnan(np.diag(result.vcov_theta)[:-1]).all()
        assert np.count_nonzero(result.theta) == 1
        table = result.var_corr()
        assert (table.loc[table["var1"].eq("Intercept"), "vcov"] == 0).all()
        assert table.loc[table["var2"].notna(), "sdcor"].isna().all()
        tidy = result.tidy(["ran_pars", "ran_vals"], conf_int=True)
        assert (tidy.loc[tidy["term"].isin(["sd__Intercept", "Intercept"]), "estimate"] == 0).all()
        assert tidy.loc[tidy["term"].str.startswith("cor__"), "estimate"].isna().all()
        assert np.all(result.ranef()["g"]["Intercept"] == 0)
        np.testing.assert_allclose(result.fittedvalues, without.fittedvalues, atol=1e-8)

    def test_in_the_summary(self):
        result, _ = self.fits("(x | g)")
        rows = result.summary().tables[1].loc[["g Var", "g x x Cov"], ["Coef.", "Std.Err."]]
        assert rows.to_numpy().tolist() == [["0.000", ""]] * 2
        for text in (result.summary().as_text(), result.summary().as_html(), result.summary().as_latex()):
            assert "e-" not in "".join(line for line in text.splitlines() if "g Var" in line or "Cov" in line)

    def test_of_refits(self):
        result, _ = self.fits("(x || g)")
        replicates = result.bootstrap(20, key=3).replicates["sd_Intercept|g"]
        assert (replicates == 0).any()
        assert (replicates[replicates != 0] > 1e-5).all()
        result, _ = self.fits("(x | g)")
        many = result.model.fit_many(np.array([result.model.endog, 2 * result.model.endog]))
        assert (many.var_corr["sd_Intercept|g"] == 0).all()
        assert (np.count_nonzero(many.theta, axis=1) == 1).all()
        assert many.var_corr["cor_x.Intercept|g"].isna().all()
        moved = result.influence().ran_pars
        assert (moved["sd_Intercept|g"] == 0).all()
        assert moved["cor_x.Intercept|g"].isna().all()
        trace = result.profile("x").table
        assert trace.loc[trace["sd_Intercept|g"] < 1e-6, "cor_x.Intercept|g"].isna().all()

    def test_beside_a_correlation_that_is_held(self):
        free = jm.MixedLMParams.from_components(fe_params=[1.0, 1.0], cov_re=np.eye(2))
        with pytest.warns(jm.SingularWarning):
            result = jm.mixedlm("y ~ x + (x | g)", self.data()).fit(free=free)
        _, without = self.fits("(x | g)")
        assert result.params["g Var"] == 0
        assert np.isnan(result.bse_re["g Var"])
        # What was held is known.
        assert result.bse_re["g x x Cov"] == 0
        assert result.bse_re["x Var"] == pytest.approx(without.bse_re["x Var"], rel=1e-5)

    def test_one_variance_for_several_columns(self):
        data = self.data().assign(square=lambda d: d.x**2, noise=np.random.default_rng(0).normal(size=50))
        for _, rows in data.groupby("g"):
            columns = np.column_stack([rows.x, rows.square])
            data.loc[rows.index, "noise"] -= columns @ np.linalg.lstsq(columns, rows.noise, rcond=None)[0]
        words = {"groups": "g", "re_formula": "0", "vc_formula": {"curve": "0 + x + square"}}
        with pytest.warns(jm.SingularWarning):
            result = jm.mixedlm("noise ~ 0", data, **words).fit()
        assert result.vcomp.tolist() == [0.0]
        assert np.isnan(result.bse_re["curve Var"])


class TestCriteria:
    def test_under_maximum_likelihood(self):
        result, (reference, _) = sleep(False), case("sleepstudy_slope_ml")
        assert result.llf == pytest.approx(reference["loglik"], abs=1e-6)
        assert result.aic == pytest.approx(reference["aic"], abs=1e-5)
        assert result.bic == pytest.approx(reference["bic"], abs=1e-5)

    def test_glance_has_those_of_lme4_under_reml(self):
        reference, _ = case("sleepstudy_slope_reml")
        row = sleep().glance().iloc[0]
        assert row["AIC"] == pytest.approx(reference["aic"], abs=1e-5)
        assert row["BIC"] == pytest.approx(reference["bic"], abs=1e-5)
        assert row["REMLcrit"] == pytest.approx(reference["objective"]["value"], abs=1e-6)
        assert row["nobs"] == 180
        assert row["df.residual"] == 174

    def test_held_parameters_do_not_count(self):
        data = jm.datasets.load("sleepstudy")
        model = jm.mixedlm("Reaction ~ Days", data, groups="Subject", re_formula="~Days")
        free = jm.MixedLMParams.from_components(np.ones(2), cov_re=np.eye(2))
        result = model.fit(reml=False, free=free)
        assert result.aic == pytest.approx(-2 * result.llf + 2 * 5)
        assert result.cov_re.iloc[0, 1] == pytest.approx(0, abs=1e-9)
        reference, _ = case("sleepstudy_uncorr_ml")
        assert result.llf == pytest.approx(reference["loglik"], abs=1e-6)
        assert result.bse_re["Subject x Days Cov"] == 0


class TestContrasts:
    def test_all_ways_to_say_the_same(self):
        result = sleep()
        expected = result.fe_params["Days"] / result.bse_fe["Days"]
        for said in (
            [[0, 1]],
            [0, 1],
            np.array([0.0, 1.0]),
            "Days",
            "Days = 0",
            ["Days = 0"],
            {"Days": 0},
            ([0, 1], 0),
        ):
            np.testing.assert_allclose(result.t_test(said).tvalue, [expected], rtol=1e-10)
        frame = pd.DataFrame([[0, 1]], columns=["Intercept", "Days"])
        np.testing.assert_allclose(result.t_test(frame).tvalue, [expected])

    def test_a_right_hand_side(self):
        test = sleep().t_test("Days = 10")
        assert test.effect[0] == pytest.approx(10.467286)
        assert test.tvalue[0] == pytest.approx(0.467286 / 1.545790, rel=1e-4)
        assert test.pvalue[0] == pytest.approx(2 * stats.norm.sf(0.467286 / 1.545790), rel=1e-4)

    def test_the_number_of_columns_is_checked(self):
        with pytest.raises(ValueError, match="should have 2 columns"):
            sleep().t_test(np.eye(3))
        with pytest.raises(ValueError, match="columns"):
            sleep().wald_test(np.eye(4))

    def test_unknown_names_are_named(self):
        with pytest.raises(jm.FormulaError, match="'Dayz' is not a coefficient"):
            sleep().t_test("Dayz = 0")

    def test_a_matrix_may_have_columns_for_all_parameters_or_for_coefficients(self):
        result = sleep()
        short, long = result.wald_test([[0, 1]]), result.wald_test([[0, 1, 0, 0, 0]])
        assert short.statistic == pytest.approx(long.statistic)
        variance = result.wald_test("Days Var = 0")
        assert variance.statistic == pytest.approx((result.params["Days Var"] / result.bse["Days Var"]) ** 2)

    def test_summary_has_the_numbers(self):
        text = str(sleep().t_test("Days = 0"))
        assert "10.467 " in text
        assert " 1.546 " in text

    def test_one_contrast_is_a_number_too(self):
        one, two = sleep().t_test([0, 1]), sleep().t_test(np.eye(2))
        z = sleep().fe_params["Days"] / sleep().bse_fe["Days"]
        for name, value in {
            "effect": sleep().fe_params["Days"],
            "sd": sleep().bse_fe["Days"],
            "tvalue": z,
            "statistic": z,
            "pvalue": 2 * stats.norm.sf(z),
        }.items():
            found = getattr(one, name)
            assert isinstance(float(found), float)
            assert float(found) == found[0] == found.item() == pytest.approx(value, rel=1e-9)
            assert f"{found:.3f}" == f"{value:.3f}"
            assert f"{found:.2e}" == f"{value:.2e}"
            assert round(found, 3) == round(float(value), 3)
            assert found.shape == (1,)
            assert repr(found).startswith("array(")
            with pytest.raises((TypeError, ValueError)):
                float(getattr(two, name))
        assert bool(one.pvalue < 0.05)
        kept = pickle.loads(pickle.dumps(one))
        assert float(kept.pvalue) == float(one.pvalue)

    def test_redundant_rows_count_once(self):
        test = sleep().wald_test([[0, 1], [0, 2]])
        assert test.df_num == 1
        assert test.statistic == pytest.approx(sleep().tvalues["Days"] ** 2)

    def test_terms_with_several_columns(self):
        result = jm.mixedlm("Reaction ~ C(Days) + (1 | Subject)", jm.datasets.load("sleepstudy")).fit()
        table = result.wald_test_terms(combine_terms=["Days"], extra_constraints=[("last", "`C(Days)[T.9]` = 0")]).table
        assert table.index.tolist() == ["Intercept", "C(Days)", "Days", "last"]
        assert table["df_constraint"].tolist() == [1, 9, 9, 1]
        assert table.loc["Days", "statistic"] == pytest.approx(table.loc["C(Days)", "statistic"])
        assert result.wald_test_terms(skip_single=True).table.index.tolist() == ["C(Days)"]


class TestRandomEffects:
    @pytest.mark.parametrize(
        "name",
        ["sleepstudy_slope_reml", "sleepstudy_uncorr_reml", "pastes_reml", "machines_nested_reml", "oxboys_quadre_ml"],
    )
    def test_modes_and_conditional_covariances_are_those_of_lme4(self, name):
        reference, data = case(name)
        model = jm.mixedlm(reference["lme4_formula_py"], data)
        result = model.fit(reml=reference["method"] == "REML")
        modes, covariances = result.ranef(cond_var=True)
        for expected in reference["ranef"]:
            inner = {group: frame for group, frame in modes.items() if len(frame) == expected["n_levels"]}
            group = expected["group"] if expected["group"] in modes else next(iter(inner))
            frame = modes[group]
            for row in expected["levels"]:
                label = row["level"]
                label = label if label in frame.index else ":".join(reversed(label.split(":")))
                place = frame.index.get_loc(label)
                np.testing.assert_allclose(frame.iloc[place], row["mode"], atol=1e-4 * result.sigma)
                np.testing.assert_allclose(covariances[group][place], row["cov"], atol=1e-4 * result.scale)

    def test_crossed_factors(self):
        reference, data = case("penicillin_reml")
        result = jm.mixedlm(reference["lme4_formula_py"], data).fit()
        modes, covariances = result.ranef(cond_var=True)
        for expected in reference["ranef"]:
            frame = modes[expected["group"]]
            for row in expected["levels"]:
                place = frame.index.get_loc(row["level"])
                np.testing.assert_allclose(frame.iloc[place], row["mode"], atol=1e-4 * result.sigma)
                np.testing.assert_allclose(covariances[expected["group"]][place], row["cov"], atol=1e-4 * result.scale)
        with pytest.raises(jm.ModelError, match="ranef"):
            _ = result.random_effects

    def test_a_singular_fit_has_random_effects(self):
        result = jm.mixedlm("Yield ~ 1", jm.datasets.load("dyestuff2"), groups="Batch")
        with pytest.warns(jm.SingularWarning):
            result = result.fit()
        assert result.singular
        assert all(abs(float(effect.iloc[0])) < 1e-8 for effect in result.random_effects.values())
        assert all(abs(matrix.to_numpy()).max() < 1e-8 for matrix in result.random_effects_cov.values())

    def test_constant_groups_hold_crossed_components(self):
        data = jm.datasets.load("penicillin").assign(one=1)
        vc = {"plate": "0 + C(plate)", "sample": "0 + C(sample)"}
        result = jm.mixedlm("diameter ~ 1", data, groups="one", vc_formula=vc).fit()
        bars = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", data).fit()
        np.testing.assert_allclose(result.vcomp, np.diag(bars.cov_re), rtol=1e-6)
        effects = result.random_effects[1]
        assert len(effects) == 30
        np.testing.assert_allclose(
            effects["sample[C(sample)[F]]"], bars.ranef()["sample"].loc["F", "Intercept"], rtol=1e-5
        )
        cov = result.random_effects_cov[1]
        _, level = bars.ranef(cond_var=True)
        np.testing.assert_allclose(np.diag(cov)[:24], level["plate"][:, 0, 0], rtol=1e-5)


class TestTables:
    def test_names_with_several_factors_are_unique(self):
        data = jm.datasets.load("sleepstudy")
        data["Session"] = pd.Categorical(np.tile(["a", "b", "c", "d", "e"], 36))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = jm.mixedlm("Reaction ~ Days + (Days | Subject) + (Days | Session)", data).fit()
        assert result.params.index.is_unique
        assert "Days|Session Var" in result.params.index
        nested = jm.mixedlm("strength ~ 1 + (1 | batch / cask)", jm.datasets.load("pastes")).fit()
        assert nested.params.index.tolist()[1:] == ["batch Var", "batch:cask Var"]

    def test_wald_intervals(self):
        table = sleep().confint()
        assert table.columns.tolist()[:2] == ["lower", "upper"]
        assert table.index.tolist() == [
            "Intercept",
            "Days",
            "sd_Intercept|Subject",
            "cor_Days.Intercept|Subject",
            "sd_Days|Subject",
            "sigma",
        ]
        reference, _ = case("sleepstudy_slope_reml")
        np.testing.assert_allclose(table.iloc[1], [reference["wald_ci"][1][k] for k in ("lower", "upper")], rtol=1e-5)
        assert table.iloc[2:].isna().all().all()
        with pytest.raises(jm.ModelError, match="'wald'"):
            sleep().confint("magic")
        with pytest.raises(jm.ModelError, match="between 0 and 1"):
            sleep().confint(level=95)

    def test_tidy(self):
        fixed = sleep().tidy(conf_int=True)
        assert fixed.columns.tolist() == [
            "effect", "term", "estimate", "std.error", "statistic", "df", "p.value", "conf.low", "conf.high",
        ]  # fmt: skip
        np.testing.assert_allclose(fixed["statistic"], [36.838, 6.771], atol=1e-3)
        pars = sleep().tidy("ran_pars")
        assert pars["term"].tolist() == ["sd__Intercept", "cor__Intercept.Days", "sd__Days", "sd__Observation"]
        np.testing.assert_allclose(pars["estimate"], [24.74045, 0.06555, 5.92213, 25.59182], rtol=0, atol=1e-5)
        values = sleep().tidy("ran_vals")
        assert len(values) == 36
        row = values[(values["level"] == "308") & (values["term"] == "Days")].iloc[0]
        assert row["estimate"] == pytest.approx(9.19897, abs=1e-4)
        assert row["std.error"] == pytest.approx(np.sqrt(5.31227), abs=1e-4)
        assert len(sleep().tidy(["fixed", "ran_pars"])) == 6
        with pytest.raises(jm.ModelError, match="ran_pars"):
            sleep().tidy("random")

    def test_augment(self):
        data = jm.datasets.load("sleepstudy")
        table = sleep().augment()
        np.testing.assert_allclose(table[".fitted"] + table[".resid"], data["Reaction"])
        np.testing.assert_allclose(table[".fixed"], 251.405105 + 10.467286 * data["Days"], rtol=1e-7)
        broom = [".fitted", ".resid", ".hat", ".cooksd", ".fixed", ".mu", ".offset", ".sqrtXwt", ".sqrtrwt"]
        broom += [".weights", ".wtres"]
        assert table.columns.tolist() == [*data.columns, *broom, ".std.resid", ".fixed.resid"]
        new = sleep().augment(pd.DataFrame({"Days": [3, 3], "Subject": ["308", "nobody"]}))
        assert new[".fitted"].iloc[1] == pytest.approx(new[".fixed"].iloc[1])
        assert new[".fitted"].iloc[0] == pytest.approx(table.loc[3, ".fitted"])
        polars = pytest.importorskip("polars")
        other = sleep().augment(polars.DataFrame({"Days": [3, 3], "Subject": ["308", "nobody"]}))
        np.testing.assert_array_equal(other[".fitted"], new[".fitted"])

    def test_certificate(self):
        optimizer = sleep().optimizer
        assert optimizer.outcome.ok
        assert "converged" in optimizer.message
        assert optimizer.hessian_eigenvalues.min() > 0
        np.testing.assert_array_equal(sleep().mle_retvals.gradient, optimizer.gradient)
        assert sleep().outcome is jm.Outcome.CONVERGED
        assert sleep().theta == pytest.approx([0.96673, 0.01517, 0.23091], abs=1e-4)
        assert sleep().vcov_theta.shape == (3, 3)

    def test_timings_name_every_step_and_make_up_the_whole(self):
        data = jm.datasets.load("sleepstudy")
        started = time.perf_counter()
        result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).fit()
        whole = time.perf_counter() - started
        steps = ["parse", "materialise", "stack", "cross_products", "compile", "optimise", "results"]
        assert list(result.timings) == steps
        # The cross-products of so few rows are part of the program that optimises.
        assert result.timings["cross_products"] == 0
        assert all(result.timings[step] > 0 for step in set(steps) - {"compile", "cross_products"})
        assert 0.5 * whole < sum(result.timings.values()) <= whole
        again = result.model.fit()
        assert again.timings["compile"] == 0
        assert again.timings["parse"] == result.timings["parse"]


class TestProfileOfAVariance:
    @pytest.mark.parametrize("place", [0, 1])
    def test_the_likelihood_peaks_at_the_estimate(self, place):
        result = sleep_by_groups()
        table = result.profile_re(place, "re", num_low=2, dist_low=15, num_high=2, dist_high=15)
        assert table.shape == (5, 2)
        np.testing.assert_allclose(table[2], [result.cov_re.iloc[place, place], result.llf], rtol=1e-7)
        assert np.all(np.diff(table[:3, 1]) > 0)
        assert np.all(np.diff(table[2:, 1]) < 0)

    def test_a_variance_component(self):
        result = pastes()
        table = result.profile_re("cask", "vc", num_low=1, dist_low=1, num_high=1, dist_high=1)
        np.testing.assert_allclose(table[1], [result.vcomp[0], result.llf], rtol=1e-6)
        assert table[0, 1] < table[1, 1] > table[2, 1]
        model = result.model
        held = model.fit(
            start_params=jm.MixedLMParams.from_components(
                [60.0], cov_re=np.eye(1), vcomp=[(result.vcomp[0] - 1) / result.scale]
            ),
            free=jm.MixedLMParams.from_components([1.0], cov_re=np.eye(1), vcomp=[0.0]),
        )
        assert held.llf == pytest.approx(table[0, 1], abs=1e-6)

    def test_a_slope_as_variance_component(self):
        data, vc = jm.datasets.load("sleepstudy"), {"Days": "0 + Days"}
        result = jm.mixedlm("Reaction ~ Days", data, groups="Subject", re_formula="1", vc_formula=vc).fit()
        table = result.profile_re("Days", "vc", num_low=1, dist_low=15, num_high=1, dist_high=15)
        np.testing.assert_allclose(table[1], [result.vcomp[0], result.llf], rtol=1e-7)
        assert table[0, 1] < table[1, 1] > table[2, 1]

    def test_held_correlations_stay_held_and_the_mask_is_not_changed(self):
        model = jm.mixedlm("Reaction ~ Days", jm.datasets.load("sleepstudy"), groups="Subject", re_formula="~Days")
        free = jm.MixedLMParams.from_components(np.ones(2), cov_re=np.eye(2))
        result = model.fit(free=free)
        aic = result.glance()["AIC"].iloc[0]
        table = result.profile_re(1, "re", num_low=1, dist_low=5, num_high=1, dist_high=5)
        np.testing.assert_allclose(table[1], [result.cov_re.iloc[1, 1], result.llf], rtol=1e-6)
        np.testing.assert_array_equal(free.cov_re, np.eye(2))
        assert result.glance()["AIC"].iloc[0] == aic

    def test_what_cannot_be_profiled_is_refused(self):
        with pytest.raises(ValueError, match="vtype"):
            sleep().profile_re(0, "neither")
        with pytest.raises(ValueError, match="dist_low"):
            sleep().profile_re(0, "re", dist_low=1e6)
        with pytest.raises(ValueError, match="no variance component 'x'"):
            pastes().profile_re("x", "vc")
        with pytest.raises(ValueError, match="position from 0 to 1"):
            sleep().profile_re(2, "re")


class TestIndependence:
    def test_a_later_fit_of_the_model_changes_nothing(self):
        model = jm.mixedlm(BARS, jm.datasets.load("sleepstudy"))
        first = model.fit(reml=True)
        second = model.fit(reml=False)
        assert first.llf == pytest.approx(-871.8141360, abs=1e-6)
        assert second.llf == pytest.approx(-875.9696722, abs=1e-6)
        assert first.method == "REML"
        assert np.isnan(first.aic)

    @pytest.mark.parametrize("make", [sleep, pastes, arrays])
    def test_pickles(self, make):
        result = make()
        again = pickle.loads(pickle.dumps(result))
        np.testing.assert_array_equal(again.params, result.params)
        np.testing.assert_array_equal(again.fittedvalues, result.fittedvalues)
        assert str(again.summary()) == str(result.summary())
        assert again.model.fit(reml=result.reml).llf == pytest.approx(result.llf, abs=1e-9)
        assert copy.deepcopy(result).llf == result.llf

    def test_without_data(self):
        data = jm.datasets.load("sleepstudy")
        result = jm.mixedlm(BARS, data).fit()
        modes, summary, model = result.random_effects, str(result.summary()), result.model
        expected = result.predict(data.iloc[:3], random_effects=True)
        full = len(pickle.dumps(result))
        result.remove_data()
        result.remove_data()
        assert str(result.summary()) == summary
        assert result.llf == pytest.approx(-871.8141360, abs=1e-6)
        assert result.random_effects.keys() == modes.keys()
        pd.testing.assert_series_equal(result.predict(data.iloc[:3], random_effects=True), expected)
        for use in (
            lambda: result.fittedvalues,
            lambda: result.resid,
            lambda: result.predict(),
            lambda: result.random_effects_cov,
            lambda: result.augment(),
            lambda: result.profile_re(0, "re"),
            lambda: result.model.fit(),
            lambda: result.model.loglike(result.params_object),
            lambda: result.model.row_indices,
            lambda: result.model.update(". ~ . + x"),
        ):
            with pytest.raises((jm.DataError, jm.ModelError), match="remove_data"):
                use()
        assert len(model.endog) == 180
        assert len(pickle.dumps(result)) < full / 2
        assert result.model.exog_names == ["Intercept", "Days"]

    def test_saving_without_data_leaves_the_result_alone(self):
        file = io.BytesIO()
        result = jm.mixedlm(BARS, jm.datasets.load("sleepstudy")).fit()
        result.save(file, remove_data=True)
        assert len(result.fittedvalues) == 180
        file.seek(0)
        again = jm.load(file)
        assert str(again.summary()) == str(result.summary())
        with pytest.raises(jm.DataError, match="remove_data"):
            _ = again.fittedvalues
        pd.testing.assert_series_equal(again.random_effects["308"], result.random_effects["308"])

    def test_repr(self):
        assert repr(sleep()) == "<MixedLMResults: Reaction ~ Days + (Days | Subject); REML objective 1743.6283>"


@pytest.mark.parametrize("origin", [2000.0, 20000.0, 45000.0, 2460000.0])
def test_the_origin_of_a_slope_changes_neither_its_variance_nor_singular(origin):
    """A calendar year, days since 1970, a spreadsheet's date, a Julian day: the same model of the slope."""
    data = jm.datasets.load("sleepstudy").assign(t=lambda d: d.Days + origin)
    base = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).fit()
    model = jm.mixedlm("Reaction ~ t + (t | Subject)", data)
    result = model.fit()
    assert result.objective == pytest.approx(base.objective, rel=1e-9)
    assert not result.singular
    assert result.bse_re["t Var"] == pytest.approx(base.bse_re["Days Var"], rel=1e-6)
    assert result.bse["t Var"] == pytest.approx(base.bse["Days Var"], rel=1e-6)
    # The intercept's standard deviation is that of the slope times the distance, as near as can be.
    sd, own = result.vcov_variance(), base.vcov_variance()
    assert sd.loc["sd_t|Subject", "sd_t|Subject"] == pytest.approx(own.iloc[2, 2], rel=1e-6)
    assert sd.iloc[0, 0] == pytest.approx(own.iloc[2, 2] * origin**2, rel=0.2 * 2000 / origin)
    # The last entry of theta is the deviation that the intercept leaves of the slope: it is sd / |origin| in the limit.
    theta = result.vcov_variance("theta")
    np.testing.assert_allclose(theta.iloc[:3, :3], result.vcov_theta, rtol=1e-4)
    assert theta.iloc[3, 3] == pytest.approx(base.vcov_variance("theta").iloc[3, 3], rel=1e-6)
    many = model.fit_many(data.Reaction.to_numpy()[None])
    assert not many.singular.iloc[0]
    assert not model.hessian(result.params)[1]


def test_singular_stays_singular_at_any_origin():
    """An estimate without variance between slopes, and one of perfect correlation."""
    rng = np.random.default_rng(3)
    days, subject = np.tile(np.arange(10.0), 18), np.repeat(np.arange(18), 10)
    level, noise = rng.normal(size=18)[subject], rng.normal(size=180)
    noise -= sum(
        np.where(subject == s, np.polyval(np.polyfit(days[:10], noise[subject == s], 1), days), 0) for s in range(18)
    )
    for name, y in {"no slopes": level + noise, "perfect": level * (1 + 0.1 * days) + noise}.items():
        for origin in (0.0, 2000.0, 45000.0):
            data = pd.DataFrame({"y": y, "t": days + origin, "s": subject})
            with pytest.warns(jm.SingularWarning):
                result = jm.mixedlm("y ~ t + (t | s)", data).fit()
            assert result.singular, (name, origin)


class TestFiles:
    """Saved results: whole, or what was there before; damaged and foreign files are told apart."""

    @pytest.fixture
    def result(self):
        return jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff")).fit()

    def test_a_saved_result_comes_back_from_a_path_and_from_a_file(self, result, tmp_path):
        path = tmp_path / "result.jmixed"
        result.save(path)
        for name in (path, str(path)):
            assert jm.load(name).objective == result.objective
            assert jm.MixedLMResults.load(name).objective == result.objective
        with path.open("rb") as file:
            assert jm.load(file).objective == result.objective
        with np.load(path, allow_pickle=False) as arrays:
            assert any(np.array_equal(arrays[name], result.model.endog) for name in arrays if name.startswith("a"))

    def test_damaged_truncated_and_foreign_files_are_refused(self, result, tmp_path):
        path = tmp_path / "result.jmixed"
        result.save(path)
        whole = path.read_bytes()
        wrong = [whole[: len(whole) * k // 7] for k in range(7)] + [whole + b" ", b"text", bytes(100)]
        for place in range(0, 8 * len(whole), 8 * len(whole) // 23):
            damaged = bytearray(whole)
            damaged[place // 8] ^= 1 << place % 8
            wrong.append(bytes(damaged))
        for content in wrong:
            path.write_bytes(content)
            with pytest.raises(jm.DataError, match="result.jmixed: "):
                jm.load(path)
            with pytest.raises(jm.DataError, match="BytesIO"):
                jm.load(io.BytesIO(content))
        with pytest.raises(jm.DataError, match="gives str, not bytes"):
            jm.load(io.StringIO("text"))

    def test_pickles_of_earlier_versions_are_refused(self, result, tmp_path):
        path = tmp_path / "result.pickle"
        for content in (pickle.dumps(result), files.seal(pickle.dumps(result)), pickle.dumps({"a": 1}, protocol=2)):
            path.write_bytes(content)
            with pytest.raises(jm.DataError, match="result.pickle: is a pickle.*Fit the model again.*pickle.load"):
                jm.load(path)

    def test_a_directory_is_pythons_error(self, tmp_path):
        with pytest.raises(OSError, match="directory"):
            jm.load(tmp_path)

    def test_a_file_that_is_not_there_is_pythons_error(self, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            jm.load(tmp_path / "nowhere")

    @pytest.mark.parametrize("place", [None, 3, b"text", ["a"]])
    def test_what_is_no_file(self, result, place):
        with pytest.raises(jm.ModelError, match="a path, or a binary file"):
            jm.load(place)
        with pytest.raises(jm.ModelError, match="a path, or a binary file"):
            result.save(place)

    def test_save_on_a_full_disk_keeps_the_old_file(self, result, tmp_path, monkeypatch):
        path = tmp_path / "result.pickle"
        result.save(path)

        def fail(descriptor, _):
            os.close(descriptor)
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "fdopen", fail)
            with pytest.raises(OSError, match="No space left"):
                result.save(path)
        assert list(tmp_path.iterdir()) == [path]
        assert jm.load(path).objective == result.objective
