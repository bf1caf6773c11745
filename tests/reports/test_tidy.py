"""Estimates as rows: their tests are those of the other tables."""

import numpy as np
import pytest

import jmixed as jm
from jmixed.reports.tidy import exponentials


@pytest.fixture(scope="module")
def machines():
    return jm.mixedlm("score ~ Machine + (Machine | Worker)", jm.datasets.load("machines")).fit()


@pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual", "none"])
def test_coefficients_have_the_tests_of_test(machines, ddf):
    tidy, tested = machines.tidy(ddf=ddf), machines.test(ddf=ddf)
    columns = {"estimate": "estimate", "std.error": "se", "statistic": "t", "df": "df", "p.value": "p"}
    for name, other in columns.items():
        np.testing.assert_array_equal(tidy[name], tested[other])


def test_as_broom_mixed():
    """``tidy(m, "fixed", conf.int = TRUE)`` of lmerTest's fit at tight tolerance, in R (broom.mixed 0.2.9.4)."""
    growth = jm.mixedlm("distance ~ age * Sex + (age | Subject)", jm.datasets.load("orthodont")).fit()
    theirs = [
        [17.372727273, 1.228395632, 14.142615640, 25, 1.96722003e-13, 14.8427991371, 19.902655408],
        [0.479545455, 0.103719311, 4.623492487, 25, 9.88764069e-05, 0.2659315376, 0.693159371],
        [-1.032102273, 1.595732734, -0.646788933, 25, 5.23663030e-01, -4.3185753286, 2.254370783],
        [0.304829545, 0.134735337, 2.262432054, 25, 3.26138483e-02, 0.0273369272, 0.582322164],
    ]
    table = growth.tidy(conf_int=True)
    columns = ["estimate", "std.error", "statistic", "df", "p.value", "conf.low", "conf.high"]
    mine, theirs = table[columns].to_numpy(float), np.array(theirs)
    # Their degrees of freedom come from differences, 25.000005; far in the tails p-values are known as logarithms.
    mine[:, 4], theirs[:, 4] = np.log(mine[:, 4]), np.log(theirs[:, 4])
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_what_the_paper_has_agrees(machines):
    """The report, the table, lme4's summary and statsmodels' names say one p-value and one interval."""
    row = machines.tidy(conf_int=True).set_index("term").loc["Machine[T.B]"]
    p, low, high = row["p.value"], row["conf.low"], row["conf.high"]
    assert f"p = {p:.3f}, 95% CI [{low:.3f}, {high:.3f}]".replace("0.", ".", 1) in machines.report()
    cells = [
        jm.table(machines, style=style).cells.loc[("Fixed effects", "Machine[T.B]"), "(1)"] for style in ("ci", "p")
    ]
    assert cells[0].endswith(f"[{low:.3f}, {high:.3f}]")
    assert cells[1].endswith(f"p = {p:.3f}".replace("0.", ".", 1))
    assert f"{p:.4f}" in str(machines.summary(style="lme4"))
    assert machines.to_statsmodels().pvalues["Machine[T.B]"] == p
    assert machines.pvalues["Machine[T.B]"] < p / 10, "statsmodels' names have z tests"


def test_without_a_certified_optimum_tests_are_z_tests():
    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    with pytest.warns(jm.ConvergenceWarning):
        early = model.fit(maxiter=1)
    assert np.isinf(early.tidy()["df"]).all()
    assert "z = " in early.report()
    notes = jm.table([model.fit(), early], style="ci").notes
    assert "(1): Intervals with Satterthwaite's degrees of freedom." in notes
    assert "(2): z tests and their intervals use the normal approximation." in notes
    with pytest.raises(jm.ModelError, match="no certified optimum"):
        early.tidy(ddf="satterthwaite")


def test_of_other_responses_tests_are_z_tests():
    sleep = jm.datasets.load("sleepstudy")
    slow = jm.mixedglm("slow ~ Days + (1 | Subject)", sleep.assign(slow=sleep["Reaction"] > 300), "binomial").fit()
    table = slow.tidy()
    assert "df" not in table
    np.testing.assert_allclose(table["p.value"].astype(float), slow.test()["p"], rtol=1e-12)


def test_ratios_beyond_all_numbers_are_infinite():
    np.testing.assert_array_equal(exponentials([0.0, 1.0, 1000.0, -1000.0]), [1.0, np.e, np.inf, 0.0])
