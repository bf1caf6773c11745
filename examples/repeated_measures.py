"""A trial with drop-out, from raw data to the estimate at the last visit: a mixed model for repeated measures (MMRM).

Patients of two arms are measured at four visits, and some leave on the way. The covariance of the visits is of any
form, a variance for each; the effect of treatment is read off at the last visit, with Kenward and Roger's tests.
"""

import numpy as np
import pandas as pd

import jmixed as jm

EFFECT = -3.0


def simulate(patients=150, seed=7):
    rng = np.random.default_rng(seed)
    weeks = np.array([2, 4, 8, 12])
    wide = rng.multivariate_normal(np.zeros(4), 9 * 0.7 ** np.abs(np.subtract.outer(range(4), range(4))), patients)
    trial = pd.DataFrame({"patient": np.repeat(np.arange(patients), 4), "week": np.tile(weeks, patients)})
    trial["arm"] = np.where(trial.patient % 2, "treated", "control")
    trial["baseline"] = rng.normal(20, 4, patients)[trial.patient].round(1)
    course = -0.3 * (trial.baseline - 20) + EFFECT * trial.week / 12 * (trial.arm == "treated")
    trial["change"] = course + (wide * np.array([1.0, 1.1, 1.3, 1.5])).ravel()
    # Missing at random: whoever does badly is likelier to leave before the next visit.
    leaves = rng.uniform(size=len(trial)) < 0.15 / (1 + np.exp(-trial.change))
    gone = leaves.groupby(trial.patient).cumsum().groupby(trial.patient).shift(fill_value=0) > 0
    return trial[~gone].reset_index(drop=True)


def fit(trial):
    return jm.mixedlm("change ~ baseline + arm * C(week)", trial, residual="us(week | patient)").fit()


def main():
    trial = simulate()
    result = fit(trial)
    print(result.summary(ddf="kenward-roger"))
    print(result.residual_corr().round(2))
    print(result.residual_sd().round(2))
    # The difference between the arms at week 12: the main effect, which is that of week 2, and the interaction.
    last = "arm[T.treated] + arm[T.treated]:C(week)[T.12] = 0"
    print(result.test(last, ddf="kenward-roger"))


if __name__ == "__main__":
    main()
