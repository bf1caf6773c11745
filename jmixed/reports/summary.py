"""The printed summary of a fit: plain text, HTML and LaTeX from the same two tables."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jmixed.errors import DataError, Outcome
from jmixed.inference import tails
from jmixed.reports import further, residuals
from jmixed.reports.fitted import Fitted
from jmixed.reports.nesting import seemingly_nested
from jmixed.reports.printed import beside, latex
from jmixed.reports.sentences import left_out, success
from jmixed.reports.tests import DDF, tests_of_coefficients
from jmixed.runtime.arguments import checked

TITLE = "Mixed Linear Model Regression Results"
GENERALIZED = "Generalized Linear Mixed Model Regression Results"


@checked
@dataclass(frozen=True, eq=False)
class Summary:
    """Tables and notes about a fit; prints as text, shows as HTML in a notebook.

    Attributes
    ----------
    tables : list of DataFrame
        The header (label, value, label, value), the parameters, and what else there is, with the same columns and a
        heading that is the name of the index; all cells are text.
    title : str
    notes : list of str
        Sentences below the tables.
    """

    tables: list[pd.DataFrame]
    title: str
    notes: list[str] = field(default_factory=list)

    def as_text(self) -> str:
        """The summary as fixed-width text."""
        body, *more = _text_parameters(self.tables[1:])
        header = _text_header(self.tables[0], len(body[0]))
        width = max(len(line) for line in header + body + [line for lines in more for line in lines])
        thick, thin = "=" * width, "-" * width
        lines = [self.title.center(width).rstrip(), thick, *header, thin, body[0], thin, *body[1:]]
        for table in more:
            lines += [thin, *table]
        lines.append(thick)
        for note in self.notes:
            lines += textwrap.wrap(note, max(width, 60), subsequent_indent="  ", break_on_hyphens=False)
        return "\n".join(lines)

    def as_html(self) -> str:
        """The summary as an HTML fragment; every cell is escaped."""
        header = "\n".join(_html_row(row) for row in self.tables[0].itertuples(index=False))
        table = self.tables[1]
        top = "".join(f'<th style="text-align:right">{html.escape(name)}</th>' for name in table.columns)
        body = "\n".join(row for table in self.tables[1:] for row in _html_parameters(table))
        notes = "\n".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f'<table class="simpletable">\n<caption>{html.escape(self.title)}</caption>\n{header}\n</table>\n'
            f'<table class="simpletable">\n<tr><td></td>{top}</tr>\n{body}\n</table>\n{notes}'
        )

    def as_latex(self) -> str:
        """The summary as a LaTeX table."""
        header, table = self.tables[:2]
        rows = [" & ".join(latex(cell) for cell in row) + r" \\" for row in header.to_numpy()]
        top = " & ".join(["", *(latex(name) for name in table.columns)]) + r" \\"
        body = [row for part in self.tables[1:] for row in _latex_parameters(part)]
        notes = [latex(note) + r"\\" for note in self.notes]
        return "\n".join(
            [r"\begin{table}", rf"\caption{{{latex(self.title)}}}", r"\begin{center}"]
            + [r"\begin{tabular}{llll}", r"\hline", *rows, r"\hline", r"\end{tabular}", ""]
            + [rf"\begin{{tabular}}{{l{'r' * table.shape[1]}}}", r"\hline", top, r"\hline", *body]
            + [r"\hline", r"\end{tabular}", r"\end{center}", *notes, r"\end{table}"]
        )

    def _repr_html_(self) -> str:
        return self.as_html()

    def __str__(self) -> str:
        return self.as_text()

    __repr__ = __str__


def number(value: float) -> str:
    """A number with three decimals, or with four digits where three decimals would hide its magnitude.

    Examples
    --------
    >>> from jmixed.reports.summary import number
    >>> number(251.4051), number(0.0), number(0.0012345), number(-2.5e-7), number(3.21e12), number(float("nan"))
    ('251.405', '0.000', '0.001234', '-2.500e-07', '3.210e+12', '')
    """
    size = abs(value)
    if not np.isfinite(value):
        return "" if np.isnan(value) else f"{value}"
    if size == 0 or 0.01 <= size < 1e10:
        return f"{value:.3f}"
    if 1e-4 <= size < 0.01:
        return f"{value:.{3 - int(np.floor(np.log10(size)))}f}"
    return f"{value:.3e}"


def summarise(
    fitted: Fitted,
    yname: str | None,
    xname_fe: Sequence[str] | None,
    xname_re: Sequence[str] | None,
    title: str | None,
    alpha: float,
    ddf: str,
) -> Summary:
    """The tables of a fit."""
    spec, fit, names = fitted.spec, fitted.fit, fitted.names
    if isinstance(yname, str) and yname in DDF and yname != spec.endog_name:
        # By position: nobody calls a response so.
        yname, ddf = None, yname
    rows = [*replaced("xname_fe", names.fixed, xname_fe), *replaced("xname_re", names.variance, xname_re)]
    error, df = tests_of_coefficients(fitted, ddf)
    variances, variance_errors = fitted.variance_values, fitted.variance_errors
    if spec.residual is not None:
        rows += residuals.parameter_names(spec)
        variances = np.append(variances, residuals.parameter_values(spec, fit.rho[None])[0])
        variance_errors = np.append(variance_errors, residuals.parameter_errors(spec, fit))
    body = parameter_table(rows, fit.beta, error, variances, variance_errors, alpha, df)
    tables = [_header(fitted, yname or spec.endog_name), body]
    if fitted.family is not None:
        tables += [
            parameter_table(columns, estimates, errors, [], [], alpha).rename_axis(heading)
            for heading, columns, estimates, errors in further.headed(fitted)
        ]
    usual = TITLE if fitted.family is None else GENERALIZED
    told = notes(spec, fit, fit.outcome, DDF[ddf]) + seemingly_nested(fitted)
    return Summary(tables, title or usual, told)


def _header(fitted: Fitted, yname: str) -> pd.DataFrame:
    """What is said of the model and of the fit as a whole."""
    left = [("Model:", "MixedLM" if fitted.family is None else "MixedGLM")]
    right, ended = [("Dependent Variable:", yname)], ("Converged:", "Yes" if fitted.fit.converged else "No")
    likelihood = ("Log-Likelihood:", short(fitted.llf))
    if fitted.family is None:
        right += [("Method:", fitted.method), ("Scale:", short(fitted.sigma**2)), likelihood, ended]
    else:
        left += [("Family:", fitted.family.name), ("Link:", fitted.family.link)]
        criteria = [("AIC:", short(fitted.aic)), ("BIC:", short(fitted.bic))]
        right += [("Method:", f"ML ({fitted.approximation})"), likelihood, *criteria, ended]
        dispersion = further.constant_dispersion(fitted)
        right += [] if dispersion is None else [("Dispersion:", short(dispersion))]
    return header_table([*left, *sizes(fitted.nobs, fitted.sizes)], right)


def parameter_table(
    names: Sequence[str], estimates, errors, variances, variance_errors, alpha: float, df=None
) -> pd.DataFrame:
    """The table of parameters as text: coefficients with z or t tests, variance parameters without.

    Names are those of the coefficients, then of the variance parameters, whose values and errors (m,) are on the scale
    of the data, not divided by the residual variance. Intervals have level 1 - alpha. With degrees of freedom (p,)
    tests are t tests, and there is a column of them.
    """
    t = tails.statistics(estimates, errors)
    normal = df is None
    if df is None:
        half, p = tails.quantile(tails.outer(alpha)) * errors, tails.two_sided(t)
    else:
        from scipy.special import stdtr, stdtrit  # a tenth of a second

        half, p = stdtrit(df, tails.outer(alpha)) * errors, 2 * stdtr(df, -np.abs(t))
    columns = {
        "Coef.": map(_beside, estimates, errors),
        "Std.Err.": map(_beside, errors, errors),
        **({} if normal else {"df": map(_degrees, df)}),
        "z" if normal else "t": map(_fixed, t),
        "P>|z|" if normal else "P>|t|": map(_fixed, p),
        f"[{alpha / 2:g}": map(_beside, estimates - half, errors),
        f"{1 - alpha / 2:g}]": map(_beside, estimates + half, errors),
    }
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    empty = [""] * (len(columns) - 2)
    rows += [[_beside(v, s), _beside(s, s), *empty] for v, s in zip(variances, variance_errors, strict=True)]
    return pd.DataFrame(rows, index=list(names), columns=list(columns), dtype=object)


def _beside(value, error):
    """A number with as many decimals as its standard error needs, if there is one."""
    if not error > 0 or np.isnan(value):
        return number(value)
    return beside(value, error)


def _degrees(value):
    return "" if np.isnan(value) else f"{value:.1f}"


def _fixed(value):
    return "" if np.isnan(value) else f"{value:.3f}"


def replaced(argument: str, names: Sequence[str], given: Sequence[str] | None) -> list[str]:
    """The names to print: those given, which must be as many as there are, or the model's."""
    if given is None:
        return list(names)
    if len(given) != len(names):
        raise DataError(f"{argument} should be a list of length {len(names)}, for {list(names)}; it has {len(given)}")
    return [str(name) for name in given]


