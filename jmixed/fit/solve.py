"""Trust-region Newton on the relative covariances, with exact Hessians and a moving chart.

The criterion is a smooth function of psi (the entries of the terms' Sigma) on the cone of positive semidefinite
matrices. The steps are taken in a chart ``Sigma = A L(phi) L(phi)' A'`` whose basis A is renewed at every accepted
point from the eigenvectors of Sigma, largest first: phi is unconstrained, a singular optimum is an ordinary minimum,
and a vanishing direction always belongs to the last column, so that no circular valley forms.

The criterion is even in each column of L: at a zero column its gradient is zero by symmetry and says nothing. The
Hessian there is the slope beyond the boundary, so a positive definite Hessian certifies the zero.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh, sweep
from jmixed.algebra.newton import CURVATURE, trust_region_step
from jmixed.algebra.sums import diagonal
from jmixed.covariance.chart import Chart, chart_at, chart_map, chart_of_entries, chart_roots, chart_sizes
from jmixed.errors import Outcome
from jmixed.likelihood.derivatives import Derivatives, derivatives
from jmixed.likelihood.gaussian import deviance_at, psi_of, squares
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.start import moment_covariances
from jmixed.likelihood.starts import best_multiples, starts_of

NEAR = 1.0
"""Predicted gain in deviance below which the next Hessian is exact."""
DECREMENT = 1e-9
"""A Newton decrement (predicted gain in deviance) below this is an optimum."""
ROUNDING = 4e-14
"""Relative rounding error of the deviance."""
FLATNESS = 1e-7
"""Curvature, per relative change of phi, below which a direction is flat."""
BLURRED = 1e-2
"""Most that rounding is taken for in a curvature, relative to the largest."""
MAX_ITERATIONS = 200


class State(NamedTuple):
    """The best point so far with the criterion's derivatives at it, and the trial point that comes next."""

    chart: Chart
    derivatives: Derivatives
    gradient: jax.Array
    hessian: jax.Array
    eigenvalues: jax.Array
    trial: Chart
    predicted: jax.Array
    boundary: jax.Array
    radius: jax.Array
    iteration: jax.Array
    stalled: jax.Array
    polishing: jax.Array
    outcome: jax.Array


class Solution(NamedTuple):
    """Where the optimiser ended and the certificate of it.

    ``roots`` are square roots of the terms' relative covariances in preconditioned columns; ``gradient`` and
    ``eigenvalues`` (m,) are those of the deviance in the chart; ``iterations`` belong to the run that ended there,
    ``evaluations`` to the runs from all ``starts``; ``outcome`` is the integer of an `Outcome`.
    """

    chart: Chart
    roots: tuple[jax.Array, ...]
    derivatives: Derivatives
    gradient: jax.Array
    hessian: jax.Array
    eigenvalues: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    starts: jax.Array
    outcome: jax.Array


def minimize(
    moments: Moments, start, reml: bool, max_iterations, held=None, chart: Chart | None = None, others=None
) -> Solution:
    """Minimise the profiled deviance, from every start of the policy (see `likelihood.starts`).

    Parameters
    ----------
    moments : Moments
    start : sequence of arrays (q, q), or None
        Relative covariances to start from first, in preconditioned columns. None, or entries of nan, have starts
        found: the two cases of nan and of numbers share a program.
    reml : bool
    max_iterations : int or scalar array
        Of the search from each start.
    held : bool array (m,), optional
        Entries of phi that keep their value; then `chart` is the first start, and all keep its bases.
    chart : Chart, optional
        Start for `held`.
    others : bool or scalar bool array, optional
        Whether to search from other starts than a given one as well; by default from that alone.

    Returns
    -------
    Solution
        The lowest optimum that was found.
    """
    structures, dtype = moments.layout.terms, moments.G.dtype
    if not structures:
        return _nothing_to_optimise(moments, reml)
    if chart is None:
        charts, count = _charts(moments, start, reml, others)
    else:
        charts, count = _charts_beside(chart, held, moments, reml)

    def in_chart(chart, at):
        gradient, hessian = _pull_back(chart, structures, at)
        if held is None:
            return gradient, hessian
        free = (~held).astype(dtype)
        return gradient * free, hessian * (free[:, None] * free[None]) + jnp.diag(1 - free)

    growth = _growth(moments)

    def step(state):
        return _iterate(state, moments, reml, in_chart, growth, moving=held is None)

    first = _initial_state(jax.tree.map(lambda a: a[0], charts))
    if charts.phi.shape[0] == 1:
        state = jax.lax.while_loop(lambda s: (s.outcome == _RUNNING) & (s.iteration < max_iterations), step, first)
        return _finish(state, structures, state.iteration, count)
    none = jnp.zeros((), jnp.int32)
    search = jax.lax.while_loop(
        lambda s: (s.start < count) & (s.evaluations < max_iterations * count),
        lambda s: _proceed(s, step(s.state), charts, max_iterations),
        Search(first, first, none, none),
    )
    # A run that the limit has cut off may have come lower than those that have ended.
    cut = search.start < count
    best = _select(cut & _is_better(search, search.state), search.state, search.best)
    best = best._replace(outcome=jnp.where(cut, Outcome.MAX_ITERATIONS.value, best.outcome).astype(jnp.int32))
    return _finish(best, structures, search.evaluations, count)


