"""Arrays without words: statsmodels' array interface."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from jmixed.errors import DataError, MissingDataError, ModelError
from jmixed.formulas.statement import from_arrays, from_formula

N = 60


@pytest.fixture
def arrays():
    rng = np.random.default_rng(4)
    return SimpleNamespace(
        y=rng.standard_normal(N),
        X=np.column_stack([rng.standard_normal(N), np.ones(N)]),
        g=rng.permutation(np.repeat(list("dcba"), 15)),
        Z=rng.standard_normal((N, 2)),
    )


def by_group(values, groups):
    """A matrix for each group, as a component is given."""
    return {label: values[groups == label] for label in np.unique(groups)}


def test_names(arrays):
    plain = from_arrays(arrays.y, arrays.X, arrays.g)
    assert (plain.endog_name, plain.exog_names) == ("y", ("x1", "const"))
    assert [(t.label, t.group, t.columns, t.intercept) for t in plain.terms] == [
        ("1 | Group", "Group", ("Intercept",), 0)
    ]
    assert from_arrays(arrays.y, arrays.Z, arrays.g).exog_names == ("x1", "x2")
    index = pd.RangeIndex(5, 5 + N)
    named = from_arrays(
        pd.Series(arrays.y, name="score", index=index),
        pd.DataFrame(arrays.X, columns=["a", "b"], index=index),
        pd.Series(arrays.g),
        exog_re=pd.Series(arrays.Z[:, 0], name="slope"),
    )
    assert (named.endog_name, named.exog_names, named.terms[0].columns) == ("score", ("a", "b"), ("slope",))
    assert named.index.equals(index)
    assert from_arrays(arrays.y, arrays.X, arrays.g, exog_re=arrays.Z).terms[0].columns == ("x_re1", "x_re2")


def test_the_same_arrays_as_a_formula(arrays):
    data = pd.DataFrame({"y": arrays.y, "x": arrays.X[:, 0], "z": arrays.Z[:, 0], "g": arrays.g})
    words = from_formula("y ~ x", data, groups="g", re_formula="~z", weights=data["z"] ** 2, offset="x")
    Z = np.column_stack([np.ones(N), data["z"]])
    model = from_arrays(data["y"], arrays.X[:, ::-1], data["g"], exog_re=Z, weights=data["z"] ** 2, offset=data["x"])
    for name in ("y", "X", "weights", "offset"):
        np.testing.assert_array_equal(getattr(model, name), getattr(words, name))
    np.testing.assert_array_equal(model.terms[0].codes, words.terms[0].codes)
    np.testing.assert_array_equal(model.terms[0].Z, words.terms[0].Z)
    assert model.terms[0].intercept == 0
    assert list(model.terms[0].levels) == list("abcd")


@pytest.mark.parametrize("form", ["mapping", "frames", "specification", "sparse"])
def test_components_of_every_kind(arrays, form):
    rng = np.random.default_rng(9)
    inner = rng.integers(0, 3, N)
    wide, slope = rng.standard_normal((N, 2)), rng.standard_normal(N)
    parts = {"v": np.eye(3)[inner], "u": wide, "s": slope}
    found = {name: by_group(values, arrays.g) for name, values in parts.items()}
    if form == "frames":
        found["v"] = {label: pd.DataFrame(m, columns=["p", "q", "r"]) for label, m in found["v"].items()}
    if form in ("specification", "sparse"):
        make = sparse.csr_array if form == "sparse" else np.asarray
        found["s"] = {label: m[:, None] for label, m in found["s"].items()}
        found = SimpleNamespace(
            names=["s", "u", "v"],
            colnames=[[["s"]] * 4, [["u1", "u2"]] * 4, [["p", "q", "r"]] * 4],
            mats=[[make(found[name][label]) for label in "abcd"] for name in ("s", "u", "v")],
        )
    model = from_arrays(arrays.y, arrays.X, arrays.g, exog_vc=found)
    s, u, v = model.terms
    assert [(t.vc, t.group, t.structure) for t in model.terms] == [
        ("s", "Group", "unstructured"),
        ("u", "u", "identity"),
        ("v", "Group:v", "unstructured"),
    ]
    np.testing.assert_array_equal(s.Z[:, 0], slope)
    np.testing.assert_array_equal(u.Z, wide)
    names = np.array(["p", "q", "r"] if form != "mapping" else ["0", "1", "2"])[inner]
    wanted = [f"{group}:{name}" for group, name in zip(arrays.g, names, strict=True)]
    np.testing.assert_array_equal(v.levels.to_numpy()[v.codes], wanted)
    assert [v.inner[level][0] for level in v.codes] == list(names)
    np.testing.assert_array_equal(v.parents[v.codes], model.terms[0].codes)


def test_columns_that_a_group_lacks_are_zero(arrays):
    found = {label: np.ones((15, k + 1)) * (k + 2) for k, label in enumerate("abcd")}
    (term,) = from_arrays(arrays.y, arrays.X, arrays.g, exog_vc={"v": found}).terms
    assert term.Z.shape == (N, 4)
    np.testing.assert_array_equal((term.Z != 0).sum(axis=1), term.codes + 1)
    assert [[name is not None for name in names].count(True) for names in term.inner] == [1, 2, 3, 4]


def test_missing_values_are_dropped_jointly(arrays):
    y, X, Z = arrays.y.copy(), arrays.X.copy(), arrays.Z.copy()
    y[3], X[7, 0], Z[11, 1] = np.nan, np.nan, np.nan
    g = pd.Series(arrays.g, dtype=object)
    g[20] = None
    weights, offset = np.ones(N), np.zeros(N)
    weights[30], offset[31] = np.nan, np.nan
    component = arrays.Z[:, 0].copy()
    component[40] = np.nan
    labelled = g.notna().to_numpy()
    vc = {"v": by_group(component[labelled], arrays.g[labelled])}
    model = from_arrays(y, X, g, exog_re=Z, exog_vc=vc, missing="drop", weights=weights, offset=offset)
    kept = np.delete(np.arange(N), [3, 7, 11, 20, 30, 31, 40])
    np.testing.assert_array_equal(model.rows, kept)
    np.testing.assert_array_equal(model.index, kept)
    np.testing.assert_array_equal(model.groups, arrays.g[kept])
    np.testing.assert_array_equal(model.terms[1].Z[:, 0], component[kept])
    for missing in ("none", "raise"):
        with pytest.raises(MissingDataError, match=r"1 of 60 rows have missing values, in exog \(1\); row positions 7"):
            from_arrays(arrays.y, X, arrays.g, missing=missing)


def test_a_group_that_is_dropped_whole_leaves_its_components(arrays):
    y = np.where(arrays.g == "b", np.nan, arrays.y)
    found = {"v": by_group(np.eye(3)[np.arange(N) % 3], arrays.g)}
    model = from_arrays(y, arrays.X, arrays.g, exog_vc=found, missing="drop")
    assert list(model.terms[0].levels) == [f"{g}:{k}" for g in "acd" for k in range(3)]
    assert model.terms[0].parents.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"endog": np.ones(N)}, DataError, "constant"),
        ({"endog": np.array(["1"] * N)}, DataError, "endog has dtype"),
        ({"endog": np.ones((N, 2))}, DataError, r"endog has shape \(60, 2\)"),
        ({"endog": np.zeros(0)}, DataError, "endog is empty"),
        ({"exog": None}, DataError, "exog is missing"),
        ({"exog": np.ones((N, 2, 2))}, DataError, r"exog has shape \(60, 2, 2\)"),
        ({"exog": np.ones(3)}, DataError, "exog has 3 rows but endog has 60"),
        ({"exog": np.full(N, np.inf)}, DataError, "exog 'const' has 60 infinite values"),
        ({"exog": pd.DataFrame({"t": ["1"] * N})}, DataError, "exog column 't' holds text"),
        ({"groups": None}, DataError, "groups is missing"),
        ({"groups": np.ones(59)}, DataError, "groups has 59 rows"),
        ({"groups": np.ones((N, 2))}, DataError, "groups has shape"),
        ({"groups": np.ones(N)}, ModelError, "one level"),
        ({"groups": np.arange(N)}, ModelError, "60 coefficients .* cannot be told apart"),
        ({"weights": np.zeros(N)}, DataError, "weights must be positive"),
        ({"missing": "maybe"}, DataError, "missing is 'maybe'"),
        ({"exog_vc": {"v": {"a": np.ones((15, 1))}}}, DataError, "no matrix for the group 'b'"),
        ({"exog_vc": {"v": {g: np.ones((3, 1)) for g in "abcd"}}}, DataError, "3 rows for group 'a', which has 15"),
        ({"exog_vc": SimpleNamespace(names=["v"], colnames=[[["a"]]], mats=[[np.ones(15)]])}, DataError, "1 matrices"),
        ({"exog_vc": 3}, DataError, "exog_vc is a int"),
    ],
)
def test_bad_arrays_are_refused(arrays, change, error, says):
    with pytest.raises(error, match=says):
        from_arrays(**({"endog": arrays.y, "exog": arrays.X, "groups": arrays.g} | change))


def test_labelled_rows_must_agree(arrays):
    y, X = pd.Series(arrays.y), pd.DataFrame(arrays.X)
    for exog, exog_re in ((X.iloc[::-1], None), (X, X.iloc[::-1])):
        with pytest.raises(DataError, match="row labels"):
            from_arrays(y, exog, arrays.g, exog_re=exog_re)
    np.testing.assert_array_equal(from_arrays(y, X.to_numpy()[::-1], arrays.g).X, arrays.X[::-1])


def test_masked_values_are_missing(arrays):
    y = np.ma.masked_array(arrays.y, np.arange(N) == 3)
    np.testing.assert_array_equal(from_arrays(y, arrays.X, arrays.g, missing="drop").rows, np.delete(np.arange(N), 3))


def test_no_random_columns_beside_components(arrays):
    found = {"v": by_group(np.eye(3)[np.arange(N) % 3], arrays.g)}
    (term,) = from_arrays(arrays.y, arrays.X, arrays.g, exog_re=np.empty((N, 0)), exog_vc=found).terms
    assert term.vc == "v"
