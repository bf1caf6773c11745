"""What JAX does not promise to keep: each of its undocumented names stands here, with what is done when it is gone."""

import contextlib
import functools
import importlib
from typing import Any

import jax
import numpy as np


def undocumented(module: str, name: str) -> Any:
    """What a module of JAX has under a name, or None where either is gone."""
    try:
        return getattr(importlib.import_module(module), name, None)
    except ImportError:
        return None


def backends_have_started() -> bool:
    """Whether JAX has started its backends; where it does not tell, whether it has been imported, as it has here."""
    tell = undocumented("jax._src.xla_bridge", "backends_are_initialized")
    return True if tell is None else tell()


def nothing_written() -> Any:
    """Context in which this thread writes nothing into JAX's cache; one without effect where JAX knows no such."""
    state = undocumented("jax._src.config", "persistent_cache_min_compile_time_secs")
    return state(float("inf")) if callable(state) else contextlib.nullcontext()


@functools.cache
def find_lapack() -> None:
    """Have JAX look up LAPACK's routines, which it does when it lowers the first call of one, and not when one runs."""
    prepare = undocumented("jaxlib.lapack", "prepare_lapack_call")
    try:
        prepare("potrf_ffi", np.dtype(float))
    except (TypeError, KeyError):
        jax.jit(jax.lax.linalg.cholesky).lower(np.eye(1))


def look_at_cache_again() -> None:
    """Have JAX look at the options of its cache, which it does at its first compilation only."""
    reset = undocumented("jax.experimental.compilation_cache.compilation_cache", "reset_cache")
    if reset is not None:
        reset()


def serialise(compiled: Any) -> Any:
    """The bytes of an executable, and the trees of its arguments and results; None where JAX or a device cannot."""
    function = undocumented("jax.experimental.serialize_executable", "serialize")
    try:
        return None if function is None else function(compiled)
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError):
        return None


def deserialise(content: bytes, arguments: Any, results: Any) -> Any:
    """The executable with these bytes and trees; None where JAX cannot."""
    function = undocumented("jax.experimental.serialize_executable", "deserialize_and_load")
    return None if function is None else function(content, arguments, results)
