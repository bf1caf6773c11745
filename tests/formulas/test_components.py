"""Variance components: whatever the short cut, the columns are those of an evaluation group by group."""

import numpy as np
import pandas as pd
import patsy
import pytest
from formulaic import Formula

from jmixed.errors import DataError, FormulaError, ModelError
from jmixed.formulas.statement import from_formula, new_rows

N = 240


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(1)
    data = pd.DataFrame(
        {
            "y": rng.standard_normal(N),
            "x": rng.standard_normal(N),
            "z": rng.random(N) + 0.1,
            "g": np.repeat(np.arange(12), 20),
            "c": rng.integers(0, 4, N),
            "f": rng.choice(["u", "v", "w"], N),
            "h": rng.choice(list("klm"), N),
            "one": 1,
        }
    )
    data["cat"] = data["f"].astype("category")
    return data.sample(frac=1, random_state=3)


def centred(values):
    return values - values.mean()


def covariance(codes, Z):
    """Covariance of the rows when all coefficients have variance one."""
    return (codes[:, None] == codes[None, :]) * (Z @ Z.T)


def group_by_group(formula, table, groups):
    """Covariance of the rows and the names of the columns in each group, evaluated on one group at a time."""
    rows, names = np.zeros((N, N)), []
    for label in sorted(set(table[groups])):
        own = np.flatnonzero(table[groups] == label)
        if "poly" in formula:  # patsy has no polynomials
            columns = Formula(formula).get_model_matrix(table.iloc[own])
        else:
            env = patsy.EvalEnvironment([{"centred": centred, "np": np}])
            columns = patsy.dmatrix(formula, table.iloc[own], env, return_type="dataframe")
        rows[np.ix_(own, own)] = columns.to_numpy(float) @ columns.to_numpy(float).T
        names.append([name for name in columns if columns[name].any()])
    return rows, names


def names_by_group(term, groups):
    """Names of a term's columns in each group."""
    names = [[] for _ in range(groups)]
    for level, parent in enumerate(term.parents):
        rows = term.Z[term.codes == level]
        names[parent] += [n for n, used in zip(term.inner[level], rows.any(axis=0), strict=True) if used]
    return names


INDICATORS = [
    *("0 + C(c)", "0 + f", "~0 + C(c)", "0 + C(c):C(f)", "0 + cat"),
    *("0 + C(c):x", "0 + np.log(z):f", "0 + C(h):f:z"),
]
SLOPES = ["0 + x", "1", "0 + np.log(z)", "0 + I(x**2)", "0 + center(x)", "0 + centred(x)", "0 + I(x - x.mean())"]
MATRICES = [
    *("x", "0 + x + z", "C(c)", "C(c) + x", "0 + C(c) + f", "C(c) * f", "C(h) + C(f):x"),
    *("0 + bs(x, df=4)", "0 + C(c, Sum)", "0 + I(x**2) + x", "0 + poly(x, 2)", "center(x) + f"),
]


@pytest.mark.parametrize(
    ("formula", "groups"),
    [*((f, "g") for f in INDICATORS + SLOPES + MATRICES), *((f, "one") for f in INDICATORS + MATRICES)],
)
def test_columns_are_those_of_each_group_by_itself(table, formula, groups):
    env = {"centred": centred}
    model = from_formula("y ~ x", table, groups=groups, vc_formula={"a": formula}, env=env)
    (term,) = model.terms
    rows, names = group_by_group(formula, table, groups)
    np.testing.assert_allclose(covariance(term.codes, term.Z), rows, atol=1e-12)
    assert [sorted(own) for own in names_by_group(term, len(names))] == [sorted(own) for own in names]
    assert term.vc == "a"
    assert term.structure == ("identity" if formula in MATRICES else "unstructured")
    assert term.group == ("a" if groups == "one" or formula in MATRICES else "g" if formula in SLOPES else "g:a")
    assert len(term.inner) == len(term.levels) == len(term.parents)


@pytest.mark.parametrize(
    "formula", [f for f in INDICATORS + SLOPES + MATRICES if "mean" not in f and "centred" not in f]
)
def test_new_rows_get_the_columns_that_they_had(table, formula):
    model = from_formula("y ~ x", table, groups="g", vc_formula={"a": formula})
    (term,) = model.terms
    some = new_rows(model, table.drop(columns="y").iloc[5:40:3], random=True)
    np.testing.assert_array_equal(some.codes[0], term.codes[5:40:3])
    np.testing.assert_allclose(some.Z[0], term.Z[5:40:3], atol=1e-12)
    strange = new_rows(model, table.iloc[:3].assign(g=[99, 98, 97]), random=True)
    np.testing.assert_array_equal(strange.codes[0], [-1, -1, -1])


