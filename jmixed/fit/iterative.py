"""The fit of crossed factors of any size on the host: Newton steps by average information on a deviance by probes.

The loop is that of `jmixed.algebra.newton`, in the same chart and with the same exact trust-region step, written for a
function that is evaluated on the host and known with an error: the gradient is that of the traces which the probes
estimate, so that a step is refused only where the deviance rises by more than what the two differ by.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh
from jmixed.algebra.newton import MAX_ITERATIONS, first_radius, is_convex, trust_region_step
from jmixed.covariance.chart import Chart, chart_at, chart_map, chart_roots
from jmixed.covariance.scales import diagonal_blocks, psi_map, singular_terms
from jmixed.covariance.structure import SINGULAR, factors_of_theta, rectified, split
from jmixed.errors import DataError, ModelError, Outcome
from jmixed.fit.host import Fit, FixedSlopes, MonteCarlo
from jmixed.fit.information import Information
from jmixed.fit.many import ManyFits
from jmixed.fit.outcome import BLUR
from jmixed.layout.incidence import Incidence
from jmixed.layout.stack import ModelRows, crossing
from jmixed.likelihood.iterative import EvaluatedCriterion, IterativeDeviance, Probes, probes_of
from jmixed.likelihood.sparse_moments import SparseMoments, of_response, sparse_moments
from jmixed.likelihood.starts import FAR, USUAL, terms_compete
from jmixed.runtime import device, memory
from jmixed.runtime.compilation import program
from jmixed.runtime.precision import FLOAT, double_precision
from jmixed.runtime.timing import Timings

WAYS = ("auto", "exact", "iterative")
"""How crossed factors can be fitted."""
WIDE = 3000
"""Columns of a dense block from which on the iterative way is the quicker one by far."""
FIRST_PROBES, FEW_PROBES = 24, 10
"""Probes to begin with; of so many rows that few tell enough."""
MANY = 1 << 22
"""Pairs of levels from which on they do."""
MOST_PROBES = 1000
"""Probes at most that are added by themselves."""
SHARE = 0.1
"""Share of an estimate's standard error that its Monte Carlo error may have."""
CRITERION = 0.2
"""Monte Carlo error of the criterion above which some more probes are taken."""
NEAR = 1e-6
"""A Newton decrement below which a point is an optimum if rounding leads no further."""
DECREMENT = 1e-8
"""A Newton decrement below this is an optimum, if it is also small against what the probes leave open."""
LEAST = 1e-12
"""A Newton decrement that is an optimum whatever the probes leave open."""


@dataclass(frozen=True, eq=False)
class State:
    """A point of the search, with all that is known there.

    Attributes
    ----------
    covariances : tuple of arrays (q, q)
        Relative covariances of preconditioned columns, by term.
    at : EvaluatedCriterion
    gradient, hessian : arrays (m,), (m, m)
        Of the deviance in psi; the Hessian by average information.
    slope : array (m,)
        Of the residual sum of squares in psi.
    noise : array (probes, m)
        What each probe has of the gradient.
    chart : dict of arrays
        What `_chart_program` told.
    """

    covariances: tuple[np.ndarray, ...]
    at: EvaluatedCriterion
    gradient: np.ndarray
    hessian: np.ndarray
    slope: np.ndarray
    noise: np.ndarray
    chart: dict[str, Any]
    solved: bool

    @property
    def spread(self) -> np.ndarray:
        """Covariance (m, m) of the gradient in psi, by the probes."""
        centred = self.noise - self.noise.mean(axis=0)
        k = len(centred)
        return centred.T @ centred / (k * (k - 1))


@program(static_argnames=("structures",), brief=lambda *_, **__: True)
def _chart_program(covariances, gradient, hessian, radius, structures):
    """The step within a radius, with the derivatives in the chart around a point and the roots where it leads."""
    chart = chart_at(covariances, structures, gradient.dtype)
    jacobian, bend = chart_map(chart, structures, gradient)
    slope, curvature = gradient @ jacobian, jacobian.T @ hessian @ jacobian + bend
    values, vectors = eigh(curvature)
    radius = jnp.where(jnp.isnan(radius), first_radius(chart.phi), radius)
    move, predicted, boundary = trust_region_step(values, vectors.T @ slope, radius)
    step = vectors @ move
    return {
        "jacobian": jacobian,
        "gradient": slope,
        "hessian": curvature,
        "eigenvalues": values,
        "along": vectors.T @ slope,
        "step": step,
        "predicted": predicted,
        "boundary": boundary,
        "radius": radius,
        "length": jnp.sqrt(jnp.sum(step**2)),
        "roots": chart_roots(Chart(chart.bases, chart.phi + step), structures),
    }


