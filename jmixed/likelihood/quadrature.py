"""The criterion by adaptive Gauss-Hermite quadrature, for one grouping factor with few random effects.

With lambda the lower-triangular factor of Sigma in the columns as they are, and C = Z'WZ at the modes b = lambda u,

    A = I + lambda'C lambda = N'N, N lower triangular     u_j = lambda'a + sqrt(2) N^-1 z_j     b_j = lambda u_j
    -2 log L = sum over groups of  -2 log sum_j exp(log w_j + z_j'z_j + l(b_j) - u_j'u_j / 2) + log|A| + q log pi

with nodes z_j and weights w_j of the product rule (Pinheiro and Bates 1995, J. Comput. Graph. Stat. 4; Liu and Pierce
1994, Biometrika 81). lambda N^-1 is the lower Cholesky factor of the conditional covariance. With several random
effects the value depends a little on this choice of axes, and so on the order of columns: coordinates are therefore
the entries of theta, and no chart that moves along. Where nodes are one this is Laplace's approximation.

Derivatives are those of JAX, through the modes by the implicit rule.
"""

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient

from jmixed.algebra.newton import Evaluation, Point
from jmixed.algebra.small import cholesky, log_determinant, matmul
from jmixed.covariance.structure import block_diagonal, rectify, theta_of_factors
from jmixed.layout.design import Rows
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.gaussian import factors_of, precondition, psi_of, squares
from jmixed.likelihood.grouped import (
    Groups,
    modes,
    modes_from,
    over_blocks,
    rows_of_effects,
    sum_rows,
    working_cross,
)
from jmixed.likelihood.laplace import LaplaceDeviance
from jmixed.likelihood.profiled import InPsi


