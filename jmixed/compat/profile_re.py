"""The likelihood as a function of one variance, everything else maximised out."""

import jax.numpy as jnp
import numpy as np

from jmixed.covariance.structure import UNSTRUCTURED, rectify
from jmixed.fit import host
from jmixed.layout.design import Design
from jmixed.runtime.precision import FLOAT, double_precision


def profile_variance(
    design: Design, theta, term: int, column: int, values, free=None, reml=True, **options
) -> np.ndarray:
    """Refit with one relative variance held at each of several values.

    The column in question is moved to the front of its term: there its variance is the square of a single entry of
    theta, and holding that entry leaves every other parameter free.

    Parameters
    ----------
    design : Design
    theta : array (m,)
        The estimate, from which each refit starts.
    term, column : int
        The variance: which term, and which of its columns.
    values : array (k,)
        Variances relative to the residual variance.
    free : bool array (m,), optional
        Entries of theta that were estimated; others stay where they are.
    reml : bool
    **options
        For `programs.fit`.

    Returns
    -------
    array (k, 2)
        The variance on the scale of the data (value times the refit's residual variance), and the log-likelihood.
    """
    structures = design.layout.terms
    mask = np.ones(len(theta), bool) if free is None else np.array(free, bool)
    start = np.array(theta, FLOAT)
    place = int(np.sum([s.size for s in structures[:term]], dtype=int))
    if structures[term].kind == UNSTRUCTURED and column > 0:
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
    own = slice(place, place + structure.size)
    rows, columns = structure.theta_indices()
    with double_precision():
        factor = np.asarray(structure.factor(jnp.asarray(theta[own])))
        moved = np.asarray(rectify(jnp.asarray(factor[order])))
    theta, mask = theta.copy(), mask.copy()
    theta[own] = moved[rows, columns]
    pattern = np.zeros((q, q), bool)
    pattern[rows, columns] = mask[own]
    pattern |= pattern.T
    mask[own] = pattern[np.ix_(order, order)][rows, columns]
    return design.replace(Z={label: design.Z[label][:, order]}), theta, mask
