"""Small symmetric positive definite matrices in bulk.

Matrix axes come first and batch axes last, ``(q, q, ...)``: a stack of small matrices is then a handful of long
contiguous vectors, and unrolled scalar code over them runs many times faster than a batched library call.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax.linalg import triangular_solve

from jmixed.algebra.batched import eigh, sweep
from jmixed.algebra.sums import SHORT, UNROLLED, add_up, less
from jmixed.runtime.device import on_cpu


def cholesky(a) -> Any:
    """Lower Cholesky factor of ``a`` (q, q, ...) as a nested list of entries or, for large q, an array (q, q, ...)."""
    q = a.shape[0]
    if q > UNROLLED:
        return jnp.moveaxis(jnp.linalg.cholesky(jnp.moveaxis(a, (0, 1), (-2, -1))), (-2, -1), (0, 1))
    factor: list[list[Any]] = [[None] * q for _ in range(q)]
    for j in range(q):
        factor[j][j] = jnp.sqrt(less(a[j, j], (factor[j][k] ** 2 for k in range(j))))
        for i in range(j + 1, q):
            factor[i][j] = less(a[i, j], (factor[i][k] * factor[j][k] for k in range(j))) / factor[j][j]
    return factor


def semidefinite_triangle(a, b, least: Any = 0):
    """R, upper triangular with R'R = a, and x with R'x = b, for small semidefinite a (q, q, ...) and b in its range.

    A pivot that is rounding of what it was left of, or not above `least` (q, ...), is zero, and so is its row.
    """
    q = a.shape[0]
    rows, right = [], []
    for k in range(q):
        rest = less(a[k, k:], (row[k][None] * row[k:] for row in rows))
        pivot = rest[0]
        sound = (pivot > 4 * q * jnp.finfo(a.dtype).eps * a[k, k]) & (pivot > (least[k] if np.ndim(least) else least))
        scale = jnp.where(sound, 1 / jnp.sqrt(jnp.where(sound, pivot, 1)), 0)
        right_rest = less(b[k], (row[k][None] * x for row, x in zip(rows, right, strict=True)))
        rows.append(jnp.concatenate([jnp.zeros((k, *rest.shape[1:]), a.dtype), rest * scale[None]]))
        right.append(right_rest * scale[None])
    return jnp.stack(rows), jnp.stack(right)


def least_squares(a, b):
    """A solution x of ``a x = b`` for small semidefinite a (q, q, ...) and b (q, r, ...) in its range."""
    return back_substitute(*semidefinite_triangle(a, b))


def back_substitute(triangle, right):
    """Solve ``R x = b`` for R (q, q, ...) as given by `semidefinite_triangle`: where its row is zero, so is x."""
    q = triangle.shape[0]
    solution: list[Any] = [None] * q
    for k in reversed(range(q)):
        rest = less(right[k], (triangle[k, j][None] * solution[j] for j in range(k + 1, q)))
        sound = triangle[k, k] > 0
        solution[k] = jnp.where(sound, 1 / jnp.where(sound, triangle[k, k], 1), 0)[None] * rest
    return jnp.stack(solution)


def forward_solve(factor, b):
    """Solve ``L x = b`` for ``b`` (q, r, ...), ``L`` as returned by `cholesky`."""
    if not isinstance(factor, list):
        return _triangular_solve(factor, b, False)
    rows = []
    for i, row in enumerate(factor):
        rows.append(less(b[i], (row[k][None] * rows[k] for k in range(i))) / row[i][None])
    return jnp.stack(rows)


SWEPT = 96
"""Largest order that is inverted column by column; larger matrices are halved."""

FACTORED = 1024
"""Largest order that an accelerator, which takes the columns of a small matrix one by one, factors as it is."""


def inverse_and_log_determinant(a):
    """Inverse and log-determinant of one large symmetric positive definite matrix (Q, Q), by products alone.

    Halves are eliminated one after the other, and small blocks by the sweep operator. On a CPU this takes half the time
    of LAPACK's factor and solves, whose threads would also slow down the products that follow. An accelerator factors
    larger blocks by its own library.
    """
    n = a.shape[0]
    if n <= SWEPT:
        swept, logdet = sweep(a, n)
        return -swept, logdet
    if n <= FACTORED and not on_cpu():
        factor = jnp.linalg.cholesky(a)
        half = triangular_solve(factor, jnp.eye(n, dtype=a.dtype), left_side=True, lower=True)
        return half.T @ half, 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    half = n // 2
    first, log_first = inverse_and_log_determinant(a[:half, :half])
    across = first @ a[:half, half:]
    second, log_second = inverse_and_log_determinant(a[half:, half:] - a[half:, :half] @ across)
    corner = across @ second
    return bordered(first + corner @ across.T, -corner, second), log_first + log_second


def back_solve(factor, b):
    """Solve ``L' x = b`` for ``b`` (q, r, ...), ``L`` as returned by `cholesky`."""
    if not isinstance(factor, list):
        return _triangular_solve(factor, b, True)
    q, rows = len(factor), {}
    for i in reversed(range(q)):
        rows[i] = less(b[i], (factor[k][i][None] * rows[k] for k in range(i + 1, q))) / factor[i][i][None]
    return jnp.stack([rows[i] for i in range(q)])


