"""What the words of a model become: rows, columns, and random-effects terms."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import pandas as pd

from jmixed.formulas.factors import Factor
from jmixed.formulas.recipe import Recipe


class LocalColumns(Protocol):
    """Columns of a random-effects term that are made for each group by itself."""

    @property
    def part(self) -> str:
        """The part of the recipe that they come from."""
        ...

    def build(self, frame: pd.DataFrame, codes: np.ndarray) -> np.ndarray:
        """Columns (k, q) for new rows whose top-level group is `codes` (k,), -1 where it is unknown."""
        ...


ONE_VARIANCE = "identity"
"""The word for components whose columns share one variance; `jmixed.covariance.registry` knows what it means."""


@dataclass(frozen=True)
class Rebuild:
    """How a term is made again on new data.

    Attributes
    ----------
    factor : Factor
        How labels become level codes.
    part : str or None
        The part of the recipe that gives the columns; None for a column of ones.
    local : LocalColumns or None
        Columns that are made per group, in place of `part`.
    """

    factor: Factor
    part: str | None = None
    local: LocalColumns | None = None


@dataclass(frozen=True)
class RandomTerm:
    """One random-effects term.

    Attributes
    ----------
    label : str
        Unique key, "Days | Subject".
    group : str
        Name of the grouping factor, "Subject" or "batch:cask".
    codes : array (n,) of int32
        Level of each row, 0..L-1; every level occurs.
    levels : Index (L,)
        Labels of the levels.
    columns : tuple of str
        Names of the q columns of `Z`; an intercept is called "Intercept".
    Z : array (n, q)
        Values of the columns.
    structure : str
        A word of `jmixed.covariance.registry`: "unstructured" (a q x q covariance), "identity" (one variance for all
        columns), ...
    vc : str or None
        The name of the variance component, if the term came from a ``vc_formula``.
    intercept : int or None
        Index of a constant column.
    parents : array (L,) of int32 or None
        For a variance component: the top-level group of each level.
    inner : sequence or None
        For a variance component: the names of each level's columns inside its group, ("C(cask)[a]",) for a level of
        a factor; None stands for a column that the group does not have.
    rebuild : Rebuild or None
        What new data needs; None for a model made of arrays.
    """

    label: str
    group: str
    codes: np.ndarray
    levels: pd.Index
    columns: tuple[str, ...]
    Z: np.ndarray
    structure: str = "unstructured"
    vc: str | None = None
    intercept: int | None = None
    parents: np.ndarray | None = field(default=None, repr=False)
    inner: Sequence[tuple[str | None, ...]] | None = field(default=None, repr=False)
    rebuild: Rebuild | None = field(default=None, repr=False)

    @property
    def shares_variance(self) -> bool:
        """Whether all coefficients have one variance, which a single level tells too."""
        return self.structure == ONE_VARIANCE


@dataclass(frozen=True)
class ModelData:
    """A model in arrays: n rows, p fixed-effects columns, and the random-effects terms.

    Attributes
    ----------
    y, weights, offset : arrays (n,)
        Response, weights (ones if none were given) and offset (zeros if none).
    X : array (n, p)
        Fixed effects without redundant columns.
    terms : tuple of RandomTerm
        In the order of theta.
    endog_name, exog_names : str, tuple of str
        Names of the response and of the columns of `X`.
    dropped : tuple of str
        Redundant columns that were left out, each a combination of columns to its left.
    index : Index (n,)
        Labels of the rows.
    rows : array (n,) of int
        Positions of the rows in the caller's data.
    frame : DataFrame or None
        The caller's rows that are in the model, with all columns.
    groups, group_name : array (n,) and str, or None
        Label of each row's top-level group and the name of that factor, when ``groups=`` was given.
    formula : str or None
        The formula as given.
    kept : array (p,) of int
        Positions of the columns of `X` among all columns of the formula.
    redundant : array (d,) of int, or None
        Positions of the redundant columns among all columns of the formula.
    explained : array (p, d) or None
        The redundant columns are those of `X` times this, in the model's own rows.
    recipe : Recipe or None
        The formulas with the state of their transforms, for new data.
    offset_source : str or None
        The column that ``offset=`` named; "" when it was an array.
    represents : int array (n,) or None
        How many rows of the caller's data each row stands for, when those are not held in memory.
    log_weights : float
        Sum of their log weights.
    """

    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    terms: tuple[RandomTerm, ...]
    endog_name: str
    exog_names: tuple[str, ...]
    dropped: tuple[str, ...]
    index: pd.Index
    rows: np.ndarray
    frame: pd.DataFrame | None = field(repr=False)
    groups: np.ndarray | None = field(default=None, repr=False)
    group_name: str | None = None
    formula: str | None = None
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    redundant: np.ndarray | None = field(default=None, repr=False)
    explained: np.ndarray | None = field(default=None, repr=False)
    recipe: Recipe | None = field(default=None, repr=False)
    offset_source: str | None = None
    represents: np.ndarray | None = field(default=None, repr=False)
    log_weights: float = 0.0

    @property
    def nobs(self) -> int:
        """Number of rows of the data."""
        return len(self.y) if self.represents is None else int(self.represents.sum())

    @property
    def has_offset(self) -> bool:
        """Whether some row has an offset other than zero, as far as the rows are known."""
        stated = self.offset_source is not None or (self.recipe is not None and "offset0" in self.recipe.specs)
        return bool(self.offset.any()) or (stated and self.represents is not None)


@dataclass(frozen=True)
class NewRows:
    """New data seen through a model: k rows.

    Attributes
    ----------
    X : array (k, p)
        Fixed-effects columns.
    offset : array (k,)
        Offset.
    index : Index (k,)
        Labels of the rows.
    codes : tuple of arrays (k,)
        For each term the level of each row, -1 for a level that the model has not seen. Empty unless asked for.
    Z : tuple of arrays (k, q)
        For each term its columns. Empty unless asked for.
    missing : array (k,) of bool
        Rows with a missing value, or without an estimate; their X is NaN.
    """

    X: np.ndarray
    offset: np.ndarray
    index: pd.Index
    codes: tuple[np.ndarray, ...]
    Z: tuple[np.ndarray, ...]
    missing: np.ndarray
