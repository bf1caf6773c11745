"""The border to formulaic: what it does not promise to keep is named here alone, with what is done when it is gone."""

import functools
from collections import ChainMap
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import formulaic
import numpy as np
import pandas as pd
from formulaic import ModelSpec, SimpleFormula, transforms
from formulaic.materializers import PandasMaterializer
from formulaic.parser.types import Factor, Term
from interface_meta import override

from jmixed.errors import FormulaError

FormulaFactor = Factor
"""A factor of a term as formulaic has it: an expression, and how it is evaluated."""

HOOKS = ("_check_for_nulls", "_is_categorical")
"""Methods of formulaic's in whose place ours stand."""


def new_spec(terms: Iterable[Iterable[FormulaFactor]], **settings: Any) -> ModelSpec:
    """An unevaluated formula of these terms, in this order."""
    formula = SimpleFormula(cast(Any, [Term(factors) for factors in terms]), _ordering="none")
    return ModelSpec(cast(SimpleFormula, formula), **settings)


def factors_of(spec: ModelSpec) -> list[FormulaFactor]:
    """The distinct factors of a formula."""
    return list(dict.fromkeys(factor for term in spec.formula for factor in term.factors))


def known_factors(spec: ModelSpec) -> dict[FormulaFactor, tuple[str, dict]]:
    """The factors of an evaluated formula, each with its kind ("categorical", "numerical") and its state."""
    states = spec.encoder_state
    return {f: (states[f.expr][0].value, states[f.expr][1]) for f in factors_of(spec) if f.expr in states}


def structure_apart(spec: ModelSpec) -> list | None:
    """The columns of each term as plain values: those of products of factors, of which some are without a column."""
    if spec.structure is None:
        return None
    rows = []
    for row in spec.structure:
        products = [
            [part.scale, [scoped.factor.expr for scoped in part.factors], [scoped.reduced for scoped in part.factors]]
            for part in row.scoped_terms
        ]
        rows.append([[factor.expr for factor in row.term.factors], products, list(row.columns)])
    return rows


def structure_together(rows: list | None, factors: Mapping[str, FormulaFactor]) -> Any:
    """What `structure_apart` made plain, made anew."""
    if rows is None:
        return None
    try:
        from formulaic.materializers.base import EncodedTermStructure
        from formulaic.materializers.types import EvaluatedFactor, ScopedFactor, ScopedTerm
    except ImportError as error:
        raise FormulaError(
            f"formulaic {formulaic.__version__} keeps formulas in another way than jmixed knows ({error}): install "
            "formulaic 1.2 to open the file of a result"
        ) from error
    values: Any = None

    def scoped(scale: Any, names: list[str], reduced: list[bool]) -> ScopedTerm:
        pairs = zip(names, reduced, strict=True)
        return ScopedTerm([ScopedFactor(EvaluatedFactor(factors[name], values), less) for name, less in pairs], scale)

    return [
        EncodedTermStructure(Term([factors[name] for name in names]), [scoped(*part) for part in products], columns)
        for names, products, columns in rows
    ]


def place_of(factor: FormulaFactor, code: str) -> tuple[int, int] | None:
    """Where a factor was read in a formula, its first and last character; None where formulaic does not tell."""
    token = getattr(factor, "token", None)
    if getattr(token, "source", None) != code:
        return None
    start, last = getattr(token, "source_start", None), getattr(token, "source_end", None)
    return None if start is None or last is None else (start, last)


@functools.cache
def vocabulary() -> Mapping[str, Any]:
    """What formulas may use beside columns and the caller's names."""
    words = getattr(transforms, "TRANSFORMS", None)
    if words is not None:
        return words
    numpys = {name: getattr(np, name) for name in ("log", "log10", "log2", "exp", "exp2")}
    names = {"bs": "basis_spline", "cr": "natural_cubic_spline", "cs": "natural_cubic_spline"}
    names |= {"cc": "cyclic_cubic_spline", "contr": "ContrastsRegistry", "I": "identity"}
    names |= {name: name for name in ("C", "center", "lag", "poly", "scale")}
    return {"np": np, **numpys} | {word: getattr(transforms, name) for word, name in names.items()}


def value_of(code: str, frame: pd.DataFrame, env: Mapping[str, Any]) -> Any:
    """What an expression gives that stands outside of formulas; a column wins over the caller's names."""
    columns: Any = frame
    values = eval(code, {}, ChainMap(columns, cast(Any, env), cast(Any, vocabulary())))
    return getattr(values, "__wrapped__", values)


def materializer(frame: pd.DataFrame, env: Mapping[str, Any], look: Callable | None = None, count: int = 0) -> Any:
    """formulaic's evaluation on a table, held to one rule: every factor has a value for each row, in its order.

    What each factor gave is in its `values` by the factor's expression. When there are `count` of them, `look` is
    called, before any is encoded.

    Raises
    ------
    FormulaError
        For a version of formulaic in which nothing would hold it to that.
    """
    gone = [name for name in HOOKS if not hasattr(PandasMaterializer, name)]
    if gone:
        raise FormulaError(
            f"formulaic {formulaic.__version__} evaluates formulas in another way than jmixed knows ({', '.join(gone)} "
            "is gone): install formulaic 1.2, or write columns of the data as they are, made before, in the formula"
        )
    rows = _row_materializer()(frame, context=env)
    rows.values, rows.look, rows.count = {}, look, count
    return rows


@functools.cache
def _row_materializer() -> type:
    class RowMaterializer(PandasMaterializer):
        """Refuses what formulaic would drop in silence, or put together row by row although the labels differ."""

        values: dict[str, Any]
        look: Callable[[], None] | None
        count: int

        @override
        def _check_for_nulls(self, name: str, values: Any, na_action: Any, drop_rows: set[int]) -> None:
            self.values[name] = getattr(values, "__wrapped__", values)
            require_rows(name, self.values[name], self.data.index)
            looked_at = pd.Series(self.values[name]) if is_text(self.values[name]) else values
            super()._check_for_nulls(name, looked_at, na_action, drop_rows)
            if self.look and len(self.values) == self.count:
                self.look()

        @override
        def _is_categorical(self, values: Any) -> bool:
            return is_truth(values) or is_text(values) or super()._is_categorical(values)

    return RowMaterializer


def let_go(materializer: Any) -> None:
    """Empty what it remembers: its objects refer to each other in a circle, which would keep every column."""
    for cache in ("factor_cache", "encoded_cache", "values"):
        getattr(materializer, cache, {}).clear()


def is_truth(values: Any) -> bool:
    """Whether a factor has truth values, which are two categories and no numbers, as in R and patsy."""
    return isinstance(values, pd.Series | np.ndarray) and values.ndim == 1 and values.dtype == "bool"


def is_text(values: Any) -> bool:
    """Whether a factor has text in an array of NumPy's, as ``np.where`` gives it."""
    if not isinstance(values, np.ndarray) or values.ndim != 1:
        return False
    return values.dtype.kind == "U" or (
        values.dtype.kind == "O" and pd.api.types.infer_dtype(values, skipna=True) == "string"
    )


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
