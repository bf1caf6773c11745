"""From named columns to stacked arrays: merge terms by factor, choose the order of elimination, index the rows.

This is the border between the two sides: terms with names come in, a `Design` of plain arrays goes out.
"""

from collections.abc import Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from jmixed.covariance.registry import structure_of
from jmixed.covariance.structure import Structure
from jmixed.errors import ModelError
from jmixed.layout.design import Design, Totals
from jmixed.layout.index import Coupling, Grouping, Index, Links
from jmixed.layout.layout import DENSE, EQUATIONS, SPARSE, UNPLACED, Layout, require_memory
from jmixed.layout.system import system_of
from jmixed.residual.independent import Independent
from jmixed.residual.registry import VISITS, residual_structure
from jmixed.residual.series import Series, series_of
from jmixed.residual.structure import ResidualStructure
from jmixed.runtime import device
from jmixed.runtime.memory import bucket, extended
from jmixed.runtime.precision import FLOAT

BEYOND = np.iinfo(np.int32).max
"""An index beyond every array: padding."""

PAIRS = 2**20
"""Pairs of entries that are summed at a time."""

DENSITY = 75
"""Default of `stack`'s `density`, measured on a CPU."""

MANY = 2**14
"""Rows from which on a counting sort pays."""

CHUNKS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16)
"""Rows per chunk; few values, so that few programs are compiled."""


