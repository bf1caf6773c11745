"""What NumPy does for the steps of a JAX program that read or write parts of arrays, or put them in order."""

from typing import Any

import numpy as np

from jmixed.runtime.primitives import UnknownStepError, along, layers_where, nothing, same, step


def at(x, *args):
    """The part of a fixed size at given places, which are moved inside."""
    *starts, sizes = args
    x = np.asarray(x)
    return x[_window(x.shape, starts, sizes)]


def with_part(x, update, *starts):
    """An array with a part at given places put in."""
    out = np.array(x)
    out[_window(out.shape, starts, np.shape(update))] = update
    return out


def _window(shape, starts, sizes):
    firsts = [min(max(int(start), 0), whole - size) for start, whole, size in zip(starts, shape, sizes, strict=True)]
    return tuple(slice(first, first + size) for first, size in zip(firsts, sizes, strict=True))


@step("dynamic_slice")
def _(equation):
    return at, (tuple(equation.params["slice_sizes"]),)


@step("dynamic_update_slice")
def _(_):
    return with_part, ()


def layers_at(x, indices, axis, order):
    """Whole layers along one axis at given places; outside of the array, the nearest there is."""
    return np.take(x, np.clip(indices[..., 0], 0, x.shape[axis] - 1), axis=axis).transpose(order)


def gathered(x, indices, places, order, fill):
    """Windows of an array at given places, as `Places` tells them."""
    x = np.asarray(x)
    index, inside = _indexed(x.shape, indices, places, keep=fill is None)
    out = x[index]
    if inside is not None and not inside.all():
        out = layers_where(inside, out, fill)
    return out.transpose(order)


Places = tuple[tuple[int, ...], tuple[tuple[int, int], ...], tuple[int, ...], tuple[int, ...]]
"""For windows in an array: their size along each axis, the pairs of an axis that is moved along and of an axis of the
batch of indices that it follows, the axes that the numbers in an index belong to, and the axes along which windows
have none in the result."""


def _indexed(shape, indices, places: Places, keep):
    """Indices of all elements of windows, with the axes of the batch first; and which windows lie inside."""
    sizes, paired, moved, dropped = places
    batch = indices.shape[:-1]
    windows = [axis for axis in range(len(shape)) if axis not in dropped]
    index: list[Any] = [0] * len(shape)
    inside = None if keep else np.ones(batch, bool)
    behind = (1,) * len(windows)
    for k, axis in enumerate(moved):
        start, last = indices[..., k], shape[axis] - sizes[axis]
        if inside is not None:
            inside &= (start >= 0) & (start <= last)
        index[axis] = np.clip(start, 0, last).astype(np.intp).reshape(batch + behind)
    for axis, follows in paired:
        index[axis] = index[axis] + along(np.arange(shape[axis]), follows, len(batch) + len(windows))
    for k, axis in enumerate(windows):
        index[axis] = index[axis] + along(np.arange(sizes[axis]), len(batch) + k, len(batch) + len(windows))
    return tuple(index), inside


@step("gather")
def _(equation):
    params, numbers = equation.params, equation.params["dimension_numbers"]
    x, indices, out = (value.aval for value in (*equation.invars, *equation.outvars))
    sizes = tuple(params["slice_sizes"])
    dropped = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    fill = _fill(params, np.dtype(out.dtype)) if "FILL" in str(params["mode"]) else None
    offsets = tuple(numbers.offset_dims)
    others = [k for k in range(out.ndim) if k not in offsets]
    if 0 in out.shape:
        return nothing, (tuple(out.shape), np.dtype(out.dtype))
    if 0 in x.shape:
        raise UnknownStepError("gather from nothing")
    if len(numbers.start_index_map) == 1 and not numbers.operand_batching_dims:
        (axis,) = numbers.start_index_map
        whole = all(sizes[k] == x.shape[k] for k in range(x.ndim) if k != axis)
        if whole and dropped == (axis,) and fill is None:
            # What is taken stands where the axis was; the batch's axes, and those of windows, go where they shall.
            batch = indices.ndim - 1
            own = list(range(axis)) + list(range(axis + batch, x.ndim - 1 + batch))
            source = dict(zip((*others, *offsets), (*range(axis, axis + batch), *own), strict=True))
            return layers_at, (axis, tuple(source[k] for k in range(out.ndim)))
    paired = tuple(zip(numbers.operand_batching_dims, numbers.start_indices_batching_dims, strict=True))
    places = sizes, paired, tuple(numbers.start_index_map), dropped
    source = {k: position for position, k in enumerate((*others, *offsets))}
    return gathered, (places, tuple(source[k] for k in range(out.ndim)), fill)


