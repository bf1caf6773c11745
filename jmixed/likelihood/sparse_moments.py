"""Cross-products of crossed factors as sparse matrices on the host: nothing of the size of a core squared.

The coefficients of one factor, the leaves, are eliminated exactly, as its levels never meet; those of all others are
the core. Compressed rows multiply tall thin arrays at the speed of memory, need no compiling, and let go of Python's
lock, so that threads share a product by its rows. Levels are renumbered by their number of rows, most first, so that
what is read often lies near.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import numpy as np

from jmixed.layout.incidence import Incidence
from jmixed.runtime.precision import FLOAT, double_precision
from jmixed.runtime.threads import threads

CHUNK = 1 << 21
"""Rows, or entries, that are worked on at a time."""
SHARED = 1 << 19
"""Entries from which on threads share a product."""


@dataclass(frozen=True, eq=False)
class Couplings:
    """Z_f'WZ_g of two factors, (levels q_f, levels q_g): the blocks that occur, and products with them.

    Attributes
    ----------
    shape : (int, int, int, int)
        Levels and columns of the first factor, levels and columns of the second.
    indptr, indices : arrays
        Of compressed rows of levels.
    blocks : array (entries, q_f, q_g)
    """

    shape: tuple[int, int, int, int]
    indptr: np.ndarray
    indices: np.ndarray
    blocks: np.ndarray

    @cached_property
    def _by_row(self):
        return _shared(self._matrix)

    @cached_property
    def _by_column(self):
        return _shared(self._matrix.T.tocsr())

    @cached_property
    def _matrix(self):
        from scipy import sparse

        levels, q, others, r = self.shape
        if q == r == 1:
            return sparse.csr_array((self.blocks.ravel(), self.indices, self.indptr), shape=(levels, others))
        return sparse.bsr_array((self.blocks, self.indices, self.indptr), shape=(levels * q, others * r)).tocsr()

    def times(self, X: np.ndarray) -> np.ndarray:
        """The product with X (levels q_g, k)."""
        return _product(self._by_row, X)

    def transposed_times(self, X: np.ndarray) -> np.ndarray:
        """The product of the transpose with X (levels q_f, k)."""
        return _product(self._by_column, X)

    def congruence(self, G: np.ndarray) -> np.ndarray:
        """Sums over the first factor's levels of A'GA (levels of the second, q_g, q_g), G (levels, q_f, q_f)."""
        levels, q, others, r = self.shape
        if q == r == 1:
            return (self._squares.T @ G.reshape(-1)).reshape(-1, 1, 1)
        out = np.zeros((others, r, r))
        for part, row in self._chunks():
            A = self.blocks[part]
            _add(out, self.indices[part], np.einsum("nai,nab,nbj->nij", A, G[row], A, optimize=True))
        return out

    def reversed_congruence(self, P: np.ndarray) -> np.ndarray:
        """Sums over the second factor's levels of APA' (levels of the first, q_f, q_f), P (levels, q_g, q_g)."""
        levels, q, _, r = self.shape
        if q == r == 1:
            return (self._squares @ P.reshape(-1)).reshape(-1, 1, 1)
        out = np.zeros((levels, q, q))
        for part, row in self._chunks():
            A = self.blocks[part]
            _add(out, row, np.einsum("nai,nij,nbj->nab", A, P[self.indices[part]], A, optimize=True))
        return out

    @cached_property
    def _squares(self):
        """The matrix with its entries squared; of counts of one it is the matrix itself."""
        data = self._matrix.data
        return self._matrix if np.all(data == 1) else self._matrix.power(2)

    def squares(self) -> np.ndarray:
        """Sums (q_f, q_g) of the squared entries."""
        return np.einsum("nij,nij->ij", self.blocks, self.blocks)

    def _chunks(self):
        rows = np.repeat(np.arange(len(self.indptr) - 1, dtype=np.int32), np.diff(self.indptr))
        for start in range(0, len(rows), CHUNK):
            part = slice(start, start + CHUNK)
            yield part, rows[part]


def _add(out, index, blocks):
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] += np.bincount(index, blocks[:, i, j], len(out))


def _shared(matrix):
    """A matrix in parts of about as many entries, one for each thread; of few entries one."""
    from scipy import sparse

    many = threads() if matrix.nnz >= SHARED else 1
    cuts = np.searchsorted(matrix.indptr, np.linspace(0, matrix.nnz, many + 1)[1:-1])
    cuts, parts = [0, *cuts.tolist(), matrix.shape[0]], []
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        first, last = matrix.indptr[[begin, end]]
        entries = matrix.data[first:last], matrix.indices[first:last], matrix.indptr[begin : end + 1] - first
        parts.append(sparse.csr_array(entries, shape=(end - begin, matrix.shape[1])))
    return parts


def _product(parts, X):
    if len(parts) == 1:
        return parts[0] @ X
    return np.concatenate(list(_pool().map(lambda part: part @ X, parts)))


@cache
def _pool():
    return ThreadPoolExecutor(threads())


@dataclass(frozen=True, eq=False)
class SparseMoments:
    """Cross-products of preconditioned columns, Z~ = Z T and X~ = X R^-1, with y~ = y - offset - X beta0.

    Attributes
    ----------
    order : tuple of int
        The factors, leaves first; what follows is in this order.
    ranks : tuple of arrays (levels,)
        The number of each level here.
    C : tuple of arrays (levels, q, q)
        Z~'WZ~ of the levels.
    B : tuple of arrays (levels q, p + 1)
        Z~'W[X~ y~].
    A : tuple of Couplings
        Of the leaves with each factor of the core.
    within : dict of Couplings
        Of two factors of the core, by their numbers among those of the core.
    G : array (p + 1, p + 1)
        [X~ y~]'W[X~ y~].
    sizes : tuple of arrays (q,)
        Root mean squares of the columns of Z, by term.
    R, beta0, T, log_weights, nobs
        As of `Moments`.
    """

    order: tuple[int, ...]
    ranks: tuple[np.ndarray, ...]
    C: tuple[np.ndarray, ...]
    B: tuple[np.ndarray, ...]
    A: tuple[Couplings, ...]
    within: dict[tuple[int, int], Couplings]
    G: np.ndarray
    R: np.ndarray
    beta0: np.ndarray
    T: tuple[np.ndarray, ...]
    sizes: tuple[np.ndarray, ...]
    log_weights: float
    nobs: float

    @property
    def entries(self) -> int:
        """Blocks of all couplings."""
        return sum(len(coupling.blocks) for coupling in (*self.A, *self.within.values()))


def sparse_moments(rows: Incidence) -> SparseMoments:
    """The cross-products of a model's rows."""
    T, sizes = zip(*(_preconditioner(rows, t) for t in range(len(rows.structures))), strict=True)
    size = [count * width for count, width in zip(rows.counts, rows.widths, strict=True)]
    order = tuple(sorted(range(len(size)), key=lambda f: -size[f]))
    ranks = tuple(_ranks(rows.codes[f], rows.counts[f]) for f in order)
    # Couplings first: what is as long as the rows comes when their own work is done.
    C, A, within = _couplings(rows, T, order, ranks)
    R, weights = _fixed(rows), _weights(rows)
    logs = 0.0 if weights is None else float(np.sum(np.log(weights)))
    logs, nobs = (logs, len(rows.y)) if rows.totals is None else rows.totals
    # Of the border there is nothing yet.
    none, beta0 = np.empty((0, 0)), np.zeros(len(R))
    known = SparseMoments(order, ranks, C, (), A, within, none, R, beta0, T, sizes, float(logs), float(nobs))
    return of_response(known, rows)


