"""Rows and formulas, once read, are put together to a model: evaluated, freed of missing values, checked, named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.formulas import checks, components
from jmixed.formulas.evaluate import known_factors
from jmixed.formulas.factors import Factor, cross, factor, plain_labels
from jmixed.formulas.formula import FormulaParts, RandomPart, bare_name, normalise
from jmixed.formulas.frame import (
    column,
    complete_rows,
    holds_text,
    missing_rows,
    numbers,
    require_finite,
    text_error,
    unknown_column,
    working_frame,
)
from jmixed.formulas.marks import mark
from jmixed.formulas.model_data import ModelData, RandomTerm, Rebuild, ResidualTerm
from jmixed.formulas.recipe import Matrix, PartMatrices, Recipe, evaluate, restore, source
from jmixed.formulas.relationships import KnownMatrix, relationships_of
from jmixed.formulas.residuals import ResidualPart, columns_of, residual_term
from jmixed.formulas.responses import Response, ResponsePart, further_columns, merged, read_response
from jmixed.formulas.structures import UNSTRUCTURED, WORDS, require_columns
from jmixed.runtime.memory import filled


@dataclass(frozen=True)
class Words:
    """A model in words."""

    parts: FormulaParts  # the main formula taken apart
    random: tuple[RandomPart, ...]  # from bars or from re_formula
    components: tuple[tuple[str, str], ...]  # name and part of each variance component
    effects: dict[str, str]  # text of random effects to the part that evaluates it
    texts: dict[str, str]  # part to formula
    shown: dict[str, str]  # part to the text that messages show for it
    group_name: str | None  # of the top-level factor, statsmodels style
    residual: ResidualPart | None = None  # how residuals are correlated
    dispersion: str | None = None  # what their variances depend on, as the caller wrote it
    response: ResponsePart | None = None  # of a generalized model
    zero: str | None = None  # what the inflation of zeros depends on, as the caller wrote it
    known: Mapping[str, KnownMatrix] = field(default_factory=dict)  # by the factor whose levels are related


class NoRowsError(DataError):
    """Every row has a missing value."""


@dataclass(frozen=True)
class DataRows:
    """Rows that may be in the model."""

    frame: pd.DataFrame  # the caller's rows
    beside: dict[str, pd.Series]  # groups, weights and offset row by row, as far as they were given
    positions: np.ndarray  # where these rows are in the caller's data

    @cached_property
    def ones(self) -> np.ndarray:
        """The weights of rows that are alike, and the column of every intercept: one array, which nobody may change."""
        ones = filled(1.0, len(self.frame))
        ones.flags.writeable = False
        return ones

    def take(self, keep: np.ndarray) -> "DataRows":
        """The rows at positions `keep`."""
        if not len(keep):
            raise NoRowsError("no rows are left after leaving out those with missing values; look at the columns used")
        beside = {name: values.iloc[keep] for name, values in self.beside.items()}
        return DataRows(self.frame.iloc[keep], beside, self.positions[keep])


@dataclass(frozen=True)
class Evaluated:
    """Rows with everything that was evaluated on them."""

    rows: DataRows
    frame: pd.DataFrame
    matrices: dict[str, Matrix]
    sources: dict[str, Any]

    def without(self, masks: Mapping[str, np.ndarray], missing: str) -> "Evaluated":
        """Leave out the masked rows, or refuse them."""
        keep = complete_rows(masks, self.rows.positions, missing)
        if len(keep) == len(self.frame):
            return self
        matrices = {part: Matrix(matrix.names, matrix.values[keep]) for part, matrix in self.matrices.items()}
        labels = {
            name: values[keep] if isinstance(values, np.ndarray) else values.iloc[keep]
            for name, values in self.sources.items()
        }
        return Evaluated(self.rows.take(keep), self.frame.iloc[keep], matrices, labels)


def leave_out_missing(rows: DataRows, words: Words, recipe: Recipe, missing: str) -> DataRows:
    """Rows without missing values in any column that is used."""
    columns = [*recipe.columns(recipe.specs), *_grouping_columns(words, rows.frame.columns)]
    columns += columns_of(words.residual, rows.frame)
    used: dict[str, Any] = {name: rows.frame[name] for name in dict.fromkeys(columns)}
    masks = missing_rows(used | {f"{name}=": values for name, values in rows.beside.items()})
    return rows.take(complete_rows(masks, rows.positions, missing)) if masks else rows


def _grouping_columns(words: Words, columns: pd.Index) -> list[str]:
    """Columns that bars name as grouping factors; an expression is looked at when it is evaluated."""
    if words.group_name is not None:
        return []
    names = [name for part in words.random for name in part.factors]
    for name in names:
        if name not in columns and "(" not in name:
            message = unknown_column(name, columns, "the formula")
            raise DataError(mark(message, words.parts.text, max(words.parts.text.rfind(name), 0)))
    return [name for name in names if name in columns]


def assemble(
    words: Words, recipe: Recipe, rows: DataRows, missing: str, drop_cols: tuple[str, ...], check: str
) -> ModelData:
    """Evaluate the formulas on rows whose columns have no missing values, and build the model.

    `missing` says what to do with missing values that transforms make, `drop_cols` which fixed effects to leave out;
    `check` is that of `checks.require_identifiable`.
    """
    frame = working_frame(rows.frame, recipe.columns(recipe.specs), recipe.aliases)
    plans = [components.plan(name, part, recipe, frame) for name, part in words.components]
    evaluated, learnt = _evaluate(words, recipe, plans, rows, frame, missing)
    learnt = replace(learnt, dtypes={name: column(frame, name).dtype for name in frame})
    grouping = grouping_factors(words, evaluated.sources)
    built = _components(plans, recipe, evaluated, grouping)
    if any(len(b.missing) for b in built.values()):
        evaluated = evaluated.without(_component_masks(built, len(evaluated.frame)), missing)
        grouping = grouping_factors(words, evaluated.sources)
        built = _components(plans, recipe, evaluated, grouping)
        evaluated.without(_component_masks(built, len(evaluated.frame)), "raise")
    of_components = component_terms(words, plans, recipe, evaluated, grouping, built)
    terms = checks.distinct([*random_terms(words, learnt, evaluated, grouping), *of_components])
    return _model(words, learnt, evaluated, terms, drop_cols, check)


def _evaluate(
    words: Words, recipe: Recipe, plans: list[components.VCPlan], rows: DataRows, frame: pd.DataFrame, missing: str
) -> tuple[Evaluated, Recipe]:
    """Evaluate all formulas but those of components made per group, together."""
    together = components.on_all_rows(recipe, plans)
    evaluation = evaluate(together, together.specs, frame, fresh=True)
    labels = sources(words, rows, recipe)
    return on_complete_rows(words, rows, frame, evaluation, labels, missing), replace(recipe, specs=evaluation.specs)


def on_complete_rows(
    words: Words, rows: DataRows, frame: pd.DataFrame, evaluation: PartMatrices, labels: dict[str, Any], missing: str
) -> Evaluated:
    """What was evaluated, leaving out or refusing rows in which transforms make missing values."""
    masks = {f"the grouping factor {name}": np.asarray(pd.isna(values)) for name, values in labels.items()}
    masks[f"columns made by {words.parts.text!r}"] = _mask(evaluation.missing, len(frame))
    return Evaluated(rows, frame, evaluation.matrices, labels).without(masks, missing)


def _mask(rows: np.ndarray, n: int) -> np.ndarray:
    mask = np.zeros(n, bool)
    mask[rows] = True
    return mask


def sources(words: Words, rows: DataRows, recipe: Recipe) -> dict[str, Any]:
    """The labels of every column or expression that a grouping factor is made of."""
    if words.group_name is not None:
        return {words.group_name: rows.beside["groups"]}
    names = dict.fromkeys(name for part in words.random for name in part.factors)
    return {name: source(name, rows.frame, recipe) for name in names}


def grouping_factors(words: Words, labels: Mapping[str, Any]) -> dict[tuple[str, ...], Factor]:
    """The grouping factors of the model by their sources, each made once from the sources' labels."""
    wanted = [part.factors for part in words.random] if words.group_name is None else []
    try:
        single = {name: factor(name, values) for name, values in labels.items()}
    except DataError as error:
        raise DataError(mark(error.args[0], words.parts.text) if wanted else error.args[0]) from None
    factors: dict[tuple[str, ...], Factor] = {(name,): f for name, f in single.items()}
    for names in wanted:
        for k in range(2, len(names) + 1):
            if names[:k] not in factors:
                factors[names[:k]] = cross(":".join(names[:k]), factors[names[: k - 1]], single[names[k - 1]])
    return factors


