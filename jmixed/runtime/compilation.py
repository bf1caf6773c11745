"""Less waiting for compilation: programs that compile quickly, and a cache that keeps them on disk."""

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jmixed.errors import warn
from jmixed.runtime import blas, executables, internals, waiting
from jmixed.runtime.arguments import checked, out_of_memory
from jmixed.runtime.files import is_own
from jmixed.runtime.forks import refuse_fork

OLDER = jax.__version_info__ < (0, 12)
QUICK: Any = {"xla_cpu_use_fusion_emitters": False} if OLDER else {}
"""XLA's older code generator for the CPU, while there is one: half the time to compile a fit, and no slower program."""
PRODUCTS: Any = {"xla_cpu_experimental_ynn_fusion_type": ""} if OLDER else {}
"""Small products by that generator, too: a library's take a sixth longer to compile and to load, and are no faster."""
BRIEF: Any = {**QUICK, **PRODUCTS, "xla_backend_optimization_level": 0, "xla_cpu_parallel_codegen_split_count": 1}
"""Without LLVM's optimisations, for small problems: a third of that time again, and a fifth of a millisecond a fit."""

_options_of_jax: Any = jax.config
"""A single one is an attribute that type checkers do not know; the dict of all takes longer to make than a call."""


@checked
def enable_compilation_cache(path: str | os.PathLike | None = None) -> Path | None:
    """Keep all compiled programs of the process on disk, those of JAX too, and reuse them in later processes.

    jmixed's own programs are kept without this call: whole, so that a later process does not even trace them. This
    call says where, or that nothing is kept, and sets options of JAX itself, so that every JAX program of the process
    uses the directory; nothing else in jmixed does. Who can write to the directory can have programs run as you: one
    that belongs to somebody else, or that others can write to, is not used, and a warning says so.

    Parameters
    ----------
    path : path, optional
        Directory of the cache. By default the environment variable ``JMIXED_CACHE``, else ``jmixed`` in the user's
        cache directory. The word ``off``, given here or in ``JMIXED_CACHE``, leaves JAX as it is, and jmixed keeps
        nothing.

    Returns
    -------
    Path or None
        The directory in use, or None when the cache is off or others can write to the directory.

    Raises
    ------
    OSError
        When the directory cannot be made, or none is given and the user has no home directory.

    Examples
    --------
    >>> import jmixed as jm
    >>> jm.enable_compilation_cache("off") is None
    True
    """
    choice = str(path) if path is not None else os.environ.get("JMIXED_CACHE", "")
    try:
        directory = _made(choice)
    except RuntimeError as error:
        raise FileNotFoundError(f"{error}: set HOME, or JMIXED_CACHE to a directory or to off") from error
    _kept[:] = [directory]
    if directory is None:
        return None
    if not is_own(directory.stat()):
        _kept[:] = [None]
        warn(
            f"nothing is kept in {directory}, for other users can write to it and so have programs run as you: give "
            f"a directory of your own that they cannot write to (chmod go-w {directory}), or none, for the default",
            UserWarning,
        )
        return None
    jax.config.update("jax_compilation_cache_dir", str(directory))
    # A mixed model is many programs of a tenth of a second: by default JAX would store none of them.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    internals.look_at_cache_again()
    return directory


def kept_directory() -> Path | None:
    """Where jmixed keeps its programs; None where it keeps none, because it shall not or cannot."""
    if not _kept:
        try:
            directory = _made(os.environ.get("JMIXED_CACHE", ""))
            usable = directory is not None and is_own(directory.stat())
        except (OSError, RuntimeError):
            # Nobody has asked for it: there is nothing to complain of.
            directory, usable = None, False
        _kept[:] = [directory if usable else None]
    return _kept[-1]


def _made(choice: str) -> Path | None:
    """The directory that a path, or none, stands for, which is made if it is not there; None for the word `off`."""
    if choice.strip().lower() in waiting.OFF:
        return None
    directory = Path(choice).expanduser() if choice.strip() else default_directory()
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not choice.strip():
        # Made before under a mask that lets a group write: it is the user's own, to be closed.
        with contextlib.suppress(OSError):
            directory.chmod(directory.stat().st_mode & 0o755)
    return directory


