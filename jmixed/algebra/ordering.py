"""The order of elimination of a sparse symmetric matrix, and where everything goes, found on the host.

Columns with few neighbours are eliminated first (minimum degree), and all that do not touch each other at once (Liu
1985), so that there are a few dozen rounds instead of a chain of columns. Every step is a product of sparse matrices.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import sparse

from jmixed.errors import ModelError
from jmixed.runtime import device
from jmixed.runtime.memory import bucket, extended

Array = Any

DENSE = 256
"""Columns that are left to the dense core in any case: it takes them in a few milliseconds."""

SHARE = 8
"""A column joins the core when its length exceeds this part of what is left: a front would cost no less."""

LINKS = 40_000_000
"""Links of what is left beyond which no order is looked for: it takes minutes, and ends with a core as large."""

TOGETHER = 4
"""Largest number of columns with the same neighbours that are eliminated as one."""

BATCH = 1 << 15
"""Numbers in a batch of fronts: they should stay in cache, and be many against what a step costs."""

NARROW = 1 << 16
"""Numbers of the largest front that shares a stage with small ones, whose batches are then no smaller than it."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Stage:
    """Fronts in batches, to be eliminated batch by batch: those within a batch do not touch each other.

    A front is the dense matrix of a few columns to be eliminated, its pivots, and of all columns that they touch. What
    is left of it when they are gone is added to its parent, the front of the column that is eliminated next.

    The fronts of a batch have one width, a power of two, and every batch holds as many numbers, so that a program reads
    and writes them in one loop. Rows of fronts stand one after the other, batch after batch.
    """

    columns: Array  # (rows,) that each row of a front is of, the pivots first (padding: `Plan.size`)
    place: Array  # (rows,) of that column among those of the parent (pivots and padding: 0)
    row: Array  # (rows,) where that column's row of the parent begins among all numbers
    start: Array  # (batches,) the first row of each batch
    kind: Array  # (batches,) which of the widths its fronts have
    count: Array  # () batches in use
    numbers: int = field(metadata={"static": True})  # in a batch
    widths: tuple[int, ...] = field(metadata={"static": True})  # ascending


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Plan:
    """How a sparse symmetric positive definite matrix is eliminated: its fronts, and at last a dense core."""

    rows: Array  # (entries,) of the pattern (padding: `size`)
    columns: Array  # (entries,)
    position: Array  # (entries,) among the numbers of all fronts, stage after stage, and the core
    stages: tuple[Stage, ...]
    core: Array  # (width,) the columns of the core (padding: `size`)
    size: int = field(metadata={"static": True})  # of the matrix, rounded up
    pivots: int = field(metadata={"static": True})  # of each front


class _Elimination(NamedTuple):
    """Groups of columns in the order of their elimination, and the groups that each touches and that come later."""

    groups: np.ndarray
    rounds: np.ndarray  # groups that are eliminated at once, round by round
    lengths: np.ndarray  # number of later groups of each
    later: np.ndarray


class _Fronts(NamedTuple):
    """The fronts in the order of elimination; columns are named by their ranks in that order."""

    order: np.ndarray  # columns by rank
    first: np.ndarray  # rank of the first pivot of each front, and of the core
    front: np.ndarray  # of each rank (the core: number of fronts)
    rounds: np.ndarray  # fronts that are eliminated at once, round by round
    starts: np.ndarray  # where the rows of each front, and of the core, start among all
    keys: np.ndarray  # of every row of a front: front * size + rank, ascending
    parent: np.ndarray  # of each front

    @property
    def rows(self):
        return self.keys % len(self.order)

    def places(self, front, rank, pivots):
        """Where the columns of these ranks stand in these fronts, or in the core."""
        within = rank - self.first[front]
        row = np.flatnonzero(self.front[rank] != front)
        of = front[row]
        within[row] = pivots + np.searchsorted(self.keys, of * len(self.order) + rank[row]) - self.starts[of]
        return within


def plan(rows, columns, size: int, dense: int = DENSE) -> Plan:
    """The plan of a matrix of that size with entries at these places: of each pair (i, j) and (j, i) one of the two.

    An entry that is named more than once is the sum of its values. The last `dense` columns are not ordered.
    """
    rows, columns = np.asarray(rows), np.asarray(columns)
    group, graph = _together(_graph(rows, columns, size))
    weight = np.bincount(group)
    fronts = _fronts(_eliminate(graph, weight, dense), group, weight)
    pivots = int(weight.max(initial=1))
    stages, offset, stride, total = _stages(fronts, pivots, bucket(size))
    rank = np.empty(size, int)
    rank[fronts.order] = np.arange(size)
    earlier, later = np.minimum(rank[rows], rank[columns]), np.maximum(rank[rows], rank[columns])
    front = fronts.front[earlier]
    row, column = fronts.places(front, later, pivots), earlier - fronts.first[front]
    return Plan(
        extended(rows, bucket(len(rows)), bucket(size)),
        extended(columns, bucket(len(rows)), bucket(size)),
        extended(offset[front] + row * stride[front] + column, bucket(len(rows)), 0),
        stages,
        extended(fronts.order[fronts.first[-1] :], stride[-1], bucket(size)),
        bucket(size),
        pivots,
    )


