"""The assumptions of a model, each with a number and a line of words."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import JmixedError
from jmixed.inference.simulation import generator, how_many
from jmixed.reports import diagnostics, effects, responses, rows
from jmixed.reports.bootstrap import simulate
from jmixed.reports.fitted import Fitted
from jmixed.reports.names import fixed_terms
from jmixed.reports.printed import Shown
from jmixed.runtime.arguments import checked

SLICES = 10
"""Slices of rows with equal numbers, along the fixed part, whose means and spreads are compared."""
FEWEST, MOST = 10, 50
"""Simulated responses that the observed one is compared with."""
LINEAR, SPREAD, STRAIGHT, SCATTER, GROUP, VIF, MIXED = 0.03, 0.2, 0.985, 0.1, 0.5, 5.0, 0.1
"""From where a number is worth a second look: of curvature, of unequal variance, of quantiles, of their spread beside
one, Cook's distance of a group, a variance inflation factor, and the largest distance of distributions."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Checks(Shown):
    """What there is to say of a model's assumptions.

    Attributes
    ----------
    frame : DataFrame
        A row for each check: columns number and words, and ``look``, whether it is worth a second look.
    collinearity : Series (terms,)
        Variance inflation factors by term, of several columns generalised ones (Fox and Monette 1992), with the root
        that makes them comparable: GVIF^(1 / df).
    influence : Series (groups,)
        Cook's distances of the groups, named by the factor, at the estimated variance parameters; `influence` has those
        that let them move. Of crossed factors it is the one with the largest. NaN where a coefficient has no estimate
        without the group; empty where they were not computed.
    """

    frame: pd.DataFrame
    collinearity: pd.Series
    influence: pd.Series

    def _shown(self) -> tuple[str, pd.DataFrame]:
        count = int(np.count_nonzero(self.frame["look"]))
        shown = self.frame.drop(columns="look")
        return f"<Checks: {count} of {len(self.frame)} are worth a second look>", shown


@dataclass(frozen=True, eq=False)
class Material:
    """What the checks are made of.

    Attributes
    ----------
    residual, fixed : arrays (n,)
        Residuals that are standard normal if the model holds, and the fixed part.
    modes : dict of str to array (levels,)
        The conditional modes by column and factor, over their own standard deviation, if they vary.
    observed, drawn : arrays (n,), (draws, n)
        The responses, and new ones of the model.
    """

    residual: np.ndarray
    fixed: np.ndarray
    modes: dict[str, np.ndarray]
    observed: np.ndarray
    drawn: np.ndarray


def material(fitted: Fitted, key: Any = 0) -> Material:
    """What all checks of a fit, and their picture, are made of."""
    fitted.need_data("check")
    linear = fitted.family is None
    residual = diagnostics.standardised(fitted) if linear else responses.quantile_residuals(fitted, key)
    fixed = rows.fixed_part(fitted.spec, fitted.fit.beta)
    drawn = simulate(fitted, how_many(fitted.nobs, FEWEST, MOST), generator(key).integers(2**31), "new")
    return Material(residual, fixed, _modes(fitted), responses.observed(fitted), drawn / _trials(fitted))


