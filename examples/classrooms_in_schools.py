"""Pupils in classrooms in schools: a random intercept for each school and for each classroom within it."""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {"Intercept": 60.0, "age": 1.5, "sd of schools": 3.0, "sd of classrooms": 2.0, "sd of pupils": 5.0}


def simulate(schools=200, seed=1):
    """Three to six classrooms in each school, fifteen to twenty-five pupils in each classroom.

    Classrooms are numbered anew in every school, so only school and classroom together tell which one it is.
    """
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(schools), rng.integers(3, 7, schools))
    classroom = np.concatenate([np.arange(count) for count in np.bincount(school)])
    pupils = rng.integers(15, 26, school.size)
    of_school = rng.normal(0, TRUTH["sd of schools"], schools)[school]
    of_classroom = rng.normal(0, TRUTH["sd of classrooms"], school.size)
    age = rng.uniform(8, 12, pupils.sum())
    noise = rng.normal(0, TRUTH["sd of pupils"], pupils.sum())
    score = TRUTH["Intercept"] + TRUTH["age"] * age + np.repeat(of_school + of_classroom, pupils) + noise
    return pd.DataFrame(
        {
            "test_score": score,
            "age": age,
            "school": np.repeat(school, pupils),
            "classroom": np.repeat(classroom, pupils),
        }
    )


def main():
    data = simulate()
    model = jm.mixedlm(
        "test_score ~ age",
        data,
        groups="school",
        re_formula="1",
        vc_formula={"classroom": "0 + C(classroom)"},
    )
    result = model.fit()
    print(result.summary())

    estimates = [
        *result.fe_params,
        np.sqrt(result.cov_re.iloc[0, 0]),
        np.sqrt(result.vcomp[0]),
        np.sqrt(result.scale),
    ]
    print(pd.DataFrame({"truth": TRUTH.values(), "estimate": estimates}, index=pd.Index(TRUTH)).round(2))


if __name__ == "__main__":
    main()
