"""New rows: the model's columns, levels and states on data that it has not seen."""

import pickle

import numpy as np
import pandas as pd
import pytest

from jmixed.errors import DataError, FormulaError
from jmixed.formulas.statement import from_arrays, from_formula, new_rows


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
    model = from_formula(WORDS, table, check="ignore")
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


YEARS = {
    "the categories": lambda s: s.astype(pd.CategoricalDtype([2019, 2020, 2021])),
    "integers": lambda s: s.astype("int32"),
    "floats": lambda s: s.astype(float),
    "objects": lambda s: s.astype(object),
    "Int64": lambda s: s.astype("Int64"),
    "arrow": lambda s: s.astype("int64[pyarrow]"),
    "other categories": lambda s: pd.Categorical(s.astype(float)),
}


@pytest.fixture
def years(table):
    year = pd.Series(np.tile([2019, 2020, 2021, 2020], 15))
    return table.assign(year=pd.Categorical(year), flag=pd.Categorical(year > 2019), dose=year / 2, number=year)


@pytest.mark.parametrize("kind", YEARS)
@pytest.mark.parametrize(
    "words", ["y ~ year*x + (1 | g)", "y ~ x + (0 + year | g)", "y ~ I(year == 2020) + C(year, Sum) + (year | g)"]
)
def test_a_category_of_numbers_is_known_by_its_values(years, words, kind):
    model = from_formula(words, years)
    rows = new_rows(model, years.assign(year=YEARS[kind](years["number"])), random=True)
    np.testing.assert_array_equal(rows.X, model.X)
    np.testing.assert_array_equal(rows.Z[0], model.terms[0].Z)
    with pytest.raises(DataError, match=r"not seen: \[1999(.0)?\]"):
        new_rows(model, years.iloc[:1].assign(year=YEARS["objects"](pd.Series([1999]))), random=True)


def test_categories_of_a_component_are_known_by_their_values(years):
    for formula in ("0 + year", "1 + year", "0 + year:x", "center(x) + year"):
        model = from_formula("y ~ x", years, groups="g", vc_formula={"v": formula})
        rows = new_rows(model, years.assign(year=years["number"]), random=True)
        np.testing.assert_array_equal(rows.codes[0], model.terms[0].codes)
        np.testing.assert_allclose(rows.Z[0], model.terms[0].Z, atol=1e-13)


def test_what_a_model_has_learnt_stays_its_own(years):
    """New data of another kind changes nothing, here or in other models of the formula."""
    words = "y ~ year + flag + scale(x) + (1 | g)"
    first, second = (from_formula(words, years) for _ in range(2))
    before = pickle.dumps((first.recipe.specs["rhs"].encoder_state, first.recipe.specs["rhs"].transform_state))
    for year in ([2020], ["2020"], [1999], pd.Categorical([2020])):
        try:
            new_rows(first, pd.DataFrame({"year": year, "flag": [True], "x": [0.0]}))
        except DataError:
            assert year in (["2020"], [1999])
    assert before == pickle.dumps((first.recipe.specs["rhs"].encoder_state, first.recipe.specs["rhs"].transform_state))
    for model in (first, second, from_formula(words, years)):
        np.testing.assert_array_equal(new_rows(model, years).X, model.X)


def test_truth_values_of_every_kind(years):
    model = from_formula("y ~ b + (1 | g)", years.assign(b=years["number"] > 2019))
    for values in (
        *([False, True], [0, 1], [0.0, 1.0], pd.Categorical([False, True]), pd.array([False, True], dtype="boolean")),
        np.array([False, True], object),
    ):
        np.testing.assert_array_equal(new_rows(model, {"b": values}).X, [[1, 0], [1, 1]])
    missing = new_rows(model, {"b": pd.array([True, None], dtype="boolean")})
    np.testing.assert_array_equal(missing.missing, [False, True])
    np.testing.assert_array_equal(missing.X[0], [1, 1])
    with pytest.raises(DataError, match="'b' holds 0.5 where the model knows True and False"):
        new_rows(model, {"b": [0.5]})
    with pytest.raises(
        DataError, match=r"""'True', 'False' where the model knows.*data\['b'\] = data\['b'\] == "True\""""
    ):
        new_rows(model, {"b": ["True", "False"]})
    only = from_formula("y ~ I(x > -9) + (1 | g)", years)
    with pytest.raises(DataError, match=r"not seen: \[False\]"):
        new_rows(only, {"x": [-10.0]})


