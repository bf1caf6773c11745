"""The relative covariance of a stage's block, put together from the terms'."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.small import BlockDiagonal
from jmixed.covariance.structure import block_diagonal, split


def covariances_of(psi, structures):
    """``Sigma`` of every term from psi."""
    return [s.covariance(piece) for s, piece in zip(structures, split(structures, psi), strict=True)]


def stage_blocks(layout, stage, matrices) -> BlockDiagonal:
    """Block-diagonal matrix of a stage's block from the terms' matrices."""
    members = layout.stages[stage]
    blocks = tuple(block_diagonal([matrices[t] for t in layout.factors[factor]]) for factor, _ in members)
    return BlockDiagonal(blocks, tuple(slots for _, slots in members))


def stage_matrix(layout, stage, matrices):
    """The same as one array (Q, Q)."""
    blocks = stage_blocks(layout, stage, matrices)
    repeated = zip(blocks.blocks, blocks.repeats, strict=True)
    return block_diagonal([block if repeats == 1 else _along_diagonal(block, repeats) for block, repeats in repeated])


def _along_diagonal(block, repeats):
    """One block repeated, in a few steps whatever their number: a core has thousands of levels."""
    size = repeats * block.shape[0]
    unit = jnp.eye(repeats, dtype=block.dtype)
    return (unit[:, None, :, None] * block[None, :, None]).reshape(size, size)


class Place(NamedTuple):
    """Where a term's columns stand in a block: in each of `slots` runs of `width`, the q columns from `inner` on."""

    term: int
    start: int
    slots: int
    width: int
    inner: int
    q: int

    def rows(self, x):
        """The term's rows of ``x`` (Q, ...), as (slots, q, ...)."""
        run = x[self.start : self.start + self.slots * self.width]
        return run.reshape(self.slots, self.width, *x.shape[1:])[:, self.inner : self.inner + self.q]

    def columns(self):
        """Their numbers, (slots, q)."""
        return self.start + self.inner + self.width * np.arange(self.slots)[:, None] + np.arange(self.q)


def places(layout, stage) -> list[Place]:
    """Where the terms of a stage stand in its block."""
    out = []
    for factor, slots in layout.stages[stage]:
        width, inner = layout.factor_width(factor), 0
        for t in layout.factors[factor]:
            out.append(Place(t, layout.offset_in_stage(factor), slots, width, inner, layout.terms[t].q))
            inner += layout.terms[t].q
    return out


def sum_by_parent(values, parent, blocks):
    """Sum the last axis of (..., children) over the children of each parent: (..., blocks)."""
    summed = jax.ops.segment_sum(jnp.moveaxis(values, -1, 0), parent, num_segments=blocks, indices_are_sorted=True)
    return jnp.moveaxis(summed, 0, -1)
