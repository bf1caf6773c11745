"""The grammar of mixed-model formulas: text in, parts out; no data.

formulaic reads ordinary terms. It does not know random-effects bars ``(x | g)`` nor ``offset(x)``, so these are
taken out first, blank for character, and what remains keeps its positions: a caret under a formula points to the
same spot in the text that the user wrote.
"""

import ast
import functools
import keyword
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, takewhile

from jmixed.errors import FormulaError
from jmixed.formulas.marks import GROUPING, SPACES, mark, spelled
from jmixed.formulas.r_words import refuse_r
from jmixed.formulas.structures import PAGE, UNSTRUCTURED, WORDS, listed


@dataclass(frozen=True)
class RandomPart:
    """One random-effects term of a formula."""

    label: str  # the normalised text of the bar, "Days | Subject"
    effects: str  # what varies, such as "1 + Days"; its intercept is implied unless it says 0 or -1
    factors: tuple[str, ...]  # the columns whose combinations are the levels: ("batch", "cask") for batch:cask
    independent: bool = False  # for ||: its terms, each a part by itself, have no covariances with each other
    word: str = ""  # of `formulas.structures`, before the bar
    # the effects as they were written, at their position in the formula
    spelled: str = field(default="", repr=False, compare=False)


@dataclass(frozen=True)
class FormulaParts:
    """A formula taken apart."""

    text: str  # as the caller gave it, with arithmetic on its left inside I(...)
    fixed: str  # response and fixed effects, of the length of `text`, blank where bars and offsets stood
    random: tuple[RandomPart, ...] = ()  # in the order of the formula, nests expanded
    offsets: tuple[str, ...] = ()  # expressions inside offset(...)


@dataclass(frozen=True)
class _Token:
    kind: str  # "name", "python", "value", or the operator or parenthesis itself
    text: str
    start: int
    end: int  # one beyond the last character


def parse(text: str) -> FormulaParts:
    """Take a two-sided formula apart; where bars or offsets mean nothing, the error marks the spot.

    Examples
    --------
    >>> from jmixed.formulas.formula import parse
    >>> [(r.label, r.factors) for r in parse("y ~ x + (1 | a/b)").random]
    [('1 | a', ('a',)), ('1 | a:b', ('a', 'b'))]
    """
    if not isinstance(text, str):
        raise FormulaError(
            f"formula is {text!r} of type {type(text).__name__}; it must be text such as 'y ~ x + (1 | group)'"
        )
    return _parse(_with_arithmetic(_with_colons(text)))


def _with_colons(text: str) -> str:
    """The formula with ``x:a`` for ``x %in% a``, which is the same in R; formulaic would add a itself."""
    for token in reversed(list(scan(text))):
        if token.text == "%in%":
            text = f"{text[: token.start].rstrip()}:{text[token.end :].lstrip()}"
    return text


def _with_arithmetic(text: str) -> str:
    """The formula with the arithmetic on its left as one expression: ``after - before`` is ``I(after - before)``.

    To formulaic it would be an algebra of terms, in which ``after - before`` is after. A sum of columns is left to it,
    and refused: others write it for two responses.
    """
    left, _, right = text.partition("~")
    tokens = list(takewhile(lambda token: token.kind != "~", scan(text)))
    kinds = {token.kind for token in tokens}
    if not kinds & set("-*/^") or kinds & {"|", *_COMPARISONS} or any(token.text == "." for token in tokens):
        return text
    colon = next((token for token in tokens if token.kind == ":"), None)
    if colon:
        raise FormulaError(mark("arithmetic of the response has no colon; a product is a * b", text, colon.start))
    code = list(left)
    for token in tokens:
        if token.kind == "^":
            code[token.start] = "**"
        elif token.kind == "name" and "." in token.text and not token.text.startswith("`"):
            code[token.start : token.end] = [f"`{token.text}`", *[""] * (len(token.text) - 1)]
    start, end = tokens[0].start, tokens[-1].end
    return f"{left[:start]}I({''.join(code[start:end])}){left[end:]}~{right}"


