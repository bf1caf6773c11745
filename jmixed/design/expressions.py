"""Names in the Python expressions of a formula."""

import ast
import re

from formulaic.parser.types import Factor as FormulaFactor

from jmixed.design.marks import mark
from jmixed.errors import FormulaError


def names_in(factor: FormulaFactor, text: str) -> list[tuple[str, bool]]:
    """The names in a factor, each with whether it is called as a function."""
    method = factor.eval_method.value
    if method == "lookup":
        return [(factor.expr, False)]
    if method != "python":
        return []
    quoted: dict[str, str] = {}

    def stand_in(found: re.Match) -> str:
        quoted[name := f"_quoted_{len(quoted)}_"] = found.group(1)
        return name

    code = re.sub(r"`([^`]*)`", stand_in, factor.expr)
    try:
        tree = ast.parse(code.strip(), mode="eval")
    except SyntaxError as error:
        spot = text.find(factor.expr)
        message = f"{factor.expr!r} is not valid Python ({error.msg})"
        raise FormulaError(mark(message, text, spot if spot >= 0 else None)) from None
    return [(quoted.get(name, name), called) for name, called in _walk(tree)]


def _walk(tree: ast.AST) -> list[tuple[str, bool]]:
    """Names in an expression and whether each stands only before the parenthesis of a call."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    functions = {id(node.func) for node in calls}
    bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    names = [
        (node.id, id(node) in functions)
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in bound
    ]
    for node in calls:
        if (
            isinstance(node.func, ast.Name)
            and node.func.id == "Q"
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.append((str(node.args[0].value), False))
    return names
