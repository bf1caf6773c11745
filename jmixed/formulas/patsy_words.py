"""The words of a formula that mean something else in patsy: what they mean in a call in statsmodels' manner.

Values and names of columns are patsy's there: deviations with n as divisor, levels by position, splines counted from 0,
and codings that keep their own columns where there is no intercept.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from formulaic import FactorValues, transforms
from formulaic.transforms import stateful_transform

from jmixed.errors import DataError
from jmixed.runtime.precision import FLOAT


class Coding:
    """Columns for the levels of a category: k - 1 of them beside an intercept, and k without one."""

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        """The columns (levels, k) and the end of each one's name."""
        raise NotImplementedError


def _names(prefix: str, levels: Sequence) -> list[str]:
    return [f"[{prefix}{level}]" for level in levels]


def _position(levels: list, level: Any) -> int:
    """The place of a level; a whole number that is no level counts from the first, or from the end if negative."""
    if level in levels:
        return levels.index(level)
    if isinstance(level, int) and -len(levels) <= level < len(levels):
        return level % len(levels)
    raise ValueError(f"{level!r} is neither one of the levels {levels[:20]} nor the position of one")


def _with_ones(matrix: np.ndarray) -> np.ndarray:
    return np.column_stack([np.ones(len(matrix)), matrix])


@dataclass
class Treatment(Coding):
    """Differences from a reference level, the first by default."""

    reference: Any = None

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        if not reduced:
            return np.eye(len(levels)), _names("", levels)
        place = 0 if self.reference is None else _position(levels, self.reference)
        return np.delete(np.eye(len(levels)), place, axis=1), _names("T.", levels[:place] + levels[place + 1 :])


@dataclass
class Sum(Coding):
    """Deviations from the mean of the levels' means, but that of one level, the last by default."""

    omit: Any = None

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        place = len(levels) - 1 if self.omit is None else _position(levels, self.omit)
        matrix = np.delete(np.eye(len(levels)), place, axis=1)
        matrix[place] = -1
        names = _names("S.", levels[:place] + levels[place + 1 :])
        return (matrix, names) if reduced else (_with_ones(matrix), ["[mean]", *names])


@dataclass
class Helmert(Coding):
    """Each level from the second on, against the mean of those before it."""

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        n = len(levels)
        matrix = np.diag(np.arange(n, dtype=FLOAT)) - np.triu(np.ones((n, n)), 1)
        if reduced:
            return matrix[:, 1:], _names("H.", levels[1:])
        return _with_ones(matrix[:, 1:]), _names("H.", ["intercept", *levels[1:]])


@dataclass
class Diff(Coding):
    """Each level from the second on, against the one before it."""

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        n = len(levels)
        matrix = np.arange(1, n) / n - np.triu(np.ones((n, n - 1)))
        return (matrix, _names("D.", levels[:-1])) if reduced else (_with_ones(matrix), _names("D.", levels))


@dataclass
class Poly(Coding):
    """Orthogonal polynomials of the scores of the levels, by default 0, 1, ..."""

    scores: Any = None

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        n = len(levels)
        scores = np.arange(n, dtype=FLOAT) if self.scores is None else np.asarray(self.scores, FLOAT)
        if len(scores) != n:
            raise ValueError(f"Poly has {len(scores)} scores for {n} levels")
        powers = (scores - scores.mean())[:, None] ** np.arange(n)
        basis, triangle = np.linalg.qr(powers)
        basis = basis * np.sign(np.diagonal(triangle))
        names = [".Linear", ".Quadratic", ".Cubic", *(f"^{k}" for k in range(4, n))][: n - 1]
        return (basis[:, 1:], names) if reduced else (_with_ones(basis[:, 1:]), [".Constant", *names])


@dataclass
class Own(Coding):
    """A matrix of the caller's, or an object that has patsy's two methods."""

    contrast: Any

    def columns(self, levels: list, reduced: bool) -> tuple[np.ndarray, list[str]]:
        contrast = self.contrast
        if hasattr(contrast, "code_without_intercept"):
            contrast = contrast.code_without_intercept(levels) if reduced else contrast.code_with_intercept(levels)
        if hasattr(contrast, "column_suffixes"):
            return np.asarray(contrast.matrix, FLOAT), list(contrast.column_suffixes)
        matrix = np.asarray(contrast, FLOAT)
        return matrix, _names("custom", range(matrix.shape[1]))


