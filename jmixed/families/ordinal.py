"""Categories in their order, by thresholds on the scale of the linear predictor."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jax.scipy.stats import norm

from jmixed.errors import ModelError
from jmixed.families.chains import composed, log_logistic_derivatives
from jmixed.families.family import EtaDerivatives, Family
from jmixed.families.normal import log_ndtr_between, log_ndtr_between_derivatives
from jmixed.families.special import bounded, bounded_exp, log1m_exp_minus, softplus


@dataclass(frozen=True)
class Ordinal(Family):
    """Categories 0, ..., J - 1 of a cumulative model: P(y <= j) = F(alpha_{j+1} - eta), F logistic or normal.

    The further predictors are the first threshold and the logarithms of the distances from each to the next.

    Attributes
    ----------
    categories : int
        The number J of categories, which a model sets.
    """

    link: str = ""
    categories: int = 0
    links: ClassVar[tuple[str, ...]] = ("logit", "probit")
    response: ClassVar = "categories"

    @property
    def extras(self):
        return tuple(f"threshold {k}" for k in range(1, self.categories))

    def thresholds(self, extras: Any) -> Any:
        """alpha (J - 1, ...), from low to high."""
        return jnp.cumsum(jnp.concatenate([extras[:1], bounded_exp(extras[1:])]), 0)

    def _ends(self, y, extras):
        """The thresholds below and above each category, the log of their distance, and which of them there are."""
        alpha, last = self.thresholds(extras), len(extras)
        upper, lower, log_gap = (jnp.zeros_like(y * extras[0]) for _ in range(3))
        for k in range(last):
            upper = jnp.where(y == k, alpha[k], upper)
            lower = jnp.where(y == k + 1, alpha[k], lower)
        for k in range(1, last):
            log_gap = jnp.where(y == k, bounded(extras[k]), log_gap)
        return lower, upper, log_gap, y > 0, y < last

    @property
    def is_log_concave(self) -> bool:
        return True

    def recession(self, y: np.ndarray, trials: np.ndarray) -> np.ndarray | None:
        return (y == self.categories - 1).astype(int) - (y == 0)

    def log_density(self, y, eta, extras, trials):
        """log F(upper - eta) - F(lower - eta), by the tail in which they are."""
        lower, upper, log_gap, has_lower, has_upper = self._ends(y, extras)
        gap, inner = jnp.exp(log_gap), has_lower & has_upper
        if self.link == "logit":
            below = jnp.where(has_upper, -softplus(eta - upper), 0)
            above = jnp.where(has_lower, -softplus(lower - eta), 0)
            return below + above + jnp.where(inner, log1m_exp_minus(gap, log_gap), 0)
        return log_ndtr_between(jnp.where(has_upper, upper - eta, eta - lower), gap, log_gap, ~inner)

    def derivatives(self, y, eta, extras, trials):
        """Closed forms; of the logit, those of two logistic terms."""
        lower, upper, log_gap, has_lower, has_upper = self._ends(y, extras)
        if self.link == "probit":
            side = jnp.where(has_upper, -1.0, 1.0).astype(eta.dtype)
            x = jnp.where(has_upper, upper - eta, eta - lower)
            in_x = log_ndtr_between_derivatives(x, jnp.exp(log_gap), ~(has_lower & has_upper))
            return EtaDerivatives.of(composed(in_x, (side, 0, 0, 0)))
        totals = [0, 0, 0, 0]
        for threshold, there, side in ((lower, has_lower, 0), (upper, has_upper, 1)):
            terms = log_logistic_derivatives(eta - threshold)[side]
            totals = [total + jnp.where(there, term, 0) for total, term in zip(totals, terms, strict=True)]
        return EtaDerivatives.of(tuple(totals))

    def start_extras(self, y, mean, trials, weights):
        """Thresholds by the shares of the categories, each of which has half a row more."""
        levels = jnp.arange(self.categories, dtype=y.dtype)
        counts = jnp.sum(jnp.where(y[None] == levels[:, None], weights[None], 0), 1) + 0.5
        shares = jnp.cumsum(counts)[:-1] / jnp.sum(counts)
        alpha = ndtri(shares) if self.link == "probit" else jnp.log(shares) - jnp.log1p(-shares)
        return jnp.concatenate([alpha[:1], jnp.log(jnp.diff(alpha))])

    def check(self, y: np.ndarray, trials: np.ndarray) -> tuple[str, np.ndarray] | None:
        bad = ~((y >= 0) & (y < self.categories) & (y == np.round(y)))
        return (f"categories are coded 0 to {self.categories - 1}", bad) if bad.any() else None

    def probabilities(self, eta: Any, extras: Any) -> Any:
        """Probabilities (..., J) of the categories."""
        codes = [jnp.full_like(eta, k) for k in range(len(extras) + 1)]
        return jnp.exp(jnp.stack([self.log_density(code, eta, extras, None) for code in codes], -1))

    def mean(self, eta, extras):
        """Refused: categories have probabilities and no mean."""
        raise ModelError('categories have no mean: ask for their probabilities, kind="probability"')

    def draw(self, key, eta, extras, trials):
        noise = jax.random.normal if self.link == "probit" else jax.random.logistic
        latent = eta + noise(key, eta.shape, eta.dtype)
        return sum(jnp.where(latent > alpha, 1.0, 0.0).astype(eta.dtype) for alpha in self.thresholds(extras))

    def cdf(self, y, eta, extras, trials):
        floor, last = jnp.floor(y), len(extras)
        _, upper, _, _, _ = self._ends(floor, extras)
        below = norm.cdf(upper - eta) if self.link == "probit" else jax.nn.sigmoid(upper - eta)
        return jnp.where(floor < 0, 0, jnp.where(floor < last, below, 1))

    def observation_variance(self, mean, extras, trials):
        """That of F."""
        return jnp.full_like(mean, 1.0 if self.link == "probit" else np.pi**2 / 3)
