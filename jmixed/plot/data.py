"""What the pictures show, as data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jmixed import effects, gaussian, tables
from jmixed.errors import DataError, ModelError

if TYPE_CHECKING:
    from jmixed.results import MixedLMResults

GRID = 30
"""Points of a fitted line."""


def caterpillar_data(result: MixedLMResults, group=None, column=None, level: float = 0.95) -> pd.DataFrame:
    """What `caterpillar` shows: level, estimate, lower, upper, ordered by the estimate."""
    group, column = effect(result, group, column)
    modes = effects.modes(result._spec.terms, result._fit.b)
    covariances = result._level_covariances
    k = modes[group].columns.get_loc(column)
    half = gaussian.half_width(tables.level_of(level)) * np.sqrt(covariances[group][:, k, k])
    estimate = modes[group][column].to_numpy()
    columns = {group: modes[group].index, "estimate": estimate, "lower": estimate - half, "upper": estimate + half}
    return pd.DataFrame(columns).sort_values("estimate", ignore_index=True)


def residuals_data(result: MixedLMResults) -> pd.DataFrame:
    """What `residuals` shows: fitted and residual (over its standard deviation), one row for each row of the data."""
    table = result.augment()
    return pd.DataFrame({"fitted": table[".fitted"], "residual": table[".std.resid"]})


def qq_data(result: MixedLMResults, group=None, column=None) -> pd.DataFrame:
    """What `qq` shows: normal and sample quantiles.

    A conditional mode is divided by the standard deviation that it has under the model, so that groups of different
    sizes are comparable and the line of equality is where they belong.
    """
    if group is None:
        sample = residuals_data(result)["residual"].to_numpy()
    else:
        group, column = effect(result, group, column)
        sample = _standardised_modes(result, group, column)
    sample = np.sort(sample[np.isfinite(sample)])
    if not len(sample):
        raise DataError(f"qq: the estimated variance of {column} by {group} is zero; it has no quantiles")
    from scipy.special import ndtri

    normal = ndtri((np.arange(len(sample)) + 0.5) / len(sample))
    return pd.DataFrame({"normal": normal, "sample": sample})


def _standardised_modes(result, group, column):
    """Modes over their standard deviations: Var b^ = Sigma - Var(b^ - b)."""
    spec, joint = result._spec, result._joint
    members = effects.by_factor(spec.terms)[group]
    names = effects.factor_columns([spec.terms[t] for t in members])
    t, k = [(t, k) for t in members for k in range(len(spec.terms[t].columns))][names.index(column)]
    levels = len(spec.terms[t].levels)
    codes = [np.full(levels, -1, np.int32) for _ in spec.terms]
    columns = [np.zeros((levels, len(term.columns))) for term in spec.terms]
    codes[t] = np.arange(levels, dtype=np.int32)
    columns[t][:, k] = 1
    error = joint.variances(np.zeros((levels, spec.X.shape[1])), joint.rows(codes, columns))
    variance = result._fit.covariances[spec.terms[t].label][k, k] - error
    floor = 1e-12 * max(result.scale, 1e-300)
    return result._fit.b[spec.terms[t].label][:, k] / np.sqrt(np.where(variance > floor, variance, np.nan))


def profile_data(profile, parameter: str | None = None) -> pd.DataFrame:
    """What `profile` shows: parameter, value, zeta of one parameter, ordered by value."""
    table = getattr(profile, "table", profile)
    parameter = known(parameter, list(dict.fromkeys(table["parameter"])), "parameter")
    own = table.loc[table["parameter"] == parameter, ["parameter", "value", "zeta"]]
    return own.dropna().sort_values("value", ignore_index=True)


def bootstrap_data(replicates, parameter: str | None = None) -> pd.DataFrame:
    """What `bootstrap` shows: value and density, a Gaussian kernel estimate with Scott's bandwidth."""
    values = replicates_of(replicates, parameter)
    low, high = values.min(), values.max()
    if not high > low:
        raise DataError(f"bootstrap: all replicates of {values.name!r} are {low:g}; there is no density to draw")
    from scipy.stats import gaussian_kde

    margin = 0.1 * (high - low)
    # A standard deviation has no density below zero.
    x = np.linspace(max(low - margin, 0) if low >= 0 else low - margin, high + margin, 200)
    return pd.DataFrame({"value": x, "density": gaussian_kde(values)(x)})


def replicates_of(replicates, parameter):
    table = replicates
    if hasattr(replicates, "replicates"):
        table = replicates.replicates[np.asarray(replicates.converged, bool)]
    return table[known(parameter, list(table.columns), "parameter")].dropna()


def fitted_data(result: MixedLMResults, x: str | None = None, group=None, levels=None) -> pd.DataFrame:
    """What `fitted` draws: the group's level, x, and fitted, along a grid of x within the range of each group.

    Other numeric predictors are held at the group's mean, everything else is as in the group's first row. The last
    rows, without a level, are the fixed effects along the whole range.
    """
    x, spec, frame = predictor(result, x), result._spec, _frame(result._spec)
    group = known(group, list(effects.by_factor(spec.terms)), "grouping factor")
    term = next(term for term in spec.terms if term.group == group)
    names = term.levels.tolist()
    places = range(len(names)) if levels is None else [names.index(known(one, names, "level")) for one in levels]
    held = [name for name in _numeric_predictors(spec) if name != x]
    grids = [_grid(frame[term.codes == place], x, held) for place in places]
    grid = pd.concat([*grids, _grid(frame, x, held)], ignore_index=True)
    lines = result.predict(grid.iloc[:-GRID], random_effects=True)
    values = np.concatenate([lines, result.predict(grid.iloc[-GRID:])])
    labels = [names[place] for place in places for _ in range(GRID)] + [None] * GRID
    return pd.DataFrame({group: pd.Series(labels, dtype=object), x: grid[x], "fitted": values})


def _grid(rows, x, held):
    """The first row again and again, with `x` from its least to its greatest value and the others at their mean."""
    grid = rows.iloc[np.zeros(GRID, int)].reset_index(drop=True)
    return grid.assign(**rows[held].mean(), **{x: np.linspace(rows[x].min(), rows[x].max(), GRID)})


def _frame(spec) -> pd.DataFrame:
    if spec.recipe is None or spec.frame is None:
        raise DataError("fitted lines need a model stated by a formula, with the rows of its data frame")
    return spec.frame


def _numeric_predictors(spec):
    frame = _frame(spec)
    names = spec.recipe.columns([part for part in spec.recipe.specs if part != "lhs"])
    # A grouping factor of numbers is no predictor.
    sources = {name for term in spec.terms for name in term.rebuild.factor.sources}
    return [name for name in names if pd.api.types.is_numeric_dtype(frame[name]) and name not in sources]


def predictor(result, x):
    names = _numeric_predictors(result._spec)
    if x is None and not names:
        raise DataError("fitted lines need a numeric predictor, and this model has none")
    return known(x, names, "numeric predictor")


def effect(result, group, column):
    """Names of a grouping factor and of one of its columns, by default the first."""
    terms = result._spec.terms
    by_factor = effects.by_factor(terms)
    group = known(group, list(by_factor), "grouping factor")
    return group, known(column, effects.factor_columns([terms[t] for t in by_factor[group]]), f"column of {group!r}")


def known(name, names, what):
    """A name that is among those there are; the first if none was given."""
    if name is None:
        return names[0]
    if name not in names:
        shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise ModelError(f"{name!r} is not a {what} of this model; use one of {shown}")
    return name
