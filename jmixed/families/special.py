"""Functions that densities are made of, kept finite and exact where their arguments are extreme."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


def bounded(x: Any) -> Any:
    """x, kept where its exponential and that of -x are finite, and their squares."""
    limit = 0.45 * math.log(float(jnp.finfo(x.dtype).max))
    return jnp.clip(x, -limit, limit)


def bounded_exp(x: Any) -> Any:
    """exp(x), finite and above zero with its square, however large x is."""
    return jnp.exp(bounded(x))


def at_least_tiny(x: Any) -> Any:
    """x, or the least normal number where it is less: what a logarithm may be taken of."""
    return jnp.maximum(x, float(jnp.finfo(x.dtype).tiny))


def _near_series(terms: int = 9) -> list[float]:
    """Coefficients in s = z^2 of a polynomial that is 2 artanh(z) / z to rounding, where z is a third at most.

    Behind the 2 it goes through the series at Chebyshev's points, which takes fewer terms than the series does.
    """
    ninths = (1 + np.cos(np.pi * (np.arange(terms) + 0.5) / terms)) / 2
    behind = sum(2 / (2 * n + 3) * (ninths / 9) ** n for n in range(20))
    in_ninths = np.linalg.solve(np.vander(ninths, increasing=True), behind)
    return [2.0, *(in_ninths * 9.0 ** np.arange(terms)).tolist()]


_SERIES = _near_series()


@jax.custom_jvp
def softplus(x: Any) -> Any:
    """log(1 + exp(x)).

    Of the small e = exp(-|x|), log(1 + e) is 2 artanh(e / (2 + e)), which takes a fraction of a logarithm's time.
    """
    small = jnp.exp(-jnp.abs(x))
    square = (small / (2 + small)) ** 2
    series = jnp.full_like(square, _SERIES[-1])
    for coefficient in reversed(_SERIES[:-1]):
        series = coefficient + square * series
    # XLA works a chain of products out again for everyone who reads it, but not a quotient.
    return jnp.maximum(x, 0) + small * series / (2 + small)


@softplus.defjvp
def _softplus_tangent(primals, tangents):
    (x,), (moved,) = primals, tangents
    return softplus(x), moved * jax.nn.sigmoid(x)


@jax.custom_jvp
def logistic(eta: Any) -> tuple[Any, Any, Any]:
    """p = 1 / (1 + exp(-eta)), 1 - p and p (1 - p), by one exponential."""
    small = jnp.exp(-jnp.abs(eta))
    larger = 1 / (1 + small)
    smaller = small * larger
    upper = eta >= 0
    return jnp.where(upper, larger, smaller), jnp.where(upper, smaller, larger), smaller * larger


@logistic.defjvp
def _logistic_tangent(primals, tangents):
    # What the values tell, and no side of zero.
    (eta,), (moved,) = primals, tangents
    p, q, v = logistic(eta)
    return (p, q, v), (v * moved, -v * moved, v * (q - p) * moved)


def log1m_exp_minus(hazard: Any, log_hazard: Any) -> Any:
    """log(1 - exp(-h)) of h >= 0, also where h, but not log h, is zero to rounding."""
    small = hazard < 0.05
    square = jnp.where(small, hazard, 0) ** 2
    # log(sinh(h/2) / (h/2)), in powers of h^2.
    series = log_hazard - jnp.where(small, hazard, 0) / 2 + square * (1 / 24 - square * (1 / 2880 - square / 181440))
    large = jnp.where(small, 1, hazard)
    return jnp.where(small, series, jnp.log(-jnp.expm1(-large)))


def relative_entropy(y: Any, mean: Any, log_mean: Any) -> Any:
    """y log(y / mean) - (y - mean), for y, mean >= 0: never below zero, and exact where the two are close."""
    change = (y - mean) / at_least_tiny(mean)
    close, closest = jnp.abs(change) < 0.5, jnp.abs(change) < 0.02
    change, small = jnp.where(close, change, 0), jnp.where(closest, change, 0)
    series = jnp.zeros_like(small)
    for n in range(9, -1, -1):
        series = (-1) ** n / ((n + 1) * (n + 2)) + small * series
    near = mean * jnp.where(closest, small * small * series, (1 + change) * jnp.log1p(change) - change)
    far = jnp.where(y > 0, y * (jnp.log(at_least_tiny(y)) - log_mean), 0) - (y - mean)
    return jnp.where(close, near, far)


def ratio_of_sums(above: Any, below: Any, within: tuple[float, float]) -> Any:
    """sum above / sum below, kept within limits, of which it is the lower one where nothing can be divided by."""
    total = jnp.sum(below)
    ratio = jnp.sum(above) / jnp.where(total > 0, total, 1)
    return jnp.clip(jnp.nan_to_num(jnp.where(total > 0, ratio, within[0]), nan=within[0]), *within)


def mean_over_rows(values: Any, weights: Any, within: tuple[float, float]) -> Any:
    """The mean over rows that count of values times weights, kept within limits."""
    counting = weights > 0
    return ratio_of_sums(jnp.where(counting, weights * values, 0), counting.astype(values.dtype), within)
