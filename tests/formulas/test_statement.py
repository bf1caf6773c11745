"""From words and tables to arrays: both grammars, every kind of table and column, rows by subset and missing values."""

import re
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pandas as pd
import patsy
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import jmixed as jm
from jmixed.errors import FormulaError
from jmixed.formulas.frame import as_frame
from jmixed.formulas.statement import from_formula, new_rows


@pytest.fixture
def table():
    rng = np.random.default_rng(11)
    n = 60
    return pd.DataFrame(
        {
            "y": rng.standard_normal(n),
            "x": rng.standard_normal(n),
            "z": rng.random(n) + 0.1,
            "g": np.repeat(np.arange(10), 6),
            "h": rng.choice(list("abcd"), n),
            "f": np.tile(["u", "v", "w"], 20),
            "class": np.repeat(list("pqrst"), 12),
            "body mass": rng.random(n) + 1,
            "yield": rng.standard_normal(n),
        },
        index=rng.permutation(n) + 100,
    )


def summary(model):
    return [(t.label, t.group, t.columns, t.structure, t.intercept) for t in model.terms]


def same(one, other):
    """Whether two models have the same arrays."""
    for a, b in ((one.y, other.y), (one.X, other.X), (one.weights, other.weights), (one.offset, other.offset)):
        np.testing.assert_array_equal(a, b)
    assert one.exog_names == other.exog_names
    assert len(one.terms) == len(other.terms)
    for s, t in zip(one.terms, other.terms, strict=True):
        np.testing.assert_array_equal(s.codes, t.codes)
        np.testing.assert_array_equal(s.Z, t.Z)
        assert (s.columns, s.structure) == (t.columns, t.structure)


def test_arrays_of_a_random_slope(table):
    model = from_formula("y ~ x + (x | g)", table)
    np.testing.assert_array_equal(model.y, table["y"])
    np.testing.assert_array_equal(model.X, np.column_stack([np.ones(60), table["x"]]))
    np.testing.assert_array_equal(model.weights, np.ones(60))
    np.testing.assert_array_equal(model.offset, np.zeros(60))
    (term,) = model.terms
    np.testing.assert_array_equal(term.Z, model.X)
    np.testing.assert_array_equal(term.codes, table["g"])
    assert term.codes.dtype == np.int32
    assert list(term.levels) == list(range(10))
    assert summary(model) == [("x | g", "g", ("Intercept", "x"), "unstructured", 0)]
    assert (model.endog_name, model.exog_names, model.dropped) == ("y", ("Intercept", "x"), ())
    assert model.index.equals(table.index)
    assert model.frame.equals(table)


def test_double_bars_make_one_term_per_term_of_the_effects(table):
    f = ("f[u]", "f[v]", "f[w]")
    assert summary(from_formula("y ~ x + (x * z || g)", table)) == [
        ("1 | g", "g", ("Intercept",), "unstructured", 0),
        ("0 + x | g", "g", ("x",), "unstructured", None),
        ("0 + z | g", "g", ("z",), "unstructured", None),
        ("0 + x:z | g", "g", ("x:z",), "unstructured", None),
    ]
    # What a category's covariances hold already, as a common part, is left out.
    assert summary(from_formula("y ~ x + (x * f + z || g)", table, check="ignore")) == [
        ("0 + f | g", "g", f, "unstructured", None),
        ("0 + z | g", "g", ("z",), "unstructured", None),
        ("0 + x:f | g", "g", tuple(f"x:{name}" for name in f), "unstructured", None),
    ]
    truth = from_formula("y ~ x + (b * z || g)", table.assign(b=table["x"] > 1))
    assert [t.label for t in truth.terms] == ["0 + b | g", "0 + b:z | g"]
    apart = from_formula("y ~ x + (0 + poly(x, 2) + `body mass` || g:C(class))", table)
    assert [t.label for t in apart.terms] == ["0 + poly(x, 2) | g:class", "0 + `body mass` | g:class"]
    assert [t.columns for t in apart.terms] == [("poly(x, 2)[1]", "poly(x, 2)[2]"), ("body mass",)]
    same(from_formula("y ~ (C(class) || g)", table), from_formula("y ~ (0 + C(class) | g)", table))


