"""The descent against a minimum that is known."""

import jax
import jax.numpy as jnp
import layouts
import numpy as np

from jmixed.algebra.lbfgs import descend
from jmixed.runtime.precision import double_precision


def test_it_ends_where_the_gradient_vanishes_or_at_the_limit():
    r = np.random.default_rng(0)
    root, best = r.normal(size=(40, 12)), r.normal(size=12)

    def function(x):
        return jnp.sum((root @ (x - best)) ** 2) + jnp.sum((x - best) ** 4)

    run = layouts.quick_jit(lambda tolerance, limit: descend(function, jnp.zeros(12), tolerance, limit))
    with double_precision():
        x, count = jax.device_get(run(1e-8, 200))
        _, few = jax.device_get(run(1e-8, 2))
    np.testing.assert_allclose(x, best, atol=1e-8)
    assert 2 < count < 100
    assert few == 2
