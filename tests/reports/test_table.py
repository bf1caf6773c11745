"""Tables of several fits: every number from the fits themselves, in every format."""

import re
from html.parser import HTMLParser

import numpy as np
import performance
import pytest

import jmixed as jm


@pytest.fixture(scope="module")
def fits():
    sleep = jm.datasets.load("sleepstudy")
    linear = jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep).fit()
    sleep["slow"] = sleep["Reaction"] > 300
    return linear, jm.mixedglm("slow ~ Days + (1 | Subject)", sleep, family="binomial").fit()


def test_cells_are_the_numbers_of_the_fits(fits):
    linear, general = fits
    table = jm.table(fits, ["times", "slow"], style="ci")
    low, high = map(float, re.search(r"\[(.*), (.*)\]", table.cells.loc[("Fixed effects", "Days"), "times"]).groups())
    tested = linear.test().loc["Days"]
    np.testing.assert_allclose(
        [low, high], tested["estimate"] + np.array([-1, 1]) * 2.1098156 * tested["se"], atol=1e-3
    )
    random = table.cells.loc["Random effects"]
    assert list(random.index)[-1].startswith("Correlation Intercept, Days")
    assert float(random.loc["SD residual", "times"]) == pytest.approx(linear.sigma, abs=1e-3)
    assert random.loc["SD residual", "slow"] == ""
    facts = table.cells.loc["Fit"]
    assert facts.loc["N Subject"].tolist() == ["18", "18"]
    assert float(facts.loc["R2 conditional", "times"]) == pytest.approx(linear.r2().conditional, abs=1e-3)
    assert facts.loc["Family", "slow"] == "Binomial (logit)"
    assert "p < .001" in jm.table(fits, style="p").cells.iloc[0, 0]
    assert str(jm.table(linear)) == str(jm.table([linear]))
    # Standard errors are not of a kind of degrees of freedom, but for adjusted ones.
    assert len(jm.table(fits).notes) == len(jm.table(fits, ddf="residual").notes)
    assert "Standard errors adjusted by Kenward and Roger's method." in str(jm.table(linear, ddf="kenward-roger"))
    assert jm.table(fits, labels={"Days": "days awake"}).cells.loc[("Fixed effects", "days awake"), "(2)"]


def test_coefficients_as_ratios(fits):
    linear, general = fits
    tidy = general.tidy(conf_int=True, exponentiate=True).set_index("term").loc["Days"]
    cells = jm.table(fits, style="ci", exponentiate=True).cells.loc[("Fixed effects", "Days")]
    numbers = [float(text) for text in re.findall(r"[\d.]+", cells["(2)"])]
    np.testing.assert_allclose(numbers, tidy[["estimate", "conf.low", "conf.high"]].to_numpy(float), rtol=1e-3)
    assert cells["(1)"] == jm.table(linear, style="ci").cells.loc[("Fixed effects", "Days"), "(1)"]
    table = jm.table(general, style="p", exponentiate=True)
    assert f"({tidy['std.error']:.3f})" in table.cells.loc[("Fixed effects", "Days"), "(1)"]
    assert table.notes[-1] == "(1): coefficients are ratios of odds."
    assert jm.table(general, style="p").cells.loc[("Fixed effects", "Days"), "(1)"].partition(", ")[2] in str(table)
    with pytest.raises(jm.ModelError, match="no result has one of the links"):
        jm.table(linear, exponentiate=True)


def numbers(text):
    """The numbers of a cell, each with half a unit of its last digit."""
    found = re.findall(r"-?\d+\.?\d*", text)
    return [(float(one), 0.5 * 10.0 ** -len(one.partition(".")[2])) for one in found]


def agrees(mine, theirs):
    """Whether what we print are their numbers, rounded; lme4's optimum is known to a millionth."""
    pairs = [(value, half, float(other)) for (value, half), other in zip(mine, theirs, strict=True)]
    return all(abs(value - other) <= half + 1e-6 * abs(other) for value, half, other in pairs)


