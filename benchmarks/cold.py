"""A whole process that imports a package, reads sleepstudy from a CSV file, fits and prints the summary.

jmixed beside statsmodels, a fresh process each, in turns, so that whatever else the machine does meets both. Prints the
median wall seconds and processor seconds, and the medians of the ratios within pairs: with an empty compilation
cache, with one that a process before has filled, and from the command line (which prints the summary, too).

    pip install ".[bench]"
    python benchmarks/cold.py [--pairs 15] [--cases warm empty]
"""

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

FORMULA, GROUPS = "Reaction ~ Days", "Subject"

STATSMODELS = f"""
import pandas as pd
import statsmodels.formula.api as smf
data = pd.read_csv({{path!r}})
print(smf.mixedlm("{FORMULA}", data, groups=data["{GROUPS}"], re_formula="~ Days").fit().summary())
"""

JMIXED = f"""
import pandas as pd
import jmixed as jm
jm.enable_compilation_cache({{cache!r}})
data = pd.read_csv({{path!r}})
print(jm.mixedlm("{FORMULA}", data, groups=data["{GROUPS}"], re_formula="~ Days").fit().summary())
"""


def commands(case, path, cache):
    """The command line of jmixed and of statsmodels."""
    peer = [sys.executable, "-c", STATSMODELS.format(path=path)]
    if case == "command line":
        own = [sys.executable, "-m", "jmixed", f"{FORMULA} + (Days | {GROUPS})", "--data", path]
    else:
        own = [sys.executable, "-c", JMIXED.format(path=path, cache=cache)]
    return own, peer


def seconds(command, environment):
    """Wall and processor seconds of one process."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measure(case, path, pairs):
    """Pairs of (wall, processor) seconds: jmixed's and statsmodels', in turns, which comes first changing each time."""
    cache = tempfile.mkdtemp()
    # Python's own compiled files are to be there for both, as on a user's machine.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment["JMIXED_CACHE"] = cache
    own, peer = commands(case, path, cache)
    measured = []
    try:
        for command in (own, peer):
            seconds(command, environment)
        for pair in range(pairs):
            times = {}
            for name, command in (("own", own), ("peer", peer))[:: 1 if pair % 2 else -1]:
                if name == "own" and case == "empty":
                    shutil.rmtree(cache)
                    os.mkdir(cache)
                times[name] = seconds(command, environment)
            measured.append((times["own"], times["peer"]))
    finally:
        shutil.rmtree(cache)
    return measured


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    cases = ("warm", "empty", "command line")
    parser.add_argument("--cases", nargs="+", choices=cases, default=list(cases))
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()

    import jmixed as jm

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "sleepstudy.csv")
        jm.datasets.load("sleepstudy").to_csv(path, index=False)
        print(f"{'cache':14}{'seconds':>10}{'jmixed':>9}{'statsmodels':>13}{'ratio':>8}{'least':>8}{'most':>8}")
        for case in arguments.cases:
            measured = measure(case, path, arguments.pairs)
            for kind, label in enumerate(("wall", "processor")):
                own, peer = ([pair[side][kind] for pair in measured] for side in (0, 1))
                ratios = [a / b for a, b in zip(own, peer, strict=True)]
                print(
                    f"{case:14}{label:>10}{statistics.median(own):9.2f}{statistics.median(peer):13.2f}"
                    f"{statistics.median(ratios):8.2f}{min(ratios):8.2f}{max(ratios):8.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
