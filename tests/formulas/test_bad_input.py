"""Bad input: every mistake has an error of the library's own that names the offender and says what to do."""

import datetime

import jax
import numpy as np
import pandas as pd
import pytest

from jmixed.errors import DataError, FormulaError, JmixedError, MissingDataError, ModelError
from jmixed.formulas.statement import from_arrays, from_formula


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(5)
    n = 60
    data = pd.DataFrame(
        {
            "y": rng.standard_normal(n),
            "x": rng.standard_normal(n),
            "z": rng.random(n),
            "g": np.repeat(np.arange(10), 6),
            "f": np.tile(["u", "v", "w"], 20),
            "one": 1.0,
            "row": np.arange(n),
        }
    )
    data["text"] = data["x"].astype(str)
    data["hole"] = data["x"].where(data.index % 20 != 3)
    data["huge"] = data["x"].where(data.index != 7, np.inf)
    return data


def says(table, words, error, *texts, formula="y ~ x + (1 | g)", data=None, **more):
    before = table.copy(deep=True)
    with pytest.raises(error) as caught:
        from_formula(words or formula, table if data is None else data, **more)
    for text in texts:
        assert text in str(caught.value)
    assert isinstance(caught.value, JmixedError)
    pd.testing.assert_frame_equal(table, before)


@pytest.mark.parametrize(
    ("words", "column", "hint", "spot"),
    [
        ("y ~ xx + (1 | g)", "'xx'", "did you mean 'x'", 4),
        ("y ~ np.log(zz) + (1 | g)", "'zz'", "did you mean 'z'", 11),
        ("yy ~ x + (1 | g)", "'yy'", "did you mean 'y'", 0),
        ("y ~ x + (xx | g)", "'xx'", "did you mean 'x'", 9),
        ("y ~ x + (1 | gg)", "'gg'", "did you mean 'g'", 13),
        ("y ~ x + (1 | g:ff)", "'ff'", "did you mean 'f'", 15),
        ("y ~ Text + (1 | g)", "'Text'", "did you mean 'text'", 4),
        ("y ~ quite_unlike + (1 | g)", "'quite_unlike'", "the columns are 'y', 'x'", 4),
    ],
)
def test_unknown_columns_are_named_with_close_matches(table, words, column, hint, spot):
    says(table, words, DataError, column, hint, "\n    " + " " * spot + "^")


def test_unknown_columns_elsewhere(table):
    says(table, "y ~ x", DataError, "groups=", "'G'", "did you mean 'g'", groups="G")
    says(table, None, DataError, "weights=", "'zz'", weights="zz")
    says(table, None, DataError, "offset=", "'zz'", offset="zz")
    says(table, "y ~ x", DataError, "'zz'", groups="g", re_formula="zz")
    words = "y ~ x + offset(zz) + (1 | g)"
    says(table, words, DataError, "'zz'", words + "\n    " + " " * words.index("zz") + "^")


def test_unknown_functions(table):
    says(table, "y ~ nothing(x) + (1 | g)", FormulaError, "'nothing'", "function", "    ^")
    says(table, "y ~ np.nothing(x) + (1 | g)", FormulaError, "nothing", "    ^")
    says(table, "y ~ x + (1 | nothing(g))", FormulaError, "nothing(g)")


def test_powers_as_in_r(table):
    """R's I(x^2) would be the exclusive or of bits in Python: other numbers, without an error where x is whole."""
    for words in (
        "y ~ I(row^2) + (1 | g)",
        "y ~ (I(row^2) | g)",
        "y ~ {2 * row^2} + (1 | g)",
        "log(row^2) ~ x + (1 | g)",
    ):
        says(table, words, FormulaError, "^ in ", "write a power as **", words)
    says(table, "y ~ x + offset(row^2) + (1 | g)", FormulaError, "^ in ")
    says(table, "y ~ x", FormulaError, "'I(row ^ 2)'", groups="g", re_formula="I(row ^ 2)")
    assert from_formula("y ~ (x + z)^2 + I((x > 0) ^ (z > 0)) + (1 | g)", table).X.shape == (60, 5)