def nodes_of(count: int, q: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes (nodes^q, q) of the product rule, and log w + z'z of each."""
    z, w = np.polynomial.hermite.hermgauss(count)
    points = np.array(list(product(z, repeat=q)))
    weights = np.array(list(product(np.log(w), repeat=q))).sum(1)
    return points, weights + np.sum(points**2, axis=1)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class QuadratureDeviance(Criterion):
    """-2 log-likelihood by quadrature in (theta, beta, kappa), theta of the columns as they are.

    The others are as of `laplace`, whose groups have these columns. A point's frame holds the modes of the groups.
    """

    laplace: LaplaceDeviance
    nodes: jax.Array
    weights: jax.Array

    @property
    def _groups(self) -> Groups:
        groups = self.laplace.groups
        assert groups is not None
        return groups

    @property
    def rows(self) -> Rows:
        """The rows of the design."""
        return self.laplace.rows

    def starts(self, given: Any) -> Starts:
        """From the point that is `given`."""
        return Starts(jax.tree.map(lambda a: a[None], given), jnp.ones((), jnp.int32))

    def factor(self, theta) -> jax.Array:
        """lambda (q, q) of the terms together."""
        return block_diagonal(factors_of(theta, self.laplace.rows))

    def value(self, point: Point):
        """-2 log-likelihood, as a function that JAX can differentiate."""
        m = self.laplace.sizes[0]
        return self.at_factor(self.factor(point.x[:m]), point.x[m:], point.frame)

    def at_factor(self, factor, free, start):
        """-2 log-likelihood at lambda (q, q), beta and kappa of preconditioned columns; modes are found from a start.

        It can be differentiated; the signs of lambda's columns do not matter.
        """

        def of_block(groups, start):
            return jnp.sum(self._each(groups, factor, free, start))

        return jnp.sum(over_blocks(of_block, self._groups, start, jax.vmap))

    def at(self, theta, beta, kappa):
        """-2 log-likelihood at theta, beta and kappa of columns as they are."""
        return self.value(Point(self.nowhere(), jnp.concatenate([theta, self.laplace.preconditioned(beta, kappa)])))

    def by_part(self, theta, beta, kappa) -> jax.Array:
        """That of each group (groups,), likewise."""
        factor, free = self.factor(theta), self.laplace.preconditioned(beta, kappa)
        each = over_blocks(lambda g, a: self._each(g, factor, free, a), self._groups, self.nowhere(), jax.vmap)
        return each.reshape(-1)

    def nowhere(self) -> jax.Array:
        """What a frame holds when nothing is known of the modes."""
        return self.laplace.nowhere()

    def _each(self, groups: Groups, factor, free, start):
        """Of the groups of a block (groups,)."""
        a = _modes(groups, factor @ factor.T, stop_gradient(factor), free, stop_gradient(start))
        b = matmul(factor @ factor.T, a[:, None])[:, 0]
        C = working_cross(groups, b, free)
        q = len(b)
        inner = matmul(factor.T, matmul(C, factor[:, :, None])) + jnp.eye(q, dtype=b.dtype)[:, :, None]
        # A reverse Cholesky factorisation: that of the matrix with rows and columns in the other order.
        reverse = cholesky(inner[::-1, ::-1])
        centre = matmul(factor.T, a[:, None])[:, 0]
        none = jnp.full(b.shape[1:], -jnp.inf, b.dtype)

        @jax.checkpoint
        def add(total, node):
            z, weight = node
            u = centre + math.sqrt(2) * _solved(reverse, z)
            rows = groups.responses.log_densities(*rows_of_effects(groups, matmul(factor, u[:, None])[:, 0], free))
            value = weight + sum_rows(groups, rows) - jnp.sum(u * u, axis=0) / 2
            return jnp.logaddexp(total, value), None

        total, _ = jax.lax.scan(add, none, (self.nodes, self.weights))
        there = sum_rows(groups, (groups.responses.factors > 0).astype(b.dtype)) > 0
        constant = q * math.log(math.pi)
        return jnp.where(there, constant + log_determinant(reverse) - 2 * total, 0)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """With derivatives in (theta, beta, kappa), and in psi of preconditioned columns in the place of theta."""
        m = self.laplace.sizes[0]
        factor = self.factor(point.x[:m])
        point = Point(self.modes_from(point.frame, factor, point.x[m:]), point.x)
        both = jax.value_and_grad(lambda x: self.value(Point(point.frame, x)))
        (value, gradient), along = jax.linearize(both, point.x)
        hessian = jax.lax.map(lambda unit: along(unit)[1], jnp.eye(len(point.x), dtype=point.x.dtype))
        hessian = (hessian + hessian.T) / 2
        return Evaluation(point, value, gradient, hessian, self._in_psi(point.x, gradient, hessian))

    def modes_from(self, start, factor, free) -> jax.Array:
        """The modes of all groups at lambda (q, q), beta and kappa, from those of another point."""
        return modes_from(self._groups, factor @ factor.T, factor, free, start)

    def _in_psi(self, x, gradient, hessian) -> InPsi:
        """Derivatives in psi of preconditioned columns, beta and kappa, as far as theta tells them."""
        m, p, k = self.laplace.sizes
        rows, T = self.laplace.rows, self.laplace.columns.T

        def psi(theta):
            return psi_of(squares(precondition(factors_of(theta, rows), T)), rows.layout.terms, theta.dtype)

        back = block_diagonal([jnp.linalg.pinv(jax.jacfwd(psi)(x[:m])), jnp.linalg.inv(self.laplace.basis)])
        return InPsi(back.T @ gradient, back.T @ hessian @ back, jnp.zeros(m + p + k, x.dtype))

    def blank(self) -> InPsi:
        """Nothing known."""
        return self.laplace.blank()

    def estimates(self, point: Point, value: Any = None) -> dict[str, Any]:
        """As of `jmixed.likelihood.laplace`, with the modes at the optimum of this criterion."""
        m = self.laplace.sizes[0]
        factor, free, structures = self.factor(point.x[:m]), point.x[m:], self.laplace.rows.layout.terms
        modes = point.frame if value is not None else self._differentiable_modes(point)
        value = self.value(point) if value is None else value
        effects = jnp.einsum("ij,bjg->big", factor @ factor.T, modes)
        blocks = jnp.moveaxis(effects, 0, 1).reshape(effects.shape[1], -1)
        factors = factors_of(point.x[:m], self.laplace.rows)
        theta = theta_of_factors(structures, map(rectify, factors), free.dtype)
        levels = self.laplace.levels_of([blocks], tuple(jnp.eye(s.q, dtype=free.dtype) for s in structures))
        return self.laplace.described(factors, theta, free, value, levels)

    def _differentiable_modes(self, point: Point):
        m = self.laplace.sizes[0]
        factor = self.factor(point.x[:m])

        def of_block(groups, start):
            return _modes(groups, factor @ factor.T, stop_gradient(factor), point.x[m:], stop_gradient(start))

        return over_blocks(of_block, self._groups, point.frame, jax.vmap)


def _solved(reverse, z):
    """N^-1 z (q, groups) for the reversed Cholesky factor L of A: N is L' with rows and columns in the other order."""
    q = len(z)
    rows: dict[int, Any] = {}
    # N x = z forward: entry (i, j) of N is entry (q-1-j, q-1-i) of L.
    for i in range(q):
        rest = z[i]
        for j in range(i):
            rest = rest - reverse[q - 1 - j][q - 1 - i] * rows[j]
        rows[i] = rest / reverse[q - 1 - i][q - 1 - i]
    return jnp.stack([rows[i] for i in range(q)])


@jax.custom_jvp
def _modes(groups: Groups, sigma, root, free, start):
    """The modes a (q, groups) of a block as a function of all but where the search starts."""
    return modes(groups, root @ root.T, root, free, start).dual


@_modes.defjvp
def _modes_tangent(primals, tangents):
    groups, sigma, root, free, start = primals
    a = _modes(*primals)

    def scores(groups, sigma, free):
        b = matmul(sigma, a[:, None])[:, 0]
        eta, extras = rows_of_effects(groups, b, free)
        return jnp.stack([sum_rows(groups, groups.responses.derivatives(eta, extras).score * Z) for Z in groups.Z])

    _, change = jax.jvp(scores, (groups, sigma, free), (tangents[0], tangents[1], tangents[3]))
    C = working_cross(groups, matmul(sigma, a[:, None])[:, 0], free)
    q = len(a)
    # (I + C Sigma)^-1 of each group.
    system = matmul(C, jnp.broadcast_to(sigma[:, :, None], C.shape)) + jnp.eye(q, dtype=a.dtype)[:, :, None]
    moved = jnp.linalg.solve(jnp.moveaxis(system, -1, 0), jnp.moveaxis(change, -1, 0)[..., None])
    return a, jnp.moveaxis(moved[..., 0], 0, -1)


def quadrature_deviance(laplace: LaplaceDeviance, count: int) -> QuadratureDeviance:
    """The criterion with so many nodes for each random effect, of groups with columns as they are."""
    groups = laplace.groups
    assert groups is not None
    T = block_diagonal([jnp.linalg.inv(T) for T in laplace.columns.T])
    Z = jnp.einsum("ij,bi...->bj...", T, groups.Z)
    points, weights = nodes_of(count, T.shape[0])
    dtype = Z.dtype
    plain = replace(laplace, groups=replace(groups, Z=Z))
    return QuadratureDeviance(plain, jnp.asarray(points, dtype), jnp.asarray(weights, dtype))
