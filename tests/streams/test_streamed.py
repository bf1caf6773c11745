"""Models of data in batches: the fit of the data in memory, and clear words for batches that cannot be used."""

import functools
import io
import sys
import weakref

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


@functools.cache
def schools():
    """Classes within schools, whose labels repeat, and treatments that cross them; few rows in each cell."""
    rng = np.random.default_rng(5)
    n = 240
    data = pd.DataFrame({"school": rng.integers(0, 12, n), "class": rng.integers(0, 4, n), "one": 1})
    data["arm"], data["x"], data["z"] = rng.choice(list("pqr"), n), rng.normal(size=n), rng.normal(size=n)
    effects, slopes = rng.normal(size=(12, 4)), rng.normal(size=12)
    data["y"] = (
        data.x
        + rng.normal(size=12)[data.school]
        + effects[data.school, data["class"]]
        + slopes[data.school] * data.z
        + rng.normal(size=n)
    )
    data["y"] += rng.normal(size=3)[data.arm.factorize()[0]] + rng.normal(size=4)[data["class"]]
    return data.assign(w=rng.uniform(0.5, 2, n), b=data.z > 0)


CASES = {
    "slope": ("Reaction ~ Days + (Days | Subject)", SLEEP, {}),
    "independent": ("Reaction ~ I(Days > 4) + (Days || Subject)", SLEEP, {}),
    "statsmodels": ("np.log(Reaction) ~ np.log(Days + 1)", SLEEP, {"groups": "Subject", "re_formula": "~Days"}),
    "weights": ("y ~ year + c + (year | g)", simulated(), {"weights": "w", "offset": "o"}),
    "nested": ("strength ~ 1 + (1 | batch/cask)", jm.datasets.load("pastes"), {}),
    "crossed": ("y ~ year + offset(o) + (1 | g) + (1 | h)", simulated(), {"weights": "w"}),
    "deep": ("y ~ x + (z || school) + (1 | class:arm)", schools(), {"weights": "w"}),
    "components": (
        "y ~ x",
        schools(),
        {"groups": "school", "re_formula": "1", "vc_formula": {"c": "0 + C(class)", "z": "0 + z"}},
    ),
    "only components": ("y ~ x", schools(), {"groups": "one", "vc_formula": {"c": "0+C(class)", "s": "0+C(school)"}}),
    "columns": ("y ~ x", schools(), {"groups": "school", "vc_formula": {"b": "1 + z", "c": "0 + C(class):x"}}),
    "truth": ("y ~ 0 + b:x + (0 + b | school)", schools(), {}),
    "ranks": ("y ~ x", schools(), {"groups": "school", "vc_formula": {"b": "C(class) + z"}, "weights": "w"}),
}


@functools.cache
def fits(name):
    """The fit in memory, and that of batches over which every group is spread and which come once."""
    formula, data, words = CASES[name]
    batches = iter([data[:7], data[:0], data[7::2], data[8::2]])
    return jm.mixedlm(formula, data, **words).fit(), jm.from_batches(formula, batches, **words).fit()


