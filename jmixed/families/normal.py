"""The normal distribution function in its tails: its logarithm, and that of differences, with their derivatives.

In the lower tail, at x = -t, the ratio of density to distribution function is t + h_1, where the numbers

    h_k = k / (t + h_{k+1}),    h_k' = h_k (h_k - h_{k+1})    (derivative in t)

are the convergents of a continued fraction. So derivatives of log Phi follow from h_1, ..., h_4 without taking from
each other numbers that are close.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax.scipy.special import erfc

from jmixed.families.chains import FourDerivatives, composed
from jmixed.families.special import LOG_SQRT_2PI, log1m_exp_minus

STEPS = 16
"""Steps of the continued fraction, from a start by the differential equation that h_k follows in k."""


def _tail(x: Any) -> float:
    """Below, the fraction has converged; above, cancellation leaves derivatives their digits."""
    return -6.0 if jnp.finfo(x.dtype).bits > 32 else -3.0


def _convergents(t: Any) -> list:
    """h_1, ..., h_4 of the tail."""
    square = t * t + 4 * (STEPS + 1)
    h = 0.5 * (jnp.sqrt(square) - t) * (1 - 1 / square)
    convergents = []
    for k in range(STEPS, 0, -1):
        h = k / (t + h)
        convergents.append(h)
    return convergents[:-5:-1]


def _split(x: Any) -> tuple:
    """Whether x is in the tail, its t there, and x as far as it is not."""
    tail = x < _tail(x)
    return tail, -jnp.where(tail, x, _tail(x)), jnp.where(tail, _tail(x), x)


def _log_ndtr_center(x: Any) -> Any:
    """log Phi(x) of x above the tail."""
    upper = x > 0
    beyond = 0.5 * erfc(jnp.where(upper, x, -x) / math.sqrt(2))
    return jnp.where(upper, jnp.log1p(-jnp.where(upper, beyond, 0)), jnp.log(jnp.where(upper, 0.5, beyond)))


def log_density(x: Any) -> Any:
    """log phi(x)."""
    return -0.5 * x * x - LOG_SQRT_2PI


def _logarithms(x: Any) -> tuple:
    """log Phi(x) and log(Phi(x) / phi(x))."""
    tail, t, center = _split(x)
    far, near = -jnp.log(t + _convergents(t)[0]), _log_ndtr_center(center)
    return (
        jnp.where(tail, log_density(t) + far, near),
        jnp.where(tail, far, near - log_density(center)),
    )


def log_ndtr(x: Any) -> Any:
    """log Phi(x)."""
    return _logarithms(x)[0]


def log_ndtr_derivatives(x: Any) -> FourDerivatives:
    """The first four derivatives of log Phi."""
    tail, t, center = _split(x)
    m = jnp.exp(log_density(center) - _log_ndtr_center(center))
    first = -m * (center + m)
    second = -first * (center + m) - m * (1 + first)
    third = -second * (center + m) - 2 * first * (1 + first) - m * second
    h1, h2, h3, h4 = _convergents(t)
    d1, d2, d3 = h1 - h2, h2 - h3, h3 - h4
    dd1, dd2 = h1 * d1 - h2 * d2, h2 * d2 - h3 * d3
    ddd1 = h1 * d1 * d1 + h1 * dd1 - h2 * d2 * d2 - h2 * dd2
    inner = d1 * d1 + dd1
    tails = t + h1, -1 - h1 * d1, h1 * inner, -h1 * (d1 * inner + 2 * d1 * dd1 + ddd1)
    return FourDerivatives(*(jnp.where(tail, a, b) for a, b in zip(tails, (m, first, second, third), strict=True)))


def log_ndtr_between(x: Any, gap: Any, log_gap: Any, whole: Any) -> Any:
    """log(Phi(x) - Phi(x - gap)), and log Phi(x) where it is to be the whole."""
    parts = _parts(x, gap, whole)
    near = log_density(parts.middle) + log_gap + jnp.log1p(_bulges(parts)[0])
    log_top, apart = _apart(parts, whole)
    return jnp.where(parts.close, near, log_top + jnp.where(whole, 0, log1m_exp_minus(apart, jnp.log(apart))))


def log_ndtr_between_derivatives(x: Any, gap: Any, whole: Any) -> FourDerivatives:
    """Derivatives of `log_ndtr_between` in x."""
    parts = _parts(x, gap, whole)
    bulge, *bulges = _bulges(parts)
    share, middle = 1 / (1 + bulge), parts.middle
    near = composed((share, -(share**2), 2 * share**3, -6 * share**4), tuple(bulges))
    near = near + FourDerivatives(-middle, -jnp.ones_like(middle), jnp.zeros_like(middle), jnp.zeros_like(middle))
    at_top = log_ndtr_derivatives(parts.top)
    e = jnp.where(whole, 0, 1 / jnp.expm1(_apart(parts, whole)[1]))
    product = e * (1 + e)
    outer = e, -product, product * (1 + 2 * e), -product * (1 + 6 * product)
    far = at_top + composed(outer, at_top - log_ndtr_derivatives(parts.bottom))
    far = composed(far, (parts.side, 0, 0, 0))
    return FourDerivatives(*(jnp.where(parts.close, a, b) for a, b in zip(near, far, strict=True)))


class _Parts(NamedTuple):
    """Two numbers: whether they are close, then their middle and distance, and otherwise both in the lower tail."""

    close: Any
    middle: Any
    gap: Any
    top: Any
    bottom: Any
    side: Any


def _parts(x: Any, gap: Any, whole: Any) -> _Parts:
    """Numbers that are close have a density between them that is all but linear; others are mirrored into the tail."""
    middle = x - 0.5 * gap
    close = (gap * jnp.maximum(jnp.abs(middle), 1) < 0.1) & ~whole
    apart = jnp.where(close, 1, gap)
    side = jnp.where((middle > 0) & ~whole, -1.0, 1.0).astype(gap.dtype)
    depth = -side * jnp.where(close, 0, middle)
    return _Parts(
        close,
        jnp.where(close, middle, 0),
        jnp.where(close, gap, 0),
        jnp.where(whole, x, 0.5 * apart - depth),
        jnp.where(whole, 0, -0.5 * apart - depth),
        side,
    )


def _apart(parts: _Parts, whole: Any) -> tuple:
    """log Phi at the top, and what it is less at the bottom: the difference of log densities is exact as a product."""
    (log_top, ratio_top), (_, ratio_bottom) = _logarithms(parts.top), _logarithms(parts.bottom)
    product = -0.5 * (parts.top - parts.bottom) * (parts.top + parts.bottom)
    return log_top, jnp.where(whole, 1, product + ratio_top - ratio_bottom)


def _bulges(parts: _Parts) -> list:
    """How much the mean density between close numbers exceeds that in their middle, as a share, and its derivatives.

    It is sum_n (gap / 2)^2n He_2n / (2n + 1)!, where He_n' = n He_{n-1}.
    """
    x, square = parts.middle, 0.25 * parts.gap**2
    hermite = [jnp.ones_like(x), x]
    for n in range(1, 6):
        hermite.append(x * hermite[n] - n * hermite[n - 1])
    bulges = []
    for order in range(5):
        total = jnp.zeros_like(x)
        for n in range(3, 0, -1):
            if 2 * n >= order:
                total = total + math.perm(2 * n, order) / math.factorial(2 * n + 1) * hermite[2 * n - order]
            total = square * total
        bulges.append(total)
    return bulges
