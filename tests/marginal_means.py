"""Estimated marginal means beside those of R's emmeans, made by refs/marginal/make.R.

``python tests/marginal_means.py`` compares all of them, in two minutes; the suite tries some.
"""

import functools
import json
import warnings

import numpy as np
import references

import jmixed as jm

HOME = references.ROOT / "marginal"
CASES = json.loads((HOME / "cases.json").read_text(encoding="utf-8"))
RANDOM = 2e-3
"""How far limits and p-values may be from emmeans' by the multivariate t distribution, which integrates at random."""


@functools.cache
def answers():
    return json.loads((HOME / "references.json").read_text(encoding="utf-8"))


def fit(case):
    data = references.data(case["data"])
    if case["drop"]:
        data = data[~np.logical_and.reduce([data[name].isin(levels) for name, levels in case["drop"].items()])]
    if case["family"] == "gaussian":
        return jm.mixedlm(case["python"], data, weights=case["weights"], missing="drop").fit()
    return jm.mixedglm(case["python"], data, family=case["family"], missing="drop").fit()


def asked(result, call):
    arguments = {"by": call["by"] or None, "at": call["at"] or None}
    if result.fitted.family is None:
        arguments["ddf"] = call["ddf"]
    if call["call"] == "slopes":
        return result.slopes(call["specs"][0], **arguments)
    adjusted = call.get("sigma", False)
    return result.emmeans(call["specs"], weights=call["weights"], kind=call["kind"], bias_adjust=adjusted, **arguments)


def column(table, *names):
    name = next(name for name in table if name in names or name.endswith(tuple(n for n in names if n[0] == ".")))
    return np.array([np.nan if value in (None, "NA", "nonEst") else value for value in table[name]], float)


def compare(mine, theirs, random=False):
    """Estimates, errors and limits to 1e-6 of a standard error, degrees of freedom relatively."""
    error = column(theirs, "SE")
    unit = np.where(np.isnan(error), 1, error)
    names = ("emmean", "overall", "response", "rate", "prob", "estimate", "ratio", "odds.ratio", ".trend")
    near = functools.partial(np.testing.assert_allclose, rtol=0, atol=1e-6)
    near(mine["estimate"] / unit, column(theirs, *names) / unit)
    near(mine["se"] / unit, error / unit)
    if "df" in mine:
        np.testing.assert_allclose(mine["df"], column(theirs, "df"), rtol=1e-6)
    loose = RANDOM if random else 2e-6
    for limit, names in {"lower": ("lower.CL", "asymp.LCL"), "upper": ("upper.CL", "asymp.UCL")}.items():
        near(mine[limit] / unit, column(theirs, *names) / unit, atol=loose)
    if "p" in mine:
        near(mine["p"], column(theirs, "p.value"), atol=loose)


def check(name):
    """Compare all that was asked of one model."""
    case = CASES[name]
    with warnings.catch_warnings():
        # Of empty cells, which some have on purpose.
        warnings.simplefilter("ignore", jm.RankWarning)
        result = fit(case)
    for call, theirs in zip(case["calls"], answers()[name]["calls"], strict=True):
        means = asked(result, call)
        compare(means.frame, theirs["frame"])
        for contrast, table in zip(call["contrasts"], theirs["contrasts"], strict=True):
            mine = means.contrasts(contrast["method"], contrast["adjust"])
            compare(mine, table, random=contrast["adjust"] == "mvt")


if __name__ == "__main__":
    for name in CASES:
        check(name)
        print(name)
