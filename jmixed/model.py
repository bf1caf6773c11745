"""Mixed models as a person states them: by formulas (`mixedlm`), arrays (`MixedLM`, `design`) or in batches."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, Self, cast

import jax
import numpy as np
import pandas as pd
from jax.core import Tracer
from numpy.typing import ArrayLike

from jmixed.compat import held, options, penalised
from jmixed.compat.at_parameters import AtParameters, Distribution, Reader
from jmixed.compat.groups import ModelFrame, rows_by_group, theta_names, top_level, vc_spec
from jmixed.compat.packing import Packing
from jmixed.compat.params import MixedLMParams, VCSpec, as_array, refuse_tracer
from jmixed.errors import DataError, ModelError, RankWarning, warn
from jmixed.families.family import DISPERSION, INFLATION, Family
from jmixed.families.inflation import ZeroInflated
from jmixed.families.registry import family_of
from jmixed.fit import host, iterative
from jmixed.formulas import checks, statement
from jmixed.formulas.frame import reordered
from jmixed.formulas.model_data import ModelData, RandomTerm, ResponseTerm
from jmixed.formulas.recipe import Elsewhere
from jmixed.formulas.relationships import known_matrices
from jmixed.formulas.restate import names_of_caller, refuse_strange, restated
from jmixed.layout.design import Design, with_family
from jmixed.layout.incidence import incidence
from jmixed.layout.stack import stack
from jmixed.reports.files import KINDS
from jmixed.reports.many import ManyResults, fit_many
from jmixed.reports.names import left_out
from jmixed.reports.residuals import require_sigma
from jmixed.reports.responses import checked_quadrature, checked_responses
from jmixed.results import MixedGLMResults, MixedLMResults
from jmixed.runtime.arguments import checked
from jmixed.runtime.memory import roomy
from jmixed.runtime.precision import FLOAT
from jmixed.runtime.timing import Timings
from jmixed.streams import passes, sums, survey
from jmixed.streams.represent import represent

Missing = Literal["none", "drop", "raise"]
Check = Literal["raise", "ignore"]
Crossed = Literal["auto", "exact", "iterative"]
Factor = str | ArrayLike | None
"""A grouping factor, weights or an offset: the name of a column, or an entry for each row."""

OF_ROWS = ("endog", "exog", "weights", "offset")
"""Attributes that a model of data in batches has not."""


@checked
def mixedlm(
    formula: str,
    data: Any,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    subset: ArrayLike | None = None,
    use_sparse: bool = False,
    missing: Missing = "none",
    groups: Factor = None,
    weights: Factor = None,
    offset: Factor = None,
    check: Check = "raise",
    residual: str | None = None,
    dispersion: str | None = None,
    relationship: Mapping[str, Any] | None = None,
    relationship_inverse: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> MixedLM:
    """State a linear mixed model by formulas: statsmodels' arguments, or lme4's bars in the formula.

    Raises `FormulaError`, `DataError` or `ModelError` for a formula that cannot be read, data that cannot be used, a
    model that the data cannot identify.

    Parameters
    ----------
    formula
        ``"y ~ x"`` with `groups`, or with random effects as bars: ``"y ~ x + (x | g)"``, ``(1 | a/b)``, ``(x || g)``.
    data : DataFrame
        Or anything that narwhals reads, or a dict of columns.
    re_formula
        Columns with correlated random coefficients; a random intercept unless `vc_formula` is given.
    vc_formula
        Variance components: name to formula, evaluated within each group.
    subset : array of bool (n,), or labels of the index, optional
        The rows to use.
    use_sparse
        Accepted for statsmodels' sake; elimination is sparse anyway.
    missing
        "none" and "raise" refuse missing values, "drop" leaves their rows out.
    groups : str or array (n,), optional
        The grouping factor: a column, or a label for each row.
    weights : str or array (n,), optional
        Prior weights w > 0: the residual variance is sigma^2 / w.
    offset : str or array (n,), optional
        A known part of the linear predictor, in the unit of the response.
    check
        "raise" refuses random effects that cannot be told from the residual: those with as many coefficients as rows
        and no pattern of their own, and terms that together reproduce any response. "ignore" fits them all the same,
        and the outcome says what came of it.
    residual
        How residuals of a group are correlated: ``"ar1(visit | subject)"``, with one of ar1, car1 (times that are no
        whole numbers), cs, toep, us, and ar1h, csh, toeph with a variance for each position. Such a model needs no
        random effects: ``us(visit | subject)`` is the MMRM of a trial.
    dispersion
        What the residual variance depends on, a formula for its log standard deviation: ``"~ sex"``, ``"~ log(x)"``.
    relationship, relationship_inverse
        Known covariances of a factor's levels, or their inverses: ``{"animal": A}`` with A a DataFrame (levels,
        levels), a pair (matrix, labels), of which the matrix may be sparse, or what `pedigree` returns. Levels that A
        has beside those of the data are predicted from their relatives.
    **kwargs
        use_sqrt, drop_cols and eval_env, as in `MixedLM.from_formula`.

    Examples
    --------
    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> jm.mixedlm("Reaction ~ Days", sleep, groups="Subject", re_formula="~Days").fit().fe_params.round(3).to_dict()
    {'Intercept': 251.405, 'Days': 10.467}
    >>> jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep)
    <MixedLM: Reaction ~ Days + (Days | Subject); 180 rows; Subject: 18 levels>
    """
    refuse_strange(kwargs)
    kwargs.setdefault("eval_env", 0)
    if isinstance(kwargs["eval_env"], int) and kwargs["eval_env"] >= 0:
        kwargs["eval_env"] += 1
    stated = (re_formula, vc_formula, subset, use_sparse, missing, groups, weights, offset)
    kwargs |= {"residual": residual, "dispersion": dispersion}
    kwargs |= {"relationship": relationship, "relationship_inverse": relationship_inverse}
    return MixedLM.from_formula(formula, data, *stated, check=check, **kwargs)


@checked
class MixedLM:
    """A linear mixed model, stated by arrays; `mixedlm` and `MixedLM.from_formula` state it by formulas.

    It never changes, whatever is fitted to it: threads can share it. `missing` and `check` are as in `mixedlm`. Raises
    `DataError` or `ModelError` for arrays that do not fit together, and for a model that the data cannot identify.

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
    use_sqrt
        Packed parameter vectors hold Cholesky factors and square roots, as `loglike` and `score` take them. The fit
        is the same either way.
    weights, offset : array-like (n,), optional
        Prior weights w (the residual variance is sigma^2 / w), and a known part of the linear predictor.
    **kwargs
        missing_idx, model_spec and formula, which statsmodels passes on, are accepted and not used.

    Attributes
    ----------
    spec : ModelData
        The model in arrays. Of data in batches (`from_batches`) it has a few rows that have their cross-products; what
        is a matter of the rows themselves, such as `endog`, is then refused.
    endog, exog, weights, offset : arrays (nobs,), (nobs, k_fe), (nobs,), (nobs,)
    endog_names, exog_names, theta_names : str, list of str (k_fe,), list of str (m,)
    k_fe, k_re, k_vc, k_re2, k_params : int
        Numbers of fixed effects, columns with correlated coefficients, components, their (co)variances, parameters.
    data : ModelFrame
        The rows and the labels, under statsmodels' names.

    Examples
    --------
    >>> import numpy as np
    >>> import jmixed as jm
    >>> rng = np.random.default_rng(0)
    >>> groups = np.repeat(np.arange(20), 5)
    >>> x = rng.normal(size=100)
    >>> y = 1 + 2 * x + rng.normal(size=20)[groups] + rng.normal(size=100)
    >>> jm.MixedLM(y, np.column_stack([np.ones(100), x]), groups).fit().fe_params.round(1)
    array([1. , 2.1])
    """

    spec: ModelData
    timings: Timings
    packing: Packing
    endog: np.ndarray
    exog: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    use_sqrt: bool
    labelled: bool
    formula: str | None
    endog_names: str
    exog_names: list[str]
    nobs: int
    n_totobs: int
    k_fe: int
    k_re: int
    k_vc: int
    k_re2: int
    k_params: int
    data: ModelFrame
    theta_names: list[str]
    _words: dict[str, Any] | None
    _response: np.ndarray | None

    def __init__(
        self,
        endog: ArrayLike,
        exog: ArrayLike,
        groups: ArrayLike,
        exog_re: ArrayLike | None = None,
        exog_vc: VCSpec | dict | None = None,
        use_sqrt: bool = True,
        missing: Missing = "none",
        weights: ArrayLike | None = None,
        offset: ArrayLike | None = None,
        check: Check = "raise",
        **kwargs: Any,
    ):
        for name in set(kwargs) - {"missing_idx", "model_spec", "formula"}:
            raise ModelError(f"argument {name} not permitted for MixedLM initialization")
        if isinstance(exog_vc, dict):
            warn(
                "Using deprecated variance components format: give exog_vc as jm.VCSpec(names, colnames, mats)",
                FutureWarning,
            )
        arrays = {"endog": endog, "exog": exog, "exog_re": exog_re, "weights": weights, "offset": offset}
        for name, array in arrays.items():
            refuse_tracer(array, name)
        timings = Timings()
        with timings.step("materialise"):
            spec = statement.from_arrays(endog, exog, groups, exog_re, exog_vc, missing, weights, offset, check)
        labelled = any(isinstance(part, pd.DataFrame | pd.Series) for part in (endog, exog))
        self._set_up(spec, timings, use_sqrt, labelled)

    @classmethod
    def from_formula(
        cls,
        formula: str,
        data: Any,
        re_formula: str | None = None,
        vc_formula: Mapping[str, str] | None = None,
        subset: ArrayLike | None = None,
        use_sparse: bool = False,
        missing: Missing = "none",
        groups: Factor = None,
        weights: Factor = None,
        offset: Factor = None,
        use_sqrt: bool = True,
        drop_cols: Sequence[str] | None = None,
        eval_env: int | Mapping = 0,
        check: Check = "raise",
        residual: str | None = None,
        dispersion: str | None = None,
        relationship: Mapping[str, Any] | None = None,
        relationship_inverse: Mapping[str, Any] | None = None,
    ) -> MixedLM:
        """State a model by formulas: see `mixedlm`.

        As there are `formula`, `data`, `re_formula`, `vc_formula`, `missing`, `check`, `residual`, `dispersion`,
        `relationship`, `relationship_inverse`, and, (n,) where they are arrays, `subset`, `groups`, `weights` and
        `offset`; `use_sqrt` is as in `MixedLM`.

        Parameters
        ----------
        drop_cols
            Columns of the fixed effects to leave out.
        eval_env
            Names that the formulas may use: 0 those of the caller, 1 those of its caller, -1 none; or a mapping.

        Examples
        --------
        >>> import jmixed as jm
        >>> jm.MixedLM.from_formula("Reaction ~ Days", jm.datasets.load("sleepstudy"), groups="Subject").n_groups
        18
        """
        env, timings = names_of_caller(eval_env, sys._getframe(1)), Timings()
        words: dict[str, Any] = {"re_formula": re_formula, "vc_formula": vc_formula, "missing": missing}
        words |= {"drop_cols": drop_cols, "check": check, "residual": residual, "dispersion": dispersion}
        # Checked once: each says for itself whether it is an inverse.
        words["relationship"] = known_matrices(relationship, relationship_inverse)
        of_rows: dict[str, Any] = {"groups": groups, "weights": weights, "offset": offset}
        spec = statement.from_formula(formula, data, subset=subset, env=env, timings=timings, **words, **of_rows)
        for name, value in of_rows.items():
            words[name] = value if value is None or isinstance(value, str) else np.asarray(value)[spec.rows]
        return cls.__new__(cls)._set_up(spec, timings, use_sqrt, labelled=True, words=words)

    def _set(self, **attributes) -> Self:
        """Give a model that is being made its attributes; nothing sets them afterwards."""
        vars(self).update(attributes)
        return self

    def _set_up(self, spec: ModelData, timings: Timings, use_sqrt, labelled, words=None) -> Self:
        for message in left_out(spec):
            warn(message, RankWarning)
        return self._stated(spec, timings, bool(use_sqrt), labelled, words, None, spec.nobs)

    def _stated(self, spec: ModelData, timings: Timings, use_sqrt, labelled, words, response, nobs) -> Self:
        packing = Packing.of(spec.terms)
        k_re, k_vc = packing.shape
        if spec.represents is None:
            self._set(endog=spec.y, exog=spec.X, weights=spec.weights, offset=spec.offset)
        return self._set(
            spec=spec,
            timings=timings,
            packing=packing,
            use_sqrt=use_sqrt,
            labelled=labelled,
            formula=spec.formula,
            endog_names=spec.endog_name,
            exog_names=list(spec.exog_names),
            nobs=nobs,
            n_totobs=nobs,
            k_fe=spec.X.shape[1],
            k_re=k_re,
            k_vc=k_vc,
            k_re2=packing.size - k_vc,
            k_params=spec.X.shape[1] + packing.size,
            data=ModelFrame.of(spec),
            theta_names=theta_names(spec.terms),
            _words=words,
            _response=response,
        )

    def _state(self) -> dict[str, Any]:
        """What a file holds of it: the arguments of `_stated`."""
        names = ("spec", "timings", "use_sqrt", "labelled", "nobs")
        state = {name: getattr(self, name) for name in names}
        return state | {"words": self._words, "response": self._response}

    @classmethod
    def _of_state(cls, parts: dict[str, Any]) -> Self:
        return cls.__new__(cls)._stated(**parts)

    def __setattr__(self, name: str, value) -> None:
        hint = "give reml= to fit, loglike, score, hessian or get_scale" if name == "reml" else "state another model"
        raise ModelError(f"model.{name} cannot be set: a model does not change. Instead, {hint}")

    def __getattr__(self, name: str):
        if name in OF_ROWS and "spec" in vars(self):
            self._need_rows(f"model.{name}")
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def _need_rows(self, what: str) -> None:
        """Refuse what needs the rows of the data where there are none."""
        if self.spec.represents is not None:
            raise DataError(
                f"{what} needs the rows of the data, and from_batches keeps their cross-products only; use mixedlm for "
                "data that fit into memory, or call from_batches once for each response"
            )
        if not len(self.spec.y):
            raise DataError("the rows of this model's data were removed by remove_data(); use a model that has them")

    def __repr__(self) -> str:
        levels = {term.group: (len(term.levels), term.relationship) for term in self.spec.terms}
        factors = ", ".join(
            f"{name}: {count} {'related ' * (related is not None)}level{'s' * (count != 1)}"
            for name, (count, related) in levels.items()
        )
        what = self.formula or f"{self.endog_names} ~ {' + '.join(self.exog_names) or '0'}"
        if self.spec.group_name is not None:
            formulas = {k: v for k, v in (self._words or {}).items() if k.endswith("formula") and v is not None}
            what += "".join(f", {name}={text!r}" for name, text in formulas.items())
        rows = f"{self.nobs} rows" if self.spec.represents is None else f"{self.nobs} rows in batches"
        return f"<MixedLM: {what}; {rows}; {factors}>"

    @cached_property
    def design(self) -> Design:
        """The model as a pytree of row arrays, for `jm.estimate` and JAX's transformations.

        Of data in batches its rows stand for theirs.
        """
        if not len(self.spec.y):
            self._need_rows("design")
        with self.timings.step("stack"):
            return stack(self.spec)

    @cached_property
    def _top_level(self):
        return top_level(self.spec)

    @property
    def groups(self) -> np.ndarray:
        """Label of each row's top-level group, array (nobs,)."""
        self._need_rows("groups")
        codes, labels, _ = self._top_level
        return self.spec.groups if self.spec.groups is not None else np.asarray(labels)[codes]

    @property
    def group_labels(self) -> list:
        """The groups in sorted order."""
        self._need_rows("group_labels")
        return list(self._top_level[1])

    @property
    def n_groups(self) -> int:
        """Number of top-level groups."""
        return len(self._top_level[1])

    @cached_property
    def row_indices(self) -> dict:
        """Row numbers of each group, by its label."""
        self._need_rows("row_indices")
        codes, labels, _ = self._top_level
        return dict(zip(labels, (rows.tolist() for rows in rows_by_group(codes, len(labels))), strict=True))

    @cached_property
    def exog_re(self) -> np.ndarray | None:
        """Columns with correlated random coefficients, array (nobs, k_re); None if there are none."""
        self._need_rows("exog_re")
        columns = [term.Z for term in self.spec.terms if term.vc is None]
        return np.hstack(columns) if columns else None

    @cached_property
    def exog_vc(self) -> VCSpec:
        """Variance components as dense blocks, one for each group."""
        self._need_rows("exog_vc")
        return vc_spec(self.spec)

    def group_list(self, array: ArrayLike | None) -> list[np.ndarray] | None:
        """Cut an `array` (nobs,) or (nobs, k) by top-level group, in the order of `group_labels`; None for None.

        Raises `DataError` for an array of another length.
        """
        if array is None:
            return None
        self._need_rows("group_list")
        rows = np.asarray(array)
        if rows.shape[:1] != self.spec.y.shape:
            raise DataError(f"group_list: the array has shape {rows.shape}, the model has {len(self.spec.y)} rows")
        return [rows[members] for members in self.row_indices.values()]

    def _get_init_kwds(self) -> dict:
        words = {"groups": self.groups, "exog_re": self.exog_re, "exog_vc": self.exog_vc if self.k_vc else None}
        return words | {"use_sqrt": self.use_sqrt, "weights": self.weights, "offset": self.offset}

    def fit(
        self,
        reml: bool = True,
        start_params: MixedLMParams | ArrayLike | None = None,
        method: str | Sequence[str] | None = "newton",
        maxiter: int | None = None,
        free: MixedLMParams | None = None,
        gtol: float | None = None,
        full_output: bool = False,
        do_cg: bool = True,
        fe_pen: Any = None,
        cov_pen: Any = None,
        niter_sa: int = 0,
        crossed: Crossed = "auto",
        probes: int | None = None,
        seed: int = 0,
        **kwargs: Any,
    ) -> MixedLMResults:
        """Estimate the model.

        Raises `DataError` or `ModelError` for start values or patterns that do not fit the model, and where
        `crossed` asks for a way that is not for it.

        Parameters
        ----------
        reml
            Restricted maximum likelihood, or maximum likelihood.
        start_params : MixedLMParams or array-like (k,), optional
            Start. An array holds [fixed effects,] the lower triangle of the relative covariance's Cholesky factor row
            by row, and square roots of the relative variances (the (co)variances themselves if the model was made
            with ``use_sqrt=False``).
        method
            "newton" (trust-region Newton, exact Hessian) or "lbfgs". The names of statsmodels' optimisers mean one of
            the two.
        maxiter
            Most iterations.
        free
            Pattern of zeros and ones: a parameter with a zero is held at its start value. The pattern
            ``cov_re = np.eye(k)`` gives uncorrelated random effects.
        gtol
            For "lbfgs": gradient norm at which it hands over to the Newton steps that certify the optimum.
        full_output
            Keep a record of the optimisation in ``result.hist``.
        do_cg
            False: do not optimise, give the results at the start values of the covariances.
        fe_pen : Penalty, optional
            Penalty on the fixed effects, an object with ``func(params)`` and ``deriv(params)``.
        cov_pen : CovariancePenalty, optional
            Penalty on the relative covariance ``cov_re``, with ``func(mat, mat_inv)`` and ``deriv(mat, mat_inv)``.
        niter_sa
            Ignored, as in statsmodels.
        crossed
            How crossed factors are fitted: "exact", by one dense matrix of all but the largest; "iterative", by
            conjugate gradients and random probes, with an error that ``result.monte_carlo`` tells; "auto" is exact
            while that is quick and memory suffices. ``result.optimizer.crossed`` says which it was.
        probes
            For "iterative": random probes to begin with, two or more; 24 by default. More are added until the error
            that they leave is below a tenth of the standard errors.
        seed
            For "iterative": of the probes. The same seed gives the same fit.
        **kwargs
            Options of statsmodels' optimisers; those without a meaning here warn.

        Examples
        --------
        >>> round(model.fit(reml=False).llf, 3)
        -875.97
        """
        options.warn_of_options(kwargs, niter_sa)
        iterative.check(crossed)
        if not do_cg or free is not None or fe_pen is not None or cov_pen is not None or gtol is not None:
            if crossed == "iterative":
                raise ModelError(
                    "crossed='iterative' estimates all parameters by their likelihood: it has no do_cg=False, free=, "
                    "fe_pen=, cov_pen=, gtol=. Leave these out, or take crossed='exact'"
                )
        elif crossed != "exact" and (crossed == "iterative" or self._is_wide):
            return self._fit_iterative(reml, start_params, options.solver(method), maxiter, probes, seed, full_output)
        task = self._task(reml, start_params, free)
        if do_cg:
            fit = held.fit(task, options.solver(method), maxiter, gtol)
            fit, penalty = penalised.fit_penalised(fit, task, fe_pen, cov_pen if self.k_re else None, maxiter)
            options.warn_of_outcome(fit, task, self.spec.terms)
        else:
            fit, penalty = held.at_start(task), None
        hist = [options.history(fit, options.solver(method))] if full_output else None
        return self._results(task, fit, hist=hist, penalty=penalty)

    def fit_regularized(
        self,
        method: Any = "l1",
        alpha: ArrayLike = 0,
        ceps: float = 1e-4,
        ptol: float = 1e-6,
        maxit: int = 200,
        start_params: MixedLMParams | ArrayLike | None = None,
        reml: bool = True,
        free: MixedLMParams | None = None,
        **kwargs: Any,
    ) -> MixedLMResults:
        """Estimate the fixed effects with a penalty.

        With ``"l1"`` the generalised residual sum of squares plus ``sum(alpha * |beta|)`` is minimised at the relative
        covariances of the unpenalised fit; coefficients of zero have NaN standard errors. With a Penalty object, whose
        ``alpha`` is set on a copy, coefficients and covariances together maximise the log-likelihood less the penalty.
        `start_params` (k,), `reml`, `free` and other `kwargs` are those of `fit`, for the unpenalised fit. Raises
        `ModelError` or `DataError` for another `method`, and for an `alpha` that is negative or of another length.

        Parameters
        ----------
        method : "l1" or Penalty
        alpha : float or array-like (k_fe,)
            Weight of the penalty, for all or each of the fixed effects.
        ceps
            A penalised coefficient below this in magnitude is zero ("l1").
        ptol
            Change of the coefficients, in standard errors, at which to stop ("l1").
        maxit
            Sweeps over the coefficients ("l1").

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

    @cached_property
    def _is_wide(self) -> bool:
        """Whether crossed factors are so many levels that the iterative way is the quicker one, or the only one."""
        return iterative.is_wide(self.spec)

    def _fit_iterative(self, reml, start_params, method, maxiter, probes, seed, full_output) -> MixedLMResults:
        _, theta = self._start(reml, start_params)
        with self.timings.step("stack"):
            rows = incidence(self.spec)
        fit = iterative.fit_iterative(rows, bool(reml), theta, maxiter, probes, int(seed))
        options.warn_of_end(fit, self.spec.terms, [True] * len(self.spec.terms))
        hist = [options.history(fit, method)] if full_output else None
        return MixedLMResults(self, fit, bool(reml), hist=hist)

    def _start(self, reml, start_params):
        """Coefficients (p,) and theta (m,), or None, to start from."""
        if not isinstance(reml, bool | np.bool_):
            raise ModelError(f"reml is {reml!r}: give True or False, and start values by keyword, start_params=")
        beta, theta = np.zeros(self.k_fe), None
        if start_params is not None:
            start, _, theta = self._reader().read(start_params, "start_params")
            beta = beta if start is None else start
            if not (np.all(np.isfinite(beta)) and np.all(np.isfinite(theta))):
                raise DataError("start_params holds values that are not finite numbers")
        return beta, theta

    def _task(self, reml, start_params, free) -> held.Task:
        """What is to be estimated, and from where."""
        beta, theta = self._start(reml, start_params)
        return held.task(self.design, self.packing, bool(reml), beta, theta, free)

    def _results(self, task, fit, **record) -> MixedLMResults:
        timings = Timings(fit.timings)
        with timings.step("results"):
            whole = replace(task.restore(fit), timings=timings)
            require_sigma(self.spec, whole)
            return MixedLMResults(self, whole, task.reml, free=task.pattern(), **record)

    def fit_many(
        self, Y: ArrayLike, reml: bool = True, memory: int | None = None, progress: bool = False
    ) -> ManyResults:
        """Fit the model to many responses in place of its own: compiled once, thousands in a second.

        Parameters
        ----------
        Y : array (m, nobs) or DataFrame (nobs, m)
            An array has a row for each response, in the order of ``model.endog``; a table has a column for each, and
            its index finds the rows. NaN is a missing value: the fit of that response leaves the row out.
        reml
            Restricted maximum likelihood, or maximum likelihood.
        memory
            Bytes that a batch of fits may take; 256 MiB by default.

        Raises
        ------
        DataError
            `Y` has another shape, other rows or other things than numbers; or it is being traced by JAX.

        Examples
        --------
        >>> import numpy as np, jmixed as jm
        >>> data = jm.datasets.load("sleepstudy")
        >>> model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", data)
        >>> many = model.fit_many(data[["Reaction"]].assign(seconds=data.Reaction / 1000))
        >>> many.fe_params["Days"].round(4).to_dict()
        {'Reaction': 10.4673, 'seconds': 0.0105}
        """
        self._need_rows("fit_many")
        return fit_many(self, Y, reml, memory, progress)

    def loglike(self, params: MixedLMParams | ArrayLike, profile_fe: bool = True, reml: bool | None = None) -> float:
        """Log-likelihood with the scale profiled out.

        Raises `DataError` for parameters of another length, or without the fixed effects that are wanted.

        Parameters
        ----------
        params : MixedLMParams or array-like (k,)
            Relative (co)variances. An array is packed as in `fit`'s ``start_params``.
        profile_fe
            Replace the fixed effects by their generalised-least-squares estimates; otherwise `params` must have them.
        reml
            Of the restricted likelihood, or of the likelihood. By default what ``result.params_object`` was estimated
            by; for other parameters True.
        """
        return self._at_parameters(reml, params).loglike(params, profile_fe)

    def score(self, params: MixedLMParams | ArrayLike, profile_fe: bool = True, reml: bool | None = None) -> np.ndarray:
        """Gradient (k,) of `loglike` in the packed parameters; fixed effects first if they are not profiled out.

        Arguments as in `loglike`: `params` (k,), `profile_fe` and `reml`.
        """
        return self._at_parameters(reml, params).score(params, profile_fe)

    def hessian(self, params: MixedLMParams | ArrayLike, reml: bool | None = None) -> tuple[np.ndarray, bool]:
        """Hessian of `loglike` in the fixed effects and the relative (co)variances themselves, exact.

        Raises `DataError` for parameters of another length.

        Parameters
        ----------
        params : MixedLMParams or array-like (k_params,)
            An array is laid out as ``result.params``.
        reml
            As in `loglike`.

        Returns
        -------
        array (k_params, k_params), bool
            The Hessian, and whether a covariance is singular.
        """
        return self._at_parameters(reml, params).hessian(params)

    def get_scale(self, fe_params: ArrayLike, cov_re: ArrayLike, vcomp: ArrayLike, reml: bool = True) -> float:
        """Residual variance at given fixed effects and relative (co)variances, with divisor n - p for REML.

        Parameters
        ----------
        fe_params : array-like (k_fe,)
        cov_re : array-like (k_re, k_re)
        vcomp : array-like (k_vc,)
            Relative to the residual variance, like `cov_re`.
        """
        return self._at_parameters(reml).scale(fe_params, cov_re, vcomp)

    def predict(self, params: MixedLMParams | ArrayLike, exog: ArrayLike | None = None) -> np.ndarray:
        """The fixed part of the prediction, array (r,); ``result.predict`` is the one for new data.

        Raises `DataError` for another number of fixed effects or columns.

        Parameters
        ----------
        params : MixedLMParams or array-like (k,)
            A vector whose first entries are the fixed effects.
        exog : array-like (r, k_fe), optional
            By default the model's own rows, with their offset.

        Examples
        --------
        >>> model.predict([250.0, 10.0])[:3]
        array([250., 260., 270.])
        """
        if exog is None:
            self._need_rows("predict without exog")
        return self._at_parameters().predict(params, exog)

    def get_distribution(
        self, params: MixedLMParams | ArrayLike, scale: float, exog: ArrayLike | None = None
    ) -> Distribution:
        """The distribution of the response at given parameters: an object with ``rvs(n, rng)``.

        Parameters
        ----------
        params : MixedLMParams or array-like (k_params,)
            Laid out as ``result.params``.
        scale
            Residual variance.
        exog : array-like (nobs, k_fe), optional
            By default the model's own columns.

        Raises
        ------
        DataError
            `exog` has another number of rows than the model.
        """
        self._need_rows("get_distribution")
        return self._at_parameters().distribution(params, scale, exog)

    def _at_parameters(self, reml: bool | None = True, params=None) -> AtParameters:
        estimated_by = getattr(params, "reml", None) if reml is None else reml
        reml = True if estimated_by is None else bool(estimated_by)
        return AtParameters(self.spec, self.design, self._reader(), reml)

    def _reader(self) -> Reader:
        return Reader(self.packing, self.k_fe, self.use_sqrt)

    def update(self, formula: str | Sequence[str] | None = None, **changes: Any) -> MixedLM:
        """State another model on the rows of this one.

        Raises `ModelError` when the model was made of arrays.

        Parameters
        ----------
        formula
            A formula, in which a lone dot stands for what this model has on that side (``". ~ . + x"``); or terms for
            the same response.
        **changes
            Other arguments of `mixedlm`, such as re_formula.

        Examples
        --------
        >>> model.update(". ~ . + I(Days**2)").exog_names
        ['Intercept', 'Days', 'I(Days ** 2)']
        """
        if self.spec.represents is not None:
            self._need_rows("update")
        if self._words is None or self.spec.recipe is None:
            raise ModelError("update needs formulas and data: this model is made of arrays, or remove_data() took them")
        known = _names_here(self.spec.recipe)
        env = dict(names_of_caller(changes.pop("eval_env", 0), sys._getframe(1))) | known
        words = self._words | changes
        if "relationship_inverse" in changes:
            words["relationship"] = changes.get("relationship")
        intercept = any(str(term) == "1" for term in self.spec.recipe.specs["rhs"].formula)
        text: Any = self.formula if formula is None else restated(formula, self.formula or "", intercept)
        updated = type(self).from_formula(text, self.data.frame, use_sqrt=self.use_sqrt, eval_env=env, **words)
        if self._response is None or updated.endog_names != self.endog_names:
            return updated
        return updated.with_response(self._response)

    def with_data(self, data: Any) -> MixedLM:
        """State the same model on other data.

        Raises `ModelError` when the model was made of arrays, and what `mixedlm` raises.

        Parameters
        ----------
        data : DataFrame or other columns
            With all the columns that the model uses, its response among them.
        """
        if self._words is None or self.spec.recipe is None:
            raise ModelError("with_data needs formulas: this model is made of arrays, or remove_data() took its data")
        known = _names_here(self.spec.recipe)
        words: dict[str, Any] = self._words | {"eval_env": known}
        return type(self).from_formula(self.formula or "", data, use_sqrt=self.use_sqrt, **words)

    def with_response(self, y: ArrayLike) -> MixedLM:
        """The same model of another response.

        Raises `DataError` for a response of another length, with values that are not finite, or constant.

        Parameters
        ----------
        y : array-like (nobs,)
            Transformed, if the formula transforms it; rows in the model's order, or a Series with its row labels.
        """
        self._need_rows("with_response")
        y = _response(y, self.spec)
        frame = self.spec.frame
        if frame is not None and self.endog_names in frame:
            frame = frame.assign(**{self.endog_names: y})
        # Levels keep their places; of so many that there may be no room for them, nobody has asked for these.
        placed = {} if self._is_wide and "design" not in vars(self) else {"design": self.design.replace(y=y)}
        spec, data = replace(self.spec, y=y, frame=frame), replace(self.data, frame=frame)
        return copy.copy(self)._set(spec=spec, endog=y, data=data, _response=y, **placed)

    def without_data(self, spec: ModelData) -> MixedLM:
        """A copy that holds `spec`, a `ModelData` without rows, in place of its own: what `remove_data` leaves."""
        model = copy.copy(self)
        for name in ("design", "_top_level", "row_indices", "exog_re", "exog_vc"):
            vars(model).pop(name, None)
        if spec.represents is None:
            model._set(endog=spec.y, exog=spec.X, weights=spec.weights, offset=spec.offset)
        return model._set(spec=spec, data=replace(self.data, frame=None, row_labels=spec.index), _words=None)


@checked
def mixedglm(
    formula: str,
    data: Any,
    family: str | Family | type[Family] = "binomial",
    *,
    weights: Factor = None,
    trials: Factor = None,
    offset: Factor = None,
    dispersion: str | None = None,
    zero_inflation: str | None = None,
    quadrature: int = 1,
    missing: Missing = "none",
    subset: ArrayLike | None = None,
    groups: Factor = None,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    relationship: Mapping[str, Any] | None = None,
    relationship_inverse: Mapping[str, Any] | None = None,
    eval_env: int | Mapping = 0,
) -> MixedGLM:
    """State a generalized linear mixed model: a response that is no number with normal residuals.

    As in `mixedlm` are `missing`, `subset` (n,), `groups` (n,), `re_formula`, `vc_formula`, `relationship` and
    `relationship_inverse`, and `eval_env` is as in `MixedLM.from_formula`. Raises `FormulaError`, `DataError` or
    `ModelError` for a formula that cannot be read, responses that the family does not have, a family without what is
    asked of it.

    Parameters
    ----------
    formula
        ``"y ~ x + (1 | g)"``. Successes are zeros and ones, truth values, a category of two (the second is success),
        ``cbind(successes, failures)``, or a number or proportion with `trials`. Categories of an ordinal response are
        in the order of their type, or sorted.
    data : DataFrame
        Or anything that narwhals reads, or a dict of columns.
    family
        A name: "binomial", "poisson", "negativebinomial", "negativebinomial1", "gamma", "beta", "betabinomial",
        "studentt", "ordinal", "gaussian"; or an object of `jmixed.families`, such as ``Binomial(link="cloglog")``.
    weights : str or array (n,), optional
        Factors of the log-likelihood of counts and successes, of 1 / dispersion for other families. Of a proportion of
        successes, where `trials` is not given, the numbers of trials, as in lme4.
    trials : str or array (n,), optional
        Numbers of trials of successes.
    offset : str or array (n,), optional
        A known part of the linear predictor, on its scale.
    dispersion
        What the logarithm of the dispersion depends on, where the family has one: ``"~ x"``, as glmmTMB's dispformula.
    zero_inflation
        What the logit of an extra probability of zero depends on, for counts: ``"~ x"``, as glmmTMB's ziformula.
    quadrature
        1: Laplace's approximation. More: so many nodes of adaptive Gauss-Hermite quadrature for each random effect of a
        group, with one grouping factor of up to three columns.

    Examples
    --------
    >>> import numpy as np, jmixed as jm
    >>> rng = np.random.default_rng(0)
    >>> g, x = np.repeat(np.arange(50), 8), rng.normal(size=400)
    >>> y = rng.random(400) < 1 / (1 + np.exp(-x - rng.normal(size=50)[g]))
    >>> result = jm.mixedglm("y ~ x + (1 | g)", {"y": y, "x": x, "g": g}).fit()
    >>> result.converged, bool(abs(result.fe_params["x"] - 1) < 0.4)
    (True, True)
    """
    shared = {"weights": weights, "offset": offset, "groups": groups, "trials": trials}
    words = {"re_formula": re_formula, "vc_formula": vc_formula, "missing": missing, "dispersion": dispersion}
    words |= {"zero_inflation": zero_inflation, "quadrature": quadrature, "family": family}
    words["relationship"] = known_matrices(relationship, relationship_inverse)
    return MixedGLM._from_words(formula, data, subset, names_of_caller(eval_env, sys._getframe(1)), words, shared)


def _names_here(recipe: Any) -> dict[str, Any]:
    """What the formulas take from the caller's names, but those that a saved model only names."""
    return {name: value for name, value in recipe.env.items() if not isinstance(value, Elsewhere)}


