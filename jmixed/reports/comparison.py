"""Models against each other: likelihood-ratio tables, terms dropped one at a time, tests of one variance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from jmixed.errors import ConvergenceWarning, DataError, ModelError, Outcome, warn
from jmixed.fit import host
from jmixed.formulas.formula import quoted
from jmixed.formulas.model_data import RandomTerm
from jmixed.inference.responses import plain_deviance
from jmixed.inference.tails import chi_square_tail, linear_model_deviance, mixture_tail
from jmixed.layout.design import Design
from jmixed.reports.fitted import Fitted
from jmixed.reports.names import fixed_terms, structure
from jmixed.reports.printed import noted
from jmixed.runtime.arguments import checked
from jmixed.runtime.facts import Facts
from jmixed.runtime.progress import bar


@checked
def compare(*results: Any, refit: bool = True, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A likelihood-ratio table of fits to the same data, as lme4's ``anova(m1, m2)``.

    Rows by number of parameters: columns npar, AIC, BIC, logLik, deviance (-2 logLik), Chisq, Df, p. Each is tested
    against the one above it; that the models are nested is for the caller to know. A test of a variance by chi-square
    is conservative: see `test_variance`.

    Parameters
    ----------
    *results : MixedLMResults or MixedGLMResults
        Two or more, of responses with a family or of none.
    refit
        Refit by ML what was fitted by REML, and say so below the table. False compares REML criteria, which takes the
        same fixed effects in all models.
    names
        Labels of the rows in the order of `results`; by default the formulas.

    Raises
    ------
    DataError
        The fits have different rows, responses or weights.
    ModelError
        Fewer than two fits, a penalised one, REML criteria that cannot be compared, likelihoods of different kinds.

    Examples
    --------
    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> results = [jm.mixedlm(f"Reaction ~ Days + ({x} | Subject)", sleep).fit() for x in ("1", "Days")]
    >>> jm.compare(*results, names=["intercepts", "slopes"])
               npar      AIC      BIC   logLik deviance   Chisq   Df        p
    intercepts    4  1802.08  1814.85  -897.04  1794.08     NaN  NaN      NaN
    slopes        6  1763.94  1783.10  -875.97  1751.94  42.139    2  7.1e-10
    Fitted by REML and refitted by ML for this table: intercepts, slopes.
    """
    compared = _of_same_data(results, "compare")
    labels = _labels(compared, names)
    if refit:
        changed = [label for label, fitted in zip(labels, compared, strict=True) if fitted.reml]
        fits = [fitted.by_ml("compare") for fitted in compared]
    else:
        changed, fits = [], compared
        _check_criteria(compared)
    order = sorted(range(len(fits)), key=lambda k: fits[k].n_params)
    npar = np.array([fits[k].n_params for k in order])
    deviance = np.array([deviance_of(fits[k].fit) for k in order])
    table = pd.DataFrame({"npar": npar}, index=[labels[k] for k in order])
    table["AIC"] = deviance + 2 * npar
    table["BIC"] = deviance + np.log(fits[0].nobs) * npar
    table["logLik"], table["deviance"] = -deviance / 2, deviance
    chisq, df = np.append(np.nan, np.maximum(-np.diff(deviance), 0)), np.append(np.nan, np.diff(npar))
    table["Chisq"], table["Df"] = chisq, df
    table["p"] = [chi_square_tail(x, k) if k > 0 else np.nan for x, k in zip(chisq, df, strict=True)]
    notes = [f"Fitted by REML and refitted by ML for this table: {', '.join(changed)}."] if changed else []
    families = {labels[k]: _family_words(fits[k]) for k in order}
    if len(set(families.values())) > 1:
        told = "; ".join(f"{label}: {words}" for label, words in families.items())
        notes.append(f"Of different families, of which one must hold the other for a test: {told}.")
    outcomes = {labels[k]: fits[k].fit.outcome.name for k in order if unbounded(fits[k].fit)}
    notes += [f"{label}: {name}, no likelihood to compare." for label, name in outcomes.items()]
    return noted(table, "\n".join(notes))


