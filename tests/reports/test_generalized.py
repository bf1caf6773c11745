"""Results of generalized models: against R, against dense formulas, numerical integrals and simulations."""

import io
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from generalized import FURTHER, counts, counts_frame, cows, reference, ticks, wine
from scipy import integrate
from scipy.special import expit, gammaln, logit

import jmixed as jm

REFERENCES = ["cbpp_laplace", "cbpp_cloglog", "grouseticks_zip", "preselect_beta_disp", "wine_judge"]
CLOSE = {"wine_judge": 5e-5, "cbpp_laplace": 1e-6}
"""Relative precision of the references that are no polished optima; the others have 1e-8."""


def precision(name):
    return CLOSE.get(name, 1e-8)


@pytest.mark.parametrize("name", REFERENCES)
class TestAgainstR:
    @pytest.mark.sweep(3)
    def test_criteria(self, name):
        result, expected = reference(name)
        assert result.aic == pytest.approx(expected["aic"], abs=2e-5)
        assert result.bic == pytest.approx(expected["bic"], abs=2e-5)
        assert result.llf == pytest.approx(expected["loglik"], abs=1e-5)
        assert result.fitted.n_params == expected["n_params"]

    def test_random_effects(self, name):
        result, expected = reference(name)
        modes, covariances = result.ranef(cond_var=True)
        for factor in expected["ranef"]:
            table = modes[factor["group"]]
            place = {str(level): k for k, level in enumerate(table.index)}
            for level in factor["levels"]:
                k = place[level["level"]]
                np.testing.assert_allclose(table.iloc[k], level["mode"], rtol=0, atol=20 * precision(name))
                if "cov" in level:
                    known = covariances[factor["group"]][k]
                    np.testing.assert_allclose(known.ravel(), np.ravel(level["cov"]), rtol=20 * precision(name))

    def test_variances(self, name):
        result, expected = reference(name)
        table = result.var_corr().set_index("group")
        assert list(table.index) == [part["group"] for part in expected["varcomp"]]
        for part in expected["varcomp"]:
            assert table.loc[part["group"], "sdcor"] == pytest.approx(part["sd"][0], rel=20 * precision(name))


def rows_of(result, expected):
    """Where the rows of a reference stand among the model's."""
    return [list(result.model.spec.rows).index(row) for row in expected["rows"]["index0"]]


class TestRowsAgainstR:
    @pytest.mark.parametrize("name", REFERENCES[:4])
    def test_fitted(self, name):
        result, expected = reference(name)
        rows, known = rows_of(result, expected), expected["rows"]
        mean = known.get("response") or known["mu"]
        np.testing.assert_allclose(result.linear_predictor.iloc[rows], known["eta"], atol=20 * precision(name))
        np.testing.assert_allclose(result.fittedvalues.iloc[rows], mean, rtol=20 * precision(name))

    @pytest.mark.parametrize("name", REFERENCES[1:4])
    @pytest.mark.parametrize("kind", ["link", "response"])
    @pytest.mark.parametrize("random_effects", [True, False])
    def test_predictions(self, name, kind, random_effects):
        result, expected = reference(name)
        known = expected["predictions"]
        found = result.predict(
            pd.DataFrame(known["newdata"]), kind, random_effects=random_effects, new_levels="population"
        )
        np.testing.assert_allclose(found, known[f"{kind}_{'all' if random_effects else 'none'}"], atol=1e-7)


class TestFurtherPredictors:
    def test_zero_inflation(self):
        result, expected = reference("grouseticks_zip")
        known = expected["zero_inflation"]["coef"]
        table = result.further().loc["zero"]
        np.testing.assert_allclose(table["estimate"], [row["estimate"] for row in known], rtol=1e-7)
        np.testing.assert_allclose(table["se"], [row["se"] for row in known], rtol=1e-7)
        np.testing.assert_array_equal(result.zero_params, table["estimate"])
        assert result.dispersion == 1.0
        assert result.dispersion_params.empty

    def test_dispersion(self):
        result, expected = reference("preselect_beta_disp")
        known = expected["dispersion"]["coef_log"]
        table = result.further().loc["dispersion"]
        np.testing.assert_allclose(table["estimate"], [row["estimate"] for row in known], rtol=1e-8)
        np.testing.assert_allclose(table["se"], [row["se"] for row in known], rtol=1e-8)
        np.testing.assert_allclose(table["p"], 2 * scipy.stats.norm.sf(np.abs(table["z"])), rtol=1e-12)
        np.testing.assert_array_equal(result.dispersion, table["estimate"])

    def test_thresholds(self):
        result, expected = reference("wine_judge")
        known = expected["thresholds"]
        table = result.further().loc["threshold"]
        assert list(table.index) == [row["name"] for row in known]
        np.testing.assert_allclose(table["estimate"], [row["estimate"] for row in known], rtol=2e-5)
        np.testing.assert_allclose(table["se"], [row["se"] for row in known], rtol=1e-4)
        np.testing.assert_array_equal(result.thresholds, table["estimate"])
        with pytest.raises(jm.ModelError, match="thresholds belong to responses in categories"):
            _ = cows().thresholds

    def test_category_probabilities(self):
        result, expected = reference("wine_judge")
        rows, codes = rows_of(result, expected), result.model.endog.astype(int)
        probabilities = result.fittedvalues.to_numpy()
        observed = probabilities[np.arange(len(codes)), codes][rows]
        np.testing.assert_allclose(observed, expected["rows"]["prob_of_observed"], atol=2e-5)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
        assert list(result.fittedvalues.columns) == [1, 2, 3, 4, 5]


