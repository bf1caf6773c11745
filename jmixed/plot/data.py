"""What the pictures show, as data frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas import statement
from jmixed.formulas.evaluate import known_factors
from jmixed.formulas.marks import names_in
from jmixed.inference import tails
from jmixed.inference.simulation import how_many
from jmixed.inference.variance_explained import known_variances
from jmixed.reports import checks, diagnostics, effects, responses, rows
from jmixed.reports.marginal import marginal_means
from jmixed.runtime.arguments import checked
from jmixed.runtime.precision import FLOAT

if TYPE_CHECKING:
    from jmixed.reports.bootstrap import Bootstrap
    from jmixed.reports.intervals import Profile
    from jmixed.results import MixedGLMResults, MixedLMResults

GRID = 30
"""Points of a fitted line."""
STRATA = 12
"""Levels that can have a line each."""
GROUPS = 100
"""Most groups whose lines are drawn."""
FEWEST, MOST = 50, 250
"""Simulated responses that residuals are ranks among."""
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
    """What `residuals` shows: columns fitted (in the unit of the response), residual (over its standard deviation).

    Of a response with a family fitted is the linear predictor, and residuals are those of the linear model that the
    fit is like at the modes.
    """
    of = result.fitted
    of.need_data("residuals")
    values = of.fittedvalues if of.family is None else of.predictor
    return pd.DataFrame({"fitted": values, "residual": diagnostics.standardised(of)}, of.spec.index)


@checked
def qq_data(result: MixedLMResults, group: str | None = None, column: str | None = None) -> pd.DataFrame:
    """What `qq` shows: columns normal and sample, quantiles, both ascending.

    A conditional mode is divided by the standard deviation that it has under the model, so that groups of different
    sizes are comparable and the line of equality is where they belong. Of a response with a family residuals are
    randomised quantile residuals. Arguments as of `qq`: `group` and `column`.

    Raises
    ------
    DataError
        When the estimated variance of the random effect is zero.
    ModelError
        For an unknown factor or column.
    """
    if group is None and result.fitted.family is not None:
        sample = responses.quantile_residuals(result.fitted, 0)
    elif group is None:
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


@checked
def quantile_data(
    result: MixedGLMResults,
    kind: Literal["simulated", "quantile"] = "simulated",
    key: Any = 0,
    simulations: int | None = None,
) -> pd.DataFrame:
    """What `quantile` shows, a row for each of the model's: columns fitted, residual, uniform, place.

    The residual lies between 0 and 1: the rank of the response among simulated ones, or with "quantile" the value of
    its distribution function given the random effects, `MixedGLMResults.residuals`. Beside it stand the uniform
    quantile of its rank among all residuals, the linear predictor without random effects, and the rank of this between
    0 and 1, with ties in the order of the rows. Arguments as of `quantile`: `kind`, `key`, `simulations`.

    Raises
    ------
    ModelError
        For a linear model, and for another kind.
    """
    if result.fitted.family is None:
        raise ModelError("quantile: this is a linear model, whose residuals are numbers: see jm.plot.qq and residuals")
    if kind not in ("simulated", "quantile"):
        raise ModelError(f"quantile: kind={kind!r}; use 'simulated' or 'quantile'")
    if simulations is None:
        simulations = how_many(result.fitted.nobs, FEWEST, MOST)
    values = np.asarray(result.residuals(kind, key, simulations))
    if kind == "quantile":
        from scipy.special import ndtr

        values = ndtr(values)
    fixed = rows.fixed_part(result.fitted.spec, result.fitted.fit.beta)
    columns = {"fitted": fixed, "residual": values, "uniform": _ranks(values), "place": _ranks(fixed)}
    return pd.DataFrame(columns, result.fitted.spec.index)


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks between 0 and 1, in the middle of their share."""
    ranks = np.empty(len(values))
    ranks[np.argsort(values, kind="stable")] = (np.arange(len(values)) + 0.5) / len(values)
    return ranks


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
    if getattr(result.fitted.family, "response", None) == "categories":
        raise ModelError("fitted: a response in categories has a probability for each and no mean to draw a line of")
    x, spec, frame = predictor(result, x), result.fitted.spec, frame_of(result.fitted.spec)
    group = _factor(group, spec)
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
    labels += [(None, which) for which in strata]
    points: list[Any] = [at for at, _ in [*of_groups, *whole]]
    values = [heights for _, heights in [*of_groups, *whole]]
    # One entry for each point, whatever type the labels have.
    which = np.repeat(np.arange(len(labels)), [len(part) for part in values])
    columns = {
        name: pd.Series([labels[line][k] for line in which], dtype=object)
        for k, name in enumerate([group, by][: 1 if by is None else 2])
    }
    at = points[0].append(list(points[1:])) if isinstance(points[0], pd.Index) else np.concatenate(points)
    return pd.DataFrame({group: columns[group], x: at, **columns, "fitted": np.concatenate(values)})


