"""Kenward and Roger's quantities by their definitions, from dense n x n matrices."""

import numpy as np


def kenward_roger(V_inv, X, G):
    """Phi, the adjusted covariance, P_k and W of the paper, for V that moves along straight paths in directions G_k."""
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


def denominator(L, phi, P, W):
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
