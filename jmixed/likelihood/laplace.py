"""The criterion of a model with a family of responses: -2 log-likelihood by Laplace's approximation, of any layout.

    eta = offset + X beta + Z b,   b ~ N(0, Sigma) by level,   l_i = log f(y_i | eta_i, theta_i)

At the mode of b given y, b = Sigma Z's with the scores s = l', and with the weights W = -l'' there

    L = -2 sum l + e'K e + log|I + Sigma Z'WZ|,     K = Z Sigma Z',  Z b = K e,  e = s

(Tierney and Kadane 1986, J. Am. Stat. Assoc. 81; Pinheiro and Bates 1995, J. Comput. Graph. Stat. 4). Written in e
nothing is divided by: not by Sigma, so that a variance of zero is an ordinary point, nor by W, which may vanish.
Everything that concerns Sigma and Z'WZ is the elimination of the linear model, with working weights.

With P = (Z'WZ + Sigma^-1)^-1, the diagonal h of Z P Z', slopes r = dW/deta, rho = h r and g = Z P Z'rho, the gradient
is in closed form, (v = rho - W g)

    in Sigma: <S, M> + (v - e)'Z M Z'e    in beta: X'(-2 s + v)    in kappa: sum -2 dl + h dW + g ds

with M a direction of Sigma, and d derivatives in kappa at a given eta. The Hessian is its derivative along each
direction, in which the mode moves by (I + W K)^-1 dF, F = s(offset + X beta + K e) at a given e.
"""

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.batched import eigh
from jmixed.algebra.newton import Evaluation, Point, pseudo_inverse
from jmixed.algebra.sparse import SparseFactor
from jmixed.covariance.chart import Chart, chart_at, chart_map, chart_roots
from jmixed.covariance.structure import block_diagonal, join, rectify, theta_of_factors
from jmixed.families.family import DISPERSION, Family
from jmixed.layout.design import ResponseRows, Rows
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.equations import away_from_singular
from jmixed.likelihood.estimates import by_level
from jmixed.likelihood.gaussian import factors_of, precondition, psi_of, reduce, squares
from jmixed.likelihood.grouped import Groups, evaluate, evaluate_apart, groups_of, is_grouped, modes_from
from jmixed.likelihood.inner import damped_newton
from jmixed.likelihood.jets import directions
from jmixed.likelihood.moments import moments
from jmixed.likelihood.preconditioning import Preconditioners, orthonormal, preconditioners
from jmixed.likelihood.products import level_of_rows
from jmixed.likelihood.profiled import InPsi
from jmixed.likelihood.responses import Responses, responses_of
from jmixed.likelihood.spans import (
    Elimination,
    eliminate_effects,
    prior_of,
    scaled,
    to_blocks,
    to_rows,
    working_moments,
)
from jmixed.likelihood.stages import covariances_of, stage_matrix, sum_by_parent
from jmixed.likelihood.start import moment_covariances
from jmixed.likelihood.starts import USUAL, tells_little, terms_compete

SPAN = (0.05, 4.0)
"""Bounds of the variances from which searches start, of columns of unit size: responses tell little of larger ones."""
MULTIPLES = (0.1, 3.0, 100.0)
"""Other multiples of the identity from which to start where terms compete, or levels are few or data thin."""
CALMER = 3.0
"""How much larger the logarithm of a precision is where large random effects leave less to a dispersion."""
SCORING, SHORT = 8, 0.05
"""Steps of Fisher scoring to the coefficients without random effects, at most, and the length of the last of them."""
LONGEST = 3.0
"""Length of a step at most."""


