"""Tables in files: Parquet files, folders of them, and pyarrow's datasets, read a batch at a time."""

from collections.abc import Callable, Iterator, Sequence
from os import PathLike
from typing import Any

import pandas as pd

from jmixed.design.frame import unknown_column
from jmixed.errors import DataError, JmixedError

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

    try:
        options: Any = {"format": "parquet", "partitioning": "hive"}
        dataset: Any = source if given else ds.dataset(paths if len(paths) > 1 else paths[0], **options)
    except failures as error:
        raise failed(error) from error

    def read(columns):
        # Little is read ahead: what memory holds must not grow with the file.
        options = {"batch_size": BATCH, "batch_readahead": 1, "fragment_readahead": 1}
        options |= {} if columns is None else {"columns": list(columns)}
        try:
            if columns is not None:
                _require_columns(dataset, columns, ds.get_partition_keys)
            for batch in dataset.to_batches(**options):
                yield batch.to_pandas()
        except failures as error:
            raise failed(error) from error

    return read


def _require_columns(dataset: Any, columns: Sequence[str], keys: Callable) -> None:
    """Every file has the columns: pyarrow would fill one that is not there up with missing values."""
    for fragment in dataset.get_fragments():
        own = {*fragment.physical_schema.names, *keys(fragment.partition_expression)}
        for name in columns:
            if name not in own:
                where = getattr(fragment, "path", "a part of the dataset")
                raise DataError(f"{where}: {unknown_column(name, sorted(own), 'the model')}")
