"""Fitting a model that has been stated: `MixedLM` is built on it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from jmixed.compat import held, options, penalised
from jmixed.compat.at_parameters import Likelihood
from jmixed.errors import DataError, ModelError
from jmixed.reports.many import ManyFitting
from jmixed.results import MixedLMResults
from jmixed.runtime.timing import Timings


class Fitting(Likelihood, ManyFitting):
    """The ways to estimate a model."""

    k_re: int

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
            fit, penalty = penalised.fit_penalised(fit, task, fe_pen, cov_pen if self.k_re else None, maxiter)
            options.warn_of_outcome(fit, task, self.spec.terms)
        else:
            fit, penalty = held.at_start(task), None
        hist = [options.history(fit, options.solver(method))] if full_output else None
        return self._results(task, fit, hist=hist, penalty=penalty)

    def _results(self, task, fit, **record) -> MixedLMResults:
        timings = Timings(fit.timings)
        with timings.step("results"):
            whole = replace(task.restore(fit), timings=timings)
            return MixedLMResults(self, whole, task.reml, free=task.pattern(), **record)

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

        Raises
        ------
        ModelError, DataError
            For another `method`, and for an `alpha` that is negative or of another length.

        Examples
        --------
        >>> import jmixed as jm
        >>> model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> model.fit_regularized(alpha=[0, 5.0]).fe_params.round(2).to_dict()
        {'Intercept': 258.68, 'Days': 8.85}
        """
        if not isinstance(method, str):
            penalty = penalised.with_alpha(method, alpha)
            return self.fit(reml=reml, start_params=start_params, free=free, fe_pen=penalty, **kwargs)
        if method.lower() != "l1":
            raise ModelError(f"method is {method!r}; it must be 'l1' or a Penalty object")
        options.warn_of_options(set(kwargs) - {"maxiter", "gtol"})
        weights, task = penalised.penalty_weights(alpha, self.k_fe), self._task(reml, start_params, free)
        fit = held.fit(task, maxiter=kwargs.get("maxiter"), gtol=kwargs.get("gtol"))
        options.warn_of_outcome(fit, task, self.spec.terms)
        fit = penalised.fit_lasso(fit, task, weights[task.free_beta], ceps=ceps, ptol=ptol, maxit=maxit)
        return self._results(task, fit)

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