def covariance_in_variances(expected, names, last):
    """glmmTMB's covariance of what is named, its log standard deviations taken to variances (delta method)."""
    order = [k for name in names for k, own in enumerate(expected["vcov_all_names"]) if own == name]
    whole = np.array(expected["vcov_all"])[np.ix_(order, order)]
    slopes = np.ones(len(order))
    slopes[len(order) - len(last) :] = 2 * np.array(last)
    return slopes[:, None] * whole * slopes[None]


class TestCovariance:
    @pytest.mark.parametrize("name", ["cbpp_cloglog", "grouseticks_zip", "preselect_beta_disp"])
    def test_joint(self, name):
        result, expected = reference(name)
        variances = [part["cov"][0][0] for part in expected["varcomp"]]
        known = covariance_in_variances(expected, ["beta", "theta"], variances)
        np.testing.assert_allclose(result.cov_params(), known, rtol=1e-6, atol=1e-10)
        np.testing.assert_allclose(result.bse**2, np.diag(known), rtol=1e-6)
        np.testing.assert_allclose(result.bse_re**2, np.diag(known)[-len(variances) :], rtol=1e-6)
        np.testing.assert_array_equal(result.bse_fe, result.bse.iloc[: result.k_fe])

    def test_with_further_predictors(self):
        result, expected = reference("grouseticks_zip")
        variance = [expected["varcomp"][0]["cov"][0][0]]
        known = covariance_in_variances(expected, ["beta", "betazi", "theta"], variance)
        k = result.k_fe
        order = [*range(k), len(known) - 1, *range(k, len(known) - 1)]
        np.testing.assert_allclose(result.fitted.vcov, known[np.ix_(order, order)], rtol=1e-6, atol=1e-10)

    def test_parameters(self):
        result = counts()
        covariance = result.cov_re.to_numpy()
        np.testing.assert_array_equal(result.params, [*result.fe_params, *covariance[np.tril_indices(2)]])
        assert list(result.params.index) == ["Intercept", "x", "g Var", "g x x Cov", "x Var"]
        factor = np.zeros((2, 2))
        factor[np.tril_indices(2)] = result.theta[[0, 1, 2]]
        np.testing.assert_allclose(factor @ factor.T, covariance, rtol=1e-10)
        assert result.scale == 1.0
        np.testing.assert_allclose(result.tvalues, result.params / result.bse)
        np.testing.assert_allclose(result.pvalues, 2 * scipy.stats.norm.sf(np.abs(result.tvalues)), rtol=1e-12)
        limits = result.conf_int(0.1).to_numpy()
        half = scipy.stats.norm.ppf(0.95) * result.bse.to_numpy()
        np.testing.assert_allclose(limits.T, [result.params - half, result.params + half], rtol=1e-12)


def dense(result):
    """Henderson's equations of the working model at the modes, by hand: h M h' + z P z' for the model's rows."""
    eta, m = result.linear_predictor.to_numpy(), result.model.trials
    p = expit(eta)
    W, X, (term,) = m * p * (1 - p), result.model.exog, result.model.spec.terms
    Z = np.eye(len(term.levels))[term.codes]
    P = np.linalg.inv(Z.T @ (W[:, None] * Z) + np.eye(Z.shape[1]) / result.cov_re.iloc[0, 0])
    K = P @ Z.T @ (W[:, None] * X)
    h = X - Z @ K
    M = result.cov_params().to_numpy()[: X.shape[1], : X.shape[1]]
    return np.einsum("ij,jk,ik->i", h, M, h) + np.einsum("ij,jk,ik->i", Z, P, Z), W, P, M, K, h, Z


