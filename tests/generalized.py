"""Fitted generalized models that several tests look at, each fitted once."""

import functools

import numpy as np
import pandas as pd
from references import data, generalized_fits

import jmixed as jm

FAMILIES = {
    "binomial": jm.families.Binomial,
    "poisson": jm.families.Poisson,
    "beta": jm.families.Beta,
    "cumulative": jm.families.Ordinal,
}
FURTHER = {"grouseticks_zip": {"zero_inflation": "~ YEAR"}, "preselect_beta_disp": {"dispersion": "~ south"}}
"""Formulas of the further predictors, by reference."""


@functools.cache
def reference(name):
    """The fit of a reference model, and what R has of it."""
    expected = generalized_fits()[name]
    frame = data(expected["dataset"])
    if name == "wine_judge":
        frame["rating"] = frame["rating"].astype(int)
    family = FAMILIES[expected["family"]](link=expected["link"])
    return jm.mixedglm(expected["formula"], frame, family, **FURTHER.get(name, {})).fit(), expected


def cows():
    """Successes of trials: lme4's example of disease in herds."""
    return reference("cbpp_laplace")[0]


def ticks():
    """Counts with zeros of their own, whose probability depends on the year."""
    return reference("grouseticks_zip")[0]


def wine():
    """Categories in order."""
    return reference("wine_judge")[0]


@functools.cache
def counts_frame():
    """Negative binomial counts with random slopes, an exposure, and a size that depends on `w`."""
    rng = np.random.default_rng(5)
    g = np.repeat(np.arange(40), 8)
    n = len(g)
    x, w, exposure = rng.normal(size=n), rng.integers(0, 2, n).astype(float), rng.uniform(1, 3, n)
    effects = rng.normal(size=(40, 2)) @ np.array([[0.6, 0.2], [0.0, 0.4]])
    mean = exposure * np.exp(0.7 + 0.4 * x + effects[g, 0] + effects[g, 1] * x)
    size = np.exp(0.5 + 1.2 * w)
    y = rng.poisson(rng.gamma(size, mean / size))
    return pd.DataFrame({"y": y, "x": x, "w": w, "exposure": exposure, "g": [f"g{k:02d}" for k in g]})


@functools.cache
def counts():
    """Their model."""
    formula = "y ~ x + offset(np.log(exposure)) + (x | g)"
    return jm.mixedglm(formula, counts_frame(), "nbinom2", dispersion="~ w").fit()
