"""Drawing: every function takes axes or makes them, and returns them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jmixed.inference import tails
from jmixed.plot.data import (
    bootstrap_data,
    caterpillar_data,
    effect,
    fitted_data,
    is_category,
    others,
    profile_data,
    qq_data,
    replicates_of,
    residuals_data,
    strata_of,
)
from jmixed.runtime.arguments import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from jmixed.reports.bootstrap import Bootstrap
    from jmixed.reports.intervals import Profile
    from jmixed.results import MixedLMResults

NAMED = 60
"""So many levels can be named along an axis; beyond, only their number is told."""
LEGEND = 10
"""So many groups have a line each in the legend."""
BINS = 15
"""Points of the running mean through residuals."""
INK, ACCENT, PALE = "#1f4e79", "#c8501e", "#9aa5b1"


@checked
def caterpillar(
    result: MixedLMResults,
    group: str | None = None,
    column: str | None = None,
    level: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """Conditional modes with their intervals, smallest first.

    Parameters
    ----------
    group, column
        Grouping factor and column of the random effects, by default the first.
    level
        Coverage of the intervals, normal, given the parameters.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.caterpillar(result, column="Days").get_xlabel()
    'Days by Subject, 95% intervals'
    """
    group, column = effect(result, group, column)
    table = caterpillar_data(result, group, column, level)
    count = len(table)
    named = count <= NAMED
    ax = _axes(ax, (6, max(2.5, min(0.22 * count, 10) + 1) if named else 6))
    place = np.arange(count)
    ax.hlines(place, table["lower"], table["upper"], color=PALE, linewidth=2 if named else max(0.4, 150 / count))
    ax.plot(table["estimate"], place, "o", color=INK, markersize=4 if named else max(1, 300 / count))
    ax.axvline(0, color=ACCENT, linewidth=0.8, linestyle="--")
    # A little air above and below, whatever the number of levels.
    ax.set_ylim(-0.02 * count - 0.6, 1.02 * count - 0.4)
    if named:
        ax.set_yticks(place, [str(name) for name in table[group]], fontsize=9 if count <= 30 else 7)
        ax.set_ylabel(group)
    else:
        ax.set_yticks([])
        ax.set_ylabel(f"{count:,} levels of {group}, in order")
    ax.set_xlabel(f"{column} by {group}, {100 * level:g}% intervals")
    return ax


@checked
def residuals(result: MixedLMResults, ax: Axes | None = None) -> Axes:
    """Standardised conditional residuals against fitted values, with a running mean."""
    table = residuals_data(result)
    ax = _axes(ax, (6, 4.5))
    _points(ax, table["fitted"], table["residual"])
    ax.axhline(0, color=PALE, linewidth=1)
    # Means of slices with equal numbers of rows: a curve in them is a curve that the model lacks.
    order = np.argsort(table["fitted"].to_numpy(), kind="stable")
    slices = np.array_split(order, min(BINS, max(1, len(order) // 8)))
    means = np.array([table.iloc[part].mean().to_numpy() for part in slices])
    ax.plot(means[:, 0], means[:, 1], color=ACCENT, linewidth=1.5, label="running mean")
    ax.set_xlabel("fitted value")
    ax.set_ylabel("standardised residual")
    ax.legend(frameon=False, fontsize=9)
    return ax


@checked
def qq(result: MixedLMResults, group: str | None = None, column: str | None = None, ax: Axes | None = None) -> Axes:
    """Quantiles of residuals, or of the random effects of a group, against the normal distribution's.

    Parameters
    ----------
    group
        A grouping factor; by default the standardised residuals are shown.
    column
        Column of the random effects, by default the first.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.qq(result, group="Subject").get_ylabel()
    'standardised Intercept by Subject'
    """
    table = qq_data(result, group, column)
    ax = _axes(ax, (5, 5))
    ends = np.array([table["normal"].min(), table["normal"].max()])
    ax.plot(ends, ends, color=ACCENT, linewidth=1)
    _points(ax, table["normal"], table["sample"])
    what = "residuals" if group is None else "{1} by {0}".format(*effect(result, group, column))
    ax.set_xlabel("normal quantile")
    ax.set_ylabel(f"standardised {what}")
    return ax


@checked
def profile(
    profile: Profile | pd.DataFrame, parameter: str | None = None, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Profile of one parameter: the signed root of the increase in deviance; straight where Wald's limits are right.

    Parameters
    ----------
    profile : Profile, or DataFrame with the columns parameter, value, zeta
        As ``result.profile()`` gives it.
    parameter
        By default the first.
    level
        The limits at this coverage are marked.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.profile(result.profile("sigma")).get_xlabel()
    'sigma'
    """
    table = profile_data(profile, parameter)
    ax = _axes(ax, (5.5, 4))
    cut = tails.half_width(level)
    value, zeta = table["value"].to_numpy(), table["zeta"].to_numpy()
    ax.plot(value, zeta, "-o", color=INK, markersize=3.5)
    ax.axhline(0, color=PALE, linewidth=1)
    for height in (-cut, cut):
        ax.axhline(height, color=ACCENT, linewidth=0.8, linestyle="--")
        if zeta[0] <= height <= zeta[-1]:
            ax.axvline(np.interp(height, zeta, value), color=ACCENT, linewidth=0.8, linestyle=":")
    ax.set_xlabel(table["parameter"].iloc[0])
    ax.set_ylabel("zeta")
    ax.set_title(f"dashed: {100 * level:g}% limits", fontsize=9, loc="right", color=ACCENT)
    return ax


