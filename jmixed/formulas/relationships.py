"""Levels with a known covariance: matrices with labels, as the caller has them, become the roots that a model takes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.factors import Factor, label_kinds
from jmixed.formulas.pedigrees import Pedigree
from jmixed.runtime.precision import FLOAT

PAGE = "relationships.md"
SYMMETRIC = 1e-8
"""How far, relative to the largest entry, two mirrored entries may be apart."""
ROUNDING = 1e-10
"""An eigenvalue below this part of the largest one counts as none."""
LARGE = 1500
"""Levels with rows from which on a sparse inverse is left sparse."""
MOST = 20_000
"""Levels of which a dense matrix is made, 3 GB."""


@dataclass(frozen=True, eq=False)
class KnownMatrix:
    """A covariance of levels, or its inverse, as it was given."""

    labels: pd.Index  # (N,)
    matrix: Any  # (N, N), an array or a sparse one
    inverse: bool
    what: str  # how messages call it
    checked: bool = False  # whether it is known to be positive definite


@dataclass(frozen=True, eq=False)
class Relationship:
    """The known covariance K = L L' of a factor's levels, and what it says of levels without rows.

    With b = L u, the effects of the others are ``spread @ u`` and a rest that is independent of all the rows.
    """

    root: np.ndarray  # (levels, levels) L, lower triangular
    others: pd.Index  # (k,) labels that K has beside those of the factor
    spread: np.ndarray  # (k, levels)
    rest: np.ndarray  # (k,) variances of the rests, relative to those of the term

    def match(self, codes: np.ndarray, labels: Sequence[pd.Series | np.ndarray]) -> np.ndarray:
        """Codes (n,) in which the others follow the factor's own levels; -1 stays for labels that K has not.

        Labels are those of the factor's sources.
        """
        return _match(codes, labels, len(self.root), self.others)

    @property
    def size(self) -> int:
        """How many independent numbers the effects of the factor's levels are made of."""
        return len(self.root)

    def drawn(self, normal: np.ndarray) -> np.ndarray:
        """Effects (n, levels, q) with the known covariance, from independent ones (n, size, q)."""
        return np.einsum("lk,nkq->nlq", self.root, normal)

    def all_roots(self) -> np.ndarray:
        """Of all levels, (levels + k, levels): b = this times u, as far as the rows tell."""
        return np.vstack([self.root, self.spread])

    def effects(self, b: np.ndarray) -> np.ndarray:
        """Effects (levels + k, ...) of all levels from those of the factor's own (levels, ...)."""
        from scipy.linalg import solve_triangular

        u = solve_triangular(self.root, b.reshape(len(b), -1), lower=True)
        return np.concatenate([b, (self.spread @ u).reshape(len(self.others), *b.shape[1:])])


@dataclass(frozen=True, eq=False)
class SparseRelationship:
    """The sparse inverse of the known covariance of a factor's levels, and of levels without rows."""

    precision: Any  # sparse (levels + k, levels + k), the factor's own levels first
    others: pd.Index  # (k,)

    @property
    def root(self) -> None:
        """None: a root of the covariance would be dense."""
        return None

    def match(self, codes: np.ndarray, labels: Sequence[pd.Series | np.ndarray]) -> np.ndarray:
        """As `Relationship.match`."""
        return _match(codes, labels, self.precision.shape[0] - len(self.others), self.others)

    def effects(self, b: np.ndarray) -> np.ndarray:
        """As `Relationship.effects`: those of the others are their means given the factor's own."""
        from scipy.sparse.linalg import splu

        levels, width = len(b), b.reshape(len(b), -1)
        precision = self.precision.tocsr()
        if not len(self.others):
            return b
        right = -(precision[levels:, :levels] @ width)
        rest = splu(precision[levels:, levels:].tocsc(), permc_spec="MMD_AT_PLUS_A", **SYMMETRIC_FACTOR).solve(right)
        return np.concatenate([b, rest.reshape(-1, *b.shape[1:])])

    @property
    def size(self) -> int:
        """As of a `Relationship`: one for each level, and for each of the others."""
        return self.precision.shape[0]

    def drawn(self, normal: np.ndarray) -> np.ndarray:
        """As `Relationship.drawn`."""
        from scipy.sparse.linalg import splu, spsolve_triangular

        factor = splu(self.precision.tocsc(), permc_spec="MMD_AT_PLUS_A", **SYMMETRIC_FACTOR)
        n, size, q = normal.shape
        # With the factorisation P' K^-1 P = L D L', effects are P L'^-1 D^-1/2 times the numbers.
        scaled = np.moveaxis(normal, 1, 0).reshape(size, n * q) / np.sqrt(factor.U.diagonal())[:, None]
        drawn = spsolve_triangular(factor.L.T.tocsr(), scaled, lower=False, unit_diagonal=True)
        return np.moveaxis(drawn[factor.perm_c].reshape(size, n, q), 0, 1)[:, : size - len(self.others)]


