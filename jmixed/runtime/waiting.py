"""A word for people who wait for the compiler."""

import os
import sys
import threading

PATIENCE = 1.0
"""Seconds of compiling after which a word is said."""
WORD = "jmixed is compiling for a new shape of model, which happens once (JMIXED_WORDS=off: not a word)"
OFF = ("off", "0", "none", "false", "no")


def begins() -> None:
    """Have it said on a terminal or in a notebook that a program is being compiled, unless it is done very soon."""
    shown = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
    if not shown or os.environ.get("JMIXED_WORDS", "").strip().lower() in OFF:
        return
    if getattr(_local, "word", None) is None and not _said:
        _local.word = threading.Timer(PATIENCE, _say)
        _local.word.daemon = True
        _local.word.start()


def ends() -> None:
    """Nobody waits any longer, or not for the compiler."""
    if (timer := getattr(_local, "word", None)) is not None:
        timer.cancel()
        _local.word = None


def _say() -> None:
    if not _said:
        _said.append(WORD)
        print(WORD, file=sys.stderr, flush=True)


_local = threading.local()
_said: list[str] = []
"""What has been said to people who wait: each once in a process."""
