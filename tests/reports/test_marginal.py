"""Estimated marginal means, contrasts and slopes: against R's emmeans, and against what they are made of."""

import marginal_means
import numpy as np
import pandas as pd
import pytest
import references
from generalized import counts, counts_frame, wine
from scipy.special import expit
from scipy.stats import norm

import jmixed as jm
from jmixed.reports.marginal import SCALES

SAMPLE = ("cake_factorial", "cake_covariate", "tvbo_unbalanced", "ergostool", "ham_missing_cell", "arabidopsis_nested")
SAMPLE += ("sleepstudy_log", "cbpp")


@pytest.mark.parametrize("name", SAMPLE)
def test_as_emmeans(name):
    marginal_means.check(name)


@pytest.fixture(scope="module")
def cake():
    return jm.mixedlm("angle ~ recipe * temp + (1 | recipe:replicate)", jm.datasets.load("cake")).fit()


@pytest.fixture(scope="module")
def yes():
    data = jm.datasets.load("sleepstudy")
    data["slow"], data["half"] = data["Reaction"] > 300, np.where(data["Days"] > 4, "late", "early")
    return jm.mixedglm("slow ~ half + (1 | Subject)", data, family="binomial").fit()


def test_means_are_tests_of_columns(cake):
    means = cake.emmeans("recipe", at={"temp": 200}, ddf="kenward-roger").frame
    L = cake.columns({"recipe": ["A", "B", "C"], "temp": 200.0})
    assert list(L.columns) == list(cake.fe_params.index)
    tested = cake.test(L.to_numpy()[[1]], ddf="kenward-roger").iloc[0]
    np.testing.assert_allclose(means.loc[1, ["estimate", "se", "df"]].astype(float), tested[["estimate", "se", "df"]])
    np.testing.assert_allclose(means["estimate"], cake.predict({"recipe": ["A", "B", "C"], "temp": 200.0}))


def test_marginal_means_are_those_of_the_population(yes):
    """Averaged by Gauss-Hermite quadrature of our own, and its standard error from finite differences."""
    frame = yes.emmeans("half", kind="marginal").frame
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()

    def mean(parameters, x):
        eta = parameters[0] + parameters[1] * x + np.sqrt(parameters[2]) * nodes
        return weights @ (1 / (1 + np.exp(-eta)))

    at, V = yes.params.to_numpy(), yes.cov_params().to_numpy()
    for row, x in zip(frame.itertuples(), (0, 1), strict=True):
        slope = [(mean(at + step, x) - mean(at - step, x)) / 2e-5 for step in 1e-5 * np.eye(3)]
        np.testing.assert_allclose(row.estimate, mean(at, x), rtol=1e-9)
        np.testing.assert_allclose(row.se, np.sqrt(slope @ V @ slope), rtol=1e-4)
        assert 0 < row.lower < row.estimate < row.upper < 1
    difference = yes.contrasts("half", kind="marginal").loc[0]
    np.testing.assert_allclose(difference["estimate"], frame["estimate"][0] - frame["estimate"][1], rtol=1e-12)
    np.testing.assert_allclose(difference["p"], 2 * norm.sf(abs(difference["z"])), rtol=1e-9)


def of_wine(parameters, averaged):
    """Probabilities (4, 5) of the categories by temp and contact, at coefficients, the variance, and four parameters of
    the thresholds: the first, and the logarithms of their distances.
    """
    thresholds = np.cumsum([parameters[3], *np.exp(parameters[4:])])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    eta = np.array([0, 1, 0, 1]) * parameters[0] + np.array([0, 0, 1, 1]) * parameters[1]
    b = np.sqrt(parameters[2]) * nodes if averaged else np.zeros(60)
    below = expit(thresholds - eta[:, None, None] - b[:, None])
    whole = np.concatenate([np.zeros((4, 60, 1)), below, np.ones((4, 60, 1))], axis=2)
    return np.einsum("gnj,n->gj", np.diff(whole, axis=2), weights)


