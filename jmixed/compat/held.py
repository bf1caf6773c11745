"""Fits in which some parameters are not estimated: coefficients or covariances held, and everything else at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jmixed.compat.at_parameters import given_coefficients
from jmixed.compat.packing import Packing
from jmixed.compat.params import MixedLMParams, is_params
from jmixed.covariance.scales import preconditioners, singular_terms, told_psi, vanished
from jmixed.errors import DataError, Outcome
from jmixed.fit import host
from jmixed.fit.information import Uncertainty
from jmixed.layout.design import Design, without_coefficients


@dataclass(frozen=True)
class Task:
    """What is to be estimated, and from where.

    Attributes
    ----------
    design : Design
        Without the columns of held coefficients, which its offset contains.
    packing : Packing
    reml : bool
    beta : array (p,)
        Values of held coefficients; entries of free ones mean nothing.
    theta : array (m,) or None
        Relative covariance factors to start from; None to have a start found.
    free_beta, free_theta : bool arrays (p,), (m,)
        What is estimated.
    """

    design: Design
    packing: Packing
    reml: bool
    beta: np.ndarray
    theta: np.ndarray | None
    free_beta: np.ndarray
    free_theta: np.ndarray

    def restore(self, fit: host.Fit) -> host.Fit:
        """A fit of `design` with the held coefficients put back; their standard errors are zero."""
        if self.free_beta.all():
            return fit
        beta, vcov, free = self.beta.copy(), np.zeros((len(self.beta),) * 2), self.free_beta
        beta[free] = fit.beta
        vcov[np.ix_(free, free)] = fit.vcov_beta
        return replace(fit, beta=beta, vcov_beta=vcov)

    def pattern(self) -> MixedLMParams | None:
        """Zeros and ones in place of the parameters; None if all are estimated."""
        if self.free_beta.all() and self.free_theta.all():
            return None
        cov_re, vcomp = self.packing.unpack(self.packing.root(self.free_theta.astype(float)))
        return MixedLMParams.from_components(self.free_beta.astype(float), cov_re=cov_re, vcomp=vcomp)


def task(design: Design, packing: Packing, reml: bool, beta: np.ndarray, theta: np.ndarray | None, free=None) -> Task:
    """Read a pattern `free` of zeros and ones: a parameter with a zero is held at its start value.

    Start values are beta (p,) and theta (m,); where covariances are held without a start, they are unit
    variances without correlations. What cannot be held is refused.
    """
    everything = np.ones(len(beta), bool), np.ones(packing.size, bool)
    if free is None:
        return Task(design, packing, reml, beta, theta, *everything)
    if not is_params(free):
        raise DataError(f"free is {free!r}: give a MixedLMParams of zeros and ones")
    free_beta, free_theta = np.asarray(free.fe_params) != 0, packing.theta_of_root(packing.mask(free))
    if free_beta.shape != beta.shape:
        raise DataError(f"free has fe_params of shape {free_beta.shape}, but the model has {len(beta)} fixed effects")
    if not free_theta.all():
        theta = packing.identity() if theta is None else theta
        packing.check_held(free_theta, theta)
    return Task(without_coefficients(design, beta, free_beta), packing, reml, beta, theta, free_beta, free_theta)


def fit(task: Task, method="newton", maxiter=None, gtol=None) -> host.Fit:
    """Estimate what is free; options as in `host.fit`."""
    options = {"reml": task.reml, "theta0": task.theta, "method": method, "maxiter": maxiter, "gtol": gtol}
    if task.free_theta.all():
        return host.fit(task.design, **options)
    return _with_information(_exactly_held(host.fit(task.design, **options, free=task.free_theta), task), task)


def _exactly_held(fit, task):
    """A fit whose held entries have the very numbers they were held at, not those within rounding of them.

    What is free in a row that counts as zero is zero.
    """
    packing = task.packing
    theta = np.where(task.free_theta, fit.theta, packing.theta(packing.psi(task.theta)))
    zero = [np.zeros(0, bool)]
    for label, structure, factor in zip(task.design.labels, packing.structures, packing.factors(theta), strict=True):
        rows = vanished(task.design, label, np.linalg.norm(factor, axis=1))
        zero.append(structure.theta(np.broadcast_to(rows[:, None], factor.shape)))
    theta = np.where(task.free_theta & np.concatenate(zero), 0, theta)
    return replace(fit, theta=theta, covariances=_covariances(task, packing.psi(theta), fit.sigma**2))


def at_start(task: Task) -> host.Fit:
    """The estimates of everything else at the start values of the covariances. It never counts as converged."""
    theta = task.packing.identity() if task.theta is None else task.theta
    started = host.fit(task.design, reml=task.reml, theta0=theta, free=np.zeros(task.packing.size, bool))
    return replace(_with_information(started, task), outcome=Outcome.MAX_ITERATIONS)


def _with_information(fit, task):
    """A fit with held covariances, with the covariance of the estimates of the free ones.

    The information is taken in theta, where what is held is a set of coordinates.
    """
    packing = task.packing
    evaluated: Any = host.evaluate(task.design, packing.psi(fit.theta), reml=task.reml, order=2)
    _, gradient, hessian = evaluated
    # A variance of zero counts as known.
    known = packing.theta_of_root(told_psi(packing.structures, fit.theta))
    covariance = inverse_block(-packing.hessian(fit.theta, gradient, hessian), task.free_theta & known)
    return with_theta_covariance(fit, task, covariance)


def with_theta_covariance(fit: host.Fit, task: Task, covariance: np.ndarray) -> host.Fit:
    """A fit whose theta has the given covariance (m, m).

    What was free and is zero has no error, where what was held has one of zero.
    """
    packing = task.packing
    jacobian = packing.jacobian(fit.theta)
    vcov_psi, vcov_theta = jacobian @ covariance @ jacobian.T, np.array(covariance)
    without = task.free_theta & ~packing.theta_of_root(told_psi(packing.structures, fit.theta))
    for table, zero in ((vcov_theta, without), (vcov_psi, packing.root(without).astype(bool))):
        table[zero] = table[:, zero] = np.nan
    return replace(fit, uncertainty=Uncertainty(vcov_psi, vcov_theta, fit.uncertainty.scale_gradient))


def inverse_block(matrix: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The inverse of a block of a symmetric matrix with zeros around it; NaN if it is not positive definite."""
    inverse = np.zeros(matrix.shape)
    block = matrix[np.ix_(chosen, chosen)]
    if block.size:
        scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(block)), np.finfo(block.dtype).tiny))
        values, vectors = np.linalg.eigh(block * np.outer(scale, scale))
        sound = values[0] > 1e-12 * max(values[-1], 1)
        inverted = (vectors / values) @ vectors.T * np.outer(scale, scale) if sound else np.full(block.shape, np.nan)
        inverse[np.ix_(chosen, chosen)] = inverted
    return inverse


