"""Large sparse symmetric positive definite matrices: log-determinant, solves, and the inverse where entries are.

The matrix is eliminated front by front (the multifrontal method, Duff and Reid 1983), with many fronts at a time, and
the inverse is found from the last front back to the first (Takahashi's recurrences, Erisman and Tinney 1975). Loops
over batches keep the program as small for a hundred thousand columns as for ten.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jmixed.algebra.batched import sweep
from jmixed.algebra.ordering import Plan, Stage, plan
from jmixed.algebra.sums import less

__all__ = [
    "Inverse", "Plan", "SparseFactor", "factorise", "invert", "log_determinant", "moved_inverse", "plan",
    "selected_inverse", "solve", "times",
]  # fmt: skip

Array = Any

BLOCK = 64
"""Columns of the core that are swept at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """What an elimination leaves. Derivatives do not pass through it: those of what is made of it have their rules."""

    columns: tuple[Array, ...]  # by stage, (rows, pivots): the columns of the Cholesky factor by rows of fronts
    core: Array  # the inverse of the core
    log_determinant: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class SparseFactor:
    """A matrix of a plan with these values, (entries,), eliminated."""

    plan: Plan
    values: Array
    numbers: Numbers


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Inverse:
    """The inverse of a matrix of a plan where its fronts have entries.

    Attributes
    ----------
    entries : array (entries,)
        At the places of the pattern. Forward derivatives of any order are exact.
    fronts : array
        All numbers, stage after stage, and the core; a constant for derivatives.
    """

    factor: SparseFactor
    entries: Array
    fronts: Array


def factorise(plan: Plan, values) -> SparseFactor:
    """Eliminate the matrix whose entries, in the order of the plan's pattern, have these values.

    There may be more values than entries, up to the plan's padded number: the others do not count, so that matrices
    of similar size can share a program. Where the matrix is not positive definite the results are not numbers.
    """
    plan, values = jax.tree.map(jnp.asarray, (plan, values))
    return SparseFactor(plan, values, jax.lax.stop_gradient(_eliminated(plan, jax.lax.stop_gradient(values))))


def log_determinant(factor: SparseFactor):
    """The log-determinant; its derivative is the selected inverse."""
    return _log_determinant(factor.plan, factor.values, factor.numbers)


def invert(factor: SparseFactor) -> Inverse:
    """The inverse, from the core back to the first stage."""
    return Inverse(factor, *_inverse(factor.plan, factor.values, factor.numbers))


def selected_inverse(factor: SparseFactor):
    """The entries of the inverse at the places of the pattern. Forward derivatives of any order are exact."""
    return invert(factor).entries


def moved_inverse(inverse: Inverse, direction):
    """How the entries of the inverse move with the values, (entries,), in a direction, likewise."""
    factor = inverse.factor
    return _moved(factor.plan, factor.values, factor.numbers, inverse.fronts, direction)


def solve(factor: SparseFactor, b):
    """The solution of ``F x = b`` for b (size, r)."""
    plan, values, numbers = factor.plan, factor.values, factor.numbers

    def product(x):
        return times(plan, values, x)

    return jax.lax.custom_linear_solve(product, b, lambda _, b: _substituted(plan, numbers, b), symmetric=True)


@jax.custom_jvp
def _log_determinant(plan, values, numbers):
    return numbers.log_determinant


@_log_determinant.defjvp
def _log_determinant_tangent(primals, tangents):
    plan, values, numbers = primals
    twice = jnp.where(plan.rows == plan.columns, 1, 2).astype(values.dtype)[: len(values)]
    inverse, _ = _inverse(plan, values, numbers)
    return numbers.log_determinant, jnp.sum(twice * inverse * tangents[1])


@jax.custom_jvp
def _inverse(plan, values, numbers):
    """The entries of the inverse, and the numbers of its fronts."""
    fronts = _inverted(plan, numbers)
    return _at_pattern(plan, fronts)[: len(values)], fronts


