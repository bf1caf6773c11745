"""Coefficients without a finite estimate: directions in which a likelihood never falls, whatever the random effects.

A response that is all success may have any linear predictor that is higher, one that is all failure, or a count of
zero, any that is lower. A direction d of the coefficients with x'd = 0 in all other rows, and of the right sign in
these, raises the likelihood for ever, unless x'd is zero everywhere (Albert and Anderson 1984, Biometrika 71). Whether
there is one is a linear programme.
"""

import numpy as np

EXTREME = 8.0
"""Size of the fixed part, from its middle, below which no coefficient has run off."""
ZERO = 1e-7
"""What counts as zero, relative to the largest."""


def separated_columns(X: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Which columns of X (n, p) a direction of separation changes, bool array (p,); `signs` (n,) as of a family."""
    from scipy.optimize import linprog

    n, p = X.shape
    none = np.zeros(p, bool)
    if not p:
        return none
    scale = np.sqrt(np.mean(X**2, axis=0))
    scale = np.where(scale > 0, scale, 1)
    rows = X / scale
    basis = _null_space(rows[signs == 0])
    if not basis.shape[1]:
        return none
    along = np.unique(np.round((signs[:, None] * rows)[signs != 0] @ basis, 12), axis=0)
    size = np.max(np.abs(along), initial=0)
    if not size:
        return none
    optimum = linprog(-np.mean(along, axis=0), A_ub=-along, b_ub=np.zeros(len(along)), bounds=(-1, 1), method="highs")
    if not optimum.success or -optimum.fun <= ZERO * size:
        return none
    direction = np.abs(basis @ optimum.x)
    return direction > 1e-5 * np.max(direction)


def _null_space(rows: np.ndarray) -> np.ndarray:
    """Directions (p, k) that all rows (r, p) are orthogonal to."""
    p = rows.shape[1]
    if not len(rows):
        return np.eye(p)
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    return vectors[:, values <= 1e-12 * max(values[-1], 1)]
