"""The loss of a training loop against the dense normal density, and its mini-batches against the whole."""

from dataclasses import replace

import jax
import layouts
import numpy as np
import pytest

import jmixed as jm
from jmixed.errors import DataError, ModelError
from jmixed.fit import minibatch
from jmixed.runtime.precision import double_precision


def loss_and_gradient(case, groups, total):
    design = case.design

    @layouts.quick_jit
    def both(y, theta, sigma, groups):
        def loss(y, theta, sigma):
            rows, part = jm.take_groups(design, groups)
            return jm.marginal_loss(y[rows], theta, part, sigma, total)

        return jax.value_and_grad(loss, argnums=(0, 1, 2))(y, theta, sigma)

    with double_precision():
        return lambda y, theta, sigma: [jax.device_get(both(y, theta, sigma, g)) for g in groups]


@pytest.mark.parametrize("chunk", [16, 4])
def test_the_mean_over_mini_batches_is_the_whole_loss(chunk, monkeypatch):
    monkeypatch.setattr(minibatch, "CHUNK", chunk)
    case = layouts.case("slope")
    theta, sigma, residual = layouts.draw_theta(case), 0.7, case.y - 3
    # Every pair of the seven groups, so that the mean over batches is the expectation.
    pairs = np.array([(i, j) for i in range(7) for j in range(i)])
    with double_precision():
        found = loss_and_gradient(case, pairs, 7)(residual, theta, np.asarray(sigma))
    bare = replace(case, y=residual, X=np.zeros((layouts.ROWS, 0)), offset=np.zeros(layouts.ROWS))
    expected = layouts.density_gradient(bare, np.zeros(0), theta, sigma)
    value = -layouts.log_density(bare, np.zeros(0), theta, sigma)
    np.testing.assert_allclose(np.mean([one[0] for one in found]), value, rtol=1e-11)
    for k, name in enumerate(("y", "theta", "sigma")):
        mean = np.mean([one[1][k] for one in found], axis=0)
        np.testing.assert_allclose(mean, -np.asarray(expected[name]), rtol=1e-9, atol=1e-9)


def test_the_profiled_loss_is_the_smallest_over_sigma():
    case = layouts.case("slope")
    theta, residual = layouts.draw_theta(case), case.y - 3
    with double_precision():
        profiled = float(jm.marginal_loss(residual, theta, case.design))
    bare = replace(case, y=residual, X=np.zeros((layouts.ROWS, 0)), offset=np.zeros(layouts.ROWS))
    assert profiled == pytest.approx(layouts.deviance(bare, theta, False) / 2, rel=1e-11)


def test_a_batch_is_refused_where_groups_are_not_independent_or_not_known():
    with pytest.raises(ModelError, match="one grouping factor, and this one has 3"):
        jm.take_groups(layouts.case("crossed").design, np.array([0]))
    with pytest.raises(DataError, match="close over it"):
        jax.jit(jm.take_groups)(layouts.case("slope").design, np.array([0]))
