"""Compiled programs behind the data-frame side: numpy in, numpy out, in double precision.

A program is compiled once for all data sets of one shape class, and for REML and ML alike.
"""

from dataclasses import dataclass, field, replace
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.newton import MAX_ITERATIONS, is_convex
from jmixed.covariance.scales import diagonal_blocks, psi_map, roots_of_psi, settled, singular_terms, typical_deviation
from jmixed.covariance.structure import factors_of_theta
from jmixed.errors import DataError, ModelError, Outcome
from jmixed.families.family import DISPERSION, INFLATION, Family
from jmixed.fit.estimate import SMALL, has_few_rows, level_count, white_at
from jmixed.fit.information import Information, Uncertainty
from jmixed.fit.outcome import may_be_unbounded, unbounded_rows
from jmixed.fit.penalised_responses import criterion_of
from jmixed.fit.separation import EXTREME, separated_columns
from jmixed.fit.solve import Search, Solved, moments_of, solve
from jmixed.layout.design import Design, ResponseRows, Rows
from jmixed.layout.layout import EQUATIONS, UNPLACED
from jmixed.likelihood import gaussian
from jmixed.likelihood.derivatives import derivatives
from jmixed.likelihood.equations import conditional_covariances
from jmixed.likelihood.laplace import LaplaceDeviance
from jmixed.likelihood.moments import Moments, without_padding
from jmixed.likelihood.preconditioning import preconditioners
from jmixed.likelihood.quadrature import QuadratureDeviance
from jmixed.likelihood.spans import working_moments
from jmixed.likelihood.stages import covariances_of
from jmixed.likelihood.whitened import WhitenedDeviance, whitened_deviance
from jmixed.runtime import memory
from jmixed.runtime.compilation import program
from jmixed.runtime.facts import Facts
from jmixed.runtime.interpreted import aside
from jmixed.runtime.memory import bucket, padded
from jmixed.runtime.precision import FLOAT, double_precision
from jmixed.runtime.timing import Timings


@dataclass(frozen=True, eq=False, repr=False)
class MonteCarlo(Facts):
    """How well a fit by random probes is known: standard errors of what it found as an estimate of the exact fit.

    Of few probes they are enlarged as Student's t asks for, so that two of them hold 95%, whatever their number.

    Attributes
    ----------
    probes, seed : int
        How many probes were taken in the end, and what they were drawn with.
    steps : int
        Of conjugate gradients, in the solve that took the most.
    criterion, sigma : float
        In the units of ``objective`` and ``sigma``.
    theta : array (m,)
    coefficients : array (k_fe,)
        A Series, as people read it.
    share : float
        The largest of the errors of variances, sigma and coefficients, as a share of the estimate's standard error.
    """

    probes: int
    seed: int
    steps: int
    criterion: float
    sigma: float
    theta: np.ndarray
    coefficients: Any
    share: float

    def _facts(self) -> tuple[str, dict[str, object]]:
        return "Monte Carlo standard errors, by the spread of the probes", {
            "probes": self.probes,
            "steps of a solve": self.steps,
            "criterion": self.criterion,
            "sigma": self.sigma,
            "largest of theta": float(np.max(self.theta, initial=0)),
            "largest of the coefficients": float(np.max(np.asarray(self.coefficients), initial=0)),
            "largest, in standard errors": self.share,
        }


@dataclass(frozen=True, eq=False)
class FixedSlopes:
    """What degrees of freedom need of a fit without cross-products at hand: R^-1, (X~'V^-1X~)^-1 (p, p), and `first`
    (m, p, p), the derivatives of X~'V^-1X~ in psi of preconditioned columns, as of a `Curvature`.
    """

    to_beta: np.ndarray
    inverse: np.ndarray
    first: np.ndarray