def _graph(rows, columns, size):
    """Which columns touch which, without those that touch themselves."""
    ends = np.concatenate([rows, columns]).astype(np.int32), np.concatenate([columns, rows]).astype(np.int32)
    return _without_loops(sparse.csr_array((np.ones(len(ends[0]), bool), ends), shape=(size, size)))


def _without_loops(graph: Any):
    graph.sum_duplicates()
    off = graph.indices != np.repeat(np.arange(graph.shape[0], dtype=np.int32), np.diff(graph.indptr))
    starts = np.concatenate([[0], np.cumsum(off)])[graph.indptr].astype(np.int32)
    return sparse.csr_array((graph.data[off], graph.indices[off], starts), shape=graph.shape, dtype=bool)


def _sums(graph, values):
    """The sum of the values of each node's neighbours."""
    sums = np.zeros(graph.nnz + 1, values.dtype)
    np.cumsum(values[graph.indices], out=sums[1:])
    return sums[graph.indptr[1:]] - sums[graph.indptr[:-1]]


def _together(graph):
    """The group of each column, and what groups touch: columns that touch each other and the same others are one.

    Several coefficients of each animal are such columns. A sum of random numbers over neighbours tells sets apart.
    """
    size = graph.shape[0]
    alone = np.arange(size)
    number = np.random.default_rng(0).integers(0, 1 << 63, size, dtype=np.uint64)
    mark = _sums(graph, number) + number
    order = np.argsort(mark, kind="stable")
    first = np.r_[True, mark[order][1:] != mark[order][:-1]][:size]
    run = np.cumsum(first) - 1
    within = alone - np.flatnonzero(first)[run]
    # A run of many is cut into groups, which then touch each other.
    first |= within % TOGETHER == 0
    if size - np.count_nonzero(first) < size / 8:
        return alone, graph
    group = np.empty(size, np.int32)
    group[order] = np.cumsum(first) - 1
    representatives = order[first]
    merged = sparse.csr_array((graph.data, group[graph.indices], graph.indptr), shape=(size, len(representatives)))
    return group, _without_loops(merged[representatives])


