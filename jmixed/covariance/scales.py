"""Between the scales of the variance parameters, on the host: psi, theta, preconditioned and original columns."""

import functools
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jmixed.covariance.structure import Structure, split


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """How well the variance parameters are known.

    Attributes
    ----------
    vcov_psi, vcov_theta : arrays (m, m)
        Covariances of the estimates of psi and of theta.
    scale_gradient : array (m,)
        Derivative of the profiled sigma^2 in psi.
    """

    vcov_psi: np.ndarray
    vcov_theta: np.ndarray
    scale_gradient: np.ndarray

    @property
    def with_scale(self) -> tuple[np.ndarray, float]:
        """Covariance (m,) of psi with the profiled sigma^2, and the variance that psi gives to that."""
        return _with_scale(self)


@dataclass(frozen=True, eq=False)
class Curvature:
    """Derivatives of the deviance at an optimum, in psi of preconditioned columns; an `Uncertainty` when asked for one.

    Attributes
    ----------
    structures : tuple of Structure
    theta : array (m,)
    T : tuple of arrays (q, q)
        Preconditioners of the terms.
    gradient, slope : arrays (m,)
        Derivatives of the deviance and of the profiled sigma^2.
    hessian : array (m, m)
    """

    structures: tuple[Structure, ...]
    theta: np.ndarray
    T: tuple[np.ndarray, ...]
    gradient: np.ndarray
    hessian: np.ndarray
    slope: np.ndarray

    @cached_property
    def _vcov(self):
        """Inverse observed information of psi in preconditioned columns, where no origin is far away."""
        return inverse_information(self.hessian)

    @cached_property
    def _hessian(self):
        """In psi of the original columns."""
        back = np.linalg.inv(psi_map(self.structures, self.T))
        return back.T @ self.hessian @ back

    @cached_property
    def _told(self):
        """Which entries of psi belong to variances that are positive."""
        terms = zip(self.structures, factors_of_theta(self.structures, self.theta), strict=True)
        told = [told_psi(structure, np.any(factor != 0, axis=-1)) for structure, factor in terms]
        return np.concatenate([np.zeros(0, bool), *told])

    @cached_property
    def vcov_psi(self) -> np.ndarray:
        """Inverse observed information of psi; nan where it is not positive definite, and of variances of zero."""
        if not self._told.all():
            return _information_of(self._hessian, self._told)
        forward = psi_map(self.structures, self.T)
        return forward @ self._vcov @ forward.T

    @cached_property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta; nan where it is not positive definite, and beside a zero pivot."""
        factors = factors_of_theta(self.structures, self.theta)
        if not any(vanishing(self.structures, factors, self.T)):
            terms = zip(self.structures, factors, self.T, strict=True)
            slopes = diagonal_blocks(*(theta_slopes(*term) for term in terms))
            return slopes @ self._vcov @ slopes.T
        # Where a covariance is singular theta bends more than psi, and the gradient in psi does not vanish.
        gradient = np.linalg.solve(psi_map(self.structures, self.T).T, self.gradient)
        hessian, told = theta_hessian(self.structures, self.theta, gradient, self._hessian), []
        for structure, factor in zip(self.structures, factors, strict=True):
            rows, columns = (np.zeros(1, int),) * 2 if structure.kind == "identity" else structure.theta_indices()
            pivots = np.diagonal(factor) != 0
            told.append(np.any(factor != 0, axis=-1)[rows] & pivots[columns])
        return _information_of(hessian, np.concatenate(told))

    @cached_property
    def scale_gradient(self) -> np.ndarray:
        """Derivative of the profiled sigma^2 in psi."""
        return np.linalg.solve(psi_map(self.structures, self.T).T, self.slope)

    @property
    def with_scale(self) -> tuple[np.ndarray, float]:
        """Covariance (m,) of psi with the profiled sigma^2, and the variance that psi gives to that."""
        if not self._told.all():
            return _with_scale(self)
        across = self._vcov @ self.slope
        return psi_map(self.structures, self.T) @ across, float(self.slope @ across)


def _with_scale(known):
    """By psi of the original columns; a variance of zero counts as known."""
    untold = np.isnan(np.diag(known.vcov_psi))
    vcov_psi = np.where(np.logical_or.outer(untold, untold), 0, known.vcov_psi)
    across = vcov_psi @ known.scale_gradient
    return across, float(known.scale_gradient @ across)


def row_major(structures, values):
    """Reorder a vector over theta (column-major lower triangles) to row-major lower triangles."""
    pieces = []
    for structure, piece in zip(structures, split(structures, values), strict=True):
        if structure.kind == "unstructured":
            full = np.zeros((structure.q,) * 2, values.dtype)
            full[structure.theta_indices()] = piece
            piece = full[structure.psi_indices()]
        pieces.append(piece)
    return np.concatenate(pieces)


def psi_map(structures, T):
    """The matrix (m, m) that takes psi of preconditioned columns to psi of the original ones, Sigma = T Sigma~ T'."""
    blocks = []
    for structure, basis in zip(structures, T, strict=True):
        if structure.kind == "identity":
            blocks.append(basis[:1, :1] ** 2)
            continue
        rows, columns = structure.psi_indices()
        swapped = np.where(rows == columns, 0, basis[rows][:, columns] * basis[columns][:, rows])
        blocks.append(basis[rows][:, rows] * basis[columns][:, columns] + swapped)
    return diagonal_blocks(*blocks)


