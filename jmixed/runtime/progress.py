"""A bar for long work, when it is asked for."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def bar(total: int, shown: bool, what: str) -> Iterator[Callable[[int], object]]:
    """Show how much of `total` is done, if `shown`: by tqdm where it is installed, else as a line on stderr.

    What is yielded is to be called with the number of pieces that have just been done.
    """
    if not shown:
        yield lambda count: None
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        done = 0

        def advance(count):
            nonlocal done
            done += count
            print(f"\r{what}: {done}/{total}", end="", file=sys.stderr, flush=True)

        yield advance
        print(file=sys.stderr)
    else:
        with tqdm(total=total, desc=what) as shown_bar:
            yield shown_bar.update
