"""The fit as a pure function of arrays: it composes with jit, vmap and grad."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.newton import MAX_ITERATIONS, Point, pseudo_inverse
from jmixed.errors import DataError, ModelError, Outcome, PrecisionWarning, warn
from jmixed.fit.devices import axis_to_share, minimise_groups, minimise_shared, shared_grouping, shares
from jmixed.fit.outcome import is_unbounded, may_be_unbounded, outcome_of
from jmixed.fit.penalised import penalised_optimum
from jmixed.fit.penalised_responses import ResponseAtTheta, criterion_of, laplace_of, penalised_response
from jmixed.fit.solve import Certificate, Search, Solution, Solved, of_shape, solve, starts_of_response, theta_of
from jmixed.layout.design import Design, Effects, Rows, names_of
from jmixed.layout.index import Array
from jmixed.layout.layout import Layout
from jmixed.likelihood import gaussian
from jmixed.likelihood.contract import Criterion, minimum
from jmixed.likelihood.estimates import by_level, conditional_modes, estimates
from jmixed.likelihood.laplace import laplace_deviance
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.moments import moments as cross_products
from jmixed.likelihood.quadrature import quadrature_deviance
from jmixed.residual.independent import Independent
from jmixed.runtime.arguments import checked, is_traced
from jmixed.runtime.compilation import program
from jmixed.runtime.precision import exact_products


class _ByLabel:
    """A field that holds `Effects`, or a dict of arrays, and gives a dict."""

    def __get__(self, estimate, owner=None):
        if estimate is None:
            raise AttributeError("b belongs to an Estimate")
        effects = vars(estimate)["b"]
        return effects.by_label() if isinstance(effects, Effects) else effects

    def __set__(self, estimate, value):
        vars(estimate)["b"] = value


@dataclass(frozen=True)
class Estimate:
    """The fit of a mixed model as a pytree of arrays.

    Attributes
    ----------
    theta : array (m,)
        Relative covariance factors, term by term, lower triangles column by column, rectified.
    beta : array (k_fe,)
        Fixed effects.
    sigma : scalar
        Residual standard deviation, in the response's unit.
    b : dict of arrays (levels, q)
        Conditional modes of the random effects by term.
    vcov_beta : array (k_fe, k_fe)
        Generalised-least-squares covariance of beta.
    log_likelihood : scalar
        Maximised log-likelihood; the restricted one under REML.
    objective : scalar
        -2 log-likelihood or REML criterion, with all constants.
    outcome : int array
        How the fit ended; `jmixed.Outcome(int(outcome))` names it. A dispersion under which ML has no maximum is seen
        in designs whose X can be looked at, which that of an argument of `jax.jit` cannot.
    rho : array (k,)
        Parameters of the residuals' structure on the whole real line, empty for independent residuals of one variance.
        sigma is that of rows whose columns of ``design.series.dispersion`` are zero: of a covariate far from its
        origin, those at its mean.
        Of a response with a family, coefficients of its further predictors, as of a dispersion; sigma is then one.

    Examples
    --------
    >>> import jax, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     fit = jm.estimate(design)
    >>> fit.beta.round(3).tolist(), fit.b["1 | Subject"].shape, jm.Outcome(int(fit.outcome)).name
    ([251.405, 10.467], (18, 1), 'CONVERGED')
    """

    theta: Any
    beta: Any
    sigma: Any
    b: Any
    vcov_beta: Any
    log_likelihood: Any
    objective: Any
    outcome: Any
    rho: Any = ()


Estimate.b = _ByLabel()
_FIELDS = tuple(field.name for field in fields(Estimate))


def _flatten(estimate):
    return tuple(vars(estimate)[name] for name in _FIELDS), None


def _flatten_with_keys(estimate):
    return tuple((jax.tree_util.GetAttrKey(name), vars(estimate)[name]) for name in _FIELDS), None


jax.tree_util.register_pytree_with_keys(Estimate, _flatten_with_keys, lambda _, children: Estimate(*children), _flatten)


@checked
@exact_products
def moments(design: Design) -> Moments:
    """The cross-products of a design: all that the likelihood needs of the data, differentiable in every array.

    Raises DataError for what is no design.

    Examples
    --------
    >>> import jax, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     float(jm.moments(design).nobs)
    180.0
    """
    say_once_if_narrowed(known_design(design))
    require_normal(design.layout, "jm.moments")
    return compiled(_moments, design.padded_rows())


def _moments(rows):
    return cross_products(jax.tree.map(jnp.asarray, rows))


def known_design(design) -> Design:
    """The design that a caller gave: one, of one model."""
    if not isinstance(design, Design):
        raise DataError(f"design is a {type(design).__name__}; give the design of a model, model.design")
    if (axes := np.ndim(design.padded_rows().y)) != 1:
        raise DataError(
            f"the design's response has {axes} axes: it holds several designs; map over them, as in "
            "jax.vmap(jm.estimate)(designs)"
        )
    return design


@checked
@exact_products
def profiled_deviance(theta: Array, design: Design | Moments, reml: bool = True) -> jax.Array:
    """-2 log-likelihood, or the REML criterion, with beta and sigma profiled out (Bates et al. 2015, eqs. 34 and 42).

    A scalar at relative covariance factors `theta` (m,), of any signs. Raises DataError for another number of
    parameters than the design has.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     round(float(jm.profiled_deviance(np.array([1.2]), design)), 4)
    1786.4652
    """
    data = _known_data(design)
    require_normal(data.layout, "jm.profiled_deviance")
    return compiled(_profiled_deviance, data, theta_of(data.layout, theta), reml)


def _profiled_deviance(data, theta, reml):
    return gaussian.deviance_of_theta(theta, data if isinstance(data, Moments) else _moments(data), reml)


def _known_data(design) -> Moments | Rows:
    """What programs take of a design or of cross-products that a caller gave."""
    if isinstance(design, Moments):
        return design
    say_once_if_narrowed(known_design(design))
    return design.padded_rows()


@checked
@exact_products
def log_likelihood(
    beta: Array, theta: Array, sigma: Array | float, design: Design | Moments, rho: Array | None = None
) -> jax.Array:
    """The marginal Gaussian log density of the response, a scalar (Bates et al. 2015, section 3.4).

    Of a response with a family, its log-likelihood by the design's approximation.

    Parameters
    ----------
    beta : array (k_fe,)
        Fixed effects.
    theta : array (m,)
        Relative covariance factors; any signs.
    sigma : scalar
        Residual standard deviation; of a response with a family there is none, and what is given does not count.
    rho : array (k,), optional
        Parameters of the residuals' structure, where the model has residual= or dispersion=: as in ``Estimate.rho``.

    Raises
    ------
    DataError
        For another number of parameters than the design has.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     round(float(jm.log_likelihood(np.array([251.4, 10.5]), np.array([1.2]), 31.0, design)), 3)
    -897.059
    """
    data = _known_data(design)
    if isinstance(data, Rows) and data.layout.family is not None:
        beta, theta, _ = parameters_of(data, beta, theta, 1.0)
        return compiled(_log_likelihood_of_family, data, beta, theta, kappa_of(data, rho))
    return compiled(_log_likelihood, data, *parameters_of(data, beta, theta, sigma), rho_of(data.layout, rho))


def kappa_of(rows: Rows, rho) -> jax.Array:
    """Coefficients of a family's further predictors that a caller gave as rho."""
    extras = () if rows.response is None else rows.response.extras
    size = sum(columns.shape[1] for columns in extras)
    if rho is None and size:
        raise DataError(
            f"rho is missing: the family of this design has {size} further coefficients; give rho=, as in "
            "jm.estimate(design).rho"
        )
    return of_shape("rho", () if rho is None else rho, (size,), "in the order of the estimate's rho")


