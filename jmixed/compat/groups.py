"""A model's data under statsmodels' names: groups and their rows, labels, and the blocks of variance components."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from jmixed.compat.params import VCSpec
from jmixed.errors import ModelError
from jmixed.reports import effects
from jmixed.reports.names import parameter_names, structure

if TYPE_CHECKING:
    from jmixed.formulas.model_data import ModelData, RandomTerm


@dataclass(frozen=True)
class ModelFrame:
    """The ``data`` attribute of a model: its rows and its labels.

    Attributes
    ----------
    frame : DataFrame or None
        The caller's rows that are in the model, with all columns; None for a model made of arrays.
    ynames : str
        The response.
    xnames : list of str
        Fixed effects.
    exog_re_names, exog_re_names_full : list of str
        Random effects, and their variances and covariances.
    vcomp_names : list of str
        Variance components.
    param_names : list of str
        Labels of ``params``.
    row_labels : Index
        Labels of the rows.
    """

    frame: pd.DataFrame | None
    ynames: str
    xnames: list[str]
    exog_re_names: list[str]
    exog_re_names_full: list[str]
    vcomp_names: list[str]
    param_names: list[str]
    row_labels: pd.Index

    @classmethod
    def of(cls, spec: ModelData) -> ModelFrame:
        """Names and rows of a model."""
        names = parameter_names(spec)
        return cls(
            frame=spec.frame,
            ynames=spec.endog_name,
            xnames=list(names.fixed),
            exog_re_names=list(names.random),
            exog_re_names_full=list(names.random_full),
            vcomp_names=list(names.vcomp),
            param_names=list(names.all),
            row_labels=spec.index,
        )


def theta_names(terms: tuple[RandomTerm, ...]) -> list[str]:
    """Labels of theta: ``group.column`` on the diagonal of a factor and ``group.row.column`` below it."""
    names = []
    for term in terms:
        names += [f"{term.group}.{name}" for name in structure(term).theta_names(term.columns, term.vc)]
    return names


def top_level(spec: ModelData) -> tuple[np.ndarray, pd.Index, str]:
    """Codes (n,), sorted labels and name of the one grouping factor inside which all others lie."""
    if spec.groups is not None:
        return *effects.top_level(spec), spec.group_name or "Group"
    if not spec.terms:
        if spec.residual is None or spec.residual.factor is None:
            raise ModelError("this model has no random effects and no series of residuals, and so no groups")
        series = spec.residual.factor
        return series.codes, pd.Index(series.levels), series.name
    coarsest = min(spec.terms, key=lambda term: len(term.levels))
    if not all(_lies_within(term.codes, coarsest.codes) for term in spec.terms):
        raise ModelError(
            f"the grouping factors {sorted({term.group for term in spec.terms})} are crossed, so the rows have no one "
            "group; see the terms of model.spec, or result.ranef(), which has one table for each factor",
            page="formula.md#crossed-factors",
        )
    return coarsest.codes, pd.Index(coarsest.levels), coarsest.group


def _lies_within(fine: np.ndarray, coarse: np.ndarray) -> bool:
    """Whether rows of the same fine level always have the same coarse level."""
    home = np.empty(fine.max(initial=-1) + 1, coarse.dtype)
    home[fine] = coarse
    return bool(np.array_equal(home[fine], coarse))


def rows_by_group(codes: np.ndarray, count: int) -> list[np.ndarray]:
    """Row numbers of each group, ascending."""
    return np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes, minlength=count))[:-1])


def columns_by_level(term: RandomTerm) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns that a variance component has in each group, group by group as statsmodels lists them.

    Int arrays group, level, column (k,): each column belongs to a level of the term, and the level to a top-level
    group.
    """
    parents = term.parents if term.parents is not None else np.zeros(len(term.levels), int)
    present = np.ones((len(term.levels), len(term.columns)), bool)
    if term.inner is not None:
        present = np.array([[name is not None for name in names] for names in term.inner])
    order = np.argsort(parents, kind="stable")
    level, column = np.nonzero(present[order])
    return parents[order][level], order[level], column


def vc_spec(spec: ModelData) -> VCSpec:
    """The variance components of a model as dense blocks, one for each group."""
    components = [term for term in spec.terms if term.vc is not None]
    if not components:
        return VCSpec([], [], [])
    codes, labels, _ = top_level(spec)
    rows = rows_by_group(codes, len(labels))
    blocks = [_blocks(term, rows) for term in components]
    return VCSpec([term.vc for term in components], [names for names, _ in blocks], [mats for _, mats in blocks])


def _blocks(term: RandomTerm, rows: list[np.ndarray]) -> tuple[list, list]:
    """Column names and columns of one component in each group."""
    group, level, column = columns_by_level(term)
    bounds = np.searchsorted(group, np.arange(len(rows) + 1))
    names, mats = [], []
    for g, members in enumerate(rows):
        levels, columns = (part[bounds[g] : bounds[g + 1]] for part in (level, column))
        mats.append(np.where(term.codes[members][:, None] == levels, term.Z[np.ix_(members, columns)], 0.0))
        inner = term.inner
        names.append([inner[s][k] if inner else term.columns[k] for s, k in zip(levels, columns, strict=True)])
    return names, mats
