"""Random effects counted from their least-squares estimates: digits are kept where these drown all the rest.

Where effects are much larger than the residuals, differences of sums of squares would be rounding. The rows are then
relieved of estimates of the effects, constants to the derivatives, before the sums are formed (see `Moments.shift` and
`eliminate`).
"""

from functools import partial
from itertools import groupby
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.batched import sweep
from jmixed.algebra.small import least_squares, semidefinite_triangle
from jmixed.algebra.sums import UNROLLED, diagonal
from jmixed.layout.index import Array
from jmixed.likelihood.products import (
    at_rows,
    border_of_stage,
    crossproduct,
    fixed_columns,
    random_columns,
    stack_stages,
    sums_over_rows,
)
from jmixed.likelihood.stages import places, sum_by_parent

TELLING = 1e-4
"""Part of the response's sum of squares left by the groups below which their effects are counted from estimates."""
SWEEPS = 20
"""Rounds in which the effects of several factors are estimated in turn."""
ROUNDS = 3
"""Times that coefficients are fitted to effects whose sizes depend on them."""
UNTOLD = 1e-12
"""Sum of squares of a column of X~, of unit length, left within groups, that tells nothing of its coefficient."""


def can_be_counted(rows):
    """Of rows that stand for others there are cross-products only, whose digits are lost already.

    Effects of related levels are not counted: their columns are as many as there are levels.
    """
    layout = rows.layout
    if rows.index.has_related:
        return False
    widths = [layout.factor_width(f) for f in range(len(layout.factors))]
    return rows.totals is None and bool(layout.stages) and max(widths) <= UNROLLED


def effects_drown(layout, index, C, B, G, spare):
    """Whether the random effects explain so much of the response that differences of sums would lose the rest.

    There are `spare` more rows than fixed effects. Where as many effects as rows leave nothing, estimates of them say
    nothing of their size, and it is not so.
    """
    C, B, G = stop_gradient((C, B, G))
    ways = [_nest_explains(layout, index, C, B, len(G))] if layout.is_nest() else _factors_explain(layout, C, B, len(G))
    drowned = jnp.zeros((), bool)
    for explained, rank in ways:
        left, _ = _without_fixed(G - explained)
        drowned |= (left < TELLING * G[-1, -1]) & (rank < spare)
    return drowned & (G[-1, -1] > 0)


def _nest_explains(layout, index, C, B, width):
    """What least squares on the effects of a nest explains of [X~ y~]'W[X~ y~], and their rank: level by level."""
    left = list(C), list(B)
    explained, rank = jnp.zeros((width, width), C[0].dtype), jnp.zeros((), C[0].dtype)
    for s in range(len(C)):
        # What those inside leave of an intercept is rounding.
        least = 1e-10 * jnp.diagonal(C[s]).T
        triangle, part = semidefinite_triangle(left[0][s], left[1][s], least)
        rank += jnp.sum((jnp.diagonal(triangle) > 0).astype(rank.dtype))
        explained += jnp.einsum("qrg,qsg->rs", part[:, -width:], part[:, -width:])
        start = 0
        for t, parent in zip(range(s + 1, len(C)), index.parents[s], strict=True):
            stop = start + layout.stage_width(t)
            taken = sum_by_parent(
                jnp.einsum("qrg,qsg->rsg", part[:, start:stop], part[:, start:]), parent, layout.blocks[t]
            )
            left[0][t], left[1][t] = left[0][t] - taken[:, : stop - start], left[1][t] - taken[:, stop - start :]
            start = stop
    return explained, rank


def _factors_explain(layout, C, B, width):
    """The same for each factor alone: less than they explain together, where their sum would be more than there is."""
    for s in range(len(C)):
        for _, of_factor in groupby(places(layout, s), key=lambda place: place.start):
            at = np.concatenate([place.columns() for place in of_factor], axis=1)
            square = jnp.moveaxis(C[s][at[:, :, None], at[:, None]], 0, 2)
            border = jnp.moveaxis(B[s][at, -width:], 0, 2)
            square, border = (a.reshape(*a.shape[:2], -1) for a in (square, border))
            triangle, part = semidefinite_triangle(square, border)
            rank = jnp.sum((jnp.diagonal(triangle) > 0).astype(square.dtype))
            yield jnp.einsum("qrg,qsg->rs", part, part), rank


