"""New responses from a mixed model with given parameters."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.errors import DataError


def generator(key: Any) -> np.random.Generator:
    """The stream of random numbers that belongs to a key of JAX; a whole number n stands for ``jax.random.key(n)``.

    Raises DataError for anything else.
    """
    words = np.zeros(0, np.uint32)
    if isinstance(key, int | np.integer) and not isinstance(key, bool):
        if 0 <= key < 2**64:
            words = np.array([int(key) >> 32, int(key) & 0xFFFFFFFF], np.uint32)
    elif isinstance(key, np.ndarray | jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        words = np.asarray(jax.random.key_data(key) if typed else key)
    if words.ndim != 1 or words.dtype != np.uint32 or not len(words):
        raise DataError(f"key is {key!r}; give a seed, a whole number of zero or more, or one key of jax.random.key")
    return np.random.default_rng(words)


class DrawnLevels(Protocol):
    """How levels are related; the fields are those of a relationship on the side of tables."""

    @property
    def size(self) -> int:
        """How many independent numbers their effects are made of."""
        ...

    def drawn(self, normal: np.ndarray) -> np.ndarray:
        """Effects (n, levels, q) from independent ones (n, size, q)."""
        ...


def draw_responses(
    mean: np.ndarray,
    terms: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray, DrawnLevels | None]],
    respond: Callable[[np.ndarray, np.ndarray], np.ndarray],
    numbers: int,
    n: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """Draw n responses (n, nobs) with new random effects.

    Replicates are drawn one after the other, so that calls with the same generator that ask for a few at a time give
    what one call gives. `mean` (nobs,) is the fixed part with the offset, and `respond` makes responses of predictors
    (n, nobs) and so many standard normal `numbers` for each (n, numbers). A term is (codes (nobs,), Z (nobs, q), factor
    (q, q), relationship or None): the level of each row, columns, a square root of the covariance of a level's effects,
    and how levels are related.
    """
    shapes = [
        (int(codes.max()) + 1 if related is None else related.size, len(factor)) for codes, _, factor, related in terms
    ]
    ends = np.cumsum([levels * q for levels, q in shapes] + [numbers])
    draws = np.split(rng.standard_normal((n, ends[-1])), ends[:-1], axis=1)
    predictor = np.tile(mean, (n, 1))
    for (codes, Z, factor, related), (levels, q), normal in zip(terms, shapes, draws[:-1], strict=True):
        effects = normal.reshape(n, levels, q) @ factor.T
        if related is not None:
            effects = related.drawn(effects)
        for k in range(q):
            predictor += effects[:, codes, k] * Z[:, k]
    return respond(predictor, draws[-1])


NUMBERS = 2**20
"""Numbers of simulated responses that are enough to compare those of a model with."""


def how_many(nobs: int, fewest: int, most: int) -> int:
    """How many responses of `nobs` rows to simulate for that: of many rows few tell as much."""
    return int(np.clip(NUMBERS // nobs, fewest, most))
