"""Laplace's approximation of groups that are independent: modes, value and derivatives, a block of groups at a time.

The closed form of `jmixed.likelihood.laplace` for one grouping factor, of which nothing is differentiated. With P, T
and S of a group as in `jmixed.likelihood.eliminate` at C = Z'WZ, a direction k of (psi, beta, kappa) has the derivative
M of Sigma, x of the fixed part (a column of X), and s_k, W_k, ... of the derivatives of l at a given eta. Then

    b_k = T M a + P Z'(s_k - W x)      eta_k = x + Z b_k      w_k = r eta_k + W_k      C_k = Z'diag(w_k)Z
    a_k = Z'(s_k - W eta_k)            h = diag(Z P Z')       c = Z'(h r)    g = Z P c      v = T'c

    L_k = -2 (s'x + sum l_k) - a'M a + <S, M> + v'M a + sum (h r - W g)'x + sum (h W_k + g s_k)
    L_kl = sum (2 W + h q - g r) eta_k eta_l + sum (eta_k t_l + t_k eta_l) + sum (h W_kl + g s_kl - 2 l_kl)
           + 2 a_k'Sigma a_l - tr(P C_k P C_l) + <T'C_k T, M_l> + <T'C_l T, M_k> - tr(S M_k S M_l)
           + v'(M_k a_l + M_l a_k),      t_k = h r_k - g W_k - 2 s_k

(the middle terms of kappa only). Where Sigma is not linear in psi, <dL/dSigma, second derivatives> is added. Rows stand
in chunks, columns first, so that sums over the rows of a group are sums over an axis.
"""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmixed.algebra.small import matmul, transpose
from jmixed.algebra.sums import BLOCK, add_up, in_blocks
from jmixed.layout.design import Rows
from jmixed.layout.index import Grouping, static
from jmixed.likelihood.eliminate import eliminate
from jmixed.likelihood.inner import Inner, damped_newton
from jmixed.likelihood.preconditioning import Preconditioners
from jmixed.likelihood.products import random_columns
from jmixed.likelihood.responses import Responses, WideTable


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Groups:
    """The rows of a model with one grouping factor, by group; with a leading axis of blocks of groups.

    Attributes
    ----------
    responses : Responses of arrays (blocks, chunk, chunks)
    X, Z : arrays (blocks, p, chunk, chunks), (blocks, q, chunk, chunks)
        Preconditioned columns.
    segments : int array (chunks,) or None
        The group of each chunk; None where chunk k is group k.
    size : int
        Number of groups of a block.
    positive : bool
        Whether weights are never negative.
    axis : str or None
        Axis of a mesh over which the blocks are shared out; a device then has its own.
    """

    responses: Responses
    X: jax.Array
    Z: jax.Array
    segments: jax.Array | None
    size: int = static()
    positive: bool = static()
    axis: str | None = static(default=None)


def groups_of(rows: Rows, X, columns: Preconditioners, responses: Responses) -> Groups:
    """The rows of a layout with one factor, stacked by its groups."""
    grouping = rows.index.groupings[0]
    length = grouping.rows.shape[1]
    blocks = length // BLOCK if grouping.segments is None and in_blocks(length) else 1
    return in_groups(rows, X, columns, responses, grouping, blocks)


