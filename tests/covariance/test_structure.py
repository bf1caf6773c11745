"""The three ways to write a covariance, and the canonical factor."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jmixed.covariance.identity import Identity
from jmixed.covariance.structure import block_diagonal, join, rectify, split
from jmixed.covariance.unstructured import Unstructured
from jmixed.runtime.precision import double_precision

STRUCTURES = (Unstructured(1), Unstructured(3), Identity(4))


def test_split_and_join():
    vector = np.arange(8.0)
    pieces = split(STRUCTURES, vector)
    assert [len(piece) for piece in pieces] == [1, 6, 1]
    with double_precision():
        np.testing.assert_array_equal(join(pieces, vector.dtype), vector)
        assert join([], vector.dtype).shape == (0,)


def test_block_diagonal():
    with double_precision():
        np.testing.assert_array_equal(block_diagonal([np.eye(2)]), np.eye(2))
        np.testing.assert_array_equal(block_diagonal([np.eye(1), 2 * np.eye(2)]), np.diag([1, 2, 2]))


compiled = jax.jit(rectify)


def canonical(root):
    with double_precision():
        return np.asarray(compiled(root))


@given(seed=st.integers(0, 10_000), scale=st.floats(1e-8, 1e8))
def test_rectify_gives_the_canonical_cholesky_factor(seed, scale):
    root = scale * np.random.default_rng(seed).normal(size=(3, 3))
    factor = canonical(root)
    np.testing.assert_allclose(factor, np.linalg.cholesky(root @ root.T), rtol=1e-7, atol=1e-9 * scale)
    np.testing.assert_array_equal(factor, np.tril(factor))


@pytest.mark.parametrize(
    "root",
    [
        np.zeros((3, 3)),
        np.array([[0, 0, 0], [1.0, 2, 0], [3, 1, 1]]),
        np.array([[1.0, 0, 0], [2, 0, 0], [3, 1, 1]]),
        np.array([[-1.0, 0, 0], [2, 1e-13, 0], [3, 1, 0]]),
    ],
)
def test_a_zero_pivot_has_a_zero_column(root):
    factor = canonical(root)
    np.testing.assert_allclose(factor @ factor.T, root @ root.T, atol=1e-11)
    assert np.all(np.diag(factor) >= 0)
    for j in np.flatnonzero(np.diag(factor) == 0):
        np.testing.assert_array_equal(factor[:, j], np.zeros(3))
    assert np.sum(np.diag(factor) > 0) == np.linalg.matrix_rank(root, tol=1e-9)


def test_derivative_of_rectify_is_that_of_the_cholesky_factor_and_finite_at_zero():
    root = np.random.default_rng(0).normal(size=(3, 3))
    with double_precision():
        ours = jax.jacobian(rectify)(root)
        theirs = jax.jacobian(lambda r: jnp.linalg.cholesky(r @ r.T))(root)
        at_zero = jax.jacobian(rectify)(np.zeros((3, 3)))
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-10)
    assert np.isfinite(at_zero).all()
