"""The optimum of the deviance plus a penalty on coefficients and relative covariances, over both at once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.batched import triangular_inverse
from jmixed.algebra.newton import MAX_ITERATIONS, Evaluation, Minimum, Point, pseudo_inverse
from jmixed.covariance.structure import factors_of_theta, join, rectify, split, theta_of_factors
from jmixed.likelihood import gaussian
from jmixed.likelihood.contract import Criterion, Starts, minimum
from jmixed.likelihood.moments import Moments

AWAY = 0.1
"""Standard deviations, relative to the residual one, from which on the search starts: a penalty may exclude zero."""


class PenalisedOptimum(NamedTuple):
    """An optimum: the coefficients, the factors, how the search ended, and the criterion without the penalty."""

    beta: jax.Array
    theta: jax.Array
    outcome: jax.Array
    deviance: jax.Array
    sigma: jax.Array


@dataclass(frozen=True)
class PenalisedDeviance(Criterion):
    """The deviance profiled over sigma alone plus a penalty: a criterion whose derivatives are automatic.

    Its coordinates are coefficients of preconditioned columns, and theta in units `scale` (m,) of the columns of Z. The
    penalty is ``penalty(beta, theta, *hoisted)``, where `hoisted` are the arrays that it depends on.
    """

    moments: Moments
    penalty: Callable
    hoisted: Any
    reml: Any
    scale: jax.Array

    def parameters(self, point: Point):
        """beta, and the terms' factors with any signs."""
        structures, p = self.moments.layout.terms, self.moments.beta0.shape[0]
        factors = factors_of_theta(structures, point.x[p:] / self.scale)
        return self.moments.beta0 + triangular_inverse(self.moments.R) @ point.x[:p], factors

    def deviance(self, point: Point):
        """The criterion without the penalty, and the residual sum of squares."""
        roots = gaussian.precondition(self.parameters(point)[1], self.moments.T)
        u = point.x[: self.moments.beta0.shape[0]]
        return gaussian.deviance_at_coefficients(u, gaussian.squares(roots), roots, self.moments, self.reml)

    def value(self, point: Point):
        """The deviance plus the penalty."""
        beta, factors = self.parameters(point)
        theta = theta_of_factors(self.moments.layout.terms, map(upright, factors), self.moments.G.dtype)
        return self.deviance(point)[0] + self.penalty(beta, theta, *self.hoisted)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """One traced copy of the function and its derivatives."""

        def slope_and_all(x):
            value, gradient = jax.value_and_grad(lambda x: self.value(point._replace(x=x)))(x)
            return gradient, (value, gradient)

        hessian, (value, gradient) = jax.jacfwd(slope_and_all, has_aux=True)(point.x)
        return Evaluation(point, value, gradient, hessian)

    def starts(self, given) -> Starts:
        """At rectified theta (m,), a little away from zero, and the coefficients that are best there unpenalised."""
        x = [_best_coefficients(given, self.moments), away_from_zero(given * self.scale, self.moments.layout.terms)]
        return Starts(Point((), jnp.concatenate(x)[None]), 1)

    def estimates(self, point: Point):
        """beta, rectified theta, the deviance without the penalty, and sigma."""
        beta, factors = self.parameters(point)
        value, rss = self.deviance(point)
        sigma = jnp.sqrt(rss / gaussian.degrees(self.moments, self.reml))
        theta = theta_of_factors(self.moments.layout.terms, map(rectify, factors), self.moments.G.dtype)
        return beta, theta, value, sigma


def penalised_optimum(moments: Moments, penalty, start, reml) -> PenalisedOptimum:
    """Minimise the deviance at a given beta, profiled over sigma alone, plus a penalty.

    First derivatives are those of the optimum: at it, one Newton step with a known Hessian is written out, whose
    derivative in the data and in whatever the penalty depends on is that of the implicit function theorem. The penalty
    is ``penalty(beta, theta)``, a scalar on the scale of the deviance; theta and its `start` (m,) are rectified.
    """
    scale = scales(moments.layout.terms, moments.T, moments.G.dtype)
    penalty, hoisted = jax.closure_convert(penalty, jnp.zeros_like(moments.beta0), jnp.zeros_like(scale))
    criterion = PenalisedDeviance(moments, penalty, hoisted, reml, scale)
    known, hoisted = stop_gradient((moments, hoisted))
    fixed = replace(criterion, moments=known, hoisted=hoisted)
    lowest = stop_gradient(minimum(fixed, fixed.starts(stop_gradient(start)), MAX_ITERATIONS))
    beta, theta, value, sigma = criterion.estimates(one_step_from(lowest, criterion))
    return PenalisedOptimum(beta, theta, lowest.outcome, value, sigma)


def one_step_from(lowest: Minimum, criterion: Criterion) -> Point:
    """A known minimum, moved by one Newton step of the criterion, through which first derivatives flow."""
    at = lowest.at.point.x
    slope = jax.grad(lambda x: criterion.value(Point((), x)))(at)
    return Point((), at - pseudo_inverse(lowest.at.hessian) @ slope)


def _best_coefficients(theta, moments):
    """Those of preconditioned columns that are best without the penalty."""
    roots = gaussian.precondition(gaussian.factors_of(theta, moments), moments.T)
    return gaussian.profile(gaussian.squares(roots), roots, moments).beta


def upright(factor):
    """A factor with the signs of its columns changed so that the diagonal is not negative."""
    diagonal = jnp.diagonal(factor)
    return factor * jnp.where(diagonal < 0, -1, 1).astype(factor.dtype)[None]


def scales(structures, preconditioners, dtype):
    """The size of the column of Z that each entry of theta belongs to, from what makes the columns one of size."""
    sizes = []
    for structure, T in zip(structures, preconditioners, strict=True):
        size = jnp.sqrt(jnp.sum(triangular_inverse(T) ** 2, axis=0))
        sizes.append(structure.theta(jnp.broadcast_to(size[:, None], T.shape)))
    return stop_gradient(join(sizes, dtype))


def away_from_zero(t, structures):
    """A start whose diagonal entries are not zero, as where every derivative would vanish."""
    pieces = []
    for structure, piece in zip(structures, split(structures, t), strict=True):
        diagonal = structure.theta(np.eye(structure.q, dtype=t.dtype)) > 0
        pieces.append(jnp.where(diagonal, jnp.maximum(piece, AWAY), piece))
    return join(pieces, t.dtype)
