"""The optimum of the deviance plus a penalty on coefficients and relative covariances, over both at once."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.batched import eigh, triangular_inverse
from jmixed.algebra.newton import CURVATURE, trust_region_step
from jmixed.covariance.structure import join, rectify, split
from jmixed.errors import Outcome
from jmixed.likelihood import gaussian
from jmixed.likelihood.moments import Moments

DECREMENT = 1e-9
"""A Newton decrement below this is an optimum."""
ROUNDING = 4e-14
"""Relative rounding error of the criterion in double precision."""
AWAY = 0.1
"""Standard deviations, relative to the residual one, from which on the search starts: a penalty may exclude zero."""
ITERATIONS = 200


class Penalised(NamedTuple):
    """An optimum: the coefficients, the factors, how the search ended, and the criterion without the penalty."""

    beta: jax.Array
    theta: jax.Array
    outcome: jax.Array
    deviance: jax.Array
    sigma: jax.Array


class _State(NamedTuple):
    """The best point with the criterion's derivatives at it, the point to try next, and how it is going."""

    x: jax.Array
    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    trial: jax.Array
    predicted: jax.Array
    boundary: jax.Array
    radius: jax.Array
    iteration: jax.Array
    outcome: jax.Array


_RUNNING = -1


def penalised_optimum(held: Moments, penalty, start, reml) -> Penalised:
    """Minimise the deviance at a given beta, profiled over sigma alone, plus a penalty.

    First derivatives are those of the optimum: at it, one Newton step with a known Hessian is written out, whose
    derivative in the data and in whatever the penalty depends on is that of the implicit function theorem.

    Parameters
    ----------
    held : Moments
    penalty : callable
        ``penalty(beta, theta)``, a scalar on the scale of the deviance; theta rectified.
    start : array (m,)
        Rectified theta.
    reml : bool
    """
    p, dtype = held.beta0.shape[0], held.G.dtype
    to_original, scale = triangular_inverse(held.R), _scales(held)
    penalty, hoisted = jax.closure_convert(penalty, jnp.zeros(p, dtype), jnp.zeros(scale.shape, dtype))

    def unpack(x, held):
        factors = [s.factor(t) for s, t in zip(held.layout.terms, split(held.layout.terms, x[p:] / scale), strict=True)]
        return held.beta0 + to_original @ x[:p], factors

    def parts(x, held):
        beta, factors = unpack(x, held)
        value, rss = _deviance(x[:p], factors, held, reml)
        structures = held.layout.terms
        theta = join([s.theta(_upright(f)) for s, f in zip(structures, factors, strict=True)], dtype)
        return value, rss, beta, theta

    def total(x, held, hoisted):
        value, _, beta, theta = parts(x, held)
        return value + penalty(beta, theta, *hoisted)

    known = stop_gradient((held, hoisted))
    first = _away_from_zero(start * scale, held.layout.terms)
    x0 = jnp.concatenate([_best_coefficients(start, known[0]), first])
    state = _search(lambda x: total(x, *known), stop_gradient(x0))
    values, vectors = eigh(state.hessian)
    sound = values > 1e-10 * jnp.maximum(values[-1], 1)
    inverse = (vectors * jnp.where(sound, 1 / jnp.where(sound, values, 1), 0)[None]) @ vectors.T
    at, inverse = stop_gradient((state.x, inverse))
    x = at - inverse @ jax.grad(total)(at, held, hoisted)
    value, rss, beta, _ = parts(x, held)
    factors = [rectify(f) for f in unpack(x, held)[1]]
    theta = join([s.theta(f) for s, f in zip(held.layout.terms, factors, strict=True)], dtype)
    return Penalised(beta, theta, state.outcome, value, jnp.sqrt(rss / gaussian.degrees(held, reml)))


def _deviance(u, factors, held, reml):
    """The deviance at coefficients u of preconditioned columns, and the residual sum of squares there."""
    roots = gaussian.precondition(factors, held)
    reduced = gaussian.reduce(gaussian.squares(roots), roots, held)
    contrast = jnp.append(-u, jnp.ones((), u.dtype))
    rss = contrast @ reduced.G @ contrast
    logdet_fixed = gaussian.profile_fixed(reduced.G).logdet + 2 * jnp.sum(jnp.log(jnp.abs(jnp.diagonal(held.R))))
    logdet = reduced.logdet - held.log_weights + jnp.where(reml, logdet_fixed, 0)
    return gaussian.deviance(logdet, rss, gaussian.degrees(held, reml)), rss


