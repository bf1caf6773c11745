"""Drawing: every function takes axes or makes them, and returns them."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import ModelError
from jmixed.inference import tails
from jmixed.plot.data import (
    bootstrap_data,
    caterpillar_data,
    check_data,
    effect,
    effects_data,
    fitted_data,
    frame_of,
    group_lines,
    is_category,
    others,
    profile_data,
    qq_data,
    quantile_data,
    replicates_of,
    residuals_data,
    strata_of,
)
from jmixed.reports import responses
from jmixed.reports.drawing import NARROW, is_narrow, legend, pyplot, width_of
from jmixed.runtime.arguments import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jmixed.reports.bootstrap import Bootstrap
    from jmixed.reports.intervals import Profile
    from jmixed.results import MixedGLMResults, MixedLMResults

NAMED = 60
"""So many levels can be named along an axis; beyond, only their number is told."""
LEGEND = 10
"""So many groups have a line each in the legend."""
BINS = 15
"""Points of the running mean through residuals."""
KOLMOGOROV = 1.3581
"""The quantile of 95% of the root of n times the largest distance of a sample's distribution from its own."""
PANEL = 2.2
"""Inches of a panel of `check` in print."""
LEAST = 2
"""Inches of width in which two panels of `check` stand side by side."""
JITTER = 0.08
"""How far, of the distance of two categories, the points of rows are spread sideways, so that they are seen."""
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
    ax = _axes(ax, (6, max(2.5, min(0.22 * count, 10) + 1) if count <= NAMED else 6))
    # In points; names of less would cover each other.
    room = 72 * _height(ax) / count
    named = count <= NAMED and room >= 7
    place = np.arange(count)
    ax.hlines(place, table["lower"], table["upper"], color=PALE, linewidth=2 if named else max(0.4, 150 / count))
    ax.plot(table["estimate"], place, "o", color=INK, markersize=4 if named else max(1, 300 / count))
    ax.axvline(0, color=ACCENT, linewidth=0.8, linestyle="--")
    # A little air above and below, whatever the number of levels.
    ax.set_ylim(-0.02 * count - 0.6, 1.02 * count - 0.4)
    if named:
        ax.set_yticks(place, [str(name) for name in table[group]], fontsize=min(0.85 * room, 9))
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
    ax.set_xlabel("fitted value" if result.fitted.family is None else "linear predictor")
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
    ax.set_ylabel(
        "quantile residuals" if group is None and result.fitted.family is not None else f"standardised {what}"
    )
    return ax


