"""Exceptions, warnings and outcomes: everything that jmixed has to say when something is wrong."""

import enum
import sys
import warnings
from typing import Any

PAGES = "docs/"
"""Where the pages are that explain messages: the folder of the source, or the address of the site."""


class _Explained(BaseException):
    """A message that ends with the page that explains it, if there is one."""

    page = ""

    def __init__(self, *args, page: str | None = None):
        super().__init__(*args)
        if page is not None:
            self.page = page

    def __str__(self) -> str:
        message = super().__str__()
        if not self.page:
            return message
        # Below a formula with its mark the page stands on a line of its own.
        return message + ("\n\n" if "\n" in message else " ") + f"(see {PAGES}{self.page})"


class JmixedError(_Explained, Exception):
    """Base class of every exception that jmixed raises on purpose; `page` of the documentation explains it."""


class FormulaError(JmixedError, ValueError):
    """A formula that cannot be read, or arguments that contradict it. The message marks the spot.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.mixedlm("Reaction ~ Days + (Days | Subject", jm.datasets.load("sleepstudy"))
    Traceback (most recent call last):
    jmixed.errors.FormulaError: a parenthesis is not closed
    <BLANKLINE>
        Reaction ~ Days + (Days | Subject
                          ^
    <BLANKLINE>
    (see docs/formula.md)
    """

    page = "formula.md"


class DataError(JmixedError, ValueError):
    """Data that the model cannot use: a missing column, a constant response, text where numbers are needed."""


class MissingDataError(DataError):
    """Missing values while ``missing`` is ``"none"`` or ``"raise"``. The message counts and locates them."""

    page = "formula.md#missing-values"


class ModelError(JmixedError, ValueError):
    """A model that the data cannot identify, such as a random coefficient for every row, or an option there is not."""


class ArgumentError(ModelError, TypeError):
    """An argument that a function has not, is not given, or cannot take: of another kind, or out of range."""


class OutOfMemoryError(JmixedError, MemoryError):
    """Memory, of the machine or of the device, that did not suffice for a computation."""

    page = "limits.md#where-it-gets-difficult"


class ForkError(JmixedError, RuntimeError):
    """A fit in a process that was forked while JAX ran, where it would wait for ever."""

    page = "many.md#processes"


class ConvergenceWarning(_Explained, UserWarning):
    """A fit ended without a certified optimum. The message names the outcome and what to try.

    Examples
    --------
    >>> import warnings
    >>> import jmixed as jm
    >>> model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> with warnings.catch_warnings(record=True) as said:
    ...     warnings.simplefilter("always")
    ...     result = model.fit(maxiter=1)
    >>> print(said[0].message)
    MAX_ITERATIONS: stopped before the optimum, at maxiter or where no step led further down: raise ... (see ...)
    """

    page = "singular.md#outcomes"


class SingularWarning(_Explained, UserWarning):
    """A fit ended at a singular covariance: a variance of zero or a correlation of one.

    Examples
    --------
    >>> import warnings
    >>> import jmixed as jm
    >>> model = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff2"))
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("ignore", jm.SingularWarning)  # when it is expected
    ...     model.fit().singular
    True
    """

    page = "singular.md"


class RankWarning(_Explained, UserWarning):
    """Redundant columns were left out: of the fixed effects, or of a factor with a single level.

    Examples
    --------
    >>> import warnings
    >>> import jmixed as jm
    >>> with warnings.catch_warnings():
    ...     warnings.simplefilter("error", jm.RankWarning)  # to stop at it instead
    ...     jm.mixedlm("Reaction ~ Days + I(2 * Days) + (1 | Subject)", jm.datasets.load("sleepstudy"))
    Traceback (most recent call last):
    jmixed.errors.RankWarning: the fixed effects are collinear: I(2 * Days) left out, ...
    """

    page = "formula.md#redundant-columns"


class PrecisionWarning(_Explained, UserWarning):
    """An array function was given float64 data while JAX works in float32."""

    page = "jax.md#precision"


MIDDLEMEN = ("jax", "jaxlib", "functools", "contextlib")
"""Packages through which a call into jmixed may pass on its way."""


def warn(message: str, category: Any, page: str | None = None) -> None:
    """Warn at the line that called jmixed, however deep inside the package the reason was found."""
    level, last, frame = 1, 1, sys._getframe()
    inside = True
    while frame is not None:
        room = (frame.f_globals.get("__package__") or frame.f_globals.get("__name__", "")).partition(".")[0]
        # Whoever comes between the package and itself, or hands a call on to it, is no caller.
        inside = room == "jmixed" or (inside and room in MIDDLEMEN)
        last = level if inside else last
        level, frame = level + 1, frame.f_back
    warnings.warn(category(message) if page is None else category(message, page=page), stacklevel=last + 1)


class Outcome(enum.IntEnum):
    """How a fit ended. The number travels through compiled code; the message is for people.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.Outcome(0).name, jm.Outcome(0).ok
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
    DIVERGING = 8
    SEPARATED = 9
    APPROXIMATION = 10
    MONTE_CARLO = 11
    UNSOLVED = 12

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
    Outcome.MAX_ITERATIONS: (
        "stopped before the optimum, at maxiter or where no step led further down: raise maxiter, or start from "
        "start_params"
    ),
    Outcome.NOT_FINITE: (
        "the likelihood was not finite at the start: look for infinite values or extreme scales in y, X, Z or weights"
    ),
    Outcome.RANK_DEFICIENT: (
        "the fixed effects are collinear in the rows at hand, so that their coefficients are not determined: leave "
        "out columns of X that others explain. Rows of weight zero, or without a response, do not count"
    ),
    Outcome.DIVERGING: (
        "a parameter runs off, and the likelihood has no maximum: a correlation of the residuals to its bound, a "
        "standard deviation of some to zero, a variance of random effects or a dispersion to infinity. Look for rows "
        "that repeat each other, groups without any spread, or groups that are all failure or success; or state fewer "
        "parameters"
    ),
    Outcome.SEPARATED: (
        "some coefficients have no finite estimate: columns of the fixed effects tell successes from failures, or "
        "zeros from counts, without an exception in these rows (separation). What is printed for them is where the "
        "search ended. Leave the columns out, merge categories, or say what is known of them by other data"
    ),
    Outcome.APPROXIMATION: (
        "Laplace's approximation is off by more than 0.2 standard errors of some estimate: use quadrature=, or read "
        "result.approximation()"
    ),
    Outcome.MONTE_CARLO: (
        "the estimates by probes have a Monte Carlo error above a tenth of their standard errors, with as many probes "
        "as are taken: read result.monte_carlo, give more by fit(probes=), or take fit(crossed='exact')"
    ),
    Outcome.UNSOLVED: (
        "conjugate gradients took more steps than are allowed: levels of the crossed factors hang together by few "
        "rows, or variances are huge against the residual's. Nothing here is an optimum: take fit(crossed='exact'), "
        "leave out levels of few rows, or put the factor with the largest variance among the fixed effects"
    ),
    Outcome.ROUNDED: (
        "the residual variance is so small against what the random effects explain that rounding blurs the deviance by "
        "more than its tolerance: few digits of the variances are certain, or none. Put the largest of the effects "
        "among the fixed effects, or fewer random columns to a factor"
    ),
    Outcome.PERFECT_FIT: (
        "the model reproduces the response to the precision of the arithmetic: the residual variance is zero and the "
        "likelihood unbounded. Remove effects, use more rows, or rescale a response of extreme size"
    ),
}
