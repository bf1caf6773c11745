"""Groups shared out over the devices of a mesh: one sum over devices for each evaluation of the likelihood."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jmixed import optimize
from jmixed.data import Index, Moments
from jmixed.errors import DataError, ModelError
from jmixed.layout import Layout


def minimize_shared(held: Moments, start, reml, mesh, axis: str) -> optimize.Solution:
    """Minimise the profiled deviance with the groups shared out over a mesh.

    Everything of a group enters through sums over groups: a device works on its own, and the sums over devices of
    log-determinants and of what the groups explain, with their derivatives, are one `psum`. Groups that fill up the
    last device are empty, which is exact: their log-determinant is log|I| = 0.

    Parameters
    ----------
    held : Moments
        Of a layout with one stage of one factor.
    start : sequence of arrays (q, q), or None
    reml : bool
    mesh : Mesh
    axis : str

    Returns
    -------
    Solution
        The same on all devices.
    """
    # Where a mesh is explicit, arrays that are not yet shared out would be refused.
    mesh = Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))
    devices = mesh.shape[axis]
    short = -held.layout.blocks[0] % devices
    filled = [jnp.pad(a[0], [(0, 0), (0, 0), (0, short)]) for a in (held.C, held.B)]
    none: tuple = ()
    counted = Index(none, none, none, none, (none,), none, none, held.index.counts)
    blocks = (filled[0].shape[2] // devices,)
    layout = replace(held.layout, blocks=blocks)
    shared = replace(held, C=(filled[0],), B=(filled[1],), index=counted, layout=layout, axis=axis)
    arguments = shared, start, jnp.asarray(reml)
    specs = _specs(shared, axis), PartitionSpec(), PartitionSpec()
    if any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(arguments)):
        return _program(mesh, axis)(*arguments)
    # Arrays of this process become arrays of the mesh, and the solution, the same everywhere, one of this process.
    placed = [_placed(argument, spec, mesh) for argument, spec in zip(arguments, specs, strict=True)]
    return jax.tree.map(jnp.asarray, jax.device_get(_program(mesh, axis)(*placed)))


def axis_to_share(layout: Layout, counts: tuple[int, ...], mesh, axis: str | None) -> str:
    """The axis of the mesh to use, after everything that can be wrong with it.

    Parameters
    ----------
    layout : Layout
    counts : tuple of int
        Number of levels of each factor.
    mesh : Mesh
    axis : str or None
    """
    if len(layout.stages) != 1 or not layout.is_chain(0):
        raise ModelError(
            f"mesh= shares out the groups of one grouping factor, and this model has {len(layout.factors)}: leave mesh "
            "out, or use the factor with most levels alone"
        )
    names = tuple(mesh.axis_names)
    axis = names[0] if axis is None and len(names) == 1 else axis
    if axis is None or axis not in names:
        raise DataError(f"axis is {axis!r}, but the axes of the mesh are {names}; give one of them")
    if mesh.shape[axis] > counts[0]:
        raise DataError(
            f"the mesh has {mesh.shape[axis]} devices along {axis!r}, but there are {counts[0]} groups: use at most as "
            "many devices as groups"
        )
    return axis


def _specs(shared: Moments, axis: str):
    """Blocks along the axis, all else everywhere."""
    specs = jax.tree.map(lambda _: PartitionSpec(), shared)
    blocks = (PartitionSpec(None, None, axis),)
    return replace(specs, C=blocks, B=blocks)


def _placed(tree, spec, mesh):
    specs = jax.tree.map(lambda _: spec, tree) if isinstance(spec, PartitionSpec) else spec

    def place(array, spec):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    return jax.tree.map(place, tree, specs)


@cache
def _program(mesh, axis):
    return jax.jit(partial(_minimize, mesh, axis))


def _minimize(mesh, axis, shared, start, reml):
    def minimize(shared, start, reml):
        return optimize.minimize(shared, start, reml, optimize.MAX_ITERATIONS)

    everywhere = PartitionSpec()
    specs = (_specs(shared, axis), everywhere, everywhere)
    # Every device does the same with the same sums: the solution needs no check that it is the same.
    run = jax.shard_map(minimize, mesh=mesh, in_specs=specs, out_specs=everywhere, check_vma=False)
    return run(shared, start, reml)
