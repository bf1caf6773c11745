"""The parameters of correlated residuals by the numbers that people know them by, and how these change."""

from functools import partial

import jax
import numpy as np

from jmixed.residual.structure import ResidualStructure
from jmixed.runtime.compilation import program
from jmixed.runtime.precision import FLOAT, double_precision


def readable(residual: ResidualStructure, tau: np.ndarray, unit: float) -> np.ndarray:
    """Correlations (n, k) at parameters tau (n, k); `unit` is that of the places."""
    with double_precision():
        return jax.device_get(_readable_program(np.asarray(tau, FLOAT), residual=residual, unit=float(unit)))


def readable_slopes(residual: ResidualStructure, tau: np.ndarray, unit: float) -> np.ndarray:
    """Derivatives (k, k) of the correlations in parameters tau (k,)."""
    with double_precision():
        return jax.device_get(_slopes_program(np.asarray(tau, FLOAT), residual=residual, unit=float(unit)))


def readable_beside(residual: ResidualStructure, u: float, unit: float) -> tuple[float, float]:
    """A held correlation at its coordinate u, and its derivative there."""
    with double_precision():
        value, slope = jax.device_get(_beside_program(FLOAT(u), residual=residual, unit=float(unit)))
    return float(value), float(slope)


@program(static_argnames=("residual", "unit"))
def _readable_program(tau, residual, unit):
    return jax.vmap(partial(residual.readable, unit=unit))(tau)


@program(static_argnames=("residual", "unit"))
def _slopes_program(tau, residual, unit):
    return jax.jacfwd(partial(residual.readable, unit=unit))(tau)


@program(static_argnames=("residual", "unit"))
def _beside_program(u, residual, unit):
    return jax.value_and_grad(residual.value_beside)(u, unit)
