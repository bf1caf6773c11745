"""Estimated marginal means, their contrasts, and slopes: functions of the coefficients over a reference grid.

A mean is linear in the coefficients, the average of the fixed part over the rows of a grid; everything else follows
from its weights. Means of a response with a family that are averaged over the random effects are not linear: they have
slopes in all parameters instead (the delta method). Both are `Functions`, and so are their contrasts.
"""

import ast
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.formula import quoted, replace_keywords
from jmixed.formulas.frame import few
from jmixed.formulas.marks import without_backticks
from jmixed.inference import multiplicity, tails
from jmixed.inference.multiplicity import ADJUSTMENTS
from jmixed.inference.satterthwaite import contrast_covariance
from jmixed.inference.variance_explained import variances_of_predictors
from jmixed.reports import diagnostics, expected
from jmixed.reports.drawing import legend, pyplot
from jmixed.reports.fitted import Fitted
from jmixed.reports.grid import Grid, cells, reference_grid
from jmixed.reports.printed import as_html, as_text, noted
from jmixed.reports.tests import DDF, Denominator, denominator
from jmixed.runtime.arguments import checked

Weights = Literal["equal", "proportional", "cells", "outer", "flat"]
WEIGHTS = ("equal", "proportional", "cells", "outer", "flat")
MeanKind = Literal["link", "response", "probability", "marginal"]
KINDS = ("link", "response", "probability", "marginal")
Adjust = Literal["tukey", "mvt", "holm", "bonferroni", "sidak", "fdr", "none"]
METHODS = ("pairwise", "revpairwise", "reference", "consecutive", "poly", "effects", "identity")
USUAL = {"pairwise": "tukey", "revpairwise": "tukey", "reference": "mvt", "consecutive": "mvt", "effects": "fdr"}
"""How the tests of a method are adjusted unless one says otherwise: as in emmeans, exactly where that approximates."""


# Scales.


