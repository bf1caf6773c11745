"""Models of data that are never in memory as a whole: `from_batches`."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from functools import cached_property
from typing import Any

import pandas as pd

from jmixed.compat.groups import ModelFrame, theta_names
from jmixed.compat.packing import Packing
from jmixed.compat.params import MixedLMParams
from jmixed.errors import DataError, JmixedError, RankWarning, warn
from jmixed.fitting import Fitting
from jmixed.formulas.model_data import ModelData
from jmixed.formulas.restate import names_of_caller
from jmixed.layout.stack import stack
from jmixed.reports.names import left_out
from jmixed.runtime.arguments import checked
from jmixed.runtime.timing import Timings
from jmixed.streams import sums, survey
from jmixed.streams.reading import Reader, naming, reading
from jmixed.streams.represent import represent

OF_ROWS = ("endog", "exog", "groups", "exog_re", "exog_vc", "row_indices", "group_labels", "weights", "offset")
OF_ROWS += ("update", "with_response", "group_list")
"""What a model in memory has, and one of batches has not."""


@checked
def from_batches(
    formula,
    batches,
    groups=None,
    re_formula=None,
    vc_formula=None,
    weights=None,
    offset=None,
    missing="none",
    eval_env=0,
) -> StreamedLM:
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

    Returns
    -------
    StreamedLM

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
    <StreamedLM: Reaction ~ Days + (Days | Subject); 180 rows; Subject: 18 levels>
    >>> result = model.fit()
    >>> result.fe_params.round(3).to_dict(), round(result.sigma, 3)
    ({'Intercept': 251.405, 'Days': 10.467}, 25.592)
    >>> result.predict(batches[2], random_effects=True).head(2).round(1).tolist()
    [256.0, 263.4]
    """
    timings = Timings()
    env = names_of_caller(eval_env, sys._getframe(1))
    beside = {"groups": groups, "weights": weights, "offset": offset}
    with nullcontext(_OnDask(batches)) if _is_dask(batches) else _in_turn(batches) as source:
        with timings.step("parse"):
            statement = survey.stated(formula, source.tables(None), beside, re_formula, vc_formula, env, missing)
        with timings.step("materialise"):
            made = sums.plan(statement, source.survey(statement))
            spec = represent(made, source.sums(made))
    return StreamedLM(spec, timings)


@contextmanager
def _in_turn(batches):
    with reading(batches) as tables:
        yield _InTurn(tables)


class _InTurn:
    """Batches that are read one after the other."""

    def __init__(self, tables: Reader):
        self.tables = tables

    def survey(self, statement) -> survey.Survey | None:
        return survey.survey_of(statement, self.tables(statement.columns))

    def sums(self, plan) -> sums.Sums | None:
        return sums.sums_of(plan, self.tables(plan.statement.columns))


def _is_dask(batches) -> bool:
    return hasattr(batches, "to_delayed") and hasattr(batches, "npartitions")


class _OnDask:
    """Partitions of a Dask DataFrame: what each tells is computed where it is, and put together as a tree."""

    def __init__(self, frame):
        self.frame = frame

    def tables(self, columns) -> Iterable[pd.DataFrame]:
        return map(_computed, self._parts(columns))

    def _parts(self, columns):
        return (self.frame if columns is None else self.frame[list(columns)]).to_delayed()

    def survey(self, statement) -> survey.Survey | None:
        return self._reduced(statement.columns, lambda part: survey.survey(statement, part), statement)

    def sums(self, plan) -> sums.Sums | None:
        return self._reduced(plan.statement.columns, lambda part: sums.sums(plan, part), None)

    def _reduced(self, columns, function: Callable, statement) -> Any:
        from dask.delayed import delayed  # pyright: ignore[reportMissingImports]

        def join(one, other):
            if one is None or other is None:
                return other if one is None else one
            return sums.merge(one, other) if statement is None else survey.merge(statement, one, other)

        def named(number, part):
            with naming(number):
                return function(part)

        parts = [delayed(named)(number, part) for number, part in enumerate(self._parts(columns))]
        return _computed(survey.reduce_in_pairs(parts, delayed(join)))


def _computed(delayed: Any) -> Any:
    """What Dask computes; a partition that cannot be read is named as such."""
    try:
        return delayed.compute()
    except JmixedError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:
        raise DataError(
            f"a partition of the Dask DataFrame cannot be read ({error}); if a file was cut short while it was "
            "written, write it again"
        ) from error


@checked
class StreamedLM(Fitting):
    """A linear mixed model of data in batches, made by `from_batches`. It is fitted as `MixedLM` is.

    Attributes
    ----------
    design : Design
        A few rows for each group that have the cross-products of the data; for `jm.estimate` and the like.
    nobs, k_fe, k_re, k_vc : int
    exog_names, theta_names : list of str
    endog_names, formula : str
    spec : ModelData
    """

    def __init__(self, spec: ModelData, timings: Timings):
        self._timings, self.spec = timings, spec
        self.use_sqrt, self.labelled, self.reml = True, True, True
        self.formula, self.endog_names, self.exog_names = spec.formula, spec.endog_name, list(spec.exog_names)
        self.nobs, self.k_fe = spec.nobs, spec.X.shape[1]
        self._packing = Packing.of(spec.terms)
        self.k_re, self.k_vc = self._packing.shape
        self.k_re2 = self._packing.size - self.k_vc
        self.k_params = self.k_fe + self._packing.size
        self.data, self.theta_names = ModelFrame.of(spec), theta_names(spec.terms)
        for message in left_out(spec):
            warn(message, RankWarning)

    def __repr__(self) -> str:
        factors = {term.group: len(term.levels) for term in self.spec.terms}
        levels = ", ".join(f"{name}: {count} level{'s' * (count != 1)}" for name, count in factors.items())
        return f"<StreamedLM: {self.formula}; {self.nobs} rows; {levels}>"

    def __getattr__(self, name: str):
        if name in OF_ROWS:
            raise DataError(
                f"model.{name} needs the rows of the data, and from_batches keeps their cross-products only; use "
                "mixedlm for data that fit into memory"
            )
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @cached_property
    def design(self):
        """Rows that stand for the data, as a pytree: `jm.estimate` and JAX's transformations take it."""
        with self._timings.step("stack"):
            return stack(self.spec)

    def fit_many(self, Y, **options):
        """Not for data in batches: the responses would need the rows."""
        raise DataError(
            "fit_many needs the rows of the data, and from_batches keeps their cross-products only; use mixedlm, or "
            "call from_batches once for each response"
        )

    def get_distribution(self, params: MixedLMParams, scale, exog=None):
        """Not for data in batches: responses are drawn for rows."""
        raise DataError(
            "get_distribution needs the rows of the data, and from_batches keeps their cross-products only; use mixedlm"
        )

    def without_data(self, spec) -> StreamedLM:
        """A copy that holds `spec`, a `ModelData` without rows, in place of its own."""
        model = copy.copy(self)
        model.__dict__.pop("design", None)
        model.spec = spec
        return model
