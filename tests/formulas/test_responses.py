"""Responses of generalized models: what stands on the left of a formula, and the numbers that it becomes."""

from decimal import Decimal

import narwhals as nw
import numpy as np
import pandas as pd
import polars as pl
import pytest

import jmixed as jm
from jmixed.errors import DataError, FormulaError, JmixedError, MissingDataError, ModelError
from jmixed.formulas.model_data import FurtherColumns, ResponseTerm
from jmixed.formulas.responses import RESPONSES
from jmixed.formulas.restate import restated
from jmixed.formulas.statement import from_formula, new_rows
from jmixed.reports import files

N = 60
RNG = np.random.default_rng(3)
SIZE = RNG.integers(2, 9, N)
TABLE = pd.DataFrame(
    {
        "x": RNG.normal(size=N),
        "z": RNG.uniform(0.5, 2, N),
        "g": np.repeat([f"g{k}" for k in range(10)], 6),
        "f": np.tile(["u", "v", "w"], N // 3),
        "size": SIZE,
        "k": RNG.binomial(SIZE, 0.4),
        "count": RNG.poisson(2.0, N),
        "level": pd.Categorical.from_codes(np.arange(N) % 3, ["low", "mid", "high"], ordered=True),
        "index": np.arange(N),
    }
)
TABLE["share"] = TABLE["k"] / TABLE["size"]
TABLE["won"] = TABLE["k"] > 2
TABLE["answer"] = np.where(TABLE["won"], "yes", "no")
WON = TABLE["won"].to_numpy(float)


def stated(left, kind="successes", data=TABLE, right="x + (1 | g)", **more):
    return from_formula(f"{left} ~ {right}", data, response_kind=kind, **more)


def says(error, *texts, left="won", kind="successes", data=TABLE, right="x + (1 | g)", **more):
    before = data.copy(deep=True)
    with pytest.raises(error) as caught:
        from_formula(f"{left} ~ {right}", data, response_kind=kind, **more)
    for text in texts:
        assert text in str(caught.value)
    assert isinstance(caught.value, JmixedError)
    pd.testing.assert_frame_equal(data, before)


def require_single_trials(model, y=WON, categories=()):
    np.testing.assert_array_equal(model.y, y)
    assert model.y.dtype == model.response.trials.dtype == float
    np.testing.assert_array_equal(model.response.trials, np.ones(len(y)))
    np.testing.assert_array_equal(model.weights, np.ones(len(y)))
    assert model.response.categories == categories
    assert not model.response.counts_trials
    assert not model.response.weights_as_trials


# One trial in each row.


@pytest.mark.parametrize(
    "values",
    [
        *(TABLE["won"].astype(kind) for kind in (int, float, "int8", "uint8", "float32", "Int64", "Float64")),
        pd.Series([Decimal(int(value)) for value in WON], dtype=object),
        TABLE["won"].astype(int).astype("int64[pyarrow]"),
    ],
    ids=lambda values: str(values.dtype),
)
def test_zeros_and_ones(values):
    require_single_trials(stated("y", data=TABLE.assign(y=values)))


@pytest.mark.parametrize("kind", [bool, "boolean", object, "category", "bool[pyarrow]"])
def test_truth_values(kind):
    model = stated("y", data=TABLE.assign(y=TABLE["won"].astype(kind)))
    require_single_trials(model, categories=(False, True))
    assert model.endog_name == "y"
    assert all(type(label) is bool for label in model.response.categories)


def test_true_is_the_success_whatever_the_order():
    values = pd.Categorical(TABLE["won"], [True, False])
    require_single_trials(stated("y", data=TABLE.assign(y=values)), categories=(False, True))


@pytest.mark.parametrize("kind", [str, object, "string", "category", "string[pyarrow]"])
def test_two_categories_of_text_are_sorted(kind):
    model = stated("y", data=TABLE.assign(y=TABLE["answer"].astype(kind)))
    require_single_trials(model, categories=("no", "yes"))
    assert all(type(label) is str for label in model.response.categories)


@pytest.mark.parametrize("ordered", [False, True])
def test_a_category_has_its_own_order_and_what_does_not_occur_is_not_counted(ordered):
    values = pd.Categorical(TABLE["answer"], ["never", "yes", "maybe", "no"], ordered=ordered)
    require_single_trials(stated("y", data=TABLE.assign(y=values)), 1 - WON, ("yes", "no"))


def test_a_category_of_two_numbers():
    model = stated("y", data=TABLE.assign(y=pd.Categorical(np.where(TABLE["won"], 2, 1))))
    require_single_trials(model, categories=(1, 2))
    assert all(type(label) is int for label in model.response.categories)


@pytest.mark.parametrize(
    ("left", "name", "categories"),
    [
        ("I(k > 2)", "I(k > 2)", (False, True)),
        ("I( answer=='yes' )", "I(answer == 'yes')", (False, True)),
        ("(k > 2)", "k > 2", (False, True)),
        ("np.where(won, 1, 0)", "np.where(won, 1, 0)", ()),
        ("`answer`", "answer", ("no", "yes")),
        ("C(answer)", "C(answer)", ("no", "yes")),
    ],
)
def test_expressions(left, name, categories):
    model = stated(left)
    require_single_trials(model, categories=categories)
    assert model.endog_name == name


def test_statsmodels_manner():
    for left, categories in (("answer", ("no", "yes")), ("C(answer)", ("no", "yes")), ("won", (False, True))):
        require_single_trials(stated(left, right="x", groups="g"), categories=categories)


def test_weights_of_single_trials_are_weights():
    model = stated("won", weights="z")
    np.testing.assert_array_equal(model.weights, TABLE["z"])
    np.testing.assert_array_equal(model.response.trials, 1)
    assert not model.response.weights_as_trials


# Several trials in each row.


def require_several_trials(model, name):
    np.testing.assert_array_equal(model.y, TABLE["k"])
    np.testing.assert_array_equal(model.response.trials, TABLE["size"])
    assert model.y.dtype == model.response.trials.dtype == float
    assert model.response.counts_trials
    assert model.response.categories == ()
    assert model.endog_name == name


def test_successes_and_failures():
    table = TABLE.assign(**{"class": TABLE["size"] - TABLE["k"], "no luck": TABLE["size"] - TABLE["k"]})
    for left, name in {
        "cbind(k, size - k)": "cbind(k, size - k)",
        "cbind( k,size-k )": "cbind(k, size - k)",
        "cbind(k + 0, np.subtract(size, k))": "cbind(k + 0, np.subtract(size, k))",
        "cbind(k, class)": "cbind(k, class)",
        "cbind(k, class + 0)": "cbind(k, class + 0)",
        "cbind(`k`, `no luck`)": "cbind(`k`, `no luck`)",
        "cbind(size - `no luck`, I(`no luck`))": "cbind(size - `no luck`, I(`no luck`))",
        "cbind((size - class), {size - k})": "cbind((size - class), {size - k})",
    }.items():
        model = stated(left, data=table)
        require_several_trials(model, name)
        np.testing.assert_array_equal(model.X[:, 1], TABLE["x"])
        np.testing.assert_array_equal(model.weights, 1)
    require_several_trials(stated("cbind(k, size - k)", right="x", groups="g"), "cbind(k, size - k)")
    rounded = TABLE.assign(share=TABLE["share"] * (1 + 1e-9))
    require_several_trials(
        stated("cbind(share * size, size * (1 - share))", data=rounded), "cbind(share * size, size * (1 - share))"
    )
    truth = stated("cbind(won, k <= 2)")
    np.testing.assert_array_equal(truth.y, WON)
    np.testing.assert_array_equal(truth.response.trials, 1)
    assert truth.response.counts_trials


def test_weights_beside_trials_are_weights():
    for model in (
        stated("cbind(k, size - k)", weights="z"),
        stated("share", trials="size", weights="z"),
        stated("k", trials="size", weights="z"),
    ):
        require_several_trials(model, model.endog_name)
        np.testing.assert_array_equal(model.weights, TABLE["z"])
        assert not model.response.weights_as_trials


@pytest.mark.parametrize("trials", ["size", "`size`", SIZE, SIZE.tolist(), TABLE["size"].astype("Int64")], ids=type)
def test_successes_and_proportions_of_trials(trials):
    for left in ("k", "share", "I(share * 1.0000000000001)", "I(k * 1.0000000000001)"):
        model = stated(left, trials=trials)
        require_several_trials(model, model.endog_name)
        np.testing.assert_array_equal(model.weights, 1)
        assert not model.response.weights_as_trials


def test_weights_of_proportions_are_trials_as_in_lme4():
    model = stated("share", weights="size")
    require_several_trials(model, "share")
    np.testing.assert_array_equal(model.weights, 1)
    assert model.response.weights_as_trials


def test_a_dot_stands_for_what_is_no_part_of_the_response():
    columns = TABLE[["k", "size", "x", "z", "g"]]
    for left, more in {"cbind(k, size - k)": {}, "k": {"trials": "size"}}.items():
        assert stated(left, data=columns, right=". + (1 | g)", **more).exog_names == ("Intercept", "x", "z")
    assert stated("cbind(size - k, k)", data=columns, right=". + (1 | g)").exog_names == ("Intercept", "x", "z")


def cbind(*columns):
    """A function of the caller's that has the name of a word."""
    return np.column_stack(columns)


def test_a_function_of_the_callers_of_the_name_cbind():
    env = {"cbind": cbind}
    model = stated("cbind(k, size - k)", right="cbind(x, z) + (1 | g)", env=env)
    require_several_trials(model, "cbind(k, size - k)")
    np.testing.assert_array_equal(model.X, np.column_stack([np.ones(N), TABLE["x"], TABLE["z"]]))
    column = stated("cbind(k, size - k)", data=TABLE.assign(cbind=TABLE["z"]), right="cbind + (1 | g)")
    require_several_trials(column, "cbind(k, size - k)")
    np.testing.assert_array_equal(column.X[:, 1], TABLE["z"])
    linear = from_formula("cbind(x)[:, 0] ~ z + (1 | g)", TABLE, env=env)
    np.testing.assert_array_equal(linear.y, TABLE["x"])


def test_other_functions_on_the_left():
    model = stated("np.log(z)", kind="numbers")
    np.testing.assert_allclose(model.y, np.log(TABLE["z"]), rtol=1e-15)
    assert model.endog_name == "np.log(z)"
    linear = from_formula("np.log(z) ~ x + (1 | g)", TABLE)
    np.testing.assert_array_equal(linear.y, model.y)
    assert linear.response is None


# Categories.


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (TABLE["level"], ("low", "mid", "high")),
        (pd.Categorical(TABLE["level"], ["none", "high", "most", "mid", "low"]), ("high", "mid", "low")),
        (TABLE["level"].astype(str), ("high", "low", "mid")),
        (TABLE["level"].cat.codes * 5, (0, 5, 10)),
        ((TABLE["level"].cat.codes * 5).astype("Int64"), (0, 5, 10)),
        (TABLE["level"].cat.codes / 2, (0.0, 0.5, 1.0)),
        ((TABLE["level"].cat.codes + 7).astype(str), ("7", "8", "9")),
        (pd.Categorical(TABLE["level"].cat.codes * 5, [10, 0, 5]), (10, 0, 5)),
        (TABLE["won"], (False, True)),
        (TABLE["answer"], ("no", "yes")),
    ],
    ids=lambda part: str(part) if isinstance(part, tuple) else "",
)
def test_categories_in_their_order(values, labels):
    model = stated("y", "categories", TABLE.assign(y=values))
    expected = pd.Categorical(np.asarray(values), categories=list(labels)).codes
    np.testing.assert_array_equal(model.y, expected)
    assert model.y.dtype == float
    assert model.response.categories == labels
    assert [type(label) for label in model.response.categories] == [type(label) for label in labels]
    assert model.response.kind == "categories"
    np.testing.assert_array_equal(model.response.trials, 1)


