"""Columns, indexes, tables and single values come back from files as they were: values, types, labels and names."""

import datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest

from jmixed.errors import DataError
from jmixed.formulas import tables
from jmixed.reports import files


def again(value):
    return files.unpack(files.pack(value), "name", {}, lambda found: found)


DAYS = pd.date_range("2020-03-28 22:30", periods=4, freq="6h")
COLUMNS = {
    "Int64": pd.array([1, None, 2**62 + 1, -3], "Int64"),
    "UInt8": pd.array([1, None, 255, 0], "UInt8"),
    "Float64": pd.array([0.1, None, np.inf, -0.0], "Float64"),
    "Float32": pd.array([0.1, None, 2, 3], "Float32"),
    "boolean": pd.array([True, None, False, True], "boolean"),
    "string": pd.array(["a", None, "ü\0", ""], "string"),
    "python string": pd.array(["a", None, "b", "a"], pd.StringDtype("python")),
    "str": pd.Series(["a", None, "b", "a"]).array,
    "category": pd.Categorical(["b", None, "a", "b"], ["b", "a", "unused"], ordered=True),
    "category of numbers": pd.Categorical([2, 10, 2, 2]),
    "category of dates": pd.Categorical(DAYS),
    "times": DAYS.array,
    "zoned": DAYS.tz_localize("Europe/Berlin").array,
    "offset": DAYS.tz_localize("UTC+05:30").as_unit("s").array,
    "spans": (DAYS - DAYS[0]).array,
    "months": pd.period_range("2020-01", periods=4, freq="M").array,
    "intervals": pd.cut([1, 2, 3, 4], [0, 2, 5]),
    "bare intervals": pd.interval_range(0.0, 4.0, 4, closed="left").array,
    "sparse": pd.arrays.SparseArray([0.0, 1.0, 0.0, np.nan]),
    "objects": pd.Series([1, True, 1.0, "1"], dtype=object).array,
    "dates": pd.Series([datetime.date(2020, 1, 2), None, pd.NA, pd.NaT], dtype=object).array,
    "decimals": pd.Series([Decimal("1.10"), Decimal("1.1"), np.nan, 3], dtype=object).array,
    "tuples": pd.Series([("a", 1), ("a", 1.0), (), None], dtype=object).array,
    "small": np.array([1.5, np.nan, 0, -1], np.float32),
    "complex": np.array([1j, 2, np.nan, 0]),
    "fixed text": np.array(["a", "bc", "", "d"]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_columns(name):
    values = COLUMNS[name]
    series = pd.Series(values, index=["d", "c", "b", "a"], name="x")
    found = again(series)
    pd.testing.assert_series_equal(found, series, check_exact=True)
    assert found.dtype == series.dtype
    assert [type(label) for label in found] == [type(label) for label in series]
    assert [repr(label) for label in found] == [repr(label) for label in series]
    assert again(series.dtype) == series.dtype
    index = pd.Index(values, name=("a", 1), tupleize_cols=False)
    pd.testing.assert_index_equal(again(index), index, exact=True)


ARROW = {
    "int8[pyarrow]": [1, None, 3],
    "double[pyarrow]": [0.1, None, float("nan")],
    "bool[pyarrow]": [True, None, False],
    "string[pyarrow]": ["a", None, "b"],
    "timestamp[us, tz=Europe/Berlin][pyarrow]": [DAYS[0], None, DAYS[1]],
    "date32[day][pyarrow]": [datetime.date(2020, 1, 2), None, None],
}


@pytest.mark.parametrize("name", ARROW)
def test_columns_of_arrow(name):
    series = pd.Series(ARROW[name], dtype=pd.ArrowDtype.construct_from_string(name) if name[0] != "s" else name)
    pd.testing.assert_series_equal(again(series), series, check_exact=True)


def test_dictionaries_and_decimals_of_arrow():
    pa = pytest.importorskip("pyarrow")
    for array in (pa.array(["a", None, "a"]).dictionary_encode(), pa.array([Decimal("1.10"), None])):
        series = pd.Series(pd.arrays.ArrowExtensionArray(array))
        found = again(series)
        assert found.dtype == series.dtype
        assert found.tolist() == series.tolist()


def test_text_where_its_store_is_missing(monkeypatch):
    """Without PyArrow pandas keeps text itself; before 2.3 it has objects in the place of text with NaN."""
    text, made = np.array(["a", None], object), pd.StringDtype

    def without_arrow(storage, *missing):
        if storage == "pyarrow":
            raise ImportError(storage)
        return made(storage, *missing)

    monkeypatch.setattr(pd, "StringDtype", without_arrow)
    assert (
        tables.column_together(**{"is": "text", "parts": {"storage": "pyarrow", "nan": False, "text": text}})[0] == "a"
    )
    monkeypatch.setattr(pd, "StringDtype", lambda storage: made(storage))
    found = tables.column_together(**{"is": "text", "parts": {"storage": "pyarrow", "nan": True, "text": text}})
    assert found.dtype == object
    assert found[0] == "a"
    assert np.isnan(found[1])


def test_types_that_arrow_would_ask_other_code_for_are_refused():
    pa = pytest.importorskip("pyarrow")
    schema = pa.schema([pa.field("", pa.int64(), metadata={"ARROW:extension:name": "own"})])
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_table(pa.table([pa.array([1])], schema=schema))
    with pytest.raises(ValueError, match="a type of its own"):
        tables.column_together(**{"is": "arrow", "parts": {"stream": np.frombuffer(sink.getvalue(), np.uint8)}})


INDEXES = [
    pd.RangeIndex(3, 12, 3, name="r"),
    pd.Index([3, 1, 2], dtype=np.int16),
    pd.Index([("a", 1), ("b", 2), ("a", 3)], tupleize_cols=False),
    pd.MultiIndex.from_tuples([("a", 1), ("b", 2), ("a", 2)], names=["x", None]),
    pd.MultiIndex.from_product([pd.Categorical(["b", "a"]), DAYS]),
    DAYS.tz_localize("UTC"),
    pd.DatetimeIndex(["2020-01-01", None, "2019-01-01"]),
    pd.period_range("2020Q1", periods=3, freq="Q"),
    pd.timedelta_range("1D", periods=3),
    pd.CategoricalIndex(["b", "a", "b"], ["b", "a"]),
    pd.Index([], dtype=object),
]


@pytest.mark.parametrize("index", INDEXES, ids=lambda index: f"{type(index).__name__} {getattr(index, 'dtype', '')}")
def test_indexes(index):
    found = again(index)
    pd.testing.assert_index_equal(found, index, exact=True)
    assert getattr(found, "freq", None) == getattr(index, "freq", None)
    frame = pd.DataFrame({"a": np.arange(len(index)), 2: "text"}, index)
    pd.testing.assert_frame_equal(again(frame), frame)
    pd.testing.assert_frame_equal(again(frame.T), frame.T)


VALUES = [
    *(None, True, 1, 2**70, "a", 0.1, -0.0, float("inf"), 1j, b"\0a", (1, [2, {}]), {"kind": 1, "again": 0}, {1: 2}),
    *(Decimal("NaN"), datetime.date(2020, 1, 2), datetime.time(1, 2, 3), datetime.datetime(2020, 1, 2, 3, 4)),
    *(pd.Timestamp("2020-01-02 03:04:05.123456789", tz="UTC"), pd.Timedelta("1D"), pd.Period("2020-01", "M"), pd.NaT),
    *(
        pd.NA,
        pd.Interval(0, 1, closed="both"),
        np.float64(0.1),
        np.int8(3),
        np.datetime64("2020"),
        np.str_("a"),
        {1, 2},
    ),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_single_values(value):
    found = again({"x": value})["x"]
    assert type(found) is type(value)
    assert repr(found) == repr(value)


def test_nan_is_nan():
    assert np.isnan(again(float("nan")))


def test_what_occurs_twice_is_one_object_again():
    array, index = np.arange(3), pd.Index(["a"])
    found = again([array, (array, index), {"i": index, "a": array}, array])
    assert found[0] is found[1][0] is found[2]["a"] is found[3]
    assert found[1][1] is found[2]["i"]


class Label:
    """A label that nobody else knows."""


def test_what_cannot_be_stored_is_named():
    for value in (Label(), np.array([Label()]), pd.Index([Label()]), {"a": [Label()]}, [object()]):
        with pytest.raises(DataError, match=r"save: the result holds .* of the type .*(Label|object)"):
            files.pack(value)


def test_columns_that_are_not_needed_are_left_out_if_they_cannot_be_stored():
    shared = pd.Index(["a", "b"])
    frame = pd.DataFrame({"x": [1.0, 2.0], "own": [Label(), Label()], "y": shared, "lists": [(shared, Label())] * 2})
    found = again([tables.Partly(frame, {"x"}), shared])
    pd.testing.assert_frame_equal(found[0], frame[["x", "y"]])
    pd.testing.assert_index_equal(found[1], shared)
    with pytest.raises(DataError, match="Label"):
        files.pack(tables.Partly(frame, {"own"}))
