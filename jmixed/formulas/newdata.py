"""New rows through the eyes of a model: the same columns, the same levels."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, JmixedError, RankWarning, warn
from jmixed.formulas.evaluate import FormulaFactor, factors_of
from jmixed.formulas.frame import (
    any_of,
    column,
    missing_rows,
    new_table,
    numbers,
    per_row,
    require_known,
    working_frame,
)
from jmixed.formulas.model_data import LocalColumns, ModelData, NewRows, RandomTerm
from jmixed.formulas.recipe import PartMatrices, Recipe, evaluate, may_need_others, of_whole_columns, source
from jmixed.runtime.precision import FLOAT

ESTIMABLE = 1e-6
"""How far, relative to its size, a redundant column of a new row may be from what the model's rows make of it."""


def new_rows(model: ModelData, data: Any, random: bool = False, further: Collection[str] = ()) -> NewRows:
    """Fixed-effects columns, offset and, if asked for, random-effects columns and levels of new data.

    The data need the columns of the predictors only; for a model made of arrays they are an array (k, p). The columns
    of further predictors, "dispersion" and "zero" of a generalized model, are made if these are named in `further`.

    Raises
    ------
    DataError
        For a column that is not there and for a category of a fixed effect that the model has not seen.

    Examples
    --------
    >>> from jmixed.formulas.statement import from_formula, new_rows
    >>> model = from_formula("y ~ 1 + (1 | g)", {"y": [1.0, 2.0, 4.0, 3.0], "g": ["a", "a", "b", "b"]})
    >>> new_rows(model, {"g": ["b", "z"]}, random=True).codes
    (array([ 1, -1], dtype=int32),)
    """
    if model.recipe is None:
        return _from_array(model, data, random)
    recipe = model.recipe
    rebuilds = [term.rebuild for term in model.terms if term.rebuild] if random else []
    parts = ["rhs", *recipe.offsets]
    others = [part for part in further if part in recipe.specs] if model.response is not None else []
    parts = list(dict.fromkeys([*parts, *others, *(rebuild.part for rebuild in rebuilds if rebuild.part)]))
    needed = recipe.columns([*parts, *(rebuild.local.part for rebuild in rebuilds if rebuild.local)])
    frame = new_table(data, needed)
    # An expression as a grouping factor is looked at when it is evaluated.
    sources = [name for rebuild in rebuilds for name in rebuild.factor.sources if "(" not in name]
    require_known([*needed, *sources], frame, "the model")
    masks = missing_rows({name: column(frame, name) for name in needed})
    missing = any_of(masks) if masks else np.zeros(len(frame), bool)
    X, offset = np.full((len(frame), len(model.kept)), np.nan), np.full(len(frame), np.nan)
    codes = tuple(np.full(len(frame), -1, np.int32) for _ in model.terms) if random else ()
    Z = tuple(np.full((len(frame), len(term.columns)), np.nan) for term in model.terms) if random else ()
    columns_of = {part: np.full((len(frame), len(recipe.specs[part].column_names)), np.nan) for part in others}
    there = np.flatnonzero(~missing)
    if len(there):
        # Transforms see what they saw when they learnt: rows without missing values.
        some = frame if len(there) == len(frame) else frame.iloc[there]
        working = working_frame(some, needed, recipe.aliases, recipe.dtypes)
        require_row_by_row(model, parts, some)
        evaluation = evaluate(recipe, parts, working, fresh=False)
        columns = evaluation.matrices["rhs"].values
        X[there] = columns[:, model.kept]
        lost = np.zeros(len(frame), bool)
        lost[there] = _without_estimate(model, columns)
        lost[there[evaluation.missing]] = False
        if lost.any():
            warn(_not_estimable(model, frame.index, lost), RankWarning)
        X[there[evaluation.missing]] = X[lost] = np.nan
        offset[there] = _offset(model, evaluation, some)
        for part in others:
            columns_of[part][there] = evaluation.matrices[part].values
        effects = _random(model.terms, recipe, evaluation, some, working) if random else ()
        for term, (code, values) in enumerate(effects):
            codes[term][there], Z[term][there] = code, values
        if random:
            _require_effects_row_by_row(model, some, needed)
    missing |= np.isnan(X).any(axis=1) | np.isnan(offset)
    missing |= np.any([np.isnan(values).any(axis=1) for values in columns_of.values()], axis=0)
    return NewRows(X, offset, frame.index, codes, Z, missing, **columns_of)