def test_labels_of_terms_are_unique(table):
    model = from_formula("y ~ (1|g) + (1 | g) + (x || g)", table)
    assert [t.label for t in model.terms] == ["1 | g", "1 | g (2)", "1 | g (3)", "0 + x | g"]


def test_nested_and_crossed_levels_are_labelled(table):
    model = from_formula("y ~ (1 | h/f)", table)
    assert [t.group for t in model.terms] == ["h", "h:f"]
    pairs = sorted(set(zip(table["h"], table["f"], strict=True)))
    assert list(model.terms[1].levels) == [f"{h}:{f}" for h, f in pairs]
    labels = table["h"] + ":" + table["f"]
    np.testing.assert_array_equal(model.terms[1].levels.to_numpy()[model.terms[1].codes], labels)


def test_a_factor_is_made_once_for_terms_that_share_it(table):
    model = from_formula("y ~ (1 | g) + (0 + x | g) + (1 | h)", table)
    assert model.terms[0].codes is model.terms[1].codes


def test_statsmodels_arguments_and_bars_agree(table):
    pairs = [
        ({}, "(1 | g)"),
        ({"re_formula": "1"}, "(1 | g)"),
        ({"re_formula": "~x"}, "(x | g)"),
        ({"re_formula": "0 + x"}, "(0 + x | g)"),
        ({"re_formula": "1", "vc_formula": {"x": "0 + x"}}, "(1 | g) + (0 + x | g)"),
        ({"vc_formula": {"f": "0 + C(f)"}}, "(1 | g:f)"),
        ({"re_formula": "~x", "vc_formula": {"b": "0 + C(h)", "a": "0 + f"}}, "(x | g) + (1 | g:f) + (1 | g:h)"),
    ]
    for words, bars in pairs:
        same(from_formula("y ~ z", table, groups="g", **words), from_formula(f"y ~ z + {bars}", table))


def test_groups_may_be_an_array(table):
    named = from_formula("y ~ x", table, groups="g")
    for groups in (
        table["g"].to_numpy(),
        list(table["g"]),
        table["g"].reset_index(drop=True),
        pd.Categorical(table["g"]),
    ):
        model = from_formula("y ~ x", table, groups=groups)
        same(model, named)
        assert (model.group_name, named.group_name) == ("Group", "g")
        assert model.terms[0].group == "Group"
        np.testing.assert_array_equal(model.groups, table["g"])


def test_names_that_python_does_not_like(table):
    plain = table.rename(columns={"class": "k", "body mass": "m", "yield": "o"})
    wanted = from_formula("o ~ C(k) + np.log(m) + (m | k)", plain)
    for text in (
        "yield ~ C(class) + np.log(`body mass`) + (`body mass` | class)",
        "`yield` ~ C(`class`) + np.log(`body mass`) + (`body mass` | `class`)",
        'Q("yield") ~ C(Q("class")) + np.log(Q("body mass")) + (Q("body mass") | Q("class"))',
    ):
        model = from_formula(text, table)
        np.testing.assert_array_equal(model.X, wanted.X)
        np.testing.assert_array_equal(model.terms[0].Z, wanted.terms[0].Z)
        assert model.terms[0].group == "class"
    model = from_formula("yield ~ C(class) + center(class == 'p')", table, groups="h")
    assert model.exog_names[1:] == ("C(class)[T.q]", "C(class)[T.r]", "C(class)[T.s]", "C(class)[T.t]")
    assert model.dropped == ("center(class == 'p')",)
    spaced = table.rename(columns={"g": "my group"})
    same(from_formula("y ~ x", spaced, groups="my group"), from_formula("y ~ x", table, groups="g"))
    same(from_formula("y ~ x", spaced, groups="`my group`"), from_formula("y ~ x", table, groups="g"))
    nested = {"c": "0 + C(class)", "m": "0 + `body mass`"}
    model = from_formula("y ~ x", table, groups="h", vc_formula=nested)
    wanted = from_formula("y ~ x", plain, groups="h", vc_formula={"c": "0 + C(k)", "m": "0 + m"})
    for one, other in zip(model.terms, wanted.terms, strict=True):
        np.testing.assert_array_equal(one.codes, other.codes)
        np.testing.assert_array_equal(one.Z, other.Z)


