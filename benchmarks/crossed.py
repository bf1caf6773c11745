"""Crossed factors of any size: seconds, processor time, peak memory, and how well the fit is known.

    python benchmarks/crossed.py --cases 100k 1m 3factors
    python benchmarks/crossed.py --cases 10m 32m
    python benchmarks/crossed.py --sources 10m 32m
    python benchmarks/crossed.py --cases workers
    python benchmarks/crossed.py --designs 40

Every case has a process of its own, for which another has made the data; peak memory is that of the process, with
imports, data and all. Ratings are simulated, with users and films of very different popularity. Workers move between
firms, one in ten a year: graphs that hang together by few rows, at three ratios of the firms' standard deviation to the
residual's, beside the exact fit. `--sources` takes the same ratings from arrays, from a DataFrame that is read from a
Parquet file, and from that file in batches, whose rows are never in memory together. `--designs` fits small random
designs both ways, and counts by how many of the reported Monte Carlo errors they differ.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

SIZES = {
    "100k": (100_000, 20_000, 5_000),
    "1m": (1_000_000, 20_000, 5_000),
    "10m": (10_000_000, 100_000, 40_000),
    "32m": (32_000_000, 200_948, 84_432),
}
RATINGS = "y ~ 1 + (1 | user) + (1 | film)"
SOURCES = ("arrays", "DataFrame", "batches")


def ratings(rows: int, users: int, films: int) -> dict[str, np.ndarray]:
    """Distinct pairs of users and films, both by power laws, with rounded ratings of half a star to five."""
    rng = np.random.default_rng(501)
    shares = [np.cumsum(1 / (np.arange(k) + c) ** e) for k, c, e in ((users, 30, 0.7), (films, 20, 1.25))]
    keys = np.zeros(0, np.int64)
    while len(keys) < rows:
        drawn = [
            np.searchsorted(share, share[-1] * rng.random(int(2.2 * (rows - len(keys))) + 1000)) for share in shares
        ]
        keys = np.unique(np.concatenate([keys, drawn[0] * np.int64(films) + drawn[1]]))
    keys = keys if len(keys) == rows else np.sort(rng.choice(keys, rows, replace=False))
    user, film = (keys // films).astype(np.int32), (keys % films).astype(np.int32)
    y = 3.5 + rng.normal(scale=0.43, size=users)[user] + rng.normal(scale=0.48, size=films)[film]
    y += rng.normal(scale=0.85, size=rows)
    return {"y": np.clip(np.round(2 * y) / 2, 0.5, 5.0), "user": user, "film": film}


def three_factors(rows: int = 1_000_000) -> dict[str, np.ndarray]:
    """Pupils by teachers by items, with a slope that differs between pupils."""
    rng = np.random.default_rng(1)
    sizes = 30_000, 2_000, 400
    pupil, teacher, item = (rng.integers(0, size, rows) for size in sizes)
    x = rng.normal(size=rows)
    y = 1 + 0.5 * x + 0.8 * rng.normal(size=sizes[0])[pupil] + 0.3 * rng.normal(size=sizes[0])[pupil] * x
    y += 0.5 * rng.normal(size=sizes[1])[teacher] + 0.7 * rng.normal(size=sizes[2])[item] + rng.normal(size=rows)
    return {"y": y, "x": x, "pupil": pupil, "teacher": teacher, "item": item}


def workers(ratio: float, count: int = 20_000, firms: int = 2_000, years: int = 5) -> dict[str, np.ndarray]:
    """One row a worker and year; one in ten moves each year, to any firm by its size."""
    rng = np.random.default_rng(7)
    size = 1 / (rng.permutation(firms) + 5.0) ** 0.8
    firm, rows = rng.choice(firms, count, p=size / size.sum()), []
    for _ in range(years):
        rows.append(firm)
        firm = np.where(rng.random(count) < 0.1, rng.choice(firms, count, p=size / size.sum()), firm)
    firm, worker = np.concatenate(rows), np.tile(np.arange(count), years)
    y = ratio * (rng.normal(size=count)[worker] + rng.normal(size=firms)[firm]) + rng.normal(size=count * years)
    return {"y": y, "worker": worker, "firm": firm}


def peak() -> str:
    """The most memory that this process has had, in GB."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB"


def timed(what, call):
    """What a call gives, after a line about its cost."""
    wall, processor = time.perf_counter(), time.process_time()
    value = call()
    spent = time.perf_counter() - wall, time.process_time() - processor
    print(f"  {what:24} {spent[0]:8.2f} s, {spent[1]:8.2f} of processor time, {peak()}", flush=True)
    return value


def told(result) -> None:
    """What a fit reached, and how well it is known."""
    known, theta = result.monte_carlo, ", ".join(f"{value:.6f}" for value in result.theta)
    print(f"    {result.outcome.name} {result.optimizer.crossed}: {result.objective:.4f}, theta {theta}", flush=True)
    if known is not None:
        print(
            f"    {known.probes} probes, {known.steps} steps, {result.optimizer.evaluations} evaluations; error of the "
            f"criterion {known.criterion:.2g}, of theta at most {np.max(known.theta):.2g}, of estimates at most "
            f"{known.share:.2g} standard errors",
            flush=True,
        )


def make(case: str, folder: str) -> None:
    """The data of a case, an array a file."""
    data = three_factors() if case == "3factors" else ratings(*SIZES[case])
    for name, column in data.items():
        np.save(Path(folder) / f"{name}.npy", column)


def arrays(folder: str) -> dict[str, np.ndarray]:
    """What `make` has left."""
    return {path.stem: np.load(path) for path in Path(folder).glob("*.npy")}


