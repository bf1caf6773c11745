"""The result of a fit: all that is told of it, each by a function of its own; and keeping it in a file."""

import os
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self, overload

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from jmixed.compat import profile_re, wald
from jmixed.compat.contrasts import ContrastTest
from jmixed.compat.for_statsmodels import FixedEffects, for_statsmodels
from jmixed.compat.params import MixedLMParams
from jmixed.errors import DataError, ModelError, Outcome
from jmixed.fit.host import MonteCarlo
from jmixed.formulas.restate import names_of_caller
from jmixed.inference import tails
from jmixed.inference.variance_explained import IntraclassCorrelation, VarianceExplained
from jmixed.reports import (
    approximation,
    as_lme4,
    bootstrap,
    checks,
    comparison,
    components,
    diagnostics,
    effects,
    expected,
    files,
    further,
    intervals,
    marginal,
    predict,
    residuals,
    responses,
    sentences,
    summary,
    tests,
    tidy,
)
from jmixed.reports.bootstrap import Bootstrap
from jmixed.reports.checks import Checks
from jmixed.reports.diagnostics import Influence
from jmixed.reports.expected import Kind
from jmixed.reports.fitted import Fitted, Optimizer, monte_carlo, optimizer
from jmixed.reports.hypotheses import Hypotheses
from jmixed.reports.intervals import Profile
from jmixed.reports.marginal import Adjust, EMMeans, MeanKind, Weights
from jmixed.reports.predict import Interval, NewLevels
from jmixed.reports.summary import Summary
from jmixed.reports.tests import Ddf, Type
from jmixed.runtime.arguments import checked
from jmixed.runtime.files import write_whole
from jmixed.runtime.timing import together


