"""What is done otherwise where programs do not run on a CPU, seen by giving this machine's backend another name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jmixed as jm
from jmixed.algebra import small, sums
from jmixed.errors import ModelError
from jmixed.layout.layout import require_memory
from jmixed.runtime import device, executables
from jmixed.runtime.precision import double_precision


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")


class Accelerator:
    """A device as JAX has it, that tells or does not tell how much memory it has."""

    platform, told = "gpu", None

    def memory_stats(self):
        return self.told


def test_the_default_device_decides(accelerator):
    assert not device.on_cpu()
    with jax.default_device(jax.devices("cpu")[0]):
        assert device.on_cpu()
    with jax.default_device("cpu"):
        assert device.on_cpu()


def test_a_large_matrix_is_inverted_in_larger_pieces(accelerator, monkeypatch):
    half = np.random.default_rng(0).normal(size=(400, 390))
    a = half @ half.T + np.eye(400)
    for factored in (1024, 150):
        monkeypatch.setattr(small, "FACTORED", factored)
        with double_precision():
            inverse, logdet = small.inverse_and_log_determinant(jnp.asarray(a))
        np.testing.assert_allclose(np.asarray(inverse) @ a, np.eye(400), atol=1e-10)
        np.testing.assert_allclose(logdet, np.linalg.slogdet(a)[1], rtol=1e-12)


def test_sums_over_long_stacks_are_one_step(monkeypatch):
    values = np.arange(8 * sums.BLOCK, dtype=np.float32)

    def traced():
        return jax.make_jaxpr(lambda x: sums.sum_in_blocks(lambda own, _: jnp.sum(jnp.sin(own)), x))(values)

    here = traced()
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = traced()
    assert "dynamic_slice" in str(here)
    assert "dynamic_slice" not in str(there)
    one, other = (jax.core.eval_jaxpr(found.jaxpr, found.consts, values)[0] for found in (here, there))
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_memory_is_that_of_the_device(accelerator, monkeypatch):
    own = Accelerator()
    monkeypatch.setattr(jax, "local_devices", lambda: [own])
    assert device.memory() is None
    require_memory(10**15, 5)
    own.told = {"bytes_limit": 80 * 10**9}
    require_memory(60 * 10**9, 20_000)
    with pytest.raises(ModelError, match="need about 70 GB, and the device has 80: .* dense block of 20000 columns"):
        require_memory(70 * 10**9, 20_000)
    with jax.default_device(jax.devices("cpu")[0]), pytest.raises(ModelError, match="and the machine has"):
        require_memory(10**15, 5)


def test_a_program_that_the_device_cannot_write_whole_works_all_the_same(tmp_path, monkeypatch):
    def refuse(compiled):
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: serialization")

    monkeypatch.setattr("jax.experimental.serialize_executable.serialize", refuse)
    monkeypatch.setattr(executables, "_memory", {})
    found = executables.call_from(tmp_path, jax.jit(lambda x: 2 * x), "double", None, {}, (np.float32(3),), {})
    assert found == 6
    assert not list(tmp_path.glob("*.program"))


def products(jaxpr):
    """The products of matrices in a program, at any depth."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield equation
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from products(inner)


@pytest.mark.parametrize("function", [jm.estimate, jm.moments])
def test_single_precision_is_not_halved_in_products(function):
    """By default accelerators round the factors of a product of 32-bit floats to 11 bits or fewer."""
    design = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).design
    design = jax.tree.map(lambda a: np.asarray(a, np.float32) if a.dtype == np.float64 else a, design)
    program = jax.make_jaxpr(lambda y: jax.tree.leaves(function(design.replace(y=y))))(design.y)
    found = list(products(program.jaxpr))
    assert found
    assert all(one.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for one in found)
