"""Fits in which some parameters are not estimated: coefficients or covariances held, and everything else at them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jmixed.compat.given_coefficients import given_coefficients
from jmixed.compat.packing import Packing
from jmixed.compat.params import MixedLMParams, is_params
from jmixed.covariance.scales import preconditioners, singular_terms, vanished
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
    root : array (m,) or None
        Square roots of the covariances to start from; None to have a start found.
    free_beta, free_root : bool arrays (p,), (m,)
        What is estimated.
    """

    design: Design
    packing: Packing
    reml: bool
    beta: np.ndarray
    root: np.ndarray | None
    free_beta: np.ndarray
    free_root: np.ndarray

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
        if self.free_beta.all() and self.free_root.all():
            return None
        cov_re, vcomp = self.packing.unpack(self.free_root.astype(float))
        return MixedLMParams.from_components(self.free_beta.astype(float), cov_re=cov_re, vcomp=vcomp)


def task(design: Design, packing: Packing, reml: bool, beta: np.ndarray, root: np.ndarray | None, free=None) -> Task:
    """Read a pattern of zeros and ones.

    Parameters
    ----------
    design : Design
        With all columns.
    packing : Packing
    reml : bool
    beta : array (p,)
        Start values of the coefficients.
    root : array (m,), optional
        Start values of the square roots; where some are held, unit variances without correlations by default.
    free : MixedLMParams, optional
        A parameter with a zero is held.

    Raises
    ------
    DataError
        The pattern has another shape than the model.
    ModelError
        The pattern cannot be held.
    """
    everything = np.ones(len(beta), bool), np.ones(packing.size, bool)
    if free is None:
        return Task(design, packing, reml, beta, root, *everything)
    if not is_params(free):
        raise DataError(f"free is {free!r}: give a MixedLMParams of zeros and ones")
    free_beta, free_root = np.asarray(free.fe_params) != 0, packing.mask(free)
    if free_beta.shape != beta.shape:
        raise DataError(f"free has fe_params of shape {free_beta.shape}, but the model has {len(beta)} fixed effects")
    if not free_root.all():
        root = packing.identity() if root is None else root
        packing.check_held(free_root, root)
    return Task(without_coefficients(design, beta, free_beta), packing, reml, beta, root, free_beta, free_root)


def fit(task: Task, method="newton", maxiter=None, gtol=None) -> host.Fit:
    """Estimate what is free.

    Parameters
    ----------
    task : Task
    method, maxiter, gtol
        As in `host.fit`.
    """
    start = None if task.root is None else task.packing.theta_from_root(task.root)
    options = {"reml": task.reml, "theta0": start, "method": method, "maxiter": maxiter, "gtol": gtol}
    if task.free_root.all():
        return host.fit(task.design, **options)
    free = task.packing.theta_from_root(task.free_root).astype(bool)
    found = _exactly_held(host.fit(task.design, **options, free=free), task)
    return _with_information(found, task, task.free_root)


def _exactly_held(fit, task):
    """A fit whose held entries have the very numbers they were held at, not those within rounding of them.

    What is free in a row that counts as zero is zero.
    """
    packing, zero = task.packing, []
    start = packing.root_from_psi(packing.psi_from_root(task.root))
    root = np.where(task.free_root, packing.root_from_theta(fit.theta), start)
    for label, factor in zip(task.design.labels, packing.matrices(root, lower=True), strict=True):
        rows = np.tril_indices(len(factor))[0]
        zero.append(vanished(task.design, label, np.linalg.norm(factor, axis=1))[rows])
    root = np.where(task.free_root & np.concatenate(zero), 0, root)
    covariances = _covariances(task, packing.psi_from_root(root), fit.sigma**2)
    return replace(fit, theta=packing.theta_from_root(root), covariances=covariances)


def at_start(task: Task) -> host.Fit:
    """The estimates of everything else at the start values of the covariances. It never counts as converged."""
    root = task.packing.identity() if task.root is None else task.root
    nothing = np.zeros(task.packing.size, bool)
    found = host.fit(task.design, reml=task.reml, theta0=task.packing.theta_from_root(root), free=nothing)
    return replace(_with_information(found, task, task.free_root), outcome=Outcome.MAX_ITERATIONS)


