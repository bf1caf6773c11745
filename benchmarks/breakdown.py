"""Where the time of one fit goes, step by step: the first fit of a process, and the median of later ones.

    python benchmarks/breakdown.py "y ~ x + (x | g)" data.parquet --repeats 7

Prints one table and asserts nothing. The same numbers are in ``result.timings`` of every fit.
"""

import argparse
import statistics
import time
from pathlib import Path

import pandas as pd

import jmixed as jm


def fit(formula, data, reml):
    """``result.timings``, with the whole from DataFrame to result beside them."""
    started = time.perf_counter()
    result = jm.mixedlm(formula, data).fit(reml=reml)
    whole = time.perf_counter() - started
    return {**result.timings, "everything else": whole - sum(result.timings.values()), "whole": whole}, result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("formula", help="with bars, as in 'y ~ x + (x | g)'")
    parser.add_argument("data", type=Path, help="a CSV or Parquet file")
    parser.add_argument("--repeats", type=int, default=7, help="fits after the first")
    parser.add_argument("--ml", action="store_true", help="maximum likelihood in place of REML")
    parser.add_argument("--cache", action="store_true", help="keep compiled programs on disk and use those there")
    options = parser.parse_args()
    if options.cache:
        jm.enable_compilation_cache()
    data = pd.read_parquet(options.data) if options.data.suffix == ".parquet" else pd.read_csv(options.data)
    first, result = fit(options.formula, data, not options.ml)
    later = [fit(options.formula, data, not options.ml)[0] for _ in range(options.repeats)]
    print(f"{result!r}; {len(data)} rows; {result.optimizer.evaluations} evaluations")
    print(f"{'step':<16}{'first [ms]':>12}{'median [ms]':>13}{'share':>8}")
    medians = {step: statistics.median(one[step] for one in later) for step in first} if later else first
    for step, seconds in first.items():
        share = medians[step] / medians["whole"]
        print(f"{step.replace('_', ' '):<16}{1e3 * seconds:>12.2f}{1e3 * medians[step]:>13.2f}{share:>8.0%}")


if __name__ == "__main__":
    main()
