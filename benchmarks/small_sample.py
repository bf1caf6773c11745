"""Kenward-Roger and Satterthwaite on large data: seconds for 100,000 and 1,000,000 rows, random intercept and slope.

pbkrtest forms n x n matrices and cannot do either. Times are of `result.test(ddf=...)` after the fit, with the
cross-products of the rows made anew; "first" includes compilation.

    python benchmarks/small_sample.py [--groups 10000 100000] [--rows 10] [--repeats 3]
"""

import argparse
import os
import time

import numpy as np
import pandas as pd

import jmixed as jm


def fitted(groups, rows):
    """A fit of simulated data and the seconds that it took."""
    rng = np.random.default_rng(1)
    g = np.repeat(np.arange(groups), rows)
    x, treated = rng.normal(size=len(g)), (g % 2).astype(float)
    b = rng.normal(size=(2, groups))[:, g]
    y = 1 + 0.5 * x + 0.1 * treated + b[0] + 0.4 * b[1] * x + rng.normal(size=len(g))
    model = jm.mixedlm("y ~ x * treated + (x | g)", pd.DataFrame({"y": y, "x": x, "treated": treated, "g": g}))
    started = time.perf_counter()
    model.fit()
    return model, time.perf_counter() - started


def seconds(model, ddf, repeats):
    """Seconds of each of several calls, every one on a fresh result."""
    times = []
    for _ in range(repeats + 1):
        result = model.fit()
        started = time.perf_counter()
        table = result.test(ddf=ddf)
        times.append(time.perf_counter() - started)
    return times, table


def main():
    # First calls are to compile.
    os.environ["JMIXED_CACHE"] = "off"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(f"{'rows':>10}{'':>16}{'first':>9}{'median':>9}      df of each coefficient        (first fit, s)")
    for groups in args.groups:
        model, fit_time = fitted(groups, args.rows)
        for ddf in ("satterthwaite", "kenward-roger"):
            times, table = seconds(model, ddf, args.repeats)
            df = " ".join(f"{value:.0f}" for value in table["df"])
            row = f"{groups * args.rows:10d}{ddf:>16}{times[0]:9.2f}{np.median(times[1:]):9.2f}"
            print(f"{row}      {df:30}{fit_time:9.2f}")


if __name__ == "__main__":
    main()
