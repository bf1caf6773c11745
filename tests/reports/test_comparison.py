"""Models against each other: tables against their definition and R, tests of variances against R and by simulation."""

import functools
import warnings

import numpy as np
import pandas as pd
import pytest
from references import beside, case
from scipy.stats import chi2

import jmixed as jm

SLEEP = jm.datasets.load("sleepstudy")


@functools.cache
def fitted(formula, reml=True):
    return jm.mixedlm(formula, SLEEP).fit(reml=reml)


BASIC, SLOPES = "Reaction ~ Days + (1 | Subject)", "Reaction ~ Days + (Days | Subject)"


class TestCompare:
    def test_against_lme4(self):
        """lme4 1.1.31: anova(fm1, fm2), which refits both by ML."""
        table = jm.compare(fitted(SLOPES), fitted(BASIC))
        assert table.index.tolist() == [BASIC, SLOPES]
        assert table.columns.tolist() == ["npar", "AIC", "BIC", "logLik", "deviance", "Chisq", "Df", "p"]
        expected = {"AIC": (1802.0786, 1763.9393), "BIC": (1814.8505, 1783.0971), "logLik": (-897.0393, -875.9697)}
        for name, values in expected.items():
            np.testing.assert_allclose(table[name], values, atol=1e-4)
        assert table["Chisq"].iloc[1] == pytest.approx(42.1393, abs=1e-4)
        assert table["Df"].iloc[1] == 2
        assert table["p"].iloc[1] == pytest.approx(7.072e-10, rel=1e-3)
        assert f"refitted by ML for this table: {SLOPES}, {BASIC}" in " ".join(repr(table).split())

    def test_fits_by_ml_stay_as_they_are(self):
        results = [fitted(BASIC, False), fitted(SLOPES, False)]
        table = jm.compare(*results, names=["a", "b"])
        assert table["deviance"].tolist() == [result.objective for result in results]
        assert table["AIC"].tolist() == pytest.approx([result.aic for result in results])
        assert table["BIC"].tolist() == pytest.approx([result.bic for result in results])
        assert "REML" not in repr(table)

    def test_models_are_left_alone(self):
        result = fitted(BASIC)
        jm.compare(result, fitted(SLOPES))
        assert result.reml

    def test_reml_criteria(self):
        table = jm.compare(fitted(BASIC), fitted(SLOPES), refit=False)
        assert table["deviance"].tolist() == [fitted(BASIC).objective, fitted(SLOPES).objective]
        with pytest.raises(jm.ModelError, match="different fixed effects"):
            jm.compare(fitted(BASIC), fitted("Reaction ~ 1 + (1 | Subject)"), refit=False)
        with pytest.raises(jm.ModelError, match="some fits are by REML"):
            jm.compare(fitted(BASIC), fitted(SLOPES, False), refit=False)

    def test_other_data_are_refused(self):
        with pytest.raises(jm.DataError, match="fit 1 has 180 rows and fit 2 has 170"):
            jm.compare(fitted(BASIC), jm.mixedlm(BASIC, SLEEP.iloc[:170]).fit())
        other = SLEEP.assign(Reaction=SLEEP.Reaction.where(SLEEP.index != 5, 1.0))
        with pytest.raises(jm.DataError, match="different response .first in row 5"):
            jm.compare(fitted(BASIC), jm.mixedlm(BASIC, other).fit())
        with pytest.raises(jm.DataError, match="different weights"):
            jm.compare(fitted(BASIC), jm.mixedlm(BASIC, SLEEP, weights=np.linspace(1, 2, 180)).fit())
        with pytest.raises(jm.ModelError, match="at least two"):
            jm.compare(fitted(BASIC))
        with pytest.raises(jm.ModelError, match="OLS is no fit of jmixed"):
            jm.compare(fitted(BASIC), type("OLS", (), {})())
        with pytest.raises(jm.ModelError, match="names="):
            jm.compare(fitted(BASIC), fitted(SLOPES), names=["a"])