@functools.lru_cache(maxsize=256)
def _parse(text: str) -> FormulaParts:
    code = _braced(text)
    tokens = list(scan(code))
    tildes = [i for i, t in enumerate(tokens) if t.kind == "~"]
    if not tildes or not tildes[0] or len(tildes) > 1:
        spot = tokens[tildes[-1]].start if tildes else None
        raise FormulaError(
            mark("a formula needs exactly one ~ with the response on its left, as in 'y ~ x + (1 | group)'", text, spot)
        )
    bar = next((t for t in tokens[: tildes[0]] if t.kind == "|"), None)
    if bar:
        raise FormulaError(mark("the response cannot contain a random-effects bar", text, bar.start))
    _refuse_meaningless(text, tokens[: tildes[0]])
    _refuse_differences(text, tokens[tildes[0] + 1 :])
    fixed, random, offsets = list(code), [], []
    segments = list(_segments(text, tokens[tildes[0] + 1 :]))
    for sign, body in segments:
        inner = _unwrap(body)
        special = _offset(inner) if len(inner) == 1 else None
        word, structured = _structured(text, inner[0]) if len(inner) == 1 else ("", [])
        if sign is None or sign.kind == "+":
            refuse_response(text, text[: tokens[tildes[0]].start], body)
        if special is None and not word and not any(t.kind == "|" for t in body):
            _refuse_meaningless(text, body)
            continue
        if sign is not None and sign.kind == "-":
            raise FormulaError(
                mark("random effects and offsets are added with +, not removed with -", text, sign.start)
            )
        if special is not None:
            offsets.append(special)
        elif word:
            refuse_response(text, text[: tokens[tildes[0]].start], structured)
            random += _bar(text, list(structured), structured, word)
        else:
            random += _bar(text, body, inner)
        start, end = (sign or body[0]).start, body[-1].end
        fixed[start:end] = " " * (end - start)
    return FormulaParts(text, _tidy(text, fixed, tokens[tildes[0]].end), tuple(random), tuple(offsets))


def _braced(text: str) -> str:
    """The formula with comparisons in parentheses, ``(x > 0)``, as formulaic has them: ``{x > 0}``."""
    if not any(sign in text for sign in "<>="):
        return text
    code, opened = list(text), []
    for token in scan(text):
        if token.kind == "(":
            opened.append((token, set()))
        elif token.kind == ")" and opened:
            first, inside = opened.pop()
            if inside & set(_COMPARISONS) and "|" not in inside:
                code[first.start], code[token.start] = "{", "}"
        elif opened:
            opened[-1][1].add(token.kind)
    return "".join(code)


_COMPARISONS = "<>=!"


def _refuse_meaningless(text: str, tokens: list[_Token]) -> None:
    """Refuse what would be read, but as less than it says: ``x^2`` and ``x:x`` as x, ``x 0`` as x - 1."""
    for i, token in enumerate(tokens):
        before, after = tokens[max(i - 1, 0)], tokens[min(i + 1, len(tokens) - 1)]
        if token.kind == "python":
            refuse_r(token.text, text)
        elif token.kind == "value" and i and before.kind in ("name", "python", "value", ")"):
            raise FormulaError(mark(f"an operator is missing before {token.text!r}; {SPACES}", text, token.start))
        elif token.kind == "value" and _scaled(tokens, i):
            sign = after.kind if after.kind in ("*", "/") else before.kind
            example = f"I({token.text} {sign} x)" if sign == after.kind else f"I(x {sign} {token.text})"
            message = f"arithmetic with a number is written inside I(...), such as {example}"
            raise FormulaError(mark(message, text, token.start))
        elif token.kind in tuple(_COMPARISONS):
            raise FormulaError(mark("a comparison stands in a call, as in I(x > 0)", text, token.start))
        elif token.kind == "^" or (token.kind == "*" and after.kind == "*" and i + 1 < len(tokens)):
            base = _operand(tokens[:i])
            names = sum(t.kind in ("name", "python") for t in base)
            if (names < 2 or not any(t.kind in "+*/%" for t in base)) and not any(t.text == "." for t in base):
                raise _nothing(text, token, _source(text, _unwrap(base)))
        elif token.kind in ("*", ":", "/") and before.kind in ("name", "python") and before.text == after.text:
            raise _nothing(text, token, before.text)


