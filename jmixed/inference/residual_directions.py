"""Directions in which the covariance of the residuals can move, linearly: what Kenward and Roger's covariance needs.

With E(rho) the covariance of the residuals relative to sigma^2, block diagonal over series, and E_i its derivative in
rho_i, cross-products along the straight path E + sum e_i E_i have the second derivatives

    d2 u'E^-1 v / de_i de_j = u_i'v_j + u_j'v_i,      u_i = L^-1 E_i L^-T u~,   u~ = L^-1 u,   E = L L'

and log|E| has -tr E^-1 E_i E^-1 E_j. Both are worked out series by series, as dense matrices on the host.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.errors import ModelError
from jmixed.layout.design import Rows
from jmixed.runtime.compilation import program
from jmixed.runtime.precision import FLOAT, double_precision

LONGEST = 2000
"""Rows of the longest series whose covariance is written out."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class ResidualDirections:
    """Rows moved along each direction (k, rows, ...), and tr E^-1 E_i E^-1 E_j (k, k)."""

    X: np.ndarray
    Z: tuple[np.ndarray, ...]
    y: np.ndarray
    products: np.ndarray


def residual_directions(rows: Rows, rho: np.ndarray) -> ResidualDirections:
    """The directions of all of rho (k,), from rows in numpy arrays."""
    tables = [rows.X, *rows.Z, (rows.y - rows.offset)[:, None]]
    columns = np.concatenate(tables, axis=1)
    residual, k = rows.layout.residual, len(rho)
    moved, products = np.zeros((k, *columns.shape), FLOAT), np.zeros((k, k), FLOAT)
    dispersion = np.asarray(rows.series.dispersion)
    if not residual.correlations:
        with double_precision():
            half = np.asarray(residual.scale(rho, rows))[:, None] * columns
        for i in range(k):
            moved[i] = 2 * dispersion[:, i : i + 1] * half
        there = np.asarray(rows.weights) > 0
        products = 4 * dispersion[there].T @ dispersion[there]
    else:
        for members in _by_length(rows):
            E, slopes = _covariances(rows, rho, members)
            root = np.linalg.cholesky(E)
            white = np.linalg.solve(root, columns[members])
            # L^-1 E_i L^-T, (k, series, T, T)
            inner = np.linalg.solve(root, np.swapaxes(np.linalg.solve(root, slopes), -1, -2))
            moved[:, members] = inner @ white
            products += np.einsum("istu,jsut->ij", inner, inner)
    cuts = np.split(moved, np.cumsum([table.shape[1] for table in tables])[:-1], axis=2)
    return ResidualDirections(cuts[0], tuple(cuts[1:-1]), cuts[-1][:, :, 0], products)


def _by_length(rows: Rows):
    """Rows (series, T) of all series of each length, in the order of their places."""
    series, there = rows.series, np.asarray(rows.weights) > 0
    order = np.arange(len(there)) if series.order is None else np.asarray(series.order)
    number, order = np.asarray(series.number)[there[order]], order[there[order]]
    sizes = np.bincount(number)
    if len(sizes) and sizes.max() > LONGEST:
        raise ModelError(
            f"Kenward and Roger's covariance needs the residuals' covariance of each group, and the longest has "
            f"{sizes.max():,} rows, more than {LONGEST:,}; use ddf='satterthwaite'"
        )
    begins = np.cumsum(sizes) - sizes
    for size in np.unique(sizes[sizes > 0]):
        yield order[begins[sizes == size][:, None] + np.arange(size)]


def _covariances(rows: Rows, rho, members):
    """E (series, T, T) of series of one length, and its derivatives (k, series, T, T)."""
    residual, rank = rows.layout.residual, rows.series.rank
    places = np.asarray(rows.series.place)[members if rank is None else np.asarray(rank)[members]]
    dispersion, weights = np.asarray(rows.series.dispersion)[members], np.asarray(rows.weights)[members]
    with double_precision():
        E, slopes = jax.device_get(_covariance_program(rho, places, dispersion, weights, residual=residual))
    return E, np.moveaxis(slopes, -1, 0)


@program(static_argnames=("residual",))
def _covariance_program(rho, places, dispersion, weights, residual):
    def covariance(rho, places, dispersion, weights):
        sd = jnp.exp(dispersion @ rho[: residual.columns]) / jnp.sqrt(weights)
        return sd[:, None] * residual.matrix(rho[residual.columns :], places, places) * sd[None]

    several = jax.vmap(covariance, in_axes=(None, 0, 0, 0))
    return several(rho, places, dispersion, weights), jax.jacfwd(several)(rho, places, dispersion, weights)
