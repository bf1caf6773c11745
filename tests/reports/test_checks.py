"""Checks of assumptions see what is wrong with data that were made so."""

import numpy as np
import pandas as pd
import performance
import pytest

import jmixed as jm
from jmixed.reports.checks import collinearity
from jmixed.reports.names import fixed_terms


def simulated(mean=lambda x: x, spread=lambda x: 1.0, groups=20, size=15):
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(groups), size)
    x = rng.uniform(0, 4, len(group))
    noise = rng.normal(size=len(group))
    y = mean(x) + rng.normal(size=groups)[group] + spread(x) * noise
    return pd.DataFrame({"y": y, "x": x, "z": x + rng.normal(0, 0.1, len(x)), "g": group})


def fitted(formula="y ~ x + (1 | g)", **how):
    return jm.mixedlm(formula, simulated(**how)).fit()


@pytest.mark.parametrize("name", [name for name in performance.CASES if performance.answers()[name]["vif"]])
def test_collinearity_as_performance(name):
    """Of terms with several columns ours are the roots that make them comparable, theirs as they come."""
    result, expected = performance.fit(name), performance.answers()[name]["vif"]
    columns = {term: len(places) for term, places in fixed_terms(result.fitted.spec).items()}
    mine = {term: factor ** columns[term] for term, factor in collinearity(result.fitted).items()}
    assert mine.keys() == expected.keys()
    for term, factor in expected.items():
        assert mine[term] == pytest.approx(factor, rel=2e-6)


@pytest.mark.parametrize("name", ["cbpp", "grouseticks_poisson", "ships_offset"])
def test_dispersion_as_performance(name):
    expected = performance.answers()[name]["dispersion_ratio"]
    assert performance.fit(name).check().frame.loc["dispersion", "number"] == pytest.approx(expected, rel=1e-7)


@pytest.fixture(scope="module")
def sound():
    return fitted()


def test_a_sound_model_passes(sound):
    told = sound.check()
    assert not told.frame["look"].any()
    assert list(told.frame.index[:4]) == ["linearity", "equal variances", "normal residuals", "normal Intercept by g"]
    assert "0 of 6 are worth a second look" in str(told)
    exact = sound.influence().cooks_distance
    assert told.influence.idxmax() == exact.idxmax()


@pytest.mark.parametrize(
    ("how", "name"),
    [
        ({"mean": lambda x: 2 * x**2}, "linearity"),
        ({"spread": lambda x: 0.2 + 0.8 * x}, "equal variances"),
    ],
)
def test_what_is_wrong_is_seen(how, name):
    told = fitted(**how).check()
    assert told.frame.loc[name, "look"]


def test_variance_inflation_is_that_of_the_regressors(sound):
    result = fitted("y ~ x + z + (1 | g)")
    V = result.cov_params().iloc[1:3, 1:3].to_numpy()
    r = V[0, 1] / np.sqrt(V[0, 0] * V[1, 1])
    told = result.check()
    np.testing.assert_allclose(told.collinearity, 1 / (1 - r**2))
    assert told.frame.loc["collinearity", "look"]
    assert sound.check().collinearity.empty


def test_overdispersed_counts_are_told():
    rng = np.random.default_rng(1)
    group = np.repeat(np.arange(25), 10)
    y = rng.negative_binomial(1, 0.2, len(group))
    result = jm.mixedglm("y ~ 1 + (1 | g)", {"y": y, "g": group}, family="poisson").fit()
    frame = result.check().frame
    assert frame.loc["dispersion", "look"]
    assert frame.loc["dispersion", "words"].endswith("overdispersion")
    scatter = np.std(np.asarray(result.residuals("quantile", key=0)))
    assert f"scatter {scatter:.2f} times" in frame.loc["normal residuals", "words"]


def without_each(result, codes):
    """Cook's distances by the definition: generalised least squares without each cluster, with the V of all rows."""
    spec, fit = result.fitted.spec, result.fitted.fit
    V = np.diag(fit.sigma**2 / spec.weights)
    if spec.residual is not None:
        R = result.residual_corr().to_numpy()
        place = spec.residual.places.astype(int)
        V = V * 0 + fit.sigma**2 * R[np.ix_(place, place)] * (codes[:, None] == codes)
    for term in spec.terms:
        of_rows = term.relationship.matrix() if term.relationship is not None else np.eye(len(term.levels))
        V = V + (term.Z @ fit.covariances[term.label] @ term.Z.T) * of_rows[np.ix_(term.codes, term.codes)]

    def estimate(rows):
        X, y, solve = spec.X[rows], (spec.y - spec.offset)[rows], np.linalg.solve
        information = X.T @ solve(V[np.ix_(rows, rows)], X)
        return solve(information, X.T @ solve(V[np.ix_(rows, rows)], y)), information

    beta, information = estimate(np.ones(len(codes), bool))
    moved = [beta - estimate(codes != code)[0] for code in range(codes.max() + 1)]
    return np.array([change @ information @ change / len(beta) for change in moved])


