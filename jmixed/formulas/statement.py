"""Words to arrays: a formula (with bars, or with statsmodels' arguments) and a table become a `ModelData`."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, FormulaError, ModelError
from jmixed.formulas.arrays import from_arrays
from jmixed.formulas.assemble import DataRows, Words, assemble, leave_out_missing
from jmixed.formulas.formula import (
    FormulaParts,
    RandomPart,
    bare_name,
    mark,
    normalise,
    parse,
    parse_one_sided,
    quoted,
    scan,
)
from jmixed.formulas.frame import column, holds_text, kept_frame, per_row, require_missing, subset_positions
from jmixed.formulas.model_data import ModelData, NewRows, RandomTerm
from jmixed.formulas.newdata import new_rows
from jmixed.formulas.patsy_words import BESIDE_BARS, PATSY
from jmixed.formulas.recipe import Recipe, read, terms_in
from jmixed.formulas.relationships import known_matrices
from jmixed.formulas.residuals import parse_residual
from jmixed.formulas.responses import FURTHER, response_part
from jmixed.runtime.timing import Timings

__all__ = ["ModelData", "NewRows", "RandomTerm", "from_arrays", "from_formula", "new_rows"]


def from_formula(
    formula: str,
    data: Any,
    *,
    groups: Any = None,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    subset: Any = None,
    missing: str = "none",
    weights: Any = None,
    offset: Any = None,
    env: Mapping[str, Any] | None = None,
    drop_cols: Sequence[str] | None = None,
    check: str = "raise",
    residual: str | None = None,
    dispersion: str | None = None,
    relationship: Mapping[str, Any] | None = None,
    relationship_inverse: Mapping[str, Any] | None = None,
    timings: Timings | None = None,
    response_kind: str | None = None,
    family_name: str = "binomial",
    trials: Any = None,
    zero_inflation: str | None = None,
) -> ModelData:
    """Build the arrays of a model from words and a table; each error says what to do.

    The arguments are those of `jmixed.mixedlm` and `jmixed.mixedglm`, of which `env` has the functions and constants
    that formulas may use. A generalized model has a `response_kind`, of `jmixed.formulas.responses.RESPONSES`, and a
    family that messages call `family_name`. Its `dispersion` and `zero_inflation` are columns as they are, with an
    intercept; `check` and `residual` are a linear model's.

    Examples
    --------
    >>> from jmixed.formulas.statement import from_formula
    >>> data = {"y": [1.0, 2.0, 4.0, 3.0], "g": ["a", "a", "b", "b"]}
    >>> model = from_formula("y ~ 1 + (1 | g)", data)
    >>> model.X.shape, list(model.terms[0].levels)
    ((4, 1), ['a', 'b'])
    """
    require_missing(missing)
    if isinstance(drop_cols, str):
        raise DataError(f"drop_cols is the text {drop_cols!r}; it must be a list of columns: drop_cols=[{drop_cols!r}]")
    timings = Timings() if timings is None else timings
    beside = {"groups": groups, "weights": weights, "offset": offset, "trials": trials}
    stated: dict[str, Any] = {"residual": residual, "dispersion": dispersion, "zero_inflation": zero_inflation}
    stated |= {"response_kind": response_kind, "family_name": family_name}
    with timings.step("parse"):
        table = kept_frame(data)
        words, recipe = state(formula, table, beside, re_formula, vc_formula, env or {}, **stated)
        words = replace(words, known=known_matrices(relationship, relationship_inverse))
    with timings.step("materialise"):
        columns = {name: per_row(value, table, name) for name, value in beside.items() if value is not None}
        rows = DataRows(table, columns, np.arange(len(table), dtype=np.int32 if len(table) < 1 << 31 else np.int64))
        if subset is not None:
            rows = rows.take(subset_positions(table, subset))
        complete = leave_out_missing(rows, words, recipe, missing)
        model = assemble(words, recipe, complete, missing, tuple(drop_cols or ()), check)
        return replace(model, left_out=len(rows.positions) - model.nobs)


def state(
    formula: str,
    table: pd.DataFrame,
    beside: Mapping[str, Any],
    re_formula: Any,
    vc_formula: Any,
    env: Mapping,
    residual: Any = None,
    dispersion: Any = None,
    zero_inflation: Any = None,
    response_kind: str | None = None,
    family_name: str = "binomial",
) -> tuple[Words, Recipe]:
    """A model in words, and its formulas as read for a table; `beside` has what there is a value of for each row.

    These are the groups, weights, offset and trials, or None.
    """
    of_residuals = None if residual is None else parse_residual(residual)
    parts = parse(formula)
    linear = response_kind is None
    stated = linear and (residual is not None or dispersion is not None)
    words = _words(parts, table, beside["groups"], re_formula, vc_formula, stated, OLS if linear else GLM)
    words = replace(_with_predictors(words, dispersion, zero_inflation), residual=of_residuals)
    if response_kind is not None:
        words = _with_response(words, response_kind, family_name, beside.get("trials"))
    for part, text in words.texts.items():
        _refuse_caret(text, words.shown.get(part, text))
    others = [bare_name(value) for value in beside.values() if isinstance(value, str)]
    others += [name for part in words.random for name in part.factors]
    others += [] if of_residuals is None else of_residuals.factors
    own_words = BESIDE_BARS if words.group_name is None else PATSY
    return words, read(words.texts, table, env, words.shown, others, own_words)


OLS, GLM = "ordinary least squares (statsmodels' OLS)", "a generalized linear model (statsmodels' GLM)"
"""What models without random effects are."""


def _with_predictors(words: Words, dispersion: Any, zero_inflation: Any) -> Words:
    """The words of a model with those of what the dispersion and the inflation of zeros depend on."""
    stated = {"dispersion": dispersion, "zero": zero_inflation}
    left = words.parts.fixed.partition("~")[0].strip()
    texts = {part: _one_sided(text, FURTHER[part], left) for part, text in stated.items() if text is not None}
    return replace(words, **stated, texts=words.texts | texts)


def _with_response(words: Words, kind: str, family: str, trials: Any) -> Words:
    """The words of a generalized model, from those of a linear one."""
    response, texts = response_part(words.parts, kind, family, trials)
    # What is part of the response is read before the formula in which a dot stands for the other columns.
    return replace(
        words,
        response=response,
        texts=texts | words.texts | texts,
        shown=words.shown | dict.fromkeys(texts, words.parts.text),
    )


def _refuse_caret(text: str, shown: str) -> None:
    """Refuse ``^`` beside a number in a Python expression: a power in R, but the exclusive or of bits in Python."""
    for token in scan(text) if "^" in text else ():
        try:
            tree = ast.parse(re.sub(r"`[^`]*`", "_", token.text).strip("{} "), mode="eval")
        except SyntaxError:
            continue
        carets = [node for node in ast.walk(tree) if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor)]
        if token.kind == "python" and any(isinstance(k, ast.Constant) for n in carets for k in (n.left, n.right)):
            spot = shown.find(token.text)
            message = f"^ in {token.text!r} is Python's exclusive or of bits; write a power as **"
            raise FormulaError(mark(message, shown, spot if spot >= 0 else None))


def _words(
    parts: FormulaParts,
    table: pd.DataFrame,
    groups: Any,
    re_formula: Any,
    vc_formula: Any,
    stated: bool,
    without: str,
) -> Words:
    """Bring both grammars to one description; a model needs random effects unless its residuals are `stated`.

    `without` is what messages call a model without them.
    """
    style = [
        name
        for name, v in (("groups", groups), ("re_formula", re_formula), ("vc_formula", vc_formula))
        if v is not None
    ]
    if parts.random and style:
        raise FormulaError(
            f"the formula has random-effects bars ({parts.random[0].label!r}) and {', '.join(style)} is given too; "
            "use either bars alone or groups=, re_formula= and vc_formula="
        )
    if not parts.random and groups is None and not (stated and not style):
        what = f"{style[0]} is given but groups= is missing" if style else "the model has no random effects"
        raise ModelError(
            f"{what}: add a term such as (1 | group) to the formula, or groups='group'; "
            f"without random effects this is {without}",
            page="formula.md",
        )
    response = parts.fixed.partition("~")[0].strip()
    random, name = tuple(term for part in parts.random for term in _apart(part, parts.text, table)), None
    if groups is not None:
        _refuse_several(groups, table)
        name = _group_name(groups, table)
        if name == bare_name(response):
            raise DataError(f"groups= is the response {name!r}: give the column that tells the groups apart")
        random = _standard(re_formula, vc_formula, name, response)
    components = _components(vc_formula, response)
    varying = {f"z{i}": part for i, part in enumerate(random) if part.effects != "1"}
    effects = {part.effects: key for key, part in reversed(varying.items())}
    texts = {"fixed": parts.fixed} | {f"offset{i}": f"0 + I({text})" for i, text in enumerate(parts.offsets)}
    texts |= {key: varying[key].spelled for key in effects.values()}
    texts |= {f"v{i}": text for i, (_, text) in enumerate(components)}
    named = tuple((vc_name, f"v{i}") for i, (vc_name, _) in enumerate(components))
    shown = dict.fromkeys(["fixed", *(f"offset{i}" for i in range(len(parts.offsets)))], parts.text)
    shown |= dict.fromkeys(effects.values(), parts.text) if parts.random else {}
    return Words(parts, random, named, effects, texts, shown, name)


def _group_name(groups: Any, table: pd.DataFrame) -> str:
    if not isinstance(groups, str):
        return "Group"
    return groups if groups in table.columns else bare_name(groups)


def _refuse_several(groups: Any, table: pd.DataFrame) -> None:
    """Refuse what stands for several factors, or for a nest, in the place of the one that `groups` is."""
    names: Any = ()
    if isinstance(groups, str):
        operators = {token.kind for token in scan(groups)} & set("/:+*|%") if groups not in table.columns else set()
        if not operators:
            return
        what = repr(groups)
        names = [name for name in re.findall(r"[^\W\d][\w.]*", groups) if name in table.columns]
    elif isinstance(groups, pd.DataFrame | np.ndarray) and groups.ndim == 2 and groups.shape[1] > 1:
        what, names = f"an array of shape {groups.shape}", groups.columns if isinstance(groups, pd.DataFrame) else ()
    elif isinstance(groups, list | tuple) and 1 < len(groups) != len(table):
        what, names = repr(groups), groups
        if not all(isinstance(name, str) and name in table.columns for name in names):
            return
    else:
        return
    first, second = (quoted(str(name)) for name in [*names, *"ab"[len(names) :]][:2])
    raise DataError(
        f"groups is {what}, but it is one grouping factor. Several are written as bars in the formula, without "
        f"groups=: + (1 | {first}) + (1 | {second}) for crossed factors, + (1 | {first}/{second}) for {second} within "
        f"{first}",
        page="formula.md",
    )


def _apart(part: RandomPart, text: str, table: pd.DataFrame) -> tuple[RandomPart, ...]:
    """The parts that a part with ``||`` stands for: one for each term of its effects, as lme4 has it.

    ``(x + f || g)`` is ``(1 | g) + (0 + x | g) + (0 + f | g)``: without covariances between them, and for a category
    f with those among its levels, whatever its coding. Those of f hold every variance of the intercept already, as a
    common part: the two together have the likelihood of ``(0 + x | g) + (0 + f | g)``, and a flat direction. So a term
    is left out when another one has its numbers and its categories and more categories.
    """
    if not part.independent:
        return (part,)
    dot = next((token for token in scan(part.spelled) if token.text == "."), None)
    if dot:
        raise FormulaError(mark("a dot cannot be taken apart by ||: write the columns out", text, dot.start))
    terms = terms_in(part.spelled, text)
    if not terms:
        raise ModelError(f"the random-effects term {part.label!r} has no columns; use 1 for a random intercept")
    kinds = []
    for factors in terms:
        categories = frozenset(name for name in factors if _is_category(name, table))
        kinds.append((frozenset(factors) - categories - {"1"}, categories))
    parts = []
    for factors, (numbers, categories) in zip(terms, kinds, strict=True):
        if any(numbers == other and categories < more for other, more in kinds):
            continue
        effects = "1" if factors == ("1",) else f"0 + {':'.join(factors)}"
        label = f"{effects} | {':'.join(part.factors)}"
        parts.append(RandomPart(label, effects, part.factors, spelled=effects))
    return tuple(parts)


def _is_category(factor: str, table: pd.DataFrame) -> bool:
    """Whether a factor of a term stands for a category: a column of labels or truth values, C(...), a comparison."""
    name = bare_name(factor)
    if name in table.columns:
        values = column(table, name)
        return pd.api.types.infer_dtype(values, skipna=True) == "boolean" or holds_text(values)
    return bool(re.match(r"C\s*\(|\(.*[<>=].*\)$", factor))


def _standard(re_formula: Any, vc_formula: Any, name: str, response: str) -> tuple[RandomPart, ...]:
    """The random effects that statsmodels' re_formula stands for."""
    if re_formula is None:
        return () if vc_formula else (RandomPart(f"1 | {name}", "1", (name,)),)
    text = _one_sided(re_formula, "re_formula", response)
    if vc_formula and normalise(text) in ("0", "-1"):
        return ()
    return (RandomPart(f"{normalise(text)} | {name}", text, (name,), spelled=text),)


