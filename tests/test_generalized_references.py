"""Generalized models against glmer, glmmTMB, clmm and independent quadrature, from the default start."""

import json
import re

import numpy as np
import pytest
from references import ROOT, data

import jmixed as jm

OPTIMA = json.loads((ROOT / "generalized" / "optima.json").read_text(encoding="utf-8"))
FAMILIES = {
    "binomial": "Binomial",
    "poisson": "Poisson",
    "nbinom1": "NegativeBinomial1",
    "nbinom2": "NegativeBinomial",
    "Gamma": "Gamma",
    "betabinomial": "BetaBinomial",
    "cumulative": "Ordinal",
}


def fitted(name):
    """The fit of a reference model, from the default start."""
    expected = OPTIMA[name]
    frame = data(expected["dataset"])
    if expected["family"] == "cumulative":
        frame["rating"] = frame["rating"].astype(int)
    words = {}
    if expected["offset"]:
        words["offset"] = np.log(frame[re.fullmatch(r"log\((\w+)\)", expected["offset"])[1]])
    if nodes := re.fullmatch(r"AGQ(\d+)", expected["method"]):
        words["quadrature"] = int(nodes[1])
    formula = expected["formula"].replace("I(age^2)", "I(age**2)")
    family = getattr(jm.families, FAMILIES[expected["family"]])(link=expected["link"])
    return jm.mixedglm(formula, frame, family, missing="drop", **words).fit()


@pytest.mark.sweep(5)
@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
@pytest.mark.parametrize("name", OPTIMA)
def test_the_optimum_is_theirs(name):
    expected, result = OPTIMA[name], fitted(name)
    assert result.converged
    # Theirs is an optimum of their optimiser: ours may be lower by what that leaves, and is not higher.
    assert -2e-8 * abs(expected["objective"]) - 2e-7 < result.objective - expected["objective"] < 1e-5
    for coefficient in expected["fixef"]:
        name, error = coefficient["name"], coefficient.get("se")
        assert abs(result.fe_params[name] - coefficient["estimate"]) < 2e-3 * (error or result.bse_fe[name])
        if error:
            np.testing.assert_allclose(result.bse_fe[name], error, rtol=1e-3)
    covariances = result.fitted.fit.covariances
    for part in expected["varcomp"]:
        label = next(label for label in covariances if label.endswith(f"| {part['group']}"))
        own = np.sqrt(np.diag(covariances[label]))
        np.testing.assert_allclose(own, part["sd"], rtol=1e-3, atol=1e-5)
