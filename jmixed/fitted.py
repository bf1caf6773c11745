"""A fit in people's terms: estimates with their labels, random effects, fitted values and predictions."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jmixed import effects, predict
from jmixed.errors import DataError, Outcome
from jmixed.inference.joint_covariance import JointCovariance, joint_covariance
from jmixed.information import diagonal_blocks
from jmixed.names import parameter_names
from jmixed.packing import Packing
from jmixed.params import MixedLMParams
from jmixed.precision import FLOAT
from jmixed.tables import level_of
from jmixed.timing import together
from jmixed.wald import WaldInference


@dataclass(frozen=True, eq=False)
class Optimizer:
    """How the optimiser ended: the certificate of a fit.

    Attributes
    ----------
    outcome : Outcome
    message : str
        What the outcome means and what to do next.
    iterations, evaluations : int
    gradient, hessian_eigenvalues : arrays (m,)
        Of the objective in theta, at the estimate.
    checked_beyond_zero : bool
        Whether a better optimum was looked for beyond a zero column of a relative covariance factor.
    """

    outcome: Outcome
    message: str
    iterations: int
    evaluations: int
    gradient: np.ndarray
    hessian_eigenvalues: np.ndarray
    checked_beyond_zero: bool


class FittedModel(WaldInference):
    """Estimates, random effects and predictions of a fit; `MixedLMResults` is built on it.

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
        """Residual variance, ``sigma ** 2``."""
        return float(self._fit.sigma) ** 2

    @property
    def sigma(self) -> float:
        """Residual standard deviation (at weight one)."""
        return float(self._fit.sigma)

    @property
    def theta(self) -> np.ndarray:
        """Relative covariance factors, column-major lower triangles in the order of the terms, array (m,)."""
        return np.array(self._fit.theta)

    @property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta, array (m, m); NaN where it does not exist."""
        return np.array(self._fit.vcov_theta)

    @property
    def cov_re(self):
        """Covariance of the random effects, on the scale of the data: DataFrame, or array (k_re, k_re)."""
        return self._matrix(self._cov_re, self._names.random)

    @property
    def cov_re_unscaled(self):
        """``cov_re / scale``."""
        return self._matrix(self._cov_re / self.scale, self._names.random)

    @cached_property
    def _cov_re(self):
        blocks = [self._fit.covariances[term.label] for term in self._spec.terms if term.vc is None]
        return diagonal_blocks(*blocks)

    @property
    def vcomp(self) -> np.ndarray:
        """Variance components on the scale of the data, array (k_vc,)."""
        terms = [term for term in self._spec.terms if term.vc is not None]
        return np.array([self._fit.covariances[term.label][0, 0] for term in terms], FLOAT)

    @property
    def params_object(self) -> MixedLMParams:
        """The estimates as `MixedLMParams`, variances divided by ``scale``."""
        return MixedLMParams.from_components(
            self._fit.beta, cov_re=self._cov_re / self.scale, vcomp=self.vcomp / self.scale
        )

    # The fit as a whole.

    @property
    def objective(self) -> float:
        """The REML criterion, or -2 log-likelihood, with all constants."""
        return float(self._fit.objective)

    @property
    def llf(self) -> float:
        """(Restricted) log-likelihood at the estimate, less penalties if there were any."""
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
        """Akaike's criterion; NaN under REML, as in statsmodels (`glance` has lme4's)."""
        return np.nan if self.reml else -2 * self.llf + 2 * self._n_params

    @property
    def bic(self) -> float:
        """Schwarz's criterion; NaN under REML, as in statsmodels (`glance` has lme4's)."""
        return np.nan if self.reml else -2 * self.llf + np.log(self.nobs) * self._n_params

    @property
    def singular(self) -> bool:
        """Whether some covariance of random effects has a variance of zero or a correlation of one."""
        return any(self._fit.singular)

    @property
    def outcome(self) -> Outcome:
        """How the fit ended."""
        return Outcome(self._fit.outcome)

    @property
    def optimizer(self) -> Optimizer:
        """The certificate of the fit."""
        fit = self._fit
        numbers = (fit.iterations, fit.evaluations, fit.gradient, fit.hessian_eigenvalues, fit.checked_beyond_zero)
        return Optimizer(self.outcome, self.outcome.message, *numbers)

    mle_retvals = optimizer

    @property
    def timings(self) -> dict:
        """Seconds by step: of stating the model (parse, materialise, stack), and of this fit (the others).

        ``compile`` is waiting for programs that this process has not run yet, even if the cache on disk has them.
        """
        return together(self.model._timings, self._fit.timings)

    @property
    def k_constant(self) -> int:
        """One when a column of X is constant, else zero."""
        return int(any(term == "Intercept" or term == "const" for term in self._names.fixed))

    # Random effects, fitted values and predictions.

    @cached_property
    def _groups(self) -> effects.Groups:
        self._need_data("random effects by group", rows=False)
        return effects.groups(self._spec, self._names.random)

    @cached_property
    def _sizes(self) -> dict[str, effects.GroupSizes]:
        return effects.group_sizes(self._spec)

    @cached_property
    def random_effects(self) -> dict:
        """Conditional modes by top-level group: dict of group -> Series, groups sorted.

        The index of a Series names the columns of ``cov_re``, then ``component[column]``. A model with several
        grouping factors has no top level: see `ranef`.
        """
        return self._groups.modes(self._fit.b)

    @cached_property
    def random_effects_cov(self) -> dict:
        """Conditional covariances of `random_effects` given the parameters: dict of group -> DataFrame."""
        self._need_data("random_effects_cov", rows=False)
        return self._groups.covariances(self._spec.weights, self._fit)

    def ranef(self, cond_var: bool = False) -> Any:
        """Conditional modes of the random effects by grouping factor.

        Parameters
        ----------
        cond_var : bool
            Return the conditional covariances as well.

        Returns
        -------
        dict of str to DataFrame (levels x columns)
            With `cond_var` a pair: this, and a dict of str to array (levels, q, q).

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.ranef()["Subject"].loc["308"].round(2).to_dict()
        {'Intercept': 2.26, 'Days': 9.2}
        """
        modes = effects.modes(self._spec.terms, self._fit.b)
        return (modes, self._level_covariances) if cond_var else modes

    @cached_property
    def _level_covariances(self) -> dict[str, np.ndarray]:
        self._need_data("conditional covariances", rows=False)
        factors = effects.by_factor(self._spec.terms)
        return {group: self._joint.level_blocks(members) for group, members in factors.items()}

    @property
    def fittedvalues(self):
        """``X beta + offset + Z b``: Series, or array (nobs,)."""
        return self._rows(self._fitted)

    @property
    def resid(self):
        """Response less ``fittedvalues``."""
        return self._rows(self._spec.y - self._fitted)

    @cached_property
    def _fitted(self):
        self._need_data("fittedvalues and resid")
        every = range(len(self._spec.terms))
        return predict.mean(self._spec, self._fit, predict.in_sample(self._spec, every))

    @cached_property
    def _joint(self) -> JointCovariance:
        self._need_data("the joint covariance of fixed and random effects", rows=False)
        codes = [term.codes for term in self._spec.terms]
        return joint_covariance(self.model.design, codes, self._fit)

    def _rows(self, values):
        return pd.Series(values, index=self._spec.index) if self._labelled else values.copy()

    def predict(
        self,
        data=None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: str = "raise",
        interval: str | None = None,
        level: float = 0.95,
        exog=None,
    ):
        """Predict the response: the fixed part and the offset, and on demand the conditional modes.

        Intervals come from the joint covariance of the fixed and the random effects at the estimated variances
        (Henderson 1975), with normal quantiles. A prediction interval is that of a new observation of weight one (for
        the model's own rows: of the row's weight); random effects that the prediction leaves out, of new levels or not
        asked for, add their variance to it.

        Parameters
        ----------
        data : DataFrame or other columns, or array (k, k_fe), optional
            New rows; by default the rows of the model. For a model made from arrays: columns of X.
        transform : bool
            False: `data` holds the columns of X already.
        random_effects : bool, str or list of str
            True adds the conditional modes of all terms, names of grouping factors those of these factors.
        new_levels : str
            "raise", or "population": a level that the model has not seen gets a random effect of zero.
        interval : str, optional
            "confidence": of the predicted mean. "prediction": of a new observation.
        level : float
            Coverage of the interval.
        exog : optional
            The same as `data`, by statsmodels' name.

        Returns
        -------
        array (nobs,) for the model's rows, else a Series with the index of `data`; NaN for rows with missing values.
        With an interval a DataFrame with the columns fit, se, lower and upper.

        Raises
        ------
        DataError
            For a level that the model has not seen, a missing column, or columns of the wrong number.

        Examples
        --------
        >>> import jmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).fit()
        >>> result.predict(data.head(2), random_effects=True).round(2).tolist()
        [253.66, 273.33]
        >>> result.predict(data.head(2), random_effects=True, interval="confidence").round(2).loc[0].tolist()
        [253.66, 12.25, 229.64, 277.68]
        """
        if exog is not None and data is not None:
            raise DataError("predict: exog is another name of data; give one of them")
        data = exog if data is None else data
        if new_levels not in ("raise", "population"):
            raise DataError(f"predict: new_levels={new_levels!r}; use 'raise' or 'population'")
        if interval not in (None, "confidence", "prediction"):
            raise DataError(f"predict: interval={interval!r}; use 'confidence', 'prediction' or None")
        selected = predict.select_terms(self._spec.terms, random_effects)
        rows = self._rows_to_predict(data, transform, selected, new_levels, interval)
        if interval is not None:
            return predict.with_interval(self._spec, self._fit, self._joint, rows, interval, level_of(level))
        values = predict.mean(self._spec, self._fit, rows)
        return values if rows.index is None else pd.Series(values, index=rows.index)

    def _rows_to_predict(self, data, transform, selected, new_levels, interval):
        if data is None:
            self._need_data("predictions of the model's own rows")
            rows = predict.in_sample(self._spec, selected)
            return replace(rows, index=self._spec.index) if interval is not None and self._labelled else rows
        if self._spec.recipe is not None and transform:
            return predict.from_data(self._spec, data, selected, new_levels, every=interval == "prediction")
        if selected or interval == "prediction":
            raise DataError(
                "predict: columns of X do not tell the groups of new rows and the columns of their random effects, "
                f"which {'random_effects' if selected else 'a prediction interval'} needs; fit the model from a "
                "formula, or predict its own rows with data=None"
            )
        return predict.from_columns(self._spec, data)

    def _need_data(self, what: str, rows: bool = True) -> None:
        """Refuse what needs the rows of the data, or with ``rows=False`` at least their cross-products."""
        if not self._has_data:
            raise DataError(f"{what}: the rows of the data were removed by remove_data(); use a result that has them")
        if rows and self._spec.represents is not None:
            raise DataError(
                f"{what}: needs the rows of the data, and from_batches keeps their cross-products only. Use "
                "predict(batch, random_effects=True) on one batch after the other, or fit a part that fits into memory "
                "with mixedlm"
            )
