"""The second pass over data in batches: cross-products by cell.

A cell is a combination of the labels that grouping factors are made of. The likelihood knows the data by Z'WZ and
Z'W[X y] of every cell and by [X y]'W[X y] of all rows. Columns are preconditioned before they are multiplied, by what a
sample of rows shows, so that no digits are lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.formulas import components
from jmixed.formulas.assemble import (
    DataRows,
    Evaluated,
    NoRowsError,
    offset_of,
    offset_source,
    on_complete_rows,
    response,
    weights_of,
)
from jmixed.formulas.factors import Factor, crossed, factor
from jmixed.formulas.frame import column, require_finite, working_frame
from jmixed.formulas.recipe import Matrix, evaluate
from jmixed.streams.reading import Checksum, changed, checksum, naming
from jmixed.streams.survey import Statement, Survey, learn


@dataclass(frozen=True)
class Columns:
    """Rows of a batch in numbers: y is less the offset; Z has every random-effects column once."""

    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    weights: np.ndarray
    labels: dict[str, Any]
    checksum: Checksum


@dataclass(frozen=True)
class Ranked:
    """Components whose columns are made from the ranks of categories within the groups of `top`, by name."""

    top: Factor | None
    built: dict[str, components.Built]

    def matrices(self, evaluated: Evaluated) -> list[Matrix]:
        """Their columns, under names that tell the components apart."""
        if self.top is None:
            return []
        codes = self.top.match([evaluated.sources[self.top.name]])
        return [
            Matrix(self.names(name), component.local.build(evaluated.frame, codes))
            for name, component in self.built.items()
        ]

    def names(self, component: str) -> tuple[str, ...]:
        """Names of a component's columns."""
        return tuple(f"{component}: {name}" for name in self.built[component].matrix.names)


@dataclass(frozen=True)
class FirstPass:
    """What the second pass needs of the first."""

    statement: Statement  # with the categories of all batches
    cell: Factor  # the combinations of labels
    ranked: Ranked
    endog_name: str
    exog_names: tuple[str, ...]  # of the p columns of X
    columns: tuple[str, ...]  # names of the Q columns of Z
    R: np.ndarray  # (p, p), the inverse of `basis`
    basis: np.ndarray  # (p, p): ``X basis`` is about orthonormal, times the root of the number of rows
    beta0: np.ndarray  # (p,) coefficients that take most out of y
    T: np.ndarray  # (Q, Q), as `basis`, for Z
    T_inverse: np.ndarray  # (Q, Q)
    checksum: Checksum  # of the first pass
    offset_source: str | None

    @property
    def entries(self) -> int:
        """Numbers that are kept for a cell: see `CrossSums`."""
        q = len(self.columns)
        return q * (q + 1) // 2 + q * (len(self.exog_names) + 1) + 1


@dataclass(frozen=True)
class CrossSums:
    """Cross-products of some rows."""

    cells: np.ndarray  # (k,) those that occur, ascending
    values: np.ndarray  # (k, entries) of each: lower triangle of Z'WZ, Z'W[X y], number of rows
    G: np.ndarray  # (p + 1, p + 1), [X y]'W[X y]
    nobs: int
    log_weights: float
    low: np.ndarray  # (Q + 1,) least values of the columns of Z, and of the response less the offset
    high: np.ndarray  # (Q + 1,) greatest values of the same
    checksum: Checksum


