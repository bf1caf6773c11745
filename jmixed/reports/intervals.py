"""Confidence intervals of all parameters: Wald, profile and bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from jmixed.covariance.scales import vanished
from jmixed.errors import ConvergenceWarning, ModelError, warn
from jmixed.fit import host
from jmixed.formulas.model_data import ResidualTerm
from jmixed.inference import profiles, tails
from jmixed.inference.profiles import Parameter
from jmixed.layout.design import Design
from jmixed.reports import components, further
from jmixed.reports.bootstrap import bootstrap, check_kind
from jmixed.reports.components import named_parameters, parameter_values
from jmixed.reports.fitted import Fitted
from jmixed.reports.printed import Shown, noted
from jmixed.reports.residuals import parameter_values as residual_values
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
    estimates : Series (parameters,)
        Maximum likelihood estimates of what was profiled.
    reml : bool
        Whether the fit that was profiled was by REML; the profile is that of the ML deviance in any case.
    """

    table: pd.DataFrame
    estimates: pd.Series
    reml: bool
    _fit: profiles.Optimum = field(repr=False)
    _parameters: list[Parameter] = field(repr=False)
    _known: dict[float, np.ndarray] = field(repr=False)

    def confint(self, level: float = 0.95) -> pd.DataFrame:
        """Where zeta reaches the normal quantiles of coverage `level`, to 1e-8 of zeta: columns lower and upper.

        A limit is the end of the parameter's range (0 for a standard deviation, -1 or 1 for a correlation) when the
        profile does not reach the cut, and NaN when it could not be found.

        Examples
        --------
        >>> result.profile("sigma").confint(0.95).round(2).loc["sigma"].tolist()
        [22.9, 28.86]
        """
        level = float(level)
        if level not in self._known:
            traces = profiles.profile(self._fit, self._parameters, [tails.half_width(level)])
            self._known[level] = np.array([[trace.lower[0], trace.upper[0]] for trace in traces])
        table = pd.DataFrame(self._known[level], index=self.estimates.index, columns=["lower", "upper"])
        return noted(table, BY_ML if self.reml else "")

    def _shown(self) -> tuple[str, pd.DataFrame]:
        # The limits that are at hand: others take more fits.
        level, limits = next(iter(self._known.items()))
        fits = f"<Profile: {len(self.table)} constrained fits of {len(self.estimates)} parameters>"
        columns = {"estimate": self.estimates, "lower": limits[:, 0], "upper": limits[:, 1]}
        return f"{fits}, {100 * level:g}% limits", pd.DataFrame(columns, index=self.estimates.index)


def confint(
    fitted: Fitted,
    method: str,
    level: float,
    which: str | Sequence[str] | None,
    n: int,
    key: Any,
    kind: str,
    progress: bool,
) -> pd.DataFrame:
    """Confidence limits of the parameters, by any method."""
    level, places = float(level), _places(fitted, which)
    if method == "wald":
        return components.wald_intervals(fitted, level).iloc[places]
    if method == "profile":
        return _profiled(fitted, places, level, 0, progress).confint(level)
    if method == "bootstrap":
        check_kind(kind)
        return bootstrap(fitted, n, key, "new", progress).confint(level, kind).iloc[places]
    raise ModelError(f"confint: method={method!r}; use 'wald', 'profile' or 'bootstrap'")


def profile(fitted: Fitted, which: str | Sequence[str] | None, level: float, steps: int, progress: bool) -> Profile:
    """Profile the ML deviance."""
    return _profiled(fitted, _places(fitted, which), float(level), int(steps), progress)


def _places(fitted: Fitted, which: str | Sequence[str] | None) -> list[int]:
    """Positions of the parameters asked for."""
    names = components.all_names(fitted)
    if which is None:
        return list(range(len(names)))
    wanted = [which] if isinstance(which, str) else list(which)
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise ModelError(f"no parameter {unknown or wanted}; the parameters are {names}")
    return [place for name in wanted for place, known in enumerate(names) if known == name]


