"""The printed summary: the numbers of the fit, in statsmodels' layout, with notes where something is unusual."""

import functools
import html.parser
import warnings

import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.reports.summary import number, short


@functools.cache
def sleep():
    return jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()


def quietly(formula, data, **arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jm.mixedlm(formula, data, **arguments).fit()


class TestNumbers:
    def test_text_is_complete(self):
        assert str(sleep().summary()) == "\n".join(
            [
                "             Mixed Linear Model Regression Results",
                "================================================================",
                "Model:               MixedLM    Dependent Variable:    Reaction",
                "No. Observations:    180        Method:                REML",
                "No. Groups:          18         Scale:                 654.9410",
                "Min. group size:     10         Log-Likelihood:        -871.8141",
                "Max. group size:     10         Converged:             Yes",
                "Mean group size:     10.0",
                "----------------------------------------------------------------",
                "                    Coef.  Std.Err.   z    P>|z|  [0.025  0.975]",
                "----------------------------------------------------------------",
                "Intercept          251.405    6.825 36.838 0.000 238.029 264.781",
                "Days                10.467    1.546  6.771 0.000   7.438  13.497",
                "Subject Var        612.090  288.783",
                "Subject x Days Cov   9.604   46.678",
                "Days Var            35.072   14.782",
                "================================================================",
                "z tests and their intervals use the normal approximation.",
            ]
        )

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (0.0, "0.000"),
            (-0.5, "-0.500"),
            (0.01, "0.010"),
            (0.0099, "0.009900"),
            (0.00123456, "0.001235"),
            (9.9999e-5, "1.000e-04"),
            (-3.21e-7, "-3.210e-07"),
            (123456789.0, "123456789.000"),
            (4.5e13, "4.500e+13"),
            (np.nan, ""),
            (np.inf, "inf"),
        ],
    )
    def test_magnitudes_are_never_hidden(self, value, text):
        assert number(value) == text

    def test_header_numbers(self):
        assert short(654.94103) == "654.9410"
        assert short(0.000123456) == "0.00012346"
        assert short(-871.81413) == "-871.8141"

    def test_small_coefficients_keep_their_digits(self):
        data = jm.datasets.load("sleepstudy")
        result = quietly("Reaction ~ Tiny + (1 | Subject)", data.assign(Tiny=1e6 * data["Days"]))
        coefficient = result.summary().tables[1].loc["Tiny", "Coef."]
        assert coefficient == "1.047e-05"

    def test_level_of_the_intervals(self):
        table = sleep().summary(alpha=0.1).tables[1]
        assert table.columns.tolist() == ["Coef.", "Std.Err.", "z", "P>|z|", "[0.05", "0.95]"]
        limits = sleep().conf_int(alpha=0.1).loc["Days"]
        assert table.loc["Days", "[0.05"] == f"{limits[0]:.3f}"
        assert table.loc["Days", "0.95]"] == f"{limits[1]:.3f}"


class TestNames:
    def test_given_names_are_printed(self):
        summary = sleep().summary("ms", ["a", "b"], ["v1", "c", "v2"], "A title")
        assert summary.title == "A title"
        assert summary.tables[1].index.tolist() == ["a", "b", "v1", "c", "v2"]
        assert summary.tables[0].iloc[0, 3] == "ms"
        assert str(summary).splitlines()[0].strip() == "A title"

    @pytest.mark.parametrize("argument", ["xname_fe", "xname_re"])
    def test_their_number_is_checked(self, argument):
        with pytest.raises(ValueError, match=f"{argument} should be a list of length"):
            sleep().summary(**{argument: ["one"]})

    def test_statsmodels_rows_and_columns(self):
        smf = pytest.importorskip("statsmodels.formula.api")
        data = jm.datasets.load("pastes")
        arguments = {"groups": "batch", "re_formula": "1", "vc_formula": {"cask": "0 + C(cask)"}}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = smf.mixedlm("strength ~ 1", data, **arguments).fit(gtol=1e-9).summary()
        ours = jm.mixedlm("strength ~ 1", data, **arguments).fit().summary()
        assert ours.tables[1].index.tolist() == theirs.tables[1].index.tolist()
        assert ours.tables[1].columns.tolist() == theirs.tables[1].columns.tolist()
        assert ours.title == theirs.title
        assert ours.tables[1]["Coef."].tolist() == theirs.tables[1]["Coef."].tolist()
        labels = {label for k in (0, 2) for label in theirs.tables[0].iloc[:, k] if label}
        assert labels == {label for k in (0, 2) for label in ours.tables[0].iloc[:, k] if label}


