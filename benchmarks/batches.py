"""A data set that need not fit into memory: time and peak memory of `from_batches`, beside reading the file alone.

    python benchmarks/batches.py --rows 10_000_000 --groups 1_000_000

The file is made in chunks, once, and kept. Rows are in random order of their groups, so that every group is spread over
the whole file. Each step runs in a process of its own; peak memory is that of the process, with imports.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

CHUNK = 2**18


def make(path: Path, rows: int, groups: int) -> None:
    """Write y = X beta + b[group] + e with two predictors and three arms, one chunk after the other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = np.random.default_rng(1)
    effects = rng.normal(size=groups)
    writer = None
    for start in range(0, rows, CHUNK):
        n = min(CHUNK, rows - start)
        group = rng.integers(0, groups, n)
        x = rng.normal(size=(n, 2))
        arm = rng.integers(0, 3, n)
        y = 1 + 2 * x[:, 0] - x[:, 1] + 0.5 * arm + effects[group] + rng.normal(size=n)
        names = np.array(["control", "dose a", "dose b"])[arm]
        table = pa.table({"y": y, "x": x[:, 0], "z": x[:, 1], "arm": names, "group": group})
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def read(path: Path) -> str:
    """Go through the file once."""
    from jmixed.streams.reading import stored

    rows = sum(len(batch) for batch in stored(path)(None))
    return f"{rows} rows"


FORMULA = "y ~ x + z + arm + (1 | group)"


def batched(path: Path) -> str:
    """State and fit the model from the file."""
    import jmixed as jm

    started = time.perf_counter()
    model = jm.from_batches(FORMULA, path)
    stated = time.perf_counter() - started
    result = model.fit()
    shown = ", ".join(f"{value:.9f}" for value in [*result.fe_params, result.theta[0], result.sigma])
    return f"{stated:.1f} s to state, {model.nobs} rows, {len(model.spec.terms[0].levels)} groups: {shown}"


def in_memory(path: Path) -> str:
    """The same with the data in memory."""
    import pandas as pd

    import jmixed as jm

    result = jm.mixedlm(FORMULA, pd.read_parquet(path)).fit()
    return ", ".join(f"{value:.9f}" for value in [*result.fe_params, result.theta[0], result.sigma])


def _measured(name, function, path, queue):
    started = time.perf_counter()
    text = function(path)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    queue.put(f"{name:12} {time.perf_counter() - started:7.1f} s  {peak:5.2f} GiB  {text}")


def main() -> None:
    """Make the file if it is not there, and print a line for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--groups", type=int, default=200_000)
    parser.add_argument("--file", type=Path, help="where to keep the data; by default in the folder of temporary files")
    parser.add_argument("--in-memory", action="store_true", help="fit the data in memory as well")
    options = parser.parse_args()
    name = f"jmixed_{options.rows}_{options.groups}.parquet"
    path = options.file or Path(tempfile.gettempdir()) / name
    if not path.exists():
        make(path, options.rows, options.groups)
    print(f"{options.rows} rows, {options.groups} groups, {path.stat().st_size / 2**20:.0f} MiB on disk")
    steps = [("read once", read), ("from_batches", batched), *([("in memory", in_memory)] * options.in_memory)]
    context = multiprocessing.get_context("spawn")
    for name, function in steps:
        queue = context.Queue()
        process = context.Process(target=_measured, args=(name, function, path, queue))
        process.start()
        process.join()
        print(queue.get() if process.exitcode == 0 else f"{name}: failed", flush=True)


if __name__ == "__main__":
    main()