def test_a_column_may_be_called_like_a_transform(table):
    renamed = table.rename(columns={"x": "scale", "f": "C"})
    same_columns = from_formula("y ~ scale + C + np.log(z) + (1 | g)", renamed)
    np.testing.assert_array_equal(same_columns.X, from_formula("y ~ x + f + np.log(z) + (1 | g)", table).X)
    np.testing.assert_array_equal(
        from_formula("y ~ C(h) + (1 | C)", renamed).X, from_formula("y ~ C(h) + (1 | f)", table).X
    )


def test_the_callers_functions_and_constants(table):
    env = {"twice": lambda v: 2 * v, "K": 3.0, "scale": 5.0, "x": np.zeros(60), "outside": np.arange(60.0)}
    model = from_formula("y ~ twice(x) + I(K * z) + scale(z) + outside + (twice(z) | g)", table, env=env)
    np.testing.assert_array_equal(model.X[:, 1], 2 * table["x"])
    np.testing.assert_array_equal(model.X[:, 2], 3 * table["z"])
    np.testing.assert_array_equal(model.X[:, 3], np.arange(60.0))
    assert model.dropped == ("scale(z)",)
    np.testing.assert_array_equal(model.terms[0].Z[:, 1], 2 * table["z"])


def test_a_response_is_arithmetic():
    """R 4.2, lme4 1.1-31: lmer((Reaction - 250)/Days^2 ~ Days + (1 | Subject), subset(sleepstudy, Days > 0))."""
    sleep = jm.datasets.load("sleepstudy").query("Days > 0")
    for left in ("(Reaction - 250)/Days^2", "(Reaction - 250) / Days**2", "I((Reaction - 250) / Days**2)"):
        result = jm.mixedlm(f"{left} ~ Days + (1 | Subject)", sleep).fit()
        np.testing.assert_allclose(result.objective, 1246.7075474, rtol=1e-9)
        np.testing.assert_allclose(result.fe_params, [9.0827947769, -1.09462014615], rtol=1e-7)
        assert result.model.update(". ~ . - Days").endog_names == "I((Reaction - 250) / Days ** 2)"
    odd = sleep.rename(columns={"Reaction": "yield", "Days": "t.d"})
    model = jm.mixedlm("yield/100 - t.d ~ (1 | Subject)", odd)
    np.testing.assert_allclose(model.endog, sleep["Reaction"] / 100 - sleep["Days"])


def test_natural_splines_are_those_of_r():
    """R 4.2: lmer(Reaction ~ ns(Days, df = 3) + (1 | Subject), sleepstudy), predictions of the fixed part."""
    sleep = jm.datasets.load("sleepstudy")
    words = "Reaction ~ cr(Days, df=3, constraints='center')"
    for result in (
        jm.mixedlm(f"{words} + (1 | Subject)", sleep).fit(),
        jm.mixedlm(words, sleep, groups="Subject").fit(),
    ):
        found = result.predict({"Days": [0, 4.5, 9]})
        np.testing.assert_allclose(found, [255.525371466, 295.708027624, 348.856497136], rtol=1e-9)
    with pytest.raises(FormulaError, match=re.escape("cr(x, df=3, constraints='center')")):
        jm.mixedlm("Reaction ~ ns(Days, 3) + (1 | Subject)", sleep)


