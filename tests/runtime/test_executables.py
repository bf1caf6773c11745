"""Programs on disk: a damaged one is made again, a stranger's is not looked at, and JAX's own cache is left alone."""

import dataclasses
import os
import pathlib
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

import jmixed as jm
from jmixed.errors import Outcome
from jmixed.families import Gamma, Poisson
from jmixed.families.family import Family
from jmixed.runtime import compilation, executables, files, internals

POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and permissions as POSIX has them")
X = np.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def _compiled_at_once(monkeypatch):
    """What NumPy works through has its own tests."""
    monkeypatch.setenv("JMIXED_COMPILE", "first")


def jitted(factor):
    return jax.jit(lambda x: jnp.linalg.cholesky(factor * jnp.eye(2, dtype=x.dtype) + x @ x.T))


def call(directory, function, name="program"):
    return np.asarray(executables.call_from(directory, function, name, None, {}, (X,), {}))


@pytest.fixture
def kept(tmp_path):
    """A directory with one program, which this process has forgotten; the program's file and what it gives."""
    directory = tmp_path / "kept"
    directory.mkdir(mode=0o700)
    result = call(directory, jitted(1.0))
    (path,) = directory.iterdir()
    executables.forget()
    return directory, path, result


def loaded(monkeypatch):
    """The number of programs that are read from now on, as a list that grows."""
    seen = []
    deserialise = internals.deserialise
    monkeypatch.setattr(internals, "deserialise", lambda *args: seen.append(args) or deserialise(*args))
    return seen


def test_a_program_is_read_again(kept, monkeypatch):
    directory, _, result = kept
    seen = loaded(monkeypatch)
    np.testing.assert_array_equal(call(directory, jitted(1.0)), result)
    assert len(seen) == 1


def test_a_program_belongs_to_the_sources_of_every_room():
    """One that is read after a change to the package would compute what the package did before."""
    told = executables.versions()
    home = pathlib.Path(jm.__file__).parent
    modules = [path.relative_to(home).as_posix() for path in home.rglob("*.py")]
    assert len(modules) > 100
    assert [name for name in modules if repr(name) not in told] == []


@pytest.mark.parametrize("place", [0, 0.1, 0.5, 0.9, 1])
def test_a_program_with_a_flipped_bit_is_not_read_but_made_again(kept, monkeypatch, place):
    directory, path, result = kept
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[int(place * (len(whole) - 1))] ^= 4
    path.write_bytes(damaged)
    seen = loaded(monkeypatch)
    np.testing.assert_array_equal(call(directory, jitted(1.0)), result)
    assert not seen
    executables.forget()
    np.testing.assert_array_equal(call(directory, jitted(1.0)), result)
    assert len(seen) == 1