def random_terms(words: Words, recipe: Recipe, evaluated: Evaluated, grouping: dict) -> list[RandomTerm]:
    """The ordinary random-effects terms; the `recipe` has the state of their effects."""
    terms, names = [], {grouping[part.factors].name: grouping[part.factors] for part in words.random}
    related = relationships_of(words.known, names)
    for part in words.random:
        grouping_factor = grouping[part.factors]
        key = words.effects.get(part.effects)
        matrix = evaluated.matrices[key] if key else Matrix(("Intercept",), evaluated.rows.ones[:, None])
        if part.word:
            effects, categories = _effects(recipe, key)
            require_columns(part.word, part.label, len(matrix.names), effects, categories)
            for name in map(bare_name, categories):
                if WORDS[part.word].ordered and name in evaluated.rows.frame:
                    checks.warn_of_order(part.label, column(evaluated.rows.frame, name))
        terms.append(
            RandomTerm(
                label=part.label,
                group=grouping_factor.name,
                codes=grouping_factor.codes,
                levels=grouping_factor.levels,
                columns=matrix.names,
                Z=matrix.values,
                structure=WORDS[part.word].structure if part.word else UNSTRUCTURED,
                intercept=checks.constant_column(matrix.values),
                rebuild=Rebuild(grouping_factor, key),
                relationship=related.get(grouping_factor.name),
            )
        )
    return terms


