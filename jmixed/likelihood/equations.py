"""Henderson's equations, sparse: random effects with a sparse inverse relationship, of a hundred thousand levels.

With b = (I (x) lambda) u, relative covariance Sigma = lambda lambda' of a level, and Q the inverse covariance of u (the
identity, or K^-1 (x) I of related levels), the coefficients are eliminated together, by

    F = Q + Lambda'C Lambda        log|V W| = log|F| - log|Q|        K = B'Lambda F^-1 Lambda'B

F is as sparse as Q and C = Z'WZ are, and is defined at a singular Sigma (Henderson 1975, Biometrics 31, 423-447). Its
log-determinant has the selected inverse for its derivative (see `jmixed.algebra.sparse`), and the derivatives in psi
are those through the Cholesky factors of Sigma.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh
from jmixed.algebra.sparse import (
    SparseFactor,
    factorise,
    invert,
    log_determinant,
    moved_inverse,
    selected_inverse,
    solve,
    times,
)
from jmixed.covariance.structure import block_diagonal
from jmixed.likelihood.jets import Jet
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.stages import covariances_of

FLOOR = 1e-8
"""What is added to a singular covariance, in columns of unit size: a root of zero has no derivatives. Values and first
derivatives are brought back by the next ones, so that it shows in second derivatives at a zero alone."""


def _in_covariances(function) -> Callable[..., Any]:
    """``function(roots, factor, moments, ...)`` as one of (covariances, roots, factor, moments, ...).

    Derivatives flow through `covariances`; of `roots`, any square roots of them, only the value is used. `factor` is F
    at these roots.
    """

    @jax.custom_jvp
    def in_covariances(covariances, roots, factor, *others):
        return function(roots, factor, *others)

    @in_covariances.defjvp
    def tangents_of(primals, tangents):
        covariances, _, _, *others = primals
        floors = [_floor(sigma) for sigma in covariances]

        def at(covariances, moments, *others):
            roots = _cholesky(covariances, floors)
            return function(roots, _factor(roots, moments), moments, *others)

        _, out = jax.jvp(at, (covariances, *others), (tangents[0], *tangents[3:]))
        return in_covariances(*primals), out

    return in_covariances


def reduce_equations(covariances, roots, moments: Moments):
    """Eliminate all coefficients: (G, logdet, pieces), as `gaussian.reduce`; the pieces are Lambda U by factor.

    Derivatives flow through `covariances`; of `roots`, any square roots of them, only the value is used.
    """
    return _reduced(covariances, roots, _factor(roots, moments), moments)


@_in_covariances
def _reduced(roots, factor, moments):
    border = _scaled(roots, moments.B, moments.layout)
    U = solve(factor, joined(border))
    explained = joined(border).T @ U
    G = moments.G - (explained + explained.T) / 2
    return G, log_determinant(factor), tuple(_scaled(roots, apart(U, moments.layout), moments.layout, False))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Eliminated:
    """F at square roots of the covariances, eliminated, for what is asked of it more than once.

    Derivatives flow through `covariances`, which may be singular; where there are none, through the roots.
    """

    covariances: Any
    roots: Any
    factor: SparseFactor
    moments: Moments

    @property
    def logdet(self):
        """log|F|."""
        if self.covariances is None:
            return log_determinant(self.factor)
        return _log_determinant(self.covariances, self.roots, self.factor, self.moments)

    def solve(self, border) -> list[jax.Array]:
        """P B by factor, (q, r, levels), of borders B likewise, with P = Lambda F^-1 Lambda'."""
        if self.covariances is None:
            return _solved(self.roots, self.factor, self.moments, border)
        return _solved_in_covariances(self.covariances, self.roots, self.factor, self.moments, border)


def eliminated(covariances, roots, moments: Moments) -> Eliminated:
    """Eliminate all coefficients at any square roots of the covariances; at None, at those of derivatives."""
    if roots is None:
        covariances, roots = None, _cholesky(covariances, [_floor(sigma) for sigma in covariances])
    return Eliminated(covariances, roots, _factor(roots, moments), moments)


@_in_covariances
def _log_determinant(roots, factor, moments):
    return log_determinant(factor)


def _solved(roots, factor, moments, border):
    layout = moments.layout
    solved = solve(factor, joined(_scaled(roots, border, layout)))
    return _scaled(roots, apart(solved, layout), layout, False)


_solved_in_covariances = _in_covariances(_solved)


def away_from_singular(psi, terms):
    """What to add to psi (m,) so that no covariance is singular, and no floor is called for."""
    return 2 * _floors(psi, terms)[0]


