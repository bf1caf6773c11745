"""Groups shared out over the devices of a mesh: one sum over devices for each evaluation of the likelihood.

Blocks of the last stage of elimination have nothing to do with each other: with one grouping factor they are the
groups, in a nest those of the outermost factor. Each goes to one device, with the blocks of all earlier stages that lie
inside it. Everything of a block enters through sums: a device works on its own, and the sums over devices of
log-determinants and of what the blocks explain, with their derivatives, are one `psum`. What fills up the shares that
are smaller than others is empty, which is exact: its log-determinant is log|I| = 0.
"""

from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jmixed.algebra.newton import Minimum, Point
from jmixed.errors import DataError, ModelError
from jmixed.fit.solve import Search, Solution, minimise_deviance
from jmixed.layout.design import Design
from jmixed.layout.index import Grouping, Index
from jmixed.likelihood.contract import Starts, minimum
from jmixed.likelihood.grouped import WIDEST, in_groups, is_grouped
from jmixed.likelihood.laplace import LaplaceDeviance
from jmixed.likelihood.moments import Moments
from jmixed.runtime.arguments import is_traced


class Share(NamedTuple):
    """How the blocks of one stage are shared out.

    `blocks` (devices, size) are those of each device; what fills up lies beyond the last. `parents` (devices, size) has
    for each later stage the block that holds each, counted among those of its device.
    """

    blocks: np.ndarray
    parents: tuple[np.ndarray, ...]


