"""Grouping factors: labels become level codes, alone or in combination, now and for new data."""

import numbers
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.runtime.precision import FLOAT


@dataclass(frozen=True)
class Factor:
    """A grouping factor: of one source, or of the combinations of several."""

    name: str  # "Subject", or "batch:cask" for the combinations of two columns
    codes: np.ndarray  # (n,) int32, the level of each row; every level occurs
    levels: pd.Index  # labels in the order of the codes; "outer:inner" for combinations
    sources: tuple[str, ...]  # the columns or expressions that the labels come from
    tables: tuple[pd.Index, ...] = field(repr=False)  # the labels of each source by themselves
    # for each further source, the sorted keys ``outer * len(table) + inner`` of the combinations that occur
    cells: tuple[np.ndarray, ...] = field(default=(), repr=False)

    def match(self, columns: Sequence[pd.Series | np.ndarray]) -> np.ndarray:
        """Level of each new row, -1 where the model has not seen it, from the labels of each source."""
        codes = _lookup(self.sources[0], self.tables[0], columns[0])
        for stage, column in enumerate(columns[1:]):
            codes = self.extend(codes, stage, column)
        return codes.astype(np.int32)

    def extend(self, codes: np.ndarray, stage: int, column: pd.Series | np.ndarray) -> np.ndarray:
        """Codes of combinations from those of the outer factor and the labels of the next source, -1 if unknown."""
        table, cells = self.tables[stage + 1], self.cells[stage]
        inner = _lookup(self.sources[stage + 1], table, column)
        key = codes * np.int64(len(table)) + inner
        place = np.minimum(np.searchsorted(cells, key), len(cells) - 1)
        return np.where((codes >= 0) & (inner >= 0) & (cells[place] == key), place, -1)

    def decode(self) -> tuple[np.ndarray, ...]:
        """For each source, the code of every level in that source's table: arrays (L,)."""
        outer, parts = np.arange(len(self.levels)), []
        for table, cells in zip(self.tables[:0:-1], self.cells[::-1], strict=True):
            key = cells[outer]
            outer = key // len(table)
            parts.append(key % len(table))
        return (outer, *parts[::-1])


def factor(name: str, values: pd.Series | np.ndarray) -> Factor:
    """The grouping factor of one column without missing values."""
    codes, levels = _factorise(name, values)
    return Factor(name, codes, levels, (name,), (levels,))


def crossed(factors: Sequence[Factor], labelled: bool = True) -> Factor:
    """The factor of the combinations that occur of several, named by all of them."""
    return reduce(lambda outer, inner: cross(f"{outer.name}:{inner.name}", outer, inner, labelled), factors)


