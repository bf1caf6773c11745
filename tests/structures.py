"""Covariance structures for tests: one whose Sigma is not linear in psi, and parameters within any structure."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.covariance.structure import Readable, Structure
from jmixed.runtime.precision import double_precision


def psi_within(structure, r):
    """psi of a positive definite covariance of a structure."""
    root = r.normal(size=(structure.q, 2 * structure.q + 3)) / np.sqrt(2 * structure.q + 3)
    with double_precision():
        return np.asarray(structure.psi(np.asarray(structure.nearest(jnp.asarray(root @ root.T)))))


@dataclass(frozen=True)
class Decay(Structure):
    """Correlations r^|i - j| at one variance v: psi = theta^2-like (v, r), as an autoregressive process has them."""

    q: int
    intercept: int | None = None

    @property
    def size(self):
        return 2

    def _powers(self, r):
        lag = np.abs(np.subtract.outer(np.arange(float(self.q)), np.arange(float(self.q))))
        return lag, r**lag

    def factor(self, theta):
        return theta[..., 0, None, None] * self._root(theta[..., 1, None, None])

    def _root(self, r):
        _, powers = self._powers(r)
        first = np.eye(self.q)[:1]
        scale = first + (1 - first) * (1 - r**2) ** 0.5
        return powers * np.tri(self.q) * scale

    def theta(self, factor):
        v, r = self.psi(factor @ factor.T)
        return np.array([v**0.5, r]) if isinstance(factor, np.ndarray) else jnp.stack([v**0.5, r])

    def covariance(self, psi):
        return psi[0] * self._powers(psi[1])[1]

    def psi(self, covariance):
        v, c = covariance[0, 0], covariance[0, 1]
        if isinstance(covariance, np.ndarray):
            return np.array([v, c / v if v > 0 else 0.0])
        return jnp.stack([v, jnp.where(v > 0, c / jnp.where(v > 0, v, 1), 0)])

    @property
    def is_linear(self):
        return False

    def directions(self, psi=None):
        v, r = (1.0, 0.5) if psi is None else psi
        lag, powers = self._powers(r)
        both = powers, v * lag * r ** np.maximum(lag - 1, 0)
        return np.stack(both) if psi is None or isinstance(psi, np.ndarray) else jnp.stack(both)

    def bends(self, psi):
        v, r = psi
        lag, _ = self._powers(r)
        mixed, twice = lag * r ** np.maximum(lag - 1, 0), v * lag * (lag - 1) * r ** np.maximum(lag - 2, 0)
        return jnp.stack([jnp.stack([jnp.zeros_like(mixed), mixed]), jnp.stack([mixed, twice])])

    def chart(self, covariance, unit):
        v, r = self.psi(jnp.asarray(covariance))
        return jnp.eye(self.q), jnp.stack([jnp.sqrt(v), jnp.arctanh(r)])

    def chart_root(self, basis, phi):
        return self.factor(jnp.stack([phi[0], jnp.tanh(phi[1])]))

    def chart_slopes(self, basis, root, phi, gradient):
        def psi(phi):
            return jnp.stack([phi[0] ** 2, jnp.tanh(phi[1])])

        return jax.jacobian(psi)(phi), jax.hessian(lambda phi: gradient @ psi(phi))(phi)

    def chart_sizes(self, phi):
        return jnp.stack([jnp.abs(phi[0]), jnp.abs(phi[0])])

    def preconditioner(self, size, triangle):
        return np.eye(self.q, dtype=size.dtype) / ((size**2).mean() ** 0.5)

    def moment_vectors(self):
        return np.eye(self.q), np.zeros(self.q, int)

    def nearest(self, covariance):
        return covariance[0, 0] * self._powers(covariance[0, 1] / covariance[0, 0])[1]

    def readable(self, columns, together=None):
        return Readable(columns[0], None, 0, 0), Readable(columns[0], columns[1], 1, 0)

    def psi_names(self, columns):
        return ["Var", "Cor"]

    def theta_names(self, columns, together=None):
        return ["sd", "cor"]

    def psi_map(self, T):
        return np.diag([T[0, 0] ** 2, 1.0])

    def psi_of_theta(self, theta):
        second = np.zeros((2, 2, 2))
        second[0, 0, 0] = 2
        return np.diag([2 * theta[0], 1.0]), second

    def told_theta(self, factor):
        return np.repeat(np.any(factor != 0), 2)

    def settled(self, factor, zero):
        return np.where(zero[..., :1], 0, self.theta(factor))

    def root_of_psi(self, psi):
        return None if psi[0] < 0 or abs(psi[1]) > 1 else self.factor(np.array([np.sqrt(psi[0]), psi[1]]))

    def tangents(self, root, gradient, typical=1.0):
        v, r = self.psi(root @ root.T)
        kept = 2 * int(v > 0)
        return np.diag([2 * np.sqrt(v), 1.0])[:, :kept], np.diag([2 * gradient[0], 0.0])[:kept, :kept]
