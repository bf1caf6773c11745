"""A process that was forked while JAX ran has none of its threads: whoever waits for them waits for ever."""

import os

from jmixed.errors import ForkError
from jmixed.runtime import internals


def refuse_fork() -> None:
    """Refuse to compute in a forked process whose parent had started JAX before."""
    if _state.orphaned:
        raise ForkError(
            "this process was forked from one in which JAX was already running, and JAX's threads do not survive a "
            'fork: computing here would wait for ever. Start processes by multiprocessing.get_context("spawn") (or '
            '"forkserver", or joblib with its loky backend), use threads, or fit many responses in one call by '
            "model.fit_many"
        )


class _State:
    """What is known about forks: whether JAX ran at the last one, and whether this process came out of such a one."""

    running = orphaned = False


_state = _State()


def _before() -> None:
    _state.running = _state.orphaned or internals.backends_have_started()


def _in_child() -> None:
    _state.orphaned = _state.running


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_child=_in_child)
