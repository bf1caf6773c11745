"""Maximum likelihood fits with one parameter held: many of them, in one compiled program."""

from functools import partial
from typing import NamedTuple

import jax

from jmixed.algebra.newton import MAX_ITERATIONS, first_radius, pseudo_inverse
from jmixed.errors import Outcome
from jmixed.layout.index import Array
from jmixed.likelihood.constrained import ConstrainedDeviance, HeldParameter
from jmixed.likelihood.constrained_responses import ConstrainedResponse
from jmixed.likelihood.contract import minimum
from jmixed.likelihood.laplace import LaplaceDeviance
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.quadrature import QuadratureDeviance
from jmixed.likelihood.whitened import WhitenedDeviance
from jmixed.runtime.compilation import program

Source = Moments | WhitenedDeviance | LaplaceDeviance | QuadratureDeviance
"""What a constrained fit is of: cross-products, what has them, or the criterion of a response with a family."""
FEW = 1 << 12
"""Rows of a batch, times nodes, up to which its fits take less time than to optimise their program."""


class ConstrainedFit(NamedTuple):
    """A constrained optimum.

    ``free`` (m + 1 + k,), or (m + p + k,) of a response with a family, are the chart's coordinates; ``slope`` and
    ``curvature`` are derivatives of the profile in the held value u, ``tangent`` that of the coordinates. ``beta``
    belongs to preconditioned columns, and kappa follows it; ``t`` is log sigma, ``roots`` are square roots of the
    relative covariances in preconditioned columns, and ``rho`` (k,) are the parameters of the residuals.
    """

    value: Array
    free: Array
    slope: Array
    curvature: Array
    tangent: Array
    beta: Array
    t: Array
    roots: tuple[Array, ...]
    rho: Array
    converged: Array


def _is_small(held, u, start, source, batch):
    if isinstance(source, QuadratureDeviance):
        return batch * source.rows.y.shape[0] * len(source.weights) <= FEW
    return isinstance(source, LaplaceDeviance) and batch * source.rows.y.shape[0] <= FEW


@program(static_argnames=("batch",), brief=_is_small)
def solve_all(held: HeldParameter, u, start, source: Source, batch: int) -> ConstrainedFit:
    """Constrained optima for held parameters, values u (n,) and starts (n, m + 1 + k), `batch` of them at a time."""

    lanes = (held, u, start)
    if batch == 1:
        return jax.lax.map(lambda lane: _solve(*lane, source=source), lanes)
    solve = jax.vmap(partial(_solve, source=source))
    if batch == len(u):
        return solve(*lanes)
    groups = jax.tree.map(lambda leaf: leaf.reshape(len(u) // batch, batch, *leaf.shape[1:]), lanes)
    fits = jax.lax.map(lambda some: solve(*some), groups)
    return jax.tree.map(lambda leaf: leaf.reshape(len(u), *leaf.shape[2:]), fits)


def _solve(held: HeldParameter, u, start, source: Source) -> ConstrainedFit:
    of_normal = isinstance(source, Moments | WhitenedDeviance)
    deviance = ConstrainedDeviance(held, source, u) if of_normal else ConstrainedResponse(held, source, u)
    m = held.keep.shape[0]
    # The first radius is one for the covariances: log sigma has a scale of its own.
    lowest = minimum(deviance, deviance.starts(start), MAX_ITERATIONS, radius=lambda x: first_radius(x[:m]))
    at, beyond = lowest.at, lowest.at.extras
    mixed = beyond.mixed * held.active.astype(start.dtype)
    tangent = -(pseudo_inverse(at.hessian) @ mixed)
    roots, t, rho = deviance.estimates(at.point)
    return ConstrainedFit(
        value=at.value,
        free=at.point.x,
        slope=beyond.slope,
        curvature=beyond.curvature + mixed @ tangent,
        tangent=tangent,
        beta=beyond.beta,
        t=t,
        roots=roots,
        rho=rho,
        converged=(lowest.outcome == Outcome.CONVERGED.value) | (lowest.outcome == Outcome.PRECISION_LIMIT.value),
    )