@checked
class MixedGLM:
    """A generalized linear mixed model; `mixedglm` states one. It never changes, whatever is fitted to it.

    Attributes
    ----------
    spec : ModelData
        The model in arrays.
    family : Family
    quadrature : int
        Nodes for each random effect; one is Laplace's approximation.
    formula : str
    endog, exog, weights, offset, trials : arrays (nobs,), (nobs, k_fe), (nobs,), (nobs,), (nobs,)
        The response is a number of successes, or of a category from zero on, where the family has such.
    endog_names, exog_names, theta_names : str, list of str (k_fe,), list of str (m,)
    nobs, k_fe : int

    Examples
    --------
    >>> import numpy as np, jmixed as jm
    >>> data = {"y": np.arange(40) % 3, "g": np.arange(40) // 4}
    >>> jm.mixedglm("y ~ 1 + (1 | g)", data, "poisson")
    <MixedGLM: y ~ 1 + (1 | g); Poisson(log); 40 rows; g: 10 levels>
    """

    spec: ModelData
    family: Family
    quadrature: int
    timings: Timings
    formula: str | None
    endog: np.ndarray
    exog: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    trials: np.ndarray
    endog_names: str
    exog_names: list[str]
    theta_names: list[str]
    nobs: int
    k_fe: int
    labelled = True
    _words: dict[str, Any] | None

    def __init__(self, *_: Any, **__: Any):
        """Not for people, who call `mixedglm`: raises `ModelError`."""
        raise ModelError(
            'MixedGLM is made by mixedglm(formula, data, family), as in mixedglm("y ~ x + (1 | g)", data, "binomial"); '
            "arrays become a table first, by pandas.DataFrame"
        )

    @classmethod
    def _from_words(cls, formula, data, subset, env, words, of_rows) -> MixedGLM:
        family, timings = family_of(words["family"]), Timings()
        words["family"] = family
        if words["zero_inflation"] is not None:
            family = ZeroInflated(family)
        if words["dispersion"] is not None and DISPERSION not in family.extras:
            raise ModelError(
                f"dispersion= is given, and the family {family.name} has none: leave it out, or use a family with one, "
                "such as 'negativebinomial' or 'betabinomial'"
            )
        stated = {name: words[name] for name in ("re_formula", "vc_formula", "missing", "relationship")}
        stated |= {name: words[name] for name in ("dispersion", "zero_inflation")}
        stated |= {"response_kind": family.response, "family_name": family.name.lower()}
        spec = statement.from_formula(formula, data, subset=subset, env=env, timings=timings, **stated, **of_rows)
        for name, value in of_rows.items():
            words[name] = value if value is None or isinstance(value, str) else np.asarray(value)[spec.rows]
        for message in left_out(spec):
            warn(message, RankWarning)
        if family.response == "categories":
            family = replace(family, categories=len(cast(ResponseTerm, spec.response).categories))
        checked_responses(family, spec.y, cast(ResponseTerm, spec.response).trials, spec.index)
        checked_quadrature(words["quadrature"], spec.terms)
        return cls.__new__(cls)._stated(spec, family, int(words["quadrature"]), timings, words)

    def _stated(self, spec, family, quadrature, timings, words) -> Self:
        vars(self).update(
            spec=spec,
            family=family,
            quadrature=quadrature,
            timings=timings,
            formula=spec.formula,
            endog=spec.y,
            exog=spec.X,
            weights=spec.weights,
            offset=spec.offset,
            trials=cast(ResponseTerm, spec.response).trials,
            endog_names=spec.endog_name,
            exog_names=list(spec.exog_names),
            nobs=spec.nobs,
            k_fe=spec.X.shape[1],
            theta_names=theta_names(spec.terms),
            _words=words,
        )
        return self

    def _state(self) -> dict[str, Any]:
        """What a file holds of it: the arguments of `_stated`."""
        names = ("spec", "family", "quadrature", "timings")
        return {name: getattr(self, name) for name in names} | {"words": self._words}

    @classmethod
    def _of_state(cls, parts: dict[str, Any]) -> Self:
        return cls.__new__(cls)._stated(**parts)

    @property
    def _beside(self) -> ResponseTerm:
        """What the response is beside its numbers: trials, categories, columns of further predictors."""
        return cast(ResponseTerm, self.spec.response)

    def __setattr__(self, name: str, value) -> None:
        raise ModelError(f"model.{name} cannot be set: a model does not change. Instead, state another model")

    def __repr__(self) -> str:
        levels = {term.group: len(term.levels) for term in self.spec.terms}
        factors = ", ".join(f"{name}: {count} level{'s' * (count != 1)}" for name, count in levels.items())
        return f"<MixedGLM: {self.formula}; {self.family.name}({self.family.link}); {self.nobs} rows; {factors}>"

    @property
    def further(self) -> dict[str, tuple[str, ...]]:
        """The further predictors of the family by name, and what their columns are called."""
        named = {DISPERSION: self._beside.dispersion, INFLATION: self._beside.zero}
        return {
            name: ("Intercept",) if (columns := named.get(name)) is None else tuple(columns.names)
            for name in self.family.extras
        }

    @cached_property
    def design(self) -> Design:
        """The model as a pytree of row arrays, for `jm.estimate` and JAX's transformations.

        Raises `DataError` after `remove_data`.
        """
        if not len(self.spec.y):
            raise DataError("the rows of this model's data were removed by remove_data(); use a model that has them")
        response = self._beside
        named = {DISPERSION: response.dispersion, INFLATION: response.zero}
        columns = {name: part.columns for name, part in named.items() if part is not None}
        with self.timings.step("stack"):
            return with_family(stack(self.spec), self.family, response.trials, columns, self.quadrature)

    def fit(self, maxiter: int | None = None, theta0: ArrayLike | None = None) -> MixedGLMResults:
        """Estimate the model by maximum likelihood.

        Parameters
        ----------
        maxiter
            Most iterations.
        theta0 : array (m,), optional
            Where to start, in the order of ``theta_names``.
        """
        fit = host.fit(self.design, False, theta0, maxiter=maxiter)
        options.warn_of_end(fit, self.spec.terms, [True] * len(self.spec.terms), self.exog_names)
        return MixedGLMResults(self, fit)

    def fit_many(self, Y: ArrayLike, memory: int | None = None, progress: bool = False) -> ManyResults:
        """Fit the model to many responses in place of its own: compiled once, thousands in one call.

        Parameters
        ----------
        Y : array (m, nobs) or DataFrame (nobs, m)
            As in `MixedLM.fit_many`, in the numbers of ``endog``: of successes, their numbers.
        memory
            Bytes that a batch of fits may take; 256 MiB by default.

        Raises
        ------
        DataError
            `Y` has another shape or other rows, or responses that the family does not have.
        """
        return fit_many(self, Y, False, memory, progress)

    def with_data(self, data: Any) -> MixedGLM:
        """State the same model on other data.

        Raises `ModelError` when its data were removed, and what `mixedglm` raises.

        Parameters
        ----------
        data : DataFrame or other columns
            With all the columns that the model uses, its response among them.
        """
        if self._words is None or self.spec.recipe is None:
            raise ModelError("with_data needs the words of the model: remove_data() took them")
        known = _names_here(self.spec.recipe)
        words = dict(self._words)
        of_rows = {name: words.pop(name) for name in ("weights", "offset", "groups", "trials")}
        return type(self)._from_words(self.formula, data, None, known, words, of_rows)

    def with_response(self, y: ArrayLike) -> MixedGLM:
        """The same model of another response.

        Raises `DataError` for a response of another length, or one that the family does not have.

        Parameters
        ----------
        y : array-like (nobs,)
            In the numbers of ``endog``: of successes, their numbers; of categories, their codes.
        """
        values = as_array(y, "the response")
        if values.shape != self.endog.shape:
            raise DataError(f"the response has shape {values.shape}, but the model has {self.nobs} rows")
        checked_responses(self.family, values, self.trials, self.spec.index)
        model = copy.copy(self)
        vars(model).update(spec=replace(self.spec, y=values), endog=values, design=self.design.replace(y=values))
        return model

    def update(self, formula: str | Sequence[str] | None = None, **changes: Any) -> MixedGLM:
        """State another model on the rows of this one.

        Raises `ModelError` where the rows were removed.

        Parameters
        ----------
        formula
            A formula, in which a lone dot stands for what this model has on that side (``". ~ . + x"``); or terms for
            the same response.
        **changes
            Other arguments of `mixedglm`, such as family or dispersion.
        """
        if self._words is None or self.spec.recipe is None:
            raise ModelError("update needs the data: remove_data() took them; use a model that has them")
        known = _names_here(self.spec.recipe)
        env = dict(names_of_caller(changes.pop("eval_env", 0), sys._getframe(1))) | known
        words = self._words | changes
        if "relationship_inverse" in changes:
            words["relationship"] = known_matrices(changes.get("relationship"), words.pop("relationship_inverse"))
        of_rows = {name: words.pop(name) for name in ("weights", "offset", "groups", "trials")}
        intercept = any(str(term) == "1" for term in self.spec.recipe.specs["rhs"].formula)
        text: Any = self.formula if formula is None else restated(formula, self.formula or "", intercept)
        return type(self)._from_words(text, self.spec.frame, None, env, words, of_rows)

    def without_data(self, spec: ModelData) -> MixedGLM:
        """A copy that holds `spec`, a `ModelData` without rows, in place of its own: what `remove_data` leaves."""
        model = copy.copy(self)
        vars(model).pop("design", None)
        return model._stated(spec, self.family, self.quadrature, self.timings, None)