class TestDrop1:
    def test_each_row_is_a_fit_without_the_term(self):
        data = jm.datasets.load("machines")
        data["x"] = np.random.default_rng(0).normal(size=len(data))
        result = jm.mixedlm("score ~ Machine * x + np.abs(x) + (1 | Worker)", data).fit()
        table = result.drop1()
        assert table.index.tolist() == ["<none>", "np.abs(x)", "Machine:x"]
        reduced = {
            "np.abs(x)": "score ~ Machine * x + (1 | Worker)",
            "Machine:x": "score ~ Machine + x + np.abs(x) + (1 | Worker)",
        }
        full = result.fitted.by_ml("")
        for name, formula in reduced.items():
            fit = jm.mixedlm(formula, data).fit(reml=False)
            row = table.loc[name]
            assert row["AIC"] == pytest.approx(fit.aic, abs=1e-7)
            assert row["Chisq"] == pytest.approx(2 * (full.llf - fit.llf), abs=1e-7)
            assert row["Df"] == full.k_fe - fit.k_fe
            assert row["p"] == pytest.approx(chi2.sf(row["Chisq"], row["Df"]), rel=1e-8)
        assert "fitted by REML" in repr(table)

    def test_coding_follows_the_formula_that_is_left(self):
        """Without an intercept the factor that stays takes a column for each level, as in R."""
        data = jm.datasets.load("machines")
        data["half"] = np.where(np.arange(len(data)) % 2, "a", "b")
        table = jm.mixedlm("score ~ 0 + Machine + half + (1 | Worker)", data).fit(reml=False).drop1()
        assert table.loc["Machine", "Df"] == 2
        assert table.loc["half", "Df"] == 1

    def test_no_intercept_comes_back_and_names_need_be_no_words(self):
        data = SLEEP.assign(**{"days off": 10 - SLEEP.Days})
        table = jm.mixedlm("Reaction ~ 0 + Days + `days off` + (1 | Subject)", data).fit(reml=False).drop1()
        for name, left in {"Days": "Q('days off')", "days off": "Days"}.items():
            fit = jm.mixedlm(f"Reaction ~ 0 + {left} + (1 | Subject)", data).fit(reml=False)
            assert table.loc[name, ["npar", "AIC"]].tolist() == pytest.approx([3, fit.aic])

    def test_models_of_arrays_and_of_other_responses(self):
        by_formula = fitted(BASIC, False)
        arrays = jm.MixedLM(SLEEP.Reaction, by_formula.model.exog, SLEEP.Subject).fit(reml=False)
        table = arrays.drop1()
        assert table["AIC"].tolist() == pytest.approx(by_formula.drop1()["AIC"].tolist())
        assert len(table) == 2
        y = by_formula.simulate(1, key=4)[0]
        direct = jm.mixedlm("Reaction ~ 1 + (1 | Subject)", SLEEP.assign(Reaction=y)).fit(reml=False)
        assert by_formula.refit(y).drop1().loc["Days", "AIC"] == pytest.approx(direct.aic)

    def test_a_likelihood_without_a_maximum_is_not_compared(self):
        """Without noise the likelihood grows beyond all bounds: where a fit of it stopped means nothing."""
        x = np.tile(np.arange(5.0), 6)
        data = pd.DataFrame({"g": np.repeat(list("abcdef"), 5), "x": x, "y": 2 * x + np.repeat(np.arange(6.0) ** 2, 5)})
        data["z"] = np.random.default_rng(0).normal(size=30)
        with pytest.warns(jm.ConvergenceWarning, match="PERFECT_FIT"):
            result = jm.mixedlm("y ~ x + z + (1 | g)", data).fit(reml=False)
        with pytest.warns(jm.ConvergenceWarning, match="without z"):
            table = result.drop1()
        # Without x there is noise.
        assert table["logLik"].isna().tolist() == [True, False, True]
        assert table[["Chisq", "p"]].isna().all(axis=None)
        assert "no maximum" in repr(table)
        smaller = jm.mixedlm("y ~ z + (1 | g)", data).fit(reml=False)
        table = jm.compare(result, smaller, names=["with", "without"])
        assert table.loc["with"].drop(["npar", "Df"]).isna().all()
        assert np.isfinite(table.loc["without", "AIC"])
        assert "with: PERFECT_FIT" in repr(table)
        with pytest.raises(jm.ModelError, match="PERFECT_FIT"):
            jm.test_variance(result)

    def test_progress(self, capsys):
        fitted(BASIC).drop1(progress=True)
        assert "drop1" in capsys.readouterr().err
        fitted(BASIC).drop1()
        assert capsys.readouterr().err == ""


