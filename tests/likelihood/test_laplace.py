"""Laplace's approximation and quadrature against dense formulas, integrals and finite differences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

import jmixed as jm
from jmixed.families.registry import family_of
from jmixed.layout.design import with_family
from jmixed.likelihood.laplace import laplace_deviance
from jmixed.likelihood.stages import covariances_of

N, GROUPS = 120, 12


def rows_of(kind, family, seed=0, columns=False):
    """A design of few rows with a response of a family."""
    rng = np.random.default_rng(seed)
    g, h, x = np.arange(N) % GROUPS, rng.integers(0, 5, N), rng.normal(size=N)
    X = np.column_stack([np.ones(N), x])
    eta = 0.3 + 0.5 * x + 0.8 * rng.normal(size=GROUPS)[g] + 0.4 * rng.normal(size=5)[h]
    if family == "binomial":
        y = (rng.random(N) < 1 / (1 + np.exp(-eta))).astype(float)
    else:
        y = rng.poisson(rng.gamma(2, np.exp(eta) / 2)).astype(float)
    several = {"crossed": {"g": g, "h": h}, "nest": {"g": g, "n": g // 4}}
    design = jm.design(y, X, several.get(kind, g), Z=X if kind == "slope" else None)
    extras = {"dispersion": np.column_stack([np.ones(N), h == 2]).astype(float)} if columns else {}
    return with_family(design, family_of(family), np.ones(N), extras)


def point_of(deviance, stretch):
    """A start of a criterion, moved."""
    point = jax.tree.map(lambda a: a[0], deviance.starts().points)
    return point._replace(x=point.x * stretch)


def effects_matrix(design):
    """Z (n, levels) of all intercepts together, and the term of each column."""
    parts, terms = [], []
    for term, codes in enumerate(CODES[tuple(design.labels)]):
        parts.append(np.equal.outer(codes, np.unique(codes)).astype(float))
        terms += [term] * parts[-1].shape[1]
    return np.hstack(parts), np.array(terms)


def dense_laplace(design, theta, beta):
    """-2 log-likelihood of a Bernoulli response by Laplace's approximation, from the joint density with the effects."""
    Z, terms = effects_matrix(design)
    variances, fixed = np.asarray(theta)[terms] ** 2, design.X @ beta

    def minus_log_joint(b):
        eta = fixed + Z @ b
        return -np.sum(design.y * eta - np.logaddexp(0, eta)) - np.sum(stats.norm.logpdf(b, scale=np.sqrt(variances)))

    def slope(b):
        return -Z.T @ (design.y - 1 / (1 + np.exp(-fixed - Z @ b))) + b / variances

    mode = optimize.minimize(minus_log_joint, np.zeros(len(terms)), jac=slope, tol=1e-12).x
    p = 1 / (1 + np.exp(-fixed - Z @ mode))
    curvature = Z.T @ ((p * (1 - p))[:, None] * Z) + np.diag(1 / variances)
    return 2 * minus_log_joint(mode) + np.linalg.slogdet(curvature)[1] - len(terms) * np.log(2 * np.pi)


def codes(seed=0):
    """The levels of the factors g and h of `rows_of`."""
    rng = np.random.default_rng(seed)
    return np.arange(N) % GROUPS, rng.integers(0, 5, N)


CODES = {("g", "h"): codes(), ("g", "n"): (codes()[0], codes()[0] // 4), ("groups",): codes()[:1]}


@pytest.mark.parametrize("kind", ["one", "crossed", "nest"])
def test_the_value_is_that_of_the_dense_definition(kind):
    design = rows_of(kind, "binomial")
    theta, beta = np.array([0.9, 0.5])[: len(design.labels)], np.array([0.2, 0.6])
    with jax.enable_x64(True):
        value = -2 * float(jm.log_likelihood(beta, theta, 1.0, design))
    np.testing.assert_allclose(value, dense_laplace(design, theta, beta), rtol=1e-9)


@pytest.mark.thorough
def test_derivatives_of_crossed_factors_are_those_of_the_value():
    design = rows_of("crossed", "nbinom1", columns=True)

    def at(x, deviance):
        m = deviance.sizes[0]
        covariances = covariances_of(x[:m], deviance.rows.layout.terms)
        roots = [jnp.sqrt(covariance) for covariance in covariances]
        xi, extras = deviance.predictors(x[m:])
        modes = deviance.modes(covariances, roots, xi, extras, jnp.zeros_like(xi))
        return deviance.derivatives(x[:m], roots, x[m:], modes)[:3]

    with jax.enable_x64(True):
        deviance = jax.jit(laplace_deviance)(jax.tree.map(jnp.asarray, design.rows(128)))
        x = np.concatenate([[0.5, 0.2], np.asarray(deviance.first[0])])
        evaluate = jax.jit(at)
        _, gradient, hessian = evaluate(x, deviance)
        units = 1e-5 * np.eye(len(x))
        moved = [jax.device_get((evaluate(x + unit, deviance), evaluate(x - unit, deviance))) for unit in units]
    slopes = np.array([(up[0] - down[0]) / 2e-5 for up, down in moved])
    bends = np.array([(up[1] - down[1]) / 2e-5 for up, down in moved])
    np.testing.assert_allclose(gradient, slopes, atol=1e-6 * np.abs(slopes).max())
    np.testing.assert_allclose(hessian, bends, atol=1e-6 * np.abs(bends).max())


@pytest.mark.sweep(1)
@pytest.mark.parametrize(("kind", "family", "columns"), [("one", "binomial", False), ("slope", "nbinom1", True)])
def test_groups_in_closed_form_are_the_general_form(kind, family, columns):
    design = rows_of(kind, family, columns=columns)

    def both(rows):
        deviance = laplace_deviance(rows)
        point = point_of(deviance, 1.1)
        general = replace(deviance, groups=None)
        elsewhere = point._replace(frame=(point.frame[0], jnp.zeros_like(rows.y)))
        return deviance.value_gradient_hessian(point), general.value_gradient_hessian(elsewhere)

    with jax.enable_x64(True):
        closed, general = jax.jit(both)(jax.tree.map(jnp.asarray, design.rows(128)))
    np.testing.assert_allclose(closed.value, general.value, rtol=1e-12)
    np.testing.assert_allclose(closed.gradient, general.gradient, atol=1e-9 * np.abs(general.gradient).max())
    np.testing.assert_allclose(closed.hessian, general.hessian, atol=1e-9 * np.abs(general.hessian).max())


def test_more_nodes_come_to_the_integral():
    design = rows_of("one", "binomial")
    theta, beta, fixed = 1.4, np.array([0.2, 0.6]), design.X @ np.array([0.2, 0.6])
    truth = 0.0
    for group in range(GROUPS):
        rows = CODES["groups",][0] == group

        def density(b, rows=rows):
            eta = fixed[rows] + b
            return np.exp(np.sum(design.y[rows] * eta - np.logaddexp(0, eta))) * stats.norm.pdf(b, scale=theta)

        truth -= 2 * np.log(integrate.quad(density, -15, 15, epsabs=1e-14, epsrel=1e-12)[0])
    with jax.enable_x64(True):
        values = []
        for nodes in (1, 5, 25):
            quadrature = replace(design, layout=replace(design.layout, quadrature=nodes))
            values.append(-2 * float(jm.log_likelihood(beta, np.array([theta]), 1.0, quadrature)))
    errors = np.abs(np.array(values) - truth)
    assert errors[0] > 1e-2 > errors[1] > errors[2]
    assert errors[2] < 1e-7