class TestIntervals:
    def test_of_the_predictor(self):
        """What is known of (beta, b) at the variance, and how the modes move with it, by modes at others beside it."""
        variance, *_, h, Z = dense(cows())
        table = cows().predict(kind="link", random_effects=True, interval="confidence", level=0.9)
        design, beta, psi = cows().model.design, cows().fe_params.to_numpy(), cows().cov_re.iloc[0, 0]

        def modes(psi):
            return np.asarray(jm.conditional_modes(beta, np.sqrt([psi]), 1.0, design)["1 | herd"])[:, 0]

        with jax.enable_x64(True):
            slope = Z @ (modes(psi + 1e-5) - modes(psi - 1e-5)) / 2e-5
        covariance = cows().cov_params().to_numpy()
        variance = variance + 2 * slope * (h @ covariance[:4, 4]) + slope**2 * covariance[4, 4]
        np.testing.assert_allclose(table["se"] ** 2, variance, rtol=1e-7)
        np.testing.assert_allclose(table["fit"], cows().linear_predictor, rtol=1e-12)
        np.testing.assert_allclose(table["upper"] - table["fit"], scipy.stats.norm.ppf(0.95) * table["se"], rtol=1e-9)

    def test_of_predictors_with_random_effects_against_r(self):
        """glmmTMB 1.1.5: predict(se.fit = TRUE), of the first rows of two models."""
        first = cows().predict(kind="link", random_effects=True, interval="confidence")["se"].iloc[:4]
        np.testing.assert_allclose(first, [0.37833013, 0.43020006, 0.44951077, 0.53248750], rtol=1e-4)
        first = counts().predict(kind="link", random_effects=True, interval="confidence")["se"].iloc[:4]
        np.testing.assert_allclose(first, [0.22848904, 0.30546129, 0.198136553, 0.256150333], rtol=1e-4)

    def test_without_random_effects(self):
        table = cows().predict({"period": ["p1", "p2"]}, "link", interval="confidence")
        X = np.array([[1, 0, 0, 0], [1, 1, 0, 0]])
        covariance = cows().cov_params().to_numpy()[:4, :4]
        np.testing.assert_allclose(table["se"] ** 2, np.diag(X @ covariance @ X.T), rtol=1e-10)

    def test_of_the_response(self):
        link = cows().predict(kind="link", random_effects=True, interval="confidence")
        table = cows().predict(random_effects=True, interval="confidence")
        p = expit(link["fit"])
        np.testing.assert_allclose(table["fit"], p, rtol=1e-12)
        np.testing.assert_allclose(table["se"], p * (1 - p) * link["se"], rtol=1e-10)
        np.testing.assert_allclose(table["lower"], expit(link["lower"]), rtol=1e-9)
        np.testing.assert_allclose(table["upper"], expit(link["upper"]), rtol=1e-9)

    def test_joint_covariance(self):
        _, _, P, M, K, _, _ = dense(cows())
        cross = -M @ K.T
        whole = np.block([[M, cross], [cross.T, P + K @ M @ K.T]])
        np.testing.assert_allclose(cows().vcov(full=True), whole, rtol=1e-8, atol=1e-12)

    def test_zero_inflation_counts(self):
        result, expected = reference("grouseticks_zip")
        new = result.model.spec.frame.iloc[[0, 150, 399]]
        known = covariance_in_variances(expected, ["beta", "betazi"], [])
        X = result.model.exog[[0, 150, 399]]
        Xz = result.model.spec.response.zero.columns[[0, 150, 399]]
        at = np.concatenate([result.fe_params, result.zero_params])
        k = result.k_fe

        def mean(parameters):
            return expit(-Xz @ parameters[k:]) * np.exp(X @ parameters[:k])

        slopes = numerical_slopes(mean, at)
        table = result.predict(new, interval="confidence")
        np.testing.assert_allclose(table["fit"], mean(at), rtol=1e-10)
        np.testing.assert_allclose(table["se"] ** 2, np.einsum("ki,ij,kj->k", slopes, known, slopes), rtol=1e-5)
        half = scipy.stats.norm.ppf(0.975) * table["se"] / table["fit"]
        np.testing.assert_allclose(table["upper"], table["fit"] * np.exp(half), rtol=1e-8)

    def test_of_categories(self):
        result = wine()
        table = result.predict({"temp": ["warm"], "contact": ["yes"]}, interval="confidence")
        slopes_in = np.concatenate([result.fe_params, result.thresholds])
        fitted, tril = result.fitted, np.tril(np.ones((4, 4)))
        gaps = np.append(1.0, np.exp(fitted.fit.kappa[1:]))
        order = [0, 1, *range(3, 7)]
        raw = fitted.vcov[np.ix_(order, order)]
        to_natural = np.eye(6)
        to_natural[2:, 2:] = tril * gaps[None]
        known = to_natural @ raw @ to_natural.T

        def probabilities(at):
            return np.diff([0.0, *expit(at[2:] - at[0] - at[1]), 1.0])

        slopes = numerical_slopes(probabilities, slopes_in)
        se = np.sqrt(np.einsum("ki,ij,kj->k", slopes, known, slopes))
        p = probabilities(slopes_in)
        np.testing.assert_allclose(table.xs("fit", axis=1, level=1).iloc[0], p, rtol=1e-9)
        np.testing.assert_allclose(table.xs("se", axis=1, level=1).iloc[0], se, rtol=1e-5)
        upper = expit(logit(p) + scipy.stats.norm.ppf(0.975) * se / (p * (1 - p)))
        np.testing.assert_allclose(table.xs("upper", axis=1, level=1).iloc[0], upper, rtol=1e-5)

    def test_prediction(self):
        result, frame = counts(), counts_frame()
        new = frame.iloc[[0, 1, 2]]
        table = result.predict(new, interval="prediction", n=20000, key=2, level=0.8)
        rng, X = np.random.default_rng(0), result.model.exog[:3]
        error = np.einsum("ij,jk,ik->i", X, result.cov_params().to_numpy()[:2, :2], X)
        variance = error + np.einsum("ij,jk,ik->i", X, result.cov_re.to_numpy(), X)
        eta = (
            X @ result.fe_params.to_numpy()
            + np.log(new["exposure"].to_numpy())
            + np.sqrt(variance) * rng.normal(size=(200000, 3))
        )
        size = np.exp(result.dispersion["Intercept"] + result.dispersion["w"] * new["w"].to_numpy())
        y = rng.poisson(rng.gamma(size, np.exp(eta) / size))
        np.testing.assert_allclose(table["lower"], np.quantile(y, 0.1, axis=0), atol=1)
        np.testing.assert_allclose(table["upper"], np.quantile(y, 0.9, axis=0), rtol=0.05, atol=1)
        # Given the modes only the joint error of coefficients and modes is added.
        given = result.predict(new, random_effects=True, interval="prediction", n=20000, key=2, level=0.8)
        link = result.predict(new, "link", random_effects=True, interval="confidence")
        mean = np.exp(link["fit"].to_numpy() + link["se"].to_numpy() * rng.normal(size=(200000, 3)))
        y = rng.poisson(rng.gamma(size, mean / size))
        np.testing.assert_allclose(given["upper"], np.quantile(y, 0.9, axis=0), atol=1)

    def test_prediction_of_successes(self):
        table = cows().predict(interval="prediction", key=1, n=4000)
        assert np.all((table["lower"] >= 0) & (table["upper"] <= 1) & (table["lower"] <= table["upper"]))
        shares = table["upper"].to_numpy() * cows().model.trials
        # Quantiles of 4000 draws lie between two of them at most.
        np.testing.assert_allclose(shares, np.round(shares), atol=0.5)
        with pytest.raises(jm.DataError, match="needs the numbers of trials of the new rows"):
            cows().predict({"period": ["p1"]}, interval="prediction")
        many = cows().predict({"period": ["p1"]}, interval="prediction", trials=[10_000], n=4000)
        p = expit(cows().fe_params.iloc[0] + np.sqrt(cows().cov_re.iloc[0, 0] + cows().bse.iloc[0] ** 2) * 1.96)
        assert many["upper"].iloc[0] == pytest.approx(p, rel=0.05)


