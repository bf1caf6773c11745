"""Maximum likelihood fits with one parameter held: a standard deviation, a correlation, sigma or a coefficient.

Each is a smooth unconstrained problem in a chart of its own. A term's relative Sigma is A L L' A', its columns ordered
so that those of the held parameter come first; then, with t = log sigma,

    a standard deviation v has       L_00 = v exp(-t)
    a correlation sin(u) has         L_00 = s^2, L_10 = r sin(u), L_11 = r cos(u), r = x^2, s and x free
    sigma has                        t = u

and a coefficient is a linear constraint. The squares keep the standard deviations beside a correlation from changing
sign, which would turn it into its opposite; where one of them vanishes all correlations are alike. All are one compiled
program: what distinguishes them are arrays, and many are solved in one call.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmixed.algebra.batched import eigh
from jmixed.algebra.newton import CURVATURE, trust_region_step
from jmixed.covariance.chart import Chart, chart_map, chart_roots
from jmixed.fit.solve import DECREMENT, MAX_ITERATIONS, ROUNDING
from jmixed.layout.index import Array
from jmixed.likelihood.constrained import Border, constrained_deviance
from jmixed.likelihood.gaussian import psi_of, squares
from jmixed.likelihood.moments import Moments
from jmixed.runtime.compilation import program


class Held(NamedTuple):
    """Which parameter is held: constants of one chart.

    Attributes
    ----------
    bases : tuple of arrays (q, q)
        A of every term.
    keep : array (m,)
        One for entries of L that are free as they stand, else zero.
    squared : array (m,)
        One for the entry that is the square of its coordinate, else zero.
    direct : array (m,)
        The unit of the entry that holds a standard deviation, else zero.
    first, second : arrays (m,)
        One for the entries that hold sine and cosine of a correlation, else zero.
    sigma : scalar
        One when sigma is held, else zero.
    border : Border
    active : bool array (m + 1,)
        Which of the entries of L, and of t, are free; x is free in the place of the cosine.
    """

    bases: tuple[Array, ...]
    keep: Array
    squared: Array
    direct: Array
    first: Array
    second: Array
    sigma: Array
    border: Border
    active: Array


class Point(NamedTuple):
    """A constrained optimum.

    ``free`` (m + 1,) are the chart's coordinates; ``slope`` and ``curvature`` are derivatives of the profile in the
    held value u, ``tangent`` (m + 1,) that of the coordinates. ``beta`` belongs to preconditioned columns, ``t`` is log
    sigma, and ``roots`` are square roots of the relative covariances in preconditioned columns.
    """

    value: Array
    free: Array
    slope: Array
    curvature: Array
    tangent: Array
    beta: Array
    t: Array
    roots: tuple[Array, ...]
    converged: Array


@program(static_argnames=("batch",))
def solve_all(held: Held, u, start, moments: Moments, batch: int) -> Point:
    """Constrained optima for held parameters, values u (k,) and starts (k, m + 1), `batch` of them at a time."""

    def solve(held, u, start):
        return jax.vmap(partial(_solve, moments=moments))(held, u, start)

    lanes = (held, u, start)
    if batch == len(u):
        return solve(*lanes)
    groups = jax.tree.map(lambda leaf: leaf.reshape(-1, batch, *leaf.shape[1:]), lanes)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), jax.lax.map(lambda own: solve(*own), groups))


class _State(NamedTuple):
    free: Array
    value: Array
    gradient: Array
    hessian: Array
    beta: Array
    trial: Array
    predicted: Array
    boundary: Array
    radius: Array
    iteration: Array
    stalled: Array
    polishing: Array
    done: Array


def _solve(held: Held, u, start, moments: Moments) -> Point:
    size, dtype = start.shape[0], start.dtype
    evaluate = partial(_derivatives, held, moments)
    zero, infinite = jnp.zeros((), dtype), jnp.full((), jnp.inf, dtype)
    never, none = jnp.zeros((), bool), jnp.zeros((), jnp.int32)
    state = _State(
        *(start, infinite, jnp.zeros(size + 1, dtype), jnp.zeros((size + 1, size + 1), dtype)),
        jnp.zeros_like(held.border.padding),
        *(start, infinite, never, zero, none, none, never, never),
    )
    active = held.active.astype(dtype)
    state = jax.lax.while_loop(
        lambda s: ~s.done & (s.iteration < MAX_ITERATIONS), lambda s: _iterate(s, u, evaluate, active), state
    )
    return _point(held, state, u, moments.layout.terms)


def _iterate(state: _State, u, evaluate, active) -> _State:
    """One iteration: evaluate the trial point, accept or reject it, propose the next (as `jmixed.fit.solve`)."""
    value, gradient, hessian, beta = evaluate(jnp.append(state.trial, u))
    starting = jnp.isinf(state.predicted)
    gain = jnp.where(jnp.isfinite(value), jnp.where(starting, 0, state.value) - jnp.where(starting, 0, value), -jnp.inf)
    noise = ROUNDING * jnp.where(starting, 0, jnp.abs(state.value))
    expected = jnp.where(starting, 0, state.predicted)
    visible = expected > noise
    ratio = jnp.where(visible, gain / jnp.where(visible, expected, 1), 1)
    usable = jnp.isfinite(value) & jnp.all(jnp.isfinite(hessian))
    accepted = usable & (gain >= 1e-4 * expected - 2 * noise)
    length = jnp.sqrt(jnp.sum((state.trial - state.free) ** 2))
    free, value, gradient, hessian, beta = jax.tree.map(
        lambda new, kept: jnp.where(accepted, new, kept),
        (state.trial, value, gradient, hessian, beta),
        (state.free, state.value, state.gradient, state.hessian, state.beta),
    )
    grown = jnp.where((ratio > 0.75) & state.boundary, 2 * state.radius, state.radius)
    radius = jnp.where(~accepted | (ratio < 0.25), length / 4, grown)
    radius = jnp.where(starting, jnp.maximum(0.5, 0.5 * jnp.sqrt(jnp.sum(free[:-1] ** 2))), radius)
    values, vectors = _spectrum(hessian, active)
    slope = vectors.T @ (gradient[:-1] * active)
    move, predicted, boundary = trust_region_step(values, slope, radius)
    largest = jnp.maximum(values[-1], 1)
    decrement = jnp.sum(slope**2 / jnp.maximum(values, 1e-10 * largest)) / 2
    stalled = jnp.where(visible | starting, 0, state.stalled + 1).astype(jnp.int32)
    return _State(
        free=free,
        value=value,
        gradient=gradient,
        hessian=hessian,
        beta=beta,
        trial=free + vectors @ move,
        predicted=predicted,
        boundary=boundary,
        radius=radius,
        iteration=state.iteration + 1,
        stalled=stalled,
        polishing=(decrement < DECREMENT) & (values[0] > CURVATURE * largest),
        done=state.polishing | (stalled >= 2) | ~jnp.isfinite(value),
    )


def _spectrum(hessian, active):
    """Eigenvalues and -vectors in the free coordinates; held ones have a unit of curvature and no slope."""
    own = hessian[:-1, :-1] * (active[:, None] * active[None]) + jnp.diag(1 - active)
    return eigh(own)


def _roots(held: Held, structures, z):
    """Square roots of the terms' Sigma, and t, at the coordinates z = (free, u)."""
    x, u = z[:-2], z[-1]
    t = jnp.where(held.sigma > 0, u, z[-2])
    turned = (jnp.sin(u) * held.first + jnp.cos(u) * held.second) * (held.second @ x) ** 2
    chart = Chart(held.bases, held.keep * x + held.squared * x**2 + held.direct * u * jnp.exp(-t) + turned)
    return chart, chart_roots(chart, structures), t


