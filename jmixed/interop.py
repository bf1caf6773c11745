"""Results for other packages: marginaleffects and ArviZ, which are imported only when they are asked for."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.formulas.formula import quoted
from jmixed.formulas.statement import new_rows
from jmixed.inference.posterior_draws import posterior_draws
from jmixed.inference.responses import depends_on_extras, draw, evaluate
from jmixed.inference.simulation import generator
from jmixed.runtime.arguments import checked

if TYPE_CHECKING:
    from jmixed.results import MixedGLMResults, MixedLMResults


@checked
def to_marginaleffects(result: MixedLMResults | MixedGLMResults) -> Any:
    """A model for the functions of marginaleffects: predictions of the fixed part, their averages and contrasts.

    There ``vcov=True`` means the covariance by generalised least squares, ``vcov="CR0"``, ``"CR1"`` and ``"CR2"`` that
    of `robust_cov`. Text columns become categories, and predictions include the offset. Intervals and p-values are
    normal: ``result.test`` has degrees of freedom. Predictions are linear in the coefficients: with ``eps_vcov=1.0``
    the finite differences behind the standard errors of slopes are exact.

    Of a response with a family predictions are means, of successes probabilities, at random effects of zero. Where they
    depend on more than the linear predictor, as with an inflation of zeros, and for categories, there is no model.

    Two faults of marginaleffects 0.6 are mended where they are found, for all its models in the process: comparisons
    of categories fail with Polars 2, and groups after a ``|`` in ``hypothesis`` change their order from call to call,
    which takes differences between strangers for derivatives (standard errors of 1e8, or an internal error).

    Returns
    -------
    ModelAbstract
        Of marginaleffects.

    Raises
    ------
    DataError
        When the model was made of arrays, or its rows were removed.
    ModelError
        When means depend on further predictors, or there are none.
    ModuleNotFoundError
        When marginaleffects is not installed; it says how to.

    Examples
    --------
    Estimated marginal means of the three machines:

    >>> import jmixed as jm
    >>> result = jm.mixedlm("score ~ Machine + (Machine | Worker)", jm.datasets.load("machines")).fit()
    >>> from marginaleffects import predictions
    >>> means = predictions(jm.interop.to_marginaleffects(result), by="Machine")
    >>> means["estimate"].round(3).to_list(), means["std_error"].round(3).to_list()
    ([52.356, 60.322, 66.272], [1.681, 3.529, 1.806])
    """
    classes = _module("marginaleffects.classes")
    _mend_marginaleffects()
    _require_means_of_coefficients(result)
    return _model_class(classes.ModelAbstract, result)(result, _vault(classes.ModelVault, result))


def _require_means_of_coefficients(result) -> None:
    """Refuse a result whose means are not those of a formula's coefficients alone."""
    spec, family = result.model.spec, result.fitted.family
    if spec.recipe is None or spec.frame is None:
        raise DataError(
            "to_marginaleffects: this result has no data frame with the columns of a formula; "
            "state the model by a formula and keep its rows"
        )
    if family is not None and (family.response == "categories" or depends_on_extras(family, "mean")):
        raise ModelError(
            f"to_marginaleffects: predictions of the family {family.name} depend on more than the coefficients that it "
            "varies, so that its standard errors would be too small; use result.predict(interval='confidence')"
        )


def _model_class(base: Any, result) -> Any:
    """The class of models by which marginaleffects asks the result, under the names of its base."""
    spec, family = result.model.spec, result.fitted.family

    class JmixedModel(base):
        # Rows less coefficients are no degrees of freedom of a mixed model: marginaleffects is to use the normal.
        df_resid = float("inf")

        def validation(self):
            # The base class asks floats whether they are in [0, 1], integers, which Polars 2 refuses.
            self.validate_coef()
            self.validate_response_name()
            self.validate_formula()
            self.validate_modeldata()
            self.vault.variables_type = {name: _type(spec.frame[name]) for name in self.vault.variable_names}

        def get_exog(self, newdata):
            """Columns of X and, last, the offset."""
            rows = new_rows(spec, newdata)
            return np.column_stack([rows.X, rows.offset])

        def get_predict(self, params, newdata):
            polars = _module("polars")
            values = newdata[:, :-1] @ params + newdata[:, -1]
            if family is not None:
                values = evaluate(family, "mean", values, np.zeros((len(family.extras), len(values))))
            rows = np.arange(len(values), dtype=np.int32)
            return polars.DataFrame({"rowid": rows, "estimate": values})

        def get_vcov(self, vcov=True):
            if vcov is None or vcov is False:
                return None
            return np.array(result.vcov() if vcov is True else result.robust_cov(vcov))

    return JmixedModel


