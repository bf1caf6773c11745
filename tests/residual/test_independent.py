"""Independent residuals: what the contract asks of them, and a structure that whitens, through the likelihood."""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from scipy import stats

from jmixed.likelihood.gaussian import log_density
from jmixed.likelihood.moments import moments
from jmixed.residual.independent import Independent
from jmixed.runtime.precision import double_precision


def test_weights_are_inverse_variances_and_a_weight_of_zero_is_no_row():
    case = layouts.case("slope", seed=2)
    with double_precision():
        rows = case.design.rows(len(case.y))
        rows = replace(rows, weights=np.append(np.array([4.0, 0.0]), rows.weights[2:]))
        structure = Independent()
        np.testing.assert_allclose(structure.variances((), rows)[:2], [0.25, 0])
        np.testing.assert_allclose(structure.draw((), rows, np.ones((2, len(case.y))))[:, :2], [[0.5, 0]] * 2)
    assert structure.size == 0
    assert structure.whiten((), rows) is rows


@dataclass(frozen=True)
class Pairs(Independent):
    """Residuals of pairs of rows have the correlation rho. Rows of a pair have the same levels of all factors."""

    pairs: tuple[tuple[int, int], ...] = ()

    @property
    def correlations(self):
        return 1

    def _root(self, rho, n):
        first, second = np.array(self.pairs).T
        return jnp.eye(n).at[second, first].set(rho[0]).at[second, second].set(jnp.sqrt(1 - rho[0] ** 2))

    def whiten_series(self, tau, columns, there, series):
        return jnp.linalg.inv(self._root(tau, len(columns))) @ columns

    def log_determinant_of_series(self, tau, there, series):
        return 2 * jnp.sum(jnp.log(jnp.diagonal(self._root(tau, len(there)))))


def pairs_within(case):
    """Pairs of rows with the same levels of all factors."""
    waiting, pairs = {}, []
    for row, levels in enumerate(zip(*(term.codes for term in case.terms), strict=True)):
        if levels in waiting:
            pairs.append((waiting.pop(levels), row))
        else:
            waiting[levels] = row
    assert len(pairs) > 3
    return Pairs(pairs=tuple(pairs))


@pytest.mark.parametrize("name", ["slope", "nested"])
def test_a_structure_that_whitens_gives_the_dense_density(name):
    case, rho, sigma = layouts.case(name, seed=2), np.array([0.4]), 1.3
    theta, beta = layouts.draw_theta(case), np.arange(1.0, case.X.shape[1] + 1) / 3
    with double_precision():
        rows = case.design.rows(len(case.y))
        structure = pairs_within(case)
        rows = replace(rows, layout=replace(rows.layout, residual=structure))
        value = layouts.quick_jit(
            lambda rows: log_density(beta, theta, sigma, moments(rows, counted=False, rho=jnp.asarray(rho)))
        )(jax.tree.map(jnp.asarray, rows))
        root = np.asarray(structure._root(rho, len(case.y))) / np.sqrt(case.weights)[:, None]
    psi = layouts.psi_of(case, theta)
    random = layouts.relative_covariance(case, layouts.covariances(case, psi)) - np.diag(1 / case.weights)
    V: Any = sigma**2 * (random + root @ root.T)
    density = stats.multivariate_normal.logpdf(case.y, case.X @ beta + case.offset, V)
    np.testing.assert_allclose(float(value), density, rtol=1e-10)
