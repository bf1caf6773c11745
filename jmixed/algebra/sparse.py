"""Large sparse symmetric positive definite matrices: log-determinant, solves, and the inverse where entries are.

The matrix is eliminated front by front (the multifrontal method, Duff and Reid 1983), with many fronts at a time, and
the inverse is found from the last front back to the first (Takahashi's recurrences, Erisman and Tinney 1975). Loops
over batches keep the program as small for a hundred thousand columns as for ten.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import sweep
from jmixed.algebra.ordering import Plan, Stage, plan
from jmixed.algebra.sums import less

__all__ = ["Factor", "Plan", "factorise", "log_determinant", "plan", "selected_inverse", "solve", "times"]

Array = Any

BLOCK = 64
"""Columns of the core that are swept at a time."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Numbers:
    """What an elimination leaves. Derivatives do not pass through it: those of what is made of it have their rules."""

    columns: tuple[Array, ...]  # by stage, (batches, batch, width, pivots): the columns of the Cholesky factor
    core: Array  # the inverse of the core
    log_determinant: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Factor:
    """A matrix of a plan with these values, (entries,), eliminated."""

    plan: Plan
    values: Array
    numbers: Numbers


def factorise(plan: Plan, values) -> Factor:
    """Eliminate the matrix whose entries, in the order of the plan's pattern, have these values.

    There may be more values than entries, up to the plan's padded number: the others do not count, so that matrices
    of similar size can share a program. Where the matrix is not positive definite the results are not numbers.
    """
    plan, values = jax.tree.map(jnp.asarray, (plan, values))
    return Factor(plan, values, jax.lax.stop_gradient(_eliminated(plan, jax.lax.stop_gradient(values))))


def log_determinant(factor: Factor):
    """The log-determinant; its derivative is the selected inverse."""
    return _log_determinant(factor.plan, factor.values, factor.numbers)


def selected_inverse(factor: Factor):
    """The entries of the inverse at the places of the pattern. Forward derivatives of any order are exact."""
    return _selected_inverse(factor.plan, factor.values, factor.numbers)


def solve(factor: Factor, b):
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
    inverse = _selected_inverse(plan, values, numbers)
    return numbers.log_determinant, jnp.sum(twice * inverse * tangents[1])


@jax.custom_jvp
def _selected_inverse(plan, values, numbers):
    return _inverted(plan, numbers, len(values))


@_selected_inverse.defjvp
def _selected_inverse_tangent(primals, tangents):
    plan, values, _ = primals
    return jax.jvp(lambda values: _inverted(plan, _eliminated(plan, values), len(values)), (values,), (tangents[1],))


def _offsets(plan):
    """Where each stage, and at last the core, begins among all numbers."""
    sizes = [np.size(stage.columns) * stage.columns.shape[-1] for stage in plan.stages]
    return np.cumsum([0, *sizes])


def _eliminated(plan: Plan, values) -> Numbers:
    """Eliminate stage by stage, and invert the core that remains."""
    offsets, width = _offsets(plan), len(plan.core)
    values = _padded(values, len(plan.position))
    everything = jnp.zeros(int(offsets[-1]) + width**2, values.dtype).at[plan.position].add(values)
    log_determinant, columns = jnp.zeros((), values.dtype), []
    for stage, offset in zip(plan.stages, offsets, strict=False):
        everything, factor, logs = _eliminate_stage(stage, int(offset), plan.size, plan.pivots, everything)
        columns.append(factor)
        log_determinant += logs
    core = everything[int(offsets[-1]) :].reshape(width, width)
    core = jnp.tril(core) + jnp.tril(core, -1).T + jnp.diag((plan.core == plan.size).astype(values.dtype))
    inverse, logs = _inverse_and_log_determinant(core)
    return Numbers(tuple(columns), inverse, log_determinant + logs)


