"""What the data of a model must fulfil before it is fitted, and which fixed-effects columns are redundant."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from jmixed.design.terms import RandomTerm
from jmixed.errors import DataError, ModelError

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
    >>> from jmixed.design.checks import independent_columns
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


def explained(X: np.ndarray, kept: np.ndarray, redundant: np.ndarray) -> np.ndarray | None:
    """What the redundant columns are of those kept, (p, d): columns of X (n, c) at given positions."""
    if not len(redundant):
        return None
    size, others = np.linalg.norm(X[:, kept], axis=0), np.linalg.norm(X[:, redundant], axis=0)
    weights = np.linalg.lstsq(X[:, kept] / size, X[:, redundant], rcond=None)[0]
    return np.where(np.abs(weights) > 1e-10 * others, weights, 0) / size[:, None]


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


def require_rows(n: int, names: Sequence[str]) -> None:
    """More rows than fixed effects, or nothing is left to estimate a variance from."""
    if n <= len(names):
        raise ModelError(
            f"{n} rows cannot determine {len(names)} fixed effects and a residual variance; "
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


def require_identifiable(term: RandomTerm, nobs: int | None = None) -> None:
    """More than one level, and fewer coefficients than rows, of which there are `nobs` if not as many as codes."""
    n, (levels, q) = len(term.codes) if nobs is None else nobs, (len(term.levels), len(term.columns))
    what = f"the random-effects term {term.label!r}" + (f" (component {term.vc!r})" if term.vc else "")
    if q == 0:
        raise ModelError(f"{what} has no columns; use 1 for a random intercept")
    if term.structure == "identity":
        return
    if levels < 2:
        raise ModelError(
            f"{what}: its grouping factor {term.group!r} has one level, {term.levels[0]}; a variance between groups "
            "needs at least two. Check the column, or leave this random effect out",
            page=REFUSED,
        )
    if levels * q >= n:
        raise ModelError(
            f"{what} has {levels * q} coefficients ({levels} levels x {q}) for {n} rows: a random effect with as many "
            "coefficients as rows cannot be told from the residual. Use a coarser grouping factor or fewer columns",
            page=REFUSED,
        )


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
