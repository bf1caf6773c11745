"""Compound symmetry: any two residuals of a series have the same correlation r.

    R = (1 - r) I + r J        log|R| = (m - 1) log(1 - r) + log(1 + (m - 1) r)

of m rows. R is positive definite for -1 / (m - 1) < r < 1, with the m of the longest series, so that

    r = (e^tau - 1) / (e^tau + m - 1)

A positive r is a random intercept of the series; a negative one is not.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jmixed.residual.series import back, in_order, spread, sums
from jmixed.residual.structure import ResidualStructure


@dataclass(frozen=True)
class CompoundSymmetry(ResidualStructure):
    """One correlation; see above."""

    @property
    def correlations(self):
        return 1

    def _complements(self, tau):
        """r, and 1 - r without losing digits."""
        grown = jnp.expm1(tau[0])
        return grown / (grown + self.positions), self.positions / (grown + self.positions)

    def _by_series(self, tau, there, series):
        """Rows of each series, 1 - r, and 1 + (m - 1) r of each; series without rows have one."""
        r, rest = self._complements(tau)
        rows = sums(in_order(there, series).astype(rest.dtype), series)
        return rows, rest, rest + r * rows

    def matrix(self, tau, first, second):
        r, _ = self._complements(tau)
        return jnp.where(first[:, None] == second[None], 1, r)

    def whiten_series(self, tau, columns, there, series):
        # The symmetric root of R: means of series are divided by another number than what deviates from them.
        rows, rest, whole = self._by_series(tau, there, series)
        ordered = in_order(columns, series)
        share = (1 / jnp.sqrt(whole) - 1 / jnp.sqrt(rest)) / jnp.maximum(rows, 1)
        of_means = spread(share[:, None] * sums(ordered, series), series)
        real = in_order(there, series)[:, None]
        return back(jnp.where(real, ordered / jnp.sqrt(rest) + of_means, 0), series)

    def log_determinant_of_series(self, tau, there, series):
        rows, rest, whole = self._by_series(tau, there, series)
        return jnp.sum(jnp.where(rows > 0, (rows - 1) * jnp.log(rest) + jnp.log(whole), 0))

    def colour(self, tau, normal, series):
        there = jnp.ones(normal.shape[0], bool)
        rows, rest, whole = self._by_series(tau, there, series)
        ordered = in_order(normal, series)
        share = (jnp.sqrt(whole) - jnp.sqrt(rest)) / jnp.maximum(rows, 1)
        return back(ordered * jnp.sqrt(rest) + spread(share[:, None] * sums(ordered, series), series), series)

    def log_pivot(self, tau):
        r, rest = self._complements(tau)
        return jnp.log(jnp.minimum(rest, rest + r * self.positions))

    @property
    def starts(self):
        return (0.0,), (1.5,)

    def readable(self, tau, unit):
        return self._complements(tau)[0][None]

    def names(self, places):
        return ["r"]

    @property
    def bounds(self):
        return -1 / (self.positions - 1), 1.0
