"""Henderson's equations, sparse: random effects with a sparse inverse relationship, of a hundred thousand levels.

With b = (I (x) lambda) u, relative covariance Sigma = lambda lambda' of a level, and Q the inverse covariance of u (the
identity, or K^-1 (x) I of related levels), the coefficients are eliminated together, by

    F = Q + Lambda'C Lambda        log|V W| = log|F| - log|Q|        K = B'Lambda F^-1 Lambda'B

F is as sparse as Q and C = Z'WZ are, and is defined at a singular Sigma (Henderson 1975, Biometrics 31, 423-447). Its
log-determinant has the selected inverse for its derivative (see `jmixed.algebra.sparse`), and the derivatives in psi
are those through the Cholesky factors of Sigma.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sparse import factorise, log_determinant, selected_inverse, solve, times
from jmixed.covariance.structure import block_diagonal
from jmixed.likelihood.jets import Jet
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.stages import covariances_of

FLOOR = 1e-8
"""Added to a relative variance, in columns of unit size, for derivatives: those of a root of zero are infinite."""


def reduce_equations(roots, moments: Moments):
    """Eliminate all coefficients: (G, logdet, pieces), as `gaussian.reduce`; the pieces are Lambda U by factor.

    Derivatives flow through the roots.
    """
    roots = _by_factor(roots, moments.layout)
    factor = factorise(moments.index.system.plan, _entries(roots, moments))
    border = _border(roots, moments)
    U = solve(factor, border)
    explained = border.T @ U
    G = moments.G - (explained + explained.T) / 2
    return G, log_determinant(factor), tuple(_effects(roots, moments, U))


def equations_jets(psi, moments: Moments, exact: jax.Array | bool = True):
    """Jets, in all directions of psi, of log|V W| and of G = [X~ y~]'V^-1[X~ y~].

    Where `exact` is false the second derivatives of log|V W| are zero and cost nothing. With entries F_k and borders
    b_k in direction k, U = F^-1 b and R_k = b_k - F_k U,

        logdet_k = <F^-1, F_k>                 logdet_kl = <F^-1, F_kl> + <(F^-1)_k, F_l>
        K_k = b_k'U + U'R_k                    K_kl = R_k'F^-1 R_l + U'(b_kl - F_kl U) + b_kl'U + (k and l exchanged)/2
    """
    layout, plan, m = moments.layout, moments.index.system.plan, len(psi)

    def at(psi):
        covariances = covariances_of(psi, layout.terms)
        floored = (sigma + FLOOR * jnp.eye(len(sigma), dtype=sigma.dtype) for sigma in covariances)
        roots = _by_factor([jnp.linalg.cholesky(sigma) for sigma in floored], layout)
        return _entries(roots, moments), _border(roots, moments)

    values, border = at(psi)
    pairs = np.tril_indices(m)
    units = jnp.eye(m, dtype=psi.dtype)

    def slope(psi, direction):
        return jax.jvp(at, (psi,), (direction,))[1]

    F, b = jax.vmap(lambda k: slope(psi, k))(units)
    factor = factorise(plan, values)
    inverse, U = selected_inverse(factor), solve(factor, border)
    product = partial(times, plan)
    R = b - jax.vmap(product, (0, None))(F, U)
    width = U.shape[1]
    H = jnp.moveaxis(solve(factor, jnp.moveaxis(R, 0, 1).reshape(len(U), -1)).reshape(len(U), m, width), 1, 0)
    twice = jnp.where(plan.rows == plan.columns, 1, 2).astype(psi.dtype)[: len(values)] * inverse
    K_1 = jnp.einsum("knr,ns->krs", b, U)
    K_1 = K_1 + jnp.einsum("nr,kns->krs", U, R)

    def second(pair):
        k, l = units[pair[0]], units[pair[1]]
        F_2, b_2 = jax.jvp(lambda psi: slope(psi, k), (psi,), (l,))[1]
        bend = b_2.T @ U
        own = R[pair[0]].T @ H[pair[1]]
        return jnp.sum(twice * F_2), own + own.T + bend + bend.T - U.T @ product(F_2, U)

    def moved(direction):
        return jax.jvp(lambda values: selected_inverse(factorise(plan, values)), (values,), (direction,))[1]

    def curvature():
        twice = jnp.where(plan.rows == plan.columns, 1, 2).astype(psi.dtype)[: len(values)]
        return (twice * jax.lax.map(moved, F)) @ F.T

    def none():
        return jnp.zeros((m, m), psi.dtype)

    L_2, K_2 = jax.lax.map(second, jnp.stack(pairs, axis=1))
    L_own = curvature() if exact is True else jax.lax.cond(exact, curvature, none)
    place = np.zeros((m, m), int)
    place[pairs] = place[pairs[::-1]] = np.arange(len(pairs[0]))
    bends = L_2[place] if exact is True else jnp.where(exact, L_2[place], 0)
    logdet = Jet(log_determinant(factor), F @ twice, (L_own + L_own.T) / 2 + bends)
    K = border.T @ U
    return logdet, Jet(moments.G - (K + K.T) / 2, -(K_1 + jnp.swapaxes(K_1, 1, 2)) / 2, -K_2[place])


def _by_factor(roots, layout):
    """Square roots of the relative covariance of each factor's levels, from those of the terms."""
    return [block_diagonal([roots[t] for t in members]) for members in layout.factors]


def _entries(roots, moments: Moments):
    """The entries of F, in the order of its plan's pattern."""
    system = moments.index.system
    parts = [jnp.asarray(system.prior).astype(moments.G.dtype)]
    for root, C in zip(roots, moments.C, strict=True):
        block = jnp.einsum("ia,ijg,jb->abg", root, C, root)
        parts.append(block[np.tril_indices(len(root))].ravel())
    for (f, g), A in zip(system.pairs, moments.A, strict=True):
        parts.append(jnp.einsum("ia,ijg,jb->abg", roots[f], A, roots[g]).ravel())
    return jnp.concatenate(parts)


def _border(roots, moments: Moments):
    """Lambda'B of all coefficients, level by level, (N, p + 1)."""
    parts = [jnp.einsum("ia,irg->gar", root, B) for root, B in zip(roots, moments.B, strict=True)]
    return jnp.concatenate([part.reshape(-1, part.shape[-1]) for part in parts])


def _effects(roots, moments: Moments, U):
    """Lambda U of each factor, (q, p + 1, levels)."""
    start = 0
    for root, B in zip(roots, moments.B, strict=True):
        q, r, levels = B.shape
        own = U[start : start + q * levels].reshape(levels, q, r)
        yield jnp.einsum("ij,gjr->irg", root, own)
        start += q * levels
