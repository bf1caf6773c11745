"""Redundant columns, grouping factors and what identifies a model, checked against definitions."""

from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmixed.errors import ModelError
from jmixed.formulas.checks import constant_column, independent_columns, require_identifiable
from jmixed.formulas.factors import compress, cross, factor
from jmixed.formulas.model_data import RandomTerm


@given(st.integers(0, 2**32 - 1), st.integers(1, 8), st.integers(1, 4), st.booleans())
def test_the_kept_columns_are_the_leftmost_basis(seed, p, rank, scaled):
    rng = np.random.default_rng(seed)
    X = rng.integers(-2, 3, (20, min(rank, p))) @ rng.integers(-1, 2, (min(rank, p), p)).astype(float)
    ranks = [np.linalg.matrix_rank(X[:, : j + 1]) for j in range(p)]
    wanted = [j for j in range(p) if ranks[j] > (ranks[j - 1] if j else 0)]
    scale = 10.0 ** rng.integers(-120 if scaled else 0, 120 if scaled else 1, p)
    np.testing.assert_array_equal(independent_columns(X * scale), wanted)


@pytest.mark.parametrize(("distance", "kept"), [(1e-9, [0, 1]), (1e-6, [0, 1, 2]), (1e-3, [0, 1, 2])])
def test_the_tolerance_is_relative_to_columns_of_unit_length(distance, kept):
    rng = np.random.default_rng(0)
    one, x, other = np.linalg.qr(np.column_stack([np.ones(50), rng.random((50, 2))]))[0].T
    X = np.column_stack([one, x, one + x + distance * other]) * [1e3, 1e-5, 1e8]
    np.testing.assert_array_equal(independent_columns(X), kept)


def test_a_raw_calendar_year_is_no_redundant_column():
    year = np.repeat(np.arange(1990.0, 2021.0), 3)
    np.testing.assert_array_equal(independent_columns(np.column_stack([year**k for k in range(3)])), range(3))


def test_shapes_at_the_edge():
    assert independent_columns(np.zeros((5, 0))).tolist() == []
    assert independent_columns(np.zeros((5, 2))).tolist() == []
    assert independent_columns(np.eye(3)[:, [0, 1, 2, 0]]).tolist() == [0, 1, 2]


def test_constant_columns():
    assert constant_column(np.array([[0.0, 1.0, 2.0], [0.0, 2.0, 2.0]])) == 2
    assert constant_column(np.array([[0.0, 1.0], [0.0, 2.0]])) is None


LABELS = st.lists(st.sampled_from(["b", "a", "c", "ab", "é"]), min_size=1, max_size=30)


@given(LABELS)
def test_a_factor_gives_each_row_its_label(labels):
    made = factor("g", np.array(labels, dtype=object))
    assert list(made.levels) == sorted(set(labels))
    assert list(made.levels.to_numpy()[made.codes]) == labels
    np.testing.assert_array_equal(made.match([np.array(labels[::-1], dtype=object)]), made.codes[::-1])
    np.testing.assert_array_equal(made.match([np.array(["none"])]), [-1])


@given(st.lists(st.tuples(st.integers(-300, 300), st.sampled_from("abc"), st.booleans()), min_size=1, max_size=40))
def test_crossed_levels_are_the_combinations_that_occur(rows):
    columns = [pd.Series(values) for values in zip(*rows, strict=True)]
    single = [factor(name, values) for name, values in zip("xyz", columns, strict=True)]
    pair = cross("x:y", single[0], single[1])
    whole = cross("x:y:z", pair, single[2])
    combinations = sorted(set(rows))
    assert list(whole.levels) == [f"{x}:{y}:{z}" for x, y, z in combinations]
    assert [combinations[code] for code in whole.codes] == rows
    np.testing.assert_array_equal(whole.match(columns), whole.codes)
    decoded = [t.take(c) for t, c in zip(whole.tables, whole.decode(), strict=True)]
    assert list(zip(*decoded, strict=True)) == combinations
    strange = whole.match([columns[0] + 1000, columns[1], columns[2]])
    np.testing.assert_array_equal(strange, -1)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=30), st.booleans())