@pytest.mark.parametrize(
    ("name", "formula", "how", "factor"),
    [
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)", {}, "Subject"),
        ("sleepstudy", "Reaction ~ Days + (Days | Subject)", {"weights": "w", "offset": "w"}, "Subject"),
        ("sleepstudy", "Reaction ~ Days", {"residual": "ar1(Days | Subject)"}, "Subject"),
        ("pastes", "strength ~ 1 + (1 | batch / cask)", {}, "batch"),
        ("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)", {}, "sample"),
    ],
)
def test_distances_of_groups_are_those_without_each(name, formula, how, factor):
    data = jm.datasets.load(name)
    data["w"] = np.random.default_rng(0).uniform(0.5, 2, len(data))
    result = jm.mixedlm(formula, data, **how).fit()
    told = result.check().influence
    assert told.index.name == factor
    np.testing.assert_array_equal(told.index, np.unique(data[factor]))
    expected = without_each(result, np.unique(data[factor], return_inverse=True)[1])
    np.testing.assert_allclose(told, expected, rtol=1e-8, atol=1e-10 * expected.max())


@pytest.mark.parametrize("family", ["binomial", "poisson"])
def test_distances_of_groups_of_other_responses(family):
    """One step at the modes with the variances held: an approximation, within a third where refits have the largest."""
    data = simulated(groups=30)
    data["n"] = np.random.default_rng(1).poisson(np.exp(data["y"] / 4)) if family == "poisson" else data["y"] > 2
    result = jm.mixedglm("n ~ x + (1 | g)", data, family).fit()
    told, exact = result.check().influence, result.influence().cooks_distance
    assert told.idxmax() == exact.idxmax()
    assert np.corrcoef(told, exact)[0, 1] > 0.95
    assert told.max() == pytest.approx(exact.max(), rel=1 / 3)


def test_of_many_rows_few_responses_are_drawn(monkeypatch):
    """What a picture of many rows costs does not grow with their number times that of simulations."""
    data = simulated(groups=20)
    data["n"] = np.random.default_rng(1).poisson(np.exp(data["y"] / 4))
    result = jm.mixedglm("n ~ x + (1 | g)", data, "poisson").fit()
    asked = []
    drawn = type(result).residuals
    monkeypatch.setattr(type(result), "residuals", lambda *given: asked.append(given[3]) or drawn(*given))
    jm.plot.quantile_data(result)
    monkeypatch.setattr("jmixed.inference.simulation.NUMBERS", 20 * len(data))
    assert jm.plot.check_data(result)["responses"]["draw"].max() == 20
    monkeypatch.setattr("jmixed.inference.simulation.NUMBERS", 60 * len(data))
    jm.plot.quantile_data(result)
    jm.plot.quantile_data(result, simulations=99)
    assert asked == [250, 60, 99]


def test_a_model_without_coefficients_has_nothing_to_move():
    told = fitted("y ~ 0 + (1 | g)").check()
    assert told.influence.empty
    assert "influential groups" not in told.frame.index


def test_after_an_iterative_fit_residuals_are_not_corrected_for_their_leverage():
    """Its leverages are not there; the checks, and the pictures of residuals, are all the same."""
    rng = np.random.default_rng(2)
    a, b = np.repeat(np.arange(30), 40), np.tile(np.arange(40), 30)
    y = rng.normal(size=30)[a] + rng.normal(size=40)[b] + rng.normal(size=1200)
    model = jm.mixedlm("y ~ x + (1 | a) + (1 | b)", {"y": y, "x": rng.normal(size=1200), "a": a, "b": b})
    exact, rough = model.fit(), model.fit(crossed="iterative")
    sample = jm.plot.residuals_data(rough)["residual"]
    assert np.std(sample) == pytest.approx(np.std(rough.resid) / rough.sigma)
    assert np.corrcoef(sample, jm.plot.residuals_data(exact)["residual"])[0, 1] > 0.9999
    told = rough.check()
    assert told.influence.empty
    assert told.frame["look"].tolist() == exact.check().frame.drop("influential groups")["look"].tolist()
    assert len(jm.plot.check(rough).axes) == len(jm.plot.check(exact).axes) - 1
    assert len(jm.plot.qq_data(rough)) == 1200


def test_leverages_that_take_seconds_are_not_waited_for(monkeypatch):
    result = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin")).fit()
    np.testing.assert_allclose(jm.plot.residuals_data(result)["residual"], result.augment()[".std.resid"])
    monkeypatch.setattr("jmixed.reports.diagnostics.ENTRIES", 100)
    np.testing.assert_allclose(jm.plot.residuals_data(result)["residual"], result.resid / result.sigma)
