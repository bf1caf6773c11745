"""Cluster-robust covariance of the fixed effects: the sandwich, with corrections for few clusters."""

import numpy as np

from jmixed.errors import ModelError
from jmixed.inference.joint_covariance import JointCovariance
from jmixed.layout.stack import ModelRows
from jmixed.runtime.precision import FLOAT

KINDS = ("CR0", "CR1", "CR2")


def cluster_sandwich(data: ModelRows, joint: JointCovariance, beta, clusters, kind: str) -> np.ndarray:
    """M (sum over clusters of X'V^-1 A e e'A'V^-1 X) M with M = (X'V^-1 X)^-1 and e = y - X beta, array (p, p).

    A is I for CR0, sqrt(m / (m - 1)) I for CR1 with m clusters. For CR2 (Bell and McCaffrey 2002; Pustejovsky and
    Tipton 2018, J. Bus. Econ. Stat. 36, with the model's V as working covariance) it is D'B^(-1/2) D with V = D'D and
    B = D (V - X M X') D', which makes the estimate unbiased when the model is right. Rows of different `clusters` (n,)
    share no random effect. Raises ModelError for another `kind`, or a single cluster.
    """
    if kind not in KINDS:
        raise ModelError(f"robust_cov: the type is {kind!r}; use one of {', '.join(map(repr, KINDS))}")
    count = int(clusters.max()) + 1
    if count < 2:
        raise ModelError("robust_cov: all rows are in one cluster; a sandwich needs at least two, better thirty")
    Z = joint.rows_of(data)
    residuals = data.y - data.offset - data.X @ beta
    if kind == "CR2":
        residuals = _adjusted(data, joint, residuals, clusters)
    weighted = data.weights[:, None] * residuals[:, None]
    # V^-1 e = W (e - Z P Z'We)
    solved = data.weights * (residuals - (Z @ joint.times(Z.T @ weighted))[:, 0])
    scores = np.zeros((count, data.X.shape[1]), FLOAT)
    np.add.at(scores, clusters, data.X * solved[:, None])
    sandwich = joint.M @ (scores.T @ scores) @ joint.M
    return sandwich * count / (count - 1) if kind == "CR1" else sandwich


def degrees_of_freedom(data: ModelRows, joint: JointCovariance, clusters, kind: str, L: np.ndarray) -> np.ndarray:
    """Satterthwaite's degrees of freedom (k,) of contrasts L (k, p) whose variances `cluster_sandwich` estimates.

    A variance is a sum of squares g_i'e over m clusters, with the model as working covariance a quadratic form whose
    weights are the eigenvalues of the covariance of the g_i'e: (Bell and McCaffrey 2002; Pustejovsky and Tipton 2018).
    """
    weights = joint.M @ L.T
    variances, across = [], []
    for rows in _by_cluster(clusters):
        X, V = data.X[rows], _covariance(data, joint, rows)
        g = np.linalg.solve(V, X @ weights)
        if kind == "CR2":
            g = _correction(X, V, joint.M) @ g
        variances.append(np.einsum("ik,ij,jk->k", g, V, g))
        across.append(X.T @ g)
    left, b = np.array(variances), np.array(across)
    out = np.empty(len(L))
    for k in range(len(L)):
        covariance = np.diag(left[:, k]) - b[:, :, k] @ joint.M @ b[:, :, k].T
        out[k] = np.trace(covariance) ** 2 / np.sum(covariance**2)
    return out


def _adjusted(data, joint, residuals, clusters):
    """A e of CR2, cluster by cluster."""
    out = np.empty_like(residuals)
    for rows in _by_cluster(clusters):
        V = _covariance(data, joint, rows)
        out[rows] = _correction(data.X[rows], V, joint.M) @ residuals[rows]
    return out


def _by_cluster(clusters):
    """The rows of each cluster."""
    return np.split(np.argsort(clusters, kind="stable"), np.cumsum(np.bincount(clusters))[:-1])


def _covariance(data, joint, rows):
    """The model's covariance of some rows, relative to the residual variance."""
    V = np.diag(1 / data.weights[rows])
    for term, prior, T in zip(data.terms, joint.priors, joint.bases, strict=True):
        codes, Z = term.codes[rows], term.Z[rows] @ T
        V += (Z @ prior @ Z.T) * (codes[:, None] == codes)
    return V


def _correction(X, V, M):
    """A = D'B^(-1/2) D of a cluster, symmetric."""
    D = np.linalg.cholesky(V).T
    values, vectors = np.linalg.eigh(D @ (V - X @ M @ X.T) @ D.T)
    # B is singular where a cluster alone determines a coefficient: the Moore-Penrose inverse leaves that part out.
    sound = values > 1e-12 * values[-1]
    root = np.where(sound, 1 / np.sqrt(np.where(sound, values, 1)), 0)
    return D.T @ (vectors * root) @ vectors.T @ D
