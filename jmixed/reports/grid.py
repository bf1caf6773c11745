"""The reference grid of a model: all combinations of its factors' levels, with its numbers at their means."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.evaluate import known_factors
from jmixed.formulas.frame import column
from jmixed.formulas.marks import names_in
from jmixed.formulas.newdata import FixedColumns, fixed_columns
from jmixed.reports.fitted import Fitted

KEPT = 2
"""A number with so many different values is taken at each of them, as R's emmeans does; of more, the mean is taken."""
MOST = 200_000
"""Rows of the largest grid."""


@dataclass(frozen=True)
class Axis:
    """One predictor of a grid.

    Attributes
    ----------
    name : str
    values : Series
        What it takes, of the type that it has in the data.
    observed : int array (n,) or None
        For each row of the model which of the values it has, -1 for none; None for a number that is not kept.
    numeric : bool
        Whether it is a number, and not one that is used as a category.
    """

    name: str
    values: pd.Series
    observed: np.ndarray | None
    numeric: bool = False

    @property
    def labels(self) -> list:
        """The values as plain objects."""
        return self.values.tolist()


@dataclass(frozen=True)
class Grid:
    """All combinations of the values of the predictors: k rows, of which the first axis varies fastest.

    Attributes
    ----------
    fitted : Fitted
    axes : tuple of Axis
    codes : int array (k, axes)
    nests : dict of str to tuple of str
        The factors inside which a factor's levels have a meaning.
    notes : tuple of str
        What a reader must know.
    """

    fitted: Fitted
    axes: tuple[Axis, ...]
    codes: np.ndarray
    nests: dict[str, tuple[str, ...]]
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The predictors."""
        return [axis.name for axis in self.axes]

    def place(self, name: str) -> int:
        """The position of a predictor."""
        return self.names.index(name)

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The rows, with a column for each predictor."""
        columns = {
            axis.name: axis.values.take(self.codes[:, k]).reset_index(drop=True) for k, axis in enumerate(self.axes)
        }
        return pd.DataFrame(columns, index=range(len(self.codes)))

    @cached_property
    def fixed(self) -> FixedColumns:
        """The columns of the fixed part."""
        return self._columns(self.frame)

    def _columns(self, frame: pd.DataFrame) -> FixedColumns:
        spec = self.fitted.spec
        if spec.offset_source != "":
            return fixed_columns(spec, frame)
        # New rows cannot have an offset that came as an array: its mean is taken.
        columns = fixed_columns(replace(spec, offset_source=None), frame)
        return replace(columns, offset=columns.offset + np.mean(spec.offset))

    @cached_property
    def counts(self) -> np.ndarray:
        """How many rows of the data each combination of levels has, array (k,): without weights, as in emmeans."""
        kept = [k for k, axis in enumerate(self.axes) if axis.observed is not None]
        n = len(self.fitted.spec.y)
        rows, cells = np.zeros(n, np.int64), np.zeros(len(self.codes), np.int64)
        there = np.ones(n, bool)
        for k in kept:
            observed = np.asarray(self.axes[k].observed)
            there &= observed >= 0
            rows = rows * len(self.axes[k].values) + np.maximum(observed, 0)
            cells = cells * len(self.axes[k].values) + self.codes[:, k]
        sums = np.zeros(int(cells.max(initial=0)) + 1)
        there &= rows < len(sums)
        np.add.at(sums, rows[there], 1.0)
        return sums[cells]

    def with_column(self, name: str, values: np.ndarray) -> FixedColumns:
        """The fixed part with other numbers in one column."""
        return self._columns(self.frame.assign(**{name: values}))

    def of_offset(self) -> list[str]:
        """What is said of the values at which the columns of an offset are held."""
        spec = self.fitted.spec
        assert spec.recipe is not None
        names = spec.recipe.columns(spec.recipe.offsets)
        names = list(dict.fromkeys([*names, *([spec.offset_source] if spec.offset_source else [])]))
        held = [axis for axis in self.axes if axis.name in names and axis.numeric and len(axis.values) == 1]
        values = [f"{axis.name} = {float(axis.values.iloc[0]):.4g}" for axis in held]
        return [f"The offset is that of {', '.join(values)}."] if values else []