@pytest.mark.parametrize(
    "text", ["x^2", "x**2", "(x)^2", "(x - 1)^2", "(x:z)**2", "x*x", "x:x", "x/x", "np.log(z)^2", "`x`^3"]
)
def test_a_term_with_itself_is_no_power(table, text):
    """formulaic would read x alone; R and patsy do so in silence."""
    wrong = "A power is written I("
    words = [
        f"y ~ {text} + (1 | g)",
        f"y ~ z + ({text} | g)",
        f"y ~ z + (0 + {text} || g)",
        f"y ~ z - z + {text} + (1 | g)",
    ]
    for formula in words:
        says(table, formula, FormulaError, wrong, formula, "^")
    says(table, "y ~ z", FormulaError, wrong, groups="g", re_formula=text)
    says(table, "y ~ z", FormulaError, wrong, groups="g", vc_formula={"a": f"0 + {text}"})
    left = f"{text} ~ z + (1 | g)"
    if ":" in text:
        says(table, left, FormulaError, "arithmetic of the response" if "*" in text else wrong)
    else:
        # On the left it is arithmetic.
        x, z = table["x"], table["z"]
        value = {"x/x": None, "(x - 1)^2": (x - 1) ** 2, "np.log(z)^2": np.log(z) ** 2, "`x`^3": x**3}.get(text, x**2)
        if value is None:
            says(table, left, DataError, "constant")
        else:
            np.testing.assert_allclose(from_formula(left, table).y, value)


@pytest.mark.parametrize(
    ("text", "spot", "instead"),
    [
        ("x - 4", "-", "I(x - 4)"),
        ("(x - 4)*z", "-", "I(x - 4)"),
        ("x - z", "-", "I(x - z)"),
        ("x - x.mean()", "-", "center(x)"),
        ("x + C(f) - f", "- f", "is none of those before it"),
        ("-x", "-", "I(-x)"),
        ("x*2", "2", "I(x * 2)"),
        ("2*x", "2", "I(2 * x)"),
        ("z + x/100", "100", "I(x / 100)"),
        ("1/x", "1", "I(1 / x)"),
    ],
)
def test_arithmetic_on_the_right(table, text, spot, instead):
    """x - 4 would be x: R refuses it, and takes x - z for x in silence, as formulaic does both."""
    formula = f"y ~ {text} + (1 | g)"
    place = len("y ~ ") + text.index(spot)
    says(table, formula, FormulaError, instead, f"{formula}\n    {' ' * place}^")
    says(table, f"y ~ z + (0 + {text} | g)", FormulaError)
    says(table, "y ~ z", FormulaError, groups="g", re_formula=f"0 + {text}")


def test_what_a_minus_takes_away_is_there(table):
    for text in ("x*z - x:z", "x + z - x", "x - 1", "(x + z)^2 - x:z", ". - text - one - huge - hole + x", "0 + x - 0"):
        from_formula(f"y ~ {text} + (1 | g)", table)


def test_levels_that_are_stated_are_all(table):
    """In silence the rows of other levels were those of the reference."""
    says(table, "y ~ C(f, levels=['a']) + (1 | g)", DataError, "levels=['a']", "none of these levels")
    says(table, "y ~ C(f, levels=['a'])", DataError, "none of these levels", groups="g")
    says(table, "y ~ C(f, contr.sum, levels=['a']) + (1 | g)", DataError, "none of these levels")


def test_powers_of_sums_are_interactions(table):
    for text in ("(x + z)^2", "(x + z)**2", "(x * z)^2", "(x + z)^2 + x:f"):
        assert "x:z" in from_formula(f"y ~ {text} + (1 | g)", table).exog_names


@pytest.mark.parametrize("text", ["x 0", "x 1", "(x + z) 0", "np.log(z) 0", "`x` 0", "x + z 0"])
def test_an_operator_that_is_missing(table, text):
    """formulaic would take ``x 0`` for ``x - 1``, and leave the intercept out."""
    for formula in (f"y ~ {text} + (1 | g)", f"y ~ x + ({text} | g)"):
        says(table, formula, FormulaError, f"an operator is missing before '{text[-1]}'", formula)
    says(table, "y ~ x", FormulaError, "an operator is missing", groups="g", re_formula=text)


