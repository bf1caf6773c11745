"""Positive numbers: the gamma distribution."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jmixed.families.family import DISPERSION, EtaDerivatives, OfMean
from jmixed.families.gammas import log_gamma_rest
from jmixed.families.special import at_least_tiny, bounded, bounded_exp, mean_over_rows, relative_entropy
from jmixed.families.tails import gamma_cdf


@dataclass(frozen=True)
class Gamma(OfMean):
    """Positive numbers of mean mu and variance mu^2 / shape; the dispersion is the shape."""

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("log", "inverse")
    extras: ClassVar[tuple[str, ...]] = (DISPERSION,)
    weights_are: ClassVar = "precision"

    @property
    def is_log_concave(self) -> bool:
        return self.link == "log"

    def log_density(self, y, eta, extras, trials):
        """l = shape (z - exp(z) + 1) - log y + c(shape), z = log(y / mu); a mean below zero has no density."""
        log_y, log_shape = jnp.log(at_least_tiny(y)), bounded(extras[0])
        shape = jnp.exp(log_shape)
        rest = log_shape - log_gamma_rest(shape, log_shape) - log_y
        inside = eta > 0
        z = log_y - eta if self.link == "log" else log_y + jnp.log(jnp.where(inside, eta, 1))
        density = shape * (z - jnp.expm1(bounded(z))) + rest
        return density if self.link == "log" else jnp.where(inside, density, -jnp.inf)

    def derivatives(self, y, eta, extras, trials):
        """Closed forms; of the log link, W = q = -r = shape y / mu."""
        shape = bounded_exp(extras[0])
        if self.link == "log":
            z = bounded(jnp.log(at_least_tiny(y)) - eta)
            weight = shape * jnp.exp(z)
            return EtaDerivatives(shape * jnp.expm1(z), weight, -weight, weight)
        mean = 1 / jnp.where(eta > 0, eta, 1)
        weight = shape * mean * mean
        return EtaDerivatives(shape * (mean - y), weight, -2 * weight * mean, 6 * weight * mean * mean)

    def start(self, y, trials):
        """The link of y."""
        return self.link_function.predictor(at_least_tiny(y))

    def start_extras(self, y, mean, trials, weights):
        """From the mean of w (y / mu - 1)^2, which is 1 / shape."""
        return -jnp.log(mean_over_rows((y / mean - 1) ** 2, weights, (1e-4, 10.0)))[None]

    def check(self, y, trials):
        bad = ~(y > 0)
        return ("numbers are above zero", bad) if bad.any() else None

    def variance(self, eta, extras, trials):
        return self.mean(eta, extras) ** 2 / bounded_exp(extras[0])

    def deviance(self, y, eta, extras, trials):
        ratio = at_least_tiny(y / self.mean(eta, extras))
        return 2 * relative_entropy(jnp.ones_like(ratio), ratio, jnp.log(ratio))

    def draw(self, key, eta, extras, trials):
        log_shape = bounded(extras[0])
        standard = jax.random.loggamma(key, jnp.exp(log_shape), eta.shape, eta.dtype)
        return at_least_tiny(self.mean(eta, extras) * jnp.exp(standard - log_shape))

    def cdf(self, y, eta, extras, trials):
        return gamma_cdf(jnp.maximum(y, 0) / self.mean(eta, extras), bounded_exp(extras[0]))
