"""Residuals whose correlations belong to numbered visits: a matrix R (T, T), of which each series has what it saw.

* `Unstructured`: any correlations. R = C C' with C lower triangular and rows of unit length, the normalised rows of a
  matrix with ones on its diagonal and tau, row by row, below (Pinheiro and Bates 1996, Statistics and Computing 6,
  compare others of this kind).
* `Toeplitz`: visits that are k apart have the correlation r_k. All positive definite R of this kind, and no others, are
  given by partial autocorrelations in (-1, 1), here tanh(tau), through Durbin and Levinson's recursion
  (Barndorff-Nielsen and Schou 1973, J. Multivariate Analysis 3).

A visit that a series does not have is a row of the identity.
"""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.residual.series import back, in_order
from jmixed.residual.structure import ResidualStructure


@dataclass(frozen=True)
class Visits(ResidualStructure):
    """What both have in common; places are numbers of visits from 0 on."""

    @abstractmethod
    def correlation(self, tau) -> Any:
        """R (T, T)."""

    def parameters(self, R) -> Any:
        """tau of any correlations R (T, T), nan where R is not positive definite; None where R must have a form."""
        return None

    def matrix(self, tau, first, second):
        return self.correlation(tau)[first.astype(np.int32)[:, None], second.astype(np.int32)[None]]

    def value_beside(self, u, unit):
        return jnp.tanh(u)

    def _table(self, there, series):
        """Where each place of the order stands in a table of all series of all visits, beyond it if it is not there."""
        place = jnp.round(series.place).astype(jnp.int32) * len(series.count) + series.number
        return jnp.where(there, place, len(series.count) * self.positions)

    def _columns(self, tau, table, series):
        """R of what each series saw (T, T, series)."""
        T = self.positions
        seen = jnp.zeros(len(series.count) * T, bool).at[table].set(True, mode="drop").reshape(T, -1)
        unit = jnp.eye(T, dtype=tau.dtype)[:, :, None]
        return jnp.where(seen[:, None] & seen[None], self.correlation(tau)[:, :, None], unit)

    def _wide(self, table, columns, series):
        """All visits of all series (T, series, c), from rows in the order of the series."""
        wide = jnp.zeros((len(series.count) * self.positions, columns.shape[1]), columns.dtype)
        return wide.at[table].set(columns, mode="drop").reshape(self.positions, -1, columns.shape[1])

    def _narrow(self, table, wide, series):
        flat = wide.reshape(-1, wide.shape[-1])
        return back(flat.at[table].get(mode="fill", fill_value=0), series)

    def _eliminated(self, R, wide):
        """L^-1 wide (T, series, c), visit after visit, and the logarithms of the pivots (T, series)."""

        def visit(left, j):
            R, wide = left
            pivot = R[j, j]
            column = R[:, j] / jnp.sqrt(pivot)[None]
            white = wide[j] / jnp.sqrt(pivot)[:, None]
            return (R - column[:, None] * column[None], wide - column[:, :, None] * white[None]), (
                white,
                jnp.log(pivot),
            )

        return jax.lax.scan(visit, (R, wide), jnp.arange(self.positions, dtype=jnp.int32))[1]

    def by_visit(self, columns, there, series):
        """All visits of all series (T, series, c), zero where they are not there, from rows (rows, c)."""
        return self._wide(self._table(in_order(there, series), series), in_order(columns, series), series)

    def of_visits(self, columns, there, series):
        """What all rows of a visit have in common (T, c), from rows (rows, c)."""
        ordered, place = in_order(columns, series), jnp.round(series.place).astype(jnp.int32)
        place = jnp.where(in_order(there, series), place, self.positions)
        return jnp.zeros((self.positions, columns.shape[1]), columns.dtype).at[place].set(ordered, mode="drop")

    def inverses(self, E, seen):
        """E_s^-1 (patterns, T, T), zero where a pattern has not `seen` (patterns, T) a visit, and log|E_s|."""
        unit = jnp.eye(self.positions, dtype=E.dtype)
        there = seen.T
        blocks = jnp.where(there[:, None] & there[None], E[:, :, None], unit[:, :, None])
        wide = jnp.where(there[:, :, None], unit[:, None], 0)
        white, logs = self._eliminated(blocks, wide)
        return jnp.einsum("jst,jsu->stu", white, white), jnp.sum(logs, axis=0)

    def log_pivot(self, tau):
        return jnp.min(self._eliminated(self.correlation(tau)[:, :, None], jnp.zeros((self.positions, 1, 0)))[1])

    def whiten_series(self, tau, columns, there, series):
        table = self._table(in_order(there, series), series)
        wide = self._wide(table, in_order(columns, series), series)
        white, _ = self._eliminated(self._columns(tau, table, series), wide)
        return self._narrow(table, white, series)

    def log_determinant_of_series(self, tau, there, series):
        R = self._columns(tau, self._table(in_order(there, series), series), series)
        _, logs = self._eliminated(R, jnp.zeros((self.positions, len(series.count), 0), tau.dtype))
        return jnp.sum(logs)

    def colour(self, tau, normal, series):
        table = self._table(series.number < len(series.count), series)
        wide = self._wide(table, in_order(normal, series), series)

        def visit(R, step):
            j, normal = step
            column = R[:, j] / jnp.sqrt(R[j, j])[None]
            return R - column[:, None] * column[None], column[:, :, None] * normal[None]

        steps = jnp.arange(self.positions, dtype=jnp.int32), wide
        _, parts = jax.lax.scan(visit, self._columns(tau, table, series), steps)
        return self._narrow(table, jnp.sum(parts, axis=0), series)


