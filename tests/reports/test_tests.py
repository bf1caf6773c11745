"""Tests of coefficients and terms as people call them; the numbers against R are in test_references."""

import dataclasses
import functools
import warnings

import numpy as np
import pandas as pd
import pytest
from scipy import stats

import jmixed as jm
from jmixed.fit.information import inverse_information


@functools.cache
def sleep(reml=True):
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit(reml=reml)


@functools.cache
def unbalanced():
    """Two factors with an empty cell, a covariate that varies between groups: the rows that R was given."""
    r = np.random.default_rng(5)
    n = 150
    A, B = r.choice(list("abc"), n, p=[0.5, 0.3, 0.2]), r.choice(list("uvw"), n, p=[0.2, 0.3, 0.5])
    data = pd.DataFrame({"A": A, "B": B, "x": r.normal(size=n) + 3, "g": r.choice(list("0123456789"), n)})
    level = data.g.astype(int)
    data["y"] = r.normal(size=n) + r.normal(size=10)[level] + 0.3 * data.x * (data.A == "b") + 0.5 * (data.B == "v")
    data["y"] += 0.2 * r.normal(size=10)[level] * data.x
    return data[~((data.A == "c") & (data.B == "u"))]


def test_every_coefficient_by_default():
    result = sleep()
    table = result.test()
    assert list(table.columns) == ["estimate", "se", "df", "t", "p"]
    assert list(table.index) == ["Intercept", "Days"]
    np.testing.assert_allclose(table.se, result.bse_fe)
    np.testing.assert_allclose(table.p, 2 * stats.t.sf(np.abs(table.t), table.df))


@pytest.mark.parametrize(
    ("L", "label"),
    [
        ("Days = 10", "Days = 10"),
        ({"Days": 10}, "Days = 10"),
        (([0, 1], 10), "Days = 10"),
        ((np.array([[0.0, 1.0]]), [10.0]), "Days = 10"),
        (["Days = 10"], "Days = 10"),
        ({"slope": "Days = 10"}, "slope"),
        ({"slope": ([0, 1], 10)}, "slope"),
    ],
)
def test_one_equation_in_any_words(L, label):
    table = sleep().test(L)
    row = sleep().test().loc["Days"]
    assert list(table.index) == [label]
    assert table.t.iloc[0] == pytest.approx((row.estimate - 10) / row.se)
    assert table.df.iloc[0] == pytest.approx(row.df)


@pytest.mark.parametrize("L", ["Intercept = 250, Days = 10", {"Intercept": 250, "Days": 10}, (np.eye(2), [250, 10])])
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual", "none"])
def test_joint_tests(L, ddf):
    result = sleep()
    table = result.test(L, ddf=ddf)
    assert list(table.columns) == ["F", "num_df", "den_df", "p"]
    assert list(table.index) == ["Intercept = 250, Days = 10"]
    # Balanced data: both small-sample methods have 17 denominators for one contrast, and Wald's F but for its scale.
    wald = result.wald_test("Intercept = 250, Days = 10").statistic / 2
    row = table.iloc[0]
    scale = {"kenward-roger": 16 / 17}.get(ddf, 1)
    denominator = {"satterthwaite": 17, "kenward-roger": 16, "residual": 178, "none": np.inf}[ddf]
    assert (row.F, row.num_df, row.den_df) == pytest.approx((scale * wald, 2, denominator), rel=1e-4)
    p = stats.chi2.sf(2 * row.F, 2) if ddf == "none" else stats.f.sf(row.F, 2, row.den_df)
    assert row.p == pytest.approx(p)


@pytest.mark.parametrize("workers", [2, 6])
def test_contrasts_need_more_groups_than_there_are(workers):
    """Two contrasts that vary by worker are Hotelling's T^2, which two workers do not have: it was F = 0 with p = 1."""
    data = jm.datasets.load("machines")
    data = data[data["Worker"].isin(sorted(data["Worker"].unique())[-workers:])]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        row = jm.mixedlm("score ~ Machine + (Machine | Worker)", data).fit().anova(ddf="kenward-roger").loc["Machine"]
    if workers == 2:
        assert row["num_df"] == 2
        assert row.drop("num_df").isna().all()
        return
    means = data.pivot_table(index="Worker", columns="Machine", values="score", observed=True).to_numpy()
    contrasts = means[:, 1:] - means[:, :1]
    T2 = workers * contrasts.mean(0) @ np.linalg.solve(np.cov(contrasts.T), contrasts.mean(0))
    assert row["F"] == pytest.approx(T2 * (workers - 2) / (workers - 1) / 2, rel=1e-6)
    assert row["den_df"] == pytest.approx(workers - 2, rel=1e-6)


