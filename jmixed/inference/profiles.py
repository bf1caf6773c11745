"""Profiles of the ML deviance: how it grows when one parameter is held away from its estimate (Bates et al. 2015, 5.1).

Of a response with a family it is -2 log-likelihood by the approximation of the fit.

The signed root zeta(u) = sign(u - u^) sqrt(D(u) - D^) of each parameter is followed outwards from the estimate, all
parameters and both directions in one batch. The derivative of D in u is exact (envelope theorem): it predicts where
zeta reaches a level, and each constrained fit starts from the last one by the tangent. The constrained deviance may
have several minima, and another than the one that the estimate leads to may become the lowest: every fit is also
started from elsewhere (`_others`), and the best counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import numpy as np

from jmixed.covariance.scales import diagonal_blocks
from jmixed.covariance.structure import Structure, factors_of_theta
from jmixed.inference.constrained_fits import ConstrainedFit, Source, solve_all
from jmixed.inference.residual_parameters import readable_beside
from jmixed.likelihood.constrained import Border, HeldParameter, HeldResidual
from jmixed.likelihood.laplace import LaplaceDeviance
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.quadrature import QuadratureDeviance
from jmixed.likelihood.whitened import WhitenedDeviance, reads_rows
from jmixed.residual.structure import ResidualStructure
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import FLOAT, double_precision

SD, CORRELATION, SIGMA, COEFFICIENT, RESIDUAL, FURTHER = "sd", "cor", "sigma", "beta", "residual", "kappa"
TOLERANCE = 1e-8
"""Of zeta where it shall reach a level."""
MEMORY = 2**28
"""Bytes of derivative tables that a batch may take."""
AT_ONCE = 1 << 12
"""Rows, times nodes of quadrature, of a batch of fits of a response with a family."""
MAX_CALLS = 40
NEGLIGIBLE = 0.03
"""A standard deviation, in sigma of the rows, that is next to zero but not at it, where symmetry takes every slope."""
NOTHING = 40.0
"""Logarithm of one over a correlation that is none."""
LEVEL = 1e-3
"""Of zeta that it still gains on as long a way again where it has levelled off."""
SPACING = 0.05
"""Of zeta between the points of a trace."""


class Parameter(NamedTuple):
    """What is profiled: a coefficient or a further parameter by its position, or a column (or two) of a term."""

    kind: str
    term: int = 0
    first: int = 0
    second: int = 0


@dataclass(frozen=True)
class Unconstrained:
    """A maximum likelihood fit with its cross-products, in numpy arrays: theta (m,), beta (p,).

    Of residuals with parameters rho (k,), these cross-products are those at rho, and `whitened` has them at any other;
    `unit` is that of their places, `units` and `shift` (columns,) are those of the dispersion: what log sigma
    of rows whose columns are zero lacks is the shift times rho.
    """

    moments: Moments
    theta: np.ndarray
    beta: np.ndarray
    sigma: float
    objective: float
    rho: np.ndarray
    whitened: WhitenedDeviance | None = None
    unit: float = 1.0
    units: np.ndarray | None = None
    shift: np.ndarray | None = None

    @property
    def source(self) -> Source:
        """What constrained fits are of."""
        return self.moments if self.whitened is None else self.whitened

    @property
    def structures(self):
        """Covariance structures of the terms."""
        return self.moments.layout.terms

    @property
    def T(self) -> tuple[np.ndarray, ...]:
        """Preconditioners (q, q) of the terms' columns."""
        return self.moments.T

    @property
    def R(self) -> np.ndarray:
        """What takes coefficients, counted from `origin`, to those of preconditioned columns (p, p)."""
        return self.moments.R

    @property
    def origin(self) -> np.ndarray:
        """Least-squares estimates (p,)."""
        return self.moments.beta0

    @property
    def coefficients(self) -> np.ndarray:
        """The coefficients (p,)."""
        return self.beta

    @property
    def residual(self) -> ResidualStructure:
        """The structure of the residuals."""
        return self._rows_layout.residual

    @property
    def _rows_layout(self):
        return self.moments.layout if self.whitened is None else self.whitened.rows.layout

    @property
    def at_once(self) -> int:
        """How many constrained fits are made in one batch: as many as memory has room for."""
        return 1 if self.whitened is not None and reads_rows(self.whitened.rows) else MEMORY // self._bytes

    @property
    def has_several_minima(self) -> bool:
        """Whether constrained fits start from elsewhere too."""
        return True

    @property
    def _bytes(self) -> int:
        """What the derivatives of one constrained fit take."""
        table, whitened, k = self.moments.layout.fit_bytes(len(self.beta) + 1), self.whitened, len(self.rho)
        if whitened is None:
            return max(table, 1)
        if whitened.patterns is not None:
            return 4 * (whitened.patterns.S.nbytes + whitened.patterns.of_y.nbytes)
        rows = 0 if whitened.combined is not None else whitened.rows.X.nbytes + sum(Z.nbytes for Z in whitened.rows.Z)
        return (table + rows + 1) * (1 + k) ** 2

    def error(self, coefficient: int) -> float:
        """About the standard error of a coefficient."""
        a = np.linalg.solve(self.R.T, np.eye(len(self.beta))[coefficient])
        return self.sigma * float(np.sqrt(a @ a))


