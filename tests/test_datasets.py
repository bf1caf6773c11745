"""Every bundled data set reads as described, and equals the copy that the reference fits were made on."""

import re

import pandas as pd
import pytest
from references import data

from jmixed import datasets
from jmixed.errors import DataError


@pytest.mark.parametrize("name", datasets.names())
def test_reads_as_described(name):
    frame = datasets.load(name)
    entry = datasets._descriptions()[name]
    assert list(frame.columns) == list(entry.columns)
    assert not frame.isna().any(axis=None)
    for column in frame:
        is_text = all(isinstance(value, str) for value in frame[column])
        assert is_text == (column in entry.text), f"{name}: {column}"


@pytest.mark.parametrize("name", datasets.names())
def test_equals_the_data_of_the_reference_fits(name):
    frame = datasets.load(name)
    pd.testing.assert_frame_equal(frame, data(name)[list(frame.columns)], check_dtype=False)


@pytest.mark.parametrize("name", datasets.names())
def test_description_names_every_column_and_a_dated_source(name):
    head, source = datasets.describe(name).split("\nSource: ")
    title, *columns = head.splitlines()
    assert title.startswith(f"{name}: ")
    assert [line.split()[0] for line in columns] == list(datasets.load(name).columns)
    assert re.search(r"\((19|20)\d\d\)", source)


def test_each_load_is_the_callers_own():
    first = datasets.load("dyestuff")
    first.loc[:, "Yield"] = 0
    assert datasets.load("dyestuff").Yield.iloc[0] == 1545


@pytest.mark.parametrize("read", [datasets.load, datasets.describe])
def test_unknown_name_lists_the_known_ones(read):
    with pytest.raises(DataError, match="'sleepstdy'; there are cake, .*sleepstudy"):
        read("sleepstdy")
