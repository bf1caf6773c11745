"""Related levels: dense matrices of a few thousand levels, and pedigrees of 100,000 animals left sparse.

Prints, for each model, seconds of wall and processor time from the table to the result, the first time in the process
and again, evaluations of the criterion, and the estimates beside those that the data were made with.

    python benchmarks/relationships.py [--animals 100000]
"""

import argparse
import os
import time

import numpy as np
import pandas as pd

import jmixed as jm

GENERATIONS = 10


def simulated_pedigree(rng, animals, sires, dams):
    """Parents of animals in generations, each from so many of the generation before."""
    size = animals // GENERATIONS
    parents = np.full((animals, 2), -1)
    for generation in range(1, GENERATIONS):
        before, own = ((generation - k) * size + np.arange(size) for k in (1, 0))
        for column, count in enumerate((sires, dams)):
            parents[own, column] = rng.choice(rng.choice(before[column::2], min(count, size // 2), replace=False), size)
    return parents


def records(rng, pedigree, parents, variance, residual=2.0):
    """One record of each animal, from breeding values of that variance beside residuals of another one."""
    animals, size = len(parents), len(parents) // GENERATIONS
    mendelian = np.sqrt(variance * pedigree.variances) * rng.normal(size=animals)
    values = np.zeros(animals)
    for start in range(0, animals, size):
        own = slice(start, start + size)
        of_parents = values[parents[own]].mean(axis=1) if start else 0
        values[own] = mendelian[own] + of_parents
    data = pd.DataFrame({"animal": np.arange(animals) + 1, "sex": rng.integers(0, 2, animals)})
    return data.assign(y=10 + data.sex + values + np.sqrt(residual) * rng.normal(size=animals))


def timed(name, formula, data, related, family=None):
    for when in ("first", "again"):
        start, processor = time.perf_counter(), time.process_time()
        if family is None:
            model = jm.mixedlm(formula, data, relationship=related)
        else:
            model = jm.mixedglm(formula, data, family, relationship=related)
        result = model.fit()
        seconds = time.perf_counter() - start, time.process_time() - processor
        sigma = result.sigma if family is None else 1.0
        print(
            f"{name:28s} {when:6s} {seconds[0]:7.2f} s wall {seconds[1]:7.2f} s processor; "
            f"{result.optimizer.evaluations} evaluations, {result.outcome.name}, "
            f"sd {np.round(result.theta * sigma, 3)}, sigma {sigma:.3f}",
            flush=True,
        )


def dense(rng, levels):
    M = rng.normal(size=(levels, 2 * levels))
    K = pd.DataFrame(M @ M.T / (2 * levels))
    g = np.repeat(np.arange(levels), 2)
    data = pd.DataFrame({"g": g, "x": rng.normal(size=len(g))})
    effects = np.linalg.cholesky(K.to_numpy()) @ rng.normal(size=levels)
    timed(
        f"dense, {levels} levels",
        "y ~ x + (1 | g)",
        data.assign(y=data.x + effects[g] + rng.normal(size=len(g))),
        {"g": K},
    )


def main():
    # First calls are to compile.
    os.environ["JMIXED_CACHE"] = "off"
    parser = argparse.ArgumentParser()
    parser.add_argument("--animals", type=int, default=100_000)
    animals = parser.parse_args().animals
    rng = np.random.default_rng(0)
    for sires, dams in ((20, 500), (50, 1000), (100, 2000)):
        parents = simulated_pedigree(rng, animals, sires, dams)
        # Zero stands for a parent that is not known.
        named = pd.DataFrame({"animal": np.arange(animals) + 1, "sire": parents[:, 0] + 1, "dam": parents[:, 1] + 1})
        start = time.perf_counter()
        pedigree = jm.pedigree(named)
        print(f"{pedigree} in {time.perf_counter() - start:.2f} s; made with sd 1, sigma 1.414")
        data = records(rng, pedigree, parents, 1.0)
        timed(f"{sires} sires, {dams} dams", "y ~ sex + (1 | animal)", data, {"animal": pedigree})
        if sires == 20:
            # The same values as logarithms of means, without what a normal response has beside them.
            other = np.random.default_rng(1)
            counts = records(other, pedigree, parents, 1.0, residual=0.0)
            counts = counts.assign(y=other.poisson(np.exp(counts.y - 10)))
            timed(f"counts, {sires} sires", "y ~ sex + (1 | animal)", counts, {"animal": pedigree}, "poisson")
    for levels in (500, 1000, 2000):
        dense(rng, levels)


if __name__ == "__main__":
    main()
