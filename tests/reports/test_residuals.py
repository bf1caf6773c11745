"""What people read of residuals with a structure, against dense matrices of the same fit and single fits."""

import functools

import jax
import numpy as np
import pandas as pd
import pytest
from references import covariance_of_all, data, residual_fits
from scipy import stats

import jmixed as jm
from jmixed.errors import DataError, ModelError


@functools.cache
def sleep():
    """A first-order process beside a random intercept, with weights and standard deviations that grow."""
    words = {"residual": "ar1(Days | Subject)", "dispersion": "~ Days", "weights": "w"}
    return jm.mixedlm("Reaction ~ Days + (1 | Subject)", data("sleepstudy"), **words).fit(reml=False)


@functools.cache
def dispersion():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", data("sleepstudy"), dispersion="~ Days").fit(reml=False)


@functools.cache
def visits():
    """Any correlations of four visits, of which some are missing."""
    words = {"residual": "us(visit | subject)", "missing": "drop"}
    return jm.mixedlm("bdi ~ bdi_pre + treatment * visit", data("btheb"), **words).fit()


ALL = {"sleep": sleep, "dispersion": dispersion, "visits": visits}
every = pytest.mark.parametrize("fit", ALL.values(), ids=ALL)


def parameters(result):
    """The residuals' parameters by name, and their standard errors."""
    table = result.tidy("ran_pars").set_index("term")
    return table["estimate"], table["std.error"]


def dense(result):
    """E (n, n), the covariance of the residuals, by the names that people read."""
    frame, (own, _) = result.model.data.frame, parameters(result)
    if result is visits():
        sd = result.residual_sd()[frame["visit"]].to_numpy()
        R = result.residual_corr().loc[frame["visit"], frame["visit"]].to_numpy()
        same = frame["subject"].to_numpy()
    else:
        days, same = frame["Days"].to_numpy(), frame["Subject"].to_numpy()
        sd = result.sigma * np.exp(own["logsd__Days"] * days)
        R = np.eye(len(frame))
        if "cor__phi" in own:
            sd = sd / np.sqrt(frame["w"].to_numpy())
            R = own["cor__phi"] ** np.abs(np.subtract.outer(days, days))
    return np.where(np.equal.outer(same, same), sd[:, None] * R * sd[None], 0)


def random_covariance(result):
    """The covariance (n, n) that the random effects give the rows."""
    frame, n = result.model.data.frame, len(result.model.endog)
    if result is visits():
        return np.zeros((n, n))
    Z = np.column_stack([np.ones(n), frame["Days"]])[:, : len(result.cov_re)]
    subject = frame["Subject"].to_numpy()
    return np.where(np.equal.outer(subject, subject), Z @ result.cov_re.to_numpy() @ Z.T, 0)


# ---- what is estimated ----


@pytest.mark.sweep(1)
@every
def test_the_parameters_that_are_told_give_the_criterion(fit):
    """By generalised least squares with the dense covariance: names, units and weights are all in it."""
    result = fit()
    V, X, y = dense(result) + random_covariance(result), result.model.exog, result.model.endog
    inverse = np.linalg.inv(V)
    A = X.T @ inverse @ X
    beta = np.linalg.solve(A, X.T @ inverse @ y)
    np.testing.assert_allclose(result.fe_params, beta, rtol=1e-8)
    np.testing.assert_allclose(result.bse_fe, np.sqrt(np.diag(np.linalg.inv(A))), rtol=1e-8)
    left = y - X @ beta
    value = np.linalg.slogdet(V)[1] + left @ inverse @ left + len(y) * np.log(2 * np.pi)
    if fit is visits:
        value += np.linalg.slogdet(A)[1] - X.shape[1] * np.log(2 * np.pi)
    assert result.objective == pytest.approx(value, rel=1e-10)


