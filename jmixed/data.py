"""The pytrees that the likelihood takes: row arrays with their layout, and the cross-products made from them."""

import os
from dataclasses import dataclass, field
from dataclasses import replace as _replace
from functools import partial
from typing import Any

import jax
import numpy as np

from jmixed.covariance import Structure
from jmixed.errors import DataError, ModelError

Array = Any


def static(**kwargs):
    """A dataclass field that is part of the tree's structure, not one of its arrays."""
    return field(metadata={"static": True}, **kwargs)


def bucket(size: int) -> int:
    """The size to which arrays are padded, so that data of similar size share a compiled program.

    Powers of two up to 64, where padding costs nothing; then four steps per power of two.
    """
    doubling = 1 << max(int(size) - 1, 0).bit_length()
    return doubling if size <= 64 else -(-size // (doubling // 8)) * (doubling // 8)


ALIGNMENT = 64
"""Bytes to which the memory of large arrays is aligned."""

DENSE, SPARSE = "dense", "sparse"
"""How the couplings of leaves with a crossed core are kept: all of them, or those that occur."""


@dataclass(frozen=True)
class Layout:
    """Everything about a model's arrays that is known when a program is compiled. Holds no names.

    Attributes
    ----------
    terms : tuple of Structure
        The random-effects terms, in the order of theta.
    factors : tuple of tuple of int
        For each grouping factor the terms that share it; their columns are merged.
    stages : tuple of tuple of (factor, slots)
        The order of elimination. A stage is a set of independent blocks; a block holds `slots` levels of each of its
        factors. A nested chain has stages of one factor with one slot; the last stage may be a core of several.
    blocks : tuple of int
        Number of blocks of each stage, rounded up to a bucket size.
    levels : tuple of int
        Number of levels of each factor, rounded up likewise.
    nested : tuple of tuple of bool
        ``nested[f][g]``: every level of factor f lies inside one level of factor g.
    crossed : str
        Empty when every block lies in one block of each later stage. Otherwise there are two stages, leaves and one
        block of all that they are crossed with, and this tells how their couplings are kept: `DENSE` or `SPARSE`.
    """

    terms: tuple[Structure, ...]
    factors: tuple[tuple[int, ...], ...]
    stages: tuple[tuple[tuple[int, int], ...], ...]
    blocks: tuple[int, ...]
    levels: tuple[int, ...]
    nested: tuple[tuple[bool, ...], ...]
    crossed: str = ""

    def factor_width(self, factor: int) -> int:
        """Number of columns of one level of a factor."""
        return sum(self.terms[t].q for t in self.factors[factor])

    def stage_width(self, stage: int) -> int:
        """Number of columns of one block of a stage."""
        return sum(slots * self.factor_width(f) for f, slots in self.stages[stage])

    def stage_of(self, factor: int) -> int:
        """The stage in which a factor is eliminated."""
        return next(s for s, members in enumerate(self.stages) if any(f == factor for f, _ in members))

    def offset_in_stage(self, factor: int) -> int:
        """First column of a factor's slots inside its stage's block."""
        offset = 0
        for f, slots in self.stages[self.stage_of(factor)]:
            if f == factor:
                return offset
            offset += slots * self.factor_width(f)
        raise KeyError(factor)

    def precedes(self, first: int, second: int) -> bool:
        """Whether a factor is eliminated before another, or in one stage with it and listed first."""
        return self._rank(first) < self._rank(second)

    def _rank(self, factor: int) -> tuple[int, int]:
        return self.stage_of(factor), self.offset_in_stage(factor)

    def fit_bytes(self, fixed: int) -> int:
        """About the memory that a fit takes with so many fixed effects: the largest tables of derivatives."""
        if self.crossed:
            return self._crossed_bytes(fixed)
        total, active, widths = 0, 0, [self.stage_width(s) for s in range(len(self.stages))]
        for s, (width, blocks) in enumerate(zip(widths, self.blocks, strict=True)):
            border = sum(widths[s + 1 :]) + fixed + 1
            active += sum(self.terms[t].size for f, _ in self.stages[s] for t in self.factors[f])
            tables = (1 + active) ** 2
            explained = border**2 * tables * (1 if self.is_summed(s) else blocks)
            total += 8 * (blocks * width * (3 * border * (1 + active) + width * tables) + explained)
        return total

    def _crossed_bytes(self, fixed: int) -> int:
        """Matrices of the core's size, ten and two more for each direction of the leaves, and what else grows."""
        (leaf, core), leaves = (self.stage_width(s) for s in (0, 1)), self.blocks[0]
        active = sum(self.terms[t].size for f, _ in self.stages[0] for t in self.factors[f])
        couplings = leaf * core * leaves * (3 + active) if self.crossed == DENSE else 0
        tables = leaves * leaf * (leaf + fixed + 1) * (1 + active) ** 2
        return 8 * (core**2 * (10 + 2 * active) + couplings + tables)

    def is_summed(self, stage: int) -> bool:
        """Whether what the stage explains goes to one block of each later stage: its sum over blocks is one product."""
        return all(count == 1 for count in self.blocks[stage + 1 :])

    def is_chain(self, stage: int) -> bool:
        """Whether a block of the stage is one level of one factor."""
        return len(self.stages[stage]) == 1 and self.stages[stage][0][1] == 1


def require_memory(needed: int, width: int) -> None:
    """Refuse a fit that would not fit into memory, before any of it is taken.

    Parameters
    ----------
    needed : int
        Bytes.
    width : int
        Columns of the largest block that the factors leave.
    """
    if not hasattr(os, "sysconf"):
        return
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > 0.8 * physical:
        raise ModelError(
            f"this fit would need about {needed / 1e9:.0f} GB, and the machine has {physical / 1e9:.0f}: its crossed "
            f"factors leave a dense block of {width} columns. Drop the crossed factor with the fewer rows per level, "
            "or merge its levels"
        )


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
    counts : array (factors,)
        True number of levels of each factor.
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
    counts: Array
    links: Links | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Design:
    """The arrays of a mixed model, row by row. A pytree: it passes through jit, grad and vmap.

    Attributes
    ----------
    y : array (nobs,)
        Response.
    X : array (nobs, k_fe)
        Fixed-effects columns.
    Z : dict of arrays (nobs, q)
        Columns of each random-effects term, by the term's label.
    weights : array (nobs,)
        Prior weights w: the residual variance is sigma^2 / w. A row of weight zero counts as left out.
    offset : array (nobs,)
        Known part of the linear predictor.
    index : Index
        Where rows and levels belong.
    labels : tuple of str
        The terms' labels in the order of theta; static.
    counts : tuple of int
        True number of levels of each factor; static.
    layout : Layout
        Shapes and the order of elimination; static.

    Examples
    --------
    >>> import jmixed as jm
    >>> data = jm.datasets.load("sleepstudy")
    >>> design = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).design
    >>> design.y.shape, design.X.shape, {k: v.shape for k, v in design.Z.items()}
    ((180,), (180, 2), {'Days | Subject': (180, 2)})
    """

    y: Array
    X: Array
    Z: dict[str, Array]
    weights: Array
    offset: Array
    index: Index
    labels: tuple[str, ...] = static()
    counts: tuple[int, ...] = static()
    layout: Layout = static()

    def replace(self, *, y=None, X=None, Z=None, weights=None, offset=None) -> "Design":
        """The same layout with other arrays in the rows' order. Works under jit, grad and vmap.

        Parameters
        ----------
        y, weights, offset : array (nobs,), optional
        X : array (nobs, k_fe), optional
        Z : dict of arrays (nobs, q), optional
            Replacements for some or all terms, by label.

        Raises
        ------
        DataError
            When a shape or a label does not match the design.

        Examples
        --------
        >>> import jmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> design = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).design
        >>> design.replace(y=2 * design.y).y[0] / design.y[0]
        np.float64(2.0)
        """
        unknown = set(Z or {}) - set(self.labels)
        if unknown:
            raise DataError(f"design.replace: no random-effects term {sorted(unknown)}; the terms are {self.labels}")
        changes = {"y": y, "X": X, "weights": weights, "offset": offset}
        changes = {name: value for name, value in changes.items() if value is not None}
        for name, value in changes.items():
            _check_shape(name, value, getattr(self, name))
        for label, value in (Z or {}).items():
            _check_shape(f"Z[{label!r}]", value, self.Z[label])
        return _replace(self, **changes, Z={**self.Z, **(Z or {})})

    def rows(self, size: int | None = None) -> "Rows":
        """The arrays without names; with a size, padded to it by rows of weight zero (numpy arrays only)."""
        columns = (self.y, self.X, tuple(self.Z[label] for label in self.labels), self.weights, self.offset)
        if size is not None:
            columns = jax.tree.map(partial(_padded, size), columns)
        y, X, Z, weights, offset = columns
        return Rows(y, X, Z, weights, offset, self.index, self.layout)


def _padded(size, array):
    """A copy with rows of zeros up to a size, aligned as JAX wants it in order to take it without another copy."""
    shape = (size, *array.shape[1:])
    buffer = np.empty(int(np.prod(shape)) * array.itemsize + ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % ALIGNMENT
    padded = buffer[start : start + buffer.size - ALIGNMENT].view(array.dtype).reshape(shape)
    padded[: len(array)] = array
    padded[len(array) :] = 0
    return padded


def _check_shape(name, value, old):
    if np.shape(value) != np.shape(old):
        raise DataError(
            f"design.replace: {name} has shape {np.shape(value)}, but this design needs {np.shape(old)}: "
            "one entry per kept row, in the order of model.endog"
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rows:
    """Row arrays without names, padded to a bucket size: what the compiled programs take.

    Attributes
    ----------
    y, weights, offset : arrays (rows,)
        A row of weight zero is not there: padding, or a missing response.
    X : array (rows, p)
    Z : tuple of arrays (rows, q), one per term
    """

    y: Array
    X: Array
    Z: tuple[Array, ...]
    weights: Array
    offset: Array
    index: Index
    layout: Layout = static()


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Weighted cross-products of preconditioned columns: all that the likelihood needs of the data.

    With ``X~ = X R^-1``, ``y~ = y - offset - X beta0`` and ``Z~ = Z T`` (exact reparameterisations, which keep digits):

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
    index : Index
        Where rows and levels belong.
    repeats : array (blocks,), or None
        How often the log-determinant of each block of the only stage counts; None: once (see `likelihood.collapse`).
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
    index: Index
    layout: Layout = static()
    repeats: Array | None = None