def numerical_slopes(function, at):
    """Central differences (k, parameters) of a function (k,) of parameters."""
    steps = 1e-5 * np.eye(len(at))
    return np.column_stack([(function(at + step) - function(at - step)) / 2e-5 for step in steps])


def integral(mean, eta, variance):
    """The mean over a normal predictor, by adaptive quadrature."""
    sd = np.sqrt(variance)
    return integrate.quad(lambda z: mean(eta + sd * z) * scipy.stats.norm.pdf(z), -12, 12, epsabs=1e-12)[0]


def test_weights_that_are_negative_count():
    """Zeros that are likely to be of their own make a log density that is not concave."""
    result = ticks()
    y, eta = result.model.endog, result.linear_predictor.to_numpy()
    p = expit(result.model.spec.response.zero.columns @ result.zero_params.to_numpy())

    def log_density(eta):
        count = scipy.stats.poisson.logpmf(y, np.exp(eta))
        return np.log(np.where(y == 0, p, 0) + (1 - p) * np.exp(count))

    h = 1e-4
    weight = -(log_density(eta + h) - 2 * log_density(eta) + log_density(eta - h)) / h**2
    assert np.any(weight < -0.01)
    term = result.model.spec.terms[0]
    curvature = np.bincount(term.codes, weight) + 1 / result.cov_re.iloc[0, 0]
    np.testing.assert_allclose(result.ranef(cond_var=True)[1]["BROOD"].ravel(), 1 / curvature, rtol=1e-4)
    first = term.levels[0]
    assert result.random_effects_cov[first].iloc[0, 0] == pytest.approx(1 / curvature[0], rel=1e-4)
    assert np.all(np.isfinite(result.augment()[[".hat", ".cooksd", ".std.resid"]]))


class TestMarginal:
    def test_successes(self):
        new = {"period": ["p1", "p4"]}
        eta, variance = cows().predict(new, "link"), cows().cov_re.iloc[0, 0]
        found = cows().predict(new, "marginal")
        np.testing.assert_allclose(found, [integral(expit, each, variance) for each in eta], rtol=1e-9)

    def test_slopes_and_offset(self):
        new = counts_frame().head(5)
        X = np.column_stack([np.ones(5), new["x"]])
        variance = np.einsum("ij,jk,ik->i", X, counts().cov_re.to_numpy(), X)
        expected = new["exposure"] * np.exp(X @ counts().fe_params.to_numpy() + variance / 2)
        np.testing.assert_allclose(counts().predict(new, "marginal"), expected, rtol=1e-9)
        # With the modes of all terms nothing is left to average over.
        np.testing.assert_allclose(
            counts().predict(new, "marginal", random_effects=True),
            counts().predict(new, random_effects=True),
            rtol=1e-12,
        )

    def test_categories(self):
        new = {"temp": ["cold", "warm"], "contact": ["no", "yes"]}
        eta, variance = wine().predict(new, "link"), wine().cov_re.iloc[0, 0]
        found = wine().predict(new, "marginal")
        for row, each in enumerate(eta):
            below = [integral(lambda e, a=a: expit(a - e), each, variance) for a in wine().thresholds]
            np.testing.assert_allclose(found.iloc[row], np.diff([0, *below, 1]), rtol=1e-8)

    def test_interval(self):
        result = cows()
        at, known = result.params.to_numpy(), result.cov_params().to_numpy()
        X = np.array([[1, 0, 0, 0], [1, 0, 0, 1]])

        def mean(parameters):
            return np.array([integral(expit, x @ parameters[:4], parameters[4]) for x in X])

        slopes = numerical_slopes(mean, at)
        table = result.predict({"period": ["p1", "p4"]}, "marginal", interval="confidence")
        variance = np.einsum("ki,ij,kj->k", slopes, known, slopes)
        np.testing.assert_allclose(table["se"] ** 2, variance, rtol=1e-5)
        in_eta = np.array([integral(lambda e: expit(e) * expit(-e), x @ at[:4], at[4]) for x in X])
        reach = scipy.stats.norm.ppf(0.975) * np.sqrt(variance) / in_eta
        upper = [integral(expit, x @ at[:4] + far, at[4]) for x, far in zip(X, reach, strict=True)]
        np.testing.assert_allclose(table["upper"], upper, rtol=1e-5)

    def test_is_the_mean_of_simulated_responses(self):
        drawn = ticks().simulate(1000, key=3)
        expected = ticks().predict(kind="marginal")
        error = np.std(drawn, axis=0) / np.sqrt(len(drawn))
        z = (drawn.mean(axis=0) - expected) / error
        # Rows of a brood are correlated, the broods are not.
        assert np.mean(np.abs(z) < 3) > 0.97