def test_offsets_add_up(table):
    model = from_formula("y ~ x + offset(2 * z) + offset(`body mass`) + (1 | g)", table, offset="x")
    np.testing.assert_allclose(model.offset, 2 * table["z"] + table["body mass"] + table["x"], rtol=1e-15)


def test_weights(table):
    for weights in ("z", table["z"], table["z"].tolist(), table[["z"]].to_numpy()):
        np.testing.assert_array_equal(from_formula("y ~ x", table, groups="g", weights=weights).weights, table["z"])


def test_transforms_are_formulaics(table):
    model = from_formula("np.log(z) ~ poly(x, 2) + bs(z, df=4) + C(h, Sum):x + (1 | g)", table)
    assert model.endog_name == "np.log(z)"
    np.testing.assert_array_equal(model.y, np.log(table["z"]))
    assert model.exog_names[:3] == ("Intercept", "poly(x, 2)[1]", "poly(x, 2)[2]")
    np.testing.assert_allclose(model.X[:, 1:3].T @ model.X[:, 1:3], np.eye(2), atol=1e-12)


def test_a_dot_stands_for_the_other_columns(table):
    model = from_formula("y ~ . + (1 | g)", table[["y", "x", "g", "z", "f"]], weights="z")
    assert model.exog_names == ("Intercept", "x", "f[T.v]", "f[T.w]")


def test_a_dot_in_bars_leaves_the_response_and_the_groups_out(table):
    data = table[["y", "x", "g", "z"]].assign(g=table["g"] % 3)
    bars = from_formula("y ~ x + (. | g)", data)
    assert bars.terms[0].columns == ("Intercept", "x", "z")
    words = from_formula("np.log(y**2) ~ x", data, groups="g", re_formula="0 + .")
    assert words.terms[0].columns == ("x", "z")


@pytest.mark.parametrize("text", ["(x > 0)", "((x >= 0)):z", "z + (f == 'u')", "(f != 'v')", "0 + (x < z)"])
def test_comparisons_in_parentheses(table, text):
    """As in R and patsy; formulaic knows no such operator."""
    in_calls = re.sub(r"\(+(.*?[<>=!].*?)\)+", r"I(\1)", text)
    found, wanted = (from_formula(f"y ~ {words} + ({words} | g)", table) for words in (text, in_calls))
    np.testing.assert_array_equal(found.X, wanted.X)
    np.testing.assert_array_equal(found.terms[0].Z, wanted.terms[0].Z)
    assert found.exog_names[-1].startswith(in_calls.partition("I(")[2].partition(")")[0])
    assert "{" not in found.terms[0].label
    again = new_rows(found, table.iloc[:5], random=True)
    np.testing.assert_array_equal(again.X, found.X[:5])
    same(from_formula("y ~ z", table, groups="g", re_formula=text), from_formula(f"y ~ z + ({text} | g)", table))


def test_an_expression_may_group(table):
    model = from_formula("y ~ x + (1 | np.floor(z * 4))", table)
    np.testing.assert_array_equal(model.terms[0].levels.to_numpy()[model.terms[0].codes], np.floor(table["z"] * 4))


def test_drop_cols(table):
    model = from_formula("y ~ x + f", table, groups="g", drop_cols=["f[T.v]"])
    assert model.exog_names == ("Intercept", "x", "f[T.w]")


TABLES = {
    "dict": lambda t: {name: t[name].to_numpy() for name in t},
    "lists": lambda t: t.to_dict("list"),
    "records": lambda t: t.to_records(index=False),
    "structured": lambda t: np.array(t.to_records(index=False).tolist(), dtype=t.to_records(index=False).dtype.descr),
    "polars": lambda t: pl.DataFrame(t.to_dict("list")),
    "lazy polars": lambda t: pl.DataFrame(t.to_dict("list")).lazy(),
    "polars enum": lambda t: pl.DataFrame(t.to_dict("list")).with_columns(pl.col("f").cast(pl.Enum(["u", "v", "w"]))),
    "polars categorical": lambda t: pl.DataFrame(t.to_dict("list")).with_columns(pl.col("f").cast(pl.Categorical)),
    "arrow": lambda t: pa.table({name: t[name].tolist() for name in t}),
}


