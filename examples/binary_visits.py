"""Yes or no at every visit: odds ratios, shares of the population, residuals, and a check by quadrature."""

import numpy as np
import pandas as pd

import jmixed as jm

TRUTH = {"Intercept": -0.5, "visit": -0.2, "arm[T.drug]": 0.0, "visit:arm[T.drug]": -0.6}
SPREAD = 1.5


def simulate(people=400, visits=5, seed=7):
    """Ill or not at each visit; with the drug people recover faster, and they differ."""
    rng = np.random.default_rng(seed)
    person, visit = np.repeat(np.arange(people), visits), np.tile(np.arange(visits), people)
    drug = person % 2
    eta = TRUTH["Intercept"] + (TRUTH["visit"] + TRUTH["visit:arm[T.drug]"] * drug) * visit
    eta = eta + rng.normal(0, SPREAD, people)[person]
    arm = pd.Categorical(np.where(drug, "drug", "placebo"), ["placebo", "drug"])
    ill = rng.random(person.size) < 1 / (1 + np.exp(-eta))
    return pd.DataFrame({"ill": ill, "visit": visit, "arm": arm, "person": person})


def main():
    jm.enable_compilation_cache()
    data = simulate()
    result = jm.mixedglm("ill ~ visit * arm + (1 | person)", data, family="binomial").fit()
    print(result.summary())

    # Odds ratios compare two states of one person.
    table = result.tidy(conf_int=True).set_index("term")[["estimate", "conf.low", "conf.high"]]
    print("\nodds ratios\n", np.exp(table.astype(float)).round(2), sep="")
    print("\nlikelihood-ratio test\n", result.drop1(), sep="")

    # Shares of the population are means over people.
    new = pd.DataFrame([(visit, arm) for arm in ("placebo", "drug") for visit in (0, 2, 4)], columns=["visit", "arm"])
    shares = result.predict(new, "marginal", interval="confidence")[["fit", "lower", "upper"]].astype(float)
    print("\nshare of ill people\n", new.join(shares.round(3)), sep="")

    # Standard normal if the model holds.
    residuals = result.residuals("quantile", key=0)
    print(f"\nquantile residuals: mean {residuals.mean():.2f}, standard deviation {residuals.std():.2f}")

    # Quadrature where groups are small: what changes, in standard errors?
    exact = result.model.update(quadrature=9).fit()
    shift = (exact.fe_params - result.fe_params) / exact.bse_fe
    print(f"quadrature: -2 log-likelihood {exact.objective - result.objective:+.2f}, shifts in standard errors")
    print(shift.round(2).to_string())
    spread = exact.var_corr()["sdcor"][0]
    print(f"standard deviation of people {result.var_corr()['sdcor'][0]:.2f}, by quadrature {spread:.2f}")

    # The empirical shares are those of the model, and the estimates within four standard errors of the truth.
    for arm, visit, share in zip(new["arm"], new["visit"], shares["fit"], strict=True):
        here = (data["arm"] == arm) & (data["visit"] == visit)
        gap = np.mean(np.asarray(data["ill"], float)[here]) - share
        if abs(gap) > 0.1:
            raise SystemExit(f"{arm}, visit {visit}: the share differs from the one seen by {gap:.2f}")
    for name, truth in TRUTH.items():
        if abs(exact.fe_params[name] - truth) > 4 * exact.bse_fe[name]:
            raise SystemExit(f"{name}: the estimate is {exact.fe_params[name]:.2f}, the truth {truth}")
    if abs(spread - SPREAD) > 0.5:
        raise SystemExit(f"the standard deviation of people is {spread:.2f}, the truth {SPREAD}")


if __name__ == "__main__":
    main()