class TestNewRows:
    def test_columns_that_means_do_not_depend_on(self):
        new = counts_frame().head(3)
        without = new.drop(columns="w")
        np.testing.assert_array_equal(counts().predict(without), counts().predict(new))
        with pytest.raises(jm.DataError, match="w"):
            counts().predict(without, interval="prediction")
        with pytest.raises(jm.DataError, match="exposure"):
            counts().predict(new.drop(columns="exposure"))

    def test_levels(self):
        new = {"period": ["p1"], "herd": ["none"]}
        with pytest.raises(jm.DataError, match="not among the levels of 'herd'"):
            cows().predict(new, random_effects=True)
        known = cows().predict(new, random_effects=True, new_levels="population")
        assert known.iloc[0] == cows().predict(new).iloc[0]

    def test_missing_values(self):
        new = counts_frame().head(3).assign(x=[0.5, np.nan, 1.0])
        found = counts().predict(new, "marginal", interval="confidence")
        assert found.isna().all(axis=1).tolist() == [False, True, False]

    def test_words(self):
        for words, message in (
            ({"kind": "mean"}, "use one of 'response', 'link'"),
            ({"interval": "credible"}, "use 'confidence', 'prediction'"),
            ({"new_levels": "drop"}, "use 'raise' or 'population'"),
            ({"kind": "link", "interval": "prediction"}, "a prediction interval is that of a new response"),
        ):
            with pytest.raises(jm.DataError, match=message):
                cows().predict(**words)
        with pytest.raises(jm.ModelError, match="is of successes or categories"):
            counts().predict(kind="probability")
        np.testing.assert_array_equal(cows().predict(kind="probability"), cows().predict())


class TestResiduals:
    def test_successes(self):
        y, m = cows().model.endog, cows().model.trials
        p = cows().fittedvalues.to_numpy()
        np.testing.assert_allclose(cows().resid, y / m - p, atol=1e-15)
        np.testing.assert_allclose(cows().residuals("pearson"), (y / m - p) / np.sqrt(p * (1 - p) / m), rtol=1e-10)
        np.testing.assert_allclose(cows().residuals("working"), (y / m - p) / (p * (1 - p)), rtol=1e-10)
        saturated = scipy.stats.binom.logpmf(y, m, y / m)
        lost = 2 * (saturated - scipy.stats.binom.logpmf(y, m, p))
        expected = np.sign(y / m - p) * np.sqrt(np.maximum(lost, 0))
        np.testing.assert_allclose(cows().residuals("deviance"), expected, atol=1e-7)

    def test_counts(self):
        y, mean = counts().model.endog, counts().fittedvalues.to_numpy()
        size = np.exp(counts().dispersion["Intercept"] + counts().dispersion["w"] * counts_frame()["w"].to_numpy())
        expected = (y - mean) / np.sqrt(mean + mean**2 / size)
        np.testing.assert_allclose(counts().residuals("pearson"), expected, rtol=1e-9)

    def test_quantile(self):
        y, m = cows().model.endog, cows().model.trials
        p = scipy.stats.norm.cdf(cows().residuals("quantile", key=0))
        binomial = scipy.stats.binom(m, cows().fittedvalues)
        assert np.all((binomial.cdf(y - 1) - 1e-9 <= p) & (p <= binomial.cdf(y) + 1e-9))
        share = (p - binomial.cdf(y - 1)) / binomial.pmf(y)
        assert scipy.stats.kstest(share, "uniform").pvalue > 0.01
        # With this key the stream is that of NumPy's generator of seed 0: data made by it must not come back in them.
        assert abs(np.corrcoef(share, np.random.default_rng(0).uniform(size=len(share)))[0, 1]) < 0.5
        assert not np.array_equal(p, scipy.stats.norm.cdf(cows().residuals("quantile", key=5)))

    def test_quantile_of_numbers(self):
        result, _ = reference("preselect_beta_disp")
        phi = np.exp(
            result.dispersion.iloc[0] + result.dispersion.iloc[1] * (result.model.spec.frame["south"] == "sTRUE")
        )
        mean = result.fittedvalues
        known = scipy.stats.beta.cdf(result.model.endog, mean * phi, (1 - mean) * phi)
        np.testing.assert_allclose(scipy.stats.norm.cdf(result.residuals("quantile")), known, atol=1e-9)

    def test_simulated(self):
        found = counts().residuals("simulated", key=2, simulations=99)
        drawn, y = counts().simulate(99, key=2), counts().model.endog
        low, high = np.sum(drawn < y, axis=0) / 100, np.sum(drawn <= y, axis=0) / 100 + 0.01
        assert np.all((low <= found) & (found <= high))
        # The model that the data are drawn from: uniform.
        assert scipy.stats.kstest(found, "uniform").pvalue > 0.01

    def test_refusals(self):
        with pytest.raises(jm.ModelError, match="categories have none; use 'quantile' or 'simulated'"):
            _ = wine().resid
        with pytest.raises(jm.DataError, match="use one of 'response', 'pearson'"):
            cows().residuals("student")
        with pytest.raises(jm.ModelError, match="does not have a deviance"):
            ticks().residuals("deviance")
        assert np.all(np.isfinite(wine().residuals("quantile")))


