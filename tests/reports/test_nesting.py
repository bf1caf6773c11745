"""Labels that start anew within another factor: said where the response shows it, and never of crossed designs."""

import numpy as np
import pandas as pd
import pytest
import references
import statsmodels.formula.api as smf
from statsmodels.stats.anova import anova_lm

import jmixed as jm
from jmixed.reports.nesting import two_way

pytestmark = pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
REMARK = "fitted as crossed"


def notes(formula, data, **words):
    return jm.mixedlm(formula, data, missing="drop", **words).fit().summary().notes


def schools(rng, nested):
    """Thirty schools of two to five classes of twenty: deviations of each class, or of each number of a class."""
    size = rng.integers(2, 6, 30)
    school, number = np.repeat(np.arange(30), size), np.concatenate([np.arange(k) for k in size])
    deviations = rng.normal(0, 0.8, 5 if not nested else len(school))
    of_class = deviations if nested else deviations[number]
    rows = np.repeat(np.arange(len(school)), 20)
    y = rng.normal(0, 1, 30)[school[rows]] + of_class[rows] + rng.normal(0, 2, len(rows))
    return pd.DataFrame({"school": school[rows] + 100, "cls": number[rows] + 1, "y": y})


def test_classes_that_are_numbered_within_schools():
    pupils = schools(np.random.default_rng(1), nested=True)
    (told,) = [note for note in notes("y ~ 1 + (1 | school) + (1 | cls)", pupils) if REMARK in note]
    assert told.startswith("The labels of cls repeat across school")
    assert told.endswith("If they start anew in each school, that is nesting: (1 | school/cls).")
    for formula in ("y ~ 1 + (1 | school/cls)", "y ~ 1 + (1 | school) + (1 | cls) + (1 | school:cls)"):
        assert not any(REMARK in note for note in notes(formula, pupils))
    letters, sevens = pupils["cls"].map(dict(enumerate("-abcde"))), 7 * pupils["cls"]
    for labels, said in [(letters, True), (sevens, False)]:
        told = notes("y ~ 1 + (1 | school) + (1 | cls)", pupils.assign(cls=labels))
        assert any(REMARK in note for note in told) is said


def test_numbers_that_mean_the_same_in_every_school():
    crossed = schools(np.random.default_rng(1), nested=False)
    assert not any(REMARK in note for note in notes("y ~ 1 + (1 | school) + (1 | cls)", crossed))


def test_casks_of_batches():
    pastes = jm.datasets.load("pastes")
    assert any(REMARK in note for note in notes("strength ~ 1 + (1 | batch) + (1 | cask)", pastes))
    assert not any(REMARK in note for note in notes("strength ~ 1 + (1 | batch/cask)", pastes))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("machines", "score ~ 1 + (1 | Worker) + (1 | Machine)"),
        ("penicillin", "diameter ~ 1 + (1 | plate) + (1 | sample)"),
        ("carrots", "Preference ~ sens2 + (1 | Consumer) + (1 | Product)"),
        ("cake", "angle ~ temp + (1 | recipe) + (1 | replicate)"),
        ("tvbo", "Sharpness ~ 1 + (1 | Assessor) + (1 | TVset) + (1 | Picture)"),
        ("ham", "Informed_liking ~ 1 + (1 | Consumer) + (1 | Product) + (1 | Information)"),
        ("oxboys", "height ~ 1 + (1 | Subject) + (1 | Occasion)"),
        ("arabidopsis", "ltf ~ 1 + (1 | gen) + (1 | rack)"),
        ("insteval", "y ~ service + (1 | dept) + (1 | studage) + (1 | lectage)"),
    ],
)
def test_nothing_is_said_of_crossed_designs(name, formula):
    assert not any(REMARK in note for note in notes(formula, references.data(name)))


@pytest.mark.parametrize(("items", "times"), [(60, 1), (8, 1), (8, 4)])
def test_nothing_is_said_of_subjects_and_items(items, times):
    rng = np.random.default_rng(2)
    subject, item, _ = np.indices((40, items, times)).reshape(3, -1)
    y = rng.normal(0, 1, 40)[subject] + rng.normal(0, 0.5, items)[item] + rng.normal(0, 1, len(item))
    data = pd.DataFrame({"subject": subject + 1, "item": item + 1, "y": y})
    assert not any(REMARK in note for note in notes("y ~ 1 + (1 | subject) + (1 | item)", data))


@pytest.mark.parametrize("weighted", [False, True])
def test_sums_of_squares_are_those_of_statsmodels(weighted):
    rng = np.random.default_rng(3)
    outer, inner = np.indices((10, 4)).reshape(2, -1)[:, rng.uniform(size=40) < 0.8]
    data = pd.DataFrame({"y": rng.normal(size=len(outer)), "outer": outer, "inner": inner})
    weights = rng.integers(1, 9, len(outer)).astype(float) if weighted else np.ones(len(outer))
    table = anova_lm(smf.wls("y ~ C(outer) + C(inner)", data, weights=weights).fit(), typ=2)
    found = two_way(data["y"].to_numpy(), outer, inner, weights)
    np.testing.assert_allclose(found, table.loc[["C(inner)", "Residual"], "sum_sq"], rtol=1e-10)