@pytest.mark.parametrize("text", ["y", "x + y", "x*y", "C(y)", 'Q("y")', "`y`", "y:f"])
def test_the_response_does_not_explain_itself(table, text):
    said = "the response 'y' cannot explain itself"
    for formula in (f"y ~ {text} + (1 | g)", f"y ~ x + ({text} | g)", f"y ~ x + ({text} || g)"):
        says(table, formula, FormulaError, said, formula)
    says(table, "y ~ x + (1 | y)", FormulaError, said)
    says(table, "y ~ x + (1 | g/y)", FormulaError, said)
    says(table, "y ~ x", FormulaError, said, groups="g", re_formula=text)
    says(table, "y ~ x", FormulaError, said, groups="g", vc_formula={"a": f"0 + {text}"})
    says(table, "y ~ x", DataError, "groups= is the response 'y'", groups="y")
    says(table, "np.log( z ) ~ np.log(z) + (1 | g)", FormulaError, "the response 'np.log( z )' cannot")
    assert from_formula("np.log(z) ~ x + (1 | g)", table).endog_name == "np.log(z)"
    says(table, "y ~ x - y + (1 | g)", FormulaError, "I(x - y)")


@pytest.mark.parametrize("nest", ["g/g", "g:g", "g/f/g", "(g/f):g", "C(g)/g", "`g`:g"])
def test_a_factor_within_itself(table, nest):
    says(table, f"y ~ x + (1 | {nest})", FormulaError, "'g' within 'g' is 'g' itself", f"(1 | {nest})")


@pytest.mark.parametrize("bar", ["(0 || g)", "(-1 || g)", "(0 | g)", "(0 + 0 || g)"])
def test_bars_without_columns(table, bar):
    says(table, f"y ~ x + {bar}", ModelError, "has no columns; use 1 for a random intercept")


def test_a_dot_cannot_be_taken_apart(table):
    says(table, "y ~ x + (. || g)", FormulaError, "a dot cannot be taken apart by ||", "\n" + " " * 13 + "^")


def test_columns_to_drop(table):
    says(table, "y ~ x", DataError, "drop_cols is the text 'x'", "drop_cols=['x']", groups="g", drop_cols="x")
    for wrong in (["xx"], ["x", "xx"], ("f[T.v]", "xx")):
        said = ["drop_cols names the column 'xx', which is not in the fixed effects", "did you mean 'x'?"]
        says(table, "y ~ x + f", DataError, *said, groups="g", drop_cols=wrong)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("as.factor(f)", "categories are written C(x)"),
        ("interaction(f, g)", "written a:b"),
        ("sqrt(z)", "write np.sqrt"),
        ("ifelse(x > 0, 1, 0)", "np.where"),
        ('relevel(f, ref = "v")', 'C(x, contr.treatment("level"))'),
        ("scale(x, scale = FALSE)", "Python writes False"),
        ("poly(x, 2, raw = TRUE)", "Python writes True"),
        ("C(f, contr.sdif)", "contr.diff"),
        ("C(f, contr.nothing)", "there is no coding contr.nothing: there are treatment, sum"),
        ('C(f, "contr.sum")', "contr.sum, without quotation marks"),
        ("C(f, sum)", "contr.sum, without quotation marks"),
        ("as.numeric(f)", "pd.to_numeric"),
        ("x > 0", "a comparison stands in a call, as in I(x > 0)"),
    ],
)
def test_words_of_r_lead_on(table, text, hint):
    for formula in (f"y ~ {text} + (1 | g)", f"y ~ x + ({text} | g)"):
        says(table, formula, FormulaError, hint, formula)


def test_words_of_r_in_grouping_factors(table):
    for call in ("factor(g)", "as.factor(g)"):
        says(table, f"y ~ x + (1 | {call})", FormulaError, call.partition("(")[0], "a grouping factor needs no C()")
    says(table, "y ~ x + (1 | interaction(g, f))", FormulaError, "interaction", "written a:b")


def test_names_with_dots(table):
    """In Python a.b is a part of a; of a column of pandas x.T is x itself."""
    dotted = table.assign(**{"Sepal.Width": table["z"] + 1, "x.T": table["z"]})
    for text, name in (("np.log(Sepal.Width)", "Sepal.Width"), ("I(x.T)", "x.T"), ("I(2 * x.T)", "x.T")):
        for formula in (f"y ~ {text} + (1 | g)", f"y ~ ({text} | g)", f"{text} ~ x + (1 | g)", f"y ~ (1 | {text})"):
            says(dotted, formula, FormulaError, f"in backticks, `{name}`", data=dotted)
        says(dotted, f"y ~ x + offset({text}) + (1 | g)", FormulaError, f"`{name}`", data=dotted)
    says(table, "y ~ I(x.T) + (1 | g)", FormulaError, "`x.T`")
    for text in ("Sepal.Width", "I(`Sepal.Width`)"):
        np.testing.assert_array_equal(from_formula(f"y ~ {text} + (1 | g)", dotted).X[:, 1], dotted["Sepal.Width"])
    np.testing.assert_array_equal(from_formula("y ~ I(x.abs()) + (1 | g)", table).X[:, 1], table["x"].abs())


