"""The pytrees that the likelihood takes: row arrays with their layout, and the cross-products made from them."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from dataclasses import replace as _replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jmixed.errors import DataError
from jmixed.layout.index import Array, Index, static
from jmixed.layout.layout import Layout
from jmixed.residual.series import Series, without_patterns
from jmixed.residual.series import padded as padded_series
from jmixed.runtime.arguments import checked
from jmixed.runtime.memory import bucket, padded


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Totals:
    """What rows that stand for others do not tell: they have all cross-products of those, and a number of their own."""

    nobs: Array  # number of rows that they stand for
    log_weights: Array  # sum of the log weights of those


class Names:
    """What people call the terms of a design, and how much of its arrays is no padding: no part of a program.

    In a pytree the names of one design equal those of any other, so that designs of one shape share a program. A
    program cannot bring names along, but a number: every tree that has names has their `key` among its arrays, and
    whoever asks for a name when the program has run finds it by that. Once names have been read while JAX traces, what
    was traced may depend on them: from then on they equal the same names only.
    """

    def __init__(self, labels, counts, rows):
        self.labels, self.counts, self.rows = tuple(labels), tuple(map(int, counts)), int(rows)
        self.key = np.asarray(_number_of(self.stated), np.int32)
        self._read = self._shared = False

    @property
    def stated(self):
        """All of them, as one tuple."""
        return self.labels, self.counts, self.rows

    def __eq__(self, other):
        if not isinstance(other, Names):
            return NotImplemented
        same = self.stated == other.stated
        if self._read or other._read:
            # What is found by the one has been read, too, whenever it is found by the other.
            self._read, other._read = self._read or same, other._read or same
            return same
        if not same:
            self._shared = other._shared = True
        return True

    def __hash__(self):
        return hash(Names)

    def __reduce__(self):
        return Names, self.stated

    def __repr__(self):
        return f"Names{self.stated}"

    def known_by(self, key) -> "Names":
        """The names that belong to a key: these, while it is traced; else those that it is the number of.

        A batch of keys has one set of labels, or is refused, as is a key that has been computed with.
        """
        if key is self.key:
            return self
        if isinstance(key, Tracer):
            self._read = True
            return self
        whole = isinstance(key, np.ndarray | np.generic | jax.Array) and np.issubdtype(key.dtype, np.integer)
        stated = {_stated.get(int(number)) for number in np.unique(np.asarray(key))} if whole else {None}
        if None in stated:
            if self._shared:
                raise DataError(
                    "the names of these terms are lost: the arrays went through a program that serves other models, "
                    "too, and were then computed with as a whole; compute with the fields one by one"
                )
            return self
        labels, counts, rows = zip(*stated, strict=True)
        if len(set(labels)) > 1:
            raise DataError(f"a batch of models of different terms, {sorted(set(labels))}, has no names for its terms")
        return Names(labels[0], np.max(counts, axis=0), max(rows))


_stated: dict[int, Any] = {}
"""All names of this process by their key."""


def _number_of(stated) -> int:
    """A number for names, the same in every process unless two of them collide."""
    number = zlib.crc32(repr(stated).encode()) >> 2
    while _stated.setdefault(number, stated) != stated:
        number = (number + 1) % (1 << 30)
    return number


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResponseRows:
    """What a response has beside its value, row by row, in a model with a family of responses."""

    trials: Array  # (nobs,) numbers of trials; ones where a response has none
    extras: tuple[Array, ...]  # (nobs, k) columns of each further predictor of the family, in its order

    def padded(self, size: int | None) -> "ResponseRows":
        """With rows behind, up to a size."""
        extras = tuple(_extend(columns, size, -2) for columns in self.extras)
        return ResponseRows(_extend(self.trials, size, -1), extras)


@checked
@dataclass(frozen=True)
class Design:
    """The arrays of a mixed model, row by row. A pytree: it passes through jit, grad and vmap.

    As a pytree it has its arrays padded, by rows of weight zero, to one of a few sizes, and neither labels nor true
    numbers of rows and levels belong to its structure: a function under jit that takes a design is compiled once for
    all designs of about one size. If it asks for the rows or the names, ``design.y`` or ``design.Z``, it gets them as
    they are, and is compiled for each.

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
        The terms' labels in the order of theta.
    counts : tuple of int
        True number of levels of each factor.
    layout : Layout
        Shapes and the order of elimination; static.
    totals : Totals or None
        When the rows stand for those of data that are not held in memory (`jmixed.from_batches`).
    levels : tuple of sequences or None
        Names of each factor's levels, where they are known: trees do not take them along.
    series : Series of arrays (nobs, ...), or None
        The rows' places in the series of a residual structure.
    response : ResponseRows or None
        Trials, and columns of further predictors, where ``layout.family`` is the family of the response. Weights are
        then as the family has them, and a row of weight zero counts as left out all the same.

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
    labels: tuple[str, ...]
    counts: tuple[int, ...]
    layout: Layout
    totals: Totals | None = None
    levels: tuple[Any, ...] | None = field(default=None, repr=False, compare=False)
    series: Series | None = field(default=None, repr=False)
    response: ResponseRows | None = field(default=None, repr=False)

    def __getattr__(self, name):
        """What a design that comes out of a pytree has been made of: without padding, by name."""
        if name not in _FIELDS or "_rows" not in self.__dict__:
            raise AttributeError(f"a Design has no attribute {name!r}")
        rows = self.__dict__["_rows"]
        if name in ("index", "layout", "totals", "series", "response"):
            return getattr(rows, name)
        known = self.__dict__["_names"].known_by(self.__dict__["_key"])
        if name in ("labels", "counts"):
            return getattr(known, name)
        if name == "Z":
            return {label: _cut(Z, known.rows, -2) for label, Z in zip(known.labels, rows.Z, strict=True)}
        return _cut(getattr(rows, name), known.rows, -2 if name == "X" else -1)

    def __getstate__(self):
        return {key: value for key, value in self.__dict__.items() if "_rows" in self.__dict__ or key[0] != "_"}

    def padded_rows(self) -> "Rows":
        """The arrays without names, padded to a bucket of their number; what a pytree is made of."""
        if (rows := self.__dict__.get("_rows")) is not None:
            return rows
        return self.rows(bucket(np.shape(self.y)[-1]) if np.ndim(self.y) else None)

    @property
    def nobs(self) -> int:
        """Number of rows of the data."""
        return self.y.shape[-1] if self.totals is None else int(self.totals.nobs)

    def require_rows(self, what: str) -> None:
        """Refuse by a DataError `what` takes the rows one by one, when they stand for others."""
        if self.totals is not None:
            raise DataError(
                f"{what} needs the rows of the data, and from_batches keeps their cross-products only; use the design "
                "of a model made by mixedlm"
            )

    def replace(
        self,
        *,
        y: Array | None = None,
        X: Array | None = None,
        Z: Mapping[str, Array] | None = None,
        weights: Array | None = None,
        offset: Array | None = None,
    ) -> "Design":
        """The same layout with other arrays in the rows' order. Works under jit, grad and vmap.

        Parameters
        ----------
        y, weights, offset : array (nobs,)
        X : array (nobs, k_fe)
        Z : dict of arrays (nobs, q)
            Replacements for some or all terms, by label.

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
        series = self.series if weights is None else without_patterns(self.series)
        return _replace(self, **changes, Z={**self.Z, **(Z or {})}, series=series)

    def rows(self, size: int | None = None, columns: int | None = None) -> "Rows":
        """The arrays without names, what the compiled programs take, padded to `size` rows by some of weight zero.

        `columns` pads X to that many columns, by some of zeros.
        """
        Z = tuple(_extend(self.Z[label], size, -2) for label in self.labels)
        y, weights, offset = (_extend(array, size, -1) for array in (self.y, self.weights, self.offset))
        series = None if self.series is None else padded_series(self.series, size)
        response = None if self.response is None else self.response.padded(size)
        X, beside = _extend(self.X, size, -2), (self.index, self.layout, self.totals, series, response)
        if columns is None:
            return Rows(y, X, Z, weights, offset, *beside)
        padding = np.asarray(columns - X.shape[1], self.y.dtype)
        return Rows(y, _extend(X, columns, -1), Z, weights, offset, *beside, padding)


_FIELDS = frozenset(part.name for part in fields(Design)) - {"levels"}


def without_coefficients(design: Design, beta: Array, free: Array) -> Design:
    """The design with the columns of coefficients that are not free moved into the offset, at their values in beta."""
    return _replace(design, X=design.X[:, free], offset=design.offset + design.X[:, ~free] @ beta[~free])


def with_family(design: Design, family, trials: Array, columns: Mapping[str, Array], quadrature: int = 1) -> Design:
    """The design of a response with a family, which has `columns` (n, k) for some of its further predictors by name.

    Of the others the columns are ones.
    """
    ones = np.ones((np.shape(design.y)[-1], 1), np.asarray(design.y).dtype)
    extras = tuple(columns.get(name, ones) for name in family.extras)
    layout = _replace(design.layout, family=family, quadrature=quadrature)
    return _replace(design, layout=layout, response=ResponseRows(trials, extras))


def names_of(design: Design) -> tuple[Names, Any]:
    """The names of a design, and their key, which may be traced."""
    attributes = vars(design)
    if "_names" not in attributes:
        attributes["_names"] = Names(design.labels, design.counts, np.shape(design.y)[-1])
    return attributes["_names"], attributes.get("_key", attributes["_names"].key)


def _flatten(design):
    names, key = names_of(design)
    return (design.padded_rows(), key), names


def _flatten_with_keys(design):
    children, names = _flatten(design)
    return tuple(zip(map(jax.tree_util.GetAttrKey, ("rows", "names")), children, strict=True)), names


def _unflatten(names, children):
    """A design that takes its padding off when it is asked for an array."""
    design = object.__new__(Design)
    vars(design).update(_rows=children[0], _names=names, _key=children[1])
    return design


jax.tree_util.register_pytree_with_keys(Design, _flatten_with_keys, _unflatten, _flatten)


def _extend(array, size, axis):
    """An array with zeros behind it along an axis, up to a size; what is no array stays as it is."""
    if size is None or np.ndim(array) < -axis:
        return array
    if isinstance(array, np.ndarray) and array.ndim == -axis:
        return padded(array, size)
    if array.shape[axis] == size:
        return array
    shape = list(array.shape)
    if isinstance(array, np.ndarray):
        shape[axis] = size
        whole = np.zeros(shape, array.dtype)
        whole[tuple(map(slice, array.shape))] = array
        return whole
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, size - shape[axis])
    return jnp.pad(array, widths)


def _cut(array, size, axis):
    """An array without what is behind that size along an axis; what is no array stays as it is."""
    if np.ndim(array) < -axis or np.shape(array)[axis] == size:
        return array
    return array[..., :size] if axis == -1 else array[..., :size, :]


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
    series : Series of arrays (rows, ...), or None
    response : ResponseRows of arrays (rows, ...), or None
    padding : scalar, or None
        How many columns of X, the last ones, are not there; None: all are.
    """

    y: Array
    X: Array
    Z: tuple[Array, ...]
    weights: Array
    offset: Array
    index: Index
    layout: Layout = static()
    totals: Totals | None = None
    series: Any = None
    response: ResponseRows | None = None
    padding: Array | None = None


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Effects:
    """Random effects of all terms, under numbers in a pytree and by name for people."""

    arrays: tuple[Array, ...]  # (levels, q) by term, padded to a bucket of levels
    key: Array  # of the names, see `Names`
    names: Names = static()
    layout: Layout = static()

    def by_label(self) -> dict[str, Array]:
        """The effects of the true levels, by the term's label."""
        known = self.names.known_by(self.key)
        counts = {t: n for n, members in zip(known.counts, self.layout.factors, strict=True) for t in members}
        return {label: _cut(self.arrays[t], counts[t], -2) for t, label in enumerate(known.labels)}
