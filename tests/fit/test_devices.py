"""Groups shared out over devices and processes: the estimate of one device."""

import os
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

import jmixed as jm
from jmixed.errors import DataError, ModelError
from jmixed.fit.devices import shared_grouping, shares

# Eighteen subjects, ten batches of casks, seven schools and sixty people, or clinics of many rows, on four devices.
SHARED = """
import sys
import jax, numpy as np
import jmixed as jm

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_disable_most_optimizations", True)
processes, process, address = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if processes > 1:
    jax.distributed.initialize(address, processes, process)
assert len(jax.devices()) == 4
line, square = jax.make_mesh((4,), ("groups",)), jax.make_mesh((2, 2), ("rows", "groups"))

rng = np.random.default_rng(0)
schools = {name: rng.integers(0, k, 200) for name, k in (("school", 7), ("room", 3), ("arm", 4))}
schools |= {"x": rng.normal(size=200), "z": rng.normal(size=200), "w": rng.uniform(0.5, 2, 200)}
effects, rooms = rng.normal(size=(7, 4)), rng.normal(size=(2, 7, 4))
own = rooms[0][schools["school"], schools["room"]] + rooms[1][schools["school"], schools["arm"]]
at = effects[schools["school"]]
schools["y"] = own + at[:, 0] + at[:, 1] * schools["x"] + at[:, 2] * schools["z"] + rng.normal(size=200)

people = {"person": rng.permutation(600) % 60, "clinic": rng.integers(0, 7, 600), "x": rng.normal(size=600)}
drift = 0.3 + 0.5 * people["x"] + rng.normal(size=60)[people["person"]] * (1 + 0.5 * people["x"])
people |= {"answer": rng.binomial(1, 1 / (1 + np.exp(-drift))), "count": rng.poisson(np.exp(0.5 * drift))}

sleep, pastes = jm.datasets.load("sleepstudy"), jm.datasets.load("pastes")
CASES = {
    "slope": (jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep), True, line),
    "nested": (jm.mixedlm("strength ~ 1 + (1 | batch/cask)", pastes), False, square),
    "crossed inside": (jm.mixedlm("y ~ x + (1 | school/room) + (1 | school:arm)", schools, weights="w"), True, line),
    "answers": (jm.mixedglm("answer ~ x + (x | person)", people), False, square),
    "counts": (jm.mixedglm("count ~ x + (1 | clinic)", people, "negativebinomial", dispersion="~ x"), False, line),
}
assert CASES["answers"][0].design.index.groupings[0].segments is None
assert CASES["counts"][0].design.index.groupings[0].segments is not None
for name in sys.argv[4].split("; "):
    model, reml, mesh = CASES[name]
    design = model.design
    alone = jax.jit(lambda y: jm.estimate(design.replace(y=y), reml))(design.y)
    shared = jax.jit(lambda y: jm.estimate(design.replace(y=y), reml, mesh=mesh, axis="groups"))(design.y)
    for field in ("theta", "beta", "rho", "sigma", "objective", "vcov_beta"):
        one, all_of_them = np.asarray(getattr(alone, field)), np.asarray(getattr(shared, field))
        np.testing.assert_allclose(all_of_them, one, rtol=1e-10, atol=1e-10, err_msg=name + field)
    for label, modes in alone.b.items():
        np.testing.assert_allclose(np.asarray(shared.b[label]), modes, rtol=1e-9, atol=1e-10, err_msg=name)
    assert int(shared.outcome) == int(alone.outcome) == 0, name
    print("the same:", name, shared.theta)
"""


