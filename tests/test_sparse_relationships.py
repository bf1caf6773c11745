"""Sparse inverse relationships: the same fits as by dense matrices, beside R's references, and what is refused."""

import functools

import jax
import numpy as np
import pandas as pd
import pytest
from references import data, known_matrix, related_fits
from scipy import sparse
from test_known_matrices import RANDOM, fitted

import jmixed as jm
from jmixed.formulas import relationships

FORMULA = "weight ~ sex + age + (1 | id) + (1 | peid)"


def inverse_of(name):
    """The inverse of a reference's matrix, as a pair with labels."""
    K = known_matrix(name)
    inverse = np.linalg.inv(K.to_numpy())
    return sparse.csr_array(np.where(np.abs(inverse) > 1e-12, inverse, 0)), K.index


@functools.cache
def sparsely_fitted(name):
    """As `fitted`, by the inverse, left sparse although there are few levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relationships, "LARGE", 10)
        reference = related_fits()[name]
        related = {term["group"]: inverse_of(reference["dataset"]) for term in reference["terms"] if term["K_file"]}
        formula = f"{reference['r']['formula']} + {RANDOM[name]}"
        model = jm.mixedlm(formula, data(reference["dataset"]), relationship_inverse=related)
        return model.fit(reml=reference["method"] == "REML")


@pytest.mark.parametrize("name", ["animal_reml", "carni70_phylo_ml"])
def test_estimates_are_those_of_the_dense_matrix(name):
    reference, dense = fitted(name)
    found = sparsely_fitted(name)
    assert found.converged
    assert all(term.precision is not None or term.relationship is None for term in found.model.spec.terms)
    assert found.objective == pytest.approx(reference["objective"]["value"], abs=1e-6)
    np.testing.assert_allclose(found.theta, dense.theta, rtol=1e-6)
    np.testing.assert_allclose(found.bse_fe, dense.bse_fe, rtol=1e-7)
    np.testing.assert_allclose(found.bse_re, dense.bse_re, rtol=1e-5)
    np.testing.assert_allclose(found.fittedvalues, dense.fittedvalues, rtol=1e-8)


def test_effects_and_their_variances_are_those_of_the_dense_matrix_levels_without_rows_among_them():
    (modes, variances), (others, of_others) = (
        result.ranef(cond_var=True) for result in (sparsely_fitted("animal_reml"), fitted("animal_reml")[1])
    )
    assert len(modes["id"]) == 131
    for group in ("id", "peid"):
        pd.testing.assert_frame_equal(modes[group], others[group], rtol=1e-7, atol=1e-8)
        np.testing.assert_allclose(variances[group], of_others[group], rtol=1e-6)


def test_tests_and_predictions_are_those_of_the_dense_matrix():
    found, dense = sparsely_fitted("animal_reml"), fitted("animal_reml")[1]
    for ddf in ("satterthwaite", "kenward-roger"):
        one, other = (result.test("age = 0", ddf=ddf) for result in (found, dense))
        np.testing.assert_allclose(one[["estimate", "se", "df"]], other[["estimate", "se", "df"]], rtol=1e-5)
    new = pd.DataFrame(
        {"sex": ["f"] * 3, "age": [2.0] * 3, "id": known_matrix("animal").index[:3], "peid": ["new"] * 3}
    )
    predicted = [result.predict(new, random_effects=["id"]) for result in (found, dense)]
    np.testing.assert_allclose(*predicted, rtol=1e-8)
    intervals = [result.predict(new, interval="confidence") for result in (found, dense)]
    np.testing.assert_allclose(*intervals, rtol=1e-7)


def test_simulated_responses_have_the_covariance_of_the_model():
    found = sparsely_fitted("animal_reml")
    # The mean of all rows shows whether levels are related; independent ones would have a fraction of its variance.
    means = np.asarray(found.simulate(2000, key=1)).mean(axis=1)
    K, frame = known_matrix("animal"), data("animal")
    Z = (frame["id"].to_numpy()[:, None] == K.index.to_numpy()).mean(axis=0)
    own = pd.factorize(frame["peid"])[0]
    W = np.bincount(own) / len(frame)
    variance = found.sigma**2 * (found.theta[0] ** 2 * Z @ K @ Z + found.theta[1] ** 2 * W @ W + 1 / len(frame))
    assert np.var(means) == pytest.approx(variance, rel=0.15)


@pytest.mark.thorough
def test_the_density_in_jax_is_that_of_the_dense_matrix(tmp_path):
    found, dense = sparsely_fitted("animal_reml"), fitted("animal_reml")[1]
    at = dense.fe_params.to_numpy(), dense.theta, dense.sigma
    with jax.enable_x64(True):
        values = [jax.value_and_grad(jm.log_likelihood, 1)(*at, r.model.design) for r in (found, dense)]
        with pytest.raises(jm.ModelError, match="result.simulate is"):
            jm.simulate(jm.estimate(dense.model.design), found.model.design, 0, 2)
    np.testing.assert_allclose(*(value for value, _ in values), rtol=1e-12)
    np.testing.assert_allclose(*(slope for _, slope in values), rtol=1e-8, atol=1e-8)
    found.save(tmp_path / "fit.jm")
    again = jm.load(tmp_path / "fit.jm")
    pd.testing.assert_frame_equal(again.ranef()["id"], found.ranef()["id"])


def test_shares_of_the_variance_and_comparisons_are_those_of_the_dense_matrix():
    found, dense = sparsely_fitted("animal_reml"), fitted("animal_reml")[1]
    assert found.r2().random == pytest.approx(dense.r2().random, rel=1e-7)
    inverse, labels = inverse_of("animal")
    order = np.random.default_rng(0).permutation(len(labels))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relationships, "LARGE", 10)
        shuffled = {"id": (inverse[order][:, order], labels[order])}
        smaller = jm.mixedlm("weight ~ sex + age + (1 | id)", data("animal"), relationship_inverse=shuffled).fit()
    unrelated = jm.mixedlm("weight ~ sex + age + (1 | id)", data("animal")).fit()
    tested = jm.test_variance(found, smaller)
    assert tested.tested == "1 | peid"
    assert tested.statistic == pytest.approx(smaller.objective - found.objective, rel=1e-6)
    # Rows of one animal are those of one environment: without relationship the two terms are the same.
    assert jm.test_variance(found, unrelated).tested == "1 | id"


@pytest.mark.parametrize(
    "ask",
    [
        lambda result: result.augment(),
        lambda result: result.predict(random_effects=True, interval="confidence"),
        lambda result: result.vcov(full=True),
    ],
    ids=["augment", "interval", "vcov"],
)
def test_what_would_be_dense_is_refused(ask):
    with pytest.raises(jm.ModelError, match="sparse relationship of many levels"):
        ask(sparsely_fitted("animal_reml"))


def test_residual_structures_are_refused(monkeypatch):
    monkeypatch.setattr(relationships, "LARGE", 10)
    inverse = {"id": inverse_of("animal")}
    model = jm.mixedlm(FORMULA, data("animal"), relationship_inverse=inverse, dispersion="~ sex")
    with pytest.raises(jm.ModelError, match="sparse inverse of more"):
        model.fit()


def test_a_sparse_inverse_that_is_not_definite_is_refused(monkeypatch):
    monkeypatch.setattr(relationships, "LARGE", 10)
    inverse, labels = inverse_of("animal")
    wrong = sparse.csr_array(inverse - 0.6 * sparse.eye_array(len(labels)))
    least = np.linalg.eigvalsh(wrong.toarray())[0]
    with pytest.raises(jm.DataError, match=f"smallest eigenvalue is {least:.3g}"):
        jm.mixedlm(FORMULA, data("animal"), relationship_inverse={"id": (wrong, labels)})
