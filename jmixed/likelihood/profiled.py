"""The criterion of a fit: the profiled deviance (see `jmixed.likelihood.gaussian`) in the chart of the covariances.

The deviance is a smooth function of psi (the entries of the terms' Sigma) on the cone of positive semidefinite
matrices. Steps are taken in a chart whose bases are renewed at every evaluation: its coordinates are unconstrained, a
singular optimum is an ordinary minimum, and a vanishing direction always belongs to the last column, so that no
circular valley forms.

The deviance is even in each column of the root of Sigma: at a zero column its gradient is zero by symmetry and says
nothing. The Hessian there is the slope beyond the boundary, so a positive definite Hessian certifies the zero.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp

from jmixed.algebra.batched import sweep
from jmixed.algebra.newton import Evaluation, Point
from jmixed.algebra.sums import diagonal
from jmixed.covariance.chart import Chart, chart_at, chart_map, chart_of_entries, chart_roots, chart_sizes
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.derivatives import derivatives
from jmixed.likelihood.estimates import estimates
from jmixed.likelihood.gaussian import deviance_at, factors_of, psi_of, squares
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.starts import phis_beside, starts_of

NEAR = 1.0
"""Predicted gain in deviance below which the next Hessian is exact."""
FLATNESS = 1e-7
"""Curvature, per relative change of phi, below which a direction is flat."""
BLURRED = 1e-2
"""Most that rounding is taken for in a curvature, relative to the largest."""


class InPsi(NamedTuple):
    """Derivatives in psi of the deviance and, `scale_gradient`, of the scale r^2 / nu."""

    gradient: jax.Array
    hessian: jax.Array
    scale_gradient: jax.Array

    @classmethod
    def blank(cls, size: int, dtype) -> Self:
        """Nothing known."""
        return cls(jnp.zeros(size, dtype), jnp.zeros((size, size), dtype), jnp.zeros(size, dtype))


class Entries(NamedTuple):
    """A chart whose coordinates are entries of theta, at their start, and which of them (m,) are estimated."""

    chart: Chart
    free: jax.Array


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ProfiledDeviance(Criterion):
    """The profiled deviance of cross-products; where `entries` of theta are held, their chart does not move along."""

    moments: Moments
    reml: Any
    entries: Entries | None = None

    @property
    def data(self) -> tuple[Moments, tuple]:
        """What it is a deviance of, and the preconditioners of the terms' columns."""
        return self.moments, self.moments.T

    @property
    def free(self):
        """Entries of theta that are estimated."""
        return None if self.entries is None else self.entries.free

    @property
    def near(self) -> float | None:
        """Far from the optimum of crossed factors the average information does as well, at half the price."""
        return NEAR if self.moments.layout.crossed else None

    def starts(self, given=None, others=None, correlated: bool = False) -> Starts:
        """Where to look for the optimum: by one policy (`jmixed.likelihood.starts`), or from relative covariances.

        `given` (q, q) are those of preconditioned columns to start from first. None, or entries of nan, have starts
        found: the two cases of nan and of numbers share a program. `others` says whether to search from other starts
        than a given one as well; by default from that alone. `correlated` is as of `starts_of`.
        """
        if self.entries is not None:
            phi, count = phis_beside(*self.entries, self.moments, self.reml)
            bases = tuple(jnp.broadcast_to(basis, (len(phi), *basis.shape)) for basis in self.entries.chart.bases)
            return Starts(Point(bases, phi), count)
        covariances, count = starts_of(self.moments, self.reml, given, others, correlated)
        structures, dtype = self.moments.layout.terms, self.moments.G.dtype
        if len(covariances[0]) == 1:
            only = chart_at([stacked[0] for stacked in covariances], structures, dtype)
            return Starts(Point(*jax.tree.map(lambda a: a[None], only)), count)
        charts = jax.vmap(lambda several: chart_at(several, structures, dtype))(covariances)
        return Starts(Point(*charts), count)

    def roots(self, point: Point):
        """Square roots of the terms' relative covariances in preconditioned columns."""
        return chart_roots(Chart(*point), self.moments.layout.terms)

    def value(self, point: Point):
        """The deviance."""
        roots = self.roots(point)
        return deviance_at(squares(roots), roots, self.moments, self.reml)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """The deviance with its derivatives, in a chart around the point; `InPsi` comes with them."""
        structures, dtype = self.moments.layout.terms, point.x.dtype
        roots = self.roots(point)
        covariances = squares(roots)
        at = derivatives(psi_of(covariances, structures, dtype), roots, self.moments, self.reml, exact)
        chart = chart_at(covariances, structures, dtype) if self.entries is None else Chart(*point)
        jacobian, bend = chart_map(chart, structures, at.gradient)
        hessian = jacobian.T @ at.hessian @ jacobian + bend
        in_psi = InPsi(at.gradient, at.hessian, at.scale_gradient)
        return Evaluation(Point(*chart), at.value, at.gradient @ jacobian, hessian, in_psi)

    def blank(self) -> InPsi:
        """Nothing known."""
        return InPsi.blank(sum(term.size for term in self.moments.layout.terms), self.moments.G.dtype)

    def flatness(self):
        """Whether a direction has no curvature beyond rounding, each root measured by its size."""
        rows, grows = _growth(self.moments)
        structures = self.moments.layout.terms

        def is_flat(point, hessian):
            chart = Chart(*point)
            sizes = chart_sizes(chart, structures)
            size = jnp.maximum(sizes, jnp.maximum(1 / jnp.sqrt(rows), 1e-3))
            relative = hessian * (size[:, None] * size[None])
            largest = jnp.max(jnp.stack([jnp.max(root**2) for root in chart_roots(chart, structures)]))
            rounding = jnp.finfo(hessian.dtype).eps * jnp.where(grows, rows * largest**2, 1)
            scale = jnp.max(diagonal(hessian) * jnp.maximum(sizes, 1) ** 2)
            least = jnp.maximum(FLATNESS, jnp.minimum(rounding, BLURRED) * scale)
            # A matrix is positive definite when all its pivots are, and so have logarithms.
            _, logs = sweep(relative - least * jnp.eye(len(size), dtype=size.dtype), len(size))
            return ~jnp.isfinite(logs)

        return is_flat

    def estimates(self, point: Point) -> dict[str, Any]:
        """Everything that is estimated once the relative covariances are known."""
        return estimates(self.roots(point), self.moments, self.reml)


