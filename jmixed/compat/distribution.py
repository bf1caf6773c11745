"""New responses from a mixed model, in statsmodels' order of draws."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jmixed.compat.groups import columns_by_level
from jmixed.compat.packing import psd_cholesky
from jmixed.runtime.arguments import checked

if TYPE_CHECKING:
    from jmixed.formulas.model_data import ModelData


@checked
class Distribution:
    """The distribution of the response at given parameters, for the rows of a model.

    Parameters
    ----------
    spec : ModelData
        The model's rows and terms.
    mean : array (n,)
        The fixed part, with the offset.
    covariances : list of arrays (q, q)
        Covariance of each term on the scale of the data.
    scale : float
        Residual variance at weight one.
    """

    def __init__(self, spec: ModelData, mean: np.ndarray, covariances: list[np.ndarray], scale: float):
        self._spec, self._mean, self._covariances, self._scale = spec, mean, covariances, scale

    def __repr__(self) -> str:
        return f"<Distribution of {len(self._mean)} responses, residual variance {self._scale:.6g}>"

    def rvs(self, n=None, rng=None) -> np.ndarray:
        """One simulated response for each row of the model.

        Parameters
        ----------
        n : ignored
            Part of the interface that statsmodels' mediation analysis expects.
        rng : None, int, numpy Generator or RandomState
            None draws fresh entropy, an integer seeds a new generator.

        Returns
        -------
        array (nobs,)

        Examples
        --------
        >>> import jmixed as jm
        >>> model = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy"))
        >>> model.get_distribution([250.0, 10.0, 1.0], 900.0, None).rvs(rng=1).shape
        (180,)
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
