"""How far a fit's likelihood is from the true one, for people."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, Outcome
from jmixed.inference.approximation import accuracy
from jmixed.reports.fitted import Fitted
from jmixed.runtime.facts import Facts

NOTICEABLE = 0.2
"""Shift of a coefficient, in standard errors, from which on an approximation matters."""


@dataclass(frozen=True, eq=False, repr=False)
class Approximation(Facts):
    """How good the likelihood of a fit is, at its estimates.

    Attributes
    ----------
    criterion : float
        The true -2 log-likelihood less that of the fit.
    error : float
        Its standard error, where it comes from draws; zero where it is by quadrature.
    shift : Series (k_fe,) or None
        How far the true likelihood would move each coefficient, in its standard errors; None where draws do not tell.
    method : str
        What the truth was taken from.
    """

    criterion: float
    error: float
    shift: pd.Series | None
    method: str

    @property
    def outcome(self) -> Outcome:
        """APPROXIMATION where some coefficient would move by more than 0.2 standard errors, else CONVERGED."""
        moves = np.zeros(0) if self.shift is None else np.abs(np.asarray(self.shift))
        return Outcome.APPROXIMATION if np.max(moves, initial=0) > NOTICEABLE else Outcome.CONVERGED

    @property
    def message(self) -> str:
        """What it means, and what to do."""
        if self.shift is None:
            return "a difference in the criterion matters for comparisons of models; coefficients are not known to move"
        moves = np.asarray(self.shift)
        if np.max(np.abs(moves), initial=0) <= NOTICEABLE:
            return f"no coefficient would move by more than {NOTICEABLE} standard errors"
        largest = int(np.argmax(np.abs(moves)))
        return (
            f"{self.shift.index[largest]} would move by {moves[largest]:.2f} standard errors: use quadrature=, with "
            "more nodes until the estimates stay"
        )

    def _facts(self) -> tuple[str, dict[str, object]]:
        facts: dict[str, object] = {"criterion": self.criterion, "error": self.error, "method": self.method}
        if self.shift is not None and len(self.shift):
            facts["largest shift"] = float(np.max(np.abs(np.asarray(self.shift))))
        return self.message, facts


def approximation(fitted: Fitted, draws: int, key: Any) -> Approximation:
    """See `MixedGLMResults.approximation`."""
    fitted.need_data("approximation")
    if isinstance(draws, bool) or not isinstance(draws, int | np.integer) or draws < 2:
        raise DataError(f"draws is {draws!r}; give their number, a whole number of 2 or more")
    if isinstance(key, bool) or not isinstance(key, int | np.integer) or key < 0:
        raise DataError(f"key is {key!r}; give a seed, a whole number of zero or more")
    fitted.refuse_sparse(
        "approximation()",
        "draws of thousands of related effects at once tell nothing. A bootstrap shows what it costs the estimates",
    )
    told = accuracy(fitted.model.design, fitted.fit, int(draws), int(key))
    method = f"quadrature, {told.nodes} nodes" if told.nodes else f"importance sampling, {told.draws} draws"
    shift = None if told.shift is None else fitted.vector(told.shift, fitted.names.fixed)
    return Approximation(told.criterion, told.error, shift, method)