@pytest.mark.parametrize(
    "groups", [["g", "f"], ("g", "f"), "g/f", "g:f", "g + f", "g*f", "1 | g/f", "(1 | g) + (1 | f)", "columns"]
)
def test_several_factors_are_bars(table, groups):
    given = table[["g", "f"]] if groups == "columns" else groups
    said = ["one grouping factor", "without groups=", "(1 | g) + (1 | f)", "(1 | g/f) for f within g"]
    says(table, "y ~ x", DataError, *said, groups=given)
    with pytest.raises(DataError, match=r"shape \(60, 2\).*Several grouping factors are bars"):
        from_arrays(table["y"], table[["x"]], table[["g", "f"]])


def test_groups(table):
    says(table, "y ~ x", ModelError, "no random effects", "groups='group'", "ordinary least squares")
    says(table, "y ~ x", ModelError, "re_formula is given but groups= is missing", re_formula="x")
    says(table, "y ~ x", ModelError, "vc_formula is given but groups= is missing", vc_formula={"f": "0 + f"})
    says(table, "y ~ x", DataError, "groups has 3 values but data has 60 rows", groups=[1, 2, 3])
    says(table, "y ~ x", DataError, "shape (60, 2)", groups=np.zeros((60, 2)))
    says(table, None, FormulaError, "'1 | g'", "groups is given too", groups="g")
    says(table, None, FormulaError, "re_formula is given too", re_formula="1")
    says(table, None, FormulaError, "vc_formula is given too", vc_formula={"a": "0 + x"})
    mixed = np.array([pd.Timestamp("2020-01-01"), (1, 2)] * 30, dtype=object)
    says(table, "y ~ x", DataError, "cannot be sorted (Timestamp, tuple)", groups=mixed)


def test_missing_values(table):
    said = ["3 of 60 rows", "hole (3)", "row positions 3, 23, 43", 'missing="drop"']
    says(table, "y ~ hole + (1 | g)", MissingDataError, *said)
    says(table, "y ~ hole + (1 | g)", MissingDataError, *said, missing="raise")
    says(table, "y ~ x + (hole | g)", MissingDataError, *said)
    says(table, "hole ~ x + (1 | g)", MissingDataError, *said)
    says(table, "y ~ x + offset(hole) + (1 | g)", MissingDataError, *said)
    says(table, None, MissingDataError, "3 of 60 rows", "weights=", weights="hole")
    says(table, None, MissingDataError, "3 of 60 rows", "offset=", offset="hole")
    says(table, "y ~ x", MissingDataError, "groups=", groups=table["f"].where(table.index != 9))
    says(table, "y ~ x", MissingDataError, *said, groups="g", vc_formula={"a": "0 + hole"})
    says(table, "y ~ np.log(x) + (1 | g)", MissingDataError, f"{(table['x'] < 0).sum()} of 60 rows", "np.log(x)")
    says(table, "y ~ hole + (1 | g)", DataError, "no rows are left", subset=[3, 23], missing="drop")
    says(table, None, DataError, "missing is 'ignore'", '"none", "drop" or "raise"', missing="ignore")
    at = np.arange(60) % 20 == 3
    says(table, "y ~ hole + (1 | g)", MissingDataError, "row positions 3, 23, 43", subset=at | (table["x"] > 0))


def test_infinite_values(table):
    for words in ("y ~ huge + (1 | g)", "y ~ (huge | g)", "huge ~ x + (1 | g)"):
        says(table, words, DataError, "huge has 1 infinite values", "row positions 7")
    says(table, None, DataError, "weights", "infinite", weights=np.where(table.index == 7, np.inf, 1))
    says(table, None, DataError, "offset", "infinite", offset="huge")
    says(table, "y ~ np.log(row) + (1 | g)", DataError, "np.log(row)", "infinite", "row positions 0")


