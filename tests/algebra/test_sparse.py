"""Sparse matrices against dense algebra: log-determinant, inverse, solves, and their derivatives."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse as scipy_sparse

from jmixed.algebra import ordering, sparse
from jmixed.errors import ModelError
from jmixed.runtime import device
from jmixed.runtime.precision import double_precision


class Pattern(NamedTuple):
    rows: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    size: int

    def dense(self, values=None):
        matrix = np.zeros((self.size, self.size))
        np.add.at(matrix, (self.rows, self.columns), self.values if values is None else values)
        return matrix + matrix.T - np.diag(np.diag(matrix))


def pattern(matrix):
    lower = scipy_sparse.tril(scipy_sparse.coo_array(matrix)).tocoo()
    return Pattern(lower.row, lower.col, lower.data, matrix.shape[0])


def pedigree(animals, generations, sires, dams, rng):
    """Sires and dams of generations of equal size, -1 for founders; all animals are parents where sires is None."""
    each = animals // generations
    sire, dam = np.full(animals, -1), np.full(animals, -1)
    for start in range(each, animals - each + 1, each):
        before = np.arange(start - each, start)
        males = before[::2] if sires is None else rng.choice(before[::2], sires, replace=False)
        females = before[1::2] if sires is None else rng.choice(before[1::2], dams, replace=False)
        sire[start : start + each], dam[start : start + each] = rng.choice(males, each), rng.choice(females, each)
    return sire, dam


def inverse_relationship(sire, dam):
    """Henderson's inverse of the relationship matrix, without inbreeding."""
    animals = np.arange(len(sire))
    known = (sire >= 0).astype(float) + (dam >= 0)
    parents = [(animals[p >= 0], p[p >= 0]) for p in (sire, dam)]
    rows, columns = np.concatenate([(animals, animals), *parents], axis=1)
    own = scipy_sparse.csr_array((np.where(rows == columns, 1.0, -0.5), (rows, columns)))
    return (own.T @ scipy_sparse.diags_array(4 / (4 - known)) @ own).tocsr()


def animal_model(sire, dam, rng):
    return inverse_relationship(sire, dam) + scipy_sparse.diags_array(rng.random(len(sire)) + 0.1)


def repeated_records(sire, dam, herds, rng):
    """Equations of animals, their permanent environments, and herds, with two records of each animal."""
    animals = len(sire)
    animal = np.tile(np.arange(animals), 2)
    herd = rng.integers(0, herds, len(animal))
    columns = np.concatenate([animal, animals + animal, 2 * animals + herd])
    design = scipy_sparse.csr_array((np.ones(len(columns)), (np.tile(np.arange(len(animal)), 3), columns)))
    own = [0.7 * inverse_relationship(sire, dam), 1.3 * scipy_sparse.eye_array(animals + herds)]
    return scipy_sparse.block_diag(own).tocsr() + design.T @ design


def dominant(links):
    """A symmetric matrix with these links whose diagonal outweighs them."""
    links = np.tril(links, -1)
    links = links + links.T
    return links + np.diag(np.abs(links).sum(axis=0) + 0.5)


@functools.cache
def case(name):
    """The matrix and the number of columns that are not ordered."""
    rng = np.random.default_rng(5)
    few = pedigree(240, 4, 3, 12, rng)

    def random(size, share):
        return np.where(rng.random((size, size)) < share, rng.normal(size=(size, size)), 0)

    near = np.abs(np.subtract.outer(np.arange(150), np.arange(150))) <= 3
    isolated = random(90, 0.04)
    isolated[10:30] = isolated[:, 10:30] = 0
    matrix, dense = {
        "tiny": (dominant(random(6, 0.5)), 256),
        "tiny without a core": (dominant(random(6, 0.5)), 0),
        "diagonal": (np.diag(1 + rng.random(40)), 0),
        "dense": (dominant(random(70, 1.0)), 10),
        "band": (dominant(random(150, 1.0) * near), 0),
        "random": (dominant(random(150, 0.02)), 20),
        "isolated": (dominant(isolated), 0),
        "three a node": (np.kron(dominant(random(40, 0.05)), np.ones((3, 3))) + np.eye(120), 0),
        "blocks of six": (np.kron(np.eye(30), np.full((6, 6), 0.3)) + np.diag(1 + rng.random(180)), 0),
        "animals": (animal_model(*few, rng), 20),
        "records": (repeated_records(*few, 7, rng), 20),
        "all parents": (animal_model(*pedigree(200, 4, None, None, rng), rng), 20),
    }[name]
    found = pattern(matrix)
    return found, sparse.plan(found.rows, found.columns, found.size, dense)


NAMES = ["tiny", "tiny without a core", "diagonal", "dense", "band", "random", "isolated", "three a node"]
NAMES += ["blocks of six", "animals", "records", "all parents"]


