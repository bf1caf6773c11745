"""pandas' columns, indexes and tables as arrays and plain values, and back: with their types and labels."""

import datetime
from collections.abc import Callable, Collection
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jmixed.errors import DataError


class Otherwise(NamedTuple):
    """What is stored, and what in its place if it cannot be."""

    value: Any
    instead: Any


class Partly(NamedTuple):
    """A table of which some columns are needed; others are left out if they cannot be stored."""

    frame: pd.DataFrame
    needed: Collection[str]


def unstorable(value: Any) -> DataError:
    """The error for a value that is neither array, nor table, nor plain."""
    return DataError(
        f"save: the result holds {value!r:.80}, of the type {type(value).__module__}.{type(value).__qualname__}, and a "
        "file holds numbers, text, dates and arrays of them only. Convert it before the fit, labels for example by "
        "data['group'] = data['group'].astype(str); or use pickle.dumps(result)"
    )


# Arrays of objects: each label once, and which of them stands where.


def objects_apart(array: np.ndarray) -> dict[str, Any]:
    """An array of objects: each text once, and which of them stands where."""
    places: dict[Any, int] = {}
    labels, codes = [], np.empty(array.size, np.int32)
    for row, label in enumerate(array.ravel().tolist()):
        # Equal is not the same for others: 1 is True, and a time is one of another zone.
        code = places.setdefault(label if type(label) is str else id(label), len(labels))
        labels += [label] if code == len(labels) else []
        codes[row] = code
    return {"labels": labels, "codes": codes.reshape(array.shape)}


def objects_together(labels: list, codes: np.ndarray) -> np.ndarray:
    table = np.empty(len(labels), object)
    for code, label in enumerate(labels):  # At once, NumPy would look into labels that are tuples.
        table[code] = label
    return table[codes]


# Columns of pandas' own types.


def column_apart(array: pd.api.extensions.ExtensionArray) -> dict[str, Any]:
    """An extension array: what it is, and its parts."""
    dtype: Any = array.dtype
    for way, (kinds, apart, _) in COLUMNS.items():
        if isinstance(dtype, kinds):
            return {"is": way, "parts": apart(array, dtype)}
    raise unstorable(array)


def column_together(**stored: Any) -> Any:
    return COLUMNS[stored["is"]].together(**stored["parts"])


class _Column(NamedTuple):
    kinds: Any
    apart: Callable[[Any, Any], dict[str, Any]]
    together: Callable[..., Any]


def _text(array: Any, dtype: pd.StringDtype) -> dict[str, Any]:
    storage = "pyarrow" if dtype.storage == "pyarrow_numpy" else dtype.storage
    return {"storage": storage, "nan": dtype.na_value is not pd.NA, "text": array.to_numpy(object, na_value=None)}


def _as_text(storage: str, nan: bool, text: np.ndarray) -> Any:
    missing = (np.nan,) if nan else ()
    try:
        return pd.array(text, dtype=pd.StringDtype(storage, *missing))
    except ImportError:  # It was kept by PyArrow, and there is none.
        return pd.array(text, dtype=pd.StringDtype("python", *missing))
    except TypeError:  # pandas before 2.3 has objects where later ones have text with NaN.
        return np.where(pd.isna(text), np.nan, text)


def _masked(array: Any, dtype: Any) -> dict[str, Any]:
    return {"values": array.to_numpy(dtype.numpy_dtype, na_value=0), "missing": np.asarray(array.isna())}


def _as_masked(values: np.ndarray, missing: np.ndarray) -> Any:
    kinds = {"b": pd.arrays.BooleanArray, "f": pd.arrays.FloatingArray}
    return kinds.get(values.dtype.kind, pd.arrays.IntegerArray)(values, missing)


def _categories(array: pd.Categorical, dtype: pd.CategoricalDtype) -> dict[str, Any]:
    return {"codes": np.asarray(array.codes), "categories": dtype.categories, "ordered": bool(dtype.ordered)}


def _as_categories(codes: np.ndarray, categories: pd.Index, ordered: bool) -> Any:
    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(categories, ordered))


def _zoned(array: Any, dtype: pd.DatetimeTZDtype) -> dict[str, Any]:
    zone = str(dtype.tz)
    try:
        same = pd.DatetimeTZDtype(dtype.unit, zone) == dtype
    except (TypeError, KeyError, ValueError):
        same = False
    if not same:
        raise unstorable(array)
    return {"values": np.asarray(array.tz_convert("UTC").tz_localize(None)), "zone": zone}


def _as_zoned(values: np.ndarray, zone: str) -> Any:
    return pd.DatetimeIndex(values).tz_localize("UTC").tz_convert(zone).array


def _periods(array: Any, dtype: pd.PeriodDtype) -> dict[str, Any]:
    return {"values": np.asarray(array.asi8), "frequency": str(dtype)}


def _as_periods(values: np.ndarray, frequency: str) -> Any:
    return pd.arrays.PeriodArray(values, pd.PeriodDtype.construct_from_string(frequency))


def _intervals(array: Any, _: pd.IntervalDtype) -> dict[str, Any]:
    return {"left": array.left, "right": array.right, "closed": array.closed}


def _sparse(array: Any, dtype: pd.SparseDtype) -> dict[str, Any]:
    return {"values": np.asarray(array), "zero": dtype.fill_value}


def _as_sparse(values: np.ndarray, zero: Any) -> Any:
    return pd.arrays.SparseArray(values, fill_value=zero, dtype=pd.SparseDtype(values.dtype, zero))


