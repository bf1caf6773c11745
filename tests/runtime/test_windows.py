"""Parts of arrays that steps of a program read and write: as JAX does, at the edges too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from steps import agree

X = np.random.default_rng(0).normal(size=(3, 4))
TALL = np.random.default_rng(2).normal(size=(6, 3, 4))
ROWS = np.array([0, 5, 2, 2, -1, 7, 6, -9])
SORTED = np.sort(np.abs(ROWS) % 6)
MODES = ["clip", "fill", "promise_in_bounds"]


@pytest.mark.parametrize("start", [-2, 0, 1, 2, 9])
def test_slices_that_move_stay_inside(start):
    agree(lambda x, k: lax.dynamic_slice(x, (k, k), (2, 3)), X, np.int32(start))
    agree(lambda x, k: lax.dynamic_update_slice(x, x[:2, :2] + 1, (k, k)), X, np.int32(start))
    agree(lambda x, k: x.at[k].set(0.0), X, np.int32(start))
    agree(lambda x, k: x[k], X, np.int32(start))


@pytest.mark.parametrize("mode", MODES[:2])
def test_rows_that_are_taken(mode):
    agree(lambda x, k: x.at[k].get(mode=mode), TALL, ROWS)
    agree(lambda x, k: x.at[:, k].get(mode=mode), TALL, ROWS)
    agree(lambda x, k: x.at[:, :, k[:, None] + k[None]].get(mode=mode), TALL, ROWS)
    agree(lambda x, k: x.at[k, :, k].get(mode=mode), TALL, ROWS)
    agree(lambda x, k: x.at[k[:, None], k[None, :3] % 3].get(mode=mode, fill_value=7.0), TALL, ROWS)


@pytest.mark.parametrize("mode", MODES)
def test_rows_inside_that_are_taken(mode):
    agree(lambda x, k: x.at[k].get(mode=mode), TALL, SORTED)
    agree(lambda x, k: jnp.take(x, k % 3, axis=1, mode="clip"), TALL, SORTED)


def test_whole_numbers_and_booleans_outside():
    numbers = (100 * TALL).astype(np.int32)
    agree(lambda x, k: (x.at[k].get(mode="fill"), (x > 0).at[k].get(mode="fill")), numbers, ROWS)
    agree(lambda x, k: x.astype(jnp.uint32).at[k].get(mode="fill"), numbers, ROWS)


def test_one_index_for_every_row_of_a_batch():
    agree(lambda x, k: jnp.take_along_axis(x, k[:, None, None] % 3, axis=1), TALL, SORTED[:6])
    agree(jax.vmap(lambda x, k: x[k % 3]), TALL, SORTED[:6])
    agree(jax.vmap(lambda x, k: x.at[k % 3].add(1.0)), TALL, SORTED[:6])
    agree(jax.vmap(lambda x, k: lax.dynamic_slice(x, (k, k), (2, 2))), TALL, SORTED[:6])
    agree(jax.vmap(lambda x, k: lax.dynamic_update_slice(x, x[:1], (k, k))), TALL, SORTED[:6])


@pytest.mark.parametrize("how", ["set", "add", "subtract", "multiply", "max", "min"])
@pytest.mark.parametrize("mode", ["drop", "clip"])
def test_rows_that_are_written(how, mode):
    places = np.array([0, 5, 2, 4, -1, 7, 6, -9])[:6] if how == "set" and mode == "clip" else ROWS
    new = np.random.default_rng(3).normal(size=(len(places), 3, 4))
    agree(lambda x, k, y: getattr(x.at[k], how)(y, mode=mode), TALL, places, new)
    agree(lambda x, k, y: getattr(x.at[k, 1], how)(y[:, 0], mode=mode), TALL, places, new)


@pytest.mark.parametrize("ordered", [True, False])
def test_sums_by_group(ordered):
    groups = SORTED if ordered else ROWS
    new = np.random.default_rng(3).normal(size=(8, 3))
    agree(lambda y, k: jax.ops.segment_sum(y, k, 6, indices_are_sorted=ordered), new, groups)
    agree(lambda y, k: jax.ops.segment_sum(y, k, 6, indices_are_sorted=ordered), new[:0], groups[:0])
    agree(lambda y, k: jax.ops.segment_max(y, k, 6, indices_are_sorted=ordered), new, groups)


def test_the_array_that_is_written_to_stays_as_it_was():
    before = TALL.copy()
    agree(lambda x, k: x.at[k].add(1.0), TALL, SORTED)
    np.testing.assert_array_equal(TALL, before)


def test_order():
    ties = np.round(TALL)
    holed = np.where(TALL > 1, np.nan, TALL)
    for x in (ties, holed):
        agree(lambda x: (jnp.sort(x, axis=0), jnp.argsort(x, axis=1), jnp.sort(x, axis=1, descending=True)), x)
        agree(lambda x: (jnp.lexsort((x[:, 0], x[:, 1]), axis=0), jnp.median(x, axis=0)), x)
        agree(lambda x: lax.sort((x, 2 * x, x + 1), num_keys=2, dimension=1), x)


def test_nothing_taken_and_nothing_written():
    none = np.zeros(0, int)
    agree(lambda x, k: (x[k], x.at[k].set(1.0), x.at[k].add(1.0)), TALL, none)