def test_tables_of_correlations_and_standard_deviations():
    corr, sd = visits().residual_corr(), visits().residual_sd()
    assert corr.index.tolist() == corr.columns.tolist() == sd.index.tolist() == ["m2", "m3", "m5", "m8"]
    assert corr.index.name == sd.index.name == "visit"
    np.testing.assert_array_equal(corr, corr.T)
    own, _ = parameters(visits())
    assert sd["m2"] == pytest.approx(visits().sigma)
    assert sd["m5"] == pytest.approx(visits().sigma * np.exp(own["logsd__visit[m5]"]))
    assert corr.loc["m8", "m3"] == pytest.approx(own["cor__m3, m8"])
    own, _ = parameters(sleep())
    np.testing.assert_allclose(sleep().residual_corr().loc[0.0], own["cor__phi"] ** np.arange(10.0))
    np.testing.assert_allclose(sleep().residual_sd(), sleep().sigma * np.exp(own["logsd__Days"] * np.arange(10)))
    assert sleep().residual_sd().index.name == "Days"


def test_standard_deviations_by_several_columns_whatever_the_index():
    frame = data("orthodont").set_index("Subject", drop=False)
    words = {"residual": "ar1h(age | Subject)", "dispersion": "~ Sex"}
    table = jm.mixedlm("distance ~ age * Sex", frame.rename_axis(None), **words).fit().residual_sd()
    assert table.index.names == ["age", "Sex"]
    assert table.index.is_unique
    assert len(table) == 8
    ratio = table.xs("Male", level="Sex") / table.xs("Female", level="Sex")
    np.testing.assert_allclose(ratio, ratio.iloc[0])


def test_standard_deviations_of_positions_that_are_the_order_of_rows():
    model = jm.mixedlm("distance ~ age", data("orthodont"), residual="csh(1 | Subject)")
    table = model.fit().residual_sd()
    assert (table.index.name, table.index.tolist()) == ("row", [1, 2, 3, 4])


def test_one_variance_has_one_standard_deviation():
    result = jm.mixedlm("distance ~ age", data("orthodont"), residual="cs(1 | Subject)").fit()
    assert result.residual_sd().to_dict() == {"sigma": result.sigma}


@every
def test_summary_has_a_row_for_each_parameter(fit):
    result, (own, errors) = fit(), parameters(fit())
    terms = [term for term in own.index if term.startswith(("logsd__", "cor__")) and np.isfinite(errors[term])]
    assert len(terms) == len(result.fitted.fit.rho)
    text = str(result.summary())
    lines = {
        line.split("  ")[0]: line.split()[-2:] for line in text.splitlines() if line.startswith(("logsd_", "cor_"))
    }
    assert len(lines) == len(terms)
    for term, (name, numbers) in zip(terms, lines.items(), strict=True):
        assert name.startswith(term.replace("__", "_"))
        np.testing.assert_allclose(np.array(numbers, float), [own[term], errors[term]], rtol=0.01, atol=1e-4)


def test_errors_of_the_dispersion_are_those_of_glmmtmb():
    reference, _ = residual_fits()["sleepstudy_disp_ml"]
    own, errors = parameters(dispersion())
    _, slope = reference["dispersion"]["coef_log"]
    assert 2 * own["logsd__Days"] == pytest.approx(slope["estimate"], abs=1e-4 * slope["se"])
    assert 2 * errors["logsd__Days"] == pytest.approx(slope["se"], rel=1e-5)


def test_errors_of_parameters_come_from_the_observed_information():
    result = sleep()
    covariance = covariance_of_all(result)[-2:, -2:]
    own, errors = parameters(result)
    # The column of days has unit size inside, and phi is a hyperbolic tangent.
    slopes = [1 / result.model.data.frame["Days"].std(ddof=0), 1 - own["cor__phi"] ** 2]
    np.testing.assert_allclose(errors[["logsd__Days", "cor__phi"]], np.sqrt(np.diag(covariance)) * slopes, rtol=1e-5)


