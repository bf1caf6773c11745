"""Fits by nlme and glmmTMB of residuals that are correlated or of unequal variance, number by number."""

import functools
import re

import numpy as np
import pandas as pd
import pytest
from references import covariance_of_all, residual_fits

import jmixed as jm

# The words of each model; the fixed effects stand in the reference.
MODELS = {
    "gls_btheb_hcs_reml": {"residual": "csh(visit | subject)"},
    "gls_dialyzer_varpower_ml": {"dispersion": "~ np.log(pressure)"},
    "gls_glucose_car1_reml": {"residual": "car1(Time | series)"},
    "gls_orthodont_ar1_varident_reml": {"residual": "ar1(1 | Subject)", "dispersion": "~ Sex"},
    "gls_orthodont_compsymm_reml": {"residual": "cs(1 | Subject)"},
    "gls_orthodont_un_ml": {"residual": "us(age | Subject)"},
    "gls_ovary_ar1_reml": {"residual": "ar1(1 | Mare)"},
    "lme_dialyzer_varpower_reml": {
        "dispersion": "~ np.log(pressure)",
        "random": "(pressure + I(pressure**2) | Subject)",
    },
    "lme_dietox_ar1_reml": {"residual": "ar1(Time | Pig)", "random": "(1 | Pig)"},
    "lme_glucose_car1_reml": {"residual": "car1(Time | Subject/Meal)", "random": "(1 | Subject)"},
    "lme_machines_varident_reml": {"dispersion": "~ Machine", "random": "(1 | Worker)"},
    "lme_orthodont_varident_ml": {"dispersion": "~ Sex", "random": "(1 | Subject)"},
    "lme_orthodont_varident_reml": {"dispersion": "~ Sex", "random": "(age | Subject)"},
    "lme_ovary_ar1_reml": {"residual": "ar1(1 | Mare)", "random": "(1 | Mare)"},
    "lme_oxboys_car1_reml": {"residual": "car1(age | Subject)", "random": "(age | Subject)"},
    "lme_sleepstudy_ar1_ml": {"residual": "ar1(Days | Subject)", "random": "(1 | Subject)"},
    "lme_soybean_varpower_reml": {"dispersion": "~ np.log(Time)", "random": "(1 | Plot)"},
    "lme_theoph_car1_varpower_ml": {"residual": "car1(Time | Subject)", "random": "(1 | Subject)"},
    "mmrm_btheb_un_ml": {"residual": "us(visit | subject)"},
    "mmrm_btheb_un_reml": {"residual": "us(visit | subject)"},
    "soybean_varpower_car1_ml": {"residual": "car1(Time | Plot)", "dispersion": "~ np.log(Time)"},
    # By glmmTMB, whose correlated effects without a residual are residuals here.
    "btheb_us_ml": {"residual": "us(visit | subject)"},
    "sleepstudy_ar1_ml": {"residual": "ar1(Days | Subject)"},
    "sleepstudy_disp_ml": {"dispersion": "~ Days", "random": "(Days | Subject)"},
}
GLMMTMB = [name for name in MODELS if residual_fits()[name][0]["r"]["fun"] == "glmmTMB"]
BY_NLME = [name for name in MODELS if name not in GLMMTMB]
# A random intercept without variance, beside correlations that hold all there is; nlme stops short of zero.
SINGULAR = ("lme_dietox_ar1_reml", "lme_glucose_car1_reml")


def fixed_formula(reference):
    """The fixed effects in Python's spelling."""
    text = reference["r"].get("model") or re.sub(r" \+ (us|ar1)?\(.*", "", reference["r"]["formula"])
    for name, spelled in (("^", "**"), ("sin(", "np.sin("), ("cos(", "np.cos("), ("pi", "np.pi")):
        text = text.replace(name, spelled)
    return text


@functools.cache
def fitted(name):
    """(reference, result)."""
    (reference, data), words = residual_fits()[name], dict(MODELS[name])
    formula = " + ".join([fixed_formula(reference), *filter(None, [words.pop("random", None)])])
    model = jm.mixedlm(formula, data, missing="drop", eval_env={"np": np}, **words)
    if name in SINGULAR:
        with pytest.warns(jm.SingularWarning):
            return reference, model.fit(reml=reference["method"] == "REML")
    return reference, model.fit(reml=reference["method"] == "REML")


@pytest.fixture(params=MODELS, scope="module")
def pair(request):
    return fitted(request.param)