def _log_likelihood_of_family(rows, beta, theta, kappa):
    return -deviance_of_family(jax.tree.map(jnp.asarray, rows), beta, theta, kappa) / 2


def deviance_of_family(rows: Rows, beta, theta, kappa):
    """-2 log-likelihood of a response with a family, by its design's approximation."""
    deviance = laplace_deviance(rows)
    if rows.layout.quadrature > 1:
        return quadrature_deviance(deviance, rows.layout.quadrature).at(theta, beta, kappa)
    return deviance.at(theta, beta, kappa)


def require_normal(layout: Layout, what: str) -> None:
    """Refuse what is there for normal responses only."""
    if layout.family is not None:
        raise ModelError(
            f"{what} is there for linear mixed models only, and this design has a response of the family "
            f"{layout.family.name}; jm.estimate, jm.estimate_many, jm.log_likelihood and jm.marginal_loss take it",
            page="jax.md#other-responses",
        )


def _log_likelihood(data, beta, theta, sigma, rho):
    if isinstance(data, Moments):
        return gaussian.log_density(beta, theta, sigma, data)
    # Of residuals the density asks nothing of the columns of X: they may be collinear.
    white, logdet = white_at(data, rho)
    moments = moments_at(white, beta)
    return gaussian.log_density(jnp.zeros(0, moments.G.dtype), theta, sigma, moments) - logdet / 2


