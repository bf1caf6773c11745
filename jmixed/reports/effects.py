"""Random effects of a fit: conditional modes by factor and by group, and their conditional covariances."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from jmixed.errors import ModelError
from jmixed.fit.host import Fit
from jmixed.inference.joint_covariance import conditional_covariance
from jmixed.layout.design import Design
from jmixed.runtime.precision import FLOAT


class GroupSizes(NamedTuple):
    """How many groups a factor has, and how many rows they have."""

    count: int
    smallest: int
    largest: int
    mean: float


def group_sizes(spec) -> dict[str, GroupSizes]:
    """Sizes of the top-level groups, if the model has them, else of the levels of each grouping factor.

    Of a model without random effects they are those of the series of residuals.
    """
    codes = {term.group: term.codes for term in spec.terms}
    if not codes and spec.residual is not None and spec.residual.factor is not None:
        codes = {spec.residual.factor.name: spec.residual.factor.codes}
    if spec.groups is not None:
        top, _ = top_level(spec)
        # One group for all rows is a device for crossed factors: then the components' own factors matter.
        codes = {spec.group_name: top} if top.max() > 0 else codes
    return {name: _sizes(np.bincount(code, spec.represents).astype(int)) for name, code in codes.items()}


def _sizes(rows):
    return GroupSizes(len(rows), int(rows.min()), int(rows.max()), float(rows.mean()))


def has_top_level(spec) -> bool:
    """Whether every random effect belongs to a group of one factor."""
    return spec.groups is not None or len(by_factor(spec.terms)) == 1


def top_level(spec) -> tuple[np.ndarray, pd.Index]:
    """The top-level group of each row, as codes (n,) and labels in sorted order."""
    if spec.groups is not None:
        codes, labels = pd.factorize(spec.groups, sort=True)
        return codes.astype(np.int64), pd.Index(labels)
    if not spec.terms:
        raise ModelError("this model has no random effects")
    if not has_top_level(spec):
        raise ModelError(
            f"this model has several grouping factors, {list(by_factor(spec.terms))}: random effects are not listed "
            "by group; use result.ranef(), which has one table for each factor"
        )
    return spec.terms[0].codes.astype(np.int64), pd.Index(spec.terms[0].levels)


def factor_columns(terms) -> list[str]:
    """Names of the columns of terms that share a factor; a name that occurs twice is prefixed with its component."""
    plain = [column for term in terms for column in term.columns]
    return [
        column if plain.count(column) == 1 else f"{term.vc or term.label}[{column}]"
        for term in terms
        for column in term.columns
    ]


def by_factor(terms) -> dict[str, list[int]]:
    """Positions of the terms of each grouping factor, in the order in which the factors occur."""
    out: dict[str, list[int]] = {}
    for position, term in enumerate(terms):
        out.setdefault(term.group, []).append(position)
    return out


def modes(terms, b) -> dict[str, pd.DataFrame]:
    """Conditional modes by grouping factor, DataFrames of levels x columns, from those of the terms by label."""
    out = {}
    for group, members in by_factor(terms).items():
        of_factor = [terms[k] for k in members]
        index = pd.Index(of_factor[0].known_levels, name=group)
        values = np.hstack([term.known_effects(b[term.label]) for term in of_factor])
        out[group] = pd.DataFrame(values, index, factor_columns(of_factor))
    return out


@dataclass(frozen=True, eq=False)
class CoefficientsByGroup:
    """The random coefficients of each top-level group, in statsmodels' order and with its names.

    Attributes
    ----------
    terms : tuple of RandomTerm
    labels : Index (G,)
    sizes : int array (G,)
        Number of coefficients of each group.
    places : list of int arrays (levels, q), one per term
        Where the coefficients of each level stand in the list of all, group by group.
    names : object array (N,)
        Names of the coefficients; None for a column that a group does not have.
    """

    terms: tuple
    labels: pd.Index
    sizes: np.ndarray
    places: list[np.ndarray]
    names: np.ndarray

    def _by_group(self, values: Iterable[np.ndarray]) -> Iterator:
        """For each group its label, its values, which coefficients it has, and their names, one Index for the same."""
        indexes = {}
        for label, value, names in zip(self.labels, values, self._split(self.names), strict=True):
            key = tuple(names)
            if key not in indexes:
                there = np.array([name is not None for name in key], bool)
                indexes[key] = there, pd.Index([name for name in key if name is not None])
            yield label, value, *indexes[key]

    def _split(self, flat):
        return np.split(flat, np.cumsum(self.sizes)[:-1])

    def modes(self, b) -> dict:
        """Conditional modes: dict of label to Series."""
        flat = np.zeros(len(self.names), FLOAT)
        for places, term in zip(self.places, self.terms, strict=True):
            flat[places] = b[term.label]
        groups = self._by_group(self._split(flat))
        return {label: pd.Series(values[there], index) for label, values, there, index in groups}

    def covariances(self, design: Design, fit: Fit, weights: np.ndarray | None = None) -> dict:
        """Conditional covariances given the parameters, by rows of these weights: dict of label to DataFrame."""
        from scipy.sparse import coo_array

        codes, related = [term.codes for term in self.terms], [term.relationship for term in self.terms]
        entries = conditional_covariance(design, self.places, codes, fit, related, weights).tocoo()
        owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        # Related levels have covariances between groups, too.
        within = owner[entries.row] == owner[entries.col]
        entries = coo_array((entries.data[within], (entries.row[within], entries.col[within])), shape=entries.shape)
        group = owner[entries.row]
        first, ends = np.cumsum(self.sizes) - self.sizes, np.cumsum(self.sizes**2)
        row, column = entries.row - first[group], entries.col - first[group]
        flat = np.zeros(ends[-1], FLOAT)
        flat[(ends - self.sizes**2)[group] + row * self.sizes[group] + column] = entries.data
        squares = (part.reshape(q, q) for part, q in zip(np.split(flat, ends[:-1]), self.sizes, strict=True))
        groups = self._by_group(squares)
        return {
            label: pd.DataFrame(matrix[np.ix_(there, there)], index, index) for label, matrix, there, index in groups
        }


def groups(spec, random_names) -> CoefficientsByGroup:
    """Arrange a model's random coefficients by top-level group: terms in the model's order, levels in theirs.

    `random_names` are those of the columns of all terms that are not variance components.
    """
    group_of_row, labels = top_level(spec)
    sizes, within = np.zeros(len(labels), np.int64), []
    for term in spec.terms:
        group = np.zeros(len(term.levels), np.int64)
        group[term.codes] = group_of_row
        order, count = np.argsort(group, kind="stable"), np.bincount(group, minlength=len(labels))
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
        within.append((group, sizes[group] + rank * len(term.columns)))
        sizes = sizes + count * len(term.columns)
    names, taken, places = np.empty(int(sizes.sum()), object), 0, []
    for term, (group, position) in zip(spec.terms, within, strict=True):
        first = (np.cumsum(sizes) - sizes)[group] + position
        places.append(first[:, None] + np.arange(len(term.columns)))
        if term.vc is None:
            names[places[-1]] = np.array(random_names[taken : taken + len(term.columns)], object)
            taken += len(term.columns)
        else:
            inner = term.inner or [term.columns] * len(term.levels)
            of_levels = [[None if name is None else f"{term.vc}[{name}]" for name in level] for level in inner]
            names[places[-1]] = np.array(of_levels, object).reshape(places[-1].shape)
    return CoefficientsByGroup(tuple(spec.terms), labels, sizes, places, names)


def without_rows(spec):
    """The same model without its rows: what predictions of new data need, and no more."""
    none = slice(0, 0)

    def trimmed(term):
        rebuild = term.rebuild
        if rebuild is not None:
            rebuild = replace(rebuild, factor=replace(rebuild.factor, codes=rebuild.factor.codes[none]))
        return replace(term, codes=term.codes[none], Z=term.Z[none], parents=None, inner=None, rebuild=rebuild)

    residual = spec.residual
    if residual is not None:
        series = residual.factor and replace(residual.factor, codes=residual.factor.codes[none])
        counted = residual.counted and replace(residual.counted, codes=residual.counted.codes[none])
        residual = replace(residual, columns=residual.columns[none], places=residual.places[none])
        residual = replace(residual, factor=series, counted=counted)
    response = spec.response
    if response is not None:
        stated = {"dispersion": response.dispersion, "zero": response.zero}
        columns = {k: part and replace(part, columns=part.columns[none]) for k, part in stated.items()}
        response = replace(response, trials=response.trials[none], **columns)
    return replace(
        spec,
        residual=residual,
        response=response,
        y=spec.y[none],
        X=spec.X[none],
        weights=spec.weights[none],
        offset=spec.offset[none],
        index=spec.index[none],
        rows=spec.rows[none],
        frame=None,
        represents=None if spec.represents is None else spec.represents[none],
        groups=None if spec.groups is None else spec.groups[none],
        terms=tuple(trimmed(term) for term in spec.terms),
    )
