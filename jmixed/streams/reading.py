"""Tables that come in batches: what they may be, files among them, and that each is like the first."""

import inspect
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from tempfile import TemporaryFile
from typing import IO, Any, cast

import numpy as np
import pandas as pd
from pandas import util

from jmixed.errors import DataError, JmixedError
from jmixed.formulas.frame import as_frame, column, require_known, unknown_column
from jmixed.runtime.precision import FLOAT

ALLOWED = (
    "an iterable of tables, a function that returns a fresh iterator of tables, the path of a Parquet file or of a "
    "folder of them, a list of such paths, a pyarrow dataset, or a Dask DataFrame"
)

ANY_CATEGORIES = ()
"""The kind of a column of group labels, which are compared as values."""

BATCH = 2**18
"""Rows of a file that are read at a time."""

Reader = Callable[[Sequence[str] | None], Iterator[pd.DataFrame]]
"""Reads all batches once more, the given columns of them or all."""


@contextmanager
def reading(batches: Any) -> Iterator[Reader]:
    """How to go through the batches, as often as needed, while the context lasts.

    Every table stays as it is where columns cannot be chosen.
    """
    if is_stored(batches):
        yield stored(batches)
    elif callable(batches):
        yield _Caller(batches)
    elif isinstance(batches, pd.DataFrame | Mapping) or hasattr(batches, "columns") or hasattr(batches, "dtype"):
        raise DataError(f"batches is one {type(batches).__name__}: use mixedlm for a table that fits into memory")
    elif not isinstance(batches, Iterable):
        raise DataError(f"batches is a {type(batches).__name__}; it must be {ALLOWED}")
    elif iter(batches) is batches:
        with TemporaryFile(prefix="jmixed-") as file:
            yield _Spool(_frames(batches), file)
    else:
        yield lambda columns: _frames(batches)


class _Caller:
    """Tables of a function that is called anew for each pass."""

    def __init__(self, function: Callable):
        self.function, self.last = function, None
        try:
            inspect.signature(function).bind()
        except TypeError as error:
            raise DataError(f"batches is a function that needs arguments ({error}); it must need none") from None
        except ValueError:
            # What is not written in Python may have no signature.
            return

    def __call__(self, columns: Sequence[str] | None) -> Iterator[pd.DataFrame]:
        tables = self.function()
        if isinstance(tables, pd.DataFrame | Mapping) or hasattr(tables, "columns") or not isinstance(tables, Iterable):
            raise DataError(f"batches() returned a {type(tables).__name__}; it must return a fresh iterator of tables")
        if tables is self.last and iter(tables) is tables:
            raise DataError(
                f"batches() returned the same {type(tables).__name__} twice, which can be gone through only once: it "
                "must return a fresh iterator each time, or give the iterator itself as batches"
            )
        self.last = tables
        return _frames(tables)


class _Spool:
    """Tables of an iterator, which can be gone through only once, kept in a file for the passes that follow.

    Of those that come after columns were chosen the chosen ones are kept.
    """

    def __init__(self, tables: Iterator[pd.DataFrame], file: IO[bytes]):
        self.tables, self.file, self.ends = tables, file, [0]

    def __call__(self, columns: Sequence[str] | None) -> Iterator[pd.DataFrame]:
        number = 0
        while True:
            if number + 1 < len(self.ends):
                self.file.seek(self.ends[number])
                # Nobody else has ever had this file: it is safe to load what was put there.
                yield pickle.load(self.file)
            elif (table := next(self.tables, None)) is None:
                return
            else:
                chosen = table if columns is None else table.loc[:, table.columns.isin(list(columns))]
                self._keep(chosen)
                yield chosen
            number += 1

    def _keep(self, table: pd.DataFrame) -> None:
        try:
            self.file.seek(self.ends[-1])
            pickle.dump(table, self.file, protocol=pickle.HIGHEST_PROTOCOL)
            self.ends.append(self.file.tell())
        except OSError as error:
            raise DataError(
                f"the batches come from an iterator, and keeping them for the second pass in a temporary file failed "
                f"({error}): give a function that returns a fresh iterator, or name a folder with room in TMPDIR"
            ) from error


