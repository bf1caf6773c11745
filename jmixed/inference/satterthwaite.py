"""Satterthwaite's degrees of freedom (Satterthwaite 1946; Giesbrecht and Burns 1985; Kuznetsova et al. 2017).

The estimated variance f of a contrast is matched to a scaled chi-square by its first two moments,

    df = 2 f^2 / (g'C g),

with g the gradient of f = sigma^2 c'A^-1c in the variance parameters and C their covariance, the inverse observed
information. Both are exact. The degrees of freedom do not depend on how the variance parameters are written down.
"""

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from jmixed.inference.curvature import Curvature

SWEEPS = 50
"""Most passes over the planes of a joint diagonalisation, which takes about five."""


@dataclass(frozen=True)
class JointTest:
    """An F test of several linear hypotheses, of which `num_df` are independent."""

    F: float
    num_df: int
    den_df: float


UNTESTED = JointTest(float("nan"), 0, float("nan"))
"""The test of contrasts without a variance, such as those of coefficients that were held."""


def degrees_of_freedom(curvature: Curvature, L) -> np.ndarray:
    """Degrees of freedom (k,) of each contrast of the fixed effects, a row of L (k, p).

    They are nan where the information of the variance parameters is not positive definite.
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
    """F test of L beta = q, with the denominator of Fai and Cornelius (1996) for the contrasts of `independent`.

    The statistic is a sum of squares of t statistics, and an F distribution with the mean that their sum of squares has
    if they are independent gives the denominator. Any basis of the hypothesis in which the estimates are uncorrelated
    gives the same statistic, but each its own degrees of freedom. lmerTest takes the eigenvectors of the covariance of
    L beta, which depend on how the hypothesis is written down: on the units of its rows, on the type of the test.
    `difference` (k,) is the estimate of L beta less q, L (k, p); `covariance` (p, p) is that of beta.
    """
    weights = unit_contrasts(L, covariance)
    if not weights.shape[1]:
        return UNTESTED
    squares = (weights.T @ difference) ** 2
    each = degrees_of_freedom(curvature, independent(curvature, weights.T @ L))
    return JointTest(float(np.mean(squares)), len(squares), _denominator(each))


def independent(curvature: Curvature, L) -> np.ndarray:
    """The basis of a hypothesis in which variances are estimated as independently of each other as can be.

    In a basis L (r, p) of uncorrelated contrasts of variance one, let M_k be the derivatives of their covariance in the
    variance parameters, and C the covariance of these. Contrasts have independent t statistics where all M_k are
    diagonal. The basis is the rotation that brings them as near to that as can be: it makes the sum over contrasts of

        sum C_kl (M_k)_ii (M_l)_ii = 2 / df_i

    a maximum (joint diagonalisation: Cardoso and Souloumiac 1996, SIAM J. Matrix Anal. Appl. 17). That is a property of
    the hypothesis: of all bases the one of the smallest degrees of freedom, in their harmonic mean.
    """
    if len(L) == 1 or not np.all(np.isfinite(curvature.joint_covariance)):
        return L
    pulled = L @ curvature.to_beta @ curvature.inverse
    slopes = -np.einsum("ai,mij,bj,mk->kab", pulled, curvature.first, pulled, curvature.directions, optimize=True)
    # The covariance is proportional to sigma^2.
    M = np.concatenate([slopes * curvature.sigma**2, np.eye(len(L))[None] / curvature.sigma**2])
    values, vectors = np.linalg.eigh(curvature.joint_covariance)
    M = np.tensordot(np.sqrt(np.maximum(values, 0))[:, None] * vectors.T, M, 1)
    return _joint_diagonaliser(M).T @ L


def _joint_diagonaliser(M):
    """The rotation Q (r, r) for which the diagonals of Q'M_k Q have the largest sum of squares, by plane rotations."""
    # From eigenvectors that do not depend on the basis: where there are several maxima it is always the same one.
    Q = np.linalg.eigh(np.einsum("kab,kbc->ac", M, M))[1]
    M = Q.T @ M @ Q
    for _ in range(SWEEPS):
        largest = 0.0
        for i, j in combinations(range(len(Q)), 2):
            g = np.stack([M[:, i, i] - M[:, j, j], 2 * M[:, i, j]])
            G = g @ g.T
            angle = np.arctan2(2 * G[0, 1], G[0, 0] - G[1, 1]) / 4
            plane = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            M[:, :, [i, j]] = M[:, :, [i, j]] @ plane
            M[:, [i, j]] = plane.T @ M[:, [i, j]]
            Q[:, [i, j]] = Q[:, [i, j]] @ plane
            largest = max(largest, abs(angle))
        if largest < 1e-9:
            break
    return Q


def contrast_covariance(L, covariance):
    """L C L' (k, k); a coefficient without a variance (nan) matters only to the contrasts that contain it."""
    unknown = np.isnan(np.diag(covariance))
    touched = np.asarray(np.any(L[:, unknown] != 0, axis=1))
    spread = L[:, ~unknown] @ covariance[np.ix_(~unknown, ~unknown)] @ L[:, ~unknown].T
    return np.where(np.logical_or.outer(touched, touched), np.nan, spread)


def unit_contrasts(L, covariance):
    """Weights (k, r) of combinations of k contrasts that are uncorrelated and have a variance of one.

    Redundant ones are left out, whatever the units of the contrasts; there are none if one has no variance that is
    known.
    """
    if not np.all(np.isfinite(contrast_covariance(L, covariance))):
        return np.zeros((len(L), 0))
    known = np.nan_to_num(covariance)
    size = np.sqrt(np.diag(known))
    size = np.where(size > 0, size, 1)
    values, vectors = np.linalg.eigh(known / np.outer(size, size))
    root = L @ (size[:, None] * vectors * np.sqrt(np.maximum(values, 0)))
    length = np.linalg.norm(root, axis=1)
    length = np.where(length > 0, length, 1)
    U, lengths, _ = np.linalg.svd(root / length[:, None], full_matrices=False)
    kept = lengths > np.sqrt(np.finfo(lengths.dtype).eps) * lengths[0]
    return U[:, kept] / lengths[kept] / length[:, None]


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