def _derivatives(held: Held, moments: Moments, z):
    """Value, gradient and Hessian of the deviance in z, and the fixed effects."""
    structures, m, u = moments.layout.terms, len(z) - 2, z[-1]
    chart, roots, t = _roots(held, structures, z)
    psi = psi_of(squares(roots), structures, z.dtype)
    found = constrained_deviance(psi, roots, t, u, held.border, moments)
    inner, bend = chart_map(chart, structures, found.gradient[:m])
    jacobian, bends = _chart_derivatives(held, z, t, found.gradient[:m] @ inner)
    full = jnp.concatenate([inner @ jacobian[:m], jacobian[m:]])
    hessian = full.T @ found.hessian @ full + jacobian[:m].T @ bend @ jacobian[:m] + bends
    return found.value, found.gradient @ full, hessian, found.beta


def _chart_derivatives(held: Held, z, t, slope):
    """Derivatives of (phi, t, w) in z, (m + 2, m + 2), and the second derivatives of slope'phi in z."""
    m, u, unit = len(z) - 2, z[-1], jnp.eye(len(z), dtype=z.dtype)
    x, shrink = held.second @ z[:m], jnp.exp(-t)
    along = jnp.sin(u) * held.first + jnp.cos(u) * held.second
    across = jnp.cos(u) * held.first - jnp.sin(u) * held.second
    d_x = jnp.diag(held.keep + 2 * held.squared * z[:m]) + 2 * x * along[:, None] * held.second[None]
    d_t, d_u = -held.direct * u * shrink, held.direct * shrink + across * x**2
    d_phi = jnp.concatenate([d_x, d_t[:, None], d_u[:, None]], axis=1)
    jacobian = jnp.concatenate([d_phi, ((1 - held.sigma) * unit[m] + held.sigma * unit[m + 1])[None], unit[-1:]])
    mixed = jnp.stack([-slope @ held.direct * shrink, -slope @ along * x**2 / 2])
    x_u = jnp.append(2 * x * (slope @ across) * held.second, mixed)
    own = jnp.append(2 * (slope * held.squared + slope @ along * held.second), jnp.zeros(2, z.dtype))
    bends = jnp.outer(x_u, unit[-1]) + jnp.outer(unit[-1], x_u) + jnp.diag(own)
    return jacobian, bends + jnp.outer(unit[m], unit[m]) * (slope @ held.direct * u * shrink)


def _point(held: Held, state: _State, u, structures) -> Point:
    active = held.active.astype(state.free.dtype)
    values, vectors = _spectrum(state.hessian, active)
    sound = values > 1e-10 * jnp.maximum(values[-1], 1)
    inverse = jnp.where(sound, 1 / jnp.where(sound, values, 1), 0)
    mixed = state.hessian[:-1, -1] * active
    tangent = -(vectors @ (inverse * (vectors.T @ mixed)))
    _, roots, t = _roots(held, structures, jnp.append(state.free, u))
    return Point(
        value=state.value,
        free=state.free,
        slope=state.gradient[-1],
        curvature=state.hessian[-1, -1] + mixed @ tangent,
        tangent=tangent,
        beta=state.beta,
        t=t,
        roots=roots,
        converged=state.done & jnp.isfinite(state.value),
    )
