"""Models against each other: likelihood-ratio tables, terms dropped one at a time, tests of one variance."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jmixed.errors import ConvergenceWarning, DataError, ModelError, Outcome, warn
from jmixed.fit import host
from jmixed.formulas.formula import quoted
from jmixed.formulas.model_data import RandomTerm
from jmixed.inference.likelihood_ratio import chi_square_tail, linear_model_deviance, mixture_tail
from jmixed.reports.bootstrap import Resampling
from jmixed.reports.names import fixed_terms
from jmixed.reports.printed import noted
from jmixed.runtime.arguments import checked
from jmixed.runtime.facts import Facts
from jmixed.runtime.progress import bar


@checked
def compare(*results, refit: bool = True, names: Sequence[str] | None = None) -> pd.DataFrame:
    """A likelihood-ratio table of fits to the same data, as lme4's ``anova(m1, m2)``.

    Each row is tested against the one above it; that the models are nested is for the caller to know. A test of a
    variance by chi-square is conservative: see `test_variance`.

    Parameters
    ----------
    *results : MixedLMResults
        Two or more.
    refit : bool
        Refit by ML what was fitted by REML, and say so below the table. False compares REML criteria, which takes the
        same fixed effects in all models.
    names : sequence of str, optional
        Labels of the rows in the order of `results`; by default the formulas.

    Returns
    -------
    DataFrame
        By number of parameters: npar, AIC, BIC, logLik, deviance (-2 logLik), Chisq, Df, p.

    Raises
    ------
    DataError
        The fits have different rows, responses or weights.
    ModelError
        Fewer than two fits, a penalised one, or REML criteria that cannot be compared.

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
    _check_same_data(results, "compare")
    labels = _labels(results, names)
    if refit:
        changed = [label for label, result in zip(labels, results, strict=True) if result.reml]
        fits = [result._by_ml("compare") for result in results]
    else:
        changed, fits = [], results
        _check_criteria(results)
    order = sorted(range(len(fits)), key=lambda k: fits[k]._n_params)
    npar = np.array([fits[k]._n_params for k in order])
    deviance = np.array([deviance_of(fits[k]) for k in order])
    table = pd.DataFrame({"npar": npar}, index=[labels[k] for k in order])
    table["AIC"] = deviance + 2 * npar
    table["BIC"] = deviance + np.log(fits[0].nobs) * npar
    table["logLik"], table["deviance"] = -deviance / 2, deviance
    chisq, df = np.append(np.nan, np.maximum(-np.diff(deviance), 0)), np.append(np.nan, np.diff(npar))
    table["Chisq"], table["Df"] = chisq, df
    table["p"] = [chi_square_tail(x, k) if k > 0 else np.nan for x, k in zip(chisq, df, strict=True)]
    notes = [f"Fitted by REML and refitted by ML for this table: {', '.join(changed)}."] if changed else []
    notes += [f"{labels[k]}: {fits[k].outcome.name}, no likelihood to compare." for k in order if unbounded(fits[k])]
    return noted(table, "\n".join(notes))


def unbounded(fit) -> bool:
    """Whether a fit ended where its likelihood has no maximum, so that the value that it stopped at means nothing."""
    return fit.outcome in (Outcome.PERFECT_FIT, Outcome.NOT_FINITE, Outcome.RANK_DEFICIENT)


def deviance_of(fit) -> float:
    """The criterion at an optimum, NaN where there is none."""
    return np.nan if unbounded(fit) else float(fit.objective)


def _check_same_data(results, what: str) -> None:
    """Refuse anything but fits to the same rows of the same response."""
    if len(results) < 2:
        raise ModelError(f"{what}: {len(results)} fits given; it takes at least two, {what}(r1, r2)")
    for result in results:
        if not isinstance(result, Resampling):
            raise ModelError(f"{what}: {type(result).__name__} is no fit of jmixed; give what model.fit() returns")
        result._need_data(what)
    first = results[0]._spec
    for k, result in enumerate(results[1:], 2):
        spec = result._spec
        if len(spec.y) != len(first.y):
            raise DataError(
                f"{what}: fit 1 has {len(first.y)} rows and fit {k} has {len(spec.y)}, perhaps because of missing "
                "values in a column that only one of them uses: fit both to the rows that both can use",
                page="p-values.md#for-two-models-jmcompare",
            )
        for name, own, other in (("response", spec.y, first.y), ("weights", spec.weights, first.weights)):
            if not np.array_equal(own, other):
                row = int(np.flatnonzero(own != other)[0])
                raise DataError(
                    f"{what}: fits 1 and {k} have different {name} (first in row {row}: {other[row]:g} and "
                    f"{own[row]:g}); likelihoods are comparable only for the same data",
                    page="p-values.md#for-two-models-jmcompare",
                )


