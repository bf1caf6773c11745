"""Satterthwaite and Kenward-Roger against n x n matrices and difference quotients, for every layout."""

import functools

import numpy as np
import pytest
import small_sample
from layouts import NAMES, case, covariances, draw_theta, factors, generalised, psi_of, relative_covariance

from jmixed.covariance.unstructured import pivoted
from jmixed.inference import kenward_roger, satterthwaite
from jmixed.inference.curvature import curvature, tangents
from jmixed.inference.variance_parameters import standard_deviations, theta_and_sigma
from jmixed.reports.term_contrasts import term_contrasts

LAYOUTS = [name for name in NAMES if name != "no random effects"]
CONTRASTS = np.array([[1.0, 0, 0], [0, 1, 0], [0, 1, -2], [0.5, 0.5, 3]])
# Seed and size of a theta at which the observed information is positive definite, where it is not the first tried; a
# term of five columns has none among many.
WELL = {"three": (44, 0.2), "crossed": (47, 0.2)}
DEFINITE = ("intercept", "slope", "independent", "identity", "nested", "nested three", "nested and crossed", *WELL)


@functools.cache
def at(name, reml=True, weighted=True):
    """A case, theta, the profiled sigma there, the dense pieces, and the curvature in all directions of psi."""
    c = case(name, weighted=weighted)
    seed, size = WELL.get(name, (0, 0.5))
    theta = size * draw_theta(c, seed)
    d = generalised(c, [f @ f.T for f in factors(c, theta)], reml)
    sigma = np.sqrt(d.rss / d.nu)
    return c, theta, sigma, d, curvature(c.design, theta, sigma, reml, free=np.ones(c.size, bool))


def directions(c):
    """The derivatives (n, n) of V / sigma^2 in the entries of psi."""
    units = np.eye(c.size)
    return [relative_covariance(c, covariances(c, unit)) - np.diag(1 / c.weights) for unit in units]


def dense_kenward_roger(c, d, sigma):
    """Kenward and Roger's quantities in the components of V = sigma^2 / W + sum gamma_k G_k."""
    return small_sample.kenward_roger(d.inverse / sigma**2, c.X, [np.diag(1 / c.weights), *directions(c)])


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", LAYOUTS)
def test_kenward_roger_is_the_dense_definition(name):
    c, _, sigma, d, bent = at(name)
    pieces = kenward_roger.kenward_roger(bent)
    phi, adjusted, P, W = dense_kenward_roger(c, d, sigma)
    size = np.sqrt(np.diag(phi))
    np.testing.assert_allclose(pieces.covariance / np.outer(size, size), phi / np.outer(size, size), atol=1e-10)
    np.testing.assert_allclose(pieces.adjusted / np.outer(size, size), adjusted / np.outer(size, size), atol=1e-9)
    got = kenward_roger.degrees_of_freedom(pieces, CONTRASTS)
    np.testing.assert_allclose(got, [small_sample.denominator(row[None], phi, P, W)[1] for row in CONTRASTS], rtol=1e-7)
    L, difference = CONTRASTS[:2], np.array([1.0, -2.0])
    scale, denominator = small_sample.denominator(L, phi, P, W)
    joint = kenward_roger.joint_test(pieces, L, difference)
    F = scale * difference @ np.linalg.solve(L @ adjusted @ L.T, difference) / 2
    assert (joint.F, joint.num_df, joint.den_df) == pytest.approx((F, 2, denominator), rel=1e-7)


def dense_joint_covariance(c, d, sigma, reml):
    """Inverse observed information of psi and sigma^2, from the second derivatives of the deviance in both."""
    G, r = directions(c), d.weighted_residual
    M = d.P if reml else d.inverse
    logdet = np.array([[-np.sum((M @ g) * (M @ h).T) for h in G] for g in G])
    rss = np.array([-r @ g @ r for g in G])
    rss2 = np.array([[2 * r @ g @ d.P @ h @ r for h in G] for g in G])
    across = -rss[:, None] / sigma**4
    corner = np.full((1, 1), -d.nu / sigma**4 + 2 * d.rss / sigma**6)
    return 2 * np.linalg.inv(np.block([[logdet + rss2 / sigma**2, across], [across.T, corner]]))