def test_no_reference_is_left_out():
    assert set(residual_fits()) == set(MODELS)


def test_criterion(pair):
    reference, result = pair
    value = reference["objective"]["value"]
    assert result.converged
    assert result.nobs == reference["n_obs"]
    assert result.objective == pytest.approx(value, abs=1e-6)


def test_coefficients(pair):
    reference, result = pair
    assert set(result.fe_params.index) == {row["name_formulaic"] for row in reference["fixef"]}
    for row in reference["fixef"]:
        name = row["name_formulaic"]
        assert abs(result.fe_params[name] - row["estimate"]) < 1e-4 * result.bse_fe[name]


@pytest.mark.parametrize("name", BY_NLME)
def test_standard_errors_and_sigma(name):
    reference, result = fitted(name)
    for row in reference["fixef"]:
        assert result.bse_fe[row["name_formulaic"]] == pytest.approx(row["se"], rel=1e-4)
    assert result.sigma == pytest.approx(reference["sigma"], rel=1e-4)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", GLMMTMB)
def test_standard_errors_of_glmmtmb_are_those_of_all_parameters_together(name):
    """From the observed information of coefficients and variance parameters; ours take the latter as known."""
    reference, result = fitted(name)
    errors = dict(zip(result.fe_params.index, np.sqrt(np.diag(covariance_of_all(result))), strict=False))
    for row in reference["fixef"]:
        assert errors[row["name_formulaic"]] == pytest.approx(row["se"], rel=1e-4)


def parameters(result):
    """The residuals' parameters by name."""
    table = result.tidy("ran_pars")
    return dict(zip(table["term"], table["estimate"], strict=True))


@pytest.mark.parametrize("name", [name for name in BY_NLME if "cor_struct" in residual_fits()[name][0]])
def test_correlations(name):
    reference, result = fitted(name)
    own, kind = reference["cor_struct"]["coef"], reference["cor_struct"]["class"]
    corr = result.residual_corr().to_numpy() if kind == "corSymm" else None
    if corr is not None:
        # nlme's order: (2, 1), (3, 1), (4, 1), (3, 2), ...
        columns, rows = np.triu_indices(len(corr), 1)
        np.testing.assert_allclose(corr[rows, columns], own, atol=1e-4)
        return
    name = "cor__r" if kind == "corCompSymm" else "cor__phi"
    (wanted,) = own.values()
    assert parameters(result)[name] == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("name", [name for name in BY_NLME if "var_struct" in residual_fits()[name][0]])
def test_ratios_of_standard_deviations_and_powers(name):
    reference, result = fitted(name)
    wanted = reference["var_struct"]["coef"]
    found = {term: value for term, value in parameters(result).items() if term.startswith("logsd__")}
    assert len(found) == len(wanted)
    for (label, number), (term, value) in zip(wanted.items(), found.items(), strict=True):
        if label == "power":
            assert value == pytest.approx(number, abs=1e-4)
        else:
            assert label in term
            assert np.exp(value) == pytest.approx(number, rel=1e-4)


@pytest.mark.parametrize("name", [name for name in BY_NLME if "random" in residual_fits()[name][0]])
def test_standard_deviations_of_the_random_effects(name):
    reference, result = fitted(name)
    (block,) = reference["random"]
    found = np.sqrt(np.diag(result.cov_re))
    np.testing.assert_allclose(found, block["sd"], rtol=1e-4, atol=(1e-3 if name in SINGULAR else 0) * result.sigma)


def test_structures_of_glmmtmb():
    reference, result = fitted("sleepstudy_disp_ml")
    (level, slope) = (row["estimate"] for row in reference["dispersion"]["coef_log"])
    # Its coefficients are those of the log variance.
    assert 2 * np.log(result.sigma) == pytest.approx(level, abs=1e-4)
    assert 2 * parameters(result)["logsd__Days"] == pytest.approx(slope, abs=1e-4)
    for name in ("btheb_us_ml", "sleepstudy_ar1_ml"):
        reference, result = fitted(name)
        (block,) = reference["varcomp"]
        np.testing.assert_allclose(result.residual_corr(), block["corr"], atol=1e-4)
        sd = result.residual_sd().to_numpy()
        np.testing.assert_allclose(np.broadcast_to(sd, len(block["sd"])), block["sd"], rtol=1e-4)


