"""Predictions of a response with a family: of its predictor, its mean, its probabilities, averaged over random effects.

Everything is a function of the predictor eta, the variance v of the random effects that are averaged over, and the
further predictors, with the derivatives that standard errors need: by the delta method from the joint covariance of
all parameters, and that of the modes given these. Limits are the function at eta and so many of the standard errors
that eta would need to have: they stay in the range of a mean that rises or falls with eta.

Of predictions with random effects the error is that of (beta, b) given the variances, and what their uncertainty adds,
since the modes move with them: the joint covariance that R's TMB has (Kristensen et al. 2016, J. Stat. Softw. 70(5)).
"""

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.families.family import Family
from jmixed.formulas.frame import new_table, numbers, per_row
from jmixed.inference import responses, tails
from jmixed.inference.responses import Sloped
from jmixed.inference.simulation import generator
from jmixed.reports import further
from jmixed.reports.bootstrap import count
from jmixed.reports.fitted import Fitted
from jmixed.reports.names import structure
from jmixed.reports.predict import Spread, from_data, left_out_variances, refuse_unknown, spread
from jmixed.reports.rows import RowsToPredict, in_sample, mean, select_terms

Kind = Literal["response", "link", "probability", "marginal"]
KINDS = ("response", "link", "probability", "marginal")
DRAWN = 2**21
"""Responses that are drawn at a time for prediction intervals."""


@dataclass(frozen=True)
class Request:
    """What is asked of `predict`, checked."""

    kind: str
    selected: list[int]
    interval: str | None
    level: float
    draws: int
    key: Any
    own_rows: bool

    @property
    def averaged(self) -> bool:
        """Whether the mean over the random effects is asked for."""
        return self.kind == "marginal"


def predict(
    fitted: Fitted,
    data: Any,
    kind: str,
    random_effects: bool | str | Collection[str],
    new_levels: str,
    interval: str | None,
    level: float,
    trials: Any,
    n: int,
    key: Any,
) -> Any:
    """Predictions: see `MixedGLMResults.predict`."""
    if kind not in KINDS:
        raise DataError(f"predict: kind={kind!r}; use one of {', '.join(map(repr, KINDS))}")
    refuse_unknown(new_levels, interval)
    family = fitted.own_family
    if kind == "probability" and family.response == "numbers":
        raise ModelError(f"predict: kind='probability' is of successes or categories, and {family.name} has numbers")
    if interval == "prediction" and (kind in ("link", "marginal") or family.response == "categories"):
        raise DataError(
            "predict: a prediction interval is that of a new response, with kind='response', and there is none of "
            "categories: use interval='confidence'"
        )
    draws, selected = count(n, "predict"), select_terms(fitted.spec.terms, random_effects)
    request = Request(kind, selected, interval, float(level), draws, key, data is None)
    rows = _rows(fitted, data, request, new_levels)
    if kind == "link":
        if interval is not None:
            return _with_interval_of_predictor(fitted, rows, request)
        values = mean(fitted.spec, fitted.fit, rows)
        return values if rows.index is None else pd.Series(values, rows.index)
    if interval == "prediction":
        return _with_draws(fitted, rows, request, _trials(fitted, data, trials, rows))
    return _with_confidence(fitted, rows, request)


def _with_interval_of_predictor(fitted: Fitted, rows: RowsToPredict, request: Request) -> pd.DataFrame:
    """Predictors with their standard errors and normal limits: columns fit, se, lower, upper."""
    kept = _Kept(fitted, rows, request.own_rows)
    error = np.sqrt(_predictor_variances(kept))
    half = tails.half_width(request.level) * error
    columns = {"fit": kept.eta, "se": error, "lower": kept.eta - half, "upper": kept.eta + half}
    whole = np.full((len(rows.X), len(columns)), np.nan)
    whole[kept.there] = np.column_stack(list(columns.values()))
    return pd.DataFrame(whole, rows.index, list(columns))


def _what(family: Family) -> str:
    """Which function of the predictors people see of a response."""
    return "probabilities" if family.response == "categories" else "mean"


def _rows(fitted: Fitted, data, request: Request, new_levels: str) -> RowsToPredict:
    spec, family = fitted.spec, fitted.own_family
    if data is None:
        fitted.need_data("predictions of the model's own rows")
        rows = in_sample(spec, request.selected)
        index = spec.index if request.interval is not None or family.response == "categories" else None
        return replace(rows, index=index)
    # Columns of predictors that the mean does not depend on need not be there.
    needs = request.interval == "prediction" or (
        request.kind != "link" and responses.depends_on_extras(family, _what(family))
    )
    names = [part.name for part in further.parts(fitted.model)] if needs else []
    every = request.averaged or request.interval == "prediction"
    named = "a mean over the random effects" if request.averaged else "a prediction interval"
    return from_data(spec, data, request.selected, new_levels, every, names, named)


