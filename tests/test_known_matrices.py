"""Levels with a known covariance: public references in R, and dense matrices for all that is reported of such a fit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from references import data, known_matrix, related_fits
from scipy.optimize import brentq, minimize_scalar
from scipy.stats import multivariate_normal, norm

import jmixed as jm
from jmixed.inference.posterior_draws import posterior_draws

RANDOM = {
    "animal_reml": "(1 | id) + (1 | peid)",
    "animal_ml": "(1 | id)",
    "carni70_phylo_ml": "(1 | species)",
    "lizards_phylo_reml": "(1 | species)",
}
GROUPS = {"additive": "id", "permanent": "peid", "phylo": "species"}


@functools.cache
def fitted(name):
    """From the default start."""
    reference = related_fits()[name]
    related = {term["group"]: known_matrix(reference["dataset"]) for term in reference["terms"] if term["K_file"]}
    formula = f"{reference['r']['formula']} + {RANDOM[name]}"
    model = jm.mixedlm(formula, data(reference["dataset"]), relationship=related)
    return reference, model.fit(reml=reference["method"] == "REML")


@pytest.fixture(params=RANDOM, scope="module")
def pair(request):
    return fitted(request.param)


class TestReferences:
    """R's own dense likelihood. Measured: criterion to 4e-12, theta to 3e-8, coefficients to 6e-9 of an error."""

    def test_no_reference_is_left_out(self):
        assert set(related_fits()) == set(RANDOM)

    def test_criterion(self, pair):
        reference, result = pair
        assert result.converged
        assert result.nobs == reference["n_obs"]
        assert result.objective == pytest.approx(reference["objective"]["value"], abs=1e-6)

    def test_coefficients_and_their_errors(self, pair):
        reference, result = pair
        errors = dict(zip(result.fe_params.index, result.bse_fe, strict=True))
        by_name = {row["name_r"]: row for row in reference["fixef"]}
        names = {"Intercept": "(Intercept)", "sex[T.m]": "sexm", "sex[T.m]:age": "sexm:age"}
        assert len(by_name) == len(errors)
        for name, error in errors.items():
            row = by_name[names.get(name, name)]
            assert abs(result.fe_params[name] - row["estimate"]) < 1e-4 * row["se"]
            assert error == pytest.approx(row["se"], rel=1e-4)

    def test_variances(self, pair):
        reference, result = pair
        np.testing.assert_allclose(result.theta, reference["theta"], rtol=1e-4)
        assert result.sigma == pytest.approx(reference["sigma"], rel=1e-4)
        table = result.tidy("ran_pars").set_index("group")["estimate"]
        for row in reference["variances"]:
            assert table[GROUPS[row["name"]]] == pytest.approx(row["sd"], rel=1e-4)

    def test_modes(self, pair):
        reference, result = pair
        for term in reference["ranef"]:
            modes = result.ranef()[GROUPS[term["name"]]]["Intercept"]
            for row in term["levels"]:
                assert modes[row["level"]] == pytest.approx(row["mode"], abs=1e-4 * result.sigma)

    def test_fitted_values(self, pair):
        reference, result = pair
        rows = reference["rows"]
        place = rows["index0"]
        np.testing.assert_allclose(result.fittedvalues.iloc[place], rows["fitted"], atol=1e-4 * result.sigma)
        fixed = result.predict(random_effects=False)[place]
        np.testing.assert_allclose(fixed, rows["fitted_fixed"], atol=1e-4 * result.sigma)


ANIMALS, A = data("animal"), known_matrix("animal")
ALL = list(A.index)
"""Animals; six of them are ancestors without records."""
OF_ROW = A.index.get_indexer(pd.Index(ANIMALS["id"]))
K = A.to_numpy()[np.ix_(OF_ROW, OF_ROW)]
SAME = (ANIMALS["peid"].to_numpy()[:, None] == ANIMALS["peid"].to_numpy()) * 1.0
X, Y = np.column_stack([np.ones(len(ANIMALS)), ANIMALS["sex"] == "m", ANIMALS["age"]]).astype(float), ANIMALS["weight"]
MALE = X[:, 1]


