"""Cross-products of the rows, computed once per data set and differentiable in every floating array.

Columns are preconditioned first. The preconditioners are constants to the derivatives: the likelihood does not depend
on them, so that derivatives through the preconditioned columns alone are exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jmixed.data import SPARSE, Moments, Rows
from jmixed.linalg import add_up


class Preconditioners(NamedTuple):
    """R and R^-1 of the fixed effects, their least-squares coefficients, and T of every term: see `Moments`."""

    R: jax.Array
    basis: jax.Array
    beta0: jax.Array
    T: tuple[jax.Array, ...]


def preconditioners(rows: Rows) -> Preconditioners:
    """Those that make the columns of X orthonormal and those of a term of unit size."""
    R, beta0, basis = _precondition_fixed(rows)
    terms = zip(rows.layout.terms, rows.Z, strict=True)
    return Preconditioners(R, basis, beta0, tuple(_precondition_term(s, Z, rows.weights, rows.nobs) for s, Z in terms))


def moments(rows: Rows, given: Preconditioners | None = None) -> Moments:
    """Precondition the columns and form the cross-products of every stage of the elimination.

    Parameters
    ----------
    rows : Rows
    given : Preconditioners, optional
        Those of other weights on the same columns: exact all the same, and cheaper than new ones.
    """
    layout, weights = rows.layout, rows.weights
    R, basis, beta0, T = preconditioners(rows) if given is None else given
    y = rows.y - rows.offset
    fixed = jnp.concatenate([rows.X @ basis, (y - rows.X @ beta0)[:, None]], axis=1)
    Z = [jnp.concatenate([rows.Z[t] @ T[t] for t in terms], axis=1) for terms in layout.factors]
    C, B, A = _stack_stages(rows, Z, fixed)
    positive = weights > 0
    return Moments(
        C=C,
        B=B,
        A=A,
        G=fixed.T @ (weights[:, None] * fixed),
        R=R,
        beta0=beta0,
        T=T,
        log_weights=jnp.sum(jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), 0)),
        nobs=rows.nobs,
        total=jnp.sum(weights * y * y),
        index=rows.index,
        layout=layout,
    )


def _precondition_fixed(rows):
    """R with W^(1/2) X = QR, the least-squares coefficients, and R^-1."""
    p = rows.X.shape[1]
    scaled = jnp.sqrt(stop_gradient(rows.weights))[:, None] * stop_gradient(
        jnp.concatenate([rows.X, (rows.y - rows.offset)[:, None]], axis=1)
    )
    # A column is brought to unit length before the factorisation: predictors in odd units must not underflow it.
    length = jnp.sqrt(jnp.sum(scaled[:, :p] ** 2, axis=0))
    length = jnp.where(length > 0, length, 1)
    factor = jnp.linalg.qr(scaled / jnp.append(length, 1)[None], mode="r")
    triangle = factor[:p, :p]
    inverse = jax.scipy.linalg.solve_triangular(triangle, jnp.eye(p, dtype=triangle.dtype))
    basis = inverse / length[:, None]
    return triangle * length[None], basis @ factor[:p, p], basis


def _precondition_term(structure, Z, weights, nobs):
    """T such that Z T has columns of unit root mean square (weighted); of an unstructured term also uncorrelated ones.

    Any invertible T is an exact reparameterisation of an unstructured covariance. With an intercept among the columns
    this centres the others. A column that the ones before it explain keeps its direction.
    """
    scaled = jnp.sqrt(stop_gradient(weights))[:, None] * stop_gradient(Z)
    size = jnp.sqrt(jnp.sum(scaled**2, axis=0))
    unit, root = jnp.eye(structure.q, dtype=Z.dtype), jnp.sqrt(nobs)
    size = jnp.where(size > 0, size, root)
    if structure.kind == "identity":
        return unit * root / jnp.sqrt(jnp.mean(size**2))
    triangle = jnp.linalg.qr(scaled / size[None], mode="r")
    triangle = triangle * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)[:, None]
    triangle = jnp.where((jnp.diagonal(triangle) < 1e-8)[None], unit, triangle)
    return jax.scipy.linalg.solve_triangular(triangle, unit) * root / size[:, None]


def _stack_stages(rows, Z, fixed):
    """C and B of every stage and the couplings A, from cross-products within levels and within pairs of levels."""
    layout, index = rows.layout, rows.index
    own, pairs = {}, {}
    for f, left in enumerate(Z):
        containing = [g for g in range(len(Z)) if g != f and layout.nested[f][g] and layout.precedes(f, g)]
        right = jnp.concatenate([left, *(Z[g] for g in containing), fixed], axis=1)
        product = crossproduct(index.groupings[f], rows.weights[:, None] * left, right)
        widths = [layout.factor_width(g) for g in (f, *containing)]
        ends = [sum(widths[: k + 1]) for k in range(len(widths))]
        own[f, f] = product[:, : ends[0]]
        for k, g in enumerate(containing):
            pairs[f, g] = (product[:, ends[k] : ends[k + 1]], None, index.within[f][g])
        own[f, None] = product[:, ends[-1] :]
    for coupling in index.couplings:
        f, g = coupling.factors
        product = crossproduct(coupling.grouping, rows.weights[:, None] * Z[f], Z[g])
        pairs[f, g] = (product, coupling.first, coupling.second)
    stages = range(len(layout.stages))
    C = tuple(_within_stage(layout, index, s, own, pairs) for s in stages)
    if layout.crossed:
        B = tuple(_border(layout, index, s, own) for s in stages)
        return C, B, _links(layout, index, pairs) if layout.crossed == SPARSE else _between(layout, index, 0, 1, pairs)
    B = tuple(
        jnp.concatenate(
            [_between(layout, index, s, t, pairs) for t in stages[s + 1 :]] + [_border(layout, index, s, own)], 1
        )
        for s in stages
    )
    return C, B, None


def _links(layout, index, pairs):
    """Z'WZ between leaves and core where it is not zero, (q, entries)."""
    leaf = layout.stages[0][0][0]
    products = [pairs[leaf, g][0] for g, _ in layout.stages[1]]
    flat = jnp.concatenate([product.reshape(product.shape[0], -1) for product in products], axis=1)
    return flat.at[:, index.links.source].get(mode="fill", fill_value=0)


