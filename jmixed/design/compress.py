"""The second pass over data in batches: cross-products by cell, and a few rows that have the same cross-products.

A cell is a combination of the grouping factors' labels. The likelihood knows the data by Z'WZ and Z'W[X y] of every
cell and by [X y]'W[X y] of all rows. With L L' = Z'WZ, the rows [L', L^-1 Z'W[X y]] have those of their cell, and p + 1
rows without random effects have what is left of the last. These stand for the data in everything that needs no more
than cross-products. Columns are preconditioned before they are multiplied, by what a sample of rows shows, so that no
digits are lost.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from jmixed.design import checks
from jmixed.design.assemble import (
    Evaluated,
    NoRowsError,
    Rows,
    bare,
    grouping_factors,
    offset_of,
    offset_source,
    response,
    sources,
    weights_of,
)
from jmixed.design.factors import Factor, cross, factor
from jmixed.design.frame import column, require_finite
from jmixed.design.materialise import evaluate, restore, working_frame
from jmixed.design.stream import naming
from jmixed.design.survey import Statement, Survey, learn
from jmixed.design.terms import ModelData, RandomTerm, Rebuild
from jmixed.errors import DataError
from jmixed.precision import FLOAT

TINY = 4 * np.finfo(FLOAT).eps
"""Least pivot of a cell, relative to its column's sum of squares: what rounding leaves of zero."""


