"""Models of data in batches: the fit of the data in memory, and clear words for batches that cannot be used."""

import functools

import numpy as np
import pandas as pd
import pytest

import jmixed as jm
from jmixed.errors import DataError, FormulaError, MissingDataError, ModelError

SLEEP = jm.datasets.load("sleepstudy")


@functools.cache
def simulated():
    """Labels that are text, categories that come late, a calendar year, weights and an offset; sorted by category."""
    rng = np.random.default_rng(0)
    n = 600
    g = rng.integers(0, 60, n)
    data = pd.DataFrame({"g": [f"s{k:02d}" for k in g], "h": rng.integers(0, 7, n), "c": rng.choice(list("abcde"), n)})
    data["year"], data["w"], data["o"] = rng.integers(1990, 2021, n), rng.uniform(0.5, 2, n), 5 * rng.normal(size=n)
    slopes = rng.normal(size=(2, 60)) * [[2], [0.3]]
    data["y"] = 0.1 * data.year + slopes[0, g] + slopes[1, g] * (data.year - 2005) + data.o + rng.normal(size=n)
    data["y"] += rng.normal(size=7)[data.h]
    return data.sort_values("c", ignore_index=True)


CASES = {
    "slope": ("Reaction ~ Days + (Days | Subject)", SLEEP, {}),
    "independent": ("Reaction ~ I(Days > 4) + (Days || Subject)", SLEEP, {}),
    "statsmodels": ("np.log(Reaction) ~ np.log(Days + 1)", SLEEP, {"groups": "Subject", "re_formula": "~Days"}),
    "weights": ("y ~ year + c + (year | g)", simulated(), {"weights": "w", "offset": "o"}),
    "nested": ("strength ~ 1 + (1 | batch/cask)", jm.datasets.load("pastes"), {}),
    "crossed": ("y ~ year + offset(o) + (1 | g) + (1 | h)", simulated(), {"weights": "w"}),
}


@functools.cache
def fits(name):
    """The fit in memory, and that of batches over which every group is spread."""
    formula, data, words = CASES[name]
    batches = [data[:7], data[:0], data[7::2], data[8::2]]
    return jm.mixedlm(formula, data, **words).fit(), jm.from_batches(formula, batches, **words).fit()


