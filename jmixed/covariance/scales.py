"""Between the scales of the variance parameters, on the host, for all terms of a model."""

import numpy as np

from jmixed.covariance.structure import SINGULAR, factors_of_theta, split


def psi_map(structures, T):
    """The matrix (m, m) that takes psi of preconditioned columns to psi of the original ones, Sigma = T Sigma~ T'."""
    return diagonal_blocks(*(structure.psi_map(basis) for structure, basis in zip(structures, T, strict=True)))


def roots_of_psi(structures, psi, T):
    """Square roots in preconditioned columns of the terms' Sigma, or None outside the cone."""
    roots = [structure.root_of_psi(piece) for structure, piece in zip(structures, split(structures, psi), strict=True)]
    if any(root is None for root in roots):
        return None
    return tuple(np.linalg.solve(basis, root) for root, basis in zip(roots, T, strict=True))


def theta_hessian(structures, theta, gradient, hessian):
    """Hessian of the deviance in theta, from its derivatives in psi; parameters that follow stay as they are."""
    slopes, bends = [], []
    terms = zip(structures, split(structures, theta), split(structures, gradient), strict=True)
    for structure, entries, slope in terms:
        first, second = structure.psi_of_theta(entries)
        slopes.append(first.T)
        bends.append(second @ slope)
    more = len(hessian) - len(theta)
    jacobian = diagonal_blocks(*slopes, np.eye(more))
    return jacobian.T @ hessian @ jacobian + diagonal_blocks(*bends, np.zeros((more, more)))


def diagonal_blocks(*blocks) -> np.ndarray:
    """One matrix with the given matrices along its diagonal, and zeros."""
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    out = np.zeros((rows[-1], columns[-1]))
    for k, block in enumerate(blocks):
        out[rows[k] : rows[k + 1], columns[k] : columns[k + 1]] = block
    return out


def typical_deviation(design, rho) -> np.ndarray:
    """Standard deviations (...,) of a row in the middle of the data, relative to sigma, at rho (..., k).

    sigma is that of rows whose columns of the dispersion are zero, which may be far from all.
    """
    columns = design.layout.residual.columns
    if not columns or rho is None:
        return np.ones(())
    there = np.asarray(design.weights) > 0
    middle = np.mean(np.asarray(design.series.dispersion)[there], axis=0)
    return np.exp(np.asarray(rho)[..., :columns] @ middle)


def vanished(design, label, sd, rho=None):
    """Which relative standard deviations (..., q) of a term count as zero.

    The measure has no units. Weights count, and rho (..., k) of the residuals, so that a standard deviation is compared
    with that of the rows there are, not of one of weight one.
    """
    Z, typical = design.Z[label], np.asarray(typical_deviation(design, rho))[..., None]
    return sd / typical * np.sqrt(np.einsum("i,ij,ij->j", design.weights, Z, Z) / design.nobs) <= SINGULAR


def settled(design, theta, rho=None) -> np.ndarray:
    """theta (..., m) with standard deviations of zero where they count as zero, not what an optimiser leaves of them.

    They have no covariances then, and no correlation that rounding decides. `rho` is as of `vanished`.
    """
    structures, pieces = design.layout.terms, []
    for structure, label, factor in zip(structures, design.labels, factors_of_theta(structures, theta), strict=True):
        zero = vanished(design, label, np.sqrt(np.sum(factor**2, axis=-1)), rho)
        pieces.append(structure.settled(factor, zero))
    return np.concatenate(pieces, axis=-1) if pieces else theta


def told_psi(structures, theta) -> np.ndarray:
    """Which entries of psi (m,) belong to variances that are positive, and so have an error."""
    terms = zip(structures, factors_of_theta(structures, theta), strict=True)
    told = [structure.told_psi(np.any(factor != 0, axis=-1)) for structure, factor in terms]
    return np.concatenate([np.zeros(0, bool), *told])


def preconditioners(design):
    """T (q, q) of every term, as in `Moments`, where cross-products are not at hand."""
    terms = zip(design.layout.terms, design.labels, strict=True)
    return tuple(_preconditioner(structure, design, label) for structure, label in terms)


def _preconditioner(structure, design, label):
    """A redundant column keeps its direction."""
    columns = np.sqrt(design.weights / design.nobs)[:, None] * design.Z[label]
    size = np.linalg.norm(columns, axis=0)
    size = np.where(size > 0, size, 1)
    triangle = np.linalg.qr(columns / size, mode="r")
    triangle = triangle * np.where(np.diag(triangle) < 0, -1, 1)[:, None]
    triangle = np.where(np.diag(triangle) < 1e-8, np.eye(structure.q), triangle)
    return structure.preconditioner(size, triangle)


def singular_flags(structures, theta, T, typical: float | np.ndarray = 1.0):
    """Whether the covariance of each term is singular at theta (..., m), by a measure without units: (..., terms).

    In preconditioned columns, so that a standard deviation is compared with sigma as the rows of the data see it, and
    so that neither the unit of a column nor, beside an intercept, its origin matters. `typical` (...,) is the
    `typical_deviation` of the residuals.
    """
    terms = zip(structures, factors_of_theta(structures, theta), T, strict=True)
    typical = np.asarray(typical)[..., None, None]
    flags = [structure.is_singular(factor / typical, basis) for structure, factor, basis in terms]
    return np.stack(flags, axis=-1) if flags else np.zeros((*np.shape(theta)[:-1], 0), bool)


def singular_terms(structures, theta, T, typical: float | np.ndarray = 1.0):
    """The same for one theta (m,), as a tuple of bool."""
    return tuple(bool(flag) for flag in singular_flags(structures, theta, T, typical))
