"""New responses for a fitted model: simulation, refits, the bootstrap; `MixedLMResults` is built on it."""

import copy
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import pandas as pd

from jmixed.covariance.scales import factors_of_theta, settled
from jmixed.covariance.structure import Structure
from jmixed.errors import ConvergenceWarning, DataError, ModelError, Outcome, warn
from jmixed.fit.many import fit_responses
from jmixed.fitted import FittedModel
from jmixed.inference.profiles import Parameter
from jmixed.inference.simulation import draw_responses, generator
from jmixed.reports import components, predict
from jmixed.reports.parameters import named_parameters, parameter_values, relative_covariances
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
    estimates : Series
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
        """Bootstrap intervals (Davison and Hinkley 1997, section 5.2).

        Parameters
        ----------
        level : float
            Coverage.
        kind : str
            "percentile": quantiles of the replicates. "basic": twice the estimate less the opposite quantile; it may
            leave a parameter's range.

        Returns
        -------
        DataFrame
            Columns lower and upper; index as the estimates. Replicates without a value are left out, one by one.

        Raises
        ------
        ModelError
            For a level outside (0, 1), or another kind.

        Examples
        --------
        >>> result.bootstrap(200, key=1).confint(0.9).loc["Days"].round(1).tolist()
        [7.6, 13.3]
        """
        check_kind(kind)
        tail = (1 - components.level_of(level)) / 2
        quantiles = self.replicates[self.converged].quantile([tail, 1 - tail])
        low, high = quantiles.to_numpy()
        if kind == "basic":
            low, high = 2 * self.estimates.to_numpy() - high, 2 * self.estimates.to_numpy() - low
        return noted(pd.DataFrame({"lower": low, "upper": high}, index=self.estimates.index))

    @property
    def bse(self) -> pd.Series:
        """Standard deviations of the replicates: Series, by parameter.

        Examples
        --------
        >>> bool(0 < result.bootstrap(200, key=1).bse["Days"] < 3)
        True
        """
        values = self.replicates[self.converged]
        return pd.Series(values.std(), index=values.columns)

    @property
    def bias(self) -> pd.Series:
        """Mean of the replicates less the estimates: Series, by parameter.

        Examples
        --------
        >>> bool(abs(result.bootstrap(200, key=1).bias["Days"]) < 1)
        True
        """
        return self.replicates[self.converged].mean() - self.estimates

    def _shown(self) -> tuple[str, pd.DataFrame]:
        title = f"<Bootstrap: {len(self.replicates)} replicates, {int(self.converged.sum())} converged>"
        table = pd.DataFrame({"estimate": self.estimates, "bias": self.bias, "bse": self.bse})
        return title, table.join(self.confint())


def check_kind(kind: str) -> None:
    """Refuse a kind of bootstrap interval that there is none of."""
    if kind not in KINDS:
        raise ModelError(f"confint: kind={kind!r}; use 'percentile' or 'basic'")


