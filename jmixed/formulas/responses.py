"""Responses of generalized models: what stands on the left of a formula, and the numbers or codes that it becomes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec

from jmixed.errors import DataError, FormulaError, ModelError
from jmixed.formulas.checks import independent_columns, require_positive
from jmixed.formulas.evaluate import known_factors
from jmixed.formulas.factors import label_kinds
from jmixed.formulas.formula import FormulaParts, replace_keywords, scan
from jmixed.formulas.frame import (
    column,
    few,
    holds_text,
    numbers,
    require_finite,
    spell_numbers,
    text_error,
)
from jmixed.formulas.marks import mark, spelled
from jmixed.formulas.model_data import FurtherColumns, ResponseTerm
from jmixed.formulas.recipe import Matrix, Recipe, restore
from jmixed.runtime.memory import filled
from jmixed.runtime.precision import FLOAT

RESPONSES = ("numbers", "successes", "categories")
"""What the response of a family may be."""
FURTHER = {"dispersion": "dispersion", "zero": "zero_inflation"}
"""The further predictors: the part of the recipe, and the argument that states it."""
WHOLE = 1e-6
"""How far, relative to its size, a number of trials or successes may be from a whole one."""
ROUNDING = 1e-12
"""How far a proportion may be from zero or one to be that."""
PAIR = "cbind(successes, failures) ~ ..."


@dataclass(frozen=True)
class ResponsePart:
    """The response of a generalized model in words."""

    kind: str  # of `RESPONSES`
    family: str  # what messages call the family
    text: str  # the left-hand side
    failures: bool = False  # whether it is of the form cbind(successes, failures)


def response_part(parts: FormulaParts, kind: str, family: str, trials: Any) -> tuple[ResponsePart, dict[str, str]]:
    """The response in words, and the texts of the parts "failures" and "fixed" where it is ``cbind(a, b)``.

    The word is taken out here, and what remains keeps its position: other functions named cbind are not meant.
    """
    if kind not in RESPONSES:
        raise ModelError(f"response_kind is {kind!r}; it must be one of {', '.join(RESPONSES)}")
    left, _, right = parts.fixed.partition("~")
    tokens = list(scan(left))
    pair = len(tokens) == 1 and bool(re.fullmatch(r"cbind\(.*\)", tokens[0].text, re.DOTALL))
    code, aliases = replace_keywords(left, set(re.findall(r"\w+", left)))
    part = ResponsePart(kind, family, restore(spelled(code), aliases), pair)
    if kind != "successes" and (pair or trials is not None):
        what = "cbind(...)" if pair else "trials="
        exposure = "; what counts are relative to is an offset, as in + offset(np.log(size))"
        raise ModelError(
            f"{what} states successes of a number of trials, and the family {family!r} has none: use family='binomial'"
            f"{exposure if kind == 'numbers' else ''}"
        )
    if not pair:
        return part, {}
    start = tokens[0].start
    if trials is not None:
        raise DataError(f"{part.text} has its numbers of trials in it, and trials= is given too: leave one of them out")
    places = _arguments(left, start + len("cbind("), tokens[0].end - 1)
    if len(places) != 2:
        message = f"cbind has two arguments here, successes and failures, and is given {len(places)}: {PAIR}"
        raise FormulaError(mark(message, parts.text, start))
    for a, b in places:
        if [token.kind for token in scan(left[a:b])] == ["value"]:
            message = f"{left[a:b]} in cbind is one number for all rows: give a column of them"
            raise FormulaError(mark(message, parts.text, a))
    successes, failures = (_alone(left, *place) for place in places)
    return part, {"failures": f"{left[:start]}0+{failures[start + 2 :]}", "fixed": f"{successes}~{right}"}


def _arguments(text: str, start: int, end: int) -> list[tuple[int, int]]:
    """Where the arguments of a call stand, without blanks around them; `start` and `end` are what it encloses."""
    depth, cuts = 0, [start - 1]
    for token in scan(text[start:end]):
        depth += (token.kind in ("(", "[")) - (token.kind in (")", "]"))
        if token.kind == "," and not depth:
            cuts.append(start + token.start)
    cuts.append(end)
    spans = [(a + 1, b) for a, b in zip(cuts[:-1], cuts[1:], strict=True)]
    stripped = [(a + len(text[a:b]) - len(text[a:b].lstrip()), a + len(text[a:b].rstrip())) for a, b in spans]
    return [(a, b) for a, b in stripped if a < b]


def _alone(text: str, start: int, end: int) -> str:
    """The text with everything blank but an expression, which is braced for formulaic unless it is a name or a call."""
    tokens = list(scan(text[start:end]))
    braced = len(tokens) != 1 or tokens[0].kind not in ("name", "python")
    inside = f"{{{text[start:end]}}}" if braced else text[start:end]
    return (" " * (start - braced) + inside).ljust(len(text))


def merged(recipe: Recipe) -> Recipe:
    """The recipe with one left-hand side: what new data need not have."""
    if "failures" not in recipe.specs:
        return recipe
    specs, needs, texts = dict(recipe.specs), dict(recipe.needs), dict(recipe.texts)
    del specs["failures"], texts["failures"]
    needs["lhs"] = tuple(dict.fromkeys((*needs["lhs"], *needs.pop("failures"))))
    return replace(recipe, specs=specs, needs=needs, texts=texts)


@dataclass(frozen=True)
class Response:
    """The response of a generalized model in numbers."""

    name: str
    y: np.ndarray  # (n,), as `ModelData.y`
    weights: np.ndarray  # (n,)
    term: ResponseTerm


def read_response(
    part: ResponsePart,
    recipe: Recipe,
    matrices: Mapping[str, Matrix],
    frame: pd.DataFrame,
    beside: Mapping[str, pd.Series],
    positions: np.ndarray,
) -> Response:
    """The response of complete rows; `recipe` and `matrices` are evaluated, `beside` has weights and trials if given.

    Raises
    ------
    DataError
        For what is no response of the family, with the rows.
    """
    weights = filled(1.0, len(frame))
    if "weights" in beside:
        weights = numbers(beside["weights"], "weights")
        require_positive(weights, positions)
        require_finite(weights, ["weights"], positions)
    left = _left(part, recipe, matrices["lhs"], frame)
    if part.kind == "numbers":
        return _numbers(left, weights, positions)
    if part.kind == "categories":
        return _categories(left, weights, positions)
    if part.failures:
        failures = _failures(part, recipe, matrices["failures"], frame)
        return _of_pair(left, failures, weights, positions)
    if left.labels is not None:
        return _of_two(left, "trials" in beside, weights)
    trials = _trials(beside["trials"], "trials", positions) if "trials" in beside else None
    return _of_numbers(left, trials, weights if "weights" in beside else None, positions)


@dataclass(frozen=True)
class _Left:
    """The left-hand side in numbers, or codes of labels."""

    part: ResponsePart
    name: str
    values: np.ndarray  # (n,) numbers, or codes
    labels: tuple[Any, ...] | None  # those that occur, in their order
    text: pd.Series | None  # a column that holds text or categories

    @property
    def what(self) -> str:
        return f"the response {self.name!r}"

    @property
    def is_truth(self) -> bool:
        return self.labels is not None and all(isinstance(label, bool) for label in self.labels)


def _left(part: ResponsePart, recipe: Recipe, matrix: Matrix, frame: pd.DataFrame) -> _Left:
    text = next((column(frame, name) for name in recipe.needs["lhs"] if holds_text(column(frame, name))), None)
    known = known_factors(recipe.specs["lhs"])
    labels = _labels(recipe.specs["lhs"], matrix) if len(known) == 1 else None
    if labels is None:
        if len(matrix.names) != 1:
            raise _several(matrix)
        name = part.text if part.failures else matrix.names[0]
        return _Left(part, name, matrix.values[:, 0], None, text)
    name = part.text if part.failures else restore(next(iter(known)).expr, recipe.aliases)
    if label_kinds(labels).keys() == {"truth values"}:
        return _Left(part, name, matrix.values[:, 0], (False, True), text)
    # A level may be gone with the rows in which something is missing.
    used, codes = np.unique(matrix.values.argmax(axis=1), return_inverse=True)
    return _Left(part, name, codes.astype(FLOAT), tuple(labels[k] for k in used), text)


def _labels(spec: ModelSpec, matrix: Matrix) -> list[Any] | None:
    """The labels that the columns of the left-hand side indicate; None for numbers."""
    kind, state = next(iter(known_factors(spec).values()))
    labels = pd.Index(state.get("categories", ())).tolist() if kind == "categorical" else []
    if not labels:
        return None
    if label_kinds(labels).keys() != {"truth values"} and (
        len(labels) != matrix.values.shape[1] or not np.isin(matrix.values, (0, 1)).all()
    ):
        raise DataError(
            f"the response is a category with a coding of its own, {', '.join(matrix.names[:3])}: name the column as "
            "it is"
        )
    return labels


def _several(matrix: Matrix) -> DataError:
    more = " and more" if len(matrix.names) > 4 else ""
    return DataError(
        f"the response must be one column; the formula gives {len(matrix.names)}: {matrix.names[:4]}{more}"
    )


def _failures(part: ResponsePart, recipe: Recipe, matrix: Matrix, frame: pd.DataFrame) -> np.ndarray:
    spec = recipe.specs["failures"]
    if any(kind == "categorical" for kind, _ in known_factors(spec).values()) and len(matrix.names) > 1:
        text = next((column(frame, name) for name in recipe.needs["failures"] if holds_text(column(frame, name))), None)
        if text is not None:
            raise text_error(f"{part.text}: the column {text.name!r}", text)
    if len(matrix.names) != 1:
        raise _several(matrix)
    return matrix.values[:, 0]


def _at(bad: np.ndarray, positions: np.ndarray) -> str:
    """In how many rows something is wrong, and where."""
    rows = np.flatnonzero(bad)
    shown = ", ".join(str(int(k)) for k in positions[rows[:5]]) + (", ..." if len(rows) > 5 else "")
    return f"in {len(rows)} of {len(positions)} rows, at row positions {shown}"


def _numbers(left: _Left, weights: np.ndarray, positions: np.ndarray) -> Response:
    """Numbers, as a response of counts or measurements."""
    family = left.part.family
    if left.labels is not None and left.text is not None:
        if spell_numbers(left.labels) or not label_kinds(left.labels).keys() <= {"text"}:
            raise text_error(left.what, left.text)
        raise DataError(
            f"{left.what} holds text or categories, {_listed(left.labels)}, and the family {family!r} takes numbers: "
            "family='binomial' takes two categories, family='ordinal' those that have an order"
        )
    if left.labels is not None and not left.is_truth:
        raise DataError(f"{left.what} gives categories, {_listed(left.labels)}; the family {family!r} takes numbers")
    require_finite(left.values, [left.name], positions)
    if not left.values.any():
        raise DataError(f"{left.what} is zero in every row: there is nothing to estimate. Check the column and subset")
    return _response(left, left.values, weights)


def _categories(left: _Left, weights: np.ndarray, positions: np.ndarray) -> Response:
    """Codes of categories in their order."""
    values = left.values
    labels: tuple[Any, ...] = left.labels or ()
    if left.labels is None:
        require_finite(values, [left.name], positions)
        distinct, codes = np.unique(values, return_inverse=True)
        whole = bool(np.all(distinct == np.round(distinct)) and np.abs(distinct).max() < 2**53)
        labels = tuple(int(value) if whole else float(value) for value in distinct)
        values = codes.astype(FLOAT)
    elif left.is_truth:
        labels = tuple(label for label in labels if (values == label).any())
    elif left.text is not None and not isinstance(left.text.dtype, pd.CategoricalDtype):
        _refuse_order_of_digits(left, labels)
    if np.ptp(values) == 0:
        raise DataError(f"{left.what} is {labels[0]!r} in every row: there is nothing to estimate")
    if len(labels) > max(MANY, len(values) // 2):
        raise DataError(
            f"{left.what} has {len(labels)} distinct values in {len(values)} rows; ordinal models are for a few "
            "categories in order. Numbers have families of their own, or are cut to categories: pd.cut(y, 5)"
        )
    return _response(left, values, weights, categories=labels)


MANY = 10
"""Categories that may be more than half as many as the rows."""


def _refuse_order_of_digits(left: _Left, labels: tuple[Any, ...]) -> None:
    """Refuse numbers as text whose alphabetical order is not their order."""
    values = np.asarray(pd.to_numeric(pd.Series(labels), errors="coerce"), FLOAT)
    if np.isnan(values).any() or not (np.diff(values) < 0).any():
        return
    k = int(np.flatnonzero(np.diff(values) < 0)[0])
    raise DataError(
        f"{left.what} holds numbers as text, of which {labels[k]!r} would come before {labels[k + 1]!r}; convert it "
        f"first, for example with pd.to_numeric, or make it an ordered category"
    )


def _of_pair(left: _Left, failures: np.ndarray, weights: np.ndarray, positions: np.ndarray) -> Response:
    """Successes and failures."""
    if left.labels is not None and not left.is_truth:
        text = left.text
        message = f"{left.name}: successes are numbers, and this gives {_listed(left.labels)}"
        raise DataError(message) if text is None else text_error(f"{left.name}: the column {text.name!r}", text)
    successes = _counts(left.values, f"successes of {left.name}", positions)
    trials = successes + _counts(failures, f"failures of {left.name}", positions)
    what = f"{left.name} has neither successes nor failures"
    _refuse(trials == 0, f"{what} {{}}: such rows say nothing, leave them out", positions)
    return _successes(left, successes, weights, trials)


def _of_two(left: _Left, trials: bool, weights: np.ndarray) -> Response:
    """One trial a row, with the second of two categories as success."""
    labels = left.labels
    assert labels is not None
    if trials:
        raise DataError(
            f"{left.what} is {_listed(labels)}, one trial in each row, and trials= is given too: leave it out, or give "
            f"numbers of successes"
        )
    if left.is_truth:
        return _successes(left, left.values, weights, categories=labels)
    if len(labels) == 1:
        raise DataError(f"{left.what} is {labels[0]!r} in every row: there is nothing to estimate")
    if len(labels) > 2:
        if spell_numbers(labels) and left.text is not None:
            raise text_error(left.what, left.text)
        raise DataError(
            f"{left.what} has {len(labels)} categories, {_listed(labels)}, and a response of the family "
            f"{left.part.family!r} has two: use family='ordinal' if they have an order, or a comparison such as "
            f"I({left.part.text} == {labels[0]!r}) ~ ..."
        )
    return _successes(left, left.values, weights, categories=labels)


def _of_numbers(left: _Left, trials: np.ndarray | None, weights: np.ndarray | None, positions: np.ndarray) -> Response:
    """Zeros and ones, numbers of successes out of trials, or proportions of trials."""
    what, whole = left.what, np.round(left.values)
    require_finite(left.values, [left.name], positions)
    near = np.where(left.values < 1.5, ROUNDING, WHOLE * left.values)
    y = np.where(np.abs(left.values - whole) <= near, whole, left.values)
    _refuse(y < 0, f"{what} is negative {{}}; successes and proportions are zero or more", positions)
    parts = y != np.round(y)
    if parts.any():
        if (y > 1).any():
            _refuse(
                parts,
                f"{what} is no whole number {{}}, such as {y[parts][0]:g}, and is {y[y > 1][0]:g} elsewhere: it may be "
                "zeros and ones, whole numbers of successes, or proportions between zero and one",
                positions,
            )
        return _of_proportions(replace(left, values=y), trials, weights, positions)
    weights = filled(1.0, len(y)) if weights is None else weights
    if trials is None:
        _refuse_more_than_one(replace(left, values=y), positions)
        return _successes(left, y, weights)
    _refuse(y > trials, f"{what} is more than its number of trials {{}}; check the two columns", positions)
    if 0 < y.max() <= 1 < trials.max():
        text = left.part.text
        raise DataError(
            f"{what} is zero or one in every row, of up to {trials.max():g} trials, which may be numbers of successes "
            f"or proportions: write cbind({text}, size - {text}) ~ ... for numbers, cbind({text} * size, size - {text} "
            "* size) ~ ... for proportions, with the column of trials for size"
        )
    return _successes(left, y, weights, trials)


def _of_proportions(
    left: _Left, trials: np.ndarray | None, weights: np.ndarray | None, positions: np.ndarray
) -> Response:
    """Proportions of trials, which may have been given as weights."""
    y, what, as_weights = left.values, left.what, trials is None and weights is not None
    if as_weights:
        assert weights is not None
        whole = np.round(weights)
        _refuse(
            (whole == 0) | (np.abs(weights - whole) > WHOLE * weights),
            f"{what} holds proportions, whose weights are numbers of trials, and weights are no whole numbers {{}}; "
            "give trials= for these, and as weights what multiplies the log-likelihood",
            positions,
        )
        trials, weights = whole, None
    if trials is None:
        _refuse(
            y != np.round(y),
            f"{what} lies between zero and one {{}}; of proportions the trials are needed: give trials='size', a "
            f"column of their numbers, or write {PAIR}",
            positions,
        )
    assert trials is not None
    successes, argument = y * trials, "weights" if as_weights else "trials"
    whole = np.round(successes)
    off = np.abs(successes - whole) > WHOLE * np.maximum(successes, 1)
    first = int(np.argmax(off))
    _refuse(
        off,
        f"{what} times {argument} is no whole number of successes {{}}, the first {y[first]:g} times {trials[first]:g} "
        f"= {successes[first]:g}; check whether {argument} is the number of trials of each proportion",
        positions,
    )
    weights = filled(1.0, len(y)) if weights is None else weights
    return _successes(left, whole, weights, trials, weights_as_trials=as_weights)


def _refuse_more_than_one(left: _Left, positions: np.ndarray) -> None:
    """Refuse whole numbers beside 0 and 1 whose trials are not known."""
    distinct = np.unique(left.values)
    hint = f"numbers of successes need those of trials, as in trials='size' or {PAIR}"
    if len(distinct) == 2:
        hint = f"of two codes one is compared with, I({left.part.text} == {distinct[1]:g}) ~ ..."
    _refuse(left.values > 1, f"{left.what} is above one {{}}; without trials it is 0 or 1: {hint}", positions)


def _trials(values: pd.Series, what: str, positions: np.ndarray) -> np.ndarray:
    """Numbers of trials: whole, and one or more."""
    trials = _counts(numbers(values, what), what, positions)
    _refuse(trials == 0, f"{what} are zero {{}}: such rows say nothing, leave them out", positions)
    return trials


def _counts(values: np.ndarray, what: str, positions: np.ndarray) -> np.ndarray:
    """Whole numbers, zero or more, freed of rounding."""
    require_finite(values, [what], positions)
    whole = np.round(values)
    _refuse(whole < 0, f"{what} are negative {{}}", positions)
    _refuse(np.abs(values - whole) > WHOLE * np.maximum(values, 1), f"{what} are no whole numbers {{}}", positions)
    return whole


def _refuse(bad: np.ndarray, message: str, positions: np.ndarray) -> None:
    """Refuse some rows (n,); they stand in the message where its braces are."""
    if bad.any():
        raise DataError(message.replace("{}", _at(bad, positions)))


def _listed(labels: tuple[Any, ...]) -> str:
    return few(list(map(repr, labels)))


def _successes(
    left: _Left, y: np.ndarray, weights: np.ndarray, trials: np.ndarray | None = None, **fields: Any
) -> Response:
    """Successes `y` of `trials`, one each where nothing is said; refuses those that are all alike."""
    counted = trials is not None
    trials = filled(1.0, len(y)) if trials is None else trials
    for all_alike, word in ((not y.any(), "failure"), ((y == trials).all(), "success")):
        if all_alike:
            categories = fields.get("categories")
            label = f" ({categories[word == 'success']!r})" if categories else ""
            raise DataError(
                f"{left.what}: every response is a {word}{label}: there is nothing to estimate. Check the column and "
                "the subset"
            )
    return _response(left, y, weights, trials=trials, counts_trials=counted, **fields)


def _response(left: _Left, y: np.ndarray, weights: np.ndarray, **fields: Any) -> Response:
    term = ResponseTerm(**{"kind": left.part.kind, "trials": filled(1.0, len(y))} | fields)
    return Response(left.name, y, weights, term)


def further_columns(part: str, text: str, matrix: Matrix, positions: np.ndarray) -> FurtherColumns:
    """The columns of a further predictor, which must be independent.

    Raises
    ------
    ModelError
        For no columns, and for one that is a combination of those before it.
    """
    what = f"{FURTHER[part]}={text!r}"
    require_finite(matrix.values, matrix.names, positions)
    if not matrix.names:
        raise ModelError(f"{what} has no columns; write '~ 1' for one value in all rows")
    kept = independent_columns(matrix.values)
    if len(kept) < len(matrix.names):
        lost = matrix.names[int(np.setdiff1d(np.arange(len(matrix.names)), kept)[0])]
        raise ModelError(
            f"{what}: the column {lost!r} is zero in every row or a combination of those before it, so that its "
            "coefficient cannot be told; leave it out"
        )
    return FurtherColumns(text, matrix.values, matrix.names)