def with_held_entries(moments: Moments, reml, theta, free) -> ProfiledDeviance:
    """The deviance of the entries of theta (m,) that are `free`, an array (m,) of ones and zeros."""
    structures, dtype = moments.layout.terms, moments.G.dtype
    chart, moves = (
        chart_of_entries(factors_of(entries, moments), moments.T, structures, dtype) for entries in (theta, free)
    )
    return ProfiledDeviance(moments, reml, Entries(chart, moves.phi != 0))


def _growth(moments: Moments):
    """The most rows of a level, and whether curvatures lose more digits the larger a variance is.

    Where fixed effects lie in the span of random ones, what is left of them is one part in nu, the largest relative
    variance times the rows of a level: a difference whose relative error is nu times that of the arithmetic, and that
    of terms as large as the variance in curvatures. Effects counted from estimates have no such differences.
    """
    rows = jnp.max(jnp.stack([jnp.max(jnp.diagonal(C, axis1=0, axis2=1)) for C in moments.C]))
    shifts = [jnp.any(shift != 0) for shift in moments.shift if shift is not None]
    counted = jnp.any(jnp.stack(shifts)) if shifts else jnp.zeros((), bool)
    if moments.axis is not None:
        rows, counted = jax.lax.pmax((rows, counted.astype(rows.dtype)), moments.axis)
        counted = counted > 0
    return jnp.maximum(rows, 1), ~counted
