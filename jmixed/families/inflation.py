"""Counts with more zeros than their distribution has."""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.errors import ModelError
from jmixed.families.chains import composed
from jmixed.families.counts import Poisson
from jmixed.families.family import INFLATION, EtaDerivatives, Family
from jmixed.families.special import ratio_of_sums, softplus


@dataclass(frozen=True)
class ZeroInflated(Family):
    """Zero with a probability of its own, and otherwise a count of a family; the logit of it is a further predictor.

    Attributes
    ----------
    family : Family
        The distribution of the counts, zeros among them; its link is the link.
    """

    link: str = field(default="", init=False)
    family: Family = field(default_factory=Poisson)

    def __post_init__(self):
        inner = self.family
        if inner.response == "categories" or inner.weights_are == "precision" or INFLATION in inner.extras:
            raise ModelError(f"the family {inner.name} cannot have zeros of its own: only counts and successes can")
        object.__setattr__(self, "link", inner.link)
        object.__setattr__(self, "response", inner.response)

    @property
    def name(self) -> str:
        return f"ZeroInflated({self.family.name})"

    @property
    def extras(self):
        return (*self.family.extras, INFLATION)

    def log_density(self, y, eta, extras, trials):
        """log((1 - p) f(y) + p [y = 0]), p / (1 - p) = exp(theta)."""
        count = self.family.log_density(y, eta, extras[:-1], trials)
        return jnp.where(y == 0, jnp.logaddexp(count, extras[-1]), count) - softplus(extras[-1])

    def derivatives(self, y, eta, extras, trials):
        """Those of the count; at zero, of a logistic function of its log density."""
        count = self.family.derivatives(y, eta, extras[:-1], trials)
        apart = self.family.log_density(y, eta, extras[:-1], trials) - extras[-1]
        share = jax.nn.sigmoid(apart)
        v = share * jax.nn.sigmoid(-apart)
        # A count of zero that is all but impossible has derivatives without bound.
        of_count = (count.score, -count.weight, -count.slope, -count.bend)
        possible = tuple(jnp.where(v > 0, derivative, 0) for derivative in of_count)
        at_zero = composed((share, v, v * (1 - 2 * share), v * (1 - 6 * v)), possible)
        return EtaDerivatives.of(tuple(jnp.where(y == 0, a, b) for a, b in zip(at_zero, of_count, strict=True)))

    def start(self, y, trials):
        """The start of the family."""
        return self.family.start(y, trials)

    def start_extras(self, y, mean, trials, weights):
        """The family's, and the logit of the share of zeros beyond those that the family would have."""
        theta = self.family.start_extras(y, mean, trials, weights)
        eta = self.family.link_function.predictor(mean)
        expected = jnp.exp(self.family.log_density(jnp.zeros_like(y), eta, theta, trials))
        share = ratio_of_sums(
            jnp.where(weights > 0, weights * (jnp.where(y == 0, 1, 0) - expected), 0),
            jnp.where(weights > 0, weights * (1 - expected), 0),
            (0.05, 0.9),
        )
        return jnp.append(theta, jnp.log(share) - jnp.log1p(-share))

    def check(self, y: np.ndarray, trials: np.ndarray) -> tuple[str, np.ndarray] | None:
        return self.family.check(y, trials)

    def count_mean(self, eta: Any, extras: Any) -> Any:
        """Mean of the counts without the zeros of their own."""
        return self.family.mean(eta, extras[:-1])

    def observation_variance(self, mean, extras, trials):
        """By the logarithm of 1 + variance / mean^2, of the mean of all responses; other links have none."""
        if self.link != "log":
            raise self.lacks("a variance on the scale of the linear predictor", "R2 and intraclass correlations")
        eta = self.family.link_function.predictor(mean / jax.nn.sigmoid(-extras[-1]))
        return jnp.log1p(self.variance(eta, extras, trials) / mean**2)

    def mean(self, eta, extras):
        """(1 - p) mu, of all responses."""
        return jax.nn.sigmoid(-extras[-1]) * self.count_mean(eta, extras)

    def variance(self, eta, extras, trials):
        mean, p = self.count_mean(eta, extras), jax.nn.sigmoid(extras[-1])
        return (1 - p) * (self.family.variance(eta, extras[:-1], trials) + p * mean**2)

    def draw(self, key, eta, extras, trials):
        of_zero, of_count = jax.random.split(key)
        zero = jax.random.bernoulli(of_zero, jax.nn.sigmoid(extras[-1]), eta.shape)
        return jnp.where(zero, 0, self.family.draw(of_count, eta, extras[:-1], trials))

    def cdf(self, y, eta, extras, trials):
        p = jax.nn.sigmoid(extras[-1])
        return jnp.where(y < 0, 0, p + (1 - p) * self.family.cdf(y, eta, extras[:-1], trials))
