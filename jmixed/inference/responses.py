"""What a family says of rows at given predictors, and the linear model that a generalized one is like at the modes.

At the modes of the random effects a generalized model is, to second order, the linear mixed model of the responses
eta + l'/W with weights W = -l'' and a residual variance of one: of that model are its leverages, the conditional
covariances of the random effects, and the variances of predictors.

Arrays of rows end in an axis of rows (k,), whatever stands before it; `extras` (u, k) are the further predictors.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.families.family import Family
from jmixed.layout.design import Design
from jmixed.likelihood.laplace import laplace_deviance
from jmixed.likelihood.responses import responses_of
from jmixed.runtime.compilation import program
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import FLOAT, double_precision

FEW = 1 << 14
"""Entries up to which it takes longer to optimise a program than to run it as it is."""
FEW_DRAWS = 1 << 19
"""Responses up to which this holds of drawing them."""
NODES = 40
"""Nodes of Gauss-Hermite quadrature for a mean over the random effects."""
LEAST = 1e-10
"""The least working weight, relative to the largest: what a row counts whose log density is not concave."""
SLACK = 1e-8
"""Fall of a deviance in a Newton step at which the next one is the last."""

CALLS: dict[str, Callable[..., Any]] = {
    "mean": lambda family, eta, extras: family.mean(eta, extras),
    "location": lambda family, eta, extras: getattr(family, "count_mean", family.mean)(eta, extras),
    "probabilities": lambda family, eta, extras: jnp.moveaxis(family.probabilities(eta, extras), -1, 0),
    "variance": lambda family, eta, extras, trials: family.variance(eta, extras, trials),
    "observation_variance": lambda family, mean, extras, trials: family.observation_variance(mean, extras, trials),
    "delta_variance": lambda family, mean, extras, trials: Family.observation_variance(family, mean, extras, trials),
    "cdf": lambda family, eta, extras, trials, y: family.cdf(y, eta, extras, trials),
    "deviance": lambda family, eta, extras, trials, y: family.deviance(y, eta, extras, trials),
    "log_density": lambda family, eta, extras, trials, y: family.log_density(y, eta, extras, trials),
}
"""The methods of a family that are asked row by row, by the predictors and what else they take."""


def evaluate(family: Family, what: str, eta: np.ndarray, extras: np.ndarray, *others: np.ndarray) -> np.ndarray:
    """One of `CALLS` at eta (k,) and extras (u, k); `others` (k,) are trials and y where it takes them."""
    arrays, cut = _padded(eta, extras, *others)
    with double_precision():
        return cut(_call_program(*arrays, family=family, what=what))


def _is_small(eta, *_, **__):
    return eta.size <= FEW


@program(static_argnames=("family", "what"), brief=_is_small)
def _call_program(eta, extras, *others, family, what):
    return CALLS[what](family, eta, extras, *others)


class Sloped(NamedTuple):
    """Values by row, with their derivatives in eta, in the variance of eta, and in each further predictor.

    The axis of rows is the last one; values that are several for a row have an axis before it, and `in_extras` one of
    the further predictors before that.
    """

    value: np.ndarray
    in_eta: np.ndarray
    in_variance: np.ndarray
    in_extras: np.ndarray


def averaged(family: Family, what: str, eta: np.ndarray, extras: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """One of `CALLS` averaged over normal predictors around eta (k,) of that variance (k,)."""
    arrays, cut = _padded(eta, extras, np.sqrt(variance))
    with double_precision():
        return cut(_average_program(*arrays, family=family, what=what))


@program(static_argnames=("family", "what"), brief=_is_small)
def _average_program(eta, extras, spread, family, what):
    return _average(family, what, eta, spread, extras)


def expected(
    family: Family, what: str, eta: np.ndarray, extras: np.ndarray, variance: np.ndarray | None = None
) -> Sloped:
    """The "mean" or the "probabilities" at eta (k,), extras (u, k), with derivatives; `variance` as of `averaged`."""
    arrays, cut = _padded(eta, extras, np.zeros_like(eta) if variance is None else variance)
    with double_precision():
        value, slopes = _expected_program(*arrays, family=family, what=what, averages=variance is not None)
        return Sloped(cut(value), *map(cut, (slopes[0], slopes[1], slopes[2:])))


@program(static_argnames=("family", "what", "averages"), brief=_is_small)
def _expected_program(eta, extras, variance, family, what, averages):
    varies = variance > 0
    # The derivative of the root has no value at zero.
    known = jnp.where(varies, variance, 1)

    def at(eta, known, extras):
        if not averages:
            return CALLS[what](family, eta, extras)
        return _average(family, what, eta, jnp.where(varies, jnp.sqrt(known), 0), extras)

    u = extras.shape[0]
    along = jnp.eye(2 + u, dtype=eta.dtype)[:, :, None] + jnp.zeros_like(eta)[None, None]
    tangents = along[:, 0], jnp.where(varies[None], along[:, 1], 0), along[:, 2:]
    primals = eta, known, extras
    return at(*primals), jax.vmap(lambda *tangent: jax.jvp(at, primals, tangent)[1])(*tangents)


def _average(family, what, eta, spread, extras):
    """The mean over eta + spread z with z standard normal."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / np.sum(weights)

    def add(total, node):
        z, weight = node
        return total + weight * CALLS[what](family, eta + z * spread, extras), None

    zero = jnp.zeros_like(CALLS[what](family, eta, extras))
    return jax.lax.scan(add, zero, (jnp.asarray(nodes, eta.dtype), jnp.asarray(weights, eta.dtype)))[0]


