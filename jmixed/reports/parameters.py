"""The parameters that intervals are for: coefficients, standard deviations, correlations and sigma, by name."""

from collections.abc import Sequence

import numpy as np

from jmixed.inference import tails
from jmixed.inference.profiles import COEFFICIENT, CORRELATION, SD, SIGMA, Parameter
from jmixed.reports import components


def cut(level: float) -> float:
    """The normal quantile of a two-sided interval."""
    return tails.half_width(level)


def named_parameters(spec) -> list[tuple[str, Parameter]]:
    """All parameters of a model with their names: coefficients, standard deviations and correlations, sigma."""
    found = [(name, Parameter(COEFFICIENT, first=j)) for j, name in enumerate(spec.exog_names)]
    for t, term in enumerate(spec.terms):
        names = [part.name for part in components.components(term, np.eye(len(term.columns)))]
        places = [(0, None)] if term.structure == "identity" else pairs(len(term.columns))
        for name, (first, second) in zip(names, places, strict=True):
            found.append(
                (name, Parameter(SD, t, first) if second is None else Parameter(CORRELATION, t, first, second))
            )
    return [*found, ("sigma", Parameter(SIGMA))]


def pairs(q: int) -> list[tuple[int, int | None]]:
    """Places of a term's standard deviations (second is None) and correlations, in the order of its components."""
    return [(j, i if i > j else None) for j in range(q) for i in range(j, q)]


def parameter_values(spec, beta: np.ndarray, covariances: Sequence[np.ndarray], sigma: np.ndarray) -> np.ndarray:
    """The parameters in the order of `named_parameters`, for k sets of estimates.

    Parameters
    ----------
    spec : ModelData
    beta : array (k, p)
    covariances : sequence of arrays (k, q, q)
        Relative to sigma^2, by term.
    sigma : array (k,)

    Returns
    -------
    array (k, parameters)
        A correlation with a standard deviation of zero is NaN.
    """
    columns = [*beta.T]
    for term, covariance in zip(spec.terms, covariances, strict=True):
        sd = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        for first, second in [(0, None)] if term.structure == "identity" else pairs(sd.shape[1]):
            if second is None:
                columns.append(sigma * sd[:, first])
            else:
                product = sd[:, first] * sd[:, second]
                columns.append(
                    np.divide(covariance[:, second, first], product, where=product > 0, out=product * np.nan)
                )
    return np.column_stack([*columns, sigma])


def relative_covariances(spec, theta: np.ndarray) -> list[np.ndarray]:
    """The covariances (k, q, q) of every term relative to sigma^2, from theta (k, m)."""
    out, start = [], 0
    for term in spec.terms:
        q = len(term.columns)
        if term.structure == "identity":
            out.append(theta[:, start, None, None] ** 2 * np.eye(q))
            start += 1
            continue
        factor, (columns, rows) = np.zeros((len(theta), q, q)), np.triu_indices(q)
        factor[:, rows, columns] = theta[:, start : start + len(rows)]
        out.append(factor @ np.swapaxes(factor, 1, 2))
        start += len(rows)
    return out
