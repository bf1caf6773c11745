"""Weighted cross-products of the rows, level by level and by pairs of levels, in the order of the elimination."""

from functools import partial

import jax
import jax.numpy as jnp

from jmixed.algebra.small import bordered
from jmixed.algebra.sums import BLOCK, MANY, SHORT, add_up, in_blocks, is_long
from jmixed.layout.layout import EQUATIONS, SPARSE
from jmixed.likelihood.related import relate


def stack_stages(rows, arrays, preconditioners):
    """C and B of every stage and the couplings A, from cross-products within levels and within pairs of levels."""
    layout, index = rows.layout, rows.index
    by_factors, pairs = {}, {}
    for f in range(len(layout.factors)):
        containing = [g for g in range(len(layout.factors)) if g != f and layout.nested[f][g] and layout.precedes(f, g)]
        columns = partial(_columns, layout, f, tuple(containing))
        product, response = crossproduct(index.groupings[f], columns, arrays, preconditioners)
        widths = [layout.factor_width(g) for g in (f, *containing)]
        ends = [sum(widths[: k + 1]) for k in range(len(widths))]
        by_factors[f, f] = product[:, : ends[0]]
        for k, g in enumerate(containing):
            pairs[f, g] = (product[:, ends[k] : ends[k + 1]], None, index.within[f][g])
        by_factors[f, None] = jnp.concatenate([product[:, ends[-1] :], response], axis=1)
    for coupling in index.couplings:
        columns = partial(_coupled, layout, coupling.factors)
        (product,) = crossproduct(coupling.grouping, columns, arrays, preconditioners)
        pairs[coupling.factors] = (product, coupling.first, coupling.second)
    stages = range(len(layout.stages))
    C = tuple(_within_stage(layout, index, s, by_factors, pairs) for s in stages)
    if layout.crossed == EQUATIONS:
        B = tuple(border_of_stage(layout, index, s, by_factors) for s in stages)
        return C, B, tuple(pairs[of_pair][0] for of_pair in index.system.pairs)
    if layout.crossed:
        B = tuple(border_of_stage(layout, index, s, by_factors) for s in stages)
        A = _links(layout, index, pairs) if layout.crossed == SPARSE else _between(layout, index, 0, 1, pairs)
        return relate(layout, index, C, B, A)
    B = tuple(
        jnp.concatenate(
            [_between(layout, index, s, t, pairs) for t in stages[s + 1 :]]
            + [border_of_stage(layout, index, s, by_factors)],
            1,
        )
        for s in stages
    )
    return relate(layout, index, C, B, None)


def sums_over_rows(arrays, preconditioners):
    """G, the sum of the log weights, and the weighted sum of squares of y."""
    weights, y = arrays["weights"], arrays["y"]
    X, residual = fixed_columns(arrays, preconditioners)
    weighted = weights[None] * X
    across = weighted @ residual.T
    G = bordered(X @ weighted.T, across, residual @ (weights[None] * residual).T)
    positive = weights > 0
    logs = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), 0)
    return G, jnp.sum(logs), jnp.sum(weights * y * y)


def random_columns(layout, factor, arrays, preconditioners):
    """Preconditioned columns of a factor's terms, (q, ...)."""
    terms = layout.factors[factor]
    return jnp.concatenate(
        [jnp.tensordot(preconditioners.T[t].T, jnp.moveaxis(arrays["Z"][t], -1, 0), 1) for t in terms]
    )


def fixed_columns(arrays, preconditioners):
    """Preconditioned columns of the fixed effects, and the response less what they explain, (p, ...) and (1, ...)."""
    X = jnp.moveaxis(arrays["X"], -1, 0)
    explained = jnp.tensordot(preconditioners.beta0, X, 1)
    return jnp.tensordot(preconditioners.basis.T, X, 1), (arrays["y"] - explained)[None]


def _columns(layout, factor, containing, arrays, preconditioners):
    """What is multiplied within levels of a factor: its weighted columns; all that comes later, and the response."""
    left = random_columns(layout, factor, arrays, preconditioners)
    X, residual = fixed_columns(arrays, preconditioners)
    right = [left, *(random_columns(layout, g, arrays, preconditioners) for g in containing), X]
    return arrays["weights"][None] * left, (jnp.concatenate(right), residual)


def _coupled(layout, factors, arrays, preconditioners):
    """What is multiplied within pairs of levels of two factors."""
    left, right = (random_columns(layout, f, arrays, preconditioners) for f in factors)
    return arrays["weights"][None] * left, (right,)


def _links(layout, index, pairs):
    """Z'WZ between leaves and core where it is not zero, (q, entries)."""
    leaf = layout.stages[0][0][0]
    products = [pairs[leaf, g][0] for g, _ in layout.stages[1]]
    flat = jnp.concatenate([product.reshape(product.shape[0], -1) for product in products], axis=1)
    return flat.at[:, index.links.source].get(mode="fill", fill_value=0)


