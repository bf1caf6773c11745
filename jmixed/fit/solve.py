"""The one pipeline of a fit: cross-products, start, minimum, estimates, outcome.

Every way of fitting calls `solve` inside a program of its own, and so ends at the same optimum: one response on the
host or thousands, the differentiable fit, refits without a group, groups shared out over devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.lax import stop_gradient

from jmixed.algebra.lbfgs import descend
from jmixed.algebra.newton import MAX_ITERATIONS, Minimum, Point
from jmixed.errors import DataError, Outcome
from jmixed.fit.outcome import outcome_of
from jmixed.layout.design import Rows
from jmixed.layout.layout import Layout
from jmixed.likelihood import gaussian
from jmixed.likelihood.collapse import Classes, collapse
from jmixed.likelihood.contract import Criterion, Starts, minimum
from jmixed.likelihood.estimates import by_level
from jmixed.likelihood.laplace import LaplaceDeviance, laplace_deviance
from jmixed.likelihood.moments import Moments, is_drowned
from jmixed.likelihood.moments import moments as cross_products
from jmixed.likelihood.preconditioning import Preconditioners, preconditioners
from jmixed.likelihood.profiled import InPsi, ProfiledDeviance, with_held_entries
from jmixed.likelihood.quadrature import quadrature_deviance
from jmixed.likelihood.whitened import WhitenedDeviance, whitened_deviance


class Search(NamedTuple):
    """How to search for the optimum.

    Attributes
    ----------
    theta0 : array (m,) or None
        Where to start first. None, or nan, has starts found: the two cases of nan and of numbers share a program.
    free : array (m,) or None
        Ones for entries of theta that are estimated, zeros for those that stay at `theta0`; all are, where None.
    others : bool, scalar bool array or None
        Whether to start from elsewhere too than from a `theta0`; by default from that alone.
    limit : int or scalar array
        Of iterations from each start.
    gradient_tolerance : scalar or None
        Gradient norm to which L-BFGS goes down before Newton steps; None leaves it out.
    """

    theta0: Any = None
    free: Any = None
    others: Any = None
    limit: Any = MAX_ITERATIONS
    gradient_tolerance: Any = None


class Certificate(NamedTuple):
    """What the optimiser knows of where it ended.

    `in_psi` belongs to preconditioned columns; `gradient` and `eigenvalues` (m,) are of the deviance in the last chart;
    `iterations` of the run that ended there, `evaluations` of those from all starts, of which there were so many
    `starts`.
    """

    in_psi: InPsi
    gradient: jax.Array
    eigenvalues: jax.Array
    iterations: jax.Array
    evaluations: jax.Array
    starts: jax.Array


class Solution(NamedTuple):
    """Where the optimiser ended: bases of the terms' covariances with phi (m,) in them, the Hessian (m, m) in phi.

    ``outcome`` is the integer of an `Outcome`.
    """

    point: Point
    hessian: jax.Array
    certificate: Certificate
    outcome: jax.Array


class Solved(NamedTuple):
    """A fit, in arrays.

    Attributes
    ----------
    estimates : dict of arrays
        As of `jmixed.likelihood.estimates`, with the modes of all levels by term.
    T : arrays (q, q) by term
        Preconditioners of the columns of Z.
    outcome : int array
        How the fit ended: as the optimiser did, unless its optimum is no estimate.
    drowned : bool array
        With `counted=False`: whether the fit should be done again with effects counted from estimates.
    """

    estimates: dict[str, Any]
    certificate: Certificate
    T: tuple[jax.Array, ...]
    nobs: jax.Array
    outcome: jax.Array
    drowned: jax.Array


def solve(
    data: Rows | Moments,
    reml,
    search: Search | None = None,
    *,
    counted: bool | None = None,
    columns: Preconditioners | None = None,
    classes: Classes | None = None,
    minimise: Callable[..., Any] | None = None,
    differentiable: Callable[[Solution, Criterion], Point] | None = None,
) -> Solved:
    """Fit, as one pure function to be traced.

    Parameters
    ----------
    counted : bool, optional
        Of rows, whether random effects are counted from their estimates; by default the data decide.
    columns : Preconditioners, optional
        Those to take for rows.
    classes : Classes, optional
        Groups with the same Z'WZ, put together for the search.
    minimise : callable, optional
        Another way of working out `minimise_deviance`, or `minimum` of a response with a family, and called like it.
    differentiable : callable, optional
        ``differentiable(solution, criterion)`` gives the optimum as a function of the criterion's data. By default it
        is a constant.
    """
    if isinstance(data, Rows) and data.layout.family is not None:
        return _solve_laplace(data, search or Search(), minimise or minimum, differentiable)
    if isinstance(data, Rows) and data.layout.residual.size:
        return _solve_whitened(data, reml, search or Search(), columns, differentiable)
    moments, drowned = moments_of(data, counted, columns)
    known = stop_gradient(moments)
    if classes is not None:
        # A compiler that sees where they come from works them out again for each that reads them.
        known = jax.lax.optimization_barrier(known)
    together = known if classes is None else collapse(known, classes)
    minimise = minimise_deviance if minimise is None else minimise
    solution = minimise(together, reml, search or Search())
    if differentiable is None:
        few = None if classes is None else ProfiledDeviance(together, reml)
        return _solved(solution, ProfiledDeviance(known, reml), solution.point, known, drowned, few)
    deviance = ProfiledDeviance(moments, reml)
    return _solved(solution, deviance, differentiable(solution, deviance), moments, drowned)


def _solve_whitened(rows, reml, search, columns, differentiable) -> Solved:
    """The same for residuals with parameters: cross-products are part of the criterion."""
    columns = preconditioners(rows) if columns is None else columns
    deviance = whitened_deviance(rows, columns, reml)
    solution = _search(stop_gradient(deviance), search)
    point = solution.point if differentiable is None else differentiable(solution, deviance)
    profiled, _ = deviance.at(point)
    solved = _solved(solution, deviance, point, profiled.moments, False)
    m = sum(term.size for term in rows.layout.terms)
    diverges = rows.layout.residual.diverges(stop_gradient(point.x[m:]), solution.certificate.gradient[m:], rows)
    undone = (solved.outcome == Outcome.NOT_FINITE.value) | (solved.outcome == Outcome.RANK_DEFICIENT.value)
    outcome = jnp.where(diverges & ~undone, Outcome.DIVERGING.value, solved.outcome)
    return solved._replace(outcome=outcome.astype(jnp.int32))


def starts_of_response(known: LaplaceDeviance, search: Search) -> Starts:
    """Where the search for the optimum of a response with a family begins."""
    theta0, rows = search.theta0, known.rows
    start = None if theta0 is None else _covariances_at(theta0, rows, known.columns.T)
    return known.starts(start, search.others)


def _solve_laplace(rows, search, minimise, differentiable) -> Solved:
    """The same for a response with a family: modes are part of the criterion."""
    deviance = laplace_deviance(rows)
    known, p = stop_gradient(deviance), rows.X.shape[1]
    starts = starts_of_response(known, search)
    lowest, criterion = minimise(known, starts, search.limit), deviance
    if rows.layout.quadrature > 1:
        criterion = quadrature_deviance(deviance, rows.layout.quadrature)
        begin = criterion.starts(known.as_entries(lowest.at.point))
        better = minimum(stop_gradient(criterion), begin, search.limit)
        evaluations = lowest.evaluations + better.evaluations
        lowest = better._replace(iterations=lowest.iterations + better.iterations, evaluations=evaluations)
    solution = _solution(lowest, starts.count)
    if differentiable is None:
        estimates = criterion.estimates(solution.point, lowest.at.value)
    else:
        estimates = criterion.estimates(differentiable(solution, criterion))
    vcov = known.on_scale(solution.hessian)
    estimates |= {"vcov_beta": vcov[:p, :p], "vcov_rho": vcov[p:, p:]}
    ended = jnp.where(known.redundant, Outcome.RANK_DEFICIENT.value, solution.outcome).astype(jnp.int32)
    count = jnp.sum((rows.weights > 0).astype(rows.y.dtype))
    return Solved(estimates, solution.certificate, deviance.columns.T, count, ended, jnp.zeros((), bool))


def _solved(solution, deviance, point, moments, drowned, few=None) -> Solved:
    """`few` is the same deviance, of groups put together."""
    estimates = deviance.estimates(point)
    if few is not None:
        # The modes are each group's own; a program that does not keep them works out no more than the few.
        estimates = few.estimates(point) | {"modes": estimates["modes"]}
    estimates["modes"] = by_level(estimates["modes"], moments)
    ended = stop_gradient((deviance.roots(point), estimates["sigma"], estimates["vcov_beta"]))
    outcome = outcome_of(solution.outcome, *ended, stop_gradient(moments))
    return Solved(estimates, solution.certificate, moments.T, moments.nobs, outcome, jnp.asarray(drowned))


def moments_of(data: Rows | Moments, counted: bool | None, columns: Preconditioners | None = None):
    """Cross-products, and whether they should be those of effects that are counted from estimates but are not."""
    if isinstance(data, Moments):
        return data, False
    moments = cross_products(data, columns, counted)
    return moments, is_drowned(data, moments) if counted is False else False


def minimise_deviance(moments: Moments, reml, search: Search) -> Solution:
    """The lowest minimum of the profiled deviance that is found from every start of the policy."""
    if not moments.layout.terms:
        return _nothing_to_optimise(moments, reml)
    if search.free is not None:
        deviance = with_held_entries(moments, reml, search.theta0, search.free)
        starts = deviance.starts()
        return _solution(minimum(deviance, starts, search.limit), starts.count)
    return _search(ProfiledDeviance(moments, reml), search)


def _search(deviance: ProfiledDeviance | WhitenedDeviance, search: Search) -> Solution:
    start = None if search.theta0 is None else _covariances_at(search.theta0, *deviance.data)
    starts = deviance.starts(start, search.others)
    if search.gradient_tolerance is None:
        return _solution(minimum(deviance, starts, search.limit), starts.count)
    # From where L-BFGS ends, and from the other starts: Newton steps also give the certificate.
    frame, x = jax.tree.map(lambda a: a[0], starts.points)
    x, steps = descend(lambda x: deviance.value(Point(frame, x)), x, search.gradient_tolerance, search.limit)
    starts = _with_first(Point(frame, x), starts)
    solution = _solution(minimum(deviance, starts, search.limit), starts.count)
    told = solution.certificate
    told = told._replace(iterations=told.iterations + steps, evaluations=told.evaluations + steps)
    return solution._replace(certificate=told)


def _with_first(point: Point, starts: Starts) -> Starts:
    """A point before all starts, or in the place of the only one."""
    others = jax.tree.map(lambda a: a[:0] if len(starts.points.x) == 1 else a, starts.points)
    points = jax.tree.map(lambda a, rest: jnp.concatenate([a[None], rest]), point, others)
    return Starts(points, jnp.where(starts.count > 1, starts.count + 1, 1).astype(jnp.int32))


def _covariances_at(theta, data: Moments | Rows, T):
    """Relative covariances in preconditioned columns, of a theta that a caller gave."""
    theta = theta_of(data.layout, theta, "theta0")
    return gaussian.squares(gaussian.precondition(gaussian.factors_of(theta, data), T))


def _solution(lowest: Minimum, starts) -> Solution:
    at, counts = lowest.at, (lowest.iterations, lowest.evaluations, starts)
    certificate = Certificate(at.extras, at.gradient, lowest.eigenvalues, *counts)
    return Solution(at.point, at.hessian, certificate, lowest.outcome)


def _nothing_to_optimise(moments: Moments, reml) -> Solution:
    """Without random effects the deviance is a constant."""
    none, zero = jnp.zeros(0, moments.G.dtype), jnp.zeros((), jnp.int32)
    certificate = Certificate(ProfiledDeviance(moments, reml).blank(), none, none, zero, zero + 1, zero + 1)
    return Solution(Point((), none), jnp.zeros((0, 0), none.dtype), certificate, zero)


def theta_of(layout: Layout, theta, name: str = "theta") -> jax.Array:
    """Relative covariance factors that a caller gave, as many as the terms have."""
    return of_shape(name, theta, (sum(term.size for term in layout.terms),), "in the order of model.theta_names")


def of_shape(name: str, value, shape: tuple[int, ...], what: str) -> jax.Array:
    """Numbers that a caller gave, after a look at their shape."""
    value = jnp.asarray(value)
    value = value if jnp.issubdtype(value.dtype, jnp.floating) else value.astype(jnp.result_type(float))
    if value.shape != shape:
        raise DataError(f"{name} has shape {value.shape}, but this design needs {shape}: {what}")
    return value
