"""The text of formulas: how expressions are spelled and which names they hold, and where a message points to in it."""

import ast
import io
import re
import tokenize
from collections.abc import Container
from keyword import iskeyword

from formulaic.errors import FormulaicError

from jmixed.errors import FormulaError
from jmixed.formulas.evaluate import FormulaFactor

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
    match = re.search(rf"(?<![\w.]){re.escape(name)}(?!\w)", text)
    return match.start() if match else None


_QUOTED = re.compile(r"""("(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')|`([^`]*)`""")
_BINARY = {*"+-*/%@&|^<>", "**", "//", "<<", ">>", "==", "!=", "<=", ">=", ":="}
_BLANK = {tokenize.NEWLINE, tokenize.NL, tokenize.ENDMARKER, tokenize.INDENT, tokenize.DEDENT}
_WORD = {tokenize.NAME, tokenize.NUMBER, tokenize.STRING}


def without_backticks(code: str) -> tuple[str, dict[str, str]]:
    """Code that Python can read, and the names that stood in backticks by their stand-ins.

    >>> from jmixed.formulas.marks import without_backticks
    >>> without_backticks("np.log(`body mass`)")
    ('np.log(_quoted_0_)', {'_quoted_0_': 'body mass'})
    """
    names: dict[str, str] = {}

    def stand_in(match: re.Match) -> str:
        if match.group(1):
            return match.group(1)
        names[alias := f"_quoted_{len(names)}_"] = match.group(2)
        return alias

    return _QUOTED.sub(stand_in, code), names


def spelled(code: str) -> str:
    """Code with uniform blanks, and otherwise as it was written: quotes and numbers stay.

    Examples
    --------
    >>> from jmixed.formulas.marks import spelled
    >>> spelled('C(f,Treatment( reference = "K"))'), spelled("I(x**2/1e3)"), spelled("f(-x,[1 :2])")
    ('C(f, Treatment(reference="K"))', 'I(x ** 2 / 1e3)', 'f(-x, [1:2])')
    """
    plain, names = without_backticks(code.strip())
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(plain).readline))
    except (tokenize.TokenError, SyntaxError):
        return code
    if any(tokenize.tok_name[token.type] in ("ERRORTOKEN", "FSTRING_START", "TSTRING_START") for token in tokens):
        return code
    text, brackets, before, gap = "", [], "", False
    for token in tokens:
        piece = token.string
        if token.type in _BLANK:
            continue
        word, keyword = token.type in _WORD, iskeyword(before)
        operand = bool(before) and (before in ")]}" or (before[-1].isalnum() or before[-1] in "_\"'") and not keyword)
        binary = piece in _BINARY and operand or piece == "=" and not brackets
        closes = piece in (")", "]", "}", ",", ":")
        beside = (
            (word or piece in ("(", "[", "{", "-", "+", "~")) and keyword or word and operand and before not in ")]}"
        )
        text += " " if text and not closes and (gap or binary or beside or (word and before in (")", "]", "}"))) else ""
        text += names.get(piece, piece) if piece not in names else f"`{names[piece]}`"
        gap = binary or piece == "," or (piece == ":" and brackets[-1:] != ["["])
        brackets = (
            brackets + [piece] if piece in ("(", "[", "{") else brackets[:-1] if piece in (")", "]", "}") else brackets
        )
        before = piece
    return text


def names_in(factor: FormulaFactor, text: str) -> list[tuple[str, bool]]:
    """The names in a factor, each with whether it is called as a function."""
    method = factor.eval_method.value
    if method == "lookup":
        return [(factor.expr, False)]
    if method != "python":
        return []
    code, quoted = without_backticks(factor.expr)
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


def refuse_dotted(code: str, columns: Container, text: str) -> None:
    """Refuse a column such as ``Sepal.Width`` inside an expression, where Python reads a part ``Width`` of ``Sepal``.

    Of a column itself ``.T`` is the column again, so that ``x.T`` would be x in silence.
    """
    try:
        tree = ast.parse(without_backticks(code)[0].strip("{} "), mode="eval")
    except SyntaxError:
        return
    for node in ast.walk(tree):
        name = ast.unparse(node) if isinstance(node, ast.Attribute) else ""
        if name and (name in columns or (name.endswith(".T") and name[:-2] in columns)):
            whole, _, part = name.rpartition(".")
            message = f"{name} inside an expression is Python's part {part!r} of {whole!r}"
            advice = f"put the name of a column with a dot in backticks, `{name}`"
            raise FormulaError(mark(f"{message}; {advice}", text, find(name, text)))