def animals(random="(1 | id)", frame=ANIMALS, **words):
    return jm.mixedlm(f"weight ~ sex + age + {random}", frame, relationship={"id": A}, **words)


@functools.cache
def one_variance(reml=True):
    return animals().fit(reml=reml)


def generalised(V, y=Y):
    """beta, its covariance but for sigma^2, the residual and V^-1."""
    inverse = np.linalg.inv(V)
    M = np.linalg.inv(X.T @ inverse @ X)
    beta = M @ X.T @ inverse @ y
    return beta, M, y - X @ beta, inverse


def deviance(V, reml=True):
    """The profiled criterion of a covariance relative to sigma^2."""
    beta, M, rest, inverse = generalised(V)
    nu = len(Y) - reml * X.shape[1]
    logs = np.linalg.slogdet(V)[1] - reml * np.linalg.slogdet(M)[1]
    return logs + nu * (1 + np.log(2 * np.pi * (rest @ inverse @ rest) / nu))


@functools.cache
def dense():
    """Of the model with a permanent environment, at its estimates: everything about all animals."""
    _, result = fitted("animal_reml")
    additive, permanent = result.sigma**2 * result.theta**2
    V = result.sigma**2 * np.eye(len(Y)) + additive * K + permanent * SAME
    beta, M, rest, inverse = generalised(V)
    with_rows = additive * A.to_numpy()[:, OF_ROW]
    modes, given = with_rows @ inverse @ rest, additive * A.to_numpy() - with_rows @ inverse @ with_rows.T
    return {"V": V, "M": M, "beta": beta, "inverse": inverse, "with_rows": with_rows, "modes": modes, "given": given}


class TestAnimalsWithoutRecords:
    def test_conditional_modes(self):
        _, result = fitted("animal_reml")
        modes = result.ranef()["id"]["Intercept"]
        assert set(modes.index) == set(ALL)
        assert len(ALL) == len(set(ANIMALS["id"])) + 6
        np.testing.assert_allclose(modes[ALL], dense()["modes"], atol=1e-9)
        assert len(result.ranef()["peid"]) == len(set(ANIMALS["peid"]))

    def test_conditional_variances(self):
        _, result = fitted("animal_reml")
        modes, blocks = result.ranef(cond_var=True)
        place = modes["id"].index.get_indexer(ALL)
        np.testing.assert_allclose(blocks["id"][place, 0, 0], np.diag(dense()["given"]), rtol=1e-8)
        table = result.tidy("ran_vals").query("group == 'id'").set_index("level")
        np.testing.assert_allclose(table["std.error"][ALL], np.sqrt(np.diag(dense()["given"])), rtol=1e-8)

    @pytest.mark.parametrize("interval", ["confidence", "prediction"])
    def test_predictions_and_their_intervals(self, interval):
        """Of a new record of each animal in an environment that is not known."""
        _, result = fitted("animal_reml")
        new = pd.DataFrame({"sex": "f", "age": 2.0, "id": ALL, "peid": "new"})
        table = result.predict(new, random_effects=True, new_levels="population", interval=interval)
        d, x = dense(), np.array([1, 0, 2.0])
        rows = x - d["with_rows"] @ d["inverse"] @ X
        variance = np.einsum("ij,jk,ik->i", rows, d["M"], rows) + np.diag(d["given"])
        if interval == "prediction":
            variance += result.sigma**2 * (1 + result.theta[1] ** 2)
        np.testing.assert_allclose(table["fit"], x @ d["beta"] + d["modes"], rtol=1e-9)
        np.testing.assert_allclose(table["se"], np.sqrt(variance), rtol=1e-8)
        np.testing.assert_allclose(table["upper"] - table["fit"], norm.ppf(0.975) * np.sqrt(variance), rtol=1e-6)

    def test_an_animal_that_nobody_is_related_to_is_a_new_level(self):
        new = pd.DataFrame({"sex": ["f", "f"], "age": 2.0, "id": ["a003", "stranger"]})
        with pytest.raises(jm.DataError, match="stranger"):
            one_variance().predict(new, random_effects=True)
        found = one_variance().predict(new, random_effects=True, new_levels="population")
        assert found[1] == pytest.approx(one_variance().predict(new)[1])
        assert abs(found[0] - found[1]) > 0.1

    def test_pictures(self):
        """A mode's own variance: K's entry less what is left of it."""
        result = one_variance()
        table = jm.plot.caterpillar_data(result, "id")
        assert set(table["id"]) == set(ALL)
        additive = float(result.fitted.fit.covariances["1 | id"][0, 0])
        known = sorted(set(ANIMALS["id"]))
        rows = additive * A.loc[known].to_numpy()[:, OF_ROW]
        _, M, rest, inverse = generalised(result.sigma**2 * np.eye(len(Y)) + additive * K)
        P = inverse - inverse @ X @ M @ X.T @ inverse
        expected = rows @ inverse @ rest / np.sqrt(np.einsum("ij,jk,ik->i", rows, P, rows))
        np.testing.assert_allclose(jm.plot.qq_data(result, "id")["sample"], np.sort(expected), rtol=1e-7)


