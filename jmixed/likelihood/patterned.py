"""The deviance of correlated visits without random effects, from cross-products by pattern of visits.

With E(rho) the covariance (T, T) of the residuals of all visits relative to sigma^2, a series that saw the visits of a
pattern s has the block E_s of it, and all that the deviance needs of the rows are sums over the series of each pattern,

    S_s[t, u] = sum over series [x_t y_t]'[x_u y_u]         G = sum_s <E_s^-1, S_s>        log|E| = sum_s n_s log|E_s|

made once. An evaluation is then free of the number of rows; the second derivatives of G, which are asked for along two
matrices only, are those of scalar functions <E_s^-1, Q_s>.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmixed.layout.design import Rows
from jmixed.layout.index import Array
from jmixed.likelihood.derivatives import Derivatives, derivatives_of
from jmixed.likelihood.jets import Jet
from jmixed.likelihood.preconditioning import Preconditioners
from jmixed.likelihood.products import count_rows, fixed_columns
from jmixed.residual.visits import Visits


class _Sums(NamedTuple):
    """What of cross-products the deviance asks for beside its jets."""

    G: jax.Array
    R: jax.Array
    nobs: jax.Array
    log_weights: jax.Array


ENTRIES = 2**25
"""Most entries of the sums."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Patterns:
    """Sums over the series of each pattern of visits.

    Attributes
    ----------
    S : array (patterns, T, c, T, c)
        Cross-products of preconditioned columns [X~ y~] at pairs of visits.
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
    series, residual = rows.series, rows.layout.residual
    X, y = fixed_columns({"X": rows.X, "y": rows.y - rows.offset}, columns)
    there = rows.weights > 0
    table = jnp.concatenate([X, y]).T * jnp.sqrt(jnp.where(there, rows.weights, 0))[:, None]
    wide = residual.by_visit(table, there, series)
    summed = jax.lax.map(
        lambda own: jax.ops.segment_sum(
            own[:, :, None, None] * jnp.moveaxis(wide, 0, 1)[:, None], series.pattern, series.seen.shape[0]
        ),
        wide,
    )
    count = jax.ops.segment_sum(jnp.ones(len(series.pattern), y.dtype), series.pattern, series.seen.shape[0])
    logs = jnp.sum(jnp.where(there, jnp.log(jnp.where(there, rows.weights, 1)), 0))
    deviations = residual.of_visits(rows.series.dispersion, there, series)
    return Patterns(jnp.moveaxis(summed, 0, 1), series.seen, count, logs, deviations, count_rows(rows.weights))


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


def sums_of(patterns: Patterns, columns: Preconditioners):
    """What of cross-products the deviance asks for beside its jets."""
    return _Sums(
        jnp.zeros((patterns.S.shape[2],) * 2, patterns.S.dtype), columns.R, patterns.nobs, patterns.log_weights
    )


def jets_by_pattern(rho, patterns: Patterns, residual: Visits) -> tuple[Jet, Jet]:
    """Jets in rho of log|E| and of G, with second derivatives of G as products with a matrix.

    Derivatives of E are the same for all patterns: what stands around them is summed over patterns first.

        d <E^-1, Q> = -<E^-1 Q E^-1, E_k>        d2 = 2 <E^-1 Q E^-1, E_k E^-1 E_l> - <E^-1 Q E^-1, E_kl>
    """
    K, logs, first, second = inverses(rho, patterns, residual)
    count = patterns.count

    def along(H):
        """sum_s <H_s, E_k K_s E_l> (k, k), symmetric, of symmetric H (patterns, T, T)."""
        around = jnp.einsum("stu,svw->tuvw", H, K)
        inner = jnp.einsum("kuv,tuvw->ktw", first, around)
        return jnp.einsum("ktw,lwt->kl", inner, first)

    mean = jnp.einsum("s,stu->tu", count, K)
    weighted = count[:, None, None] * K
    logdet = Jet(
        count @ logs,
        jnp.einsum("tu,ktu->k", mean, first),
        jnp.einsum("tu,kltu->kl", mean, second) - along(weighted),
    )
    half = jnp.einsum("stu,suavb->stavb", K, patterns.S)
    G = jnp.einsum("stu,staub->ab", K, patterns.S)
    inner = jnp.einsum("stavb,svu->taub", half, K)

    def curved(W):
        H = jnp.einsum("stavb,ab,svu->stu", half, W, K)
        return along(H) + along(H).T - jnp.einsum("tu,kltu->kl", jnp.sum(H, axis=0), second)

    return logdet, Jet(G, -jnp.einsum("taub,ktu->kab", inner, first), curved)


def straight_jets_by_pattern(rho, patterns: Patterns, residual: Visits) -> tuple[Jet, Jet]:
    """Jets of log|E| and of G along straight paths E + sum e_k E_k (see `jmixed.inference.residual_directions`)."""
    K, logs, first, _ = inverses(rho, patterns, residual)
    count = patterns.count
    inner = jnp.einsum("stu,suavb,svw->stawb", K, patterns.S, K)
    middle = jnp.einsum("kvw,svayb,swx->kxayb", first, inner, K)
    bend = jnp.einsum("kxayb,lxy->klab", middle, first)
    bend = bend + jnp.swapaxes(bend, 0, 1)
    products = jnp.einsum("s,ktu,suv,lvw,swt->kl", count, first, K, first, K, optimize="optimal")
    logdet = Jet(count @ logs, jnp.einsum("s,stu,ktu->k", count, K, first), -products)
    slope = -jnp.einsum("staub,ktu->kab", inner, first)
    return logdet, Jet(jnp.einsum("stu,staub->ab", K, patterns.S), slope, bend)