def _effects(recipe: Recipe, part: str | None) -> tuple[list[tuple[str, ...]], set[str]]:
    """The terms of a part's effects, each by its factors as they were written, and which of these are categories."""
    if part is None:
        return [("1",)], set()
    kinds = {restore(f.expr, recipe.aliases): kind for f, (kind, _) in known_factors(recipe.specs[part]).items()}
    terms = [
        tuple(restore(factor.expr, recipe.aliases) for factor in term.factors)
        for term in recipe.specs[part].term_slices
    ]
    return terms, {name for name, kind in kinds.items() if kind == "categorical"}


def _components(
    plans: list[components.VCPlan], recipe: Recipe, evaluated: Evaluated, grouping: dict
) -> dict[str, components.Built]:
    """The components whose columns are made per group."""
    local = [plan for plan in plans if plan.way in ("ranks", "groups")]
    if not local:
        return {}
    top = next(iter(grouping.values()))
    return {plan.name: components.build_local(plan, recipe, evaluated.frame, top) for plan in local}


def _component_masks(built: dict[str, components.Built], n: int) -> dict[str, np.ndarray]:
    return {f"columns made by the component {name}": _mask(b.missing, n) for name, b in built.items()}


def component_terms(
    words: Words, plans: Sequence[components.VCPlan], recipe: Recipe, evaluated: Evaluated, grouping: dict, built: dict
) -> list[RandomTerm]:
    """The terms that variance components stand for."""
    if not plans:
        return []
    top = grouping[(words.group_name,)]
    return [
        components.make_term(
            plan,
            f"{normalise(recipe.texts[plan.part])} | {top.name}",
            evaluated.matrices,
            built.get(plan.name),
            evaluated.frame,
            top,
            recipe.aliases,
        )
        for plan in plans
    ]


def _model(
    words: Words,
    recipe: Recipe,
    evaluated: Evaluated,
    terms: tuple[RandomTerm, ...],
    drop_cols: tuple[str, ...],
    check: str,
) -> ModelData:
    """Check the arrays and put them together."""
    positions, rows = evaluated.rows.positions, evaluated.rows
    stated = _generalized(words, recipe, evaluated) if words.response is not None else None
    endog_name, y = response(recipe, evaluated) if stated is None else (stated.name, stated.y)
    right = evaluated.matrices["rhs"]
    require_finite(right.values, right.names, positions)
    weights, offset = weights_of(rows) if stated is None else stated.weights, offset_of(words, evaluated)
    require_finite(y, [endog_name], positions)
    require_finite(offset, ["offset"], positions)
    if stated is None:
        checks.require_variation(y, offset, endog_name)
    elif stated.term.kind == "numbers" and np.ptp(offset) == 0:
        checks.require_variation(y, filled(0.0, len(y)), endog_name)
    for term in terms:
        require_finite(term.Z, term.columns, positions)
    # There is no residual beside the random effects of a generalized model.
    checks.require_identifiable(terms, weights, check if stated is None else "ignore")
    if words.response is not None and words.response.kind == "categories" and "Intercept" in right.names:
        # Thresholds are there in its place.
        drop_cols = (*drop_cols, "Intercept")
    for name in drop_cols:
        if name not in right.names:
            raise DataError(unknown_column(name, right.names, "drop_cols", "the fixed effects"))
    return checks.without_redundant(
        right.values,
        right.names,
        len(y),
        allowed=np.flatnonzero([name not in drop_cols for name in right.names]),
        y=y,
        weights=weights,
        offset=offset,
        terms=terms,
        endog_name=endog_name,
        index=rows.frame.index,
        rows=positions,
        frame=rows.frame,
        groups=np.asarray(plain_labels(rows.beside["groups"])) if words.group_name is not None else None,
        group_name=words.group_name,
        formula=words.parts.text,
        recipe=merged(recipe),
        offset_source=offset_source(rows),
        residual=_residual(words, recipe, evaluated, terms) if stated is None else None,
        response=None if stated is None else stated.term,
    )


