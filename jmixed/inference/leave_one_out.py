"""Refits without one cluster of rows at a time, all in one compiled program.

A cluster is left out by giving its rows weight zero, which takes them out of every cross-product and of the number of
rows. Every refit starts from the estimate of the whole data, and from wherever else a fit of its own would.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh
from jmixed.algebra.newton import Point, first_radius, trust_region_step
from jmixed.errors import Outcome
from jmixed.fit.devices import shared_grouping
from jmixed.fit.host import Fit, has_few_responses
from jmixed.fit.solve import MAX_ITERATIONS, Search, solve
from jmixed.layout.design import Design, Rows
from jmixed.likelihood.contract import Starts, minimum
from jmixed.likelihood.grouped import in_groups, is_grouped
from jmixed.likelihood.laplace import laplace_deviance
from jmixed.likelihood.preconditioning import preconditioners
from jmixed.likelihood.quadrature import quadrature_deviance
from jmixed.likelihood.whitened import reads_rows
from jmixed.residual.series import without_patterns
from jmixed.runtime.compilation import program
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import double_precision

CHUNK = 8
"""Refits that run side by side."""
ENTRIES = 2**25
"""Row entries that they may hold together."""
FEW_PASSES = 2**20
"""Rows times clusters up to which the refits take less time than to optimise their program."""
NUMBERS = ("theta", "beta", "sigma", "vcov_beta", "rho")
"""Estimates of a refit that are kept."""
ONE_STEP = 2
"""Evaluations of one Newton step: the estimate of the whole data, and the point that the step leads to."""


@dataclass(frozen=True)
class LeftOut:
    """Estimates without each of m clusters, NaN where the rest does not determine them, and how each refit ended.

    theta (m, t), beta (m, p), sigma (m,), vcov_beta (m, p, p), outcome (m,), rho (m, r), kappa (m, k).
    """

    theta: np.ndarray
    beta: np.ndarray
    sigma: np.ndarray
    vcov_beta: np.ndarray
    outcome: np.ndarray
    rho: np.ndarray
    kappa: np.ndarray


def leave_one_out(design: Design, fit: Fit, clusters, reml: bool, one_step: bool = False) -> LeftOut:
    """Refit without each cluster, from the `fit` of the whole data; `clusters` (n,) has that of each row, 0..m-1.

    With `one_step` one Newton step with exact derivatives is taken from the estimate of the whole data, no more.
    """
    count = int(clusters.max()) + 1
    rows, padded, chosen = _clustered(design, clusters, np.arange(count))
    width = rows.X.shape[1] + sum(Z.shape[1] for Z in rows.Z)
    in_turn = reads_rows(replace(rows, series=without_patterns(rows.series)))
    side_by_side = 1 if in_turn else max(1, min(CHUNK, len(chosen), ENTRIES // (len(rows.y) * width)))
    limit = np.int32(ONE_STEP if one_step else MAX_ITERATIONS)
    with double_precision():
        arguments = rows, padded, chosen, fit.theta, limit, bool(reml)
        out = _program(*arguments, counted=fit.counted, side_by_side=side_by_side)
        numbers, outcome, sound = jax.tree.map(lambda part: part[:count], jax.device_get(out))
    p = rows.X.shape[1]
    none = {"beta": np.zeros((count, p)), "vcov_beta": np.zeros((count, p, p))}
    none |= {"theta": np.zeros((count, 0)), "rho": np.zeros((count, 0))}
    return LeftOut(**_sound(none | numbers, sound), outcome=outcome, kappa=np.zeros((count, 0)))


def _clustered(design: Design, clusters, wanted) -> tuple[Rows, np.ndarray, np.ndarray]:
    """Rows with the cluster of each, -1 of none, and the `wanted` clusters (k,) to leave out, both padded."""
    rows = design.rows(bucket(len(clusters)))
    padded = np.full(len(rows.y), -1, np.int32)
    padded[: len(clusters)] = clusters
    chosen = np.full(bucket(len(wanted)), wanted[-1], np.int32)
    chosen[: len(wanted)] = wanted
    return rows, padded, chosen


def _takes_long_to_optimise(rows, clusters, chosen, *_, **__):
    # Residuals with parameters are worked on row by row in every evaluation.
    return not rows.layout.residual.size and rows.y.shape[0] * chosen.shape[0] <= FEW_PASSES


@program(static_argnames=("counted", "side_by_side"), brief=_takes_long_to_optimise)
def _program(rows, clusters, chosen, theta, limit, reml, counted, side_by_side):
    columns, rows = preconditioners(rows), replace(rows, series=without_patterns(rows.series))
    X = rows.X @ columns.basis

    def without(cluster):
        weights = jnp.where(clusters == cluster, 0, rows.weights)
        # All data together have the identity here: an eigenvalue of zero is a coefficient that the rest does not tell.
        told = eigh(X.T @ (weights[:, None] * X))[0] > 1e-10 if X.shape[1] else jnp.ones(0, bool)
        search = Search(theta, others=limit > ONE_STEP, limit=limit)
        solved = solve(replace(rows, weights=weights), reml, search, counted=counted, columns=columns)
        result = solved.estimates
        # JAX maps no empty arrays: those of a model without fixed effects are left out.
        numbers = {name: result[name] for name in NUMBERS if result[name].size}
        sound = jnp.all(told) & jnp.isfinite(result["objective"])
        return numbers, solved.outcome, sound

    return jax.lax.map(without, chosen, batch_size=side_by_side if side_by_side > 1 else None)


def one_step_of_family(design: Design, fit: Fit, clusters, levels: bool = False) -> LeftOut:
    """One Newton step of the criterion without each cluster, from the `fit` of a response with a family.

    Where clusters are the `levels` of the one factor, steps that promise little are taken at their word.
    """
    count, p = int(clusters.max()) + 1, design.X.shape[1]
    shapes = {"theta": fit.theta.shape, "beta": (p,), "vcov_beta": (p, p), "kappa": fit.kappa.shape}
    numbers = {name: np.full((count, *shape), np.nan) for name, shape in shapes.items()}
    outcome, others = np.full(count, Outcome.MAX_ITERATIONS.value), np.arange(count)
    if levels and (steps := _steps_by_level(design, fit)) is not None:
        numbers, short = steps
        others = np.flatnonzero(~short)
    if len(others):
        rows, padded, chosen = _clustered(design, clusters, others)
        with double_precision():
            out = jax.device_get(_family_program(rows, padded, chosen, fit.theta, fit.beta, fit.kappa))
        some, ended, sound = jax.tree.map(lambda part: part[: len(others)], out)
        # JAX maps no empty arrays: what has no entries is left out.
        for name, part in _sound(some, sound).items():
            numbers[name][others] = part
        outcome[others] = ended
    return LeftOut(**numbers, sigma=np.ones(count), outcome=outcome, rho=np.zeros((count, 0)))


SPARE = 8
"""Rows with padding for each row, up to which the groups of a factor are laid out one by one."""
SHORT = 0.5
"""Gain of the criterion that a step promises, up to which nobody looks where it leads to."""


def _steps_by_level(design: Design, fit: Fit) -> tuple[dict[str, np.ndarray], np.ndarray] | None:
    """Steps without each level of the one factor, by sums over the others, and which of them are short (levels,).

    They are those of `_family_program`, which looks whether they lead down, and how the criterion bends there; here the
    covariance of the coefficients is that by the curvature from where the step starts. None where there are several
    factors.
    """
    layout, count = design.layout, design.counts[0]
    if not is_grouped(layout) or layout.quadrature > 1:
        return None
    blocks = bucket(count)
    grouping = shared_grouping(design, blocks)
    if grouping.rows.size > SPARE * bucket(design.nobs):
        return None
    if grouping.segments is not None:
        # All chunks of a block are of the one group in it.
        grouping = replace(grouping, segments=np.zeros(grouping.rows.shape[1] // blocks, np.int32))
    with double_precision():
        arguments = design.rows(bucket(design.nobs)), grouping, fit.theta, fit.beta, fit.kappa
        out = _by_level_program(*arguments, blocks=blocks)
        numbers, gain, sound = jax.tree.map(lambda part: part[:count], jax.device_get(out))
    return _sound(numbers, sound), ~(gain > SHORT)


@program(static_argnames=("blocks",), brief=has_few_responses)
def _by_level_program(rows, grouping, theta, beta, kappa, blocks):
    whole, p = laplace_deviance(rows), rows.X.shape[1]
    point = whole.at_theta(theta, whole.preconditioned(beta, kappa))
    apart = in_groups(rows, whole.X, whole.columns, whole.responses, grouping, blocks)

    def moved(gradient, hessian):
        values, vectors = eigh(hessian)
        step, gain, _ = trust_region_step(values, vectors.T @ gradient, first_radius(point.x))
        theta, coefficients = whole.parameters(Point(point.frame, point.x + vectors @ step))
        numbers = {"theta": theta, "beta": coefficients[:p], "kappa": coefficients[p:]}
        return numbers | {"vcov_beta": whole.on_scale(hessian)[:p, :p]}, gain

    numbers, gain = jax.vmap(moved)(*whole.without_each(point, apart))
    there = (apart.responses.factors > 0).astype(rows.y.dtype)
    own, rows_of = jnp.einsum("gpic,gqic,gic->gpq", apart.X, apart.X, there), jnp.sum(there, axis=(1, 2))
    left = jnp.maximum(jnp.sum(rows_of) - rows_of, 1)
    rest = (jnp.sum(own, axis=0, keepdims=True) - own) / left[:, None, None]
    told = jnp.all(jax.vmap(eigh)(rest)[0] > 1e-10, axis=1) if p else jnp.ones(len(rest), bool)
    return numbers, gain, told & jnp.all(jnp.isfinite(numbers["vcov_beta"]), axis=(1, 2))


def _sound(numbers, sound):
    """What is told of each fit, by name, with nan where a fit is not sound."""
    return {name: np.where(sound.reshape(-1, *(1,) * (part.ndim - 1)), part, np.nan) for name, part in numbers.items()}


@program(brief=has_few_responses)
def _family_program(rows, clusters, chosen, theta, beta, kappa):
    whole, nodes, p = laplace_deviance(rows), rows.layout.quadrature, rows.X.shape[1]
    free = whole.preconditioned(beta, kappa)
    first = whole.at_theta(theta, free)

    def without(cluster):
        left = whole.of_rows(clusters != cluster)
        criterion, point = left, first
        if nodes > 1:
            criterion = quadrature_deviance(left, nodes)
            point = Point(criterion.nowhere(), jnp.concatenate([theta, free]))
        there = (left.responses.factors > 0).astype(rows.y.dtype)
        told = eigh(left.X.T @ (there[:, None] * left.X) / jnp.sum(there))[0] > 1e-10 if p else jnp.ones(0, bool)
        lowest = minimum(criterion, Starts(jax.tree.map(lambda a: a[None], point), 1), ONE_STEP)
        result = criterion.estimates(lowest.at.point, lowest.at.value)
        numbers = {name: result[name] for name in ("theta", "beta")} | {"kappa": result["rho"]}
        numbers |= {"vcov_beta": left.on_scale(lowest.at.hessian)[:p, :p]}
        numbers = {name: part for name, part in numbers.items() if part.size}
        return numbers, lowest.outcome, jnp.all(told) & jnp.isfinite(lowest.at.value)

    return jax.lax.map(without, chosen)
