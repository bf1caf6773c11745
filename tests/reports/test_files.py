"""Saved results: everything that is told of a loaded one is what it was, to the last bit; other files are refused."""

import functools
import io
import json
import subprocess
import sys
import zipfile

import numpy as np
import pandas as pd
import polars as pl
import pytest

import jmixed as jm
from jmixed.covariance.registry import STRUCTURES, structure_of
from jmixed.reports import files
from jmixed.runtime import archive

RNG = np.random.default_rng(0)
SLEEP = jm.datasets.load("sleepstudy").assign(
    w=RNG.uniform(1, 2, 180),
    o=RNG.normal(size=180),
    wave=lambda d: d.Days.astype(int) % 3,
    late=lambda d: pd.Categorical(np.where(d.Days > 4, "yes", "no"), ["yes", "no"]),
    day=lambda d: pd.Timestamp("2020-01-01") + pd.to_timedelta(d.Days, "D"),
)
GAPS = SLEEP.assign(Days=SLEEP.Days.where(~SLEEP.index.isin([3, 50])))
PASTES, PENICILLIN, MACHINES = (jm.datasets.load(name) for name in ("pastes", "penicillin", "machines"))
BARS = "Reaction ~ Days + (Days | Subject)"
COMPONENT = {"groups": "batch", "re_formula": "1", "vc_formula": {"cask": "0 + C(cask)"}}


def double(x):
    return 2 * x


def labelled():
    """Labels of all sorts: of the rows, the groups, and the levels."""
    index = pd.MultiIndex.from_arrays([SLEEP.Subject, SLEEP.day], names=["who", "when"])
    return (
        SLEEP.convert_dtypes()
        .assign(Subject=SLEEP.day.min() + pd.to_timedelta(SLEEP.Subject.astype(int), "h"))
        .set_axis(index)
    )


MODELS = {
    "slopes": lambda: jm.mixedlm(BARS, SLEEP),
    "crossed": lambda: jm.mixedlm("diameter ~ 1 + (1 | plate) + (1 | sample)", PENICILLIN),
    "nested": lambda: jm.mixedlm("strength ~ 1 + (1 | batch/cask)", PASTES),
    "groups": lambda: jm.mixedlm("Reaction ~ Days + late", SLEEP, groups="Subject", re_formula="~Days"),
    "component": lambda: jm.mixedlm("strength ~ 1", PASTES, **COMPONENT),
    "weights and offset": lambda: jm.mixedlm(BARS, SLEEP, weights="w", offset="o"),
    "arrays beside": lambda: jm.mixedlm(BARS, SLEEP, weights=SLEEP.w.to_numpy(), subset=SLEEP.Days > 0),
    "offset": lambda: jm.mixedlm("Reaction ~ Days + offset(o) + (Days || Subject)", SLEEP),
    "transforms": lambda: jm.mixedlm("Reaction ~ bs(Days, df=4) + center(w) + (scale(Days) | Subject)", SLEEP),
    "poly": lambda: jm.mixedlm("Reaction ~ poly(Days, 2) * late + double(w) + (1 | Subject)", SLEEP),
    "codings": lambda: jm.mixedlm("score ~ C(Machine, contr.sum) + (1 | Worker)", MACHINES),
    "patsy's words": lambda: jm.mixedlm("Reaction ~ scale(Days) + C(wave, Sum)", SLEEP, groups="Subject"),
    "polars": lambda: jm.mixedlm(BARS, pl.from_pandas(SLEEP.drop(columns="late"))),
    "pyarrow": lambda: jm.mixedlm(BARS, SLEEP.convert_dtypes(dtype_backend="pyarrow")),
    "labels": lambda: jm.mixedlm("Reaction ~ Days + late + (1 | Subject)", labelled()),
    "missing": lambda: jm.mixedlm(BARS, GAPS, missing="drop"),
    "batches": lambda: jm.from_batches(BARS, [SLEEP[:50], SLEEP[50:120], SLEEP[120:]]),
    "arrays": lambda: jm.MixedLM(SLEEP.Reaction.to_numpy(), np.column_stack([np.ones(180), SLEEP.Days]), SLEEP.Subject),
    "response": lambda: jm.mixedlm(BARS, SLEEP).with_response(SLEEP.Reaction / 3),
}
FREE = jm.MixedLMParams.from_components(fe_params=np.ones(2), cov_re=np.eye(2))
FITS = {
    "ml": lambda: jm.mixedlm(BARS, SLEEP).fit(reml=False, full_output=True),
    "held": lambda: jm.mixedlm(BARS, SLEEP).fit(free=FREE),
    "lasso": lambda: jm.mixedlm("Reaction ~ Days + w + (1 | Subject)", SLEEP).fit_regularized(alpha=[0, 1.0, 9.0]),
    "not optimised": lambda: jm.mixedlm(BARS, SLEEP).fit(do_cg=False),
} | {name: lambda make=make: make().fit() for name, make in MODELS.items()}


