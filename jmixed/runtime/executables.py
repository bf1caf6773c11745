"""Whole programs on disk: a later process neither traces nor lowers nor compiles them again.

JAX's own cache saves compiling alone; tracing and lowering a fit take as long again. The files belong to one version of
everything that goes into a program, and to one kind of processor.
"""

import contextlib
import dataclasses
import enum
import functools
import hashlib
import importlib.metadata
import os
import pickle
import platform
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.core import Tracer

from jmixed.runtime import internals, waiting
from jmixed.runtime.files import is_own, seal, seal_holds, write_whole
from jmixed.runtime.interpreted import Design, GaveUpError, Interpreted, compiled_now, interpreted, is_wanted

Kind = tuple[tuple[int, ...], np.dtype | str, bool]


def call_from(
    directory: Path | None,
    jitted: Any,
    name: str,
    options: Any,
    static: dict,
    args: tuple,
    kwargs: dict,
    design: Design | None = None,
):
    """Call a program, which `name` tells from others, by its executable: one in memory, else on disk, else a new one.

    A new one is first worked through by NumPy, and compiled when that is called again. `options` are those of XLA it is
    compiled with, `static` the arguments by keyword that are part of the program, `design` what of all arguments tells
    one design from another. Without a directory nothing is kept.
    """
    leaves, tree = jax.tree.flatten((args, kwargs))
    if not (is_plain() and all(isinstance(leaf, ARRAYS) and not isinstance(leaf, Tracer) for leaf in leaves)):
        return jitted(*args, **kwargs, **static)
    key = (name, tree, tuple(static.items()), tuple(map(_kind, leaves)), *map(_setting, SETTINGS))
    while True:
        executable: Any = _memory.get((directory, key))
        if executable is None or (isinstance(executable, Interpreted) and _pays(executable, design, args)):
            # Threads that want the same program wait for the one that makes it.
            with _locks.setdefault((directory, key), threading.Lock()):
                if (known := _memory.get((directory, key))) is executable:
                    _made.append(None)
                    executable = _executable(directory, jitted, key, options, static, args, kwargs, known is None)
                    _memory[directory, key] = executable
                    if isinstance(executable, Interpreted):
                        _pays(executable, design, args)
                else:
                    executable = known
            _locks.pop((directory, key), None)
        try:
            return jitted(*args, **kwargs, **static) if executable is NOT_OURS else executable(*args, **kwargs)
        except GaveUpError:
            # What it has spent has it compiled in the next turn.
            continue


def _pays(program: Interpreted, design: Design | None, args: tuple) -> bool:
    return program.is_to_be_compiled(None if design is None else jax.tree.leaves(design(*args)))


def _executable(
    directory, jitted, key: tuple, options: Any, static: dict, args: tuple, kwargs: dict, first: bool
) -> Any:
    """A program from the disk, or a new one that is kept there; `NOT_OURS` where JAX shall see to it."""
    name, tree, *_ = key
    if "<" in name:
        # Two functions inside of others may bear one name.
        return NOT_OURS
    compiled, stepwise = _paths(directory, key, options)
    wanted = first and is_wanted()
    started = time.thread_time()
    if wanted and (kept := _read(stepwise)) is not None:
        steps, example = kept
        program = Interpreted(steps, jax.tree.structure(example))
        if compiled is not None and compiled.exists():
            program.price = min(program.price, READING * (time.thread_time() - started))
        return program
    if (kept := _read(compiled)) is not None:
        content, example = kept
        if (executable := _loaded(content, example, tree)) is not None:
            return executable
    traced = jitted.trace(*args, **kwargs, **static)
    if wanted and (program := interpreted(traced)) is not None:
        waiting.ends()
        _write(stepwise, program.steps, program.results)
        return program
    waiting.begins()
    lowered = internals.lower(traced)
    executable, is_whole = (lowered.compile(), False) if compiled is None else internals.compile_afresh(lowered)
    compiled_now()
    if is_whole and (serialised := internals.serialise(executable)) is not None and serialised[1] == tree:
        content, _, results = serialised
        _write(compiled, content, results)
    return executable


def _paths(directory: Path | None, key: tuple, options: Any) -> tuple[Path | None, Path | None]:
    """Where a program is kept when it is compiled, and as steps; nowhere if part of it is of others' making."""
    name, tree, *rest = key
    if directory is None:
        return None, None
    try:
        settings = options, jax.config.values["jax_disable_most_optimizations"]
        text = repr((versions(), settings, name, _described_tree(tree), *map(_described, rest)))
    except _ForeignError:
        return None, None
    stem = f"jmixed-{hashlib.sha256(text.encode()).hexdigest()}"
    return directory / f"{stem}{SUFFIXES[0]}", directory / f"{stem}{SUFFIXES[1]}"


class _ForeignError(Exception):
    """Part of a program is of somebody else's making, whose next version may bear the same name."""


NOT_OURS = object()
READING = 3
"""Times as long as the steps of a program it takes to read it compiled."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), np.generic, np.dtype)


def _described(value: Any) -> Any:
    """What tells a static part of a program from any other, in every process: its class and all that it holds."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, (tuple, list)):
        return type(value).__name__, tuple(map(_described, value))
    if isinstance(value, dict):
        return "dict", tuple((_described(key), _described(entry)) for key, entry in value.items())
    if isinstance(value, enum.Enum) and _is_ours(type(value)):
        return type(value).__qualname__, value.name
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and _is_ours(type(value)):
        fields = [_described(getattr(value, field.name)) for field in dataclasses.fields(value)]
        return type(value).__module__, type(value).__qualname__, tuple(fields)
    raise _ForeignError


