"""Cross-products of the rows, computed once per data set and differentiable in every floating array.

Columns are preconditioned first. The preconditioners are constants to the derivatives: the likelihood does not depend
on them, so that derivatives through the preconditioned columns alone are exact.
"""

from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.batched import qr_triangle, sweep, triangular_inverse
from jmixed.algebra.small import least_squares, semidefinite_triangle
from jmixed.algebra.sums import BLOCK, SHORT, UNROLLED, add_up, diagonal, in_blocks, is_long, sum_in_blocks
from jmixed.layout.design import Rows
from jmixed.layout.index import Array, Index, static
from jmixed.layout.layout import SPARSE, Layout
from jmixed.likelihood.stages import places, sum_by_parent

TELLING = 1e-4
"""Part of the response's sum of squares left by the groups below which their effects are counted from estimates."""
SWEEPS = 20
"""Rounds in which the effects of several factors are estimated in turn."""
ROUNDS = 3
"""Times that coefficients are fitted to effects whose sizes depend on them."""
UNTOLD = 1e-12
"""Sum of squares of a column of X~, of unit length, left within groups, that tells nothing of its coefficient."""
MANY = 64
"""Blocks of rows from which on loops over them, which take longer to compile, save more than that."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Weighted cross-products of preconditioned columns: all that the likelihood needs of the data.

    With ``X~ = X R^-1``, ``y~ = y - offset - X beta0`` and ``Z~ = Z T`` (exact reparameterisations, which keep digits);
    with a `shift`, of what is left of X~, y~ and Z~ of later stages once Z~ times the shift is taken out:

    Attributes
    ----------
    C : tuple of arrays (Q, Q, blocks)
        ``Z~'WZ~`` of each stage's blocks.
    B : tuple of arrays (Q, border, blocks)
        ``Z~'W[Z~ of later stages, X~, y~]``; in a crossed layout ``Z~'W[X~, y~]``.
    A : array (q, Q, leaves) or (q, entries), or None
        ``Z~'WZ~`` between the leaves and the core of a crossed layout, `DENSE` or `SPARSE`.
    G : array (p + 1, p + 1)
        ``[X~ y~]'W[X~ y~]``.
    R : array (p, p)
        Upper-triangular preconditioner of X.
    beta0 : array (p,)
        Least-squares coefficients taken out of y.
    T : tuple of arrays (q, q)
        Preconditioner of each term.
    log_weights : scalar
        Sum of the log weights.
    nobs : scalar
        Number of rows of positive weight.
    total : scalar
        Weighted sum of squares of y - offset, the yardstick for a perfect fit.
    redundant : bool scalar
        Whether the other columns of X explain one of them in the rows at hand.
    index : Index
        Where rows and levels belong.
    shift : tuple of (array (Q, border, blocks) or None), one per stage
        From where the random effects are counted, constants, where digits would be lost else (see `eliminate`).
    repeats : array (blocks,), or None
        How often the log-determinant of each block of the only stage counts; None: once (see `likelihood.collapse`).
    axis : str or None
        Axis of the mesh over which the blocks are shared out; inside `jax.shard_map` only.
    """

    C: tuple[Array, ...]
    B: tuple[Array, ...]
    A: Array | None
    G: Array
    R: Array
    beta0: Array
    T: tuple[Array, ...]
    log_weights: Array
    nobs: Array
    total: Array
    redundant: Array
    index: Index
    shift: tuple[Array | None, ...]
    layout: Layout = static()
    repeats: Array | None = None
    axis: str | None = static(default=None)

    def over_devices(self, sums):
        """Sums over the blocks of one device as sums over all blocks.

        Parameters
        ----------
        sums : pytree of arrays

        Returns
        -------
        pytree of arrays

        Examples
        --------
        >>> import jax, jmixed as jm
        >>> with jax.enable_x64(True):
        ...     jm.moments(model.design).over_devices(3.0)  # not shared out: as it is
        3.0
        """
        return sums if self.axis is None else jax.lax.psum(sums, self.axis)


