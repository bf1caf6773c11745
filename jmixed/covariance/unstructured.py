"""Any positive semidefinite covariance: q (q + 1) / 2 parameters.

theta is the lower triangle of lambda, column by column; psi that of Sigma, row by row. The chart is
``Sigma = A L(phi) L(phi)' A'`` with A the eigenvectors of Sigma, largest first, and L lower triangular: with R = A L,
psi's entry (i, j) has the derivative A_ir R_jc + A_jr R_ic in L_rc; the second derivatives join entries of one column
of L, and their product with the gradient G in Sigma is 2 (A'GA)_rr'.
"""

import functools
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh, triangular_inverse
from jmixed.algebra.sums import take
from jmixed.covariance.structure import SINGULAR, Readable, Structure, rectified


@dataclass(frozen=True)
class Unstructured(Structure):
    """Variances and correlations of all columns; see `Structure`."""

    word_in_files = "unstructured covariance"

    q: int
    intercept: int | None = None

    @property
    def size(self):
        return self.q * (self.q + 1) // 2

    @property
    def any_basis(self):
        return True

    def psi_indices(self):
        """Rows and columns of psi's entries: the lower triangle, row by row."""
        return _lower_triangle(self.q)

    def theta_indices(self):
        """Rows and columns of theta's entries: the lower triangle, column by column."""
        return _lower_triangle(self.q, by_column=True)

    def factor(self, theta):
        return take(theta, _places(self.q, by_column=True)) * np.tri(self.q, dtype=theta.dtype)

    def theta(self, factor):
        return take(factor, *self.theta_indices())

    def covariance(self, psi):
        return take(psi, _places(self.q))

    def psi(self, covariance):
        return take(covariance, *self.psi_indices())

    def gradient_matrix(self, gradient):
        """The symmetric G with ``dd = <G, dSigma>`` from the gradient in psi."""
        return self.covariance(gradient) * ((1 + np.eye(self.q, dtype=gradient.dtype)) / 2)

    def chart(self, covariance, unit):
        values, vectors = eigh(covariance / (unit[:, None] * unit[None]))
        # An eigenvalue at the rounding level of the largest is a zero of Sigma.
        values = jnp.where(values > 1e-15 * values[-1], values, 0)
        rows, columns = self.psi_indices()
        phi = take(jnp.sqrt(values[::-1]), rows) * (rows == columns).astype(values.dtype)
        return unit[:, None] * vectors[:, ::-1], phi

    def chart_root(self, basis, phi):
        return basis @ (self.covariance(phi) * np.tri(self.q, dtype=phi.dtype))

    def chart_slopes(self, basis, root, phi, gradient):
        rows, columns = self.psi_indices()
        i, j = rows[:, None], columns[:, None]
        first, second = take(basis, i, rows[None]), take(basis, j, rows[None])
        jacobian = first * take(root, j, columns[None]) + second * take(root, i, columns[None])
        slope = basis.T @ self.gradient_matrix(gradient) @ basis
        same = (columns[:, None] == columns[None]).astype(phi.dtype)
        return jacobian, 2 * take(slope, rows[:, None], rows[None]) * same

    def chart_sizes(self, phi):
        rows, _ = self.psi_indices()
        same = (rows[:, None] == rows[None]).astype(phi.dtype)
        return jnp.sqrt(same @ phi**2)

    def chart_of_entries(self, factor, T):
        return jnp.linalg.inv(T), self.psi(factor)

    def chart_beside(self, leading, factor, T):
        # In preconditioned columns, so that what is nearly collinear as it was written is not in the chart.
        rows = T[list(leading)]
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        others = np.linalg.qr(rows.T, mode="complete")[0][:, len(rows) :]
        coordinates = np.vstack([rows, others.T])
        lower = np.transpose(np.linalg.qr((coordinates @ np.linalg.solve(T, factor)).T, mode="r"))
        lower = lower * np.where(np.diag(lower) < 0, -1, 1)
        return np.linalg.inv(coordinates), self.psi(lower)

    def has_profile(self, leading):
        return True

    def preconditioner(self, size, triangle):
        return triangular_inverse(triangle) / size[:, None]

    def moment_vectors(self):
        unit = np.eye(self.q)
        vectors = np.stack([*unit, *(unit[i] + unit[j] for i, j in combinations(range(self.q), 2))])
        return vectors, np.arange(len(vectors))

    def readable(self, columns, together=None):
        entries = np.stack(self.theta_indices(), axis=1).tolist()
        return tuple(Readable(str(columns[j]), None if i == j else str(columns[i]), i, j) for i, j in entries)

    def psi_names(self, columns):
        entries = np.stack(self.psi_indices(), axis=1).tolist()
        return [f"{columns[i]} Var" if i == j else f"{columns[j]} x {columns[i]} Cov" for i, j in entries]

    def theta_names(self, columns, together=None):
        entries = np.stack(self.theta_indices(), axis=1).tolist()
        return [columns[j] if i == j else f"{columns[i]}.{columns[j]}" for i, j in entries]

    def theta_slopes(self, factor, T):
        # With R = T^-1 lambda, a change E of the covariance in preconditioned columns moves lambda by lambda L, where L
        # is the lower triangle of R^-1 E R^-T with half its diagonal. R is as well conditioned as the covariance
        # itself, however far away the origin of a column is.
        inverse = np.linalg.inv(np.linalg.solve(T, factor))
        half = np.tril(inverse @ self.directions() @ inverse.T)
        half[:, range(self.q), range(self.q)] /= 2
        return self.theta(factor @ half).T

    def settled(self, factor, zero):
        left = np.where(zero[..., None], 0, factor)
        return self.theta(np.where(np.any(zero, axis=-1)[..., None, None], rectified(left), factor))

    def tangents(self, root, gradient, typical=1.0):
        # A covariance of rank r is F F' with r columns, triangular once its rows are in the order of pivoting: the
        # entries of F are coordinates of the covariances of that rank.
        factor, order, rank = pivoted(root, typical)
        entries = [(row, column) for column in range(rank) for row in order[column:]]
        pairs = np.array(entries, int).reshape(-1, 2)
        rows, columns = pairs[:, 0], pairs[:, 1]
        half = np.eye(self.q)[rows][:, :, None] * factor[:, columns].T[:, None]
        slopes = self.psi(half + half.transpose(0, 2, 1)).T
        G = 2 * self.gradient_matrix(gradient)
        return slopes, G[rows[:, None], rows] * (columns[:, None] == columns)


