"""The normal distribution, without the second that importing all of scipy.special would take from a first fit."""

import math
from numbers import Real
from statistics import NormalDist

import numpy as np

from jmixed.errors import ModelError


def quantile(probability: float) -> float:
    """The standard normal quantile; infinite at 0 and 1."""
    if not 0 < probability < 1:
        return math.copysign(math.inf, probability - 0.5) if probability in (0, 1) else math.nan
    return NormalDist().inv_cdf(probability)


def half_width(level: float) -> float:
    """How many standard errors a two-sided normal interval of the given coverage reaches to either side."""
    return quantile((1 + level) / 2)


def two_sided(z) -> np.ndarray:
    """The probability of a standard normal value at least as far from zero, for an array of any shape."""
    tails = [math.erfc(abs(value) / math.sqrt(2)) for value in np.ravel(z)]
    return np.reshape(tails, np.shape(z))


def outer(alpha: float) -> float:
    """``1 - alpha / 2``, the probability below the upper of two limits; refused when alpha is none.

    Raises
    ------
    ModelError
        For an `alpha` that does not lie between 0 and 1.

    Examples
    --------
    >>> from jmixed.inference.tails import outer
    >>> outer(0.05)
    0.975
    """
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ModelError(f"alpha is {alpha!r}; it must lie between 0 and 1: limits of 95% have alpha=0.05")
    return 1 - float(alpha) / 2
