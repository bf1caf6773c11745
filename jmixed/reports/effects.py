"""Random effects of a fit: conditional modes by factor and by group, and their conditional covariances."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pandas as pd

from jmixed.covariance.scales import preconditioner
from jmixed.errors import ModelError
from jmixed.reports.names import structure
from jmixed.runtime.precision import FLOAT


class GroupSizes(NamedTuple):
    """How many groups a factor has, and how many rows they have."""

    count: int
    smallest: int
    largest: int
    mean: float


def group_sizes(spec) -> dict[str, GroupSizes]:
    """Sizes of the top-level groups, if the model has them, else of the levels of each grouping factor."""
    codes = {term.group: term.codes for term in spec.terms}
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
    """The top-level group of each row, as codes (n,) and labels in sorted order.

    Raises
    ------
    ModelError
        When the model has several grouping factors and no ``groups``.
    """
    if spec.groups is not None:
        codes, labels = pd.factorize(spec.groups, sort=True)
        return codes.astype(np.int64), pd.Index(labels)
    if not has_top_level(spec):
        raise ModelError(
            f"this model has several grouping factors, {list(by_factor(spec.terms))}: random effects are not listed "
            "by group; use result.ranef(), which has one table for each factor"
        )
    return spec.terms[0].codes.astype(np.int64), pd.Index(spec.terms[0].levels)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Sets of random coefficients that share no row with another set: their joint covariance is block diagonal.

    Attributes
    ----------
    count : int
        Number of blocks.
    rows : int array (n,)
        Block of each row of the data.
    block : tuple of int arrays (L,), one per term
        Block of each level.
    position : tuple of int arrays (L,), one per term
        Place of a level's first coefficient within its block. Terms follow each other in the model's order, levels in
        theirs.
    size : int array (count,)
        Number of coefficients of each block.
    """

    count: int
    rows: np.ndarray
    block: tuple[np.ndarray, ...]
    position: tuple[np.ndarray, ...]
    size: np.ndarray


def blocks_of_rows(terms, rows, count: int) -> Blocks:
    """Arrange the coefficients in given blocks of rows; every level must occur in one block only.

    Parameters
    ----------
    terms : sequence of RandomTerm
    rows : int array (n,)
        Block of each row, 0..count-1.
    count : int
    """
    size = np.zeros(count, np.int64)
    block, position = [], []
    for term in terms:
        of_level = np.zeros(len(term.levels), np.int64)
        of_level[term.codes] = rows
        order = np.argsort(of_level, kind="stable")
        per_block = np.bincount(of_level, minlength=count)
        rank = np.empty(len(order), np.int64)
        rank[order] = np.arange(len(order)) - np.repeat(np.cumsum(per_block) - per_block, per_block)
        block.append(of_level)
        position.append(size[of_level] + rank * len(term.columns))
        size = size + per_block * len(term.columns)
    return Blocks(count, rows, tuple(block), tuple(position), size)


def block_covariances(terms, blocks: Blocks, weights, covariances, sigma: float) -> list[np.ndarray]:
    """Conditional covariance of the random coefficients of each block, given the parameters.

    With D the prior covariance relative to sigma^2 and C = Z'WZ it is ``sigma^2 (I + D C)^-1 D``, which asks for no
    inverse of D and so holds at a singular fit. It is computed for columns Z T that are orthogonal over all rows: far
    from a slope's origin D would lose its digits.

    Parameters
    ----------
    terms : sequence of RandomTerm
    blocks : Blocks
    weights : array (n,)
    covariances : dict of arrays (q, q), by the term's label
    sigma : float

    Returns
    -------
    list of arrays (k, k), one per block
    """
    ends = np.cumsum(blocks.size**2)
    base = ends - blocks.size**2
    C, D, T = (np.zeros(ends[-1], FLOAT) for _ in range(3))
    bases = [preconditioner(structure(term), term.Z, weights, len(weights)) for term in terms]
    columns = [term.Z @ basis for term, basis in zip(terms, bases, strict=True)]
    width = blocks.size[blocks.rows]
    places = [blocks.position[t][term.codes] for t, term in enumerate(terms)]
    for t, first in enumerate(terms):
        inverse = np.linalg.inv(bases[t])
        relative = inverse @ covariances[first.label] @ inverse.T / sigma**2
        own_width, own_base = blocks.size[blocks.block[t]], base[blocks.block[t]]
        for i in range(len(first.columns)):
            for j in range(len(first.columns)):
                place = own_base + (blocks.position[t] + i) * own_width + blocks.position[t] + j
                D[place], T[place] = relative[i, j], bases[t][i, j]
            for s, second in enumerate(columns):
                for j in range(second.shape[1]):
                    place = base[blocks.rows] + (places[t] + i) * width + places[s] + j
                    C += np.bincount(place, weights * columns[t][:, i] * second[:, j], minlength=len(C))
    out: list[np.ndarray] = [np.empty((0, 0))] * blocks.count
    for k in np.unique(blocks.size):
        members = np.flatnonzero(blocks.size == k)
        index = base[members, None] + np.arange(k * k)
        prior, cross = D[index].reshape(-1, k, k), C[index].reshape(-1, k, k)
        back = T[index].reshape(-1, k, k)
        solved = sigma**2 * back @ np.linalg.solve(np.eye(k) + prior @ cross, prior) @ back.transpose(0, 2, 1)
        for member, matrix in zip(members, (solved + solved.transpose(0, 2, 1)) / 2, strict=True):
            out[member] = matrix
    return out


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
    """Conditional modes by grouping factor: DataFrames of levels x columns.

    Parameters
    ----------
    terms : sequence of RandomTerm
    b : dict of arrays (L, q), by the term's label
    """
    out = {}
    for group, members in by_factor(terms).items():
        own = [terms[k] for k in members]
        index = pd.Index(own[0].levels, name=group)
        out[group] = pd.DataFrame(np.hstack([b[term.label] for term in own]), index, factor_columns(own))
    return out