def equations_jets(psi, moments: Moments, exact: jax.Array | bool):
    """Jets, in all directions of psi, of log|V W| and of G = [X~ y~]'V^-1[X~ y~].

    Where `exact` is false the second derivatives of log|V W| are zero and cost nothing. With entries F_k and borders
    b_k in direction k, U = F^-1 b and R_k = b_k - F_k U,

        logdet_k = <F^-1, F_k>                 logdet_kl = <F^-1, F_kl> + <(F^-1)_k, F_l>
        K_k = b_k'U + U'R_k                    K_kl = R_k'F^-1 R_l + U'b_kl - U'F_kl U / 2, and its transpose
    """
    layout = moments.layout
    shift, floors = _floors(psi, layout.terms)

    def at(psi):
        roots = _cholesky(covariances_of(psi, layout.terms), floors)
        return _entries(roots, moments), joined(_scaled(roots, moments.B, layout))

    equations = _Equations(at, psi + shift)
    values, border = at(psi + shift)
    factor = factorise(moments.index.system.plan, values)
    logdet, K = _log_determinant_jet(equations, factor, exact), _explained_jet(equations, factor, border)
    G = Jet(moments.G - K.value, -K.first, -K.second)
    return _back(logdet, shift), _back(G, shift)


class _Equations(NamedTuple):
    """Entries and border of F as a function ``at(psi)``, at a psi (m,)."""

    at: Callable[[Any], tuple[Any, Any]]
    psi: Any

    @property
    def units(self):
        """The directions, (m, m)."""
        return jnp.eye(len(self.psi), dtype=self.psi.dtype)

    def slope(self, direction, psi=None):
        """First derivatives in a direction, at psi or at another one."""
        return jax.jvp(self.at, (self.psi if psi is None else psi,), (direction,))[1]

    def slopes(self):
        """First derivatives in all directions."""
        return jax.vmap(self.slope)(self.units)

    def over_pairs(self, function):
        """``function(k, l, F_kl, b_kl)`` for all pairs of directions, (m, m, ...)."""
        m = len(self.psi)
        pairs = np.tril_indices(m)
        place = np.zeros((m, m), int)
        place[pairs] = place[pairs[::-1]] = np.arange(len(pairs[0]))

        def of_pair(pair):
            first, second = self.units[pair[0]], self.units[pair[1]]
            bends = jax.jvp(lambda psi: self.slope(first, psi), (self.psi,), (second,))[1]
            return function(pair[0], pair[1], *bends)

        return jax.lax.map(of_pair, jnp.stack(pairs, axis=1))[place]


def _log_determinant_jet(equations: _Equations, factor, exact) -> Jet:
    plan, F = factor.plan, equations.slopes()[0]
    # An entry stands for its mirror image, too.
    counts = jnp.where(plan.rows == plan.columns, 1, 2).astype(F.dtype)[: F.shape[1]]
    inverse = invert(factor)
    counted = counts * inverse.entries

    def curvature():
        traces = (counts[None] * jax.lax.map(partial(moved_inverse, inverse), F)) @ F.T
        return (traces + traces.T) / 2 + equations.over_pairs(lambda _, other, F_2, b_2: jnp.sum(counted * F_2))

    def none():
        return jnp.zeros((len(F), len(F)), F.dtype)

    second = curvature() if exact is True else jax.lax.cond(exact, curvature, none)
    return Jet(log_determinant(factor), F @ counted, second)


def _explained_jet(equations: _Equations, factor, border) -> Jet:
    """Of K, symmetric."""
    (F, b), product, (size, width) = equations.slopes(), partial(times, factor.plan), border.shape
    m = len(F)

    def left(U):
        return b - jax.vmap(product, (0, None))(F, U)

    def solved(U, is_first):
        # One traced solve for both right-hand sides: solves take most of the time to compile.
        right = jnp.where(is_first, jnp.broadcast_to(border[None], b.shape), left(U))
        x = solve(factor, jnp.moveaxis(right, 0, 1).reshape(size, m * width)).reshape(size, m, width)
        return x[:, 0], x

    _, (first, H) = jax.lax.scan(solved, jnp.zeros_like(border), np.array([True, False]))
    U, H = first[:, 0], jnp.moveaxis(H, 1, 0)
    R = left(U)

    def bend(row, column, F_2, b_2):
        half = R[row].T @ H[column] + U.T @ b_2 - U.T @ product(F_2, U) / 2
        return half + half.T

    K, slope = border.T @ U, jnp.einsum("knr,ns->krs", b, U) + jnp.einsum("nr,kns->krs", U, R)
    return Jet((K + K.T) / 2, (slope + jnp.swapaxes(slope, 1, 2)) / 2, equations.over_pairs(bend))


