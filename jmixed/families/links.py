"""Link functions: the mean of a response from the linear predictor, and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jax.scipy.stats import norm


@dataclass(frozen=True)
class Link:
    """A link: ``predictor(mean)`` is eta, ``mean(eta)`` its inverse; both elementwise."""

    predictor: Callable[[Any], Any]
    mean: Callable[[Any], Any]


LINKS: dict[str, Link] = {
    "identity": Link(lambda mean: mean, lambda eta: eta),
    "log": Link(jnp.log, jnp.exp),
    "inverse": Link(lambda mean: 1 / mean, lambda eta: 1 / eta),
    "sqrt": Link(jnp.sqrt, jnp.square),
    "logit": Link(lambda mean: jnp.log(mean) - jnp.log1p(-mean), jax.nn.sigmoid),
    "probit": Link(ndtri, norm.cdf),
    "cloglog": Link(lambda mean: jnp.log(-jnp.log1p(-mean)), lambda eta: -jnp.expm1(-jnp.exp(eta))),
}
"""Links by name."""
