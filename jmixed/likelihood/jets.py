"""Quantities with their first and second derivatives in entries of psi."""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Jet(NamedTuple):
    """A quantity with its first (a, ...) and second (a, a, ...) derivatives in some of psi's directions."""

    value: jax.Array
    first: jax.Array
    second: jax.Array


def constant(value):
    """A jet without directions."""
    return Jet(value, jnp.zeros((0, *value.shape), value.dtype), jnp.zeros((0, 0, *value.shape), value.dtype))


def term_directions(layout, term, dtype):
    """The derivatives (k, q, q) of a term's Sigma in its entries of psi: constants."""
    structure = layout.terms[term]
    return jnp.asarray(np.stack([structure.direction(k) for k in range(structure.size)]), dtype)


def directions(layout, stage, dtype):
    """The positions in psi that a stage's Sigma depends on, and its derivatives (k, Q, Q) in them: constants."""
    starts = np.cumsum([0, *(s.size for s in layout.terms)])
    own, matrices, offset = [], [], 0
    width = layout.stage_width(stage)
    for factor, slots in layout.stages[stage]:
        inner = offset
        for t in layout.factors[factor]:
            q = layout.terms[t].q
            for k in range(layout.terms[t].size):
                unit = np.zeros((width, width))
                for slot in range(slots):
                    first = inner + slot * layout.factor_width(factor)
                    unit[first : first + q, first : first + q] = layout.terms[t].direction(k)
                own.append(starts[t] + k)
                matrices.append(unit)
            inner += q
        offset += slots * layout.factor_width(factor)
    return np.array(own, int), jnp.asarray(np.stack(matrices), dtype)


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