def at_coefficients(fit: host.Fit, task: Task, theta: np.ndarray, beta: np.ndarray) -> host.Fit:
    """A fit moved to other coefficients (p,) and covariance factors (m,): scale, modes and likelihood follow.

    Its certificate and its standard errors stay, for the caller to see to.
    """
    packing, design = task.packing, task.design
    n, p = design.nobs, design.X.shape[1]
    psi, nu = packing.psi(theta), n - p if task.reml else n
    following = given_coefficients(design, psi, beta, task.reml)
    scale = following.rss / nu
    theta, known = packing.theta(psi), fit.uncertainty
    return replace(
        fit,
        theta=theta,
        beta=np.array(beta),
        sigma=np.sqrt(scale),
        objective=following.objective,
        b=following.b,
        covariances=_covariances(task, psi, scale),
        uncertainty=Uncertainty(known.vcov_psi, known.vcov_theta, following.rss_gradient / nu),
        scale_variance=2 * scale**2 / nu,
        singular=singular_terms(design.layout.terms, theta, preconditioners(design)),
    )


def _covariances(task, psi, scale):
    """Covariance of each term on the scale of the data, by its label."""
    terms = zip(task.design.labels, task.packing.covariances(psi), strict=True)
    return {label: scale * covariance for label, covariance in terms}
