"""Trust-region Newton steps: the one loop that minimises, whatever the function is.

A function f is seen through its value, gradient g and exact Hessian H at a point. A step minimises the quadratic model

    m(s) = f + g's + s'Hs / 2,   |s| <= radius,

exactly, by the eigenvectors of H (Moré and Sorensen 1983, SIAM J. Sci. Stat. Comput. 4(3)): at a saddle it leaves along
negative curvature even where the gradient vanishes. The ratio of the actual to the predicted decrease accepts or
rejects the step and sets the next radius. The certificate of a minimum is a Newton decrement g'H^-1 g / 2 below
`DECREMENT` and no negative eigenvalue; one more step is taken from there, which doubles the digits.

A point has coordinates in a frame, such as a basis that moves along: where f is evaluated, the point that comes back
may be the same place in another frame, and derivatives belong to that. There is one evaluation in an iteration, and one
traced copy of f, also where the search begins several times (`minimize`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh
from jmixed.errors import Outcome

CURVATURE = -1e-6
"""Smallest eigenvalue of the Hessian allowed at an optimum, relative to the largest."""
DECREMENT = 1e-9
"""A Newton decrement (predicted gain) below this is an optimum."""
FAR = 1e-3
"""A gain within reach above this is no limit of precision: the search is stuck. In 32 bits rounding may be more."""
ROUNDING = 4e-14
"""Relative rounding error of the function's value in double precision."""
MAX_ITERATIONS = 200

_ROUNDINGS = 32
"""Roundings of the function's value that count as none of a decrement."""
_RUNNING = -1


class Point(NamedTuple):
    """Coordinates `x` (m,) in a frame: any pytree, empty where there is but one."""

    frame: Any
    x: jax.Array


class Evaluation(NamedTuple):
    """A function at a point, with its derivatives in the point's coordinates, and what else comes with them."""

    point: Point
    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    extras: Any = ()


class Run(NamedTuple):
    """A search: the best point so far, the spectrum of the Hessian there, the step to try next, and how it goes."""

    best: Evaluation
    eigenvalues: jax.Array
    step: jax.Array
    predicted: jax.Array
    boundary: jax.Array
    radius: jax.Array
    iteration: jax.Array
    stalled: jax.Array
    polishing: jax.Array
    outcome: jax.Array


class Minimum(NamedTuple):
    """Where searches ended: the lowest point, with zero slope and a unit of curvature along coordinates that are held.

    `eigenvalues` (m,) of the Hessian ascend; `iterations` are of the search that ended there, `evaluations` of all;
    `outcome` is the integer of an `Outcome`.
    """

    at: Evaluation
    eigenvalues: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    outcome: jax.Array


def first_radius(x):
    """The radius of the first step from coordinates x (m,)."""
    return jnp.maximum(0.5, 0.5 * jnp.sqrt(jnp.sum(x**2)))


