"""Many responses on one design: jmixed's batch beside the loops of glmm and mixedlm, and of jmixed itself.

200 groups of 10 rows, ``y ~ t + x1 + (1 | g)``, a random intercept of every size. The first call of the batch compiles
and stands apart. The loops fit some of the responses, after one fit to warm up; peers that are not installed are left
out, and the table says so. Prints one table and asserts nothing.
"""

import argparse
import importlib
import os
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import pandas as pd

FORMULA = "y ~ t + x1 + (1 | g)"


def simulate(responses, groups=200, rows=10, seed=301):
    """The design, and responses (m, groups * rows)."""
    rng = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    data = pd.DataFrame({"t": np.tile(np.arange(rows) / rows, groups), "x1": rng.normal(size=g.size), "g": g})
    sd, beta = rng.uniform(0, 1.2, responses), rng.normal(size=(3, responses))
    fixed = np.column_stack([np.ones(g.size), data.t, data.x1]) @ beta
    effects = (rng.normal(size=(groups, responses)) * sd)[g]
    return data, (fixed + effects + rng.normal(size=fixed.shape)).T


def seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def batch(data, Y, repeats):
    """(first call, repeated calls) in seconds, and the fixed effects."""
    import jmixed as jm

    model = jm.mixedlm(FORMULA, data.assign(y=Y[0]))
    first = seconds(lambda: model.fit_many(Y))
    times = [seconds(lambda: model.fit_many(Y)) for _ in range(repeats)]
    return first, times, model.fit_many(Y).fe_params.to_numpy()


def loop(name, data, Y):
    """Seconds of each fit of a loop over responses, and the fixed effects; None without the package."""
    try:
        package = importlib.import_module(name)
    except ImportError:
        return None
    fit, estimates = {
        "glmm": (lambda frame: package.fit(frame, FORMULA), lambda result: result.beta),
        "mixedlm": (lambda frame: package.lmer(FORMULA, frame), lambda result: list(result.fixef().values())),
        "jmixed": (lambda frame: package.mixedlm(FORMULA, frame).fit(), lambda result: result.fe_params),
    }[name]
    frames = [data.assign(y=y) for y in Y]
    fit(frames[0])
    times, found = [], []
    for frame in frames:
        start = time.perf_counter()
        result = fit(frame)
        times.append(time.perf_counter() - start)
        found.append(np.asarray(estimates(result), float))
    return times, np.array(found)


def main():
    # First calls are to compile.
    os.environ["JMIXED_CACHE"] = "off"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--responses", type=int, default=2000)
    parser.add_argument("--looped", type=int, default=100, help="responses that the loops fit")
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    data, Y = simulate(arguments.responses)
    print(f"Python {platform.python_version()}, jax {version('jax')}; {os.cpu_count()} CPUs, {platform.machine()}")
    print(f"{FORMULA}: {arguments.responses} responses, {data.g.nunique()} groups, {len(data)} rows, REML")
    first, times, beta = batch(data, Y, arguments.repeats)
    ours = statistics.median(times) / len(Y)
    print(f"{'':24}{'first s':>9}{'ms a fit':>10}{'ratio':>8}{'largest gap of fixed effects':>32}")
    print(f"{'jmixed, fit_many':24}{first:9.2f}{1e3 * ours:10.4f}{1:8.1f}")
    for name in ("jmixed", "glmm", "mixedlm"):
        found = loop(name, data, Y[: arguments.looped])
        if found is None:
            print(f"{name + ', a loop':24}not installed, left out")
            continue
        each, other = statistics.median(found[0]), found[1]
        gap = np.max(np.abs(other - beta[: len(other)]))
        print(f"{name + ', a loop':24}{'':9}{1e3 * each:10.4f}{each / ours:8.1f}{gap:32.1e}")


if __name__ == "__main__":
    main()
