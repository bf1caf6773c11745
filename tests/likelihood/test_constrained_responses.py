"""A family's criterion while a parameter is held: derivatives against differences, factors against their product."""

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
from generalized import counts, wine
from references import data

import jmixed as jm
from jmixed.algebra.newton import Point
from jmixed.inference import profiles
from jmixed.likelihood.constrained_responses import ConstrainedResponse, triangular
from jmixed.reports import further
from jmixed.reports.components import named_parameters
from jmixed.reports.intervals import response_estimate
from jmixed.runtime.precision import double_precision


def herds_by_nodes():
    formula = "cbind(incidence, size - incidence) ~ period + (1 | herd)"
    return jm.mixedglm(formula, data("cbpp"), quadrature=5).fit()


CASES = {
    "correlation": (counts, "cor_x.Intercept|g"),
    "threshold": (wine, "3|4"),
    "by nodes": (herds_by_nodes, "sd_Intercept|herd"),
}


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", CASES)
def test_derivatives_in_the_chart(name):
    """Gradient and Hessian in all coordinates and the value that is held, away from the estimate."""
    result, parameter = CASES[name][0](), CASES[name][1]
    estimate = response_estimate(result.fitted)
    names = dict(named_parameters(result.model.spec, further.parameter_names(result.model)))
    held, u, free = profiles._chart(estimate, names[parameter])
    x = free + np.linspace(0.05, -0.08, len(free))

    @layouts.quick_jit
    def at(u, x, source):
        criterion = ConstrainedResponse(held, source, u)
        at = criterion.value_gradient_hessian(Point(source.nowhere(), x))
        beyond = at.extras
        gradient = jnp.append(at.gradient, beyond.slope)
        hessian = jnp.block([[at.hessian, beyond.mixed[:, None]], [beyond.mixed[None], beyond.curvature]])
        return at.value, gradient, hessian, criterion.value(Point(source.nowhere(), x))

    with double_precision():
        value, gradient, hessian, again = at(u, x, estimate.source)
        np.testing.assert_allclose(value, again, rtol=1e-11)
        z = np.append(x, u)
        for k, step in enumerate(1e-5 * np.eye(len(z))):
            above, below = (at(place[-1], place[:-1], estimate.source) for place in (z + step, z - step))
            assert gradient[k] == pytest.approx((above[0] - below[0]) / 2e-5, abs=1e-6 * np.max(np.abs(gradient)))
            slopes = (above[1] - below[1]) / 2e-5
            np.testing.assert_allclose(hessian[k], slopes, atol=1e-6 * np.max(np.abs(hessian)))


@pytest.mark.parametrize("q", [1, 2, 3])
def test_triangular_factors(q):
    root = np.random.default_rng(q).normal(size=(q, q))
    with double_precision():
        factor = np.asarray(triangular(jnp.asarray(root), jnp.eye(q)))
        turned = np.eye(q)[:, ::-1]
        diagonal = np.asarray(triangular(jnp.asarray(turned * root[0][None]), jnp.asarray(turned)))
    np.testing.assert_allclose(factor @ factor.T, root @ root.T, atol=1e-12)
    np.testing.assert_array_equal(np.triu(factor, 1), np.zeros((q, q)))
    # A diagonal one keeps its signs, so that nothing is bent where one of them changes.
    np.testing.assert_array_equal(diagonal, np.diag(root[0][::-1]))


def test_a_factor_passes_smoothly_through_a_loss_of_rank():
    def last(t):
        return triangular(jnp.stack([jnp.stack([1.0 + 0 * t, 2.0 + 0 * t]), jnp.stack([1.0 + t, 2.0 - t])]), jnp.eye(2))

    with double_precision():
        around = [float(last(t)[1, 1]) for t in (-1e-3, 0.0, 1e-3)]
        slope = float(jax.grad(lambda t: last(t)[1, 1])(0.0))
    assert around[1] == pytest.approx(0, abs=1e-15)
    assert (around[2] - around[0]) / 2e-3 == pytest.approx(slope, rel=1e-5)
    assert abs(slope) > 1
