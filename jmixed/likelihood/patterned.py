"""The deviance of correlated visits without random effects, from cross-products by pattern of visits.

With E(rho) the covariance (T, T) of the residuals of all visits relative to sigma^2, a series that saw the visits of a
pattern s has the block E_s of it, and all that the deviance needs of the rows are sums over the series of each pattern,

    S_s[t, u] = sum over series [x_t y_t]'[x_u y_u]         G = sum_s <E_s^-1, S_s>        log|E| = sum_s n_s log|E_s|

made once. An evaluation is then free of the number of rows; the second derivatives of G, which are asked for along two
matrices only, are those of scalar functions <E_s^-1, Q_s>. All matrices of visits that meet the sums are symmetric, so
that these are kept by pairs of visits t >= u and pairs of columns a >= b, S[t, u] + S[u, t] where t and u differ.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.layout.design import Rows
from jmixed.layout.index import Array
from jmixed.likelihood.derivatives import Derivatives, derivatives_of
from jmixed.likelihood.jets import Jet
from jmixed.likelihood.preconditioning import Preconditioners
from jmixed.likelihood.products import count_rows, fixed_columns
from jmixed.residual.visits import Visits


class _PatternSums(NamedTuple):
    """What of cross-products the deviance asks for beside its jets."""

    G: jax.Array
    R: jax.Array
    nobs: jax.Array
    log_weights: jax.Array
    fixed: int


ENTRIES = 2**25
"""Most entries of the sums."""
BLOCK = 16
"""Series of one pattern that are multiplied together."""
FAR = 5.0
"""Size of a parameter beyond which moments are no start."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Patterns:
    """Sums over the series of each pattern of visits.

    Attributes
    ----------
    S, of_y : arrays (patterns, T (T + 1) / 2, p (p + 1) / 2), (patterns, T (T + 1) / 2, p + 1)
        Cross-products by pairs of visits, of pairs of columns of X~, and of [X~ y~] with y~. A batch of responses
        shares the first.
    seen : bool array (patterns, T)
        Which visits a pattern has.
    count : array (patterns,)
        Number of series.
    log_weights : scalar
        Sum of the log weights.
    deviations : array (T, k)
        Columns of the dispersion at each visit.
    nobs : scalar
        Number of rows.
    """

    S: Array
    of_y: Array
    seen: Array
    count: Array
    log_weights: Array
    deviations: Array
    nobs: Array


def has_patterns(rows: Rows) -> bool:
    """Whether cross-products by pattern say all that the deviance needs, and are few enough."""
    residual = rows.layout.residual
    if rows.layout.terms or not isinstance(residual, Visits) or residual.columns > residual.by_position:
        return False
    if rows.series.seen is None:
        return False
    columns = rows.X.shape[1] + 1
    largest = max(rows.series.seen.shape[0] * residual.positions, len(rows.series.count))
    return largest * residual.positions * columns**2 <= ENTRIES


def patterns_of(rows: Rows, columns: Preconditioners) -> Patterns:
    """The sums of rows whose weights are positive where they are there at all."""
    series, residual = rows.series, cast(Visits, rows.layout.residual)
    X, y = fixed_columns({"X": rows.X, "y": rows.y - rows.offset}, columns)
    there = rows.weights > 0
    root = jnp.sqrt(jnp.where(there, rows.weights, 0))

    def by_visit(columns):
        wide = residual.by_visit(columns.T * root[:, None], there, series)
        return _in_blocks(jnp.moveaxis(wide, 0, 1), series)

    count = jax.ops.segment_sum(jnp.ones(len(series.pattern), y.dtype), series.pattern, series.seen.shape[0])
    logs = jnp.sum(jnp.where(there, jnp.log(jnp.where(there, rows.weights, 1)), 0))
    deviations = residual.of_visits(rows.series.dispersion, there, series)
    (X, owner), (y, _) = by_visit(X), by_visit(y)

    def products(left, right):
        # A product of matrices as such: XLA does not find it among more axes.
        flat = (table.reshape(*table.shape[:2], -1) for table in (left, right))
        sums = jax.ops.segment_sum(jnp.einsum("gni,gnj->gij", *flat), owner, len(series.seen))
        return sums.reshape(-1, *left.shape[2:], *right.shape[2:])

    S = _by_pairs(products(X, X), *np.tril_indices(X.shape[-1]))
    of_y = jnp.concatenate([products(X, y), products(y, y)], axis=2)
    of_y = _by_pairs(of_y, np.arange(of_y.shape[2]), np.zeros(of_y.shape[2], int))
    return Patterns(S, of_y, series.seen, count, logs, deviations, count_rows(rows.weights))


