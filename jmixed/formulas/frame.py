"""The caller's data: any table as a DataFrame, its columns by name, rows by subset, missing values by position."""

import difflib
import numbers as kinds
import re
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pandas as pd
from jax.core import Tracer

from jmixed.errors import DataError, MissingDataError
from jmixed.formulas.formula import bare_name
from jmixed.runtime.precision import FLOAT


def as_frame(data: Any, allow_empty: bool = False) -> pd.DataFrame:
    """Any table as a DataFrame; a DataFrame comes back as it is.

    Tables are mappings of columns, structured arrays, and what narwhals reads (polars, pyarrow, ...).

    Raises
    ------
    DataError
        When it is no table, has no rows, or has two columns of the same name.
    """
    if isinstance(data, pd.DataFrame):
        frame = data
    elif isinstance(data, Mapping):
        frame = _from_columns({str(name): values for name, values in data.items()})
    elif isinstance(data, np.ndarray) and data.dtype.names:
        frame = _from_columns({name: data[name] for name in data.dtype.names})
    else:
        frame = _from_narwhals(data)
    if not frame.columns.is_unique:
        twice = list(dict.fromkeys(frame.columns[frame.columns.duplicated()]))
        raise DataError(
            f"data has duplicate column names: {twice}; rename them so that every name stands for one column"
        )
    if not len(frame) and not allow_empty:
        raise DataError("data has no rows; check how they were read or selected")
    return frame


def kept_frame(data: Any) -> pd.DataFrame:
    """The same as it is now: a model is asked about its rows later, whatever has become of the table by then."""
    frame = as_frame(data)
    return frame.copy(deep=not _copies_when_written())


def _copies_when_written() -> bool:
    """Whether pandas itself makes a copy of what two frames share as soon as one of them is written to."""
    return int(pd.__version__.split(".")[0]) > 2 or pd.options.mode.copy_on_write is True


def refuse_tracer(
    value: Any, name: str, instead: str = "jm.estimate, jm.profiled_deviance or jm.log_likelihood"
) -> None:
    """Raise DataError for a value that exists only while JAX traces a function; name the functions to use instead."""
    if isinstance(value, Tracer):
        raise DataError(
            f"{name} is a value that JAX is tracing (jit, grad or vmap), but this works on numbers and returns "
            f"numbers. Inside a transformation use {instead}",
            page="jax.md",
        )


def _from_columns(columns: dict[str, Any]) -> pd.DataFrame:
    for name, values in columns.items():
        refuse_tracer(values, f"the column {name!r}")
    single = {name for name, values in columns.items() if is_scalar(values)}
    try:
        return pd.DataFrame(columns, index=range(1) if columns and len(single) == len(columns) else None)
    except ValueError as error:
        sizes = {name: "a scalar" if name in single else len(values) for name, values in columns.items()}
        raise DataError(
            f"data is a mapping whose columns do not form a table ({error}); their lengths: {sizes}"
        ) from None


def is_scalar(value: Any) -> bool:
    """Whether a value is one for all rows: a number, text, a date, an array without axes."""
    return isinstance(value, str | bytes) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0


def new_table(data: Any, needed: Collection[str] = ()) -> pd.DataFrame:
    """New rows, which may be none: a table, or a Series with a value for each column, which is one row.

    A Series whose name is one of the columns needed is a column, unless its labels are some of them.
    """
    if isinstance(data, pd.Series):
        is_column = data.name in needed and not any(name in data.index for name in needed)
        data = data.to_frame() if is_column else data.to_frame().T
    return as_frame(data, allow_empty=True)


def _from_narwhals(data: Any) -> pd.DataFrame:
    kind = f"{type(data).__module__}.{type(data).__qualname__}".removeprefix("builtins.")
    if isinstance(data, str):
        reader = "read_parquet" if data.endswith(".parquet") else "read_csv"
        raise DataError(f"data is the text {data!r}; it must be the data itself: pd.{reader}({data!r}) reads a file")
    allowed = "a pandas DataFrame, a mapping of columns, a structured array, or a polars, pyarrow or similar table"
    try:
        import narwhals as nw
    except ImportError:
        raise DataError(
            f"data is of type {kind}; it must be {allowed}; for the last, pip install 'jmixed[dataframes]'"
        ) from None
    try:
        table = nw.from_native(data)
    except TypeError:
        raise DataError(f"data is of type {kind}; it must be {allowed}") from None
    if isinstance(table, nw.LazyFrame):
        table = table.collect()
    return pd.DataFrame({name: _column_from(table[name], nw) for name in table.columns})