class Resampling(FittedModel):
    """Simulation from a fit, and the same fit to other responses."""

    def simulate(self, n: int = 1, key: Any = 0, *, random_effects: str | Collection[str] = "new") -> np.ndarray:
        """Draw new responses from the fitted model: new residuals, and new random effects unless they are given.

        Parameters
        ----------
        n : int
            Number of responses.
        key : JAX random key, or int
            The same key gives the same responses.
        random_effects : str or collection of str
            "new": drawn from their distribution. "conditional": those of the fit, the conditional modes, so that only
            the residuals are new (lme4's ``re.form = NULL`` and ``use.u = TRUE``). Names of grouping factors: those of
            the fit for these, new ones for the others.

        Returns
        -------
        array (n, nobs)
            In the unit of the response, rows in the model's order.

        Raises
        ------
        DataError
            For an `n`, a `key` or `random_effects` that are none, or after `remove_data`.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.simulate(3, key=1).shape
        (3, 180)
        >>> same = result.simulate(1000, key=1, random_effects="conditional")
        >>> bool(abs(same.mean(axis=0) - result.fittedvalues).max() < 5)
        True
        """
        return self._draw(count(n, "simulate"), generator(key), self._kept(random_effects))

    def _kept(self, random_effects) -> list[int]:
        """Positions of the terms whose conditional modes stand in the place of new random effects."""
        if isinstance(random_effects, str) and random_effects in ("new", "conditional"):
            return predict.select_terms(self._spec.terms, random_effects == "conditional")
        groups = list(dict.fromkeys(term.group for term in self._spec.terms))
        wanted = [random_effects] if isinstance(random_effects, str) else random_effects
        if not isinstance(wanted, Collection) or not wanted or not all(name in groups for name in wanted):
            raise DataError(
                f"random_effects={random_effects!r}: use 'new', 'conditional' (those of the fit), or the names of the "
                f"grouping factors that keep theirs, out of {groups}"
            )
        return predict.select_terms(self._spec.terms, wanted)

    def _draw(self, n: int, rng, kept: Collection[int] = ()) -> np.ndarray:
        """`n` responses from a generator, given the random effects of the terms at the positions kept."""
        self._need_data("simulation")
        spec, fit = self._spec, self._fit
        structures = [Structure(len(term.columns), term.structure) for term in spec.terms]
        drawn = zip(spec.terms, factors_of_theta(structures, fit.theta), strict=True)
        terms = [(t.codes, t.Z, fit.sigma * factor) for k, (t, factor) in enumerate(drawn) if k not in kept]
        mean = predict.mean(spec, fit, predict.in_sample(spec, kept))
        return draw_responses(mean, terms, fit.sigma / np.sqrt(spec.weights), n, rng)

    def refit(self, y) -> Self:
        """Fit the same model to another response; all else stays, and nothing is compiled anew.

        Parameters
        ----------
        y : array-like (nobs,)
            The new response as the model has it (transformed, if the formula transforms it), rows in the model's order.

        Returns
        -------
        MixedLMResults
            By the same criterion; parameters that were held are held again. Its ``model`` has the new response.

        Raises
        ------
        DataError
            For a response of another length, with values that are not finite, or constant.
        ModelError
            When this fit was penalised.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.refit(2 * result.model.endog).fe_params.round(3).to_dict()
        {'Intercept': 502.81, 'Days': 20.935}
        """
        self._need_data("refit")
        self._refuse_penalised("refit")
        return self.model.with_response(y).fit(reml=self.reml, **self._pattern)

    @property
    def _pattern(self) -> dict:
        """Arguments of a fit that holds what this one held."""
        return {} if self.freepat is None else {"free": self.freepat, "start_params": self.params_object}

    def _by_ml(self, what: str) -> Self:
        """This result, or the ML fit of the same model."""
        self._refuse_penalised(what)
        return copy.copy(self.model).fit(reml=False, **self._pattern) if self.reml else self

    def bootstrap(
        self,
        n: int = 1000,
        key: Any = 0,
        *,
        random_effects: str | Collection[str] = "new",
        progress: bool = False,
    ) -> Bootstrap:
        """Parametric bootstrap: refit to `n` responses simulated from this fit, many at a time in a compiled call.

        Parameters
        ----------
        n : int
            Number of replicates.
        key : JAX random key, or int
            The same key gives the same replicates.
        random_effects : str or collection of str
            Of the simulated responses, as in `simulate`. Given the random effects, replicates tell how well the
            coefficients are known for these very groups; standard deviations of random effects come out too large.
        progress : bool
            Show a bar: by tqdm where it is installed.

        Returns
        -------
        Bootstrap
            Replicates of all parameters, with `confint`.

        Raises
        ------
        DataError
            For an `n`, a `key` or `random_effects` that are none, or after `remove_data`.
        ModelError
            Some parameters were held or penalised.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> replicates = result.bootstrap(200, key=1)
        >>> replicates.replicates.shape
        (200, 6)
        >>> list(replicates.confint(0.9).columns)
        ['lower', 'upper']
        """
        n, rng, kept = count(n, "bootstrap"), generator(key), self._kept(random_effects)
        self._need_data("bootstrap")
        self._refuse_held("bootstrap")
        pieces, room = [], max(1, DRAWN // (8 * self.nobs))
        with bar(n, progress, "bootstrap") as advance:
            for start in range(0, n, room):
                Y = self._draw(min(room, n - start), rng, kept)
                pieces.append(fit_responses(self.model.design, Y, self.reml, progress=advance))
        values = np.concatenate([self._values(fit.theta, fit.beta, fit.sigma) for fit in pieces])
        names = [name for name, _ in self._parameters]
        own = self._values(self._fit.theta[None], self._fit.beta[None], np.array([self._fit.sigma]))[0]
        outcome = np.concatenate([fit.outcome for fit in pieces])
        converged = np.concatenate([fit.converged for fit in pieces])
        if not converged.all():
            found = pd.Series(outcome[~converged]).map(lambda value: Outcome(value).name).value_counts().to_dict()
            warn(
                f"bootstrap: {np.sum(~converged)} of {n} refits ended without a certified optimum ({found}); intervals "
                "leave them out",
                ConvergenceWarning,
            )
        return Bootstrap(pd.Series(own, index=names), pd.DataFrame(values, columns=names), outcome, converged)

    def _values(self, theta: np.ndarray, beta: np.ndarray, sigma: np.ndarray) -> np.ndarray:
        """The parameters of k fits as intervals list them, from theta (k, m), beta (k, p) and sigma (k,)."""
        theta = settled(self.model.design, theta)
        return parameter_values(self._spec, beta, relative_covariances(self._spec, theta), sigma)

    @cached_property
    def _parameters(self) -> list[tuple[str, Parameter]]:
        return named_parameters(self._spec)

    def _places(self, which) -> list[int]:
        """Positions of the parameters asked for."""
        names = [name for name, _ in self._parameters]
        if which is None:
            return list(range(len(names)))
        wanted = [which] if isinstance(which, str) else list(which)
        unknown = [name for name in wanted if name not in names]
        if unknown or not wanted:
            raise ModelError(f"no parameter {unknown or wanted}; the parameters are {names}")
        return [place for name in wanted for place, own in enumerate(names) if own == name]

    def _refuse_penalised(self, what: str) -> None:
        if self._penalty:
            raise ModelError(f"{what}: this fit was penalised, and a penalty has no likelihood; fit without it")

    def _refuse_held(self, what: str) -> None:
        self._refuse_penalised(what)
        if self.freepat is not None:
            raise ModelError(f"{what}: some parameters of this fit were held (free=...); fit all of them")


def count(n, what: str) -> int:
    """A number of responses or replicates, checked."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"{what}: n is {n!r}; it must be a whole number, one or more")
    return int(n)
