"""Variances of predictions after a fit of crossed factors without their dense block: a solve for each row asked for.

With P = (Z'WZ + Sigma^-1)^-1 sigma^2 P is the covariance of the random effects given the response and beta. A predictor
x'beta + z'b has the error variance

    sigma^2 z'Pz + d' vcov(beta) d        d = x - (P Z'WX)'z

(Henderson 1975), in which only P z is to be solved for, by the conjugate gradients of the fit.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jmixed.covariance.scales import diagonal_blocks
from jmixed.fit.host import Fit
from jmixed.layout.incidence import Incidence
from jmixed.likelihood.iterative import Operator
from jmixed.likelihood.sparse_moments import SparseMoments, sparse_moments

BATCH = 64
"""Rows whose solves share products."""
MOST = 50_000
"""Coefficients of which all conditional covariances are solved for."""


@dataclass(frozen=True, eq=False)
class SolvedVariances:
    """The equations of all coefficients at a fit, to be solved for the rows that are asked for."""

    rows: Incidence
    fit: Fit
    moments: SparseMoments

    @cached_property
    def operator(self) -> Operator:
        """The eliminated system at the estimated covariances."""
        roots = []
        for label, T in zip(self.rows.labels, self.moments.T, strict=True):
            values, vectors = np.linalg.eigh(self.fit.covariances[label] / self.fit.sigma**2)
            roots.append(np.linalg.solve(T, vectors * np.sqrt(np.maximum(values, 0))))
        by_factor = [diagonal_blocks(*(roots[t] for t in self.rows.factors[f])) for f in self.moments.order]
        return Operator(self.moments, by_factor)

    @cached_property
    def reach(self) -> np.ndarray:
        """P Z'WX (coefficients, p), of preconditioned columns, leaves first."""
        p = len(self.moments.R)
        leaves, core, *_ = self.operator.solve(
            self.moments.B[0][:, :p], np.concatenate([B[:, :p] for B in self.moments.B[1:]])
        )
        return np.concatenate([leaves, core])

    def spread(
        self, X: np.ndarray, codes: Sequence[np.ndarray], Z: Sequence[np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Directions (k, p) in which predictors move with beta, and variances (k,) beside these.

        X (k, p), codes (k,) and Z (k, q) by term; a code of -1 is a level that is not known.
        """
        directions, beside = np.empty(X.shape), np.empty(len(X))
        inverse = np.linalg.inv(self.moments.R)
        size = len(self.moments.B[0])
        for start in range(0, len(X), BATCH):
            part = slice(start, start + BATCH)
            right = self._columns([code[part] for code in codes], [columns[part] for columns in Z])
            leaves, core, *_ = self.operator.solve(right[:size], right[size:])
            beside[part] = np.einsum("ik,ik->k", right, np.concatenate([leaves, core]))
            directions[part] = (X[part] @ inverse - right.T @ self.reach) @ self.moments.R
        return directions, self.fit.sigma**2 * beside

    def level_blocks(self, members: Sequence[int]) -> np.ndarray:
        """Conditional covariances (levels, q, q) of each level's coefficients, for the terms that share a factor."""
        f = next(f for f, terms in enumerate(self.rows.factors) if set(members) == set(terms))
        levels, width = self.rows.counts[f], self.rows.widths[f]
        T = diagonal_blocks(*(self.moments.T[t] for t in members))
        blocks = np.empty((levels, width, width))
        size, k = len(self.moments.B[0]), max(BATCH // width, 1)
        place = self.moments.order.index(f)
        starts = np.cumsum([0, *(len(B) for B in self.moments.B)])
        for start in range(0, levels, k):
            chosen = np.arange(start, min(start + k, levels))
            rank = self.moments.ranks[f][chosen]
            # A column for each coefficient of the levels, which is one there.
            at = starts[place] + (rank[:, None] * width + np.arange(width)).ravel()
            right = np.zeros((starts[-1], len(at)))
            right[at, np.arange(len(at))] = 1
            leaves, core, *_ = self.operator.solve(right[:size], right[size:])
            solved = np.concatenate([leaves, core])[at].reshape(len(chosen), width, len(chosen), width)
            blocks[chosen] = solved[np.arange(len(chosen)), :, np.arange(len(chosen))]
        blocks = self.fit.sigma**2 * (T @ blocks @ T.T)
        return (blocks + blocks.transpose(0, 2, 1)) / 2

    def _columns(self, codes, Z):
        """z (coefficients, k) of some rows, of preconditioned columns, leaves first."""
        moments, out = self.moments, []
        k = len(codes[0])
        for f, rank in zip(moments.order, moments.ranks, strict=True):
            members = self.rows.factors[f]
            table = np.zeros((self.rows.counts[f], self.rows.widths[f], k))
            column = 0
            for t in members:
                known, q = np.flatnonzero(codes[t] >= 0), Z[t].shape[1]
                table[rank[codes[t][known]], column : column + q, known] = Z[t][known] @ moments.T[t]
                column += q
            out.append(table.reshape(-1, k))
        return np.concatenate(out)


def solved_variances(rows: Incidence, fit: Fit) -> SolvedVariances:
    """The equations of a fit, with its cross-products made again."""
    return SolvedVariances(rows, fit, sparse_moments(rows))
