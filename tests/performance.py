"""Fits of the models that R's performance and sjPlot were asked about (refs/performance/make.R), each fitted once."""

import functools
import json
import warnings

import references

import jmixed as jm

HOME = references.ROOT / "performance"
CASES = json.loads((HOME / "cases.json").read_text(encoding="utf-8"))
COUNTS = [name for name, case in CASES.items() if case["family"] in ("poisson", "nbinom2")]


@functools.cache
def answers():
    return json.loads((HOME / "references.json").read_text(encoding="utf-8"))


@functools.cache
def fit(name):
    case, data = CASES[name], references.data(CASES[name]["data"])
    with warnings.catch_warnings():
        # Some have one on purpose.
        warnings.simplefilter("ignore", jm.SingularWarning)
        if case["family"] == "gaussian":
            model = jm.mixedlm(case["python"], data, weights=case["weights"], missing="drop")
            return model.fit(reml=case.get("reml", True))
        return jm.mixedglm(case["python"], data, family=case["family"], missing="drop").fit()
