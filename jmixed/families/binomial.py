"""Successes of a number of trials."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc

from jmixed.families.chains import composed, log_logistic_derivatives, times
from jmixed.families.family import DISPERSION, EtaDerivatives, OfMean
from jmixed.families.gammas import log_choose, log_rising, log_rising_derivatives
from jmixed.families.normal import log_ndtr, log_ndtr_derivatives
from jmixed.families.special import (
    bounded,
    bounded_exp,
    log1m_exp_minus,
    logistic,
    ratio_of_sums,
    relative_entropy,
    softplus,
)


@dataclass(frozen=True)
class Successes(OfMean):
    """What successes of a number of trials have in common; their mean is the probability of one."""

    response: ClassVar = "successes"

    def start(self, y, trials):
        """The link of (y + 1/2) / (m + 1)."""
        return self.link_function.predictor((y + 0.5) / (trials + 1))

    def check(self, y: np.ndarray, trials: np.ndarray) -> tuple[str, np.ndarray] | None:
        bad = ~((trials >= 1) & (trials == np.round(trials)))
        if bad.any():
            return "numbers of trials are whole and at least 1", bad
        bad = ~((y >= 0) & (y <= trials) & (y == np.round(y)))
        return ("successes are whole numbers from 0 to the number of trials", bad) if bad.any() else None


@dataclass(frozen=True)
class Binomial(Successes):
    """Successes among independent trials of one probability: logit, probit or cloglog of it is linear."""

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("logit", "probit", "cloglog")

    def log_probabilities(self, eta: Any) -> tuple[Any, Any]:
        """log p and log(1 - p)."""
        if self.link == "logit":
            return -softplus(-eta), -softplus(eta)
        if self.link == "probit":
            return log_ndtr(eta), log_ndtr(-eta)
        hazard = bounded_exp(eta)
        return log1m_exp_minus(hazard, eta), -hazard

    @property
    def is_log_concave(self) -> bool:
        return True

    def recession(self, y: np.ndarray, trials: np.ndarray) -> np.ndarray | None:
        return (y == trials).astype(int) - (y == 0)

    def log_density(self, y, eta, extras, trials):
        """l = log choose(m, y) + y log p + (m - y) log(1 - p)."""
        return self.log_constant(y, trials) + self.log_kernel(y, eta, extras, trials)

    def log_constant(self, y, trials):
        """log choose(m, y): of single trials it is zero, for which no gamma function is needed."""
        trials, y = jnp.broadcast_arrays(trials, y)
        return jax.lax.cond(jnp.any(trials > 1), log_choose, lambda trials, y: jnp.zeros_like(y), trials, y)

    def log_kernel(self, y, eta, extras, trials):
        if self.link == "logit":
            return y * eta - trials * softplus(eta)
        success, failure = self.log_probabilities(eta)
        return y * success + (trials - y) * failure

    def derivatives(self, y, eta, extras, trials):
        """Closed forms; of the logit, W = m p (1 - p)."""
        if self.link == "logit":
            p, q, v = logistic(eta)
            weight = trials * v
            return EtaDerivatives(y - trials * p, weight, weight * (q - p), weight * (1 - 6 * v))
        if self.link == "probit":
            turned = composed(log_ndtr_derivatives(-eta), (-1, 0, 0, 0))
            return EtaDerivatives.of(times(y, log_ndtr_derivatives(eta)) + times(trials - y, turned))
        return self._hazard_derivatives(y, eta, trials)

    def _hazard_derivatives(self, y, eta, trials):
        """Of y A - (m - y) h, h = exp(eta): A = log(1 - exp(-h)) has A' = h / (exp(h) - 1) = a and A'' = -a b."""
        hazard = bounded_exp(eta)
        h = jnp.minimum(hazard, 1000)
        a = h / jnp.expm1(h)
        small = h < 0.5
        s = jnp.where(small, h, 0)
        s2 = s * s
        # a + h - 1 by Bernoulli's numbers, where its terms cancel.
        series = s2 * (1 / 12 - s2 * (1 / 720 - s2 * (1 / 30240 - s2 * (1 / 1209600 - s2 / 47900160))))
        b = jnp.where(small, s / 2 + series, a + h - 1)
        bend = b * (a + b) - h
        third = a * bend
        fourth = -a * b * bend + a * ((h - a * b) * (a + b) + b * (h - 2 * a * b) - h)
        rest = (trials - y) * hazard
        return EtaDerivatives(y * a - rest, y * a * b + rest, rest - y * third, rest - y * fourth)

    def variance(self, eta, extras, trials):
        success, failure = self.log_probabilities(eta)
        return jnp.exp(success + failure) / trials

    def observation_variance(self, mean, extras, trials):
        """That of a logistic, a normal or a Gumbel variable, of which a success says on which side of eta it is."""
        latent = {"logit": math.pi**2 / 3, "probit": 1.0, "cloglog": math.pi**2 / 6}
        return jnp.full_like(mean, latent[self.link])

    def deviance(self, y, eta, extras, trials):
        success, failure = self.log_probabilities(eta)
        log_trials = jnp.log(trials)
        successes, failures = success + log_trials, failure + log_trials
        return 2 * (
            relative_entropy(y, jnp.exp(successes), successes)
            + relative_entropy(trials - y, jnp.exp(failures), failures)
        )

    def draw(self, key, eta, extras, trials):
        return jax.random.binomial(key, trials, self.mean(eta, extras), dtype=eta.dtype)

    def cdf(self, y, eta, extras, trials):
        """By the incomplete beta function, where it is neither zero nor one."""
        y = jnp.floor(y)
        inside = (y >= 0) & (y < trials)
        failures, successes = jnp.where(inside, trials - y, 1), jnp.where(inside, y, 0)
        below = betainc(failures, successes + 1, jnp.exp(self.log_probabilities(eta)[1]))
        return jnp.where(inside, below, jnp.where(y < 0, 0, 1))


