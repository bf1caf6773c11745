"""jmixed and statsmodels side by side: ``model = mixedlm(...); model.fit()`` on the same data, warm.

Each library is timed in a process of its own, so that the peak memory is its own, and the first call, which compiles,
stands apart from the repeated ones. Prints one table and asserts nothing.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CASES = {
    "slopes": {"formula": "Reaction ~ Days", "groups": "Subject", "re_formula": "~Days"},
    "chem97": {"formula": "score ~ gcse", "groups": "school"},
}


def slopes_data(groups=200, rows=20, seed=1):
    """Reaction times in the manner of sleepstudy: a random intercept and slope for each of many subjects."""
    rng = np.random.default_rng(seed)
    subject, day = np.indices((groups, rows)).reshape(2, -1)
    effects = rng.multivariate_normal([251.4, 10.5], [[612.0, 9.6], [9.6, 35.1]], groups)[subject]
    reaction = effects[:, 0] + effects[:, 1] * day + rng.normal(0, 25.6, subject.size)
    return pd.DataFrame({"Reaction": reaction, "Days": day.astype(float), "Subject": subject})


def chem97_data(path=None, schools=2410, pupils=31022, seed=2):
    """Chem97 as published when its file is given, otherwise data of the same shape, with as uneven schools."""
    if path is not None:
        frame = pd.read_parquet(path) if Path(path).suffix == ".parquet" else pd.read_csv(path)
        gcse = frame["gcsescore"] if "gcsescore" in frame else frame["gcsecnt"]
        return pd.DataFrame({"score": frame["score"].astype(float), "gcse": gcse, "school": frame["school"]})
    rng = np.random.default_rng(seed)
    share = rng.gamma(1.0, size=schools)
    sizes = 1 + rng.multinomial(pupils - schools, share / share.sum())
    school = np.repeat(np.arange(schools), sizes)
    gcse = rng.normal(6.3, 0.8, pupils)
    latent = -9.9 + 2.47 * gcse + rng.normal(0, 1.09, schools)[school] + rng.normal(0, 2.27, pupils)
    return pd.DataFrame({"score": np.clip(2 * np.round(latent / 2), 0, 10), "gcse": gcse, "school": school})


def measure(library, case, chem97, repeats, budget):
    """First and repeated times of one library on one case, in seconds, with its peak memory in MiB.

    Repeats stop early once they have taken ``budget`` seconds together.
    """
    if library == "jmixed":
        from jmixed import mixedlm
    else:
        from statsmodels.formula.api import mixedlm
    data = slopes_data() if case == "slopes" else chem97_data(chem97)
    seconds = []
    with warnings.catch_warnings():
        # statsmodels warns while it searches; the table shows what it reached.
        warnings.simplefilter("ignore")
        while len(seconds) <= 1 or (len(seconds) <= repeats and sum(seconds[1:]) < budget):
            start = time.perf_counter()
            words: dict[str, Any] = CASES[case]
            result = mixedlm(data=data, **words).fit()
            seconds.append(time.perf_counter() - start)
    return {
        "first": seconds[0],
        "repeated": seconds[1:],
        "memory": peak_memory(),
        "objective": -2 * float(result.llf),
        "converged": bool(result.converged),
        "rows": len(data),
        "groups": int(data.iloc[:, -1].nunique()),
    }


def peak_memory():
    """Largest resident size of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def measure_apart(library, case, arguments):
    """The same in a fresh process."""
    command = [sys.executable, __file__, "--one", library, case]
    command += ["--repeats", str(arguments.repeats), "--budget", str(arguments.budget)]
    command += ["--chem97", arguments.chem97] if arguments.chem97 else []
    # A first call is to be a cold one, also for those who keep compiled programs.
    environment = {**os.environ, "JMIXED_CACHE": "off"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(case, title, arguments):
    ours = measure_apart("jmixed", case, arguments)
    theirs = measure_apart("statsmodels", case, arguments)
    print(f"\n{title}: {ours['rows']:,} rows, {ours['groups']:,} groups")
    print(f"{'':14}{'first s':>10}{'median s':>10}{'min s':>10}{'max s':>10}{'runs':>6}{'MiB':>8}{'-2 REML logL':>18}")
    for library, row in (("jmixed", ours), ("statsmodels", theirs)):
        times = row["repeated"]
        print(
            f"{library:14}{row['first']:10.3f}{statistics.median(times):10.4f}{min(times):10.4f}{max(times):10.4f}"
            f"{len(times):6}{row['memory']:8.0f}{row['objective']:18.6f}"
            + ("" if row["converged"] else "  says it did not converge")
        )
    ratio = statistics.median(theirs["repeated"]) / statistics.median(ours["repeated"])
    gap = ours["objective"] - theirs["objective"]
    print(f"jmixed is {ratio:.1f} times as fast as statsmodels; its objective minus statsmodels': {gap:+.2e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chem97", metavar="PATH", help="Parquet or CSV file of Chem97; otherwise simulated")
    parser.add_argument("--repeats", type=int, default=7, help="repeated calls at most")
    parser.add_argument("--budget", type=float, default=120.0, help="seconds of repeated calls at most")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "CASE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        library, case = arguments.one
        print(json.dumps(measure(library, case, arguments.chem97, arguments.repeats, arguments.budget)))
        return
    versions = ", ".join(f"{name} {version(name)}" for name in ("jmixed", "jax", "statsmodels", "numpy"))
    print(f"Python {platform.python_version()}, {versions}; {os.cpu_count()} CPUs, {platform.machine()}")
    print(
        "Seconds of mixedlm(...).fit(); the first call compiles. Memory: largest of the process, data and imports too."
    )
    report("slopes", "Random slopes in the manner of sleepstudy, simulated", arguments)
    origin = f"from {Path(arguments.chem97).name}" if arguments.chem97 else "SIMULATED with its shape"
    report("chem97", f"Chem97, {origin}, random intercept of the school", arguments)


if __name__ == "__main__":
    main()
