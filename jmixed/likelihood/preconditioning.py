"""Columns brought to unit size, and freed of what they share, before anything is computed from them.

The preconditioners are constants to the derivatives: the likelihood does not depend on them, so that derivatives
through the preconditioned columns alone are exact.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.batched import qr_triangle, triangular_inverse
from jmixed.algebra.sums import MANY, diagonal, is_long, sum_in_blocks
from jmixed.layout.design import Rows
from jmixed.likelihood.products import count_rows


class Preconditioners(NamedTuple):
    """R and R^-1 of the fixed effects, their least-squares coefficients, and T of every term: see `Moments`."""

    R: jax.Array
    basis: jax.Array
    beta0: jax.Array
    T: tuple[jax.Array, ...]


def preconditioners(rows: Rows) -> Preconditioners:
    """Those that make the columns of X orthonormal and those of a term of unit size."""
    R, basis = _by_rotation(rows.X, rows.weights)
    nobs, terms = count_rows(rows.weights), zip(rows.layout.terms, rows.Z, strict=True)
    T = tuple(_precondition_term(structure, Z, rows.weights, nobs) for structure, Z in terms)
    arrays = stop_gradient({"X": rows.X, "y": rows.y - rows.offset, "weights": rows.weights})
    across = sum_in_blocks(lambda a, _: a["X"].T @ (a["weights"] * a["y"]), arrays, axis=0, blocks=MANY)
    return Preconditioners(R, basis, basis @ (basis.T @ across), T)


def redundancy(dtype) -> float:
    """Part of a fixed-effects column, relative to its length, below which the columns before it explain all of it."""
    return max(1e-7, 8 * float(jnp.finfo(dtype).eps))


def orthonormal(columns, weights):
    """R^-1 with W^(1/2) A = QR for columns A (n, k) and weights (n,)."""
    return _by_rotation(columns, weights)[1]


def _by_rotation(columns, weights):
    """R with W^(1/2) A = QR, and R^-1.

    What is left of a column that the ones before it explain is not brought to unit length: it counts for what it is.
    """
    length, triangle = _triangle(columns, weights)
    explained = jnp.abs(diagonal(triangle)) <= redundancy(triangle.dtype)
    unit: Any = np.eye(len(length), dtype=triangle.dtype)
    triangle = jnp.where(explained[:, None], unit, triangle)
    return triangle * length[None], triangular_inverse(triangle) / length[:, None]


def _triangle(columns, weights, zero: Any = 1):
    """Lengths of the columns of W^(1/2) A, and the triangle of its QR factorisation once each has unit length.

    A column of zeros counts as of length `zero`. A column is brought to unit length before the factorisation:
    predictors in odd units must not underflow it. A preconditioner need be good, not exact: of many rows the triangle
    comes from the cross-products, which are read once, unless these show that digits would be lost.
    """
    columns, weights = stop_gradient(columns), stop_gradient(weights)
    if columns.shape[1] == 1:
        square = jnp.sum(weights * columns[:, 0] ** 2)[None]
        return jnp.where(square > 0, jnp.sqrt(square), zero), (square > 0).astype(columns.dtype)[None]

    def by_rotations(length):
        scaled = jnp.sqrt(weights)[None] * columns.T
        return qr_triangle((scaled / length[:, None]).T)[: columns.shape[1]]

    if not is_long(columns.shape[0], MANY):
        length = jnp.sqrt(jnp.sum((jnp.sqrt(weights)[None] * columns.T) ** 2, axis=1))
        length = jnp.where(length > 0, length, zero)
        return length, by_rotations(length)
    products = sum_in_blocks(lambda a, _: a[0].T @ (a[1][:, None] * a[0]), (columns, weights), axis=0, blocks=MANY)
    length = jnp.sqrt(jnp.diagonal(products))
    length = jnp.where(length > 0, length, zero)
    factor = jnp.linalg.cholesky(products / (length[:, None] * length[None])).T
    sound = jnp.min(jnp.diagonal(factor), initial=1) > jnp.finfo(factor.dtype).eps ** 0.25
    return length, jax.lax.cond(sound, lambda _: factor, by_rotations, length)


def _precondition_term(structure, Z, weights, nobs):
    """T such that Z T has columns of unit root mean square (weighted), uncorrelated where the structure allows it.

    With an intercept among the columns this centres the others. A column that the ones before it explain keeps its
    direction.
    """
    unit: Any = np.eye(structure.q, dtype=Z.dtype)
    root = jnp.sqrt(jnp.maximum(nobs, 1))
    length, triangle = _triangle(Z, weights, zero=root)
    triangle = triangle * jnp.where(diagonal(triangle) < 0, -1, 1)[:, None]
    triangle = jnp.where((diagonal(triangle) < 1e-8)[None], unit, triangle)
    return structure.preconditioner(length / root, triangle)