def test_several_tests_of_different_sizes_are_F_tests():
    table = sleep().test({"both": np.eye(2), "slope": [0, 1]})
    assert list(table.num_df) == [2, 1]
    assert table.F["slope"] == pytest.approx(sleep().test().t["Days"] ** 2)
    table = sleep().test(["Days", "Intercept - Days = 3"])
    assert list(table.index) == ["Days", "Intercept - Days = 3"]
    assert "t" in table
    assert sleep().test([1, -0.5]).index[0] == "Intercept -0.5*Days = 0"


def test_redundant_equations_count_once():
    table = sleep().test(np.array([[0.0, 1.0], [0.0, 2.0]]))
    assert table.num_df.iloc[0] == 1
    assert table.F.iloc[0] == pytest.approx(sleep().test().t["Days"] ** 2)


def test_normal_and_residual_tests():
    normal, residual = sleep().test(ddf="none"), sleep().test(ddf="residual")
    assert np.all(np.isinf(normal.df))
    np.testing.assert_allclose(normal.p, sleep().pvalues[:2], rtol=1e-12)
    assert np.all(residual.df == 178)


def test_what_cannot_be_tested_is_said():
    with pytest.raises(jm.DataError, match=r"2 columns.*\(3,\)"):
        sleep().test([1, 0, 0])
    with pytest.raises(jm.DataError, match="2 columns"):
        sleep().test(np.eye(3))
    with pytest.raises(jm.DataError, match="not all zero"):
        sleep().test([0, 0])
    with pytest.raises(jm.DataError, match="no array of numbers"):
        sleep().test([[1, 0], [1]])
    with pytest.raises(jm.FormulaError, match="'Dayz' is not a coefficient"):
        sleep().test("Dayz = 0")
    with pytest.raises(jm.ModelError, match="'kenward'; it must be one of 'satterthwaite'"):
        sleep().test(ddf="kenward")
    with pytest.raises(jm.ModelError, match=r"this is an ML fit: refit with fit\(reml=True\)"):
        sleep(reml=False).test(ddf="kenward-roger")
    with pytest.raises(jm.ModelError, match=r"type is 4; it must be 3 \(marginal\), 2 or 1"):
        sleep().anova(type=4)
    with pytest.raises(jm.ModelError, match="'sd' or 'theta'"):
        sleep().vcov_variance("psi")


# lmerTest 3.1.3 on the same rows: F and den_df of each term, types I, II and III; pbkrtest 0.5.2, type III.
UNBALANCED = {
    (1, "satterthwaite"): (
        [10.2544631799, 3.4047971001, 1.5359564824, 0.9267856640, 0.6165133474],
        [121.8728682, 121.2279273, 119.7003932, 120.9778028, 114.9928162],
    ),
    (2, "satterthwaite"): (
        [1.1865887513, 3.5239941883, 1.4222989995, 0.9214072555, 0.6165133474],
        [111.0853482, 121.2871907, 119.4202991, 120.9272997, 119.7933060],
    ),
    (3, "satterthwaite"): (
        [1.4616119045, 4.1797555822, 1.4069116024, 0.9214072555, 0.6165133474],
        [117.3167049, 121.6188389, 121.7062751, 120.9272997, 119.7933060],
    ),
    (3, "kenward-roger"): (
        [1.1641639985, 3.9823755019, 1.1957312183, 0.8719967642, 0.4526520148],
        [56.055608458, 121.050212804, 7.945657973, 120.657185807, 62.561141960],
    ),
}


def test_anova_does_not_depend_on_the_coding():
    coded = "y ~ C(A, contr.sum)*C(B, contr.helmert) + C(A, contr.sum)*x + (1 + x | g)"
    results = []
    for formula in ("y ~ A*B + x*A + (1 + x | g)", coded):
        with pytest.warns(jm.RankWarning), pytest.warns(jm.SingularWarning):
            results.append(jm.mixedlm(formula, unbalanced()).fit())
    for (kind, ddf), (F, den_df) in UNBALANCED.items():
        first, second = (result.anova(ddf, type=kind) for result in results)
        np.testing.assert_allclose(first, second, rtol=1e-6)
        assert list(first.num_df) == [2, 2, 1, 3, 2]
        # lmer stops where its objective is flat to nine digits.
        np.testing.assert_allclose(first.F, F, rtol=2e-6)
        same = (first.num_df == 1) | (ddf == "kenward-roger")
        np.testing.assert_allclose(first.den_df[same], np.array(den_df)[same], rtol=2e-6)
        # Of joint tests lmerTest's depends on the rows of the contrasts: x:A is one hypothesis in all three types.
        assert np.all(first.den_df <= np.array(den_df) * (1 + 2e-6))
        np.testing.assert_allclose(first.p, stats.f.sf(first.F, first.num_df, first.den_df))
        np.testing.assert_allclose(first.mean_sq, first.F * results[0].scale)
        np.testing.assert_allclose(first.sum_sq, first.mean_sq * first.num_df)
    assert np.ptp([results[0].anova(type=kind).den_df.iloc[-1] for kind in (1, 2, 3)]) < 1e-6


