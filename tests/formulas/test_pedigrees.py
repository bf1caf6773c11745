"""Pedigrees: relationships against the tabular method, and what a table of parents may look like."""

import re

import numpy as np
import pandas as pd
import polars
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmixed as jm
from jmixed.errors import ArgumentError, DataError, ModelError
from jmixed.formulas import pedigrees

UNKNOWN = (None, np.nan, "", "0", 0, ".", "NA")


def parents_of(size, rng, missing=0.15, selfing=0.1, generation=None):
    """Parents (size, 2), -1 for unknown ones, of animals that come after them; few parents, so that they are kin."""
    parents = np.full((size, 2), -1)
    for k in range(3, size):
        recent = max(0, k - (generation or size))
        parents[k] = rng.integers(recent, k, 2)
        if rng.uniform() < selfing:
            parents[k, 1] = parents[k, 0]
        parents[k, rng.uniform(size=2) < missing] = -1
    return parents


def tabular(parents):
    """The relationship by the tabular method: a row and a column at a time (Emik and Terrill 1949)."""
    A = np.zeros((len(parents),) * 2)
    for k, (sire, dam) in enumerate(parents):
        for other in range(k):
            A[k, other] = A[other, k] = sum(A[other, parent] / 2 for parent in (sire, dam) if parent >= 0)
        A[k, k] = 1 + (A[sire, dam] / 2 if min(sire, dam) >= 0 else 0)
    return A


def table_of(parents, labels, unknown=(None,), order=None):
    """A frame of the animals, in any order; unknown parents are written in all of the ways in turn."""
    told = [
        [labels[p] if p >= 0 else unknown[(2 * k + side) % len(unknown)] for k, p in enumerate(parents[:, side])]
        for side in (0, 1)
    ]
    frame = pd.DataFrame({"animal": labels, "sire": told[0], "dam": told[1]}, dtype=object)
    return frame if order is None else frame.iloc[order]


def agrees(pedigree, parents, labels):
    """Everything that a pedigree tells, against the tabular method."""
    A = tabular(parents)
    assert set(pedigree.labels) == set(labels)
    place = pedigree.labels.get_indexer(pd.Index(labels))
    np.testing.assert_allclose(pedigree.A.loc[labels, labels], A, atol=1e-12)
    np.testing.assert_allclose(pedigree.inverse.toarray()[np.ix_(place, place)] @ A, np.eye(len(A)), atol=1e-9)
    np.testing.assert_allclose(pedigree.inbreeding[labels], np.diag(A) - 1, atol=1e-12)
    known = parents >= 0
    mean = [A[k, k] - A[np.ix_(p[p >= 0], p[p >= 0])].sum() / 4 for k, p in enumerate(parents)]
    np.testing.assert_allclose(pedigree.variances[place], mean, atol=1e-12)
    np.testing.assert_array_equal(pedigree.parents[place] >= 0, known)
    np.testing.assert_array_equal(pedigree.labels[pedigree.parents[place][known]], np.array(labels)[parents[known]])


@pytest.mark.parametrize("seed", range(4))
def test_random_pedigrees_in_any_order_of_rows(seed):
    rng = np.random.default_rng(seed)
    parents = parents_of(60, rng)
    labels = [f"a{k:02d}" for k in rng.permutation(60)]
    agrees(jm.pedigree(table_of(parents, labels, UNKNOWN, rng.permutation(60))), parents, labels)


def test_many_generations():
    """More of them than the search for circles waits for, and inbreeding that goes towards one."""
    rng = np.random.default_rng(9)
    parents = parents_of(400, rng, missing=0, selfing=0, generation=8)
    labels = list(range(1, 401))
    found = jm.pedigree(table_of(parents, labels, order=rng.permutation(400)))
    agrees(found, parents, labels)
    assert found.inbreeding.max() > 0.9