@dataclass(frozen=True)
class Scale:
    """How a mean is brought to the scale of the response: its inverse, the three derivatives of this (`slope`, and
    `bends` gives two), what differences are, and of a transformed response what the inverse gives.
    """

    name: str
    inverse: Callable[[np.ndarray], np.ndarray]
    slope: Callable[[np.ndarray], np.ndarray]
    bends: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    exponent: Callable[[np.ndarray], np.ndarray] | None = None
    ratio: str = ""
    forward: Callable[[np.ndarray], np.ndarray] | None = None
    response: str = "the response"

    def adjusted(self, sigma: float) -> "Scale":
        """With the inverse's mean around x in the place of its value at x, to second order: g + sigma^2 g'' / 2."""
        half = sigma**2 / 2
        if half == 0:
            return self
        return replace(
            self,
            inverse=lambda x: self.inverse(x) + half * self.bends(x)[0],
            slope=lambda x: self.slope(x) + half * self.bends(x)[1],
        )

    def multiplied(self, factor: float) -> "Scale":
        """That of a multiple of the transformed response, whose differences are no logarithms of ratios."""
        if factor == 1:
            return self

        def bends(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            second, third = self.bends(x / factor)
            return second / factor**2, third / factor**3

        return Scale(
            f"{factor:g} {self.name}",
            lambda x: self.inverse(x / factor),
            lambda x: self.slope(x / factor) / factor,
            bends,
            response=self.response,
        )

    def shifted(self, shift: float) -> "Scale":
        """That of a response to which a number was added."""
        return replace(self, inverse=lambda x: self.inverse(x) - shift) if shift else self


def _expit(x):
    from scipy.special import expit

    return expit(x)


def _normal(x):
    from scipy.special import ndtr

    return ndtr(x)


def _normal_density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


def _normal_quantile(mean):
    from scipy.special import ndtri

    return ndtri(mean)


def _logit(mean):
    return np.log(mean) - np.log1p(-mean)


def _cloglog(mean):
    return np.log(-np.log1p(-mean))


def _exponential(name: str, base: float) -> Scale:
    rate = np.log(base)

    def power(x: np.ndarray) -> np.ndarray:
        return np.exp(rate * x)

    def bends(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return rate**2 * power(x), rate**3 * power(x)

    return Scale(name, power, lambda x: rate * power(x), bends, power, "ratios", lambda mean: np.log(mean) / rate)


def _logit_bends(x):
    p, q = _expit(x), _expit(-x)
    return p * q * (q - p), p * q * (1 - 6 * p * q)


def _probit_bends(x):
    return -x * _normal_density(x), (x**2 - 1) * _normal_density(x)


def _cloglog_bends(x):
    rate, slope = np.exp(x), np.exp(x - np.exp(x))
    return slope * (1 - rate), slope * ((1 - rate) ** 2 - rate)


SCALES = {
    "identity": Scale("identity", lambda x: x, np.ones_like, lambda x: (0 * x, 0 * x)),
    "log": _exponential("log", np.e),
    "log10": _exponential("log10", 10.0),
    "log2": _exponential("log2", 2.0),
    "log1p": Scale("log1p", np.expm1, np.exp, lambda x: (np.exp(x), np.exp(x))),
    "sqrt": Scale("sqrt", np.square, lambda x: 2 * x, lambda x: (2 + 0 * x, 0 * x)),
    "inverse": Scale("inverse", lambda x: 1 / x, lambda x: -1 / x**2, lambda x: (2 / x**3, -6 / x**4)),
    "logit": Scale("logit", _expit, lambda x: _expit(x) * _expit(-x), _logit_bends, np.exp, "odds ratios", _logit),
    "probit": Scale("probit", _normal, _normal_density, _probit_bends, forward=_normal_quantile),
    "cloglog": Scale(
        "cloglog", lambda x: -np.expm1(-np.exp(x)), lambda x: np.exp(x - np.exp(x)), _cloglog_bends, forward=_cloglog
    ),
    "arcsin of sqrt": Scale(
        "arcsin of sqrt",
        lambda x: np.sin(x) ** 2,
        lambda x: np.sin(2 * x),
        lambda x: (2 * np.cos(2 * x), -4 * np.sin(2 * x)),
    ),
    "exp": Scale("exp", np.log, lambda x: 1 / x, lambda x: (-1 / x**2, 2 / x**3)),
    "square": Scale("square", np.sqrt, lambda x: 0.5 / np.sqrt(x), lambda x: (-0.25 * x**-1.5, 0.375 * x**-2.5)),
}
"""Links of families, and transformations of responses, by name."""


def scale_of(fitted: Fitted) -> Scale:
    """The scale on which the linear predictor of a model is: its link, or how the formula transforms the response."""
    if fitted.family is not None:
        if fitted.family.response == "categories" or fitted.family.link not in SCALES:
            raise ModelError(
                f"kind='response': the family {fitted.family.name} with its link {fitted.family.link!r} has no one "
                "mean that the linear predictor gives; use kind='link', and kind='probability' for categories"
            )
        return SCALES[fitted.family.link]
    return _of_response(fitted.spec.endog_name)


def _of_response(text: str) -> Scale:
    """The transformation that a response's name states, as ``np.log(y)``, or a multiple, ``2 * np.sqrt(y)``.

    A number added to the response, ``y + 1``, is taken off.

    What else stands in the call is what the inverse gives: of ``np.log(y / 10)`` it is y / 10.
    """
    code, words = without_backticks(text)
    code, keywords = replace_keywords(code, set(re.findall(r"\w+", code)))
    try:
        node: ast.expr = ast.parse(code, mode="eval").body
    except SyntaxError:
        return SCALES["identity"]
    factor, call = _multiplied(node)
    name, argument = _called(call)
    if name == "arcsin" and _called(argument)[0] == "sqrt":
        name, argument = "arcsin of sqrt", _called(argument)[1]
    if name not in SCALES:
        return SCALES["identity"]
    scale, (shift, inner) = SCALES[name].multiplied(factor), _shifted(argument)
    if not isinstance(inner, ast.Name):
        shown = ast.unparse(inner)
        for stand_in, word in {**{alias: quoted(word) for alias, word in words.items()}, **keywords}.items():
            shown = re.sub(rf"\b{stand_in}\b", lambda _, word=word: word, shown)
        scale = replace(scale, response=shown)
    return scale.shifted(shift)


def _called(node: ast.expr) -> tuple[str, ast.expr]:
    """The function that a call of one argument names, without its module, and the argument."""
    if not (isinstance(node, ast.Call) and len(node.args) == 1 and not node.keywords):
        return "", node
    return (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")), node.args[0]


def _multiplied(node: ast.expr) -> tuple[float, ast.expr]:
    """The number that an expression is multiplied by, and what; ``I()`` is taken off."""
    if _called(node)[0] == "I":
        return _multiplied(_called(node)[1])
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Div):
        right, left = _constant(node.right), _constant(node.left)
        if right:
            return (right if isinstance(node.op, ast.Mult) else 1 / right), node.left
        if left and isinstance(node.op, ast.Mult):
            return left, node.right
    return 1.0, node


def _shifted(node: ast.expr) -> tuple[float, ast.expr]:
    """The number that is added in an expression, and to what."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add | ast.Sub):
        right, left = _constant(node.right), _constant(node.left)
        if right is not None:
            return (right if isinstance(node.op, ast.Add) else -right), node.left
        if left is not None and isinstance(node.op, ast.Add):
            return left, node.right
    return 0.0, node


def _constant(node: ast.expr) -> float | None:
    return float(node.value) if isinstance(node, ast.Constant) and isinstance(node.value, int | float) else None


# Functions of the parameters.


@dataclass(frozen=True)
class Functions:
    """k functions of the parameters: their values, and their slopes in what has the covariance.

    Attributes
    ----------
    values : array (k,)
    slopes : array (k, m)
    covariance : array (m, m)
    df : callable
        Degrees of freedom (k,) of slopes (k, m).
    lost : callable
        Which combinations, weights (j, k) of these functions, the data do not determine: bool array (j,).
    """

    values: np.ndarray
    slopes: np.ndarray
    covariance: np.ndarray
    df: Callable[[np.ndarray], np.ndarray]
    lost: Callable[[np.ndarray], np.ndarray]

    def combined(self, C: np.ndarray) -> "Functions":
        """Linear combinations C (j, k) of them."""
        return replace(
            self, values=C @ self.values, slopes=C @ self.slopes, lost=lambda weights, C=C: self.lost(weights @ C)
        )

    def told(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Values, covariance (k, k), degrees of freedom, and which have no estimate, with NaN for these."""
        k = len(self.values)
        lost = self.lost(np.eye(k)) | ~np.isfinite(self.values)
        values = np.where(lost, np.nan, self.values)
        known = np.where(lost[:, None], 0.0, self.slopes)
        V = contrast_covariance(known, self.covariance)
        V[lost], V[:, lost] = np.nan, np.nan
        df = np.full(k, np.nan)
        if not lost.all():
            df[~lost] = self.df(known[~lost])
        return values, V, df, lost


def _linear(fitted: Fitted, grid: Grid, W: np.ndarray, by: Denominator, fixed: Any = None) -> Functions:
    """Weighted means (m, k) of the fixed part over the rows of a grid."""
    fixed = grid.fixed if fixed is None else fixed
    L = W @ fixed.X
    values = L @ fitted.fit.beta + W @ fixed.offset
    known = np.nan_to_num(W)

    def lost(weights):
        empty = (np.abs(weights) @ np.isnan(W).any(axis=1)) > 0
        return fixed.without_estimate(weights @ known) | empty

    return Functions(values, np.nan_to_num(L), by.covariance, by.single, lost)


def _of_responses(fitted: Fitted, grid: Grid, W: np.ndarray, kind: str) -> Functions:
    """Weighted means of what the rows of a grid have on the scale of the response: of categories the probabilities of
    each, one category after the other.
    """
    if lost_rows := np.count_nonzero(grid.fixed.without_estimate(np.eye(len(grid.frame)))):
        raise ModelError(
            f"kind={kind!r}: {lost_rows} of the combinations have no estimate; use kind='link', or at= to leave "
            "them out"
        )
    values, slopes, covariance = expected.response_slopes(fitted, grid.frame, kind == "marginal")
    empty = np.tile(np.isnan(W).any(axis=1), len(values) if values.ndim > 1 else 1)
    at, known = values @ W.T, np.nan_to_num(W) @ slopes
    m = slopes.shape[-1]

    def lost(weights):
        return (np.abs(weights) @ empty) > 0

    return Functions(at.ravel(), known.reshape(-1, m), covariance, lambda slopes: np.full(len(slopes), np.inf), lost)


# What is asked for.


def marginal_means(
    fitted: Fitted, specs: Any, by: Any, at: Any, weights: str, kind: str, ddf: str, level: float,
    bias_adjust: bool | float = False,
) -> "EMMeans":  # fmt: skip
    """Estimated marginal means: see `MixedLMResults.emmeans`."""
    if weights not in WEIGHTS:
        raise ModelError(f"emmeans: weights={weights!r}; use one of {', '.join(map(repr, WEIGHTS))}")
    _check_kind(fitted, kind, bias_adjust)
    grid = reference_grid(fitted, at, "emmeans", kind == "marginal")
    categories = _categories(fitted) if kind in ("probability", "marginal") else None
    names, groups = _names(grid, specs, by, "emmeans", None if categories is None else categories.name)
    predictors = [name for name in (*names, *groups) if categories is None or name != categories.name]
    codes, W = cells(grid, predictors, weights)
    averages = [axis.name for axis in grid.axes if axis.name not in predictors and len(axis.values) > 1]
    notes = [*grid.of_offset(), *grid.notes]
    if averages:
        notes.insert(0, f"Averaged over {', '.join(averages)}, weights {weights!r}.")
    labels = _labels(grid, predictors, codes)
    scale, within, sigma = SCALES["identity"], None, 0.0
    if kind in ("probability", "marginal"):
        within = SCALES.get("logit" if categories is not None else fitted.own_family.link)
        functions = _of_responses(fitted, grid, W, kind)
        what = "Means of the response" if categories is None else f"Probabilities of {fitted.spec.endog_name}"
        over = "averaged over the random effects" if kind == "marginal" else "where the random effects are zero"
        notes.append(f"{what}, {over}.")
        if categories is not None:
            labels, functions = _by_category(labels, functions, categories, [*names, *groups])
    else:
        functions = _linear(fitted, grid, W, denominator(fitted, ddf))
        stated = None if fitted.family is not None and kind == "link" else scale_of(fitted)
        if kind == "response" and stated is not None:
            scale = stated
        notes += _of_scale(fitted, kind, stated, "means")
    if bias_adjust is not False:
        sigma = _deviation(fitted) if bias_adjust is True else float(bias_adjust)
    return EMMeans(
        fitted, tuple(names), tuple(groups), labels, functions, scale, level, tuple(notes), ddf, within, sigma
    )


def _check_kind(fitted: Fitted, kind: str, bias_adjust: bool | float) -> None:
    """Refuse kinds of means that a model does not have."""
    if kind not in KINDS:
        raise ModelError(f"emmeans: kind={kind!r}; use one of {', '.join(map(repr, KINDS))}")
    if kind == "marginal" and fitted.family is None:
        raise ModelError("emmeans: kind='marginal' is there for responses with a family; a linear mean is the same")
    if kind == "probability" and (fitted.family is None or fitted.family.response != "categories"):
        raise ModelError(
            "emmeans: kind='probability' is there for responses in categories; the mean of a binary response, "
            "kind='response', is its probability"
        )
    if bias_adjust is not False and kind != "response":
        raise ModelError(
            f"emmeans: bias_adjust={bias_adjust!r} with kind={kind!r}: means are adjusted where they are brought back "
            "by the inverse of a link or a transformation, kind='response'"
        )


def _deviation(fitted: Fitted) -> float:
    """The standard deviation of what a linear predictor leaves out: random effects, of a linear model residuals too."""
    variance = variances_of_predictors(fitted.spec, fitted.fit)[1]
    return float(np.sqrt(variance + (diagnostics.r2(fitted).residual if fitted.family is None else 0.0)))


def _categories(fitted: Fitted) -> pd.Series | None:
    """The categories of a response in their order, named by it; None for another response."""
    if fitted.own_family.response != "categories":
        return None
    labels = list(fitted.response.categories)
    numbers = all(isinstance(label, int | float | np.number) for label in labels)
    values = labels if numbers else pd.Categorical(labels, labels, ordered=True)
    return pd.Series(values, name=fitted.spec.endog_name)


def _by_category(
    labels: pd.DataFrame, functions: Functions, categories: pd.Series, names: Sequence[str]
) -> tuple[pd.DataFrame, Functions]:
    """Labels and probabilities (k, J) with a column for the category, in the order of the names, first fastest."""
    k, J = len(labels), len(categories)
    place = pd.DataFrame({name: pd.factorize(labels[name])[0] for name in labels}, index=range(k))
    whole = pd.concat([labels] * J, ignore_index=True)
    whole[categories.name] = categories.repeat(k).reset_index(drop=True)
    codes = pd.concat([place] * J, ignore_index=True).assign(**{str(categories.name): np.repeat(np.arange(J), k)})
    order = np.lexsort([codes[name].to_numpy() for name in names])
    return whole[list(names)].iloc[order].reset_index(drop=True), functions.combined(np.eye(k * J)[order])


def _of_scale(fitted: Fitted, kind: str, scale: Scale | None, what: str) -> list[str]:
    """What is said of the scale of means."""
    if fitted.family is not None and kind == "link":
        return [f"On the scale of the linear predictor, {fitted.family.link}."]
    if fitted.family is not None:
        zero = ", of the counts without the extra zeros" if "zero" in fitted.own_family.extras else ""
        return [f"On the scale of the response{zero}: the inverse of the {fitted.family.link} link of {what}."]
    if scale is not None and scale.name != "identity":
        if kind == "response":
            return [f"Back from {fitted.spec.endog_name} to the scale of {scale.response}."]
        return [f"On the scale of {fitted.spec.endog_name}; kind='response' brings it back."]
    if kind == "response" and not fitted.spec.endog_name.isidentifier():
        return [f"On the scale of {fitted.spec.endog_name}."]
    return []


def slopes(fitted: Fitted, variable: Any, by: Any, at: Any, weights: str, ddf: str, level: float) -> "EMMeans":
    """Slopes of the linear predictor in a number: see `MixedLMResults.slopes`."""
    if weights not in WEIGHTS:
        raise ModelError(f"slopes: weights={weights!r}; use one of {', '.join(map(repr, WEIGHTS))}")
    grid = reference_grid(fitted, at, "slopes")
    if variable not in grid.names:
        raise ModelError(f"slopes: {variable!r} is no predictor of this model; its predictors are {grid.names}")
    axis = grid.axes[grid.place(variable)]
    column: Any = fitted.spec.frame
    if not axis.numeric:
        raise ModelError(f"slopes: {variable!r} has levels, {axis.labels[:5]}, and no slope; contrasts compare them")
    if len(axis.values) > 1 and (at is None or variable not in at):
        # Kept as levels for means; a slope is taken at the mean.
        grid = reference_grid(fitted, {**(at or {}), variable: float(np.mean(column[variable]))}, "slopes")
    names, groups = _names(grid, by if by is not None else [], None, "slopes")
    if at is not None and variable in at and np.ndim(at[variable]) > 0 and variable not in names:
        names = [variable, *names]
    codes, W = cells(grid, [*names, *groups], weights)
    values = grid.frame[variable].to_numpy(dtype=float)
    step = 1e-4 * (float(np.ptp(column[variable].to_numpy(dtype=float))) or 1.0)
    up, down = (grid.with_column(variable, values + side * step) for side in (0.5, -0.5))
    change = replace(
        up, X=(up.X - down.X) / step, offset=(up.offset - down.offset) / step,
        amiss=(up.amiss - down.amiss) / step, size=(up.size + down.size) / step,
    )  # fmt: skip
    functions = _linear(fitted, grid, W, denominator(fitted, ddf), change)
    notes = [f"Slopes in {variable}" + (f" of {fitted.spec.endog_name}." if fitted.family is None else ".")]
    if fitted.family is not None:
        notes += _of_scale(fitted, "link", None, "slopes")
    labels = _labels(grid, [*names, *groups], codes)
    notes += list(grid.notes)
    return EMMeans(fitted, tuple(names), tuple(groups), labels, functions, SCALES["identity"], level, tuple(notes), ddf)


def _names(grid: Grid, specs: Any, by: Any, what: str, category: Any = None) -> tuple[list[str], list[str]]:
    """The predictors whose combinations have a mean each, and those inside whose levels they are compared.

    `category` is the response, where each of its categories has a mean: unless it is named, means are compared inside.
    """
    names, groups = _read(grid, specs, what, category), []
    if isinstance(specs, str) and specs not in grid.names and "|" in specs:
        left, _, right = specs.partition("|")
        names, groups = _read(grid, left, what, category), _read(grid, right, what, category)
    if by is not None:
        groups = list(dict.fromkeys([*groups, *_read(grid, by, what, category)]))
    if category is not None and category not in (*names, *groups):
        groups = [*groups, category]
    names = [name for name in names if name not in groups]
    for name in [*names, *groups]:
        # A level of a nested factor is one of the levels of the factors around it.
        groups += [outer for outer in grid.nests.get(name, ()) if outer not in (*names, *groups)]
    return names, groups


def _read(grid: Grid, specs: Any, what: str, category: Any = None) -> list[str]:
    """Names of predictors: one, several, or in a text such as ``~ a * b``."""
    allowed = grid.names if category is None else [*grid.names, category]
    if isinstance(specs, str) and specs not in allowed:
        text = specs.partition("|")[0]
        if "~" in text.strip()[1:]:
            raise ModelError(
                f"{what}: specs is {specs!r}; give the factors alone, and the method to contrasts(): "
                "emmeans('a').contrasts('pairwise')"
            )
        parts = text.strip().removeprefix("~").replace("*", ":").replace("+", ":").split(":")
        specs = [part.strip().strip("`") for part in parts if part.strip() not in ("", "1")]
    chosen = [specs] if isinstance(specs, str) else list(specs)
    for name in chosen:
        if name not in allowed:
            grouping = [term.group for term in grid.fitted.spec.terms]
            where = " (it is a grouping factor: see ranef())" if name in grouping else ""
            raise ModelError(
                f"{what}: {name!r} is no predictor of the fixed part of this model{where}; its predictors are {allowed}"
            )
    return list(dict.fromkeys(chosen))


def _labels(grid: Grid, names: Sequence[str], codes: np.ndarray) -> pd.DataFrame:
    """The levels of each mean, a column for each predictor."""
    columns = {}
    for k, name in enumerate(names):
        values = grid.axes[grid.place(name)].values
        columns[name] = values.take(codes[:, k]).reset_index(drop=True)
    return pd.DataFrame(columns, index=range(len(codes)))


def design_columns(fitted: Fitted, data: Any) -> pd.DataFrame:
    """The fixed-effects columns of new rows: see `MixedLMResults.columns`."""
    from jmixed.formulas.statement import new_rows

    rows = new_rows(fitted.spec, data)
    return pd.DataFrame(rows.X, rows.index, list(fitted.spec.exog_names))


# Tables.


@checked
@dataclass(frozen=True, eq=False, repr=False)
class EMMeans:
    """Estimated marginal means, or slopes, with what can be made of them; prints as its table.

    Attributes
    ----------
    fitted : Fitted
        The fit.
    specs, by : tuple of str
        The predictors whose combinations have a mean each, and those inside whose levels means are compared.
    labels : DataFrame (k x predictors)
        The levels of each mean.
    functions : Functions
        The means as functions of the parameters.
    scale : Scale
        The scale on which they are told.
    level : float
        Coverage of the intervals.
    notes : tuple of str
        What a reader must know.
    ddf : str
        The kind of degrees of freedom.
    within : Scale or None
        The scale on which limits are made, where it is another.
    sigma : float
        The standard deviation around the means for which they are adjusted on the way back; 0 for none.
    """

    fitted: Fitted
    specs: tuple[str, ...]
    by: tuple[str, ...]
    labels: pd.DataFrame
    functions: Functions
    scale: Scale
    level: float
    notes: tuple[str, ...]
    ddf: str
    within: Scale | None = None
    sigma: float = 0.0
    _cache: dict = field(default_factory=dict)

    @property
    def frame(self) -> pd.DataFrame:
        """The table: columns of the predictors, estimate, se, df (of a linear model), lower and upper."""
        if "frame" not in self._cache:
            self._cache["frame"] = self._table()
        return self._cache["frame"].copy()

    def _table(self) -> pd.DataFrame:
        values, V, df, lost = self.functions.told()
        error = tails.standard_errors(np.diag(V))
        half = multiplicity.half_widths(self.level, df, "none", 1, V) * error
        scale = self.scale.adjusted(self.sigma)
        back, slope = scale.inverse, scale.slope
        with np.errstate(invalid="ignore", divide="ignore"):
            center, reach, limit = values, half, back
            if self.within is not None and self.within.forward is not None:
                # Limits that stay in the range of the mean.
                center, limit = self.within.forward(values), self.within.inverse
                reach = half / np.abs(self.within.slope(center))
            ends = np.sort([limit(center - reach), limit(center + reach)], axis=0)
            columns = {"estimate": back(values), "se": np.abs(slope(values)) * error, "df": df}
        columns |= {"lower": ends[0], "upper": ends[1]}
        if self.fitted.family is not None:
            del columns["df"]
        _require_own_names(self.labels.columns, columns)
        notes = [*self.notes, *_not_estimable(lost, self._names()), *_of_tests(self.fitted, self.ddf)]
        if self.sigma:
            notes.append(f"Means are adjusted to second order for a spread around them of sigma = {self.sigma:.4g}.")
        notes.append(f"Intervals of {100 * self.level:g}%.")
        return noted(pd.concat([self.labels, pd.DataFrame(columns)], axis=1), "\n".join(notes))

    def _names(self, within: bool = False) -> list[str]:
        """What each mean is called, without the levels of `by` where they are told elsewhere."""
        columns = [*self.specs] if within else [*self.specs, *self.by]
        return [" ".join(_level_name(self.labels, k, row) for k in columns) or "all" for row in self.labels.index]

    def _groups(self) -> list[np.ndarray]:
        """Rows of the means that are compared with one another."""
        if not self.by:
            return [np.arange(len(self.labels))]
        keys = self.labels.groupby(list(self.by), sort=False, observed=True).ngroup().to_numpy()
        return [np.flatnonzero(keys == k) for k in range(int(keys.max()) + 1)]

    def contrasts(
        self,
        method: str | Sequence[str] | Mapping[str, Any] = "pairwise",
        adjust: Adjust | None = None,
        reference: Any = None,
    ) -> pd.DataFrame:
        """Compare the means, inside each level of ``by``.

        A table with the columns contrast, those of ``by``, estimate, se, df, lower, upper, t and p (of a response with
        a family no df, and z); p-values and intervals are adjusted for the number of tests in each level of ``by``.

        Parameters
        ----------
        method
            "pairwise" (a - b), "revpairwise" (b - a), "reference" (each with one of them), "consecutive" (each with
            the one before), "poly" (orthogonal polynomials, for levels at equal distances), "effects" (each with the
            mean of all), "identity" (the means against zero). A mapping of names to weights, one for each mean, or
            a mapping of levels to weights. A list of methods, one for each of the predictors: interactions.
        adjust
            "tukey" (all pairwise differences), "mvt" (the joint t distribution, exact for any family), "holm",
            "bonferroni", "sidak", "fdr", "none". By default Tukey's for pairwise differences, "mvt" for "reference" and
            "consecutive", "fdr" for "effects", and none for others. Limits of stepwise methods are Bonferroni's.
        reference
            The level that "reference" compares with, by default the first; of several predictors the levels in words,
            with spaces between them.

        Raises
        ------
        DataError
            For weights of another number than there are means.
        ModelError
            For another method or adjustment, an unknown level, and a single mean.
        """
        named = method if isinstance(method, str) else ""
        if adjust is not None:
            _known_adjustment(adjust)
        notes: list[str] = []
        how: str = adjust or USUAL.get(named, "none")
        if how == "tukey" and named not in ("pairwise", "revpairwise"):
            notes.append("Tukey's method is for all pairwise differences; these are adjusted by Sidak's.")
            how = "sidak"
        ratio = self.scale.exponent is not None
        pieces, lost_names, tests = [], [], 0
        for rows in self._groups():
            levels = [[_level_name(self.labels, name, row) for name in self.specs] for row in rows]
            names, C = weights_of(method, levels, self.specs, reference, ratio)
            table, lost = self._compare(C, rows, how)
            table.insert(0, "contrast", names)
            _require_own_names(self.by, table.columns)
            for k, name in enumerate(self.by):
                table.insert(1 + k, name, self.labels[name].iloc[[rows[0]] * len(names)].to_numpy())
            lost_names += [name for name, gone in zip(names, lost, strict=True) if gone]
            tests = max(tests, len(names))
            pieces.append(table)
        if not tests:
            raise ModelError(
                "contrasts: there is one mean and nothing to compare it with; give the values of a number, as in "
                "at={'age': [40, 50]}, or take its slope: result.slopes('age')"
            )
        table = pd.concat(pieces, ignore_index=True)
        for name in self.by:
            table[name] = table[name].astype(self.labels[name].dtype)
        if lost_names:
            notes.append(f"Not estimable, and NaN: {few(lost_names)}.")
        if how != "none" and tests > 1:
            sizes = sorted({len(rows) for rows in self._groups()})
            means = f"{sizes[0]} means" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]} means"
            family = means if how == "tukey" else f"{tests} tests"
            notes.append(f"p-values and intervals adjusted by {_ADJUSTED[how]}, for {family}.")
        if self.scale.name != "identity" and ratio:
            notes.append(f"Estimates are {self.scale.ratio}; tests are on the {self.scale.name} scale.")
        elif self.scale.name != "identity":
            notes.append(f"Differences are on the {self.scale.name} scale.")
        notes += [*self.notes, *_of_tests(self.fitted, self.ddf)]
        return noted(table, "\n".join(notes))

    def _compare(self, C: np.ndarray, rows: np.ndarray, adjust: str) -> tuple[pd.DataFrame, np.ndarray]:
        """Tests of the contrasts C (j, k) of some of the means."""
        whole = np.zeros((len(C), len(self.labels)))
        whole[:, rows] = C
        values, V, df, lost = self.functions.combined(whole).told()
        error = tails.standard_errors(np.diag(V))
        t = tails.statistics(values, error)
        with np.errstate(invalid="ignore", divide="ignore"):
            correlation = V / np.outer(error, error)
        p = multiplicity.p_values(t, df, adjust, len(rows), correlation)
        half = multiplicity.half_widths(self.level, df, adjust, len(rows), correlation) * error
        lower, upper = values - half, values + half
        if self.scale.exponent is not None:
            back = self.scale.exponent
            slope = self.scale.slope(values) if self.scale.ratio == "ratios" else back(values)
            values, error, lower, upper = back(values), slope * error, back(lower), back(upper)
        columns = {"estimate": values, "se": error, "df": df, "lower": lower, "upper": upper, "t": t, "p": p}
        table = pd.DataFrame(columns)
        if self.fitted.family is not None:
            table = table.drop(columns="df").rename(columns={"t": "z"})
        return table, lost

    def letters(self, alpha: float = 0.05, adjust: Adjust = "tukey") -> pd.DataFrame:
        """The table with a column ``letters``: means that share one do not differ significantly.

        Inside each level of ``by`` rows are in the order of their estimates. That two means share a letter does not
        show that they are equal.

        Parameters
        ----------
        alpha
            Means differ if the adjusted p-value of their difference is below.
        adjust
            As of `contrasts`.

        Raises
        ------
        ModelError
            For another adjustment, and an `alpha` outside (0, 1).
        """
        tails.outer(alpha)
        _known_adjustment(adjust)
        frame, pieces = self.frame, []
        note = frame.attrs.get("note", "")
        for rows in self._groups():
            k = len(rows)
            pairs = list(combinations(range(k), 2))
            C = np.array([np.eye(k)[i] - np.eye(k)[j] for i, j in pairs]).reshape(len(pairs), k)
            p = self._compare(C, rows, adjust)[0]["p"].to_numpy() if pairs else np.zeros(0)
            order = np.argsort(frame["estimate"].to_numpy()[rows], kind="stable")
            place = np.argsort(order)
            differ = np.zeros((k, k), bool)
            for (i, j), value in zip(pairs, p, strict=True):
                differ[place[i], place[j]] = differ[place[j], place[i]] = value < alpha
            marks = [""] * k
            for number, members in enumerate(multiplicity.letter_groups(differ)):
                for member in members:
                    marks[member] += chr(ord("a") + number) if number < 26 else f"[{number}]"
            _require_own_names(self.labels.columns, ["letters"])
            piece = frame.iloc[rows[order]].assign(letters=marks)
            piece.loc[piece["estimate"].isna(), "letters"] = ""
            pieces.append(piece)
        says = f"Means that share a letter do not differ at {alpha:g} (adjusted by {_ADJUSTED[adjust]})."
        return noted(pd.concat(pieces), "\n".join([says, note]))

    def plot(self, ax: Any = None) -> Any:
        """The means with their intervals, a colour for each level of ``by``.

        Parameters
        ----------
        ax : axes of matplotlib, optional

        Returns
        -------
        Axes
        """
        frame, names = self.frame, self._names(within=True)
        if ax is None:
            ax = pyplot().subplots(figsize=(6, max(2.5, 0.35 * len(frame) + 1)), layout="constrained")[1]
        labels = list(dict.fromkeys(names))
        groups = self._groups()
        for k, rows in enumerate(groups):
            part = frame.iloc[rows]
            shift = 0.0 if len(groups) == 1 else 0.5 * (k / (len(groups) - 1) - 0.5)
            place = np.array([labels.index(names[row]) for row in rows]) + shift
            colour = "#1f4e79" if len(groups) == 1 else f"C{k}"
            ax.hlines(place, part["lower"], part["upper"], color=colour, linewidth=2, alpha=0.5)
            named = ", ".join(
                f"{name} = {_level_name(self.labels[name].to_frame(), name, rows[0])}" for name in self.by
            )
            ax.plot(part["estimate"], place, "o", color=colour, markersize=5, label=named or None)
        ax.set_yticks(range(len(labels)), labels)
        ax.set_ylim(len(labels) - 0.4, -0.6)
        ax.set_ylabel(" ".join(self.specs))
        ax.set_xlabel(f"estimate, {100 * self.level:g}% intervals")
        if self.by:
            legend(ax)
        return ax

    def __repr__(self) -> str:
        frame = self.frame
        return as_text(frame, frame.attrs.get("note", ""))

    def _repr_html_(self) -> str:
        frame = self.frame
        return as_html(frame, frame.attrs.get("note", ""))