SYMMETRIC_FACTOR: dict[str, Any] = {"diag_pivot_thresh": 0.0, "options": {"SymmetricMode": True}}
"""How a sparse definite matrix is factorised: without pivots, which are positive."""


def _match(codes, labels, levels, others):
    whole = labels[0] if len(labels) == 1 else [":".join(map(str, row)) for row in zip(*labels, strict=True)]
    place = others.get_indexer(pd.Index(np.asarray(whole), tupleize_cols=False))
    return np.where((codes < 0) & (place >= 0), levels + place, codes).astype(np.int32)


def known_matrices(relationship: Any, relationship_inverse: Any) -> dict[str, KnownMatrix]:
    """What ``relationship=`` and ``relationship_inverse=`` give, by the factor's name; checked apart from any data."""
    known: dict[str, KnownMatrix] = {}
    for argument, value in (("relationship", relationship), ("relationship_inverse", relationship_inverse)):
        if value is None:
            continue
        if not isinstance(value, Mapping):
            raise DataError(
                f"{argument} is a {type(value).__name__}; give a mapping of a grouping factor to its matrix, as in "
                f"{argument}={{'animal': A}}",
                page=PAGE,
            )
        for name, matrix in value.items():
            if name in known:
                raise DataError(
                    f"the factor {name!r} has a matrix in relationship= and one in relationship_inverse=; give one",
                    page=PAGE,
                )
            known[str(name)] = _known(f"{argument}[{name!r}]", matrix, argument == "relationship_inverse")
    return known


def _known(what: str, given: Any, inverse: bool) -> KnownMatrix:
    from scipy import sparse

    if isinstance(given, KnownMatrix):
        return given
    if isinstance(given, Pedigree):
        # A pedigree knows both; its inverse is sparse.
        return KnownMatrix(given.labels, given.inverse, True, what, checked=True)
    if isinstance(given, pd.DataFrame):
        labels, matrix = given.index, _in_order(what, given)
    elif isinstance(given, tuple | list) and len(given) == 2:
        labels, matrix = _pair(what, *given)
    else:
        raise DataError(
            f"{what} is a {type(given).__name__}; give a DataFrame with the levels as its index and its columns, or a "
            "pair (matrix, labels), of which the matrix may be sparse, or what jm.pedigree returns",
            page=PAGE,
        )
    if not len(labels) or matrix.ndim != 2 or matrix.shape != (len(labels),) * 2:
        raise DataError(
            f"{what} has the shape {matrix.shape} and {len(labels)} labels; it must be square, levels x levels"
        )
    if labels.has_duplicates:
        raise DataError(f"{what} has the label {labels[labels.duplicated()][0]!r} twice; each level is there once")
    if matrix.dtype.kind not in "biuf":
        raise DataError(f"{what} holds values of type {matrix.dtype}; give numbers")
    matrix = matrix.astype(FLOAT)
    entries: Any = matrix.data if sparse.issparse(matrix) else matrix
    if not np.all(np.isfinite(entries)):
        raise DataError(f"{what} has missing or infinite entries; fill them in before the model is stated")
    _require_symmetric(what, matrix, labels)
    return KnownMatrix(labels, matrix, inverse, what)


def _pair(what: str, matrix: Any, labels: Any) -> tuple[pd.Index, Any]:
    from scipy import sparse

    if not isinstance(labels, list | tuple | np.ndarray | pd.Index | pd.Series) or np.ndim(labels) != 1:
        raise DataError(f"{what}: the labels of (matrix, labels) are {labels!r}; give a list of the levels")
    index = pd.Index(np.asarray(labels, dtype=object) if isinstance(labels, list | tuple) else labels).infer_objects()
    if sparse.issparse(matrix):
        return index, sparse.csr_array(matrix)
    try:
        return index, np.asarray(matrix)
    except ValueError:
        raise DataError(f"{what}: the matrix of (matrix, labels) has rows of different lengths") from None