@functools.cache
def fitted(name):
    return FITS[name]()


def saved(result, **options):
    file = io.BytesIO()
    result.save(file, **options)
    return file.getvalue()


def loaded(content):
    return jm.load(io.BytesIO(content))


def new_rows(result):
    frame = result.model.data.frame
    frame = SLEEP if frame is None else frame
    return frame.iloc[[5, 3, 20]]


TOLD = {
    "summary": lambda r: str(r.summary()),
    "tidy": lambda r: r.tidy(["fixed", "ran_pars", "ran_vals"]),
    "params": lambda r: [r.params, r.bse, r.cov_params(), r.vcov(), r.theta, r.var_corr()],
    "sizes": lambda r: [r.nobs, r.df_resid, r.llf, r.objective, r.outcome, r.singular, r.hist],
    "variances": lambda r: r.vcov_variance(),
    "rows": lambda r: [r.fittedvalues, r.resid, r.predict(), r.augment()],
    "modes": lambda r: [r.random_effects, r.random_effects_cov],
    "new rows": lambda r: r.predict(new_rows(r), random_effects=True),
    "array": lambda r: r.predict(r.model.exog[:3]),
    "simulate": lambda r: r.simulate(2, key=1),
    "model": lambda r: [repr(r.model), r.model.nobs, r.model.theta_names, r.model.groups, r.model.data.frame],
    "update": lambda r: r.model.update(". ~ . + I(Days**2)").exog.sum(),
}
COMPUTED = {
    "satterthwaite": lambda r: str(r.summary(ddf="satterthwaite")),
    "intervals": lambda r: r.predict(new_rows(r), random_effects=True, interval="prediction"),
    "anova": lambda r: [r.anova(), r.anova(type=2)],
    "hypothesis": lambda r: str(r.test("Days = 0")),
    "likelihood": lambda r: [r.model.loglike(r.params_object), r.model.hessian(r.params)],
    "again": lambda r: [r.model.fit(reml=r.reml).params, r.refit(r.model.endog * 1.1).params],
}
LONG = {
    "profile": lambda r: r.profile(["sigma"]).confint(),
    "bootstrap": lambda r: r.bootstrap(5, key=1).confint(),
    "kenward-roger": lambda r: str(r.summary(ddf="kenward-roger")),
    "compare": lambda r: str(jm.compare(r, fitted("ml"))),
    "robust": lambda r: r.robust_cov(),
}


def told(report, result):
    """What a report says, or the error that it ends in."""
    try:
        return report(result)
    except jm.JmixedError as error:
        return str(error)


def require_same(mine, theirs):
    assert type(mine) is type(theirs)
    if isinstance(mine, pd.DataFrame):
        pd.testing.assert_frame_equal(mine, theirs, check_exact=True)
    elif isinstance(mine, pd.Series):
        pd.testing.assert_series_equal(mine, theirs, check_exact=True)
    elif isinstance(mine, np.ndarray):
        np.testing.assert_array_equal(mine, theirs)
    elif isinstance(mine, dict):
        assert list(mine) == list(theirs)
        require_same(list(mine.values()), list(theirs.values()))
    elif isinstance(mine, list | tuple):
        assert len(mine) == len(theirs)
        for one, other in zip(mine, theirs, strict=True):
            require_same(one, other)
    else:
        assert mine == theirs or mine != mine


@pytest.fixture(autouse=True)
def _one_way_to_compute(monkeypatch):
    """A program that is compiled between two calls rounds otherwise, and figures are compared to the last digit."""
    monkeypatch.setenv("JMIXED_COMPILE", "last")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", FITS)
def test_everything_is_told_as_before(name):
    result = fitted(name)
    again = loaded(saved(result))
    assert again.timings == result.timings
    for report in TOLD.values():
        require_same(told(report, result), told(report, again))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["slopes", "batches", "component", "held", "poly", "response"])
def test_what_is_computed_of_a_loaded_result(name):
    result = fitted(name)
    again = loaded(saved(result))
    for report in (COMPUTED | (LONG if name in ("slopes", "batches") else {})).values():
        require_same(told(report, result), told(report, again))