_ADJUSTED = {
    "tukey": "Tukey's method",
    "mvt": "the joint t distribution",
    "holm": "Holm's method (limits: Bonferroni)",
    "bonferroni": "Bonferroni's method",
    "sidak": "Sidak's method",
    "fdr": "Benjamini and Hochberg's method (limits: Bonferroni)",
    "none": "nothing",
}


def _known_adjustment(adjust: str) -> None:
    if adjust not in ADJUSTMENTS:
        raise ModelError(f"contrasts: adjust={adjust!r}; use one of {', '.join(map(repr, ADJUSTMENTS))}")


def _level_name(labels: pd.DataFrame, name: str, row: int) -> str:
    value = labels[name].iloc[row]
    if isinstance(value, float):
        return f"{name}{value:g}" if len(labels.columns) > 1 else f"{value:g}"
    return str(value)


def _require_own_names(labels: Iterable[str], columns: Iterable[str]) -> None:
    """Refuse predictors that are called like a column of the table, one of which would stand for the other."""
    columns = list(columns)
    if taken := [name for name in labels if name in columns]:
        raise DataError(
            f"the predictor {taken[0]!r} has the name of a column of this table ({', '.join(columns)}); give it "
            f"another name in the data, as in data.rename(columns={{{taken[0]!r}: '{taken[0]}_'}})"
        )


