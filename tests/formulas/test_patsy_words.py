"""In calls in statsmodels' manner the words of patsy mean what they mean there: the same columns and names."""

import pickle

import numpy as np
import pandas as pd
import patsy
import pytest

from jmixed.formulas.statement import from_formula, new_rows


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    n = 96
    return pd.DataFrame(
        {
            "y": rng.normal(size=n),
            "g": np.repeat(np.arange(12), 8),
            "x": rng.normal(size=n),
            "z": rng.random(n) + 0.1,
            "my x": rng.normal(size=n),
            "h": rng.choice(["A", "B", "K", "M", "Z"], n),
            "f": rng.choice(list("uv"), n),
            "k": rng.choice([3, 1, 2], n),
        }
    )


WORDS = [
    *("scale(z, center=False)", "standardize(z, False, ddof=1)", "scale(z, False, False)"),
    *("np.where(x > 0, 'a', 'b')", "0 + np.where(x > 1, 'a', f):x", "np.asarray(h)", "C(np.where(z > 1, 'a', h), Sum)"),
    *("scale(x)", "scale(x, ddof=1)", "standardize(x, rescale=False)", "center(x)", "scale(x):f"),
    *(
        "C(h, Treatment)",
        "C(h, Treatment(1))",
        "C(h, Treatment(-2))",
        'C(h,Treatment(reference="K"))',
        "C(k, Treatment(2))",
    ),
    *("C(h, Sum)", "C(h, Sum(0))", "C(h, Sum('B'))", "C(h, Sum(omit='B')) + x", "0 + C(h, Sum)", "0 + C(h, Sum('A'))"),
    *("C(h, Diff)", "0 + C(h, Diff)", "C(h, Helmert)", "0 + C(h, Helmert)", "C(h, Helmert):x", "C(h, Diff) * f"),
    *("C(h, Poly)", "0 + C(h, Poly)", "C(h, Poly([1, 2, 4, 8, 9]))", "C(f, Poly)", "0 + f:C(k, Sum)", "C(k, Poly) * x"),
    *("C(h, levels=['Z', 'M', 'K', 'B', 'A'])", "C(h, Sum, ['Z', 'M', 'K', 'B', 'A'])", "C(h, contrast=Diff)"),
    *("C(k, [[1.0], [0.0], [-2.0]])", "C(k, np.eye(3)[:, 1:])", "C(k) + x", "C(k - 1, Treatment(2))"),
    *(
        "bs(x, df=4)",
        "bs(x, 6, None, 2)",
        "bs(x, knots=[-0.5, 0.5], degree=1)",
        "0 + bs(x, df=5, include_intercept=True)",
    ),
    *("0 + cr(x, df=4)", "cr(x, df=3, constraints='center')", "0 + cc(x, df=4)", "cc(z, df=3, constraints='center')"),
    *("bs(x, df=4):f", "Q('my x')", 'Q("my x")', 'Q("my x"):C(h, Treatment("B"))', "I(x/1e1)", "np.where(x>0,1,0)"),
    *("f/x", "0 + f", "C(h):f", "np.log( z )", "h*f"),
]


def theirs(text, table, rows):
    """patsy's columns by name, for the table and for other rows with its knots and levels."""
    made = patsy.dmatrix(text, table)
    new = patsy.build_design_matrices([made.design_info], rows)[0]
    return [pd.DataFrame(np.asarray(m), columns=made.design_info.column_names) for m in (made, new)]


@pytest.mark.parametrize("text", WORDS)
def test_columns_are_patsys(table, text):
    some = table.iloc[5:30].drop(columns="y").reset_index(drop=True)
    all_rows, new = theirs(text, table, some)
    model = from_formula(f"y ~ {text}", table, groups="g")
    assert not model.dropped
    assert sorted(model.exog_names) == sorted(all_rows.columns)
    found = pd.DataFrame(model.X, columns=model.exog_names)
    pd.testing.assert_frame_equal(found[all_rows.columns], all_rows, rtol=1e-10, atol=1e-12)
    for other in (model, pickle.loads(pickle.dumps(model))):
        again = pd.DataFrame(new_rows(other, some).X, columns=model.exog_names)
        pd.testing.assert_frame_equal(again[new.columns], new, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("text", ["C(h, Sum)", "bs(x, df=4)", "C(h, Treatment(1))", "scale(x)", "0 + C(h, Diff)"])
def test_random_effects_are_patsys(table, text):
    wanted = theirs(text, table, table)[0]
    (term,) = from_formula("y ~ x", table, groups=np.arange(96) % 7, re_formula=text).terms
    assert list(term.columns) == list(wanted.columns)
    np.testing.assert_allclose(term.Z, wanted, rtol=1e-10, atol=1e-12)


def test_bars_keep_formulaics_words(table):
    names = from_formula("y ~ bs(x, df=4) + C(h, Diff) + scale(x) + (1 | g)", table).exog_names
    assert {"bs(x, df=4)[1]", "bs(x, df=4)[4]", "C(h, Diff)[D.Z]"} <= set(names)
    assert np.std(from_formula("y ~ scale(x) + (1 | g)", table).X[:, 1], ddof=1) == pytest.approx(1)


@pytest.mark.parametrize("call", ["Treatment", "Treatment(1)", "Treatment('B')", 'Treatment(reference="B")'])
def test_treatment_means_the_same_beside_bars(table, call):
    wanted = theirs(f"C(h, {call})", table, table)[0]
    model = from_formula(f"y ~ C(h, {call}) + (1 | g)", table)
    assert model.exog_names == tuple(wanted.columns)
    np.testing.assert_array_equal(model.X, wanted)


def test_the_callers_words_win(table):
    model = from_formula("y ~ scale(x)", table, groups="g", env={"scale": lambda x: 3 * x})
    np.testing.assert_array_equal(model.X[:, 1], 3 * table["x"])


@pytest.mark.parametrize("call", ["Treatment('none')", "Treatment(9)", "Sum('none')", "Poly([1, 2])"])
def test_what_is_no_level(table, call):
    with pytest.raises(ValueError, match=r"neither one of the levels|2 scores for 5 levels"):
        from_formula(f"y ~ C(h, {call})", table, groups="g")


SPELLINGS = ['Q("my x")', "Q('my x')", 'C(h, Treatment("K"))', 'C(h, Treatment(reference="K")):Q("my x")', "I(x/1e3)"]


@pytest.mark.parametrize("text", SPELLINGS)
def test_names_are_spelled_as_the_caller_did(table, text):
    own = theirs(text, table, table)[0].columns[-1]
    for words in ({"groups": "g"}, {}):
        model = from_formula(f"y ~ {text}" + ("" if words else " + (1 | g)"), table, **words)
        assert model.exog_names[-1] == own
    (term,) = from_formula(f"y ~ x + ({text} | g)", table).terms
    assert term.columns[-1] == own
    assert term.label.startswith(own.partition("[")[0])
    left = from_formula('I(Q("my x")/1e3) ~ x + (1 | g)', table)
    assert left.endog_name == 'I(Q("my x") / 1e3)'
