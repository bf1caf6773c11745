"""Small symmetric positive definite matrices in bulk.

Matrix axes come first and batch axes last, ``(q, q, ...)``: a stack of small matrices is then a handful of long
contiguous vectors, and unrolled scalar code over them runs many times faster than a batched library call.
"""

import functools
import operator
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax.linalg import triangular_solve

from jmixed.runtime.device import on_cpu

UNROLLED = 4
"""Largest order that is factored by unrolled scalar code; larger matrices go to LAPACK."""


def add_up(terms) -> jax.Array:
    """The sum of at least one array, without a zero to start from."""
    return functools.reduce(operator.add, terms)


def take(a, *index):
    """``a[index]`` for constant indices within bounds, one for each axis: one step, where indexing makes ten of it.

    The steps of a program are what it costs to compile it, and to read it from a cache.
    """
    if isinstance(a, np.ndarray):
        return a[index]
    axes = tuple(range(a.ndim))
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=axes, start_index_map=axes)
    where = np.stack(np.broadcast_arrays(*index), axis=-1).astype(np.int32)
    return jax.lax.gather(a, where, numbers, (1,) * a.ndim, mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def diagonal(a):
    """The diagonal of a matrix (q, q)."""
    return take(a, np.arange(a.shape[0]), np.arange(a.shape[0]))


BLOCK = 1024
"""Small matrices of a long stack that a CPU works on at a time, so that what is made of them stays in cache."""


SHORT = 128
"""Small matrices of a stack up to which a sum is one step: written out it would be faster, and longer to compile."""


def is_long(length: int, blocks: int = 4) -> bool:
    """Whether a stack is as long as so many blocks; the buckets of such sizes are multiples of a block."""
    return length >= blocks * BLOCK and length % BLOCK == 0


def in_blocks(length: int, blocks: int = 4) -> bool:
    """Whether a stack of this length is worked on in blocks. An accelerator would wait for one after the other."""
    return on_cpu() and is_long(length, blocks)


def sum_in_blocks(function, arrays, constants=(), axis=-1, blocks=4) -> Any:
    """``function(arrays, constants)``, sums over an axis of all arrays: a block of it at a time from so many blocks on.

    A function of many steps would otherwise write each step's long arrays to memory and read them again. Derivatives
    are those of the function itself, because the reverse of a loop over blocks would touch all of each array each time.
    """
    length = jax.tree.leaves(arrays)[0].shape[axis]
    if not in_blocks(length, blocks):
        return function(arrays, constants)

    @jax.custom_jvp
    def total(arrays, constants):
        def block(k):
            own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, k * BLOCK, BLOCK, axis), arrays)
            return function(own, constants)

        def add_block(k, sums):
            return jax.tree.map(operator.add, sums, block(k))

        return jax.lax.fori_loop(1, length // BLOCK, add_block, block(0))

    @total.defjvp
    def tangents(primals, tangents):
        return total(*primals), jax.jvp(function, primals, tangents)[1]

    return total(arrays, constants)


def cholesky(a) -> Any:
    """Lower Cholesky factor of ``a`` (q, q, ...) as a nested list of entries or, for large q, an array (q, q, ...)."""
    q = a.shape[0]
    if q > UNROLLED:
        return jnp.moveaxis(jnp.linalg.cholesky(jnp.moveaxis(a, (0, 1), (-2, -1))), (-2, -1), (0, 1))
    factor: list[list[Any]] = [[None] * q for _ in range(q)]
    for j in range(q):
        factor[j][j] = jnp.sqrt(_less(a[j, j], (factor[j][k] ** 2 for k in range(j))))
        for i in range(j + 1, q):
            factor[i][j] = _less(a[i, j], (factor[i][k] * factor[j][k] for k in range(j))) / factor[j][j]
    return factor


def semidefinite_triangle(a, b, least: Any = 0):
    """R, upper triangular with R'R = a, and x with R'x = b, for small semidefinite a (q, q, ...) and b in its range.

    A pivot that is rounding of what it was left of, or not above `least` (q, ...), is zero, and so is its row.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from jmixed.algebra.small import semidefinite_triangle
    >>> R, x = semidefinite_triangle(jnp.array([[4.0, 2.0], [2.0, 1.0]]), jnp.array([[6.0], [3.0]]))
    >>> R.tolist(), x.tolist()
    ([[2.0, 1.0], [0.0, 0.0]], [[3.0], [0.0]])
    """
    q = a.shape[0]
    rows, right = [], []
    for k in range(q):
        rest = _less(a[k, k:], (row[k][None] * row[k:] for row in rows))
        pivot = rest[0]
        sound = (pivot > 4 * q * jnp.finfo(a.dtype).eps * a[k, k]) & (pivot > (least[k] if np.ndim(least) else least))
        scale = jnp.where(sound, 1 / jnp.sqrt(jnp.where(sound, pivot, 1)), 0)
        own = _less(b[k], (row[k][None] * x for row, x in zip(rows, right, strict=True)))
        rows.append(jnp.concatenate([jnp.zeros((k, *rest.shape[1:]), a.dtype), rest * scale[None]]))
        right.append(own * scale[None])
    return jnp.stack(rows), jnp.stack(right)


def least_squares(a, b):
    """A solution x of ``a x = b`` for small semidefinite a (q, q, ...) and b (q, r, ...) in its range."""
    return back_substitute(*semidefinite_triangle(a, b))


def back_substitute(triangle, right):
    """Solve ``R x = b`` for R (q, q, ...) as given by `semidefinite_triangle`: where its row is zero, so is x."""
    q = triangle.shape[0]
    solution: list[Any] = [None] * q
    for k in reversed(range(q)):
        rest = _less(right[k], (triangle[k, j][None] * solution[j] for j in range(k + 1, q)))
        sound = triangle[k, k] > 0
        solution[k] = jnp.where(sound, 1 / jnp.where(sound, triangle[k, k], 1), 0)[None] * rest
    return jnp.stack(solution)


def forward_solve(factor, b):
    """Solve ``L x = b`` for ``b`` (q, r, ...), ``L`` as returned by `cholesky`."""
    if not isinstance(factor, list):
        left = jnp.moveaxis(factor, (0, 1), (-2, -1))
        right = jnp.moveaxis(b, (0, 1), (-2, -1))
        right = jnp.broadcast_to(right, left.shape[:-2] + right.shape[-2:])
        return jnp.moveaxis(triangular_solve(left, right, left_side=True, lower=True), (-2, -1), (0, 1))
    rows = []
    for i, row in enumerate(factor):
        rows.append(_less(b[i], (row[k][None] * rows[k] for k in range(i))) / row[i][None])
    return jnp.stack(rows)


def _less(value, terms):
    """The value less each of the terms."""
    return functools.reduce(operator.sub, terms, value)


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
    top = jnp.concatenate([first + corner @ across.T, -corner], axis=1)
    return jnp.concatenate([top, jnp.concatenate([-corner.T, second], axis=1)]), log_first + log_second


def back_solve(factor, b):
    """Solve ``L' x = b`` for ``b`` (q, r, ...), ``L`` as returned by `cholesky`."""
    if not isinstance(factor, list):
        left = jnp.moveaxis(factor, (0, 1), (-2, -1))
        right = jnp.moveaxis(b, (0, 1), (-2, -1))
        right = jnp.broadcast_to(right, left.shape[:-2] + right.shape[-2:])
        return jnp.moveaxis(
            triangular_solve(left, right, left_side=True, lower=True, transpose_a=True), (-2, -1), (0, 1)
        )
    q, rows = len(factor), {}
    for i in reversed(range(q)):
        rows[i] = _less(b[i], (factor[k][i][None] * rows[k] for k in range(i + 1, q))) / factor[i][i][None]
    return jnp.stack([rows[i] for i in range(q)])


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


# ---- batches of fits -------------------------------------------------------------------------------------------------
# jaxlib's LAPACK calls on a batch wait for helpers from the very pool of threads that they run on: as many of them at
# once as there are threads, two on a small machine, wait for ever. So under vmap none is made.

JACOBI = 6
"""Largest order whose eigenvectors a batch finds by rotations; of larger matrices one is taken at a time."""


@jax.custom_batching.custom_vmap
def eigh(a):
    """Ascending eigenvalues and the eigenvectors of a symmetric matrix (q, q), as `jnp.linalg.eigh` gives them."""
    if a.shape[0] <= 1:
        return diagonal(a), jnp.ones_like(a)
    return tuple(jnp.linalg.eigh(a))


@eigh.def_vmap
def _eigh_of_many(size, batched, a):
    rule = jax.vmap(_jacobi) if a.shape[-1] <= JACOBI else lambda many: jax.lax.map(eigh, many)
    return rule(a), (True, True)


def _jacobi(a):
    """The eigenvalues by cyclic rotations (Golub and Van Loan, section 8.5), of a number that suits every matrix."""
    q = a.shape[0]
    if q <= 1:
        return diagonal(a), jnp.ones_like(a)
    first, second = (jnp.asarray(k, jnp.int32) for k in jnp.triu_indices(q, 1))
    identity = jnp.eye(q, dtype=a.dtype)

    def rotate(k, carry):
        a, vectors = carry
        i = first[k % len(first)]
        j = second[k % len(first)]
        twice, gap = 2 * a[i, j], a[j, j] - a[i, i]
        length = jnp.hypot(twice, gap)
        tangent = jnp.where(gap < 0, -1, 1) * twice / jnp.where(length > 0, jnp.abs(gap) + length, 1)
        cosine = 1 / jnp.sqrt(1 + tangent**2)
        left, right = identity[i], identity[j]
        own = left[:, None] * left[None] + right[:, None] * right[None]
        across = left[:, None] * right[None] - right[:, None] * left[None]
        turn = identity + (cosine - 1) * own + cosine * tangent * across
        return turn.T @ a @ turn, vectors @ turn

    scale = jnp.max(jnp.abs(a))
    scale = jnp.where(scale > 0, scale, 1)
    a, vectors = jax.lax.fori_loop(0, (3 + q) * len(first), rotate, (a / scale, identity))
    values = diagonal(a)
    order = jnp.argsort(values)
    return scale * values[order], vectors[:, order]


@jax.custom_batching.custom_vmap
def qr_triangle(a):
    """The triangle R (p, p) of ``a = QR`` (n, p) up to signs of rows; safe in a batch."""
    return jnp.linalg.qr(a, mode="r")


@qr_triangle.def_vmap
def _triangle_of_many(size, batched, a):
    return jax.vmap(_gram_schmidt)(a), True


def _gram_schmidt(a):
    """R by modified Gram-Schmidt, whose R is as good as that of reflections (Björck 1967)."""
    if not (rows := min(a.shape)):
        return jnp.zeros((rows, a.shape[1]), a.dtype)

    def reduce(k, carry):
        a, triangle = carry
        column = a[:, k]
        length = jnp.sqrt(jnp.sum(column**2))
        unit = column / jnp.where(length > 0, length, 1)
        row = jnp.where(jnp.arange(a.shape[1]) == k, length, unit @ a)
        row = jnp.where(jnp.arange(a.shape[1]) < k, 0, row)
        return a - unit[:, None] * row[None], triangle.at[k].set(row)

    return jax.lax.fori_loop(0, rows, reduce, (a, jnp.zeros((rows, a.shape[1]), a.dtype)))[1]


def triangular_inverse(a):
    """The inverse of an upper-triangular matrix (p, p), row by row from the last; safe in a batch."""
    p = a.shape[0]
    if p <= UNROLLED:
        rows: list[Any] = []
        for k in reversed(range(p)):
            left = (a[k, j] * row for j, row in zip(range(k + 1, p), reversed(rows), strict=True))
            rows.append(_less(np.eye(p, dtype=a.dtype)[k], left) / a[k, k])
        return jnp.stack(rows[::-1]) if rows else jnp.zeros_like(a)

    def solve(k, inverse):
        k = p - 1 - k
        unit = (jnp.arange(p) == k).astype(a.dtype)
        rest = jnp.where(jnp.arange(p) > k, a[k], 0)
        return inverse.at[k].set((unit - rest @ inverse) / a[k, k])

    return jax.lax.fori_loop(0, p, solve, jnp.zeros_like(a))


def sweep(a, count):
    """Sweep the first `count` rows of a symmetric matrix (Goodnight 1979): [[-A^-1, A^-1 b], [b'A^-1, c - b'A^-1 b]].

    Returns
    -------
    (the swept matrix, log-determinant of A)
    """
    order = np.arange(a.shape[0])

    def one(k, carry):
        a, logdet = carry
        own = order == k
        pivot, row = a[k, k], jnp.where(own, -1, a[k])
        rest = jnp.where(own[:, None] | own[None], 0, a)
        return rest - row[:, None] * (row / pivot)[None], logdet + jnp.log(pivot)

    return _repeat(count, one, (a, jnp.zeros((), a.dtype)))


def semidefinite_root(a):
    """A matrix B (r, r) with B B' = a for a positive semidefinite one, by Cholesky steps from the largest pivot on.

    What is left when the pivots are used up is rounding, in all entries: Higham (2002), section 10.3. A pivot as small
    as that must not be divided by: the entries beside it are no smaller.
    """
    r = a.shape[0]
    least = 4 * r * jnp.finfo(a.dtype).eps * jnp.max(diagonal(a))

    def step(k, carry):
        a, root = carry
        pivots = diagonal(a)
        pivot = jnp.max(pivots)
        own = np.arange(r) == jnp.argmax(pivots)
        column = jnp.sum(jnp.where(own[None], a, 0), axis=1) / jnp.sqrt(jnp.where(pivot > least, pivot, jnp.inf))
        return a - column[:, None] * column[None], jnp.where((np.arange(r) == k)[None], column[:, None], root)

    return _repeat(r, step, (a, jnp.zeros_like(a)))[1]


def _repeat(count, body, carry):
    """`fori_loop`, written out when it is short."""
    if count > UNROLLED:
        return jax.lax.fori_loop(0, count, body, carry)
    for k in range(count):
        carry = body(k, carry)
    return carry
