"""Rows of crossed factors as they are, with the number of each level: what the iterative way of fitting needs."""

from dataclasses import dataclass, field

import numpy as np

from jmixed.covariance.structure import Structure
from jmixed.errors import ModelError
from jmixed.layout.stack import ModelRows, crossing, structures_of
from jmixed.runtime.precision import FLOAT


@dataclass(frozen=True, eq=False)
class Incidence:
    """The rows of a model whose factors cross; labels are for people.

    Attributes
    ----------
    y, weights, offset : arrays (n,)
    X : array (n, p)
    structures, Z : tuples, by term
        Structures of the covariances, and columns (n, q).
    factors : tuple of tuple of int
        For each factor the terms that share it.
    codes : tuple of int arrays (n,)
        The level of each row, by factor.
    counts : tuple of int
        Levels, by factor.
    labels : tuple of str
        Of the terms.
    totals : (float, float) or None
        Sum of the log weights, and number of rows, where the rows stand for others.
    """

    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    structures: tuple[Structure, ...]
    Z: tuple[np.ndarray, ...]
    factors: tuple[tuple[int, ...], ...]
    codes: tuple[np.ndarray, ...]
    counts: tuple[int, ...]
    labels: tuple[str, ...] = ()
    totals: tuple[float, float] | None = None
    widths: tuple[int, ...] = field(init=False)

    def __post_init__(self):
        widths = tuple(sum(self.structures[t].q for t in members) for members in self.factors)
        object.__setattr__(self, "widths", widths)


def incidence(data: ModelRows) -> Incidence:
    """The rows of a model for the iterative way; a model that it is not for is refused by its reason."""
    crossed = crossing(data)
    if crossed.reason:
        raise ModelError(f"crossed='iterative' is not for this model: {crossed.reason}. Leave crossed= out")
    totals = None
    if data.represents is not None:
        totals = float(data.log_weights), float(np.sum(data.represents))
    return Incidence(
        y=np.asarray(data.y, FLOAT),
        X=data.X,
        weights=np.asarray(data.weights, FLOAT),
        offset=np.asarray(data.offset, FLOAT),
        structures=structures_of(data),
        Z=tuple(term.Z for term in data.terms),
        factors=crossed.factors,
        codes=tuple(data.terms[members[0]].codes for members in crossed.factors),
        counts=tuple(len(data.terms[members[0]].levels) for members in crossed.factors),
        labels=tuple(term.label for term in data.terms),
        totals=totals,
    )