def _within_stage(layout, index, s, by_factors, pairs):
    """Z'WZ of the blocks of stage s, (Q, Q, blocks)."""
    if layout.is_chain(s):
        f = layout.stages[s][0][0]
        return by_factors[f, f]
    width = layout.stage_width(s)
    members = [f for f, _ in layout.stages[s]]
    C = jnp.zeros((width, width, layout.blocks[s]), by_factors[members[0], members[0]].dtype)
    for f in members:
        levels = jnp.arange(layout.levels[f], dtype=jnp.int32)
        C = _scatter(C, layout, index, (f, levels), (f, levels), by_factors[f, f])
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


def border_of_stage(layout, index, s, by_factors):
    """Z'W[X y] of the blocks of stage s, (Q, p + 1, blocks)."""
    if layout.is_chain(s):
        return by_factors[layout.stages[s][0][0], None]
    members = [f for f, _ in layout.stages[s]]
    width = by_factors[members[0], None].shape[1]
    border = jnp.zeros((layout.stage_width(s), width, layout.blocks[s]), by_factors[members[0], None].dtype)
    for f in members:
        rows = _positions(layout, index, f, jnp.arange(layout.levels[f], dtype=jnp.int32))
        columns = jnp.arange(width, dtype=jnp.int32)[None, :, None]
        border = border.at[rows[:, None], columns, index.block[f][None, None]].add(by_factors[f, None], mode="drop")
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


def crossproduct(grouping, columns, arrays, constants):
    """``left' right`` within each group, (a, b, groups), for every right.

    Many rows are gathered, and their columns made, a block of groups at a time; of fewer rows the columns are made once
    for all that they are multiplied with. ``columns(arrays, constants)`` gives left (a, ...) and a tuple of rights
    (b, ...) from row arrays (..., k); `arrays` are a tree of (rows, k) or (rows,), `constants` one of arrays.
    """
    size = jax.tree.leaves(arrays)[0].shape[0]
    arrays = jax.tree.map(jnp.asarray, arrays)

    def of_chunks(index, arrays, constants):
        place, real = jnp.where(index < size, index, 0), index < size
        left, rights = columns(jax.tree.map(lambda a: a[place], arrays), constants)
        return _sum_products(left * real[None].astype(left.dtype), rights)

    if in_blocks(size, MANY) and is_long(grouping.rows.shape[1]):
        totals = _in_blocks(of_chunks)(grouping.rows, arrays, constants)
    else:
        left, rights = columns(arrays, constants)
        # Padding reads the last row, and counts as zero.
        left = left.at[:, grouping.rows].get(mode="fill", fill_value=0)
        totals = _sum_products(left, [right.at[:, grouping.rows].get(mode="clip") for right in rights])
    if grouping.segments is None:
        return totals
    return tuple(_sum_segments(total, grouping) for total in totals)


def _sum_products(left, rights):
    """Sums over a chunk's rows of left (a, chunk, chunks) times each right (b, chunk, chunks)."""
    if left.shape[-1] <= SHORT:
        return tuple(jnp.sum(left[:, None] * right[None], axis=2) for right in rights)
    # Unrolled over the few rows of a chunk: each step is elementwise over the long last axis, which vectorises.
    rows, rights = range(left.shape[1]), [jnp.swapaxes(right, 0, 1) for right in rights]
    return tuple(add_up(left[:, k : k + 1] * right[k : k + 1] for k in rows) for right in rights)


def _in_blocks(function):
    """The function, with the last axis of its first argument and of its results taken a block at a time.

    Derivatives are those of the function itself, as in `sum_in_blocks`.
    """

    @jax.custom_jvp
    def in_blocks(index, arrays, constants):
        blocks = jnp.moveaxis(index.reshape(index.shape[0], -1, BLOCK), 1, 0)
        out = jax.lax.map(lambda block: function(block, arrays, constants), blocks)
        return jax.tree.map(lambda a: jnp.moveaxis(a, 0, -2).reshape(*a.shape[1:-1], -1), out)

    @in_blocks.defjvp
    def tangents(primals, tangents):
        index, *rest = primals
        return in_blocks(*primals), jax.jvp(partial(function, index), tuple(rest), tuple(tangents[1:]))[1]

    return in_blocks


def _sum_segments(total, grouping):
    """Sums of (a, b, chunks) over the chunks of each group."""
    summed = jax.ops.segment_sum(
        jnp.moveaxis(total, -1, 0), grouping.segments, num_segments=grouping.size, indices_are_sorted=True
    )
    return jnp.moveaxis(summed, 0, -1)


def count_rows(weights):
    """The number of rows: those of positive weight."""
    return jnp.sum((weights > 0).astype(weights.dtype))


def level_of_rows(grouping, count):
    """The level of each of so many rows, by its internal position; of padding, the first."""
    chunks = grouping.rows.shape[1]
    level = jnp.arange(chunks, dtype=jnp.int32) if grouping.segments is None else jnp.asarray(grouping.segments)
    level = jnp.broadcast_to(level[None], grouping.rows.shape).astype(jnp.int32)
    return jnp.zeros(count, jnp.int32).at[grouping.rows].set(level, mode="drop")


def at_rows(grouping, Z, effects):
    """Z times the effects (q, r, levels) of each row's level, (n, r)."""
    return jnp.einsum("nq,qrn->nr", Z, effects[:, :, level_of_rows(grouping, Z.shape[0])])
