"""Row arrays in memory that compiled programs take as it is, aligned and padded with zeros; and memory given back."""

import ctypes
import functools
import math
import sys

import numpy as np

from jmixed.runtime.precision import FLOAT

ALIGNMENT = 64
"""Bytes to which JAX wants memory aligned in order to take it without a copy."""

LARGE = 1 << 25
"""Bytes of row arrays from which on it is worth a few milliseconds to give freed memory back."""


def bucket(size: int) -> int:
    """The size to which arrays are padded, so that data of similar size share a compiled program.

    Powers of two up to 64, where padding costs nothing; then four steps per power of two.
    """
    doubling = 1 << max(int(size) - 1, 0).bit_length()
    return doubling if size <= 64 else -(-size // (doubling // 8)) * (doubling // 8)


class _Padded(np.ndarray):
    """Rows with rows of zeros behind them; the first `rows` are in use."""

    rows = 0


def roomy(rows: int, *shape: int) -> np.ndarray:
    """Floats (rows, *shape), to be filled, whose memory goes on with zeros up to the bucket of that number of rows.

    What is written into such an array is held once, where any other array is copied when a program takes it.

    Examples
    --------
    >>> from jmixed.runtime.memory import padded, roomy
    >>> X = roomy(1000, 2)
    >>> X[:] = 1.0
    >>> whole = padded(X, 1024)
    >>> whole.shape, bool((whole[1000:] == 0).all()), np.shares_memory(X, whole)
    ((1024, 2), True, True)
    """
    whole = _aligned((bucket(rows), *shape), np.dtype(FLOAT), np.zeros).view(_Padded)
    whole.rows = rows
    return whole[:rows].view(np.ndarray)


def filled(value: float, rows: int, *shape: int) -> np.ndarray:
    """A `roomy` array that holds one value. Zeros take no memory before they are written to."""
    array = roomy(rows, *shape)
    if value:
        array[:] = value
    return array


def padded(array: np.ndarray, size: int) -> np.ndarray:
    """The array with rows of zeros up to a size, in aligned memory: its own where it is `roomy`, else a copy."""
    shape = (size, *array.shape[1:])
    whole = array
    while isinstance(whole, np.ndarray) and not (isinstance(whole, _Padded) and whole.rows):
        whole = whole.base
    if (
        isinstance(whole, _Padded)
        and (whole.rows, len(whole), whole.size, whole.dtype) == (len(array), size, math.prod(shape), array.dtype)
        and _address(whole) == _address(array)
        and array.flags.c_contiguous
    ):
        return whole.view(np.ndarray).reshape(shape)
    copy = _aligned(shape, array.dtype)
    copy[: len(array)] = array
    copy[len(array) :] = 0
    return copy


def extended(index: np.ndarray, size: int, fill: int) -> np.ndarray:
    """Whole numbers, as programs take them, up to a size by others that stand for padding."""
    whole = np.full(size, fill, np.int32)
    whole[: len(index)] = index
    return whole


def _aligned(shape, dtype, new=np.empty):
    size = math.prod(shape) * dtype.itemsize
    buffer = new(size + ALIGNMENT, np.uint8)
    start = -_address(buffer) % ALIGNMENT
    return buffer[start : start + size].view(dtype).reshape(shape)


def _address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


def give_back() -> None:
    """Give freed memory back to the system where the C library keeps it, as glibc does between blocks in use."""
    if (trim := _trim()) is not None:
        trim(0)


@functools.cache
def _trim():
    """glibc's ``malloc_trim``, or None."""
    if sys.platform != "linux":
        return None
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None
