"""Compiled programs: how they are held and given back."""

from pathlib import Path

import jax
import numpy as np
import pytest

import jmixed as jm
from jmixed.fit import host
from jmixed.runtime import compilation, executables


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


def test_forgetting_gives_the_maps_back():
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
