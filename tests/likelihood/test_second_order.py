"""The propagated derivatives in psi against dense formulas and against autodiff of the criterion."""

from dataclasses import replace

import jax
import layouts
import numpy as np
import pytest

from jmixed.likelihood import criterion
from jmixed.likelihood.moments import moments
from jmixed.likelihood.second_order import derivatives
from jmixed.precision import double_precision


@layouts.quick_jit
def propagated(psi, roots, rows):
    held = moments(rows)
    return [derivatives(psi, roots, held, reml) for reml in (False, True)], held.T


def unscaled(name, seed, theta):
    """A case whose preconditioner of Z is the identity, so that psi means the same on both sides."""
    case = layouts.case(name, seed)
    with double_precision():
        T = jax.device_get(layouts.quick_jit(moments)(case.design.rows()).T)
    terms = tuple(replace(t, Z=t.Z @ basis) for t, basis in zip(case.terms, T, strict=True))
    case = replace(case, terms=terms)
    return case, tuple(layouts.factors(case, theta))


@pytest.mark.parametrize("name", [name for name in layouts.NAMES if name != "no random effects"])
@pytest.mark.parametrize("singular", [False, True], ids=["inside", "singular"])
def test_gradient_and_hessian_are_those_of_the_dense_density(name, singular):
    theta = layouts.draw_theta(layouts.case(name))
    if singular:
        theta[-1] = 0
        theta[0] = 0
    case, roots = unscaled(name, 6, theta)
    psi = layouts.psi_of(case, theta)
    with double_precision():
        found, T = jax.device_get(propagated(psi, roots, case.design.rows()))
    for basis in T:
        np.testing.assert_allclose(basis, np.eye(len(basis)), atol=1e-12)
    for reml in (False, True):
        gradient, hessian = layouts.psi_derivatives(case, psi, reml)
        at = found[reml]
        np.testing.assert_allclose(at.value, layouts.deviance(case, theta, reml), rtol=1e-10)
        np.testing.assert_allclose(at.gradient, gradient, rtol=0, atol=1e-10 * np.abs(gradient).max())
        np.testing.assert_allclose(at.hessian, hessian, rtol=0, atol=1e-10 * np.abs(hessian).max())
        d = layouts.generalised(case, layouts.covariances(case, psi), reml)
        np.testing.assert_allclose(at.scale_gradient, scale_gradient(case, psi, d), rtol=1e-8, atol=1e-10)


def scale_gradient(case, psi, d):
    r = d.weighted_residual
    plain = np.diag(1 / case.weights)
    slopes = [layouts.relative_covariance(case, layouts.covariances(case, unit)) - plain for unit in np.eye(len(psi))]
    return np.array([-r @ slope @ r for slope in slopes]) / d.nu


def test_autodiff_of_the_criterion_gives_the_same():
    case = layouts.case("nested and crossed", seed=7)
    theta = layouts.draw_theta(case)
    psi, roots = layouts.psi_of(case, theta), tuple(layouts.factors(case, theta))
    with double_precision():
        held = layouts.quick_jit(moments)(case.design.rows())

        def value(psi):
            return criterion.deviance_at(criterion.covariances_of(psi, held.layout.terms), roots, held, True)

        ours, gradient, hessian = layouts.quick_jit(
            lambda psi: (derivatives(psi, roots, held, True), jax.grad(value)(psi), jax.hessian(value)(psi))
        )(psi)
    np.testing.assert_allclose(ours.gradient, gradient, rtol=1e-10)
    np.testing.assert_allclose(ours.hessian, hessian, rtol=1e-9, atol=1e-10 * np.abs(hessian).max())
