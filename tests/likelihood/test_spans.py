"""Laplace's approximation where it is hard to compute, beside its definition in dense matrices."""

import warnings

import numpy as np
import pandas as pd
from scipy.special import gammaln

import jmixed as jm


def large_counts():
    """Counts up to hundreds of thousands, of two crossed factors with large variances, many of them zero."""
    rng = np.random.default_rng(1)
    n = 120
    data = pd.DataFrame({"g": np.arange(n) // 6, "h": rng.permutation(np.arange(n) % 8), "x": np.arange(n) % 6 + 3.0})
    b, h = 3 * rng.normal(size=(20, 2)), 3 * rng.normal(size=8)
    eta = -3 + b[data["g"], 0] + b[data["g"], 1] * (data["x"] - 5.5) + h[data["h"]]
    return data.assign(y=rng.poisson(np.exp(np.minimum(eta, 12))).astype(float))


def dense_laplace(data, covariance, variance, beta):
    """-2 log-likelihood at covariances of (1, x | g) and (1 | h): Newton's method for the modes, and a determinant."""
    X = np.column_stack([np.ones(len(data)), data["x"]])
    by_g = np.eye(20)[data["g"]]
    Z = np.column_stack([np.repeat(by_g, 2, axis=1) * np.tile(X, 20), np.eye(8)[data["h"]]])
    factor = np.zeros((48, 48))
    factor[:40, :40], factor[40:, 40:] = (
        np.kron(np.eye(20), np.linalg.cholesky(covariance)),
        np.sqrt(variance) * np.eye(8),
    )
    Z, y, u = Z @ factor, data["y"].to_numpy(), np.zeros(48)

    def joint(u):
        eta = X @ beta + Z @ u
        return np.sum(np.exp(np.minimum(eta, 50)) - y * eta) + u @ u / 2

    for _ in range(300):
        mean = np.exp(X @ beta + Z @ u)
        step = np.linalg.solve(Z.T @ (mean[:, None] * Z) + np.eye(48), Z.T @ (y - mean) - u)
        length = 1.0
        while joint(u + length * step) > joint(u) + 1e-9 * abs(joint(u)) and length > 1e-6:
            length /= 2
        u = u + length * step
    mean = np.exp(X @ beta + Z @ u)
    return 2 * joint(u) + 2 * np.sum(gammaln(y + 1)) + np.linalg.slogdet(Z.T @ (mean[:, None] * Z) + np.eye(48))[1]


def test_large_weights_of_crossed_factors():
    data = large_counts()
    model = jm.mixedglm("y ~ x + (x | g) + (1 | h)", data, "poisson")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        results = [model.fit(), model.fit(theta0=np.array([0.3, 0.1, 0.3, 0.3])), model.fit(theta0=np.full(4, 2.0))]
    first = results[0]
    for other in results[1:]:
        assert abs(other.objective - first.objective) < 1e-4
    a, b = (first.fitted.fit.covariances[label] for label in model.design.labels)
    c = np.asarray(first.fe_params)
    least = dense_laplace(data, a, b[0, 0], c)
    assert abs(least - first.objective) < 1e-3
    for scale in (0.8, 1.25):
        assert dense_laplace(data, scale * a, b[0, 0], c) > least
        assert dense_laplace(data, a, scale * b[0, 0], c) > least
    for k in range(2):
        for sign in (-0.3, 0.3):
            assert dense_laplace(data, a, b[0, 0], c + sign * np.eye(2)[k]) > least