def checks(fitted: Fitted, made_of: Material) -> Checks:
    """All checks: see `MixedLMResults.check`."""
    table: dict[str, tuple[float, bool, str]] = {}
    residual, fixed = made_of.residual, made_of.fixed
    table["linearity"] = _linearity(residual, fixed)
    table["equal variances"] = _spread(residual, fixed)
    if fitted.family is None:
        table["normal residuals"] = _straight(residual, "residuals")
    else:
        table["normal residuals"] = _standard(residual)
    for name, modes in made_of.modes.items():
        table[f"normal {name}"] = _straight(modes, name)
    distances = _influence(fitted)
    if len(distances):
        lost, most = distances.index[distances.isna().to_numpy()], float(distances.max())
        if len(lost):
            words = f"without {distances.index.name} {lost[0]} a coefficient has no estimate"
        else:
            words = f"largest Cook's distance: {distances.index.name} {distances.idxmax()}"
        table["influential groups"] = (most, len(lost) > 0 or most > GROUP, words)
    factors = collinearity(fitted)
    if len(factors):
        worst, most = str(factors.idxmax()), float(factors.max())
        # Beside an interaction its factors are collinear by nature, unless they are centred.
        inside = ":" in worst or any(worst in term.split(":") for term in map(str, factors.index) if term != worst)
        words = f"largest inflation: {worst}" + (" (interaction)" if inside else "")
        table["collinearity"] = (most, most > VIF and not inside, words)
    if fitted.family is not None and fitted.family.response != "categories":
        table["dispersion"] = _dispersion(fitted)
    fewest = min([len(term.levels) for term in fitted.spec.terms], default=fitted.nobs)
    table["distribution"] = _distance(made_of.observed, made_of.drawn, fewest)
    columns = {"number": [row[0] for row in table.values()], "words": [row[2] for row in table.values()]}
    frame = pd.DataFrame(columns, list(table)).assign(look=[row[1] for row in table.values()])
    return Checks(frame, factors, distances)


