"""Five thousand random designs, ordinary and perverse: does any fit claim an optimum that it has not reached?

Each design is fitted by `fit`, `estimate` and `fit_many`, and searched again from random starts on all scales. Counted
are the outcomes; the fits that report convergence although another start reached a lower deviance (by more than 1e-5);
the designs on which the ways of fitting claim different optima; and exceptions that are not jmixed's own. The last
three must be zero; the script ends with status 1 if they are not. Far out on a ridge a deviance in 64 bits may be off
by more than what is looked for, and the lowest of many is then the one with the largest error: where deviances differ,
the dense density in extended precision decides which point is lower, and what was rounding is counted apart.

The shapes of the designs are few, so that programs are compiled once; designs that share programs come one after the
other; and the restarts of a design are one batch.

    python benchmarks/stress.py [--designs 5000] [--restarts 8] [--seed 1] [--kinds crossed ...]
        [--skip 2000] [--take 500]
"""

import argparse
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

import jax
import numpy as np
import pandas as pd

import jmixed as jm
from jmixed.algebra.newton import MAX_ITERATIONS
from jmixed.covariance.structure import factors_of_theta
from jmixed.likelihood.contract import minimum
from jmixed.likelihood.moments import moments
from jmixed.likelihood.profiled import ProfiledDeviance
from jmixed.runtime.compilation import program
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import double_precision

LOWER, APART, ROUGH = 1e-5, 1e-6, 1e-3
"""Differences in deviance: those that count; those between ways of fitting from which on it is looked whether they do;
and those that count where a fit says itself that precision ended its search (`Outcome.PRECISION_LIMIT`)."""


@dataclass(frozen=True)
class Shape:
    """What all designs of a shape share: the formula, and which rows belong to which groups.

    `largest` rows a group at most, of uneven sizes or not; `crossed` levels of the factor h, and `inner` levels of the
    factor k within each group. `effects` are the factors that have true random effects, with the columns that vary.
    """

    random: str
    groups: int
    largest: int
    effects: tuple[tuple[str, tuple[str, ...]], ...] = (("g", ("1", "x")),)
    uneven: bool = False
    crossed: int = 10
    inner: int = 3
    components: tuple[str, ...] = ()


def one_factor(random, groups, largest, uneven=True):
    columns = ("1", *random.replace("1", "").replace("+", " ").split())
    return Shape(f"({random} | g)", groups, largest, (("g", columns),), uneven)