class TestTests:
    def test_coefficients(self):
        table = cows().test()
        np.testing.assert_allclose(table["z"], cows().tvalues.iloc[:4])
        np.testing.assert_allclose(table["p"], cows().pvalues.iloc[:4])
        np.testing.assert_allclose(
            cows().t_test("period[T.p2] = -1").tvalue, (table["estimate"].iloc[1] + 1) / table["se"].iloc[1]
        )

    def test_joint(self):
        L = np.eye(4)[1:]
        beta, covariance = cows().fe_params.to_numpy(), cows().cov_params().to_numpy()[:4, :4]
        chi2 = (L @ beta) @ np.linalg.solve(L @ covariance @ L.T, L @ beta)
        p = scipy.stats.chi2.sf(chi2, 3)
        for table in (cows().anova(), cows().anova(type=2), cows().test({"all": L})):
            assert table.iloc[0].tolist() == pytest.approx([chi2, 3, p], rel=1e-8)
        assert cows().wald_test(L).statistic == pytest.approx(chi2)
        assert cows().wald_test_terms(skip_single=True).statistic == pytest.approx([chi2])

    def test_terms_beside_thresholds(self):
        table = wine().anova()
        np.testing.assert_allclose(table["Chisq"], (wine().fe_params / wine().bse_fe) ** 2, rtol=1e-8)
        assert list(table.index) == ["temp", "contact"]

    @pytest.mark.parametrize("ddf", ["satterthwaite", "kenward-roger", "residual"])
    def test_degrees_of_freedom_are_refused(self, ddf):
        with pytest.raises(jm.ModelError, match="ddf='none', tests by the normal distribution"):
            cows().test(ddf=ddf)

    def test_drop1_and_compare(self):
        smaller = cows().model.update(". ~ . - period").fit()
        table = jm.compare(cows(), smaller, names=["period", "none"])
        dropped = cows().drop1()
        chisq = 2 * (cows().llf - smaller.llf)
        assert table["Chisq"].iloc[1] == pytest.approx(chisq)
        assert dropped.loc["period", "Chisq"] == pytest.approx(chisq, rel=1e-6)
        assert dropped.loc["period", "p"] == pytest.approx(scipy.stats.chi2.sf(chisq, 3), rel=1e-5)
        assert dropped["npar"].tolist() == [5, 2]

    def test_what_cannot_be_compared(self):
        frame = cows().model.spec.frame
        linear = jm.mixedlm("size ~ period + (1 | herd)", frame).fit()
        with pytest.raises(jm.ModelError, match="responses of different kinds, Binomial .logit. and normal"):
            jm.compare(cows(), linear)
        with pytest.raises(jm.DataError, match="different response"):
            jm.compare(cows(), cows().refit(cows().model.trials - cows().model.endog))
        cloglog, _ = reference("cbpp_cloglog")
        assert "Of different families" in jm.compare(cows(), cloglog).attrs["note"]

    def test_variance(self):
        sm = pytest.importorskip("statsmodels.api")
        y, m = cows().model.endog, cows().model.trials
        plain = sm.GLM(np.column_stack([y, m - y]), cows().model.exog, sm.families.Binomial()).fit()
        found = jm.test_variance(cows())
        assert found.statistic == pytest.approx(2 * (cows().llf - plain.llf), rel=1e-7)
        assert found.pvalue == pytest.approx(scipy.stats.chi2.sf(found.statistic, 1) / 2, rel=1e-6)

    def test_confint(self):
        limits = counts().confint(level=0.9)
        table, half = counts().further(), scipy.stats.norm.ppf(0.95)
        expected = table["estimate"] - half * table["se"]
        np.testing.assert_allclose(limits.loc[["disp_Intercept", "disp_w"], "lower"], expected, rtol=1e-12)
        assert limits.loc[["sd_Intercept|g", "cor_x.Intercept|g"]].isna().all(axis=None)
        assert list(wine().confint().index[-4:]) == ["1|2", "2|3", "3|4", "4|5"]


class TestTables:
    def test_tidy(self):
        table = ticks().tidy(["fixed", "ran_pars"], conf_int=True)
        assert table["component"].tolist() == ["cond"] * 4 + ["zi"] * 3 + ["cond"]
        np.testing.assert_allclose(table["estimate"][4:7], ticks().zero_params)
        np.testing.assert_allclose(table["std.error"][4:7], ticks().further()["se"])
        of_categories = wine().tidy()
        assert of_categories["coef.type"].tolist() == ["location"] * 2 + ["intercept"] * 4
        assert "component" not in cows().tidy()
        modes = cows().tidy("ran_vals")
        np.testing.assert_allclose(modes["std.error"] ** 2, cows().ranef(cond_var=True)[1]["herd"].ravel())

    def test_ratios(self):
        """Standard errors are slopes of the exponential, by differences; limits are those of the coefficients."""
        plain, ratios = (ticks().tidy(["fixed", "ran_pars"], conf_int=True, exponentiate=e) for e in (False, True))
        main = (plain["component"] == "cond") & (plain["effect"] == "fixed")
        for column in ("estimate", "conf.low", "conf.high"):
            np.testing.assert_allclose(ratios[column][main].astype(float), np.exp(plain[column][main].astype(float)))
        step = 1e-6 * plain["std.error"][main]
        slope = np.exp(plain["estimate"][main] + step) - np.exp(plain["estimate"][main] - step)
        np.testing.assert_allclose(ratios["std.error"][main], 1e6 * slope / 2, rtol=1e-6)
        pd.testing.assert_frame_equal(ratios[~main], plain[~main])
        assert ratios["statistic"].equals(plain["statistic"])
        for effects in ("ran_pars", "ran_vals"):
            pd.testing.assert_frame_equal(ticks().tidy(effects, exponentiate=True), ticks().tidy(effects))
        assert (wine().tidy(exponentiate=True)["estimate"] > 0).tolist()[:2] == [True, True]
        sleep = jm.datasets.load("sleepstudy")
        family = jm.families.Binomial(link="probit")
        probit = jm.mixedglm("slow ~ 1 + (1 | Subject)", sleep.assign(slow=sleep["Reaction"] > 300), family).fit()
        with pytest.raises(jm.ModelError, match="this link is 'probit'"):
            probit.tidy(exponentiate=True)

    def test_glance(self):
        row = cows().glance().iloc[0]
        assert "sigma" not in row
        assert row["deviance"] == cows().objective
        assert row["df.residual"] == cows().nobs - 5 == cows().df_resid

    def test_augment(self):
        table = cows().augment()
        variance, W, *_ = dense(cows())
        np.testing.assert_allclose(table[".hat"], W * variance, rtol=1e-8)
        np.testing.assert_allclose(table[".fitted"], cows().linear_predictor)
        np.testing.assert_allclose(table[".mu"], cows().fittedvalues)
        np.testing.assert_allclose(table[".resid"], cows().residuals("deviance"))
        # For a canonical link the working residual over its spread is Pearson's.
        pearson = cows().residuals("pearson") / np.sqrt(1 - table[".hat"])
        np.testing.assert_allclose(table[".std.resid"], pearson, rtol=1e-6)
        cooks = pearson**2 * table[".hat"] / (1 - table[".hat"]) / 4
        np.testing.assert_allclose(table[".cooksd"], cooks, rtol=1e-6)
        new = cows().augment(cows().model.spec.frame.head(2))
        np.testing.assert_allclose(new[".fitted"], table[".fitted"].head(2))
        assert {".probability", ".fitted", ".resid"} <= {*wine().augment().columns}

    def test_summary(self):
        text = str(ticks().summary())
        for line in ("Family:", "ZeroInflated(Poisson)", "Link:", "log", "ML (Laplace)", "Zero inflation (logit):"):
            assert line in text
        assert max(map(len, text.splitlines())) <= 80
        assert "Thresholds:" in str(wine().summary())
        assert "Dispersion (log):" in str(counts().summary())
        html, latex = wine()._repr_html_(), wine().summary().as_latex()
        assert html.count("<tr>") == 8 + 1 + 3 + 1 + 4
        assert r"\multicolumn{7}{l}{Thresholds}" in latex
        renamed = cows().summary(xname_fe=["a", "b", "c", "d"], title="Herds", yname="cases")
        assert list(renamed.tables[1].index) == ["a", "b", "c", "d", "herd Var"]

    def test_repr(self):
        assert repr(cows()).startswith(
            "<MixedGLMResults: cbind(incidence, size - incidence) ~ period + (1 | herd); Bin"
        )