def test_intervals_of_numbers_are_categories():
    model = stated("pd.cut(x, [-9, -0.5, 0.5, 9])", "categories", right="z + (1 | g)", env={"pd": pd})
    np.testing.assert_array_equal(model.y, np.digitize(TABLE["x"], [-0.5, 0.5], right=True))
    assert [str(label) for label in model.response.categories] == ["(-9.0, -0.5]", "(-0.5, 0.5]", "(0.5, 9.0]"]


def test_numbers():
    for values in (TABLE["count"], TABLE["count"].astype("Int64"), TABLE["count"] + 0.5, TABLE["won"]):
        model = stated("y", "numbers", TABLE.assign(y=values), weights="z", offset="x")
        np.testing.assert_array_equal(model.y, np.asarray(values, float))
        np.testing.assert_array_equal(model.weights, TABLE["z"])
        np.testing.assert_array_equal(model.offset, TABLE["x"])
        assert (model.response.kind, model.response.categories) == ("numbers", ())


def test_offsets():
    for more in ({"right": "x + offset(np.log(z)) + (1 | g)"}, {"offset": np.log(TABLE["z"])}):
        model = stated("count", "numbers", **more)
        np.testing.assert_allclose(model.offset, np.log(TABLE["z"]), rtol=1e-15)
    assert stated("one", "numbers", TABLE.assign(one=1), offset="x").y.std() == 0


