"""Factorisations whose rule under vmap is our own: many small matrices at once, where LAPACK takes one by one."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import UNROLLED, diagonal, less, repeat

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
        plane = left[:, None] * left[None] + right[:, None] * right[None]
        across = left[:, None] * right[None] - right[:, None] * left[None]
        turn = identity + (cosine - 1) * plane + cosine * tangent * across
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


def triangular_inverse(a) -> Any:
    """The inverse of an upper-triangular matrix (p, p), row by row from the last; safe in a batch."""
    if isinstance(a, np.ndarray):
        return np.linalg.inv(a)
    p = a.shape[0]
    if p <= UNROLLED:
        rows: list[Any] = []
        for k in reversed(range(p)):
            left = (a[k, j] * row for j, row in zip(range(k + 1, p), reversed(rows), strict=True))
            rows.append(less(np.eye(p, dtype=a.dtype)[k], left) / a[k, k])
        return jnp.stack(rows[::-1]) if rows else jnp.zeros_like(a)

    def solve(k, inverse):
        k = p - 1 - k
        unit = (jnp.arange(p) == k).astype(a.dtype)
        rest = jnp.where(jnp.arange(p) > k, a[k], 0)
        return inverse.at[k].set((unit - rest @ inverse) / a[k, k])

    return jax.lax.fori_loop(0, p, solve, jnp.zeros_like(a))


def sweep(a, count):
    """Sweep rows of a symmetric matrix (Goodnight 1979): [[-A^-1, A^-1 b], [b'A^-1, c - b'A^-1 b]], and log det A."""
    order = np.arange(a.shape[0])

    def eliminate(k, carry):
        a, logdet = carry
        at_pivot = order == k
        pivot, row = a[k, k], jnp.where(at_pivot, -1, a[k])
        rest = jnp.where(at_pivot[:, None] | at_pivot[None], 0, a)
        return rest - row[:, None] * (row / pivot)[None], logdet + jnp.log(pivot)

    return repeat(count, eliminate, (a, jnp.zeros((), a.dtype)))


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
        at_pivot = np.arange(r) == jnp.argmax(pivots)
        column = jnp.sum(jnp.where(at_pivot[None], a, 0), axis=1) / jnp.sqrt(jnp.where(pivot > least, pivot, jnp.inf))
        return a - column[:, None] * column[None], jnp.where((np.arange(r) == k)[None], column[:, None], root)

    return repeat(r, step, (a, jnp.zeros_like(a)))[1]
