"""Modes of random effects by damped Newton steps, whatever they are written in.

A place is a pair: effects, as Z b by row or b by group, and their dual, as e with Z b = K e or a with b = Sigma a. Both
move together along a step, so that the prior's part of the objective needs no inverse of Sigma. The data fall into
parts that share no effects; each accepts or rejects its own step, and no part waits for another's.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

INNER = 100
"""Most steps."""
SETTLED = 1e-12
"""Largest decrement of a part below which one more step is the last."""


class Inner(NamedTuple):
    """A search for the modes: where it is, its objective by part, and the next step with its length by part."""

    effects: jax.Array
    dual: jax.Array
    value: jax.Array
    move: jax.Array
    change: jax.Array
    length: jax.Array
    decrement: jax.Array
    steps: jax.Array


def damped_newton(
    objective: Callable[[Any, Any], tuple[Any, Any]],
    direction: Callable[[Any, Any, Any], tuple[Any, Any, Any]],
    effects,
    dual,
    at_entries: Callable[[Any], Any],
) -> Inner:
    """Where the objective is least, from a place or, where that is better, from no effects.

    Parameters
    ----------
    objective : callable
        ``objective(effects, dual)``: by part, the value and the size of what is added up, of which rounding takes its
        part.
    direction : callable
        ``direction(effects, dual, cautious)``: the Newton step of both, and the largest decrement; where a part is
        `cautious`, weights of log densities that are not concave count as zero.
    at_entries : callable
        From what is known by part to the entries of effects and dual.
    """

    def step(search: Inner) -> Inner:
        length = at_entries(search.length)
        effects, dual = search.effects + length * search.move, search.dual + length * search.change
        value, size = objective(effects, dual)
        # A value without bound has a size without bound, beside which it would pass for rounding.
        good = jnp.isfinite(value) & (value <= search.value + 1e-9 * (1 + size))
        chosen = at_entries(good)
        effects, dual = jnp.where(chosen, effects, search.effects), jnp.where(chosen, dual, search.dual)
        move, change, decrement = direction(effects, dual, ~good)
        length = jnp.where(good, jnp.minimum(2 * search.length, 1), search.length / 4)
        value = jnp.where(good, value, search.value)
        return Inner(effects, dual, value, move, change, length, decrement, search.steps + 1)

    # The place is the first trial, from no effects: where it is no better a whole step follows, as where it is.
    none, still = jnp.zeros_like(effects), jnp.zeros_like(dual)
    value, _ = objective(none, still)
    unknown, zero = jnp.full((), jnp.inf, value.dtype), jnp.zeros((), jnp.int32)
    first = Inner(none, still, value, effects / 4, dual / 4, jnp.full_like(value, 4), unknown, zero)
    least = jnp.maximum(SETTLED, 64 * jnp.finfo(value.dtype).eps ** 2)
    search = jax.lax.while_loop(lambda s: ~(s.decrement <= least) & (s.steps < INNER), step, first)
    # The last step is known, and squares the error.
    full = at_entries((search.length >= 1) & (search.decrement <= least))
    effects = jnp.where(full, search.effects + search.move, search.effects)
    return search._replace(effects=effects, dual=jnp.where(full, search.dual + search.change, search.dual))
