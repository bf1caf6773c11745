"""The contract of a criterion: what a fit minimises, and all that the optimiser and the pipeline ask of it.

A criterion is a function f of coordinates x in a frame; a `Point` is both. For a deviance f is -2 log-likelihood, with
all that has a closed form profiled out: the frame holds bases of the terms' covariances, and x = phi are coordinates in
them (see `jmixed.covariance.chart`), so that with psi(phi) the entries of Sigma

    f_phi = f_psi psi_phi        f_phi,phi = psi_phi' f_psi,psi psi_phi + <f_psi, psi_phi,phi>

Its four parts are where a search starts, the value with its first and second derivatives, whether these tell all
coordinates, and what is estimated at a point. Instances:

* `jmixed.likelihood.profiled.ProfiledDeviance`: beta and sigma profiled out, from cross-products;
* `jmixed.likelihood.constrained.ConstrainedDeviance`: the ML deviance with one parameter held;
* `jmixed.fit.penalised.PenalisedDeviance`: sigma profiled out, and a penalty on beta and theta added;
* of responses with a family `jmixed.likelihood.laplace.LaplaceDeviance`, `jmixed.likelihood.quadrature`, and these with
  a parameter held (`constrained_responses`), at a given theta, or penalised (`jmixed.fit.penalised_responses`).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from jmixed.algebra.newton import Evaluation, Minimum, Point, minimize


class Starts(NamedTuple):
    """Where searches start: points, stacked along a first axis, of which the first `count` are called for."""

    points: Point
    count: Any


class Criterion(ABC):
    """A smooth function with all that is asked of it; instances are frozen dataclasses of arrays."""

    @abstractmethod
    def starts(self, given: Any) -> Starts:
        """Where to look for the minimum, from what is `given` of it; each criterion says what that is."""

    @abstractmethod
    def value(self, point: Point) -> jax.Array:
        """f, as a function that JAX can differentiate."""

    @abstractmethod
    def value_gradient_hessian(self, point: Point, exact: Any = True) -> Evaluation:
        """f and its derivatives at a point, in the frame of the point that comes back: the same place, or renewed."""

    @abstractmethod
    def estimates(self, point: Point) -> Any:
        """What is estimated at a point."""

    # ---- what few criteria have ----

    @property
    def free(self) -> Any:
        """Which coordinates move (m,); all, where None."""
        return None

    @property
    def near(self) -> float | None:
        """Predicted gain below which the Hessian is to be exact; None where there is no cheaper one."""
        return None

    def blank(self) -> Any:
        """Arrays like the extras of an evaluation."""
        return ()

    def flatness(self) -> Callable[[Point, jax.Array], Any] | None:
        """What tells from a point and the Hessian there whether a direction has no curvature beyond rounding."""
        return None


def minimum(criterion: Criterion, starts: Starts, limit, **options) -> Minimum:
    """The lowest minimum of a criterion that searches from some starts find; see `jmixed.algebra.newton.minimize`."""
    return minimize(
        criterion.value_gradient_hessian,
        starts.points,
        limit,
        extras=criterion.blank(),
        count=starts.count,
        free=criterion.free,
        near=criterion.near,
        is_flat=criterion.flatness(),
        **options,
    )
