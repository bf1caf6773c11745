"""Rows that programs take without a copy."""

import resource
from pathlib import Path

import numpy as np
import pytest

import jmixed as jm
from jmixed.runtime import memory
from jmixed.runtime.memory import ALIGNMENT, filled, padded, roomy


def numbers(rows, *shape):
    array = roomy(rows, *shape)
    array[:] = np.arange(1.0, array.size + 1).reshape(array.shape)
    return array


@pytest.mark.parametrize(
    "view",
    [lambda a: a, lambda a: a[:], lambda a: a[:, 0] if a.shape[1] == 1 else a, lambda a: a.reshape(a.shape)],
    ids=["itself", "slice", "only column", "reshaped"],
)
@pytest.mark.parametrize("width", [1, 3])
def test_whole_roomy_arrays_are_padded_in_place(view, width):
    array = view(numbers(150, width))
    whole = padded(array, 160)
    assert np.shares_memory(array, whole)
    assert whole.ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(whole[:150], array)
    assert not whole[150:].any()


@pytest.mark.parametrize(
    "part",
    [
        lambda a: a[:149],
        lambda a: a[1:],
        lambda a: a[::-1],
        lambda a: a[:, :1],
        lambda a: a[:, 1],
        lambda a: a.copy(),
        lambda a: a.astype(np.float32),
        lambda a: a.view(np.int64),
        lambda a: np.asfortranarray(a),
    ],
    ids=[
        "fewer rows",
        "later rows",
        "backwards",
        "first column",
        "second column",
        "copy",
        "single",
        "bits",
        "by column",
    ],
)
def test_parts_and_copies_of_roomy_arrays_are_copied_right(part):
    array = part(numbers(150, 2))
    whole = padded(array, 160)
    assert not np.shares_memory(array, whole)
    assert whole.dtype == array.dtype
    assert whole.ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(whole[: len(array)], array)
    assert not whole[len(array) :].any()


def test_another_size_than_the_bucket_is_copied():
    array = numbers(150, 2)
    whole = padded(array, 200)
    assert whole.shape == (200, 2)
    np.testing.assert_array_equal(whole[:150], array)
    assert not whole[150:].any()


def test_one_row_of_two_columns_is_not_taken_for_one_column():
    whole = padded(numbers(1, 2)[:, 0], 1)
    assert whole.shape == (1,)
    assert whole[0] == 1


def test_filled_and_empty():
    np.testing.assert_array_equal(filled(2.5, 3, 2), np.full((3, 2), 2.5))
    assert roomy(0, 2).shape == (0, 2)
    assert padded(roomy(0, 2), 1).tolist() == [[0.0, 0.0]]
    assert padded(roomy(5, 0), 8).shape == (8, 0)


def test_rows_of_a_model_are_held_once():
    data = jm.datasets.load("sleepstudy")
    design = jm.mixedlm("Reaction ~ Days + (Days | Subject)", data).design
    rows = design.rows(192)
    for name in ("y", "X", "weights", "offset"):
        assert np.shares_memory(getattr(rows, name), getattr(design, name)), name
    assert np.shares_memory(rows.Z[0], design.Z["Days | Subject"])


def resident():
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.skipif(memory._trim() is None, reason="the C library has no malloc_trim")
def test_freed_memory_goes_back_to_the_system():
    # Below the size of which glibc makes a mapping of its own, and with something in use behind the last.
    pieces = [np.ones(8000) for _ in range(1000)]
    kept = pieces[::20]
    before = resident()
    del pieces
    memory.give_back()
    assert before - resident() > 40 * 2**20
    assert all(piece.sum() == 8000 for piece in kept)


def test_nothing_happens_where_memory_cannot_be_given_back(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory._trim.cache_clear()
    try:
        assert memory._trim() is None
        memory.give_back()
    finally:
        memory._trim.cache_clear()
