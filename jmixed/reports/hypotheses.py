"""Linear hypotheses R b = q, read from words, mappings or matrices."""

import ast
import re
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jmixed.errors import DataError, FormulaError
from jmixed.runtime.precision import FLOAT

Hypotheses = ArrayLike | Sequence[str] | Mapping[str, float] | tuple[ArrayLike, ArrayLike]
"""A text, several, left sides with their right sides, a matrix, or a matrix with right sides."""


def hypotheses(spec: Any, names: Sequence[str], dropped: Sequence[str] = ()) -> tuple[np.ndarray, np.ndarray]:
    """Read linear hypotheses R b = q about named coefficients: R (r, p), q (r,).

    ``"x1 = x2, x3 = 0"``, a list of such texts, ``{"x1 - x2": 0}``, a matrix with one column per name, or a pair (R,
    q). The names of columns that were left out as redundant, `dropped`, have no coefficient.

    Examples
    --------
    >>> from jmixed.reports.hypotheses import hypotheses
    >>> R, q = hypotheses("2 * x1 - x2 = 3", ["Intercept", "x1", "x2"])
    >>> R.tolist(), q.tolist()
    ([[0.0, 2.0, -1.0]], [3.0])
    """
    if isinstance(spec, str):
        return _read_texts([spec], names, dropped)
    if isinstance(spec, Mapping):
        return _read_texts([f"{left} = {right}" for left, right in spec.items()], names, dropped)
    if in_words(spec):
        return _read_texts(spec, names, dropped)
    if isinstance(spec, tuple) and len(spec) == 2 and np.ndim(spec[0]) > 0:
        matrix, right = spec
        # Two lists as long as there are names are two rows of weights.
        if not (np.ndim(matrix) == np.ndim(right) == 1 and len(right) == len(names) > 1):
            return _weights(matrix, right, names)
    return _weights(spec, 0.0, names)


class Hypothesis(NamedTuple):
    """``R beta = q`` with its label: R (k, p), q (k,)."""

    label: str
    R: np.ndarray
    q: np.ndarray


def read_hypotheses(L, names: Sequence[str], dropped: Sequence[str]) -> list[Hypothesis]:
    """The tests that a user's `L` asks for: see `MixedLMResults.test`."""
    if L is None:
        return [Hypothesis(name, row[None], np.zeros(1)) for name, row in zip(names, np.eye(len(names)), strict=True)]
    if isinstance(L, Mapping) and not all(isinstance(right, Real) for right in L.values()):
        return [_hypothesis(value, names, dropped)._replace(label=str(name)) for name, value in L.items()]
    if isinstance(L, list | tuple) and len(L) and all(isinstance(part, str) for part in L):
        return [_hypothesis(text, names, dropped) for text in L]
    return [_hypothesis(L, names, dropped)]


def _hypothesis(L, names, dropped) -> Hypothesis:
    """One test, of one or several equations."""
    R, q = hypotheses(L, names, dropped)
    if not len(R):
        raise DataError("a test needs one hypothesis at least, and this matrix has no rows")
    require_consistent(R, q)
    return Hypothesis(L if isinstance(L, str) else _described(R, q, names), R, q)


def _described(R, q, names) -> str:
    """Equations as text."""
    texts = []
    for row, value in zip(R, q, strict=True):
        parts = [f"{weight:+g}*{name}" for weight, name in zip(row, names, strict=True) if weight]
        left = " ".join(parts).replace("+1*", "+").replace("-1*", "-").removeprefix("+")
        texts.append(f"{left} = {value:g}")
    return ", ".join(texts)


def in_words(spec) -> bool:
    """Whether hypotheses are given as text, a list of texts, or a mapping."""
    several = isinstance(spec, Sequence) and len(spec) > 0 and all(isinstance(part, str) for part in spec)
    return isinstance(spec, str | Mapping) or several


def positional(spec, names: Sequence[str]) -> bool:
    """Whether weights or places are given without the names of the coefficients that they belong to."""
    matrix = spec[0] if isinstance(spec, tuple) and len(spec) == 2 and np.ndim(spec[0]) > 0 else spec
    return not in_words(spec) and not set(names) <= set(_labels(matrix))


def _labels(spec) -> Sequence:
    """The names that a DataFrame or a Series has for its weights."""
    labels = () if isinstance(spec, Sequence) else getattr(spec, "columns", getattr(spec, "index", ()))
    return list(labels) if np.iterable(labels) else ()


def by_name(spec, names: Sequence[str]):
    """A Series, or a DataFrame of several rows, whose labels are the names in another order, in their order."""
    labels = _labels(spec)
    return spec[list(names)] if len(labels) == len(names) and set(labels) == set(names) else spec


