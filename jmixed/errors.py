"""Exceptions, warnings and outcomes: everything that jmixed has to say when something is wrong."""

import enum


class JmixedError(Exception):
    """Base class of every exception that jmixed raises on purpose."""


class FormulaError(JmixedError, ValueError):
    """A formula that cannot be read, or arguments that contradict it. The message marks the spot."""


class DataError(JmixedError, ValueError):
    """Data that the model cannot use: a missing column, a constant response, text where numbers are needed."""


class MissingDataError(DataError):
    """Missing values while ``missing`` is ``"none"`` or ``"raise"``. The message counts and locates them."""


class ModelError(JmixedError, ValueError):
    """A model that the data cannot identify, such as one random coefficient for every row."""


class ConvergenceWarning(UserWarning):
    """A fit ended without a certified optimum. The message names the outcome and what to try."""


class SingularWarning(UserWarning):
    """A fit ended at a singular covariance: a variance of zero or a correlation of one."""


class RankWarning(UserWarning):
    """Redundant columns were left out: of the fixed effects, or of a factor with a single level."""


class PrecisionWarning(UserWarning):
    """An array function was given float64 data while JAX works in float32."""


class Outcome(enum.IntEnum):
    """How a fit ended. The number travels through compiled code; the message is for people.

    Examples
    --------
    >>> from jmixed.errors import Outcome
    >>> Outcome(0).name, Outcome(0).ok
    ('CONVERGED', True)
    """

    CONVERGED = 0
    PRECISION_LIMIT = 1
    FLAT = 2
    MAX_ITERATIONS = 3
    NOT_FINITE = 4
    PERFECT_FIT = 5
    ROUNDED = 6
    RANK_DEFICIENT = 7

    @property
    def ok(self) -> bool:
        """Whether the optimum carries its certificate: small decrement, no direction of descent."""
        return self in (Outcome.CONVERGED, Outcome.PRECISION_LIMIT)

    @property
    def message(self) -> str:
        """What happened and what to do next."""
        return _MESSAGES[self]


_MESSAGES = {
    Outcome.CONVERGED: "converged: the Newton decrement is below its tolerance and no direction leads down",
    Outcome.PRECISION_LIMIT: (
        "converged to the precision of the arithmetic: the predicted decrease is below rounding error. "
        "Rescaling the predictors may give more digits"
    ),
    Outcome.FLAT: (
        "the likelihood does not determine all variance parameters (a flat direction): "
        "remove a random effect that duplicates another or that the fixed effects already absorb"
    ),
    Outcome.MAX_ITERATIONS: "stopped at maxiter before the optimum: raise maxiter, or start from start_params",
    Outcome.NOT_FINITE: (
        "the likelihood was not finite at the start: look for infinite values or extreme scales in y, X, Z or weights"
    ),
    Outcome.RANK_DEFICIENT: (
        "the fixed effects are collinear in the rows at hand, so that their coefficients are not determined: leave "
        "out columns of X that others explain. Rows of weight zero, or without a response, do not count"
    ),
    Outcome.ROUNDED: (
        "the residual variance is so small against the variance between groups that rounding blurs the deviance by "
        "more than its tolerance: the estimates are near the optimum, their last digits are not certain. Take the "
        "groups' means out of the response, or more of its variation into the fixed effects"
    ),
    Outcome.PERFECT_FIT: (
        "the model reproduces the response to the precision of the arithmetic: the residual variance is zero and the "
        "likelihood unbounded. Remove effects, use more rows, or rescale a response of extreme size"
    ),
}
