"""Predictions of the model's own and of new rows, with intervals on demand."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.formulas.frame import new_table
from jmixed.formulas.statement import new_rows
from jmixed.inference import tails
from jmixed.reports.fitted import Fitted
from jmixed.reports.residuals import conditional_means, new_columns, relative_deviations
from jmixed.reports.rows import RowsToPredict, in_sample, mean, select_terms
from jmixed.runtime.precision import FLOAT

NewLevels = Literal["raise", "population"]
Interval = Literal["confidence", "prediction"]


def refuse_unknown(new_levels: str, interval: str | None) -> None:
    """Refuse what is no way of treating new levels, or no interval."""
    if new_levels not in ("raise", "population"):
        raise DataError(f"predict: new_levels={new_levels!r}; use 'raise' or 'population'")
    if interval not in (None, "confidence", "prediction"):
        raise DataError(f"predict: interval={interval!r}; use 'confidence', 'prediction' or None")


def predict(
    fitted: Fitted,
    data: Any = None,
    transform: bool = True,
    random_effects: bool | str | Collection[str] = False,
    new_levels: str = "raise",
    interval: str | None = None,
    level: float = 0.95,
    exog: Any = None,
    condition: str | None = None,
) -> Any:
    """Predict the response: see `MixedLMResults.predict`."""
    if exog is not None and data is not None:
        raise DataError("predict: exog is another name of data; give one of them")
    data = exog if data is None else data
    refuse_unknown(new_levels, interval)
    if condition not in (None, "residual"):
        raise DataError(f"predict: condition={condition!r}; use 'residual' or None")
    selected = select_terms(fitted.spec.terms, random_effects)
    rows = _rows(fitted, data, transform, selected, new_levels, interval)
    if interval is not None:
        if condition is not None:
            raise DataError("predict: there is no interval with condition='residual'; leave out one of them")
        return with_interval(fitted, rows, interval, level)
    values = mean(fitted.spec, fitted.fit, rows)
    if condition is not None:
        values = values + _given_residuals(fitted, data, selected, rows)
    return values if rows.index is None else pd.Series(values, index=rows.index)


def _given_residuals(fitted: Fitted, data: Any, selected: Collection[int], rows: RowsToPredict) -> np.ndarray:
    """Means of the residuals of new rows, given those of the rows of the same series that were fitted."""
    spec = fitted.spec
    if len(selected) != len(spec.terms):
        raise DataError(
            "predict: condition='residual' takes what the residuals tell beside the random effects; give "
            "random_effects=True as well"
        )
    fitted.need_data("predict(condition='residual')")
    left, means = spec.y - fitted.fittedvalues, np.full(len(rows.X), np.nan)
    frame: Any = spec.frame if data is None else new_table(data)
    weights = spec.weights if data is None else np.ones(len(rows.X))
    there = np.flatnonzero(~rows.missing)
    means[there] = conditional_means(spec, fitted.fit, left, frame.iloc[there], weights[there])
    return means


def _rows(fitted: Fitted, data, transform, selected, new_levels, interval) -> RowsToPredict:
    spec = fitted.spec
    if data is None:
        fitted.need_data("predictions of the model's own rows")
        rows = in_sample(spec, selected)
        if spec.residual is not None:
            deviations = relative_deviations(spec.residual, fitted.fit.rho, spec.residual.columns)
            rows = replace(rows, weights=rows.weights / deviations**2)
        return replace(rows, index=spec.index) if interval is not None and fitted.labelled else rows
    if spec.recipe is not None and transform:
        rows = from_data(spec, data, selected, new_levels, every=interval == "prediction")
        if spec.residual is None or interval != "prediction":
            return rows
        there, weights = np.flatnonzero(~rows.missing), np.ones(len(rows.X))
        columns = new_columns(spec, new_table(data).iloc[there])
        weights[there] = relative_deviations(spec.residual, fitted.fit.rho, columns) ** -2.0
        return replace(rows, weights=weights)
    if selected or interval == "prediction":
        raise DataError(
            "predict: columns of X do not tell the groups of new rows and the columns of their random effects, "
            f"which {'random_effects' if selected else 'a prediction interval'} needs; fit the model from a "
            "formula, or predict its own rows with data=None"
        )
    return from_columns(spec, data)


def from_columns(spec, exog) -> RowsToPredict:
    """Rows of given columns of X, (k, p) or (p,), matched by position as in statsmodels: no random effects."""
    index = exog.index if isinstance(exog, pd.DataFrame | pd.Series) else None
    try:
        X = np.asarray(exog, FLOAT)
    except (TypeError, ValueError):
        raise DataError(
            f"predict: exog holds what are no numbers; the model was made of arrays, so give the columns "
            f"{list(spec.exog_names)} as numbers"
        ) from None
    p = spec.X.shape[1]
    if X.ndim == 1:
        X = X[:, None] if p == 1 else X[None, :]
        index = None if index is not None and len(index) != len(X) else index
    if X.ndim != 2 or X.shape[1] != p:
        raise DataError(
            f"predict: exog has shape {np.shape(exog)}, but the model needs {p} columns: {list(spec.exog_names)}"
        )
    if spec.has_offset:
        raise DataError(
            "predict: the model has an offset, which columns of exog do not carry; "
            "compute exog @ fe_params and add the offset of the new rows"
        )
    k = len(X)
    codes = tuple(np.full(k, -1, np.int32) for _ in spec.terms)
    Z = tuple(np.zeros((k, len(term.columns))) for term in spec.terms)
    return RowsToPredict(X, np.zeros(k), codes, Z, np.ones(k), index, np.zeros(k, bool))


def from_data(
    spec,
    data,
    selected: Collection[int],
    new_levels: str,
    every: bool,
    further: Collection[str] = (),
    named: str = "a prediction interval",
) -> RowsToPredict:
    """New rows through the model's formulas, with the conditional modes of the terms at the selected positions.

    With `every` the columns of the other terms are made as well, whose variance belongs to what is `named`; `further`
    names the further predictors whose columns are made.
    """
    frame = new_table(data, spec.recipe.columns(part for part in spec.recipe.specs if part != "lhs"))
    used = [k for k in range(len(spec.terms)) if every or k in selected]
    terms = tuple(spec.terms[k] for k in used)
    if every:
        # The labels of terms that are not selected play no part: they need not be there.
        absent = {name for k in used if k not in selected for name in _sources(spec.terms[k]) if name not in frame}
        frame = frame.assign(**dict.fromkeys(sorted(absent)))
    # Only the terms in use: the columns of other grouping factors need not be there.
    made_rows = new_rows(replace(spec, terms=terms), frame, random=len(terms) > 0, further=further)
    unknown, missing = np.full(len(frame), -1, np.int32), made_rows.missing
    codes = [unknown for _ in spec.terms]
    Z = [np.zeros((len(frame), len(term.columns))) for term in spec.terms]
    for place, k in enumerate(used):
        term, Z[k] = spec.terms[k], made_rows.Z[place]
        if k in selected:
            labels, codes[k] = _label_columns(term, frame), made_rows.codes[place]
            missing = np.logical_or.reduce([missing, *(column.isna() for column in labels)])
            if new_levels == "raise":
                _refuse_unknown(term, codes[k], labels, missing)
        if every and term.rebuild.local is not None and np.any((made_rows.codes[place] < 0) & ~missing):
            raise DataError(
                f"predict: the columns of the variance component {term.vc!r} are made within each group, so that "
                f"{named} is not there for rows of unknown groups; give the groups"
            )
    columns = {"dispersion": made_rows.dispersion, "zero": made_rows.zero}
    stated = {name: values for name, values in columns.items() if values is not None}
    of_rows = made_rows.X, made_rows.offset, tuple(codes), tuple(Z), np.ones(len(frame)), made_rows.index, missing
    return RowsToPredict(*of_rows, stated)


def _sources(term):
    """The columns that a term's labels come from."""
    return term.rebuild.factor.sources


