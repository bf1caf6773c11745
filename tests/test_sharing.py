"""Groups shared out over devices and processes: the estimate of one device."""

import os
import socket
import subprocess
import sys

import jax
import pytest

import jmixed as jm
from jmixed.errors import DataError, ModelError

# Eighteen subjects on four devices.
SHARED = """
import sys
import jax, numpy as np
import jmixed as jm

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
processes, process, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if processes > 1:
    jax.distributed.initialize(address, processes, process)
design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
mesh = jax.make_mesh((len(jax.devices()),), ("groups",))
alone = jax.jit(lambda y: jm.estimate(design.replace(y=y)))(design.y)
shared = jax.jit(lambda y: jm.estimate(design.replace(y=y), mesh=mesh, axis="groups"))(design.y)
assert len(jax.devices()) == 4
for name in ("theta", "beta", "sigma", "objective", "vcov_beta"):
    one, all_of_them = np.asarray(getattr(alone, name)), np.asarray(getattr(shared, name))
    np.testing.assert_allclose(all_of_them, one, rtol=1e-10, atol=1e-10, err_msg=name)
np.testing.assert_allclose(np.asarray(shared.b["1 | Subject"]), alone.b["1 | Subject"], rtol=1e-9)
assert int(shared.outcome) == int(alone.outcome) == 0
print("the same", shared.theta)
"""


def run(processes, devices):
    """The script in so many processes of so many simulated devices; their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARED, str(processes)]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, str(k), address], **options) for k in range(processes)]
    try:
        return [process.communicate(timeout=120)[0] for process in started]
    finally:
        for process in started:
            process.kill()


@pytest.mark.parametrize(("processes", "devices"), [(1, 4), (2, 2)])
def test_shared_groups_give_the_estimate_of_one_device(processes, devices):
    for output in run(processes, devices):
        assert "the same" in output, output


def mesh(name="groups"):
    return jax.make_mesh((1,), (name,))


def test_derivatives_pass_through_a_mesh():
    model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
    design = model.design

    def sigma(y, **options):
        return jm.estimate(design.replace(y=y), **options).sigma

    with jax.enable_x64(True):
        shared = jax.jit(jax.grad(lambda y: sigma(y, mesh=mesh())))(design.y)
        # sigma has the unit of the response: Euler's theorem.
        assert float(shared @ design.y) == pytest.approx(model.fit().sigma, rel=1e-9)


def test_what_a_mesh_cannot_do():
    sleep = jm.datasets.load("sleepstudy")
    design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", sleep).design
    nested = jm.mixedlm("strength ~ 1 + (1 | batch/cask)", jm.datasets.load("pastes")).design

    class Many:
        axis_names, shape = ("groups",), {"groups": 19}

    with jax.enable_x64(True):
        with pytest.raises(DataError, match=r"axis is 'rows', but the axes of the mesh are \('groups',\)"):
            jm.estimate(design, mesh=mesh(), axis="rows")
        with pytest.raises(DataError, match="19 devices along 'groups', but there are 18 groups"):
            jm.estimate(design, mesh=Many())
        with pytest.raises(ModelError, match="one grouping factor, and this model has 2"):
            jm.estimate(nested, mesh=mesh())