KINDS.add("generalized model", MixedGLM, MixedGLM._state, MixedGLM._of_state)
KINDS.add("model", MixedLM, MixedLM._state, MixedLM._of_state)


def _response(y, spec) -> np.ndarray:
    """A response for the rows of a model, checked."""
    shuffled = isinstance(y, pd.Series) and reordered(y.index, spec.index)
    values = as_array(y.loc[spec.index] if shuffled else y, "the response")
    if values.shape != spec.y.shape:
        raise DataError(
            f"the response has shape {values.shape}, but the model has {len(spec.y)} rows: give one number for each, "
            "in the order of model.endog"
        )
    if not np.all(np.isfinite(values)):
        bad = np.flatnonzero(~np.isfinite(values))
        raise DataError(f"the response has {len(bad)} values that are not finite, the first in row {bad[0]}")
    checks.require_variation(values, spec.offset, spec.endog_name)
    return values


@checked
def from_batches(
    formula: str,
    batches: Any,
    groups: str | None = None,
    re_formula: str | None = None,
    vc_formula: Mapping[str, str] | None = None,
    weights: str | None = None,
    offset: str | None = None,
    missing: Missing = "none",
    eval_env: int | Mapping = 0,
) -> MixedLM:
    """State a model of data that come in batches and need not fit into memory together.

    The likelihood knows the data by cross-products: Z'WZ and Z'W[X y] of every group, and [X y]'W[X y] (Bates et al.
    2015, section 3). They are added up in two passes over the batches. The first learns the groups, the categories and
    how large the columns are, the second multiplies columns that were made about orthonormal, so that the fit is that
    of the data in memory to the last digits. Memory grows with the number of groups (of combinations of levels that
    occur, for several grouping factors), not with that of rows. The rows of a group may be spread over batches.

    Parameters
    ----------
    formula : str
        As in `mixedlm`. Transforms that look at a whole column, such as splines or ``center``, are refused.
    batches : iterable of tables, callable, path, list of paths, pyarrow dataset or Dask DataFrame
        A callable returns a fresh iterator of tables each time. Tables of an iterator, which can be gone through only
        once, are kept in a temporary file until the model is made: the columns that it uses. A path is that of a
        Parquet file, or of a folder of them. The partitions of a Dask DataFrame are worked on where they are, and put
        together as a tree. Columns that the model does not use may differ between batches.
    groups, re_formula, vc_formula : optional
        As in `mixedlm`; the grouping factor is a column. Components that look at all rows of a group at once, as
        ``"0 + center(x)"`` does, are refused.
    weights, offset : str, optional
        Names of columns.
    missing : str
        "none" and "raise" refuse missing values, "drop" leaves their rows out.
    eval_env : int or mapping
        Names that the formula may use, as in `MixedLM.from_formula`.

    Raises
    ------
    FormulaError, DataError, MissingDataError, ModelError
        As `mixedlm` does, with the number of the batch; for batches whose columns, types or categories differ, and for
        other rows in the second pass than in the first; for a file that cannot be read.

    Examples
    --------
    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> batches = [sleep[:50], sleep[50:120], sleep[120:]]
    >>> model = jm.from_batches("Reaction ~ Days + (Days | Subject)", batches)
    >>> model
    <MixedLM: Reaction ~ Days + (Days | Subject); 180 rows in batches; Subject: 18 levels>
    >>> result = model.fit()
    >>> result.fe_params.round(3).to_dict(), round(result.sigma, 3)
    ({'Intercept': 251.405, 'Days': 10.467}, 25.592)
    >>> result.predict(batches[2], random_effects=True).head(2).round(1).tolist()
    [256.0, 263.4]
    """
    timings = Timings()
    env = names_of_caller(eval_env, sys._getframe(1))
    beside = {"groups": groups, "weights": weights, "offset": offset}
    with passes.over(batches) as source:
        with timings.step("parse"):
            statement = survey.stated(formula, source.tables(None), beside, re_formula, vc_formula, env, missing)
        with timings.step("materialise"):
            plan = sums.plan(statement, source.survey(statement))
            spec = represent(plan, source.sums(plan))
    return MixedLM.__new__(MixedLM)._set_up(spec, timings, use_sqrt=True, labelled=True)


