"""Large fits on whatever device JAX has, beside this machine's CPU: times, and the least time that memory allows.

    python benchmarks/gpu.py --rows 1_000_000 --float32

The array side runs on the device unchanged. Each case is compiled once and then timed; the bound is the number of bytes
that one evaluation must read divided by `--bandwidth`, for the evaluations of the fit.
"""

import argparse
import time
from collections.abc import Callable

import jax
import numpy as np

import jmixed as jm


def grouped(rows: int):
    """A random intercept and slope, ten rows a group."""
    rng = np.random.default_rng(1)
    groups, x = np.arange(rows) // 10, rng.normal(size=rows)
    effects = rng.normal(size=(2, groups[-1] + 1))
    data = {"g": groups, "x": x, "y": 1 + x + effects[0, groups] + effects[1, groups] * x + rng.normal(size=rows)}
    return jm.mixedlm("y ~ x + (x | g)", data).design


def crossed(rows: int):
    """Ratings by users of items, two crossed factors."""
    rng = np.random.default_rng(2)
    users, items = rng.integers(0, max(rows // 50, 2), rows), rng.integers(0, max(rows // 200, 2), rows)
    y = rng.normal(size=users.max() + 1)[users] + rng.normal(size=items.max() + 1)[items] + rng.normal(size=rows)
    return jm.mixedlm("y ~ 1 + (1 | user) + (1 | item)", {"user": users, "item": items, "y": y}).design


def on(device, dtype, design):
    """The design's arrays on a device, in a precision."""

    def move(array):
        array = np.asarray(array)
        return jax.device_put(array.astype(dtype) if array.dtype.kind == "f" else array, device)

    return jax.tree.map(move, design)


def bytes_read(design) -> int:
    """Of the cross-products, which an evaluation reads once."""
    held = jax.eval_shape(jm.moments, design)
    return sum(a.size * a.dtype.itemsize for a in jax.tree.leaves((held.C, held.B, held.A)))


def seconds(function: Callable, *arguments) -> tuple[float, float]:
    """Of the first call, and the median of three more."""
    times = []
    for _ in range(4):
        started = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - started)
    return times[0], float(np.median(times[1:]))


def main() -> None:
    """Print a line for each case and device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="rows of the grouped case")
    parser.add_argument("--ratings", type=int, default=50_000, help="rows of the crossed case")
    parser.add_argument("--responses", type=int, default=1_000)
    parser.add_argument("--bandwidth", type=float, default=20e9, help="bytes a second that the device's memory gives")
    parser.add_argument("--float32", action="store_true", help="single precision; estimates then have about 4 digits")
    options = parser.parse_args()
    dtype = np.float32 if options.float32 else np.float64
    jax.config.update("jax_enable_x64", not options.float32)
    devices = [jax.devices()[0], *(jax.devices("cpu")[:1] if jax.default_backend() != "cpu" else [])]
    designs = {"grouped": grouped(options.rows), "crossed": crossed(options.ratings)}
    small = grouped(2_000)
    Y = np.random.default_rng(3).normal(size=(options.responses, 2_000))
    for device in devices:
        print(f"{device.device_kind} ({device.platform}), {np.dtype(dtype).name}, JAX {jax.__version__}")
        for name, design in designs.items():
            here = on(device, dtype, design)
            first, later = seconds(jax.jit(jm.estimate), here)
            size = bytes_read(here)
            least = f"{size / 1e6:.1f} MB an evaluation, {1e3 * size / options.bandwidth:.2f} ms at least"
            print(f"  {name:10} {len(design.y):9} rows  first {first:6.2f} s  then {later:7.3f} s  {least}", flush=True)
        many = jax.device_put(Y.astype(dtype), device)
        first, later = seconds(jax.jit(jm.estimate_many), on(device, dtype, small), many)
        print(f"  {len(Y)} responses of 2,000 rows  first {first:6.2f} s  then {later:7.3f} s", flush=True)


if __name__ == "__main__":
    main()