INTERCEPT, SLOPE, SLOPES = ("g", ("1",)), ("g", ("1", "x")), ("g", ("1", "x", "z"))
ORDINARY = (
    one_factor("1", 1, 16),
    one_factor("1", 30, 4),
    one_factor("1", 300, 16),
    one_factor("x", 3, 16),
    one_factor("x", 8, 4),
    one_factor("x", 30, 16),
    one_factor("x", 60, 4, uneven=False),
    one_factor("x + z", 30, 16, uneven=False),
    one_factor("x + z", 60, 16),
)
SHAPES = {
    "tiny n": (one_factor("1", 2, 3), one_factor("x", 3, 3, uneven=False), one_factor("1", 8, 2, uneven=False)),
    "nested": (
        Shape("(1 | g) + (1 | k)", 30, 16, (INTERCEPT, ("k", ("1",))), True),
        Shape("(x | g) + (1 | k)", 60, 4, (SLOPE, ("k", ("1",))), True),
        Shape("(1 | g) + (1 | k)", 3, 16, (INTERCEPT, ("k", ("1",)))),
    ),
    "crossed": (
        Shape("(1 | g) + (1 | h)", 30, 4, (INTERCEPT, ("h", ("1",))), True),
        Shape("(x | g) + (1 | h)", 30, 16, (SLOPE, ("h", ("1",))), True, crossed=40),
        Shape("(x | g) + (x | h)", 60, 4, (SLOPE, ("h", ("1", "x"))), crossed=20),
        Shape("(x + z | g) + (1 | h)", 8, 16, (SLOPES, ("h", ("1",))), True, crossed=3),
    ),
    "uncorrelated": (
        Shape("(x || g)", 12, 4),
        Shape("(x || g)", 30, 3),
        Shape("(x || g)", 100, 5, uneven=True),
        Shape("(x + z || g)", 24, 6, (SLOPES,)),
    ),
    "separate terms": (
        Shape("(1 | g) + (0 + x | g)", 20, 5),
        Shape("(x | g) + (0 + z | g)", 24, 6, (SLOPES,)),
        Shape("(1 | g)", 16, 4, components=("0 + x",)),
        Shape("(1 | g)", 24, 6, (SLOPES,), components=("0 + x", "0 + z")),
    ),
    "uncorrelated beside crossed": (
        Shape("(x || g) + (1 | h)", 24, 5, (SLOPE, ("h", ("1",)))),
        Shape("(x || g) + (z || h)", 30, 6, (SLOPE, ("h", ("1", "z"))), crossed=12),
        Shape("(1 | g) + (0 + x | h)", 24, 5, (SLOPE, ("h", ("1", "x"))), crossed=12),
    ),
    "uncorrelated beside nested": (
        Shape("(1 | g) + (0 + x | k)", 24, 6, (SLOPE, ("k", ("1", "x")))),
        Shape("(x || g) + (1 | k)", 24, 6, (SLOPE, ("k", ("1",)))),
    ),
    "few levels": (
        one_factor("x", 2, 10, uneven=False),
        one_factor("x + z", 5, 6),
        Shape("(x || g)", 4, 6),
        Shape("(x + z || g)", 6, 8, (SLOPES,), True),
        Shape("(x | g) + (1 | h)", 12, 5, (SLOPE, ("h", ("1",))), crossed=4),
    ),
    "two groups": (one_factor("x + z", 2, 16), one_factor("x + z", 2, 5, uneven=False)),
}
ON_ORDINARY_SHAPES = (
    "ordinary",
    "zero variance",
    "tiny variance",
    "perfect correlation",
    "predictor times 1e6",
    "predictor offset by 2000",
    "calendar year slope",
    "near-collinear fixed",
    "near-collinear random",
    "large variance",
)
KINDS = (*ON_ORDINARY_SHAPES, *SHAPES)
NEW = tuple(SHAPES)[3:]
"""Kinds in which several minima are common; their columns have origins near and far."""


@cache
def frame_of(shape):
    """The factors of a shape, a row each."""
    rng = np.random.default_rng(shape.groups * shape.largest)
    sizes = 1 + rng.integers(0, shape.largest, shape.groups) if shape.uneven else np.full(shape.groups, shape.largest)
    g = np.repeat(np.arange(shape.groups), sizes)
    inner = np.arange(len(g)) % shape.inner
    return pd.DataFrame({"g": g, "h": rng.permutation(np.arange(len(g)) % shape.crossed), "k": g * shape.inner + inner})


