"""The likelihood of a model at parameters in statsmodels' layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from jmixed.compat.distribution import Distribution
from jmixed.compat.given_coefficients import given_coefficients
from jmixed.compat.packing import Packing
from jmixed.compat.params import as_array, is_params
from jmixed.covariance.scales import preconditioners, singular_terms
from jmixed.errors import DataError
from jmixed.fit import host

if TYPE_CHECKING:
    from jmixed.formulas.model_data import ModelData
    from jmixed.layout.design import Design


@dataclass(frozen=True)
class AtParameters:
    """Log-likelihood, score, Hessian, and what follows from parameters that need not be estimates.

    The methods are those of `MixedLM`, which says what they take.

    Attributes
    ----------
    spec, design : ModelData, Design
    packing : Packing
    use_sqrt : bool
        Arrays of parameters hold Cholesky factors and square roots.
    reml : bool
    """

    spec: ModelData
    design: Design
    packing: Packing
    use_sqrt: bool
    reml: bool

    @property
    def k_fe(self) -> int:
        """Number of fixed effects."""
        return self.spec.X.shape[1]

    def read(self, params, name="params", direct=False):
        """Parameters of a caller: beta (None if not given), psi and square roots."""
        packing, m = self.packing, self.packing.size
        if is_params(params):
            beta, psi = as_array(params.fe_params, name), packing.pack(params.cov_re, params.vcomp, name)
            if beta.shape not in ((0,), (self.k_fe,)):
                raise DataError(f"{name} has {len(beta)} fixed effects, but the model has {self.k_fe}")
            return (beta if len(beta) == self.k_fe else None), psi, packing.root_from_psi(psi)
        vector = as_array(params, name)
        if vector.shape not in ((m,), (self.k_fe + m,)):
            raise DataError(
                f"{name} has shape {vector.shape}: give {m} (co)variances, or {self.k_fe} fixed effects before them"
            )
        beta, packed = (vector[:-m], vector[-m:]) if len(vector) > m or not self.k_fe else (None, vector)
        if self.use_sqrt and not direct:
            return beta, packing.psi_from_root(packed), packed
        return beta, packed, packing.root_from_psi(packed)

    def _point(self, params, profile_fe, direct=False):
        beta, psi, root = self.read(params, direct=direct)
        if profile_fe:
            return None, psi, root
        if beta is None:
            raise DataError("params holds no fixed effects: put them first, or use profile_fe=True")
        return beta, psi, root

    def loglike(self, params, profile_fe=True) -> float:
        beta, psi, _ = self._point(params, profile_fe)
        return self._evaluate(psi, beta, 0)

    def _evaluate(self, psi, beta, order) -> Any:
        return host.evaluate(self.design, psi, beta=beta, reml=self.reml, order=order)

    def score(self, params, profile_fe=True) -> np.ndarray:
        beta, psi, root = self._point(params, profile_fe)
        _, gradient = self._evaluate(psi, beta, 1)
        fixed = 0 if profile_fe else self.k_fe
        if self.use_sqrt:
            gradient = np.concatenate([gradient[:fixed], self.packing.root_gradient(root, gradient[fixed:])])
        return gradient

    def hessian(self, params) -> tuple[np.ndarray, bool]:
        beta, psi, root = self._point(params, profile_fe=False, direct=True)
        _, _, hessian = self._evaluate(psi, beta, 2)
        structures, theta = self.design.layout.terms, self.packing.theta_from_root(root)
        return hessian, any(singular_terms(structures, theta, preconditioners(self.design)))

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
        return Distribution(self.spec, mean, [scale * matrix for matrix in self.packing.matrices(psi)], scale)
