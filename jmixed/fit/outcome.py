"""How a fit ends: as its optimiser did, unless what it found is no estimate."""

import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import diagonal
from jmixed.covariance.structure import rectify
from jmixed.errors import Outcome
from jmixed.likelihood.moments import Moments

BLUR = 3e9
"""Residual sum of squares without random effects over sigma^2: beyond, rounding may move the deviance by over 5e-6."""
COMMON = 1e7
"""Relative variance times rows of a level, of the second largest crossed factor: what it shares with the largest is a
difference that costs its square in digits. Beyond, sigma may be wrong in its fourth digit."""


def outcome_of(ended, roots, sigma, vcov_beta, moments):
    """The outcome `ended` of an optimiser, unless the residual variance vanished, against the data or an effect.

    A response of so many digits holds no smaller residuals, and cross-products none that are their own rounding. An
    outcome is the integer of an `Outcome`; `roots` (q, q) are square roots of the terms' relative covariances in
    preconditioned columns.
    """
    rss = sigma**2 * moments.nobs
    perfect = (rss <= 1e-27 * moments.total) | (rss <= 1e-14 * moments.G[-1, -1])
    # r^2 is a difference of sums of squares: what rounding leaves of it moves the deviance by nu times as much.
    blur = moments.G[-1, -1] / jnp.maximum(sigma**2, jnp.finfo(moments.G.dtype).tiny)
    ok = (ended == Outcome.CONVERGED.value) | (ended == Outcome.PRECISION_LIMIT.value)
    # A sigma that is nan is below no limit. What looks flat may be no more than digits that are lost.
    lost = ~(blur <= BLUR)
    # Where the data decide whether effects are counted from estimates, those that are not are counted from zeros.
    if shifts := [jnp.any(shift != 0) for shift in moments.shift if shift is not None]:
        lost |= jnp.any(jnp.stack(shifts)) & _is_blurred(roots, vcov_beta / sigma**2, rss, moments)
    rounded = (ok | (ended == Outcome.FLAT.value)) & lost
    if not moments.layout.is_nest() and len(moments.layout.factors) > 1:
        rounded |= ok & (jnp.sort(_drowning(roots, moments))[-2] > COMMON)
    outcome = jnp.where(rounded, Outcome.ROUNDED.value, ended)
    outcome = jnp.where(perfect, Outcome.PERFECT_FIT.value, outcome)
    return jnp.where(moments.redundant, Outcome.RANK_DEFICIENT.value, outcome).astype(jnp.int32)


def unbounded_rows(X, dispersion, weights) -> np.ndarray:
    """Rows with a residual variance of their own that coefficients can fit exactly, by position; none as a rule.

    As that variance falls to zero, beside random effects without variance, the likelihood grows without bound, and a
    minimum that is found by ML is a local one. REML's has as many powers of that variance less as there are such rows.

    Parameters
    ----------
    X, dispersion, weights : arrays (n, p), (n, k), (n,)
        The columns of the fixed effects and of the dispersion; rows of weight zero are not there.
    """
    there = np.flatnonzero(np.asarray(weights) > 0)
    X, dispersion = np.asarray(X)[there], np.asarray(dispersion)[there]
    patterns, pattern, counts = np.unique(dispersion, axis=0, return_inverse=True, return_counts=True)
    # A variance belongs to the rows of one pattern alone where a parameter does: where the leverage is one.
    basis, sizes, _ = np.linalg.svd(np.column_stack([np.ones(len(patterns)), patterns]), full_matrices=False)
    leverages = np.sum(basis[:, sizes > 1e-10 * sizes[0]] ** 2, axis=1)
    for k in np.flatnonzero((leverages > 1 - 1e-9) & (counts <= X.shape[1])):
        rows = np.flatnonzero(pattern == k)
        if np.linalg.matrix_rank(X[rows]) == len(rows):
            return there[rows]
    return there[:0]


def may_be_unbounded(layout) -> bool:
    """Whether there are designs of a layout on which ML has no maximum: residual variances depend on columns."""
    return layout.family is None and bool(layout.residual.columns)


def is_unbounded(design, X=None, weights=None) -> np.ndarray:
    """Whether ML has no maximum on a design, whatever the response: see `unbounded_rows`.

    A bool array (), or (m,) where X (m, n, p) or weights (m, n) are those of m fits.
    """
    X, weights = np.asarray(design.X if X is None else X), np.asarray(design.weights if weights is None else weights)
    if design.series is None or not may_be_unbounded(design.layout):
        return np.zeros(X.shape[:-2] or weights.shape[:-1], bool)
    dispersion = np.asarray(design.series.dispersion)
    each = np.vectorize(
        lambda x, w: len(unbounded_rows(x, dispersion, w)) > 0, signature="(n,p),(n)->()", otypes=[bool]
    )
    if X.ndim > 2:
        return each(X, weights)
    # Responses that lack the same rows share the answer.
    there, of_fit = np.unique(weights.reshape(-1, len(X)) > 0, axis=0, return_inverse=True)
    return each(X, there)[of_fit.ravel()].reshape(weights.shape[:-1])


def _drowning(roots, moments: Moments):
    """For every factor its largest relative variance times the most rows of a level, (factors,)."""
    sizes = []
    for C, stage in zip(moments.C, moments.layout.stages, strict=True):
        rows = jnp.max(jnp.diagonal(C, axis1=0, axis2=1))
        for f, _ in stage:
            variances = [jnp.max(jnp.sum(roots[t] ** 2, axis=1)) for t in moments.layout.factors[f]]
            sizes.append(rows * jnp.max(jnp.stack(variances)))
    return jnp.stack(sizes)


def _is_blurred(roots, inverse, rss, moments: Moments):
    """Whether digits are lost although effects are counted from estimates.

    A response has sixteen itself. A small variance across a large one is a difference in columns along which neither
    lies, and so is what large effects leave of a direction of X.
    """
    told = diagonal(moments.R @ inverse @ moments.R.T) * diagonal(moments.G)[:-1]
    lost = [jnp.max(told, initial=0) > BLUR]
    for s, (C, shift) in enumerate(zip(moments.C, moments.shift, strict=True)):
        rows = jnp.max(jnp.diagonal(C, axis1=0, axis2=1))
        for root in (roots[t] for f, _ in moments.layout.stages[s] for t in moments.layout.factors[f]):
            factor = rectify(root)
            across = jnp.sum(jnp.tril(factor, -1) ** 2, axis=1) / jnp.maximum(diagonal(factor) ** 2, 1)
            lost.append(rows * jnp.max(across) > BLUR)
        if shift is not None:
            lost.append(moments.nobs * jnp.max(shift[:, -1] ** 2) > BLUR**2 * rss)
    return jnp.any(jnp.stack(lost))