def rho_of(layout: Layout, rho) -> jax.Array:
    """Parameters of the residuals' structure that a caller gave, or none where it has none."""
    if rho is None and layout.residual.size:
        raise DataError(
            f"rho is missing: the residuals of this design have {layout.residual.size} parameters; give rho=, as in "
            "jm.estimate(design).rho"
        )
    return of_shape("rho", () if rho is None else rho, (layout.residual.size,), "in the order of the estimate's rho")


def white_at(rows: Rows, rho):
    """Rows whose residuals are independent, and the log-determinant of what was taken from them."""
    residual = rows.layout.residual
    if not residual.size:
        return rows, 0
    white, logdet = residual.whiten(rho, rows), residual.log_determinant(rho, rows)
    return replace(white, layout=replace(rows.layout, residual=Independent()), series=None), logdet


def moments_at(rows: Rows, beta) -> Moments:
    """The cross-products of the residuals at given coefficients."""
    return moments_of_residuals(rows, rows.y - rows.offset - rows.X @ beta)


def moments_of_residuals(rows: Rows, residuals) -> Moments:
    """The cross-products of residuals (rows,) from any mean: those of a design without fixed effects."""
    residuals = jnp.asarray(residuals)
    bare = {"X": jnp.zeros((*residuals.shape, 0), residuals.dtype), "offset": jnp.zeros_like(residuals)}
    return _moments(replace(rows, y=residuals, **bare))


def parameters_of(data: Moments | Rows, beta, theta, sigma):
    """Parameters that a caller gave, of the shapes that the data have."""
    p = data.beta0.shape[0] if isinstance(data, Moments) else data.X.shape[1]
    beta = of_shape("beta", beta, (p,), "a number for each column of X")
    return beta, theta_of(data.layout, theta), of_shape("sigma", sigma, (), "one number")


