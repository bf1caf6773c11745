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
    sigma has                        t = u, or u + s'rho where it is sigma elsewhere than t's

and a coefficient is the linear constraint. Of residuals with parameters rho one is held, or one correlation that they
amount to (see `ResidualStructure.beside`). The squares keep the standard deviations beside a correlation from changing
sign, which would turn it into its opposite; where one of them vanishes all correlations are alike. What distinguishes
the parameters are arrays, so that all are one compiled program.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.newton import Evaluation, Point
from jmixed.algebra.small import bordered, inverse_and_log_determinant
from jmixed.covariance.chart import Chart, chart_map, chart_roots
from jmixed.layout.index import Array
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.derivatives import jets
from jmixed.likelihood.gaussian import psi_of, reduce, squares
from jmixed.likelihood.jets import Jet, constant
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.whitened import WhitenedDeviance


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


def constrained_deviance(logdet: Jet, G: Jet, t, w, border: Border, sums: Any) -> Constrained:
    """D with exact derivatives, from jets of log|V W| and of G in psi (m,) of preconditioned columns, and in rho.

    Of the cross-products `sums` it takes the number of rows and the weights.
    """
    weights = jnp.stack([jnp.ones_like(w), w])
    squares, bend, coefficients = _squares(G, border, weights)
    slope = jnp.stack([jnp.zeros_like(w), jnp.ones_like(w)])
    precision, n = jnp.exp(-2 * t), sums.nobs
    rss = weights @ squares.value @ weights
    rss_psi, rss_w = squares.first @ weights @ weights, 2 * slope @ squares.value @ weights
    value = logdet.value - sums.log_weights + n * (jnp.log(2 * jnp.pi) + 2 * t) + precision * rss
    gradient = jnp.concatenate(
        [logdet.first + precision * rss_psi, jnp.stack([2 * n - 2 * precision * rss, precision * rss_w])]
    )
    of_psi = logdet.second + precision * bend
    mixed = precision * jnp.stack([-2 * rss_psi, 2 * squares.first @ weights @ slope], axis=1)
    corner = precision * jnp.stack(
        [jnp.stack([4 * rss, -2 * rss_w]), jnp.stack([-2 * rss_w, 2 * slope @ squares.value @ slope])]
    )
    hessian = bordered(of_psi, mixed, corner)
    beta = border.free @ (coefficients @ weights) + w * border.particular
    return Constrained(value, gradient, (hessian + hessian.T) / 2, beta)


def _squares(G: Jet, border: Border, weights):
    """Value and slopes of the matrix S (2, 2) with r^2 = (1, w) S (1, w)', and second derivatives of r^2.

    Beside them the coefficients (p, 2) of the free directions. `weights` are (1, w).
    """
    p, dtype = border.padding.shape[0], G.value.dtype
    responses = jnp.zeros((p + 1, 2), dtype).at[p, 0].set(1).at[:p, 1].set(-border.particular)
    E = jnp.concatenate([jnp.concatenate([border.free, jnp.zeros((1, p), dtype)]), responses], axis=1)
    value, first = (jnp.einsum("ai,...ab,bj->...ij", E, part, E) for part in (G.value, G.first))
    inverse, _ = inverse_and_log_determinant(value[:p, :p] + jnp.diag(border.padding))
    coefficients = inverse @ value[:p, p:]
    contrast = jnp.concatenate([-coefficients, jnp.eye(2, dtype=dtype)])
    pulled = jnp.einsum("kij,ja->kia", first, contrast)
    squares = _Squares(contrast.T @ value @ contrast, jnp.einsum("ia,kib->kab", contrast, pulled))
    left, moved = E @ (contrast @ weights), pulled[:, :p] @ weights
    if callable(G.second):
        bend: Any = G.second(left[:, None] * left[None])
    else:
        bend = jnp.einsum("klij,i,j->kl", G.second, left, left)
    return squares, bend - 2 * jnp.einsum("ki,ij,lj->kl", moved, inverse, moved), coefficients


class _Squares(NamedTuple):
    """Value (2, 2) and slopes (m, 2, 2)."""

    value: jax.Array
    first: jax.Array


class HeldResidual(NamedTuple):
    """Which parameter of the residuals is held: constants of one chart.

    `entries` (k,) of rho are one for the one that is held itself, else zero; `number` of the correlation that is held,
    negative if none is. `shift` (k,), times rho, is what log sigma lacks where it is held: zeros but for sigma.
    """

    entries: Array
    number: Array
    shift: Array


