"""Random effects between rows and blocks: Z b, its transpose, and (Z'WZ + Sigma^-1)^-1 applied to many columns.

The blocks of each stage of the elimination (see `jmixed.layout.layout`) hold the effects u of independent levels in
preconditioned columns, Z b = Z~ (L (x) I) u with L the roots of known covariances. Of sparse equations they hold the
effects of levels as they are, and what stands for Sigma here is its product with their known covariance.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.sparse import SparseFactor, log_determinant
from jmixed.algebra.sparse import solve as solve_sparse
from jmixed.layout.design import Rows
from jmixed.layout.layout import EQUATIONS
from jmixed.likelihood.couplings import couplings
from jmixed.likelihood.equations import apart, joined
from jmixed.likelihood.equations import eliminated as equations_eliminated
from jmixed.likelihood.gaussian import reduce
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.preconditioning import Preconditioners
from jmixed.likelihood.products import at_rows, border_of_stage, crossproduct, random_columns, stack_stages
from jmixed.likelihood.related import prior_factor, times_roots
from jmixed.likelihood.stages import stage_blocks, sum_by_parent


def to_blocks(values, rows: Rows, columns: Preconditioners) -> list[jax.Array]:
    """Z'v of every stage's blocks, (Q, r, blocks), for v (n, r)."""
    layout, index, sums = rows.layout, rows.index, {}
    for f in range(len(layout.factors)):
        pick = partial(_columns, layout, f)
        (sums[f, None],) = crossproduct(index.groupings[f], pick, {"Z": rows.Z, "values": values}, columns)
    blocks = [border_of_stage(layout, index, s, sums) for s in range(len(layout.stages))]
    return [times_roots(layout, index, s, block, transposed=True) for s, block in enumerate(blocks)]


def _columns(layout, factor, arrays, columns):
    return random_columns(layout, factor, arrays, columns), (jnp.moveaxis(arrays["values"], -1, 0),)


def to_rows(blocks, rows: Rows, columns: Preconditioners) -> jax.Array:
    """Z b (n, r) from blocks (Q, r, blocks)."""
    layout, index = rows.layout, rows.index
    total = jnp.zeros((rows.y.shape[0], blocks[0].shape[1]), rows.y.dtype)
    for s, of_stage in enumerate(blocks):
        effects = times_roots(layout, index, s, of_stage)
        for f, _ in layout.stages[s]:
            width = layout.factor_width(f)
            place = layout.offset_in_stage(f) + index.slot[f] * width
            at = place[None] + np.arange(width, dtype=np.int32)[:, None]
            # Advanced indices around a slice come first: (width, levels, r).
            levels = effects.at[at, :, index.block[f][None]].get(mode="fill", fill_value=0)
            Z = random_columns(layout, f, {"Z": rows.Z}, columns).T
            total = total + at_rows(index.groupings[f], Z, jnp.moveaxis(levels, 1, 2))
    return total


def scaled(blocks, covariances, layout, prior: SparseFactor | None = None) -> list[jax.Array]:
    """Sigma a of every stage's blocks; of sparse equations by the inverse known covariance, the `prior`."""
    moved = [stage_blocks(layout, s, covariances).times(block) for s, block in enumerate(blocks)]
    return moved if prior is None else apart(solve_sparse(stop_gradient(prior), joined(moved)), layout)


def prior_of(rows: Rows) -> SparseFactor | None:
    """The inverse known covariance of the coefficients of sparse equations, eliminated; else None."""
    return prior_factor(rows.index.system, rows.y.dtype) if rows.layout.crossed == EQUATIONS else None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Elimination:
    """The random effects eliminated from rows with working weights W (n,).

    Attributes
    ----------
    logdet : scalar
        log|I + Sigma Z'WZ|.
    stages : Reduced or Eliminated
        What the elimination leaves.
    """

    logdet: jax.Array
    stages: Any
    moments: Moments
    rows: Rows
    columns: Preconditioners

    def reach(self, values) -> jax.Array:
        """Z P Z'v (n, ...) for v likewise, with P = (Z'WZ + Sigma^-1)^-1."""
        border = to_blocks(values.reshape(values.shape[0], -1), self.rows, self.columns)
        equations = self.rows.layout.crossed == EQUATIONS
        solved = self.stages.solve(border) if equations else solve(self.stages, self.moments, border)
        return to_rows(solved, self.rows, self.columns).reshape(values.shape)


