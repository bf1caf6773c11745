"""The summary as readers of lme4 and lmerTest know it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jmixed.errors import ModelError
from jmixed.inference import tails
from jmixed.reports import further, residuals, responses
from jmixed.reports.components import components
from jmixed.reports.fitted import Fitted
from jmixed.reports.printed import probability
from jmixed.reports.summary import Summary, number, short
from jmixed.reports.tests import tests_of_coefficients
from jmixed.runtime.arguments import checked

STYLES = ("statsmodels", "lme4")
METHODS = {
    "satterthwaite": "t-tests use Satterthwaite's method",
    "kenward-roger": "t-tests use Kenward-Roger's method",
    "residual": "t-tests use n - p degrees of freedom",
    "none": "z-tests",
}


@checked
@dataclass(frozen=True, eq=False, repr=False)
class SummaryAsLme4(Summary):
    """A summary that prints as lme4's does; its tables, and its HTML and LaTeX, are those of the usual one.

    Attributes
    ----------
    tables : list of DataFrame
    title : str
    notes : list of str
    text : str
        The blocks as lme4 prints them.
    """

    text: str = ""

    def as_text(self) -> str:
        """The summary in lme4's layout."""
        return "\n".join([self.text, *self.notes])

    def __str__(self) -> str:
        return self.as_text()

    __repr__ = __str__


def in_style(fitted: Fitted, usual: Summary, style: str, ddf: str) -> Summary:
    """The summary in the style that is asked for."""
    if style not in STYLES:
        raise ModelError(f"summary: style={style!r}; use 'statsmodels' or 'lme4'")
    return usual if style == "statsmodels" else _as_lme4(fitted, usual, ddf)


def _as_lme4(fitted: Fitted, usual: Summary, ddf: str) -> SummaryAsLme4:
    """A summary in lme4's layout, with the notes of the usual one but for that on tests."""
    blocks = [
        _heading(fitted, ddf),
        _criteria(fitted),
        _scaled_residuals(fitted),
        _random(fitted),
        _residual_parameters(fitted),
        _fixed(fitted, ddf),
        _correlations(fitted),
    ]
    text = "\n\n".join(block for block in blocks if block)
    return SummaryAsLme4(usual.tables, usual.title, usual.notes[1:], text)


def _heading(fitted: Fitted, ddf: str) -> str:
    spec = fitted.spec
    if fitted.family is None:
        by = "REML" if fitted.reml else "maximum likelihood"
        lines = [f"Linear mixed model fit by {by}. {METHODS[ddf]}"]
    else:
        lines = [f"Generalized linear mixed model fit by maximum likelihood ({fitted.approximation})"]
        lines.append(f" Family: {fitted.family.name}  ( {fitted.family.link} )")
    return "\n".join([*lines, f"Formula: {spec.formula or spec.endog_name}"])


def _criteria(fitted: Fitted) -> str:
    if fitted.reml:
        return f"REML criterion at convergence: {-2 * fitted.llf:.1f}"
    values = {"AIC": fitted.aic, "BIC": fitted.bic, "logLik": fitted.llf, "deviance": -2 * fitted.llf}
    cells = [f"{value:.1f}" for value in values.values()] + [str(fitted.nobs - fitted.n_params)]
    return _lines([[*values, "df.resid"], cells])


def _scaled_residuals(fitted: Fitted) -> str:
    if not fitted.has_data or fitted.spec.represents is not None:
        return ""
    if fitted.family is None:
        scaled = residuals.residuals(fitted, "pearson")
    elif fitted.family.response == "categories":
        return ""
    else:
        scaled = responses.residuals(fitted, "pearson", 0, 1)
    quantiles = np.quantile(scaled, [0, 0.25, 0.5, 0.75, 1])
    return "Scaled residuals:\n" + _lines([["Min", "1Q", "Median", "3Q", "Max"], [f"{q:.4f}" for q in quantiles]])