@pytest.mark.parametrize("name", CASES)
def test_the_fit_is_that_of_the_data_in_memory(name):
    whole, batched = fits(name)
    assert batched.converged
    assert batched.nobs == whole.nobs
    np.testing.assert_allclose(batched.objective, whole.objective, rtol=1e-12)
    np.testing.assert_allclose(batched.theta, whole.theta, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(batched.sigma, whole.sigma, rtol=1e-9)
    assert list(batched.fe_params.index) == list(whole.fe_params.index)
    assert np.all(np.abs(batched.fe_params - whole.fe_params) < 1e-9 * whole.bse_fe)
    np.testing.assert_allclose(batched.bse_fe, whole.bse_fe, rtol=1e-9)
    # The information of a raw calendar year's slope has a condition number of 1e13: digits of its inverse are noise.
    if name != "weights":
        assert str(batched.summary()) == str(whole.summary())
    pd.testing.assert_frame_equal(batched.var_corr(), whole.var_corr(), rtol=1e-8)


@pytest.mark.parametrize("name", ["slope", "weights", "crossed"])
def test_what_follows_from_cross_products_is_the_same(name):
    whole, batched = fits(name)
    for ddf in ("satterthwaite", "kenward-roger"):
        pd.testing.assert_frame_equal(batched.test(ddf=ddf), whole.test(ddf=ddf), rtol=1e-7)
    for group, modes in whole.ranef().items():
        pd.testing.assert_frame_equal(batched.ranef()[group], modes, rtol=1e-7, atol=1e-8 * whole.sigma)
    new = CASES[name][1].iloc[::50]
    options = {"random_effects": True, "interval": "prediction"}
    pd.testing.assert_frame_equal(batched.predict(new, **options), whole.predict(new, **options), rtol=1e-8)


def test_random_effects_and_profiles_of_batches():
    whole, batched = fits("slope")
    for group, values in whole.random_effects.items():
        np.testing.assert_allclose(batched.random_effects[group], values, rtol=1e-7)
        np.testing.assert_allclose(batched.random_effects_cov[group], whole.random_effects_cov[group], rtol=1e-8)
    model, other = whole.model, batched.model
    np.testing.assert_allclose(other.hessian(whole.params)[0], model.hessian(whole.params)[0], rtol=1e-9, atol=1e-9)
    assert other.get_scale(whole.fe_params, whole.cov_re_unscaled, []) == pytest.approx(whole.scale, rel=1e-9)


def test_a_result_of_batches_can_be_kept(tmp_path):
    whole, batched = fits("slope")
    batched.save(tmp_path / "fit", remove_data=True)
    kept = jm.load(tmp_path / "fit")
    assert kept.nobs == 180
    np.testing.assert_allclose(kept.predict(SLEEP[:5]), whole.predict(SLEEP[:5]))


@pytest.mark.parametrize("attribute", ["fittedvalues", "resid"])
def test_what_needs_rows_says_so(attribute):
    batched = fits("slope")[1]
    with pytest.raises(DataError, match="needs the rows of the data"):
        getattr(batched, attribute)
    with pytest.raises(DataError, match=r"model\.endog needs the rows"):
        _ = batched.model.endog
    design = batched.model.design
    for function in (jm.take_groups, jm.estimate_many):
        with pytest.raises(DataError, match=f"{function.__name__} needs the rows of the data"):
            function(design, np.zeros((1, len(design.y))))
    for call in (batched.augment, batched.predict, batched.r2, lambda: batched.simulate(1, 0)):
        with pytest.raises(DataError, match="from_batches keeps their cross-products only"):
            call()


def test_parquet_files_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("jmixed.design.files.BATCH", 50)
    data = simulated().assign(c=pd.Categorical(simulated().c, categories=list("ecdab")))
    whole = jm.mixedlm("y ~ year + c + (1 | g)", data).fit()
    data[:350].to_parquet(tmp_path / "a.parquet", row_group_size=40)
    data[350:].to_parquet(tmp_path / "b.parquet")
    result = jm.from_batches("y ~ year + c + (1 | g)", tmp_path).fit()
    pd.testing.assert_series_equal(result.fe_params, whole.fe_params, rtol=1e-9)
    single = jm.from_batches("y ~ year + (1 | g)", str(tmp_path / "b.parquet"))
    assert single.nobs == 250
    content = (tmp_path / "b.parquet").read_bytes()
    (tmp_path / "b.parquet").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot be read as Parquet .*cut short"):
        jm.from_batches("y ~ year + (1 | g)", tmp_path / "b.parquet")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        jm.from_batches("y ~ year + (1 | g)", tmp_path)
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        jm.from_batches("y ~ year + (1 | g)", tmp_path / "missing.parquet")


def test_partitions_of_dask_are_put_together_as_a_tree():
    frame = pytest.importorskip("dask.dataframe", reason="an extra")
    formula, data, words = CASES["weights"]
    batched = jm.from_batches(formula, frame.from_pandas(data, npartitions=7), **words).fit()
    whole = fits("weights")[0]
    assert batched.objective == pytest.approx(whole.objective, rel=1e-12)
    np.testing.assert_allclose(batched.theta, whole.theta, rtol=1e-9, atol=1e-9)
    broken = data.assign(y=np.where(np.arange(600) == 599, np.inf, data.y))
    with pytest.raises(DataError, match="batch 6: y has 1 infinite values"):
        jm.from_batches("y ~ year + (1 | g)", frame.from_pandas(broken, npartitions=7))


def test_groups_of_one_row_and_redundant_columns():
    data = simulated().iloc[:200].assign(one=1.0)
    data["g"] = np.where(np.arange(200) < 80, np.arange(200).astype(str), data.g)
    formula = "y ~ year + one + c + I(2 * year) + (1 | g) + (0 + year | h)"
    with pytest.warns(jm.RankWarning, match="one, I"):
        whole = jm.mixedlm(formula, data).fit()
    with pytest.warns(jm.RankWarning, match="one, I"):
        model = jm.from_batches(formula, [data[:90], data[90:]])
    result = model.fit()
    assert result.objective == pytest.approx(whole.objective, rel=1e-12)
    np.testing.assert_allclose(result.fe_params, whole.fe_params, atol=1e-9 * whole.bse_fe.max())


def test_missing_values_are_left_out_or_refused():
    data = simulated().copy()
    data.loc[[3, 77, 300], "year"] = np.nan
    data.loc[5, "g"] = None
    data.loc[data.index[400:410], "y"] = np.nan
    formula, batches = "y ~ np.log(year - 1989.0) + (1 | g)", lambda: iter([data[:400], data[400:410], data[410:]])
    with pytest.raises(MissingDataError, match=r"batch 0: 4 of 400 rows"):
        jm.from_batches(formula, batches)
    whole, batched = jm.mixedlm(formula, data, missing="drop"), jm.from_batches(formula, batches, missing="drop")
    assert batched.nobs == whole.nobs
    assert batched.fit().objective == pytest.approx(whole.fit().objective, rel=1e-12)


def test_rows_of_a_design_from_batches_serve_the_array_functions():
    import jax

    whole, batched = fits("slope")
    with jax.enable_x64(True):
        found = jax.jit(jm.profiled_deviance)(whole.theta, batched.model.design)
    assert float(found) == pytest.approx(whole.objective, rel=1e-12)


def swapped(**columns):
    return [SLEEP[:90], SLEEP[90:].assign(**columns)]


BAD = {
    "iterator": (lambda: iter([SLEEP]), DataError, "list_iterator, which can be gone through only once"),
    "one table": (lambda: SLEEP, DataError, "batches is one DataFrame: use mixedlm"),
    "number": (lambda: 3, DataError, "batches is a int; it must be a list of tables"),
    "no rows": (lambda: [SLEEP[:0]], DataError, "batches have no rows"),
    "nothing": (lambda: [], DataError, "batches have no rows"),
    "not a table": (lambda: [SLEEP, 7], DataError, "batch 1: data is a builtins.int"),
    "column": (lambda: [SLEEP[:90], SLEEP[90:].drop(columns="Days")], DataError, "batch 1: .*'Days', which is not"),
    "text": (lambda: swapped(Days="x"), DataError, "batch 1: .*'Days' holds text, but numbers in the first batch"),
    "infinite": (lambda: swapped(Days=np.inf), DataError, "batch 1: Days has 90 infinite values"),
    "constant": (lambda: [SLEEP.assign(Reaction=1.0)], DataError, "constant .1 in all 180 rows"),
    "one group": (lambda: [SLEEP.assign(Subject="a")], ModelError, "has one level"),
}


@pytest.mark.parametrize("name", BAD)
def test_batches_that_cannot_be_used(name):
    batches, error, message = BAD[name]
    with pytest.raises(error, match=message):
        jm.from_batches("Reaction ~ Days + (1 | Subject)", batches())


def test_batches_with_other_categories_or_other_rows():
    data = simulated()
    batches = [part.assign(c=part.c.astype("category")) for part in (data[:300], data[300:])]
    with pytest.raises(DataError, match=r"batch 1: the categories of 'c' are .* those of the first batch"):
        jm.from_batches("y ~ c + (1 | g)", batches)
    # Labels of groups are compared as values.
    labels = [part.assign(g=part.g.astype("category")) for part in (data[:300], data[300:])]
    assert jm.from_batches("y ~ year + (1 | g)", labels).nobs == 600
    passes = iter([[data], [data[:300]], [data]])
    with pytest.raises(DataError, match="found other data than the first"):
        jm.from_batches("y ~ year + (1 | g)", lambda: next(passes))


@pytest.mark.parametrize("term", ["center(year)", "bs(year, df=4)", "I(year - year.mean())", "poly(year, 2)"])
def test_transforms_of_a_whole_column_are_refused(term):
    with pytest.raises(FormulaError, match="needs the whole column at once"):
        jm.from_batches(f"y ~ {term} + (1 | g)", [simulated()[:300], simulated()[300:]])


def test_words_that_batches_do_not_take():
    with pytest.raises(ModelError, match="takes no vc_formula"):
        jm.from_batches("y ~ 1", [simulated()], groups="g", vc_formula={"h": "0 + C(h)"})
    with pytest.raises(DataError, match="weights is a ndarray; it must be the name of a column"):
        jm.from_batches("y ~ 1 + (1 | g)", [simulated()], weights=np.ones(600))
    with pytest.raises(DataError, match="missing is 'x'"):
        jm.from_batches("y ~ 1 + (1 | g)", [simulated()], missing="x")
