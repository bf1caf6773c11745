"""Parameters and designs of variance components as objects, with statsmodels' names and layouts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jmixed.compat.packing import psd_cholesky
from jmixed.errors import DataError, ModelError
from jmixed.formulas.frame import refuse_tracer
from jmixed.reports.files import KINDS
from jmixed.runtime.arguments import checked
from jmixed.runtime.precision import FLOAT


def as_array(value, name: str) -> np.ndarray:
    """What a caller gave as an array of numbers, copied; other things are refused, as what JAX is tracing."""
    refuse_tracer(value, name)
    try:
        return np.array(value, dtype=FLOAT)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} must hold numbers: {error}") from error


@checked
class MixedLMParams:
    """The parameters of a mixed model in statsmodels' form: fixed effects, one covariance, and variance components.

    The covariances are relative to the residual variance. The same object holds a pattern of zeros and ones for the
    ``free`` argument of ``MixedLM.fit``.

    Parameters
    ----------
    k_fe, k_re, k_vc
        Numbers of fixed effects, of correlated random effects, and of variance components.

    Attributes
    ----------
    fe_params, cov_re, vcomp : arrays (k_fe,), (k_re, k_re), (k_vc,)
        Set by the factory methods, or by hand.
    reml : bool or None
        By which criterion they were estimated, if they were: what `loglike` and its derivatives refer to unless told.

    Examples
    --------
    >>> import numpy as np
    >>> import jmixed as jm
    >>> params = jm.MixedLMParams.from_components(fe_params=[1.0], cov_re=np.array([[4.0, 1.0], [1.0, 2.0]]))
    >>> params.get_packed(use_sqrt=False, has_fe=True)
    array([1., 4., 1., 2.])
    """

    fe_params: np.ndarray
    cov_re: np.ndarray
    vcomp: np.ndarray
    reml: bool | None = None

    def __init__(self, k_fe: int, k_re: int, k_vc: int):
        self.k_fe, self.k_re, self.k_vc = k_fe, k_re, k_vc
        self.k_re2 = k_re * (k_re + 1) // 2
        self.k_tot = k_fe + self.k_re2 + k_vc

    def __repr__(self) -> str:
        parts = (f"{name}={getattr(self, name, None)!r}" for name in ("fe_params", "cov_re", "vcomp"))
        return f"MixedLMParams({', '.join(parts)})"

    @staticmethod
    def from_components(
        fe_params: ArrayLike | None = None,
        cov_re: ArrayLike | None = None,
        cov_re_sqrt: ArrayLike | None = None,
        vcomp: ArrayLike | None = None,
    ) -> MixedLMParams:
        """Parameters from their parts; a part that is not given is empty.

        Raises `DataError` for a covariance that is not square, and for other parts that are no list.

        Parameters
        ----------
        fe_params, vcomp : array-like (k_fe,) and (k_vc,), optional
            Coefficients, and relative variances.
        cov_re, cov_re_sqrt : array-like (k_re, k_re), optional
            Relative covariance, or its lower-triangular square root instead.
        """
        fixed = as_array([] if fe_params is None else fe_params, "fe_params")
        variances = as_array([] if vcomp is None else vcomp, "vcomp")
        if cov_re_sqrt is not None:
            root = as_array(cov_re_sqrt, "cov_re_sqrt")
            covariance = root @ root.T if root.ndim == 2 else root
        else:
            covariance = as_array(np.zeros((0, 0)) if cov_re is None else cov_re, "cov_re")
        if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
            raise DataError(f"cov_re has shape {covariance.shape}: give a square matrix (k_re, k_re)")
        for name, values in (("fe_params", fixed), ("vcomp", variances)):
            if values.ndim != 1:
                raise DataError(f"{name} has shape {values.shape}: give a list of numbers")
        params = MixedLMParams(len(fixed), len(covariance), len(variances))
        params.fe_params, params.cov_re, params.vcomp = fixed, covariance, variances
        return params

    @staticmethod
    def from_packed(params: ArrayLike, k_fe: int, k_re: int, use_sqrt: bool, has_fe: bool) -> MixedLMParams:
        """Parameters from one vector.

        Raises `DataError` when the vector is too short.

        Parameters
        ----------
        params : array-like (k,)
            [Fixed effects,] the lower triangle of the relative covariance row by row, the relative variances.
        k_fe, k_re
            Numbers of fixed effects and of correlated random effects; what is left is variance components.
        use_sqrt
            The vector holds the Cholesky factor and the square roots of the variances instead.
        has_fe
            Whether the fixed effects are part of it; if not they are set to zero.
        """
        packed = as_array(params, "params")
        start, k_re2 = k_fe if has_fe else 0, k_re * (k_re + 1) // 2
        if packed.ndim != 1 or len(packed) < start + k_re2:
            raise DataError(
                f"packed parameters have shape {packed.shape}, but {start} fixed effects and {k_re2} (co)variances "
                "are wanted: check k_fe, k_re and has_fe"
            )
        matrix = np.zeros((k_re, k_re))
        matrix[np.tril_indices(k_re)] = packed[start : start + k_re2]
        variances = packed[start + k_re2 :]
        result = MixedLMParams(k_fe, k_re, len(variances))
        result.fe_params = packed[:start] if has_fe else np.zeros(k_fe)
        result.cov_re = matrix @ matrix.T if use_sqrt else matrix + np.tril(matrix, -1).T
        result.vcomp = variances**2 if use_sqrt else variances
        return result

    def get_packed(self, use_sqrt: bool, has_fe: bool = False) -> np.ndarray:
        """The parameters as one vector (k,): the inverse of `from_packed`.

        Raises
        ------
        ModelError
            With `use_sqrt`: a covariance with a negative eigenvalue, or a negative variance.
        """
        covariance = np.asarray(self.cov_re, dtype=float).reshape(self.k_re, self.k_re)
        variances = np.asarray(self.vcomp, dtype=float).reshape(self.k_vc)
        if use_sqrt and np.any(variances < 0):
            raise ModelError(f"vcomp holds a negative variance, {variances.min():.6g}: variances are zero or more")
        matrix, variances = (psd_cholesky(covariance), np.sqrt(variances)) if use_sqrt else (covariance, variances)
        parts = [matrix[np.tril_indices(self.k_re)], variances]
        return np.concatenate([np.asarray(self.fe_params, dtype=float), *parts] if has_fe else parts)

    def copy(self) -> MixedLMParams:
        """An independent copy."""
        params = MixedLMParams.from_components(self.fe_params, cov_re=self.cov_re, vcomp=self.vcomp)
        params.reml = self.reml
        return params


def is_params(value) -> bool:
    """Whether a value is a `MixedLMParams`, ours or statsmodels' own."""
    return hasattr(value, "get_packed") and hasattr(value, "cov_re") and hasattr(value, "vcomp")


@checked
@dataclass
class VCSpec:
    """The design of variance components, in statsmodels' form.

    Attributes
    ----------
    names : list of str
        The components.
    colnames : list of list of list of str
        ``colnames[k][i]``: names of the columns of component k in group i; groups in sorted order.
    mats : list of list of array
        ``mats[k][i]``: the columns themselves, (rows of group i, columns).

    Examples
    --------
    >>> import numpy as np
    >>> import jmixed as jm
    >>> spec = jm.VCSpec(["slope"], [[["x"], ["x"]]], [[np.ones((3, 1)), np.ones((2, 1))]])
    >>> spec.names
    ['slope']
    """

    names: list
    colnames: list
    mats: list


def _apart(params: MixedLMParams) -> dict[str, Any]:
    return dict(vars(params))


def _together(parts: dict[str, Any]) -> MixedLMParams:
    params = MixedLMParams(parts["k_fe"], parts["k_re"], parts["k_vc"])
    for name in ("fe_params", "cov_re", "vcomp", "reml"):
        if name in parts:
            setattr(params, name, parts[name])
    return params


KINDS.add("parameters", MixedLMParams, _apart, _together)
