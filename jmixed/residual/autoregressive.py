"""Residuals that are correlated the more the nearer they are in time: R_ij = phi^|t_i - t_j|.

A row given those before it depends on the last one alone, so that whitened rows are innovations (Jones and
Boadi-Boateng 1991, Biometrics 47): with c = phi^(t_i - t_{i-1}),

    (u_i - c u_{i-1}) / sqrt(1 - c^2),        log|R| = sum log(1 - c^2)

whatever rows are missing, in time that grows with the number of rows.

* `Autoregressive`: whole steps, phi = tanh(tau) in (-1, 1);
* `ContinuousAutoregressive`: any steps, phi = 1 / (1 + exp(-tau)) in (0, 1).
"""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from jmixed.residual.series import back, in_order, place_before
from jmixed.residual.structure import ResidualStructure


def _whole_power(phi, steps):
    """phi^steps of whole steps, with all its derivatives, also at phi = 0 and of a negative phi."""
    return _power(jnp.broadcast_to(phi, steps.shape), jnp.round(steps).astype(jnp.int32))


# JAX's own derivative mixes the types of base and exponent, which strict promotion refuses.
_power = jax.custom_jvp(jax.lax.pow)


@_power.defjvp
def _slope_of_power(numbers, moves):
    base, exponent = numbers
    slope = exponent.astype(base.dtype) * _power(base, jnp.maximum(exponent - 1, 0))
    return _power(base, exponent), slope * moves[0]


@dataclass(frozen=True)
class Markov(ResidualStructure):
    """Each row depends on the one before it: what both have in common."""

    @abstractmethod
    def powers(self, tau, steps) -> tuple[Any, Any]:
        """phi^steps and 1 - phi^(2 steps), without losing digits."""

    @property
    def correlations(self):
        return 1

    def _innovations(self, tau, there, series):
        """In the order of the series: the place before each, phi^step, and the variance given that, 1 if first."""
        previous, follows = place_before(in_order(there, series), series)
        steps = jnp.where(follows, series.place - series.place[previous], 1)
        power, variance = self.powers(tau[0], steps)
        return previous, jnp.where(follows, power, 0), jnp.where(follows, variance, 1)

    def whiten_series(self, tau, columns, there, series):
        previous, power, variance = self._innovations(tau, there, series)
        ordered = in_order(columns, series)
        return back((ordered - power[:, None] * ordered[previous]) / jnp.sqrt(variance)[:, None], series)

    def log_determinant_of_series(self, tau, there, series):
        return jnp.sum(jnp.log(self._innovations(tau, there, series)[2]))

    def log_pivot(self, tau):
        return jnp.log(self.powers(tau[0], jnp.ones(1, tau.dtype))[1][0])

    def sets(self, rows, series):
        """Sets of rows whose cross-products make up those of whitened rows, for each length of a step.

        With a row u and the one before it v at the step's end, cross-products are those of

            (u - c v) / sqrt(1 - c^2):    u'u / (1 + c) - c v'v / (1 + c) + c (u - v)'(u - v) / (1 - c^2)
                                          u'u / (1 - c) + c v'v / (1 - c) - c (u + v)'(u + v) / (1 - c^2)

        the former without digits lost where c is near one, the latter where it is near minus one. The first rows of
        series come last, as they are.
        """
        there = rows.weights > 0
        earlier, follows = place_before(in_order(there, series), series)
        root = jnp.sqrt(jnp.where(there, rows.weights, 0))[:, None]

        def scaled(columns):
            return root * columns

        def before(columns):
            return back(jnp.where(follows[:, None], in_order(scaled(columns), series)[earlier], 0), series)

        def change(columns):
            return scaled(columns) - before(columns)

        def both(columns):
            return scaled(columns) + before(columns)

        kind = jnp.where(follows, series.kind, len(series.steps))
        for number in range(len(series.steps) + 1):
            chosen = back(kind == number, series) & there
            for move in (scaled, before, change, both) if number < len(series.steps) else (scaled,):
                tables = [move(table) for table in (rows.X, *rows.Z, rows.y[:, None], rows.offset[:, None])]
                X, *Z, y, offset = tables
                weights = chosen.astype(rows.y.dtype)
                yield replace(rows, X=X, Z=tuple(Z), y=y[:, 0], offset=offset[:, 0], weights=weights)

    def shares(self, rho, series):
        """The part that each of these sets has (4 steps + 1,), and log|R|."""
        power, variance = self.powers(rho[0], series.steps)
        # Not the absolute value, whose derivative at zero would be zero.
        size = jnp.where(power >= 0, power, -power)
        change, both = (jnp.where(chosen, size / variance, 0) for chosen in (power >= 0, power < 0))
        each = jnp.stack([1 / (1 + size), -size / (1 + size), change, both], axis=1)
        whole = jnp.ones(1, each.dtype)
        return jnp.concatenate([each.reshape(-1), whole]), series.step_count @ jnp.log(variance)

    def colour(self, tau, normal, series):
        there = jnp.ones(normal.shape[0], bool)
        _, power, variance = self._innovations(tau, there, series)

        def follow(earlier, later):
            return later[0] * earlier[0], later[0] * earlier[1] + later[1]

        steps = jnp.broadcast_to(power[:, None], normal.shape), jnp.sqrt(variance)[:, None] * in_order(normal, series)
        return back(jax.lax.associative_scan(follow, steps)[1], series)


@dataclass(frozen=True)
class Autoregressive(Markov):
    """Whole steps, from -1 to 1; see above."""

    def powers(self, tau, steps):
        power = _whole_power(jnp.tanh(tau), steps)
        # 1 - tanh^2 = 1 / cosh^2 keeps its digits near one; so does what a step of several takes of it.
        near = 1 / jnp.cosh(tau) ** 2
        several = -jnp.expm1(steps * jnp.log1p(-jnp.minimum(near, 0.5)))
        return power, jnp.where(steps == 1, near, jnp.where(near < 0.5, several, 1 - power**2))

    def matrix(self, tau, first, second):
        steps = jnp.abs(first[:, None] - second[None])
        return _whole_power(jnp.tanh(tau[0]), steps)

    @property
    def starts(self):
        return (0.2,), (1.0,), (-0.5,)

    def readable(self, tau, unit):
        # Of a step of several units: a root, which a negative number has where their number is odd.
        phi = jnp.tanh(tau)
        size = jnp.where(phi >= 0, phi, -phi) ** (1 / unit)
        return jnp.where(phi >= 0, size, jnp.where(unit % 2 == 1, -size, jnp.nan))

    def names(self, places):
        return ["phi"]


@dataclass(frozen=True)
class ContinuousAutoregressive(Markov):
    """Any steps, from 0 to 1; see above. phi belongs to one step of the places."""

    def powers(self, tau, steps):
        log_phi = -jnp.logaddexp(0.0, -tau)
        return jnp.exp(steps * log_phi), -jnp.expm1(2 * steps * log_phi)

    def matrix(self, tau, first, second):
        return jnp.exp(jnp.abs(first[:, None] - second[None]) * -jnp.logaddexp(0.0, -tau[0]))

    @property
    def starts(self):
        return (-1.0,), (1.5,)

    def readable(self, tau, unit):
        return jnp.exp(-jnp.logaddexp(0.0, -tau) / unit)

    def names(self, places):
        return ["phi"]

    @property
    def bounds(self):
        return 0.0, 1.0