def _best_coefficients(theta, held):
    """Those of preconditioned columns that are best without the penalty."""
    roots = gaussian.precondition(gaussian.factors_of(theta, held), held)
    return gaussian.profile(gaussian.squares(roots), roots, held).beta


def _upright(factor):
    """A factor with the signs of its columns changed so that the diagonal is not negative."""
    diagonal = jnp.diagonal(factor)
    return factor * jnp.where(diagonal < 0, -1, 1).astype(factor.dtype)[None]


def _scales(held):
    """The size of the column of Z that each entry of theta belongs to."""
    sizes = []
    for structure, T in zip(held.layout.terms, held.T, strict=True):
        size = jnp.sqrt(jnp.sum(triangular_inverse(T) ** 2, axis=0))
        sizes.append(structure.theta(jnp.broadcast_to(size[:, None], T.shape)))
    return stop_gradient(join(sizes, held.G.dtype))


def _away_from_zero(t, structures):
    """A start whose diagonal entries are not zero, as where every derivative would vanish."""
    pieces = []
    for structure, own in zip(structures, split(structures, t), strict=True):
        diagonal = structure.theta(np.eye(structure.q, dtype=t.dtype)) > 0
        pieces.append(jnp.where(diagonal, jnp.maximum(own, AWAY), own))
    return join(pieces, t.dtype)


def _search(function, start) -> _State:
    """Trust-region Newton steps to a minimum; one traced copy of the function and its derivatives."""

    def slope_and_all(x):
        value, gradient = jax.value_and_grad(function)(x)
        return gradient, (value, gradient)

    def proceed(state):
        hessian, (value, gradient) = jax.jacfwd(slope_and_all, has_aux=True)(state.trial)
        starting, gain = jnp.isinf(state.value), state.value - value
        noise = jnp.maximum(ROUNDING, 8 * jnp.finfo(value.dtype).eps) * jnp.where(starting, 0, jnp.abs(state.value))
        usable = jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian)) & jnp.all(jnp.isfinite(gradient))
        accepted = usable & (starting | (gain >= 1e-4 * state.predicted - 2 * noise))
        length = jnp.sqrt(jnp.sum((state.trial - state.x) ** 2))
        good = accepted & ~starting & (gain > 0.75 * state.predicted)
        radius = jnp.where(good & state.boundary, 2 * state.radius, state.radius)
        poor = ~accepted | (~starting & (gain < 0.25 * state.predicted - noise))
        radius = jnp.where(poor, length / 4, radius)
        new = (state.trial, value, gradient, hessian)
        kept = (state.x, state.value, state.gradient, state.hessian)
        x, value, gradient, hessian = jax.tree.map(lambda a, b: jnp.where(accepted, a, b), new, kept)
        values, vectors = eigh(hessian)
        slope, largest = vectors.T @ gradient, jnp.maximum(values[-1], 1)
        move, predicted, boundary = trust_region_step(values, slope, radius)
        decrement = jnp.sum(slope**2 / jnp.maximum(values, 1e-10 * largest)) / 2
        optimal = (decrement < DECREMENT) & (values[0] > CURVATURE * largest)
        drowned = ~starting & (state.predicted <= noise)
        outcome = jnp.where(drowned, Outcome.PRECISION_LIMIT.value, _RUNNING)
        outcome = jnp.where(optimal, Outcome.CONVERGED.value, outcome)
        outcome = jnp.where(jnp.isfinite(value), outcome, Outcome.NOT_FINITE.value).astype(jnp.int32)
        trial = x + vectors @ move
        return _State(x, value, gradient, hessian, trial, predicted, boundary, radius, state.iteration + 1, outcome)

    zero, dtype = jnp.zeros((), jnp.int32), start.dtype
    infinite, square = jnp.full((), jnp.inf, dtype), jnp.zeros((len(start), len(start)), dtype)
    radius, never = jnp.maximum(0.5, 0.5 * jnp.sqrt(jnp.sum(start**2))), jnp.zeros((), bool)
    begun = _State(start, infinite, 0 * start, square, start, infinite, never, radius, zero, zero + _RUNNING)
    state = jax.lax.while_loop(lambda s: (s.outcome == _RUNNING) & (s.iteration < ITERATIONS), proceed, begun)
    outcome = jnp.where(state.outcome == _RUNNING, Outcome.MAX_ITERATIONS.value, state.outcome)
    return state._replace(outcome=outcome.astype(jnp.int32))