def _components(vc_formula: Any, response: str) -> list[tuple[str, str]]:
    """Name and formula of each variance component, sorted by name."""
    if vc_formula is None:
        return []
    if not isinstance(vc_formula, Mapping):
        raise FormulaError(
            f"vc_formula is {vc_formula!r}; it must be a mapping of names to formulas, "
            "such as {'classroom': '0 + C(classroom)'}"
        )
    return [(str(k), _one_sided(vc_formula[k], f"vc_formula[{k!r}]", response)) for k in sorted(vc_formula, key=str)]


def _one_sided(formula: Any, what: str, response: str) -> str:
    if not isinstance(formula, str) or not formula.strip():
        raise FormulaError(f"{what} is {formula!r}; it must be a formula without response, such as '1 + x'")
    text = formula.strip().removeprefix("~").strip()
    kinds = {token.kind for token in scan(text)}
    if "~" in kinds:
        right = text.rpartition("~")[2].strip()
        raise FormulaError(f"{what} is {formula!r}, but it has no response: write '~ {right}'")
    if "|" in kinds:
        raise FormulaError(
            f"{what} is {formula!r}: random-effects bars belong to the main formula, used without groups="
            + ("; a standard deviation for each sex is dispersion='~ sex'" if what == "dispersion" else "")
        )
    return parse_one_sided(text, response)