@_inverse.defjvp
def _inverse_tangent(primals, tangents):
    plan, values, numbers = primals
    inverse, fronts = _inverse(plan, values, numbers)
    return (inverse, fronts), (_moved(plan, values, numbers, fronts, tangents[1]), jnp.zeros_like(fronts))


@jax.custom_jvp
def _moved(plan, values, numbers, fronts, direction):
    """Differentiate elimination and inversion, of which the numbers are known."""
    columns, core = _moved_elimination(plan, numbers, direction)
    return _at_pattern(plan, _moved_inversion(plan, numbers, fronts, columns, core))[: len(values)]


@partial(_moved.defjvp, symbolic_zeros=True)
def _moved_tangent(primals, tangents):
    plan, values, *known, direction = primals
    moved, (_, by_values, *_, by_direction) = _moved(*primals), tangents

    def at(values):
        return _at_pattern(plan, _inverted(plan, _eliminated(plan, values)))[: len(values)]

    def slope(values):
        return jax.jvp(at, (values,), (direction,))[1]

    tangent = jnp.zeros_like(moved)
    if not isinstance(by_values, SymbolicZero):
        tangent += jax.jvp(slope, (values,), (by_values,))[1]
    if not isinstance(by_direction, SymbolicZero):
        tangent += _moved(plan, values, *known, by_direction)
    return moved, tangent


def _offsets(plan):
    """Where each stage, and at last the core, begins among all numbers."""
    return np.cumsum([0, *(len(stage.start) * stage.numbers for stage in plan.stages)])


