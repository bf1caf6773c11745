"""One variance for all columns, which are independent: Sigma = v I.

psi = v, theta = sqrt(v), and lambda = theta I whatever the number of columns. The chart is the standard deviation
itself. Only multiples of I keep the structure, so that the columns are scaled together.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import diagonal
from jmixed.covariance.structure import SINGULAR, Readable, Structure, shared_name


@dataclass(frozen=True)
class Identity(Structure):
    """One variance, as that of a variance component or of the levels of a category; see `Structure`."""

    word_in_files = "one variance"

    q: int
    intercept: int | None = None

    @property
    def size(self):
        return 1

    def factor(self, theta):
        return theta[..., 0, None, None] * np.eye(self.q, dtype=theta.dtype)

    def theta(self, factor):
        return factor[..., :1, 0]

    def covariance(self, psi):
        return psi[0] * np.eye(self.q, dtype=psi.dtype)

    def psi(self, covariance):
        return covariance[:1, 0]

    def chart(self, covariance, unit):
        return unit[0] * np.eye(self.q, dtype=unit.dtype), jnp.sqrt(jnp.maximum(covariance[:1, 0], 0)) / unit[0]

    def chart_root(self, basis, phi):
        return phi[0] * basis

    def chart_slopes(self, basis, root, phi, gradient):
        return 2 * basis[0, 0] ** 2 * phi[:, None], 2 * basis[0, 0] ** 2 * gradient[:, None]

    def chart_sizes(self, phi):
        return jnp.abs(phi)

    def chart_of_entries(self, factor, T):
        # Without a basis of original columns: phi belongs to preconditioned ones.
        return np.eye(self.q, dtype=factor.dtype), factor[:1, 0] / T[0, 0]

    def chart_beside(self, leading, factor, T):
        return np.eye(self.q), factor[:1, 0] / T[0, 0]

    def has_profile(self, leading):
        return True

    def preconditioner(self, size, triangle):
        return np.eye(self.q, dtype=size.dtype) / ((size**2).mean() ** 0.5)

    def moment_vectors(self):
        return np.eye(self.q), np.zeros(self.q, int)

    def nearest(self, covariance):
        return jnp.mean(diagonal(covariance)) * np.eye(self.q, dtype=covariance.dtype)

    def readable(self, columns, together=None):
        return (Readable(self._named(columns, together), None, 0, 0),)

    def psi_names(self, columns):
        return [f"{self._named(columns)} Var"]

    def theta_names(self, columns, together=None):
        return [self._named(columns, together)]

    def _named(self, columns, together=None):
        return columns[0] if self.q == 1 else shared_name(columns, together)

    def is_singular(self, factor, T):
        return np.abs(factor[..., 0, 0]) <= SINGULAR * T[0, 0]

    def tangents(self, root, gradient, typical=1.0):
        size = abs(root[0, 0])
        kept = int(size > SINGULAR * typical)
        return np.array([[2 * size]])[:, :kept], 2 * gradient[:kept, None][:, :kept]
