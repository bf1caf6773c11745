"""Cross-products of an autoregression from those that are made once, against those of whitened rows."""

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import residual_cases

from jmixed.likelihood.combined import combined
from jmixed.likelihood.moments import moments
from jmixed.likelihood.preconditioning import preconditioners
from jmixed.runtime.precision import double_precision


@layouts.quick_jit
def both_ways(rows, rho):
    """C, B, G and the log-determinant with their derivatives, from sums and from whitened rows."""
    columns = preconditioners(rows)
    sums = combined(rows, columns)
    assert sums is not None

    def tables(made):
        return made.C, made.B, made.G, made.log_weights

    ways = (lambda rho: tables(sums.at(rho))), (lambda rho: tables(moments(rows, columns, False, rho)))
    return [(way(rho), jax.jacfwd(way)(rho), jax.jacfwd(jax.jacfwd(way))(rho)) for way in ways]


@pytest.mark.parametrize("tau", [-7.0, -0.4, 0.0, 0.4, 7.0])
def test_sums_that_are_made_once_are_those_of_whitened_rows(tau):
    """Also next to a correlation of one and of minus one, where differences of rows are small."""
    case = residual_cases.case("slope", "ar1", 0)
    with double_precision():
        rows = jax.tree.map(jnp.asarray, case.design.rows(len(case.y) + 3))
        mine, theirs = both_ways(rows, jnp.array([tau]))
    for own, other in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other, atol=1e-9 * max(1, np.abs(other).max()))


def test_many_lengths_of_steps_are_not_combined():
    case = residual_cases.case("slope", "car1", 0)
    with double_precision():
        rows = jax.tree.map(jnp.asarray, case.design.rows(len(case.y)))
        assert len(np.unique(np.diff(np.asarray(rows.series.place)))) > 4
        assert combined(rows, preconditioners(rows)) is None