def short(value: float) -> str:
    """A number of the header: four decimals, or five digits where that says more."""
    if value == 0 or 0.1 <= abs(value) < 1e10 or not np.isfinite(value):
        return f"{value:.4f}"
    return f"{value:.5g}"


def sizes(nobs: int, groups) -> list[tuple[str, str]]:
    """The lines of the header about rows and groups: sizes for one factor, for several the numbers of their levels."""
    lines = [("No. Observations:", str(nobs))]
    if len(groups) != 1:
        return lines + [(f"No. {name}:", str(size.count)) for name, size in groups.items()]
    size = next(iter(groups.values()))
    return [
        *lines,
        ("No. Groups:", str(size.count)),
        ("Min. group size:", str(size.smallest)),
        ("Max. group size:", str(size.largest)),
        ("Mean group size:", f"{size.mean:.1f}"),
    ]


def header_table(left: Sequence[tuple[str, str]], right: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Two columns of labelled facts side by side, filled up with empty cells."""
    height = max(len(left), len(right))
    empty = ("", "")
    rows = [(*(left[k] if k < len(left) else empty), *(right[k] if k < len(right) else empty)) for k in range(height)]
    return pd.DataFrame(rows, columns=range(4), dtype=object)


def notes(spec, fit, outcome: Outcome, tests: str) -> list[str]:
    """What a reader of the table must know: how the tests are made, and anything that is unusual about the fit."""
    lines = [tests]
    lines += left_out(spec)
    if _has_only_components(spec):
        wish = "with a vc_formula there is none unless re_formula='1' asks for it"
        lines.append(f"No random intercept of {spec.group_name}: {wish}.")
    if spec.residual is not None:
        stated = {"residual": spec.residual.text, "dispersion": spec.residual.dispersion}
        shown = ", ".join(f"{word} {text}" for word, text in stated.items() if text is not None)
        lines.append(f"Residuals: {shown}. logsd: change of the log standard deviation; cor: correlations.")
    if spec.response is not None and spec.response.weights_as_trials:
        lines.append("Weights of proportions are numbers of trials, as in lme4.")
    lines += success(spec)
    related = list(dict.fromkeys(term.group for term in spec.terms if term.relationship is not None))
    if related:
        lines.append(f"Related levels: {', '.join(related)}. A variance is that of a level with 1 in the known matrix.")
    singular = [term.label for term, flag in zip(spec.terms, fit.singular, strict=True) if flag]
    if singular:
        lines.append(
            f"Singular fit: a variance of zero or a correlation of one in {', '.join(map(repr, singular))}. A variance "
            "of zero has no standard error, and those beside a correlation of one are rough."
        )
    if spec.dropped:
        lines.append(f"Redundant columns, dropped: {', '.join(spec.dropped)}.")
    if not fit.converged:
        lines.append(f"Not converged ({outcome.name}): {outcome.message}.")
    return lines


def _has_only_components(spec) -> bool:
    """Whether groups, of which there are several, have variance components inside them and no intercept."""
    if spec.groups is None or all(term.vc is None for term in spec.terms):
        return False
    own = any(term.group == spec.group_name and "Intercept" in term.columns for term in spec.terms)
    return not own and len(pd.unique(np.asarray(spec.groups))) > 1


def _text_header(table, width):
    cells = table.to_numpy()
    widths = [max(len(cell) for cell in cells[:, k]) for k in range(4)]
    spare = max(width - sum(widths) - 3, 0)
    widths[0], widths[2] = widths[0] + spare // 3, widths[2] + spare // 3
    widths[1] += spare - 2 * (spare // 3)
    return [" ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _text_parameters(tables):
    """The heading and the rows of each table, the names to the left and the numbers to the right."""
    label = max(len(str(name)) for table in tables for name in table.index)
    columns = list(tables[0].columns)
    widths = [max(len(name), *(len(cell) for table in tables for cell in table[name])) for name in columns]
    heading = [name.center(width) for name, width in zip(columns, widths, strict=True)]
    out = []
    for table in tables:
        lines = [" ".join([" " * label, *heading]) if table.index.name is None else f"{table.index.name}:"]
        for name, row in zip(table.index, table.to_numpy(), strict=True):
            cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(" ".join([str(name).ljust(label), *cells]).rstrip())
        out.append(lines)
    return out


def _html_row(row):
    cells = [html.escape(cell) for cell in row]
    pairs = [f'<th style="text-align:left">{cells[k]}</th><td>{cells[k + 1]}</td>' for k in (0, 2)]
    return f"<tr>{''.join(pairs)}</tr>"


def _html_parameters(table):
    if table.index.name is not None:
        heading = html.escape(str(table.index.name))
        yield f'<tr><th style="text-align:left" colspan="{1 + table.shape[1]}"><em>{heading}</em></th></tr>'
    for name, row in zip(table.index, table.to_numpy(), strict=True):
        cells = "".join(f'<td style="text-align:right">{html.escape(cell)}</td>' for cell in row)
        yield f'<tr><th style="text-align:left">{html.escape(str(name))}</th>{cells}</tr>'


def _latex_parameters(table):
    if table.index.name is not None:
        yield rf"\hline \multicolumn{{{1 + table.shape[1]}}}{{l}}{{{latex(table.index.name)}}} \\"
    for name, row in zip(table.index, table.to_numpy(), strict=True):
        yield " & ".join(latex(cell) for cell in (name, *row)) + r" \\"