# Further predictors.


def test_columns_of_further_predictors():
    more = {"dispersion": "~ f*z", "zero_inflation": " poly(x, 2)"}
    model = stated("count", "numbers", **more)
    f = pd.get_dummies(TABLE["f"], dtype=float).to_numpy()[:, 1:]
    z = TABLE[["z"]].to_numpy()
    dispersion, zero = model.response.dispersion, model.response.zero
    np.testing.assert_array_equal(dispersion.columns, np.hstack([np.ones((N, 1)), f, z, f * z]))
    assert dispersion.names == ("Intercept", "f[T.v]", "f[T.w]", "z", "f[T.v]:z", "f[T.w]:z")
    assert (dispersion.text, zero.text) == ("~ f*z", " poly(x, 2)")
    assert zero.names == ("Intercept", "poly(x, 2)[1]", "poly(x, 2)[2]")
    np.testing.assert_allclose(zero.columns[:, 1:].T @ zero.columns, np.eye(3)[1:], atol=1e-14)
    assert model.residual is None
    assert model.exog_names == ("Intercept", "x")
    without = stated("count", "numbers", dispersion="~ 0 + f", zero_inflation="~ 1").response
    np.testing.assert_array_equal(without.dispersion.columns, pd.get_dummies(TABLE["f"], dtype=float))
    np.testing.assert_array_equal(without.zero.columns, np.ones((N, 1)))
    assert stated("count", "numbers").response.dispersion is None