def _scaled(tokens: list[_Token], i: int) -> bool:
    """Whether a number among the tokens is multiplied or divided, and no power of a sum."""
    kinds = ["", "", *(token.kind for token in tokens), ""]
    before, after = kinds[i + 1], kinds[i + 3]
    return before == "/" or (before == "*" and kinds[i] != "*") or after in ("*", "/")


def _refuse_differences(text: str, tokens: list[_Token]) -> None:
    """Refuse a minus that takes away what is not there: ``age - 50`` would be age, and ``after - before`` after."""
    there = {"0", "1"}
    dots = any(token.text == "." for token in tokens)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.kind in ("name", "python", "value") and not (before and before.kind == "-"):
            there.add(_plain(token))
        if token.kind != "-":
            continue
        taken = next((t for t in tokens if t.start > token.start and t.kind != "("), None)
        if taken is None or taken.kind not in ("name", "python", "value") or _plain(taken) in there:
            continue
        if taken.text.startswith("offset(") or _structured(text, taken)[0] or (dots and taken.kind == "name"):
            continue
        mean = re.search(r"\bmean\(", taken.text) is not None
        operand = f"{before.text} " if before and before.kind in ("name", "python") else "x " if before else ""
        message = (
            f"- takes a term away, and {taken.text} is none of those before it: nothing would happen. "
            + ("Less its mean, x is center(x)" if mean else "")
            + ("" if mean else f"Arithmetic is written I({operand}-{' ' if operand else ''}{taken.text})")
        )
        raise FormulaError(mark(message, text, token.start))


def _plain(token: _Token) -> str:
    return spelled(token.text).strip("`")


def _nothing(text: str, token: _Token, term: str) -> FormulaError:
    """The error for an interaction of a term with itself."""
    square = f"I({term if term.isidentifier() else f'({term})'}**2)".replace(":", "*")
    message = f"this would be {term} itself: an interaction of a term with itself. A power is written {square}"
    return FormulaError(mark(message, text, token.start))


def _operand(tokens: list[_Token]) -> list[_Token]:
    """The last operand of the tokens: one of them, or what its parentheses enclose."""
    depth, start = 0, len(tokens)
    while start and (start == len(tokens) or depth):
        start -= 1
        depth += (tokens[start].kind == ")") - (tokens[start].kind == "(")
    return tokens[start:]


def _source(text: str, tokens: list[_Token]) -> str:
    return text[tokens[0].start : tokens[-1].end] if tokens else ""


def parse_one_sided(text: str, response: str) -> str:
    """Check a formula without response, beside a main formula with this response, and return it for formulaic."""
    code = _braced(text)
    tokens = list(scan(code))
    _refuse_meaningless(text, tokens)
    _refuse_differences(text, tokens)
    if not any(token.kind == "~" for token in tokens):
        refuse_response(text, response, tokens)
    return code


def refuse_response(text: str, response: str, tokens: Iterable[_Token]) -> None:
    """Refuse the response, or a column of one that is ``cbind(successes, failures)``, among what explains it."""
    names = {_key(response.strip()): response.strip()}
    pair = re.fullmatch(r"cbind\((.*)\)", response.strip(), re.DOTALL)
    for part in pair[1].split(",") if pair else ():
        names[_key(part)] = part.strip()
    for token in tokens:
        if token.kind in ("name", "python") and _key(token.text) in names:
            message = f"the response {names[_key(token.text)]!r} cannot explain itself: leave it out here"
            raise FormulaError(mark(message, text, token.start))


def _key(text: str) -> str:
    return spelled(bare_name(text))


def normalise(text: str) -> str:
    """The text of effects with uniform blanks, as in labels: "0+C( f ) +x" is "0 + C(f) + x"."""
    return _normal(list(scan(text)))