@dataclass(frozen=True)
class _Rows:
    """What `stack` reads of a model."""

    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    terms: tuple[RandomTerm, ...]
    represents: None = None
    log_weights: float = 0.0
    residual: None = None


@checked
def design(
    y: ArrayLike,
    X: ArrayLike,
    groups: ArrayLike | Mapping[Any, ArrayLike],
    Z: ArrayLike | Mapping[Any, ArrayLike] | None = None,
    weights: ArrayLike | None = None,
    offset: ArrayLike | None = None,
) -> Design:
    """State a mixed model by arrays, for `jm.estimate` and JAX's transformations.

    All columns of X are kept, collinear ones too. The arrays are copied, in 32 bits if all that are floats are. Raises
    `DataError` when lengths or names do not match, or values are missing, infinite or traced.

    Parameters
    ----------
    y : array (n,)
        Response.
    X : array (n, p)
        Fixed-effects columns, one of ones among them where an intercept is wanted; (n, 0) for none.
    groups : array (n,), or dict of arrays
        Label of each row's group, numbers or text; or several by the term's name.
    Z : array (n, q), or dict of arrays, optional
        Columns of the random effects, with an unstructured covariance; by default ones, a random intercept for every
        array of labels. A dict has the columns by the term's name: with one array of `groups`, terms of that factor
        that are independent of each other; with a dict of them, the columns of those names.
    weights : array (n,), optional
        Prior weights, zero or more.
    offset : array (n,), optional
        Known part of the linear predictor.

    Returns
    -------
    Design
        Terms are called by the names given, or "groups".

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> r = np.random.default_rng(0)
    >>> groups, x = np.repeat(np.arange(30), 5), r.normal(size=150)
    >>> y = 1 + 2 * x + r.normal(size=30)[groups] + r.normal(size=150)
    >>> design = jm.design(y, np.column_stack([np.ones(150), x]), groups)
    >>> with jax.enable_x64(True):
    ...     fit = jm.estimate(design)
    >>> np.asarray(fit.beta).round(1).tolist(), fit.b["groups"].shape
    ([0.7, 2.2], (30, 1))
    """
    columns, labels = _terms_of(groups, Z)
    inputs = {"y": y, "X": X, "weights": weights, "offset": offset} | {f"Z[{k!r}]": z for k, z in columns.items()}
    arrays = {name: _numbers(name, value) for name, value in inputs.items() if value is not None}
    floats = [array.dtype for array in arrays.values() if array.dtype.kind == "f"]
    dtype = np.result_type(*floats) if floats else np.dtype(FLOAT)
    n = arrays["y"].shape[0] if arrays["y"].ndim == 1 else None
    if n is None:
        raise DataError(f"y has shape {arrays['y'].shape}; it must be one-dimensional, one number a row")

    def rows(name, default, wide=False):
        array = arrays.get(name)
        array = np.full((n, 1) if wide else n, default) if array is None else array
        array = array[:, None] if wide and array.ndim == 1 else array
        if array.shape[:1] != (n,) or array.ndim != 1 + wide:
            raise DataError(f"{name} has shape {array.shape}, but y has {n} rows: give one entry for each")
        bad = np.flatnonzero(~np.isfinite(array).reshape(n, -1).all(1))
        if len(bad):
            raise DataError(
                f"{name} is missing or infinite in {len(bad)} of {n} rows, the first of them row {bad[0]}: give "
                "numbers, and leave a row out by a weight of zero"
            )
        # Memory that goes on up to the size that programs take: these arrays are not copied again.
        out = roomy(n, *array.shape[1:]) if dtype == FLOAT else np.empty(array.shape, dtype)
        out[:] = array
        return out

    weight = rows("weights", 1)
    if np.any(weight < 0):
        row = np.flatnonzero(weight < 0)[0]
        raise DataError(f"weights holds {weight[row]} in row {row}; weights are zero or more")
    terms, seen = [], {}
    for name, of_rows in labels.items():
        if id(of_rows) not in seen:
            seen[id(of_rows)] = _coded(name, of_rows, n)
        levels, codes = seen[id(of_rows)]
        z = rows(f"Z[{name!r}]", 1, wide=True)
        names = tuple(f"z{j + 1}" for j in range(z.shape[1]))
        terms.append(RandomTerm(str(name), str(name), codes, levels, names, z, intercept=checks.constant_column(z)))
    return stack(_Rows(rows("y", 0), rows("X", 1, wide=True), weight, rows("offset", 0), tuple(terms)))