@checked
def check_data(result: MixedLMResults, key: Any = 0) -> dict[str, pd.DataFrame]:
    """What `check` shows, by panel.

    Tables "residuals" (columns fixed and residual, standardised), "residual quantiles" and "random effects" (columns
    name, normal and sample), "influence" (columns group and distance, largest first), "collinearity" (columns term and
    factor), "responses" (columns value, draw; 0 is the observed one), "words" (columns look and words).
    Arguments as of `check`: `key`, a JAX random key, or an int.
    """
    made_of = checks.material(result.fitted, key)
    told, observed, drawn = checks.checks(result.fitted, made_of), made_of.observed, made_of.drawn
    pieces = [("residuals", made_of.residual), *made_of.modes.items()]
    tables: list[Any] = []
    for name, sample in pieces:
        known = np.sort(sample[np.isfinite(sample)])
        tables.append(pd.DataFrame({"name": name, "normal": checks.normal_quantiles(len(known)), "sample": known}))
    values = np.concatenate([observed, drawn.ravel()])
    draw = np.repeat(np.arange(1 + len(drawn)), len(observed))
    words: Any = told.frame[["look", "words"]]
    influence = told.influence.dropna().sort_values(ascending=False)
    return {
        "residuals": pd.DataFrame({"fixed": made_of.fixed, "residual": made_of.residual}),
        "residual quantiles": tables[0],
        "random effects": pd.concat(tables[1:]) if len(tables) > 1 else tables[0].iloc[:0],
        "influence": pd.DataFrame({"group": influence.index, "distance": influence.to_numpy()}),
        "collinearity": pd.DataFrame({"term": told.collinearity.index, "factor": told.collinearity.to_numpy()}),
        "responses": pd.DataFrame({"value": values, "draw": draw}),
        "words": words,
    }


@checked
def effects_data(result: MixedLMResults, variable: str, by: str | None = None, level: float = 0.95) -> pd.DataFrame:
    """What `effects` draws: estimated means along a predictor, over the reference grid of `emmeans`.

    Columns the predictor, `by` if it is given, estimate, lower and upper: along a grid of a number, at the levels of a
    category; a number in the place of `by` is taken at its mean, and a standard deviation to either side. Of a
    response with a family means are on its scale. Arguments as of `effects`: `variable`, `by`, `level`.

    Raises
    ------
    ModelError
        For a name that is no predictor, and a `by` that is the predictor.
    """
    spec, frame = result.fitted.spec, frame_of(result.fitted.spec)
    variable = known(variable, _predictors(spec), "predictor")
    if by == variable:
        raise ModelError(f"by={by!r} is the predictor along the axis; name another one")
    at: dict[str, Any] = {}
    if not is_category(spec, variable):
        values = frame[variable].to_numpy(dtype=FLOAT)
        at[variable] = np.linspace(values.min(), values.max(), GRID)
    if by is not None:
        by = known(by, _predictors(spec), "predictor")
        column: Any = frame[by]
        if not is_category(spec, by) and column.nunique() > 3:
            numbers = column.to_numpy(dtype=FLOAT)
            at[by] = np.mean(numbers) + np.std(numbers) * np.array([-1.0, 0.0, 1.0])
    general = result.fitted.family is not None
    kind = "response" if general and result.fitted.own_family.response != "categories" else "link"
    means = marginal_means(result.fitted, variable, by, at or None, "equal", kind, "none", level)
    columns = [variable, *([] if by is None else [by]), "estimate", "lower", "upper"]
    return pd.DataFrame({name: means.frame[name] for name in columns})


