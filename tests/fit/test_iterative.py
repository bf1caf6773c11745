"""Crossed factors by conjugate gradients and probes: against lme4, against the exact way, and where it must say no."""

import numpy as np
import pandas as pd
import pytest
from references import case

import jmixed as jm
from jmixed.errors import Outcome
from jmixed.fit import iterative
from jmixed.layout.stack import crossing
from jmixed.likelihood import iterative as deviance


@pytest.fixture(scope="module")
def ratings():
    """Two crossed factors, one with a slope, with weights and an offset."""
    rng = np.random.default_rng(3)
    n, counts = 1500, (200, 60)
    user, item = (np.append(np.arange(count), rng.integers(0, count, n - count)) for count in counts)
    x = rng.normal(size=n)
    effects = [scale * rng.normal(size=count) for scale, count in ((0.8, 200), (0.4, 200), (0.6, 60))]
    y = 1 + 0.3 * x + effects[0][user] + effects[1][user] * x + effects[2][item] + rng.normal(size=n)
    data = pd.DataFrame({"y": y, "x": x, "user": user, "item": item, "w": rng.uniform(0.5, 2, n), "o": x**2})
    return data, jm.mixedlm("y ~ x + offset(o) + (x | user) + (1 | item)", data, weights="w")


@pytest.fixture(scope="module")
def both(ratings):
    return ratings[1].fit(crossed="exact"), ratings[1].fit(crossed="iterative")


def test_it_is_lme4s_fit_within_its_error(monkeypatch):
    """With a basis so small that probes have something to tell."""
    monkeypatch.setattr(deviance, "MOST_BASIS", 2)
    fit, data = case("carrots_crossed_ml")
    model = jm.mixedlm(fit["lme4_formula_py"], data, missing="drop")
    result = model.fit(reml=False, crossed="iterative", seed=1)
    known = result.monte_carlo
    assert result.converged
    assert result.optimizer.crossed == "iterative"
    assert 0 < known.criterion < 0.2
    assert abs(result.objective - fit["objective"]["value"]) < 3 * known.criterion
    # What lme4's optimiser leaves is about as large.
    np.testing.assert_array_less(np.abs(result.theta - fit["theta"]), 3 * known.theta + 1e-4)
    assert result.sigma == pytest.approx(fit["sigma"], rel=1e-5)
    fixed = {row["name_formulaic"]: (row["estimate"], row["se"]) for row in fit["fixef"]}
    found = np.column_stack([result.fe_params[list(fixed)], result.bse_fe[list(fixed)]])
    np.testing.assert_allclose(found, list(fixed.values()), rtol=1e-3, atol=1e-5)
    assert np.sum(result.resid**2) == pytest.approx(fit["fit_summary"]["ss_resid"], rel=1e-3)


def test_it_is_the_exact_fit_within_its_error(both):
    exact, result = both
    known = result.monte_carlo
    assert result.converged
    assert exact.monte_carlo is None
    assert exact.optimizer.crossed == "exact"
    assert abs(result.objective - exact.objective) < 3 * known.criterion
    np.testing.assert_array_less(np.abs(result.theta - exact.theta), 3 * known.theta + 1e-9)
    np.testing.assert_array_less(np.abs(result.fe_params - exact.fe_params), 3 * known.coefficients + 1e-9)
    assert abs(result.sigma - exact.sigma) < 3 * known.sigma + 1e-9
    for name, modes in result.ranef().items():
        np.testing.assert_allclose(modes, exact.ranef()[name], atol=1e-3)
    # Average information is not observed information.
    np.testing.assert_allclose(result.bse, exact.bse, rtol=0.05)
    np.testing.assert_allclose(result.test().se, exact.test().se, rtol=1e-4)
    np.testing.assert_allclose(result.test().df, exact.test().df, rtol=0.1)


def test_a_seed_tells_the_fit(ratings, both):
    again, other = (ratings[1].fit(crossed="iterative", seed=seed) for seed in (0, 1))
    assert again.objective == both[1].objective
    assert other.objective != again.objective
    assert abs(other.objective - again.objective) < 4 * again.monte_carlo.criterion
    assert other.monte_carlo.seed == 1


def test_a_variance_of_zero_is_an_optimum_too(ratings):
    # Of residuals of less than the level's means, no variance is positive.
    y = np.random.default_rng(0).normal(size=1500)
    for factor in ("user", "item"):
        y -= pd.Series(y).groupby(ratings[0][factor]).transform("mean").to_numpy()
    model = jm.mixedlm("y ~ x + (1 | user) + (1 | item)", ratings[0].assign(y=y))
    with pytest.warns(jm.SingularWarning):
        result = model.fit(crossed="iterative")
    assert result.converged
    assert result.optimizer.checked_beyond_zero
    np.testing.assert_array_equal(result.theta, 0)
    # Then it is least squares.
    X = model.exog
    rss = np.sum((y - X @ np.linalg.lstsq(X, y)[0]) ** 2)
    assert result.sigma == pytest.approx(np.sqrt(rss / 1498), rel=1e-6)


