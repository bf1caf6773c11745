"""Relative variances by the method of moments, a start for crossed factors that costs no evaluation.

The unweighted quadratic forms |Z_t'Wy|^2 and y'Wy have expectations that are linear in the variances (Rao's MINQUE with
V = I, also known as Haseman-Elston regression); columns are preconditioned and X has been taken out of y:

    E |Z_t'Wy|^2 = sigma^2 tr C_tt + sum_u v_u |C_tu|^2        E y'Wy = sigma^2 n + sum_u v_u tr C_uu
"""

import jax.numpy as jnp

from jmixed.data import Moments
from jmixed.likelihood.couplings import couplings
from jmixed.likelihood.stages import places
from jmixed.linalg import sweep

SMALLEST, LARGEST = 1e-2, 1e4
"""Bounds of the relative variances: from zero no derivative leads away."""


def moment_variances(moments: Moments):
    """Relative covariances v_t / sigma^2 I of all terms of a crossed layout, one array (q, q) each."""
    terms = sorted((p.term, stage, p) for stage in (0, 1) for p in places(moments.layout, stage))
    leaf_rows, leaf_core = moments.C[0], couplings(moments).squares()
    core = moments.C[1][:, :, 0] ** 2

    def overlap(one, other):
        (_, stage, p), (_, other_stage, r) = one, other
        if stage == other_stage == 0:
            return jnp.sum(leaf_rows[p.inner : p.inner + p.q, r.inner : r.inner + r.q] ** 2)
        if stage == other_stage:
            return jnp.sum(r.rows(p.rows(core).sum((0, 1))))
        leaf, far = (p, r) if stage == 0 else (r, p)
        return jnp.sum(far.rows(leaf_core[leaf.inner : leaf.inner + leaf.q].sum(0)))

    def trace(entry):
        _, stage, p = entry
        return jnp.sum(p.rows(jnp.sum(jnp.diagonal(moments.C[stage]), axis=0)))

    def square(entry):
        _, stage, p = entry
        border = moments.B[stage][:, -1]
        return jnp.sum(p.rows(jnp.sum(border**2, axis=1)))

    traces = jnp.stack([trace(t) for t in terms])
    overlaps = jnp.stack([jnp.stack([overlap(t, u) for u in terms]) for t in terms])
    system = jnp.block([[moments.nobs[None, None], traces[None]], [traces[:, None], overlaps]])
    observed = jnp.stack([moments.G[-1, -1], *(square(t) for t in terms)])
    scale = 1 / jnp.sqrt(jnp.diagonal(system))
    inverse = -sweep(system * scale[:, None] * scale[None], len(scale))[0]
    solved = scale * (inverse @ (observed * scale))
    ratio = solved[1:] / jnp.where(solved[0] > 0, solved[0], moments.G[-1, -1] / moments.nobs)
    ratio = jnp.clip(jnp.where(jnp.isfinite(ratio), ratio, 1), SMALLEST, LARGEST)
    return [v * jnp.eye(p.q, dtype=ratio.dtype) for v, (_, _, p) in zip(ratio, terms, strict=True)]
