"""What a residual structure was estimated to be: its parameters by name, standard deviations and correlations."""

from typing import cast

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.fit.host import Fit
from jmixed.fit.information import Information
from jmixed.formulas.factors import Factor
from jmixed.formulas.frame import any_of, column, missing_rows, require_known, working_frame
from jmixed.formulas.model_data import ORDER, ModelData, ResidualTerm
from jmixed.formulas.newdata import require_row_by_row
from jmixed.formulas.recipe import Recipe, evaluate
from jmixed.inference import tails
from jmixed.inference.residual_parameters import readable, readable_slopes
from jmixed.layout.stack import structure_of_residuals
from jmixed.reports import rows
from jmixed.reports.fitted import Fitted
from jmixed.runtime.precision import FLOAT, double_precision

MOST = 200
"""Places, or combinations of what the dispersion depends on, that a table lists."""
NEAR = 1e-6
"""A correlation's distance from a bound, in the length of its range, within which it is at that bound."""


def parameter_names(spec: ModelData) -> list[str]:
    """Names of the residuals' parameters: ``logsd_COLUMN``, then ``cor_NAME|GROUP``."""
    residual = spec.residual
    if residual is None:
        return []
    group = "" if residual.factor is None else f"|{residual.factor.name}"
    correlations = [f"cor_{name}{group}" for name in structure_of_residuals(residual).names(residual.place_names)]
    return [f"logsd_{name}" for name in residual.names] + correlations


def parameter_values(spec: ModelData, rho: np.ndarray) -> np.ndarray:
    """The parameters (n, k) by which people know rho (n, k): per unit of the dispersion's columns, and correlations."""
    residual = spec.residual
    if residual is None:
        return np.zeros((len(rho), 0))
    k = residual.columns.shape[1]
    correlations = readable(structure_of_residuals(residual), rho[:, k:], residual.unit) if rho.shape[1] > k else []
    return np.hstack([rho[:, :k] / residual.units, np.reshape(correlations, (len(rho), -1))])


def parameter_errors(spec: ModelData, fit: Fit) -> np.ndarray:
    """Standard errors (k,) of `parameter_values`, from the observed information by the delta method."""
    residual = spec.residual
    if residual is None:
        return np.zeros(0)
    k, known = residual.columns.shape[1], cast(Information, fit.uncertainty)
    slopes = np.diag(np.append(1 / residual.units, np.zeros(len(fit.rho) - k)))
    if len(fit.rho) > k:
        slopes[k:, k:] = readable_slopes(structure_of_residuals(residual), fit.rho[k:], residual.unit)
    return tails.standard_errors(np.diag(slopes @ known.vcov_rho @ slopes.T))


def parameter_limits(spec: ModelData, fit: Fit, half: float) -> np.ndarray:
    """Normal limits (k, 2) of `parameter_values`, `half` standard errors to either side.

    Those of a correlation between a and b are limits of log((r - a) / (b - r)), of Fisher's z where a and b are -1 and
    1, so that they lie between a and b as well; nan for one that has reached either.
    """
    residual = spec.residual
    if residual is None:
        return np.zeros((0, 2))
    values, errors = parameter_values(spec, fit.rho[None])[0], parameter_errors(spec, fit)
    sides, k = half * np.array([-1, 1]), residual.columns.shape[1]
    limits = values[:, None] + errors[:, None] * sides
    low, high = structure_of_residuals(residual).bounds
    # The distances from both bounds, of which one at its bound has no logarithm to speak of.
    below, above = values[k:] - low, high - values[k:]
    inside = np.minimum(below, above) > NEAR * (high - low)
    below, above, error = (np.where(inside, each, np.nan) for each in (below, above, errors[k:]))
    z = np.log(below / above)[:, None] + (error * (1 / below + 1 / above))[:, None] * sides
    limits[k:] = low + (high - low) / (1 + np.exp(-z))
    return limits


