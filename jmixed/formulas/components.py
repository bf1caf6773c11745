"""Variance components: formulas whose columns, made within each top-level group, share one variance.

A component is evaluated group by group in principle, so that levels and transforms are those of the group. In practice
that is needed only when a transform looks at several rows at once. Indicators of a factor are levels of a nested factor
and need no columns at all; other categorical columns are recoded to their rank within the group, after which one
evaluation serves all groups.
"""

import ast
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jmixed.formulas.evaluate import FormulaFactor, factors_of, known_factors, new_spec, vocabulary
from jmixed.formulas.factors import Factor, cross, factor
from jmixed.formulas.formula import bare_name
from jmixed.formulas.frame import column
from jmixed.formulas.model_data import RandomTerm, Rebuild
from jmixed.formulas.patsy_words import PATSY
from jmixed.formulas.recipe import Matrix, Recipe, evaluate, restore
from jmixed.formulas.structures import ONE_VARIANCE, UNSTRUCTURED


@dataclass(frozen=True)
class VCPlan:
    """How a variance component is evaluated.

    "indicators": levels of a nested factor, times a numeric column if `numeric`; "whole": one evaluation for all rows;
    "ranks": one evaluation with categories recoded within groups; "groups": group by group.
    """

    name: str
    part: str  # of the recipe
    way: str
    categories: tuple[tuple[str, str], ...] = ()  # spelling in the formula and column of each categorical factor
    numeric: tuple[FormulaFactor, ...] = ()  # numeric factors of an "indicators" component
    spelling: tuple[str, ...] = ()  # all factors of an "indicators" component in the order of the formula


def plan(name: str, part: str, recipe: Recipe, frame: pd.DataFrame) -> VCPlan:
    """Decide how to evaluate the component `name`; `frame` is the working frame."""
    terms = [term.factors for term in recipe.specs[part].formula]
    kinds = {f: _kind(f, recipe, frame) for factors in terms for f in factors}
    # Truth values are False and True in every group, whether both occur or not.
    many = ("categorical",) if len(terms) > 1 else ("categorical", "truth")
    categories = tuple((f.expr, bare_name(f.expr)) for f, kind in kinds.items() if kind in many)
    if "other" in kinds.values():
        return VCPlan(name, part, "groups")
    if not categories:
        return VCPlan(name, part, "whole")
    if len(terms) > 1:
        return VCPlan(name, part, "ranks", categories)
    numeric = tuple(f for f, kind in kinds.items() if kind == "numeric")
    if any(_gives_truth(f, part, recipe, frame) for f in numeric):
        return VCPlan(name, part, "groups")
    return VCPlan(name, part, "indicators", categories, numeric, tuple(f.expr for f in terms[0]))


def on_all_rows(recipe: Recipe, plans: Sequence[VCPlan]) -> Recipe:
    """The formulas that are evaluated on all rows together: not those of components that are made per group."""
    specs = dict(recipe.specs)
    for plan in plans:
        spec = specs.pop(plan.part)
        if plan.way == "whole":
            specs[plan.part] = spec
        elif plan.numeric:
            # The product of the numeric factors; levels stand for the others.
            specs[plan.part] = new_spec([plan.numeric])
    return replace(recipe, specs=specs)


def _kind(factor: FormulaFactor, recipe: Recipe, frame: pd.DataFrame) -> str:
    """ "categorical", "truth", "numeric" (each value depends on its own row only), "one", or "other"."""
    if factor.eval_method.value == "literal":
        return "one"
    name = bare_name(factor.expr)
    if name in frame.columns and recipe.env.get("C", PATSY["C"]) is PATSY["C"]:
        wrapped, series = factor.expr.startswith("C("), column(frame, name)
        if series.dtype == "bool":
            return "truth"
        return "categorical" if wrapped or _is_categorical(series) else "numeric"
    return "numeric" if _row_by_row(factor.expr, recipe, frame) else "other"


