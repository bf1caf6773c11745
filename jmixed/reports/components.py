"""Parameters by the names that people read: standard deviations, correlations, the tables of lme4."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jmixed.covariance.scales import settled
from jmixed.covariance.structure import factors_of_theta
from jmixed.inference import tails
from jmixed.inference.profiles import COEFFICIENT, CORRELATION, FURTHER, RESIDUAL, SD, SIGMA, Parameter
from jmixed.layout.design import Design
from jmixed.reports import further
from jmixed.reports.fitted import Fitted
from jmixed.reports.names import structure
from jmixed.reports.printed import noted
from jmixed.reports.residuals import parameter_limits
from jmixed.reports.residuals import parameter_names as residual_names
from jmixed.reports.residuals import parameter_values as residual_values
from jmixed.runtime.precision import FLOAT


class Component(NamedTuple):
    """One entry of a term's covariance matrix: a variance (second is None) or a covariance."""

    group: str
    first: str | None
    second: str | None
    vcov: float
    sdcor: float

    @property
    def name(self) -> str:
        """Name in tables of intervals: ``sd_A|G``, ``cor_B.A|G`` or ``sigma``."""
        if self.first is None:
            return "sigma"
        kind, term = ("sd", self.first) if self.second is None else ("cor", f"{self.second}.{self.first}")
        return f"{kind}_{term}|{self.group}"


def components(term, cov) -> Iterator[Component]:
    """The lower triangle of a term's covariance matrix (q, q), column by column, as variances and correlations.

    Columns that share their variance have one component. A correlation of pairs whose covariances differ has none.
    """
    of_term = structure(term)
    for entry, value in zip(of_term.readable(term.columns, term.vc), of_term.values(cov).tolist(), strict=True):
        vcov = np.nan if entry.several else cov[entry.row, entry.column]
        yield Component(term.group, entry.first, entry.second, vcov, value)


def all_components(spec, fit) -> list[Component]:
    """The components of all terms in the model's order, then the residual of a linear model."""
    parts = [part for term in spec.terms for part in components(term, fit.covariances[term.label])]
    return parts + _residual(spec, fit)


def _residual(spec, fit) -> list[Component]:
    """The residual variance, which a response with a family has not."""
    if spec.response is not None:
        return []
    sigma = float(spec.sigma_at_zero(fit.sigma, fit.rho))
    return [Component("Residual", None, None, sigma**2, sigma)]


def named_parameters(spec, more: Sequence[str] = ()) -> list[tuple[str, Parameter]]:
    """All parameters of a model with their names.

    Coefficients, standard deviations and correlations of random effects, sigma, parameters of the residuals; of a
    response with a family, in place of the last two, the coefficients of its further predictors, whose names are given.
    """
    parameters = [(name, Parameter(COEFFICIENT, first=j)) for j, name in enumerate(spec.exog_names)]
    for t, term in enumerate(spec.terms):
        names = [part.name for part in components(term, np.eye(len(term.columns)))]
        for name, entry in zip(names, structure(term).readable(term.columns), strict=True):
            kind = SD if entry.second is None else CORRELATION
            parameters.append((name, Parameter(kind, t, entry.column, entry.row)))
    if spec.response is not None:
        return parameters + [(name, Parameter(FURTHER, first=j)) for j, name in enumerate(more)]
    residuals = [(name, Parameter(RESIDUAL, first=j)) for j, name in enumerate(residual_names(spec))]
    return [*parameters, ("sigma", Parameter(SIGMA)), *residuals]


def parameter_values(spec, beta: np.ndarray, covariances: Sequence[np.ndarray], sigma, rho) -> np.ndarray:
    """The parameters (k, parameters) from beta (k, p), covariances (k, q, q) relative to sigma^2, sigma (k,) and rho.

    Those of the residuals are not among them, nor is sigma where their dispersion is counted from, but at zero.

    A correlation with a standard deviation of zero is NaN. Of a response with a family sigma is one, and not listed.
    """
    columns = [*beta.T]
    for term, covariance in zip(spec.terms, covariances, strict=True):
        of_term = structure(term)
        values = of_term.values(covariance)
        for entry, value in zip(of_term.readable(term.columns), values.T, strict=True):
            columns.append(sigma * value if entry.second is None else value)
    return np.column_stack([*columns, spec.sigma_at_zero(sigma, rho)] if spec.response is None else columns)


