"""Quantities with their first and second derivatives in entries of psi."""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import add_up
from jmixed.covariance.structure import split
from jmixed.likelihood.stages import places


class Jet(NamedTuple):
    """A quantity with its first (a, ...) and second (a, a, ...) derivatives in some of psi's directions."""

    value: jax.Array
    first: jax.Array
    second: jax.Array


def constant(value):
    """A jet without directions."""
    return Jet(value, jnp.zeros((0, *value.shape), value.dtype), jnp.zeros((0, 0, *value.shape), value.dtype))


def term_directions(layout, term, psi):
    """First and second derivatives (k, q, q) and (k, k, q, q) of a term's Sigma in its entries of psi (m,).

    The first are constants of numpy, and the second None, where Sigma is linear in them.
    """
    structure, entries = layout.terms[term], split(layout.terms, psi)[term]
    bends = structure.bends(entries)
    first = np.asarray(structure.directions(), entries.dtype) if bends is None else structure.directions(entries)
    return first, bends


def directions(layout, stage, psi):
    """The positions in psi that a stage's Sigma depends on, and its derivatives in them, (k, Q, Q) and (k, k, Q, Q).

    The second are None where Sigma is linear in psi.
    """
    starts = np.cumsum([0, *(s.size for s in layout.terms)])
    width, positions, matrices, bends = layout.stage_width(stage), [], [], []
    for place in places(layout, stage):
        first, second = term_directions(layout, place.term, psi)
        columns = np.eye(width, dtype=psi.dtype)[place.columns()]
        positions.append(starts[place.term] + np.arange(len(first)))
        matrices.append(_along_diagonal(first, columns))
        bends.append(None if second is None else _along_diagonal(second, columns))
    if all(bend is None for bend in bends):
        return np.concatenate(positions), jnp.concatenate(matrices), None
    return np.concatenate(positions), jnp.concatenate(matrices), on_diagonal(bends, [len(part) for part in positions])


def on_diagonal(tables, sizes):
    """Tables (k, k, ...) of several terms along the diagonal of one, with zeros for a term that has None."""
    ends = np.cumsum(sizes)
    pads = [(end - size, ends[-1] - end) for size, end in zip(sizes, ends, strict=True)]
    there = [(table, pad) for table, pad in zip(tables, pads, strict=True) if table is not None]
    return add_up(jnp.pad(table, (pad, pad, (0, 0), (0, 0))) for table, pad in there)


def _along_diagonal(blocks, columns):
    """The same block (..., q, q) at several places (slots, q, Q) of the diagonal of matrices (..., Q, Q)."""
    einsum = np.einsum if isinstance(blocks, np.ndarray) else jnp.einsum
    return einsum("sir,...ij,sjt->...rt", columns, blocks, columns)


def add_to(total: Jet, part: Jet, active) -> Jet:
    """Add a jet in the active directions to one in all directions."""
    if np.array_equal(active, np.arange(total.first.shape[0])):
        return jax.tree.map(operator.add, total, part)
    return Jet(
        total.value + part.value,
        total.first.at[active].add(part.first),
        total.second.at[active[:, None], active[None]].add(part.second),
    )


def subtract(old: Jet, part: Jet) -> Jet:
    """Subtract a jet; the old one may lack the newest directions."""
    missing = part.first.shape[0] - old.first.shape[0]
    pad = [(0, missing)] + [(0, 0)] * old.value.ndim
    return Jet(
        old.value - part.value,
        jnp.pad(old.first, pad) - part.first,
        jnp.pad(old.second, [(0, missing), *pad]) - part.second,
    )