def diagonal_blocks(*blocks) -> np.ndarray:
    """One matrix with the given matrices along its diagonal, and zeros."""
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    out = np.zeros((rows[-1], columns[-1]))
    for k, block in enumerate(blocks):
        out[rows[k] : rows[k + 1], columns[k] : columns[k + 1]] = block
    return out


def theta_hessian(structures, theta, gradient, hessian):
    """Hessian of the deviance in theta, from its derivatives in psi; psi is quadratic in theta."""
    slopes, bends = [], []
    for structure, own, slope in zip(structures, split(structures, theta), split(structures, gradient), strict=True):
        second = _bends(structure.q, structure.kind)
        # By Euler's theorem the first derivatives of a quadratic form are its second ones times theta.
        slopes.append((own @ second).T)
        bends.append(second @ slope)
    jacobian = diagonal_blocks(*slopes)
    return jacobian.T @ hessian @ jacobian + diagonal_blocks(*bends)


@functools.cache
def _bends(q, kind):
    """Second derivatives (size, size, size) of psi, the last axis, in theta."""
    structure = Structure(q, kind)
    if kind == "identity":
        return np.full((1, 1, 1), 2.0)
    units = np.zeros((structure.size, q, q))
    units[(np.arange(structure.size), *structure.theta_indices())] = 1
    products = np.einsum("kij,lhj->klih", units, units)
    return (products + products.transpose(0, 1, 3, 2))[..., *structure.psi_indices()]


def inverse_information(hessian):
    """2 H^-1, or nan where H is not positive definite (observed information of a deviance is H / 2)."""
    if not len(hessian):
        return hessian
    scale = np.sqrt(np.abs(np.diag(hessian)))
    scale = np.where(scale > 0, scale, 1)
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    if not values[0] > 1e-12 * values[-1]:
        return np.full_like(hessian, np.nan)
    return 2 * (vectors / values @ vectors.T) / np.outer(scale, scale)


def told_psi(structure, positive) -> np.ndarray:
    """Which entries of a term's psi (size,) belong to variances that are positive (q,), and so have an error."""
    if structure.kind == "identity":
        return positive[:1]
    rows, columns = structure.psi_indices()
    return positive[rows] & positive[columns]


def _information_of(hessian, told):
    """Inverse information of the parameters that are told; a zero at its boundary counts as known, without an error."""
    chosen = np.flatnonzero(told)
    covariance = np.full(hessian.shape, np.nan)
    covariance[np.ix_(chosen, chosen)] = inverse_information(hessian[np.ix_(chosen, chosen)])
    return covariance


def factors_of_theta(structures, theta):
    """``lambda`` (..., q, q) of every term from theta (..., m), in numpy."""
    factors = []
    ends = np.cumsum([s.size for s in structures])
    for structure, end in zip(structures, ends, strict=True):
        piece = theta[..., end - structure.size : end]
        if structure.kind == "unstructured":
            factor = np.zeros((*piece.shape[:-1], structure.q, structure.q))
            factor[..., *structure.theta_indices()] = piece
        else:
            factor = np.eye(structure.q) * piece[..., None]
        factors.append(factor)
    return factors


SINGULAR = 1e-4
"""A standard deviation below this fraction of sigma is zero, and a pivot below this one of its row, as in lme4."""


def vanished(design, label, sd):
    """Which relative standard deviations (..., q) of a term count as zero.

    The measure has no units. Weights count, so that a standard deviation is compared with that of the rows there are,
    not of one of weight one.
    """
    Z = design.Z[label]
    return sd * np.sqrt(np.einsum("i,ij,ij->j", design.weights, Z, Z) / design.nobs) <= SINGULAR


def settled(design, theta) -> np.ndarray:
    """theta (..., m) with standard deviations of zero where they count as zero, not what an optimiser leaves of them.

    They have no covariances then, and no correlation that rounding decides.
    """
    pieces = []
    structures = design.layout.terms
    for structure, label, factor in zip(structures, design.labels, factors_of_theta(structures, theta), strict=True):
        zero = vanished(design, label, np.sqrt(np.sum(factor**2, axis=-1)))
        if structure.kind == "identity":
            pieces.append(np.where(zero[..., :1], 0, factor[..., :1, 0]))
            continue
        left = np.where(zero[..., None], 0, factor)
        canonical = np.where(np.any(zero, axis=-1)[..., None, None], _rectified(left), factor)
        pieces.append(canonical[..., *structure.theta_indices()])
    return np.concatenate(pieces, axis=-1) if pieces else theta


