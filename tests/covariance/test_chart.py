"""The chart of the optimiser: what it holds, and how its derivatives lead back to psi."""

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.covariance.chart import chart_at, chart_roots
from jmixed.covariance.identity import Identity
from jmixed.covariance.unstructured import Unstructured
from jmixed.runtime.precision import double_precision

STRUCTURES = (Unstructured(3), Unstructured(1), Identity(2))


def test_a_chart_holds_its_covariances_largest_first():
    r = np.random.default_rng(0)
    root = r.normal(size=(3, 2))
    covariances = [root @ root.T, np.array([[2.0]]), 3 * np.eye(2)]
    with double_precision():
        chart = chart_at([jnp.asarray(c) for c in covariances], STRUCTURES, covariances[0].dtype)
        chart, roots = jax.device_get((chart, chart_roots(chart, STRUCTURES)))
    for root, covariance in zip(roots, covariances, strict=True):
        np.testing.assert_allclose(root @ root.T, covariance, atol=1e-12)
    sizes = chart.phi[np.array([0, 2, 5])]
    assert sizes[0] > sizes[1] > sizes[2]
    # The vanished direction is an exact zero, in the last column.
    assert sizes[2] == 0
