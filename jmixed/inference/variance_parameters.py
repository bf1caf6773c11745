"""Standard errors of the variance parameters on the scales that people read, by the delta method.

The observed information of the relative covariances and sigma^2 is exact, and so are the derivatives of what follows
from them. The distributions are skewed: for intervals take a profile or a bootstrap.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.covariance.scales import diagonal_blocks
from jmixed.covariance.structure import SINGULAR, factors_of_theta
from jmixed.inference.curvature import Curvature


@dataclass(frozen=True)
class VarianceParameters:
    """Estimates (k,) of variance parameters with their covariance (k, k).

    It is nan for what has no standard error: a standard deviation of zero, a correlation of one, a fit whose
    information is not positive definite.
    """

    values: np.ndarray
    covariance: np.ndarray


def standard_deviations(
    curvature: Curvature, structures, theta, at_zero: float | None = None, shift=()
) -> VarianceParameters:
    """Standard deviations and correlations of the random effects at the estimate theta (m,), then sigma.

    That is `at_zero`, where all columns of a dispersion are zero: its logarithm lacks `shift` (columns,) times rho of
    the logarithm of sigma where these are counted from. Term after term the lower triangle column by column: a standard
    deviation, then the correlations of its column with the later ones. An identity term has one standard deviation.
    """
    sigma, values, slopes, start = curvature.sigma, [], [], 0
    at_zero = sigma if at_zero is None else at_zero
    factors = factors_of_theta(structures, np.asarray(theta))
    for structure, factor, T in zip(structures, factors, curvature.T, strict=True):
        # Z T has columns of unit root mean square without correlations; sigma is that of a row in the middle.
        of_term, slope = _of_term(
            structure, factor @ factor.T, sigma, np.linalg.norm(np.linalg.inv(T), axis=0) / curvature.typical
        )
        values += of_term
        wide = np.zeros((len(of_term), len(curvature.first) + 1))
        wide[:, start : start + structure.size], wide[:, -1] = slope[:, :-1], slope[:, -1]
        slopes.append(wide)
        start += structure.size
    moves = curvature.to_psi @ curvature.directions
    return _delta(
        curvature, np.array([*values, at_zero]), np.vstack([*slopes, _last(curvature, at_zero, shift, start)]), moves
    )


def _last(curvature, at_zero, shift, terms):
    """Derivatives (m + k + 1,) of `at_zero` in psi, of which there are so many in `terms`, in rho, and in sigma^2."""
    last = np.append(np.zeros(len(curvature.first)), at_zero / (2 * curvature.sigma**2))
    last[terms : terms + len(shift)] = -at_zero * np.asarray(shift)
    return last


def _of_term(structure, relative, sigma, size_of_Z):
    """Values of one term, and their derivatives (k, size + 1) in its psi and sigma^2; nan where there are none."""
    psi = structure.psi(relative)
    directions = np.asarray(structure.directions(psi))
    variances = np.diag(relative)
    sd = np.sqrt(variances)
    positive = sd * size_of_Z > SINGULAR
    values, slopes = [], []
    for _, second, i, j, _ in structure.readable([""] * structure.q):
        slope = np.zeros(structure.size + 1)
        if second is None:
            slope[:-1] = directions[:, j, j] * sigma / (2 * sd[j]) if positive[j] else np.nan
            slope[-1] = sd[j] / (2 * sigma)
            values.append(sigma * sd[j])
        else:
            size = sd[i] * sd[j]
            r = relative[i, j] / size if size > 0 else np.nan
            defined = positive[i] and positive[j] and 1 - r**2 > SINGULAR**2
            with np.errstate(divide="ignore", invalid="ignore"):
                parts = [directions[:, i, j] / size]
                parts += [-r / (2 * variances[k]) * directions[:, k, k] for k in (i, j)]
                slope[:-1] = sum(parts) if defined else np.nan
            values.append(r)
        slopes.append(slope)
    return values, np.array(slopes)


def theta_and_sigma(
    curvature: Curvature, structures, theta, at_zero: float | None = None, shift=()
) -> VarianceParameters:
    """theta (m,) and sigma with their covariance: twice the inverse Hessian of the deviance in them.

    At a singular fit the terms that are singular have nan.
    """
    theta, at_zero = np.asarray(theta), curvature.sigma if at_zero is None else at_zero
    blocks = []
    terms = zip(structures, factors_of_theta(structures, theta), curvature.T, curvature.roots, strict=True)
    for structure, factor, T, root in terms:
        moves, _ = structure.tangents(root, np.zeros(structure.size), curvature.typical)
        full = moves.shape[1] == structure.size
        blocks.append(structure.theta_slopes(factor, T) if full else np.full((structure.size,) * 2, np.nan))
    more = np.zeros((0, len(curvature.first) + 1 - len(theta)))
    slopes = np.vstack([diagonal_blocks(*blocks, more), _last(curvature, at_zero, shift, len(theta))])
    return _delta(curvature, np.append(theta, at_zero), slopes, curvature.directions)


def _delta(curvature, values, slopes, moves):
    """Covariance of functions with the given derivatives (k, m + 1) in psi and sigma^2, where psi moves as given."""
    undefined = np.any(np.isnan(slopes), axis=1)
    slopes = np.where(undefined[:, None], 0, slopes)
    reduced = np.column_stack([slopes[:, :-1] @ moves, slopes[:, -1]])
    covariance = reduced @ curvature.joint_covariance @ reduced.T
    covariance[undefined] = covariance[:, undefined] = np.nan
    return VarianceParameters(values, covariance)
