"""Large fits on the accelerator that JAX finds, beside this machine's CPU: time, memory, share of the device's limit.

    python benchmarks/gpu.py --small          # does all of it run? a minute or two
    python benchmarks/gpu.py                  # everything: memory for the 10 million ratings, and an hour on a slow CPU
    python benchmarks/gpu.py --cases insteval "ratings 1m" --only accelerator --float32

Every case has a process of its own, so that peak memory is its own and one that does not fit stops nothing else. What a
device can do is measured first, by a copy and by a product of matrices; the bound of an evaluation of the likelihood
(value, gradient, Hessian) is the longer of its bytes over the one and its operations over the other. Without an
accelerator the CPU stands alone.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import cases
import numpy as np

RATINGS = "y ~ 1 + (1 | user) + (1 | item)"


def _responses(count: int, groups: int):
    """A design of ten rows a group, and random responses for it."""
    return cases.slopes(groups), np.random.default_rng(3).normal(size=(count, 10 * groups))


CASES: dict[str, dict[str, Any]] = {
    "grouped 1m": {
        "data": partial(cases.slopes, 100_000),
        "small": partial(cases.slopes, 1_000),
        "formula": cases.SLOPES,
    },
    "insteval": {"data": cases.insteval, "small": cases.insteval, "formula": cases.CASES["insteval"][1]},
    "10,000 responses": {
        "data": partial(_responses, 10_000, 200),
        "small": partial(_responses, 100, 20),
        "formula": cases.SLOPES,
    },
    "ratings 1m": {
        "data": partial(cases.ratings, 1_000_000, 60_000, 20_000),
        "small": partial(cases.ratings, 5_000, 600, 200),
        "formula": RATINGS,
    },
    "ratings 1m, 40k items": {
        "data": partial(cases.ratings, 1_000_000, 80_000, 40_000),
        "small": partial(cases.ratings, 6_000, 800, 400),
        "formula": RATINGS,
    },
    "ratings 10m": {
        "data": partial(cases.ratings, 10_000_000, 200_000, 20_000),
        "small": partial(cases.ratings, 20_000, 2_000, 200),
        "formula": RATINGS,
    },
    "ratings 10m, 40k items": {
        "data": partial(cases.ratings, 10_000_000, 200_000, 40_000),
        "small": partial(cases.ratings, 30_000, 3_000, 300),
        "formula": RATINGS,
    },
}
PUBLISHED = "MixedModels.jl (8 threads, 31 to 32 million ratings): 42 s an evaluation at 16,000 movies, 667 s at 84,432"
MOVIELENS = 84_432


def seconds(function: Callable, *arguments, budget: float = 60.0) -> tuple[Any, float, float]:
    """The result, the seconds of the first call, and the median of up to three more within a budget."""
    import jax

    times, out = [], None
    while len(times) < 4 and (len(times) < 2 or sum(times) < budget):
        started = time.perf_counter()
        out = jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return out, times[0], float(np.median(times[1:]))


def rates(dtype) -> tuple[float, float]:
    """Bytes a second of a copy and operations a second of a product of matrices, as this device does them."""
    import jax
    import jax.numpy as jnp

    from jmixed.runtime.device import on_cpu

    length, n = (2**24, 1024) if on_cpu() else (2**27, 8192)
    _, _, copied = seconds(jax.jit(lambda x: x + 1), jnp.zeros(length, dtype))
    _, _, multiplied = seconds(jax.jit(lambda a: a @ a), jnp.ones((n, n), dtype))
    return 2 * length * np.dtype(dtype).itemsize / copied, 2 * n**3 / multiplied


def work(held) -> tuple[int, int]:
    """Bytes that an evaluation reads, and operations on a crossed core: an inverse, and a product a leaf direction."""
    import jax

    read = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((held.C, held.B, held.A, held.G, held.index.links)))
    layout = held.layout
    if not layout.crossed:
        return read, 0
    directions = sum(layout.terms[t].size for f, _ in layout.stages[0] for t in layout.factors[f])
    return read, 2 * layout.stage_width(1) ** 3 * (1 + directions)


def peak_bytes() -> tuple[int, str]:
    """Most memory so far: the device's own count, or the process's."""
    import jax

    told = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in told:
        return told["peak_bytes_in_use"], "device"
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, "process"


def on_device(dtype, tree):
    """Arrays on the device, floats in a precision."""
    import jax

    def move(array):
        array = np.asarray(array)
        return jax.device_put(array.astype(dtype) if array.dtype.kind == "f" else array)

    return jax.tree.map(move, tree)


def one_fit(design, dtype) -> dict[str, Any]:
    """Fit a design: times of the whole, of one evaluation, and the bound of that."""
    import jax

    import jmixed as jm
    from jmixed.fit.solve import Search, minimise_deviance, solve
    from jmixed.likelihood.profiled import ProfiledDeviance

    def fit(design):
        held = jm.moments(design)
        solution = minimise_deviance(held, True, Search())
        solved = solve(held, True, minimise=lambda *_: solution)
        return solved, solution.point

    def evaluate(point, held):
        return ProfiledDeviance(held, True).value_gradient_hessian(point)

    (solved, point), first, later = seconds(jax.jit(fit), design)
    held, _, products = seconds(jax.jit(jm.moments), design)
    _, _, evaluation = seconds(jax.jit(evaluate), point, held)
    _, _, value = seconds(jax.jit(jm.profiled_deviance), solved.estimates["theta"], held)
    read, operations = work(held)
    return {
        "first": first,
        "later": later,
        "products": products,
        "evaluations": int(solved.certificate.evaluations),
        "evaluation": evaluation,
        "value": value,
        "read": read,
        "operations": operations,
        "outcome": jm.Outcome(int(solved.outcome)).name,
        "objective": float(solved.estimates["objective"]),
    }


def many_fits(design, Y, dtype) -> dict[str, Any]:
    """Fit many responses in one call."""
    import jax

    import jmixed as jm

    own = jax.device_put(Y.astype(dtype))
    out, first, later = seconds(jax.jit(jm.estimate_many), design, own)
    good = float(np.mean(np.isin(np.asarray(out.outcome), [0, 1])))
    return {"first": first, "later": later, "each": later / len(Y), "read": own.nbytes, "converged": good}


def child(name: str, small: bool, float32: bool) -> None:
    """One case on the device of this process; the last line of the output is its figures."""
    import jax

    import jmixed as jm

    jax.config.update("jax_enable_x64", not float32)
    dtype = np.float32 if float32 else np.float64
    bandwidth, flops = rates(dtype)
    device = jax.devices()[0]
    case, started = CASES[name], time.perf_counter()
    data, Y = case["small" if small else "data"](), None
    if isinstance(data, tuple):
        data, Y = data
    model = jm.mixedlm(case["formula"], data)
    design = on_device(dtype, model.design)
    found = {"device": f"{device.device_kind} ({device.platform})", "rows": model.nobs, "bandwidth": bandwidth}
    found |= {"flops": flops, "host": time.perf_counter() - started}
    found |= one_fit(design, dtype) if Y is None else many_fits(design, Y, dtype)
    found["peak"], found["peak_of"] = peak_bytes()
    found["limit"] = (device.memory_stats() or {}).get("bytes_limit")
    print(json.dumps(found))


def shown(name: str, found: dict[str, Any]) -> str:
    """A case's figures in words."""
    bound = found["read"] / found["bandwidth"]
    line = f"  {name:24} {found['rows']:>9} rows  first {found['first']:7.2f} s  then {found['later']:8.3f} s  "
    if "each" in found:
        line += f"{1e3 * found['each']:.3f} ms a response, {found['converged']:.1%} converged, "
        line += f"{bound / found['later']:.2%} of the copy rate"
    else:
        bound = max(bound, found["operations"] / found["flops"])
        line += f"{found['evaluations']} evaluations of {1e3 * found['evaluation']:.2f} ms (value alone "
        line += f"{1e3 * found['value']:.2f}), bound {1e3 * bound:.2f} ms: {bound / found['evaluation']:.1%}; "
        line += f"cross-products {found['products']:.3f} s; {found['outcome']} at {found['objective']:.6f}"
    limit = f" of {found['limit'] / 2**30:.0f}" if found["limit"] else ""
    return (
        f"{line}; {found['peak'] / 2**30:.2f}{limit} GiB ({found['peak_of']}); on the host {found['host']:.1f} s before"
    )


