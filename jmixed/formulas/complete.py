"""The fixed part without any coding of its categories: what tests of whole terms are stated in."""

from dataclasses import dataclass
from itertools import product

import numpy as np
from formulaic import ModelSpec

from jmixed.formulas.checks import independent_columns
from jmixed.formulas.evaluate import known_factors, new_spec
from jmixed.formulas.frame import working_frame
from jmixed.formulas.model_data import ModelData
from jmixed.formulas.recipe import Recipe, evaluate, restore


@dataclass(frozen=True)
class CompleteTerms:
    """Every term with one column for each combination of its categories (times its numbers): k columns in all."""

    names: tuple[str, ...]  # the terms in the order of the formula
    values: np.ndarray  # (n, k); inside a term those with more factors at their first category come later
    term: np.ndarray  # (k,), the term of each column
    basis: np.ndarray  # columns that span all: those of treatment contrasts with the first category as reference
    # for each term those that contain it: the same numbers, and more categories beside its own
    contained_in: tuple[tuple[int, ...], ...]


def complete_terms(model: ModelData) -> CompleteTerms:
    """The terms of the fixed part of a model that has its rows, without coding.

    A model made of arrays has a term for each column. So has a fixed part that spans less than its terms do, as when
    columns were left out or categories have a coding of fewer columns: its terms are then tested as they are coded.
    """
    if model.recipe is None:
        p = model.X.shape[1]
        return CompleteTerms(model.exog_names, model.X, np.arange(p), np.arange(p), ((),) * p)
    rhs = model.recipe.specs["rhs"]
    kinds = {factor.expr: kind for factor, (kind, _) in known_factors(rhs).items()}
    terms = [tuple(factor.expr for factor in term.factors if factor.expr in kinds) for term in rhs.term_slices]
    columns = _factor_columns(model, rhs)
    categories = {name for name, kind in kinds.items() if kind == "categorical"}
    blocks = [_columns(term, columns, categories, len(model.X)) for term in terms]
    values = np.concatenate([np.empty((len(model.X), 0)), *blocks], axis=1)
    basis = independent_columns(values)
    contained_in = tuple(_containing(k, terms, categories) for k in range(len(terms)))
    names = tuple(_name(str(term), model.recipe) for term in rhs.term_slices)
    if len(basis) == model.X.shape[1]:
        return CompleteTerms(names, values, _repeat(blocks), basis, contained_in)
    place = np.repeat(
        np.arange(len(terms)),
        [span.stop - span.start for span in rhs.term_slices.values()],
    )
    return CompleteTerms(names, model.X, place[model.kept], np.arange(model.X.shape[1]), contained_in)


def _name(text: str, recipe: Recipe) -> str:
    return "Intercept" if text == "1" else restore(text, recipe.aliases)


def _repeat(blocks: list[np.ndarray]) -> np.ndarray:
    return np.repeat(np.arange(len(blocks)), [block.shape[1] for block in blocks])


def _factor_columns(model: ModelData, rhs: ModelSpec) -> dict[str, np.ndarray]:
    """The columns (n, c) of each factor: its numbers, or an indicator of each category."""
    assert model.recipe is not None
    assert model.frame is not None
    factors = list(known_factors(rhs))
    if not factors:
        return {}
    settings = {"transform_state": rhs.transform_state, "encoder_state": rhs.encoder_state, "ensure_full_rank": False}
    specs = {f"factor{k}": new_spec([[factor]], **settings) for k, factor in enumerate(factors)}
    texts = dict.fromkeys(specs, model.recipe.texts["rhs"])
    needs = dict.fromkeys(specs, model.recipe.needs["rhs"])
    recipe = Recipe(specs, needs, model.recipe.aliases, model.recipe.env, texts)
    working = working_frame(model.frame, recipe.columns(specs), recipe.aliases)
    matrices = evaluate(recipe, specs, working, fresh=False).matrices
    return {factor.expr: matrices[f"factor{k}"].values for k, factor in enumerate(factors)}


def _columns(term: tuple[str, ...], columns: dict, categories: set[str], n: int) -> np.ndarray:
    """Products of the columns of a term's factors, those of the first factor varying fastest, first categories last."""
    choices = [range(columns[name].shape[1]) for name in reversed(term)]
    products, firsts = [], []
    for picked in product(*choices):
        pairs = list(zip(reversed(term), picked, strict=True))
        products.append(np.prod([np.ones(n), *(columns[name][:, k] for name, k in pairs)], axis=0))
        firsts.append(sum(k == 0 for name, k in pairs if name in categories))
    return np.column_stack(products)[:, np.argsort(firsts, kind="stable")]


def _containing(k: int, terms: list[tuple[str, ...]], categories: set[str]) -> tuple[int, ...]:
    """The terms with the same numbers as term k, all of its categories, and more of them."""
    factors = set(terms[k])
    return tuple(j for j, other in enumerate(terms) if factors < set(other) and set(other) - factors <= categories)
