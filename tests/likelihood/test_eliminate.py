"""The closed rule for derivatives against plain autodiff of the formulas as they stand, to third order."""

import functools

import jax
import jax.numpy as jnp
import layouts
import numpy as np
import pytest

from jmixed.likelihood.eliminate import Elimination, ProfiledEffects, eliminate, profile_fixed
from jmixed.runtime.precision import double_precision

BLOCKS, BORDER = 3, 4


def plain(sigma, C, B, summed):
    """The definitions, block by block, with nothing but solves and products."""

    def block(C, B):
        inner = jnp.eye(len(C), dtype=C.dtype) + sigma @ C
        P = jnp.linalg.solve(inner, sigma)
        T = jnp.eye(len(C), dtype=C.dtype) - P @ C
        U = P @ B
        return Elimination(jnp.linalg.slogdet(inner)[1], B.T @ U, P, T, C @ T, U, B - C @ U)

    out = jax.vmap(block, in_axes=-1, out_axes=-1)(C, B)
    return out._replace(logdet=jnp.sum(out.logdet), K=jnp.sum(out.K, axis=-1)) if summed else out


def draw(q, rank, seed=0):
    """(root, C, B), Sigma of the given rank, and as many directions to differentiate in."""
    r = np.random.default_rng(seed)
    root = np.tril(r.normal(size=(q, q))) * (np.arange(q) < rank)
    Z = r.normal(size=(BLOCKS, q + 2, q))
    C = np.einsum("gki,gkj->ijg", Z, Z)
    return root, C, r.normal(size=(q, BORDER, BLOCKS))


def along(function, point, directions):
    """Value and first three derivatives of a function along directions, by forward mode in forward mode."""
    for direction in directions:
        function = derivative(function, direction)
    return function(*point)


def derivative(function, direction):
    return lambda *point: (function(*point), jax.jvp(function, point, direction)[1])


@functools.partial(layouts.quick_jit, static_argnames="summed")
def three_orders(root, point, directions, summed):
    """Ours and the plain ones; a root is an argument, so that all ranks share a program."""
    return (
        along(lambda sigma, C, B: eliminate(sigma, root, C, B, summed), point, directions),
        along(lambda sigma, C, B: plain(sigma, C, B, summed), point, directions),
    )


@pytest.mark.sweep(3)
@pytest.mark.parametrize("rank", [0, 1, 2, 5])
@pytest.mark.parametrize(("q", "summed"), [(1, True), (2, False), (2, True), (5, False)])
def test_three_orders_of_derivatives(q, summed, rank):
    root, C, B = draw(q, rank)
    directions = []
    for seed in (1, 2, 3):
        d_root, d_C, d_B = draw(q, q, seed)
        directions.append((d_root + d_root.T, d_C, d_B))
    with double_precision():
        actual, expected = three_orders(root, (root @ root.T, C, B), directions, summed=summed)
    jax.tree.map(
        lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-11 * np.abs(e).max()), actual, expected
    )


def test_one_argument_at_a_time_and_in_reverse():
    root, C, B = draw(2, 1)
    r = np.random.default_rng(9)
    weights = [r.normal(size=shape) for shape in ((BLOCKS,), (BORDER, BORDER, BLOCKS), *[(2, 2, BLOCKS)] * 3)]
    weights += [r.normal(size=(2, BORDER, BLOCKS))] * 2

    def weighed(out):
        return sum(jnp.sum(w * piece) for w, piece in zip(weights, out, strict=True))

    def ours(sigma, C, B):
        return weighed(eliminate((sigma + sigma.T) / 2, root, C, B, False))

    def theirs(sigma, C, B):
        return weighed(plain((sigma + sigma.T) / 2, C, B, False))

    def of(function):
        first = jax.grad(function, argnums=(0, 1, 2))(root @ root.T, C, B)
        return first, jax.jacrev(jax.grad(function, argnums=2), argnums=1)(root @ root.T, C, B)

    with double_precision():
        actual, expected = layouts.quick_jit(lambda: (of(ours), of(theirs)))()
    first, plain_first = actual[0], expected[0]
    # C is symmetric: only the symmetric part of a derivative in it means anything.
    for a, e in zip((first[0], first[2]), (plain_first[0], plain_first[2]), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-10, atol=1e-11)
    symmetric = [c + np.swapaxes(c, 0, 1) for c in (first[1], plain_first[1])]
    np.testing.assert_allclose(*symmetric, rtol=1e-10, atol=1e-11)
    crossed = [c + np.swapaxes(c, 3, 4) for c in (actual[1], expected[1])]
    np.testing.assert_allclose(*crossed, rtol=1e-9, atol=1e-10)


def test_any_root_serves_and_none_is_differentiated():
    root, C, B = draw(3, 3)
    turned = root @ np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
    with double_precision():
        one, other = (eliminate(root @ root.T, each, C, B, True) for each in (root, turned))
        slope = jax.grad(lambda each: eliminate(root @ root.T, each, C, B, True).logdet)(root)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12), one, other)
    np.testing.assert_array_equal(slope, np.zeros((3, 3)))


def test_an_empty_block_explains_nothing():
    root, C, B = draw(2, 2)
    C, B = np.zeros_like(C), np.zeros_like(B)
    with double_precision():
        out = eliminate(root @ root.T, root, C, B, False)
    np.testing.assert_array_equal(out.logdet, np.zeros(BLOCKS))
    np.testing.assert_array_equal(out.K, np.zeros((BORDER, BORDER, BLOCKS)))


@pytest.mark.parametrize("p", [0, 1, 3])
def test_fixed_effects(p):
    def plainly(G):
        A, c = G[:p, :p], G[:p, p]
        beta = jnp.linalg.solve(A, c)
        return ProfiledEffects(jnp.linalg.slogdet(A)[1], G[p, p] - c @ beta, jnp.linalg.inv(A), beta)

    r = np.random.default_rng(p)
    G, *directions = (x.T @ x for x in r.normal(size=(4, 9, p + 1)))
    directions = [(d,) for d in directions]
    with double_precision():
        actual, expected = layouts.quick_jit(
            lambda G: (along(profile_fixed, (G,), directions), along(plainly, (G,), directions))
        )(G)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-9, atol=1e-11), actual, expected)