class Modes(NamedTuple):
    """The modes by row: Z b (n,) and e (n,), and the steps that led there."""

    spread: jax.Array
    e: jax.Array
    steps: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LaplaceDeviance(Criterion):
    """-2 log-likelihood by Laplace's approximation in (phi of the covariances, beta, kappa) of preconditioned columns.

    A point's frame holds the bases of the covariances and e (n,), from which the next search for modes starts.

    Attributes
    ----------
    rows : Rows
    X : array (n, p)
        Preconditioned columns of the fixed effects.
    columns : Preconditioners
        Those of the terms.
    responses : Responses
        With preconditioned columns of the further predictors.
    basis : array (p + k, p + k)
        What takes (beta, kappa) of preconditioned columns to those of columns as they are.
    component : int array (n,)
        The part of the data that each row belongs to; parts do not share random effects.
    first : array (2, p + k)
        Coefficients (beta, kappa) from which to start: without random effects, and with less of a dispersion.
    redundant : bool scalar
        Whether the other columns of X explain one of them in the rows at hand.
    groups : Groups or None
        The rows by group where there is one factor: then the frame of a point holds the modes of groups in place of e.
    prior : SparseFactor or None
        The inverse known covariance of related levels where it is sparse, eliminated.
    """

    rows: Rows
    X: jax.Array
    columns: Preconditioners
    responses: Responses
    basis: jax.Array
    component: jax.Array
    first: jax.Array
    redundant: jax.Array
    groups: Groups | None = None
    prior: SparseFactor | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of entries of psi, beta and kappa."""
        extras = sum(columns.shape[0] for columns in self.responses.columns)
        return sum(term.size for term in self.rows.layout.terms), self.X.shape[1], extras

    def predictors(self, free) -> tuple[jax.Array, jax.Array]:
        """The predictor without random effects (n,), and the further ones (u, n), at (beta, kappa)."""
        p = self.X.shape[1]
        return self.responses.offset + self.X @ free[:p], self.responses.extras(free[p:])

    def spread(self, covariances, e) -> jax.Array:
        """K e (n, ...) for e likewise."""
        wide = e.reshape(e.shape[0], -1)
        blocks = scaled(to_blocks(wide, self.rows, self.columns), covariances, self.rows.layout, self.prior)
        return to_rows(blocks, self.rows, self.columns).reshape(e.shape)

    def eliminate(self, covariances, roots, weight) -> Elimination:
        """The random effects eliminated, with working weights (n,)."""
        return eliminate_effects(covariances, roots, weight, self.rows, self.columns, self.prior)

    # ---- modes ----

    def modes(self, covariances, roots, xi, extras, e) -> Modes:
        """The modes by damped Newton steps from e: each component accepts or rejects its own."""

        def objective(spread, e):
            return self._objective(spread, e, xi, extras)

        def direction(spread, e, cautious):
            return self._direction(spread, e, cautious, covariances, roots, xi, extras)

        start = self.spread(covariances, e)
        search = damped_newton(objective, direction, start, e, lambda of_part: of_part[self.component])
        return Modes(search.effects, search.dual, search.steps)

    def _objective(self, spread, e, xi, extras):
        """-2 sum l + e'K e by component, and the size of what is added up, of which rounding takes its part."""
        values = -2 * self.responses.log_kernels(xi + spread, extras) + e * spread
        both = jnp.stack([values, jnp.abs(values)], axis=1)
        total = jax.ops.segment_sum(both, self.component, num_segments=self.components)
        return total[:, 0], total[:, 1]

    @property
    def components(self) -> int:
        """Number of parts, padding too."""
        return self.rows.layout.blocks[-1] if not self.rows.layout.crossed else 1

    def _direction(self, spread, e, cautious, covariances, roots, xi, extras):
        """The Newton step to the modes, and the largest decrement of a component.

        Where a component is `cautious`, weights of log densities that are not concave count as zero.
        """
        score, weight, _, _ = self.responses.derivatives(xi + spread, extras)
        weight = jnp.where(cautious[self.component], jnp.maximum(weight, 0), weight)
        move = self.eliminate(covariances, roots, weight).reach(weight * spread + score) - spread
        # After a step e is the score but for what is of second order, whether or not spread is K e to the last digit.
        gains = jnp.stack([(score - e) * move, jnp.abs(weight) * move**2], axis=1)
        gain = jax.ops.segment_sum(gains, self.component, num_segments=self.components)
        return move, score - weight * move - e, jnp.max(jnp.abs(gain))

    # ---- value and derivatives ----

    def value_and_gradient(self, psi, roots, free, e, drift) -> tuple[jax.Array, jax.Array]:
        """L and its gradient in (psi, beta, kappa), at the modes e where Z b is K e + drift."""
        covariances = covariances_of(psi, self.rows.layout.terms)
        xi, extras = self.predictors(free)
        spread = self.spread(covariances, e) + drift
        table = self.responses.table(xi + spread, extras)

        def logdet(psi, weight):
            eliminated = self.eliminate(covariances_of(psi, self.rows.layout.terms), roots, weight)
            return eliminated.logdet, eliminated

        at = jax.value_and_grad(logdet, argnums=(0, 1), has_aux=True)(psi, table.weight)
        (value, eliminated), (in_sigma, h) = at
        rho = h * table.slope
        g = eliminated.reach(rho)
        v = rho - table.weight * g

        def along(psi):
            return jnp.sum((v - e) * self.spread(covariances_of(psi, self.rows.layout.terms), e))

        in_psi = in_sigma + jax.grad(along)(psi)
        l_u, s_u, w_u = table.in_extras
        in_kappa = self.responses.in_kappa(h[None] * w_u + g[None] * s_u - 2 * l_u)
        gradient = jnp.concatenate([in_psi, self.X.T @ (v - 2 * table.score), in_kappa])
        # Of what rounding does to e only squares remain: this is 2 e'Z b - e'K e.
        return value + jnp.sum(e * (spread + drift) - 2 * table.value), gradient

    def derivatives(self, psi, roots, free, modes: Modes) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """L, its gradient and its Hessian in (psi, beta, kappa), at the modes, and how e moves, (n, m + p + k).

        Large weights leave K e few digits, since e is then a small difference. What it lacks of Z b, which is known
        well, is added to it, and to how it moves.
        """
        m, x, e = len(psi), jnp.concatenate([psi, free]), modes.e
        drift = modes.spread - self.spread(covariances_of(psi, self.rows.layout.terms), e)

        def value_gradient(x, e, drift):
            return self.value_and_gradient(x[:m], roots, x[m:], e, drift)

        (value, gradient), slopes = jax.linearize(value_gradient, x, e, drift)
        rates, drifts = self._rates(x, roots, e, drift)
        directions = jnp.eye(len(x), dtype=x.dtype), rates.T, drifts.T
        hessian = jax.lax.map(lambda direction: slopes(*direction)[1], directions)
        return value, gradient, (hessian + hessian.T) / 2, rates

    def _rates(self, x, roots, e, drift) -> tuple[jax.Array, jax.Array]:
        """How the modes e and the drift move (n, m + p + k) along each of (psi, beta, kappa)."""
        m = self.sizes[0]

        def place(x):
            xi, extras = self.predictors(x[m:])
            return xi + self.spread(covariances_of(x[:m], self.rows.layout.terms), e), extras

        (eta, extras), moved = jax.linearize(place, x)
        table = self.responses.table(eta + drift, extras)
        in_eta, in_extras = jax.vmap(moved)(jnp.eye(len(x), dtype=x.dtype))
        rates = jnp.einsum("un,kun->nk", table.in_extras[1], in_extras) - (table.weight[None] * in_eta).T
        covariances = covariances_of(x[:m], self.rows.layout.terms)
        reached = self.eliminate(covariances, roots, table.weight).reach(rates)
        rates = rates - table.weight[:, None] * reached
        return rates, reached - self.spread(covariances, rates)

    # ---- the contract ----

    def roots(self, point: Point):
        """Square roots of the terms' covariances in preconditioned columns."""
        m, _, _ = self.sizes
        return chart_roots(Chart(point.frame[0], point.x[:m]), self.rows.layout.terms)

    def starts(self, given=None, others=None) -> Starts:
        """Where to look for the optimum: from covariances by moments, and of several sizes where there may be others.

        `given` (q, q) and `others` are as of `jmixed.likelihood.profiled.ProfiledDeviance`.
        """
        layout, dtype = self.rows.layout, self.X.dtype
        score, weight = self._without_effects()
        units, several = [np.eye(term.q, dtype=dtype) for term in layout.terms], self._tell_little(weight)
        if self.prior is None:
            first, multiples = self._moment_covariances(score, weight), MULTIPLES
        else:
            # As in a linear model: moments of related levels would cost more than the steps they save.
            first, multiples = [USUAL[0] * unit for unit in units], USUAL[1:]
        if given is not None:
            known = jnp.all(jnp.stack([jnp.all(jnp.isfinite(covariance)) for covariance in given]))
            first = [jnp.where(known, start, guess) for start, guess in zip(given, first, strict=True)]
            several &= ~known if others is None else jnp.asarray(others) | ~known
        several_units = [np.multiply.outer(multiples, unit).astype(dtype) for unit in units]
        starts = [jnp.concatenate([start[None], unit]) for start, unit in zip(first, several_units, strict=True)]
        # Large random effects leave little for a dispersion to explain.
        free = self.first[np.array([0, *(multiple > 1 for multiple in multiples)], int)]
        charts = jax.vmap(lambda covariances: chart_at(covariances, layout.terms, dtype))(starts)
        nowhere = self.nowhere()
        frames = charts.bases, jnp.broadcast_to(nowhere, (len(free), *nowhere.shape))
        return Starts(Point(frames, jnp.concatenate([charts.phi, free], axis=1)), jnp.where(several, len(free), 1))

    def at_theta(self, theta, free) -> Point:
        """The point of theta (m,) of columns as they are, beta and kappa of preconditioned ones."""
        covariances = squares(precondition(factors_of(theta, self.rows), self.columns.T))
        chart = chart_at(covariances, self.rows.layout.terms, free.dtype)
        return Point((chart.bases, self.nowhere()), jnp.concatenate([chart.phi, free]))

    def of_rows(self, there) -> "LaplaceDeviance":
        """The criterion of the rows (n,) that are there, in the same preconditioned columns."""
        responses = self.responses
        factors = jnp.where(there, responses.factors, 0)
        responses = replace(responses, factors=factors, constants=jnp.where(there, responses.constants, 0))
        groups = None if self.groups is None else groups_of(self.rows, self.X, self.columns, responses)
        return replace(self, responses=responses, groups=groups)

    def nowhere(self) -> jax.Array:
        """What a frame holds when nothing is known of the modes."""
        if self.groups is None:
            return jnp.zeros_like(self.responses.y)
        blocks, q = self.groups.Z.shape[:2]
        return jnp.zeros((blocks, q, self.groups.size), self.X.dtype)

    @property
    def has_several_minima(self) -> Any:
        """Whether more than one minimum is to be expected: terms compete, levels are few, or rows tell little."""
        return self._tell_little(self._without_effects()[1])

    def _tell_little(self, weight):
        """The same, from working weights (n,) without random effects."""
        layout = self.rows.layout
        compete = terms_compete(layout.terms, layout.factors)
        return compete | tells_little(layout, jnp.sum(jnp.minimum(weight, 1)))

    def _without_effects(self):
        """Scores and working weights (n,) of the rows without random effects."""
        score, weight, _, _ = self.responses.derivatives(*self.predictors(self.first[0]))
        return score, jnp.where(self.responses.factors > 0, jnp.maximum(weight, 1e-8), 0)

    def _moment_covariances(self, score, weight):
        """Covariances by moments of the working response without random effects, within `SPAN`."""
        there = self.responses.factors > 0
        working = jnp.where(there, score / jnp.where(there, weight, 1), 0)
        rows = replace(self.rows, y=working, offset=jnp.zeros_like(working), X=self.X, weights=weight)
        p = self.X.shape[1]
        unit = jnp.eye(p, dtype=self.X.dtype)
        none = Preconditioners(unit, unit, jnp.zeros(p, self.X.dtype), self.columns.T)
        covariances = moment_covariances(moments(rows, none, counted=False))
        return [_within(covariance, *SPAN) for covariance in covariances]

    def value(self, point: Point):
        """L, as a function that JAX can differentiate."""
        start = point.frame[1] if self.groups is None else None
        return self.at_roots(self.roots(point), point.x[self.sizes[0] :], start)

    def at_roots(self, roots, free, start=None):
        """L at square roots of the covariances, beta and kappa of preconditioned columns, likewise."""
        covariances, (xi, extras) = squares(roots), self.predictors(free)
        roots, start = stop_gradient(roots), jnp.zeros_like(xi) if start is None else start
        e = _modes(self, covariances, roots, xi, extras, start)
        return self.deviance(covariances, roots, xi, extras, e)

    def deviance(self, covariances, roots, xi, extras, e):
        """L at the modes e."""
        spread = self.spread(covariances, e)
        weight = self.responses.derivatives(xi + spread, extras).weight
        logdet = self.eliminate(covariances, roots, weight).logdet
        return logdet + jnp.sum(e * spread - 2 * self.responses.log_densities(xi + spread, extras))

    def at(self, theta, beta, kappa):
        """L at theta, beta and kappa of columns as they are."""
        roots = precondition(factors_of(theta, self.rows), self.columns.T)
        return self.at_roots(roots, self.preconditioned(beta, kappa))

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """L with its derivatives, in a chart around the point; those in (psi, beta, kappa), `InPsi`, come with them."""
        m, structures, dtype = self.sizes[0], self.rows.layout.terms, point.x.dtype
        roots, free = self.roots(point), point.x[m:]
        covariances = squares(roots)
        value, gradient, hessian, known = self.in_psi(roots, free, point.frame[1])
        back = block_diagonal([jnp.eye(m, dtype=dtype), jnp.linalg.inv(self.basis)])
        in_psi = InPsi(back.T @ gradient, back.T @ hessian @ back, jnp.zeros_like(gradient))
        chart = chart_at(covariances, structures, dtype)
        gradient, hessian = self._in_chart(chart, gradient, hessian)
        point = Point((chart.bases, known), jnp.concatenate([chart.phi, free]))
        return Evaluation(point, value, gradient, hessian, in_psi)

    def _in_chart(self, chart: Chart, gradient, hessian) -> tuple[jax.Array, jax.Array]:
        """Derivatives in (phi, beta, kappa) from those in (psi, beta, kappa)."""
        m, p, k = self.sizes
        jacobian, bend = chart_map(chart, self.rows.layout.terms, gradient[:m])
        jacobian = block_diagonal([jacobian, jnp.eye(p + k, dtype=gradient.dtype)])
        return gradient @ jacobian, jacobian.T @ hessian @ jacobian + jnp.pad(bend, (0, p + k))

    def in_psi(self, roots, free, start) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """L, its gradient and its Hessian in (psi, beta, kappa), and the modes that were found from a `start`.

        At square roots (q, q) of the terms' covariances in preconditioned columns, and beta and kappa of such columns.
        """
        covariances = squares(roots)
        if self.groups is not None:
            return evaluate(self.groups, *self._of_groups(covariances, roots), free, start)
        psi = psi_of(covariances, self.rows.layout.terms, free.dtype)
        if self.prior is not None:
            return self._near_psi(psi, free, start)
        modes = self.modes(covariances, roots, *self.predictors(free), start)
        return *self.derivatives(psi, roots, free, modes)[:3], modes.e

    def _near_psi(self, psi, free, start) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        """The same of sparse equations, whose derivatives are those through roots of covariances that are regular.

        Beside a singular covariance value, gradient and modes are brought back by the derivatives there; of a structure
        that is not linear in psi they are those of a variance of a hundred-millionth, in columns of unit size.
        """
        terms = self.rows.layout.terms
        shift = away_from_singular(psi, terms)
        covariances = covariances_of(psi + shift, terms)
        modes = self.modes(covariances, None, *self.predictors(free), start)
        value, gradient, hessian, rates = self.derivatives(psi + shift, None, free, modes)
        shift = jnp.pad(shift, (0, len(free)))
        bend = hessian @ shift
        return value - shift @ gradient + shift @ bend / 2, gradient - bend, hessian, modes.e - rates @ shift

    def _of_groups(self, covariances, roots):
        """Sigma of a group, a square root of it, and its derivatives in psi."""
        layout = self.rows.layout
        _, M, N = directions(layout, 0, psi_of(covariances, layout.terms, self.X.dtype))
        sigma, root = (stage_matrix(layout, 0, matrices) for matrices in (covariances, roots))
        return sigma, root, jnp.asarray(M), N

    def with_modes(self, point: Point) -> Point:
        """The point, with the modes there in its frame."""
        roots, free = self.roots(point), point.x[self.sizes[0] :]
        covariances = squares(roots)
        if self.groups is None:
            found = self.modes(covariances, roots, *self.predictors(free), point.frame[1]).e
        else:
            sigma, root, _, _ = self._of_groups(covariances, roots)
            found = modes_from(self.groups, sigma, root, free, point.frame[1])
        return Point((point.frame[0], found), point.x)

    def without_each(self, point: Point, apart: Groups) -> tuple[jax.Array, jax.Array]:
        """Gradients (blocks, d) and Hessians (blocks, d, d) at a point, in its chart, of L without each block.

        The blocks are those of `apart`, the rows of a layout with one factor.
        """
        m = self.sizes[0]
        roots, chart = self.roots(point), Chart(point.frame[0], point.x[:m])
        nowhere = jnp.zeros((apart.Z.shape[0], apart.Z.shape[1], apart.size), self.X.dtype)
        of_groups = self._of_groups(squares(roots), roots)
        _, gradients, hessians = evaluate_apart(apart, *of_groups, point.x[m:], nowhere)
        of_others = (jnp.sum(own, axis=0, keepdims=True) - own for own in (gradients, hessians))
        return jax.vmap(partial(self._in_chart, chart))(*of_others)

    def parameters(self, point: Point) -> tuple[jax.Array, jax.Array]:
        """theta (m,) of columns as they are, and (beta, kappa) (p + k,) of such columns."""
        on_scale = [T @ root for T, root in zip(self.columns.T, self.roots(point), strict=True)]
        theta = theta_of_factors(self.rows.layout.terms, map(rectify, on_scale), point.x.dtype)
        return theta, self.basis @ point.x[self.sizes[0] :]

    def blank(self) -> InPsi:
        """Nothing known."""
        return InPsi.blank(sum(self.sizes), self.rows.y.dtype)

    def estimates(self, point: Point, value: Any = None) -> dict[str, Any]:
        """All estimates on the scale of the data: as of `jmixed.likelihood.estimates`, sigma one, and rho kappa.

        The modes are those of the terms' levels, padding too, which the frame has. Where the `value` of L at the point
        is not given, both are functions of the point.
        """
        roots, free = self.roots(point), point.x[self.sizes[0] :]
        covariances, known = squares(roots), point.frame[1]
        if value is None:
            xi, extras = self.predictors(free)
            still = stop_gradient((self, covariances, xi, extras, known))
            known = _settled(self, covariances, stop_gradient(roots), xi, extras, still[0].by_row(*still[1:]))
            value = self.deviance(covariances, roots, xi, extras, known)
        levels = self.effects(covariances, known)
        on_scale = [T @ root for T, root in zip(self.columns.T, roots, strict=True)]
        theta = theta_of_factors(self.rows.layout.terms, map(rectify, on_scale), free.dtype)
        return self.described(on_scale, theta, free, value, levels)

    def effects(self, covariances, known) -> list[jax.Array]:
        """Effects (levels, q) by term, of columns as they are, from modes by row or by group."""
        return self.levels_of([block[:, 0] for block in self.blocks_of(covariances, known)], self.columns.T)

    def blocks_of(self, covariances, known) -> list[jax.Array]:
        """Effects (Q, 1, blocks) by stage, likewise."""
        if known.ndim == 1:
            blocks = to_blocks(known[:, None], self.rows, self.columns)
        else:
            blocks = [jnp.moveaxis(known, 0, 1).reshape(known.shape[1], 1, -1)]
        return scaled(blocks, covariances, self.rows.layout, self.prior)

    def by_row(self, covariances, xi, extras, known) -> jax.Array:
        """Modes e (n,) from modes by row or by group."""
        if known.ndim == 1:
            return known
        spread = to_rows(self.blocks_of(covariances, known), self.rows, self.columns)[:, 0]
        return self.responses.derivatives(xi + spread, extras).score

    def effects_at(self, theta, beta, kappa) -> list[jax.Array]:
        """The modes of the effects, likewise, at theta, beta and kappa of columns as they are."""
        roots = precondition(factors_of(theta, self.rows), self.columns.T)
        return self._effects_at(squares(roots), roots, beta, kappa)

    def effects_at_psi(self, psi, theta, beta, kappa) -> list[jax.Array]:
        """The same at psi (m,) of columns as they are, of which theta tells square roots: it can be differentiated."""
        roots = precondition(factors_of(theta, self.rows), self.columns.T)
        back = [jnp.linalg.inv(T) for T in self.columns.T]
        sigmas = covariances_of(psi, self.rows.layout.terms)
        return self._effects_at([B @ sigma @ B.T for B, sigma in zip(back, sigmas, strict=True)], roots, beta, kappa)

    def _effects_at(self, covariances, roots, beta, kappa) -> list[jax.Array]:
        xi, extras = self.predictors(self.preconditioned(beta, kappa))
        e = _modes(self, tuple(covariances), stop_gradient(roots), xi, extras, jnp.zeros_like(xi))
        return self.effects(tuple(covariances), e)

    def preconditioned(self, beta, kappa) -> jax.Array:
        """(beta, kappa) (p + k,) of preconditioned columns."""
        return jnp.linalg.solve(self.basis, jnp.concatenate([beta, kappa]))

    def by_part(self, theta, beta, kappa) -> jax.Array:
        """L of each part of the data (parts,), which share no random effects, at theta, beta and kappa likewise."""
        layout = self.rows.layout
        roots = precondition(factors_of(theta, self.rows), self.columns.T)
        covariances, (xi, extras) = squares(roots), self.predictors(self.preconditioned(beta, kappa))
        e = _modes(self, covariances, stop_gradient(roots), xi, extras, jnp.zeros_like(xi))
        spread = self.spread(covariances, e)
        rows = e * spread - 2 * self.responses.log_densities(xi + spread, extras)
        total = jax.ops.segment_sum(rows, self.component, num_segments=self.components)
        working = working_moments(self.responses.derivatives(xi + spread, extras).weight, self.rows, self.columns)
        # With repeats, nothing is summed over blocks before it is known whose block it is.
        apart = replace(working, repeats=jnp.ones((), rows.dtype))
        stages = reduce(covariances, stop_gradient(roots), apart).stages
        last = len(stages) - 1
        for s, stage in enumerate(stages):
            logs = stage.logdet[None]
            if s < last:
                logs = sum_by_parent(logs, self.rows.index.parents[s][-1], layout.blocks[last])
            total += logs[0]
        return total

    def levels_of(self, blocks, T):
        """Effects (levels, q) by term from blocks (Q, blocks) by stage, of columns that T (q, q) preconditions."""
        return by_level(blocks, _Places(self.rows.layout, self.rows.index, T))

    def described(self, roots, theta, free, value, levels) -> dict[str, Any]:
        """The estimates by name."""
        original, p, sigma = self.basis @ free, self.X.shape[1], jnp.ones((), free.dtype)
        parts = {"beta": original[:p], "rho": original[p:], "sigma": sigma}
        return parts | {"roots": roots, "theta": theta, "objective": value, "modes": levels}

    def as_entries(self, point: Point) -> Point:
        """A point with the entries of theta in the place of phi, and modes for columns as they are."""
        m = self.sizes[0]
        factors = [rectify(T @ root) for T, root in zip(self.columns.T, self.roots(point), strict=True)]
        theta = theta_of_factors(self.rows.layout.terms, factors, point.x.dtype)
        back = block_diagonal([jnp.linalg.inv(T) for T in self.columns.T])
        modes = jnp.einsum("ji,bjg->big", back, point.frame[1])
        return Point(modes, jnp.concatenate([theta, point.x[m:]]))

    def on_scale(self, hessian) -> jax.Array:
        """Covariance (p + k, p + k) of beta and kappa of original columns, from the Hessian in a chart."""
        m = self.sizes[0]
        return 2 * self.basis @ pseudo_inverse(hessian)[m:, m:] @ self.basis.T


