"""Mixed models as a person states them: `mixedlm` and `MixedLM`."""

from __future__ import annotations

import copy
import sys
import warnings
from collections import ChainMap
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd

from jmixed import held, options, regularized
from jmixed.design import matrices
from jmixed.design.stack import stack
from jmixed.errors import DataError, ModelError, RankWarning
from jmixed.evaluation import Likelihood
from jmixed.packing import Packing
from jmixed.params import refuse_tracer
from jmixed.restate import names_of_caller, restated
from jmixed.results import MixedLMResults
from jmixed.views import GroupedRows, ModelFrame, theta_names


def mixedlm(
    formula,
    data,
    re_formula=None,
    vc_formula=None,
    subset=None,
    use_sparse=False,
    missing="none",
    groups=None,
    weights=None,
    offset=None,
    **kwargs,
) -> MixedLM:
    """State a linear mixed model by formulas: statsmodels' arguments, or lme4's bars in the formula.

    Parameters
    ----------
    formula : str
        ``"y ~ x"`` with `groups`, or with random effects as bars: ``"y ~ x + (x | g)"``, ``(1 | a/b)``, ``(x || g)``.
    data : DataFrame
        Or anything that narwhals reads, or a dict of columns.
    re_formula : str, optional
        Columns with correlated random coefficients; a random intercept unless `vc_formula` is given.
    vc_formula : dict of str to str, optional
        Variance components: name to formula, evaluated within each group.
    subset : optional
        Booleans, or labels of the index: the rows to use.
    use_sparse : bool
        Accepted for statsmodels' sake; elimination is sparse anyway.
    missing : str
        "none" and "raise" refuse missing values, "drop" leaves their rows out.
    groups : str or array, optional
        The grouping factor: a column, or a label for each row.
    weights, offset : str or array, optional
        Prior weights w (the residual variance is sigma^2 / w), and a known part of the linear predictor.
    **kwargs
        use_sqrt, drop_cols and eval_env, as in statsmodels.

    Returns
    -------
    MixedLM

    Raises
    ------
    FormulaError, DataError, ModelError
        For a formula that cannot be read, data that cannot be used, a model that the data cannot identify.

    Examples
    --------
    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> jm.mixedlm("Reaction ~ Days", sleep, groups="Subject", re_formula="~Days").fit().fe_params.round(3).to_dict()
    {'Intercept': 251.405, 'Days': 10.467}
    >>> jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep)
    <MixedLM: Reaction ~ Days + (Days | Subject); 180 rows; Subject: 18 levels>
    """
    words = {"re_formula": re_formula, "vc_formula": vc_formula, "subset": subset, "missing": missing, "groups": groups}
    words |= {"use_sparse": use_sparse, "weights": weights, "offset": offset}
    kwargs.setdefault("eval_env", 0)
    if isinstance(kwargs["eval_env"], int) and kwargs["eval_env"] >= 0:
        kwargs["eval_env"] += 1
    return MixedLM.from_formula(formula, data, **words, **kwargs)


