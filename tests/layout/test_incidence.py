"""How factors cross, and the rows of a model for the iterative way."""

import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.layout.incidence import incidence
from jmixed.layout.layout import UNPLACED
from jmixed.layout.stack import crossing, unplaced


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 30, 400), rng.integers(0, 12, 400)
    columns = {"a": a, "b": b, "school": a // 5, "x": rng.normal(size=400), "y": rng.normal(size=400)}
    return pd.DataFrame(columns)


def spec(formula, data, **words):
    return jm.mixedlm(formula, data, **words).spec


def test_the_block_of_all_but_the_largest_factor_is_told(data):
    found = crossing(spec("y ~ x + (x | a) + (1 | b)", data))
    assert (found.reason, found.width, found.shortage) == ("", 12, None)
    # A nest beside a crossed factor stands with it.
    assert crossing(spec("y ~ x + (1 | a) + (1 | school) + (1 | b)", data)).width == 18


@pytest.mark.parametrize(
    ("formula", "words", "reason"),
    [
        ("y ~ x + (1 | a)", {}, "no crossed factors"),
        ("y ~ x + (1 | school) + (1 | a)", {}, "no crossed factors"),
        ("y ~ x + (1 | a) + (0 + x | a)", {}, "no crossed factors"),
        ("y ~ x + (1 | a) + (1 | b)", {"dispersion": "~ x"}, "residuals have parameters"),
        ("y ~ x + (1 | a) + (1 | b)", {"relationship": {"a": pd.DataFrame(np.eye(30))}}, "related"),
    ],
)
def test_models_that_it_is_not_for(data, formula, words, reason):
    assert reason in crossing(spec(formula, data, **words)).reason


def test_what_needs_too_much_memory_is_told_before_it_is_taken(data, monkeypatch):
    seen = []
    monkeypatch.setattr("jmixed.runtime.device.shortage", lambda needed: seen.append(needed) or "too much")
    assert crossing(spec("y ~ x + (1 | a) + (1 | b)", data)).shortage == "too much"
    assert seen[0] >= 8 * 12 * 12**2


def test_terms_of_one_factor_share_it(data):
    model = spec("y ~ x + (x || a) + (1 | b)", data)
    rows = incidence(model)
    assert rows.factors == ((0, 1), (2,))
    assert rows.widths == (2, 1)
    assert rows.counts == (30, 12)
    np.testing.assert_array_equal(rows.codes[1], data["b"])


def test_a_design_without_places_has_the_rows(data):
    model = jm.mixedlm("y ~ x + (x | a) + (1 | b)", data)
    bare, placed = unplaced(model.spec), model.design
    assert bare.layout.crossed == UNPLACED
    assert (bare.labels, bare.counts, bare.layout.terms) == (placed.labels, placed.counts, placed.layout.terms)
    np.testing.assert_array_equal(bare.Z["x | a"], placed.Z["x | a"])