def test_limits_are_normal_where_correlations_are_unbounded():
    result, half = sleep(), 1.6448536269514722
    own, errors = parameters(result)
    limits = result.confint(level=0.9)
    straight = own["logsd__Days"] + half * errors["logsd__Days"] * np.array([-1, 1])
    np.testing.assert_allclose(limits.loc["logsd_Days"], straight, rtol=1e-12)
    # Fisher's z is what the likelihood has as rho.
    error = np.sqrt(covariance_of_all(result)[-1, -1])
    z = np.arctanh(own["cor__phi"]) + half * error * np.array([-1, 1])
    np.testing.assert_allclose(limits.loc["cor_phi|Subject"], np.tanh(z), rtol=1e-5)
    rows = ["logsd_Days", "cor_phi|Subject"]
    told = result.tidy("ran_pars", conf_int=True, conf_level=0.9).set_index("term")[["conf.low", "conf.high"]]
    np.testing.assert_array_equal(told.loc[["logsd__Days", "cor__phi"]], limits.loc[rows])
    assert told.iloc[:2].isna().all(axis=None)


def test_limits_of_one_correlation_of_all_lie_in_its_range():
    """Between -1 / (rows - 1) and 1: the likelihood's own rho, log (r + 1/3) / (1 - r), is the scale."""
    frame = data("orthodont").assign(noise=np.random.default_rng(3).normal(size=108))
    result = jm.mixedlm("noise ~ age", frame, residual="cs(1 | Subject)").fit(reml=False)
    own, _ = parameters(result)
    z = np.log((own["cor__r"] + 1 / 3) / (1 - own["cor__r"]))
    grown = np.exp(z + 1.959963984540054 * np.sqrt(covariance_of_all(result)[-1, -1]) * np.array([-1, 1]))
    np.testing.assert_allclose(result.confint().loc["cor_r|Subject"], (grown - 1 / 3) / (grown + 1), rtol=1e-5)


def test_correlations_at_their_bound_have_no_limits():
    frame = data("sleepstudy")
    # Neighbours are less alike than others, and the phi of continuous time cannot be negative.
    frame["y"] = np.random.default_rng(1).normal(size=len(frame)) + 0.5 * (-1) ** frame["Days"]
    result = jm.mixedlm("y ~ 1", frame, residual="car1(Days | Subject)").fit()
    assert result.converged
    assert parameters(result)[0]["cor__phi"] < 1e-6
    assert result.confint().loc["cor_phi|Subject"].isna().all()


# ---- residuals and predictions ----


@every
def test_kinds_of_residuals(fit):
    result, E = fit(), dense(fit())
    left = result.model.endog - result.predict(random_effects=True)
    np.testing.assert_allclose(result.residuals(), left, atol=1e-9 * result.sigma)
    np.testing.assert_allclose(result.residuals("pearson"), left / np.sqrt(np.diag(E)), rtol=1e-9)
    normalized = result.residuals("normalized").to_numpy()
    assert normalized @ normalized == pytest.approx(left @ np.linalg.solve(E, left), rel=1e-9)
    if fit is not sleep:
        # Rows stand by visit within each group, so that the root is Cholesky's.
        np.testing.assert_allclose(normalized, np.linalg.solve(np.linalg.cholesky(E), left), rtol=1e-7, atol=1e-9)
    with pytest.raises(DataError, match="kind='standardized'"):
        result.residuals("standardized")