class Planted:
    """What runs a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@POSIX
@pytest.mark.parametrize("who", ["directory", "file", "stranger"])
def test_what_others_can_have_written_is_not_looked_at(kept, tmp_path, who):
    directory, path, result = kept
    path.write_bytes(files.seal(pickle.dumps(Planted(f"touch {tmp_path / 'ran'}"))))
    if who == "directory":
        directory.chmod(0o777)
    elif who == "file":
        path.chmod(0o666)
    elif os.geteuid():
        pytest.skip("only root can give a file to another user")
    else:
        os.chown(path, 54321, 54321)
    np.testing.assert_array_equal(call(directory, jitted(1.0)), result)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fdopen", fail)
    call(tmp_path, jitted(2.0))
    assert not list(tmp_path.iterdir())
    executables.forget()


@pytest.fixture
def caching(tmp_path):
    """JAX's own cache, switched on for everything, and what it reads and writes."""
    own = tmp_path / "own"
    options = {"jax_compilation_cache_dir": str(own), "jax_persistent_cache_min_compile_time_secs": 0.0}
    options |= {"jax_persistent_cache_min_entry_size_bytes": -1}
    before = {name: jax.config.values[name] for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield own
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_compiled_past_the_cache_of_jax(caching, tmp_path):
    function = jitted(3.0)
    result = np.asarray(function(X))
    kept = len(list(caching.iterdir()))
    assert kept
    call(tmp_path, jitted(3.0))
    assert len(list(caching.iterdir())) == kept
    executables.forget()
    # What was read from JAX's cache and written again would not run.
    np.testing.assert_array_equal(call(tmp_path, jitted(3.0)), result)
    executables.forget()


def test_no_option_of_jax_is_touched_while_two_threads_compile(caching, tmp_path, monkeypatch):
    touched, both = [], threading.Barrier(2, timeout=60)
    monkeypatch.setattr(jax.config, "update", lambda *option: touched.append(option))
    seen, results = [], {}

    def compile_one(factor):
        both.wait()
        results[factor] = call(tmp_path, jitted(factor), f"program {factor}")
        seen.append(jax.config.values["jax_compilation_cache_dir"])

    threads = [threading.Thread(target=compile_one, args=(factor,)) for factor in (5.0, 7.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monkeypatch.undo()
    assert not touched
    assert seen == [str(caching)] * 2
    for factor, result in results.items():
        np.testing.assert_allclose(result, np.linalg.cholesky(factor * np.eye(2) + X @ X.T), rtol=1e-6)
    executables.forget()


def static(directory, *parts):
    """Call a program with these static parts."""
    function = jax.jit(lambda x, parts: 2 * x, static_argnames=("parts",))
    return np.asarray(executables.call_from(directory, function, "program", None, {"parts": parts}, (X,), {}))


@dataclasses.dataclass(frozen=True)
class Foreign:
    """Part of a program that is not jmixed's: tomorrow's may be another of the same name."""

    size: int = 1


@pytest.mark.parametrize("part", [Foreign(), len, lambda x: x, object()], ids=["class", "builtin", "lambda", "object"])
def test_what_others_have_written_is_not_kept(tmp_path, part):
    np.testing.assert_array_equal(static(tmp_path, part), 2 * X)
    assert not list(tmp_path.iterdir())
    executables.forget()


def test_static_parts_of_our_own_tell_programs_apart(tmp_path):
    parts = [1, 2.5, "1", (1,), Outcome.CONVERGED, Outcome.FLAT, Gamma("log"), Gamma("inverse"), Poisson("log")]
    for part in parts:
        static(tmp_path, part)
    assert len(list(tmp_path.iterdir())) == len(parts)
    executables.forget()


def test_a_familys_next_version_is_not_the_kept_one(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation, "_kept", [tmp_path])
    g, found = np.repeat(np.arange(6), 5), []
    table = {"y": np.tile([0.0, 1, 2, 1, 3], 6) + 5 * (g % 3), "g": g}
    for sign in (1.0, 0.5):

        @dataclasses.dataclass(frozen=True)
        class Own(Family):
            def log_density(self, y, eta, extras, trials, sign=sign):
                return sign * (y * eta - jnp.exp(eta))

        executables.forget()
        found.append(jm.mixedglm("y ~ 1 + (1 | g)", table, family=Own()).fit().objective)
    assert found[0] == pytest.approx(2 * found[1], rel=0.2)
    assert found[0] != found[1]


def test_programs_used_longest_ago_make_room(tmp_path, monkeypatch):
    for part in "abc":
        static(tmp_path, part)
        for path in tmp_path.iterdir():
            # An hour older with every program that comes after.
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    programs = executables.kept(tmp_path)
    assert len(programs) == 3
    assert programs[0][0] < programs[1][0] < programs[2][0]
    executables.forget()
    monkeypatch.setattr(executables, "ROOM", int(1.2 * sum(size for _, size, _ in programs)))
    static(tmp_path, "a")
    assert executables.kept(tmp_path)[-1][2] == programs[0][2]
    static(tmp_path, "d")
    left = {path for _, _, path in executables.kept(tmp_path)}
    assert programs[1][2] not in left
    assert {programs[0][2], programs[2][2]} <= left
    assert executables.clear(tmp_path) == len(left)
    assert not list(tmp_path.iterdir())
    executables.forget()


def test_threads_that_want_one_program_compile_it_once(tmp_path, monkeypatch):
    compiled, all_of_them = [], threading.Barrier(8, timeout=60)
    afresh = internals.compile_afresh
    monkeypatch.setattr(internals, "compile_afresh", lambda lowered: compiled.append(1) or afresh(lowered))

    def compile_it():
        all_of_them.wait()
        static(tmp_path, "one")

    threads = [threading.Thread(target=compile_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(compiled) == len(list(tmp_path.iterdir())) == 1
    executables.forget()


def test_keys_of_random_numbers_are_arguments_as_any(tmp_path):
    tmp_path.chmod(0o700)

    def drawn(directory):
        key, function = jax.random.key(3), jax.jit(lambda key: jax.random.bits(key, (3,)))
        return np.asarray(executables.call_from(directory, function, "drawn", None, {}, (key,), {}))

    expected = np.asarray(jax.random.bits(jax.random.key(3), (3,)))
    for directory in (tmp_path, None):
        np.testing.assert_array_equal(drawn(directory), expected)
        executables.forget()
    np.testing.assert_array_equal(drawn(tmp_path), expected)
    executables.forget()