def _column_from(series: Any, nw: Any) -> Any:
    """One column of a narwhals table as an array that pandas takes."""
    if series.dtype.is_integer() and series.null_count():
        # NumPy has no missing whole number: floats would merge those beyond 2^53.
        return pd.array(series.to_list(), dtype="Int64" if series.dtype.is_signed_integer() else "UInt64")
    values = series.to_numpy()
    if isinstance(series.dtype, nw.Enum):
        return pd.Categorical(values, categories=list(series.dtype.categories))
    if isinstance(series.dtype, nw.Categorical):
        return pd.Categorical(values)
    if values.dtype == object and series.dtype == nw.Boolean:
        return pd.array(values, dtype="boolean")
    return values


def column(frame: pd.DataFrame, name: str) -> pd.Series:
    """One column of a table whose names are unique."""
    return cast(pd.Series, frame[name])


def any_of(masks: Mapping[str, np.ndarray]) -> np.ndarray:
    """The rows that any mask has."""
    return np.asarray(np.stack(list(masks.values())).any(axis=0))


def unknown_column(name: str, columns: Iterable[Any], where: str, among: str = "the data") -> str:
    """The message for a name that is not there, with close matches."""
    names = [str(column) for column in columns]
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.6)
    close = close or [c for c in names if c.lower() == name.lower()]
    hint = (
        f"did you mean {' or '.join(repr(c) for c in close)}?"
        if close
        else f"the columns are {few(list(map(repr, names)), 12)}"
    )
    if "(" in name and where == "offset=":
        hint = f"an expression stands in the formula, + offset({name})"
    return f"{where} names the column {name!r}, which is not in {among}; {hint}"


def require_known(names: Iterable[str], frame: pd.DataFrame, where: str) -> None:
    """Refuse a name that is no column of the data."""
    for name in names:
        if name not in frame.columns:
            raise DataError(unknown_column(name, frame.columns, where))


def few(texts: Sequence[str], most: int = 5) -> str:
    """The first of several texts, and how many more there are."""
    return ", ".join(texts[:most]) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def subset_positions(frame: pd.DataFrame, subset: Any) -> np.ndarray:
    """Positions of the rows that ``data.loc[subset]`` has."""
    refuse_tracer(subset, "subset")
    positions = pd.Series(np.arange(len(frame)), index=frame.index)
    subset = subset(frame) if callable(subset) else subset
    wanted = subset if isinstance(subset, (pd.Series, slice)) else np.asarray(subset)
    try:
        chosen = np.atleast_1d(np.asarray(positions.loc[wanted]))
    except (LookupError, TypeError, ValueError, pd.errors.IndexingError) as error:
        condition = f". A condition is subset=data.eval({subset!r})" if isinstance(subset, str) else ""
        raise DataError(
            f"subset cannot be applied to the {len(frame)} rows of data ({error}); "
            f"it must be booleans (one for each row) or labels of the index, as in data.loc[subset]{condition}"
        ) from None
    if not len(chosen):
        raise DataError(f"subset selects none of the {len(frame)} rows of data")
    return chosen


def per_row(value: Any, frame: pd.DataFrame, what: str) -> pd.Series:
    """A column by name, or an array with one value for each row of the data."""
    if isinstance(value, str):
        name = value if value in frame.columns else bare_name(value)
        require_known([name], frame, what + "=")
        return column(frame, name)
    array = value if isinstance(value, (pd.Series, pd.Categorical)) else one_dimensional(value, what)
    if isinstance(array, pd.Series) and reordered(array.index, frame.index):
        raise DataError(
            f"{what} is a Series with the row labels of data in another order: make it a column of data, or give "
            f"np.asarray({what}) if its values are in the order of the rows"
        )
    if len(array) != len(frame):
        raise DataError(f"{what} has {len(array)} values but data has {len(frame)} rows; they must match row by row")
    return pd.Series(array.array if isinstance(array, pd.Series) else array, index=frame.index)