@dataclass(frozen=True)
class Fit:
    """A fit with its certificate, in numpy arrays on the original scale of the data: theta (m,), beta (p,).

    Attributes
    ----------
    vcov_beta : array (p, p)
        sigma^2 (X'V^-1 X)^-1.
    b : dict of arrays (levels, q)
        Conditional modes by term.
    covariances : dict of arrays (q, q)
        Covariance of the random effects by term, in squared units of the response.
    uncertainty : Information or Uncertainty
        Inverse observed information of the profile log-likelihood in psi (relative covariances, lower triangles row
        by row) and in theta, nan where it is not positive definite; and the derivative of the profiled sigma^2 in psi.
    scale_variance : float
        Variance of sigma^2 at fixed psi, 2 sigma^4 / nu.
    singular : tuple of bool
        By term.
    iterations, evaluations, starts : int
        Of the search that ended here; of those from all starts; from how many starts the optimum was searched.
    gradient, hessian_eigenvalues : arrays (m,)
        Of the deviance, in the optimiser's last chart.
    checked_beyond_zero : bool
        An optimum was found, and no direction of negative curvature there: none beyond a zero of Sigma leads down.
    counted : bool
        The random effects were counted from their least-squares estimates, to keep digits.
    timings : dict
        Seconds spent by step: cross-products, compiling, the optimum, this object.
    rho : array (k,)
        Parameters of the residuals' structure: log standard deviations of the dispersion's columns in units of these,
        and correlations on the whole real line (see `jmixed.residual.structure`).
    kappa : array (k,)
        Coefficients of the further predictors of a family of responses, in the order of their columns. Such a fit has
        no sigma of its own: it is one, and theta and the covariances are absolute.
    vcov_kappa : array (k, k)
        Their covariance; as `vcov_beta` a part of the joint inverse observed information of all parameters.
    concerns : dict
        What the outcome is about: numbers of columns of X, labels of terms, names of further predictors.
    crossed : str
        "exact", or "iterative" where crossed factors were fitted by conjugate gradients and probes.
    monte_carlo : MonteCarlo or None
        How well such a fit is known.
    fixed : FixedSlopes or None
        Of such a fit.
    """

    theta: np.ndarray
    beta: np.ndarray
    sigma: float
    objective: float
    vcov_beta: np.ndarray
    b: dict[str, np.ndarray]
    covariances: dict[str, np.ndarray]
    uncertainty: Information | Uncertainty
    scale_variance: float
    outcome: Outcome
    singular: tuple[bool, ...]
    iterations: int
    evaluations: int
    starts: int
    gradient: np.ndarray
    hessian_eigenvalues: np.ndarray
    checked_beyond_zero: bool
    counted: bool
    timings: dict[str, float]
    rho: np.ndarray = field(default_factory=lambda: np.zeros(0))
    kappa: np.ndarray = field(default_factory=lambda: np.zeros(0))
    vcov_kappa: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    concerns: dict[str, Any] = field(default_factory=dict)
    crossed: str = "exact"
    monte_carlo: MonteCarlo | None = None
    fixed: FixedSlopes | None = None

    @property
    def log_likelihood(self) -> float:
        """Maximised (restricted) log-likelihood."""
        return -self.objective / 2

    @property
    def converged(self) -> bool:
        """Whether the optimum carries its certificate."""
        return self.outcome.ok


FEW_RESPONSES = 1 << 11
"""Rows up to which a model of other responses is fitted in less time than it takes to optimise its program."""
FEW = 1 << 15
"""Levels up to which sparse equations are solved in less time than it takes to optimise their programs."""


def has_few_responses(rows, *_, **__):
    """Whether the rows of a response with a family are `FEW_RESPONSES` at most."""
    return rows.y.shape[0] <= FEW_RESPONSES


def _is_small(data, *_, **__):
    if data.layout.family is not None:
        return has_few_responses(data)
    if data.layout.residual.size and not has_few_rows(data):
        return False
    if data.layout.crossed == EQUATIONS:
        return sum(data.layout.levels) <= FEW
    fixed = data.X.shape[1] if isinstance(data, Rows) else data.beta0.shape[0]
    return data.layout.fit_bytes(fixed) <= SMALL


def _design(data, *_):
    """What stays as it is when a model is fitted to another response, whatever factors the columns have."""
    if isinstance(data, Rows):
        return data.X, data.Z
    R, T = np.asarray(data.R), map(np.asarray, data.T)
    return R.T @ R, [factor @ factor.T for factor in T]


@program(static_argnames=("counted",), brief=has_few_rows, design=_design)
def _cross_products(rows, counted):
    """A program of both ways would take half as long again to compile."""
    return moments_of(rows, counted)