def test_columns_of_new_rows():
    model = stated("count", "numbers", dispersion="~ f", zero_inflation="~ center(z)", right="x + (1 | g)")
    chosen = [5, 31, 2]
    new = TABLE.iloc[chosen].drop(columns=["count", "size", "k"])
    rows = new_rows(model, new, random=True, further=("dispersion", "zero"))
    np.testing.assert_array_equal(rows.dispersion, model.response.dispersion.columns[chosen])
    np.testing.assert_array_equal(rows.zero, model.response.zero.columns[chosen])
    np.testing.assert_array_equal(rows.X, model.X[chosen])
    assert not rows.missing.any()
    # What is not asked for need not be there.
    less = new_rows(model, new[["x", "z"]], further=("zero",))
    assert less.dispersion is None
    np.testing.assert_array_equal(less.zero, rows.zero)
    assert new_rows(model, new[["x"]]).zero is None
    with pytest.raises(DataError, match="the model names the column 'f'"):
        new_rows(model, new[["x", "z"]], further=("dispersion",))
    with pytest.raises(DataError, match=r"categories of 'f' that the model has not seen: \['other'\]"):
        new_rows(model, new.assign(f="other"), further=("dispersion",))
    holes = new.assign(z=[np.nan, 1.0, 1.0])
    rows = new_rows(model, holes, further=("dispersion", "zero"))
    np.testing.assert_array_equal(rows.missing, [True, False, False])
    assert not np.isfinite(rows.zero[0]).any()
    np.testing.assert_array_equal(new_rows(model, holes).missing, False)
    assert new_rows(from_formula("x ~ z + (1 | g)", TABLE), new, further=("dispersion",)).dispersion is None
    plain = new_rows(stated("count", "numbers"), new, further=("dispersion", "zero"))
    assert plain.dispersion is plain.zero is None


def test_new_rows_need_nothing_of_the_response():
    for left, more in {"cbind(k, size - k)": {}, "share": {"trials": "size"}, "answer": {}}.items():
        model = stated(left, **more)
        np.testing.assert_array_equal(new_rows(model, TABLE[["x", "g"]], random=True).X, model.X)
        assert set(model.recipe.needs) == set(model.recipe.specs) == {"lhs", "rhs"}


# Rows that are in the model.


@pytest.mark.parametrize("hole", ["k", "size", "x", "z", "f", "g"])
def test_missing_values(hole):
    table = TABLE.assign(f=TABLE["f"].astype(object), **{"class": 1.0})
    table[hole] = table[hole].astype(object if hole in "fg" else float)
    table.loc[[4, 31], hole] = None if hole in "fg" else np.nan
    keep = np.delete(np.arange(N), [4, 31])
    words = {"left": "cbind(k, size - k)", "dispersion": "~ f", "zero_inflation": "~ z"}
    says(MissingDataError, "2 of 60 rows", hole, "row positions 4, 31", data=table, **words)
    model = stated(words.pop("left"), data=table, missing="drop", **words)
    np.testing.assert_array_equal(model.rows, keep)
    np.testing.assert_array_equal(model.y, TABLE["k"].to_numpy()[keep])
    np.testing.assert_array_equal(model.response.trials, SIZE[keep])
    np.testing.assert_array_equal(model.response.zero.columns[:, 1], TABLE["z"].to_numpy()[keep])
    assert len(model.response.dispersion.columns) == 58


def test_missing_trials():
    table = TABLE.assign(size=TABLE["size"].astype("Int64"))
    table.loc[7, "size"] = pd.NA
    says(MissingDataError, "trials= (1)", "row positions 7", left="k", data=table, trials="size")
    model = stated("k", data=table, trials="size", missing="drop")
    np.testing.assert_array_equal(model.response.trials, np.delete(SIZE, 7))


@pytest.mark.parametrize("kind", ["boolean", "string", "category", "Int64", object])
def test_missing_responses(kind):
    source = {"boolean": "won", "Int64": "k"}.get(kind, "answer")
    values = TABLE[source].astype(kind).copy()
    values[9] = None
    more = {"trials": "size"} if kind == "Int64" else {}
    says(MissingDataError, "1 of 60 rows", "y (1)", left="y", data=TABLE.assign(y=values), **more)
    model = stated("y", data=TABLE.assign(y=values), missing="drop", **more)
    np.testing.assert_array_equal(model.y, np.delete(TABLE["k"] if kind == "Int64" else WON, 9))


