"""Estimated marginal means and their differences through marginaleffects, where the plain means of the data mislead."""

from typing import Any

import marginaleffects
import numpy as np
import pandas as pd

import jmixed as jm

# Its type hints know fewer arguments than it takes.
predictions: Any = marginaleffects.predictions

TRUTH = {"lecture": 0.0, "seminar": 4.0, "workshop": 6.0}


def simulate(schools=60, pupils=20, seed=11):
    """Workshops go mostly to older pupils, who score higher anyway."""
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(schools), pupils)
    level = rng.choice(["junior", "senior"], school.size)
    chances = {"junior": [0.6, 0.3, 0.1], "senior": [0.1, 0.3, 0.6]}
    course = np.array([rng.choice(list(TRUTH), p=chances[k]) for k in level])
    score = 50 + 10 * (level == "senior") + np.array([TRUTH[c] for c in course])
    score = score + rng.normal(0, 4, schools)[school] + rng.normal(0, 6, school.size)
    return pd.DataFrame({"score": score, "course": course, "level": level, "school": school})


def main():
    data = simulate()
    result = jm.mixedlm("score ~ course + level + (1 | school)", data).fit()
    model = jm.interop.to_marginaleffects(result)

    # A balanced grid: every course with every level once, as R's emmeans has it.
    means = predictions(model, newdata="balanced", by="course")
    differences = predictions(model, newdata="balanced", by="course", hypothesis="difference ~ pairwise")
    robust = predictions(model, newdata="balanced", by="course", vcov="CR2")

    raw = data.groupby("course")["score"].mean()
    table = pd.DataFrame({"plain mean": raw, "marginal mean": means["estimate"].to_list()})
    table["std.error"], table["robust"] = means["std_error"].to_list(), robust["std_error"].to_list()
    print(table.round(2))
    print(differences)

    for course, truth in TRUTH.items():
        gap = float(table.at[course, "marginal mean"]) - float(table.at["lecture", "marginal mean"])
        if abs(gap - truth) > 4 * 0.55:
            raise SystemExit(f"{course}: the difference to a lecture is {gap:.2f}, the truth {truth}")


if __name__ == "__main__":
    main()