@dataclass(frozen=True)
class Columns:
    """Rows of a batch in numbers: y is less the offset; Z has every random-effects column once."""

    y: np.ndarray
    X: np.ndarray
    Z: np.ndarray
    weights: np.ndarray
    labels: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What the second pass needs of the first.

    Attributes
    ----------
    statement : Statement
        With the categories of all batches.
    cell : Factor
        The combinations of labels.
    endog_name, exog_names, columns : str, tuples of str
        Of the response, the p columns of X and the Q columns of Z.
    R, basis : arrays (p, p)
        ``X basis`` is about orthonormal, times the root of the number of rows; R is its inverse.
    beta0 : array (p,)
        Coefficients that take most out of y.
    T, T_inverse : arrays (Q, Q)
        The same for Z.
    nobs : int
        Number of rows in the first pass.
    offset_source : str or None
    """

    statement: Statement
    cell: Factor
    endog_name: str
    exog_names: tuple[str, ...]
    columns: tuple[str, ...]
    R: np.ndarray
    basis: np.ndarray
    beta0: np.ndarray
    T: np.ndarray
    T_inverse: np.ndarray
    nobs: int
    offset_source: str | None


@dataclass(frozen=True)
class Sums:
    """Cross-products of some rows.

    Attributes
    ----------
    cells : int array (k,)
        The cells that occur, ascending.
    values : array (k, entries)
        Of each: lower triangle of Z'WZ, Z'W[X y], number of rows.
    G : array (p + 1, p + 1)
    nobs, log_weights : float
    low, high : arrays (Q + 1,)
        Least and greatest values of the columns of Z, and of the response less the offset.
    """

    cells: np.ndarray
    values: np.ndarray
    G: np.ndarray
    nobs: int
    log_weights: float
    low: np.ndarray
    high: np.ndarray


def plan(statement: Statement, found: Survey) -> Plan:
    """Learn categories, cells and preconditioners from a survey of all batches."""
    statement, examples = learn(statement, found)
    names = list(found.cells.columns)
    single = [factor(name, column(found.cells, name)) for name in names]
    cell = reduce(lambda outer, inner: cross(f"{outer.name}:{inner.name}", outer, inner), single)
    made = _evaluated(statement, examples)
    endog_name, y = response(statement.recipe, made)
    columns, Z = _effects(statement, made)
    shown = np.column_stack([Z, made.matrices["rhs"].values, y - offset_of(statement.words, made)])
    # What is not finite is refused in the second pass, which knows its batch.
    shown = shown[np.isfinite(shown).all(axis=1)]
    Z, X, y = shown[:, : len(columns)], shown[:, len(columns) : -1], shown[:, -1]
    R, basis = _preconditioner(X)
    T_inverse, T = _preconditioner(Z)
    return Plan(
        statement=statement,
        cell=cell,
        endog_name=endog_name,
        exog_names=made.matrices["rhs"].names,
        columns=columns,
        R=R,
        basis=basis,
        beta0=basis @ np.linalg.lstsq(X @ basis, y, rcond=1e-10)[0],
        T=T,
        T_inverse=T_inverse,
        nobs=found.nobs,
        offset_source=offset_source(examples),
    )


def _evaluated(statement: Statement, rows: Rows) -> Evaluated:
    """Evaluate the formulas on rows, leaving out or refusing what transforms make missing."""
    words, recipe = statement.words, statement.recipe
    frame = working_frame(rows.frame, recipe.columns(recipe.specs), recipe.aliases)
    found = evaluate(recipe, recipe.specs, frame, fresh=False)
    labels = sources(words, rows, recipe)
    masks = {f"the grouping factor {name}": np.asarray(pd.isna(values)) for name, values in labels.items()}
    masks[f"columns made by {words.parts.text!r}"] = np.isin(np.arange(len(frame)), found.missing)
    return Evaluated(rows, frame, found.matrices, labels).without(masks, statement.missing)


def _columns(statement: Statement, rows: Rows) -> Columns:
    """The rows in numbers, checked."""
    made = _evaluated(statement, rows)
    name, y = response(statement.recipe, made)
    X, weights, offset = made.matrices["rhs"], weights_of(made.rows), offset_of(statement.words, made)
    columns, Z = _effects(statement, made)
    for values, names in ((X.values, X.names), (Z, columns), (y, [name]), (offset, ["offset"])):
        require_finite(values, names, made.rows.positions)
    return Columns(y - offset, X.values, Z, weights, made.sources)


def _effects(statement: Statement, made: Evaluated) -> tuple[tuple[str, ...], np.ndarray]:
    """Every column of the random effects once: columns of one name have one text, so they are one column."""
    found: dict[str, np.ndarray] = {}
    for part in statement.words.random:
        key = statement.words.effects.get(part.effects)
        if key is None:
            found.setdefault("Intercept", np.ones(len(made.frame)))
        else:
            matrix = made.matrices[key]
            for name, values in zip(matrix.names, matrix.values.T, strict=True):
                found.setdefault(name, values)
    return tuple(found), np.column_stack(list(found.values())) if found else np.empty((len(made.frame), 0))


def _preconditioner(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """R and R^-1 with ``columns R^-1`` about orthonormal times the root of the number of rows.

    A column that those before it explain keeps what is left of it, at its own length.
    """
    from scipy.linalg import solve_triangular

    n, p = columns.shape
    length = np.sqrt(np.sum(columns**2, axis=0) / max(n, 1))
    length = np.where(length > 0, length, 1)
    triangle = np.zeros((p, p))
    found = np.linalg.qr(columns / length / np.sqrt(max(n, 1)), mode="r")
    triangle[: len(found)] = found
    triangle *= np.where(np.diagonal(triangle) < 0, -1, 1)[:, None]
    triangle = np.where((np.diagonal(triangle) < 1e-8)[:, None], np.eye(p), triangle)
    return triangle * length, solve_triangular(triangle, np.eye(p)) / length[:, None]


def sums(made: Plan, batch: pd.DataFrame) -> Sums | None:
    """Cross-products of one batch; None if it has no usable rows."""
    rows = made.statement.rows(batch)
    if rows is None:
        return None
    try:
        own = _columns(made.statement, rows)
    except NoRowsError:
        return None
    code = made.cell.match([own.labels[name] for name in made.cell.sources])
    if np.any(code < 0):
        raise _changed(f"{int(np.sum(code < 0))} rows belong to groups that the first pass did not see")
    Z = own.Z @ made.T
    fixed = np.column_stack([own.X @ made.basis, own.y - own.X @ made.beta0])
    weighted = own.weights[:, None] * Z
    i, j = np.tril_indices(Z.shape[1])
    across = weighted[:, :, None] * fixed[:, None]
    products = np.column_stack([weighted[:, i] * Z[:, j], across.reshape(len(Z), -1), np.ones(len(Z))])
    cells, values = _by_cell(code, products)
    numbers = np.column_stack([own.Z, own.y])
    G = fixed.T @ (own.weights[:, None] * fixed)
    logs = float(np.sum(np.log(own.weights)))
    return Sums(cells, values, G, len(Z), logs, numbers.min(axis=0), numbers.max(axis=0))


def _by_cell(code: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The distinct codes in order, and the sums of the rows of `values` (n, entries) that have each."""
    from scipy.sparse import csr_array

    cells, place = np.unique(code, return_inverse=True)
    n = len(code)
    indicator = csr_array((np.ones(n), place, np.arange(n + 1)), shape=(n, len(cells)))
    return cells, indicator.T @ values


