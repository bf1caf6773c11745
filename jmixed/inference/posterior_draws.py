"""Draws of fixed and random effects around their estimates, at the estimated variances."""

import numpy as np

from jmixed.fit.host import Fit
from jmixed.inference.joint_covariance import JointCovariance
from jmixed.layout.stack import ModelRows


def posterior_draws(data: ModelRows, joint: JointCovariance, fit: Fit, draws: int, rng) -> tuple[np.ndarray, list]:
    """Draws from the normal distribution with the joint covariance of (beta^, b^) around the estimates.

    With a flat prior for beta this is the posterior given the variances. Nothing of the size of the joint covariance is
    made: random effects b* and residuals are drawn, and the error of the prediction of b* from Z b* + e* at a known
    beta has the conditional distribution wanted (Papandreou and Yuille 2010, sampling by perturbation); errors of beta
    are drawn beside it, and move b by K. Returned are beta (draws, p) and b (draws, levels, q) by term.
    """
    B = np.empty((joint.size, draws))
    for place, prior in zip(joint.places, joint.priors, strict=True):
        values, vectors = np.linalg.eigh(prior)
        root = joint.sigma * vectors * np.sqrt(np.maximum(values, 0))
        B[place] = np.einsum("ij,ljd->lid", root, rng.normal(size=(*place.shape, draws)))
    weights = data.weights[:, None]
    Z = joint.rows_of(data)
    Y = Z @ B + joint.sigma / np.sqrt(weights) * rng.normal(size=(len(data.y), draws))
    values, vectors = np.linalg.eigh(joint.M)
    beta = joint.sigma * (vectors * np.sqrt(np.maximum(values, 0))) @ rng.normal(size=(len(values), draws))
    B += joint.K @ beta - joint.times(Z.T @ (weights * Y))
    modes = [fit.b[t.label] + np.moveaxis(b, -1, 0) for t, b in zip(data.terms, joint.original(B), strict=True)]
    return fit.beta - beta.T, modes