def test_missing_values_that_expressions_make():
    with np.errstate(invalid="ignore"):
        lost = np.isnan(np.log(TABLE["x"]))
    for words in ({"zero_inflation": "~ np.log(x)"}, {"dispersion": "~ np.log(x)"}):
        says(MissingDataError, f"{lost.sum()} of 60 rows", left="count", kind="numbers", right="z + (1 | g)", **words)
        model = stated("count", "numbers", right="z + (1 | g)", missing="drop", **words)
        np.testing.assert_array_equal(model.rows, np.flatnonzero(~lost))
    # A category may be gone with such rows.
    table = TABLE.assign(y=pd.Categorical(np.where(lost, "gone", TABLE["answer"]), ["gone", "yes", "no"]))
    model = stated("y", data=table, right="np.log(x) + (1 | g)", missing="drop")
    assert model.response.categories == ("yes", "no")
    np.testing.assert_array_equal(model.y, 1 - WON[~lost])


def test_subsets():
    chosen = np.arange(N) % 3 > 0
    model = stated("k", trials="size", subset=chosen, dispersion="~ f")
    np.testing.assert_array_equal(model.y, TABLE["k"][chosen])
    np.testing.assert_array_equal(model.response.trials, SIZE[chosen])
    assert model.response.dispersion.names == ("Intercept", "f[T.w]")
    model = stated("level", "categories", subset=TABLE["level"] != "mid")
    assert model.response.categories == ("low", "high")


@pytest.mark.parametrize("table", [pl.from_pandas(TABLE), nw.from_native(pl.from_pandas(TABLE)), dict(TABLE)])
def test_other_tables(table):
    require_several_trials(stated("cbind(k, size - k)", data=table), "cbind(k, size - k)")
    require_several_trials(stated("share", data=table, trials="size"), "share")
    require_single_trials(stated("won", data=table), categories=(False, True))
    require_single_trials(stated("answer", data=table), categories=("no", "yes"))
    model = stated("level", "categories", table, dispersion="~ f")
    np.testing.assert_array_equal(model.response.dispersion.columns.sum(axis=0), [60, 20, 20])


def test_an_enum_keeps_its_order():
    values = pl.Series("y", TABLE["level"].astype(str).tolist(), dtype=pl.Enum(["none", "low", "mid", "high"]))
    model = stated("y", "categories", pl.from_pandas(TABLE).with_columns(values))
    assert model.response.categories == ("low", "mid", "high")
    np.testing.assert_array_equal(model.y, TABLE["level"].cat.codes)


def test_an_effect_for_each_row():
    """Without a residual variance, effects of the rows are told from it."""
    for kind, left in (("numbers", "count"), ("successes", "cbind(k, size - k)")):
        assert len(stated(left, kind, right="x + (1 | g) + (1 | index)").terms[1].levels) == N
    with pytest.raises(ModelError, match="vary like the residual"):
        from_formula("x ~ z + (1 | index)", TABLE)
    says(ModelError, "its grouping factor 'one' has one level", data=TABLE.assign(one=1), right="x + (1 | one)")


# What is refused.


def test_successes_that_are_not():
    some = TABLE.assign(k=TABLE["k"].where(TABLE.index % 20 != 3, 9))
    where = "in 3 of 60 rows, at row positions 3, 23, 43"
    says(DataError, "the response 'k' is more than its number of trials", where, left="k", data=some, trials="size")
    says(DataError, "failures of cbind(k, size - k) are negative", where, left="cbind(k, size - k)", data=some)
    negative = TABLE.assign(k=TABLE["k"].where(TABLE.index % 20 != 3, -1))
    says(DataError, "successes of cbind(k, size) are negative", where, left="cbind(k, size)", data=negative)
    says(DataError, "the response 'k' is negative", where, left="k", data=negative, trials="size")
    parts = TABLE.assign(k=TABLE["k"].astype(float).where(TABLE.index % 20 != 3, 2.5))
    says(DataError, "successes of cbind(k, 9 - k) are no whole numbers", where, left="cbind(k, 9 - k)", data=parts)
    says(DataError, "'k' is no whole number", where, "such as 2.5", "proportions", left="k", data=parts, trials="size")
    chosen = TABLE.index > 19
    where = "at row positions 23, 43"
    says(DataError, where, left="k", data=some, trials="size", subset=chosen)
    empty = TABLE.assign(size=TABLE["size"].where(TABLE.index % 20 != 3, 0), k=TABLE["k"] * (TABLE.index % 20 != 3))
    says(DataError, "neither successes nor failures in 3 of 60 rows", left="cbind(k, size - k)", data=empty)
    infinite = TABLE.assign(k=TABLE["k"].astype(float).where(TABLE.index != 3, np.inf))
    says(DataError, "infinite", "row positions 3", left="cbind(k, size)", data=infinite)
    says(DataError, "infinite", "row positions 3", left="k", data=infinite, trials="size")