def _charts(moments: Moments, start, reml, others):
    """The charts of all starts, stacked, and how many of them are called for."""
    covariances, count = starts_of(moments, reml)
    if start is not None:
        given = jnp.all(jnp.stack([jnp.all(jnp.isfinite(covariance)) for covariance in start]))
        if others is None:
            first = [jnp.where(given, own, found[0]) for own, found in zip(start, covariances, strict=True)]
            rest, count = [found[1:] for found in covariances], jnp.where(given, 1, count)
        else:
            # A deviance with one minimum needs no other start than the given one.
            first, rest = start, covariances if len(covariances[0]) > 1 else [found[:0] for found in covariances]
            count = jnp.where(others & (count > 1), count + 1, 1)
        covariances = [jnp.concatenate([own[None], found]) for own, found in zip(first, rest, strict=True)]
    structures, dtype = moments.layout.terms, moments.G.dtype
    if len(covariances[0]) == 1:
        only = chart_at([own[0] for own in covariances], structures, dtype)
        return jax.tree.map(lambda a: a[None], only), count.astype(jnp.int32)
    return jax.vmap(lambda own: chart_at(own, structures, dtype))(covariances), count.astype(jnp.int32)


def _charts_beside(chart: Chart, held, moments: Moments, reml):
    """A chart with some entries held, and other starts for its free ones: by moments, and of a common size."""
    structures, dtype = moments.layout.terms, moments.G.dtype
    roots = [
        jnp.linalg.cholesky(T @ start @ T.T) for T, start in zip(moments.T, moment_covariances(moments), strict=True)
    ]
    units = [jnp.diag(jnp.abs(diagonal(T))) for T in moments.T]
    by_moments, sizes = (chart_of_entries(factors, moments.T, structures, dtype).phi for factors in (roots, units))

    def phi_at(multiple):
        return jnp.where(held, chart.phi, jnp.sqrt(multiple) * sizes)

    multiples = best_multiples(moments, reml, lambda c: chart_roots(Chart(chart.bases, phi_at(c)), structures))
    by_moments = jnp.where(held, chart.phi, by_moments)
    phi = jnp.stack([chart.phi, by_moments, phi_at(multiples[0]), phi_at(multiples[1])])
    charts = Chart(tuple(jnp.broadcast_to(basis, (4, *basis.shape)) for basis in chart.bases), phi)
    count = jnp.where(multiples[0] == multiples[1], 3, 4)
    return charts, jnp.where(jnp.all(held), 1, count).astype(jnp.int32)


class Search(NamedTuple):
    """The run from one start, the best of those that have ended, how many have, and all evaluations."""

    state: State
    best: State
    start: jax.Array
    evaluations: jax.Array


def _proceed(search: Search, state: State, charts: Chart, max_iterations) -> Search:
    """Take the run's next state; at its end keep it if it is the best so far, and turn to the next start."""
    limit = jnp.maximum(max_iterations, MAX_ITERATIONS)
    ended = (state.outcome != _RUNNING) | (state.iteration >= limit)
    best = _select(ended & _is_better(search, state), state, search.best)
    start = search.start + ended.astype(jnp.int32)
    following = jax.tree.map(lambda a: a[jnp.minimum(start, a.shape[0] - 1)], charts)
    return Search(_select(ended, _initial_state(following), state), best, start, search.evaluations + 1)


def _select(condition, one, other):
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), one, other)


