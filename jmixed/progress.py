"""A progress bar for what takes long, without a package for it."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence


def progress_bar(total: int, title: str, shown: bool) -> Callable[[int], None] | None:
    """A function to call with the number of items that are done since the last call.

    Parameters
    ----------
    total : int
        Items in all.
    title : str
        What is going on.
    shown : bool
        Otherwise there is none.

    Examples
    --------
    >>> from jmixed.progress import progress_bar
    >>> progress_bar(10, "fits", shown=False) is None
    True
    """
    if not shown:
        return None
    started, done = time.perf_counter(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        passed = time.perf_counter() - started
        filled = "#" * (30 * done // total)
        left = passed * (total - done) / max(done, 1)
        end = "\n" if done >= total else ""
        sys.stderr.write(f"\r{title} [{filled:<30}] {done}/{total}, {left:.0f} s left {end}")
        sys.stderr.flush()

    return advance


def track(items: Sequence, shown: bool, what: str) -> Iterator:
    """Go through items, with a bar of how many are done where it is to be shown."""
    advance = progress_bar(len(items), what, shown)
    for item in items:
        yield item
        if advance is not None:
            advance(1)
