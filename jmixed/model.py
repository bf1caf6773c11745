"""Mixed models as a person states them: `mixedlm` and `MixedLM`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import pandas as pd

from jmixed.compat.groups import GroupedRows, ModelFrame, theta_names
from jmixed.compat.packing import Packing
from jmixed.compat.params import as_array, refuse_tracer
from jmixed.errors import DataError, ModelError, RankWarning, warn
from jmixed.fitting import Fitting
from jmixed.formulas import checks, statement
from jmixed.formulas.frame import reordered
from jmixed.formulas.restate import names_of_caller, refuse_strange, restated
from jmixed.layout.design import Design
from jmixed.layout.stack import stack
from jmixed.reports.names import left_out
from jmixed.runtime.arguments import checked
from jmixed.runtime.timing import Timings


@checked
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
    check="raise",
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
    subset : array of bool, or labels of the index, optional
        The rows to use.
    use_sparse : bool
        Accepted for statsmodels' sake; elimination is sparse anyway.
    missing : str
        "none" and "raise" refuse missing values, "drop" leaves their rows out.
    groups : str or array, optional
        The grouping factor: a column, or a label for each row.
    weights : str or array, optional
        Prior weights w > 0: the residual variance is sigma^2 / w.
    offset : str or array, optional
        A known part of the linear predictor, in the unit of the response.
    check : str
        "raise" refuses random effects that cannot be told from the residual: those with as many coefficients as rows
        and no pattern of their own, and terms that together reproduce any response. "ignore" fits them all the same,
        and the outcome says what came of it.
    **kwargs
        use_sqrt, drop_cols and eval_env, as in `MixedLM.from_formula`.

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
    words |= {"use_sparse": use_sparse, "weights": weights, "offset": offset, "check": check}
    refuse_strange(kwargs)
    kwargs.setdefault("eval_env", 0)
    if isinstance(kwargs["eval_env"], int) and kwargs["eval_env"] >= 0:
        kwargs["eval_env"] += 1
    return MixedLM.from_formula(formula, data, **words, **kwargs)


@checked
class MixedLM(Fitting, GroupedRows):
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
    check : str
        As in `mixedlm`.
    weights, offset : array-like (n,), optional
        Prior weights w (the residual variance is sigma^2 / w), and a known part of the linear predictor.
    **kwargs
        missing_idx, model_spec and formula, which statsmodels passes on, are accepted and not used.

    Raises
    ------
    DataError, ModelError
        For arrays that do not fit together, and for a model that the data cannot identify.

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
    array([1. , 2.1])
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
        check="raise",
        **kwargs,
    ):
        for name in set(kwargs) - {"missing_idx", "model_spec", "formula"}:
            raise ModelError(f"argument {name} not permitted for MixedLM initialization")
        if isinstance(exog_vc, dict):
            warn(
                "Using deprecated variance components format: give exog_vc as jm.VCSpec(names, colnames, mats)",
                FutureWarning,
            )
        for name, part in {
            "endog": endog,
            "exog": exog,
            "exog_re": exog_re,
            "weights": weights,
            "offset": offset,
        }.items():
            refuse_tracer(part, name)
        timings = Timings()
        with timings.step("materialise"):
            spec = statement.from_arrays(endog, exog, groups, exog_re, exog_vc, missing, weights, offset, check)
        self._set_up(spec, timings, use_sqrt, any(isinstance(part, pd.DataFrame | pd.Series) for part in (endog, exog)))

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
        eval_env: int | Mapping = 0,
        check="raise",
    ) -> MixedLM:
        """State a model by formulas: see `mixedlm`.

        Parameters
        ----------
        formula, data, re_formula, vc_formula, subset, use_sparse, missing, groups, weights, offset, check
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

        Examples
        --------
        >>> import jmixed as jm
        >>> jm.MixedLM.from_formula("Reaction ~ Days", jm.datasets.load("sleepstudy"), groups="Subject").n_groups
        18
        """
        env = names_of_caller(eval_env, sys._getframe(1))
        timings = Timings()
        spec = statement.from_formula(
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
            check=check,
            timings=timings,
        )
        model = cls.__new__(cls)
        model._set_up(spec, timings, use_sqrt, labelled=True)
        model._words = {"re_formula": re_formula, "vc_formula": vc_formula, "missing": missing, "drop_cols": drop_cols}
        model._words["check"] = check
        beside = {"groups": groups, "weights": weights, "offset": offset}
        model._words |= {
            name: value if value is None or isinstance(value, str) else np.asarray(value)[spec.rows]
            for name, value in beside.items()
        }
        return model

    def _set_up(self, spec, timings, use_sqrt, labelled):
        self._timings = timings
        self.spec, self.use_sqrt, self.labelled, self.reml = spec, bool(use_sqrt), labelled, True
        self._words = self._response = None
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
        for message in left_out(spec):
            warn(message, RankWarning)

    def __repr__(self) -> str:
        levels = {term.group: len(term.levels) for term in self.spec.terms}
        factors = ", ".join(f"{name}: {count} level{'s' * (count != 1)}" for name, count in levels.items())
        what = self.formula or f"{self.endog_names} ~ {' + '.join(self.exog_names) or '0'}"
        if self.spec.group_name is not None:
            given = {k: v for k, v in (self._words or {}).items() if k.endswith("formula") and v is not None}
            what += "".join(f", {name}={text!r}" for name, text in given.items())
        return f"<MixedLM: {what}; {self.nobs} rows; {factors}>"

    @cached_property
    def design(self) -> Design:
        """The model as a pytree of row arrays, for `jm.estimate` and JAX's transformations.

        Examples
        --------
        >>> model.design.X.shape
        (180, 2)
        """
        self._need_rows()
        with self._timings.step("stack"):
            return stack(self.spec)

    def _get_init_kwds(self) -> dict:
        words = {"groups": self.groups, "exog_re": self.exog_re, "exog_vc": self.exog_vc if self.k_vc else None}
        return words | {"use_sqrt": self.use_sqrt, "weights": self.weights, "offset": self.offset}

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
        if self._words is None or self.spec.recipe is None:
            raise ModelError("update needs formulas and data: this model is made of arrays, or remove_data() took them")
        env = dict(names_of_caller(changes.pop("eval_env", 0), sys._getframe(1))) | self.spec.recipe.env
        words = self._words | changes
        intercept = any(str(term) == "1" for term in self.spec.recipe.specs["rhs"].formula)
        text = self.formula if formula is None else restated(formula, self.formula, intercept)
        made = type(self).from_formula(text, self.data.frame, use_sqrt=self.use_sqrt, eval_env=env, **words)
        kept = self._response is not None and made.endog_names == self.endog_names
        return made.with_response(self._response) if kept else made

    def with_response(self, y) -> MixedLM:
        """The same model of another response.

        Parameters
        ----------
        y : array-like (nobs,)
            Transformed, if the formula transforms it; rows in the model's order, or a Series with its row labels.

        Returns
        -------
        MixedLM

        Raises
        ------
        DataError
            For a response of another length, with values that are not finite, or constant.

        Examples
        --------
        >>> import jmixed as jm
        >>> model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> model.with_response(model.endog / 1000).fit().fe_params.round(4).to_dict()
        {'Intercept': 0.2514, 'Days': 0.0105}
        """
        y = _response(y, self.spec)
        frame = self.spec.frame
        if frame is not None and self.endog_names in frame:
            frame = frame.assign(**{self.endog_names: y})
        model = copy.copy(self)
        model.spec, model.endog = replace(self.spec, y=y, frame=frame), y
        model.data, model._response = replace(self.data, frame=frame), y
        model.__dict__["design"] = self.design.replace(y=y)
        return model

    def without_data(self, spec) -> MixedLM:
        """A copy that holds `spec`, a `ModelData` without rows, in place of its own: what `remove_data` leaves.

        Parameters
        ----------
        spec : ModelData

        Returns
        -------
        MixedLM

        Examples
        --------
        >>> small = model.fit()
        >>> small.remove_data()
        >>> small.model.endog.shape
        (0,)
        """
        model = copy.copy(self)
        for name in ("design", "_top_level", "row_indices", "exog_re", "exog_vc"):
            model.__dict__.pop(name, None)
        model.spec, model.endog, model.exog = spec, spec.y, spec.X
        model.weights, model.offset = spec.weights, spec.offset
        model.data, model._words = replace(self.data, frame=None, row_labels=spec.index), None
        return model


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
