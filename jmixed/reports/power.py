"""Power by simulation: how often a test would find an effect, with this design or with more groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.structures import ONE_VARIANCE, UNSTRUCTURED
from jmixed.inference import tails
from jmixed.inference.responses import at_predictors, draw
from jmixed.inference.simulation import generator
from jmixed.reports import further
from jmixed.reports.bootstrap import count
from jmixed.reports.components import all_estimates, all_names, named_parameters
from jmixed.reports.drawing import legend, pyplot
from jmixed.reports.names import structure
from jmixed.reports.printed import Shown
from jmixed.runtime.arguments import checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KNOWN = (UNSTRUCTURED, "diag", ONE_VARIANCE)
"""Structures whose standard deviations and correlations say all."""
FITS = 5
"""Fits whose degrees of freedom are averaged."""


@checked
@dataclass(frozen=True, eq=False, repr=False)
class Power(Shown):
    """Shares of simulated data in which an effect was found.

    Attributes
    ----------
    frame : DataFrame
        A row for each combination of the grid: its columns, then power, lower and upper (limits of 95% for the number
        of simulations, Wilson's), df (of the test), and failed, fits without a certified optimum, which count as not
        found.
    test : str
        The coefficient that is tested.
    alpha : float
    n_simulations : int
    """

    frame: pd.DataFrame
    test: str
    alpha: float
    n_simulations: int

    def _shown(self) -> tuple[str, pd.DataFrame]:
        return f"<Power of {self.test} at {self.alpha:g}, {self.n_simulations} simulations each>", self.frame

    def plot(self, ax: Any = None) -> Axes:
        """The curve along the first column of the grid, a colour for each combination of the others.

        Raises `DataError` without a grid.

        Parameters
        ----------
        ax : axes of matplotlib, optional
        """
        names = list(self.frame.columns[: list(self.frame.columns).index("power")])
        if not names:
            raise DataError("power: there is no grid, and so no curve: give grid={'subject': [20, 40, 80]}")
        if ax is None:
            ax = pyplot().subplots(figsize=(6, 4), layout="constrained")[1]
        others = names[1:]
        groups: Any = self.frame.groupby(others, sort=False) if others else [("", self.frame)]
        for k, (levels, part) in enumerate(groups):
            x = part[names[0]].to_numpy(dtype=float)
            told = ", ".join(f"{name} = {value:g}" for name, value in zip(others, np.atleast_1d(levels), strict=False))
            colour = "#1f4e79" if not others else f"C{k}"
            ax.vlines(x, part["lower"], part["upper"], color=colour, linewidth=1.5)
            ax.plot(x, part["power"], "-o", color=colour, markersize=4, label=told or None)
        ax.axhline(0.8, color="#9aa5b1", linewidth=1, linestyle="--")
        ax.set_ylim(0, 1.02)
        # There are no twelve and a half subjects.
        ax.set_xticks(self.frame[names[0]].unique().astype(float))
        ax.set_xlabel(names[0])
        ax.set_ylabel(f"power for {self.test}")
        if others:
            legend(ax)
        return ax


@checked
def power(
    model: Any,
    effects: Mapping[str, float] | None = None,
    n_simulations: int = 1000,
    grid: Mapping[str, Sequence[float]] | None = None,
    test: str | None = None,
    ddf: Literal["satterthwaite", "none"] = "satterthwaite",
    alpha: float = 0.05,
    key: Any = 0,
    progress: bool = False,
) -> Power:
    """How often a test would find an effect, by simulation and `fit_many`: R's simr.

    Parameters
    ----------
    model : MixedLMResults, MixedGLMResults, MixedLM or MixedGLM
        A fit, whose estimates hold for what `effects` does not say, as of a pilot study; or a model of planned data,
        whose parameters are all in `effects`. Its response does not matter. A family with parameters of its own, as the
        dispersion of counts or thresholds, has those of a fit.
    effects
        True values by name, as in ``result.confint()``: coefficients, ``sd_COLUMN|GROUP``, ``cor_A.B|GROUP``, sigma.
    n_simulations
        Of each combination of the grid.
    grid
        What varies, {"Days": [2, 5], "Subject": [20, 40]}: true values of parameters, and numbers of levels of grouping
        factors that are columns. More levels than there are repeat the rows of those that there are, with new labels;
        levels of several kinds, as subjects in the arms of a trial, are taken in turn, so that their shares stay.
    test
        The coefficient that is tested; by default the one coefficient in `effects`, or the last one of the model.
    ddf
        "satterthwaite": t tests, with degrees of freedom that are an average over a few fits. "none": z tests, as those
        of a response with a family always are.
    alpha
        The test finds an effect where its p-value is below.
    key : JAX random key, or int
        The same key gives the same simulations.

    Raises
    ------
    DataError
        For a number of levels that is none, or too few for the coefficients, and a grouping factor that is no column.
    ModelError
        For names that are no parameters, parameters that are missing, correlated residuals, related levels, and a
        response with a family and weights.

    Examples
    --------
    >>> import jmixed as jm
    >>> pilot = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    >>> curve = jm.power(pilot, n_simulations=200, grid={"Days": [2.0, 6.0]}, test="Days", key=1).frame
    >>> bool(curve["power"][1] > curve["power"][0] + 0.4)
    True
    """
    fitted = getattr(model, "fitted", None)
    stated = model if fitted is None else fitted.model
    spec = getattr(stated, "spec", None)
    if spec is None:
        raise ModelError(f"power: model is of type {type(model).__name__}; give a result, or a model")
    if spec.residual is not None or any(term.relationship is not None for term in spec.terms):
        raise ModelError("power: it is there for models with independent residuals and unrelated levels")
    kappa = _kappa(fitted, stated, [*(effects or {}), *(grid or {})]) if spec.response is not None else None
    if other := [term.label for term in spec.terms if term.structure not in KNOWN]:
        raise ModelError(f"power: {other[0]!r} has a covariance structure that is not simulated here; use (x | g)")
    count(n_simulations, "power")
    truth = _truth(fitted, spec, dict(effects or {}), dict(grid or {}))
    named = [name for name in effects or {} if name in spec.exog_names]
    tested = test or (named[0] if len(named) == 1 else spec.exog_names[-1])
    if tested not in spec.exog_names:
        raise ModelError(f"power: test={tested!r} is no coefficient; these are {list(spec.exog_names)}")
    names, rng = list(grid or {}), generator(key)
    factors = [name for name in names if name not in truth]
    rows, designs = [], {}
    for values in product(*(list((grid or {})[name]) for name in names)):
        point = dict(zip(names, values, strict=True))
        sizes = tuple(point[name] for name in factors)
        if sizes not in designs:
            designs[sizes] = _extended(stated, dict(zip(factors, sizes, strict=True)))
        at = truth | {name: float(value) for name, value in point.items() if name in truth}
        used = "none" if kappa is not None else ddf
        rows.append(point | _found(designs[sizes], at, kappa, tested, n_simulations, used, alpha, rng, progress))
    return Power(pd.DataFrame(rows), tested, float(alpha), int(n_simulations))


def _truth(fitted: Any, spec: Any, effects: dict, grid: dict) -> dict[str, float]:
    """True values of all parameters, by name."""
    if fitted is not None:
        truth = dict(zip(all_names(fitted), np.asarray(all_estimates(fitted), dtype=float).tolist(), strict=True))
    else:
        names = [name for name, _ in named_parameters(spec)]
        truth = {name: 0.0 if name.startswith("cor_") else float("nan") for name in names}
    groups = {term.group for term in spec.terms}
    for name in [*effects, *grid]:
        if name not in truth and not (name in grid and name in groups):
            raise ModelError(f"power: {name!r} is no parameter of the model; these are {list(truth)}")
    for name, value in effects.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not np.isfinite(float(value)):
            raise DataError(f"power: the true value of {name!r} is {value!r}; give a number")
        truth[name] = float(value)
    missing = [name for name, value in truth.items() if np.isnan(value) and name not in grid]
    if missing:
        raise ModelError(f"power: the true values of {', '.join(missing)} are not known; give them in effects")
    return truth


def _kappa(fitted: Any, model: Any, named: Sequence[str]) -> np.ndarray:
    """The coefficients of a family's further predictors, which are those of the fit."""
    if np.any(model.spec.weights != 1):
        raise ModelError("power: weights of a response with a family have no responses that could be drawn")
    if not model.family.extras:
        return np.zeros(0)
    if fitted is None:
        raise ModelError(
            f"power: the family {model.family.name} has parameters of its own ({', '.join(model.family.extras)}); give "
            "the fit of a pilot study, which has them, in the place of a model"
        )
    if fixed := [name for name in named if name in further.parameter_names(model)]:
        raise ModelError(f"power: {fixed[0]!r} is taken from the fit, and cannot be varied")
    return fitted.fit.kappa


def _extended(model: Any, sizes: dict[str, Any]) -> Any:
    """The model with other numbers of levels of some factors."""
    if not sizes:
        return model
    frame = model.spec.frame
    for name, size in sizes.items():
        if frame is None or name not in frame:
            raise DataError(f"power: {name!r} is no column of the data, and its number of levels cannot be changed")
        if isinstance(size, bool) or int(size) != size or size < 2:
            raise DataError(f"power: {name!r} cannot have {size!r} levels; give a whole number from 2 on")
        columns = model.spec.recipe.columns([part for part in model.spec.recipe.specs if part != "lhs"])
        codes, levels = _in_turn(frame, name, [column for column in columns if column != name])
        pieces = []
        for k in range(int(size)):
            piece = frame[codes == levels[k % len(levels)]]
            pieces.append(piece.assign(**{name: f"level {k + 1:05d}"}))
        frame = pd.concat(pieces, ignore_index=True)
    extended = model.with_data(frame)
    if lost := [name for name in model.spec.exog_names if name not in extended.spec.exog_names]:
        told = ", ".join(f"{size} levels of {name}" for name, size in sizes.items())
        raise DataError(f"power: the rows of {told} do not determine {', '.join(lost)}; give more levels")
    return extended


def _in_turn(frame: pd.DataFrame, name: str, columns: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The level of each row (n,), and the levels in an order in which any first few are like all of them.

    Levels that differ in a predictor that is constant within levels, as the arms of a trial, take turns, each as often
    as its share; otherwise they stand in their own order.
    """
    codes, labels = pd.factorize(frame[name], sort=True)
    by_level = frame[list(columns)].groupby(codes)
    kinds = pd.DataFrame(index=range(len(labels)))
    for column in columns:
        # A predictor with a value of its own for each level makes no kinds of levels.
        alike = np.asarray(by_level[column].nunique(dropna=False)) == 1
        if alike.all() and 2 * len(set(frame[column])) <= len(labels):
            kinds[column] = by_level[column].first()
    if kinds.empty:
        return codes, np.arange(len(labels))
    within = kinds.groupby(list(kinds.columns), observed=True, dropna=False)[kinds.columns[0]]
    place = (within.cumcount() + 0.5) / within.transform("size")
    return codes, np.argsort(place.to_numpy(), kind="stable")


def _found(
    model: Any,
    truth: dict[str, float],
    kappa: np.ndarray | None,
    test: str,
    n: int,
    ddf: str,
    alpha: float,
    rng: Any,
    progress: bool,
) -> dict[str, float]:
    """The share of simulated responses whose test finds the effect, with its limits."""
    spec = model.spec
    Y = _responses(model, truth, kappa, n, rng)
    many = model.fit_many(Y, progress=progress)
    place = list(spec.exog_names).index(test)
    df = np.inf
    if ddf == "satterthwaite":
        sound = np.flatnonzero(many.converged.to_numpy() & ~many.singular.to_numpy())[:FITS]
        each = [model.with_response(Y[k]).fit().test(ddf="satterthwaite")["df"].iloc[place] for k in sound]
        df = float(np.nanmedian(each)) if len(each) else float(spec.nobs - len(spec.exog_names))
    t = (many.fe_params[test] / many.bse_fe[test]).to_numpy(dtype=float)
    sound = many.converged.to_numpy() & np.isfinite(t)
    hits = int(np.sum(tails.p_of_t(t[sound], np.full(int(sound.sum()), df)) < alpha))
    low, high = wilson(hits, n)
    return {"power": hits / n, "lower": low, "upper": high, "df": df, "failed": int(n - sound.sum())}


def _responses(model: Any, truth: dict[str, float], kappa: np.ndarray | None, n: int, rng: Any) -> np.ndarray:
    """New responses (n, nobs) of a model with these parameters."""
    spec = model.spec
    beta = np.array([truth[name] for name in spec.exog_names])
    fixed = spec.X @ beta + spec.offset
    predictors = np.tile(fixed, (n, 1))
    if kappa is None:
        predictors += truth["sigma"] / np.sqrt(spec.weights) * rng.standard_normal(predictors.shape)
    for term in spec.terms:
        root = _root(term, truth)
        effects = rng.standard_normal((n, len(term.levels), len(term.columns))) @ root.T
        predictors += np.einsum("nij,ij->ni", effects[:, term.codes], term.Z)
    if kappa is None:
        return predictors
    extras = at_predictors(model.design, fixed, kappa).extras
    bits = rng.integers(0, 2**32, (n, 2), dtype=np.uint32)
    return draw(model.family, bits, predictors, extras, spec.response.trials)


def _root(term: Any, truth: dict[str, float]) -> np.ndarray:
    """A root of a term's covariance, from standard deviations and correlations by name."""
    q = len(term.columns)
    deviations, R = np.zeros(q), np.eye(q)
    for entry in structure(term).readable(term.columns, term.vc):
        if entry.second is None:
            value = truth[f"sd_{entry.first}|{term.group}"]
            # One variance may be that of all columns.
            deviations[slice(None) if term.shares_variance else entry.row] = value
        else:
            value = truth[f"cor_{entry.second}.{entry.first}|{term.group}"]
            R[entry.row, entry.column] = R[entry.column, entry.row] = 0.0 if np.isnan(value) else value
    covariance = R * np.outer(deviations, deviations)
    values, vectors = np.linalg.eigh(covariance)
    if values.min() < -1e-8 * max(values.max(), 1e-300):
        raise ModelError(f"power: the correlations of {term.label!r} are those of no covariance; give smaller ones")
    return vectors * np.sqrt(np.maximum(values, 0))


def wilson(hits: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's limits of a share.

    Examples
    --------
    >>> from jmixed.reports.power import wilson
    >>> [round(limit, 3) for limit in wilson(80, 100)]
    [0.711, 0.867]
    """
    z, p = tails.half_width(level), hits / n
    center, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    low, high = (float(np.clip(limit / (1 + z**2 / n), 0, 1)) for limit in (center - half, center + half))
    return low, high
