"""Compiled programs: how they are held and given back."""

import io
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import jmixed as jm
from jmixed.fit import host
from jmixed.runtime import compilation, executables, waiting


@compilation.program
def double(x):
    return 2 * x


def held():
    return sum(cache.cache_info().currsize for cache in compilation._compiled)


@pytest.fixture
def few_maps(monkeypatch):
    """A process that has used up its memory maps."""
    monkeypatch.setattr(compilation, "MOST_MAPS", 0)


def test_programs_are_kept_while_there_is_room():
    double(np.arange(3.0))
    before = held()
    double(np.arange(3.0))
    assert held() == before > 0


def test_programs_stay_compiled_when_a_debugger_has_switched_jit_off():
    def is_traced(x):
        seen.append(isinstance(x, jax.core.Tracer))
        return x

    seen = []
    with jax.disable_jit():
        compilation.program(is_traced)(np.arange(3.0))
        assert jax.config.values["jax_disable_jit"]
    assert seen == [True]


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells a process its memory maps")
def test_programs_are_forgotten_before_linux_runs_out_of_maps(few_maps):
    np.testing.assert_array_equal(double(np.arange(5.0)), 2 * np.arange(5.0))
    assert held() == 0
    np.testing.assert_array_equal(double(np.arange(5.0)), 2 * np.arange(5.0))


def test_forgetting_gives_the_maps_back(monkeypatch):
    monkeypatch.setenv("JMIXED_COMPILE", "first")
    before = compilation._memory_maps()
    for size in range(20, 30):
        double(np.arange(float(size)))
    assert compilation._memory_maps() > before or not before
    compilation.forget_programs()
    assert held() == 0
    assert executables.count() == 0
    assert compilation._memory_maps() <= before


def test_where_nothing_is_told_there_is_always_room(monkeypatch):
    monkeypatch.setattr(compilation, "Path", lambda name: Path("/nowhere") / "else")
    assert compilation._memory_maps() == 0
    assert compilation._memory_maps_allowed.__wrapped__() == float("inf")


def test_options_that_this_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setattr(compilation, "BRIEF", {"xla_no_such_option": 1, **compilation.BRIEF})
    monkeypatch.setattr(compilation, "_unknown", set())
    treble = compilation.program(lambda x: 3 * x, brief=lambda x: True)
    np.testing.assert_array_equal(treble(np.arange(3.0)), [0, 3, 6])
    assert compilation._unknown == {"xla_no_such_option"}


def test_programs_are_kept_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_kept", [])
    monkeypatch.setenv("JMIXED_CACHE", str(tmp_path / "own"))
    options = dict(jax.config.values)
    double(np.arange(7.0))
    assert len(list((tmp_path / "own").glob("jmixed-*"))) == 1
    assert (tmp_path / "own").stat().st_mode & 0o077 == 0
    assert options == jax.config.values
    executables.forget()


@pytest.mark.parametrize("why", ["off", "a file", "open to all", "no home"])
def test_where_programs_cannot_be_kept_nothing_is_said(tmp_path, monkeypatch, why, capfd):
    places = {"off": "off", "a file": str(tmp_path / "file" / "below"), "open to all": str(tmp_path), "no home": ""}
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o777 if why == "open to all" else 0o700)
    monkeypatch.setattr(compilation, "_kept", [])
    monkeypatch.setenv("JMIXED_CACHE", places[why])
    monkeypatch.setattr(compilation, "default_directory", lambda: Path("~nobody-of-that-name/x").expanduser())
    np.testing.assert_array_equal(double(np.arange(8.0)), 2 * np.arange(8.0))
    assert compilation.kept_directory() is None
    assert not list(tmp_path.glob("jmixed-*"))
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize(("stream", "words", "said"), [(Terminal, "", 1), (Terminal, "off", 0), (io.StringIO, "", 0)])
def test_people_who_wait_are_told_once_why(monkeypatch, stream, words, said):
    shown = stream()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setenv("JMIXED_WORDS", words)
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    monkeypatch.setattr(waiting, "_said", [])

    def slow(x):
        time.sleep(0.2)
        return x

    for size in (2, 3):
        compilation.program(slow)(np.arange(float(size)))
        compilation.program(slow)(np.arange(float(size)))
    assert shown.getvalue() == said * (waiting.WORD + "\n")


def test_other_failures_are_not_taken_for_refused_options():
    def fail(x):
        raise jax.errors.JaxRuntimeError("no memory left")

    with pytest.raises(jax.errors.JaxRuntimeError, match="no memory left"):
        compilation.program(fail)(np.arange(3.0))


def test_small_problems_are_fitted_alike_by_code_that_is_not_optimised(monkeypatch):
    model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    brief = model.fit()
    monkeypatch.setattr(host, "SMALL", 0)
    whole = model.fit()
    assert brief.objective == pytest.approx(whole.objective, rel=1e-12)
    np.testing.assert_allclose(brief.params, whole.params, rtol=1e-7)