@jax.jit
def everything(plan, values, b):
    factor = sparse.factorise(plan, values)
    return sparse.log_determinant(factor), sparse.selected_inverse(factor), sparse.solve(factor, b)


def log_determinant(values, plan):
    return sparse.log_determinant(sparse.factorise(plan, values))


@pytest.mark.sweep(6)
@pytest.mark.parametrize("name", NAMES)
def test_values_are_those_of_dense_algebra(name):
    matrix, plan = case(name)
    b = np.random.default_rng(1).normal(size=(matrix.size, 2))
    with double_precision():
        log, inverse, x = everything(plan, matrix.values, b)
    dense = matrix.dense()
    np.testing.assert_allclose(log, np.linalg.slogdet(dense)[1], rtol=1e-12)
    np.testing.assert_allclose(inverse, np.linalg.inv(dense)[matrix.rows, matrix.columns], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(x, np.linalg.solve(dense, b), rtol=1e-9, atol=1e-12)


@pytest.mark.sweep(1)
@pytest.mark.parametrize("name", ["three a node", "records"])
def test_derivatives_of_the_log_determinant_are_those_of_dense_algebra(name):
    matrix, plan = case(name)
    direction = np.random.default_rng(2).normal(size=len(matrix.values))
    with double_precision():
        gradient, bend = jax.jit(
            lambda values, plan: jax.jvp(lambda v: jax.grad(log_determinant)(v, plan), (values,), (direction,))
        )(matrix.values, plan)
        slope = jax.jit(lambda values, plan: jax.jvp(lambda v: log_determinant(v, plan), (values,), (direction,)))(
            matrix.values, plan
        )[1]
    inverse, change = np.linalg.inv(matrix.dense()), matrix.dense(direction)
    twice = np.where(matrix.rows == matrix.columns, 1, 2)
    expected = -(inverse @ change @ inverse)[matrix.rows, matrix.columns]
    np.testing.assert_allclose(gradient, twice * inverse[matrix.rows, matrix.columns], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(slope, np.trace(inverse @ change), rtol=1e-10)
    np.testing.assert_allclose(bend, twice * expected, rtol=1e-8, atol=1e-11)


def test_forward_derivatives_of_third_order_are_exact():
    matrix, plan = case("animals")
    direction = np.random.default_rng(2).normal(size=len(matrix.values))

    def along(function):
        return lambda t: jax.jvp(function, (t,), (1.0,))[1]

    with double_precision():
        line = along(along(along(lambda t: log_determinant(matrix.values + t * direction, plan))))
        third = jax.jit(line)(0.0)
    power = np.linalg.solve(matrix.dense(), matrix.dense(direction))
    np.testing.assert_allclose(third, 2 * np.trace(power @ power @ power), rtol=1e-9)


def test_solutions_have_their_derivatives_in_both_modes():
    matrix, plan = case("records")
    rng = np.random.default_rng(3)
    b, change_b, weight = (rng.normal(size=(matrix.size, 2)) for _ in range(3))
    direction = rng.normal(size=len(matrix.values))

    def solution(values, b):
        return sparse.solve(sparse.factorise(plan, values), b)

    with double_precision():
        x, tangent = jax.jit(lambda v, b: jax.jvp(solution, (v, b), (direction, change_b)))(matrix.values, b)
        x = np.asarray(x)
        cotangents = jax.jit(jax.grad(lambda v, b: jnp.sum(weight * solution(v, b)), (0, 1)))(matrix.values, b)
    dense = matrix.dense()
    expected = np.linalg.solve(dense, change_b - matrix.dense(direction) @ x)
    np.testing.assert_allclose(tangent, expected, rtol=1e-8, atol=1e-11)
    adjoint = np.linalg.solve(dense, weight)
    across = -(adjoint @ x.T + x @ adjoint.T)[matrix.rows, matrix.columns]
    np.testing.assert_allclose(cotangents[0], np.where(matrix.rows == matrix.columns, across / 2, across), atol=1e-10)
    np.testing.assert_allclose(cotangents[1], adjoint, rtol=1e-9, atol=1e-12)


@pytest.mark.thorough
def test_a_batch_gives_what_one_gives():
    matrix, plan = case("three a node")
    scales = np.array([1.0, 1.7, 0.6])
    b = np.ones((matrix.size, 1))
    with double_precision():
        many = jax.jit(jax.vmap(everything, (None, 0, None)))(plan, scales[:, None] * matrix.values, b)
        bends = jax.jit(
            jax.vmap(lambda d: jax.jvp(jax.grad(lambda v: log_determinant(v, plan)), (matrix.values,), (d,))[1])
        )(scales[:, None] * matrix.values)
        one = [np.asarray(a) for a in everything(plan, matrix.values, b)]
    for whole, single, power in zip(many[1:], one[1:], (-1, -1), strict=True):
        np.testing.assert_allclose(whole, np.multiply.outer(scales**power, single), rtol=1e-9, atol=1e-13)
    np.testing.assert_allclose(many[0], one[0] + matrix.size * np.log(scales), rtol=1e-12)
    # Along the matrix itself the inverse changes by minus itself.
    twice = np.where(matrix.rows == matrix.columns, 1, 2)
    np.testing.assert_allclose(bends, np.multiply.outer(scales, -twice * one[1]), rtol=1e-8, atol=1e-11)


def test_single_precision_stays_single():
    matrix, plan = case("animals")
    values = matrix.values.astype(np.float32)
    results = everything(plan, values, np.ones((matrix.size, 1), np.float32))
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    inverse = np.linalg.inv(matrix.dense())
    np.testing.assert_allclose(results[1], inverse[matrix.rows, matrix.columns], rtol=1e-3, atol=1e-5)


def test_entries_named_twice_add_up_and_either_triangle_will_do():
    matrix, _ = case("random")
    rows, columns = np.tile(matrix.columns, 2), np.tile(matrix.rows, 2)
    plan = sparse.plan(rows, columns, matrix.size, 10)
    with double_precision():
        log, inverse, _ = everything(
            plan, np.concatenate([0.25 * matrix.values, 0.75 * matrix.values]), np.ones((1, 1))
        )
    expected = np.linalg.inv(matrix.dense())[rows, columns]
    np.testing.assert_allclose(log, np.linalg.slogdet(matrix.dense())[1], rtol=1e-12)
    np.testing.assert_allclose(inverse, expected, rtol=1e-9, atol=1e-12)


def test_a_matrix_that_is_not_positive_definite_has_no_log_determinant():
    matrix, plan = case("animals")
    values = np.where((matrix.rows == matrix.columns) & (matrix.rows == 100), -1.0, matrix.values)
    with double_precision():
        assert np.isnan(everything(plan, values, np.ones((matrix.size, 1)))[0])


def test_most_matrices_of_similar_size_share_a_program():
    """A number of batches may lie on either side of a rounded size: of four pedigrees, three have one program."""
    sizes = []
    for seed in range(1, 5):
        rng = np.random.default_rng(seed)
        found = pattern(animal_model(*pedigree(20_000, 10, 20, 300, rng), rng))
        plan = sparse.plan(found.rows, found.columns, found.size)
        sizes.append(jax.tree.map(np.shape, plan))
    assert max(sizes.count(one) for one in sizes) >= 3


def test_a_large_pedigree_is_solved():
    rng = np.random.default_rng(4)
    matrix = pattern(animal_model(*pedigree(20_000, 10, 20, 300, rng), rng))
    plan = sparse.plan(matrix.rows, matrix.columns, matrix.size)
    x = rng.normal(size=(matrix.size, 1))
    lower = scipy_sparse.csr_array((matrix.values, (matrix.rows, matrix.columns)))
    whole = lower + scipy_sparse.tril(lower, -1).T
    with double_precision():
        log, inverse, solution = map(np.asarray, everything(plan, matrix.values, whole @ x))
    np.testing.assert_allclose(solution, x, rtol=1e-9, atol=1e-11)
    # The trace of the matrix times its inverse, by entries.
    twice = np.where(matrix.rows == matrix.columns, 1, 2)
    np.testing.assert_allclose(np.sum(twice * inverse * matrix.values), matrix.size, rtol=1e-11)
    factor = scipy_sparse.linalg.splu(whole.tocsc(), permc_spec="MMD_AT_PLUS_A", options={"SymmetricMode": True})
    np.testing.assert_allclose(log, np.sum(np.log(np.abs(factor.U.diagonal()))), rtol=1e-12)


def test_what_would_not_fit_is_refused(monkeypatch):
    matrix, _ = case("all parents")
    monkeypatch.setattr(device, "SMALL", 0)
    monkeypatch.setattr(device, "memory", lambda: 10**5)
    with pytest.raises(ModelError, match="mixed-model equations would need"):
        sparse.plan(matrix.rows, matrix.columns, matrix.size)


def test_an_order_that_would_take_too_long_ends_in_the_core(monkeypatch):
    matrix, _ = case("all parents")
    monkeypatch.setattr(ordering, "LINKS", 0)
    plan = sparse.plan(matrix.rows, matrix.columns, matrix.size)
    assert not plan.stages
    b = np.random.default_rng(1).normal(size=(matrix.size, 2))
    with double_precision():
        log, _, x = everything(plan, matrix.values, b)
    np.testing.assert_allclose(log, np.linalg.slogdet(matrix.dense())[1], rtol=1e-12)
    np.testing.assert_allclose(matrix.dense() @ np.asarray(x), b, rtol=1e-9, atol=1e-9)
