"""Do 95% intervals cover 95%? A thousand data sets from known parameters, and how often each interval holds the truth.

A random intercept and slope for each of some groups. All data sets are fitted in one batched call. Counted are normal
intervals, Satterthwaite's and Kenward and Roger's t intervals, and the profile criterion: the ML deviance with a
coefficient held at the truth, less the minimum, against 3.84.

    python benchmarks/coverage.py [--sets 1000] [--groups 30] [--rows 8] [--seed 1]
"""

import argparse
import time
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import pandas as pd
from scipy import stats

import jmixed as jm
from jmixed.inference import kenward_roger, satterthwaite
from jmixed.inference.curvature import curvature

BETA = np.array([10.0, 1.5])
SIGMA = 2.0
COVARIANCE = np.array([[4.0, 0.6], [0.6, 0.5]])


def simulated(sets, groups, rows, seed):
    """A model and responses (sets, nobs) from it."""
    rng = np.random.default_rng(seed)
    data = pd.DataFrame({"g": np.repeat(np.arange(groups), rows), "x": rng.normal(size=groups * rows)})
    b = rng.multivariate_normal(np.zeros(2), COVARIANCE, size=(sets, groups))[:, data.g]
    x = data.x.to_numpy()
    Y = BETA[0] + BETA[1] * x + b[..., 0] + b[..., 1] * x + SIGMA * rng.normal(size=(sets, len(data)))
    return jm.mixedlm("y ~ x + (x | g)", data.assign(y=Y[0])), Y


def fits(design, Y, reml, held=None):
    """Estimates of every response in one compiled call; `held`: a coefficient that stays at its true value."""
    if held is not None:
        Y = Y - BETA[held] * design.X[:, held]
        design = replace(design, X=np.delete(design.X, held, axis=1))

    @jax.jit
    @jax.vmap
    def all_of_them(y):
        return jm.estimate(design.replace(y=y), reml=reml)

    with jax.enable_x64(True):
        return jax.device_get(all_of_them(Y))


def intervals(design, Y, found):
    """Whether each interval holds the truth: dict of bool arrays (sets, 2)."""
    covered = {"normal": [], "Satterthwaite": [], "Kenward-Roger": []}
    L, quantile = np.eye(2), partial(stats.t.ppf, 0.975)
    for y, theta, beta, sigma, vcov in zip(Y, found.theta, found.beta, found.sigma, found.vcov_beta, strict=True):
        bent = curvature(design.replace(y=y), theta, sigma, True)
        pieces = kenward_roger.kenward_roger(bent)
        error = np.sqrt(np.diag(vcov))
        limits = {
            "normal": stats.norm.ppf(0.975) * error,
            "Satterthwaite": quantile(satterthwaite.degrees_of_freedom(bent, L)) * error,
            "Kenward-Roger": quantile(kenward_roger.degrees_of_freedom(pieces, L)) * np.sqrt(np.diag(pieces.adjusted)),
        }
        for name, half in limits.items():
            covered[name].append(np.abs(beta - BETA) <= half)
    return {name: np.array(values) for name, values in covered.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in {"sets": 1000, "groups": 30, "rows": 8, "seed": 1}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args()
    model, Y = simulated(args.sets, args.groups, args.rows, args.seed)
    design = model.design
    started = time.perf_counter()
    found = fits(design, Y, reml=True)
    print(f"{args.sets} data sets of {args.groups} groups with {args.rows} rows")
    print(f"one batched call for all REML fits, with compilation: {time.perf_counter() - started:.1f} s")
    ok = np.isin(found.outcome, (0, 1))
    print(f"certified fits: {ok.sum()}; the others count as misses")
    started = time.perf_counter()
    covered = intervals(design, Y, found)
    print(f"degrees of freedom one data set at a time: {time.perf_counter() - started:.1f} s\n")
    minimum = fits(design, Y, reml=False).objective
    held = [fits(design, Y, reml=False, held=k).objective - minimum <= stats.chi2.ppf(0.95, 1) for k in (0, 1)]
    covered["profile"] = np.stack(held, axis=1)
    error = np.sqrt(0.95 * 0.05 / args.sets)
    print(f"{'':16}{'Intercept':>10}{'x':>10}     nominal 0.950, Monte Carlo error {error:.3f}")
    for name, values in covered.items():
        share = np.mean(values & ok[:, None], axis=0)
        print(f"{name:16}{share[0]:10.3f}{share[1]:10.3f}")


if __name__ == "__main__":
    main()
