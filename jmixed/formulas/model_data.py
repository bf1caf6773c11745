"""What the words of a model become: rows, columns, and random-effects terms."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import pandas as pd

from jmixed.formulas.factors import Factor
from jmixed.formulas.recipe import Recipe
from jmixed.formulas.relationships import Relationship, SparseRelationship
from jmixed.formulas.structures import OF_STRUCTURE, RESIDUALS, UNSTRUCTURED, WORDS


class LocalColumns(Protocol):
    """Columns of a random-effects term that are made for each group by itself."""

    @property
    def part(self) -> str:
        """The part of the recipe that they come from."""
        ...

    @property
    def expressions(self) -> Iterable[Any]:
        """The factors of the formula that they come from."""
        ...

    def build(self, frame: pd.DataFrame, codes: np.ndarray) -> np.ndarray:
        """Columns (k, q) for new rows whose top-level group is `codes` (k,), -1 where it is unknown."""
        ...


@dataclass(frozen=True)
class Rebuild:
    """How a term is made again on new data."""

    factor: Factor  # how labels become level codes
    part: str | None = None  # of the recipe, which gives the columns; None for a column of ones
    local: LocalColumns | None = None  # columns that are made per group, in place of `part`


@dataclass(frozen=True)
class RandomTerm:
    """One random-effects term: q columns whose coefficients vary between L levels."""

    label: str  # unique key, "Days | Subject"
    group: str  # name of the grouping factor, "Subject" or "batch:cask"
    codes: np.ndarray  # (n,) int32, the level of each row; every level occurs
    levels: pd.Index  # (L,) labels
    columns: tuple[str, ...]  # names of the columns of Z; an intercept is called "Intercept"
    Z: np.ndarray  # (n, q)
    structure: str = UNSTRUCTURED  # a word of `jmixed.covariance.registry`
    vc: str | None = None  # name of the variance component, if it is one
    intercept: int | None = None  # index of a constant column
    # (L,) int32, for a variance component the top-level group of each level
    parents: np.ndarray | None = field(default=None, repr=False)
    # for a variance component the names of each level's columns inside its group, ("C(cask)[a]",) for a level of a
    # factor; None stands for a column that the group does not have
    inner: Sequence[tuple[str | None, ...]] | None = field(default=None, repr=False)
    rebuild: Rebuild | None = field(default=None, repr=False)  # None for a model made of arrays
    # None for independent levels
    relationship: Relationship | SparseRelationship | None = field(default=None, repr=False)

    @property
    def root(self) -> np.ndarray | None:
        """A root of the known covariance of the levels (L, L), None for independent ones."""
        return None if self.relationship is None else self.relationship.root

    @property
    def precision(self) -> Any:
        """The sparse inverse of the known covariance of the levels and their relatives; None where there is none."""
        return self.relationship.precision if isinstance(self.relationship, SparseRelationship) else None

    @property
    def known_levels(self) -> pd.Index:
        """The levels, then those without rows that are related to them."""
        return self.levels if self.relationship is None else self.levels.append(self.relationship.others)

    def known_effects(self, b: np.ndarray) -> np.ndarray:
        """Effects of the known levels, from those (L, q) of the levels themselves."""
        return b if self.relationship is None else self.relationship.effects(b)

    @property
    def shares_variance(self) -> bool:
        """Whether all coefficients have one variance, which a single level tells too."""
        return OF_STRUCTURE[self.structure].one_variance

    @property
    def word(self) -> str:
        """The word before the bar; "" for an unstructured term, and for a variance component."""
        words = {meaning.structure: word for word, meaning in WORDS.items() if meaning.structure != UNSTRUCTURED}
        return "" if self.vc is not None else words.get(self.structure, "")


LARGEST = 350.0
"""Logarithm of a standard deviation whose square is a number, as is its inverse."""
ORDER = "1"
"""The position that stands for the order of the rows."""


@dataclass(frozen=True)
class ResidualTerm:
    """The residuals of a model: k columns of log standard deviations, and correlations within series of rows."""

    word: str  # of `structures.RESIDUALS`; "independent" without correlations
    text: str | None  # as the caller gave it
    dispersion: str | None  # likewise
    columns: np.ndarray  # (n, k)
    names: tuple[str, ...]  # of the columns
    units: np.ndarray  # (k,) their standard deviations
    factor: Factor | None = None  # the series
    position: str = ORDER  # the column of the positions
    places: np.ndarray = field(default_factory=lambda: np.zeros(0))  # (n,) where in its series each row is, in steps
    unit: float = 1.0  # what a step is in the caller's unit
    origin: float = 0.0  # where steps are counted from
    counted: Factor | None = None  # how labels become places that are counted
    place_names: tuple[str, ...] = ()  # of places that are counted: of visits
    positions: int = 1  # how many places a series may have: visits, or rows of the longest
    by_position: int = 0  # how many of the columns, the first ones, stand for positions
    # (k,) where the columns are counted from inside: zero, or the mean of a covariate whose zero is far from it
    origins: np.ndarray | float = 0.0

    @property
    def shift(self) -> np.ndarray:
        """What log sigma, the standard deviation where all columns are zero, lacks per unit of rho: (k,)."""
        return self.origins / self.units

    @property
    def structure(self) -> str:
        """The word of its correlations."""
        return RESIDUALS[self.word].structure if self.word in RESIDUALS else self.word

    @property
    def stepped(self) -> bool:
        """Whether places are differences of the caller's numbers, not numbers of labels."""
        labels = None if self.counted is None else self.counted.levels
        return labels is None or (RESIDUALS[self.word].positions == "steps" and pd.api.types.is_numeric_dtype(labels))

    @property
    def codes(self) -> np.ndarray:
        """The series of each row, (n,)."""
        return np.zeros(len(self.columns), np.int32) if self.factor is None else self.factor.codes

    @property
    def count(self) -> int:
        """Number of series."""
        return 1 if self.factor is None else len(self.factor.levels)