def test_responses(table):
    says(table, "one ~ x + (1 | g)", DataError, "the response 'one'", "constant (1 in all 60 rows)")
    says(table, "x ~ z + (1 | g)", DataError, "minus its offset", "constant", offset="x")
    says(table, "text ~ x + (1 | g)", DataError, "the response 'text'", "holds text", "pd.to_numeric(data['text'])")
    says(table, "f ~ x + (1 | g)", DataError, "the response 'f'", "holds text")
    says(table, "np.log(text) ~ x + (1 | g)", DataError, "'text'", "holds text", "pd.to_numeric")
    says(table, "y + x ~ z + (1 | g)", DataError, "one column of numbers", "('y', 'x')", "I(a + b)")
    says(table.assign(y=table["f"].astype("category")), None, DataError, "the response 'y'", "holds text")


@pytest.mark.parametrize(
    "call", ["np.log(text)", "I(text**2)", "center(text)", "scale(text)", "poly(text, 2)", "bs(text, df=3)"]
)
def test_numbers_as_text(table, call):
    for words in (f"y ~ {call} + (1 | g)", f"y ~ x + ({call} | g)"):
        says(table, words, DataError, "'text'", "holds text", f"{table['text'][0]!r}", "pd.to_numeric(data['text'])")


@pytest.mark.parametrize(
    "words", ["y ~ {} + (1 | g)", "y ~ x + ({} | g)", "y ~ x:{} + (1 | g)", "y ~ x + {} + C(f) + (1 | g)"]
)
def test_numbers_as_text_are_no_categories(table, words):
    words = words.format("v")
    spot = "\n    " + words + "\n    " + " " * words.index("v") + "^"
    rounded = table["x"].round(1)
    for values in (rounded.astype(str), rounded.astype(str).astype(object), table["g"].astype(str).astype("string")):
        says(table, words, DataError, "'v' holds text (for example '", "C(v)", spot, data=table.assign(v=values))
    marked = rounded.astype(str).where(table.index != 7, "<5")
    hint = "pd.to_numeric(data['v'], errors=\"coerce\")"
    says(table, words, DataError, "'v' holds text (for example '<5')", hint, spot, data=table.assign(v=marked))
    mixed = table["x"].astype(object).where(table.index != 7, "n/a")
    says(table, words, DataError, "'v' holds text (for example 'n/a')", hint, spot, data=table.assign(v=mixed))
    few = table["g"].mod(4).astype(str)
    says(
        table,
        words,
        DataError,
        "'v' holds text (for example '<1')",
        spot,
        data=table.assign(v=few.where(few != "0", "<1")),
    )
    comma = rounded.astype(str).str.replace(".", ",")
    says(table, words, DataError, """.str.replace(",", ".")""", spot, data=table.assign(v=comma))


@pytest.mark.parametrize("call", ["I({})", 'Q("{}")', "np.asarray({})", "np.where(x > 0, {0}, {0})", "same({})"])
def test_functions_that_hand_on_text_make_no_categories_of_it(table, call):
    def same(values):
        return values

    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(k)) for k in table["row"]]
    data = table.assign(v=table["x"].round(1).astype(str), d=pd.Series(days, dtype=object))
    for words in ("y ~ {} + (1 | g)", "y ~ {}:x + (1 | g)", "y ~ x + ({} | g)"):
        text = words.format(call.format("v"))
        says(
            table,
            text,
            DataError,
            f"gives text (for example '{min(data['v'])}')",
            "write C(",
            data=data,
            env={"same": same},
        )
    if "np." not in call:
        text = f"y ~ {call.format('d')} + (1 | g)"
        says(table, text, DataError, "gives dates or times", data=data, env={"same": same})
    labels = from_formula(f"y ~ {call.format('f')} + (1 | g)", data, env={"same": same})
    assert len(labels.exog_names) == 3
    stated = from_formula(f"y ~ C({call.format('v')}) + (1 | g)", data, env={"same": same})
    assert len(stated.exog_names) > 3


