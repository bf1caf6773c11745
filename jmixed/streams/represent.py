"""Rows that stand for data in batches: a few of each cell, with the cross-products of all of its rows.

With L L' = Z'WZ of a cell, the rows [L', L^-1 Z'W[X y]] have its cross-products, and p + 1 rows without random effects
have what is left of [X y]'W[X y]. These stand for the data in everything that needs no more than cross-products.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import ModelError
from jmixed.formulas import checks
from jmixed.formulas.assemble import DataRows, Evaluated, component_terms, grouping_factors, random_terms
from jmixed.formulas.frame import working_frame
from jmixed.formulas.model_data import ModelData, RandomTerm
from jmixed.formulas.recipe import Matrix, restore
from jmixed.runtime.precision import FLOAT
from jmixed.streams.reading import changed
from jmixed.streams.sums import CrossSums, FirstPass

TINY = 4 * np.finfo(FLOAT).eps
"""Least pivot of a cell, relative to its column's sum of squares: what rounding leaves of zero."""

CHUNK = 2**18
"""Cells that are worked on together: there may be as many as rows."""


def represent(plan: FirstPass, total: CrossSums | None) -> ModelData:
    """The model in rows that have the cross-products of the data."""
    if total is None:
        raise changed("it has no rows")
    plan.checksum.require_same(total.checksum)
    used = np.flatnonzero(total.values[:, -1])
    cells, rows_in = total.cells[used], total.values[used, -1]
    Z, fixed = _rows_of_cells(total.values, used, len(plan.columns), len(total.G))
    # Cells may be as many as rows: what is large goes as soon as it has been used.
    total = replace(total, cells=used[:0], values=np.empty((0, plan.entries)))
    rest = total.G - np.einsum("kqa,kqb->ab", fixed, fixed)
    k, q = Z.shape[:2]
    # Rows without random effects may stand in any cell: in different ones, so that no cell becomes much larger.
    place = np.concatenate([np.repeat(np.arange(k, dtype=np.int32), q), np.arange(len(rest), dtype=np.int32) % k])
    represents = np.zeros(len(place), int)
    represents[q * np.arange(k)] = rows_in
    order = np.argsort(place, kind="stable")
    fixed = np.concatenate([fixed.reshape(k * q, len(rest)), _root(rest, np.diagonal(total.G))])[order]
    Z = np.concatenate([Z.reshape(k * q, q), np.zeros((len(rest), q))])[order] @ plan.T_inverse
    place = place[order]
    X, y = fixed[:, :-1] @ plan.R, fixed[:, -1]
    y = y + X @ plan.beta0
    groups, terms = _terms(plan, total, cells, place, Z)
    return _checked(plan, total, (y, X, represents[order]), terms, groups)


def _rows_of_cells(values: np.ndarray, used: np.ndarray, q: int, border: int) -> tuple[np.ndarray, np.ndarray]:
    """L' (k, q, q) and L^-1 Z'W[X y] (k, q, p + 1) of the cells at positions `used` (k,), some at a time."""
    Z, fixed = np.empty((len(used), q, q)), np.empty((len(used), q, border))
    for start in range(0, len(used), CHUNK):
        some = slice(start, start + CHUNK)
        Z[some], fixed[some] = _eliminated(values[used[some]], q, border)
    return Z, fixed


def _eliminated(values: np.ndarray, q: int, border: int) -> tuple[np.ndarray, np.ndarray]:
    """L' and L^-1 Z'W[X y] of some cells, the columns of Z in any order of elimination.

    The largest pivot comes first, so that errors do not grow where columns explain each other, as they must in a cell
    of few rows. Pivots of rounding's size are raised to it: the products stay as they are.
    """
    i, j = np.tril_indices(q)
    C = np.zeros((len(values), q, q))
    C[:, i, j] = C[:, j, i] = values[:, : len(i)]
    size = np.sqrt(np.diagonal(C, axis1=1, axis2=2))
    unit = np.where(size > 0, size, 1)
    C /= unit[:, :, None] * unit[:, None]
    B = values[:, len(i) : len(i) + q * border].reshape(len(values), q, border) / unit[:, :, None]
    Z, fixed = np.zeros_like(C), np.zeros_like(B)
    waiting, cell, least = size > 0, np.arange(len(values)), q * TINY
    for k in range(q):
        left = np.where(waiting, np.diagonal(C, axis1=1, axis2=2), -1)
        largest = np.argmax(left, axis=1)
        there, pivot = waiting[cell, largest], np.sqrt(np.maximum(left[cell, largest], least))
        column = np.where(waiting & (pivot**2 > least)[:, None], C[cell, :, largest], 0) / pivot[:, None]
        column[cell, largest] = np.where(there, pivot, 0)
        row = np.where(there, 1 / pivot, 0)[:, None] * B[cell, largest]
        Z[:, k], fixed[:, k] = column * size, row
        C -= column[:, :, None] * column[:, None]
        B -= column[:, :, None] * row[:, None]
        waiting[cell, largest] = False
    return Z, fixed