def random_design(rng, kinds=KINDS):
    """One data set: (kind, shape, arguments of `mixedlm`)."""
    kind = str(rng.choice(kinds))
    among = SHAPES.get(kind, ORDINARY)
    shape = among[rng.integers(len(among))]
    data = frame_of(shape).copy()
    n = len(data)
    data["1"], data["x"], data["z"] = np.ones(n), rng.normal(size=n), rng.normal(size=n)
    if kind in NEW and rng.random() < 0.7:
        data["x"] = data.groupby("g").cumcount() + float(rng.choice([0, 0, 1, 10, 10, 2000]))
    if kind == "calendar year slope":
        data["x"] = 1990 + np.floor(10 * np.abs(data["x"]))
    if kind == "predictor offset by 2000":
        data["x"] += 2000
    y = 1 + 0.5 * data["x"] + rng.normal(size=n)
    for factor, columns in shape.effects:
        y = y + np.sum(centred(rng, data[list(columns)]) * effects(rng, kind, len(columns), data[factor]), axis=1)
    if kind == "predictor times 1e6":
        data["x"] *= 1e6
    if kind == "near-collinear random":
        data["z"] = data["x"] + 1e-4 * data["z"]
    data["w"] = data["x"] + 1e-5 * rng.normal(size=n)
    fixed = "x + w" if kind == "near-collinear fixed" else "x"
    data = data.assign(y=y).drop(columns="1")
    if not shape.components:
        return kind, shape, {"formula": f"y ~ {fixed} + {shape.random}", "data": data}
    components = {name: name for name in shape.components}
    arguments = {"formula": f"y ~ {fixed}", "data": data, "groups": "g", "re_formula": "1", "vc_formula": components}
    return kind, shape, arguments


def centred(rng, columns):
    """Columns about their mean, the origin or anything between: that is what correlates slopes with intercepts."""
    columns = columns.to_numpy(copy=True)
    for k in range(1, columns.shape[1]):
        columns[:, k] -= rng.choice([0, columns[:, k].mean(), rng.uniform() * columns[:, k].mean()])
    return columns


def effects(rng, kind, q, codes):
    """Correlated random effects of every size, by row."""
    levels = int(codes.max()) + 1
    sds = rng.lognormal(0, 1.5 if kind in NEW else 1, q)
    if kind == "zero variance":
        sds[rng.random(q) < 0.7] = 0
    sds *= {"tiny variance": 1e-3, "large variance": 1e3}.get(kind, 1)
    rho = 1.0 if kind == "perfect correlation" else rng.uniform(-0.3, 0.98)
    signs = rng.choice([-1, 1], q)
    common = rng.normal(size=(levels, 1)) * signs
    return (sds * (np.sqrt(abs(rho)) * common + np.sqrt(1 - abs(rho)) * rng.normal(size=(levels, q))))[codes]


@program(brief=lambda *_: True)
def search(rows, starts, reml):
    """Where searches from starts (k, q, q) in preconditioned columns end: deviance, outcome, factors of the terms."""
    deviance = ProfiledDeviance(moments(rows), reml)

    def from_one(start):
        found = minimum(deviance, deviance.starts(start), MAX_ITERATIONS)
        return found.at.value, found.outcome, deviance.estimates(found.at.point)["roots"]

    return jax.vmap(from_one)(starts)


def best_of_restarts(design, reml, restarts, rng):
    """The lowest certified optimum from random starts on all scales: its deviance, and factors (q, q) of the terms."""
    sizes = [(restarts, term.q, term.q) for term in design.layout.terms]
    roots = [10 ** rng.uniform(-2, 3, (restarts, 1, 1)) * rng.normal(size=size) for size in sizes]
    starts = [root @ np.swapaxes(root, 1, 2) for root in roots]
    with double_precision():
        values, outcomes, factors = jax.device_get(search(design.rows(bucket(design.nobs)), starts, reml))
    certified = np.array([jm.Outcome(int(outcome)).ok for outcome in outcomes])
    values = np.where(certified, values, np.inf)
    lowest = np.argmin(values)
    return values[lowest], [factor[lowest] for factor in factors]