def _in_order(what: str, frame: pd.DataFrame) -> np.ndarray:
    """The entries of a frame with its columns in the order of its index."""
    if frame.index.has_duplicates or frame.columns.has_duplicates:
        labels = frame.index if frame.index.has_duplicates else frame.columns
        raise DataError(f"{what} has the label {labels[labels.duplicated()][0]!r} twice; each level is there once")
    place = frame.columns.get_indexer(frame.index)
    if len(frame.columns) != len(frame.index) or (place < 0).any():
        missing = frame.index[place < 0]
        if len(missing):
            shown = f"{missing[0]!r} of its index is no column"
        else:
            extra = frame.columns[frame.index.get_indexer(frame.columns) < 0]
            shown = f"{extra[0]!r} of its columns is not in its index"
        raise DataError(
            f"{what}: index and columns of the DataFrame must be the same levels, and {shown}; where the matrix was "
            "read from a file, give index_col=0 and make both labels of one type"
        )
    return frame.to_numpy()[:, place]


def _require_symmetric(what: str, matrix: Any, labels: pd.Index) -> None:
    from scipy import sparse

    apart = abs(matrix - matrix.T)
    if apart.max() <= SYMMETRIC * abs(matrix).max():
        return
    if sparse.issparse(apart):
        entries = apart.tocoo()
        k = int(np.argmax(entries.data))
        i, j = int(entries.row[k]), int(entries.col[k])
    else:
        i, j = map(int, np.unravel_index(np.argmax(apart), apart.shape))
    raise DataError(
        f"{what} is not symmetric: {matrix[i, j]:.6g} at ({labels[i]!r}, {labels[j]!r}), and {matrix[j, i]:.6g} the "
        "other way round. A covariance is the same both ways: take (A + A.T) / 2 if the difference is rounding"
    )


def require_factors(known: Mapping[str, KnownMatrix], names: Sequence[str]) -> None:
    """Refuse matrices of factors that the model has not."""
    for name, matrix in known.items():
        if name not in names:
            raise DataError(
                f"{matrix.what}: {name!r} is no grouping factor of this model; its factors are {list(names)}. Name one "
                f"of them, add a term such as (1 | {name}) to the formula, or leave the matrix out",
                page=PAGE,
            )


def relationships_of(
    known: Mapping[str, KnownMatrix], factors: Mapping[str, Factor]
) -> dict[str, Relationship | SparseRelationship]:
    """The relationships of factors' levels, by their names.

    Where one is sparse, all are: the equations of all effects are then eliminated together.
    """
    require_factors(known, list(factors))
    if any(_is_large(matrix, factors[name]) for name, matrix in known.items()):
        return {name: _sparse_relationship(matrix, factors[name]) for name, matrix in known.items()}
    return {name: relationship_of(matrix, factors[name]) for name, matrix in known.items()}


def _is_large(known: KnownMatrix, grouping: Factor) -> bool:
    """Whether a sparse inverse is quicker than a dense matrix of the levels with rows."""
    from scipy import sparse

    return known.inverse and sparse.issparse(known.matrix) and len(grouping.levels) > LARGE


def _sparse_relationship(known: KnownMatrix, grouping: Factor) -> SparseRelationship:
    from scipy import sparse

    place, rest = _places(known, grouping)
    order = np.concatenate([place, rest])
    if known.inverse and sparse.issparse(known.matrix):
        if not known.checked:
            _sparse_root(known)
        precision = known.matrix.tocsr()[order][:, order]
    else:
        matrix = known.matrix.toarray() if sparse.issparse(known.matrix) else known.matrix
        root = _root(known, matrix[np.ix_(order, order)], len(order))
        from scipy.linalg import cho_solve

        dense = cho_solve((root, True), np.eye(len(order))) if not known.inverse else matrix[np.ix_(order, order)]
        precision = sparse.csr_array((dense + dense.T) / 2)
    return SparseRelationship(precision, known.labels[rest])


def relationship_of(known: KnownMatrix, grouping: Factor) -> Relationship:
    """The relationship of a factor's levels by a known matrix of these and others."""
    place, rest = _places(known, grouping)
    of_levels, across, others = _covariances(known, place, rest)
    root = _root(known, of_levels, len(known.labels))
    from scipy.linalg import solve_triangular

    spread = solve_triangular(root, across.T, lower=True).T
    left = others - np.einsum("ij,ij->i", spread, spread)
    # None is left where the levels determine another one, as its clones do.
    if (left < -SYMMETRIC * abs(others)).any():
        raise _not_definite(known, known.matrix, len(known.labels))
    return Relationship(root, known.labels[rest], np.ascontiguousarray(spread), np.maximum(left, 0))


def _places(known: KnownMatrix, grouping: Factor) -> tuple[np.ndarray, np.ndarray]:
    """Where the levels of a factor stand in a matrix, and where the others do."""
    place = known.labels.get_indexer(grouping.levels)
    if (place < 0).any():
        raise _unknown_levels(known, grouping, grouping.levels[place < 0])
    return place, np.setdiff1d(np.arange(len(known.labels)), place)


