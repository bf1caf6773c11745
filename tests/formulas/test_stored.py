"""Formulas and what they have learnt come back from files: the same columns of new data, to the last bit."""

import math

import numpy as np
import pandas as pd
import pytest
from formulaic.transforms import stateful_transform

from jmixed.errors import DataError, FormulaError
from jmixed.formulas.patsy_words import PATSY, Treatment
from jmixed.formulas.recipe import Elsewhere
from jmixed.formulas.statement import from_formula, new_rows
from jmixed.reports import files

RNG = np.random.default_rng(0)
N = 60
TABLE = pd.DataFrame(
    {
        "y": RNG.normal(size=N),
        "x": RNG.uniform(0.5, 3, N),
        "class": RNG.uniform(0.5, 3, N),
        "body mass": RNG.uniform(1, 2, N),
        "f": np.tile(["b", "a", "c"], N // 3),
        "h": pd.Categorical(np.repeat(["u", "w", "v", "u"], N // 4), ["w", "v", "u"]),
        "k": np.arange(N) % 4,
        "t": np.arange(N) % 5 > 1,
        "g": np.arange(N) // 5,
    }
)
NEW = TABLE.iloc[[3, 17, 44, 2]].assign(x=[0.7, 1.1, 2.3, 2.9]).reset_index(drop=True)


def again(data, names=None):
    return files.unpack(files.pack(data), "name", names or {}, lambda found: found)


def require_same(data, found, new=NEW):
    for random in (False, True):
        mine, theirs = new_rows(data, new, random), new_rows(found, new, random)
        np.testing.assert_array_equal(mine.X, theirs.X)
        for a, b in zip((*mine.Z, *mine.codes), (*theirs.Z, *theirs.codes), strict=True):
            np.testing.assert_array_equal(a, b)
    for part, spec in data.recipe.specs.items():
        other = found.recipe.specs[part]
        assert other.column_names == spec.column_names
        assert {str(term): own for term, own in other.term_slices.items()} == {
            str(term): own for term, own in spec.term_slices.items()
        }
        assert [str(term) for term in other.formula] == [str(term) for term in spec.formula]
    assert found.recipe.dtypes == data.recipe.dtypes


WORDS = [
    *(
        "x",
        "0 + f",
        "f * h",
        "f:x + h",
        "x:f:h",
        "t",
        "C(k)",
        "I(x**2)",
        "np.log(x) + log(x)",
        "`class` * f",
        "(f + h + x)**2",
    ),
    *(
        "bs(x, df=4)",
        "bs(x, knots=[1.5], degree=2, include_intercept=True)",
        "cr(x, df=4)",
        "cc(x, df=4)",
        "cs(x, df=4)",
    ),
    *(
        "poly(x, 3)",
        "poly(x, 2, raw=True):f",
        "scale(x)",
        "center(x) * f",
        "standardize(`class`)",
        "scale(np.log(`body mass`))",
    ),
    *(
        "C(f, contr.sum)",
        "C(f, contr.treatment('c')) * x",
        "C(k, contr.poly)",
        "C(h, contr.helmert)",
        "C(f, levels=['c', 'a', 'b'])",
    ),
    *("C(f, {'low': [1, 0, -1]})", "{x + `class`}", "hashed(f, levels=5)", "C(I(x > 1))"),
]


@pytest.mark.filterwarnings("ignore::jmixed.errors.RankWarning")
@pytest.mark.parametrize("text", WORDS)
def test_columns_with_bars(text):
    data = from_formula(f"y ~ {text} + (1 | g)", TABLE, missing="drop")
    require_same(data, again(data))


PATSYS = [
    "bs(x, df=4)",
    "cr(x, df=4)",
    "scale(x)",
    "C(f, Sum)",
    "C(f, Treatment(1))",
    "C(f, Treatment) * x",
    "C(k, Poly)",
]


@pytest.mark.parametrize("text", [*PATSYS, "C(h, Diff)", "C(f, Helmert)"])
def test_columns_with_patsys_words(text):
    data = from_formula(f"y ~ {text}", TABLE, groups="g")
    require_same(data, again(data))


COMPONENTS = [
    "0 + C(f)",
    "0 + x",
    "0 + C(f):x",
    "C(f) + C(h)",
    "0 + center(x)",
    "0 + bs(x, df=3, extrapolation='clip')",
    "0 + I(x > 1)",
]


@pytest.mark.parametrize("text", COMPONENTS)
def test_columns_of_components(text):
    table = TABLE.assign(g=TABLE.g // 3)
    data = from_formula("y ~ x", table, groups="g", vc_formula={"v": text}, check="ignore")
    found = again(data)
    require_same(data, found, NEW.assign(g=[0, 1, 2, 99]))
    assert [tuple(own) for own in found.terms[-1].inner] == [tuple(own) for own in data.terms[-1].inner]


@pytest.mark.parametrize(
    "text", ["(x | g/f)", "(scale(x) || g)", "(1 | f:h)", "(bs(x, df=3) | g)", "(1 | np.floor(x))"]
)
def test_columns_of_random_effects(text):
    data = from_formula(f"y ~ x + {text}", TABLE, check="ignore")
    require_same(data, again(data))


def half(x):
    return x / 2


def test_objects_of_the_caller():
    """Data are stored, functions that come with packages are known by name, and all else is looked for."""
    knots, level, log = [1.2, 2.0], "c", np.log
    table, coding = np.array([[1.0], [0.0], [-1.0]]), Treatment("c")
    text = "bs(x, knots=knots) + C(f, contr.treatment(level)) + log(x) + half(x) + C(h, table) + C(f, coding)"
    env = {"half": half, "knots": knots, "level": level, "log": log, "table": table, "coding": coding}
    data = from_formula(f"y ~ {text} + (1 | g)", TABLE, env=env)
    found = again(data)
    kept = found.recipe.env
    assert (kept["knots"], kept["level"], kept["log"]) == (knots, level, np.log)
    np.testing.assert_array_equal(kept["table"], table)
    assert kept["half"] == Elsewhere("half", "function")
    assert kept["coding"] == Elsewhere("coding", "Treatment")
    with pytest.raises(FormulaError, match="(?s)'(half|coding)' is a .* of yours.*where you call jm.load.*\\^"):
        new_rows(found, NEW)
    # What is missing stays missing in a file of what was loaded, and another thing of that name is not taken for it.
    twice = again(found, {"half": 2, "coding": Treatment})
    assert twice.recipe.env["half"] == Elsewhere("half", "function")
    assert twice.recipe.env["coding"] == Elsewhere("coding", "Treatment")
    require_same(data, again(twice, {"half": half, "coding": Treatment("c")}))


def test_a_missing_function_is_missed_only_where_it_is_used():
    data = from_formula("y ~ x + (1 | half(g))", TABLE, env={"half": half})
    found = again(data)
    np.testing.assert_array_equal(new_rows(found, NEW).X, new_rows(data, NEW).X)
    with pytest.raises(FormulaError, match="half"):
        new_rows(found, NEW, random=True)
    data = from_formula("y ~ x", TABLE, groups="g", vc_formula={"v": "0 + half(x)"}, env={"half": half})
    np.testing.assert_array_equal(new_rows(again(data), NEW).X, new_rows(data, NEW).X)
    with pytest.raises(FormulaError, match="(?s)'half' is a function of yours.*half"):
        new_rows(again(data), NEW, random=True)


def test_modules_are_looked_for_but_those_that_all_have():
    env = {"numpy": np, "math": math, "pd": pd}
    text = "y ~ numpy.log(x) + I(x ** math.e) + I(pd.Series(x).abs()) + (1 | g)"
    data = from_formula(text, TABLE, env=env)
    found = again(data)
    assert found.recipe.env["numpy"] is np
    assert found.recipe.env["pd"] is pd
    assert found.recipe.env["math"] == Elsewhere("math", "module")
    require_same(data, again(data, {"math": math}))


def test_the_words_of_patsy_are_the_same_objects():
    data = from_formula("y ~ bs(x, df=3) + C(f, Sum)", TABLE, groups="g")
    found = again(data).recipe.env
    assert found.keys() == data.recipe.env.keys()
    assert all(found[name] is PATSY[name] for name in found)


@stateful_transform
def odd(x, _state=None):
    """A transform that remembers what cannot be stored."""
    _state["function"] = half
    return x


def test_a_transform_that_remembers_what_cannot_be_stored_is_named():
    data = from_formula("y ~ odd(x) + (1 | g)", TABLE, env={"odd": odd})
    with pytest.raises(DataError, match="save: the result holds <function half"):
        files.pack(data)