def bare_name(text: str) -> str:
    """The column that a name in backticks or in ``Q("...")`` or ``C(...)`` stands for; other text comes back unchanged.

    Examples
    --------
    >>> from jmixed.formulas.formula import bare_name
    >>> bare_name("`body mass`"), bare_name("Q('body mass')"), bare_name("C(g)"), bare_name("g")
    ('body mass', 'body mass', 'g', 'g')
    """
    text = text.strip()
    quoted = re.fullmatch(r"`([^`]*)`", text) or re.fullmatch(r"""Q\(\s*(?:"([^"]*)"|'([^']*)')\s*\)""", text)
    if quoted:
        return next(part for part in quoted.groups() if part is not None)
    wrapped = re.fullmatch(r"C\(\s*([\w.]+|`[^`]*`|Q\([^()]*\))\s*\)", text)
    return bare_name(wrapped.group(1)) if wrapped else text


def quoted(name: str) -> str:
    """A column's name as a formula has it: in backticks unless it is a word."""
    return name if name.isidentifier() else f"`{name}`"


def replace_keywords(text: str, taken: set[str]) -> tuple[str, dict[str, str]]:
    """Replace Python keywords that are used as column names inside calls, where Python could not parse them.

    Of ``y ~ C(class)`` it gives ``y ~ C(clas_)``, of the same length so that positions still hold, and
    {"clas_": "class"}. No stand-in is one of the names `taken`.
    """
    if not any(word in text for word in keyword.kwlist):
        return text, {}
    out, aliases = text, {}
    for token in scan(text):
        if token.kind != "python":
            continue
        code = _stand_in(token.text, r"`(WORD)`", taken, aliases)
        if not _parses(code):
            bare = _stand_in(code, r"(?<![\w.`'\"])(WORD)(?![\w`'\"])", taken, aliases)
            code = bare if _parses(bare) else code
        out = out[: token.start] + code + out[token.end :]
    return out, aliases


def scan(text: str) -> Iterator[_Token]:
    """Tokens of a formula with their positions, by formulaic's rules of what a name, a call and an operator are."""
    place = 0
    while place < len(text):
        start, first = place, text[place]
        if first.isspace():
            place += 1
            continue
        if word := _WORD.match(text, start):
            place, kind = word.end(), "value" if _NUMBER.fullmatch(word.group()) else "name"
            while kind != "value" and text[place : place + 1] in ("(", "["):
                place, kind = _closed(text, start, place), "python"
            if kind != "python" and text[place : place + 1] in ("'", '"'):
                message = f"Unexpected character {text[place]!r} following token `{word.group()}`."
                raise FormulaError(mark(message, text, place))
        else:
            kind = _QUOTES.get(first, first)
            place = _closed(text, start, start) if first in _QUOTES else start + 1
        yield _Token(kind, text[start:place], start, place)


_WORD, _NUMBER = re.compile(r"[\w.]+"), re.compile(r"[0-9.]+")
_QUOTES = {"`": "name", "{": "python", "'": "value", '"': "value", "%": "%"}
_CLOSING = {"(": ")", "[": "]", "{": "}"}


def _closed(text: str, start: int, opening: int) -> int:
    """The place behind what a bracket or a quotation mark encloses; the token starts at `start`."""
    waiting, place = [_CLOSING.get(text[opening], text[opening])], opening + 1
    while waiting and place < len(text):
        char = text[place]
        if char == waiting[-1]:
            waiting.pop()
        elif waiting[-1] in ")]}" and char in "([`":
            waiting.append(_CLOSING.get(char, char))
        place += 2 if char == "\\" else 1
    if waiting:
        message = f"Formula ended before quote context was closed. Expected: {waiting[-1]}"
        raise FormulaError(mark(message, text, start))
    return place


def _stand_in(code: str, pattern: str, taken: set[str], aliases: dict[str, str]) -> str:
    """Put a stand-in of the same length in the place of each keyword that the pattern finds."""

    def swap(match: re.Match) -> str:
        word = match.group(1)
        known = next((alias for alias, name in aliases.items() if name == word), None)
        alias = known or next(word[:-1] + c for c in "_0123456789" if word[:-1] + c not in taken)
        aliases[alias] = word
        return match.group(0).replace(word, alias).replace("`", " ")

    return re.sub(pattern.replace("WORD", "|".join(keyword.kwlist)), swap, code)


