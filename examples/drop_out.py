"""From visits that people miss to a results section: an unstructured model, its means, checks, figure, table, words."""

import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import jmixed as jm

DIFFERENCE = [0.0, -1.0, -2.0, -3.0]


def simulate(people=160, seed=11):
    """A score at four visits, of two arms; whoever did badly last time may not come back."""
    rng = np.random.default_rng(seed)
    arm = rng.permutation(np.repeat([0, 1], people // 2))
    visits = np.arange(4)
    own = rng.normal(0, 3, (people, 1)) + np.cumsum(rng.normal(0, 1.5, (people, 4)), axis=1)
    score = 20 - 0.5 * visits + np.outer(arm, DIFFERENCE) + own + rng.normal(0, 1.5, (people, 4))
    stays = rng.uniform(size=(people, 4)) > 0.06 + 0.02 * np.maximum(score - 18, 0)
    seen = np.column_stack([np.ones(people, bool), np.logical_and.accumulate(stays[:, :-1], axis=1)])
    person, visit = np.nonzero(seen)
    arms = pd.Categorical.from_codes(arm[person], ["placebo", "drug"])
    return pd.DataFrame({"score": score[seen], "visit": visit + 1, "arm": arms, "person": person})


def main():
    plt.switch_backend("Agg")
    data = simulate()
    print(pd.crosstab(data["arm"], data["visit"]), "people seen\n")
    result = jm.mixedlm("score ~ arm * C(visit)", data, residual="us(visit | person)").fit()
    print(result.residual_corr().round(2), "\n")
    print(result.check(), "\n")

    means = result.emmeans("arm", by="visit", ddf="kenward-roger")
    contrasts = means.contrasts("reference", adjust="none")
    simple = jm.mixedlm("score ~ arm * C(visit) + (1 | person)", data).fit()
    table = jm.table([simple, result], ["an intercept a person", "unstructured"], style="ci", ddf="kenward-roger")
    print(means, contrasts, table, result.report(ddf="kenward-roger"), sep="\n\n")

    with tempfile.TemporaryDirectory() as folder:
        jm.plot.check(result).savefig(Path(folder) / "checks.png")
        figure, ax = plt.subplots(figsize=(3.5, 3), layout="constrained")
        jm.plot.effects(result, "visit", by="arm", partial=False, ax=ax)
        figure.savefig(Path(folder) / "effect.png", dpi=300)
        Path(folder, "table.html").write_text(table.to_html(), encoding="utf-8")
        print("\n", sorted(path.name for path in Path(folder).iterdir()))

    last = contrasts.iloc[-1]
    if not last["lower"] < DIFFERENCE[-1] < last["upper"]:
        raise SystemExit(f"last visit: {last['lower']:.2f} to {last['upper']:.2f}, the truth is {DIFFERENCE[-1]}")


if __name__ == "__main__":
    main()