class TermRows(Protocol):
    """What is read of a random-effects term; the fields are those of `RandomTerm` on the side of tables."""

    @property
    def label(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def codes(self) -> np.ndarray: ...
    @property
    def levels(self) -> Sized: ...
    @property
    def Z(self) -> np.ndarray: ...
    @property
    def structure(self) -> str: ...
    @property
    def intercept(self) -> int | None: ...
    @property
    def root(self) -> np.ndarray | None: ...
    @property
    def precision(self) -> Any: ...


class ResidualRows(Protocol):
    """What is read of residuals with parameters; the fields are those of `ResidualTerm` on the side of tables."""

    @property
    def structure(self) -> str: ...
    @property
    def positions(self) -> int: ...
    @property
    def columns(self) -> np.ndarray: ...
    @property
    def by_position(self) -> int: ...
    @property
    def units(self) -> np.ndarray: ...
    @property
    def origins(self) -> np.ndarray | float: ...
    @property
    def codes(self) -> np.ndarray: ...
    @property
    def count(self) -> int: ...
    @property
    def places(self) -> np.ndarray: ...


class ModelRows(Protocol):
    """What is read of a model; the fields are those of `ModelData` on the side of tables."""

    @property
    def y(self) -> np.ndarray: ...
    @property
    def X(self) -> np.ndarray: ...
    @property
    def weights(self) -> np.ndarray: ...
    @property
    def offset(self) -> np.ndarray: ...
    @property
    def terms(self) -> Sequence[TermRows]: ...
    @property
    def represents(self) -> np.ndarray | None: ...
    @property
    def log_weights(self) -> float: ...
    @property
    def residual(self) -> ResidualRows | None: ...


def structures_of(data: ModelRows) -> tuple[Structure, ...]:
    """The structures of the covariances of the terms."""
    return tuple(structure_of(term.structure, term.Z.shape[1], term.intercept) for term in data.terms)


def stack(data: ModelRows, density: float = DENSITY) -> Design:
    """Compile the rows of a model into the arrays of the likelihood.

    `density` decides how couplings are kept: the products of a dense array that take the time of one sparse pair.
    """
    structures = structures_of(data)
    factors = _merge(data.terms)
    codes = [data.terms[members[0]].codes for members in factors]
    counts = [len(data.terms[members[0]].levels) for members in factors]
    within = _nesting(codes, counts)
    if any(term.precision is not None for term in data.terms):
        return _equations(data, structures, factors, codes, counts, within)
    widths = [sum(structures[t].q for t in members) for members in factors]
    roots = [data.terms[members[0]].root for members in factors]
    chain, core, component, crossed = _order(codes, counts, widths, within, [root is not None for root in roots])
    block, slot, slots = _place_core(codes, counts, core, component, crossed)
    position = _sort_chain(codes, counts, chain, component)
    layout = Layout(
        terms=structures,
        factors=tuple(factors),
        stages=(*(((f, 1),) for f in chain), *((tuple(zip(core, slots, strict=True)),) if core else ())),
        blocks=tuple(bucket(counts[f]) for f in chain) + ((bucket(int(component.max()) + 1),) if core else ()),
        levels=tuple(bucket(count) for count in counts),
        nested=tuple(tuple(w is not None for w in row) for row in within),
        crossed=DENSE if crossed else "",
        residual=Independent() if data.residual is None else structure_of_residuals(data.residual),
    )
    width, fixed = max(layout.stage_width(s) for s in range(len(layout.stages))) if core else 0, data.X.shape[1]
    # What the core takes is known before the couplings are: refuse it before they are listed.
    require_memory(replace(layout, crossed=SPARSE if crossed else "").fit_bytes(fixed), width)
    codes = [_relabel(level, position[f]) for f, level in enumerate(codes)]
    within = _relabel_nesting(within, position)
    index = _index(layout, codes, counts, (block, slot, component), position, within)
    if any(root is not None for root in roots):
        slots = dict(layout.stages[-1])
        roots = [None if root is None else _square(root, slots[f]) for f, root in enumerate(roots)]
        index = replace(index, relationships=tuple(roots))
    elif crossed and (links := _links(layout, index, density)) is not None:
        layout, index = replace(layout, crossed=SPARSE), replace(index, links=links)
    require_memory(layout.fit_bytes(fixed), width)
    return _design(data, layout, index, factors, counts)


def unplaced(data: ModelRows) -> Design:
    """The rows and terms of a model whose levels have no places in blocks: nothing is eliminated from it."""
    factors = _merge(data.terms)
    counts = [len(data.terms[members[0]].levels) for members in factors]
    structures = structures_of(data)
    layout = Layout(structures, tuple(factors), (), (), (), (), UNPLACED)
    return _design(data, layout, Index((), (), (), (), (), (), ()), factors, counts)


@dataclass(frozen=True)
class Crossing:
    """How the factors of a model cross.

    Attributes
    ----------
    factors : tuple of tuple of int
        For each factor the terms that share it.
    reason : str
        Why the iterative way is not for the model; empty where it is.
    width : int
        Columns of the one dense block that the exact way would have; zero where it has none.
    shortage : str or None
        What the exact way would need and what memory there is, where that does not suffice.
    """

    factors: tuple[tuple[int, ...], ...]
    reason: str = ""
    width: int = 0
    shortage: str | None = None


def crossing(data: ModelRows, least: int = 0) -> Crossing:
    """How the factors cross: known without listing what they have in common.

    Where all factors but the largest have fewer than `least` columns together, they are not looked at any closer.
    """
    factors = tuple(_merge(data.terms))
    if data.residual is not None:
        return Crossing(factors, "its residuals have parameters (residual=, dispersion=)")
    if any(term.root is not None or term.precision is not None for term in data.terms):
        return Crossing(factors, "its levels are related (relationship=)")
    codes = [data.terms[members[0]].codes for members in factors]
    counts = [len(data.terms[members[0]].levels) for members in factors]
    widths = [sum(data.terms[t].Z.shape[1] for t in members) for members in factors]
    sizes = sorted((count * width for count, width in zip(counts, widths, strict=True)), reverse=True)
    nested = "it has no crossed factors, and its levels are eliminated one after another without any large matrix"
    if len(factors) < 2:
        return Crossing(factors, nested)
    if sum(sizes[1:]) < least:
        return Crossing(factors)
    within = _nesting(codes, counts)
    by_size = sorted(range(len(counts)), key=lambda f: -counts[f])
    if all(within[f][g] is not None for k, g in enumerate(by_size) for f in by_size[:k]):
        return Crossing(factors, nested)
    chain, core, component, crossed = _order(codes, counts, widths, within, [False] * len(factors))
    if crossed:
        width, (leaf, *_) = sum(counts[f] * widths[f] for f in core), chain
        blocks, leaves = 1, counts[leaf] * widths[leaf] ** 2
    else:
        width = sum(widths[f] * int(_slots(codes[f], counts[f], component).max() + 1) for f in core)
        blocks, leaves = int(component.max()) + 1, 0
    # Ten matrices of the block's size, and what goes with the leaves: see `Layout.fit_bytes`.
    needed = 8 * (12 * blocks * width**2 + 10 * leaves * (data.X.shape[1] + 2))
    return Crossing(factors, "", width, device.shortage(needed))


def _equations(data, structures, factors, codes, counts, within):
    """The design of a model whose coefficients are eliminated together, those of levels without rows among them."""
    if data.residual is not None:
        raise ModelError(
            "residual= and dispersion= are there for relationships of a few thousand levels, which are dense, and this "
            "one is a sparse inverse of more: leave them out, or give relationship= of the levels with rows",
            page="relationships.md#large-pedigrees",
        )
    precisions = [data.terms[members[0]].precision for members in factors]
    sizes = [count if matrix is None else matrix.shape[0] for count, matrix in zip(counts, precisions, strict=True)]
    layout = Layout(
        terms=structures,
        factors=tuple(factors),
        stages=tuple(((f, 1),) for f in range(len(factors))),
        blocks=tuple(map(bucket, sizes)),
        levels=tuple(map(bucket, sizes)),
        nested=tuple(tuple(w is not None for w in row) for row in within),
        crossed=EQUATIONS,
    )
    require_memory(layout.fit_bytes(data.X.shape[1]), 0)
    index = Index(
        groupings=tuple(_group(code, size) for code, size in zip(codes, sizes, strict=True)),
        couplings=tuple(_couplings(layout, codes, counts, within)),
        block=tuple(extended(np.arange(size), bucket(size), BEYOND) for size in sizes),
        slot=tuple(np.zeros(bucket(size), np.int32) for size in sizes),
        parents=(),
        within=_extended_nesting(within, layout),
        position=tuple(extended(np.arange(size), bucket(size), BEYOND) for size in sizes),
    )
    system = system_of(layout, index.couplings, index.within, precisions)
    return _design(data, layout, replace(index, system=system), factors, counts)


def _design(data, layout, index, factors, counts):
    return Design(
        y=data.y,
        X=data.X,
        Z={t.label: t.Z for t in data.terms},
        weights=data.weights,
        offset=data.offset,
        index=index,
        labels=tuple(t.label for t in data.terms),
        counts=tuple(counts),
        layout=layout,
        totals=_totals(data),
        levels=tuple(data.terms[members[0]].levels for members in factors),
        series=_series(data.residual),
    )


def structure_of_residuals(residual: ResidualRows) -> ResidualStructure:
    """The structure that a term of the residuals stands for."""
    return residual_structure(residual.structure, residual.columns.shape[1], residual.positions, residual.by_position)


def _series(residual: ResidualRows | None) -> Series | None:
    """The places of rows, with columns of the dispersion that have a unit of their own."""
    if residual is None:
        return None
    columns = (residual.columns - residual.origins) / residual.units
    visits = residual.positions if residual.structure in VISITS else None
    return series_of(residual.codes, residual.places, residual.count, columns, visits)


def _totals(data: ModelRows) -> Totals | None:
    """What the rows do not tell when they stand for others."""
    if data.represents is None:
        return None
    return Totals(np.asarray(data.represents.sum(), FLOAT), np.asarray(data.log_weights))


def _square(root, size):
    """A root of so many levels, with zeros for those that are padding."""
    padded = np.zeros((size, size), FLOAT)
    padded[: len(root), : len(root)] = root
    return padded


def _merge(terms):
    """Terms by grouping factor: those with equal codes, and one relationship of the levels, share one."""
    factors = []
    for t, term in enumerate(terms):
        for members in factors:
            other = terms[members[0]]
            related = term.root is other.root and term.precision is other.precision
            if related and (term.codes is other.codes or np.array_equal(term.codes, other.codes)):
                members.append(t)
                break
        else:
            factors.append([t])
    return [tuple(members) for members in factors]


def _nesting(codes, counts):
    """within[f][g]: the level of g that holds each level of f, or None when some level of f meets several."""
    within: list[list[np.ndarray | None]] = [[None] * len(codes) for _ in codes]
    for f, inner in enumerate(codes):
        for g, outer in enumerate(codes):
            if f != g and counts[f] >= counts[g]:
                holder = np.zeros(counts[f], outer.dtype)
                holder[inner] = outer
                if np.array_equal(holder[inner], outer):
                    within[f][g] = holder
    return within


def _order(codes, counts, widths, within, related):
    """Factors eliminated one after another, each block diagonal; the core of those that are not; is it one block?

    Levels that are related stand in one block, with all factors but one: the largest of independent levels goes first.

    The factor with most levels goes first. The next may follow as a stage of its own when every level eliminated before
    touches one of its levels only, because then nothing couples its levels. What remains falls into components that do
    not touch. When eliminating them apart, after all of the chain, takes no less work than one leaf factor and one
    block of all the rest, the latter is chosen.
    """
    remaining = sorted(range(len(counts)), key=lambda f: -counts[f])
    if any(related):
        apart = [f for f in remaining if not related[f]]
        leaf = sorted(apart, key=lambda f: -counts[f] * widths[f])[:1]
        return leaf, [f for f in remaining if f not in leaf], np.zeros(len(codes[0]), np.int32), bool(leaf)
    chain = []
    while remaining and all(within[e][remaining[0]] is not None for e in chain):
        chain.append(remaining.pop(0))
    if not remaining:
        return chain, [], np.zeros(0, np.int32), False
    component = _components(codes, counts, chain, remaining)
    leaf, *rest = sorted(range(len(counts)), key=lambda f: -counts[f] * widths[f])
    together = sum(counts[f] * widths[f] for f in rest) ** 3
    width = sum(widths[f] * int(_slots(codes[f], counts[f], component).max() + 1) for f in remaining)
    apart = bucket(int(component.max()) + 1) * width**3 + sum(counts[f] * widths[f] * width**2 for f in chain[1:])
    if together <= apart:
        return [leaf], rest, np.zeros_like(component), True
    return chain, remaining, component, False


def _components(codes, counts, chain, core):
    """The connected component that each row belongs to, when the levels of core and chain factors are the nodes."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    first, *others = (*core, *chain)
    starts = np.cumsum([counts[f] for f in (first, *others)]).tolist()
    label = np.arange(starts[-1], dtype=np.int32)
    for begin in range(0, len(codes[first]), EDGES):
        rows = slice(begin, begin + EDGES)
        for f, start in zip(others, starts, strict=False):
            one, other = label[codes[first][rows]], label[codes[f][rows] + start]
            if (apart := one != other).any():
                edges = coo_array(
                    (np.ones(apart.sum(), bool), (one[apart], other[apart])), shape=(label.max() + 1,) * 2
                )
                label = connected_components(edges, directed=False)[1][label]
    of_level = label[: counts[first]]
    names = np.unique(of_level[np.bincount(codes[first], minlength=counts[first]) > 0])
    return np.searchsorted(names, of_level).astype(np.int32)[codes[first]]


EDGES = 1 << 20
"""Rows whose levels are joined at a time: after the first of them hardly any join what was apart."""


def _slots(codes, count, component):
    """The place of every level of a factor among those of its component."""
    block = np.zeros(count, np.int32)
    block[codes] = component
    order = np.argsort(block, kind="stable")
    starts = np.searchsorted(block[order], np.arange(component.max() + 1))
    slot = np.zeros(count, np.int32)
    slot[order] = np.arange(count) - starts[block[order]]
    return slot


def _place_core(codes, counts, core, component, crossed):
    """The block and the slot in it of every level of the core, and the number of slots of each factor."""
    block, slot, slots = {}, {}, []
    for f in core:
        block[f] = np.zeros(counts[f], np.int32)
        block[f][codes[f]] = component
        slot[f] = _slots(codes[f], counts[f], component)
        size = int(slot[f].max()) + 1
        slots.append(_slot_bucket(size, 64 if crossed else 16))
    return block, slot, tuple(slots)


def _slot_bucket(size, steps):
    """As `bucket`, but finer: the cost of a core grows with the cube of its slots."""
    step = max((1 << max(size - 1, 0).bit_length()) // steps, 1)
    return -(-size // step) * step


def _sort_chain(codes, counts, chain, component):
    """Internal position of every level: levels of a stage stand in the order of the blocks that hold them."""
    position = [np.arange(count, dtype=np.int32) for count in counts]
    holder = component if len(component) else None
    for f in reversed(chain):
        if holder is not None:
            parent = np.zeros(counts[f], np.int32)
            parent[codes[f]] = holder
            position[f][np.argsort(parent, kind="stable")] = np.arange(counts[f], dtype=np.int32)
        holder = _relabel(codes[f], position[f])
    return position


def _relabel(codes, position):
    """The new codes of levels; as they are, without going through all rows, where these have kept their places."""
    return codes if np.array_equal(position, np.arange(len(position))) else position[codes]


def _relabel_nesting(within, position):
    """`_nesting` of the new codes."""
    return [
        [None if w is None else _relabel(w, position[g])[np.argsort(position[f])] for g, w in enumerate(row)]
        for f, row in enumerate(within)
    ]


def _extended_nesting(within, layout):
    """`_nesting` with levels that are padding."""
    return tuple(
        tuple(None if w is None else extended(w, layout.levels[f], BEYOND) for w in row) for f, row in enumerate(within)
    )


def _index(layout, codes, counts, placed, position, within):
    block, slot, component = placed
    simple = [f for f in range(len(codes)) if f not in block]
    for f in simple:
        block[f], slot[f] = np.arange(counts[f], dtype=np.int32), np.zeros(counts[f], np.int32)
    return Index(
        groupings=tuple(_group(code, count) for code, count in zip(codes, counts, strict=True)),
        couplings=tuple(_couplings(layout, codes, counts, within)),
        block=tuple(extended(block[f], layout.levels[f], BEYOND) for f in range(len(codes))),
        slot=tuple(extended(slot[f], layout.levels[f], 0) for f in range(len(codes))),
        parents=_parents(layout, codes, component),
        within=_extended_nesting(within, layout),
        position=tuple(extended(position[f], layout.levels[f], BEYOND) for f in range(len(codes))),
    )


def _group(codes, count):
    """Gather rows by group into chunks of equal length."""
    sizes = np.bincount(codes, minlength=count)
    largest = int(sizes.max())
    fitting = [c for c in CHUNKS if c >= largest]
    # For larger groups by their mean size alone: the chunk that pads least flips between near ties, and data of nearly
    # the same size would not share a program.
    chunk = fitting[0] if fitting else (8 if len(codes) > 4 * count else 2)
    chunks = -(-sizes // chunk)
    one_each = fitting and bool(np.all(chunks == 1))
    size = bucket(count)
    total = size if one_each else bucket(int(chunks.sum()))
    # Where every chunk begins and its group ends, among rows in the order of their groups.
    ends = np.cumsum(sizes, dtype=np.int32)
    first = np.cumsum(chunks) - chunks
    begin = np.repeat(ends - sizes.astype(np.int32) - (first * chunk).astype(np.int32), chunks)
    begin += np.arange(len(begin), dtype=np.int32) * np.int32(chunk)
    place = begin + np.arange(chunk, dtype=np.int32)[:, None]
    real = place < np.repeat(ends, chunks)
    if not np.all(codes[1:] >= codes[:-1]):
        place = _order_by(codes, count)[np.where(real, place, 0)]
    rows = np.full((chunk, total), BEYOND, np.int32)
    rows[:, : len(begin)] = np.where(real, place, BEYOND)
    segments = None if one_each else extended(np.repeat(np.arange(count), chunks), total, size - 1)
    return Grouping(rows=rows, segments=segments, size=size)


def _order_by(codes, count):
    """The rows in the order of their groups, those of a group in their own order."""
    if len(codes) < MANY:
        return np.argsort(codes, kind="stable").astype(np.int32)
    from scipy.sparse import coo_array

    # To bring the entries of a sparse matrix in the order of its rows is a counting sort, in one pass.
    rows = np.arange(len(codes), dtype=np.int32)
    return coo_array((np.ones(len(codes), bool), (codes, rows)), shape=(count, len(codes))).tocsr().indices


def _pairs(first, second, count, other_count):
    """The pairs of codes that occur: which one each row has, and its two codes."""
    order = _order_by(second, other_count)
    order = order[_order_by(first[order], count)]
    first, second = first[order], second[order]
    begins = np.append(True, (first[1:] != first[:-1]) | (second[1:] != second[:-1]))
    pair = np.empty(len(order), np.int32)
    pair[order] = np.cumsum(begins, dtype=np.int32) - 1
    return pair, first[begins], second[begins]


def _couplings(layout, codes, counts, within):
    """Pairs of levels that occur together, for every pair of factors of which the first does not lie in the second."""
    for f in range(len(codes)):
        for g in range(len(codes)):
            if f == g or not layout.precedes(f, g) or within[f][g] is not None:
                continue
            pair, first, second = _pairs(codes[f], codes[g], counts[f], counts[g])
            size = bucket(len(first))
            yield Coupling(
                grouping=_group(pair, len(first)),
                first=extended(first, size, BEYOND),
                second=extended(second, size, BEYOND),
                factors=(f, g),
            )


def _links(layout, index, density):
    """The entries that couple leaves and core, and all pairs of them in one leaf; None where dense is faster."""
    leaf = layout.stages[0][0][0]
    pairs_with = {c.factors[1]: (c.first, c.second) for c in index.couplings if c.factors[0] == leaf}
    leaves, columns = [], []
    for g, _ in layout.stages[1]:
        within = index.within[leaf][g]
        first, second = pairs_with[g] if within is None else (np.arange(len(within), dtype=np.int32), within)
        first = np.where(second == BEYOND, BEYOND, first)
        width = layout.factor_width(g)
        slot = index.slot[g][np.where(second == BEYOND, 0, second)]
        place = layout.offset_in_stage(g) + slot[None] * width + np.arange(width, dtype=np.int32)[:, None]
        leaves.append(np.broadcast_to(first, place.shape).ravel())
        columns.append(place.ravel())
    leaves, columns = np.concatenate(leaves), np.concatenate(columns)
    source = np.flatnonzero(leaves != BEYOND)
    total = layout.stage_width(1)
    source = source[np.argsort(leaves[source].astype(np.int64) * total + columns[source], kind="stable")]
    sizes = np.bincount(leaves[source], minlength=layout.blocks[0])
    pairs = int(np.sum(sizes * (sizes + 1) // 2))
    if layout.blocks[0] * total**2 <= density * pairs:
        return None
    # Twice four bytes a pair: on the host and on the device.
    require_memory(replace(layout, crossed=SPARSE).fit_bytes(0) + 8 * pairs, total)
    entries = bucket(len(source) + 1)
    first, left = _entry_pairs(columns[source], np.cumsum(sizes)[leaves[source]], pairs, entries)
    return Links(
        source=extended(source, entries, BEYOND),
        leaf=extended(leaves[source], entries, layout.blocks[0] - 1),
        column=extended(columns[source], entries, total - 1),
        first=first,
        left=left,
    )


def _entry_pairs(columns, ends, pairs, entries):
    """Each entry with itself and those after it in its leaf, by the first one's column: see `Links`."""
    order = np.argsort(columns, kind="stable").astype(np.int32)
    partners = ends[order] - order
    chunks = bucket(-(-pairs // PAIRS))
    left = np.full((chunks, bucket(-(-pairs // chunks))), entries - 1, np.int32)
    np.copyto(left.ravel()[:pairs], np.repeat(order, partners))
    first = np.zeros(entries, np.int64)
    first[order] = np.cumsum(partners) - partners - order
    first[-1] = pairs - (entries - 1)
    return first.astype(np.int32), left


def _parents(layout, codes, component):
    """For every stage, the block of each later stage that holds each of its blocks."""
    blocks = [component if not layout.is_chain(s) else codes[layout.stages[s][0][0]] for s in range(len(layout.stages))]
    parents = []
    for s, of_stage in enumerate(blocks):
        later = []
        for t in range(s + 1, len(blocks)):
            parent = np.zeros(int(of_stage.max()) + 1, np.int32)
            parent[of_stage] = blocks[t]
            later.append(extended(parent, layout.blocks[s], layout.blocks[t] - 1))
        parents.append(tuple(later))
    return tuple(parents)