@functools.cache
def machines():
    """Unbalanced, and one of the machines differs between workers."""
    data = jm.datasets.load("machines").iloc[[k for k in range(54) if k not in (0, 1, 7, 20, 33, 34, 35, 50)]]
    data = data.assign(third=(data.Machine == "C") * 1.0)
    return jm.mixedlm("score ~ Machine + (third || Worker)", data).fit()


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
@pytest.mark.parametrize("basis", [[[1, -1], [0, 1]], [[1, 0], [0, 1e6]], [[1, 1], [1, 1 + 1e-3]]])
def test_one_hypothesis_has_one_test_in_any_basis(ddf, basis):
    result = machines()
    L = np.eye(3)[1:]
    wanted = result.test(L, ddf=ddf).iloc[0]
    np.testing.assert_allclose(result.test(np.array(basis) @ L, ddf=ddf).iloc[0], wanted, rtol=1e-5)
    # The same hypothesis with a redundant equation.
    three = np.vstack([np.array(basis) @ L, [[0, 0.5, -2]]])
    np.testing.assert_allclose(result.test(three, ddf=ddf).iloc[0], wanted, rtol=1e-5)
    for kind in (1, 2, 3):
        np.testing.assert_allclose(
            result.anova(ddf, type=kind).loc["Machine", ["F", "den_df"]], wanted[["F", "den_df"]]
        )


def test_the_denominator_of_a_joint_test_is_the_smallest_of_all_bases():
    """By all rotations of two uncorrelated contrasts of equal variance, each with its own degrees of freedom."""
    result = machines()
    root = np.linalg.inv(np.linalg.cholesky(result.cov_params().iloc[1:3, 1:3]))
    angle = np.linspace(0, np.pi / 2, 401)
    first = np.column_stack([np.zeros(401), np.column_stack([np.cos(angle), np.sin(angle)]) @ root])
    second = np.column_stack([np.zeros(401), np.column_stack([-np.sin(angle), np.cos(angle)]) @ root])
    pairs = np.array([result.test({str(k): row for k, row in enumerate(rows)}).df for rows in (first, second)])
    E = np.sum(pairs / (pairs - 2), axis=0)
    harmonic, denominators = np.sum(1 / pairs, axis=0), 2 * E / (E - 2)
    assert result.anova().den_df["Machine"] == pytest.approx(denominators[np.argmax(harmonic)], rel=1e-5)
    assert np.ptp(denominators) > 1


def test_anova_accepts_roman_types_and_names_terms():
    table = sleep().anova(type="III")
    assert list(table.index) == ["Days"]
    assert table.F["Days"] == pytest.approx(sleep().test().t["Days"] ** 2)
    pd.testing.assert_frame_equal(table, sleep().anova(type=1))


def test_a_model_of_arrays_has_a_term_for_each_column():
    data = jm.datasets.load("sleepstudy")
    exog = np.column_stack([np.ones(len(data)), data.Days, np.tile([0.0, 1.0], 90)])
    result = jm.MixedLM(data.Reaction.to_numpy(), exog, data.Subject.to_numpy()).fit()
    table = result.anova()
    assert len(table) == 2
    np.testing.assert_allclose(table.F, result.test().t.iloc[1:] ** 2)


def test_a_coding_with_fewer_columns_is_tested_as_it_is():
    data = jm.datasets.load("sleepstudy")
    result = jm.mixedlm("Reaction ~ C(Days, contr.poly) + (1 | Subject)", data, drop_cols=["C(Days, contr.poly)[^9]"])
    found = result.fit()
    table = found.anova()
    assert list(table.num_df) == [found.k_fe - 1]


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger"])
def test_degrees_of_freedom_have_no_units(ddf):
    """A calendar year as predictor and random slope, and one in millionths."""
    data = jm.datasets.load("sleepstudy").assign(year=lambda d: d.Days + 2000.0, tiny=lambda d: d.Days * 1e-6)
    wanted = sleep().test(ddf=ddf).loc["Days"]
    for name, scale in {"year": 1, "tiny": 1e6}.items():
        row = jm.mixedlm(f"Reaction ~ {name} + ({name} | Subject)", data).fit().test(ddf=ddf).loc[name]
        np.testing.assert_allclose(row[["estimate", "se"]] / scale, wanted[["estimate", "se"]], rtol=1e-6)
        np.testing.assert_allclose(row[["df", "t", "p"]], wanted[["df", "t", "p"]], rtol=1e-6)