def _random(fitted: Fitted) -> str:
    """The block of the random effects: variances, standard deviations, correlations as a triangle."""
    rows, widest = [], 0
    for term in fitted.spec.terms:
        parts = list(components(term, fitted.fit.covariances[term.label]))
        names = [part.first for part in parts if part.second is None]
        for k, part in enumerate(part for part in parts if part.second is None):
            with_earlier = {
                other.first: other.sdcor for other in parts if other.second == part.first and other.first in names
            }
            known = [f"{with_earlier[name]:.2f}" for name in names[:k] if name in with_earlier]
            widest = max(widest, len(known))
            variance, deviation = (number(value) for value in (part.vcov, part.sdcor))
            rows.append([term.group if k == 0 else "", str(part.first), variance, deviation, *known])
    if fitted.family is None:
        told = residuals.named_deviations(fitted.spec, fitted.fit).items()
        rows += [
            ["" if k else "Residual", place, number(deviation**2), number(deviation)]
            for k, (place, deviation) in enumerate(told)
        ]
    head = ["Groups", "Name", "Variance", "Std.Dev.", *(["Corr"] if widest else [])]
    width = 4 + widest
    padded = [[*row, *[""] * (width - len(row))] for row in [head, *rows]]
    groups = "; ".join(f"{name}, {size.count}" for name, size in fitted.sizes.items())
    counts = f"Number of obs: {fitted.nobs}" + (f", groups:  {groups}" if groups else "")
    return "Random effects:\n" + _lines(padded, left=2) + f"\n{counts}"


def _residual_parameters(fitted: Fitted) -> str:
    """The parameters of a residual structure, as in the usual summary."""
    names = residuals.parameter_names(fitted.spec)
    if not names:
        return ""
    values = residuals.parameter_values(fitted.spec, fitted.fit.rho[None])[0]
    errors = residuals.parameter_errors(fitted.spec, fitted.fit) if fitted.has_data else np.full(len(names), np.nan)
    rows = [[name, number(b), number(s)] for name, b, s in zip(names, values, errors, strict=True)]
    return "Residual parameters:\n" + _lines([["", "Estimate", "Std. Error"], *rows], left=1)


def _fixed(fitted: Fitted, ddf: str) -> str:
    errors, df = tests_of_coefficients(fitted, ddf)
    t = tails.statistics(fitted.fit.beta, errors)
    p = tails.p_of_t(t, np.full(len(t), np.inf) if df is None else df)
    letter = "z" if df is None else "t"
    head = ["", "Estimate", "Std. Error", *([] if df is None else ["df"]), f"{letter} value", f"Pr(>|{letter}|)"]
    rows = [head]
    for k, name in enumerate(fitted.names.fixed):
        middle = [] if df is None else [f"{df[k]:.2f}"]
        rows.append(
            [name, number(fitted.fit.beta[k]), number(errors[k]), *middle, f"{t[k]:.3f}", probability(float(p[k]))]
        )
    blocks = ["Fixed effects:\n" + _lines(rows, left=1)]
    if fitted.family is not None:
        for heading, names, estimates, deviations in further.headed(fitted):
            values = zip(names, estimates, deviations, strict=True)
            table = [["", "Estimate", "Std. Error"], *([name, number(b), number(s)] for name, b, s in values)]
            blocks.append(f"{heading}:\n" + _lines(table, left=1))
        dispersion = further.constant_dispersion(fitted)
        if dispersion is not None:
            blocks.append(f"Dispersion: {short(dispersion)}")
    return "\n\n".join(blocks)


def _correlations(fitted: Fitted) -> str:
    """The lower triangle of the correlations of the fixed effects."""
    names, V = list(fitted.names.fixed), np.asarray(fitted.fit.vcov_beta)
    if not 1 < len(names) <= 20:
        return ""
    error = np.sqrt(np.diag(V))
    with np.errstate(divide="ignore", invalid="ignore"):
        R = V / np.outer(error, error)
    short_names = [name[:6] for name in names[:-1]]
    if len(set(short_names)) < len(short_names):
        short_names, names = [f"[{k}]" for k in range(1, len(names))], [f"[{k}] {n}" for k, n in enumerate(names, 1)]
    rows = [["", *short_names]]
    for k in range(1, len(names)):
        rows.append([names[k], *(f"{R[k, j]:.3f}" for j in range(k)), *[""] * (len(names) - 1 - k)])
    return "Correlation of Fixed Effects:\n" + _lines(rows, left=1)


def _lines(rows: Sequence[Sequence[str]], left: int = 0) -> str:
    """Rows of cells as columns of text, the first ones to the left."""
    widths = [max(len(row[k]) for row in rows) for k in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if k < left else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((" " + " ".join(cells)).rstrip())
    return "\n".join(lines)
