"""The tables of a result: variances, conditional modes, intervals, tidy rows, and the printed summary."""

from collections.abc import Collection
from functools import cached_property

import numpy as np
import pandas as pd

from jmixed import effects as by_effect
from jmixed import predict, summary, tables
from jmixed.errors import ModelError
from jmixed.estimation import conditional
from jmixed.held import without_coefficients
from jmixed.inference.variance_profile import profile_variance
from jmixed.packing import Packing


class Report:
    """Tables of a fit; `MixedLMResults` is built on it."""

    @cached_property
    def _groups(self) -> by_effect.Groups:
        self._need_data("random effects by group")
        return by_effect.groups(self._spec, self._names.random)

    @cached_property
    def _sizes(self) -> dict[str, by_effect.GroupSizes]:
        return by_effect.group_sizes(self._spec)

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
        self._need_data("random_effects_cov")
        return self._groups.covariances(self._spec.weights, self._fit)

    def ranef(self, cond_var: bool = False):
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
        modes = by_effect.modes(self._spec.terms, self._fit.b)
        return (modes, self._level_covariances) if cond_var else modes

    @cached_property
    def _level_covariances(self) -> dict[str, np.ndarray]:
        self._need_data("conditional covariances")
        spec, fit = self._spec, self._fit
        if len(by_effect.by_factor(spec.terms)) == len(spec.terms):
            found = conditional(self.model.design, fit)
            return {term.group: found[term.label] for term in spec.terms}
        # Terms that share a factor are taken together, with the covariances between them.
        return by_effect.level_covariances(spec.terms, spec.weights, fit.covariances, fit.sigma)

    def var_corr(self) -> pd.DataFrame:
        """Variances and correlations of the random effects, in the layout of lme4's as.data.frame(VarCorr).

        Returns
        -------
        DataFrame
            Columns group, var1, var2, vcov, sdcor. A variance has var2 None; the last row is the residual.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.var_corr()["sdcor"].round(3).tolist()
        [24.74, 5.922, 0.066, 25.592]
        """
        return tables.var_corr(self._spec, self._fit)

    def confint(self, method: str = "wald", level: float = 0.95) -> pd.DataFrame:
        """Confidence limits of the coefficients.

        Parameters
        ----------
        method : str
            "wald": normal limits from the standard errors. Standard deviations and correlations are listed with NaN,
            because normal limits are no use for them.
        level : float
            Coverage.

        Returns
        -------
        DataFrame
            Columns lower and upper; index: coefficients, ``sd_COLUMN|GROUP``, ``cor_B.A|GROUP``, ``sigma``.
        """
        if method != "wald":
            raise ModelError(f"confint: method={method!r}; the method available is 'wald'")
        return tables.wald_intervals(self._spec, self._fit, _level(level))

    def glance(self) -> pd.DataFrame:
        """One row about the fit: nobs, sigma, logLik, AIC, BIC (lme4's, also under REML), criterion, df.residual."""
        return tables.glance(self._fit, self.nobs, self._n_params, self.reml)

    def tidy(
        self, effects: str | Collection[str] = "fixed", conf_int: bool = False, conf_level: float = 0.95
    ) -> pd.DataFrame:
        """Estimates as rows, with the column names of broom.mixed.

        Parameters
        ----------
        effects : str or list of str
            "fixed" (coefficients), "ran_pars" (standard deviations and correlations), "ran_vals" (conditional modes).
        conf_int : bool
            Add conf.low and conf.high, normal limits; NaN for "ran_pars".
        conf_level : float
            Coverage.

        Returns
        -------
        DataFrame
        """
        level = _level(conf_level) if conf_int else None
        parts = []
        for effect in [effects] if isinstance(effects, str) else effects:
            if effect == "fixed":
                parts.append(tables.tidy_fixed(self._spec, self._fit, level))
            elif effect == "ran_pars":
                parts.append(tables.tidy_ran_pars(self._spec, self._fit, level))
            elif effect == "ran_vals":
                parts.append(tables.tidy_ran_vals(*self.ranef(cond_var=True), level))
            else:
                raise ModelError(f"tidy: effects={effect!r}; use 'fixed', 'ran_pars', 'ran_vals' or a list of these")
        return parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True)

    def augment(self, data=None) -> pd.DataFrame:
        """The data with fitted values beside them.

        Parameters
        ----------
        data : DataFrame, optional
            New rows; levels that the model has not seen get a random effect of zero. By default the model's rows.

        Returns
        -------
        DataFrame
            A copy with the columns ``.fitted``, ``.fixed`` (without random effects) and, for the model's rows,
            ``.resid``.
        """
        if data is not None:
            fitted = self.predict(data, random_effects=True, new_levels="population")
            return pd.DataFrame(data).assign(**{".fitted": fitted, ".fixed": self.predict(data)})
        self._need_data("augment")
        spec = self._spec
        frame = pd.DataFrame(index=spec.index) if spec.frame is None else spec.frame
        fixed = predict.fixed_part(spec, self._fit.beta)
        return frame.assign(**{".fitted": self._fitted, ".resid": spec.y - self._fitted, ".fixed": fixed})

    def summary(self, yname=None, xname_fe=None, xname_re=None, title=None, alpha: float = 0.05) -> summary.Summary:
        """Tables of the fit for reading: text when printed, HTML in a notebook, LaTeX by ``as_latex()``.

        Parameters
        ----------
        yname, title : str, optional
            Names to print in place of the model's.
        xname_fe, xname_re : list of str, optional
            Names of the coefficients and of the variance parameters.
        alpha : float
            The intervals have level 1 - alpha.

        Returns
        -------
        Summary
        """
        fixed = summary.replaced("xname_fe", self._names.fixed, xname_fe)
        variance = summary.replaced("xname_re", self._names.variance, xname_re)
        error = self._bse[: self.k_fe]
        body = summary.parameter_table(
            [*fixed, *variance], self._fit.beta, error, self._psi * self.scale, self._bse_re, alpha
        )
        right = [
            ("Dependent Variable:", yname or self._spec.endog_name),
            ("Method:", self.method),
            ("Scale:", summary.short(self.scale)),
            ("Log-Likelihood:", summary.short(self.llf)),
            ("Converged:", "Yes" if self.converged else "No"),
        ]
        head = summary.header_table(summary.sizes(self.nobs, self._sizes), right)
        return summary.Summary([head, body], title or summary.TITLE, summary.notes(self._spec, self._fit, self.outcome))

    def profile_re(
        self,
        re_ix: int | str,
        vtype: str,
        num_low: int = 5,
        dist_low: float = 1.0,
        num_high: int = 5,
        dist_high: float = 1.0,
        **fit_kwargs,
    ) -> np.ndarray:
        """Log-likelihood with one variance held at values around its estimate, all else re-estimated.

        Parameters
        ----------
        re_ix : int or str
            Position of the random effect in ``cov_re`` ("re"), or name of the variance component ("vc").
        vtype : str
            "re" or "vc".
        num_low, num_high : int
            Numbers of values below and above the estimate.
        dist_low, dist_high : float
            Distance of the outermost values from the estimate, on the scale of the data.
        **fit_kwargs
            Options of the refits: method, maxiter, gtol.

        Returns
        -------
        array (num_low + num_high + 1, 2)
            The variance (held relative to the residual variance, which differs between the refits), and the
            log-likelihood.

        Raises
        ------
        ValueError
            For another `vtype`, an unknown variance, or a `dist_low` that leads to variances of zero or less.
        """
        self._need_data("profile_re")
        term, column = self._find_variance(re_ix, vtype)
        covariance = self._fit.covariances[self._spec.terms[term].label]
        estimate = covariance[column, column]
        if not 0 <= dist_low < estimate:
            raise ModelError(
                f"profile_re: dist_low is {dist_low:g}, but the variance is {estimate:g}: "
                "dist_low must not be negative, nor reach the variance"
            )
        low = np.linspace((estimate - dist_low) / self.scale, estimate / self.scale, num_low + 1)
        high = np.linspace(estimate / self.scale, (estimate + dist_high) / self.scale, num_high + 1)[1:]
        values = np.concatenate([low, high])
        free = Packing.of(self._spec.terms).theta_from_root(self._free) != 0
        design = self.model.design
        if self.freepat is not None and not np.all(self.freepat.fe_params):
            design = without_coefficients(design, self._fit.beta, np.asarray(self.freepat.fe_params) != 0)
        return profile_variance(design, self.theta, term, column, values, free, self.reml, **fit_kwargs)

    def _find_variance(self, re_ix, vtype) -> tuple[int, int]:
        if vtype not in ("re", "vc"):
            raise ModelError(f"vtype is {vtype!r}; it must be 're' or 'vc'")
        if vtype == "vc":
            names = [term.vc for term in self._spec.terms]
            if re_ix is None or re_ix not in names:
                raise ModelError(f"no variance component {re_ix!r}; the model has {list(self._names.vcomp)}")
            return names.index(re_ix), 0
        if not isinstance(re_ix, int | np.integer) or not 0 <= re_ix < self.k_re:
            raise ModelError(f"re_ix is {re_ix!r}; it must be a position from 0 to {self.k_re - 1} in cov_re")
        random = [(t, term) for t, term in enumerate(self._spec.terms) if term.vc is None]
        return [(t, k) for t, term in random for k in range(len(term.columns))][re_ix]


def _level(level: float) -> float:
    if not 0 < level < 1:
        raise ModelError(f"level is {level!r}; it must lie between 0 and 1, for example 0.95")
    return float(level)