def dense_deviance(model, factors, reml):
    """The deviance at relative covariance factors (q, q) by term, from the dense density in extended precision."""
    spec, n = model.spec, model.nobs
    V = np.diag(1 / spec.weights.astype(np.longdouble))
    for term, root in zip(spec.terms, factors, strict=True):
        by_row = term.Z.astype(np.longdouble) @ root
        V = V + (by_row @ by_row.T) * (term.codes[:, None] == term.codes)
    triangle = triangle_of(V)
    whitened = solved(triangle, np.column_stack([spec.X, spec.y - spec.offset]).astype(np.longdouble))
    basis = whitened[:, :0]
    left, logdet_fixed = whitened[:, -1], np.longdouble(0)
    for column in whitened[:, :-1].T:
        for _ in range(2):
            column = column - basis @ (basis.T @ column)
        length = np.sqrt(column @ column)
        logdet_fixed += 2 * np.log(length)
        basis = np.column_stack([basis, column / length])
    for _ in range(2):
        left = left - basis @ (basis.T @ left)
    nu = n - (model.k_fe if reml else 0)
    logdet = 2 * np.sum(np.log(np.diagonal(triangle))) + (logdet_fixed if reml else 0)
    return float(logdet + nu * (1 + np.log(2 * np.longdouble(np.pi) * (left @ left) / nu)))