@pytest.mark.parametrize("kind", TABLES)
def test_tables_of_every_kind(table, kind):
    columns = table[["y", "x", "g", "f", "h"]].assign(b=table["x"] > 0)
    model = from_formula("y ~ x*f + b + (x | h) + (1 | g)", TABLES[kind](columns))
    same(model, from_formula("y ~ x*f + b + (x | h) + (1 | g)", columns))
    assert isinstance(model.frame, pd.DataFrame)


COLUMNS = {
    "Int64": lambda s: s.astype("Int64"),
    "Float64": lambda s: s.astype("Float64"),
    "int8": lambda s: s.astype("int8"),
    "object": lambda s: s.astype(object),
    "float32": lambda s: s.astype("float32"),
    "arrow": lambda s: s.astype(pd.ArrowDtype(pa.int64())),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_numbers_of_every_kind(table, kind):
    changed = table.assign(x=COLUMNS[kind](table["g"]), g=COLUMNS[kind](table["g"]))
    plain = table.assign(x=table["g"])
    same(from_formula("y ~ x + np.exp(-x) + (x | g)", changed), from_formula("y ~ x + np.exp(-x) + (x | g)", plain))


LABELS = {
    "text": lambda s: "k" + s.astype(str),
    "object": lambda s: ("k" + s.astype(str)).astype(object),
    "string": lambda s: ("k" + s.astype(str)).astype("string"),
    "arrow": lambda s: ("k" + s.astype(str)).astype(pd.ArrowDtype(pa.string())),
    "category": lambda s: pd.Categorical(s, categories=range(-5, 20)),
    "large integers": lambda s: s * 10**15 - 10**16,
    "unsigned": lambda s: s.astype("uint64") + 2**63,
    "floats": lambda s: s / 7,
    "dates": lambda s: pd.Timestamp("2020-02-01") + pd.to_timedelta(s, "D"),
    "periods": lambda s: pd.period_range("2020-01", periods=10, freq="M").take(s),
    "tuples": lambda s: [(int(v), "a") for v in s],
}


@pytest.mark.parametrize("kind", LABELS)
def test_labels_of_every_kind(table, kind):
    labels = LABELS[kind](table["g"])
    for model in (from_formula("y ~ (1 | k)", table.assign(k=labels)), from_formula("y ~ 1", table, groups=labels)):
        np.testing.assert_array_equal(model.terms[0].codes, table["g"])
        assert len(model.terms[0].levels) == 10


def test_boolean_columns(table):
    data = table.assign(b=table["x"] > 0, n=(table["x"] > 0).astype("boolean"))
    model = from_formula("y ~ n + (b | h)", data)
    np.testing.assert_array_equal(model.X[:, 1], data["b"])
    assert model.exog_names == ("Intercept", "n[T.True]")
    assert list(from_formula("y ~ x + (1 | b)", data).terms[0].levels) == [False, True]
    np.testing.assert_array_equal(from_formula("b ~ x + (1 | g)", data).y, data["b"])


@pytest.mark.parametrize(
    "words",
    ["b", "0 + b", "b * x", "x:b", "0 + x:b", "b / x", "b + f:b", "I(x > 0) + b", "I(b * x)", "C(b)", "0 + C(b):x"],
)
@pytest.mark.parametrize("kind", [bool, "boolean", object, "bool[pyarrow]"])
def test_truth_values_are_the_categories_that_they_are_in_patsy(table, words, kind):
    data = table.assign(b=table["z"] > 0.5)
    theirs = patsy.dmatrix(words, data)
    ours = from_formula(f"y ~ {words} + (1 | g)", data.assign(b=data["b"].astype(kind)))
    span = np.linalg.lstsq(ours.X, np.asarray(theirs), rcond=None)[0]
    np.testing.assert_allclose(ours.X @ span, theirs, atol=1e-12)
    assert np.linalg.matrix_rank(ours.X) == np.linalg.matrix_rank(theirs) == ours.X.shape[1]
    if words != "b + f:b":
        assert set(ours.exog_names) == set(theirs.design_info.column_names)


@pytest.mark.parametrize("words", ["(0 + b | h)", "(b | h)", "(x:b | h)", "(0 + b:f | h)"])
def test_truth_values_vary_as_text_does(table, words):
    data = table.assign(b=table["z"] > 0.5)
    same(from_formula(f"y ~ x + {words}", data), from_formula(f"y ~ x + {words}", data.astype({"b": str})))


@pytest.mark.parametrize("kind", ["bool", "boolean", "object"])
def test_truth_values_are_numbers_as_response_and_offset(table, kind):
    data = table.assign(b=(table["z"] > 0.5).astype(kind))
    model = from_formula("b ~ x + (1 | g)", data)
    assert model.endog_name == "b"
    np.testing.assert_array_equal(model.y, table["z"] > 0.5)
    for offset in (from_formula("y ~ offset(b) + (1 | g)", data), from_formula("y ~ (1 | g)", data, offset="b")):
        np.testing.assert_array_equal(offset.offset, table["z"] > 0.5)
        np.testing.assert_array_equal(new_rows(offset, {"b": [True, False]}).offset, [1, 0])


def test_whole_numbers_stay_whole(table):
    holes = [None, *range(2**60, 2**60 + 9)]
    labels = [holes[k] for k in table["g"]]
    tables = (pl.DataFrame({"g": labels}), pa.table({"g": labels}), {"g": pd.array(labels, dtype="Int64")})
    for columns in (*tables, {"g": pd.Series(labels, dtype=object)}):
        frame = as_frame(columns).assign(y=table["y"].to_numpy(), x=table["x"].to_numpy())
        model = from_formula("y ~ C(g) + x + (x | g)", frame, missing="drop")
        assert model.exog_names[1:9] == tuple(f"C(g)[T.{2**60 + k}]" for k in range(1, 9))
        assert list(model.terms[0].levels) == list(range(2**60, 2**60 + 9))
        crossed = from_formula("y ~ x", frame, groups=np.ones(len(frame)), vc_formula={"a": "0 + C(g)"}, missing="drop")
        assert list(crossed.terms[0].levels) == list(range(2**60, 2**60 + 9))


def test_text_and_categories_of_arrow(table):
    kinds = (pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())), pd.ArrowDtype(pa.large_string()), "category")
    for kind in kinds:
        data = table.assign(f=table["f"].astype(kind))
        same(from_formula("y ~ f*x + (1 | f)", data), from_formula("y ~ f*x + (1 | f)", table))