def test_predictions_given_the_residuals_are_the_dense_conditional_mean():
    result, (own, _) = sleep(), parameters(sleep())
    new = pd.DataFrame({"Days": [10.0, 12.0, 3.0, 4.0], "Subject": ["308", "308", "372", "308"]})
    frame, E = result.model.data.frame, dense(result)
    left = result.model.endog - result.predict(random_effects=True)
    days, sd = frame["Days"].to_numpy(), np.sqrt(np.diag(E))
    across = own["cor__phi"] ** np.abs(np.subtract.outer(new["Days"].to_numpy(), days))
    across *= np.equal.outer(new["Subject"].to_numpy(), frame["Subject"].to_numpy())
    new_sd = result.sigma * np.exp(own["logsd__Days"] * new["Days"].to_numpy())
    means = (new_sd[:, None] * across * sd[None]) @ np.linalg.solve(E, left)
    plain = result.predict(new, random_effects=True)
    found = result.predict(new, random_effects=True, condition="residual")
    np.testing.assert_allclose(found, plain + means, rtol=1e-10)
    assert np.abs(means).min() > 1e-3


def test_predictions_of_visits_that_a_group_missed():
    result = visits()
    counts = result.model.data.frame.groupby("subject")["visit"].agg(list)
    subject, known = counts.index[counts.map(len) == 2][0], result.model.data.frame
    rows = data("btheb")[lambda row: (row["subject"] == subject) & (row["visit"] == "m8")]
    old = known[known["subject"] == subject]
    sd, R = result.residual_sd(), result.residual_corr()
    C = R * np.outer(sd, sd)
    left = old["bdi"] - result.predict(old)
    mean = C.loc["m8", old["visit"]] @ np.linalg.solve(C.loc[old["visit"], old["visit"]], left)
    found = result.predict(rows, random_effects=True, condition="residual")
    assert float(found.iloc[0] - result.predict(rows).iloc[0]) == pytest.approx(float(mean), rel=1e-9)
    unknown = rows.assign(subject="nobody")
    np.testing.assert_allclose(
        result.predict(unknown, random_effects=True, condition="residual"), result.predict(unknown)
    )


@pytest.mark.parametrize("fit", [sleep, visits])
def test_given_its_own_residual_a_row_is_its_response(fit):
    found = fit().predict(random_effects=True, condition="residual")
    np.testing.assert_allclose(found, fit().model.endog, atol=1e-8 * fit().sigma)


def test_positions_that_new_rows_lack_are_named():
    frame = data("orthodont")
    ages = jm.mixedlm("distance ~ Sex", frame, residual="us(age | Subject)").fit()
    rows = frame.head(2).assign(age=[8.0, 9.0])
    with pytest.raises(DataError, match="age 9.0 is none of the positions that the model was fitted to: 8.0, 10.0"):
        ages.predict(rows, random_effects=True, condition="residual")
    with pytest.raises(DataError, match="residual='us\\(age | Subject\\)'"):
        ages.predict(rows.drop(columns="age"), random_effects=True, condition="residual")
    with pytest.raises(ModelError, match="condition='residual' needs residuals that are correlated"):
        dispersion().predict(data("sleepstudy").head(2), random_effects=True, condition="residual")
    with pytest.raises(DataError, match="give random_effects=True as well"):
        sleep().predict(data("sleepstudy").head(2), condition="residual")


@pytest.mark.parametrize("fit", [dispersion, sleep])
def test_prediction_intervals_have_the_variance_of_the_row(fit):
    result, new = fit(), data("sleepstudy").iloc[[0, 5, 12]].assign(Days=[0.0, 5, 12])
    mean, single = (
        result.predict(new, random_effects=True, interval=interval)["se"] for interval in ("confidence", "prediction")
    )
    own, _ = parameters(result)
    sd = result.sigma * np.exp(own["logsd__Days"] * new["Days"])
    np.testing.assert_allclose(single**2 - mean**2, sd**2, rtol=1e-9)
    at_rows = [
        result.predict(random_effects=True, interval=interval)["se"] for interval in ("confidence", "prediction")
    ]
    np.testing.assert_allclose(at_rows[1] ** 2 - at_rows[0] ** 2, np.diag(dense(result)), rtol=1e-9)


