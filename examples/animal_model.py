"""An animal model, from a pedigree to the animals to breed from: heritability, breeding values and their accuracy.

Milk is recorded up to three times a cow; bulls have daughters and no records. The breeding values of all of them are
predicted together, since relatives tell of each other: best linear unbiased prediction (BLUP).
"""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {"additive": 3.0, "environment": 1.5, "residual": 2.5}
"""Standard deviations."""


def simulate(founders=30, generations=4, size=60, seed=11):
    """(pedigree, records, breeding values): even numbers are bulls, of whom few are bred from."""
    rng = np.random.default_rng(seed)
    total = founders + generations * size
    parents, value = np.full((total, 2), -1), rng.normal(0, TRUTH["additive"], total)
    before = np.arange(founders)
    for generation in range(generations):
        here = founders + generation * size + np.arange(size)
        bulls, cows = rng.choice(before[before % 2 == 0], 6, replace=False), before[before % 2 == 1]
        parents[here] = np.column_stack([rng.choice(bulls, size), rng.choice(cows, size)])
        # Half of the variance is left to chance where parents are not inbred, as nearly all are not.
        value[here] = value[parents[here]].mean(axis=1) + rng.normal(0, TRUTH["additive"] * np.sqrt(0.5), size)
        before = here
    names = np.array([f"{'b' if k % 2 == 0 else 'c'}{k:03d}" for k in range(total)])
    family = pd.DataFrame({"animal": names, "sire": names[parents[:, 0]], "dam": names[parents[:, 1]]})
    family.loc[parents[:, 0] < 0, ["sire", "dam"]] = None
    cows = np.repeat(np.arange(1, total, 2), rng.integers(1, 4, total // 2))
    milk = pd.DataFrame({"animal": names[cows], "cow": names[cows]})
    milk["lactation"] = milk.groupby("animal").cumcount() + 1
    own = rng.normal(0, TRUTH["environment"], total)[cows]
    milk["milk"] = 25 + 1.5 * milk["lactation"] + value[cows] + own + rng.normal(0, TRUTH["residual"], len(milk))
    return family, milk, pd.Series(value, names)


def fit(family, milk):
    """Genes by the pedigree, and what a cow has beside them: its permanent environment."""
    relationship = {"animal": jm.pedigree(family)}
    return jm.mixedlm("milk ~ lactation + (1 | animal) + (1 | cow)", milk, relationship=relationship).fit()


def breeding_values(result, family):
    """Of all animals, the best first, with the accuracy: the correlation with the true value."""
    values = result.tidy("ran_vals").query("group == 'animal'").set_index("level")[["estimate", "std.error"]]
    own = 1 + jm.pedigree(family).inbreeding[values.index]
    variance = result.var_corr().set_index("group").loc["animal", "vcov"]
    values["accuracy"] = np.sqrt((1 - values["std.error"] ** 2 / (own * variance)).clip(lower=0))
    return values.sort_values("estimate", ascending=False)


def main():
    family, milk, _ = simulate()
    print(jm.pedigree(family))
    result = fit(family, milk)
    print(result.summary())
    print(f"Heritability: {result.icc().by_group['animal']:.2f}; repeatability: {result.icc().adjusted:.2f}")
    values = breeding_values(result, family)
    print("The best bulls, by their daughters, sisters and dams:")
    print(values[values.index.str.startswith("b")].head(5).round(2))


if __name__ == "__main__":
    main()