def _changed(what: str) -> DataError:
    return DataError(f"the second pass over the batches found other data than the first: {what}")


def merge(one: Sums, other: Sums) -> Sums:
    """Cross-products of the rows of two parts."""
    cells, values = _by_cell(np.concatenate([one.cells, other.cells]), np.concatenate([one.values, other.values]))
    return Sums(cells, values, *_add_totals(one, other))


def _add_totals(one: Sums, other: Sums) -> tuple:
    low, high = np.minimum(one.low, other.low), np.maximum(one.high, other.high)
    return one.G + other.G, one.nobs + other.nobs, one.log_weights + other.log_weights, low, high


def sums_of(made: Plan, tables: Iterable[pd.DataFrame]) -> Sums | None:
    """Cross-products of all batches, added up in place."""
    total: Sums | None = None
    for number, table in enumerate(tables):
        with naming(number):
            found = sums(made, table)
        if found is None:
            continue
        if total is None:
            everywhere = np.arange(len(made.cell.levels))
            values = np.zeros((len(everywhere), found.values.shape[1]))
            total = replace(found, cells=everywhere, values=values)
        else:
            total = Sums(total.cells, total.values, *_add_totals(total, found))
        total.values[found.cells] += found.values
    return total


def represent(made: Plan, total: Sums | None) -> ModelData:
    """The model in rows that have the cross-products of the data."""
    if total is None:
        raise DataError("batches have no rows without missing values; check how they are read")
    used = total.values[:, -1] > 0
    cells, values = total.cells[used], total.values[used]
    Z, fixed = _rows_of_cells(values, len(made.columns), len(total.G))
    rest = total.G - np.einsum("kqa,kqb->ab", fixed, fixed)
    k, q = Z.shape[:2]
    # Rows without random effects may stand in any cell: in different ones, so that no cell becomes much larger.
    place = np.concatenate([np.repeat(np.arange(k), q), np.arange(len(rest)) % k])
    represents = np.zeros(len(place), int)
    represents[q * np.arange(k)] = values[:, -1].astype(int)
    order = np.argsort(place, kind="stable")
    fixed = np.concatenate([fixed.reshape(k * q, -1), _root(rest, np.diagonal(total.G))])[order]
    Z = np.concatenate([Z.reshape(k * q, q), np.zeros((len(rest), q))])[order] @ made.T_inverse
    X, y = fixed[:, :-1] @ made.R, fixed[:, -1]
    y = y + X @ made.beta0
    terms = _terms(made, total, cells, place[order], Z)
    return _checked(made, total, (y, X, represents[order]), terms)