def test_identifiers_that_became_floats(table):
    """Whole numbers beside missing values are floats to pandas, of which those beyond 2^53 put neighbours together."""
    whole = table.assign(v=2**53 + table["g"])
    assert len(from_formula("y ~ x + (1 | v)", whole).terms[0].levels) == 10
    floats = table.assign(v=whole["v"].where(table.index > 5))
    said = ["grouping factor 'v' holds floats such as 900719925474", "dtype={'v': 'Int64'}", "astype(str)"]
    for data in (floats, floats.astype({"v": "Float64"}), floats.assign(v=pd.Categorical(floats["v"]))):
        says(table, "y ~ x + (1 | v)", DataError, *said, data=data, missing="drop")
        says(table, "y ~ x + (1 | f:v)", DataError, *said, data=data, missing="drop")
        says(table, "y ~ x", DataError, *said, data=data, missing="drop", groups="v")
    small = table.assign(v=(2.0**24 + table["g"]).astype("float32"))
    says(table, "y ~ x + (1 | v)", DataError, "floats such as 1677721", data=small)
    for scale in (0.25, 2.0**49, np.inf):
        data = table.assign(v=np.where(table["g"] == 1, scale, table["g"].astype(float)))
        assert len(from_formula("y ~ x + (1 | v)", data).terms[0].levels) == 10


def test_a_few_whole_numbers_in_text_are_codes(table):
    codes = table.assign(v=table["g"].mod(4).astype(str))
    assert from_formula("y ~ v + (1 | g)", codes).exog_names == ("Intercept", "v[T.1]", "v[T.2]", "v[T.3]")


def test_objects_that_would_be_categories(table):
    words = "y ~ x + v + (1 | g)"
    spot = "\n    y ~ x + v + (1 | g)\n            ^"
    days = [datetime.date(2020, 1, 1) + datetime.timedelta(days=int(k)) for k in table["row"]]
    kinds = (
        pd.Series(days, dtype=object),
        pd.Series(days).astype("date32[pyarrow]"),
        pd.period_range("2020", periods=60),
    )
    for values in (*kinds, pd.Series([datetime.time(k % 24) for k in table["row"]], dtype=object)):
        says(table, words, DataError, "'v' holds dates or times", spot, data=table.assign(v=values))
        says(table, "v ~ x + (1 | g)", DataError, "'v' holds dates or times", data=table.assign(v=values))
    says(table, words, DataError, "pd.to_datetime(data['v'])", data=table.assign(v=kinds[0]))
    large = (table["row"].map(lambda k: 2**64 + k), table["row"].astype("uint64") + 2**63)
    for values in (*large, table["row"].map(lambda k: 2**63 if k else -1)):
        says(table, words, DataError, "'v' holds whole numbers", "C(v)", spot, data=table.assign(v=values))
        assert (
            len(
                from_formula("y ~ x + (1 | v)", table.assign(v=values.where(table.index > 5, values[0])))
                .terms[0]
                .levels
            )
            > 1
        )
    says(table, words, DataError, "'v' holds intervals", data=table.assign(v=list(pd.cut(table["x"], 3))))
    for thing in ([1], {"a": 1}):
        says(table, words, DataError, "'v' holds values such as", data=table.assign(v=[thing] * 60))


def test_labels_of_two_types_are_not_two_groups(table):
    """308 and "308", as a file that is read in parts gives them, would be two levels in silence."""
    labels = table["g"].astype(object).where(table.index % 7 != 3, table["g"].astype(str))
    said = ["grouping factor", "numbers (0 in row 0) and text ('0' in row 3)", "astype(str)"]
    for values in (labels, pd.Categorical(labels)):
        data = table.assign(g=values)
        says(table, "y ~ x + (1 | g)", DataError, *said, "y ~ x + (1 | g)", data=data)
        says(table, "y ~ x + (1 | f/g)", DataError, *said, data=data)
        says(table, "y ~ x", DataError, *said, data=data, groups="g")
    says(table, "y ~ x", DataError, *said, groups=list(labels))
    says(table, "y ~ x", DataError, *said, data=table.assign(v=labels), groups="f", vc_formula={"a": "0 + v"})
    for words in ("y ~ C(v) + (1 | g)", "y ~ x + (C(v) | g)"):
        says(table, words, DataError, "'C(v)' mixes numbers (0) and text", data=table.assign(v=labels))
    truth = table["g"].astype(object).where(table.index % 7 != 3, True)
    says(table, "y ~ x", DataError, "truth values (True in row 3)", groups=truth)


def test_weights_and_offsets_that_are_no_numbers(table):
    days = pd.Series([datetime.date(2020, 1, 1)] * 60, dtype=object)
    for values in (days, pd.to_datetime(days), table["x"] + 1j, pd.Series([b"a"] * 60, dtype=object)):
        for what in ("weights", "offset"):
            says(table, None, DataError, f"{what} holds values of type", data=table.assign(v=values), **{what: "v"})
    category = table.assign(v=pd.Categorical(table["row"] + 1))
    says(table, None, DataError, "weights is a pandas category", "astype(float)", data=category, weights="v")
    says(table, "y ~ offset(v) + (1 | g)", DataError, "offset(v) holds text", data=table.assign(v="a"))


