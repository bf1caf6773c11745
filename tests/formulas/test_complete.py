"""The terms of a formula without coding."""

import numpy as np
import pandas as pd
import pytest

from jmixed.formulas.arrays import from_arrays
from jmixed.formulas.complete import complete_terms
from jmixed.formulas.statement import from_formula

DATA = pd.DataFrame(
    {
        "y": np.arange(24.0) % 7,
        "A": np.tile(list("abc"), 8),
        "class": np.repeat(list("uv"), 12),
        "x": np.sin(np.arange(24.0)),
        "g": np.tile(np.repeat(list("pqrs"), 3), 2),
    }
)


def test_every_combination_has_a_column():
    complete = complete_terms(from_formula("y ~ C(A, contr.sum) * class * x + (1 | g)", DATA))
    a, c = "C(A, contr.sum)", "class"
    assert complete.names == ("Intercept", a, c, "x", f"{a}:{c}", f"{a}:x", f"{c}:x", f"{a}:{c}:x")
    assert list(np.bincount(complete.term)) == [1, 3, 2, 1, 6, 3, 2, 6]
    A = DATA.A.to_numpy()[:, None] == np.array(["b", "c", "a"])
    both = A[:, [0, 1, 0, 1, 2, 2]] & (DATA["class"].to_numpy()[:, None] == np.array(list("vvuuvu")))
    # The first factor varies fastest; columns at more first categories come later.
    np.testing.assert_array_equal(complete.values[:, complete.term == 1], A)
    np.testing.assert_array_equal(complete.values[:, complete.term == 4], both)
    np.testing.assert_array_equal(complete.values[:, complete.term == 7], both * DATA[["x"]].to_numpy())
    # Treatment contrasts span it all, whatever the coding of the model.
    assert list(np.bincount(complete.term[complete.basis])) == [1, 2, 1, 1, 2, 2, 1, 2]


def test_containing_terms_have_the_same_numbers_and_more_categories():
    complete = complete_terms(from_formula("y ~ A * class * x + (1 | g)", DATA))
    # Intercept, A, class, x, A:class, A:x, class:x, A:class:x
    assert complete.contained_in == ((1, 2, 4), (4,), (4,), (5, 6, 7), (), (7,), (7,), ())


def test_a_smooth_is_numbers():
    complete = complete_terms(from_formula("y ~ bs(x, df=4) + A + (1 | g)", DATA))
    assert complete.contained_in[1:] == ((), ())
    assert list(np.bincount(complete.term)) == [1, 4, 3]


def test_columns_left_out_leave_the_terms_as_they_are_coded():
    model = from_formula("y ~ A * class + (1 | g)", DATA, drop_cols=["A[T.c]:class[T.v]"])
    complete = complete_terms(model)
    np.testing.assert_array_equal(complete.values, model.X)
    assert list(complete.term) == [0, 1, 1, 2, 3]


@pytest.mark.parametrize("formula", ["y ~ 1 + (1 | g)", "y ~ 0 + x + (1 | g)"])
def test_few_terms(formula):
    model = from_formula(formula, DATA)
    np.testing.assert_array_equal(complete_terms(model).values, model.X)


def test_arrays_have_a_term_for_each_column():
    model = from_arrays(DATA.y.to_numpy(), DATA[["x"]].to_numpy(), groups=DATA.g.to_numpy())
    complete = complete_terms(model)
    assert complete.names == model.exog_names
    np.testing.assert_array_equal(complete.values, model.X)
