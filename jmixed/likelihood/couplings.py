"""The couplings A of leaves with a crossed core, as the four products with them that the likelihood needs.

A leaf i has a matrix A_i = Z_i'WZ_core (q, Q) of which few columns differ from zero. Either all of them are kept, and
the products are thin matrix products; or only the entries that occur, and the products are sums over entries and over
pairs of entries of one leaf, so that no leaves x columns matrix is ever made.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmixed.data import Moments
from jmixed.linalg import add_up


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
    """The entries that occur, ``A`` (q, entries), with the index arrays of `jmixed.data.Links`."""

    A: jax.Array
    leaf: jax.Array
    column: jax.Array
    left: jax.Array
    right: jax.Array
    target: jax.Array
    leaves: int
    columns: int

    def gram(self, W):
        """As `Dense.gram`."""
        return jax.lax.map(self._gram, W)

    def _gram(self, W):
        q, Q = self.A.shape[0], self.columns
        WA = jnp.stack([add_up(W[i, j][self.leaf] * self.A[j] for j in range(q)) for i in range(q)])

        def add(total, pair):
            left, right, target = pair
            value = add_up(self.A[i][left] * WA[i][right] for i in range(q))
            return total.at[target].add(value, mode="promise_in_bounds"), None

        # Each pair once: what is summed is A'WA with the two parts of an off-diagonal entry in either place.
        total, _ = jax.lax.scan(add, jnp.zeros(Q * Q, self.A.dtype), (self.left, self.right, self.target))
        half = total.reshape(Q, Q)
        return half + half.T - jnp.diag(jnp.diagonal(half))

    def border(self, V):
        """As `Dense.border`."""
        k, q, r = V.shape[:3]
        values = add_up(self.A[i] * V[:, i][..., self.leaf] for i in range(q))
        summed = jax.ops.segment_sum(values.reshape(k * r, -1).T, self.column, num_segments=self.columns)
        return jnp.moveaxis(summed.reshape(self.columns, k, r), 0, 1)

    def apply(self, X):
        """As `Dense.apply`."""
        values = self.A.T[:, :, None] * X[self.column][:, None, :]
        summed = jax.ops.segment_sum(values, self.leaf, num_segments=self.leaves, indices_are_sorted=True)
        return jnp.moveaxis(summed, 0, -1)

    def pull(self, P):
        """As `Dense.pull`."""
        q, flat = self.A.shape[0], P.reshape(-1)

        def add(total, pair):
            left, right, target = pair
            between = flat[target] * jnp.where(left == right, 0.5, 1).astype(P.dtype)
            rows, columns = self.A[:, left] * between, self.A[:, right]
            return total.at[self.leaf[left]].add((rows[:, None] * columns[None]).reshape(q * q, -1).T), None

        total, _ = jax.lax.scan(add, jnp.zeros((self.leaves, q * q), P.dtype), (self.left, self.right, self.target))
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
    pairs = links.left, links.right, links.target
    return Sparse(A, links.leaf, links.column, *pairs, layout.blocks[0], layout.stage_width(1))
