"""Work in threads has the settings of the thread that hands it out, and comes back in its order."""

import threading

import jax
import jax.numpy as jnp
import pytest

from jmixed.runtime.precision import double_precision
from jmixed.runtime.threads import in_threads, threads


def test_parts_come_back_in_order_from_other_threads():
    done = list(in_threads(lambda part: (part, threading.get_ident()), range(20), 3))
    assert [part for part, _ in done] == list(range(20))
    assert threading.get_ident() not in {thread for _, thread in done}
    assert len({thread for _, thread in done}) <= 3


def test_one_worker_is_this_thread():
    assert set(in_threads(lambda part: threading.get_ident(), range(3), 1)) == {threading.get_ident()}
    assert threads() >= 1


@pytest.mark.parametrize("wide", [False, True])
def test_settings_of_jax_go_along(wide):
    with jax.enable_x64(wide), jax.default_matmul_precision("highest"):
        (seen,) = in_threads(lambda part: (jnp.asarray(part).dtype, jax.config.jax_default_matmul_precision), [1.0], 2)
    assert seen == (jnp.dtype("f8" if wide else "f4"), "highest")


def test_an_error_in_a_part_is_raised_where_parts_are_asked_for():
    def refuse(part):
        raise ZeroDivisionError(part)

    with double_precision(), pytest.raises(ZeroDivisionError, match="7"):
        list(in_threads(refuse, [7], 2))
