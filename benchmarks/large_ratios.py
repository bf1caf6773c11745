"""Groups that differ up to 1e8 times more than the rows within them: how many digits are right?

Models ``y ~ 1 + x + (1 | g)`` of data as instruments and accounts give them, compared with an optimum in extended
precision from sums within groups and sums between groups, in which nothing cancels. Errors: of the REML criterion; of
sigma, of the standard deviation between groups and of the standard errors, relative; of the coefficients, in standard
errors; the largest of these four is shown.

    python benchmarks/large_ratios.py [--sweep]
"""

import argparse
import warnings

import numpy as np
import pandas as pd

import jmixed as jm

EXTENDED = np.longdouble


def exact(y, x, g):
    """(criterion, sigma, standard deviation between groups, beta, standard errors) at the REML optimum."""
    y, x = np.asarray(y, EXTENDED), np.asarray(x, EXTENDED)
    sizes = np.bincount(g).astype(EXTENDED)
    X = np.stack([np.ones_like(y), x], axis=1)
    columns = np.column_stack([X, y])
    columns[:, 2] -= y.mean()
    means = np.zeros((len(sizes), 3), EXTENDED)
    np.add.at(means, g, columns)
    means /= sizes[:, None]
    inside = columns - means[g]
    within, nu = inside.T @ inside, len(y) - 2

    def solve(log_theta):
        ratio = np.exp(2 * EXTENDED(log_theta))
        G = within + means.T @ ((sizes / (1 + sizes * ratio))[:, None] * means)
        determinant = G[0, 0] * G[1, 1] - G[0, 1] ** 2
        inverse = np.array([[G[1, 1], -G[0, 1]], [-G[0, 1], G[0, 0]]]) / determinant
        beta = inverse @ G[:2, 2]
        rss = G[2, 2] - beta @ G[:2, 2] if ratio < 1 else _rss(inside, means, sizes / (1 + sizes * ratio), beta)
        value = np.sum(np.log1p(sizes * ratio)) + np.log(determinant)
        return value + nu * (1 + np.log(2 * EXTENDED(np.pi) * rss / nu)), ratio, beta, inverse, rss / nu

    grid = np.linspace(-5, 25, 121)
    best = int(np.argmin([solve(t)[0] for t in grid]))
    low, high = EXTENDED(grid[max(best - 1, 0)]), EXTENDED(grid[min(best + 1, len(grid) - 1)])
    golden = (np.sqrt(EXTENDED(5)) - 1) / 2
    for _ in range(90):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if solve(left)[0] < solve(right)[0]:
            high = right
        else:
            low = left
    value, ratio, beta, inverse, scale = solve((low + high) / 2)
    beta = beta + np.array([y.mean(), 0], EXTENDED)
    return value, np.sqrt(scale), np.sqrt(ratio * scale), beta, np.sqrt(np.diag(inverse) * scale)


def _rss(inside, means, weights, beta):
    own = inside[:, 2] - inside[:, :2] @ beta
    between = means[:, 2] - means[:, :2] @ beta
    return own @ own + weights @ between**2


def compare(name, y, x, g):
    """One row of the table."""
    result = jm.mixedlm("y ~ x + (1 | g)", pd.DataFrame({"y": y, "x": x, "g": g})).fit()
    value, sigma, sd, beta, errors = exact(y, x, g)
    estimated = np.sqrt(result.var_corr().vcov.to_numpy()[0])
    wrong = [
        abs(result.sigma / sigma - 1),
        abs(estimated / sd - 1),
        np.max(np.abs(np.asarray(result.fe_params) - beta) / errors),
        np.max(np.abs(np.asarray(result.bse_fe) / errors - 1)),
    ]
    print(
        f"| {name} | {len(y)} | {float(sd / sigma):.1e} | {result.outcome.name} "
        f"| {float(abs(result.objective - value)):.0e} | {float(max(wrong)):.0e} |",
        flush=True,
    )


def realistic(rng):
    """Names, group effects, rows a group, noise, and digits after the point."""
    yield "gauge blocks 1 to 100 mm, 0.2 um", rng.uniform(1, 100, 10), 5, 2e-4, 5
    yield "masses 1 g to 1 kg, balance of 0.05 mg", 10 ** rng.uniform(0, 3, 12), 6, 5e-5, 5
    yield "heights of stations, m, 3 mm", rng.gamma(1, 400, 40), 30, 3e-3, 4
    yield "barometers at 0 to 3000 m, hPa", 1013 * np.exp(-rng.uniform(0, 3000, 25) / 8400), 200, 0.1, 1
    yield "prices 1 to 100,000, cents of noise", 10 ** rng.uniform(0, 5, 300), 12, 0.5, 2
    yield "logarithms of prices", np.log(10 ** rng.uniform(0, 5, 300)), 12, 0.01, 12
    yield "thermistors in fixed baths, 1 mK", np.linspace(-20, 150, 8), 100, 1e-3, 4
    yield "isotope ratios, per mil", rng.normal(-25, 8, 15), 8, 0.02, 3
    yield "body height, three readings, cm", rng.normal(170, 9, 60), 3, 0.3, 1
    yield "unix times by server, s, 5 ms", 1.7e9 + rng.uniform(0, 1e6, 20), 10, 5e-3, 12
    yield "account balances, fees of cents", rng.lognormal(9, 1.5, 50), 20, 0.05, 2
    yield "electricity meters, kWh", rng.uniform(0, 9e4, 100), 52, 0.1, 1
    yield "blanks to stock solutions, ng/mL", 10 ** np.linspace(-1, 5, 10), 5, 0.01, 12


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", action="store_true", help="ratios from 10 to 1e8 at three sizes as well")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    rng = np.random.default_rng(1)
    print("| data | rows | ratio | outcome | error of the criterion | largest other error |")
    print("|---|---|---|---|---|---|")
    for name, effects, rows, noise, digits in realistic(rng):
        g = np.repeat(np.arange(len(effects)), rows)
        x = np.tile(np.arange(float(rows)), len(effects))
        y = np.round(effects[g] - noise / 50 * x + noise * rng.normal(size=len(g)), digits)
        compare(name, y, x, g)
    for groups, rows in ((30, 10), (200, 50), (2000, 10)) if arguments.sweep else ():
        for power in (1, 2, 3, 4, 5, 6, 7, 8):
            g = np.repeat(np.arange(groups), rows)
            x = rng.normal(size=len(g))
            y = 5 + 10.0**power * rng.normal(size=groups)[g] + 0.3 * x + rng.normal(size=len(g))
            compare(f"simulated, {groups} groups of {rows}", y, x, g)


if __name__ == "__main__":
    main()