def _not_estimable(lost: np.ndarray, names: Sequence[str]) -> list[str]:
    if not lost.any():
        return []
    return [
        f"Not estimable, and NaN: {few([name for name, gone in zip(names, lost, strict=True) if gone])}. The data do "
        "not determine it, as without rows of such a combination."
    ]


def _of_tests(fitted: Fitted, ddf: str) -> list[str]:
    """How tests and intervals are made, in the words of `test`."""
    return [] if fitted.family is not None else [DDF[ddf].replace("t tests", "Tests and intervals").rstrip(".") + "."]


# Contrasts.


def weights_of(
    method: Any, levels: Sequence[Sequence[str]], specs: Sequence[str], reference: Any, ratio: bool
) -> tuple[list[str], np.ndarray]:
    """Names and weights (j, k) of the contrasts of means with these levels (k, predictors)."""
    names = [" ".join(of_mean) or "all" for of_mean in levels]
    if isinstance(method, Mapping):
        return list(map(str, method)), _custom(method, names)
    if isinstance(method, list | tuple):
        return _interactions(method, levels, specs, reference, ratio)
    return _by_name(method, names, reference, ratio)


def _by_name(method: Any, names: Sequence[str], reference: Any, ratio: bool) -> tuple[list[str], np.ndarray]:
    k, minus = len(names), " / " if ratio else " - "
    unit = np.eye(k)
    pairs: list[tuple[int, int]]
    if method == "pairwise":
        pairs = list(combinations(range(k), 2))
    elif method == "revpairwise":
        pairs = [(j, i) for j in range(k) for i in range(j)]
    elif method == "consecutive":
        pairs = [(i + 1, i) for i in range(k - 1)]
    elif method == "reference":
        if reference is not None and str(reference) not in names:
            raise ModelError(f"contrasts: reference={reference!r} is none of the means, which are {list(names)}")
        base = 0 if reference is None else names.index(str(reference))
        pairs = [(i, base) for i in range(k) if i != base]
    elif method == "poly":
        weights = polynomials(k)
        usual = ["linear", "quadratic", "cubic", "quartic"]
        return [usual[d] if d < 4 else f"degree {d + 1}" for d in range(len(weights))], weights
    elif method == "effects":
        return [f"{name} effect" for name in names], unit - 1 / k
    elif method == "identity":
        return list(names), unit
    else:
        raise ModelError(
            f"contrasts: method={method!r}; use one of {', '.join(map(repr, METHODS))}, a mapping of names to "
            "weights, or a list with a method for each predictor"
        )
    weights = np.array([unit[i] - unit[j] for i, j in pairs]).reshape(len(pairs), k)
    return [f"{names[i]}{minus}{names[j]}" for i, j in pairs], weights


