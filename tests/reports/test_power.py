"""Power by simulation: that of a t test where the design is balanced, by the noncentral t distribution."""

import json

import numpy as np
import pandas as pd
import pytest
from generalized import cows, wine
from references import ROOT
from scipy.stats import nct, norm
from scipy.stats import t as student

import jmixed as jm


@pytest.fixture(scope="module")
def pilot():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


def of_t_test(slope, deviation, sigma, subjects=18):
    """Each subject has a slope of its own, measured on ten days: their mean is tested."""
    variance = deviation**2 + sigma**2 / np.sum((np.arange(10) - 4.5) ** 2)
    shift, cut = slope / np.sqrt(variance / subjects), student.ppf(0.975, subjects - 1)
    return nct.sf(cut, subjects - 1, shift) + nct.cdf(-cut, subjects - 1, shift)


def test_power_is_that_of_a_t_test(pilot):
    deviation = pilot.var_corr().loc[1, "sdcor"]
    found = jm.power(pilot, n_simulations=2000, grid={"Days": [0.0, 4.0], "sd_Days|Subject": [deviation, 3]}, key=2)
    assert found.test == "Days"
    for row in found.frame.to_dict("records"):
        expected = of_t_test(row["Days"], row["sd_Days|Subject"], pilot.sigma)
        assert row["power"] == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / 2000))
        assert row["lower"] < row["power"] < row["upper"]
        assert row["df"] == pytest.approx(17, rel=0.02)
    assert found.plot().get_ylabel() == "power for Days"


def test_a_model_of_planned_data_needs_all_parameters(pilot):
    effects = {"Intercept": 250, "Days": 4, "sd_Intercept|Subject": 25, "sd_Days|Subject": 6, "sigma": 25}
    found = jm.power(pilot.model, effects, n_simulations=1000, test="Days", ddf="none").frame.loc[0]
    assert found["power"] > of_t_test(4, 6, 25) - 0.05
    assert np.isinf(found["df"])
    with pytest.raises(jm.ModelError, match="true values of Intercept, sd_Intercept|Subject.* are not known"):
        jm.power(pilot.model, {"Days": 4, "sigma": 2})


@pytest.fixture(scope="module")
def counted():
    """Counts of forty groups at ten values of x each: a planned study, whose response does not matter."""
    group, x = np.repeat(np.arange(40), 10), np.tile(np.arange(10) / 9, 40)
    data = pd.DataFrame({"y": np.arange(400) % 5, "x": x, "arm": np.where(group % 2, "b", "a"), "g": group})
    return jm.mixedglm("y ~ x + (1 | g)", data, "poisson")


def test_power_of_counts(counted):
    """Inside a group of counts the slope is that of a conditional Poisson regression, whose information is known."""
    truth = {"Intercept": 0.5, "sd_Intercept|g": 0.6}
    found = jm.power(counted, truth, n_simulations=400, grid={"x": [0.0, 0.4], "g": [20]}, test="x", key=3).frame
    assert not found["failed"].any()
    for row in found.to_dict("records"):
        x = np.arange(10) / 9
        mean = np.exp(0.5 + 0.6**2 / 2 + row["x"] * x)
        information = row["g"] * (np.sum(mean * x**2) - np.sum(mean * x) ** 2 / np.sum(mean))
        expected = norm.sf(1.96 - row["x"] * np.sqrt(information)) + norm.sf(1.96 + row["x"] * np.sqrt(information))
        assert row["power"] == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / 400) + 0.005)
        assert row["lower"] < row["power"] < row["upper"]
        assert np.isinf(row["df"])


