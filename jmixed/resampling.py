"""New responses for a fitted model: simulation and refits; `MixedLMResults` is built on it."""

import copy
from typing import Any

import numpy as np

from jmixed.covariance import Structure
from jmixed.errors import DataError, ModelError
from jmixed.fitted import FittedModel
from jmixed.inference.simulation import draw_responses, generator
from jmixed.information import factors_of_theta


class Resampling(FittedModel):
    """Simulation from a fit, and the same fit to other responses."""

    def simulate(self, n: int = 1, key: Any = 0) -> np.ndarray:
        """Draw new responses from the fitted model: new random effects, new residuals.

        Parameters
        ----------
        n : int
            Number of responses.
        key : JAX random key, or int
            The same key gives the same responses.

        Returns
        -------
        array (n, nobs)
            In the unit of the response, rows in the model's order.

        Raises
        ------
        DataError
            For an `n` or a `key` that is none, or after `remove_data`.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.simulate(3, key=1).shape
        (3, 180)
        """
        return self._draw(count(n, "simulate"), generator(key))

    def _draw(self, n: int, rng) -> np.ndarray:
        """`n` responses from a generator."""
        self._need_data("simulation")
        spec, fit = self._spec, self._fit
        structures = [Structure(len(term.columns), term.structure) for term in spec.terms]
        factors = factors_of_theta(structures, fit.theta)
        terms = [(t.codes, t.Z, fit.sigma * factor) for t, factor in zip(spec.terms, factors, strict=True)]
        return draw_responses(spec.X @ fit.beta + spec.offset, terms, fit.sigma / np.sqrt(spec.weights), n, rng)

    def refit(self, y) -> Any:
        """Fit the same model to another response; all else stays, and nothing is compiled anew.

        Parameters
        ----------
        y : array-like (nobs,)
            The new response as the model has it (transformed, if the formula transforms it), rows in the model's order.

        Returns
        -------
        MixedLMResults
            By the same criterion; parameters that were held are held again. Its ``model`` has the new response.

        Raises
        ------
        DataError
            For a response of another length, with values that are not finite, or constant.
        ModelError
            When this fit was penalised.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.refit(2 * result.model.endog).fe_params.round(3).to_dict()
        {'Intercept': 502.81, 'Days': 20.935}
        """
        self._need_data("refit")
        self._refuse_penalised("refit")
        return self.model.with_response(y).fit(reml=self.reml, **self._pattern)

    @property
    def _pattern(self) -> dict:
        """Arguments of a fit that holds what this one held."""
        return {} if self.freepat is None else {"free": self.freepat, "start_params": self.params_object}

    def _by_ml(self, what: str) -> Any:
        """This result, or the ML fit of the same model."""
        self._refuse_penalised(what)
        return copy.copy(self.model).fit(reml=False, **self._pattern) if self.reml else self

    def _refuse_penalised(self, what: str) -> None:
        if self._penalty:
            raise ModelError(f"{what}: this fit was penalised, and a penalty has no likelihood; fit without it")

    def _refuse_held(self, what: str) -> None:
        self._refuse_penalised(what)
        if self.freepat is not None:
            raise ModelError(f"{what}: some parameters of this fit were held (free=...); fit all of them")


def count(n, what: str) -> int:
    """A number of responses or replicates, checked."""
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or n < 1:
        raise DataError(f"{what}: n is {n!r}; it must be a whole number, one or more")
    return int(n)
