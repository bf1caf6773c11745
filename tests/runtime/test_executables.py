"""Programs on disk: a damaged one is made again, a stranger's is not looked at, and JAX's own cache is left alone."""

import os
import pickle
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from jmixed.runtime import executables, files, internals

POSIX = pytest.mark.skipif(not hasattr(os, "geteuid"), reason="owners and permissions as POSIX has them")
X = np.arange(6.0).reshape(2, 3)


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