def reference_grid(fitted: Fitted, at: Mapping[str, Any] | None, what: str, every: bool = False) -> Grid:
    """The grid of a model, with the values that `at` gives in the place of levels and means.

    With `every` it has the predictors of random effects and of an inflation of zeros as well.
    """
    spec = fitted.spec
    fitted.need_data(what)
    if spec.recipe is None or spec.frame is None:
        raise DataError(f"{what}: the model was made of arrays, which know no factors: state it by a formula")
    if at is not None and not isinstance(at, Mapping):
        raise DataError(f"{what}: at is {at!r}; give a mapping of predictors to values, at={{'x': [1, 2]}}")
    parts = ["rhs", *spec.recipe.offsets]
    if every:
        parts += [term.rebuild.part for term in spec.terms if term.rebuild is not None and term.rebuild.part]
        parts += [part for part in ("zero", "dispersion") if part in spec.recipe.specs]
    names = spec.recipe.columns(parts)
    if spec.offset_source:
        names = list(dict.fromkeys([*names, spec.offset_source]))
    at = dict(at or {})
    if unknown := [name for name in at if name not in names]:
        raise DataError(f"{what}: at names {unknown[0]!r}, which is no predictor of the model; these are {names}")
    coded = _coded(fitted)
    notes: list[str] = []
    axes = [_axis(column(spec.frame, name), name, name in coded, at.get(name), notes) for name in names]
    sizes = [len(axis.values) for axis in axes]
    if np.prod(sizes, dtype=float) > MOST:
        shape = " x ".join(f"{axis.name} ({len(axis.values)})" for axis in axes if len(axis.values) > 1)
        raise ModelError(
            f"{what}: the reference grid would have {int(np.prod(sizes, dtype=float)):,} rows, {shape}; hold some of "
            "them with at="
        )
    codes = _combinations(sizes)
    grid = Grid(fitted, tuple(axes), codes, {}, ())
    nests = _nests(grid)
    if nests:
        shown = ", ".join(f"{name} in {' and '.join(inside)}" for name, inside in nests.items())
        notes.append(f"Nested factors: {shown}. Means are taken over the combinations that the data have.")
    if spec.offset_source == "" and spec.offset.any():
        notes.append(f"The offset, given as an array, is taken at its mean, {np.mean(spec.offset):.4g}.")
    return Grid(fitted, tuple(axes), codes, nests, tuple(notes))


def _coded(fitted: Fitted) -> set[str]:
    """Columns of numbers that the fixed part uses as categories, C(x)."""
    recipe = fitted.spec.recipe
    assert recipe is not None
    names = set()
    for factor, (kind, _) in known_factors(recipe.specs["rhs"]).items():
        if kind == "categorical" and factor.expr.startswith("C("):
            names |= {recipe.aliases.get(name, name) for name, called in names_in(factor, factor.expr) if not called}
    return names


def _axis(values_of: pd.Series, name: str, coded: bool, given: Any, notes: list[str]) -> Axis:
    """What a predictor takes in the grid."""
    numeric = pd.api.types.is_numeric_dtype(values_of) and not pd.api.types.is_bool_dtype(values_of)
    distinct = values_of.drop_duplicates()
    if numeric and not coded:
        numbers = np.sort(distinct.to_numpy(dtype=float))
        kept = len(numbers) <= KEPT
        values = numbers if kept else np.array([float(np.mean(values_of.to_numpy(dtype=float)))])
        if given is not None:
            values = _numbers(given, name)
            outside = values[(values < numbers[0]) | (values > numbers[-1])]
            if len(outside):
                notes.append(
                    f"{name} = {', '.join(f'{value:g}' for value in outside)} lies outside the data "
                    f"({numbers[0]:g} to {numbers[-1]:g})."
                )
        places = pd.Index(values).get_indexer(pd.Index(values_of.to_numpy(dtype=float))) if kept else None
        whole = values_of.dtype.kind in "iu" and bool(np.all(values == np.round(values)))
        return Axis(name, pd.Series(values.astype(np.int64) if whole else values, name=name), places, True)
    codes, labels = pd.factorize(values_of, sort=True)
    if isinstance(values_of.dtype, pd.CategoricalDtype):
        order = [label for label in values_of.cat.categories if label in set(labels)]
    else:
        order = list(labels)
    if given is None:
        wanted = order
    else:
        wanted = list(dict.fromkeys([given] if isinstance(given, str) or np.ndim(given) == 0 else [*given]))
        absent = [label for label in wanted if label not in order]
        if absent or not wanted:
            raise DataError(f"at: {name!r} has no level {absent[0] if absent else given!r}; its levels are {order}")
    place = {label: int(np.argmax(codes == k)) for k, label in enumerate(labels)}
    values = values_of.iloc[[place[label] for label in wanted]].reset_index(drop=True)
    rank = {label: k for k, label in enumerate(wanted)}
    observed = np.array([rank.get(label, -1) for label in labels] + [-1])[codes]
    return Axis(name, values, observed)


def _numbers(given: Any, name: str) -> np.ndarray:
    try:
        values = np.atleast_1d(np.asarray(given, float))
    except (TypeError, ValueError):
        raise DataError(f"at: {name!r} holds numbers, and {given!r} is none, nor a list of them") from None
    if values.ndim != 1 or not len(values) or not np.all(np.isfinite(values)):
        raise DataError(f"at: give a number for {name!r}, or a list of them; {given!r} is neither")
    return np.array(list(dict.fromkeys(values.tolist())))