def _eliminate(graph, weight, dense):
    """Eliminate round by round every node whose degree is least among its neighbours' and near the least of all."""
    tie = np.random.default_rng(0).permutation(graph.shape[0])
    nodes, groups, lengths, later = np.arange(graph.shape[0]), [], [], []
    while (total := weight[nodes].sum()) > dense and graph.nnz <= LINKS:
        chosen = _independent(graph, weight[nodes], tie[nodes], total // SHARE)
        if not chosen.any():
            break
        rest = np.flatnonzero(~chosen)
        touched = graph[np.flatnonzero(chosen)][:, rest]
        length = np.diff(touched.indptr)
        # A link of a graph takes 5 bytes, and three graphs are held at a time.
        _require_memory(15 * (graph.nnz + (length.astype(float) ** 2).sum()), total)
        groups.append(nodes[chosen])
        lengths.append(length)
        nodes = nodes[rest]
        later.append(nodes[touched.indices])
        graph = _without_loops(graph[rest][:, rest] + touched.T.tocsr() @ touched)
    rounds = np.array([len(group) for group in groups], int)
    return _Elimination(_joined([*groups, nodes]), rounds, _joined(lengths), _joined(later))


def _independent(graph, weight, tie, longest):
    degree = _sums(graph, weight)
    near = degree <= min(2 * degree.min() + 2, longest)
    last = np.iinfo(np.int64).max
    key = np.where(near, degree * (tie.max() + 1) + tie, last)
    least = np.full(len(key), last)
    occupied = np.flatnonzero(np.diff(graph.indptr))
    if len(occupied):
        least[occupied] = np.minimum.reduceat(key[graph.indices], graph.indptr[occupied])
    return near & (key < least)


def _fronts(elimination, group, weight):
    """The fronts of the columns of all groups."""
    size, fronts = len(group), len(elimination.lengths)
    members = np.argsort(group, kind="stable")
    begin = np.cumsum(weight) - weight

    def columns(groups):
        return members[np.repeat(begin[groups], weight[groups]) + _ranges(weight[groups])]

    order = columns(elimination.groups)
    width = weight[elimination.groups[:fronts]]
    first = np.concatenate([[0], np.cumsum(width)])
    front = np.concatenate([np.repeat(np.arange(fronts), width), np.full(size - first[-1], fronts)])
    rank = np.empty(size, int)
    rank[order] = np.arange(size)
    of = np.repeat(np.arange(fronts), elimination.lengths)
    keys = np.sort(np.repeat(of, weight[elimination.later]) * size + rank[columns(elimination.later)])
    starts = np.searchsorted(keys, np.arange(fronts + 1) * size)
    parent = np.full(fronts, fronts)
    some = np.flatnonzero(np.diff(starts))
    parent[some] = front[keys[starts[some]] % size]
    return _Fronts(order, first, front, elimination.rounds, starts, keys, parent)


def _stages(fronts, pivots, padding):
    """The stages, where each front and the core begin, their widths, and how many numbers there are in all."""
    count = len(fronts.parent)
    length = np.diff(fronts.starts)
    width = _widths(fronts, length + pivots)
    stride = np.concatenate([width, [bucket(len(fronts.order) - fronts.first[-1])]])
    level = _levels(fronts, width)
    offset, total, stages = np.zeros(count + 1, int), 0, []
    place = fronts.places(np.repeat(fronts.parent, length), fronts.rows, pivots)
    for widths in _widths_of_stages(width):
        batches = [_batches(width, level, wide) for wide in widths]
        numbers = max(int(widths[-1]) ** 2, min(BATCH, max(needed for *_, needed in batches)))
        begin, start, kinds, slots = total, 0, [], []
        for kind, (wide, (members, there, _)) in enumerate(zip(widths, batches, strict=True)):
            batch = numbers // wide**2
            steps = -(-there // batch)
            slot = np.repeat((np.cumsum(steps) - steps) * batch, there) + _ranges(there)
            offset[members] = total + slot * wide**2
            slots.append((members, start + slot * wide))
            kinds += [kind] * steps.sum()
            start += steps.sum() * batch * wide
            total += steps.sum() * numbers
        stages.append((numbers, widths, np.array(kinds, int), start, slots))
        # Small numbers of batches are the least alike.
        total = begin + max(bucket(len(kinds)), 4) * numbers
    offset[-1] = total
    total += int(stride[-1]) ** 2
    _require_memory(64 * total, stride[-1])
    of_parent = offset[fronts.parent], stride[fronts.parent]
    return tuple(_stage(fronts, place, pivots, of_parent, padding, *each) for each in stages), offset, stride, total


def _widths_of_stages(width):
    """The widths of the fronts of each stage: small fronts share one, those that are larger than a batch another."""
    widths = np.unique(width)
    return [part for part in (widths[widths**2 <= NARROW], widths[widths**2 > NARROW]) if len(part)]


def _batches(width, level, wide):
    """The fronts of that width, how many of them there are on each level, and numbers that make a level one batch."""
    members = np.flatnonzero(width == wide)
    members = members[np.argsort(level[members], kind="stable")]
    there = np.bincount(level[members])
    return members, there, int(wide) ** 2 << int(there.max() - 1).bit_length()


def _widths(fronts, least):
    """The width of each front, a power of two: no less than its children's, so that these are eliminated before."""
    width = np.maximum(4, 1 << np.ceil(np.log2(least)).astype(int))
    for front in _rounds(fronts):
        np.maximum.at(width, fronts.parent[front], width[front])
    return width


def _levels(fronts, width):
    """How many fronts of the same width, each in the next one, come before a front."""
    level = np.zeros(len(width), int)
    for front in _rounds(fronts):
        front = front[width[fronts.parent[front]] == width[front]]
        np.maximum.at(level, fronts.parent[front], level[front] + 1)
    return level


def _rounds(fronts):
    """The fronts that have a parent, round by round."""
    for front in np.split(np.arange(len(fronts.parent)), np.cumsum(fronts.rounds)[:-1]):
        yield front[fronts.parent[front] < len(fronts.parent)]


def _stage(fronts, place, pivots, of_parent, padding, numbers, widths, kinds, rows, slots):
    """A stage of batches whose fronts have these kinds of widths; `slots` says where the rows of each front begin."""
    # Programs read as many rows of every batch as the narrowest fronts have.
    room = bucket(rows) + numbers // widths[0]
    columns = np.full(room, padding, np.int32)
    places, row = np.zeros(room, np.int32), np.zeros(room, np.int32)
    for members, begin in slots:
        pivot, length = np.diff(fronts.first)[members], np.diff(fronts.starts)[members]
        columns[np.repeat(begin, pivot) + _ranges(pivot)] = fronts.order[
            np.repeat(fronts.first[members], pivot) + _ranges(pivot)
        ]
        there, where = (
            np.repeat(first, length) + _ranges(length) for first in (fronts.starts[members], begin + pivots)
        )
        columns[where], places[where] = fronts.order[fronts.rows[there]], place[there]
        parent, stride = (np.repeat(of_front[members], length) for of_front in of_parent)
        row[where] = parent + place[there] * stride
    batches, length = max(bucket(len(kinds)), 4), numbers // widths[kinds]
    return Stage(
        columns,
        places,
        row,
        extended(np.cumsum(length) - length, batches, 0),
        extended(kinds, batches, 0),
        np.int32(len(kinds)),
        numbers,
        tuple(map(int, widths)),
    )


def _joined(arrays):
    return np.concatenate(arrays) if arrays else np.zeros(0, int)


def _ranges(lengths):
    """0, 1, ... for each length, one after the other."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _require_memory(needed, width):
    """Refuse, before memory is taken, what would need so many bytes and leave a dense core of that width."""
    if short := device.shortage(needed):
        raise ModelError(
            f"the mixed-model equations would need {short}: {width} of their columns touch nearly all others. Leave "
            "out a random effect that is crossed with the others, or merge its levels"
        )
