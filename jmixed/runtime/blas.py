"""Threads of the libraries that factor and multiply matrices: SciPy's OpenBLAS, which JAX takes, and NumPy's.

Two threads that share a matrix of fifty rows wait for one another longer than either would work on it alone; on a
machine with other work, twenty times as long.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import scipy

NAMES = tuple(f"{prefix}openblas_{{}}_num_threads{suffix}" for prefix in ("scipy_", "") for suffix in ("", "64_"))
"""What such a library calls its functions `get` and `set`."""

_lock = threading.Lock()
_inside: dict[ModuleType, list[int]] = defaultdict(list)
"""For each that works on one thread at the moment, how many threads there were when the first of them began."""


@contextlib.contextmanager
def one_thread(package: ModuleType = scipy) -> Iterator[None]:
    """Have a package's matrices handled by one thread. Where its library is another one, it goes on as it does."""
    threads = _threads(package)
    if threads is None:
        yield
        return
    get, set_to = threads
    with _lock:
        inside = _inside[package]
        inside.append(inside[0] if inside else get())
        set_to(1)
    try:
        yield
    finally:
        with _lock:
            before = inside.pop()
            if not inside:
                set_to(before)


@functools.cache
def _threads(package: ModuleType = scipy) -> tuple[Any, Any] | None:
    """Functions that tell and set the number of threads of the library that a package has loaded."""
    home = Path(package.__file__ or "").parent
    for folder in (home.parent / f"{package.__name__}.libs", home / ".dylibs"):
        for path in sorted(folder.glob("*openblas*")):
            with contextlib.suppress(OSError):
                # One that is not loaded already is not the one that computes.
                mode = getattr(os, "RTLD_NOLOAD", 0) | getattr(os, "RTLD_LAZY", 0)
                if (functions := _functions(ctypes.CDLL(str(path), mode=mode))) is not None:
                    return functions
    return None


def _functions(library: Any) -> tuple[Any, Any] | None:
    for name in NAMES:
        if hasattr(library, name.format("set")):
            get, set_to = (getattr(library, name.format(verb)) for verb in ("get", "set"))
            get.restype, set_to.argtypes, set_to.restype = ctypes.c_int, [ctypes.c_int], None
            return get, set_to
    return None