@dataclass(frozen=True)
class FurtherColumns:
    """The columns of a further predictor, as of a dispersion: independent, with an intercept unless it was left out."""

    text: str  # as the caller gave it
    columns: np.ndarray  # (n, k)
    names: tuple[str, ...]


@dataclass(frozen=True)
class ResponseTerm:
    """What the response of a generalized model is, beside its numbers `ModelData.y`.

    Of successes these are their numbers, of categories the codes 0, 1, ...; `ModelData.weights` are those that were
    given as weights, ones where these were numbers of trials.
    """

    kind: str  # "numbers", "successes" of a number of trials, or "categories" in order
    trials: np.ndarray  # (n,), ones where nothing was said of them
    # the labels: two of a response of two categories or truth values, of which the second is a success; of categories
    # all, in their order; otherwise none
    categories: tuple[Any, ...] = ()
    dispersion: FurtherColumns | None = None
    zero: FurtherColumns | None = None
    counts_trials: bool = False  # whether numbers of trials were stated
    weights_as_trials: bool = False  # whether they were stated as weights, of proportions


@dataclass(frozen=True)
class ModelData:
    """A model in arrays: n rows, p fixed-effects columns, and the random-effects terms."""

    y: np.ndarray  # (n,)
    X: np.ndarray  # (n, p), fixed effects without redundant columns
    weights: np.ndarray  # (n,), ones if none were given
    offset: np.ndarray  # (n,), zeros if none was given
    terms: tuple[RandomTerm, ...]  # in the order of theta
    endog_name: str
    exog_names: tuple[str, ...]  # of the columns of X
    dropped: tuple[str, ...]  # redundant columns that were left out, each a combination of columns to its left
    index: pd.Index  # (n,) labels of the rows
    rows: np.ndarray  # (n,) positions of the rows in the caller's data
    frame: pd.DataFrame | None = field(repr=False)  # the caller's rows that are in the model, with all columns
    # (n,) label of each row's top-level group, when groups= was given
    groups: np.ndarray | None = field(default=None, repr=False)
    group_name: str | None = None  # name of that factor
    formula: str | None = None  # as the caller gave it
    # (p,) positions of the columns of X among all columns of the formula
    kept: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    redundant: np.ndarray | None = field(default=None, repr=False)  # (d,) positions of the redundant ones among all
    # (p, d): the redundant columns are those of X times this, in the model's own rows
    explained: np.ndarray | None = field(default=None, repr=False)
    # the formulas with the state of their transforms, for new data
    recipe: Recipe | None = field(default=None, repr=False)
    offset_source: str | None = None  # the column that offset= named; "" when it was an array
    # (n,) how many rows of the caller's data each row stands for, when those are not held in memory
    represents: np.ndarray | None = field(default=None, repr=False)
    log_weights: float = 0.0  # sum of the log weights of those
    residual: ResidualTerm | None = field(default=None, repr=False)  # None for independent residuals of one variance
    response: ResponseTerm | None = field(default=None, repr=False)  # None for a linear model
    left_out: int = 0  # rows that were left out because of missing values

    @property
    def nobs(self) -> int:
        """Number of rows of the data."""
        return len(self.y) if self.represents is None else int(self.represents.sum())

    def sigma_at_zero(self, sigma: Any, rho: np.ndarray) -> np.ndarray:
        """Residual standard deviations (...,) where all columns of the dispersion are zero; NaN for what is no number.

        From those (...,) where the columns are counted from, and rho (..., k).
        """
        residual = self.residual
        if residual is None or not np.any(residual.origins):
            return np.asarray(sigma)
        lacks = rho[..., : residual.columns.shape[1]] @ residual.shift
        logs = np.log(np.where(np.asarray(sigma) > 0, sigma, 1)) - lacks
        told = np.where(np.abs(logs) < LARGEST, np.exp(np.clip(logs, -LARGEST, LARGEST)), np.nan)
        return np.where(np.asarray(sigma) > 0, told, sigma)

    @property
    def has_offset(self) -> bool:
        """Whether some row has an offset other than zero, as far as the rows are known."""
        stated = self.offset_source is not None or (self.recipe is not None and "offset0" in self.recipe.specs)
        return bool(self.offset.any()) or (stated and self.represents is not None)


@dataclass(frozen=True)
class NewRows:
    """New data seen through a model: k rows."""

    X: np.ndarray  # (k, p)
    offset: np.ndarray  # (k,)
    index: pd.Index  # (k,) labels of the rows
    # (k,) for each term the level of each row, -1 for one that the model has not seen; empty unless asked for
    codes: tuple[np.ndarray, ...]
    Z: tuple[np.ndarray, ...]  # (k, q) for each term; empty unless asked for
    missing: np.ndarray  # (k,) rows with a missing value, or without an estimate; their X is NaN
    # (k, d) columns of the further predictors; None where the model has none, and unless asked for
    dispersion: np.ndarray | None = None
    zero: np.ndarray | None = None
