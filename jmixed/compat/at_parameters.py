"""The likelihood of a model, and what else follows, at parameters in the layouts of statsmodels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.compat.groups import columns_by_level
from jmixed.compat.packing import Packing, psd_cholesky
from jmixed.compat.params import as_array, is_params
from jmixed.covariance.scales import preconditioners, psi_map, roots_of_psi, singular_terms
from jmixed.errors import DataError
from jmixed.fit import host
from jmixed.fit.estimate import level_count
from jmixed.likelihood import gaussian
from jmixed.likelihood.estimates import by_level, conditional_modes
from jmixed.likelihood.stages import covariances_of
from jmixed.runtime.arguments import checked
from jmixed.runtime.precision import double_precision

if TYPE_CHECKING:
    from jmixed.formulas.model_data import ModelData
    from jmixed.layout.design import Design


@checked
class Distribution:
    """The distribution of the response at given parameters, for the rows of a model.

    Parameters
    ----------
    spec
        The model's rows and terms.
    mean : array (n,)
        The fixed part, with the offset.
    covariances : list of arrays (q, q)
        Covariance of each term on the scale of the data.
    scale
        Residual variance at weight one.
    """

    def __init__(self, spec: ModelData, mean: np.ndarray, covariances: list[np.ndarray], scale: float):
        self._spec, self._mean, self._covariances, self._scale = spec, mean, covariances, scale

    def __repr__(self) -> str:
        return f"<Distribution of {len(self._mean)} responses, residual variance {self._scale:.6g}>"

    def rvs(self, n: Any = None, rng: Any = None) -> np.ndarray:
        """One simulated response for each row of the model, array (nobs,), in statsmodels' order of draws.

        Parameters
        ----------
        n
            Ignored: part of the interface that statsmodels' mediation analysis expects.
        rng : None, int, numpy Generator or RandomState
            None draws fresh entropy, an integer seeds a new generator.
        """
        draws: Any = rng if hasattr(rng, "normal") else np.random.default_rng(rng)
        y = self._mean.copy()
        for term, covariance in zip(self._spec.terms, self._covariances, strict=True):
            if term.vc is None:
                u = draws.normal(size=(len(term.levels), len(covariance))) @ psd_cholesky(covariance).T
            else:
                _, level, column = columns_by_level(term)
                u = np.zeros((len(term.levels), len(term.columns)))
                u[level, column] = np.sqrt(covariance[0, 0]) * draws.normal(size=len(level))
            y += np.einsum("ij,ij->i", term.Z, u[term.codes])
        return y + np.sqrt(self._scale / self._spec.weights) * draws.normal(size=len(y))


@dataclass(frozen=True)
class Reader:
    """Reads parameters as a caller packs them.

    Attributes
    ----------
    use_sqrt : bool
        Arrays of parameters hold Cholesky factors and square roots.
    """

    packing: Packing
    k_fe: int
    use_sqrt: bool

    def read(self, params, name="params", direct=False):
        """Parameters of a caller: beta (None if not given), psi and theta."""
        packing, m = self.packing, self.packing.size
        if is_params(params):
            beta, psi = as_array(params.fe_params, name), packing.pack(params.cov_re, params.vcomp, name)
            if beta.shape not in ((0,), (self.k_fe,)):
                raise DataError(f"{name} has {len(beta)} fixed effects, but the model has {self.k_fe}")
            return (beta if len(beta) == self.k_fe else None), psi, packing.theta(psi)
        vector = as_array(params, name)
        if vector.shape not in ((m,), (self.k_fe + m,)):
            raise DataError(
                f"{name} has shape {vector.shape}: give {m} (co)variances, or {self.k_fe} fixed effects before them"
            )
        beta, packed = (vector[:-m], vector[-m:]) if len(vector) > m or not self.k_fe else (None, vector)
        if self.use_sqrt and not direct:
            theta = packing.theta_of_root(packed)
            return beta, packing.psi(theta), theta
        return beta, packed, packing.theta(packed)


@dataclass(frozen=True)
class AtParameters:
    """Log-likelihood, score, Hessian, and what follows from parameters: methods of `MixedLM`, which documents them."""

    spec: ModelData
    design: Design
    reader: Reader
    reml: bool

    @property
    def k_fe(self) -> int:
        """Number of fixed effects."""
        return self.reader.k_fe

    @property
    def packing(self) -> Packing:
        """Of the caller's parameters."""
        return self.reader.packing

    def _point(self, params, profile_fe, direct=False):
        beta, psi, theta = self.reader.read(params, direct=direct)
        if profile_fe:
            return None, psi, theta
        if beta is None:
            raise DataError("params holds no fixed effects: put them first, or use profile_fe=True")
        return beta, psi, theta

    def loglike(self, params, profile_fe=True) -> float:
        beta, psi, _ = self._point(params, profile_fe)
        return self._evaluate(psi, beta, 0)

    def _evaluate(self, psi, beta, order) -> Any:
        return host.evaluate(self.design, psi, beta=beta, reml=self.reml, order=order)

    def score(self, params, profile_fe=True) -> np.ndarray:
        beta, psi, theta = self._point(params, profile_fe)
        _, gradient = self._evaluate(psi, beta, 1)
        fixed = 0 if profile_fe else self.k_fe
        if self.reader.use_sqrt:
            of_theta = gradient[fixed:] @ self.packing.jacobian(theta)
            gradient = np.concatenate([gradient[:fixed], self.packing.root(of_theta)])
        return gradient

    def hessian(self, params) -> tuple[np.ndarray, bool]:
        beta, psi, theta = self._point(params, profile_fe=False, direct=True)
        _, _, hessian = self._evaluate(psi, beta, 2)
        return hessian, any(singular_terms(self.design.layout.terms, theta, preconditioners(self.design)))

    def scale(self, fe_params, cov_re, vcomp) -> float:
        beta = as_array(fe_params, "fe_params")
        psi = self.packing.pack(as_array(cov_re, "cov_re"), as_array(vcomp, "vcomp"), "get_scale")
        rss = given_coefficients(self.design, psi, beta, self.reml).rss
        return rss / (self.spec.nobs - self.k_fe if self.reml else self.spec.nobs)

    def predict(self, params, exog=None) -> np.ndarray:
        beta = as_array(params.fe_params if is_params(params) else params, "params")
        if beta.ndim != 1 or len(beta) < self.k_fe:
            raise DataError(f"predict: params has shape {beta.shape}, but the model has {self.k_fe} fixed effects")
        beta = beta[: self.k_fe]
        if exog is None:
            return self.spec.X @ beta + self.spec.offset
        columns = as_array(exog, "exog")
        columns = columns[:, None] if columns.ndim == 1 and self.k_fe == 1 else columns
        if columns.ndim not in (1, 2) or columns.shape[-1] != self.k_fe:
            raise DataError(f"predict: exog has shape {columns.shape}, but the model has {self.k_fe} fixed effects")
        return columns @ beta

    def distribution(self, params, scale, exog=None) -> Distribution:
        beta, psi, _ = self._point(params, profile_fe=False, direct=True)
        columns = self.spec.X if exog is None else exog
        mean = self.predict(beta, columns)
        if np.shape(mean) != (self.spec.nobs,):
            raise DataError(f"get_distribution: exog has shape {np.shape(columns)}, not {self.spec.nobs} rows")
        mean = mean + self.spec.offset
        return Distribution(
            self.spec, mean, [scale * covariance for covariance in self.packing.covariances(psi)], scale
        )


