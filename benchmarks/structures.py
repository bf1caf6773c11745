"""Correlated residuals beside nlme and statsmodels' GEE: AR(1) with 1,000 groups of 20, an MMRM of 1,000 patients.

Prints, for each model, seconds of the first and of repeated fits in one process, and the REML criterion reached. nlme
runs where there is an `Rscript` that has it. GEE is a yardstick of time alone: it has no likelihood. Drop-out in the
trial is at random; 3% of the visits are missing besides.

    python benchmarks/structures.py [--repeats 7] [--trials 200]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

import jmixed as jm

RSCRIPT = """
suppressMessages(library(nlme))
d <- read.csv("{file}")
{prepare}
times <- numeric(0)
for (k in seq_len({repeats})) times[k] <- system.time(fit <- {call})[["elapsed"]]
cat(median(times), -2 * as.numeric(logLik(fit)), "\\n")
"""


def autoregressive(rng, groups, rows, phi):
    """Standard normal series (groups, rows) with the correlation phi of neighbours."""
    series = rng.normal(size=(groups, rows))
    for t in range(1, rows):
        series[:, t] = phi * series[:, t - 1] + np.sqrt(1 - phi**2) * series[:, t]
    return series


def growth(rng, groups=1000, rows=20):
    data = pd.DataFrame({"g": np.repeat(np.arange(groups), rows), "t": np.tile(np.arange(rows), groups)})
    data["x"] = rng.normal(size=len(data))
    own = rng.normal(size=groups)[data.g]
    return data.assign(y=1 + data.x + own + autoregressive(rng, groups, rows, 0.6).ravel())


def trial(rng, patients=1000, visits=8):
    data = pd.DataFrame({"g": np.repeat(np.arange(patients), visits), "visit": np.tile(np.arange(visits), patients)})
    data["arm"], data["base"] = np.where(data.g % 2, "a", "b"), rng.normal(size=patients)[data.g]
    own = rng.normal(size=patients)[data.g]
    data["y"] = data.base + own + autoregressive(rng, patients, visits, 0.7).ravel() * (1 + 0.1 * data.visit)
    there = (data.visit < rng.integers(3, 12, patients)[data.g]) & (rng.uniform(size=len(data)) > 0.03)
    return data[there].assign(v=lambda kept: "v" + kept.visit.astype(str)).reset_index(drop=True)


def time_jmixed(formula, data, residual, repeats):
    """Seconds of the first and the median of repeated calls, table to result, and the criterion."""

    def fit():
        begin = time.perf_counter()
        result = jm.mixedlm(formula, data, residual=residual).fit()
        return time.perf_counter() - begin, result

    first, result = fit()
    return first, statistics.median(fit()[0] for _ in range(repeats)), result


def time_nlme(data, prepare, call, repeats):
    if shutil.which("Rscript") is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.csv"
        data.to_csv(file, index=False)
        script = RSCRIPT.format(file=file, prepare=prepare, call=call, repeats=repeats)
        done = subprocess.run(["Rscript", "-e", script], capture_output=True, text=True, check=False)
    return tuple(map(float, done.stdout.split())) if done.returncode == 0 else None


def time_gee(formula, data):
    try:
        import statsmodels.api as sm
        import statsmodels.formula.api as smf
    except ImportError:
        return None
    model = smf.gee(formula, "g", data, cov_struct=sm.cov_struct.Exchangeable())
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit()
    return time.perf_counter() - begin


def report(name, formula, data, residual, prepare, call, repeats):
    first, again, result = time_jmixed(formula, data, residual, repeats)
    print(f"{name}: jmixed {first:.2f} s, then {again:.3f} s, criterion {result.objective:.6f}, {result.outcome.name}")
    if (peer := time_nlme(data, prepare, call, min(repeats, 3))) is not None:
        print(f"    nlme {peer[0]:.3f} s ({peer[0] / again:.0f} times as long), criterion {peer[1]:.6f}")
    else:
        print("    nlme is not there, or failed")
    if (seconds := time_gee(formula.partition(" + (")[0], data)) is not None:
        print(f"    GEE, exchangeable {seconds:.3f} s")
    return result


def main():
    # First calls are to compile.
    os.environ["JMIXED_CACHE"] = "off"
    parser = argparse.ArgumentParser(description="Correlated residuals beside nlme and GEE.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--trials", type=int, default=200, help="responses in one fit_many of the MMRM")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    report(
        "AR(1), 1,000 groups of 20, with random intercepts",
        "y ~ x + t + (1 | g)",
        growth(rng),
        "ar1(t | g)",
        "d$g <- factor(d$g)",
        "lme(y ~ x + t, random = ~ 1 | g, correlation = corAR1(form = ~ t | g), data = d)",
        options.repeats,
    )
    report(
        "AR(1), 1,000 groups of 20",
        "y ~ x + t",
        growth(rng),
        "ar1(t | g)",
        "d$g <- factor(d$g)",
        "gls(y ~ x + t, correlation = corAR1(form = ~ t | g), data = d)",
        options.repeats,
    )
    result = report(
        "MMRM, 1,000 patients by 8 visits",
        "y ~ base + arm * v",
        trial(rng),
        "us(visit | g)",
        "d$g <- factor(d$g); d$k <- d$visit + 1",
        "gls(y ~ base + arm * v, correlation = corSymm(form = ~ k | g), weights = varIdent(form = ~ 1 | v), data = d)",
        options.repeats,
    )
    responses = result.simulate(options.trials)
    for what in ("first", "again"):
        begin = time.perf_counter()
        many = result.model.fit_many(responses)
        seconds = time.perf_counter() - begin
        ended = f"{many.converged.mean():.0%} converged"
        print(f"    {options.trials} responses in one fit_many, {what}: {seconds:.1f} s, {ended}")


if __name__ == "__main__":
    main()