def test_trials_that_are_not():
    for values, said in ((0, "zero"), (-2, "negative"), (2.5, "no whole numbers")):
        table = TABLE.assign(size=TABLE["size"].astype(float).where(TABLE.index % 20 != 3, values))
        where = "in 3 of 60 rows, at row positions 3, 23, 43"
        for left in ("k", "share"):
            says(DataError, f"trials are {said}", where, left=left, data=table, trials="size")
    says(DataError, "trials holds text", left="k", trials="f")
    says(DataError, "trials=", "'sise'", "did you mean 'size'", left="k", trials="sise")
    says(DataError, "trials has 3 values but data has 60 rows", left="k", trials=[1, 2, 3])


def test_trials_given_twice():
    says(DataError, "cbind(k, size - k) has its numbers of trials in it", left="cbind(k,size-k)", trials="size")
    says(DataError, "the response 'won' is False, True, one trial in each row", "leave it out", trials="size")
    says(DataError, "the response 'answer' is 'no', 'yes', one trial", left="answer", trials="size")


def test_proportions_without_their_trials():
    where = f"in {((TABLE['share'] % 1) > 0).sum()} of 60 rows"
    says(DataError, "the response 'share' lies between zero and one", where, "trials='size'", "cbind(", left="share")
    wrong = SIZE.copy()
    wrong[20:] += 1
    for more, argument in (({"trials": wrong}, "trials"), ({"weights": wrong}, "weights")):
        said = f"the response 'share' times {argument} is no whole number of successes"
        first = next(k for k in range(20, N) if (TABLE["share"][k] * wrong[k]) % 1)
        shown = f"row positions {first}, "
        says(DataError, said, shown, f"the first {TABLE['share'][first]:g} times {wrong[first]}", left="share", **more)
    said = "weights are no whole numbers in 60 of 60 rows, at row positions 0, 1, 2, 3, 4, ...; give trials="
    says(DataError, said, left="share", weights="z")
    says(DataError, "weights must be positive", left="share", weights=SIZE - 2)


def test_numbers_that_may_be_either():
    rare = TABLE.assign(k=TABLE["won"].astype(int))
    said = "cbind(k, size - k) ~ ... for numbers, cbind(k * size, size - k * size) ~ ... for proportions"
    says(DataError, "'k' is zero or one in every row, of up to 8 trials", said, left="k", data=rare, trials="size")
    for left, y in {"cbind(k, size - k)": WON, "cbind(k * size, size - k * size)": WON * SIZE}.items():
        np.testing.assert_array_equal(stated(left, data=rare).y, y)
    np.testing.assert_array_equal(stated("k", data=rare, trials=np.ones(N)).y, WON)


def test_numbers_of_successes_without_trials():
    where = f"in {(TABLE['k'] > 1).sum()} of 60 rows"
    says(DataError, "the response 'k' is above one", where, "trials='size'", "cbind(successes", left="k")
    coded = TABLE.assign(**{"my code": TABLE["won"] + 1})
    says(DataError, "the response 'my code' is above one", "I(`my code` == 2) ~ ...", left="`my code`", data=coded)
    require_single_trials(stated("I(`my code` == 2)", data=coded), categories=(False, True))


def test_more_than_two_categories():
    said = "has 3 categories, 'u', 'v', 'w', and a response of the family 'binomial' has two"
    says(DataError, "the response 'f'", said, "family='ordinal'", "I(f == 'u') ~ ...", left="f")
    says(DataError, "'low', 'mid', 'high'", "I(level == 'low')", left="level")
    for left in ("I(f == 'u')", "I(level == 'low')"):
        require_single_trials(stated(left), np.arange(N) % 3 == 0, (False, True))
    text = TABLE.assign(k=(TABLE["k"] + 0.5).astype(str))
    says(DataError, "the response 'k' holds text", "pd.to_numeric(data['k'])", left="k", data=text)


@pytest.mark.parametrize(
    ("left", "said"),
    [("cbind(k)", "is given 1"), ("cbind(k, size, z)", "is given 3"), ("cbind()", "is given 0")],
)
def test_arguments_of_cbind(left, said):
    shown = f"\n    {left} ~ x + (1 | g)\n    ^"
    says(FormulaError, "two arguments here, successes and failures", said, shown, left=left)