def test_numbers_that_come_as_categories_or_truth_values(years):
    model = from_formula("y ~ number + C(dose) + (1 | g)", years)
    new = years.assign(number=pd.Categorical(years["number"]), dose=pd.Categorical(years["dose"]))
    np.testing.assert_array_equal(new_rows(model, new).X, model.X)
    with pytest.raises(DataError, match="'number' holds text"):
        new_rows(model, years.assign(number=pd.Categorical(years["number"].astype(str))))
    with pytest.raises(DataError, match=r"text where the model knows numbers"):
        new_rows(model, years.assign(dose=years["dose"].astype(str)))
    np.testing.assert_array_equal(new_rows(from_formula("y ~ x + (1 | g)", years), {"x": [True]}).X, [[1, 1]])


def test_a_factor_that_changes_its_kind_is_refused(years):
    state = {"kind": lambda v: v.astype("category")}
    model = from_formula("y ~ f_(x) + (1 | g)", years.assign(x=years["number"]), env={"f_": lambda v: state["kind"](v)})
    state["kind"] = lambda v: v
    with pytest.raises(DataError, match=r"f_\(x\)"):
        new_rows(model, {"x": [2019]})


def test_one_row_and_no_rows(table):
    model = from_formula("y ~ x + f + (x | g)", table)
    row = table.drop(columns="y").iloc[7]
    for one in (row, row.to_dict(), {name: np.asarray(value) for name, value in row.items()}, row.to_frame().T):
        found = new_rows(model, one, random=True)
        np.testing.assert_array_equal(found.X, model.X[7:8])
        np.testing.assert_array_equal(found.Z[0], model.terms[0].Z[7:8])
        assert found.codes[0].tolist() == [1]
    assert list(new_rows(model, row).index) == [7]
    np.testing.assert_array_equal(new_rows(model, {"x": [1.0, 2.0], "f": "v"}).X[:, 1:], [[1, 1, 0], [2, 1, 0]])
    slope = from_formula("y ~ x + (1 | g)", table)
    np.testing.assert_array_equal(new_rows(slope, table["x"]).X, slope.X)
    np.testing.assert_array_equal(new_rows(slope, table[["x", "z"]].mean()).X[:, 1], [table["x"].mean()])
    for none in (table.iloc[:0], {"x": [], "f": [], "g": []}, table.assign(x=np.nan)):
        found = new_rows(model, none, random=True)
        assert (found.X.shape, found.Z[0].shape) == ((len(found.index), 4), (len(found.index), 2))
        assert found.missing.all()
    with pytest.raises(DataError, match=r"'f': 2, 'g': 'a scalar'"):
        new_rows(model, {"x": [1.0, 2.0, 3.0], "f": ["u", "v"], "g": "treatment"})


@pytest.mark.parametrize(("ours", "theirs"), [(str, int), (int, str), (str, float), (int, object)])
def test_labels_that_differ_in_type_only(table, ours, theirs):
    labels = pd.Series(np.repeat(np.arange(300, 310), 6))
    model = from_formula("y ~ x + (1 | f/g)", table.assign(g=labels.astype(ours)))
    new = table.iloc[:9].assign(g=labels[:9].astype(theirs))
    if theirs is object:
        np.testing.assert_array_equal(new_rows(model, new, random=True).codes[1], model.terms[1].codes[:9])
        return
    words = ("numbers in the new data, 300", "text in the data that the model was fitted to, '300'")
    words = words if ours is str else ("text in the new data, '300'", "numbers in the data .*, 300")
    with pytest.raises(DataError, match=".*".join(("grouping factor 'g' has", *words))):
        new_rows(model, new, random=True)
    assert (new_rows(model, new.assign(g=theirs(999)), random=True).codes[1] == -1).all()


