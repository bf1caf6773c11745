"""The further predictors of a family of responses: their coefficients by name, and on the scales that people read."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jmixed.families.family import DISPERSION, INFLATION, Family
from jmixed.inference import tails
from jmixed.reports.fitted import Fitted
from jmixed.reports.printed import noted

SHORT = {DISPERSION: "disp", INFLATION: "zi"}
"""What stands before their columns in the names of parameters, as in broom.mixed."""
HEADINGS = {DISPERSION: "Dispersion (log)", INFLATION: "Zero inflation (logit)", "df": "Degrees of freedom (log)"}
"""What stands above them in a table."""


class FurtherPart(NamedTuple):
    """The coefficients of one further predictor: its name, its columns, and where they stand in kappa."""

    name: str
    columns: tuple[str, ...]
    places: slice


def parts(model: Any) -> list[FurtherPart]:
    """The further predictors of a model, in the order of kappa."""
    out, start = [], 0
    for name, columns in model.further.items():
        out.append(FurtherPart(name, columns, slice(start, start + len(columns))))
        start += len(columns)
    return out


def has_thresholds(family: Family) -> bool:
    """Whether the further predictors are thresholds between categories, stated as a first one and distances."""
    return family.response == "categories" and hasattr(family, "thresholds")


def threshold_names(model: Any) -> list[str]:
    """``a|b`` for the threshold between the categories a and b."""
    labels = model.spec.response.categories
    return [f"{low}|{high}" for low, high in zip(labels[:-1], labels[1:], strict=True)]


def parameter_names(model: Any) -> list[str]:
    """Names of the coefficients: ``disp_COLUMN``, ``zi_COLUMN``, thresholds ``a|b``."""
    if getattr(model, "family", None) is None:
        return []
    if has_thresholds(model.family):
        return threshold_names(model)
    of_parts = [(SHORT.get(part.name, part.name), part.columns) for part in parts(model)]
    return [f"{short}_{column}" for short, columns in of_parts for column in columns]


def parameter_values(model: Any, kappa: np.ndarray) -> np.ndarray:
    """The parameters (n, k) by which people know kappa (n, k): thresholds themselves, not their distances."""
    if not has_thresholds(model.family):
        return kappa
    return np.cumsum(np.hstack([kappa[:, :1], np.exp(kappa[:, 1:])]), axis=1)


def parameter_slopes(model: Any, kappa: np.ndarray) -> np.ndarray:
    """Derivatives (k, k) of `parameter_values` in kappa (k,)."""
    if not has_thresholds(model.family):
        return np.eye(len(kappa))
    return np.tril(np.ones((len(kappa), len(kappa)))) * np.append(1.0, np.exp(kappa[1:]))[None]


def parameter_errors(fitted: Fitted) -> np.ndarray:
    """Standard errors (k,) of `parameter_values` at the fit, by the delta method."""
    slopes = parameter_slopes(fitted.model, fitted.fit.kappa)
    return tails.standard_errors(np.diag(slopes @ fitted.fit.vcov_kappa @ slopes.T))


def table(fitted: Fitted) -> pd.DataFrame:
    """Coefficients of the further predictors: index (predictor, column), columns estimate, se, z, p."""
    estimate, error = _estimates(fitted), parameter_errors(fitted)
    if has_thresholds(fitted.own_family):
        index = [("threshold", name) for name in threshold_names(fitted.model)]
    else:
        index = [(part.name, column) for part in parts(fitted.model) for column in part.columns]
    z = tails.statistics(estimate, error)
    columns = {"estimate": estimate, "se": error, "z": z, "p": tails.two_sided(z)}
    return noted(pd.DataFrame(columns, pd.MultiIndex.from_tuples(index, names=["predictor", "column"])))


def _estimates(fitted: Fitted) -> np.ndarray:
    return parameter_values(fitted.model, fitted.fit.kappa[None])[0]


def of_predictor(fitted: Fitted, name: str) -> pd.Series:
    """The coefficients of one further predictor by column; empty where the family has not got it."""
    for part in parts(fitted.model):
        if part.name == name:
            return pd.Series(fitted.fit.kappa[part.places], list(part.columns), name=name)
    return pd.Series(np.zeros(0), pd.Index([], dtype=object), name=name)


def constant_dispersion(fitted: Fitted) -> float | None:
    """The dispersion itself where it is the same in all rows; None where it is not, or there is none."""
    coefficients = of_predictor(fitted, DISPERSION)
    if list(coefficients.index) != ["Intercept"]:
        return None
    return float(np.exp(coefficients["Intercept"]))


def thresholds(fitted: Fitted) -> pd.Series:
    """The thresholds between categories, by ``a|b``."""
    return pd.Series(_estimates(fitted), threshold_names(fitted.model), name="threshold")


def headed(fitted: Fitted) -> list[tuple[str, list[str], np.ndarray, np.ndarray]]:
    """For every table of further predictors its heading, the names of its rows, estimates and standard errors."""
    estimate, error = _estimates(fitted), parameter_errors(fitted)
    if has_thresholds(fitted.own_family):
        return [("Thresholds", threshold_names(fitted.model), estimate, error)]
    return [
        (
            HEADINGS.get(part.name, f"Predictor {part.name}"),
            list(part.columns),
            estimate[part.places],
            error[part.places],
        )
        for part in parts(fitted.model)
    ]


def columns_of(fitted: Fitted, count: int, named: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Columns (k, d) of each further predictor for so many rows: those named, else ones.

    What a formula states and nobody asked for is ones, too: it is not looked at.
    """
    return tuple(named.get(part.name, np.ones((count, len(part.columns)))) for part in parts(fitted.model))


def predictors(fitted: Fitted, count: int, columns: tuple[np.ndarray, ...]) -> np.ndarray:
    """The further predictors (u, k) of so many rows, of weight one, with these columns."""
    values = np.zeros((len(columns), count))
    for u, (of_rows, part) in enumerate(zip(columns, parts(fitted.model), strict=True)):
        values[u] = of_rows @ fitted.fit.kappa[part.places]
    return values