def test_compress(keys, sparse):
    keys = np.array(keys) * (10**6 if sparse else 1) % (10**12 if sparse else 50)
    distinct, codes = compress(keys, int(keys.max()) + 1)
    np.testing.assert_array_equal(distinct, np.unique(keys))
    np.testing.assert_array_equal(distinct[codes], keys)
    assert codes.dtype == np.int32


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int64", "uint64"])
def test_small_and_large_integers_are_levels(dtype):
    info = np.iinfo(dtype)
    values = np.array([info.max, info.min, info.max - 1, info.min], dtype)
    made = factor("g", values)
    np.testing.assert_array_equal(made.levels.to_numpy()[made.codes], values)
    assert made.levels.dtype == dtype


def random_term(codes, *columns, label="term"):
    codes = np.unique(codes, return_inverse=True)[1].astype(np.int32)
    Z = np.column_stack(columns)
    names = tuple(f"column {k}" for k in range(Z.shape[1]))
    return RandomTerm(label, "g", codes, pd.RangeIndex(codes.max() + 1), names, Z)


class TestIdentifiable:
    n = 60
    one = np.ones(n)
    row = np.arange(n)
    pair = row // 2
    rng = np.random.default_rng(0)
    weights = rng.uniform(1, 3, n)
    x, z = rng.normal(size=(2, n))
    visit = row % 2 * 1.0
    terms = {
        "one row a level": [random_term(row, one)],
        "one row a level, a slope": [random_term(row, one, x)],
        "one row a level, in some rows": [random_term(row, visit)],
        "two rows a level, at two times": [random_term(pair, one, visit + 2000)],
        "two rows a level, at any time": [random_term(pair, one, x)],
        "two slopes a level": [random_term(row // 3, one), random_term(row // 3, x), random_term(row // 3, z)],
        "two slopes for two rows": [random_term(pair, one), random_term(pair, x), random_term(pair, z)],
        "two terms, at two times": [random_term(pair, one), random_term(pair, 2 * visit - 1)],
        "two terms, at two other times": [random_term(pair, one), random_term(pair, visit)],
        "slopes, and levels inside": [
            random_term(row // 4, one, x),
            random_term(row // 4 * 3 + [0, 1, 2, 2] * 15, one),
        ],
        "levels inside, few of one row": [
            random_term(row // 4, one),
            random_term(row // 4 * 3 + [0, 1, 2, 2] * 15, one),
        ],
        "many columns of one variance": [replace(random_term(0 * row, *rng.normal(size=(n, n))), structure="identity")],
    }

    @pytest.mark.parametrize(
        ("name", "weighted", "reason"),
        [
            ("one row a level", False, "60 levels x 1.* for 60 rows.* vary like the residual"),
            ("one row a level", True, None),
            ("one row a level, a slope", False, "vary like the residual"),
            ("one row a level, in some rows", False, None),
            ("two rows a level, at two times", False, "30 levels x 2.* vary like the residual"),
            ("two rows a level, at two times", True, None),
            ("two rows a level, at any time", False, None),
            ("two slopes a level", False, None),
            ("two slopes for two rows", False, "90 coefficients for 60 rows, which reproduce any response"),
            ("two terms, at two times", False, "60 coefficients for 60 rows: .* vary like the residual"),
            ("two terms, at two other times", False, None),
            ("slopes, and levels inside", False, "75 coefficients for 60 rows, which reproduce any response"),
            ("levels inside, few of one row", False, None),
            ("many columns of one variance", False, None),
        ],
    )
    def test_what_can_be_told_from_the_residual(self, name, weighted, reason):
        weights = self.weights if weighted else self.one
        require_identifiable(self.terms[name], weights, "ignore")
        refused = nullcontext() if reason is None else pytest.raises(ModelError, match=reason)
        with refused:
            require_identifiable(self.terms[name], weights, "raise")

    def test_the_check_has_two_values(self):
        with pytest.raises(ModelError, match="check is 'warn'; it must be"):
            require_identifiable([], self.one, "warn")
