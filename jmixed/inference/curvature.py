"""How a fit bends with its variance parameters: what standard errors, Satterthwaite and Kenward-Roger all need.

Everything is in the preconditioned columns of the likelihood, X~ = X R^-1 and Z~ = Z T, where numbers have digits to
spare. With V = W^-1 + sum psi_k G_k, relative to sigma^2, the elimination hands over exactly

    A = X~'V^-1X~       -dA/dpsi_i = X~'V^-1 G_i V^-1X~       d^2A/dpsi_i dpsi_j / 2 = sym X~'V^-1 G_i V^-1 G_j V^-1X~
    tr V^-1 G_i         tr V^-1 G_i V^-1 G_j                  (derivatives of log|V|)

from the blocks of the groups alone, at the cost of one Newton step and for every layout of random effects. Where V is
not linear in psi the G_k are its derivatives, and V goes on along them: Kenward and Roger's adjustment without its term
in second derivatives, which depends on how V is parametrised. The Hessian is exact.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from jmixed.covariance.scales import diagonal_blocks, factors_of_theta, psi_map
from jmixed.covariance.structure import Straightened, split
from jmixed.fit import host
from jmixed.fit.information import inverse_information
from jmixed.layout.design import Design
from jmixed.likelihood import gaussian
from jmixed.likelihood.derivatives import derivatives_of, jets
from jmixed.likelihood.eliminate import profile_fixed
from jmixed.runtime.compilation import program
from jmixed.runtime.precision import double_precision


@dataclass(frozen=True)
class Curvature:
    """Derivatives at a fit, in preconditioned columns: m entries of psi, p fixed effects.

    Attributes
    ----------
    to_beta, inverse : arrays (p, p)
        R^-1, by which a contrast L of beta is the contrast ``L R^-1`` of beta~; A^-1 = (X~'V^-1X~)^-1.
    first, second : arrays (m, p, p), (m, m, p, p)
        Derivatives of A in psi, of a V that is linear in it.
    traces, products : arrays (m,), (m, m)
        tr V^-1 G_i and tr V^-1 G_i V^-1 G_j.
    directions, hessian : arrays (m, a), (a, a)
        Derivatives of psi along what was estimated (covariances of the fit's own rank, free parameters), and the
        profiled deviance's Hessian along them.
    free : array (m, f)
        Directions of all free entries of psi, whatever the rank.
    scale_gradient : array (m,)
        Derivative of the profiled sigma^2 in psi.
    to_psi : array (m, m)
        Takes psi of preconditioned columns to psi of the original ones.
    roots, T : tuples of arrays (q, q)
        A square root of each term's relative covariance in preconditioned columns, and the preconditioner.
    nu : int
        Divisor of sigma^2: n, or n - p under REML.
    """

    to_beta: np.ndarray
    inverse: np.ndarray
    first: np.ndarray
    second: np.ndarray
    traces: np.ndarray
    products: np.ndarray
    directions: np.ndarray
    hessian: np.ndarray
    free: np.ndarray
    scale_gradient: np.ndarray
    to_psi: np.ndarray
    roots: tuple[np.ndarray, ...]
    T: tuple[np.ndarray, ...]
    sigma: float
    nu: int
    nobs: int
    reml: bool

    @property
    def joint_covariance(self) -> np.ndarray:
        """Covariance (a + 1, a + 1) of the estimated directions and sigma^2, the inverse observed information.

        nan where the information is not positive definite.
        """
        own = inverse_information(self.hessian)
        slope = self.directions.T @ self.scale_gradient
        across = own @ slope
        corner = slope @ across + 2 * self.sigma**4 / self.nu
        return np.block([[own, across[:, None]], [across[None], np.full((1, 1), corner)]])


def curvature(design: Design, theta, sigma: float, reml: bool, free=None) -> Curvature:
    """Exact derivatives at the estimate theta (m,), in the original columns, of a design without held coefficients.

    At a singular fit the rank of each term's covariance is held: directions that lead away from zero have no slope in
    the relative covariance factor, so they carry no uncertainty. Where entries of psi were held, `free` (m,) says which
    were estimated.
    """
    structures = design.layout.terms
    held = host.design_moments(design)
    factors = factors_of_theta(structures, np.asarray(theta))
    roots = tuple(np.linalg.solve(T, factor) for T, factor in zip(held.T, factors, strict=True))
    with double_precision():
        at, inverse, logdet, A = jax.device_get(_program(held, roots, bool(reml)))
    to_psi = psi_map(structures, held.T)
    m, n, p = len(at.gradient), design.nobs, design.X.shape[1]
    if free is None:
        directions, bend = tangents(structures, roots, at.gradient)
        every = np.eye(m)
    else:
        directions = every = np.linalg.inv(to_psi)[:, np.asarray(free, bool)]
        bend = np.zeros((every.shape[1],) * 2)
    return Curvature(
        to_beta=np.linalg.inv(held.R),
        inverse=inverse,
        first=A.first,
        second=A.second,
        traces=logdet.first,
        products=-logdet.second,
        directions=directions,
        hessian=directions.T @ at.hessian @ directions + bend,
        free=every,
        scale_gradient=at.scale_gradient,
        to_psi=to_psi,
        roots=roots,
        T=held.T,
        sigma=float(sigma),
        nu=n - p if reml else n,
        nobs=n,
        reml=bool(reml),
    )


@program
def _program(held, roots, reml):
    psi = gaussian.psi_of(gaussian.squares(roots), held.layout.terms, held.G.dtype)
    logdet, G = jets(psi, roots, held)
    at, inverse = derivatives_of(logdet, G, held, reml), profile_fixed(G.value).inverse
    if not all(structure.is_linear for structure in held.layout.terms):
        terms: Any = tuple(map(Straightened, held.layout.terms))
        logdet, G = jets(psi, roots, replace(held, layout=replace(held.layout, terms=terms)))
    p = held.R.shape[0]
    A = jax.tree.map(lambda table: table[..., :p, :p], G)
    return at, inverse, logdet, A


def tangents(structures, roots, gradient):
    """Directions (m, a) in psi that keep the rank of every covariance, and the bend (a, a) of psi along them.

    The bend is <gradient, second derivatives of psi>, with the deviance's `gradient` (m,) in psi; `roots` are any
    square roots (q, q) of the covariances.
    """
    # An empty block makes the tables of a model without terms, and adds nothing to others.
    slopes, bends = [np.zeros((0, 0))], [np.zeros((0, 0))]
    for structure, root, slope in zip(structures, roots, split(structures, gradient), strict=True):
        moves, bend = structure.tangents(root, slope)
        slopes.append(moves)
        bends.append(bend)
    return diagonal_blocks(*slopes), diagonal_blocks(*bends)