@pytest.mark.parametrize("kind", ["probability", "marginal"])
def test_probabilities_of_categories(kind):
    """From the definition, and standard errors from finite differences; a contrast likewise."""
    result, averaged = wine(), kind == "marginal"
    at, V = np.concatenate([result.params, result.fitted.fit.kappa]), result.fitted.vcov
    np.testing.assert_allclose(np.cumsum([at[3], *np.exp(at[4:])]), result.thresholds, rtol=1e-12)

    def told(parameters):
        table = of_wine(parameters, averaged)
        # Over contact, with temp fastest.
        return np.array([table[[0, 2]].mean(axis=0), table[[1, 3]].mean(axis=0)]).T.ravel()

    J = np.array([(told(at + step) - told(at - step)) / 2e-5 for step in 1e-5 * np.eye(7)]).T
    means = result.emmeans("temp", kind=kind)
    frame = means.frame
    np.testing.assert_allclose(frame["estimate"], told(at), rtol=1e-9)
    np.testing.assert_allclose(frame["se"], np.sqrt(np.einsum("ki,ij,kj->k", J, V, J)), rtol=1e-5)
    assert frame["rating"].tolist() == [1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert np.all((frame["lower"] > 0) & (frame["lower"] < frame["estimate"]) & (frame["upper"] < 1))
    pairs = means.contrasts()
    assert pairs[["contrast", "rating"]].values.tolist() == [["cold - warm", k] for k in range(1, 6)]
    D = J[::2] - J[1::2]
    np.testing.assert_allclose(pairs["estimate"], told(at)[::2] - told(at)[1::2], rtol=1e-9)
    np.testing.assert_allclose(pairs["se"], np.sqrt(np.einsum("ki,ij,kj->k", D, V, D)), rtol=1e-5)
    high = result.emmeans(["rating"], by="temp", kind=kind).contrasts({"high": [0, 0, 0, 1, 1]})
    np.testing.assert_allclose(high["estimate"], told(at)[6:8] + told(at)[8:10], rtol=1e-9)
    # Named with others, the response takes its place among them, and the first is fastest.
    both = result.emmeans(["rating", "temp"], kind=kind).frame
    assert both.columns[:2].tolist() == ["rating", "temp"]
    np.testing.assert_allclose(both["estimate"], told(at).reshape(5, 2).T.ravel(), rtol=1e-9)


def test_probabilities_are_shares_of_draws():
    """The population's: shares of a million judges' ratings, each with four standard errors of room."""
    result, n = wine(), 10**6
    rng = np.random.default_rng(3)
    frame = result.emmeans("temp", at={"contact": "no"}, kind="marginal").frame
    for temp, eta in {"cold": 0.0, "warm": result.params["temp[T.warm]"]}.items():
        judges = rng.normal(0, np.sqrt(result.params["judge Var"]), n)
        drawn = np.searchsorted(result.thresholds, eta + judges + rng.logistic(size=n))
        shares = np.bincount(drawn, minlength=5) / n
        p = frame.loc[frame["temp"] == temp, "estimate"].to_numpy()
        assert np.all(np.abs(shares - p) < 4 * np.sqrt(p * (1 - p) / n))


def test_words_of_categories_keep_their_order():
    data = references.data("wine")
    words = ["none", "little", "some", "much", "all"]
    data["rating"] = pd.Categorical.from_codes(data["rating"].astype(int) - 1, words, ordered=True)
    result = jm.mixedglm("rating ~ temp + (1 | judge)", data, family="ordinal").fit()
    frame = result.emmeans("temp", kind="probability").frame
    assert frame["rating"].tolist() == [word for word in words for _ in range(2)]
    probabilities = result.predict({"temp": ["cold", "warm"]}, "probability")
    np.testing.assert_allclose(frame["estimate"], probabilities.to_numpy().T.ravel(), rtol=1e-12)


def test_adjusted_by_the_variance_of_the_model(cake):
    """True is the model's own standard deviation; to second order the mean of a lognormal, and of a logit."""
    log = jm.mixedlm("np.log(angle) ~ recipe + (1 | recipe:replicate)", jm.datasets.load("cake")).fit()
    plain, adjusted = (log.emmeans("recipe", kind="response", bias_adjust=how) for how in (False, True))
    variance = log.scale + log.cov_re.iloc[0, 0]
    np.testing.assert_allclose(adjusted.frame["estimate"], plain.frame["estimate"] * (1 + variance / 2), rtol=1e-12)
    np.testing.assert_allclose(plain.contrasts()["estimate"], adjusted.contrasts()["estimate"], rtol=1e-12)
    assert "sigma = 0.2" in str(adjusted)
    with pytest.raises(jm.ModelError, match="kind='response'"):
        cake.emmeans("recipe", bias_adjust=True)
    # Random slopes: the mean of their variance over the rows.
    result = counts()
    Z = np.column_stack([np.ones(result.nobs), counts_frame()["x"]])
    sigma = np.sqrt(np.mean(np.einsum("ij,jk,ik->i", Z, result.cov_re.to_numpy(), Z)))
    own, given = (result.emmeans("x", kind="response", bias_adjust=how).frame for how in (True, sigma))
    pd.testing.assert_frame_equal(own, given, rtol=1e-12)


def test_what_an_offset_is_held_at():
    frame = counts_frame()
    frame["hours"], frame["log_hours"] = np.linspace(1, 4, len(frame)), np.log(np.linspace(1, 4, len(frame)))
    stated = jm.mixedglm("y ~ x + offset(np.log(hours)) + (1 | g)", frame, family="poisson").fit()
    beside = jm.mixedglm("y ~ x + (1 | g)", frame, family="poisson", offset="log_hours").fit()
    assert "The offset is that of hours = 2.5." in str(stated.emmeans("x"))
    assert f"log_hours = {frame['log_hours'].mean():.4g}." in str(beside.emmeans("x", kind="marginal"))
    hour = stated.emmeans("x", at={"hours": 1, "x": 0}, kind="response")
    assert "hours = 1." in str(hour)
    np.testing.assert_allclose(hour.frame["estimate"], np.exp(stated.fe_params.iloc[0]), rtol=1e-12)


def test_what_a_transformed_response_is_brought_back_to():
    """R 4.2, emmeans 1.8.4: lmer(log(Reaction + 1) ~ Days + (1 | Subject), sleepstudy), type = "response"."""
    sleep, days = jm.datasets.load("sleepstudy"), {"Days": [0, 9]}
    sleep["rest"] = 600 - sleep["Reaction"]

    def means(left):
        return jm.mixedlm(f"{left} ~ Days + (1 | Subject)", sleep).fit().emmeans("Days", at=days, kind="response")

    for left in ("np.log(Reaction + 1)", "np.log(1 + Reaction)", "np.log1p(Reaction)"):
        np.testing.assert_allclose(means(left).frame["estimate"], [252.1602636, 341.4204909], rtol=1e-8)
    # Not the response itself, but what stands in the call, by name.
    turned, rest = means("np.log(600 - Reaction)"), means("np.log(rest)")
    np.testing.assert_allclose(turned.frame["estimate"], rest.frame["estimate"], rtol=1e-9)
    assert "to the scale of 600 - Reaction." in str(turned)
    assert "to the scale of the response." in str(rest)
    assert "On the scale of I(np.log(Reaction) - 1)." in str(means("np.log(Reaction) - 1"))


@pytest.mark.parametrize("name", ["Reaction", "yield", "reaction time", "Reaction.ms"])
def test_multiples_of_transformed_responses_and_columns_that_are_no_words_of_python(name):
    """The numbers are those of R 4.2, emmeans 1.8.4: lmer(2 * sqrt(Reaction) ~ Days + (1 | Subject), sleepstudy)."""
    sleep, days = jm.datasets.load("sleepstudy").rename(columns={"Reaction": name}), {"Days": [0, 9]}
    word = name if name.isidentifier() else f"`{name}`"

    def means(left, **how):
        model = jm.mixedlm(f"{left} ~ Days + (1 | Subject)", sleep, eval_env={"np": np})
        return model.fit().emmeans("Days", at=days, kind="response", **how)

    for left, error in ((f"2 * np.sqrt({word})", 2e-7), (f"np.sqrt({word})", 1e-7)):
        frame = means(left).frame
        np.testing.assert_allclose(frame["estimate"], [251.895971182, 343.528490124], rtol=1e-9)
        np.testing.assert_allclose(frame["se"], [8.9586570, 10.4619749], rtol=error)
    adjusted = means(f"2 * np.sqrt({word})", bias_adjust=1.3).frame
    np.testing.assert_allclose(adjusted["estimate"], [252.318471182, 343.950990124], rtol=1e-9)
    arcsin = means(f"np.arcsin(np.sqrt({word} / 600))")
    np.testing.assert_allclose(arcsin.frame["estimate"], [0.418385985, 0.577342818], rtol=1e-8)
    np.testing.assert_allclose(arcsin.frame["se"], [0.016338216, 0.016360992], rtol=1e-6)
    assert f"to the scale of {word} / 600." in " ".join(str(arcsin).split())


@pytest.mark.parametrize("name", [name for name in SCALES if name != "identity"])
def test_scales_have_their_derivatives(name):
    scale, x, step = SCALES[name], np.array([0.4, 1.3]), 1e-4
    for function, derivative in (
        (scale.inverse, scale.slope),
        (scale.slope, lambda x: scale.bends(x)[0]),
        (lambda x: scale.bends(x)[0], lambda x: scale.bends(x)[1]),
    ):
        central = (function(x + step) - function(x - step)) / (2 * step)
        np.testing.assert_allclose(derivative(x), central, rtol=1e-5, atol=1e-9)


def test_letters_say_what_the_tests_say():
    result = jm.mixedlm("diameter ~ sample + (1 | plate)", jm.datasets.load("penicillin")).fit()
    means = result.emmeans("sample")
    table, pairs = means.letters(), means.contrasts()
    assert table["estimate"].is_monotonic_increasing
    marks = dict(zip(table["sample"], table["letters"], strict=True))
    for row in pairs.itertuples():
        first, second = row.contrast.split(" - ")
        assert bool(set(marks[first]) & set(marks[second])) == (row.p >= 0.05)
    assert result.emmeans("sample").plot().get_xlabel() == "estimate, 95% intervals"


def test_what_a_reader_must_know_is_said(cake):
    outside = str(cake.emmeans("recipe", at={"temp": [175, 300]}))
    assert "temp = 300 lies outside the data (175 to 225)" in outside
    assert "Averaged over temp" in outside
    note = cake.contrasts("recipe", method="reference", adjust="tukey").attrs["note"]
    assert "these are adjusted by Sidak's" in note


def test_an_empty_cell_has_no_mean_and_it_is_said():
    data = references.data("ergostool")
    data["half"] = np.where(data["Subject"] < "S5", "early", "late")
    data = data[(data["Type"] != "T2") | (data["half"] != "late")]
    with pytest.warns(jm.RankWarning, match="left out"):
        result = jm.mixedlm("effort ~ Type * half + (1 | Subject)", data).fit()
    means = result.emmeans(["Type", "half"])
    assert "Not estimable, and NaN: T2 late." in str(means)
    assert means.frame["estimate"].isna().sum() == 1
    table = means.contrasts("consecutive", "bonferroni")
    assert "Not estimable, and NaN: T2 late - T1 late, T3 late - T2 late." in table.attrs["note"]
    assert means.letters().set_index(["Type", "half"]).loc[("T2", "late"), "letters"] == ""


def test_custom_contrasts_and_a_reference(cake):
    means = cake.emmeans("recipe")
    by_place = means.contrasts({"A against others": [1, -0.5, -0.5]})
    by_level = means.contrasts({"A against others": {"A": 1, "B": -0.5, "C": -0.5}})
    pd.testing.assert_frame_equal(by_place, by_level)
    assert means.contrasts("reference", reference="C")["contrast"].tolist() == ["A - C", "B - C"]
    np.testing.assert_allclose(by_place["t"] ** 2, cake.test(by_place_columns(cake))["t"] ** 2)


def test_a_single_mean_has_nothing_to_be_compared_with(cake):
    for method in ("pairwise", "reference", "consecutive", "poly"):
        with pytest.raises(jm.ModelError, match="one mean and nothing to compare it with"):
            cake.contrasts("temp", method, at={"temp": [200.0]})
    assert len(cake.contrasts("temp", "identity", at={"temp": [200.0]})) == 1


def by_place_columns(cake):
    rows = cake.columns({"recipe": ["A", "B", "C"], "temp": 200.0})
    return np.array([[1, -0.5, -0.5]]) @ rows.to_numpy()


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda r: r.emmeans("flour"), jm.ModelError, "'flour' is no predictor .* predictors are"),
        (lambda r: r.emmeans("recipe:replicate"), jm.ModelError, "'replicate' is no predictor"),
        (lambda r: r.emmeans("pairwise ~ recipe"), jm.ModelError, r"method to contrasts\(\)"),
        (lambda r: r.emmeans("recipe", at={"oven": 1}), jm.DataError, "at names 'oven', which is no predictor"),
        (lambda r: r.emmeans("recipe", at={"recipe": ["A", "D"]}), jm.DataError, "no level 'D'; its levels are"),
        (lambda r: r.emmeans("recipe", at={"temp": "hot"}), jm.DataError, "'temp' holds numbers"),
        (lambda r: r.emmeans("recipe", weights="fair"), jm.ModelError, "weights='fair'; use one of 'equal'"),
        (lambda r: r.emmeans("recipe", kind="marginal"), jm.ModelError, "responses with a family"),
        (lambda r: r.emmeans("recipe", kind="probability"), jm.ModelError, "responses in categories"),
        (lambda r: r.emmeans("recipe", kind="link", bias_adjust=0.5), jm.ModelError, "kind='response'"),
        (
            lambda r: r.emmeans("recipe", kind="response", bias_adjust=-1.0),
            jm.errors.ArgumentError,
            "bias_adjust is -1.0",
        ),
        (lambda r: r.contrasts("recipe", method="all"), jm.ModelError, "method='all'; use one of 'pairwise'"),
        (
            lambda r: r.contrasts("recipe", method={"a": [1, -1]}),
            jm.DataError,
            "'a' has 2 weights, .* 3 means: A, B, C",
        ),
        (lambda r: r.contrasts("recipe", method={"a": {"D": 1}}), jm.ModelError, "'a' names 'D'"),
        (lambda r: r.contrasts("recipe", method="reference", reference="Z"), jm.ModelError, "reference='Z'"),
        (lambda r: r.contrasts("recipe", method=["poly", "poly"]), jm.ModelError, "2 methods for 1 predictors"),
        (lambda r: r.contrasts("recipe", adjust="scheffe"), jm.ModelError, "adjust='scheffe'; use one of"),
        (lambda r: r.slopes("recipe"), jm.ModelError, "'recipe' has levels"),
        (lambda r: r.slopes("oven"), jm.ModelError, "'oven' is no predictor"),
    ],
)
def test_bad_input_is_refused(cake, call, error, message):
    with pytest.raises(error, match=message):
        call(cake)


