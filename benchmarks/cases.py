"""The data sets and models of the benchmarks: real ones from the tests' references, simulated ones with fixed seeds."""

from pathlib import Path

import numpy as np
import pandas as pd

REFERENCES = Path(__file__).parents[1] / "tests" / "refs" / "data"


def _reference(name, categories):
    return pd.read_csv(REFERENCES / f"{name}.csv.gz", dtype=dict.fromkeys(categories, str))


def sleepstudy():
    return _reference("sleepstudy", ["Subject"])


def chem97():
    """A-level chemistry scores of 31,022 pupils in 2,410 schools in 131 local authorities (mlmRev::Chem97)."""
    return _reference("chem97", ["lea", "school"])


def insteval():
    """73,421 evaluations of 1,128 instructors by 2,972 students (lme4::InstEval)."""
    return _reference("insteval", ["s", "d", "dept", "service"])


def slopes(groups, rows=10, seed=1):
    """Random intercept and slope of a time; four more predictors, one of them constant within groups."""
    r = np.random.default_rng(seed)
    g = np.repeat(np.arange(groups), rows)
    n = len(g)
    t = np.tile(np.arange(rows) / rows, groups) + r.uniform(-0.02, 0.02, n)
    x1, x2, x3 = r.normal(size=n), r.normal(size=n), np.repeat(r.integers(0, 2, groups), rows).astype(float)
    b = r.normal(size=(groups, 2)) @ np.linalg.cholesky([[1.0, 0.3], [0.3, 0.5]]).T
    y = 2 + 1.5 * t + 0.5 * x1 - 0.3 * x2 + 0.8 * x3 + b[g, 0] + b[g, 1] * t + r.normal(size=n)
    return pd.DataFrame({"y": y, "t": t, "x1": x1, "x2": x2, "x3": x3, "g": g})


def nested(schools=200, classes=5, pupils=20, seed=2):
    """Pupils in classes in schools; the classes' labels are unique."""
    r = np.random.default_rng(seed)
    school, room, _ = np.indices((schools, classes, pupils)).reshape(3, -1)
    label = school * classes + room
    x = r.normal(size=len(school))
    y = 1 + 0.5 * x + 0.7 * r.normal(size=schools)[school] + 0.5 * r.normal(size=schools * classes)[label]
    return pd.DataFrame({"y": y + r.normal(size=len(school)), "x": x, "school": school, "label": label})


def maximal(subjects=60, items=80, seed=3):
    """Response times of every subject to every item; two conditions within both, a covariate; correlated slopes."""
    r = np.random.default_rng(seed)
    subject, item = np.indices((subjects, items)).reshape(2, -1)
    a, b = r.permuted(np.tile([-0.5, 0.5], (2, subject.size // 2)), axis=1)
    c = r.normal(size=subject.size)

    def effects(levels, sds, correlation):
        sds = np.array(sds, float)
        within = np.where(np.eye(3), 1, correlation) * np.outer(sds, sds)
        return r.normal(size=(levels, 3)) @ np.linalg.cholesky(within).T

    columns = np.stack([np.ones_like(a), a, b], axis=1)
    by_subject, by_item = effects(subjects, [100, 40, 30], 0.3), effects(items, [60, 30, 25], -0.2)
    y = 1000 + 60 * a - 30 * b + 10 * c + np.sum(columns * (by_subject[subject] + by_item[item]), axis=1)
    y += 150 * r.normal(size=len(y))
    return pd.DataFrame({"y": y, "a": a, "b": b, "c": c, "subject": subject, "item": item})


def ratings(rows, users=20_000, items=5_000, seed=4):
    """Ratings in half points; how often a user rates and an item is rated follows power laws."""
    r = np.random.default_rng(seed)
    weights = [1 / (np.arange(users) + 30.0) ** 0.8, 1 / (np.arange(items) + 20.0)]
    pairs = np.zeros(0, np.int64)
    while len(pairs) < rows:
        user, item = (r.choice(len(w), 2 * rows, p=w / w.sum()) for w in weights)
        pairs = np.unique(np.concatenate([pairs, user.astype(np.int64) * items + item]))
    user, item = np.divmod(np.sort(r.choice(pairs, rows, replace=False)), items)
    y = 3.5 + 0.43 * r.normal(size=users)[user] + 0.48 * r.normal(size=items)[item] + 0.85 * r.normal(size=rows)
    shuffled = r.permutation(users)[user], r.permutation(items)[item]
    return pd.DataFrame({"y": np.clip(np.round(2 * y) / 2, 0.5, 5), "user": shuffled[0], "item": shuffled[1]})


SLOPES = "y ~ t + x1 + x2 + x3 + (t | g)"
RATINGS = "y ~ 1 + (1 | user) + (1 | item)"
CASES = {
    "sleepstudy": (sleepstudy, "Reaction ~ Days + (Days | Subject)"),
    "chem97": (chem97, "score ~ gcsecnt + (1 | school)"),
    "chem97 nested": (chem97, "score ~ gcsecnt + (1 | school) + (1 | lea)"),
    "nested": (nested, "y ~ x + (1 | school) + (1 | label)"),
    "slopes 100k": (lambda: slopes(10_000), SLOPES),
    "slopes 1m": (lambda: slopes(100_000), SLOPES),
    "insteval": (insteval, "y ~ 1 + service + (1 | s) + (1 | d) + (1 | dept)"),
    "maximal": (maximal, "y ~ a + b + c + (1 + a + b | subject) + (1 + a + b | item)"),
    "ratings 100k": (lambda: ratings(100_000), RATINGS),
    "ratings 1m": (lambda: ratings(1_000_000), RATINGS),
}
"""Name -> (function that makes the DataFrame, formula)."""
