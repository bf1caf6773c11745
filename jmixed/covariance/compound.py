"""Compound symmetry: all correlations are the same, with a standard deviation for each column or one.

C = (1 - r) I + r 11' is positive semidefinite for -1 / (q - 1) <= r <= 1. r runs over that range as the sine of an
angle does over [-1, 1]; with g_j = 1 + j r the lower-triangular root has

    L_jj = sqrt(g_-1 g_j / g_j-1)        L_ij = r sqrt(g_-1 / (g_j g_j-1))        (i > j)

in which g_-1 = 1 - r and g_q-1 vanish at the ends, and are squares of sine and cosine of half the angle.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.covariance.scaled import Scaled, arcsine, arrays_of


@dataclass(frozen=True)
class CompoundSymmetry(Scaled):
    """One correlation between all pairs of columns; see `Scaled`."""

    word_in_files = "compound symmetry"

    @property
    def _range(self):
        """Middle and half of the length of r's range."""
        lowest = -1 / max(self.q - 1, 1)
        return (1 + lowest) / 2, (1 - lowest) / 2

    def kinds(self):
        return -np.eye(self.q, dtype=int)

    def correlation(self, r):
        eye = np.eye(self.q, dtype=r.dtype)
        return eye + (1 - eye) * r.sum()

    def correlation_slopes(self, r):
        slopes = (1 - np.eye(self.q, dtype=r.dtype))[None]
        return slopes[: self.correlations]

    def angles(self, r):
        middle, half = self._range
        return arcsine((r - middle) / half)

    def of_angles(self, angles):
        middle, half = self._range
        return middle + half * arrays_of(angles).sin(angles)

    def lower(self, angles):
        xp, q = arrays_of(angles), self.q
        if not self.correlations:
            return xp.ones((*angles.shape[:-1], 1, 1), angles.dtype)
        half = np.pi / 4 - angles / 2
        sine, cosine, r = xp.sin(half) * (q / (q - 1)) ** 0.5, xp.cos(half) * q**0.5, self.of_angles(angles)
        g = 1 + r * np.arange(q - 1, dtype=angles.dtype)
        pivots = [xp.ones_like(r), sine * (g[..., 1:] / g[..., :-1]) ** 0.5, sine * cosine / g[..., -1:] ** 0.5]
        below = [r, r * sine / (g[..., 1:] * g[..., :-1]) ** 0.5, xp.zeros_like(r)]
        pivots, below = xp.concatenate(pivots, -1)[..., None, :], xp.concatenate(below, -1)[..., None, :]
        return pivots * np.eye(q, dtype=angles.dtype) + below * np.tri(q, k=-1, dtype=angles.dtype)

    def names_of_correlations(self):
        return ["each other"][: self.correlations]