def test_whole_numbers_beyond_the_digits_of_floats(table):
    labels = 2**60 + pd.Series(np.repeat(np.arange(10), 6))
    for kind in ("int64", "Int64", "int64[pyarrow]"):
        data = table.assign(g=labels.astype(kind))
        model = from_formula("y ~ C(g) + (1 | g)", data)
        assert model.exog_names[1] == f"C(g)[T.{2**60 + 1}]"
        assert (len(model.terms[0].levels), model.terms[0].levels.dtype) == (10, np.dtype("int64"))
        new = pd.array([2**60 + 3, None], dtype="Int64")
        found = new_rows(model, {"g": new}, random=True)
        np.testing.assert_array_equal(found.missing, [False, True])
        assert (found.codes[0][0], found.X[0].tolist().index(1.0, 1)) == (3, 3)


@pytest.mark.parametrize(
    "term",
    [
        "I(x - x.mean())",
        "I(x > np.median(x))",
        "I(z / z.max())",
        "x.rank()",
        "lag(x)",
        "pd.cut(x, 3)",
        "I(x - x.iloc[0])",
    ],
)
def test_what_depends_on_other_rows_has_no_value_in_new_ones(table, term):
    """Of a part of the rows the mean is another: predictions were those of another model, in silence, as in R."""
    env = {"np": np, "pd": pd}
    for words in (f"y ~ z + {term} + (1 | g)", f"y ~ z + ({term} | g)"):
        model = from_formula(words, table, env=env, missing="drop")
        with pytest.raises(DataError, match="needs the whole column at once: in new rows"):
            new_rows(model, table.iloc[5:25], random=True)
    # The rows of the model itself are no new ones, and what is learnt or known is as it was.
    if term != "lag(x)":
        model = from_formula(f"y ~ z + {term} + (1 | g)", table, env=env)
        np.testing.assert_array_equal(new_rows(model, table).X, model.X)
    others = "scale(x) + np.digitize(x, [0]) + I(np.maximum(x, z)) + x.abs() + pd.cut(x, [-9, 0, 9])"
    model = from_formula(f"y ~ z + {others} + (1 | g)", table, env=env)
    np.testing.assert_allclose(new_rows(model, table.iloc[5:25]).X, model.X[5:25], rtol=1e-12)


@pytest.mark.parametrize("expression", ["np.round(3 * x / x.max())", "pd.cut(x, 3)"])
def test_a_grouping_factor_that_depends_on_other_rows_has_no_levels_in_new_ones(table, expression):
    env = {"np": np, "pd": pd}
    model = from_formula(f"y ~ 1 + (1 | {expression})", table, env=env, check="ignore")
    with pytest.raises(DataError, match="the grouping factor .* needs all rows"):
        new_rows(model, table.iloc[5:25], random=True)
    np.testing.assert_array_equal(new_rows(model, table, random=True).codes[0], model.terms[0].codes)
    known = from_formula("y ~ 1 + (1 | np.floor(x))", table, env=env, check="ignore")
    codes = new_rows(known, table.iloc[5:25], random=True).codes[0]
    np.testing.assert_array_equal(codes, known.terms[0].codes[5:25])


@pytest.mark.parametrize("component", ["0 + I(x - x.mean())", "0 + I(x / x.max())", "0 + I(x - x.iloc[4])"])
def test_a_component_that_depends_on_other_rows_of_its_group_has_no_columns_in_new_ones(table, component):
    model = from_formula("y ~ x", table, groups="g", re_formula="1", vc_formula={"slope": component})
    with pytest.raises(DataError, match="the variance component 'slope' needs all rows"):
        new_rows(model, table.iloc[:5], random=True)
    for term, Z in zip(model.terms, new_rows(model, table, random=True).Z, strict=True):
        np.testing.assert_allclose(Z, term.Z, rtol=1e-13)


def test_a_model_keeps_its_rows_whatever_becomes_of_the_table(table):
    model = from_formula("y ~ x * f + (1 | g)", table)
    as_it_was = model.frame.copy(deep=True)
    table.loc[:, "x"] = 0.0
    table["f"] = "u"
    table.loc[len(table)] = table.loc[0]
    table.index = table.index[::-1]
    del table["g"]
    pd.testing.assert_frame_equal(model.frame, as_it_was)
