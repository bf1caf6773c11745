"""Gamma functions as what is left of them beside their leading terms, exact where their arguments are extreme.

No two numbers of the size of log y! are taken from each other. All is made of elementary functions, Stirling's series

    log Gamma(z) = (z - 1/2) log z - z + log(2 pi) / 2 + sum_n c_n z^-(2n - 1)

behind a shift of small arguments, which JAX differentiates quickly and as often as asked; of its own log-gamma function
the derivatives are sums of many terms, and every further one takes longer to compile.
"""

import math
from typing import Any

import jax.numpy as jnp
from jax.scipy.special import gammaln

from jmixed.families.chains import FourDerivatives
from jmixed.families.special import LOG_SQRT_2PI, at_least_tiny

SHIFT = 8
"""From here on the series is exact to rounding, with derivatives up to the sixth."""

STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156, -3617 / 122400, 43867 / 244188)
"""c_1, c_2, ..."""


def log_gamma_rest(a: Any, log_a: Any) -> Any:
    """log Gamma(1 + a) - a log a + a for a >= 0: zero at zero, and log(2 pi a) / 2 + 1 / (12 a) where a is large.

    `log_a` tells apart numbers that are zero to rounding.
    """
    large = a >= SHIFT
    near = jnp.where(large, 0, a)
    shifted = jnp.where(large, a, near + SHIFT)
    log_shifted = jnp.where(large, log_a, jnp.log(near + SHIFT))
    rest = LOG_SQRT_2PI + 0.5 * log_shifted + _series(1 / shifted, STIRLING)
    product = jnp.ones_like(near)
    for step in range(1, SHIFT + 1):
        product = product * (near + step)
    taken_back = shifted * log_shifted - SHIFT - jnp.log(product) - near * jnp.where(large, 0, log_a)
    return rest + jnp.where(large, 0, taken_back)


def log_rising(a: Any, log_a: Any, y: Any) -> Any:
    """log Gamma(a + y) - log Gamma(a) - y log a for a, y >= 0: zero where y is, and goes to zero as a grows."""
    growth = _log_growth(a, log_a, y)
    raised = a + y
    return (raised - 1) * growth - y + log_gamma_rest(raised, log_a + growth) - log_gamma_rest(a, log_a)


def log_choose(trials: Any, y: Any) -> Any:
    """log of trials over y."""
    return gammaln(trials + 1) - gammaln(y + 1) - gammaln(trials - y + 1)


def log_gamma_derivatives(a: Any, log_a: Any) -> FourDerivatives:
    """Derivatives in log a of log Gamma(a) - a log a + a."""
    a = at_least_tiny(a)
    return _in_logarithm(_polygamma_rests(a, log_a, a))


def log_rising_derivatives(a: Any, log_a: Any, y: Any) -> FourDerivatives:
    """Derivatives of `log_rising` in log a."""
    a = at_least_tiny(a)
    growth, share = _log_growth(a, log_a, y), a / (a + y)
    part = y * share
    leading = (a * growth, -part, part * (1 + share), -2 * part * (1 + share + share * share))
    rests = zip(_polygamma_rests(a + y, log_a + growth, a), _polygamma_rests(a, log_a, a), strict=True)
    first, *higher = _in_logarithm(
        [main + (raised - base) for main, (raised, base) in zip(leading, rests, strict=True)]
    )
    return FourDerivatives(first - y, *higher)


def _log_growth(a: Any, log_a: Any, y: Any) -> Any:
    """log((a + y) / a)."""
    mostly_y = y > a
    return jnp.where(
        mostly_y, jnp.log(at_least_tiny(a + y)) - log_a, jnp.log1p(jnp.where(mostly_y, 0, y) / at_least_tiny(a))
    )


def _series(reciprocal: Any, coefficients: Any) -> Any:
    """sum_n c_n z^-(2n - 1), from 1 / z."""
    square, total = reciprocal * reciprocal, jnp.zeros_like(reciprocal)
    for coefficient in reversed(coefficients):
        total = total * square + coefficient
    return total * reciprocal


def _polygamma_rests(z: Any, log_z: Any, scale: Any) -> list:
    """scale^k (psi_(k-1)(z) - L_k(z)) for k = 1, ..., 4 and 0 < scale <= z.

    psi_0, psi_1, ... are the polygamma functions and L_k their leading terms, log z and its derivatives.
    """
    large = z >= SHIFT
    near, near_scale = jnp.where(large, 1, z), jnp.where(large, 0, scale)
    shifted = jnp.where(large, z, near + SHIFT)
    reciprocal = 1 / shifted
    ratio, base = scale * reciprocal, near_scale / near
    steps = [base] + [near_scale / (near + step) for step in range(1, SHIFT)]
    rests, power, near_ratio = [], jnp.ones_like(ratio), near_scale * reciprocal
    for k in range(1, 5):
        sign, factorial = (-1) ** k, math.factorial(k - 1)
        series = [math.prod(range(2 * n - 1, 2 * n - 1 + k)) * c for n, c in enumerate(STIRLING, 1)]
        power = power * ratio
        rest = power * (factorial / 2 + _series(reciprocal, series))
        # Back from the shifted argument: the terms of the recurrence, and the leading terms of both.
        back = factorial * sum(step**k for step in steps)
        if k == 1:
            back = back - near_scale * (jnp.log(near + SHIFT) - jnp.where(large, 0, log_z))
        else:
            back = back + math.factorial(k - 2) * near_scale * (near_ratio ** (k - 1) - base ** (k - 1))
        rests.append(sign * (rest + jnp.where(large, 0, back)))
    return rests


def _in_logarithm(scaled: Any) -> FourDerivatives:
    """Derivatives of F in log a from a^k times those in a."""
    f1, f2, f3, f4 = scaled
    return FourDerivatives(f1, f1 + f2, f1 + 3 * f2 + f3, f1 + 7 * f2 + 6 * f3 + f4)