@pytest.mark.parametrize("name", ["slopes", "crossed", "component", "batches", "labels", "held", "poly", "arrays"])
def test_without_rows(name):
    """What is known without rows, and what was computed before they went."""
    result = FITS[name]()
    for report in (*COMPUTED.values(), TOLD["modes"]):
        told(report, result)
    again = loaded(saved(result, remove_data=True))
    new = result.model.exog[:3] if name == "arrays" else new_rows(result)
    result.remove_data()
    for report in (TOLD | COMPUTED).values():
        require_same(told(report, result), told(report, again))
    for random_effects in (False, True):
        for interval in (None, "prediction"):
            words = {"random_effects": random_effects, "interval": interval}
            require_same(*(told(lambda r, w=words: r.predict(new, **w), own) for own in (result, again)))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_second_file_tells_the_same():
    once = loaded(saved(fitted("poly")))
    twice = loaded(saved(once))
    for report in TOLD.values():
        require_same(told(report, once), told(report, twice))


SCRIPT = """
import sys

import jmixed as jm

result = jm.load(sys.argv[1])
print(result.summary())
print(result.predict({"Days": [1.5], "w": [1.0]}).tolist())
"""


def test_another_process_reads_it(tmp_path):
    result = fitted("transforms")
    result.save(tmp_path / "fit")
    call = [sys.executable, "-c", SCRIPT, str(tmp_path / "fit")]
    found = subprocess.run(call, capture_output=True, text=True, check=True).stdout.splitlines()
    assert "\n".join(found[:-1]) == str(result.summary())
    assert found[-1] == str(result.predict({"Days": [1.5], "w": [1.0]}).tolist())


def test_functions_are_looked_for_where_load_is_called(tmp_path):
    fitted("poly").save(tmp_path / "fit")
    new = SLEEP.iloc[:3]
    expected = fitted("poly").predict(new)

    def elsewhere():
        names = {"jm": jm, "path": tmp_path / "fit"}
        exec("result = jm.load(path)\nother = jm.MixedLMResults.load(path)", names)
        return names["result"], names["other"]

    for result in elsewhere():
        assert str(result.summary()) == str(fitted("poly").summary())
        require_same(result.fittedvalues, fitted("poly").fittedvalues)
        with pytest.raises(jm.FormulaError, match="(?s)'double' is a function of yours.*where you call jm.load"):
            result.predict(new)
        with pytest.raises(jm.FormulaError, match="double"):
            result.model.update(". ~ . + o", eval_env=-1)
        # Of the caller of update, it has the function.
        require_same(result.model.update(". ~ . + o").exog, fitted("poly").model.update(". ~ . + o").exog)

    def double_of_another(double):
        return jm.load(tmp_path / "fit")

    require_same(jm.load(tmp_path / "fit").predict(new), expected)
    require_same(jm.MixedLMResults.load(tmp_path / "fit").predict(new), expected)
    require_same(double_of_another(lambda x: 2 * x).predict(new), expected)
    with pytest.raises(jm.FormulaError, match="double"):
        double_of_another(3).predict(new)


def test_a_local_function_is_no_hindrance():
    def half(x):
        return x / 2

    result = jm.mixedlm("Reaction ~ half(Days) + (1 | Subject)", SLEEP).fit()
    require_same(loaded(saved(result)).params, result.params)
    # Loaded in a function that does not see it.
    with pytest.raises(jm.FormulaError, match="half"):
        loaded(saved(result)).predict(SLEEP)
    require_same(jm.load(io.BytesIO(saved(result))).predict(SLEEP), result.predict(SLEEP))


def test_labels_that_cannot_be_stored_are_named():
    class Label(str):
        __slots__ = ()

    data = SLEEP.assign(Subject=pd.Series([Label(name) for name in SLEEP.Subject], dtype=object))
    with pytest.raises(jm.DataError, match=r"save: .*Label.*astype\(str\)"):
        jm.mixedlm(BARS, data).fit().save(io.BytesIO())
    # A column that the model does not use is left out.
    result = jm.mixedlm(BARS, SLEEP.assign(other=data.Subject)).fit()
    again = loaded(saved(result))
    assert [*again.model.data.frame] == [*SLEEP]
    require_same(again.augment(), result.augment().drop(columns="other"))


