"""Index arrays of a model: which rows belong to which group, and which levels occur together."""

from dataclasses import dataclass, field
from typing import Any

import jax

Array = Any


def static(**kwargs):
    """A dataclass field that is part of the tree's structure, not one of its arrays."""
    return field(metadata={"static": True}, **kwargs)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Grouping:
    """Rows gathered by group in chunks of equal length, so that sums over rows become sums over stacked arrays.

    A group of any size is a run of chunks: stacks are padded to a multiple of the chunk, never to the largest group.
    """

    rows: Array  # (chunk, chunks) row numbers; a number beyond the last row is padding
    segments: Array | None  # (chunks,) the group of each chunk, ascending; None when chunk k is group k
    size: int = static()  # number of groups, rounded up to a bucket size


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coupling:
    """Where the cross-products of two factors of which neither contains the other go in their stage's blocks."""

    grouping: Grouping  # rows by co-occurring pair of levels
    first: Array  # (pairs,) the level of the first factor in each pair (padding: beyond the last level)
    second: Array  # (pairs,) that of the second
    factors: tuple[int, int] = static()  # the first is eliminated first, or with the second


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Links:
    """The couplings of leaves with columns of a crossed core that occur (`SPARSE` layouts)."""

    # (entries,) where an entry stands among the cross-products of the pairs of levels, one factor of the core after
    # another (padding: beyond the last)
    source: Array
    leaf: Array  # (entries,) ascending
    column: Array  # (entries,) of the core; the last entry is padding
    # (entries,) number of the entry's first pair, with itself, less the entry's own number: pair k of the entry e joins
    # it with entry k - first[e]. Numbers may wrap around; their differences do not
    first: Array
    # (chunks, chunk) the left entry of every pair: each entry with itself and with those after it in its leaf, in the
    # order of the left one's column, so that what is read and written is near what came before (padding: the last
    # entry)
    left: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Index:
    """Integer arrays that place rows and levels in the blocks of elimination, and what levels have in common.

    Padding lies beyond the last block.
    """

    groupings: tuple[Grouping, ...]  # one per factor: rows by level
    couplings: tuple[Coupling, ...]  # one per pair of factors that are not nested
    block: tuple[Array, ...]  # (levels,) by factor, the block of its stage of each level
    slot: tuple[Array, ...]  # (levels,) by factor, the slot in that block
    # parents[s][k], (blocks,): the block of stage s + 1 + k that holds each block of stage s
    parents: tuple[tuple[Array, ...], ...]
    # within[f][g]: for f nested in g, the level of g that holds each level of f; else None
    within: tuple[tuple[Array | None, ...], ...]
    position: tuple[Array, ...]  # (levels,) by factor: levels of a nest stand in the order of the blocks that hold them
    links: Links | None = None  # of a `SPARSE` layout
    # (slots, slots) by factor of related levels, a root L of their known covariance K = L L'; else None
    relationships: tuple[Array | None, ...] = ()
    system: Any = None  # of an `EQUATIONS` layout, a `jmixed.layout.system.System`

    @property
    def has_related(self) -> bool:
        """Whether some factor's levels have a known covariance, and are not independent."""
        return bool(self.relationships) or self.system is not None

    def root(self, factor: int) -> Array | None:
        """The root of a factor's known covariance, where there is one."""
        return self.relationships[factor] if self.relationships else None
