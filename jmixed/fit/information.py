"""How well the variance parameters are known: the observed information at an optimum, on the host."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jmixed.covariance.scales import (
    diagonal_blocks,
    factors_of_theta,
    psi_map,
    singular_terms,
    theta_hessian,
    told_psi,
)
from jmixed.covariance.structure import Structure


@dataclass(frozen=True, eq=False)
class Uncertainty:
    """Covariances (m, m) of the estimates of psi and theta, and the derivative (m,) of the profiled sigma^2 in psi."""

    vcov_psi: np.ndarray
    vcov_theta: np.ndarray
    scale_gradient: np.ndarray

    @property
    def with_scale(self) -> tuple[np.ndarray, float]:
        """Covariance (m,) of psi with the profiled sigma^2, and the variance that psi gives to that."""
        return _with_scale(self)


@dataclass(frozen=True, eq=False)
class Information:
    """Derivatives of the deviance at an optimum, in psi of preconditioned columns; an `Uncertainty` when asked for one.

    `slope` (m,) is that of the profiled sigma^2; T (q, q) are the preconditioners of the terms.
    """

    structures: tuple[Structure, ...]
    theta: np.ndarray
    T: tuple[np.ndarray, ...]
    gradient: np.ndarray
    hessian: np.ndarray
    slope: np.ndarray

    @cached_property
    def _vcov(self):
        """Inverse observed information of psi in preconditioned columns, where no origin is far away."""
        return inverse_information(self.hessian)

    @cached_property
    def _hessian(self):
        """In psi of the original columns."""
        back = np.linalg.inv(psi_map(self.structures, self.T))
        return back.T @ self.hessian @ back

    @cached_property
    def _told(self):
        """Which entries of psi belong to variances that are positive."""
        return told_psi(self.structures, self.theta)

    @cached_property
    def vcov_psi(self) -> np.ndarray:
        """Inverse observed information of psi; nan where it is not positive definite, and of variances of zero."""
        if not self._told.all():
            return _information_of(self._hessian, self._told)
        forward = psi_map(self.structures, self.T)
        return forward @ self._vcov @ forward.T

    @cached_property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta; nan where it is not positive definite, and beside a zero pivot."""
        factors = factors_of_theta(self.structures, self.theta)
        if not any(singular_terms(self.structures, self.theta, self.T)):
            terms = zip(self.structures, factors, self.T, strict=True)
            slopes = diagonal_blocks(*(structure.theta_slopes(factor, T) for structure, factor, T in terms))
            return slopes @ self._vcov @ slopes.T
        # Where a covariance is singular theta bends more than psi, and the gradient in psi does not vanish.
        gradient = np.linalg.solve(psi_map(self.structures, self.T).T, self.gradient)
        hessian = theta_hessian(self.structures, self.theta, gradient, self._hessian)
        told = [structure.told_theta(factor) for structure, factor in zip(self.structures, factors, strict=True)]
        return _information_of(hessian, np.concatenate(told))

    @cached_property
    def scale_gradient(self) -> np.ndarray:
        """Derivative of the profiled sigma^2 in psi."""
        return np.linalg.solve(psi_map(self.structures, self.T).T, self.slope)

    @property
    def with_scale(self) -> tuple[np.ndarray, float]:
        """Covariance (m,) of psi with the profiled sigma^2, and the variance that psi gives to that."""
        if not self._told.all():
            return _with_scale(self)
        across = self._vcov @ self.slope
        return psi_map(self.structures, self.T) @ across, float(self.slope @ across)


def _with_scale(known):
    """By psi of the original columns; a variance of zero counts as known."""
    untold = np.isnan(np.diag(known.vcov_psi))
    vcov_psi = np.where(np.logical_or.outer(untold, untold), 0, known.vcov_psi)
    across = vcov_psi @ known.scale_gradient
    return across, float(known.scale_gradient @ across)


def inverse_information(hessian):
    """2 H^-1, or nan where H is not positive definite (observed information of a deviance is H / 2)."""
    if not len(hessian):
        return hessian
    scale = np.sqrt(np.abs(np.diag(hessian)))
    scale = np.where(scale > 0, scale, 1)
    values, vectors = np.linalg.eigh(hessian / np.outer(scale, scale))
    if not values[0] > 1e-12 * values[-1]:
        return np.full_like(hessian, np.nan)
    return 2 * (vectors / values @ vectors.T) / np.outer(scale, scale)


def _information_of(hessian, told):
    """Inverse information of the parameters that are told; a zero at its boundary counts as known, without an error."""
    chosen = np.flatnonzero(told)
    covariance = np.full(hessian.shape, np.nan)
    covariance[np.ix_(chosen, chosen)] = inverse_information(hessian[np.ix_(chosen, chosen)])
    return covariance
