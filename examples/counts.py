"""Counts with an exposure, more scatter than Poisson's, and traps that never opened: three models for one column."""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {"Intercept": 0.8, "week": 0.15}
SIZE, CLOSED, SPREAD = 3.0, 0.15, 0.5


def simulate(sites=80, weeks=8, seed=21):
    """Insects in traps that stood for different times; some traps never opened."""
    rng = np.random.default_rng(seed)
    site, week = np.repeat(np.arange(sites), weeks), np.tile(np.arange(weeks), sites)
    hours = rng.uniform(1, 6, site.size)
    eta = TRUTH["Intercept"] + TRUTH["week"] * week + rng.normal(0, SPREAD, sites)[site]
    mean = hours * np.exp(eta)
    caught = rng.negative_binomial(SIZE, SIZE / (SIZE + mean)) * (rng.random(site.size) > CLOSED)
    return pd.DataFrame({"caught": caught, "week": week, "hours": hours, "site": site})


def main():
    jm.enable_compilation_cache()
    data = simulate()
    formula = "caught ~ week + offset(np.log(hours)) + (1 | site)"
    poisson = jm.mixedglm(formula, data, family="poisson").fit()
    negative = poisson.model.update(family="negativebinomial").fit()
    inflated = negative.model.update(zero_inflation="~ 1").fit()
    names = ["Poisson", "negative binomial", "with zeros"]
    print(jm.compare(poisson, negative, inflated, names=names))

    # Quantile residuals are standard normal if the model holds; and how many zeros does each model expect?
    zeros = np.mean(np.asarray(data["caught"]) == 0)
    for name, fit in zip(names, (poisson, negative, inflated), strict=True):
        spread = fit.residuals("quantile", key=0).std()
        expected = (fit.simulate(200, key=1) == 0).mean()
        print(f"{name:18} residuals {spread:.2f}, share of zeros {expected:.3f} (seen {zeros:.3f})")

    print(inflated.summary())
    closed = 1 / (1 + np.exp(-inflated.zero_params["Intercept"]))
    rates = np.exp(inflated.fe_params)
    print(f"\nsize {inflated.dispersion:.2f}; {closed:.0%} of the traps never opened")
    print(f"each week brings {rates['week'] - 1:.0%} more")
    # The offset belongs to new rows as well: an hour in a site like the others, and the mean over sites.
    new = pd.DataFrame({"week": [0, 7], "hours": 1.0})
    print(new.assign(typical=inflated.predict(new), population=inflated.predict(new, "marginal")).round(2))

    for name, truth in TRUTH.items():
        if abs(inflated.fe_params[name] - truth) > 4 * inflated.bse_fe[name]:
            raise SystemExit(f"{name}: the estimate is {inflated.fe_params[name]:.2f}, the truth {truth}")
    if abs(closed - CLOSED) > 0.06 or not 2 < inflated.dispersion < 4.5:
        raise SystemExit(f"zeros {closed:.2f} (truth {CLOSED}), size {inflated.dispersion:.2f} (truth {SIZE})")


if __name__ == "__main__":
    main()
