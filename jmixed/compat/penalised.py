"""Penalised fits: the lasso for fixed effects, and smooth penalties on coefficients or on a covariance.

Smooth penalties come as statsmodels' Penalty objects: Python functions with a derivative that JAX cannot trace. The
penalised likelihood is therefore maximised on the host, by trust-region Newton steps with the likelihood's exact
derivatives and differences of the penalty's own gradient.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from jmixed.compat.held import Task, at_coefficients, inverse_block, with_root_covariance
from jmixed.compat.packing import Packing
from jmixed.compat.params import as_array
from jmixed.errors import DataError, ModelError, Outcome
from jmixed.fit import host
from jmixed.layout.design import Design

OPTIMUM = 1e-4
"""Largest gradient of an optimum, in units in which every parameter has a standard error of about one."""


def lasso(
    beta: np.ndarray, vcov: np.ndarray, alpha: np.ndarray, ceps: float, ptol: float, maxit: int
) -> tuple[np.ndarray, bool]:
    """Minimise ``r'V^-1 r + sum(alpha |beta|)`` over beta with V held, by coordinate descent.

    With A = X'V^-1 X and the generalised least-squares estimate, r'V^-1 r is a quadratic in beta: no row is read.

    Parameters
    ----------
    beta : array (p,)
        The generalised least-squares estimate.
    vcov : array (p, p)
        Its covariance A^-1.
    alpha : array (p,)
        Weights of the absolute values.
    ceps : float
        A penalised coefficient below this in magnitude is zero.
    ptol : float
        Largest change, in standard errors, at which to stop.
    maxit : int
        Sweeps over the coefficients.

    Returns
    -------
    array (p,), bool
        The coefficients, and whether the sweeps came to rest.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.compat.penalised import lasso
    >>> lasso(np.array([3.0, 0.1]), np.eye(2), np.array([1.0, 1.0]), 1e-4, 1e-6, 200)
    (array([2.5, 0. ]), True)
    """
    A = np.linalg.inv(vcov)
    error = np.sqrt(np.diag(vcov))
    target, found, settled = A @ beta, beta.copy(), False
    for _ in range(maxit):
        before = found.copy()
        for j in range(len(found)):
            rest = target[j] - A[j] @ found + A[j, j] * found[j]
            found[j] = np.sign(rest) * max(abs(rest) - alpha[j] / 2, 0.0) / A[j, j]
        settled = bool(np.all(np.abs(found - before) <= ptol * error))
        if settled:
            break
    found[(alpha > 0) & (np.abs(found) < ceps)] = 0.0
    return found, settled


def penalty_weights(alpha, k_fe: int) -> np.ndarray:
    """alpha as an array (k_fe,) of non-negative numbers."""
    weights = as_array(alpha, "alpha")
    if weights.ndim > 1 or weights.size not in (1, k_fe) or not np.all(weights >= 0):
        raise DataError(
            f"alpha is {alpha!r}: give one number >= 0, or {k_fe} of them, one for each fixed effect of the model"
        )
    return np.broadcast_to(weights, (k_fe,)).copy()


def fit_lasso(fit: host.Fit, task: Task, alpha: np.ndarray, **options) -> host.Fit:
    """A fit with the lasso's coefficients at the relative covariances of an unpenalised fit.

    Parameters
    ----------
    fit : Fit
        The unpenalised fit.
    task : Task
    alpha : array (number of free coefficients,)
    **options
        ceps, ptol, maxit of `lasso`.

    Returns
    -------
    Fit
        Coefficients of zero have NaN standard errors, for none is known; those of the others are conditional on the
        choice of the non-zero ones.
    """
    beta, settled = lasso(fit.beta, fit.vcov_beta, alpha, **options)
    at = at_coefficients(fit, task, task.packing.root_from_theta(fit.theta), beta)
    active = (beta != 0) | (alpha == 0)
    vcov = inverse_block(np.linalg.inv(fit.vcov_beta), active) * (at.sigma / fit.sigma) ** 2
    vcov[~active], vcov[:, ~active] = np.nan, np.nan
    return replace(at, vcov_beta=vcov, outcome=fit.outcome if settled else Outcome.MAX_ITERATIONS)


class HeldPenalty:
    """A penalty on all coefficients as one on the free ones, the others being held."""

    def __init__(self, penalty, beta: np.ndarray, free: np.ndarray):
        self._penalty, self._beta, self._free = penalty, beta, free

    def _all(self, beta):
        full = self._beta.copy()
        full[self._free] = beta
        return full

    def func(self, params):
        """Value of the penalty at the free coefficients."""
        return self._penalty.func(self._all(params))

    def deriv(self, params):
        """Its gradient."""
        return np.asarray(self._penalty.deriv(self._all(params)))[self._free]


@dataclass
class Penalised:
    """Minus the profile log-likelihood plus penalties, as a function of x = (beta, square roots of the covariances).

    Attributes
    ----------
    design : Design
    packing : Packing
    reml : bool
    fe_pen : object with func(beta) and deriv(beta), or None
    cov_pen : object with func(cov, inverse) and deriv(cov, inverse), or None
        Of the relative covariance of the correlated random effects; the gradient is that in its lower triangle.
    """

    design: Design
    packing: Packing
    reml: bool
    fe_pen: Any = None
    cov_pen: Any = None

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """beta and the square roots."""
        p = self.design.X.shape[1]
        return x[:p], x[p:]

    def _covariance(self, root):
        cov_re, vcomp = self.packing.unpack(self.packing.psi_from_root(root))
        invertible = np.linalg.cond(cov_re) < 1e15
        return cov_re, np.linalg.inv(cov_re) if invertible else np.full(cov_re.shape, np.inf), vcomp

    def penalty(self, x: np.ndarray) -> float:
        """Sum of the penalties."""
        beta, root = self.split(x)
        total = 0.0 if self.fe_pen is None else float(np.sum(self.fe_pen.func(beta)))
        if self.cov_pen is not None:
            cov_re, inverse, _ = self._covariance(root)
            total += float(self.cov_pen.func(cov_re, inverse))
        return total

    def penalty_gradient(self, x: np.ndarray) -> np.ndarray:
        """Its gradient."""
        beta, root = self.split(x)
        fixed = np.zeros(len(beta)) if self.fe_pen is None else np.asarray(self.fe_pen.deriv(beta), dtype=float)
        if self.cov_pen is None:
            return np.concatenate([fixed, np.zeros(len(root))])
        cov_re, inverse, vcomp = self._covariance(root)
        lower = np.zeros(cov_re.shape)
        lower[np.tril_indices(len(cov_re))] = self.cov_pen.deriv(cov_re, inverse)
        psi_gradient = self.packing.pack(lower, np.zeros(len(vcomp)))
        return np.concatenate([fixed, self.packing.root_gradient(root, psi_gradient)])

    def derivatives(self, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Value, gradient and Hessian; the penalty's Hessian by differences of its gradient."""
        beta, root = self.split(x)
        p, psi = len(beta), self.packing.psi_from_root(root)
        found: Any = host.evaluate(self.design, psi, beta=beta, reml=self.reml, order=2)
        value, slope, curvature = found
        jacobian = np.eye(len(x))
        jacobian[p:, p:] = self.packing.jacobian(root)
        hessian = -jacobian.T @ curvature @ jacobian
        bend = self.packing.root_hessian(root, -slope[p:], np.zeros((len(root), len(root))))
        hessian[p:, p:] += bend
        steps = 1e-5 * np.maximum(np.abs(x), 1e-3 / np.sqrt(np.maximum(np.abs(np.diag(hessian)), 1e-12)))
        difference = [
            (self.penalty_gradient(x + step) - self.penalty_gradient(x - step)) / (2 * np.max(step))
            for step in np.diag(steps)
        ]
        extra = np.array(difference).reshape(len(x), len(x))
        return (
            -value + self.penalty(x),
            -jacobian.T @ slope + self.penalty_gradient(x),
            hessian + (extra + extra.T) / 2,
        )


