"""What JAX does not promise to keep: each of its undocumented names stands here, with what is done when it is gone."""

import contextlib
import functools
import importlib
import secrets
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


NEW_TO_JAX = "xla_debug_buffer_assignment_show_max"
"""An option of XLA that says how much to print when memory is assigned, and changes nothing about a program."""


def compile_afresh(lowered: Any) -> tuple[Any, bool]:
    """Compile past JAX's own cache; and whether the executable can be written whole.

    One that was read from that cache cannot. JAX looks programs up by the options they are compiled with, among others:
    a number that it has never seen makes this a new one. No option of the process is touched.
    """
    state = undocumented("jax._src.config", "persistent_cache_min_compile_time_secs")
    # In this context this thread writes nothing into JAX's cache.
    silent: Any = state(float("inf")) if callable(state) else contextlib.nullcontext()
    with silent:
        try:
            return lowered.compile(compiler_options={NEW_TO_JAX: 16 + secrets.randbelow(2**30)}), True
        except jax.errors.JaxRuntimeError as error:
            if NEW_TO_JAX not in str(error):
                raise
    return lowered.compile(), False


@functools.cache
def find_lapack() -> None:
    """Have JAX look up LAPACK's routines, which it does when it lowers the first call of one, and not when one runs."""
    prepare = undocumented("jaxlib.lapack", "prepare_lapack_call")
    try:
        prepare("potrf_ffi", np.dtype(float))
    except (TypeError, KeyError):
        jax.jit(jax.lax.linalg.cholesky).lower(np.eye(1))


def steps_of(traced: Any) -> Any:
    """The steps of a traced program, without those that JAX writes out as others; None where JAX does not tell."""
    return getattr(getattr(traced, "lojax", traced), "jaxpr", None)


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