def plan(statement: Statement, surveyed: Survey | None) -> FirstPass:
    """Learn categories, cells and preconditioners from a survey of all batches."""
    if surveyed is None:
        raise DataError("batches have no rows for which the formula gives numbers; look at its transforms")
    statement, examples = learn(statement, surveyed)
    names = list(surveyed.cells.columns)
    cell = crossed([factor(name, column(surveyed.cells, name)) for name in names], labelled=False)
    ranked = _ranked(statement, surveyed, examples)
    evaluated = _evaluated(statement, examples)
    endog_name, y = response(statement.recipe, evaluated)
    columns, Z = _effects(evaluated, statement, ranked)
    shown = np.column_stack([Z, evaluated.matrices["rhs"].values, y - offset_of(statement.words, evaluated)])
    # What is not finite is refused in the second pass, which knows its batch.
    shown = shown[np.isfinite(shown).all(axis=1)]
    Z, X, y = shown[:, : len(columns)], shown[:, len(columns) : -1], shown[:, -1]
    R, basis = _preconditioner(X)
    T_inverse, T = _preconditioner(Z)
    return FirstPass(
        statement=statement,
        cell=cell,
        ranked=ranked,
        endog_name=endog_name,
        exog_names=evaluated.matrices["rhs"].names,
        columns=columns,
        R=R,
        basis=basis,
        beta0=basis @ np.linalg.lstsq(X @ basis, y, rcond=1e-10)[0],
        T=T,
        T_inverse=T_inverse,
        checksum=surveyed.checksum,
        offset_source=offset_source(examples),
    )


def _evaluated(statement: Statement, rows: DataRows) -> Evaluated:
    """Evaluate the formulas on rows, leaving out or refusing what transforms make missing."""
    recipe, frame = statement.recipe, statement.working(rows.frame)
    evaluation = evaluate(recipe, recipe.specs, frame, fresh=False)
    return on_complete_rows(statement.words, rows, frame, evaluation, statement.labels(rows), statement.missing)


def _ranked(statement: Statement, surveyed: Survey, examples: DataRows) -> Ranked:
    """Components made from ranks within groups, learnt from the groups and categories that occur.

    Columns of numbers are filled up: what they are does not change which columns there are.
    """
    plans = [component for component in statement.components if component.way == "ranks"]
    if not plans:
        return Ranked(None, {})
    read, cells = statement.read, surveyed.cells.reset_index(drop=True)
    needs = read.columns(component.part for component in plans)
    first = examples.frame.iloc[np.zeros(len(cells), int)].reset_index(drop=True)
    frame = working_frame(pd.DataFrame({k: cells[k] if k in cells else first[k] for k in needs}), needs, read.aliases)
    name = str(statement.words.group_name)
    top = factor(name, column(cells, name))
    return Ranked(top, {component.name: components.build_local(component, read, frame, top) for component in plans})


def _columns(plan: FirstPass, rows: DataRows) -> Columns:
    """The rows in numbers, checked."""
    statement, evaluated = plan.statement, _evaluated(plan.statement, rows)
    name, y = response(statement.recipe, evaluated)
    X, weights, offset = evaluated.matrices["rhs"], weights_of(evaluated.rows), offset_of(statement.words, evaluated)
    columns, Z = _effects(evaluated, statement, plan.ranked)
    for values, names in ((X.values, X.names), (Z, columns), (y, [name]), (offset, ["offset"])):
        require_finite(values, names, evaluated.rows.positions)
    seen = checksum(evaluated.rows.frame, statement.columns)
    return Columns(y - offset, X.values, Z, weights, evaluated.sources, seen)


def _effects(evaluated: Evaluated, statement: Statement, ranked: Ranked) -> tuple[tuple[str, ...], np.ndarray]:
    """Every column of the random effects once: columns of one name have one text, so they are one column."""
    ones = Matrix(("Intercept",), np.ones((len(evaluated.frame), 1)))
    parts = [statement.words.effects.get(part.effects) for part in statement.words.random]
    parts += [plan.part for plan in statement.components if plan.way != "ranks"]
    matrices = [evaluated.matrices.get(part, ones) if part else ones for part in parts]
    matrices += ranked.matrices(evaluated)
    by_name: dict[str, np.ndarray] = {}
    for matrix in matrices:
        for name, values in zip(matrix.names, matrix.values.T, strict=True):
            by_name.setdefault(name, values)
    return tuple(by_name), np.column_stack(list(by_name.values())) if by_name else np.empty((len(evaluated.frame), 0))


