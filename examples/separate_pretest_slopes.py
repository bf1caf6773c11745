"""Classroom intercepts, and a slope of the pretest that varies over schools independently of the intercepts."""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {
    "Intercept": 20.0,
    "age": 1.5,
    "pretest": 0.6,
    "sd of schools": 3.0,
    "sd of classrooms": 2.0,
    "sd of pretest slopes": 0.2,
    "sd of pupils": 5.0,
}


def simulate(schools=200, seed=2):
    """Three to six classrooms in each school, fifteen to twenty-five pupils in each classroom."""
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(schools), rng.integers(3, 7, schools))
    classroom = np.concatenate([np.arange(count) for count in np.bincount(school)])
    pupils = rng.integers(15, 26, school.size)
    total = pupils.sum()
    frame = pd.DataFrame(
        {
            "school": np.repeat(school, pupils),
            "classroom": np.repeat(classroom, pupils),
            "age": rng.uniform(8, 12, total),
            "pretest": rng.normal(0, 10, total),
        }
    )
    of_school = rng.normal(0, TRUTH["sd of schools"], schools)[frame.school]
    of_classroom = np.repeat(rng.normal(0, TRUTH["sd of classrooms"], school.size), pupils)
    slope = TRUTH["pretest"] + rng.normal(0, TRUTH["sd of pretest slopes"], schools)[frame.school]
    noise = rng.normal(0, TRUTH["sd of pupils"], total)
    fixed = TRUTH["Intercept"] + TRUTH["age"] * frame.age
    return frame.assign(test_score=fixed + slope * frame.pretest + of_school + of_classroom + noise)


def main():
    data = simulate()
    model = jm.mixedlm(
        "test_score ~ age + pretest",
        data,
        groups="school",
        re_formula="1",
        vc_formula={"classroom": "0 + C(classroom)", "pretest": "0 + pretest"},
    )
    result = model.fit()
    print(result.summary())

    # Variance components come sorted by their name: classroom, pretest.
    variances = [result.cov_re.iloc[0, 0], *result.vcomp, result.scale]
    estimates = [*result.fe_params, *np.sqrt(variances)]
    print(pd.DataFrame({"truth": TRUTH.values(), "estimate": estimates}, index=pd.Index(TRUTH)).round(2))


if __name__ == "__main__":
    main()
