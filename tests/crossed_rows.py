"""Rows of three crossed factors, one with slopes, for tests of the iterative way; and dense matrices of them."""

import numpy as np

from jmixed.covariance.unstructured import Unstructured
from jmixed.layout.incidence import Incidence


def rows(n=260, counts=(40, 15, 6), weighted=True, seed=0):
    """An `Incidence`: a has an intercept and a slope, b an intercept, c a slope far from its origin."""
    rng = np.random.default_rng(seed)
    codes = tuple(np.concatenate([np.arange(count), rng.integers(0, count, n - count)]) for count in counts)
    x = rng.normal(size=n) + 4
    Z = (np.column_stack([np.ones(n), x]), np.ones((n, 1)), x[:, None])
    weights = rng.uniform(0.5, 2, n) if weighted else np.ones(n)
    offset = rng.normal(size=n) if weighted else np.zeros(n)
    y = 1 + 0.5 * x + offset + rng.normal(size=n) / np.sqrt(weights)
    for own, columns in zip(codes, Z, strict=True):
        y += np.einsum("ij,ij->i", columns, 0.5 * rng.normal(size=(own.max() + 1, columns.shape[1]))[own])
    return Incidence(
        y=y,
        X=np.column_stack([np.ones(n), x]),
        weights=weights,
        offset=offset,
        structures=(Unstructured(2, 0), Unstructured(1, 0), Unstructured(1)),
        Z=Z,
        factors=((0,), (1,), (2,)),
        codes=codes,
        counts=counts,
        labels=("a", "b", "c"),
    )


def dense_Z(rows, t):
    """The columns of a term by level, (n, levels q)."""
    n, q = rows.Z[t].shape
    whole = np.zeros((n, rows.counts[t], q))
    whole[np.arange(n), rows.codes[t]] = rows.Z[t]
    return whole.reshape(n, -1)


def dense_covariance(rows, covariances):
    """V / sigma^2 of all rows (n, n), at relative covariances (q, q) by term."""
    V = np.diag(1 / rows.weights)
    for t, covariance in enumerate(covariances):
        Z = dense_Z(rows, t)
        V += Z @ np.kron(np.eye(rows.counts[t]), covariance) @ Z.T
    return V


def dense_deviance(rows, covariances, reml):
    """The deviance from the covariance matrix of all rows, profiled over sigma, at relative covariances; and beta."""
    n, p = rows.X.shape
    V = dense_covariance(rows, covariances)
    inverse = np.linalg.inv(V)
    A, y = rows.X.T @ inverse @ rows.X, rows.y - rows.offset
    beta = np.linalg.solve(A, rows.X.T @ inverse @ y)
    left = y - rows.X @ beta
    nu = n - p if reml else n
    logdet = np.linalg.slogdet(V)[1] + (np.linalg.slogdet(A)[1] if reml else 0)
    return logdet + nu * (1 + np.log(2 * np.pi * (left @ inverse @ left) / nu)), beta