def _parses(code: str) -> bool:
    try:
        ast.parse(re.sub(r"`[^`]*`", "_", code).strip("{}").strip(), mode="eval")
    except SyntaxError:
        return False
    return True


def _segments(text: str, tokens: list[_Token]) -> Iterator[tuple[_Token | None, list[_Token]]]:
    """Terms of the right-hand side with the sign before each, split at + and - outside of parentheses."""
    sign, body, depth = None, [], 0
    for token in tokens:
        if token.kind in "([":
            depth += 1
        elif token.kind in ")]":
            depth -= 1
            if depth < 0:
                raise FormulaError(mark("a closing parenthesis has no opening one", text, token.start))
        if token.kind in ("+", "-") and depth == 0:
            if body:
                yield sign, body
            sign, body = token, []
        else:
            body.append(token)
    if depth:
        spot = next(t.start for t in tokens if t.kind in "([")
        raise FormulaError(mark("a parenthesis is not closed", text, spot))
    if body:
        yield sign, body


def _unwrap(body: list[_Token]) -> list[_Token]:
    """Strip parentheses that enclose everything."""
    while len(body) > 2 and body[0].kind == "(" and body[-1].kind == ")":
        depth = 0
        for token in body[:-1]:
            depth += (token.kind == "(") - (token.kind == ")")
            if depth == 0:
                return body
        body = body[1:-1]
    return body


def _offset(body: list[_Token]) -> str | None:
    """The expression inside offset(...), if the term is one."""
    match = re.fullmatch(r"offset\((.*)\)", body[0].text, re.DOTALL) if body[0].kind == "python" else None
    return match.group(1).strip() if match else None


def _structured(text: str, token: _Token) -> tuple[str, list[_Token]]:
    """The word before a bar and what its parentheses hold, of a term such as cs(0 + f | g); none of another call."""
    match = re.fullmatch(r"(\w+)(\s*\()(.*)\)", token.text, re.DOTALL) if token.kind == "python" else None
    if not match:
        return "", []
    word, offset = match[1], token.start + match.end(2)
    inside = [_Token(t.kind, t.text, t.start + offset, t.end + offset) for t in scan(match[3])]
    depth = accumulate((t.kind == "(") - (t.kind == ")") for t in inside)
    if word in _CALLS or not any(t.kind == "|" and not d for t, d in zip(inside, depth, strict=True)):
        return "", []
    if word not in WORDS:
        message = (
            f"{word!r} before a bar is no covariance structure of random effects: there are {listed()}. What is "
            "Python's | is written I(a | b)"
        )
        raise FormulaError(mark(message, text, token.start), page=PAGE)
    return word, inside


_CALLS = ("I", "C", "Q")
"""Calls in which a bar is Python's."""


def _bar(text: str, body: list[_Token], inner: list[_Token], word: str = "") -> list[RandomPart]:
    """The random-effects terms that one pair of parentheses with a bar stands for."""
    bars = [i for i, t in enumerate(inner) if t.kind == "|"]
    spot = next(t.start for t in body if t.kind == "|")
    if inner is body or not bars or any(sum((t.kind == "(") - (t.kind == ")") for t in inner[:i]) for i in bars):
        raise FormulaError(
            mark("a random-effects term stands alone in parentheses and is added with +, as in '+ (x | g)'", text, spot)
        )
    first, last = bars[0], bars[-1]
    double = len(bars) == 2 and inner[last].start == inner[first].start + 1
    if len(bars) > 1 and not double:
        raise FormulaError(mark("a random-effects term has one bar, | or ||", text, inner[last].start))
    if double and word:
        message = f"{word} before a bar says which covariances there are, and || that there are none: write one bar"
        raise FormulaError(mark(message, text, inner[first].start), page=PAGE)
    left, right = inner[:first], inner[last + 1 :]
    if not left or not right:
        side = "left of the bar what varies (1 for an intercept)" if not left else "right of the bar a grouping factor"
        raise FormulaError(mark(f"a random-effects term needs {side}, as in '(1 | group)'", text, spot))
    odd = next((t for t in left if t.kind == "~" or t.text.startswith("offset(")), None)
    if odd:
        raise FormulaError(mark(f"{odd.text!r} cannot stand inside a random-effects term", text, odd.start))
    _refuse_meaningless(text, left)
    _refuse_differences(text, left)
    effects, line = _normal(left), "||" if double else "|"
    shown = effects if "{" in text else effects.replace("{", "(").replace("}", ")")
    groups, rest = _nest(text, right)
    if rest:
        message = f"the grouping factor cannot be read: {SPACES}" if rest[0].kind == "name" else GROUPING
        raise FormulaError(mark(message, text, rest[0].start))
    spelled_effects = " " * left[0].start + _braced(text)[left[0].start : left[-1].end]
    labels = [f"{shown} {line} {':'.join(names)}" for names in groups]
    if WORDS.get(word, WORDS["us"]).structure == UNSTRUCTURED:
        word = ""
    return [
        RandomPart(f"{word}({label})" if word else label, effects, names, double, word, spelled_effects)
        for label, names in zip(labels, groups, strict=True)
    ]


