"""The first pass over data in batches: which labels and categories there are, and rows that show what columns are like.

Nothing is kept that grows with the number of rows: the combinations of the grouping factors' labels, one row for each
category, and a thin sample. What two parts of the data tell is put together by `merge`, in any order.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, FormulaError, JmixedError, ModelError
from jmixed.formulas import components
from jmixed.formulas.assemble import DataRows, NoRowsError, Words, leave_out_missing, sources
from jmixed.formulas.evaluate import factors_of, known_factors
from jmixed.formulas.formula import bare_name
from jmixed.formulas.frame import as_frame, column, complete_rows, per_row, require_missing, working_frame
from jmixed.formulas.recipe import Recipe, evaluate, of_whole_columns, restore
from jmixed.formulas.statement import state
from jmixed.streams.reading import ANY_CATEGORIES, Checksum, checksum, kinds_of, naming, require_alike

FEW = 1000
"""Rows that formulas are looked at with before anything is known of the others."""

SAMPLE, THINNED = 256, 8192
"""Rows that are sampled from a batch, and the number of sampled rows from which on every other one is given up."""

MANY_CATEGORIES = 100_000


@dataclass(frozen=True)
class Statement:
    """A model of data in batches."""

    words: Words
    read: Recipe  # the formulas as read
    recipe: Recipe  # those evaluated on all rows; of those that look at several rows, with what they learnt
    components: tuple[components.VCPlan, ...]  # how variance components are evaluated
    beside: dict[str, str]  # the columns given as groups, weights and offset
    missing: str
    kinds: dict[str, Any]  # what each column that is used holds, in the first batch
    tracked: tuple[str, ...] = ()  # columns that categories are made of

    @property
    def columns(self) -> list[str]:
        """The columns of the data that are used."""
        return list(self.kinds)

    def rows(self, batch: pd.DataFrame) -> DataRows | None:
        """The rows of a batch without missing values in the columns that are used; None if there are none."""
        if not len(batch):
            return None
        require_alike(batch, self.kinds)
        frame = batch.loc[:, self.columns]
        beside = {name: per_row(value, frame, name) for name, value in self.beside.items()}
        try:
            rows = DataRows(frame, beside, np.arange(len(frame)))
            return leave_out_missing(rows, self.words, self.read, self.missing)
        except NoRowsError:
            return None

    def evaluable(self, rows: DataRows) -> DataRows | None:
        """The rows of which transforms make no missing values, as `rows`; None if there are none.

        Categories that only other rows have are none of the model's.
        """
        factors = [factor for spec in self.recipe.specs.values() for factor in factors_of(spec)]
        plain = (f.eval_method.value != "python" or bare_name(f.expr) in rows.frame.columns for f in factors)
        if all(plain):
            return rows
        lost = evaluate(self.recipe, self.recipe.specs, self.working(rows.frame), fresh=True).missing
        if not len(lost):
            return rows
        masks = {f"columns made by {self.words.parts.text!r}": np.isin(np.arange(len(rows.frame)), lost)}
        keep = complete_rows(masks, rows.positions, self.missing)
        return rows.take(keep) if len(keep) else None

    def labels(self, rows: DataRows) -> dict[str, Any]:
        """The labels that grouping factors and variance components are made of."""
        labels = sources(self.words, rows, self.recipe)
        for name in (name for plan in self.components for _, name in plan.categories):
            original = self.read.aliases.get(name, name)
            labels.setdefault(original, column(rows.frame, original))
        return labels

    def working(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The columns that formulas need, as formulaic understands them."""
        return working_frame(frame, self.read.columns(self.read.specs), self.read.aliases)


@dataclass(frozen=True)
class Survey:
    """What a part of the data shows."""

    nobs: int  # rows without missing values
    cells: pd.DataFrame  # the distinct combinations of labels, a column for each source of the grouping factors
    novel: pd.DataFrame  # rows that have a category first
    sample: pd.DataFrame  # some of all rows
    checksum: Checksum  # what the second pass must find again