def test_cbind_of_what_is_no_column_of_numbers():
    says(FormulaError, "1 in cbind is one number for all rows", "\n             ^", left="cbind(k, 1)")
    says(DataError, "cbind(f, k): the column 'f' holds text", left="cbind(f, k)")
    says(DataError, "cbind(k, f): the column 'f' holds text", left="cbind(k, f)")
    says(DataError, "cbind(answer, k): the column 'answer' holds text", left="cbind(answer, k)")
    says(DataError, "'nothing'", "\n    cbind(k, nothing - k) ~", "\n             ^", left="cbind(k, nothing - k)")
    says(DataError, "one column", left="cbind(k, poly(x, 2))", right="z + (1 | g)")
    for left in ("cbind(k, x)", "cbind(x, size - k)"):
        says(FormulaError, "the response 'x' cannot explain itself", f"    {left} ~ x", left=left)
        says(FormulaError, "the response 'x'", left=left, right="z + (1 | g)", zero_inflation="~ x")


@pytest.mark.parametrize(("kind", "left"), [("numbers", "count"), ("categories", "level")])
def test_trials_of_families_that_have_none(kind, left):
    said = "states successes of a number of trials, and the family 'some' has none"
    says(ModelError, "cbind(...)", said, left="cbind(k, size - k)", kind=kind, family_name="some")
    says(ModelError, "trials=", said, left=left, kind=kind, family_name="some", trials="size")


def test_responses_that_are_all_alike():
    for values, label in ((0, ""), (False, " (False)"), (pd.Categorical(["a"] * N, ["b", "a"]), None), ("a", None)):
        said = "'y' is 'a' in every row" if label is None else f"every response is a failure{label}"
        says(DataError, said, "nothing to estimate", left="y", data=TABLE.assign(y=values))
    says(DataError, "every response is a success (True)", left="y", data=TABLE.assign(y=True))
    says(DataError, "every response is a success:", left="cbind(size, k)", data=TABLE.assign(k=0))
    says(DataError, "every response is a failure:", left="k", data=TABLE.assign(k=0), trials="size")
    says(DataError, "the response 'y' is zero in every row", left="y", kind="numbers", data=TABLE.assign(y=0))
    says(DataError, "is constant (3 in all 60 rows)", left="y", kind="numbers", data=TABLE.assign(y=3))
    for values, shown in ((3, "3"), (True, "True"), ("a", "'a'")):
        said = f"'y' is {shown} in every row"
        says(DataError, said, left="y", kind="categories", data=TABLE.assign(y=values))


def test_text_is_no_number():
    names = {"kind": "numbers", "family_name": "poisson"}
    said = "the family 'poisson' takes numbers: family='binomial' takes two categories, family='ordinal' those"
    says(DataError, "the response 'answer' holds text or categories, 'no', 'yes'", said, left="answer", **names)
    says(DataError, "the response 'level'", "'low', 'mid', 'high'", said, left="level", **names)
    counts = TABLE.assign(count=TABLE["count"].astype(str).replace("0", "<1"))
    says(DataError, "the response 'count' holds text (for example '<1')", left="count", data=counts, **names)
    counts = TABLE.assign(count=TABLE["count"].astype("category"))
    says(DataError, "'count' is a pandas category where numbers", "astype(float)", left="count", data=counts, **names)
    says(DataError, "one column", left="count + z", **names)
    says(DataError, "one column", left="answer + z")


def test_categories_that_have_no_order():
    digits = TABLE.assign(y=(TABLE["level"].cat.codes * 5).astype(str))
    said = "numbers as text, of which '10' would come before '5'"
    says(DataError, said, "pd.to_numeric", "ordered category", left="y", kind="categories", data=digits)
    says(DataError, "has 60 distinct values in 60 rows", "pd.cut", left="z", kind="categories")
    coded = {"left": "C(f, Sum)", "kind": "categories", "right": "x", "groups": "g"}
    says(DataError, "a category with a coding of its own, C(f, Sum)[mean], ", "name the column", **coded)


def test_formulas_of_further_predictors():
    for word in ("dispersion", "zero_inflation"):
        says(FormulaError, f"{word} is 'k ~ x', but it has no response: write '~ x'", **{word: "k ~ x"})
        says(FormulaError, f"{word} is '~ (1 | g)'", "bars belong to the main formula", **{word: "~ (1 | g)"})
        says(FormulaError, f"{word} is 3", "a formula without response", **{word: 3})
        says(DataError, "'xx'", "did you mean", **{word: "~ xx"})
        says(FormulaError, "the response 'won' cannot explain itself", **{word: "~ won"})
        says(ModelError, f"{word}='~ 0' has no columns", **{word: "~ 0"})
        said = f"{word}='~ f + I(2 * z) + z': the column 'z'"
        says(ModelError, said, "a combination of those before it", "leave it out", **{word: "~ f + I(2 * z) + z"})
        says(DataError, "infinite", "row positions 0", **{word: "~ np.log(index)"})


