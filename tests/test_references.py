"""Every reference fit of lme4's, by the arguments and by bars, number by number, from the default start."""

import re
from contextlib import nullcontext

import numpy as np
import pytest
from references import as_in_patsy, case, names, small_sample

import jmixed as jm

# Crossed factors of thousands of levels: seconds to compile and to fit, and their layout is among the small ones too.
LARGE = {"insteval_crossed_reml", "insteval_crossed3_ml"}
CASES = [name for name in names() if name not in LARGE]
WORDS = [name for name in CASES if case(name)[0]["statsmodels"]]
# The same tuples wherever a test is parametrised, so that every fit is made once.
FITS = [(name, False) for name in CASES] + [(name, True) for name in WORDS]
by_bars = pytest.mark.parametrize("pair", FITS[: len(CASES)], ids=str, indirect=True, scope="module")


def fitted(name, words):
    """(reference, result): by statsmodels' arguments, or by bars."""
    reference, data = case(name)
    known = {"missing": "drop", "weights": reference["weights"], "offset": reference["offset"]}
    if words:
        reference, arguments = as_in_patsy(reference), dict(reference["statsmodels"])
        if arguments["groups"] == "__const__":
            arguments["groups"] = np.ones(len(data))
        model = jm.mixedlm(arguments.pop("formula"), data, **arguments, **known)
    else:
        model = jm.mixedlm(reference["lme4_formula_py"], data, **known)
    return reference, model.fit(reml=reference["method"] == "REML")


@pytest.fixture(params=FITS, ids=str, scope="module")
def pair(request):
    reference, _ = case(request.param[0])
    with pytest.warns(jm.SingularWarning) if reference["flags"]["singular"] else nullcontext():
        return fitted(*request.param)


def test_objective(pair):
    reference, result = pair
    value = reference["objective"]["value"]
    assert result.converged
    assert result.objective <= value + 1e-6 * max(1, abs(value) / 1000)
    assert result.objective >= value - 1e-4
    assert result.singular == reference["flags"]["singular"]


def test_fixed_effects(pair):
    reference, result = pair
    known = [row for row in reference["fixef"] if row["name_formulaic"] in result.fe_params.index]
    assert len(known) >= len(reference["fixef"]) - 1
    for row in known:
        assert abs(result.fe_params[row["name_formulaic"]] - row["estimate"]) < 1e-5 * row["se"]
        assert result.bse_fe[row["name_formulaic"]] == pytest.approx(row["se"], rel=1e-5)


def table(result):
    """Standard deviations and correlations as {(kind, rounded content)} per block, without names."""
    return result.var_corr().query("group != 'Residual'")


def test_variance_components(pair):
    reference, result = pair
    assert result.sigma == pytest.approx(reference["sigma"], rel=1e-5)
    rows = table(result)
    got = np.sort(rows.loc[rows.var2.isna(), "sdcor"].to_numpy(float))
    expected = np.sort([sd for block in reference["varcomp"] for sd in block["sd"]])
    assert len(got) == len(expected)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * reference["sigma"])
    got = np.sort(rows.loc[rows.var2.notna(), "sdcor"].to_numpy(float))
    expected = np.sort(
        [block["corr"][i][j] for block in reference["varcomp"] for i in range(len(block["sd"])) for j in range(i)]
    ).astype(float)
    sds = [sd / reference["sigma"] for block in reference["varcomp"] for sd in block["sd"]]
    if len(expected) and min(sds) > 1e-4:
        np.testing.assert_allclose(got, expected, atol=1e-4)


def test_fitted_values(pair):
    reference, result = pair
    rows = reference["rows"]
    used = result.model.spec.rows
    position = {int(row): k for k, row in enumerate(used)}
    at = [position[i] for i in rows["index0"]]
    fitted_values = np.asarray(result.fittedvalues)
    np.testing.assert_allclose(fitted_values[at], rows["fitted"], atol=1e-4 * reference["sigma"])
    np.testing.assert_allclose(np.asarray(result.resid)[at], rows["resid"], atol=1e-4 * reference["sigma"])
    assert np.sum(np.asarray(result.resid) ** 2) == pytest.approx(reference["fit_summary"]["ss_resid"], rel=1e-4)


def test_conditional_modes(pair):
    """Levels are matched by name, whatever the order in which the names of nested factors are joined."""
    reference, result = pair
    modes = result.ranef()
    for block in reference["ranef"]:
        wanted = {_key(level["level"]): level["mode"] for level in block["levels"]}
        found = [frame for frame in modes.values() if _labels(frame) >= set(wanted) and len(frame) == block["n_levels"]]
        assert found, (block["group"], {name: list(frame.index[:3]) for name, frame in modes.items()})
        distances = []
        for frame in found:
            rows = {_key(label): row for label, row in zip(frame.index, frame.to_numpy(), strict=True)}
            differences = [
                np.max(np.abs(np.sort(rows[label]) - np.sort(mode))) if len(mode) == frame.shape[1] else np.inf
                for label, mode in wanted.items()
            ]
            distances.append(max(differences))
        assert min(distances) < 1e-4 * reference["sigma"]


