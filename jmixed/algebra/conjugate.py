"""Conjugate gradients for many right-hand sides at once, and what they tell of a logarithm, on the host.

A right-hand side stops for itself, so that it costs what it needs. The coefficients of the steps are the entries of the
Lanczos process that begins with the right-hand side: z'log(K)z is a Gauss quadrature from them (Golub and Meurant 2010,
Matrices, Moments and Quadrature; Ubaru, Chen and Saad 2017, SIAM J. Matrix Anal. Appl. 38(4)).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class Solves:
    """Solutions X (n, k) of K X = B, and how they were found.

    Attributes
    ----------
    steps : int
        Of the column that took the most.
    solved : bool
        Whether all columns reached their tolerance.
    alphas, betas : arrays (steps, k)
        Lengths of the steps and ratios of the residuals' squares, nan where a column had stopped; empty where they
        were not asked for.
    """

    X: np.ndarray
    steps: int
    solved: bool
    alphas: np.ndarray
    betas: np.ndarray


def conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray],
    B: np.ndarray,
    tolerance: float,
    limit: int,
    KB: np.ndarray | None = None,
) -> Solves:
    """Solve K X = B for a symmetric positive definite K, known by its products, until |r| <= tolerance |b|.

    `KB` (n, k) is the product with B itself, where it is known already.
    """
    X, R, steps = np.zeros_like(B), B.copy(), 0
    P, squares = B.copy(), _dots(B, B)
    enough = tolerance**2 * squares
    live = np.flatnonzero(squares > 0)
    R, P, squares = R[:, live], P[:, live], squares[live]
    alphas, betas = [], []
    while len(live) and steps < limit:
        KP = KB[:, live] if steps == 0 and KB is not None else apply(P)
        curvature = _dots(P, KP)
        alpha = squares / curvature
        X[:, live] += alpha * P
        R -= alpha * KP
        after = _dots(R, R)
        beta = after / squares
        for record, value in ((alphas, alpha), (betas, beta)):
            row = np.full(B.shape[1], np.nan)
            row[live] = value
            record.append(row)
        goes_on = after > enough[live]
        steps += 1
        if goes_on.all():
            P *= beta
            P += R
            squares = after
            continue
        live, R, squares = live[goes_on], R[:, goes_on], after[goes_on]
        P = R + beta[goes_on] * P[:, goes_on]
    shape = steps, B.shape[1]
    solved = not len(live) and bool(np.isfinite(X).all())
    return Solves(X, steps, solved, np.reshape(alphas, shape), np.reshape(betas, shape))


def _dots(A, B):
    return np.einsum("ik,ik->k", A, B)


def logarithms(B: np.ndarray, solves: Solves) -> np.ndarray:
    """b'log(K)b (k,) of every right-hand side b in B (n, k), from the steps that solved K x = b."""
    out = np.zeros(B.shape[1])
    for column, square in enumerate(_dots(B, B)):
        there = ~np.isnan(solves.alphas[:, column])
        alpha, beta = solves.alphas[there, column], solves.betas[there, column]
        if not len(alpha):
            continue
        diagonal = 1 / alpha
        diagonal[1:] += beta[:-1] / alpha[:-1]
        T = np.diag(diagonal)
        beside = np.sqrt(beta[:-1]) / alpha[:-1]
        T[range(len(beside)), range(1, len(alpha))] = T[range(1, len(alpha)), range(len(beside))] = beside
        values, vectors = np.linalg.eigh(T)
        out[column] = square * np.sum(vectors[0] ** 2 * np.log(np.maximum(values, np.finfo(float).tiny)))
    return out
