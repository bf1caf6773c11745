"""Models of every kind by programs that NumPy works through, and by the same programs compiled: the same figures."""

import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.runtime import compilation, executables
from jmixed.runtime.interpreted import Interpreted

R = np.random.default_rng(8)
G, N = 20, 240
D = pd.DataFrame({"g": np.repeat(np.arange(G), N // G), "t": np.tile(np.arange(N // G), G), "h": R.integers(0, 9, N)})
D["k"], D["x"], D["a"] = D["t"] // 4, R.normal(size=N), R.choice(["u", "v"], N)
EFFECTS = R.normal(size=(G, 2))[D["g"]]
D["y"] = 1 + D["x"] + EFFECTS[:, 0] + EFFECTS[:, 1] * D["x"] + R.normal(size=9)[D["h"]] + R.normal(size=N)
D["yes"] = (R.random(N) < 1 / (1 + np.exp(-D["y"] / 2))).astype(int)
D["count"] = R.poisson(np.exp(D["y"] / 4))
D["time"] = R.gamma(2, np.exp(D["y"] / 4))
D["grade"] = pd.cut(D["y"], [-np.inf, 0, 2, np.inf], labels=["low", "mid", "high"])

LINEAR = {
    "intercepts": ("y ~ x + (1 | g)", {}),
    "slopes": ("y ~ x * a + (x | g)", {}),
    "apart": ("y ~ x + (x || g)", {}),
    "nested": ("y ~ x + (1 | g / k)", {}),
    "crossed": ("y ~ x + (x | g) + (1 | h)", {}),
    "no fixed effects": ("y ~ 0 + (1 | g)", {}),
    "structured": ("y ~ x + ar1(0 + C(k) | g)", {}),
    "ar1": ("y ~ x + (1 | g)", {"residual": "ar1(t | g)"}),
    "us": ("y ~ x", {"residual": "us(t | g)", "subset": D["t"] < 3}),
    "dispersion": ("y ~ x + (1 | g)", {"dispersion": "~ a"}),
}
GENERALIZED = {
    "binomial": ("yes ~ x + (1 | g)", jm.families.Binomial(), {}),
    "quadrature": ("yes ~ x + (1 | g)", jm.families.Binomial(), {"quadrature": 7}),
    "probit crossed": ("yes ~ x + (1 | g) + (1 | h)", jm.families.Binomial(link="probit"), {}),
    "poisson slopes": ("count ~ x + (x | g)", jm.families.Poisson(), {}),
    "zeros": ("count ~ x + (1 | g)", jm.families.Poisson(), {"zero_inflation": "~ 1"}),
    "negative binomial": ("count ~ x + (1 | g)", jm.families.NegativeBinomial(), {}),
    "gamma": ("time ~ x + (1 | g)", jm.families.Gamma(), {}),
    "ordinal": ("grade ~ x + (1 | g)", jm.families.Ordinal(), {}),
}


def both(monkeypatch, state, figures):
    """Figures by NumPy, and by compiled programs; whether the former compiled nothing of a fit."""
    monkeypatch.setattr(compilation, "_kept", [None])
    out = []
    for word in ("last", "first"):
        monkeypatch.setenv("JMIXED_COMPILE", word)
        executables.forget()
        result = state().fit()
        if word == "last":
            fits = [way for key, way in executables._memory.items() if "_fit_program" in key[1][0]]
            assert fits
            assert all(isinstance(way, Interpreted) for way in fits)
        out.append((result, figures(result)))
    executables.forget()
    return out


def agree(ours, theirs, names):
    for name, first, second in zip(names, ours, theirs, strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.filterwarnings("ignore:the fit is singular", "ignore:.*crossed random effects")
def test_linear_models(monkeypatch, name):
    formula, words = LINEAR[name]

    def figures(result):
        tests = [result.test().to_numpy(float)] if len(result.fe_params) else []
        return [result.objective, result.fe_params, result.bse_fe, result.scale, *tests]

    (first, ours), (second, theirs) = both(monkeypatch, lambda: jm.mixedlm(formula, D, **words), figures)
    assert first.optimizer.outcome == second.optimizer.outcome
    agree(ours, theirs, ["objective", "coefficients", "errors", "scale", "tests"][: len(ours)])


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", GENERALIZED)
@pytest.mark.filterwarnings("ignore:the fit is singular", "ignore:.*crossed random effects")
def test_other_responses(monkeypatch, name):
    formula, family, words = GENERALIZED[name]

    def figures(result):
        return [result.objective, result.fe_params, result.bse_fe]

    (first, ours), (second, theirs) = both(monkeypatch, lambda: jm.mixedglm(formula, D, family, **words), figures)
    assert first.optimizer.outcome == second.optimizer.outcome
    agree(ours, theirs, ["objective", "coefficients", "errors"])