def test_auto_takes_it_where_the_dense_block_is_wide_or_does_not_fit(ratings, monkeypatch):
    data, model = ratings
    assert model.fit().optimizer.crossed == "exact"
    monkeypatch.setattr(iterative, "WIDE", 50)
    wide = jm.mixedlm("y ~ x + (x | user) + (1 | item)", data)
    result = wide.fit()
    assert result.optimizer.crossed == "iterative"
    # Nothing has asked for the places of levels, not even a refit.
    assert result.refit(data["y"].to_numpy() + 1.0).fe_params["Intercept"] == pytest.approx(
        result.fe_params["Intercept"] + 1, abs=1e-6
    )
    assert "design" not in vars(wide)
    assert wide.fit(crossed="exact").optimizer.crossed == "exact"
    monkeypatch.setattr(iterative, "WIDE", 3000)
    monkeypatch.setattr("jmixed.runtime.device.shortage", lambda needed: "about 9 GB, and the machine has 1")
    assert iterative.is_wide(model.spec) is False  # Of few columns it is not even looked at.
    assert crossing(model.spec).shortage is not None


@pytest.mark.parametrize("terms", ["(t || g)", "(1 | g) + (0 + t | g)"])
def test_terms_that_compete_end_at_the_lowest_minimum(terms):
    """The start by moments alone ends 60 too high: intercepts and slopes are the same effects here."""
    rng = np.random.default_rng(0)
    g, t, h = np.repeat(np.arange(60), 4), np.tile(np.arange(4.0), 60), rng.integers(0, 12, 240)
    y = 10 + t + 3 * rng.normal(size=60)[g] * (t - t.mean()) + rng.normal(size=12)[h] + rng.normal(size=240)
    model = jm.mixedlm(f"y ~ t + {terms} + (1 | h)", {"y": y, "t": t, "g": g, "h": h})
    exact, found = model.fit(crossed="exact"), model.fit(crossed="iterative")
    assert found.converged
    assert found.objective == pytest.approx(exact.objective, abs=4 * found.monte_carlo.criterion + 1e-6)
    np.testing.assert_allclose(found.theta, exact.theta, rtol=0.01)


def test_more_probes_are_taken_until_the_error_is_small(ratings, monkeypatch):
    few = ratings[1].fit(crossed="iterative", probes=2)
    monkeypatch.setattr(iterative, "SHARE", few.monte_carlo.share / 2)
    more = ratings[1].fit(crossed="iterative", probes=2)
    assert more.converged
    assert more.monte_carlo.probes > 4
    assert more.monte_carlo.share <= iterative.SHARE


def test_what_is_not_known_well_enough_has_not_converged(ratings, monkeypatch):
    monkeypatch.setattr(iterative, "SHARE", 1e-9)
    monkeypatch.setattr(iterative, "MOST_PROBES", 8)
    with pytest.warns(jm.ConvergenceWarning, match="MONTE_CARLO"):
        result = ratings[1].fit(crossed="iterative", probes=4)
    assert result.outcome == Outcome.MONTE_CARLO
    assert not result.converged
    monkeypatch.setattr(deviance, "STEPS", 3)
    with pytest.warns(jm.ConvergenceWarning, match="UNSOLVED"):
        result = ratings[1].fit(crossed="iterative")
    assert result.outcome == Outcome.UNSOLVED
    assert not result.converged


REFUSED = {
    "kenward-roger": lambda result: result.test(ddf="kenward-roger"),
    "the joint covariance": lambda result: result.vcov(full=True),
    "profile": lambda result: result.confint("profile"),
    "influence": lambda result: result.influence(),
    "robust_cov": lambda result: result.robust_cov(),
    "drop1": lambda result: result.drop1(),
    "augment": lambda result: result.augment(),
    "profile_re": lambda result: result.profile_re(0, "re"),
}


def test_conditional_covariances_of_very_many_levels_are_refused(ratings, monkeypatch):
    monkeypatch.setattr("jmixed.reports.fitted.MOST", 100)
    with pytest.raises(jm.ModelError, match="more than 100 random effects.*predict"):
        ratings[1].fit(crossed="iterative").ranef(cond_var=True)


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_the_dense_block_is_refused_by_name(both, name):
    with pytest.raises(jm.ModelError, match=rf"{name}.*crossed='exact'"):
        REFUSED[name](both[1])