def test_a_model_of_arrays_knows_no_factors(cake):
    result = jm.MixedLM(cake.model.endog, cake.model.exog, cake.model.spec.terms[0].codes).fit()
    with pytest.raises(jm.DataError, match="made of arrays, which know no factors"):
        result.emmeans("x")


def test_weights_that_are_missing_are_no_contrast():
    """They were said not to be estimable."""
    result = jm.mixedlm("score ~ Machine + (1 | Worker)", jm.datasets.load("machines")).fit()
    with pytest.raises(jm.DataError, match="the weights of 'c' are missing or infinite"):
        result.contrasts("Machine", method={"c": [1, np.nan, 0]})


def test_predictors_that_are_called_like_columns_of_the_tables_are_refused():
    """A factor called se lost its levels to the standard errors, without a word."""
    data = jm.datasets.load("cake").rename(columns={"recipe": "se", "replicate": "t"})
    data["letters"] = np.where(data["temp"] > 200, "hot", "cold")
    fit = jm.mixedlm("angle ~ se + C(t) + letters + (1 | se:t)", data).fit()
    with pytest.raises(jm.DataError, match=r"the predictor 'se' has the name of a column .*rename\(columns="):
        _ = fit.emmeans("se").frame
    means = fit.emmeans("letters", by="t")
    assert list(means.frame.columns[:2]) == ["letters", "t"]
    with pytest.raises(jm.DataError, match="the predictor 't' has the name"):
        means.contrasts()
    with pytest.raises(jm.DataError, match="the predictor 'letters' has the name"):
        fit.emmeans("letters").letters()