def _without_fixed(G):
    """The sum of squares that the fixed effects leave, and their coefficients, as far as these are determined."""
    p = len(G) - 1
    swept, _ = sweep(G + UNTOLD * jnp.diag((jnp.arange(p + 1) < p).astype(G.dtype)), p)
    return swept[p, p], swept[:p, p]


@jax.custom_batching.custom_vmap
def anywhere(flag):
    """Whether it is so for any member of a batch: a condition of each would be evaluated on both sides."""
    return flag


@anywhere.def_vmap
def _anywhere_in_batch(size, batched, flag):
    return anywhere(jnp.any(flag)), False


class Counted(NamedTuple):
    """Cross-products of what is left of the rows, with the estimates taken out of them: fields of `Moments`."""

    C: tuple[Array, ...]
    B: tuple[Array, ...]
    A: Array | None
    G: Array
    shift: tuple[Array | None, ...]
    beta0: Array


def counted_from_estimates(rows, arrays, preconditioners, total) -> Counted:
    """Cross-products of the rows once estimates of the random effects are taken out, constants to the derivatives."""
    layout, index, factors = rows.layout, rows.index, range(len(rows.layout.factors))
    Z = [random_columns(layout, f, arrays, preconditioners).T for f in factors]
    fits = [partial(_fit_levels, index.groupings[f], stop_gradient(Z[f]), arrays["weights"]) for f in factors]
    # The response as it is: a value less its group's mean is exact, less a multiple of another column it is not.
    X, y = fixed_columns(arrays, preconditioners)[0], arrays["y"][None]
    rest = jnp.concatenate([X, y]).T
    left, effects = _estimate_effects(layout, index, fits, Z, stop_gradient(rest), arrays["weights"])
    change = _better_coefficients(left, effects, stop_gradient(arrays["weights"]), total)
    turn = jnp.eye(rest.shape[1], dtype=left.dtype).at[:-1, -1].set(-change)
    for f in factors:
        rest = rest - at_rows(index.groupings[f], Z[f], effects[f])
    rest, effects = rest @ turn, [jnp.einsum("qrg,rs->qsg", table, turn) for table in effects]
    shift, Z = _shift_stages(layout, index, fits, Z, effects)

    by_term = {}
    for f, terms in enumerate(layout.factors):
        ends = np.cumsum([layout.terms[t].q for t in terms])[:-1]
        by_term |= zip(terms, jnp.split(Z[f], ends, axis=1), strict=True)
    p, dtype = X.shape[0], y.dtype
    left = {**arrays, "X": rest[:, :p], "y": rest[:, p], "Z": tuple(by_term[t] for t in sorted(by_term))}
    as_is = preconditioners._replace(
        basis=jnp.eye(p, dtype=dtype),
        beta0=jnp.zeros(p, dtype),
        T=tuple(jnp.eye(structure.q, dtype=dtype) for structure in layout.terms),
    )
    C, B, A = stack_stages(rows, left, as_is)
    G = sums_over_rows(left, as_is)[0]
    # A response has its own rounding, below which nothing is left.
    G = G.at[p, p].add(jnp.finfo(dtype).eps ** 2 * stop_gradient(total))
    return Counted(C, B, A, G, shift, preconditioners.basis @ change)