def _described_tree(tree: Any) -> Any:
    node = tree.node_data()
    if node is None:
        return tree.num_nodes
    kind, static = node
    if not (_is_ours(kind) or kind in (tuple, list, dict, type(None))):
        raise _ForeignError
    described = tuple(map(str, static)) if kind is dict else _described(static)
    return kind.__module__, kind.__qualname__, described, tuple(map(_described_tree, tree.children()))


def _is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "jmixed" and "<" not in kind.__qualname__


SETTINGS = ("jax_enable_x64", "jax_default_matmul_precision")
"""Options of JAX that are part of a program."""


def _setting(name: str) -> Any:
    return getattr(_settings, name)


_settings: Any = jax.config


def is_plain() -> bool:
    """Whether programs run as always: on the one device, and nobody watches them for nan."""
    return jax.device_count() == 1 and _setting("jax_default_device") is None and not _setting("jax_debug_nans")


def count() -> int:
    """How many executables this process holds."""
    return len(_memory)


def made() -> int:
    """How often this process has made a program ready, or read it."""
    return len(_made)


def forget() -> None:
    """Free the executables that this process holds; those on disk stay."""
    _memory.clear()


def kept(directory: Path) -> list[tuple[float, int, Path]]:
    """The programs in a directory, those that were used longest ago first: time of use, bytes, path."""
    programs = []
    with contextlib.suppress(OSError):
        for path in (path for path in directory.glob("jmixed-*") if path.suffix in SUFFIXES):
            with contextlib.suppress(OSError):
                status = path.stat()
                programs.append((status.st_mtime, status.st_size, path))
    return sorted(programs)


def clear(directory: Path) -> int:
    """Delete the programs in a directory; how many they were."""
    programs = kept(directory)
    for _, _, path in programs:
        path.unlink(missing_ok=True)
    return len(programs)


SUFFIXES = ".program", ".steps"
"""Of files with a compiled program, and with what NumPy works through."""
ROOM = 2**30
"""Bytes that the programs in a directory may take in all; those that were used longest ago make room for new ones."""
ARRAYS = (np.ndarray, np.generic, jax.Array, bool, int, float)
_memory: dict[Any, Any] = {}
_made: list[None] = []
_locks: dict[Any, threading.Lock] = {}


def _kind(leaf) -> Kind:
    """Shape, type and weakness of type: what a program depends on."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return leaf.shape, leaf.dtype, False
    if isinstance(leaf, jax.Array):
        # Keys of random numbers are of a type of JAX's own, and of no other kind.
        dtype = leaf.dtype if isinstance(leaf.dtype, np.dtype) else str(leaf.dtype)
        return leaf.shape, dtype, getattr(leaf, "weak_type", False)
    return (), type(leaf).__name__, True


def _read(path: Path | None) -> Any:
    """What a file holds; None where there is none, or none that can be used.

    A program that is damaged, or that somebody else has put there, must not even be looked into.
    """
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            if not (is_own(path.parent.stat()) and is_own(os.fstat(file.fileno()))):
                return None
            kept = file.read()
        if not seal_holds(kept):
            return None
        content, example = pickle.loads(kept)
        with contextlib.suppress(OSError):
            os.utime(path)
        return content, example
    except (OSError, EOFError, ValueError, TypeError, KeyError, AttributeError, ImportError, pickle.UnpicklingError):
        return None


def _loaded(content: bytes, example: Any, tree: Any) -> Any:
    """The executable with the bytes and the results of a file; None where JAX cannot use it."""
    internals.find_lapack()
    try:
        return internals.deserialise(content, tree, jax.tree.structure(example))
    except (ValueError, TypeError, KeyError, AttributeError, pickle.UnpicklingError, jax.errors.JaxRuntimeError):
        return None


def _write(path: Path | None, content: Any, results: Any) -> None:
    """Keep a program. One that cannot be kept is no error: it works all the same."""
    if path is None:
        return
    example = jax.tree.unflatten(results, range(results.num_leaves))
    with contextlib.suppress(OSError):
        if is_own(path.parent.stat()):
            write_whole(path, seal(pickle.dumps((content, example))), mode=0o600)
            _make_room(path.parent)


def _make_room(directory: Path) -> None:
    programs = kept(directory)
    excess = sum(size for _, size, _ in programs) - ROOM
    for _, size, path in programs:
        if excess <= 0:
            break
        path.unlink(missing_ok=True)
        excess -= size


@functools.cache
def versions() -> str:
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
    files = sorted(_sources(os.path.dirname(os.path.dirname(__file__))))
    return repr((jax.__version__, importlib.metadata.version("jaxlib"), sys.version, machine, files))


def _sources(folder: str, inside: str = ""):
    """Path, size and time of every module of the package."""
    for entry in os.scandir(folder):
        if entry.is_dir():
            yield from _sources(entry.path, f"{inside}{entry.name}/")
        elif entry.name.endswith(".py"):
            status = entry.stat()
            yield inside + entry.name, status.st_size, status.st_mtime_ns
