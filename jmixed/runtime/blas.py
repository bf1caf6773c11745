"""Threads of the library that JAX takes the factorisations of matrices from: SciPy's OpenBLAS.

Two threads that share a matrix of fifty rows wait for one another longer than either would work on it alone; on a
machine with other work, twenty times as long.
"""

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import scipy

NAMES = "scipy_openblas_{}_num_threads", "openblas_{}_num_threads"
"""What such a library calls its functions `get` and `set`."""

_lock = threading.Lock()
_inside: list[int] = []
"""For each that works on one thread at the moment, how many threads there were when the first of them began."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have matrices factored by one thread. Where the library is another one, it goes on as it does."""
    threads = _threads()
    if threads is None:
        yield
        return
    get, set_to = threads
    with _lock:
        _inside.append(_inside[0] if _inside else get())
        set_to(1)
    try:
        yield
    finally:
        with _lock:
            before = _inside.pop()
            if not _inside:
                set_to(before)


@functools.cache
def _threads() -> tuple[Any, Any] | None:
    """Functions that tell and set the number of threads of the library that SciPy has loaded."""
    package = Path(scipy.__file__).parent
    for folder in (package.parent / "scipy.libs", package / ".dylibs"):
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
