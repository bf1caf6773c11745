"""Forked processes: where JAX ran before the fork a fit is refused at once, elsewhere it works."""

import multiprocessing
import subprocess
import sys

import pytest

CODE = """
import multiprocessing, warnings
warnings.simplefilter("ignore")
import jmixed as jm
from jmixed.errors import ForkError

model = jm.mixedlm("Yield ~ 1 + (1 | Batch)", jm.datasets.load("dyestuff"))

def fit(_):
    return model.fit().objective

def fit_many(_):
    return jm.estimate(model.design).objective

def pooled(function):
    with multiprocessing.get_context("fork").Pool(1) as pool:
        try:
            return pool.apply(function, (0,))
        except ForkError as error:
            return str(error)
"""

FORKS = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="there is no fork here")


def run(code):
    done = subprocess.run([sys.executable, "-c", CODE + code], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


@FORKS
def test_a_fit_after_a_fork_from_a_process_that_fitted_is_refused_at_once():
    alone, refused, pure, again = run("print(fit(0)); print(pooled(fit)); print(pooled(fit_many)); print(fit(0))")
    assert alone == again
    for message in (refused, pure):
        assert all(word in message for word in ("spawn", "loky", "threads", "fit_many", "docs/many.md#processes"))


@FORKS
def test_jax_alone_before_the_fork_is_enough():
    (refused,) = run("import jax; jax.devices(); print(pooled(fit))")
    assert "spawn" in refused


@FORKS
def test_a_fork_before_jax_ran_works_and_so_do_its_children():
    pooled, alone = run("print(pooled(fit)); print(fit(0))")
    assert float(pooled) == float(alone)
