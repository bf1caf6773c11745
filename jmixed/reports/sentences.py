"""A fit in words: the model, how it was estimated, and each effect, as a results section has it."""

from collections.abc import Sequence

import numpy as np

from jmixed.formulas.model_data import ModelData
from jmixed.inference import tails
from jmixed.reports import diagnostics, further
from jmixed.reports.components import all_components
from jmixed.reports.fitted import Fitted
from jmixed.reports.printed import beside, fixed
from jmixed.reports.residuals import named_correlations, named_deviations
from jmixed.reports.tests import tests_of_coefficients, usual_ddf

DDF = {
    "satterthwaite": "degrees of freedom by Satterthwaite's method",
    "kenward-roger": "degrees of freedom and standard errors by Kenward and Roger's method",
    "residual": "n - p degrees of freedom",
    "none": "the normal approximation",
}


def report(fitted: Fitted, ddf: str | None, level: float) -> str:
    """The fit in words: see `MixedLMResults.report`."""
    ddf = usual_ddf(fitted, ddf)
    errors, df = tests_of_coefficients(fitted, ddf)
    paragraphs = [" ".join(_model(fitted)), " ".join(_effects(fitted, errors, df, level, ddf)), " ".join(_rest(fitted))]
    return "\n\n".join(paragraphs)


def _model(fitted: Fitted) -> list[str]:
    """What was fitted to what."""
    spec = fitted.spec
    if fitted.family is None:
        kind, how = "a linear mixed model", {"REML": "restricted maximum likelihood", "ML": "maximum likelihood"}
        by = how[fitted.method]
    else:
        kind = f"a generalized linear mixed model ({fitted.family.name}, {fitted.family.link} link)"
        by = f"maximum likelihood ({fitted.approximation})"
    stated = f", {spec.formula}," if spec.formula else f" of {spec.endog_name}"
    groups = [f"{size.count:,} levels of {name}" for name, size in fitted.sizes.items()]
    lines = [
        f"We fitted {kind}{stated} by {by} to {fitted.nobs:,} observations"
        + (f" of {_listed(groups)}." if groups else ".")
    ]
    lines += left_out(spec)
    if spec.residual is not None:
        words = [text for text in (spec.residual.text, spec.residual.dispersion) if text]
        lines.append(f"Residuals were modelled as {_listed(words)}.")
    lines += success(spec)
    if not fitted.fit.converged:
        lines.append(f"The fit did not converge ({fitted.fit.outcome.name}: {fitted.fit.outcome.message}).")
    return lines


def _effects(fitted: Fitted, errors: np.ndarray, df: np.ndarray | None, level: float, ddf: str) -> list[str]:
    """Each coefficient with its test and its interval."""
    intervals = f"{100 * level:g}% confidence intervals"
    lines = [f"Tests and {intervals} of the fixed effects use {DDF[ddf]}."]
    for k, name in enumerate(fitted.names.fixed):
        estimate, error = float(fitted.fit.beta[k]), float(errors[k])
        if not error > 0:
            lines.append(f"{name} was held at {fixed(estimate, 3)}.")
            continue
        nu = np.inf if df is None else float(df[k])
        t = estimate / error
        half = error * float(tails.t_reach((1 - level) / 2, np.array(nu)))
        statistic = f"z = {t:.2f}" if np.isinf(nu) else f"t({nu:.1f}) = {t:.2f}"
        p = float(tails.p_of_t(np.array([t]), np.array([nu]))[0])
        value, se, low, high = (beside(number, error) for number in (estimate, error, estimate - half, estimate + half))
        lines.append(
            f"{name}: b = {value}, SE = {se}, {statistic}, {probability(p)}, {100 * level:g}% CI [{low}, {high}]."
        )
    return lines


def _rest(fitted: Fitted) -> list[str]:
    """Random effects, variance explained, and what is unusual."""
    lines, deviations = [], []
    for part in all_components(fitted.spec, fitted.fit):
        if part.first is None:
            told = named_deviations(fitted.spec, fitted.fit).items()
            values = [f"{fixed(value, 2)} ({place})" if place else fixed(value, 2) for place, value in told]
            deviations.append(f"of the residuals {', '.join(values)}")
        elif part.second is None:
            deviations.append(f"of {part.first} by {part.group} {fixed(part.sdcor, 2)}")
    if deviations:
        lines.append(f"Standard deviations: {_listed(deviations)}.")
    related = [
        f"{part.first} and {part.second} by {part.group} {fixed(part.sdcor, 2)}"
        for part in all_components(fitted.spec, fitted.fit)
        if part.second is not None and np.isfinite(part.sdcor)
    ]
    told = named_correlations(fitted.spec, fitted.fit).items()
    related += [f"residuals ({name}) {fixed(value, 2)}" for name, value in told]
    if related:
        lines.append(f"Correlations: {_listed(related)}.")
    for heading, names, estimates, errors in further.headed(fitted) if fitted.family is not None else ():
        told = [
            f"{name} {beside(estimate, error)} (SE {beside(error, error)})"
            for name, estimate, error in zip(names, estimates.tolist(), errors.tolist(), strict=True)
        ]
        lines.append(f"{heading}: {_listed(told)}.")
    if fitted.has_data and fitted.spec.represents is None:
        explained = diagnostics.r2(fitted)
        fixed_part = f"The fixed effects explain {100 * explained.marginal:.1f}% of the variance (marginal R2)"
        both = f", fixed and random effects together {100 * explained.conditional:.1f}% (conditional R2)"
        lines.append(f"{fixed_part}{both if fitted.spec.terms else ''}.")
    singular = [
        term.label for term, flag in zip(fitted.spec.terms, fitted.fit.singular, strict=True) if flag
    ]  # fmt: skip
    if singular:
        lines.append(f"The fit is singular: a variance of zero or a correlation of one in {_listed(singular)}.")
    return lines


def left_out(spec: ModelData) -> list[str]:
    """How many rows are not in the model because values were missing."""
    if not spec.left_out:
        return []
    return [f"{spec.left_out:,} {'row was' if spec.left_out == 1 else 'rows were'} left out because of missing values."]


def success(spec: ModelData) -> list[str]:
    """Which of two categories a success is."""
    if spec.response is None or spec.response.kind != "successes" or len(spec.response.categories) != 2:
        return []
    return [f"A success is {spec.endog_name} = {spec.response.categories[1]!r}."]


def probability(p: float) -> str:
    """A p-value as a results section has it.

    Examples
    --------
    >>> from jmixed.reports.sentences import probability
    >>> probability(0.0123), probability(1e-7)
    ('p = .012', 'p < .001')
    """
    return "p < .001" if p < 0.001 else f"p = {p:.3f}".replace("0.", ".", 1)


def _listed(parts: Sequence[str]) -> str:
    """Parts of a sentence, with commas and a last "and"."""
    parts = list(parts)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""