@pytest.mark.sweep(5)
@pytest.mark.parametrize("name", CASES)
def test_the_fit_is_that_of_the_data_in_memory(name):
    whole, batched = fits(name)
    assert batched.converged
    assert batched.nobs == whole.nobs
    np.testing.assert_allclose(batched.objective, whole.objective, rtol=1e-12)
    np.testing.assert_allclose(batched.theta, whole.theta, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(batched.sigma, whole.sigma, rtol=1e-9)
    assert list(batched.params.index) == list(whole.params.index)
    assert np.all(np.abs(batched.fe_params - whole.fe_params) < 1e-9 * whole.bse_fe)
    np.testing.assert_allclose(batched.bse_fe, whole.bse_fe, rtol=1e-9)
    # The information of a raw calendar year's slope has a condition number of 1e13: digits of its inverse are noise.
    if name != "weights":
        assert str(batched.summary()) == str(whole.summary())
    pd.testing.assert_frame_equal(batched.var_corr(), whole.var_corr(), rtol=1e-8)


@pytest.mark.parametrize("name", ["components", "columns", "ranks"])
def test_random_effects_of_components(name):
    whole, batched = fits(name)
    for group, values in whole.random_effects.items():
        pd.testing.assert_series_equal(batched.random_effects[group], values, rtol=1e-7, atol=1e-8 * whole.sigma)
    new = CASES[name][1].iloc[::40]
    pd.testing.assert_series_equal(
        batched.predict(new, random_effects=True), whole.predict(new, random_effects=True), rtol=1e-8
    )


def test_cells_of_few_rows_keep_every_digit():
    """Nine columns of which a row or two of a cell can tell no more than two apart."""
    data = schools()
    words = {"groups": "school", "re_formula": "1", "vc_formula": {"b": "C(class) + x", "a": "0 + C(arm) + z"}}
    models = jm.mixedlm("y ~ x + arm", data, **words), jm.from_batches("y ~ x + arm", [data[:90], data[90:]], **words)
    of_groups = []
    for model in models:
        spec = model.spec
        columns = np.column_stack([*(term.Z for term in spec.terms), spec.X, spec.y])
        products = np.zeros((12, columns.shape[1], columns.shape[1]))
        np.add.at(products, spec.terms[0].codes, columns[:, :, None] * columns[:, None])
        of_groups.append(products)
    whole, batched = of_groups
    size = np.sqrt(np.diagonal(whole.sum(axis=0)))
    q = sum(len(term.columns) for term in models[0].spec.terms)
    np.testing.assert_allclose(batched[:, :q] / size, whole[:, :q] / size, atol=1e-13 * size.max())
    scale = np.outer(size, size)
    np.testing.assert_allclose(batched.sum(axis=0) / scale, whole.sum(axis=0) / scale, atol=1e-14)


def test_a_column_of_zeros_explains_nothing():
    data = schools()[lambda d: (d.arm != "q") | (d["class"] != 2)]
    with pytest.warns(jm.RankWarning, match=r"C\(class\)\[T.2\]:arm\[T.q\] left out"):
        model = jm.from_batches("y ~ C(class) * arm + (1 | school)", [data[:100], data[100:]])
    with pytest.warns(jm.RankWarning, match=r"C\(class\)\[T.2\]:arm\[T.q\] left out"):
        whole = jm.mixedlm("y ~ C(class) * arm + (1 | school)", data)
    assert model.exog_names == whole.exog_names


@pytest.mark.sweep(1)
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
    for function, given in ((jm.take_groups, [0]), (jm.estimate_many, np.zeros((1, len(design.y))))):
        with pytest.raises(DataError, match=f"{function.__name__} needs the rows of the data"):
            function(design, given)
    for call in (batched.augment, batched.predict, batched.r2, lambda: batched.simulate(1, 0)):
        with pytest.raises(DataError, match="from_batches keeps their cross-products only"):
            call()


def test_parquet_files_are_read_in_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["jmixed.streams.reading"], "BATCH", 50)
    data = simulated().assign(c=pd.Categorical(simulated().c, categories=list("ecdab")))
    whole = jm.mixedlm("y ~ year + c + (1 | g)", data).fit()
    data[:350].to_parquet(tmp_path / "a.parquet", row_group_size=40)
    data[350:].to_parquet(tmp_path / "b.parquet")
    result = jm.from_batches("y ~ year + c + (1 | g)", tmp_path).fit()
    pd.testing.assert_series_equal(result.fe_params, whole.fe_params, rtol=1e-9)
    single = jm.from_batches("y ~ year + (1 | g)", str(tmp_path / "b.parquet"))
    assert single.nobs == 250
    pd.testing.assert_series_equal(
        jm.from_batches("y ~ year + c + (1 | g)", [tmp_path / "a.parquet", tmp_path / "b.parquet"]).fit().fe_params,
        result.fe_params,
    )


def parquet(folder, *frames):
    """A folder with a file for each table."""
    folder.mkdir(exist_ok=True)
    for number, frame in enumerate(frames):
        frame.to_parquet(folder / f"{number}.parquet")
    return folder


