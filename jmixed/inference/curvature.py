"""How a fit bends with its variance parameters: what standard errors, Satterthwaite and Kenward-Roger all need.

Everything is in the preconditioned columns of the likelihood, X~ = X R^-1 and Z~ = Z T, where numbers have digits to
spare. With V = W^-1 + sum psi_k G_k, relative to sigma^2, the elimination hands over exactly

    A = X~'V^-1X~       -dA/dpsi_i = X~'V^-1 G_i V^-1X~       d^2A/dpsi_i dpsi_j / 2 = sym X~'V^-1 G_i V^-1 G_j V^-1X~
    tr V^-1 G_i         tr V^-1 G_i V^-1 G_j                  (derivatives of log|V|)

from the blocks of the groups alone, at the cost of one Newton step and for every layout of random effects. Where V is
not linear in psi the G_k are its derivatives, and V goes on along them: Kenward and Roger's adjustment without its term
in second derivatives, which depends on how V is parametrised. The Hessian is exact. Parameters rho of the residuals'
structure are directions like those of psi, along straight paths too: see `residual_directions`.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.covariance.scales import diagonal_blocks, psi_map, typical_deviation
from jmixed.covariance.structure import Straightened, factors_of_theta, split
from jmixed.errors import ModelError
from jmixed.fit import host
from jmixed.fit.estimate import white_at
from jmixed.fit.information import Information, inverse_information
from jmixed.inference.residual_directions import residual_directions
from jmixed.layout.design import Design
from jmixed.likelihood import gaussian
from jmixed.likelihood.derivatives import MomentJets, derivatives_of, jets
from jmixed.likelihood.eliminate import profile_fixed
from jmixed.likelihood.moments import moments as cross_products
from jmixed.likelihood.patterned import (
    derivatives_by_pattern,
    has_patterns,
    patterns_of,
    straight_jets_by_pattern,
)
from jmixed.likelihood.preconditioning import preconditioners
from jmixed.likelihood.whitened import WhitenedDeviance
from jmixed.runtime.compilation import program
from jmixed.runtime.precision import double_precision


@dataclass(frozen=True)
class Curvature:
    """Derivatives at a fit, in preconditioned columns: m entries of psi and then of rho, p fixed effects.

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
        Takes psi of preconditioned columns to psi of the original ones; rho stays.
    roots, T : tuples of arrays (q, q)
        A square root of each term's relative covariance in preconditioned columns, and the preconditioner.
    nu : int
        Divisor of sigma^2: n, or n - p under REML.
    typical : float
        Standard deviation of a row in the middle of the data, relative to sigma.
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
    typical: float = 1.0

    @property
    def joint_covariance(self) -> np.ndarray:
        """Covariance (a + 1, a + 1) of the estimated directions and sigma^2, the inverse observed information.

        nan where the information is not positive definite.
        """
        of_directions = inverse_information(self.hessian)
        slope = self.directions.T @ self.scale_gradient
        across = of_directions @ slope
        corner = slope @ across + 2 * self.sigma**4 / self.nu
        return np.block([[of_directions, across[:, None]], [across[None], np.full((1, 1), corner)]])


def curvature_of_fit(fit: host.Fit, nobs: int, reml: bool) -> Curvature:
    """What a fit of crossed factors by conjugate gradients has: its average information, and no second derivatives.

    Those that only Kenward and Roger's method needs are nan.
    """
    known, fixed = fit.uncertainty, fit.fixed
    assert isinstance(known, Information)
    assert fixed is not None
    m, p = len(known.gradient), len(fit.beta)
    factors = factors_of_theta(known.structures, fit.theta)
    roots = tuple(np.linalg.solve(T, factor) for T, factor in zip(known.T, factors, strict=True))
    directions, bend = tangents(known.structures, roots, known.gradient)
    return Curvature(
        to_beta=fixed.to_beta,
        inverse=fixed.inverse,
        first=fixed.first,
        second=np.full((m, m, p, p), np.nan),
        traces=np.full(m, np.nan),
        products=np.full((m, m), np.nan),
        directions=directions,
        hessian=directions.T @ known.hessian @ directions + bend,
        free=np.eye(m),
        scale_gradient=known.slope,
        to_psi=psi_map(known.structures, known.T),
        roots=roots,
        T=known.T,
        sigma=fit.sigma,
        nu=nobs - p if reml else nobs,
        nobs=nobs,
        reml=reml,
    )


def curvature(design: Design, theta, sigma: float, reml: bool, free=None, rho=()) -> Curvature:
    """Exact derivatives at the estimate theta (m,), in the original columns, of a design without held coefficients.

    At a singular fit the rank of each term's covariance is held: directions that lead away from zero have no slope in
    the relative covariance factor, so they carry no uncertainty. Where entries of psi were held, `free` (m,) says which
    were estimated.
    """
    structures, k, p = design.layout.terms, len(rho), design.X.shape[1]
    typical = float(typical_deviation(design, np.asarray(rho))) if k else 1.0
    if k:
        moments, roots, (at, inverse, logdet, A) = _of_whitened(design, theta, reml, rho)
    else:
        moments = host.padded_moments(design)
        roots = _roots(structures, theta, moments.T)
        with double_precision():
            at, inverse, logdet, A = jax.device_get(_program(moments, roots, bool(reml)))
        # The moments have columns of X that are none.
        inverse, A = jax.tree.map(lambda table: table[..., :p, :p], (inverse, A))
    to_psi = diagonal_blocks(psi_map(structures, moments.T), np.eye(k))
    m, n = len(at.gradient), design.nobs
    if free is None:
        directions, bend = tangents(structures, roots, at.gradient[: m - k], typical)
        directions, bend = diagonal_blocks(directions, np.eye(k)), diagonal_blocks(bend, np.zeros((k, k)))
        every = np.eye(m)
    else:
        directions = every = np.linalg.inv(to_psi)[:, np.asarray(free, bool)]
        bend = np.zeros((every.shape[1],) * 2)
    return Curvature(
        to_beta=np.linalg.inv(moments.R[:p, :p]),
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
        T=moments.T,
        sigma=float(sigma),
        nu=n - p if reml else n,
        nobs=n,
        reml=bool(reml),
        typical=typical,
    )


