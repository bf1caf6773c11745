"""Sums, in the form that compiles to the fewest steps: of a few arrays, and over rows a block at a time."""

import functools
import operator
from typing import Any

import jax
import numpy as np

from jmixed.runtime.device import on_cpu

UNROLLED = 4
"""Largest order that is factored by unrolled scalar code; larger matrices go to LAPACK."""


def add_up(terms) -> jax.Array:
    """The sum of at least one array, without a zero to start from."""
    return functools.reduce(operator.add, terms)


def take(a, *index):
    """``a[index]`` for constant indices within bounds, one for each axis: one step, where indexing makes ten of it.

    The steps of a program are what it costs to compile it, and to read it from a cache. Of numpy's arrays these are the
    last axes.
    """
    if isinstance(a, np.ndarray):
        return a[(..., *index)]
    axes = tuple(range(a.ndim))
    numbers = jax.lax.GatherDimensionNumbers(offset_dims=(), collapsed_slice_dims=axes, start_index_map=axes)
    where = np.stack(np.broadcast_arrays(*index), axis=-1).astype(np.int32)
    return jax.lax.gather(a, where, numbers, (1,) * a.ndim, mode=jax.lax.GatherScatterMode.PROMISE_IN_BOUNDS)


def diagonal(a):
    """The diagonal of a matrix (q, q)."""
    return take(a, np.arange(a.shape[0]), np.arange(a.shape[0]))


BLOCK = 1024
"""Small matrices of a long stack that a CPU works on at a time, so that what is made of them stays in cache."""


SHORT = 128
"""Small matrices of a stack up to which a sum is one step: written out it would be faster, and longer to compile."""


MANY = 64
"""Blocks of rows from which on loops over them, which take longer to compile, save more than that."""


def is_long(length: int, blocks: int = 4) -> bool:
    """Whether a stack is as long as so many blocks; the buckets of such sizes are multiples of a block."""
    return length >= blocks * BLOCK and length % BLOCK == 0


def in_blocks(length: int, blocks: int = 4) -> bool:
    """Whether a stack of this length is worked on in blocks. An accelerator would wait for one after the other."""
    return on_cpu() and is_long(length, blocks)


def sum_in_blocks(function, arrays, constants=(), axis=-1, blocks=4) -> Any:
    """``function(arrays, constants)``, sums over an axis of all arrays: a block of it at a time from so many blocks on.

    A function of many steps would otherwise write each step's long arrays to memory and read them again. Derivatives
    are those of the function itself, because the reverse of a loop over blocks would touch all of each array each time.
    """
    length = jax.tree.leaves(arrays)[0].shape[axis]
    if not in_blocks(length, blocks):
        return function(arrays, constants)

    @jax.custom_jvp
    def total(arrays, constants):
        def block(k):
            pieces = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, k * BLOCK, BLOCK, axis), arrays)
            return function(pieces, constants)

        def add_block(k, sums):
            return jax.tree.map(operator.add, sums, block(k))

        return jax.lax.fori_loop(1, length // BLOCK, add_block, block(0))

    @total.defjvp
    def tangents(primals, tangents):
        return total(*primals), jax.jvp(function, primals, tangents)[1]

    return total(arrays, constants)


def less(value, terms):
    """The value less each of the terms."""
    return functools.reduce(operator.sub, terms, value)


def repeat(count, body, carry):
    """`fori_loop`, written out when it is short."""
    if count > UNROLLED:
        return jax.lax.fori_loop(0, count, body, carry)
    for k in range(count):
        carry = body(k, carry)
    return carry
