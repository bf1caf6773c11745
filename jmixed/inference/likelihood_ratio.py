"""Likelihood-ratio tests: chi-square, and mixtures of chi-squares for variances on the boundary."""

from collections.abc import Sequence

import numpy as np


def chi_square_tail(statistic: float, df: float) -> float:
    """Upper tail of chi-square; without degrees of freedom all of its mass is at zero."""
    if df == 0:
        return float(statistic <= 0)
    from scipy.special import chdtrc

    return float(chdtrc(df, max(statistic, 0.0)))


def mixture_tail(statistic: float, df: Sequence[int], weights: Sequence[float]) -> float:
    """Upper tail of a mixture of chi-squares.

    Parameters
    ----------
    statistic : float
    df : sequence of int
        Degrees of freedom of the components; zero is a point mass at zero.
    weights : sequence of float
        They add up to one.

    Examples
    --------
    >>> from jmixed.inference.likelihood_ratio import mixture_tail
    >>> round(mixture_tail(2.705543, (0, 1), (0.5, 0.5)), 6)
    0.05
    """
    return sum(w * chi_square_tail(statistic, k) for k, w in zip(df, weights, strict=True))


def linear_model_deviance(y: np.ndarray, X: np.ndarray, weights: np.ndarray, reml: bool) -> float:
    """-2 log-likelihood or REML criterion of the linear model without random effects, with all constants.

    Parameters
    ----------
    y : array (n,)
        Response without its offset.
    X : array (n, p)
        Independent columns.
    weights : array (n,)
    reml : bool
    """
    root = np.sqrt(weights)
    triangle = np.linalg.qr(np.column_stack([X, y]) * root[:, None], mode="r")
    diagonal = np.abs(np.diag(np.asarray(triangle)))
    nu = len(y) - (X.shape[1] if reml else 0)
    logdet = -np.sum(np.log(weights)) + (2 * np.sum(np.log(diagonal[:-1])) if reml else 0)
    return float(logdet + nu * (1 + np.log(2 * np.pi * diagonal[-1] ** 2 / nu)))
