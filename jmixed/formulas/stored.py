"""Formulas and what they have learnt as plain values, for files, and back: formulaic's objects are made anew."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from formulaic import ModelSpec

from jmixed.formulas.evaluate import FormulaFactor, new_spec, structure_apart, structure_together, vocabulary
from jmixed.formulas.model_data import ModelData
from jmixed.formulas.patsy_words import BESIDE_BARS, PATSY
from jmixed.formulas.recipe import Elsewhere, Recipe, nature
from jmixed.formulas.tables import Otherwise, Partly

SETTINGS = ("materializer", "materializer_params", "ensure_full_rank", "output")
"""What a formula asks of formulaic, apart from its terms."""


@dataclass(frozen=True)
class StoredName:
    """A function or module that comes with this package, or with one that it needs: where it is found, and its name."""

    place: str
    name: str


PLACES: dict[str, dict[str, Any]] = {
    "patsy": PATSY,
    "beside bars": BESIDE_BARS,
    "numpy": {name: function for name, function in vars(np).items() if isinstance(function, np.ufunc)},
    "formulaic": dict(vocabulary()),
    "module": {"numpy": np, "pandas": pd},
}
"""What formulas may use that is known by name, wherever a file is read."""

DATA = ("builtins", "datetime", "decimal", "numpy", "pandas")
"""Packages whose objects are data."""


def word_together(parts: dict[str, str]) -> Any:
    return PLACES[parts["place"]][parts["name"]]


def recipe_apart(recipe: Recipe) -> dict[str, Any]:
    """The parts of a recipe: of the caller's functions those that are known by name, of the others the name alone."""
    parts = {part.name: getattr(recipe, part.name) for part in fields(recipe)}
    return parts | {"env": {name: _of_caller(name, value) for name, value in recipe.env.items()}}


def _of_caller(name: str, value: Any) -> Any:
    """What is stored of an object of the caller's: its word, the object itself if it is data, or what it is."""
    if isinstance(value, Elsewhere):
        return value
    for place, known in PLACES.items():
        for word, function in known.items():
            if function is value:
                return StoredName(place, word)
    absent = Elsewhere(name, nature(value))
    is_data = not callable(value) and type(value).__module__.partition(".")[0] in DATA
    return Otherwise(value, absent) if is_data else absent


def data_apart(data: ModelData) -> dict[str, Any]:
    """The parts of a model's data; columns that it does not use may be of types that cannot be stored."""
    parts = {part.name: getattr(data, part.name) for part in fields(data)}
    if data.frame is None or data.recipe is None:
        return parts
    sources = [name for term in data.terms if term.rebuild for name in term.rebuild.factor.sources]
    if data.residual is not None and data.residual.factor is not None:
        sources += [data.residual.position, *data.residual.factor.sources]
    return parts | {"frame": Partly(data.frame, {*data.recipe.columns(data.recipe.needs), *sources})}


# formulaic's reading of a formula.


def formula_apart(spec: ModelSpec) -> dict[str, Any]:
    """A formula: its factors with how they are looked up, terms as lists of factors, and what it has learnt."""
    structure = structure_apart(spec)
    terms = [*spec.formula, *(row.term for row in spec.structure or ())]
    factors = {factor.expr: [factor.eval_method.value, factor.kind.value] for term in terms for factor in term.factors}
    return {
        "factors": factors,
        "terms": [[factor.expr for factor in term.factors] for term in spec.formula],
        "structure": structure,
        "settings": {name: getattr(spec, name) for name in SETTINGS},
        "missing": spec.na_action.value,
        "order": spec.cluster_by.value,
        "learnt": spec.transform_state,
        "coded": {name: [kind.value, _without_contrasts(state)] for name, (kind, state) in spec.encoder_state.items()},
    }


def _without_contrasts(state: Any) -> Any:
    """What a category has learnt, without the object that coded it: formulaic makes that again of the formula."""
    if not isinstance(state, dict):
        return state
    plain = {key: part for key, part in state.items() if not type(part).__module__.startswith("formulaic.")}
    return {key: _without_contrasts(part) for key, part in plain.items()}


def formula_together(parts: dict[str, Any]) -> ModelSpec:
    """A formula from its parts."""
    ways = parts["factors"].items()
    factors = {name: FormulaFactor(name, eval_method=method, kind=kind) for name, (method, kind) in ways}
    return new_spec(
        [[factors[name] for name in names] for names in parts["terms"]],
        structure=structure_together(parts["structure"], factors),
        na_action=parts["missing"],
        cluster_by=parts["order"],
        transform_state=parts["learnt"],
        encoder_state={name: (FormulaFactor.Kind(kind), state) for name, (kind, state) in parts["coded"].items()},
        **parts["settings"],
    )