def _check_criteria(results) -> None:
    if len({result.reml for result in results}) > 1:
        raise ModelError("compare: some fits are by REML and some by ML; use refit=True")
    if results[0].reml and not all(_same_span(results[0]._spec.X, result._spec.X) for result in results):
        raise ModelError("compare: REML criteria of different fixed effects are not comparable; use refit=True")


def _same_span(first: np.ndarray, second: np.ndarray) -> bool:
    return first.shape == second.shape and _spans(first, second)


def _spans(columns: np.ndarray, others: np.ndarray) -> bool:
    """Whether the columns span the others."""
    scale = np.linalg.norm(others, axis=0)
    rest = others - columns @ np.linalg.lstsq(columns, others, rcond=None)[0]
    return bool(np.all(np.linalg.norm(rest, axis=0) <= 1e-8 * np.where(scale > 0, scale, 1)))


def _labels(results, names) -> list[str]:
    if names is not None:
        if len(names) != len(results) or len(set(names)) < len(names):
            raise ModelError(f"compare: names={list(names)!r}; give {len(results)} different ones, one for each fit")
        return [str(name) for name in names]
    found = [result._spec.formula or f"fit {k}" for k, result in enumerate(results, 1)]
    return found if len(set(found)) == len(found) else [f"{k}: {name}" for k, name in enumerate(found, 1)]


class Comparisons(Resampling):
    """Tests of a fit against smaller models; `MixedLMResults` is built on it."""

    def drop1(self, progress: bool = False) -> pd.DataFrame:
        """Drop each term of the fixed effects in turn, with a likelihood-ratio test by ML.

        Marginality is respected: a term that is part of another, such as ``a`` beside ``a:b``, is not dropped.

        Parameters
        ----------
        progress : bool
            Show how far it is.

        Returns
        -------
        DataFrame
            Index ``<none>`` (the model itself) and the terms; columns npar, AIC, logLik, Chisq, Df, p. NaN, and a word
            below the table, where a likelihood has no maximum.

        Raises
        ------
        ModelError
            For a fit with held or penalised parameters.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.drop1()
               npar      AIC   logLik   Chisq   Df        p
        <none>    6  1763.94  -875.97     NaN  NaN      NaN
        Days      5  1785.48  -887.74  23.537    1  1.2e-06
        All fits are by ML; the model was fitted by REML.
        """
        self._need_data("drop1")
        self._refuse_held("drop1")
        own, n_variances = self._by_ml("drop1"), self._n_params - self.k_fe
        rows = {"<none>": (self._n_params, deviance_of(own))}
        without = ["<none>"] if unbounded(own) else []
        terms = droppable_terms(self._spec)
        with bar(len(terms), progress, "drop1") as advance:
            for name, text, columns in terms:
                design = self._without(text, columns)
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
        notes = ["All fits are by ML; the model was fitted by REML."] if self.reml else []
        notes += [f"The likelihood has no maximum, and nothing is compared with it: {', '.join(without)}."] * bool(
            without
        )
        return noted(table, "\n".join(notes))

    def _without(self, text: str | None, columns: list[int]):
        """The design without a term: as its formula makes it, or without its columns when there is no formula."""
        design = self.model.design
        if text is not None:
            return replace(design, X=self.model.update(f". ~ . - {text}").exog)
        return replace(design, X=np.delete(design.X, columns, axis=1))


