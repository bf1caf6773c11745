"""The places of rows in their series: what a residual structure needs of the rows, as arrays."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import FLOAT


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Series:
    """Rows by series, and the columns of the dispersion.

    Rows are told in the order of the series, and in a series of their places; `order` leads there.

    Attributes
    ----------
    dispersion : array (rows, k)
        Columns of log standard deviations, each of unit size.
    order, rank : int arrays (rows,), or None
        The row at each place of that order, and where in it each row stands; None where rows stand so already.
    begin : int array (rows,)
        Where the series of each place begins.
    place : array (rows,)
        Where in its series a row is: a number on the scale of times, or of visits from 0 on. It ascends.
    number : int array (rows,)
        Number of the series.
    count : int array (k,), by series
        Nothing but its length is used: the number of series.
    seen : bool array (m, T) or None
        Of numbered visits, which ones each of the m patterns has, padded by some without any; None where rows may be
        missing that were there when the patterns were made.
    pattern : int array (k,), by series, or None
        The pattern of each series.
    kind : int array (rows,) or None
        Of few lengths of steps, which one leads to each place; None likewise.
    steps, step_count : array (m,) or None
        These lengths, and how many steps have each.
    """

    dispersion: jax.Array | np.ndarray
    order: jax.Array | np.ndarray | None
    rank: jax.Array | np.ndarray | None
    begin: jax.Array | np.ndarray
    place: jax.Array | np.ndarray
    number: jax.Array | np.ndarray
    count: jax.Array | np.ndarray
    seen: jax.Array | np.ndarray | None = None
    pattern: jax.Array | np.ndarray | None = None
    kind: jax.Array | np.ndarray | None = None
    steps: jax.Array | np.ndarray | None = None
    step_count: jax.Array | np.ndarray | None = None


def in_order(rows, series: Series):
    """Rows (rows, ...) in the order of the series."""
    return rows if series.order is None else rows[series.order]


def back(rows, series: Series):
    """From the order of the series to that of the rows."""
    return rows if series.rank is None else rows[series.rank]


def place_before(there, series: Series):
    """For each place the one before it in its series that is `there` (rows,), and whether there is one."""
    places = jnp.arange(len(there), dtype=jnp.int32)
    last = jax.lax.cummax(jnp.where(there, places, -1))
    last = jnp.concatenate([jnp.full(1, -1, last.dtype), last[:-1]])
    return jnp.maximum(last, 0), there & (last >= series.begin)


def sums(rows, series: Series):
    """Sums over each series (series, ...) of rows in the order of the series."""
    return jax.ops.segment_sum(rows, series.number, len(series.count))


def spread(totals, series: Series):
    """What each series has (series, ...), for each of its rows in the order of the series."""
    return totals.at[series.number].get(mode="fill", fill_value=0)


def padded(series: Series, size: int | None) -> Series:
    """The series with rows behind that belong to none: their number is beyond the last."""
    n = len(series.place)
    if size is None or size == n:
        return series
    more = np.arange(n, size, dtype=np.int32)

    def extended(array, values):
        return None if array is None else np.concatenate([array, values])

    return replace(
        series,
        dispersion=extended(series.dispersion, np.zeros((size - n, series.dispersion.shape[1]), FLOAT)),
        order=extended(series.order, more),
        rank=extended(series.rank, more),
        begin=extended(series.begin, more),
        place=extended(series.place, np.zeros(size - n, FLOAT)),
        number=extended(series.number, np.full(size - n, len(series.count), np.int32)),
        kind=extended(series.kind, np.zeros(size - n, np.int32)),
    )


def taken(series: Series, rows) -> Series:
    """The rows (k,) of uncorrelated series, with the columns of their dispersion."""
    places = jnp.arange(len(rows), dtype=jnp.int32)
    none = jnp.zeros(len(rows), series.place.dtype)
    dispersion = jnp.asarray(series.dispersion)[rows]
    return replace(
        series, dispersion=dispersion, order=None, rank=None, begin=places, place=none, number=jnp.zeros_like(places)
    )


def without_patterns(series: Series | None) -> Series | None:
    """The series where rows may have weights of zero that had others."""
    return series and replace(series, seen=None, pattern=None, kind=None, steps=None, step_count=None)


def series_of(
    number: np.ndarray,
    place: np.ndarray,
    count: int,
    dispersion: np.ndarray,
    visits: int | None = None,
) -> Series:
    """The series of rows with the given numbers (n,), from 0 on, and places (n,), of `count` series.

    Of numbered `visits` the patterns in which series have them are told as well.
    """
    seen = pattern = None
    if visits is not None:
        table = np.zeros((count, visits), bool)
        table[number, place.astype(np.int64)] = True
        kinds, pattern = np.unique(table, axis=0, return_inverse=True)
        seen, pattern = np.zeros((bucket(len(kinds)), visits), bool), pattern.ravel().astype(np.int32)
        seen[: len(kinds)] = kinds
    order = np.lexsort((place, number)).astype(np.int32)
    kind, steps, step_count = _steps(number[order], place[order])
    ordered = number[order].astype(np.int32)
    begin = np.searchsorted(ordered, ordered).astype(np.int32)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order), dtype=np.int32)
    stands = np.array_equal(order, rank) and np.array_equal(order, np.arange(len(order)))
    return Series(
        dispersion=np.asarray(dispersion, FLOAT),
        order=None if stands else order,
        rank=None if stands else rank,
        begin=begin,
        place=np.asarray(place, FLOAT)[order],
        number=ordered,
        count=np.zeros(count, np.int8),
        seen=seen,
        pattern=pattern,
        kind=kind,
        steps=steps,
        step_count=step_count,
    )


FEW = 4
"""Lengths of steps up to which cross-products are made for each."""


def _steps(number, place):
    """Which length the step to each place has, the lengths, and how many steps have each; None for many lengths."""
    length = np.diff(place, prepend=0.0)
    follows = np.diff(number, prepend=-1) == 0
    lengths, kind = np.unique(length[follows], return_inverse=True)
    if len(lengths) > FEW:
        return None, None, None
    kinds = np.zeros(len(place), np.int32)
    kinds[follows] = kind.ravel()
    return kinds, lengths.astype(FLOAT), np.bincount(kind.ravel(), minlength=len(lengths)).astype(FLOAT)