def _family_words(fitted: Fitted) -> str:
    family = fitted.family
    return "normal" if family is None else f"{family.name} ({family.link})"


def unbounded(fit: host.Fit) -> bool:
    """Whether a fit ended where its likelihood has no maximum, so that the value that it stopped at means nothing."""
    return fit.outcome in (Outcome.PERFECT_FIT, Outcome.NOT_FINITE, Outcome.RANK_DEFICIENT, Outcome.DIVERGING)


def deviance_of(fit: host.Fit) -> float:
    """The criterion at an optimum, NaN where there is none."""
    return np.nan if unbounded(fit) else float(fit.objective)


def _of_same_data(results: Sequence[Any], what: str) -> list[Fitted]:
    """What is known of fits to the same rows of the same response; anything else is refused."""
    if len(results) < 2:
        raise ModelError(f"{what}: {len(results)} fits given; it takes at least two, {what}(r1, r2)")
    fits: list[Fitted] = []
    for result in results:
        if not isinstance(fitted := getattr(result, "fitted", None), Fitted):
            raise ModelError(f"{what}: {type(result).__name__} is no fit of jmixed; give what model.fit() returns")
        fitted.need_data(what)
        fits.append(fitted)
    first = fits[0].spec
    for k, fitted in enumerate(fits[1:], 2):
        spec = fitted.spec
        if len(spec.y) != len(first.y):
            raise DataError(
                f"{what}: fit 1 has {len(first.y)} rows and fit {k} has {len(spec.y)}, perhaps because of missing "
                "values in a column that only one of them uses: fit both to the rows that both can use",
                page="p-values.md#for-two-models-jmcompare",
            )
        _require_same_kind(fits[0], fitted, what)
        arrays = [("response", spec.y, first.y), ("weights", spec.weights, first.weights)]
        if spec.response is not None:
            arrays.append(("numbers of trials", fitted.response.trials, fits[0].response.trials))
        for name, theirs, other in arrays:
            if not np.array_equal(theirs, other):
                row = int(np.flatnonzero(theirs != other)[0])
                raise DataError(
                    f"{what}: fits 1 and {k} have different {name} (first in row {row}: {other[row]:g} and "
                    f"{theirs[row]:g}); likelihoods are comparable only for the same data",
                    page="p-values.md#for-two-models-jmcompare",
                )
    return fits


def _require_same_kind(first: Fitted, other: Fitted, what: str) -> None:
    """Refuse likelihoods that are densities of different things, or approximated in different ways."""
    kinds = [None if fitted.family is None else fitted.family.response for fitted in (first, other)]
    if kinds[0] != kinds[1]:
        named = " and ".join(_family_words(fitted) for fitted in (first, other))
        raise ModelError(
            f"{what}: the fits are of responses of different kinds, {named}; their likelihoods cannot be compared. "
            "A normal response among others is mixedglm(..., family='gaussian')"
        )
    if first.family is not None and first.model.quadrature != other.model.quadrature:
        raise ModelError(
            f"{what}: the likelihoods are integrated in different ways, {first.approximation} and "
            f"{other.approximation}; fit both with the same quadrature="
        )


def _check_criteria(fits: Sequence[Fitted]) -> None:
    if len({fitted.reml for fitted in fits}) > 1:
        raise ModelError("compare: some fits are by REML and some by ML; use refit=True")
    if fits[0].reml and not all(_same_span(fits[0].spec.X, fitted.spec.X) for fitted in fits):
        raise ModelError("compare: REML criteria of different fixed effects are not comparable; use refit=True")