def _root(matrix: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """A with A'A = matrix, of a positive semidefinite one whose columns have the given sizes, squared.

    A column of zeros stays one: what rounding would make of it could pass for a column that explains something.
    """
    size = np.sqrt(squares)
    unit = np.where(size > 0, size, 1)
    values, vectors = np.linalg.eigh(matrix / np.outer(unit, unit))
    return np.sqrt(np.maximum(values, 0))[:, None] * vectors.T * size


def _terms(
    plan: FirstPass, total: CrossSums, cells: np.ndarray, place: np.ndarray, Z: np.ndarray
) -> tuple[np.ndarray | None, tuple[RandomTerm, ...]]:
    """The label of each row's top-level group, and the random-effects terms; a row has the levels of its cell."""
    words, built = plan.statement.words, plan.ranked.built
    if built and len(cells) < len(plan.cell.levels):
        raise ModelError(
            f"transforms leave no rows in some groups, which the components {', '.join(map(repr, built))} were made "
            "for: leave those rows out of the batches"
        )
    at = _at_cells(plan, cells)
    grouping = grouping_factors(words, at.sources)
    constant = {name for k, name in enumerate(plan.columns) if total.low[k] == total.high[k] != 0}

    def on_rows(term: RandomTerm) -> RandomTerm:
        names = plan.ranked.names(term.vc) if term.vc in built else term.columns
        values = np.ascontiguousarray(Z[:, [plan.columns.index(name) for name in names]])
        first = next((k for k, name in enumerate(names) if name in constant), None)
        return replace(term, codes=term.codes[place], Z=values, intercept=term.intercept if term.vc else first)

    components = plan.statement.components, plan.statement.read, at, grouping, built
    ordinary = random_terms(words, plan.statement.recipe, at, grouping)
    terms = checks.distinct(map(on_rows, [*ordinary, *component_terms(words, *components)]))
    top = None if words.group_name is None else grouping[(words.group_name,)]
    return None if top is None else top.levels.to_numpy()[top.codes[place]], terms


def _at_cells(plan: FirstPass, cells: np.ndarray) -> Evaluated:
    """The labels of the cells, and the names of the columns: their values belong to rows."""
    read, specs = plan.statement.read, plan.statement.recipe.specs
    labels = {
        name: pd.Series(pd.Categorical.from_codes(code[cells], categories=table))
        for name, code, table in zip(plan.cell.sources, plan.cell.decode(), plan.cell.tables, strict=True)
    }
    names = {part: tuple(restore(name, read.aliases) for name in spec.column_names) for part, spec in specs.items()}
    matrices = {
        part: Matrix(columns, np.zeros((len(cells), len(columns))))
        for part, columns in names.items()
        if part[0] in "zv"
    }
    frame = pd.DataFrame(labels)
    rows = DataRows(frame, {}, np.arange(len(cells)))
    return Evaluated(rows, working_frame(frame, labels, read.aliases), matrices, labels)


def _checked(plan: FirstPass, total: CrossSums, rows: tuple, terms: tuple[RandomTerm, ...], groups: Any) -> ModelData:
    """The whole model, after the checks that any model undergoes."""
    y, X, represents = rows
    words, recipe, n = plan.statement.words, plan.statement.recipe, len(y)
    checks.require_variation(np.array([total.low[-1], total.high[-1]]), np.zeros(2), plan.endog_name, total.nobs)
    for term in terms:
        checks.require_levels(term)
        checks.require_fewer_coefficients(term, total.nobs)
    return checks.without_redundant(
        X,
        plan.exog_names,
        total.nobs,
        y=y,
        weights=np.ones(n),
        offset=np.zeros(n),
        terms=terms,
        endog_name=plan.endog_name,
        index=pd.RangeIndex(n),
        rows=np.arange(n),
        frame=None,
        groups=groups,
        group_name=words.group_name,
        formula=words.parts.text,
        recipe=recipe,
        offset_source=plan.offset_source,
        represents=represents,
        log_weights=total.log_weights,
    )