class _Places(NamedTuple):
    """What `by_level` asks of cross-products."""

    layout: Any
    index: Any
    T: tuple[jax.Array, ...]


def _within(covariance, least, largest):
    values, vectors = eigh(covariance)
    return (vectors * jnp.clip(values, least, largest)[None]) @ vectors.T


def _modes(deviance: LaplaceDeviance, covariances, roots, xi, extras, start):
    """The modes e (n,) as a function of everything but where the search starts."""
    still = stop_gradient((deviance, covariances, roots, xi, extras, start))
    return _settled(deviance, covariances, roots, xi, extras, still[0].modes(*still[1:]).e)


@jax.custom_jvp
def _settled(deviance: LaplaceDeviance, covariances, roots, xi, extras, e):
    """Modes e (n,) that are known, as a function of everything else.

    With e = F(e), F = s(xi + K e), the implicit function theorem gives de = (I + W K)^-1 dF, and (I + W K)^-1 is
    I - W Z P Z'. The rule is written with functions that can be differentiated again.
    """
    return e


@_settled.defjvp
def _settled_tangent(primals, tangents):
    deviance, covariances, roots, xi, extras, _ = primals
    e = _settled(*primals)

    def scores(deviance, covariances, xi, extras):
        return deviance.responses.derivatives(xi + deviance.spread(covariances, e), extras).score

    moved = (tangents[0], tangents[1], tangents[3], tangents[4])
    _, change = jax.jvp(scores, (deviance, covariances, xi, extras), moved)
    weight = deviance.responses.derivatives(xi + deviance.spread(covariances, e), extras).weight
    return e, change - weight * deviance.eliminate(covariances, roots, weight).reach(change)