def rewritten(content, change):
    """A file whose values were changed by somebody who seals it again."""
    found, head = zipfile.ZipFile(io.BytesIO(content)), None
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name in found.namelist():
            member = found.read(name)
            if name == archive.TEXT:
                head = change(member.decode())
                member = head.encode()
            made.writestr(name, member)
        made.comment = found.comment
    whole = file.getvalue()[: -archive.SEALED]
    return whole + archive.seal(whole)


CHANGES = {
    "a kind of a later version": ('"kind": "random term"', '"kind": "smooth term"', "'smooth term'.*jmixed .*Install"),
    "another field": ('"sigma": ', '"tau": ', "no whole file"),
    "no such array": ('"array": 3}', '"array": 999}', "no whole file"),
    "another kind": ('"kind": "model data"', '"kind": "factor"', "no whole file"),
    "no values": ('"values": ', '"value": ', "no whole file"),
    "another outcome": ('"parts": "CONVERGED"', '"parts": "SUPERB"', "no whole file"),
    "code": ('"place": "patsy", "name": "C"', '"place": "os", "name": "system"', "no whole file"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_values_that_make_no_result_are_refused(name):
    old, new, words = CHANGES[name]
    content = saved(fitted("component"))
    assert loaded(rewritten(content, lambda text: text)).llf == fitted("component").llf
    changed = rewritten(content, lambda text: text.replace(old, new))
    assert changed != rewritten(content, lambda text: text)
    with pytest.raises(jm.DataError, match=words):
        loaded(changed)


def test_loading_runs_no_formula(tmp_path):
    """A formula of a stranger's is code: it is run for new data, and not before."""
    content = saved(jm.mixedlm("Reaction ~ I(Days + 1) + (1 | Subject)", SLEEP).fit())
    call = f"__import__('pathlib').Path('{tmp_path / 'ran'}').touch()"
    result = loaded(rewritten(content, lambda text: text.replace("I(Days + 1)", call)))
    _ = result.summary(), result.params, result.fittedvalues, result.predict(), repr(result.model), result.vcov()
    assert not (tmp_path / "ran").exists()
    with pytest.raises(jm.FormulaError, match="gives None"):
        result.predict(SLEEP)
    assert (tmp_path / "ran").exists()


def test_something_else_in_a_whole_file():
    for value in (3, [1], {"fitted": 1, "free": None, "hist": None}, {"a": 1}, fitted("slopes").fitted):
        with pytest.raises(jm.DataError, match="no whole file of a saved result"):
            loaded(files.pack(value))


FIELDS = {
    "formula": "coded factors learnt missing order settings structure terms",
    "recipe": "aliases dtypes env needs specs texts",
    "factor": "cells codes levels name sources tables",
    "random term": "Z codes columns group inner intercept label levels parents rebuild relationship structure vc",
    "model data": "X dropped endog_name exog_names explained formula frame group_name groups index kept left_out "
    "log_weights offset offset_source recipe redundant represents residual response rows terms weights y",
    "fit": "b beta checked_beyond_zero concerns counted covariances crossed evaluations fixed gradient "
    "hessian_eigenvalues iterations kappa monte_carlo objective outcome rho scale_variance sigma singular starts theta "
    "timings uncertainty vcov_beta vcov_kappa",
    "fitted": "fit has_data held known model nobs penalty reml told_of_positions",
    "model": "labelled nobs response spec timings use_sqrt words",
}


def nodes(stored):
    """The objects in a file: kind and fields."""
    if isinstance(stored, dict) and "kind" in stored:
        yield stored["kind"], stored.get("fields", {})
        yield from nodes(list(stored.get("fields", {}).values()) + [stored.get("parts")])
    for part in stored if isinstance(stored, list) else ():
        yield from nodes(part)


def test_fields_are_those_of_the_format():
    """A field that is new and has no default, or goes, is another format: `archive.FORMAT` must say so."""
    head = json.loads(zipfile.ZipFile(io.BytesIO(saved(fitted("slopes"), remove_data=True))).read(archive.TEXT))
    assert head["format"] == 1
    assert head["jmixed"] == jm.__version__
    seen = {kind: " ".join(sorted(fields)) for kind, fields in nodes(head["values"])}
    assert {kind: seen[kind] for kind in FIELDS} == FIELDS


def test_every_covariance_structure_can_be_stored():
    for word in STRUCTURES:
        structure = structure_of(word, 2, 1)
        assert files.unpack(files.pack(structure), "name", {}, lambda found: found) == structure


def test_a_word_is_given_once():
    with pytest.raises(AssertionError, match="another word"):
        files.KINDS.add("fit", int)
