"""The formulas of a model: read, evaluated together on one table, and kept for new data."""

import ast
import builtins
import functools
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
from formulaic import Formula, ModelSpec, ModelSpecs, SimpleFormula
from formulaic.errors import DataMismatchWarning, FormulaicError

from jmixed.errors import DataError, FormulaError, JmixedError
from jmixed.formulas.evaluate import (
    FormulaFactor,
    factors_of,
    is_text,
    known_factors,
    let_go,
    materializer,
    new_spec,
    place_of,
    require_rows,
    value_of,
    vocabulary,
)
from jmixed.formulas.factors import label_kinds
from jmixed.formulas.formula import quoted, replace_keywords
from jmixed.formulas.frame import DATES, column, holds_text, spell_numbers, text_error, unknown_column
from jmixed.formulas.marks import find, mark, names_in, refuse_dotted, spelled, syntax_error, without_backticks
from jmixed.formulas.plain import plain_columns
from jmixed.formulas.r_words import hint
from jmixed.runtime.memory import roomy
from jmixed.runtime.precision import FLOAT


@dataclass(frozen=True)
class Matrix:
    """The columns of one part of a model: names and values (n, k)."""

    names: tuple[str, ...]
    values: np.ndarray


@dataclass(frozen=True)
class Elsewhere:
    """An object of the caller's that a file of a result does not hold: its name, and what it is."""

    name: str
    nature: str

    def looked_up(self, names: Mapping[str, Any]) -> Any:
        """The object of that name, if it is what it was; else this."""
        return names[self.name] if self.name in names and nature(names[self.name]) == self.nature else self


def nature(value: Any) -> str:
    """What an object of the caller's is, in a word."""
    if isinstance(value, ModuleType):
        return "module"
    return "function" if callable(value) else type(value).__qualname__


@dataclass(frozen=True)
class Recipe:
    """The formulas of a model, read but for their data, and later with the state of their transforms."""

    specs: dict[str, ModelSpec]  # by part: "lhs", "rhs", "offset0", "z0", ...
    needs: dict[str, tuple[str, ...]]  # part to the columns of the data that it uses
    aliases: dict[str, str]  # stand-ins for columns whose names are Python keywords, {"clas_": "class"}
    env: dict[str, Any] = field(repr=False)  # the caller's functions and constants; or `Elsewhere`
    texts: dict[str, str] = field(repr=False)  # part to the text of its formula, for messages
    # of the columns of the working frame that was fitted, to which new data is brought
    dtypes: dict[str, Any] = field(default_factory=dict, repr=False)

    @property
    def offsets(self) -> list[str]:
        """The parts that are offsets."""
        return [part for part in self.specs if part.startswith("offset")]

    def columns(self, parts: Iterable[str]) -> list[str]:
        """The columns of the data that some parts use, each once."""
        return list(dict.fromkeys(name for part in parts for name in self.needs[part]))