def draw(family: Family, bits: np.ndarray, eta: np.ndarray, extras: np.ndarray, trials: np.ndarray) -> np.ndarray:
    """Responses (n, k), each row of them by random bits (n, 2) of its own, uint32, at eta (n, k)."""
    (eta, extras, trials), cut = _padded(eta, extras, trials)
    more = [(0, bucket(len(bits)) - len(bits)), (0, 0)]
    with double_precision():
        drawn = _draw_program(np.pad(bits, more), np.pad(eta, more, mode="edge"), extras, trials, family=family)
    return cut(drawn)[: len(bits)]


def _draws_few(bits, eta, *_, **__):
    return eta.size <= FEW_DRAWS


@program(static_argnames=("family",), brief=_draws_few)
def _draw_program(bits, eta, extras, trials, family):
    """One replicate after the other: a program of all at once takes twice as long to compile."""

    def respond(replicate):
        return family.draw(jax.random.wrap_key_data(replicate[0]), replicate[1], extras, trials)

    return jax.lax.map(respond, (bits, eta))


def _padded(*arrays):
    """The arrays with their last entries repeated up to a bucket of rows, and what takes the repetitions off."""
    count = arrays[0].shape[-1]
    width = bucket(count) - count

    def cut(values):
        return np.asarray(values)[..., :count]

    if not width or not count:
        return [np.asarray(array, FLOAT) for array in arrays], cut
    return [
        np.pad(np.asarray(array, FLOAT), [(0, 0)] * (np.ndim(array) - 1) + [(0, width)], mode="edge")
        for array in arrays
    ], cut


def depends_on_extras(family: Family, what: str) -> bool:
    """Whether the "mean" or the "probabilities" of a response depend on its further predictors."""
    if not family.extras:
        return False
    at, unknown = np.full(1, 0.5), np.full((len(family.extras), 1), np.nan)
    return bool(np.isnan(evaluate(family, what, at, unknown)).any())


# The linear model that a generalized one is like.


@dataclass(frozen=True, eq=False)
class AtPredictors:
    """What a design's rows say at given predictors.

    Attributes
    ----------
    extras : array (u, n)
        The further predictors, with what weights add to that of the dispersion.
    score, weight : arrays (n,)
        l' and -l'', times the weights where these are factors of the log density.
    """

    extras: np.ndarray
    score: np.ndarray
    weight: np.ndarray