def _is_better(search: Search, state: State):
    """Whether a run ended lower than those before it by more than rounding.

    Where a run came lower without reaching an optimum, as where so many coefficients fit the response perfectly that
    the deviance has no minimum, it is no optimum that is to be reported; by less, an optimum is preferred. But one that
    is no lower than a flat place is no optimum either: rounding made it one.
    """
    own, other = _is_certified(state), _is_certified(search.best)
    own_flat, other_flat = (run.outcome == Outcome.FLAT.value for run in (state, search.best))
    value, least = state.derivatives.value, search.best.derivatives.value
    rounding = jnp.maximum(1e-8, 2 * ROUNDING * jnp.abs(value))
    preferred = (own & ~other & ~other_flat) | (own_flat & other)
    margin = jnp.where(own & other, rounding, jnp.where(preferred, -1e-5, 1e-5))
    return (search.start == 0) | (value < least - margin)


_RUNNING = -1


def _initial_state(chart: Chart) -> State:
    """Nothing known yet: the first trial is the start, and any finite value betters infinity."""
    m, dtype = chart.phi.shape[0], chart.phi.dtype
    none, square, zero = jnp.zeros(m, dtype), jnp.zeros((m, m), dtype), jnp.zeros((), jnp.int32)
    return State(
        chart=chart,
        derivatives=Derivatives(jnp.full((), jnp.inf, dtype), none, square, none),
        gradient=none,
        hessian=square,
        eigenvalues=none,
        trial=chart,
        predicted=jnp.full((), jnp.inf, dtype),
        boundary=jnp.zeros((), bool),
        radius=jnp.zeros((), dtype),
        iteration=zero,
        stalled=zero,
        polishing=jnp.zeros((), bool),
        outcome=zero + _RUNNING,
    )


def _iterate(state: State, moments, reml, in_chart, growth, moving) -> State:
    """One iteration: evaluate the trial point, accept or reject it, propose the next.

    There is one evaluation of value, gradient and Hessian, and one traced copy of the likelihood.
    """
    structures, dtype = moments.layout.terms, state.chart.phi.dtype
    roots = chart_roots(state.trial, structures)
    covariances = squares(roots)
    # Far from the optimum of crossed factors the average information does as well, at half the price.
    exact = state.predicted < NEAR if moments.layout.crossed else True
    at = derivatives(psi_of(covariances, structures, dtype), roots, moments, reml, exact)
    accepted, ratio, stalled = _judge(state, at)
    settled = chart_at(covariances, structures, dtype) if moving else state.trial
    gradient, hessian = in_chart(settled, at)
    chart, at, gradient, hessian = jax.tree.map(
        lambda new, kept: jnp.where(accepted, new, kept),
        (settled, at, gradient, hessian),
        (state.chart, state.derivatives, state.gradient, state.hessian),
    )
    length = jnp.sqrt(jnp.sum((state.trial.phi - state.chart.phi) ** 2))
    grown = jnp.where((ratio > 0.75) & state.boundary, 2 * state.radius, state.radius)
    radius = jnp.where(~accepted | (ratio < 0.25), length / 4, grown)
    fresh = jnp.maximum(0.5, 0.5 * jnp.sqrt(jnp.sum(chart.phi**2)))
    radius = jnp.where(jnp.isinf(state.predicted), fresh, radius)
    values, vectors = eigh(hessian)
    move, predicted, boundary = trust_region_step(values, vectors.T @ gradient, radius)
    trial = Chart(chart.bases, chart.phi + vectors @ move)
    outcome = jnp.where(state.polishing, Outcome.CONVERGED.value, _RUNNING)
    outcome = jnp.where((outcome == _RUNNING) & (stalled >= 2), Outcome.PRECISION_LIMIT.value, outcome)
    outcome = jnp.where(
        (outcome != _RUNNING) & _is_flat(chart, structures, hessian, *growth), Outcome.FLAT.value, outcome
    )
    outcome = jnp.where(jnp.isfinite(at.value), outcome, Outcome.NOT_FINITE.value)
    return State(
        chart=chart,
        derivatives=at,
        gradient=gradient,
        hessian=hessian,
        eigenvalues=values,
        trial=trial,
        predicted=predicted,
        boundary=boundary,
        radius=radius,
        iteration=state.iteration + 1,
        stalled=stalled,
        polishing=_is_optimum(values, vectors.T @ gradient) & exact,
        outcome=outcome.astype(jnp.int32),
    )