def _nest(text: str, tokens: list[_Token]) -> tuple[list[tuple[str, ...]], list[_Token]]:
    """Read ``a/b``: a, then every factor of b within all of a.  Returns the factors and the tokens left."""
    factors, rest = _cross(text, tokens)
    while rest and rest[0].kind == "/":
        token, (inner, rest) = rest[0], _cross(text, rest[1:])
        factors = factors + [_join(text, token, factors[-1], names) for names in inner]
    return factors, rest


def _cross(text: str, tokens: list[_Token]) -> tuple[list[tuple[str, ...]], list[_Token]]:
    """Read ``a:b``."""
    factors, rest = _atom(text, tokens)
    while rest and rest[0].kind == ":":
        token, (inner, rest) = rest[0], _atom(text, rest[1:])
        factors = [_join(text, token, outer, names) for outer in factors for names in inner]
    return factors, rest


def _atom(text: str, tokens: list[_Token]) -> tuple[list[tuple[str, ...]], list[_Token]]:
    """Read a column, a call or a group in parentheses."""
    if not tokens:
        raise FormulaError(mark(GROUPING, text, len(text.rstrip())))
    head, rest = tokens[0], tokens[1:]
    if head.kind == "(":
        factors, rest = _nest(text, rest)
        if not rest or rest[0].kind != ")":
            raise FormulaError(mark(GROUPING, text, rest[0].start if rest else head.start))
        return factors, rest[1:]
    if head.kind not in ("name", "python"):
        raise FormulaError(mark(GROUPING, text, head.start))
    refuse_r(head.text, text)
    return [(bare_name(head.text),)], rest


def _join(text: str, token: _Token, outer: tuple[str, ...], inner: tuple[str, ...]) -> tuple[str, ...]:
    twice = next((name for name in inner if name in outer), None)
    if twice:
        message = f"{twice!r} within {twice!r} is {twice!r} itself: name each factor once"
        raise FormulaError(mark(message, text, token.start))
    return outer + inner


def _normal(tokens: list[_Token]) -> str:
    """Text of tokens with uniform blanks: spaces around + and - only."""
    pieces = []
    for i, token in enumerate(tokens):
        if token.kind == "python":
            pieces.append(spelled(token.text))
        elif token.kind in ("+", "-"):
            pieces.append(f" {token.text} " if i else token.text)
        else:
            pieces.append(token.text)
    return "".join(pieces)


def _tidy(text: str, characters: list[str], rhs: int) -> str:
    """The fixed part: no leading + where the first term was taken out, and an intercept where nothing is left."""
    rest = "".join(characters[rhs:])
    at = rhs + len(rest) - len(rest.lstrip())
    if not rest.strip() and text[rhs:].strip():
        characters[rhs + len(text[rhs:]) - len(text[rhs:].lstrip())] = "1"
    elif rest.lstrip().startswith("+") and not text[rhs:].lstrip().startswith("+"):
        characters[at] = " "
    return "".join(characters)
