"""What is said of a formula that cannot be read, with the formula under it and a caret under the spot."""

import re

from formulaic.errors import FormulaicError

from jmixed.errors import FormulaError

SPACES = "a name that holds spaces is put in backticks, `like this`"
GROUPING = (
    "a grouping factor is a column, a:b (combinations) or a/b (a, and b within a); "
    "write several factors as separate terms, (1 | a) + (1 | b)"
)


def mark(message: str, text: str, spot: int | None = None) -> str:
    """A message with the formula under it and, when the position is known, a caret under the spot."""
    lines = f"{message}\n\n    {text}"
    return lines if spot is None else f"{lines}\n    {' ' * spot}^"


def syntax_error(error: FormulaicError, text: str) -> FormulaError:
    """formulaic's complaint about `text` as an error of ours, with a caret instead of colours."""
    message, _, context = str(error).partition("\n\n")
    context = re.sub(r"\x1b\[[0-9;]*m", "", context)
    spot = context.find("⧛")
    message = message.replace("insuffient", "insufficient")
    if "Missing operator" in message:
        message = f"{message.rstrip('.')}; {SPACES}"
    return FormulaError(mark(message, text, None if spot < 0 else spot))


def find(name: str, text: str) -> int | None:
    """Where a name stands in a formula."""
    found = re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)
    return found.start() if found else None