class TestVarianceExplained:
    def test_successes(self):
        X, beta = cows().model.exog, cows().fe_params.to_numpy()
        fixed, random, residual = np.var(X @ beta, ddof=1), cows().cov_re.iloc[0, 0], np.pi**2 / 3
        found = cows().r2()
        assert found.marginal == pytest.approx(fixed / (fixed + random + residual))
        assert found.conditional == pytest.approx((fixed + random) / (fixed + random + residual))
        assert cows().icc().adjusted == pytest.approx(random / (random + residual))

    def test_counts(self):
        eta = counts().predict(kind="link")
        X = counts().model.exog
        fixed = np.var(X @ counts().fe_params.to_numpy(), ddof=1)
        random = np.mean(np.einsum("ij,jk,ik->i", X, counts().cov_re.to_numpy(), X))
        mean = np.exp(np.mean(eta) + (fixed + random) / 2)
        size = np.exp(counts().dispersion["Intercept"] + counts().dispersion["w"] * counts_frame()["w"])
        residual = np.mean(np.log1p(1 / mean + 1 / size))
        found = counts().r2()
        assert found.residual == pytest.approx(residual, rel=1e-9)
        assert found.random == pytest.approx(random, rel=1e-9)

    def test_principal_components(self):
        table = counts().re_pca()["g"]
        np.testing.assert_allclose(table["sd"] ** 2, np.linalg.eigvalsh(counts().cov_re)[::-1], rtol=1e-9)


class TestResponses:
    def test_simulate(self):
        drawn = cows().simulate(3000, key=1, random_effects="conditional")
        p, m = cows().fittedvalues.to_numpy(), cows().model.trials
        z = (drawn.mean(axis=0) - m * p) / np.sqrt(m * p * (1 - p) / 3000)
        assert np.all(np.abs(z) < 4.5)
        variance = drawn.var(axis=0) / (m * p * (1 - p))
        assert np.all(np.abs(variance - 1) < 0.2)

    def test_few_at_a_time(self):
        whole = counts().simulate(5, key=1)
        np.testing.assert_array_equal(whole[:2], counts().simulate(2, key=1))
        assert not np.array_equal(whole[0], whole[1])
        assert not np.array_equal(whole[0], counts().simulate(1, key=2)[0])

    def test_categories(self):
        drawn = wine().simulate(2000, key=1, random_effects="conditional")
        share = np.stack([np.mean(drawn == k, axis=0) for k in range(5)], axis=1)
        np.testing.assert_allclose(share, wine().fittedvalues, atol=0.06)

    def test_bootstrap(self):
        replicates = cows().bootstrap(6, key=1)
        again = cows().refit(cows().simulate(6, key=1)[2])
        names = ["Intercept", "period[T.p2]", "period[T.p3]", "period[T.p4]"]
        np.testing.assert_allclose(replicates.replicates.loc[2, names], again.fe_params, rtol=1e-6, atol=1e-8)
        sd = again.var_corr()["sdcor"].iloc[0]
        assert replicates.replicates.loc[2, "sd_Intercept|herd"] == pytest.approx(sd, rel=1e-5, abs=1e-6)
        assert replicates.estimates["sd_Intercept|herd"] == cows().var_corr()["sdcor"].iloc[0]
        assert list(cows().confint("bootstrap", n=6, key=1, which="Intercept").index) == ["Intercept"]

    def test_bootstrap_of_thresholds(self):
        replicates = wine().bootstrap(3, key=1)
        np.testing.assert_allclose(replicates.estimates[["1|2", "2|3", "3|4", "4|5"]], wine().thresholds)

    def test_refit(self):
        flipped = cows().refit(cows().model.trials - cows().model.endog)
        np.testing.assert_allclose(flipped.fe_params, -cows().fe_params, rtol=1e-6)
        with pytest.raises(jm.DataError, match="successes are whole numbers"):
            cows().refit(cows().model.endog + 0.5)

    def test_influence(self):
        found = cows().influence()
        assert found.group == "herd"
        without = cows().model.spec.frame.query("herd != '11'")
        alone = jm.mixedglm(cows().model.formula, without).fit()
        np.testing.assert_allclose(found.fixed.loc["11"], alone.fe_params, rtol=1e-5)
        moved = cows().fe_params - alone.fe_params
        np.testing.assert_allclose(found.dfbetas.loc["11"], moved / alone.bse_fe, rtol=1e-4)
        sd = alone.var_corr()["sdcor"].iloc[0]
        assert found.ran_pars.loc["11", "sd_Intercept|herd"] == pytest.approx(sd, rel=1e-4)