def in_groups(rows: Rows, X, columns: Preconditioners, responses: Responses, grouping: Grouping, blocks: int) -> Groups:
    """Rows stacked by the groups of a grouping, whose chunks make so many blocks of one length."""
    index, length = jnp.asarray(grouping.rows), grouping.rows.shape[1]

    def stacked(values):
        out = values.at[..., index].get(mode="fill", fill_value=0)
        return jnp.moveaxis(out.reshape(*out.shape[:-1], blocks, length // blocks), -2, 0)

    def filled(values):
        """Padding has the response of some row."""
        return jnp.where(real, stacked(values), values[jnp.argmax(responses.factors > 0)])

    real = stacked(jnp.ones_like(responses.y)) > 0
    Z = random_columns(rows.layout, 0, {"Z": rows.Z}, columns)
    arrays = replace(
        responses,
        y=filled(responses.y),
        trials=filled(responses.trials),
        offset=stacked(responses.offset),
        factors=stacked(responses.factors),
        constants=stacked(responses.constants),
        shift=None if responses.shift is None else stacked(responses.shift),
        columns=tuple(stacked(columns) for columns in responses.columns),
    )
    segments = None if grouping.segments is None else jnp.asarray(grouping.segments)
    size = grouping.size if segments is not None or blocks == 1 else length // blocks
    return Groups(arrays, stacked(X.T), stacked(Z), segments, size, rows.layout.has_positive_weights)


class GroupSums(NamedTuple):
    """Sums over groups of what the value and the derivatives are made of.

    ``in_sigma`` (q, q) is dL/dSigma, ``in_free`` (p + k,) the gradient in beta and kappa. ``mixed`` (d, q, q) has what
    with M is the part of the Hessian of one direction of Sigma and any other, ``squares`` (q, q, q, q) of two.
    """

    value: jax.Array
    in_sigma: jax.Array
    in_free: jax.Array
    hessian: jax.Array
    mixed: jax.Array
    squares: jax.Array


def evaluate(groups: Groups, sigma, root, M, N, free, a):
    """L, its gradient, its Hessian in (psi, beta, kappa), and the modes as a (blocks, q, groups), from those of before.

    `sigma`, `root` (q, q) are Sigma and a square root of it, M (m, q, q) and N (m, m, q, q) or None its derivatives,
    `free` (p + k,) beta and kappa.
    """

    parts, modes = over_blocks(lambda block, start: _evaluate_block(block, sigma, root, M, free, start), groups, a)
    parts = jax.tree.map(lambda x: jnp.sum(x, axis=0), parts)
    parts = parts if groups.axis is None else jax.lax.psum(parts, groups.axis)
    return *_assembled(parts, M, N), modes


def evaluate_apart(groups: Groups, sigma, root, M, N, free, a) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The same of each block by itself: L (blocks,), its gradients (blocks, d) and its Hessians (blocks, d, d)."""
    parts, _ = over_blocks(lambda block, start: _evaluate_block(block, sigma, root, M, free, start), groups, a)
    return jax.vmap(lambda part: _assembled(part, M, N))(parts)


def over_blocks(function, groups: Groups, a, mapped=None) -> Any:
    """``function(block, modes)`` of each block of groups, stacked along a first axis.

    One block after the other, or ``mapped``: loops can be differentiated in reverse within `jax.vmap` only.
    """

    def of_block(arrays, start):
        return function(replace(arrays, segments=groups.segments), start)

    stacked = (replace(groups, segments=None), a)
    if len(a) > 1:
        return jax.lax.map(lambda block: of_block(*block), stacked) if mapped is None else mapped(of_block)(*stacked)
    alone = of_block(*jax.tree.map(lambda x: x[0], stacked))
    return jax.tree.map(lambda x: x[None], alone)


def sum_rows(groups: Groups, values) -> jax.Array:
    """Sums (..., groups) over the rows (..., chunk, chunks) of each group."""
    total = add_up(values[..., k, :] for k in range(values.shape[-2]))
    if groups.segments is None:
        return total
    moved = jnp.moveaxis(total, -1, 0)
    summed = jax.ops.segment_sum(moved, groups.segments, num_segments=groups.size, indices_are_sorted=True)
    return jnp.moveaxis(summed, 0, -1)


def _at_rows(groups: Groups, values):
    """What each row's group has, (..., 1, chunks), of (..., groups)."""
    values = values if groups.segments is None else values[..., groups.segments]
    return values[..., None, :]


def _predictors(groups: Groups, free):
    p = groups.X.shape[0]
    xi = groups.responses.offset + jnp.tensordot(free[:p], groups.X, 1)
    return xi, groups.responses.extras(free[p:])


def rows_of_effects(groups: Groups, b, free) -> tuple[jax.Array, jax.Array]:
    """The linear predictor (chunk, chunks) and the further ones of a block's rows at effects b (q, groups)."""
    xi, extras = _predictors(groups, free)
    return xi + _of_effects(groups, b), extras


def working_cross(groups: Groups, b, free) -> jax.Array:
    """Z'WZ (q, q, groups) of a block at effects b."""
    return _cross(groups, groups.responses.derivatives(*rows_of_effects(groups, b, free)).weight)


def _of_effects(groups: Groups, b):
    """Z b of every row, (chunk, chunks)."""
    return add_up(groups.Z[j] * _at_rows(groups, b[j]) for j in range(b.shape[0]))


def _cross(groups: Groups, weights):
    """Z'diag(w)Z, (..., q, q, groups), of weights (..., chunk, chunks)."""
    q, pairs = groups.Z.shape[0], {}
    Z = groups.Z.reshape(q, *(1,) * (weights.ndim - 2), *groups.Z.shape[1:])
    for i in range(q):
        left = weights * Z[i]
        for j in range(i + 1):
            pairs[i, j] = pairs[j, i] = sum_rows(groups, left * Z[j])
    rows = [jnp.stack([pairs[i, j] for j in range(q)], axis=-2) for i in range(q)]
    return jnp.stack(rows, axis=-3)


def _reach(groups: Groups, values):
    """Z'v, (..., q, groups), of v (..., chunk, chunks)."""
    shape = (1,) * (values.ndim - 2)
    return jnp.stack([sum_rows(groups, values * Z.reshape(*shape, *Z.shape)) for Z in groups.Z], axis=-2)


def modes(groups: Groups, sigma, root, free, a) -> Inner:
    """Where the modes of a block are, from a (q, groups) on, by damped Newton steps.

    Each group accepts or rejects its own.
    """
    xi, extras = _predictors(groups, free)

    def objective(b, a):
        rows = -2 * groups.responses.log_kernels(xi + _of_effects(groups, b), extras)
        value = sum_rows(groups, rows) + jnp.sum(a * b, axis=0)
        return value, jnp.abs(value)

    def direction(b, a, cautious):
        score, weight, _, _ = groups.responses.derivatives(xi + _of_effects(groups, b), extras)
        if not groups.positive:
            weight = jnp.where(_at_rows(groups, cautious), jnp.maximum(weight, 0), weight)
        C, reach = _cross(groups, weight), _reach(groups, score)
        border = matmul(C, b[:, None])[:, 0] + reach
        out = eliminate(sigma, root, C, border[:, None], False, None, groups.positive)
        move = out.U[:, 0] - b
        return move, out.E[:, 0] - a, jnp.max(jnp.abs(jnp.sum((reach - a) * move, axis=0)))

    return damped_newton(objective, direction, matmul(sigma, a[:, None])[:, 0], a, lambda of_group: of_group[None])


def modes_from(groups: Groups, sigma, root, free, a) -> jax.Array:
    """The modes of all groups, (blocks, q, groups), from those of another point."""
    return over_blocks(lambda block, start: modes(block, sigma, root, free, start).dual, groups, a)


class _Pieces(NamedTuple):
    """What sums of a block are made of: derivatives of rows, and how rows (d, chunk, chunks), effects (d, q, groups)
    and cross-products (d, q, q, groups) move along each direction."""

    wide: WideTable
    h: jax.Array
    g: jax.Array
    v: jax.Array
    P: jax.Array
    T: jax.Array
    S: jax.Array
    logdet: jax.Array
    a: jax.Array
    eta: jax.Array
    a_all: jax.Array
    C_all: jax.Array


def _evaluate_block(groups: Groups, sigma, root, M, free, start) -> tuple[GroupSums, jax.Array]:
    """`GroupSums` of a block at its modes, and these as a (q, groups)."""
    search = modes(groups, sigma, root, free, start)

    def pieces(groups, b):
        return _pieces(groups, sigma, root, M, free, b)

    # A branch of its own, though it is always taken: what several sums are made of is worked out once, and not, by a
    # compiler that joins each sum with all that leads to it, once for every entry of the Hessian.
    shapes = jax.eval_shape(pieces, groups, search.effects)
    known = jax.lax.cond(
        search.steps > 0,
        pieces,
        lambda *_: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
        groups,
        search.effects,
    )
    return _sums_of(groups, sigma, search.effects, known), known.a


def _pieces(groups: Groups, sigma, root, M, free, b) -> _Pieces:
    xi, extras = _predictors(groups, free)
    wide = groups.responses.wide_table(xi + _of_effects(groups, b), extras)
    p, q = groups.X.shape[0], len(b)
    s, W, r = wide.narrow.score, wide.narrow.weight, wide.narrow.slope
    a = _reach(groups, s)
    out = eliminate(sigma, root, _cross(groups, W), jnp.zeros_like(a)[:, None], False, None, groups.positive)
    P, T = out.P, out.T
    ZP = jnp.stack([add_up(groups.Z[i] * _at_rows(groups, P[i, j]) for i in range(q)) for j in range(q)])
    h = jnp.sum(ZP * groups.Z, axis=0)
    c = _reach(groups, h * r)
    g = add_up(ZP[j] * _at_rows(groups, c[j]) for j in range(q))
    _, s_u, w_u = wide.narrow.in_extras
    of_kappa = _kappa_rows(groups.responses, s_u)
    reach_free = _reach(groups, jnp.concatenate([-W[None] * groups.X, of_kappa]))
    Ma = jnp.stack([add_up(M[:, i, j, None] * a[j][None] for j in range(q)) for i in range(q)], axis=1)
    b_all = jnp.concatenate([_times(T, Ma), _times(P, reach_free)])
    eta = add_up(_at_rows(groups, b_all[:, j]) * groups.Z[j][None] for j in range(q))
    m, k = len(M), len(of_kappa)
    before, behind = jnp.zeros((m, *s.shape), s.dtype), jnp.zeros((k, *s.shape), s.dtype)
    eta = eta + jnp.concatenate([before, groups.X, behind])
    change, a_all = r[None] * eta, -_reach(groups, W[None] * eta)
    if k:
        explicit = jnp.zeros((m + p, *s.shape), s.dtype)
        change = change + jnp.concatenate([explicit, _kappa_rows(groups.responses, w_u)])
        a_all = a_all + jnp.concatenate([jnp.zeros((m + p, *a.shape), a.dtype), reach_free[p:]])
    v = _times(transpose(T), c)
    return _Pieces(wide, h, g, v, P, T, out.S, out.logdet, a, eta, a_all, _cross(groups, change))


def _sums_of(groups: Groups, sigma, b, at: _Pieces) -> GroupSums:
    table, q = at.wide.narrow, len(b)
    s, W, r = table.score, table.weight, table.slope
    value = jnp.sum(at.logdet) + jnp.sum(at.a * b) - 2 * jnp.sum(table.value)
    # Along Sigma, by (i, j): S - a a' + (v a' + a v') / 2, summed over groups.
    va = at.v @ at.a.T
    in_sigma = jnp.sum(at.S, axis=-1) - at.a @ at.a.T + (va + va.T) / 2
    l_u, s_u, w_u = table.in_extras
    in_beta = jnp.tensordot(groups.X, at.h * r - W * at.g - 2 * s, 2)
    in_kappa = groups.responses.in_kappa(at.h[None] * w_u + at.g[None] * s_u - 2 * l_u)
    hessian = _sums(at.eta * (2 * W + at.h * at.wide.bend - at.g * r)[None], at.eta)
    if groups.responses.columns:
        hessian = hessian + _of_kappa(groups.responses, at)
    hessian = hessian + 2 * _sums(at.a_all, _times(sigma[:, :, None], at.a_all))
    PC, TC = _times(at.P, at.C_all), _times(transpose(at.T), at.C_all)
    hessian = hessian - _sums(PC, jnp.swapaxes(PC, 1, 2))
    mixed = _products(TC, at.T) + jnp.stack([at.a_all @ row for row in at.v], axis=1)
    flat = at.S.reshape(q * q, -1)
    squares = _sums(flat, flat).reshape(q, q, q, q)
    return GroupSums(value, in_sigma, jnp.concatenate([in_beta, in_kappa]), hessian, mixed, squares)


def _times(A, x):
    """A x of each group, (..., i, groups), for A (i, j, groups) and x (..., j, groups): elementwise over groups."""
    lead = (1,) * (x.ndim - 2)

    def row(i):
        return add_up(A[i, j].reshape(*lead, -1) * x[..., j, :] for j in range(A.shape[1]))

    return jnp.stack([row(i) for i in range(A.shape[0])], axis=-2)


def _products(left, right):
    """Sums over groups of left right, (k, i, h), for left (k, l, i, groups), its matrices transposed, and right."""
    q = len(right)

    def entry(i, h):
        return add_up(left[:, k, i] @ right[k, h] for k in range(q))

    return jnp.stack([jnp.stack([entry(i, h) for h in range(q)], -1) for i in range(q)], 1)


def _sums(left, right):
    """Sums of all products of (d, ...) with another."""
    # Contracted as they lie: a transpose would be copied.
    return jnp.einsum("kn,ln->kl", left.reshape(len(left), -1), right.reshape(len(right), -1))


def _kappa_rows(responses: Responses, values):
    """What is known by further predictor, (u, chunk, chunks), times each of their columns: (k, chunk, chunks)."""
    pieces = [columns * values[u][None] for u, columns in enumerate(responses.columns)]
    return jnp.concatenate([jnp.zeros((0, *responses.y.shape), responses.y.dtype), *pieces])


def _of_kappa(responses: Responses, at: _Pieces):
    """The terms of the Hessian that coefficients of further predictors alone have."""
    h, g = at.h[None], at.g[None]
    _, s_u, w_u = at.wide.narrow.in_extras
    t = _kappa_rows(responses, h * at.wide.slope_in_extras - g * w_u - 2 * s_u)
    size = len(at.eta) - len(t)
    across = _sums(jnp.pad(t, ((size, 0), (0, 0), (0, 0))), at.eta)
    l_uv, s_uv, w_uv = at.wide.second
    second = h[None] * w_uv + g[None] * s_uv - 2 * l_uv
    rows = [_kappa_rows(responses, second[u])[None] * columns[:, None] for u, columns in enumerate(responses.columns)]
    of_rows = jnp.sum(jnp.concatenate(rows), axis=(2, 3))
    return across + across.T + jnp.pad(of_rows, ((size, 0), (size, 0)))


def _assembled(parts: GroupSums, M, N):
    """L, its gradient and Hessian in (psi, beta, kappa) from the sums."""
    m = len(M)
    gradient = jnp.concatenate([jnp.einsum("kij,ij->k", M, parts.in_sigma), parts.in_free])
    mixed = jnp.einsum("kij,lij->kl", parts.mixed, M)
    hessian = parts.hessian.at[:, :m].add(mixed).at[:m].add(mixed.T)
    of_sigma = -jnp.einsum("kij,lhg,jhgi->kl", M, M, parts.squares)
    if N is not None:
        of_sigma = of_sigma + jnp.einsum("klij,ij->kl", N, parts.in_sigma)
    hessian = hessian.at[:m, :m].add(of_sigma)
    return parts.value, gradient, (hessian + hessian.T) / 2


def is_grouped(layout: Any) -> bool:
    """Whether a layout has one grouping factor of independent levels, and few columns."""
    return len(layout.stages) == 1 and layout.is_nest() and layout.stage_width(0) <= WIDEST


WIDEST = 8
"""Most columns of a group of which each pair is written out."""