def _with_information(fit, task, free):
    """A fit with held covariances, with the covariance of the estimates of the free ones.

    The information is taken in the square roots, where what is held is a set of coordinates.
    """
    root = task.packing.root_from_theta(fit.theta)
    psi = task.packing.psi_from_root(root)
    found: Any = host.evaluate(task.design, psi, reml=task.reml, order=2)
    _, gradient, hessian = found
    information = -task.packing.root_hessian(root, gradient, hessian)
    # A variance of zero counts as known.
    covariance = inverse_block(information, free & _told(task.packing, root))
    return with_root_covariance(fit, task.packing, root, covariance, free)


def _told(packing: Packing, root: np.ndarray) -> np.ndarray:
    """Which entries (m,) belong to variances that are positive."""
    factors = zip(packing.structures, packing.matrices(root, lower=True), strict=True)
    return np.concatenate([structure.told_psi(np.any(factor != 0, axis=1)) for structure, factor in factors])


def with_root_covariance(
    fit: host.Fit, packing: Packing, root: np.ndarray, covariance: np.ndarray, free: np.ndarray
) -> host.Fit:
    """A fit whose variance parameters have the given covariance (m, m) in the square roots.

    What was free and is zero has no error, where what was held has one of zero.
    """
    jacobian = packing.jacobian(root)
    order = packing.theta_from_root(np.arange(packing.size, dtype=float)).astype(int)
    vcov_psi, without = jacobian @ covariance @ jacobian.T, free & ~_told(packing, root)
    covariance = np.array(covariance)
    for table in (vcov_psi, covariance):
        table[without] = table[:, without] = np.nan
    vcov_theta = covariance[np.ix_(order, order)]
    return replace(fit, uncertainty=Uncertainty(vcov_psi, vcov_theta, fit.uncertainty.scale_gradient))


def inverse_block(matrix: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The inverse of a block of a symmetric matrix with zeros around it; NaN if it is not positive definite."""
    inverse = np.zeros(matrix.shape)
    block = matrix[np.ix_(chosen, chosen)]
    if block.size:
        scale = 1 / np.sqrt(np.maximum(np.abs(np.diag(block)), np.finfo(block.dtype).tiny))
        values, vectors = np.linalg.eigh(block * np.outer(scale, scale))
        sound = values[0] > 1e-12 * max(values[-1], 1)
        found = (vectors / values) @ vectors.T * np.outer(scale, scale) if sound else np.full(block.shape, np.nan)
        inverse[np.ix_(chosen, chosen)] = found
    return inverse


def at_coefficients(fit: host.Fit, task: Task, root: np.ndarray, beta: np.ndarray) -> host.Fit:
    """A fit moved to other coefficients and covariances: scale, conditional modes and likelihood follow.

    Parameters
    ----------
    fit : Fit
        Its certificate and its standard errors stay, for the caller to see to.
    task : Task
    root : array (m,)
        Square roots of the relative covariances.
    beta : array (p,)

    Returns
    -------
    Fit
    """
    packing, design = task.packing, task.design
    n, p = design.nobs, design.X.shape[1]
    psi, nu = packing.psi_from_root(root), n - p if task.reml else n
    given = given_coefficients(design, psi, beta, task.reml)
    scale = given.rss / nu
    theta = packing.theta_from_root(packing.root_from_psi(psi))
    known = fit.uncertainty
    return replace(
        fit,
        theta=theta,
        beta=np.array(beta),
        sigma=np.sqrt(scale),
        objective=given.objective,
        b=given.b,
        covariances=_covariances(task, psi, scale),
        uncertainty=Uncertainty(known.vcov_psi, known.vcov_theta, given.rss_gradient / nu),
        scale_variance=2 * scale**2 / nu,
        singular=singular_terms(design.layout.terms, theta, preconditioners(design)),
    )


def _covariances(task, psi, scale):
    """Covariance of each term on the scale of the data, by its label."""
    matrices = task.packing.matrices(psi)
    return {
        label: scale * (matrix if len(matrix) == structure.q else matrix[0, 0] * np.eye(structure.q))
        for label, structure, matrix in zip(task.design.labels, task.packing.structures, matrices, strict=True)
    }
