"""Satterthwaite and Kenward-Roger of models whose residuals have a structure, against n x n matrices and JAX."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest
import residual_cases
import small_sample

from jmixed.errors import ModelError
from jmixed.inference import kenward_roger, residual_directions, satterthwaite
from jmixed.inference.curvature import curvature
from jmixed.runtime.precision import double_precision

CONTRASTS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, -2], [0.5, 0.5, 3]])
# A layout, a structure, the columns of its dispersion, and the seed and size of a theta at which the observed
# information is positive definite.
CASES = [
    ("no random effects", "us", residual_cases.BY_VISIT, 14, 0.3),
    ("intercept", "ar1", 0, 0, 0.5),
    ("slope", "independent", 2, 0, 0.5),
    ("nested", "car1", 1, 3, 0.3),
    ("intercept", "cs", 1, 0, 0.5),
    ("no random effects", "toep", 0, 0, 0.5),
]


@functools.cache
def at(layout, word, columns, seed, size, reml=True):
    """A case at theta, rho and the profiled sigma, with V, its derivatives, and the curvature in all directions."""
    case = residual_cases.case(layout, word, columns)
    theta, rho = size * layouts.draw_theta(case, seed), size * residual_cases.draw_rho(case, seed)
    x = np.append(layouts.psi_of(case, theta), rho)
    X, y, m = case.X, case.y - case.offset, case.size
    nu = len(y) - X.shape[1] * reml

    def relative(x):
        return residual_cases.relative_covariance(case, x[:m], x[m:])

    def squares(x):
        """A, log|V| and r'V^-1 r relative to sigma^2."""
        V = relative(x)
        A = X.T @ jnp.linalg.solve(V, jnp.asarray(X))
        b = X.T @ jnp.linalg.solve(V, jnp.asarray(y))
        return A, jnp.linalg.slogdet(V)[1], y @ jnp.linalg.solve(V, jnp.asarray(y)) - b @ jnp.linalg.solve(A, b)

    def deviance(parameters):
        """-2 log density, restricted or not, of psi, rho and sigma^2, but for a constant."""
        A, logdet, rss = squares(parameters[:-1])
        return logdet + float(reml) * jnp.linalg.slogdet(A)[1] + nu * jnp.log(parameters[-1]) + rss / parameters[-1]

    def variances(parameters):
        """Variances of the contrasts."""
        A, _, _ = squares(parameters[:-1])
        L = jnp.asarray(CONTRASTS)
        return parameters[-1] * jnp.sum(L.T * jnp.linalg.solve(A, L.T), axis=0)

    with double_precision():
        sigma2 = float(layouts.quick_jit(lambda x: squares(x)[2])(x)) / nu
        everything = layouts.quick_jit(
            lambda p: (
                (relative(p[:-1]), jax.jacfwd(relative)(p[:-1])),
                jax.hessian(deviance)(p),
                (variances(p), jax.jacfwd(variances)(p)),
            )
        )
        (V, slopes), hessian, contrasts = jax.device_get(everything(np.append(x, sigma2)))
    bent = curvature(case.design, theta, np.sqrt(sigma2), reml, free=np.ones(len(x), bool), rho=rho)
    return SimpleNamespace(
        case=case, rho=rho, sigma=np.sqrt(sigma2), V=V, slopes=slopes, hessian=hessian, contrasts=contrasts, bent=bent
    )


