"""Levels whose effects are related: a known covariance K = L L' makes the columns Z (L (x) I) of independent levels.

With b = (L (x) I) u, and u independent between levels, a model of related levels is an ordinary one with other columns,
whose cross-products are those of the levels times L: C becomes L'C L, B becomes L'B. Each level then meets every other,
so that the levels stand in one block, a core. Nothing else in the likelihood, its derivatives included, knows of K.
"""

import jax.numpy as jnp

from jmixed.algebra.sparse import SparseFactor, factorise, log_determinant


def times_roots(layout, index, stage, x, transposed=False):
    """Rows of x (Q, ...) of a stage's block times the roots L of their factors, or L'; others are left as they are."""
    for factor, slots in layout.stages[stage]:
        if (root := index.root(factor)) is None:
            continue
        root = jnp.asarray(root).astype(x.dtype)
        start, width = layout.offset_in_stage(factor), layout.factor_width(factor)
        rows = x[start : start + slots * width].reshape(slots, width, *x.shape[1:])
        moved = jnp.tensordot(root.T if transposed else root, rows, 1).reshape(slots * width, *x.shape[1:])
        x = jnp.concatenate([x[:start], moved, x[start + slots * width :]])
    return x


def relate(layout, index, C, B, A):
    """Cross-products of levels, as stages have them, once related levels are made independent.

    Related levels stand in the last stage; A, or the borders of the stages before it, hold the couplings with it.
    """
    if not index.relationships:
        return C, B, A
    last = len(layout.stages) - 1

    def along(x, axis):
        return jnp.moveaxis(times_roots(layout, index, last, jnp.moveaxis(x, axis, 0), transposed=True), 0, axis)

    C = (*C[:-1], along(along(C[-1], 0), 1))
    B = (*B[:-1], along(B[-1], 0))
    return C, B, A if A is None else along(A, 1)


def related_draws(index, factor, normal):
    """Effects (n, levels, q) of a factor with the covariance of its levels, from independent ones of variance one."""
    if (root := index.root(factor)) is None:
        return normal
    root = jnp.asarray(root).astype(normal.dtype)
    levels = normal.shape[1]
    size = min(levels, len(root))
    # Slots and levels are padded to sizes of their own.
    drawn = jnp.einsum("lk,nkq->nlq", root[:size, :size], normal[:, :size])
    return jnp.pad(drawn, ((0, 0), (0, levels - size), (0, 0)))


def prior_factor(system, dtype) -> SparseFactor:
    """Q of sparse equations, eliminated: the inverse covariance of coefficients whose own variances are one."""
    size = system.plan.rows.shape[0]
    prior = jnp.asarray(system.prior).astype(dtype)
    return factorise(system.plan, jnp.zeros(size, dtype).at[: len(prior)].set(prior))


def prior_log_determinant(system, dtype):
    """log|Q|."""
    return log_determinant(prior_factor(system, dtype))
