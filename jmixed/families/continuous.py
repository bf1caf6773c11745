"""Numbers on the whole line: the normal distribution with any link, and Student's t."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jmixed.families.chains import composed
from jmixed.families.family import DISPERSION, EtaDerivatives, OfMean
from jmixed.families.gammas import log_rising
from jmixed.families.special import (
    LOG_SQRT_2PI,
    at_least_tiny,
    bounded,
    bounded_exp,
    mean_over_rows,
)
from jmixed.families.tails import student_cdf


def start_of_number(y: Any, link: str) -> Any:
    """The link of a number, kept from what has no link by a share of what numbers have for size."""
    floor = at_least_tiny(0.05 * jnp.mean(jnp.abs(y)))
    if link == "identity":
        return y
    if link == "inverse":
        return 1 / jnp.where(y < 0, -1, 1) / jnp.maximum(jnp.abs(y), floor)
    return jnp.log(jnp.maximum(y, floor)) if link == "log" else jnp.sqrt(jnp.maximum(y, floor))


FINITE = (0.0, 1e30)
"""Limits that 32-bit numbers have room for."""


def log_scale_of(deviation: Any, y: Any) -> Any:
    """The log of a typical deviation; of one that vanishes beside the numbers, of a share of those."""
    return jnp.log(at_least_tiny(jnp.maximum(deviation, 1e-6 * jnp.mean(jnp.abs(y)))))


def bounded_mean(eta: Any, link: str) -> Any:
    """The inverse link, finite with its square."""
    if link == "identity":
        return eta
    if link == "inverse":
        return 1 / eta
    return bounded_exp(eta) if link == "log" else eta * eta


@dataclass(frozen=True)
class Gaussian(OfMean):
    """Normal numbers; the dispersion is the variance of a residual."""

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("identity", "log", "inverse", "sqrt")
    extras: ClassVar[tuple[str, ...]] = (DISPERSION,)
    weights_are: ClassVar = "precision"
    precision_sign: ClassVar[float] = -1.0

    def log_density(self, y, eta, extras, trials):
        """l = -(y - mu)^2 / (2 sigma^2) - log(2 pi sigma^2) / 2."""
        log_variance = bounded(extras[0])
        deviation = y - bounded_mean(eta, self.link)
        return -0.5 * deviation**2 * jnp.exp(-log_variance) - 0.5 * log_variance - LOG_SQRT_2PI

    def derivatives(self, y, eta, extras, trials):
        """Closed forms; of the identity, W = 1 / sigma^2 and no more."""
        precision = bounded_exp(-extras[0])
        if self.link == "identity":
            score = precision * (y - eta)
            zero = jnp.zeros_like(score)
            return EtaDerivatives(score, precision + zero, zero, zero)
        if self.link == "log":
            mean = bounded_exp(eta)
            turns = (mean * (2**n * mean - y) * precision for n in (1, 2, 3))
            return EtaDerivatives(precision * mean * (y - mean), *turns)
        return super().derivatives(y, eta, extras, trials)

    def start(self, y, trials):
        """The link of y, kept from where it has none."""
        return start_of_number(y, self.link)

    def start_extras(self, y, mean, trials, weights):
        """The log of the mean of w (y - mu)^2."""
        return 2 * log_scale_of(jnp.sqrt(mean_over_rows((y - mean) ** 2, weights, FINITE)), y)[None]

    def variance(self, eta, extras, trials):
        return bounded_exp(extras[0]) * jnp.ones_like(eta)

    def deviance(self, y, eta, extras, trials):
        return (y - self.mean(eta, extras)) ** 2

    def draw(self, key, eta, extras, trials):
        return self.mean(eta, extras) + bounded_exp(0.5 * extras[0]) * jax.random.normal(key, eta.shape, eta.dtype)

    def cdf(self, y, eta, extras, trials):
        return norm.cdf((y - self.mean(eta, extras)) * bounded_exp(-0.5 * extras[0]))


@dataclass(frozen=True)
class StudentT(OfMean):
    """Numbers with heavy tails: Student's t around mu; the dispersion is its scale sigma, not its standard deviation.

    The second further predictor is log(df), the logarithm of the degrees of freedom. The variance is
    sigma^2 df / (df - 2), infinite where df is 2 or less; where df is 1 or less, the mean is the median.
    """

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("identity", "log")
    extras: ClassVar[tuple[str, ...]] = (DISPERSION, "df")
    weights_are: ClassVar = "precision"
    precision_sign: ClassVar[float] = -0.5

    def log_density(self, y, eta, extras, trials):
        """l = log Gamma((df + 1) / 2) / Gamma(df / 2) - log(pi df sigma^2) / 2 - (df + 1) / 2 log(1 + z^2 / df)."""
        log_scale, log_df = bounded(extras[0]), bounded(extras[1])
        df = jnp.exp(log_df)
        z = (y - bounded_mean(eta, self.link)) * jnp.exp(-log_scale)
        log_half = log_df - math.log(2)
        gammas = log_rising(0.5 * df, log_half, jnp.full_like(df, 0.5))
        return gammas - LOG_SQRT_2PI - log_scale - 0.5 * (df + 1) * jnp.log1p(z * z / df)

    def derivatives(self, y, eta, extras, trials):
        """Closed forms of -(df + 1) / 2 log(1 + u^2), u = z / sqrt(df)."""
        log_scale, log_df = bounded(extras[0]), bounded(extras[1])
        mean = bounded_mean(eta, self.link)
        step = -jnp.exp(-log_scale - 0.5 * log_df)
        u = (mean - y) * step
        r = 1 / (1 + u * u)
        rest = 1 - r
        times_u = u * r
        factor = -0.5 * (jnp.exp(log_df) + 1)
        outer = (
            2 * factor * times_u,
            2 * factor * r * (r - rest),
            4 * factor * r * times_u * (rest - 3 * r),
            -12 * factor * r * r * (rest * rest - 6 * rest * r + r * r),
        )
        inner = (step * mean,) * 4 if self.link == "log" else (step, 0, 0, 0)
        return EtaDerivatives.of(composed(outer, inner))

    def start(self, y, trials):
        """The link of y, kept from where it has none."""
        return start_of_number(y, self.link)

    def start_extras(self, y, mean, trials, weights):
        """A scale by the mean of |y - mu| sqrt(w), and five degrees of freedom."""
        size = mean_over_rows(jnp.abs(y - mean), jnp.sqrt(weights), FINITE)
        return jnp.stack([log_scale_of(size, y), jnp.full_like(size, math.log(5))])

    def variance(self, eta, extras, trials):
        df = bounded_exp(extras[1])
        finite = df > 2
        inflated = jnp.where(finite, df / jnp.where(finite, df - 2, 1), jnp.inf)
        return bounded_exp(2 * extras[0]) * inflated * jnp.ones_like(eta)

    def draw(self, key, eta, extras, trials):
        noise = jax.random.t(key, bounded_exp(extras[1]), eta.shape, eta.dtype)
        return self.mean(eta, extras) + bounded_exp(extras[0]) * noise

    def cdf(self, y, eta, extras, trials):
        return student_cdf((y - self.mean(eta, extras)) * bounded_exp(-extras[0]), bounded_exp(extras[1]))
