"""Generalized linear mixed models in jmixed and in every other package that fits them, one process for each.

Prints one table for each case: seconds of the clock and of the processors for the first and for repeated calls
(DataFrame and formula to result), peak memory, and -2 log-likelihood by Laplace's approximation. A package that is not
installed is named and skipped; so is one that does not finish. Look at the criterion first. The last case is a thousand
responses on one design, as one batch and as a loop of a tenth of them, scaled up.

    pip install ".[bench]"
    python benchmarks/generalized.py [--cases verbagg insteval] [--systems jmixed glmm lme4] [--repeats 9] [--limit 300]
"""

import importlib
import importlib.util
import os
import resource
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import apart
import numpy as np
import pandas as pd
from cases import slopes
from scipy.special import expit

SYSTEMS = ("jmixed", "glmm", "mixedlm", "lme4", "glmmTMB")
MANY, PART = 1000, 100
"""Responses on one design, and how many of them a loop fits."""


def drawn(data, family, seed=5):
    """The data with a response of a family, whose linear predictor is a column y."""
    r, eta = np.random.default_rng(seed), data["y"].to_numpy()
    y = r.random(len(eta)) < expit(eta) if family == "binomial" else r.poisson(np.exp(np.clip(eta, -10, 5)))
    return data.assign(y=y.astype(float))


def of_slopes(groups, family):
    data = slopes(groups)
    r = np.random.default_rng(6)
    return drawn(data.assign(y=0.6 * (data["y"] - 3) - 0.3 * r.normal(size=len(data))), family)


def crossed(rows, first, second, sds, seed=7):
    """Rows of two crossed factors, all pairs where there are so many, with a column that varies by row."""
    r = np.random.default_rng(seed)
    pairs = np.arange(first * second)
    pairs = pairs if rows == len(pairs) else np.sort(r.choice(pairs, rows, replace=False))
    a, b = np.divmod(pairs, second)
    x, z = r.normal(size=rows), np.where(b % 2, 0.5, -0.5)
    eta = 0.2 + 0.5 * x - 0.8 * z + sds[0] * r.normal(size=first)[a] + sds[1] * r.normal(size=second)[b]
    return drawn(pd.DataFrame({"y": eta, "x": x, "z": z, "a": a, "b": b}), "binomial")


SLOPES, CROSSED = "y ~ t + x1 + x2 + x3 + (1 + t | g)", "y ~ x + z + (1 | a) + (1 | b)"
CASES = {
    "bernoulli 10k": (lambda: of_slopes(1_000, "binomial"), SLOPES, "binomial"),
    "poisson 10k": (lambda: of_slopes(1_000, "poisson"), SLOPES, "poisson"),
    "verbagg": (lambda: crossed(316 * 24, 316, 24, (1.3, 0.7)), CROSSED, "binomial"),
    "bernoulli 100k": (lambda: of_slopes(10_000, "binomial"), SLOPES, "binomial"),
    "poisson 100k": (lambda: of_slopes(10_000, "poisson"), SLOPES, "poisson"),
    "insteval": (lambda: crossed(73_421, 2_972, 1_128, (0.4, 0.6)), CROSSED, "binomial"),
    "many": (lambda: of_slopes(100, "binomial"), SLOPES.replace("1 + t |", "1 |"), "binomial"),
}
"""Name -> (function that makes the DataFrame, formula, family)."""


def _peer(name) -> Any:
    """A package that need not be installed."""
    return importlib.import_module(name)


def fit_jmixed(data, formula, family):
    import jmixed as jm

    return jm.mixedglm(formula, data, family).fit().objective


def fit_glmm(data, formula, family):
    return -2 * _peer("glmm").fit(data, formula, family=family).loglik


def fit_mixedlm(data, formula, family):
    mixedlm = _peer("mixedlm")
    families = {"binomial": mixedlm.families.Binomial, "poisson": mixedlm.families.Poisson}
    return -2 * float(mixedlm.glmer(formula, data, family=families[family]()).logLik().value)


def responses(data, count):
    r = np.random.default_rng(8)
    eta = 0.4 * data["x1"].to_numpy() + r.normal(size=(count, data["g"].max() + 1))[:, data["g"]]
    return (r.random(eta.shape) < expit(eta)).astype(float)


def fit_many_jmixed(data, formula, family):
    """All responses as one batch; the sum of the criteria of those that a loop fits."""
    import jmixed as jm
    from jmixed.runtime.precision import double_precision

    design = jm.mixedglm(formula, data, family).design
    with double_precision():
        estimates = jm.estimate_many(design, responses(data, MANY), reml=False)
        return np.sum(np.asarray(estimates.objective)[:PART])


