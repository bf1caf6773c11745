"""The coordinates of the optimiser: a moving chart of the cones of the terms' covariances, each structure its own.

The bases are renewed at every accepted point, so that a vanishing direction always belongs to the last coordinate and
no circular valley forms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmixed.algebra.sums import diagonal
from jmixed.covariance.structure import block_diagonal, join, split

LARGE = 1e3
"""Relative deviation beyond which a random column is measured in a unit of its own."""


class Chart(NamedTuple):
    """A point on the cone: a basis (q, q) per term and phi (m,), row by row in each term's lower triangle."""

    bases: tuple[jax.Array, ...]
    phi: jax.Array


def chart_roots(chart: Chart, structures):
    """A square root of every term's Sigma at a point of a chart."""
    terms = zip(structures, chart.bases, split(structures, chart.phi), strict=True)
    return tuple(structure.chart_root(basis, phi) for structure, basis, phi in terms)


def chart_at(covariances, structures, dtype) -> Chart:
    """The chart around the terms' Sigma.

    Columns with a large variance are measured in a unit of their own: a variance beside one that is 1e12 times larger
    would be rounding among the eigenvalues, and its own curvature would count as none.
    """
    bases, phis = [], []
    for structure, covariance in zip(structures, covariances, strict=True):
        unit = jnp.maximum(jnp.sqrt(jnp.maximum(diagonal(covariance), 0)) / LARGE, 1)
        basis, phi = structure.chart(covariance, unit)
        bases.append(basis)
        phis.append(phi)
    return Chart(tuple(bases), join(phis, dtype))


def chart_of_entries(factors, T, structures, dtype) -> Chart:
    """The chart whose coordinates are the entries of the terms' factors, of original columns."""
    terms = zip(structures, factors, T, strict=True)
    bases, phis = zip(*(structure.chart_of_entries(factor, basis) for structure, factor, basis in terms), strict=True)
    return Chart(bases, join(phis, dtype))


def chart_map(chart: Chart, structures, gradient):
    """The derivative of psi in phi, and the second derivatives in phi of its product with a gradient in psi."""
    jacobians, bends = [], []
    terms = zip(
        structures,
        chart.bases,
        chart_roots(chart, structures),
        split(structures, chart.phi),
        split(structures, gradient),
        strict=True,
    )
    for structure, *place in terms:
        jacobian, bend = structure.chart_slopes(*place)
        jacobians.append(jacobian)
        bends.append(bend)
    return block_diagonal(jacobians), block_diagonal(bends)


def chart_sizes(chart: Chart, structures):
    """For every entry of phi (m,) the deviation of the direction that it belongs to."""
    terms = zip(structures, split(structures, chart.phi), strict=True)
    return join([structure.chart_sizes(phi) for structure, phi in terms], chart.phi.dtype)