TRUTH = [
    *("0 + b", "b", "b*x", "0 + b:x", "0 + C(f):b", "0 + C(b)", "b + C(f)", "0 + I(x > 0)", "0 + C(f):I(x > 0)"),
    "0 + I(b * x)",
]


@pytest.mark.parametrize("formula", TRUTH)
def test_truth_values_are_two_categories_in_every_group(table, formula):
    """As patsy has them, where only one of them occurs too."""
    data = table.assign(b=((table["z"] > 0.5) & (table["g"] != 3)) | (table["g"] == 5))
    model = from_formula("y ~ x", data, groups="g", vc_formula={"a": formula})
    (term,) = model.terms
    expected = np.zeros((N, N))
    for label in sorted(set(data["g"])):
        own = np.flatnonzero(data["g"] == label)
        columns = np.asarray(patsy.dmatrix(formula, data.iloc[own]))
        expected[np.ix_(own, own)] = columns @ columns.T
    np.testing.assert_allclose(covariance(term.codes, term.Z), expected, atol=1e-12)
    rows = new_rows(model, data.iloc[5:60:3], random=True)
    np.testing.assert_array_equal(rows.codes[0], term.codes[5:60:3])
    np.testing.assert_allclose(rows.Z[0], term.Z[5:60:3], atol=1e-12)


def test_a_level_that_is_new_in_its_group_is_unknown(table):
    data = table[~((table["g"] == 3) & (table["c"] == 2))]
    model = from_formula("y ~ x", data, groups="g", vc_formula={"a": "0 + C(c)", "b": "f + C(c)"})
    new = data.iloc[:2].assign(g=[3, 4], c=[2, 2])
    found = new_rows(model, new, random=True)
    level = found.codes[0]
    assert level[0] == -1
    assert model.terms[0].levels[level[1]] == "4:2"
    columns = dict(zip(model.terms[1].inner[4], found.Z[1][1], strict=True))
    assert {name: value for name, value in columns.items() if value and name != f"f[T.{new['f'].iloc[1]}]"} == {
        "Intercept": 1.0,
        "C(c)[T.2]": 1.0,
    }


def test_components_are_sorted_by_name_and_follow_the_random_effects(table):
    components = {"s": "0 + x", "c": "0 + C(c)", "b": "0 + f"}
    model = from_formula("y ~ x", table, groups="g", re_formula="~z", vc_formula=components)
    assert [t.vc for t in model.terms] == [None, "b", "c", "s"]
    assert len({t.label for t in model.terms}) == 4
    assert not [t for t in from_formula("y ~ x", table, groups="g", vc_formula=components).terms if t.vc is None]


def test_the_same_component_twice_has_two_labels(table):
    model = from_formula("y ~ x", table, groups="g", vc_formula={"a": "0 + f", "b": "0 + f"})
    assert [t.label for t in model.terms] == ["0 + f | g", "0 + f | g (2)"]


def test_constant_groups_are_the_crossed_idiom(table):
    words = {"c": "0 + C(c)", "f": "0 + f"}
    crossed = from_formula("y ~ x + (1 | c) + (1 | f)", table)
    for groups in ("one", np.zeros(N)):
        model = from_formula("y ~ x", table, groups=groups, vc_formula=words)
        for term, wanted in zip(model.terms, crossed.terms, strict=True):
            assert (term.group, list(term.levels)) == (wanted.group, list(wanted.levels))
            np.testing.assert_array_equal(term.codes, wanted.codes)
    with pytest.raises(ModelError, match="one level"):
        from_formula("y ~ x", table, groups="one", re_formula="1", vc_formula=words)


@pytest.mark.parametrize("components", ["0 + C(c)", ["0 + C(c)"]])
def test_components_are_a_mapping(table, components):
    with pytest.raises(FormulaError, match="must be a mapping"):
        from_formula("y ~ x", table, groups="g", vc_formula=components)


@pytest.mark.parametrize(
    ("formula", "error", "says"),
    [
        ("0 + C(nothing)", DataError, "'nothing'"),
        ("y ~ x", FormulaError, "no response"),
        ("(1 | f)", FormulaError, "bars"),
        ("", FormulaError, "formula without response"),
        (3, FormulaError, "formula without response"),
        ("0 + C(c", FormulaError, "Expected"),
        ("0", ModelError, "no columns"),
    ],
)
def test_a_bad_component_is_refused(table, formula, error, says):
    with pytest.raises(error, match=says.replace("(", r"\(")):
        from_formula("y ~ x", table, groups="g", vc_formula={"a": formula})


@pytest.mark.parametrize("none", ["0", "~0", "~ -1"])
def test_components_alone_may_be_asked_for(table, none):
    (term,) = from_formula("y ~ x", table, groups="g", re_formula=none, vc_formula={"c": "0 + C(c)"}).terms
    assert term.vc == "c"