def test_power_of_successes_is_that_of_fits_one_by_one():
    """Responses drawn by NumPy, and each fitted on its own."""
    group, x = np.repeat(np.arange(30), 6), np.tile([0.0, 1.0], 90)
    trials = 1 + group % 4
    data = pd.DataFrame({"hits": trials // 2, "misses": trials - trials // 2, "x": x, "g": group})
    model = jm.mixedglm("cbind(hits, misses) ~ x + (1 | g)", data, "binomial")
    truth = {"Intercept": -0.4, "x": 0.5, "sd_Intercept|g": 0.8}
    power = jm.power(model, truth, n_simulations=1000, key=4).frame.loc[0]
    rng, hits, fits = np.random.default_rng(9), 0, 80
    for _ in range(fits):
        eta = -0.4 + 0.5 * x + 0.8 * rng.normal(size=30)[group]
        result = model.with_response(rng.binomial(trials, 1 / (1 + np.exp(-eta)))).fit()
        hits += result.pvalues["x"] < 0.05
    p = power["power"]
    assert hits / fits == pytest.approx(p, abs=3.5 * np.sqrt(p * (1 - p) * (1 / fits + 1 / 1000)))


@pytest.mark.thorough
def test_a_family_with_parameters_of_its_own_needs_a_fit():
    pilot = wine()
    found = jm.power(pilot, n_simulations=50, grid={"temp[T.warm]": [0.0, 3.0]}, test="temp[T.warm]", key=2).frame
    assert found["power"][0] < 0.3
    assert found["power"][1] > 0.9
    assert found["failed"].max() < 5
    with pytest.raises(jm.ModelError, match="parameters of its own .threshold 1, .*; give the fit"):
        jm.power(pilot.model, {"temp[T.warm]": 1.0})
    with pytest.raises(jm.ModelError, match="'1.2' is taken from the fit"):
        jm.power(pilot, {"1|2": 0.5})


def test_other_data_state_the_same_model_of_counts(counted):
    frame = counted.spec.frame
    both = pd.concat([frame, frame.assign(g=frame["g"] + 40)], ignore_index=True)
    more = counted.with_data(both)
    assert (more.nobs, len(more.spec.terms[0].levels), more.family) == (800, 80, counted.family)


def test_more_groups_are_more_rows_of_the_same_kind(pilot):
    frame = pilot.model.data.frame
    both = pd.concat([frame, frame.assign(Subject=frame["Subject"].astype(str) + "b")], ignore_index=True)
    more = pilot.model.with_data(both)
    assert more.nobs == 360
    assert more.formula == pilot.model.formula
    assert len(more.spec.terms[0].levels) == 36


@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
@pytest.mark.parametrize("arms", ["blocks", "turns"])
def test_arms_keep_their_shares(arms):
    """Two arms of subjects, the first half and the second or every other one: a t test of subjects' means.

    Any number of subjects has them as the planned data have: one is a fraction of these, one a multiple and a half.
    """
    subject = np.repeat(np.arange(20), 5)
    treated = subject >= 10 if arms == "blocks" else subject % 2 == 1
    data = pd.DataFrame({"subject": subject, "arm": np.where(treated, "drug", "placebo"), "y": np.arange(100) % 7})
    truth = {"Intercept": 0, "arm[T.placebo]": 0.9, "sd_Intercept|subject": 0.8, "sigma": 1}
    model = jm.mixedlm("y ~ arm + (1 | subject)", data)
    found = jm.power(model, truth, n_simulations=1000, grid={"subject": [10, 30]}, key=5).frame
    for row in found.to_dict("records"):
        n = int(row["subject"])
        shift, cut = 0.9 / np.sqrt((0.8**2 + 1 / 5) * 4 / n), student.ppf(0.975, n - 2)
        expected = nct.sf(cut, n - 2, shift) + nct.cdf(-cut, n - 2, shift)
        assert row["power"] == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / 1000) + 0.01)
        assert row["df"] == pytest.approx(n - 2, rel=0.02)
    dosed = data.assign(arm=np.where(subject < 19, "drug", "placebo"))
    refused = pytest.raises(jm.DataError, match=r"rows of 3 levels of subject do not determine arm")
    with pytest.warns(jm.RankWarning, match="single level"), refused:
        jm.power(jm.mixedlm("y ~ arm + (1 | subject)", dosed), truth, grid={"subject": [3]})


@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
def test_power_of_overdispersed_counts_is_that_of_fits_one_by_one():
    """More subjects than the pilot has; responses drawn by NumPy, and each fitted on its own."""

    def planned(rng, subjects, size):
        subject, x = np.repeat(np.arange(subjects), 8), np.tile([0, 1], 4 * subjects)
        mean = np.exp(1 + 0.35 * x + rng.normal(0, 0.4, subjects)[subject])
        return pd.DataFrame({"y": rng.negative_binomial(size, size / (size + mean)), "x": x, "subject": subject})

    rng = np.random.default_rng(6)
    pilot = jm.mixedglm("y ~ x + (1 | subject)", planned(rng, 12, 2), "negativebinomial").fit()
    size, truth = float(pilot.dispersion), {"Intercept": 1, "x": 0.35, "sd_Intercept|subject": 0.4}
    power = jm.power(pilot, truth, n_simulations=400, grid={"subject": [25]}, key=7).frame.loc[0]
    model, hits, fits = pilot.model.with_data(planned(rng, 25, size)), 0, 60
    for _ in range(fits):
        hits += model.with_response(planned(rng, 25, size)["y"]).fit().pvalues["x"] < 0.05
    p = power["power"]
    assert 0.1 < p < 0.95
    assert hits / fits == pytest.approx(p, abs=3.5 * np.sqrt(p * (1 - p) * (1 / fits + 1 / 400)))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"effects": {"Night": 3}}, jm.ModelError, "'Night' is no parameter of the model"),
        ({"test": "Night"}, jm.ModelError, "test='Night' is no coefficient"),
        ({"grid": {"Subject": [1]}}, jm.DataError, "cannot have 1 levels"),
        ({"effects": {"cor_Days.Intercept|Subject": 2}, "n_simulations": 1}, jm.ModelError, "those of no covariance"),
        ({"effects": {"Days": [3.0]}}, jm.DataError, "true value of 'Days' is"),
        ({"n_simulations": 0}, jm.ModelError, "n_simulations is 0"),
    ],
)
def test_bad_input_is_refused(pilot, arguments, error, message):
    with pytest.raises(error, match=message):
        jm.power(pilot, **arguments)


def test_power_as_simr():
    """Two examples by lme4's simulate and lmerTest's tests, as simr's powerSim has them, within Monte Carlo errors."""
    expected = json.loads((ROOT / "power" / "references.json").read_text(encoding="utf-8"))
    sleep = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    cases = {"sleepstudy": (sleep, {"Days": 4.0}, "Subject"), "cbpp": (cows(), {"period[T.p4]": -0.8}, "herd")}
    for name, (fit, effects, factor) in cases.items():
        levels = [int(number) for number in expected[name]]
        found = jm.power(fit, effects, 1000, {factor: levels}, key=4).frame
        for power, theirs in zip(found["power"], expected[name].values(), strict=True):
            share = theirs["found"] / theirs["simulations"]
            error = np.sqrt(share * (1 - share) * (1 / theirs["simulations"] + 1 / 1000))
            assert power == pytest.approx(share, abs=3.5 * error + 0.005)
