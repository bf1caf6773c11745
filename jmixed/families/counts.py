"""Counts: Poisson, and negative binomial ones, whose variance exceeds the mean by a square or a share of it."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaincc, gammaln

from jmixed.families.chains import FourDerivatives
from jmixed.families.family import DISPERSION, EtaDerivatives, OfMean
from jmixed.families.gammas import log_rising, log_rising_derivatives
from jmixed.families.special import (
    at_least_tiny,
    bounded,
    bounded_exp,
    ratio_of_sums,
    relative_entropy,
    softplus,
)
from jmixed.families.tails import negative_binomial_cdf


def draw_poisson(key: Any, mean: Any, dtype: Any) -> Any:
    """Poisson counts as floats, of means that 32-bit integers have room for."""
    return jax.random.poisson(key, jnp.minimum(mean, 1e9)).astype(dtype)


@dataclass(frozen=True)
class Count(OfMean):
    """What counts have in common."""

    links: ClassVar[tuple[str, ...]] = ("log",)

    def start(self, y, trials):
        """log(y + 1/2)."""
        return jnp.log(y + 0.5)

    def recession(self, y: np.ndarray, trials: np.ndarray) -> np.ndarray | None:
        return -(y == 0).astype(int) if self.link == "log" else None

    def check(self, y: np.ndarray, trials: np.ndarray) -> tuple[str, np.ndarray] | None:
        bad = ~((y >= 0) & (y == np.round(y)))
        return ("counts are whole numbers, zero or more", bad) if bad.any() else None

    def cdf(self, y, eta, extras, trials):
        floor = jnp.floor(y)
        return jnp.where(floor < 0, 0, self.cdf_of_count(jnp.maximum(floor, 0), eta, extras))

    @abstractmethod
    def cdf_of_count(self, y: Any, eta: Any, extras: Any) -> Any:
        """The probability of a count of y or less, y a whole number."""


@dataclass(frozen=True)
class Poisson(Count):
    """Counts whose variance is their mean."""

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("log", "sqrt", "identity")

    @property
    def is_log_concave(self) -> bool:
        return self.link == "log"

    def log_density(self, y, eta, extras, trials):
        """l = y log mu - mu - log y!; a mean below zero has no density."""
        return self.log_constant(y, trials) + self.log_kernel(y, eta, extras, trials)

    def log_constant(self, y, trials):
        """-log y!."""
        return -gammaln(y + 1)

    def log_kernel(self, y, eta, extras, trials):
        if self.link == "log":
            return y * eta - bounded_exp(eta)
        if self.link == "sqrt":
            return y * jnp.log(at_least_tiny(eta * eta)) - eta * eta
        inside = eta > 0
        mean = jnp.where(inside, eta, 1)
        return jnp.where(inside, y * jnp.log(mean) - mean, -jnp.inf)

    def derivatives(self, y, eta, extras, trials):
        """Closed forms; of the log link, W = r = q = exp(eta)."""
        if self.link == "log":
            mean = bounded_exp(eta)
            return EtaDerivatives(y - mean, mean, mean, mean)
        return super().derivatives(y, eta, extras, trials)

    def variance(self, eta, extras, trials):
        return self.mean(eta, extras)

    def deviance(self, y, eta, extras, trials):
        mean = self.mean(eta, extras)
        log_mean = eta if self.link == "log" else jnp.log(at_least_tiny(mean))
        return 2 * relative_entropy(y, mean, log_mean)

    def draw(self, key, eta, extras, trials):
        return draw_poisson(key, self.mean(eta, extras), eta.dtype)

    def cdf_of_count(self, y, eta, extras):
        return gammaincc(y + 1, self.mean(eta, extras))


@dataclass(frozen=True)
class NegativeBinomial(Count):
    """Counts of variance mu + mu^2 / size (NB2); the dispersion is the size: a large one is near Poisson."""

    link: str = ""
    extras: ClassVar[tuple[str, ...]] = (DISPERSION,)

    @property
    def is_log_concave(self) -> bool:
        return True

    def log_density(self, y, eta, extras, trials):
        """The Poisson one with log Gamma(size + y) / (Gamma(size) size^y) and (1 + mu / size)^-(size + y)."""
        log_size = bounded(extras[0])
        size = jnp.exp(log_size)
        return y * eta - (size + y) * softplus(eta - log_size) + log_rising(size, log_size, y) - gammaln(y + 1)

    def derivatives(self, y, eta, extras, trials):
        """Those of size + y trials whose probability is mu / (mu + size)."""
        log_size = bounded(extras[0])
        apart = eta - log_size
        p, trials = jax.nn.sigmoid(apart), jnp.exp(log_size) + y
        v = p * jax.nn.sigmoid(-apart)
        weight = trials * v
        return EtaDerivatives(y - trials * p, weight, weight * (1 - 2 * p), weight * (1 - 6 * v))

    def start_extras(self, y, mean, trials, weights):
        """From the mean of (y - mu)^2 - mu, which is mu^2 / size."""
        return -jnp.log(ratio_of_sums(weights * ((y - mean) ** 2 - mean), weights * mean**2, (0.01, 10.0)))[None]

    def variance(self, eta, extras, trials):
        mean = jnp.exp(eta)
        return mean + mean**2 / bounded_exp(extras[0])

    def deviance(self, y, eta, extras, trials):
        log_size, mean = bounded(extras[0]), bounded_exp(eta)
        size = jnp.exp(log_size)
        rest = relative_entropy(y + size, mean + size, jnp.logaddexp(bounded(eta), log_size))
        return 2 * jnp.maximum(relative_entropy(y, mean, bounded(eta)) - rest, 0)

    def draw(self, key, eta, extras, trials):
        of_mean, of_count = jax.random.split(key)
        size = bounded_exp(extras[0])
        mean = jnp.exp(eta - jnp.log(size) + jax.random.loggamma(of_mean, size, eta.shape, eta.dtype))
        return draw_poisson(of_count, mean, eta.dtype)

    def cdf_of_count(self, y, eta, extras):
        return negative_binomial_cdf(y, bounded_exp(eta), bounded_exp(extras[0]))


@dataclass(frozen=True)
class NegativeBinomial1(Count):
    """Counts of variance mu (1 + phi) (NB1); the dispersion is phi: a small one is near Poisson."""

    link: str = ""
    precision_sign: ClassVar[float] = -1.0
    extras: ClassVar[tuple[str, ...]] = (DISPERSION,)

    def _sizes(self, eta, extras):
        """log phi, and mu / phi after its logarithm."""
        log_phi = bounded(extras[0])
        log_size = bounded(eta) - log_phi
        return log_phi, log_size, jnp.exp(log_size)

    def log_density(self, y, eta, extras, trials):
        """As of NB2, of a size mu / phi."""
        log_phi, log_size, size = self._sizes(eta, extras)
        return y * eta - (size + y) * softplus(log_phi) + log_rising(size, log_size, y) - gammaln(y + 1)

    def derivatives(self, y, eta, extras, trials):
        """Closed forms, with those of the ratio in log size."""
        log_phi, log_size, size = self._sizes(eta, extras)
        rising, mean = log_rising_derivatives(size, log_size, y), size * softplus(log_phi)
        return EtaDerivatives.of(rising + FourDerivatives(y - mean, -mean, -mean, -mean))

    def start_extras(self, y, mean, trials, weights):
        """From the mean of (y - mu)^2 / mu - 1, which is phi."""
        return jnp.log(ratio_of_sums(weights * ((y - mean) ** 2 / mean - 1), weights, (0.01, 10.0)))[None]

    def variance(self, eta, extras, trials):
        return jnp.exp(eta) * (1 + bounded_exp(extras[0]))

    def draw(self, key, eta, extras, trials):
        of_mean, of_count = jax.random.split(key)
        log_phi = bounded(extras[0])
        size = bounded_exp(eta - log_phi)
        mean = jnp.exp(log_phi + jax.random.loggamma(of_mean, size, eta.shape, eta.dtype))
        return draw_poisson(of_count, mean, eta.dtype)

    def cdf_of_count(self, y, eta, extras):
        return negative_binomial_cdf(y, bounded_exp(eta), bounded_exp(eta - bounded(extras[0])))
