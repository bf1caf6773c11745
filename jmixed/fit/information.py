"""How well the variance parameters are known: the observed information at an optimum, on the host.

m entries of psi, and k parameters rho of the residuals' structure; what is told of psi alone leaves rho as uncertain as
it is.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from jmixed.covariance.scales import (
    diagonal_blocks,
    factors_of_theta,
    psi_map,
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
        return _with_scale(self.vcov_psi, self.scale_gradient)


@dataclass(frozen=True, eq=False)
class Information:
    """Derivatives of the deviance at an optimum, in psi of preconditioned columns; an `Uncertainty` when asked for one.

    Derivatives (m + k,) are in psi and then in rho; `slope` is that of the profiled sigma^2. T (q, q) are the
    preconditioners of the terms, and `singular` says whether one of their covariances is.
    """

    structures: tuple[Structure, ...]
    theta: np.ndarray
    T: tuple[np.ndarray, ...]
    gradient: np.ndarray
    hessian: np.ndarray
    slope: np.ndarray
    singular: bool

    @cached_property
    def _vcov(self):
        """Inverse observed information of psi in preconditioned columns, where no origin is far away."""
        return inverse_information(self.hessian)

    @property
    def _m(self) -> int:
        return len(self.theta)

    @cached_property
    def _map(self):
        """The derivative of psi of the original columns, and rho, in those of preconditioned ones."""
        return self._beside_rho(psi_map(self.structures, self.T))

    def _beside_rho(self, slopes):
        return diagonal_blocks(slopes, np.eye(len(self.hessian) - self._m))

    @cached_property
    def _hessian(self):
        """In psi of the original columns."""
        back = np.linalg.inv(self._map)
        return back.T @ self.hessian @ back

    @cached_property
    def _told(self):
        """Which parameters are those of positive variances, or of the residuals."""
        more = np.ones(len(self.hessian) - self._m, bool)
        return np.append(told_psi(self.structures, self.theta), more)

    @cached_property
    def vcov(self) -> np.ndarray:
        """Inverse observed information (m + k, m + k) of psi and rho; nan as in `vcov_psi`."""
        if not self._told.all():
            return _information_of(self._hessian, self._told)
        return self._map @ self._vcov @ self._map.T

    @cached_property
    def vcov_psi(self) -> np.ndarray:
        """Inverse observed information of psi; nan where it is not positive definite, and of variances of zero."""
        return self.vcov[: self._m, : self._m]

    @property
    def vcov_rho(self) -> np.ndarray:
        """Inverse observed information (k, k) of rho."""
        return self.vcov[self._m :, self._m :]

    @cached_property
    def vcov_theta(self) -> np.ndarray:
        """Inverse observed information of theta; nan where it is not positive definite, and beside a zero pivot."""
        factors = factors_of_theta(self.structures, self.theta)
        if not self.singular:
            terms = zip(self.structures, factors, self.T, strict=True)
            slopes = diagonal_blocks(*(structure.theta_slopes(factor, T) for structure, factor, T in terms))
            return slopes @ self._vcov[: self._m, : self._m] @ slopes.T
        # Where a covariance is singular theta bends more than psi, and the gradient in psi does not vanish.
        gradient = np.linalg.solve(psi_map(self.structures, self.T).T, self.gradient[: self._m])
        hessian = theta_hessian(self.structures, self.theta, gradient, self._hessian)
        told = [structure.told_theta(factor) for structure, factor in zip(self.structures, factors, strict=True)]
        told = np.append(np.concatenate(told), self._told[self._m :])
        return _information_of(hessian, told)[: self._m, : self._m]

    @cached_property
    def scale_gradient(self) -> np.ndarray:
        """Derivative of the profiled sigma^2 in psi."""
        return np.linalg.solve(self._map.T, self.slope)[: self._m]

    @property
    def with_scale(self) -> tuple[np.ndarray, float]:
        """Covariance (m,) of psi with the profiled sigma^2, and the variance that psi and rho give to that."""
        if not self._told.all():
            across, spread = _with_scale(self.vcov, np.linalg.solve(self._map.T, self.slope))
            return across[: self._m], spread
        across = self._vcov @ self.slope
        return (self._map @ across)[: self._m], float(self.slope @ across)


def _with_scale(vcov, scale_gradient):
    """By psi of the original columns; a variance of zero counts as known."""
    untold = np.isnan(np.diag(vcov))
    vcov = np.where(np.logical_or.outer(untold, untold), 0, vcov)
    across = vcov @ scale_gradient
    return across, float(scale_gradient @ across)


def inverse_information(hessian):
    """2 H^-1, or nan where H is not positive definite (observed information of a deviance is H / 2)."""
    if not len(hessian):
        return hessian
    if not np.all(np.isfinite(hessian)):
        return np.full_like(hessian, np.nan)
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
