"""Linear hypotheses in words: names with brackets and commas, chains, and everything that is not linear."""

import copy

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

import jmixed as jm
from jmixed.compat.contrasts import contrast_test, wald_test
from jmixed.reports.hypotheses import hypotheses, require_consistent

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
        ("x1 = 1 = 2", "holds no coefficient"),
        ("x1 = 0, 1 = 1", "holds no coefficient"),
        ("x1 - x1 = 0", "holds no coefficient"),
        ("x1 = x1", "holds no coefficient"),
        ("x1 == 0", "which has one ="),
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


@pytest.mark.parametrize("spec", [np.zeros(7), np.eye(7) * [1, 1, 0, 1, 1, 1, 1], (np.zeros((1, 7)), [1.0])])
def test_rows_of_zeros_say_nothing(spec):
    with pytest.raises(jm.DataError, match=r"says nothing in row [02]"):
        hypotheses(spec, NAMES)


def test_weights_with_names_go_by_name():
    shuffled = [NAMES[k] for k in (3, 0, 6, 5, 1, 2, 4)]
    weights = pd.Series(np.arange(1.0, 8.0), NAMES)
    np.testing.assert_array_equal(hypotheses(weights[shuffled], NAMES)[0], [np.arange(1.0, 8.0)])
    several = pd.DataFrame([weights, 2 * weights])[shuffled]
    for spec in (several, (several, 0.0)):
        np.testing.assert_array_equal(hypotheses(spec, NAMES)[0], [np.arange(1.0, 8.0), 2 * np.arange(1.0, 8.0)])


def test_hypotheses_that_contradict_each_other():
    for text in ("x1 = 1, x1 = 2", "x1 = 0, x2 = 0, 3*x1 - x2 = 1e-6"):
        with pytest.raises(jm.DataError, match="contradict each other"):
            require_consistent(*hypotheses(text, NAMES))
    for text in (
        "x1 = 1, 2*x1 = 2",
        "x1 = x2, x2 = x11, x1 = x11",
        "x1 = 1e9, x2 = 1e-9, x1 + x2 = 1000000000.000000001",
    ):
        require_consistent(*hypotheses(text, NAMES))


@pytest.fixture(scope="module")
def unlike_patsy():
    rng = np.random.default_rng(0)
    data = pd.DataFrame({"g": np.repeat(np.arange(12), 6), "x": rng.normal(size=72), "h": rng.choice(list("abc"), 72)})
    data["y"] = data["x"] + rng.normal(size=12)[data["g"]] + rng.normal(size=72)
    return jm.mixedlm("y ~ x + h", data, groups="g").fit(), smf.mixedlm("y ~ x + h", data, groups="g")


class TestPositions:
    """statsmodels puts the coefficients of categories first: a position is another coefficient there."""

    POSITIONS = (
        lambda r: r.t_test([0, 0, 0, 1]),
        lambda r: r.t_test((np.eye(4)[1:], 0.0)),
        lambda r: r.wald_test(np.eye(4)[1:]),
        lambda r: r.wald_test(np.eye(5)[1:]),
        lambda r: r.f_test(np.eye(4)[[1]]),
        lambda r: r.test(np.eye(4)[1]),
        lambda r: r.conf_int(cols=[1]),
        lambda r: r.cov_params(column=1),
    )

    @pytest.mark.parametrize("call", POSITIONS)
    def test_a_warning_names_the_orders(self, unlike_patsy, call):
        result, theirs = unlike_patsy
        fresh = jm.MixedLMResults(result.model, result.fitted.fit, result.reml)
        with pytest.warns(UserWarning, match="coefficients by position") as said:
            call(fresh)
        (message,) = {str(one.message) for one in said}
        assert str(theirs.exog_names) in message
        assert str(result.model.exog_names) in message
        call(fresh)

    def test_names_are_the_way(self, unlike_patsy):
        result, theirs = unlike_patsy
        other = theirs.fit()
        fresh = copy.copy(result)
        weights = pd.DataFrame(np.eye(4)[1:], columns=theirs.exog_names)
        found = [fresh.t_test(weights), fresh.t_test(["h[T.b]", "h[T.c]", "x"])]
        for one in found:
            np.testing.assert_allclose(one.effect, other.t_test(np.eye(4)[1:]).effect, atol=1e-4)
        fresh.wald_test("x = 0"), fresh.test(), fresh.wald_test_terms(), fresh.conf_int(), fresh.summary()

    def test_without_a_difference_nothing_is_said(self, unlike_patsy):
        data = unlike_patsy[0].model.data.frame
        jm.mixedlm("y ~ h + x", data, groups="g").fit().t_test(np.eye(4)[1])
        jm.mixedlm("y ~ x + h + (1 | g)", data).fit().t_test(np.eye(4)[1])


@pytest.mark.parametrize("alpha", [95, 0, 1, -0.05, True, "5%", None, np.nan])
def test_alpha_lies_between_zero_and_one(unlike_patsy, alpha):
    result = unlike_patsy[0]
    test = result.t_test("x = 0")
    for call in (result.conf_int, result.summary, test.conf_int, test.summary_frame, test.summary):
        with pytest.raises(jm.ModelError, match=r"alpha is .*between 0 and 1.*alpha=0.05"):
            call(alpha=alpha)


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
