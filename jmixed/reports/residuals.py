"""What a residual structure was estimated to be: its parameters by name, standard deviations and correlations."""

from functools import partial

import jax
import numpy as np
import pandas as pd

from jmixed.errors import ModelError
from jmixed.fit.host import Fit
from jmixed.formulas.model_data import ModelData, ResidualTerm
from jmixed.residual.registry import residual_structure
from jmixed.residual.structure import ResidualStructure
from jmixed.runtime.precision import double_precision

MOST = 200
"""Places, or combinations of what the dispersion depends on, that a table lists."""


def structure_of_term(residual: ResidualTerm) -> ResidualStructure:
    """The structure that a term of the residuals stands for."""
    return residual_structure(residual.structure, residual.columns.shape[1], residual.positions)


def parameter_names(spec: ModelData) -> list[str]:
    """Names of the residuals' parameters: ``logsd_COLUMN``, then ``cor_NAME|GROUP``."""
    residual = spec.residual
    if residual is None:
        return []
    group = "" if residual.factor is None else f"|{residual.factor.name}"
    correlations = [f"cor_{name}{group}" for name in structure_of_term(residual).names(residual.place_names)]
    return [f"logsd_{name}" for name in residual.names] + correlations


def parameter_values(spec: ModelData, rho: np.ndarray) -> np.ndarray:
    """The parameters (n, k) by which people know rho (n, k): per unit of the dispersion's columns, and correlations."""
    residual = spec.residual
    if residual is None:
        return np.zeros((len(rho), 0))
    k, readable = residual.columns.shape[1], _readable(residual)
    with double_precision():
        correlations = np.asarray(jax.vmap(readable)(rho[:, k:]))
    return np.hstack([rho[:, :k] / residual.units, correlations.reshape(len(rho), -1)])


def parameter_errors(spec: ModelData, fit: Fit) -> np.ndarray:
    """Standard errors (k,) of `parameter_values`, from the observed information by the delta method."""
    residual = spec.residual
    if residual is None:
        return np.zeros(0)
    k = residual.columns.shape[1]
    slopes = np.diag(np.append(1 / residual.units, np.zeros(len(fit.rho) - k)))
    if len(fit.rho) > k:
        with double_precision():
            slopes[k:, k:] = jax.jacfwd(_readable(residual))(fit.rho[k:])
    variances = np.diag(slopes @ fit.uncertainty.vcov_rho @ slopes.T)
    return np.sqrt(np.where(variances >= 0, variances, np.nan))


def _readable(residual):
    return partial(structure_of_term(residual).readable, unit=residual.unit)


def relative_deviations(residual: ResidualTerm, rho: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """d (n,): standard deviations relative to sigma of rows with the given columns (n, k) of the dispersion."""
    return np.exp(columns @ (rho[: columns.shape[1]] / residual.units))


def residual_sd(spec: ModelData, fit: Fit) -> pd.Series:
    """Standard deviations of residuals of weight one, by position and by what the dispersion depends on."""
    residual = spec.residual
    if residual is None or not residual.columns.shape[1]:
        return pd.Series([float(fit.sigma)], ["sigma"], name="sd")
    deviations = fit.sigma * relative_deviations(residual, fit.rho, residual.columns)
    _, first = np.unique(residual.columns, axis=0, return_index=True)
    if len(first) > MOST or spec.frame is None:
        return pd.Series(deviations, spec.index, name="sd")
    names = [residual.position] if residual.by_position else []
    if spec.recipe is not None and "dispersion" in spec.recipe.needs:
        names += [name for name in spec.recipe.needs["dispersion"] if name not in names]
    labels = spec.frame[names].iloc[first]
    order = labels.sort_values(names, kind="stable").index if labels.index.is_unique else labels.index
    table = pd.Series(deviations[first], labels.index, name="sd").loc[order]
    labels = labels.loc[order]
    table.index = pd.Index(labels.iloc[:, 0], name=names[0]) if len(names) == 1 else pd.MultiIndex.from_frame(labels)
    return table


def residual_corr(spec: ModelData, fit: Fit) -> pd.DataFrame:
    """Correlations of the residuals of a group between its positions."""
    residual = spec.residual
    if residual is None or residual.structure == "independent":
        raise ModelError(
            "residual_corr: the residuals of this model are independent; state a structure, as in "
            "residual='ar1(visit | subject)'",
            page="structures.md",
        )
    places, first = np.unique(residual.places, return_index=True)
    if len(places) > MOST:
        raise ModelError(
            f"residual_corr: there are {len(places)} positions, and a table of more than {MOST} is none to read; "
            "tidy('ran_pars') has the parameters",
            page="structures.md",
        )
    structure, k = structure_of_term(residual), residual.columns.shape[1]
    with double_precision():
        matrix = np.asarray(structure.matrix(fit.rho[k:], places, places))
    if residual.position in (spec.frame.columns if spec.frame is not None else ()):
        labels = list(spec.frame[residual.position].iloc[first])
    else:
        labels = [int(place) + 1 for place in places]
    index = pd.Index(labels, name=residual.position if residual.position != "1" else None)
    return pd.DataFrame(matrix, index, index)