def _couplings(rows, T, order, ranks):
    """C, A and `within` of the cross-products."""
    weights, counts = _weights(rows), [rows.counts[f] for f in order]
    codes = [rank[rows.codes[f]] for f, rank in zip(order, ranks, strict=True)]
    columns = [_columns(rows, T, f) for f in order]

    def couple(f, g):
        return _couple((codes[f], codes[g]), (columns[f], columns[g]), weights, (counts[f], counts[g]))

    C = tuple(_within_levels(code, columns[f], weights, counts[f]) for f, code in enumerate(codes))
    A = tuple(couple(0, f) for f in range(1, len(order)))
    return C, A, {(f - 1, g - 1): couple(f, g) for f in range(1, len(order)) for g in range(f + 1, len(order))}


def _weights(rows):
    """The weights, None where all are one."""
    return None if np.all(rows.weights == 1) else rows.weights


def of_response(known: SparseMoments, rows: Incidence) -> SparseMoments:
    """The cross-products of the rows, of which some are `known` that hold the same columns: all but those of y."""
    weights, beta0 = _weights(rows), _least_squares(rows, known.R)
    fixed, B = _border(rows, known.R, beta0), []
    for f, rank in zip(known.order, known.ranks, strict=True):
        B.append(_with_border(rank[rows.codes[f]], _columns(rows, known.T, f), fixed, weights, rows.counts[f]))
    G = np.array([[_dot(a, b, weights, len(rows.y)) for b in fixed] for a in fixed])
    return replace(known, B=tuple(B), G=G, beta0=beta0)


def _dot(a, b, weights, n):
    """w'(ab) of columns, of which one that is a number stands for a constant."""
    if weights is None and np.ndim(a) == np.ndim(b) == 0:
        return a * b * n
    product = _times(a, b, weights)
    return float(np.sum(product))


def _times(*factors):
    """The product of columns, numbers and Nones, which are ones."""
    there = [factor for factor in factors if factor is not None]
    number = np.prod([factor for factor in there if np.ndim(factor) == 0])
    arrays = [factor for factor in there if np.ndim(factor)]
    if not arrays:
        return float(number)
    product = arrays[0]
    for array in arrays[1:]:
        product = product * array
    return product if number == 1 else product * number


def _constant(column):
    """The number that a column consists of, or the column."""
    first = column[0]
    return float(first) if column[-1] == first and np.all(column == first) else np.ascontiguousarray(column)