def _vault(container: Any, result) -> Any:
    """What marginaleffects keeps of a model: coefficients, rows, and the names of its variables, the response first."""
    spec = result.model.spec
    predictors = spec.recipe.columns(["rhs", *spec.recipe.offsets])
    response = next(iter(spec.recipe.columns(["lhs"])), spec.endog_name)
    frame = _categories(spec.frame, predictors)
    # Whatever holds a missing value is no part of the model, and rows must not be dropped for it.
    frame = frame.loc[:, frame.notna().all()].reset_index(drop=True)
    return container(
        coef=np.array(result.fe_params),
        coefnames=np.array(spec.exog_names),
        # Only the names of the variables are read from it: the columns of X come from the model's own formula.
        formula=" ~ ".join([quoted(response), " + ".join(map(quoted, predictors)) or "1"]),
        modeldata=_module("marginaleffects.utils").ingest(frame).drop("index"),
        package="jmixed",
        variable_names=[response, *(name for name in predictors if name != response)],
        pandas_categorical_orders={
            name: list(column.cat.categories) for name, column in frame.items() if column.dtype == "category"
        },
    )


def _mend_marginaleffects() -> None:
    """Replace two functions of marginaleffects by ones that call them with what they can take, once in a process."""
    formula = _module("marginaleffects.test.formula")
    _replace(formula, "eval_hypothesis_formula", _in_order)
    for name in ("marginaleffects.utils", "marginaleffects.comparisons"):
        _replace(_module(name), "upcast", _with_categories)


def _replace(module, name: str, mended) -> None:
    theirs = getattr(module, name, None)
    if theirs is not None and not hasattr(theirs, "_of_marginaleffects"):
        ours = functools.wraps(theirs)(functools.partial(mended, theirs))
        vars(ours)["_of_marginaleffects"] = theirs
        setattr(module, name, ours)


def _in_order(theirs, x, hypothesis, lab):
    """A hypothesis with groups, its rows in the order in which the groups occur in `x`."""
    out = theirs(x, hypothesis, lab)
    groups = [name for name in out.columns if name not in ("term", "estimate")]
    if not groups:
        return out
    first: dict[tuple, int] = {}
    for key in x.select(groups).iter_rows():
        first.setdefault(key, len(first))
    places = [first[key] for key in out.select(groups).iter_rows()]
    return out[np.argsort(places, kind="stable").tolist()]


def _with_categories(theirs, df, reference):
    """Columns of `df` cast to the types of `reference`: to categories first, which Polars 2 no longer lists."""
    polars = _module("polars")
    kinds = {name: kind for name, kind in reference.schema.items() if kind in (polars.Enum, polars.Categorical)}
    same = [name for name, kind in kinds.items() if name in df.columns and df.schema[name] != kind]
    return theirs(df.with_columns(polars.col(name).cast(kinds[name]) for name in same), reference)


def _type(column):
    """What marginaleffects calls the type of a column."""
    if pd.api.types.is_bool_dtype(column):
        return "boolean"
    if not pd.api.types.is_numeric_dtype(column):
        return "character"
    if column.isin([0, 1]).all():
        return "binary"
    return "integer" if pd.api.types.is_integer_dtype(column) else "numeric"


def _categories(frame, names):
    """The frame with its predictors that hold text as categories, in the order in which the model sorted them."""
    categories = {}
    for name in names:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            categories[name] = column.cat.remove_unused_categories()
        elif not pd.api.types.is_numeric_dtype(column):
            categories[name] = pd.Categorical(column)
    return frame.assign(**categories)


