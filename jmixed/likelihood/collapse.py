"""Groups with the same Z'WZ put together: the likelihood of balanced data costs as much as that of a few groups.

With one grouping factor a group enters the likelihood through C = Z'WZ, by log|I + lambda'C lambda|, and through
K = B'P(C) B with B = Z'W[X y]. Groups of equal C share P, so that their K is a function of the sum of B (x) B alone.
Any r columns with that sum stand for all of them: here those of a square root of the sum, r = Q (p + 1),
each with C, and with a log-determinant counted n / r times for n groups. Nothing is approximated.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import semidefinite_root
from jmixed.layout.design import Rows
from jmixed.likelihood.moments import Moments
from jmixed.runtime.memory import bucket

DIGITS = 11
"""Decimals of Z'WZ, relative to the largest group's, within which groups count as equal: rounding stays below."""


class Classes(NamedTuple):
    """Groups of equal Z'WZ: the class of each block (blocks,), one block of each class, and its number of blocks.

    Padding classes have no blocks. All arrays may have a leading axis for the members of a batch.
    """

    of: np.ndarray
    example: np.ndarray
    size: np.ndarray


def classes_of(rows: Rows, weights=None) -> Classes | None:
    """The classes of a model's groups, from numpy arrays; None where collapsing them would save nothing.

    `weights` (m, rows) are those of each member of a batch, in place of those of `rows`.
    """
    layout = rows.layout
    if len(layout.stages) != 1 or not layout.is_chain(0):
        return None
    of_members = rows.weights[None] if weights is None else weights
    everyone = [_classes(product, layout.stage_width(0)) for product in _products(rows, of_members)]
    count = bucket(max(len(example) for _, example, _ in everyone))
    if 2 * count * layout.stage_width(0) * (rows.X.shape[1] + 1) > layout.blocks[0]:
        return None
    padded = [Classes(of, *(np.resize(a, count) for a in (example, size))) for of, example, size in everyone]
    for classes, (_, _, size) in zip(padded, everyone, strict=True):
        classes.size[len(size) :] = 0
    if weights is None:
        return padded[0]
    return Classes(*(np.stack(arrays) for arrays in zip(*padded, strict=True)))


def _products(rows, weights):
    """Z'WZ of every group, lower triangles (groups, Q (Q + 1) / 2), for each row of weights (m, rows)."""
    grouping = rows.index.groupings[0]
    Z = np.concatenate([np.asarray(z) for z in rows.Z], axis=1)
    real = grouping.rows < len(Z)
    taken = np.where(real, grouping.rows, 0)
    i, j = np.tril_indices(Z.shape[1])
    pairs = (Z[:, i] * Z[:, j])[taken] * real[..., None]
    for w in weights:
        product = np.einsum("kct,kc->ct", pairs, w[taken])
        if grouping.segments is not None:
            total = np.zeros((grouping.size, product.shape[1]), product.dtype)
            np.add.at(total, grouping.segments, product)
            product = total
        yield product


def _classes(product, width):
    """(class of each group, one group of each class, number of groups of each class); empty groups are in none."""
    i, j = np.tril_indices(width)
    largest = np.max(product[:, i == j], axis=0)
    scale = np.sqrt(largest[i] * largest[j])
    used = np.flatnonzero(np.any(product != 0, axis=1))
    # Minus zero is another key than zero.
    keys = np.round(product[used] / np.where(scale > 0, scale, 1), DIGITS) + 0.0
    keys = keys.view(np.dtype((np.void, keys.itemsize * keys.shape[1]))).ravel()
    _, example, number, size = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    of = np.full(len(product), -1, np.int32)
    of[used] = number.ravel()
    return of, used[example].astype(np.int32), size.astype(np.int32)


def collapse(moments: Moments, classes: Classes) -> Moments:
    """The same likelihood, of a model with one grouping factor, from a few blocks.

    Not for conditional modes, which every group has of its own.
    """
    C, B = moments.C[0], moments.B[0]
    Q, border, blocks = B.shape
    r, count, dtype = Q * border, classes.size.shape[0], B.dtype
    # Where columns of Z and X are orthogonal within groups, what is left is rounding, and every time it is computed
    # another one: a matrix of such products need not be semidefinite. So each is made once, and rows of that size are
    # zero.
    size = jnp.max(jnp.diagonal(C, axis1=0, axis2=1)) * jnp.tile(jnp.diagonal(moments.G), Q)
    rounding = (1e4 * jnp.finfo(dtype).eps) ** 2 * size
    if (shift := moments.shift[0]) is not None:
        # Counted from their least-squares estimates b the effects have K = -b'S b, and B is rounding.
        counted = jnp.any(shift != 0)
        largest = jnp.max(jnp.sum(shift**2, axis=2), axis=0).at[:-1].add(1 / moments.nobs)
        rounding = jnp.where(counted, (1e4 * jnp.finfo(dtype).eps) ** 2 * jnp.tile(largest, Q), rounding)
        B = jnp.where(counted, shift, B)
    flat = jax.lax.optimization_barrier(B.reshape(r, blocks))
    flat = jnp.where((jnp.sum(flat**2, axis=1) > rounding)[:, None], flat, 0)
    member = (classes.of[None] == jnp.arange(count, dtype=jnp.int32)[:, None]).astype(dtype)
    total = jnp.einsum("dag,bg->dab", flat[None] * member[:, None], flat)
    # X is orthonormal and y has its own unit: to unit diagonal first, so that neither drowns in the other's rounding.
    scale = jnp.sqrt(jnp.diagonal(total, axis1=1, axis2=2))
    scale = jnp.where(scale > 0, scale, 1)
    root = jax.vmap(semidefinite_root)(total / (scale[:, :, None] * scale[:, None])) * scale[:, :, None]
    B = jnp.moveaxis(root, 0, 1).reshape(Q, border, count * r)
    return replace(
        moments,
        C=(jnp.repeat(C[:, :, classes.example], r, axis=2),),
        B=(B if shift is None else jnp.where(counted, 0, B),),
        shift=(None if shift is None else jnp.where(counted, B, 0),),
        repeats=jnp.repeat(jnp.asarray(classes.size).astype(dtype) / r, r),
        layout=replace(moments.layout, blocks=(count * r,)),
    )
