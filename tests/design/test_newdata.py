"""New rows: the model's columns, levels and states on data that it has not seen."""

import pickle

import numpy as np
import pandas as pd
import pytest

from jmixed.design.matrices import from_arrays, from_formula, new_rows
from jmixed.errors import DataError, FormulaError


@pytest.fixture
def table():
    rng = np.random.default_rng(8)
    return pd.DataFrame(
        {
            "y": rng.standard_normal(60),
            "x": rng.standard_normal(60),
            "z": rng.random(60) + 0.1,
            "g": np.repeat([f"s{k}" for k in range(10)], 6),
            "f": np.tile(["u", "v", "w"], 20),
            "class": np.tile(list("abcd"), 15),
        }
    )


WORDS = "np.log(y**2) ~ poly(x, 2) + center(z)*C(class) + I(2 * x) + offset(z) + (scale(x) || g/f) + (f | class)"


def test_the_same_rows_give_the_same_arrays(table):
    model = from_formula(WORDS, table)
    assert model.dropped == ("I(2 * x)",)
    for restored in (model, pickle.loads(pickle.dumps(model))):
        rows = new_rows(restored, table.drop(columns="y").iloc[::-7], random=True)
        chosen = np.arange(60)[::-7]
        np.testing.assert_allclose(rows.X, model.X[chosen], rtol=1e-13, atol=1e-13)
        np.testing.assert_array_equal(rows.offset, model.offset[chosen])
        assert rows.index.equals(table.index[chosen])
        assert not rows.missing.any()
        for term, codes, Z in zip(model.terms, rows.codes, rows.Z, strict=True):
            np.testing.assert_array_equal(codes, term.codes[chosen])
            np.testing.assert_allclose(Z, term.Z[chosen], rtol=1e-13, atol=1e-13)


def test_only_what_is_needed_is_asked_for(table):
    model = from_formula("y ~ x + (z | g)", table)
    rows = new_rows(model, {"x": [1.0, 2.0]})
    np.testing.assert_array_equal(rows.X, [[1.0, 1.0], [1.0, 2.0]])
    assert (rows.codes, rows.Z) == ((), ())
    with pytest.raises(DataError, match="'z'"):
        new_rows(model, {"x": [1.0], "g": ["s1"]}, random=True)
    with pytest.raises(DataError, match="'g'"):
        new_rows(model, {"x": [1.0], "z": [1.0]}, random=True)
    with pytest.raises(DataError, match="'x'"):
        new_rows(model, {"z": [1.0]})
    assert new_rows(from_formula("y ~ 1 + (1 | g)", table), pd.DataFrame({"k": [1, 2, 3]})).X.shape == (3, 1)


def test_unknown_levels_have_the_code_minus_one(table):
    model = from_formula("y ~ x + (1 | g/f)", table.iloc[3:])
    new = pd.DataFrame({"x": 0.0, "g": ["s1", "new", "s1", "s0", None], "f": ["u", "u", "new", "u", "u"]})
    codes = new_rows(model, new, random=True).codes
    np.testing.assert_array_equal(codes[0], [1, -1, 1, 0, -1])
    np.testing.assert_array_equal(codes[1][[1, 2, 4]], [-1, -1, -1])
    assert model.terms[1].levels[codes[1][0]] == "s1:u"


@pytest.mark.parametrize(
    "words", ["y ~ f + (1 | g)", "y ~ C(f, Sum) + (1 | g)", "y ~ x:f + (1 | g)", "y ~ x + (f | g)"]
)
def test_an_unseen_category_is_refused(table, words):
    model = from_formula(words, table)
    with pytest.raises(DataError, match=r"not seen: \['other'\]; the known ones are \['u', 'v', 'w'\]"):
        new_rows(model, table.iloc[:2].assign(f=["u", "other"]), random=True)
    new_rows(model, table.iloc[:2].assign(f=pd.Categorical(["v", "v"], categories=["other", "v"])), random=True)


def test_rows_with_missing_values_are_marked(table):
    model = from_formula("y ~ x + f + offset(z) + (1 | g)", table)
    new = table.iloc[:5].copy()
    new.loc[0, "x"] = np.nan
    new.loc[1, "f"] = None
    new.loc[2, "z"] = np.nan
    new.loc[3, "g"] = None
    rows = new_rows(model, new, random=True)
    np.testing.assert_array_equal(rows.missing, [True, True, True, False, False])
    assert np.isnan(rows.X[:2]).all()
    assert rows.codes[0][3] == -1
    log = from_formula("y ~ np.log(z) + (1 | g)", table)
    np.testing.assert_array_equal(new_rows(log, {"z": [1.0, -1.0]}).missing, [False, True])


def test_offsets(table):
    named = from_formula("y ~ x", table, groups="g", offset="z")
    np.testing.assert_array_equal(new_rows(named, table.iloc[:3]).offset, table["z"].iloc[:3])
    given = from_formula("y ~ x", table, groups="g", offset=table["z"].to_numpy())
    with pytest.raises(DataError, match="offset as an array"):
        new_rows(given, table)
    zero = from_formula("y ~ x", table, groups="g", offset=np.zeros(60))
    np.testing.assert_array_equal(new_rows(zero, table).offset, np.zeros(60))


def test_text_where_numbers_were(table):
    model = from_formula("y ~ x + np.log(z) + (1 | g)", table)
    for column in ("x", "z"):
        with pytest.raises(DataError, match=f"'{column}' holds text"):
            new_rows(model, table.assign(**{column: table[column].astype(str)}))


def test_beyond_the_boundary_of_a_spline(table):
    model = from_formula("y ~ bs(x, df=4) + (1 | g)", table)
    with pytest.raises(FormulaError, match="beyond upper and/or lower bounds"):
        new_rows(model, {"x": [100.0]})


def test_models_of_arrays(table):
    X = np.column_stack([np.ones(60), table["x"], 2 * table["x"]])
    model = from_arrays(table["y"], X, table["g"])
    np.testing.assert_array_equal(new_rows(model, X[:3]).X, X[:3, :2])
    np.testing.assert_array_equal(new_rows(model, X[:3, :2]).X, X[:3, :2])
    with pytest.raises(DataError, match=r"shape \(3, 5\); it must have the 3 columns"):
        new_rows(model, np.ones((3, 5)))
    with pytest.raises(DataError, match="need a formula"):
        new_rows(model, X[:3], random=True)