def run(processes, devices, cases):
    """The script in so many processes of so many simulated devices; their output."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = f"--xla_force_host_platform_device_count={devices}"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", SHARED, str(processes)]
    options = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, str(k), address, cases], **options) for k in range(processes)]
    try:
        return [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()


SHARES = [(2, 2, "slope"), (1, 4, "nested; crossed inside"), (1, 4, "answers"), (2, 2, "counts")]


@pytest.mark.sweep(2)
@pytest.mark.parametrize(("processes", "devices", "cases"), SHARES)
def test_shared_groups_give_the_estimate_of_one_device(processes, devices, cases):
    for output in run(processes, devices, cases):
        for name in cases.split("; "):
            assert f"the same: {name}" in output, output


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


class Many:
    """A mesh of more devices than this machine has."""

    axis_names, shape = ("groups",), {"groups": 11}


def test_what_a_mesh_cannot_do():
    pastes = jm.datasets.load("pastes")
    design = jm.mixedlm("strength ~ 1 + (1 | batch/cask)", pastes).design
    crossed = jm.mixedlm("strength ~ 1 + (1 | batch) + (1 | cask)", pastes).design
    alone = jm.mixedlm("strength ~ 1 + (1 | batch)", pastes).design
    two = jax.make_mesh((1, 1), ("rows", "groups"))
    calls = {
        r"axis is 'rows', but the axes of the mesh are \('groups',\)": lambda: jm.estimate(
            design, mesh=mesh(), axis="rows"
        ),
        r"axis is None, but the axes of the mesh are \('rows', 'groups'\); give one": lambda: jm.estimate(
            design, mesh=two
        ),
        "axis is 'groups', but there is no mesh": lambda: jm.estimate(design, axis="groups"),
        "mesh is a int; it must be a jax.sharding.Mesh": lambda: jm.estimate(design, mesh=4),
        "11 devices along 'groups', but there are 10 groups": lambda: jm.estimate(design, mesh=Many()),
        "there are 10 groups to share out": lambda: jm.estimate(alone, mesh=Many()),
        "blocks of nested factors, which must be known when": lambda: jax.jit(
            lambda design: jm.estimate(design, mesh=mesh())
        )(design),
    }
    with jax.enable_x64(True):
        for message, call in calls.items():
            with pytest.raises(DataError, match=message):
                call()
        with pytest.raises(ModelError, match="the 2 crossed factors of this model hang together: leave mesh out"):
            jm.estimate(crossed, mesh=mesh())
        counts = pastes.assign(count=pastes["strength"].round().astype(int))
        nested = jm.mixedglm("count ~ 1 + (1 | batch/cask)", counts, "poisson")
        nodes = jm.mixedglm("count ~ 1 + (1 | batch)", counts, "poisson", quadrature=5)
        for model in (nested, nodes):
            with pytest.raises(ModelError, match="where there is one grouping factor, of at most 8 columns, and quad"):
                jm.estimate(model.design, mesh=mesh())


def test_every_row_is_shared_out_once_by_group():
    rng = np.random.default_rng(0)
    for groups, rows in ((18, 60), (5, 400)):
        data = {"g": np.append(np.arange(groups), rng.integers(0, groups, rows)), "y": np.ones(groups + rows, int)}
        data["y"][::3] = 0
        model = jm.mixedglm("y ~ 1 + (1 | g)", data)
        codes = model.spec.terms[0].codes
        for devices in (1, 2, 5):
            shared = shared_grouping(model.design, devices)
            chunks = shared.rows.reshape(len(shared.rows), devices, -1)
            assert sorted(chunks[chunks < len(codes)]) == list(range(len(codes)))
            for device in range(devices):
                real = chunks[:, device] < len(codes)
                local = (
                    np.arange(chunks.shape[2])
                    if shared.segments is None
                    else shared.segments.reshape(devices, -1)[device]
                )
                of_rows = np.broadcast_to(local, real.shape)[real] + device * shared.size
                np.testing.assert_array_equal(codes[chunks[:, device][real]], of_rows)
                assert np.all(np.diff(local) >= 0)
                assert local.max() < shared.size


def test_every_block_is_shared_out_once_with_what_lies_inside_it():
    design = jm.mixedlm("strength ~ 1 + (1 | batch/cask)", jm.datasets.load("pastes")).design
    for devices in (1, 3, 4, 10):
        casks, batches = shares(design, devices)
        assert sorted(casks.blocks[casks.blocks < 30]) == list(range(30))
        assert sorted(batches.blocks[batches.blocks < 10]) == list(range(10))
        assert batches.blocks.shape[1] == -(-10 // devices)
        for own, parents, holders in zip(casks.blocks, casks.parents[0], batches.blocks, strict=True):
            assert np.all(np.diff(parents) >= 0)
            real = own < 30
            np.testing.assert_array_equal(holders[parents[real]], design.index.parents[0][0][own[real]])
