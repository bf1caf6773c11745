"""When a program is worked through by NumPy, when it is compiled, and that nobody sees the difference."""

import io
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jmixed.runtime import compilation, executables, interpreted, interpreter, waiting
from jmixed.runtime.interpreted import Interpreted

X = np.random.default_rng(0).normal(size=(4, 3))


def gram(x, y):
    """A function of a design x and a response y."""
    return jnp.linalg.cholesky(x.T @ x), x.T @ y


def refined(x):
    """A function with a loop in it."""
    return lax.fori_loop(0, 50, lambda _, s: s + jnp.sin(x) / (1 + s**2), x)


@pytest.fixture(autouse=True)
def _start_anew(monkeypatch):
    monkeypatch.delenv("JMIXED_COMPILE", raising=False)
    executables.forget()
    yield
    executables.forget()


@pytest.fixture
def held(tmp_path, monkeypatch):
    """A directory for programs, of this test alone."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(compilation, "_kept", [tmp_path])
    return tmp_path


def ways():
    """How the programs in memory are executed: by NumPy or not."""
    return [isinstance(program, Interpreted) for program in executables._memory.values()]


def suffixes(directory):
    return sorted(path.suffix for path in directory.iterdir())


def test_the_first_call_compiles_nothing(held, monkeypatch):
    monkeypatch.setattr(executables.internals, "compile_afresh", lambda _: pytest.fail("compiled"))
    function = compilation.program(gram)
    out = function(X, X[:, 0])
    assert all(isinstance(array, jax.Array) for array in out)
    np.testing.assert_allclose(out[0], np.linalg.cholesky(X.T.astype(np.float32) @ X), rtol=1e-5, atol=1e-6)
    assert ways() == [True]
    assert suffixes(held) == [".steps"]


def test_another_process_reads_the_steps_and_does_not_trace(held):
    first = compilation.program(gram)(X, X[:, 0])
    executables.forget()
    jax.clear_caches()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreted.interpreter, "translated", lambda _: pytest.fail("traced"))
        second = compilation.program(gram)(X, X[:, 0])
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_loop_over_one_design_is_compiled_at_its_third_turn(held):
    function = compilation.program(gram, design=lambda x, y: (x,))
    outs = []
    for k in range(4):
        outs.append(function(X, X[:, 0] + k))
        assert ways() == [k < 2]
    assert suffixes(held) == [".program", ".steps"]
    for k, (root, product) in enumerate(outs):
        np.testing.assert_allclose(root, outs[0][0], rtol=1e-5)
        np.testing.assert_allclose(product, X.T @ (X[:, 0] + k), rtol=1e-4, atol=1e-5)


def test_what_is_asked_after_a_fit_is_no_turn(held):
    function = compilation.program(gram, design=lambda x, y: (x,))
    for _ in range(2):
        function(X, X[:, 0])
        with interpreted.aside():
            function(X, X[:, 0])
    assert ways() == [True]
    function(X, X[:, 0])
    assert ways() == [False]


def test_a_later_process_begins_with_steps_and_reads_what_was_compiled_for_loops(held, monkeypatch):
    function = compilation.program(gram, design=lambda x, y: (x,))
    outs = [function(X, X[:, 0]) for _ in range(3)]
    assert suffixes(held) == [".program", ".steps"]
    monkeypatch.setattr(executables.internals, "compile_afresh", lambda _: pytest.fail("compiled"))
    # What NumPy may spend before it is read: as long as compiling would take, and nothing.
    for reading, turns in ((np.inf, 2), (0, 1)):
        executables.forget()
        monkeypatch.setattr(executables, "READING", reading)
        for turn in range(3):
            out = function(X, X[:, 0])
            assert ways() == [turn < turns]
            np.testing.assert_array_equal(out[0], outs[0 if turn < turns else 2][0])


def test_a_design_after_the_other_is_not(held):
    function = compilation.program(gram, design=lambda x, y: (x,))
    for k in range(6):
        function(X + k, X[:, 0])
    assert ways() == [True]


def test_a_person_who_fits_the_same_again_later_does_not_wait(held, monkeypatch):
    now = [1e9]
    monkeypatch.setattr(interpreted.time, "monotonic", lambda: now[0])
    function = compilation.program(gram, design=lambda x, y: (x,))
    for _ in range(6):
        function(X, X[:, 0])
        now[0] += 1 + interpreted.AT_ONCE
    assert ways() == [True]


def test_what_has_taken_as_long_as_compiling_is_compiled(held):
    function = compilation.program(gram)
    function(X, X[:, 0])
    (program,) = executables._memory.values()
    function(X, X[:, 0])
    assert ways() == [True]
    program.spent = program.price + 1
    function(X, X[:, 0])
    assert ways() == [False]


def test_a_call_that_takes_too_long_ends_compiled(held, monkeypatch):
    monkeypatch.setattr(interpreted, "PER_STEP", 1e-9)
    monkeypatch.setattr(interpreted, "PER_PROGRAM", 0.0)
    monkeypatch.setattr(interpreted, "DEAR", 1e9)
    out = compilation.program(refined)(X)
    assert ways() == [False]
    np.testing.assert_allclose(out, jax.jit(refined)(X), rtol=1e-6)


def test_a_step_that_fails_ends_compiled(held, monkeypatch):
    """Another version of JAX may mean something else by a step: what shows is that it does not work."""
    compilation.program(gram)(X, X[:, 0])
    executables.forget()
    monkeypatch.setattr(interpreter, "run", lambda *_: np.reshape(X, (5, 5)))
    out = compilation.program(gram)(X, X[:, 0])
    assert ways() == [False]
    np.testing.assert_allclose(out[1], X.T @ X[:, 0], rtol=1e-4, atol=1e-5)


def test_large_problems_are_compiled_at_once(held):
    big = np.ones((300, 300), np.float32)
    compilation.program(repeated)(big)
    assert ways() == [False]
    assert suffixes(held) == [".program"]


def repeated(x):
    """Much work in few steps."""
    return lax.fori_loop(0, 2000, lambda _, s: s @ x / 300, x)


def test_what_numpy_does_not_know_is_compiled(held):
    compilation.program(drawn)(X)
    assert ways() == [False]


def drawn(x):
    """Random numbers, which are JAX's."""
    return x + jax.random.normal(jax.random.key(1), x.shape, x.dtype)