def test_prediction_intervals_of_visits():
    result, new = visits(), data("btheb").iloc[:4]
    mean, single = (result.predict(new, interval=interval)["se"] for interval in ("confidence", "prediction"))
    sd = result.residual_sd()[new["visit"]].to_numpy()
    np.testing.assert_allclose(single**2 - mean**2, sd**2, rtol=1e-9)


# ---- refits ----


@every
def test_simulated_responses_have_the_covariance_of_the_model(fit):
    """Each entry of a correlation by 4,000 draws has the standard error (1 - r^2) / sqrt(4000)."""
    result = fit()
    V, rows = dense(result) + random_covariance(result), slice(0, 20)
    scale = np.sqrt(np.diag(V))
    left = (result.simulate(4000, key=1) - result.predict())[:, rows] / scale[rows]
    found, wanted = left.T @ left / len(left), (V / np.outer(scale, scale))[rows, rows]
    assert np.max(np.abs(found - wanted) / np.sqrt(1 + wanted**2)) < 4.5 / np.sqrt(4000)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("fit", [sleep, visits])
def test_a_replicate_of_the_bootstrap_is_a_refit(fit):
    result = fit()
    found = result.bootstrap(2, key=3)
    names = [name for name in found.estimates.index if name.startswith(("logsd_", "cor_"))]
    assert len(names) == len(result.fitted.fit.rho)
    np.testing.assert_allclose(found.estimates[names], told(result))
    for response, (_, row) in zip(result.simulate(2, key=3), found.replicates.iterrows(), strict=True):
        single = result.refit(response)
        np.testing.assert_allclose(row[single.fe_params.index], single.fe_params, rtol=1e-6)
        assert row["sigma"] == pytest.approx(single.sigma, rel=1e-6)
        np.testing.assert_allclose(row[names], told(single), rtol=1e-5, atol=1e-6)


def told(result):
    """The residuals' parameters in their order."""
    own, _ = parameters(result)
    return own.iloc[-len(result.fitted.fit.rho) :]


@pytest.mark.thorough
def test_influence_of_a_group_is_a_fit_without_it():
    frame, found = data("sleepstudy"), sleep().influence()
    words = {"residual": "ar1(Days | Subject)", "dispersion": "~ Days", "weights": "w"}
    rest = frame[frame["Subject"] != "332"].reset_index(drop=True)
    single = jm.mixedlm("Reaction ~ Days + (1 | Subject)", rest, **words).fit(reml=False)
    np.testing.assert_allclose(found.fixed.loc["332"], single.fe_params, rtol=1e-6)
    own, _ = parameters(single)
    names = ["logsd_Days", "cor_phi|Subject", "sigma"]
    terms = ["logsd__Days", "cor__phi", "sd__Observation"]
    np.testing.assert_allclose(found.ran_pars.loc["332", names], own[terms], rtol=1e-4)


@pytest.mark.thorough
@pytest.mark.parametrize("fit", [sleep, visits])
def test_many_responses_are_single_fits_and_missing_values_are_rows_left_out(fit):
    model, y = fit().model, np.array(fit().model.endog)
    gaps = y + np.random.default_rng(0).normal(size=len(y))
    gaps[[1, 7, 8]] = np.nan
    many = model.fit_many(np.stack([y, gaps]), reml=fit().reml)
    frame = model.data.frame.assign(response=gaps)
    words = {"residual": model.spec.residual.text, "dispersion": model.spec.residual.dispersion, "missing": "drop"}
    words |= {"weights": "w"} if fit is sleep else {}
    formula = "response ~" + model.formula.split("~")[1]
    single = jm.mixedlm(formula, frame, **words).fit(reml=fit().reml)
    assert single.nobs == len(y) - 3
    for k, result in enumerate((fit(), single)):
        assert many.objective[k] == pytest.approx(result.objective, rel=1e-9)
        np.testing.assert_allclose(many.fe_params.iloc[k], result.fe_params, rtol=1e-6)
        assert many.sigma[k] == pytest.approx(result.sigma, rel=1e-6)
    assert many.nobs.tolist() == [len(y), len(y) - 3]