def test_the_bootstrap_draws_and_refits_what_the_exact_one_does(both):
    exact, result = (fitted.bootstrap(6, key=3) for fitted in both)
    assert exact.converged.all()
    assert result.converged.all()
    spread = both[1].bse
    columns = list(both[0].fe_params.index)
    moved = (result.replicates[columns] - exact.replicates[columns]) / spread[columns]
    # Monte Carlo errors are at most a tenth of a standard error, and seldom half of that.
    assert moved.abs().to_numpy().max() < 0.1
    np.testing.assert_allclose(result.replicates, exact.replicates, rtol=0.02, atol=1e-3)


def test_the_refits_of_the_bootstrap_are_fits(ratings, both):
    result = both[1]
    y = result.simulate(1, 5)[0]
    again, replicates = result.refit(y), result.bootstrap(1, key=5).replicates
    np.testing.assert_allclose(replicates[list(again.fe_params.index)].iloc[0], again.fe_params, rtol=1e-9)
    assert replicates["sigma"].iloc[0] == pytest.approx(again.sigma, rel=1e-9)


def test_what_does_not_need_it_is_there(ratings, both, tmp_path):
    data, model = ratings
    exact, result = both
    new = data.head(4).assign(user=999)
    assert result.predict(data.head(4), random_effects=True).to_numpy() == pytest.approx(
        exact.predict(data.head(4), random_effects=True).to_numpy(), abs=1e-3
    )
    table = result.predict(new, interval="prediction")
    np.testing.assert_allclose(table, exact.predict(new, interval="prediction"), rtol=1e-3, atol=1e-4)
    table = result.predict(
        data[:5].assign(item=[1, 2, 999, 3, 4]), True, new_levels="population", interval="confidence"
    )
    same = exact.predict(data[:5].assign(item=[1, 2, 999, 3, 4]), True, new_levels="population", interval="confidence")
    np.testing.assert_allclose(table, same, rtol=1e-3, atol=1e-3)
    assert result.confint().shape == exact.confint().shape
    assert "iterative" in repr(result.optimizer)
    assert "Monte Carlo" in repr(result.monte_carlo)
    assert result.simulate(2, 1).shape == (2, 1500)
    result.save(tmp_path / "fit.jm")
    kept = jm.MixedLMResults.load(tmp_path / "fit.jm")
    assert kept.monte_carlo.criterion == result.monte_carlo.criterion
    pd.testing.assert_frame_equal(kept.test(), result.test())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"crossed": "sparse"}, "crossed is 'sparse'"),
        ({"probes": 1}, "probes is 1"),
        ({"probes": 2.5}, "probes is 2.5"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 0.5}, "seed is 0.5"),
        ({"crossed": "iterative", "do_cg": False}, "do_cg=False"),
    ],
)
def test_bad_words_are_refused(ratings, words, message):
    with pytest.raises(jm.ModelError, match=message):
        ratings[1].fit(**words)


@pytest.mark.parametrize(
    ("formula", "words", "reason"),
    [
        ("y ~ x + (x | user)", {}, "no crossed factors"),
        ("y ~ x + (1 | user / item)", {}, "no crossed factors"),
        ("y ~ x + (1 | user) + (1 | item)", {"dispersion": "~ x"}, "residuals have parameters"),
    ],
)
def test_models_that_it_is_not_for_are_told_why(ratings, formula, words, reason):
    with pytest.raises(jm.ModelError, match=rf"'iterative' is not for this model: .*{reason}"):
        jm.mixedlm(formula, ratings[0], **words).fit(crossed="iterative")


def test_batches_reach_it(ratings, both):
    data, _ = ratings
    model = jm.from_batches("y ~ x + offset(o) + (x | user) + (1 | item)", [data[:800], data[800:]], weights="w")
    result = model.fit(crossed="iterative")
    assert result.optimizer.crossed == "iterative"
    # Levels stand in another order, and so have other probes.
    assert result.objective == pytest.approx(both[0].objective, abs=3 * result.monte_carlo.criterion)
    np.testing.assert_allclose(result.fe_params, both[0].fe_params, atol=1e-5)


def test_roots_are_continuous_in_the_covariance():
    """Roots that turn with their eigenvectors would draw other probes at every step."""
    base, bends = np.eye(2), (np.diag([1.0, -1.0]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    roots = [iterative._root(base + 1e-9 * bend) for bend in bends]
    np.testing.assert_allclose(roots[0], roots[1], atol=1e-8)
    np.testing.assert_allclose(roots[0] @ roots[0].T, base, atol=1e-8)
