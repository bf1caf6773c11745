"""The couplings A of leaves with a crossed core, as the four products with them that the likelihood needs.

A leaf i has a matrix A_i = Z_i'WZ_core (q, Q) of which few columns differ from zero. Either all of them are kept, and
the products are thin matrix products; or only the entries that occur, and the products are sums over entries and over
pairs of entries of one leaf, so that no leaves x columns matrix is ever made.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import add_up
from jmixed.likelihood.moments import Moments


class Dense(NamedTuple):
    """All couplings, ``A`` (q, Q, leaves)."""

    A: jax.Array

    def gram(self, W):
        """Sum over leaves of A'WA, (k, Q, Q), for symmetric tables W (k, q, q, leaves)."""
        return jnp.einsum("iag,kibg->kab", self.A, jnp.einsum("kijg,jbg->kibg", W, self.A))

    def border(self, V):
        """Sum over leaves of A'V, (k, Q, r), for V (k, q, r, leaves)."""
        return jnp.einsum("iag,kirg->kar", self.A, V)

    def apply(self, X):
        """A X of every leaf, (q, r, leaves), for X (Q, r)."""
        return jnp.einsum("iag,ar->irg", self.A, X)

    def pull(self, P):
        """A P A' of every leaf, (q, q, leaves), for symmetric P (Q, Q)."""
        return jnp.einsum("iag,jag->ijg", self.A, jnp.einsum("ab,jbg->jag", P, self.A))

    def squares(self):
        """Sums of squared entries: (q, Q), by row of the leaf and column of the core."""
        return jnp.sum(self.A**2, axis=2)


class Sparse(NamedTuple):
    """The entries that occur, ``A`` (q, entries), with the index arrays of `jmixed.layout.index.Links`."""

    A: jax.Array
    leaf: jax.Array
    column: jax.Array
    first: jax.Array
    left: jax.Array
    leaves: int
    columns: int

    def _over_pairs(self, add, total):
        """Fold ``add(total, left, right)`` over chunks of pairs."""
        pairs = self.left.shape[1]

        def proceed(total, chunk):
            number, left = chunk
            right = number * pairs + jnp.arange(pairs, dtype=jnp.int32) - self.first[left]
            # Padded pairs would run beyond the last entry, whose value is zero.
            right = jnp.minimum(right, self.leaf.shape[0] - 1)
            return add(total, left, right), None

        numbers = jnp.arange(self.left.shape[0], dtype=jnp.int32)
        return jax.lax.scan(proceed, total, (numbers, self.left))[0]

    def _place(self, left, right):
        """Where pairs stand in a core that is written as one run, or as a matrix if 32 bits cannot count its places."""
        row, column = self.column[left], self.column[right]
        return (row, column) if self._is_wide else row * self.columns + column

    @property
    def _is_wide(self):
        return self.columns**2 > np.iinfo(np.int32).max

    def gram(self, W):
        """As `Dense.gram`."""
        return jax.lax.map(self._gram, W)

    def _gram(self, W):
        q, Q = self.A.shape[0], self.columns
        WA = jnp.stack([add_up(W[i, j][self.leaf] * self.A[j] for j in range(q)) for i in range(q)])

        def add(total, left, right):
            value = add_up(self.A[i][left] * WA[i][right] for i in range(q))
            return total.at[self._place(left, right)].add(value, mode="promise_in_bounds")

        # Each pair once: what is summed is A'WA with the two parts of an off-diagonal entry in either place.
        total = self._over_pairs(add, jnp.zeros((Q, Q) if self._is_wide else Q * Q, self.A.dtype))
        half = total.reshape(Q, Q)
        return half + half.T - jnp.diag(jnp.diagonal(half))

    def border(self, V):
        """As `Dense.border`."""
        k, q, r = V.shape[:3]
        values = add_up(self.A[i][None, None] * V[:, i][..., self.leaf] for i in range(q))
        summed = jax.ops.segment_sum(values.reshape(k * r, -1).T, self.column, num_segments=self.columns)
        return jnp.moveaxis(summed.reshape(self.columns, k, r), 0, 1)

    def apply(self, X):
        """As `Dense.apply`."""
        values = self.A.T[:, :, None] * X[self.column][:, None, :]
        summed = jax.ops.segment_sum(values, self.leaf, num_segments=self.leaves, indices_are_sorted=True)
        return jnp.moveaxis(summed, 0, -1)

    def pull(self, P):
        """As `Dense.pull`."""
        q, P = self.A.shape[0], P if self._is_wide else P.reshape(-1)

        def add(total, left, right):
            between = P[self._place(left, right)] * jnp.where(left == right, 0.5, 1).astype(P.dtype)
            rows, columns = self.A[:, left] * between[None], self.A[:, right]
            return total.at[self.leaf[left]].add((rows[:, None] * columns[None]).reshape(q * q, -1).T)

        total = self._over_pairs(add, jnp.zeros((self.leaves, q * q), P.dtype))
        half = total.T.reshape(q, q, self.leaves)
        return half + jnp.swapaxes(half, 0, 1)

    def squares(self):
        """As `Dense.squares`."""
        return jax.ops.segment_sum(self.A.T**2, self.column, num_segments=self.columns).T


def couplings(moments: Moments) -> Dense | Sparse:
    """The couplings of a crossed layout."""
    A, links, layout = moments.A, moments.index.links, moments.layout
    assert A is not None
    if links is None:
        return Dense(A)
    return Sparse(A, links.leaf, links.column, links.first, links.left, layout.blocks[0], layout.stage_width(1))