# ---- files, and what is not there ----


@every
def test_a_saved_result_is_the_same(fit, tmp_path):
    result, new = fit(), fit().model.data.frame.head(3)
    result.save(tmp_path / "result")
    loaded = jm.load(tmp_path / "result")
    assert str(loaded.summary()) == str(result.summary())
    pd.testing.assert_series_equal(loaded.residual_sd(), result.residual_sd())
    if fit is not dispersion:
        pd.testing.assert_frame_equal(loaded.residual_corr(), result.residual_corr())
        new = {"data": new, "random_effects": True, "condition": "residual"}
        np.testing.assert_array_equal(loaded.predict(**new), result.predict(**new))
    np.testing.assert_array_equal(loaded.residuals("normalized"), result.residuals("normalized"))


def test_without_data_the_parameters_stay():
    result, new = dispersion(), data("sleepstudy").head(3)
    light = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data("sleepstudy"), dispersion="~ Days").fit(reml=False)
    light.remove_data()
    assert str(light.summary()) == str(result.summary())
    pd.testing.assert_frame_equal(light.tidy("ran_pars"), result.tidy("ran_pars"))
    pd.testing.assert_series_equal(light.predict(new, random_effects=True), result.predict(new, random_effects=True))
    for call in (light.residual_sd, light.residual_corr, light.residuals):
        with pytest.raises(DataError, match=r"the rows of the data were removed by remove_data\(\)"):
            call()


def test_independent_residuals_have_no_correlations():
    with pytest.raises(ModelError, match=r"residual_corr: the residuals of this model are independent; state a str"):
        dispersion().residual_corr()


NOT_THERE = "is there for independent residuals of one variance only, and this model has residual= or dispersion="


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda r: r.model.loglike(r.params_object), "the likelihood at given parameters (loglike, score, hessian)"),
        (lambda r: r.model.score(r.params_object), "the likelihood at given parameters (loglike, score, hessian)"),
        (lambda r: r.profile_re(0, "re"), "to hold parameters at their values (free=)"),
    ],
)
def test_what_is_not_there_is_refused_by_name(call, what):
    with pytest.raises(ModelError) as refused:
        call(sleep())
    assert str(refused.value).startswith(f"{what} {NOT_THERE}")


def test_what_needs_cross_products_alone_is_refused():
    result, message = sleep(), "this model has residual= or dispersion=, and what works with its cross-products alone"
    with jax.enable_x64(True):
        for call in (
            lambda: jm.moments(result.model.design),
            lambda: jm.profiled_deviance(result.theta, result.model.design),
            lambda: jm.estimate(result.model.design, theta=result.theta),
            lambda: result.model.fit_regularized(alpha=1.0),
            lambda: result.model.get_scale(result.fe_params, result.cov_re, result.vcomp),
        ):
            with pytest.raises(ModelError, match=message):
                call()
        with pytest.raises(DataError, match="rho is missing: the residuals of this design have 2 parameters"):
            jm.log_likelihood(result.fitted.fit.beta, result.theta, result.sigma, result.model.design)


# ---- tables and sentences ----


def test_tables_and_sentences_have_a_deviation_for_each_position():
    sd, rows = visits().residual_sd(), jm.table([visits()]).cells.iloc[:, 0]
    for visit, value in sd.items():
        assert rows["Random effects", f"SD residual (visit {visit})"] == f"{value:.3f}"
        assert f"{value:.2f} (visit {visit})" in visits().report()
    assert rows["Random effects", "Residuals"] == "us(visit | subject)"
    # There are no random effects that rows could share.
    assert not {"ICC", "R2 conditional"} & set(rows["Fit"].index)
    assert "conditional" not in visits().report()
    assert jm.table([dispersion()]).cells.iloc[:, 0]["Fit", "ICC"]