class Preconditioners(NamedTuple):
    """R and R^-1 of the fixed effects, their least-squares coefficients, and T of every term: see `Moments`."""

    R: jax.Array
    basis: jax.Array
    beta0: jax.Array
    T: tuple[jax.Array, ...]


def preconditioners(rows: Rows) -> Preconditioners:
    """Those that make the columns of X orthonormal and those of a term of unit size."""
    R, basis = _precondition_fixed(rows)
    nobs, terms = _count(rows.weights), zip(rows.layout.terms, rows.Z, strict=True)
    T = tuple(_precondition_term(structure, Z, rows.weights, nobs) for structure, Z in terms)
    arrays = stop_gradient({"X": rows.X, "y": rows.y - rows.offset, "weights": rows.weights})
    across = sum_in_blocks(lambda a, _: a["X"].T @ (a["weights"] * a["y"]), arrays, axis=0, blocks=MANY)
    return Preconditioners(R, basis, basis @ (basis.T @ across), T)


def moments(rows: Rows, given: Preconditioners | None = None, counted: bool | None = None) -> Moments:
    """Precondition the columns and form the cross-products of every stage of the elimination.

    The response goes its own way until the small arrays are put together: a batch of responses shares all the rest.

    Parameters
    ----------
    rows : Rows
        A row of weight zero does not count.
    given : Preconditioners, optional
        Those of other weights on the same columns: exact all the same, and cheaper than new ones.
    counted : bool, optional
        Whether random effects are counted from estimates, which keeps digits where they drown the rest (see
        `Moments.shift` and `is_drowned`). By default the data decide, in a program that holds both ways.
    """
    preconditioned = preconditioners(rows) if given is None else given
    arrays = {"X": rows.X, "Z": rows.Z, "y": rows.y - rows.offset, "weights": rows.weights}
    C, B, A = _stack_stages(rows, arrays, preconditioned)
    G, log_weights, total = sum_in_blocks(_totals, arrays, preconditioned, axis=0, blocks=MANY)
    # Of a column's unit length, what the columns before it do not explain.
    redundant = jnp.any(diagonal(G)[:-1] <= redundancy(G.dtype) ** 2)
    beta0, shift, known = preconditioned.beta0, (None,) * len(C), rows.totals
    if counted is not False and _can_be_counted(rows):
        plain = C, B, A, G, tuple(map(jnp.zeros_like, B)), beta0
        count = partial(_counted_from_estimates, rows, arrays, preconditioned, total)
        if counted:
            C, B, A, G, shift, beta0 = count()
        else:
            C, B, A, G, shift, beta0 = jax.lax.cond(
                _anywhere(_is_drowned(rows.layout, rows.index, C, B, G, _count(rows.weights))),
                lambda _: count(),
                lambda plain: plain,
                plain,
            )
    return Moments(
        C=C,
        B=B,
        A=A,
        G=G,
        R=preconditioned.R,
        beta0=beta0,
        T=preconditioned.T,
        log_weights=log_weights if known is None else known.log_weights,
        nobs=_count(rows.weights) if known is None else known.nobs,
        total=total,
        redundant=redundant,
        index=rows.index,
        shift=shift,
        layout=rows.layout,
    )


def _can_be_counted(rows):
    """Of rows that stand for others there are cross-products only, whose digits are lost already."""
    layout = rows.layout
    widths = [layout.factor_width(f) for f in range(len(layout.factors))]
    return rows.totals is None and bool(layout.stages) and max(widths) <= UNROLLED


def is_drowned(rows: Rows, plain: Moments):
    """Whether random effects of these rows should be counted from estimates, by their moments that are not."""
    if not _can_be_counted(rows):
        return jnp.zeros((), bool)
    return _is_drowned(plain.layout, plain.index, plain.C, plain.B, plain.G, plain.nobs)


