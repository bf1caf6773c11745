"""Refits without one cluster of rows at a time, all in one compiled program.

A cluster is left out by giving its rows weight zero, which takes them out of every cross-product and of the number of
rows. Every refit starts from the estimate of the whole data, and from wherever else a fit of its own would.
"""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh
from jmixed.algebra.newton import Point
from jmixed.fit.host import FEW_RESPONSES, Fit
from jmixed.fit.solve import MAX_ITERATIONS, Search, solve
from jmixed.layout.design import Design, Rows
from jmixed.likelihood.contract import Starts, minimum
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
    rows, padded, chosen, count = _clustered(design, clusters)
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


def _clustered(design: Design, clusters) -> tuple[Rows, np.ndarray, np.ndarray, int]:
    """Rows with the cluster of each, -1 of none, and the clusters to leave out, both padded; how many these are."""
    count, nobs = int(clusters.max()) + 1, len(clusters)
    rows = design.rows(bucket(nobs))
    padded = np.full(len(rows.y), -1, np.int32)
    padded[:nobs] = clusters
    chosen = np.full(bucket(count), count - 1, np.int32)
    chosen[:count] = np.arange(count)
    return rows, padded, chosen, count


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


def one_step_of_family(design: Design, fit: Fit, clusters) -> LeftOut:
    """One Newton step of the criterion without each cluster, from the `fit` of a response with a family."""
    rows, padded, chosen, count = _clustered(design, clusters)
    with double_precision():
        arguments = rows, padded, chosen, fit.theta, fit.beta, fit.kappa
        numbers, outcome, sound = jax.tree.map(lambda part: part[:count], jax.device_get(_family_program(*arguments)))
    # JAX maps no empty arrays: what has no entries is left out.
    shapes = {"theta": (0,), "beta": (0,), "vcov_beta": (0, 0), "kappa": (0,)}
    none = {name: np.zeros((count, *shape)) for name, shape in shapes.items()}
    return LeftOut(**_sound(none | numbers, sound), sigma=np.ones(count), outcome=outcome, rho=np.zeros((count, 0)))


def _sound(numbers, sound):
    """What is told of each fit, by name, with nan where a fit is not sound."""
    return {name: np.where(sound.reshape(-1, *(1,) * (part.ndim - 1)), part, np.nan) for name, part in numbers.items()}


def _has_few_rows(rows, *_):
    return rows.y.shape[0] <= FEW_RESPONSES


@program(brief=_has_few_rows)
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