@pytest.mark.parametrize("word", ["first", "ahead"])
def test_who_wants_programs_compiled_has_them_compiled(held, monkeypatch, word):
    if word == "first":
        monkeypatch.setenv("JMIXED_COMPILE", "first")
        compilation.program(gram)(X, X[:, 0])
    else:
        with interpreted.compiling_at_once():
            compilation.program(gram)(X, X[:, 0])
    assert ways() == [False]
    assert interpreted.is_wanted() == (word == "ahead")


def test_who_wants_the_same_digits_each_time_has_nothing_compiled(held, monkeypatch):
    monkeypatch.setenv("JMIXED_COMPILE", "last")
    function = compilation.program(gram, design=lambda x, y: (x,))
    outs = [function(X, X[:, 0]) for _ in range(5)]
    assert ways() == [True]
    for out in outs:
        np.testing.assert_array_equal(out[0], outs[0][0])
    (program,) = executables._memory.values()
    program.price = 1e-9
    np.testing.assert_array_equal(function(X, X[:, 0])[0], outs[0][0])
    assert ways() == [True]
    monkeypatch.setattr(interpreter, "run", lambda *_: np.reshape(X, (5, 5)))
    function(X, X[:, 0])
    assert ways() == [False]


def test_without_a_directory_nothing_is_kept_and_all_else_is_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(compilation, "_kept", [None])
    function = compilation.program(gram, design=lambda x, y: (x,))
    outs = [function(X, X[:, 0]) for _ in range(4)]
    for out in outs[1:]:
        np.testing.assert_allclose(out[0], outs[0][0], rtol=1e-5)
    assert not any(isinstance(program, Interpreted) for program in executables._memory.values())


def test_steps_of_a_damaged_file_are_made_again(held):
    compilation.program(gram)(X, X[:, 0])
    executables.forget()
    (path,) = held.iterdir()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 4
    path.write_bytes(damaged)
    out = compilation.program(gram)(X, X[:, 0])
    np.testing.assert_allclose(out[1], X.T @ X[:, 0], rtol=1e-4, atol=1e-5)
    assert path.read_bytes() != bytes(damaged)


def test_programs_of_another_backend_are_compiled(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert not interpreted.is_wanted()


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self):
        return True


def test_only_who_waits_for_the_compiler_is_told_so(held, monkeypatch):
    shown, run = Terminal(), interpreter.run

    def slowly(*args):
        time.sleep(0.2)
        return run(*args)

    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.delenv("JMIXED_WORDS", raising=False)
    monkeypatch.setattr(waiting, "_said", [])
    monkeypatch.setattr(waiting, "PATIENCE", 0.1)
    monkeypatch.setattr(interpreter, "run", slowly)
    function = compilation.program(gram, design=lambda x, y: (x,))
    for _ in range(2):
        function(X, X[:, 0])
    assert not shown.getvalue()
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    function(X, X[:, 0])
    assert shown.getvalue() == waiting.WORD + "\n"


def test_compiling_counts_as_such_at_any_turn(held):
    function = compilation.program(gram, design=lambda x, y: (x,))
    seconds = []
    for _ in range(4):
        before = compilation.seconds_compiling()
        function(X, X[:, 0])
        seconds.append(compilation.seconds_compiling() - before)
    # The first call traces, the third compiles.
    assert [second > 0 for second in seconds] == [True, False, True, False]
