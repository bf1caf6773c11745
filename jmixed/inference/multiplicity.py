"""Several tests at once: p-values and limits that hold for all of a family, and letters for what does not differ."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from jmixed.inference import tails

ADJUSTMENTS = ("tukey", "mvt", "holm", "bonferroni", "sidak", "fdr", "none")
"""The ways to adjust p-values for the number of tests."""
DIRECTIONS = 2**15
"""Points of the integral over directions in three dimensions and more; in two it is next to exact with as many."""
SAME = 1e-10
"""Degrees of freedom are the same, and an eigenvalue is zero, if they differ by less, relatively."""


def p_values(t: np.ndarray, df: np.ndarray, adjust: str, means: int, correlation: np.ndarray) -> np.ndarray:
    """Two-sided p-values (k,) of a family of t statistics (k,), adjusted for their number.

    Those that are NaN are no tests, and do not count.

    Parameters
    ----------
    df : array (k,)
        Infinite for normal tests.
    adjust
        One of `ADJUSTMENTS`. "tukey" is that of all pairwise differences of so many `means`; "mvt" takes the joint t
        distribution with the correlations that the estimates have.
    correlation : array (k, k)
    """
    out, known = np.full(len(t), np.nan), np.isfinite(t)
    t, df = np.abs(t[known]), df[known]
    single, count = tails.p_of_t(t, df), len(t)
    if count < 2 or adjust == "none":
        adjusted = single
    elif adjust == "tukey":
        adjusted = np.array([_range_tail(float(value), means, float(nu)) for value, nu in zip(t, df, strict=True)])
        adjusted = _between(single, adjusted, means * (means - 1) // 2)
    elif adjust == "mvt":
        tail = _Directions(correlation[np.ix_(known, known)]).tail
        adjusted = np.array([tail(float(value), float(nu)) for value, nu in zip(t, df, strict=True)])
        adjusted = _between(single, adjusted, len(t))
    elif adjust == "sidak":
        adjusted = -np.expm1(count * np.log1p(-single))
    elif adjust == "bonferroni":
        adjusted = np.minimum(count * single, 1)
    else:
        adjusted = _stepwise(single, adjust)
    out[known] = adjusted
    return out


def _between(single: np.ndarray, joint: np.ndarray, tests: int) -> np.ndarray:
    """Joint tails within what holds of any: no less than one test's, no more than Bonferroni's.

    Integrals over a joint distribution have absolute errors, of which far tails consist.
    """
    return np.clip(joint, single, np.minimum(tests * single, 1))


def _stepwise(p: np.ndarray, adjust: str) -> np.ndarray:
    """Holm's step-down, or Benjamini and Hochberg's step-up p-values."""
    order, count = np.argsort(p, kind="stable"), len(p)
    out = np.empty(count)
    if adjust == "holm":
        out[order] = np.maximum.accumulate(p[order] * np.arange(count, 0, -1))
    else:
        raised = p[order] * count / np.arange(1, count + 1)
        out[order] = np.minimum.accumulate(raised[::-1])[::-1]
    return np.minimum(out, 1)


def half_widths(level: float, df: np.ndarray, adjust: str, means: int, correlation: np.ndarray) -> np.ndarray:
    """How many standard errors simultaneous limits reach to either side, (k,); arguments as of `p_values`.

    Stepwise adjustments have no limits of their own: theirs are Bonferroni's.
    """
    count = int(np.sum(np.isfinite(df) | np.isinf(df)))
    if count < 2 or adjust == "none":
        return tails.t_reach((1 - level) / 2, df)
    if adjust == "sidak":
        return tails.t_reach(-np.expm1(np.log(level) / count) / 2, df)
    if adjust == "tukey":
        return _each(df, lambda nu: _range_quantile(level, means, nu))
    if adjust == "mvt":
        known = ~np.isnan(np.diag(correlation))
        directions = _Directions(correlation[np.ix_(known, known)])
        return _each(df, lambda nu: directions.quantile(level, nu))
    return tails.t_reach((1 - level) / count / 2, df)


def _each(df: np.ndarray, quantile: Callable[[float], float]) -> np.ndarray:
    """A quantile for each number of degrees of freedom, computed once for those that are the same."""
    out = np.full(len(df), np.nan)
    left = np.flatnonzero(~np.isnan(df))
    while len(left):
        first = float(df[left[0]])
        same = np.isclose(df[left], first, rtol=1e-6, atol=0) | (np.isinf(df[left]) & np.isinf(first))
        out[left[same]] = quantile(first)
        left = left[~same]
    return out


def _range_tail(t: float, means: int, df: float) -> float:
    """The probability of a studentized range beyond sqrt(2) t."""
    from scipy.stats import studentized_range

    return float(studentized_range.sf(np.sqrt(2) * t, means, df))


@lru_cache(maxsize=256)
def _range_quantile(level: float, means: int, df: float) -> float:
    from scipy.stats import studentized_range

    return float(studentized_range.ppf(level, means, df)) / np.sqrt(2)


class _Directions:
    """The largest of correlated |t| variables, by the directions of the normal vector behind them.

    With correlations A A', A of r columns, the variables are A z / s. Along a direction u the largest is |z| / s times
    m(u) = max |A u|, and |z|^2 / (r s^2) is F(r, df), independent of u: what is left is a mean over directions.
    """

    def __init__(self, correlation: np.ndarray):
        values, vectors = np.linalg.eigh(correlation)
        kept = values > SAME * values[-1]
        A = vectors[:, kept] * np.sqrt(values[kept])
        self.rank, self.count = A.shape[1], len(A)
        self.sizes = np.abs(_on_sphere(self.rank) @ A.T)
        self.largest = np.max(self.sizes, axis=1)

    def tail(self, t: float, df: float) -> float:
        """The probability that the largest lies beyond t.

        The sum of the probabilities of each is known exactly: the mean is taken of what it counts more than once.
        """
        each = float(tails.p_of_t(np.array([t]), np.array([df]))[0])
        twice = np.sum(self._beyond(t, df, self.sizes), axis=1) - self._beyond(t, df, self.largest)
        return float(np.clip(self.count * each - np.mean(twice), each, 1))

    def _beyond(self, t: float, df: float, sizes: np.ndarray) -> np.ndarray:
        from scipy import special

        with np.errstate(divide="ignore"):
            square = np.minimum((t / sizes) ** 2, 1e300)
        r = self.rank
        return special.chdtrc(r, square) if np.isinf(df) else special.fdtrc(r, df, square / r)

    def quantile(self, level: float, df: float) -> float:
        """Where the probability beyond is 1 - level."""
        from scipy.optimize import brentq

        low, high = (tails.t_reach((1 - level) / share / 2, np.array([df]))[0] for share in (1, len(self.largest)))
        root: Any = brentq(lambda t: self.tail(t, df) - (1 - level), 0.5 * low, high, xtol=1e-12)
        return float(root)


def _on_sphere(rank: int) -> np.ndarray:
    """Directions (n, rank) that fill the unit sphere evenly; opposite ones count as one."""
    if rank == 1:
        return np.ones((1, 1))
    if rank == 2:
        angle = np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
        return np.column_stack([np.cos(angle), np.sin(angle)])
    from scipy.special import ndtri
    from scipy.stats import qmc

    points = qmc.Sobol(rank, rng=np.random.default_rng(0)).random(DIRECTIONS)
    z = ndtri(np.clip(points, 1e-15, 1 - 1e-15))
    return z / np.linalg.norm(z, axis=1)[:, None]


def letter_groups(differ: np.ndarray) -> list[list[int]]:
    """Sets of means, the columns of letters, such that two share one if and only if they do not differ.

    By insertion and absorption (Piepho 2004); `differ` (k, k) is symmetric. The sets come in the order of their first
    members.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.inference.multiplicity import letter_groups
    >>> letter_groups(np.array([[0, 0, 1], [0, 0, 0], [1, 0, 0]], bool))
    [[0, 1], [1, 2]]
    """
    sets = [frozenset(range(len(differ)))]
    for i, j in np.argwhere(np.triu(differ, 1)):
        split = []
        for members in sets:
            split += [members - {i}, members - {j}] if {i, j} <= members else [members]
        distinct = list(dict.fromkeys(split))
        sets = [inner for inner in distinct if not any(inner < outer for outer in distinct)]
    return sorted(sorted(int(k) for k in members) for members in sets if members)
