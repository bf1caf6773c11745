"""What is printed: digits that mean something, eighty columns, and nothing that prints as a tuple of its fields."""

import functools
import html.parser

import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.reports import printed

LONG = "np.where(group_of_the_person == 'a long name of a level', 1.0, 0.0)"


@functools.cache
def sleep(formula="Reaction ~ Days + (Days | Subject)"):
    return jm.mixedlm(formula, jm.datasets.load("sleepstudy")).fit()


@functools.cache
def small():
    return sleep("Reaction ~ Days + (1 | Subject)")


SHOWN = {
    "test": lambda: sleep().test(),
    "joint test": lambda: sleep().test("Days = 0, Intercept = 0"),
    "anova": lambda: sleep().anova(),
    "compare": lambda: jm.compare(small(), sleep()),
    "drop1": lambda: sleep().drop1(),
    "confint": lambda: sleep().confint(),
    "var_corr": lambda: sleep().var_corr(),
    "glance": lambda: sleep().glance(),
    "tidy": lambda: sleep().tidy(["fixed", "ran_pars", "ran_vals"], conf_int=True),
    "t_test": lambda: sleep().t_test(np.eye(2)),
    "wald_test": lambda: sleep().wald_test("Days = 0"),
    "f_test": lambda: sleep().f_test("Days = 0"),
    "wald_test_terms": lambda: sleep().wald_test_terms(),
    "r2": lambda: sleep().r2(),
    "icc": lambda: sleep().icc(),
    "influence": lambda: sleep().influence(),
    "optimizer": lambda: sleep().optimizer,
    "test_variance": lambda: jm.test_variance(sleep(), small()),
    "bootstrap": lambda: sleep().bootstrap(20),
    "profile": lambda: sleep().profile("sigma"),
    "fit_many": lambda: sleep().model.fit_many(sleep().simulate(3)),
}


@pytest.mark.parametrize("name", SHOWN)
def test_results_print_within_eighty_columns_and_as_html(name):
    shown = SHOWN[name]()
    text = repr(shown)
    assert max(map(len, text.splitlines())) <= 80
    assert len(text.splitlines()) > 1
    assert f"{type(shown).__name__}(" not in text
    reader = html.parser.HTMLParser()
    cells = []
    reader.handle_data = cells.append
    reader.feed(shown._repr_html_())
    assert "<table" in shown._repr_html_()
    assert sum(bool(cell.strip()) for cell in cells) > 3


def test_long_labels_become_numbers_with_a_legend():
    table = jm.compare(small(), sleep())
    lines = repr(table).splitlines()
    assert "1: Reaction ~ Days + (1 | Subject)" in lines
    assert lines[2].split()[0] == "2"
    # The table itself keeps its labels, and all digits.
    assert table.index[1] == "Reaction ~ Days + (Days | Subject)"
    assert table["p"].iloc[1] == pytest.approx(7.072e-10, rel=1e-3)
    names = [LONG, LONG.replace("a long", "another")]
    tests = printed.noted(pd.DataFrame({"estimate": [1.0, 2.0], "se": 0.5, "df": 3.0, "t": 2.0, "p": 0.1}, index=names))
    assert max(map(len, repr(tests).splitlines())) <= 80
    assert f"1: {LONG}" in " ".join(repr(tests).split())


def test_digits_are_those_that_an_error_leaves():
    table = pd.DataFrame(
        {"estimate": [0.954, 251.4051, 1e-9], "se": [0.008267, 6.82, 0.5], "p": [0.954, 0.008265, 4.386598e-120]}
    )
    cells = printed.texts(table)
    assert cells["estimate"].tolist() == ["0.95400", "251.405", "0.000"]
    assert cells["se"].tolist() == ["0.00827", "6.820", "0.500"]
    assert cells["p"].tolist() == ["0.9540", "0.0083", "4.4e-120"]


def test_a_coefficient_and_its_error_have_the_same_decimals_in_a_summary():
    data = jm.datasets.load("sleepstudy").assign(Metres=lambda d: 500 * d["Days"])
    row = jm.mixedlm("Reaction ~ Metres + (1 | Subject)", data).fit().summary().tables[1].loc["Metres"]
    places = {len(row[name].split(".")[1]) for name in ("Coef.", "Std.Err.", "[0.025", "0.975]")}
    # 0.0209 with an error of 0.00161.
    assert places == {5}


def test_many_rows_are_cut():
    table = printed.noted(pd.DataFrame({"estimate": np.arange(1000.0)}), "a note")
    assert len(repr(table).splitlines()) < 30
    assert repr(table).endswith("a note")
    assert "<p>a note</p>" in table._repr_html_()


def test_notes_and_labels_are_escaped_in_html():
    table = printed.noted(pd.DataFrame({"x": [1.0]}, index=["<none>"]), "a < b")
    assert "<none>" not in table._repr_html_()
    assert "<p>a &lt; b</p>" in table._repr_html_()