@checked
def bootstrap(
    replicates: Bootstrap | pd.DataFrame, parameter: str | None = None, level: float = 0.95, ax: Axes | None = None
) -> Axes:
    """Density of the bootstrap replicates of one parameter, with its percentile interval.

    Parameters
    ----------
    replicates : Bootstrap, or DataFrame with a column for each parameter
        Of a `Bootstrap` those that converged are shown.
    parameter
        By default the first.
    level
        Coverage of the shaded interval.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.bootstrap(result.bootstrap(200, key=1), "Days").get_xlabel()
    'Days'
    """
    values = replicates_of(replicates, parameter)
    table = bootstrap_data(replicates, parameter)
    ax = _axes(ax, (5.5, 4))
    x, density = table["value"].to_numpy(), table["density"].to_numpy()
    tail = (1 - level) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    inside = (x >= low) & (x <= high)
    ax.plot(x, density, color=INK)
    ax.fill_between(x, density, where=inside.tolist(), color=PALE, alpha=0.4, label=f"{100 * level:g}% of replicates")
    if len(values) <= 2000:
        ax.plot(values, np.full(len(values), -0.02 * density.max()), "|", color=INK, alpha=0.3, markersize=6)
    middle = float(np.median(values))
    ax.plot([middle, middle], [0, np.interp(middle, x, density)], color=ACCENT, linewidth=1, label="median")
    # The curve may be tall at one side: the legend stands above it.
    ax.set_ylim(top=1.3 * density.max())
    ax.set_xlabel(str(values.name))
    ax.set_ylabel("density")
    ax.legend(frameon=False, fontsize=9, loc="upper center", ncols=2)
    return ax


