"""The one place that names the working precision: 64-bit floats on the side that people call."""

import functools
from collections.abc import Callable
from typing import TypeVar, cast

import jax
import numpy as np

from jmixed.runtime.forks import refuse_fork

FLOAT = np.float64
F = TypeVar("F", bound=Callable)


def double_precision():
    """Context in which JAX computes in 64 bits, in this thread only; no global flag is touched."""
    return jax.enable_x64(True)


def exact_products(function: F) -> F:
    """The function with products of 32-bit floats in 32 bits, where accelerators would round their factors to fewer.

    Where its process was forked and nothing can be computed, it is refused.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        refuse_fork()
        with jax.default_matmul_precision("highest"):
            return function(*args, **kwargs)

    return cast(F, call)
