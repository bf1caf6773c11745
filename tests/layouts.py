"""Small designs of every layout, and the multivariate normal density of the same models by dense matrices.

Nothing here knows the package's algorithms: the references are n x n matrices in numpy, with analytic gradients.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from scipy import sparse, stats

from jmixed.layout.design import Design
from jmixed.layout.stack import stack

ROWS = 60

# For programs that run a few times on small arrays: optimising them would take longer than it saves.
quick_jit = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclass(frozen=True)
class Term:
    """One random-effects term: what `stack` reads of it."""

    label: str
    codes: np.ndarray
    Z: np.ndarray
    structure: str = "unstructured"
    intercept: int | None = None
    root: np.ndarray | None = None
    precision: Any = None

    @property
    def levels(self):
        return np.arange(self.codes.max() + 1)

    @property
    def size(self):
        q = self.Z.shape[1]
        return 1 if self.structure == "identity" else q * (q + 1) // 2

    @property
    def same(self):
        """Which pairs of rows share a level; of related levels the known covariance between those of each pair."""
        return self.known[self.codes[:, None], self.codes[None]]

    @property
    def known(self):
        """The known covariance of the levels, or the identity."""
        levels = len(self.levels)
        if self.precision is not None:
            return np.linalg.inv(self.precision.toarray())[:levels, :levels]
        return np.eye(levels) if self.root is None else self.root @ self.root.T


@dataclass(frozen=True)
class Case:
    """Rows and terms of a model."""

    y: np.ndarray
    X: np.ndarray
    weights: np.ndarray
    offset: np.ndarray
    terms: tuple[Term, ...]
    sparse: bool = False
    represents: None = None
    log_weights: float = 0.0
    residual: Any = None

    @property
    def design(self) -> Design:
        return stack(self, density=0) if self.sparse else stack(self)

    @property
    def size(self):
        return sum(term.size for term in self.terms)

    def take(self, rows):
        """The case with other rows: a permutation, or with repetitions."""
        terms = tuple(replace(t, codes=t.codes[rows], Z=t.Z[rows]) for t in self.terms)
        return Case(self.y[rows], self.X[rows], self.weights[rows], self.offset[rows], terms, self.sparse)


def term(label, codes, *columns, **kwargs):
    """A term whose codes are numbered without gaps."""
    codes = np.unique(codes, return_inverse=True)[1].astype(np.int32)
    Z = np.concatenate([np.reshape(np.asarray(c, float), (len(codes), -1)) for c in columns], axis=1)
    return Term(label, codes, Z, **kwargs)


def _one_factor(r, a, one, x):
    return {
        "intercept": [term("1 | g", a["g"], one, intercept=0)],
        "slope": [term("x | g", a["g"], one, x, intercept=0)],
        "three": [term("x + u | g", a["g"], one, x, r.normal(size=ROWS), intercept=0)],
        "five": [term("many | g", a["g"], one, x, r.normal(size=(ROWS, 3)), intercept=0)],
        "independent": [term("1 | g", a["g"], one, intercept=0), term("0 + x | g", a["g"], x)],
        "identity": [
            term("1 | g", a["g"], one, intercept=0),
            term("block | g", a["g"], r.normal(size=(ROWS, 3)), structure="identity"),
        ],
    }


def _several_factors(a, one, x):
    top = term("x | top", a["top"], one, x, intercept=0)
    inner = term("1 | top:g", a["g"], one, intercept=0)
    deepest = term("1 | top:g:h", a["gh"], one, intercept=0)
    return {
        "nested": [top, inner],
        "nested three": [term("1 | top", a["top"], one, intercept=0), inner, term("0 + x | top:g:h", a["gh"], x)],
        "nested and crossed": [
            term("1 | top", a["top"], one, intercept=0),
            deepest,
            term("1 | top:k", a["topk"], one, intercept=0),
        ],
        "crossed": [
            term("x | g", a["g"], one, x, intercept=0),
            term("x | h", a["h"], one, x, intercept=0),
            term("1 | k", a["k"], one, intercept=0),
        ],
    }


def related(size, seed=0):
    """A root of the covariance of so many levels, none of them like another."""
    r = np.random.default_rng(seed)
    M = r.normal(size=(size, size + 2))
    return np.linalg.cholesky(M @ M.T / size + 0.1 * np.eye(size))


def precision(size, seed=0):
    """A sparse inverse covariance of so many levels, a chain with a few more links."""
    r = np.random.default_rng(seed)
    link = sparse.diags_array([np.ones(size), r.uniform(-0.9, -0.2, size - 1)], offsets=[0, -1]).tolil()
    link[size - 1, 0] = link[size // 2, 1] = -0.3
    return sparse.csr_array(link.T @ sparse.diags_array(r.uniform(0.5, 2, size)) @ link)


def _related(a, one, x):
    own, other = related(7), related(5, seed=1)
    return {
        "related": [
            term("1 | g", a["g"], one, intercept=0, root=own),
            term("0 + x | g", a["g"], x, root=own),
        ],
        "related and others": [
            term("x | g", a["g"], one, x, intercept=0, root=own),
            term("1 | own", a["g"], one, intercept=0),
            term("x | k", a["k"], one, x, intercept=0),
            term("1 | h", a["h"], one, intercept=0, root=other),
        ],
        "equations": [
            term("x | g", a["g"], one, x, intercept=0, precision=precision(9)),
            term("1 | own", a["g"], one, intercept=0),
            term("x | k", a["k"], one, x, intercept=0),
            term("1 | top", a["top"], one, intercept=0),
        ],
    }


NAMES = (
    *("related", "related and others", "equations"),
    *("intercept", "slope", "three", "five", "independent", "identity"),
    *("nested", "nested three", "nested and crossed", "crossed", "sparse", "no random effects"),
)


def case(name, seed=0, weighted=True) -> Case:
    """A case of the layout; its first top-level group holds a single row.

    Parameters
    ----------
    name : str
        One of `NAMES`.
    seed : int
        Of everything that is drawn: the layout's shapes are the same for every seed.
    weighted : bool
        With weights and an offset.

    In "sparse" the couplings of the crossed factors are kept as a list of those that occur.
    """
    r = np.random.default_rng(seed)
    one, x = np.ones(ROWS), r.normal(size=ROWS)
    g = np.concatenate([[0], 1 + np.arange(ROWS - 1) % 6])
    h, k = np.arange(ROWS) % 5, (np.arange(ROWS) // 3) % 3
    top = np.where(g == 0, 0, 1 + g // 3)
    codes = {"g": g, "h": h, "k": k, "top": top, "gh": 5 * g + h, "topk": 3 * top + k}
    sparse = name == "sparse"
    layouts = {**_one_factor(r, codes, one, x), **_several_factors(codes, one, x), "no random effects": []}
    layouts |= _related(codes, one, x)
    X = np.column_stack([one, x, r.normal(size=ROWS) + 20])
    offset = r.normal(size=ROWS) * weighted
    weights = r.uniform(0.5, 2, size=ROWS) if weighted else one
    y = X @ [1, 2, 0.1] + offset + r.normal(size=ROWS) / np.sqrt(weights)
    for codes, size in ((g, 1.0), (top, 0.7), (h, 0.5), (k, 0.8)):
        y += size * r.normal(size=codes.max() + 1)[codes]
    y += 0.7 * r.normal(size=7)[g] * x
    return Case(y, X, weights, offset, tuple(layouts["crossed" if sparse else name]), sparse)


def at_the_same_place(criterion, point):
    """A criterion's value at a point, its evaluation there, and value and derivatives by JAX where that ended."""
    at = criterion.value_gradient_hessian(point)

    def value(x):
        return criterion.value(at.point._replace(x=x))

    by_jax = value(at.point.x), jax.grad(value)(at.point.x), jax.hessian(value)(at.point.x)
    return criterion.value(point), at, by_jax, criterion.blank()