class _Kept:
    """What is known of the rows without missing values."""

    def __init__(self, fitted: Fitted, rows: RowsToPredict, own_rows: bool):
        self.fitted, self.there = fitted, np.flatnonzero(~rows.missing)
        self.eta = mean(fitted.spec, fitted.fit, rows)[self.there]
        self.X = rows.X[self.there]
        self.codes = [code[self.there] for code in rows.codes]
        self.Z = [columns[self.there] for columns in rows.Z]
        named = {name: columns[self.there] for name, columns in rows.further.items()}
        self.columns = further.columns_of(fitted, len(self.there), named)
        # The model's own rows have weights, which may belong to the dispersion.
        self.extras = fitted.at_modes.extras if own_rows else further.predictors(fitted, len(self.there), self.columns)

    def variance(self) -> np.ndarray:
        """Variances of the random effects that the predictor leaves out."""
        return left_out_variances(self.fitted, self.codes, self.Z, len(self.eta))

    def spread(self) -> Spread:
        return spread(self.fitted, self.X, self.codes, self.Z)


def _with_confidence(fitted: Fitted, rows: RowsToPredict, request: Request) -> Any:
    family, kept = fitted.own_family, _Kept(fitted, rows, request.own_rows)
    what = _what(family)
    v = kept.variance() if request.averaged else None

    def values_at(eta):
        if v is None:
            return responses.evaluate(family, what, eta, kept.extras)
        return responses.averaged(family, what, eta, kept.extras, v)

    if request.interval is None:
        return _table(fitted, rows, kept, {"fit": values_at(kept.eta)}, None)
    at = responses.expected(family, what, kept.eta, kept.extras, v)
    error = np.sqrt(_variances(kept, at, request.averaged))
    half = tails.half_width(request.level)
    if what == "probabilities":
        lower, upper = _logit_limits(at.value, half * error)
    else:
        with np.errstate(divide="ignore", invalid="ignore"):
            reach = np.where(at.in_eta != 0, half * error / np.abs(at.in_eta), 0.0)
        ends = [values_at(kept.eta + side * reach) for side in (-1, 1)]
        lower, upper = np.minimum(*ends), np.maximum(*ends)
    return _table(fitted, rows, kept, {"fit": at.value, "se": error, "lower": lower, "upper": upper}, request.interval)


