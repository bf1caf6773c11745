"""What follows when the fixed effects have given values: the scale, the conditional modes, the likelihood."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.covariance.scales import psi_map, roots_of_psi
from jmixed.fit import host
from jmixed.layout.design import Design
from jmixed.likelihood import gaussian
from jmixed.likelihood.estimates import by_level, conditional_modes
from jmixed.likelihood.stages import covariances_of
from jmixed.runtime.precision import double_precision


@dataclass(frozen=True)
class GivenCoefficients:
    """The estimates of everything but beta and the relative covariances.

    Attributes
    ----------
    rss : float
        r'V^-1 r with r = y - offset - X beta and V relative to sigma^2.
    rss_gradient : array (m,)
        Its derivative in psi.
    objective : float
        -2 log-likelihood or REML criterion, sigma profiled out.
    b : dict of arrays (levels, q)
        Conditional modes by term.
    """

    rss: float
    rss_gradient: np.ndarray
    objective: float
    b: dict[str, np.ndarray]


def given_coefficients(design: Design, psi, beta, reml: bool) -> GivenCoefficients:
    """Everything that follows from psi and beta.

    Parameters
    ----------
    design : Design
    psi : array (m,)
        Relative covariances, lower triangles row by row, inside the cone.
    beta : array (p,)
    reml : bool

    Returns
    -------
    GivenCoefficients
    """
    structures, held = design.layout.terms, host.design_moments(design)
    back = np.linalg.inv(psi_map(structures, held.T))
    roots = roots_of_psi(structures, psi, held.T)
    with double_precision():
        out = jax.device_get(_program(held, back @ psi, roots, np.asarray(beta, design.y.dtype), bool(reml)))
    rss, gradient, objective, modes = out
    counts = {t: n for n, members in zip(design.counts, design.layout.factors, strict=True) for t in members}
    b = {label: modes[t][: counts[t]] for t, label in enumerate(design.labels)}
    return GivenCoefficients(float(rss), back.T @ gradient, float(objective), b)


@jax.jit
def _program(held, psi, roots, beta, reml):
    preconditioned = held.R @ (beta - held.beta0)
    contrast = jnp.append(-preconditioned, jnp.ones((), held.G.dtype))

    def rss(psi):
        reduced = gaussian.reduce(covariances_of(psi, held.layout.terms), roots, held)
        return contrast @ reduced.G @ contrast

    value, gradient = jax.value_and_grad(rss)(psi)
    result = gaussian.profile(covariances_of(psi, held.layout.terms), roots, held)
    logdet = result.logdet - held.log_weights + jnp.where(reml, result.logdet_fixed, 0)
    objective = gaussian.deviance(logdet, value, gaussian.degrees(held, reml))
    modes = by_level(conditional_modes(result._replace(beta=preconditioned), held), held)
    return value, gradient, objective, modes
