"""-2 log-likelihood with the residual standard deviation free and one linear constraint on the fixed effects.

With t = log sigma and r^2(psi, w) the generalised residual sum of squares, minimised over the fixed effects whose
combination under constraint has the value w,

    D(psi, t, w) = log|V W| - sum log w + n (log 2 pi + 2 t) + r^2(psi, w) exp(-2 t).

The constraint enters after the elimination of the random effects: [X~ y~] is replaced by [X~ N, y~ + w k], N a basis of
the directions that it leaves free, so that G = [X~ y~]'V^-1[X~ y~] is all that is needed and r^2 is quadratic in w.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jmixed.algebra.small import inverse_and_log_determinant
from jmixed.layout.index import Array
from jmixed.likelihood.derivatives import jets
from jmixed.likelihood.jets import Jet
from jmixed.likelihood.moments import Moments


class Border(NamedTuple):
    """A linear constraint on the fixed effects of preconditioned columns.

    ``free`` (p, p) holds in its columns a basis of the directions left free, with zero columns in place of those taken
    away; ``padding`` (p,) is one for zero columns, else zero; ``particular`` (p,) takes the constrained combination to
    one.
    """

    free: Array
    padding: Array
    particular: Array


class Constrained(NamedTuple):
    """Value, gradient and Hessian of D in (psi, t, w), and the fixed effects (p,) of preconditioned columns."""

    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    beta: jax.Array


def constrained_deviance(psi, roots, t, w, border: Border, moments: Moments) -> Constrained:
    """D with exact derivatives.

    Parameters
    ----------
    psi : array (m,)
        Relative covariances in preconditioned columns.
    roots : sequence of arrays (q, q)
        Square roots of the terms' Sigma at psi.
    t, w : scalars
    border : Border
    moments : Moments
    """
    logdet, G = jets(psi, roots, moments)
    squares, coefficients = _squares(G, border)
    weights = jnp.stack([jnp.ones_like(w), w])
    slope = jnp.stack([jnp.zeros_like(w), jnp.ones_like(w)])
    precision, n = jnp.exp(-2 * t), moments.nobs
    rss = weights @ squares.value @ weights
    rss_psi, rss_w = squares.first @ weights @ weights, 2 * slope @ squares.value @ weights
    value = logdet.value - moments.log_weights + n * (jnp.log(2 * jnp.pi) + 2 * t) + precision * rss
    gradient = jnp.concatenate(
        [logdet.first + precision * rss_psi, jnp.stack([2 * n - 2 * precision * rss, precision * rss_w])]
    )
    own = logdet.second + precision * (squares.second @ weights @ weights)
    mixed = precision * jnp.stack([-2 * rss_psi, 2 * squares.first @ weights @ slope], axis=1)
    corner = precision * jnp.stack(
        [jnp.stack([4 * rss, -2 * rss_w]), jnp.stack([-2 * rss_w, 2 * slope @ squares.value @ slope])]
    )
    hessian = jnp.concatenate([jnp.concatenate([own, mixed], axis=1), jnp.concatenate([mixed.T, corner], axis=1)])
    beta = border.free @ (coefficients @ weights) + w * border.particular
    return Constrained(value, gradient, (hessian + hessian.T) / 2, beta)


def _squares(G: Jet, border: Border):
    """Jets of the matrix S (2, 2) with r^2 = (1, w) S (1, w)', and the coefficients (p, 2) of the free directions."""
    p, dtype = border.padding.shape[0], G.value.dtype
    responses = jnp.zeros((p + 1, 2), dtype).at[p, 0].set(1).at[:p, 1].set(-border.particular)
    E = jnp.concatenate([jnp.concatenate([border.free, jnp.zeros((1, p), dtype)]), responses], axis=1)
    turned = Jet(*(jnp.einsum("ai,...ab,bj->...ij", E, part, E) for part in G))
    A = turned.value[:p, :p] + jnp.diag(border.padding)
    inverse, _ = inverse_and_log_determinant(A)
    coefficients = inverse @ turned.value[:p, p:]
    contrast = jnp.concatenate([-coefficients, jnp.eye(2, dtype=dtype)])
    pulled = jnp.einsum("kij,ja->kia", turned.first, contrast)
    bend = jnp.einsum("kia,ij,ljb->klab", pulled[:, :p], inverse, pulled[:, :p])
    squares = Jet(
        contrast.T @ turned.value @ contrast,
        jnp.einsum("ia,kib->kab", contrast, pulled),
        jnp.einsum("ia,klij,jb->klab", contrast, turned.second, contrast) - bend - jnp.swapaxes(bend, 2, 3),
    )
    return squares, coefficients
