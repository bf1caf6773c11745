"""Responses of a family as people give them and see them: what is out of range, means, residuals."""

from typing import Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.families.family import Family
from jmixed.inference.responses import evaluate, expected
from jmixed.inference.simulation import generator
from jmixed.reports.bootstrap import simulate
from jmixed.reports.fitted import Fitted

MOST = 100
"""Most nodes of quadrature for each random effect."""
WIDEST = 3
"""Most random effects of a group with quadrature."""


def checked_responses(family: Family, y: np.ndarray, trials: np.ndarray, index: pd.Index) -> None:
    """Refuse responses (n,) that the family does not have; the error names the first rows."""
    wrong = family.check(y, trials)
    if wrong is not None:
        allowed, rows = wrong
        first = np.flatnonzero(rows)[:3]
        labels = index.take(first).tolist()
        shown = ", ".join(f"{y[row]:g} in row {label!r}" for row, label in zip(first, labels, strict=True))
        raise DataError(
            f"the response does not suit the family {family.name}: {allowed}; {np.count_nonzero(rows)} of {len(y)} "
            f"rows are not: {shown}{', ...' if np.count_nonzero(rows) > 3 else ''}"
        )


def checked_quadrature(quadrature: int, terms) -> None:
    """Refuse numbers of nodes that there are not, and quadrature where there is none."""
    if isinstance(quadrature, bool) or not isinstance(quadrature, int | np.integer) or not 1 <= quadrature <= MOST:
        raise ModelError(f"quadrature is {quadrature!r}; give a number of nodes, a whole number from 1 to {MOST}")
    if quadrature == 1:
        return
    groups = dict.fromkeys(term.group for term in terms)
    width = sum(term.Z.shape[1] for term in terms)
    if len(groups) > 1:
        raise ModelError(
            f"quadrature={quadrature} is there for one grouping factor, and this model has {', '.join(groups)}: leave "
            "it out (Laplace's approximation), and let result.approximation() say how good that is"
        )
    if related := [term.group for term in terms if term.relationship is not None]:
        raise ModelError(
            f"quadrature={quadrature} is there for groups that are independent of each other, and relationship= "
            f"relates those of {related[0]}: leave it out (Laplace's approximation)",
            page="relationships.md",
        )
    if width > WIDEST:
        raise ModelError(
            f"quadrature={quadrature} is there for up to {WIDEST} random effects of a group, and this model has {width}"
        )


# Residuals.

Residual = Literal["response", "pearson", "deviance", "working", "quantile", "simulated"]
RESIDUALS = ("response", "pearson", "deviance", "working", "quantile", "simulated")


def residuals(fitted: Fitted, kind: str, key: Any, simulations: int) -> np.ndarray:
    """Residuals (n,) given the random effects, or among new ones: see `MixedGLMResults.residuals`."""
    if kind not in RESIDUALS:
        raise DataError(f"residuals: kind={kind!r}; use one of {', '.join(map(repr, RESIDUALS))}")
    fitted.need_data("residuals")
    family = fitted.own_family
    if kind == "quantile":
        return quantile_residuals(fitted, key)
    if kind == "simulated":
        return simulated_residuals(fitted, key, simulations)
    if family.response == "categories":
        raise ModelError(
            f"residuals: kind={kind!r} takes the response from its mean, and categories have none; use 'quantile' or "
            "'simulated'"
        )
    spec, eta, extras = fitted.spec, fitted.predictor, fitted.at_modes.extras
    left, trials = observed(fitted) - fitted.fittedvalues, fitted.response.trials
    factors = spec.weights if family.weights_are == "factors" else np.ones(len(spec.y))
    if kind == "response":
        return left
    if kind == "pearson":
        return left * np.sqrt(factors / evaluate(family, "variance", eta, extras, trials))
    if kind == "deviance":
        return np.sign(left) * np.sqrt(factors * evaluate(family, "deviance", eta, extras, trials, spec.y))
    return left / expected(family, "mean", eta, extras).in_eta


def usual_residuals(fitted: Fitted) -> np.ndarray:
    """Deviance residuals, Pearson's of a family without a deviance, quantile residuals of one without a mean."""
    family = type(fitted.own_family)
    if family.mean is Family.mean or family.response == "categories":
        return quantile_residuals(fitted, 0)
    return residuals(fitted, "pearson" if family.deviance is Family.deviance else "deviance", 0, 1)


def observed(fitted: Fitted) -> np.ndarray:
    """Responses (n,) in the unit of their means: of successes, their share of the trials."""
    spec = fitted.spec
    if fitted.family is not None and fitted.family.response == "successes":
        return spec.y / fitted.response.trials
    return spec.y


def quantile_residuals(fitted: Fitted, key: Any) -> np.ndarray:
    """Standard normal quantiles of the distribution functions at the responses (Dunn and Smyth 1996).

    Where a response has a probability of its own, the value is drawn between those below and at it.
    """
    from scipy.special import ndtri

    spec, family = fitted.spec, fitted.own_family
    at_predictor = fitted.predictor, fitted.at_modes.extras, fitted.response.trials
    at = evaluate(family, "cdf", *at_predictor, spec.y)
    # The next number below zero that is not taken for zero.
    less = np.minimum(np.nextafter(spec.y, -np.inf), spec.y - np.finfo(spec.y.dtype).tiny)
    below = np.minimum(evaluate(family, "cdf", *at_predictor, less), at)
    # Whoever simulated the responses may have begun with the same seed: what is drawn here must not follow them.
    rng = np.random.default_rng(generator(key).integers(2**63))
    p = below + rng.uniform(size=len(at)) * (at - below)
    # Beyond the last number below one there is no quantile.
    return ndtri(np.clip(p, np.finfo(float).tiny, 1 - np.finfo(float).epsneg))


def simulated_residuals(fitted: Fitted, key: Any, simulations: int) -> np.ndarray:
    """Ranks, between 0 and 1, of the responses among new ones with new random effects; ties are broken by chance.

    Of a response that is one more draw of the model they are uniform, whatever the number of simulations.
    """
    drawn = simulate(fitted, simulations, key, "new")
    y = fitted.spec.y[None]
    lower, equal = np.sum(drawn < y, axis=0), np.sum(drawn == y, axis=0)
    rng = np.random.default_rng(generator(key).integers(2**63))
    return (lower + rng.uniform(size=len(lower)) * (equal + 1)) / (simulations + 1)
