"""-2 log-likelihood with the residual standard deviation free and one linear constraint on the fixed effects.

With t = log sigma and r^2(psi, w) the generalised residual sum of squares, minimised over the fixed effects whose
combination under constraint has the value w,

    D(psi, t, w) = log|V W| - sum log w + n (log 2 pi + 2 t) + r^2(psi, w) exp(-2 t).

The constraint enters after the elimination of the random effects: [X~ y~] is replaced by [X~ N, y~ + w k], N a basis of
the directions that it leaves free, so that G = [X~ y~]'V^-1[X~ y~] is all that is needed and r^2 is quadratic in w.

With one parameter held it is a smooth unconstrained function in a chart of its own. A term's relative Sigma is
A L L' A', its columns ordered so that those of the held parameter come first; then

    a standard deviation v has       L_00 = v exp(-t)
    a correlation sin(u) has         L_00 = s^2, L_10 = r sin(u), L_11 = r cos(u), r = x^2, s and x free
    sigma has                        t = u

and a coefficient is the linear constraint. The squares keep the standard deviations beside a correlation from changing
sign, which would turn it into its opposite; where one of them vanishes all correlations are alike. What distinguishes
the parameters are arrays, so that all are one compiled program.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmixed.algebra.newton import Evaluation, Point
from jmixed.algebra.small import inverse_and_log_determinant
from jmixed.covariance.chart import Chart, chart_map, chart_roots
from jmixed.layout.index import Array
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.derivatives import jets
from jmixed.likelihood.gaussian import psi_of, reduce, squares
from jmixed.likelihood.jets import Jet, constant
from jmixed.likelihood.moments import Moments


class Border(NamedTuple):
    """A linear constraint on the fixed effects of preconditioned columns.

    ``free`` (p, p) holds in its columns a basis of the directions left free, with zero columns in place of those taken
    away; ``padding`` (p,) is one for zero columns, else zero; ``particular`` (p,) takes the constrained combination to
    one.
    """

    free: Array
    padding: Array
    particular: Array


class Constrained(NamedTuple):
    """Value, gradient and Hessian of D in (psi, t, w), and the fixed effects (p,) of preconditioned columns."""

    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    beta: jax.Array


def constrained_deviance(psi, roots, t, w, border: Border, moments: Moments) -> Constrained:
    """D with exact derivatives, at psi (m,) of preconditioned columns with square roots (q, q) of the terms' Sigma."""
    logdet, G = jets(psi, roots, moments)
    squares, coefficients = _squares(G, border)
    weights = jnp.stack([jnp.ones_like(w), w])
    slope = jnp.stack([jnp.zeros_like(w), jnp.ones_like(w)])
    precision, n = jnp.exp(-2 * t), moments.nobs
    rss = weights @ squares.value @ weights
    rss_psi, rss_w = squares.first @ weights @ weights, 2 * slope @ squares.value @ weights
    value = logdet.value - moments.log_weights + n * (jnp.log(2 * jnp.pi) + 2 * t) + precision * rss
    gradient = jnp.concatenate(
        [logdet.first + precision * rss_psi, jnp.stack([2 * n - 2 * precision * rss, precision * rss_w])]
    )
    own = logdet.second + precision * (squares.second @ weights @ weights)
    mixed = precision * jnp.stack([-2 * rss_psi, 2 * squares.first @ weights @ slope], axis=1)
    corner = precision * jnp.stack(
        [jnp.stack([4 * rss, -2 * rss_w]), jnp.stack([-2 * rss_w, 2 * slope @ squares.value @ slope])]
    )
    hessian = jnp.concatenate([jnp.concatenate([own, mixed], axis=1), jnp.concatenate([mixed.T, corner], axis=1)])
    beta = border.free @ (coefficients @ weights) + w * border.particular
    return Constrained(value, gradient, (hessian + hessian.T) / 2, beta)


def _squares(G: Jet, border: Border):
    """Jets of the matrix S (2, 2) with r^2 = (1, w) S (1, w)', and the coefficients (p, 2) of the free directions."""
    p, dtype = border.padding.shape[0], G.value.dtype
    responses = jnp.zeros((p + 1, 2), dtype).at[p, 0].set(1).at[:p, 1].set(-border.particular)
    E = jnp.concatenate([jnp.concatenate([border.free, jnp.zeros((1, p), dtype)]), responses], axis=1)
    turned = Jet(*(jnp.einsum("ai,...ab,bj->...ij", E, part, E) for part in G))
    A = turned.value[:p, :p] + jnp.diag(border.padding)
    inverse, _ = inverse_and_log_determinant(A)
    coefficients = inverse @ turned.value[:p, p:]
    contrast = jnp.concatenate([-coefficients, jnp.eye(2, dtype=dtype)])
    pulled = jnp.einsum("kij,ja->kia", turned.first, contrast)
    bend = jnp.einsum("kia,ij,ljb->klab", pulled[:, :p], inverse, pulled[:, :p])
    squares = Jet(
        contrast.T @ turned.value @ contrast,
        jnp.einsum("ia,kib->kab", contrast, pulled),
        jnp.einsum("ia,klij,jb->klab", contrast, turned.second, contrast) - bend - jnp.swapaxes(bend, 2, 3),
    )
    return squares, coefficients


