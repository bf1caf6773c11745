"""The subproblem of the optimiser: a quadratic model within a radius."""

import jax
import jax.numpy as jnp

CURVATURE = -1e-6
"""Smallest eigenvalue of the Hessian allowed at an optimum, relative to the largest."""


def trust_region_step(values, slope, radius):
    """The exact minimiser of a quadratic model within a radius, hard case included.

    Moré and Sorensen (1983, SIAM J. Sci. Stat. Comput. 4(3)): the secular equation by safeguarded Newton steps, of a
    fixed number so that batches of fits stay in step.

    Parameters
    ----------
    values, slope : arrays (m,)
        Ascending eigenvalues of the Hessian, and the gradient in the basis of its eigenvectors.
    radius : scalar

    Returns
    -------
    (step (m,) in the same basis, predicted decrease, whether the step ends on the boundary)
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
