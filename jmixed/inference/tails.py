"""Tails of the normal, the t, the F and the chi-square distribution, and of mixtures for variances on the boundary.

The normal one does without scipy.special, whose import would take a second from a first fit.
"""

import math
from collections.abc import Sequence
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
    """``1 - alpha / 2``, the probability below the upper of two limits; ModelError for an alpha not between 0 and 1."""
    if isinstance(alpha, bool) or not isinstance(alpha, Real) or not 0 < alpha < 1:
        raise ModelError(f"alpha is {alpha!r}; it must lie between 0 and 1: limits of 95% have alpha=0.05")
    return 1 - float(alpha) / 2


def standard_errors(variances: np.ndarray) -> np.ndarray:
    """The roots of variances; NaN of one below zero, which is none: the information was not positive definite there."""
    return np.sqrt(np.where(variances >= 0, variances, np.nan))


def statistics(estimates: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Estimates over their standard errors; NaN where there is none."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(errors > 0, estimates / errors, np.nan)


def p_of_t(t: np.ndarray, df: np.ndarray) -> np.ndarray:
    """Two-sided p-values of t statistics; infinite degrees of freedom are the normal distribution."""
    from scipy import special

    normal = np.isinf(df)
    return 2 * np.where(normal, special.ndtr(-np.abs(t)), special.stdtr(np.where(normal, 1, df), -np.abs(t)))


def t_reach(tail: float, df: np.ndarray) -> np.ndarray:
    """What a t variable exceeds with probability `tail`; infinite degrees of freedom are the normal distribution."""
    from scipy import special

    normal = np.isinf(df)
    return -np.where(normal, special.ndtri(tail), special.stdtrit(np.where(normal, 1, df), tail))


def p_of_F(F: float, num_df: int, den_df: float) -> float:
    """The probability of a larger F; infinite denominator degrees of freedom are the chi-square distribution."""
    from scipy import special

    return float(special.chdtrc(num_df, num_df * F) if np.isinf(den_df) else special.fdtrc(num_df, den_df, F))


def chi_square_tail(statistic: float, df: float) -> float:
    """Upper tail of chi-square; without degrees of freedom all of its mass is at zero."""
    if df == 0:
        return float(statistic <= 0)
    from scipy.special import chdtrc

    return float(chdtrc(df, max(statistic, 0.0)))


def mixture_tail(statistic: float, df: Sequence[int], weights: Sequence[float]) -> float:
    """Upper tail of a mixture of chi-squares with weights that add up to one; 0 degrees of freedom are a mass at zero.

    Examples
    --------
    >>> from jmixed.inference.tails import mixture_tail
    >>> round(mixture_tail(2.705543, (0, 1), (0.5, 0.5)), 6)
    0.05
    """
    return sum(w * chi_square_tail(statistic, k) for k, w in zip(df, weights, strict=True))


def linear_model_deviance(y: np.ndarray, X: np.ndarray, weights: np.ndarray, reml: bool) -> float:
    """-2 log-likelihood or REML criterion of the linear model without random effects, with all constants.

    The response y (n,) comes without its offset; the columns of X (n, p) are independent.
    """
    root = np.sqrt(weights)
    triangle = np.linalg.qr(np.column_stack([X, y]) * root[:, None], mode="r")
    diagonal = np.abs(np.diag(np.asarray(triangle)))
    nu = len(y) - (X.shape[1] if reml else 0)
    logdet = -np.sum(np.log(weights)) + (2 * np.sum(np.log(diagonal[:-1])) if reml else 0)
    return float(logdet + nu * (1 + np.log(2 * np.pi * diagonal[-1] ** 2 / nu)))
