"""Covariance structures of random effects: parameters, factors, linear coordinates.

A term with q columns has the relative covariance ``Sigma = lambda lambda'`` (relative to sigma^2). It is written in
three ways:

* ``theta``: entries of the lower-triangular ``lambda``, column by column (Bates et al. 2015, J. Stat. Softw. 67(1));
* ``psi``: the lower triangle of ``Sigma``, row by row. ``Sigma`` is linear in psi, so derivatives are simplest there;
* ``lambda`` itself, any square root of ``Sigma``.

An ``identity`` term has ``Sigma = psi I`` and ``lambda = theta I`` whatever its number of columns.
"""

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import take

UNSTRUCTURED = "unstructured"
IDENTITY = "identity"


@dataclass(frozen=True)
class Structure:
    """The covariance structure of one random-effects term.

    Attributes
    ----------
    q : int
        Number of columns.
    kind : str
        ``"unstructured"`` (any positive semidefinite q x q matrix) or ``"identity"`` (one variance).
    intercept : int or None
        Position of a constant column, on which the others may be centred.
    """

    q: int
    kind: str = UNSTRUCTURED
    intercept: int | None = None

    @property
    def size(self) -> int:
        """Number of parameters."""
        return 1 if self.kind == IDENTITY else self.q * (self.q + 1) // 2

    def psi_indices(self):
        """Rows and columns of psi's entries: the lower triangle, row by row."""
        return _lower_triangle(self.q)

    def theta_indices(self):
        """Rows and columns of theta's entries: the lower triangle, column by column."""
        return _lower_triangle(self.q, by_column=True)

    def _mirrored(self):
        """Row and column in the lower triangle of every entry (q, q) of a symmetric matrix."""
        one, other = np.indices((self.q, self.q))
        return np.maximum(one, other), np.minimum(one, other)

    def factor(self, theta):
        """``lambda`` (q, q) from theta (size,)."""
        if self.kind == IDENTITY:
            return theta[0] * np.eye(self.q, dtype=theta.dtype)
        rows, columns = self._mirrored()
        place = columns * self.q - columns * (columns - 1) // 2 + rows - columns
        return take(theta, place) * np.tri(self.q, dtype=theta.dtype)

    def theta(self, factor):
        """theta (size,) from a lower-triangular ``lambda`` (q, q)."""
        return factor[:1, 0] if self.kind == IDENTITY else take(factor, *self.theta_indices())

    def covariance(self, psi):
        """``Sigma`` (q, q) from psi (size,)."""
        if self.kind == IDENTITY:
            return psi[0] * np.eye(self.q, dtype=psi.dtype)
        rows, columns = self._mirrored()
        return take(psi, rows * (rows + 1) // 2 + columns)

    def psi(self, covariance):
        """psi (size,) from ``Sigma`` (q, q)."""
        return covariance[:1, 0] if self.kind == IDENTITY else take(covariance, *self.psi_indices())

    def direction(self, k: int):
        """The derivative (q, q) of Sigma in psi's entry k, as a numpy array."""
        if self.kind == IDENTITY:
            return np.eye(self.q)
        unit = np.zeros((self.q, self.q))
        rows, columns = self.psi_indices()
        unit[rows[k], columns[k]] = unit[columns[k], rows[k]] = 1
        return unit

    def gradient_matrix(self, gradient):
        """The symmetric G with ``dd = <G, dSigma>`` from the gradient in psi; a multiple of I for an identity term."""
        if self.kind == IDENTITY:
            return gradient[0] / self.q * np.eye(self.q, dtype=gradient.dtype)
        return self.covariance(gradient) * ((1 + np.eye(self.q, dtype=gradient.dtype)) / 2)


def _lower_triangle(q, by_column=False):
    # New arrays every time: JAX takes one that it has seen before for what it was then, in another precision perhaps.
    rows, columns = _remembered_triangle(q, by_column)
    return rows.copy(), columns.copy()


@functools.cache
def _remembered_triangle(q, by_column):
    return np.triu_indices(q)[::-1] if by_column else np.tril_indices(q)


def split(structures, vector):
    """Cut a parameter vector into the pieces of its terms."""
    ends = np.cumsum([s.size for s in structures])
    return [vector[end - s.size : end] for s, end in zip(structures, ends, strict=True)]


def join(pieces, dtype):
    """Inverse of `split`, also for no pieces."""
    return jnp.concatenate(pieces) if pieces else jnp.zeros(0, dtype)


def rectify(root, tolerance=1e-9):
    """The canonical Cholesky factor of ``root @ root.T``: non-negative diagonal, zero column below a zero pivot.

    Gram-Schmidt on the rows, twice, which keeps the digits that forming the product would lose.

    Parameters
    ----------
    root : array (q, q)
        Any square root of a covariance matrix.
    tolerance : float
        A pivot below this fraction of its row's length is zero.
    """
    q = root.shape[0]
    directions, rows = [], []
    for i in range(q):
        rest, row = root[i], []
        length = _safe_norm(rest)
        for direction in directions:
            row.append(jnp.dot(rest, direction))
            rest = rest - row[-1] * direction
        for k, direction in enumerate(directions):
            correction = jnp.dot(rest, direction)
            row[k] = row[k] + correction
            rest = rest - correction * direction
        pivot = _safe_norm(rest)
        zero = pivot <= tolerance * length
        directions.append(jnp.where(zero, 0, rest / jnp.where(zero, 1, pivot)))
        rows.append(jnp.stack([*row, jnp.where(zero, 0, pivot)] + [jnp.zeros_like(pivot)] * (q - 1 - i)))
    return jnp.stack(rows)


def _safe_norm(x):
    """Euclidean norm whose derivative at zero is zero."""
    square = jnp.sum(x * x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def block_diagonal(blocks):
    """One matrix with the given square blocks on its diagonal."""
    if len(blocks) == 1:
        return blocks[0]
    ends = np.cumsum([block.shape[0] for block in blocks])
    pads = [(end - block.shape[0], ends[-1] - end) for block, end in zip(blocks, ends, strict=True)]
    return jnp.concatenate([jnp.pad(block, ((0, 0), pad)) for block, pad in zip(blocks, pads, strict=True)])
