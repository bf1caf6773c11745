"""Predictions: the fixed part, and the conditional modes of the levels that the model has seen."""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
import pandas as pd

from jmixed.design.frame import as_frame
from jmixed.design.matrices import new_rows
from jmixed.errors import DataError
from jmixed.precision import FLOAT


def fixed_part(spec, beta) -> np.ndarray:
    """``X beta + offset`` of the model's own rows, array (n,)."""
    return spec.X @ beta + spec.offset


def random_part(terms, codes, columns, b) -> np.ndarray:
    """Sum of ``Z b`` over terms; a level code of -1 contributes nothing.

    Parameters
    ----------
    terms : sequence of RandomTerm
    codes : sequence of int arrays (k,)
    columns : sequence of arrays (k, q)
        Rows of each term's Z.
    b : dict of arrays (L, q), by the term's label

    Returns
    -------
    array (k,)
    """
    total = np.zeros(len(codes[0]) if len(codes) else 0, FLOAT)
    for term, code, Z in zip(terms, codes, columns, strict=True):
        # Code -1 reads the last level, which the mask then removes; unknown levels have mean zero.
        total += np.where(code >= 0, np.einsum("ij,ij->i", Z, b[term.label][code]), 0.0)
    return total


def select_terms(terms, random_effects) -> list[int]:
    """Positions of the terms whose conditional modes a prediction uses.

    Parameters
    ----------
    terms : sequence of RandomTerm
    random_effects : bool, str or collection of str
        True for all terms, False for none, or names of grouping factors.

    Raises
    ------
    DataError
        When a name is not a grouping factor of the model.
    """
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


def in_sample(spec, fit, selected: Collection[int]) -> np.ndarray:
    """Predictions of the model's own rows, array (n,)."""
    terms = [spec.terms[k] for k in selected]
    mean = fixed_part(spec, fit.beta)
    if not terms:
        return mean
    return mean + random_part(terms, [term.codes for term in terms], [term.Z for term in terms], fit.b)


def from_columns(spec, fit, exog) -> np.ndarray | pd.Series:
    """The fixed part for given columns of X, matched by position as in statsmodels.

    Parameters
    ----------
    spec : ModelData
    fit : Fit
    exog : array (k, p) or (p,), or DataFrame

    Raises
    ------
    DataError
        When the number of columns is wrong, or the model has an offset, which columns of X cannot tell.
    """
    index = exog.index if isinstance(exog, pd.DataFrame | pd.Series) else None
    X = np.asarray(exog, FLOAT)
    p = len(fit.beta)
    if X.ndim == 1:
        X = X[:, None] if p == 1 else X[None, :]
        index = None if index is not None and len(index) != len(X) else index
    if X.ndim != 2 or X.shape[1] != p:
        raise DataError(
            f"predict: exog has shape {np.shape(exog)}, but the model needs {p} columns: {list(spec.exog_names)}"
        )
    if np.any(spec.offset):
        raise DataError(
            "predict: the model has an offset, which columns of exog do not carry; "
            "compute exog @ fe_params and add the offset of the new rows"
        )
    values = X @ fit.beta
    return values if index is None else pd.Series(values, index=index)


def from_data(spec, fit, data, selected: Collection[int], new_levels: str) -> pd.Series:
    """Predictions for new rows, through the model's formulas.

    Parameters
    ----------
    spec : ModelData
    fit : Fit
    data : DataFrame or other columns
    selected : positions of the terms whose conditional modes are added
    new_levels : str
        "raise", or "population": a level that the model has not seen contributes nothing.

    Returns
    -------
    Series
        NaN for rows with a missing value.

    Raises
    ------
    DataError
        When `new_levels` is "raise" and a level is unknown.
    """
    terms = tuple(spec.terms[k] for k in selected)
    # Only the terms in use: the columns of other grouping factors need not be there.
    frame = as_frame(data)
    rows = new_rows(replace(spec, terms=terms), frame, random=len(terms) > 0)
    values, missing = rows.X @ fit.beta + rows.offset, rows.missing
    if terms:
        labels = [_label_columns(term, frame) for term in terms]
        missing = np.logical_or.reduce([missing, *(column.isna() for columns in labels for column in columns)])
        if new_levels == "raise":
            _refuse_unknown(terms, rows.codes, labels, missing)
        values = values + random_part(terms, rows.codes, rows.Z, fit.b)
    return pd.Series(np.where(missing, np.nan, values), index=rows.index)


def _label_columns(term, frame):
    """The columns that a term's labels come from, as far as they are plain columns."""
    return [frame[name] for name in term.rebuild.factor.sources if name in frame]


def _refuse_unknown(terms, codes, labels, missing):
    for term, code, columns in zip(terms, codes, labels, strict=True):
        unknown = np.flatnonzero((code < 0) & ~missing)
        if len(unknown):
            known = term.levels[:1].tolist()[0]
            raise DataError(
                f"predict: {_unknown_labels(term, columns, unknown)} not among the levels of {term.group!r} that the "
                f"model was fitted to (such as {known!r}); use new_levels='population' to predict such rows with a "
                "random effect of zero"
            )


def _unknown_labels(term, columns, unknown):
    """The first few unknown labels, or their number when the factor is not made of plain columns."""
    if len(columns) != len(term.rebuild.factor.sources):
        return f"{len(unknown)} rows have a level"
    # A label on its own keeps its type: the text '7' is no level where the number 7 is.
    whole = columns[0].tolist() if len(columns) == 1 else None
    found = (":".join(str(column.iloc[row]) for column in columns) if whole is None else whole[row] for row in unknown)
    labels = list(dict.fromkeys(found))
    more = f" and {len(labels) - 5} more are" if len(labels) > 5 else " is" if len(labels) == 1 else " are"
    return ", ".join(repr(label) for label in labels[:5]) + more