def _rows_of_cells(values: np.ndarray, q: int, border: int) -> tuple[np.ndarray, np.ndarray]:
    """L' (k, q, q) and L^-1 Z'W[X y] (k, q, p + 1) of every cell.

    Where L L' would be singular its pivots are raised to what rounding makes of zero: the products stay as they are.
    """
    i, j = np.tril_indices(q)
    C = np.zeros((len(values), q, q))
    C[:, i, j] = C[:, j, i] = values[:, : len(i)]
    B = values[:, len(i) : len(i) + q * border].reshape(-1, q, border).copy()
    L = np.zeros_like(C)
    for k in range(q):
        left = C[:, k:, k] - np.einsum("nij,nj->ni", L[:, k:, :k], L[:, k, :k])
        pivot = np.sqrt(np.maximum(left[:, 0], TINY * C[:, k, k]))
        there = pivot > 0
        inverse = np.where(there, 1 / np.where(there, pivot, 1), 0)
        L[:, k, k] = pivot
        L[:, k + 1 :, k] = left[:, 1:] * inverse[:, None]
        B[:, k] = (B[:, k] - np.einsum("nj,njb->nb", L[:, k, :k], B[:, :k])) * inverse[:, None]
    return L.transpose(0, 2, 1), B


def _root(matrix: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """A with A'A = matrix, of a positive semidefinite one whose columns have the given sizes, squared."""
    size = np.sqrt(np.where(squares > 0, squares, 1))
    values, vectors = np.linalg.eigh(matrix / np.outer(size, size))
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T * size


def _terms(made: Plan, total: Sums, cells: np.ndarray, place: np.ndarray, Z: np.ndarray) -> tuple[RandomTerm, ...]:
    """The random-effects terms; a row that stands for others has the levels of its cell."""
    words, recipe, tables = made.statement.words, made.statement.recipe, made.cell.tables
    labels = {
        name: pd.Series(pd.Categorical.from_codes(code[cells], categories=table))
        for name, code, table in zip(made.cell.sources, made.cell.decode(), tables, strict=True)
    }
    grouping = grouping_factors(words, labels)
    constant = {name for k, name in enumerate(made.columns) if total.low[k] == total.high[k] != 0}
    terms = []
    for part in words.random:
        own, key = grouping[part.factors], words.effects.get(part.effects)
        names = ("Intercept",) if key is None else recipe.specs[key].column_names
        names = [restore(name, recipe.aliases) for name in names]
        for number, chosen in enumerate([[name] for name in names] if part.independent else [names]):
            terms.append(
                RandomTerm(
                    label=f"{bare(chosen[0])} | {own.name}" if part.independent else part.label,
                    group=own.name,
                    codes=own.codes[place],
                    levels=own.levels,
                    columns=tuple(chosen),
                    Z=np.ascontiguousarray(Z[:, [made.columns.index(name) for name in chosen]]),
                    intercept=next((k for k, name in enumerate(chosen) if name in constant), None),
                    rebuild=Rebuild(own, key, number if part.independent and key else None),
                )
            )
    return checks.distinct(terms)


def _checked(made: Plan, total: Sums, rows: tuple, terms: tuple[RandomTerm, ...]) -> ModelData:
    """The whole model, after the checks that any model undergoes."""
    y, X, represents = rows
    words, recipe, n = made.statement.words, made.statement.recipe, len(y)
    checks.require_variation(np.array([total.low[-1], total.high[-1]]), np.zeros(2), made.endog_name, total.nobs)
    for term in terms:
        checks.require_identifiable(term, total.nobs)
    kept = checks.independent_columns(X)
    names = tuple(made.exog_names[j] for j in kept)
    checks.require_rows(total.nobs, names)
    own = terms[0] if words.group_name is not None else None
    return ModelData(
        y=y,
        X=np.ascontiguousarray(X[:, kept]),
        weights=np.ones(n),
        offset=np.zeros(n),
        terms=terms,
        endog_name=made.endog_name,
        exog_names=names,
        dropped=tuple(name for j, name in enumerate(made.exog_names) if j not in set(kept.tolist())),
        index=pd.RangeIndex(n),
        rows=np.arange(n),
        frame=None,
        groups=None if own is None else own.levels.to_numpy()[own.codes],
        group_name=words.group_name,
        formula=words.parts.text,
        kept=kept,
        recipe=recipe,
        offset_source=made.offset_source,
        represents=represents,
        log_weights=total.log_weights,
    )
