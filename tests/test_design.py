"""Designs from arrays: the same fits as by formula, and what is wrong with the arrays."""

import jax
import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.fit import host
from jmixed.runtime.precision import FLOAT, double_precision


def data(seed=0, n=90):
    r = np.random.default_rng(seed)
    frame = pd.DataFrame({"g": r.choice(list("qwerty"), n), "h": r.integers(0, 7, n), "x": r.normal(size=n)})
    effects = r.normal(size=(6, 2))[frame.g.astype("category").cat.codes]
    frame["y"] = 1 + frame.x + effects[:, 0] + effects[:, 1] * frame.x + r.normal(size=7)[frame.h] + r.normal(size=n)
    return frame.assign(w=r.uniform(0.5, 2, n))


def test_the_fit_is_that_of_the_formula():
    d = data()
    X, y = np.column_stack([np.ones(len(d)), d.x]), d.y.to_numpy()
    ones = np.ones(len(d))
    cases = {
        "y ~ x + (x | g)": jm.design(y, X, d.g, X, weights=d.w),
        "y ~ x + (1 | g) + (1 | h)": jm.design(y, X, {"g": d.g, "h": d.h}, weights=d.w),
        "y ~ x + (x | g) + (1 | h)": jm.design(y, X, {"g": d.g, "h": d.h}, {"g": X}, weights=d.w),
        "y ~ x + (x || g)": jm.design(y, X, d.g, {"one": ones, "slope": d.x}, weights=d.w),
        "y ~ 0 + (1 | g)": jm.design(y, np.zeros((len(d), 0)), d.g.to_numpy(), weights=d.w),
    }
    for formula, design in cases.items():
        expected = jm.mixedlm(formula, d, weights="w").design
        found, other = host.fit(design), host.fit(expected)
        for name in ("theta", "beta", "sigma", "objective"):
            np.testing.assert_allclose(getattr(found, name), getattr(other, name), rtol=1e-8, err_msg=formula)
        for own, known in zip(design.labels, expected.labels, strict=True):
            np.testing.assert_allclose(found.b[own], other.b[known], rtol=1e-6, atol=1e-8, err_msg=formula)
    assert cases["y ~ x + (x || g)"].labels == ("one", "slope")
    assert cases["y ~ x + (x | g)"].labels == ("groups",)


def test_the_type_is_that_of_the_arrays():
    d = data()
    X, y = np.column_stack([np.ones(len(d)), d.x]), d.y.to_numpy()
    narrow = jm.design(y.astype("f4"), X.astype("f4"), d.h)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(narrow)} == {"float32", "int32"}
    assert jm.design(np.arange(90), X.astype(int), d.h).y.dtype == FLOAT
    assert jm.design(y, X.astype("f4"), d.h).X.dtype == FLOAT
    design = jm.design(y, X, d.h)
    assert np.shares_memory(design.padded_rows().X, design.X)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.ones((5, 1))}, r"X has shape \(5, 1\), but y has 90 rows"),
        ({"groups": np.arange(5)}, r"groups has shape \(5,\), but y has 90 rows"),
        ({"groups": np.array([1, "a"] * 45, object)}, "groups mixes int and str"),
        ({"groups": np.where(np.arange(90) == 7, np.nan, 1.0)}, "missing in 1 of 90 rows, the first of them row 7"),
        ({"groups": {}}, "groups is empty"),
        ({"groups": {"a": np.arange(90) % 3, "b": np.arange(90) % 4}, "Z": np.ones(90)}, "give a dict of arrays"),
        ({"groups": {"a": np.arange(90) % 3}, "Z": {"b": np.ones(90)}}, r"Z has columns for \['b'\]"),
        ({"Z": {}}, "leave it out for a random intercept"),
        ({"y": np.full(90, np.nan)}, "y is missing or infinite in 90 of 90 rows, the first of them row 0"),
        ({"y": np.ones((90, 2))}, r"y has shape \(90, 2\)"),
        ({"y": np.array(["a"] * 90)}, "y has dtype"),
        ({"weights": -np.ones(90)}, "weights are zero or more"),
        ({"X": [[1.0], [1.0, 2.0]]}, "X is no array"),
    ],
)
def test_arrays_that_make_no_model(changes, message):
    arguments = {"y": np.arange(90.0), "X": np.ones((90, 1)), "groups": np.arange(90) % 9} | changes
    with pytest.raises(jm.DataError, match=message):
        jm.design(**arguments)


def test_traced_arrays_are_sent_to_replace():
    with double_precision(), pytest.raises(jm.DataError, match=r"exchange its arrays inside .* by design\.replace"):
        jax.jit(lambda y: jm.design(y, np.ones((90, 1)), np.arange(90) % 9))(np.arange(90.0))
