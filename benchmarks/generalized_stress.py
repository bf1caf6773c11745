"""A thousand random designs of generalized models: does any fit claim an optimum that it has not reached?

Small designs of every awkward kind (rare events, tiny groups, large variances, offsets, few levels, groups without
events, columns that separate successes from failures) are fitted as usual, and again from random covariances on all
scales. Counted are outcomes; fits that report convergence although another start reached a criterion that is lower by
more than 1e-4; coefficients that ran off without being noticed; estimates that are not numbers; and exceptions that are
not jmixed's own. The script ends with status 1 where there are any.

Layouts and families are few, so that programs are compiled once, and designs that share them come one after the other.

    python benchmarks/generalized_stress.py [--designs 1000] [--restarts 8] [--seed 1] [--families poisson ...]
        [--skip 200] [--take 100]
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import jax
import numpy as np
import pandas as pd
from scipy.special import expit

import jmixed as jm

LOWER = 1e-4
"""Differences in -2 log-likelihood that count."""
FAR = 15.0
"""Size of the predictor at the mean, or of two standard deviations of a column, beyond which a coefficient has run off:
odds of one to three million."""


@dataclass(frozen=True)
class Layout:
    """The random terms of a model, the factors with the columns that truly vary, and which rows belong to which groups.

    `largest` rows a group of g at most, of uneven sizes or not; `crossed` levels of the factor h, and `inner` levels of
    the factor k within each group.
    """

    random: str
    groups: int
    largest: int
    effects: tuple[tuple[str, tuple[str, ...]], ...] = (("g", ("1",)),)
    uneven: bool = False
    crossed: int = 8
    inner: int = 3


SLOPE = ("g", ("1", "x"))
LAYOUTS = {
    "tiny groups": Layout("(1 | g)", 40, 4, uneven=True),
    "pairs": Layout("(1 | g)", 60, 2),
    "few levels": Layout("(1 | g)", 4, 12),
    "slope": Layout("(x | g)", 24, 6, (SLOPE,)),
    "slope, few levels": Layout("(x | g)", 5, 10, (SLOPE,), True),
    "uncorrelated": Layout("(x || g)", 24, 5, (SLOPE,)),
    "uncorrelated, few levels": Layout("(x || g)", 6, 8, (SLOPE,)),
    "terms of one factor": Layout("(1 | g) + (0 + x | g) + (0 + z | g)", 24, 6, (("g", ("1", "x", "z")),)),
    "crossed": Layout("(1 | g) + (1 | h)", 20, 6, (("g", ("1",)), ("h", ("1",)))),
    "crossed, few levels": Layout("(1 | g) + (1 | h)", 6, 8, (("g", ("1",)), ("h", ("1",))), crossed=3),
    "crossed, slope": Layout("(x | g) + (1 | h)", 20, 6, (SLOPE, ("h", ("1",)))),
    "nested": Layout("(1 | g) + (1 | k)", 14, 9, (("g", ("1",)), ("k", ("1",)))),
}
FAMILIES = ("bernoulli", "trials", "poisson", "nbinom2", "gamma")
PROGRAMS = {"trials": "bernoulli"}
"""Families whose programs are those of another."""
KINDS = (
    "ordinary",
    "rare",
    "common",
    "large variances",
    "no variances",
    "offsets",
    "large offsets",
    "groups without events",
    "separated",
    "rare and large variances",
    "mixed variances",
)


@cache
def frame_of(layout: Layout) -> pd.DataFrame:
    """The factors of a layout, a row each."""
    rng = np.random.default_rng(layout.groups * layout.largest)
    sizes = np.full(layout.groups, layout.largest)
    if layout.uneven:
        sizes = 1 + rng.integers(0, layout.largest, layout.groups)
    g = np.repeat(np.arange(layout.groups), sizes)
    within = np.concatenate([np.arange(size) for size in sizes])
    h = rng.permutation(np.arange(len(g)) % layout.crossed)
    return pd.DataFrame({"g": g, "h": h, "k": g * layout.inner + within % layout.inner})


def random_design(rng, layout: Layout, family: str) -> tuple[str, dict[str, Any]]:
    """One data set: its kind, and the arguments of `mixedglm`."""
    kind = str(rng.choice(KINDS))
    data = frame_of(layout).copy()
    n = len(data)
    data["1"], data["x"], data["z"] = np.ones(n), rng.normal(size=n), rng.normal(size=n)
    if rng.random() < 0.3:
        data["x"] = data.groupby("g").cumcount() + float(rng.choice([0, 3, 50]))
    data["s"] = (rng.random(n) < 0.25).astype(float)
    data["o"] = rng.normal(size=n) * {"offsets": 1.0, "large offsets": 8.0}.get(kind, 0.0)
    eta = data["o"] + intercept(rng, kind, family) + 0.5 * (data["x"] - data["x"].mean()) + 0.5 * data["s"]
    for factor, columns in layout.effects:
        eta = eta + np.sum(centred(data[list(columns)]) * effects(rng, kind, len(columns), data[factor]), axis=1)
    data["y"], data["size"] = response(rng, family, np.asarray(eta))
    least = 0.0 if family != "gamma" else 0.01
    if kind == "groups without events":
        data.loc[data["g"] % 3 != 0, "y"] = least
    if kind == "separated":
        data.loc[data["s"] == 1, "y"] = least
    arguments = {"formula": f"y ~ x + s + {layout.random}", "data": data.drop(columns="1"), "offset": "o"}
    if PROGRAMS.get(family, family) == "bernoulli":
        arguments["trials"] = "size"
    return kind, arguments | {"family": PROGRAMS.get(family, family)}


def intercept(rng, kind: str, family: str) -> float:
    """Predictor of a typical row: small, moderate or large means."""
    if kind.startswith("rare"):
        return rng.uniform(-4.5, -2.5)
    if kind == "common":
        return rng.uniform(2, 4) if family in ("bernoulli", "trials") else rng.uniform(3, 6)
    return rng.uniform(-1, 1)


def centred(columns) -> np.ndarray:
    columns = columns.to_numpy(copy=True)
    columns[:, 1:] -= columns[:, 1:].mean(axis=0)
    return columns


def effects(rng, kind: str, q: int, codes) -> np.ndarray:
    """Correlated random effects, by row."""
    sds = rng.uniform(0.1, 1.2, q)
    if "large variances" in kind:
        sds = rng.uniform(2, 5, q)
    if kind == "no variances":
        sds *= 0
    if kind == "mixed variances":
        sds = rng.choice([0.0, 0.05, 1.0, 4.0], q)
    common = rng.normal(size=(int(codes.max()) + 1, 1)) * rng.choice([-1, 1], q)
    rho = rng.uniform(0, 0.98)
    own = rng.normal(size=(len(common), q))
    return (sds * (np.sqrt(rho) * common + np.sqrt(1 - rho) * own))[codes]


def response(rng, family: str, eta) -> tuple[np.ndarray, np.ndarray]:
    """Responses of linear predictors, and numbers of trials."""
    one = np.ones(len(eta))
    if family in ("bernoulli", "trials"):
        trials = one if family == "bernoulli" else 1.0 + rng.integers(0, 20, len(eta))
        return rng.binomial(trials.astype(int), expit(eta)).astype(float), trials
    mean = np.exp(np.clip(eta, -12, 12))
    if family == "poisson":
        return rng.poisson(mean).astype(float), one
    shape = np.exp(rng.uniform(-1, 3))
    varying = mean * np.maximum(rng.gamma(shape, 1 / shape, len(eta)), 1e-12)
    return (varying if family == "gamma" else rng.poisson(varying).astype(float)), one


@dataclass
class Tally:
    """What was seen: counts, and lists of entries that name a design and what is wrong with it."""

    outcomes: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    missed: list = field(default_factory=list)
    uncertified: list = field(default_factory=list)
    lower: list = field(default_factory=list)
    false: list = field(default_factory=list)
    far: list = field(default_factory=list)
    nan: list = field(default_factory=list)
    foreign: list = field(default_factory=list)
    evaluations: list = field(default_factory=list)

    def passed(self) -> bool:
        return not (self.missed or self.false or self.nan or self.foreign)

    def add(self, entry, result, others) -> None:
        """The fit of a design, and the results from other starts by theta."""
        self.outcomes[result.outcome.name] += 1
        self.evaluations.append(result.optimizer.evaluations)
        coefficients = np.asarray(result.fe_params)
        numbers = np.concatenate([[result.objective], coefficients, result.theta, result.bse_fe])
        if result.outcome.ok and not np.all(np.isfinite(numbers)):
            self.nan.append((*entry, numbers.round(3).tolist()))
        optimizer = result.optimizer
        # A Newton step gains at least half of this; rounding of large criteria is allowed for.
        slope, curvatures = np.max(np.abs(optimizer.gradient)), optimizer.hessian_eigenvalues
        gain = slope**2 / max(curvatures[-1], 1)
        if result.outcome.ok and (
            gain > 1e-9 * max(1, abs(result.objective)) or curvatures[0] < -1e-5 * curvatures[-1]
        ):
            self.false.append((*entry, result.outcome.name, float(slope), curvatures[[0, -1]].tolist()))
            print("no optimum:", self.false[-1], flush=True)
        exog = result.model.exog
        sizes = np.append(np.abs(coefficients) * 2 * exog.std(axis=0), abs(exog.mean(axis=0) @ coefficients))
        if result.outcome.ok and np.max(sizes) > FAR:
            self.far.append((*entry, coefficients.round(2).tolist(), result.theta.round(2).tolist()))
        certified = [(other.objective, k) for k, (_, other) in enumerate(others) if other.outcome.ok]
        if not result.outcome.ok:
            best = min(certified, default=(np.nan, 0))[0]
            self.uncertified.append(
                (*entry, result.outcome.name, result.objective - best, result.theta.round(3).tolist())
            )
        margin = LOWER * max(1, abs(result.objective) / 1e4)
        if result.outcome.ok and certified and min(certified)[0] < result.objective - margin:
            self.missed.append((*entry, *self._described(result, *others[min(certified)[1]])))
            print("missed:", self.missed[-1], flush=True)
        elif result.outcome.ok:
            value, k = min((other.objective, k) for k, (_, other) in enumerate(others))
            if value < result.objective - margin:
                self.lower.append((*entry, others[k][1].outcome.name, *self._described(result, *others[k])))

    def _described(self, result, start, other):
        numbers = {"theta": result.theta, "better theta": other.theta, "its start": start}
        numbers |= {"beta": np.asarray(result.fe_params), "better beta": np.asarray(other.fe_params)}
        return result.objective - other.objective, {name: np.round(each, 4).tolist() for name, each in numbers.items()}

    def report(self) -> None:
        print("\noutcomes of the fits")
        for name, count in self.outcomes.most_common():
            print(f"  {count:5d}  {name}")
        middle, most = np.median(self.evaluations), np.quantile(self.evaluations, 0.9)
        print(f"evaluations: median {middle:.0f}, 90 % {most:.0f}, most {max(self.evaluations)}")
        print("refused with an error of jmixed's own")
        for name, count in self.refused.most_common():
            print(f"  {count:5d}  {name}")
        named = {
            "converged, yet another start converged lower": self.missed,
            "converged, yet another start came lower and says that it did not converge": self.lower,
            "did not converge, and said so": self.uncertified,
            "converged, yet the gradient or the curvature says that this is no optimum": self.false,
            f"converged with a predictor of more than {FAR:g}": self.far,
            "converged with an estimate that is not a number": self.nan,
            "exceptions that are not jmixed's": self.foreign,
        }
        for what, entries in named.items():
            print(f"{what}: {len(entries)}")
            for entry in entries[:60]:
                print("  ", entry)


def numbered_design(seed: int, number: int, layouts, families):
    """Design of a number, from which alone it can be made again: (names, arguments), and draws."""
    rng = np.random.default_rng([seed, number])
    layout, family = str(rng.choice(layouts)), str(rng.choice(families))
    kind, arguments = random_design(rng, LAYOUTS[layout], family)
    return (layout, family, kind), arguments, rng


def order_of_programs(designs: int, seed: int, layouts, families) -> list[int]:
    """The numbers of the designs, those that share programs one after the other."""

    def programs_of(number):
        rng = np.random.default_rng([seed, number])
        layout, family = str(rng.choice(layouts)), str(rng.choice(families))
        return layout, PROGRAMS.get(family, family)

    return sorted(range(designs), key=programs_of)


def restarted(model, restarts: int, rng):
    """Results from random thetas on all scales, with where they started."""
    out = []
    for _ in range(restarts):
        theta = np.exp(rng.uniform(np.log(0.1), np.log(3), len(model.theta_names)))
        across = np.array([name.count(".") > 1 for name in model.theta_names])
        theta = np.where(across & (rng.random(len(theta)) < 0.5), -theta, theta)
        out.append((theta, model.fit(theta0=theta)))
    return out


def run(designs: int, restarts: int, seed: int, layouts, families, skip: int, take: int) -> int:
    tally, started = Tally(), time.perf_counter()
    numbers = order_of_programs(designs, seed, layouts, families)[skip : skip + take]
    for done, number in enumerate(numbers, skip + 1):
        names, arguments, rng = numbered_design(seed, number, layouts, families)
        entry = (number, *names)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model = jm.mixedglm(**arguments)
                tally.add(entry, model.fit(), restarted(model, restarts, rng))
        except jm.JmixedError as error:
            tally.refused[type(error).__name__ + ": " + str(error).split(".")[0][:70]] += 1
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            tally.foreign.append((*entry, repr(error)[:200]))
            print("exception:", tally.foreign[-1], flush=True)
        if done % 50 == 0:
            print(f"{done} designs, {time.perf_counter() - started:.0f} s, {len(tally.missed)} missed", flush=True)
    tally.report()
    return 0 if tally.passed() else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does any fit claim an optimum that it has not reached?")
    parser.add_argument("--designs", type=int, default=1000)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--layouts", nargs="+", choices=LAYOUTS, default=list(LAYOUTS))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    parser.add_argument("--skip", type=int, default=0, help="designs that an earlier run has tried, in its order")
    parser.add_argument("--take", type=int, default=sys.maxsize, help="how many of the rest, by default all")
    options = parser.parse_args()
    jm.enable_compilation_cache()
    # What is tested are the numbers, not the speed.
    jax.config.update("jax_disable_most_optimizations", True)
    among = options.layouts, options.families
    sys.exit(run(options.designs, options.restarts, options.seed, *among, options.skip, options.take))