def triangle_of(V):
    """Cholesky's factor, in the precision of the matrix, which LAPACK has not."""
    factor = np.zeros_like(V)
    for j in range(len(V)):
        factor[j, j] = np.sqrt(V[j, j] - factor[j, :j] @ factor[j, :j])
        factor[j + 1 :, j] = (V[j + 1 :, j] - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    return factor


def solved(factor, columns):
    """The columns with the triangular factor taken off from the left."""
    out = np.zeros_like(columns)
    for j in range(len(factor)):
        out[j] = (columns[j] - factor[j, :j] @ out[:j]) / factor[j, j]
    return out


pure = jax.jit(jm.estimate)


def ways_of_fitting(model, reml):
    """Deviance, outcome and theta by every way of fitting: a dict, and the result of `fit`."""
    result = model.fit(reml=reml)
    with double_precision():
        estimate = jax.device_get(pure(model.design, reml))
    many = model.fit_many(model.endog[None], reml=reml)
    found = {"fit": (result.objective, result.outcome, result.theta)}
    found["estimate"] = float(estimate.objective), jm.Outcome(int(estimate.outcome)), estimate.theta
    found["fit_many"] = float(many.objective.iloc[0]), jm.Outcome[str(many.outcome.iloc[0])], many.theta.to_numpy()[0]
    return found, result


@dataclass
class Tally:
    """What was seen."""

    outcomes: Counter = field(default_factory=Counter)
    refused: Counter = field(default_factory=Counter)
    lies: list = field(default_factory=list)
    apart: list = field(default_factory=list)
    unconverged: list = field(default_factory=list)
    foreign: list = field(default_factory=list)
    rounding: list = field(default_factory=list)
    iterations: list = field(default_factory=list)

    def passed(self):
        return not (self.lies or self.apart or self.foreign)

    def add(self, entry, found, result, restart):
        value, outcome, _ = found["fit"]
        self.outcomes[outcome.name] += 1
        self.iterations.append(result.optimizer.evaluations)
        entry = (*entry, outcome.name)
        claimed = {name: value for name, (value, outcome, _) in found.items() if outcome.ok}
        least, factors = restart
        apart = max(APART, APART * 1e-6 * abs(value))
        if claimed and max(*claimed.values(), least) - min(claimed.values()) > min(LOWER, apart):
            self._judge(entry, result, {name: found[name] for name in claimed}, least, factors, apart)
        if not outcome.ok:
            self.unconverged.append((*entry, value - restart[0]))

    def _judge(self, entry, result, found, least, factors, apart):
        """Deviances differ: does the dense density say so too?"""
        structures = result.model.design.layout.terms
        exact = {
            name: dense_deviance(result.model, factors_of_theta(structures, np.asarray(theta)), result.reml)
            for name, (_, _, theta) in found.items()
        }
        best = dense_deviance(result.model, factors, result.reml) if np.isfinite(least) else np.inf
        allowed = ROUGH if any(outcome == jm.Outcome.PRECISION_LIMIT for _, outcome, _ in found.values()) else LOWER
        if max(exact.values()) > best + allowed:
            self.lies.append((*entry, {name: value - best for name, value in exact.items()}))
            print("worse than another start:", self.lies[-1], flush=True)
        elif max(exact.values()) - min(exact.values()) > max(allowed, apart):
            self.apart.append((*entry, {name: value - min(exact.values()) for name, value in exact.items()}))
            print("the ways of fitting differ:", self.apart[-1], flush=True)
        else:
            self.rounding.append((*entry, {name: value - exact[name] for name, (value, _, _) in found.items()}))

    def report(self):
        print("\noutcomes of the fits")
        for name, count in self.outcomes.most_common():
            print(f"  {count:5d}  {name}")
        middle, most = np.median(self.iterations), np.quantile(self.iterations, 0.9)
        print(f"evaluations: median {middle:.0f}, 90 % {most:.0f}, most {max(self.iterations)}")
        print("refused with an error of jmixed's own")
        for name, count in self.refused.most_common():
            print(f"  {count:5d}  {name}")
        print(f"did not converge, and said so: {len(self.unconverged)}")
        for entry in self.unconverged[:40]:
            print("  ", entry)
        print(f"converged, yet worse than another start by more than {LOWER:g}: {len(self.lies)}")
        print(f"ways of fitting that claim optima more than {LOWER:g} apart: {len(self.apart)}")
        print(f"deviances that differed by rounding, their errors: {len(self.rounding)}")
        for entry in self.rounding:
            print("  ", entry)
        print(f"exceptions that are not jmixed's: {len(self.foreign)}")
        for entry in (*self.lies, *self.apart, *self.foreign):
            print("  ", entry)


def numbered_design(seed, number, kinds):
    """Design of a number, from which alone it can be made again: (kind, shape, arguments), REML or not, and draws."""
    rng = np.random.default_rng([seed, number])
    kind, shape, arguments = random_design(rng, kinds)
    return kind, shape, arguments, bool(rng.random() < 0.5), rng


def order_of_programs(designs, seed, kinds):
    """The numbers of the designs, those that share programs one after the other: more than fit into a process."""

    def programs_of(number):
        _, shape, arguments, reml, _ = numbered_design(seed, number, kinds)
        return repr((shape, arguments["formula"], reml))

    return sorted(range(designs), key=programs_of)


def run(designs, restarts, seed, kinds, skip, take):
    tally, started = Tally(), time.perf_counter()
    for done, number in enumerate(order_of_programs(designs, seed, kinds)[skip : skip + take], skip):
        kind, shape, arguments, reml, rng = numbered_design(seed, number, kinds)
        entry = (number, kind, shape.random, *shape.components, len(arguments["data"]), "REML" if reml else "ML")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                model = jm.mixedlm(**arguments)
                found, result = ways_of_fitting(model, reml)
        except jm.JmixedError as error:
            tally.refused[type(error).__name__ + ": " + str(error).split(".")[0][:70]] += 1
            continue
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            tally.foreign.append((*entry, repr(error)[:200]))
            continue
        tally.add(entry, found, result, best_of_restarts(model.design, reml, restarts, rng))
        if (done + 1) % 100 == 0:
            failures = len(tally.lies) + len(tally.apart) + len(tally.foreign)
            print(f"{done + 1} designs, {time.perf_counter() - started:.0f} s, {failures} failures", flush=True)
    tally.report()
    return 0 if tally.passed() else 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Does any fit claim an optimum that it has not reached?")
    parser.add_argument("--designs", type=int, default=5000)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--skip", type=int, default=0, help="designs that an earlier run has tried, in its order")
    parser.add_argument("--take", type=int, default=sys.maxsize, help="how many of the rest, by default all")
    options = parser.parse_args()
    jm.enable_compilation_cache()
    # What is tested are the numbers, not the speed.
    jax.config.update("jax_disable_most_optimizations", True)
    sys.exit(run(options.designs, options.restarts, options.seed, options.kinds, options.skip, options.take))