class TestMethods:
    def test_simulated_responses_have_the_covariance(self):
        _, result = fitted("animal_reml")
        drawn = np.asarray(result.simulate(4000, key=1)) - X @ dense()["beta"]
        empirical, V = drawn.T @ drawn / len(drawn), dense()["V"]
        # A product of normals has the variance V_ii V_jj + V_ij^2; of 41,616 the largest is some 4.3 deviations off.
        error = np.sqrt((np.outer(np.diag(V), np.diag(V)) + V**2) / len(drawn))
        assert np.max(np.abs(empirical - V) / error) < 5.5

    def test_posterior_draws_have_the_joint_covariance(self):
        fit = one_variance().fitted
        beta, (modes,) = posterior_draws(fit.white, fit.joint, fit.fit, 4000, np.random.default_rng(0))
        drawn = np.column_stack([beta, modes[:, :, 0]])
        expected = np.asarray(one_variance().vcov(full=True))
        error = np.sqrt((np.outer(np.diag(expected), np.diag(expected)) + expected**2) / 4000)
        assert np.max(np.abs(np.cov(drawn.T) - expected) / error) < 5.5

    def test_saved_and_without_data(self, tmp_path):
        _, result = fitted("animal_reml")
        result.save(tmp_path / "fit.jm")
        loaded = jm.load(tmp_path / "fit.jm")
        new = pd.DataFrame({"sex": "f", "age": 2.0, "id": ALL, "peid": "new"})
        words = {"random_effects": True, "new_levels": "population", "interval": "confidence"}
        expected = result.predict(new, **words)
        pd.testing.assert_frame_equal(loaded.predict(new, **words), expected)
        pd.testing.assert_frame_equal(loaded.ranef()["id"], result.ranef()["id"])
        again = loaded.model.update("weight ~ sex + (1 | id)")
        assert again.spec.terms[0].root is not None
        loaded.remove_data()
        words["interval"] = None
        np.testing.assert_array_equal(loaded.predict(new, **words), expected["fit"])

    def test_update(self):
        """The matrix stays, or is exchanged, whichever of the two arguments gave it."""
        model = one_variance().model
        kept = model.update(". ~ . - age")
        assert kept.spec.terms[0].root is not None
        known = 2 * A
        for words in ({"relationship": {"id": known}}, {"relationship_inverse": {"id": np.linalg.inv(known)}}):
            words = {k: {"id": pd.DataFrame(v["id"], ALL, ALL)} for k, v in words.items()}
            changed = model.update(**words)
            own = list(changed.spec.terms[0].levels)
            root = changed.spec.terms[0].root
            np.testing.assert_allclose(root @ root.T, known.loc[own, own], atol=1e-12)
        assert model.update(relationship=None).spec.terms[0].root is None

    def test_refits_and_the_bootstrap(self):
        """A refit of a drawn response is the fit of a new model, and the bootstrap makes these refits."""
        result = one_variance()
        drawn = np.asarray(result.simulate(3, key=4))
        again = result.refit(drawn[0])
        anew = animals(frame=ANIMALS.assign(weight=drawn[0])).fit()
        assert again.objective == pytest.approx(anew.objective, abs=1e-8)
        np.testing.assert_allclose(again.theta, anew.theta, rtol=1e-5)
        many = result.model.fit_many(drawn)
        np.testing.assert_allclose(np.asarray(many.fe_params)[0], anew.fe_params, rtol=1e-6)
        sampled = result.bootstrap(3, key=4)
        np.testing.assert_allclose(sampled.replicates.to_numpy()[:, :3], many.fe_params, rtol=1e-6)

    def test_influence(self):
        """Without an animal's records, which is then one that only its relatives tell of."""
        found = one_variance().influence("id", method="exact")
        left = animals(frame=ANIMALS[ANIMALS["id"] != "a002"]).fit()
        np.testing.assert_allclose(found.fixed.loc["a002"], left.fe_params, rtol=1e-6)
        np.testing.assert_allclose(found.ran_pars.loc["a002", "sigma"], left.sigma, rtol=1e-5)

    def test_profile_limits(self):
        """Where the ML deviance, as least squares in the eigenvectors of K have it, has risen by 3.84."""
        result = one_variance(reml=False)
        values, vectors = np.linalg.eigh(K)
        turned, response = vectors.T @ X, vectors.T @ Y.to_numpy()

        def at(sd, log_sigma):
            v = sd**2 * values + np.exp(2 * log_sigma)
            beta = np.linalg.solve(turned.T / v @ turned, turned.T / v @ response)
            return np.sum(np.log(2 * np.pi * v) + (response - turned @ beta) ** 2 / v)

        def risen(sd):
            best = minimize_scalar(lambda s: at(sd, s), bounds=(0, 1.5), method="bounded", options={"xatol": 1e-8})
            return best.fun - result.objective - 3.841458820694124

        estimate = result.tidy("ran_pars")["estimate"][0]
        limits = result.confint(method="profile").loc["sd_Intercept|id"]
        found = [brentq(risen, 0.5, estimate, xtol=1e-8), brentq(risen, estimate, 2 * estimate, xtol=1e-8)]
        np.testing.assert_allclose(limits, found, rtol=1e-4)

    def test_shares_of_variance(self):
        """R2 counts how inbred the animals of the rows are; the intraclass correlation is of those that are not."""
        result = one_variance()
        additive, residual = float(result.fitted.fit.covariances["1 | id"][0, 0]), result.sigma**2
        assert np.diag(K).max() > 1
        random, fixed = additive * np.diag(K).mean(), np.var(X @ result.fe_params.to_numpy(), ddof=1)
        shares = result.r2()
        assert shares.random == pytest.approx(random, rel=1e-10)
        assert shares.conditional == pytest.approx((fixed + random) / (fixed + random + residual), rel=1e-10)
        assert result.icc().adjusted == pytest.approx(additive / (additive + residual), rel=1e-10)
        _, both = fitted("animal_reml")
        additive, permanent = both.theta**2
        by_group = {"id": additive / (1 + additive + permanent), "peid": permanent / (1 + additive + permanent)}
        assert both.icc().by_group == pytest.approx(by_group, rel=1e-10)

    def test_tests_of_variances_tell_related_levels_from_others(self):
        _, both = fitted("animal_reml")
        alone = jm.mixedlm("weight ~ sex + age + (1 | peid)", ANIMALS).fit()
        found = jm.test_variance(both, alone)
        assert found.tested == "1 | id"
        assert found.statistic == pytest.approx(alone.objective - both.objective, abs=1e-9)
        assert jm.test_variance(both, one_variance()).tested == "1 | peid"
        # Another covariance of the same levels is another term; that of independent ones is their environment.
        other = jm.mixedlm("weight ~ sex + age + (1 | id)", ANIMALS, relationship={"id": A + np.eye(len(A))}).fit()
        for larger, smaller in ((both, other), (one_variance(), alone)):
            with pytest.raises(jm.ModelError, match="differ by"):
                jm.test_variance(larger, smaller)

    def test_a_matrix_and_its_inverse_are_one_term(self):
        _, both = fitted("animal_reml")
        inverse = pd.DataFrame(np.linalg.inv(A), ALL, ALL)
        model = jm.mixedlm("weight ~ sex + age + (1 | id)", ANIMALS, relationship_inverse={"id": inverse})
        assert jm.test_variance(both, model.fit()).tested == "1 | peid"

    def test_compare(self):
        unrelated = jm.mixedlm("weight ~ sex + age + (1 | id)", ANIMALS).fit()
        table = jm.compare(one_variance(), unrelated, names=["related", "not"])
        assert table.loc["related", "deviance"] == pytest.approx(one_variance(reml=False).objective, abs=1e-7)
        assert table.loc["not", "deviance"] != pytest.approx(table.loc["related", "deviance"], abs=1)

    def test_what_is_printed(self):
        _, both = fitted("animal_reml")
        assert "id: 125 related levels, peid: 125 levels" in repr(both.model)
        assert "Related levels: id. A variance is that of a level with 1 in" in str(both.summary())
        assert "Related levels" not in str(jm.mixedlm("weight ~ sex + (1 | peid)", ANIMALS).fit().summary())


