"""Two ways to read data that come in batches: one after the other, or where Dask holds them."""

from collections.abc import Callable, Iterable
from contextlib import contextmanager
from typing import Any

import pandas as pd

from jmixed.errors import DataError, JmixedError
from jmixed.streams import sums, survey
from jmixed.streams.reading import Reader, naming, reading


@contextmanager
def over(batches):
    """What is asked of all batches: their tables, the survey of a statement, the sums of a plan."""
    if hasattr(batches, "to_delayed") and hasattr(batches, "npartitions"):
        yield _OnDask(batches)
    else:
        with reading(batches) as tables:
            yield _InTurn(tables)


class _InTurn:
    """Batches that are read one after the other."""

    def __init__(self, tables: Reader):
        self.tables = tables

    def survey(self, statement) -> survey.Survey | None:
        return survey.survey_of(statement, self.tables(statement.columns))

    def sums(self, plan) -> sums.CrossSums | None:
        return sums.sums_of(plan, self.tables(plan.statement.columns))


class _OnDask:
    """Partitions of a Dask DataFrame: what each tells is computed where it is, and put together as a tree."""

    def __init__(self, frame):
        self.frame = frame

    def tables(self, columns) -> Iterable[pd.DataFrame]:
        return map(_computed, self._parts(columns))

    def _parts(self, columns):
        return (self.frame if columns is None else self.frame[list(columns)]).to_delayed()

    def survey(self, statement) -> survey.Survey | None:
        return self._reduced(statement.columns, lambda part: survey.survey(statement, part), statement)

    def sums(self, plan) -> sums.CrossSums | None:
        return self._reduced(plan.statement.columns, lambda part: sums.sums(plan, part), None)

    def _reduced(self, columns, function: Callable, statement) -> Any:
        from dask.delayed import delayed  # pyright: ignore[reportMissingImports]

        def join(first, other):
            if first is None or other is None:
                return other if first is None else first
            return sums.merge(first, other) if statement is None else survey.merge(statement, first, other)

        def named(number, part):
            with naming(number):
                return function(part)

        parts = [delayed(named)(number, part) for number, part in enumerate(self._parts(columns))]
        return _computed(survey.reduce_in_pairs(parts, delayed(join)))


def _computed(delayed: Any) -> Any:
    """What Dask computes; a partition that cannot be read is named as such."""
    try:
        return delayed.compute()
    except JmixedError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"a partition of the Dask DataFrame cannot be read ({error}); if a file was cut short while it was "
            "written, write it again"
        ) from error