class HeldParameter(NamedTuple):
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
    active : bool array (m + 1 + k,)
        Which of the entries of L, of t, and of rho are free; x is free in the place of the cosine.
    residual : HeldResidual or None
        Of residuals that have parameters.
    steps : array (p + k,) or None
        Of a response with a family: what is taken from u, as `jmixed.likelihood.constrained_responses` has it. Its
        `border` and `active` are of all coefficients.
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
    residual: HeldResidual | None = None
    steps: Array | None = None

    def along(self, u):
        """Sine and cosine of u at the entries that hold them."""
        return jnp.sin(u) * self.first + jnp.cos(u) * self.second

    def phi(self, x, u, precision):
        """The entries of L (m,) at x (m,) and u, where a standard deviation is held one over sigma of it."""
        turned = self.along(u) * (self.second @ x) ** 2
        return self.keep * x + self.squared * x**2 + self.direct * u * precision + turned


class InHeld(NamedTuple):
    """What else is known of D at a point: its first and second derivatives in u, and the fixed effects (p,).

    `mixed` (m + 1 + k,) are the second derivatives in u and the coordinates; ``beta`` belongs to preconditioned
    columns.
    """

    slope: jax.Array
    curvature: jax.Array
    mixed: jax.Array
    beta: jax.Array

    @classmethod
    def blank(cls, held: HeldParameter, u) -> Self:
        """Nothing known."""
        zero = jnp.zeros_like(u)
        return cls(zero, zero, jnp.zeros(held.active.shape, zero.dtype), jnp.zeros_like(held.border.padding))


@dataclass(frozen=True)
class ConstrainedDeviance(Criterion):
    """D with one parameter held at the value u, a scalar, in coordinates (x, t, v) (m + 1 + k,), v those of rho.

    `source` are cross-products, or what has them at any rho.
    """

    held: HeldParameter
    source: Moments | WhitenedDeviance
    u: jax.Array

    @property
    def free(self):
        """Which coordinates are free; x is in the place of the cosine."""
        return self.held.active

    def starts(self, given) -> Starts:
        """At coordinates (m + 1 + k,)."""
        return Starts(Point((), given[None]), 1)

    @property
    def _layout(self):
        return self.source.layout if isinstance(self.source, Moments) else self.source.rows.layout

    def chart(self, point: Point):
        """The chart of the covariances, and t."""
        x, t, v = self._parts(point)
        beyond = 0 if self.held.residual is None else self.held.residual.shift @ v
        t = jnp.where(self.held.sigma > 0, self.u + beyond, t)
        return Chart(self.held.bases, self.held.phi(x, self.u, jnp.exp(-t))), t

    def _parts(self, point: Point):
        """x, t and v."""
        m = self.held.keep.shape[0]
        return point.x[:m], point.x[m], point.x[m + 1 :]

    def rho(self, v, u):
        """Parameters of the residuals, from their coordinates and the value that is held."""
        held, residual = self.held.residual, self._layout.residual
        if held is None:
            return v
        k, number = residual.columns, jnp.maximum(held.number, 0)
        v = jnp.where(held.entries > 0, u, v)
        if not residual.correlations:
            return v
        beside = residual.beside(v[k:], jnp.where(held.number < 0, 0, u), number)
        return jnp.concatenate([v[:k], jnp.where(held.number < 0, v[k:], beside)])

    def value(self, point: Point):
        """D."""
        roots, t, rho = self.estimates(point)
        moments = self.source if isinstance(self.source, Moments) else self.source.moments(rho)
        reduced, w = reduce(squares(roots), roots, moments), jnp.stack([jnp.ones_like(self.u), self.u])
        forms, _, _ = _squares(constant(reduced.G), self.held.border, w)
        residual = moments.nobs * (jnp.log(2 * jnp.pi) + 2 * t) + jnp.exp(-2 * t) * (w @ forms.value @ w)
        return reduced.logdet - moments.log_weights + residual

    def derivatives(self, point: Point):
        """D with gradient and Hessian in (x, t, v, u), and the fixed effects."""
        (chart, t), structures, u = self.chart(point), self._layout.terms, self.u
        x, free_t, v = self._parts(point)
        m, k = len(x), len(v)
        roots = chart_roots(chart, structures)
        logdet, G, sums = self._jets(psi_of(squares(roots), structures, x.dtype), roots, self.rho(v, u))
        constrained = constrained_deviance(logdet, G, t, u, self.held.border, sums)
        empty = jnp.zeros((0, 0), x.dtype)
        inner, bend = chart_map(chart, structures, constrained.gradient[:m]) if structures else (empty, empty)
        z = jnp.append(x, jnp.stack([free_t, u]))
        jacobian, bends = _chart_derivatives(self.held, z, t, constrained.gradient[:m] @ inner)
        bends = jacobian[:m].T @ bend @ jacobian[:m] + bends
        jacobian = jnp.concatenate([inner @ jacobian[:m], jacobian[m:]])
        if k:
            slopes = self._rho_derivatives(v, constrained.gradient[m : m + k])
            jacobian, bends = _beside_rho(jacobian, bends, *slopes)
            if self.held.residual is not None:
                jacobian = jacobian.at[m + k, m + 1 : m + 1 + k].add(self.held.sigma * self.held.residual.shift)
        hessian = jacobian.T @ constrained.hessian @ jacobian + bends
        return Constrained(constrained.value, constrained.gradient @ jacobian, hessian, constrained.beta)

    def _jets(self, psi, roots, rho):
        """Jets of log|V W| and of G, and cross-products."""
        if isinstance(self.source, Moments):
            return *jets(psi, roots, self.source), self.source
        return self.source.jets(psi, roots, rho)

    def _rho_derivatives(self, v, slope):
        """Derivatives of rho (k, k + 1) in (v, u), and the second derivatives of slope'rho."""

        def rho(z):
            return self.rho(z[:-1], z[-1])

        z = jnp.append(v, self.u)
        return jax.jacfwd(rho)(z), jax.jacfwd(jax.jacfwd(lambda z: slope @ rho(z)))(z)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """D with its derivatives; `InHeld` comes with them."""
        at = self.derivatives(point)
        beyond = InHeld(at.gradient[-1], at.hessian[-1, -1], at.hessian[:-1, -1], at.beta)
        return Evaluation(point, at.value, at.gradient[:-1], at.hessian[:-1, :-1], beyond)

    def blank(self) -> InHeld:
        """Nothing known."""
        return InHeld.blank(self.held, self.u)

    def estimates(self, point: Point):
        """Square roots of the relative covariances in preconditioned columns, t, and rho."""
        chart, t = self.chart(point)
        _, _, v = self._parts(point)
        return chart_roots(chart, self._layout.terms), t, self.rho(v, self.u)