# By `intervals(fit, which = "var-cov")` of nlme 3.1.162 in R 4.2.2, at tolerance 1e-10 and msTol 1e-12. Its information
# comes from finite differences with steps in the size of the parameter, which leave a few thousandths of an interval.
INTERVALS = {
    "gls_orthodont_compsymm_reml": {"cor_r|Subject": (0.441536487901, 0.776035768232)},
    "gls_orthodont_un_ml": {
        "cor_8.0, 10.0|Subject": (0.227436517221, 0.756982205299),
        "cor_8.0, 12.0|Subject": (0.379291622523, 0.821129459062),
        "cor_8.0, 14.0|Subject": (0.190261931189, 0.742780387440),
        "cor_10.0, 12.0|Subject": (0.250620535632, 0.766463100527),
        "cor_10.0, 14.0|Subject": (0.480223714024, 0.858597503917),
        "cor_12.0, 14.0|Subject": (0.498210378371, 0.861791677594),
    },
    "gls_orthodont_ar1_varident_reml": {
        "logsd_Sex[T.Male]": tuple(np.log([1.29225042677, 2.426858159])),
        "cor_phi|Subject": (0.581505111215, 0.853538530075),
    },
    "gls_glucose_car1_reml": {"cor_phi|series": (0.0942294474119, 0.255435461657)},
    "lme_soybean_varpower_reml": {"logsd_np.log(Time)": (-0.350503433327, -0.00570047585414)},
    "lme_sleepstudy_ar1_ml": {"cor_phi|Subject": (0.427922610468, 0.787124537307)},
}


@pytest.mark.parametrize("name", INTERVALS)
def test_normal_limits_are_those_of_nlme(name):
    _, result = fitted(name)
    wanted = np.array([*INTERVALS[name].values()])
    found = result.confint().loc[[*INTERVALS[name]]].to_numpy()
    assert np.all(np.abs(found - wanted) < 0.004 * np.diff(wanted))


@functools.cache
def drifting(seed=1, rho=0.45, sd=0.18, between=0.35):
    """Sixty people whose x is far between them and grows within: a random intercept, or residuals near phi = 0.93."""
    r = np.random.default_rng(seed)
    g, t, noise = np.repeat(np.arange(60), 7), np.tile(np.arange(7), 60), sd * r.normal(size=(60, 7))
    for k in range(1, 7):
        noise[:, k] = rho * noise[:, k - 1] + np.sqrt(1 - rho**2) * noise[:, k]
    x = r.integers(1, 40, 60)[g] + t
    y = (6 + 0.1 * t + r.normal(0, between, 60)[g] + noise.ravel()).round(3)
    return pd.DataFrame({"g": g, "t": t, "x": x, "y": y})


def test_the_lower_of_two_minima_of_an_intercept_beside_a_correlation():
    """nlme 3.1.162 in R 4.2.2, lme(y ~ x + I(x^2), random = ~ 1 | g, correlation = corAR1(0.3, form = ~ t | g)).

    With the intercept's variance at zero there is a minimum at -73.3, which was reported as the optimum.
    """
    result = jm.mixedlm("y ~ x + I(x**2) + (1 | g)", drifting(), residual="ar1(t | g)").fit()
    assert result.converged
    assert result.objective == pytest.approx(-84.16650936, abs=1e-6)
    np.testing.assert_allclose(result.fe_params, [4.59575436, 0.08424284, -0.00009903], rtol=1e-4)
    np.testing.assert_allclose(result.bse_fe, [0.156840979, 0.009769629, 0.000206247], rtol=1e-5)
    deviations = result.tidy("ran_pars").set_index("term")["estimate"].astype(float)
    expected = {"sd__Intercept": 0.84099230, "sd__Observation": 0.15982907, "cor__phi": 0.33399781}
    np.testing.assert_allclose(deviations[list(expected)], list(expected.values()), rtol=1e-5)


def test_the_lower_of_two_minima_with_alternating_residuals():
    """nlme as above, which ends at 223.66 when it starts from phi = 0.9, and so did the fit."""
    r = np.random.default_rng(180)
    rho, noise, between = r.choice([-0.3, 0.2, 0.5, 0.8]), r.choice([0.1, 0.2, 0.4]), r.choice([0.05, 0.2, 0.4])
    data = drifting(180, rho, noise, between)
    result = jm.mixedlm("y ~ x + I(x**2) + (1 | g)", data, residual="ar1(t | g)").fit()
    assert result.objective == pytest.approx(178.62936562, abs=1e-6)
