"""The propagated derivatives in psi against dense formulas."""

from dataclasses import replace

import jax
import layouts
import numpy as np
import pytest
import structures

from jmixed.likelihood.derivatives import derivatives
from jmixed.likelihood.gaussian import deviance_at
from jmixed.likelihood.moments import moments
from jmixed.likelihood.stages import covariances_of
from jmixed.runtime.precision import double_precision

compiled_moments = layouts.quick_jit(lambda rows: moments(rows, counted=False))
compiled_derivatives = layouts.quick_jit(derivatives)


def unscaled(name, theta):
    """A case whose preconditioner of Z is the identity, so that psi means the same on both sides."""
    case = layouts.case(name, seed=6)
    T = compiled_moments(case.design.rows()).T
    terms = tuple(replace(t, Z=t.Z @ np.asarray(basis)) for t, basis in zip(case.terms, T, strict=True))
    case = replace(case, terms=terms)
    return case, tuple(layouts.factors(case, theta))


@pytest.mark.sweep(8)
@pytest.mark.parametrize("reml", [True, False], ids=["REML", "ML"])
@pytest.mark.parametrize("singular", [False, True], ids=["inside", "singular"])
@pytest.mark.parametrize(
    "name",
    [
        *("slope", "five", "independent", "identity", "nested", "nested three", "nested and crossed", "crossed"),
        *("sparse", "related", "related and others", "equations"),
    ],
)
def test_gradient_and_hessian_are_those_of_the_dense_density(name, singular, reml):
    theta = layouts.draw_theta(layouts.case(name))
    if singular:
        theta[[0, -1]] = 0
    with double_precision():
        case, roots = unscaled(name, theta)
        psi = layouts.psi_of(case, theta)
        held = compiled_moments(case.design.rows())
        T, at = jax.device_get((held.T, compiled_derivatives(psi, roots, held, np.asarray(reml))))
    for basis in T:
        np.testing.assert_allclose(basis, np.eye(len(basis)), atol=1e-12)
    gradient, hessian = layouts.psi_derivatives(case, psi, reml)
    np.testing.assert_allclose(at.value, layouts.deviance(case, theta, reml), rtol=1e-10)
    np.testing.assert_allclose(at.gradient, gradient, rtol=0, atol=1e-10 * np.abs(gradient).max())
    # Sparse equations have second derivatives at a zero from next to it.
    accuracy = 1e-5 if singular and name == "equations" else 1e-10
    np.testing.assert_allclose(at.hessian, hessian, rtol=0, atol=accuracy * np.abs(hessian).max())
    d = layouts.generalised(case, layouts.covariances(case, psi), reml)
    np.testing.assert_allclose(at.scale_gradient, scale_gradient(case, psi, d), rtol=1e-8, atol=1e-10)


def scale_gradient(case, psi, d):
    r = d.weighted_residual
    plain = np.diag(1 / case.weights)
    slopes = [layouts.relative_covariance(case, layouts.covariances(case, unit)) - plain for unit in np.eye(len(psi))]
    return np.array([-r @ slope @ r for slope in slopes]) / d.nu


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", ["slope", "five", "nested", "crossed", "sparse", "related and others", "equations"])
def test_a_covariance_that_is_not_linear_in_its_parameters_has_exact_derivatives_too(name):
    """Against automatic differentiation of the deviance: structures with second derivatives of Sigma."""
    case = layouts.case(name, seed=3)
    with double_precision():
        plain = compiled_moments(case.design.rows())
        terms = tuple(structures.Decay(term.q) if term.q > 1 else term for term in plain.layout.terms)
        assert any(isinstance(term, structures.Decay) for term in terms)
        held = replace(plain, layout=replace(plain.layout, terms=terms))
        psi = np.concatenate([[0.7, 0.4] if term.size == 2 else [0.5] for term in terms])
        roots = [np.linalg.cholesky(np.asarray(sigma)) for sigma in covariances_of(psi, terms)]

        @layouts.quick_jit
        def both(psi):
            def deviance(psi):
                return deviance_at(covariances_of(psi, terms), roots, held, np.asarray(True))

            slope, curvature = jax.grad(deviance)(psi), jax.hessian(deviance)(psi)
            return derivatives(psi, roots, held, np.asarray(True)), deviance(psi), slope, curvature

        ours, value, gradient, hessian = jax.device_get(both(psi))
    np.testing.assert_allclose(ours.value, value, rtol=1e-12)
    np.testing.assert_allclose(ours.gradient, gradient, rtol=0, atol=1e-10 * np.abs(gradient).max())
    np.testing.assert_allclose(ours.hessian, hessian, rtol=0, atol=1e-10 * np.abs(hessian).max())