def _is_drowned(layout, index, C, B, G, nobs):
    """Whether the random effects explain so much of the response that differences of sums would lose the rest.

    Where as many effects as rows leave nothing, estimates of them say nothing of their size, and it is not so.
    """
    C, B, G = stop_gradient((C, B, G))
    ways = [_nest_explains(layout, index, C, B, len(G))] if layout.is_nest() else _factors_explain(layout, C, B, len(G))
    drowned = jnp.zeros((), bool)
    for explained, rank in ways:
        left, _ = _without_fixed(G - explained)
        drowned |= (left < TELLING * G[-1, -1]) & (rank + len(G) - 1 < nobs)
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
            own = sum_by_parent(
                jnp.einsum("qrg,qsg->rsg", part[:, start:stop], part[:, start:]), parent, layout.blocks[t]
            )
            left[0][t], left[1][t] = left[0][t] - own[:, : stop - start], left[1][t] - own[:, stop - start :]
            start = stop
    return explained, rank


def _factors_explain(layout, C, B, width):
    """The same for each factor alone: less than they explain together, where their sum would be more than there is."""
    for s in range(len(C)):
        for _, of_factor in groupby(places(layout, s), key=lambda place: place.start):
            at = np.concatenate([place.columns() for place in of_factor], axis=1)
            own = jnp.moveaxis(C[s][at[:, :, None], at[:, None]], 0, 2)
            border = jnp.moveaxis(B[s][at, -width:], 0, 2)
            own, border = (a.reshape(*a.shape[:2], -1) for a in (own, border))
            triangle, part = semidefinite_triangle(own, border)
            rank = jnp.sum((jnp.diagonal(triangle) > 0).astype(own.dtype))
            yield jnp.einsum("qrg,qsg->rs", part, part), rank


def _without_fixed(G):
    """The sum of squares that the fixed effects leave, and their coefficients, as far as these are determined."""
    p = len(G) - 1
    swept, _ = sweep(G + UNTOLD * jnp.diag((jnp.arange(p + 1) < p).astype(G.dtype)), p)
    return swept[p, p], swept[:p, p]


@jax.custom_batching.custom_vmap
def _anywhere(flag):
    """Whether it is so for any member of a batch: a condition of each would be evaluated on both sides."""
    return flag


@_anywhere.def_vmap
def _anywhere_in_batch(size, batched, flag):
    return _anywhere(jnp.any(flag)), False


