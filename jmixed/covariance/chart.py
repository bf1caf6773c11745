"""The coordinates of the optimiser: a moving chart of the cone of positive semidefinite matrices.

With ``Sigma = A L(phi) L(phi)' A'`` for a basis A of each term and a lower triangle L, phi is unconstrained, and a
singular Sigma is an ordinary point. The bases are renewed at every accepted point from the eigenvectors of Sigma,
largest first, so that a vanishing direction always belongs to the last column and no circular valley forms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh
from jmixed.algebra.sums import diagonal, take
from jmixed.covariance.structure import IDENTITY, block_diagonal, join, split

LARGE = 1e3
"""Relative deviation beyond which a random column is measured in a unit of its own."""


class Chart(NamedTuple):
    """A point on the cone: a basis (q, q) per term and phi (m,), row by row in each term's lower triangle."""

    bases: tuple[jax.Array, ...]
    phi: jax.Array


def chart_roots(chart: Chart, structures):
    """A square root of every term's Sigma at a point of a chart."""
    roots = []
    for structure, basis, phi in zip(structures, chart.bases, split(structures, chart.phi), strict=True):
        if structure.kind == IDENTITY:
            roots.append(phi[0] * basis)
        else:
            roots.append(basis @ (structure.covariance(phi) * np.tri(structure.q, dtype=phi.dtype)))
    return tuple(roots)


def chart_at(covariances, structures, dtype) -> Chart:
    """The chart whose bases are the eigenvectors of the terms' Sigma, largest first.

    Columns with a large variance are measured in a unit of their own: a variance beside one that is 1e12 times larger
    would be rounding among the eigenvalues, and its own curvature would count as none.
    """
    bases, phis = [], []
    for structure, covariance in zip(structures, covariances, strict=True):
        q = structure.q
        unit = jnp.maximum(jnp.sqrt(jnp.maximum(diagonal(covariance), 0)) / LARGE, 1)
        if structure.kind == IDENTITY:
            bases.append(unit[0] * np.eye(q, dtype=dtype))
            phis.append(jnp.sqrt(jnp.maximum(covariance[:1, 0], 0)) / unit[0])
            continue
        values, vectors = eigh(covariance / (unit[:, None] * unit[None]))
        # An eigenvalue at the rounding level of the largest is a zero of Sigma.
        values = jnp.where(values > 1e-15 * values[-1], values, 0)
        bases.append(unit[:, None] * vectors[:, ::-1])
        rows, columns = structure.psi_indices()
        phis.append(take(jnp.sqrt(values[::-1]), rows) * (rows == columns).astype(values.dtype))
    return Chart(tuple(bases), join(phis, dtype))


def chart_map(chart: Chart, structures, gradient):
    """The derivative of psi in phi, and the second derivatives in phi of its product with a gradient in psi.

    With R = A L, psi's entry (i, j) has the derivative A_ir R_jc + A_jr R_ic in L_rc; the second derivatives join
    entries of one column of L, and their product with the gradient G in Sigma is 2 (A'GA)_rr'.
    """
    jacobians, bends = [], []
    roots = chart_roots(chart, structures)
    gradients = split(structures, gradient)
    phis = split(structures, chart.phi)
    for structure, A, R, own, phi in zip(structures, chart.bases, roots, gradients, phis, strict=True):
        if structure.kind == IDENTITY:
            jacobians.append(2 * A[0, 0] ** 2 * phi[:, None])
            bends.append(2 * A[0, 0] ** 2 * own[:, None])
            continue
        rows, columns = structure.psi_indices()
        i, j = rows[:, None], columns[:, None]
        first, second = take(A, i, rows[None]), take(A, j, rows[None])
        jacobians.append(first * take(R, j, columns[None]) + second * take(R, i, columns[None]))
        slope = A.T @ structure.gradient_matrix(own) @ A
        same = (columns[:, None] == columns[None]).astype(phi.dtype)
        bends.append(2 * take(slope, rows[:, None], rows[None]) * same)
    return block_diagonal(jacobians), block_diagonal(bends)


def chart_sizes(chart, structures):
    """For every entry of phi the length of its row of L, (m,): a direction's deviation, largest first."""
    sizes = []
    for structure, phi in zip(structures, split(structures, chart.phi), strict=True):
        if structure.kind == IDENTITY:
            sizes.append(jnp.abs(phi))
            continue
        rows, _ = structure.psi_indices()
        same = (rows[:, None] == rows[None]).astype(phi.dtype)
        sizes.append(jnp.sqrt(same @ phi**2))
    return join(sizes, chart.phi.dtype)