def test_a_coefficient_that_a_penalty_removed_is_not_tested():
    model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    result = model.fit_regularized(alpha=[0, 1e4])
    for ddf in ("satterthwaite", "kenward-roger", "none"):
        table = result.test(ddf=ddf)
        assert table.estimate["Days"] == 0
        assert np.isnan(table.p["Days"])
        assert table.se["Intercept"] > 0
        assert np.isnan(result.anova(ddf).F["Days"])


def test_held_parameters_are_known():
    """A held coefficient is not tested; a held correlation carries no uncertainty, and is no direction of V."""
    data = jm.datasets.load("sleepstudy")
    model = jm.mixedlm("Reaction ~ Days", data, groups="Subject", re_formula="~Days")
    free = jm.MixedLMParams.from_components(fe_params=np.ones(2), cov_re=np.eye(2))
    held = model.fit(free=free)
    separate = jm.mixedlm("Reaction ~ Days + (Days || Subject)", data).fit()
    for ddf in ("satterthwaite", "kenward-roger"):
        np.testing.assert_allclose(held.test(ddf=ddf), separate.test(ddf=ddf), rtol=1e-6)
    free = jm.MixedLMParams.from_components(fe_params=np.array([0, 1]), cov_re=np.ones((2, 2)))
    start = jm.MixedLMParams.from_components(fe_params=np.array([250.0, 0]), cov_re=np.eye(2))
    held = model.fit(free=free, start_params=start)
    shifted = jm.mixedlm("I(Reaction - 250) ~ 0 + Days + (Days | Subject)", data).fit()
    for ddf in ("satterthwaite", "kenward-roger"):
        table = held.test(ddf=ddf)
        np.testing.assert_allclose(table.loc["Days"], shifted.test(ddf=ddf).loc["Days"], rtol=1e-6)
        assert table.se["Intercept"] == 0
        assert np.isnan(table.t["Intercept"])


def test_without_rows_only_what_needs_none():
    result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    result.remove_data()
    assert len(result.test(ddf="none")) == 2
    with pytest.raises(jm.DataError, match="removed by remove_data"):
        result.test()
    with pytest.raises(jm.DataError, match="removed by remove_data"):
        result.anova()


def test_uncertainty_of_variance_parameters_is_labelled():
    table = sleep().vcov_variance()
    assert list(table.index) == ["sd_Intercept|Subject", "cor_Days.Intercept|Subject", "sd_Days|Subject", "sigma"]
    assert list(table.index) == list(sleep().confint().index[2:])
    theta = sleep().vcov_variance("theta")
    assert list(theta.index) == [*sleep().model.theta_names, "sigma"]
    np.testing.assert_allclose(theta.iloc[:3, :3], sleep().vcov_theta, rtol=1e-6)


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
def test_summary_with_degrees_of_freedom(ddf):
    result = sleep()
    summary, tests = result.summary(ddf=ddf), result.test(ddf=ddf)
    table = summary.tables[1]
    assert list(table.columns) == ["Coef.", "Std.Err.", "df", "t", "P>|t|", "[0.025", "0.975]"]
    half = stats.t.ppf(0.975, tests.df["Days"]) * tests.se["Days"]
    estimate = tests.estimate["Days"]
    assert table.loc["Days"].tolist() == [
        f"{estimate:.3f}",
        f"{tests.se['Days']:.3f}",
        f"{tests.df['Days']:.1f}",
        f"{tests.t['Days']:.3f}",
        f"{tests.p['Days']:.3f}",
        f"{estimate - half:.3f}",
        f"{estimate + half:.3f}",
    ]
    words = {"satterthwaite": "Satterthwaite", "kenward-roger": "Kenward", "residual": "n - p"}
    assert words[ddf] in summary.notes[0]
    assert "P>|t|" in summary.as_text()
    assert "df" in summary.as_latex()


def test_summary_stays_normal_by_default():
    assert "normal approximation" in sleep().summary().notes[0]
    assert "z" in sleep().summary().tables[1]
    with pytest.raises(jm.ModelError, match="ddf is 'z'"):
        sleep().summary(ddf="z")


