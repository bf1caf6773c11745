"""Arrays in, without words: statsmodels' array interface as a `ModelData`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.formulas import checks
from jmixed.formulas.components import of_columns
from jmixed.formulas.factors import Factor, compress, factor
from jmixed.formulas.frame import (
    complete_rows,
    numbers,
    one_dimensional,
    refuse_tracer,
    reordered,
    require_finite,
    require_missing,
)
from jmixed.formulas.model_data import ModelData, RandomTerm
from jmixed.formulas.recipe import Matrix
from jmixed.runtime.precision import FLOAT


@dataclass(frozen=True)
class _Block(Matrix):
    """The columns of a variance component on all rows, with the names that each group has for them."""

    inner: tuple[tuple[str | None, ...], ...]


def from_arrays(
    endog: Any,
    exog: Any,
    groups: Any,
    exog_re: Any = None,
    exog_vc: Any = None,
    missing: str = "none",
    weights: Any = None,
    offset: Any = None,
    check: str = "raise",
) -> ModelData:
    """Build a model from arrays; each error says what to do.

    Parameters
    ----------
    endog : array (n,)
    exog : array (n, p) or DataFrame
    groups : array (n,)
    exog_re : array (n, q) or DataFrame, optional
        Random-effects columns with an unstructured covariance; a random intercept if there is no `exog_vc` either.
    exog_vc : optional
        Variance components: an object with ``names, colnames, mats`` where ``mats[k][i]`` has the columns of component
        k for the rows of group i (groups sorted), or a mapping {name: {group: matrix}}.
    missing, weights, offset, check
        As of `jmixed.mixedlm`.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.formulas.statement import from_arrays
    >>> model = from_arrays(np.array([1.0, 2.0, 4.0, 3.0]), np.ones((4, 1)), np.array([1, 1, 2, 2]))
    >>> model.exog_names, model.terms[0].columns
    (('const',), ('Intercept',))
    """
    require_missing(missing)
    arrays = {"endog": endog, "exog": exog, "exog_re": exog_re, "weights": weights, "offset": offset}
    blocks = {name: _matrix(value, name) for name, value in arrays.items() if value is not None}
    labels = _labels(groups)
    n = _same_length(blocks, labels)
    _same_rows(endog, {"exog": exog, "exog_re": exog_re, "groups": groups, "weights": weights, "offset": offset})
    labelled = np.flatnonzero(labels.notna().to_numpy())
    components = _components(exog_vc, factor("Group", labels.iloc[labelled]), labelled, n)
    keep = _complete({**blocks, **{f"exog_vc[{name}]": b for name, b in components.items()}}, labels, missing)
    top = factor("Group", labels.iloc[keep])
    before = factor("Group", labels.iloc[labelled]).levels
    narrow = {name: Matrix(b.names, b.values[keep]) for name, b in blocks.items()}
    terms = _random_effects(narrow.get("exog_re"), bool(components), top)
    for name, block in components.items():
        inner = tuple(block.inner[i] for i in before.get_indexer(top.levels))
        terms.append(_component(name, _Block(block.names, block.values[keep], inner), top))
    index = endog.index if isinstance(endog, (pd.Series, pd.DataFrame)) else pd.RangeIndex(n)
    model = _model(narrow, tuple(terms), labels, keep, index[keep], check)
    return replace(model, left_out=n - model.nobs)


def _matrix(value: Any, what: str) -> Matrix:
    """Any array as columns of floats with names."""
    refuse_tracer(value, what)
    if isinstance(value, pd.DataFrame):
        columns = [numbers(value.iloc[:, j], f"{what} column {name!r}") for j, name in enumerate(value.columns)]
        values = np.column_stack(columns) if columns else np.empty((len(value), 0))
        return Matrix(tuple(str(name) for name in value.columns), values)
    if isinstance(value, pd.Series):
        values = numbers(value, what)[:, None]
        return Matrix(_names(values, what) if value.name is None else (str(value.name),), values)
    array = np.ma.filled(np.ma.asarray(value, FLOAT), np.nan) if np.ma.isMaskedArray(value) else np.asarray(value)
    if array.dtype.kind not in "iufb":
        raise DataError(
            f"{what} has dtype {array.dtype}; it must hold numbers: convert it, for example with astype(float)"
        )
    if array.ndim not in (1, 2):
        raise DataError(f"{what} has shape {array.shape}; it must be one- or two-dimensional, one row per observation")
    values = np.ascontiguousarray(array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0), FLOAT)
    return Matrix(_names(values, what), values)


def _names(values: np.ndarray, what: str) -> tuple[str, ...]:
    """Names of columns that have none, as statsmodels gives them."""
    width = values.shape[1]
    if what == "endog":
        return ("y",)
    if what == "exog_re":
        return tuple(f"x_re{j + 1}" for j in range(width))
    names = [f"x{j + 1}" for j in range(width)]
    constant = np.flatnonzero((values == values[:1]).all(axis=0)) if len(values) else []
    if len(constant):
        names = [f"x{j + 1}" for j in range(width - 1)]
        names.insert(int(constant[0]), "const")
    return tuple(names)


def _labels(groups: Any) -> pd.Series:
    if groups is None:
        raise DataError("groups is missing; give one label for each row")
    if isinstance(groups, pd.Series):
        return groups.reset_index(drop=True)
    return pd.Series(groups if isinstance(groups, pd.Categorical) else one_dimensional(groups, "groups"))


def _same_length(blocks: Mapping[str, Matrix], labels: pd.Series) -> int:
    n = len(blocks["endog"].values)
    if not n:
        raise DataError("endog is empty; a model needs more rows than it has coefficients")
    if "exog" not in blocks:
        raise DataError("exog is missing; give the fixed-effects columns, for example np.ones((len(endog), 1))")
    for name, size in {**{name: len(b.values) for name, b in blocks.items()}, "groups": len(labels)}.items():
        if size != n:
            raise DataError(f"{name} has {size} rows but endog has {n}; they must match row by row")
    for name in ("endog", "weights", "offset"):
        if name in blocks and blocks[name].values.shape[1] != 1:
            raise DataError(f"{name} has shape {blocks[name].values.shape}; it must be one column of numbers")
    return n


def _same_rows(endog: Any, others: Mapping[str, Any]) -> None:
    """Labelled columns have the rows of a labelled response: those of `exog` exactly, others in no other order."""
    labels = {"endog": endog, **others}
    labels = {name: table.index for name, table in labels.items() if isinstance(table, pd.Series | pd.DataFrame)}
    rows = labels.pop("endog", None)
    for name, index in labels.items():
        if rows is not None and (reordered(index, rows) or (name == "exog" and not index.equals(rows))):
            raise DataError(
                f"the row labels of {name} are not those of endog ({index[:3].tolist()}, ... and {rows[:3].tolist()}, "
                f"...): take both from one table, or give np.asarray({name}) if its rows are in the order of endog"
            )


def _components(exog_vc: Any, top: Factor, labelled: np.ndarray, n: int) -> dict[str, _Block]:
    """Variance components on all rows, sorted by name; `labelled` are the rows that have a group."""
    if exog_vc is None:
        return {}
    order = labelled[np.argsort(top.codes, kind="stable")]
    rows = np.split(order, np.cumsum(np.bincount(top.codes))[:-1])
    components = {}
    for name, matrices, names in sorted(_per_group(exog_vc, top.levels), key=lambda component: str(component[0])):
        if len(matrices) != len(rows):
            raise DataError(
                f"exog_vc {name!r} has {len(matrices)} matrices for {len(rows)} groups; it needs one for each"
            )
        width = max(m.shape[1] for m in matrices)
        values = np.full((n, width), np.nan)
        for level, places, matrix in zip(top.levels, rows, matrices, strict=True):
            if len(matrix) != len(places):
                raise DataError(f"exog_vc {name!r} has {len(matrix)} rows for group {level!r}, which has {len(places)}")
            values[places] = 0.0
            values[places, : matrix.shape[1]] = matrix
        inner = tuple(tuple(str(c) for c in labels) + (None,) * (width - len(labels)) for labels in names)
        components[str(name)] = _Block(_widest(names), values, inner)
    return components


def _widest(names: Sequence[Sequence[Any]]) -> tuple[str, ...]:
    return tuple(str(column) for column in max(names, key=len))


def _per_group(exog_vc: Any, levels: pd.Index) -> list[tuple[Any, list[np.ndarray], list[Sequence[Any]]]]:
    """Name, matrix of each group, and column names of each group."""
    if isinstance(exog_vc, Mapping):
        out = []
        for name, by_group in exog_vc.items():
            lost = [level for level in levels if level not in by_group]
            if lost:
                raise DataError(
                    f"exog_vc[{name!r}] has no matrix for the group {lost[0]!r}; it needs one for every group"
                )
            of_levels = [by_group[level] for level in levels]
            names = [list(getattr(m, "columns", range(np.shape(m)[1] if np.ndim(m) == 2 else 1))) for m in of_levels]
            out.append((name, [_dense(m) for m in of_levels], names))
        return out
    if not all(hasattr(exog_vc, name) for name in ("names", "colnames", "mats")):
        raise DataError(
            f"exog_vc is a {type(exog_vc).__name__}; it must have names, colnames and mats, or be a mapping"
        )
    return [
        (name, [_dense(m) for m in mats], [list(c) for c in columns])
        for name, columns, mats in zip(exog_vc.names, exog_vc.colnames, exog_vc.mats, strict=True)
    ]


def _dense(matrix: Any) -> np.ndarray:
    array = np.asarray(matrix.toarray() if hasattr(matrix, "toarray") else matrix, dtype=FLOAT)
    return array[:, None] if array.ndim == 1 else array


def _complete(blocks: Mapping[str, Matrix], labels: pd.Series, missing: str) -> np.ndarray:
    """Positions of the rows without missing values in any array."""
    masks = {"groups": labels.isna().to_numpy()}
    masks |= {name: np.asarray(np.isnan(block.values).any(axis=1)) for name, block in blocks.items()}
    keep = complete_rows(masks, np.arange(len(labels)), missing)
    if not len(keep):
        raise DataError("no rows are left after leaving out those with missing values; look at the arrays")
    return keep


def _random_effects(block: Matrix | None, components: bool, top: Factor) -> list[RandomTerm]:
    if components and (block is None or not block.names):
        return []
    if block is None:
        label, block = "1 | Group", Matrix(("Intercept",), np.ones((len(top.codes), 1)))
    else:
        label = f"0 + {' + '.join(block.names)} | Group"
    constant = checks.constant_column(block.values)
    return [RandomTerm(label, top.name, top.codes, top.levels, block.names, block.values, intercept=constant)]


def _component(name: str, block: _Block, top: Factor) -> RandomTerm:
    """A component as the levels of a factor when its columns are indicators, else as columns with one variance."""
    label, values = f"{name} | Group", block.values
    if values.shape[1] == 1:
        return of_columns(name, label, block, block.inner, top, intercept=checks.constant_column(values))
    if ((values == 0) | (values == 1)).all() and (values.sum(1) == 1).all():
        return _indicators(name, label, block, top)
    return of_columns(name, label, block, block.inner, top)


def _indicators(name: str, label: str, block: _Block, top: Factor) -> RandomTerm:
    width = block.values.shape[1]
    cells, codes = compress(top.codes * np.int64(width) + block.values.argmax(axis=1), len(top.levels) * width)
    outer, column = cells // width, cells % width
    constant = len(top.levels) == 1
    inner = tuple((block.inner[g][j],) for g, j in zip(outer, column, strict=True))
    labels = [cell if constant else f"{top.levels[g]}:{cell}" for g, (cell,) in zip(outer, inner, strict=True)]
    return RandomTerm(
        label=label,
        group=name if constant else f"{top.name}:{name}",
        codes=codes,
        levels=pd.Index(labels, dtype=object),
        columns=("Intercept",),
        Z=np.ones((len(codes), 1)),
        vc=name,
        intercept=0,
        parents=outer.astype(np.int32),
        inner=inner,
    )


def _model(
    blocks: Mapping[str, Matrix],
    terms: tuple[RandomTerm, ...],
    labels: pd.Series,
    keep: np.ndarray,
    index: pd.Index,
    check: str,
) -> ModelData:
    y, right = blocks["endog"].values[:, 0], blocks["exog"]
    n = len(y)
    weights = blocks["weights"].values[:, 0] if "weights" in blocks else np.ones(n)
    offset = blocks["offset"].values[:, 0] if "offset" in blocks else np.zeros(n)
    for name, block in blocks.items():
        require_finite(block.values, [f"{name} {column!r}" for column in block.names], keep)
    checks.require_positive(weights, keep)
    checks.require_variation(y, offset, blocks["endog"].names[0])
    for term in terms:
        require_finite(term.Z, term.columns, keep)
    checks.require_identifiable(terms, weights, check)
    return checks.without_redundant(
        right.values,
        right.names,
        n,
        y=y,
        weights=weights,
        offset=offset,
        terms=checks.distinct(terms),
        endog_name=blocks["endog"].names[0],
        index=index,
        rows=keep,
        frame=None,
        groups=np.asarray(labels.iloc[keep]),
        group_name="Group",
        offset_source="" if "offset" in blocks else None,
    )