def _estimate_effects(layout, index, fits, Z, columns, weights):
    """What least-squares effects of all factors leave of columns (n, r), and the effects (q, r, levels) by factor.

    Factor after factor in turn, until what they share has settled.
    """
    order = [f for stage in reversed(layout.stages) for f, _ in stage]
    effects = [jnp.zeros((z.shape[1], columns.shape[1], index.groupings[f].size), z.dtype) for f, z in enumerate(Z)]

    def sweep_once(_, state):
        left, effects = state
        for f in order:
            more, left = fits[f](left)
            effects = [*effects[:f], effects[f] + more, *effects[f + 1 :]]
        return left, effects

    state = columns, effects
    if not layout.is_nest():
        # What several factors can explain, an intercept above all, belongs to the one with the larger effects.
        alone = [fit(columns) for fit in fits]
        best = jnp.argmin(jnp.stack([jnp.sum(left[:, -1] ** 2 * weights) for _, left in alone]))
        effects = [jnp.where(best == f, table, 0) for f, (table, _) in enumerate(alone)]
        state = jnp.stack([left for _, left in alone])[best], effects
    return sweep_once(0, state) if len(order) == 1 else jax.lax.fori_loop(0, SWEEPS, sweep_once, state)


def _shift_stages(layout, index, fits, Z, effects):
    """The shift of every stage, and the factors' columns as they are left.

    In a nest each stage's columns are relieved of what the stages before it explain as well.
    """
    stages, shift, later, Z = range(len(layout.stages)), [], None, list(Z)
    for s in reversed(stages):
        border = border_of_stage(layout, index, s, {(f, None): effects[f] for f, _ in layout.stages[s]})
        f = layout.stages[s][0][0]
        if layout.is_nest() and later is not None:
            explained, _ = fits[f](stop_gradient(later))
            later = later - at_rows(index.groupings[f], Z[f], explained)
        elif layout.crossed:
            explained = border[:, :0]
        else:
            width = sum(layout.stage_width(t) for t in stages[s + 1 :])
            explained = jnp.zeros((border.shape[0], width, border.shape[2]), border.dtype)
        shift.insert(0, jnp.concatenate([explained, border], axis=1))
        if layout.is_nest() and s > 0:
            later = Z[f] if later is None else jnp.concatenate([Z[f], later], axis=1)
    if later is not None:
        ends = np.cumsum([layout.stage_width(s) for s in stages[1:]])[:-1]
        for stage, columns in zip(layout.stages[1:], jnp.split(later, ends, axis=1), strict=True):
            Z[stage[0][0]] = columns
    return tuple(shift), Z


def _better_coefficients(left, effects, weights, total):
    """Coefficients of X~ that leave a small response: those of all rows may be off by the largest effects.

    Least squares of what is left within levels and of every kind of effect, each by its own size.
    """
    within = left.T @ (weights[:, None] * left)
    floor = jnp.finfo(left.dtype).eps ** 2 * stop_gradient(total)
    change = jnp.zeros(len(within) - 1, left.dtype)
    for _ in range(ROUNDS):
        contrast = jnp.append(-change, 1)
        A = within / (contrast @ within @ contrast + floor)
        for effect in effects:
            size = jnp.sum(jnp.einsum("qrg,r->qg", effect, contrast) ** 2, axis=1) + floor
            A = A + jnp.einsum("qrg,qsg,q->rs", effect, effect, 1 / size)
        scale = jnp.sqrt(jnp.where(diagonal(A) > 0, diagonal(A), 1))
        _, solved = _without_fixed(A / (scale[:, None] * scale[None]))
        change = solved * scale[-1] / scale[:-1]
    return change


def _fit_levels(grouping, Z, weights, columns):
    """Least-squares coefficients (q, r, levels) of columns (n, r) on Z (n, q) within levels, and what is left."""

    def multiplied(arrays, _):
        left, right = (jnp.moveaxis(table, -1, 0) for table in arrays)
        return left, (right,)

    q = Z.shape[1]
    arrays = stop_gradient((weights[:, None] * Z, jnp.concatenate([Z, columns], axis=1)))
    (product,) = crossproduct(grouping, multiplied, arrays, ())
    effects = least_squares(product[:, :q], product[:, q:])
    return effects, columns - at_rows(grouping, Z, effects)
