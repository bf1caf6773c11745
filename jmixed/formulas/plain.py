"""Formulas of columns as they are, which formulaic need not see row by row.

Without transforms a formula's columns are numbers times indicators of categories. So formulaic is shown a table with a
row for each combination of categories, and ones in the place of numbers. A row of the data has the columns of its
combination times its numbers. The answer depends on the categories alone: it is worked out once and remembered.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from formulaic import ModelSpec

from jmixed.formulas.evaluate import FormulaFactor, new_spec
from jmixed.formulas.factors import compress
from jmixed.formulas.frame import column
from jmixed.runtime.memory import roomy
from jmixed.runtime.precision import FLOAT

FEW = 256
"""Combinations of categories up to which a table is worked out and remembered."""

Stated = tuple[tuple[tuple[str, str], ...], ...]
"""The terms of a formula by their factors: how each is spelled and looked up."""


class _Categories(NamedTuple):
    name: str
    kind: str
    """What the column held: "text", "truth" values, or a "categorical"."""
    levels: tuple


class _Answer(NamedTuple):
    """What formulaic makes of a formula: its spec, and the columns (combinations, k) with ones for the numbers."""

    spec: ModelSpec
    values: np.ndarray


def plain_columns(specs: Mapping[str, ModelSpec], frame: pd.DataFrame) -> dict[str, tuple[ModelSpec, np.ndarray]]:
    """Of those formulas that are made of columns as they are: formulaic's learnt spec, and the columns (n, k).

    The parts that formulaic must evaluate are not there: those with transforms, missing values, or odd categories.
    """
    coded: dict[str, Any] = {}
    answers = {part: _evaluate(spec, frame, coded) for part, spec in specs.items()}
    return {part: answer for part, answer in answers.items() if answer is not None}


def _evaluate(spec: ModelSpec, frame: pd.DataFrame, coded: dict[str, Any]) -> tuple[ModelSpec, np.ndarray] | None:
    stated = tuple(tuple((f.expr, f.eval_method.value) for f in term.factors) for term in spec.formula)
    if not spec.ensure_full_rank:
        return None
    names = dict.fromkeys(name for term in stated for name, way in term if way != "literal")
    for name in names:
        if name not in coded:
            coded[name] = _code(column(frame, name)) if name in frame.columns else None
        if coded[name] is None:
            return None
    numbers = {name: coded[name] for name in names if isinstance(coded[name], np.ndarray)}
    factors = {name: coded[name] for name in names if name not in numbers}
    cells, place = _combinations(
        [codes for codes, *_ in factors.values()], [len(coding[2]) for coding in factors.values()]
    )
    if len(cells) > FEW:
        return None
    categories = tuple(_Categories(name, coding[1], coding[2]) for name, coding in factors.items())
    answer = _ask(stated, tuple(numbers), categories, tuple(map(tuple, cells.tolist())))
    return answer.spec, _columns(answer, numbers, place, len(frame))


def _code(series: pd.Series) -> np.ndarray | tuple[np.ndarray, str, tuple] | None:
    """The numbers of a column; or codes of its categories, their kind, and the categories; None if neither."""
    dtype = series.dtype
    if dtype == "bool":
        values = series.to_numpy()
        low, high = bool(values.min()), bool(values.max())
        return values.astype(np.int8) - low, "truth", (low, high) if high > low else (low,)
    if isinstance(dtype, np.dtype) and dtype.kind in "if":
        values = series.to_numpy()
        with np.errstate(all="ignore"):
            return values if np.isfinite(values.sum()) else None
    text = dtype in ("object", "str")
    if text:
        codes, levels = pd.factorize(series)
    elif isinstance(dtype, pd.CategoricalDtype):
        codes, levels = series.cat.codes.to_numpy(), dtype.categories
    else:
        return None
    levels = tuple(levels.tolist()) if len(levels) <= FEW else ()
    alike = all(type(level) is str for level in levels) or (not text and all(type(level) is int for level in levels))
    kind = "text" if text else "categorical"
    return (codes, kind, levels) if levels and alike and codes.min() >= 0 else None


def _combinations(codes: list[np.ndarray], sizes: list[int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Codes (cells, factors) of the combinations that occur, and that of each row; one of nothing without factors."""
    if not codes:
        return np.zeros((1, 0), np.int64), None
    if len(codes) == 1:
        return np.arange(sizes[0])[:, None], codes[0]
    cells, place = compress(
        np.ravel_multi_index([column_codes.astype(np.int64) for column_codes in codes], sizes), int(np.prod(sizes))
    )
    return np.stack(np.unravel_index(cells, sizes), axis=1), place


@functools.lru_cache(maxsize=64)
def _ask(stated: Stated, numbers: tuple[str, ...], categories: tuple[_Categories, ...], cells: tuple) -> _Answer:
    """Formulaic's columns of a formula, for a row for each cell (codes of all categories)."""
    codes = np.array(cells, np.int64).reshape(len(cells), len(categories))
    table: dict[str, Any] = {name: np.ones(len(cells)) for name in numbers}
    for column_codes, (name, kind, levels) in zip(codes.T, categories, strict=True):
        values = pd.Categorical.from_codes(column_codes, list(levels))
        table[name] = values.astype(object) if kind == "text" else values
    frame = pd.DataFrame(table, index=range(len(cells)))
    spec = new_spec([FormulaFactor(name, eval_method=way) for name, way in term] for term in stated)
    matrix: Any = spec.get_model_matrix(frame, output="numpy")
    spec = matrix.model_spec
    values = np.asarray(matrix, FLOAT) if spec.column_names else np.empty((len(cells), 0))
    return _Answer(spec, values)


def _columns(answer: _Answer, numbers: Mapping[str, np.ndarray], place: np.ndarray | None, n: int) -> np.ndarray:
    """The columns (n, k): those of each row's combination, times the numbers of the term."""
    out = roomy(n, answer.values.shape[1])
    for term, place_of_term in answer.spec.term_slices.items():
        coding = answer.values[:, place_of_term] if place is None else answer.values[:, place_of_term][place]
        product = [numbers[factor.expr] for factor in term.factors if factor.expr in numbers]
        if product:
            np.multiply(coding, functools.reduce(np.multiply, product)[:, None], out=out[:, place_of_term])
        else:
            out[:, place_of_term] = coding
    return out