@pytest.mark.parametrize("kind", [2, 3])
@pytest.mark.parametrize(
    ("without", "with_one"),
    [("0 + A*B", "A*B"), ("0 + B*A + x", "B*A + x"), ("0 + A + B + x", "A + B + x"), ("0 + A*B*x", "A*B*x")],
)
def test_anova_without_intercept_is_that_of_the_same_model_with_one(kind, without, with_one):
    """Two categories: either's columns span the constant, so that the other's have no more than contrasts to say."""
    data = unbalanced()
    data = data.assign(y=data.y + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.RankWarning)
        fits = [jm.mixedlm(f"y ~ {text} + (1 | g)", data).fit() for text in (without, with_one)]
    assert fits[0].objective == pytest.approx(fits[1].objective, rel=1e-9)
    first, second = (fit.anova(type=kind) for fit in fits)
    assert list(first.index) == list(second.index)
    np.testing.assert_allclose(first[["num_df", "den_df", "F"]], second[["num_df", "den_df", "F"]], rtol=1e-6)


def test_a_category_alone_without_intercept_has_all_its_levels_tested():
    data = jm.datasets.load("machines")
    result = jm.mixedlm("score ~ 0 + Machine + (1 | Worker)", data).fit()
    for kind in (1, 2, 3):
        table = result.anova(type=kind)
        assert table.num_df["Machine"] == 3
        wald = result.wald_test(np.eye(3)).statistic / 3
        assert table.F["Machine"] == pytest.approx(float(wald), rel=1e-9)


@pytest.mark.parametrize("outcome", [outcome for outcome in jm.Outcome if not outcome.ok])
@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
def test_a_fit_without_an_optimum_has_no_degrees_of_freedom(outcome, ddf):
    fitted = sleep().fitted
    result = jm.MixedLMResults(fitted.model, dataclasses.replace(fitted.fit, outcome=outcome), reml=True)
    for call in (result.test, result.anova, result.summary):
        with pytest.raises(jm.ModelError, match=f"no certified optimum .{outcome.name}.*ddf='none'"):
            call(ddf=ddf)
    with pytest.raises(jm.ModelError, match=f"robust_test: .* no certified optimum .{outcome.name}"):
        result.robust_test()
    assert result.test(ddf="none").se["Days"] > 0


def test_a_flat_fit_is_not_tested():
    """A slope within groups that the fixed effects know already: its variance is not determined."""
    data = jm.datasets.load("sleepstudy").assign(copy=lambda d: d.Subject)
    with pytest.warns(jm.ConvergenceWarning, match="FLAT"):
        result = jm.mixedlm("Reaction ~ Days + (1 | Subject) + (1 | copy)", data).fit()
    for call in (result.test, result.anova):
        with pytest.raises(jm.ModelError, match="FLAT"):
            call(ddf="kenward-roger")
    with pytest.raises(jm.ModelError, match="FLAT"):
        _ = result.vcov_kenward_roger
    assert result.summary().as_text()


def test_a_component_of_several_columns_without_variance_counts_as_known():
    """Beside one that has variance: tests are those of the model without it."""
    r = np.random.default_rng(0)
    frame = pd.DataFrame({"g": np.repeat(np.arange(20), 12), "wave": np.tile(np.arange(4), 60)})
    frame["x"] = r.normal(size=240)
    frame["y"] = r.normal(size=20)[frame.g] + r.normal(size=240)
    # Waves that differ less than by chance.
    frame["y"] -= 0.9 * frame.groupby(["g", "wave"]).y.transform("mean") - 0.9 * frame.groupby("g").y.transform("mean")
    words = {"groups": "g", "re_formula": "1"}
    with pytest.warns(jm.SingularWarning):
        result = jm.mixedlm("y ~ x", frame, vc_formula={"wave": "0 + C(wave)"}, **words).fit()
    alone = jm.mixedlm("y ~ x", frame, **words).fit()
    np.testing.assert_allclose(result.anova(), alone.anova(), rtol=1e-5)
    errors = np.sqrt(np.diag(result.vcov_variance()))
    np.testing.assert_allclose(errors[[0, 2]], np.sqrt(np.diag(alone.vcov_variance())), rtol=1e-5)
    assert np.isnan(errors[1])


def test_information_that_is_not_finite_has_no_inverse():
    """LAPACK fails on it in some sizes; a result has nan."""
    for size in (1, 2, 4):
        unknown = np.full((size, size), np.nan)
        np.testing.assert_array_equal(inverse_information(unknown), unknown)


def test_an_inverse_covariance_that_is_singular_is_refused():
    with pytest.raises(jm.DataError, match="invcov is singular"):
        sleep().wald_test(np.eye(2), invcov=np.ones((2, 2)))