def run(case: str, folder: str) -> None:
    """One case, in a process of its own."""
    import jmixed as jm

    warnings.simplefilter("ignore")
    print(case, flush=True)
    if case == "workers":
        for ratio in (0.5, 3.0, 30.0):
            print(f"  ratio {ratio:g}")
            model = jm.mixedlm("y ~ 1 + (1 | worker) + (1 | firm)", pd.DataFrame(workers(ratio)))
            told(timed("iterative", lambda model=model: model.fit(crossed="iterative")))
            told(timed("exact", lambda model=model: model.fit(crossed="exact")))
        return
    data = arrays(folder)
    formula = "y ~ x + (x | pupil) + (1 | teacher) + (1 | item)" if case == "3factors" else RATINGS
    print(f"  {len(data['y']):,} rows, {peak()}", flush=True)
    model = timed("state the model", lambda: jm.mixedlm(formula, data))
    told(timed("first fit", lambda: model.fit(crossed="iterative")))
    for seed in (1, 2)[: 1 if case == "32m" else 2]:
        told(timed("again, another seed", lambda seed=seed: model.fit(crossed="iterative", seed=seed)))
    if case == "3factors":
        told(timed("exact", lambda: model.fit(crossed="exact")))


def write(case: str, folder: str) -> None:
    """The data of a case as arrays and as a Parquet file."""
    make(case, folder)
    pd.DataFrame(arrays(folder)).to_parquet(Path(folder) / "ratings.parquet", row_group_size=2**20)


def read(source: str, folder: str) -> None:
    """One fit of the ratings as a caller has them, in a process of its own: from the file to the result."""
    import jmixed as jm

    warnings.simplefilter("ignore")
    path = Path(folder) / "ratings.parquet"
    ways = {
        "arrays": lambda: jm.mixedlm(RATINGS, arrays(folder)),
        "DataFrame": lambda: jm.mixedlm(RATINGS, pd.read_parquet(path)),
        "batches": lambda: jm.from_batches(RATINGS, path),
    }
    told(timed(f"from {source}", lambda: ways[source]().fit(crossed="iterative")))


def design(k: int):
    """A small random design: its model, and whether by REML."""
    import jmixed as jm

    rng = np.random.default_rng(1000 + k)
    n, sizes = int(rng.integers(1500, 6000)), (int(rng.integers(80, 900)), int(rng.integers(30, 200)), 12 + k % 40)
    skew = rng.uniform(0, 1.2)
    shares = [1 / (np.arange(size) + 3.0) ** skew for size in sizes]
    a, b, c = (rng.choice(len(share), n, p=share / share.sum()) for share in shares)
    sd = 10 ** rng.uniform(-0.7, 0.5, 4)
    x, w = rng.normal(size=n) + rng.integers(0, 3), rng.uniform(0.5, 2, n)
    y = 1 + 0.5 * x + sd[0] * rng.normal(size=sizes[0])[a] + sd[1] * rng.normal(size=sizes[1])[b]
    y += (sd[2] * rng.normal(size=sizes[2])[c]) * (k % 3 > 0) + (sd[3] * rng.normal(size=sizes[0])[a] * x) * (k % 3 > 1)
    y += rng.normal(size=n) / np.sqrt(w)
    data = pd.DataFrame({"y": y, "x": x, "w": w, "a": a, "b": b, "c": c})
    formula = (
        "y ~ x + (1 | a) + (1 | b)",
        "y ~ x + (1 | a) + (1 | b) + (1 | c)",
        "y ~ x + (x | a) + (1 | b) + (1 | c)",
    )
    return jm.mixedlm(formula[k % 3], data, weights="w"), k % 2 == 0


def designs(count: int) -> None:
    """Small designs both ways: differences in reported Monte Carlo errors."""
    warnings.simplefilter("ignore")
    scores: dict[str, list[float]] = {"criterion": [], "theta": [], "sigma": [], "coefficients": []}
    for k in range(count):
        model, reml = design(k)
        exact, result = (model.fit(reml=reml, crossed=way) for way in ("exact", "iterative"))
        if not (exact.converged and result.converged and not exact.singular):
            print(f"  design {k}: {exact.outcome.name} {exact.singular}, {result.outcome.name} {result.singular}")
            continue
        for name in scores:
            attribute = {"criterion": "objective", "coefficients": "fe_params"}.get(name, name)
            moved = np.atleast_1d(np.asarray(getattr(result, attribute)) - np.asarray(getattr(exact, attribute)))
            scores[name] += list(np.abs(moved) / np.atleast_1d(np.asarray(getattr(result.monte_carlo, name))))
    for name, values in scores.items():
        size = np.array(values)
        print(
            f"  {name:14} {len(size):4} values: {np.mean(size <= 2):.1%} within 2 Monte Carlo errors, "
            f"{np.mean(size <= 3):.1%} within 3, the largest {size.max():.1f}"
        )


def _apart(step, *arguments) -> None:
    """A step in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=step, args=arguments)
    process.start()
    process.join()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="*", default=[], choices=[*SIZES, "3factors", "workers"])
    parser.add_argument("--sources", nargs="*", default=[], choices=SIZES)
    parser.add_argument("--designs", type=int, default=0, metavar="N")
    options = parser.parse_args()
    for case in options.cases:
        with tempfile.TemporaryDirectory() as folder:
            for step in (make, run)[case == "workers" :]:
                _apart(step, case, folder)
    for case in options.sources:
        print(case, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            _apart(write, case, folder)
            for source in SOURCES:
                _apart(read, source, folder)
    if options.designs:
        designs(options.designs)


if __name__ == "__main__":
    main()