@dataclass(frozen=True)
class BetaBinomial(Successes):
    """Successes among trials whose probability is drawn from a beta distribution of mean mu and precision phi.

    The dispersion is phi: the probabilities have variance mu (1 - mu) / (1 + phi), so that a large phi is near the
    binomial distribution.
    """

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("logit",)
    extras: ClassVar[tuple[str, ...]] = (DISPERSION,)

    def recession(self, y: np.ndarray, trials: np.ndarray) -> np.ndarray | None:
        return (y == trials).astype(int) - (y == 0)

    def log_density(self, y, eta, extras, trials):
        """The binomial one with ratios of gamma functions, a = mu phi and b = (1 - mu) phi."""
        log_phi = bounded(extras[0])
        success, failure = -softplus(-eta), -softplus(eta)
        log_a, log_b = log_phi + success, log_phi + failure
        return (
            log_choose(trials, y)
            + y * success
            + (trials - y) * failure
            + log_rising(jnp.exp(log_a), log_a, y)
            + log_rising(jnp.exp(log_b), log_b, trials - y)
            - log_rising(jnp.exp(log_phi), log_phi, trials)
        )

    def derivatives(self, y, eta, extras, trials):
        """Closed forms: the binomial ones, and those of the ratios in log a and log b."""
        log_phi, failures = bounded(extras[0]), trials - y
        log_a, log_b = log_phi - softplus(-eta), log_phi - softplus(eta)
        log_success, log_failure = log_logistic_derivatives(eta)
        rising_a = composed(log_rising_derivatives(jnp.exp(log_a), log_a, y), log_success)
        rising_b = composed(log_rising_derivatives(jnp.exp(log_b), log_b, failures), log_failure)
        return EtaDerivatives.of(times(y, log_success) + times(failures, log_failure) + rising_a + rising_b)

    def start_extras(self, y, mean, trials, weights):
        """From Pearson's statistic, whose mean is 1 + (m - 1) / (phi + 1)."""
        pearson = (y - trials * mean) ** 2 / (trials * mean * (1 - mean))
        share = ratio_of_sums(weights * (pearson - 1), weights * (trials - 1), (0.01, 0.5))
        return jnp.log(1 / share - 1)[None]

    def variance(self, eta, extras, trials):
        v = jax.nn.sigmoid(eta) * jax.nn.sigmoid(-eta)
        return v / trials * (1 + (trials - 1) / (1 + bounded_exp(extras[0])))

    def observation_variance(self, mean, extras, trials):
        """That of a logistic variable, and of the logit of the drawn probability by the delta method."""
        return math.pi**2 / 3 + 1 / ((1 + bounded_exp(extras[0])) * mean * (1 - mean))

    def draw(self, key, eta, extras, trials):
        of_probability, of_successes = jax.random.split(key)
        phi = bounded_exp(extras[0])
        p = jax.random.beta(of_probability, phi * jax.nn.sigmoid(eta), phi * jax.nn.sigmoid(-eta), dtype=eta.dtype)
        return jax.random.binomial(of_successes, trials, p, dtype=eta.dtype)

    def cdf(self, y, eta, extras, trials):
        """The sum of the probabilities up to y, in as many steps as the largest y."""

        def step(k, total):
            at = jnp.full_like(y, k)
            inside = at <= jnp.minimum(y, trials)
            return total + jnp.where(inside, jnp.exp(self.log_density(jnp.minimum(at, trials), eta, extras, trials)), 0)

        steps = jnp.max(jnp.minimum(y, trials)).astype(int) + 1
        total = jax.lax.fori_loop(0, steps, step, jnp.zeros_like(y * eta))
        return jnp.where(y >= trials, 1, jnp.minimum(total, 1))
