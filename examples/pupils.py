"""From a file of pupils in classes in schools to a results section: tidy, fit, check, compare, draw, write it down."""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import jmixed as jm

GAIN = {"usual": 0.0, "small groups": 4.0, "tutor": 7.0}


def write_file(path, schools=40, seed=8):
    """Two to four classes in each school, each taught in one way; classes are numbered anew in every school."""
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(schools), rng.integers(2, 5, schools))
    number = np.concatenate([np.arange(count) for count in np.bincount(school)]) + 1
    teaching = rng.choice(list(GAIN), school.size)
    of_class = rng.normal(0, 6, schools)[school] + rng.normal(0, 4, school.size) + [GAIN[name] for name in teaching]
    row = np.repeat(np.arange(school.size), rng.integers(15, 28, school.size))
    pretest = rng.normal(50, 10, row.size).round()
    slope = 0.6 + rng.normal(0, 0.2, schools)[school[row]]
    score = (55 + of_class[row] + slope * (pretest - 50) + rng.normal(0, 8, row.size)).round(1)
    data = pd.DataFrame({"school": school[row], "class": number[row], "teaching": teaching[row], "pretest": pretest})
    data["girl"], data["score"] = rng.choice(["yes", "no"], row.size), score
    data.loc[rng.uniform(size=len(data)) < 0.04, "pretest"] = np.nan
    data.to_csv(path, index=False)


def main():
    plt.switch_backend("Agg")
    with tempfile.TemporaryDirectory() as folder:
        write_file(Path(folder) / "pupils.csv")
        data = pd.read_csv(Path(folder) / "pupils.csv")
        # The first category is what others are compared with; slopes of schools are told at a pretest of 50.
        data["teaching"] = pd.Categorical(data["teaching"], list(GAIN))
        data["before"] = data["pretest"] - 50
        print(data.groupby("teaching", observed=True)[["score", "pretest"]].agg(["size", "count", "mean"]).round(1))

        # A class is a class of its school: (1 | school:class).
        bars = "(before | school) + (1 | school:class)"
        result = jm.mixedlm(f"score ~ before + girl + teaching + {bars}", data, missing="drop").fit()
        plain = jm.mixedlm("score ~ before + girl + teaching + (1 | school/class)", data, missing="drop").fit()
        print(jm.test_variance(result, plain), "\n")
        print(result.check(), "\n")
        print(result.icc(), "\n")

        means = result.emmeans("teaching", ddf="kenward-roger")
        contrasts = means.contrasts("reference")
        print(means, contrasts, result.slopes("before"), sep="\n\n")
        table = jm.table([plain, result], ["intercepts", "and slopes"], style="ci", ddf="satterthwaite")
        print("", table, result.report(), sep="\n\n")

        jm.plot.check(result).savefig(Path(folder) / "checks.png")
        figure, ax = plt.subplots(figsize=(3.5, 3), layout="constrained")
        jm.plot.effects(result, "before", by="teaching", ax=ax).set_xlabel("pretest, less 50")
        figure.savefig(Path(folder) / "effect.png", dpi=300)
        Path(folder, "table.html").write_text(table.to_html(), encoding="utf-8")
        print("\n", sorted(path.name for path in Path(folder).iterdir()))

    for row in contrasts.to_dict("records"):
        truth = GAIN[row["contrast"].split(" - ")[0]]
        if not row["lower"] - row["se"] < truth < row["upper"] + row["se"]:
            raise SystemExit(f"{row['contrast']}: {row['lower']:.1f} to {row['upper']:.1f}, the truth is {truth}")


if __name__ == "__main__":
    main()
