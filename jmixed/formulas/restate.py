"""Stating a model again: the names that its formulas may use, and formulas that refer to an earlier one."""

from __future__ import annotations

import ast
import re
from collections import ChainMap
from collections.abc import Mapping, Sequence
from types import FrameType

from jmixed.errors import FormulaError, ModelError
from jmixed.formulas.formula import RandomPart, parse, quoted
from jmixed.runtime.arguments import caller_of

ELSEWHERE = {
    **dict.fromkeys(("reml", "REML"), "that is an argument of fit: .fit(reml=False)"),
    "method": "that of a fit is .fit(reml=True) or .fit(reml=False)",
    "correlation": "that of residuals is stated by residual='ar1(visit | subject)'",
    "na_action": 'missing="drop" leaves rows with missing values out',
    "contrasts": "a coding is written in the formula, C(f, contr.sum)",
    "random": "random effects are bars in the formula, + (1 | g), or groups= and re_formula=",
    "control": "options such as maxiter= and gtol= are arguments of fit",
    **dict.fromkeys(("family", "trials"), "other responses than normal ones are stated by mixedglm(..., family=...)"),
    **dict.fromkeys(("zero_inflation", "ziformula"), "counts are stated by mixedglm(..., zero_inflation='~ x')"),
    "dispformula": "what the residual variance depends on is stated by dispersion='~ x'",
}
"""Arguments of other packages, and what to write here."""


def refuse_strange(arguments: Mapping) -> None:
    """Refuse arguments of `mixedlm` that there are not, with what to write in the place of another package's."""
    for name in arguments.keys() - {"use_sqrt", "drop_cols", "eval_env"}:
        hint = f"; {ELSEWHERE[name]}" if name in ELSEWHERE else ""
        page = "limits.md" if name == "family" else None
        raise ModelError(f"mixedlm has no argument {name!r}{hint}", page=page)


def names_of_caller(eval_env, frame: FrameType) -> Mapping:
    """What formulas may refer to beside columns: a mapping as it is, or the names that a caller sees.

    A number says how many callers above `frame`, the caller's, to look at; a negative one is for no names at all.
    """
    if isinstance(eval_env, Mapping):
        return eval_env
    if not isinstance(eval_env, int):
        raise FormulaError(f"eval_env is {eval_env!r}; it must be a number of callers, or a mapping of names to values")
    if eval_env < 0:
        return {}
    caller = caller_of(frame)
    for _ in range(eval_env):
        if caller is None:
            break
        caller = caller_of(caller.f_back)
    if caller is None:
        raise FormulaError(f"eval_env is {eval_env}, but there are not so many callers: use 0")
    return ChainMap(dict(caller.f_locals), caller.f_globals)


def restated(formula: str | Sequence[str], earlier: str, intercept: bool = True) -> str:
    """A formula in which a lone dot means that side of an earlier one; or terms for an earlier response.

    `intercept` is whether the earlier one has one: a zero within the parentheses that the dot becomes would not count.

    Examples
    --------
    >>> from jmixed.formulas.restate import restated
    >>> restated(". ~ . + x", "y ~ a + (a || `my school`/g)")
    'y ~ (a) + x + (a || `my school`) + (a || `my school`:g)'
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
    """A random-effects term as a formula has it."""
    factors = ":".join(name if _is_code(name) else quoted(name) for name in part.factors)
    return f"{part.word}({part.effects} {'||' if part.independent else '|'} {factors})"


def _is_code(name: str) -> bool:
    """Whether a grouping factor is a name or a call in Python's sense; others, as with spaces, are quoted."""
    try:
        return isinstance(ast.parse(name, mode="eval").body, ast.Name | ast.Attribute | ast.Call)
    except SyntaxError:
        return False
