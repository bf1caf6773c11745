"""Decompositions as steps of a program: as LAPACK gives them to JAX, nan where there are none, and no error."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from steps import agree

MANY = np.random.default_rng(1).normal(size=(5, 3, 3))
SPD = MANY @ MANY.swapaxes(1, 2) + np.eye(3)
SICK = SPD.copy()
SICK[2] = -np.eye(3)
HOLED = SPD.copy()
HOLED[1, 0, 0] = np.nan
BIG = np.random.default_rng(4).normal(size=(2, 12, 12))
WIDE = BIG @ BIG.swapaxes(1, 2) + np.eye(12)


@pytest.mark.parametrize("matrices", [SPD, SPD[0], SICK, SICK[2], HOLED, WIDE, SPD[:, None]])
def test_cholesky_factors(matrices):
    agree(jnp.linalg.cholesky, matrices, rtol=1e-9)


@pytest.mark.parametrize("matrices", [SPD, SPD[0], SICK, WIDE])
def test_eigenvalues(matrices):
    agree(jnp.linalg.eigvalsh, matrices, rtol=1e-9)
    agree(lambda A: (lambda w, V: (V * w[..., None, :]) @ V.swapaxes(-1, -2))(*jnp.linalg.eigh(A)), matrices, rtol=1e-9)


@pytest.mark.parametrize("matrices", [MANY, MANY[0], MANY[:, :2], MANY[..., :2], BIG])
def test_orthogonal_and_singular(matrices):
    agree(lambda A: jnp.linalg.qr(A), matrices, rtol=1e-9)
    agree(lambda A: jnp.linalg.qr(A, mode="complete"), matrices, rtol=1e-9)
    agree(lambda A: jnp.linalg.svd(A, full_matrices=False)[1], matrices, rtol=1e-9)


@pytest.mark.parametrize("matrices", [MANY, MANY[0], np.zeros((3, 3)), BIG, MANY[:, :2]])
def test_factors_with_pivots(matrices):
    agree(lambda A: lax.linalg.lu(A), matrices, rtol=1e-9)


def test_solutions_and_determinants():
    agree(lambda A, b: (jnp.linalg.solve(A, b), jnp.linalg.inv(A), jnp.linalg.slogdet(A)), MANY, MANY, rtol=1e-9)
    agree(lambda A, b: jnp.linalg.solve(A, b), MANY[0], MANY[0, 0], rtol=1e-9)


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("turned", [True, False])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("matrices", [SPD, SPD[0], WIDE])
def test_triangular_equations(left, lower, turned, unit, matrices):
    B = np.random.default_rng(5).normal(size=matrices.shape)
    B = B[..., :2] if left else B[..., :2, :]

    def solve(A, B):
        words = {"left_side": left, "lower": lower, "transpose_a": turned, "unit_diagonal": unit}
        return lax.linalg.triangular_solve(A, B, **words)

    agree(solve, matrices / 10 if unit else matrices, B, rtol=1e-8)


def test_a_zero_on_the_diagonal_is_no_error():
    A = np.diag([1.0, 0.0, 2.0])
    for matrices in (A, np.stack([A, A])):
        B = np.ones((*matrices.shape[:-1], 1))
        agree(lambda A, B: lax.linalg.triangular_solve(A, B, left_side=True, lower=True), matrices, B)


def test_no_equations():
    agree(lambda A, B: lax.linalg.triangular_solve(A, B, left_side=True, lower=True), SPD, np.zeros((5, 3, 0)))