def run(name: str, platform: str, options) -> dict[str, Any] | str:
    """The figures of a case in a process of its own, or why there are none."""
    command = [sys.executable, __file__, "--child", name, *(["--small"] * options.small)]
    command += ["--float32"] * options.float32
    environment = os.environ | ({"JAX_PLATFORMS": "cpu"} if platform == "cpu" else {})
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=options.limit)
    except subprocess.TimeoutExpired:
        return f"stopped after {options.limit} s"
    if done.returncode:
        return (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1][:200]
    return json.loads(done.stdout.strip().splitlines()[-1])


def carried(found: dict[str, Any]) -> str:
    """How far the measured rates carry: a full MovieLens-32M fit."""
    core = 8 * MOVIELENS**2
    operations = 4 * MOVIELENS**3
    return (
        f"  MovieLens-32M has {MOVIELENS} movies: a core of {core / 1e9:.0f} GB in 64 bits, of which a fit holds about "
        f"twelve at a time ({12 * core / 1e9:.0f} GB); {operations:.1e} operations an evaluation, "
        f"{operations / found['flops']:.0f} s at the {found['flops'] / 1e12:.2f} Tflop/s measured here"
    )


def main() -> None:
    # First calls are to compile.
    os.environ["JMIXED_CACHE"] = "off"
    """Print a line for each case and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--small", action="store_true", help="the same cases with few rows: to see that they run")
    parser.add_argument("--only", choices=["accelerator", "cpu"], help="one of the two devices")
    parser.add_argument("--float32", action="store_true", help="single precision; estimates then have about 4 digits")
    parser.add_argument("--limit", type=float, default=1800, help="seconds that a case may take")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.small, options.float32)
        return
    probe = "import jax; print(jax.default_backend(), jax.__version__)"
    backend, version = subprocess.check_output([sys.executable, "-c", probe], text=True).split()[-2:]
    platforms = ["accelerator", "cpu"] if backend != "cpu" else ["cpu"]
    if options.only == "accelerator" and backend == "cpu":
        parser.error("JAX finds no accelerator here: install jax with the device's plugin, or leave out --only")
    print(f"JAX {version}, {'float32' if options.float32 else 'float64'}; {PUBLISHED}")
    for platform in [options.only] if options.only else platforms:
        last = None
        for name in options.cases:
            found = run(name, platform, options)
            if isinstance(found, str):
                print(f"  {name:24} {found}", flush=True)
                continue
            if last is None:
                print(f"{found['device']}: {found['bandwidth'] / 1e9:.1f} GB/s, {found['flops'] / 1e9:.0f} Gflop/s")
            print(shown(name, found), flush=True)
            last = found
        if last is not None:
            print(carried(last))


if __name__ == "__main__":
    main()
