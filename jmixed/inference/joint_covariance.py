"""The joint covariance of the fixed effects and the random effects, and what it says about linear combinations.

With relative covariances known, Henderson's equations give (Henderson 1975, Biometrics 31; Robinson 1991, Stat. Sci. 6)

    Var [beta^ - beta; b^ - b] = sigma^2 [M, -M K'; -K M, P + K M K'],    P = (D^-1 + Z'WZ)^-1,   K = P Z'W X,

with D the prior covariance relative to sigma^2 and sigma^2 M the covariance of beta^. A row with columns x and z has
the variance sigma^2 (h M h' + z P z') with h = x - z K. P is never formed: the factor with most coefficients is
eliminated first, its levels being independent of each other given the others, and the rest falls into the components of
the levels that occur together. Only forms that hold at a singular D are used, and the coefficients are those of columns
Z T that are uncorrelated over all rows: far from a slope's origin D would lose what is left of it beside the data.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from jmixed.covariance.scales import diagonal_blocks, preconditioners
from jmixed.covariance.structure import factors_of_theta
from jmixed.fit.host import Fit
from jmixed.layout.design import Design
from jmixed.layout.stack import ModelRows
from jmixed.runtime.precision import FLOAT


class RelatedLevels(Protocol):
    """How the levels of a term are related; the fields are those of `Relationship` on the side of tables."""

    @property
    def root(self) -> np.ndarray: ...
    @property
    def rest(self) -> np.ndarray: ...
    def all_roots(self) -> np.ndarray: ...


ENTRIES = 2**24
"""Entries of a dense table that are made at a time."""

FULL = 0.1
"""Arrays are multiplied as dense ones where the shares of their entries that are stored multiply to more than this."""


@dataclass(frozen=True, eq=False)
class JointCovariance:
    """Covariance of the estimates of beta and of the predictions of b, N coefficients in all, given the parameters.

    The coefficients b~ belong to columns Z T; b = T b~. Those of related levels, with the covariance K = L L', are of
    independent ones, b = L T b~. All covariances among the attributes are over sigma^2.

    Attributes
    ----------
    M : array (p, p)
        Covariance of the fixed effects.
    places : tuple of int arrays (levels, q), one per term
        Where a term's coefficients stand in the vector of all: those of the first factor come first.
    first, rest : sparse arrays (N1, N1), (N2, N2)
        Conditional covariance of the first factor's coefficients given all others, and that of the others.
    coupling, cross : sparse array (N1, N2), array (N, p)
        Z'WZ between the first factor's coefficients and the others, and Z'WX.
    priors, bases : tuples of arrays (q, q), one per term
        Covariances of the random effects, and T.
    spreads : tuple of (array (levels + k, levels) or None), one per term
        L, and below it what it is for levels without rows that are related to the others.
    rests : tuple of (array (levels + k,) or None), one per term
        Variances, relative to those of the term, of what the others do not tell of a level's effects.
    """

    sigma: float
    M: np.ndarray
    places: tuple[np.ndarray, ...]
    first: Any
    coupling: Any
    rest: Any
    priors: tuple[np.ndarray, ...]
    bases: tuple[np.ndarray, ...]
    cross: np.ndarray
    spreads: tuple[np.ndarray | None, ...] = ()
    rests: tuple[np.ndarray | None, ...] = ()

    @property
    def size(self) -> int:
        """Number of random coefficients."""
        return self.first.shape[0] + self.rest.shape[0]

    @cached_property
    def K(self) -> np.ndarray:
        """P Z'WX, array (N, p)."""
        return self.times(self.cross)

    def times(self, B) -> np.ndarray:
        """P B for B (N, r)."""
        split = self.first.shape[0]
        leading = self.first @ B[:split]
        others = self.rest @ (B[split:] - self.coupling.T @ leading)
        return np.vstack([leading - self.first @ (self.coupling @ others), others])

    def rows(self, codes, columns, count: int) -> Any:
        """Rows of Z T, sparse (k, N), of so many rows, from the levels (k,) and columns (k, q) of each term.

        Level -1 leaves a term out.
        """
        columns = [Z @ T for Z, T in zip(columns, self.bases, strict=True)]
        return _rows(self.places, codes, columns, self.size, count, self.spreads)

    def rows_of(self, data: ModelRows) -> Any:
        """The same of the model's own rows."""
        return self.rows([term.codes for term in data.terms], [term.Z for term in data.terms], len(data.y))

    def original(self, B) -> list[np.ndarray]:
        """Coefficients b from b~, B (N, r): one array (levels, q, r) per term."""
        b = [np.einsum("ij,ljr->lir", T, B[place]) for T, place in zip(self.bases, self.places, strict=True)]
        roots = [None if spread is None else spread[: len(u)] for spread, u in zip(self._spreads, b, strict=True)]
        return [u if root is None else np.tensordot(root, u, 1) for u, root in zip(b, roots, strict=True)]

    @property
    def _spreads(self):
        return self.spreads or (None,) * len(self.places)

    def variances(self, X, Z) -> np.ndarray:
        """Variances (k,) of x (beta^ - beta) + z (b^ - b) for X (k, p) and Z of `rows`, in squared response units."""
        h = X - Z @ self.K
        return self.sigma**2 * (np.einsum("ij,jk,ik->i", h, self.M, h) + self.conditional_variances(Z))

    def conditional_variances(self, Z) -> np.ndarray:
        """z P z' for the rows of Z, array (k,), over sigma^2."""
        split = self.first.shape[0]
        leading = Z[:, :split] @ self.first
        total = np.asarray(leading.multiply(Z[:, :split]).sum(axis=1)).ravel()
        others = (Z[:, split:] - leading @ self.coupling).tocsr()
        step = max(1, ENTRIES // max(others.shape[1], 1))
        for start in range(0, others.shape[0], step):
            part = others[start : start + step]
            total[start : start + step] += np.asarray((part @ self.rest).multiply(part).sum(axis=1)).ravel()
        return total

    def rest_variances(self, codes, columns) -> np.ndarray:
        """Variances (k,) of what is left of z b for levels without rows once those of their relatives are known."""
        rests = self.rests or (None,) * len(codes)
        parts = [
            np.zeros(len(variances)) if rest is None else np.where(code < 0, 0.0, rest[np.maximum(code, 0)] * variances)
            for code, variances, rest in zip(codes, self._own_variances(columns), rests, strict=True)
        ]
        return self.sigma**2 * np.sum(parts, axis=0)

    def _own_variances(self, columns):
        """z D z' of each term, array (k,), over sigma^2."""
        terms = zip(self.priors, columns, self.bases, strict=True)
        return [np.einsum("ij,jk,ik->i", Z @ T, prior, Z @ T) for prior, Z, T in terms]

    def level_blocks(self, members) -> np.ndarray:
        """Conditional covariances of each level's coefficients for terms that share a factor: (levels, q, q).

        Levels without rows that are related to the others follow.
        """
        places = np.concatenate([self.places[t] for t in members], axis=1)
        spread, q = self._spreads[members[0]], places.shape[1]
        levels = len(places) if spread is None else len(spread)
        of_rows = np.repeat(np.arange(levels), q)
        unit = _rows([places], [of_rows], [np.tile(np.eye(q), (levels, 1))], self.size, levels * q, (spread,))
        split = self.first.shape[0]
        leading = _times(unit[:, :split], self.first)
        others = (unit[:, split:] - _times(leading, self.coupling)).tocsr()
        blocks = np.empty((levels, q, q), FLOAT)
        for i in range(q):
            reached = _times(others[i::q], self.rest)
            for j in range(q):
                direct = leading[i::q].multiply(unit[j::q, :split]).sum(axis=1)
                blocks[:, i, j] = np.asarray(direct).ravel() + np.asarray(reached.multiply(others[j::q]).sum(1)).ravel()
        if self.rests and (rest := self.rests[members[0]]) is not None:
            blocks += rest[:, None, None] * diagonal_blocks(*(self.priors[t] for t in members))
        T = diagonal_blocks(*(self.bases[t] for t in members))
        return self.sigma**2 * (T @ blocks @ T.T)

    def dense(self) -> np.ndarray:
        """The whole matrix (p + N, p + N): beta first, then the coefficients term by term, level by level."""
        p = len(self.M)
        K = np.concatenate([np.zeros((0, p)), *(np.vstack([*part]) for part in self.original(self.K))])
        if not self.size:
            return self.sigma**2 * self.M
        half = np.concatenate([part.reshape(-1, self.size) for part in self.original(self.times(np.eye(self.size)))])
        P = np.concatenate([part.reshape(-1, len(half)) for part in self.original(half.T)])
        cross = -self.M @ K.T
        return self.sigma**2 * np.block([[self.M, cross], [cross.T, (P + P.T) / 2 - K @ cross]])


def joint_covariance(
    design: Design, codes, fit: Fit, related: Sequence[RelatedLevels | None] = (), weights: np.ndarray | None = None
) -> JointCovariance:
    """The joint covariance at a fit; `codes` (n,) are the levels of the rows, one array per term.

    `related` says of each term how its levels are related. `weights` (n,) are those of the rows where some are
    negative, which those of a design are not.
    """
    of_rows = np.asarray(design.weights if weights is None else weights)
    structures, counts = design.layout.terms, dict(enumerate(design.counts))
    factors = sorted(range(len(counts)), key=lambda f: (-counts[f] * design.layout.factor_width(f), f))
    places, size, split = [np.empty((0, 0), np.int64)] * len(structures), 0, 0
    for f in factors:
        width, inner = design.layout.factor_width(f), 0
        for t in design.layout.factors[f]:
            q = structures[t].q
            places[t] = size + width * np.arange(counts[f])[:, None] + inner + np.arange(q)
            inner += q
        size += width * counts[f]
        split = split or size
    spreads = tuple(None if kin is None else kin.all_roots() for kin in related)
    rests = tuple(None if kin is None else np.append(np.zeros(len(kin.root)), kin.rest) for kin in related)
    bases, priors, Z = _orthogonal(design, places, codes, fit, size, spreads)
    weighted = Z.multiply(of_rows[:, None]).tocsr()
    products, prior = _times(Z.T, weighted), _block_diagonal(places, priors, size)
    first = _conditional(prior[:split, :split], products[:split, :split])
    coupling = products[:split, split:]
    left = products[split:, split:] - _times(coupling.T, first @ coupling)
    rest = _conditional(prior[split:, split:], left)
    M = fit.vcov_beta / fit.sigma**2
    of_first = fit.sigma, M, tuple(places), first, coupling, rest, priors, bases, weighted.T @ design.X
    return JointCovariance(*of_first, spreads, rests)


def conditional_covariance(
    design: Design,
    places: Sequence[np.ndarray],
    codes: Sequence[np.ndarray],
    fit: Fit,
    related: Sequence[RelatedLevels | None],
    weights: np.ndarray | None,
) -> Any:
    """Conditional covariance of the random coefficients given the parameters, a sparse array (N, N).

    It is as dense as rows join coefficients, directly or through others: for coefficients that fall into many groups.
    `places` (levels, q) say where those of each term stand, `codes` (n,) are the levels of the rows, `weights` as of
    `joint_covariance`.
    """
    of_rows = np.asarray(design.weights if weights is None else weights)
    size = sum(place.size for place in places)
    spreads = tuple(None if kin is None else kin.root for kin in related)
    bases, priors, Z = _orthogonal(design, places, codes, fit, size, spreads)
    products = _times(Z.T, Z.multiply(of_rows[:, None]))
    every = [np.repeat(np.arange(len(place)), place.shape[1]) for place in places]
    columns = [np.tile(T, (len(place), 1)) for T, place in zip(bases, places, strict=True)]
    # A term's rows one after the other, and then in the places of its coefficients.
    by_term = [
        _rows([place], [level], [column], size, place.size, spreads[k : k + 1])
        for k, (place, level, column) in enumerate(zip(places, every, columns, strict=True))
    ]
    from scipy import sparse

    back = sparse.vstack(by_term).tocsr()[np.argsort(np.concatenate([place.ravel() for place in places]))]
    conditional = _conditional(_block_diagonal(places, priors, size), products)
    return fit.sigma**2 * _times(_times(back, conditional), back.T)


def _orthogonal(design, places, codes, fit, size, spreads) -> tuple[tuple, tuple, Any]:
    """T of each term, the prior covariances (q, q) over sigma^2 in columns Z T, and these columns, sparse (n, N)."""
    columns = [np.asarray(design.Z[label]) for label in design.labels]
    bases, factors = preconditioners(design), factors_of_theta(design.layout.terms, np.asarray(fit.theta))
    roots = [np.linalg.solve(T, factor) for T, factor in zip(bases, factors, strict=True)]
    Z = _rows(places, codes, [Z @ T for Z, T in zip(columns, bases, strict=True)], size, len(design.y), spreads)
    return bases, tuple(root @ root.T for root in roots), Z


def _rows(places, codes, columns, size, count, spreads):
    from scipy import sparse

    if not len(codes):
        return sparse.csr_array((count, size), dtype=FLOAT)
    index, values = [], []
    for place, code, Z, spread in zip(places, codes, columns, spreads or (None,) * len(codes), strict=True):
        level, entries = np.maximum(code, 0), np.where((code >= 0)[:, None], Z, 0.0)
        if spread is None:
            index.append(place[level])
            values.append(entries)
        else:
            index.append(np.broadcast_to(place.ravel(), (count, place.size)))
            values.append((spread[level][:, :, None] * entries[:, None]).reshape(count, -1))
    index, values = np.concatenate(index, axis=1), np.concatenate(values, axis=1)
    pointers = np.arange(count + 1) * index.shape[1]
    return sparse.csr_array((values.ravel(), index.ravel(), pointers), shape=(count, size))


def _block_diagonal(places, matrices, size):
    """A matrix (q, q) of each term at the places of each of its levels."""
    from scipy import sparse

    if not len(places):
        return sparse.csr_array((size, size), dtype=FLOAT)
    rows, columns, values = [], [], []
    for place, matrix in zip(places, matrices, strict=True):
        q = place.shape[1]
        rows.append(np.repeat(place, q, axis=1).ravel())
        columns.append(np.tile(place, (1, q)).ravel())
        values.append(np.tile(matrix.ravel(), len(place)))
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(size, size))


