"""What the data of a model must fulfil before it is fitted, and which fixed-effects columns are redundant."""

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError, warn
from jmixed.formulas.model_data import ModelData, RandomTerm
from jmixed.formulas.structures import OF_STRUCTURE, UNSTRUCTURED

REDUNDANT = 1e-7
"""Columns of unit length that are closer than this to the span of the columns on their left are redundant."""

SUSPICIOUS = 1e-4
"""Residual lengths below this are measured again by orthogonalisation; cross-products lose half the digits."""

REFUSED = "singular.md#models-that-are-refused"
"""The page about models that nobody can fit."""


def independent_columns(X: np.ndarray) -> np.ndarray:
    """Positions of the columns of X (n, p) that are no combination of columns to their left.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.formulas.checks import independent_columns
    >>> x = np.arange(5.0)
    >>> independent_columns(np.column_stack([np.ones(5), x, 2 * x + 1, x**2]))
    array([0, 1, 3])
    """
    with np.errstate(over="ignore", under="ignore"):
        gram = X.T @ X
    square = np.diagonal(gram)
    if (square > 1e-200).all() and (square < 1e200).all():
        try:
            residual = np.diagonal(np.linalg.cholesky(gram / np.sqrt(square) / np.sqrt(square)[:, None]))
        except np.linalg.LinAlgError:
            residual = np.zeros(1)
        if (residual > SUSPICIOUS).all():
            return np.arange(X.shape[1])
    scale = np.abs(X).max(axis=0, initial=0.0)
    unit = X / np.where(scale > 0, scale, 1.0)
    unit = unit / np.where(scale > 0, np.linalg.norm(unit, axis=0), 1.0)
    return _orthogonalise(np.asarray(np.linalg.qr(unit, mode="r")) if len(X) > X.shape[1] else unit)


def _explained(X: np.ndarray, kept: np.ndarray, redundant: np.ndarray) -> np.ndarray | None:
    """What the redundant columns are of those kept, (p, d): columns of X (n, c) at given positions."""
    if not len(redundant):
        return None
    size, others = np.linalg.norm(X[:, kept], axis=0), np.linalg.norm(X[:, redundant], axis=0)
    weights = np.linalg.lstsq(X[:, kept] / size, X[:, redundant], rcond=None)[0]
    return np.where(np.abs(weights) > 1e-10 * others, weights, 0) / size[:, None]


def without_redundant(
    X: np.ndarray, names: tuple[str, ...], nobs: int, allowed: np.ndarray | None = None, **fields: Any
) -> ModelData:
    """The model whose fixed effects are the independent ones among the allowed columns of X (n, c); others by name."""
    allowed = np.arange(len(names)) if allowed is None else allowed
    candidates = X if len(allowed) == len(names) else np.ascontiguousarray(X[:, allowed])
    chosen = independent_columns(candidates)
    kept = allowed[chosen]
    redundant = np.setdiff1d(allowed, kept) if len(kept) < len(allowed) else allowed[:0]
    exog_names = tuple(names[j] for j in kept)
    require_rows(nobs, exog_names, "a residual variance" if fields.get("response") is None else "random effects")
    return ModelData(
        X=candidates if len(chosen) == len(allowed) else np.ascontiguousarray(candidates[:, chosen]),
        exog_names=exog_names,
        dropped=tuple(names[j] for j in redundant),
        kept=kept,
        redundant=redundant,
        explained=_explained(X, kept, redundant),
        **fields,
    )


def _orthogonalise(columns: np.ndarray) -> np.ndarray:
    """Gram-Schmidt, each column orthogonalised twice, leaving out those of which less than REDUNDANT remains."""
    basis = np.zeros((len(columns), 0))
    kept = []
    for j, column in enumerate(columns.T):
        rest = column - basis @ (basis.T @ column)
        rest = rest - basis @ (basis.T @ rest)
        length = np.linalg.norm(rest)
        if length > REDUNDANT:
            basis = np.column_stack([basis, rest / length])
            kept.append(j)
    return np.array(kept, dtype=np.int64)


def require_rows(n: int, names: Sequence[str], rest: str = "a residual variance") -> None:
    """More rows than fixed effects, or nothing is left to estimate a variance from."""
    if n <= len(names):
        raise ModelError(
            f"{n} rows cannot determine {len(names)} fixed effects and {rest}; "
            f"use more rows or fewer fixed effects (now {', '.join(names[:8])}{', ...' if len(names) > 8 else ''})",
            page=REFUSED,
        )


def require_variation(y: np.ndarray, offset: np.ndarray, name: str, nobs: int | None = None) -> None:
    """A response that varies; `y` may be its least and greatest value of `nobs`."""
    rest = y - offset
    if rest.min() == rest.max():
        what = "minus its offset " if offset.any() else ""
        raise DataError(
            f"the response {name!r} {what}is constant ({rest[0]:g} in all {len(y) if nobs is None else nobs} rows); "
            "there is nothing to model: check the column and the subset"
        )