def _roots(structures, theta, T):
    """Square roots of the terms' relative covariances in preconditioned columns."""
    factors = factors_of_theta(structures, np.asarray(theta))
    return tuple(np.linalg.solve(basis, factor) for basis, factor in zip(T, factors, strict=True))


@program
def _program(moments, roots, reml):
    psi = gaussian.psi_of(gaussian.squares(roots), moments.layout.terms, moments.G.dtype)
    logdet, G = jets(psi, roots, moments)
    return derivatives_of(logdet, G, moments, reml), *_of_fixed(*_straight_jets(psi, roots, moments, logdet, G))


def _straight_jets(psi, roots, moments, logdet, G, earlier=None):
    """The jets, or those along straight paths where a term's covariance is not linear in psi."""
    if all(structure.is_linear for structure in moments.layout.terms):
        return logdet, G
    terms: Any = tuple(map(Straightened, moments.layout.terms))
    return jets(psi, roots, replace(moments, layout=replace(moments.layout, terms=terms)), earlier=earlier)


def _of_fixed(logdet, G):
    """A^-1, log|V|, and A."""
    p = G.value.shape[0] - 1
    return profile_fixed(G.value).inverse, logdet, jax.tree.map(lambda table: table[..., :p, :p], G)


def _of_whitened(design, theta, reml, rho):
    """The same for residuals with parameters rho: cross-products at rho, roots, and what `_program` gives."""
    if design.layout.crossed:
        raise ModelError(
            "degrees of freedom are not there for crossed random effects with residual= or dispersion=; use "
            "bootstrap(), or tests with ddf='none'",
            page="structures.md",
        )
    rows = design.rows()
    by_pattern = has_patterns(rows)
    moved = None if by_pattern else residual_directions(rows, rho)
    with double_precision():
        columns, moments = jax.device_get(_columns_program(rows, rho))
        roots = _roots(design.layout.terms, theta, columns.T)
        if by_pattern:
            return moments, roots, jax.device_get(_patterns_program(rows, columns, rho, bool(reml)))
        derived = jax.device_get(_whitened_program(rows, columns, roots, rho, bool(reml), moved))
    return moments, roots, derived


@program
def _columns_program(rows, rho):
    columns = preconditioners(rows)
    return columns, WhitenedDeviance(rows, columns, True).moments(rho)


@program
def _patterns_program(rows, columns, rho, reml):
    patterns, residual = patterns_of(rows, columns), rows.layout.residual
    at = derivatives_by_pattern(rho, patterns, residual, columns, reml)
    return at, *_of_fixed(*straight_jets_by_pattern(rho, patterns, residual))


@program
def _whitened_program(rows, columns, roots, rho, reml, moved):
    white, _ = white_at(rows, rho)
    deviance = WhitenedDeviance(rows, columns, reml)
    psi = gaussian.psi_of(gaussian.squares(roots), rows.layout.terms, rows.y.dtype)
    # Moved rows are divided by their standard deviations already.
    there = (white.weights > 0).astype(white.weights.dtype)

    def tables(steps):
        X, *Z = (jnp.tensordot(steps, part, 1) for part in (moved.X, *moved.Z))
        y = jnp.tensordot(steps, moved.y, 1)
        along = replace(white, X=X, Z=tuple(Z), y=y, offset=jnp.zeros_like(y), weights=there)
        products = cross_products(along, columns, False)
        return products.C, products.B, products.G

    # Quadratic in the steps: second derivatives are sums of products of two directions.
    bends = jax.jacfwd(jax.jacfwd(tables))(jnp.zeros_like(rho))
    C, B, G = jax.tree.map(lambda bend: jnp.moveaxis(bend, (-2, -1), (0, 1)), bends)
    curved = deviance.moment_jets(rho)
    straight = MomentJets(
        tuple(jet._replace(second=bend) for jet, bend in zip(curved.C, C, strict=True)),
        tuple(jet._replace(second=bend) for jet, bend in zip(curved.B, B, strict=True)),
        curved.G._replace(second=G),
        curved.logdet._replace(second=-moved.products),
    )
    moments = deviance.moments(rho)
    at = derivatives_of(*jets(psi, roots, moments, earlier=curved), moments, reml)
    paths = jets(psi, roots, moments, earlier=straight)
    return at, *_of_fixed(*_straight_jets(psi, roots, moments, *paths, earlier=straight))


def tangents(structures, roots, gradient, typical=1.0):
    """Directions (m, a) in psi that keep the rank of every covariance, and the bend (a, a) of psi along them.

    The bend is <gradient, second derivatives of psi>, with the deviance's `gradient` (m,) in psi; `roots` are any
    square roots (q, q) of the covariances; `typical` is the residuals' `typical_deviation`.
    """
    # An empty block makes the tables of a model without terms, and adds nothing to others.
    slopes, bends = [np.zeros((0, 0))], [np.zeros((0, 0))]
    for structure, root, slope in zip(structures, roots, split(structures, gradient), strict=True):
        moves, bend = structure.tangents(root, slope, typical)
        slopes.append(moves)
        bends.append(bend)
    return diagonal_blocks(*slopes), diagonal_blocks(*bends)