def values_at(spec, design: Design, theta, beta, sigma, rho=None, more=None) -> np.ndarray:
    """The parameters (k, parameters) in the order of `named_parameters`.

    At theta (k, m), beta (k, p), sigma (k,) and, where there are such, rho of the residuals, or with the values (k, u)
    of further predictors. A standard deviation that counts as zero is zero.
    """
    factors = factors_of_theta(design.layout.terms, settled(design, theta, rho))
    values = parameter_values(spec, beta, [factor @ np.swapaxes(factor, 1, 2) for factor in factors], sigma, rho)
    if more is not None:
        return np.hstack([values, more])
    return values if rho is None else np.hstack([values, residual_values(spec, rho)])


def all_names(fitted: Fitted) -> list[str]:
    """Names of all parameters of a fit, in the order of `named_parameters`."""
    return [name for name, _ in named_parameters(fitted.spec, further.parameter_names(fitted.model))]


def all_values(fitted: Fitted, theta, beta, sigma, rho, kappa) -> np.ndarray:
    """All parameters (k, parameters) of estimates (k, ...) of a fit's model."""
    more = None if fitted.family is None else further.parameter_values(fitted.model, kappa)
    return values_at(fitted.spec, fitted.design, theta, beta, sigma, rho, more)


def all_estimates(fitted: Fitted) -> np.ndarray:
    """All parameters (parameters,) of the fit itself."""
    fit = fitted.fit
    at = (np.asarray(part)[None] for part in (fit.theta, fit.beta, fit.sigma, fit.rho, fit.kappa))
    return all_values(fitted, *at)[0]


def var_corr(spec, fit) -> pd.DataFrame:
    """Variances, covariances, standard deviations and correlations: columns group, var1, var2, vcov, sdcor.

    A term's variances (var2 None) come before its covariances; the last row is the residual of a linear model.
    """
    rows = []
    for term in spec.terms:
        rows += sorted(components(term, fit.covariances[term.label]), key=lambda part: part.second is not None)
    rows += _residual(spec, fit)
    # Built column by column: None must stay None in columns of names, where pandas would make it NaN.
    names = {f: pd.Series([getattr(row, f) for row in rows], dtype=object) for f in ("group", "first", "second")}
    table = pd.DataFrame(names).rename(columns={"first": "var1", "second": "var2"})
    table["vcov"] = np.array([row.vcov for row in rows], FLOAT)
    table["sdcor"] = np.array([row.sdcor for row in rows], FLOAT)
    return noted(table)


def wald_intervals(fitted: Fitted, level: float) -> pd.DataFrame:
    """Normal confidence limits, lower and upper, of coefficients, parameters of the residuals, further predictors.

    Standard deviations and correlations of the random effects, and sigma, are listed with NaN.
    """
    spec, fit, half = fitted.spec, fitted.fit, tails.half_width(level)
    errors = half * np.sqrt(np.diag(fit.vcov_beta))
    others = [part.name for part in all_components(spec, fit)]
    last = parameter_limits(spec, fit, half)
    if fitted.family is not None:
        middle, error = further.parameter_values(fitted.model, fit.kappa[None])[0], further.parameter_errors(fitted)
        last = np.column_stack([middle - half * error, middle + half * error])
    beta = np.column_stack([fit.beta - errors, fit.beta + errors])
    values = np.vstack([beta, np.full((len(others), 2), np.nan), last])
    names = [*spec.exog_names, *others, *residual_names(spec), *further.parameter_names(fitted.model)]
    return noted(pd.DataFrame(values, index=names, columns=["lower", "upper"]))


def glance(fitted: Fitted) -> pd.DataFrame:
    """One row about the fit: nobs, sigma of a linear model, logLik, AIC, BIC, REMLcrit or deviance, df.residual.

    AIC and BIC count all parameters, and under REML use the restricted likelihood, as lme4 does: compare them only
    between models with the same fixed effects.
    """
    fit, nobs, n_params = fitted.fit, fitted.nobs, fitted.n_params
    criterion = "REMLcrit" if fitted.reml else "deviance"
    values = {
        "nobs": nobs,
        **({"sigma": fitted.sigma} if fitted.family is None else {}),
        "logLik": fit.log_likelihood,
        "AIC": fit.objective + 2 * n_params,
        "BIC": fit.objective + np.log(nobs) * n_params,
        criterion: fit.objective,
        "df.residual": nobs - n_params,
    }
    return noted(pd.DataFrame([values]))
