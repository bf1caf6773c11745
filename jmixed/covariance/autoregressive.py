"""Autoregressive correlations r^|i - j| over the order of the columns, with a standard deviation for each or one.

r is the sine of an angle; the process starts from its stationary distribution, and the lower-triangular root of C has
r^(i - j), beyond the first column times the cosine.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.covariance.scaled import Scaled, arcsine, arrays_of


@dataclass(frozen=True)
class Autoregressive(Scaled):
    """Correlations that fall with the distance of columns in their order; see `Scaled`."""

    word_in_files = "autoregressive"

    def _lag(self):
        return np.abs(np.subtract.outer(np.arange(self.q), np.arange(self.q)))

    def kinds(self):
        return np.where(self._lag() == 1, 0, -1)

    def _powers(self, r, less=0):
        """r^(lag - less), with lags below zero counted as zero: by products, which can be differentiated at zero."""
        xp = arrays_of(r)
        factors = xp.broadcast_to(r.sum(-1)[..., None], (*r.shape[:-1], self.q - 1))
        powers = xp.cumprod(xp.concatenate([xp.ones((*r.shape[:-1], 1), r.dtype), factors], -1), -1)
        return powers[..., np.maximum(self._lag() - less, 0)]

    def correlation(self, r):
        return self._powers(r)

    def correlation_slopes(self, r):
        lag = self._lag().astype(r.dtype)
        return (lag * self._powers(r, 1))[None][: self.correlations]

    def correlation_bends(self, r):
        lag, c = self._lag().astype(r.dtype), self.correlations
        return (lag * (lag - 1) * self._powers(r, 2))[None, None][:c, :c]

    def angles(self, r):
        return arcsine(r)

    def of_angles(self, angles):
        return arrays_of(angles).sin(angles)

    def lower(self, angles):
        xp = arrays_of(angles)
        powers = self._powers(xp.sin(angles)) * np.tri(self.q, dtype=angles.dtype)
        first = (np.arange(self.q) == 0).astype(angles.dtype)[None]
        return powers * (first + (1 - first) * xp.cos(angles).prod(-1)[..., None, None])

    def names_of_correlations(self):
        return ["lag 1"][: self.correlations]