def stated(
    formula: str,
    tables: Iterable[pd.DataFrame],
    beside: Mapping[str, Any],
    re_formula: Any,
    vc_formula: Any,
    env: Mapping,
    missing: str,
) -> Statement:
    """State a model for the first table that has usable rows; `beside` has the groups, weights and offset, or None."""
    require_missing(missing)
    for name, value in beside.items():
        if value is not None and not isinstance(value, str):
            several = "; several grouping factors are bars, (1 | a) + (1 | b)" if name == "groups" else ""
            kind = type(value).__name__
            raise DataError(f"from_batches: {name} is a {kind}; it must be the name of a column{several}")
    for number, table in enumerate(tables):
        if not len(table):
            continue
        with naming(number):
            words, recipe = state(formula, as_frame(table), beside, re_formula, vc_formula, env)
            named = {name: value for name, value in beside.items() if value is not None}
            kinds = _kinds(words, recipe, named, table)
            statement = Statement(words, recipe, recipe, (), named, missing, kinds)
            rows = statement.rows(table)
            if rows is not None:
                return _planned(statement, rows.take(np.arange(min(len(rows.frame), FEW))))
    raise DataError("batches have no rows without missing values; check how they are read")


def _kinds(words: Words, recipe: Recipe, named: Mapping[str, str], table: pd.DataFrame) -> dict[str, Any]:
    names = recipe.columns(recipe.specs)
    kinds = kinds_of(table, names)
    made_of = [name for part in words.random for name in part.factors] if words.group_name is None else []
    beside = [value if value in table.columns else bare_name(value) for value in named.values()]
    words_used = {word for text in made_of for word in re.findall(r"\w+", text)}
    others = [*made_of, *beside, *(name for name in table.columns if name in words_used)]
    others = [name for name in dict.fromkeys(others) if name in table.columns and name not in kinds]
    return kinds | {k: ANY_CATEGORIES if isinstance(v, tuple) else v for k, v in kinds_of(table, others).items()}


def _planned(statement: Statement, few: DataRows) -> Statement:
    """The statement with the ways to evaluate its formulas, found from a few rows."""
    read, frame = statement.read, statement.working(few.frame)
    plans = tuple(components.plan(name, part, read, frame) for name, part in statement.words.components)
    for plan in plans:
        if plan.way == "groups":
            raise ModelError(
                f"the variance component {plan.name!r} ({read.texts[plan.part]!r}) looks at all rows of a group at "
                "once, which batches do not have. Add its values as a column to every batch, or use mixedlm"
            )
    planned = replace(statement, recipe=components.on_all_rows(read, plans), components=plans)
    return replace(planned, tracked=_tracked(planned, frame))


def _tracked(statement: Statement, frame: pd.DataFrame) -> tuple[str, ...]:
    """The columns that categorical factors use; transforms that need the whole column are refused."""
    recipe = statement.recipe
    specs = evaluate(recipe, recipe.specs, frame, fresh=True).specs
    for part, spec in specs.items():
        for text in spec.transform_state:
            raise _whole_column(restore(text, recipe.aliases), recipe.texts[part])
    factors = {f.expr for spec in specs.values() for f, (kind, _) in known_factors(spec).items() if kind != "numerical"}
    texts = [restore(text, recipe.aliases) for text in factors]
    return tuple(
        name
        for name in recipe.columns(recipe.specs)
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for text in texts)
    )


def _whole_column(text: str, formula: str) -> FormulaError:
    return FormulaError(
        f"{text!r} in {formula!r} needs the whole column at once, which batches do not have. Add its values as a "
        "column to every batch, or use known numbers, as in I(x - 50)"
    )


def survey(statement: Statement, batch: pd.DataFrame) -> Survey | None:
    """What one batch shows; None if it has no usable rows."""
    rows = statement.rows(batch)
    rows = None if rows is None else statement.evaluable(rows)
    if rows is None:
        return None
    cells = pd.DataFrame({k: getattr(v, "array", v) for k, v in statement.labels(rows).items()}).dropna()
    frame = rows.frame
    places = np.unique(np.linspace(0, len(frame) - 1, SAMPLE).astype(int))
    seen = checksum(frame, statement.columns)
    return Survey(len(frame), cells.drop_duplicates(), _novel(statement, frame), frame.iloc[places], seen)


