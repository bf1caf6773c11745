"""Residual structures in words: ``ar1(visit | subject)`` and the columns of a dispersion, from text to arrays."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, FormulaError, ModelError
from jmixed.formulas.checks import independent_columns, warn_of_order
from jmixed.formulas.factors import Factor, crossed, factor
from jmixed.formulas.formula import bare_name, parse
from jmixed.formulas.frame import column, holds_text, require_finite, require_known
from jmixed.formulas.model_data import ORDER, ResidualTerm
from jmixed.formulas.recipe import Matrix, Recipe, source
from jmixed.formulas.structures import RESIDUALS, ResidualWord
from jmixed.runtime.precision import FLOAT

ELSEWHERE = {name: word for word, meaning in RESIDUALS.items() for name in (word, *meaning.elsewhere)}
"""Words of other packages in lower case, and ours."""
PAGE = "structures.md"


@dataclass(frozen=True)
class ResidualPart:
    """A residual structure in words."""

    text: str  # as the caller gave it
    word: str  # of `RESIDUALS`
    position: str  # a column, or `ORDER`
    factors: tuple[str, ...]  # the columns whose combinations are the series

    @property
    def meaning(self) -> ResidualWord:
        """What the word asks for."""
        return RESIDUALS[self.word]


def parse_residual(text: Any) -> ResidualPart:
    """Read ``word(position | group)``.

    Examples
    --------
    >>> from jmixed.formulas.residuals import parse_residual
    >>> parse_residual("ar1(visit | clinic/subject)").factors
    ('clinic', 'subject')
    """
    form = "residual= is written word(position | group), as in residual='ar1(visit | subject)'"
    words = ", ".join(RESIDUALS)
    if not isinstance(text, str):
        raise FormulaError(f"residual is {text!r}; {form}; the words are {words}", page=PAGE)
    match = re.fullmatch(r"\s*(\w+)\s*\((.*)\|(.*)\)\s*", text, re.DOTALL)
    if match is None:
        raise FormulaError(f"residual={text!r} cannot be read: {form}; the words are {words}", page=PAGE)
    word, position, group = (part.strip() for part in match.groups())
    if word not in RESIDUALS:
        here = ELSEWHERE.get(word.lower())
        hint = f"; write {here}(position | group)" if here else ""
        raise FormulaError(f"residual={text!r}: the word {word!r} is unknown; the words are {words}{hint}", page=PAGE)
    try:
        factors = parse(f"y ~ (1 | {group})").random[-1].factors
    except FormulaError as error:
        raise FormulaError(f"residual={text!r}: the group {group!r} cannot be read; {form} ({error.args[0]})") from None
    # As terms of random effects are written, whose columns are indicators: ar1(0 + visit | subject).
    position = re.sub(r"^0\s*\+|\+\s*0$|-\s*1$", "", position)
    return ResidualPart(text.strip(), word, bare_name(position) or ORDER, factors)


def columns_of(part: ResidualPart | None, frame: pd.DataFrame) -> list[str]:
    """The columns of the data that a residual structure uses."""
    if part is None:
        return []
    if part.position not in frame.columns and re.search(r"[()|]", part.position):
        raise FormulaError(
            f"residual={part.text!r}: the position {part.position!r} is no column; name the column that holds it, or "
            "write 1 for the order of rows, as in residual='ar1(visit | subject)'",
            page=PAGE,
        )
    names = [part.position] * (part.position != ORDER) + [name for name in part.factors if "(" not in name]
    require_known(names, frame, f"residual={part.text!r}")
    return names


def residual_term(
    part: ResidualPart | None,
    dispersion: str | None,
    matrix: Matrix | None,
    frame: pd.DataFrame,
    recipe: Recipe,
    positions: np.ndarray,
    terms: Sequence[Any],
) -> ResidualTerm | None:
    """The residuals of complete rows; `positions` (n,) are those of the rows in the caller's data.

    `matrix` has the columns of the dispersion, and `terms` are the random-effects terms.
    """
    if part is None and matrix is None:
        return None
    n = len(frame)
    columns, names = _dispersion(matrix, dispersion, n, positions)
    if part is None:
        return ResidualTerm(
            "independent",
            None,
            dispersion,
            columns,
            names,
            columns.std(axis=0),
            places=np.zeros(n, FLOAT),
            origins=_origins(columns),
        )
    series = _series(part, frame, recipe)
    labels = None if part.position == ORDER else column(frame, part.position)
    if labels is not None and part.meaning.ordered:
        warn_of_order(f"residual={part.text}", labels)
    places = _places(part, labels, series.codes)
    _refuse_repeats(part, places.steps, series, labels, positions)
    by_position = 0
    if part.meaning.by_position:
        place_columns, place_names = _by_position(part, places)
        columns, names, by_position = np.hstack([place_columns, columns]), place_names + names, place_columns.shape[1]
    _refuse_collinear(columns, names, part.text, dispersion)
    term = ResidualTerm(
        word=part.word,
        text=part.text,
        dispersion=dispersion,
        columns=columns,
        names=names,
        units=columns.std(axis=0),
        factor=series,
        position=part.position,
        places=places.steps,
        unit=places.unit,
        origin=places.origin,
        counted=places.counted,
        place_names=places.names,
        positions=len(places.names) if part.meaning.correlations else int(np.bincount(series.codes).max()),
        by_position=by_position,
        origins=_origins(columns),
    )
    _refuse_unseen_pairs(part, term)
    _refuse_crossing(part, series, terms)
    return term


def _series(part: ResidualPart, frame: pd.DataFrame, recipe: Recipe) -> Factor:
    return crossed([factor(name, source(name, frame, recipe)) for name in part.factors])


def _dispersion(matrix, text, n, positions) -> tuple[np.ndarray, tuple[str, ...]]:
    """Columns of log standard deviations without the intercept, which is sigma."""
    if matrix is None:
        return np.zeros((n, 0), FLOAT), ()
    require_finite(matrix.values, matrix.names, positions)
    varies = np.ptp(matrix.values, axis=0) > 0
    constant = [name for name, column_varies in zip(matrix.names, varies, strict=True) if not column_varies]
    if [name for name in constant if name != "Intercept"] or not varies.any():
        raise ModelError(
            f"dispersion={text!r}: the column {(constant or ['Intercept'])[-1]!r} is the same in all rows, and that is "
            "sigma; name a column that differs between rows, as in dispersion='~ sex'" + _without(text),
            page=PAGE,
        )
    names = tuple(name for name, column_varies in zip(matrix.names, varies, strict=True) if column_varies)
    columns = matrix.values[:, varies]
    _refuse_collinear(columns, names, None, text)
    return columns, names


FAR = 10.0
"""Mean of a covariate in standard deviations, from which on it is counted from there inside.