@checked
@exact_products
def estimate(
    design: Design,
    reml: bool = True,
    theta0: Array | None = None,
    *,
    theta: Array | None = None,
    penalty: Callable[[jax.Array, jax.Array], jax.Array] | None = None,
    mesh: Any = None,
    axis: str | None = None,
) -> Estimate:
    """Fit a mixed model as one pure function: jit, vmap and differentiate it in every array of the design.

    Derivatives are those of the optimum (implicit function theorem), in forward and reverse mode; the iterations are
    never unrolled. At a singular optimum first derivatives are those of the minimum-norm solution; at an ordinary one
    second and higher derivatives are right too, and take longer to compile. In 32 bits, estimates and derivatives are
    within 0.2% of their largest entry on small well-conditioned data: a minimum is known to the root of the precision.

    Parameters
    ----------
    design : Design
        As in ``model.design``, or a replacement of its arrays.
    reml : bool
        Restricted maximum likelihood, or maximum likelihood.
    theta0 : array (m,), optional
        Start; by default one is found.
    theta : array (m,), optional
        Relative covariance factors to keep: beta, sigma and b are the best at them, and nothing is optimised. Of a
        response with a family the coefficients are searched for.
    penalty : callable, optional
        ``penalty(beta, theta)``, a scalar that is added to the deviance, as twice the negative logarithm of a prior
        density is. Then beta and theta minimise the sum; sigma is the best for them, `objective` is the sum,
        `log_likelihood` goes without the penalty, and `vcov_beta` is that of generalised least squares at theta, or of
        a response with a family by the curvature in beta and its further coefficients at theta. First
        derivatives only, also in what the penalty closes over. Such a call is compiled each time, unless it is part of
        a function under `jax.jit`.
    mesh : jax.sharding.Mesh, optional
        Devices, of one or several processes, over which the groups are shared out: each evaluation of the likelihood
        then works on the groups of each device and sums once over devices. Of nested factors the outermost is shared
        out; the number of groups need not be a multiple of that of devices. Cross-products are computed from the
        design before that, and the estimate at the optimum after it, on one device of each process; every process
        passes the same design.
    axis : str, optional
        The axis of the mesh to use; the only one by default.

    Raises
    ------
    ModelError
        With a mesh: the model has crossed factors that hang together, or a response with a family and more than one
        factor, or quadrature.
    DataError
        The mesh has no such axis, or more devices than there are groups; an axis without a mesh; `theta0` has another
        length; `theta` or `penalty` together with another of theta, penalty, theta0 and mesh.

    Examples
    --------
    The slope of sleepstudy is linear in the response at the same theta, and theta does not depend on its unit:

    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     influence = np.asarray(jax.grad(lambda y: jm.estimate(design.replace(y=y)).beta[1])(design.y))
    >>> round(float(influence @ design.y), 4)
    10.4673
    """
    say_once_if_narrowed(known_design(design))
    theta0 = theta0 if theta0 is None or isinstance(theta0, jax.Array) else np.asarray(theta0)
    exclusive = {"theta": theta, "penalty": penalty, "theta0": theta0, "mesh": mesh}
    stated = [name for name, value in exclusive.items() if value is not None]
    if len(stated) > 1 and stated[0] in ("theta", "penalty") and stated != ["penalty", "theta0"]:
        raise DataError(f"estimate: {stated[0]} and {stated[1]} exclude each other; give one of them")
    if theta is not None:
        rows = design.padded_rows()
        at_theta = _estimate_at_theta if rows.layout.family is None else _response_at_theta
        return named_estimate(compiled(at_theta, rows, theta_of(rows.layout, theta), reml), design)
    if penalty is not None:
        if not callable(penalty):
            raise DataError(f"penalty is a {type(penalty).__name__}; give a function of (beta, theta)")
        if isinstance(penalty, type):
            raise DataError(f"penalty is the class {penalty.__name__}; give a function of (beta, theta)")
        rows = design.padded_rows()
        if design.layout.family is not None:
            # The fit from which the search starts has a program of its own, which is compiled once.
            start = compiled(_estimate, rows, theta0, reml)
            search = jax.jit(lambda rows, start: _response_penalised(rows, start, penalty))
            return named_estimate(search(rows, (start.theta, start.beta, start.rho)), design)
        minimise = jax.jit(lambda rows: _estimate_penalised(rows, theta0, reml, penalty))
        return named_estimate(minimise(rows), design)
    shared_over = axis_to_share(design, mesh, axis)
    if shared_over is not None and design.layout.residual.size:
        raise ModelError("mesh= is there for independent residuals of one variance only", page="structures.md")
    if mesh is None or shared_over is None:
        estimate = compiled(_estimate, design.padded_rows(), theta0, reml)
        return named_estimate(unless_unbounded(estimate, design, reml), design)
    if design.layout.family is not None:
        rows, grouping = design.padded_rows(), shared_grouping(design, mesh.shape[shared_over])
        known, starts = compiled(_search_of_response, rows, theta0)
        lowest = minimise_groups(known, starts, MAX_ITERATIONS, mesh, shared_over, grouping)
        return named_estimate(compiled(_response_from, rows, lowest), design)
    shared_out = shares(design, mesh.shape[shared_over])
    minimise = partial(minimise_shared, mesh=mesh, axis=shared_over, shared_out=shared_out)
    solved = solve(moments(design), reml, Search(theta0), minimise=minimise, differentiable=implicit_optimum)
    return named_estimate(described(solved), design)


def unless_unbounded(estimate: Estimate, design: Design, reml, X=None, weights=None) -> Estimate:
    """An estimate by ML, DIVERGING where its design has no maximum, as far as that can be seen.

    Of arrays that are traced it cannot.
    """
    # A design's arrays are not asked for without need: under jit its true number of rows is then part of the program.
    if not may_be_unbounded(design.layout):
        return estimate
    if is_traced(reml, design.X, design.weights, design.series, X, weights) or reml:
        return estimate
    unbounded = is_unbounded(design, X, weights)
    if not unbounded.any():
        return estimate
    return replace(estimate, outcome=jnp.where(unbounded, Outcome.DIVERGING.value, estimate.outcome))


def _estimate(rows, theta0, reml):
    rows = jax.tree.map(jnp.asarray, rows)
    return described(solve(rows, reml, Search(theta0), differentiable=implicit_optimum))