def _gives_truth(factor: FormulaFactor, part: str, recipe: Recipe, frame: pd.DataFrame) -> bool:
    """Whether an expression gives truth values, which are categories, as ``I(x > 0)``."""
    if factor.eval_method.value != "python":
        return False
    alone = replace(recipe, specs={part: new_spec([[factor]])})
    learnt = evaluate(alone, [part], frame.iloc[:1], fresh=True).specs[part]
    return known_factors(learnt)[factor][0] == "categorical"


def _is_categorical(series: pd.Series) -> bool:
    return series.dtype in ("object", "str") or isinstance(series.dtype, pd.CategoricalDtype)


def _row_by_row(expr: str, recipe: Recipe, frame: pd.DataFrame) -> bool:
    """Whether an expression is made of numeric columns, arithmetic and numpy ufuncs, so that groups do not matter."""
    try:
        tree = ast.parse(re.sub(r"`[^`]*`", "0", expr), mode="eval")
    except SyntaxError:
        return False
    names = {name for name in re.findall(r"`([^`]*)`", expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            function = _resolve(node.func, recipe.env)
            if node.keywords or not (isinstance(function, np.ufunc) or function is vocabulary()["I"]):
                return False
    called = {ast.unparse(node.func).split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - called
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    plain = all(id(n) in functions or not isinstance(n, (ast.Attribute, ast.Subscript)) for n in ast.walk(tree))
    numeric = all(name in frame.columns and not _is_categorical(column(frame, name)) for name in names)
    return plain and numeric


def _resolve(node: ast.expr, env: Mapping[str, Any]) -> Any:
    """The function that a call names, or None."""
    if isinstance(node, ast.Name):
        return env.get(node.id, vocabulary().get(node.id))
    if isinstance(node, ast.Attribute):
        return getattr(_resolve(node.value, env), node.attr, None)
    return None


@dataclass(frozen=True)
class LevelNames(Sequence):
    """Names of each level's columns inside its group, made when they are asked for.

    ``pieces`` spell the one column: text, or for a categorical factor its spelling and its place among the sources.
    """

    factor: Factor
    pieces: tuple[str | tuple[str, int], ...]

    @cached_property
    def codes(self) -> tuple[np.ndarray, ...]:
        return self.factor.decode()

    def __len__(self) -> int:
        return len(self.factor.levels)

    def __getitem__(self, level):
        if isinstance(level, slice):
            return tuple(self[i] for i in range(*level.indices(len(self))))
        if not -len(self) <= level < len(self):
            raise IndexError(level)
        tables = self.factor.tables
        label = [
            piece if isinstance(piece, str) else f"{piece[0]}[{tables[piece[1]][self.codes[piece[1]][level]]}]"
            for piece in self.pieces
        ]
        return (":".join(label),)


@dataclass(frozen=True)
class Built:
    """Columns of a component that were made apart from the other formulas."""

    matrix: Matrix
    missing: np.ndarray
    local: Any
    inner: tuple[tuple[str | None, ...], ...]


def build_local(plan: VCPlan, recipe: Recipe, frame: pd.DataFrame, top: Factor) -> Built:
    """Evaluate a component of the kinds "ranks" and "groups" on the working frame."""
    return (_by_rank if plan.way == "ranks" else _by_group)(plan, recipe, frame, top)


def make_term(
    plan: VCPlan,
    label: str,
    matrices: Mapping[str, Matrix],
    built: Built | None,
    frame: pd.DataFrame,
    top: Factor,
    aliases: dict,
) -> RandomTerm:
    """The random-effects term of a component, its columns being known."""
    if plan.way == "indicators":
        return _indicators(plan, label, matrices, frame, top, aliases)
    if built:
        return of_columns(plan.name, label, built.matrix, built.inner, top, rebuild=Rebuild(top, None, built.local))
    matrix = matrices[plan.part]
    inner = (matrix.names,) * len(top.levels)
    return of_columns(plan.name, label, matrix, inner, top, rebuild=Rebuild(top, plan.part))


def of_columns(name: str, label: str, matrix: Matrix, inner: tuple, top: Factor, **more: Any) -> RandomTerm:
    """The term of a component whose columns, named `inner` in each group, share one variance."""
    single = len(matrix.names) == 1
    return RandomTerm(
        label=label,
        group=top.name if single else name,
        codes=top.codes,
        levels=top.levels,
        columns=matrix.names,
        Z=matrix.values,
        structure=UNSTRUCTURED if single else ONE_VARIANCE,
        vc=name,
        parents=np.arange(len(top.levels), dtype=np.int32),
        inner=inner,
        **more,
    )


def _indicators(
    plan: VCPlan, label: str, matrices: Mapping[str, Matrix], frame: pd.DataFrame, top: Factor, aliases: dict
) -> RandomTerm:
    """Levels of a factor nested in the groups; without groups to speak of, the factor by itself."""
    constant = len(top.levels) == 1
    name = plan.name if constant else f"{top.name}:{plan.name}"
    columns = [factor(aliases.get(name, name), column(frame, name)) for _, name in plan.categories]
    chain = columns if constant else [top, *columns]
    whole = chain[0]
    for further in chain[1:]:
        whole = cross(name, whole, further)
    whole = replace(whole, name=name)
    matrix = matrices[plan.part] if plan.numeric else None
    place = {expr: k for k, (expr, _) in enumerate(plan.categories, len(chain) - len(columns))}
    spelled = ((restore(expr, aliases), place.get(expr)) for expr in plan.spelling)
    pieces = tuple(text if k is None else (text, k) for text, k in spelled)
    return RandomTerm(
        label=label,
        group=name,
        codes=whole.codes,
        levels=whole.levels,
        columns=matrix.names if matrix else ("Intercept",),
        Z=matrix.values if matrix else np.ones((len(frame), 1)),
        vc=plan.name,
        intercept=None if matrix else 0,
        parents=(np.zeros(len(whole.levels)) if constant else whole.decode()[0]).astype(np.int32),
        inner=LevelNames(whole, pieces),
        rebuild=Rebuild(whole, plan.part if matrix else None),
    )


@dataclass(frozen=True)
class RankColumns:
    """Columns from categories that are numbered within each group."""

    factors: tuple[Factor, ...]
    columns: tuple[str, ...]
    part: str
    recipe: Recipe = field(repr=False)

    @property
    def expressions(self) -> Iterable[FormulaFactor]:
        """What the columns are made of."""
        return factors_of(self.recipe.specs[self.part])

    def build(self, frame: pd.DataFrame, codes: np.ndarray) -> np.ndarray:
        """Columns (k, q) for new rows; a category that is new in its group has none."""
        recoded = frame.copy(deep=False)
        for k, (crossed, name) in enumerate(zip(self.factors, self.columns, strict=True)):
            level = crossed.extend(codes.astype(np.int64), 0, column(frame, name))
            rank = np.where(level >= 0, _ranks(crossed)[level], -1)
            recoded[name] = pd.Categorical.from_codes(rank, categories=_tokens(k, crossed))
        values = evaluate(self.recipe, [self.part], recoded, fresh=False).matrices[self.part].values
        return np.where((codes >= 0)[:, None], values, 0.0)


def _ranks(crossed: Factor) -> np.ndarray:
    """Rank of each level among the levels of its group."""
    parents = crossed.decode()[0]
    return np.arange(len(parents)) - np.searchsorted(parents, parents)


def _tokens(k: int, crossed: Factor) -> list[str]:
    return [f"<{k}:{rank:08d}>" for rank in range(int(_ranks(crossed).max()) + 1)]


def _by_rank(plan: VCPlan, recipe: Recipe, frame: pd.DataFrame, top: Factor) -> Built:
    recoded, factors = frame.copy(deep=False), []
    for k, (_, name) in enumerate(plan.categories):
        crossed = cross(name, top, factor(name, column(frame, name)))
        recoded[name] = pd.Categorical.from_codes(_ranks(crossed)[crossed.codes], categories=_tokens(k, crossed))
        factors.append(crossed)
    evaluation = evaluate(recipe, [plan.part], recoded, fresh=True)
    learnt = replace(recipe, specs=evaluation.specs)
    local = RankColumns(tuple(factors), tuple(name for _, name in plan.categories), plan.part, learnt)
    matrix = evaluation.matrices[plan.part]
    return Built(matrix, evaluation.missing, local, _names_by_rank(matrix.names, factors, len(top.levels)))


def _names_by_rank(names: tuple[str, ...], factors: list[Factor], groups: int) -> tuple[tuple[str | None, ...], ...]:
    """Each group's names: the tokens replaced by its own labels, None where it has no such level."""
    labels = []
    for crossed in factors:
        outer, inner = crossed.decode()
        ranks = _ranks(crossed)
        labels.append(
            {(int(g), int(r)): str(crossed.tables[1][i]) for g, r, i in zip(outer, ranks, inner, strict=True)}
        )

    def spell(name: str, group: int) -> str | None:
        tokens = re.findall(r"<(\d+):(\d+)>", name)
        if not all((group, int(rank)) in labels[int(k)] for k, rank in tokens):
            return None
        return re.sub(r"<(\d+):(\d+)>", lambda m: labels[int(m.group(1))][group, int(m.group(2))], name)

    return tuple(tuple(spell(name, group) for name in names) for group in range(groups))


@dataclass(frozen=True)
class GroupColumns:
    """Columns from a formula whose transforms were learnt in each group by itself."""

    part: str
    recipes: tuple[Recipe, ...] = field(repr=False)
    width: int

    @property
    def expressions(self) -> Iterable[FormulaFactor]:
        """What the columns are made of."""
        return factors_of(self.recipes[0].specs[self.part])

    def build(self, frame: pd.DataFrame, codes: np.ndarray) -> np.ndarray:
        """Columns (k, q) for new rows, with the transforms of their groups."""
        values = np.zeros((len(frame), self.width))
        for code in np.unique(codes[codes >= 0]):
            rows = np.flatnonzero(codes == code)
            columns = (
                evaluate(self.recipes[code], [self.part], frame.iloc[rows], fresh=False).matrices[self.part].values
            )
            values[rows, : columns.shape[1]] = columns
        return values


def _by_group(plan: VCPlan, recipe: Recipe, frame: pd.DataFrame, top: Factor) -> Built:
    order = np.argsort(top.codes, kind="stable")
    bounds = np.searchsorted(top.codes[order], np.arange(len(top.levels) + 1))
    pieces = []
    for start, stop in zip(bounds[:-1], bounds[1:], strict=True):
        rows = order[start:stop]
        pieces.append((rows, evaluate(recipe, [plan.part], frame.iloc[rows], fresh=True)))
    missing = [rows[evaluation.missing] for rows, evaluation in pieces]
    widths = [len(evaluation.matrices[plan.part].names) for _, evaluation in pieces]
    values = np.zeros((len(frame), max(widths)))
    for rows, evaluation in pieces:
        matrix = evaluation.matrices[plan.part]
        values[rows, : len(matrix.names)] = matrix.values
    names = [evaluation.matrices[plan.part].names for _, evaluation in pieces]
    recipes = tuple(replace(recipe, specs=evaluation.specs) for _, evaluation in pieces)
    padded = tuple(of_group + (None,) * (max(widths) - len(of_group)) for of_group in names)
    columns = names[int(np.argmax(widths))]
    return Built(
        Matrix(columns, values), np.concatenate(missing), GroupColumns(plan.part, recipes, max(widths)), padded
    )