def dense_satterthwaite(c, d, sigma, row, joint):
    inverse = np.linalg.inv(d.A)
    pulled = d.inverse @ c.X @ inverse @ row
    f = sigma**2 * row @ inverse @ row
    gradient = np.array([sigma**2 * pulled @ g @ pulled for g in directions(c)] + [f / sigma**2])
    return 2 * f**2 / (gradient @ joint @ gradient)


@pytest.mark.parametrize(("name", "reml"), [(name, True) for name in DEFINITE] + [("nested", False), ("three", False)])
def test_satterthwaite_is_the_dense_definition(name, reml):
    c, _, sigma, d, bent = at(name, reml)
    joint = dense_joint_covariance(c, d, sigma, reml)
    wanted = [dense_satterthwaite(c, d, sigma, row, joint) for row in CONTRASTS]
    np.testing.assert_allclose(satterthwaite.degrees_of_freedom(bent, CONTRASTS), wanted, rtol=1e-7)
    # sigma^2 is the last: its variance does not depend on the columns' scale.
    assert bent.joint_covariance[-1, -1] == pytest.approx(joint[-1, -1], rel=1e-8)


@pytest.mark.parametrize("name", ["three", "identity", "crossed"])
def test_standard_errors_follow_from_psi_by_the_chain_rule(name):
    """The delta method with difference quotients of the standard deviations and correlations, and of theta."""
    c, theta, sigma, d, bent = at(name)
    joint = dense_joint_covariance(c, d, sigma, True)
    structures = c.design.layout.terms

    def readable(parameters):
        values = []
        for t, relative in zip(c.terms, covariances(c, parameters[:-1]), strict=True):
            sd = np.sqrt(parameters[-1] * np.diag(relative))
            count = 1 if t.structure == "identity" else len(sd)
            for j in range(count):
                values.append(sd[j])
                values += [parameters[-1] * relative[i, j] / (sd[i] * sd[j]) for i in range(j + 1, count)]
        return np.array([*values, np.sqrt(parameters[-1])])

    def root(parameters):
        pieces = []
        for t, relative in zip(c.terms, covariances(c, parameters[:-1]), strict=True):
            factor = np.linalg.cholesky(relative)
            pieces.append(factor[:1, 0] if t.structure == "identity" else factor[np.triu_indices(len(factor))[::-1]])
        return np.concatenate([*pieces, np.sqrt(parameters[-1:])])

    point = np.append(psi_of(c, theta), sigma**2)
    # The curvature's theta must be the canonical one for its derivative.
    canonical = root(point)[:-1]
    for found, function in (
        (standard_deviations(bent, structures, theta), readable),
        (theta_and_sigma(bent, structures, canonical), root),
    ):
        np.testing.assert_allclose(found.values, function(point), rtol=1e-10)
        steps = 1e-5 * np.diag(np.abs(point))
        slopes = np.array([(function(point + h) - function(point - h)) / (2 * h.sum()) for h in steps]).T
        wanted = slopes @ joint @ slopes.T
        size = np.sqrt(np.diag(found.covariance))
        np.testing.assert_allclose(found.covariance / np.outer(size, size), wanted / np.outer(size, size), atol=1e-6)