def _rows(stage: Stage, array, k):
    """The rows of a batch, of an array of all of the stage's: as many as it would have if its fronts were narrowest."""
    return jax.lax.dynamic_slice_in_dim(array, stage.start[k], stage.numbers // stage.widths[0])


def _by_width(stage: Stage, k, function, fronts, *rows):
    """``function(fronts, *rows)`` of a batch at the width of its fronts, (batch, width, width) and (batch, width, ...).

    There may be several arrays of fronts, or None. It returns one, or None, and then rows or scalars; all come back as
    the stage holds them.
    """

    def as_rows(values, count):
        return values if not values.ndim else _padded(values.reshape(count, *values.shape[2:]), room)

    def of_width(width, fronts, *rows):
        count = stage.numbers // width
        fronts, *rows = function(
            jax.tree.map(lambda array: array.reshape(-1, width, width), fronts),
            *(array[:count].reshape(-1, width, *array.shape[1:]) for array in rows),
        )
        return None if fronts is None else fronts.reshape(-1), *(as_rows(values, count) for values in rows)

    room = stage.numbers // stage.widths[0]
    return jax.lax.switch(stage.kind[k], [partial(of_width, width) for width in stage.widths], fronts, *rows)


def _in_parent(stage: Stage, k):
    """Where the entries of the fronts of a batch stand in their parents."""

    def entries(_, row, place):
        return (row[:, :, None] + place[:, None, :],)

    return _by_width(stage, k, entries, None, _rows(stage, stage.row, k), _rows(stage, stage.place, k))[0]


def _eliminated(plan: Plan, values) -> Numbers:
    """Eliminate stage by stage, and invert the core that remains."""

    def eliminated(front, of):
        columns: list[Any] = []
        for j in range(plan.pivots):
            unused = (of[:, j] == plan.size).astype(front.dtype)
            column = less(front[:, :, j], (before * before[:, j, None] for before in columns))
            column = column.at[:, j].add(unused).at[:, :j].set(0)
            columns.append(column / jnp.sqrt(column[:, j, None]))
        rest = less(front, (column[:, :, None] * column[:, None, :] for column in columns))
        logs = sum(jnp.sum(jnp.log(column[:, j])) for j, column in enumerate(columns))
        return rest, jnp.stack(columns, axis=-1), logs

    columns, core, logs = _forward_through(plan, values, eliminated, [stage.columns for stage in plan.stages])
    core += jnp.diag((plan.core == plan.size).astype(values.dtype))
    inverse, of_core = _inverse_and_log_determinant(core)
    return Numbers(columns, inverse, 2 * logs + of_core)


def _moved_elimination(plan: Plan, numbers: Numbers, direction):
    """How the columns of the factor, and the core before it is inverted, move with the values."""

    def moved(front, lower):
        pairs: list[Any] = []
        for j in range(plan.pivots):
            column = lower[:, :, j]
            slope = less(front[:, :, j], (c * d[:, j, None] + d * c[:, j, None] for c, d in pairs)).at[:, :j].set(0)
            pivot = column[:, j, None]
            pairs.append((column, (slope - column * slope[:, j, None] / (2 * pivot)) / pivot))
        rest = less(front, (c[:, :, None] * d[:, None, :] + d[:, :, None] * c[:, None, :] for c, d in pairs))
        return rest, jnp.stack([slope for _, slope in pairs], axis=-1), jnp.zeros((), front.dtype)

    return _forward_through(plan, direction, moved, numbers.columns)[:2]


def _forward_through(plan: Plan, values, eliminate, known):
    """Columns by stage, the core, and a sum, of ``eliminate(front, rows)`` of all fronts.

    It returns what is left of the fronts, their columns and a number; the rows are those of `known`, an array a stage.
    """
    offsets, width = _offsets(plan), len(plan.core)
    values = _padded(values, len(plan.position))
    everything = jnp.zeros(int(offsets[-1]) + width**2, values.dtype).at[plan.position].add(values)
    total, columns = jnp.zeros((), values.dtype), []
    for stage, offset, rows in zip(plan.stages, offsets, known, strict=False):
        everything, of_stage, more = _eliminate_stage(stage, int(offset), plan.pivots, everything, eliminate, rows)
        columns.append(of_stage)
        total += more
    core = everything[int(offsets[-1]) :].reshape(width, width)
    return tuple(columns), jnp.tril(core) + jnp.tril(core, -1).T, total


def _fronts(stage: Stage, offset, everything, k):
    return jax.lax.dynamic_slice_in_dim(everything, offset + k * stage.numbers, stage.numbers)


def _eliminate_stage(stage: Stage, offset, pivots, everything, eliminate, known):
    """All numbers, the stage's columns, and the sum.

    A step is handed its fronts by the one before, as the inverse's steps are: whoever reads from all numbers and
    writes to them in one step makes XLA copy them all.
    """

    def eliminated(front, rows):
        rest, columns, more = eliminate(front, rows)
        is_row = np.arange(front.shape[-1]) >= pivots
        return jnp.where((is_row[:, None] & is_row[None])[None], rest, 0), columns, more

    def step(k, carry):
        everything, front, columns, total = carry
        rest, of_batch, more = _by_width(stage, k, eliminated, front, _rows(stage, known, k))
        everything = everything.at[_in_parent(stage, k)].add(rest, mode="promise_in_bounds")
        # Rows beyond those of the batch are written by the next one.
        columns = jax.lax.dynamic_update_slice_in_dim(columns, of_batch, stage.start[k], 0)
        return everything, _fronts(stage, offset, everything, k + 1), columns, total + more

    columns = jnp.zeros((len(stage.columns), pivots), everything.dtype)
    carry = everything, _fronts(stage, offset, everything, 0), columns, jnp.zeros((), everything.dtype)
    everything, _, columns, total = jax.lax.fori_loop(np.int32(0), stage.count, step, carry)
    return everything, columns, total


def _at_pattern(plan: Plan, fronts):
    """What stands at the places of the pattern."""
    return jnp.where(plan.rows < plan.size, fronts[plan.position], 0)


def _inverted(plan: Plan, numbers: Numbers):
    """The numbers of the inverse's fronts."""

    def inverted(fronts, lower):
        (inverse,) = fronts
        for j in reversed(range(plan.pivots)):
            pivot, below = _below(lower, j)
            across = -jnp.einsum("bij,bj->bi", inverse, below)
            inverse = _bordered(inverse, j, across, 1 / pivot**2 - jnp.sum(across * below, axis=1))
        return (inverse,)

    return _back_through(plan, numbers.core, inverted, [(factor,) for factor in numbers.columns])


def _moved_inversion(plan: Plan, numbers: Numbers, fronts, columns, core):
    """How the numbers of the inverse's fronts move with the columns of the factor and with the core."""

    def moved(fronts, lower, slopes):
        slope, inverse = fronts
        for j in reversed(range(plan.pivots)):
            pivot, below = _below(lower, j)
            pivot_slope, below_slope = slopes[:, j, j], _later(slopes, j) / pivot[:, None]
            below_slope -= below * (pivot_slope / pivot)[:, None]
            across = -jnp.einsum("bij,bj->bi", slope, below) - jnp.einsum("bij,bj->bi", inverse, below_slope)
            corner = -2 * pivot_slope / pivot**3 - jnp.sum(across * below + inverse[:, j] * below_slope, axis=1)
            slope = _bordered(slope, j, across, corner)
        return (slope,)

    of_core = -numbers.core @ core @ numbers.core
    return _back_through(plan, of_core, moved, list(zip(numbers.columns, columns, strict=True)), fronts)


def _later(columns, j):
    """Column j of fronts below its pivot, (batch, width)."""
    return jnp.where((np.arange(columns.shape[1]) > j)[None], columns[:, :, j], 0)


def _below(lower, j):
    """A pivot of the factor, (batch,), and what stands below it as a part of it."""
    pivot = lower[:, j, j]
    return pivot, _later(lower, j) / pivot[:, None]


def _bordered(inverse, j, across, corner):
    across = across.at[:, j].set(corner)
    return inverse.at[:, j].set(across).at[:, :, j].set(across)


def _back_through(plan: Plan, core, invert, known, *others):
    """All numbers, from the core back.

    ``invert(fronts, *rows)`` adds those of its pivots to fronts that have their parents' numbers. The fronts of
    `others` go with them, and the rows of `known`, some arrays a stage.
    """
    offsets = _offsets(plan)
    everything = jnp.concatenate([jnp.zeros(int(offsets[-1]), core.dtype), core.reshape(-1)])
    for stage, rows, offset in reversed(list(zip(plan.stages, known, offsets, strict=False))):
        everything = _invert_stage(stage, int(offset), everything, invert, rows, others)
    return everything


def _invert_stage(stage: Stage, offset, everything, invert, known, others):
    def parents(everything, k):
        return everything.at[_in_parent(stage, k)].get(mode="promise_in_bounds")

    def step(k, carry):
        everything, front = carry
        k = stage.count - 1 - k
        fronts = front, *(_fronts(stage, offset, other, k) for other in others)
        (front,) = _by_width(stage, k, invert, fronts, *(_rows(stage, array, k) for array in known))
        everything = jax.lax.dynamic_update_slice_in_dim(everything, front, offset + k * stage.numbers, 0)
        return everything, parents(everything, k - 1)

    carry = everything, parents(everything, stage.count - 1)
    return jax.lax.fori_loop(np.int32(0), stage.count, step, carry)[0]


def times(plan: Plan, values, x):
    """The product of the matrix with x."""
    values = _padded(values, len(plan.rows))
    rows, columns = plan.rows, plan.columns
    whole = _padded(x, plan.size + 1)
    product = jnp.zeros_like(whole).at[rows].add(values[:, None] * whole[columns])
    below = jnp.where(rows == columns, 0, values)
    return product.at[columns].add(below[:, None] * whole[rows])[: len(x)]


def _substituted(plan: Plan, numbers: Numbers, b):
    """Substitute forward through the stages, and back."""
    x = _padded(b, plan.size + 1)
    for stage, factor in zip(plan.stages, numbers.columns, strict=True):
        x = _forward(stage, factor, x)
    x = x.at[plan.core].set(numbers.core @ x[plan.core])
    for stage, factor in zip(reversed(plan.stages), reversed(numbers.columns), strict=True):
        x = _back(stage, factor, x)
    return x[: len(b)]


def _forward(stage: Stage, factor, x):
    size, pivots = len(x) - 1, factor.shape[-1]

    def substituted(_, x, columns, lower):
        right: list[Any] = []
        for j in range(pivots):
            rest = less(x[:, j], (lower[:, j, i, None] * z for i, z in enumerate(right)))
            right.append(rest / lower[:, j, j, None])
        change = sum(lower[:, pivots:, j, None] * z[:, None] for j, z in enumerate(right))
        solved = jnp.stack(right, axis=1)
        is_pivot = (np.arange(x.shape[1]) < pivots)[None]
        # Padding is below all columns: what is set there does not count, and nothing is added.
        zeros = jnp.zeros_like(change)
        return (
            None,
            jnp.concatenate([jnp.zeros_like(solved), -change], axis=1),
            jnp.concatenate([solved, zeros], axis=1),
            jnp.where(is_pivot, columns - size, 0),
        )

    def step(k, x):
        columns = _rows(stage, stage.columns, k)
        rows = x[columns], columns, _rows(stage, factor, k)
        _, change, solved, pivot = _by_width(stage, k, substituted, None, *rows)
        return x.at[columns].add(change).at[pivot + size].set(solved)

    return jax.lax.fori_loop(np.int32(0), stage.count, step, x)


def _back(stage: Stage, factor, x):
    size, pivots = len(x) - 1, factor.shape[-1]

    def substituted(_, below, columns, lower):
        width = below.shape[1]
        for j in reversed(range(pivots)):
            later = (np.arange(width) > j)[None, :, None]
            rest = below[:, j] - jnp.sum(jnp.where(later, lower[:, :, j, None] * below, 0), axis=1)
            below = below.at[:, j].set(rest / lower[:, j, j, None])
        return None, below, jnp.where((np.arange(width) < pivots)[None], columns - size, 0)

    def step(k, x):
        k = stage.count - 1 - k
        columns = _rows(stage, stage.columns, k)
        _, below, pivot = _by_width(stage, k, substituted, None, x[columns], columns, _rows(stage, factor, k))
        return x.at[pivot + size].set(below)

    return jax.lax.fori_loop(np.int32(0), stage.count, step, x)


def _padded(a, size):
    return jnp.zeros((size, *a.shape[1:]), a.dtype).at[: len(a)].set(a)


@jax.custom_jvp
def _inverse_and_log_determinant(a):
    """Inverse and log-determinant of the core: blocks of columns are swept one after the other, by products alone.

    LAPACK's threads would slow down the products that follow, and in a batch wait for ever.
    """
    size = len(a)
    block = min(BLOCK, size)
    whole = -(-size // block) * block
    a = jnp.eye(whole, dtype=a.dtype).at[:size, :size].set(a) if whole > size else a

    def step(k, carry):
        a, logs = carry
        columns = jax.lax.dynamic_slice_in_dim(a, k * block, block, 1)
        pivot = jax.lax.dynamic_slice_in_dim(columns, k * block, block, 0)
        swept, log_pivot = sweep(pivot, block)
        within = (jnp.arange(whole, dtype=np.int32) // block == k)[:, None]
        columns = jnp.where(within, 0, columns)
        across = -columns @ swept
        rest = jnp.where(within | within.T, 0, a - across @ columns.T)
        across = jax.lax.dynamic_update_slice_in_dim(across, swept, k * block, 0)
        rest = jax.lax.dynamic_update_slice_in_dim(rest, across.T, k * block, 0)
        return jax.lax.dynamic_update_slice_in_dim(rest, across, k * block, 1), logs + log_pivot

    swept, logs = jax.lax.fori_loop(np.int32(0), np.int32(whole // block), step, (a, jnp.zeros((), a.dtype)))
    return -swept[:size, :size], logs


@_inverse_and_log_determinant.defjvp
def _inverse_and_log_determinant_tangents(primals, tangents):
    inverse, logs = _inverse_and_log_determinant(*primals)
    across = inverse @ tangents[0]
    return (inverse, logs), (-across @ inverse, jnp.trace(across))
