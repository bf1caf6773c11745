"""Stacks of small matrices against numpy, on both sides of the unrolled order."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jmixed.algebra import batched, small, sums
from jmixed.runtime.precision import double_precision

ORDERS = (1, 2, sums.UNROLLED, sums.UNROLLED + 1)


def draw(q, count=3):
    r = np.random.default_rng(q)
    half = r.normal(size=(count, q + 2, q))
    return np.moveaxis(np.swapaxes(half, 1, 2) @ half, 0, -1), r.normal(size=(q, 4, count))


def matrices(stack):
    return np.moveaxis(np.asarray(stack), -1, 0)


@pytest.mark.parametrize("q", ORDERS)
def test_factor_solve_and_determinant(q):
    a, b = draw(q)

    @jax.jit
    def compute(a, b):
        factor = small.cholesky(a)
        return small.forward_solve(factor, b), small.log_determinant(factor)

    with double_precision():
        solved, logdet = compute(a, b)
    root = np.linalg.cholesky(matrices(a))
    np.testing.assert_allclose(matrices(solved), np.linalg.solve(root, matrices(b)), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(logdet, np.linalg.slogdet(matrices(a))[1], rtol=1e-12)


def test_a_right_side_without_batch_broadcasts():
    a, b = draw(sums.UNROLLED + 1)
    with double_precision():
        solved = small.forward_solve(small.cholesky(jnp.asarray(a)), jnp.asarray(b[:, :, :1]))
    root = np.linalg.cholesky(matrices(a))
    np.testing.assert_allclose(matrices(solved), np.linalg.solve(root, matrices(b[:, :, :1])), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("count", [3, sums.SHORT + 1])
@pytest.mark.parametrize("q", ORDERS)
def test_products(q, count):
    a, b = draw(q, count)
    # Among the entries of many matrices some are small by cancellation.
    near = partial(np.testing.assert_allclose, rtol=1e-12, atol=1e-13 if count > sums.SHORT else 0)
    with double_precision():
        near(matrices(small.matmul(a, b)), matrices(a) @ matrices(b))
        near(matrices(small.matmul(a[:, :, 0], b)), a[:, :, 0] @ matrices(b))
        near(
            matrices(small.matmul(small.transpose(b), a[:, :, 1])),
            matrices(b).swapaxes(1, 2) @ a[:, :, 1],
        )
        near(small.matmul(a[:, :, 0], b[:, :, 1]), a[:, :, 0] @ b[:, :, 1])


@pytest.mark.parametrize("q", [2, sums.UNROLLED + 1])
def test_a_matrix_that_is_not_positive_definite_gives_nan(q):
    with double_precision():
        factor = small.cholesky(-jnp.eye(q)[:, :, None])
        assert np.isnan(small.log_determinant(factor)).all()


@pytest.mark.parametrize("length", [3 * sums.BLOCK, 5 * sums.BLOCK, 5 * sums.BLOCK + 1])
def test_sums_in_blocks_are_sums(length):
    a = np.random.default_rng(0).normal(size=(2, length))

    def sums_of(scale, arrays):
        def weighted(arrays, scale):
            a, b = arrays
            return jnp.sum(scale * a * b), a @ b.T

        return sums.sum_in_blocks(weighted, arrays, scale)

    with double_precision():
        total, gram = jax.jit(sums_of)(2.0, (a, a[::-1]))
        slope = jax.jit(jax.grad(lambda scale, a: sums_of(scale, (a, a[::-1]))[0], argnums=(0, 1)))(2.0, a)
    np.testing.assert_allclose(total, 2 * np.sum(a * a[::-1]), rtol=1e-11)
    np.testing.assert_allclose(gram, a @ a[::-1].T, rtol=1e-11)
    np.testing.assert_allclose(slope[0], np.sum(a * a[::-1]), rtol=1e-11)
    np.testing.assert_allclose(slope[1], 4 * a[::-1], rtol=1e-12)


@pytest.mark.parametrize("p", [0, *ORDERS])
def test_inverses_of_triangles(p):
    triangle = np.triu(np.random.default_rng(p).normal(size=(p, p))) + 3 * np.eye(p)
    with double_precision():
        inverse = np.asarray(batched.triangular_inverse(jnp.asarray(triangle)))
    np.testing.assert_allclose(inverse @ triangle, np.eye(p), atol=1e-14)


def test_entries_at_constant_places():
    a = np.arange(12.0).reshape(3, 4)
    rows, columns = np.array([[0], [2]]), np.array([[3, 1, 0]])
    with double_precision():
        np.testing.assert_array_equal(sums.take(jnp.asarray(a), rows, columns), a[rows, columns])
        np.testing.assert_array_equal(sums.take(jnp.asarray(a[0]), rows), a[0][rows])
        np.testing.assert_array_equal(sums.diagonal(jnp.asarray(a[:, :3])), np.diag(a))
    assert isinstance(sums.take(a, rows, columns), np.ndarray)
