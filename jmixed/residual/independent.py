"""Independent residuals: R = I, and rows are white once each is divided by its own standard deviation.

Without columns of the dispersion, a row of weight w has the variance sigma^2 / w. With them variances differ by group
(columns of a category) or along a covariate: ``log d = delta log x`` is a power of x.
"""

from dataclasses import dataclass

import jax.numpy as jnp

from jmixed.residual.structure import ResidualStructure


@dataclass(frozen=True)
class Independent(ResidualStructure):
    """Without correlations; see `ResidualStructure`."""

    @property
    def correlations(self):
        return 0

    def matrix(self, tau, first, second):
        return (first[:, None] == second[None]).astype(first.dtype)

    def whiten_series(self, tau, columns, there, series):
        return columns

    def log_determinant_of_series(self, tau, there, series):
        return 0

    def colour(self, tau, normal, series):
        return normal

    def log_pivot(self, tau):
        return jnp.zeros(())

    @property
    def starts(self):
        return ((),)

    def readable(self, tau, unit):
        return jnp.zeros(0)

    def names(self, places):
        return []