@pytest.mark.parametrize("make", [Fraction, Decimal, np.float32])
def test_objects_that_are_numbers(table, make):
    data = table.assign(x=pd.Series([make(float(v)) for v in table["x"]], table.index, dtype=object))
    model = from_formula("y ~ x + (x | g)", data)
    np.testing.assert_array_equal(model.X[:, 1], data["x"].astype(float))


def test_text_that_is_a_label(table):
    """Codes of two values or with zeros in front, and what is called a category, are no numbers."""
    whole = table["g"].astype(str)
    assert from_formula("y ~ k + (1 | g)", table.assign(k=(table["g"] > 4).astype(int).astype(str))).X.shape[1] == 2
    assert from_formula("y ~ k + (1 | g)", table.assign(k="0" + whole)).X.shape[1] == 10
    assert from_formula("y ~ C(k) + (1 | k)", table.assign(k=whole)).X.shape[1] == 10
    assert from_formula("y ~ k + (1 | g)", table.assign(k=pd.Categorical(whole))).X.shape[1] == 10
    for name in ("k", "C(k)"):
        component = from_formula("y ~ x", table.assign(k=whole), groups="h", vc_formula={"a": f"0 + {name}"})
        assert component.terms[0].columns == ("Intercept",)


def test_categories_that_do_not_occur_are_dropped(table):
    data = table.assign(f=pd.Categorical(table["f"], categories=["none", "w", "v", "u", "other"]))
    model = from_formula("y ~ f + (1 | f)", data)
    assert model.exog_names == ("Intercept", "f[T.v]", "f[T.u]")
    assert list(model.terms[0].levels) == ["w", "v", "u"]