def test_relationships_are_made_in_parts(monkeypatch):
    rng = np.random.default_rng(3)
    parents = parents_of(50, rng)
    whole = jm.pedigree(table_of(parents, list(range(50, 100))))
    monkeypatch.setattr(pedigrees, "TOGETHER", 60)
    parts = jm.pedigree(table_of(parents, list(range(50, 100))))
    np.testing.assert_array_equal(parts.inbreeding, whole.inbreeding)


def test_selfing_and_one_unknown_parent():
    """Selfed twice: 1.5, then 1.75; a child of one known parent has half of its Mendelian variance more."""
    family = {"animal": ["a", "b", "c", "d"], "sire": ["", "a", "b", "c"], "dam": ["", "a", "b", "0"]}
    found = jm.pedigree(family)
    np.testing.assert_allclose(np.diag(found.A), [1, 1.5, 1.75, 1])
    np.testing.assert_allclose(found.variances, [1, 0.5, 0.25, 1 - 1.75 / 4])


def test_parents_without_rows_are_founders():
    family = pd.DataFrame({"animal": ["c", "d"], "sire": ["s", "c"], "dam": ["t", "t"]})
    found = jm.pedigree(family)
    assert set(found.labels) == {"s", "t", "c", "d"}
    agrees(found, np.array([[-1, -1], [-1, -1], [0, 1], [2, 1]]), ["s", "t", "c", "d"])
    assert repr(found) == "<Pedigree: 4 animals, 2 founders, 14 entries of A^-1>"


def test_an_animal_is_sire_of_one_and_dam_of_another():
    """As plants are."""
    parents = np.array([[-1, -1], [-1, -1], [0, 1], [2, 0], [1, 2]])
    agrees(jm.pedigree(table_of(parents, list("abcde"))), parents, list("abcde"))


@pytest.mark.parametrize("dtype", ["float64", "Int64", "int64", "category", "string"])
def test_whole_numbers_with_gaps(dtype):
    """Missing parents make a column of numbers one of fractions; 0 stands for them in one of integers."""
    parents = np.array([[-1, -1], [-1, -1], [0, 1], [2, -1], [2, 3]])
    labels = [11, 12, 13, 14, 15]
    frame = table_of(parents, labels, unknown=(0,) if dtype == "int64" else (np.nan,))
    frame = frame.astype({"animal": "int64"})
    if dtype == "string":
        frame["animal"], labels = frame["animal"].astype(str), list(map(str, labels))
    for parent in ("sire", "dam"):
        frame[parent] = frame[parent].astype("Int64" if dtype == "string" else "float64").astype(dtype)
    agrees(jm.pedigree(frame), parents, labels)


def test_categories_of_animals_and_of_parents():
    parents = np.array([[-1, -1], [-1, -1], [0, 1], [2, 1]])
    frame = table_of(parents, list("wxyz")).astype("category")
    agrees(jm.pedigree(frame), parents, list("wxyz"))


@pytest.mark.parametrize("make", [polars.DataFrame, dict], ids=["polars", "dict"])
def test_other_tables_and_other_names(make):
    columns = {"line": ["a", "b", "c"], "mother": [None, None, "a"], "father": [None, None, "b"]}
    found = jm.pedigree(make(columns), animal="line", sire="father", dam="mother")
    agrees(found, np.array([[-1, -1], [-1, -1], [1, 0]]), list("abc"))


def test_founders_alone_are_not_related():
    found = jm.pedigree({"animal": ["a", "b"], "sire": [np.nan, np.nan], "dam": [np.nan, np.nan]})
    np.testing.assert_array_equal(found.A, np.eye(2))


def test_the_frame_of_the_caller_is_unchanged():
    frame = table_of(np.array([[-1, -1], [-1, -1], [0, 1]]), [5, 6, 7], (np.nan, "0"))
    before = frame.copy(deep=True)
    jm.pedigree(frame)
    pd.testing.assert_frame_equal(frame, before)