class TestArrays:
    def test_log_likelihood_and_marginal_loss(self):
        result, design = one_variance(), one_variance().model.design
        beta, theta, sigma = np.array([20.0, 1, 0.9]), np.array([0.8]), 2.1
        expected = multivariate_normal(X @ beta, sigma**2 * (np.eye(len(Y)) + 0.64 * K)).logpdf(Y)
        with jax.enable_x64(True):
            value = jm.log_likelihood(beta, theta, sigma, design)
            loss = jm.marginal_loss(Y.to_numpy() - X @ beta, theta, design, sigma)
            found = jm.estimate(design)
        assert float(value) == pytest.approx(expected, rel=1e-12)
        assert float(loss) == pytest.approx(-expected, rel=1e-12)
        np.testing.assert_allclose(found.theta, result.theta, rtol=1e-7)
        np.testing.assert_allclose(found.b["1 | id"], result.ranef()["id"].loc[sorted(set(ANIMALS["id"]))], atol=1e-7)

    def test_predict_and_simulate(self):
        design = one_variance().model.design
        with jax.enable_x64(True):
            estimate = jm.estimate(design)
            fitted_values = jm.predict(estimate, design)
            drawn = np.asarray(jm.simulate(estimate, design, 0, 4000)) - X @ np.asarray(estimate.beta)
        np.testing.assert_allclose(fitted_values, one_variance().fittedvalues, rtol=1e-8)
        V = float(estimate.sigma) ** 2 * (np.eye(len(Y)) + float(estimate.theta[0]) ** 2 * K)
        error = np.sqrt((np.outer(np.diag(V), np.diag(V)) + V**2) / len(drawn))
        assert np.max(np.abs(drawn.T @ drawn / len(drawn) - V) / error) < 5.5

    def test_what_needs_independent_groups_is_refused(self):
        design, theta = one_variance().model.design, np.array([0.8])
        with jax.enable_x64(True):
            with pytest.raises(jm.ModelError, match="relationship= relates them: use jm.marginal_loss"):
                jm.take_groups(design, jnp.arange(2))
            with pytest.raises(jm.ModelError, match="relationship= relates the levels of this model: leave mesh out"):
                jm.estimate(design, mesh=jax.make_mesh((1,), ("groups",)))
            with pytest.raises(jm.ModelError, match="relationship= relates them; jm.log_likelihood gives"):
                jm.log_likelihood_by_group(np.zeros(3), theta, 1.0, design)

    def test_robust_covariances_are_refused(self):
        for result in (one_variance(), fitted("animal_reml")[1]):
            with pytest.raises(jm.ModelError, match="robust_cov: the levels of 'id' are related"):
                result.robust_cov()