def laplace_deviance(rows: Rows) -> LaplaceDeviance:
    """The criterion of rows, with their columns preconditioned and a start."""
    there = (rows.weights > 0).astype(rows.y.dtype)
    count, family = jnp.maximum(jnp.sum(there), 1), cast(Family, rows.layout.family)
    further = cast(ResponseRows, rows.response).extras
    plain = responses_of(rows, further)
    begin = jnp.where(there > 0, family.start(plain.y, plain.trials), 0)
    # The first threshold takes up a shift of the predictor, as an intercept does, which X has none of beside it.
    middle = stop_gradient(there @ rows.X) / count if family.response == "categories" else None
    centred = rows.X if middle is None else rows.X - middle[None]
    linear = replace(rows, X=centred, y=stop_gradient(begin), weights=there)
    columns = preconditioners(linear)
    bases = (columns.basis * jnp.sqrt(count), *(orthonormal(a, there) * jnp.sqrt(count) for a in further))
    X = centred @ bases[0]
    basis = block_diagonal(bases)
    if middle is not None:
        basis = basis.at[X.shape[1], : X.shape[1]].set(middle @ bases[0])
    extras = tuple(a @ basis for a, basis in zip(further, bases[1:], strict=True))
    responses = responses_of(rows, extras)
    coefficients = (columns.R @ columns.beta0) / jnp.sqrt(count)
    first = _first(*stop_gradient((X, responses, coefficients)))
    component = component_of_rows(rows)
    length = jnp.sqrt(jnp.sum(there[:, None] * stop_gradient(X) ** 2, axis=0) / count)
    redundant = jnp.any(length < 0.5) | (X.shape[1] > count)
    groups = groups_of(rows, X, columns, responses) if is_grouped(rows.layout) else None
    known = groups, prior_of(rows)
    return LaplaceDeviance(rows, X, columns, responses, basis, component, first, redundant, *known)


