"""Work that threads share."""

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import jax

P = TypeVar("P")
R = TypeVar("R")


def threads() -> int:
    """How many threads this process runs at a time."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_threads(function: Callable[[P], R], parts: Iterable[P], workers: int) -> Iterator[R]:
    """``function(part)`` of each part, in their order, by so many threads in this one's precision.

    XLA runs one program after the other for a thread that calls them, and side by side for several. Where one would
    do, it is this one.
    """
    if workers < 2:
        yield from map(function, parts)
        return
    settings: Any = jax.config
    wide, exact = settings.jax_enable_x64, settings.jax_default_matmul_precision

    def work(part: P) -> R:
        with jax.enable_x64(wide), jax.default_matmul_precision(exact):
            return function(part)

    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, parts)