@checked
class MixedLMResults:
    """Estimates of a mixed model, complete in themselves: later fits of the same model change nothing here.

    ``params``, ``bse``, ``cov_params()`` and what follows from them hold variance parameters divided by ``scale``, as
    in statsmodels; ``cov_re``, ``vcomp`` and ``bse_re`` are on the scale of the data. Labels are attached when the data
    had labels: what is said to be a Series or a DataFrame is else an array.

    Parameters
    ----------
    model : MixedLM
    fit : Fit
    reml
        Whether the fit is by restricted maximum likelihood.
    free
        Which parameters were estimated (1) or held (0).
    hist
        Record of the optimisation, with ``full_output=True``.
    penalty
        Value of the penalties at the estimate; ``llf`` is the log-likelihood less this.

    Attributes
    ----------
    fitted : Fitted
        The data and the fit, from which everything here is made.

    Examples
    --------
    In the examples of the methods, ``model`` and ``result`` are these:

    >>> import jmixed as jm
    >>> model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> result = model.fit()
    >>> result.fe_params.round(3).to_dict()
    {'Intercept': 251.405, 'Days': 10.467}
    >>> round(result.sigma, 3), result.converged, result.singular
    (25.592, True, False)
    """

    use_t = False

    def __init__(
        self,
        model: Any,
        fit: Any,
        reml: bool,
        free: MixedLMParams | None = None,
        hist: list[dict] | None = None,
        penalty: float | None = None,
    ):
        held = wald.held(model.spec, fit, free)
        self._set_up(Fitted(model, fit, bool(reml), held, 0.0 if penalty is None else float(penalty)), free, hist)

    def _set_up(self, fitted: Fitted, free: MixedLMParams | None, hist: list[dict] | None) -> Self:
        self.fitted, self.model, self.freepat, self.hist = fitted, fitted.model, free, hist
        self.reml, self.method, self.converged = fitted.reml, fitted.method, bool(fitted.fit.converged)
        self.use_sqrt = bool(getattr(self.model, "use_sqrt", True))
        self.nobs, self.k_fe, self.df_resid = fitted.nobs, fitted.k_fe, fitted.df_resid
        names = fitted.names
        self.k_re, self.k_re2, self.k_vc = len(names.random), len(names.random_full), len(names.vcomp)
        self.df_modelwc = self.k_fe + self.k_re2 + self.k_vc
        return self

    # Estimates.

    @property
    def params(self) -> pd.Series:
        """Coefficients, then variance parameters divided by ``scale``: Series (k,)."""
        return self.fitted.vector(wald.estimate(self.fitted), self.fitted.names.all)

    @property
    def fe_params(self) -> pd.Series:
        """Fixed-effects coefficients, in the response's unit per unit of the column: Series (k_fe,)."""
        return self.fitted.vector(self.fitted.fit.beta, self.fitted.names.fixed)

    @property
    def scale(self) -> float:
        """Residual variance, ``sigma ** 2``, in the squared unit of the response."""
        return self.fitted.sigma**2

    @property
    def sigma(self) -> float:
        """Residual standard deviation (at weight one), in the unit of the response."""
        return self.fitted.sigma

    @property
    def theta(self) -> np.ndarray:
        """Relative covariance factors, column-major lower triangles in the order of the terms, array (m,).

        They are those of Bates et al. (2015), section 2.3; ``model.theta_names`` labels them.
        """
        return np.array(self.fitted.fit.theta)

    @property
    def cov_re(self) -> pd.DataFrame:
        """Covariance of the random effects, on the scale of the data: DataFrame (k_re, k_re).

        Variance components are not in it: see `vcomp`, and `var_corr` for both together.
        """
        return self.fitted.matrix(wald.cov_re(self.fitted.spec, self.fitted.fit), self.fitted.names.random)

    @property
    def cov_re_unscaled(self) -> pd.DataFrame:
        """``cov_re / scale``: DataFrame (k_re, k_re)."""
        return self.cov_re / self.scale

    @property
    def vcomp(self) -> np.ndarray:
        """Variance components on the scale of the data, array (k_vc,), in the order of their names."""
        return wald.vcomp(self.fitted.spec, self.fitted.fit)

    @property
    def params_object(self) -> MixedLMParams:
        """The estimates as `MixedLMParams`, variances divided by ``scale``: for `MixedLM.loglike` and as a start."""
        return wald.params_object(self.fitted.spec, self.fitted.fit, self.reml)

    def var_corr(self) -> pd.DataFrame:
        """Variances and correlations of the random effects, in the layout of lme4's as.data.frame(VarCorr).

        Columns group, var1, var2, vcov, sdcor. A variance has var2 None; the last row is the residual.

        Examples
        --------
        >>> result.var_corr()["sdcor"].round(3).tolist()
        [24.74, 5.922, 0.066, 25.592]
        """
        return components.var_corr(self.fitted.spec, self.fitted.fit)

    def residual_corr(self) -> pd.DataFrame:
        """Estimated correlations of the residuals of a group, between its positions: DataFrame (k, k).

        Raises `ModelError` for a model of independent residuals, or of more than 200 positions.

        Examples
        --------
        >>> import jmixed as jm
        >>> ar1 = jm.mixedlm("Reaction ~ Days", jm.datasets.load("sleepstudy"), residual="ar1(Days | Subject)").fit()
        >>> ar1.residual_corr().loc[0, [0, 1, 2]].round(3).tolist()
        [1.0, 0.8, 0.64]
        """
        self.fitted.need_data("residual_corr")
        return residuals.residual_corr(self.fitted.spec, self.fitted.fit)

    def residual_sd(self) -> pd.Series:
        """Estimated standard deviations of residuals of weight one, in the unit of the response: Series (k,).

        By what they depend on, positions or columns of the dispersion; by row where that are more than 200
        combinations, and one number where they depend on nothing.
        """
        self.fitted.need_data("residual_sd")
        return residuals.residual_sd(self.fitted.spec, self.fitted.fit)

    def tidy(
        self,
        effects: str | Collection[str] = "fixed",
        conf_int: bool = False,
        conf_level: float = 0.95,
        ddf: Ddf | None = None,
    ) -> pd.DataFrame:
        """Estimates as rows, with the column names of broom.mixed; coefficients with the tests of `report`.

        Raises `ModelError` for another kind of effects, a level outside (0, 1), and for degrees of freedom that the fit
        does not have.

        Parameters
        ----------
        effects
            "fixed" (coefficients), "ran_pars" (standard deviations and correlations), "ran_vals" (conditional modes).
        conf_int
            Add conf.low and conf.high: of coefficients by the t distribution, of modes by the normal one; of "ran_pars"
            those of the residuals' parameters, else NaN.
        conf_level
            Coverage.
        ddf
            Of df, p.value and the limits of coefficients, as in `report`.

        Examples
        --------
        >>> result.tidy()
          effect       term estimate std.error statistic    df  p.value
        0  fixed  Intercept  251.405     6.825    36.838  17.0  1.2e-17
        1  fixed       Days   10.467     1.546     6.771  17.0  3.3e-06
        """
        return tidy.tidy(self.fitted, effects, conf_int, conf_level, ddf)

    def summary(
        self,
        yname: str | None = None,
        xname_fe: Sequence[str] | None = None,
        xname_re: Sequence[str] | None = None,
        title: str | None = None,
        alpha: float = 0.05,
        ddf: Ddf | None = None,
        style: Literal["statsmodels", "lme4"] = "statsmodels",
    ) -> Summary:
        """Tables of the fit for reading: text when printed, HTML in a notebook, LaTeX by ``as_latex()``.

        Parameters
        ----------
        yname, title
            Names to print in place of the model's. A `yname` that is one of the words for `ddf` is taken as such.
        xname_fe, xname_re
            Names of the coefficients and of the variance parameters.
        alpha
            The intervals have level 1 - alpha.
        ddf
            "none": z tests. "satterthwaite", "kenward-roger" or "residual": t tests, as in `test`. By default z tests
            in statsmodels' style, and in lme4's as in `report`, and as lmerTest has them.
        style
            "lme4": the blocks that lme4 prints, in its order.

        Raises
        ------
        DataError
            For a wrong number of names.
        ModelError
            For an unknown `ddf` or `style`, and for "kenward-roger" after ML.

        Examples
        --------
        >>> result.summary(ddf="satterthwaite").tables[1].loc["Days"].tolist()
        ['10.467', '1.546', '17.0', '6.771', '0.000', '7.206', '13.729']
        """
        kind = tests.usual_ddf(self.fitted, ddf) if style == "lme4" else ddf or "none"
        usual = summary.summarise(self.fitted, yname, xname_fe, xname_re, title, alpha, kind)
        return as_lme4.in_style(self.fitted, usual, style, kind)

    # The fit as a whole.

    @property
    def objective(self) -> float:
        """The REML criterion, or -2 log-likelihood, with all constants: lme4's ``REMLcrit`` and ``-2 * logLik``."""
        return float(self.fitted.fit.objective)

    @property
    def llf(self) -> float:
        """(Restricted) log-likelihood at the estimate, less penalties if there were any."""
        return self.fitted.llf

    @property
    def aic(self) -> float:
        """Akaike's criterion; NaN under REML, as in statsmodels (`glance` has lme4's)."""
        return np.nan if self.reml else self.fitted.aic

    @property
    def bic(self) -> float:
        """Schwarz's criterion; NaN under REML, as in statsmodels (`glance` has lme4's)."""
        return np.nan if self.reml else self.fitted.bic

    def glance(self) -> pd.DataFrame:
        """One row about the fit, with the column names of broom.mixed.

        Columns nobs, sigma, logLik, AIC and BIC (lme4's, also under REML), REMLcrit or deviance, df.residual.
        """
        return components.glance(self.fitted)

    @property
    def singular(self) -> bool:
        """Whether some covariance of random effects has a variance of zero or a correlation of one.

        It does not depend on units: an effect counts as zero below 1e-4 sigma.
        """
        return any(self.fitted.fit.singular)

    @property
    def outcome(self) -> Outcome:
        """How the fit ended: an `Outcome`, whose ``message`` says what to do."""
        return self.fitted.fit.outcome

    @property
    def optimizer(self) -> Optimizer:
        """The certificate of the fit: an `Optimizer`; ``mle_retvals`` is the same."""
        return optimizer(self.fitted.fit)

    mle_retvals = optimizer

    @property
    def monte_carlo(self) -> MonteCarlo | None:
        """How well a fit by probes is known, a `MonteCarlo`; None of one that needed none.

        Crossed factors of many levels are fitted with random probes, which leave an error: see ``crossed=`` of `fit`.
        """
        return monte_carlo(self.fitted)

    @property
    def timings(self) -> dict:
        """Seconds by step: of stating the model (parse, materialise, stack), and of this fit (the others).

        ``compile`` is waiting for programs that this process has not run yet, even if the cache on disk has them. Of a
        few thousand rows ``cross_products`` is zero: they are part of the program that optimises.
        """
        return together(self.fitted.model.timings, self.fitted.fit.timings)

    @property
    def k_constant(self) -> int:
        """One when a column of X is constant, else zero."""
        return int(any(name in ("Intercept", "const") for name in self.fitted.names.fixed))

    # Standard errors and covariances.

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params``, on its scale: Series (k,)."""
        return self.fitted.vector(wald.errors(self.fitted), self.fitted.names.all)

    @property
    def bse_fe(self) -> pd.Series:
        """Standard errors of `fe_params` by generalised least squares, sigma^2 (X'V^-1 X)^-1: Series (k_fe,)."""
        return self.fitted.vector(wald.errors(self.fitted)[: self.k_fe], self.fitted.names.fixed)

    @property
    def bse_re(self) -> pd.Series:
        """Standard errors of the variance parameters on the scale of ``cov_re`` and ``vcomp``: Series (k - k_fe,).

        By the delta method from the joint information of the relative variances and the residual variance. Their
        distribution is skewed: intervals should come from a profile or a bootstrap.
        """
        return self.fitted.vector(self.fitted.variance_errors, self.fitted.names.variance)

    @property
    def normalized_cov_params(self) -> np.ndarray:
        """``cov_params()`` divided by ``scale``, array (k, k)."""
        return wald.covariance(self.fitted) / self.scale

    @overload
    def cov_params(
        self, r_matrix: None = None, column: None = None, scale: float | None = None, cov_p=None, other: None = None
    ) -> pd.DataFrame: ...

    @overload
    def cov_params(
        self, r_matrix=None, column=None, scale: float | None = None, cov_p=None, other=None
    ) -> np.ndarray: ...

    def cov_params(
        self,
        r_matrix: ArrayLike | None = None,
        column: int | Sequence[int] | None = None,
        scale: float | None = None,
        cov_p: ArrayLike | None = None,
        other: ArrayLike | None = None,
    ) -> Any:
        """Covariance of ``params``: generalised least squares for the coefficients, observed information for the rest.

        Raises `DataError` for `column` together with a matrix, for `other` alone, and for a matrix of another number of
        columns.

        Parameters
        ----------
        r_matrix, other : arrays (r, k), optional
            Return ``r_matrix @ cov @ other.T`` instead; by default `other` is `r_matrix`.
        column
            Return the rows and columns at these positions only.
        scale
            Use this residual variance in place of the estimate.
        cov_p : array (k, k), optional
            Use this covariance in place of the estimate.

        Returns
        -------
        DataFrame (k, k); an array for ``r_matrix`` and ``column``
        """
        return wald.cov_params(self.fitted, r_matrix, column, scale, cov_p, other)

    def vcov(self, full: bool = False) -> pd.DataFrame:
        """Covariance of the fixed effects, or of the fixed and the random effects together: DataFrame (k, k).

        Raises `ModelError` when the joint covariance would have more than 20,000 rows.

        Parameters
        ----------
        full
            The joint covariance of (beta^ - beta, b^ - b) at the estimated variances (Henderson 1975), labelled by the
            coefficients, then by ``COLUMN|GROUP[LEVEL]``, term by term and level by level.
        """
        return diagnostics.vcov(self.fitted, full)

    @property
    def vcov_kenward_roger(self) -> pd.DataFrame:
        """Kenward and Roger's (1997) adjusted covariance of the coefficients, (k_fe, k_fe): pbkrtest's ``vcovAdj``."""
        return tests.vcov_kenward_roger(self.fitted)

    def robust_cov(self, kind: Literal["CR0", "CR1", "CR2"] = "CR2", group: str | None = None) -> pd.DataFrame:
        """Cluster-robust covariance of the fixed effects (k_fe, k_fe): right when the model of the covariances is not.

        Raises `ModelError` for another `kind`, where clusters share random effects, and where levels are related.

        Parameters
        ----------
        kind
            "CR0": the plain sandwich. "CR1": times m / (m - 1) for m clusters. "CR2": bias-reduced, for few clusters
            (Bell and McCaffrey 2002; Pustejovsky and Tipton 2018).
        group
            The factor whose levels are the clusters; by default the one in which all others are nested.
        """
        return diagnostics.robust_cov(self.fitted, kind, group)

    @property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta, array (m, m); NaN where it does not exist."""
        return np.array(self.fitted.fit.uncertainty.vcov_theta)

    def vcov_variance(self, scale: Literal["sd", "theta"] = "sd") -> pd.DataFrame:
        """Covariance of the variance parameters, from the exact observed information: DataFrame (k, k).

        NaN for what has no standard error: a standard deviation of zero, a correlation of one, all of theta of a term
        that is singular. Raises `ModelError` for another `scale`.

        Parameters
        ----------
        scale
            "sd": standard deviations and correlations of the random effects and sigma, named as in `confint`.
            "theta": the relative covariance factors and sigma.
        """
        return tests.vcov_variance(self.fitted, scale)

    # Tests and intervals.

    @property
    def tvalues(self) -> pd.Series:
        """``params / bse``: Series (k,)."""
        return self.fitted.vector(wald.tvalues(self.fitted), self.fitted.names.all)

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided normal p-values of ``tvalues``: Series (k,); for variance parameters they mean little."""
        return self.fitted.vector(tails.two_sided(wald.tvalues(self.fitted)), self.fitted.names.all)

    def t_test(self, r_matrix: Hypotheses, use_t: bool | None = None) -> ContrastTest:
        """Test linear combinations of the coefficients one by one.

        Raises `DataError` or `FormulaError` for a matrix that has not k_fe columns, and for names or equations that
        cannot be read.

        Parameters
        ----------
        r_matrix : array (r, k_fe) or (k_fe,), str, list of str, mapping, or tuple (R, q)
            ``"Days = 10"`` tests against 10, ``"a - b"`` against zero.
        use_t
            Refer to the t distribution with ``df_resid`` degrees of freedom; by default the normal.

        Examples
        --------
        >>> result.t_test("Days = 0").tvalue.round(2)
        array([6.77])
        """
        return wald.t_test(self.fitted, r_matrix, self.use_t if use_t is None else use_t)

    def wald_test(
        self,
        r_matrix: Hypotheses,
        cov_p: ArrayLike | None = None,
        invcov: ArrayLike | None = None,
        use_f: bool | None = None,
        df_constraints: int | None = None,
        scalar: bool = True,
    ) -> ContrastTest:
        """Test linear combinations of the parameters jointly, by chi-square.

        Raises `DataError` for an `invcov` of another shape.

        Parameters
        ----------
        r_matrix : array (r, k_fe) or (r, k), str, list of str, mapping, or tuple (R, q)
            The coefficients, or all parameters.
        cov_p : array (k, k), optional
            Covariance of the parameters, in place of ``cov_params()``.
        invcov : array (r, r), optional
            Inverse covariance of the combinations, in place of the one that follows.
        use_f
            Refer to F with ``df_resid`` denominator degrees of freedom, which is too liberal for terms that vary
            between groups.
        df_constraints
            Number of constraints, if it should not be found by rank.
        scalar
            Accepted for compatibility; the statistic is always a number.

        Examples
        --------
        >>> result.wald_test("Intercept = 250, Days = 10").pvalue > 0.9
        True
        """
        use_f = self.use_t if use_f is None else use_f
        return wald.wald_test(self.fitted, r_matrix, cov_p, invcov, use_f, df_constraints)

    def f_test(
        self, r_matrix: Hypotheses, cov_p: ArrayLike | None = None, invcov: ArrayLike | None = None
    ) -> ContrastTest:
        """``wald_test`` with ``use_f=True``; `test` has denominator degrees of freedom for mixed models.

        Arguments as in `wald_test`: `r_matrix` (r, k), `cov_p` (k, k), `invcov` (r, r). Raises `DataError` for an
        `invcov` of another shape.
        """
        return wald.wald_test(self.fitted, r_matrix, cov_p, invcov, use_f=True)

    def wald_test_terms(
        self,
        skip_single: bool = False,
        extra_constraints: Sequence[tuple[str, Hypotheses]] | None = None,
        combine_terms: Sequence[str] | None = None,
        scalar: bool = True,
    ) -> ContrastTest:
        """Joint tests of the terms of the formula: all coefficients of a term are zero.

        Raises `ModelError` when no term contains a text of `combine_terms`.

        Parameters
        ----------
        skip_single
            Leave out terms of one coefficient.
        extra_constraints
            More tests, as for ``wald_test``, with their names; matrices have the shape (r, k).
        combine_terms
            For each text one more test: of all terms whose names contain it, together.
        scalar
            Accepted for compatibility.
        """
        return wald.wald_test_terms(self.fitted, skip_single, extra_constraints, combine_terms, self.use_t)

    def test(self, L: Hypotheses | Mapping[str, Hypotheses] | None = None, ddf: Ddf = "satterthwaite") -> pd.DataFrame:
        """Test coefficients, or linear combinations of them, with degrees of freedom for small samples.

        A row for each test: columns estimate, se, df, t, p. If one of the tests has several equations, the columns are
        F, num_df, den_df, p instead, for all.

        Parameters
        ----------
        L : array (k_fe,) or (r, k_fe), str, list of str, mapping, or tuple (array, right-hand side)
            What to test; by default every coefficient against zero. One test: an equation ``"Days = 10"``, several
            joined by commas ``"x = 0, z = 0"``, a mapping ``{"x": 0, "z - w": 0}`` of left to right sides, or an array.
            Several tests: a list of texts, or a mapping of names to any of the former.
        ddf
            "satterthwaite" (exact derivatives), "kenward-roger" (after REML; adjusted standard errors), "residual"
            (n - p) or "none" (normal).

        Raises
        ------
        DataError, FormulaError
            For contrasts of the wrong width and for unknown names.
        ModelError
            For an unknown `ddf`, for "kenward-roger" after ML, and for degrees of freedom (any `ddf` but "none") of a
            fit without a certified optimum.

        Notes
        -----
        Satterthwaite: Giesbrecht and Burns (1985), for joint tests Fai and Cornelius (1996), as in lmerTest. At a
        singular fit the rank of the covariance is held, so that a variance of zero counts as known; where lmerTest's
        answer is defined it is the same. Kenward and Roger (1997), as in pbkrtest, with weights as well.

        Examples
        --------
        >>> result.test()
                  estimate     se    df       t        p
        Intercept  251.405  6.825  17.0  36.838  1.2e-17
        Days        10.467  1.546  17.0   6.771  3.3e-06
        >>> result.test("Days = 10", ddf="kenward-roger")
                  estimate     se    df      t       p
        Days = 10   10.467  1.546  17.0  0.302  0.7661
        """
        return tests.test(self.fitted, L, ddf)

    def anova(self, ddf: Ddf = "satterthwaite", type: Type = 3) -> pd.DataFrame:
        """F tests of the terms of the fixed part, as lmerTest's anova.

        A row for each term but the intercept: columns sum_sq, mean_sq, num_df, den_df, F, p. The sums of squares are
        those that with ``scale`` give F. Raises `ModelError` for another `type` or `ddf`, for "kenward-roger" after ML,
        and for a fit without a certified optimum.

        Parameters
        ----------
        ddf
            As in `test`.
        type
            3: marginal, as SAS: means over the other factors with equal weights, whatever the coding of the categories.
            2: beyond all terms that do not contain the term. 1: beyond the terms before it.

        Examples
        --------
        >>> import jmixed as jm
        >>> data = jm.datasets.load("machines")
        >>> result = jm.mixedlm("score ~ Machine + (1 | Worker/Machine)", data).fit()
        >>> result.anova()[["F", "num_df", "den_df", "p"]]
                      F num_df den_df       p
        Machine  20.576      2   10.0  0.0003
        """
        return tests.anova(self.fitted, ddf, type)

    def drop1(self, progress: bool = False) -> pd.DataFrame:
        """Drop each term of the fixed effects in turn, with a likelihood-ratio test by ML.

        Marginality is respected: a term that is part of another, such as ``a`` beside ``a:b``, is not dropped. Rows
        ``<none>`` (the model itself) and the terms; columns npar, AIC, logLik, Chisq, Df, p. NaN, and a word below the
        table, where a likelihood has no maximum. Raises `ModelError` for a fit with held or penalised parameters.

        Examples
        --------
        >>> result.drop1()
               npar      AIC   logLik   Chisq   Df        p
        <none>    6  1763.94  -875.97     NaN  NaN      NaN
        Days      5  1785.48  -887.74  23.537    1  1.2e-06
        All fits are by ML; the model was fitted by REML.
        """
        return comparison.drop1(self.fitted, progress)

    def conf_int(self, alpha: float = 0.05, cols: Sequence[int] | None = None) -> pd.DataFrame:
        """Normal confidence limits of ``params``, for variance parameters too; `confint` has better ones for these.

        Columns 0 and 1: the limits at the level 1 - `alpha`, of all parameters or of those at the positions `cols`.
        """
        return wald.conf_int(self.fitted, alpha, cols)

    def confint(
        self,
        method: Literal["wald", "profile", "bootstrap"] = "wald",
        level: float = 0.95,
        *,
        which: str | Sequence[str] | None = None,
        n: int = 1000,
        key: Any = 0,
        kind: Literal["percentile", "basic"] = "percentile",
        progress: bool = False,
    ) -> pd.DataFrame:
        """Confidence limits of coefficients, standard deviations, correlations, sigma, and parameters of the residuals.

        Columns lower and upper; rows: coefficients, ``sd_COLUMN|GROUP``, ``cor_A.B|GROUP`` (A the later column, as in
        lme4), ``sigma``; of residuals ``logsd_COLUMN`` and ``cor_NAME|GROUP``. Raises `ModelError` for an unknown
        method or parameter, or a level outside (0, 1).

        Parameters
        ----------
        method
            "wald": normal limits from the standard errors, of correlations of the residuals on a scale without bounds,
            as in nlme, and NaN where one has reached its bound; standard deviations and correlations of the random
            effects, and sigma, have NaN, because normal limits are no use for them. "profile": where the profile of the
            ML deviance (also after REML, as in lme4) reaches the quantile of chi-square, see `profile`. "bootstrap":
            from refits to simulated responses, see `bootstrap`.
        level
            Coverage.
        which
            Names of the parameters wanted.
        n
            Number of replicates of the bootstrap.
        key : JAX random key, or int
            Of the bootstrap.
        kind
            Of the bootstrap interval.

        Examples
        --------
        >>> result.confint("profile", which="sd_Days|Subject").round(3).values.tolist()
        [[3.801, 8.753]]
        """
        return intervals.confint(self.fitted, method, level, which, n, key, kind, progress)

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
        steps with exact derivatives from the last one; all parameters are traced in one batch. Raises `ModelError` for
        an unknown parameter, a level outside (0, 1), or a fit with held or penalised parameters.

        Parameters
        ----------
        which
            Names of parameters as in `confint`; by default all.
        level
            The trace goes on until it has passed the limits of this coverage, or the end of the parameter's range.
        steps
            Points on the way to each limit.

        Examples
        --------
        >>> result.profile("sigma").confint(0.95).round(3)
                lower   upper
        sigma  22.898  28.858
        The profile is that of the ML deviance; the fit was by REML.
        """
        return intervals.profile(self.fitted, which, level, steps, progress)

    def profile_re(
        self,
        re_ix: int | str,
        vtype: Literal["re", "vc"],
        num_low: int = 5,
        dist_low: float = 1.0,
        num_high: int = 5,
        dist_high: float = 1.0,
        **fit_kwargs: Any,
    ) -> np.ndarray:
        """Log-likelihood with one variance held at values around its estimate, all else re-estimated.

        Parameters
        ----------
        re_ix
            Position of the random effect in ``cov_re`` ("re"), or name of the variance component ("vc").
        num_low, num_high
            Numbers of values below and above the estimate.
        dist_low, dist_high
            Distance of the outermost values from the estimate, on the scale of the data.
        **fit_kwargs
            Options of the refits: method, maxiter, gtol.

        Returns
        -------
        array (n, 2)
            For each of num_low + num_high + 1 values: the variance (held relative to the residual variance, which
            differs between the refits), and the log-likelihood.

        Raises
        ------
        ArgumentError
            For another option of the refits.
        ModelError
            For another `vtype`, an unknown variance, or a `dist_low` that leads to variances of zero or less.
        """
        return profile_re.profile_re(self.fitted, re_ix, vtype, num_low, dist_low, num_high, dist_high, **fit_kwargs)

    # Means, contrasts, slopes.

    def emmeans(
        self,
        specs: str | Sequence[str],
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        kind: MeanKind = "link",
        ddf: Ddf = "satterthwaite",
        level: float = 0.95,
        bias_adjust: bool | float = False,
    ) -> EMMeans:
        """Estimated marginal means: predictions of the fixed part, averaged over a grid, as R's emmeans.

        The grid has all combinations of the levels of the factors, and the numbers at their means; a number of two
        different values is taken at both. Cells without an estimate are said, and NaN.

        Parameters
        ----------
        specs
            The predictors whose combinations have a mean each: a name, several, or ``"a * b | c"``; ``"1"`` is the mean
            of all.
        by
            Predictors inside whose levels means are compared.
        at
            Values of predictors in the place of their levels or means, ``{"x": [0, 10]}``. Outside of the data they are
            taken, and it is said.
        weights
            Of what is averaged over: "equal", "proportional" (as often as the combinations of the factors averaged over
            are in the data), "cells" (as often as in each mean's own cell), "outer" (products of the frequencies of
            each factor), "flat" (equal ones of those that there are).
        kind
            "link": as the model has the response. "response": back from a transformation that the formula states, as
            ``np.log(y)``.
        ddf
            As in `test`. R's emmeans takes "kenward-roger".
        level
            Coverage of the intervals.
        bias_adjust
            Whether means that kind="response" brings back are adjusted, to second order, for the variance around them:
            the inverse of a mean is no mean of inverses. True takes the variance of random effects and residuals, a
            number is their standard deviation, emmeans' ``sigma``. Contrasts are what they are without.

        Raises
        ------
        DataError
            For a level that there is not, and for a model that was made of arrays.
        ModelError
            For a name that is no predictor of the fixed part, and for other words.

        Examples
        --------
        >>> import jmixed as jm
        >>> machines = jm.mixedlm("score ~ Machine + (1 | Worker/Machine)", jm.datasets.load("machines")).fit()
        >>> means = machines.emmeans("Machine")
        >>> means.frame[["Machine", "estimate", "se", "df"]].round(3).values.tolist()
        [['A', 52.356, 2.486, 8.522], ['B', 60.322, 2.486, 8.522], ['C', 66.272, 2.486, 8.522]]
        >>> means.contrasts("pairwise")[["contrast", "estimate", "p"]].round(4).values.tolist()
        [['A - B', -7.9667, 0.0111], ['A - C', -13.9167, 0.0002], ['B - C', -5.95, 0.0507]]
        """
        return marginal.marginal_means(self.fitted, specs, by, at, weights, kind, ddf, level, bias_adjust)

    def contrasts(
        self,
        specs: str | Sequence[str],
        method: str | Sequence[str] | Mapping[str, Any] = "pairwise",
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        adjust: Adjust | None = None,
        ddf: Ddf = "satterthwaite",
        weights: Weights = "equal",
        kind: MeanKind = "link",
        reference: Any = None,
        level: float = 0.95,
    ) -> pd.DataFrame:
        """Compare estimated marginal means: ``emmeans(specs, by, at, weights, kind, ddf).contrasts(method, adjust)``.

        A table with the columns contrast, those of `by`, estimate, se, df, lower, upper, t and p. Raises as `emmeans`
        does, and `DataError` for weights of another number than there are means.

        Arguments `specs`, `by`, `at`, `weights`, `kind`, `ddf` and `level` as of
        `emmeans`; `method`, `adjust` and `reference` as of `EMMeans.contrasts`: "pairwise", "reference", "poly", a
        mapping of names to weights, ...; "tukey", "holm", "bonferroni", "sidak", "mvt", "none".
        """
        means = marginal.marginal_means(self.fitted, specs, by, at, weights, kind, ddf, level)
        return means.contrasts(method, adjust, reference)

    def slopes(
        self,
        variable: str,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        ddf: Ddf = "satterthwaite",
        weights: Weights = "equal",
        level: float = 0.95,
    ) -> EMMeans:
        """Slopes of the fixed part in a number, averaged over the grid of `emmeans`, as R's emtrends.

        Raises `ModelError` for a predictor that has levels, or is none.

        Parameters
        ----------
        variable
            The number. Where its slope is not constant, it is taken at its mean, or where `at` says.
        by
            Predictors whose combinations have a slope each; ``contrasts()`` of what is returned compares them.

        Notes
        -----
        Arguments `at`, `weights`, `ddf` and `level` as of `emmeans`.

        Examples
        --------
        >>> result.slopes("Days").frame[["estimate", "se", "df"]].round(3).values.tolist()
        [[10.467, 1.546, 17.0]]
        """
        return marginal.slopes(self.fitted, variable, by, at, weights, ddf, level)

    def columns(self, new_rows: Any) -> pd.DataFrame:
        """The fixed-effects columns of new rows, (r, k_fe): for contrasts by hand, with `test`.

        Raises `DataError` for a column that is not there, and for a category that the model has not seen.

        Parameters
        ----------
        new_rows : DataFrame or other columns
            As for `predict`.

        Examples
        --------
        >>> difference = result.columns({"Days": [0, 9]}).diff().dropna()
        >>> result.test(difference.to_numpy(), ddf="none")["estimate"].round(2).tolist()
        [94.21]
        """
        return marginal.design_columns(self.fitted, new_rows)

    # For papers.

    def check(self, key: Any = 0) -> Checks:
        """Look at the assumptions of the model: a number and a line of words for each; `jmixed.plot.check` draws them.

        Linearity, equal variances, normality of residuals and of random effects, influential groups, collinearity, and
        whether simulated responses are distributed like the observed ones. What is worth a second look is no test: with
        many rows everything is significant, with few nothing is.

        Parameters
        ----------
        key : JAX random key, or int
            Of the simulated responses.

        Examples
        --------
        >>> result.check().frame.loc["linearity", "words"]
        'no bend in the residuals'
        """
        return checks.checks(self.fitted, checks.material(self.fitted, key))

    def report(self, ddf: Ddf | None = None, level: float = 0.95) -> str:
        """The fit in words, as a results section has it: the model, each effect with its test, what varies.

        Nothing is in it that was not computed. Raises `ModelError` for degrees of freedom that the fit does not have.

        Parameters
        ----------
        ddf
            As in `test`; by default Satterthwaite's, and z tests where there is none: of a fit that is not `converged`,
            or that has lost its rows.
        level
            Coverage of the intervals.

        Examples
        --------
        >>> "Days: b = 10.467, SE = 1.546, t(17.0) = 6.77, p < .001, 95% CI [7.206, 13.729]." in result.report()
        True
        """
        return sentences.report(self.fitted, ddf, level)

    def to_statsmodels(self, ddf: Ddf | None = None) -> FixedEffects:
        """The fixed effects under statsmodels' names, for its ``summary_col`` and packages that read results by name.

        Raises `ModelError` for degrees of freedom that the fit does not have.

        Parameters
        ----------
        ddf
            Of the p-values and intervals, as in `report`.

        Examples
        --------
        >>> result.to_statsmodels().pvalues.map("{:.1e}".format).to_dict()
        {'Intercept': '1.2e-17', 'Days': '3.3e-06'}
        """
        conditional = float(self.r2().conditional)
        return for_statsmodels(self.fitted, ddf, conditional, self.resid, self.fittedvalues)

    def robust_test(
        self,
        L: Hypotheses | Mapping[str, Hypotheses] | None = None,
        kind: Literal["CR0", "CR1", "CR2"] = "CR2",
        group: str | None = None,
    ) -> pd.DataFrame:
        """Test coefficients with the cluster-robust standard errors of `robust_cov`, as R's clubSandwich.

        A row for each test: columns estimate, se, df, t, p. Degrees of freedom are Satterthwaite's (Bell and McCaffrey
        2002; Pustejovsky and Tipton 2018), with the model as working covariance. Raises `ModelError` as `robust_cov`
        does, for a hypothesis of several equations, and after a fit that has no certified optimum.

        Parameters
        ----------
        L : array (k_fe,) or (r, k_fe), str, list of str, mapping, or tuple (array, right-hand side)
            What to test, as in `test`; by default every coefficient against zero.
        kind
            As of `robust_cov`.
        group
            As of `robust_cov`.

        Examples
        --------
        >>> result.robust_test("Days = 0")
                 estimate     se    df      t        p
        Days = 0   10.467  1.546  17.0  6.771  3.3e-06
        Cluster-robust (CR2), 18 clusters, degrees of freedom by Satterthwaite's method.
        """
        return diagnostics.robust_test(self.fitted, L, kind, group)

    # Random effects, rows and predictions.

    @property
    def random_effects(self) -> dict[Any, pd.Series]:
        """Conditional modes by top-level group, groups sorted: of each a Series (coefficients,).

        The index of a Series names the columns of ``cov_re``, then ``component[column]``. A model with several
        grouping factors has no top level: see `ranef`.
        """
        return self.fitted.random_effects

    @property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Conditional covariances given the parameters: of each group a DataFrame (coefficients, coefficients)."""
        return self.fitted.random_effects_cov

    @overload
    def ranef(self, cond_var: Literal[False] = False) -> dict[str, pd.DataFrame]: ...

    @overload
    def ranef(self, cond_var: Literal[True]) -> tuple[dict[str, pd.DataFrame], dict[str, np.ndarray]]: ...

    def ranef(self, cond_var: bool = False) -> Any:
        """Conditional modes of the random effects by grouping factor, each a DataFrame of levels x columns.

        Returns
        -------
        dict of str to DataFrame (levels, q)
            With `cond_var` a pair: this, and the conditional covariances, a dict of str to array (levels, q, q).

        Examples
        --------
        >>> result.ranef()["Subject"].loc["308"].round(2).to_dict()
        {'Intercept': 2.26, 'Days': 9.2}
        """
        modes = effects.modes(self.fitted.spec.terms, self.fitted.fit.b)
        return (modes, self.fitted.level_covariances) if cond_var else modes

    @property
    def fittedvalues(self) -> pd.Series:
        """``X beta + offset + Z b``, in the unit of the response: Series (nobs,)."""
        return self.fitted.by_row(self.fitted.fittedvalues)

    @property
    def resid(self) -> pd.Series:
        """Response less ``fittedvalues``: Series (nobs,)."""
        return self.fitted.by_row(self.fitted.spec.y - self.fitted.fittedvalues)

    def residuals(self, kind: Literal["response", "pearson", "normalized"] = "response") -> pd.Series:
        """Residuals given the random effects, Series (nobs,).

        Raises `DataError` for another kind.

        Parameters
        ----------
        kind
            "response": as `resid`, in the unit of the response. "pearson": over the standard deviation of each.
            "normalized": those of rows that are made independent by the residuals' structure, over sigma, as in nlme.
        """
        return self.fitted.by_row(residuals.residuals(self.fitted, kind))

    @overload
    def predict(
        self,
        data: None = None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: NewLevels = "raise",
        interval: None = None,
        level: float = 0.95,
        exog: None = None,
    ) -> np.ndarray: ...

    @overload
    def predict(
        self,
        data: Any = None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: NewLevels = "raise",
        interval: None = None,
        level: float = 0.95,
        exog: Any = None,
        condition: Literal["residual"] | None = None,
    ) -> pd.Series: ...

    @overload
    def predict(
        self,
        data: Any = None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: NewLevels = "raise",
        interval: Interval,
        level: float = 0.95,
        exog: Any = None,
        condition: Literal["residual"] | None = None,
    ) -> pd.DataFrame: ...

    def predict(
        self,
        data: Any = None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: NewLevels = "raise",
        interval: Interval | None = None,
        level: float = 0.95,
        exog: Any = None,
        condition: Literal["residual"] | None = None,
    ) -> Any:
        """Predict the response: the fixed part and the offset, and on demand the conditional modes.

        Intervals come from the joint covariance of the fixed and the random effects at the estimated variances
        (Henderson 1975), with normal quantiles. A prediction interval is that of a new observation of weight one (for
        the model's own rows: of the row's weight); random effects that the prediction leaves out, of new levels or not
        asked for, add their variance to it. Raises `DataError` for a level that the model has not seen, a missing
        column, or columns of the wrong number.

        Parameters
        ----------
        data : DataFrame or other columns, or array (r, k_fe), optional
            New rows; by default the rows of the model. A mapping of scalars, and a Series with a value for each column,
            are one row. For a model made from arrays: columns of X.
        transform
            False: `data` holds the columns of X already.
        random_effects
            True adds the conditional modes of all terms, names of grouping factors those of these factors.
        new_levels
            "population": a level that the model has not seen gets a random effect of zero.
        interval
            "confidence": of the predicted mean. "prediction": of a new observation.
        level
            Coverage of the interval.
        exog : array (r, k_fe), optional
            The same as `data`, by statsmodels' name.
        condition
            "residual": of correlated residuals, the mean of a row's given those of its group that were fitted is added:
            a forecast. With ``random_effects=True``, where there are any.

        Returns
        -------
        array (nobs,) for the model's rows, else a Series with the index of `data`; NaN for rows with missing values.
        With an interval a DataFrame with the columns fit, se, lower and upper.

        Examples
        --------
        >>> import jmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> result.predict(data.head(2), random_effects=True).round(2).tolist()
        [253.66, 273.33]
        >>> result.predict(data.head(2), random_effects=True, interval="confidence").round(2).loc[0].tolist()
        [253.66, 12.25, 229.64, 277.68]
        """
        return predict.predict(
            self.fitted, data, transform, random_effects, new_levels, interval, level, exog, condition
        )

    def augment(self, data: Any = None) -> pd.DataFrame:
        """The data with fitted values, residuals and leverages beside them, in the columns of broom.mixed.

        Parameters
        ----------
        data : DataFrame, optional
            New rows; levels that the model has not seen get a random effect of zero. By default the model's rows.

        Returns
        -------
        DataFrame
            A copy with ``.fitted`` and ``.fixed`` (without random effects) and, for the model's rows: ``.resid`` (given
            the random effects), ``.hat`` (leverage, lme4's hatvalues), ``.cooksd``, ``.mu``, ``.offset``, ``.sqrtXwt``,
            ``.sqrtrwt``, ``.weights``, ``.wtres`` (``.resid`` times the root of the weight), ``.std.resid`` (over its
            standard deviation) and ``.fixed.resid`` (response less ``.fixed``). Of correlated residuals ``.hat``,
            ``.cooksd`` and ``.std.resid`` are those of rows that are made independent.

        Examples
        --------
        >>> result.augment()[["Reaction", ".fitted", ".resid", ".hat", ".cooksd"]].round(2).iloc[0].tolist()
        [249.56, 253.66, -4.1, 0.23, 0.0]
        """
        return diagnostics.augment(self.fitted, data)

    def influence(self, group: str | None = None, method: Literal["exact", "onestep"] = "exact") -> Influence:
        """Estimates without one group at a time, all refits in one compiled program.

        Raises `ModelError` for an unknown factor or method, and without `group` for crossed factors.

        Parameters
        ----------
        group
            The grouping factor whose levels are left out; by default the one in which all others are nested.
        method
            "exact": every refit goes to its optimum. "onestep": one Newton step, with exact derivatives, from the
            estimate of all data.

        Examples
        --------
        >>> result.influence().cooks_distance.nlargest(2).round(3).to_dict()
        {'309': 0.149, '335': 0.129}
        """
        return diagnostics.influence(self.fitted, group, method)

    def r2(self) -> VarianceExplained:
        """Marginal and conditional R2 (Nakagawa and Schielzeth 2013; Johnson 2014).

        The variance of a row counts the known variance of its level, where levels are related.
        """
        return diagnostics.r2(self.fitted)

    def icc(self) -> IntraclassCorrelation:
        """Intraclass correlations: the share of the random effects in the variance (Nakagawa et al. 2017).

        Of related levels the variance is that of a level whose known variance is one, as of an animal that is not
        inbred: with a pedigree, `by_group` has the heritability.
        """
        return diagnostics.icc(self.fitted)

    def re_pca(self) -> dict[str, pd.DataFrame]:
        """Principal components of the random effects by grouping factor, as lme4's rePCA.

        A component without variance is a sign that the random effects are more than the data support. Rows PC1, PC2,
        ...; columns sd (relative to sigma), proportion, cumulative, and the loadings by column.
        """
        return diagnostics.re_pca(self.fitted.spec, self.fitted.fit)

    # Other responses.

    def simulate(self, n: int = 1, key: Any = 0, *, random_effects: str | Collection[str] = "new") -> np.ndarray:
        """Draw new responses from the fitted model: new residuals, and new random effects unless they are given.

        Raises `DataError` for an `n`, a `key` or `random_effects` that are none, or after `remove_data`.

        Parameters
        ----------
        n
            Number of responses.
        key : JAX random key, or int
            The same key gives the same responses.
        random_effects
            "new": drawn from their distribution. "conditional": those of the fit, the conditional modes, so that only
            the residuals are new (lme4's ``re.form = NULL`` and ``use.u = TRUE``). Names of grouping factors: those of
            the fit for these, new ones for the others.

        Returns
        -------
        array (n, nobs)
            In the unit of the response, rows in the model's order.

        Examples
        --------
        >>> result.simulate(3, key=1).shape
        (3, 180)
        """
        return bootstrap.simulate(self.fitted, n, key, random_effects)

    def refit(self, y: ArrayLike) -> Self:
        """Fit the same model to another response by the same criterion; nothing is compiled anew.

        Parameters that were held are held again. The ``model`` of the result has the new response.

        Parameters
        ----------
        y : array-like (nobs,)
            The new response as the model has it (transformed, if the formula transforms it), rows in the model's order.

        Raises
        ------
        DataError
            For a response of another length, with values that are not finite, or constant.
        ModelError
            When this fit was penalised.

        Examples
        --------
        >>> result.refit(2 * result.model.endog).fe_params.round(3).to_dict()
        {'Intercept': 502.81, 'Days': 20.935}
        """
        return bootstrap.refit(self.fitted, y)

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
        key : JAX random key, or int
            The same key gives the same replicates.
        random_effects
            Of the simulated responses, as in `simulate`. Given the random effects, replicates tell how well the
            coefficients are known for these very groups; standard deviations of random effects come out too large.

        Raises
        ------
        DataError
            For an `n`, a `key` or `random_effects` that are none, or after `remove_data`.
        ModelError
            Some parameters were held or penalised.

        Examples
        --------
        >>> replicates = result.bootstrap(200, key=1)
        >>> replicates.replicates.shape
        (200, 6)
        >>> list(replicates.confint(0.9).columns)
        ['lower', 'upper']
        """
        return bootstrap.bootstrap(self.fitted, n, key, random_effects, progress)

    # Keeping it.

    def remove_data(self) -> None:
        """Forget the rows of the data, to make the object small; predictions of new data go on working.

        The caller's model is left alone: this result gets a copy of it without rows. Afterwards fitted values,
        residuals, conditional covariances, `profile_re` and `augment` raise `DataError`.
        """
        self.fitted = self.fitted.without_rows()
        self.model = self.fitted.model

    def save(self, fname: Any, remove_data: bool = False) -> None:
        """Write the result to a file of arrays and plain values, which holds no code.

        Functions and other objects of yours that the formulas name are not in it: `load` looks for them again.

        Parameters
        ----------
        fname
            A path, or a binary file.
        remove_data
            Write it without the rows of the data; this object keeps them.

        Raises
        ------
        DataError
            When the data hold labels of a type that cannot be stored.
        OSError
            When the file cannot be written, as on a full disk. A file that was there is as it was.

        Examples
        --------
        >>> import io
        >>> result = model.fit()
        >>> whole, small = io.BytesIO(), io.BytesIO()
        >>> result.save(whole)
        >>> result.save(small, remove_data=True)
        >>> small.tell() < whole.tell()
        True
        """
        fitted = self.fitted.without_rows() if remove_data else self.fitted
        _write(fname, {"fitted": fitted, "free": self.freepat, "hist": self.hist})

    @classmethod
    def load(cls, fname: Any) -> "MixedLMResults":
        """Read a result that `save` wrote to `fname`, a path or a binary file: see `jmixed.load`.

        Raises `DataError` when the file holds something else.
        """
        return _read(fname, names_of_caller(0, sys._getframe(1)), cls)

    def __repr__(self) -> str:
        spec, state = self.fitted.spec, "" if self.converged else f", {self.outcome.name}"
        formula = spec.formula or f"{spec.endog_name}, {self.k_fe} fixed effects"
        return f"<MixedLMResults: {formula}; {self.method} objective {self.objective:.4f}{state}>"

    def _repr_html_(self) -> str:
        return self.summary().as_html()


INSTEAD = {
    "sigma": "a family of responses has no residual standard deviation: see dispersion, further(), var_corr()",
    "residual_sd": "a family of responses has no residual standard deviation: see dispersion and further()",
    "residual_corr": "responses with a family are independent given the random effects",
    "reml": "generalized models are fitted by maximum likelihood",
    "cov_re_unscaled": "covariances are absolute: see cov_re",
    "params_object": "give theta0=result.theta to fit as a start",
    "robust_test": "it is there for linear mixed models; see test() and bootstrap()",
    "robust_cov": "it is there for linear mixed models; see vcov() and bootstrap()",
    "vcov_kenward_roger": "it belongs to normal responses; see vcov()",
    "vcov_variance": "it belongs to normal responses; see cov_params() and bse_re",
    "f_test": "there are no denominator degrees of freedom: see wald_test",
    "profile_re": "it is there for linear mixed models; see confint()",
}
"""What users of linear models look for, and what there is in its place."""


@checked
class MixedGLMResults:
    """Estimates of a generalized linear mixed model, complete in themselves.

    Coefficients and random effects are on the scale of the linear predictor; there is no sigma, so that variances of
    random effects are absolute. The verbs are those of `MixedLMResults`, where they mean something.

    Parameters
    ----------
    model : MixedGLM
    fit : Fit

    Attributes
    ----------
    fitted : Fitted
        The data and the fit, from which everything here is made.

    Examples
    --------
    In the examples of the methods, ``slow`` is this:

    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> sleep["slow"] = sleep["Reaction"] > 300
    >>> slow = jm.mixedglm("slow ~ Days + (1 | Subject)", sleep, family="binomial").fit()
    >>> slow.fe_params.round(3).to_dict()
    {'Intercept': -3.195, 'Days': 0.585}
    """

    use_t = False
    scale = 1.0

    def __init__(self, model: Any, fit: Any):
        self._set_up(Fitted(model, fit, False))

    def _set_up(self, fitted: Fitted) -> Self:
        self.fitted, self.model, self.family = fitted, fitted.model, fitted.own_family
        self.method, self.converged = fitted.method, bool(fitted.fit.converged)
        self.nobs, self.k_fe, self.df_resid = fitted.nobs, fitted.k_fe, fitted.nobs - fitted.n_params
        return self

    def __getattr__(self, name: str) -> Any:
        said = INSTEAD.get(name)
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{said and f': {said}' or ''}")

    # Estimates.

    @property
    def params(self) -> pd.Series:
        """Coefficients, then the variances and covariances of the random effects: Series (k,).

        The coefficients of a dispersion, of an inflation of zeros, or thresholds are in `further`.
        """
        return self.fitted.vector(wald.estimate(self.fitted), self.fitted.names.all)

    @property
    def fe_params(self) -> pd.Series:
        """Fixed-effects coefficients, on the scale of the linear predictor: Series (k_fe,)."""
        return self.fitted.vector(self.fitted.fit.beta, self.fitted.names.fixed)

    def further(self) -> pd.DataFrame:
        """Coefficients of the further predictors: the log dispersion, the logit of extra zeros, thresholds.

        Index (predictor, column); columns estimate, se, z, p. Without further predictors there are no rows. Thresholds
        are themselves, by the categories between which they stand.
        """
        return further.table(self.fitted)

    @property
    def dispersion(self) -> float | pd.Series:
        """The dispersion itself; where it depends on columns, coefficients of its logarithm, Series (k,).

        What it is, size, shape or precision, is said by the family. One for a family that has none.
        """
        constant = further.constant_dispersion(self.fitted)
        if constant is not None:
            return constant
        coefficients = further.of_predictor(self.fitted, "dispersion")
        return coefficients if len(coefficients) else 1.0

    @property
    def dispersion_params(self) -> pd.Series:
        """Coefficients of the log dispersion by column: Series (k,); empty for a family that has none."""
        return further.of_predictor(self.fitted, "dispersion")

    @property
    def zero_params(self) -> pd.Series:
        """Coefficients of the logit of the extra probability of zero by column: Series (k,); empty without one."""
        return further.of_predictor(self.fitted, "zero")

    @property
    def thresholds(self) -> pd.Series:
        """Thresholds between categories, named ``a|b``: Series (k,).

        P(y <= a) is F(threshold - eta). Raises `ModelError` for a response that is not in categories.
        """
        if not further.has_thresholds(self.family):
            raise ModelError(f"thresholds belong to responses in categories; the family is {self.family.name}")
        return further.thresholds(self.fitted)

    @property
    def theta(self) -> np.ndarray:
        """Covariance factors, column-major lower triangles in the order of the terms: array (m,).

        ``model.theta_names`` labels them.
        """
        return np.array(self.fitted.fit.theta)

    @property
    def cov_re(self) -> pd.DataFrame:
        """Covariance of the random effects: DataFrame (k_re, k_re); variance components are in `vcomp`."""
        return self.fitted.matrix(wald.cov_re(self.fitted.spec, self.fitted.fit), self.fitted.names.random)

    @property
    def vcomp(self) -> np.ndarray:
        """Variance components, array (k_vc,), in the order of their names."""
        return wald.vcomp(self.fitted.spec, self.fitted.fit)

    def var_corr(self) -> pd.DataFrame:
        """Variances and correlations of the random effects: columns group, var1, var2, vcov, sdcor.

        A variance has var2 None; there is no row of a residual.

        Examples
        --------
        >>> slow.var_corr()["sdcor"].round(2).tolist()
        [1.74]
        """
        return components.var_corr(self.fitted.spec, self.fitted.fit)

    def tidy(
        self,
        effects: str | Collection[str] = "fixed",
        conf_int: bool = False,
        conf_level: float = 0.95,
        exponentiate: bool = False,
    ) -> pd.DataFrame:
        """Estimates as rows, with the column names of broom.mixed; arguments as of `MixedLMResults.tidy`.

        With further predictors there is a column component, "cond", "disp" and "zi"; of categories coef.type,
        "location" and "intercept". Raises `ModelError` for another kind of effects, a level outside (0, 1), and ratios
        where the link has none.

        Parameters
        ----------
        effects
            "fixed", "ran_pars" (standard deviations and correlations), "ran_vals" (conditional modes).
        conf_int
            Add conf.low and conf.high, normal limits.
        conf_level
            Coverage.
        exponentiate
            Coefficients of the response as ratios of odds, means or hazards, with their limits; std.error is the
            coefficient's times the ratio, and statistic the coefficient's.

        Examples
        --------
        >>> slow.tidy()
          effect       term estimate std.error statistic  p.value
        0  fixed  Intercept   -3.195     0.685    -4.662  3.1e-06
        1  fixed       Days   0.5852    0.0981     5.968  2.4e-09
        """
        table = tidy.tidy(self.fitted, effects, conf_int, conf_level, "none")
        return tidy.exponentiated(table, self.fitted) if exponentiate else table

    def summary(
        self,
        yname: str | None = None,
        xname_fe: Sequence[str] | None = None,
        xname_re: Sequence[str] | None = None,
        title: str | None = None,
        alpha: float = 0.05,
        style: Literal["statsmodels", "lme4"] = "statsmodels",
    ) -> Summary:
        """Tables of the fit for reading: text when printed, HTML in a notebook, LaTeX by ``as_latex()``.

        Raises `DataError` for a wrong number of names, and `ModelError` for another `style`.

        Parameters
        ----------
        yname, title
            Names to print in place of the model's.
        xname_fe, xname_re
            Names of the coefficients and of the variance parameters.
        alpha
            The intervals have level 1 - alpha.
        style
            "lme4": the blocks that lme4 prints, in its order.

        Examples
        --------
        >>> slow.summary().tables[1].loc["Days"].tolist()
        ['0.5852', '0.0981', '5.968', '0.000', '0.3930', '0.7774']
        """
        usual = summary.summarise(self.fitted, yname, xname_fe, xname_re, title, alpha, "none")
        return as_lme4.in_style(self.fitted, usual, style, "none")

    # The fit as a whole.

    @property
    def objective(self) -> float:
        """-2 log-likelihood, with all constants."""
        return float(self.fitted.fit.objective)

    @property
    def llf(self) -> float:
        """Log-likelihood at the estimate, by Laplace's approximation or quadrature."""
        return self.fitted.llf

    @property
    def aic(self) -> float:
        """Akaike's information criterion, with all parameters."""
        return self.fitted.aic

    @property
    def bic(self) -> float:
        """Schwarz's criterion, with the number of rows."""
        return self.fitted.bic

    def glance(self) -> pd.DataFrame:
        """One row about the fit: columns nobs, logLik, AIC, BIC, deviance (-2 logLik), df.residual."""
        return components.glance(self.fitted)

    @property
    def singular(self) -> bool:
        """Whether some covariance of random effects has a variance of zero or a correlation of one."""
        return any(self.fitted.fit.singular)

    @property
    def outcome(self) -> Outcome:
        """How the fit ended: an `Outcome`, whose ``message`` says what to do."""
        return self.fitted.fit.outcome

    @property
    def optimizer(self) -> Optimizer:
        """The certificate of the fit: an `Optimizer`."""
        return optimizer(self.fitted.fit, self.fitted.names.fixed)

    @property
    def timings(self) -> dict:
        """Seconds by step: of stating the model, and of this fit."""
        return together(self.fitted.model.timings, self.fitted.fit.timings)

    # Standard errors and covariances.

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params``, from the joint observed information of all parameters: Series (k,)."""
        return self.fitted.vector(wald.errors(self.fitted), self.fitted.names.all)

    @property
    def bse_fe(self) -> pd.Series:
        """Standard errors of `fe_params`, from the joint observed information of all parameters: Series (k_fe,)."""
        return self.fitted.vector(wald.errors(self.fitted)[: self.k_fe], self.fitted.names.fixed)

    @property
    def bse_re(self) -> pd.Series:
        """Standard errors of the variances and covariances of the random effects: Series (k - k_fe,)."""
        return self.fitted.vector(self.fitted.variance_errors, self.fitted.names.variance)

    def cov_params(
        self,
        r_matrix: ArrayLike | None = None,
        column: int | Sequence[int] | None = None,
        cov_p: ArrayLike | None = None,
        other: ArrayLike | None = None,
    ) -> Any:
        """Covariance of ``params``, a part of the inverse observed information of all parameters.

        Raises `DataError` for `column` together with a matrix, for `other` alone, and for a matrix of another number of
        columns.

        Parameters
        ----------
        r_matrix, other : arrays (r, k), optional
            Return ``r_matrix @ cov @ other.T`` instead; by default `other` is `r_matrix`.
        column
            Return the rows and columns at these positions only.
        cov_p : array (k, k), optional
            Use this covariance in place of the estimate.

        Returns
        -------
        DataFrame (k, k); an array for ``r_matrix`` and ``column``
        """
        return wald.cov_params(self.fitted, r_matrix, column, None, cov_p, other)

    def vcov(self, full: bool = False) -> pd.DataFrame:
        """Covariance of the fixed effects, or of the fixed and the random effects together: DataFrame (k, k).

        Raises `ModelError` when the joint covariance would have more than 20,000 rows.

        Parameters
        ----------
        full
            The joint covariance of (beta^ - beta, b^ - b), of the linear mixed model that this one is like at the
            modes, at the estimated variances; labelled as in `MixedLMResults.vcov`.
        """
        return diagnostics.vcov(self.fitted, full)

    @property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta, array (m, m); NaN where it does not exist."""
        return np.array(self.fitted.fit.uncertainty.vcov_theta)

    # Tests and intervals.

    @property
    def tvalues(self) -> pd.Series:
        """``params / bse``: Series (k,)."""
        return self.fitted.vector(wald.tvalues(self.fitted), self.fitted.names.all)

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided normal p-values of ``tvalues``: Series (k,); for variance parameters they mean little."""
        return self.fitted.vector(tails.two_sided(wald.tvalues(self.fitted)), self.fitted.names.all)

    def t_test(self, r_matrix: Hypotheses) -> ContrastTest:
        """Test linear combinations of the coefficients one by one, by the normal distribution.

        Raises `DataError` or `FormulaError` for a matrix that has not k_fe columns, and for names or equations that
        cannot be read.

        Parameters
        ----------
        r_matrix : array (r, k_fe) or (k_fe,), str, list of str, mapping, or tuple (R, q)
            ``"Days = 1"`` tests against 1, ``"a - b"`` against zero.
        """
        return wald.t_test(self.fitted, r_matrix, False)

    def wald_test(
        self,
        r_matrix: Hypotheses,
        cov_p: ArrayLike | None = None,
        invcov: ArrayLike | None = None,
        df_constraints: int | None = None,
    ) -> ContrastTest:
        """Test linear combinations of the parameters jointly, by chi-square.

        Raises `DataError` for an `invcov` of another shape.

        Parameters
        ----------
        r_matrix : array (r, k_fe) or (r, k), str, list of str, mapping, or tuple (R, q)
            The coefficients, or all parameters.
        cov_p : array (k, k), optional
            Covariance of the parameters, in place of ``cov_params()``.
        invcov : array (r, r), optional
            Inverse covariance of the combinations, in place of the one that follows.
        df_constraints
            Number of constraints, if it should not be found by rank.
        """
        return wald.wald_test(self.fitted, r_matrix, cov_p, invcov, False, df_constraints)

    def wald_test_terms(
        self,
        skip_single: bool = False,
        extra_constraints: Sequence[tuple[str, Hypotheses]] | None = None,
        combine_terms: Sequence[str] | None = None,
    ) -> ContrastTest:
        """Joint tests of the terms of the formula: all coefficients of a term are zero.

        Raises `ModelError` when no term contains a text of `combine_terms`.

        Parameters
        ----------
        skip_single
            Leave out terms of one coefficient.
        extra_constraints
            More tests, as for ``wald_test``, with their names; matrices have the shape (r, k).
        combine_terms
            For each text one more test: of all terms whose names contain it, together.
        """
        return wald.wald_test_terms(self.fitted, skip_single, extra_constraints, combine_terms, False)

    def test(self, L: Hypotheses | Mapping[str, Hypotheses] | None = None, ddf: Ddf = "none") -> pd.DataFrame:
        """Test coefficients, or linear combinations of them, by the normal distribution.

        A row for each test: columns estimate, se, z, p. If one of the tests has several equations, the columns are
        Chisq, Df, p instead, for all.

        Parameters
        ----------
        L : array (k_fe,) or (r, k_fe), str, list of str, mapping, or tuple (array, right-hand side)
            What to test, as in `MixedLMResults.test`; by default every coefficient against zero.
        ddf
            "none": other degrees of freedom are those of an estimated residual variance, which there is none of.

        Raises
        ------
        DataError, FormulaError
            For contrasts of the wrong width and for unknown names.
        ModelError
            For another `ddf`.

        Examples
        --------
        >>> slow.test()
                  estimate      se       z        p
        Intercept   -3.195   0.685  -4.662  3.1e-06
        Days        0.5852  0.0981   5.968  2.4e-09
        """
        return tests.test(self.fitted, L, ddf)

    def anova(self, type: Type = 3) -> pd.DataFrame:
        """Wald's chi-square tests of the terms of the fixed part, as Anova of R's car.

        A row for each term but the intercept: columns Chisq, Df, p. Raises `ModelError` for another `type`. `drop1` has
        likelihood-ratio tests, which are better where coefficients are large.

        Parameters
        ----------
        type
            3, 2 or 1, as in `MixedLMResults.anova`.

        Examples
        --------
        >>> slow.anova()
               Chisq Df        p
        Days  35.619  1  2.4e-09
        """
        return tests.anova(self.fitted, "none", type)

    def drop1(self, progress: bool = False) -> pd.DataFrame:
        """Drop each term of the fixed effects in turn, with a likelihood-ratio test.

        Marginality is respected. Rows ``<none>`` (the model itself) and the terms; columns npar, AIC, logLik, Chisq,
        Df, p. NaN, and a word below the table, where a likelihood has no maximum.

        Examples
        --------
        >>> slow.drop1()
               npar     AIC   logLik   Chisq   Df        p
        <none>    3  180.33   -87.16     NaN  NaN      NaN
        Days      2  238.60  -117.30  60.273    1  8.3e-15
        """
        return comparison.drop1(self.fitted, progress)

    def conf_int(self, alpha: float = 0.05, cols: Sequence[int] | None = None) -> pd.DataFrame:
        """Normal confidence limits of ``params``, for variance parameters too.

        Columns 0 and 1: the limits at the level 1 - `alpha`, of all parameters or of those at the positions `cols`.
        """
        return wald.conf_int(self.fitted, alpha, cols)

    def confint(
        self,
        method: Literal["wald", "profile", "bootstrap"] = "wald",
        level: float = 0.95,
        *,
        which: str | Sequence[str] | None = None,
        n: int = 1000,
        key: Any = 0,
        kind: Literal["percentile", "basic"] = "percentile",
        progress: bool = False,
    ) -> pd.DataFrame:
        """Confidence limits of coefficients, standard deviations, correlations, and further predictors.

        Columns lower and upper; rows: coefficients, ``sd_COLUMN|GROUP``, ``cor_A.B|GROUP``, then ``disp_COLUMN`` and
        ``zi_COLUMN``, or thresholds ``a|b``. Raises `ModelError` for an unknown method or parameter, or a level outside
        (0, 1).

        Parameters
        ----------
        method
            "wald": normal limits from the standard errors, NaN for standard deviations and correlations, of which
            normal limits are no use. "profile": where the profile of -2 log-likelihood reaches the quantile of
            chi-square, see `profile`. "bootstrap": from refits to simulated responses, see `bootstrap`.
        level
            Coverage.
        which
            Names of the parameters wanted.
        n
            Number of replicates of the bootstrap.
        key : JAX random key, or int
            Of the bootstrap.
        kind
            Of the bootstrap interval.

        Examples
        --------
        >>> slow.confint(which="Days").round(2).values.tolist()
        [[0.39, 0.78]]
        """
        return intervals.confint(self.fitted, method, level, which, n, key, kind, progress)

    def profile(
        self,
        which: str | Sequence[str] | None = None,
        level: float = 0.99,
        steps: int = 8,
        *,
        progress: bool = False,
    ) -> Profile:
        """Profile -2 log-likelihood: hold one parameter at a time, estimate all others.

        It is that of the fit, by Laplace's approximation or by quadrature. Each constrained optimum is found by Newton
        steps with exact derivatives from the last one; all parameters are traced in one batch. A limit of a coefficient
        is infinite where the profile levels off before it gets there, as beside separated responses or of a dispersion
        that data do not tell from none. Raises `ModelError` for an unknown parameter, a level outside (0, 1), or a fit
        without a certified optimum.

        Parameters
        ----------
        which
            Names of parameters as in `confint`; by default all.
        level
            The trace goes on until it has passed the limits of this coverage, or the end of the parameter's range.
        steps
            Points on the way to each limit.

        Examples
        --------
        >>> slow.profile("sd_Intercept|Subject", level=0.95).confint(0.95).round(2).values.tolist()
        [[0.98, 3.03]]
        """
        return intervals.profile(self.fitted, which, level, steps, progress)

    # Means, contrasts, slopes.

    def emmeans(
        self,
        specs: str | Sequence[str],
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        kind: MeanKind = "link",
        level: float = 0.95,
        bias_adjust: bool | float = False,
    ) -> EMMeans:
        """Estimated marginal means: predictions of the fixed part, averaged over a grid, as R's emmeans.

        The grid has all combinations of the levels of the factors, and the numbers at their means; a number of two
        different values is taken at both. Cells without an estimate are said, and NaN.

        Parameters
        ----------
        specs
            The predictors whose combinations have a mean each: a name, several, or ``"a * b | c"``; ``"1"`` is the mean
            of all.
        by
            Predictors inside whose levels means are compared.
        at
            Values of predictors in the place of their levels or means, ``{"x": [0, 10]}``. Outside of the data they are
            taken, and it is said.
        weights
            Of what is averaged over: "equal", "proportional" (as often as the combinations of the factors averaged over
            are in the data), "cells" (as often as in each mean's own cell), "outer" (products of the frequencies of
            each factor), "flat" (equal ones of those that there are).
        kind
            "link": on the scale of the linear predictor. "response": the inverse of the link of these means; contrasts
            are ratios of a log link, and odds ratios of a logit. "marginal": means of the response averaged over the
            random effects, combination by combination, before they are averaged over the grid. Of a response in
            categories "probability" has the probability of each category where the random effects are zero, and
            "marginal" that averaged over them: the response is one more name for `specs` and `by`, by default the last
            of `by`.
        level
            Coverage of the intervals.
        bias_adjust
            Whether means of kind="response" are adjusted, to second order, for the variance of the random effects
            around them. True takes the model's, a number is their standard deviation, emmeans' ``sigma``. "marginal"
            integrates in its place. Contrasts are what they are without.

        Raises
        ------
        DataError
            For a level that there is not, and for a model that was made of arrays.
        ModelError
            For a name that is no predictor of the fixed part, and for other words.

        Examples
        --------
        >>> slow.emmeans("Days", at={"Days": [0, 9]}, kind="response").frame["estimate"].round(2).tolist()
        [0.04, 0.89]
        """
        return marginal.marginal_means(self.fitted, specs, by, at, weights, kind, "none", level, bias_adjust)

    def contrasts(
        self,
        specs: str | Sequence[str],
        method: str | Sequence[str] | Mapping[str, Any] = "pairwise",
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        adjust: Adjust | None = None,
        weights: Weights = "equal",
        kind: MeanKind = "link",
        reference: Any = None,
        level: float = 0.95,
    ) -> pd.DataFrame:
        """Compare estimated marginal means: ``emmeans(specs, by, at, weights, kind).contrasts(method, adjust)``.

        A table with the columns contrast, those of `by`, estimate, se, lower, upper, z and p. Raises as `emmeans`
        does, and `DataError` for weights of another number than there are means.

        Arguments `specs`, `by`, `at`, `weights`, `kind` and `level` as of
        `emmeans`; `method`, `adjust` and `reference` as of `EMMeans.contrasts`: "pairwise", "reference", "poly", a
        mapping of names to weights, ...; "tukey", "holm", "bonferroni", "sidak", "mvt", "none".
        """
        means = marginal.marginal_means(self.fitted, specs, by, at, weights, kind, "none", level)
        return means.contrasts(method, adjust, reference)

    def slopes(
        self,
        variable: str,
        by: str | Sequence[str] | None = None,
        at: Mapping[str, Any] | None = None,
        weights: Weights = "equal",
        level: float = 0.95,
    ) -> EMMeans:
        """Slopes of the fixed part in a number, averaged over the grid of `emmeans`, as R's emtrends.

        Raises `ModelError` for a predictor that has levels, or is none.

        Parameters
        ----------
        variable
            The number. Where its slope is not constant, it is taken at its mean, or where `at` says.
        by
            Predictors whose combinations have a slope each; ``contrasts()`` of what is returned compares them.

        Notes
        -----
        Arguments `at`, `weights` and `level` as of `emmeans`.

        Examples
        --------
        >>> slow.slopes("Days").frame[["estimate", "se"]].round(3).values.tolist()
        [[0.585, 0.098]]
        """
        return marginal.slopes(self.fitted, variable, by, at, weights, "none", level)

    def columns(self, new_rows: Any) -> pd.DataFrame:
        """The fixed-effects columns of new rows, (r, k_fe): for contrasts by hand, with `test`.

        Raises `DataError` for a column that is not there, and for a category that the model has not seen.

        Parameters
        ----------
        new_rows : DataFrame or other columns
            As for `predict`.

        Examples
        --------
        >>> slow.columns({"Days": [0, 9]}).values.tolist()
        [[1.0, 0.0], [1.0, 9.0]]
        """
        return marginal.design_columns(self.fitted, new_rows)

    # For papers.

    def check(self, key: Any = 0) -> Checks:
        """Look at the assumptions of the model: a number and a line of words for each; `jmixed.plot.check` draws them.

        Linearity, equal variances, normality of residuals and of random effects, influential groups, collinearity, and
        whether simulated responses are distributed like the observed ones. What is worth a second look is no test: with
        many rows everything is significant, with few nothing is.

        Parameters
        ----------
        key : JAX random key, or int
            Of the simulated responses.

        Examples
        --------
        >>> list(slow.check().frame.index)[:2]
        ['linearity', 'equal variances']
        """
        return checks.checks(self.fitted, checks.material(self.fitted, key))

    def report(self, level: float = 0.95) -> str:
        """The fit in words, as a results section has it: the model, each effect with its test, what varies.

        Parameters
        ----------
        level
            Coverage of the intervals.
        """
        return sentences.report(self.fitted, "none", level)

    def to_statsmodels(self) -> FixedEffects:
        """The fixed effects under statsmodels' names, for its ``summary_col`` and packages that read these."""
        resid = None if self.family.response == "categories" else self.resid
        return for_statsmodels(self.fitted, "none", float(self.r2().conditional), resid, self.fittedvalues)

    # Random effects, rows and predictions.

    @property
    def random_effects(self) -> dict[Any, pd.Series]:
        """Conditional modes by top-level group, groups sorted: of each a Series (coefficients,).

        A model with several grouping factors has no top level: see `ranef`.
        """
        return self.fitted.random_effects

    @property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Conditional covariances given the parameters: of each group a DataFrame (coefficients, coefficients)."""
        return self.fitted.random_effects_cov

    @overload
    def ranef(self, cond_var: Literal[False] = False) -> dict[str, pd.DataFrame]: ...

    @overload
    def ranef(self, cond_var: Literal[True]) -> tuple[dict[str, pd.DataFrame], dict[str, np.ndarray]]: ...

    def ranef(self, cond_var: bool = False) -> Any:
        """Conditional modes of the random effects by grouping factor, each a DataFrame of levels x columns.

        Returns
        -------
        dict of str to DataFrame (levels, q)
            With `cond_var` a pair: this, and the conditional covariances by the curvature at the modes, given the
            parameters, a dict of str to array (levels, q, q).

        Examples
        --------
        >>> slow.ranef()["Subject"].loc["308"].round(2).to_dict()
        {'Intercept': 1.0}
        """
        modes = effects.modes(self.fitted.spec.terms, self.fitted.fit.b)
        return (modes, self.fitted.level_covariances) if cond_var else modes

    @property
    def fittedvalues(self) -> pd.Series | pd.DataFrame:
        """Means at the conditional modes: Series (nobs,), as of ``predict(random_effects=True)``.

        Of successes they are probabilities; of categories a DataFrame with the probability of each, (nobs, categories).
        """
        values, spec = self.fitted.fittedvalues, self.fitted.spec
        if values.ndim == 1:
            return self.fitted.by_row(values)
        return pd.DataFrame(
            np.array(values), spec.index, pd.Index(self.fitted.response.categories, name=spec.endog_name)
        )

    @property
    def linear_predictor(self) -> pd.Series:
        """``X beta + offset + Z b`` at the conditional modes: Series (nobs,)."""
        return self.fitted.by_row(self.fitted.predictor)

    @property
    def resid(self) -> pd.Series:
        """Response less ``fittedvalues``, of successes their share: Series (nobs,).

        Raises `ModelError` for categories; `residuals` has other kinds.
        """
        return self.residuals("response")

    def residuals(self, kind: responses.Residual = "response", key: Any = 0, simulations: int = 250) -> pd.Series:
        """Residuals, Series (nobs,).

        Raises `DataError` for another kind, and `ModelError` for one that the family does not have.

        Parameters
        ----------
        kind
            "response": as `resid`. "pearson": over the standard deviation of each response, its dispersion counted.
            "deviance": the signed root of what a row adds to the deviance. "working": over the derivative of the mean,
            on the scale of the predictor. "quantile": randomised quantile residuals given the random effects (Dunn and
            Smyth 1996), standard normal if the model holds. "simulated": the rank of each response, between 0 and 1,
            among `simulations` new ones with new random effects, uniform if the model holds, as in R's DHARMa.
        key : JAX random key, or int
            Of what is random in "quantile" and "simulated".
        simulations
            Number of new responses.
        """
        return self.fitted.by_row(responses.residuals(self.fitted, kind, key, simulations))

    def predict(
        self,
        data: Any = None,
        kind: Kind = "response",
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: NewLevels = "raise",
        interval: Interval | None = None,
        level: float = 0.95,
        trials: ArrayLike | str | None = None,
        n: int = 1000,
        key: Any = 0,
    ) -> Any:
        """Predict the response, its probability or its linear predictor.

        Raises `DataError` for a level that the model has not seen, a missing column, or words that mean nothing, and
        `ModelError` for what the family does not have.

        Parameters
        ----------
        data : DataFrame or other columns, optional
            New rows; by default the rows of the model. Columns of an offset must be there, those of a dispersion or an
            inflation of zeros where what is predicted depends on them.
        kind
            "response": the mean, of successes their probability, of categories the probability of each. "link": the
            linear predictor. "probability": that of a success or of each category. "marginal": the mean averaged over
            the random effects that `random_effects` leaves out, a mean of the population; "response" is that of a group
            whose random effects are zero.
        random_effects
            True adds the conditional modes of all terms, names of grouping factors those of these factors.
        new_levels
            "population": a level that the model has not seen gets a random effect of zero.
        interval
            "confidence": of what is predicted, by the delta method, on the scale of the linear predictor, so that it
            stays within the range; probabilities of categories on that of the logit. "prediction": quantiles of `n` new
            responses with new random effects where the prediction leaves them out, of successes of their share.
        level
            Coverage of the interval.
        trials : str or array (r,), optional
            Numbers of trials of new rows, for their prediction interval.
        n
            How many responses are drawn for a prediction interval.
        key : JAX random key, or int
            Of these.

        Returns
        -------
        array (nobs,) for the model's rows, else a Series with the index of `data`; NaN for rows with missing values.
        With an interval a DataFrame with the columns fit, se, lower and upper. Of categories a DataFrame with a column
        for each, or with an interval with columns (category, fit), ...

        Examples
        --------
        >>> new = {"Days": [0, 9]}
        >>> slow.predict(new).round(2).tolist(), slow.predict(new, "marginal").round(2).tolist()
        ([0.04, 0.89], [0.1, 0.8])
        >>> slow.predict({"Days": [9]}, interval="confidence").round(2).values.tolist()
        [[0.89, 0.06, 0.71, 0.96]]
        """
        return expected.predict(self.fitted, data, kind, random_effects, new_levels, interval, level, trials, n, key)

    def augment(self, data: Any = None) -> pd.DataFrame:
        """The data with predictors, means, residuals and leverages beside them, in the columns of broom.mixed.

        Parameters
        ----------
        data : DataFrame, optional
            New rows; levels that the model has not seen get a random effect of zero. By default the model's rows.

        Returns
        -------
        DataFrame
            A copy with ``.fitted`` and ``.fixed``, the linear predictor with and without random effects, and, for the
            model's rows: ``.mu`` (the mean; of categories ``.probability``, that of the one observed), ``.resid``
            (deviance residuals, Pearson's where the family has no deviance, quantile residuals of categories),
            ``.hat``, ``.cooksd`` and ``.std.resid`` (leverage, Cook's distance and standardised residual of the linear
            model that this one is like at the modes), ``.offset``, ``.weights``.
        """
        return diagnostics.augment(self.fitted, data)

    def influence(self, group: str | None = None, method: Literal["exact", "onestep"] = "exact") -> Influence:
        """Estimates without one group at a time, each by a fit of its own.

        Raises `ModelError` for an unknown factor or method, and without `group` for crossed factors.

        Parameters
        ----------
        group
            The grouping factor whose levels are left out; by default the one in which all others are nested.
        method
            "exact": every refit goes to its optimum. "onestep": one Newton step of all parameters together, with exact
            derivatives, from the estimate of all data, in one program: a first look, which is rough where the variance
            is large and groups have few rows or one answer only.

        Examples
        --------
        >>> slow.influence(method="onestep").fixed.shape
        (18, 2)
        """
        return diagnostics.influence(self.fitted, group, method)

    def r2(self, approximation: diagnostics.Approximation | None = None) -> VarianceExplained:
        """Marginal and conditional R2 on the scale of the linear predictor (Nakagawa, Johnson and Schielzeth 2017).

        The residual variance is the observation-level variance of the family: of a log link log(1 + variance / mean^2),
        of a logit pi^2 / 3, of a probit 1, otherwise by the delta method. It is taken at the mean that the model gives
        at the average of the fixed part, its offset included, over predictors with the variance that fixed and random
        effects have together; R's performance and MuMIn take it at the mean of a model without predictors, fitted anew.
        An offset is no effect: it has no part in the variance of the fixed effects. Random effects with a level for
        each row, which take up overdispersion, count as residuals, unless the levels are related. Raises `ModelError`
        for an approximation that the link does not have.

        Parameters
        ----------
        approximation
            Of the observation-level variance, in the place of what is usual: of a log link with v = variance / mean^2
            "lognormal" is log(1 + v), "delta" v, and "trigamma" trigamma(1 / v); "delta" is there for other links of
            means too. MuMIn's ``r.squaredGLMM`` has a row of each.
        """
        return diagnostics.r2(self.fitted, approximation)

    def icc(self, approximation: diagnostics.Approximation | None = None) -> IntraclassCorrelation:
        """Intraclass correlations on the scale of the linear predictor, with the residual variance of `r2`.

        Parameters
        ----------
        approximation
            As in `r2`.
        """
        return diagnostics.icc(self.fitted, approximation)

    def re_pca(self) -> dict[str, pd.DataFrame]:
        """Principal components of the random effects by grouping factor, as lme4's rePCA.

        Rows PC1, PC2, ...; columns sd, proportion, cumulative, and the loadings by column.
        """
        return diagnostics.re_pca(self.fitted.spec, self.fitted.fit)

    # Other responses.

    def approximation(self, draws: int = 1000, key: int = 0) -> approximation.Approximation:
        """How far the likelihood of this fit is from the true one, at the estimates.

        With one grouping factor of up to three random effects: by quadrature with many nodes, which also tells how far
        it would move each coefficient. Otherwise by importance sampling, the criterion alone, with a standard error.
        Raises `DataError` for a number of draws or a seed that is none, and after `remove_data`.

        Parameters
        ----------
        draws
            Of importance sampling.
        key
            A seed for them.
        """
        return approximation.approximation(self.fitted, draws, key)

    def simulate(self, n: int = 1, key: Any = 0, *, random_effects: str | Collection[str] = "new") -> np.ndarray:
        """Draw new responses from the fitted model, with new random effects unless they are given.

        Raises `DataError` for an `n`, a `key` or `random_effects` that are none, or after `remove_data`.

        Parameters
        ----------
        n
            Number of responses.
        key : JAX random key, or int
            The same key gives the same responses.
        random_effects
            "new", "conditional" (the conditional modes), or names of grouping factors that keep theirs.

        Returns
        -------
        array (n, nobs)
            In the numbers of ``model.endog``: successes are their number, categories are counted from zero.

        Examples
        --------
        >>> slow.simulate(3, key=1).shape
        (3, 180)
        """
        return bootstrap.simulate(self.fitted, n, key, random_effects)

    def refit(self, y: ArrayLike) -> Self:
        """Fit the same model to another response; nothing is compiled anew.

        Raises `DataError` for a response of another length, or one that the family does not have.

        Parameters
        ----------
        y : array-like (nobs,)
            In the numbers of ``model.endog``, rows in the model's order.

        Examples
        --------
        >>> slow.refit(1 - slow.model.endog).fe_params.round(3).to_dict()
        {'Intercept': 3.195, 'Days': -0.585}
        """
        return bootstrap.refit(self.fitted, y)

    def bootstrap(
        self,
        n: int = 1000,
        key: Any = 0,
        *,
        random_effects: str | Collection[str] = "new",
        progress: bool = False,
    ) -> Bootstrap:
        """Parametric bootstrap: refit to `n` responses simulated from this fit.

        Raises `DataError` for an `n`, a `key` or `random_effects` that are none, or after `remove_data`.

        Parameters
        ----------
        key : JAX random key, or int
            The same key gives the same replicates.
        random_effects
            Of the simulated responses, as in `simulate`.

        Examples
        --------
        >>> slow.bootstrap(20, key=1).replicates.shape
        (20, 3)
        """
        return bootstrap.bootstrap(self.fitted, n, key, random_effects, progress)

    # Keeping it.

    def remove_data(self) -> None:
        """Forget the rows of the data, to make the object small; predictions of new data go on working.

        The caller's model is left alone: this result gets a copy of it without rows.
        """
        self.fitted = self.fitted.without_rows()
        self.model = self.fitted.model

    def save(self, fname: Any, remove_data: bool = False) -> None:
        """Write the result to a file of arrays and plain values, which holds no code: see `MixedLMResults.save`.

        A family of your own is not in it: `load` looks for its class where it is called. Raises `DataError` when the
        data hold labels of a type that cannot be stored.

        Parameters
        ----------
        fname
            A path, or a binary file.
        remove_data
            Write it without the rows of the data; this object keeps them.
        """
        fitted = self.fitted.without_rows() if remove_data else self.fitted
        _write(fname, {"fitted": fitted})

    @classmethod
    def load(cls, fname: Any) -> "MixedGLMResults":
        """Read a result that `save` wrote to `fname`, a path or a binary file: see `jmixed.load`.

        Raises `DataError` when the file holds something else, or a family of your own that is not known here.
        """
        return _read(fname, names_of_caller(0, sys._getframe(1)), cls)

    def __repr__(self) -> str:
        spec, state = self.fitted.spec, "" if self.converged else f", {self.outcome.name}"
        family = f"{self.family.name}({self.family.link})"
        return f"<MixedGLMResults: {spec.formula}; {family}; log-likelihood {self.llf:.4f}{state}>"

    def _repr_html_(self) -> str:
        return self.summary().as_html()


def _write(fname: Any, parts: dict[str, Any]) -> None:
    """Write the parts of a result to a path or a binary file."""
    content = files.pack(parts)
    if isinstance(fname, str | os.PathLike):
        write_whole(fname, content)
    else:
        fname.write(content)


def _read(fname: Any, names: Mapping[str, Any], kind: type | None = None) -> Any:
    """The result in a file; a file of a result that is not of the `kind` asked for is refused."""
    content = Path(fname).read_bytes() if isinstance(fname, str | os.PathLike) else fname.read()
    if not isinstance(content, bytes):
        raise DataError(f"{fname}: gives {type(content).__name__}, not bytes: open the file with mode 'rb'")

    def together(parts: dict[str, Any]) -> Any:
        stored = MixedLMResults if parts["fitted"].family is None else MixedGLMResults
        wanted = kind or stored
        if not issubclass(wanted, stored):
            raise DataError(f"{fname}: holds {stored.__name__}, not {wanted.__name__}: read it with jm.load")
        return wanted.__new__(wanted)._set_up(**parts)

    return files.unpack(content, str(fname), names, together)


@checked
def load(fname: Any) -> MixedLMResults | MixedGLMResults:
    """Read a result that ``result.save`` wrote. No code is run: the file holds arrays and plain values.

    Functions and other objects of yours that the formulas name are looked up where this is called. One that is not
    there is missed when it is needed, as for predictions of new data. Formulas are code themselves, which `predict` for
    new data, `anova` and `update` run: of a file that comes from strangers, read what was estimated and no more.

    Parameters
    ----------
    fname
        A path, or a binary file.

    Raises
    ------
    DataError
        When the file holds something else, or not all that was written, or was changed since, or was written by a later
        version in a format that this one does not know; and for pickles, which earlier versions wrote.
    OSError
        When there is no such file, or it cannot be read.

    Examples
    --------
    >>> import io
    >>> import jmixed as jm
    >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    >>> file = io.BytesIO()
    >>> result.save(file)
    >>> _ = file.seek(0)
    >>> jm.load(file).fe_params.equals(result.fe_params)
    True
    """
    return _read(fname, names_of_caller(0, sys._getframe(1)))