@dataclass(frozen=True)
class FixedColumns:
    """The fixed part of k new rows, estimable or not.

    The mean of a row is estimable if it is a combination of the model's rows: if the redundant columns are there what
    they are in those, whichever of the columns were left out. So it is with linear combinations of rows.
    """

    X: np.ndarray  # (k, p)
    offset: np.ndarray  # (k,)
    amiss: np.ndarray  # (k, d) how far each redundant column is from what the model's rows make of it
    size: np.ndarray  # (k, d) of what that is a difference

    def without_estimate(self, weights: np.ndarray) -> np.ndarray:
        """Which combinations of the rows (m, k) the model's own rows do not determine, bool array (m,)."""
        return np.any(np.abs(weights @ self.amiss) > ESTIMABLE * (np.abs(weights) @ self.size), axis=1)


def require_row_by_row(model: ModelData, parts: Collection[str], frame: pd.DataFrame) -> None:
    """Refuse expressions such as ``x - x.mean()``, which of new rows would be something else than of the model's."""
    recipe = model.recipe
    assert recipe is not None
    parts = [part for part in parts if any(map(may_need_others, factors_of(recipe.specs[part])))]
    if not parts or model.frame is None:
        return
    needed = recipe.columns(parts)
    known, new = (
        working_frame(rows, needed, recipe.aliases, recipe.dtypes).reset_index(drop=True)
        for rows in (model.frame, frame)
    )
    if known.equals(new):
        return
    if found := of_whole_columns(recipe, parts, known):
        name, part = found
        raise DataError(
            f"{name!r} in {recipe.texts[part].strip()!r} needs the whole column at once: in new rows it would be "
            "another. center(x) and scale(x) keep what they learnt; else make its values a column of the data, or "
            "use known numbers, as in I(x - 50)"
        )


def _require_effects_row_by_row(model: ModelData, frame: pd.DataFrame, needed: Collection[str]) -> None:
    """Refuse the same in expressions of grouping factors, and in columns of variance components made by group."""
    recipe, known = model.recipe, model.frame
    if recipe is None or known is None:
        return

    def of_rows(rows: pd.DataFrame) -> pd.DataFrame:
        return working_frame(rows, needed, recipe.aliases, recipe.dtypes).reset_index(drop=True)

    for term in model.terms:
        for name in term.rebuild.factor.sources if term.rebuild else ():
            if name not in known.columns and may_need_others(FormulaFactor(name, eval_method="python")):
                every = pd.Series(np.asarray(source(name, known, recipe), dtype=object))
                new = pd.Series(np.asarray(source(name, frame, recipe), dtype=object))
                for places in () if every.equals(new) else _some_of(len(known)):
                    if not _labels_are(name, known.iloc[places], recipe, every.iloc[places]):
                        raise _needs_the_whole(f"the grouping factor {name!r}")
        local = term.rebuild.local if term.rebuild else None
        if (
            local
            and any(map(may_need_others, local.expressions))
            and not (working := of_rows(known)).equals(of_rows(frame))
        ):
            for places in _some_of(len(known)):
                if not _columns_are(local, working.iloc[places], term.codes[places], term.Z[places]):
                    raise _needs_the_whole(f"the variance component {term.vc!r}")


def _some_of(n: int) -> list[np.ndarray]:
    """Places of some of the rows, which must be without the others what they are with them."""
    return [places for places in (np.arange(0, n, 2), np.arange(1, n, 2), np.arange(n)[:1]) if len(places)]


def _labels_are(name: str, frame: pd.DataFrame, recipe: Recipe, expected: pd.Series) -> bool:
    try:
        labels = pd.Series(np.asarray(source(name, frame, recipe), dtype=object))
    except JmixedError:
        return False
    return labels.equals(expected.reset_index(drop=True))


def _columns_are(local: LocalColumns, working: pd.DataFrame, codes: np.ndarray, expected: np.ndarray) -> bool:
    try:
        return np.allclose(local.build(working, codes), expected, rtol=1e-9, atol=0, equal_nan=True)
    except JmixedError:
        return False


def _needs_the_whole(what: str) -> DataError:
    return DataError(
        f"{what} needs all rows of the data, or of a group, at once: of new rows it would be another. "
        "Make its values a column of the data"
    )