@dataclass(frozen=True, eq=False)
class Groups:
    """The random coefficients of each top-level group, in statsmodels' order and with its names.

    Attributes
    ----------
    labels : Index (G,)
    blocks : Blocks
    names : object array (sum of sizes,)
        Names of the coefficients, block by block; None for a column that a group does not have.
    """

    terms: tuple
    labels: pd.Index
    blocks: Blocks
    names: np.ndarray

    def _split(self, flat):
        return np.split(flat, np.cumsum(self.blocks.size)[:-1])

    def _labelled(self):
        """For each group which coefficients it has, and their names; groups with the same names share one Index."""
        indexes = {}
        for names in self._split(self.names):
            key = tuple(names)
            if key not in indexes:
                there = np.array([name is not None for name in key], bool)
                indexes[key] = there, pd.Index([name for name in key if name is not None])
            yield indexes[key]

    def modes(self, b) -> dict:
        """Conditional modes: dict of label to Series."""
        flat = np.zeros(len(self.names), FLOAT)
        for places, term in zip(_places(self.terms, self.blocks), self.terms, strict=True):
            flat[places] = b[term.label]
        groups = zip(self.labels, self._split(flat), self._labelled(), strict=True)
        return {label: pd.Series(values[there], index) for label, values, (there, index) in groups}

    def covariances(self, weights, fit) -> dict:
        """Conditional covariances given the parameters: dict of label to DataFrame."""
        found = block_covariances(self.terms, self.blocks, weights, fit.covariances, fit.sigma)
        groups = zip(self.labels, found, self._labelled(), strict=True)
        return {
            label: pd.DataFrame(matrix[np.ix_(there, there)], index, index) for label, matrix, (there, index) in groups
        }


def _places(terms, blocks):
    """For each term the places (L, q) of its coefficients in the list of all, block by block."""
    base = np.cumsum(blocks.size) - blocks.size
    return [
        (base[block] + position)[:, None] + np.arange(len(term.columns))
        for term, block, position in zip(terms, blocks.block, blocks.position, strict=True)
    ]


def groups(spec, random_names) -> Groups:
    """Arrange a model's random coefficients by top-level group.

    Parameters
    ----------
    spec : ModelData
    random_names : sequence of str
        Names of the columns of all terms that are not variance components.

    Raises
    ------
    ModelError
        When the model has several grouping factors and no ``groups``.
    """
    rows, labels = top_level(spec)
    blocks = blocks_of_rows(spec.terms, rows, len(labels))
    names = np.empty(int(blocks.size.sum()), object)
    taken = 0
    for term, places in zip(spec.terms, _places(spec.terms, blocks), strict=True):
        if term.vc is None:
            names[places] = np.array(random_names[taken : taken + len(term.columns)], object)
            taken += len(term.columns)
        else:
            inner = term.inner or [term.columns] * len(term.levels)
            own = [[None if name is None else f"{term.vc}[{name}]" for name in level] for level in inner]
            names[places] = np.array(own, object).reshape(places.shape)
    return Groups(tuple(spec.terms), labels, blocks, names)


def without_rows(spec):
    """The same model without its rows: what predictions of new data need, and no more.

    Parameters
    ----------
    spec : ModelData

    Returns
    -------
    ModelData
    """
    none = slice(0, 0)

    def trimmed(term):
        rebuild = term.rebuild
        if rebuild is not None:
            rebuild = replace(rebuild, factor=replace(rebuild.factor, codes=rebuild.factor.codes[none]))
        return replace(term, codes=term.codes[none], Z=term.Z[none], parents=None, inner=None, rebuild=rebuild)

    return replace(
        spec,
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
