"""One model in both grammars: the arguments of statsmodels, and the bars of lme4 inside the formula."""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {"Intercept": 20.0, "pretest": 0.6, "schools": 3.0, "pretest slopes": 0.2, "classrooms": 2.0, "pupils": 5.0}


def simulate(schools=200, classrooms=4, pupils=20, seed=4):
    """The same number of classrooms in every school, and of pupils in every classroom."""
    rng = np.random.default_rng(seed)
    school, classroom, _ = np.indices((schools, classrooms, pupils)).reshape(3, -1)
    of_school = rng.normal(0, TRUTH["schools"], schools)[school]
    slope = rng.normal(TRUTH["pretest"], TRUTH["pretest slopes"], schools)[school]
    of_classroom = rng.normal(0, TRUTH["classrooms"], (schools, classrooms))[school, classroom]
    pretest = rng.normal(0, 10, school.size)
    noise = rng.normal(0, TRUTH["pupils"], school.size)
    score = TRUTH["Intercept"] + slope * pretest + of_school + of_classroom + noise
    return pd.DataFrame({"test_score": score, "pretest": pretest, "school": school, "classroom": classroom})


def main():
    data = simulate()
    words = jm.mixedlm(
        "test_score ~ pretest",
        data,
        groups="school",
        re_formula="1 + pretest",
        vc_formula={"classroom": "0 + C(classroom)"},
    ).fit()
    bars = jm.mixedlm("test_score ~ pretest + (1 + pretest | school) + (1 | school:classroom)", data).fit()

    print(bars.summary())
    print("standard deviations, truth:", {name: sd for name, sd in TRUTH.items() if name not in bars.fe_params})
    print(bars.var_corr())
    print(f"\nREML criterion: {words.objective:.6f} in statsmodels' words, {bars.objective:.6f} with bars")
    if abs(words.objective - bars.objective) > 1e-6:
        raise SystemExit("the two grammars describe the same model, but the fits differ")


if __name__ == "__main__":
    main()