def response_slopes(fitted: Fitted, frame: pd.DataFrame, averaged: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Means (k,) of new rows, or probabilities (J, k) of categories, their slopes (..., k, m) in all parameters, and
    the covariance (m, m) of these: averaged over the random effects, or where they are zero.
    """
    what = _what(fitted.own_family)
    request = Request("marginal" if averaged else "response", [], None, 0.95, 1, 0, False)
    rows = _rows(fitted, frame, request, "raise")
    kept = _Kept(fitted, rows, False)
    at = responses.expected(fitted.own_family, what, kept.eta, kept.extras, kept.variance() if averaged else None)
    slopes, vcov = _slopes(kept, at, kept.spread(), averaged)
    return at.value, slopes, vcov


def _variances(kept: _Kept, at: Sloped, averaged: bool) -> np.ndarray:
    """Variances of the values by the delta method: of shape (..., k)."""
    moves = kept.spread()
    slopes, vcov = _slopes(kept, at, moves, averaged)
    total = np.einsum("...i,ij,...j->...", slopes, vcov, slopes)
    return total + at.in_eta**2 * moves.beside


def _slopes(kept: _Kept, at: Sloped, moves: Spread, averaged: bool) -> tuple[np.ndarray, np.ndarray]:
    """Slopes (..., k, m) of the values in all parameters, and the covariance (m, m) of these."""
    fitted = kept.fitted
    p, m = fitted.k_fe, len(fitted.psi)
    # Directions of all parameters by row: beta, psi, kappa.
    in_beta = at.in_eta[..., None] * moves.directions
    of_modes = at.in_eta[..., None] * _mode_slopes(kept)
    in_psi, moved, start = of_modes[..., :m], of_modes[..., m:], 0
    if averaged:
        in_psi = in_psi + at.in_variance[..., None] * _variance_slopes(kept)
    in_kappa = []
    for u, columns in enumerate(kept.columns):
        stop = start + columns.shape[1]
        in_kappa.append(at.in_extras[u][..., None] * columns + moved[..., start:stop])
        start = stop
    slopes = np.concatenate([in_beta, in_psi, *in_kappa], axis=-1)
    vcov, untold = fitted.vcov.copy(), p + np.flatnonzero(np.isnan(np.diag(fitted.vcov)[p : p + m]))
    # A variance of zero counts as known.
    vcov[untold], vcov[:, untold] = 0.0, 0.0
    return slopes, vcov


def _predictor_variances(kept: _Kept) -> np.ndarray:
    """Those of the predictors themselves (k,)."""
    still = np.zeros((1 + len(kept.columns), len(kept.eta)))
    return _variances(kept, Sloped(kept.eta, np.ones_like(kept.eta), still[0], still[1:]), False)


def _mode_slopes(kept: _Kept) -> np.ndarray:
    """Derivatives (k, m + kappa) of the random effects' part of the predictors in psi and kappa."""
    fitted = kept.fitted
    total = np.zeros((len(kept.eta), len(fitted.psi) + len(fitted.fit.kappa)))
    if any((code >= 0).any() for code in kept.codes):
        for of_term, code, Z in zip(fitted.mode_slopes, kept.codes, kept.Z, strict=True):
            there = code >= 0
            total[there] += np.einsum("ij,ijs->is", Z[there], of_term[code[there]])
    return total


def _variance_slopes(kept: _Kept) -> np.ndarray:
    """Derivatives (k, m) in psi of the variances of the random effects that are left out."""
    out, psi, start = [np.zeros((len(kept.eta), 0))], kept.fitted.psi, 0
    for term, code, Z in zip(kept.fitted.spec.terms, kept.codes, kept.Z, strict=True):
        of_term = structure(term)
        directions = np.asarray(of_term.directions(psi[start : start + of_term.size]))
        slopes = np.einsum("ij,sjk,ik->is", Z, directions, Z)
        out.append(np.where((code < 0)[:, None], slopes, 0.0))
        start += of_term.size
    return np.hstack(out)


def _logit_limits(p: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Limits of probabilities that lie between zero and one, `half` a standard error or more to either side."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logit, reach = np.log(p) - np.log1p(-p), half / (p * (1 - p))
        low, high = (1 / (1 + np.exp(-(logit + side * reach))) for side in (-1, 1))
    inside = (p > 0) & (p < 1)
    return np.where(inside, low, p), np.where(inside, high, p)


def _table(
    fitted: Fitted, rows: RowsToPredict, kept: _Kept, columns: dict[str, np.ndarray], interval: str | None
) -> Any:
    """Values by row, NaN for rows with missing values: an array, a Series, or a table of several columns."""
    size = len(rows.X)
    categories = fitted.response.categories if _what(fitted.own_family) == "probabilities" else None

    def whole(values):
        out = np.full((*values.shape[:-1], size), np.nan)
        out[..., kept.there] = values
        return out.T

    if categories is None:
        if interval is None:
            values = whole(columns["fit"])
            return values if rows.index is None else pd.Series(values, rows.index)
        return pd.DataFrame({name: whole(values) for name, values in columns.items()}, rows.index)
    labels = pd.Index(list(categories), name=fitted.spec.endog_name)
    tables = {name: pd.DataFrame(whole(values), rows.index, labels) for name, values in columns.items()}
    if interval is None:
        return tables["fit"]
    # A probability beside its limits, category by category.
    beside = pd.concat(tables, axis=1, names=["", fitted.spec.endog_name]).swaplevel(axis=1)
    return beside[[(label, name) for label in labels for name in columns]]


def _trials(fitted: Fitted, data, trials, rows: RowsToPredict) -> np.ndarray:
    """Numbers of trials (k,) of rows whose responses are drawn."""
    response = fitted.response
    if data is None and trials is None:
        return response.trials
    if trials is None:
        if response.counts_trials:
            raise DataError(
                "predict: a prediction interval of successes needs the numbers of trials of the new rows: give "
                "trials=, the name of a column or a number for each row"
            )
        return np.ones(len(rows.X))
    frame: Any = fitted.spec.frame if data is None else new_table(data)
    values = numbers(per_row(trials, frame, "trials"), "trials")
    wrong = ~((values >= 1) & (values == np.round(values))) & ~rows.missing
    if wrong.any():
        raise DataError(f"predict: trials holds {values[wrong][0]:g}; numbers of trials are whole and at least 1")
    return values


def _with_draws(fitted: Fitted, rows: RowsToPredict, request: Request, trials: np.ndarray) -> pd.DataFrame:
    """Means with the quantiles of new responses: columns fit, se (their standard deviation), lower, upper."""
    family, kept = fitted.own_family, _Kept(fitted, rows, request.own_rows)
    value = responses.evaluate(family, "mean", kept.eta, kept.extras)
    deviation = np.sqrt(_predictor_variances(kept) + kept.variance())
    rng, tail = generator(request.key), (1 - request.level) / 2
    error, limits = np.empty(len(kept.eta)), np.empty((2, len(kept.eta)))
    step = max(1, DRAWN // request.draws)
    successes = family.response == "successes"
    for start in range(0, len(kept.eta), step):
        part = slice(start, start + step)
        of_part = np.tile(trials[kept.there][part], request.draws)
        normal = rng.standard_normal((request.draws, len(kept.eta[part])))
        eta = (kept.eta[part] + deviation[part] * normal).reshape(1, -1)
        bits = rng.integers(0, 2**32, (1, 2), dtype=np.uint32)
        drawn = responses.draw(family, bits, eta, np.tile(kept.extras[:, part], (1, request.draws)), of_part)
        drawn = (drawn / of_part if successes else drawn).reshape(normal.shape)
        error[part], limits[:, part] = np.std(drawn, axis=0), np.quantile(drawn, [tail, 1 - tail], axis=0)
    columns = {"fit": value, "se": error, "lower": limits[0], "upper": limits[1]}
    return _table(fitted, rows, kept, columns, "prediction")