def test_generalized_models_in_general():
    says(ModelError, "response_kind is 'counts'", ", ".join(RESPONSES), kind="counts")
    says(ModelError, "no random effects", "a generalized linear model (statsmodels' GLM)", right="x")
    says(ModelError, "no random effects", right="x", dispersion="~ x")
    subset = [int(np.argmax(WON)), int(np.argmin(WON))]
    says(ModelError, "2 rows cannot determine 2 fixed effects and random effects", right="x + (1 | k)", subset=subset)


def test_the_linear_model_names_the_other_ones():
    for data in (TABLE, TABLE.assign(answer=TABLE["answer"].astype("category"))):
        with pytest.raises(DataError, match=r"'answer' holds text .* two categories .* mixedglm\(.*'binomial'\)"):
            jm.mixedlm("answer ~ x + (1 | g)", data)
    with pytest.raises(DataError, match=r"'level' holds text .* mixedglm\(\.\.\., family='ordinal'\)"):
        jm.mixedlm("level ~ x + (1 | g)", TABLE)
    with pytest.raises(DataError, match="'f' holds text") as caught:
        jm.mixedlm("f ~ x + (1 | g)", TABLE)
    assert "mixedglm" not in str(caught.value)
    with pytest.raises(FormulaError, match=r"'cbind' is neither .* mixedglm\(\.\.\., family='binomial'\)"):
        jm.mixedlm("cbind(k, size - k) ~ x + (1 | g)", TABLE, eval_env=-1)
    for word in ("family", "trials", "zero_inflation"):
        with pytest.raises(ModelError, match=rf"no argument '{word}'; .* mixedglm\("):
            jm.mixedlm("k ~ x + (1 | g)", TABLE, **{word: "~ x"})
    np.testing.assert_array_equal(jm.mixedlm("won ~ x + (1 | g)", TABLE).endog, WON)


# Stated again, and kept.


def test_formulas_that_refer_to_an_earlier_one():
    earlier = "cbind(k, size - k) ~ x + offset(z) + (1 | g)"
    again = restated(". ~ . + z", earlier)
    assert again == "cbind(k, size - k) ~ (x) + z + (1 | g) + offset(z)"
    assert restated(["x", "(1 | g)"], earlier) == "cbind(k, size - k) ~ x + (1 | g)"
    model = from_formula(again, TABLE, response_kind="successes")
    require_several_trials(model, "cbind(k, size - k)")
    np.testing.assert_array_equal(model.offset, TABLE["z"])
    assert restated("cbind(size - k, k) ~ .", earlier).startswith("cbind(size - k, k) ~ (x)")


@pytest.fixture
def kept(monkeypatch):
    """What a file gives back."""
    for word, kind in (("response term", ResponseTerm), ("further columns", FurtherColumns)):
        if kind not in files.KINDS.by_type:
            files.KINDS.add(word, kind)
    return lambda data: files.unpack(files.pack(data), "name", {}, lambda found: found)


@pytest.mark.parametrize(
    ("left", "kind", "more"),
    [
        ("cbind(k, size - `k`)", "successes", {"dispersion": "~ f*z", "weights": "z"}),
        ("share", "successes", {"weights": "size"}),
        ("answer", "successes", {}),
        ("won", "successes", {}),
        ("level", "categories", {}),
        ("pd.cut(x, 3)", "categories", {"right": "z + (1 | g)", "env": {"pd": pd}}),
        ("count", "numbers", {"dispersion": "~ poly(z, 2)", "zero_inflation": "~ C(f, contr.sum)"}),
    ],
)
def test_files(kept, left, kind, more):
    model = stated(left, kind, **more)
    again = kept(model)
    np.testing.assert_array_equal(again.y, model.y)
    for name in ("kind", "categories", "counts_trials", "weights_as_trials"):
        assert getattr(again.response, name) == getattr(model.response, name)
    np.testing.assert_array_equal(again.response.trials, model.response.trials)
    for part in ("dispersion", "zero"):
        first, second = getattr(model.response, part), getattr(again.response, part)
        assert (first is None) == (second is None)
        if first is not None:
            assert (first.text, first.names) == (second.text, second.names)
            np.testing.assert_array_equal(first.columns, second.columns)
            new = TABLE.iloc[[3, 17]].assign(z=[0.7, 1.1])
            mine, theirs = (new_rows(m, new, further=("dispersion", "zero")) for m in (model, again))
            np.testing.assert_array_equal(getattr(mine, part), getattr(theirs, part))
    used = {*model.recipe.columns(model.recipe.needs), "g"}
    pd.testing.assert_frame_equal(again.frame[sorted(used)], TABLE[sorted(used)])


def test_a_model_is_made_by_its_function():
    for arguments in ((), (np.ones(3), np.ones((3, 1)))):
        with pytest.raises(jm.ModelError, match=r"made by mixedglm\(formula, data, family\)"):
            jm.MixedGLM(*arguments)
    with pytest.raises(jm.ModelError, match="made by mixedglm"):
        jm.MixedGLM(endog=np.ones(3))