def _preconditioner(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R and R^-1 with ``columns R^-1`` about orthonormal times the root of the number of rows.

    A column that those before it explain keeps what is left of it, at its own length.
    """
    from scipy.linalg import solve_triangular

    n, p = columns.shape
    length = np.sqrt(np.sum(columns**2, axis=0) / max(n, 1))
    length = np.where(length > 0, length, 1)
    triangle = np.zeros((p, p))
    rows = np.linalg.qr(columns / length / np.sqrt(max(n, 1)), mode="r")
    triangle[: len(rows)] = rows
    triangle *= np.where(np.diagonal(triangle) < 0, -1, 1)[:, None]
    triangle = np.where((np.diagonal(triangle) < 1e-8)[:, None], np.eye(p), triangle)
    return triangle * length, solve_triangular(triangle, np.eye(p)) / length[:, None]


def sums(plan: FirstPass, batch: pd.DataFrame) -> CrossSums | None:
    """Cross-products of one batch; None if it has no usable rows."""
    rows = plan.statement.rows(batch)
    if rows is not None and plan.statement.missing == "drop":
        rows = plan.statement.evaluable(rows)
    if rows is None:
        return None
    try:
        columns = _columns(plan, rows)
    except NoRowsError:
        return None
    code = plan.cell.match([columns.labels[name] for name in plan.cell.sources])
    if np.any(code < 0):
        raise changed(f"{int(np.sum(code < 0))} rows belong to groups that the first pass did not see")
    Z = columns.Z @ plan.T
    fixed = np.column_stack([columns.X @ plan.basis, columns.y - columns.X @ plan.beta0])
    weighted = columns.weights[:, None] * Z
    i, j = np.tril_indices(Z.shape[1])
    across = weighted[:, :, None] * fixed[:, None]
    products = np.column_stack([weighted[:, i] * Z[:, j], across.reshape(len(Z), -1), np.ones(len(Z))])
    cells, values = _by_cell(code, products)
    numbers = np.column_stack([columns.Z, columns.y])
    G = fixed.T @ (columns.weights[:, None] * fixed)
    logs = float(np.sum(np.log(columns.weights)))
    return CrossSums(cells, values, G, len(Z), logs, numbers.min(axis=0), numbers.max(axis=0), columns.checksum)


def _by_cell(code: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes in order, and the sums of the rows of `values` (n, entries) that have each."""
    from scipy.sparse import csr_array

    cells, place = np.unique(code, return_inverse=True)
    n = len(code)
    indicator = csr_array((np.ones(n), place, np.arange(n + 1)), shape=(n, len(cells)))
    return cells, indicator.T @ values


def merge(first: CrossSums, other: CrossSums) -> CrossSums:
    """Cross-products of the rows of two parts."""
    cells, values = _by_cell(np.concatenate([first.cells, other.cells]), np.concatenate([first.values, other.values]))
    return CrossSums(cells, values, *_add_totals(first, other))


def _add_totals(first: CrossSums, other: CrossSums) -> tuple:
    low, high = np.minimum(first.low, other.low), np.maximum(first.high, other.high)
    logs, seen = first.log_weights + other.log_weights, first.checksum.plus(other.checksum)
    return first.G + other.G, first.nobs + other.nobs, logs, low, high, seen


def sums_of(plan: FirstPass, tables: Iterable[pd.DataFrame]) -> CrossSums | None:
    """Cross-products of all batches, added up in place."""
    total: CrossSums | None = None
    for number, table in enumerate(tables):
        with naming(number):
            of_batch = sums(plan, table)
        if of_batch is None:
            continue
        if total is None:
            everywhere = np.arange(len(plan.cell.levels))
            total = replace(of_batch, cells=everywhere, values=np.zeros((len(everywhere), plan.entries)))
        else:
            total = CrossSums(total.cells, total.values, *_add_totals(total, of_batch))
        total.values[of_batch.cells] += of_batch.values
    return total
