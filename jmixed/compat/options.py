"""The words around a fit: which optimiser a name means, which options have no effect, and what to warn of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from jmixed.covariance.structure import split
from jmixed.errors import ConvergenceWarning, ModelError, Outcome, SingularWarning, warn
from jmixed.fit import host
from jmixed.reports.fitted import message_of

if TYPE_CHECKING:
    from jmixed.compat.held import Task
    from jmixed.formulas.model_data import RandomTerm

NEWTON_NAMES = ("newton", "ncg", "bfgs", "cg", "nm", "powell", "basinhopping", "minimize")
"""Optimisers, ours and statsmodels', in whose place the trust-region Newton method stands."""
IDLE = ("eps", "maxcor", "ftol", "tol", "maxls")
"""Options that statsmodels accepts, without effect there or here."""


def solver(method) -> str:
    """The method of `host.fit` that a name, or the first of a list of names, means."""
    several = isinstance(method, Iterable) and not isinstance(method, str)
    names = (list(method) if several else [method]) or [None]
    first = names[0].lower() if isinstance(names[0], str) else names[0]
    if first == "lbfgs":
        return "lbfgs"
    if first is None or first in NEWTON_NAMES:
        return "newton"
    raise ModelError(
        f"method is {method!r}; it must be 'newton' or 'lbfgs' (or one of statsmodels' names, which mean one of these: "
        f"{', '.join(NEWTON_NAMES[2:])})"
    )


def warn_of_options(names: Iterable[str], niter_sa: int = 0) -> None:
    """Warn of keyword arguments of `MixedLM.fit` that have no effect, and refuse one that would be taken to have."""
    names = set(names)
    if "REML" in names:
        raise ModelError("fit has no argument REML: write reml=True or reml=False")
    unknown = sorted(names - {"disp", *IDLE})
    idle = sorted(names & set(IDLE)) + (["niter_sa"] if niter_sa else [])
    for listed, text in ((unknown, "not used by MixedLM.fit"), (idle, "without effect on how MixedLM is optimised")):
        if listed:
            plural = "s" if len(listed) > 1 else ""
            warn(f"Argument{plural} {', '.join(listed)} {text}: leave out", FutureWarning)


def warn_of_outcome(fit: host.Fit, task: Task, terms: Sequence[RandomTerm]) -> None:
    """Warn of a fit without a certified optimum, and of a singular one."""
    moved = [bool(piece.any()) for piece in split(task.packing.structures, task.free_theta)]
    warn_of_end(fit, terms, moved)


def warn_of_end(fit: host.Fit, terms: Sequence[RandomTerm], moved: Sequence[bool], names: Sequence[str] = ()) -> None:
    """The same, of terms of which some have moved, with the `names` of the columns of X."""
    if not fit.converged:
        # Some outcomes have a section of their own.
        has_section = fit.outcome in (Outcome.FLAT, Outcome.ROUNDED)
        page = f"singular.md#{fit.outcome.name.lower()}" if has_section else None
        warn(f"{fit.outcome.name}: {message_of(fit, names)}", ConvergenceWarning, page)
    flagged = zip(terms, fit.singular, moved, strict=True)
    labels = [repr(term.vc or term.label) for term, singular, free in flagged if singular and free]
    if labels:
        where, then = (
            ("at the optimum", "The estimates stand, but a simpler random-effects structure fits as well: consider")
            if fit.converged
            # What is no optimum proves nothing about the variances, and nothing stands.
            else ("where it ended, which is no optimum", "A simpler random-effects structure may have one: consider")
        )
        warn(
            f"the fit is singular: {', '.join(labels)} has a variance of zero or a correlation of one {where}. "
            f"{then} leaving out a random effect, or its correlations",
            SingularWarning,
        )


def history(fit: host.Fit, method: str) -> dict:
    """The record of an optimisation, with statsmodels' keys where they have a meaning."""
    return {
        "method": method,
        "converged": fit.converged,
        "outcome": fit.outcome,
        "iterations": fit.iterations,
        "fcalls": fit.evaluations,
        "fopt": fit.objective,
        "gopt": fit.gradient,
        "warnflag": int(not fit.converged),
    }