RANDOM = {
    "sleepstudy_slope_reml": {"Days in (Days | Subject)": "Reaction ~ Days + (1 | Subject)"},
    "sleepstudy_int_ml": {"(1 | Subject)": None},
    "pastes_ml": {"(1 | batch)": "strength ~ 1 + (1 | batch:cask)"},
    "cake_crossed_reml": {
        "(1 | replicate)": "angle ~ recipe + temperature + (1 | recipe:replicate)",
        "(1 | recipe:replicate)": "angle ~ recipe + temperature + (1 | replicate)",
    },
    "sleepstudy_weights_ml": {"(1 | Subject)": None},
    "dyestuff2_reml": {"(1 | Batch)": None},
}


@pytest.mark.parametrize("name", RANDOM)
def test_ratios_against_r(name):
    """lmerTest's ranova gives the ratio and the plain p-value; the mixture follows from them."""
    reference, data = case(name)
    reml = reference["method"] == "REML"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        full = jm.mixedlm(reference["lme4_formula_py"], data, weights=reference["weights"]).fit(reml=reml)
    for row in beside("ranova")[name]:
        if row["term"] not in RANDOM[name]:
            continue
        formula = RANDOM[name][row["term"]]
        test = jm.test_variance(full, None if formula is None else jm.mixedlm(formula, data).fit(reml=reml))
        assert test.statistic == pytest.approx(max(row["lrt"], 0), abs=1e-5)
        assert test.df[1] == row["df"]
        assert test.naive_pvalue == pytest.approx(row["p"], rel=1e-4)
        below = chi2.sf(test.statistic, test.df[0]) if test.df[0] else 0.0
        assert test.pvalue == pytest.approx((below + test.naive_pvalue) / 2 if test.statistic > 0 else 1, rel=1e-9)
        assert test.method == reference["method"]


def test_size_under_the_hypothesis():
    """200 data sets without a random slope: the mixture rejects at its level, and chi-square less often."""
    rng = np.random.default_rng(5)
    g, x = np.repeat(np.arange(25), 6), np.tile(np.linspace(-1, 1, 6), 25)
    frame = pd.DataFrame({"g": g, "x": x, "y": rng.normal(size=150)})
    models = [jm.mixedlm(f"y ~ x + (1 | g){more}", frame) for more in (" + (0 + x | g)", "")]
    pvalues, naive = [], []
    for _ in range(200):
        y = 1 + x + rng.normal(size=25)[g] + rng.normal(size=150)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", jm.SingularWarning)
            test = jm.test_variance(*(model.with_response(y).fit() for model in models))
        pvalues.append(test.pvalue)
        naive.append(test.naive_pvalue)
    for level in (0.05, 0.1, 0.2):
        assert np.mean(np.array(pvalues) < level) == pytest.approx(level, abs=3 * np.sqrt(level * (1 - level) / 200))
    assert np.mean(np.array(pvalues) == 1) == pytest.approx(0.55, abs=0.15)
    assert np.mean(np.array(naive) < 0.1) < np.mean(np.array(pvalues) < 0.1)


def test_what_is_no_test_of_one_variance():
    full = fitted(SLOPES)
    for formula in ("Reaction ~ Days + (Days || Subject)", SLOPES):
        with pytest.raises(jm.ModelError, match="without one random effect"):
            jm.test_variance(full, fitted(formula))
    with pytest.raises(jm.ModelError, match=r"without one random effect.*jm.compare\(smaller, larger, refit=False\)"):
        jm.test_variance(full)
    with pytest.raises(jm.ModelError, match="without one random effect"):
        jm.test_variance(fitted(BASIC), full)
    with pytest.raises(jm.ModelError, match="fixed effects differ"):
        jm.test_variance(full, fitted("Reaction ~ 1 + (1 | Subject)"))
    with pytest.raises(jm.ModelError, match="by REML, the other by ML"):
        jm.test_variance(full, fitted(BASIC, False))
    assert "0.5 chi2(1) + 0.5 chi2(2)" in repr(jm.test_variance(full, fitted(BASIC)))


def test_drop1_and_update_with_names_that_hold_spaces():
    renamed = SLEEP.rename(columns={"Subject": "the person", "Days": "days awake"})
    result = jm.mixedlm("Reaction ~ `days awake` + (`days awake` | `the person`)", renamed).fit()
    expected = fitted(SLOPES).drop1()
    np.testing.assert_allclose(result.drop1()["AIC"], expected["AIC"], rtol=1e-10)
    assert result.drop1().index.tolist() == ["<none>", "days awake"]
    assert result.model.update(". ~ . + I(`days awake`**2)").n_groups == 18