def test_subset_is_data_loc(table):
    some = [3, 4, 5, 10, 11, 12, 20, 21]
    mask = table["x"] > 0
    kept = np.flatnonzero(mask)
    for subset, positions in (
        *((mask, kept), (mask.to_numpy(), kept), (list(mask), kept)),
        *((table.index[some], some), (list(table.index[some]), some)),
    ):
        model = from_formula("y ~ x", table, groups=table["g"].to_numpy(), weights=table["z"], subset=subset)
        same(model, from_formula("y ~ x", table.iloc[positions], groups="g", weights="z"))
        np.testing.assert_array_equal(model.rows, positions)
        assert model.index.equals(table.index[positions])
    by_rule = from_formula("y ~ x", table, groups="g", subset=lambda rows: rows["x"] > 0)
    same(by_rule, from_formula("y ~ x", table[mask], groups="g"))
    shuffled = mask.sample(frac=1, random_state=0)
    same(from_formula("y ~ x", table, groups="g", subset=shuffled), from_formula("y ~ x", table[mask], groups="g"))


def test_decimals_are_numbers(table):
    exact = [Decimal(value) for value in table["y"]]
    data = table.assign(y=exact, x=[Decimal(value) for value in table["x"]], z=[None, *map(Decimal, table["z"][1:])])
    words = {"groups": "g", "weights": "z", "missing": "drop"}
    same(from_formula("y ~ x", data, **words), from_formula("y ~ x", table.iloc[1:], **words))


def test_missing_values_are_dropped_jointly(table):
    data = table.astype({"g": float})
    holes = {"y": 0, "x": 7, "z": 15, "g": 22, "h": 31, "body mass": 40, "yield": 52}
    for column, row in holes.items():
        data.iloc[row, data.columns.get_loc(column)] = None
    weights = np.ones(60)
    weights[58] = np.nan
    bars = from_formula(
        "y ~ x + offset(`body mass`) + (z | g) + (1 | h)", data, weights=weights, offset="yield", missing="drop"
    )
    kept = np.delete(np.arange(60), [*holes.values(), 58])
    np.testing.assert_array_equal(bars.rows, kept)
    assert list(bars.frame.columns) == list(table.columns)
    words = {"groups": "g", "re_formula": "~z", "vc_formula": {"h": "0 + h"}}
    style = from_formula("y ~ x", data, **words, weights=weights, offset="yield", missing="drop")
    np.testing.assert_array_equal(style.rows, np.sort([*kept, 40]))
    unused = from_formula("y ~ f + (1 | class)", data, missing="drop")
    np.testing.assert_array_equal(unused.rows, np.delete(np.arange(60), 0))


@pytest.mark.parametrize("words", ["y ~ np.log(x) + (1 | h)", "y ~ z + (np.log(x) | h)", "np.log(x) ~ z + (1 | h)"])
def test_missing_values_that_transforms_make_are_dropped(table, words):
    model = from_formula(words, table, missing="drop")
    np.testing.assert_array_equal(model.rows, np.flatnonzero(table["x"] > 0))
    assert len(model.frame) == len(model.y) == len(model.terms[0].codes) == len(model.terms[0].Z)


