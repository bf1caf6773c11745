"""A fit in words, and lme4's summary: what they say is what was computed."""

import re

import numpy as np
import pytest
from generalized import counts

import jmixed as jm


@pytest.fixture(scope="module")
def machines():
    return jm.mixedlm("score ~ Machine + (Machine | Worker)", jm.datasets.load("machines")).fit()


@pytest.fixture(scope="module")
def slow():
    sleep = jm.datasets.load("sleepstudy")
    sleep["slow"] = sleep["Reaction"] > 300
    return jm.mixedglm("slow ~ Days + (1 | Subject)", sleep, family="binomial").fit()


def test_the_report_has_the_numbers_of_the_tests(machines, slow):
    text = machines.report(ddf="kenward-roger")
    row = machines.test(ddf="kenward-roger").loc["Machine[T.B]"]
    said = re.search(r"Machine\[T\.B\]: b = (\S+), SE = (\S+), t\((\S+)\) = (\S+), p = (\S+),", text).groups()
    np.testing.assert_allclose([float(number) for number in said], row.astype(float), atol=6e-3)
    assert "restricted maximum likelihood to 54 observations of 6 levels of Worker" in text
    assert f"{100 * machines.r2().conditional:.1f}% (conditional R2)" in text
    assert "t(" not in slow.report()
    assert "z = 5.97, p < .001" in slow.report()


def test_the_report_has_what_else_was_estimated(slow):
    assert "A success is slow = True." in slow.report()
    sleep = jm.datasets.load("sleepstudy")
    sleep["pace"] = np.digitize(sleep["Reaction"], [260, 320])
    ordered = jm.mixedglm("pace ~ Days + (1 | Subject)", sleep, family="ordinal").fit()
    first = ordered.thresholds.iloc[0]
    assert re.search(rf"Thresholds: 0\|1 {first:.3f} \(SE 0\.\d+\) and 1\|2 ", ordered.report())
    assert re.search(r"Dispersion \(log\): Intercept -?\d\.\d+ \(SE 0\.\d+\)", counts().report())


def test_what_is_unusual_is_said():
    with pytest.warns(jm.SingularWarning, match="singular"):
        result = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2")).fit()
    assert "The fit is singular" in result.report()
    assert "Singular fit" in str(result.summary(style="lme4"))


def test_the_summary_has_lme4s_blocks(machines, slow):
    """The numbers are those that lme4 and lmerTest print for this model."""
    text = str(machines.summary(style="lme4"))
    blocks = ["REML criterion at convergence: 208.3", "Number of obs: 54, groups:  Worker, 6"]
    blocks += ["Linear mixed model fit by REML. t-tests use Satterthwaite's method"]
    assert all(block in text for block in blocks)
    lines = [line.split() for line in text.splitlines()]
    assert ["-2.3935", "-0.5138", "0.0269", "0.4725", "2.5334"] in lines
    assert ["Machine[T.C]", "13.615", "3.690", "-0.37", "0.30"] in lines
    assert ["Machine[T.B]", "7.967", "2.421", "5.00", "3.291", "0.0217"] in lines
    general = str(slow.summary(style="lme4"))
    assert "Family: Binomial  ( logit )" in general
    assert "z value" in general
    with pytest.raises(jm.ModelError, match="style='SPSS'; use 'statsmodels' or 'lme4'"):
        machines.summary(style="SPSS")


def test_a_model_without_random_effects_says_whose_rows_they_are():
    """Numbers of series, and the correlations of their residuals, stand wherever those of random effects would."""
    sleep = jm.datasets.load("sleepstudy")
    result = jm.mixedlm("Reaction ~ Days", sleep, residual="ar1(Days | Subject)").fit()
    phi = result.residual_corr().iloc[0, 1]
    assert "to 180 observations of 18 levels of Subject." in result.report()
    assert f"Correlations: residuals (phi) {phi:.2f}." in result.report()
    cells = jm.table(result).cells["(1)"]
    assert cells["Fit", "N Subject"] == "18"
    assert cells["Random effects", "Correlation residuals phi"] == f"{phi:.3f}"
    text = str(result.summary(style="lme4"))
    assert "Number of obs: 180, groups:  Subject, 18" in text
    assert f"cor_phi|Subject    {phi:.3f}" in text
    assert re.search(r"No\. Groups: +18 ", str(result.summary()))
    visits = jm.mixedlm("Reaction ~ Days", sleep[sleep["Days"] < 3], residual="us(Days | Subject)").fit()
    lines = [line.split() for line in str(visits.summary(style="lme4")).splitlines()]
    for day, deviation in visits.residual_sd().items():
        assert ["Days", str(day), f"{deviation**2:.3f}", f"{deviation:.3f}"] in [line[-4:] for line in lines]


def test_other_responses_are_named_in_the_table():
    sleep = jm.datasets.load("sleepstudy")
    fits = [jm.mixedlm(f"{y} ~ Days + (1 | Subject)", sleep).fit() for y in ("Reaction", "np.log(Reaction)")]
    table = jm.table(fits)
    assert table.cells.loc[("Fit", "Response")].tolist() == ["Reaction", "np.log(Reaction)"]
    assert "AIC, BIC and log-likelihood of different responses are not comparable." in table.notes
    visits = jm.mixedlm("Reaction ~ Days", sleep, residual="ar1(Days | Subject)").fit()
    order = ["N", "N Subject", "ICC", "R2 marginal", "R2 conditional", "AIC", "BIC", "Log-likelihood", "Method"]
    for several in ([visits, fits[0]], [fits[0], visits]):
        assert jm.table(several).cells.loc["Fit"].index.tolist() == order
    assert ("Fit", "Response") not in jm.table(fits[0]).cells.index
