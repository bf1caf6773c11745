"""From trials of subjects and items to a results section: means, contrasts, checks, a figure, a table, a sentence."""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import jmixed as jm

EFFECTS = {"control": 0.0, "related": -40.0, "repeated": -70.0}


def simulate(subjects=40, items=60, seed=5):
    """Reaction times (ms): every subject sees every item, in one of three conditions; some trials are lost."""
    rng = np.random.default_rng(seed)
    subject, item = (part.ravel() for part in np.indices((subjects, items)))
    condition = np.array(list(EFFECTS))[(subject + item) % 3]
    effect = np.array([EFFECTS[name] for name in condition])
    own = rng.normal(0, [60, 0.3], (subjects, 2))
    rt = 650 + effect * (1 + own[subject, 1]) + own[subject, 0] + rng.normal(0, 30, items)[item]
    length = rng.integers(3, 10, items)[item]
    data = pd.DataFrame({"subject": subject, "item": item, "condition": condition, "length": length})
    data["rt"] = rt + 6 * (length - 6) + rng.normal(0, 90, rt.size)
    return data[rng.uniform(size=len(data)) > 0.05]


def main():
    plt.switch_backend("Agg")
    data = simulate()
    result = jm.mixedlm("rt ~ condition + length + (1 | subject) + (1 | item)", data).fit()

    means = result.emmeans("condition")
    contrasts = means.contrasts("reference")
    print(means)
    print(contrasts)
    print(result.slopes("length"))

    checks = result.check()
    print(checks)
    simple = jm.mixedlm("rt ~ condition + (1 | subject) + (1 | item)", data).fit()
    table = jm.table([simple, result], names=["conditions", "and length"], style="ci", ddf="satterthwaite")
    print(table)
    print(result.report())

    with tempfile.TemporaryDirectory() as folder:
        jm.plot.check(result).savefig(Path(folder) / "checks.png")
        figure, ax = plt.subplots(layout="constrained")
        jm.plot.effects(result, "length", by="condition", ax=ax)
        figure.savefig(Path(folder) / "effects.png")
        Path(folder, "table.html").write_text(table.to_html(), encoding="utf-8")
        print(sorted(path.name for path in Path(folder).iterdir()))

    for row in contrasts.to_dict("records"):
        truth = EFFECTS[row["contrast"].split(" - ")[0]]
        if not row["lower"] - 10 < truth < row["upper"] + 10:
            raise SystemExit(f"{row['contrast']}: {row['lower']:.1f} to {row['upper']:.1f}, the truth is {truth}")


if __name__ == "__main__":
    main()
