"""Words before a bar: what they state, and what they refuse."""

import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.covariance.registry import STRUCTURES
from jmixed.errors import FormulaError, ModelError
from jmixed.formulas.formula import parse
from jmixed.formulas.restate import restated
from jmixed.formulas.structures import WORDS

rng = np.random.default_rng(0)
DATA = pd.DataFrame(
    {
        "y": rng.normal(size=120),
        "x": rng.normal(size=120),
        "t": np.tile(np.repeat([1.0, 2, 4, 10], 2), 15),
        "f": np.tile(np.repeat(list("abcd"), 2), 15),
        "g": np.repeat([f"g{k:02}" for k in range(15)], 8),
    }
)


def terms(formula, data=DATA):
    return [(term.label, term.structure, term.columns) for term in jm.mixedlm(formula, data).spec.terms]


def test_every_word_has_a_structure():
    assert {word.structure for word in WORDS.values()} == set(STRUCTURES)


@pytest.mark.parametrize("word", WORDS)
def test_a_word_states_a_structure(word):
    ((label, structure, columns),) = terms(f"y ~ x + {word}(0 + f | g)")
    assert label == ("0 + f | g" if word == "us" else f"{word}(0 + f | g)")
    assert structure == WORDS[word].structure
    assert columns == ("f[a]", "f[b]", "f[c]", "f[d]")
    assert terms(f"y ~ x + ({word}(0+f|g))") == terms(f"y ~ x + {word}(0 + f | g)")


def test_parts_of_a_formula():
    (first, second) = parse("y ~ cs(0 + f | a/b) + x").random
    assert (first.label, second.label) == ("cs(0 + f | a)", "cs(0 + f | a:b)")
    assert (first.word, first.effects, second.factors) == ("cs", "0 + f", ("a", "b"))
    assert parse("y ~ x + I(a | b) + us(x | g)").random[0].label == "x | g"
    assert restated(". ~ . + z", "y ~ x + ar1(0 + C(t) | g)") == "y ~ (x) + z + ar1(0 + C(t) | g)"


def test_levels_stand_in_their_order():
    assert terms("y ~ x + ar1(0 + C(t) | g)")[0][2] == tuple(f"C(t)[{t}]" for t in ("1.0", "2.0", "4.0", "10.0"))
    data = DATA.assign(f=pd.Categorical(DATA["f"], categories=list("dcbae"), ordered=True))
    assert terms("y ~ x + ar1(0 + f | g)", data)[0][2] == ("f[d]", "f[c]", "f[b]", "f[a]")
    data = DATA.assign(f=pd.Categorical(DATA["f"], categories=list("azbcd")))
    with pytest.warns(UserWarning, match=r"no row has 'z'.*neighbours"):
        terms("y ~ x + ar1(0 + f | g)", data)
    terms("y ~ x + cs(0 + f | g)", data)


@pytest.mark.parametrize(
    ("formula", "error", "message"),
    [
        ("y ~ x + foo(0 + f | g)", FormulaError, "'foo' before a bar.*us .*homcs .*toep"),
        ("y ~ x + cs(0 + f || g)", FormulaError, "write one bar"),
        ("y ~ x - cs(0 + f | g)", FormulaError, "added with"),
        ("y ~ x + cs(0 + y | g)", FormulaError, "cannot explain itself"),
        ("y ~ x + cs(0 + f | )", FormulaError, "right of the bar"),
        ("y ~ x + cs(1 | g)", ModelError, "one column"),
        ("y ~ x + ar1(0 + t | g)", ModelError, r"t is a column of numbers. Write ar1\(0 \+ C\(t\) \| g\)"),
        ("y ~ x + hetar1(f | g)", ModelError, r"an intercept. Write hetar1\(0 \+ f \| g\)"),
        ("y ~ x + toep(0 + f:C(t) | g)", ModelError, "an interaction"),
    ],
)
def test_what_has_no_meaning_is_refused(formula, error, message):
    with pytest.raises(error, match=f"(?s){message}"):
        jm.mixedlm(formula, DATA)


@pytest.mark.parametrize(
    ("word", "columns", "advice"), [("ar1", 201, "fewer levels"), ("hetar1", 51, "ar1, which has")]
)
def test_too_many_columns_are_refused(word, columns, advice):
    data = pd.DataFrame({"y": rng.normal(size=4 * columns), "t": np.tile(np.arange(columns), 4)})
    data["g"] = np.repeat(list("abcd"), columns)
    with pytest.raises(ModelError, match=f"{columns} columns.*{advice}"):
        jm.mixedlm(f"y ~ 1 + {word}(0 + C(t) | g)", data)


def test_what_varies_like_the_residual_is_refused():
    once = DATA.groupby(["g", "f"], as_index=False).first()
    for word in ("us", "diag", "homcs"):
        with pytest.raises(ModelError, match="vary like the residual"):
            jm.mixedlm(f"y ~ x + {word}(0 + f | g)", once)
    for word in ("ar1", "hetar1", "cs", "toep"):
        jm.mixedlm(f"y ~ x + {word}(0 + f | g)", once)