@given(st.integers(0, 10_000), st.permutations(range(12)), st.permutations(range(12)))
def test_labels_and_the_order_of_rows_do_not_matter(seed, order, names):
    parents = parents_of(12, np.random.default_rng(seed), missing=0.3)
    labels, others = [f"a{k}" for k in range(12)], [f"a{k}" for k in names]
    first = jm.pedigree(table_of(parents, labels))
    second = jm.pedigree(table_of(parents, others, order=list(order)))
    np.testing.assert_allclose(second.A.loc[others, others], first.A.loc[labels, labels], atol=1e-13)


@given(st.integers(0, 10_000))
def test_sire_and_dam_may_change_places(seed):
    parents = parents_of(12, np.random.default_rng(seed), missing=0.3)
    frame = table_of(parents, [f"a{k}" for k in range(12)])
    exchanged = jm.pedigree(frame, sire="dam", dam="sire")
    np.testing.assert_allclose(exchanged.A, jm.pedigree(frame).A.loc[exchanged.labels, exchanged.labels], atol=1e-13)


@given(st.integers(0, 10_000))
def test_relationships_lie_in_their_range(seed):
    """Diagonal from one to two, nobody related by more than the root of the diagonals, all of it positive definite."""
    A = jm.pedigree(table_of(parents_of(15, np.random.default_rng(seed)), [f"a{k}" for k in range(15)])).A.to_numpy()
    d = np.diag(A)
    assert ((d >= 1) & (d < 2)).all()
    assert ((A >= -1e-13) & (A / np.sqrt(np.outer(d, d)) < 1 + 1e-12)).all()
    assert np.linalg.eigvalsh(A)[0] > 0


def refused(message, data, error=DataError, **words):
    with pytest.raises(error, match=re.escape(message)):
        jm.pedigree(data, **words)


FAMILY = {"animal": ["a", "b", "c"], "sire": ["", "", "a"], "dam": ["", "", "b"]}


@pytest.mark.parametrize(
    ("message", "changes"),
    [
        ("pedigree: the animal 'a' has 2 rows", {"animal": ["a", "b", "a"]}),
        ("pedigree: row 1 has no animal", {"animal": ["a", None, "c"]}),
        ("pedigree: row 2 has no animal", {"animal": ["a", "b", "0"]}),
        ("the animal 'c' is its own ancestor", {"sire": ["", "", "c"]}),
        ("pedigree: the animals are text ('a') and their parents numbers (7", {"sire": [None, None, 7]}),
        ("pedigree: the animals are numbers (1) and their parents text ('a')", {"animal": [1, 2, 3]}),
    ],
)
def test_what_is_refused(message, changes):
    refused(message, FAMILY | changes)


def test_a_column_that_is_not_there():
    frame = pd.DataFrame(FAMILY).rename(columns={"dam": "Dam"})
    refused("pedigree names the column 'dam', which is not in the data; did you mean 'Dam'?", frame)
    refused("'father'", FAMILY, sire="father")
    refused("pedigree: dam is 4; it must be text", FAMILY, ArgumentError, dam=4)


@pytest.mark.parametrize("length", [2, 5, 100])
def test_an_animal_that_is_its_own_ancestor_through_others(length):
    """A circle, and a line of descendants that hangs from it and is not to blame."""
    circle = [f"c{k}" for k in range(length)]
    line = [f"d{k}" for k in range(6)]
    sires = [*circle[1:], circle[0], circle[0], *line[:-1]]
    with pytest.raises(DataError, match="is its own ancestor") as caught:
        jm.pedigree({"animal": circle + line, "sire": sires, "dam": [None] * len(sires)})
    assert "'c" in str(caught.value)


def test_a_relationship_that_would_fill_the_memory(monkeypatch):
    monkeypatch.setattr(pedigrees, "DENSE", 2)
    found = jm.pedigree(FAMILY)
    with pytest.raises(ModelError, match=r"3 animals has 9 entries; a model takes the pedigree itself"):
        _ = found.A
    assert found.inverse.shape == (3, 3)