def _counted_from_estimates(rows, arrays, preconditioners, total):
    """C, B, A and G of what is left of the rows once estimates of the random effects are taken out; the estimates, by
    stage, constants to the derivatives; and beta0.

    In a nest each stage's columns are relieved of what the stages before it explain as well.
    """
    layout, index = rows.layout, rows.index
    factors = range(len(layout.factors))
    Z = [_random(layout, f, arrays, preconditioners).T for f in factors]
    fits = [partial(_fit_levels, index.groupings[f], stop_gradient(Z[f]), arrays["weights"]) for f in factors]
    order = [f for stage in reversed(layout.stages) for f, _ in stage]
    # The response as it is: a value less its group's mean is exact, less a multiple of another column it is not.
    X, y = _fixed(arrays, preconditioners)[0], arrays["y"][None]
    columns = jnp.concatenate([X, y]).T
    none = [jnp.zeros((z.shape[1], columns.shape[1], index.groupings[f].size), z.dtype) for f, z in enumerate(Z)]

    def sweep(_, state):
        left, effects = state
        for f in order:
            own, left = fits[f](left)
            effects = [*effects[:f], effects[f] + own, *effects[f + 1 :]]
        return left, effects

    state = stop_gradient(columns), none
    if not layout.is_nest():
        # What several factors can explain, an intercept above all, belongs to the one with the larger effects.
        alone = [fits[f](state[0]) for f in factors]
        best = jnp.argmin(jnp.stack([jnp.sum(left[:, -1] ** 2 * arrays["weights"]) for _, left in alone]))
        effects = [jnp.where(best == f, own, 0) for f, (own, _) in enumerate(alone)]
        state = jnp.stack([left for _, left in alone])[best], effects
    left, effects = sweep(0, state) if len(order) == 1 else jax.lax.fori_loop(0, SWEEPS, sweep, state)
    change = _better_coefficients(left, effects, stop_gradient(arrays["weights"]), total)
    turn = jnp.eye(columns.shape[1], dtype=left.dtype).at[:-1, -1].set(-change)
    rest = columns
    for f in factors:
        rest = rest - _at_rows(index.groupings[f], Z[f], effects[f])
    rest, effects = rest @ turn, [jnp.einsum("qrg,rs->qsg", own, turn) for own in effects]

    later, shift, stages = None, [], range(len(layout.stages))
    for s in reversed(stages):
        own = _border(layout, index, s, {(f, None): effects[f] for f, _ in layout.stages[s]})
        f = layout.stages[s][0][0]
        if layout.is_nest() and later is not None:
            explained, _ = fits[f](stop_gradient(later))
            later = later - _at_rows(index.groupings[f], Z[f], explained)
        elif layout.crossed:
            explained = own[:, :0]
        else:
            width = sum(layout.stage_width(t) for t in stages[s + 1 :])
            explained = jnp.zeros((own.shape[0], width, own.shape[2]), own.dtype)
        shift.insert(0, jnp.concatenate([explained, own], axis=1))
        if layout.is_nest() and s > 0:
            later = Z[f] if later is None else jnp.concatenate([Z[f], later], axis=1)
    if later is not None:
        ends = np.cumsum([layout.stage_width(s) for s in stages[1:]])[:-1]
        for stage, own in zip(layout.stages[1:], jnp.split(later, ends, axis=1), strict=True):
            Z[stage[0][0]] = own

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
    C, B, A = _stack_stages(rows, left, as_is)
    G = _totals(left, as_is)[0]
    # A response has its own rounding, below which nothing is left.
    G = G.at[p, p].add(jnp.finfo(dtype).eps ** 2 * stop_gradient(total))
    return C, B, A, G, tuple(shift), preconditioners.basis @ change


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
        for own in effects:
            size = jnp.sum(jnp.einsum("qrg,r->qg", own, contrast) ** 2, axis=1) + floor
            A = A + jnp.einsum("qrg,qsg,q->rs", own, own, 1 / size)
        scale = jnp.sqrt(jnp.where(diagonal(A) > 0, diagonal(A), 1))
        _, found = _without_fixed(A / (scale[:, None] * scale[None]))
        change = found * scale[-1] / scale[:-1]
    return change


def _fit_levels(grouping, Z, weights, columns):
    """Least-squares coefficients (q, r, levels) of columns (n, r) on Z (n, q) within levels, and what is left."""

    def multiplied(arrays, _):
        left, right = (jnp.moveaxis(own, -1, 0) for own in arrays)
        return left, (right,)

    q = Z.shape[1]
    arrays = stop_gradient((weights[:, None] * Z, jnp.concatenate([Z, columns], axis=1)))
    (product,) = crossproduct(grouping, multiplied, arrays, ())
    effects = least_squares(product[:, :q], product[:, q:])
    return effects, columns - _at_rows(grouping, Z, effects)


def _at_rows(grouping, Z, effects):
    """Z times the effects (q, r, levels) of each row's level, (n, r)."""
    chunks = grouping.rows.shape[1]
    level = jnp.arange(chunks, dtype=jnp.int32) if grouping.segments is None else grouping.segments
    level = jnp.broadcast_to(level[None], grouping.rows.shape).astype(jnp.int32)
    of_row = jnp.zeros(Z.shape[0], jnp.int32).at[grouping.rows].set(level, mode="drop")
    return jnp.einsum("nq,qrn->nr", Z, effects[:, :, of_row])


def _count(weights):
    """The number of rows: those of positive weight."""
    return jnp.sum((weights > 0).astype(weights.dtype))


