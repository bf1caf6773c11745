"""Leverages, and the residuals and distances that rest on them."""

from dataclasses import dataclass

import numpy as np

from jmixed.inference.joint_covariance import JointCovariance
from jmixed.layout.stack import ModelRows


@dataclass(frozen=True)
class RowDiagnostics:
    """One number for each row of the data.

    Attributes
    ----------
    hat : array (n,)
        Leverage: the derivative of the fitted value in the response, given the variance parameters; their sum is the
        effective number of coefficients.
    standardised : array (n,)
        Conditional residual over its standard deviation given the variance parameters, sigma sqrt((1 - hat) / w).
    cooks_distance : array (n,)
        hat / (1 - hat) times the squared standardised residual over the number of fixed effects, as in lme4.
    """

    hat: np.ndarray
    standardised: np.ndarray
    cooks_distance: np.ndarray


ALONE = 1e-9
"""What is left of a direction in which one cluster has all the data."""
ENTRIES = 2**26
"""Products of rows and coefficients up to which clusters that share coefficients are left out."""


def cluster_distances(
    data: ModelRows, joint: JointCovariance, residuals: np.ndarray, clusters: np.ndarray, apart: bool
) -> np.ndarray | None:
    """Cook's distance (m,) of each cluster of rows, at the variance parameters of all rows; None where that is long.

    In closed form: with h = X - Z K, M = L L' and the leverages H = W^(1/2) (h M h' + Z P Z') W^(1/2) of the rows of a
    cluster, beta^ less the estimate without them is L v, v = L'h'W^(1/2) (I - H)^-1 W^(1/2) e, e their conditional
    residuals; the distance is v'v / (sigma^2 p) (Christensen, Pearson & Johnson 1992, Technometrics 34, 38-45;
    Demidenko & Stukel 2005). Where clusters share no random effect, `apart`, v is (I - L'X'W h L)^-1 L'X'W e.
    `clusters` (n,) has the cluster of each row. NaN for a cluster that alone determines a coefficient.
    """
    count, p = int(clusters.max()) + 1, data.X.shape[1]
    Z = joint.rows_of(data)
    L = np.linalg.cholesky(joint.M)
    h, weights = (data.X - Z @ joint.K) @ L, data.weights
    if apart:
        X, left = data.X @ L, weights * residuals
        own = [np.bincount(clusters, weights * X[:, i] * h[:, j], count) for i in range(p) for j in range(p)]
        scores = np.stack([np.bincount(clusters, left * X[:, i], count) for i in range(p)], axis=1)
        rest = np.eye(p) - np.reshape(own, (p, p, count)).transpose(2, 0, 1)
        told = np.linalg.svd(rest, compute_uv=False)[:, -1] > ALONE
        v = np.linalg.solve(np.where(told[:, None, None], rest, np.eye(p)), scores[:, :, None])[:, :, 0]
        return np.where(told, np.sum(v**2, axis=1), np.nan) / (joint.sigma**2 * p)
    sizes = np.bincount(clusters)
    if len(data.y) * max(joint.size, int(sizes.max())) > ENTRIES:
        return None
    out, root = np.empty(count), np.sqrt(weights)
    for k, rows in enumerate(np.split(np.argsort(clusters, kind="stable"), np.cumsum(sizes)[:-1])):
        mine, own = Z[rows], h[rows]
        H = root[rows, None] * (own @ own.T + mine @ joint.times(mine.T.toarray())) * root[rows]
        values, vectors = np.linalg.eigh(np.eye(len(rows)) - (H + H.T) / 2)
        v = (own * root[rows, None]).T @ vectors / values @ (vectors.T @ (root[rows] * residuals[rows]))
        out[k] = v @ v if values[0] > ALONE else np.nan
    return out / (joint.sigma**2 * p)


def row_diagnostics(data: ModelRows, joint: JointCovariance, residuals) -> RowDiagnostics:
    """Diagnostics of the model's rows, from their conditional residuals (n,).

    The leverage of a row is w times the variance of its fitted value over sigma^2 (Demidenko and Stukel 2005, Stat.
    Med. 24, 893-909): the hat matrix of the least-squares problem augmented by the random effects' penalty. What rests
    on a residual is NaN where a leverage of one leaves none, and so is Cook's distance without fixed effects.
    """
    Z = joint.rows_of(data)
    hat = data.weights * joint.variances(data.X, Z) / joint.sigma**2
    left = np.where(1 - hat > 1e-10, 1 - hat, np.nan)
    standardised = residuals * np.sqrt(data.weights / left) / joint.sigma
    # Without fixed effects there is nothing that a row could move.
    return RowDiagnostics(hat, standardised, standardised**2 * hat / left / (data.X.shape[1] or np.nan))