def test_folders_named_by_values_are_columns(tmp_path):
    data = simulated()
    data.to_parquet(tmp_path / "parts", partition_cols=["c"])
    model = jm.from_batches("y ~ year + c + (1 | g)", tmp_path / "parts")
    assert model.nobs == 600
    assert model.exog_names == jm.mixedlm("y ~ year + c + (1 | g)", data).exog_names


def test_files_of_whole_and_other_numbers_are_read_as_numbers(tmp_path):
    data = simulated()
    frames = data[:300].assign(o=data.o[:300].round().astype(int)), data[300:]
    model = jm.from_batches("y ~ o + (1 | g)", parquet(tmp_path, *frames))
    expected = jm.from_batches("y ~ o + (1 | g)", list(frames))
    np.testing.assert_array_equal(model.spec.y, expected.spec.y)
    np.testing.assert_array_equal(model.spec.X, expected.spec.X)


def cut(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    return path


def garbled(path):
    content = bytearray(path.read_bytes())
    content[200:4000] = b"?" * 3800
    path.write_bytes(bytes(content))
    return path


def lacking(data):
    return data[:300], data[300:].drop(columns="year")


BAD_FILES = {
    "cut": (lambda at, data: cut(parquet(at, data) / "0.parquet"), "cannot be read as Parquet .*cut short"),
    "one cut": (lambda at, data: cut(parquet(at, data, data) / "1.parquet").parent, "cannot be read as Parquet"),
    "garbled": (lambda at, data: garbled(parquet(at, data) / "0.parquet"), "cannot be read as Parquet"),
    "nowhere": (lambda at, data: at / "missing.parquet", "there is no such file or folder"),
    "empty": (lambda at, data: parquet(at / "empty"), "is a folder without files"),
    "column": (lambda at, data: parquet(at, *lacking(data)), "1.parquet: the model names the column 'year'"),
    "text": (lambda at, data: parquet(at, data, data.assign(year="x")), "1.parquet: the column 'year' holds .*string"),
    "label": (lambda at, data: parquet(at, data, data.assign(g=7)), "1.parquet: the column 'g' holds int64, but"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_cannot_be_used(name, tmp_path):
    make, message = BAD_FILES[name]
    with pytest.raises(DataError, match=message):
        jm.from_batches("y ~ year + (1 | g)", make(tmp_path, simulated()), missing="drop")


def test_datasets_and_tables_of_arrow():
    import pyarrow as pa
    import pyarrow.dataset as ds

    table = pa.Table.from_pandas(simulated())
    ways = [ds.dataset(table), table.to_batches(max_chunksize=100), table.to_reader(max_chunksize=100)]
    for way in ways:
        assert jm.from_batches("y ~ year + (1 | g)", way).nobs == 600


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
    some = frame.from_pandas(data, npartitions=6).map_partitions(lambda part: part[part.index > 250])
    assert jm.from_batches("y ~ year + (1 | g)", some).nobs == 349


def test_a_partition_of_dask_that_cannot_be_read(tmp_path):
    frame = pytest.importorskip("dask.dataframe", reason="an extra")
    read = frame.read_parquet(parquet(tmp_path, simulated()[:300], simulated()[300:]))
    cut(tmp_path / "1.parquet")
    with pytest.raises(DataError, match="a partition of the Dask DataFrame cannot be read"):
        jm.from_batches("y ~ year + (1 | g)", read)


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


@pytest.mark.parametrize("ending", ["good", "bad batch", "the iterator's own error", "no room"])
def test_an_iterator_leaves_nothing_behind(ending, monkeypatch):
    files, data = [], simulated()

    def temporary(**_):
        files.append(io.BytesIO())
        return files[-1]

    monkeypatch.setattr(sys.modules["jmixed.streams.reading"], "TemporaryFile", temporary)

    def tables():
        yield data[:300]
        if ending == "the iterator's own error":
            raise RuntimeError("connection lost")
        if ending == "no room":
            monkeypatch.setattr("pickle.dump", full)
        yield data[300:].assign(**({"year": "x"} if ending == "bad batch" else {}))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    def state():
        return jm.from_batches("y ~ year + (1 | g)", tables())

    if ending == "good":
        assert state().nobs == 600
    else:
        error, message = {
            "bad batch": (DataError, "batch 1: the column 'year' holds text"),
            "the iterator's own error": (RuntimeError, "connection lost"),
            "no room": (DataError, "temporary file failed .*No space left .*TMPDIR"),
        }[ending]
        with pytest.raises(error, match=message):
            state()
    assert [file.closed for file in files] == [True]


def test_tables_of_an_iterator_are_not_kept_in_memory():
    made, most, data = [], 0, simulated()

    def tables():
        nonlocal most
        for k in range(30):
            table = data[20 * k : 20 * k + 20].copy()
            made.append(weakref.ref(table))
            most = max(most, sum(one() is not None for one in made))
            yield table
            del table

    assert jm.from_batches("y ~ year + (1 | g)", tables()).nobs == 600
    assert most <= 4


@pytest.mark.parametrize("size", [1, 99])
def test_batches_may_be_cut_anywhere(size):
    data = simulated().iloc[::6]
    spec = jm.from_batches("y ~ year + c + (1 | g)", [data[k : k + size] for k in range(0, 100, size)]).spec
    whole = jm.mixedlm("y ~ year + c + (1 | g)", data)
    assert list(spec.exog_names) == whole.exog_names
    ours, theirs = np.column_stack([spec.X, spec.y]), np.column_stack([whole.exog, whole.endog])
    size = np.linalg.norm(theirs, axis=0)
    np.testing.assert_allclose(
        ours.T @ ours / np.outer(size, size), theirs.T @ theirs / np.outer(size, size), atol=1e-14
    )


@pytest.mark.parametrize("kind", [object, "string", "category"])
def test_text_of_every_kind(kind):
    """Text is of dtype object wherever pandas is older than version 3."""
    data = simulated().iloc[::2]
    words = "y ~ year + c + (1 | g)"
    columns = data.astype({"c": kind, "g": kind})
    batched = jm.from_batches(words, [columns[:100], columns[100:]]).fit()
    whole = jm.mixedlm(words, data).fit()
    np.testing.assert_allclose(batched.objective, whole.objective, rtol=1e-12)
    assert list(batched.fe_params.index) == list(whole.fe_params.index)
    new = columns.iloc[:3]
    np.testing.assert_allclose(batched.predict(new, random_effects=True), whole.fittedvalues.iloc[:3], rtol=1e-8)


def test_columns_that_the_model_does_not_use_may_differ():
    data = simulated()
    batches = [data[:300], pd.DataFrame(), data[300:][data.columns[::-1]].assign(more=1).drop(columns="w")]
    assert jm.from_batches("y ~ year + c + (1 | g)", batches).nobs == 600


def test_a_batch_without_usable_rows_is_passed_over():
    data = simulated()
    nothing, negative = data[200:300].assign(year=np.nan), data[300:400].assign(year=1000)
    batches = [data[:200].assign(c=None), nothing, negative, data[400:]]
    model = jm.from_batches("y ~ np.log(year - 1989) + c + (1 | g)", batches, missing="drop")
    assert model.nobs == 200
    assert jm.from_batches("y ~ year + (1 | g)", [nothing, data[300:]], missing="drop").nobs == 300
    with pytest.raises(MissingDataError, match="batch 1: 100 of 100 rows have missing values, in year"):
        jm.from_batches("y ~ year + (1 | g)", [data[:200], nothing])
    with pytest.raises(DataError, match="no rows for which the formula gives numbers"):
        jm.from_batches("y ~ np.log(0 * year - 1) + (1 | g)", [data], missing="drop")


def passes(*tables):
    """A function that returns other tables each time it is called; the first call only looks at the columns."""
    coming = iter([tables[0], *tables])
    return lambda: iter(next(coming))


def test_batches_that_are_not_the_same_when_gone_through_again():
    data = simulated()
    redrawn = data.assign(year=data.year[::-1].to_numpy())
    others = {
        "the values of 'y', 'year', 'c', 'g' differ": [data[:300]],
        "the values of 'y' differ": [data.assign(y=data.y + 1e-12 * (np.arange(600) == 5))],
        "the values stand together in other rows": [redrawn],
        "3 rows belong to groups that the first pass did not see": [data.assign(g=data.g.mask(data.index < 3, "new"))],
        "it has no rows": [],
    }
    for message, second in others.items():
        with pytest.raises(DataError, match=f"the second pass .* than the first: {message}"):
            jm.from_batches("y ~ year + c + (1 | g)", passes([data], second))
    shuffled = [data[300:].sample(frac=1, random_state=0), data[:300]]
    assert jm.from_batches("y ~ year + c + (1 | g)", passes([data[:300], data[300:]], shuffled)).nobs == 600
    once = iter([data])
    with pytest.raises(DataError, match="the same list_iterator twice, which can be gone through only once"):
        jm.from_batches("y ~ year + (1 | g)", lambda: once)


def swapped(**columns):
    return [SLEEP[:90], SLEEP[90:].assign(**columns)]


BAD = {
    "one table": (lambda: SLEEP, DataError, "batches is one DataFrame: use mixedlm"),
    "number": (lambda: 3, DataError, "batches is a int; it must be an iterable of tables"),
    "argument": (lambda: lambda number: [SLEEP], DataError, "function that needs arguments .*'number'"),
    "no iterator": (lambda: lambda: SLEEP, DataError, r"batches\(\) returned a DataFrame"),
    "path": (lambda: [SLEEP, "b.parquet"], DataError, "batch 1: data is the text 'b.parquet'; .*read_parquet"),
    "twice": (lambda: [SLEEP, pd.concat([SLEEP, SLEEP], axis=1)], DataError, "batch 1: data has duplicate column"),
    "truth": (lambda: swapped(Days=True), DataError, "'Days' holds truth values, but numbers in the first"),
    "dates": (lambda: [SLEEP.assign(Days=pd.Timestamp(0))], DataError, "batch 0: the column 'Days' holds dates"),
    "labels": (lambda: swapped(Subject=1), DataError, "batch 1: the column 'Subject' holds numbers, but"),
    "no rows": (lambda: [SLEEP[:0]], DataError, "batches have no rows"),
    "nothing": (lambda: [], DataError, "batches have no rows"),
    "not a table": (lambda: [SLEEP, 7], DataError, "batch 1: data is of type int;"),
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


WHOLE_COLUMNS = ["center(year)", "bs(year, df=4)", "I(year - year.mean())", "poly(year, 2)", "I(o / o.max())"]
WHOLE_COLUMNS += ["np.cumsum(o)", "I(o.shift(1))", "(1 | np.floor(o - o.mean()))", "(center(o) | h)"]


@pytest.mark.parametrize("term", WHOLE_COLUMNS)
def test_transforms_of_a_whole_column_are_refused(term):
    with pytest.raises(FormulaError, match="needs the whole column at once"):
        jm.from_batches(f"y ~ {term} + (1 | g)", [simulated()[:300], simulated()[300:]], missing="drop")


def test_words_that_batches_do_not_take():
    with pytest.raises(ModelError, match="component 'h' .'0 . center.o.'. looks at all rows of a group at once"):
        jm.from_batches("y ~ 1", [simulated()], groups="g", vc_formula={"h": "0 + center(o)"})
    with pytest.raises(ModelError, match="has no columns; use 1 for a random intercept"):
        jm.from_batches("y ~ 1", [simulated()], groups="g", re_formula="0")
    with pytest.raises(DataError, match="weights is a ndarray; it must be the name of a column"):
        jm.from_batches("y ~ 1 + (1 | g)", [simulated()], weights=np.ones(600))
    with pytest.raises(DataError, match="missing is 'x'"):
        jm.from_batches("y ~ 1 + (1 | g)", [simulated()], missing="x")
