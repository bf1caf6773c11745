"""Independent residuals: R = I, and rows are as white as they are. A row of weight w has the variance sigma^2 / w."""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jmixed.residual.structure import ResidualStructure


@dataclass(frozen=True)
class Independent(ResidualStructure):
    """Without parameters; see `ResidualStructure`."""

    @property
    def size(self):
        return 0

    def whiten(self, rho, rows):
        return rows

    def log_determinant(self, rho, rows):
        return 0

    def variances(self, rho, weights):
        xp = np if isinstance(weights, np.ndarray) else jnp
        real = weights > 0
        return xp.where(real, 1 / xp.where(real, weights, 1), 0)

    def draw(self, rho, weights, normal):
        return self.variances(rho, weights) ** 0.5 * normal
