"""Pedigrees: the additive relationship of animals from their sires and dams, and its sparse inverse."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.frame import as_frame, unknown_column
from jmixed.runtime.arguments import checked
from jmixed.runtime.precision import FLOAT

UNKNOWN = (0, "0", "", ".", "NA")
"""How files write a parent that is not known, beside missing values."""
DENSE = 10_000
"""Animals of which the whole relationship is made, 0.8 GB."""
TOGETHER = 2**22
"""Entries of the table of relationships that is made at a time."""


@dataclass(frozen=True, eq=False)
class Pedigree:
    """The additive relationship A of the animals of a pedigree, by its inverse.

    Give it to `mixedlm` as it is, ``relationship={"animal": pedigree}``.

    Attributes
    ----------
    labels : Index (N,)
        The animals; parents that have no row of their own among them.
    inverse : sparse array (N, N)
        A^-1, by Henderson's rules.
    inbreeding : Series (N,)
        Inbreeding coefficients, by animal: A's diagonal less one.
    parents : int array (N, 2)
        Position of the sire and the dam of each, -1 where they are not known.
    variances : array (N,)
        Of the Mendelian sampling: what the mean of the parents leaves of A's diagonal.
    """

    labels: pd.Index
    inverse: Any
    inbreeding: pd.Series
    parents: np.ndarray
    variances: np.ndarray

    def __repr__(self) -> str:
        founders = int(np.sum((self.parents < 0).all(axis=1)))
        return f"<Pedigree: {len(self.labels)} animals, {founders} founders, {self.inverse.nnz} entries of A^-1>"

    @cached_property
    def A(self) -> pd.DataFrame:
        """The relationship itself, DataFrame (N, N): twice the coefficients of coancestry.

        Raises `ModelError` for more animals than memory should be filled with; the inverse serves as well.
        """
        size = len(self.labels)
        if size > DENSE:
            raise ModelError(
                f"the relationship of {size:,} animals has {size**2:,} entries; a model takes the pedigree itself, "
                "whose inverse is sparse"
            )
        from scipy.sparse.linalg import splu

        # A = T D T', with T the inverse of I - P.
        shares = splu(_mendelian(self.parents).tocsc(), permc_spec="NATURAL").solve(np.eye(size))
        values = (shares * self.variances) @ shares.T
        return pd.DataFrame((values + values.T) / 2, self.labels, self.labels)


@checked
def pedigree(data: Any, animal: str = "animal", sire: str = "sire", dam: str = "dam") -> Pedigree:
    """The additive relationship of a pedigree's animals, with its sparse inverse.

    Rows may come in any order; a parent that has no row of its own is a founder. Parents that are not known are missing
    values, 0, an empty text, "." or "NA". The inverse is by Henderson (1976, Biometrics 32, 69-83), with inbreeding by
    Quaas (1976, Biometrics 32, 949-953) in the form of Colleau (2002, Genet. Sel. Evol. 34, 409-421).

    Parameters
    ----------
    data : DataFrame
        One row for each animal, or anything that narwhals reads.
    animal : str
        The column of the animals.
    sire : str
        The column of one parent.
    dam : str
        The column of the other one.

    Raises
    ------
    DataError
        A column that is not there; an animal with two rows, without a label, or that is its own ancestor.

    Examples
    --------
    >>> import jmixed as jm
    >>> family = {"animal": ["a", "b", "c", "d"], "sire": [None, None, "a", "a"], "dam": [None, None, "b", "c"]}
    >>> jm.pedigree(family).A.round(2).loc["d"].to_dict()
    {'a': 0.75, 'b': 0.25, 'c': 0.75, 'd': 1.25}
    """
    frame = as_frame(data)
    for name in (animal, sire, dam):
        if name not in frame.columns:
            raise DataError(unknown_column(name, frame.columns, "pedigree"))
    labels, parents = _positions(*(_known_labels(frame[name]) for name in (animal, sire, dam)))
    depth = _generations(labels, parents)
    inbreeding, variances = _inbreeding(parents, depth)
    half = _mendelian(parents)
    from scipy import sparse

    inverse = (half.T @ sparse.diags_array(1 / variances) @ half).tocsr()
    inverse.sum_duplicates()
    return Pedigree(labels, inverse, pd.Series(inbreeding, labels, name="inbreeding"), parents, variances)


def _positions(animals: Any, *parents: Any) -> tuple[pd.Index, np.ndarray]:
    """All labels, and where the parents of each stand among them."""
    if (missing := animals.isna()).any():
        raise DataError(
            f"pedigree: row {int(np.flatnonzero(missing)[0])} has no animal; every row is of one (0, '.', 'NA' and "
            "empty texts stand for parents that are not known, and are no animals: number these from one)"
        )
    animals = animals.infer_objects()
    if animals.duplicated().any():
        twice = animals[animals.duplicated()].tolist()[0]
        raise DataError(
            f"pedigree: the animal {twice!r} has {int((animals == twice).sum())} rows; give one row for each, with its "
            "parents (records belong to the data of the model)"
        )
    known = [_like(animals, parent.dropna().infer_objects()) for parent in parents]
    founders = pd.Index(pd.concat(known).unique()).difference(pd.Index(animals), sort=False)
    labels = pd.Index(founders.tolist() + animals.tolist(), tupleize_cols=False)
    places = np.full((len(labels), 2), -1, np.int64)
    for column, parent in enumerate(known):
        places[len(founders) + parent.index.to_numpy(), column] = labels.get_indexer(pd.Index(parent))
    return labels, places


def _known_labels(column: Any) -> Any:
    """A column as objects, counted from zero, in which nothing stands for what is not known."""
    plain = column.reset_index(drop=True).astype(object)
    return plain.mask(plain.isna() | plain.isin(UNKNOWN), None)


def _like(animals: Any, parents: Any) -> Any:
    """Labels of parents in the type of the animals': a column of whole numbers with gaps is read as fractions."""
    fractions = pd.api.types.is_integer_dtype(animals.dtype) and pd.api.types.is_float_dtype(parents.dtype)
    if fractions and (parents == np.floor(parents)).all():
        return parents.astype(np.int64)
    numeric = pd.api.types.is_numeric_dtype(animals.dtype)
    if len(parents) and numeric != pd.api.types.is_numeric_dtype(parents.dtype):
        kinds = ("numbers", "text") if numeric else ("text", "numbers")
        raise DataError(
            f"pedigree: the animals are {kinds[0]} ({animals.tolist()[0]!r}) and their parents {kinds[1]} "
            f"({parents.tolist()[0]!r}); convert the columns to one type"
        )
    return parents


