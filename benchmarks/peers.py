"""jmixed beside every other package that fits the same models, one process for each fit of each package.

Prints one table for each case: seconds of the first and of repeated calls (DataFrame and formula to result), of a whole
process with imports and reading the data, peak memory, and the REML criterion reached. A package that is not installed
is named and skipped; so is one that does not finish. Look at the criterion first: a faster worse optimum is no answer.

    pip install ".[bench]"
    python benchmarks/peers.py [--cases chem97 insteval] [--systems jmixed glmm lme4] [--repeats 5] [--limit 900]
"""

import importlib
import importlib.util
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
from cases import CASES

SYSTEMS = ("jmixed", "glmm", "mixedlm", "gpboost", "statsmodels", "lme4")
SETTLING = 4
"""Calls after the first that do not count as repeated: jmixed compiles the program of small data when it pays."""
SINGLE_FACTOR = ("sleepstudy", "chem97", "slopes 100k")
"""Cases that statsmodels can be given: it has no crossed factors to speak of."""


def _peer(name) -> Any:
    """A package that need not be installed."""
    return importlib.import_module(name)


def fit_jmixed(data, formula):
    import jmixed as jm

    result = jm.mixedlm(formula, data).fit()
    return result.objective


def fit_glmm(data, formula):
    fit = _peer("glmm").fit(data, formula, satterthwaite=False)
    return -2 * fit.loglik


def fit_mixedlm(data, formula):
    mixedlm = _peer("mixedlm")
    return mixedlm.REMLcrit(mixedlm.lmer(formula, data))


def fit_gpboost(data, formula):
    """Maximum likelihood; random slopes are always independent of the intercepts, and crossed factors stochastic."""
    gpboost = _peer("gpboost")
    fixed, bars = _parts(formula)
    groups = np.column_stack([data[group].astype(str) for _, group in bars])
    slopes = [(name, k) for k, (names, _) in enumerate(bars) for name in names]
    model = gpboost.GPModel(
        group_data=groups,
        group_rand_coef_data=np.column_stack([np.asarray(data[name]) for name, _ in slopes]) if slopes else None,
        ind_effect_group_rand_coef=[k + 1 for _, k in slopes] or None,
        likelihood="gaussian",
    )
    X = np.column_stack([np.ones(len(data)), *(_numeric(data[name]) for name in fixed)])
    response = formula.split("~")[0].strip()
    model.fit(y=data[response].to_numpy(float), X=X)
    return 2 * float(model.get_current_neg_log_likelihood() or 0)


def fit_statsmodels(data, formula):
    from statsmodels.formula.api import mixedlm

    _, ((slopes, group),) = _parts(formula)
    fixed = formula.split("+ (")[0]
    return -2 * mixedlm(fixed, data, groups=group, re_formula="~" + "+".join(slopes or ["1"])).fit().llf


def _parts(formula):
    """Names of the fixed effects, and for every bar term the names of its slopes and its group."""
    fixed, *bars = formula.split("~")[1].split("(")
    names = [name.strip() for name in fixed.split("+") if name.strip() not in ("", "1")]
    terms = []
    for bar in bars:
        effects, group = bar.split(")")[0].split("|")
        terms.append(([e.strip() for e in effects.split("+") if e.strip() != "1"], group.strip()))
    return names, terms


def _numeric(column):
    """Numbers as they are; of two categories the second is one."""
    return np.asarray(column if column.dtype.kind in "if" else pd.factorize(column, sort=True)[0], float)


def measure(system, case, path, repeats, budget):
    """Seconds of the first and the repeated calls, and the criterion; no repeat begins after `budget` seconds."""
    warnings.simplefilter("ignore")
    data, formula = pd.read_parquet(path), CASES[case][1]
    fit = globals()[f"fit_{system}"]
    seconds, objective = [], float("nan")
    while not seconds or (len(seconds) <= repeats + SETTLING and sum(seconds) < budget):
        start = time.perf_counter()
        objective = float(fit(data, formula))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    repeated = seconds[1 + SETTLING :] or seconds[-1:]
    return {"first": seconds[0], "repeated": repeated, "objective": objective, "memory": peak}


LME4 = """
suppressMessages(library(lme4)); a <- commandArgs(TRUE)
d <- read.csv(a[1]); for (g in strsplit(a[3], ",")[[1]]) d[[g]] <- factor(d[[g]])
s <- c(); for (k in 0:as.integer(a[4])) {
  t <- proc.time()[["elapsed"]]
  m <- suppressWarnings(suppressMessages(lmer(as.formula(a[2]), d, control = lmerControl(calc.derivs = FALSE))))
  s <- c(s, proc.time()[["elapsed"]] - t); if (sum(s) > as.numeric(a[5])) break
}
status <- readLines("/proc/self/status")
peak <- as.numeric(gsub("[^0-9]", "", grep("VmHWM", status, value = TRUE))) / 1024
cat(sprintf('{"first": %g, "repeated": [%s], "objective": %.9f, "memory": %g}\\n', s[1],
            paste(s[-1], collapse = ","), REMLcrit(m), peak))
"""


def command_of(system, case, path, arguments):
    if system != "lme4":
        options = [str(arguments.repeats), str(arguments.budget)]
        return [sys.executable, __file__, "--one", system, case, str(path), *options]
    groups = ",".join(group for _, group in _parts(CASES[case][1])[1])
    rows = path.with_suffix(".csv")
    if not rows.exists():
        pd.read_parquet(path).to_csv(rows, index=False)
    return ["Rscript", "-e", LME4, str(rows), CASES[case][1], groups, str(arguments.repeats), str(arguments.budget)]


def report(case, systems, folder, arguments):
    data = CASES[case][0]()
    path = Path(folder) / f"{case.replace(' ', '_')}.parquet"
    data.to_parquet(path, index=False)
    print(f"\n{case}: {CASES[case][1]}, {len(data):,} rows", flush=True)
    print(f"{'':12}{'first s':>10}{'repeated s':>12}{'process s':>11}{'MiB':>7}{'REML criterion':>20}")
    for system in systems:
        reason = apart.missing(system)
        if system == "statsmodels" and case not in SINGLE_FACTOR:
            continue
        row = reason or apart.measured(command_of(system, case, path, arguments), arguments.limit)
        if isinstance(row, str):
            print(f"{system:12}{row}", flush=True)
            continue
        # What is left when the repeated calls are taken off: start, imports, reading, the first fit.
        process = row["process"] - sum(row["repeated"])
        again = f"{statistics.median(row['repeated']):12.4f}" if row["repeated"] else f"{'-':>12}"
        note = " (-2 ML, independent slopes)" if system == "gpboost" else ""
        line = f"{system:12}{row['first']:10.3f}{again}{process:11.2f}{row['memory']:7.0f}"
        print(f"{line}{row['objective']:20.6f}{note}", flush=True)


if __name__ == "__main__":
    apart.run(__doc__, CASES, SYSTEMS, measure, report, repeats=5, budget=30.0, limit=900.0)
