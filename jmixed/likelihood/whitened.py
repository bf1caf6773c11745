"""The criterion of a fit whose residuals have parameters rho: the profiled deviance of rows that are whitened by them.

    d(psi, rho) = profiled deviance at psi of the cross-products of rows that are white at rho  +  log|D^1/2 R D^1/2|

The coordinates are those of psi in its chart (see `jmixed.likelihood.profiled`), and then rho itself, which is
unconstrained. Cross-products are jets in rho, with which the elimination begins: they take part in it as directions
that come before its first stage (see `jmixed.likelihood.derivatives`), so that value, gradient and Hessian are exact.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import sweep
from jmixed.algebra.newton import Evaluation, Point
from jmixed.covariance.chart import Chart, chart_at, chart_map, chart_roots, chart_sizes
from jmixed.covariance.structure import block_diagonal
from jmixed.layout.design import Rows
from jmixed.likelihood.combined import Combined, can_be_combined, combined
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.derivatives import Derivatives, MomentJets, derivatives_of, jets
from jmixed.likelihood.gaussian import degrees, deviance, profile, psi_of, reduce, squares
from jmixed.likelihood.jets import Jet
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.moments import moments as cross_products
from jmixed.likelihood.patterned import Patterns, has_patterns, jets_by_pattern, patterns_of, start_by_pattern, sums_of
from jmixed.likelihood.preconditioning import Preconditioners
from jmixed.likelihood.profiled import FLATNESS, InPsi, ProfiledDeviance
from jmixed.likelihood.stages import covariances_of
from jmixed.residual.visits import Visits
from jmixed.runtime.device import on_cpu

EDGE = 7.0
"""Size of tau beyond which a correlation is at its boundary, but for one part in a million."""


class _Tables(NamedTuple):
    """The cross-products that change with rho."""

    C: tuple[jax.Array, ...]
    B: tuple[jax.Array, ...]
    G: jax.Array
    logdet: jax.Array


def whitened_deviance(rows: Rows, columns: Preconditioners, reml) -> "WhitenedDeviance":
    """The criterion of rows, by sums where these say all of them."""
    if has_patterns(rows):
        return WhitenedDeviance(rows, columns, reml, patterns_of(rows, columns))
    return WhitenedDeviance(rows, columns, reml, combined=combined(rows, columns))


def reads_rows(rows: Rows) -> bool:
    """Whether every evaluation goes through the rows: other responses, and residuals of which no sums say all.

    On a CPU such fits are made one after the other: side by side, their tables would leave its caches, and each would
    wait for the longest search.
    """
    if rows.layout.family is not None:
        return on_cpu()
    return bool(rows.layout.residual.size) and on_cpu() and not (has_patterns(rows) or can_be_combined(rows))


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class WhitenedDeviance(Criterion):
    """The profiled deviance of rows with parameters rho of their residuals.

    `columns` are their preconditioners; `patterns` and `combined` are sums that say all of the rows, where there are
    such.
    """

    rows: Rows
    columns: Preconditioners
    reml: Any
    patterns: Patterns | None = None
    combined: Combined | None = None

    @property
    def _sizes(self) -> tuple[int, int]:
        return sum(term.size for term in self.rows.layout.terms), self.rows.layout.residual.size

    @property
    def data(self) -> tuple[Rows, tuple]:
        """What it is a deviance of, and the preconditioners of the terms' columns."""
        return self.rows, self.columns.T

    def moments(self, rho) -> Moments:
        """Cross-products of the rows that are white at rho (k,)."""
        if self.combined is not None:
            return self.combined.at(rho)
        return cross_products(self.rows, self.columns, False, rho)

    def at(self, point: Point) -> tuple[ProfiledDeviance, Point]:
        """The profiled deviance at a point's rho, and the point without rho."""
        m, _ = self._sizes
        return ProfiledDeviance(self.moments(point.x[m:]), self.reml), Point(point.frame, point.x[:m])

    def starts(self, given=None, others=None) -> Starts:
        """Where to look for the optimum: rho by moments or uncorrelated, from all starts of psi; others, from two.

        `given` and `others` are as of `ProfiledDeviance`.
        """
        residual = self.rows.layout.residual
        none = np.zeros(residual.columns)
        first, *more = (jnp.asarray(np.append(none, tau), self.rows.y.dtype) for tau in residual.starts)
        if self.patterns is not None:
            first = first + start_by_pattern(self.patterns, cast(Visits, residual))
        begins = [self._starts_at(rho, given, others) for rho in (first, *more)]
        # Of the others by moments and at the best multiple, before those that are called for by number.
        ahead = [Starts(jax.tree.map(lambda a: a[:2], begin.points), begin.count) for begin in begins[1:]]
        points = jax.tree.map(lambda *parts: jnp.concatenate(parts), *(begin.points for begin in (*ahead, begins[0])))
        return Starts(points, begins[0].count + sum(len(begin.points.x) for begin in ahead))

    def _starts_at(self, rho, given, others) -> Starts:
        moments = self.moments(rho)
        if not moments.layout.terms:
            return Starts(Point((), rho[None]), jnp.ones((), jnp.int32))
        correlated = len(self.rows.layout.residual.starts[0]) > 0
        starts = ProfiledDeviance(moments, self.reml).starts(given, others, correlated)
        rho = jnp.broadcast_to(rho[None], (len(starts.points.x), len(rho)))
        return Starts(Point(starts.points.frame, jnp.concatenate([starts.points.x, rho], axis=1)), starts.count)

    def roots(self, point: Point):
        """Square roots of the terms' relative covariances in preconditioned columns."""
        m, _ = self._sizes
        return chart_roots(Chart(point.frame, point.x[:m]), self.rows.layout.terms)

    def value(self, point: Point):
        """The deviance."""
        profiled, inner = self.at(point)
        return profiled.value(inner)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """The deviance with its derivatives, in a chart around the point; `InPsi`, of psi and rho, comes with them."""
        (m, k), structures, dtype = self._sizes, self.rows.layout.terms, point.x.dtype
        roots, rho = self.roots(point), point.x[m:]
        covariances = squares(roots)
        psi = psi_of(covariances, structures, dtype)
        at = self.derivatives(psi, roots, rho)
        in_psi = InPsi(at.gradient, at.hessian, at.scale_gradient)
        if not structures:
            return Evaluation(point, at.value, at.gradient, at.hessian, in_psi)
        chart = chart_at(covariances, structures, dtype)
        jacobian, bend = chart_map(chart, structures, at.gradient[:m])
        jacobian = block_diagonal([jacobian, jnp.eye(k, dtype=dtype)])
        hessian = jacobian.T @ at.hessian @ jacobian + jnp.pad(bend, (0, k))
        x = jnp.concatenate([chart.phi, rho])
        return Evaluation(Point(chart.bases, x), at.value, at.gradient @ jacobian, hessian, in_psi)

    def derivatives(self, psi, roots, rho) -> Derivatives:
        """Value, gradient (m + k,) and Hessian in psi (m,) of preconditioned columns and in rho (k,)."""
        if self.rows.layout.crossed:
            return self._derivatives_of_crossed(psi, roots, rho)
        return derivatives_of(*self.jets(psi, roots, rho), self.reml)

    def jets(self, psi, roots, rho) -> tuple[Jet, Jet, Any]:
        """Jets in psi and rho of log|V W| and of G, and cross-products, of which little more is asked for."""
        if self.patterns is not None:
            residual = cast(Visits, self.rows.layout.residual)
            return *jets_by_pattern(rho, self.patterns, residual), sums_of(self.patterns, self.columns)
        moments = self.moments(rho)
        if self.rows.layout.crossed:
            return *self._jets_of_crossed(psi, roots, rho), moments
        return *jets(psi, roots, moments, earlier=self.moment_jets(rho)), moments

    def moment_jets(self, rho) -> MomentJets:
        """The cross-products with their derivatives in rho."""

        def tables(rho):
            moments = self.moments(rho)
            return _Tables(moments.C, moments.B, moments.G, -moments.log_weights)

        slopes, bends = jax.jacfwd(tables)(rho), jax.jacfwd(jax.jacfwd(tables))(rho)

        def as_jet(value, slope, bend):
            return Jet(value, jnp.moveaxis(slope, -1, 0), jnp.moveaxis(bend, (-2, -1), (0, 1)))

        return MomentJets(*jax.tree.map(as_jet, tables(rho), slopes, bends))

    def _jets_of_crossed(self, psi, roots, rho) -> tuple[Jet, Jet]:
        """By automatic differentiation, as below."""
        m = len(psi)

        def parts(x):
            moments = self.moments(x[m:])
            reduced = reduce(covariances_of(x[:m], moments.layout.terms), roots, moments)
            return reduced.logdet - moments.log_weights, reduced.G, reduced.logdet

        x = jnp.concatenate([psi, rho])
        _, G, logdet = parts(x)
        first, second = jax.jacfwd(parts)(x), jax.jacfwd(jax.jacfwd(parts))(x)
        bend = jnp.moveaxis(second[1], (-2, -1), (0, 1))
        return Jet(logdet, first[0], second[0]), Jet(G, jnp.moveaxis(first[1], -1, 0), bend)

    def _derivatives_of_crossed(self, psi, roots, rho) -> Derivatives:
        """By automatic differentiation: the closed form of crossed factors has no directions before its first stage."""
        m, x = len(psi), jnp.concatenate([psi, rho])

        def parts(x):
            moments = self.moments(x[m:])
            result = profile(covariances_of(x[:m], moments.layout.terms), roots, moments)
            logdet = result.logdet - moments.log_weights + jnp.where(self.reml, result.logdet_fixed, 0)
            nu = degrees(moments, self.reml)
            return deviance(logdet, result.rss, nu), result.rss / nu

        value, gradient = jax.value_and_grad(lambda x: parts(x)[0])(x)
        hessian = jax.hessian(lambda x: parts(x)[0])(x)
        return Derivatives(value, gradient, hessian, jax.grad(lambda x: parts(x)[1])(x))

    def flatness(self):
        """Whether a direction has no curvature beyond rounding.

        A correlation at its boundary has none, and is an optimum all the same.
        """
        (m, _), structures = self._sizes, self.rows.layout.terms
        columns = self.rows.layout.residual.columns

        def is_flat(point, hessian):
            chart, rho = Chart(point.frame, point.x[:m]), point.x[m:]
            sizes = jnp.maximum(chart_sizes(chart, structures), 1e-3) if structures else point.x[:0]
            edge = (jnp.abs(rho) > EDGE) & (np.arange(len(rho)) >= columns)
            sizes = jnp.concatenate([sizes, jnp.where(edge, 0, 1)])
            relative = hessian * (sizes[:, None] * sizes[None])
            relative = relative + jnp.diag(jnp.where(sizes == 0, jnp.ones((), hessian.dtype), 0))
            _, logs = sweep(relative - FLATNESS * jnp.eye(len(sizes), dtype=hessian.dtype), len(sizes))
            return ~jnp.isfinite(logs)

        return is_flat

    def blank(self) -> InPsi:
        """Nothing known."""
        return InPsi.blank(sum(self._sizes), self.rows.y.dtype)

    def estimates(self, point: Point) -> dict[str, Any]:
        """Everything that is estimated once the parameters are known; `rho` among it."""
        m, _ = self._sizes
        profiled, inner = self.at(point)
        return profiled.estimates(inner) | {"rho": point.x[m:]}
