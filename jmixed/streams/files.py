"""Tables in files: Parquet files, folders of them, and pyarrow's datasets, read a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import pandas as pd

from jmixed.errors import DataError, JmixedError
from jmixed.formulas.frame import unknown_column

BATCH = 2**18
"""Rows of a file that are read at a time."""


def is_stored(batches: Any) -> bool:
    """Whether batches are files: a path, several, or a pyarrow dataset."""
    several = batches if isinstance(batches, list | tuple) and len(batches) else [batches]
    return all(isinstance(own, str | PathLike) for own in several) or hasattr(batches, "get_fragments")


def stored(source: Any) -> Callable[[Sequence[str] | None], Iterator[pd.DataFrame]]:
    """Read files once more at every call, the given columns of them or all.

    Parameters
    ----------
    source : path, list of paths, or pyarrow dataset
        A path is that of a Parquet file or of a folder of them; folders named ``key=value`` are columns.

    Raises
    ------
    DataError
        Files that are not there, cannot be read, or do not have the same columns.
    """
    try:
        import pyarrow as pa
        import pyarrow.dataset as ds
    except ImportError:
        raise DataError("Parquet files are read by pyarrow: pip install 'jmixed[parquet]'") from None
    given = hasattr(source, "get_fragments")
    paths = [str(own) for own in ([source] if isinstance(source, str | PathLike) else [] if given else source)]
    named = "the dataset" if given else f"batches={(paths[0] if len(paths) == 1 else paths)!r}"
    failures = (OSError, ValueError, TypeError, NotImplementedError, pa.ArrowException)

    def failed(error: Exception) -> Exception:
        if isinstance(error, JmixedError):
            return error
        if isinstance(error, FileNotFoundError):
            return DataError(f"{named}: there is no such file or folder ({error})")
        what = "cannot be read" if given else "cannot be read as Parquet"
        return DataError(f"{named} {what} ({error}); if a file was cut short while it was written, write it again")

    def opened(**options):
        return ds.dataset(paths if len(paths) > 1 else paths[0], format="parquet", partitioning="hive", **options)

    try:
        dataset: Any = source if given else opened()
    except failures as error:
        raise failed(error) from error
    if not given and not dataset.files:
        raise DataError(f"{named} is a folder without files")

    def read(columns):
        # Little is read ahead: what memory holds must not grow with the file.
        options = {"batch_size": BATCH, "batch_readahead": 1}
        try:
            if columns is None:
                # Types of the files are not compared yet: a file that is read ahead could fail before its turn.
                for fragment in dataset.get_fragments():
                    for batch in fragment.to_batches(schema=dataset.schema, **options):
                        yield batch.to_pandas()
                return
            schema = _common_schema(dataset, columns, pa)
            own = dataset if given or schema.equals(dataset.schema) else opened(schema=schema)
            for batch in own.to_batches(columns=list(columns), fragment_readahead=1, **options):
                yield batch.to_pandas()
        except failures as error:
            raise failed(error) from error

    return read


def _common_schema(dataset: Any, columns: Sequence[str], pa: Any) -> Any:
    """The dataset's schema, with types of the columns that hold what all files have.

    pyarrow would fill a column that a file does not have up with missing values, and make numbers of text.
    """
    from pyarrow.dataset import get_partition_keys  # pyright: ignore[reportMissingImports]

    schema = dataset.schema
    for fragment in dataset.get_fragments():
        where, own = getattr(fragment, "path", "a part of the dataset"), fragment.physical_schema
        for name in set(columns) - set(get_partition_keys(fragment.partition_expression)):
            if name not in own.names:
                raise DataError(f"{where}: {unknown_column(name, own.names, 'the model')}")
            place, kinds = schema.get_field_index(name), [schema.field(name).type, own.field(name).type]
            try:
                both = [pa.schema([pa.field(name, kind)]) for kind in kinds]
                schema = schema.set(place, pa.unify_schemas(both, promote_options="permissive").field(0))
            except pa.ArrowException:
                raise DataError(
                    f"{where}: the column {name!r} holds {kinds[1]}, but {kinds[0]} in the files before it; convert it "
                    "to one type in all"
                ) from None
    return schema
