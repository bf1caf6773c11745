"""The criterion of a response with a family while one parameter is held: Laplace's approximation, or quadrature.

Of the chart for normal responses (see `jmixed.likelihood.constrained`) there remains what concerns the covariances,
with sigma one. Beside their coordinates x (m,) stand those of the coefficients y = (beta, kappa) of preconditioned
columns

    y = F c + w k,     w = u - sum_i exp(d_i c_i),

with k the direction that takes the held combination to one and F a basis of the others. The sum is there for
thresholds between categories alone: y holds the first of them and the logarithms d c of the distances to the next, of
which a later threshold is the sum; it moves the first one.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.newton import Evaluation, Point
from jmixed.covariance.chart import Chart, chart_map, chart_roots
from jmixed.covariance.structure import block_diagonal
from jmixed.likelihood.constrained import HeldParameter, InHeld
from jmixed.likelihood.contract import Criterion, Starts
from jmixed.likelihood.laplace import LaplaceDeviance
from jmixed.likelihood.quadrature import QuadratureDeviance


@dataclass(frozen=True)
class ConstrainedResponse(Criterion):
    """-2 log-likelihood with one parameter held at the value u, a scalar, in coordinates (x, c) (m + p + k,).

    A point's frame holds the modes, from which the next search for them starts.
    """

    held: HeldParameter
    source: LaplaceDeviance | QuadratureDeviance
    u: jax.Array

    @property
    def free(self):
        """Which coordinates are free; x is in the place of the cosine."""
        return self.held.active

    def starts(self, given) -> Starts:
        """At coordinates (m + p + k,)."""
        return Starts(Point(self.source.nowhere()[None], given[None]), 1)

    @property
    def _laplace(self) -> LaplaceDeviance:
        return self.source if isinstance(self.source, LaplaceDeviance) else self.source.laplace

    def place(self, z) -> tuple[jax.Array, jax.Array]:
        """phi (m,) and y (p + k,) at z = (x, c, u)."""
        held, m, u = self.held, self.held.keep.shape[0], z[-1]
        x, c, w = z[:m], z[m:-1], u
        if held.steps is not None:
            there = held.steps != 0
            w = u - jnp.sum(jnp.where(there, jnp.exp(jnp.where(there, held.steps * c, 0)), 0))
        y = held.border.free @ c + w * held.border.particular
        return held.phi(x, u, 1), y

    def roots(self, phi):
        """Square roots of the terms' covariances in preconditioned columns."""
        return chart_roots(Chart(self.held.bases, phi), self._laplace.rows.layout.terms)

    def _at(self, z, start):
        """-2 log-likelihood as a function of z = (x, c, u) that JAX can differentiate."""
        phi, y = self.place(z)
        roots = self.roots(phi)
        if isinstance(self.source, QuadratureDeviance):
            return self.source.at_factor(self._factor(roots), y, start)
        return self.source.at_roots(roots, y)

    def _factor(self, roots):
        """lambda (q, q) of the terms together, of columns as they are."""
        terms = zip(self._laplace.columns.T, roots, self.held.bases, strict=True)
        return block_diagonal([triangular(T @ root, basis) for T, root, basis in terms])

    def value(self, point: Point):
        """-2 log-likelihood."""
        return self._at(jnp.append(point.x, self.u), point.frame)

    def value_gradient_hessian(self, point: Point, exact=True) -> Evaluation:
        """With its derivatives; `InHeld` comes with them, of which ``beta`` are y."""
        z = jnp.append(point.x, self.u)
        derivatives = self._by_nodes if isinstance(self.source, QuadratureDeviance) else self._by_chart
        value, gradient, hessian, known = derivatives(z, point.frame)
        beyond = InHeld(gradient[-1], hessian[-1, -1], hessian[:-1, -1], self.place(z)[1])
        return Evaluation(Point(known, point.x), value, gradient[:-1], hessian[:-1, :-1], beyond)

    def _by_chart(self, z, start):
        """Value, gradient and Hessian in z, and the modes: by the closed form of Laplace's approximation."""
        m, structures, dtype = self.held.keep.shape[0], self._laplace.rows.layout.terms, z.dtype
        (phi, y), moved = self.place(z), jax.jacfwd(self.place)(z)
        roots = self.roots(phi)
        value, gradient, hessian, known = self._laplace.in_psi(roots, y, start)
        empty = jnp.zeros((0, 0), dtype)
        chart = Chart(self.held.bases, phi)
        inner, bend = chart_map(chart, structures, gradient[:m]) if structures else (empty, empty)
        slope = jnp.concatenate([gradient[:m] @ inner, gradient[m:]])
        bends = jax.jacfwd(jax.jacfwd(lambda z: slope @ jnp.concatenate(self.place(z))))(z)
        jacobian = jnp.concatenate([inner @ moved[0], moved[1]])
        hessian = jacobian.T @ hessian @ jacobian + moved[0].T @ bend @ moved[0] + bends
        return value, slope @ jnp.concatenate(moved), (hessian + hessian.T) / 2, known

    def _by_nodes(self, z, start):
        """The same of quadrature, whose value is differentiated."""
        assert isinstance(self.source, QuadratureDeviance)
        phi, y = self.place(z)
        known = self.source.modes_from(start, self._factor(self.roots(phi)), y)
        both = jax.value_and_grad(lambda z: self._at(z, known))
        (value, gradient), along = jax.linearize(both, z)
        hessian = jax.lax.map(lambda unit: along(unit)[1], jnp.eye(len(z), dtype=z.dtype))
        return value, gradient, (hessian + hessian.T) / 2, known

    def blank(self) -> InHeld:
        """Nothing known."""
        return InHeld.blank(self.held, self.u)

    def estimates(self, point: Point):
        """Square roots of the covariances in preconditioned columns, log sigma, which is zero, and no rho."""
        phi, _ = self.place(jnp.append(point.x, self.u))
        return self.roots(phi), jnp.zeros_like(self.u), jnp.zeros(0, point.x.dtype)