def _label_columns(term, frame):
    """The columns that a term's labels come from, as far as they are plain columns."""
    return [frame[name] for name in _sources(term) if name in frame]


def _refuse_unknown(term, code, columns, missing):
    unknown = np.flatnonzero((code < 0) & ~missing)
    if len(unknown):
        known = term.levels[:1].tolist()[0]
        raise DataError(
            f"predict: {_unknown_labels(term, columns, unknown)} not among the levels of {term.group!r} that the "
            f"model was fitted to (such as {known!r}); use new_levels='population' to predict such rows with a "
            "random effect of zero",
            page="new-groups.md",
        )


def _unknown_labels(term, columns, unknown):
    """The first few unknown labels, or their number when the factor is not made of plain columns."""
    if len(columns) != len(term.rebuild.factor.sources):
        return f"{len(unknown)} rows have a level"
    # A label on its own keeps its type: the text '7' is no level where the number 7 is.
    whole = columns[0].tolist() if len(columns) == 1 else None
    names = (":".join(str(column.iloc[row]) for column in columns) if whole is None else whole[row] for row in unknown)
    labels = list(dict.fromkeys(names))
    more = f" and {len(labels) - 5} more are" if len(labels) > 5 else " is" if len(labels) == 1 else " are"
    return ", ".join(repr(label) for label in labels[:5]) + more


