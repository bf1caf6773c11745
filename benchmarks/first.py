"""First fits: what a process pays before programs are compiled, and what it pays when they are on disk.

Each model of 4,000 rows in 200 groups is fitted first thing in a process of its own: processor seconds of
``mixedlm(...).fit()``, of ``summary()`` and ``test()`` after it, of the same fit again, and of one in a loop; with no
program on disk, and with those that a process before has kept. Beside it statsmodels' fit where statsmodels has the
model, also first thing in a process. Then an analysis of thirty formulas on one data set, fitted one after the other in
one process.

    pip install ".[bench]"
    python benchmarks/first.py [--repeats 3] [--python PATH_OF_ANOTHER_PYTHON ...]
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

DATA = """
import json, sys, time
import numpy as np, pandas as pd
rng = np.random.default_rng(0)
n = 4000
g, h, k = rng.integers(0, 200, n), rng.integers(0, 50, n), rng.integers(0, 5, n)
d = pd.DataFrame({"g": g, "h": h, "k": k, **{name: rng.normal(size=n) for name in ("x0", "x1", "x2", "x3", "t", "u")}})
b = rng.normal(size=(200, 3))[g]
d["y"] = d.x0 + b[:, 0] + b[:, 1] * d.t + b[:, 2] * d.u + rng.normal(size=50)[h] + rng.normal(size=n)
d["gk"] = d.g * 5 + d.k
"""

OWN = (
    DATA
    + """
import jmixed as jm
marks = [time.process_time()]
model = jm.mixedlm({formula!r}, d)
result = model.fit()
marks.append(time.process_time())
str(result.summary()), result.test()
marks.append(time.process_time())
model.fit()
marks.append(time.process_time())
# A loop has the program compiled at one of its first turns.
for _ in range(6):
    model.fit()
marks.append(time.process_time())
for _ in range(20):
    model.fit()
marks.append(time.process_time())
steps = [after - before for before, after in zip(marks, marks[1:])]
print(json.dumps([*steps[:3], steps[4] / 20, result.objective]))
"""
)

PEER = (
    DATA
    + """
import statsmodels.formula.api as smf, warnings
warnings.simplefilter("ignore")
start = time.process_time()
result = smf.mixedlm({formula!r}, d, **{words!r}).fit()
str(result.summary())
print(json.dumps([time.process_time() - start, -2 * result.llf]))
"""
)

MODELS = {
    "y ~ x0 + (1 | g)": ("y ~ x0", {"groups": "g"}),
    "y ~ x0 + x1 + (1 | g)": ("y ~ x0 + x1", {"groups": "g"}),
    "y ~ x0 + t + (t | g)": ("y ~ x0 + t", {"groups": "g", "re_formula": "~ t"}),
    "y ~ x0 + x1 + t + (t | g)": ("y ~ x0 + x1 + t", {"groups": "g", "re_formula": "~ t"}),
    "y ~ x0 + t + (t || g)": None,
    "y ~ x0 + (1 | g) + (1 | h)": None,
    "y ~ x0 + t + (t | g) + (1 | h)": None,
    "y ~ x0 + (1 | g/k)": None,
    "y ~ x0 + t + u + (t + u | g)": ("y ~ x0 + t + u", {"groups": "g", "re_formula": "~ t + u"}),
}

FIXED = ["x0", "x0 + x1", "x0 + x1 + x2", "x0 + x1 + x2 + x3", "x0 * x1", "x0 * t", "x0 + x1 + t", "C(k)", "C(k) + x0"]
RANDOM = ["(1 | g)", "(t | g)", "(1 | g) + (1 | h)"]
THIRTY = [f"y ~ {fixed} + {random}" for random in RANDOM for fixed in FIXED] + [
    "y ~ np.log(x0 ** 2 + 1) + (1 | g)",
    "y ~ x0 + I(x0 ** 2) + (t | g)",
    "y ~ x0 + (1 | g/k)",
]

ANALYSIS = (
    DATA
    + """
import jmixed as jm
start = time.process_time()
objectives = [jm.mixedlm(formula, d).fit().objective for formula in {formulas!r}]
print(json.dumps([time.process_time() - start, sum(objectives)]))
"""
)


def run(python, code, cache):
    """What a process of its own prints."""
    environment = {**os.environ, "JMIXED_CACHE": cache}
    done = subprocess.run([python, "-c", code], env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def kept(python, code, repeats):
    """Medians with an empty directory of programs, and with a filled one."""
    empty, filled = [], []
    for _ in range(repeats):
        cache = tempfile.mkdtemp()
        try:
            empty.append(run(python, code, cache))
            filled.append(run(python, code, cache))
        finally:
            shutil.rmtree(cache)
    return [[statistics.median(column) for column in zip(*rows, strict=True)] for rows in (empty, filled)]


def main():
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="interpreters that have jmixed")
    parser.add_argument("--no-analysis", action="store_true", help="leave out the thirty formulas")
    parser.add_argument("--no-peer", action="store_true", help="leave out statsmodels")
    chosen = parser.parse_args()
    for python in chosen.python:
        versions = "import jax, sys; print(sys.version.split()[0], 'JAX', jax.__version__)"
        print("Python", subprocess.run([python, "-c", versions], check=True, capture_output=True, text=True).stdout)
        print(
            f"{'processor seconds':34}{'nothing on disk':>17}{'on disk':>15}{'again':>8}{'looped':>8}"
            f"{'statsmodels':>13}{'REML':>14}"
        )
        for formula, words in MODELS.items():
            empty, filled = kept(python, OWN.replace("{formula!r}", repr(formula)), chosen.repeats)
            line = f"{formula:34}{empty[0]:9.2f} {empty[1]:7.2f}{filled[0]:8.2f} {filled[1]:6.2f}"
            line += f"{empty[2]:8.3f}{filled[3]:8.4f}"
            peer = ""
            if words is not None and not chosen.no_peer:
                code = PEER.replace("{formula!r}", repr(words[0])).replace("{words!r}", repr(words[1]))
                peer = f"{statistics.median(run(python, code, 'off')[0] for _ in range(chosen.repeats)):.2f}"
            print(f"{line}{peer:>13}{filled[4]:14.4f}", flush=True)
        if not chosen.no_analysis:
            (empty, objectives), (filled, _) = kept(python, ANALYSIS.replace("{formulas!r}", repr(THIRTY)), 1)
            print(f"thirty formulas: {empty:.1f}, on disk {filled:.1f} (sum of criteria {objectives:.4f})", flush=True)


if __name__ == "__main__":
    main()