def _within_stage(layout, index, s, own, pairs):
    """Z'WZ of the blocks of stage s, (Q, Q, blocks)."""
    if layout.is_chain(s):
        f = layout.stages[s][0][0]
        return own[f, f]
    width = layout.stage_width(s)
    members = [f for f, _ in layout.stages[s]]
    C = jnp.zeros((width, width, layout.blocks[s]), own[members[0], members[0]].dtype)
    for f in members:
        levels = jnp.arange(layout.levels[f], dtype=jnp.int32)
        C = _scatter(C, layout, index, (f, levels), (f, levels), own[f, f])
    for f in members:
        for g in members:
            if (f, g) in pairs:
                product, first, second = pairs[f, g]
                first = jnp.arange(layout.levels[f], dtype=jnp.int32) if first is None else first
                C = _scatter(C, layout, index, (f, first), (g, second), product)
                C = _scatter(C, layout, index, (g, second), (f, first), jnp.swapaxes(product, 0, 1))
    return C


def _between(layout, index, s, t, pairs) -> jax.Array:
    """Z'WZ between the blocks of stage s and the blocks of stage t that hold them, (Q_s, Q_t, blocks of s)."""
    if layout.is_chain(s) and layout.is_chain(t):
        return pairs[layout.stages[s][0][0], layout.stages[t][0][0]][0]
    shape = (layout.stage_width(s), layout.stage_width(t), layout.blocks[s])
    values = jnp.zeros(shape, next(iter(pairs.values()))[0].dtype)
    for f, _ in layout.stages[s]:
        for g, _ in layout.stages[t]:
            product, first, second = pairs[f, g]
            first = jnp.arange(layout.levels[f], dtype=jnp.int32) if first is None else first
            values = _scatter(values, layout, index, (f, first), (g, second), product)
    return values


def _border(layout, index, s, own):
    """Z'W[X y] of the blocks of stage s, (Q, p + 1, blocks)."""
    if layout.is_chain(s):
        return own[layout.stages[s][0][0], None]
    members = [f for f, _ in layout.stages[s]]
    width = own[members[0], None].shape[1]
    border = jnp.zeros((layout.stage_width(s), width, layout.blocks[s]), own[members[0], None].dtype)
    for f in members:
        rows = _positions(layout, index, f, jnp.arange(layout.levels[f], dtype=jnp.int32))
        columns = jnp.arange(width, dtype=jnp.int32)[None, :, None]
        border = border.at[rows[:, None], columns, index.block[f][None, None]].add(own[f, None], mode="drop")
    return border


def _scatter(target, layout, index, left, right, values):
    """Add values (q_f, q_g, entries) at the rows of factor f and columns of factor g, in the blocks of f's levels."""
    (f, first), (g, second) = left, right
    rows = _positions(layout, index, f, first)
    columns = _positions(layout, index, g, second)
    block = index.block[f].at[first].get(mode="fill", fill_value=target.shape[2])
    return target.at[rows[:, None], columns[None], block[None, None]].add(values, mode="drop")


def _positions(layout, index, factor, levels):
    """Columns inside the block, (q, entries), of the given levels of a factor."""
    width = layout.factor_width(factor)
    slot = index.slot[factor].at[levels].get(mode="fill", fill_value=0)
    return layout.offset_in_stage(factor) + slot[None] * width + jnp.arange(width, dtype=jnp.int32)[:, None]


def crossproduct(grouping, left, right):
    """``left' right`` within each group: (a, b, groups) from row arrays (rows, a) and (rows, b)."""
    real = grouping.rows < left.shape[0]
    rows = jnp.where(real, grouping.rows, 0)
    a, b = left.T[:, rows] * real.astype(left.dtype)[None], right.T[:, rows]
    # Unrolled over the few rows of a chunk: each step is elementwise over the long last axis, which vectorises.
    total = add_up(a[:, None, k] * b[None, :, k] for k in range(rows.shape[0]))
    if grouping.segments is None:
        return total
    summed = jax.ops.segment_sum(
        jnp.moveaxis(total, -1, 0), grouping.segments, num_segments=grouping.size, indices_are_sorted=True
    )
    return jnp.moveaxis(summed, 0, -1)