class Spread(NamedTuple):
    """How uncertain predictors are: directions (k, p) in which they move with beta, and variances (k,) beside these."""

    directions: np.ndarray
    beside: np.ndarray

    def variances(self, vcov_beta: np.ndarray) -> np.ndarray:
        """Variances (k,), with the covariance (p, p) of beta."""
        return np.einsum("ij,jk,ik->i", self.directions, vcov_beta, self.directions) + self.beside


def spread(fitted: Fitted, X: np.ndarray, codes, Z) -> Spread:
    """How uncertain predictors are at the estimated variances: of X (k, p), levels and columns as of rows."""
    if not any((code >= 0).any() for code in codes):
        return Spread(X, np.zeros(len(X)))
    if fitted.is_iterative:
        return Spread(*fitted.solved.spread(X, codes, Z))
    joint = fitted.joint
    of_effects = joint.rows(codes, Z, len(X))
    beside = fitted.fit.sigma**2 * joint.conditional_variances(of_effects) + joint.rest_variances(codes, Z)
    return Spread(X - of_effects @ joint.K, beside)


def left_out_variances(fitted: Fitted, codes, Z, count: int) -> np.ndarray:
    """Variances (k,) of the random effects of so many rows whose levels are not known."""
    total = np.zeros(count)
    for term, code, columns in zip(fitted.spec.terms, codes, Z, strict=True):
        variances = np.einsum("ij,jk,ik->i", columns, fitted.fit.covariances[term.label], columns)
        total += np.where(code < 0, variances, 0.0)
    return total


def with_interval(fitted: Fitted, rows: RowsToPredict, interval: str, level: float) -> pd.DataFrame:
    """Predictions with their standard errors and normal limits: columns fit, se, lower, upper.

    The interval is that of the mean that is predicted, or of a new observation, with the residual variance and the
    variance of every random effect that the mean leaves out.
    """
    fit, values = fitted.fit, mean(fitted.spec, fitted.fit, rows)
    variance, kept = np.full(len(values), np.nan), ~rows.missing
    codes, Z, X = [code[kept] for code in rows.codes], [columns[kept] for columns in rows.Z], rows.X[kept]
    variance[kept] = spread(fitted, X, codes, Z).variances(fit.vcov_beta)
    if interval == "prediction":
        variance[kept] += left_out_variances(fitted, codes, Z, len(X)) + fit.sigma**2 / rows.weights[kept]
    error = np.sqrt(variance)
    half = tails.half_width(level) * error
    columns = {"fit": values, "se": error, "lower": values - half, "upper": values + half}
    return pd.DataFrame(columns, index=rows.index)
