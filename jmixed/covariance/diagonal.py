"""A variance for each column, without correlations: Sigma = diag(v).

psi = v, theta = sqrt(v), and the chart are the standard deviations, in each of which the deviance is even. Columns keep
their directions, and each may be scaled by itself.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import diagonal, take
from jmixed.covariance.structure import SINGULAR, Readable, Structure


@dataclass(frozen=True)
class Diagonal(Structure):
    """Independent columns, each with its variance; see `Structure`."""

    word_in_files = "a variance a column"

    q: int
    intercept: int | None = None

    @property
    def size(self):
        return self.q

    @property
    def has_several_minima(self):
        return self.q > 1

    def factor(self, theta):
        return theta[..., None] * np.eye(self.q, dtype=theta.dtype)

    def theta(self, factor):
        return take(factor, np.arange(self.q), np.arange(self.q))

    def covariance(self, psi):
        return psi[:, None] * np.eye(self.q, dtype=psi.dtype)

    def psi(self, covariance):
        return diagonal(covariance)

    def chart(self, covariance, unit):
        return unit[:, None] * np.eye(self.q, dtype=unit.dtype), jnp.sqrt(jnp.maximum(diagonal(covariance), 0)) / unit

    def chart_root(self, basis, phi):
        return basis * phi[None]

    def chart_slopes(self, basis, root, phi, gradient):
        squares = 2 * basis**2
        return squares * phi[None], jnp.diag(squares.T @ gradient)

    def chart_sizes(self, phi):
        return jnp.abs(phi)

    def chart_of_entries(self, factor, T):
        # Without a basis of original columns: phi belongs to preconditioned ones.
        return np.eye(self.q, dtype=factor.dtype), diagonal(factor) / diagonal(T)

    def chart_beside(self, leading, factor, T):
        order = np.array([*leading, *(k for k in range(self.q) if k not in leading)], int)
        # A basis that is a permutation: the standard deviation that is asked for comes first.
        return np.eye(self.q)[:, order], (np.diag(factor) / np.diag(T))[order]

    def has_profile(self, leading):
        return len(leading) < 2

    def preconditioner(self, size, triangle):
        return np.eye(self.q, dtype=size.dtype) / size[:, None]

    def moment_vectors(self):
        return np.eye(self.q), np.arange(self.q)

    def nearest(self, covariance):
        return self.covariance(diagonal(covariance))

    def readable(self, columns, together=None):
        return tuple(Readable(str(column), None, k, k) for k, column in enumerate(columns))

    def psi_names(self, columns):
        return [f"{column} Var" for column in columns]

    def theta_names(self, columns, together=None):
        return list(columns)

    def settled(self, factor, zero):
        return np.where(zero, 0, self.theta(factor))

    def is_singular(self, factor, T):
        return np.any(np.abs(self.theta(factor)) <= SINGULAR * np.diag(T), axis=-1)

    def tangents(self, root, gradient, typical=1.0):
        size = np.linalg.norm(root, axis=1)
        kept = np.flatnonzero(size > SINGULAR * typical)
        return np.diag(2 * size)[:, kept], np.diag(2 * gradient)[np.ix_(kept, kept)]