@dataclass(frozen=True)
class GivenCoefficients:
    """What follows from beta and the relative covariances.

    Attributes
    ----------
    rss : float
        r'V^-1 r with r = y - offset - X beta and V relative to sigma^2.
    rss_gradient : array (m,)
        Its derivative in psi.
    objective : float
        -2 log-likelihood or REML criterion, sigma profiled out.
    b : dict of arrays (levels, q)
        Conditional modes by term.
    """

    rss: float
    rss_gradient: np.ndarray
    objective: float
    b: dict[str, np.ndarray]


def given_coefficients(design: Design, psi: np.ndarray, beta: np.ndarray, reml: bool) -> GivenCoefficients:
    """Everything that follows from psi (m,), inside the cone, and beta (p,)."""
    structures, moments = design.layout.terms, host.design_moments(design)
    back = np.linalg.inv(psi_map(structures, moments.T))
    roots = roots_of_psi(structures, psi, moments.T)
    with double_precision():
        out = jax.device_get(_program(moments, back @ psi, roots, np.asarray(beta, design.y.dtype), bool(reml)))
    rss, gradient, objective, modes = out
    b = {label: modes[t][: level_count(design, t)] for t, label in enumerate(design.labels)}
    return GivenCoefficients(float(rss), back.T @ gradient, float(objective), b)


@jax.jit
def _program(moments, psi, roots, beta, reml):
    preconditioned = moments.R @ (beta - moments.beta0)
    contrast = jnp.append(-preconditioned, jnp.ones((), moments.G.dtype))

    def rss(psi):
        reduced = gaussian.reduce(covariances_of(psi, moments.layout.terms), roots, moments)
        return contrast @ reduced.G @ contrast

    value, gradient = jax.value_and_grad(rss)(psi)
    result = gaussian.profile(covariances_of(psi, moments.layout.terms), roots, moments)
    logdet = result.logdet - moments.log_weights + jnp.where(reml, result.logdet_fixed, 0)
    objective = gaussian.deviance(logdet, value, gaussian.degrees(moments, reml))
    modes = by_level(conditional_modes(result._replace(beta=preconditioned), moments), moments)
    return value, gradient, objective, modes