class ProbedSearch:
    """The search for the optimum at fixed probes."""

    def __init__(self, rows: Incidence, moments: SparseMoments, reml: bool):
        self.rows, self.moments, self.reml = rows, moments, reml
        self.structures = rows.structures
        self.evaluations = 0
        ends = [np.cumsum([0, *(self.structures[t].q for t in rows.factors[f])]) for f in moments.order]
        # Where each term stands: its factor in the moments' order, and its columns there.
        self.places = {
            t: (k, slice(int(ends[k][i]), int(ends[k][i + 1])))
            for k, f in enumerate(moments.order)
            for i, t in enumerate(rows.factors[f])
        }

    def roots_by_factor(self, roots):
        """The terms' roots, those of one factor along a diagonal."""
        return [diagonal_blocks(*(np.asarray(roots[t]) for t in self.rows.factors[f])) for f in self.moments.order]

    def starts(self) -> list[list[np.ndarray]]:
        """Relative covariances to search from: by moments, and where terms compete multiples of the identity, too."""
        multiples = (*USUAL, *FAR) if terms_compete(self.structures, self.rows.factors) else ()
        units = [np.eye(structure.q) for structure in self.structures]
        return [self.start(), *([multiple * unit for unit in units] for multiple in multiples)]

    def start(self) -> list[np.ndarray]:
        """Relative covariances from sums of squares of the levels' totals, without correlations."""
        moments, p = self.moments, len(self.moments.G) - 1
        widths = [C.shape[1] for C in moments.C]
        offsets = np.cumsum([0, *widths])
        size = offsets[-1] + 1
        M, s = np.zeros((size, size)), np.zeros(size)
        M[-1, -1], s[-1] = moments.nobs, moments.G[p, p]

        def place(f):
            return slice(offsets[f], offsets[f + 1])

        for f, (C, B) in enumerate(zip(moments.C, moments.B, strict=True)):
            M[place(f), place(f)] = np.einsum("lab,lab->ab", C, C)
            M[place(f), -1] = M[-1, place(f)] = np.einsum("laa->a", C)
            s[place(f)] = np.sum(B[:, p].reshape(-1, widths[f]) ** 2, axis=0)
        for f, A in enumerate(moments.A):
            M[place(0), place(f + 1)] = A.squares()
            M[place(f + 1), place(0)] = A.squares().T
        for (f, g), A in moments.within.items():
            M[place(f + 1), place(g + 1)] = A.squares()
            M[place(g + 1), place(f + 1)] = A.squares().T
        unit = 1 / np.sqrt(np.diag(M))
        solved = unit * np.linalg.lstsq(M * np.outer(unit, unit), s * unit, rcond=1e-10)[0]
        relative = np.clip(solved[:-1] / solved[-1], 1e-2, 1e4) if solved[-1] > 0 else np.ones(size - 1)
        out = []
        with double_precision():
            for t, structure in enumerate(self.structures):
                f, columns = self.places[t]
                out.append(np.asarray(structure.nearest(np.diag(relative[place(f)][columns]))))
        return out

    def evaluate(self, deviance: IterativeDeviance, roots, radius: float = np.nan) -> State:
        """The deviance and its derivatives at the terms' roots."""
        self.evaluations += 1
        covariances = tuple(np.asarray(root) @ np.asarray(root).T for root in roots)
        at = deviance.evaluate(self.roots_by_factor([_root(covariance) for covariance in covariances]))
        gradient, noise, directions, bends = [], [], [], []
        for t, structure in enumerate(self.structures):
            f, columns = self.places[t]
            with double_precision():
                psi = np.asarray(structure.psi(covariances[t]))
                D = np.asarray(structure.directions(psi))
                bend = structure.bends(psi)
            G = at.gradients[f][columns, columns]
            gradient.append(np.einsum("kab,ab->k", D, G))
            noise.append(np.einsum("kab,nab->nk", D, at.noise[f][:, columns, columns]))
            bends.append(np.zeros((len(D),) * 2) if bend is None else np.einsum("klab,ab->kl", np.asarray(bend), G))
            for direction in D:
                whole = np.zeros((at.modes[f].shape[1],) * 2)
                whole[columns, columns] = direction
                directions.append((f, whole))
        hessian, slope, solved = deviance.average_information(at, directions)
        hessian = hessian + diagonal_blocks(*bends)
        gradient = np.concatenate(gradient)
        told = self.told(covariances, gradient, hessian, radius)
        return State(covariances, at, gradient, hessian, slope, np.hstack(noise), told, at.solved and solved)

    def told(self, covariances, gradient, hessian, radius) -> dict[str, Any]:
        """The chart around a point, and the step from it."""
        with double_precision():
            told = _chart_program(covariances, gradient, hessian, FLOAT(radius), structures=self.structures)
            return jax.tree.map(np.asarray, told)

    def minimise(self, deviance: IterativeDeviance, roots, limit: int) -> tuple[State, Outcome, int]:
        """Newton steps from the terms' roots: where they ended, how, and after how many."""
        state, iteration, before = self.evaluate(deviance, roots), 1, np.inf
        while True:
            if not np.isfinite(state.at.value):
                return state, Outcome.NOT_FINITE, iteration
            if not state.solved:
                return state, Outcome.UNSOLVED, iteration
            decrement = _decrements(state)[0]
            if _is_optimum(state, before):
                return state, Outcome.CONVERGED, iteration
            if iteration >= limit:
                return state, Outcome.MAX_ITERATIONS, iteration
            chart, before = state.chart, decrement
            iteration += 1
            try:
                trial = self.evaluate(deviance, chart["roots"], chart["radius"])
            except np.linalg.LinAlgError:
                # So far away that rounding leaves no positive definite block.
                trial = replace(state, at=replace(state.at, value=np.nan))
            gain, predicted = state.at.value - trial.at.value, float(chart["predicted"])
            # What the probes make of the deviance and of its gradient differs: only larger gains are told by values.
            visible = predicted > 3 * state.at.value_error + 1e-11 * abs(state.at.value)
            lower = gain >= 1e-4 * predicted if visible else _decrements(trial)[0] <= decrement
            if not (np.isfinite(trial.at.value) and trial.solved and lower):
                if not trial.solved and chart["length"] < 1e-2:
                    return trial, Outcome.UNSOLVED, iteration
                if chart["length"] < 1e-8:
                    # Where a step leads nowhere, the deviance is rounding.
                    near = decrement < NEAR
                    return state, Outcome.PRECISION_LIMIT if near else Outcome.ROUNDED, iteration
                told = self.told(state.covariances, state.gradient, state.hessian, chart["length"] / 4)
                state = replace(state, chart=told)
                continue
            ratio = gain / predicted if visible else 1.0
            radius = chart["length"] / 4 if ratio < 0.25 else chart["radius"]
            radius = 2 * radius if ratio > 0.75 and chart["boundary"] else radius
            told = self.told(trial.covariances, trial.gradient, trial.hessian, radius)
            state = replace(trial, chart=told)

    def lowest(self, deviance: IterativeDeviance, starts, limit: int) -> tuple[list[np.ndarray], int]:
        """The roots of the lowest optimum that is found from several starts, and the iterations of all."""
        ended, iterations = [], 0
        for covariances in starts:
            with contextlib.suppress(np.linalg.LinAlgError):
                state, outcome, taken = self.minimise(deviance, [_root(relative) for relative in covariances], limit)
                iterations += taken
                if np.isfinite(state.at.value) and outcome is not Outcome.UNSOLVED:
                    ended.append(state)
        if not ended:
            return [_root(relative) for relative in starts[0]], iterations
        best = min(ended, key=lambda state: state.at.value)
        return [_root(covariance) for covariance in best.covariances], iterations