def require_consistent(R: np.ndarray, q: np.ndarray) -> None:
    """Refuse equations that no coefficients fulfil together, such as "a = 1, a = 2"."""
    if len(R) < 2 or not np.all(np.isfinite(R)):
        return
    unit = np.sqrt(np.sum(R**2, axis=1))
    rows, right = R / unit[:, None], q / unit
    rest = right - rows @ np.linalg.lstsq(rows, right, rcond=None)[0]
    if np.abs(rest).max() > 1e-8 * np.abs(right).max(initial=0):
        raise DataError(
            "these hypotheses contradict each other: no coefficients fulfil all of them. Test them one at a time, by "
            "t_test or a list of texts for test"
        )


def _weights(matrix, right, names) -> tuple[np.ndarray, np.ndarray]:
    """Hypotheses of a matrix of weights and its right-hand sides, checked."""
    try:
        R, q = np.atleast_2d(np.asarray(by_name(matrix, names), FLOAT)), np.asarray(right, FLOAT)
    except (TypeError, ValueError) as error:
        raise DataError(f"these hypotheses are no array of numbers ({error})") from error
    if R.ndim != 2 or R.shape[1] != len(names):
        raise DataError(
            f"hypotheses should have {len(names)} columns, one for each of {list(names)}; their shape is "
            f"{np.shape(matrix)}"
        )
    if q.size not in (1, len(R)):
        raise DataError(f"the right-hand side should have one value or {len(R)}, one per row; it has {q.size}")
    for k in np.flatnonzero(~np.any(R != 0, axis=1) | ~np.all(np.isfinite(R), axis=1)):
        raise DataError(f"a hypothesis says nothing in row {k}: its weights must be finite and not all zero")
    return R, np.broadcast_to(q.ravel(), (len(R),)).astype(FLOAT)


def _read_texts(texts, names, dropped):
    rows = [row for text in texts for row in _read_text(text, names, dropped)]
    if not rows:
        raise FormulaError("an empty hypothesis: write an equation such as 'x1 = x2' or 'x1 = 0'")
    table = np.array(rows, FLOAT)
    return table[:, :-1], 0.0 - table[:, -1]


def _read_text(text, names, dropped):
    """Rows (coefficients, constant) of each equation, everything brought to the left."""
    # Names such as "C(g, Sum)[S.a]" hold commas and brackets: they become plain identifiers before anything is split.
    ordered = sorted([*names, *dropped], key=lambda name: -len(name))
    pattern = "|".join(rf"`{re.escape(name)}`|(?<![\w.`]){re.escape(name)}(?![\w.`\[(:])" for name in ordered)
    lookup = {name: k for k, name in enumerate(names)}

    def mark(match):
        name = match.group().strip("`")
        if name not in lookup:
            raise FormulaError(
                f"cannot read the hypothesis {text!r}: {name!r} has no coefficient, because its column was left out as "
                "redundant: the data do not determine it beside the columns to its left",
                page="formula.md#redundant-columns",
            )
        return f"_v{lookup[name]}_"

    marked = re.sub(pattern, mark, text) if ordered else text
    rows = []
    for part in filter(str.strip, marked.split(",")):
        enclosed = re.fullmatch(r"\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)\s*", part)
        part = enclosed.group(1) if enclosed else part
        sides = [_linear(side, len(names), text, names) for side in part.split("=")]
        if len(sides) == 1:
            sides.append(np.zeros(len(names) + 1))
        equations = [left - right for left, right in zip(sides[:-1], sides[1:], strict=True)]
        if not all(np.any(row[:-1]) for row in equations):
            raise FormulaError(f"cannot read the hypothesis {text!r}: an equation in it holds no coefficient")
        rows += equations
    return rows


def _linear(expression, p, text, names):
    """An expression such as ``2 * _v1_ - 3`` as a row (coefficients, constant)."""

    def refuse(why):
        return FormulaError(
            f"cannot read the hypothesis {text!r}: {why}. Write linear equations in {list(names)} separated by "
            "commas; put a name that holds spaces in backticks if need be"
        )

    def visit(node):
        match node:
            case ast.Constant(value=bool()):
                raise refuse("a truth value is no number")
            case ast.Constant(value=int() | float() as value):
                return np.append(np.zeros(p), float(value))
            case ast.Name(id=name) if re.fullmatch(r"_v\d+_", name):
                return np.eye(p + 1)[int(name[2:-1])]
            case ast.Name(id=name):
                raise refuse(f"{name!r} is not a coefficient")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -visit(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return visit(operand)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return visit(left) + visit(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return visit(left) - visit(right)
            case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
                return _product(visit(left), visit(right), isinstance(node.op, ast.Div), refuse)
        raise refuse(f"{ast.unparse(node)!r} is not linear")

    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise refuse("it is not an equation" + (", which has one =" if "==" in text else "")) from error
    return visit(tree.body)


def _product(left, right, divide, refuse):
    if divide:
        if np.any(right[:-1]) or right[-1] == 0:
            raise refuse("only division by a number other than zero is linear")
        return left / right[-1]
    if np.any(left[:-1]) and np.any(right[:-1]):
        raise refuse("a product of two coefficients is not linear")
    return left * right[-1] if not np.any(right[:-1]) else right * left[-1]
