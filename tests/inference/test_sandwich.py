"""Cluster-robust covariances: against clubSandwich, and against the formulas written out in dense matrices."""

import functools
from dataclasses import replace

import numpy as np
import pytest
from references import data
from scipy import linalg

import jmixed as jm
from jmixed.inference.sandwich import cluster_sandwich

# vcovCR of clubSandwich 0.5.8 (R 4.2.2) for lmer(Reaction ~ Days + third + (Days | Subject)), lme4's bobyqa with
# rhoend 1e-10, on sleepstudy without its rows 0 to 4 and 32; `third` is one in every third row.
CLUB_SANDWICH = {
    "CR0": [
        [44.684766704720, -0.875623285134, 5.716543989747],
        [-0.875623285134, 2.061916429995, -0.666159291107],
        [5.716543989747, -0.666159291107, 9.687892312065],
    ],
    "CR1": [
        [47.313282393233, -0.927130537201, 6.052811283261],
        [-0.927130537201, 2.183205631760, -0.705345131761],
        [6.052811283261, -0.705345131761, 10.257768330422],
    ],
    "CR2": [
        [47.411968746568, -0.942363538838, 6.064888204842],
        [-0.942363538838, 2.187018680566, -0.720504143934],
        [6.064888204842, -0.720504143934, 10.289865510863],
    ],
}


@functools.cache
def unbalanced(weights=None):
    frame = data("sleepstudy")
    frame["third"] = (frame.index % 3 == 0) * 1.0
    model = jm.mixedlm(
        "Reaction ~ Days + third + (Days | Subject)", frame.drop(index=[0, 1, 2, 3, 4, 32]), weights=weights
    )
    return model.fit()


@pytest.mark.parametrize("kind", CLUB_SANDWICH)
def test_against_club_sandwich(kind):
    found = unbalanced().robust_cov(kind)
    # As near as the two optima are.
    np.testing.assert_allclose(found, CLUB_SANDWICH[kind], rtol=1e-6)
    assert found.index.tolist() == found.columns.tolist() == ["Intercept", "Days", "third"]


def dense_sandwich(result, clusters, kind):
    """The formulas of the papers, with every matrix written out and the symmetric root of V in place of Cholesky's."""
    spec, fit = result.model.spec, result
    V = np.diag(1 / spec.weights)
    for term in spec.terms:
        relative = fit.fitted.fit.covariances[term.label] / fit.scale
        V += (term.Z @ relative @ term.Z.T) * (term.codes[:, None] == term.codes)
    inverse = np.linalg.inv(V)
    M = np.linalg.inv(spec.X.T @ inverse @ spec.X)
    residuals = spec.y - spec.offset - spec.X @ fit.fe_params.to_numpy()
    labels = np.unique(clusters)
    meat = np.zeros_like(M)
    for label in labels:
        own = np.flatnonzero(clusters == label)
        X, Vg = spec.X[own], V[np.ix_(own, own)]
        A = np.eye(len(own))
        if kind == "CR1":
            A *= np.sqrt(len(labels) / (len(labels) - 1))
        if kind == "CR2":
            D = np.real(linalg.sqrtm(Vg))
            B = D @ (Vg - X @ M @ X.T) @ D
            A = D @ np.real(linalg.fractional_matrix_power(B, -0.5)) @ D
        score = X.T @ np.linalg.inv(Vg) @ A @ residuals[own]
        meat += np.outer(score, score)
    return M @ meat @ M


@pytest.mark.parametrize("kind", CLUB_SANDWICH)
def test_with_weights_and_nested_factors(kind):
    result = unbalanced("w")
    expected = dense_sandwich(result, result.model.spec.terms[0].codes, kind)
    np.testing.assert_allclose(result.robust_cov(kind), expected, rtol=1e-8)
    pastes = jm.mixedlm("strength ~ 1 + (1 | batch/cask)", jm.datasets.load("pastes").iloc[3:]).fit()
    expected = dense_sandwich(pastes, pastes.model.spec.terms[0].codes, kind)
    np.testing.assert_allclose(pastes.robust_cov(kind), expected, rtol=1e-8)


def test_cr2_is_unbiased_when_the_model_is_right():
    """Its expectation under y ~ N(X beta, V), which is linear in e e', is the model's covariance of beta."""
    result = unbalanced()
    spec = result.model.spec
    codes = spec.terms[0].codes
    relative = result.fitted.fit.covariances[spec.terms[0].label] / result.scale
    V = np.eye(len(codes)) + (spec.terms[0].Z @ relative @ spec.terms[0].Z.T) * (codes[:, None] == codes)
    inverse = np.linalg.inv(V)
    M = np.linalg.inv(spec.X.T @ inverse @ spec.X)
    roots = np.linalg.cholesky(V - spec.X @ M @ spec.X.T + 1e-12 * np.eye(len(codes)))

    def expectation(kind):
        total = 0
        for column in roots.T:
            # At beta = 0 the response is the residual.
            total = total + cluster_sandwich(replace(spec, y=column), result.fitted.joint, np.zeros(3), codes, kind)
        return total

    np.testing.assert_allclose(expectation("CR2"), M, rtol=1e-6)
    assert np.all(np.diag(expectation("CR0")) < 0.97 * np.diag(M))


def test_bad_input():
    with pytest.raises(jm.ModelError, match=r"type is 'HC3'; use one of 'CR0', 'CR1', 'CR2'"):
        unbalanced().robust_cov("HC3")
    with pytest.raises(jm.ModelError, match=r"'school' is not a grouping factor.*'Subject'"):
        unbalanced().robust_cov(group="school")
    crossed = jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", jm.datasets.load("penicillin")).fit()
    with pytest.raises(jm.ModelError, match="crossed"):
        crossed.robust_cov()
    with pytest.raises(jm.ModelError, match="reach across"):
        crossed.robust_cov(group="plate")


def test_robust_degrees_of_freedom_are_clubsandwichs():
    """p-values of clubSandwich 0.5.8 (coef_test, Satterthwaite) on sleepstudy without the ends of three subjects."""
    data = jm.datasets.load("sleepstudy")
    data = data[~(data["Subject"].astype(str).isin(["308", "309", "310"]) & (data["Days"] > 3))]
    result = jm.mixedlm("Reaction ~ Days + I(1 * (Days > 5)) + (Days | Subject)", data).fit()
    theirs = {"CR0": (1.030635337e-05, 0.7185405337), "CR1": (1.433470976e-05, 0.7261138374)}
    theirs["CR2"] = (1.487273065e-05, 0.7274711048)
    for kind, p in theirs.items():
        np.testing.assert_allclose(result.robust_test(kind=kind)["p"].iloc[1:], p, rtol=5e-7)
    with pytest.raises(jm.ModelError, match="several equations"):
        result.robust_test("Days = 0, Intercept = 0")