def test_directions_of_a_singular_covariance_keep_its_rank():
    """psi along a curve of covariances of rank one: slope and bend are those of the curve, for every direction."""
    structure = case("three").design.layout.terms[0]
    root = np.zeros((3, 3))
    root[:, 0] = [0.3, 2.0, -1.0]
    gradient = np.arange(1.0, 7.0)
    root = root @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    slopes, bend = tangents([structure], [root], gradient)
    factor, order, rank = pivoted(root)
    assert (rank, order[0]) == (1, 1)
    assert (slopes.shape, bend.shape) == ((6, 3), (3, 3))
    step = 1e-4

    def along(move):
        column = factor[:, 0].copy()
        column[order] += move
        return np.outer(column, column)[np.tril_indices(3)]

    for k, unit in enumerate(step * np.eye(3)):
        slope = (along(unit) - along(-unit)) / (2 * step)
        np.testing.assert_allclose(slopes[:, k], slope, atol=1e-8)
        second = (along(unit) - 2 * along(0 * unit) + along(-unit)) / step**2
        assert bend[k, k] == pytest.approx(gradient @ second, rel=1e-6)


def test_a_variance_of_zero_counts_as_known():
    """At theta = 0 the fit is least squares: n - p degrees of freedom, as lmerTest has them."""
    c = case("intercept", weighted=False)
    d = generalised(c, [np.zeros((1, 1))], True)
    bent = curvature(c.design, np.zeros(1), np.sqrt(d.rss / d.nu), True)
    np.testing.assert_allclose(satterthwaite.degrees_of_freedom(bent, CONTRASTS), len(c.y) - 3, rtol=1e-9)
    assert np.isnan(standard_deviations(bent, c.design.layout.terms, np.zeros(1)).covariance[0, 0])
    assert np.isnan(theta_and_sigma(bent, c.design.layout.terms, np.zeros(1)).covariance[0, 0])


def test_joint_denominator_of_lmertest():
    """Contrasts with 4 and 10 degrees of freedom: E = 4/2 + 10/8, df = 2 E / (E - 2)."""
    assert satterthwaite._denominator(np.array([4.0, 10.0])) == pytest.approx(2 * 3.25 / 1.25)
    assert satterthwaite._denominator(np.array([1.5, 10.0])) == 2
    assert satterthwaite._denominator(np.array([7.0, 7.0])) == 7
    assert np.isnan(satterthwaite._denominator(np.array([np.nan, 7.0])))


@pytest.mark.parametrize("kind", [1, 2, 3])
def test_contrasts_of_terms_do_not_depend_on_the_coding(kind):
    """Two factors with an empty cell: any columns that span the same space test the same hypotheses."""
    rng = np.random.default_rng(2)
    a, b = np.tile([0, 0, 1, 1, 2], 8), np.tile([0, 1, 0, 1, 1], 8)
    A, B = np.eye(3)[a][:, [1, 2, 0]], np.eye(2)[b][:, [1, 0]]
    cells = np.stack([A[:, i] * B[:, j] for j in (0, 1) for i in (0, 1, 2)], axis=1)
    values = np.column_stack([np.ones(40), A, B, cells])
    term, basis = np.repeat([0, 1, 2, 3], [1, 3, 2, 6]), np.array([0, 1, 2, 4, 6])
    contained = ((1, 2, 3), (3,), (3,), ())
    X = values[:, basis]
    mix = rng.normal(size=(5, 5))
    plain = term_contrasts(X, values, term, basis, contained, kind)
    mixed = term_contrasts(X @ mix, values, term, basis, contained, kind)
    for one, other in zip(plain, mixed, strict=True):
        np.testing.assert_allclose(other, one @ mix, atol=1e-10)
    if kind == 3:
        # The interaction is what the four full cells leave; the main effect of b is a mean over the rows with both.
        assert (len(plain[3]), len(plain[1])) == (1, 2)
        rows = {cell: X[np.flatnonzero((a == cell[0]) & (b == cell[1]))[0]] for cell in zip(a, b, strict=True)}
        mean = (rows[0, 1] - rows[0, 0] + rows[1, 1] - rows[1, 0]) / 2
        np.testing.assert_allclose(plain[2][0] / plain[2][0, 3], mean / mean[3], atol=1e-10)