@checked
def quantile(
    result: MixedGLMResults,
    against: Literal["uniform", "fitted"] = "uniform",
    kind: Literal["simulated", "quantile"] = "simulated",
    key: Any = 0,
    simulations: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Residuals of a generalized model between 0 and 1, which are uniform if it holds, as in R's DHARMa.

    Raises `ModelError` for a linear model, and for other words.

    Parameters
    ----------
    against
        "uniform": their quantiles against those of the uniform distribution, with the band in which 95% of samples of
        uniform numbers lie as a whole (Kolmogorov's). "fitted": against the rank of the linear predictor without random
        effects, with the quartiles of slices of rows, which belong at a quarter, a half and three.
    kind
        "simulated": ranks of the responses among new ones with new random effects. "quantile": values of the
        distribution function given the random effects.
    key : JAX random key, or int
        Of what is random in them.
    simulations
        Number of new responses for "simulated": by default 250, of more than 4,000 rows fewer, but at least 50. The
        residuals are uniform whatever their number.
    """
    if against not in ("uniform", "fitted"):
        raise ModelError(f"quantile: against={against!r}; use 'uniform' or 'fitted'")
    table = quantile_data(result, kind, key, simulations)
    ax = _axes(ax, (5, 5) if against == "uniform" else (6, 4.5))
    if against == "uniform":
        ends, reach = np.array([0.0, 1.0]), KOLMOGOROV / np.sqrt(len(table))
        ax.fill_between(ends, ends - reach, ends + reach, color=PALE, alpha=0.25, linewidth=0, label="95% band")
        ax.plot(ends, ends, color=ACCENT, linewidth=1)
        _points(ax, table["uniform"], table["residual"])
        ax.set_xlabel("uniform quantile")
        ax.legend(frameon=False, fontsize=9, loc="upper left")
    else:
        _points(ax, table["place"], table["residual"])
        slices = np.array_split(np.argsort(table["place"].to_numpy()), min(BINS, max(1, len(table) // 20)))
        at = [table["place"].iloc[part].mean() for part in slices]
        for share in (0.25, 0.5, 0.75):
            ax.axhline(share, color=PALE, linewidth=1, linestyle="--")
            label = "quartiles" if share == 0.5 else None
            heights = [table["residual"].iloc[part].quantile(share) for part in slices]
            # Few rows are one slice, and no line.
            if len(slices) > 1:
                ax.plot(at, heights, color=ACCENT, linewidth=1.5, label=label)
        ax.set_xlabel("rank of the linear predictor")
        if len(slices) > 1:
            ax.legend(frameon=False, fontsize=9, loc="lower left", bbox_to_anchor=(0, 1))
    ax.set_ylim(-0.02, 1.02)
    ax.set_ylabel(f"{kind} residual")
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
    spec, frame = result.fitted.spec, frame_of(result.fitted.spec)
    term = next(term for term in spec.terms if term.group == factor)
    stratum, strata = strata_of(frame, by)
    ax = _axes(ax, (7, 5))
    at = _positions(ax, spec, across)
    level_of_row, shown = term.levels.to_numpy()[term.codes], lines[factor].dropna().unique()
    few = len(shown) <= LEGEND and by is None
    # Many lines are one colour, so faint that their crowd is seen and not the last ones drawn.
    crowd: dict[str, Any] = {"alpha": float(np.clip(15 / len(shown), 0.03, 0.8)), "linewidth": 0.8}
    rows, values = np.isin(level_of_row, list(shown)), at(frame[across])
    category = is_category(spec, across)
    if category:
        values = values + _aside(len(frame))
    observed = responses.observed(result.fitted)
    faint = float(np.clip(600 / rows.sum(), 0.1, 0.6))
    for k in range(len(shown) if few else len(strata)):
        mine = rows & (level_of_row == shown[k] if few else stratum == k)
        colour = f"C{k}" if few or by is not None else PALE
        dots = {"color": colour, "markersize": 4 if few else 2.5}
        ax.plot(values[mine], observed[mine], "o", markeredgewidth=0, alpha=faint, zorder=1, **dots)
    # At the categories of a predictor there are points, and what joins them is for the eye; those of a crowd are one.
    marks = {"marker": "o", "markersize": 5} if category else {}
    of_groups = marks if len(shown) <= LEGEND else {}
    paths = _paths(lines, factor, by, strata, at(lines[across]))
    if len(shown) <= LEGEND:
        for k, j, path in paths:
            colour = f"C{k}" if few else INK if by is None else f"C{j}"
            style = {"label": str(shown[k]), "linewidth": 1.5} if few else crowd
            ax.plot(*path.T, zorder=2, color=colour, **style, **of_groups)
    else:
        from matplotlib.collections import LineCollection

        # One thing to draw, in the order of the groups, so that no level of `by` covers the others.
        colours = [INK if by is None else f"C{j}" for _, j, _ in paths]
        ax.add_collection(LineCollection([path for *_, path in paths], colors=colours, zorder=2, **crowd))
        ax.autoscale_view()
    averaged = ", mean over the rows" if others(result, across, by) else ""
    for j, which in enumerate(strata):
        whole = lines[lines[factor].isna() & _of(lines, by, which)]
        name = f"fixed effects{averaged}" if by is None else f"{by} = {which}"
        colour = "black" if by is None else f"C{j}"
        label = textwrap.fill(name, 16 if width_of(ax) < 2.4 and by is None else 26)
        style = {"linewidth": 2, "linestyle": "--", "label": label, "zorder": 3}
        ax.plot(at(whole[across]), whole["fitted"], color=colour, **style, **marks)
    ax.set_xlabel(across)
    ax.set_ylabel(spec.endog_name)
    title = factor if few else f"{len(shown):,} levels of {factor}"
    if by is not None:
        title = textwrap.fill(f"fixed effects{averaged}", 40 if is_narrow(ax) else 26) + f"\nfaint: {title}"
    legend(ax, title)
    return ax


@checked
def effects(
    result: MixedLMResults,
    variable: str,
    by: str | None = None,
    level: float = 0.95,
    partial: bool = True,
    ax: Axes | None = None,
) -> Axes:
    """The estimated effect of a predictor: a line with its band, or a point with its interval for each level.

    Means over the reference grid of ``result.emmeans``: other factors with equal weights, numbers at their means. Of a
    linear model the points are partial residuals, the mean at each row's predictors plus its residual: a curve in them
    is a curve that the model lacks. Faint lines are those of groups with slopes of their own; with `by`, of groups that
    have one level of it.

    Parameters
    ----------
    variable
        A predictor of the fixed part.
    by
        Another one: a colour for each of its levels; a number is taken at its mean and a standard deviation to either
        side.
    level
        Coverage of the band, normal.
    partial
        Whether partial residuals are drawn.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.plot.effects(result, "Days").get_ylabel()
    'Reaction'
    """
    table: Any = effects_data(result, variable, by, level)
    spec = result.fitted.spec
    ax = _axes(ax, (7, 4.5))
    strata = [None] if by is None else list(dict.fromkeys(table[by]))
    category = is_category(spec, variable)
    labels = list(dict.fromkeys(table[variable]))
    straight = not category and result.fitted.family is None
    lines = group_lines(result, variable, table[_of(table, by, strata[0])], by) if straight else []
    alpha = float(np.clip(15 / max(len(lines), 1), 0.15, 0.6))
    for k, which in enumerate(strata):
        part, colour = table[_of(table, by, which)], INK if by is None else f"C{k}"
        shift = 0.0 if len(strata) == 1 else 0.5 * (k / (len(strata) - 1) - 0.5)
        x = np.array([labels.index(value) for value in part[variable]]) + shift if category else part[variable]
        named = None if by is None else f"{by} = {which:.3g}" if isinstance(which, float) else f"{by} = {which}"
        if partial and result.fitted.family is None:
            _partial_residuals(ax, result, table, variable, by, which, colour, shift if category else None)
        if category:
            ax.vlines(x, part["lower"], part["upper"], color=colour, linewidth=2.5, zorder=3)
            ax.plot(x, part["estimate"], "o", color=colour, markersize=4 if is_narrow(ax) else 6, label=named, zorder=4)
            continue
        for level, line in lines:
            if by is None or level == which:
                shade = PALE if by is None else colour
                ax.plot(x, part["estimate"].to_numpy() + line, color=shade, linewidth=0.8, alpha=alpha, zorder=1)
        ax.fill_between(x, part["lower"], part["upper"], color=colour, alpha=0.2, linewidth=0, zorder=2)
        ax.plot(x, part["estimate"], color=colour, linewidth=2, label=named, zorder=4)
    if category:
        _name_categories(ax, labels)
    ax.set_xlabel(variable)
    ax.set_ylabel(spec.endog_name)
    if by is not None:
        legend(ax)
    return ax


def _paths(lines, factor, by, strata, x) -> list[tuple[int, int, np.ndarray]]:
    """The lines of groups: the place of their level, that of the level of `by`, and points (k, 2)."""
    level = pd.factorize(lines[factor])[0]
    stratum = pd.Index(strata).get_indexer(lines[by]) if by is not None else np.zeros(len(lines), int)
    points = np.column_stack([np.asarray(x, float), lines["fitted"]])
    # The rows of a line are together.
    starts = 1 + np.flatnonzero((np.diff(level) != 0) | (np.diff(stratum) != 0))
    parts = np.split(np.arange(len(lines)), starts)
    return [(int(level[part[0]]), int(stratum[part[0]]), points[part]) for part in parts if level[part[0]] >= 0]


def _partial_residuals(ax, result, table, variable, by, which, colour, shift):
    """Points of the rows of one level: the effect at their predictors, plus their residuals."""
    spec = result.fitted.spec
    frame: Any = frame_of(spec)
    left = spec.y - result.fitted.fittedvalues
    mine = np.ones(len(frame), bool)
    if by is not None:
        nearest = frame[by].to_numpy()
        if is_category(spec, by):
            mine = nearest == which
        else:
            levels = np.array(list(dict.fromkeys(table[by])), float)
            mine = levels[np.argmin(np.abs(nearest[:, None].astype(float) - levels), axis=1)] == which
    part, values = table[_of(table, by, which)], frame[variable][mine]
    if shift is None:
        height = np.interp(values.to_numpy(dtype=float), part[variable].to_numpy(dtype=float), part["estimate"])
        place = values.to_numpy(dtype=float)
    else:
        known, codes = list(part[variable]), [list(dict.fromkeys(table[variable])).index(value) for value in values]
        height = np.array([part["estimate"].iloc[known.index(value)] for value in values])
        place = np.array(codes) + shift + _aside(len(codes))
    count = len(frame)
    ax.plot(place, height + left[mine], "o", color=colour, markeredgewidth=0, zorder=0,
            markersize=3 if count <= 500 else 1.5, alpha=float(np.clip(500 / count, 0.05, 0.35)))  # fmt: skip


@checked
def check(result: MixedLMResults, key: Any = 0, width: float | None = None) -> Figure:
    """The assumptions of a model in one picture, each panel with its line of words.

    Linearity, equal variances, quantiles of residuals and of random effects, influential groups, collinearity, and the
    distribution of the response beside simulated ones; ``result.check()`` has the numbers. What is worth a second look
    is marked.

    Parameters
    ----------
    key : JAX random key, or int
        Of what is simulated.
    width
        In inches, as it will be printed, so that the letters are of a size that can be read there: 6.7 for the width of
        a page (170 mm), 3.35 for a column of two (85 mm), 2 at least. By default as wide as a screen has room for.

    Raises
    ------
    ModelError
        When no panel has room in the width.

    Examples
    --------
    >>> import jmixed as jm
    >>> len(jm.plot.check(result).axes)
    6
    """
    if width is not None and width < LEAST:
        raise ModelError(f"plot.check: width is {width:g} inches, and the panels need {LEAST}; a column of two is 3.35")
    data = check_data(result, key)
    drawn: list[tuple[Any, str, str]] = [(_bends, "residuals", "linearity"), (_spreads, "residuals", "equal variances")]
    drawn.append((_quantiles, "residual quantiles", "normal residuals"))
    if len(data["random effects"]):
        drawn.append((_quantiles, "random effects", "normal random effects"))
    if len(data["influence"]):
        drawn.append((_distances, "influence", "influential groups"))
    if len(data["collinearity"]):
        drawn.append((_factors, "collinearity", "collinearity"))
    drawn.append((_distributions, "responses", "distribution"))
    columns = 4 if len(drawn) > 6 else 3
    if width is not None:
        columns = int(np.clip(round(width / PANEL), 2, columns))
    across = 3.4 if width is None else width / columns
    # In points.
    size = 8 if across > 2.8 else 7 if across > 2 else 6
    small = max(size - 1, 6)
    plt, lines = pyplot(), -(-len(drawn) // columns)
    letters = {"font.size": small, "axes.titlesize": size, "axes.labelsize": size, "legend.fontsize": small}
    with plt.rc_context(letters):
        figure = plt.figure(figsize=(across * columns, (0.75 * across + 0.55) * lines), layout="constrained")
        for k, panel in enumerate(drawn):
            _panel(figure.add_subplot(lines, columns, k + 1), data, panel, int(72 * (across - 0.5) / (0.55 * size)))
    return figure


def _panel(ax, data, panel, letters):
    """One panel of `check` with its line of words, so many letters long."""
    draw, table, name = panel
    words = data["words"]
    draw(ax, data[table])
    rows = words.loc[[row for row in words.index if row == name or _of_modes(row, name)]]
    if name == "distribution" and "dispersion" in words.index and words.loc["dispersion", "look"]:
        rows, name = words.loc[["dispersion"]], "dispersion"
    looked = rows[rows["look"]] if rows["look"].any() else rows.iloc[:1]
    told = zip(looked.index, looked["words"], strict=True)
    several = len(rows) > 1 and bool(rows["look"].any())
    said = "; ".join(f"{row.removeprefix('normal ')}: {word}" if several else word for row, word in told)
    colour = ACCENT if rows["look"].any() else "black"
    ax.set_title(textwrap.fill(f"{name}: {said}", letters), loc="left", color=colour)
    if table not in ("influence", "responses"):
        ax.locator_params(axis="x", nbins=5)


def _of_modes(row: str, name: str) -> bool:
    """Whether a line of words is about random effects."""
    return name == "normal random effects" and row.startswith("normal ") and row != "normal residuals"


def _bends(ax, table):
    _points(ax, table["fixed"], table["residual"])
    ax.axhline(0, color=PALE, linewidth=1)
    ax.plot(*_means(table["fixed"], table["residual"]), color=ACCENT, linewidth=1.5)
    ax.set_xlabel("fixed part")
    ax.set_ylabel("residual")


def _spreads(ax, table):
    size = np.sqrt(np.abs(table["residual"]))
    _points(ax, table["fixed"], size)
    ax.plot(*_means(table["fixed"], size), color=ACCENT, linewidth=1.5)
    ax.set_xlabel("fixed part")
    ax.set_ylabel("root of the residual's size")


def _means(x, y):
    """Running means over slices of equal numbers of rows, or at the values of x where these are few."""
    values = np.round(x.to_numpy(), 9)
    distinct, codes = np.unique(values, return_inverse=True)
    order = np.argsort(values, kind="stable")
    few = len(distinct) <= BINS
    slices = np.array_split(order, min(BINS, max(2, len(order) // 8)))
    parts = [np.flatnonzero(codes == k) for k in range(len(distinct))] if few else slices
    return np.array([[x.iloc[part].mean(), y.iloc[part].mean()] for part in parts]).T


def _quantiles(ax, table):
    names = list(dict.fromkeys(table["name"]))
    ends = np.array([table["normal"].min(), table["normal"].max()])
    ax.plot(ends, ends, color=ACCENT, linewidth=1)
    for k, name in enumerate(names):
        part = table[table["name"] == name]
        if len(names) == 1:
            _points(ax, part["normal"], part["sample"])
        else:
            style: dict[str, Any] = {"markersize": 4 if len(part) <= 500 else 2, "markeredgewidth": 0, "alpha": 0.6}
            ax.plot(part["normal"], part["sample"], "o", color=f"C{k}", label=_short(name, 22), **style)
    if 1 < len(names) <= 6:
        ax.legend(frameon=False, loc="upper left", handlelength=0.8, handletextpad=0.3, borderaxespad=0.2)
    ax.set_xlabel("normal quantile")
    ax.set_ylabel("sample quantile")


def _distances(ax, table):
    count = len(table)
    place = np.arange(1, count + 1)
    ax.vlines(place, 0, table["distance"], color=INK, linewidth=float(np.clip(150 / count, 0.4, 2)))
    if count <= LEGEND:
        ax.set_xticks(place, [_short(group, max(3, int(18 * width_of(ax) / count) - 1)) for group in table["group"]])
    else:
        # The levels at the left are named, as far as there is room.
        last = np.inf
        for k in range(3):
            if last - table["distance"].iloc[k] < 0.09 * table["distance"].iloc[0]:
                continue
            last = float(table["distance"].iloc[k])
            name, end = _short(table["group"].iloc[k]), (place[k], table["distance"].iloc[k])
            ax.annotate(name, end, xytext=(3, -2), textcoords="offset points").set_in_layout(False)
        ax.set_xticks([])
    ax.set_xlim(1 - max(0.5, 0.03 * count), count + max(0.5, 0.03 * count))
    ax.set_ylim(bottom=0)
    ax.set_xlabel(f"{count:,} groups, in order")
    ax.set_ylabel("Cook's distance")


def _factors(ax, table):
    place = np.arange(len(table))
    ax.barh(place, table["factor"], color=INK, height=0.6)
    names = [_short(term) for term in table["term"]]
    ax.set_yticks(place, names if len(table) <= 15 else [""] * len(table))
    ax.invert_yaxis()
    ax.axvline(5, color=ACCENT, linewidth=0.8, linestyle="--")
    ax.set_xlabel("variance inflation")


def _short(name, letters=16):
    """A name that leaves room for the panel; what tells apart is rather at its end."""
    name = str(name)
    return name if len(name) <= letters else f"…{name[1 - letters :]}"


def _distributions(ax, table):
    observed = table.loc[table["draw"] == 0, "value"].to_numpy()
    distinct = np.unique(table["value"])
    if len(distinct) <= 30:
        edges = np.append(distinct, distinct[-1] + 1) - 0.5 * np.min(np.diff(distinct), initial=1.0)
    else:
        low, high = np.quantile(table["value"], [0.001, 0.999])
        low, high = min(low, observed.min()), max(high, observed.max())
        edges = np.linspace(low, high, int(np.clip(np.sqrt(len(observed)), 10, 40)) + 1)
        if np.all(distinct == np.round(distinct)):
            # Of counts every bin holds equally many numbers.
            edges = np.arange(np.floor(low) - 0.5, high + (step := max(1, round(edges[1] - edges[0]))), step)
    middle = (edges[1:] + edges[:-1]) / 2
    scale = len(observed) * np.diff(edges)
    for draw, part in table.groupby("draw"):
        height = np.histogram(part["value"], edges)[0] / scale
        style = {"color": INK, "linewidth": 2, "zorder": 3} if draw == 0 else {"color": PALE, "linewidth": 0.6}
        label = "observed" if draw == 0 else "simulated" if draw == 1 else None
        style |= {"marker": "o", "markersize": 4 if draw == 0 else 2} if len(distinct) <= 30 else {}
        ax.plot(middle, height, alpha=1.0 if draw == 0 else 0.5, label=label, **style)
    if len(distinct) <= 8:
        ax.set_xticks(distinct)
    # With room for the legend.
    ax.set_ylim(0, 1.25 * ax.dataLim.y1)
    ax.set_xlabel("response")
    ax.set_ylabel("density")
    ax.legend(frameon=False)


def _of(lines, by, which):
    """The rows of one level of `by`; all where there is no column of it."""
    return lines[by] == which if by in lines.columns else np.ones(len(lines), bool)


def _positions(ax, spec, name):
    """From values of a predictor to places on the axis: categories side by side, named on it."""
    if not is_category(spec, name):
        return lambda column: column.to_numpy()
    _, categories = pd.factorize(spec.frame[name], sort=True)
    categories = pd.Index(categories)
    _name_categories(ax, categories)
    ax.set_xlim(-0.5, len(categories) - 0.5)
    return lambda column: categories.get_indexer(column)


def _name_categories(ax, categories):
    """Names of categories at 0, 1, ...: on several lines where they would touch, upright where that does not help."""
    names = [str(category) for category in categories]
    # In characters; a legend beside takes a third of the width.
    room = max(1, int((width_of(ax) if is_narrow(ax) else 0.65 * width_of(ax)) * 72 / 6.5 / len(names)) - 1)
    words = max(len(word) for name in names for word in name.split() or [""])
    ax.set_xticks(range(len(names)), [textwrap.fill(name, room) if words <= room else name for name in names])
    if words > room:
        ax.tick_params(axis="x", labelrotation=90)


def _height(ax):
    """Inches."""
    return ax.get_position().height * ax.figure.get_figheight()


def _aside(count):
    """Shifts (count,) of points that stand at one category."""
    return np.random.default_rng(0).uniform(-JITTER, JITTER, count)


def _axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    return ax if ax is not None else pyplot().subplots(figsize=size, layout="constrained")[1]


def _points(ax, x, y):
    """A cloud that neither vanishes with few points nor clots with many."""
    count = len(x)
    size = (4 if count <= 500 else 2) * (0.6 if ax.figure.get_figwidth() < NARROW else 1)
    ax.plot(x, y, "o", color=INK, markersize=size, alpha=float(np.clip(600 / count, 0.1, 0.7)),
            markeredgewidth=0)  # fmt: skip
