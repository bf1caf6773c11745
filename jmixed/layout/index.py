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

    Attributes
    ----------
    rows : int array (chunk, chunks)
        Row numbers; a number beyond the last row is padding.
    segments : int array (chunks,) or None
        The group of each chunk, ascending; None when chunk k is group k.
    size : int
        Number of groups, rounded up to a bucket size.
    """

    rows: Array
    segments: Array | None
    size: int = static()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Coupling:
    """Where the cross-products of two factors of which neither contains the other go in their stage's blocks.

    Attributes
    ----------
    grouping : Grouping
        Rows by co-occurring pair of levels.
    first, second : int arrays (pairs,)
        The level of either factor in each pair (padding: beyond the last level).
    factors : (int, int)
        The two factors; the first is eliminated first, or with the second.
    """

    grouping: Grouping
    first: Array
    second: Array
    factors: tuple[int, int] = static()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Links:
    """The couplings of leaves with columns of a crossed core that occur (`SPARSE` layouts).

    Attributes
    ----------
    source : int array (entries,)
        Where an entry stands among the cross-products of the pairs of levels, one factor of the core after another.
        Padding: beyond the last.
    leaf, column : int arrays (entries,)
        The leaf, ascending, and the column of the core. The last entry is padding.
    first : int array (entries,)
        Number of the entry's first pair, with itself, less the entry's own number: pair k of the entry e joins it with
        entry k - first[e]. Numbers may wrap around; their differences do not.
    left : int array (chunks, chunk)
        The left entry of every pair: each entry with itself and with those after it in its leaf, in the order of the
        left one's column, so that what is read and written is near what came before. Padding: the last entry.
    """

    source: Array
    leaf: Array
    column: Array
    first: Array
    left: Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Index:
    """Integer arrays that place rows and levels in the blocks of elimination.

    Attributes
    ----------
    groupings : tuple of Grouping
        One per factor: rows by level.
    couplings : tuple of Coupling
        One per pair of factors that are not nested.
    block, slot : tuples of int arrays (levels of the factor,)
        The block of its stage, and the slot in that block, of each level. Padding: beyond the last block.
    parents : tuple of tuple of int arrays (blocks of the stage,)
        ``parents[s][k]``: the block of stage s + 1 + k that holds each block of stage s.
    within : tuple of tuple of (int array or None)
        ``within[f][g]``: for f nested in g, the level of g that holds each level of f; else None.
    position : tuple of int arrays (levels of the factor,)
        The internal position of each level: levels of a nest stand in the order of the blocks that hold them.
    links : Links or None
        Couplings of a `SPARSE` layout.
    """

    groupings: tuple[Grouping, ...]
    couplings: tuple[Coupling, ...]
    block: tuple[Array, ...]
    slot: tuple[Array, ...]
    parents: tuple[tuple[Array, ...], ...]
    within: tuple[tuple[Array | None, ...], ...]
    position: tuple[Array, ...]
    links: Links | None = None
