"""New responses for a fitted model: simulation, refits, the bootstrap."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from jmixed.covariance.structure import factors_of_theta
from jmixed.errors import ConvergenceWarning, DataError, ModelError, Outcome, warn
from jmixed.fit.host import draw_residuals
from jmixed.fit.iterative import refits_iterative
from jmixed.fit.many import ManyFits, fit_responses
from jmixed.formulas.model_data import RandomTerm
from jmixed.inference.responses import draw
from jmixed.inference.simulation import draw_responses, generator
from jmixed.layout.incidence import incidence
from jmixed.reports import rows
from jmixed.reports.components import all_estimates, all_names, all_values
from jmixed.reports.fitted import Fitted
from jmixed.reports.names import structure
from jmixed.reports.printed import Shown, noted
from jmixed.runtime.arguments import checked
from jmixed.runtime.progress import bar

DRAWN = 2**28
"""Bytes of simulated responses that are held at a time."""

KINDS = ("percentile", "basic")


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Bootstrap(Shown):
    """Replicates of the parameters of a fit.

    Attributes
    ----------
    estimates : Series (parameters,)
        Of the fit itself; coefficients, ``sd_COLUMN|GROUP``, ``cor_A.B|GROUP``, ``sigma``.
    replicates : DataFrame (n, parameters)
        A correlation with a standard deviation of zero is NaN.
    outcome : int array (n,)
        How each refit ended: values of `jmixed.Outcome`.
    converged : bool array (n,)
        Which refits carry the certificate of an optimum; intervals use these.
    """

    estimates: pd.Series
    replicates: pd.DataFrame
    outcome: np.ndarray
    converged: np.ndarray

    def confint(self, level: float = 0.95, kind: str = "percentile") -> pd.DataFrame:
        """Bootstrap intervals (Davison and Hinkley 1997, section 5.2): columns lower and upper, rows as the estimates.

        Replicates without a value are left out, one by one. Raises `ModelError` for a level outside (0, 1), or another
        kind.

        Parameters
        ----------
        level
            Coverage.
        kind
            "percentile": quantiles of the replicates. "basic": twice the estimate less the opposite quantile; it may
            leave a parameter's range.

        Examples
        --------
        >>> result.bootstrap(200, key=1).confint(0.9).loc["Days"].round(1).tolist()
        [7.6, 13.3]
        """
        check_kind(kind)
        tail = (1 - level) / 2
        quantiles = self.replicates[self.converged].quantile([tail, 1 - tail])
        low, high = quantiles.to_numpy()
        if kind == "basic":
            low, high = 2 * self.estimates.to_numpy() - high, 2 * self.estimates.to_numpy() - low
        return noted(pd.DataFrame({"lower": low, "upper": high}, index=self.estimates.index))

    @property
    def bse(self) -> pd.Series:
        """Standard deviations of the replicates: Series (parameters,)."""
        values = self.replicates[self.converged]
        return pd.Series(values.std(), index=values.columns)

    @property
    def bias(self) -> pd.Series:
        """Mean of the replicates less the estimates: Series (parameters,)."""
        return self.replicates[self.converged].mean() - self.estimates

    def _shown(self) -> tuple[str, pd.DataFrame]:
        title = f"<Bootstrap: {len(self.replicates)} replicates, {int(self.converged.sum())} converged>"
        table = pd.DataFrame({"estimate": self.estimates, "bias": self.bias, "bse": self.bse})
        return title, table.join(self.confint())


def check_kind(kind: str) -> None:
    """Refuse a kind of bootstrap interval that there is none of."""
    if kind not in KINDS:
        raise ModelError(f"confint: kind={kind!r}; use 'percentile' or 'basic'")


def simulate(fitted: Fitted, n: int, key: Any, random_effects: str | Collection[str]) -> np.ndarray:
    """Draw new responses, array (n, nobs)."""
    return _draw(fitted, count(n, "simulate"), generator(key), _kept(fitted.spec.terms, random_effects))


def _kept(terms: Sequence[RandomTerm], random_effects: str | Collection[str]) -> list[int]:
    """Positions of the terms whose conditional modes stand in the place of new random effects."""
    if isinstance(random_effects, str) and random_effects in ("new", "conditional"):
        return rows.select_terms(terms, random_effects == "conditional")
    groups = list(dict.fromkeys(term.group for term in terms))
    wanted = [random_effects] if isinstance(random_effects, str) else random_effects
    if not isinstance(wanted, Collection) or not wanted or not all(name in groups for name in wanted):
        raise DataError(
            f"random_effects={random_effects!r}: use 'new', 'conditional' (those of the fit), or the names of the "
            f"grouping factors that keep theirs, out of {groups}"
        )
    return rows.select_terms(terms, wanted)


def _draw(fitted: Fitted, n: int, rng: np.random.Generator, kept: Collection[int]) -> np.ndarray:
    """`n` responses from a generator, given the random effects of the terms at the positions kept."""
    fitted.need_data("simulation")
    spec, fit = fitted.spec, fitted.fit
    drawn = zip(spec.terms, factors_of_theta([structure(term) for term in spec.terms], fit.theta), strict=True)
    terms = [(t.codes, t.Z, fit.sigma * factor, t.relationship) for k, (t, factor) in enumerate(drawn) if k not in kept]
    mean = rows.mean(spec, fit, rows.in_sample(spec, kept))
    if fitted.family is not None:
        # The digits of a normal number are the key of a replicate's draws.
        return draw_responses(mean, terms, partial(_respond, fitted), 1, n, rng)

    def respond(predictor, normal):
        return predictor + draw_residuals(fitted.design, fit, normal)

    return draw_responses(mean, terms, respond, len(mean), n, rng)


def _respond(fitted: Fitted, predictor: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """Responses (n, nobs) of a family at predictors, by keys out of normal numbers (n, 1)."""
    bits = np.ascontiguousarray(normal).view(np.uint32)
    return draw(fitted.own_family, bits, predictor, fitted.at_modes.extras, fitted.response.trials)


def refit(fitted: Fitted, y: Any) -> Any:
    """The result of the same model for another response."""
    fitted.need_data("refit")
    fitted.refuse_penalised("refit")
    model = fitted.model.with_response(y)
    return model.fit() if fitted.family is not None else model.fit(reml=fitted.reml, **fitted.again)


def bootstrap(fitted: Fitted, n: int, key: Any, random_effects: str | Collection[str], progress: bool) -> Bootstrap:
    """Refit to simulated responses."""
    n, rng, kept = count(n, "bootstrap"), generator(key), _kept(fitted.spec.terms, random_effects)
    fitted.need_data("bootstrap")
    fitted.refuse_held("bootstrap")
    pieces, room = [], max(1, DRAWN // (8 * fitted.nobs))
    with bar(n, progress, "bootstrap") as advance:
        fits_of = _refits(fitted, advance)
        for start in range(0, n, room):
            fits = fits_of(_draw(fitted, min(room, n - start), rng, kept))
            pieces.append((all_values(fitted, fits.theta, fits.beta, fits.sigma, fits.rho, fits.rho), fits.outcome))
    values = np.concatenate([piece[0] for piece in pieces])
    outcome, names = np.concatenate([piece[1] for piece in pieces]), all_names(fitted)
    converged = np.isin(outcome, [end.value for end in Outcome if end.ok])
    if not converged.all():
        failures = pd.Series(outcome[~converged]).map(lambda value: Outcome(value).name).value_counts().to_dict()
        warn(
            f"bootstrap: {np.sum(~converged)} of {n} refits ended without a certified optimum ({failures}); intervals "
            "leave them out",
            ConvergenceWarning,
        )
    estimates = pd.Series(all_estimates(fitted), index=names)
    return Bootstrap(estimates, pd.DataFrame(values, columns=names), outcome, converged)


def _refits(fitted: Fitted, advance: Callable[[int], Any]) -> Callable[[np.ndarray], ManyFits]:
    """What fits responses (n, nobs) in the way of the fit."""
    if fitted.is_iterative:
        again = fitted.again
        return refits_iterative(incidence(fitted.spec), fitted.reml, again["probes"], again["seed"], advance)
    return lambda Y: fit_responses(fitted.design, Y, fitted.reml, progress=advance)


def count(n: int, what: str) -> int:
    """A number of responses or replicates, checked."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"{what}: n is {n!r}; it must be a whole number, one or more")
    return int(n)
