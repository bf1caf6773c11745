"""What JAX does not promise to keep: without it programs are compiled, kept, counted and forgotten all the same."""

import math
import re
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from jmixed.runtime import compilation, executables, internals
from jmixed.runtime.forks import refuse_fork

X = np.arange(6.0).reshape(2, 3)

UNDOCUMENTED = [
    ("jax._src.xla_bridge", "backends_are_initialized"),
    ("jax._src.config", "persistent_cache_min_compile_time_secs"),
    ("jaxlib.lapack", "prepare_lapack_call"),
    ("jax.experimental.compilation_cache.compilation_cache", "reset_cache"),
    ("jax.experimental.serialize_executable", "serialize"),
    ("jax.experimental.serialize_executable", "deserialize_and_load"),
    ("jax._src.interpreters.mlir", "LoweringParameters"),
    ("jax._src.interpreters.mlir", "_platform_specific_lowerings"),
    ("jax.interpreters.mlir", "lower_fun"),
    ("jax.extend.core.primitives", "lu_p"),
]


@pytest.fixture(autouse=True)
def _compiled_at_once(monkeypatch):
    """What NumPy works through has its own tests."""
    monkeypatch.setenv("JMIXED_COMPILE", "first")


def factored(x):
    return jnp.linalg.cholesky(jnp.eye(2, dtype=x.dtype) + x @ x.T)


@pytest.fixture
def keeping(tmp_path, monkeypatch):
    """A directory in which whole programs are kept."""
    tmp_path.chmod(0o700)
    monkeypatch.setattr(compilation, "_kept", [tmp_path])
    yield tmp_path
    executables.forget()


@pytest.mark.parametrize(("module", "name"), UNDOCUMENTED, ids=[name for _, name in UNDOCUMENTED])
def test_a_program_runs_and_is_found_again_without_it(keeping, monkeypatch, module, name):
    there = internals.undocumented
    monkeypatch.setattr(internals, "undocumented", lambda *place: None if place == (module, name) else there(*place))
    internals.find_lapack.cache_clear()
    refuse_fork()
    internals.look_at_cache_again()
    for _ in range(2):
        result = compilation.program(factored)(X)
        np.testing.assert_allclose(result, np.linalg.cholesky(np.eye(2) + X @ X.T), rtol=1e-6)
        assert executables.count() == 1
        executables.forget()
    assert len(list(keeping.iterdir())) == (0 if name == "serialize" else 1)


def test_an_option_that_xla_does_not_know_leaves_a_program_that_is_not_kept(keeping, monkeypatch):
    monkeypatch.setattr(internals, "NEW_TO_JAX", "xla_no_such_option")
    result = compilation.program(factored)(X)
    np.testing.assert_allclose(result, np.linalg.cholesky(np.eye(2) + X @ X.T), rtol=1e-6)
    assert not list(keeping.iterdir())


def test_where_jax_does_not_tell_the_steps_a_program_is_compiled(keeping, monkeypatch):
    assert internals.steps_of(jax.jit(factored).trace(X)) is not None
    assert internals.steps_of(object()) is None
    monkeypatch.delenv("JMIXED_COMPILE")
    monkeypatch.setattr(internals, "steps_of", lambda _: None)
    result = compilation.program(factored)(X)
    np.testing.assert_allclose(result, np.linalg.cholesky(np.eye(2) + X @ X.T), rtol=1e-6)
    assert [path.suffix for path in keeping.iterdir()] == [".program"]


@pytest.mark.parametrize(("module", "name"), UNDOCUMENTED, ids=[name for _, name in UNDOCUMENTED])
def test_what_is_gone_from_jax_is_none(monkeypatch, module, name):
    assert internals.undocumented(f"{module}.gone", name) is None
    if internals.undocumented(module, name) is not None:
        monkeypatch.delattr(f"{module}.{name}")
    assert internals.undocumented(module, name) is None


def test_where_jax_does_not_tell_it_counts_as_running(monkeypatch):
    jax.devices()
    assert internals.backends_have_started()
    monkeypatch.setattr(internals, "undocumented", lambda *_: None)
    assert internals.backends_have_started()


def factored_in_stacks(stack, other):
    two, (factors, *_) = stack.reshape(4, -1, *stack.shape[1:]), jax.lax.linalg.lu(stack)
    solutions = jax.lax.linalg.triangular_solve(stack, other, left_side=True, lower=True)
    return jax.vmap(jnp.linalg.cholesky)(stack), jnp.linalg.cholesky(two).reshape(stack.shape), factors, solutions


def largest_call(lowered):
    """Matrices of a call of LAPACK times the cube of their largest side, at most."""
    calls = [line for line in lowered.as_text().splitlines() if "@lapack_" in line]
    shapes = [[int(n) for n in found.split("x")] for line in calls for found in re.findall(r"([\dx]+)xf64", line)]
    return max(math.prod(shape[:-2]) * max(shape[-2:]) ** 3 for shape in shapes)


@pytest.mark.parametrize("size", [2, 24, 70])
@pytest.mark.parametrize("columns", [1, 30])
def test_a_stack_of_matrices_is_factored_in_pieces(monkeypatch, size, columns):
    rng = np.random.default_rng(size)
    roots, other = rng.normal(size=(64, size, size)), rng.normal(size=(64, size, columns))
    stack = roots @ roots.swapaxes(1, 2) + size * np.eye(size)
    monkeypatch.setattr(internals, "WAITS", True)
    with jax.enable_x64(True):
        traced = jax.jit(factored_in_stacks).trace(stack, other)
        lowered = internals.lower(traced)
        factor, again, factors, solutions = lowered.compile()(stack, other)
    assert largest_call(traced.lower()) == 64 * max(size, columns) ** 3
    assert largest_call(lowered) < max(internals.DIVIDED, max(size, columns) ** 3 + 1)
    close = partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-11)
    close(factor, np.linalg.cholesky(stack))
    close(again, factor)
    close(factors, [linalg.lu_factor(one)[0] for one in stack])
    close(solutions, [linalg.solve_triangular(*pair, lower=True) for pair in zip(stack, other, strict=True)])


UNORDERED = """
import jax, numpy as np
from jmixed.runtime.compilation import program

@program
def solved(stacks):
    return [jax.lax.linalg.triangular_solve(stack, stack, left_side=True, lower=True) for stack in stacks]

for _ in range(20):
    jax.block_until_ready(solved([np.tile(np.eye(48, dtype=np.float32), (64, 1, 1)) for _ in range(24)]))
"""


@pytest.mark.parametrize("keeps", [True, False])
def test_calls_of_lapack_that_nothing_puts_in_an_order_end(tmp_path, monkeypatch, keeps):
    monkeypatch.setenv("JMIXED_CACHE", str(tmp_path / "programs") if keeps else "off")
    subprocess.run([sys.executable, "-c", UNORDERED], timeout=100, check=True)
