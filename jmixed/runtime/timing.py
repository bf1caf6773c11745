"""Where the time of a fit goes, step by step."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from jmixed.runtime.compilation import seconds_compiling

STEPS = ("parse", "materialise", "stack", "cross_products", "compile", "optimise", "results")


class Timings(dict[str, float]):
    """Seconds by step; what compiling takes inside of a step counts as a step of its own."""

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Add the time inside of the block to a step."""
        started, compiled = time.perf_counter(), seconds_compiling()
        yield
        compiled = seconds_compiling() - compiled
        self._add(name, time.perf_counter() - started - compiled)
        if compiled:
            self._add("compile", compiled)

    def _add(self, name, seconds):
        self[name] = self.get(name, 0.0) + max(seconds, 0.0)


def together(*parts: dict[str, float]) -> dict[str, float]:
    """The sum of several timings, all steps named, in the order in which they are taken."""
    return {step: sum(part.get(step, 0.0) for part in parts) for step in STEPS}