def minimize(
    evaluate: Callable[[Point, Any], Evaluation],
    starts: Point,
    limit,
    *,
    extras: Any = (),
    count: Any = None,
    free=None,
    near: float | None = None,
    is_flat: Callable[[Point, jax.Array], Any] | None = None,
    radius: Callable[[jax.Array], jax.Array] = first_radius,
) -> Minimum:
    """Search from every start, one after another, for the lowest minimum.

    Parameters
    ----------
    evaluate : callable
        ``evaluate(point, exact)``; where `exact` is false a cheaper Hessian will do, if there is one.
    starts : Point
        Stacked along a first axis.
    limit : int or scalar array
        Of iterations from each start.
    extras : pytree
        Arrays like those that come with evaluations.
    count : int or scalar array, optional
        How many of the starts are called for; by default all are.
    free : bool array (m,), optional
        Coordinates that move; the others keep their value.
    near : float, optional
        Predicted gain below which the next Hessian is to be exact; without it all are.
    is_flat : callable, optional
        ``is_flat(point, hessian)``: whether a direction has no curvature beyond rounding.
    radius : callable
        Of the first step, from the coordinates of a start.
    """

    def begin(point):
        return _begin(point, extras, radius(point.x))

    def proceed(run):
        return _iterate(run, evaluate, free, near, is_flat)

    first = begin(jax.tree.map(lambda a: a[0], starts))
    if starts.x.shape[0] == 1:
        run = jax.lax.while_loop(lambda run: (run.outcome == _RUNNING) & (run.iteration < limit), proceed, first)
        return _ended(run, run.iteration)
    none, count = jnp.zeros((), jnp.int32), starts.x.shape[0] if count is None else count

    def turn(search):
        run = proceed(search.run)
        ended = (run.outcome != _RUNNING) | (run.iteration >= jnp.maximum(limit, MAX_ITERATIONS))
        best = _select(ended & _is_better(search, run), run, search.best)
        start = search.start + ended.astype(jnp.int32)
        following = jax.tree.map(lambda a: a[jnp.minimum(start, a.shape[0] - 1)], starts)
        return _Searches(_select(ended, begin(following), run), best, start, search.evaluations + 1)

    search = jax.lax.while_loop(
        lambda search: (search.start < count) & (search.evaluations < limit * count),
        turn,
        _Searches(first, first, none, none),
    )
    # A run that the limit has cut off may have come lower than those that have ended.
    cut = search.start < count
    best = _select(cut & _is_better(search, search.run), search.run, search.best)
    best = best._replace(outcome=jnp.where(cut, Outcome.MAX_ITERATIONS.value, best.outcome).astype(jnp.int32))
    return _ended(best, search.evaluations)


class _Searches(NamedTuple):
    """The run from one start, the best of those that have ended, how many have, and all evaluations."""

    run: Run
    best: Run
    start: jax.Array
    evaluations: jax.Array


def _select(condition, chosen, other):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), chosen, other)


def _is_better(search: _Searches, run: Run):
    """Whether a run ended lower than those before it by more than rounding.

    Where a run came lower without reaching an optimum, as where a function has no minimum, it is no optimum that is to
    be reported; by less, an optimum is preferred. But one that is no lower than a flat place is no optimum either:
    rounding made it one.
    """
    certified, other_certified = _is_certified(run), _is_certified(search.best)
    flat, other_flat = (each.outcome == Outcome.FLAT.value for each in (run, search.best))
    value, least = run.best.value, search.best.best.value
    rounding = jnp.maximum(1e-8, 2 * _rounding(value) * jnp.abs(value))
    preferred = (certified & ~other_certified & ~other_flat) | (flat & other_certified)
    margin = jnp.where(certified & other_certified, rounding, jnp.where(preferred, -1e-5, 1e-5))
    return (search.start == 0) | (value < least - margin)


def _rounding(value) -> float:
    return max(ROUNDING, 8 * float(jnp.finfo(value.dtype).eps))


def _is_certified(run: Run):
    return (run.outcome == Outcome.CONVERGED.value) | (run.outcome == Outcome.PRECISION_LIMIT.value)


def _ended(run: Run, evaluations) -> Minimum:
    outcome = jnp.where(run.outcome == _RUNNING, Outcome.MAX_ITERATIONS.value, run.outcome).astype(jnp.int32)
    return Minimum(run.best, run.eigenvalues, run.iteration, evaluations, outcome)


def _begin(start: Point, extras, radius) -> Run:
    """Nothing known yet: the first trial is the start, and any finite value betters infinity."""
    m, dtype = start.x.shape[0], start.x.dtype
    none, infinite = jnp.zeros(m, dtype), jnp.full((), jnp.inf, dtype)
    never, zero = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    return Run(
        best=Evaluation(start, infinite, none, jnp.zeros((m, m), dtype), extras),
        eigenvalues=none,
        step=none,
        predicted=infinite,
        boundary=never,
        radius=radius,
        iteration=zero,
        stalled=zero,
        polishing=never,
        outcome=zero + _RUNNING,
    )


