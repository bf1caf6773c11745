"""The contract of a family: all that the rest of the package asks of the distribution of a response.

A response y_i has, given the linear predictor eta_i, the log density l(y_i, eta_i, theta_i), with further predictors
theta_i = (theta_i1, ..., theta_iu) on the whole real line that the family names in `extras`: the log of a dispersion, a
logit of zero inflation, thresholds of an ordinal response. Each is linear in coefficients kappa of its own columns;
where nothing varies by row, of a column of ones.

A likelihood needs the derivatives of l in eta,

    score s = l'     weight W = -l''     slope r = -l''' = dW/deta     bend q = -l'''' = d2W/deta2,

the observed information and not the expected one, and derivatives of these in theta, which JAX takes. The definitions
here take all of them from `log_density`, which is all that a family must have; what people see of a response (its mean,
its variance, draws of it) is refused by name where a family does not define it.

A family is one file: a frozen dataclass without arrays, and a line in `jmixed.families.registry`. Everything is
elementwise over arrays of rows, and may be traced by JAX; arrays `extras` are (u, ...).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.errors import ModelError
from jmixed.families.links import LINKS, Link

DISPERSION, INFLATION = "dispersion", "zero"
"""Names of the further predictors that a formula may state."""


class EtaDerivatives(NamedTuple):
    """Derivatives of a log density in the linear predictor: l', -l'', -l''', -l''''."""

    score: Any
    weight: Any
    slope: Any
    bend: Any

    @classmethod
    def of(cls, derivatives: tuple) -> "EtaDerivatives":
        """Of the first four derivatives, with their signs turned from the second on."""
        first, second, third, fourth = derivatives
        return cls(first, -second, -third, -fourth)


@dataclass(frozen=True)
class Family(ABC):
    """The distribution of a response given its linear predictor.

    A family of your own is a subclass, a frozen dataclass, with `log_density`; `extras`, `mean` and what else it has
    are definitions beside it.

    Attributes
    ----------
    link : str
        Name of the link, of those in `links`.
    links : tuple of str
        Links that the family has; the first is the one by default.
    response : str
        What the left-hand side of a formula is: "numbers"; "successes" of a number of trials; "categories" in order.
    extras : tuple of str
        Names of the further predictors theta: `DISPERSION`, `INFLATION`, or names of the family's own.
    weights_are : str
        What weights multiply: "factors", the log density; "precision", the precision of a response.
    precision_sign : float
        Weights w of "precision" add so many times log(w) to the log dispersion: 1 where it is a precision, -1 where it
        is a variance, -1/2 where it is a scale.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> import jax.numpy as jnp, jmixed as jm
    >>> @dataclass(frozen=True)
    ... class Exponential(jm.families.Family):
    ...     links = ("log",)
    ...     link: str = "log"
    ...
    ...     def log_density(self, y, eta, extras, trials):
    ...         return -eta - y * jnp.exp(-eta)
    """

    link: str = ""
    links: ClassVar[tuple[str, ...]] = ("identity",)
    response: ClassVar[Literal["numbers", "successes", "categories"]] = "numbers"
    weights_are: ClassVar[Literal["factors", "precision"]] = "factors"
    precision_sign: ClassVar[float] = 1.0
    extras: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self):
        if not self.link:
            object.__setattr__(self, "link", self.links[0])
        if self.link not in self.links:
            raise ModelError(
                f"the link of {type(self).__name__} is {self.link!r}; it must be one of {', '.join(self.links)}"
            )

    @property
    def name(self) -> str:
        """What messages and tables call the family."""
        return type(self).__name__

    @property
    def is_log_concave(self) -> bool:
        """Whether l is known to be concave in eta whatever the response, so that W is never negative."""
        return False

    # ---- the likelihood ----

    @abstractmethod
    def log_density(self, y, eta, extras, trials) -> Any:
        """l of a row, with all constants; `extras` (u, ...) is theta, `trials` a number of trials or one."""

    def log_constant(self, y, trials) -> Any:
        """Terms of l that depend on the response alone, which are worked out once; none unless a family has them."""
        return jnp.zeros_like(y)

    def log_kernel(self, y, eta, extras, trials) -> Any:
        """l less `log_constant`."""
        return self.log_density(y, eta, extras, trials)

    def derivatives(self, y, eta, extras, trials) -> EtaDerivatives:
        """Derivatives of `log_density` in eta, by nested forward mode; a family may know closed forms."""
        ones = jnp.ones_like(eta)

        def slope_of(function: Callable) -> Callable:
            return lambda at: jax.jvp(function, (at,), (ones,))[1]

        first = slope_of(lambda at: self.log_density(y, at, extras, trials))
        second = slope_of(first)
        third = slope_of(second)
        return EtaDerivatives.of((first(eta), second(eta), third(eta), slope_of(third)(eta)))

    # ---- starts ----

    def start(self, y, trials) -> Any:
        """A linear predictor for each row by itself, kept away from where it would be infinite."""
        return jnp.zeros_like(y)

    def start_extras(self, y, mean, trials, weights) -> Any:
        """theta (u,) to start from, the same in all rows.

        `mean` is the inverse link of linear predictors that do not know of random effects; rows of weight zero do not
        count.
        """
        return jnp.zeros((len(self.extras),), y.dtype)

    # ---- what people give ----

    def check(self, y: np.ndarray, trials: np.ndarray) -> tuple[str, np.ndarray] | None:
        """What responses are out of range, if some are: what the family allows, and a mask (n,) of the others."""
        return None

    def recession(self, y: np.ndarray, trials: np.ndarray) -> np.ndarray | None:
        """Where eta may run off without a loss of likelihood, (n,): 1 up, -1 down, 0 nowhere; None if it never may."""
        return None

    # ---- what people see ----

    @property
    def link_function(self) -> Link:
        """The link and its inverse."""
        return LINKS[self.link]

    def mean(self, eta, extras) -> Any:
        """Mean of a response; of successes, the probability of one."""
        raise self.lacks("a mean", "predictions on the scale of the response")

    def variance(self, eta, extras, trials) -> Any:
        """Variance of a response; of successes, of their number over that of trials."""
        raise self.lacks("a variance", "Pearson residuals")

    def draw(self, key, eta, extras, trials) -> Any:
        """A response drawn for each row; of successes, their number."""
        raise self.lacks("draws", "simulation")

    def cdf(self, y, eta, extras, trials) -> Any:
        """The probability of a response of y or less."""
        raise self.lacks("a distribution function", "quantile residuals")

    def deviance(self, y, eta, extras, trials) -> Any:
        """Twice the log density that is lost against a mean equal to the response, in units of the dispersion."""
        raise self.lacks("a deviance", "deviance residuals")

    def observation_variance(self, mean, extras, trials) -> Any:
        """Variance of a response on the scale of the linear predictor, by which R2 and ICC count residuals.

        By the logarithm of 1 + variance / mean^2 where the link is a log, which is exact for lognormal numbers;
        otherwise by the delta method, or a latent variable's (Nakagawa, Johnson & Schielzeth, 2017, J. R. Soc.
        Interface 14: 20170213).
        """
        predictor = self.link_function.predictor
        variance = self.variance(predictor(mean), extras, trials)
        if self.link == "log":
            return jnp.log1p(variance / mean**2)
        return variance * jax.jvp(predictor, (mean,), (jnp.ones_like(mean),))[1] ** 2

    def lacks(self, what: str, use: str) -> ModelError:
        """The error of what a family does not define."""
        return ModelError(
            f"the family {self.name} does not have {what}, which is needed for {use}: define it beside log_density"
        )


@dataclass(frozen=True)
class OfMean(Family):
    """A family whose linear predictor is the link of the mean."""

    def mean(self, eta, extras):
        """The inverse of the link."""
        return self.link_function.mean(eta)
