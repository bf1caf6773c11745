"""The profiled deviance and the log-likelihood, from cross-products and relative covariances.

    d = log|I + Lambda'Z'WZ Lambda| - sum log w + [REML: log|X'V^-1 X|] + nu (1 + log(2 pi r^2 / nu))

with nu = n, or n - p under REML, and r^2 the generalised residual sum of squares (Bates et al. 2015, eqs. 31 to 42;
Bates, Alday and Kokandakar, arXiv 2505.11674, for the form by blocks).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jmixed.algebra.batched import triangular_inverse
from jmixed.algebra.sums import diagonal
from jmixed.covariance.structure import factors_of_theta, join
from jmixed.layout.design import Rows
from jmixed.layout.layout import EQUATIONS
from jmixed.likelihood.crossed import reduce_crossed
from jmixed.likelihood.eliminate import eliminate, profile_fixed
from jmixed.likelihood.equations import reduce_equations
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.stages import stage_matrix, sum_by_parent


class Reduced(NamedTuple):
    """The problem without the random effects: ``G = [X~ y~]'V^-1[X~ y~]``, log|V W|, and every stage's pieces.

    ``borders`` are the stages' B as they were when their turn came; of a crossed layout there are none. A stage is an
    `Elimination`, or what a crossed layout has in its place.
    """

    G: jax.Array
    logdet: jax.Array
    stages: tuple[Any, ...]
    borders: tuple[jax.Array, ...] = ()


def reduce(covariances, roots, moments: Moments) -> Reduced:
    """Eliminate stage after stage; what a block explains is taken from the blocks that hold it.

    `covariances` (q, q) are relative, of each term in preconditioned columns; `roots` (q, q) any square roots of them.
    """
    layout = moments.layout
    if layout.crossed == EQUATIONS:
        return Reduced(*reduce_equations(covariances, roots, moments))
    if layout.crossed:
        return Reduced(*reduce_crossed(covariances, roots, moments))
    C, B = list(moments.C), list(moments.B)
    logdet, explained_fixed, results = jnp.zeros((), moments.G.dtype), jnp.zeros_like(moments.G), []
    last = len(layout.stages) - 1
    for s in range(len(layout.stages)):
        summed = layout.is_summed(s) and moments.repeats is None
        sigma, root = stage_matrix(layout, s, covariances), stage_matrix(layout, s, roots)
        result = eliminate(sigma, root, C[s], B[s], summed, moments.shift[s], layout.has_positive_weights)
        results.append(result)
        logdet += jnp.sum(result.logdet if moments.repeats is None else moments.repeats * result.logdet)
        start = 0
        for t, parent in zip(range(s + 1, last + 1), moments.index.parents[s], strict=True):
            width = layout.stage_width(t)
            below = result.K[start : start + width, start:]
            explained = below[..., None] if summed else sum_by_parent(below, parent, layout.blocks[t])
            C[t], B[t] = C[t] - explained[:, :width], B[t] - explained[:, width:]
            start += width
        rest = result.K[start:, start:]
        explained_fixed += rest if summed else jnp.sum(rest, axis=-1)
    logdet, explained_fixed = moments.over_devices((logdet, explained_fixed))
    return Reduced(moments.G - explained_fixed, logdet, tuple(results), tuple(B))


class Profiled(NamedTuple):
    """What is left when beta is profiled out: log-determinants, residual sum of squares and the fixed effects.

    ``logdet`` is log|V W|; ``logdet_fixed`` is log|X'V^-1 X| in the original columns; ``beta`` and ``inverse`` belong
    to the preconditioned columns.
    """

    logdet: jax.Array
    logdet_fixed: jax.Array
    rss: jax.Array
    beta: jax.Array
    inverse: jax.Array
    stages: tuple[Any, ...]
    borders: tuple[jax.Array, ...]


def profile(covariances, roots, moments: Moments) -> Profiled:
    """Profile beta out of the reduced problem."""
    reduced = reduce(covariances, roots, moments)
    fixed = profile_fixed(reduced.G)
    logdet_R = jnp.sum(jnp.log(jnp.abs(diagonal(moments.R))))
    logdet_fixed = fixed.logdet + 2 * logdet_R
    beta = fixed.rss, fixed.beta, fixed.inverse
    return Profiled(reduced.logdet, logdet_fixed, *beta, reduced.stages, reduced.borders)


def degrees(moments: Moments, reml: bool):
    """nu: the number of rows, less the number of fixed effects under REML; nan where none is left."""
    nu = moments.nobs - jnp.where(reml, moments.fixed, 0)
    # Of fewer rows than effects rounding leaves a sum of squares of either sign, and so a likelihood or none.
    return jnp.where(nu > 0, nu, jnp.nan)


def deviance(logdet, rss, nu):
    """The profiled deviance from its log-determinants (all of them, less the sum of log weights), r^2 and nu."""
    return logdet + nu * (1 + jnp.log(2 * jnp.pi * rss / nu))


def deviance_at(covariances, roots, moments: Moments, reml: bool):
    """The profiled deviance at relative covariances in preconditioned columns."""
    result = profile(covariances, roots, moments)
    logdet = result.logdet - moments.log_weights + jnp.where(reml, result.logdet_fixed, 0)
    return deviance(logdet, result.rss, degrees(moments, reml))


def deviance_at_coefficients(u, covariances, roots, moments: Moments, reml: bool):
    """The deviance profiled over sigma alone, at coefficients u (p,) of preconditioned columns, and r^2 there."""
    reduced = reduce(covariances, roots, moments)
    logdet_fixed = profile_fixed(reduced.G).logdet + 2 * jnp.sum(jnp.log(jnp.abs(diagonal(moments.R))))
    contrast = jnp.append(-u, jnp.ones((), moments.G.dtype))
    rss = contrast @ reduced.G @ contrast
    logdet = reduced.logdet - moments.log_weights + jnp.where(reml, logdet_fixed, 0)
    return deviance(logdet, rss, degrees(moments, reml)), rss


def precondition(factors, T):
    """T^-1 lambda: the terms' relative factors in preconditioned columns."""
    return [triangular_inverse(basis) @ factor for basis, factor in zip(T, factors, strict=True)]


def factors_of(theta, data: Moments | Rows):
    """``lambda`` of every term from theta (original columns)."""
    return factors_of_theta(data.layout.terms, theta)


def psi_of(covariances, structures, dtype):
    """psi from the terms' ``Sigma``."""
    return join([s.psi(c) for s, c in zip(structures, covariances, strict=True)], dtype)


def squares(roots):
    """``Sigma = root root'`` of every term."""
    return [root @ root.T for root in roots]


def deviance_of_theta(theta, moments: Moments, reml: bool):
    """The profiled deviance as a function of theta on the original scale."""
    roots = precondition(factors_of(theta, moments), moments.T)
    return deviance_at(squares(roots), roots, moments, reml)


def log_density(beta, theta, sigma, moments: Moments):
    """Marginal Gaussian log density of y at all parameters."""
    roots = precondition(factors_of(theta, moments), moments.T)
    reduced = reduce(squares(roots), roots, moments)
    contrast = jnp.append(-moments.R @ (beta - moments.beta0), jnp.ones((), moments.G.dtype))
    square = contrast @ reduced.G @ contrast
    constant = moments.nobs * jnp.log(2 * jnp.pi * sigma**2) - moments.log_weights
    return -(constant + reduced.logdet + square / sigma**2) / 2