def _novel(statement: Statement, frame: pd.DataFrame) -> pd.DataFrame:
    """The first row of every category."""
    first = [~frame[name].duplicated().to_numpy() for name in statement.tracked]
    novel = frame.loc[np.any(first, axis=0)] if first else frame.iloc[:1]
    if len(novel) > MANY_CATEGORIES:
        raise DataError(
            f"the categories made of {', '.join(map(repr, statement.tracked))} are more than {MANY_CATEGORIES}; use "
            "such a column as a grouping factor, as in (1 | g)"
        )
    return novel


def merge(statement: Statement, first: Survey, other: Survey) -> Survey:
    """What two parts of the data show together."""
    cells = pd.concat([first.cells, other.cells], ignore_index=True).drop_duplicates()
    novel = _novel(statement, pd.concat([first.novel, other.novel], ignore_index=True))
    sample = pd.concat([first.sample, other.sample], ignore_index=True)
    sample = sample.iloc[:: 2 if len(sample) > THINNED else 1]
    return Survey(first.nobs + other.nobs, cells, novel, sample, first.checksum.plus(other.checksum))


def reduce_in_pairs(parts: Iterable, join: Callable) -> Any:
    """Put parts together as a tree, so that each is handled a logarithmic number of times; None if there are none."""
    stack: list[tuple[int, Any]] = []
    for part in parts:
        level = 0
        while stack and stack[-1][0] == level:
            part, level = join(stack.pop()[1], part), level + 1
        stack.append((level, part))
    whole = stack.pop()[1] if stack else None
    while stack:
        whole = join(stack.pop()[1], whole)
    return whole


def survey_of(statement: Statement, tables: Iterable[pd.DataFrame]) -> Survey | None:
    """What all batches show together; None if they have no usable rows."""

    def parts() -> Iterator[Survey]:
        for number, table in enumerate(tables):
            with naming(number):
                shown = survey(statement, table)
            if shown is not None:
                yield shown

    return reduce_in_pairs(parts(), partial(merge, statement))


def learn(statement: Statement, shown: Survey) -> tuple[Statement, DataRows]:
    """The statement with the categories of all batches, and example rows to look at columns with."""
    frame = pd.concat([shown.novel, shown.sample], ignore_index=True)
    beside = {name: per_row(value, frame, name) for name, value in statement.beside.items()}
    rows, recipe = DataRows(frame, beside, np.arange(len(frame))), statement.recipe
    working = statement.working(frame)
    dtypes = {name: column(working, name).dtype for name in working}
    learnt = replace(recipe, specs=evaluate(recipe, recipe.specs, working, fresh=True).specs, dtypes=dtypes)
    _require_row_by_row(replace(statement, recipe=learnt), rows, working)
    return replace(statement, recipe=learnt), rows


def _require_row_by_row(statement: Statement, rows: DataRows, working: pd.DataFrame) -> None:
    """Refuse formulas whose value in one row depends on others: halves and single rows must give what all give."""
    recipe, n = statement.recipe, len(working)
    if found := of_whole_columns(recipe, recipe.specs, working):
        name, part = found
        raise _whole_column(name, recipe.texts[part])
    labels = {name: np.asarray(values) for name, values in statement.labels(rows).items()}
    for places in (np.arange(0, n, 2), np.arange(1, n, 2)):
        if len(places):
            _compare_labels(statement, labels, rows.take(places), places)


def _compare_labels(statement: Statement, labels: dict, some: DataRows, places: np.ndarray) -> None:
    for name, expected in labels.items():
        if name in some.frame.columns or statement.words.group_name is not None:
            continue
        try:
            labels_here = pd.Series(np.asarray(statement.labels(some)[name]))
        except JmixedError:
            raise _whole_column(name, statement.words.parts.text) from None
        if not labels_here.equals(pd.Series(expected[places])):
            raise _whole_column(name, statement.words.parts.text)
