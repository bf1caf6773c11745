"""The deviance by conjugate gradients, against the normal density of all rows; exactly, with a basis of everything."""

import crossed_rows
import numpy as np
import pytest
from crossed_rows import dense_covariance, dense_deviance, dense_Z

from jmixed.likelihood import iterative
from jmixed.likelihood.iterative import IterativeDeviance, Probes, probes_of
from jmixed.likelihood.sparse_moments import sparse_moments

POINTS = {
    "inside": (np.array([[0.8, -0.1], [-0.1, 0.3]]), np.array([[0.5]]), np.array([[0.2]])),
    "a variance of zero": (np.array([[0.8, 0], [0, 0]]), np.array([[0.5]]), np.array([[0.0]])),
}


@pytest.fixture(scope="module")
def case():
    rows = crossed_rows.rows(n=140, counts=(25, 12, 6))
    return rows, sparse_moments(rows)


def roots_of(moments, covariances):
    """Roots of preconditioned columns."""
    out = []
    for T, covariance in zip(moments.T, covariances, strict=True):
        values, vectors = np.linalg.eigh(covariance)
        out.append(np.linalg.solve(T, vectors * np.sqrt(values)))
    return out


def exactly(moments, reml):
    """The deviance with a basis of everything, so that nothing is left for probes."""
    size = sum(C.shape[0] * C.shape[1] for C in moments.C[1:])
    return IterativeDeviance(moments, reml, Probes(np.zeros((size, 2)), np.eye(size)))


def moved(covariances, t, i, j, step):
    out = [covariance.copy() for covariance in covariances]
    out[t][i, j] += step
    out[t][j, i] = out[t][i, j]
    return out


@pytest.mark.parametrize("reml", [True, False], ids=["reml", "ml"])
@pytest.mark.parametrize("point", POINTS)
def test_value_and_gradient_are_those_of_the_normal_density(case, point, reml):
    rows, moments = case
    covariances = POINTS[point]
    at = exactly(moments, reml).evaluate(roots_of(moments, covariances))
    value, beta = dense_deviance(rows, covariances, reml)
    assert at.solved
    assert at.value == pytest.approx(value, abs=1e-6)
    np.testing.assert_allclose(moments.beta0 + np.linalg.solve(moments.R, at.beta), beta, atol=1e-8)
    for t, (T, gradient) in enumerate(zip(moments.T, at.gradients, strict=True)):
        own = np.linalg.solve(T.T, np.linalg.solve(T.T, gradient).T)
        for i in range(len(own)):
            for j in range(i + 1):
                # A covariance of zero may be left in either direction, as V stays positive definite.
                ends = [dense_deviance(rows, moved(covariances, t, i, j, h), reml)[0] for h in (1e-6, -1e-6)]
                slope = own[i, j] * (1 if i == j else 2)
                assert slope == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5, abs=1e-3)


def test_average_information_is_the_mean_of_observed_and_expected(case):
    rows, moments = case
    covariances = POINTS["inside"]
    deviance = exactly(moments, True)
    at = deviance.evaluate(roots_of(moments, covariances))
    directions = [(1, np.ones((1, 1))), (2, np.ones((1, 1)))]
    information, _, solved = deviance.average_information(at, directions)
    assert solved
    n, p = rows.X.shape
    inverse = np.linalg.inv(dense_covariance(rows, covariances))
    P = inverse - inverse @ rows.X @ np.linalg.solve(rows.X.T @ inverse @ rows.X, rows.X.T @ inverse)
    y = rows.y - rows.offset
    moves = [Z @ Z.T * float(moments.T[t][0, 0]) ** 2 for t in (1, 2) if (Z := dense_Z(rows, t)) is not None]
    rss, nu = y @ P @ y, n - p
    slope = np.array([-y @ P @ move @ P @ y for move in moves])
    products = np.array([[y @ P @ a @ P @ b @ P @ y for b in moves] for a in moves])
    np.testing.assert_allclose(information, nu * products / rss - nu * np.outer(slope, slope) / rss**2, rtol=1e-8)


def test_probes_miss_by_what_they_say(case, monkeypatch):
    _, moments = case
    roots = roots_of(moments, POINTS["inside"])
    exact = exactly(moments, True).evaluate(roots)
    size = sum(C.shape[0] * C.shape[1] for C in moments.C[1:])
    none = IterativeDeviance(moments, True, Probes(np.zeros((size, 0)), np.zeros((size, 0))))
    monkeypatch.setattr(iterative, "MOST_BASIS", 4)
    basis = none.starting_basis(roots)
    np.testing.assert_allclose(basis.T @ basis, np.eye(4), atol=1e-12)
    at = IterativeDeviance(moments, True, probes_of(size, 200, 3, basis)).evaluate(roots)
    assert 0 < at.value_error < 0.5
    assert abs(at.value - exact.value) < 3 * at.value_error
    for gradient, truth, noise in zip(at.gradients, exact.gradients, at.noise, strict=True):
        error = np.std(noise, axis=0, ddof=1) / np.sqrt(200)
        assert np.all(np.abs(gradient - truth) < 3 * error + 1e-6)
    # What needs no probes is exact.
    assert at.rss == pytest.approx(exact.rss, rel=1e-11)


def test_more_probes_begin_with_the_same(case):
    few, many = (probes_of(30, count, 5, np.zeros((30, 0))).Z for count in (3, 7))
    np.testing.assert_array_equal(few, many[:, :3])
    assert set(np.unique(many)) == {-1.0, 1.0}


def test_batches_of_probes_make_no_difference(case, monkeypatch):
    _, moments = case
    roots = roots_of(moments, POINTS["inside"])
    size = sum(C.shape[0] * C.shape[1] for C in moments.C[1:])
    deviance = IterativeDeviance(moments, True, probes_of(size, 10, 3, np.zeros((size, 0))))
    whole = deviance.evaluate(roots).value
    monkeypatch.setattr(iterative, "BATCH", 1)
    assert deviance.evaluate(roots).value == pytest.approx(whole, rel=1e-13)
