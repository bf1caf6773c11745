"""The small-sample covariance and tests of Kenward and Roger (1997, Biometrics 53), as pbkrtest computes them.

With Phi = (X'V^-1X)^-1, P_i = -X'V^-1 V_i V^-1X, Q_ij = X'V^-1 V_i V^-1 V_j V^-1X and W the inverse of the expected
information of the parameters of V, the adjusted covariance is

    Phi_A = Phi + 2 Phi U Phi,        U = sum W_ij (Q_ij - P_i Phi P_j),

and Wald's statistic and its denominator follow from the traces A1, A2 below. Everything here is a contraction over
directions in which V can move, so any basis of these directions gives the same numbers. The basis taken is V itself and
the G_i of `curvature`: V itself contributes nothing to U, and

    expected information / (1/2):      tr P G_i P G_j = tr V^-1 G_i V^-1 G_j - 2 tr Phi Q_ij + tr Phi P_i Phi P_j
    with V:                            tr P G_i = tr V^-1 G_i + tr Phi P_i              V with V:      n - p

(P the projected inverse of V). No n x n matrix occurs: all of it comes from the blocks of the groups. Weights enter V
and nothing else changes.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.inference.curvature import Curvature
from jmixed.inference.satterthwaite import UNTESTED, JointTest, contrast_covariance, unit_contrasts

FLAT = 1e-12
"""Directions whose information is below this fraction of the largest, on the scale of correlations, are left out."""

NO_FREEDOM = 1e-6
"""Denominators up to here are none: zero, but for rounding, or negative."""


@dataclass(frozen=True)
class KenwardRoger:
    """What the tests of Kenward and Roger need.

    Attributes
    ----------
    covariance, adjusted : arrays (p, p)
        Of the fixed effects: by generalised least squares, and adjusted for small samples.
    moved : array (d, p, p)
        Phi P_i Phi: minus the change of the covariance along each direction of V.
    weights : array (d, d)
        W, the inverse expected information of these directions.
    """

    covariance: np.ndarray
    adjusted: np.ndarray
    moved: np.ndarray
    weights: np.ndarray


def kenward_roger(curvature: Curvature) -> KenwardRoger:
    """The adjusted covariance of the fixed effects, from the curvature of a REML fit."""
    phi, move = curvature.inverse, curvature.free
    P = np.einsum("im,iab->mab", move, curvature.first)
    Q = np.einsum("im,jn,ijab->mnab", move, move, curvature.second, optimize=True) / 2
    traces, products = move.T @ curvature.traces, move.T @ curvature.products @ move
    phi_P = phi @ P
    projected = products - 2 * np.einsum("ab,mnba->mn", phi, Q) + np.einsum("mab,nba->mn", phi_P, phi_P)
    with_V = traces + np.einsum("maa->m", phi_P)
    corner = np.full((1, 1), float(curvature.nobs - len(phi)))
    weights = 2 * _inverse(np.block([[corner, with_V[None]], [with_V[:, None], projected]]))
    U = np.einsum("mn,mnab->ab", weights[1:, 1:], Q - np.einsum("mab,nbc->mnac", P, phi_P, optimize=True))
    adjusted = phi + phi @ (U + U.T) @ phi
    moved = np.concatenate([-phi[None], phi_P @ phi])
    # In units of sigma^2 so far: covariances are proportional to it, W has no units.
    back = curvature.sigma * curvature.to_beta
    return KenwardRoger(back @ phi @ back.T, back @ adjusted @ back.T, back @ moved @ back.T, weights)


def _inverse(information):
    """Inverse of an information matrix; directions without information are left out, as pbkrtest does.

    nan where it is not finite, as `jmixed.fit.information.inverse_information` is.
    """
    if not np.all(np.isfinite(information)):
        return np.full_like(information, np.nan)
    scale = np.sqrt(np.maximum(np.diag(information), 0))
    scale = np.where(scale > 0, scale, 1)
    values, vectors = np.linalg.eigh(information / np.outer(scale, scale))
    kept = values > FLAT * values[-1]
    return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T / np.outer(scale, scale)


def degrees_of_freedom(pieces: KenwardRoger, L) -> np.ndarray:
    """Degrees of freedom (k,) of each contrast, a row of L (k, p)."""
    return np.array([_scale_and_denominator(pieces, row[None])[1] for row in np.asarray(L)])


def joint_test(pieces: KenwardRoger, L, difference) -> JointTest:
    """F test of L beta = q: Wald's statistic with the adjusted covariance, scaled, and its denominator.

    `difference` (k,) is the estimate of L beta less q, L (k, p). Both are nan where no F distribution has the moments
    of the statistic: r contrasts between columns that are random by no more than r groups, such as r + 1 treatments.
    With more groups the denominator is their number less r, as of Hotelling's T^2.
    """
    weights = unit_contrasts(L, pieces.covariance)
    if not weights.shape[1] or not np.all(np.isfinite(contrast_covariance(L, pieces.adjusted))):
        return UNTESTED
    L, difference = weights.T @ L, weights.T @ difference
    scale, denominator = _scale_and_denominator(pieces, L)
    wald = difference @ np.linalg.solve(contrast_covariance(L, pieces.adjusted), difference) / len(L)
    return JointTest(float(scale * wald), len(L), denominator)


def _scale_and_denominator(pieces, L):
    """lambda and m of Kenward and Roger's equations (8) to (10), for r independent contrasts."""
    r = len(L)
    if not np.all(np.diag(L @ pieces.covariance @ L.T) > 0):
        return float("nan"), float("nan")
    inner = np.linalg.solve(L @ pieces.covariance @ L.T, L @ pieces.moved @ L.T)
    single = np.einsum("iaa->i", inner)
    A1 = single @ pieces.weights @ single
    A2 = np.sum(pieces.weights * np.einsum("iab,jba->ij", inner, inner))
    if not A2 > 0:
        # The covariance does not depend on the parameters that are estimated.
        return 1.0, float("inf")
    B = (A1 + 6 * A2) / (2 * r)
    g = ((r + 1) * A1 - (r + 4) * A2) / ((r + 2) * A2)
    c1, c2, c3 = np.array([g, r - g, r + 2 - g]) / (3 * r + 2 * (1 - g))
    mean = 1 - A2 / r
    upper, lower, last = 1 + c1 * B, 1 - c2 * B, 1 - c3 * B
    rho = _ratio(mean, lower) ** 2 * (0.0 if abs(upper) < 1e-10 else upper) / last / r
    if r * rho == 1:
        return 1.0, float("inf")
    denominator = 4 + (r + 2) / (r * rho - 1)
    scale = 1.0 if abs(denominator - 2) < 0.01 else denominator * mean / (denominator - 2)
    if not (denominator > NO_FREEDOM and scale > 0):
        return float("nan"), float("nan")
    return scale, float(denominator)


def _ratio(a, b):
    """a / b, one where both vanish."""
    return 1.0 if abs(a) < 1e-14 and abs(b) < 1e-14 else a / b
