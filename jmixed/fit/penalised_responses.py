"""The optimum of a family's criterion at a given theta, and that of the criterion plus a penalty."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jmixed.algebra.newton import MAX_ITERATIONS, Evaluation, Point, pseudo_inverse
from jmixed.covariance.structure import block_diagonal, factors_of_theta, rectify, theta_of_factors
from jmixed.fit.penalised import away_from_zero, one_step_from, scales, upright
from jmixed.layout.design import Rows
from jmixed.likelihood import gaussian
from jmixed.likelihood.contract import Criterion, Starts, minimum
from jmixed.likelihood.laplace import LaplaceDeviance, laplace_deviance
from jmixed.likelihood.quadrature import QuadratureDeviance, quadrature_deviance

Source = LaplaceDeviance | QuadratureDeviance


def criterion_of(rows: Rows) -> Source:
    """Laplace's approximation, or quadrature where the design asks for nodes."""
    deviance, nodes = laplace_deviance(rows), rows.layout.quadrature
    return deviance if nodes == 1 else quadrature_deviance(deviance, nodes)


def laplace_of(source: Source) -> LaplaceDeviance:
    """The criterion by Laplace's approximation beside one by quadrature, or itself."""
    return source if isinstance(source, LaplaceDeviance) else source.laplace


def value_at(source: Source, factors, free):
    """-2 log-likelihood at square roots of the covariances, lower triangular, beta and kappa of preconditioned columns.

    The square roots (q, q) are of columns as they are.
    """
    if isinstance(source, QuadratureDeviance):
        return source.at_factor(block_diagonal(factors), free, source.nowhere())
    return source.at_roots(gaussian.precondition(factors, source.columns.T), free)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResponseAtTheta(Criterion):
    """-2 log-likelihood at theta (m,) in beta and kappa of preconditioned columns (p + k,)."""

    source: Source
    theta: jax.Array

    @property
    def _factors(self):
        return gaussian.factors_of(self.theta, self.source.rows)

    def starts(self, given=None) -> Starts:
        """From coefficients without random effects, or those that are `given`."""
        laplace = laplace_of(self.source)
        return Starts(Point((), (laplace.first[0] if given is None else given)[None]), 1)

    def value(self, point: Point):
        """-2 log-likelihood."""
        return value_at(self.source, self._factors, point.x)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """With its derivatives: by the closed form of Laplace's approximation, else by JAX."""
        source = self.source
        if isinstance(source, QuadratureDeviance):
            return automatic(self.value, point)
        roots = gaussian.precondition(self._factors, source.columns.T)
        value, gradient, hessian, _ = source.in_psi(roots, point.x, source.nowhere())
        m = source.sizes[0]
        return Evaluation(point, value, gradient[m:], hessian[m:, m:])

    def estimates(self, point: Point) -> dict[str, Any]:
        """All estimates on the scale of the data; without `vcov_beta`."""
        laplace, structures, free = laplace_of(self.source), self.source.rows.layout.terms, point.x
        theta = theta_of_factors(structures, map(rectify, self._factors), free.dtype)
        original, p = laplace.basis @ free, laplace.X.shape[1]
        levels = laplace.effects_at(self.theta, original[:p], original[p:])
        return laplace.described(self._factors, theta, free, self.value(point), levels)

    def covariance(self, point: Point):
        """That of beta (p, p), by the curvature in beta and kappa."""
        laplace = laplace_of(self.source)
        basis, p = laplace.basis, laplace.X.shape[1]
        return (2 * basis @ pseudo_inverse(self.value_gradient_hessian(point).hessian) @ basis.T)[:p, :p]