def droppable_terms(spec) -> list[tuple[str, str | None, list[int]]]:
    """Fixed-effects terms that are not part of another one: name, spelling in a formula, columns.

    Without a formula every column that varies is a term.
    """
    terms = fixed_terms(spec)
    if spec.recipe is None:
        varying = [name for name, (place,) in terms.items() if np.ptp(spec.X[:, place]) > 0]
        return [(name, None, terms[name]) for name in varying]
    found = [term for term in spec.recipe.specs["rhs"].term_slices if str(term) != "1"]
    sets = [frozenset(str(factor) for factor in term.factors) for term in found]
    out = []
    for term, factors in zip(found, sets, strict=True):
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
        From the mixture of chi-squares with `df` and `weights`.
    df : tuple of int
    weights : tuple of float
    naive_pvalue : float
        From the chi-square with the larger number of degrees of freedom, which is conservative.
    tested : str
        The random effect in question.
    method : str
        "REML" or "ML".
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
def variance_test(r_full, r_reduced=None) -> VarianceTest:
    """Test one variance component: the ratio of (restricted) likelihoods against a mixture of chi-squares.

    Under the hypothesis the variance lies on the boundary of its range, and the ratio is distributed as half and half
    of chi-square with r - 1 and r degrees of freedom, where r is the number of parameters that go with the random
    effect: its variance and its covariances with the other effects of its term (Self and Liang 1987, J. Am. Stat.
    Assoc. 82; Stram and Lee 1994, Biometrics 50, cases 1 and 3). Both fits are used as they are, by REML or by ML.

    Parameters
    ----------
    r_full : MixedLMResults
    r_reduced : MixedLMResults, optional
        The same model without one random effect: a term with one variance, or one column of a term with correlated
        effects. None stands for the model without random effects, when the full one has a single variance.

    Returns
    -------
    VarianceTest

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
    _check_same_data((r_full, r_full if r_reduced is None else r_reduced), "test_variance")
    spec, method = r_full._spec, r_full.method
    for result in (r_full,) if r_reduced is None else (r_full, r_reduced):
        result._refuse_held("test_variance")
        if unbounded(result):
            raise ModelError(
                f"test_variance: a fit has no likelihood to compare. {result.outcome.name}: {result.outcome.message}"
            )
    if r_reduced is None:
        tested, r = _difference(spec.terms, ())
        reduced = linear_model_deviance(spec.y - spec.offset, spec.X, spec.weights, r_full.reml)
    else:
        if r_reduced.method != method:
            raise ModelError(f"test_variance: one fit is by {method}, the other by {r_reduced.method}; fit both alike")
        if not (_same_span(spec.X, r_reduced._spec.X) and np.array_equal(spec.offset, r_reduced._spec.offset)):
            raise ModelError(
                "test_variance: the fixed effects differ; compare such models with jm.compare",
                page="p-values.md#for-two-models-jmcompare",
            )
        tested, r = _difference(spec.terms, r_reduced._spec.terms)
        reduced = r_reduced.objective
    statistic, noise = reduced - r_full.objective, 1e-8 * max(1, abs(reduced))
    if statistic < -100 * noise:
        raise ModelError(
            f"test_variance: the reduced model fits better, by {-statistic:.3g}: is the first fit the larger model, "
            "and at its optimum?"
        )
    # A variance estimated at zero leaves a ratio of zero up to rounding, where the p-value jumps.
    statistic, df, weights = statistic if statistic > noise else 0.0, (r - 1, r), (0.5, 0.5)
    p = mixture_tail(statistic, df, weights)
    return VarianceTest(statistic, p, df, weights, chi_square_tail(statistic, r), tested, method)


def _difference(full: Sequence[RandomTerm], reduced: Sequence[RandomTerm]) -> tuple[str, int]:
    """The random effect that one model has and the other has not, and the number of its parameters."""
    more, less = list(full), []
    for term in reduced:
        same = next((own for own in more if _same_term(own, term)), None)
        if same is None:
            less.append(term)
        else:
            more.remove(same)
    if len(more) == 1 and not less and (len(more[0].columns) == 1 or more[0].structure == "identity"):
        return more[0].label, 1
    if len(more) == len(less) == 1:
        (own,), (other,) = more, less
        r = len(own.columns)
        unstructured = own.structure == other.structure == "unstructured"
        nested = _same_partition(own.codes, other.codes) and _spans(own.Z, other.Z)
        if unstructured and nested and len(other.columns) == r - 1:
            return own.label, r
    raise ModelError(
        f"test_variance: the models differ by {[t.label for t in more]} in the first and {[t.label for t in less]} in "
        "the second; the second must be the first without one random effect. For several at once, such as all slopes "
        "of a factor, jm.compare(smaller, larger, refit=False) gives the ratio, with a chi-square for all their "
        "parameters that is conservative",
        page="p-values.md#for-a-variance-jmtest_variance",
    )


def _same_term(first: RandomTerm, second: RandomTerm) -> bool:
    same = first.structure == second.structure and len(first.columns) == len(second.columns)
    if not (same and _same_partition(first.codes, second.codes)):
        return False
    return np.array_equal(first.Z, second.Z) or (first.structure == "unstructured" and _spans(first.Z, second.Z))


def _same_partition(first: np.ndarray, second: np.ndarray) -> bool:
    return np.array_equal(pd.factorize(first)[0], pd.factorize(second)[0])
