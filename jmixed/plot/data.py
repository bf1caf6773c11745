"""What the pictures show, as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.evaluate import known_factors
from jmixed.formulas.marks import names_in
from jmixed.inference import tails
from jmixed.inference.variance_explained import known_variances
from jmixed.reports import effects
from jmixed.runtime.arguments import checked
from jmixed.runtime.precision import FLOAT

if TYPE_CHECKING:
    from jmixed.reports.bootstrap import Bootstrap
    from jmixed.reports.intervals import Profile
    from jmixed.results import MixedLMResults

GRID = 30
"""Points of a fitted line."""
STRATA = 12
"""Levels that can have a line each."""
PREDICTED = 2**18
"""Rows that are predicted at a time."""


@checked
def caterpillar_data(
    result: MixedLMResults, group: str | None = None, column: str | None = None, level: float = 0.95
) -> pd.DataFrame:
    """What `caterpillar` shows: the conditional modes of one column, ordered by their size.

    A row for each level: columns the level (named by the group), estimate, lower, upper. Arguments as of `caterpillar`:
    `group`, `column`, and `level`, the coverage. Raises `ModelError` for an unknown factor or column.
    """
    group, column = effect(result, group, column)
    modes = effects.modes(result.fitted.spec.terms, result.fitted.fit.b)
    covariances = result.fitted.level_covariances
    k = modes[group].columns.get_loc(column)
    half = tails.half_width(level) * np.sqrt(covariances[group][:, k, k])
    estimate = modes[group][column].to_numpy()
    columns = {group: modes[group].index, "estimate": estimate, "lower": estimate - half, "upper": estimate + half}
    return pd.DataFrame(columns).sort_values("estimate", ignore_index=True)


@checked
def residuals_data(result: MixedLMResults) -> pd.DataFrame:
    """What `residuals` shows: columns fitted (in the unit of the response), residual (over its standard deviation)."""
    table = result.augment()
    return pd.DataFrame({"fitted": table[".fitted"], "residual": table[".std.resid"]})


@checked
def qq_data(result: MixedLMResults, group: str | None = None, column: str | None = None) -> pd.DataFrame:
    """What `qq` shows: columns normal and sample, quantiles, both ascending.

    A conditional mode is divided by the standard deviation that it has under the model, so that groups of different
    sizes are comparable and the line of equality is where they belong. Arguments as of `qq`: `group` and `column`.

    Raises
    ------
    DataError
        When the estimated variance of the random effect is zero.
    ModelError
        For an unknown factor or column.
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
    """Modes over their standard deviations: Var b^ = Var b - Var(b^ - b)."""
    spec, joint = result.fitted.spec, result.fitted.joint
    members = effects.by_factor(spec.terms)[group]
    names = effects.factor_columns([spec.terms[t] for t in members])
    t, k = [(t, k) for t in members for k in range(len(spec.terms[t].columns))][names.index(column)]
    levels = len(spec.terms[t].levels)
    codes = [np.full(levels, -1, np.int32) for _ in spec.terms]
    columns = [np.zeros((levels, len(term.columns))) for term in spec.terms]
    codes[t] = np.arange(levels, dtype=np.int32)
    columns[t][:, k] = 1
    error = joint.variances(np.zeros((levels, spec.X.shape[1])), joint.rows(codes, columns, levels))
    known = known_variances(spec.terms[t])
    variance = result.fitted.fit.covariances[spec.terms[t].label][k, k] * (1.0 if known is None else known) - error
    floor = 1e-12 * max(result.scale, 1e-300)
    return result.fitted.fit.b[spec.terms[t].label][:, k] / np.sqrt(np.where(variance > floor, variance, np.nan))


@checked
def profile_data(profile: Profile | pd.DataFrame, parameter: str | None = None) -> pd.DataFrame:
    """What `profile` shows: columns parameter, value and zeta (signed root of the increase in deviance), by value.

    Arguments as of `profile`: `profile` and `parameter`. Raises `ModelError` for a parameter that was not profiled.
    """
    table: Any = getattr(profile, "table", profile)
    parameter = known(parameter, list(dict.fromkeys(table["parameter"])), "parameter")
    selected = table.loc[table["parameter"] == parameter, ["parameter", "value", "zeta"]]
    return selected.dropna().sort_values("value", ignore_index=True)