def _iterate(run: Run, evaluate, free, near, is_flat) -> Run:
    """One iteration: evaluate the trial point, accept or reject it, propose the next."""
    exact = True if near is None else run.predicted < near
    at = _hold(evaluate(run.best.point._replace(x=run.best.point.x + run.step), exact), free)
    accepted, ratio, stalled = _judge(run, at)
    at = _select(accepted, at, run.best)
    grown = jnp.where((ratio > 0.75) & run.boundary, 2 * run.radius, run.radius)
    radius = jnp.where(~accepted | (ratio < 0.25), jnp.sqrt(jnp.sum(run.step**2)) / 4, grown)
    values, vectors = eigh(at.hessian)
    slope = vectors.T @ at.gradient
    move, predicted, boundary = trust_region_step(values, slope, radius)
    outcome = jnp.where(run.polishing, Outcome.CONVERGED.value, _RUNNING)
    # A search whose radius has shrunk to nothing away from an optimum has reached no limit of precision.
    ended = jnp.where(_is_near(at, values, slope), Outcome.PRECISION_LIMIT.value, Outcome.MAX_ITERATIONS.value)
    outcome = jnp.where((outcome == _RUNNING) & (stalled >= 2), ended, outcome)
    if is_flat is not None:
        outcome = jnp.where((outcome != _RUNNING) & is_flat(at.point, at.hessian), Outcome.FLAT.value, outcome)
    outcome = jnp.where(jnp.isfinite(at.value), outcome, Outcome.NOT_FINITE.value)
    return Run(
        best=at,
        eigenvalues=values,
        step=vectors @ move,
        predicted=predicted,
        boundary=boundary,
        radius=radius,
        iteration=run.iteration + 1,
        stalled=stalled,
        # The Hessian of a point whose trial was rejected may be a cheap one.
        polishing=_is_optimum(values, slope) & accepted & exact,
        outcome=outcome.astype(jnp.int32),
    )


def _hold(at: Evaluation, free) -> Evaluation:
    """Without slope, and with a unit of curvature, along coordinates that keep their value."""
    if free is None:
        return at
    moves = free.astype(at.gradient.dtype)
    hessian = at.hessian * (moves[:, None] * moves[None]) + jnp.diag(1 - moves)
    return at._replace(gradient=at.gradient * moves, hessian=hessian)


def _judge(run: Run, at: Evaluation):
    """Whether the trial is accepted, the ratio of actual to predicted gain, and how often rounding has drowned it."""
    starting = jnp.isinf(run.predicted)
    gain = jnp.where(jnp.isfinite(at.value), run.best.value - at.value, -jnp.inf)
    noise = _rounding(at.value) * jnp.where(starting, 0, jnp.abs(run.best.value))
    predicted = jnp.where(starting, 0, run.predicted)
    visible = predicted > noise
    ratio = jnp.where(visible, gain / jnp.where(visible, predicted, 1), 1)
    # A sum is finite where all its parts are.
    usable = jnp.isfinite(at.value + jnp.sum(at.gradient) + jnp.sum(at.hessian))
    accepted = usable & (starting | (gain >= 1e-4 * predicted - 2 * noise))
    return accepted, ratio, jnp.where(visible | starting, 0, run.stalled + 1).astype(jnp.int32)


def _is_optimum(values, slope):
    """The certificate: no direction of negative curvature, and nothing to gain by a Newton step."""
    largest = jnp.maximum(values[-1], 1)
    decrement = jnp.sum(slope**2 / jnp.maximum(values, 1e-10 * largest)) / 2
    return (decrement < DECREMENT) & (values[0] > CURVATURE * largest)