def _eliminate_stage(stage: Stage, offset, size, pivots, everything):
    """The stage's columns of the factor, the sum of the logarithms of its pivots, and what is added to its parents.

    A step is handed its fronts by the one before, as the inverse's steps are: whoever reads from all numbers and
    writes to them in one step makes XLA copy them all.
    """
    batches, batch, width = stage.columns.shape
    is_row = np.arange(width) >= pivots
    both = is_row[:, None] & is_row[None]

    def fronts(everything, k):
        numbers = batch * width**2
        front = jax.lax.dynamic_slice_in_dim(everything, offset + k * numbers, numbers).reshape(batch, width, width)
        columns: list[Any] = []
        for j in range(pivots):
            unused = (_at(stage.columns, k)[:, j] == size).astype(front.dtype)
            column = less(front[:, :, j], (before * before[:, j, None] for before in columns))
            column = column.at[:, j].add(unused).at[:, :j].set(0)
            columns.append(column / jnp.sqrt(column[:, j, None]))
        return front, columns

    def step(k, carry):
        everything, front, columns, factor, logs = carry
        rest = less(front, (column[:, :, None] * column[:, None, :] for column in columns))
        rest = jnp.where(both[None], rest, 0)
        everything = everything.at[_in_parent(stage, k)].add(rest, mode="promise_in_bounds")
        logs += sum(jnp.sum(jnp.log(column[:, j])) for j, column in enumerate(columns))
        factor = jax.lax.dynamic_update_index_in_dim(factor, jnp.stack(columns, axis=-1), k, 0)
        return everything, *fronts(everything, k + 1), factor, logs

    factor = jnp.zeros((batches, batch, width, pivots), everything.dtype)
    carry = everything, *fronts(everything, 0), factor, jnp.zeros((), everything.dtype)
    everything, _, _, factor, logs = jax.lax.fori_loop(np.int32(0), stage.count, step, carry)
    return everything, factor, 2 * logs


def _in_parent(stage, k):
    """Where the entries of the fronts of a batch stand in their parents."""
    place, parent, stride = _at(stage.place, k), _at(stage.parent, k), _at(stage.stride, k)
    return parent[:, None, None] + place[:, :, None] * stride[:, None, None] + place[:, None, :]


def _at(array, k):
    return jax.lax.dynamic_index_in_dim(array, k, keepdims=False)


def _inverted(plan: Plan, numbers: Numbers, entries):
    """The entries of the inverse, from the core back to the first stage."""
    offsets = _offsets(plan)
    everything = jnp.zeros(int(offsets[-1]), numbers.core.dtype)
    everything = jnp.concatenate([everything, numbers.core.reshape(-1)])
    for stage, factor, offset in reversed(list(zip(plan.stages, numbers.columns, offsets, strict=False))):
        everything = _invert_stage(stage, int(offset), factor, everything)
    inverse = jnp.where(plan.rows < plan.size, everything[plan.position], 0)
    return inverse[:entries]


def _invert_stage(stage: Stage, offset, factor, everything):
    _, batch, width, pivots = factor.shape

    def parents(everything, k):
        return everything.at[_in_parent(stage, k)].get(mode="promise_in_bounds")

    def step(k, carry):
        everything, inverse = carry
        k = stage.count - 1 - k
        lower = _at(factor, k)
        for j in reversed(range(pivots)):
            pivot = lower[:, j, j][:, None]
            below = jnp.where((np.arange(width) > j)[None], lower[:, :, j], 0) / pivot
            across = -jnp.einsum("bij,bj->bi", inverse, below)
            corner = 1 / pivot[:, 0] ** 2 - jnp.sum(across * below, axis=1)
            across = across.at[:, j].set(corner)
            inverse = inverse.at[:, j].set(across).at[:, :, j].set(across)
        start = offset + k * (batch * width**2)
        everything = jax.lax.dynamic_update_slice_in_dim(everything, inverse.reshape(-1), start, 0)
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
    pivots = factor.shape[-1]

    def step(k, x):
        columns, lower = _at(stage.columns, k), _at(factor, k)
        right: list[Any] = []
        for j in range(pivots):
            rest = less(x[columns[:, j]], (lower[:, j, i, None] * z for i, z in enumerate(right)))
            right.append(rest / lower[:, j, j, None])
        change = sum(lower[:, pivots:, j, None] * z[:, None] for j, z in enumerate(right))
        x = x.at[columns[:, pivots:]].add(-change)
        return x.at[columns[:, :pivots]].set(jnp.stack(right, axis=1))

    return jax.lax.fori_loop(np.int32(0), stage.count, step, x)


def _back(stage: Stage, factor, x):
    pivots = factor.shape[-1]

    def step(k, x):
        k = stage.count - 1 - k
        columns, lower = _at(stage.columns, k), _at(factor, k)
        below = x[columns]
        for j in reversed(range(pivots)):
            later = (np.arange(columns.shape[1]) > j)[None, :, None]
            rest = below[:, j] - jnp.sum(jnp.where(later, lower[:, :, j, None] * below, 0), axis=1)
            below = below.at[:, j].set(rest / lower[:, j, j, None])
        return x.at[columns[:, :pivots]].set(below[:, :pivots])

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