def _search_of_response(rows, theta0):
    """The criterion of a response with a family, as a constant, and where to begin."""
    known = stop_gradient(laplace_deviance(jax.tree.map(jnp.asarray, rows)))
    return known, starts_of_response(known, Search(theta0))


def _response_from(rows, lowest):
    """The estimate at the minimum of a search that was made elsewhere."""

    def found(known, *_):
        return lowest._replace(at=lowest.at._replace(point=known.with_modes(lowest.at.point)))

    rows = jax.tree.map(jnp.asarray, rows)
    return described(solve(rows, False, minimise=found, differentiable=implicit_optimum))


def _estimate_at_theta(rows, theta, reml):
    moments = _moments(rows)
    roots = gaussian.precondition(gaussian.factors_of(theta, moments), moments.T)
    best = estimates(roots, moments, reml)
    estimate = _described(best | {"modes": by_level(best["modes"], moments)})
    ended = jnp.where(jnp.isfinite(estimate.objective), Outcome.CONVERGED.value, Outcome.NOT_FINITE.value)
    return replace(estimate, outcome=outcome_of(ended, roots, estimate.sigma, estimate.vcov_beta, moments))


def _estimate_penalised(rows, theta0, reml, penalty):
    moments = _moments(rows)
    start = solve(moments, reml, Search(theta0)).estimates["theta"]
    optimum = penalised_optimum(moments, penalty, start, reml)
    roots = gaussian.precondition(gaussian.factors_of(optimum.theta, moments), moments.T)
    best = estimates(roots, moments, reml)
    modes = modes_of_residuals(roots, moments_at(rows, optimum.beta))
    best |= {"modes": by_level(modes, moments), "beta": optimum.beta, "theta": optimum.theta}
    best["vcov_beta"] = best["vcov_beta"] * (optimum.sigma / best["sigma"]) ** 2
    best |= {"sigma": optimum.sigma, "objective": optimum.deviance}
    estimate = _described(best)
    total = optimum.deviance + penalty(optimum.beta, optimum.theta)
    outcome = outcome_of(optimum.outcome, roots, optimum.sigma, estimate.vcov_beta, moments)
    return replace(estimate, objective=total, outcome=outcome)


def _response_at_theta(rows, theta, reml):
    source = criterion_of(jax.tree.map(jnp.asarray, rows))
    deviance = ResponseAtTheta(source, theta)
    known = stop_gradient(deviance)
    lowest = minimum(known, known.starts(), MAX_ITERATIONS)
    # Of the certificate nothing is asked.
    at, count = lowest.at, lowest.iterations
    told = Certificate(laplace_of(known.source).blank(), at.gradient, lowest.eigenvalues, count, count, count)
    point = implicit_optimum(Solution(at.point, at.hessian, told, lowest.outcome), deviance)
    return _described_response(deviance, point, lowest.outcome)


def _response_penalised(rows, start, penalty):
    rows, start = jax.tree.map(jnp.asarray, rows), stop_gradient(start)
    deviance, point, total, outcome = penalised_response(rows, penalty, *start)
    return replace(_described_response(deviance, point, outcome), objective=total)


def _described_response(deviance, point, outcome):
    """The estimate of a response with a family at coefficients that are the best at theta."""
    numbers = deviance.estimates(point) | {"vcov_beta": stop_gradient(deviance).covariance(stop_gradient(point))}
    redundant = laplace_of(deviance.source).redundant
    ended = jnp.where(jnp.isfinite(numbers["objective"]), outcome, Outcome.NOT_FINITE.value)
    ended = jnp.where(redundant, Outcome.RANK_DEFICIENT.value, ended).astype(jnp.int32)
    return replace(_described(numbers), outcome=ended)


def modes_of_residuals(roots, moments):
    """Conditional modes of every stage's blocks, from cross-products of residuals from a mean."""
    return conditional_modes(gaussian.profile(gaussian.squares(roots), roots, moments), moments)


def compiled(function, *args, **static):
    """Call a pure function of arrays by its compiled program, or as part of the program that is being traced."""
    if is_traced(args):
        return _traced(function, tuple(static))(*args, **static)
    with jax.ensure_compile_time_eval():
        return _program(function, tuple(static))(*args, **static)


@cache
def _program(function, static):
    return program(function, static_argnames=static, brief=_is_small)


SMALL = 1 << 17
"""Bytes of a fit's tables of derivatives up to which its programs are compiled for small problems."""