def assert_at_the_same_place(before, at, by_jax, blank):
    """That these agree, and that what is known of nothing has the shapes of what is known."""
    value, gradient, hessian = by_jax
    np.testing.assert_allclose([at.value, value], before, rtol=1e-10)
    np.testing.assert_allclose(at.gradient, gradient, atol=1e-8 * np.abs(gradient).max())
    np.testing.assert_allclose(at.hessian, hessian, atol=1e-8 * np.abs(hessian).max())
    assert jax.tree.map(np.shape, blank) == jax.tree.map(np.shape, at.extras)


def draw_theta(case, seed=0):
    """A theta in general position, with entries of both signs."""
    return np.random.default_rng(seed + 100).normal(size=case.size)


# ---- dense matrices ------------------------------------------------------------------------------------------------


def factors(case, theta):
    """lambda (q, q) of every term."""
    out, start = [], 0
    for t in case.terms:
        q, own = t.Z.shape[1], theta[start : start + t.size]
        if t.structure == "identity":
            out.append(own[0] * np.eye(q))
        else:
            columns, rows = np.triu_indices(q)
            out.append(np.zeros((q, q)))
            out[-1][rows, columns] = own
        start += t.size
    return out


def covariances(case, psi):
    """Sigma (q, q) of every term."""
    out, start = [], 0
    for t in case.terms:
        q, own = t.Z.shape[1], psi[start : start + t.size]
        if t.structure == "identity":
            out.append(own[0] * np.eye(q))
        else:
            rows, columns = np.tril_indices(q)
            out.append(np.zeros((q, q)))
            out[-1][rows, columns] = out[-1][columns, rows] = own
        start += t.size
    return out