def _generations(labels: pd.Index, parents: np.ndarray) -> np.ndarray:
    """How many steps each animal is below its furthest founder."""
    depth = np.zeros(len(labels), np.int64)
    for step in range(len(labels) + 1):
        above = np.where(parents >= 0, depth[parents] + 1, 0).max(axis=1)
        if np.array_equal(above, depth):
            return depth
        # A pedigree of n animals has less than n generations; most have few, so that a circle is looked for early.
        if step in (64, len(labels)) and (cycle := _on_a_cycle(parents)) is not None:
            raise DataError(f"pedigree: the animal {labels[cycle]!r} is its own ancestor; look at its parents")
        depth = above
    raise AssertionError("a pedigree without cycles has ended before")


def _on_a_cycle(parents: np.ndarray) -> int | None:
    """An animal that is its own ancestor, if there is one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    size = len(parents)
    child, which = np.nonzero(parents >= 0)
    to = parents[child, which]
    if (itself := child[child == to]).size:
        return int(itself[0])
    graph = coo_array((np.ones(len(child), np.int8), (child, to)), shape=(size, size))
    count, component = connected_components(graph.tocsr(), directed=True, connection="strong")
    sizes = np.bincount(component, minlength=count)
    return int(np.flatnonzero(sizes[component] > 1)[0]) if sizes.max(initial=0) > 1 else None


def _mendelian(parents: np.ndarray) -> Any:
    """I - P, sparse (N, N): an animal's value less the mean of its parents' is its Mendelian sampling."""
    from scipy import sparse

    size = len(parents)
    child, which = np.nonzero(parents >= 0)
    animals = np.arange(size)
    values = np.concatenate([np.ones(size), np.full(len(child), -0.5)]).astype(FLOAT)
    entries = values, (np.concatenate([animals, child]), np.concatenate([animals, parents[child, which]]))
    return sparse.csr_array(entries, shape=(size, size))


def _inbreeding(parents: np.ndarray, depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Inbreeding coefficients, and variances of the Mendelian sampling, (N,).

    An animal's coefficient is half the relationship of its parents. With A = T D T' a column of A is two solutions with
    I - P, among the parents that are above: a column for each of the sires, or of the dams where these are fewer.
    """
    size = len(parents)
    inbreeding, variances = np.zeros(size, FLOAT), np.ones(size, FLOAT)
    used = np.unique(parents[parents >= 0])
    used = used[np.argsort(depth[used], kind="stable")]
    rank = np.full(size + 1, -1, np.int64)
    rank[used] = np.arange(len(used))
    above, levels = rank[parents[used]], depth[used]
    half = _mendelian(above)
    for generation in range(1, int(depth.max(initial=0)) + 1):
        here = np.flatnonzero(depth == generation)
        both = here[(parents[here] >= 0).all(axis=1)]
        if len(both):
            count = int(np.searchsorted(levels, generation))
            pairs = rank[parents[both]]
            inbreeding[both] = _relationships(half[:count, :count], variances[used[:count]], pairs) / 2
        known = np.where(parents[here] >= 0, 1 + inbreeding[parents[here]], 0.0)
        variances[here] = 1 - known.sum(axis=1) / 4
    return inbreeding, variances


def _relationships(half: Any, variances: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """A at pairs (k, 2) of animals, with half = I - P in an order in which parents come first."""
    from scipy.sparse.linalg import spsolve_triangular

    side = int(len(np.unique(pairs[:, 0])) > len(np.unique(pairs[:, 1])))
    columns, place = np.unique(pairs[:, side], return_inverse=True)
    out, size = np.empty(len(pairs), FLOAT), len(variances)
    upper = half.T.tocsr()
    for start in range(0, len(columns), max(1, TOGETHER // size)):
        part = columns[start : start + max(1, TOGETHER // size)]
        unit = np.zeros((size, len(part)), FLOAT)
        unit[part, np.arange(len(part))] = 1
        shares = spsolve_triangular(upper, unit, lower=False, unit_diagonal=True)
        related = spsolve_triangular(half, variances[:, None] * shares, lower=True, unit_diagonal=True)
        mine = (place >= start) & (place < start + len(part))
        out[mine] = related[pairs[mine, 1 - side], place[mine] - start]
    return out