def program(
    function: Callable | None = None,
    *,
    static_argnames=(),
    brief: Callable | None = None,
    design: executables.Design | None = None,
) -> Any:
    """`jax.jit` with the options of XLA under which a fit compiles soonest, where this XLA knows them.

    Static arguments are given by keyword. `brief` tells from the shapes of the arguments whether the problem is so
    small that optimised code would save less than compiling it costs; `design` gives the arrays of the arguments that
    tell one design from another, for a program that loops are likely to call for the same one.
    """
    if function is None:
        return functools.partial(program, static_argnames=static_argnames, brief=brief, design=design)

    name = f"{function.__module__}.{function.__qualname__}"

    @functools.cache
    def compiled(small):
        @functools.wraps(function)
        def traced(*args, **kwargs):
            # JAX runs this when it compiles the program, and at no other time.
            _clock.traces = _traces() + 1
            waiting.begins()
            return function(*args, **kwargs)

        _compiled.append(compiled)
        return jax.jit(traced, static_argnames=static_argnames, compiler_options=_options(small))

    def call_compiled(small, args, kwargs):
        jitted = compiled(small)
        known = _traces() + executables.made()
        static = {key: kwargs[key] for key in static_argnames if key in kwargs}
        others = {key: value for key, value in kwargs.items() if key not in static}
        out = executables.call_from(kept_directory(), jitted, name, _options(small), static, args, others, design)
        return out, _traces() + executables.made() > known

    @functools.wraps(function)
    def call(*args, **kwargs):
        if _options_of_jax.jax_disable_jit:
            # Step by step the programs would meet NumPy's arrays where they count on JAX's.
            with jax.disable_jit(False):
                return call(*args, **kwargs)
        refuse_fork()
        started = time.perf_counter()
        small = brief is not None and brief(*args, **kwargs)
        narrow = THREADED < _width(args) <= NARROW
        try:
            with blas.one_thread() if narrow else contextlib.nullcontext():
                out, afresh = call_compiled(small, args, kwargs)
                if narrow:
                    jax.block_until_ready(out)
        except jax.errors.JaxRuntimeError as error:
            if (refusal := out_of_memory(error, function.__name__)) is not None:
                raise refusal from error
            if not _refuse_options(str(error)):
                raise
            compiled.cache_clear()
            return call(*args, **kwargs)
        finally:
            waiting.ends()
        if afresh:
            _was_made(started)
        return out

    return call


def _was_made(started: float) -> None:
    """Count the time since then as compiling; and have programs forgotten where there are too many."""
    _clock.seconds = seconds_compiling() + time.perf_counter() - started
    if _memory_maps() > MOST_MAPS * _memory_maps_allowed():
        forget_programs()


THREADED, NARROW = 8, 256
"""Rows of the matrices that a program factors: up to the first OpenBLAS takes one thread by itself, up to the second
one is at least as quick as several."""


def _width(args: tuple) -> int:
    """Rows of the largest matrix that a program of these arguments factors, as far as a layout tells."""
    return max((getattr(getattr(arg, "layout", None), "widest", 0) for arg in args), default=0)


_clock = threading.local()
_kept: list[Path | None] = []
"""The directory in which whole programs are kept, or None for nowhere; empty until somebody wants to know."""
_compiled: list[Any] = []
"""For every function made by `program` that has been called, the cache of what it was compiled to."""

MOST_MAPS = 0.5
"""Share of the memory maps that Linux allows a process at which compiled programs are forgotten."""


def forget_programs() -> None:
    """Free all compiled programs of jmixed's. Those in use are compiled again, or read from the disk.

    Every program holds some hundred memory maps. Linux allows a process 65,530 in all, and LLVM ends the process that
    asks for more: fits of a few hundred different shapes do.
    """
    while _compiled:
        _compiled.pop().cache_clear()
    executables.forget()


def _memory_maps() -> int:
    """Memory maps of this process; 0 where that is not told."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return 0


@functools.cache
def _memory_maps_allowed() -> float:
    """Memory maps that a process may have; without end where that is not told."""
    try:
        return int(Path("/proc/sys/vm/max_map_count").read_text())
    except (OSError, ValueError):
        return float("inf")


def _traces() -> int:
    """How often this thread has traced a program."""
    return getattr(_clock, "traces", 0)


def seconds_compiling() -> float:
    """Seconds that this thread has waited so far for programs to be traced and compiled, or read from the cache."""
    return getattr(_clock, "seconds", 0.0)


def _options(small):
    """Options for a small problem or any, but those that this XLA does not know; none off the CPU."""
    if jax.default_backend() != "cpu":
        return None
    return {name: value for name, value in (BRIEF if small else QUICK).items() if name not in _unknown} or None


_unknown: set[str] = set()
"""Options that this XLA has refused."""


def _refuse_options(message):
    """Whether a message of XLA's refuses an option; it is left out from now on."""
    named = {name for name in BRIEF if f"'{name}'" in message} - _unknown
    _unknown.update(named)
    return bool(named)


def default_directory() -> Path:
    """The directory ``jmixed`` inside the platform's cache directory for this user."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "jmixed"