def cross(name: str, outer: Factor, inner: Factor, labelled: bool = True) -> Factor:
    """The factor of the combinations that occur of a factor and a further column, sorted by the former first.

    Levels that are not `labelled` are numbered: labels of many millions are most of what they would take.
    """
    width = np.int64(len(inner.levels))
    cells, codes = compress(outer.codes * width + inner.codes, len(outer.levels) * int(width))
    levels = pd.RangeIndex(len(cells))
    if labelled:
        pairs = zip(outer.levels.take(cells // width).tolist(), inner.levels.take(cells % width).tolist(), strict=True)
        levels = pd.Index([f"{a}:{b}" for a, b in pairs], dtype=object)
    sources, tables = outer.sources + inner.sources, outer.tables + inner.tables
    return Factor(name, codes, levels, sources, tables, (*outer.cells, cells))


def compress(keys: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct keys in order, and the rank of each row's key; keys are integers in 0..size-1."""
    if size <= 4 * len(keys) + 65536:
        rank = np.zeros(size, np.int32)
        rank[keys] = 1
        distinct = np.flatnonzero(rank)
        rank[distinct] = np.arange(len(distinct), dtype=np.int32)
        return distinct, rank[keys]
    codes, distinct = pd.factorize(keys, sort=True)
    return np.asarray(distinct), codes.astype(np.int32)


def label_kinds(labels: Iterable[Any]) -> dict[str, Any]:
    """What labels are, "text", "numbers", "truth values", or by the name of their type, each with its first label.

    Examples
    --------
    >>> from jmixed.formulas.factors import label_kinds
    >>> label_kinds([308, 309.0, "308"])
    {'numbers': 308, 'text': '308'}
    """
    kinds: dict[str, Any] = {}
    for label in labels:
        kinds.setdefault(_kind(label), label)
    return kinds


def _kind(label: Any) -> str:
    if isinstance(label, str):
        return "text"
    if isinstance(label, bool | np.bool_):
        return "truth values"
    return "numbers" if isinstance(label, numbers.Number | Decimal) else type(label).__name__


def plain_labels(values: pd.Series | pd.Index | np.ndarray) -> Any:
    """Labels without missing values as NumPy has them: whole numbers and truth values of pandas' own types."""
    dtype = values.dtype
    if isinstance(dtype, np.dtype) or not isinstance(values, pd.Series):
        return values
    if str(dtype).startswith("dictionary<"):
        return values.to_numpy(object)
    if pd.api.types.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        return values.to_numpy(dtype=bool)
    return values.to_numpy(np.uint64 if dtype.kind == "u" else np.int64) if dtype.kind in "iu" else values


def _refuse_rounded(name: str, values: pd.Series | np.ndarray | pd.Index) -> None:
    """Refuse identifiers that became floats, as pandas makes them of whole numbers beside missing values."""
    if values.dtype.kind != "f":
        return
    labels = np.asarray(values, None if isinstance(values.dtype, np.dtype) else FLOAT)
    # Where floats are further apart than one, neighbouring whole numbers are one and the same.
    large = labels[np.isfinite(labels) & (np.spacing(np.abs(labels)) > 1)]
    if len(large):
        raise DataError(
            f"the grouping factor {name!r} holds floats such as {large[0]:.0f}, where neighbouring whole numbers are "
            "one and the same, so that groups may have been put together: read the column as whole numbers or as text, "
            f"for example with dtype={{{name!r}: 'Int64'}}. If nothing was lost, give text, data[{name!r}].astype(str)"
        )


def _factorise(name: str, values: pd.Series | np.ndarray) -> tuple[np.ndarray, pd.Index]:
    values = plain_labels(values)
    _refuse_rounded(name, values)
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categorical = pd.Categorical(values)
        used, codes = compress(categorical.codes.astype(np.int64), len(categorical.categories))
        levels = categorical.categories.take(used)
        _refuse_rounded(name, levels)
        _require_one_kind(name, levels, values)
        return codes, levels
    if isinstance(dtype, np.dtype) and dtype.kind in "iu":
        numbers = np.asarray(values)
        low, high = int(numbers.min()), int(numbers.max())
        if high - low < 4 * len(numbers) + 65536:
            shifted = numbers - low if numbers.itemsize == 8 else numbers.astype(np.int64) - low
            used, codes = compress(shifted.astype(np.int64, copy=False), high - low + 1)
            return codes, pd.Index(used.astype(dtype) + np.array(low, dtype))
    try:
        codes, levels = pd.factorize(values, sort=True)
    except TypeError:
        kinds = sorted({type(value).__name__ for value in values})
        raise DataError(
            f"the grouping factor {name!r} mixes values that cannot be sorted ({', '.join(kinds)}); "
            f"convert it to one type, for example data[{name!r}].astype(str)"
        ) from None
    table = pd.Index(levels, tupleize_cols=False)
    _require_one_kind(name, table, values)
    return codes.astype(np.int32), table


def _require_one_kind(name: str, levels: pd.Index, values: pd.Series | np.ndarray) -> None:
    """Refuse labels that are text and numbers, as 308 and "308": what was read in parts is one group, not two."""
    if levels.dtype != object or pd.api.types.infer_dtype(levels) == "string" or len(mixed := label_kinds(levels)) < 2:
        return
    kinds = np.array([_kind(value) for value in values])
    rows = values.index if isinstance(values, pd.Series) else pd.RangeIndex(len(kinds))
    first = {kind: int(np.flatnonzero(kinds == kind)[0]) for kind in mixed}
    shown = " and ".join(f"{kind} ({np.asarray(values)[k]!r} in row {rows[k]!r})" for kind, k in first.items())
    raise DataError(
        f"the grouping factor {name!r} mixes {shown}; convert it to one type, for example data[{name!r}].astype(str)"
    )


def _lookup(name: str, table: pd.Index, values: pd.Series | np.ndarray) -> np.ndarray:
    """Position of each value in the table, -1 where it is not there."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = np.asarray(values)
    wanted = pd.Index(values, tupleize_cols=False)
    _refuse_rounded(name, wanted)
    places = table.get_indexer(wanted).astype(np.int64)
    if (places < 0).any():
        _refuse_other_kind(name, table, wanted[places < 0].dropna().unique())
    return places


def _refuse_other_kind(name: str, table: pd.Index, unknown: pd.Index) -> None:
    """Refuse labels that are unknown for their type only, as "300" where the model knows 300: no new groups."""
    kind = _kind(table[0])
    others = [label for label in unknown if _kind(label) != kind]
    known = {label: label for label in table.tolist()} if others else {}
    for label in others:
        for other in _other_spellings(label, kind):
            if other in known:
                raise DataError(
                    f"the grouping factor {name!r} has {_kind(label)} in the new data, {label!r}, but {kind} in the "
                    f"data that the model was fitted to, {known[other]!r}: convert the new column to the same type"
                )


def _other_spellings(label: Any, kind: str) -> list[Any]:
    """A label as it would be if it were of another kind."""
    if kind == "text":
        return [str(label), *([str(int(label))] if isinstance(label, float) and label.is_integer() else [])]
    if isinstance(label, str) and kind == "truth values":
        return [True] if label.lower() == "true" else [False] if label.lower() == "false" else []
    if kind not in ("numbers", "truth values"):
        return []
    number: Any = pd.to_numeric(label, errors="coerce") if isinstance(label, str) else label
    return [number == 1] if kind == "truth values" and number in (0, 1) else [number]