def reordered(labels: pd.Index, rows: pd.Index) -> bool:
    """Whether unique labels are the same ones in another order."""
    return len(labels) == len(rows) and not labels.equals(rows) and labels.is_unique and bool(labels.isin(rows).all())


def one_dimensional(value: Any, what: str) -> np.ndarray:
    """One value for each row; a list of tuples is a list of labels."""
    refuse_tracer(value, what)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], tuple):
        array = np.empty(len(value), object)
        array[:] = value
        return array
    array = np.asarray(value)
    if array.dtype.kind in "SU" and isinstance(value, (list, tuple)) and not all(isinstance(v, str) for v in value):
        # NumPy makes one text of 308 and "308".
        array = np.array(value, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        several = ". Several grouping factors are bars in a formula, (1 | a) + (1 | b)" if what == "groups" else ""
        raise DataError(f"{what} has shape {array.shape}; it must be a column name or one value for each row{several}")
    return array


def numbers(series: pd.Series, what: str) -> np.ndarray:
    """A column as floats, missing values as NaN; text is refused even when it spells numbers."""
    if holds_text(series):
        raise text_error(what, series)
    dtype = series.dtype
    kind = pd.api.types.infer_dtype(series, skipna=True) if dtype == "object" else str(dtype)
    right = kind in NUMBERS if dtype == "object" else pd.api.types.is_numeric_dtype(dtype) and dtype.kind != "c"
    if not right:
        raise DataError(f"{what} holds values of type {kind}; it must hold numbers")
    return series.to_numpy(dtype=FLOAT, na_value=np.nan)


NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty", "mixed", "mixed-integer")
"""What pandas calls objects that may be numbers; mixed ones, without text, are numbers of several types."""


DATES = ("date", "datetime", "datetime64", "timedelta", "timedelta64", "time", "period", "interval")
"""What pandas calls objects that are dates, times, or their like."""


def holds_text(series: pd.Series) -> bool:
    """Whether a column is made of text (or of categories) and not of numbers."""
    dtype = series.dtype
    if isinstance(dtype, (pd.CategoricalDtype, pd.StringDtype)):
        return True
    if dtype.kind in "iufb":
        return False
    kind = pd.api.types.infer_dtype(series, skipna=True)
    return kind == "string" or (kind in ("mixed", "mixed-integer") and not _all_real(series.dropna()))


def _all_real(values: Iterable[Any]) -> bool:
    """Whether all values are numbers: fractions, decimals, or of several types."""
    return all(isinstance(value, kinds.Real | Decimal) for value in values)


def text_error(what: str, series: pd.Series) -> DataError:
    """The error for text where numbers are needed, with the first value that is none as example."""
    values, name = series.dropna(), str(series.name)
    if isinstance(series.dtype, pd.CategoricalDtype) and not holds_text(pd.Series(series.cat.categories)):
        return DataError(
            f"{what} is a pandas category where numbers are needed; convert it first, "
            f"for example data[{name!r}] = data[{name!r}].astype(float)"
        )
    example = f"for example {values.iloc[np.argmax(_not_numbers(values))]!r}" if len(values) else "and no values"
    return DataError(f"{what} holds text ({example}) where numbers are needed; convert it first, {_to_numbers(series)}")


def _not_numbers(values: pd.Series) -> np.ndarray:
    """Which values are text that spells no number."""
    numbers: Any = pd.to_numeric(values.astype(str), errors="coerce")
    return np.isnan(np.asarray(numbers, FLOAT))


def _to_numbers(series: pd.Series) -> str:
    """How text is made numbers; where only some values are no numbers, these are marks of missing ones."""
    values, name = series.dropna(), str(series.name)
    if len(values) and values.isin(["True", "False"]).all():
        return f'for example data[{name!r}] = data[{name!r}] == "True"'
    bad = _not_numbers(values)
    if len(values) and bad.all() and values.astype(str).str.contains(",").any():
        return f'for example data[{name!r}] = pd.to_numeric(data[{name!r}].str.replace(",", "."))'
    some = ', errors="coerce"' if bad.any() and not bad.all() else ""
    return f"for example data[{name!r}] = pd.to_numeric(data[{name!r}]{some})"


NUMERAL = re.compile(r"\s*[<>≤≥~=]*\s*[-+−]?(?!0\d)[\d.,]*\d[\d.,]*([eE][-+]?\d+)?\s*%?\s*")
"""A number as people write it; with a zero in front it is a code."""


CODES = 8
"""Whole numbers in text are codes of categories if there are no more of them; more are taken for measurements."""


def spell_numbers(labels: Sequence[Any]) -> bool:
    """Whether more than half of the labels, which are distinct text, spell numbers that are no codes.

    Of two labels the slope of their numbers and the difference of their categories are one model. A few whole numbers
    are the codes of a table that was read with ``dtype=str``.
    """
    texts = [label for label in labels if isinstance(label, str)]
    numerals = sum(bool(NUMERAL.fullmatch(text)) for text in texts)
    codes = len(labels) <= CODES and all(text.strip().isdecimal() for text in texts)
    return len(labels) > 2 and 2 * numerals > len(labels) and not codes


def prepare(series: pd.Series) -> Any:
    """A column as formulaic understands it: used categories only, text as text, numbers wide enough for transforms."""
    dtype = series.dtype
    if dtype == "object":
        return _prepare_objects(series)
    if isinstance(dtype, np.dtype):
        if dtype.kind == "u" and (dtype.itemsize < 8 or not len(series) or series.max() < 2**63):
            return series.to_numpy(np.int64)
        if dtype.kind in "if" and dtype.itemsize < 8:
            return series.to_numpy(FLOAT if dtype.kind == "f" else np.int64)
        return series.array
    if isinstance(dtype, pd.CategoricalDtype):
        return series.cat.remove_unused_categories().array
    if pd.api.types.is_bool_dtype(dtype) and not series.isna().any():
        return series.to_numpy(dtype=bool)
    if pd.api.types.is_numeric_dtype(dtype):
        if dtype.kind in "iu" and not series.isna().any():
            return prepare(pd.Series(series.to_numpy(np.uint64 if dtype.kind == "u" else np.int64)))
        return series.to_numpy(dtype=FLOAT, na_value=np.nan)
    if pd.api.types.is_string_dtype(dtype) and dtype != "str":
        return series.astype(object).where(series.notna(), None).array
    if str(dtype).startswith("dictionary<"):
        return prepare(pd.Series(pd.Categorical(series.to_numpy(object)), name=series.name))
    return series.array


def _prepare_objects(series: pd.Series) -> Any:
    kind = pd.api.types.infer_dtype(series, skipna=True)
    if kind == "string":
        return series.array
    if kind in ("decimal", "mixed", "mixed-integer"):
        values = series.dropna()
        if _all_real(values):
            return series.to_numpy(FLOAT, na_value=np.nan)
        if any(not isinstance(value, Hashable) for value in values):
            raise DataError(
                f"the column {series.name!r} holds values such as {values.iloc[0]!r}; it must hold numbers or labels"
            )
    return series.infer_objects().array


def as_learnt(values: Any, dtype: Any, name: str) -> Any:
    """A prepared column of new data, without missing values, as what the model knows it to be.

    `dtype` is that of the prepared column in the data that were fitted. Categories may come as their values, truth
    values as 0 and 1 or in a column of objects, numbers as a category of them.
    """
    now = values.dtype
    if now == dtype:
        return values
    if isinstance(dtype, pd.CategoricalDtype):
        return values if isinstance(now, pd.CategoricalDtype) else _as_categories(values, dtype)
    if not isinstance(dtype, np.dtype) or dtype.kind not in "iufb":
        return values
    if isinstance(now, pd.CategoricalDtype):
        return as_learnt(prepare(pd.Series(np.asarray(values))), dtype, name)
    if dtype == "bool":
        return _as_truth(pd.Series(values, name=name))
    return np.asarray(values).astype(dtype) if now == "bool" else values


def _as_categories(values: Any, dtype: pd.CategoricalDtype) -> pd.Categorical:
    """Values matched with categories as Python does, where 2019 is 2019.0; what is none of them is one more."""
    codes, labels = pd.factorize(pd.Series(values))
    known = {label: label for label in dtype.categories.tolist()}
    return pd.Categorical.from_codes(codes, [known.get(label, label) for label in pd.Index(labels).tolist()])


def _as_truth(series: pd.Series) -> np.ndarray:
    distinct = series.unique().tolist()
    if all(value in (False, True) for value in distinct):
        return series.to_numpy().astype(bool)
    hint = f"; convert it first, {_to_numbers(series)}" if holds_text(series) else ""
    shown = ", ".join(map(repr, distinct[:3]))
    raise DataError(f"the column {series.name!r} holds {shown} where the model knows True and False{hint}")


def working_frame(
    frame: pd.DataFrame, columns: Iterable[str], aliases: Mapping[str, str], learnt: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """The columns that formulas need, as formulaic understands them; nothing is copied that need not be.

    With `learnt`, dtypes by column, new data is brought to what the model knows: see `as_learnt`.
    """
    index = frame.index if frame.index.is_unique else pd.RangeIndex(len(frame))
    ready = {name: prepare(column(frame, name)) for name in columns}
    ready = {name: as_learnt(values, learnt[name], name) if learnt else values for name, values in ready.items()}
    ready |= {alias: ready[name] for alias, name in aliases.items() if name in ready}
    return pd.DataFrame(ready, index=index, copy=False)


def missing_rows(columns: Mapping[str, pd.Series | np.ndarray]) -> dict[str, np.ndarray]:
    """The columns that have missing values, with a mask of the rows."""
    masks = {name: np.asarray(pd.isna(getattr(values, "array", values))) for name, values in columns.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def missing_error(masks: Mapping[str, np.ndarray], positions: np.ndarray) -> MissingDataError:
    """The error for missing values: how many rows, in which columns, where."""
    rows = np.flatnonzero(any_of(masks))
    where = ", ".join(str(int(p)) for p in positions[rows[:5]]) + (", ..." if len(rows) > 5 else "")
    counts = ", ".join(f"{name} ({int(mask.sum())})" for name, mask in masks.items())
    return MissingDataError(
        f"{len(rows)} of {len(positions)} rows have missing values, in {counts}; row positions {where}. "
        'Use missing="drop" to leave these rows out, or fill them in'
    )


def require_missing(missing: str) -> None:
    """Refuse a rule for missing values that there is not."""
    if missing not in ("none", "drop", "raise"):
        raise DataError(f'missing is {missing!r}; it must be "none", "drop" or "raise"')


def complete_rows(masks: Mapping[str, np.ndarray], positions: np.ndarray, missing: str) -> np.ndarray:
    """Places of the rows that no mask has; unless they are to be dropped, the others are refused."""
    masks = {name: mask for name, mask in masks.items() if mask.any()}
    if not masks:
        return np.arange(len(positions))
    if missing != "drop":
        raise missing_error(masks, positions)
    return np.flatnonzero(~any_of(masks))


def require_finite(values: np.ndarray, names: Sequence[str], positions: np.ndarray) -> None:
    """Refuse infinite values, naming the column and the rows; `values` is (n,) or (n, k)."""
    with np.errstate(invalid="ignore", over="ignore"):
        total = values.sum()
    if np.isfinite(total) or np.isfinite(values).all():
        return
    bad = ~np.isfinite(values.reshape(len(values), -1))
    column = int(np.flatnonzero(bad.any(axis=0))[0])
    rows = np.flatnonzero(bad[:, column])
    raise DataError(
        f"{names[column]} has {len(rows)} infinite values, first at row positions "
        f"{', '.join(str(int(p)) for p in positions[rows[:5]])}; replace them or leave these rows out"
    )
