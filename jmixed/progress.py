"""A bar for long work, when it is asked for."""

import sys
from collections.abc import Iterator, Sequence


def track(items: Sequence, shown: bool, what: str) -> Iterator:
    """Go through items and show how many are done: by tqdm where it is installed, else as a line on stderr.

    Parameters
    ----------
    items : sequence
    shown : bool
        False: show nothing.
    what : str
        What is being done.
    """
    if not shown:
        yield from items
        return
    try:
        from tqdm.auto import tqdm
    except ImportError:
        for done, item in enumerate(items):
            print(f"\r{what}: {done} of {len(items)}", end="", file=sys.stderr, flush=True)
            yield item
        print(f"\r{what}: {len(items)} of {len(items)}", file=sys.stderr, flush=True)
    else:
        yield from tqdm(items, desc=what)