def triangular(root, basis):
    """The lower-triangular factor of ``root @ root.T`` (q, q) but for the signs of its columns, smooth where it can be.

    Pivots are lengths, but the last, which is what the determinant leaves for it: where the matrix loses its rank the
    factor passes through zero and comes out with the other sign. A root that is triangular, as it is or with columns in
    the order that `basis` (q, q) has taken them from, stays so.
    """
    q = root.shape[0]
    rows, directions = [], []
    for i in range(q - 1):
        along = [root[i] @ direction for direction in directions]
        rest = root[i] - sum((a * d for a, d in zip(along, directions, strict=True)), jnp.zeros_like(root[i]))
        square = jnp.sum(rest * rest)
        positive = square > 0
        pivot = jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
        directions.append(jnp.where(positive, rest / jnp.where(positive, pivot, 1), 0))
        rows.append([*along, pivot])
    last = _normal_to(directions, q, root.dtype)
    rows.append([*(root[-1] @ direction for direction in directions), root[-1] @ last])
    zero = jnp.zeros((), root.dtype)
    factor = jnp.stack([jnp.stack([*row, *[zero] * (q - len(row))]) for row in rows])
    unit = np.eye(q, dtype=root.dtype)
    turned = root @ basis.T
    factor = jnp.where(jnp.all(basis @ basis.T == unit) & _is_triangular(turned), turned, factor)
    return jnp.where(_is_triangular(root), root, factor)


def _is_triangular(root):
    """Whether there are exact zeros above the diagonal, as there are whatever the coordinates."""
    return jnp.all(root * (1 - np.tri(len(root), dtype=root.dtype)) == 0)


def _normal_to(directions, q: int, dtype):
    """The unit vector (q,) that is normal to q - 1 orthonormal others: their cofactors, smooth in them."""
    if q == 1:
        return jnp.ones(1, dtype)
    matrix = jnp.stack(directions)
    keep = [np.delete(np.arange(q), k) for k in range(q)]
    minors = [jnp.linalg.det(matrix[:, columns]) if q > 2 else matrix[0, columns[0]] for columns in keep]
    return jnp.stack([(-1.0) ** k * minor for k, minor in enumerate(minors)])
