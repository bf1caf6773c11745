"""Models as people state them: attributes, fits with held or penalised parameters, the likelihood, and what is refused.

Tests named after a number check the right behaviour where statsmodels 0.15.0 goes wrong.
"""

import copy
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pandas as pd
import polars as pl
import pytest
from scipy import optimize
from scipy.optimize import approx_fprime
from statsmodels.base import _penalties as penalties
from statsmodels.regression.mixed_linear_model import MixedLM as TheirModel
from statsmodels.regression.mixed_linear_model import MixedLMParams as TheirParams

import jmixed as jm


def school_data(seed=0, groups=20, rows=8):
    rng = np.random.default_rng(seed)
    school = np.repeat(np.arange(groups), rows)
    room = np.tile(np.repeat([0, 1], rows // 2), groups)
    x, z = rng.normal(size=(2, groups * rows))
    y = 1 + 2 * x + 1.5 * rng.normal(size=groups)[school] + rng.normal(size=groups)[school] * z
    y += rng.normal(size=2 * groups)[2 * school + room] + rng.normal(size=groups * rows)
    return pd.DataFrame({"y": y, "x": x, "z": z, "school": school, "room": room})


@pytest.fixture(scope="module")
def data():
    return school_data()


@pytest.fixture(scope="module")
def model(data):
    vc = {"room": "0 + C(room)"}
    return jm.mixedlm("y ~ x", data, groups="school", re_formula="~z", vc_formula=vc)


@pytest.fixture(scope="module")
def result(model):
    return model.fit()


@pytest.fixture(scope="module")
def slope():
    return jm.mixedlm("y ~ x + z", school_data(1), groups="school", re_formula="~z")


@pytest.fixture(scope="module")
def theirs(data):
    vc = {"room": "0 + C(room)"}
    return TheirModel.from_formula("y ~ x", data, groups="school", re_formula="~z", vc_formula=vc)


# Attributes.


def test_attributes_are_those_of_statsmodels(model, theirs):
    names = "k_fe k_re k_re2 k_vc nobs n_totobs n_groups exog_names endog_names group_labels use_sqrt"
    for name in names.split():
        assert getattr(model, name) == getattr(theirs, name), name
    for name in ("endog", "exog", "exog_re", "groups"):
        np.testing.assert_array_equal(getattr(model, name), getattr(theirs, name))
    for name in ("xnames", "exog_re_names", "exog_re_names_full", "vcomp_names", "param_names"):
        assert getattr(model.data, name) == getattr(theirs.data, name), name
    assert model.row_indices == theirs.row_indices
    for name in ("endog", "exog", "exog_re"):
        for own, other in zip(model.group_list(getattr(model, name)), getattr(theirs, f"{name}_li"), strict=True):
            np.testing.assert_allclose(own, other)


def test_variance_components_as_blocks(model, theirs):
    ours, reference = model.exog_vc, theirs.exog_vc
    assert ours.names == reference.names
    assert [[list(c) for c in k] for k in ours.colnames] == [[list(c) for c in k] for k in reference.colnames]
    for own, other in zip(ours.mats[0], reference.mats[0], strict=True):
        np.testing.assert_array_equal(own, other)


def test_repr_states_the_model(model, data):
    text = repr(model)
    for word in ("y ~ x", "re_formula='~z'", "0 + C(room)", "160 rows", "school: 20 levels"):
        assert word in text
    assert repr(jm.mixedlm("y ~ x + (z | school)", data)) == (
        "<MixedLM: y ~ x + (z | school); 160 rows; school: 20 levels>"
    )


def test_theta_names_follow_theta(model, result):
    names = ["school.Intercept", "school.z.Intercept", "school.z", "school:room.Intercept"]
    assert model.theta_names == names
    assert len(names) == len(result.theta)
    lower = np.linalg.cholesky(result.cov_re_unscaled.to_numpy())
    np.testing.assert_allclose(
        result.theta, [lower[0, 0], lower[1, 0], lower[1, 1], np.sqrt(result.vcomp[0]) / result.sigma]
    )


def test_bars_have_groups_when_the_factors_are_nested(data):
    nested = jm.mixedlm("y ~ x + (1 | school/room)", data)
    assert nested.n_groups == 20
    np.testing.assert_array_equal(nested.groups, data["school"])
    crossed = jm.mixedlm("y ~ x + (1 | school) + (1 | room)", data)
    with pytest.raises(jm.ModelError, match="crossed"):
        _ = crossed.groups


def test_names_in_formulas_are_those_of_the_caller(data):
    def twice(x):
        return 2 * x

    for call in (jm.mixedlm, jm.MixedLM.from_formula):
        assert call("y ~ twice(x)", data, groups="school").exog_names == ["Intercept", "twice(x)"]
        with pytest.raises(jm.JmixedError, match="twice"):
            call("y ~ twice(x)", data, groups="school", eval_env=-1)
        assert call("y ~ thrice(x)", data, groups="school", eval_env={"thrice": twice}).k_fe == 2


def test_a_grouping_factor_may_use_functions_of_the_caller(data):
    def coarse(x):
        return x // 2

    model = jm.mixedlm("y ~ x + (1 | coarse(school))", data)
    assert set(model.group_labels) == set((data["school"] // 2).tolist())


def test_eval_env_beyond_all_callers_is_refused_at_once(data):
    with pytest.raises(jm.FormulaError, match="not so many callers"):
        jm.mixedlm("y ~ x", data, groups="school", eval_env=10**18)


def test_eval_env_counts_callers(data):
    def inner(depth):
        return jm.mixedlm("y ~ twice(x)", data, groups="school", eval_env=depth)

    def outer(depth):
        def twice(x):
            return 2 * x

        assert twice(1) == 2
        return inner(depth)

    assert outer(1).k_fe == 2
    with pytest.raises(jm.JmixedError, match="twice"):
        outer(0)


def test_statement_touches_no_jax_and_no_data(data):
    before = data.copy(deep=True)
    with jax.log_compiles(), jax.checking_leaks():
        model = jm.mixedlm("y ~ x + (z | school)", data)
    assert "design" not in model.__dict__
    pd.testing.assert_frame_equal(data, before)


def test_polars_gives_the_same_model(data):
    ours = jm.mixedlm("y ~ x + (z | school)", pl.from_pandas(data))
    np.testing.assert_array_equal(ours.exog, jm.mixedlm("y ~ x + (z | school)", data).exog)


def test_redundant_columns_are_dropped_with_a_warning(data):
    with pytest.warns(jm.RankWarning, match=r"x2 left out"):
        model = jm.mixedlm("y ~ x + x2", data.assign(x2=3 * data["x"]), groups="school")
    assert model.exog_names == ["Intercept", "x"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"formula": "y ~ kind * x + (1 | school)"}, "^kind, kind:x left out: a factor with a single level"),
        ({"formula": "y ~ x + (kind | school)"}, "^kind left out"),
        ({"formula": "y ~ x + C(class)", "groups": "school"}, r"^C\(class\) left out"),
    ],
)
def test_a_term_without_columns_does_not_vanish_without_a_word(data, words, said):
    table = data.assign(kind="a").assign(**{"class": "b"})
    with pytest.warns(jm.RankWarning, match=said):
        assert jm.mixedlm(data=table, **words).exog_names == ["Intercept", "x"]


def test_unknown_words_are_refused(data):
    with pytest.raises(jm.ModelError, match="no argument 'cov_type'"):
        jm.mixedlm("y ~ x", data, groups="school", cov_type="HC0")
    with pytest.raises(jm.ModelError, match=r"no argument 'REML'; .* \.fit\(reml=False\)"):
        jm.mixedlm("y ~ x + (1 | school)", data, REML=False)
    with pytest.raises(jm.ModelError, match="no argument REML: write reml=True or reml=False"):
        jm.mixedlm("y ~ x + (1 | school)", data).fit(REML=False)
    with pytest.raises(jm.ModelError, match=r"limits\.md"):
        jm.mixedlm("y ~ x + (1 | school)", data, family="binomial")
    with pytest.raises(jm.ModelError, match="hasconst not permitted"):
        jm.MixedLM(data["y"], data[["x"]], data["school"], hasconst=True)


# Updating and keeping.


def test_update_states_another_formula_on_the_same_rows(data):
    broken = data.assign(w=1.0).astype({"x": float})
    broken.loc[[3, 5], "x"] = np.nan
    weights = np.linspace(1, 2, len(data))
    model = jm.mixedlm("y ~ x + (z | school)", broken, missing="drop", weights=weights)
    other = model.update(". ~ . + z")
    assert other.exog_names == ["Intercept", "x", "z"]
    assert other.nobs == len(data) - 2
    np.testing.assert_array_equal(other.weights, model.weights)
    assert model.update("y ~ 1 + (1 | school)").nobs == other.nobs
    assert model.update(["z", "(1 | school)"]).formula == "y ~ z + (1 | school)"
    with pytest.raises(jm.FormulaError, match="has no ~"):
        model.update("z")


def test_update_keeps_a_model_without_intercept_and_names_that_are_no_words(data):
    table = data.assign(**{"body mass": data["z"], "my group": data["school"]})
    model = jm.mixedlm("y ~ 0 + x + (`body mass` || `my group`/class)", table.assign(**{"class": data["room"]}))
    other = model.update(". ~ . + `body mass`")
    assert other.exog_names == ["x", "body mass"]
    assert [t.label for t in other.spec.terms] == [t.label for t in model.spec.terms]
    assert model.update(". ~ . + 1").exog_names == ["Intercept", "x"]
    assert other.update(". ~ . - x").exog_names == ["body mass"]
    assert jm.mixedlm("y ~ x - 1", data, groups="school").update(". ~ . - x").exog_names == []


def test_update_keeps_statsmodels_words_and_names(data):
    def twice(x):
        return 2 * x

    model = jm.mixedlm("y ~ twice(x)", data, groups="school", re_formula="~z")
    assert model.update(". ~ . + z").exog_names == ["Intercept", "twice(x)", "z"]
    assert model.update(re_formula="1").k_re == 1


def test_update_of_arrays_is_refused(data):
    with pytest.raises(jm.ModelError, match="made of arrays"):
        jm.MixedLM(data["y"], data[["x"]], data["school"]).update("y ~ 1")


def test_models_survive_pickle_and_deepcopy(model, result):
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert other.fit().llf == pytest.approx(result.llf, abs=1e-9)


# Arguments of fit.


@pytest.mark.parametrize("method", ["lbfgs", "bfgs", "CG", "nm", "powell", ["bfgs", "lbfgs"], "minimize", None])
def test_methods_reach_the_same_optimum(slope, method):
    assert slope.fit(method=method).objective == pytest.approx(slope.fit().objective, abs=1e-6)


def test_unknown_method_is_refused(slope):
    with pytest.raises(jm.ModelError, match="'trust-ncg'.*'newton' or 'lbfgs'"):
        slope.fit(method="trust-ncg")
    with pytest.raises(jm.ModelError, match="method is 5"):
        slope.fit(method=5)


def test_options_without_effect_warn(slope):
    with pytest.warns(FutureWarning, match="Arguments cov_type, use_t not used"):
        slope.fit(cov_type="HC0", use_t=True)
    with pytest.warns(FutureWarning, match="Argument eps without effect"):
        slope.fit(eps=1e-3)
    with pytest.warns(FutureWarning, match="niter_sa"):
        slope.fit(niter_sa=3)
    slope.fit(disp=True)


def test_start_values_in_every_form(slope):
    best = slope.fit()
    packed = best.params_object.get_packed(use_sqrt=True, has_fe=True)
    theirs = TheirParams.from_components(best.fe_params, best.cov_re_unscaled.to_numpy(), vcomp=np.zeros(0))
    for start in (packed, packed[3:], best.params_object, theirs, list(packed), pd.Series(packed)):
        again = slope.fit(start_params=start)
        assert again.objective == pytest.approx(best.objective, abs=1e-8)
        assert again.optimizer.iterations <= best.optimizer.iterations


@pytest.mark.parametrize("start", [np.ones(2), np.ones(7), np.ones((2, 3)), [np.nan] * 3, "start"])
def test_bad_start_values_are_refused(slope, start):
    with pytest.raises(jm.DataError, match="start_params"):
        slope.fit(start_params=start)


def test_statsmodels_positional_order_is_refused_clearly(slope):
    with pytest.raises(jm.ModelError, match="fit: reml is a ndarray"):
        slope.fit(np.ones(3))


def test_tracers_are_sent_to_the_pure_functions(data, slope):
    def objective(y):
        return jm.MixedLM(y, np.ones((len(data), 1)), data["school"]).fit().llf

    with pytest.raises(jm.DataError, match=r"jm\.estimate"):
        jax.grad(objective)(np.ones(len(data)))
    with pytest.raises(jm.DataError, match=r"jm\.estimate"):
        jax.grad(lambda params: slope.loglike(params))(np.ones(3))


def test_history_on_request(slope):
    assert slope.fit().hist is None
    (record,) = slope.fit(full_output=True, method="lbfgs").hist
    assert (record["method"], record["converged"], record["warnflag"]) == ("lbfgs", True, 0)
    assert record["fopt"] == pytest.approx(slope.fit().objective)


def test_stopping_early_warns_and_does_not_claim_convergence(slope):
    with pytest.warns(jm.ConvergenceWarning, match="MAX_ITERATIONS.*raise maxiter"):
        assert not slope.fit(maxiter=0).converged


@pytest.mark.parametrize("unit", [1e-9, 1e9])
def test_the_unit_of_the_weights_makes_no_fit_singular(unit):
    """Weights of 1 / se^2 may be huge where the response is small: sigma is then that of a row of weight one."""
    frame = school_data(1)
    fit = jm.mixedlm("y ~ x + z", frame, groups="school", re_formula="~z", weights=np.full(len(frame), unit)).fit()
    assert fit.converged
    assert not fit.singular


def test_singular_fit_warns_and_names_the_term():
    flat = school_data(3)
    flat["y"] = np.random.default_rng(99).normal(size=len(flat))
    flat["y"] -= flat.groupby("school")["y"].transform("mean")
    with pytest.warns(jm.SingularWarning, match=r"singular: '1 \| school' has"):
        result = jm.mixedlm("y ~ x + (1 | school)", flat).fit()
    assert result.converged
    assert result.singular


def test_held_zero_is_no_surprise_worth_a_warning():
    model = jm.mixedlm("y ~ x", school_data(), groups="school", vc_formula={"a": "0 + z", "b": "0 + C(room)"})
    start = jm.MixedLMParams.from_components(np.zeros(2), vcomp=[0.0, 1.0])
    free = jm.MixedLMParams.from_components(np.ones(2), vcomp=[0.0, 1.0])
    result = model.fit(start_params=start, free=free)
    alone = jm.mixedlm("y ~ x", school_data(), groups="school", vc_formula={"b": "0 + C(room)"}).fit()
    assert result.vcomp[0] == 0
    assert result.llf == pytest.approx(alone.llf, abs=1e-7)


# Held parameters.


def test_uncorrelated_random_effects(slope):
    free = jm.MixedLMParams.from_components(np.ones(3), np.eye(2))
    held, bars = slope.fit(free=free), jm.mixedlm("y ~ x + z + (z || school)", school_data(1)).fit()
    assert held.llf == pytest.approx(bars.llf, abs=1e-7)
    assert held.cov_re.iloc[1, 0] == 0
    np.testing.assert_allclose(np.diag(held.cov_re), np.diag(bars.cov_re), rtol=1e-5)
    np.testing.assert_allclose(held.bse.to_numpy()[[0, 1, 2, 3, 5]], bars.bse, rtol=1e-4)
    assert held.bse.iloc[4] == 0
    assert held.freepat.cov_re.tolist() == [[1, 0], [0, 1]]


def test_held_variance_stays_at_its_start(slope):
    free = jm.MixedLMParams.from_components(np.ones(3), np.array([[0, 1], [1, 1]]))
    start = jm.MixedLMParams.from_components(np.zeros(3), np.diag([0.7, 1.0]))
    result = slope.fit(free=free, start_params=start)
    assert result.cov_re_unscaled.iloc[0, 0] == pytest.approx(0.7, abs=1e-14)
    assert result.llf < slope.fit().llf
    score = slope.score(result.params_object)
    np.testing.assert_allclose(score[1:], 0, atol=1e-4)


def test_patterns_of_another_shape_are_refused(slope):
    with pytest.raises(jm.DataError, match="fe_params of shape"):
        slope.fit(free=jm.MixedLMParams.from_components(np.ones(2), np.eye(2)))
    with pytest.raises(jm.DataError, match="free has cov_re of shape"):
        slope.fit(free=jm.MixedLMParams.from_components(np.ones(3), np.eye(3)))
    with pytest.raises(jm.DataError, match="give a MixedLMParams"):
        slope.fit(free=[1, 0, 1])


# The likelihood.


@pytest.mark.parametrize("use_sqrt", [False, True])
@pytest.mark.parametrize("reml", [False, True])
@pytest.mark.parametrize("profile_fe", [False, True])
def test_likelihood_and_score_are_those_of_statsmodels(data, use_sqrt, reml, profile_fe):
    words = {"groups": "school", "re_formula": "~z", "vc_formula": {"room": "0 + C(room)"}, "use_sqrt": use_sqrt}
    ours, other = jm.mixedlm("y ~ x", data, **words), TheirModel.from_formula("y ~ x", data, **words)
    other.reml = reml
    other.cov_pen, other._freepat = None, None
    parts = {"fe_params": np.array([0.5, 1.0]), "cov_re": np.array([[2.0, 0.3], [0.3, 0.7]]), "vcomp": np.array([0.4])}
    mine, reference = jm.MixedLMParams.from_components(**parts), TheirParams.from_components(**parts)
    value = other.loglike(reference, profile_fe=profile_fe)
    for params in (mine, reference):
        assert ours.loglike(params, profile_fe=profile_fe, reml=reml) == pytest.approx(value, rel=1e-12)
        np.testing.assert_allclose(
            ours.score(params, profile_fe=profile_fe, reml=reml),
            other.score(reference.copy(), profile_fe=profile_fe),
            rtol=1e-8,
        )
    packed = mine.get_packed(use_sqrt=use_sqrt, has_fe=not profile_fe)
    assert ours.loglike(packed, profile_fe=profile_fe, reml=reml) == pytest.approx(value, rel=1e-12)
    numeric = approx_fprime(packed, lambda p: ours.loglike(p, profile_fe=profile_fe, reml=reml), 1e-7)
    np.testing.assert_allclose(ours.score(packed, profile_fe=profile_fe, reml=reml), numeric, rtol=1e-4, atol=1e-4)


def test_hessian_is_that_of_statsmodels_at_the_optimum(model, theirs, result):
    params = TheirParams.from_components(
        result.fe_params.to_numpy(), result.cov_re_unscaled.to_numpy(), vcomp=result.vcomp / result.scale
    )
    hessian, singular = model.hessian(params)
    np.testing.assert_allclose(hessian, theirs.hessian(params)[0], rtol=1e-6, atol=1e-6)
    assert singular is False


def test_hessian_is_exact_away_from_the_optimum():
    # statsmodels' leaves out a term that vanishes at the least-squares estimates.
    model = jm.mixedlm("y ~ x + z", school_data(1), groups="school", re_formula="~z", vc_formula=None)
    plain = jm.MixedLM(model.endog, model.exog, model.groups, model.exog_re, use_sqrt=False)
    params = jm.MixedLMParams.from_components([1.0, 2.0, 0.5], np.array([[2.0, 0.3], [0.3, 0.7]]))
    x = params.get_packed(use_sqrt=False, has_fe=True)

    def score(packed):
        return plain.score(packed, profile_fe=False)

    numeric = [(score(x + step) - score(x - step)) / 2e-5 for step in 1e-5 * np.eye(len(x))]
    np.testing.assert_allclose(plain.hessian(x)[0], numeric, rtol=1e-6, atol=1e-6)


def test_least_squares_and_scale_are_those_of_statsmodels(model, theirs, result):
    parts = (result.cov_re_unscaled.to_numpy() + 0.1, result.vcomp / result.scale)
    start = jm.MixedLMParams.from_components(np.zeros(2), parts[0], vcomp=parts[1])
    held = model.fit(do_cg=False, start_params=start)
    np.testing.assert_allclose(held.fe_params, theirs.get_fe_params(*parts)[0], rtol=1e-10)
    beta = result.fe_params.to_numpy() + 0.1
    for reml in (False, True):
        theirs.reml = reml
        assert model.get_scale(beta, *parts, reml=reml) == pytest.approx(theirs.get_scale(beta, *parts))


def test_score_leaves_its_argument_alone(model, result):
    params = jm.MixedLMParams.from_components(np.zeros(2), result.cov_re_unscaled, vcomp=result.vcomp)
    model.score(params)
    np.testing.assert_array_equal(params.fe_params, np.zeros(2))


def test_lengths_of_parameters_are_checked(model):
    for params in (np.ones(3), np.ones(5), np.ones((2, 3))):
        with pytest.raises(jm.DataError, match="give 4 .co.variances, or 2 fixed effects before them"):
            model.loglike(params)
    with pytest.raises(jm.DataError, match="no fixed effects"):
        model.loglike(np.ones(4), profile_fe=False)
    with pytest.raises(jm.DataError, match="group_list"):
        model.group_list(np.ones(3))


def test_predict_is_the_fixed_part(model, result, data):
    expected = model.exog @ result.fe_params.to_numpy()
    for params in (result.params, result.params_object, result.fe_params):
        np.testing.assert_allclose(model.predict(params), expected)
    np.testing.assert_allclose(model.predict(result.params, model.exog[:3]), expected[:3])
    with pytest.raises(jm.DataError, match="2 fixed effects"):
        model.predict(result.params, np.ones((3, 5)))


def test_draws_are_in_the_order_of_statsmodels(model, theirs, result):
    params = result.params.to_numpy()
    ours = model.get_distribution(result.params, result.scale, None)
    reference = theirs.get_distribution(params, result.scale, None)
    for state in (1, 2):
        np.testing.assert_allclose(
            ours.rvs(0, rng=np.random.RandomState(state)), reference.rvs(0, rng=np.random.RandomState(state))
        )
    np.testing.assert_array_equal(ours.rvs(rng=5), ours.rvs(rng=np.random.default_rng(5)))
    assert not np.array_equal(ours.rvs(), ours.rvs())


def test_draws_need_a_row_for_each_row(data, model):
    with pytest.raises(jm.DataError, match=r"exog has shape \(5, 2\), not 160 rows"):
        model.get_distribution(np.ones(model.k_params), 1.0, model.exog[:5])


def test_draws_of_bars_and_weights(data):
    bars = jm.mixedlm("y ~ x + (1 | school) + (1 | room)", data, weights=np.full(len(data), 1e12))
    drawn = bars.get_distribution([0, 0, 0.0, 0.0], 1.0).rvs(rng=1)
    assert np.abs(drawn).max() < 1e-4


# Penalties.


@pytest.mark.parametrize("reml", [True, False])
@pytest.mark.parametrize(
    "make", [penalties.L2, lambda: penalties.PseudoHuber(0.3), lambda: penalties.SCADSmoothed(0.5)]
)
def test_penalised_objective_is_at_its_optimum(slope, reml, make):
    penalty = make()
    penalty.alpha = 15.0
    result = slope.fit(fe_pen=penalty, reml=reml)
    free = slope.fit(reml=reml)
    best = result.params_object.get_packed(use_sqrt=True, has_fe=True)

    def objective(packed):
        return slope.loglike(packed, profile_fe=False, reml=reml) - penalty.func(packed[:3])

    assert result.converged
    assert result.llf == pytest.approx(objective(best), abs=1e-8)
    if not isinstance(penalty, penalties.SCAD):  # which leaves large coefficients alone
        assert np.abs(result.fe_params.iloc[1]) < np.abs(free.fe_params.iloc[1]) - 1e-3
    rng = np.random.default_rng(0)
    for size in (1e-3, 1e-1):
        for _ in range(20):
            assert objective(best + size * rng.normal(size=len(best)) * np.maximum(np.abs(best), 0.1)) < result.llf
    assert np.all(result.bse_fe < free.bse_fe * 1.5)


def test_heavy_penalty_shrinks_to_zero(slope):
    penalty = penalties.L2()
    penalty.alpha = 1e8
    np.testing.assert_allclose(slope.fit(fe_pen=penalty).fe_params, 0, atol=1e-4)


def test_covariance_penalty_is_at_its_optimum_and_leaves_the_boundary():
    flat = school_data(3)
    flat["y"] = flat["y"] - flat.groupby("school")["y"].transform("mean")
    model = jm.mixedlm("y ~ x", flat, groups="school")
    penalty = penalties.PSD(2.0)
    result = model.fit(cov_pen=penalty)
    root = np.sqrt(result.cov_re_unscaled.iloc[0, 0])

    def objective(root):
        return model.loglike([root]) - penalty.func(np.array([[root**2]]), None)

    assert result.llf == pytest.approx(objective(root), abs=1e-8)
    assert root > 1e-3
    assert max(objective(root * factor) for factor in (0.9, 0.99, 1.01, 1.1)) < result.llf


def test_penalty_with_a_held_coefficient(slope):
    penalty = penalties.L2()
    penalty.alpha = 5.0
    free = jm.MixedLMParams.from_components([1, 0, 1], np.ones((2, 2)))
    start = jm.MixedLMParams.from_components([0, 1.5, 0], np.eye(2))
    result = slope.fit(fe_pen=penalty, free=free, start_params=start)
    assert result.fe_params.iloc[1] == 1.5
    assert abs(result.fe_params.iloc[0]) < abs(slope.fit().fe_params.iloc[0])


def test_lasso_is_at_its_optimum(model):
    alpha = np.array([0.0, 30.0])
    result = model.fit_regularized(alpha=alpha)
    parts = (result.cov_re_unscaled, result.vcomp / result.scale)
    unpenalised = model.fit()

    def objective(beta):
        # The scale that weighs the residuals is that of the unpenalised fit.
        residual = model.get_scale(beta, *parts) * (model.nobs - 2) / unpenalised.scale
        return residual + alpha @ np.abs(beta)

    best = objective(result.fe_params)
    for step in (1e-3, 1e-2, 0.1):
        for direction in np.vstack([np.eye(2), -np.eye(2), [1, 1], [1, -1]]):
            assert objective(result.fe_params + step * direction) > best
    assert 0 < result.fe_params.iloc[1] < unpenalised.fe_params.iloc[1]


def test_lasso_zeroes_and_says_that_their_errors_are_unknown(slope):
    result = slope.fit_regularized(alpha=[0, 0, 1e6])
    assert result.fe_params.iloc[2] == 0
    assert np.isnan(result.bse_fe.iloc[2])
    assert np.all(np.isfinite(result.bse_fe.iloc[:2]))
    with_two = slope.update("y ~ x").fit()
    assert abs(result.fe_params.iloc[1] - with_two.fe_params.iloc[1]) < 0.1
    result.summary()


def test_lasso_on_bars(data):
    result = jm.mixedlm("y ~ x + (1 | school) + (1 | room)", data).fit_regularized(alpha=[0, 10.0])
    assert result.converged


def test_bad_penalties_are_refused(slope):
    with pytest.raises(jm.ModelError, match="'l1' or a Penalty object"):
        slope.fit_regularized(method="l2")
    with pytest.raises(jm.ModelError, match="methods func"):
        slope.fit_regularized(method=3)
    for alpha in (-1.0, [1.0, 2.0], np.nan):
        with pytest.raises(jm.DataError, match="alpha is"):
            slope.fit_regularized(alpha=alpha)


def test_penalty_objects_stay_as_they_are(slope):
    penalty = penalties.L2()
    slope.fit_regularized(penalty, alpha=7.0)
    assert penalty.alpha == 1.0


# Where statsmodels 0.15.0 goes wrong.


def test_b2_subset_selects_rows(data):
    chosen = data["school"] < 10
    assert jm.mixedlm("y ~ x", data, groups="school", subset=chosen).nobs == chosen.sum()
    assert jm.mixedlm("y ~ x", data, groups="school", subset=[0, 1, 2, 8, 9, 10, 17, 18]).nobs == 8


def test_b3_regularised_fits_of_data_frames(data, model):
    arrays = jm.MixedLM(data["y"].to_numpy(), model.exog, data["school"].to_numpy())
    frames = jm.mixedlm("y ~ x", data, groups="school")
    np.testing.assert_allclose(
        frames.fit_regularized(alpha=5.0).fe_params, arrays.fit_regularized(alpha=5.0).fe_params, rtol=1e-8
    )


def test_b5_do_cg_false_gives_results_at_the_start(model, theirs, result):
    start = jm.MixedLMParams.from_components(np.zeros(2), np.array([[2.0, 0.5], [0.5, 1.0]]), vcomp=[0.3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        at = model.fit(do_cg=False, start_params=start)
    np.testing.assert_allclose(at.cov_re_unscaled, start.cov_re, atol=1e-12)
    np.testing.assert_allclose(at.vcomp / at.scale, start.vcomp)
    np.testing.assert_allclose(at.fe_params, theirs.get_fe_params(start.cov_re, start.vcomp)[0], rtol=1e-9)
    assert at.llf == pytest.approx(model.loglike(start), abs=1e-9)
    assert not at.converged
    assert at.llf < result.llf


def test_b6_use_sparse_changes_nothing(data, result):
    words = {"groups": "school", "re_formula": "~z", "vc_formula": {"room": "0 + C(room)"}}
    sparse = jm.mixedlm("y ~ x", data, use_sparse=True, **words)
    pd.testing.assert_series_equal(sparse.fit().fittedvalues, result.fittedvalues)
    assert sparse.get_distribution(result.params, 1.0).rvs(rng=0).shape == (160,)


def test_b7_arrays_with_missing_values(data):
    y = data["y"].to_numpy().copy()
    y[[0, 20]] = np.nan
    x, groups = data["x"].to_numpy(), data["school"].to_numpy()
    kept = np.isfinite(y)
    dropped = jm.MixedLM(y, x, groups, missing="drop").fit()
    assert dropped.llf == pytest.approx(jm.MixedLM(y[kept], x[kept], groups[kept]).fit().llf)
    with pytest.raises(jm.MissingDataError, match="2"):
        jm.MixedLM(y, x, groups)


def test_b9_a_result_does_not_change_when_the_model_is_fitted_again(data):
    model = jm.mixedlm("y ~ x", data, groups="school")
    first = model.fit()
    llf = first.llf
    second = model.fit(reml=False)
    assert first.llf == llf != second.llf


def test_b10_labels_do_not_depend_on_the_way_in(data):
    arrays = jm.MixedLM(data["y"], data[["x"]], data["school"]).fit()
    assert list(arrays.cov_re.index) == ["Group"]
    assert arrays.params.index[-1] == "Group Var"


def test_b11_only_the_intercept_is_named_after_the_group(data):
    model = jm.mixedlm("y ~ x", data.assign(MyInterceptVar=data["z"]), groups="school", re_formula="~MyInterceptVar")
    assert model.data.exog_re_names == ["school", "MyInterceptVar"]


def test_b12_quoted_names_and_missing_values(data):
    named = data.rename(columns={"x": "a b"})
    named.loc[3, "a b"] = np.nan
    assert jm.mixedlm("y ~ `a b`", named, groups="school", missing="drop").nobs == len(data) - 1


def test_b13_the_frame_keeps_all_columns(data):
    model = jm.mixedlm("y ~ x", data.assign(unused=1), groups="school", missing="drop")
    assert list(model.data.frame.columns) == [*data.columns, "unused"]


def test_b14_repeated_row_labels(data, result):
    repeated = data.set_axis(np.zeros(len(data), int))
    words = {"groups": "school", "re_formula": "~z", "vc_formula": {"room": "0 + C(room)"}}
    assert jm.mixedlm("y ~ x", repeated, **words).fit().llf == pytest.approx(result.llf)


def test_b15_parameters_are_counted_with_variance_components(model, result):
    assert model.k_params == len(result.params) == 6


def test_b16_likelihood_before_a_fit(data, result):
    words = {"groups": "school", "re_formula": "~z", "vc_formula": {"room": "0 + C(room)"}}
    fresh = jm.mixedlm("y ~ x", data, **words)
    assert fresh.loglike(result.params_object) == pytest.approx(result.llf, abs=1e-9)
    np.testing.assert_allclose(fresh.score(result.params_object), 0, atol=1e-4)


def test_b17_hessian_takes_the_layout_of_params(model, result):
    np.testing.assert_allclose(model.hessian(result.params)[0], model.hessian(result.params_object)[0], rtol=1e-9)


def test_b18_zero_covariance_is_least_squares(model, data):
    start = jm.MixedLMParams.from_components(np.zeros(2), np.zeros((2, 2)), vcomp=[0.0])
    beta = model.fit(do_cg=False, start_params=start).fe_params
    np.testing.assert_allclose(beta, np.linalg.lstsq(model.exog, model.endog)[0], rtol=1e-9)
    zero = jm.MixedLMParams.from_components(beta, np.zeros((2, 2)), vcomp=[0.0])
    assert np.isfinite(model.loglike(zero))
    assert model.hessian(zero)[1]


def test_b19_draws_without_correlated_random_effects(data):
    model = jm.mixedlm("y ~ x", data, groups="school", vc_formula={"room": "0 + C(room)"})
    assert model.get_distribution([0.0, 0.0, 1.0], 1.0).rvs(rng=0).shape == (160,)


def test_b20_a_held_coefficient_is_held(slope):
    free = jm.MixedLMParams.from_components([1, 0, 1], np.ones((2, 2)))
    start = jm.MixedLMParams.from_components([0, 1.5, 0], np.eye(2))
    held = slope.fit(free=free, start_params=start)
    data = school_data(1)
    known = jm.mixedlm("y ~ z + (z | school)", data, offset=1.5 * data["x"]).fit()
    assert held.fe_params.iloc[1] == 1.5
    assert held.bse_fe.iloc[1] == 0
    assert held.llf == pytest.approx(known.llf, abs=1e-8)
    np.testing.assert_allclose(held.fe_params.iloc[[0, 2]], known.fe_params, rtol=1e-7)


def test_b21_warnings_do_not_depend_on_the_unit_of_the_response(data):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for unit in (1e-6, 1.0, 1e6):
            jm.mixedlm("y ~ x + (z | school)", data.assign(y=unit * data["y"])).fit()


def test_b22_use_sqrt_does_not_change_the_fit(data, result):
    words = {"groups": "school", "re_formula": "~z", "vc_formula": {"room": "0 + C(room)"}}
    direct = jm.mixedlm("y ~ x", data, use_sqrt=False, **words).fit()
    assert direct.objective == pytest.approx(result.objective, rel=1e-13)
    assert np.linalg.eigvalsh(direct.cov_re)[0] >= 0


def test_b23_no_penalty_is_the_plain_fit(model, result):
    plain = model.fit_regularized(alpha=0)
    assert plain.llf == pytest.approx(result.llf, abs=1e-8)
    for name in ("fe_params", "cov_re", "vcomp", "scale", "bse", "aic"):
        np.testing.assert_allclose(getattr(plain, name), getattr(result, name), rtol=1e-6, err_msg=name)
    assert plain.summary() is not None


def test_b25_penalty_objects_penalise(slope):
    shrunk = slope.fit_regularized(penalties.L2(), alpha=200.0)
    assert np.linalg.norm(shrunk.fe_params) < 0.8 * np.linalg.norm(slope.fit().fe_params)


def test_deprecated_components_warn_and_fit(data):
    blocks = {"a": {g: rows[["z"]].to_numpy() for g, rows in data.groupby("school")}}
    with pytest.warns(FutureWarning, match="Using deprecated variance components format"):
        model = jm.MixedLM(data["y"], data[["x"]], data["school"], exog_vc=blocks)
    formula = jm.mixedlm("y ~ 0 + x", data, groups="school", vc_formula={"a": "0 + z"})
    assert model.fit().llf == pytest.approx(formula.fit().llf)


def test_mediation_of_statsmodels_finds_what_it_needs(data):
    kwds = jm.MixedLM(data["y"], data[["x", "z"]], data["school"])._get_init_kwds()
    again = jm.MixedLM(data["y"], data[["x", "z"]], **kwds)
    assert again.fit().llf == jm.MixedLM(data["y"], data[["x", "z"]], data["school"]).fit().llf


@pytest.mark.filterwarnings("ignore:the fit is singular:jmixed.SingularWarning")
@pytest.mark.parametrize(
    ("words", "objective"),
    [
        ("Reaction ~ 0 + b + (1 | Subject)", 1896.091459),
        ("Reaction ~ Days:b + (1 | Subject)", 1783.322513),
        ("Reaction ~ b/Days + (1 | Subject)", 1776.839797),
        ("Reaction ~ b + (0 + b | Subject)", 1895.670402),
    ],
)
def test_truth_values_are_two_categories_as_in_lme4(words, objective):
    sleep = jm.datasets.load("sleepstudy")
    assert jm.mixedlm(words, sleep.assign(b=sleep.Days % 3 == 1)).fit().objective == pytest.approx(objective, abs=1e-5)


def test_type_three_of_truth_values_is_that_of_lmertest():
    sleep = jm.datasets.load("sleepstudy")
    table = jm.mixedlm("Reaction ~ Days * b + (1 | Subject)", sleep.assign(b=sleep.Days % 3 == 1)).fit().anova()
    np.testing.assert_allclose(table["F"], [102.86308, 0.12652, 0.79229], rtol=1e-4)


def test_one_row_a_study_with_known_weights():
    """Molloy, O'Carroll and Ferguson (2014), from metafor: the criterion of lme4 without its checks, and of nlme."""
    r = [0.187, 0.162, 0.34, 0.32, 0.27, 0, 0.175, 0.05, 0.26, 0.01, -0.09, 0.37, 0, 0.15, 0.24, 0.04]
    n = [109, 749, 55, 107, 72, 65, 174, 326, 58, 771, 56, 91, 116, 537, 158, 65]
    studies = pd.DataFrame({"z": np.arctanh(r), "w": np.array(n) - 3.0, "study": np.arange(16)})
    fit = jm.mixedlm("z ~ 1 + (1 | study)", studies, weights="w").fit()
    assert fit.converged
    np.testing.assert_allclose(fit.objective, -14.78156886, rtol=1e-8)
    with pytest.raises(jm.ModelError, match="vary like the residual"):
        jm.mixedlm("z ~ 1 + (1 | study)", studies)


def test_two_visits_at_times_of_their_own():
    rng = np.random.default_rng(5)
    person, t = np.repeat(np.arange(60), 2), rng.uniform(0, 4, 120)
    y = 1 + rng.normal(size=60)[person] + (1 + rng.normal(size=60)[person]) * t + 0.5 * rng.normal(size=120)
    visits = pd.DataFrame({"y": y, "t": t, "person": person})
    fit = jm.mixedlm("y ~ t + (t | person)", visits).fit()
    assert fit.converged
    assert not fit.singular
    X, same = np.column_stack([np.ones(120), t]), person[:, None] == person[None]

    def criterion(parameters):
        a, b, c, log_sigma = parameters
        root = np.array([[a, 0], [b, c]])
        V = same * (X @ root @ root.T @ X.T) + np.exp(2 * log_sigma) * np.eye(120)
        inverse = np.linalg.inv(V)
        A = X.T @ inverse @ X
        rest = y - X @ np.linalg.solve(A, X.T @ inverse @ y)
        return np.linalg.slogdet(V)[1] + np.linalg.slogdet(A)[1] + rest @ inverse @ rest + 118 * np.log(2 * np.pi)

    best = optimize.minimize(criterion, [1, 0, 1, -0.7], method="BFGS")
    np.testing.assert_allclose(fit.objective, best.fun, rtol=1e-8)
    np.testing.assert_allclose(fit.sigma, np.exp(best.x[3]), rtol=1e-3)


def test_what_cannot_be_told_apart_is_flat_for_those_who_insist(data):
    rows = data.assign(row=np.arange(len(data)))
    model = jm.mixedlm("y ~ x + (1 | row)", rows, check="ignore")
    with pytest.warns(jm.ConvergenceWarning, match="FLAT"):
        assert model.fit().outcome == jm.Outcome.FLAT
    assert model.update(". ~ . + z").exog_names == ["Intercept", "x", "z"]


# A model does not change.


def test_a_model_cannot_be_changed(model):
    with pytest.raises(jm.ModelError, match="give reml= to fit, loglike"):
        model.reml = False
    with pytest.raises(jm.ModelError, match="state another model"):
        model.endog = model.endog + 1


def test_threads_that_fit_one_model_do_not_see_each_other(data):
    model = jm.mixedlm("y ~ x", data, groups="school")
    wanted = {reml: model.fit(reml=reml).llf for reml in (True, False)}
    params = model.fit().params_object
    assert model.fit(reml=False).llf != wanted[True]
    at = model.loglike(params)
    ways = [True, False] * 4
    with ThreadPoolExecutor(2) as pool:
        for reml, result in zip(ways, pool.map(lambda reml: model.fit(reml=reml), ways), strict=True):
            assert result.reml == reml
            assert result.llf == pytest.approx(wanted[reml], rel=1e-13)
    assert model.loglike(params) == at
    assert model.loglike(params, reml=False) != at


def test_estimates_know_by_what_they_were_estimated(data):
    model = jm.mixedlm("y ~ x", data, groups="school")
    for reml in (True, False):
        result = model.fit(reml=reml)
        params = result.params_object
        assert model.loglike(params) == pytest.approx(result.llf, abs=1e-9)
        assert model.loglike(params.copy()) == model.loglike(params)
        assert model.loglike(params, reml=not reml) != model.loglike(params)
        assert np.abs(model.score(params)).max() < 1e-4
    packed = params.get_packed(use_sqrt=True, has_fe=False)
    assert model.loglike(packed, reml=False) == pytest.approx(result.llf, abs=1e-9)
    assert model.loglike(packed) == pytest.approx(model.loglike(params, reml=True), abs=1e-9)


def test_results_are_those_of_the_rows_that_were_fitted_whatever_becomes_of_the_table():
    """They were those of other numbers: of a table that was standardised or put in order after the fit."""
    data = jm.datasets.load("sleepstudy")
    data["late"] = np.where(data["Days"] > 5, "late", "early")
    found = []
    for edits in (False, True):
        table = data.copy()
        result = jm.mixedlm("Reaction ~ Days * late + (1 | Subject)", table).fit()
        if edits:
            table["Days"] = (table["Days"] - table["Days"].mean()) / table["Days"].std()
            table.loc[:, "late"] = table["late"].to_numpy()[::-1]
            table["Reaction"] = 0.0
        rows = result.augment()
        np.testing.assert_allclose(rows["Reaction"], rows[".fitted"] + rows[".resid"], rtol=1e-12)
        later = result.model.update("Reaction ~ Days + (1 | Subject)").fit()
        tables = result.anova(), result.emmeans("late").frame, result.drop1()
        found.append([*(table.select_dtypes("number").to_numpy() for table in tables), later.objective])
    for untouched, edited in zip(*found, strict=True):
        np.testing.assert_allclose(edited, untouched, rtol=1e-7)