def shares(design: Design, devices: int) -> tuple[Share, ...]:
    """Share the blocks of every stage, which stand in the order of the blocks that hold them, out over devices."""
    last, counts = len(design.layout.stages) - 1, _block_counts(design)
    holder = [np.arange(count) for count in counts]
    for s in range(last):
        holder[s] = _known(design.index.parents[s][-1])[: counts[s]]
    bounds = np.minimum(np.arange(devices + 1) * -(-counts[-1] // devices), counts[-1])
    starts = [np.searchsorted(of_stage, bounds) for of_stage in holder]
    blocks = []
    for first in starts:
        size = int(np.diff(first).max())
        place = first[:-1, None] + np.arange(size)
        blocks.append(np.where(place < first[1:, None], place, BEYOND))
    out = []
    for s, of_stage in enumerate(blocks):
        real, parents = of_stage != BEYOND, []
        for t in range(s + 1, last + 1):
            parent = _known(design.index.parents[s][t - s - 1])[np.where(real, of_stage, 0)] - starts[t][:-1, None]
            parents.append(np.where(real, parent, blocks[t].shape[1] - 1).astype(np.int32))
        out.append(Share(of_stage, tuple(parents)))
    return tuple(out)


BEYOND = np.iinfo(np.int32).max
"""A block beyond every array: filling."""


def _block_counts(design: Design) -> list[int]:
    """True number of blocks of each stage."""
    layout, counts = design.layout, []
    for s, members in enumerate(layout.stages):
        factor = members[0][0]
        if layout.is_chain(s):
            counts.append(design.counts[factor])
        else:
            block = _known(design.index.block[factor])
            counts.append(int(block[block < layout.blocks[s]].max()) + 1)
    return counts


def _known(array: Any) -> np.ndarray:
    if isinstance(array, Tracer):
        raise DataError(
            "mesh= shares out the blocks of nested factors, which must be known when the function is traced: the "
            "arguments of a function under jit are to be what changes, not the whole design, as in "
            "jax.jit(lambda y: jm.estimate(design.replace(y=y), mesh=mesh))"
        )
    return np.asarray(array)


def minimise_shared(moments: Moments, reml, search: Search, mesh, axis: str, shared_out: tuple[Share, ...]) -> Solution:
    """Minimise the profiled deviance with the groups shared out over a mesh, the same on all devices.

    The layout of the moments is not crossed; of the search a `theta0` counts; shares are for as many devices as the
    mesh has along the axis.
    """
    mesh = _automatic(mesh)
    C, B, shift = (
        tuple(
            None if table is None else jnp.asarray(table).at[..., share.blocks.ravel()].get(mode="fill", fill_value=0)
            for table, share in zip(arrays, shared_out, strict=True)
        )
        for arrays in (moments.C, moments.B, moments.shift)
    )
    parents = tuple(tuple(parent.ravel() for parent in share.parents) for share in shared_out)
    none: tuple = ()
    index = Index(none, none, none, none, parents, none, none)
    layout = replace(moments.layout, blocks=tuple(share.blocks.shape[1] for share in shared_out))
    shared = replace(moments, C=C, B=B, shift=shift, index=index, layout=layout, axis=axis)
    return _on_mesh(_minimise, _specs, (shared, search.theta0, jnp.asarray(reml)), mesh, axis)


def _on_mesh(minimise, specs_of, arguments, mesh, axis):
    """What `minimise` gives of arguments of which the first is shared out by `specs_of`, the same on all devices."""
    program = _program(minimise, specs_of, mesh, axis)
    if is_traced(arguments):
        return program(*arguments)
    # Arrays of this process become arrays of the mesh, and the solution, the same everywhere, one of this process.
    specs = _specs_by_argument(specs_of, arguments, axis)
    placed = [_placed(argument, spec, mesh) for argument, spec in zip(arguments, specs, strict=True)]
    return jax.tree.map(jnp.asarray, jax.device_get(program(*placed)))


def _specs_by_argument(specs_of, arguments, axis):
    shared, *everywhere = arguments
    return specs_of(shared, axis), *(PartitionSpec() for _ in everywhere)


@cache
def _program(minimise, specs_of, mesh, axis):
    def run(*arguments):
        specs = _specs_by_argument(specs_of, arguments, axis)
        # Every device does the same with the same sums: the solution needs no check that it is the same.
        each = jax.shard_map(minimise, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(), check_vma=False)
        return each(*arguments)

    return jax.jit(run)


def _minimise(shared, theta0, reml):
    return minimise_deviance(shared, reml, Search(theta0))


def shared_grouping(design: Design, devices: int) -> Grouping:
    """The rows of a design with one factor by group, the groups of one device after those of another.

    Devices have as many chunks of rows each; what fills up is padding, and numbers of groups begin anew on each device.
    """
    grouping, count = design.index.groupings[0], design.counts[0]
    rows, size = _known(grouping.rows), -(-count // devices)
    bounds = np.minimum(np.arange(devices + 1) * size, count)
    of_chunk = np.arange(rows.shape[1]) if grouping.segments is None else _known(grouping.segments)
    first = np.searchsorted(of_chunk, bounds)
    place = first[:-1, None] + np.arange(int(np.diff(first).max()))
    real = place < first[1:, None]
    place = np.where(real, place, 0)
    segments = None
    if grouping.segments is not None:
        segments = np.where(real, of_chunk[place] - bounds[:-1, None], size - 1).astype(np.int32).ravel()
    return Grouping(np.where(real, rows[:, place], BEYOND).reshape(len(rows), -1), segments, size)


def minimise_groups(known: LaplaceDeviance, starts: Starts, limit, mesh, axis: str, grouping: Grouping) -> Minimum:
    """The lowest minimum for a response with a family and one factor, its groups shared out over a mesh.

    `grouping` is of as many devices as the mesh has along the axis. The modes, of which each device has found those of
    its groups, are not among what is returned.
    """
    mesh = _automatic(mesh)
    groups = in_groups(known.rows, known.X, known.columns, known.responses, grouping, mesh.shape[axis])
    shared = replace(known, groups=replace(groups, axis=axis))
    lowest = _on_mesh(_minimise_of_groups, _specs_of_groups, (shared, starts, jnp.asarray(limit)), mesh, axis)
    (bases,), x = lowest.at.point
    return lowest._replace(at=lowest.at._replace(point=Point((bases, known.nowhere()), x)))


def _specs_of_groups(shared: LaplaceDeviance, axis: str):
    """Blocks of groups, and the chunks of each, along the axis; all else everywhere."""
    specs = jax.tree.map(lambda _: PartitionSpec(), shared)
    return replace(specs, groups=jax.tree.map(lambda _: PartitionSpec(axis), shared.groups))


def _minimise_of_groups(shared, starts, limit):
    # A device begins with what its own groups know: nothing.
    (bases, _), x = starts.points
    nowhere = shared.nowhere()
    frames = bases, jnp.broadcast_to(nowhere, (len(x), *nowhere.shape))
    lowest = minimum(shared, starts._replace(points=Point(frames, x)), limit)
    (bases, _), x = lowest.at.point
    return lowest._replace(at=lowest.at._replace(point=Point((bases,), x)))


def _automatic(mesh) -> Mesh:
    """The mesh without what is explicit, where arrays that are not yet shared out would be refused."""
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(mesh.axis_names))


def axis_to_share(design: Design, mesh, axis: str | None) -> str | None:
    """The axis of the mesh to use, after everything that can be wrong with it; None without a mesh."""
    if mesh is None:
        if axis is not None:
            raise DataError(f"axis is {axis!r}, but there is no mesh that it could be an axis of: give mesh= as well")
        return None
    if not hasattr(mesh, "axis_names"):
        raise DataError(
            f"mesh is a {type(mesh).__name__}; it must be a jax.sharding.Mesh, such as jax.make_mesh((4,), ('groups',))"
        )
    names, layout = tuple(mesh.axis_names), design.layout
    axis = names[0] if axis is None and len(names) == 1 else axis
    if axis is None or axis not in names:
        raise DataError(f"axis is {axis!r}, but the axes of the mesh are {names}; give one of them")
    if design.index.has_related:
        raise ModelError(
            "mesh= shares out groups that are independent of each other, and relationship= relates the levels of this "
            "model: leave mesh out",
            page="relationships.md",
        )
    if layout.crossed:
        raise ModelError(
            f"mesh= shares out groups that have no level in common, and the {len(layout.factors)} crossed factors of "
            "this model hang together: leave mesh out, as one device works on all of it, or keep in the model the "
            "factors that lie inside the one to be shared out"
        )
    if layout.family is not None and (layout.quadrature > 1 or not is_grouped(layout)):
        raise ModelError(
            f"mesh= shares out the groups of a response with a family where there is one grouping factor, of at most "
            f"{WIDEST} columns, and quadrature is 1: leave mesh out",
            page="responses.md",
        )
    groups = _block_counts(design)[-1]
    if mesh.shape[axis] > groups:
        raise DataError(
            f"the mesh has {mesh.shape[axis]} devices along {axis!r}, but there are {groups} groups to share out: use "
            "at most as many devices as groups"
        )
    return axis


def _specs(shared: Moments, axis: str):
    """Blocks along the axis, all else everywhere."""
    specs = jax.tree.map(lambda _: PartitionSpec(), shared)
    blocks, shift = (
        jax.tree.map(lambda _: PartitionSpec(None, None, axis), arrays) for arrays in (shared.C, shared.shift)
    )
    parents = jax.tree.map(lambda _: PartitionSpec(axis), shared.index.parents)
    return replace(specs, C=blocks, B=blocks, shift=shift, index=replace(specs.index, parents=parents))


def _placed(tree, spec, mesh):
    specs = jax.tree.map(lambda _: spec, tree) if isinstance(spec, PartitionSpec) else spec

    def place(array, spec):
        array = np.asarray(array)
        return jax.make_array_from_callback(array.shape, NamedSharding(mesh, spec), lambda index: array[index])

    return jax.tree.map(place, tree, specs)
