"""The parameters that intervals are for: coefficients, standard deviations, correlations and sigma, by name."""

from collections.abc import Sequence

import numpy as np

from jmixed.covariance.scales import factors_of_theta, settled
from jmixed.inference.profiles import COEFFICIENT, CORRELATION, SD, SIGMA, Parameter
from jmixed.layout.design import Design
from jmixed.reports import components
from jmixed.reports.names import structure


def named_parameters(spec) -> list[tuple[str, Parameter]]:
    """All parameters of a model with their names: coefficients, standard deviations and correlations, sigma."""
    parameters = [(name, Parameter(COEFFICIENT, first=j)) for j, name in enumerate(spec.exog_names)]
    for t, term in enumerate(spec.terms):
        names = [part.name for part in components.components(term, np.eye(len(term.columns)))]
        for name, (_, second, i, j) in zip(names, structure(term).readable(term.columns), strict=True):
            parameters.append((name, Parameter(SD, t, j) if second is None else Parameter(CORRELATION, t, j, i)))
    return [*parameters, ("sigma", Parameter(SIGMA))]


def parameter_values(spec, beta: np.ndarray, covariances: Sequence[np.ndarray], sigma: np.ndarray) -> np.ndarray:
    """The parameters (k, parameters) from beta (k, p), covariances (k, q, q) relative to sigma^2, and sigma (k,).

    A correlation with a standard deviation of zero is NaN.
    """
    columns = [*beta.T]
    for term, covariance in zip(spec.terms, covariances, strict=True):
        sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        for _, second, i, j in structure(term).readable(term.columns):
            if second is None:
                columns.append(sigma * sd[:, j])
            else:
                product = sd[:, i] * sd[:, j]
                columns.append(np.divide(covariance[:, i, j], product, where=product > 0, out=product * np.nan))
    return np.column_stack([*columns, sigma])


def values_at(spec, design: Design, theta: np.ndarray, beta: np.ndarray, sigma: np.ndarray) -> np.ndarray:
    """The parameters (k, parameters) in the order of `named_parameters`, at theta (k, m), beta (k, p) and sigma (k,).

    A standard deviation that counts as zero is zero.
    """
    factors = factors_of_theta(design.layout.terms, settled(design, theta))
    return parameter_values(spec, beta, [factor @ np.swapaxes(factor, 1, 2) for factor in factors], sigma)