def _rectified(root):
    """As `covariance.rectify`, in numpy, for roots (..., q, q)."""
    directions, out = [], np.zeros_like(root)
    for i in range(root.shape[-1]):
        rest = np.array(root[..., i, :])
        length = np.linalg.norm(rest, axis=-1)
        for _ in range(2):
            for k, direction in enumerate(directions):
                along = np.sum(rest * direction, axis=-1)
                out[..., i, k] += along
                rest -= along[..., None] * direction
        pivot = np.linalg.norm(rest, axis=-1)
        zero = pivot <= 1e-9 * length
        directions.append(np.where(zero[..., None], 0, rest / np.where(zero, 1, pivot)[..., None]))
        out[..., i, i] = np.where(zero, 0, pivot)
    return out


def theta_slopes(structure, factor, T):
    """Derivatives (size, size) of theta in psi of preconditioned columns, for a factor of full rank.

    With R = T^-1 lambda, a change E of the covariance in preconditioned columns moves lambda by lambda L, where L is
    the lower triangle of R^-1 E R^-T with half its diagonal. R is as well conditioned as the covariance itself, however
    far away the origin of a column is.
    """
    if structure.kind == "identity":
        return T[:1, :1] ** 2 / (2 * factor[:1, :1])
    rows, columns = structure.psi_indices()
    units = np.zeros((structure.size, structure.q, structure.q))
    units[np.arange(structure.size), rows, columns] = units[np.arange(structure.size), columns, rows] = 1
    inverse = np.linalg.inv(np.linalg.solve(T, factor))
    half = np.tril(inverse @ units @ inverse.T)
    half[:, range(structure.q), range(structure.q)] /= 2
    return (factor @ half)[:, *structure.theta_indices()].T


def preconditioners(design):
    """T of every term, (q, q): as of `Moments`, for designs whose cross-products are not at hand."""
    found = []
    for structure, label in zip(design.layout.terms, design.labels, strict=True):
        Z = np.sqrt(design.weights / design.nobs)[:, None] * design.Z[label]
        size = np.linalg.norm(Z, axis=0)
        size = np.where(size > 0, size, 1)
        if structure.kind == "identity":
            found.append(np.eye(structure.q) / np.sqrt(np.mean(size**2)))
            continue
        triangle = np.linalg.qr(Z / size, mode="r")
        triangle = triangle * np.where(np.diag(triangle) < 0, -1, 1)[:, None]
        triangle = np.where(np.diag(triangle) < 1e-8, np.eye(structure.q), triangle)
        found.append(np.linalg.inv(triangle) / size[:, None])
    return tuple(found)


def vanishing(structures, factors, T):
    """Whether each term's covariance is singular, by a measure without units (1e-4, as lme4's): list of (...,).

    In preconditioned columns, so that a standard deviation is compared with sigma as the rows of the data see it, and
    so that neither the unit of a column nor, beside an intercept, its origin matters.
    """
    flags = []
    for structure, factor, basis in zip(structures, factors, T, strict=True):
        if structure.kind == "identity":
            flags.append(np.abs(factor[..., 0, 0]) <= SINGULAR * basis[0, 0])
            continue
        root = np.linalg.solve(basis, factor)
        pivots = np.abs(np.diagonal(np.linalg.qr(np.swapaxes(root, -1, -2), mode="r"), axis1=-2, axis2=-1))
        length = np.sqrt(np.sum(root**2, axis=-1))
        flags.append(np.any((pivots <= SINGULAR * length) | (length <= SINGULAR), axis=-1))
    return flags


def singular_flags(structures, theta, T):
    """Whether the covariance of each term is singular at theta (..., m): bool array (..., terms)."""
    flags = vanishing(structures, factors_of_theta(structures, theta), T)
    return np.stack(flags, axis=-1) if flags else np.zeros((*np.shape(theta)[:-1], 0), bool)


def singular_terms(structures, theta, T):
    """The same for one theta (m,), as a tuple of bool."""
    return tuple(bool(flag) for flag in singular_flags(structures, theta, T))


def roots_of_psi(structures, psi, T):
    """Square roots in preconditioned columns of the terms' Sigma, or None outside the cone."""
    roots = []
    for structure, piece, basis in zip(structures, split(structures, psi), T, strict=True):
        if structure.kind == "identity":
            if piece[0] < 0:
                return None
            root = np.sqrt(piece[0]) * np.eye(structure.q)
        else:
            rows, columns = structure.psi_indices()
            sigma = np.zeros((structure.q,) * 2)
            sigma[rows, columns] = sigma[columns, rows] = piece
            values, vectors = np.linalg.eigh(sigma)
            if values[0] < -1e-12 * max(values[-1], 0):
                return None
            root = vectors * np.sqrt(np.maximum(values, 0))
        roots.append(np.linalg.solve(basis, root))
    return tuple(roots)
