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


@pytest.fixture(scope="module")
def herd():
    """(the example of an animal model, its pedigree, records and true breeding values, the fit)."""
    example = runpy.run_path(str(EXAMPLES / "animal_model.py"))
    family, milk, values = example["simulate"]()
    return example, family, milk, values, example["fit"](family, milk)


def test_breeding_values_solve_hendersons_equations(herd):
    """The mixed model equations at the estimated variances, of all animals with A^-1, and of cows beside them."""
    example, family, milk, _, result = herd
    pedigree = jm.pedigree(family)
    Z = (milk["animal"].to_numpy()[:, None] == pedigree.labels.to_numpy()) * 1.0
    W = (milk["cow"].to_numpy()[:, None] == np.unique(milk["cow"])) * 1.0
    X = np.column_stack([np.ones(len(milk)), milk["lactation"]])
    rows = np.hstack([X, Z, W])
    additive, environment = result.theta**2
    left = rows.T @ rows
    animals = slice(2, 2 + len(pedigree.labels))
    left[animals, animals] += pedigree.inverse.toarray() / additive
    left[animals.stop :, animals.stop :] += np.eye(W.shape[1]) / environment
    solved = np.linalg.solve(left, rows.T @ milk["milk"])
    np.testing.assert_allclose(result.fe_params, solved[:2], rtol=1e-9)
    values = example["breeding_values"](result, family)
    assert values["estimate"].is_monotonic_decreasing
    np.testing.assert_allclose(values.loc[pedigree.labels, "estimate"], solved[animals], atol=1e-8)


def test_the_animal_model_finds_what_was_simulated(herd):
    example, family, _, truth, result = herd
    names = {"animal": "additive", "cow": "environment", "Residual": "residual"}
    found = result.var_corr().set_index("group")["sdcor"]
    sampled = result.bse_re
    for group in ("animal", "cow"):
        error = sampled[f"{group} Var"]
        assert abs(found[group] ** 2 - example["TRUTH"][names[group]] ** 2) < 3 * error
    values = example["breeding_values"](result, family)
    accuracy, whole = values["accuracy"], truth[values.index]
    records = values.index.str.startswith("c") & (accuracy > 0.6)
    # What it promises it keeps: the correlation with the true values is about the mean accuracy.
    assert abs(np.corrcoef(values["estimate"][records], whole[records])[0, 1] - accuracy[records].mean()) < 0.1
    assert accuracy[~values.index.str.startswith("c")].mean() < accuracy[records].mean()


def test_what_the_animal_model_prints(herd, capsys):
    example, *_, result = herd
    example["main"]()
    printed = capsys.readouterr().out
    assert "<Pedigree: 270 animals, 30 founders" in printed
    assert f"Heritability: {result.icc().by_group['animal']:.2f}" in printed
    assert "Related levels: animal" in printed