def _triangular_solve(factor, b, transposed):
    left, right = (jnp.moveaxis(a, (0, 1), (-2, -1)) for a in (factor, b))
    right = jnp.broadcast_to(right, left.shape[:-2] + right.shape[-2:])
    solution = triangular_solve(left, right, left_side=True, lower=True, transpose_a=transposed)
    return jnp.moveaxis(solution, (-2, -1), (0, 1))


def log_determinant(factor):
    """Log-determinant of ``L L'`` over the batch axes."""
    if not isinstance(factor, list):
        return 2 * jnp.sum(jnp.log(jnp.diagonal(factor, axis1=0, axis2=1)), axis=-1)
    return 2 * add_up(jnp.log(factor[j][j]) for j in range(len(factor)))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class BlockDiagonal:
    """A block-diagonal matrix in which each of a few blocks (w, w) stands several times in a row."""

    blocks: tuple[jax.Array, ...]
    repeats: tuple[int, ...] = field(metadata={"static": True})

    @property
    def T(self) -> "BlockDiagonal":
        return BlockDiagonal(tuple(b.T for b in self.blocks), self.repeats)

    def inverse(self) -> "BlockDiagonal":
        """By the normal equations, which a batch can do: for blocks that are well away from singular."""
        return BlockDiagonal(tuple(sweep(b.T @ b, b.shape[0])[0] @ -b.T for b in self.blocks), self.repeats)

    def smallest_singular_value(self):
        """The smallest of all blocks."""
        return jnp.sqrt(jnp.maximum(jnp.min(jnp.stack([eigh(b.T @ b)[0][0] for b in self.blocks])), 0))

    def _diagonal(self):
        """The diagonal, where that is all: one pass over an array instead of several."""
        if any(block.shape[0] > 1 for block in self.blocks):
            return None
        return jnp.concatenate([jnp.full(n, b[0, 0]) for b, n in zip(self.blocks, self.repeats, strict=True)])

    def times(self, b):
        """The product with ``b`` (Q, ...)."""
        if (scale := self._diagonal()) is not None:
            return scale.reshape(-1, *(1,) * (b.ndim - 1)) * b
        pieces, start = [], 0
        for block, repeats in zip(self.blocks, self.repeats, strict=True):
            width = block.shape[0]
            part = b[start : start + repeats * width].reshape(repeats, width, -1)
            pieces.append(jnp.einsum("ij,ljx->lix", block, part).reshape(repeats * width, *b.shape[1:]))
            start += repeats * width
        return jnp.concatenate(pieces)

    def congruence(self, b):
        """``M b M'`` for a matrix ``b`` (Q, Q, ...)."""
        if (scale := self._diagonal()) is not None:
            return (scale[:, None] * scale[None]).reshape(*b.shape[:2], *(1,) * (b.ndim - 2)) * b
        return transpose(self.times(transpose(self.times(b))))


def matmul(a, b) -> jax.Array:
    """``a @ b`` for stacks (p, q, ...) and (q, r, ...); a matrix without batch axes broadcasts over the other's."""
    if isinstance(a, BlockDiagonal):
        return a.times(b)
    if a.ndim == b.ndim == 2:
        return a @ b
    a = a.reshape(a.shape + (1,) * (b.ndim - a.ndim))
    b = b.reshape(b.shape + (1,) * (a.ndim - b.ndim))
    if a.shape[1] > UNROLLED:
        return jnp.einsum("ij...,jk...->ik...", a, b)
    if max(a.shape[-1], b.shape[-1]) <= SHORT:
        return jnp.sum(a[:, :, None] * b[None], axis=1)
    return add_up(a[:, j : j + 1] * b[j : j + 1] for j in range(a.shape[1]))


def congruence(a, b) -> jax.Array:
    """``a b a'`` for symmetric ``b`` (q, q, ...)."""
    if isinstance(a, BlockDiagonal):
        return a.congruence(b)
    return matmul(matmul(a, b), a.T)


def transpose(a):
    """Swap the two matrix axes."""
    return jnp.swapaxes(a, 0, 1)


def bordered(first, across, second):
    """The symmetric matrix (q + r, q + r, ...) of its blocks (q, q, ...), (q, r, ...) and (r, r, ...)."""
    top = jnp.concatenate([first, across], axis=1)
    return jnp.concatenate([top, jnp.concatenate([transpose(across), second], axis=1)])


# ---- batches of fits -------------------------------------------------------------------------------------------------
# jaxlib's LAPACK calls on a batch wait for helpers from the very pool of threads that they run on: as many of them at
# once as there are threads, two on a small machine, wait for ever. So under vmap none is made.