def _unknown_levels(known: KnownMatrix, grouping: Factor, unknown: pd.Index) -> DataError:
    kinds = [next(iter(label_kinds(labels.tolist()[:1]))) for labels in (unknown, known.labels)]
    shown = ", ".join(repr(label) for label in unknown.tolist()[:5]) + (", ..." if len(unknown) > 5 else "")
    if kinds[0] != kinds[1]:
        hint = (
            f"the levels are {kinds[0]} and the matrix's labels {kinds[1]} ({known.labels.tolist()[0]!r}): convert one "
            "of them"
        )
    else:
        hint = "give a matrix that has them, or leave their rows out"
    return DataError(
        f"{known.what}: {len(unknown)} of {len(grouping.levels)} levels of {grouping.name!r} are not in the matrix: "
        f"{shown}; {hint}",
        page=PAGE,
    )


def _covariances(known: KnownMatrix, place: np.ndarray, rest: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K of the levels, of the others with these, and its diagonal for the others."""
    from scipy import sparse

    if len(place) > MOST:
        raise ModelError(
            f"{known.what}: the matrix of {len(place):,} levels would be dense, more than {MOST:,}; give the sparse "
            "inverse (relationship_inverse=, or a pedigree by jm.pedigree)",
            page=PAGE,
        )
    if not known.inverse:
        matrix = known.matrix.tocsr() if sparse.issparse(known.matrix) else known.matrix
        of_levels, across = matrix[place][:, place], matrix[rest][:, place]
        if sparse.issparse(matrix):
            of_levels, across = of_levels.toarray(), across.toarray()
        return of_levels, across, matrix.diagonal()[rest]
    solve = _solver(known)
    columns = solve(place)
    diagonal = np.empty(len(rest), FLOAT)
    for start in range(0, len(rest), 1024):
        part = rest[start : start + 1024]
        diagonal[start : start + 1024] = solve(part)[part, np.arange(len(part))]
    of_levels = columns[place]
    return (of_levels + of_levels.T) / 2, columns[rest], diagonal


def _solver(known: KnownMatrix) -> Any:
    """Columns of the matrix whose inverse is known."""
    from scipy import sparse
    from scipy.linalg import cho_solve

    size = len(known.labels)
    if not sparse.issparse(known.matrix):
        factor = _root(known, known.matrix, size), True
        return lambda places: cho_solve(factor, np.eye(size)[:, places])
    factor = _sparse_root(known)
    return lambda places: factor.solve(_unit_columns(size, places))


def _unit_columns(size: int, places: np.ndarray) -> np.ndarray:
    columns = np.zeros((size, len(places)), FLOAT)
    columns[places, np.arange(len(places))] = 1
    return columns


def _sparse_root(known: KnownMatrix) -> Any:
    """The factorisation of a sparse inverse, without pivots: those of a definite matrix are positive."""
    from scipy.sparse.linalg import splu

    try:
        factor = splu(known.matrix.tocsc(), permc_spec="MMD_AT_PLUS_A", **SYMMETRIC_FACTOR)
        pivots = factor.U.diagonal()
        sound = np.array_equal(factor.perm_r, factor.perm_c) and pivots.min() > ROUNDING * pivots.max()
    except RuntimeError:
        sound = False
    if not sound:
        raise _not_definite(known, known.matrix, len(known.labels))
    return factor


def _root(known: KnownMatrix, matrix: np.ndarray, size: int) -> np.ndarray:
    """The Cholesky factor of a dense matrix, or the error that it has none."""
    try:
        root = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        raise _not_definite(known, matrix, size) from None
    pivots = np.diagonal(root) ** 2 / np.diagonal(matrix)
    if pivots.min() <= ROUNDING:
        raise _not_definite(known, matrix, size)
    return root


def _not_definite(known: KnownMatrix, matrix: Any, size: int) -> DataError:
    from scipy import sparse
    from scipy.sparse.linalg import eigsh

    if sparse.issparse(matrix) and size > 2000:
        values = np.sort(eigsh(matrix.tocsc(), 1, which="SA", return_eigenvectors=False))
    else:
        values = np.linalg.eigvalsh(matrix.toarray() if sparse.issparse(matrix) else matrix)
    rounding = ROUNDING * max(values[-1], 0)
    few, least = int(np.sum(values <= rounding)), values[0] if abs(values[0]) > rounding else 0.0
    several = f" ({few} are not above zero)" if few > 1 else ""
    return DataError(
        f"{known.what} is not positive definite: its smallest eigenvalue is {least:.3g}{several}. Levels that are "
        "the same, as clones or duplicates, belong under one label; to a matrix of markers a small multiple of the "
        "identity is usually added, A + 0.01 * np.eye(len(A))",
        page=PAGE,
    )
