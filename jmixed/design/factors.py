"""Grouping factors: labels become level codes, alone or in combination, now and for new data."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jmixed.errors import DataError


@dataclass(frozen=True)
class Factor:
    """A grouping factor.

    Attributes
    ----------
    name : str
        "Subject", or "batch:cask" for the combinations of two columns.
    codes : array (n,) of int32
        Level of each row; every level occurs.
    levels : Index
        Labels in the order of the codes; "outer:inner" for combinations.
    sources : tuple of str
        The columns (or expressions) that the labels come from.
    tables : tuple of Index
        The labels of each source by themselves.
    cells : tuple of arrays
        For each further source, the sorted keys ``outer * len(table) + inner`` of the combinations that occur.
    """

    name: str
    codes: np.ndarray
    levels: pd.Index
    sources: tuple[str, ...]
    tables: tuple[pd.Index, ...] = field(repr=False)
    cells: tuple[np.ndarray, ...] = field(default=(), repr=False)

    def match(self, columns: Sequence[pd.Series | np.ndarray]) -> np.ndarray:
        """Codes of new rows.

        Parameters
        ----------
        columns : sequence of arrays (k,)
            The labels of the new rows, one array for each of `sources`.

        Returns
        -------
        array (k,) of int32
            The level of each row, -1 where the model has not seen it.
        """
        codes = _lookup(self.tables[0], columns[0])
        for stage, column in enumerate(columns[1:]):
            codes = self.extend(codes, stage, column)
        return codes.astype(np.int32)

    def extend(self, codes: np.ndarray, stage: int, column: pd.Series | np.ndarray) -> np.ndarray:
        """Codes of combinations from those of the outer factor and the labels of the next source, -1 if unknown."""
        table, cells = self.tables[stage + 1], self.cells[stage]
        inner = _lookup(table, column)
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
    """The grouping factor of one column without missing values.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.design.factors import factor
    >>> f = factor("g", np.array(["b", "a", "b"]))
    >>> f.codes, list(f.levels)
    (array([1, 0, 1], dtype=int32), ['a', 'b'])
    """
    codes, levels = _factorise(name, values)
    return Factor(name, codes, levels, (name,), (levels,))


def cross(name: str, outer: Factor, inner: Factor) -> Factor:
    """The factor of the combinations that occur of a factor and a further column, sorted by the former first."""
    width = np.int64(len(inner.levels))
    cells, codes = compress(outer.codes * width + inner.codes, len(outer.levels) * int(width))
    pairs = zip(outer.levels.take(cells // width).tolist(), inner.levels.take(cells % width).tolist(), strict=True)
    return Factor(
        name,
        codes,
        pd.Index([f"{a}:{b}" for a, b in pairs], dtype=object),
        outer.sources + inner.sources,
        outer.tables + inner.tables,
        (*outer.cells, cells),
    )


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


def _factorise(name: str, values: pd.Series | np.ndarray) -> tuple[np.ndarray, pd.Index]:
    dtype = values.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        categorical = pd.Categorical(values)
        used, codes = compress(categorical.codes.astype(np.int64), len(categorical.categories))
        return codes, categorical.categories.take(used)
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
    return codes.astype(np.int32), pd.Index(levels, tupleize_cols=False)


def _lookup(table: pd.Index, values: pd.Series | np.ndarray) -> np.ndarray:
    """Position of each value in the table, -1 where it is not there."""
    if isinstance(values.dtype, pd.CategoricalDtype):
        values = np.asarray(values)
    return table.get_indexer(pd.Index(values, tupleize_cols=False)).astype(np.int64)