def polynomials(k: int) -> np.ndarray:
    """Orthogonal polynomials over k levels at equal distances, (degrees, k), up to the sixth degree, in whole numbers.

    Examples
    --------
    >>> from jmixed.reports.marginal import polynomials
    >>> polynomials(4).tolist()
    [[-3.0, -1.0, 1.0, 3.0], [1.0, -1.0, -1.0, 1.0], [-1.0, 3.0, -3.0, 1.0]]
    """
    if k < 2:
        return np.zeros((0, k))
    powers = np.vander(np.arange(k) - (k - 1) / 2, min(k, 7), increasing=True)
    columns = np.linalg.qr(powers)[0].T[1:]
    out = []
    for column in columns:
        column = column * np.sign(column[-1])
        sizes = np.abs(column)
        unit = column / sizes[sizes > 1e-9 * sizes.max()].min()
        whole = next((m for m in range(1, 200) if np.allclose(m * unit, np.round(m * unit), atol=1e-6)), 1)
        scaled = whole * unit
        out.append(np.round(scaled) if np.allclose(scaled, np.round(scaled), atol=1e-6) else scaled)
    return np.array(out) + 0.0


def _custom(method: Mapping, names: Sequence[str]) -> np.ndarray:
    """Weights that were given, by position or by level."""
    rows = []
    for name, weights in method.items():
        if isinstance(weights, Mapping):
            keys = {str(key): value for key, value in weights.items()}
            if absent := [key for key in keys if key not in names]:
                raise ModelError(f"contrasts: {name!r} names {absent[0]!r}, which is none of the means {list(names)}")
            weights = [keys.get(level, 0.0) for level in names]
        try:
            row = np.asarray(weights, float)
        except (TypeError, ValueError):
            raise DataError(f"contrasts: the weights of {name!r} are no numbers: {weights!r}") from None
        if not np.isfinite(row).all():
            raise DataError(f"contrasts: the weights of {name!r} are missing or infinite: {row.tolist()}")
        if row.shape != (len(names),):
            raise DataError(
                f"contrasts: {name!r} has {row.size} weights, and there are {len(names)} means: {few(list(names))}"
            )
        rows.append(row)
    if not rows:
        raise DataError("contrasts: an empty mapping; give names with weights, {'a - b': [1, -1]}")
    return np.array(rows)


def _interactions(
    methods: Sequence[Any], levels: Sequence[Sequence[str]], specs: Sequence[str], reference: Any, ratio: bool
) -> tuple[list[str], np.ndarray]:
    """Products of contrasts of each predictor."""
    if len(methods) != len(specs):
        raise ModelError(
            f"contrasts: {len(methods)} methods for {len(specs)} predictors ({', '.join(specs)}); interactions need "
            "one for each"
        )
    table = np.array([list(of_mean) for of_mean in levels], object).reshape(len(levels), len(specs))
    out_names, out = [""], np.ones((1, len(levels)))
    for k, method in enumerate(methods):
        distinct = list(dict.fromkeys(table[:, k]))
        names, C = _by_name(method, distinct, reference, ratio)
        spread = C[:, [distinct.index(value) for value in table[:, k]]]
        # The first predictor's contrasts vary fastest.
        out_names = [f"{before} : {name}" if before else name for name in names for before in out_names]
        out = np.array([before * weights for weights in spread for before in out])
    return out_names, out