def _columns(rows, T, factor):
    """The preconditioned columns of a factor, side by side."""
    columns = []
    for t in rows.factors[factor]:
        Z = rows.Z[t]
        of_term = [Z[:, j] for j in range(Z.shape[1])] if len(T[t]) == 1 else list((Z @ T[t]).T)
        of_term = [_constant(column) for column in of_term]
        columns += [_times(of_term[0], float(T[t][0, 0]))] if len(T[t]) == 1 else of_term
    return columns


def _preconditioner(rows, t):
    """T of a term, and the root mean squares of its columns."""
    structure, Z = rows.structures[t], rows.Z[t]
    gram = np.zeros((structure.q, structure.q))
    for start in range(0, len(Z), CHUNK):
        part = Z[start : start + CHUNK]
        gram += (rows.weights[start : start + CHUNK, None] * part).T @ part
    gram /= len(Z) if rows.totals is None else rows.totals[1]
    size = np.sqrt(np.maximum(np.diag(gram), 0))
    size = np.where(size > 0, size, 1)
    scaled = gram / np.outer(size, size)
    triangle = np.linalg.qr(_root(scaled).T, mode="r")
    triangle = triangle * np.where(np.diag(triangle) < 0, -1, 1)[:, None]
    triangle = np.where(np.diag(triangle) < 1e-7, np.eye(structure.q), triangle)
    with double_precision():
        return np.asarray(structure.preconditioner(size, triangle), FLOAT), np.sqrt(np.maximum(np.diag(gram), 0))


def _root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return vectors * np.sqrt(np.maximum(values, 0))


def _ranks(codes, count):
    """The number of every level when those of most rows come first."""
    rank = np.empty(count, np.int32)
    rank[np.argsort(-np.bincount(codes, minlength=count), kind="stable")] = np.arange(count, dtype=np.int32)
    return rank


def _fixed(rows):
    """The preconditioner R (p, p) of X, by two passes of Cholesky."""
    p = rows.X.shape[1]
    R = np.eye(p)
    for _ in range(2 if p else 0):
        gram, inverse = np.zeros((p, p)), np.linalg.inv(R)
        for start in range(0, len(rows.y), CHUNK):
            part = slice(start, start + CHUNK)
            X = rows.X[part] @ inverse
            gram += (rows.weights[part, None] * X).T @ X
        size = np.sqrt(np.diag(gram))
        R = np.linalg.cholesky(gram / np.outer(size, size)).T * size @ R
    return R


def _least_squares(rows, R):
    """Coefficients (p,) of the response without random effects; X R^-1 has orthonormal columns."""
    inverse, cross = np.linalg.inv(R), np.zeros(len(R))
    for start in range(0, len(rows.y) if len(R) else 0, CHUNK):
        part = slice(start, start + CHUNK)
        weighted = rows.weights[part] * (rows.y[part] - rows.offset[part])
        cross += (rows.X[part] @ inverse).T @ weighted
    return inverse @ cross


def _border(rows, R, beta0):
    """The columns of X~ and y~."""
    inverse = np.linalg.inv(R)
    columns = []
    for j in range(len(inverse)):
        used = np.flatnonzero(inverse[:, j])
        of_column = [_times(_constant(rows.X[:, i]), float(inverse[i, j])) for i in used]
        columns.append(sum(of_column[1:], of_column[0]))
    left = rows.y - rows.offset
    for start in range(0, len(left) if len(beta0) else 0, CHUNK):
        left[start : start + CHUNK] -= rows.X[start : start + CHUNK] @ beta0
    return [*columns, left]


def _within_levels(codes, columns, weights, count):
    q = len(columns)
    out = np.empty((count, q, q))
    for a in range(q):
        for b in range(a + 1):
            out[:, a, b] = out[:, b, a] = _sum_by(codes, _times(columns[a], columns[b], weights), count)
    return out


def _with_border(codes, columns, border, weights, count):
    out = np.empty((count, len(columns), len(border)))
    for a, column in enumerate(columns):
        for b, other in enumerate(border):
            out[:, a, b] = _sum_by(codes, _times(column, other, weights), count)
    return out.reshape(count * len(columns), len(border))


def _sum_by(codes, values, count):
    if np.ndim(values) == 0:
        return values * np.bincount(codes, minlength=count).astype(FLOAT)
    return np.bincount(codes, values, count)


def _couple(codes: Sequence[np.ndarray], columns: Any, weights, counts) -> Couplings:
    """Sum what rows of one pair of levels have; every pair of columns has the same pattern."""
    from scipy import sparse

    (q, r), pattern = map(len, columns), None
    blocks = np.empty((0, q, r))
    for i, left in enumerate(columns[0]):
        for j, right in enumerate(columns[1]):
            values = np.broadcast_to(_times(left, right, weights), codes[0].shape)
            matrix = sparse.coo_array((values, tuple(codes)), shape=tuple(counts)).tocsr()
            matrix.sum_duplicates()
            if pattern is None:
                pattern = matrix
                blocks = matrix.data.reshape(-1, 1, 1) if q == r == 1 else np.empty((matrix.nnz, q, r))
            if q * r > 1:
                blocks[:, i, j] = matrix.data
    assert pattern is not None
    return Couplings((counts[0], q, counts[1], r), pattern.indptr, pattern.indices, blocks)