def covariance_of(result, label):
    return result.fitted.fit.covariances[label] / result.sigma**2


class TestOtherModels:
    """Each fit's criterion is that of a dense matrix, which is made of the parameters that are reported."""

    def test_random_slopes(self):
        drawn = np.random.default_rng(3).multivariate_normal(np.zeros(len(A)), A)[OF_ROW]
        frame = ANIMALS.assign(a=ANIMALS["age"] - 3)
        y = frame["weight"] + 0.8 * frame["a"] * drawn
        result = animals("(a | id)", frame.assign(weight=y)).fit()
        Z, V = np.column_stack([np.ones(len(y)), frame["a"]]), covariance_of(result, "a | id")
        beta, M, rest, inverse = generalised(np.eye(len(y)) + K * (Z @ V @ Z.T), y)
        assert V[1, 1] > 0.01
        np.testing.assert_allclose(result.fe_params, beta, rtol=1e-9)
        np.testing.assert_allclose(result.bse_fe, result.sigma * np.sqrt(np.diag(M)), rtol=1e-9)
        assert result.sigma**2 == pytest.approx(rest @ inverse @ rest / (len(y) - 3), rel=1e-9)
        modes = result.ranef()["id"].loc[ALL].to_numpy()
        np.testing.assert_allclose(modes, A.to_numpy()[:, OF_ROW] @ ((inverse @ rest)[:, None] * Z) @ V, atol=1e-8)

    def test_words_before_a_bar(self):
        result = animals("cs(0 + sex | id)").fit()
        V, Z = covariance_of(result, "cs(0 + sex | id)"), np.column_stack([1 - MALE, MALE])
        assert result.objective == pytest.approx(deviance(np.eye(len(Y)) + K * (Z @ V @ Z.T)), abs=1e-8)

    def test_correlated_residuals(self):
        frame = ANIMALS.assign(t=ANIMALS.groupby("id").cumcount())
        result = animals(frame=frame, residual="ar1(t | id)").fit()
        phi, gap = result.residual_corr().iloc[0, 1], np.abs(np.subtract.outer(*[frame["t"].to_numpy()] * 2))
        own = ANIMALS["id"].to_numpy()[:, None] == ANIMALS["id"].to_numpy()
        V = own * np.sign(phi) ** gap * np.abs(phi) ** gap + result.theta[0] ** 2 * K
        assert abs(phi) > 0.01
        assert result.objective == pytest.approx(deviance(V), abs=1e-8)

    def test_unequal_residual_variances(self):
        result = animals(dispersion="~ sex").fit()
        change = result.tidy("ran_pars").set_index("term")["estimate"]["logsd__sex[T.m]"]
        V = np.diag(np.exp(2 * change * MALE)) + result.theta[0] ** 2 * K
        assert abs(change) > 0.1
        assert result.objective == pytest.approx(deviance(V), abs=1e-8)

    def test_words_of_statsmodels(self):
        words = jm.mixedlm("weight ~ sex + age", ANIMALS, groups="id", relationship={"id": A}).fit()
        assert words.objective == pytest.approx(one_variance().objective, abs=1e-9)
        assert list(words.ranef()) == ["id"]

    def test_the_identity_is_no_relationship(self):
        identity = pd.DataFrame(np.eye(len(ALL)), ALL, ALL)
        result = jm.mixedlm("weight ~ sex + age + (1 | id)", ANIMALS, relationship={"id": identity}).fit()
        plain = jm.mixedlm("weight ~ sex + age + (1 | id)", ANIMALS).fit()
        assert result.objective == pytest.approx(plain.objective, abs=1e-9)
        np.testing.assert_allclose(result.bse_fe, plain.bse_fe, rtol=1e-7)

    def test_one_record_an_animal(self):
        """Residuals and levels of the same rows differ by their covariance: no error, unlike independent levels."""
        frame = ANIMALS.drop_duplicates("id")
        with pytest.raises(jm.ModelError):
            jm.mixedlm("weight ~ sex + age + (1 | id)", frame)
        assert animals(frame=frame).fit().theta[0] > 0