def psi_of(case, theta):
    """psi of a theta."""
    pieces = [np.zeros(0)]
    for t, factor in zip(case.terms, factors(case, theta), strict=True):
        sigma = factor @ factor.T
        pieces.append(sigma[:1, 0] if t.structure == "identity" else sigma[np.tril_indices(len(sigma))])
    return np.concatenate(pieces)


def relative_covariance(case, sigmas):
    """V / sigma^2 (n, n)."""
    V = np.diag(1 / case.weights)
    for t, sigma in zip(case.terms, sigmas, strict=True):
        V += t.same * (t.Z @ sigma @ t.Z.T)
    return V


@dataclass(frozen=True)
class Dense:
    """The pieces of generalised least squares: V^-1, A = X'V^-1 X, P = V^-1 - V^-1 X A^-1 X'V^-1, beta, r'V^-1 r."""

    V: np.ndarray
    inverse: np.ndarray
    A: np.ndarray
    P: np.ndarray
    beta: np.ndarray
    residual: np.ndarray
    rss: float
    nu: int

    @property
    def weighted_residual(self):
        return self.inverse @ self.residual


def generalised(case, sigmas, reml, beta=None) -> Dense:
    """Generalised least squares at the given relative covariances, or the residuals at a given beta."""
    V, X, y = relative_covariance(case, sigmas), case.X, case.y - case.offset
    half = np.linalg.inv(np.linalg.cholesky(V))
    if beta is None:
        beta = np.linalg.lstsq(half @ X, half @ y, rcond=None)[0]
    inverse, residual = half.T @ half, y - X @ beta
    A = X.T @ inverse @ X
    P = inverse - inverse @ X @ np.linalg.solve(A, X.T @ inverse)
    nu = len(y) - X.shape[1] if reml else len(y)
    return Dense(V, inverse, A, P, beta, residual, residual @ inverse @ residual, nu)


def deviance(case, theta, reml):
    """The profiled deviance: -2 log density at the generalised least-squares beta and the profiled sigma."""
    return deviance_at(case, [f @ f.T for f in factors(case, theta)], reml)


def deviance_at(case, sigmas, reml, beta=None):
    """The profiled deviance at relative covariances, by default with beta profiled out."""
    d = generalised(case, sigmas, reml, beta)
    scale = d.rss / d.nu
    mean = case.X @ d.beta + case.offset
    value = -2 * stats.multivariate_normal.logpdf(case.y, mean, scale * d.V)
    if not reml:
        return value
    # The density of the n - p error contrasts (Harville 1974, without |X'X|).
    n, p = case.X.shape
    at_scale = value - n * np.log(2 * np.pi * scale) - d.rss / scale
    return at_scale + np.linalg.slogdet(d.A)[1] + (n - p) * (1 + np.log(2 * np.pi * scale))


