"""Eliminate the random effects of independent blocks: the one operation of the likelihood, with its exact derivatives.

For one block with C = Z'WZ, B = Z'W[what comes later, X, y] and relative covariance Sigma = lambda lambda':

    P = lambda (I + lambda'C lambda)^-1 lambda'   T = I - P C   S = C T   U = P B - T b   E = T'B + S b
    logdet = log|I + lambda'C lambda|             K = B'U - b'E

The shift b, zero unless digits are at stake (see `moments`), says from where the effects are counted: B holds products
with what is left of the later columns D after Z b was taken out. Then U + b, applied to [-beta; 1], is the conditional
mode of the block's effects, sigma^2 P their conditional covariance, E = Z'V^-1 D, and K is what D'V^-1 D lacks of the
cross-products of what is left: of b from least squares a small correction, where D'WD and the part explained of it
would be large numbers and their difference rounding. The tangents are closed in these quantities, whatever b,

    d logdet = <S, dSigma> + <P, dC>
    d K = E'dSigma E - U'dC U + dB'U + U'dB
    d P = T dSigma T' - P dC P            d T = -T dSigma S - P dC T          d S = T'dC T - S dSigma S
    d U = T dSigma E - P dC U + P dB      d E = T'dB - T'dC U - S dSigma E

so that one rule gives exact derivatives of every order, at a singular Sigma too, and no factorisation is ever
differentiated.

In a small block nothing is subtracted even where Sigma is large: with R'R = C and H = R lambda, S = R'(I + HH')^-1 R.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from jmixed.algebra.batched import sweep
from jmixed.algebra.small import (
    SWEPT,
    BlockDiagonal,
    back_solve,
    back_substitute,
    cholesky,
    congruence,
    forward_solve,
    inverse_and_log_determinant,
    log_determinant,
    matmul,
    semidefinite_triangle,
    transpose,
)
from jmixed.algebra.sums import UNROLLED, add_up


class Elimination(NamedTuple):
    """What `eliminate` returns, for blocks of order Q with a border of r columns (field names as in the module text).

    ``logdet`` (blocks,), ``K`` (r, r, blocks), or both summed over the blocks; ``P, T, S`` (Q, Q, blocks);
    ``U, E`` (Q, r, blocks).
    """

    logdet: jax.Array
    K: jax.Array
    P: jax.Array
    T: jax.Array
    S: jax.Array
    U: jax.Array
    E: jax.Array


def eliminate(sigma, root, C, B, summed, shift=None, semidefinite=True):
    """Eliminate blocks C (Q, Q, blocks) with border B (Q, r, blocks) under one relative covariance Sigma (Q, Q).

    Derivatives flow through `sigma`; of `root`, any square root of it, only the value is used. With `summed`,
    ``logdet`` and ``K`` are sums over the blocks; `shift` (Q, r, blocks) are the constants b. Where C need not be
    positive `semidefinite`, as with weights that may be negative, I + lambda'C lambda is to be positive definite.
    """
    root, shift = jax.lax.stop_gradient((root, shift))
    return _eliminate(sigma, root, C, B, shift, summed, semidefinite)


@partial(jax.custom_jvp, nondiff_argnums=(5, 6))
def _eliminate(sigma, root, C, B, shift, summed, semidefinite):
    Q = C.shape[0]
    if Q <= UNROLLED and semidefinite:
        return _eliminate_small(sigma, root, C, B, shift, summed)
    # A constant of a small block is no step; that of a large one would make the program as large.
    identity: Any = (np if Q <= SWEPT else jnp).eye(Q, dtype=C.dtype)[:, :, None]
    inner = congruence(root.T, C) + identity
    if Q > SWEPT and C.shape[2] == 1:
        inverse, logdet = inverse_and_log_determinant(inner[:, :, 0])
        P = congruence(root, inverse[:, :, None])
        U, logdet = matmul(P, B), logdet[None]
    else:
        factor = cholesky(inner)
        # Both right-hand sides in one call: see `algebra.small` on LAPACK calls that run at once.
        left = matmul(root, identity) if isinstance(root, BlockDiagonal) else root[:, :, None]
        right = jnp.broadcast_to(transpose(left), inner.shape)
        solved = forward_solve(factor, jnp.concatenate([right, matmul(root.T, B)], axis=1))
        half, W = solved[:, :Q], solved[:, Q:]
        P = matmul(transpose(half), half)
        U, logdet = matmul(root, back_solve(factor, W)), log_determinant(factor)
    T = identity - matmul(P, C)
    S = matmul(C, T)
    S = (S + transpose(S)) / 2
    E = B - matmul(C, U)
    if shift is not None:
        U, E = U - matmul(T, shift), E + matmul(S, shift)
    return Elimination(_total(logdet, summed), _explained(B, U, E, shift, summed), P, T, S, U, E)


def _eliminate_small(sigma, root, C, B, shift, summed):
    """The same in scalar code. P and T, which the optimiser does not ask of most blocks, cost nothing unless used."""
    Q = C.shape[0]
    identity = np.eye(Q, dtype=C.dtype)[:, :, None]
    root = matmul(root, identity) if isinstance(root, BlockDiagonal) else root[:, :, None]
    R, left = semidefinite_triangle(C, B)
    left = left if shift is None else left + matmul(R, shift)
    H = matmul(R, root)
    factor = cholesky(matmul(H, transpose(H)) + identity)
    solved = forward_solve(factor, jnp.concatenate([R, left], axis=1))
    X, W = solved[:, :Q], solved[:, Q:]
    E = matmul(transpose(X), W)
    half = forward_solve(
        cholesky(matmul(transpose(H), H) + identity), jnp.broadcast_to(transpose(root), (Q, Q, C.shape[2]))
    )
    P = matmul(transpose(half), half)
    # R^-1 (I + HH')^-1 R, where R has an inverse: I - P C would lose what is left of a shift.
    sound = jnp.all(jnp.diagonal(R) > 0, axis=-1)
    T = jnp.where(sound, back_substitute(R, back_solve(factor, X)), identity - matmul(P, C))
    U = matmul(sigma, E)
    if shift is not None:
        # Without a shift P B would lose what columns that nearly coincide leave of each other.
        U = jnp.where(jnp.any(shift != 0), matmul(P, B) - matmul(T, shift), U)
    K = _explained(B, U, E, shift, summed)
    logdet = _total(log_determinant(factor), summed)
    return Elimination(logdet, K, P, T, matmul(transpose(X), X), U, E)


def _explained(B, U, E, shift, summed):
    """K, symmetric."""
    K = _gram(B, U, summed)
    K = K if shift is None else K - _gram(shift, E, summed)
    return (K + transpose(K)) / 2


def _gram(a, b, summed):
    """a'b per block, or over all blocks at once (one thin matrix product)."""
    if summed:
        return jnp.einsum("iag,ibg->ab", a, b)
    return matmul(transpose(a), b)