def test_weights_and_offsets_of_text(table):
    says(table, None, DataError, "weights holds text", "pd.to_numeric", weights="text")
    says(table, None, DataError, "offset holds text", "pd.to_numeric", offset="text")
    says(table, "y ~ x + offset(text) + (1 | g)", DataError, "offset(text) holds text")


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_weights_are_positive(table, value):
    weights = np.where(table.index == 9, value, 1.0)
    says(table, None, DataError, "weights must be positive", f"{value:g} at row position 9", weights=weights)


def test_tables(table):
    says(table, None, DataError, "no rows", data=table.iloc[:0])
    says(table, None, DataError, "duplicate column names: ['x']", data=pd.concat([table, table[["x"]]], axis=1))
    says(table, None, DataError, "data is of type list;", "pandas DataFrame", data=[None])
    says(table, None, DataError, "do not form a table", "'x': 1", data={"y": [1.0, 2.0], "x": [1.0], "g": [1, 2]})
    says(table, None, DataError, "subset", "100", subset=[0, 100])
    says(table, None, DataError, "subset", "2 instead of 60", subset=[True, False])
    says(table, None, DataError, "subset=data.eval('x > 0')", subset="x > 0")
    says(table, None, DataError, "subset selects none", subset=table["x"] > 100)


def test_what_the_data_cannot_identify(table):
    says(table, "y ~ x + f + z + (1 | g)", ModelError, "4 rows cannot determine 4 fixed effects", subset=[0, 1, 7, 8])
    says(
        table, "y ~ x + (1 | row)", ModelError, "60 coefficients (60 levels x 1) for 60 rows", "vary like the residual"
    )
    says(table, "y ~ x + (x + z + f + C(row % 4) | g)", ModelError, "80 coefficients (10 levels x 8)", "any response")
    says(table, "y ~ x + (1 | one)", ModelError, "'one' has one level")
    says(table, "y ~ x", ModelError, "'Group' has one level", groups=np.zeros(60))
    says(table, "y ~ x", ModelError, "component 'a'", "60 levels", groups="g", vc_formula={"a": "0 + C(row)"})
    says(table, "y ~ x + (0 | g)", ModelError, "'0 | g' has no columns")


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("y ~ x +* z + (1 | g)", "y ~ x +* z + (1 | g)\n          ^"),
        ("y ~ a b + (1 | g)", "y ~ a b + (1 | g)\n        ^"),
        ("y ~ 2*x + (1 | g)", "y ~ 2*x + (1 | g)\n        ^"),
        ("y ~ 'a' + (1 | g)", "y ~ 'a' + (1 | g)\n        ^"),
        ("(1 | g) + x ~ y", "(1 | g) + x ~ y\n       ^"),
        ("y ~ I(x +) + (1 | g)", "y ~ I(x +) + (1 | g)\n             ^"),
        ("y ~ x + (x + | g)", "y ~ x + (x + | g)\n               ^"),
        ("y ~ x + (1 | g) +", "y ~ x + (1 | g) +\n                    ^"),
    ],
)
def test_the_spot_in_a_formula_that_cannot_be_read(table, words, text):
    says(table, words, FormulaError, text)


@pytest.mark.parametrize("words", ["y ~ when + (1 | g)", "when ~ x + (1 | g)", "y ~ x + (when | g)"])
@pytest.mark.parametrize("days", [pd.Timestamp("2020-01-01"), pd.Timedelta(0)])
def test_dates_are_no_numbers(table, words, days):
    data = table.assign(when=days + pd.to_timedelta(table["row"], "D"))
    says(table, words, DataError, "the column 'when' holds dates or times", "pd.Timedelta('1D')", data=data)


def test_imaginary_parts_are_not_lost(table):
    data = table.assign(y=table["y"] + 1j)
    says(table, None, DataError, "('y',) do not hold numbers (dtype complex128)", data=data)


def test_a_response_of_many_columns_is_not_listed_whole(table):
    says(table, "C(row) ~ x + (1 | g)", DataError, "the formula gives 60", "and more")