def _moments_of(rows) -> Moments:
    moments, drowned = _cross_products(rows, counted=False)
    return _cross_products(rows, counted=True)[0] if drowned else moments


SLIM, WIDTH, MOST_PADDED = 3, 6, 1 << 16
"""Columns of X are padded to `SLIM` or to a multiple of `WIDTH`, so that a covariate more is seldom another program,
where so many numbers at most are read for it."""


def _rows_of(design) -> Rows:
    """The rows for a program, with columns of X that are none where these cost next to nothing."""
    size, p = bucket(design.y.shape[0]), design.X.shape[1]
    columns = SLIM if p <= SLIM else -(-p // WIDTH) * WIDTH
    plain = design.layout.family is None and not design.layout.residual.size
    return design.rows(size, columns if plain and columns <= size <= MOST_PADDED // max(columns, 1) else None)


def _of_columns(estimates, p):
    """Estimates without the coefficients of columns that are none."""
    return estimates | {"beta": estimates["beta"][:p], "vcov_beta": estimates["vcov_beta"][:p, :p]}


@program(static_argnames=("lbfgs", "counted"), brief=_is_small, design=_design)
def _fit_program(data, theta0, free, max_iterations, gradient_tolerance, reml, lbfgs, counted) -> Solved:
    search = Search(theta0, free, None, max_iterations, gradient_tolerance if lbfgs else None)
    return solve(data, reml, search, counted=counted)


def fit(design: Design, reml=True, theta0=None, method="newton", maxiter=None, gtol=None, free=None) -> Fit:
    """Fit a design of numpy arrays in double precision, by ``"newton"`` or ``"lbfgs"``.

    `theta0` (m,) is the start, where entries stay that `free` (m,) does not mark as estimated; for these it is the
    identity's by default. At the gradient norm `gtol` L-BFGS hands over to the Newton steps that certify the optimum.
    """
    structures = design.layout.terms
    require_places(design)
    if free is not None:
        require_independent(design, "to hold parameters at their values (free=)")
        free = np.asarray(free, FLOAT)
        theta0 = np.concatenate([s.theta(np.eye(s.q)) for s in structures]) if theta0 is None else theta0
    none = np.full(sum(s.size for s in structures), np.nan)
    theta0 = none if theta0 is None else np.asarray(theta0, design.y.dtype)
    _check_scales(design)
    if maxiter is not None and (isinstance(maxiter, bool) or not isinstance(maxiter, (int, np.integer)) or maxiter < 0):
        raise ModelError(f"maxiter is {maxiter!r}; it must be a whole number, zero or more")
    if gtol is not None and not gtol > 0:
        raise ModelError(f"gtol is {gtol!r}; it must be a positive number")
    timings = Timings()
    many = sum(array.nbytes for array in (design.X, *design.Z.values())) > memory.LARGE
    data = _rows_of(design)
    # One program for both steps starts sooner; a second one of many rows would have to read them again. Where residuals
    # have parameters, or the response a family, cross-products are part of the search.
    of_rows = design.layout.residual.size or design.layout.family is not None
    if not of_rows and not has_few_rows(data):
        with double_precision(), timings.step("cross_products"):
            data = _moments_of(data)
            jax.block_until_ready(data.G)
            if many:
                memory.give_back()
    with double_precision(), timings.step("optimise"):
        limit = np.int32(MAX_ITERATIONS if maxiter is None else maxiter)
        tolerance = np.asarray(1e-6 if gtol is None else gtol, design.y.dtype)
        settings, options = (theta0, free, limit, tolerance), {"reml": bool(reml), "lbfgs": method == "lbfgs"}
        solved = _in_numpy(_fit_program(data, *settings, **options, counted=False))
        counted = bool(solved.drowned) if isinstance(data, Rows) else any(shift is not None for shift in data.shift)
        if solved.drowned:
            solved = _in_numpy(_fit_program(data, *settings, **options, counted=True))
        solved = solved._replace(estimates=_of_columns(solved.estimates, design.X.shape[1]))
    with timings.step("results"):
        if many:
            memory.give_back()
        fit = _collect(design, solved, reml, timings, settle=free is None, counted=counted)
        if design.layout.family is not None:
            return _judged(fit, design, solved.T)
        return fit if reml or free is not None else _unless_unbounded(fit, design)


def _unless_unbounded(fit: Fit, design: Design) -> Fit:
    """The fit by ML, unless rows that coefficients can fit exactly have a residual variance of their own."""
    if design.series is None or not may_be_unbounded(design.layout):
        return fit
    rows = unbounded_rows(design.X, design.series.dispersion, design.weights)
    return replace(fit, outcome=Outcome.DIVERGING, concerns={"rows": rows.tolist()}) if len(rows) else fit


VAST = 1e3
"""Variance of a column of unit size, on the scale of the linear predictor, that no data can tell from a larger one."""
LIMIT = 14.0
"""Size of the logarithm of a dispersion, or of a logit, at which the family is another one."""


def _judged(fit: Fit, design: Design, T) -> Fit:
    """The fit of a response with a family, unless a parameter has run off: then with an outcome that says so."""
    family, response = cast(Family, design.layout.family), cast(ResponseRows, design.response)
    there, y, X = (np.asarray(a) for a in (np.asarray(design.weights) > 0, design.y, design.X))
    fixed = X[there] @ fit.beta
    suspect = not fit.converged or np.max(np.abs(fixed - np.median(fixed)), initial=0) > EXTREME
    signs = family.recession(y[there], np.asarray(response.trials)[there]) if suspect else None
    columns = np.zeros(0, int) if signs is None else np.flatnonzero(separated_columns(X[there], signs))
    if len(columns):
        # Of what has no estimate nothing is known.
        vcov = fit.vcov_beta.copy()
        vcov[columns] = vcov[:, columns] = np.nan
        concerns = {"columns": columns.tolist()}
        return replace(fit, outcome=Outcome.SEPARATED, vcov_beta=vcov, concerns=concerns)
    scaled = {
        label: np.linalg.solve(basis, fit.covariances[label]) for label, basis in zip(design.labels, T, strict=True)
    }
    vast = [
        label
        for (label, half), basis in zip(scaled.items(), T, strict=True)
        if np.max(np.diag(np.linalg.solve(basis, half.T)), initial=0) > VAST
    ]
    limits, start = [], 0
    for name, columns in zip(family.extras, response.extras, strict=True):
        stop = start + columns.shape[1]
        predictor = np.asarray(columns)[there] @ fit.kappa[start:stop]
        bounded = name == INFLATION or (name == DISPERSION and family.weights_are == "factors")
        if bounded and np.max(np.abs(predictor)) > LIMIT:
            limits.append(name)
        start = stop
    if vast or limits:
        return replace(fit, outcome=Outcome.DIVERGING, concerns={"terms": vast, "further": limits})
    return fit


def _in_numpy(tree):
    """As `jax.device_get`, which takes longer over the many small arrays of a fit."""
    return jax.tree.map(np.asarray, tree)


def _check_scales(design):
    """Refuse columns whose squares would overflow or vanish."""
    for name, values in {"the response": design.y, **{f"the columns of '{k}'": z for k, z in design.Z.items()}}.items():
        size = np.max(np.abs(values), initial=0.0)
        if 0 < size < np.inf and not 1e-50 < size < 1e50:
            raise DataError(f"the largest value of {name} is {size:.3g}; rescale it to between 1e-50 and 1e50 in size")


def _collect(design, solved, reml, timings, settle, counted):
    """Bring the program's arrays to the original scale of Z and into a `Fit`, with zeros for variances of zero."""
    result, certificate, outcome = solved.estimates, solved.certificate, Outcome(int(solved.outcome))
    structures, labels = design.layout.terms, design.labels
    sigma, nu = float(result["sigma"]), design.nobs - (design.X.shape[1] if reml else 0)
    theta = np.asarray(result["theta"])
    covariances = {label: sigma**2 * (root @ root.T) for label, root in zip(labels, result["roots"], strict=True)}
    modes = {
        label: effects[: level_count(design, t)]
        for t, (label, effects) in enumerate(zip(labels, result["modes"], strict=True))
    }
    # Held entries must keep the numbers that they were given.
    singular = singular_terms(structures, theta, solved.T, typical_deviation(design, result["rho"]))
    if settle and any(singular):
        theta = settled(design, theta, result["rho"])
        for label, factor in zip(labels, factors_of_theta(structures, theta), strict=True):
            there = np.any(factor != 0, axis=-1)
            covariances[label] = np.where(np.logical_and.outer(there, there), covariances[label], 0)
            modes[label] = np.where(there, modes[label], 0)
    return Fit(
        theta=theta,
        beta=result["beta"],
        sigma=sigma,
        objective=float(result["objective"]),
        vcov_beta=result["vcov_beta"],
        b=modes,
        covariances=covariances,
        uncertainty=Information(structures, theta, solved.T, *certificate.in_psi, singular=any(singular)),
        scale_variance=2 * sigma**4 / nu if design.layout.family is None else 0.0,
        outcome=outcome,
        singular=singular,
        iterations=int(certificate.iterations),
        evaluations=int(certificate.evaluations),
        starts=int(certificate.starts),
        gradient=certificate.gradient,
        hessian_eigenvalues=certificate.eigenvalues,
        checked_beyond_zero=outcome.ok and is_convex(certificate.eigenvalues),
        counted=counted,
        timings=timings,
        **_further(design, result),
    )


def _further(design, result) -> dict[str, Any]:
    """Parameters beside beta and theta: of the residuals, or of a family of responses with their covariance."""
    if design.layout.family is None:
        return {"rho": np.asarray(result["rho"])}
    return {"kappa": np.asarray(result["rho"]), "vcov_kappa": np.asarray(result["vcov_rho"])}


@program
def _derivatives_program(moments, psi, roots, reml):
    return derivatives(psi, roots, moments, reml)


@program(static_argnames=("order",))
def _at_beta_program(moments, beta, psi, roots, reml, order):
    m = len(psi)

    def value(params):
        beta, psi = params[: params.shape[0] - m], params[params.shape[0] - m :]
        covariances, u = covariances_of(psi, moments.layout.terms), moments.R @ (beta - moments.beta0)
        return gaussian.deviance_at_coefficients(u, covariances, roots, moments, reml)[0]

    params = jnp.concatenate([beta, psi])
    return value(params), jax.grad(value)(params), jax.hessian(value)(params) if order == 2 else None


def evaluate(design: Design, psi, beta=None, reml=True, order=0):
    """Profile log-likelihood at relative covariances psi (sigma profiled out), with exact derivatives.

    Parameters
    ----------
    psi : array (m,)
        Relative covariances Sigma / sigma^2: lower triangles row by row.
    beta : array (p,), optional
        Fixed effects; by default profiled out by generalised least squares.
    order : int
        0: the value; 1: (value, gradient); 2: (value, gradient, Hessian), in psi or, with `beta`, in (beta, psi).
        A psi outside the cone of positive semidefinite matrices has the value -inf and nan derivatives.
    """
    require_independent(design, "the likelihood at given parameters (loglike, score, hessian)")
    structures = design.layout.terms
    moments = design_moments(design)
    transform = psi_map(structures, moments.T)
    back = np.linalg.inv(transform)
    psi = np.asarray(psi, design.y.dtype)
    roots = roots_of_psi(structures, psi, moments.T)
    size = len(psi) + (0 if beta is None else len(beta))
    if roots is None:
        return (-np.inf, np.full(size, np.nan), np.full((size, size), np.nan))[: order + 1] if order else -np.inf
    with double_precision():
        if beta is None:
            at = jax.device_get(_derivatives_program(moments, back @ psi, roots, reml=bool(reml)))
            value, gradient, hessian = at.value, at.gradient, at.hessian
        else:
            beta = np.asarray(beta, design.y.dtype)
            out = _at_beta_program(moments, beta, back @ psi, roots, reml=bool(reml), order=order)
            value, gradient, hessian = jax.device_get(out)
            full = np.eye(size)
            full[len(beta) :, len(beta) :] = back
            back = full
    if order == 0:
        return -float(value) / 2
    gradient = -back.T @ gradient / 2
    return (-float(value) / 2, gradient) if order == 1 else (-float(value) / 2, gradient, -back.T @ hessian @ back / 2)


def level_covariances(design: Design, fit: Fit, weights: np.ndarray) -> list[np.ndarray]:
    """Covariances given the response of the effects of every level of each factor, arrays (levels, q, q).

    Of a sparse relationship, with those of its levels without rows. `weights` (n,) are those of the rows of a linear
    model, or the working weights of another response, of which some may be negative.
    """
    rows = design.rows(bucket(design.y.shape[0]))
    with double_precision(), aside():
        bases, blocks = jax.device_get(_conditional_program(rows, padded(weights, len(rows.y)), fit.theta))
    out = []
    for f, (members, block) in enumerate(zip(design.layout.factors, blocks, strict=True)):
        T = diagonal_blocks(*(bases[t] for t in members))
        levels = len(design.index.position[f]) if design.index.system.related[f] else design.counts[f]
        out.append(fit.sigma**2 * np.einsum("ia,abl,jb->lij", T, block[..., :levels], T))
    return out


@program
def _conditional_program(rows, weights, theta):
    columns = preconditioners(rows)
    roots = gaussian.precondition(gaussian.factors_of(theta, rows), columns.T)
    return columns.T, conditional_covariances(roots, working_moments(weights, rows, columns))


def require_places(design: Design) -> None:
    """Refuse what eliminates levels that have no places, as after an iterative fit."""
    if design.layout.crossed == UNPLACED:
        raise ModelError(
            "this needs the dense block of crossed factors, and the fit did without it (crossed='iterative'); use "
            "fit(crossed='exact') where memory suffices",
            page="scale.md#crossed-factors-of-many-levels",
        )


def require_independent(design: Design, what: str) -> None:
    """Refuse `what` is not there for residuals with parameters."""
    if design.layout.residual.size:
        raise ModelError(
            f"{what} is there for independent residuals of one variance only, and this model has residual= or "
            "dispersion=",
            page="structures.md",
        )


def white_design(design: Design, rho) -> Design:
    """The design with rows that are white at rho (k,), of a model of independent residuals."""
    if not design.layout.residual.size:
        return design
    with double_precision():
        rows = jax.device_get(_white_program(design.rows(), rho))
    Z = dict(zip(design.labels, rows.Z, strict=True))
    arrays = {"y": rows.y, "X": rows.X, "weights": rows.weights, "offset": rows.offset}
    return replace(design, **arrays, Z=Z, layout=rows.layout, series=rows.series)


@program
def _white_program(rows, rho):
    return white_at(rows, rho)[0]


def draw_residuals(design: Design, fit: Fit, normal: np.ndarray) -> np.ndarray:
    """Residuals (n, nobs) at a fit from independent standard normal numbers (n, nobs)."""
    if not design.layout.residual.size:
        return fit.sigma / np.sqrt(design.weights) * normal
    with double_precision():
        return fit.sigma * np.asarray(_draw_program(design.rows(), fit.rho, normal))


@program
def _draw_program(rows, rho, normal):
    return rows.layout.residual.draw(rho, rows, normal)


def design_moments(design: Design) -> Moments:
    """The cross-products of a design, as numpy arrays in double precision."""
    return without_padding(padded_moments(design))


def padded_moments(design: Design) -> Moments:
    """The same with as many columns of X as the programs of a fit have: those that are none are the last."""
    require_places(design)
    with double_precision(), aside():
        return jax.device_get(_moments_of(_rows_of(design)))


def design_whitened(design: Design, rho: np.ndarray) -> tuple[WhitenedDeviance, Moments]:
    """The ML deviance of a design whose residuals have parameters, and the cross-products at rho (k,), likewise."""
    with double_precision():
        return jax.device_get(_whitened_program(design.rows(bucket(design.y.shape[0])), rho))


@program
def _whitened_program(rows, rho):
    whitened = whitened_deviance(rows, preconditioners(rows), False)
    return whitened, whitened.moments(rho)


def design_criterion(design: Design) -> LaplaceDeviance | QuadratureDeviance:
    """The criterion of a response with a family, of numpy arrays: Laplace's approximation, or quadrature."""
    with double_precision():
        return jax.device_get(_criterion_program(design.rows(bucket(design.y.shape[0]))))


@program
def _criterion_program(rows):
    return criterion_of(rows)