def relative_deviations(residual: ResidualTerm, rho: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """d (n,): standard deviations of rows with the given columns (n, k), relative to where these are counted from."""
    return np.exp((columns - residual.origins) @ (rho[: columns.shape[1]] / residual.units))


def require_sigma(spec: ModelData, fit: Fit) -> None:
    """Refuse a fit whose sigma is beyond the range of numbers, with the origin that it has a sigma for."""
    if not np.isnan(spec.sigma_at_zero(fit.sigma, fit.rho)) or np.isnan(fit.sigma):
        return
    residual = cast(ResidualTerm, spec.residual)
    k = int(np.argmax(np.abs(residual.shift * fit.rho[: len(residual.names)])))
    name, mean, spread = residual.names[k], np.asarray(residual.origins)[k], residual.units[k]
    near = float(f"{mean:.{max(1, int(np.log10(np.abs(mean) / spread)) + 1)}g}")
    raise ModelError(
        f"dispersion={residual.dispersion!r}: sigma, the standard deviation where {name!r} is zero, is no number: the "
        f"column has the mean {mean:.6g}, differs from it by {spread:.3g}, and its coefficient is "
        f"{fit.rho[k] / spread:.4g}; take an origin among the rows, as in I({name} - {near:.15g})",
        page="structures.md",
    )


def residual_sd(spec: ModelData, fit: Fit) -> pd.Series:
    """Standard deviations of residuals of weight one, by position and by what the dispersion depends on."""
    residual = spec.residual
    if residual is None or not residual.columns.shape[1]:
        return pd.Series([float(fit.sigma)], ["sigma"], name="sd")
    deviations = fit.sigma * relative_deviations(residual, fit.rho, residual.columns)
    _, first = np.unique(residual.columns, axis=0, return_index=True)
    if len(first) > MOST or spec.frame is None:
        return pd.Series(deviations, spec.index, name="sd")
    by_row = residual.by_position and residual.position == ORDER
    names = [residual.position] if residual.by_position and not by_row else []
    if spec.recipe is not None and "dispersion" in spec.recipe.needs:
        names += [name for name in spec.recipe.needs["dispersion"] if name not in names]
    labels = spec.frame[names].iloc[first].reset_index(drop=True)
    if by_row:
        labels.insert(0, "row", residual.places[first].astype(int) + 1)
    labels = labels.sort_values(list(labels.columns), kind="stable")
    index = pd.Index(labels.iloc[:, 0]) if labels.shape[1] == 1 else pd.MultiIndex.from_frame(labels)
    return pd.Series(deviations[first][labels.index], index, name="sd")


FEW = 12
"""Standard deviations of residuals that a table or a sentence has room for."""


def named_deviations(spec: ModelData, fit: Fit) -> dict[str, float]:
    """The same with what they are of in words; sigma under no name where all are one, or there are many of them."""
    table = residual_sd(spec, fit)
    if not 1 < len(table) <= FEW:
        return {"": float(spec.sigma_at_zero(fit.sigma, fit.rho))}
    places = table.index if isinstance(table.index, pd.MultiIndex) else pd.MultiIndex.from_arrays([table.index])
    names = table.index.names
    words = [", ".join(f"{name} {value}" for name, value in zip(names, place, strict=True)) for place in places]
    return dict(zip(words, map(float, table), strict=True))


def named_correlations(spec: ModelData, fit: Fit) -> dict[str, float]:
    """The parameters of the residuals' correlations by name, as far as there is room for them."""
    values = parameter_values(spec, fit.rho[None])[0]
    told = {
        name.removeprefix("cor_").partition("|")[0]: float(value)
        for name, value in zip(parameter_names(spec), values, strict=True)
        if name.startswith("cor_")
    }
    return told if len(told) <= FEW else {}


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
    structure, k = structure_of_residuals(residual), residual.columns.shape[1]
    with double_precision():
        matrix = np.asarray(structure.matrix(fit.rho[k:], places, places))
    if spec.frame is not None and residual.position in spec.frame:
        labels = list(column(spec.frame, residual.position).iloc[first])
    else:
        labels = [int(place) + 1 for place in places]
    index = pd.Index(labels, name=residual.position if residual.position != "1" else None)
    return pd.DataFrame(matrix, index, index)


def new_columns(spec: ModelData, frame: pd.DataFrame) -> np.ndarray:
    """Columns (k, columns) of the dispersion for new rows; NaN where what they are made of is missing."""
    residual, recipe = cast(ResidualTerm, spec.residual), cast(Recipe, spec.recipe)
    by_position = np.zeros((len(frame), residual.by_position))
    if residual.by_position:
        place = _counted_places(residual, frame)
        by_position = (place[:, None] == np.arange(1, residual.by_position + 1)[None]).astype(FLOAT)
    if residual.dispersion is None:
        return by_position
    needed = recipe.columns(["dispersion"])
    require_known(needed, frame, f"dispersion={residual.dispersion!r}")
    names = residual.names[residual.by_position :]
    columns, masks = np.full((len(frame), len(names)), np.nan), missing_rows({n: column(frame, n) for n in needed})
    there = np.flatnonzero(~any_of(masks)) if masks else np.arange(len(frame))
    if len(there):
        require_row_by_row(spec, ["dispersion"], frame.iloc[there])
        working = working_frame(frame.iloc[there], needed, recipe.aliases, recipe.dtypes)
        matrix = evaluate(recipe, ["dispersion"], working, fresh=False).matrices["dispersion"]
        columns[there] = matrix.values[:, [matrix.names.index(name) for name in names]]
    return np.hstack([by_position, columns])


def _counted_places(residual: ResidualTerm, frame: pd.DataFrame) -> np.ndarray:
    """Numbers of the positions of new rows."""
    place = cast(Factor, residual.counted).match([_positions(residual, frame)])
    if np.any(place < 0):
        label = frame[residual.position].iloc[np.flatnonzero(place < 0)[:1]].tolist()[0]
        raise DataError(
            f"predict: {residual.position} {label!r} is none of the positions that the model was fitted to: "
            f"{', '.join(residual.place_names[:10])}"
        )
    return place


def _positions(residual: ResidualTerm, frame: pd.DataFrame) -> pd.Series:
    if residual.position == ORDER:
        raise DataError(
            f"predict: the positions of residual={residual.text!r} are the order of the rows, which new rows have not; "
            "state the model with a column of positions"
        )
    require_known([residual.position], frame, f"residual={residual.text!r}")
    return column(frame, residual.position)


def conditional_means(
    spec: ModelData, fit: Fit, left: np.ndarray, frame: pd.DataFrame, weights: np.ndarray
) -> np.ndarray:
    """Means (k,) of the residuals of rows with weights (k,) given those of their series, `left` (n,).

    0 for unknown series. With E the covariance of the residuals of a series, ``E_new,old E_old^-1 left``.
    """
    residual = spec.residual
    if residual is None or residual.factor is None:
        raise ModelError(
            "predict: condition='residual' needs residuals that are correlated, as in residual='ar1(visit | subject)'",
            page="structures.md",
        )
    sources = residual.factor.sources
    require_known(sources, frame, f"residual={residual.text!r}")
    series = residual.factor.match([column(frame, name) for name in sources])
    if residual.stepped:
        places = (np.asarray(_positions(residual, frame), FLOAT) - residual.origin) / residual.unit
    else:
        places = _counted_places(residual, frame).astype(FLOAT)
    structure, k = structure_of_residuals(residual), residual.columns.shape[1]
    scale = relative_deviations(residual, fit.rho, residual.columns) / np.sqrt(spec.weights)
    new_scale = relative_deviations(residual, fit.rho, new_columns(spec, frame)) / np.sqrt(weights)
    means = np.zeros(len(frame))
    for number in np.unique(series[series >= 0]):
        old, new = np.flatnonzero(residual.codes == number), np.flatnonzero(series == number)
        with double_precision():
            among, across = (
                np.asarray(structure.matrix(fit.rho[k:], first, residual.places[old]))
                for first in (residual.places[old], places[new])
            )
        means[new] = new_scale[new] * (across @ np.linalg.solve(among, left[old] / scale[old]))
    return means


def residuals(fitted: Fitted, kind: str) -> np.ndarray:
    """Residuals (n,) given the random effects: see `MixedLMResults.residuals`."""
    if kind not in ("response", "pearson", "normalized"):
        raise DataError(f"residuals: kind={kind!r}; use 'response', 'pearson' or 'normalized'")
    spec, fit, left = fitted.spec, fitted.fit, fitted.spec.y - fitted.fittedvalues
    if kind == "response":
        return left
    if kind == "normalized":
        white = fitted.white
        left = white.y - rows.mean(white, fit, rows.in_sample(white, range(len(white.terms))))
        return left * np.sqrt(white.weights) / fit.sigma
    left = left * np.sqrt(spec.weights) / fit.sigma
    if spec.residual is None:
        return left
    return left / relative_deviations(spec.residual, fit.rho, spec.residual.columns)
