"""Factors fitted as crossed whose labels seem to start anew within another factor: classes 1, 2, 3 of every school."""

from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pandas as pd

from jmixed.formulas.model_data import RandomTerm
from jmixed.inference import tails
from jmixed.reports.fitted import Fitted

MOST_LABELS = 12
"""Labels beyond which a factor is not taken for one that is numbered within another."""
CLEAR, NOTHING = 1e-3, 0.05
"""The p-value below which combinations differ, and that above which labels have nothing in common."""


def seemingly_nested(fitted: Fitted) -> list[str]:
    """Sentences on pairs of terms that are probably nested: `outer` and `inner` where all of this holds.

    The labels of `inner` are 1, 2, ... or a, b, ..., fewer than the levels of `outer`, and each of these has the first
    few of them, with several rows each. That is true of many crossed designs too, so that the response decides, less
    the fixed part: by F tests the combinations differ clearly beyond both factors, and the labels not beyond that. Of
    crossed factors with one row for each combination, as subjects and items, nothing is said.
    """
    spec = fitted.spec
    plain = fitted.family is None and fitted.has_data and spec.represents is None and spec.residual is None
    factors = {term.group: term for term in spec.terms if term.vc is None}
    if not plain or len(factors) < 2 or np.ptp(spec.weights) > 0:
        return []
    rest = spec.y - spec.offset - spec.X @ fitted.fit.beta
    return [
        f"The labels of {inner} repeat across {outer} and are fitted as crossed, but show nothing in common there. If "
        f"they start anew in each {outer}, that is nesting: (1 | {outer}/{inner})."
        for outer, inner in permutations(factors, 2)
        if _is_intercept(term := factors[inner], spec.terms)
        and not any({outer, inner} <= set(group.split(":")) for group in factors)
        and _starts_anew(factors[outer], term)
        and _differs_by_combination(rest, factors[outer].codes, term.codes)
    ]


def _is_intercept(term: RandomTerm, terms: Sequence[RandomTerm]) -> bool:
    """Whether a factor has an intercept of independent levels, and nothing else."""
    alone = sum(other.group == term.group for other in terms) == 1
    return alone and term.columns == ("Intercept",) and term.relationship is None


def _starts_anew(outer: RandomTerm, inner: RandomTerm) -> bool:
    """Whether the labels are the first few numbers or letters in each level of `outer`, with several rows each."""
    count = len(inner.levels)
    if not 1 < count <= MOST_LABELS or len(outer.levels) <= count:
        return False
    labels = inner.levels
    if pd.api.types.is_numeric_dtype(labels.dtype):
        sequence = [list(range(start, start + count)) for start in (0, 1)]
    else:
        sequence = [[chr(ord(first) + k) for k in range(count)] for first in "01aA"]
    if list(labels) not in sequence:
        return False
    rows = np.zeros((len(outer.levels), count), int)
    np.add.at(rows, (outer.codes, inner.codes), 1)
    there = rows > 0
    first_few = np.arange(count) < there.sum(axis=1)[:, None]
    several = np.mean(rows[there] > 1) > 0.9
    return bool((there == first_few).all() and several and (there.sum(axis=1) > 1).mean() > 0.5)


def _differs_by_combination(values: np.ndarray, outer: np.ndarray, inner: np.ndarray) -> bool:
    """Whether combinations differ clearly, and labels of `inner` within levels of `outer` not beyond that."""
    # Combinations by number, those that there are.
    count = int(inner.max()) + 1
    there, cell = np.unique(outer.astype(int) * count + inner, return_inverse=True)
    levels_of, labels_of = there // count, there % count
    sizes = np.bincount(cell).astype(float)
    means = np.bincount(cell, values) / sizes
    _, rest = two_way(means, levels_of, labels_of, sizes)
    by_label, beyond = two_way(means, levels_of, labels_of, np.ones(len(sizes)))
    labels, levels = len(np.unique(labels_of)), len(np.unique(levels_of))
    free, left = len(sizes) - levels - labels + 1, len(values) - len(sizes)
    within = float(np.sum((values - means[cell]) ** 2))
    if free < 1 or left < 1 or not beyond > 0:
        return False
    of_cells = float(rest / free / (within / left)) if within > 0 else float("inf")
    of_labels = float(by_label / (labels - 1) / (beyond / free))
    clear = tails.p_of_F(of_cells, free, left) < CLEAR
    return bool(clear and tails.p_of_F(of_labels, labels - 1, free) > NOTHING)


def two_way(means: np.ndarray, outer: np.ndarray, inner: np.ndarray, weights: np.ndarray) -> tuple[float, float]:
    """Sums of squares of means of combinations: of labels within the levels of `outer`, and beyond both."""
    total = np.bincount(outer, weights)

    def within(columns: np.ndarray) -> np.ndarray:
        sums = np.stack([np.bincount(outer, weights * column) for column in columns.T], 1)
        return np.sqrt(weights)[:, None] * (columns - (sums / total[:, None])[outer])

    y, X = within(means[:, None])[:, 0], within(np.eye(inner.max() + 1)[inner][:, 1:])
    beyond = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    return float(y @ y - beyond @ beyond), float(beyond @ beyond)