def read(
    texts: Mapping[str, str],
    frame: pd.DataFrame,
    env: Mapping[str, Any],
    shown: Mapping[str, str],
    others: Iterable[str],
    own_words: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read the formulas of a model.

    Parameters
    ----------
    texts : mapping
        Part to formula. The part "fixed" is two-sided and becomes "lhs" and "rhs"; all others are one-sided.
    frame, env
        The data, and the names that formulas may use beside its columns; a column wins.
    shown : mapping
        Part to the text that messages show in place of its formula, with everything at the same positions.
    others : iterable of str
        Columns that a ``.`` in a formula does not stand for: grouping factors, weights, offset.
    own_words : mapping, optional
        Transforms that stand in the place of formulaic's of the same names; what the caller has wins.
    """
    others = set(others)
    words = {word for text in [*texts.values(), *others] for word in re.findall(r"[^\W\d]\w*", text)}
    known = {word: transform for word, transform in (own_words or {}).items() if word in words}
    recipe = Recipe({}, {}, {}, known | _used(env, words - set(frame.columns)), {})
    for part, text in texts.items():
        code, aliases = replace_keywords(text, words)
        recipe.aliases.update(aliases)
        text = shown.get(part, text)
        others.update(name for side in ("lhs", "failures") for name in recipe.needs.get(side, ()))
        available = tuple(name for name in frame.columns if name not in others)
        for name, formula in _formulas(part, code, text, available if "." in code else ()).items():
            recipe.specs[name] = ModelSpec(formula=formula)
            recipe.needs[name] = _needs(formula, frame, recipe, text)
            recipe.texts[name] = text
    return recipe


def _used(env: Mapping[str, Any], words: set[str]) -> dict[str, Any]:
    """The part of the caller's names that formulas mention; a transform is shadowed by a function only."""
    mentioned = {word: env[word] for word in words if word in env}
    return {word: value for word, value in mentioned.items() if word not in vocabulary() or callable(value)}


@functools.lru_cache(maxsize=256)
def _formulas(part: str, code: str, text: str, available: tuple[str, ...]) -> dict[str, SimpleFormula]:
    """formulaic's reading of one text, with the caller's spelling of expressions."""
    try:
        formula = Formula.from_spec(code, context={"__formulaic_variables_available__": list(available)})
    except FormulaicError as error:
        raise syntax_error(error, text) from None
    except SyntaxError as error:
        line = (error.text or "").strip()
        spot = text.find(line) + (error.offset or 1) - 1 if line and line in text else None
        raise FormulaError(mark(f"the formula cannot be read ({error.msg})", text, spot)) from None
    if part != "fixed" and isinstance(formula, SimpleFormula):
        return {part: _as_spelled(formula, code)}
    sides = [getattr(formula, name, None) for name in ("lhs", "rhs")]
    simple = [side for side in sides if isinstance(side, SimpleFormula)]
    if part == "fixed" and len(simple) == 2:
        return {"lhs": _as_spelled(simple[0], code), "rhs": _as_spelled(simple[1], code)}
    allowed = "one response and one right-hand side" if part == "fixed" else "no response"
    raise FormulaError(mark(f"this formula must have {allowed}", text))


def terms_in(effects: str, text: str) -> list[tuple[str, ...]]:
    """The terms of random effects, each the texts of its factors; `effects` stand in the formula `text`.

    Examples
    --------
    >>> from jmixed.formulas.recipe import terms_in
    >>> terms_in("f * np.log(`body mass`)", "y ~ (f * np.log(`body mass`) || g)")
    [('1',), ('f',), ('np.log(`body mass`)',), ('f', 'np.log(`body mass`)')]
    """
    code, aliases = replace_keywords(effects, set(re.findall(r"\w+", effects)))
    factors = [term.factors for term in next(iter(_formulas("effects", code, text, ()).values()))]
    names = [[quoted(f.expr) if f.eval_method.value == "lookup" else f.expr for f in term] for term in factors]
    return [tuple(restore(name, aliases) for name in term) for term in names]


def _as_spelled(formula: SimpleFormula, code: str) -> SimpleFormula:
    """The formula with its expressions as the caller spelled them first; formulaic changes quotes and numbers."""
    factors = [factor for term in formula for factor in term.factors if factor.eval_method.value == "python"]
    places = sorted((place, factor.expr) for factor in factors if (place := place_of(factor, code)))
    spellings: dict[str, str] = {}
    for (start, last), expr in places:
        spellings.setdefault(expr, spelled(code[start : last + 1].removeprefix("{").removesuffix("}")))

    def respelled(factor: FormulaFactor) -> FormulaFactor:
        return FormulaFactor(spellings.get(factor.expr, factor.expr), eval_method=factor.eval_method)

    return new_spec(map(respelled, term.factors) for term in formula).formula


def _needs(formula: SimpleFormula, frame: pd.DataFrame, recipe: Recipe, text: str) -> tuple[str, ...]:
    """The columns that a formula uses; a name that is neither a column nor known to the caller is an error."""
    names = []
    for factor in factors_of(ModelSpec(formula)):
        is_call = factor.eval_method.value == "python"
        if is_call:
            refuse_dotted(factor.expr, frame.columns, text)
        for name, called in names_in(factor, text):
            word = recipe.aliases.get(name, name)
            if word in frame.columns and not called:
                names.append(word)
            elif not (word in recipe.env or word in vocabulary() or hasattr(builtins, word)):
                raise _unknown(word, called, frame, text)
            elif factor.expr == name and not np.iterable(recipe.env.get(name, 0)):
                message = f"{name!r} is no column of the data; use a constant inside a call, as in I({name} * x)"
                raise FormulaError(mark(message, text, find(name, text)))
        for name in re.findall(rf"(?<![\w.])(?:{_NUMERIC})\(\s*(\w+)\s*[,)]", factor.expr) if is_call else ():
            named = recipe.aliases.get(str(name), str(name))
            if named in frame.columns and holds_text(column(frame, named)):
                raise text_error(f"{restore(factor.expr, recipe.aliases)}: the column {named!r}", column(frame, named))
    return tuple(dict.fromkeys(names))


_NUMERIC = "bs|cc|cr|cs|poly|center|scale|standardize"


def _unknown(name: str, called: bool, frame: pd.DataFrame, text: str) -> JmixedError:
    if called:
        message = f"{name!r} is neither a transform of formulaic nor a function that the caller can see"
        return FormulaError(mark(message + hint(name), text, find(name, text)))
    if hint(name):
        return FormulaError(mark(f"{name!r} is a word of R{hint(name)}", text, find(name, text)))
    return DataError(mark(unknown_column(name, frame.columns, "the formula"), text, find(name, text)))


@dataclass(frozen=True)
class PartMatrices:
    """What formulas give on a table: the matrix of each part and the positions of rows with missing values."""

    matrices: dict[str, Matrix]
    specs: dict[str, ModelSpec]
    missing: np.ndarray


def evaluate(recipe: Recipe, parts: Iterable[str], frame: pd.DataFrame, fresh: bool) -> PartMatrices:
    """Evaluate parts of a recipe together on a working frame, each factor once.

    `fresh` learns levels and states of transforms, from rows without missing values: what it gives in the others is not
    said. Otherwise those that the recipe has are applied, to all rows.
    """
    parts = list(parts)
    for part in parts:
        _require_here(recipe, factors_of(recipe.specs[part]), part)
    learnt = plain_columns({part: recipe.specs[part] for part in parts}, frame) if fresh else {}
    others, missing = [part for part in parts if part not in learnt], np.zeros(0, np.int64)
    made: set[str] = set()
    if fresh:
        _refuse_objects(recipe, others, frame)
    if others:
        materialised, missing, made = _materialise(recipe, others, frame, fresh)
        learnt |= materialised
    specs = {part: spec for part, (spec, _) in learnt.items()}
    if fresh:
        _refuse_labels(recipe, specs, frame, made)
    matrices = {part: Matrix(_column_names(spec, recipe), values) for part, (spec, values) in learnt.items()}
    for part in matrices:
        if part in ("lhs", "failures") or part.startswith("offset"):
            matrices[part] = _truth_as_number(matrices[part], specs[part], recipe)
    return PartMatrices(matrices, specs, missing)


def of_whole_columns(recipe: Recipe, parts: Iterable[str], working: pd.DataFrame) -> tuple[str, str] | None:
    """A column of the parts whose value in one row depends on others, and its part; None if there is none.

    Halves of the rows and single ones must give what all give. A term that they cannot make is called "a term".
    """
    parts, n = list(parts), len(working)
    every = evaluate(recipe, parts, working, fresh=False)
    distinct = np.flatnonzero(~working.duplicated().to_numpy())
    single = distinct[np.unique([0, len(distinct) // 2, len(distinct) - 1])] if len(distinct) else distinct
    for places in (np.arange(0, n, 2), np.arange(1, n, 2), *single[:, None]):
        if not len(places):
            continue
        try:
            matrices = evaluate(recipe, parts, working.iloc[places], fresh=False).matrices
        except JmixedError:
            return "a term", parts[0]
        for part, matrix in every.matrices.items():
            same = np.isclose(matrices[part].values, matrix.values[places], rtol=1e-9, atol=0, equal_nan=True)
            for k in np.flatnonzero(~np.all(same, axis=0)):
                return matrix.names[k], part
    return None


def may_need_others(factor: FormulaFactor) -> bool:
    """Whether a factor has a call, or takes entries of a column, that may look at other rows: not whether it does."""
    code, _ = without_backticks(factor.expr)
    try:
        tree = ast.parse(code.strip("{} "), mode="eval")
    except SyntaxError:
        return False
    return any(
        isinstance(node, ast.Subscript) or (isinstance(node, ast.Call) and not _row_by_row(node.func))
        for node in ast.walk(tree)
    )


def _row_by_row(function: ast.expr) -> bool:
    """Whether a function is known to look at rows one by one, or to keep what it has learnt."""
    if isinstance(function, ast.Name):
        return function.id in vocabulary().keys() - {"lag"}
    if not (isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)):
        return False
    of_numpy = isinstance(getattr(np, function.attr, None), np.ufunc) or function.attr in ("where", "digitize", "clip")
    return function.value.id == "contr" or (function.value.id in ("np", "numpy") and of_numpy)


def _require_here(recipe: Recipe, factors: Iterable[FormulaFactor], part: str | None = None) -> None:
    """Refuse factors with functions that a file did not hold, and that were not there where it was loaded."""
    absent = {name: value.nature for name, value in recipe.env.items() if isinstance(value, Elsewhere)}
    for factor in factors if absent else ():
        text = factor.expr if part is None else recipe.texts[part]
        for name, _ in names_in(factor, text):
            if name in absent:
                message = (
                    f"{name!r} is a {absent[name]} of yours, which the file of this result does not hold: define or "
                    f"import {name} where you call jm.load, and load the file again"
                )
                raise FormulaError(mark(message, text, find(name, text)))


def _truth_as_number(matrix: Matrix, spec: ModelSpec, recipe: Recipe) -> Matrix:
    """A response or an offset of truth values, which are 0 and 1 there and no categories."""
    for factor, (_, state) in known_factors(spec).items():
        labels = state.get("categories", [])
        if len(labels) == len(matrix.names) and all(isinstance(label, bool | np.bool_) for label in labels):
            return Matrix((restore(factor.expr, recipe.aliases),), matrix.values @ np.array(labels, FLOAT)[:, None])
    return matrix


def _materialise(
    recipe: Recipe, parts: Iterable[str], frame: pd.DataFrame, fresh: bool
) -> tuple[dict[str, tuple[ModelSpec, np.ndarray]], np.ndarray, set[str]]:
    """The learnt spec and the columns of each part, the positions of rows with missing values, and what made text."""
    shared: dict[str, dict] = {"transform_state": {}, "encoder_state": {}}
    specs: dict[str, Any] = {
        part: recipe.specs[part].update(**(shared if fresh else _own_state(recipe.specs[part]))) for part in parts
    }
    count = len({factor for spec in specs.values() for factor in factors_of(spec)})
    look = None if fresh else lambda: _refuse_strangers(recipe, specs, rows.values)
    rows = materializer(frame, recipe.env, look, count)
    dropped: set[int] = set()
    _refuse_dates(recipe, specs, frame)
    if not fresh:
        _refuse_text(recipe, specs, frame)
    try:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"), warnings.catch_warnings():
            # formulaic counts a missing value among the unknown categories; missing rows are marked by themselves.
            warnings.simplefilter("ignore", DataMismatchWarning)
            result = rows.get_model_matrix(
                ModelSpecs(**specs), drop_rows=dropped, na_action="drop" if fresh else "ignore", output="numpy"
            )
    except JmixedError:
        raise
    except (FormulaicError, SyntaxError, TypeError, ValueError, KeyError, IndexError) as error:
        raise _explain(error, recipe, specs, frame) from error
    if not fresh:
        _require_same_kinds(recipe, {part: result[part].model_spec for part in specs})
    missing = np.array(sorted(dropped if fresh else _rows_with_nulls(rows.values.values())), np.int64)
    left_out = missing if fresh else missing[:0]
    learnt = {part: _floats(part, result[part], recipe, len(frame), left_out) for part in specs}
    made = {
        expr for expr, values in rows.values.items() if is_text(values) or getattr(values, "dtype", None) in OBJECTS
    }
    let_go(rows)
    return learnt, missing, made


def _own_state(spec: ModelSpec) -> dict[str, dict]:
    """What a spec has learnt, in dictionaries that formulaic may write to: those of the model stay as they are."""

    def copied(state: Any) -> Any:
        if isinstance(state, dict):
            return {key: copied(value) for key, value in state.items()}
        return tuple(map(copied, state)) if type(state) is tuple else state

    return {"transform_state": copied(spec.transform_state), "encoder_state": copied(spec.encoder_state)}


def _looked_up(specs: Mapping[str, ModelSpec], frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """The columns that formulas use as they are, each with the part."""
    for part, spec in specs.items():
        for factor in factors_of(spec):
            if factor.eval_method.value == "lookup" and factor.expr in frame:
                yield part, factor.expr


def _refuse_dates(recipe: Recipe, specs: Mapping[str, ModelSpec], frame: pd.DataFrame) -> None:
    """A date is no number; formulaic would count its microseconds, or fail without naming the column."""
    for part, name in _looked_up(specs, frame):
        dtype = column(frame, name).dtype
        if dtype.kind in "Mm" or isinstance(dtype, pd.PeriodDtype):
            raise _marked(_dates(name, str(dtype)), name, recipe, part)
        if isinstance(dtype, pd.IntervalDtype):
            named = restore(name, recipe.aliases)
            how = f"make categories of them: data[{named!r}] = data[{named!r}].astype('category')"
            raise _marked(f"the column {named!r} holds intervals; {how}", name, recipe, part)


def _dates(name: str, kind: str) -> str:
    when = f"pd.to_datetime(data[{name!r}])" if kind == "date" else f"data[{name!r}]"
    return (
        f"the column {name!r} holds dates or times ({kind}) where numbers are needed; convert it first, "
        f"for example to days: ({when} - {when}.min()) / pd.Timedelta('1D')"
    )


def _marked(message: str, name: str, recipe: Recipe, part: str) -> DataError:
    """The error for a column, shown where its formula names it."""
    named, text = restore(name, recipe.aliases), recipe.texts[part]
    return DataError(mark(restore(message, recipe.aliases), text, find(named, text)))


def _refuse_objects(recipe: Recipe, parts: Iterable[str], frame: pd.DataFrame) -> None:
    """Refuse columns that would be categories, or lose digits: dates, numbers of 64 bits, text and numbers together."""
    for part, name in _looked_up({part: recipe.specs[part] for part in parts}, frame):
        series = column(frame, name)
        if series.dtype not in ("object", "str", "uint64"):
            continue
        labels = series.dropna().unique().tolist()
        kind = pd.api.types.infer_dtype(labels)
        if kind in DATES:
            raise _marked(_dates(name, kind), name, recipe, part)
        if kind == "integer":
            message = (
                f"the column {name!r} holds whole numbers of more than 63 bits, such as {max(labels, key=abs)}: write "
                f"C({quoted(name)}) if these are labels, or data[{name!r}] = data[{name!r}].astype(float)"
            )
            raise _marked(message, name, recipe, part)
        _require_categories(recipe, part, name, labels)


OBJECTS = ("object", "str")
"""Types of columns whose values are not called categories."""


def _refuse_labels(recipe: Recipe, specs: Mapping[str, ModelSpec], frame: pd.DataFrame, made: Collection[str]) -> None:
    """Refuse categories that mix text and numbers, and text of numbers or dates that is not called a category.

    `made` has the factors that gave text or objects.
    """
    for part, spec in specs.items():
        for factor, (kind, state) in known_factors(spec).items():
            if kind != "categorical" or "categories" not in state:
                continue
            if factor.eval_method.value == "lookup":
                plain = column(frame, factor.expr).dtype in OBJECTS
                _require_categories(recipe, part, factor.expr, state["categories"], plain)
            else:
                _require_categories(recipe, part, factor.expr, state["categories"], plain=False)
                columns = part not in ("lhs", "failures") and not part.startswith("offset")
                if columns and factor.expr in made and not re.match(r"C\s*\(", factor.expr):
                    _refuse_made(recipe, part, factor.expr, state["categories"])


def _refuse_made(recipe: Recipe, part: str, expr: str, labels: Sequence[Any]) -> None:
    """Refuse a function that hands on numbers as text, or dates, as `_refuse_objects` refuses such columns."""
    dates = pd.api.types.infer_dtype(list(labels)) in DATES
    if dates or (_unlike_labels(part) and spell_numbers(labels)):
        message = (
            f"{expr!r} gives {'dates or times' if dates else 'text'} (for example {labels[0]!r}) where numbers are "
            f"needed; convert the column first, or write C({expr}) if these are categories"
        )
        raise _marked(message, expr, recipe, part)


def _unlike_labels(part: str) -> bool:
    """Whether text of numbers is no label, as it is in a variance component; the response has words of its own."""
    return part != "lhs" and not part.startswith("v")


def _require_categories(recipe: Recipe, part: str, expr: str, labels: Sequence[Any], plain: bool = True) -> None:
    kinds = label_kinds(labels)
    numerals = plain and _unlike_labels(part) and spell_numbers(labels)
    if numerals or (plain and kinds.keys() == {"numbers", "text"}):
        error = text_error(f"the column {expr!r}", pd.Series(labels, dtype=object, name=expr))
        hint = f". If these are categories, write C({quoted(expr)})" if numerals else ""
        raise _marked(f"{error.args[0]}{hint}", expr, recipe, part)
    if len(kinds) > 1:
        message = f"{expr!r} mixes {' and '.join(f'{kind} ({label!r})' for kind, label in kinds.items())}"
        raise _marked(f"{message}; convert it to one type", expr, recipe, part)


def _floats(part: str, result: Any, recipe: Recipe, n: int, left_out: np.ndarray) -> tuple[ModelSpec, np.ndarray]:
    """Formulaic's spec and columns as floats (n, k), with NaN in rows that were left out."""
    spec, values = result.model_spec, np.asarray(result)
    matrix = roomy(n, values.shape[1])
    try:
        if np.iscomplexobj(values):
            raise TypeError("imaginary parts")
        if len(left_out):
            matrix[left_out] = np.nan
            # Without columns it has kept all rows.
            matrix[np.delete(np.arange(n), left_out)] = values[: n - len(left_out)]
        else:
            matrix[:] = values
    except (TypeError, ValueError):
        message = f"the columns {_column_names(spec, recipe)} do not hold numbers (dtype {values.dtype})"
        raise DataError(mark(message, recipe.texts[part])) from None
    return spec, matrix


def _column_names(spec: ModelSpec, recipe: Recipe) -> tuple[str, ...]:
    return tuple(restore(name, recipe.aliases) for name in spec.column_names)


def restore(name: str, aliases: Mapping[str, str]) -> str:
    """A column's name with the Python keywords put back."""
    for alias, keyword in aliases.items():
        name = re.sub(rf"(?<!\w){re.escape(alias)}(?!\w)", keyword, name)
    return name


def _explain(error: Exception, recipe: Recipe, specs: Mapping[str, ModelSpec], frame: pd.DataFrame) -> Exception:
    """An error of formulaic's as one of ours: text where numbers are needed, wrong lengths, or the message itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, JmixedError):
            return cause
        cause = cause.__cause__
    message = re.sub(r"\s*\n+\s*", " ", str(error))
    named = re.search(r"factor `(.*?)`\.? ", message)
    expr = named.group(1) if named else ""
    places = ((part, factor) for part, spec in specs.items() for factor in factors_of(spec) if factor.expr == expr)
    part, factor = next(places, (next(iter(specs)), None))
    text = recipe.texts[part]
    if factor is not None:
        for name, _ in names_in(factor, text):
            if name in frame and holds_text(column(frame, name)):
                original = recipe.aliases.get(name, name)
                what = f"{restore(expr, recipe.aliases)}: the column {original!r}"
                return text_error(what, column(frame, name).rename(original))
    spot, message = text.find(expr) if expr else -1, restore(message, recipe.aliases)
    return FormulaError(mark(f"the formula cannot be evaluated: {message}", text, spot if spot >= 0 else None))


def _refuse_text(recipe: Recipe, specs: Mapping[str, ModelSpec], frame: pd.DataFrame) -> None:
    """Refuse text where the model knows numbers."""
    known = {factor: kind for spec in specs.values() for factor, (kind, _) in known_factors(spec).items()}
    for factor, kind in known.items():
        if kind == "numerical" and factor.expr in frame and holds_text(column(frame, factor.expr)):
            name = restore(factor.expr, recipe.aliases)
            raise text_error(f"the column {name!r}", column(frame, factor.expr).rename(name))


def _refuse_strangers(recipe: Recipe, specs: Mapping[str, ModelSpec], evaluated: Mapping[str, Any]) -> None:
    """Refuse a category that the model has not seen, which formulaic makes the baseline."""
    known = {factor: kind for part in specs for factor, kind in known_factors(recipe.specs[part]).items()}
    for factor, (kind, state) in known.items():
        if kind != "categorical" or "categories" not in state or factor.expr not in evaluated:
            continue
        name, labels = restore(factor.expr, recipe.aliases), list(state["categories"])
        values = pd.Series(evaluated[factor.expr]).dropna().unique()
        # As formulaic will match them: 2019.0 is 2019, but True is not 1.
        place = pd.Index(labels, tupleize_cols=False).get_indexer_for(np.asarray(values))
        unseen = np.asarray(values)[place < 0].tolist()
        if unseen:
            ours, theirs = (" and ".join(label_kinds(some)) for some in (labels, unseen))
            kinds = f" ({theirs} where the model knows {ours})" if ours != theirs else ""
            raise DataError(
                f"new data has categories of {name!r} that the model has not seen: {unseen[:5]}{kinds}; the known ones "
                f"are {labels[:20]}. Leave these rows out or refit with them",
                page="new-groups.md",
            )


def _require_same_kinds(recipe: Recipe, specs: Mapping[str, ModelSpec]) -> None:
    """Refuse new data in which a factor gives numbers where the model has categories, or the other way round."""
    for part, spec in specs.items():
        learnt = {factor.expr: kind for factor, (kind, _) in known_factors(recipe.specs[part]).items()}
        for factor, (kind, _) in known_factors(spec).items():
            if kind != (known := learnt.get(factor.expr, kind)):
                name, text = restore(factor.expr, recipe.aliases), recipe.texts[part]
                message = f"{name!r} is {kind} in the new data, but {known} in the data that the model was fitted to"
                raise DataError(mark(message, text, find(name, text)))


def _rows_with_nulls(evaluated: Iterable[Any]) -> set[int]:
    """Rows in which some factor is missing; `evaluated` is what the factors gave."""
    rows: set[int] = set()
    for factor in evaluated:
        for values in factor.values() if isinstance(factor, dict) else [factor]:
            if np.ndim(values):
                missing = np.asarray(pd.isna(values)).reshape(len(values), -1).any(axis=1)
                rows.update(np.flatnonzero(missing).tolist())
    return rows


def source(text: str, frame: pd.DataFrame, recipe: Recipe) -> pd.Series | np.ndarray:
    """The labels that a column, or an expression such as ``np.floor(x)``, gives to a grouping factor."""
    if text in frame.columns:
        return column(frame, text)
    refuse_dotted(text, frame.columns, text)
    _require_here(recipe, [FormulaFactor(text, eval_method="python")])
    code, quoted_names = without_backticks(replace_keywords(text, set(recipe.aliases))[0])
    names = {alias: column(frame, name) for alias, name in quoted_names.items() if name in frame.columns}
    try:
        values = value_of(code, frame, {**recipe.env, **names})
    except (TypeError, ValueError, NameError, AttributeError, SyntaxError, KeyError) as error:
        word = hint(str(error.name)) if isinstance(error, NameError) else ""
        raise FormulaError(f"the grouping factor {text!r} cannot be evaluated ({error}){word}") from error
    require_rows(text, values, frame.index)
    if np.ndim(values) != 1 or len(values) != len(frame):
        raise FormulaError(f"the grouping factor {text!r} must give one value for each of the {len(frame)} rows")
    return values
