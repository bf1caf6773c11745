"""Estimates as rows, with the column names of broom.mixed."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from jmixed.errors import ModelError
from jmixed.inference import tails
from jmixed.reports import further
from jmixed.reports.components import all_components
from jmixed.reports.effects import modes
from jmixed.reports.fitted import Fitted
from jmixed.reports.printed import noted
from jmixed.reports.residuals import parameter_errors, parameter_limits
from jmixed.reports.residuals import parameter_names as residual_names
from jmixed.reports.residuals import parameter_values as residual_values
from jmixed.reports.tests import tests_of_coefficients, usual_ddf
from jmixed.runtime.precision import FLOAT

RATIOS = {"logit": "odds", "log": "means", "cloglog": "hazards"}
"""Links of which exponentials of coefficients are ratios, and what of."""


def tidy(
    fitted: Fitted, effects: str | Collection[str], conf_int: bool, conf_level: float, ddf: str | None
) -> pd.DataFrame:
    """Estimates as rows, with the column names of broom.mixed."""
    level, spec, fit = float(conf_level) if conf_int else None, fitted.spec, fitted.fit
    parts = []
    for effect in [effects] if isinstance(effects, str) else effects:
        if effect == "fixed":
            parts.append(tidy_fixed(fitted, level, ddf))
        elif effect == "ran_pars":
            parts.append(tidy_ran_pars(spec, fit, level))
        elif effect == "ran_vals":
            parts.append(tidy_ran_vals(modes(spec.terms, fit.b), fitted.level_covariances, level))
        else:
            raise ModelError(f"tidy: effects={effect!r}; use 'fixed', 'ran_pars', 'ran_vals' or a list of these")
    table = parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)
    return noted(table if "component" not in table else table.assign(component=table["component"].fillna("cond")))


def ratios_of(fitted: Fitted) -> str | None:
    """What exponentials of the coefficients are ratios of; None where they are none."""
    return None if fitted.family is None else RATIOS.get(fitted.own_family.link)


def exponentials(estimates: ArrayLike) -> np.ndarray:
    """Coefficients as ratios; of what no number holds, infinity."""
    with np.errstate(over="ignore"):
        return np.exp(np.asarray(estimates, FLOAT))


def exponentiated(table: pd.DataFrame, fitted: Fitted) -> pd.DataFrame:
    """A tidy table with the coefficients of the response as ratios; standard errors are those by the delta method."""
    if ratios_of(fitted) is None:
        raise ModelError(
            f"tidy: exponentiate=True makes ratios of the coefficients of the links {', '.join(RATIOS)}, and this link "
            f"is {fitted.own_family.link!r}; of others see emmeans(kind='response')"
        )
    there = table["effect"] == "fixed"
    for told in {"component", "coef.type"} & set(table):
        there &= table[told].isin(["cond", "location"])
    out = table.copy()
    if "std.error" in table:
        errors = table["std.error"] * exponentials(table["estimate"])
        out["std.error"] = table["std.error"].where(~there, errors)
    for name in {"estimate", "conf.low", "conf.high"} & set(table):
        out[name] = table[name].where(~there, exponentials(table[name]))
    return noted(out)


def tidy_fixed(fitted: Fitted, level: float | None, ddf: str | None) -> pd.DataFrame:
    """The coefficients: effect, term, estimate, std.error, statistic, p.value, with limits if a level is given.

    Of a linear model there are degrees of freedom beside them.

    Those of further predictors follow, told by the column component, and of categories the thresholds, by coef.type.
    """
    spec, fit = fitted.spec, fitted.fit
    error, df = tests_of_coefficients(fitted, usual_ddf(fitted, ddf))
    df = np.full(len(error), np.inf) if df is None else df
    table = pd.DataFrame({"effect": "fixed", "term": list(spec.exog_names), "estimate": fit.beta, "std.error": error})
    if fitted.family is None:
        return _with_limits(_with_tests(table.assign(df=df)), level)
    more = [table]
    of_categories = further.has_thresholds(fitted.own_family)
    word = "coef.type" if of_categories else "component"
    for name, (_, names, values, errors) in zip(_components(fitted), further.headed(fitted), strict=True):
        columns = {"effect": "fixed", word: name, "term": names, "estimate": values, "std.error": errors}
        more.append(pd.DataFrame(columns))
    if len(more) > 1:
        table.insert(1, word, "location" if of_categories else "cond")
    table = pd.concat(more, ignore_index=True)
    return _with_limits(_with_tests(table), level)


def _components(fitted: Fitted) -> list[str]:
    """What tidy tables call the further predictors."""
    if further.has_thresholds(fitted.own_family):
        return ["intercept"]
    return [further.SHORT.get(part.name, part.name) for part in further.parts(fitted.model)]


def tidy_ran_pars(spec, fit, level: float | None) -> pd.DataFrame:
    """Standard deviations and correlations: effect, group, term (``sd__A``, ``cor__A.B``), estimate.

    Parameters of the residuals have standard errors, and limits as in `wald_intervals`.
    """
    rows = []
    for part in all_components(spec, fit):
        term = f"sd__{part.first or 'Observation'}" if part.second is None else f"cor__{part.first}.{part.second}"
        rows.append(("ran_pars", part.group, term, part.sdcor))
    table = pd.DataFrame(rows, columns=["effect", "group", "term", "estimate"])
    if spec.residual is not None:
        names, values = residual_names(spec), residual_values(spec, fit.rho[None])[0]
        terms = [name.partition("|")[0].replace("_", "__", 1) for name in names]
        more = {"effect": "ran_pars", "group": "Residual", "term": terms, "estimate": values}
        more = pd.DataFrame(more | {"std.error": parameter_errors(spec, fit)})
        table = pd.concat([table.assign(**{"std.error": np.nan}), more], ignore_index=True)
    if level is None:
        return table
    known = parameter_limits(spec, fit, tails.half_width(level))
    limits = np.vstack([np.full((len(table) - len(known), 2), np.nan), known])
    return table.assign(**{"conf.low": limits[:, 0], "conf.high": limits[:, 1]})


def tidy_ran_vals(modes, covariances, level: float | None) -> pd.DataFrame:
    """Conditional modes: effect, group, level, term, estimate, std.error.

    Parameters
    ----------
    modes : dict of DataFrames (levels x columns), by group
    covariances : dict of arrays (levels, q, q), by group
    """
    tables = [pd.DataFrame(columns=["effect", "group", "level", "term", "estimate", "std.error"])]
    for group, frame in modes.items():
        error = np.sqrt(np.diagonal(covariances[group], axis1=1, axis2=2))
        for k, column in enumerate(frame.columns):
            values = {"level": frame.index, "term": column, "estimate": frame[column].array, "std.error": error[:, k]}
            tables.append(pd.DataFrame({"effect": "ran_vals", "group": group, **values}))
    return _with_limits(pd.concat(tables[1:] or tables, ignore_index=True), level)


def _with_tests(table: pd.DataFrame) -> pd.DataFrame:
    """A table with statistic, df if it is there, and p.value, in the order of broom.mixed."""
    df = table.pop("df") if "df" in table else None
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = (table["estimate"] / table["std.error"]).to_numpy(FLOAT)
    p = tails.p_of_t(statistic, np.full(len(table), np.inf) if df is None else df.to_numpy(FLOAT))
    return table.assign(statistic=statistic, **({} if df is None else {"df": df}), **{"p.value": p})


def _with_limits(table: pd.DataFrame, level: float | None) -> pd.DataFrame:
    """A table with limits, of the t distribution where there are degrees of freedom."""
    if level is None:
        return table
    df = table["df"].to_numpy(FLOAT) if "df" in table else np.full(len(table), np.inf)
    half = tails.t_reach((1 - level) / 2, df) * table["std.error"]
    return table.assign(**{"conf.low": table["estimate"] - half, "conf.high": table["estimate"] + half})