def _decrements(state: State) -> tuple[float, float]:
    """The predicted gain of a Newton step, and what the noise of the gradient makes of it."""
    chart = state.chart
    values = np.maximum(chart["eigenvalues"], 1e-10 * max(chart["eigenvalues"][-1], 1))
    decrement = float(np.sum(chart["along"] ** 2 / values) / 2)
    inverse = _inverse(chart["hessian"])
    spread = chart["jacobian"].T @ state.spread @ chart["jacobian"]
    return decrement, float(np.trace(inverse @ spread) / 2)


def _is_optimum(state: State, before: float) -> bool:
    """Whether nothing is to be gained but what the probes do not tell, or no more than by the step `before`."""
    decrement, unknown = _decrements(state)
    near = decrement < max(min(DECREMENT, 1e-3 * unknown), LEAST)
    # Where steps of less than that gain no digits, this is as near as it gets.
    near = near or 0.1 * before < decrement < DECREMENT
    return near and is_convex(state.chart["eigenvalues"])


def _inverse(hessian):
    values, vectors = np.linalg.eigh(hessian)
    sound = values > 1e-10 * max(values[-1], 1)
    return (vectors * np.where(sound, 1 / np.where(sound, values, 1), 0)) @ vectors.T


def fit_iterative(
    rows: Incidence, reml: bool, theta0: np.ndarray | None, maxiter: int | None, probes: int | None, seed: int
) -> Fit:
    """Fit crossed factors by conjugate gradients and probes.

    `theta0` (m,) is where to start. Probes are added, from `probes` on, until their error is small; the same `seed`
    gives the same fit.
    """
    _require_memory(rows)
    timings = Timings()
    with timings.step("cross_products"):
        moments = sparse_moments(rows)
        if rows.y.nbytes > memory.LARGE:
            memory.give_back()
    return _fit(rows, moments, reml, theta0, maxiter, probes, seed, timings)