def _terms_of(groups, Z) -> tuple[dict[str, Any], dict[str, Any]]:
    """Columns and labels of each term by its name; None for a column of ones."""
    if isinstance(groups, Mapping):
        if not groups:
            raise DataError("groups is empty; give one array of labels at least")
        if Z is None:
            return dict.fromkeys(groups), dict(groups)
        if not isinstance(Z, Mapping):
            if len(groups) > 1:
                raise DataError(
                    f"Z is one array, and groups has the terms {list(groups)}: give a dict of arrays by term"
                )
            return {name: Z for name in groups}, dict(groups)
        if unknown := [name for name in Z if name not in groups]:
            raise DataError(f"Z has columns for {unknown}, but groups has the terms {list(groups)}")
        return {name: Z.get(name) for name in groups}, dict(groups)
    if isinstance(Z, Mapping):
        if not Z:
            raise DataError("Z is empty; leave it out for a random intercept")
        return dict(Z), {name: groups for name in Z}
    return {"groups": Z}, {"groups": groups}


def _numbers(name, value) -> np.ndarray:
    if isinstance(value, Tracer):
        raise DataError(
            f"{name} is a value that JAX is tracing: make the design of numbers, and exchange its arrays inside the "
            "traced function by design.replace",
            page="jax.md",
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{name} is no array: {error}") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{name} has dtype {array.dtype}; it must hold numbers")
    if array.size == 0 and array.ndim == 1:
        raise DataError(f"{name} is empty; give one number for each row")
    if array.ndim not in (1, 2):
        raise DataError(f"{name} has shape {array.shape}; give one row per observation")
    return array


def _coded(name, labels, n) -> tuple[pd.Index, np.ndarray]:
    """Levels, sorted, and the level of each row."""
    if isinstance(labels, Tracer):
        _numbers(f"groups[{name!r}]", labels)
    try:
        array = np.asarray(jax.device_get(labels) if isinstance(labels, jax.Array) else labels)
    except ValueError as error:
        raise DataError(f"groups is no array: {error}") from None
    if array.shape != (n,):
        raise DataError(f"groups has shape {array.shape}, but y has {n} rows: give one label for each")
    missing = np.flatnonzero(pd.isna(array))
    if len(missing):
        raise DataError(f"groups is missing in {len(missing)} of {n} rows, the first of them row {missing[0]}")
    try:
        levels, codes = np.unique(array, return_inverse=True)
    except TypeError:
        kinds = sorted({type(label).__name__ for label in array.tolist()})
        raise DataError(f"groups mixes {' and '.join(kinds)}; give labels of one type") from None
    return pd.Index(levels), codes.astype(np.int32)