def test_prediction_intervals_need_what_the_dispersion_is_made_of():
    """A missing sex had the variance of the first one, and a table without it ended in a KeyError."""
    data = jm.datasets.load("orthodont")
    result = jm.mixedlm("distance ~ age + (1 | Subject)", data, dispersion="~ Sex").fit()
    rows = pd.DataFrame({"age": [8.0, 8.0, 8.0], "Sex": ["Male", None, "Female"]})
    found = result.predict(rows, interval="prediction")
    assert found["lower"].isna().tolist() == found["se"].isna().tolist() == [False, True, False]
    sds = result.residual_sd()
    variances = found["se"] ** 2 - result.predict(rows, interval="confidence")["se"] ** 2 - result.cov_re.iloc[0, 0]
    np.testing.assert_allclose(variances[[0, 2]], [sds["Male"] ** 2, sds["Female"] ** 2], rtol=1e-9)
    assert result.predict(rows.iloc[[1]], interval="prediction")["upper"].isna().all()
    with pytest.raises(jm.errors.DataError, match="dispersion='~ Sex' names the column 'Sex'"):
        result.predict(rows[["age"]], interval="prediction")


@pytest.mark.parametrize("sign", [1, -1])
def test_no_variance_counts_as_zero_for_the_origin_of_a_dispersion(sign):
    """sigma is that at zero, a thousand times that of the rows; variances were compared with it."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"g": np.repeat(np.arange(30), 20), "t": np.tile(np.linspace(0, 3, 20), 30)})
    frame["y"] = 2 * frame["t"] + 0.08 * rng.normal(size=30)[frame["g"]]
    frame["y"] += np.exp(0.8 * frame["t"]) * 0.2 * rng.normal(size=600)
    centred = frame["t"] - frame["t"].mean()
    near, far = (
        jm.mixedlm("y ~ t + (1 | g)", frame.assign(w=sign * centred + at * frame["t"].std()), dispersion="~ w").fit()
        for at in (0, 9.9)
    )
    assert far.converged
    assert not near.singular
    assert not far.singular
    assert far.objective == pytest.approx(near.objective, abs=1e-6)
    sd = [result.var_corr()["sdcor"].iloc[0] for result in (near, far)]
    assert sd[1] == pytest.approx(sd[0], rel=1e-4)
    assert 0.02 < sd[0] < 0.2
    np.testing.assert_allclose(far.test()["df"], near.test()["df"], rtol=1e-3)
    np.testing.assert_allclose(far.vcov_variance().iloc[0, 0], near.vcov_variance().iloc[0, 0], rtol=1e-3)
    many = far.model.fit_many(np.stack([frame["y"]]))
    assert not many.singular[0]
    assert many.var_corr["sd_Intercept|g"][0] == pytest.approx(sd[0], rel=1e-4)


def growing():
    """Residuals that grow with t, from 0 to 3, in 30 groups."""
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"g": np.repeat(np.arange(30), 20), "t": np.tile(np.linspace(0, 3, 20), 30)})
    frame["sex"], frame["visit"] = np.where(frame["g"] % 2, "f", "m"), np.tile(np.arange(20), 30)
    frame["y"] = 2 * frame["t"] + 0.5 * rng.normal(size=30)[frame["g"]]
    frame["y"] += np.exp(0.4 * frame["t"]) * 0.2 * rng.normal(size=600)
    return frame


def apart_from_sigma(result):
    """What does not depend on the origin of the dispersion's covariate, in one vector."""
    fit = result.fitted.fit
    parts = [fit.beta, np.sqrt(np.diag(fit.vcov_beta)), result.var_corr()["sdcor"][:1], result.test()["df"]]
    parts += [result.residual_sd(), result.simulate(1, key=1)[0], np.sqrt(result.vcov_variance().iloc[0, :1])]
    parts += [result.confint("wald").loc["logsd_w"], result.residuals("normalized")]
    return np.concatenate([*map(np.ravel, parts), [result.objective]])