def _in_blocks(wide, series):
    """Series (series, T, c) in blocks of those of one pattern (blocks, BLOCK, T, c), and the pattern of each block."""
    patterns, many = series.seen.shape[0], len(wide)
    order, ones = jnp.argsort(series.pattern), jnp.ones(many, jnp.int32)
    pattern = series.pattern[order]
    length = jax.ops.segment_sum(ones, pattern, patterns)
    blocks = -(-length // BLOCK)
    begin, first = jnp.cumsum(length) - length, jnp.cumsum(blocks) - blocks
    within = jnp.arange(many, dtype=jnp.int32) - begin[pattern]
    room = patterns + many // BLOCK
    table = jnp.zeros((room * BLOCK, *wide.shape[1:]), wide.dtype)
    table = table.at[first[pattern] * BLOCK + within].set(wide[order])
    owner = jnp.searchsorted(first + blocks, jnp.arange(room, dtype=first.dtype), side="right")
    return table.reshape(room, BLOCK, *wide.shape[1:]), owner


def _by_pairs(products, a, b):
    """Sums (patterns, T, c, T, d) by pairs of visits, in both orders, and by columns a and b."""
    t, u = np.tril_indices(products.shape[1])

    def chosen(t, u):
        return products[:, t[:, None], a[None], u[:, None], b[None]]

    return chosen(t, u) + jnp.where((t == u)[None, :, None], 0, chosen(u, t))


def _packed(matrices):
    """Symmetric matrices (..., q, q) by pairs (..., q (q + 1) / 2)."""
    rows, columns = np.tril_indices(matrices.shape[-1])
    return matrices[..., rows, columns]


def _whole(pairs, q):
    """Symmetric matrices (..., q, q) from their pairs."""
    place = np.zeros((q, q), np.int32)
    place[np.tril_indices(q)] = np.arange(q * (q + 1) // 2)
    return pairs[..., np.maximum(place, place.T)]


def _doubled(matrices):
    """The same, twice where a pair is two entries: <A, B> is its product with the pairs of B."""
    rows, columns = np.tril_indices(matrices.shape[-1])
    return jnp.where(rows == columns, 1, 2).astype(matrices.dtype) * _packed(matrices)


def _congruence(K):
    """The matrices (s, pairs, pairs) that take E by pairs to K E K by pairs, transposed."""
    v, w = np.tril_indices(K.shape[-1])
    both = K[:, v][:, :, v] * K[:, w][:, :, w] + K[:, v][:, :, w] * K[:, w][:, :, v]
    return both * jnp.where(v == w, 0.5, 1).astype(K.dtype)[None, :, None]


def start_by_pattern(patterns: Patterns, residual: Visits) -> Any:
    """rho to search from: of any correlations, those of least-squares residuals by pairs of visits.

    Without missing visits that is next to the optimum. Without correlations, where pairs of different series make up no
    positive definite matrix.
    """
    dtype, T = patterns.S.dtype, residual.positions
    none = jnp.zeros(residual.size, dtype)
    if residual.columns != T - 1:
        return none
    seen = patterns.seen.astype(dtype)
    together = _packed(jnp.einsum("s,st,su->tu", patterns.count, seen, seen))
    E = _whole(jnp.sum(patterns.of_y[..., -1], axis=0) * _halves(T, dtype) / jnp.maximum(together, 1), T)
    sd = jnp.sqrt(jnp.diagonal(E))
    tau = residual.parameters(E / (sd[:, None] * sd[None]))
    if tau is None:
        return none
    rho = jnp.concatenate([jnp.log(sd[1:] / sd[0]) / jnp.diagonal(patterns.deviations[1:]), tau])
    return jnp.where(jnp.all(jnp.abs(rho) < FAR), rho, none)


def _halves(T, dtype):
    """One for a visit with itself, a half for pairs of two."""
    return jnp.where(np.equal(*np.tril_indices(T)), 1, 0.5).astype(dtype)


class Inverses(NamedTuple):
    """E^-1 by pattern (patterns, T, T) with log|E| (patterns,), and the derivatives of E (k, T, T), (k, k, T, T)."""

    K: jax.Array
    logdet: jax.Array
    first: jax.Array
    second: jax.Array


def inverses(rho, patterns: Patterns, residual: Visits) -> Inverses:
    """What the covariance of all visits is at rho (k,)."""

    def covariance(rho):
        deviations = jnp.exp(patterns.deviations @ rho[: residual.columns])
        return residual.correlation(rho[residual.columns :]) * deviations[:, None] * deviations[None]

    K, logdet = residual.inverses(covariance(rho), patterns.seen)
    first, second = jax.jacfwd(covariance)(rho), jax.jacfwd(jax.jacfwd(covariance))(rho)
    return Inverses(K, logdet, jnp.moveaxis(first, -1, 0), jnp.moveaxis(second, (-2, -1), (0, 1)))


def derivatives_by_pattern(rho, patterns: Patterns, residual: Visits, columns: Preconditioners, reml) -> Derivatives:
    """Value, gradient and Hessian of the profiled deviance in rho (k,)."""
    return derivatives_of(*jets_by_pattern(rho, patterns, residual), sums_of(patterns, columns), reml)


def sums_of(patterns: Patterns, columns: Preconditioners) -> Any:
    """What of cross-products the deviance asks for beside its jets."""
    c = columns.R.shape[0] + 1
    return _PatternSums(jnp.zeros((c, c), patterns.S.dtype), columns.R, patterns.nobs, patterns.log_weights, c - 1)


def jets_by_pattern(rho, patterns: Patterns, residual: Visits) -> tuple[Jet, Jet]:
    """Jets in rho of log|E| and of G, with second derivatives of G as products with a matrix.

    Derivatives of E are the same for all patterns: what stands around them is summed over patterns first.

        d <E^-1, Q> = -<E^-1 Q E^-1, E_k>        d2 = 2 <E^-1 Q E^-1, E_k E^-1 E_l> - <E^-1 Q E^-1, E_kl>
    """
    K, logs, first, second = inverses(rho, patterns, residual)
    count = patterns.count

    def along(H) -> Any:
        """sum_s <H_s, E_k K_s E_l> (k, k), symmetric, of symmetric H (patterns, T, T)."""
        around = jnp.einsum("stu,svw->tuvw", H, K)
        inner = jnp.einsum("kuv,tuvw->ktw", first, around)
        return jnp.einsum("ktw,lwt->kl", inner, first)

    mean = jnp.einsum("s,stu->tu", count, K)
    weighted = jnp.expand_dims(count, (1, 2)) * K
    logdet = Jet(
        count @ logs,
        jnp.einsum("tu,ktu->k", mean, first),
        jnp.einsum("tu,kltu->kl", mean, second) - along(weighted),
    )
    T, c = residual.positions, patterns.of_y.shape[2]
    # One product of matrices for G and for all that its slopes are made of.
    factors = jnp.concatenate([jnp.swapaxes(_congruence(K), 1, 2), _packed(K)[:, :, None]], axis=2)
    flat = factors.reshape(-1, factors.shape[2]).T
    contracted = [flat @ table.reshape(-1, table.shape[2]) for table in (patterns.S, patterns.of_y)]
    contracted = jnp.concatenate(contracted, axis=1)

    def curved(W) -> Any:
        weights = _doubled(W)
        Q = patterns.S @ weights[:-c] + patterns.of_y @ weights[-c:]
        Q = _whole(_halves(T, Q.dtype)[None] * Q, T)
        H = K @ Q @ K
        return along(H) + along(H).T - jnp.einsum("tu,kltu->kl", jnp.sum(H, axis=0), second)

    second_of_G: Any = curved
    return logdet, Jet(_whole(contracted[-1], c), -_whole(_packed(first) @ contracted[:-1], c), second_of_G)


def straight_jets_by_pattern(rho, patterns: Patterns, residual: Visits) -> tuple[Jet, Jet]:
    """Jets of log|E| and of G along straight paths E + sum e_k E_k (see `jmixed.inference.residual_directions`)."""
    K, logs, first, _ = inverses(rho, patterns, residual)
    count = patterns.count
    S, T, c = jnp.concatenate([patterns.S, patterns.of_y], axis=2), residual.positions, patterns.of_y.shape[2]
    inner = jnp.einsum("sij,sjA->siA", _congruence(K), S)
    whole = jnp.moveaxis(_whole(jnp.moveaxis(inner * _halves(T, S.dtype)[None, :, None], 1, 2), T), 1, 3)
    around = jnp.einsum("sqr,swpA->qrwpA", K, whole)
    bend = jnp.einsum("krwA,lrw->klA", jnp.einsum("kpq,qrwpA->krwA", first, around), first)
    bend = _whole(bend + jnp.swapaxes(bend, 0, 1), c)
    products = jnp.einsum("s,ktu,suv,lvw,swt->kl", count, first, K, first, K, optimize="optimal")
    logdet = Jet(count @ logs, jnp.einsum("s,stu,ktu->k", count, K, first), -products)
    slope = -_whole(_packed(first) @ jnp.sum(inner, axis=0), c)
    G = jnp.einsum("si,siA->A", _packed(K), S)
    return logdet, Jet(_whole(G, c), slope, bend)