def fixed_columns(model: ModelData, data: Any) -> FixedColumns:
    """The fixed part of new rows without missing values, for a model that was stated by a formula."""
    assert model.recipe is not None
    recipe = model.recipe
    parts = ["rhs", *recipe.offsets]
    needed = recipe.columns(parts)
    frame = new_table(data, needed)
    require_known(needed, frame, "the model")
    working = working_frame(frame, needed, recipe.aliases, recipe.dtypes)
    require_row_by_row(model, parts, frame)
    evaluation = evaluate(recipe, parts, working, fresh=False)
    columns = evaluation.matrices["rhs"].values
    return FixedColumns(columns[:, model.kept], _offset(model, evaluation, frame), *_redundance(model, columns))


def _redundance(model: ModelData, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of all columns (k, c) of the formula: how far the redundant ones (k, d) are amiss, and what that compares to."""
    if model.redundant is None or model.explained is None:
        return np.zeros((len(columns), 0)), np.zeros((len(columns), 0))
    X, others = columns[:, model.kept], columns[:, model.redundant]
    return others - X @ model.explained, np.abs(others) + np.abs(X) @ np.abs(model.explained)


def _without_estimate(model: ModelData, columns: np.ndarray) -> np.ndarray:
    """Rows (k,) of all columns (k, c) of the formula whose mean the model's own rows do not determine."""
    amiss, size = _redundance(model, columns)
    return np.any(np.abs(amiss) > ESTIMABLE * size, axis=1)


def _not_estimable(model: ModelData, index: pd.Index, lost: np.ndarray) -> str:
    first, count = index[np.flatnonzero(lost)[0]], int(lost.sum())
    return (
        f"{count} of {len(lost)} new rows, the first of them {first!r}, {'have' if count > 1 else 'has'} no estimate, "
        f"and NaN in its place: the data do not determine it, as for a combination of categories without rows, where "
        f"{', '.join(model.dropped)} had to be left out"
    )


def _offset(model: ModelData, evaluation: PartMatrices, frame: pd.DataFrame) -> np.ndarray:
    """Offsets of the formula and of the column that offset= named."""
    offset = np.zeros(len(frame))
    for part, matrix in evaluation.matrices.items():
        if part.startswith("offset"):
            offset = offset + matrix.values[:, 0]
    if model.offset_source:
        offset = offset + numbers(per_row(model.offset_source, frame, "offset"), "offset")
    elif model.offset_source is not None and model.offset.any():
        raise DataError(
            "the model was given its offset as an array, which new data does not have; "
            "give the offset as a column name or as offset(column) in the formula to predict for new data"
        )
    return offset


def _random(
    terms: tuple[RandomTerm, ...], recipe: Recipe, evaluation: PartMatrices, frame: pd.DataFrame, working: pd.DataFrame
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Levels and columns of each term."""
    for term in terms:
        rebuild = term.rebuild
        if rebuild is None:
            raise DataError(f"the term {term.label!r} was given as arrays and cannot be made for new data")
        labels = [source(name, frame, recipe) for name in rebuild.factor.sources]
        level = rebuild.factor.match(labels)
        if term.relationship is not None:
            level = term.relationship.match(level, labels)
        if rebuild.local is not None:
            values = rebuild.local.build(working, level)
        elif rebuild.part is None:
            values = np.ones((len(frame), 1))
        else:
            values = evaluation.matrices[rebuild.part].values
        yield level, values


def _from_array(model: ModelData, data: Any, random: bool) -> NewRows:
    """New fixed-effects columns for a model made of arrays."""
    if random:
        raise DataError("a model made of arrays knows no columns; random effects for new data need a formula")
    frame = data if isinstance(data, pd.DataFrame) else None
    X = np.asarray(data, dtype=FLOAT)
    X = X[:, None] if X.ndim == 1 else X
    width = len(model.kept) + len(model.dropped)
    if X.ndim != 2 or X.shape[1] not in (width, len(model.kept)):
        raise DataError(f"new data has shape {X.shape}; it must have the {width} columns of exog")
    if X.shape[1] == width:
        X = X[:, model.kept]
    if model.offset.any():
        raise DataError("the model has an offset given as an array, which new data does not have; use a formula")
    index = frame.index if frame is not None else pd.RangeIndex(len(X))
    return NewRows(np.ascontiguousarray(X), np.zeros(len(X)), index, (), (), np.asarray(np.isnan(X).any(axis=1)))