def _same_span(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and _spans(first, second)


def _spans(columns: np.ndarray, others: np.ndarray) -> bool:
    """Whether the columns span the others."""
    scale = np.linalg.norm(others, axis=0)
    rest = others - columns @ np.linalg.lstsq(columns, others, rcond=None)[0]
    return bool(np.all(np.linalg.norm(rest, axis=0) <= 1e-8 * np.where(scale > 0, scale, 1)))


def _labels(fits: Sequence[Fitted], names: Sequence[str] | None) -> list[str]:
    if names is not None:
        if len(names) != len(fits) or len(set(names)) < len(names):
            raise ModelError(f"compare: names={list(names)!r}; give {len(fits)} different ones, one for each fit")
        return [str(name) for name in names]
    labels = [fitted.spec.formula or f"fit {k}" for k, fitted in enumerate(fits, 1)]
    return labels if len(set(labels)) == len(labels) else [f"{k}: {name}" for k, name in enumerate(labels, 1)]


def drop1(fitted: Fitted, progress: bool) -> pd.DataFrame:
    """Likelihood-ratio tests of the terms of the fixed effects, each left out."""
    fitted.need_data("drop1")
    fitted.refuse_held("drop1")
    fitted.refuse_iterative("drop1", "test() or anova()")
    full, n_variances = fitted.by_ml("drop1").fit, fitted.n_params - fitted.k_fe
    rows = {"<none>": (fitted.n_params, deviance_of(full))}
    without = ["<none>"] if unbounded(full) else []
    terms = droppable_terms(fitted.spec)
    with bar(len(terms), progress, "drop1") as advance:
        for name, text, columns in terms:
            design = _without(fitted.model, text, columns)
            fit = host.fit(design, reml=False)
            if not fit.converged:
                warn(f"drop1 without {name}: {fit.outcome.message}", ConvergenceWarning)
            rows[name] = (design.X.shape[1] + n_variances, deviance_of(fit))
            without += [name] if unbounded(fit) else []
            advance(1)
    npar, deviance = (np.array(column) for column in zip(*rows.values(), strict=True))
    table = pd.DataFrame({"npar": npar, "AIC": deviance + 2 * npar, "logLik": -deviance / 2}, index=list(rows))
    table["Chisq"] = np.append(np.nan, np.maximum(deviance[1:] - deviance[0], 0))
    table["Df"] = np.append(np.nan, npar[0] - npar[1:])
    table["p"] = [chi_square_tail(x, k) if k > 0 else np.nan for x, k in zip(table.Chisq, table.Df, strict=True)]
    notes = ["All fits are by ML; the model was fitted by REML."] if fitted.reml else []
    if without:
        notes.append(f"The likelihood has no maximum, and nothing is compared with it: {', '.join(without)}.")
    return noted(table, "\n".join(notes))


def _without(model: Any, text: str | None, columns: list[int]) -> Design:
    """The design without a term: as its formula makes it, or without its columns when there is no formula."""
    X = np.delete(model.design.X, columns, axis=1) if text is None else model.update(f". ~ . - {text}").exog
    return replace(model.design, X=X)


def droppable_terms(spec) -> list[tuple[str, str | None, list[int]]]:
    """Fixed-effects terms that are not part of another one: name, spelling in a formula, columns.

    Without a formula every column that varies is a term.
    """
    terms = fixed_terms(spec)
    if spec.recipe is None:
        varying = [name for name, (place,) in terms.items() if np.ptp(spec.X[:, place]) > 0]
        return [(name, None, terms[name]) for name in varying]
    candidates = [term for term in spec.recipe.specs["rhs"].term_slices if str(term) != "1"]
    sets = [frozenset(str(factor) for factor in term.factors) for term in candidates]
    out = []
    for term, factors in zip(candidates, sets, strict=True):
        name, text = str(term), ":".join(map(_spelled, term.factors))
        for alias, column in spec.recipe.aliases.items():
            name, text = name.replace(alias, column), text.replace(alias, f"`{column}`")
        if name in terms and not any(factors < other for other in sets):
            out.append((name, text, terms[name]))
    return out


def _spelled(factor) -> str:
    """A factor as a formula has it: formulaic takes the backticks from a name with spaces."""
    return quoted(factor.expr) if factor.eval_method.value == "lookup" else factor.expr


@dataclass(frozen=True, repr=False)
class VarianceTest(Facts):
    """A test that a variance is zero.

    Attributes
    ----------
    statistic : float
        Twice the difference of the (restricted) log-likelihoods.
    pvalue : float
        From the mixture of chi-squares with degrees of freedom `df` and weights `weights`.
    df, weights : tuples of int, of float
    naive_pvalue : float
        From the chi-square with the larger number of degrees of freedom, which is conservative.
    tested, method : str
        The random effect in question; "REML" or "ML".
    """

    statistic: float
    pvalue: float
    df: tuple[int, ...]
    weights: tuple[float, ...]
    naive_pvalue: float
    tested: str
    method: str

    def _facts(self) -> tuple[str, dict[str, object]]:
        parts = " + ".join(f"{w:g} chi2({k})" for k, w in zip(self.df, self.weights, strict=True))
        return f"Test that the variance of {self.tested} is zero", {
            f"{self.method} likelihood ratio": self.statistic,
            f"p, by {parts}": self.pvalue,
            f"p, by chi2({max(self.df)}), conservative": self.naive_pvalue,
        }


@checked
def variance_test(r_full: Any, r_reduced: Any = None) -> VarianceTest:
    """Test one variance component: the ratio of (restricted) likelihoods against a mixture of chi-squares.

    Under the hypothesis the variance lies on the boundary of its range, and the ratio is distributed as half and half
    of chi-square with r - 1 and r degrees of freedom, where r is the number of parameters that go with the random
    effect: its variance and its covariances with the other effects of its term (Self and Liang 1987, J. Am. Stat.
    Assoc. 82; Stram and Lee 1994, Biometrics 50, cases 1 and 3). Both fits are used as they are, by REML or by ML.

    Parameters
    ----------
    r_full : MixedLMResults or MixedGLMResults
    r_reduced : MixedLMResults or MixedGLMResults, optional
        The same model without one random effect: a term with one variance, or one column of a term with correlated
        effects. By default that without random effects, when the full one has a single variance.

    Raises
    ------
    DataError
        The fits are to different data.
    ModelError
        They differ in more than one variance, in the fixed effects, or in the method; a likelihood has no maximum.

    Examples
    --------
    >>> import jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> full = jm.mixedlm("Reaction ~ Days + (Days | Subject)", sleep).fit()
    >>> jm.test_variance(full, jm.mixedlm("Reaction ~ Days + (1 | Subject)", sleep).fit())
    Test that the variance of Days | Subject is zero
      REML likelihood ratio            42.84
      p, by 0.5 chi2(1) + 0.5 chi2(2)  2.793e-10
      p, by chi2(2), conservative      4.99e-10
    """
    full, smaller = _of_same_data((r_full, r_full if r_reduced is None else r_reduced), "test_variance")
    spec, objective = full.spec, float(full.fit.objective)
    for fitted in (full, smaller):
        fitted.refuse_held("test_variance")
        if unbounded(fitted.fit):
            outcome = fitted.fit.outcome
            raise ModelError(f"test_variance: a fit has no likelihood to compare. {outcome.name}: {outcome.message}")
    if r_reduced is None:
        tested, r = _difference(spec.terms, ())
        reduced = _deviance_without_effects(full)
    else:
        if full.method != smaller.method:
            raise ModelError(
                f"test_variance: one fit is by {full.method}, the other by {smaller.method}; fit both alike"
            )
        if full.family != smaller.family:
            raise ModelError("test_variance: the families differ, so that the fits do not differ in a variance alone")
        if not (_same_span(spec.X, smaller.spec.X) and np.array_equal(spec.offset, smaller.spec.offset)):
            raise ModelError(
                "test_variance: the fixed effects differ; compare such models with jm.compare",
                page="p-values.md#for-two-models-jmcompare",
            )
        tested, r = _difference(spec.terms, smaller.spec.terms)
        reduced = float(smaller.fit.objective)
    statistic, noise = reduced - objective, 1e-8 * max(1, abs(reduced))
    if statistic < -100 * noise:
        raise ModelError(
            f"test_variance: the reduced model fits better, by {-statistic:.3g}: is the first fit the larger model, "
            "and at its optimum?"
        )
    # A variance estimated at zero leaves a ratio of zero up to rounding, where the p-value jumps.
    statistic, df, weights = statistic if statistic > noise else 0.0, (r - 1, r), (0.5, 0.5)
    p = mixture_tail(statistic, df, weights)
    return VarianceTest(statistic, p, df, weights, chi_square_tail(statistic, r), tested, full.method)


def _deviance_without_effects(fitted: Fitted) -> float:
    """The criterion of the same model without random effects."""
    spec, fit = fitted.spec, fitted.fit
    if fitted.family is not None:
        return plain_deviance(fitted.model.design, fit.beta, fit.kappa)
    return linear_model_deviance(spec.y - spec.offset, spec.X, spec.weights, fitted.reml)


def _difference(full: Sequence[RandomTerm], reduced: Sequence[RandomTerm]) -> tuple[str, int]:
    """The random effect that one model has and the other has not, and the number of its parameters."""
    more, less = list(full), []
    for term in reduced:
        same = next((larger for larger in more if _same_term(larger, term)), None)
        if same is None:
            less.append(term)
        else:
            more.remove(same)
    if len(more) == 1 and not less and structure(more[0]).size == 1:
        return more[0].label, 1
    if len(more) == len(less) == 1:
        (larger,), (smaller,) = more, less
        r = len(larger.columns)
        unstructured = structure(larger).any_basis and structure(smaller).any_basis
        nested = _same_levels(larger, smaller) and _spans(larger.Z, smaller.Z)
        if unstructured and nested and len(smaller.columns) == r - 1:
            return larger.label, r
    raise ModelError(
        f"test_variance: the models differ by {[t.label for t in more]} in the first and {[t.label for t in less]} in "
        "the second; the second must be the first without one random effect. For several at once, such as all slopes "
        "of a factor, jm.compare(smaller, larger, refit=False) gives the ratio, with a chi-square for all their "
        "parameters that is conservative",
        page="p-values.md#for-a-variance-jmtest_variance",
    )


def _same_term(first: RandomTerm, second: RandomTerm) -> bool:
    same = first.structure == second.structure and len(first.columns) == len(second.columns)
    if not (same and _same_levels(first, second)):
        return False
    return np.array_equal(first.Z, second.Z) or (structure(first).any_basis and _spans(first.Z, second.Z))


def _same_precision(first: RandomTerm, second: RandomTerm) -> bool:
    """Whether two sparse inverses, of levels by name, are the same but for rounding."""
    if first.precision is None or second.precision is None:
        return False
    place = second.known_levels.get_indexer(first.known_levels)
    if len(place) != second.precision.shape[0] or (place < 0).any():
        return False
    precision, other = first.precision, second.precision.tocsr()[place][:, place]
    return bool(abs(precision - other).max() <= 1e-8 * abs(precision).max())


def _same_levels(first: RandomTerm, second: RandomTerm) -> bool:
    """Whether two terms share out the rows alike, with the same covariance between the parts."""
    (codes, levels), (others, other_levels) = pd.factorize(first.codes), pd.factorize(second.codes)
    if not np.array_equal(codes, others):
        return False
    if first.relationship is None or second.relationship is None:
        return first.relationship is second.relationship
    if first.root is None or second.root is None:
        return _same_precision(first, second)
    known = [root @ root.T for root in (first.root[levels], second.root[other_levels])]
    # A matrix and its inverse say the same, but for rounding.
    return np.allclose(*known, rtol=1e-6, atol=1e-8 * np.max(known[0]))