def pivoted(root, typical=1.0):
    """A square root (q, q) that is lower triangular in the order of pivoting, that order, and the rank."""
    from scipy import linalg  # a sixth of a second, and no fit needs it

    pieces: Any = linalg.qr(root.T, mode="r", pivoting=True)
    triangle, order = pieces
    factor = np.zeros(root.shape)
    factor[order] = triangle.T
    length = np.linalg.norm(factor, axis=1)[order]
    positive = (np.abs(np.diag(triangle)) > SINGULAR * length) & (length > SINGULAR * typical)
    return factor, order, int(np.argmin(np.append(positive, False)))


# New arrays every time: JAX takes one that it has seen before for what it was then, in another precision perhaps.
def _lower_triangle(q, by_column=False):
    rows, columns = _remembered_triangle(q, by_column)
    return rows.copy(), columns.copy()


def _places(q, by_column=False):
    """Place in the lower triangle of every entry (q, q) of a symmetric matrix."""
    return _remembered_places(q, by_column).copy()


@functools.cache
def _remembered_places(q, by_column):
    rows, columns = _remembered_triangle(q, by_column)
    places = np.zeros((q, q), int)
    places[rows, columns] = places[columns, rows] = np.arange(len(rows))
    return places


@functools.cache
def _remembered_triangle(q, by_column):
    return np.triu_indices(q)[::-1] if by_column else np.tril_indices(q)