def _first(X, responses: Responses, beta):
    """Coefficients (beta, kappa) to start from: of no random effects, by Fisher scoring with steps that are short."""
    family, there = responses.family, responses.factors > 0
    count = jnp.maximum(jnp.sum(there.astype(X.dtype)), 1)
    mean = responses.y
    if type(family).mean is not Family.mean and family.response != "categories":
        none = jnp.zeros((len(family.extras), *responses.y.shape), X.dtype)
        mean = family.mean(responses.offset + X @ beta, none)
    theta = family.start_extras(responses.y, mean, responses.trials, responses.factors)
    pieces = [columns @ jnp.where(there, theta[u], 0) / count for u, columns in enumerate(responses.columns)]
    kappa = join(pieces, X.dtype)
    less = [
        columns @ jnp.where(there, math.copysign(CALMER, family.precision_sign) * (name == DISPERSION), 0) / count
        for name, columns in zip(family.extras, responses.columns, strict=True)
    ]
    extras = responses.extras(kappa)

    def score(scored):
        beta, _, steps = scored
        at = responses.derivatives(responses.offset + X @ beta, extras)
        weight = jnp.where(there, jnp.maximum(at.weight, 1e-4 * responses.factors), 0)
        information = X.T @ (weight[:, None] * X)
        damped = information + 1e-9 * (1 + jnp.trace(information)) * jnp.eye(len(beta), dtype=X.dtype)
        step = jnp.linalg.solve(damped, X.T @ at.score)
        step = jnp.where(jnp.all(jnp.isfinite(step)), step, 0)
        length = jnp.max(jnp.abs(step))
        return beta + step * jnp.minimum(1, LONGEST / jnp.maximum(length, 1e-30)), length, steps + 1

    def goes_on(scored):
        return (scored[1] > SHORT) & (scored[2] < SCORING)

    if len(beta):
        begin = beta, jnp.full((), jnp.inf, beta.dtype), np.int32(0)
        beta, *_ = jax.lax.while_loop(goes_on, score, begin)
    return jnp.stack([jnp.concatenate([beta, kappa]), jnp.concatenate([beta, kappa + join(less, X.dtype)])])


def component_of_rows(rows: Rows) -> jax.Array:
    """The block of the last stage (n,) that each row lies in: a part that shares no random effects with others."""
    layout, index = rows.layout, rows.index
    if layout.crossed or not layout.stages:
        return jnp.zeros(rows.y.shape[0], jnp.int32)
    factor = layout.stages[-1][0][0]
    level = level_of_rows(index.groupings[factor], rows.y.shape[0])
    blocks = jnp.asarray(index.block[factor])[level]
    return jnp.minimum(blocks, layout.blocks[-1] - 1)
