"""Classroom intercepts, and a slope of the pretest that is correlated with the intercept of the school."""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {
    "Intercept": 20.0,
    "age": 1.5,
    "pretest": 0.6,
    "sd of schools": 3.0,
    "sd of pretest slopes": 0.2,
    "correlation": -0.5,
    "sd of classrooms": 2.0,
    "sd of pupils": 5.0,
}


def simulate(schools=200, seed=3):
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
    covariance = TRUTH["correlation"] * TRUTH["sd of schools"] * TRUTH["sd of pretest slopes"]
    of_school, of_slope = rng.multivariate_normal(
        [0, TRUTH["pretest"]],
        [[TRUTH["sd of schools"] ** 2, covariance], [covariance, TRUTH["sd of pretest slopes"] ** 2]],
        schools,
    )[frame.school].T
    of_classroom = np.repeat(rng.normal(0, TRUTH["sd of classrooms"], school.size), pupils)
    noise = rng.normal(0, TRUTH["sd of pupils"], total)
    fixed = TRUTH["Intercept"] + TRUTH["age"] * frame.age
    return frame.assign(test_score=fixed + of_slope * frame.pretest + of_school + of_classroom + noise)


def main():
    data = simulate()
    model = jm.mixedlm(
        "test_score ~ age + pretest",
        data,
        groups="school",
        re_formula="1 + pretest",
        vc_formula={"classroom": "0 + C(classroom)"},
    )
    result = model.fit()
    print(result.summary())

    covariance = result.cov_re.to_numpy()
    sd = np.sqrt(np.diag(covariance))
    correlation = covariance[0, 1] / (sd[0] * sd[1])
    estimates = [*result.fe_params, *sd, correlation, np.sqrt(result.vcomp[0]), np.sqrt(result.scale)]
    print(pd.DataFrame({"truth": TRUTH.values(), "estimate": estimates}, index=pd.Index(TRUTH)).round(2))


if __name__ == "__main__":
    main()
