"""How much of the variance the model explains: R2, intraclass correlations, principal components."""

from dataclasses import dataclass

import numpy as np

from jmixed.algebra.sparse import factorise, plan, selected_inverse
from jmixed.covariance.scales import diagonal_blocks
from jmixed.fit.host import Fit
from jmixed.layout.stack import ModelRows, TermRows
from jmixed.runtime.compilation import program
from jmixed.runtime.facts import Facts
from jmixed.runtime.precision import double_precision


@dataclass(frozen=True, repr=False)
class VarianceExplained(Facts):
    """Shares of the variance of a response.

    Attributes
    ----------
    marginal : float
        Share of the fixed effects.
    conditional : float
        Share of fixed and random effects together.
    fixed, random, residual : float
        The variances they are made of, in squared units of the response.
    """

    marginal: float
    conditional: float
    fixed: float
    random: float
    residual: float

    def _facts(self) -> tuple[str, dict[str, object]]:
        return "Share of the variance explained (R2)", {
            "marginal, by the fixed effects": self.marginal,
            "conditional, by fixed and random effects": self.conditional,
            "variance of the fixed effects": self.fixed,
            "variance of the random effects": self.random,
            "residual variance": self.residual,
        }


@dataclass(frozen=True, repr=False)
class IntraclassCorrelation(Facts):
    """Share of the random effects in the variance.

    Attributes
    ----------
    adjusted : float
        Of the variance that the fixed effects leave.
    unadjusted : float
        Of all variance, that of the fixed effects included.
    by_group : dict of str to float
        The adjusted share of each grouping factor; they sum to `adjusted`.
    """

    adjusted: float
    unadjusted: float
    by_group: dict[str, float]

    def _facts(self) -> tuple[str, dict[str, object]]:
        shares = {f"adjusted, of {group}": share for group, share in self.by_group.items()}
        return "Intraclass correlation", {
            "adjusted": self.adjusted,
            "unadjusted": self.unadjusted,
            **(shares if len(shares) > 1 else {}),
        }


def variance_explained(data: ModelRows, fit: Fit, residual: float) -> VarianceExplained:
    """Marginal and conditional R2 (Nakagawa and Schielzeth 2013; Johnson 2014 for random slopes).

    The variance of the fixed effects is the sample variance of X beta (divisor n - 1), that of the random effects the
    mean over the rows of z Sigma z', times K's diagonal where levels are related, summed over the terms; `residual` is
    the residual variance, a mean likewise.
    """
    fixed, random = variances_of_predictors(data, fit)
    total = fixed + random + residual
    return VarianceExplained(fixed / total, (fixed + random) / total, fixed, random, residual)


def variances_of_predictors(data: ModelRows, fit: Fit) -> tuple[float, float]:
    """The variances of the fixed and of the random effects in `variance_explained`."""
    known = [known_variances(term) for term in data.terms]
    diagonals = [None if v is None else v[term.codes] for v, term in zip(known, data.terms, strict=True)]
    return _fixed_variance(data, fit), float(sum(_of_terms(data, fit, diagonals).values()))


def intraclass_correlation(data: ModelRows, fit: Fit, residual: float) -> IntraclassCorrelation:
    """Intraclass correlations, of all random effects and of each grouping factor (Nakagawa et al. 2017).

    Of related levels the variance is that of a level whose K is one: of an animal that is not inbred.
    """
    of_terms = _of_terms(data, fit, [None] * len(data.terms))
    random = float(sum(of_terms.values()))
    left = random + residual
    by_group: dict[str, float] = {}
    for term in data.terms:
        by_group[term.group] = by_group.get(term.group, 0.0) + float(of_terms[term.label]) / left
    return IntraclassCorrelation(random / left, random / (_fixed_variance(data, fit) + left), by_group)


def known_variances(term: TermRows) -> np.ndarray | None:
    """The diagonal of the known covariance of a term's levels, and of their relatives; None for independent levels."""
    if term.root is not None:
        return np.sum(term.root**2, axis=1)
    if term.precision is None:
        return None
    entries = term.precision.tocoo()
    below = entries.row >= entries.col
    rows, columns = entries.row[below], entries.col[below]
    with double_precision():
        inverse = np.asarray(_inverse_program(plan(rows, columns, entries.shape[0]), entries.data[below]))
    return inverse[rows == columns][np.argsort(rows[rows == columns], kind="stable")]


@program
def _inverse_program(known, values):
    return selected_inverse(factorise(known, values))


def _fixed_variance(data, fit):
    values = data.X @ fit.beta
    # Less one of them: what does not vary has a variance of zero, not of its rounding.
    return float(np.var(values - values[0], ddof=1))


def _of_terms(data, fit, weights):
    """Mean over the rows of the variance that each term gives; weights (n,), or None, are the rows' own."""
    n, out = len(data.y), {}
    for term, weight in zip(data.terms, weights, strict=True):
        columns = term.Z if weight is None else weight[:, None] * term.Z
        out[term.label] = np.sum(term.Z.T @ columns / n * fit.covariances[term.label])
    return out


@dataclass(frozen=True)
class PrincipalComponents:
    """Components of a covariance of random effects, the columns of `loadings` (q, q).

    Their standard deviations `sd` (q,) are relative to sigma, largest first.
    """

    sd: np.ndarray
    loadings: np.ndarray


def principal_components(covariances, sigma: float) -> PrincipalComponents:
    """Components of the random effects of one grouping factor (Bates, Kliegl, Vasishth and Baayen 2015, rePCA).

    `covariances` (q, q) are those of the factor's terms, which are independent of each other.
    """
    values, vectors = np.linalg.eigh(diagonal_blocks(*(c / sigma**2 for c in covariances)))
    signs = np.where(vectors[np.argmax(np.abs(vectors), axis=0), np.arange(len(values))] < 0, -1.0, 1.0)
    return PrincipalComponents(np.sqrt(np.maximum(values, 0))[::-1], (vectors * signs)[:, ::-1])