def _times(left, right):
    """A product, sparse; of arrays that are full, as those of related levels, by way of dense ones."""
    from scipy import sparse

    if left.nnz * right.nnz > FULL * np.prod(left.shape, dtype=float) * np.prod(right.shape, dtype=float):
        return sparse.csr_array(left.toarray() @ right.toarray())
    return (left @ right).tocsr()


def _conditional(prior, products):
    """(I + D C)^-1 D for sparse D and C, component by component; components of one size together."""
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components

    size = prior.shape[0]
    if not size:
        return sparse.csr_array((0, 0), dtype=FLOAT)
    prior, products = prior.tocoo(), products.tocoo()
    joined = sparse.coo_array(
        (
            np.ones(prior.nnz + products.nnz, np.int8),
            (np.concatenate([prior.row, products.row]), np.concatenate([prior.col, products.col])),
        ),
        shape=prior.shape,
    )
    count, component = connected_components(joined.tocsr(), directed=False)
    width = np.bincount(component, minlength=count)
    order = np.argsort(component, kind="stable")
    position = np.empty(size, np.int64)
    position[order] = np.arange(size) - np.repeat(np.cumsum(width) - width, width)
    # Every component is a dense square in one long vector.
    base = np.cumsum(width**2) - width**2

    def squares(matrix):
        place = base[component[matrix.row]] + position[matrix.row] * width[component[matrix.row]] + position[matrix.col]
        return np.bincount(place, matrix.data, minlength=int(np.sum(width**2)))

    D, C = squares(prior), squares(products)
    rows, columns, values = [], [], []
    start = np.cumsum(width) - width
    for k in np.unique(width):
        alike = np.flatnonzero(width == k)
        index = base[alike, None] + np.arange(k * k)
        relative, cross = D[index].reshape(-1, k, k), C[index].reshape(-1, k, k)
        solved = np.linalg.solve(np.eye(k) + relative @ cross, relative)
        members = order[start[alike, None] + np.arange(k)]
        rows.append(np.repeat(members, k, axis=1).ravel())
        columns.append(np.tile(members, (1, k)).ravel())
        values.append(((solved + solved.transpose(0, 2, 1)) / 2).ravel())
    entries = (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns)))
    return sparse.csr_array(entries, shape=(size, size))