@dataclass(frozen=True)
class Exponential(jm.families.Family):
    """A family of a user's own."""

    link: str = ""
    links = ("log",)

    def log_density(self, y, eta, extras, trials):
        return -eta - y * jnp.exp(-eta)


def written(result, **words):
    file = io.BytesIO()
    result.save(file, **words)
    file.seek(0)
    return file


class TestFiles:
    @pytest.mark.parametrize("make", [cows, ticks, wine, counts])
    @pytest.mark.parametrize("remove_data", [False, True])
    def test_round_trip(self, make, remove_data):
        result = make()
        again = jm.load(written(result, remove_data=remove_data))
        assert type(again) is type(result)
        assert again.family == result.family
        new = result.model.spec.frame.head(4)
        pd.testing.assert_frame_equal(again.further(), result.further())
        np.testing.assert_array_equal(again.predict(new, "marginal"), result.predict(new, "marginal"))
        assert str(again.summary()) == str(result.summary())
        if not remove_data:
            np.testing.assert_array_equal(again.simulate(2, key=1), result.simulate(2, key=1))

    def test_without_rows(self):
        result = jm.load(written(counts()))
        known = result.predict(counts_frame().head(3), random_effects=True)
        result.remove_data()
        np.testing.assert_array_equal(result.predict(counts_frame().head(3), random_effects=True), known)
        for ask in (result.simulate, result.augment, lambda: result.resid, result.predict):
            with pytest.raises(jm.DataError, match="removed by remove_data"):
                ask()

    def test_kinds_are_not_mixed_up(self):
        linear = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).fit()
        with pytest.raises(jm.DataError, match="holds MixedLMResults, not MixedGLMResults"):
            jm.MixedGLMResults.load(written(linear))
        assert isinstance(jm.MixedGLMResults.load(written(cows())), jm.MixedGLMResults)


@pytest.mark.filterwarnings("ignore::jmixed.SingularWarning")
class TestOwnFamily:
    def result(self):
        rng = np.random.default_rng(0)
        frame = pd.DataFrame({"y": rng.exponential(size=200), "g": np.repeat(np.arange(20), 10)})
        return jm.mixedglm("y ~ 1 + (1 | g)", frame, Exponential()).fit()

    def test_says_what_it_lacks_and_keeps_what_it_has(self):
        result = self.result()
        for ask, what in (
            (lambda: result.fittedvalues, "a mean"),
            (lambda: result.simulate(1), "draws"),
            (lambda: result.residuals("quantile"), "a distribution function"),
            (result.r2, "a mean"),
        ):
            with pytest.raises(jm.ModelError, match=f"the family Exponential does not have {what}"):
                ask()
        assert result.predict(kind="link").shape == (200,)
        file = written(result)
        assert jm.load(file).family == Exponential()
        file.seek(0)
        with pytest.raises(jm.DataError, match="the family Exponential is a class of its own"):
            _loaded_elsewhere(file)


def _loaded_elsewhere(file):
    """Read where the class is not known: the names are those of the caller."""
    scope = {"load": jm.load, "file": file}
    exec("result = load(file)", scope)
    return scope["result"]


class TestAttributes:
    def test_what_linear_models_have(self):
        for name in ("sigma", "robust_cov", "residual_corr", "vcov_kenward_roger", "reml"):
            with pytest.raises(AttributeError, match=f"no attribute '{name}': "):
                getattr(cows(), name)
            assert not hasattr(cows(), name)
        with pytest.raises(AttributeError, match="no attribute 'nothing'$"):
            _ = cows().nothing

    def test_groups(self):
        modes = cows().ranef()["herd"]["Intercept"]
        assert cows().random_effects["1"].iloc[0] == modes["1"]
        covariance = cows().ranef(cond_var=True)[1]["herd"][0, 0, 0]
        first = modes.index[0]
        assert cows().random_effects_cov[first].iloc[0, 0] == pytest.approx(covariance, rel=1e-9)

    def test_references_have_their_formulas(self):
        assert set(FURTHER) <= set(REFERENCES)

    def test_log_density_is_that_of_scipy(self):
        mean = np.exp(counts().predict(kind="link", random_effects=True))
        size = np.exp(counts().dispersion["Intercept"] + counts().dispersion["w"] * counts_frame()["w"].to_numpy())
        y = counts().model.endog
        own = scipy.stats.nbinom.logpmf(y, size, size / (size + mean))
        by_hand = gammaln(y + size) - gammaln(size) - gammaln(y + 1)
        by_hand += size * np.log(size / (size + mean)) + y * np.log(mean / (size + mean))
        np.testing.assert_allclose(own, by_hand, rtol=1e-9)
