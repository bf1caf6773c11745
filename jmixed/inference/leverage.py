"""Leverages, and the residuals and distances that rest on them."""

from dataclasses import dataclass

import numpy as np

from jmixed.inference.joint_covariance import JointCovariance
from jmixed.layout.stack import ModelRows


@dataclass(frozen=True)
class RowDiagnostics:
    """One number for each row of the data.

    Attributes
    ----------
    hat : array (n,)
        Leverage: the derivative of the fitted value in the response, given the variance parameters; their sum is the
        effective number of coefficients.
    standardised : array (n,)
        Conditional residual over its standard deviation given the variance parameters, sigma sqrt((1 - hat) / w).
    cooks_distance : array (n,)
        hat / (1 - hat) times the squared standardised residual over the number of fixed effects, as in lme4.
    """

    hat: np.ndarray
    standardised: np.ndarray
    cooks_distance: np.ndarray


def row_diagnostics(data: ModelRows, joint: JointCovariance, residuals) -> RowDiagnostics:
    """Diagnostics of the model's rows, from their conditional residuals (n,).

    The leverage of a row is w times the variance of its fitted value over sigma^2 (Demidenko and Stukel 2005, Stat.
    Med. 24, 893-909): the hat matrix of the least-squares problem augmented by the random effects' penalty. What rests
    on a residual is NaN where a leverage of one leaves none, and so is Cook's distance without fixed effects.
    """
    Z = joint.rows([term.codes for term in data.terms], [term.Z for term in data.terms], len(data.y))
    hat = data.weights * joint.variances(data.X, Z) / joint.sigma**2
    left = np.where(1 - hat > 1e-10, 1 - hat, np.nan)
    standardised = residuals * np.sqrt(data.weights / left) / joint.sigma
    # Without fixed effects there is nothing that a row could move.
    return RowDiagnostics(hat, standardised, standardised**2 * hat / left / (data.X.shape[1] or np.nan))
