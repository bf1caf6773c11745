"""Stating a model again: the names that its formulas may use, and formulas that refer to an earlier one."""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from types import FrameType

from jmixed.design.formula import RandomPart, parse, scan
from jmixed.errors import FormulaError


def names_of_caller(eval_env, frame: FrameType) -> Mapping:
    """What formulas may refer to beside columns.

    Parameters
    ----------
    eval_env : int or mapping
        How many callers above `frame` to look at; negative for no names at all. A mapping is taken as it is.
    frame : frame
        Of the caller.

    Raises
    ------
    FormulaError
        For anything else, or a number beyond the outermost caller.
    """
    if isinstance(eval_env, Mapping):
        return eval_env
    if not isinstance(eval_env, int):
        raise FormulaError(f"eval_env is {eval_env!r}; it must be a number of callers, or a mapping of names to values")
    if eval_env < 0:
        return {}
    found: FrameType | None = frame
    for _ in range(eval_env):
        found = found and found.f_back
    if found is None:
        raise FormulaError(f"eval_env is {eval_env}, but there are not so many callers: use 0")
    return ChainMap(dict(found.f_locals), found.f_globals)


def restated(formula: str | Sequence[str], earlier: str, intercept: bool = True) -> str:
    """A formula in which a lone dot means that side of an earlier one; or terms for an earlier response.

    Parameters
    ----------
    formula : str or sequence of str
        ``". ~ . + x"``, or terms such as ``["x", "(1 | g)"]``.
    earlier : str
    intercept : bool
        Whether the earlier one has an intercept. A zero within the parentheses that the dot becomes would not count.

    Examples
    --------
    >>> from jmixed.restate import restated
    >>> restated(". ~ . + x", "log(y) ~ a + (1 | g)")
    'log(y) ~ (a) + x + (1 | g)'
    >>> restated(["a", "(a | g)"], "y ~ b + (1 | g)")
    'y ~ a + (a | g)'
    """
    parts = parse(earlier)
    response, fixed = (side.strip() for side in parts.fixed.split("~", 1))
    if not isinstance(formula, str):
        return f"{response} ~ {' + '.join(formula) or '1'}"
    left, tilde, right = formula.partition("~")
    if not tilde:
        raise FormulaError(f"{formula!r} has no ~: write '. ~ . + x' to add to the model, or a whole formula")
    left = response if left.strip() == "." else left.strip()
    right, dots = re.subn(r"(?<![\w.)\]])\.(?![\w.(])", lambda _: f"({fixed})", right.strip())
    if dots:
        kept = [_bar(part) for part in parts.random] + [f"offset({text})" for text in parts.offsets]
        right = " + ".join([*([] if intercept else ["0"]), right, *kept])
    return f"{left} ~ {right}"


def _bar(part: RandomPart) -> str:
    """A random-effects term as text, names that are no words in backticks."""
    words = [name if len(list(scan(name))) == 1 else f"`{name}`" for name in part.factors]
    return f"({part.effects} {'||' if part.independent else '|'} {':'.join(words)})"