def _judge(state: State, at: Derivatives):
    """Whether the trial is accepted, the ratio of actual to predicted gain, and how often rounding has drowned it."""
    old = state.derivatives.value
    starting = jnp.isinf(state.predicted)
    gain = jnp.where(jnp.isfinite(at.value), old - at.value, -jnp.inf)
    noise = ROUNDING * jnp.where(starting, 0, jnp.abs(old))
    predicted = jnp.where(starting, 0, state.predicted)
    visible = predicted > noise
    ratio = jnp.where(visible, gain / jnp.where(visible, predicted, 1), 1)
    usable = jnp.isfinite(at.value) & jnp.all(jnp.isfinite(at.hessian))
    accepted = usable & (starting | (gain >= 1e-4 * predicted - 2 * noise))
    return accepted, ratio, jnp.where(visible | starting, 0, state.stalled + 1).astype(jnp.int32)


def _is_optimum(values, slope):
    """The certificate: no direction of negative curvature, and nothing to gain by a Newton step."""
    largest = jnp.maximum(values[-1], 1)
    decrement = jnp.sum(slope**2 / jnp.maximum(values, 1e-10 * largest)) / 2
    return (decrement < DECREMENT) & (values[0] > CURVATURE * largest)


def is_convex(eigenvalues: np.ndarray) -> bool:
    """Whether the Hessian at the end has no direction of negative curvature, by its ascending eigenvalues."""
    return not len(eigenvalues) or bool(eigenvalues[0] > CURVATURE * max(eigenvalues[-1], 1))


def _pull_back(chart: Chart, structures, at: Derivatives):
    """Gradient and Hessian in phi from those in psi."""
    jacobian, bend = chart_map(chart, structures, at.gradient)
    return at.gradient @ jacobian, jacobian.T @ at.hessian @ jacobian + bend


def _is_certified(state: State):
    return (state.outcome == Outcome.CONVERGED.value) | (state.outcome == Outcome.PRECISION_LIMIT.value)


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


def _is_flat(chart: Chart, structures, hessian, rows, grows):
    """Whether a direction has no curvature beyond rounding, each root measured by its size; see `_growth`."""
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


def _finish(state: State, structures, evaluations, starts) -> Solution:
    outcome = jnp.where(state.outcome == _RUNNING, Outcome.MAX_ITERATIONS.value, state.outcome).astype(jnp.int32)
    return Solution(
        chart=state.chart,
        roots=chart_roots(state.chart, structures),
        derivatives=state.derivatives,
        gradient=state.gradient,
        hessian=state.hessian,
        eigenvalues=state.eigenvalues,
        iterations=state.iteration,
        evaluations=evaluations,
        starts=starts,
        outcome=outcome,
    )


def _nothing_to_optimise(moments: Moments, reml: bool) -> Solution:
    """Without random effects the deviance is a constant."""
    dtype = moments.G.dtype
    none, zero = jnp.zeros(0, dtype), jnp.zeros((), jnp.int32)
    value = deviance_at([], [], moments, reml)
    empty = jnp.zeros((0, 0), dtype)
    at = Derivatives(value, none, empty, none)
    return Solution(Chart((), none), (), at, none, empty, none, zero, zero + 1, zero + 1, zero)


def minimize_lbfgs(moments: Moments, start, reml: bool, max_iterations, gradient_tolerance) -> Solution:
    """L-BFGS (optax) in a fixed chart, then Newton steps from where it ended, and from the other starts.

    They also give the certificate.
    """
    import optax

    structures, dtype = moments.layout.terms, moments.G.dtype
    charts, count = _charts(moments, start, reml, None)
    chart = jax.tree.map(lambda a: a[0], charts)

    def objective(phi):
        roots = chart_roots(Chart(chart.bases, phi), structures)
        return deviance_at(squares(roots), roots, moments, reml)

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def proceed(carry):
        phi, state, _, count = carry
        value, gradient = value_and_grad(phi, state=state)
        updates, state = solver.update(gradient, state, phi, value=value, grad=gradient, value_fn=objective)
        return optax.apply_updates(phi, updates), state, jnp.linalg.norm(gradient), count + 1

    # optax mixes integers of two widths, which strict promotion would refuse.
    with jax.numpy_dtype_promotion("standard"):
        phi, _, _, count = jax.lax.while_loop(
            lambda c: (c[2] > gradient_tolerance) & (c[3] < max_iterations),
            proceed,
            (chart.phi, solver.init(chart.phi), jnp.full((), jnp.inf, dtype), jnp.zeros((), jnp.int32)),
        )
    ended = squares(chart_roots(Chart(chart.bases, jnp.asarray(phi)), structures))
    solution = minimize(moments, ended, reml, max_iterations, others=count > 1)
    return solution._replace(iterations=solution.iterations + count, evaluations=solution.evaluations + count)