def refits_iterative(
    rows: Incidence, reml: bool, probes: int, seed: int, progress: Callable[[int], Any]
) -> Callable[[np.ndarray], ManyFits]:
    """A function that fits responses (m, n) on these columns, one after the other: couplings are made once, here.

    `progress` is called with one after each.
    """
    _require_memory(rows)
    known = sparse_moments(rows)

    def fits_of(Y):
        fits = []
        for y in Y:
            of_y = replace(rows, y=y)
            fits.append(_fit(of_y, of_response(known, of_y), reml, None, None, probes, seed, Timings()))
            progress(1)
        arrays = {
            name: np.stack([np.asarray(getattr(fit, name)) for fit in fits])
            for name in ("theta", "beta", "sigma", "objective", "vcov_beta")
        }
        outcome = np.array([fit.outcome.value for fit in fits], np.int32)
        return ManyFits(**arrays, outcome=outcome, nobs=np.full(len(fits), known.nobs), rho=np.zeros((len(fits), 0)))

    return fits_of


def _fit(rows, moments, reml, theta0, maxiter, probes, seed, timings) -> Fit:
    """The same, from cross-products."""
    limit = MAX_ITERATIONS if maxiter is None else max(int(maxiter), 1)
    if not np.isfinite(moments.G).all():
        raise DataError("the cross-products of the rows are not finite: look for extreme values in y, X, Z or weights")
    with timings.step("optimise"):
        search = ProbedSearch(rows, moments, reml)
        starts = search.starts() if theta0 is None else [_covariances_at(theta0, rows, moments)]
        roots = [_root(covariance) for covariance in starts[0]]
        first = FIRST_PROBES if moments.entries < MANY else FEW_PROBES
        count, iterations = first if probes is None else int(probes), 0
        size = sum(C.shape[0] * C.shape[1] for C in moments.C[1:])
        none = Probes(np.zeros((size, 0)), np.zeros((size, 0)))
        blank = IterativeDeviance(moments, reml, none)
        basis = blank.starting_basis(search.roots_by_factor(roots))
        if len(starts) > 1:
            deviance = IterativeDeviance(moments, reml, probes_of(size, count, seed, basis))
            roots, iterations = search.lowest(deviance, starts, limit)
            basis = blank.starting_basis(search.roots_by_factor(roots))
        while True:
            deviance = IterativeDeviance(moments, reml, probes_of(size, count, seed, basis))
            try:
                state, outcome, taken = search.minimise(deviance, roots, limit)
            except np.linalg.LinAlgError as error:
                raise DataError(f"crossed='iterative': {Outcome.NOT_FINITE.message}") from error
            iterations += taken
            error = _monte_carlo(search, state, count, seed)
            # A criterion that is to be compared is known better than what a test of it looks for.
            blurred = error.criterion > CRITERION and count < 4 * first
            if not outcome.ok or not (error.share > SHARE or blurred):
                break
            if count >= MOST_PROBES and error.share > SHARE:
                outcome = Outcome.MONTE_CARLO
                break
            count = min(max(ceil(1.3 * count * (error.share / SHARE) ** 2), 2 * count), max(MOST_PROBES, count))
            roots = [_root(covariance) for covariance in state.covariances]
    with timings.step("results"):
        return _collected(search, state, outcome, iterations, len(starts), error, timings)