def fit_penalised(start: host.Fit, task: Task, fe_pen, cov_pen, maxiter: int | None) -> tuple[host.Fit, float | None]:
    """Maximise the penalised likelihood over coefficients and covariances together.

    Parameters
    ----------
    start : Fit
        Where to begin: the unpenalised fit.
    task : Task
    fe_pen, cov_pen : Penalty objects, or None
        Without either the start is the result.
    maxiter : int, optional

    Returns
    -------
    Fit, float or None
        The fit, whose ``objective`` leaves the penalty out, and the value of the penalty. Standard errors come from
        the penalised information.
    """
    if fe_pen is None and cov_pen is None:
        return start, None
    if fe_pen is not None and not task.free_beta.all():
        fe_pen = HeldPenalty(fe_pen, task.beta, task.free_beta)
    objective = Penalised(task.design, task.packing, task.reml, fe_pen, cov_pen)
    x0 = np.concatenate([start.beta, task.packing.root_from_theta(start.theta)])
    if not np.isfinite(objective.penalty(x0)):
        inside = np.concatenate([start.beta, task.packing.identity()])
        x0 = np.where(np.concatenate([np.zeros(len(start.beta), bool), task.free_root]), inside, x0)
    chosen = np.concatenate([np.ones(len(start.beta), bool), task.free_root])
    at, unit = _in_units(objective, x0, chosen)
    from scipy.optimize import minimize  # half of the package's import time, and few fits are penalised

    found = minimize(
        lambda z: at(z)[1],
        np.zeros(len(unit)),
        method="trust-exact",
        jac=lambda z: at(z)[2],
        hess=lambda z: at(z)[3],
        options={"gtol": 1e-7, "maxiter": 200 if maxiter is None else maxiter},
    )
    x, _, gradient, hessian = at(found.x)
    fit = replace(
        _settle(start, task, objective, x),
        outcome=Outcome.CONVERGED if np.max(np.abs(gradient), initial=0.0) < OPTIMUM else Outcome.MAX_ITERATIONS,
        gradient=gradient,
        hessian_eigenvalues=np.linalg.eigvalsh(hessian),
        iterations=start.iterations + found.nit,
        evaluations=start.evaluations + found.nfev,
    )
    return fit, objective.penalty(x)