def require_positive(weights: np.ndarray, positions: np.ndarray) -> None:
    """Weights that are positive."""
    bad = np.flatnonzero(~(weights > 0))
    if len(bad):
        raise DataError(
            f"weights must be positive; {len(bad)} are not, the first is {weights[bad[0]]:g} at row position "
            f"{int(positions[bad[0]])}. Leave these rows out (a weight of zero says that a row does not count)"
        )


def require_levels(term: RandomTerm) -> None:
    """Columns, and more than one level, unless the columns share one variance."""
    what = _named(term)
    if not term.columns:
        raise ModelError(f"{what} has no columns; use 1 for a random intercept")
    if not term.shares_variance and len(term.levels) < 2:
        raise ModelError(
            f"{what}: its grouping factor {term.group!r} has one level, {term.levels[0]}; a variance between groups "
            "needs at least two. Check the column, or leave this random effect out",
            page=REFUSED,
        )


def require_fewer_coefficients(term: RandomTerm, nobs: int) -> None:
    """Fewer coefficients than rows, where the rows themselves are not at hand."""
    if _covariance_steps(term) and not term.shares_variance and _coefficients(term) >= nobs:
        raise ModelError(
            f"{_counted([term], nobs)}: whether they can be told from the residual only the rows can say, of which "
            "from_batches keeps sums. Use mixedlm, a coarser grouping factor or fewer columns",
            page=REFUSED,
        )


def require_identifiable(terms: Sequence[RandomTerm], weights: np.ndarray, check: str) -> None:
    """Random effects that differ from the residual, and that leave it something; with check="ignore" all pass.

    As many coefficients as rows may be told from the residual by the pattern of the variances: by weights that differ,
    or times that differ between levels. More coefficients than rows, of several terms or in every level, that can
    reproduce any response leave a likelihood that may be highest where the residual variance is zero.
    """
    if check not in ("raise", "ignore"):
        raise ModelError(f'check is {check!r}; it must be "raise" or "ignore"')
    for term in terms:
        require_levels(term)
    if check == "ignore":
        return
    n, free = len(weights), [term for term in terms if _covariance_steps(term)]
    insist = "or have it fitted all the same with check='ignore'"
    for term in free:
        beside = [other for other in free if _same_levels(other, term)]
        if sum(map(_coefficients, beside)) >= n and _is_residual(beside, weights):
            raise ModelError(
                f"{_counted(beside, n)}: with some covariance they vary like the residual, so that the two cannot be "
                f"told apart. Use a coarser grouping factor or fewer columns, {insist}",
                page=REFUSED,
            )
    free = [term for term in free if not term.shares_variance]
    for term in free:
        inside = [other for other in free if _is_nested(other, term)]
        several = len(inside) > 1 or len(term.columns) > np.bincount(term.codes).max()
        if several and sum(map(_coefficients, inside)) > n and _reproduce(inside, term.codes):
            raise ModelError(
                f"{_counted(inside, n)}, which reproduce any response: the likelihood may be highest where nothing is "
                f"left for the residual. Leave out a term or columns, use a coarser grouping factor, {insist}",
                page=REFUSED,
            )


def _named(term: RandomTerm) -> str:
    return f"the random-effects term {term.label!r}" + (f" (component {term.vc!r})" if term.vc else "")


def _counted(terms: Sequence[RandomTerm], nobs: int) -> str:
    count = sum(map(_coefficients, terms))
    if len(terms) > 1:
        labels = ", ".join(repr(term.label) for term in terms)
        return f"the random-effects terms {labels} have {count} coefficients for {nobs} rows"
    shape = f"{len(terms[0].levels)} levels x {len(terms[0].columns)}"
    return f"{_named(terms[0])} has {count} coefficients ({shape}) for {nobs} rows"


def _coefficients(term: RandomTerm) -> int:
    return len(term.levels) * len(term.columns)


def _is_nested(inner: RandomTerm, outer: RandomTerm) -> bool:
    """Whether every level of a term lies inside one of another's."""
    owner = np.zeros(len(inner.levels), outer.codes.dtype)
    owner[inner.codes] = outer.codes
    return bool((owner[inner.codes] == outer.codes).all())


def _covariance_steps(term: RandomTerm) -> list[tuple[np.ndarray, np.ndarray]]:
    """The entries (rows, columns) of the lower triangle that move together as a term's covariance D varies.

    None for components of one variance, for covariances that are no linear space, and for levels that are related:
    these differ from the residual.
    """
    meaning, q = OF_STRUCTURE[term.structure], len(term.columns)
    return _steps(meaning.entries, q) if term.relationship is None and q <= meaning.linear else []


