"""Tests of coefficients and of terms with degrees of freedom for small samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import ModelError
from jmixed.inference import kenward_roger, satterthwaite, tails
from jmixed.inference.satterthwaite import UNTESTED, JointTest, contrast_covariance, unit_contrasts
from jmixed.inference.variance_parameters import standard_deviations, theta_and_sigma
from jmixed.reports.components import all_components
from jmixed.reports.fitted import Fitted
from jmixed.reports.hypotheses import read_hypotheses
from jmixed.reports.printed import noted
from jmixed.reports.term_contrasts import term_contrasts
from jmixed.runtime.precision import FLOAT

Ddf = Literal["satterthwaite", "kenward-roger", "residual", "none"]
Type = Literal[1, 2, 3, "1", "2", "3", "I", "II", "III"]

DDF = {
    "satterthwaite": "t tests with Satterthwaite's degrees of freedom.",
    "kenward-roger": "t tests with Kenward and Roger's degrees of freedom and their adjusted standard errors.",
    "residual": "t tests with n - p degrees of freedom, too many for what varies between groups only.",
    "none": "z tests and their intervals use the normal approximation.",
}
"""The ways to refer a statistic to a distribution, and what a reader of a table is told."""

TYPES = {1: 1, 2: 2, 3: 3, "1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}


@dataclass(frozen=True)
class Denominator:
    """Degrees of freedom of one kind, with the covariance (p, p) of the coefficients that belongs to them.

    ``single(L)`` gives the degrees of freedom (k,) of contrasts L (k, p); ``joint(L, difference)`` an F test of them.
    """

    covariance: np.ndarray
    single: Callable[[Any], np.ndarray]
    joint: Callable[[Any, Any], JointTest]


def usual_ddf(fitted: Fitted, ddf: str | None) -> str:
    """The kind that was asked for; else Satterthwaite's where there is one: at the optimum of a linear model.

    It is the default of all that goes into a paper (report, table, tidy, lme4's summary), so that their numbers agree.
    Of a fit whose rows were removed there is none, unless it was computed before.
    """
    if ddf is not None:
        return ddf
    known = fitted.has_data or "curvature" in vars(fitted)
    return "satterthwaite" if fitted.family is None and fitted.fit.outcome.ok and known else "none"


def denominator(fitted: Fitted, ddf: str) -> Denominator:
    """Degrees of freedom of the given kind, for contrasts of all coefficients."""
    if not isinstance(ddf, str) or ddf not in DDF:
        raise ModelError(f"ddf is {ddf!r}; it must be one of {', '.join(map(repr, DDF))}")
    if ddf != "none":
        fitted.refuse_family(
            f"ddf={ddf!r} (degrees of freedom for the estimated residual variance)",
            "ddf='none', tests by the normal distribution; for small samples drop1() or bootstrap()",
        )
    if ddf != "none" and not (outcome := fitted.fit.outcome).ok:
        raise ModelError(
            f"ddf={ddf!r}: the fit has no certified optimum ({outcome.name}: {outcome.message}), so that "
            "there are no degrees of freedom to its tests. ddf='none' gives z tests at the estimates as they are, "
            "which are no more certain",
            page="singular.md#outcomes",
        )
    covariance = fitted.fit.vcov_beta
    if ddf in ("residual", "none"):
        df = float(fitted.df_resid) if ddf == "residual" else np.inf
        return Denominator(covariance, lambda L: np.full(len(L), df), partial(_wald, covariance, df))
    free = fitted.free_beta
    free_block = np.ix_(free, free)
    if ddf == "satterthwaite":
        bent = fitted.curvature
        return Denominator(
            covariance,
            lambda L: satterthwaite.degrees_of_freedom(bent, L[:, free]),
            lambda L, difference: satterthwaite.joint_test(bent, L[:, free], difference, covariance[free_block]),
        )
    # A coefficient that a penalty has set to zero has no standard error, one that was held has zero.
    adjusted = np.where(np.isnan(covariance), np.nan, 0)
    adjusted[free_block] += fitted.kenward_roger.adjusted
    pieces = replace(fitted.kenward_roger, adjusted=adjusted[free_block])
    return Denominator(
        adjusted,
        lambda L: kenward_roger.degrees_of_freedom(pieces, L[:, free]),
        lambda L, difference: kenward_roger.joint_test(pieces, L[:, free], difference),
    )


def vcov_kenward_roger(fitted: Fitted) -> pd.DataFrame:
    """Kenward and Roger's adjusted covariance of the coefficients."""
    names = list(fitted.spec.exog_names)
    return pd.DataFrame(denominator(fitted, "kenward-roger").covariance, index=names, columns=names)


def test(fitted: Fitted, L: Any, ddf: str) -> pd.DataFrame:
    """Tests of coefficients, or of linear combinations of them."""
    if L is not None:
        fitted.warn_of_positions(L)
    tests = read_hypotheses(L, fitted.spec.exog_names, fitted.spec.dropped)
    by = denominator(fitted, ddf)
    joint = any(len(hypothesis.R) > 1 for hypothesis in tests)
    table = (_joint_table if joint else _single_table)(tests, fitted.fit.beta, by)
    if fitted.family is None:
        return table
    return _by_chi_square(table) if joint else table.drop(columns="df").rename(columns={"t": "z"})


def _by_chi_square(table: pd.DataFrame) -> pd.DataFrame:
    """A table of F tests whose denominators have no end to their degrees of freedom, as chi-square tests."""
    columns = {"Chisq": table["F"] * table["num_df"], "Df": table["num_df"], "p": table["p"]}
    return noted(pd.DataFrame(columns, index=table.index))


def tests_of_coefficients(fitted: Fitted, ddf: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Standard errors of the coefficients and their degrees of freedom, None for normal tests."""
    by = denominator(fitted, ddf)
    errors = tails.standard_errors(np.diag(by.covariance))
    return errors, None if ddf == "none" else by.single(np.eye(fitted.k_fe))


def anova(fitted: Fitted, ddf: str, kind: int | str) -> pd.DataFrame:
    """F tests of the terms of the fixed part, of type `kind`; chi-square tests of a response with a family."""
    if not isinstance(kind, int | str) or kind not in TYPES:
        raise ModelError(f"anova: type is {kind!r}; it must be 3 (marginal), 2 or 1 (sequential)")
    by = denominator(fitted, ddf)
    contrasts = _contrasts_of_terms(fitted, TYPES[kind])
    table = _table_of_F(contrasts, [by.joint(L, L @ fitted.fit.beta) for L in contrasts.values()])
    if fitted.family is not None:
        return _by_chi_square(table)
    mean = table["F"] * fitted.sigma**2
    table.insert(0, "sum_sq", mean * table["num_df"])
    table.insert(1, "mean_sq", mean)
    return table.reindex(columns=["sum_sq", "mean_sq", "num_df", "den_df", "F", "p"])


def _contrasts_of_terms(fitted: Fitted, kind: int) -> dict[str, np.ndarray]:
    """Contrasts of every term but the intercept, by its name."""
    complete, X, constant = fitted.terms
    # With a single term all types are one.
    kind = 1 if constant.count(False) <= 1 else kind
    contrasts = term_contrasts(X, complete.values, complete.term, complete.basis, complete.contained_in, kind)
    named = zip(complete.names, contrasts, constant, strict=True)
    # Without the weight of a constant that thresholds stand for.
    return {name: L[:, X.shape[1] - fitted.k_fe :] for name, L, only in named if len(L) and not only}


def vcov_variance(fitted: Fitted, scale: str) -> pd.DataFrame:
    """Covariance of the variance parameters."""
    fitted.refuse_family("vcov_variance", "cov_params(), which has their variances")
    structures, theta = fitted.design.layout.terms, fitted.fit.theta
    at_zero = fitted.sigma, np.zeros(0) if fitted.spec.residual is None else fitted.spec.residual.shift
    if scale == "sd":
        names = [part.name for part in all_components(fitted.spec, fitted.fit)]
        parameters = standard_deviations(fitted.curvature, structures, theta, *at_zero)
    elif scale == "theta":
        names = [*fitted.model.theta_names, "sigma"]
        parameters = theta_and_sigma(fitted.curvature, structures, theta, *at_zero)
    else:
        raise ModelError(f"vcov_variance: scale is {scale!r}; use 'sd' or 'theta'")
    return pd.DataFrame(parameters.covariance, index=names, columns=names)


def _single_table(tests, beta, by) -> pd.DataFrame:
    R = np.vstack([np.zeros((0, len(beta))), *(hypothesis.R for hypothesis in tests)])
    q = np.concatenate([np.zeros(0), *(hypothesis.q for hypothesis in tests)])
    estimate, df = R @ beta, by.single(R)
    se = np.sqrt(np.diag(contrast_covariance(R, by.covariance)))
    t = tails.statistics(estimate - q, se)
    columns = {"estimate": estimate, "se": se, "df": df, "t": t, "p": tails.p_of_t(t, df)}
    return noted(pd.DataFrame(columns, index=[hypothesis.label for hypothesis in tests]))


def _joint_table(tests, beta, by) -> pd.DataFrame:
    joint_tests = [by.joint(hypothesis.R, hypothesis.R @ beta - hypothesis.q) for hypothesis in tests]
    return _table_of_F([hypothesis.label for hypothesis in tests], joint_tests)


def _table_of_F(labels, tests: Sequence[JointTest]) -> pd.DataFrame:
    columns = {
        "F": np.array([joint.F for joint in tests], FLOAT),
        "num_df": np.array([joint.num_df for joint in tests], int),
        "den_df": np.array([joint.den_df for joint in tests], FLOAT),
        "p": np.array([tails.p_of_F(joint.F, joint.num_df, joint.den_df) for joint in tests], FLOAT),
    }
    return noted(pd.DataFrame(columns, index=list(labels)))


def _wald(covariance, df, L, difference) -> JointTest:
    """Wald's F with given denominator degrees of freedom."""
    weights = unit_contrasts(L, covariance)
    if not weights.shape[1]:
        return UNTESTED
    return JointTest(float(np.mean((weights.T @ difference) ** 2)), weights.shape[1], df)