def conditional_covariances(roots, moments: Moments):
    """Covariances given the response, over sigma^2, of the effects of every level of each factor, (q, q, levels)."""
    inverse, start = selected_inverse(_factor(roots, moments)), len(moments.index.system.prior)
    roots, out = _by_factor(roots, moments.layout), []
    for root, C in zip(roots, moments.C, strict=True):
        i, j = np.tril_indices(len(root))
        blocks = inverse[start : start + len(i) * C.shape[2]].reshape(len(i), -1)
        place = np.zeros((len(root), len(root)), int)
        place[i, j] = place[j, i] = np.arange(len(i))
        out.append(jnp.einsum("ia,abg,jb->ijg", root, blocks[place], root))
        start += blocks.size
    return out


def _floors(psi, terms):
    """What to add to psi (m,), and to the covariance of each term, so that none is singular."""
    shifts, floors = [], []
    for term, sigma in zip(terms, covariances_of(psi, terms), strict=True):
        floor = _floor(sigma)
        identity = term.psi(jnp.eye(term.q, dtype=psi.dtype))
        shifts.append(floor * identity if term.is_linear else jnp.zeros_like(identity))
        floors.append(jnp.zeros_like(floor) if term.is_linear else floor)
    return jnp.concatenate(shifts), floors


def _floor(sigma):
    """What to add to the diagonal of a covariance that is singular."""
    sigma = jax.lax.stop_gradient(sigma)
    return jnp.where(jnp.min(eigh(sigma)[0]) < FLOOR, FLOOR, 0).astype(sigma.dtype)


def _cholesky(covariances, floors):
    sigmas = zip(covariances, floors, strict=True)
    return [jnp.linalg.cholesky(sigma + floor * jnp.eye(len(sigma), dtype=sigma.dtype)) for sigma, floor in sigmas]


def _back(jet: Jet, shift) -> Jet:
    """A jet at a place from that at a shifted one: by the derivatives there, as far as these are known."""
    slope = jnp.tensordot(shift, jet.first, 1)
    bend = jnp.tensordot(shift, jet.second, 1)
    return Jet(jet.value - slope + jnp.tensordot(shift, bend, 1) / 2, jet.first - bend, jet.second)


def _by_factor(roots, layout):
    """Square roots of the relative covariance of each factor's levels, from those of the terms."""
    return [block_diagonal([roots[t] for t in members]) for members in layout.factors]


def _factor(roots, moments: Moments) -> SparseFactor:
    """F at square roots of the terms' covariances, eliminated."""
    return factorise(moments.index.system.plan, _entries(roots, moments))


def _entries(roots, moments: Moments):
    """The entries of F, in the order of its plan's pattern."""
    system, roots = moments.index.system, _by_factor(roots, moments.layout)
    parts = [jnp.asarray(system.prior).astype(moments.G.dtype)]
    for root, C in zip(roots, moments.C, strict=True):
        block = jnp.einsum("ia,ijg,jb->abg", root, C, root)
        parts.append(block[np.tril_indices(len(root))].ravel())
    for (f, g), A in zip(system.pairs, moments.A, strict=True):
        parts.append(jnp.einsum("ia,ijg,jb->abg", roots[f], A, roots[g]).ravel())
    return jnp.concatenate(parts)


def _scaled(roots, blocks, layout, transposed=True) -> list[jax.Array]:
    """Lambda'B of each factor, (q, r, levels), or Lambda B."""
    spec = "ia,irg->arg" if transposed else "ai,irg->arg"
    return [jnp.einsum(spec, root, B) for root, B in zip(_by_factor(roots, layout), blocks, strict=True)]


def joined(blocks):
    """Coefficients (q, r, levels) of each factor in the order of the equations, level by level, (N, r)."""
    return jnp.concatenate([jnp.moveaxis(block, -1, 0).reshape(-1, block.shape[1]) for block in blocks])


def apart(coefficients, layout) -> list[jax.Array]:
    """The coefficients of each factor, (q, r, levels), from all of them, (N, r)."""
    blocks, start = [], 0
    for f, levels in enumerate(layout.levels):
        stop = start + levels * layout.factor_width(f)
        blocks.append(jnp.moveaxis(coefficients[start:stop].reshape(levels, -1, coefficients.shape[1]), 0, -1))
        start = stop
    return blocks
