"""Cross-products of the rows, computed once per data set and differentiable in every floating array.

Columns are preconditioned first. The preconditioners are constants to the derivatives: the likelihood does not depend
on them, so that derivatives through the preconditioned columns alone are exact.
"""

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jmixed.data import SPARSE, Moments, Rows
from jmixed.linalg import add_up, qr_triangle, triangular_inverse


def moments(rows: Rows) -> Moments:
    """Precondition the columns and form the cross-products of every stage of the elimination.

    The response goes its own way until the small arrays are put together: a batch of responses shares all the rest.
    """
    layout, weights = rows.layout, rows.weights
    positive = weights > 0
    nobs = jnp.sum(positive.astype(weights.dtype))
    R, basis = _precondition_fixed(rows)
    X, y = rows.X @ basis, rows.y - rows.offset
    beta0 = basis @ stop_gradient(X.T @ (weights * y))
    residual = y - rows.X @ beta0
    T = tuple(
        _precondition_term(structure, Z, weights, nobs) for structure, Z in zip(layout.terms, rows.Z, strict=True)
    )
    Z = [jnp.concatenate([rows.Z[t] @ T[t] for t in terms], axis=1) for terms in layout.factors]
    C, B, A = _stack_stages(rows, Z, X, residual)
    weighted = weights[:, None] * X
    across = (weighted.T @ residual)[:, None]
    G = jnp.concatenate([X.T @ weighted, across], axis=1)
    corner = jnp.sum(weights * residual**2)[None, None]
    return Moments(
        C=C,
        B=B,
        A=A,
        G=jnp.concatenate([G, jnp.concatenate([across.T, corner], axis=1)]),
        R=R,
        beta0=beta0,
        T=T,
        log_weights=jnp.sum(jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), 0)),
        nobs=nobs,
        total=jnp.sum(weights * y * y),
        index=rows.index,
        layout=layout,
    )


def _precondition_fixed(rows):
    """R with W^(1/2) X = QR, and R^-1."""
    scaled = jnp.sqrt(stop_gradient(rows.weights))[:, None] * stop_gradient(rows.X)
    # A column is brought to unit length before the factorisation: predictors in odd units must not underflow it.
    length = jnp.sqrt(jnp.sum(scaled**2, axis=0))
    length = jnp.where(length > 0, length, 1)
    triangle = qr_triangle(scaled / length[None])
    return triangle * length[None], triangular_inverse(triangle) / length[:, None]


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
    triangle = qr_triangle(scaled / size[None])
    triangle = triangle * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)[:, None]
    triangle = jnp.where((jnp.diagonal(triangle) < 1e-8)[None], unit, triangle)
    return triangular_inverse(triangle) * root / size[:, None]


def _stack_stages(rows, Z, X, y):
    """C and B of every stage and the couplings A, from cross-products within levels and within pairs of levels."""
    layout, index = rows.layout, rows.index
    own, pairs = {}, {}
    for f, left in enumerate(Z):
        containing = [g for g in range(len(Z)) if g != f and layout.nested[f][g] and layout.precedes(f, g)]
        right = jnp.concatenate([left, *(Z[g] for g in containing), X], axis=1)
        weighted = rows.weights[:, None] * left
        product = crossproduct(index.groupings[f], weighted, right)
        response = crossproduct(index.groupings[f], weighted, y[:, None])
        widths = [layout.factor_width(g) for g in (f, *containing)]
        ends = [sum(widths[: k + 1]) for k in range(len(widths))]
        own[f, f] = product[:, : ends[0]]
        for k, g in enumerate(containing):
            pairs[f, g] = (product[:, ends[k] : ends[k + 1]], None, index.within[f][g])
        own[f, None] = jnp.concatenate([product[:, ends[-1] :], response], axis=1)
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