def _frames(tables: Iterable) -> Iterator[pd.DataFrame]:
    for number, table in enumerate(tables):
        with naming(number):
            frame = as_frame(table.to_pandas() if _is_record_batch(table) else table, allow_empty=True)
        yield frame


def _is_record_batch(table: Any) -> bool:
    return type(table).__module__.startswith("pyarrow") and type(table).__name__ == "RecordBatch"


@contextmanager
def naming(number: int) -> Iterator[None]:
    """Errors inside the block name the batch, counted from 0."""
    try:
        yield
    except JmixedError as error:
        raise type(error)(f"batch {number}: {error.args[0]}", page=error.page) from error


def is_stored(batches: Any) -> bool:
    """Whether batches are files: a path, several, or a pyarrow dataset."""
    several = batches if isinstance(batches, list | tuple) and len(batches) else [batches]
    return all(isinstance(path, str | PathLike) for path in several) or hasattr(batches, "get_fragments")


def stored(source: Any) -> Reader:
    """Read files once more at every call, the given columns of them or all: a pyarrow dataset, or Parquet files.

    A path is that of a file or of a folder; folders named ``key=value`` are columns.
    """
    try:
        import pyarrow as pa
        import pyarrow.dataset as ds
    except ImportError:
        raise DataError("Parquet files are read by pyarrow: pip install 'jmixed[parquet]'") from None
    is_dataset = hasattr(source, "get_fragments")
    paths = [str(path) for path in ([source] if isinstance(source, str | PathLike) else [] if is_dataset else source)]
    named = "the dataset" if is_dataset else f"batches={(paths[0] if len(paths) == 1 else paths)!r}"

    @contextmanager
    def explained() -> Iterator[None]:
        """What goes wrong with the files names them."""
        try:
            yield
        except JmixedError:
            raise
        except FileNotFoundError as error:
            raise DataError(f"{named}: there is no such file or folder ({error})") from error
        except (OSError, ValueError, TypeError, NotImplementedError, pa.ArrowException) as error:
            what = f"{named} cannot be read{'' if is_dataset else ' as Parquet'} ({error})"
            raise DataError(f"{what}; if a file was cut short while it was written, write it again") from error

    def opened(**options):
        return ds.dataset(paths if len(paths) > 1 else paths[0], format="parquet", partitioning="hive", **options)

    with explained():
        dataset: Any = source if is_dataset else opened()
    if not is_dataset and not dataset.files:
        raise DataError(f"{named} is a folder without files")

    def read(columns):
        # Little is read ahead: what memory holds must not grow with the file.
        options = {"batch_size": BATCH, "batch_readahead": 1}
        with explained():
            if columns is None:
                # Types of the files are not compared yet: a file that is read ahead could fail before its turn.
                for fragment in dataset.get_fragments():
                    for batch in fragment.to_batches(schema=dataset.schema, **options):
                        yield batch.to_pandas()
                return
            schema = _common_schema(dataset, columns, pa)
            alike = dataset if is_dataset or schema.equals(dataset.schema) else opened(schema=schema)
            for batch in alike.to_batches(columns=list(columns), fragment_readahead=1, **options):
                yield batch.to_pandas()

    return read


