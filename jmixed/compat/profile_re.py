"""The likelihood as a function of one variance, everything else maximised out."""

from typing import Any

import numpy as np

from jmixed.compat.packing import Packing
from jmixed.covariance.structure import rectified
from jmixed.errors import ArgumentError, ModelError
from jmixed.fit import host
from jmixed.layout.design import Design
from jmixed.reports.fitted import Fitted
from jmixed.runtime.precision import FLOAT


def profile_re(
    fitted: Fitted,
    re_ix: int | str,
    vtype: str,
    num_low: int,
    dist_low: float,
    num_high: int,
    dist_high: float,
    **fit_kwargs: Any,
) -> np.ndarray:
    """Log-likelihood with one variance held at values around its estimate."""
    if unknown := fit_kwargs.keys() - {"method", "maxiter", "gtol"}:
        raise ArgumentError(f"profile_re has no argument {min(unknown)!r}; refits take method, maxiter and gtol")
    fitted.need_data("profile_re", rows=False)
    fitted.refuse_iterative("profile_re")
    spec, fit, scale = fitted.spec, fitted.fit, float(fitted.fit.sigma) ** 2
    term, column = _place(fitted, re_ix, vtype)
    estimate = fit.covariances[spec.terms[term].label][column, column]
    if not 0 <= dist_low < estimate:
        raise ModelError(
            f"profile_re: dist_low is {dist_low:g}, but the variance is {estimate:g}: "
            "dist_low must not be negative, nor reach the variance"
        )
    low = np.linspace((estimate - dist_low) / scale, estimate / scale, num_low + 1)
    high = np.linspace(estimate / scale, (estimate + dist_high) / scale, num_high + 1)[1:]
    free = Packing.of(spec.terms).theta_of_root(fitted.free_psi)
    values = np.concatenate([low, high])
    return profile_variance(fitted.free_design, fit.theta, term, column, values, free, fitted.reml, **fit_kwargs)


def _place(fitted: Fitted, re_ix: int | str, vtype: str) -> tuple[int, int]:
    """The term of a variance, and its column in it."""
    if vtype not in ("re", "vc"):
        raise ModelError(f"vtype is {vtype!r}; it must be 're' or 'vc'")
    terms, k_re = fitted.spec.terms, len(fitted.names.random)
    if vtype == "vc":
        names = [term.vc for term in terms]
        if re_ix is None or re_ix not in names:
            raise ModelError(f"no variance component {re_ix!r}; the model has {list(fitted.names.vcomp)}")
        return names.index(re_ix), 0
    if not isinstance(re_ix, int | np.integer) or not 0 <= re_ix < k_re:
        raise ModelError(f"re_ix is {re_ix!r}; it must be a position from 0 to {k_re - 1} in cov_re")
    return [(t, k) for t, term in enumerate(terms) if term.vc is None for k in range(len(term.columns))][re_ix]


def profile_variance(design: Design, theta, term: int, column: int, values, free, reml, **options) -> np.ndarray:
    """Refit with one relative variance held at each of several values (k,): variances, log-likelihoods (k, 2).

    The column in question is moved to the front of its term: there its variance is the square of a single entry of
    theta, and holding that entry leaves every other parameter free. Refits start from theta (m,); entries that are not
    free stay where they are. The variances are on the scale of the data: value times the refit's residual variance.
    """
    structures = design.layout.terms
    mask = np.ones(len(theta), bool) if free is None else np.array(free, bool)
    start = np.array(theta, FLOAT)
    place = int(np.sum([s.size for s in structures[:term]], dtype=int))
    if structures[term].any_basis and column > 0:
        design, start, mask = _to_front(design, structures[term], term, column, start, mask, place)
    mask[place] = False
    rows = []
    for value in values:
        start[place] = np.sqrt(value)
        refit = host.fit(design, reml=reml, theta0=start.copy(), free=mask, **options)
        rows.append((value * refit.sigma**2, refit.log_likelihood))
    return np.array(rows, FLOAT)


def _to_front(design, structure, term, column, theta, mask, place):
    """The same model with one column of a term moved to the front."""
    q = structure.q
    order = np.array([column, *(k for k in range(q) if k != column)])
    label = design.labels[term]
    part = slice(place, place + structure.size)
    theta, mask = theta.copy(), mask.copy()
    theta[part] = structure.theta(rectified(structure.factor(theta[part])[order]))
    pattern = structure.factor(mask[part].astype(FLOAT)) != 0
    mask[part] = structure.theta((pattern | pattern.T)[np.ix_(order, order)])
    return design.replace(Z={label: design.Z[label][:, order]}), theta, mask
