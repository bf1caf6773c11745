"""Cases whose residuals have a structure, and their covariance by dense matrices."""

from dataclasses import dataclass, replace
from typing import Any

import jax.numpy as jnp
import layouts
import numpy as np

from jmixed.residual.registry import STRUCTURES, residual_structure

WORDS = tuple(STRUCTURES)
VISITS = 4
LONGEST = 3
BY_VISIT = "by visit"


@dataclass(frozen=True)
class Residuals:
    """Series of rows with columns of a dispersion: what `stack` reads of them."""

    structure: str
    codes: np.ndarray
    places: np.ndarray
    columns: np.ndarray
    positions: int
    by_position: int = 0

    origins = 0.0

    @property
    def units(self):
        return self.columns.std(axis=0)

    @property
    def count(self):
        return int(self.codes.max()) + 1

    @property
    def form(self):
        """The structure itself."""
        return residual_structure(self.structure, self.columns.shape[1], self.positions, self.by_position)


def residuals(word, inside, columns=2, seed=0):
    """Series of at most three rows of four visits, inside the levels (n,), with rows and visits in no order.

    `columns` are so many of a dispersion, or `BY_VISIT`, one for each visit but the first.
    """
    r, n = np.random.default_rng(seed), len(inside)
    order = np.argsort(inside, kind="stable")
    within = np.empty(n, int)
    within[order] = np.arange(n) - np.searchsorted(inside[order], inside[order])
    codes = np.unique(n * inside + within // LONGEST, return_inverse=True)[1].astype(np.int32)
    places = np.empty(n)
    for series in range(codes.max() + 1):
        rows = np.flatnonzero(codes == series)
        places[rows] = r.permutation(VISITS)[: len(rows)]
    if word == "car1":
        places = 0.7 * places + r.uniform(0, 0.5, size=n)
    longest = VISITS if word in ("us", "toep") else LONGEST
    if columns == BY_VISIT:
        return Residuals(word, codes, places, 1.0 * (places[:, None] == [1, 2, 3]), longest, by_position=VISITS - 1)
    dispersion = np.column_stack([r.integers(0, 2, size=n), r.normal(size=n)])[:, :columns]
    return Residuals(word, codes, places, dispersion, longest)


def case(layout, word, columns=2, seed=0) -> layouts.Case:
    """A case of the layout, with series inside its finest factor; crossed factors have a dispersion alone."""
    plain = layouts.case(layout, seed=seed)
    inside = plain.terms[-1].codes if plain.terms else np.arange(layouts.ROWS) % 7
    return replace(plain, residual=residuals(word, inside, columns, seed))


def take(case, rows):
    """The case with its rows in another order."""
    own = case.residual
    residual = replace(own, codes=own.codes[rows], places=own.places[rows], columns=own.columns[rows])
    return replace(case.take(rows), residual=residual)


def draw_rho(case, seed=0):
    """Parameters in general position, with entries of both signs."""
    return 0.6 * np.random.default_rng(seed + 200).normal(size=case.residual.form.size)


def covariance(case, rho) -> Any:
    """Covariance of the residuals relative to sigma^2, (n, n), from correlations by place; differentiable in rho."""
    own, k = case.residual, case.residual.columns.shape[1]
    sd = jnp.exp(jnp.asarray(own.columns / own.units) @ rho[:k]) / jnp.sqrt(jnp.asarray(case.weights))
    # Rows of other series have a place of their own, whatever the structure makes of it.
    R = own.form.matrix(rho[k:], jnp.asarray(own.places), jnp.asarray(own.places))
    return jnp.where(own.codes[:, None] == own.codes[None], sd[:, None] * R * sd[None], 0)


def relative_covariance(case, psi, rho):
    """V / sigma^2 (n, n), differentiable in the entries of the terms' Sigma and in rho."""
    V, start = covariance(case, rho), 0
    for term in case.terms:
        q, own = term.Z.shape[1], psi[start : start + term.size]
        rows, columns = np.tril_indices(q)
        sigma = jnp.zeros((q, q)).at[rows, columns].set(own).at[columns, rows].set(own)
        V = V + term.same * (term.Z @ sigma @ term.Z.T)
        start += term.size
    return V
