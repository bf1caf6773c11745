"""Known covariances of levels: what a matrix with labels becomes, in every form it may have, and what is refused."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import jmixed as jm
from jmixed.errors import DataError, ModelError
from jmixed.formulas import relationships
from jmixed.formulas.statement import from_formula

LEVELS = ["u", "v", "w", "x"]
LABELS = ["x", "p", "v", "u", "q", "w"]  # in no order, with two more than the data have


def covariance(labels=LABELS):
    rng = np.random.default_rng(4)
    root = rng.normal(size=(len(labels), len(labels) + 1))
    return pd.DataFrame(root @ root.T / len(labels), labels, labels)


A = covariance()
OTHERS = ["p", "q"]


@pytest.fixture
def table():
    rng = np.random.default_rng(1)
    g = np.repeat(LEVELS, 5)[rng.permutation(20)]
    return pd.DataFrame({"y": rng.normal(size=20), "x": rng.normal(size=20), "g": g, "h": np.tile(["1", "2"], 10)})


def term_of(table, matrix=None, inverse=None, formula="y ~ x + (1 | g)", name="g"):
    words = {"relationship": matrix, "relationship_inverse": inverse}
    given = {word: {name: value} for word, value in words.items() if value is not None}
    return from_formula(formula, table, **given).terms[0]


def matches(term, known, others=OTHERS):
    """Everything that a term tells of its levels, against the whole matrix."""
    levels, relationship = list(term.levels), term.relationship
    assert sorted(relationship.others) == sorted(others)
    others = list(relationship.others)
    K, across = known.loc[levels, levels].to_numpy(), known.loc[others, levels].to_numpy()
    np.testing.assert_array_equal(term.root, np.tril(term.root))
    np.testing.assert_allclose(term.root @ term.root.T, K, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(relationship.spread @ term.root.T, across, rtol=1e-9, atol=1e-12)
    rest = known.loc[others, others] - across @ np.linalg.solve(K, across.T)
    np.testing.assert_allclose(relationship.rest, np.diag(rest), rtol=1e-8, atol=1e-12)
    b = np.arange(len(levels) * 2.0).reshape(-1, 2)
    told = across @ np.linalg.solve(K, b)
    np.testing.assert_allclose(relationship.effects(b), np.vstack([b, told]), rtol=1e-9, atol=1e-12)


def inverse_of(known):
    return pd.DataFrame(np.linalg.inv(known), known.index, known.columns)


FORMS = {
    "a frame": (A, None),
    "columns in another order": (A[sorted(LABELS)], None),
    "a list of labels": ((A.to_numpy(), LABELS), None),
    "an array of labels": ((A.to_numpy(), np.array(LABELS)), None),
    "an index": ([A.to_numpy(), A.index], None),
    "nested lists": ((A.to_numpy().tolist(), tuple(LABELS)), None),
    "sparse": ((sparse.coo_array(A.to_numpy()), LABELS), None),
    "a sparse matrix of the old kind": ((sparse.csc_matrix(A.to_numpy()), LABELS), None),
    "inverse": (None, inverse_of(A)),
    "inverse, columns in another order": (None, inverse_of(A)[sorted(LABELS)]),
    "sparse inverse": (None, (sparse.csr_array(inverse_of(A).to_numpy()), LABELS)),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_tells_the_same(table, form):
    matches(term_of(table, *FORMS[form]), A)


def test_a_matrix_of_the_levels_alone(table):
    known = A.loc[LEVELS, LEVELS]
    matches(term_of(table, known), known, others=[])
    matches(term_of(table, None, (sparse.csc_array(inverse_of(known).to_numpy()), LEVELS)), known, others=[])


def test_whole_numbers_as_labels(table):
    numbers = {label: 10 + k for k, label in enumerate(LABELS)}
    table["g"] = table["g"].map(numbers)
    known = covariance(list(numbers.values()))
    matches(term_of(table, known), known, [11, 14])


def test_many_others_are_solved_for_in_parts(table, monkeypatch):
    """More of them than columns that are made at a time."""
    labels = [*LEVELS, *(f"o{k}" for k in range(1100))]
    n = len(labels)
    # An autoregression of order one along the labels, whose inverse has three diagonals.
    known = pd.DataFrame(0.9 ** np.abs(np.subtract.outer(np.arange(n), np.arange(n))), labels, labels)
    beside, own = np.full(n - 1, -0.9), np.r_[1, np.full(n - 2, 1.81), 1]
    inverse = sparse.diags_array([beside, own, beside], offsets=(-1, 0, 1)) / 0.19
    matches(term_of(table, None, (inverse, labels)), known, labels[4:])


def test_levels_without_rows_follow_the_others(table):
    relationship = term_of(table, A).relationship
    codes = relationship.match(np.array([2, -1, -1, -1]), [np.array(["w", "q", "nobody", "p"])])
    place = {label: 4 + k for k, label in enumerate(relationship.others)}
    np.testing.assert_array_equal(codes, [2, place["q"], -1, place["p"]])
    assert codes.dtype == np.int32


def test_nested_factors_by_their_combined_labels(table):
    labels = [f"{g}:{h}" for g in [*LEVELS, "new"] for h in "12"]
    known = covariance(labels)
    term = term_of(table, known, formula="y ~ x + (1 | g:h)", name="g:h")
    matches(term, known, set(labels) - set(term.levels))
    codes = term.relationship.match(np.array([-1, -1]), [np.array(["new", "new"]), np.array(["2", "3"])])
    assert codes.tolist() == [len(term.levels) + list(term.relationship.others).index("new:2"), -1]


def test_all_terms_of_the_factor_are_related_and_no_other(table):
    terms = from_formula("y ~ x + (x || g) + (1 | h)", table, relationship={"g": A}).terms
    assert [term.relationship is not None for term in terms] == [True, True, False]
    assert terms[0].root is terms[1].root


def test_the_matrix_of_the_caller_is_unchanged(table):
    known, inverse = A.copy(deep=True), sparse.csr_array(inverse_of(A).to_numpy())
    before = inverse.copy()
    term_of(table, known)
    term_of(table, None, (inverse, LABELS))
    pd.testing.assert_frame_equal(known, A)
    assert abs(inverse - before).max() == 0


def changed(known, value, i=1, j=2):
    values = known.to_numpy().copy()
    values[i, j] = value
    return pd.DataFrame(values, known.index, known.columns)


@pytest.mark.parametrize("argument", ["relationship", "relationship_inverse"])
@pytest.mark.parametrize("form", ["dense", "pair", "sparse"])
class TestMatricesThatAreRefused:
    """Of each kind and in each form; the message names the argument and the factor."""

    def check(self, table, argument, form, known, message):
        forms = {"dense": known, "pair": (known.to_numpy(), known.index)}
        forms["sparse"] = (sparse.csr_array(known.to_numpy()), list(known.index))
        with pytest.raises(DataError, match=re.escape(message)) as caught:
            from_formula("y ~ x + (1 | g)", table, **{argument: {"g": forms[form]}})
        assert f"{argument}['g']" in str(caught.value)

    def test_not_symmetric(self, table, argument, form):
        known = changed(A, 2.5)
        message = f"is not symmetric: 2.5 at ('p', 'v'), and {A.loc['p', 'v']:.6g} the other way round"
        if form == "sparse":
            # Either entry of the pair comes first.
            message = "is not symmetric: "
        self.check(table, argument, form, known, message)

    def test_not_definite(self, table, argument, form):
        known = A.loc[LEVELS, LEVELS]
        values = np.linalg.eigvalsh(known)
        known = known - (values[0] + 0.25 * (values[1] - values[0])) * np.eye(4)
        smallest = f"{(values[0] - values[1]) / 4:.3g}"
        self.check(table, argument, form, known, f"is not positive definite: its smallest eigenvalue is {smallest}. ")

    def test_not_definite_with_the_levels_without_rows(self, table, argument, form):
        """The covariance of those with rows is definite; that of all cannot be one."""
        known = A.copy()
        known.loc["q", "q"] = -0.5
        self.check(table, argument, form, known, "is not positive definite: its smallest eigenvalue is -")

    def test_singular(self, table, argument, form):
        """Two levels that are the same have one row of the matrix."""
        root = np.random.default_rng(0).normal(size=(4, 4))
        root[1] = root[3]
        known = pd.DataFrame(root @ root.T, LEVELS, LEVELS)
        self.check(table, argument, form, known, "Levels that are the same, as clones or duplicates")

    def test_several_eigenvalues_are_counted(self, table, argument, form):
        root = np.random.default_rng(0).normal(size=(4, 1))
        known = pd.DataFrame(root @ root.T, LEVELS, LEVELS)
        self.check(table, argument, form, known, "(3 are not above zero)")

    def test_missing_entries(self, table, argument, form):
        self.check(table, argument, form, changed(A, np.nan), "has missing or infinite entries")

    def test_a_label_twice(self, table, argument, form):
        known = A.set_axis([*LABELS[:-1], "p"]).set_axis([*LABELS[:-1], "p"], axis=1)
        self.check(table, argument, form, known, "has the label 'p' twice")

    def test_levels_that_the_matrix_has_not(self, table, argument, form):
        known = A.drop(index=["w", "u"], columns=["w", "u"])
        message = "2 of 4 levels of 'g' are not in the matrix: 'u', 'w'; give a matrix that has them, or leave"
        self.check(table, argument, form, known, message)

    def test_numbers_and_text(self, table, argument, form):
        known = pd.DataFrame(A.to_numpy(), range(6), range(6))
        message = "the levels are text and the matrix's labels numbers (0): convert one of them"
        self.check(table, argument, form, known, message)


def refused(table, message, matrix=None, inverse=None, error=DataError):
    with pytest.raises(error, match=re.escape(message)):
        term_of(table, matrix, inverse)


@pytest.mark.parametrize(
    ("message", "matrix"),
    [
        ("relationship['g'] is a ndarray; give a DataFrame", A.to_numpy()),
        ("relationship['g'] is a str; give a DataFrame", "A"),
        ("relationship['g'] is a csr_array; give a DataFrame", sparse.csr_array(A.to_numpy())),
        ("has the shape (6, 5) and 6 labels; it must be square", (A.to_numpy()[:, :5], LABELS)),
        ("has the shape (6, 6) and 5 labels; it must be square", (A.to_numpy(), LABELS[:5])),
        ("has the shape (6,) and 6 labels; it must be square", (A.to_numpy()[0], LABELS)),
        ("has the shape (0, 0) and 0 labels", (np.zeros((0, 0)), [])),
        ("has rows of different lengths", ([[1, 2], [3]], ["u", "v"])),
        ("the labels of (matrix, labels) are 4; give a list of the levels", (A.to_numpy(), 4)),
        ("the labels of (matrix, labels) are None", (A.to_numpy(), None)),
        ("the labels of (matrix, labels) are [['u']", (np.eye(1), [["u"]])),
        ("holds values of type", A.astype(str)),
        ("holds values of type complex128", (A.to_numpy() * 1j, LABELS)),
        ("holds values of type complex128", (sparse.csr_array(A.to_numpy() * 1j), LABELS)),
        ("must be the same levels, and 'w' of its index is no column", A.drop(columns="w")),
        ("must be the same levels, and 'w' of its columns is not in its index", A.drop(index="w")),
        ("must be the same levels, and 'x' of its index is no column", A.reset_index(drop=True).T),
    ],
)
def test_what_is_no_matrix_with_labels(table, message, matrix):
    refused(table, message, matrix)


def test_both_arguments_for_one_factor(table):
    refused(table, "the factor 'g' has a matrix in relationship= and one in relationship_inverse=", A, inverse_of(A))


@pytest.mark.parametrize("argument", ["relationship", "relationship_inverse"])
def test_no_mapping(table, argument):
    with pytest.raises(DataError, match=re.escape(f"{argument} is a DataFrame; give a mapping of a grouping factor")):
        from_formula("y ~ x + (1 | g)", table, **{argument: A})


def test_a_factor_that_the_model_has_not(table):
    with pytest.raises(DataError, match=r"relationship\['h'\]: 'h' is no grouping factor of this model") as caught:
        from_formula("y ~ x + (1 | g)", table, relationship={"h": A})
    assert "add a term such as (1 | h)" in str(caught.value)


def test_a_level_that_is_missing_among_many(table):
    """Labels that differ in one place are shown, the first five of them."""
    table = pd.concat([table] * 3).assign(g=np.repeat([f"n{k:02d}" for k in range(12)], 5))
    refused(table, "12 of 12 levels of 'g' are not in the matrix: 'n00', 'n01', 'n02', 'n03', 'n04', ...;", A)


def test_more_levels_than_a_dense_matrix_should_have(table, monkeypatch):
    monkeypatch.setattr(relationships, "MOST", 3)
    refused(table, "the matrix of 4 levels would be dense, more than 3; give the sparse", A, error=ModelError)


def test_a_large_sparse_inverse_that_is_not_definite(table):
    """Its smallest eigenvalue is sought without making it dense."""
    n = 2100
    labels = [*LEVELS, *(f"o{k}" for k in range(n - 4))]
    diagonal = np.linspace(1, 2, n)
    diagonal[7] = -0.5
    refused(table, "smallest eigenvalue is -0.5.", inverse=(sparse.diags_array(diagonal), labels))


def test_a_pedigree_gives_what_its_matrix_and_its_inverse_give(table):
    family = jm.pedigree(
        {"animal": ["w", "x", "y", "u"], "sire": ["u", "u", "w", None], "dam": ["v", "w", "x", None]},
    )
    table["g"] = table["g"].replace("v", "y")
    whole = family.A
    assert whole.loc["y", "y"] > 1
    matches(term_of(table, family), whole, ["v"])
    matches(term_of(table, whole), whole, ["v"])
    matches(term_of(table, None, (family.inverse, family.labels)), whole, ["v"])
    # It knows which of the two it gives.
    matches(term_of(table, None, family), whole, ["v"])


def test_all_forms_have_one_fit(table):
    """From the table to the estimates, once for each way a matrix is read."""
    table["y"] += 3 * table["g"].map({"u": 1.0, "v": -1, "w": 0.3, "x": 0})
    forms = [FORMS[form] for form in ("a frame", "sparse", "inverse", "sparse inverse")]
    words = [
        {"relationship": {"g": known}} if inverse is None else {"relationship_inverse": {"g": inverse}}
        for known, inverse in forms
    ]
    first, *others = (jm.mixedlm("y ~ x + (1 | g)", table, **given).fit() for given in words)
    assert sorted(first.ranef()["g"].index) == sorted(LABELS)
    for fit in others:
        assert fit.objective == pytest.approx(first.objective, abs=1e-9)
        np.testing.assert_allclose(fit.ranef()["g"], first.ranef()["g"], rtol=1e-6, atol=1e-9)
