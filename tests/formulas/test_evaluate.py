"""The border to formulaic: what it does not promise to keep can go: formulas are evaluated all the same."""

import numpy as np
import pandas as pd
import pytest
from formulaic import ModelSpec, transforms
from formulaic.materializers import PandasMaterializer

from jmixed.errors import FormulaError
from jmixed.formulas import evaluate, plain, recipe
from jmixed.formulas.statement import from_formula, new_rows

N = 60
FORMULAS = [
    "y ~ x + f",
    "y ~ f * x + truth",
    "y ~ np.log(z) + C(f, contr.sum) + bs(x, df=4)",
    'y ~ C(f, Treatment(reference="b")) + center(x) + poly(z, 2) + I(x**2)',
    "y ~ f + (x > 0)",
]


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    numbers = {"y": rng.normal(size=N), "x": rng.normal(size=N), "z": rng.random(N) + 0.1, "truth": rng.random(N) < 0.5}
    return pd.DataFrame({**numbers, "f": rng.choice(list("abc"), N), "g": np.arange(N) % 6})


@pytest.fixture
def forgetful():
    """Nothing is remembered of formulas that were read, or of what formulaic has."""
    caches = (evaluate.vocabulary, evaluate._row_materializer, recipe._formulas)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def model_of(formula, table):
    return from_formula(f"{formula} + (1 | np.floor(g / 2))", table, env={"np": np})


def seen(model, table):
    return model.exog_names, model.X, model.terms[0].codes, new_rows(model, table.iloc[:5]).X


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("gone", ["TRANSFORMS", "token"])
def test_models_are_the_same_without_it(table, forgetful, monkeypatch, formula, gone):
    expected = seen(model_of(formula, table), table)
    recipe._formulas.cache_clear()
    if gone == "TRANSFORMS":
        monkeypatch.delattr(transforms, "TRANSFORMS")
        evaluate.vocabulary.cache_clear()
    else:
        monkeypatch.setattr(evaluate, "place_of", lambda factor, code: None)
        monkeypatch.setattr(recipe, "place_of", lambda factor, code: None)
    names, *arrays = seen(model_of(formula, table), table)
    # Only spellings are formulaic's own where it does not tell where it read an expression.
    assert [name.replace('"', "'") for name in names] == [name.replace('"', "'") for name in expected[0]]
    for array, wanted in zip(arrays, expected[1:], strict=True):
        np.testing.assert_array_equal(array, wanted)


def test_without_its_hooks_columns_as_they_are_work_and_transforms_are_refused(table, forgetful, monkeypatch):
    assert all(hasattr(PandasMaterializer, hook) for hook in evaluate.HOOKS)
    expected = model_of("y ~ f * x + truth", table).X
    # A name that formulaic has no more.
    monkeypatch.setattr(evaluate, "HOOKS", ("_check_for_nulls", "_of_yesterday"))
    plain._ask.cache_clear()
    np.testing.assert_array_equal(model_of("y ~ f * x + truth", table).X, expected)
    with pytest.raises(FormulaError, match=r"\(_of_yesterday is gone\): install formulaic 1.2"):
        model_of("y ~ np.log(z)", table)


def test_a_place_is_told_where_formulaic_tells_it():
    (factor,) = evaluate.factors_of(ModelSpec.from_spec("0 + np.log( z )"))
    assert evaluate.place_of(factor, "0 + np.log( z )") == (4, 14)
    assert evaluate.place_of(factor, "another formula") is None
    assert evaluate.place_of(object(), "0 + np.log( z )") is None


def test_a_column_wins_over_the_callers_names_and_these_over_formulaics(table):
    env = {"x": 3.0, "center": lambda values: values - 1, "shift": 2.0}
    np.testing.assert_array_equal(evaluate.value_of("center(x) + shift", table, env), table.x - 1 + 2)
    np.testing.assert_allclose(evaluate.value_of("center(x)", table, {}), table.x - table.x.mean())


def test_what_was_learnt_is_not_opened_by_a_formulaic_that_keeps_it_otherwise(table, monkeypatch):
    spec = model_of("y ~ f * x", table).recipe.specs["rhs"]
    rows, factors = evaluate.structure_apart(spec), {factor.expr: factor for factor in evaluate.factors_of(spec)}
    again = evaluate.structure_together(rows, factors)
    assert [list(row.columns) for row in again] == [list(row.columns) for row in spec.structure]
    monkeypatch.delattr("formulaic.materializers.base.EncodedTermStructure")
    with pytest.raises(FormulaError, match="EncodedTermStructure.*install formulaic 1.2"):
        evaluate.structure_together(rows, factors)
