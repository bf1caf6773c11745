"""Threads of the library that factors matrices: one while small ones are factored, and as many as before afterwards."""

import threading

import numpy as np
import pytest
import scipy
import scipy.linalg

import jmixed as jm
from jmixed.runtime import blas


@pytest.fixture(params=[scipy, np], ids=["scipy", "numpy"])
def package(request):
    return request.param


@pytest.fixture
def threads(package):
    """What tells the number of threads, which are three to begin with."""
    found = blas._threads(package)
    if found is None:
        pytest.skip(f"{package.__name__} has another library here")
    get, set_to = found
    before = get()
    set_to(3)
    yield get
    set_to(before)


def test_one_thread_inside_and_as_many_as_before_outside(threads, package):
    with blas.one_thread(package):
        assert threads() == 1
        with blas.one_thread(package):
            assert threads() == 1
        assert threads() == 1
    assert threads() == 3
    with pytest.raises(ValueError, match="inside"), blas.one_thread(package):
        raise ValueError("inside")
    assert threads() == 3


def test_threads_of_the_caller_that_overlap_leave_it_as_it_was(threads, package):
    entered, leave = threading.Barrier(3, timeout=60), [threading.Event() for _ in range(2)]

    def work(mine):
        with blas.one_thread(package):
            entered.wait()
            mine.wait(60)

    workers = [threading.Thread(target=work, args=(event,)) for event in leave]
    for worker in workers:
        worker.start()
    entered.wait()
    for event, worker in zip(leave, workers, strict=True):
        assert threads() == 1
        event.set()
        worker.join()
    assert threads() == 3


def test_another_library_goes_on_as_it_does(monkeypatch):
    monkeypatch.setattr(blas, "_threads", lambda _: None)
    with blas.one_thread():
        np.testing.assert_allclose(scipy.linalg.cholesky(np.eye(2)), np.eye(2))


def test_crossed_factors_are_fitted_on_one_thread(threads, monkeypatch):
    r = np.random.default_rng(0)
    g, h = r.integers(0, 12, 200), r.integers(0, 9, 200)
    data = {"y": r.normal(size=12)[g] + r.normal(size=9)[h] + r.normal(size=200), "g": g, "h": h}
    seen, inside = [], blas.one_thread
    monkeypatch.setattr(blas, "one_thread", lambda: seen.append(threads()) or inside())
    jm.mixedlm("y ~ 1 + (1 | g) + (1 | h)", data).fit()
    assert set(seen) == {3}
    seen.clear()
    jm.mixedlm("y ~ 1 + (1 | g)", data).fit()
    assert not seen
    assert threads() == 3
