"""Proportions that are measured, not counted: the beta distribution."""

from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp

from jmixed.families.chains import FourDerivatives, composed, log_logistic_derivatives, times
from jmixed.families.family import DISPERSION, EtaDerivatives, OfMean
from jmixed.families.gammas import log_gamma_derivatives, log_gamma_rest
from jmixed.families.special import at_least_tiny, bounded, bounded_exp, mean_over_rows, softplus
from jmixed.families.tails import beta_cdf


@dataclass(frozen=True)
class Beta(OfMean):
    """Numbers between 0 and 1 of mean mu and variance mu (1 - mu) / (1 + phi); the dispersion is the precision phi."""

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("logit",)
    extras: ClassVar[tuple[str, ...]] = (DISPERSION,)
    weights_are: ClassVar = "precision"

    def log_density(self, y, eta, extras, trials):
        """phi times minus an entropy of y relative to mu, and what gamma functions of a, b, phi leave beside it."""
        log_phi = bounded(extras[0])
        success, failure = -softplus(-eta), -softplus(eta)
        log_a, log_b = log_phi + success, log_phi + failure
        log_y, log_rest = jnp.log(at_least_tiny(y)), jnp.log(at_least_tiny(1 - y))
        phi, mean, z = jnp.exp(log_phi), jax.nn.sigmoid(eta), log_y - log_rest - eta
        close = jnp.abs(z) < 1
        near = jnp.log1p(mean * jnp.expm1(jnp.where(close, z, 0)))
        apart = mean * z - jnp.where(close, near, failure - log_rest)
        gammas = (
            log_gamma_rest(phi, log_phi) - log_gamma_rest(jnp.exp(log_a), log_a) - log_gamma_rest(jnp.exp(log_b), log_b)
        )
        return phi * apart + gammas + log_a + log_b - log_phi - log_y - log_rest

    def derivatives(self, y, eta, extras, trials):
        """Closed forms, with those of the gamma functions in log a and log b."""
        log_phi = bounded(extras[0])
        log_a, log_b = log_phi - softplus(-eta), log_phi - softplus(eta)
        log_success, log_failure = log_logistic_derivatives(eta)
        gamma_a = composed(log_gamma_derivatives(jnp.exp(log_a), log_a), log_success)
        gamma_b = composed(log_gamma_derivatives(jnp.exp(log_b), log_b), log_failure)
        z = jnp.log(at_least_tiny(y)) - jnp.log(at_least_tiny(1 - y)) - eta
        _, v, slope, bend = (-derivative for derivative in log_failure)
        turned = slope * (1 - 12 * v)
        entropy = FourDerivatives(v * z, slope * z - v, bend * z - 2 * slope, turned * z - 3 * bend)
        return EtaDerivatives.of(times(jnp.exp(log_phi), entropy) - gamma_a - gamma_b)

    def start(self, y, trials):
        """The logit of y, kept from 0 and 1."""
        return self.link_function.predictor(jnp.clip(y, 0.001, 0.999))

    def start_extras(self, y, mean, trials, weights):
        """From the mean of w (y - mu)^2 / (mu (1 - mu)), which is near 1 / (1 + phi)."""
        share = mean_over_rows((y - mean) ** 2 / (mean * (1 - mean)), weights, (1e-4, 0.5))
        return jnp.log(1 / share - 1)[None]

    def check(self, y, trials):
        bad = ~((y > 0) & (y < 1))
        return ("proportions are above 0 and below 1", bad) if bad.any() else None

    def variance(self, eta, extras, trials):
        return jax.nn.sigmoid(eta) * jax.nn.sigmoid(-eta) / (1 + bounded_exp(extras[0]))

    def draw(self, key, eta, extras, trials):
        phi = bounded_exp(extras[0])
        p = jax.random.beta(key, phi * jax.nn.sigmoid(eta), phi * jax.nn.sigmoid(-eta), eta.shape, eta.dtype)
        return jnp.clip(p, float(jnp.finfo(p.dtype).tiny), 1 - float(jnp.finfo(p.dtype).epsneg))

    def cdf(self, y, eta, extras, trials):
        phi = bounded_exp(extras[0])
        return beta_cdf(y, phi * jax.nn.sigmoid(eta), phi * jax.nn.sigmoid(-eta))
