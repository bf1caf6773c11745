"""What the parameters of a model are called: in statsmodels' tables, and in lme4's."""

from collections import Counter
from dataclasses import dataclass

from jmixed.covariance.registry import structure_of
from jmixed.covariance.structure import Structure
from jmixed.formulas.evaluate import known_factors


@dataclass(frozen=True)
class ParameterNames:
    """Labels of a model's parameters.

    A term with a variance-component name (``vc``) has one variance, listed in ``vcomp``; the columns of all other terms
    make up ``cov_re``, one diagonal block per term.

    Attributes
    ----------
    fixed : tuple of str
        Coefficients.
    random : tuple of str
        Rows and columns of ``cov_re``; an intercept bears the name of its group.
    random_full : tuple of str
        Lower triangles of the terms, row by row: ``a Var``, ``a x b Cov``, ``b Var``.
    vcomp : tuple of str
        Names of the variance components.
    """

    fixed: tuple[str, ...]
    random: tuple[str, ...]
    random_full: tuple[str, ...]
    vcomp: tuple[str, ...]

    @property
    def variance(self) -> tuple[str, ...]:
        """The labels of the variance parameters, in the order of psi."""
        return self.random_full + tuple(f"{name} Var" for name in self.vcomp)

    @property
    def all(self) -> tuple[str, ...]:
        """The labels of ``params``."""
        return self.fixed + self.variance


def parameter_names(spec) -> ParameterNames:
    """Name the parameters of a model, whose terms are in the order of psi, variance components last."""
    random_terms = [term for term in spec.terms if term.vc is None]
    columns = [(term, column) for term in random_terms for column in term.columns]
    short = Counter(_short(term, column) for term, column in columns)
    labels: list[str] = []
    for term, column in columns:
        name = _short(term, column)
        if short[name] > 1:
            name = f"{column}|{term.group}"
        repeats = sum(label == name or label.startswith(f"{name} (") for label in labels)
        labels.append(f"{name} ({repeats + 1})" if repeats else name)
    full, start = [], 0
    for term in random_terms:
        full.extend(structure(term).psi_names(labels[start : start + len(term.columns)]))
        start += len(term.columns)
    vcomp = tuple(term.vc for term in spec.terms if term.vc is not None)
    return ParameterNames(tuple(spec.exog_names), tuple(labels), tuple(full), vcomp)


def _short(term, column):
    return term.group if column == "Intercept" else column


def structure(term) -> Structure:
    """The covariance structure of a random-effects term."""
    return structure_of(term.structure, len(term.columns), term.intercept)


def fixed_terms(spec) -> dict[str, list[int]]:
    """The terms of the fixed part, and the positions of their columns in X.

    A term whose columns were all dropped as redundant is absent; without a formula every column is a term.
    """
    if spec.recipe is None:
        return {name: [place] for place, name in enumerate(spec.exog_names)}
    place_of = {int(column): place for place, column in enumerate(spec.kept)}
    terms = {}
    for term, columns in spec.recipe.specs["rhs"].term_slices.items():
        places = [place_of[column] for column in range(columns.start, columns.stop) if column in place_of]
        name = "Intercept" if str(term) == "1" else str(term)
        for alias, column in spec.recipe.aliases.items():
            name = name.replace(alias, column)
        if places:
            terms[name] = places
    return terms


def left_out(spec) -> list[str]:
    """What a reader must know of columns that are not in the model although the formula names them: messages."""
    messages = []
    if spec.dropped:
        messages.append(
            f"the fixed effects are collinear: {', '.join(spec.dropped)} left out, because columns to the left "
            "say the same. Remove redundant terms from the formula to choose which are kept"
        )
    if spec.recipe is not None:
        parts = [part for part in spec.recipe.specs.values() if part.structure is not None]
        empty = [term for part in parts for term, columns in part.term_slices.items() if columns.start == columns.stop]
        names = ", ".join(dict.fromkeys(map(str, empty)))
        for alias, column in spec.recipe.aliases.items():
            names = names.replace(alias, column)
        if names:
            messages.append(
                f"{names} left out: a factor with a single level in these rows says the same as the intercept. "
                "Look at the column and the subset, or remove the term"
            )
    return messages


def patsy_order(spec) -> list[str]:
    """The coefficients in the order that statsmodels has them, by patsy: those of categories alone come first.

    The model's own order where it was not stated in statsmodels' manner, by `groups`.
    """
    names = list(spec.exog_names)
    if spec.recipe is None or spec.group_name is None:
        return names
    rhs = spec.recipe.specs["rhs"]
    place_of = {int(column): place for place, column in enumerate(spec.kept)}
    numbers = {factor.expr for factor, (kind, _) in known_factors(rhs).items() if kind == "numerical"}
    factors = [[f.expr for f in term.factors if f.expr != "1"] for term in rhs.term_slices]
    within = [frozenset(expressions) & numbers for expressions in factors]
    first: list[frozenset] = [frozenset(), *within]
    ranked = sorted(range(len(factors)), key=lambda k: (first.index(within[k]), len(factors[k])))
    slices = list(rhs.term_slices.values())
    columns = [column for k in ranked for column in range(slices[k].start, slices[k].stop)]
    return [names[place_of[column]] for column in columns if column in place_of]