@pytest.mark.parametrize("options", [{}, {"residual": "ar1(visit | g)"}, {"dispersion": "~ sex + w"}])
@pytest.mark.parametrize("origin", [-200, 29, 600])
def test_a_dispersion_is_the_same_from_any_origin(origin, options):
    frame, options = growing(), {"dispersion": "~ w"} | options
    near, far = (jm.mixedlm("y ~ t + (1 | g)", frame.assign(w=frame["t"] + at), **options).fit() for at in (0, origin))
    assert far.converged
    assert not far.singular
    assert far.objective == pytest.approx(near.objective, rel=1e-9)
    np.testing.assert_allclose(apart_from_sigma(far), apart_from_sigma(near), rtol=1e-5, atol=1e-6)
    slope = far.confint("wald").loc["logsd_w"].mean()
    assert np.log(far.sigma) + slope * origin == pytest.approx(np.log(near.sigma), abs=1e-5)
    assert far.scale == far.sigma**2
    many = far.model.fit_many(np.stack([frame["y"]]))
    assert np.log(many.sigma[0]) == pytest.approx(np.log(far.sigma), abs=1e-6)


def test_a_dispersion_far_from_its_origin_has_the_density_of_its_parameters():
    frame = growing().assign(w=lambda frame: frame["t"] + 29)
    result = jm.mixedlm("y ~ t + (1 | g)", frame, dispersion="~ w").fit(reml=False)
    sd, slope = result.var_corr()["sdcor"][0], result.confint("wald").loc["logsd_w"].mean()
    variances = result.sigma**2 * np.exp(2 * slope * frame["w"][:20])
    V = sd**2 + np.diag(variances)
    left = (frame["y"] - result.predict(frame)).to_numpy().reshape(30, 20)
    density = stats.multivariate_normal(np.zeros(20), V).logpdf(left).sum()
    assert result.llf == pytest.approx(density, abs=1e-7)


def test_what_is_told_of_sigma_at_zero_does_not_depend_on_where_columns_are_counted_from(monkeypatch):
    """Of a covariate near enough to zero for both ways: standard errors, profiles, draws and refits."""
    frame = growing().assign(w=lambda frame: frame["t"] + 3)
    tables = []
    for far in (10.0, 2.0):
        monkeypatch.setattr("jmixed.formulas.residuals.FAR", far)
        result = jm.mixedlm("y ~ t + (1 | g)", frame, dispersion="~ w").fit(reml=False)
        assert bool(np.any(result.model.spec.residual.origins)) == (far == 2)
        parts = [np.sqrt(np.diag(result.vcov_variance())), np.sqrt(np.diag(result.vcov_variance("theta")))[1:]]
        parts += [result.confint("profile"), result.bootstrap(5, key=1).replicates, result.glance()["sigma"]]
        tables.append(np.concatenate([np.ravel(part) for part in parts]))
    np.testing.assert_allclose(tables[1], tables[0], rtol=2e-5)


def test_a_sigma_at_zero_that_is_no_number_is_refused_with_an_origin_among_the_rows():
    frame = growing()
    far = frame.assign(w=frame["t"] + 2_460_000)
    model = jm.mixedlm("y ~ t + (1 | g)", far, dispersion="~ w")
    with pytest.raises(ModelError, match="where 'w' is zero, is no number: .* origin among the rows, as in I"):
        model.fit()
    assert np.isnan(model.fit_many(np.stack([frame["y"]])).sigma[0])
    near = jm.mixedlm("y ~ t + (1 | g)", far, dispersion="~ I(w - 2460000)").fit()
    many = model.fit_many(np.stack([frame["y"]]))
    assert many.objective[0] == pytest.approx(near.objective, rel=1e-9)
