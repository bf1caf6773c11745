"""The rows of a response with a family: log densities and their derivatives, weighted, and zero where there is no row.

Weights are what the family says: factors of the log density, or of a precision, which moves the predictor of the
dispersion. Rows of weight zero are padding; they are given a response that the family has, so that no derivative of
theirs is undefined.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jmixed.families.family import DISPERSION, EtaDerivatives, Family
from jmixed.layout.index import Array, static


class RowTable(NamedTuple):
    """What the gradient of a likelihood asks of each row, arrays (...): l, and s, W and r as of a family.

    ``in_extras`` has the derivatives (u, ...) of l, s and W in the further predictors.
    """

    value: jax.Array
    score: jax.Array
    weight: jax.Array
    slope: jax.Array
    in_extras: tuple[jax.Array, ...]


class WideTable(NamedTuple):
    """What its Hessian asks beside: the bend q, the derivative (u, ...) of r in the further predictors, and the second
    derivatives (u, u, ...) of l, s and W in these."""

    narrow: RowTable
    bend: jax.Array
    slope_in_extras: jax.Array
    second: tuple[jax.Array, ...]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Responses:
    """Responses and what goes with them; all arrays have the same trailing axes of rows.

    Attributes
    ----------
    y, trials, offset : arrays (...)
    factors : array (...)
        Factors of the log density; zero where there is no row.
    shift : array (...) or None
        What weights add to the predictor of the dispersion.
    columns : tuple of arrays (k, ...)
        Columns of each further predictor.
    constants : array (...)
        Weighted terms of the log densities that depend on the response alone.
    family : Family
    """

    y: Array
    trials: Array
    offset: Array
    factors: Array
    shift: Array | None
    columns: tuple[Array, ...]
    constants: Array
    family: Family = static()

    def extras(self, kappa) -> jax.Array:
        """The further predictors (u, ...) at their coefficients."""
        if not self.columns:
            return jnp.zeros((0, *self.y.shape), self.y.dtype)
        predictors, start = [], 0
        for name, columns in zip(self.family.extras, self.columns, strict=True):
            stop = start + columns.shape[0]
            predictor = jnp.tensordot(kappa[start:stop], columns, 1)
            if name == DISPERSION and self.shift is not None:
                predictor = predictor + self.shift
            predictors.append(predictor)
            start = stop
        return jnp.stack(predictors)

    def log_densities(self, eta, extras) -> jax.Array:
        """Weighted log densities."""
        return self.log_kernels(eta, extras) + self.constants

    def log_kernels(self, eta, extras) -> jax.Array:
        """Those without `constants`."""
        return self._where(self.family.log_kernel(self.y, eta, extras, self.trials))

    def derivatives(self, eta, extras) -> EtaDerivatives:
        """Weighted derivatives in the linear predictor."""
        return EtaDerivatives(*map(self._where, self.family.derivatives(self.y, eta, extras, self.trials)))

    def table(self, eta, extras) -> RowTable:
        """Weighted, with a rule for its derivatives that evaluates each of them once."""
        table = jax.tree.map(self._where, _row_table(self.family, self.y, eta, extras, self.trials))
        return table._replace(value=table.value + self.constants)

    def wide_table(self, eta, extras) -> WideTable:
        """Weighted likewise."""
        wide = jax.tree.map(self._where, wide_table(self.family, self.y, eta, extras, self.trials))
        return wide._replace(narrow=wide.narrow._replace(value=wide.narrow.value + self.constants))

    def in_kappa(self, values) -> jax.Array:
        """Sums over rows (k,) of what is known by further predictor, (u, ...), for each of their columns."""
        axes = tuple(range(1, values.ndim))
        pieces = [jnp.sum(columns * values[u][None], axis=axes) for u, columns in enumerate(self.columns)]
        return jnp.concatenate([jnp.zeros(0, values.dtype), *pieces])

    def _where(self, values):
        factors = self.factors.reshape(*(1,) * (values.ndim - self.factors.ndim), *self.factors.shape)
        return jnp.where(factors > 0, factors * values, 0)


def responses_of(rows: Any, columns: tuple[Array, ...]) -> Responses:
    """The responses of rows, with columns (n, k) of the further predictors."""
    family, weights, response = rows.layout.family, rows.weights, rows.response
    there = weights > 0
    first = jnp.argmax(there)
    y, trials = (jnp.where(there, values, values[first]) for values in (rows.y, response.trials))
    factors, shift = weights, None
    if family.weights_are == "precision":
        factors = there.astype(weights.dtype)
        shift = family.precision_sign * jnp.log(jnp.where(there, weights, 1))
    constants = jnp.where(there, factors * family.log_constant(y, trials), 0)
    return Responses(y, trials, rows.offset, factors, shift, tuple(a.T for a in columns), constants, family)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _row_table(family: Family, y, eta, extras, trials) -> RowTable:
    return _narrow_table(family, y, eta, extras, trials)


def _narrow_table(family, y, eta, extras, trials) -> RowTable:
    at, value = family.derivatives(y, eta, extras, trials), family.log_kernel(y, eta, extras, trials)
    along = _along(family, y, eta, extras, trials)
    first = jax.vmap(lambda unit: along(extras, unit))(_units(extras)) if len(extras) else _nothing(4, eta, 1)
    return RowTable(value, at.score, at.weight, at.slope, tuple(first[:3]))


def _units(extras):
    """A direction for each of the further predictors, (u, u, ...)."""
    size = len(extras)
    unit = jnp.eye(size, dtype=extras.dtype).reshape(size, size, *(1,) * (extras.ndim - 1))
    return jnp.broadcast_to(unit, (size, *extras.shape))


def _along(family, y, eta, extras, trials):
    """The derivative of (l, s, W, r) as the further predictors move along a direction, as a function of both."""

    def in_eta(extras):
        at = family.derivatives(y, eta, extras, trials)
        return family.log_kernel(y, eta, extras, trials), at.score, at.weight, at.slope

    return lambda extras, unit: jax.jvp(in_eta, (extras,), (unit,))[1]


def wide_table(family: Family, y, eta, extras, trials) -> WideTable:
    """Derivatives of log densities up to those that a Hessian asks for."""
    at, value = family.derivatives(y, eta, extras, trials), family.log_kernel(y, eta, extras, trials)
    first, second = _nothing(4, eta, 1), _nothing(4, eta, 2)
    if len(extras):
        along, units = _along(family, y, eta, extras, trials), _units(extras)

        def both(unit, other):
            return jax.jvp(lambda extras: along(extras, unit), (extras,), (other,))

        # The first derivatives come with each of the second ones.
        first, second = jax.vmap(jax.vmap(both, (None, 0)), (0, None))(units, units)
        first = tuple(part[:, 0] for part in first)
    narrow = RowTable(value, at.score, at.weight, at.slope, tuple(first[:3]))
    return WideTable(narrow, at.bend, first[3], tuple(second[:3]))


def _nothing(size, eta, axes):
    """So many tables of no further predictor."""
    return (jnp.zeros((0,) * axes + eta.shape, eta.dtype),) * size


@partial(_row_table.defjvp, symbolic_zeros=True)
def _row_table_tangents(family, primals, tangents):
    """The next derivatives, each times how far its argument moves; those in y and trials, if asked for, by JAX."""
    y, eta, extras, trials = primals
    still = [isinstance(tangent, SymbolicZero) for tangent in tangents]
    wide = wide_table(family, y, eta, extras, trials)
    table, (l_uv, s_uv, w_uv) = wide.narrow, wide.second
    l_u, s_u, w_u = table.in_extras
    change = jax.tree.map(jnp.zeros_like, table)
    if not still[1]:
        d = tangents[1]
        in_extras = (s_u * d[None], -w_u * d[None], wide.slope_in_extras * d[None])
        change = RowTable(table.score * d, -table.weight * d, table.slope * d, wide.bend * d, in_extras)
    if not still[2] and len(extras):
        d = tangents[2]
        l_d, s_d, w_d, r_d = (jnp.sum(part * d, axis=0) for part in (l_u, s_u, w_u, wide.slope_in_extras))
        in_extras = tuple(jnp.sum(part * d[None], axis=1) for part in (l_uv, s_uv, w_uv))
        change = jax.tree.map(jnp.add, change, RowTable(l_d, s_d, w_d, r_d, in_extras))
    if not (still[0] and still[3]):
        moved = [jnp.zeros_like(x) if zero else t for x, t, zero in zip(primals, tangents, still, strict=True)]

        def of_data(y, trials):
            return _narrow_table(family, y, eta, extras, trials)

        more = jax.jvp(of_data, (y, trials), (moved[0], moved[3]))[1]
        change = jax.tree.map(jnp.add, change, more)
    return table, change