@checked
def bootstrap_data(replicates: Bootstrap | pd.DataFrame, parameter: str | None = None) -> pd.DataFrame:
    """What `bootstrap` shows: columns value and density (200 rows), a Gaussian kernel estimate with Scott's bandwidth.

    Arguments as of `bootstrap`: `replicates` and `parameter`.

    Raises
    ------
    DataError
        When all replicates are the same.
    ModelError
        For an unknown parameter.
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


def replicates_of(replicates: Any, parameter: str | None) -> Any:
    """The replicates of one parameter, a Series: of a `Bootstrap` those that converged."""
    table = replicates
    if hasattr(replicates, "replicates"):
        table = replicates.replicates[np.asarray(replicates.converged, bool)]
    return table[known(parameter, list(table.columns), "parameter")].dropna()


@checked
def fitted_data(
    result: MixedLMResults,
    x: str | None = None,
    group: str | None = None,
    levels: Sequence | None = None,
    by: str | None = None,
) -> pd.DataFrame:
    """What `fitted` draws: the line of each group, and last that of the fixed effects.

    A point of a line is the mean of the predictions for all rows that the line stands for, with `x` at the point and
    everything else as it is in each row: for a group its own rows, for the fixed effects the rows of all data. No
    category of another predictor stands for the others, and the order of the rows does not matter.

    Columns: the group's level, x, the level of `by` if it is given, and fitted, along a grid of x within the range of
    each group, or at the categories that it has. The last rows, whose group has no level, are the fixed effects along
    the whole range. With `by`, lines of a group are means over the rows that have the level; those of the fixed effects
    over all rows as if they had it, if it is a predictor. Arguments as of `fitted`: `x`, `group`, `levels`, `by`.

    Raises
    ------
    DataError
        Without a formula, its data, or a predictor.
    ModelError
        For an unknown predictor, factor or level, and a `by` of too many levels, or that is `x`.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.fitted_data(result, levels=["308"]).round(1).iloc[[0, 29, 30]]
       Subject  Days  fitted
    0      308   0.0   253.7
    29     308   9.0   430.7
    30    None   0.0   251.4
    """
    x, spec, frame = predictor(result, x), result.fitted.spec, _frame(result.fitted.spec)
    group = known(group, list(effects.by_factor(spec.terms)), "grouping factor")
    term = next(term for term in spec.terms if term.group == group)
    names = term.levels.tolist()
    shown = names if levels is None else list(dict.fromkeys(known(level, names, "level") for level in levels))
    if by == x:
        raise ModelError(f"by={by!r} is the predictor along the axis; name another column")
    stratum, strata = strata_of(frame, by)
    place = pd.Index([names.index(level) for level in shown]).get_indexer(term.codes)
    rows = place >= 0
    keys, lines = pd.factorize(place[rows] * len(strata) + stratum[rows], sort=True)
    of_groups = _lines(result, frame[rows], x, keys, len(lines), True) if rows.any() else []
    if by in _predictors(spec):
        # Whatever else differs between the rows of two levels is no difference between their lines.
        versions = [frame.assign(**{by: same(frame[by], int(np.argmax(stratum == k)))}) for k in range(len(strata))]
        whole = [_lines(result, version, x, np.zeros(len(frame), int), 1, False)[0] for version in versions]
    else:
        whole = _lines(result, frame, x, stratum, len(strata), False)
    labels = [(shown[line // len(strata)], strata[line % len(strata)]) for line in lines]
    pieces = []
    labels += [(None, which) for which in strata]
    for (level, which), (at, values) in zip(labels, [*of_groups, *whole], strict=True):
        columns = {group: pd.Series([level] * len(values), dtype=object), x: at}
        columns |= {by: pd.Series([which] * len(values), dtype=object)} if by is not None else {}
        pieces.append(pd.DataFrame({**columns, "fitted": values}))
    return pd.concat(pieces, ignore_index=True)


def strata_of(frame: pd.DataFrame, by: str | None) -> tuple[np.ndarray, list]:
    """Which of the lines asked for each row belongs to, and their labels."""
    if by is None:
        return np.zeros(len(frame), int), [None]
    column = frame[known(by, list(frame.columns), "column")]
    codes, labels = pd.factorize(column, sort=True)
    if len(labels) > STRATA or (codes < 0).any():
        raise ModelError(
            f"by={by!r} has {len(labels)} different values{' and missing ones' if (codes < 0).any() else ''}: "
            f"a line is drawn for each of at most {STRATA} levels. Cut numbers into classes first, with pandas.cut"
        )
    return codes, labels.tolist()


def same(column: Any, place: int) -> pd.Series:
    """A column that has in every row what it has at one place, whatever type that is."""
    return column.take(np.full(len(column), place)).set_axis(column.index)


def _lines(result, frame, x, key, count, random_effects) -> list[tuple[Any, np.ndarray]]:
    """For each of `count` sets of rows, by `key`, the points of x and the means of the predictions there."""
    column, n = frame[x], len(frame)
    size = np.bincount(key, minlength=count)
    if is_category(result.fitted.spec, x):
        codes, categories = pd.factorize(column, sort=True)
        versions = [same(column, int(np.argmax(codes == k))) for k in range(len(categories))]
        there = np.zeros((len(categories), count), bool)
        there[codes, key] = True
        points = [categories[there[:, k]] for k in range(count)]
    else:
        values = column.to_numpy(dtype=FLOAT)
        low, high = np.full(count, np.inf), np.full(count, -np.inf)
        np.minimum.at(low, key, values if random_effects else values.min())
        np.maximum.at(high, key, values if random_effects else values.max())
        grid = np.linspace(low, high, GRID)
        versions = [at[key] for at in grid]
        there = np.ones((GRID, count), bool)
        points = list(grid.T)
    means, together = [], max(1, PREDICTED // max(n, 1))
    for start in range(0, len(versions), together):
        block = [frame.assign(**{x: version}) for version in versions[start : start + together]]
        predicted = result.predict(pd.concat(block, ignore_index=True), random_effects=random_effects)
        for part in np.asarray(predicted).reshape(len(block), n):
            means.append(np.bincount(key, part, minlength=count) / np.maximum(size, 1))
    table = np.array(means)
    return [(at, table[there[:, k], k]) for k, at in enumerate(points)]


def _frame(spec) -> pd.DataFrame:
    if spec.recipe is None or spec.frame is None:
        raise DataError("fitted lines need a model stated by a formula, with the rows of its data frame")
    return spec.frame


def _predictors(spec) -> list[str]:
    """The columns of the data that the model predicts from, numbers first."""
    _frame(spec)
    names = spec.recipe.columns([part for part in spec.recipe.specs if part != "lhs"])
    # A grouping factor is no predictor.
    factors = {name for term in spec.terms for name in term.rebuild.factor.sources}
    return sorted((name for name in names if name not in factors), key=lambda name: is_category(spec, name))


def is_category(spec, name: str) -> bool:
    """Whether a predictor has categories: words, truth values, or numbers used as such, C(dose), with none between."""
    column = spec.frame[name]
    number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return not number or name in _categorical(spec.recipe)


def _categorical(recipe) -> set[str]:
    """The columns of the data that are used as categories."""
    kinds = [pair for spec in recipe.specs.values() for pair in known_factors(spec).items()]
    factors = [factor for factor, (kind, _) in kinds if kind == "categorical"]
    return {recipe.aliases.get(name, name) for factor in factors for name, _ in names_in(factor, factor.expr)}


def predictor(result, x):
    names = _predictors(result.fitted.spec)
    if x is None and not names:
        raise DataError("fitted lines need a numeric predictor or a category, and this model has none")
    return known(x, names, "predictor")


def others(result, x: str, by: str | None) -> list[str]:
    """The predictors that a fitted line averages over."""
    spec = result.fitted.spec
    return [name for name in _predictors(spec) if name not in (x, by) and spec.frame[name].nunique() > 1]


def effect(result, group, column):
    """Names of a grouping factor and of one of its columns, by default the first."""
    terms = result.fitted.spec.terms
    by_factor = effects.by_factor(terms)
    group = known(group, list(by_factor), "grouping factor")
    return group, known(column, effects.factor_columns([terms[t] for t in by_factor[group]]), f"column of {group!r}")


def known(name, names, what):
    """A name that is among those there are; the first if none was given."""
    if name is None and names:
        return names[0]
    if name is None:
        raise ModelError(f"this model has no {what} to show")
    if name not in names:
        shown = ", ".join(map(repr, names[:10])) + (", ..." if len(names) > 10 else "")
        raise ModelError(
            f"{name!r} is not a {what} of this model; " + (f"use one of {shown}" if names else "it has none")
        )
    return name
