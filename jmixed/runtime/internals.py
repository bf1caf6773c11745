"""What JAX does not promise to keep: each of its undocumented names stands here, with what is done when it is gone."""

import contextlib
import functools
import importlib
import math
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


WAITS = jax.__version_info__ < (0, 12)
"""Whether JAX may divide a stack of matrices among XLA's threads from one of them, which then waits for the others.

As many such calls as there are threads, when nothing puts them in an order, wait for ever: on two cores, two.
"""
DIVIDED = 200_000
"""Operations, by its own count, from which on it does."""
FACTORISATIONS = "cholesky_p", "lu_p", "triangular_solve_p"
"""What our programs ask of LAPACK for whole stacks; it counts at most the cube of the largest side of a matrix."""


def lower(traced: Any) -> Any:
    """Lower a traced program, so that no call of LAPACK is one that JAX divides among threads.

    Larger stacks are taken in pieces, one after the other. Where JAX has no place for that, it lowers as it does.
    """
    parameters = undocumented("jax._src.interpreters.mlir", "LoweringParameters")
    usual = undocumented("jax._src.interpreters.mlir", "_platform_specific_lowerings")
    steps = [undocumented("jax.extend.core.primitives", name) for name in FACTORISATIONS]
    lower_fun = undocumented("jax.interpreters.mlir", "lower_fun")
    if not WAITS or jax.default_backend() != "cpu" or None in (parameters, usual, lower_fun, *steps):
        return traced.lower()
    pieces = functools.partial(_in_pieces, lower_fun)
    rules = tuple((step, functools.partial(pieces, step, usual["cpu"][step].rule)) for step in steps)
    try:
        return traced.lower(_private_parameters=parameters(override_lowering_rules=rules))
    except TypeError:
        return traced.lower()


def _in_pieces(lower_fun: Any, step: Any, usual: Any, context: Any, *operands: Any, **params: Any) -> Any:
    """The rule by which a factorisation of a stack is lowered: as usual, or as a loop over pieces of the stack."""
    shapes = [aval.shape for aval in context.avals_in]
    batch = shapes[0][:-2]
    piece = max((DIVIDED - 1) // max(max(*shape[-2:], 1) for shape in shapes) ** 3, 1)
    if math.prod(batch) <= piece:
        return usual(context, *operands, **params)

    def loop(*stacks):
        flat = [stack.reshape(-1, *stack.shape[-2:]) for stack in stacks]
        found = jax.lax.map(lambda matrices: step.bind(*matrices, **params), flat, batch_size=piece)
        return jax.tree.map(lambda stack: stack.reshape(*batch, *stack.shape[1:]), found)

    return lower_fun(loop, multiple_results=step.multiple_results)(context, *operands)


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
