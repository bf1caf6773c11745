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