@checked
def fitted(
    result: MixedLMResults,
    x: str | None = None,
    group: str | None = None,
    levels: Sequence | None = None,
    by: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """The data against one predictor, with a fitted line for each group and, dashed, the line of the fixed effects.

    Lines are means of predictions over the rows, with all other predictors as they are; `by` asks for a line for each
    level of one of them. The legend says which: see `fitted_data`. The model must be stated by a formula.

    Parameters
    ----------
    x
        A predictor, by default the first numeric one, or the first category when there is none.
    group
        Grouping factor, by default the first.
    levels
        Levels to show, by default all.
    by
        A column of categories, whose levels have a colour and a line of the fixed effects each.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.fitted(result, levels=["308", "309"]).get_ylabel()
    'Reaction'
    """
    lines = fitted_data(result, x, group, levels, by)
    factor, across = lines.columns[:2]
    spec, frame = result.fitted.spec, result.model.data.frame
    term = next(term for term in spec.terms if term.group == factor)
    stratum, strata = strata_of(frame, by)
    ax = _axes(ax, (7, 5))
    at = _positions(ax, spec, across)
    level_of_row, shown = term.levels.to_numpy()[term.codes], lines[factor].dropna().unique()
    few = len(shown) <= LEGEND and by is None
    # Many lines are one colour, so faint that their crowd is seen and not the last ones drawn.
    crowd: dict[str, Any] = {"alpha": float(np.clip(15 / len(shown), 0.15, 0.8)), "linewidth": 0.8}
    rows, values = np.isin(level_of_row, list(shown)), at(frame[across])
    for k in range(len(shown) if few else len(strata)):
        mine = rows & (level_of_row == shown[k] if few else stratum == k)
        colour = f"C{k}" if few or by is not None else PALE
        dots = {"color": colour, "markersize": 4 if few else 2.5}
        ax.plot(values[mine], spec.y[mine], "o", markeredgewidth=0, alpha=0.6, zorder=1, **dots)
    # At the categories of a predictor there are points, and what joins them is for the eye.
    marks = {"marker": "o", "markersize": 4} if is_category(spec, across) else {}
    for k, level in enumerate(shown):
        for j, which in enumerate(strata):
            line = lines[(lines[factor] == level) & _of(lines, by, which)]
            colour = f"C{k}" if few else INK if by is None else f"C{j}"
            style = {"label": str(level), "linewidth": 1.5} if few else crowd
            ax.plot(at(line[across]), line["fitted"], zorder=2, color=colour, **style, **marks)
    averaged = ", mean over the rows" if others(result, across, by) else ""
    for j, which in enumerate(strata):
        whole = lines[lines[factor].isna() & _of(lines, by, which)]
        name = f"fixed effects{averaged}" if by is None else f"fixed effects, {by} = {which}{averaged}"
        colour = "black" if by is None else f"C{j}"
        style = {"linewidth": 2, "linestyle": "--", "label": textwrap.fill(name, 26), "zorder": 3}
        ax.plot(at(whole[across]), whole["fitted"], color=colour, **style, **marks)
    ax.set_xlabel(across)
    ax.set_ylabel(spec.endog_name)
    # Beside the picture: inside it would cover data.
    title = factor if few else f"{len(shown):,} levels of {factor}"
    ax.legend(title=title, frameon=False, fontsize=9, loc="upper left", bbox_to_anchor=(1.01, 1))
    return ax


def _of(lines, by, which):
    """The rows of one level of `by`; all where there is no column of it."""
    return lines[by] == which if by in lines.columns else np.ones(len(lines), bool)


def _positions(ax, spec, name):
    """From values of a predictor to places on the axis: categories side by side, named on it."""
    if not is_category(spec, name):
        return lambda column: column.to_numpy()
    _, categories = pd.factorize(spec.frame[name], sort=True)
    categories = pd.Index(categories)
    ax.set_xticks(range(len(categories)), [str(category) for category in categories])
    if max(len(str(category)) for category in categories) * len(categories) > 60:
        ax.tick_params(axis="x", labelrotation=90)
    ax.set_xlim(-0.5, len(categories) - 0.5)
    return lambda column: categories.get_indexer(column)


def _axes(ax, size):
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("pictures need matplotlib, an extra: pip install 'jmixed[plot]'") from error
    return plt.subplots(figsize=size, layout="constrained")[1]


def _points(ax, x, y):
    """A cloud that neither vanishes with few points nor clots with many."""
    count = len(x)
    ax.plot(x, y, "o", color=INK, markersize=4 if count <= 500 else 2, alpha=float(np.clip(600 / count, 0.1, 0.7)),
            markeredgewidth=0)  # fmt: skip