def test_values_that_jax_traces(table):
    numbers = np.arange(1.0, 61.0)
    for make in (
        lambda v: from_formula("y ~ x + (1 | g)", {"y": v, "x": numbers, "g": table["g"]}),
        lambda v: from_formula("y ~ x", table, groups=v),
        lambda v: from_formula("y ~ x + (1 | g)", table, weights=v),
        lambda v: from_formula("y ~ x + (1 | g)", table, subset=v > 3),
        lambda v: from_arrays(v, numbers, table["g"]),
        lambda v: from_arrays(numbers, numbers, v),
    ):
        with pytest.raises(DataError, match=r"JAX is tracing.*jm\.estimate"):
            jax.jit(make)(numbers)


def test_a_bare_constant_is_no_term(table):
    says(table, "y ~ x + K + (1 | g)", FormulaError, "'K' is no column", "I(K * x)", env={"K": 2.0})


@pytest.mark.parametrize("words", ["re_formula", "vc_formula"])
def test_bars_stay_out_of_the_other_formulas(table, words):
    value = "(1 | f)" if words == "re_formula" else {"a": "(1 | f)"}
    says(table, "y ~ x", FormulaError, words, "bars belong to the main formula", groups="g", **{words: value})


def test_names_with_spaces(table):
    spaced = table.rename(columns={"g": "my group", "x": "the x"})
    hint = "backticks, `like this`"
    says(spaced, "y ~ the x + (1 | `my group`)", FormulaError, hint, "`the` and `x`", "\n        ^")
    says(spaced, "y ~ `the x` + (1 | my group)", FormulaError, hint, " " * 23 + "^")
    assert from_formula("y ~ `the x` + (1 | `my group`)", spaced).terms[0].group == "my group"


def test_a_file_name_is_no_data(table):
    says(table, None, DataError, "'scores.csv'", "pd.read_csv('scores.csv')", data="scores.csv")


def test_the_example_of_text_is_what_is_no_number(table):
    marked = table.assign(y=table["y"].astype(str).where(table.index != 7, "n/a "))
    says(marked, "y ~ x + (1 | g)", DataError, "'n/a '", "pd.to_numeric(data['y'], errors=\"coerce\")")


def test_functions_of_r(table):
    says(table, "y ~ factor(x) + (1 | g)", FormulaError, "categories are written C(x)")


class TestValuesFromOutsideTheData:
    """Of a caller's variables and functions."""

    def says(self, table, value, *texts, **more):
        says(table, "y ~ x + v + (1 | g)", FormulaError, "v", *texts, env={"v": value}, **more)

    def test_labels_in_another_order(self, table):
        self.says(table, table["z"].iloc[::-1], "59, 58, 57, ... (60)", "0, 1, 2, ... (60)", "np.asarray")
        self.says(table, table["z"], "row labels of its own", data=table.iloc[::-1])

    def test_other_rows(self, table):
        self.says(table, table["z"].to_numpy(), "60 values for 54 rows", subset=table["g"] > 0)
        self.says(
            table, table["z"].to_numpy(), "60 values for 57 rows", data=table.assign(x=table["hole"]), missing="drop"
        )

    def test_functions_that_return_nothing_or_sort(self, table):
        for function, text in ((lambda x: None, "gives None"), (lambda x: x.sort_values(), "row labels of its own")):
            says(table, "y ~ f_(x) + (1 | g)", FormulaError, "f_(x)", text, env={"f_": function})
        says(table, "y ~ x + (1 | f_(g))", FormulaError, "row labels", env={"f_": lambda g: g.iloc[::-1]})

    def test_a_variable_that_is_no_column_of_numbers(self, table):
        self.says(table, (1, [2, 3]))

    def test_rows_with_repeated_labels_go_by_position(self, table):
        repeated = table.set_index("g", drop=False)
        model = from_formula("y ~ v + (1 | g)", repeated, env={"v": repeated["z"]})
        np.testing.assert_array_equal(model.X[:, 1], table["z"])


@pytest.mark.parametrize("what", ["groups", "weights", "offset"])
def test_series_with_the_labels_of_the_data_in_another_order(table, what):
    words: dict = {"groups": "g"} | {what: table["g"].iloc[::-1] + 1}
    says(table, "y ~ x", DataError, what, "another order", "np.asarray", **words)
    from_formula("y ~ x", table, **(words | {what: np.asarray(words[what])}))
    from_formula("y ~ x", table.set_index("row"), **(words | {what: words[what].set_axis(np.arange(60) + 100)}))
