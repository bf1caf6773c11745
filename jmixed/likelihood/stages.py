"""The relative covariance of a stage's block, put together from the terms'."""

import jax.numpy as jnp

from jmixed.covariance import block_diagonal, split
from jmixed.linalg import BlockDiagonal


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
    return block_diagonal([block for block, repeats in repeated for _ in range(repeats)])


def term_columns(layout, stage):
    """For every term of a stage the columns (slots, q) of its block, in the order of the stage's factors: constants."""
    for factor, slots in layout.stages[stage]:
        width, start = layout.factor_width(factor), layout.offset_in_stage(factor)
        for t in layout.factors[factor]:
            q = layout.terms[t].q
            yield t, start + width * jnp.arange(slots)[:, None] + jnp.arange(q)[None]
            start += q
