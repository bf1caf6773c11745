"""Two thousand random designs, ordinary and perverse: does any fit claim an optimum that it has not reached?

Each design is fitted from the default start and again from random starts. Counted are the outcomes, the fits that
report convergence although another start reached a lower deviance (by more than 1e-5), and exceptions that are not
jmixed's own. The last two must be zero; the script ends with status 1 if they are not.

    python benchmarks/stress.py [--designs 2000] [--restarts 3] [--seed 1] [--kinds crossed ...]
"""

import argparse
import sys
import time
import warnings
from collections import Counter

import jax
import numpy as np
import pandas as pd

import jmixed as jm

GROUPS = (1, 2, 3, 8, 30, 60, 300)
KINDS = (
    "ordinary",
    "zero variance",
    "tiny variance",
    "perfect correlation",
    "predictor times 1e6",
    "predictor offset by 2000",
    "calendar year slope",
    "near-collinear fixed",
    "near-collinear random",
    "large variance",
    "tiny n",
    "nested",
    "crossed",
)


def random_design(rng, kinds=KINDS):
    """One data set: (kind, formula, DataFrame)."""
    kind = str(rng.choice(kinds))
    groups = int(rng.choice(GROUPS[:4] if kind == "tiny n" else GROUPS))
    largest = int(rng.choice([4, 16, 500])) if kind != "tiny n" else int(rng.choice([1, 2, 3]))
    sizes = 1 + rng.integers(0, largest, groups) if rng.random() < 0.6 else np.full(groups, largest)
    g = np.repeat(np.arange(groups), sizes)
    n, q = len(g), int(rng.integers(1, 4))
    x, z = rng.normal(size=n), rng.normal(size=n)
    sds = rng.lognormal(0, 1, q)
    if kind == "zero variance":
        sds[rng.random(q) < 0.7] = 0
    if kind == "tiny variance":
        sds *= 1e-3
    if kind == "large variance":
        sds *= 1e3
    rho = 1.0 if kind == "perfect correlation" else rng.uniform(-0.3, 0.9)
    factor = rng.normal(size=(groups, 1))
    b = sds * (np.sqrt(abs(rho)) * factor * np.sign(rho + 1e-9) + np.sqrt(1 - abs(rho)) * rng.normal(size=(groups, q)))
    b = sds * factor if kind == "perfect correlation" else b
    columns = np.stack([np.ones(n), x, z][:q], axis=1)
    y = 1 + 0.5 * x + np.sum(columns * b[g], axis=1) + rng.normal(size=n)
    if kind == "predictor times 1e6":
        x = x * 1e6
    if kind in ("predictor offset by 2000", "calendar year slope"):
        x = x + 2000 if kind != "calendar year slope" else 1990 + np.floor(np.abs(x) * 10)
    if kind == "near-collinear random" and q == 3:
        z = x + 1e-4 * z
    data = pd.DataFrame({"y": y, "x": x, "z": z, "g": g, "w": x + 1e-5 * rng.normal(size=n)})
    fixed = "x + w" if kind == "near-collinear fixed" else "x"
    random = {1: "1", 2: "x", 3: "x + z"}[q]
    formula = f"y ~ {fixed} + ({random} | g)"
    if kind == "nested":
        data["h"] = g * 5 + rng.integers(0, 5, n)
        data["y"] += rng.normal(size=groups * 5)[data["h"]] * rng.choice([0, 0.5, 2])
        formula = f"y ~ x + ({'1' if q < 3 else 'x'} | g) + (1 | h)"
    if kind == "crossed":
        data["h"] = rng.integers(0, int(rng.choice([3, 10, 40])), n)
        data["y"] += rng.normal(size=40)[data["h"]] * rng.choice([0, 0.5, 2])
        formula = f"y ~ x + ({random} | g) + ({rng.choice(['1', 'x'])} | h)"
    return kind, formula, data


def best_of_restarts(model, reml, restarts, rng):
    """The lowest deviance from random starts on all scales, relative to the size of the random columns."""
    from jmixed.programs import fit

    structures, Z = model.design.layout.terms, model.design.Z
    sizes = []
    for label, structure in zip(model.design.labels, structures, strict=True):
        rows, _ = structure.theta_indices()
        sizes.append(np.sqrt(np.mean(Z[label] ** 2, axis=0))[rows])
    scale = np.concatenate(sizes)
    values = []
    for _ in range(restarts):
        start = rng.normal(size=len(scale)) * 10 ** rng.uniform(-3, 3) / np.where(scale > 0, scale, 1)
        values.append(fit(model.design, reml=reml, theta0=start).objective)
    return np.nanmin(values)


def run(designs, restarts, seed, kinds):
    rng = np.random.default_rng(seed)
    outcomes, errors, lies, unconverged, foreign, iterations = Counter(), Counter(), [], [], [], []
    started = time.perf_counter()
    for number in range(designs):
        kind, formula, data = random_design(rng, kinds)
        reml = bool(rng.random() < 0.5)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model = jm.mixedlm(formula, data)
                result = model.fit(reml=reml)
        except jm.JmixedError as error:
            errors[type(error).__name__ + ": " + str(error).split(".")[0][:70]] += 1
            continue
        except Exception as error:
            foreign.append((number, kind, formula, repr(error)[:200]))
            continue
        outcomes[result.outcome.name] += 1
        iterations.append(result.optimizer.iterations)
        excess = result.objective - best_of_restarts(model, reml, restarts, rng)
        entry = (number, kind, formula, len(data), result.outcome.name, float(excess))
        if result.converged and not excess <= 1e-5:
            lies.append(entry)
            print("worse than another start:", entry, flush=True)
        if not result.converged:
            unconverged.append(entry)
        if (number + 1) % 100 == 0:
            print(f"{number + 1} designs, {time.perf_counter() - started:.0f} s, lies {len(lies)}", flush=True)
    report(outcomes, errors, lies, unconverged, foreign, iterations)
    return 1 if lies or foreign else 0


def report(outcomes, errors, lies, unconverged, foreign, iterations):
    print("\noutcomes of the fits")
    for name, count in outcomes.most_common():
        print(f"  {count:5d}  {name}")
    middle, most = np.median(iterations), np.quantile(iterations, 0.9)
    print(f"iterations: median {middle:.0f}, 90 % {most:.0f}, most {max(iterations)}")
    print("refused with an error of jmixed's own")
    for name, count in errors.most_common():
        print(f"  {count:5d}  {name}")
    print(f"converged, yet worse than another start by more than 1e-5: {len(lies)}")
    for entry in lies:
        print("  ", entry)
    print(f"did not converge, and said so: {len(unconverged)}")
    for entry in unconverged[:40]:
        print("  ", entry)
    print(f"exceptions that are not jmixed's: {len(foreign)}")
    for entry in foreign:
        print("  ", entry)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does any fit claim an optimum that it has not reached?")
    parser.add_argument("--designs", type=int, default=2000)
    parser.add_argument("--restarts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    arguments = parser.parse_args()
    jm.enable_compilation_cache()
    # Hundreds of shapes are compiled and each runs a few times: what is tested are the numbers, not the speed.
    jax.config.update("jax_disable_most_optimizations", True)
    sys.exit(run(arguments.designs, arguments.restarts, arguments.seed, arguments.kinds))
