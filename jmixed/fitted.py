"""Random effects, fitted values and predictions of a fit: `MixedLMResults` is built on it."""

from collections.abc import Collection
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal, overload

import numpy as np
import pandas as pd

from jmixed.errors import DataError
from jmixed.estimates import Estimates
from jmixed.inference.joint_covariance import JointCovariance, joint_covariance
from jmixed.reports import effects, predict
from jmixed.reports.components import level_of


class FittedModel(Estimates):
    """What a fit says of the rows and the groups; `MixedLMResults` is built on it."""

    @cached_property
    def _groups(self) -> effects.Groups:
        self._need_data("random effects by group", rows=False)
        return effects.groups(self._spec, self._names.random)

    @cached_property
    def _sizes(self) -> dict[str, effects.GroupSizes]:
        return effects.group_sizes(self._spec)

    @cached_property
    def random_effects(self) -> dict[Any, pd.Series]:
        """Conditional modes by top-level group: dict of group -> Series, groups sorted.

        The index of a Series names the columns of ``cov_re``, then ``component[column]``. A model with several
        grouping factors has no top level: see `ranef`.

        Examples
        --------
        >>> result.random_effects["308"].round(2).to_dict()
        {'Subject': 2.26, 'Days': 9.2}
        """
        return self._groups.modes(self._fit.b)

    @cached_property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Conditional covariances of `random_effects` given the parameters: dict of group -> DataFrame.

        Examples
        --------
        >>> result.random_effects_cov["308"].round(2)
                 Subject   Days
        Subject   145.71 -21.44
        Days      -21.44   5.31
        """
        self._need_data("random_effects_cov", rows=False)
        return self._groups.covariances(self._spec.weights, self._fit)

    @overload
    def ranef(self, cond_var: Literal[False] = False) -> dict[str, pd.DataFrame]: ...

    @overload
    def ranef(self, cond_var: Literal[True]) -> tuple[dict[str, pd.DataFrame], dict[str, np.ndarray]]: ...

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
    def fittedvalues(self) -> pd.Series:
        """``X beta + offset + Z b``, in the unit of the response: Series, or array (nobs,).

        Examples
        --------
        >>> result.fittedvalues.head(2).round(2).tolist()
        [253.66, 273.33]
        """
        return self._rows(self._fitted)

    @property
    def resid(self) -> pd.Series:
        """Response less ``fittedvalues``: Series, or array (nobs,).

        Examples
        --------
        >>> result.resid.head(2).round(2).tolist()
        [-4.1, -14.63]
        """
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

    def _rows(self, values) -> pd.Series:
        found: Any = pd.Series(values, index=self._spec.index) if self._labelled else values.copy()
        return found

    @overload
    def predict(
        self,
        data: None = None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: str = "raise",
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
        new_levels: str = "raise",
        interval: None = None,
        level: float = 0.95,
        exog: Any = None,
    ) -> pd.Series: ...

    @overload
    def predict(
        self,
        data: Any = None,
        transform: bool = True,
        *,
        random_effects: bool | str | Collection[str] = False,
        new_levels: str = "raise",
        interval: str,
        level: float = 0.95,
        exog: Any = None,
    ) -> pd.DataFrame: ...

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
    ) -> Any:
        """Predict the response: the fixed part and the offset, and on demand the conditional modes.

        Intervals come from the joint covariance of the fixed and the random effects at the estimated variances
        (Henderson 1975), with normal quantiles. A prediction interval is that of a new observation of weight one (for
        the model's own rows: of the row's weight); random effects that the prediction leaves out, of new levels or not
        asked for, add their variance to it.

        Parameters
        ----------
        data : DataFrame or other columns, or array (k, k_fe), optional
            New rows; by default the rows of the model. A mapping of scalars, and a Series with a value for each column,
            are one row. For a model made from arrays: columns of X.
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