def _slices(x: np.ndarray) -> list[np.ndarray]:
    """Rows in slices of equal numbers along x."""
    return np.array_split(np.argsort(x, kind="stable"), min(SLICES, max(2, len(x) // 8)))


def _linearity(residual: np.ndarray, fixed: np.ndarray) -> tuple[float, bool, str]:
    """The share of the residuals' variance between slices of the fixed part, beyond what chance gives."""
    parts = _slices(fixed)
    means = np.array([residual[part].mean() for part in parts])
    sizes = np.array([len(part) for part in parts])
    n, k = len(residual), len(parts)
    between = np.sum(sizes * (means - residual.mean()) ** 2)
    total = np.sum((residual - residual.mean()) ** 2) or 1.0
    share = max(0.0, float((between - (k - 1) * (total - between) / max(n - k, 1)) / total))
    # What slices differ by chance has a standard deviation of sqrt(2 (k - 1)) / n.
    curved = share > LINEAR + 2 * np.sqrt(2 * (k - 1)) / n
    return (
        share,
        curved,
        "residuals bend along the fixed part" if curved else "no bend in the residuals",
    )


def _spread(residual: np.ndarray, fixed: np.ndarray) -> tuple[float, bool, str]:
    """The rank correlation of the residuals' size and the fixed part."""
    if np.ptp(fixed) == 0 or np.ptp(np.abs(residual)) == 0:
        return 0.0, False, "nothing for the spread to depend on"
    value = float(np.corrcoef(_ranks(np.abs(residual)), _ranks(fixed))[0, 1])
    unequal = abs(value) > SPREAD + 1 / np.sqrt(len(residual))
    way = "grows" if value > 0 else "shrinks"
    return value, unequal, f"spread {way} with the fixed part" if unequal else "the spread is even"


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks, the same for ties."""
    return pd.Series(values).rank().to_numpy()


def _straight(sample: np.ndarray, what: str) -> tuple[float, bool, str]:
    """The correlation of the quantiles with the normal distribution's (Shapiro and Francia 1972, its root)."""
    sample = np.sort(sample[np.isfinite(sample)])
    if len(sample) < 3 or np.ptp(sample) == 0:
        return float("nan"), False, f"{len(sample)} values do not tell of a distribution"
    value = float(np.corrcoef(sample, normal_quantiles(len(sample)))[0, 1])
    # With few values the correlation is lower by chance: about a quarter of 1 / sqrt(n) below one.
    bent = value < STRAIGHT - 0.25 / np.sqrt(len(sample))
    return value, bent, f"{what} bend away from the normal line" if bent else "close to the normal line"


def _standard(sample: np.ndarray) -> tuple[float, bool, str]:
    """The same of quantile residuals, whose standard deviation is one if the model holds."""
    value, bent, words = _straight(sample, "quantile residuals")
    deviation = float(np.std(sample[np.isfinite(sample)]))
    # That of n normal numbers differs from one by chance with a standard deviation of sqrt(1 / 2n).
    if not bent and abs(deviation - 1) > SCATTER + 2 * np.sqrt(0.5 / max(len(sample), 1)):
        return value, True, f"quantile residuals scatter {deviation:.2f} times as much as they should"
    return value, bent, words


def normal_quantiles(count: int) -> np.ndarray:
    """Standard normal quantiles of so many ranks."""
    from scipy.special import ndtri

    return ndtri((np.arange(count) + 0.5) / count)


def _modes(fitted: Fitted) -> dict[str, np.ndarray]:
    out = {}
    for group, table in effects.modes(fitted.spec.terms, fitted.fit.b).items():
        for name in table.columns:
            values = table[name].to_numpy(dtype=float)
            deviation = np.std(values)
            if deviation > 1e-8 * float(np.std(fitted.spec.y) or 1.0):
                out[f"{name} by {group}"] = (values - values.mean()) / deviation
    return out


def _influence(fitted: Fitted) -> pd.Series:
    """Cook's distances of groups; empty where refits would be needed, or what they rest on is not there."""
    nothing = pd.Series(dtype=float, name="cooks_distance")
    # Thresholds are no coefficients, and would be held.
    of_thresholds = getattr(fitted.family, "response", None) == "categories"
    if of_thresholds or fitted.held is not None or fitted.penalty or not fitted.k_fe:
        return nothing
    try:
        return diagnostics.distances(fitted)
    except JmixedError:
        return nothing


def collinearity(fitted: Fitted) -> pd.Series:
    """Generalised variance inflation factors by term, from the correlations of the coefficients; no intercept."""
    V, names = np.asarray(fitted.fit.vcov_beta), list(fitted.names.fixed)
    by_term = fixed_terms(fitted.spec)
    terms = [next(term for term, places in by_term.items() if k in places) for k in range(len(names))]
    used = [k for k, term in enumerate(terms) if term not in ("1", "Intercept")]
    used = [k for k in used if V[k, k] > 0]
    out: dict[str, float] = {}
    if len(used) < 2:
        return pd.Series(out, dtype=float)
    error = np.sqrt(np.diag(V)[used])
    R = V[np.ix_(used, used)] / np.outer(error, error)
    whole = np.linalg.slogdet(R)[1]
    of_used = [terms[k] for k in used]
    distinct = list(dict.fromkeys(of_used))
    for term in distinct if len(distinct) > 1 else []:
        mine = np.array([name == term for name in of_used])
        inside, outside = (np.linalg.slogdet(R[np.ix_(part, part)])[1] for part in (mine, ~mine))
        out[term] = float(np.exp((inside + outside - whole) / mine.sum()))
    return pd.Series(out, dtype=float) if names else pd.Series(dtype=float)


def _dispersion(fitted: Fitted) -> tuple[float, bool, str]:
    """Pearson's chi-square over its degrees of freedom, given the random effects."""
    pearson = responses.residuals(fitted, "pearson", 0, 1)
    value = float(np.sum(pearson**2) / max(fitted.nobs - fitted.n_params, 1))
    if value > 1.2:
        return value, True, "more variance than the family has: overdispersion"
    return value, value < 0.6, "less variance than the family has" if value < 0.6 else "the variance is the family's"


def _trials(fitted: Fitted) -> Any:
    successes = fitted.family is not None and fitted.family.response == "successes"
    return fitted.response.trials if successes else 1.0


def _distance(observed: np.ndarray, drawn: np.ndarray, groups: int) -> tuple[float, bool, str]:
    """The largest distance of the distribution of the responses from that of all new ones.

    Few groups are far from the distribution of all groups by chance.
    """
    grid = np.unique(observed)
    mine = np.searchsorted(np.sort(observed), grid, side="right") / len(observed)
    pooled = np.sort(drawn, axis=None)
    theirs = np.searchsorted(pooled, grid, side="right") / pooled.size
    value = float(np.max(np.abs(mine - theirs)))
    off = value > MIXED + 0.5 / np.sqrt(groups)
    return value, off, "unlike that of simulated responses" if off else "like that of simulated responses"
