"""The three models that statsmodels documents for pupils in classrooms in schools, as the examples fit them."""

import runpy
from pathlib import Path

import numpy as np
import pytest

import jmixed as jm

EXAMPLES = Path(__file__).parents[1] / "examples"
MODELS = {
    "classrooms_in_schools": (
        "test_score ~ age",
        "1",
        {"classroom": "0 + C(classroom)"},
        "(1 | school) + (1 | school:classroom)",
    ),
    "separate_pretest_slopes": (
        "test_score ~ age + pretest",
        "1",
        {"classroom": "0 + C(classroom)", "pretest": "0 + pretest"},
        "(1 | school) + (1 | school:classroom) + (0 + pretest | school)",
    ),
    "correlated_pretest_slopes": (
        "test_score ~ age + pretest",
        "1 + pretest",
        {"classroom": "0 + C(classroom)"},
        "(1 + pretest | school) + (1 | school:classroom)",
    ),
}


@pytest.fixture(params=MODELS, scope="module")
def fitted(request):
    """(truth, the model in statsmodels' words, the same with bars) on the example's 200 schools."""
    example = runpy.run_path(str(EXAMPLES / f"{request.param}.py"))
    data = example["simulate"]()
    assert data.school.nunique() == 200
    fixed, re_formula, vc_formula, bars = MODELS[request.param]
    words = jm.mixedlm(fixed, data, groups="school", re_formula=re_formula, vc_formula=vc_formula).fit()
    return example["TRUTH"], words, jm.mixedlm(f"{fixed} + {bars}", data).fit()


def test_both_grammars_fit_one_model(fitted):
    _, words, bars = fitted
    assert words.converged
    assert bars.objective == pytest.approx(words.objective, abs=1e-7)
    np.testing.assert_allclose(bars.fe_params, words.fe_params, rtol=1e-8)
    np.testing.assert_allclose(bars.bse_fe, words.bse_fe, rtol=1e-7)
    got, expected = (np.sort(result.var_corr().sdcor.to_numpy(float)) for result in (bars, words))
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_truth_lies_within_four_standard_errors(fitted):
    truth, words, _ = fitted
    for name, estimate in words.fe_params.items():
        assert abs(estimate - truth[name]) < 4 * words.bse_fe[name]
    variances = dict(
        zip(["school Var", "classroom Var", "pretest Var"], ("schools", "classrooms", "pretest slopes"), strict=True)
    )
    user_scale = words.params * words.scale
    for label, of in variances.items():
        if label in words.bse_re.index:
            assert abs(user_scale[label] - truth[f"sd of {of}"] ** 2) < 4 * words.bse_re[label]


@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_examples_are_short(name):
    assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 80