def tangents(a):
    """Directions (n, n) in which sigma^2 V can move: along sigma^2, psi and rho."""
    return [a.V, *np.moveaxis(a.slopes, -1, 0)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("arguments", CASES, ids=str)
def test_kenward_roger_is_the_dense_definition_along_straight_paths(arguments):
    a = at(*arguments)
    pieces = kenward_roger.kenward_roger(a.bent)
    phi, adjusted, P, W = small_sample.kenward_roger(np.linalg.inv(a.V) / a.sigma**2, a.case.X, tangents(a))
    size = np.sqrt(np.diag(phi))
    np.testing.assert_allclose(pieces.covariance / np.outer(size, size), phi / np.outer(size, size), atol=1e-10)
    np.testing.assert_allclose(pieces.adjusted / np.outer(size, size), adjusted / np.outer(size, size), atol=1e-9)
    wanted = [small_sample.denominator(row[None], phi, P, W)[1] for row in CONTRASTS]
    np.testing.assert_allclose(kenward_roger.degrees_of_freedom(pieces, CONTRASTS), wanted, rtol=1e-7)
    L, difference = CONTRASTS[:2], np.array([1.0, -2.0])
    scale, denominator = small_sample.denominator(L, phi, P, W)
    joint = kenward_roger.joint_test(pieces, L, difference)
    F = scale * difference @ np.linalg.solve(L @ adjusted @ L.T, difference) / 2
    assert (joint.F, joint.num_df, joint.den_df) == pytest.approx((F, 2, denominator), rel=1e-7)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("arguments", "reml"), [(own, True) for own in CASES] + [(CASES[1], False)], ids=str)
def test_satterthwaite_is_the_dense_definition(arguments, reml):
    a = at(*arguments, reml)
    assert np.linalg.eigvalsh(a.hessian)[0] > 0
    joint = 2 * np.linalg.inv(a.hessian)
    f, gradient = a.contrasts
    wanted = 2 * f**2 / np.einsum("ci,ij,cj->c", gradient, joint, gradient)
    np.testing.assert_allclose(satterthwaite.degrees_of_freedom(a.bent, CONTRASTS), wanted, rtol=1e-7)
    assert a.bent.joint_covariance[-1, -1] == pytest.approx(joint[-1, -1], rel=1e-8)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("word", ["independent", "us"])
def test_directions_are_products_of_the_dense_matrices(word):
    """With rows of weight zero, which no matrix has."""
    case = residual_cases.case("slope", word)
    absent, rho = [3, 10, 11, 27], residual_cases.draw_rho(case)
    there = np.setdiff1d(np.arange(len(case.y)), absent)
    rows = case.design.rows()
    rows.weights[absent] = 0
    with double_precision():
        E, slopes = jax.device_get(
            layouts.quick_jit(
                lambda rho: (
                    residual_cases.covariance(case, rho),
                    jax.jacfwd(lambda rho: residual_cases.covariance(case, rho))(rho),
                )
            )(rho)
        )
        found = residual_directions.residual_directions(rows, rho)
    inverse = np.linalg.inv(E[np.ix_(there, there)])
    moves = [inverse @ slope[np.ix_(there, there)] for slope in np.moveaxis(slopes, -1, 0)]
    products = [[np.trace(one @ other) for other in moves] for one in moves]
    np.testing.assert_allclose(found.products, products, atol=1e-9)
    tables = [(case.X, found.X), (case.terms[0].Z, found.Z[0]), ((case.y - case.offset)[:, None], found.y[:, :, None])]
    for before, moved in tables:
        u = before[there]
        wanted = [[u.T @ one @ other @ inverse @ u for other in moves] for one in moves]
        np.testing.assert_allclose(np.einsum("inp,jnq->ijpq", moved, moved), wanted, rtol=1e-9, atol=1e-9)


def test_crossed_random_effects_are_refused():
    case = residual_cases.case("crossed", "independent")
    rho = residual_cases.draw_rho(case)
    with pytest.raises(ModelError, match=r"crossed random effects with residual= or dispersion=; use bootstrap\(\)"):
        curvature(case.design, layouts.draw_theta(case), 1.0, True, rho=rho)


def test_a_series_too_long_to_be_written_out_is_refused(monkeypatch):
    case = residual_cases.case("slope", "ar1")
    monkeypatch.setattr(residual_directions, "LONGEST", 2)
    with pytest.raises(ModelError, match=r"longest has 3 rows, more than 2; use ddf='satterthwaite'"):
        residual_directions.residual_directions(case.design.rows(), residual_cases.draw_rho(case))
