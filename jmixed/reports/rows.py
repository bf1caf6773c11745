"""Rows of data as predictions see them, and their means: the fixed part, and the levels that the model has seen."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.runtime.precision import FLOAT


def fixed_part(spec, beta) -> np.ndarray:
    """``X beta + offset`` of the model's own rows, array (n,)."""
    return spec.X @ beta + spec.offset


def random_part(terms, codes, columns, b) -> np.ndarray:
    """Sum of ``Z b`` over terms, array (k,), from level codes (k,) and columns (k, q); code -1 contributes nothing."""
    total = np.zeros(len(codes[0]) if len(codes) else 0, FLOAT)
    for term, code, Z in zip(terms, codes, columns, strict=True):
        # Code -1 reads the last level, which the mask then removes; unknown levels have mean zero.
        effects = term.known_effects(b[term.label])
        total += np.where(code >= 0, np.einsum("ij,ij->i", Z, effects[code]), 0.0)
    return total


def select_terms(terms, random_effects) -> list[int]:
    """Positions of the terms whose conditional modes a prediction uses: all, none, or those of grouping factors."""
    if isinstance(random_effects, bool | np.bool_):
        return list(range(len(terms))) if random_effects else []
    wanted = [random_effects] if isinstance(random_effects, str) else list(random_effects)
    groups = list(dict.fromkeys(term.group for term in terms))
    unknown = [name for name in wanted if name not in groups]
    if unknown:
        raise DataError(
            f"random_effects={random_effects!r}: {unknown[0]!r} is not a grouping factor of this model; "
            f"use True, False, or names out of {groups}"
        )
    return [k for k, term in enumerate(terms) if term.group in wanted]


@dataclass(frozen=True)
class RowsToPredict:
    """Rows to predict: k of them, with the columns and levels of the model's terms.

    Attributes
    ----------
    X, offset, weights : arrays (k, p), (k,), (k,)
    codes, Z : tuples of int arrays (k,) and of arrays (k, q), one per term
        A code is -1 for a level that is not known, and throughout for a term whose conditional modes are not used.
    index : Index or None
        Labels of the rows.
    missing : bool array (k,)
        Rows with a missing value.
    further : dict of arrays (k, d)
        Columns of the further predictors of a family of responses that a formula states, by name, as far as asked for.
    """

    X: np.ndarray
    offset: np.ndarray
    codes: tuple[np.ndarray, ...]
    Z: tuple[np.ndarray, ...]
    weights: np.ndarray
    index: pd.Index | None
    missing: np.ndarray
    further: Mapping[str, np.ndarray] = field(default_factory=dict)


def in_sample(spec, selected: Collection[int]) -> RowsToPredict:
    """The model's own rows."""
    unknown = np.full(len(spec.y), -1, np.int32)
    codes = tuple(term.codes if k in selected else unknown for k, term in enumerate(spec.terms))
    Z = tuple(term.Z for term in spec.terms)
    named = {} if spec.response is None else {"dispersion": spec.response.dispersion, "zero": spec.response.zero}
    further = {name: part.columns for name, part in named.items() if part is not None}
    return RowsToPredict(spec.X, spec.offset, codes, Z, spec.weights, None, np.zeros(len(spec.y), bool), further)


def mean(spec, fit, rows: RowsToPredict) -> np.ndarray:
    """``X beta + offset + Z b``, array (k,); NaN for rows with a missing value."""
    values = rows.X @ fit.beta + rows.offset
    if len(spec.terms):
        values = values + random_part(spec.terms, rows.codes, rows.Z, fit.b)
    return np.where(rows.missing, np.nan, values)
