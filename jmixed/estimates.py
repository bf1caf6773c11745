"""The estimates of a fit and how it ended, with their labels: `MixedLMResults` is built on it."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jmixed.compat.packing import Packing
from jmixed.compat.params import MixedLMParams
from jmixed.compat.wald import WaldInference
from jmixed.covariance.scales import diagonal_blocks
from jmixed.errors import Outcome
from jmixed.reports.names import parameter_names
from jmixed.runtime.facts import Facts
from jmixed.runtime.precision import FLOAT
from jmixed.runtime.timing import together


@dataclass(frozen=True, eq=False, repr=False)
class Optimizer(Facts):
    """How the optimiser ended: the certificate of a fit.

    Attributes
    ----------
    outcome : Outcome
    message : str
        What the outcome means and what to do next.
    iterations, evaluations : int
        Of the search that ended at the estimate, and of those from all starts.
    starts : int
        From how many starts the optimum was searched; the lowest is reported. One where the model is known to have
        one minimum, or where `start_params` were given.
    gradient, hessian_eigenvalues : arrays (m,)
        Of the objective at the estimate, in the optimiser's own coordinates: square roots of the terms' relative
        covariances along their principal axes, in columns of unit size. A standard deviation of zero is an ordinary
        point there, and its curvature tells whether the objective rises beyond it. They are not derivatives in theta.
    checked_beyond_zero : bool
        Whether an optimum was found and the objective has, in these coordinates, no direction of negative curvature:
        no variance or direction of a covariance that is zero would lower it if it were not.
    """

    outcome: Outcome
    message: str
    iterations: int
    evaluations: int
    starts: int
    gradient: np.ndarray
    hessian_eigenvalues: np.ndarray
    checked_beyond_zero: bool

    def _facts(self) -> tuple[str, dict[str, object]]:
        return f"{self.outcome.name}: {self.message}", {
            "iterations": self.iterations,
            "evaluations": self.evaluations,
            "largest gradient": float(np.max(np.abs(self.gradient), initial=0)),
            "least curvature": float(np.min(self.hessian_eigenvalues, initial=np.inf)),
            "checked beyond zero": self.checked_beyond_zero,
        }


class Estimates(WaldInference):
    """Estimates of a fit, and the fit as a whole; `MixedLMResults` is built on it.

    Parameters
    ----------
    As of `MixedLMResults`.
    """

    model: Any
    freepat: Any
    use_t = False

    def __init__(self, model, fit, reml, free=None, hist=None, penalty=None):
        self.model, self.reml, self.freepat, self.hist = model, bool(reml), free, hist
        self.method = "REML" if self.reml else "ML"
        self._spec, self._fit, self._labelled = model.spec, fit, bool(model.labelled)
        self._names = parameter_names(self._spec)
        self._penalty = 0.0 if penalty is None else float(penalty)
        self._has_data = True
        self.use_sqrt = bool(getattr(model, "use_sqrt", True))
        self.nobs, self.k_fe = self._spec.nobs, len(fit.beta)
        self.k_re, self.k_re2, self.k_vc = (
            len(labels) for labels in (self._names.random, self._names.random_full, self._names.vcomp)
        )
        self.df_resid = self.nobs - self.k_fe
        self.df_modelwc = self.k_fe + self.k_re2 + self.k_vc
        self.converged = bool(fit.converged)

    # Estimates.

    @property
    def scale(self) -> float:
        """Residual variance, ``sigma ** 2``, in the squared unit of the response.

        Examples
        --------
        >>> round(result.scale, 3)
        654.941
        """
        return float(self._fit.sigma) ** 2

    @property
    def sigma(self) -> float:
        """Residual standard deviation (at weight one), in the unit of the response.

        Examples
        --------
        >>> round(result.sigma, 3)
        25.592
        """
        return float(self._fit.sigma)

    @property
    def theta(self) -> np.ndarray:
        """Relative covariance factors, column-major lower triangles in the order of the terms, array (m,).

        They are those of Bates et al. (2015), section 2.3; ``model.theta_names`` labels them.

        Examples
        --------
        >>> result.theta.round(4).tolist(), result.model.theta_names
        ([0.9667, 0.0152, 0.2309], ['Subject.Intercept', 'Subject.Days.Intercept', 'Subject.Days'])
        """
        return np.array(self._fit.theta)

    @property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta, array (m, m); NaN where it does not exist.

        Examples
        --------
        >>> result.vcov_theta.shape
        (3, 3)
        """
        return np.array(self._fit.uncertainty.vcov_theta)

    @property
    def cov_re(self) -> pd.DataFrame:
        """Covariance of the random effects, on the scale of the data: DataFrame, or array (k_re, k_re).

        Variance components are not in it: see `vcomp`, and `var_corr` for both together.

        Examples
        --------
        >>> result.cov_re.round(3)
                 Subject    Days
        Subject  612.090   9.604
        Days       9.604  35.072
        """
        return self._matrix(self._cov_re, self._names.random)

    @property
    def cov_re_unscaled(self) -> pd.DataFrame:
        """``cov_re / scale``: DataFrame, or array (k_re, k_re).

        Examples
        --------
        >>> result.cov_re_unscaled.round(3)
                 Subject   Days
        Subject    0.935  0.015
        Days       0.015  0.054
        """
        return self._matrix(self._cov_re / self.scale, self._names.random)

    @cached_property
    def _cov_re(self):
        blocks = [self._fit.covariances[term.label] for term in self._spec.terms if term.vc is None]
        return diagonal_blocks(*blocks)

    @property
    def vcomp(self) -> np.ndarray:
        """Variance components on the scale of the data, array (k_vc,), in the order of their names.

        Examples
        --------
        >>> import jmixed as jm
        >>> words = {"groups": "Subject", "re_formula": "1", "vc_formula": {"Days": "0 + Days"}}
        >>> jm.mixedlm("Reaction ~ Days", jm.datasets.load("sleepstudy"), **words).fit().vcomp.round(2)
        array([35.86])
        """
        terms = [term for term in self._spec.terms if term.vc is not None]
        return np.array([self._fit.covariances[term.label][0, 0] for term in terms], FLOAT)

    @property
    def params_object(self) -> MixedLMParams:
        """The estimates as `MixedLMParams`, variances divided by ``scale``: start values for another fit.

        Examples
        --------
        >>> result.params_object.cov_re.round(3).tolist()
        [[0.935, 0.015], [0.015, 0.054]]
        """
        return MixedLMParams.from_components(
            self._fit.beta, cov_re=self._cov_re / self.scale, vcomp=self.vcomp / self.scale
        )

    # The fit as a whole.

    @property
    def objective(self) -> float:
        """The REML criterion, or -2 log-likelihood, with all constants: lme4's ``REMLcrit`` and ``-2 * logLik``.

        Examples
        --------
        >>> round(result.objective, 4)
        1743.6283
        """
        return float(self._fit.objective)

    @property
    def llf(self) -> float:
        """(Restricted) log-likelihood at the estimate, less penalties if there were any.

        Examples
        --------
        >>> round(result.llf, 4)
        -871.8141
        """
        return float(self._fit.log_likelihood) - self._penalty

    @property
    def _n_params(self) -> int:
        fixed = self.k_fe if self.freepat is None else np.count_nonzero(self.freepat.fe_params)
        return int(fixed + np.count_nonzero(self._free) + 1)

    @property
    def _free(self) -> np.ndarray:
        """One for each variance parameter that was estimated, zero for one that was held, in the order of psi."""
        packing = Packing.of(self._spec.terms)
        if self.freepat is None:
            return np.ones(packing.size)
        return (packing.pack(self.freepat.cov_re, self.freepat.vcomp, "free") != 0).astype(FLOAT)

    @property
    def aic(self) -> float:
        """Akaike's criterion; NaN under REML, as in statsmodels (`glance` has lme4's).

        Examples
        --------
        >>> result.aic, round(model.update().fit(reml=False).aic, 3)
        (nan, 1763.939)
        """
        return np.nan if self.reml else -2 * self.llf + 2 * self._n_params

    @property
    def bic(self) -> float:
        """Schwarz's criterion; NaN under REML, as in statsmodels (`glance` has lme4's).

        Examples
        --------
        >>> result.bic, round(model.update().fit(reml=False).bic, 3)
        (nan, 1783.097)
        """
        return np.nan if self.reml else -2 * self.llf + float(np.log(self.nobs)) * self._n_params

    @property
    def singular(self) -> bool:
        """Whether some covariance of random effects has a variance of zero or a correlation of one.

        It does not depend on units: an effect counts as zero below 1e-4 sigma.

        Examples
        --------
        >>> result.singular
        False
        """
        return any(self._fit.singular)

    @property
    def outcome(self) -> Outcome:
        """How the fit ended: an `Outcome`, whose ``message`` says what to do.

        Examples
        --------
        >>> result.outcome.name
        'CONVERGED'
        """
        return Outcome(self._fit.outcome)

    @property
    def optimizer(self) -> Optimizer:
        """The certificate of the fit: an `Optimizer`; ``mle_retvals`` is the same.

        Examples
        --------
        >>> result.optimizer.outcome.name, bool(result.optimizer.hessian_eigenvalues.min() > 0)
        ('CONVERGED', True)
        """
        fit = self._fit
        message = self.outcome.message
        if self.outcome.ok and fit.starts > 1:
            message += f"; no lower minimum from {fit.starts} starts"
        counts = fit.iterations, fit.evaluations, fit.starts
        derivatives = fit.gradient, fit.hessian_eigenvalues, fit.checked_beyond_zero
        return Optimizer(self.outcome, message, *counts, *derivatives)

    mle_retvals = optimizer

    @property
    def timings(self) -> dict:
        """Seconds by step: of stating the model (parse, materialise, stack), and of this fit (the others).

        ``compile`` is waiting for programs that this process has not run yet, even if the cache on disk has them. Of a
        few thousand rows ``cross_products`` is zero: they are part of the program that optimises.

        Examples
        --------
        >>> result.timings["optimise"] > 0
        True
        """
        return together(self.model.timings, self._fit.timings)

    @property
    def k_constant(self) -> int:
        """One when a column of X is constant, else zero.

        Examples
        --------
        >>> result.k_constant
        1
        """
        return int(any(term == "Intercept" or term == "const" for term in self._names.fixed))