@dataclass(frozen=True)
class UnconstrainedResponse:
    """The fit of a response with a family and its criterion, in numpy arrays: theta (m,), beta (p,), kappa (k,).

    `errors` (p + k,) are standard errors of the coefficients. Where the further predictors are `thresholds`, parameters
    are these themselves, not the distances in kappa.
    """

    source: LaplaceDeviance | QuadratureDeviance
    theta: np.ndarray
    beta: np.ndarray
    kappa: np.ndarray
    objective: float
    errors: np.ndarray
    thresholds: bool = False
    sigma: float = 1.0

    @property
    def _laplace(self) -> LaplaceDeviance:
        return self.source if isinstance(self.source, LaplaceDeviance) else self.source.laplace

    @property
    def structures(self):
        """Covariance structures of the terms."""
        return self.source.rows.layout.terms

    @property
    def T(self) -> tuple[np.ndarray, ...]:
        """Preconditioners (q, q) of the terms' columns."""
        return tuple(np.asarray(T) for T in self._laplace.columns.T)

    @property
    def R(self) -> np.ndarray:
        """What takes (beta, kappa) to those of preconditioned columns (p + k, p + k)."""
        return np.linalg.inv(np.asarray(self._laplace.basis))

    @property
    def origin(self) -> np.ndarray:
        """Zeros (p + k,), from which the coefficients are counted."""
        return np.zeros(len(self.coefficients))

    @property
    def coefficients(self) -> np.ndarray:
        """(beta, kappa) (p + k,)."""
        return np.concatenate([self.beta, self.kappa])

    @property
    def rho(self) -> np.ndarray:
        """Parameters of the residuals, which there are none of."""
        return np.zeros(0)

    @property
    def residual(self) -> ResidualStructure:
        """Independent residuals."""
        return self.source.rows.layout.residual

    @property
    def at_once(self) -> int:
        """How many constrained fits are worth a batch: of many rows each is best by itself, and takes its own time."""
        nodes = len(self.source.weights) if isinstance(self.source, QuadratureDeviance) else 1
        return max(1, AT_ONCE // (self.source.rows.y.shape[0] * nodes))

    @property
    def has_several_minima(self) -> bool:
        """Whether the fit itself is sought from several starts."""
        with double_precision():
            return bool(self._laplace.has_several_minima)

    def error(self, coefficient: int) -> float:
        """The standard error of a coefficient; of one that has none, one."""
        known = float(self.errors[coefficient])
        return known if np.isfinite(known) and known > 0 else 1.0


Optimum = Unconstrained | UnconstrainedResponse


@dataclass(frozen=True)
class Trace:
    """The profile of one parameter, from the lowest to the highest value.

    Attributes
    ----------
    value, zeta : arrays (k,)
        Of the parameter held; the signed root of the increase of the ML deviance.
    slope : array (k,)
        Derivative of zeta in the value; infinite at the ends of a correlation's range.
    beta, sigma, covariances, rho : arrays (k, p), (k,), tuple of arrays (k, q, q), array (k, parameters)
        Estimates at each value; covariances relative to sigma^2, by term.
    kappa : array (k, coefficients)
        Of a response with a family, those of its further predictors.
    lower, upper : arrays (levels,)
        Where zeta is at minus and plus each of the cuts asked for.
    converged, improved : bool
        Every constrained fit ended at an optimum; one is better than the fit itself, which then is not the global one.
    """

    value: np.ndarray
    zeta: np.ndarray
    slope: np.ndarray
    beta: np.ndarray
    sigma: np.ndarray
    covariances: tuple[np.ndarray, ...]
    rho: np.ndarray
    kappa: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    converged: bool
    improved: bool


def profile(
    estimate: Optimum,
    parameters: list[Parameter],
    cuts,
    steps: int = 0,
    advance: Callable[[int], object] = lambda count: None,
) -> list[Trace]:
    """Profile parameters until zeta has passed the cuts (levels,), positive values such as 1.96.

    Between the estimate and the largest cut lie so many `steps` in each direction, beside the points that the cuts
    need. `advance` is called with the number of limits just found: two for each parameter and cut in all.
    """
    cuts = np.asarray(cuts, FLOAT)
    lanes = [_Lane(estimate, parameter, side) for parameter in parameters for side in (-1, 1)]
    batch = _Batch(estimate, lanes)
    batch.solve([(lane.start, lane.free) for lane in lanes])
    for target in np.linspace(0, cuts.max(), steps + 1)[1:]:
        batch.solve([lane.proposal(target) for lane in lanes])
    limits = np.empty((len(cuts), len(lanes)))
    for k in np.argsort(cuts):
        waiting = len(lanes)
        for _ in range(MAX_CALLS):
            proposals = [lane.proposal(cuts[k]) for lane in lanes]
            left = sum(proposal is not None for proposal in proposals)
            advance(waiting - left)
            waiting = left
            if not left:
                break
            batch.solve(proposals)
        limits[k] = [lane.crossing(cuts[k]) for lane in lanes]
    return [_collect(estimate, lanes[2 * k : 2 * k + 2], limits[:, 2 * k : 2 * k + 2]) for k in range(len(parameters))]


class _Batch:
    """All lanes of a profile, solved in one compiled call."""

    def __init__(self, estimate: Optimum, lanes: list):
        self.lanes, self.source = lanes, estimate.source
        self.counts = [1 + len(lane.others) for lane in lanes]
        size = bucket(sum(self.counts))
        room = max(1, min(size, estimate.at_once))
        self.batch = size if room >= size else 1 << (room.bit_length() - 1)
        self.fill = -(-size // self.batch) * self.batch - sum(self.counts)
        self.held = self._stack(
            [lane.held for lane, count in zip(lanes, self.counts, strict=True) for _ in range(count)]
        )

    def _stack(self, trees):
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees, *trees[:1] * self.fill)

    def solve(self, proposals) -> None:
        """Constrained fits at (u, start) of each lane; None repeats the last point, and is not recorded."""
        if all(proposal is None for proposal in proposals):
            return
        places = []
        for lane, proposal in zip(self.lanes, proposals, strict=True):
            u, free = lane.last if proposal is None else proposal
            others = [free] * len(lane.others) if proposal is None else lane.others
            places += [(np.asarray(u, FLOAT), start) for start in (free, *others)]
        u, start = self._stack(places)
        with double_precision():
            points = jax.device_get(solve_all(self.held, u, start, self.source, batch=self.batch))
        first = 0
        for lane, proposal, count in zip(self.lanes, proposals, self.counts, strict=True):
            if proposal is not None:
                best = first + _best(points.value[first : first + count], points.converged[first : first + count])
                lane.record(proposal[0], jax.tree.map(lambda leaf, k=best: leaf[k], points))
            first += count


def _best(values, converged) -> int:
    """The lowest value; of those that are the lowest but for rounding the first that is certainly a minimum."""
    values = np.where(np.isfinite(values), values, np.inf)
    lowest = values <= values.min() + 1e-9 * max(1, abs(values.min()))
    return int(np.argmax(lowest & converged) if np.any(lowest & converged) else np.argmin(values))


class _Lane:
    """One parameter in one direction: the points so far, outwards from the estimate."""

    def __init__(self, estimate: Optimum, parameter: Parameter, side: int):
        self.kind, self.side, self.objective = parameter.kind, side, estimate.objective
        self.held, self.start, self.free = _chart(estimate, parameter)
        self.others = _others(estimate, parameter)
        self.value, self.rate = _scale(estimate, parameter)
        self.step = _first_step(estimate, parameter)
        self.bound = _bound(estimate, parameter, side)
        # D has a rounding error of its own; zeta cannot be closer than half of that over zeta.
        self.tolerance = max(TOLERANCE, 1e-13 * abs(estimate.objective))
        self.points: list[tuple[float, float, float, ConstrainedFit]] = []

    @property
    def last(self):
        """Value and coordinates of the outermost point."""
        u, _, _, point = self.points[-1]
        return u, point.free

    def record(self, u: float, point: ConstrainedFit) -> None:
        """Keep a solved point, with |zeta| and its derivative outwards."""
        rise = float(point.value) - self.objective
        zeta = np.sqrt(max(rise, 0.0)) if self.points else 0.0
        slope = self.side * float(point.slope) / (2 * zeta) if zeta > 0 else np.sqrt(max(float(point.curvature), 0) / 2)
        self.points.append((float(u), zeta, slope, point))
        self.points.sort(key=lambda row: self.side * row[0])

    def proposal(self, target):
        """Where to look for ``|zeta| = target`` next, with a start; None when it is found or out of reach."""
        inner, outer = self._bracket(target)
        near = [row for row in (inner, outer) if row is not None]
        if inner[0] == self.bound or any(abs(row[1] - target) <= self.tolerance for row in near):
            return None
        if outer is None and self._is_level(inner, target):
            return None
        best = min(near, key=lambda row: abs(row[1] - target))
        u = best[0] + self.side * (target - best[1]) / best[2] if best[2] > 0 else np.nan
        if outer is None:
            u = self._outwards(u, inner)
        elif not min(inner[0], outer[0]) < u < max(inner[0], outer[0]):
            u = (inner[0] + outer[0]) / 2
            if u in (inner[0], outer[0]):
                return None
        nearest = min(near, key=lambda row: abs(row[0] - u))
        return u, nearest[3].free + nearest[3].tangent * (u - nearest[0])

    def _outwards(self, u: float, inner) -> float:
        """A step beyond the outermost point: not too far, and not over the end of the parameter's range."""
        origin = self.points[0][0]
        reach = 4 * abs(inner[0] - origin) if inner[0] != origin else 50 * self.step
        move = abs(u - inner[0]) if np.isfinite(u) else np.inf
        u = inner[0] + self.side * min(move, reach if np.isfinite(move) else self.step)
        return self.bound if self.side * (u - self.bound) > 0 else u

    def _is_level(self, row, target) -> bool:
        """Whether zeta has levelled off at the outermost point before it reached the target."""
        gain = row[2] * abs(row[0] - self.points[0][0])
        # Zeta that only begins to rise gains at least as much again.
        least = min(LEVEL, row[1] / 10, (target - row[1]) / 10)
        return len(self.points) > 1 and np.isinf(self.bound) and bool(gain < least)

    def _bracket(self, target):
        """The outermost point before zeta first exceeds the target, and the one after it."""
        for k, row in enumerate(self.points):
            if row[1] >= target and k:
                return self.points[k - 1], row
        return self.points[-1], None

    def crossing(self, target) -> float:
        """The parameter's value where ``|zeta| = target``; the end of its range if zeta does not get there."""
        inner, outer = self._bracket(target)
        best = min((row for row in (inner, outer) if row is not None), key=lambda row: abs(row[1] - target))
        if outer is None and inner[0] != self.bound and abs(best[1] - target) > self.tolerance:
            return self.value(self.bound) if self._is_level(inner, target) else np.nan
        return self.value(best[0])


def _scale(estimate: Optimum, parameter: Parameter) -> tuple[Callable[[float], float], Callable[[float], float]]:
    """The parameter at the chart's u, and its derivative there."""
    if parameter.kind == SIGMA:
        return np.exp, np.exp
    if parameter.kind == CORRELATION:
        return np.sin, np.cos
    if parameter.kind == RESIDUAL:
        return _scale_of_residual(estimate, parameter)
    shift = _shift(estimate, parameter)
    return lambda u: u + shift, lambda u: 1.0


def _scale_of_residual(estimate, parameter):
    residual, unit = estimate.residual, estimate.unit
    if parameter.first < residual.columns:
        size = float(estimate.units[parameter.first])
        return lambda u: u / size, lambda u: 1 / size
    end = _bound(estimate, parameter, -1)

    def value(u):
        return residual.bounds[0] if u <= end else readable_beside(residual, u, unit)[0]

    return value, lambda u: readable_beside(residual, u, unit)[1]


def _bound(estimate: Optimum, parameter: Parameter, side: int) -> float:
    """Where u ends: at a value at which the likelihood is that of a model with a parameter less."""
    if parameter.kind == SD and side < 0:
        return 0.0
    if parameter.kind == CORRELATION:
        return side * np.pi / 2
    # A correlation that cannot be negative is none at the end of its range.
    correlation = parameter.kind == RESIDUAL and parameter.first >= estimate.residual.columns
    return -NOTHING if correlation and side < 0 and estimate.residual.bounds[0] == 0 else side * np.inf


def _shift(estimate: Optimum, parameter: Parameter) -> float:
    """What u lacks of the parameter: coefficients are counted from their least-squares estimates."""
    place = _coefficient(estimate, parameter)
    return 0.0 if place is None else float(estimate.origin[place])


def _coefficient(estimate: Optimum, parameter: Parameter) -> int | None:
    """The place of a parameter among the coefficients, those of further predictors behind the others; else None."""
    if parameter.kind == FURTHER:
        return len(estimate.beta) + parameter.first
    return parameter.first if parameter.kind == COEFFICIENT else None


def _first_step(estimate: Optimum, parameter: Parameter) -> float:
    """A step in u that is taken when derivatives at the estimate tell nothing."""
    if parameter.kind == SD:
        return 0.1 * estimate.sigma * _unit(estimate, parameter)
    place = _coefficient(estimate, parameter)
    return 0.1 if place is None else estimate.error(place)


def _unit(estimate: Optimum, parameter: Parameter) -> float:
    """The standard deviation that a coordinate of length one in preconditioned columns stands for.

    It is the inverse of what no other column of the term says, so that a shift of a slope's origin does not change it.
    """
    return float(np.linalg.norm(estimate.T[parameter.term][parameter.first]))


def _others(estimate: Optimum, parameter: Parameter) -> list[np.ndarray]:
    """Where else constrained fits start: coordinates of the chart.

    Variances of one in preconditioned columns; each term in turn with next to nothing, where a zero may become the
    best; of a correlation moreover the estimate itself, and it with either standard deviation next to zero, where all
    correlations are alike.
    """
    units = [np.eye(structure.q) for structure in estimate.structures]
    roots = [units] if units else []
    if len(units) > 1:
        roots += [[NEGLIGIBLE * unit if t == k else unit for t, unit in enumerate(units)] for k in range(len(units))]
    back = [[T @ root for T, root in zip(estimate.T, every, strict=True)] for every in roots]
    points = [_chart(estimate, parameter, factors)[2] for factors in back] if estimate.has_several_minima else []
    if units and len(estimate.residual.starts) > 1:
        # With random effects the share of the correlations is another where a search starts from.
        tau = [np.asarray(tau) for tau in estimate.residual.starts]
        points += [np.append(points[0][: len(points[0]) - len(each)], each) for each in tau]
    if parameter.kind == CORRELATION:
        here = _chart(estimate, parameter)[2]
        start = sum(s.size for s in estimate.structures[: parameter.term])
        points += [here, *(np.where(np.arange(len(here)) == start + k, np.sqrt(NEGLIGIBLE), here) for k in (0, 2))]
    return points


def _chart(estimate: Optimum, parameter: Parameter, factors=None) -> tuple[HeldParameter, float, np.ndarray]:
    """The chart in which a parameter is a coordinate, its value u at the estimate, and the other coordinates there.

    The other coordinates (m + 1 + k,) are those of the terms, log sigma, and those of the residuals' parameters.

    With `factors`, square roots of the terms' relative covariances, in the place of the estimate's.
    """
    bases, x = _bases(estimate, parameter, factors)
    start = sum(s.size for s in estimate.structures[: parameter.term])
    u, keep, squared, direct, first, second = 0.0, np.ones(len(x)), *(np.zeros(len(x)) for _ in range(4))
    active = np.ones(len(x) + 1, bool)
    if parameter.kind == SD:
        direct[start] = 1 / _unit(estimate, parameter)
        u, keep[start], active[start] = abs(x[start]) * estimate.sigma / direct[start], 0, False
    elif parameter.kind == CORRELATION:
        row = slice(start + 1, start + 3)
        u, x[start + 2] = np.arctan2(*x[row]), np.sqrt(np.hypot(*x[row]))
        x[start] = np.sqrt(x[start])
        squared[start] = first[start + 1] = second[start + 2] = 1
        keep[start : start + 3], active[start + 1] = 0, False
    elif parameter.kind == SIGMA:
        u, active[-1] = np.log(estimate.sigma), False
    sigma = np.asarray(parameter.kind == SIGMA, FLOAT)
    of_terms = bases, keep, squared, direct, first, second, sigma
    if isinstance(estimate, UnconstrainedResponse):
        border, steps, c, value = _coefficients(estimate, parameter)
        active = np.concatenate([active[:-1], border.padding == 0])
        held_at = u if value is None else value
        return HeldParameter(*of_terms, border, active, steps=steps), float(held_at), np.append(x, c)
    border, place = _border(estimate.R, _coefficient(estimate, parameter)), _coefficient(estimate, parameter)
    u = u if place is None else estimate.beta[place] - _shift(estimate, parameter)
    x = np.append(x, np.log(estimate.sigma))
    if not len(estimate.rho):
        return HeldParameter(*of_terms, border, active), float(u), x
    residual, moves, v, value = _residual_chart(estimate, parameter)
    active, u = np.append(active, moves), u if value is None else value
    return HeldParameter(*of_terms, border, active, residual), float(u), np.append(x, v)


def _coefficients(estimate: UnconstrainedResponse, parameter: Parameter):
    """The constraint on (beta, kappa), what is taken from u for a threshold, their coordinates, and u; else None."""
    R, values, place = estimate.R, estimate.coefficients, _coefficient(estimate, parameter)
    y, p = R @ values, len(estimate.beta)
    steps = np.zeros(len(y))
    if place is None or not (estimate.thresholds and place > p):
        border = _border(R, place)
        return border, steps, border.free.T @ y, None if place is None else values[place]
    # A later threshold is the first one with the steps to it.
    steps[p + 1 : place + 1] = 1 / np.diag(R)[p + 1 : place + 1]
    first, rest = _border(R[: p + 1, : p + 1], p), len(y) - p - 1
    free, zeros = diagonal_blocks(first.free, np.eye(rest)), np.zeros(rest)
    border = Border(free, np.append(first.padding, zeros), np.append(first.particular, zeros))
    return border, steps, free.T @ y, values[p] + np.sum(np.exp(values[p + 1 : place + 1]))


def _residual_chart(estimate: Optimum, parameter: Parameter):
    """The same of rho (k,): what is held, which coordinates move, and where they and u are; None of another kind."""
    k, place, v, u = estimate.residual.columns, parameter.first, np.array(estimate.rho), None
    entries, number, moves = np.zeros(len(v)), np.asarray(-1, np.int32), np.ones(len(v), bool)
    if parameter.kind == RESIDUAL and place < k:
        u, entries[place], moves[place] = v[place], 1, False
    elif parameter.kind == RESIDUAL:
        with double_precision():
            v[k:], u, at = estimate.residual.chart_beside(v[k:], place - k)
        number, moves[k + at] = np.asarray(place - k, np.int32), False
    shift = np.zeros(len(v))
    if isinstance(estimate, Unconstrained) and parameter.kind == SIGMA and estimate.shift is not None:
        shift[:k] = estimate.shift
        u = np.log(estimate.sigma) - shift @ v
    return HeldResidual(entries, number, shift), moves, v, u


def _bases(estimate: Optimum, parameter: Parameter, factors) -> tuple[tuple[np.ndarray, ...], np.ndarray]:
    """Bases with the parameter's columns first in their term, the others orthogonal, and the estimate in them."""
    bases, pieces = [], []
    factors = factors_of_theta(estimate.structures, estimate.theta) if factors is None else factors
    terms = zip(estimate.structures, estimate.T, factors, strict=True)
    for t, (structure, T, factor) in enumerate(terms):
        leading = _leading(parameter) if t == parameter.term else []
        basis, piece = structure.chart_beside(leading, factor, T)
        bases.append(basis)
        pieces.append(piece)
    return tuple(bases), np.concatenate([*pieces, np.zeros(0)])


def _leading(parameter: Parameter) -> list[int]:
    """The columns of its term that a parameter is about."""
    return {SD: [parameter.first], CORRELATION: [parameter.first, parameter.second]}.get(parameter.kind, [])


def has_profile(structures: Sequence[Structure], parameter: Parameter) -> bool:
    """Whether a parameter has a profile, in a model whose terms have these structures."""
    leading = _leading(parameter)
    return not leading or structures[parameter.term].has_profile(leading)


def _border(R: np.ndarray, coefficient: int | None) -> Border:
    """The constraint that holds one coefficient, counted from its least-squares estimate; or none."""
    p = len(R)
    if coefficient is None:
        return Border(np.eye(p), np.zeros(p), np.zeros(p))
    a = np.linalg.solve(R.T, np.eye(p)[coefficient])
    basis = np.linalg.qr(np.column_stack([a, np.eye(p)]))[0][:, :p]
    free, padding = basis.copy(), np.zeros(p)
    free[:, 0], padding[0] = 0, 1
    return Border(free, padding, a / (a @ a))


def _spread(points):
    """The points without those that the search for a level has put next to another."""
    kept = points[:1]
    for row in points[1:]:
        if row is points[-1] and row[1] - kept[-1][1] <= SPACING and len(kept) > 1:
            kept[-1] = row
        elif row is points[-1] or row[1] - kept[-1][1] > SPACING:
            kept.append(row)
    return kept


def _collect(estimate: Optimum, pair: list[_Lane], limits: np.ndarray) -> Trace:
    """The points of both directions in one trace."""
    down, up = pair
    rows = [(-1, row) for row in reversed(_spread(down.points))] + [(1, row) for row in _spread(up.points)[1:]]
    points = [row[3] for _, row in rows]
    u = np.array([row[0] for _, row in rows])
    with np.errstate(divide="ignore"):
        slope = np.array([row[2] for _, row in rows]) / np.array([up.rate(value) for value in u])
    coefficients = np.array([estimate.origin + np.linalg.solve(estimate.R, point.beta) for point in points])
    roots = [np.stack([T @ point.roots[t] for point in points]) for t, T in enumerate(estimate.T)]
    return Trace(
        value=np.array([up.value(value) for value in u]),
        zeta=np.array([side * row[1] for side, row in rows]),
        slope=slope,
        beta=coefficients[:, : len(estimate.beta)],
        kappa=coefficients[:, len(estimate.beta) :],
        sigma=np.exp([float(point.t) for point in points]),
        covariances=tuple(root @ np.swapaxes(root, 1, 2) for root in roots),
        rho=np.array([point.rho for point in points]),
        lower=limits[:, 0],
        upper=limits[:, 1],
        converged=all(bool(point.converged) for point in points),
        improved=min(float(point.value) for point in points) < estimate.objective - 1e-6,
    )
