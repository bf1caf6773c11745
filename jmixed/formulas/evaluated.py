"""formulaic's evaluation, held to one rule: every factor has a value for each row of the table, in its order."""

from typing import Any

import numpy as np
import pandas as pd
from formulaic.materializers import PandasMaterializer
from interface_meta import override

from jmixed.errors import FormulaError


class RowMaterializer(PandasMaterializer):
    """Refuses what formulaic would drop in silence, or put together row by row although the labels say otherwise."""

    @override
    def _check_for_nulls(self, name: str, values: Any, na_action: Any, drop_rows: set[int]) -> None:
        require_rows(name, getattr(values, "__wrapped__", values), self.data.index)
        super()._check_for_nulls(name, values, na_action, drop_rows)

    @override
    def _is_categorical(self, values: Any) -> bool:
        return is_truth(values) or super()._is_categorical(values)


def is_truth(values: Any) -> bool:
    """Whether a factor has truth values, which are two categories and no numbers, as in R and patsy."""
    return isinstance(values, pd.Series | np.ndarray) and values.ndim == 1 and values.dtype == "bool"


def require_rows(name: str, values: Any, index: pd.Index) -> None:
    """Values of a factor that belong to the rows of `index`: those of the same labels, or as many."""
    if values is None:
        raise FormulaError(f"{name!r} gives None: a function in a formula must return the values it computes")
    labels = values.index if isinstance(values, pd.Series | pd.DataFrame) else None
    if labels is not None and labels.is_unique and not labels.equals(index):
        raise FormulaError(
            f"{name!r} has row labels of its own, {_few(labels)}, but the rows of the data are {_few(index)}: make it "
            "a column of the data, or use np.asarray of it if its values are in the order of these rows"
        )
    count = len(values) if hasattr(values, "__len__") and not isinstance(values, str | dict) else None
    if count is not None and count != len(index):
        raise FormulaError(
            f"{name!r} has {count} values for {len(index)} rows: make it a column of the data, so that subset "
            "and missing values act on it too"
        )


def _few(labels: pd.Index) -> str:
    shown = ", ".join(map(repr, labels[:3].tolist()))
    return f"{shown}, ... ({len(labels)})" if len(labels) > 3 else shown