def _is_near(at: Evaluation, values, slope):
    """Whether rounding may hide an optimum: little to gain within a step of usual length, and nothing that bends down.

    Each direction is taken for itself, and without curvature where that is negative by rounding. Curvatures do not make
    up for one another: where a Hessian is beyond all bounds along one direction, slopes along others count as well.
    """
    bend, slope = jnp.maximum(values, jnp.finfo(values.dtype).tiny), jnp.abs(slope)
    length = jnp.minimum(slope / bend, first_radius(at.point.x))
    gain = jnp.sum(length * (slope - bend * length / 2))
    noise = _ROUNDINGS * jnp.finfo(values.dtype).eps * jnp.abs(at.value)
    return (gain < jnp.maximum(FAR, noise)) & (values[0] > CURVATURE * jnp.maximum(values[-1], 1))


def is_convex(eigenvalues: np.ndarray) -> bool:
    """Whether a Hessian has no direction of negative curvature, by its ascending eigenvalues."""
    return not len(eigenvalues) or bool(eigenvalues[0] > CURVATURE * max(eigenvalues[-1], 1))


def pseudo_inverse(hessian):
    """The inverse of the Hessian (m, m) of a minimum, which leaves its null directions alone."""
    if not hessian.shape[0]:
        return hessian
    values, vectors = eigh(hessian)
    sound = values > 1e-10 * jnp.maximum(values[-1], 1)
    return (vectors * jnp.where(sound, 1 / jnp.where(sound, values, 1), 0)[None]) @ vectors.T


def trust_region_step(values, slope, radius):
    """The exact minimiser of a quadratic model within a radius, hard case included.

    The secular equation is solved by safeguarded Newton steps, of a fixed number so that batches stay in step. `values`
    (m,) are the ascending eigenvalues of the Hessian, `slope` (m,) the gradient in the basis of its eigenvectors.
    Returned are the step (m,) in the same basis, the predicted decrease, and whether it ends on the boundary.
    """
    scale = jnp.max(jnp.abs(values)) + jnp.finfo(values.dtype).tiny
    low = jnp.maximum(-values[0], 0)

    def at(shift):
        damped = values + shift
        usable = damped > 1e-12 * scale
        return jnp.where(usable, -slope / jnp.where(usable, damped, 1), 0), jnp.where(usable, damped, jnp.inf)

    def refine(_, bracket):
        lower, upper, shift = bracket
        step, damped = at(shift)
        length = jnp.sqrt(jnp.sum(step**2))
        lower, upper = jnp.where(length > radius, shift, lower), jnp.where(length > radius, upper, shift)
        newton = shift + (length - radius) / radius * length**2 / (jnp.sum(step**2 / damped) + 1e-300)
        inside = (newton > lower) & (newton < upper)
        return lower, upper, jnp.where(inside, newton, (lower + upper) / 2)

    upper = low + jnp.sqrt(jnp.sum(slope**2)) / radius + 1e-8 * scale
    _, _, shift = jax.lax.fori_loop(0, 40, refine, (low, upper, (low + upper) / 2))
    base, damped = at(low)
    # Only without any slope along the flattest directions may they be left out: otherwise the radius ends the step.
    level = jnp.all(jnp.isfinite(damped) | (jnp.abs(slope) <= 1e-8 * scale * radius))
    short = level & (jnp.sqrt(jnp.sum(base**2)) <= radius)
    convex = values[0] > 1e-12 * scale
    along = jnp.sqrt(jnp.maximum(radius**2 - jnp.sum(base**2), 0)) * jnp.where(slope[0] > 0, -1, 1)
    lowest = (jnp.arange(len(values)) == 0) & ~convex & (values[0] <= CURVATURE * scale)
    hard = base + jnp.where(lowest, along, 0)
    step = jnp.where(short, hard, at(shift)[0])
    predicted = -(slope @ step + jnp.sum(values * step**2) / 2)
    return step, predicted, jnp.sum(step**2) > 0.98 * radius**2
