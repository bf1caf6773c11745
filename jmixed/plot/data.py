"""What the pictures show, as data frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jmixed import effects, gaussian, tables
from jmixed.arguments import checked
from jmixed.design.expressions import names_in
from jmixed.design.materialise import known_factors
from jmixed.errors import DataError, ModelError

if TYPE_CHECKING:
    from jmixed.results import MixedLMResults

GRID = 30
"""Points of a fitted line."""


@checked
def caterpillar_data(result: MixedLMResults, group=None, column=None, level: float = 0.95) -> pd.DataFrame:
    """What `caterpillar` shows: the conditional modes of one column, ordered by their size.

    Parameters
    ----------
    result : MixedLMResults
    group, column : str, optional
        Grouping factor and column of the random effects, by default the first.
    level : float
        Coverage of the intervals, normal, given the parameters.

    Returns
    -------
    DataFrame
        A row for each level: the level (named by the group), estimate, lower, upper.

    Raises
    ------
    ModelError
        For an unknown factor or column.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.caterpillar_data(result, column="Days").round(1).head(2)
      Subject  estimate  lower  upper
    0     335     -10.8  -15.3   -6.2
    1     309      -8.6  -13.1   -4.1
    """
    group, column = effect(result, group, column)
    modes = effects.modes(result._spec.terms, result._fit.b)
    covariances = result._level_covariances
    k = modes[group].columns.get_loc(column)
    half = gaussian.half_width(tables.level_of(level)) * np.sqrt(covariances[group][:, k, k])
    estimate = modes[group][column].to_numpy()
    columns = {group: modes[group].index, "estimate": estimate, "lower": estimate - half, "upper": estimate + half}
    return pd.DataFrame(columns).sort_values("estimate", ignore_index=True)


@checked
def residuals_data(result: MixedLMResults) -> pd.DataFrame:
    """What `residuals` shows: fitted values and residuals, one row for each row of the data.

    Parameters
    ----------
    result : MixedLMResults

    Returns
    -------
    DataFrame
        Columns fitted (in the unit of the response) and residual (over its standard deviation).

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.residuals_data(result).round(2).head(2)
       fitted  residual
    0  253.66     -0.18
    1  273.33     -0.63
    """
    table = result.augment()
    return pd.DataFrame({"fitted": table[".fitted"], "residual": table[".std.resid"]})


@checked
def qq_data(result: MixedLMResults, group=None, column=None) -> pd.DataFrame:
    """What `qq` shows: normal and sample quantiles.

    A conditional mode is divided by the standard deviation that it has under the model, so that groups of different
    sizes are comparable and the line of equality is where they belong.

    Parameters
    ----------
    result : MixedLMResults
    group : str, optional
        A grouping factor; by default the standardised residuals are shown.
    column : str, optional
        Column of the random effects, by default the first.

    Returns
    -------
    DataFrame
        Columns normal and sample, both ascending.

    Raises
    ------
    DataError
        When the estimated variance of the random effect is zero.
    ModelError
        For an unknown factor or column.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.qq_data(result, group="Subject").round(2).tail(1)
        normal  sample
    17    1.91    1.66
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


@checked
def profile_data(profile, parameter: str | None = None) -> pd.DataFrame:
    """What `profile` shows: the profile of one parameter.

    Parameters
    ----------
    profile : Profile, or DataFrame with the columns parameter, value, zeta
        As ``result.profile()`` gives it.
    parameter : str, optional
        By default the first.

    Returns
    -------
    DataFrame
        Columns parameter, value and zeta (signed root of the increase in deviance), ordered by value.

    Raises
    ------
    ModelError
        For a parameter that was not profiled.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.profile_data(result.profile("sigma")).round(2).iloc[0].tolist()
    ['sigma', np.float64(22.15), np.float64(-2.58)]
    """
    table = getattr(profile, "table", profile)
    parameter = known(parameter, list(dict.fromkeys(table["parameter"])), "parameter")
    own = table.loc[table["parameter"] == parameter, ["parameter", "value", "zeta"]]
    return own.dropna().sort_values("value", ignore_index=True)


@checked
def bootstrap_data(replicates, parameter: str | None = None) -> pd.DataFrame:
    """What `bootstrap` shows: a Gaussian kernel estimate with Scott's bandwidth.

    Parameters
    ----------
    replicates : Bootstrap, or DataFrame with a column for each parameter
        Of a `Bootstrap` those that converged are shown.
    parameter : str, optional
        By default the first.

    Returns
    -------
    DataFrame
        Columns value and density, 200 rows.

    Raises
    ------
    DataError
        When all replicates are the same.
    ModelError
        For an unknown parameter.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.bootstrap_data(result.bootstrap(200, key=1), "Days").shape
    (200, 2)
    """
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


@checked
def fitted_data(result: MixedLMResults, x: str | None = None, group=None, levels=None) -> pd.DataFrame:
    """What `fitted` draws: the line of each group, and last that of the fixed effects.

    Other numeric predictors are held at the group's mean, everything else is as in the group's first row. The last
    rows, without a level, are the fixed effects along the whole range.

    Parameters
    ----------
    result : MixedLMResults
        Of a model stated by a formula.
    x : str, optional
        A numeric predictor, by default the first.
    group : str, optional
        Grouping factor, by default the first.
    levels : list, optional
        Levels to show, by default all.

    Returns
    -------
    DataFrame
        The group's level, x, and fitted, along a grid of x within the range of each group.

    Raises
    ------
    DataError
        Without a formula, its data, or a numeric predictor.
    ModelError
        For an unknown predictor, factor or level.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.fitted_data(result, levels=["308"]).round(1).iloc[[0, 29, 30]]
       Subject  Days  fitted
    0      308   0.0   253.7
    29     308   9.0   430.7
    30    None   0.0   251.4
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
    # A grouping factor of numbers is no predictor, and categories that are numbers, C(dose), have none between them.
    others = {name for term in spec.terms for name in term.rebuild.factor.sources} | _categorical(spec.recipe)
    numeric = {name for name in names if pd.api.types.is_numeric_dtype(frame[name]) and frame[name].dtype != bool}
    return [name for name in names if name in numeric - others]


def _categorical(recipe) -> set[str]:
    """The columns of the data that are used as categories."""
    kinds = [pair for spec in recipe.specs.values() for pair in known_factors(spec).items()]
    factors = [factor for factor, (kind, _) in kinds if kind == "categorical"]
    return {recipe.aliases.get(name, name) for one in factors for name, _ in names_in(one, one.expr)}


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
        raise ModelError(
            f"{name!r} is not a {what} of this model; " + (f"use one of {shown}" if names else "it has none")
        )
    return name