def _require_memory(rows: Incidence) -> None:
    """Refuse a fit whose couplings, in either order, and columns by row would not fit, before any is made."""
    n, sizes = len(rows.y), list(zip(rows.counts, rows.widths, strict=True))
    needed = 8 * n * (3 + sum(rows.widths))
    for f, (levels, q) in enumerate(sizes):
        needed += sum(24 * q * r * min(n, levels * others) for others, r in sizes[f + 1 :])
    if short := device.shortage(needed):
        raise ModelError(f"this fit would need {short}, for the pairs of levels that have rows: take fewer rows")


def _root(covariance):
    """The symmetric root: a continuous function of the covariance, so that fixed probes make a smooth criterion."""
    values, vectors = np.linalg.eigh(covariance)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _covariances_at(theta, rows, moments):
    factors = factors_of_theta(rows.structures, np.asarray(theta, FLOAT))
    roots = [np.linalg.solve(T, factor) for T, factor in zip(moments.T, factors, strict=True)]
    return [root @ root.T for root in roots]


def _monte_carlo(search: ProbedSearch, state: State, count: int, seed: int) -> MonteCarlo:
    """What the probes leave open of the estimates: their spread of the gradient, through the Newton step."""
    at, chart, moments = state.at, state.chart, search.moments
    inverse, allowance = _inverse(chart["hessian"]), _allowance(count)
    spread = chart["jacobian"].T @ state.spread @ chart["jacobian"]
    moved = allowance**2 * inverse @ spread @ inverse
    # And what another step would change, which is little.
    moved = moved + np.outer(chart["step"], chart["step"])
    sampling, errors = np.diag(2 * inverse), np.diag(moved)
    shares = np.sqrt(errors[sampling > 0] / sampling[sampling > 0])
    of_psi = chart["jacobian"] @ moved @ chart["jacobian"].T
    sigma2 = at.rss / at.nu
    slope = state.slope / at.nu
    # Of sigma^2, which at a fixed psi has the variance 2 sigma^4 / nu.
    variance = slope @ of_psi @ slope
    sampling_variance = 2 * sigma2**2 / at.nu + slope @ chart["jacobian"] @ (2 * inverse) @ chart["jacobian"].T @ slope
    to_original = np.linalg.inv(moments.R)
    beside = to_original @ _coefficient_slopes(search, state)
    of_beta = np.diag(beside @ of_psi @ beside.T)
    vcov = np.diag(to_original @ at.inverse @ to_original.T) * sigma2
    largest = [np.max(shares, initial=0), np.sqrt(variance / sampling_variance)]
    largest += [np.max(np.sqrt(of_beta / vcov), initial=0)]
    theta = _theta_errors(search, state, of_psi)
    sigma = np.sqrt(variance / sigma2) / 2
    errors = allowance * at.value_error, float(sigma), theta, np.sqrt(of_beta)
    return MonteCarlo(count, seed, at.steps, *errors, float(max(largest)))


def _allowance(count: int) -> float:
    """What errors by so few probes are multiplied with, so that two of them hold as often as of a known error."""
    from scipy.special import ndtr, stdtrit  # a second, and only this needs it

    return float(stdtrit(count - 1, ndtr(2)) / 2)


def _coefficient_slopes(search, state):
    """Derivatives (p, m) of the coefficients of preconditioned columns in psi."""
    at, columns = state.at, []
    for t, structure in enumerate(search.structures):
        f, part = search.places[t]
        X, score = at.fixed_scores[f][:, part], at.scores[f][:, part]
        across = np.einsum("lap,lb->pab", X, score, optimize=True)
        columns.append(-at.inverse @ np.einsum("pab,kab->pk", across, _directions(structure, state.covariances[t])))
    return np.hstack(columns)


def _fixed_slopes(search, state):
    """Derivatives (m, p, p) of X'V^-1X, of preconditioned columns, in psi."""
    tables = []
    for t, structure in enumerate(search.structures):
        f, part = search.places[t]
        X = state.at.fixed_scores[f][:, part]
        across = np.einsum("lap,lbr->pabr", X, X, optimize=True)
        tables.append(-np.einsum("pabr,kab->kpr", across, _directions(structure, state.covariances[t])))
    return np.concatenate(tables)