@functools.cache
def _steps(entries: str, q: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rows, columns = np.tril_indices(q)
    same = rows == columns
    if entries == "alike":
        return [(rows[which], columns[which]) for which in (same, ~same) if which.any()]
    moving = {"each": np.ones_like(same), "variances": same, "": np.zeros_like(same)}[entries]
    return [(rows[k : k + 1], columns[k : k + 1]) for k in np.flatnonzero(moving)]


def _same_levels(term: RandomTerm, other: RandomTerm) -> bool:
    return len(term.levels) == len(other.levels) and _is_nested(term, other)


def _is_residual(terms: Sequence[RandomTerm], weights: np.ndarray) -> bool:
    """Whether terms of one factor can have the covariance of the residual.

    Covariances are vectors with the product tr(W A W B): is the residual's W^-1 in the span of those Z D Z' of levels?
    """
    codes, levels = terms[0].codes, len(terms[0].levels)
    root = np.sqrt(weights)[:, None]
    Z = [_prepared(root * term.Z, term) * np.sqrt(len(weights)) for term in terms]
    products = np.zeros((levels, *(sum(z.shape[1] for z in Z),) * 2))
    together = np.hstack(Z)
    np.add.at(products, codes, together[:, :, None] * together[:, None])
    directions, start = [], 0
    for term, z in zip(terms, Z, strict=True):
        for a, b in _covariance_steps(term):
            directions.append(np.zeros(products.shape[1:]))
            directions[-1][start + a, start + b] = directions[-1][start + b, start + a] = 1
        start += z.shape[1]
    moved = [direction @ products for direction in directions]
    overlaps = np.array([[np.einsum("lij,lji->", a, b) for b in moved] for a in moved])
    traces = np.array([np.einsum("lii->", a) for a in moved])
    size = np.sqrt(np.maximum(np.diagonal(overlaps), np.finfo(float).tiny))
    solved = np.linalg.lstsq(overlaps / size / size[:, None], traces / size, rcond=1e-12)[0]
    return bool(len(weights) - solved @ (traces / size) < 1e-8 * len(weights))


def _prepared(columns: np.ndarray, term: RandomTerm) -> np.ndarray:
    """A basis of the columns where any is as good, else the columns as they are, of a common size."""
    if term.structure == UNSTRUCTURED:
        return np.linalg.qr(columns)[0]
    return columns / np.linalg.norm(columns) if columns.any() else columns


LARGEST_LEVEL = 1000
"""Rows of a level beyond which random effects are not thought to reproduce them all."""


def _reproduce(terms: Sequence[RandomTerm], codes: np.ndarray) -> bool:
    """Whether the columns of all terms span the rows of every level of the outermost one."""
    order = np.argsort(codes, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(codes[order])) + 1):
        if len(rows) > LARGEST_LEVEL:
            return False
        columns = []
        for term in terms:
            occurring, place = np.unique(term.codes[rows], return_inverse=True)
            indicator = np.eye(len(occurring))[place]
            columns.append((indicator[:, :, None] * term.Z[rows][:, None]).reshape(len(rows), -1))
        if np.linalg.matrix_rank(np.hstack(columns)) < len(rows):
            return False
    return True


def constant_column(values: np.ndarray) -> int | None:
    """Index of a column that has the same value, not zero, in all rows."""
    for j, column in enumerate(values.T):
        if column[0] != 0 and column[0] == column[-1] and (column == column[0]).all():
            return j
    return None


def distinct(terms: Iterable[RandomTerm]) -> tuple[RandomTerm, ...]:
    """Terms with unique labels."""
    seen: dict[str, int] = {}
    out = []
    for term in terms:
        seen[term.label] = count = seen.get(term.label, 0) + 1
        out.append(term if count == 1 else replace(term, label=f"{term.label} ({count})"))
    return tuple(out)


def warn_of_order(label: str, values: pd.Series) -> None:
    """Warn of levels that their order makes neighbours: of text in the order of the alphabet, and beside a gap."""
    categories = values.cat.categories if isinstance(values.dtype, pd.CategoricalDtype) else None
    if categories is not None:
        _warn_of_gaps(label, values)
        if values.cat.ordered:
            return
    there = values.dropna().unique()
    levels = sorted(there) if all(isinstance(level, str) for level in there) else []
    if len(levels) < 3 or (categories is not None and list(categories[categories.isin(levels)]) != levels):
        return
    if levels != sorted(levels, key=_counting) or not any(map(_tells_order, levels)):
        shown = ", ".join(levels[:6]) + (", ..." if len(levels) > 6 else "")
        warn(
            f"{label!r}: the levels of {values.name} are taken in the order of the alphabet: {shown}. Another one is "
            f"stated by pd.Categorical(data[{str(values.name)!r}], [...], ordered=True)",
            UserWarning,
        )


def _tells_order(label: str) -> bool:
    """Whether a label has a number in it, or is a letter."""
    return len(label) == 1 or bool(re.search(r"\d", label))


def _counting(label: str) -> list[tuple[int, str]]:
    """A label as a key that puts Week 2 before Week 12."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", label) if part]


def _warn_of_gaps(label: str, values: pd.Series) -> None:
    """Warn of categories without rows between others: columns are neighbours that were none."""
    codes = np.unique(values.cat.codes)
    codes = codes[codes >= 0]
    gaps = np.setdiff1d(np.arange(codes[0], codes[-1] + 1), codes)
    if len(gaps):
        missing = ", ".join(map(repr, values.cat.categories[gaps][:5])) + (", ..." if len(gaps) > 5 else "")
        warn(f"{label!r}: no row has {missing}; the levels before and after are taken as neighbours", UserWarning)