class MixedLM(Likelihood, GroupedRows):
    """A linear mixed model, stated by arrays; `mixedlm` and `MixedLM.from_formula` state it by formulas.

    Parameters
    ----------
    endog : array-like (n,)
        Response.
    exog : array-like (n, p) or (n,)
        Columns of the fixed effects; no intercept is added.
    groups : array-like (n,)
        Label of each row's group.
    exog_re : array-like (n, q) or (n,), optional
        Columns with correlated random coefficients; a random intercept unless `exog_vc` is given.
    exog_vc : VCSpec, optional
        Variance components.
    use_sqrt : bool
        Packed parameter vectors hold Cholesky factors and square roots, as `loglike` and `score` take them. The fit
        is the same either way.
    missing : str
        "none", "raise" or "drop".
    weights, offset : array-like (n,), optional

    Attributes
    ----------
    spec : ModelData
        The model in arrays.
    reml : bool
        What `loglike`, `score`, `hessian` and `get_scale` refer to: as in the last fit, at first True.

    Examples
    --------
    >>> import numpy as np
    >>> import jmixed as jm
    >>> rng = np.random.default_rng(0)
    >>> groups = np.repeat(np.arange(20), 5)
    >>> x = rng.normal(size=100)
    >>> y = 1 + 2 * x + rng.normal(size=20)[groups] + rng.normal(size=100)
    >>> jm.MixedLM(y, np.column_stack([np.ones(100), x]), groups).fit().fe_params.round(1)
    array([0.9, 2. ])
    """

    def __init__(
        self,
        endog,
        exog,
        groups,
        exog_re=None,
        exog_vc=None,
        use_sqrt=True,
        missing="none",
        weights=None,
        offset=None,
        **kwargs,
    ):
        for name in set(kwargs) - {"missing_idx", "model_spec", "formula"}:
            raise ModelError(f"argument {name} not permitted for MixedLM initialization")
        if isinstance(exog_vc, dict):
            warnings.warn(
                "Using deprecated variance components format: give exog_vc as jm.VCSpec(names, colnames, mats)",
                FutureWarning,
                stacklevel=2,
            )
        for name, part in {
            "endog": endog,
            "exog": exog,
            "exog_re": exog_re,
            "weights": weights,
            "offset": offset,
        }.items():
            refuse_tracer(part, name)
        spec = matrices.from_arrays(endog, exog, groups, exog_re, exog_vc, missing, weights, offset)
        self._set_up(spec, use_sqrt, any(isinstance(part, pd.DataFrame | pd.Series) for part in (endog, exog)))

    @classmethod
    def from_formula(
        cls,
        formula,
        data,
        re_formula=None,
        vc_formula=None,
        subset=None,
        use_sparse=False,
        missing="none",
        groups=None,
        weights=None,
        offset=None,
        use_sqrt=True,
        drop_cols=None,
        eval_env=0,
    ) -> MixedLM:
        """State a model by formulas: see `mixedlm`.

        Parameters
        ----------
        formula, data, re_formula, vc_formula, subset, use_sparse, missing, groups, weights, offset
            As in `mixedlm`.
        use_sqrt : bool
            As in `MixedLM`.
        drop_cols : list of str, optional
            Columns of the fixed effects to leave out.
        eval_env : int or mapping
            Names that the formulas may use: 0 those of the caller, 1 those of its caller, -1 none; or a mapping.

        Returns
        -------
        MixedLM
        """
        env = names_of_caller(eval_env, sys._getframe(1))
        spec = matrices.from_formula(
            formula,
            data,
            groups=groups,
            re_formula=re_formula,
            vc_formula=vc_formula,
            subset=subset,
            missing=missing,
            weights=weights,
            offset=offset,
            env=env,
            drop_cols=drop_cols,
        )
        model = cls.__new__(cls)
        model._set_up(spec, use_sqrt, labelled=True)
        model._words = {"re_formula": re_formula, "vc_formula": vc_formula, "missing": missing, "drop_cols": drop_cols}
        beside = {"groups": groups, "weights": weights, "offset": offset}
        model._words |= {
            name: value if value is None or isinstance(value, str) else np.asarray(value)[spec.rows]
            for name, value in beside.items()
        }
        return model

    def _set_up(self, spec, use_sqrt, labelled):
        self.spec, self.use_sqrt, self.labelled, self.reml = spec, bool(use_sqrt), labelled, True
        self._words = None
        self.endog, self.exog, self.formula = spec.y, spec.X, spec.formula
        self.weights, self.offset = spec.weights, spec.offset
        self.endog_names, self.exog_names = spec.endog_name, list(spec.exog_names)
        self.nobs, self.k_fe = spec.X.shape
        self.n_totobs = self.nobs
        self._packing = Packing.of(spec.terms)
        self.k_re, self.k_vc = self._packing.shape
        self.k_re2 = self._packing.size - self.k_vc
        self.k_params = self.k_fe + self._packing.size
        self.data = ModelFrame.of(spec)
        self.theta_names = theta_names(spec.terms)
        if spec.dropped:
            warnings.warn(
                f"the fixed effects are collinear: {', '.join(spec.dropped)} left out, because columns to the left "
                "say the same. Remove redundant terms from the formula to choose which are kept",
                RankWarning,
                stacklevel=3,
            )

    def __repr__(self) -> str:
        levels = {term.group: len(term.levels) for term in self.spec.terms}
        factors = ", ".join(f"{name}: {count} level{'s' * (count != 1)}" for name, count in levels.items())
        what = self.formula or f"{self.endog_names} ~ {' + '.join(self.exog_names) or '0'}"
        if self.spec.group_name is not None:
            given = {k: v for k, v in (self._words or {}).items() if k.endswith("formula") and v is not None}
            what += "".join(f", {name}={text!r}" for name, text in given.items())
        return f"<MixedLM: {what}; {self.nobs} rows; {factors}>"

    @cached_property
    def design(self):
        """The model as a pytree of row arrays, for `jm.estimate` and JAX's transformations."""
        return stack(self.spec)

    def _get_init_kwds(self) -> dict:
        words = {"groups": self.groups, "exog_re": self.exog_re, "exog_vc": self.exog_vc if self.k_vc else None}
        return words | {"use_sqrt": self.use_sqrt, "weights": self.weights, "offset": self.offset}

    # Fitting.

    def fit(
        self,
        reml=True,
        start_params=None,
        method="newton",
        maxiter=None,
        free=None,
        gtol=None,
        full_output=False,
        do_cg=True,
        fe_pen=None,
        cov_pen=None,
        niter_sa=0,
        **kwargs,
    ) -> MixedLMResults:
        """Estimate the model.

        Parameters
        ----------
        reml : bool
            Restricted maximum likelihood, or maximum likelihood.
        start_params : MixedLMParams or array-like, optional
            Start. An array holds [fixed effects,] the lower triangle of the relative covariance's Cholesky factor row
            by row, and square roots of the relative variances (the (co)variances themselves if the model was made
            with ``use_sqrt=False``).
        method : str
            "newton" (trust-region Newton, exact Hessian) or "lbfgs". The names of statsmodels' optimisers mean one of
            the two.
        maxiter : int, optional
        free : MixedLMParams, optional
            Pattern of zeros and ones: a parameter with a zero is held at its start value. The pattern
            ``cov_re = np.eye(k)`` gives uncorrelated random effects.
        gtol : float, optional
            For "lbfgs": gradient norm at which it hands over to the Newton steps that certify the optimum.
        full_output : bool
            Keep a record of the optimisation in ``result.hist``.
        do_cg : bool
            False: do not optimise, give the results at the start values of the covariances.
        fe_pen : Penalty, optional
            Penalty on the fixed effects, an object with ``func(params)`` and ``deriv(params)``.
        cov_pen : CovariancePenalty, optional
            Penalty on the relative covariance ``cov_re``, with ``func(mat, mat_inv)`` and ``deriv(mat, mat_inv)``.
        niter_sa : int
            Ignored, as in statsmodels.
        **kwargs
            Options of statsmodels' optimisers; those without a meaning here warn.

        Returns
        -------
        MixedLMResults

        Raises
        ------
        DataError, ModelError
            For start values or patterns that do not fit the model.

        Examples
        --------
        >>> import jmixed as jm
        >>> model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
        >>> round(model.fit(reml=False).llf, 3)
        -875.97
        """
        options.warn_of_options(kwargs, niter_sa)
        task = self._task(reml, start_params, free)
        if do_cg:
            fit = held.fit(task, options.solver(method), maxiter, gtol)
            fit, penalty = regularized.fit_penalised(fit, task, fe_pen, cov_pen if self.k_re else None, maxiter)
            options.warn_of_outcome(fit, task, self.spec.terms)
        else:
            fit, penalty = held.at_start(task), None
        hist = [options.history(fit, options.solver(method))] if full_output else None
        return MixedLMResults(self, task.restore(fit), task.reml, free=task.pattern(), hist=hist, penalty=penalty)

    def fit_regularized(
        self, method="l1", alpha=0, ceps=1e-4, ptol=1e-6, maxit=200, start_params=None, reml=True, free=None, **kwargs
    ) -> MixedLMResults:
        """Estimate the fixed effects with a penalty.

        With ``"l1"`` the generalised residual sum of squares plus ``sum(alpha * |beta|)`` is minimised at the relative
        covariances of the unpenalised fit. With a Penalty object, whose ``alpha`` is set on a copy, coefficients and
        covariances together maximise the log-likelihood less the penalty.

        Parameters
        ----------
        method : "l1" or Penalty
        alpha : float or array-like (k_fe,)
            Weight of the penalty, for all or each of the fixed effects.
        ceps : float
            A penalised coefficient below this in magnitude is zero ("l1").
        ptol : float
            Change of the coefficients, in standard errors, at which to stop ("l1").
        maxit : int
            Sweeps over the coefficients ("l1").
        start_params, reml, free, **kwargs
            As in `fit`, for the unpenalised fit.

        Returns
        -------
        MixedLMResults
            Under "l1", coefficients of zero have NaN standard errors.

        Examples
        --------
        >>> import jmixed as jm
        >>> model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> model.fit_regularized(alpha=[0, 5.0]).fe_params.round(2).to_dict()
        {'Intercept': 255.81, 'Days': 9.49}
        """
        if not isinstance(method, str):
            penalty = regularized.with_alpha(method, alpha)
            return self.fit(reml=reml, start_params=start_params, free=free, fe_pen=penalty, **kwargs)
        if method.lower() != "l1":
            raise ModelError(f"method is {method!r}; it must be 'l1' or a Penalty object")
        options.warn_of_options(set(kwargs) - {"maxiter", "gtol"})
        weights, task = regularized.penalty_weights(alpha, self.k_fe), self._task(reml, start_params, free)
        fit = held.fit(task, maxiter=kwargs.get("maxiter"), gtol=kwargs.get("gtol"))
        options.warn_of_outcome(fit, task, self.spec.terms)
        fit = regularized.fit_lasso(fit, task, weights[task.free_beta], ceps=ceps, ptol=ptol, maxit=maxit)
        return MixedLMResults(self, task.restore(fit), task.reml, free=task.pattern())

    def _task(self, reml, start_params, free) -> held.Task:
        """What is to be estimated, and from where."""
        if not isinstance(reml, bool | np.bool_):
            raise ModelError(f"reml is {reml!r}: give True or False, and start values by keyword, start_params=")
        beta, root = np.zeros(self.k_fe), None
        if start_params is not None:
            given, _, root = self._read(start_params, "start_params")
            beta = beta if given is None else given
            if not (np.all(np.isfinite(beta)) and np.all(np.isfinite(root))):
                raise DataError("start_params holds values that are not finite numbers")
        self.reml = bool(reml)
        return held.task(self.design, self._packing, self.reml, beta, root, free)

    def update(self, formula=None, **changes) -> MixedLM:
        """State another model on the rows of this one.

        Parameters
        ----------
        formula : str or sequence of str, optional
            A formula, in which a lone dot stands for what this model has on that side (``". ~ . + x"``); or terms for
            the same response.
        **changes
            Other arguments of `mixedlm`, such as re_formula.

        Returns
        -------
        MixedLM

        Raises
        ------
        ModelError
            The model was made of arrays.

        Examples
        --------
        >>> import jmixed as jm
        >>> model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> model.update(". ~ . + I(Days**2)").exog_names
        ['Intercept', 'Days', 'I(Days ** 2)']
        """
        if self._words is None:
            raise ModelError("update needs formulas, but this model was made of arrays: make a new MixedLM instead")
        env = ChainMap(self.spec.recipe.env, names_of_caller(changes.pop("eval_env", 0), sys._getframe(1)))
        words = self._words | changes
        text = self.formula if formula is None else restated(formula, self.formula)
        return type(self).from_formula(text, self.data.frame, use_sqrt=self.use_sqrt, eval_env=env, **words)

    def without_data(self, spec) -> MixedLM:
        """A copy that holds `spec`, a `ModelData` without rows, in place of its own."""
        model = copy.copy(self)
        for name in ("design", "_top_level", "row_indices", "exog_re", "exog_vc"):
            model.__dict__.pop(name, None)
        model.spec, model.endog, model.exog = spec, spec.y, spec.X
        model.weights, model.offset = spec.weights, spec.offset
        model.data, model._words = replace(self.data, frame=None, row_labels=spec.index), None
        return model