def eliminate_effects(
    covariances, roots, weight, rows: Rows, columns: Preconditioners, prior: SparseFactor | None
) -> Elimination:
    """The elimination at covariances, and any square roots of them of which only the value is used.

    With a `prior` there may be none: they are then those by Cholesky, which derivatives flow through.
    """
    moments = working_moments(weight, rows, columns)
    if prior is not None:
        equations = equations_eliminated(covariances, roots, moments)
        logdet = equations.logdet - log_determinant(stop_gradient(prior))
        return Elimination(logdet, equations, moments, rows, columns)
    reduced = reduce(covariances, roots, moments)
    return Elimination(reduced.logdet, reduced, moments, rows, columns)


def working_moments(weights, rows: Rows, columns: Preconditioners) -> Moments:
    """The cross-products Z'WZ of rows with working weights W (n,), with a border of one column of zeros."""
    dtype = rows.y.dtype
    n, zero = rows.y.shape[0], jnp.zeros((), dtype)
    none = Preconditioners(jnp.zeros((0, 0), dtype), jnp.zeros((0, 0), dtype), jnp.zeros(0, dtype), columns.T)
    arrays = {"X": jnp.zeros((n, 0), dtype), "Z": rows.Z, "y": jnp.zeros(n, dtype), "weights": weights}
    C, B, A = stack_stages(rows, arrays, none)
    return Moments(
        C=C, B=B, A=A, G=jnp.zeros((1, 1), dtype), R=none.R, beta0=none.beta0, T=columns.T, log_weights=zero, nobs=zero,
        total=zero, redundant=jnp.zeros((), bool), index=rows.index, shift=(None,) * len(C), layout=rows.layout,
    )  # fmt: skip


def solve(reduced, moments: Moments, border) -> list[jax.Array]:
    """P B of every stage's blocks, (Q, r, blocks), for a border B likewise and P = (C + Sigma^-1)^-1 of all blocks.

    `reduced` has the eliminated stages of the moments. Forward through the stages, and back.
    """
    layout, stages = moments.layout, reduced.stages
    if layout.crossed:
        leaves, core = stages
        links = couplings(moments)
        U = _times(leaves.P, border[0])
        later = core.P[:, :, 0] @ (border[1][:, :, 0] - links.border(U[None])[0])
        return [U - _times(leaves.P, links.apply(later)), later[:, :, None]]
    last, left, eliminated = len(stages) - 1, list(border), []
    for s in range(last + 1):
        U, start = _times(stages[s].P, left[s]), 0
        eliminated.append(U)
        for t, parent in zip(range(s + 1, last + 1), moments.index.parents[s], strict=True):
            stop = start + layout.stage_width(t)
            links = reduced.borders[s][:, start:stop]
            explained = jnp.einsum("qtg,qrg->trg", links, U)
            left[t] = left[t] - sum_by_parent(explained, parent, layout.blocks[t])
            start = stop
    solved: list[jax.Array] = []
    for s in reversed(range(last + 1)):
        U, start = eliminated[s], 0
        for t, parent in zip(range(s + 1, last + 1), moments.index.parents[s], strict=True):
            stop = start + layout.stage_width(t)
            reached = jnp.einsum("qtg,trg->qrg", reduced.borders[s][:, start:stop], solved[t - s - 1][:, :, parent])
            U = U - _times(stages[s].P, reached)
            start = stop
        solved.insert(0, U)
    return solved


def _times(P, B):
    return jnp.einsum("ijg,jrg->irg", P, B)