def _profiled(fitted: Fitted, places: list[int], level: float, steps: int, progress: bool) -> Profile:
    fitted.need_data("profile", rows=False)
    fitted.refuse_held("profile")
    fitted.refuse_iterative("profile", "confint('wald')")
    every = named_parameters(fitted.spec, further.parameter_names(fitted.model))
    names, wanted = [every[place][0] for place in places], [every[place][1] for place in places]
    _refuse_without_profile(fitted, every, names)
    if fitted.family is None:
        estimate = ml_estimate(fitted.model.design, None if fitted.reml else fitted.fit, fitted.spec.residual)
    else:
        estimate = response_estimate(fitted)
    with bar(2 * len(wanted), progress, "profile") as advance:
        traces = profiles.profile(estimate, wanted, [tails.half_width(level)], steps, advance)
    warn_of_traces(traces, names)
    columns = [name for name, _ in every]
    tables = [_trace_table(fitted, columns, *pair) for pair in zip(names, traces, strict=True)]
    at = [float(trace.value[np.argmin(np.abs(trace.zeta))]) for trace in traces]
    known = {level: np.array([[trace.lower[0], trace.upper[0]] for trace in traces])}
    table = pd.concat(tables, ignore_index=True)
    return Profile(table, pd.Series(at, index=names), fitted.reml, estimate, wanted, known)


def _refuse_without_profile(fitted: Fitted, every: Sequence[tuple[str, Parameter]], names: Sequence[str]) -> None:
    """Refuse the parameters of covariances that can be followed in no chart."""
    without = [
        name for name, parameter in every if not profiles.has_profile(fitted.model.design.layout.terms, parameter)
    ]
    if bad := [name for name in names if name in without]:
        raise ModelError(
            f"profile: {', '.join(bad)} {'have' if len(bad) > 1 else 'has'} none, as parameters of a covariance with "
            f"this structure. Use confint(method='bootstrap'), or leave them out: which="
            f"{[name for name, _ in every if name not in without]}"
        )


def _trace_table(fitted: Fitted, columns: list[str], name: str, trace: profiles.Trace) -> pd.DataFrame:
    """The fits in which one parameter was held, with the values of all."""
    of_trace = pd.DataFrame({"parameter": name, "value": trace.value, "zeta": trace.zeta, "slope": trace.slope})
    design, rho = fitted.model.design, None if fitted.family is not None else trace.rho
    known = [_without_zeros(design, *pair, rho) for pair in zip(design.labels, trace.covariances, strict=True)]
    values = parameter_values(fitted.spec, trace.beta, known, trace.sigma, trace.rho)
    more = residual_values(fitted.spec, trace.rho)
    if fitted.family is not None:
        more = further.parameter_values(fitted.model, trace.kappa)
    values = np.hstack([values, more])
    return pd.concat([of_trace, pd.DataFrame(values, columns=columns)], axis=1)


def _without_zeros(design: Design, label: str, covariance: np.ndarray, rho: np.ndarray | None) -> np.ndarray:
    """Relative covariances (k, q, q), with nan beside variances that count as zero, where rounding decides."""
    zero = vanished(design, label, np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)), rho)
    beside = (zero[:, :, None] | zero[:, None, :]) & ~np.eye(covariance.shape[-1], dtype=bool)
    return np.where(beside, np.nan, covariance)


def ml_estimate(design: Design, fit: host.Fit | None, residual: ResidualTerm | None = None) -> profiles.Unconstrained:
    """The maximum likelihood fit of a design, made unless it is given; with the units of its `residual` structure."""
    fit = host.fit(design, reml=False) if fit is None else fit
    _require_optimum(fit)
    known = fit.theta, fit.beta, fit.sigma, fit.objective, fit.rho
    if residual is None:
        return profiles.Unconstrained(host.design_moments(design), *known)
    whitened, moments = host.design_whitened(design, fit.rho)
    return profiles.Unconstrained(moments, *known, whitened, residual.unit, residual.units, residual.shift)


def response_estimate(fitted: Fitted) -> profiles.UnconstrainedResponse:
    """The fit of a response with a family, with its criterion."""
    fit = fitted.fit
    _require_optimum(fit)
    errors = np.sqrt(np.concatenate([np.diag(fit.vcov_beta), np.diag(fit.vcov_kappa)]))
    criterion = host.design_criterion(fitted.model.design)
    known = fit.theta, fit.beta, fit.kappa, fit.objective, errors
    return profiles.UnconstrainedResponse(criterion, *known, further.has_thresholds(fitted.own_family))


def _require_optimum(fit: host.Fit) -> None:
    if not fit.outcome.ok:
        raise ModelError(f"profile: the ML fit has no certified optimum ({fit.outcome.name}: {fit.outcome.message})")


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