class TestNotes:
    def test_singular_fits_say_which_term(self):
        with pytest.warns(jm.SingularWarning):
            result = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2")).fit()
        assert "Singular fit" in str(result.summary())
        assert "'1 | Batch'" in str(result.summary())

    def test_dropped_columns_are_named(self):
        data = jm.datasets.load("sleepstudy")
        with pytest.warns(jm.RankWarning):
            result = jm.mixedlm("Reaction ~ Days + Twice + (1 | Subject)", data.assign(Twice=2 * data["Days"])).fit()
        assert "Redundant columns, dropped: Twice." in str(result.summary())
        assert "Twice" not in result.fe_params.index

    def test_fits_that_stopped_early_say_so(self):
        model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        with pytest.warns(jm.ConvergenceWarning):
            result = model.fit(maxiter=1, start_params=np.array([5.0, 3.0, 5.0]))
        text = str(result.summary())
        assert "Converged:             No" in text
        assert "Not converged (MAX_ITERATIONS)" in text
        assert "maxiter" in text

    def test_several_factors_are_counted(self):
        result = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin")).fit()
        cells = [line.split(":") for line in str(result.summary()).splitlines() if line.startswith("No.")]
        lines = {name: value.split()[0] for name, value, *_ in cells}
        assert lines == {"No. Observations": "144", "No. plate": "24", "No. sample": "6"}


class TestWordsByPosition:
    @pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual", "none"])
    def test_of_tests(self, ddf):
        """summary("kenward-roger") means the tests, not a name for the response."""
        assert str(sleep().summary(ddf)) == str(sleep().summary(ddf=ddf))
        assert "Reaction" in str(sleep().summary(ddf))

    def test_a_response_may_have_the_name(self):
        data = jm.datasets.load("sleepstudy").rename(columns={"Reaction": "residual"})
        result = quietly("residual ~ Days + (1 | Subject)", data)
        assert "P>|z|" in str(result.summary("residual"))


class TestFormats:
    def test_html_holds_every_cell_and_is_well_formed(self):
        result = sleep().summary(yname="<b>&", xname_fe=["a<b", "c"])
        text = result.as_html()
        assert result._repr_html_() == text
        assert "<b>&" not in text
        reader = Reader()
        reader.feed(text)
        assert reader.open == []
        for cell in ["<b>&", "a<b", "251.405", "P>|z|", "288.783", "Yes"]:
            assert cell in reader.cells

    def test_latex_escapes(self):
        text = sleep().summary(xname_fe=["a_b", "50%"]).as_latex()
        assert r"a\_b & 251.405" in text
        assert r"50\%" in text
        assert text.count(r"\begin") == text.count(r"\end")

    def test_wide_names_keep_the_columns_aligned(self):
        data = jm.datasets.load("sleepstudy").rename(columns={"Reaction": "a_very_long_name_of_the_response_variable"})
        text = str(quietly("a_very_long_name_of_the_response_variable ~ Days + (1 | Subject)", data).summary())
        rules = [line for line in text.splitlines() if set(line) <= {"=", "-"}]
        assert len({len(rule) for rule in rules}) == 1
        assert max(len(line) for line in text.splitlines()) == len(rules[0])

    def test_no_fixed_effects(self):
        data = jm.datasets.load("sleepstudy")
        text = str(quietly("Reaction ~ 0 + (1 | Subject)", data).summary())
        assert "Subject Var" in text

    def test_tables_are_data_frames_of_text(self):
        for table in sleep().summary().tables:
            assert isinstance(table, pd.DataFrame)
            assert all(isinstance(cell, str) for cell in table.to_numpy().ravel())


class Reader(html.parser.HTMLParser):
    """Collects the text of cells, and the tags that are still open."""

    def __init__(self):
        super().__init__()
        self.open, self.cells = [], []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.cells.append(data.strip())


def test_what_people_overlook_is_said():
    """Rows that missing values cost, and groups without an intercept of their own."""
    data = jm.datasets.load("sleepstudy")
    assert not any(
        "left out" in note for note in jm.mixedlm("Reaction ~ Days + (1 | Subject)", data).fit().summary().notes
    )
    data.loc[[3, 50, 51], "Days"] = np.nan
    result = jm.mixedlm("Reaction ~ Days + (1 | Subject)", data, missing="drop").fit()
    told = "3 rows were left out because of missing values."
    assert told in result.summary().notes
    assert told in str(result.summary(style="lme4"))
    assert told in result.report()
    one = jm.mixedlm("Reaction ~ Days + (1 | Subject)", data.iloc[:40], missing="drop").fit()
    assert "1 row was left out because of missing values." in one.summary().notes
    arrays = jm.MixedLM(data["Reaction"], data[["Days"]], data["Subject"], missing="drop").fit()
    assert told in arrays.summary().notes
    transformed = jm.mixedlm(
        "np.log(Reaction) ~ Days + (1 | Subject)", data, subset=data.index > 10, missing="drop"
    ).fit()
    assert "2 rows were left out because of missing values." in transformed.summary().notes

    pastes = jm.datasets.load("pastes")
    words = {"groups": "batch", "vc_formula": {"cask": "0 + C(cask)"}}
    missed = "No random intercept of batch: with a vc_formula there is none unless re_formula='1' asks for it."
    assert missed in jm.mixedlm("strength ~ 1", pastes, **words).fit().summary().notes
    assert missed not in jm.mixedlm("strength ~ 1", pastes, **words, re_formula="1").fit().summary().notes
    crossed = {"groups": np.ones(len(pastes)), "vc_formula": {"batch": "0 + C(batch)", "cask": "0 + C(cask)"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jm.SingularWarning)
        assert not any(
            "No random" in note for note in jm.mixedlm("strength ~ 1", pastes, **crossed).fit().summary().notes
        )
