"""How far an approximate likelihood is from the true one, at the estimates of a fit.

With one grouping factor of few random effects quadrature with many nodes is the truth: its value tells what the
criterion lacks, and one Newton step of it, -H^-1 gradient, how far it would move each estimate. Otherwise the integral
is estimated by importance sampling from the normal distribution that Laplace's approximation puts around the modes,

    log w = sum over rows of  l(eta + Z d) - l(eta) - s Z d + W (Z d)^2 / 2,      d ~ N(0, P),

in which the prior cancels, because at the modes Sigma^-1 b = Z's. Draws d = P(Z'W^1/2 e1 - Z'W Z lambda e2) + lambda e2
have the covariance P and need no factor of it. Parts of the data that share no random effects are averaged apart.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from jmixed.algebra.newton import Point, pseudo_inverse
from jmixed.fit.host import Fit
from jmixed.layout.design import Design
from jmixed.likelihood.gaussian import factors_of, precondition, squares
from jmixed.likelihood.grouped import is_grouped
from jmixed.likelihood.laplace import laplace_deviance
from jmixed.likelihood.quadrature import quadrature_deviance
from jmixed.likelihood.spans import to_rows
from jmixed.likelihood.stages import stage_blocks
from jmixed.runtime.compilation import program
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import double_precision

NODES = {1: 25, 2: 11, 3: 7}
"""Nodes for each random effect of a group, by their number, that count as the truth."""


@dataclass(frozen=True)
class Accuracy:
    """What an approximation lacks: `criterion` is the true -2 log-likelihood less the fit's, with a standard `error`.

    `shift` (p,) is how far the truth would move each coefficient, in standard errors; None where it is not known.
    `nodes` for each random effect, or so many `draws`.
    """

    criterion: float
    error: float
    shift: np.ndarray | None
    nodes: int
    draws: int


def accuracy(design: Design, fit: Fit, draws: int, key: Any) -> Accuracy:
    """How good the criterion of a fit is."""
    rows, layout = design.rows(bucket(design.y.shape[0])), design.layout
    free = np.concatenate([fit.beta, fit.kappa])
    if is_grouped(layout) and layout.stage_width(0) in NODES:
        nodes = max(NODES[layout.stage_width(0)], layout.quadrature + 2)
        with double_precision():
            value, step = jax.device_get(_by_quadrature(rows, fit.theta, free, count=nodes))
        errors = np.sqrt(np.diag(fit.vcov_beta))
        return Accuracy(float(value) - fit.objective, 0.0, step[: len(errors)] / errors, nodes, 0)
    with double_precision():
        value, error = jax.device_get(_by_sampling(rows, fit.theta, free, jax.random.key(key), draws=draws))
    return Accuracy(float(value) - fit.objective, float(error), None, 0, draws)


@program(static_argnames=("count",))
def _by_quadrature(rows, theta, free, count):
    """The criterion with so many nodes, and its Newton step in beta and kappa."""
    deviance = quadrature_deviance(laplace_deviance(rows), count)
    basis = deviance.laplace.basis
    m, nowhere = len(theta), deviance.nowhere()
    x = jnp.concatenate([theta, jnp.linalg.solve(basis, free)])
    at = deviance.value_gradient_hessian(Point(nowhere, x))
    return at.value, -basis @ (pseudo_inverse(at.hessian) @ at.gradient)[m:]


@program(static_argnames=("draws",))
def _by_sampling(rows, theta, free, key, draws):
    """The criterion by importance sampling, and its standard error."""
    deviance, layout = laplace_deviance(rows), rows.layout
    roots = precondition(factors_of(theta, rows), deviance.columns.T)
    covariances = squares(roots)
    xi, extras = deviance.predictors(jnp.linalg.solve(deviance.basis, free))
    modes = deviance.modes(covariances, roots, xi, extras, jnp.zeros_like(xi))
    eta = xi + modes.spread
    table = deviance.responses.table(eta, extras)
    there = (deviance.responses.factors > 0).astype(eta.dtype)
    weight = jnp.maximum(table.weight, 1e-10 * there)
    eliminated = deviance.eliminate(covariances, roots, weight)
    of_rows, *of_blocks = jax.random.split(key, 1 + len(layout.stages))
    normal = jax.random.normal(of_rows, (len(eta), draws), eta.dtype)
    prior = []
    for s, block_key in enumerate(of_blocks):
        shape = (layout.stage_width(s), draws, layout.blocks[s])
        prior.append(stage_blocks(layout, s, roots).times(jax.random.normal(block_key, shape, eta.dtype)))
    wide = to_rows(prior, rows, deviance.columns)
    moved = wide + eliminated.reach(jnp.sqrt(weight)[:, None] * normal - weight[:, None] * wide)

    def log_weights(step):
        value = deviance.responses.log_densities(eta + step, extras) - table.value
        value = value - table.score * step + weight * step * step / 2
        return jax.ops.segment_sum(value, deviance.component, num_segments=deviance.components)

    logs = jax.lax.map(log_weights, moved.T)
    mean = logsumexp(logs, axis=0) - jnp.log(draws)
    spread = jnp.mean(jnp.expm1(logs - mean[None]) ** 2, axis=0)
    plain = jnp.sum(modes.e * modes.spread - 2 * table.value) + eliminated.logdet
    return plain - 2 * jnp.sum(mean), 2 * jnp.sqrt(jnp.sum(spread) / draws)