def _is_small(data, varying=None, *_, **__):
    """Whether all steps are so little work that optimised code would save less than compiling it costs.

    `varying`, where it is a dict, has the responses of many fits.
    """
    if isinstance(data, Moments):
        return data.layout.fit_bytes(data.beta0.shape[0]) <= SMALL
    fits = len(varying["y"]) if isinstance(varying, dict) else 1
    return has_few_rows(data, fits) and fits * data.layout.fit_bytes(data.X.shape[1]) <= SMALL


def has_few_rows(rows: Rows, fits: int = 1, **_) -> bool:
    """The same of what goes through the rows, of so many fits."""
    # Residuals with parameters are worked on row by row in every evaluation.
    often = fits * (1 + rows.layout.residual.size)
    return rows.y.shape[0] * (sum(Z.shape[1] for Z in rows.Z) + rows.X.shape[1]) * often <= SMALL // 8


@cache
def _traced(function, static):
    return jax.jit(function, static_argnames=static)


def named_estimate(estimate: Estimate, design: Design, fits: int | None = None) -> Estimate:
    """An estimate whose effects know the names of the design's terms; that of so many fits has an axis of them."""
    names, key = names_of(design)
    key = key if fits is None else jnp.broadcast_to(key, (fits,))
    return replace(estimate, b=Effects(tuple(vars(estimate)["b"]), key, names, design.layout))


def described(solved: Solved) -> Estimate:
    """A fit as an `Estimate`, with the effects of all levels, padding too, by the number of the term."""
    return replace(_described(solved.estimates), outcome=solved.outcome)


def _described(estimates):
    """What `estimates` finds as an `Estimate` that does not know yet how its optimiser ended."""
    numbers = {name: estimates[name] for name in ("theta", "beta", "sigma", "vcov_beta", "objective", "rho")}
    return Estimate(b=tuple(estimates["modes"]), outcome=None, log_likelihood=-estimates["objective"] / 2, **numbers)


def level_count(design, term):
    """True number of levels of a term's factor."""
    return next(n for n, members in zip(design.counts, design.layout.factors, strict=True) if term in members)


def implicit_optimum(solution: Solution, deviance: Criterion) -> Point:
    """The optimum as a differentiable function of the criterion; nothing is differentiated through the search."""
    frame, x = stop_gradient(solution.point)
    return Point(frame, _optimum(x, frame, pseudo_inverse(stop_gradient(solution.hessian)), deviance))


@jax.custom_jvp
def _optimum(x, frame, inverse, deviance):
    """The optimum x in its frame, as a function of the criterion's arrays.

    With d(x, data) stationary at x, the implicit function theorem gives dx = -H^+ d2d/dx ddata. The null directions of
    the Hessian are left alone: the solution of minimum norm. The rule is written with functions of the data alone, so
    that it can be differentiated again.
    """
    return x


@_optimum.defjvp
def _optimum_tangent(primals, tangents):
    x, frame, inverse, deviance = primals
    if not len(x):
        return x, jnp.zeros_like(x)
    at = _optimum(*primals)
    slope = jax.grad(_value)
    _, change = jax.jvp(lambda deviance: slope(at, frame, deviance), (deviance,), (tangents[3],))
    return at, -_inverse_at(at, frame, inverse, deviance) @ change


@jax.custom_jvp
def _inverse_at(x, frame, inverse, deviance):
    """The known inverse of the Hessian at x, as a function of x and the criterion."""
    return inverse


@_inverse_at.defjvp
def _inverse_tangent(primals, tangents):
    x, frame, _, deviance = primals
    inverse = _inverse_at(*primals)
    curvature = jax.hessian(_value)
    _, change = jax.jvp(lambda x, deviance: curvature(x, frame, deviance), (x, deviance), (tangents[0], tangents[3]))
    return inverse, -inverse @ change @ inverse


def _value(x, frame, deviance):
    return deviance.value(Point(frame, x))


def say_once_if_narrowed(design):
    rows = design.padded_rows()
    wide = any(getattr(a, "dtype", None) == np.dtype("f8") for a in (rows.y, rows.X))
    if wide and jax.dtypes.canonicalize_dtype(np.dtype("f8")).itemsize == 4:
        warn(
            "this design holds 64-bit floats, but JAX works in 32 bits here: the likelihood keeps about 4 digits. "
            "Set JAX_ENABLE_X64=1, or call under jax.enable_x64(True)",
            PrecisionWarning,
        )