def at_predictors(design: Design, eta: np.ndarray, kappa: np.ndarray) -> AtPredictors:
    """What the rows of a design say at eta (n,) and the coefficients of the further predictors."""
    rows = design.rows(bucket(len(eta)))
    (eta,), cut = _padded(eta)
    with double_precision():
        extras, score, weight = _rows_program(rows, eta, kappa)
    return AtPredictors(cut(extras), cut(score), cut(weight))


@program(brief=lambda rows, *_: rows.y.size <= FEW)
def _rows_program(rows, eta, kappa):
    responses = responses_of(rows, rows.response.extras)
    extras = responses.extras(kappa)
    at = responses.derivatives(eta, extras)
    return extras, at.score, at.weight


def mode_slopes(design: Design, psi: np.ndarray, fit: Any) -> list[np.ndarray]:
    """Derivatives (levels, q, m + k) of the modes, by term, in psi (m,) and kappa (k,), at a fit of the design."""
    rows = design.rows(bucket(design.nobs))
    with double_precision():
        slopes = jax.device_get(_slopes_program(rows, psi, fit.theta, fit.beta, fit.kappa))
    return [np.concatenate(both, axis=-1) for both in slopes]


@program(brief=lambda rows, *_: rows.y.size <= FEW)
def _slopes_program(rows, psi, theta, beta, kappa):
    deviance = laplace_deviance(rows)
    return jax.jacfwd(lambda psi, kappa: deviance.effects_at_psi(psi, theta, beta, kappa), (0, 1))(psi, kappa)


def working_design(design: Design, eta: np.ndarray, at: AtPredictors) -> Design:
    """The linear model at the modes: responses eta + l'/W with weights W, of a residual variance of one.

    A row whose log density is not concave there has a weight of next to nothing.
    """
    least = LEAST * max(float(np.max(at.weight, initial=0.0)), np.finfo(FLOAT).tiny / LEAST)
    weight = np.maximum(at.weight, least)
    there = design.weights > 0
    working = np.where(there, eta + np.where(at.weight >= least, at.score / weight, 0), 0)
    layout = replace(design.layout, family=None, quadrature=1)
    return replace(design, y=working, weights=np.where(there, weight, 0), layout=layout, response=None)


def plain_deviance(design: Design, beta: np.ndarray, kappa: np.ndarray) -> float:
    """-2 log-likelihood of the design without its random effects, by Newton steps from (beta, kappa)."""
    rows = design.rows(bucket(design.nobs))
    x, p = np.concatenate([beta, kappa]), len(beta)
    with double_precision():
        evaluate_at = partial(_plain_program, rows, p=p)
        value, gradient, hessian = map(np.asarray, evaluate_at(x))
        for _ in range(100):
            eigenvalues, vectors = np.linalg.eigh(hessian)
            step = -vectors @ ((vectors.T @ gradient) / np.maximum(np.abs(eigenvalues), 1e-10 * eigenvalues[-1]))
            length = 1.0
            while length > 1e-10:
                tried = [np.asarray(part) for part in evaluate_at(x + length * step)]
                if tried[0] <= value:
                    break
                length /= 4
            fall = float(value - tried[0])
            if not fall >= 0:
                break
            x, (value, gradient, hessian) = x + length * step, tried
            if fall < SLACK:
                break
    return float(value)


@program(static_argnames=("p",), brief=lambda rows, *_, **__: rows.y.size <= FEW)
def _plain_program(rows, x, p):
    responses = responses_of(rows, rows.response.extras)

    def deviance(x):
        eta = responses.offset + rows.X @ x[:p]
        return -2 * jnp.sum(responses.log_densities(eta, responses.extras(x[p:])))

    return deviance(x), jax.grad(deviance)(x), jax.hessian(deviance)(x)