sigma is the standard deviation where the covariate is zero. Extrapolated so far, it differs from that of all rows by
orders of magnitude, and what is measured by it, variances of random effects, looks like nothing beside it.
"""


def _origins(columns: np.ndarray) -> np.ndarray:
    """Where columns (n, k) are counted from: (k,). Indicators keep zero, however rare a category is."""
    middle = columns.mean(axis=0)
    far = (np.abs(middle) > FAR * columns.std(axis=0)) & ~np.isin(columns, (0, 1)).all(axis=0)
    return np.where(far, middle, 0.0)


def _without(text: str | None) -> str:
    """What glmmTMB's ``dispformula = ~ 0`` means: no residual beside random effects that hold a column for each row."""
    zero = re.fullmatch(r"~?\s*(0|-\s*1)\s*", text or "")
    return (
        "; for no residual beside ar1(0 + visit | subject) write residual='ar1(visit | subject)' instead"
        if zero
        else ""
    )


def _refuse_collinear(columns: np.ndarray, names: tuple[str, ...], text: str | None, dispersion: str | None) -> None:
    centred = np.column_stack([np.ones(len(columns)), columns - columns.mean(axis=0)])
    kept = independent_columns(centred)
    if len(kept) == centred.shape[1]:
        return
    lost = names[int(np.setdiff1d(np.arange(centred.shape[1]), kept)[0]) - 1]
    asked = " and ".join(
        f"{word}={value!r}" for word, value in (("residual", text), ("dispersion", dispersion)) if value is not None
    )
    raise ModelError(
        f"{asked}: the standard deviations cannot be told apart, since the column {lost!r} is a combination of those "
        "before it and sigma; leave it out (of a category, leave out '0 +'"
        + (
            "; of combinations that do not all have rows make one category, a column of the data)"
            if ":" in lost
            else ")"
        ),
        page=PAGE,
    )


@dataclass(frozen=True)
class _Places:
    """Where rows are in their series."""

    steps: np.ndarray  # (n,)
    unit: float = 1.0
    origin: float = 0.0
    counted: Factor | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return () if self.counted is None else tuple(str(label) for label in self.counted.levels)


def _places(part: ResidualPart, labels: pd.Series | None, codes: np.ndarray) -> _Places:
    """Where each row is in its series: times in a unit, whole steps, or the number of its label."""
    if part.meaning.positions == "times":
        return _times(part, labels, codes)
    if labels is None:
        order = np.argsort(codes, kind="stable")
        sizes = np.bincount(codes)
        steps = np.empty(len(codes), FLOAT)
        steps[order] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        # Counted as people do, the first row is number one.
        return _Places(steps, counted=factor(ORDER, steps.astype(np.int64) + 1))
    counted = factor(part.position, labels)
    labelled = isinstance(labels.dtype, pd.CategoricalDtype) or holds_text(labels)
    if part.meaning.positions != "steps" or labelled:
        return _Places(counted.codes.astype(FLOAT), counted=counted)
    values = np.asarray(labels, FLOAT)
    if not np.all(values == np.round(values)):
        odd = values[values != np.round(values)][0]
        raise DataError(
            f"residual={part.text!r}: the position {part.position!r} is {odd:g} in some row, and ar1 needs whole "
            f"positions; in continuous time write car1({part.position} | {':'.join(part.factors)})",
            page=PAGE,
        )
    steps = np.diff(np.unique(values)).astype(np.int64)
    unit = float(np.gcd.reduce(steps)) if len(steps) else 1.0
    return _Places((values - values.min()) / unit, unit, float(values.min()), counted)


