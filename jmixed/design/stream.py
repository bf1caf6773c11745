"""Tables that come in batches: what they may be, and that each is like the first."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import pandas as pd

from jmixed.design.frame import as_frame, column, unknown_column
from jmixed.errors import DataError, JmixedError

BATCH = 2**18
"""Rows of a Parquet file that are read at a time."""

ALLOWED = (
    "a list of tables, a function that returns a fresh iterator of tables, the path of a Parquet file or of a folder "
    "of them, a pyarrow dataset, or a Dask DataFrame"
)

ANY_CATEGORIES = ()
"""The kind of a column of group labels, which are compared as values."""

Reader = Callable[[Sequence[str] | None], Iterator[pd.DataFrame]]
"""Reads all batches once more, the given columns of them or all."""


def reader(batches: Any) -> Reader:
    """How to go through the batches, as often as needed.

    Parameters
    ----------
    batches : sequence of tables, callable, path, or pyarrow dataset

    Returns
    -------
    callable
        ``read(columns)`` gives an iterator of DataFrames; every table stays as it is where columns cannot be chosen.

    Raises
    ------
    DataError
        For an iterator, which can be gone through once only, and for anything else.
    """
    if isinstance(batches, str | PathLike) or hasattr(batches, "get_fragments"):
        return _parquet_reader(batches)
    if callable(batches):
        return lambda columns: _frames(_called(batches))
    if isinstance(batches, pd.DataFrame | Mapping) or hasattr(batches, "columns") or hasattr(batches, "dtype"):
        raise DataError(f"batches is one {type(batches).__name__}: use mixedlm for a table that fits into memory")
    if not isinstance(batches, Iterable):
        raise DataError(f"batches is a {type(batches).__name__}; it must be {ALLOWED}")
    if iter(batches) is batches:
        raise DataError(
            f"batches is a {type(batches).__name__}, which can be gone through only once, and two passes are needed: "
            f"give {ALLOWED}"
        )
    return lambda columns: _frames(batches)


def _called(function: Callable) -> Iterable:
    made = function()
    if isinstance(made, pd.DataFrame | Mapping) or not isinstance(made, Iterable):
        raise DataError(f"batches() returned a {type(made).__name__}; it must return a fresh iterator of tables")
    return made


def _frames(tables: Iterable) -> Iterator[pd.DataFrame]:
    for number, table in enumerate(tables):
        with naming(number):
            frame = as_frame(table, allow_empty=True)
        yield frame


def _parquet_reader(source: Any) -> Reader:
    try:
        import pyarrow as pa
        import pyarrow.dataset as ds
    except ImportError:
        raise DataError("Parquet files are read by pyarrow: pip install 'jmixed[parquet]'") from None
    named = f"batches={str(source)!r}" if isinstance(source, str | PathLike) else "the dataset"

    def failed(error: Exception) -> DataError:
        return DataError(
            f"{named} cannot be read as Parquet ({error}); if a file was cut short while it was written, write it again"
        )

    try:
        dataset = ds.dataset(source, format="parquet") if isinstance(source, str | PathLike) else source
    except (OSError, ValueError, pa.ArrowException) as error:
        raise failed(error) from error

    def read(columns):
        # Little is read ahead: what memory holds must not grow with the file.
        options = {"batch_size": BATCH, "batch_readahead": 1, "fragment_readahead": 1}
        options |= {} if columns is None else {"columns": list(columns)}
        try:
            for batch in dataset.to_batches(**options):
                yield batch.to_pandas()
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, JmixedError):
                raise
            raise failed(error) from error

    return read


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Errors inside the block name the batch, counted from 0."""
    try:
        yield
    except JmixedError as error:
        raise type(error)(f"batch {number}: {error}") from error


def kinds_of(frame: pd.DataFrame, columns: Iterable[str]) -> dict[str, Any]:
    """What every column holds: "numbers", "text", ..., or its categories in order."""
    return {name: _kind(column(frame, name)) for name in columns}


def _kind(series: pd.Series) -> Any:
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return tuple(dtype.categories)
    if pd.api.types.is_bool_dtype(dtype):
        return "truth values"
    if pd.api.types.is_numeric_dtype(dtype):
        return "numbers"
    if dtype.kind in "Mm":
        return "dates or times"
    if isinstance(dtype, pd.StringDtype):
        return "text"
    found = pd.api.types.infer_dtype(series, skipna=True)
    known = {"string": "text", "boolean": "truth values", "decimal": "numbers", "integer": "numbers"}
    return known.get(found, "numbers" if found in ("floating", "mixed-integer-float") else found)


def require_alike(frame: pd.DataFrame, first: Mapping[str, Any]) -> None:
    """The columns of the first batch, and in each of them the same kind of values or the same categories."""
    for name, kind in first.items():
        if name not in frame.columns:
            raise DataError(unknown_column(name, frame.columns, "the model"))
        own = column(frame, name)
        found = _kind(own)
        if found == kind or own.isna().all():
            continue
        if isinstance(found, tuple) and kind == ANY_CATEGORIES:
            continue
        if isinstance(found, tuple) and isinstance(kind, tuple):
            raise DataError(
                f"the categories of {name!r} are {list(found)[:8]}, those of the first batch {list(kind)[:8]}; give "
                f"all the same: batch[{name!r}] = pd.Categorical(batch[{name!r}], categories=...), or make it text"
            )
        shown = ["categories" if isinstance(k, tuple) else k for k in (found, kind)]
        raise DataError(
            f"the column {name!r} holds {shown[0]}, but {shown[1]} in the first batch; convert it to one type in all"
        )
