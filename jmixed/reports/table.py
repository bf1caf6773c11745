"""Fits side by side, as a journal prints them: text, Markdown, HTML, LaTeX and Word from the same cells."""

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.inference import tails
from jmixed.reports import diagnostics, further
from jmixed.reports.components import all_components
from jmixed.reports.fitted import Fitted
from jmixed.reports.printed import beside, fixed, latex, wrapped
from jmixed.reports.residuals import named_correlations, named_deviations
from jmixed.reports.sentences import probability
from jmixed.reports.tests import DDF, Ddf, tests_of_coefficients, usual_ddf
from jmixed.reports.tidy import RATIOS, exponentials, ratios_of
from jmixed.runtime.arguments import checked

Style = Literal["se", "ci", "p"]
STYLES = {
    "se": "Estimates with standard errors in parentheses.",
    "ci": "Estimates with 95% intervals in brackets.",
    "p": "Estimates with standard errors in parentheses, and p-values.",
}
"""What stands in a cell, and what a reader is told."""
FIXED, RANDOM, FURTHER, FIT = "Fixed effects", "Random effects", "Further predictors", "Fit"
OF_FITS = ("ICC", "R2 marginal", "R2 conditional", "AIC", "BIC", "Log-likelihood", "Method", "Family")
"""What is said of a fit as a whole below its numbers of rows and groups."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """Results side by side; prints as text, shows as HTML in a notebook.

    Attributes
    ----------
    cells : DataFrame (rows x models)
        Text; the index has two levels, the block ("Fixed effects", "Random effects", "Fit") and the row.
    notes : tuple of str
        Sentences below the table.
    """

    cells: pd.DataFrame
    notes: tuple[str, ...]

    def _blocks(self) -> list[tuple[str, pd.DataFrame]]:
        blocks, cells = self.cells.index.get_level_values(0), self.cells.droplevel(0)
        return [(str(name), cells.loc[np.asarray(blocks == name)]) for name in dict.fromkeys(blocks)]

    def to_text(self) -> str:
        """The table as fixed-width text."""
        names = [str(name) for name in self.cells.columns]
        first = max(len(str(name)) for pair in self.cells.index for name in pair) + 2
        widths = [max(len(name), *map(len, self.cells.iloc[:, k])) for k, name in enumerate(names)]
        width = first + sum(widths) + 2 * len(widths)

        def line(label: str, cells: Sequence[str]) -> str:
            shown = [cell.rjust(size) for cell, size in zip(cells, widths, strict=True)]
            return "  ".join([label.ljust(first), *shown]).rstrip()

        lines = ["=" * width, line("", names)]
        for name, block in self._blocks():
            lines += ["-" * width, name]
            lines += [line(f"  {label}", row) for label, row in zip(block.index, block.to_numpy(), strict=True)]
        return "\n".join([*lines, "=" * width, *(wrapped(note) for note in self.notes)])

    def to_markdown(self) -> str:
        """The table in the Markdown of GitHub and pandoc."""

        def line(cells: Sequence[Any]) -> str:
            return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

        lines = [line(["", *self.cells.columns]), "|:---" + "|---:" * self.cells.shape[1] + "|"]
        for name, block in self._blocks():
            lines.append(line([f"**{name}**", *[""] * block.shape[1]]))
            lines += [line([label, *row]) for label, row in zip(block.index, block.to_numpy(), strict=True)]
        return "\n".join([*lines, "", *(f"{note}  " for note in self.notes)])

    def to_html(self) -> str:
        """The table as an HTML fragment; every cell is escaped."""
        right, width = 'style="text-align:right; padding:0 0.6em; white-space:nowrap"', self.cells.shape[1] + 1
        head = "".join(f"<th {right}>{html.escape(str(name))}</th>" for name in self.cells.columns)
        rows = [f"<tr><th></th>{head}</tr>"]
        for name, block in self._blocks():
            left = 'style="text-align:left; border-top:1px solid"'
            rows.append(f'<tr><th colspan="{width}" {left}>{html.escape(name)}</th></tr>')
            for label, row in zip(block.index, block.to_numpy(), strict=True):
                cells = "".join(f"<td {right}>{html.escape(cell)}</td>" for cell in row)
                rows.append(f'<tr><td style="text-align:left">{html.escape(str(label))}</td>{cells}</tr>')
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<table style="border-collapse:collapse; border-bottom:1px solid">\n{chr(10).join(rows)}\n</table>{notes}'
        )

    def to_latex(self) -> str:
        """The table as a ``tabular`` with the rules of the package booktabs."""
        columns = self.cells.shape[1]
        lines = [rf"\begin{{tabular}}{{l{'r' * columns}}}", r"\toprule"]
        lines.append(" & ".join(["", *(latex(name) for name in self.cells.columns)]) + r" \\")
        for name, block in self._blocks():
            lines += [r"\midrule", rf"\multicolumn{{{columns + 1}}}{{l}}{{\textit{{{latex(name)}}}}} \\"]
            for label, row in zip(block.index, block.to_numpy(), strict=True):
                lines.append(" & ".join([rf"\quad {latex(label)}", *map(latex, row)]) + r" \\")
        notes = [rf"\multicolumn{{{columns + 1}}}{{l}}{{\footnotesize {latex(note)}}} \\" for note in self.notes]
        return "\n".join([*lines, r"\bottomrule", *notes, r"\end{tabular}"])

    def to_docx(self, path: Any) -> None:
        """Write the table into a new Word document, with python-docx: ``pip install 'jmixed[docx]'``.

        Raises `ModuleNotFoundError` without it.

        Parameters
        ----------
        path : path, or binary file
        """
        try:
            import docx
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Word documents need python-docx, an extra: pip install 'jmixed[docx]'"
            ) from error
        document = docx.Document()
        blocks = self._blocks()
        grid = document.add_table(rows=1 + sum(len(block) + 1 for _, block in blocks), cols=1 + self.cells.shape[1])
        _write_row(grid, 0, ["", *map(str, self.cells.columns)], bold=True)
        _rule(grid, 0, "top")
        place = 1
        for name, block in blocks:
            _write_row(grid, place, [name, *[""] * block.shape[1]], bold=True)
            _rule(grid, place, "top")
            for label, row in zip(block.index, block.to_numpy(), strict=True):
                place += 1
                _write_row(grid, place, [str(label), *row])
            place += 1
        _rule(grid, place - 1, "bottom")
        for note in self.notes:
            document.add_paragraph(note)
        document.save(path)

    def __str__(self) -> str:
        return self.to_text()

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return self.to_html()


def _write_row(grid: Any, place: int, cells: Sequence[str], bold: bool = False) -> None:
    """One row of a table of Word, numbers to the right."""
    for k, text in enumerate(cells):
        paragraph = grid.rows[place].cells[k].paragraphs[0]
        paragraph.alignment = 2 if k else 0
        paragraph.add_run(text).bold = bold


def _rule(grid: Any, place: int, side: str) -> None:
    """A line above or below a row of a table of Word."""
    from docx.oxml import parse_xml
    from docx.oxml.ns import nsdecls

    for cell in grid.rows[place].cells:
        line = f'<w:tcBorders {nsdecls("w")}><w:{side} w:val="single" w:sz="6" w:color="000000"/></w:tcBorders>'
        cell._tc.get_or_add_tcPr().append(parse_xml(line))


@checked
def table(
    results: Any,
    names: Sequence[str] | None = None,
    style: Style = "se",
    ddf: Ddf | None = None,
    labels: Mapping[str, str] | None = None,
    exponentiate: bool = False,
) -> Table:
    """Put results side by side, as a journal prints them.

    Fixed effects, standard deviations and correlations of the random effects, numbers of observations and of groups by
    factor, intraclass correlation and R2, criteria.

    Parameters
    ----------
    results : list of results, or one
        Of `mixedlm` and `mixedglm`, in one table if need be.
    names
        What stands above the columns; by default (1), (2), ...
    style
        "se": estimates with standard errors. "ci": with 95% intervals. "p": with standard errors and p-values.
    ddf
        Of intervals and p-values of linear models, as in `test`; by default Satterthwaite's where there is one, as in
        `report` and `tidy`. sjPlot's ``tab_model`` has by default nearly those of "residual" (it takes the variance
        parameters off too), statsmodels those of "none".
    labels
        Names of coefficients to print in place of the model's.
    exponentiate
        Of responses with a family, coefficients as ratios of odds, means or hazards, with their limits; the standard
        error is the coefficient's times the ratio.

    Raises
    ------
    DataError
        For names of another number, and for what is no result.
    ModelError
        For another style, and for degrees of freedom that a fit does not have.

    Examples
    --------
    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> fits = [jm.mixedlm(f"Reaction ~ Days + {bars}", sleep).fit() for bars in ("(1 | Subject)", "(Days | Subject)")]
    >>> jm.table(fits, ["intercepts", "slopes"]).cells.loc["Fixed effects"].values.tolist()
    [['251.405 (9.747)', '251.405 (6.825)'], ['10.467 (0.804)', '10.467 (1.546)']]
    """
    results = [results] if isinstance(getattr(results, "fitted", None), Fitted) else results
    fits = [getattr(result, "fitted", None) for result in results]
    for position, fitted in enumerate(fits):
        if not isinstance(fitted, Fitted):
            kind = type(results[position]).__name__
            raise DataError(f"table: number {position} of the results is of type {kind}; give what model.fit() returns")
    if not fits:
        raise DataError("table: there are no results to put side by side; give a list of them")
    if style not in STYLES:
        raise ModelError(f"table: style={style!r}; use one of {', '.join(map(repr, STYLES))}")
    headings = [f"({k + 1})" for k in range(len(fits))] if names is None else [str(name) for name in names]
    if len(headings) != len(fits):
        raise DataError(f"table: {len(headings)} names for {len(fits)} results; give one for each")
    every = [fitted for fitted in fits if fitted is not None]
    ratios = [ratios_of(fitted) if exponentiate else None for fitted in every]
    if exponentiate and not any(ratios):
        raise ModelError(f"table: exponentiate=True, and no result has one of the links {', '.join(RATIOS)}")
    pairs = zip(every, ratios, strict=True)
    # Where neither intervals nor p-values are printed, degrees of freedom are not computed.
    kinds = [usual_ddf(fitted, "none" if style == "se" and ddf is None else ddf) for fitted in every]
    kinds = [kind if fitted.family is None else "none" for kind, fitted in zip(kinds, every, strict=True)]
    columns = [
        _column(fitted, style, kind, labels or {}, ratio is not None)
        for (fitted, ratio), kind in zip(pairs, kinds, strict=True)
    ]
    order = [FIXED, RANDOM, FURTHER, FIT]
    rows = list(dict.fromkeys(key for column in columns for key in column))
    if len({fitted.spec.endog_name for fitted in every}) == 1:
        rows.remove((FIT, "Response"))
    # Of several models the standard deviation of the residuals, and correlations, stay below all others, and what is
    # said of fits as a whole in its order, whichever of them lacks some.
    last = ["Correlation", "SD residual"]
    rows.sort(
        key=lambda key: (
            order.index(key[0]),
            *(key[0] == RANDOM and key[1].startswith(word) for word in last),
            OF_FITS.index(key[1]) if key[0] == FIT and key[1] in OF_FITS else -1,
        )
    )
    cells = [[column.get(key, "") for column in columns] for key in rows]
    frame = pd.DataFrame(cells, pd.MultiIndex.from_tuples(rows, names=["", ""]), headings, dtype=object)
    told = [
        f"{name}: coefficients are ratios of {ratio}." for name, ratio in zip(headings, ratios, strict=True) if ratio
    ]
    return Table(frame, (*_notes(every, headings, style, kinds), *told))


def _column(
    fitted: Fitted, style: str, ddf: str, labels: Mapping[str, str], ratios: bool
) -> dict[tuple[str, str], str]:
    """The cells of one result, coefficients of the response as they are or as ratios."""
    errors, df = tests_of_coefficients(fitted, ddf)
    df = np.full(len(errors), np.inf) if df is None else df
    cell = _cell(style)
    out = {}
    for name, row in zip(fitted.names.fixed, zip(fitted.fit.beta, errors, df, strict=True), strict=True):
        out[FIXED, labels.get(name, name)] = cell(*row, ratios)
    # Standard deviations, then correlations, whichever term they are of.
    for part in sorted(all_components(fitted.spec, fitted.fit), key=lambda part: part.second is not None):
        kind = "SD" if part.second is None else "Correlation"
        inside = part.first if part.second is None else f"{part.first}, {part.second}"
        if part.first is None:
            for place, deviation in named_deviations(fitted.spec, fitted.fit).items():
                out[RANDOM, f"SD residual ({place})" if place else "SD residual"] = fixed(deviation, 3)
            continue
        out[RANDOM, f"{kind} {inside} ({part.group})"] = fixed(part.sdcor, 3) if np.isfinite(part.sdcor) else ""
    for name, value in named_correlations(fitted.spec, fitted.fit).items():
        out[RANDOM, f"Correlation residuals {name}"] = fixed(value, 3)
    if fitted.spec.residual is not None and fitted.spec.residual.text:
        out[RANDOM, "Residuals"] = fitted.spec.residual.text
    if fitted.family is not None:
        for heading, names, estimates, deviations in further.headed(fitted):
            for name, value, error in zip(names, estimates, deviations, strict=True):
                out[FURTHER, f"{heading}: {name}"] = cell(value, error, np.inf, False)
    return out | _of_fit(fitted)


def _of_fit(fitted: Fitted) -> dict[tuple[str, str], str]:
    """What is said of a fit as a whole."""
    facts = {"Response": fitted.spec.endog_name, "N": f"{fitted.nobs:,}"}
    facts |= {f"N {name}": f"{size.count:,}" for name, size in fitted.sizes.items()}
    if fitted.has_data and fitted.spec.represents is None:
        explained = diagnostics.r2(fitted)
        # Without random effects there is nothing that they share or explain.
        if fitted.spec.terms:
            facts["ICC"] = fixed(diagnostics.icc(fitted).adjusted, 3)
        facts["R2 marginal"] = fixed(explained.marginal, 3)
        if fitted.spec.terms:
            facts["R2 conditional"] = fixed(explained.conditional, 3)
    facts |= {"AIC": fixed(fitted.aic, 1), "BIC": fixed(fitted.bic, 1), "Log-likelihood": fixed(fitted.llf, 2)}
    facts["Method"] = fitted.method if fitted.family is None else f"ML, {fitted.approximation}"
    if fitted.family is not None:
        facts["Family"] = f"{fitted.family.name} ({fitted.family.link})"
    return {(FIT, name): text for name, text in facts.items()}


def _cell(style: str) -> Callable[[float, float, float, bool], str]:
    """How an estimate is written, from it, its standard error and the degrees of freedom, as it is or as a ratio."""

    def cell(estimate: float, error: float, df: float, as_ratio: bool) -> str:
        width = error * float(exponentials(estimate)) if as_ratio else error

        def shown(value: float) -> str:
            return beside(float(exponentials(value)) if as_ratio else value, width)

        value = shown(estimate)
        if not error > 0:
            return value
        if style == "ci":
            half = error * float(tails.t_reach(0.025, np.array(df)))
            return f"{value} [{shown(estimate - half)}, {shown(estimate + half)}]"
        text = f"{value} ({beside(width, width)})"
        if style == "p":
            p = float(tails.p_of_t(np.array([estimate / error]), np.array([df]))[0])
            text += f", {probability(p)}"
        return text

    return cell


def _notes(fits: Sequence[Fitted], headings: Sequence[str], style: str, kinds: Sequence[str]) -> tuple[str, ...]:
    """What a reader must know; `kinds` of degrees of freedom, one for each fit."""
    notes = [STYLES[style], *_of_tests(fits, headings, style, kinds)]
    if len({fitted.method for fitted in fits}) > 1 or any(fitted.reml for fitted in fits):
        other = len({fitted.names.fixed for fitted in fits}) > 1
        beyond = ", and not comparable between other fixed effects: fit(reml=False)" if other else ""
        notes.append(f"AIC, BIC and log-likelihood after REML are those of the restricted likelihood{beyond}.")
    if len({fitted.spec.endog_name for fitted in fits}) > 1:
        notes.append("AIC, BIC and log-likelihood of different responses are not comparable.")
    for fitted, name in zip(fits, headings, strict=True):
        if any(fitted.fit.singular):
            notes.append(f"{name}: singular fit, a variance of zero or a correlation of one.")
        if not fitted.fit.converged:
            notes.append(f"{name}: not converged ({fitted.fit.outcome.name}).")
    return tuple(notes)


def _of_tests(fits: Sequence[Fitted], headings: Sequence[str], style: str, kinds: Sequence[str]) -> Iterator[str]:
    """By what p-values and intervals were computed; of standard errors alone, if they are adjusted."""
    if all(fitted.family is not None for fitted in fits):
        return
    told = {kind: text if style == "p" else text.replace("t tests", "Intervals") for kind, text in DDF.items()}
    if style == "se":
        told = {"kenward-roger": "Standard errors adjusted by Kenward and Roger's method."}
    for kind in dict.fromkeys(kind for kind in kinds if kind in told):
        names = [name for name, used in zip(headings, kinds, strict=True) if used == kind]
        about = f"{', '.join(names)}: " if len(names) < len(kinds) else ""
        yield about + told[kind]