def _fill(params, dtype):
    """What stands for what is outside of an array."""
    if params["fill_value"] is not None:
        return np.asarray(params["fill_value"], dtype)[()]
    if dtype.kind == "f":
        return dtype.type(np.nan)
    if dtype.kind == "b":
        return np.True_
    return np.iinfo(dtype).min if dtype.kind == "i" else np.iinfo(dtype).max


def scattered(x, indices, updates, places, order, drops, ufunc):
    """An array with windows put in at given places, or added there; those that are not wholly inside are left out."""
    out = np.array(x)
    index, inside = _indexed(out.shape, indices, places, keep=not drops)
    updates = np.asarray(updates).transpose(order)
    if inside is not None and not inside.all():
        index = tuple(np.broadcast_to(numbers, updates.shape)[inside] for numbers in index)
        updates = updates[inside]
    if ufunc is None:
        out[index] = updates
    else:
        ufunc.at(out, index, updates)
    return out


def rows_added(x, indices, updates, in_order):
    """An array with rows added at given places along its first axis; those outside are left out."""
    out, rows = np.array(x), indices.reshape(-1)
    updates = np.asarray(updates).reshape((len(rows), *out.shape[1:]))
    inside = (rows >= 0) & (rows < len(out))
    if not inside.all():
        rows, updates = rows[inside], updates[inside]
    if not in_order:
        order = np.argsort(rows, kind="stable")
        rows, updates = rows[order], updates[order]
    if len(rows):
        firsts = np.flatnonzero(np.concatenate([[True], rows[1:] != rows[:-1]]))
        out[rows[firsts]] += np.add.reduceat(updates, firsts, axis=0)
    return out


SCATTERS = {
    "scatter": None,
    "scatter-sub": np.subtract,
    "scatter-add": np.add,
    "scatter-mul": np.multiply,
    "scatter-max": np.maximum,
    "scatter-min": np.minimum,
}


@step(*SCATTERS)
def _(equation):
    params, numbers = equation.params, equation.params["dimension_numbers"]
    x, indices, updates = (value.aval for value in equation.invars)
    ufunc, drops = SCATTERS[equation.primitive.name], "CLIP" not in str(params["mode"])
    dropped = (*numbers.inserted_window_dims, *numbers.operand_batching_dims)
    windows = tuple(numbers.update_window_dims)
    others = [k for k in range(updates.ndim) if k not in windows]
    moved = tuple(numbers.scatter_dims_to_operand_dims)
    kept = [axis for axis in range(x.ndim) if axis not in dropped]
    sizes = [1] * x.ndim
    for axis, k in zip(kept, windows, strict=True):
        sizes[axis] = updates.shape[k]
    if 0 in updates.shape:
        return same, ()
    rows = dropped == moved == (0,) and tuple(sizes[1:]) == tuple(x.shape[1:]) and drops
    if ufunc is np.add and rows and tuple(others) == tuple(range(len(others))):
        return rows_added, (bool(params["indices_are_sorted"]),)
    paired = tuple(zip(numbers.operand_batching_dims, numbers.scatter_indices_batching_dims, strict=True))
    places = tuple(sizes), paired, moved, dropped
    return scattered, (places, (*others, *windows), drops, ufunc)


def in_order(*args):
    """Arrays put in the order of the first ones along an axis; ties stay as they are."""
    *arrays, axis, keys = args
    if keys == len(arrays) == 1:
        return (np.sort(arrays[0], axis=axis, kind="stable"),)
    order = np.argsort(arrays[0], axis=axis, kind="stable") if keys == 1 else np.lexsort(arrays[:keys][::-1], axis=axis)
    return tuple(np.take_along_axis(array, order, axis=axis) for array in arrays)


@step("sort")
def _(equation):
    return in_order, (equation.params["dimension"], equation.params["num_keys"])