def _directions(structure, covariance):
    with double_precision():
        return np.asarray(structure.directions(np.asarray(structure.psi(covariance))))


def _theta_errors(search, state, of_psi):
    """Standard errors (m,) of theta from a covariance of psi of preconditioned columns."""
    structures, T = search.structures, search.moments.T
    theta = _theta(search, state)
    slopes = [
        structure.psi_of_theta(piece)[0].T
        for structure, piece in zip(structures, split(structures, theta), strict=True)
    ]
    back = np.linalg.pinv(diagonal_blocks(*slopes), rcond=1e-8) @ psi_map(structures, T)
    return np.sqrt(np.maximum(np.diag(back @ of_psi @ back.T), 0))


def _theta(search, state):
    pieces = []
    for structure, T, covariance in zip(search.structures, search.moments.T, state.covariances, strict=True):
        with double_precision():
            pieces.append(np.asarray(structure.theta(rectified(T @ _root(covariance)))))
    return np.concatenate(pieces)


def _outcome(search, state, outcome):
    """The outcome of the search, unless what it found is no estimate."""
    at, moments = state.at, search.moments
    if not at.rss > 1e-14 * moments.G[-1, -1]:
        return Outcome.PERFECT_FIT
    if outcome.ok and not moments.G[-1, -1] / (at.rss / at.nu) <= BLUR:
        return Outcome.ROUNDED
    return outcome


def _collected(search: ProbedSearch, state: State, outcome, iterations, starts, error, timings) -> Fit:
    """The estimates on the scale of the data."""
    rows, moments, at = search.rows, search.moments, state.at
    structures, labels, T = rows.structures, rows.labels, moments.T
    scale = at.rss / at.nu
    to_original = np.linalg.inv(moments.R)
    theta = _theta(search, state)
    modes = {}
    for t, label in enumerate(labels):
        f, columns = search.places[t]
        modes[label] = at.modes[f][moments.ranks[f]][:, columns] @ T[t].T
    covariances = {
        label: scale * (basis @ covariance @ basis.T)
        for label, basis, covariance in zip(labels, T, state.covariances, strict=True)
    }
    singular = singular_terms(structures, theta, T)
    if any(singular):
        pieces = []
        for structure, factor, size, label in zip(
            structures, factors_of_theta(structures, theta), moments.sizes, labels, strict=True
        ):
            zero = np.sqrt(np.sum(factor**2, axis=-1)) * size <= SINGULAR
            pieces.append(np.asarray(structure.settled(factor, zero)))
            there = np.any(factors_of_theta([structure], pieces[-1])[0] != 0, axis=-1)
            covariances[label] = np.where(np.logical_and.outer(there, there), covariances[label], 0)
            modes[label] = np.where(there, modes[label], 0)
        theta = np.concatenate(pieces)
    outcome = _outcome(search, state, outcome)
    values = state.chart["eigenvalues"]
    return Fit(
        theta=theta,
        beta=moments.beta0 + to_original @ at.beta,
        sigma=float(np.sqrt(scale)),
        objective=at.value,
        vcov_beta=scale * to_original @ at.inverse @ to_original.T,
        b=modes,
        covariances=covariances,
        uncertainty=Information(
            structures, theta, T, state.gradient, state.hessian, state.slope / at.nu, any(singular)
        ),
        scale_variance=2 * scale**2 / at.nu,
        outcome=outcome,
        singular=singular,
        iterations=iterations,
        evaluations=search.evaluations,
        starts=starts,
        gradient=state.chart["gradient"],
        hessian_eigenvalues=values,
        checked_beyond_zero=outcome.ok and is_convex(values),
        counted=False,
        timings=timings,
        crossed="iterative",
        monte_carlo=error,
        fixed=FixedSlopes(to_original, at.inverse, _fixed_slopes(search, state)),
    )


def check(crossed: str) -> None:
    """Refuse a way of fitting that there is not."""
    if crossed not in WAYS:
        raise ModelError(f"crossed is {crossed!r}; it must be one of {', '.join(map(repr, WAYS))}")


def is_wide(data: ModelRows) -> bool:
    """Whether a model has crossed factors of so many levels that the iterative way is quicker, or the only one."""
    crossed = crossing(data, WIDE)
    return not crossed.reason and (crossed.width >= WIDE or crossed.shortage is not None)