def _totals(arrays, preconditioners):
    """G, the sum of the log weights, and the weighted sum of squares of y."""
    weights, y = arrays["weights"], arrays["y"]
    X, residual = _fixed(arrays, preconditioners)
    weighted = weights[None] * X
    across = weighted @ residual.T
    G = jnp.concatenate([X @ weighted.T, across], axis=1)
    corner = residual @ (weights[None] * residual).T
    G = jnp.concatenate([G, jnp.concatenate([across.T, corner], axis=1)])
    positive = weights > 0
    logs = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), 0)
    return G, jnp.sum(logs), jnp.sum(weights * y * y)


def _fixed(arrays, preconditioners):
    """Preconditioned columns of the fixed effects, and the response less what they explain, (p, ...) and (1, ...)."""
    X = jnp.moveaxis(arrays["X"], -1, 0)
    explained = jnp.tensordot(preconditioners.beta0, X, 1)
    return jnp.tensordot(preconditioners.basis.T, X, 1), (arrays["y"] - explained)[None]


def redundancy(dtype) -> float:
    """Part of a fixed-effects column, relative to its length, below which the columns before it explain all of it."""
    return max(1e-7, 8 * float(jnp.finfo(dtype).eps))


def _precondition_fixed(rows):
    """R with W^(1/2) X = QR, and R^-1.

    What is left of a column that the ones before it explain is not brought to unit length: it counts for what it is.
    """
    length, triangle = _triangle(rows.X, rows.weights)
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


def _stack_stages(rows, arrays, preconditioners):
    """C and B of every stage and the couplings A, from cross-products within levels and within pairs of levels."""
    layout, index = rows.layout, rows.index
    own, pairs = {}, {}
    for f in range(len(layout.factors)):
        containing = [g for g in range(len(layout.factors)) if g != f and layout.nested[f][g] and layout.precedes(f, g)]
        columns = partial(_columns, layout, f, tuple(containing))
        product, response = crossproduct(index.groupings[f], columns, arrays, preconditioners)
        widths = [layout.factor_width(g) for g in (f, *containing)]
        ends = [sum(widths[: k + 1]) for k in range(len(widths))]
        own[f, f] = product[:, : ends[0]]
        for k, g in enumerate(containing):
            pairs[f, g] = (product[:, ends[k] : ends[k + 1]], None, index.within[f][g])
        own[f, None] = jnp.concatenate([product[:, ends[-1] :], response], axis=1)
    for coupling in index.couplings:
        columns = partial(_coupled, layout, coupling.factors)
        (product,) = crossproduct(coupling.grouping, columns, arrays, preconditioners)
        pairs[coupling.factors] = (product, coupling.first, coupling.second)
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


def _random(layout, factor, arrays, preconditioners):
    """Preconditioned columns of a factor's terms, (q, ...)."""
    terms = layout.factors[factor]
    return jnp.concatenate(
        [jnp.tensordot(preconditioners.T[t].T, jnp.moveaxis(arrays["Z"][t], -1, 0), 1) for t in terms]
    )


def _columns(layout, factor, containing, arrays, preconditioners):
    """What is multiplied within levels of a factor: its weighted columns; all that comes later, and the response."""
    left = _random(layout, factor, arrays, preconditioners)
    X, residual = _fixed(arrays, preconditioners)
    right = [left, *(_random(layout, g, arrays, preconditioners) for g in containing), X]
    return arrays["weights"][None] * left, (jnp.concatenate(right), residual)


def _coupled(layout, factors, arrays, preconditioners):
    """What is multiplied within pairs of levels of two factors."""
    left, right = (_random(layout, f, arrays, preconditioners) for f in factors)
    return arrays["weights"][None] * left, (right,)


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


def crossproduct(grouping, columns, arrays, constants):
    """``left' right`` within each group, (a, b, groups), for every right.

    Many rows are gathered, and their columns made, a block of groups at a time; of fewer rows the columns are made once
    for all that they are multiplied with.

    Parameters
    ----------
    grouping : Grouping
    columns : callable
        ``columns(arrays, constants)`` gives left (a, ...) and a tuple of rights (b, ...) from row arrays (..., k).
    arrays : tree of arrays (rows, k) or (rows,)
    constants : tree of arrays
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