def C(data: Any, contrast: Any = None, levels: Any = None, contrasts: Any = None) -> FactorValues:
    """A category, its coding and its levels."""
    _require_levels(data, levels)
    coding = contrast if contrasts is None else contrasts
    coding = coding() if callable(coding) else coding
    if coding is None or isinstance(coding, dict) or hasattr(coding, "get_coding_matrix"):
        return transforms.C(data, coding, levels=levels)
    return _coded(data, coding if isinstance(coding, Coding) else Own(coding), levels)


def C_beside_bars(data: Any, contrasts: Any = None, *, levels: Any = None, spans_intercept: bool = True) -> Any:
    """formulaic's own, which takes `Treatment` in patsy's sense, too."""
    _require_levels(data, levels)
    coding = Treatment() if contrasts is Treatment else contrasts
    if isinstance(coding, Coding):
        return _coded(data, coding, levels)
    return transforms.C(data, coding, levels=levels, spans_intercept=spans_intercept)


def _require_levels(data: Any, levels: Any) -> None:
    """Refuse values that are none of the levels stated: their rows would be taken for those of the reference."""
    if levels is None:
        return
    values = pd.Series(getattr(data, "__wrapped__", data)).dropna()
    others = [value for value in values.unique().tolist() if value not in list(levels)]
    if others:
        raise DataError(
            f"C(..., levels={list(levels)!r}): the data have {', '.join(map(repr, others[:3]))}"
            f"{', ...' if len(others) > 3 else ''}, none of these levels: name all levels, or leave such rows out"
        )


def _coded(data: Any, coding: Coding, levels: Any) -> FactorValues:
    def encoder(values: Any, reduced_rank: bool, drop_rows: Sequence[int], encoder_state: dict, model_spec: Any) -> Any:
        """The columns, as formulaic asks for them; the levels are those given, learnt, or found, in their order."""
        series = pd.Series(getattr(values, "__wrapped__", values))
        series = series.drop(index=series.index[list(drop_rows)])
        known = encoder_state.get("categories") if levels is None else list(levels)
        category = pd.Categorical(series, categories=known)
        encoder_state["categories"] = list(category.categories)
        matrix, names = coding.columns(encoder_state["categories"], reduced_rank)
        # What is missing has zeros: its row is left out elsewhere.
        columns = np.where(category.codes[:, None] >= 0, matrix[category.codes], 0.0)
        form = {"kind": "categorical", "format": "{name}{field}", "encoded": True}
        return FactorValues(columns, column_names=tuple(names), spans_intercept=not reduced_rank, **form)

    return FactorValues(data, kind="categorical", spans_intercept=True, encoder=encoder)


def _counted(columns: Any) -> FactorValues:
    """The columns of a spline, counted from 0; an intercept in the formula leaves all of them."""
    values = np.column_stack(list(columns.values()))
    return FactorValues(values, kind="numerical", column_names=tuple(range(values.shape[1])), spans_intercept=False)


@stateful_transform
def scale(x, center=True, rescale=True, ddof=0, _state: Any = None) -> Any:
    """Deviations from the mean in standard deviations, with n as divisor."""
    scaled = transforms.scale(x, center=True, scale=rescale, ddof=ddof, _state=_state)
    # A standard deviation is about the mean, taken away or not; formulaic's and R's is then about zero.
    if center:
        return scaled
    return np.asarray(x) / (1.0 if _state["scale"] is None else _state["scale"])


@stateful_transform
def bs(x, *args, _state=None, **more) -> FactorValues:
    """B-splines."""
    return _counted(transforms.basis_spline(x, *args, _state=_state, **more))


@stateful_transform
def cr(x, *args, _state=None, **more) -> FactorValues:
    """Natural cubic splines."""
    return _counted(transforms.natural_cubic_spline(x, *args, _state=_state, **more))


@stateful_transform
def cc(x, *args, _state=None, **more) -> FactorValues:
    """Cyclic cubic splines."""
    return _counted(transforms.cyclic_cubic_spline(x, *args, _state=_state, **more))


PATSY = {
    **{"scale": scale, "standardize": scale, "C": C, "bs": bs, "cr": cr, "cc": cc},
    **{"Treatment": Treatment, "Sum": Sum, "Helmert": Helmert, "Diff": Diff, "Poly": Poly},
}
"""The words by name."""

BESIDE_BARS = {"C": C_beside_bars, "Treatment": Treatment}
"""Those of them that formulas with bars know, too."""
