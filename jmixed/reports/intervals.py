"""Confidence intervals of all parameters: Wald, profile and bootstrap; `MixedLMResults` is built on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from jmixed.covariance.scales import vanished
from jmixed.errors import ConvergenceWarning, ModelError, warn
from jmixed.fit import host
from jmixed.inference import profiles
from jmixed.inference.profiles import Parameter
from jmixed.reports import components
from jmixed.reports.bootstrap import Resampling, check_kind
from jmixed.reports.parameters import cut, parameter_values
from jmixed.reports.printed import Shown, noted
from jmixed.runtime.arguments import checked
from jmixed.runtime.progress import bar

BY_ML = "The profile is that of the ML deviance; the fit was by REML."
"""Said where a profile belongs to a fit by REML."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Profile(Shown):
    """Profiles of the parameters of a fit.

    Attributes
    ----------
    table : DataFrame
        One row for each constrained fit: `parameter` (which was held), `value`, `zeta` (signed root of the increase of
        the ML deviance), `slope` (derivative of zeta in the value), then all parameters as estimated there, by name.
    estimates : Series
        Maximum likelihood estimates of what was profiled.
    reml : bool
        Whether the fit that was profiled was by REML; the profile is that of the ML deviance in any case.
    """

    table: pd.DataFrame
    estimates: pd.Series
    reml: bool
    _fit: profiles.Estimate = field(repr=False)
    _parameters: list[Parameter] = field(repr=False)
    _known: dict[float, np.ndarray] = field(repr=False)

    def confint(self, level: float = 0.95) -> pd.DataFrame:
        """Where zeta reaches the normal quantiles, to 1e-8 of zeta.

        A limit is the end of the parameter's range (0 for a standard deviation, -1 or 1 for a correlation) when the
        profile does not reach the cut, and NaN when it could not be found.

        Parameters
        ----------
        level : float
            Coverage.

        Returns
        -------
        DataFrame
            Columns lower and upper; index as the estimates.

        Examples
        --------
        >>> result.profile("sigma").confint(0.95).round(2).loc["sigma"].tolist()
        [22.9, 28.86]
        """
        level = components.level_of(level)
        if level not in self._known:
            found = profiles.profile(self._fit, self._parameters, [cut(level)])
            self._known[level] = np.array([[trace.lower[0], trace.upper[0]] for trace in found])
        table = pd.DataFrame(self._known[level], index=self.estimates.index, columns=["lower", "upper"])
        return noted(table, BY_ML if self.reml else "")

    def _shown(self) -> tuple[str, pd.DataFrame]:
        # The limits that are at hand: others take more fits.
        level, limits = next(iter(self._known.items()))
        fits = f"<Profile: {len(self.table)} constrained fits of {len(self.estimates)} parameters>"
        columns = {"estimate": self.estimates, "lower": limits[:, 0], "upper": limits[:, 1]}
        return f"{fits}, {100 * level:g}% limits", pd.DataFrame(columns, index=self.estimates.index)