@checked
def to_arviz(result: MixedLMResults | MixedGLMResults, draws: int = 1000, key: Any = 0) -> Any:
    """Draws of the fixed and random effects for ArviZ's plots and comparisons.

    The draws have the joint covariance of fixed and random effects at the estimated variances (Henderson 1975): an
    empirical-Bayes posterior with a flat prior for the coefficients. It is narrower than a full posterior, because the
    variances are taken as known. Of a response with a family it is normal around the modes, of the curvature there, and
    further predictors are taken as known. Raises `ModelError` for a model of correlated residuals.

    Parameters
    ----------
    draws
        How many.
    key : JAX random key, or int
        The same key gives the same draws.

    Returns
    -------
    InferenceData (ArviZ 0) or DataTree (ArviZ 1)
        posterior: ``beta`` and a variable for each random-effects term, by its label, one chain; posterior_predictive
        and log_likelihood: each row given the draws; observed_data; constant_data: ``sigma`` of a linear model, else
        the numbers of trials.

    Examples
    --------
    >>> import jmixed as jm
    >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    >>> jm.interop.to_arviz(result, draws=50).posterior["Days | Subject"].shape
    (1, 50, 18, 2)
    """
    arviz = _module("arviz")
    result.fitted.need_data("to_arviz")
    spec, rng = result.fitted.spec, generator(key)
    if spec.residual is not None and spec.residual.factor is not None:
        raise ModelError(
            "to_arviz: rows of correlated residuals have no densities of their own, given the draws; jm.log_likelihood "
            "gives the density of all rows",
            page="structures.md",
        )
    beta, modes = posterior_draws(result.fitted.white, result.fitted.joint, result.fitted.fit, int(draws), rng)
    mean = beta @ spec.X.T + spec.offset
    for term, b in zip(spec.terms, modes, strict=True):
        mean += np.einsum("nq,dnq->dn", term.Z, b[:, term.codes])
    y, (drawn, density) = spec.endog_name, _given_draws(result, mean, rng)
    labels = [term.label for term in spec.terms]
    groups = {
        "posterior": {"beta": beta[None]} | {label: b[None] for label, b in zip(labels, modes, strict=True)},
        "posterior_predictive": {y: drawn[None]},
        "log_likelihood": {y: density[None]},
        "observed_data": {y: spec.y},
    }
    coords = {"coefficient": list(spec.exog_names), "row": np.arange(len(spec.y))}
    dims = {"beta": ["coefficient"], y: ["row"]}
    if spec.response is None:
        groups["constant_data"], dims["sigma"] = {"sigma": np.array([result.sigma])}, ["residual"]
    else:
        groups["constant_data"], dims["trials"] = {"trials": spec.response.trials}, ["row"]
    for term in spec.terms:
        axes = [f"level of {term.label}", f"column of {term.label}"]
        dims[term.label], coords = axes, coords | dict(zip(axes, (list(term.levels), list(term.columns)), strict=True))
    if "data" in inspect.signature(arviz.from_dict).parameters:
        return arviz.from_dict(groups, coords=coords, dims=dims)
    # Before its first version ArviZ took the groups by keyword.
    return arviz.from_dict(**groups, coords=coords, dims=dims)


def _given_draws(result, predictor, rng) -> tuple[np.ndarray, np.ndarray]:
    """New responses and log densities of the observed ones, (draws, n), given linear predictors likewise."""
    fitted, spec = result.fitted, result.fitted.spec
    if fitted.family is None:
        sd = fitted.fit.sigma / np.sqrt(fitted.white.weights)
        density = -0.5 * ((spec.y - predictor) / sd) ** 2 - np.log(sd) - 0.5 * np.log(2 * np.pi)
        return predictor + sd * rng.normal(size=predictor.shape), density
    family, extras, trials = fitted.family, fitted.at_modes.extras, fitted.response.trials
    bits = rng.integers(0, 2**32, (len(predictor), 2), dtype=np.uint32)
    density = np.stack([evaluate(family, "log_density", eta, extras, trials, spec.y) for eta in predictor])
    factors = spec.weights if family.weights_are == "factors" else 1.0
    return draw(family, bits, predictor, extras, trials), factors * density


def _module(name: str) -> Any:
    """An optional package, or an error that tells how to install it."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = name.split(".")[0]
        raise ModuleNotFoundError(
            f"this needs {package}, an optional package: pip install 'jmixed[interop]'"
        ) from error