@dataclass(frozen=True)
class Unstructured(Visits):
    """Any correlations; see above."""

    @property
    def correlations(self):
        return self.positions * (self.positions - 1) // 2

    def correlation(self, tau):
        rows, columns = np.tril_indices(self.positions, -1)
        free = jnp.eye(self.positions, dtype=tau.dtype).at[rows, columns].set(tau)
        root = free / jnp.sqrt(jnp.sum(free**2, axis=1))[:, None]
        return (root @ root.T).at[np.arange(self.positions), np.arange(self.positions)].set(1)

    @property
    def starts(self):
        return ((0.0,) * self.correlations,)

    def readable(self, tau, unit):
        return self.correlation(tau)[np.tril_indices(self.positions, -1)]

    def names(self, places):
        return [f"{places[j]}, {places[i]}" for i in range(self.positions) for j in range(i)]

    # With its two visits counted first a correlation is t / sqrt(1 + t^2) of the first parameter t alone.

    def chart_beside(self, tau, number):
        order = self._orders[number]
        v = self._parameters(np.linalg.cholesky(np.asarray(self.correlation(tau))[np.ix_(order, order)]))
        return v, np.arcsinh(v[0]), 0

    def beside(self, v, u, number):
        back = jnp.asarray(np.argsort(self._orders, axis=1), jnp.int32)[number]
        return self.parameters(self.correlation(v.at[0].set(jnp.sinh(u)))[back][:, back])

    def parameters(self, R):
        def visit(R, j):
            column = R[:, j] / jnp.sqrt(R[j, j])
            return R - column[:, None] * column[None], column

        # Step by step: LAPACK, and the derivatives of its factorisation, take a hundred times as long in a batch.
        return self._parameters(jax.lax.scan(visit, R, jnp.arange(self.positions, dtype=jnp.int32))[1].T)

    @property
    def _orders(self):
        """The visits by number of a correlation (correlations, positions), its own two first."""
        pairs = zip(*np.tril_indices(self.positions, -1), strict=True)
        return np.array([[j, i, *np.delete(np.arange(self.positions), [j, i])] for i, j in pairs])

    def _parameters(self, root):
        """tau of correlations with the lower Cholesky factor `root` (T, T)."""
        rows, columns = np.tril_indices(self.positions, -1)
        return root[rows, columns] / root[rows, rows]


@dataclass(frozen=True)
class Toeplitz(Visits):
    """A correlation for each distance; see above."""

    @property
    def correlations(self):
        return self.positions - 1

    def _autocorrelations(self, tau):
        """r_1, r_2, ... from the partial autocorrelations."""
        values, weights = [], []
        for partial, rest in zip(jnp.tanh(tau), 1 / jnp.cosh(tau) ** 2, strict=True):
            if not values:
                values, weights, variance = [partial], [partial], rest
                continue
            values.append(sum(w * r for w, r in zip(weights, reversed(values), strict=True)) + partial * variance)
            weights = [w - partial * v for w, v in zip(weights, reversed(weights), strict=True)] + [partial]
            variance = variance * rest
        return jnp.stack(values)

    def correlation(self, tau):
        lags = np.abs(np.subtract.outer(np.arange(self.positions), np.arange(self.positions)))
        return jnp.concatenate([jnp.ones(1, tau.dtype), self._autocorrelations(tau)])[lags]

    @property
    def starts(self):
        return (0.0,) * self.correlations, (0.8,) + (0.0,) * (self.correlations - 1)

    def readable(self, tau, unit):
        return self._autocorrelations(tau)

    def names(self, places):
        return [f"lag {k}" for k in range(1, self.positions)]

    # r_k is what the lags before it make it, and tanh(tau_k) of what they leave.

    def chart_beside(self, tau, number):
        return tau, np.arctanh(self._autocorrelations(tau)[number]), number

    def beside(self, v, u, number):
        at_zero = self._autocorrelations(v.at[number].set(0))[number]
        rest = jnp.prod(jnp.where(np.arange(self.correlations, dtype=np.int32) < number, 1 / jnp.cosh(v) ** 2, 1))
        return v.at[number].set(jnp.arctanh((jnp.tanh(u) - at_zero) / rest))
