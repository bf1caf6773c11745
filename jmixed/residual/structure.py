"""The contract of a residual structure: how the residuals of a model vary and hang together.

Residuals have the covariance ``sigma^2 D^1/2 R D^1/2``, with D diagonal and R a correlation matrix that is block
diagonal over series of rows:

    D = diag(d_i^2 / w_i),     log d_i = v_i'delta,     R = R(tau) from the rows' places in their series

with weights w, columns v of the dispersion, and parameters rho = (delta, tau) on the whole real line. Everything that
the likelihood does with rows it does with whitened ones: with ``R = L L'`` the rows ``L^-1 D^-1/2 [y X Z]`` have
independent residuals of variance sigma^2, and

    log|D^1/2 R D^1/2| = sum log(d_i^2 / w_i) + log|R|

A row is mixed with rows of its own series only, so that a series lies in one level of every grouping factor. A
structure is one file with its correlations: a frozen dataclass without arrays, since what it needs of the rows stands
in their `Series`. Its parameters tau are unconstrained; a correlation of one is approached as tau runs off.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp

PIVOT = -32.0
"""Logarithm of a pivot of R that is none: 1e-14."""
SPREAD = 16.0
"""Logarithm of the ratio of two standard deviations of residuals of which one is none: 1e7."""
STEEP = 0.1
"""Change of the deviance with the logarithm of a standard deviation that no optimum has."""


@dataclass(frozen=True)
class ResidualStructure(ABC):
    """How residuals vary, and hang together, apart from sigma and the weights.

    Attributes
    ----------
    columns : int
        Number of columns of the dispersion, entries of delta.
    positions : int
        Number of places that a series may have: of visits, where they are numbered; of rows in the longest series.
    by_position : int
        How many of the columns, the first ones, are the same in all rows of a place.
    """

    columns: int = 0
    positions: int = 1
    by_position: int = 0

    # ---- correlations: what a structure states ----

    @property
    @abstractmethod
    def correlations(self) -> int:
        """Number of parameters tau."""

    @abstractmethod
    def matrix(self, tau, first, second) -> Any:
        """Correlations (a, b) between rows at the places `first` (a,) and `second` (b,) of one series."""

    @abstractmethod
    def whiten_series(self, tau, columns, there, series) -> Any:
        """L^-1 times the columns (rows, c), which are zero for rows that are not `there` (rows,)."""

    @abstractmethod
    def log_determinant_of_series(self, tau, there, series) -> Any:
        """log|R|, of the rows that are there."""

    @abstractmethod
    def colour(self, tau, normal, series) -> Any:
        """L times independent standard normal numbers (rows, c)."""

    @abstractmethod
    def log_pivot(self, tau) -> Any:
        """Logarithm of the least pivot of R: how near the correlations are to their bounds."""

    @property
    @abstractmethod
    def starts(self) -> tuple[tuple[float, ...], ...]:
        """Values of tau to search from; the first of them stands for no correlation, or little."""

    @abstractmethod
    def readable(self, tau, unit) -> Any:
        """What people call the parameters, in numbers (correlations,): correlations, by `unit` of the places."""

    @abstractmethod
    def names(self, places: Sequence[str]) -> list[str]:
        """Names of the numbers of `readable`, by the names of the places."""

    # ---- the same for all ----

    @property
    def bounds(self) -> tuple[float, float]:
        """What the numbers of `readable` lie between."""
        return -1.0, 1.0

    # ---- one correlation held, the others free: a chart with all others, and the held one on the whole real line ----

    def chart_beside(self, tau, number: int) -> tuple[Any, Any, int]:
        """Coordinates v at tau, the held one's u, and the place of v that it takes.

        The correlation is number `number` of `readable`. With a single parameter this is u itself.
        """
        return tau, tau[number], number

    def beside(self, v, u, number) -> Any:
        """tau at coordinates v, with the correlation of a number (a traced one, too) held where u says."""
        return v.at[number].set(u)

    def value_beside(self, u, unit) -> Any:
        """The held number of `readable` at u."""
        return self.readable(jnp.reshape(u, (1,)), unit)[0]

    @property
    def size(self) -> int:
        """Number of parameters rho."""
        return self.columns + self.correlations

    def scale(self, rho, rows) -> Any:
        """Inverse standard deviations D^-1/2 (rows,) relative to sigma, 0 for rows of weight zero."""
        there = rows.weights > 0
        root = jnp.where(there, jnp.sqrt(jnp.where(there, rows.weights, 1)), 0)
        return root * jnp.exp(-self._log_deviations(rho, rows)) if self.columns else root

    def _log_deviations(self, rho, rows):
        return rows.series.dispersion @ rho[: self.columns]

    def whiten(self, rho, rows) -> Any:
        """Rows (a `layout.design.Rows`) whose residuals are independent, with the variances sigma^2 / weights."""
        if not self.size:
            return rows
        if not self.correlations:
            weights = rows.weights * jnp.exp(-2 * self._log_deviations(rho, rows))
            return replace(rows, weights=weights)
        scale, there = self.scale(rho, rows), rows.weights > 0
        tables = [rows.X, *rows.Z, rows.y[:, None], rows.offset[:, None]]
        stacked = jnp.concatenate(tables, axis=1) * scale[:, None]
        white = self.whiten_series(rho[self.columns :], stacked, there, rows.series)
        cuts = []
        for table in tables:
            cuts.append(white[:, : table.shape[1]])
            white = white[:, table.shape[1] :]
        X, *Z, y, offset = cuts
        weights = there.astype(rows.y.dtype)
        return replace(rows, X=X, Z=tuple(Z), y=y[:, 0], offset=offset[:, 0], weights=weights)

    def log_determinant(self, rho, rows) -> Any:
        """log|D^1/2 R D^1/2|, less what the weights of the whitened rows say of it."""
        if not self.correlations:
            return 0
        there = rows.weights > 0
        scale = self.scale(rho, rows)
        logs = jnp.sum(jnp.where(there, jnp.log(jnp.where(there, scale, 1)), 0))
        return self.log_determinant_of_series(rho[self.columns :], there, rows.series) - 2 * logs

    def diverges(self, rho, slope, rows) -> Any:
        """Whether rho has run off: R is singular to the precision of the arithmetic, or some rows have no spread.

        Where standard deviations are far apart, rounding may end a search on its way down: `slope` (size,), of the
        deviance in rho, tells, of two for each row that is left without spread.
        """
        beyond = self.log_pivot(rho[self.columns :]) < PIVOT
        if self.columns:
            logs, there = self._log_deviations(rho, rows), rows.weights > 0
            largest, least = (jnp.where(there, logs, end) for end in (-jnp.inf, jnp.inf))
            spread = jnp.max(largest) - jnp.min(least)
            unit = jnp.max(jnp.where(there[:, None], jnp.abs(rows.series.dispersion), 0), axis=0)
            on_its_way = jnp.any(jnp.abs(slope[: self.columns]) > STEEP * unit)
            beyond = beyond | (spread > SPREAD) | ((spread > SPREAD / 2) & on_its_way)
        return beyond

    def variances(self, rho, rows) -> Any:
        """Variances (rows,) of the residuals, relative to sigma^2; 0 for a row of weight zero."""
        scale = self.scale(rho, rows)
        return jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1) ** 2, 0)

    def draw(self, rho, rows, normal) -> Any:
        """Residuals (k, rows) relative to sigma from independent standard normal numbers (k, rows)."""
        if self.correlations:
            normal = self.colour(rho[self.columns :], normal.T, rows.series).T
        return jnp.sqrt(self.variances(rho, rows))[None] * normal
