"""Many responses on one model, with names: what `MixedLM.fit_many` does and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.covariance.scales import preconditioners, settled, singular_flags, typical_deviation
from jmixed.errors import ConvergenceWarning, DataError, Outcome, warn
from jmixed.fit import many
from jmixed.formulas.frame import as_frame, refuse_tracer
from jmixed.reports import further
from jmixed.reports.components import named_parameters, values_at
from jmixed.reports.printed import Shown
from jmixed.reports.responses import checked_responses
from jmixed.runtime.progress import bar


@dataclass(frozen=True, repr=False)
class ManyResults(Shown):
    """Fits of many responses: tables with a row for each response, by its name.

    Attributes
    ----------
    objective : Series (m,)
        REML criteria or -2 log-likelihoods.
    fe_params, bse_fe : DataFrames (m, k_fe)
        Fixed effects and their standard errors.
    theta : DataFrame (m, k)
        Relative covariance factors.
    sigma : Series (m,)
        Residual standard deviations.
    var_corr : DataFrame (m, components)
        Standard deviations and correlations: ``sd_COLUMN|GROUP``, ``cor_B.A|GROUP`` and ``sigma``; then those of a
        residual structure. Of a response with a family, in the place of sigma, its further predictors'.
    converged, singular : Series of bool (m,)
    outcome : Series (m,)
        Names of `jmixed.Outcome`.
    nobs : Series (m,)
        Rows with a response.
    vcov_beta : array (m, k_fe, k_fe)
        Covariance matrices of the fixed effects.
    reml : bool
    """

    objective: pd.Series
    fe_params: pd.DataFrame
    bse_fe: pd.DataFrame
    theta: pd.DataFrame
    sigma: pd.Series
    var_corr: pd.DataFrame
    converged: pd.Series
    singular: pd.Series
    outcome: pd.Series
    nobs: pd.Series
    vcov_beta: np.ndarray
    reml: bool

    def _shown(self) -> tuple[str, pd.DataFrame]:
        bad = int((~self.converged).sum())
        title = (
            f"<ManyResults: {len(self.objective)} responses, {'REML' if self.reml else 'ML'}; "
            f"{int(self.singular.sum())} singular; {bad} without a certified optimum>"
        )
        table = self.fe_params.assign(sigma=self.sigma, objective=self.objective, outcome=self.outcome)
        return title, table.head(SHOWN)


SHOWN = 10
"""Responses that a printed table has."""


def fit_many(model: Any, Y, reml: bool, memory: int | None, progress: bool) -> ManyResults:
    """Fit every response; see `MixedLM.fit_many`."""
    spec, design, theta_names, family = model.spec, model.design, model.theta_names, getattr(model, "family", None)
    refuse_tracer(Y, "Y", "jm.estimate_many")
    names, values = _responses(spec, Y)
    if family is not None:
        for response in values:
            there = ~np.isnan(response)
            checked_responses(family, response[there], spec.response.trials[there], spec.index[there])
    with bar(len(names), progress, "fit_many") as advance:
        fits = many.fit_responses(design, values, reml, memory=memory or many.MEMORY, progress=advance)
    _warn(fits, names)
    fixed, theta = list(spec.exog_names), settled(design, fits.theta, fits.rho)
    typical = typical_deviation(design, fits.rho)
    flags = singular_flags(design.layout.terms, theta, preconditioners(design), typical)
    parameters = [name for name, _ in named_parameters(spec, further.parameter_names(model))][len(fixed) :]
    more = None if family is None else further.parameter_values(model, fits.rho)
    values = values_at(spec, design, fits.theta, fits.beta, fits.sigma, fits.rho, more)[:, len(fixed) :]

    def series(array: Any, name: str) -> pd.Series:
        return pd.Series(array, index=names, name=name)

    return ManyResults(
        objective=series(fits.objective, "objective"),
        fe_params=pd.DataFrame(fits.beta, index=names, columns=fixed),
        bse_fe=pd.DataFrame(np.sqrt(np.diagonal(fits.vcov_beta, axis1=1, axis2=2)), index=names, columns=fixed),
        theta=pd.DataFrame(theta, index=names, columns=theta_names),
        sigma=series(spec.sigma_at_zero(fits.sigma, fits.rho), "sigma"),
        var_corr=pd.DataFrame(values, index=names, columns=parameters),
        converged=series(fits.converged, "converged"),
        singular=series(np.any(flags, axis=1), "singular"),
        outcome=series([Outcome(int(value)).name for value in fits.outcome], "outcome"),
        nobs=series(fits.nobs, "nobs"),
        vcov_beta=fits.vcov_beta,
        reml=bool(reml),
    )


def _responses(spec, Y):
    """(names, array (m, nobs)) of an array (m, nobs), or of a table (nobs, m) whose labels are those of the data."""
    n = len(spec.y)
    if not hasattr(Y, "columns") and not isinstance(Y, dict):
        values = np.asarray(Y)
        if values.ndim != 2 or values.shape[1] != n or values.dtype.kind not in "fiub":
            raise DataError(
                f"Y is an array of {values.dtype} of shape {values.shape}, but numbers of shape (m, {n}) are needed: a "
                f"row per response, an entry for each of the model's {n} rows. Give a DataFrame for a column each",
                page="many.md",
            )
        return pd.RangeIndex(len(values)), values
    frame = as_frame(Y)
    text = [str(name) for name, kind in frame.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if text:
        raise DataError(f"Y: column {text[0]!r} does not hold numbers; leave out what is no response")
    if not frame.index.equals(spec.index):
        known = frame.index.is_unique and spec.index.isin(frame.index).all()
        if not known:
            raise DataError(
                f"Y has {len(frame)} rows whose labels are not those of the model's {n} rows: give Y the index of the "
                "data, or an array (m, nobs)",
                page="many.md",
            )
        frame = frame.loc[spec.index]
    return frame.columns, frame.to_numpy(dtype=spec.y.dtype, na_value=np.nan).T


def _warn(fits, names):
    bad = np.flatnonzero(~fits.converged)
    if len(bad):
        outcome = Outcome(int(fits.outcome[bad[0]]))
        warn(
            f"{len(bad)} of {len(names)} responses ended without a certified optimum, the first of them "
            f"{names[bad[0]]!r}: {outcome.name}: {outcome.message}",
            ConvergenceWarning,
        )
