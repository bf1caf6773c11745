"""A design from arrays alone: no formula, no table, no names but those of the terms."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import pandas as pd
from jax.core import Tracer

from jmixed.errors import DataError
from jmixed.formulas import checks
from jmixed.formulas.model_data import RandomTerm
from jmixed.layout.design import Design
from jmixed.layout.stack import stack
from jmixed.runtime.arguments import checked
from jmixed.runtime.memory import roomy
from jmixed.runtime.precision import FLOAT


@dataclass(frozen=True)
class _Rows:
    """What `stack` reads of a model."""

    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    terms: tuple[RandomTerm, ...]
    represents: None = None
    log_weights: float = 0.0


@checked
def design(y, X, groups, Z=None, weights=None, offset=None) -> Design:
    """State a mixed model by arrays, for `jm.estimate` and JAX's transformations.

    All columns of X are kept, collinear ones too. The arrays are copied, in 32 bits if all that are floats are.

    Parameters
    ----------
    y : array (n,)
        Response.
    X : array (n, p)
        Fixed-effects columns, one of ones among them where an intercept is wanted; (n, 0) for none.
    groups : array (n,), or dict of arrays
        Label of each row's group, numbers or text; or several by the term's name.
    Z : array (n, q), or dict of arrays, optional
        Columns of the random effects, with an unstructured covariance; by default ones, a random intercept for every
        array of labels. A dict has the columns by the term's name: with one array of `groups`, terms of that factor
        that are independent of each other; with a dict of them, the columns of those names.
    weights : array (n,), optional
        Prior weights, zero or more.
    offset : array (n,), optional
        Known part of the linear predictor.

    Returns
    -------
    Design
        Terms are called by the names given, or "groups".

    Raises
    ------
    DataError
        When lengths or names do not match, or values are missing, infinite or traced.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> r = np.random.default_rng(0)
    >>> groups, x = np.repeat(np.arange(30), 5), r.normal(size=150)
    >>> y = 1 + 2 * x + r.normal(size=30)[groups] + r.normal(size=150)
    >>> design = jm.design(y, np.column_stack([np.ones(150), x]), groups)
    >>> with jax.enable_x64(True):
    ...     fit = jm.estimate(design)
    >>> np.asarray(fit.beta).round(1).tolist(), fit.b["groups"].shape
    ([0.7, 2.2], (30, 1))
    """
    columns, labels = _terms_of(groups, Z)
    given = {"y": y, "X": X, "weights": weights, "offset": offset, **{f"Z[{name!r}]": z for name, z in columns.items()}}
    arrays = {name: _numbers(name, value) for name, value in given.items() if value is not None}
    floats = [array.dtype for array in arrays.values() if array.dtype.kind == "f"]
    dtype = np.result_type(*floats) if floats else np.dtype(FLOAT)
    n = arrays["y"].shape[0] if arrays["y"].ndim == 1 else None
    if n is None:
        raise DataError(f"y has shape {arrays['y'].shape}; it must be one-dimensional, one number a row")

    def rows(name, default, wide=False):
        array = arrays.get(name)
        array = np.full((n, 1) if wide else n, default) if array is None else array
        array = array[:, None] if wide and array.ndim == 1 else array
        if array.shape[:1] != (n,) or array.ndim != 1 + wide:
            raise DataError(f"{name} has shape {array.shape}, but y has {n} rows: give one entry for each")
        bad = np.flatnonzero(~np.isfinite(array).reshape(n, -1).all(1))
        if len(bad):
            raise DataError(
                f"{name} is missing or infinite in {len(bad)} of {n} rows, the first of them row {bad[0]}: give "
                "numbers, and leave a row out by a weight of zero"
            )
        # Memory that goes on up to the size that programs take: these arrays are not copied again.
        out = roomy(n, *array.shape[1:]) if dtype == FLOAT else np.empty(array.shape, dtype)
        out[:] = array
        return out

    weight = rows("weights", 1)
    if np.any(weight < 0):
        row = np.flatnonzero(weight < 0)[0]
        raise DataError(f"weights holds {weight[row]} in row {row}; weights are zero or more")
    terms, seen = [], {}
    for name, own in labels.items():
        if id(own) not in seen:
            seen[id(own)] = _coded(name, own, n)
        levels, codes = seen[id(own)]
        z = rows(f"Z[{name!r}]", 1, wide=True)
        names = tuple(f"z{j + 1}" for j in range(z.shape[1]))
        terms.append(RandomTerm(str(name), str(name), codes, levels, names, z, intercept=checks.constant_column(z)))
    return stack(_Rows(rows("y", 0), rows("X", 1, wide=True), weight, rows("offset", 0), tuple(terms)))


def _terms_of(groups, Z) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and labels of each term by its name; None for a column of ones."""
    if isinstance(groups, Mapping):
        if not groups:
            raise DataError("groups is empty; give one array of labels at least")
        if Z is None:
            return dict.fromkeys(groups), dict(groups)
        if not isinstance(Z, Mapping):
            if len(groups) > 1:
                raise DataError(
                    f"Z is one array, and groups has the terms {list(groups)}: give a dict of arrays by term"
                )
            return {name: Z for name in groups}, dict(groups)
        if unknown := [name for name in Z if name not in groups]:
            raise DataError(f"Z has columns for {unknown}, but groups has the terms {list(groups)}")
        return {name: Z.get(name) for name in groups}, dict(groups)
    if isinstance(Z, Mapping):
        if not Z:
            raise DataError("Z is empty; leave it out for a random intercept")
        return dict(Z), {name: groups for name in Z}
    return {"groups": Z}, {"groups": groups}


def _numbers(name, value) -> np.ndarray:
    if isinstance(value, Tracer):
        raise DataError(
            f"{name} is a value that JAX is tracing: make the design of numbers, and exchange its arrays inside the "
            "traced function by design.replace",
            page="jax.md",
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is no array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {array.dtype}; it must hold numbers")
    if array.size == 0 and array.ndim == 1:
        raise DataError(f"{name} is empty; give one number for each row")
    if array.ndim not in (1, 2):
        raise DataError(f"{name} has shape {array.shape}; give one row per observation")
    return array


def _coded(name, labels, n) -> tuple[pd.Index, np.ndarray]:
    """Levels, sorted, and the level of each row."""
    if isinstance(labels, Tracer):
        _numbers(f"groups[{name!r}]", labels)
    array = np.asarray(jax.device_get(labels) if isinstance(labels, jax.Array) else labels)
    if array.shape != (n,):
        raise DataError(f"groups has shape {array.shape}, but y has {n} rows: give one label for each")
    missing = np.flatnonzero(pd.isna(array))
    if len(missing):
        raise DataError(f"groups is missing in {len(missing)} of {n} rows, the first of them row {missing[0]}")
    try:
        levels, codes = np.unique(array, return_inverse=True)
    except TypeError:
        kinds = sorted({type(label).__name__ for label in array.tolist()})
        raise DataError(f"groups mixes {' and '.join(kinds)}; give labels of one type") from None
    return pd.Index(levels), codes.astype(np.int32)
