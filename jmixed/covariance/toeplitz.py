"""Toeplitz correlations: one for each distance of columns in their order, with a standard deviation for each or one.

Any positive semidefinite C of this kind is that of a stationary process, and its partial autocorrelations may be
anything within [-1, 1]: they are the sines of the angles. The recursion of Levinson and Durbin takes them to the
correlations, and its regressions of each column on those before it are rows of the lower-triangular root.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.covariance.scaled import Scaled, arcsine, arrays_of


@dataclass(frozen=True)
class Toeplitz(Scaled):
    """A correlation for each distance of columns; see `Scaled`."""

    word_in_files = "toeplitz"

    def kinds(self):
        return np.abs(np.subtract.outer(np.arange(self.q), np.arange(self.q))) - 1

    def correlation(self, r):
        xp = arrays_of(r)
        return xp.concatenate([xp.ones(1, r.dtype), r])[self.kinds() + 1]

    def correlation_slopes(self, r):
        lags = np.arange(self.correlations)[:, None, None]
        return (self.kinds()[None] == lags).astype(r.dtype)

    def angles(self, r):
        # What is left of a column by those before it may be nothing: then no more is told.
        xp, coefficients, left, partials = arrays_of(r), [], 1, []
        for k in range(self.correlations):
            rest = r[..., k] - sum(a * r[..., k - 1 - j] for j, a in enumerate(coefficients))
            told = left > 1e-12 + xp.zeros_like(rest)
            partial = xp.clip(xp.where(told, rest / xp.where(told, left, 1), 0), -1, 1)
            coefficients = _longer(coefficients, partial)
            left = left * (1 - partial**2)
            partials.append(partial)
        return arcsine(xp.stack(partials, -1)) if partials else r

    def of_angles(self, angles):
        xp, coefficients, left, r = arrays_of(angles), [], 1, []
        partials = xp.sin(angles)
        for k in range(self.correlations):
            r.append(sum((a * r[k - 1 - j] for j, a in enumerate(coefficients)), partials[..., k] * left))
            coefficients = _longer(coefficients, partials[..., k])
            left = left * xp.cos(angles[..., k]) ** 2
        return xp.stack(r, -1) if r else angles

    def lower(self, angles):
        xp, unit, coefficients = arrays_of(angles), np.eye(self.q, dtype=angles.dtype), []
        partials, left = xp.sin(angles), xp.ones((*angles.shape[:-1], 1), angles.dtype)
        rows = [left * unit[0]]
        for k in range(self.correlations):
            coefficients = _longer(coefficients, partials[..., k])
            left = left * xp.cos(angles[..., k : k + 1])
            rows.append(sum((a[..., None] * rows[k - j] for j, a in enumerate(coefficients)), left * unit[k + 1]))
        return xp.stack(rows, -2)

    def names_of_correlations(self):
        return [f"lag {lag + 1}" for lag in range(self.correlations)]


def _longer(coefficients, partial):
    """The regression on one column more, nearest first, from that on fewer and the partial correlation with it."""
    return [a - partial * b for a, b in zip(coefficients, coefficients[::-1], strict=True)] + [partial]
