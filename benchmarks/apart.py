"""One system at a time, each in a fresh process: the command line and the runs of `peers` and of `generalized`."""

import argparse
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tempfile
import time

IN_R = ("lme4", "glmmTMB")


def measured(command, limit):
    """What a fresh process prints at last, with the seconds that it took, or the reason why there is nothing."""
    # A first call is to be a cold one, also for those who keep compiled programs.
    environment = {**os.environ, "JMIXED_CACHE": "off"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    start = time.perf_counter()
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not finished after {limit:.0f} s"
    if done.returncode:
        return "failed: " + (done.stderr.strip().splitlines() or ["no message"])[-1][:90]
    return json.loads(done.stdout.splitlines()[-1]) | {"process": time.perf_counter() - start}


def missing(system):
    """Why a system cannot be run here, or None."""
    if system in IN_R:
        return None if shutil.which("Rscript") else "Rscript is not installed"
    return None if importlib.util.find_spec(system) else 'not installed (pip install ".[bench]")'


def run(about, cases, systems, measure, report, *, repeats, budget, limit):
    """Read the command line; then ``measure(system, case, path, repeats, budget)`` where this is the fresh process of
    one system, or else ``report(case, systems, folder, arguments)`` of case after case."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(cases), default=list(cases))
    parser.add_argument("--systems", nargs="+", choices=systems, default=list(systems))
    parser.add_argument("--repeats", type=int, default=repeats, help="repeated calls at most")
    parser.add_argument("--budget", type=float, default=budget, help="seconds after which no repeat begins")
    parser.add_argument("--limit", type=float, default=limit, help="seconds of a process at most")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        system, case, path, times, seconds = arguments.one
        print(json.dumps(measure(system, case, path, int(times), float(seconds))))
        return
    print(
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {platform.machine()}, {time.strftime('%Y-%m-%d')}"
    )
    with tempfile.TemporaryDirectory() as folder:
        for case in arguments.cases:
            report(case, arguments.systems, folder, arguments)