def _chart_derivatives(held: HeldParameter, z, t, slope):
    """Derivatives of (phi, t, w) in z, (m + 2, m + 2), and the second derivatives of slope'phi in z."""
    m, u, unit = len(z) - 2, z[-1], jnp.eye(len(z), dtype=z.dtype)
    x, shrink = held.second @ z[:m], jnp.exp(-t)
    along = held.along(u)
    across = jnp.cos(u) * held.first - jnp.sin(u) * held.second
    d_x = jnp.diag(held.keep + 2 * held.squared * z[:m]) + 2 * x * along[:, None] * held.second[None]
    d_t, d_u = -held.direct * u * shrink, held.direct * shrink + across * x**2
    d_phi = jnp.concatenate([d_x, d_t[:, None], d_u[:, None]], axis=1)
    jacobian = jnp.concatenate([d_phi, ((1 - held.sigma) * unit[m] + held.sigma * unit[m + 1])[None], unit[-1:]])
    mixed = jnp.stack([-slope @ held.direct * shrink, -slope @ along * x**2 / 2])
    x_u = jnp.append(2 * x * (slope @ across) * held.second, mixed)
    x_x = jnp.append(2 * (slope * held.squared + slope @ along * held.second), jnp.zeros(2, z.dtype))
    bends = jnp.outer(x_u, unit[-1]) + jnp.outer(unit[-1], x_u) + jnp.diag(x_x)
    return jacobian, bends + jnp.outer(unit[m], unit[m]) * (slope @ held.direct * u * shrink)


def _beside_rho(jacobian, bends, rho_slopes, rho_bends):
    """Derivatives in (x, t, v, u), from those of (phi, t, w) in (x, t, u) and those of rho (k,) in (v, u).

    Rows of rho stand before those of t and w.
    """
    k, size = len(rho_slopes), len(jacobian) + len(rho_slopes)
    m, rest = size - k - 2, np.delete(np.arange(size), size - 1 - k + np.arange(k))
    wide = jnp.zeros((size - k, size), jacobian.dtype).at[:, rest].set(jacobian)
    of_rho = jnp.zeros((k, size), jacobian.dtype).at[:, m + 1 :].set(rho_slopes)
    bends = jnp.zeros((size, size), bends.dtype).at[np.ix_(rest, rest)].set(bends)
    return jnp.concatenate([wide[:m], of_rho, wide[m:]]), bends.at[m + 1 :, m + 1 :].add(rho_bends)
