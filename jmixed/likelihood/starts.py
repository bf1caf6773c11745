"""Where a search for the optimum starts: one policy for every way of fitting.

The deviance of a single unstructured term with enough levels has one minimum. It can have several, of which one often
has a variance of zero, where the gradient vanishes by symmetry, when terms compete for the same part of the response:
terms that share a factor, those without an intercept of their own, columns that are not free to be correlated, and any
term beside residuals that are correlated, which can stand for it. A search then starts

* from the solution of moment equations, which tends to give a competitor all or nothing;
* from the best common multiple of the identity, along which no term is favoured;
* from the identity itself: with an origin far away columns nearly coincide, and the best multiple may be huge;
* from the largest multiple at which the deviance dips, if that is another;
* from the best multiples of what else a structure names, as strong correlations of either sign; and
* where three terms or more compete, from large multiples: nearer by, the search may give up two of them at once.

With few levels, or crossed factors with nearly as many coefficients as rows, random starts are added, the same in
every run. Measured by `benchmarks/stress.py`.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import diagonal
from jmixed.covariance.chart import Chart, chart_of_entries, chart_roots
from jmixed.covariance.structure import Structure
from jmixed.layout.layout import EQUATIONS, Layout
from jmixed.likelihood.gaussian import deviance_at, squares
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.start import moment_covariances

FEW_LEVELS = 8
"""With a factor of so few levels the deviance can have several minima."""
THIN = 1000
"""So it can with crossed factors that have more coefficients than half of so few rows."""
RANDOM_STARTS, FEW_ROWS = 8, 50
"""Other starts where levels are few or data thin; three times as many with at most so few rows."""
FAR = (1e2, 1e4)
"""Multiples of the identity from which to start where three terms or more compete."""
EXPONENTS = np.arange(-2.0, 12.0)
"""Decimal logarithms of the multiples of the identity, in preconditioned columns, that are looked at."""
USUAL = (0.3, 10.0, 0.01)
"""Multiples of the identity from which to start where a look at others would cost as much as a step."""


class StartingCovariances(NamedTuple):
    """Relative covariances to start from, in preconditioned columns: for each term an array (starts, q, q).

    Only the first `count` of them are called for, a number that may depend on the data.
    """

    covariances: list[jax.Array]
    count: jax.Array


def starts_of(moments: Moments, reml, given=None, others=None, correlated: bool = False) -> StartingCovariances:
    """Where to look for the optimum; `correlated` says that residuals have correlations, with which all terms compete.

    First from relative covariances `given` (q, q), in preconditioned columns; without them, or where entries are nan,
    the solution of moment equations comes first. `others` says whether other starts than a given one are called for;
    by default that alone.
    """
    covariances, count = _found_starts(moments, reml, correlated)
    if given is None:
        return StartingCovariances(covariances, count)
    if others is None:
        known = jnp.all(jnp.stack([jnp.all(jnp.isfinite(covariance)) for covariance in given]))
        first = [jnp.where(known, start, candidates[0]) for start, candidates in zip(given, covariances, strict=True)]
        rest, count = [candidates[1:] for candidates in covariances], jnp.where(known, 1, count)
    else:
        # A deviance with one minimum needs no other start than the given one.
        first, rest = (
            given,
            covariances if len(covariances[0]) > 1 else [candidates[:0] for candidates in covariances],
        )
        count = jnp.where(others & (count > 1), count + 1, 1)
    stacked = [jnp.concatenate([start[None], candidates]) for start, candidates in zip(first, rest, strict=True)]
    return StartingCovariances(stacked, count.astype(jnp.int32))


def _found_starts(moments: Moments, reml, correlated: bool) -> StartingCovariances:
    """Those that need no other; the solution of moment equations comes first."""
    layout, dtype = moments.layout, moments.G.dtype
    if layout.crossed == EQUATIONS:
        return _of_equations(layout, dtype)
    starts, thin, compete = (
        [moment_covariances(moments)],
        may_be_thin(layout),
        terms_compete(layout.terms, layout.factors) or correlated,
    )
    count, far = jnp.ones((), jnp.int32), FAR if compete and len(layout.terms) > 2 else ()
    starts.extend(_of_shapes(moments, reml))
    if compete or thin:
        units = [np.eye(term.q, dtype=dtype) for term in layout.terms]

        def look():
            return best_multiples(moments, reml, lambda c: [jnp.sqrt(c) * unit for unit in units])

        # Where the number of rows decides, and it is large, nobody starts from a multiple.
        wanted = compete or is_thin(layout, moments.nobs)
        multiples = look() if wanted is True else jax.lax.cond(wanted, look, lambda: jnp.ones(2, dtype))
        starts.extend([multiple * unit for unit in units] for multiple in (multiples[0], 1, *far, multiples[1]))
    certain = len(starts)
    if compete:
        # The last dip may be the lowest.
        count = jnp.where(multiples[0] == multiples[1], certain - 1, certain).astype(jnp.int32)
    if thin:
        starts.extend(_random_covariances(layout, dtype))
        called_for = jnp.where(moments.nobs > FEW_ROWS, certain + RANDOM_STARTS, len(starts))
        count = jnp.where(is_thin(layout, moments.nobs), called_for, count).astype(jnp.int32)
    stacked = [jnp.stack([jnp.asarray(start[t]) for start in starts]) for t in range(len(layout.terms))]
    return StartingCovariances(stacked, count)


def _of_equations(layout: Layout, dtype) -> StartingCovariances:
    """Multiples of the identity: moments of related levels, and a grid, would cost more than the steps they save."""
    multiples = USUAL if terms_compete(layout.terms, layout.factors) else USUAL[:1]
    units = [np.eye(term.q, dtype=dtype) for term in layout.terms]
    stacked = [jnp.asarray(np.multiply.outer(np.asarray(multiples, dtype), unit)) for unit in units]
    return StartingCovariances(stacked, jnp.asarray(len(multiples), jnp.int32))


def _of_shapes(moments: Moments, reml):
    """The best multiples of what structures name beside the identity; a term without so many keeps that."""
    shapes = [term.shapes().astype(moments.G.dtype) for term in moments.layout.terms]
    count = max(map(len, shapes)) - 1
    if not count:
        return []
    others = [shape[[k if k < len(shape) else 0 for k in range(1, count + 1)]] for shape in shapes]

    def best(roots):
        return best_multiples(moments, reml, lambda c: [jnp.sqrt(c) * root for root in roots])[0]

    multiples = jax.lax.map(best, [jnp.linalg.cholesky(other) for other in others])
    return [[multiple * other[k] for other in others] for k, multiple in enumerate(multiples)]


def phis_beside(chart: Chart, free, moments: Moments, reml) -> tuple[jax.Array, jax.Array]:
    """Coordinates (starts, m) of a chart of entries some of which are held, and how many starts are called for.

    The chart's own point comes first; then its `free` entries by moments, and of a common size.
    """
    structures, dtype = moments.layout.terms, moments.G.dtype
    roots = [
        jnp.linalg.cholesky(T @ start @ T.T) for T, start in zip(moments.T, moment_covariances(moments), strict=True)
    ]
    units = [jnp.diag(jnp.abs(diagonal(T))) for T in moments.T]
    by_moments, sizes = (chart_of_entries(factors, moments.T, structures, dtype).phi for factors in (roots, units))

    def phi_at(multiple):
        return jnp.where(free, jnp.sqrt(multiple) * sizes, chart.phi)

    multiples = best_multiples(moments, reml, lambda c: chart_roots(Chart(chart.bases, phi_at(c)), structures))
    by_moments = jnp.where(free, by_moments, chart.phi)
    phi = jnp.stack([chart.phi, by_moments, phi_at(multiples[0]), phi_at(multiples[1])])
    count = jnp.where(multiples[0] == multiples[1], 3, 4)
    return phi, jnp.where(jnp.any(free), count, 1).astype(jnp.int32)


def terms_compete(terms: Sequence[Structure], factors: Sequence[Sequence[int]]) -> bool:
    """Whether terms, or columns of one, compete: they share a factor, or one of several has no intercept."""
    shared = any(len(members) > 1 for members in factors)
    within = any(term.has_several_minima for term in terms)
    return shared or within or (len(terms) > 1 and any(term.intercept is None for term in terms))


def best_multiples(moments: Moments, reml, roots_at) -> jax.Array:
    """Two multiples, of the lowest deviance on a grid and of its last dip, moved to the vertices of parabolas.

    ``roots_at(multiple)`` are square roots (q, q) of all terms' covariances.
    """

    def at(exponent):
        roots = roots_at(10**exponent)
        return deviance_at(squares(roots), roots, moments, reml)

    grid = jnp.asarray(EXPONENTS, moments.G.dtype)
    values = jax.lax.map(at, grid)
    values = jnp.where(jnp.isfinite(values), values, jnp.inf)
    lowest = jnp.clip(jnp.argmin(values), 1, len(EXPONENTS) - 2)
    dips = (values[1:-1] < values[:-2]) & (values[1:-1] <= values[2:])
    last = jnp.max(jnp.where(dips, jnp.arange(1, len(EXPONENTS) - 1, dtype=lowest.dtype), 0))
    places = jnp.stack([lowest, jnp.where(last > 0, last, lowest)])
    left, middle, right = values[places - 1], values[places], values[places + 1]
    bend = left - 2 * middle + right
    usable = jnp.isfinite(bend) & (bend > 0)
    move = jnp.where(usable, (left - right) / jnp.where(usable, 2 * bend, 1), 0)
    return 10 ** (grid[places] + jnp.clip(move, -1, 1))


def may_be_thin(layout: Layout) -> bool:
    """Whether some number of rows makes data on this layout thin."""
    return min(layout.levels) <= FEW_LEVELS or bool(layout.crossed and _coefficients(layout) <= 2 * THIN)


def is_thin(layout: Layout, rows) -> Any:
    """Whether so many rows make data on a layout thin."""
    if min(layout.levels) <= FEW_LEVELS:
        return True
    return (rows <= THIN) & (2 * _coefficients(layout) > rows)


def tells_little(layout: Layout, information) -> Any:
    """Whether rows tell less of the random effects than a normal response a coefficient, by their `information`.

    A rare event, or a failure where most succeed, is hardly a row: a variance of zero is then one minimum of several,
    however many rows there are.
    """
    return (min(layout.levels) <= FEW_LEVELS) | (_coefficients(layout) > information)


def _coefficients(layout: Layout) -> int:
    return sum(levels * layout.factor_width(f) for f, levels in enumerate(layout.levels))


def _random_covariances(layout: Layout, dtype):
    """Random starts on all scales, the same in every run."""
    rng = np.random.default_rng(0)
    for _ in range(3 * RANDOM_STARTS):
        roots = [10 ** rng.uniform(-1, 3) * rng.normal(size=(term.q, term.q)) for term in layout.terms]
        yield [(root @ root.T).astype(dtype) for root in roots]