def _times(part: ResidualPart, labels: pd.Series | None, codes: np.ndarray) -> _Places:
    """Times, in units of a typical gap."""
    if labels is None or holds_text(labels) or not pd.api.types.is_numeric_dtype(labels):
        what = "the order of the rows" if labels is None else f"the column {part.position!r}, which holds no numbers"
        raise DataError(
            f"residual={part.text!r}: car1 needs times, and was given {what}; give a column of numbers, or write "
            f"ar1({part.position} | {':'.join(part.factors)})",
            page=PAGE,
        )
    values = np.asarray(labels, FLOAT)
    order = np.lexsort((values, codes))
    gaps = np.diff(values[order])[np.diff(codes[order]) == 0]
    gaps = gaps[gaps > 0]
    unit = float(np.median(gaps)) if len(gaps) else 1.0
    return _Places((values - values.min()) / unit, unit, float(values.min()))


def _refuse_repeats(part, places, series: Factor, labels, positions) -> None:
    """Refuse two rows of a series at one place."""
    order = np.lexsort((places, series.codes))
    same = (np.diff(series.codes[order]) == 0) & (np.diff(places[order]) == 0)
    if not same.any():
        if np.bincount(series.codes).max() < 2:
            raise ModelError(
                f"residual={part.text!r}: every {series.name} has one row, and nothing within it could be correlated; "
                f"name the column that tells whose rows belong together",
                page=PAGE,
            )
        return
    k = int(np.flatnonzero(same)[0])
    first, second = sorted(int(positions[order[j]]) for j in (k, k + 1))
    label, at = series.levels.tolist()[series.codes[order[k]]], labels.iloc[order[k]] if labels is not None else ""
    raise DataError(
        f"residual={part.text!r}: {part.position} is {at} twice in {series.name} {label!r}, in rows {first} and "
        f"{second}; a position occurs once in a group: merge such rows, or name the group that tells them apart",
        page=PAGE,
    )


def _by_position(part: ResidualPart, places: _Places) -> tuple[np.ndarray, tuple[str, ...]]:
    """A column for each position but the first."""
    assert places.counted is not None  # words with a variance for each position count them
    codes, width = places.counted.codes, len(places.names)
    if width > max(len(codes) // 2, 1):
        raise ModelError(
            f"residual={part.text!r}: {width} positions in {len(codes)} rows: a variance for each cannot be told; use "
            f"{part.meaning.structure}(...) of fewer positions",
            page=PAGE,
        )
    columns = (codes[:, None] == np.arange(1, width)[None]).astype(FLOAT)
    position = "row" if part.position == ORDER else part.position
    return columns, tuple(f"{position}[{name}]" for name in places.names[1:])


def _refuse_unseen_pairs(part: ResidualPart, term: ResidualTerm) -> None:
    """Refuse correlations of visits that no series, or one alone, has both of."""
    if not part.meaning.correlations:
        return
    T = term.positions
    there = np.zeros((term.count, T))
    there[term.codes, term.places.astype(int)] = 1
    together, names = there.T @ there, term.place_names
    if part.meaning.correlations == "pairs":
        i, j = np.tril_indices(T, -1)
        pairs = {f"both {names[b]} and {names[a]}": together[a, b] for a, b in zip(i, j, strict=True)}
    else:
        pairs = {f"positions that are {lag} apart": np.trace(together, lag) for lag in range(1, T)}
    what, count = min(pairs.items(), key=lambda pair: pair[1])
    if count < 2:
        raise ModelError(
            f"residual={part.text!r}: {int(count)} of {term.count} groups {'have' if count != 1 else 'has'} rows "
            f"at {what}, too few for a correlation of their own; merge positions, or use "
            f"{'toep(...) or ' if part.meaning.correlations == 'pairs' else ''}ar1(...)",
            page=PAGE,
        )


def _refuse_crossing(part: ResidualPart, series: Factor, terms: Sequence[Any]) -> None:
    """Refuse series that cut across the levels of a random-effects term, and terms that say the same as the series."""
    for term in terms:
        first = np.zeros(len(series.levels), np.int64)
        first[series.codes] = term.codes
        across = np.flatnonzero(first[series.codes] != term.codes)
        if len(across):
            label = series.levels.tolist()[series.codes[across[0]]]
            raise ModelError(
                f"residual={part.text!r}: the rows of {series.name} {label!r} belong to several levels of "
                f"{term.group!r}, a grouping factor of the random effects; correlated residuals need groups that lie "
                f"inside each level of the random effects, such as {part.word}({part.position} | "
                f"{term.group}:{series.name}) if that is meant",
                page=PAGE,
            )
        equal = len(term.levels) == len(series.levels)
        is_intercept = term.intercept is not None and term.Z.shape[1] == 1
        same = part.meaning.holds == "all" or (part.meaning.holds == "intercepts" and is_intercept)
        if equal and same:
            raise ModelError(
                f"residual={part.text!r}: the random-effects term {term.label!r} says nothing that {part.word} within "
                f"the same groups does not hold already; leave the term out",
                page=PAGE,
            )
