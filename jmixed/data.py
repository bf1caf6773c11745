"""The pytrees that the likelihood takes: row arrays with their layout, and the cross-products made from them."""

from dataclasses import dataclass, field
from dataclasses import replace as _replace
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jmixed.errors import DataError
from jmixed.layout import Layout
from jmixed.memory import padded

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


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """What rows that stand for others do not tell: they have all cross-products of those, and a number of their own.

    Attributes
    ----------
    nobs : scalar
        Number of rows that they stand for.
    log_weights : scalar
        Sum of the log weights of those.
    """

    nobs: Array
    log_weights: Array


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
    totals : Totals or None
        When the rows stand for those of data that are not held in memory (`jmixed.from_batches`).

    Examples
    --------
    >>> import jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).design
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
    totals: Totals | None = None

    @property
    def nobs(self) -> int:
        """Number of rows of the data.

        Examples
        --------
        >>> model.design.nobs
        180
        """
        return self.y.shape[0] if self.totals is None else int(self.totals.nobs)

    def require_rows(self, what: str) -> None:
        """Refuse what takes the rows one by one when they stand for others.

        Parameters
        ----------
        what : str
            Who needs them, for the message.

        Raises
        ------
        DataError
            The rows stand for those of data that are not held in memory.

        Examples
        --------
        >>> model.design.require_rows("this")
        """
        if self.totals is not None:
            raise DataError(
                f"{what} needs the rows of the data, and from_batches keeps their cross-products only; use the design "
                "of a model made by mixedlm"
            )

    def replace(self, *, y=None, X=None, Z=None, weights=None, offset=None) -> "Design":
        """The same layout with other arrays in the rows' order. Works under jit, grad and vmap.

        Parameters
        ----------
        y, weights, offset : array (nobs,), optional
        X : array (nobs, k_fe), optional
        Z : dict of arrays (nobs, q), optional
            Replacements for some or all terms, by label.

        Returns
        -------
        Design

        Raises
        ------
        DataError
            When a shape or a label does not match the design, or values that can be seen are no finite numbers. Under
            jit, grad or vmap they cannot: a NaN ends as the outcome of the fit.

        Examples
        --------
        >>> float(model.design.replace(y=model.endog / 1000).y[0])
        0.24956
        """
        unknown = set(Z or {}) - set(self.labels)
        if unknown:
            raise DataError(f"design.replace: no random-effects term {sorted(unknown)}; the terms are {self.labels}")
        changes = {"y": y, "X": X, "weights": weights, "offset": offset}
        changes = {name: value for name, value in changes.items() if value is not None}
        for name, value in changes.items():
            _check(name, value, getattr(self, name))
        for label, value in (Z or {}).items():
            _check(f"Z[{label!r}]", value, self.Z[label])
        return _replace(self, **changes, Z={**self.Z, **(Z or {})})

    def rows(self, size: int | None = None) -> "Rows":
        """The arrays without names: what the compiled programs take.

        Parameters
        ----------
        size : int, optional
            Pad to this number of rows by rows of weight zero.

        Returns
        -------
        Rows

        Examples
        --------
        >>> model.design.rows(256).y.shape
        (256,)
        """
        columns = (self.y, self.X, tuple(self.Z[label] for label in self.labels), self.weights, self.offset)
        if size is not None:
            columns = jax.tree.map(lambda array: padded(array, size), columns)
        y, X, Z, weights, offset = columns
        return Rows(y, X, Z, weights, offset, self.index, self.layout, self.totals)


def _check(name, value, old):
    """Refuse another shape and, where values can be seen, those that are no numbers."""
    if np.shape(value) != np.shape(old):
        raise DataError(
            f"design.replace: {name} has shape {np.shape(value)}, but this design needs {np.shape(old)}: "
            "one entry per kept row, in the order of model.endog"
        )
    if isinstance(value, Tracer):
        return
    bad = ~np.isfinite(np.asarray(value))
    if np.any(bad):
        rows = np.flatnonzero(bad.reshape(len(bad), -1).any(1))
        raise DataError(
            f"design.replace: {name} is missing or infinite in {len(rows)} of {len(bad)} rows, the first of them row "
            f"{rows[0]}: give numbers, and leave a row out by a weight of zero"
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
    index, layout, totals
        As of a `Design`.
    """

    y: Array
    X: Array
    Z: tuple[Array, ...]
    weights: Array
    offset: Array
    index: Index
    layout: Layout = static()
    totals: Totals | None = None


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
