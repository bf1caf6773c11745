"""Satterthwaite and Kenward-Roger against n x n matrices and difference quotients, for every layout."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layouts import NAMES, case, covariances, deviance_at, draw_theta, factors, generalised, psi_of, relative_covariance
from scipy.differentiate import hessian as differences

from jmixed.inference import kenward_roger, satterthwaite
from jmixed.inference.curvature import curvature, pivoted, tangents
from jmixed.inference.variance_parameters import standard_deviations

LAYOUTS = [name for name in NAMES if name != "no random effects"]
CONTRASTS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, -2], [0.5, 0.5, 3]])


@functools.cache
def at(name, reml=True, weighted=True):
    """A case, its theta in general position, the profiled sigma there, and the curvature."""
    c = case(name, weighted=weighted)
    theta = draw_theta(c)
    d = generalised(c, [f @ f.T for f in factors(c, theta)], reml)
    sigma = np.sqrt(d.rss / d.nu)
    return c, theta, sigma, d, curvature(c.design, theta, sigma, reml)


def directions(c):
    """The derivatives (n, n) of V / sigma^2 in the entries of psi."""
    units = np.eye(c.size)
    return [relative_covariance(c, covariances(c, unit)) - np.diag(1 / c.weights) for unit in units]


def dense_kenward_roger(c, d, sigma):
    """Kenward and Roger's quantities by their definitions, in the components of V = sigma^2 / W + sum gamma_k G_k."""
    V_inv, X = d.inverse / sigma**2, c.X
    G = [np.diag(1 / c.weights), *directions(c)]
    phi = np.linalg.inv(X.T @ V_inv @ X)
    P = [-X.T @ V_inv @ g @ V_inv @ X for g in G]
    Q = [[X.T @ V_inv @ g @ V_inv @ h @ V_inv @ X for h in G] for g in G]
    traces = [[np.trace(V_inv @ g @ V_inv @ h) for h in G] for g in G]
    k = range(len(G))
    information = [
        [traces[i][j] - 2 * np.trace(phi @ Q[i][j]) + np.trace(phi @ P[i] @ phi @ P[j]) for j in k] for i in k
    ]
    W = 2 * np.linalg.inv(information)
    U = sum(W[i, j] * (Q[i][j] - P[i] @ phi @ P[j]) for i in k for j in k)
    return phi, phi + 2 * phi @ U @ phi, P, W


def dense_denominator(L, phi, P, W):
    """A1 and A2 of the paper, then the scale and the denominator of the statistic."""
    theta = L.T @ np.linalg.solve(L @ phi @ L.T, L)
    moved = [theta @ phi @ p @ phi for p in P]
    A1 = sum(W[i, j] * np.trace(a) * np.trace(b) for i, a in enumerate(moved) for j, b in enumerate(moved))
    A2 = sum(W[i, j] * np.trace(a @ b) for i, a in enumerate(moved) for j, b in enumerate(moved))
    r = len(L)
    B = (A1 + 6 * A2) / (2 * r)
    g = ((r + 1) * A1 - (r + 4) * A2) / ((r + 2) * A2)
    below = 3 * r + 2 * (1 - g)
    c1, c2, c3 = g / below, (r - g) / below, (r + 2 - g) / below
    E, V = 1 / (1 - A2 / r), 2 / r * (1 + c1 * B) / ((1 - c2 * B) ** 2 * (1 - c3 * B))
    rho = V / (2 * E**2)
    m = 4 + (r + 2) / (r * rho - 1)
    return m / (E * (m - 2)), m


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("weighted", [False, True])
def test_kenward_roger_is_the_dense_definition(name, weighted):
    c, _, sigma, d, bent = at(name, weighted=weighted)
    pieces = kenward_roger.kenward_roger(bent)
    phi, adjusted, P, W = dense_kenward_roger(c, d, sigma)
    size = np.sqrt(np.diag(phi))
    np.testing.assert_allclose(pieces.covariance / np.outer(size, size), phi / np.outer(size, size), atol=1e-10)
    np.testing.assert_allclose(pieces.adjusted / np.outer(size, size), adjusted / np.outer(size, size), atol=1e-9)
    got = kenward_roger.degrees_of_freedom(pieces, CONTRASTS)
    np.testing.assert_allclose(got, [dense_denominator(row[None], phi, P, W)[1] for row in CONTRASTS], rtol=1e-7)
    L, difference = CONTRASTS[:2], np.array([1.0, -2.0])
    scale, denominator = dense_denominator(L, phi, P, W)
    joint = kenward_roger.joint_test(pieces, L, difference)
    F = scale * difference @ np.linalg.solve(L @ adjusted @ L.T, difference) / 2
    assert (joint.F, joint.num_df, joint.den_df) == pytest.approx((F, 2, denominator), rel=1e-7)


def negative_twice_log_likelihood(c, reml, parameters):
    """The deviance in (theta, sigma), from the dense profiled one."""
    theta, sigma = parameters[:-1], parameters[-1]
    sigmas = [f @ f.T for f in factors(c, theta)]
    d = generalised(c, sigmas, reml)
    profiled = d.rss / d.nu
    return deviance_at(c, sigmas, reml) + d.nu * (np.log(sigma**2 / profiled) - 1) + d.rss / sigma**2