def group_lines(result: Any, variable: str, table: pd.DataFrame, by: str | None) -> list[tuple[Any, np.ndarray]]:
    """Of a number with random slopes: for up to `GROUPS` groups the deviation of their line along the table's grid.

    Beside it stands the level of `by` that the group has; groups that have several are left out.
    """
    spec, at = result.fitted.spec, table[variable].to_numpy()
    for term in spec.terms:
        rebuild = term.rebuild
        if rebuild is None or len(rebuild.factor.sources) != 1 or rebuild.part is None or rebuild.local is not None:
            continue
        if variable not in spec.recipe.columns([rebuild.part]) or is_category(spec, variable):
            continue
        first = spec.frame.iloc[[0] * len(at)].reset_index(drop=True).assign(**{variable: at})
        step = max(1, -(-len(term.levels) // GROUPS))
        kept = np.arange(len(term.levels))[::step]
        levels: list[Any] = [None] * len(kept)
        if by is not None:
            levels_of_by = [pd.unique(spec.frame[by].to_numpy()[term.codes == k]) for k in kept]
            kept = np.array([k for k, values in zip(kept, levels_of_by, strict=True) if len(values) == 1], int)
            levels = [values[0] for values in levels_of_by if len(values) == 1]
        if not len(kept):
            return []
        lines = [first.assign(**{rebuild.factor.sources[0]: label}) for label in term.levels[kept]]
        new = statement.new_rows(replace(spec, terms=(term,)), pd.concat(lines, ignore_index=True), random=True)
        values = rows.random_part((term,), new.codes, new.Z, {term.label: result.fitted.fit.b[term.label]})
        return list(zip(levels, values.reshape(len(kept), len(at)), strict=True))
    return []


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
        # A predictor that is part of a group's name makes other groups, that may not be there; they are not drawn.
        how: dict[str, Any] = {"random_effects": random_effects, "new_levels": "population"}
        predicted = result.predict(pd.concat(block, ignore_index=True), **how)
        for part in np.asarray(predicted).reshape(len(block), n):
            means.append(np.bincount(key, part, minlength=count) / np.maximum(size, 1))
    table = np.array(means)
    return [(at, table[there[:, k], k]) for k, at in enumerate(points)]


def frame_of(spec) -> pd.DataFrame:
    """The rows of a model's data, or an error that says that there are none."""
    if spec.recipe is None or spec.frame is None:
        raise DataError("fitted lines need a model stated by a formula, with the rows of its data frame")
    return spec.frame


def _predictors(spec) -> list[str]:
    """The columns of the data that the model predicts from, numbers first."""
    frame_of(spec)
    names = spec.recipe.columns([part for part in spec.recipe.specs if part != "lhs"])
    # A grouping factor is no predictor, unless it is one too, as the recipe in recipe:replicate.
    factors = {name for term in spec.terms for name in term.rebuild.factor.sources}
    factors -= set(spec.recipe.columns(["rhs"]))
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
    group = _factor(group, result.fitted.spec)
    members = effects.by_factor(terms)[group]
    return group, known(column, effects.factor_columns([terms[t] for t in members]), f"column of {group!r}")


def _factor(name, spec):
    """A grouping factor, by default the first."""
    if not spec.terms:
        raise ModelError("this model has no random effects to show; jm.plot.effects draws its fixed part")
    return known(name, list(effects.by_factor(spec.terms)), "grouping factor")


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