def _nests(grid: Grid) -> dict[str, tuple[str, ...]]:
    """Factors that are nested in others: each level is with one level of those, or the formula says so.

    As emmeans finds them: a level occurs with a single level of another factor; or a factor without a main effect
    stands in terms beside factors whose own margin is not in the formula, as b in ``a + a:b``.
    """
    axes = [(k, axis) for k, axis in enumerate(grid.axes) if axis.observed is not None and len(axis.values) > 1]
    there = grid.codes[grid.counts > 0]
    nests: dict[str, tuple[str, ...]] = {}
    for k, axis in axes:
        inside = []
        for j, other in axes:
            if j == k or axis.name in nests.get(other.name, ()):
                continue
            pairs = np.unique(there[:, [k, j]], axis=0)
            if len(pairs) == len(np.unique(pairs[:, 0])):
                inside.append(other.name)
        if inside:
            nests[axis.name] = tuple(inside)
    names = {axis.name for _, axis in axes}
    for name, inside in _stated(grid.fitted, names).items():
        nests[name] = tuple(dict.fromkeys([*nests.get(name, ()), *inside]))
    for name in list(nests):
        deep = dict.fromkeys([*nests[name], *(up for outer in nests[name] for up in nests.get(outer, ()))])
        nests[name] = tuple(outer for outer in deep if outer != name)
    return {
        name: inside
        for name, inside in nests.items()
        if inside and not any(name in nests.get(outer, ()) for outer in inside)
    }


def _stated(fitted: Fitted, names: set[str]) -> dict[str, tuple[str, ...]]:
    """Nesting that the terms of the formula state, by factor."""
    recipe = fitted.spec.recipe
    assert recipe is not None
    terms = []
    for term in recipe.specs["rhs"].formula:
        columns = {
            recipe.aliases.get(name, name)
            for factor in term.factors
            if factor.eval_method.value != "literal"
            for name, called in names_in(factor, factor.expr)
            if not called
        }
        terms.append(frozenset(columns))
    stated: dict[str, tuple[str, ...]] = {}
    for name in sorted(names):
        if frozenset([name]) in terms:
            continue
        inside = [
            other
            for term in terms
            if name in term and (term - {name}) in terms
            for other in sorted(term - {name})
            if other in names and (term - {other}) not in terms
        ]
        if inside:
            stated[name] = tuple(dict.fromkeys(inside))
    return stated


def _combinations(sizes: Sequence[int]) -> np.ndarray:
    """Codes of the combinations of factors with so many levels; the first varies fastest."""
    return np.indices(sizes[::-1]).reshape(len(sizes), -1)[::-1].T if sizes else np.zeros((1, 0), np.int64)


def cells(grid: Grid, names: Sequence[str], weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Means over a grid: codes (m, names) of the combinations of some predictors, and weights (m, k) of its rows.

    The first name varies fastest. A mean whose rows have no data at all, where that counts, has weights of NaN.
    """
    places = [grid.place(name) for name in names]
    sizes = [len(grid.axes[k].values) for k in places]
    combinations = _combinations(sizes)
    member = np.all(grid.codes[None, :, places] == combinations[:, None, :], axis=2)
    others = [k for k in range(len(grid.axes)) if k not in places]
    nested = set(grid.nests) | {outer for inside in grid.nests.values() for outer in inside}
    if nested:
        exists = _exists(grid, sorted(nested))
        member &= exists[None]
        some = member.any(axis=1)
        combinations, member = combinations[some], member[some]
    w = member * _row_weights(grid, member, others, weights)
    total = w.sum(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return combinations, np.where(total > 0, w / total, np.nan)


def _exists(grid: Grid, names: Sequence[str]) -> np.ndarray:
    """Which rows of the grid have a combination of these factors that the data have."""
    places = [grid.place(name) for name in names]
    keys, inverse = np.unique(grid.codes[:, places], axis=0, return_inverse=True)
    sums = np.zeros(len(keys))
    np.add.at(sums, inverse.ravel(), grid.counts)
    return sums[inverse.ravel()] > 0


def _row_weights(grid: Grid, member: np.ndarray, others: Sequence[int], weights: str) -> np.ndarray:
    """What each row of the grid counts in each mean, array (m, k) or (1, k), before division by the sum."""
    if weights == "cells":
        return grid.counts[None]
    if weights == "flat":
        return (grid.counts > 0).astype(float)[None]
    if weights == "proportional":
        return _margin(grid, others)[None]
    if weights == "outer":
        return np.prod([np.ones(len(grid.codes)), *(_margin(grid, [k]) for k in others)], axis=0)[None]
    return _equal(grid, member, others)


def _margin(grid: Grid, places: Sequence[int]) -> np.ndarray:
    """For each row of the grid how many rows of data have its values of some predictors."""
    _, inverse = np.unique(grid.codes[:, list(places)], axis=0, return_inverse=True)
    sums = np.bincount(inverse.ravel(), grid.counts)
    return sums[inverse.ravel()]


def _equal(grid: Grid, member: np.ndarray, others: Sequence[int]) -> np.ndarray:
    """Equal weights; of nested factors equal ones inside each level of those that hold them, and of these."""
    inner = [k for k in others if grid.axes[k].name in grid.nests]
    if not inner:
        return np.ones((1, len(grid.codes)))
    outer = [k for k in range(len(grid.axes)) if k not in inner]
    _, inverse = np.unique(grid.codes[:, outer], axis=0, return_inverse=True)
    inverse = inverse.ravel()
    out = np.zeros(member.shape)
    for row, there in enumerate(member):
        size = np.bincount(inverse[there], minlength=int(inverse.max()) + 1)
        out[row, there] = 1 / size[inverse[there]]
    return out
