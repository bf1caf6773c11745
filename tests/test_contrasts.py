"""Linear hypotheses in words: names with brackets and commas, chains, and everything that is not linear."""

import numpy as np
import pytest

import jmixed as jm
from jmixed.contrasts import contrast_test, wald_test
from jmixed.hypotheses import hypotheses

NAMES = ["Intercept", "x1", "x2", "C(g, Sum)[S.b]", "x1:x2", "Group Var", "x11"]


def rows(**coefficients):
    return [coefficients.get(name, 0.0) for name in NAMES]


@pytest.mark.parametrize(
    ("text", "R", "q"),
    [
        ("x1", [rows(x1=1.0)], [0]),
        ("x1 = x2 = 3", [rows(x1=1.0, x2=-1.0), rows(x2=1.0)], [0, 3]),
        ("x1 + 2*x2 = 3, x11", [rows(x1=1.0, x2=2.0), rows(x11=1.0)], [3, 0]),
        ("(x1 = 2), (x2 = -1)", [rows(x1=1.0), rows(x2=1.0)], [2, -1]),
        ("(x1 + x2) / 2 = (x11)", [rows(x1=0.5, x2=0.5, x11=-1.0)], [0]),
        ("C(g, Sum)[S.b] - x1:x2 = 0", [rows(**{"C(g, Sum)[S.b]": 1.0, "x1:x2": -1.0})], [0]),
        ("`C(g, Sum)[S.b]` = 1e-3", [rows(**{"C(g, Sum)[S.b]": 1.0})], [1e-3]),
        ("Group Var = 0", [rows(**{"Group Var": 1.0})], [0]),
        ("3 = x1 - 2", [rows(x1=-1.0)], [-5]),
    ],
)
def test_words(text, R, q):
    found, constants = hypotheses(text, NAMES)
    np.testing.assert_allclose(found, R)
    np.testing.assert_allclose(constants, q)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("x3 = 0", "'x3' is not a coefficient"),
        ("x1 * x2 = 0", "product of two coefficients"),
        ("1 / x1 = 0", "division"),
        ("x1 / 0", "division"),
        ("x1 = (", "not an equation"),
        ("x1 ** 2 = 1", "not linear"),
        ("abs(x1) = 1", "not linear"),
        ("True * x1", "truth value"),
        ("", "empty hypothesis"),
    ],
)
def test_what_is_not_linear_is_refused(text, why):
    with pytest.raises(jm.FormulaError, match=why):
        hypotheses(text, NAMES)


def test_right_hand_sides_of_matrices():
    R, q = hypotheses((np.eye(7)[:2], [1.0, 2.0]), NAMES)
    assert q.tolist() == [1, 2]
    R, q = hypotheses((np.eye(7)[:2], 3.0), NAMES)
    assert q.tolist() == [3, 3]
    with pytest.raises(ValueError, match="right-hand side should have one value or 2"):
        hypotheses((np.eye(7)[:2], [1.0, 2.0, 3.0]), NAMES)


def test_a_combination_without_variance_has_no_statistic():
    test = contrast_test(np.eye(2), np.zeros(2), np.ones(2), np.diag([1.0, 0.0]), df=5)
    assert test.tvalue[0] == 1
    assert np.isnan(test.tvalue[1])


def test_f_and_chi_square_agree_in_the_limit():
    R, q, estimate, cov = np.eye(2), np.zeros(2), np.array([1.0, -2.0]), np.array([[1.0, 0.3], [0.3, 2.0]])
    chi = wald_test(R, q, estimate, cov, df=1e9)
    f = wald_test(R, q, estimate, cov, df=1e9, use_f=True)
    assert chi.statistic == pytest.approx(estimate @ np.linalg.solve(cov, estimate))
    assert f.fvalue == pytest.approx(chi.statistic / 2)
    assert f.pvalue == pytest.approx(chi.pvalue, rel=1e-6)
    with pytest.raises(AttributeError, match="chi-square"):
        _ = chi.fvalue


def test_a_parameter_without_standard_error_cannot_be_tested():
    with pytest.raises(ValueError, match="without a standard error"):
        wald_test(np.eye(1), np.zeros(1), np.ones(1), np.full((1, 1), np.nan), df=5)
