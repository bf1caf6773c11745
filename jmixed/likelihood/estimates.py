"""Everything that is estimated once the relative covariances are known: beta, sigma, conditional modes, covariances."""

import jax.numpy as jnp

from jmixed.algebra.batched import triangular_inverse
from jmixed.algebra.small import matmul
from jmixed.covariance.structure import rectify, theta_of_factors
from jmixed.layout.layout import EQUATIONS
from jmixed.likelihood import gaussian
from jmixed.likelihood.couplings import couplings
from jmixed.likelihood.related import times_roots


def estimates(roots, moments, reml):
    """All estimates at the given square roots of the preconditioned covariances; `roots` on the scale of the data."""
    layout = moments.layout
    result = gaussian.profile(gaussian.squares(roots), roots, moments)
    nu = gaussian.degrees(moments, reml)
    logdet = result.logdet - moments.log_weights + jnp.where(reml, result.logdet_fixed, 0)
    scale = result.rss / nu
    to_original = triangular_inverse(moments.R)
    roots = [T @ root for T, root in zip(moments.T, roots, strict=True)]
    return {
        "roots": roots,
        "theta": theta_of_factors(layout.terms, map(rectify, roots), moments.G.dtype),
        "beta": moments.beta0 + to_original @ result.beta,
        "sigma": jnp.sqrt(scale),
        "vcov_beta": scale * (to_original @ result.inverse @ to_original.T),
        "objective": gaussian.deviance(logdet, result.rss, nu),
        "modes": conditional_modes(result, moments),
        # Cross-products know of no parameters of the residuals; a criterion that has them puts them here.
        "rho": jnp.zeros(0, moments.G.dtype),
    }


def conditional_modes(result, moments):
    """Conditional modes of every stage's blocks, in preconditioned columns: later stages first, then back."""
    fixed = jnp.append(-result.beta, jnp.ones((), moments.G.dtype))
    if moments.layout.crossed == EQUATIONS:
        return [jnp.einsum("irg,r->ig", effects, fixed) for effects in result.stages]
    if moments.layout.crossed:
        leaves, core = result.stages
        later = jnp.einsum("arg,r->ag", core.U, fixed)
        reached = couplings(moments).apply(later)[:, 0]
        of_leaves = jnp.einsum("irg,r->ig", leaves.U, fixed) - jnp.einsum("ijg,jg->ig", leaves.P, reached)
        return [
            mode if shift is None else mode + jnp.einsum("irg,r->ig", shift, fixed)
            for mode, shift in zip((of_leaves, later), moments.shift, strict=True)
        ]
    modes, totals = [], []
    for s in reversed(range(len(moments.layout.stages))):
        pieces = [-later[:, parent] for later, parent in zip(modes, moments.index.parents[s], strict=True)]
        blocks = moments.layout.blocks[s]
        border = jnp.concatenate([*pieces, jnp.broadcast_to(fixed[:, None], (len(fixed), blocks))])
        # U border = P (B border): the many columns are summed up before anything else is done with them.
        rest = jnp.sum(result.borders[s] * border[None], axis=1, keepdims=True)
        mode = matmul(result.stages[s].P, rest)
        if (shift := moments.shift[s]) is None:
            total = mode
        else:
            counted = jnp.sum(shift * border[None], axis=1, keepdims=True)
            mode = mode - matmul(result.stages[s].T, counted)
            total = mode + counted
        modes.insert(0, mode[:, 0])
        totals.insert(0, total[:, 0])
    return totals


def by_level(blocks, moments):
    """From blocks (Q, ..., blocks) per stage to terms (levels, q, ...), on the original scale of Z; padding is 0."""
    layout, index = moments.layout, moments.index
    blocks = [times_roots(layout, index, s, effects) for s, effects in enumerate(blocks)]
    terms = {}
    for f, members in enumerate(layout.factors):
        stage, width = layout.stage_of(f), layout.factor_width(f)
        # A level that is padding lies in no block.
        block = jnp.take(index.block[f], index.position[f], mode="fill", fill_value=layout.blocks[stage])
        slot = jnp.take(index.slot[f], index.position[f], mode="fill", fill_value=0)
        start = layout.offset_in_stage(f) + slot * width
        effects = (
            blocks[stage]
            .at[start[:, None] + jnp.arange(width, dtype=start.dtype)[None], block[:, None]]
            .get(mode="fill", fill_value=0)
        )
        offset = 0
        for t in members:
            q = layout.terms[t].q
            terms[t] = effects[:, offset : offset + q] @ moments.T[t].T
            offset += q
    return [terms[t] for t in range(len(layout.terms))]