def _in_units(objective, x0, chosen):
    """The objective around x0 in units of about one standard error, and these units; remembers the last point."""
    unit = 1 / np.sqrt(np.maximum(np.abs(np.diag(objective.derivatives(x0)[2])), 1e-12))[chosen]
    memory: dict[bytes, tuple] = {}

    def at(z):
        if z.tobytes() not in memory:
            memory.clear()
            x = x0.copy()
            x[chosen] += unit * z
            value, gradient, hessian = objective.derivatives(x)
            scaled = np.outer(unit, unit) * hessian[np.ix_(chosen, chosen)]
            memory[z.tobytes()] = x, value, unit * gradient[chosen], scaled
        return memory[z.tobytes()]

    return at, unit


def _settle(start, task, objective, x):
    """The `Fit` at the optimum of a penalised likelihood."""
    beta, root = objective.split(x)
    root = task.packing.root_from_psi(task.packing.psi_from_root(root))
    fit = at_coefficients(start, task, root, beta)
    hessian = objective.derivatives(np.concatenate([beta, root]))[2]
    p, everything = len(beta), np.ones(len(beta), bool)
    covariance = inverse_block(hessian, np.concatenate([everything, task.free_root]))
    fit = with_root_covariance(fit, task.packing, root, covariance[p:, p:], task.free_root)
    return replace(fit, vcov_beta=inverse_block(hessian[:p, :p], everything))


def with_alpha(penalty, alpha):
    """A copy of a Penalty object with another weight; the caller's stays as it is."""
    if not hasattr(penalty, "func") or not hasattr(penalty, "deriv"):
        raise ModelError(
            f"method is {penalty!r}: give 'l1' for the lasso, or a Penalty object with methods func(params) and "
            "deriv(params)"
        )
    weighted = copy.copy(penalty)
    weighted.alpha = alpha
    return weighted