def test_missing_values_inside_components_are_dropped(table):
    whole, ranks = "0 + np.log(x)", "f + np.log(x)"
    groups = ("0 + bs(np.log(x), df=3, degree=1)", "0 + I(np.log(x) - np.mean(x))")
    for component in (whole, ranks, *groups):
        model = from_formula("y ~ z", table, groups="h", vc_formula={"a": component}, missing="drop")
        np.testing.assert_array_equal(model.rows, np.flatnonzero(table["x"] > 0))
        assert np.isfinite(model.terms[0].Z).all()


def test_states_are_those_of_the_rows_that_are_kept(table):
    data = table.copy()
    data.iloc[:5, data.columns.get_loc("x")] = np.nan
    model = from_formula("y ~ center(x) + scale(z) + (1 | g)", data, missing="drop")
    np.testing.assert_allclose(model.X[:, 1:].mean(axis=0), 0, atol=1e-14)
    np.testing.assert_allclose(model.X[:, 2].std(ddof=1), 1)


def test_lags_lose_one_row(table):
    model = from_formula("y ~ lag(x) + (1 | h)", table, missing="drop")
    np.testing.assert_array_equal(model.rows, np.arange(1, 60))
    np.testing.assert_array_equal(model.X[:, 1], table["x"].iloc[:-1])


def test_duplicate_row_labels_are_harmless(table):
    data = table.set_axis(np.zeros(60, int))
    words = {"groups": "g", "re_formula": "~x", "vc_formula": {"f": "0 + C(f)", "s": "0 + center(z)", "t": "f + x"}}
    same(from_formula("y ~ C(f)*x", data, **words), from_formula("y ~ C(f)*x", table, **words))
    data.iloc[3, 0] = np.nan
    assert len(from_formula("y ~ C(f)*x + lag(z) + (1 | g)", data, missing="drop").y) == 58


def test_redundant_columns_are_dropped_from_the_right(table):
    data = table.assign(a=2 * table["x"] - 1, b=table["x"] + table["z"], zero=0.0)
    model = from_formula("y ~ x + a + z + b + zero + f + C(f) + (1 | g)", data)
    assert model.exog_names == ("Intercept", "x", "z", "f[T.v]", "f[T.w]")
    assert model.dropped == ("a", "b", "zero", "C(f)[T.v]", "C(f)[T.w]")
    np.testing.assert_array_equal(model.X[:, 1:3], data[["x", "z"]])


def test_without_fixed_effects(table):
    model = from_formula("y ~ 0 + (1 | g)", table)
    assert model.X.shape == (60, 0)


def test_the_callers_data_stays_as_it_was(table):
    data = table.assign(c=pd.Categorical(table["f"], categories=["w", "v", "u", "t"]))
    before = data.copy(deep=True)
    model = from_formula("yield ~ C(class)*x + poly(z, 2) + c + (x || g) + (1 | c)", data, weights="z", missing="drop")
    from_formula("y ~ center(x)", data, groups="g", vc_formula={"a": "C(f)", "b": "0 + center(z)"})
    pd.testing.assert_frame_equal(data, before)
    model.X[:] = 0.0
    model.y[:] = 0.0
    pd.testing.assert_frame_equal(data, before)


@given(st.permutations(range(60)))
def test_order_of_rows_changes_nothing_else(order):
    rng = np.random.default_rng(3)
    data = pd.DataFrame({"y": rng.random(60), "x": rng.random(60), "f": list("abc") * 20, "g": np.repeat(range(6), 10)})
    one = from_formula("y ~ poly(x, 2) + f + (x | g/f)", data)
    other = from_formula("y ~ poly(x, 2) + f + (x | g/f)", data.iloc[list(order)])
    np.testing.assert_allclose(other.X, one.X[list(order)], atol=1e-12)
    for s, t in zip(one.terms, other.terms, strict=True):
        assert s.levels.equals(t.levels)
        np.testing.assert_array_equal(t.codes, s.codes[list(order)])