def _common_schema(dataset: Any, columns: Sequence[str], pa: Any) -> Any:
    """The dataset's schema, with types of the columns that hold what all files have.

    pyarrow would fill a column that a file does not have up with missing values, and make numbers of text.
    """
    from pyarrow.dataset import get_partition_keys  # pyright: ignore[reportMissingImports]

    schema = dataset.schema
    for fragment in dataset.get_fragments():
        where, here = getattr(fragment, "path", "a part of the dataset"), fragment.physical_schema
        for name in set(columns) - set(get_partition_keys(fragment.partition_expression)):
            if name not in here.names:
                raise DataError(f"{where}: {unknown_column(name, here.names, 'the model')}")
            place, kinds = schema.get_field_index(name), [schema.field(name).type, here.field(name).type]
            try:
                both = [pa.schema([pa.field(name, kind)]) for kind in kinds]
                schema = schema.set(place, pa.unify_schemas(both, promote_options="permissive").field(0))
            except pa.ArrowException:
                raise DataError(
                    f"{where}: the column {name!r} holds {kinds[1]}, but {kinds[0]} in the files before it; convert it "
                    "to one type in all"
                ) from None
    return schema


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
    kind = pd.api.types.infer_dtype(series, skipna=True)
    known = {"string": "text", "boolean": "truth values", "decimal": "numbers", "integer": "numbers"}
    return known.get(kind, "numbers" if kind in ("floating", "mixed-integer-float") else kind)


def require_alike(frame: pd.DataFrame, first: Mapping[str, Any]) -> None:
    """The columns of the first batch, and in each of them the same kind of values or the same categories."""
    require_known(first, frame, "the model")
    for name, kind in first.items():
        series = column(frame, name)
        here = _kind(series)
        if here == kind or series.isna().all():
            continue
        if isinstance(here, tuple) and kind == ANY_CATEGORIES:
            continue
        if isinstance(here, tuple) and isinstance(kind, tuple):
            raise DataError(
                f"the categories of {name!r} are {list(here)[:8]}, those of the first batch {list(kind)[:8]}; give "
                f"all the same: batch[{name!r}] = pd.Categorical(batch[{name!r}], categories=...), or make it text"
            )
        shown = ["categories" if isinstance(k, tuple) else k for k in (here, kind)]
        raise DataError(
            f"the column {name!r} holds {shown[0]}, but {shown[1]} in the first batch; convert it to one type in all"
        )


@dataclass(frozen=True)
class Checksum:
    """What tells whether two passes found the same rows, in any order: sums of hashes, modulo 2^64."""

    names: tuple[str, ...]
    columns: np.ndarray  # uint64, of the values of each column
    rows: np.ndarray  # uint64 (1,), of the rows

    def plus(self, other: "Checksum") -> "Checksum":
        """Of the rows of both."""
        return Checksum(self.names, self.columns + other.columns, self.rows + other.rows)

    def require_same(self, other: "Checksum") -> None:
        """Refuse rows that are not the same."""
        differing = [repr(name) for name in np.array(self.names, object)[self.columns != other.columns]]
        if differing:
            raise changed(f"the values of {', '.join(differing)} differ")
        if np.any(self.rows != other.rows):
            raise changed("the values stand together in other rows")


def checksum(frame: pd.DataFrame, names: Iterable[str]) -> Checksum:
    """The checksum of the columns; numbers of any type are compared as numbers."""
    names = tuple(names)
    columns, rows = np.zeros(len(names), np.uint64), np.zeros(len(frame), np.uint64)
    for k, name in enumerate(names):
        series = column(frame, name)
        simple = isinstance(series.dtype, np.dtype) and series.dtype.kind in "iufb"
        # An array of pandas' own around one of NumPy, as text has before pandas 3, cannot be hashed.
        other = series.to_numpy() if series.dtype == "object" else series.array
        hashed = cast(Any, util).hash_array(series.to_numpy(FLOAT) if simple else other)
        columns[k] = hashed.sum()
        rows = (rows ^ hashed) * np.uint64(0x9E3779B97F4A7C15)
    return Checksum(names, columns, rows.sum(keepdims=True))


def changed(what: str) -> DataError:
    """The error for batches that are not the same when they are gone through again."""
    return DataError(
        f"the second pass over the batches found other data than the first: {what}. The same rows must come each time, "
        "in any order: fix the seed of what is drawn, or read from files that nobody writes to"
    )
