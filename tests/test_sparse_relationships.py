"""Sparse inverse relationships: the same fits as by dense matrices, beside R's references, and what is refused."""

import functools
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from references import data, known_matrix, related_fits
from scipy import sparse
from scipy.special import gammaln
from test_known_matrices import RANDOM, fitted

import jmixed as jm
from jmixed.fit import host
from jmixed.formulas import relationships
from jmixed.layout.layout import EQUATIONS
from jmixed.likelihood.laplace import LaplaceDeviance

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


# Responses with a family.


@functools.cache
def counts():
    """A pedigree of 90 animals of three generations, and two counts of each of the last 70, in five pens."""
    rng = np.random.default_rng(3)
    parents = np.full((90, 2), -1)
    for k in range(20, 90):
        parents[k] = rng.choice(np.arange(max(0, k - 40), k - 10)[k % 2 :: 2]), rng.choice(np.arange(k - 10, k))
    names = np.array([f"a{k}" for k in range(90)])
    family = pd.DataFrame({"animal": names, "sire": names[parents[:, 0]], "dam": names[parents[:, 1]]})
    family.loc[:19, ["sire", "dam"]] = None
    pedigree = jm.pedigree(family)
    value = 0.8 * np.linalg.cholesky(pedigree.A.to_numpy()) @ rng.normal(size=90)
    animal = np.tile(np.arange(20, 90), 2)
    frame = pd.DataFrame({"animal": names[animal], "x": rng.normal(size=140), "pen": rng.integers(0, 5, 140)})
    eta = 0.5 + 0.4 * frame["x"] + value[animal] + np.array([-0.6, -0.3, 0.0, 0.3, 0.6])[frame["pen"]]
    drawn = {"y": rng.poisson(np.exp(eta)), "grade": np.digitize(eta + rng.logistic(size=140), [-1, 1])}
    return pedigree, frame.assign(**drawn, hit=(eta + rng.logistic(size=140) > 0).astype(float))


def generalized(formula, family, large, **words):
    """A model of `counts` whose relationship is left sparse from so many levels on."""
    pedigree, frame = counts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(relationships, "LARGE", large)
        return jm.mixedglm(formula, frame, family, relationship={"animal": pedigree}, **words)


@functools.cache
def counted(large):
    """Two variances of Poisson counts."""
    return generalized("y ~ x + (1 | animal) + (1 | pen)", "poisson", large).fit()


