"""The pattern of Henderson's equations: which coefficients meet, by their rows or by a sparse inverse relationship."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from jmixed.algebra.ordering import Plan, plan
from jmixed.layout.index import Array, Coupling, static
from jmixed.layout.layout import Layout
from jmixed.runtime.memory import bucket, padded
from jmixed.runtime.precision import FLOAT


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class System:
    """How the equations of all coefficients are eliminated.

    Their entries are those of the prior, then the blocks of each factor's levels, and then those of the pairs of levels
    that meet in a row, in the order of `pairs`.
    """

    plan: Plan
    prior: Array  # (entries,) of the inverse covariance of the coefficients, where their own variances are one
    pairs: tuple[tuple[int, int], ...] = static()
    related: tuple[bool, ...] = static()  # by factor


def system_of(
    layout: Layout,
    couplings: Sequence[Coupling],
    within: Sequence[Sequence[np.ndarray | None]],
    precisions: Sequence[Any],
) -> System:
    """The system of a layout whose factors have sparse inverse relationships, or None."""
    widths = [layout.factor_width(f) for f in range(len(precisions))]
    starts = np.cumsum([0, *(size * width for size, width in zip(layout.levels, widths, strict=True))])
    rows, columns, values = [], [], []
    for f, (size, precision) in enumerate(zip(layout.levels, precisions, strict=True)):
        row, column, value = _prior(size, precision)
        for j in range(widths[f]):
            rows.append(starts[f] + row * widths[f] + j)
            columns.append(starts[f] + column * widths[f] + j)
            values.append(value)
    entries = len(np.concatenate(values))
    size = bucket(entries)
    # Entries that are padding are zeros at the first place.
    prior = padded(np.concatenate(values).astype(FLOAT), size)
    rows, columns = [np.pad(np.concatenate(pieces), (0, size - entries)) for pieces in (rows, columns)]
    rows, columns = [rows], [columns]
    for f, count in enumerate(layout.levels):
        i, j = np.tril_indices(widths[f])
        first = starts[f] + np.arange(count) * widths[f]
        rows.append((first[None] + i[:, None]).ravel())
        columns.append((first[None] + j[:, None]).ravel())
    pairs = {coupling.factors: (coupling.first, coupling.second) for coupling in couplings}
    pairs |= {
        (f, g): (np.arange(len(holder)), holder)
        for f, of_factor in enumerate(within)
        for g, holder in enumerate(of_factor)
        if holder is not None and layout.precedes(f, g)
    }
    for (f, g), (first, second) in pairs.items():
        here = (first < layout.levels[f]) & (second < layout.levels[g])
        left = starts[f] + np.where(here, first, 0)[None] * widths[f] + np.arange(widths[f])[:, None]
        right = starts[g] + np.where(here, second, 0)[None] * widths[g] + np.arange(widths[g])[:, None]
        shape = widths[f], widths[g], len(first)
        rows.append(np.broadcast_to(left[:, None], shape).ravel())
        columns.append(np.broadcast_to(right[None], shape).ravel())
    related = tuple(precision is not None for precision in precisions)
    return System(plan(np.concatenate(rows), np.concatenate(columns), int(starts[-1])), prior, tuple(pairs), related)


def _prior(size, precision):
    """Entries of the lower triangle of a factor's inverse covariance, with ones for levels that are padding."""
    if precision is None:
        diagonal = np.arange(size)
        return diagonal, diagonal, np.ones(size)
    entries = precision.tocoo()
    below = entries.row >= entries.col
    more = np.arange(precision.shape[0], size)
    row, column = (np.concatenate([part[below], more]) for part in (entries.row, entries.col))
    return row, column, np.concatenate([entries.data[below], np.ones(len(more))])
