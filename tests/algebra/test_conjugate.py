"""Conjugate gradients and the logarithm that they leave behind, against dense linear algebra."""

import numpy as np
import pytest
import scipy.linalg

from jmixed.algebra.conjugate import conjugate_gradients, logarithms


@pytest.fixture(scope="module")
def system():
    rng = np.random.default_rng(0)
    root = rng.normal(size=(60, 60)) / 9
    K = np.eye(60) + root @ root.T
    B = np.column_stack([rng.normal(size=(60, 3)), np.zeros(60), np.linalg.eigh(K)[1][:, 0]])
    return K, B


def test_every_column_is_solved_and_stops_for_itself(system):
    K, B = system
    sizes = []

    def apply(P):
        sizes.append(P.shape[1])
        return K @ P

    solves = conjugate_gradients(apply, B, 1e-12, 200)
    np.testing.assert_allclose(solves.X, np.linalg.solve(K, B), atol=1e-10)
    assert solves.solved
    # A column of zeros takes no step, and an eigenvector one.
    assert sizes[:2] == [4, 3]
    assert solves.steps == len(sizes)


def test_a_product_that_is_known_is_not_made_again(system):
    K, B = system
    count = []
    solves = conjugate_gradients(lambda P: count.append(1) or K @ P, B, 1e-12, 200, K @ B)
    np.testing.assert_allclose(K @ solves.X, B, atol=1e-10)
    assert len(count) == solves.steps - 1


def test_too_many_steps_are_told(system):
    K, B = system
    solves = conjugate_gradients(lambda P: K @ P, B, 1e-12, 3)
    assert solves.steps == 3
    assert not solves.solved


def test_the_logarithm_is_that_of_the_matrix(system):
    K, B = system
    solves = conjugate_gradients(lambda P: K @ P, B, 1e-10, 200)
    dense = np.einsum("ik,ik->k", B, scipy.linalg.logm(K) @ B)
    np.testing.assert_allclose(logarithms(B, solves), dense, rtol=1e-9, atol=1e-12)