def _total(values, summed):
    return jnp.sum(values) if summed else values


@partial(_eliminate.defjvp, symbolic_zeros=True)
def _tangents(summed, semidefinite, primals, tangents):
    """The rule of the module text; a tangent that is zero by structure costs nothing."""
    out = _eliminate(*primals, summed, semidefinite)
    P, T, S, U, E = out.P, out.T, out.S, out.U, out.E
    d_sigma, _, d_C, d_B, _ = tangents
    parts = []
    if not isinstance(d_sigma, SymbolicZero):
        sE, sS, sT = matmul(d_sigma, E), matmul(d_sigma, S), matmul(d_sigma, transpose(T))
        parts.append(
            Elimination(
                jnp.sum(S * d_sigma[:, :, None]) if summed else jnp.sum(S * d_sigma[:, :, None], axis=(0, 1)),
                _gram(E, sE, summed), matmul(T, sT), -matmul(T, sS), -matmul(S, sS), matmul(T, sE), -matmul(S, sE),
            )
        )  # fmt: skip
    if not isinstance(d_C, SymbolicZero):
        cU, cT, cP = matmul(d_C, U), matmul(d_C, T), matmul(d_C, P)
        Tt = transpose(T)
        parts.append(
            Elimination(
                jnp.sum(P * d_C) if summed else jnp.sum(P * d_C, axis=(0, 1)),
                -_gram(U, cU, summed), -matmul(P, cP), -matmul(P, cT), matmul(Tt, cT), -matmul(P, cU), -matmul(Tt, cU),
            )
        )  # fmt: skip
    if not isinstance(d_B, SymbolicZero):
        BU = _gram(d_B, U, summed)
        parts.append(
            Elimination(
                jnp.zeros_like(out.logdet), BU + transpose(BU), jnp.zeros_like(P), jnp.zeros_like(T),
                jnp.zeros_like(S), matmul(P, d_B), matmul(transpose(T), d_B),
            )
        )  # fmt: skip
    if not parts:
        return out, jax.tree.map(jnp.zeros_like, out)
    return out, jax.tree.map(lambda *terms: add_up(terms), *parts)


class ProfiledEffects(NamedTuple):
    """What `profile_fixed` returns: log|A|, the residual sum of squares, A^-1, and the coefficients, A = G[:p, :p]."""

    logdet: jax.Array
    rss: jax.Array
    inverse: jax.Array
    beta: jax.Array


@jax.custom_jvp
def profile_fixed(G):
    """Eliminate the fixed effects from ``G = [X y]'V^-1[X y]`` (p + 1, p + 1), with the closed rule for derivatives."""
    p = G.shape[0] - 1
    swept, logdet = sweep(G, p)
    return ProfiledEffects(logdet, swept[p, p], -swept[:p, :p], swept[:p, p])


@profile_fixed.defjvp
def _profile_fixed_tangents(primals, tangents):
    (G,), (dG,) = primals, tangents
    out = profile_fixed(G)
    p = G.shape[0] - 1
    contrast = jnp.append(-out.beta, jnp.ones((), G.dtype))
    # The symmetric part, once for all: G is symmetric, its tangent may be handed over as one triangle.
    dG = (dG + dG.T) / 2
    dA = dG[:p, :p]
    return out, ProfiledEffects(
        jnp.sum(out.inverse * dA),
        contrast @ dG @ contrast,
        -out.inverse @ dA @ out.inverse,
        out.inverse @ (dG[:p] @ contrast),
    )