class Intervals(Resampling):
    """Intervals of the parameters of a fit."""

    def confint(
        self,
        method: str = "wald",
        level: float = 0.95,
        *,
        which: str | Sequence[str] | None = None,
        n: int = 1000,
        key: Any = 0,
        kind: str = "percentile",
        progress: bool = False,
    ) -> pd.DataFrame:
        """Confidence limits of coefficients, standard deviations, correlations and sigma.

        Parameters
        ----------
        method : str
            "wald": normal limits from the standard errors; standard deviations and correlations have NaN, because
            normal limits are no use for them. "profile": where the profile of the ML deviance (also after REML, as in
            lme4) reaches the quantile of chi-square, see `profile`. "bootstrap": from refits to simulated responses,
            see `bootstrap`.
        level : float
            Coverage.
        which : str or list of str, optional
            Names of the parameters wanted.
        n : int
            Number of replicates of the bootstrap.
        key : JAX random key, or int
            Of the bootstrap: the same key gives the same limits.
        kind : str
            Of the bootstrap interval: "percentile" or "basic".
        progress : bool
            Show a bar, of the profile and the bootstrap.

        Returns
        -------
        DataFrame
            Columns lower and upper; index: coefficients, ``sd_COLUMN|GROUP``, ``cor_A.B|GROUP`` (A the later column, as
            in lme4), ``sigma``.

        Raises
        ------
        ModelError
            For an unknown method or parameter, or a level outside (0, 1).

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.confint("profile", which="sd_Days|Subject").round(3).values.tolist()
        [[3.801, 8.753]]
        """
        level, places = components.level_of(level), self._places(which)
        if method == "wald":
            return components.wald_intervals(self._spec, self._fit, level).iloc[places]
        if method == "profile":
            return self._profiled(places, level, 0, progress).confint(level)
        if method == "bootstrap":
            check_kind(kind)
            return self.bootstrap(n, key, progress=progress).confint(level, kind).iloc[places]
        raise ModelError(f"confint: method={method!r}; use 'wald', 'profile' or 'bootstrap'")

    def profile(
        self,
        which: str | Sequence[str] | None = None,
        level: float = 0.99,
        steps: int = 8,
        *,
        progress: bool = False,
    ) -> Profile:
        """Profile the ML deviance: hold one parameter at a time, estimate all others (Bates et al. 2015, section 5.1).

        Fits by REML are profiled by maximum likelihood as well, as in lme4. Each constrained optimum is found by Newton
        steps with exact derivatives from the last one; all parameters are traced in one batch.

        Parameters
        ----------
        which : str or list of str, optional
            Names of parameters as in `confint`; by default all.
        level : float
            The trace goes on until it has passed the limits of this coverage, or the end of the parameter's range.
        steps : int
            Points on the way to each limit.
        progress : bool
            Show a bar: by tqdm where it is installed.

        Returns
        -------
        Profile

        Raises
        ------
        ModelError
            For an unknown parameter, a level outside (0, 1), or a fit with held or penalised parameters.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> profile = result.profile("sigma")
        >>> profile.confint(0.95).round(3)
                lower   upper
        sigma  22.898  28.858
        The profile is that of the ML deviance; the fit was by REML.
        """
        if isinstance(steps, bool) or not isinstance(steps, int | np.integer) or steps < 0:
            raise ModelError(f"profile: steps is {steps!r}; it must be a whole number, zero or more")
        return self._profiled(self._places(which), components.level_of(level), int(steps), progress)

    def _profiled(self, places: list[int], level: float, steps: int, progress: bool) -> Profile:
        self._need_data("profile", rows=False)
        self._refuse_held("profile")
        names = [self._parameters[place][0] for place in places]
        wanted = [self._parameters[place][1] for place in places]
        estimate = ml_estimate(self.model.design, None if self.reml else self._fit)
        with bar(2 * len(wanted), progress, "profile") as advance:
            traces = profiles.profile(estimate, wanted, [cut(level)], steps, advance)
        warn_of_traces(traces, names)
        table = pd.concat([self._trace_table(*pair) for pair in zip(names, traces, strict=True)], ignore_index=True)
        at = [float(trace.value[np.argmin(np.abs(trace.zeta))]) for trace in traces]
        known = {level: np.array([[trace.lower[0], trace.upper[0]] for trace in traces])}
        return Profile(table, pd.Series(at, index=names), self.reml, estimate, wanted, known)

    def _trace_table(self, name: str, trace: profiles.Trace) -> pd.DataFrame:
        held = pd.DataFrame({"parameter": name, "value": trace.value, "zeta": trace.zeta, "slope": trace.slope})
        labels = self.model.design.labels
        known = [self._without_zeros(*pair) for pair in zip(labels, trace.covariances, strict=True)]
        values = parameter_values(self._spec, trace.beta, known, trace.sigma)
        return pd.concat([held, pd.DataFrame(values, columns=[name for name, _ in self._parameters])], axis=1)

    def _without_zeros(self, label: str, covariance: np.ndarray) -> np.ndarray:
        """Relative covariances (k, q, q), with nan beside variances that count as zero, where rounding decides."""
        zero = vanished(self.model.design, label, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))
        beside = (zero[:, :, None] | zero[:, None, :]) & ~np.eye(covariance.shape[-1], dtype=bool)
        return np.where(beside, np.nan, covariance)


def ml_estimate(design, fit: host.Fit | None) -> profiles.Estimate:
    """The maximum likelihood fit of a design, made unless it is given."""
    fit = host.fit(design, reml=False) if fit is None else fit
    if not fit.outcome.ok:
        raise ModelError(f"profile: the ML fit has no certified optimum ({fit.outcome.name}: {fit.outcome.message})")
    moments = host.design_moments(design)
    return profiles.Estimate(moments, fit.theta, fit.beta, fit.sigma, fit.objective)


def warn_of_traces(traces: Sequence[profiles.Trace], names: Sequence[str]) -> None:
    """Warn of constrained fits that ended early, and of an optimum better than the fit's."""
    if any(trace.improved for trace in traces):
        warn(
            "profile: a better optimum than the ML fit's was found, so that the limits are not certain; fit again with "
            "start_params taken from the rows of the profile's table whose zeta is zero away from the estimate",
            ConvergenceWarning,
        )
    failed = [name for name, trace in zip(names, traces, strict=True) if not trace.converged]
    if failed:
        warn(
            f"profile: a constrained fit of {', '.join(failed)} ended without an optimum; its limits are not certain",
            ConvergenceWarning,
        )
