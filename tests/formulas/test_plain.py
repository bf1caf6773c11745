"""Formulas of columns as they are: what formulaic makes of a few rows, spread out, is what it makes of all rows."""

import numpy as np
import pandas as pd
import pytest
from formulaic import ModelSpec

from jmixed.formulas import plain
from jmixed.formulas.evaluate import materializer
from jmixed.formulas.frame import working_frame
from jmixed.formulas.recipe import _formulas, evaluate, read

N = 60

FORMULAS = (
    "1",
    "0",
    "x",
    "0 + x",
    "x + z",
    "x:z",
    "z:x",
    "x*z*whole",
    "x:z + x",
    "truth",
    "truth:x",
    "whole:big",
    "2:x",
    "x + 3:z:x",
    "`odd name` + x:`odd name`",
    "text",
    "0 + text",
    "0 + text + tale",
    "x + text",
    "text:x",
    "x:text",
    "text + text:x",
    "text*x",
    "0 + text:x",
    "text:tale",
    "text*tale",
    "tale:text + x",
    "text*tale*x",
    "ranked",
    "ranked*x*whole",
    "ranked:numbered",
    "numbered + numbered:z",
    "spare",
    "one + x",
    "one:text",
    "text/x",
    "(text + ranked)**2",
    "(x + z + text)**2 - x:z",
    "x:text:z:ranked",
)


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(5)
    texts = {name: rng.choice(list(letters), N) for name, letters in (("text", "bca"), ("tale", "vu"))}
    data = pd.DataFrame(
        {
            "x": rng.normal(size=N),
            "z": rng.normal(size=N) * 1e6,
            "odd name": rng.normal(size=N).astype(np.float32),
            "whole": rng.integers(-5, 5, N),
            "big": rng.integers(2**60, 2**61, N),
            "truth": rng.random(N) < 0.5,
            **texts,
            "ranked": pd.Categorical(rng.choice(["low", "mid", "top"], N), ["top", "mid", "low"], ordered=True),
            "numbered": pd.Categorical(rng.integers(1, 5, N), [4, 3, 2, 1, 9]),
            "spare": pd.Categorical(rng.choice(["p", "q"], N), ["r", "q", "p"]),
            "one": pd.Categorical(["a"] * N),
        }
    )
    return working_frame(data, list(data.columns), {})


def by_rows(text, frame):
    """Formulaic's own answer from all rows."""
    spec = ModelSpec(next(iter(_formulas("z0", text, text, ()).values())))
    made = materializer(frame, {}).get_model_matrix(spec, output="numpy")
    return made.model_spec, np.asarray(made, float).reshape(len(frame), len(made.model_spec.column_names))


def states(spec):
    """What a spec has learnt, in a form that can be compared."""
    kinds = {name: (kind, state.get("categories")) for name, (kind, state) in spec.encoder_state.items()}
    reduced = [[(f.factor.expr, f.reduced) for t in row.scoped_terms for f in t.factors] for row in spec.structure]
    terms = [[f.expr for f in term.factors] for term in spec.term_slices]
    settings = (spec.output, spec.na_action, spec.materializer, spec.ensure_full_rank, spec.transform_state)
    return kinds, reduced, terms, list(spec.term_slices.values()), spec.column_names, settings


@pytest.mark.parametrize("text", FORMULAS)
def test_a_few_rows_tell_what_all_rows_do(text, frame):
    spec, values = by_rows(text, frame)
    found = plain.plain_columns({"z0": ModelSpec(spec.formula)}, frame)
    assert found, "the formula was left to formulaic"
    learnt, columns = found["z0"]
    np.testing.assert_array_equal(columns, values)
    assert states(learnt) == states(spec)


@pytest.mark.parametrize("text", FORMULAS)
def test_what_was_learnt_serves_new_data(text, frame):
    recipe = read({"z0": text}, frame, {}, {}, ())
    learnt = evaluate(recipe, ["z0"], frame, fresh=True)
    rows = np.array([3, 1, 50])
    new = evaluate(type(recipe)(**{**vars(recipe), "specs": learnt.specs}), ["z0"], frame.iloc[rows], fresh=False)
    np.testing.assert_array_equal(new.matrices["z0"].values, learnt.matrices["z0"].values[rows])
    assert new.matrices["z0"].names == learnt.matrices["z0"].names


@pytest.mark.parametrize("text", ["np.log(x)", "C(text)", "C(text, Sum)", "I(x**2)", "center(x)", "hole", "gap + x"])
def test_transforms_and_missing_values_are_left_to_formulaic(text, frame):
    data = frame.assign(hole=frame.x.where(frame.x > 0), gap=frame.text.where(frame.x > 0))
    recipe = read({"z0": text}, data, {"np": np, "Sum": None}, {}, ())
    assert not plain.plain_columns(recipe.specs, data)


def test_other_categories_are_not_taken_for_those_remembered(frame):
    for letters in ("ab", "abc", "bc"):
        data = pd.DataFrame({"f": list(letters) * 4, "g": pd.Categorical(list(letters) * 4, list(letters)[::-1])})
        for text in ("f", "g", "f:g", "0 + g"):
            spec, values = by_rows(text, data)
            learnt, columns = plain.plain_columns({"z0": ModelSpec(spec.formula)}, data)["z0"]
            np.testing.assert_array_equal(columns, values)
            assert states(learnt) == states(spec)


def test_truth_values_and_numbers_are_told_apart_in_what_is_remembered():
    truth, numbers = np.array([False, True] * 4), np.array([0, 1] * 4)
    for values in (pd.Categorical(numbers), truth, pd.Categorical(numbers), truth[1::2]):
        spec, _ = by_rows("f", data := pd.DataFrame({"f": values}))
        learnt, _ = plain.plain_columns({"z0": ModelSpec(spec.formula)}, data)["z0"]
        assert list(map(repr, learnt.column_names)) == list(map(repr, spec.column_names))
        assert list(map(repr, learnt.encoder_state["f"][1]["categories"])) == list(
            map(repr, spec.encoder_state["f"][1]["categories"])
        )


def test_many_categories_are_left_to_formulaic():
    names = [f"n{k}" for k in range(plain.FEW + 1)]
    data = pd.DataFrame({"f": names, "g": pd.Categorical(names), "h": names[:-1] + names[:1]})
    for text in ("f", "g"):
        assert not plain.plain_columns({"z0": ModelSpec(by_rows(text, data)[0].formula)}, data)
    assert plain.plain_columns({"z0": ModelSpec(by_rows("h", data)[0].formula)}, data)
