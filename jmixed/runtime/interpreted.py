"""Programs that NumPy works through, until it has taken them as long as compiling would."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from jmixed.runtime import interpreter
from jmixed.runtime.interpreter import Steps

Design = Callable[..., Any]
"""What of the arguments of a program, given by position, tells one design from another."""

PER_PROGRAM, PER_STEP = 0.05, 2.5e-3
"""Seconds that compiling takes, and those for each step of a program: 2 to 3 thousandths, by JAX's version."""
DEAR = 1.0
"""Share of the time for compiling up to which NumPy is let work on a program, as far as can be told before."""
AT_ONCE, OFTEN = 1.0, 20
"""Seconds within which a call for the same design again is taken for a loop's, and how often that is taken to turn."""


class GaveUpError(Exception):
    """A program is better compiled."""


class Interpreted:
    """A program of a size that NumPy works through sooner than it is compiled, and what that has cost so far.

    `results` is the tree of what it returns.
    """

    def __init__(self, steps: Steps, results: Any):
        self.steps, self.results = steps, results
        self.price = PER_PROGRAM + PER_STEP * steps.count
        self.spent = self.last = 0.0
        self.turns, self.design, self.ended = 0, None, -np.inf

    def __call__(self, *args, **kwargs) -> Any:
        """Work the program through. Raises `GaveUpError` where NumPy cannot, or takes as long as compiling would."""
        started, seconds = time.thread_time(), np.inf if _when() == "last" else self.price
        try:
            results = interpreter.run(self.steps, jax.tree.leaves((args, kwargs)), seconds)
        except interpreter.TooLongError as error:
            raise GaveUpError from error
        except (ArithmeticError, IndexError, MemoryError, TypeError, ValueError, interpreter.UnknownStepError) as error:
            self.price = -np.inf
            raise GaveUpError from error
        finally:
            self.last = time.thread_time() - started
            self.spent, self.ended = self.spent + self.last, time.monotonic()
        # All at once, and nothing is compiled for it, as for arrays one by one.
        return jax.tree.unflatten(self.results, jax.device_put(results))

    def is_to_be_compiled(self, design: Sequence[Any] | None) -> bool:
        """Whether this call is better made by a compiled program; `design` has what tells a design from another.

        A person who explores calls a program for one model after the other; who calls it for the same one again and
        again, at once, will do so often. Without a word on that, it is compiled when that has been worth while.
        """
        if design is not None and not getattr(_local, "aside", False):
            known, self.design = self.design, _sketch(design)
            again = _are_alike(known, self.design) and time.monotonic() - max(self.ended, _compiled[0]) < AT_ONCE
            self.turns = self.turns + 1 if again else 0
        if _when() == "last":
            return self.price < 0
        soon = self.turns > 1 or (self.turns == 1 and self.last * OFTEN > self.price)
        return soon or self.spent > self.price


def interpreted(traced: Any) -> Interpreted | None:
    """A traced program for NumPy; None where a step of it is not known there, or compiling will be quicker."""
    try:
        steps = interpreter.translated(traced)
    except interpreter.UnknownStepError:
        return None
    program = Interpreted(steps, jax.tree.structure(traced.out_info))
    return program if steps.effort < DEAR * program.price else None


def compiled_now() -> None:
    """Take note of when a program was compiled last: that has taken time between two calls of a loop."""
    _compiled[0] = time.monotonic()


_compiled = [-np.inf]


def is_wanted() -> bool:
    """Whether programs may be worked through first: on the CPU, unless they are to be compiled first."""
    return jax.default_backend() == "cpu" and _when() != "first" and not getattr(_local, "ahead", False)


def _when() -> str:
    """When to compile, as ``JMIXED_COMPILE`` says: ``first``, ``last`` for where NumPy cannot; else when it pays."""
    return os.environ.get("JMIXED_COMPILE", "").strip().lower()


def compiling_at_once():
    """Context in which this thread's programs are compiled before their first call."""
    return _marked("ahead")


def aside():
    """Context of calls that are no turns of a loop over one design: what is asked of a fit after it."""
    return _marked("aside")


@contextmanager
def _marked(name: str) -> Iterator[None]:
    before = getattr(_local, name, False)
    setattr(_local, name, True)
    try:
        yield
    finally:
        setattr(_local, name, before)


_local = threading.local()

SKETCHED = 1 << 12
"""Numbers of an array that a sketch of it has at most."""


def _sketch(arrays: Sequence[Any]) -> list[np.ndarray]:
    """What two designs hardly have in common: of each array, numbers evenly taken from it."""
    flat = [np.asarray(array).reshape(-1) for array in arrays]
    return [numbers[:: 1 + numbers.size // SKETCHED].copy() for numbers in flat]


def _are_alike(first: list[np.ndarray] | None, second: list[np.ndarray]) -> bool:
    """Whether two sketches are of one design, but for rounding."""
    return first is not None and all(
        np.allclose(a, b, rtol=0, atol=1e-9 * np.max(np.abs(b), initial=0), equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )
