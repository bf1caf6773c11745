"""The joint covariance of fixed and random effects against dense matrices, for every layout."""

import functools
import warnings
from types import SimpleNamespace

import layouts
import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.formulas.relationships import Relationship
from jmixed.inference.joint_covariance import joint_covariance

LAYOUTS = ("slope", "independent", "identity", "nested three", "nested and crossed", "crossed", "related and others")


@functools.cache
def fitted(name):
    """A case at given parameters, some of them singular; nothing needs an optimum."""
    case = layouts.case(name, seed=1)
    theta, sigma = layouts.draw_theta(case), 1.3
    if name == "slope":
        theta[-1] = 0
    sigmas = [f @ f.T for f in layouts.factors(case, theta)]
    vcov = sigma**2 * np.linalg.inv(layouts.generalised(case, sigmas, True).A)
    covariances = {t.label: sigma**2 * s for t, s in zip(case.terms, sigmas, strict=True)}
    fit = SimpleNamespace(theta=theta, sigma=sigma, vcov_beta=vcov, covariances=covariances)
    related = [None if term.root is None else relationship(term) for term in case.terms]
    return case, fit, joint_covariance(case.design, [term.codes for term in case.terms], fit, related)


def relationship(term):
    """What the levels tell of two others, which are their mean but for a rest."""
    levels = len(term.levels)
    spread = np.tile(term.root.mean(axis=0), (2, 1))
    return Relationship(term.root, pd.RangeIndex(levels, levels + 2), spread, np.array([0.3, 0.0]))


def dense_columns(terms, codes, columns):
    """Z of all coefficients, term by term and level by level."""
    blocks = []
    for term, code, Z in zip(terms, codes, columns, strict=True):
        here = (code[:, None] == np.arange(len(known(term)))) * 1.0
        blocks.append(np.einsum("nl,nq->nlq", here, Z).reshape(len(Z), -1))
    return np.hstack(blocks)


def known(term):
    """The covariance of a term's levels, and of the others that are related to them."""
    if term.root is None:
        return np.eye(len(term.levels))
    whole = relationship(term)
    return whole.all_roots() @ whole.all_roots().T + np.diag(np.append(np.zeros(len(term.levels)), whole.rest))


def dense_joint(case, fit):
    """[M, -M X'V^-1 Z D; ., D - D Z'V^-1 Z D + D Z'V^-1 X M X'V^-1 Z D], which holds at a singular D."""
    Z = dense_columns(case.terms, [t.codes for t in case.terms], [t.Z for t in case.terms])
    priors = [np.kron(known(t), fit.covariances[t.label]) for t in case.terms]
    D, start = np.zeros((Z.shape[1],) * 2), 0
    for prior in priors:
        D[start : start + len(prior), start : start + len(prior)] = prior
        start += len(prior)
    inverse = np.linalg.inv(Z @ D @ Z.T + fit.sigma**2 * np.diag(1 / case.weights))
    M = np.linalg.inv(case.X.T @ inverse @ case.X)
    ZD = Z @ D
    cross = -M @ case.X.T @ inverse @ ZD
    own = D - ZD.T @ inverse @ ZD + cross.T @ np.linalg.solve(M, cross)
    return np.block([[M, cross], [cross.T, own]])


@pytest.mark.parametrize("name", LAYOUTS)
class TestAgainstDenseMatrices:
    def test_the_whole_matrix(self, name):
        case, fit, joint = fitted(name)
        of_levels = [np.repeat(np.arange(len(known(t))) < len(t.levels), t.Z.shape[1]) for t in case.terms]
        there = np.concatenate([np.ones(case.X.shape[1], bool), *of_levels])
        expected = dense_joint(case, fit)[np.ix_(there, there)]
        np.testing.assert_allclose(joint.dense(), expected, rtol=1e-8, atol=1e-9 * np.max(np.abs(expected)))

    def test_conditional_covariances_by_level(self, name):
        case, fit, joint = fitted(name)
        p, whole, start = case.X.shape[1], dense_joint(case, fit), case.X.shape[1]
        K = -np.linalg.solve(whole[:p, :p], whole[:p])
        given = whole - K.T @ whole[:p, :p] @ K
        for t, term in enumerate(case.terms):
            shape = len(known(term)), term.Z.shape[1]
            at = start + np.arange(np.prod(shape)).reshape(shape)
            expected = given[at[:, :, None], at[:, None]]
            np.testing.assert_allclose(joint.level_blocks([t]), expected, rtol=1e-8, atol=1e-10)
            start += at.size

    def test_variances_of_rows_that_never_occurred(self, name):
        """Levels drawn apart for each term, some unknown: pairs of levels that share no row included."""
        case, fit, joint = fitted(name)
        rng = np.random.default_rng(0)
        codes = [rng.integers(-1, len(known(term)), 40).astype(np.int32) for term in case.terms]
        columns = [rng.normal(size=(40, term.Z.shape[1])) for term in case.terms]
        X = rng.normal(size=(40, case.X.shape[1]))
        rows = np.hstack([X, dense_columns(case.terms, codes, columns)])
        expected = np.einsum("ij,jk,ik->i", rows, dense_joint(case, fit), rows)
        found = joint.variances(X, joint.rows(codes, columns, len(X))) + joint.rest_variances(codes, columns)
        np.testing.assert_allclose(found, expected, rtol=1e-8)


def test_terms_of_one_factor_are_taken_together():
    """Two independent terms of one factor are correlated given the data."""
    case, fit, joint = fitted("independent")
    p, levels = case.X.shape[1], len(case.terms[0].levels)
    whole = dense_joint(case, fit)
    K = -np.linalg.solve(whole[:p, :p], whole[:p, p:])
    conditional = whole[p:, p:] - K.T @ whole[:p, :p] @ K
    blocks = joint.level_blocks([0, 1])
    for level in range(levels):
        own = [level, levels + level]
        np.testing.assert_allclose(blocks[level], conditional[np.ix_(own, own)], rtol=1e-7, atol=1e-9 * fit.sigma**2)
    assert np.all(np.abs(blocks[:, 0, 1]) > 0)


def test_what_a_slope_is_counted_from_does_not_matter():
    """Dates counted from the year one: leverages, intervals and robust errors are those of days since the first."""
    sleep = jm.datasets.load("sleepstudy")
    with warnings.catch_warnings():
        # Seen from the year one, intercept and slope have a correlation of one to ten digits.
        warnings.simplefilter("ignore", jm.SingularWarning)
        data = [sleep.assign(x=sleep.Days + origin) for origin in (0, 738_000)]
        near, far = (jm.mixedlm("Reaction ~ x + (x | Subject)", frame).fit() for frame in data)
    assert far.objective == pytest.approx(near.objective, rel=1e-12)
    for column in (".hat", ".cooksd", ".std.resid"):
        np.testing.assert_allclose(far.augment()[column], near.augment()[column], rtol=1e-4, atol=1e-6)
    widths = [m.predict(random_effects=True, interval="confidence")["se"] for m in (near, far)]
    np.testing.assert_allclose(*widths, rtol=1e-5)
    slopes = [m.ranef(cond_var=True)[1]["Subject"][:, 1, 1] for m in (near, far)]
    np.testing.assert_allclose(*slopes, rtol=1e-6)
    slopes = [[cov.loc["x", "x"] for cov in m.random_effects_cov.values()] for m in (near, far)]
    np.testing.assert_allclose(*slopes, rtol=1e-5)
    # X itself is known to eps times the squared ratio of origin and spread, here 1e-5.
    assert far.robust_cov("CR2").loc["x", "x"] == pytest.approx(near.robust_cov("CR2").loc["x", "x"], rel=1e-4)