@dataclass(frozen=True)
class PenalisedResponse(Criterion):
    """-2 log-likelihood plus ``penalty(beta, theta, *hoisted)``.

    In beta and kappa of preconditioned columns, and theta in units `scale` (m,) of the columns of Z.
    """

    source: Source
    penalty: Callable
    hoisted: Any
    scale: jax.Array

    def parameters(self, point: Point):
        """Beta and kappa of preconditioned columns, beta of columns as they are, and the terms' factors."""
        laplace, structures = laplace_of(self.source), self.source.rows.layout.terms
        m, p, _ = laplace.sizes
        free = point.x[: len(point.x) - m]
        theta = point.x[len(free) :] / self.scale
        factors = factors_of_theta(structures, theta)
        return free, (laplace.basis @ free)[:p], factors

    def value(self, point: Point):
        """The criterion plus the penalty."""
        free, _, factors = self.parameters(point)
        return value_at(self.source, factors, free) + self.penalised(point)

    def penalised(self, point: Point):
        """The penalty."""
        _, beta, factors = self.parameters(point)
        structures = self.source.rows.layout.terms
        theta = theta_of_factors(structures, map(upright, factors), beta.dtype)
        return self.penalty(beta, theta, *self.hoisted)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """With its derivatives: by the closed form of Laplace's approximation, else by JAX, as those of the penalty."""
        if isinstance(self.source, QuadratureDeviance):
            return automatic(self.value, point)
        source, structures = self.source, self.source.rows.layout.terms

        def place(x):
            free, _, factors = self.parameters(point._replace(x=x))
            covariances = gaussian.squares(gaussian.precondition(factors, source.columns.T))
            return jnp.concatenate([gaussian.psi_of(covariances, structures, x.dtype), free])

        free, _, factors = self.parameters(point)
        roots = gaussian.precondition(factors, source.columns.T)
        value, slope, curvature, _ = source.in_psi(roots, free, source.nowhere())
        jacobian, bends = jax.jacfwd(place)(point.x), jax.jacfwd(jax.jacfwd(lambda x: slope @ place(x)))(point.x)
        more = automatic(self.penalised, point)
        hessian = jacobian.T @ curvature @ jacobian + bends + more.hessian
        return Evaluation(point, value + more.value, slope @ jacobian + more.gradient, hessian)

    def starts(self, given) -> Starts:
        """At (beta, kappa) and theta that are `given`, a little away from zero."""
        free, theta = given
        moved = away_from_zero(theta * self.scale, self.source.rows.layout.terms)
        return Starts(Point((), jnp.concatenate([free, moved])[None]), 1)

    def estimates(self, point: Point):
        """Beta and kappa of preconditioned columns, and theta."""
        free, _, factors = self.parameters(point)
        structures = self.source.rows.layout.terms
        return free, theta_of_factors(structures, map(rectify, factors), free.dtype)


def automatic(value, point: Point) -> Evaluation:
    """A function of the point's coordinates with its derivatives by JAX."""

    def slope_and_all(x):
        value_and_slope = jax.value_and_grad(lambda x: value(point._replace(x=x)))(x)
        return value_and_slope[1], value_and_slope

    hessian, (at, gradient) = jax.jacfwd(slope_and_all, has_aux=True)(point.x)
    return Evaluation(point, at, gradient, (hessian + hessian.T) / 2)


def penalised_response(rows: Rows, penalty, theta, beta, kappa):
    """Minimise the criterion of rows plus ``penalty(beta, theta)`` from given parameters.

    Returned are the criterion at the optimal theta, beta and kappa of preconditioned columns there, the sum, and how
    the search ended. First derivatives are those of the optimum, as of `jmixed.fit.penalised`.
    """
    source = criterion_of(rows)
    laplace = laplace_of(source)
    scale = scales(rows.layout.terms, laplace.columns.T, rows.y.dtype)
    penalty, hoisted = jax.closure_convert(penalty, jnp.zeros_like(beta), jnp.zeros_like(scale))
    known = stop_gradient((source, hoisted))
    fixed = PenalisedResponse(known[0], penalty, known[1], scale)
    begin = stop_gradient((laplace.preconditioned(beta, kappa), theta))
    lowest = stop_gradient(minimum(fixed, fixed.starts(begin), MAX_ITERATIONS))
    criterion = PenalisedResponse(source, penalty, hoisted, scale)
    point = one_step_from(lowest, criterion)
    free, theta = criterion.estimates(point)
    return ResponseAtTheta(source, theta), Point((), free), criterion.value(point), lowest.outcome