class Held(NamedTuple):
    """Which parameter is held: constants of one chart. Arrays (m,) are zero but for the entries of L that they name.

    Attributes
    ----------
    bases : tuple of arrays (q, q)
        A of every term.
    keep, squared : arrays (m,)
        One for entries of L that are free as they stand; one for the entry that is the square of its coordinate.
    direct : array (m,)
        The unit of the entry that holds a standard deviation.
    first, second : arrays (m,)
        One for the entries that hold sine and cosine of a correlation.
    sigma : scalar
        One when sigma is held, else zero.
    active : bool array (m + 1,)
        Which of the entries of L, and of t, are free; x is free in the place of the cosine.
    """

    bases: tuple[Array, ...]
    keep: Array
    squared: Array
    direct: Array
    first: Array
    second: Array
    sigma: Array
    border: Border
    active: Array


class InHeld(NamedTuple):
    """What else is known of D at a point: its first and second derivatives in u, and the fixed effects (p,).

    `mixed` (m + 1,) are the second derivatives in u and the coordinates; ``beta`` belongs to preconditioned columns.
    """

    slope: jax.Array
    curvature: jax.Array
    mixed: jax.Array
    beta: jax.Array


@dataclass(frozen=True)
class ConstrainedDeviance(Criterion):
    """D with one parameter held at the value u, a scalar, in coordinates (x, t) (m + 1,)."""

    held: Held
    moments: Moments
    u: jax.Array

    @property
    def free(self):
        """Which of the entries of L, and of t, are free; x is in the place of the cosine."""
        return self.held.active

    def starts(self, given) -> Starts:
        """At coordinates (m + 1,)."""
        return Starts(Point((), given[None]), 1)

    def chart(self, point: Point):
        """The chart of the covariances, and t."""
        held, x, u = self.held, point.x[:-1], self.u
        t = jnp.where(held.sigma > 0, u, point.x[-1])
        turned = (jnp.sin(u) * held.first + jnp.cos(u) * held.second) * (held.second @ x) ** 2
        return Chart(held.bases, held.keep * x + held.squared * x**2 + held.direct * u * jnp.exp(-t) + turned), t

    def value(self, point: Point):
        """D."""
        roots, t = self.estimates(point)
        reduced = reduce(squares(roots), roots, self.moments)
        forms, _ = _squares(constant(reduced.G), self.held.border)
        w = jnp.stack([jnp.ones_like(self.u), self.u])
        residual = self.moments.nobs * (jnp.log(2 * jnp.pi) + 2 * t) + jnp.exp(-2 * t) * (w @ forms.value @ w)
        return reduced.logdet - self.moments.log_weights + residual

    def derivatives(self, point: Point):
        """D with gradient and Hessian in (x, t, u), and the fixed effects."""
        (chart, t), structures, m = self.chart(point), self.moments.layout.terms, point.x.shape[0] - 1
        roots = chart_roots(chart, structures)
        psi = psi_of(squares(roots), structures, point.x.dtype)
        found = constrained_deviance(psi, roots, t, self.u, self.held.border, self.moments)
        inner, bend = chart_map(chart, structures, found.gradient[:m])
        z = jnp.append(point.x, self.u)
        jacobian, bends = _chart_derivatives(self.held, z, t, found.gradient[:m] @ inner)
        full = jnp.concatenate([inner @ jacobian[:m], jacobian[m:]])
        hessian = full.T @ found.hessian @ full + jacobian[:m].T @ bend @ jacobian[:m] + bends
        return Constrained(found.value, found.gradient @ full, hessian, found.beta)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """D with its derivatives; `InHeld` comes with them."""
        at = self.derivatives(point)
        beyond = InHeld(at.gradient[-1], at.hessian[-1, -1], at.hessian[:-1, -1], at.beta)
        return Evaluation(point, at.value, at.gradient[:-1], at.hessian[:-1, :-1], beyond)

    def blank(self) -> InHeld:
        """Nothing known."""
        zero = jnp.zeros_like(self.u)
        return InHeld(
            zero, zero, jnp.zeros(self.held.active.shape, zero.dtype), jnp.zeros_like(self.held.border.padding)
        )

    def estimates(self, point: Point):
        """Square roots of the relative covariances in preconditioned columns, and t."""
        chart, t = self.chart(point)
        return chart_roots(chart, self.moments.layout.terms), t


def _chart_derivatives(held: Held, z, t, slope):
    """Derivatives of (phi, t, w) in z, (m + 2, m + 2), and the second derivatives of slope'phi in z."""
    m, u, unit = len(z) - 2, z[-1], jnp.eye(len(z), dtype=z.dtype)
    x, shrink = held.second @ z[:m], jnp.exp(-t)
    along = jnp.sin(u) * held.first + jnp.cos(u) * held.second
    across = jnp.cos(u) * held.first - jnp.sin(u) * held.second
    d_x = jnp.diag(held.keep + 2 * held.squared * z[:m]) + 2 * x * along[:, None] * held.second[None]
    d_t, d_u = -held.direct * u * shrink, held.direct * shrink + across * x**2
    d_phi = jnp.concatenate([d_x, d_t[:, None], d_u[:, None]], axis=1)
    jacobian = jnp.concatenate([d_phi, ((1 - held.sigma) * unit[m] + held.sigma * unit[m + 1])[None], unit[-1:]])
    mixed = jnp.stack([-slope @ held.direct * shrink, -slope @ along * x**2 / 2])
    x_u = jnp.append(2 * x * (slope @ across) * held.second, mixed)
    own = jnp.append(2 * (slope * held.squared + slope @ along * held.second), jnp.zeros(2, z.dtype))
    bends = jnp.outer(x_u, unit[-1]) + jnp.outer(unit[-1], x_u) + jnp.diag(own)
    return jacobian, bends + jnp.outer(unit[m], unit[m]) * (slope @ held.direct * u * shrink)
