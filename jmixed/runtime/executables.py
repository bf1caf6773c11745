"""Whole programs on disk: a later process neither traces nor lowers nor compiles them again.

JAX's own cache saves compiling alone; tracing and lowering a fit take as long again. The files belong to one version of
everything that goes into a program, and to one kind of processor.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jmixed.runtime import internals
from jmixed.runtime.files import is_own, seal, seal_holds, write_whole

Kind = tuple[tuple[int, ...], str, bool]


def call_from(directory: Path, jitted: Any, name: str, options: Any, static: dict, args: tuple, kwargs: dict):
    """Call a program, which `name` tells from others, by its executable: one in memory, else on disk, else a new one.

    `options` are those of XLA it is compiled with, `static` the arguments by keyword that are part of the program.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    if jax.device_count() > 1 or not all(isinstance(leaf, ARRAYS) and _is_concrete(leaf) for leaf in leaves):
        return jitted(*args, **kwargs, **static)
    key = (name, tree, tuple(static.items()), tuple(map(_kind, leaves)), np.dtype(jax.dtypes.canonicalize_dtype(float)))
    if (executable := _memory.get((directory, key))) is None:
        text = repr((_versions(), options, *key))
        path = directory / f"jmixed-{hashlib.sha256(text.encode()).hexdigest()}.program"
        executable = _read(path, tree)
        if executable is None:
            executable, is_whole = internals.compile_afresh(jitted.lower(*args, **kwargs, **static))
            if is_whole:
                _write(path, executable, tree)
        _memory[directory, key] = executable
    return executable(*args, **kwargs)


def count() -> int:
    """How many executables this process holds."""
    return len(_memory)


def forget() -> None:
    """Free the executables that this process holds; those on disk stay."""
    _memory.clear()


ARRAYS = (np.ndarray, np.generic, jax.Array, bool, int, float)
_memory: dict[Any, Any] = {}


def _is_concrete(leaf) -> bool:
    return not isinstance(leaf, Tracer)


def _kind(leaf) -> Kind:
    """Shape, type and weakness of type: what a program depends on."""
    weak = isinstance(leaf, (bool, int, float)) and not isinstance(leaf, np.generic)
    return np.shape(leaf), str(getattr(leaf, "dtype", type(leaf))), weak or getattr(leaf, "weak_type", False)


def _read(path: Path, tree):
    """The executable in a file; None where there is none, or none that can be used.

    A program that is damaged, or that somebody else has put there, must not even be looked into.
    """
    try:
        with path.open("rb") as file:
            if not (is_own(path.parent.stat()) and is_own(os.fstat(file.fileno()))):
                return None
            kept = file.read()
        if not seal_holds(kept):
            return None
        content, example = pickle.loads(kept)
        internals.find_lapack()
        return internals.deserialise(content, tree, jax.tree.structure(example))
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, ImportError):
        return None
    except (pickle.UnpicklingError, jax.errors.JaxRuntimeError):
        return None


def _write(path: Path, compiled, tree) -> None:
    """Keep an executable. One that cannot be kept is no error: it works all the same."""
    serialised = internals.serialise(compiled)
    if serialised is None or serialised[1] != tree:
        return
    content, _, results = serialised
    example = jax.tree.unflatten(results, range(results.num_leaves))
    with contextlib.suppress(OSError):
        if is_own(path.parent.stat()):
            write_whole(path, seal(pickle.dumps((content, example))), mode=0o600)


@functools.cache
def _versions() -> str:
    """Everything besides the call itself that a program depends on."""
    processor = Path("/proc/cpuinfo")
    flags = (
        {line for line in processor.read_text().splitlines() if line[:5] in ("flags", "model", "Featu")}
        if (processor.exists())
        else {platform.processor()}
    )
    # platform.platform() starts a process to ask for more.
    system = platform.system(), platform.release(), platform.machine()
    machine = system, jax.default_backend(), jax.devices()[0].device_kind, os.cpu_count(), sorted(flags)
    files = sorted(_sources(os.path.dirname(__file__)))
    return repr((jax.__version__, importlib.metadata.version("jaxlib"), sys.version, machine, files))


def _sources(folder: str, inside: str = ""):
    """Path, size and time of every module of the package."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _sources(entry.path, f"{inside}{entry.name}/")
        elif entry.name.endswith(".py"):
            status = entry.stat()
            yield inside + entry.name, status.st_size, status.st_mtime_ns
