"""Satterthwaite's degrees of freedom (Satterthwaite 1946; Giesbrecht and Burns 1985; Kuznetsova et al. 2017).

The estimated variance f of a contrast is matched to a scaled chi-square by its first two moments,

    df = 2 f^2 / (g'C g),

with g the gradient of f = sigma^2 c'A^-1c in the variance parameters and C their covariance, the inverse observed
information. Both are exact. The degrees of freedom do not depend on how the variance parameters are written down.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.inference.curvature import Curvature


@dataclass(frozen=True)
class JointTest:
    """An F test of several linear hypotheses.

    Attributes
    ----------
    F : float
    num_df : int
        Number of independent hypotheses.
    den_df : float
    """

    F: float
    num_df: int
    den_df: float


UNTESTED = JointTest(float("nan"), 0, float("nan"))
"""The test of contrasts without a variance, such as those of coefficients that were held."""


def degrees_of_freedom(curvature: Curvature, L) -> np.ndarray:
    """Degrees of freedom of each contrast.

    Parameters
    ----------
    curvature : Curvature
    L : array (k, p)
        One contrast of the fixed effects a row.

    Returns
    -------
    array (k,)
        nan where the information of the variance parameters is not positive definite.
    """
    contrasts = L @ curvature.to_beta
    pulled = contrasts @ curvature.inverse
    variance = np.sum(contrasts * pulled, axis=1)
    slopes = -np.einsum("ki,mij,kj->km", pulled, curvature.first, pulled) @ curvature.directions
    # Relative to f, which is proportional to sigma^2.
    gradient = np.column_stack([slopes, variance / curvature.sigma**2])
    spread = np.einsum("ki,ij,kj->k", gradient, curvature.joint_covariance, gradient)
    with np.errstate(divide="ignore", invalid="ignore"):
        return 2 * variance**2 / spread


def joint_test(curvature: Curvature, L, difference, covariance) -> JointTest:
    """F test of L beta = q, with the denominator of Fai and Cornelius (1996) as in lmerTest.

    The statistic is a sum of squares of independent t statistics, one for each eigenvector of the covariance of L beta;
    an F distribution with the mean of their sum of squares gives the denominator.

    Parameters
    ----------
    curvature : Curvature
    L : array (k, p)
    difference : array (k,)
        Estimate of L beta less q.
    covariance : array (p, p)
        Of the fixed effects.

    Returns
    -------
    JointTest
    """
    variances, vectors = principal_contrasts(L, covariance)
    if not len(variances):
        return UNTESTED
    squares = (vectors.T @ difference) ** 2 / variances
    each = degrees_of_freedom(curvature, vectors.T @ L)
    return JointTest(float(np.mean(squares)), len(squares), _denominator(each))


def contrast_covariance(L, covariance):
    """L C L' (k, k); a coefficient without a variance (nan) matters only to the contrasts that contain it."""
    unknown = np.isnan(np.diag(covariance))
    touched = np.asarray(np.any(L[:, unknown] != 0, axis=1))
    spread = L[:, ~unknown] @ covariance[np.ix_(~unknown, ~unknown)] @ L[:, ~unknown].T
    return np.where(np.logical_or.outer(touched, touched), np.nan, spread)


def principal_contrasts(L, covariance):
    """Variances (r,) and weights (k, r) of the uncorrelated combinations of k contrasts.

    Redundant ones are left out; there are none if a contrast has no variance that is known.
    """
    spread = contrast_covariance(L, covariance)
    if not np.all(np.isfinite(spread)):
        return np.zeros(0), np.zeros((len(L), 0))
    values, vectors = np.linalg.eigh(spread)
    kept = values > np.sqrt(np.finfo(values.dtype).eps) * values[-1]
    return values[kept], vectors[:, kept]


def _denominator(each):
    """Degrees of freedom nu for which F(r, nu) has the mean of the average of squared t variables."""
    if not np.all(np.isfinite(each)):
        return float("nan")
    if np.ptp(each) < 1e-8 or len(each) == 1:
        return float(np.mean(each))
    if np.any(each <= 2):
        return 2.0
    total = np.sum(each / (each - 2))
    return float(2 * total / (total - len(each)))
