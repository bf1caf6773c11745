"""Henderson's equations, sparse: random effects with a sparse inverse relationship, of a hundred thousand levels.

With b = (I (x) lambda) u, relative covariance Sigma = lambda lambda' of a level, and Q the inverse covariance of u (the
identity, or K^-1 (x) I of related levels), the coefficients are eliminated together, by

    F = Q + Lambda'C Lambda        log|V W| = log|F| - log|Q|        K = B'Lambda F^-1 Lambda'B

F is as sparse as Q and C = Z'WZ are, and is defined at a singular Sigma (Henderson 1975, Biometrics 31, 423-447). Its
log-determinant has the selected inverse for its derivative (see `jmixed.algebra.sparse`), and the derivatives in psi
are those through the Cholesky factors of Sigma.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sparse import factorise, log_determinant, solve
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

    Where `exact` is false the second derivatives of log|V W| are zero and cost nothing.
    """
    layout, plan = moments.layout, moments.index.system.plan

    def roots_at(psi):
        covariances = covariances_of(psi, layout.terms)
        floored = (sigma + FLOOR * jnp.eye(len(sigma), dtype=sigma.dtype) for sigma in covariances)
        return _by_factor([jnp.linalg.cholesky(sigma) for sigma in floored], layout)

    def logdet_at(psi):
        return log_determinant(factorise(plan, _entries(roots_at(psi), moments)))

    def G_at(psi):
        roots = roots_at(psi)
        border = _border(roots, moments)
        return moments.G - border.T @ solve(factorise(plan, _entries(roots, moments)), border)

    value, slope = jax.value_and_grad(logdet_at)(psi)
    m = len(psi)

    def curvature():
        return jax.jacfwd(jax.grad(logdet_at))(psi)

    def none():
        return jnp.zeros((m, m), psi.dtype)

    second = curvature() if exact is True else jax.lax.cond(exact, curvature, none)
    first = jnp.moveaxis(jax.jacfwd(G_at)(psi), -1, 0)
    bend = jnp.moveaxis(jax.jacfwd(jax.jacfwd(G_at))(psi), (-2, -1), (0, 1))
    return Jet(value, slope, (second + second.T) / 2), Jet(G_at(psi), first, bend)


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