def _residual(words: Words, recipe: Recipe, evaluated: Evaluated, terms: Sequence[RandomTerm]) -> ResidualTerm | None:
    matrix, rows = evaluated.matrices.get("dispersion"), evaluated.rows
    return residual_term(words.residual, words.dispersion, matrix, rows.frame, recipe, rows.positions, terms)


def _generalized(words: Words, recipe: Recipe, evaluated: Evaluated) -> Response:
    """The response of a generalized model, with the columns of its further predictors."""
    assert words.response is not None
    rows, matrices = evaluated.rows, evaluated.matrices
    stated = read_response(words.response, recipe, matrices, rows.frame, rows.beside, rows.positions)
    texts = {"dispersion": words.dispersion, "zero": words.zero}
    columns = {
        part: further_columns(part, text, matrices[part], rows.positions)
        for part, text in texts.items()
        if text is not None
    }
    return replace(stated, term=replace(stated.term, **columns))


ONE_RESPONSE = "A sum of columns is written I(a + b); several responses are several models"
"""What to do about more than one column on the left of a formula."""


def response(recipe: Recipe, evaluated: Evaluated) -> tuple[str, np.ndarray]:
    """The one numeric column that the left-hand side stands for."""
    left = evaluated.matrices["lhs"]
    text = [name for name in recipe.needs["lhs"] if holds_text(column(evaluated.rows.frame, name))]
    categorical = any(kind == "categorical" for kind, _ in known_factors(recipe.specs["lhs"]).values())
    if text and (len(left.names) != 1 or categorical):
        raise _no_numbers(column(evaluated.rows.frame, text[0]))
    if len(left.names) != 1:
        raise DataError(
            f"the response must be one column of numbers; the formula gives {len(left.names)}: {left.names[:4]}"
            f"{' and more' if len(left.names) > 4 else ''}. {ONE_RESPONSE}"
        )
    return left.names[0], left.values[:, 0]


def _no_numbers(series: pd.Series) -> DataError:
    """The error for a response of text, with the model that takes its categories."""
    error, levels = text_error(f"the response {str(series.name)!r}", series), series.nunique()
    ordered = isinstance(series.dtype, pd.CategoricalDtype) and series.cat.ordered
    if levels != 2 and not (ordered and levels > 2):
        return error
    family, which = ("binomial", "two categories") if levels == 2 else ("ordinal", "categories in order")
    return DataError(f"{error.args[0]}. A response of {which} is stated by mixedglm(..., family={family!r})")


def weights_of(rows: DataRows) -> np.ndarray:
    if "weights" not in rows.beside:
        return rows.ones
    values = numbers(rows.beside["weights"], "weights")
    checks.require_positive(values, rows.positions)
    require_finite(values, ["weights"], rows.positions)
    return values


def offset_of(words: Words, evaluated: Evaluated) -> np.ndarray:
    parts = [evaluated.matrices[f"offset{i}"] for i in range(len(words.parts.offsets))]
    for text, matrix in zip(words.parts.offsets, parts, strict=True):
        if text in evaluated.rows.frame:
            numbers(column(evaluated.rows.frame, text), f"offset({text})")
        if len(matrix.names) != 1:
            raise DataError(f"offset({text}) gives {len(matrix.names)} columns; it must be one column of numbers")
    values = [matrix.values[:, 0] for matrix in parts]
    if "offset" in evaluated.rows.beside:
        values.append(numbers(evaluated.rows.beside["offset"], "offset"))
    return reduce(np.add, values, filled(0.0, len(evaluated.frame)))


def offset_source(rows: DataRows) -> str | None:
    return str(rows.beside["offset"].name or "") if "offset" in rows.beside else None
