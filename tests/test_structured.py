"""Fits with structured covariances of random effects: against glmmTMB, dense densities, and the models they contain."""

import json

import numpy as np
import pandas as pd
import pytest
import references
from scipy.optimize import minimize

import jmixed as jm
from jmixed.errors import ModelError

REFERENCES = json.loads((references.ROOT / "structured.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", REFERENCES)
def test_fits_are_those_of_glmmTMB(name):
    fit = REFERENCES[name]
    result = jm.mixedlm(fit["lme4_formula_py"], references.data(fit["dataset"])).fit(reml=False)
    assert result.outcome.name == "CONVERGED"
    assert -2 * result.llf == pytest.approx(fit["objective"]["value"], abs=1e-6)
    # Of all parameters together, of which those of the covariances are held: generalised least squares.
    p = len(fit["fixef"])
    errors = np.sqrt(np.diag(np.linalg.inv(np.linalg.inv(fit["vcov_all"])[:p, :p])))
    np.testing.assert_allclose(result.bse_fe, errors, rtol=1e-4)
    apart = result.fe_params - [row["estimate"] for row in fit["fixef"]]
    assert np.all(np.abs(apart) < 1e-4 * errors)
    assert result.sigma**2 == pytest.approx(fit["dispersion"]["value_first20"][0], rel=1e-4)
    covariances = list(result.random_effects_cov.values())[0]
    whole = np.zeros((0, 0))
    for block in fit["varcomp"]:
        cov = np.array(block["cov"])
        whole = np.block([[whole, np.zeros((len(whole), len(cov)))], [np.zeros((len(cov), len(whole))), cov]])
    assert covariances.shape == whole.shape
    estimated = result.cov_re.to_numpy()
    np.testing.assert_allclose(estimated, whole, rtol=1e-4, atol=1e-4 * np.diag(whole).max())
    (effects,) = result.ranef().values()
    for level in fit["ranef"][0]["levels"]:
        modes = effects.set_axis(effects.index.astype(str)).loc[str(level["level"])]
        np.testing.assert_allclose(modes, level["mode"], atol=1e-3 * np.sqrt(np.diag(whole)).max())


def correlation(word, q, x):
    """C of unconstrained numbers x, written down once more."""
    lag = np.abs(np.subtract.outer(np.arange(q), np.arange(q)))
    if word in ("cs", "homcs"):
        lowest = -1 / (q - 1)
        r = lowest + (1 - lowest) / (1 + np.exp(-x[0]))
        return np.where(lag > 0, r, 1.0)
    if word in ("ar1", "hetar1"):
        return np.tanh(x[0]) ** lag
    if word == "toep":
        # Partial correlations, each of what its Toeplitz matrix of the lags before it leaves.
        rho = [1.0]
        for k, partial in enumerate(np.tanh(x)):
            before, reverse = np.array(rho)[lag[:k, :k]], np.array(rho[:0:-1])
            solved = np.linalg.solve(before, reverse) if k else reverse
            rest = 1 - reverse @ solved
            rho.append(reverse[::-1] @ solved + partial * rest)
        return np.array(rho)[lag]
    return np.eye(q)


def parameters(word, q):
    count = {"cs": 1, "homcs": 1, "ar1": 1, "hetar1": 1, "toep": q - 1}.get(word, 0)
    return (1 if word in ("homdiag", "homcs", "ar1") else q), count


def relative_covariance(word, q, x):
    k, _ = parameters(word, q)
    s = np.exp(x[:k]) * np.ones(q)
    return np.outer(s, s) * correlation(word, q, x[k:])


def dense_deviance(data, sigma, reml):
    """The profiled deviance from V itself."""
    X, y, n = np.column_stack([np.ones(len(data)), data["x"]]), data["y"].to_numpy(), len(data)
    Z = pd.get_dummies(data["f"]).to_numpy(float)
    together = data["g"].to_numpy()[:, None] == data["g"].to_numpy()[None]
    V = np.eye(n) + np.where(together, Z @ sigma @ Z.T, 0)
    A = X.T @ np.linalg.solve(V, X)
    beta = np.linalg.solve(A, X.T @ np.linalg.solve(V, y))
    rest = y - X @ beta
    nu = n - 2 if reml else n
    fixed = np.linalg.slogdet(A)[1] if reml else 0
    rss = rest @ np.linalg.solve(V, rest)
    return np.linalg.slogdet(V)[1] + fixed + nu * (1 + np.log(2 * np.pi * rss / nu))


def simulated(word, seed, x, q=3, levels=14, per=2):
    r = np.random.default_rng(seed)
    codes, column = np.repeat(np.arange(levels), q * per), np.tile(np.repeat(np.arange(q), per), levels)
    root = np.linalg.cholesky(relative_covariance(word, q, np.asarray(x)))
    effects, x = r.normal(size=(levels, q)) @ root.T, r.normal(size=len(codes))
    y = 1 + x / 2 + effects[codes, column] + r.normal(size=len(codes))
    data = pd.DataFrame({"y": y, "x": x, "g": [f"g{c:02}" for c in codes], "f": [f"f{c}" for c in column]})
    return data[r.random(len(data)) < 0.9].reset_index(drop=True)


TRUTHS = {
    "homdiag": [0.3],
    "diag": [0.3, -0.2, 0.6],
    "homcs": [0.4, 1.0],
    "cs": [0.3, -0.1, 0.6, 0.8],
    "ar1": [0.4, 0.8],
    "hetar1": [0.3, -0.1, 0.6, 0.9],
    "toep": [0.3, 0.1, 0.6, 0.5, -0.2],
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("word", TRUTHS)
@pytest.mark.parametrize("reml", [True, False])
def test_the_optimum_is_that_of_a_dense_density(word, reml):
    data = simulated(word, 2 + reml, TRUTHS[word], levels=24)
    result = jm.mixedlm(f"y ~ x + {word}(0 + f | g)", data).fit(reml=reml)
    assert result.outcome.name == "CONVERGED"
    (estimated,) = (cov.iloc[:3, :3] / result.scale for cov in [result.cov_re])
    assert dense_deviance(data, estimated.to_numpy(), reml) == pytest.approx(result.objective, abs=1e-8)
    assert sum(parameters(word, 3)) == len(result.theta)

    def deviance(x):
        return dense_deviance(data, relative_covariance(word, 3, x), reml)

    starts = np.random.default_rng(0).normal(size=(3, len(result.theta))) / 2
    found = [minimize(deviance, start, method="BFGS", options={"gtol": 1e-6}) for start in starts]
    assert min(run.fun for run in found) == pytest.approx(result.objective, abs=1e-6)
    best = min(found, key=lambda run: run.fun).x
    np.testing.assert_allclose(relative_covariance(word, 3, best), estimated, rtol=1e-3, atol=1e-3)


SAME = (("us", "cs", "hetar1", "toep"), ("homcs", "ar1"))


@pytest.mark.thorough
def test_of_two_columns_structures_are_the_general_one():
    data = simulated("cs", 3, TRUTHS["cs"]).query("f != 'f2'")
    fits = {word: jm.mixedlm(f"y ~ x + {word}(0 + f | g)", data).fit() for word in sum(SAME, ())}
    for words in SAME:
        first, *others = (fits[word] for word in words)
        for other in others:
            assert other.llf == pytest.approx(first.llf, abs=1e-9)
            np.testing.assert_allclose(other.bse_fe, first.bse_fe, rtol=1e-6)
            np.testing.assert_allclose(other.vcov_kenward_roger, first.vcov_kenward_roger, rtol=1e-6)
            for ddf in ("satterthwaite", "kenward-roger"):
                np.testing.assert_allclose(other.anova(ddf=ddf), first.anova(ddf=ddf), rtol=1e-5)
    first, second = fits["us"].vcov_variance(), fits["cs"].vcov_variance()
    # The correlation stands between the standard deviations there, and after them here.
    order = [0, 2, 1, 3]
    np.testing.assert_allclose(second, first.iloc[order, order], rtol=1e-5)


def test_a_variance_a_column_is_the_double_bar():
    data = references.data("sleepstudy")
    bar = jm.mixedlm("Reaction ~ Days + (Days || Subject)", data).fit()
    word = jm.mixedlm("Reaction ~ Days + diag(Days | Subject)", data).fit()
    assert word.llf == pytest.approx(bar.llf, abs=1e-9)
    np.testing.assert_allclose(word.theta, bar.theta, rtol=1e-6)
    which = ["sd_Days|Subject", "Days"]
    np.testing.assert_allclose(
        word.confint("profile", which=which), bar.confint("profile", which=which), rtol=1e-5, atol=1e-6
    )


BOUNDARIES = {
    ("homcs", "no variance"): [-9, 0.0],
    ("ar1", "no variance"): [-9, 0.0],
    ("cs", "no variance"): [-9, -9, -9, 0.0],
    ("cs", "one variance of zero"): [0.5, -9, 0.8, 1.0],
    ("hetar1", "one variance of zero"): [0.5, 0.8, -9, 1.0],
    ("cs", "correlations of one"): [0.5, 0.2, 0.8, 18.0],
    ("homcs", "least correlation"): [0.5, -18.0],
    ("ar1", "correlations of one"): [0.5, 9.0],
    ("toep", "correlations of one"): [0.5, 0.2, 0.8, 9.0, 0.0],
}


@pytest.mark.sweep(3)
@pytest.mark.filterwarnings("ignore::jmixed.errors.SingularWarning")
@pytest.mark.parametrize("case", BOUNDARIES, ids=" ".join)
def test_ends_of_a_range_are_ordinary_outcomes(case):
    word, truth = case[0], BOUNDARIES[case]
    singular = 0
    for seed in range(8):
        data = simulated(word, seed, truth, levels=20)
        result = jm.mixedlm(f"y ~ x + {word}(0 + f | g)", data).fit(reml=bool(seed % 2))
        assert result.outcome.ok, (seed, result.outcome)
        singular += result.singular
        assert np.all(np.isfinite(result.bse_fe))
        truth_there = dense_deviance(data, relative_covariance(word, 3, np.clip(truth, -9, 9)), bool(seed % 2))
        assert result.objective <= truth_there + 1e-6
    assert singular


def test_words_for_people():
    data = simulated("ar1", 5, TRUTHS["ar1"], q=4).rename(columns={"f": "visit"})
    result = jm.mixedlm("y ~ x + ar1(0 + visit | g)", data).fit()
    assert result.model.theta_names == ["g.visit", "g.lag 1.visit"]
    table = result.var_corr()
    assert table["var1"].tolist() == ["visit", "visit", None]
    assert table["var2"].tolist() == [None, "lag 1", None]
    s, r = result.theta
    np.testing.assert_allclose(table["sdcor"], [s * result.sigma, r, result.sigma], rtol=1e-9)
    assert "visit lag 1 Cor" in str(result.summary())
    assert list(result.ranef()["g"].columns) == [f"visit[f{k}]" for k in range(4)]
    assert result.confint().index.tolist()[2:] == ["sd_visit|g", "cor_lag 1.visit|g", "sigma"]
    limits = result.confint("profile", which="sd_visit|g").loc["sd_visit|g"]
    assert limits["lower"] < s * result.sigma < limits["upper"]
    with pytest.raises(ModelError, match=r"method='bootstrap'.*which=\['Intercept', 'x', 'sd_visit\|g', 'sigma'\]"):
        result.confint("profile")
    with pytest.raises(ModelError, match="can be held"):
        result.profile_re(0, "re", num_low=1, dist_low=0.1, num_high=1, dist_high=0.1)
    again = result.model.update(". ~ . - x").fit()
    assert again.model.formula.endswith("ar1(0 + visit | g)")
    assert result.drop1().index.tolist() == ["<none>", "x"]


def test_the_profile_of_a_standard_deviation_ends_where_the_dense_deviance_says():
    data = simulated("homcs", 8, TRUTHS["homcs"])
    result = jm.mixedlm("y ~ x + homcs(0 + f | g)", data).fit(reml=False)
    profile = result.profile("sd_f|g", level=0.9, steps=2)
    row = profile.table.iloc[0]

    def deviance(free):
        log_sigma, angle = free
        relative = relative_covariance("homcs", 3, [np.log(row["value"]) - log_sigma, angle])
        X, y = np.column_stack([np.ones(len(data)), data["x"]]), data["y"].to_numpy()
        Z = pd.get_dummies(data["f"]).to_numpy(float)
        together = data["g"].to_numpy()[:, None] == data["g"].to_numpy()[None]
        V = np.exp(2 * log_sigma) * (np.eye(len(y)) + np.where(together, Z @ relative @ Z.T, 0))
        beta = np.linalg.solve(X.T @ np.linalg.solve(V, X), X.T @ np.linalg.solve(V, y))
        rest = y - X @ beta
        return np.linalg.slogdet(V)[1] + rest @ np.linalg.solve(V, rest) + len(y) * np.log(2 * np.pi)

    least = minimize(deviance, [0.0, 0.0], method="BFGS", options={"gtol": 1e-6}).fun
    assert np.sqrt(least - result.objective) == pytest.approx(abs(row["zeta"]), abs=1e-4)


def test_simulated_responses_have_the_covariance():
    data = simulated("toep", 6, TRUTHS["toep"])
    result = jm.mixedlm("y ~ x + toep(0 + f | g)", data).fit()
    drawn = result.simulate(4000, key=1)
    rows = np.flatnonzero(data["g"] == "g00")
    Z = pd.get_dummies(data["f"]).to_numpy(float)[rows]
    V = Z @ result.cov_re.to_numpy() @ Z.T + result.scale * np.eye(len(rows))
    found = np.cov(np.asarray(drawn).reshape(-1, len(data))[:, rows].T)
    np.testing.assert_allclose(found, V, atol=6 * V.max() / np.sqrt(4000))


def test_saved_results_and_many_responses(tmp_path):
    data = simulated("cs", 7, TRUTHS["cs"])
    result = jm.mixedlm("y ~ x + cs(0 + f | g)", data).fit()
    result.save(tmp_path / "fit.jm")
    loaded = jm.load(tmp_path / "fit.jm")
    pd.testing.assert_frame_equal(loaded.var_corr(), result.var_corr())
    refit = loaded.model.fit()
    np.testing.assert_allclose(refit.theta, result.theta, rtol=1e-6)
    boot = result.bootstrap(20, key=0)
    assert boot.converged.all()
    assert np.isfinite(boot.confint()).all(axis=None)
    compared = jm.compare(jm.mixedlm("y ~ x + homcs(0 + f | g)", data).fit(reml=False), result)
    assert compared["Df"].iloc[1] == 2