def _labels(frame):
    return {_key(label) for label in frame.index}


def _key(label):
    """The parts of a level's label in any order; the cake's replicates are r01, ... or, in its column recrep, 1, ..."""
    return frozenset(re.sub(r"^r0?(?=\d)", "", part) for part in str(label).split(":"))


def test_information_criteria(pair):
    reference, result = pair
    assert result.llf == pytest.approx(reference["loglik"], abs=1e-6 * max(1, abs(reference["loglik"]) / 1000))
    glance = result.glance().iloc[0]
    assert glance["AIC"] == pytest.approx(reference["aic"], abs=1e-4)
    assert glance["BIC"] == pytest.approx(reference["bic"], abs=1e-4)


# The other computation of this case has steps too long for a theta of 0.06: lmerTest's own agrees with autodiff of the
# deviance to eight digits, and with the numbers here.
BY_LMERTEST = {"chem97_nested_reml"}


def in_order(reference, result):
    """Positions of the result's coefficients in the reference's order; at most one has no known name."""
    known = [row["name_formulaic"] for row in reference["fixef"]]
    index = list(result.fe_params.index)
    spare = [k for k, name in enumerate(index) if name not in known]
    return [index.index(name) if name in index else spare.pop() for name in known]


def compare(table, rows, columns):
    """To 1e-4; of p-values below 1e-10, which multiply a difference in the degrees of freedom, the logarithm."""
    for column in columns:
        got, wanted = table[column].to_numpy(float), np.array([row[column] for row in rows], float)
        tiny = (wanted < 1e-10) & (wanted > 0) & (column == "p")
        np.testing.assert_allclose(got[~tiny], wanted[~tiny], rtol=1e-4)
        np.testing.assert_allclose(np.log(got[tiny]), np.log(wanted[tiny]), rtol=1e-4)


@by_bars
def test_satterthwaite(pair):
    reference, result = pair
    found = small_sample(reference["case"])
    exact = found["satterthwaite_exact"]
    rows = (exact if exact and reference["case"] not in BY_LMERTEST else found["satterthwaite"])["coef"]
    table = result.test().iloc[in_order(reference, result)]
    compare(table, rows, ("se", "df", "t", "p"))


@by_bars
def test_anova(pair):
    reference, result = pair
    found = small_sample(reference["case"])["satterthwaite"]
    for kind, rows in ((3, found["anova3"]), (1, found["anova1"])):
        table = result.anova(type=kind)
        assert len(table) == len(rows)
        compare(table, rows, ("num_df", "F"))
        # lmerTest's denominator of a joint test depends on how the hypothesis is written down; ours is the smallest.
        ratio = table.den_df.to_numpy() / [row["den_df"] for row in rows]
        assert np.all((ratio > 0.85) & (ratio < 1 + 1e-4))
        single = table.num_df.to_numpy() == 1
        compare(table[single], [row for row, alone in zip(rows, single, strict=True) if alone], ("den_df", "p"))


@by_bars
def test_kenward_roger(pair):
    reference, result = pair
    found = small_sample(reference["case"])["kenward_roger"]
    if found is None:
        # pbkrtest has none after ML, with weights, and for the larger data sets.
        assert reference["method"] == "ML" or reference["weights"] or reference["n_obs"] > 1000
        return
    order = in_order(reference, result)
    adjusted, wanted = result.vcov_kenward_roger.to_numpy()[np.ix_(order, order)], np.array(found["vcov_adj"])
    size = np.sqrt(np.diag(wanted))
    np.testing.assert_allclose(adjusted / np.outer(size, size), wanted / np.outer(size, size), atol=1e-6)
    table = result.test(ddf="kenward-roger").iloc[order]
    compare(table, found["coef"], ("se", "df", "t", "p"))
    compare(result.anova(ddf="kenward-roger"), found["anova3"], ("num_df", "den_df", "F", "p"))


@by_bars
def test_covariance_of_theta_and_sigma(pair):
    """lmerTest's, in the order of lme4's terms: the sorted diagonals are compared where the order may differ."""
    reference, result = pair
    covariance = result.vcov_variance("theta")
    wanted = np.array(small_sample(reference["case"])["satterthwaite"]["vcov_varpar"], float)
    if reference["flags"]["singular"]:
        assert covariance.iloc[-1, -1] == pytest.approx(wanted[-1, -1], rel=1e-4)
        return
    np.testing.assert_allclose(np.sort(np.diag(covariance)), np.sort(np.diag(wanted)), rtol=1e-3)
    if np.allclose(result.theta, reference["theta"], rtol=1e-4):
        size = np.sqrt(np.diag(wanted))
        np.testing.assert_allclose(covariance / np.outer(size, size), wanted / np.outer(size, size), atol=1e-3)
