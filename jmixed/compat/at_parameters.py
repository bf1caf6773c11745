"""The likelihood of a model at parameters in statsmodels' layouts: `MixedLM` is built on it."""

from __future__ import annotations

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


class Likelihood:
    """Log-likelihood, score, Hessian, and what follows from parameters that need not be estimates."""

    spec: ModelData
    design: Design
    exog: np.ndarray
    offset: np.ndarray
    use_sqrt: bool
    reml: bool
    nobs: int
    k_fe: int
    k_re2: int
    _packing: Packing

    def _read(self, params, name="params", direct=False):
        """Parameters of a caller: beta (None if not given), psi and square roots."""
        packing, m = self._packing, self._packing.size
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
        beta, psi, root = self._read(params, direct=direct)
        if profile_fe:
            return None, psi, root
        if beta is None:
            raise DataError("params holds no fixed effects: put them first, or use profile_fe=True")
        return beta, psi, root

    def loglike(self, params, profile_fe=True) -> float:
        """Log-likelihood with the scale profiled out: restricted if ``model.reml``, which `fit` sets.

        Parameters
        ----------
        params : MixedLMParams or array-like
            Relative (co)variances. An array is packed as in `fit`'s ``start_params``.
        profile_fe : bool
            Replace the fixed effects by their generalised-least-squares estimates; otherwise `params` must have them.

        Returns
        -------
        float

        Raises
        ------
        DataError
            For parameters of another length, or without the fixed effects that are wanted.

        Examples
        --------
        >>> round(model.loglike(result.params_object), 4)
        -871.8141
        """
        beta, psi, _ = self._point(params, profile_fe)
        return self._evaluate(psi, beta, 0)

    def _evaluate(self, psi, beta, order) -> Any:
        return host.evaluate(self.design, psi, beta=beta, reml=self.reml, order=order)

    def score(self, params, profile_fe=True) -> np.ndarray:
        """Gradient of `loglike` in the packed parameters; fixed effects first if they are not profiled out.

        Parameters
        ----------
        params, profile_fe
            As in `loglike`.

        Returns
        -------
        array (k,)

        Examples
        --------
        >>> bool(abs(model.score(result.params_object)).max() < 1e-5)
        True
        """
        fe, re, vc = (self.score_sqrt if self.use_sqrt else self.score_full)(params, calc_fe=not profile_fe)
        return np.concatenate([re, vc] if profile_fe else [fe, re, vc])

    def score_full(self, params, calc_fe=True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The score in the (co)variances themselves, in parts.

        Parameters
        ----------
        params : MixedLMParams or array-like
            As in `loglike`.
        calc_fe : bool
            False: the fixed effects are profiled out and their part is zero.

        Returns
        -------
        fe (k_fe,), re (k_re2,), vc (k_vc,)

        Examples
        --------
        >>> [len(part) for part in model.score_full(result.params_object)]
        [2, 3, 0]
        """
        return self._parts(params, calc_fe, square_roots=False)

    def score_sqrt(self, params, calc_fe=True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The score in Cholesky factors and square roots, in parts.

        Parameters
        ----------
        params, calc_fe
            As in `score_full`.

        Returns
        -------
        fe (k_fe,), re (k_re2,), vc (k_vc,)

        Examples
        --------
        >>> [len(part) for part in model.score_sqrt(result.params_object)]
        [2, 3, 0]
        """
        return self._parts(params, calc_fe, square_roots=True)

    def _parts(self, params, calc_fe, square_roots):
        beta, psi, root = self._point(params, not calc_fe)
        _, gradient = self._evaluate(psi, beta, 1)
        fe, variance = (gradient[: self.k_fe], gradient[self.k_fe :]) if calc_fe else (np.zeros(self.k_fe), gradient)
        variance = self._packing.root_gradient(root, variance) if square_roots else variance
        return fe, variance[: self.k_re2], variance[self.k_re2 :]

    def hessian(self, params) -> tuple[np.ndarray, bool]:
        """Hessian of `loglike` in the fixed effects and the relative (co)variances themselves, exact.

        Parameters
        ----------
        params : MixedLMParams or array-like (k_params,)
            An array is laid out as ``result.params``.

        Returns
        -------
        array (k_params, k_params), bool
            The Hessian, and whether a covariance is singular.

        Raises
        ------
        DataError
            For parameters of another length.

        Examples
        --------
        >>> hessian, singular = model.hessian(result.params)
        >>> hessian.shape, singular
        ((5, 5), False)
        """
        beta, psi, root = self._point(params, profile_fe=False, direct=True)
        _, _, hessian = self._evaluate(psi, beta, 2)
        structures, theta = self.design.layout.terms, self._packing.theta_from_root(root)
        return hessian, any(singular_terms(structures, theta, preconditioners(self.design)))

    def information(self, params) -> np.ndarray:
        """Observed information, minus the Hessian.

        Parameters
        ----------
        params
            As in `hessian`.

        Returns
        -------
        array (k_params, k_params)

        Examples
        --------
        >>> model.information(result.params).shape
        (5, 5)
        """
        return -self.hessian(params)[0]

    def get_fe_params(self, cov_re, vcomp, tol=1e-10) -> tuple[np.ndarray, bool]:
        """Generalised-least-squares estimates of the fixed effects at given covariances.

        Parameters
        ----------
        cov_re : array-like (k_re, k_re)
        vcomp : array-like (k_vc,)
            Relative to the residual variance.
        tol : float
            An eigenvalue below this is zero.

        Returns
        -------
        array (k_fe,), bool
            The estimates, and whether a covariance is singular.

        Examples
        --------
        >>> model.get_fe_params([[1.0, 0.0], [0.0, 0.1]], [])[0].round(3)
        array([251.405,  10.467])
        """
        psi = self._packing.pack(as_array(cov_re, "cov_re"), as_array(vcomp, "vcomp"), "get_fe_params")
        singular = any(np.linalg.eigvalsh(matrix)[0] < tol for matrix in self._packing.matrices(psi))
        return host.gls(self.design, psi)[0], bool(singular)

    def get_scale(self, fe_params, cov_re, vcomp) -> float:
        """Residual variance at given fixed effects and relative (co)variances, with divisor n - p under REML.

        Parameters
        ----------
        fe_params : array-like (k_fe,)
        cov_re : array-like (k_re, k_re)
        vcomp : array-like (k_vc,)
            Relative to the residual variance.

        Returns
        -------
        float

        Examples
        --------
        >>> round(model.get_scale(result.fe_params, result.cov_re_unscaled, []), 3)
        654.941
        """
        beta = as_array(fe_params, "fe_params")
        psi = self._packing.pack(as_array(cov_re, "cov_re"), as_array(vcomp, "vcomp"), "get_scale")
        rss = given_coefficients(self.design, psi, beta, self.reml).rss
        return rss / (self.nobs - self.k_fe if self.reml else self.nobs)

    def predict(self, params, exog=None) -> np.ndarray:
        """The fixed part of the prediction; ``result.predict`` is the one for new data.

        Parameters
        ----------
        params : MixedLMParams or array-like
            A vector whose first entries are the fixed effects.
        exog : array-like (k, k_fe), optional
            By default the model's own rows, with their offset.

        Returns
        -------
        array (k,)

        Raises
        ------
        DataError
            For another number of fixed effects or columns.

        Examples
        --------
        >>> model.predict([250.0, 10.0])[:3]
        array([250., 260., 270.])
        """
        beta = as_array(params.fe_params if is_params(params) else params, "params")
        if beta.ndim != 1 or len(beta) < self.k_fe:
            raise DataError(f"predict: params has shape {beta.shape}, but the model has {self.k_fe} fixed effects")
        beta = beta[: self.k_fe]
        if exog is None:
            return self.exog @ beta + self.offset
        columns = as_array(exog, "exog")
        columns = columns[:, None] if columns.ndim == 1 and self.k_fe == 1 else columns
        if columns.ndim not in (1, 2) or columns.shape[-1] != self.k_fe:
            raise DataError(f"predict: exog has shape {columns.shape}, but the model has {self.k_fe} fixed effects")
        return columns @ beta

    def get_distribution(self, params, scale, exog=None) -> Distribution:
        """The distribution of the response at given parameters: an object with ``rvs(n, rng)``.

        Parameters
        ----------
        params : MixedLMParams or array-like (k_params,)
            Laid out as ``result.params``.
        scale : float
            Residual variance.
        exog : array-like (nobs, k_fe), optional
            By default the model's own columns.

        Returns
        -------
        Distribution

        Raises
        ------
        DataError
            `exog` has another number of rows than the model.

        Examples
        --------
        >>> model.get_distribution(result.params, result.scale).rvs(rng=1).shape
        (180,)
        """
        beta, psi, _ = self._point(params, profile_fe=False, direct=True)
        columns = self.exog if exog is None else exog
        mean = self.predict(beta, columns)
        if np.shape(mean) != (self.nobs,):
            raise DataError(f"get_distribution: exog has shape {np.shape(columns)}, the model has {self.nobs} rows")
        mean = mean + self.offset
        return Distribution(self.spec, mean, [scale * matrix for matrix in self._packing.matrices(psi)], scale)