@pytest.mark.thorough
def test_a_generalized_fit_is_that_of_the_dense_matrix():
    found, dense = counted(10), counted(1000)
    assert found.converged
    assert found.model.design.layout.crossed == EQUATIONS != dense.model.design.layout.crossed
    assert found.objective == pytest.approx(dense.objective, abs=1e-8)
    np.testing.assert_allclose(found.params, dense.params, rtol=1e-7)
    np.testing.assert_allclose(found.cov_params(), dense.cov_params(), rtol=1e-6, atol=1e-10)
    (modes, variances), (others, of_others) = (result.ranef(cond_var=True) for result in (found, dense))
    assert len(modes["animal"]) == 90
    for group in ("animal", "pen"):
        pd.testing.assert_frame_equal(modes[group], others[group], rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(variances[group], of_others[group], rtol=1e-6)
    new = pd.DataFrame({"animal": ["a0", "a89"], "x": [0.0, 1.0], "pen": [0, 4]})
    predicted = [result.predict(new, random_effects=True) for result in (found, dense)]
    np.testing.assert_allclose(*predicted, rtol=1e-7)
    intervals = [result.predict(new, interval="confidence", kind="link") for result in (found, dense)]
    np.testing.assert_allclose(*intervals, rtol=1e-6)


def laplace_by_hand(x):
    """-2 log-likelihood of the counts at x = (beta, standard deviations), modes of all animals, and their variances."""
    pedigree, frame = counts()
    levels = [(frame["animal"].to_numpy(), pedigree.labels.to_numpy()), (frame["pen"].to_numpy(), np.arange(5))]
    Z = np.hstack([(codes[:, None] == names).astype(float) for codes, names in levels])
    K = np.zeros((95, 95))
    K[:90, :90], K[90:, 90:] = x[2] ** 2 * pedigree.A, x[3] ** 2 * np.eye(5)
    precision, y, u = np.linalg.inv(K), frame["y"].to_numpy(), np.zeros(95)
    fixed = x[0] + x[1] * frame["x"].to_numpy()
    for _ in range(30):
        mean = np.exp(fixed + Z @ u)
        H = Z.T @ (mean[:, None] * Z) + precision
        u = u + np.linalg.solve(H, Z.T @ (y - mean) - precision @ u)
    eta = fixed + Z @ u
    value = -2 * np.sum(y * eta - np.exp(eta) - gammaln(y + 1)) + u @ precision @ u
    return value + np.linalg.slogdet(H)[1] + np.linalg.slogdet(K)[1], u[:90], np.diag(np.linalg.inv(H))[:90]


def test_the_criterion_is_laplaces_of_the_dense_definition():
    found = counted(10)
    x = np.concatenate([found.fe_params, found.theta])
    value, modes, variances = laplace_by_hand(x)
    assert found.converged
    assert found.model.design.layout.crossed == EQUATIONS
    assert found.objective == pytest.approx(value, abs=1e-8)
    told, of_told = found.ranef(cond_var=True)
    place = counts()[0].labels.get_indexer(told["animal"].index)
    np.testing.assert_allclose(told["animal"].to_numpy()[:, 0], modes[place], atol=1e-8)
    np.testing.assert_allclose(of_told["animal"][:, 0, 0], variances[place], rtol=1e-8)
    steps = 1e-3 * np.eye(4)
    curvature = np.array(
        [
            [sum(s * t * laplace_by_hand(x + s * a + t * b)[0] for s in (1, -1) for t in (1, -1)) for a in steps]
            for b in steps
        ]
    ) / (4 * 1e-6)
    errors = np.sqrt(np.diag(2 * np.linalg.inv(curvature)))
    np.testing.assert_allclose(found.bse_fe, errors[:2], rtol=1e-4)
    # Those of variances.
    np.testing.assert_allclose(found.bse_re, 2 * x[2:] * errors[2:], rtol=1e-4)


@pytest.mark.parametrize(
    "ask",
    [
        lambda result: result.augment(),
        lambda result: result.predict(random_effects=True, interval="confidence"),
        lambda result: result.vcov(full=True),
        lambda result: result.random_effects_cov,
        lambda result: result.approximation(),
    ],
    ids=["augment", "interval", "vcov", "random_effects_cov", "approximation"],
)
def test_what_would_be_dense_is_refused_of_a_generalized_fit(ask):
    with pytest.raises(jm.ModelError, match="sparse relationship of many levels"):
        ask(counted(10))


CRITERIA = {
    "binomial": ("hit ~ x + (1 | animal) + (1 | pen)", {}),
    "nbinom2": ("y ~ x + (x | animal)", {"dispersion": "~ x"}),
    "poisson": ("y ~ x + (1 | animal) + (1 | pen)", {"zero_inflation": "~ 1"}),
    "ordinal": ("grade ~ x + (1 | animal)", {}),
    "student": ("y ~ x + (1 | animal)", {}),
    "nbinom1": ("y ~ x + cs(0 + C(pen) | animal)", {}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("singular", [False, True])
@pytest.mark.parametrize("family", CRITERIA)
def test_criteria_and_their_derivatives_are_those_of_the_dense_matrix(family, singular):
    formula, words = CRITERIA[family]
    designs = [generalized(formula, family, large, **words).design for large in (10, 1000)]
    criteria = [cast(LaplaceDeviance, host.design_criterion(design)) for design in designs]
    with jax.enable_x64(True):
        terms = criteria[0].rows.layout.terms
        units = [np.eye(term.q) for term in terms]
        roots = [jnp.asarray(np.tril(0.3 + 0.4 * unit) if unit.size < 9 else 0.5 * unit) for unit in units]
        roots[-1] = roots[-1].at[-1 if units[-1].size < 9 else slice(None)].set(0) if singular else roots[-1]
        free = jnp.asarray(criteria[0].first[0]) + 0.1
        evaluate = jax.jit(LaplaceDeviance.in_psi)
        found, dense = (jax.device_get(evaluate(c, roots, free, jnp.zeros_like(c.rows.y))) for c in criteria)
    tolerances = (1e-10, 1e-8, 1e-5 if singular else 1e-8, 1e-8)
    if singular and not terms[-1].is_linear:
        # Of a structure without a way back from beside zero, one part in a hundred million remains.
        tolerances = (1e-7, 1e-6, 1e-5, 1e-6)
    for one, other, tolerance in zip(found, dense, tolerances, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * np.max(np.abs(other)))


@pytest.mark.thorough
def test_derivatives_of_a_generalized_estimate_are_those_of_the_dense_matrix():
    designs = [generalized("y ~ x + (1 | animal)", "poisson", large).design for large in (10, 1000)]

    def total(offset, design):
        estimate = jm.estimate(design.replace(offset=offset))
        return estimate.theta[0] + estimate.beta[1]

    with jax.enable_x64(True):
        slopes = [jax.grad(total)(np.zeros(140), design) for design in designs]
    np.testing.assert_allclose(*slopes, rtol=1e-7, atol=1e-10)


def test_quadrature_is_refused_of_related_levels():
    for large in (10, 1000):
        with pytest.raises(jm.ModelError, match="relationship= relates those of animal: leave it out"):
            generalized("y ~ x + (1 | animal)", "poisson", large, quadrature=5)


def test_related_effects_of_one_row_each_are_no_overdispersion():
    pedigree, frame = counts()
    result = jm.mixedglm("y ~ x + (1 | animal)", frame[:70], "poisson", relationship={"animal": pedigree}).fit()
    variance = result.theta[0] ** 2
    center = np.mean(result.fe_params.iloc[0] + result.fe_params.iloc[1] * frame["x"][:70])
    inbred = np.mean(1 + pedigree.inbreeding.loc[frame["animal"][:70]])
    lognormal = np.log1p(
        np.exp(-center - (variance * inbred + np.var(result.fe_params.iloc[1] * frame["x"][:70], ddof=1)) / 2)
    )
    assert result.icc().adjusted == pytest.approx(variance / (variance + lognormal), rel=1e-5)