@pytest.mark.parametrize("name", performance.CASES)
def test_as_tab_model(name):
    """What sjPlot prints: coefficients with errors, intervals and p-values, variances, ICC, R2, numbers, criteria."""
    result = performance.fit(name)
    told = [row for row in performance.answers()[name]["table"] if len(row) > 1 and row[0] != "Predictors"]
    rows = {row[0]: row[1:] for row in told}
    linear = result.fitted.family is None
    ddf = "satterthwaite" if linear else "none"
    wide, narrow = (jm.table([result], ["it"], style, ddf).cells["it"] for style in ("ci", "p"))
    p = result.test()["p"].to_numpy() if linear else result.pvalues.to_numpy()[: result.model.k_fe]
    coefficients = [row for row in rows.values() if len(row) == 4]
    assert len(coefficients) == len(wide.loc["Fixed effects"])
    pairs = zip(coefficients, wide.loc["Fixed effects"], narrow.loc["Fixed effects"], p, strict=True)
    for (estimate, error, limits, of_row), cell, with_error, of_mine in pairs:
        assert agrees(numbers(cell), [estimate, *limits.split(" to ")])
        assert agrees(numbers(with_error)[:2], [estimate, error])
        assert of_mine < 1e-8 if "<" in of_row else of_mine == pytest.approx(float(of_row), rel=1e-5, abs=2e-8)
    random, facts = wide.loc["Random effects"], wide.loc["Fit"]
    taus = [np.sqrt(float(cells[-1])) for row, *cells in told if row.startswith("tau")]
    mine = [numbers(random[row])[0] for row in random.index if row.startswith("SD ") and row != "SD residual"]
    assert agrees(sorted(mine), sorted(taus))
    if linear:
        (sigma,) = rows["sigma2"]
        assert agrees(numbers(random["SD residual"]), [np.sqrt(float(sigma))])
    assert facts["N"].replace(",", "") == rows["Observations"][0]
    # Of a nested factor they count the levels of its parts.
    for row in facts.index:
        if row.startswith("N ") and ":" not in row:
            assert [facts[row].replace(",", "")] == rows[row]
    if name not in performance.COUNTS:
        r2 = rows["Marginal R2 / Conditional R2"][0].split(" / ")
        assert agrees([numbers(facts[row])[0] for row in ("ICC", "R2 marginal", "R2 conditional")], [*rows["ICC"], *r2])
    assert agrees(numbers(facts["Log-likelihood"]), rows["log-Likelihood"])
    if not linear or result.fitted.reml:
        # After ML theirs is of the restricted likelihood.
        assert agrees(numbers(facts["AIC"]), rows["AIC"])


class Cells(HTMLParser):
    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        self.inside = tag in ("td", "th")
        if self.inside:
            self.rows[-1].append("")

    def handle_data(self, data):
        if self.inside:
            self.rows[-1][-1] += data

    def handle_endtag(self, tag):
        self.inside = False


def test_every_format_holds_every_cell(fits, tmp_path):
    docx = pytest.importorskip("docx", reason="an extra")
    table = jm.table(fits, ["a & b", "<c>_d|"])
    wanted = [[label, *row] for (_, label), row in zip(table.cells.index, table.cells.to_numpy(), strict=True)]
    reader = Cells()
    reader.feed(table.to_html())
    assert all(row in reader.rows for row in wanted)
    assert ["", "a & b", "<c>_d|"] in reader.rows
    marked = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.to_markdown().splitlines() if line.startswith("|")]
    assert all(row in [[cell.strip() for cell in line] for line in marked] for row in wanted)
    assert len({len(line) for line in marked}) == 1
    latex = table.to_latex()
    assert r"a \& b & \textless{}c\textgreater{}\_d\textbar{} \\" in latex
    assert latex.count(r"\\") == len(wanted) + 1 + 3 + len(table.notes)
    table.to_docx(tmp_path / "table.docx")
    document = docx.Document(str(tmp_path / "table.docx"))
    cells = [[cell.text for cell in row.cells] for row in document.tables[0].rows]
    assert all(row in cells for row in wanted)
    assert [paragraph.text for paragraph in document.paragraphs][-len(table.notes) :] == list(table.notes)
    assert str(table).splitlines()[1].split() == ["a", "&", "b", "<c>_d|"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"names": ["a"]}, jm.DataError, "1 names for 2 results"),
        ({"style": "stars"}, jm.ModelError, "style='stars'; use one of 'se', 'ci', 'p'"),
        ({"results": []}, jm.DataError, "no results"),
        ({"results": [3]}, jm.DataError, "number 0 of the results is of type int"),
    ],
)
def test_bad_input_is_refused(fits, arguments, error, message):
    with pytest.raises(error, match=message):
        jm.table(**({"results": fits} | arguments))
