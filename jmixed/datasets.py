"""Small classic data sets that come with the package, each with the publication it was first printed in."""

import functools
import json
import textwrap
from dataclasses import dataclass
from importlib import resources

import pandas as pd

from jmixed.errors import DataError
from jmixed.runtime.arguments import checked

_FOLDER = resources.files("jmixed") / "data_files"


@dataclass(frozen=True)
class Dataset:
    """What is known about one bundled data set."""

    title: str  # what was measured, in one line
    columns: dict[str, str]  # meaning and unit of each column, in the order of the file
    text: list[str]  # the columns that are labels, not numbers, even where the labels are digits
    source: str  # the original publication


@checked
def names() -> list[str]:
    """Names of the bundled data sets, in alphabetical order."""
    return sorted(_descriptions())


@checked
def load(name: str) -> pd.DataFrame:
    """Read the data set `name`, one of ``names()``, into a new DataFrame: one row per observation, as published.

    Grouping columns hold text, also where their labels are digits, so that nothing takes a subject's number for a
    measurement. ``describe(name)`` tells what the columns are and where the data were first published.

    Raises
    ------
    DataError
        No data set has this name; the message lists those there are.

    Examples
    --------
    >>> from jmixed import datasets
    >>> sleepstudy = datasets.load("sleepstudy")
    >>> sleepstudy.shape
    (180, 3)
    >>> sleepstudy.Subject.iloc[0]
    '308'
    """
    text = _entry(name).text
    with (_FOLDER / f"{name}.csv").open("rb") as file:
        return pd.read_csv(file, dtype=dict.fromkeys(text, str))


@checked
def describe(name: str) -> str:
    """What `name`, one of ``names()``, holds: its title, its columns with their units, and where it was published.

    Raises
    ------
    DataError
        No data set has this name; the message lists those there are.

    Examples
    --------
    >>> from jmixed import datasets
    >>> print(datasets.describe("dyestuff"))
    dyestuff: yield of dyestuff from six batches of an intermediate product
      Batch  label of the batch
      Yield  yield, grams of standard colour
    Source: Davies, O. L. and Goldsmith, P. L. (eds) (1972), Statistical Methods in
      Research and Production, 4th ed., Oliver and Boyd, section 6.4.
    """
    entry = _entry(name)
    width = max(map(len, entry.columns))
    columns = (f"  {column:<{width}}  {meaning}" for column, meaning in entry.columns.items())
    source = textwrap.fill(f"Source: {entry.source}", width=80, subsequent_indent="  ")
    return "\n".join([f"{name}: {entry.title}", *columns, source])


@functools.cache
def _descriptions() -> dict[str, Dataset]:
    entries = json.loads((_FOLDER / "descriptions.json").read_text(encoding="utf-8"))
    return {name: Dataset(**entry) for name, entry in entries.items()}


def _entry(name: str) -> Dataset:
    if name not in _descriptions():
        raise DataError(f"No bundled data set is called {name!r}; there are {', '.join(names())}.")
    return _descriptions()[name]