def _arrow(array: Any, _: Any) -> dict[str, Any]:
    import pyarrow as pa

    table, sink = pa.table({"": pa.array(array)}), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    content = np.frombuffer(sink.getvalue(), np.uint8)
    if EXTENDED in content.tobytes():
        raise unstorable(array)
    return {"stream": content}


def _as_arrow(stream: np.ndarray) -> Any:
    import pyarrow as pa

    content = stream.tobytes()
    if EXTENDED in content:
        raise ValueError("a column of Arrow has a type of its own")
    table = pa.ipc.open_stream(content).read_all()
    table.validate(full=True)
    return pd.arrays.ArrowExtensionArray(table.column(0))


EXTENDED = b"ARROW:extension"
"""What marks types that PyArrow would ask other code to make."""


COLUMNS = {
    "text": _Column(pd.StringDtype, _text, _as_text),
    "categories": _Column(pd.CategoricalDtype, _categories, _as_categories),
    "zoned times": _Column(pd.DatetimeTZDtype, _zoned, _as_zoned),
    "periods": _Column(pd.PeriodDtype, _periods, _as_periods),
    "intervals": _Column(pd.IntervalDtype, _intervals, pd.arrays.IntervalArray.from_arrays),
    "sparse": _Column(pd.SparseDtype, _sparse, _as_sparse),
    "arrow": _Column(pd.ArrowDtype, _arrow, _as_arrow),
    "masked": _Column(
        (
            *(pd.BooleanDtype, pd.Float32Dtype, pd.Float64Dtype, pd.Int8Dtype, pd.Int16Dtype, pd.Int32Dtype),
            *(pd.Int64Dtype, pd.UInt8Dtype, pd.UInt16Dtype, pd.UInt32Dtype, pd.UInt64Dtype),
        ),
        _masked,
        _as_masked,
    ),
}
"""How columns of pandas' types are stored, by a word: its name in a file is for good."""


def _values(column: Any) -> Any:
    """The values of a column or index: those of NumPy's types as NumPy has them."""
    return column.to_numpy() if isinstance(column.dtype, np.dtype) else column.array


def dtype_apart(dtype: Any) -> Any:
    """The type of a column, as a column of it without rows."""
    return np.empty(0, dtype) if isinstance(dtype, np.dtype) else pd.array([], dtype=dtype)


def dtype_together(empty: Any) -> Any:
    return empty.dtype


# Indexes and tables.


def index_apart(index: pd.Index) -> dict[str, Any]:
    """An index with its names."""
    if isinstance(index, pd.RangeIndex):
        return {"range": [index.start, index.stop, index.step], "name": index.name}
    if isinstance(index, pd.MultiIndex):
        codes = [np.asarray(codes) for codes in index.codes]
        return {"levels": list(index.levels), "codes": codes, "name": list(index.names)}
    stored = {"values": _values(index), "name": index.name}
    frequency = getattr(index, "freqstr", None)
    return stored if frequency is None else stored | {"frequency": frequency}


def index_together(**stored: Any) -> pd.Index:
    name = stored["name"]
    if "range" in stored:
        return pd.RangeIndex(*stored["range"], name=name)
    if "levels" in stored:
        return pd.MultiIndex(stored["levels"], stored["codes"], names=name)
    values = stored["values"]
    if "frequency" in stored and not isinstance(values.dtype, pd.PeriodDtype):
        kind = pd.TimedeltaIndex if values.dtype.kind == "m" else pd.DatetimeIndex
        return kind(values, freq=stored["frequency"], name=name)
    return pd.Index(values, dtype=values.dtype, name=name, tupleize_cols=False)


def series_apart(series: pd.Series) -> dict[str, Any]:
    return {"values": _values(series), "index": series.index, "name": series.name}


def series_together(values: Any, index: pd.Index, name: Any) -> pd.Series:
    return pd.Series(values, index, values.dtype, name)


def frame_apart(frame: pd.DataFrame) -> dict[str, Any]:
    return partly_apart(Partly(frame, frame.columns))


def partly_apart(part: Partly) -> dict[str, Any]:
    columns = [(name, _values(part.frame.iloc[:, place])) for place, name in enumerate(part.frame.columns)]
    values = [column if name in part.needed else Otherwise(column, None) for name, column in columns]
    return {"values": values, "columns": part.frame.columns, "index": part.frame.index}


def frame_together(values: list, columns: pd.Index, index: pd.Index) -> pd.DataFrame:
    there = {place: column for place, column in enumerate(values) if column is not None}
    series = {place: pd.Series(column, index, column.dtype) for place, column in there.items()}
    frame = pd.DataFrame(series, index)
    frame.columns = columns if len(there) == len(columns) else columns[list(there)]
    return frame


# Single values.


def element_apart(value: Any) -> pd.Index:
    """A date, time, period or interval of pandas, as an index of it alone."""
    return pd.Index([value])


def element_together(index: pd.Index) -> Any:
    return index[0]


SPELLED: dict[str, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "float": (float, repr, float),
    "complex": (complex, repr, complex),
    "decimal": (Decimal, str, Decimal),
    "bytes": (bytes, bytes.hex, bytes.fromhex),
    "time of a day": (datetime.datetime, datetime.datetime.isoformat, datetime.datetime.fromisoformat),
    "date": (datetime.date, datetime.date.isoformat, datetime.date.fromisoformat),
    "time": (datetime.time, datetime.time.isoformat, datetime.time.fromisoformat),
}
"""Values that are stored as text, by a word: how they are spelled, and read again."""