def log_density(case, beta, theta, sigma):
    """The marginal Gaussian log density."""
    V = relative_covariance(case, [f @ f.T for f in factors(case, theta)])
    return stats.multivariate_normal.logpdf(case.y, case.X @ beta + case.offset, sigma**2 * V)


def _through_V(case, theta, slope):
    """Gradients in theta, Z and the weights of a function of V, from its derivative in V (n, n)."""
    pieces, Z = [np.zeros(0)], {}
    for t, factor in zip(case.terms, factors(case, theta), strict=True):
        own = t.same * slope
        Z[t.label] = 2 * own @ t.Z @ factor @ factor.T
        full = 2 * t.Z.T @ own @ t.Z @ factor
        pieces.append(np.trace(full)[None] if t.structure == "identity" else full[np.triu_indices(len(full))[::-1]])
    return {"theta": np.concatenate(pieces), "Z": Z, "weights": -np.diag(slope) / case.weights**2}


def deviance_gradient(case, theta, reml):
    """Gradient of the profiled deviance in theta and in every array of the data."""
    d = generalised(case, [f @ f.T for f in factors(case, theta)], reml)
    weight, r = d.nu / d.rss, d.weighted_residual
    slope = (d.P if reml else d.inverse) - weight * np.outer(r, r)
    X = -2 * weight * np.outer(r, d.beta)
    if reml:
        X += 2 * d.inverse @ case.X @ np.linalg.inv(d.A)
    return {"y": 2 * weight * r, "offset": -2 * weight * r, "X": X, **_through_V(case, theta, slope)}


def density_gradient(case, beta, theta, sigma):
    """Gradient of the log density in all parameters and in every array of the data."""
    d = generalised(case, [f @ f.T for f in factors(case, theta)], False, beta)
    r = d.weighted_residual / sigma**2
    slope = -(d.inverse - sigma**2 * np.outer(r, r)) / 2
    return {
        "beta": case.X.T @ r,
        "sigma": -len(r) / sigma + d.rss / sigma**3,
        "y": -r,
        "offset": r,
        "X": np.outer(r, beta),
        **_through_V(case, theta, slope),
    }


def psi_derivatives(case, psi, reml, beta=None):
    """Gradient and Hessian of the profiled deviance in psi or, at a given beta, in (beta, psi)."""
    d = generalised(case, covariances(case, psi), reml, beta)
    slopes = [
        relative_covariance(case, covariances(case, unit)) - np.diag(1 / case.weights) for unit in np.eye(len(psi))
    ]
    r, X = d.weighted_residual, case.X
    M, N = (d.P if reml else d.inverse), (d.P if beta is None else d.inverse)
    logdet = np.array([np.sum(M * s) for s in slopes])
    logdet2 = np.array([[-np.sum((M @ s) * (M @ t).T) for t in slopes] for s in slopes])
    rss = np.array([-r @ s @ r for s in slopes])
    rss2 = np.array([[2 * r @ s @ N @ t @ r for t in slopes] for s in slopes])
    if beta is not None:
        p = len(beta)
        logdet, rss = np.append(np.zeros(p), logdet), np.append(-2 * X.T @ r, rss)
        cross = np.array([2 * X.T @ d.inverse @ s @ r for s in slopes]).T
        rss2 = np.block([[2 * d.A, cross], [cross.T, rss2]])
        logdet2 = np.pad(logdet2, ((p, 0), (p, 0)))
    hessian = logdet2 + d.nu * (rss2 / d.rss - np.outer(rss, rss) / d.rss**2)
    return logdet + d.nu * rss / d.rss, hessian


def modes(case, theta, beta=None):
    """Conditional modes (levels, q) of every term: Sigma Z'V^-1 (y - X beta)."""
    sigmas = [f @ f.T for f in factors(case, theta)]
    r = generalised(case, sigmas, False, beta).weighted_residual
    modes = {}
    for t, s in zip(case.terms, sigmas, strict=True):
        own = np.stack([s @ t.Z[t.codes == level].T @ r[t.codes == level] for level in t.levels])
        modes[t.label] = np.einsum("lm,mq->lq", t.known, own)
    return modes
