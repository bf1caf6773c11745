"""A function of arrays by JAX and, step by step, by NumPy."""

import jax
import numpy as np

from jmixed.runtime import interpreter


def both(function, *args):
    """What a function of arrays gives by JAX and by NumPy."""
    with jax.enable_x64(True):
        traced = jax.jit(function).trace(*args)
        steps = interpreter.translated(traced)
        expected = jax.tree.leaves(jax.jit(function)(*args))
    return expected, interpreter.run(steps, args)


def agree(function, *args, rtol=1e-12):
    expected, found = both(function, *args)
    assert len(expected) == len(found)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        np.testing.assert_allclose(ours, np.asarray(theirs), rtol=rtol, atol=rtol)