def fit_many_of(fit):
    def loop(data, formula, family):
        Y = responses(data, MANY)
        return sum(fit(data.assign(y=y), formula, family) for y in Y[:PART])

    return loop


def clocks():
    used = resource.getrusage(resource.RUSAGE_SELF)
    return time.perf_counter(), used.ru_utime + used.ru_stime


def measure(system, case, path, repeats, budget):
    """Seconds of the first and the repeated calls, and the criterion.

    No repeat begins after `budget` seconds of repeats.
    """
    warnings.simplefilter("ignore")
    data, (_, formula, family) = pd.read_parquet(path), CASES[case]
    fit = globals()[f"fit_{system}"]
    if case == "many":
        fit = fit_many_jmixed if system == "jmixed" else fit_many_of(fit)
    times, objective = [], float("nan")
    while not times or (len(times) <= repeats and sum(wall for wall, _ in times[1:]) < budget):
        start = clocks()
        objective = float(fit(data, formula, family))
        times.append([after - before for before, after in zip(start, clocks(), strict=True)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return {"times": times, "objective": objective, "memory": peak}


IN_R = """
a <- commandArgs(TRUE); d <- read.csv(a[1]); for (g in strsplit(a[3], ",")[[1]]) d[[g]] <- factor(d[[g]])
suppressMessages(library(a[6], character.only = TRUE)); s <- c()
f <- if (a[6] == "lme4") function() glmer(as.formula(a[2]), d, a[7], control = glmerControl(calc.derivs = FALSE)) else
  function() glmmTMB(as.formula(a[2]), d, a[7])
for (k in 0:as.integer(a[4])) {
  t <- proc.time(); m <- suppressWarnings(suppressMessages(f())); t <- proc.time() - t
  s <- c(s, sprintf("[%g, %g]", t[["elapsed"]], t[["user.self"]] + t[["sys.self"]]))
  if (proc.time()[["elapsed"]] > as.numeric(a[5])) break
}
peak <- as.numeric(gsub("[^0-9]", "", grep("VmHWM", readLines("/proc/self/status"), value = TRUE))) / 1024
value <- if (is.na(logLik(m))) "NaN" else sprintf("%.9f", -2 * logLik(m))
cat(sprintf('{"times": [%s], "objective": %s, "memory": %g}\\n', paste(s, collapse = ","), value, peak))
"""


def command_of(system, case, path, arguments):
    options = [str(arguments.repeats), str(arguments.budget)]
    if system not in ("lme4", "glmmTMB"):
        return [sys.executable, __file__, "--one", system, case, str(path), *options]
    _, formula, family = CASES[case]
    groups = ",".join(bar.split(")")[0].strip() for bar in formula.split("|")[1:])
    rows = path.with_suffix(".csv")
    if not rows.exists():
        pd.read_parquet(path).to_csv(rows, index=False)
    return ["Rscript", "-e", IN_R, str(rows), formula, groups, *options, system, family]


def report(case, systems, folder, arguments):
    make, formula, family = CASES[case]
    data = make()
    path = Path(folder) / f"{case.replace(' ', '_')}.parquet"
    data.to_parquet(path, index=False)
    print(f"\n{case}: {formula}, {family}, {len(data):,} rows; load {os.getloadavg()[0]:.1f}", flush=True)
    print(f"{'':12}{'first s':>10}{'(CPU)':>9}{'repeated':>10}{'(CPU)':>9}{'MiB':>7}{'-2 log L':>18}")
    for system in systems:
        if case == "many" and system in apart.IN_R:
            continue
        row = apart.missing(system) or apart.measured(command_of(system, case, path, arguments), arguments.limit)
        if isinstance(row, str):
            print(f"{system:12}{row}", flush=True)
            continue
        scale = MANY / PART if case == "many" and system != "jmixed" else 1
        first, *rest = (np.array(row["times"]) * scale).tolist()
        again = [statistics.median(column) for column in zip(*rest, strict=True)] if rest else [float("nan")] * 2
        numbers = f"{first[0]:10.3f}{first[1]:9.3f}{again[0]:10.4f}{again[1]:9.4f}"
        print(f"{system:12}{numbers}{row['memory']:7.0f}{row['objective']:18.6f}", flush=True)


if __name__ == "__main__":
    apart.run(__doc__, CASES, SYSTEMS, measure, report, repeats=9, budget=20.0, limit=300.0)
