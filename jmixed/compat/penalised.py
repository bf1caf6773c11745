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

from jmixed.compat.held import Task, at_coefficients, inverse_block, with_theta_covariance
from jmixed.compat.params import as_array
from jmixed.errors import DataError, ModelError, Outcome
from jmixed.fit import host

OPTIMUM = 1e-4
"""Largest gradient of an optimum, in units in which every parameter has a standard error of about one."""


def lasso(
    beta: np.ndarray, vcov: np.ndarray, alpha: np.ndarray, ceps: float, ptol: float, maxit: int
) -> tuple[np.ndarray, bool]:
    """Minimise ``r'V^-1 r + sum(alpha |beta|)`` over beta (p,) with V held, by coordinate descent.

    With A = X'V^-1 X and the generalised least-squares estimate `beta`, whose covariance is A^-1, r'V^-1 r is a
    quadratic: no row is read. Also whether it settled. A penalised coefficient below `ceps` is zero; `ptol` is the
    largest change, in standard errors, at which to stop.
    """
    A = np.linalg.inv(vcov)
    error = np.sqrt(np.diag(vcov))
    target, coefficients, settled = A @ beta, beta.copy(), False
    for _ in range(maxit):
        before = coefficients.copy()
        for j in range(len(coefficients)):
            rest = target[j] - A[j] @ coefficients + A[j, j] * coefficients[j]
            coefficients[j] = np.sign(rest) * max(abs(rest) - alpha[j] / 2, 0.0) / A[j, j]
        settled = bool(np.all(np.abs(coefficients - before) <= ptol * error))
        if settled:
            break
    coefficients[(alpha > 0) & (np.abs(coefficients) < ceps)] = 0.0
    return coefficients, settled


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

    Coefficients of zero have NaN standard errors, for none is known; those of the others are conditional on the choice
    of the non-zero ones.
    """
    beta, settled = lasso(fit.beta, fit.vcov_beta, alpha, **options)
    at = at_coefficients(fit, task, fit.theta, beta)
    active = (beta != 0) | (alpha == 0)
    vcov = inverse_block(np.linalg.inv(fit.vcov_beta), active) * (at.sigma / fit.sigma) ** 2
    vcov[~active], vcov[:, ~active] = np.nan, np.nan
    return replace(at, vcov_beta=vcov, outcome=fit.outcome if settled else Outcome.MAX_ITERATIONS)


@dataclass
class Penalised:
    """Minus the profile log-likelihood plus penalties, as a function of x = (beta, theta).

    `fe_pen` is one on all coefficients, by ``func(beta)`` and ``deriv(beta)``; `cov_pen` one on the relative covariance
    of the correlated random effects, by ``func(cov, inverse)`` and ``deriv(cov, inverse)``, the gradient in its lower
    triangle.
    """

    task: Task
    fe_pen: Any = None
    cov_pen: Any = None

    def split(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The free coefficients and theta."""
        p = self.task.design.X.shape[1]
        return x[:p], x[p:]

    def _coefficients(self, free):
        """All coefficients, held ones among them."""
        beta = self.task.beta.copy()
        beta[self.task.free_beta] = free
        return beta

    def _covariance(self, theta):
        cov_re, vcomp = self.task.packing.unpack(self.task.packing.psi(theta))
        invertible = np.linalg.cond(cov_re) < 1e15
        return cov_re, np.linalg.inv(cov_re) if invertible else np.full(cov_re.shape, np.inf), vcomp

    def penalty(self, x: np.ndarray) -> float:
        """Sum of the penalties."""
        beta, theta = self.split(x)
        total = 0.0 if self.fe_pen is None else float(np.sum(self.fe_pen.func(self._coefficients(beta))))
        if self.cov_pen is not None:
            cov_re, inverse, _ = self._covariance(theta)
            total += float(self.cov_pen.func(cov_re, inverse))
        return total

    def penalty_gradient(self, x: np.ndarray) -> np.ndarray:
        """Its gradient."""
        gradient, (beta, theta) = np.zeros(len(x)), self.split(x)
        if self.fe_pen is not None:
            slope = np.asarray(self.fe_pen.deriv(self._coefficients(beta)), dtype=float)
            gradient[: len(beta)] = slope[self.task.free_beta]
        if self.cov_pen is not None:
            cov_re, inverse, vcomp = self._covariance(theta)
            lower = np.zeros(cov_re.shape)
            lower[np.tril_indices(len(cov_re))] = self.cov_pen.deriv(cov_re, inverse)
            of_psi = self.task.packing.pack(lower, np.zeros(len(vcomp)))
            gradient[len(beta) :] = of_psi @ self.task.packing.jacobian(theta)
        return gradient

    def derivatives(self, x: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
        """Value, gradient and Hessian; the penalty's Hessian by differences of its gradient."""
        beta, theta = self.split(x)
        task, packing, p = self.task, self.task.packing, len(beta)
        evaluated: Any = host.evaluate(task.design, packing.psi(theta), beta=beta, reml=task.reml, order=2)
        value, slope, curvature = evaluated
        jacobian = np.eye(len(x))
        jacobian[p:, p:] = packing.jacobian(theta)
        hessian = -jacobian.T @ curvature @ jacobian
        hessian[p:, p:] += packing.hessian(theta, -slope[p:], np.zeros((len(theta), len(theta))))
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
    """Maximise the penalised likelihood over coefficients and covariances together; also the value of the penalties.

    The ``objective`` of the fit leaves the penalties out. Standard errors come from the penalised information.
    """
    if fe_pen is None and cov_pen is None:
        return start, None
    objective = Penalised(task, fe_pen, cov_pen)
    x0 = np.concatenate([start.beta, start.theta])
    if not np.isfinite(objective.penalty(x0)):
        inside = np.concatenate([start.beta, task.packing.identity()])
        x0 = np.where(np.concatenate([np.zeros(len(start.beta), bool), task.free_theta]), inside, x0)
    chosen = np.concatenate([np.ones(len(start.beta), bool), task.free_theta])
    at, unit = _in_units(objective, x0, chosen)
    from scipy.optimize import minimize  # half of the package's import time, and few fits are penalised

    optimum = minimize(
        lambda z: at(z)[1],
        np.zeros(len(unit)),
        method="trust-exact",
        jac=lambda z: at(z)[2],
        hess=lambda z: at(z)[3],
        options={"gtol": 1e-7, "maxiter": 200 if maxiter is None else maxiter},
    )
    x, _, gradient, hessian = at(optimum.x)
    fit = replace(
        _settle(start, task, objective, x),
        outcome=Outcome.CONVERGED if np.max(np.abs(gradient), initial=0.0) < OPTIMUM else Outcome.MAX_ITERATIONS,
        gradient=gradient,
        hessian_eigenvalues=np.linalg.eigvalsh(hessian),
        iterations=start.iterations + optimum.nit,
        evaluations=start.evaluations + optimum.nfev,
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
    beta, theta = objective.split(x)
    fit = at_coefficients(start, task, theta, beta)
    hessian = objective.derivatives(np.concatenate([beta, fit.theta]))[2]
    p, everything = len(beta), np.ones(len(beta), bool)
    covariance = inverse_block(hessian, np.concatenate([everything, task.free_theta]))
    fit = with_theta_covariance(fit, task, covariance[p:, p:])
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
