"""Tests of coefficients and of terms with degrees of freedom for small samples: a part of a result."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from numbers import Real
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jmixed.errors import DataError, ModelError
from jmixed.fit.host import Fit
from jmixed.formulas.complete import CompleteTerms, complete_terms
from jmixed.formulas.model_data import ModelData
from jmixed.inference import kenward_roger, satterthwaite, tails
from jmixed.inference.curvature import Curvature, curvature
from jmixed.inference.satterthwaite import UNTESTED, JointTest, contrast_covariance, unit_contrasts
from jmixed.inference.variance_parameters import standard_deviations, theta_and_sigma
from jmixed.layout.design import without_coefficients
from jmixed.reports.components import all_components
from jmixed.reports.hypotheses import by_name, hypotheses, require_consistent
from jmixed.reports.printed import noted
from jmixed.reports.term_contrasts import term_contrasts
from jmixed.runtime.precision import FLOAT

DDF = {
    "satterthwaite": "t tests with Satterthwaite's degrees of freedom.",
    "kenward-roger": "t tests with Kenward and Roger's degrees of freedom and their adjusted standard errors.",
    "residual": "t tests with n - p degrees of freedom, too many for what varies between groups only.",
    "none": "z tests and their intervals use the normal approximation.",
}
"""The ways to refer a statistic to a distribution, and what a reader of a table is told."""

TYPES = {1: 1, 2: 2, 3: 3, "1": 1, "2": 2, "3": 3, "I": 1, "II": 2, "III": 3}


class Hypothesis(NamedTuple):
    """``R beta = q`` with its label: R (k, p), q (k,)."""

    label: str
    R: np.ndarray
    q: np.ndarray


@dataclass(frozen=True)
class Denominator:
    """Degrees of freedom of one kind, with the covariance (p, p) of the coefficients that belongs to them.

    ``single(L)`` gives the degrees of freedom (k,) of contrasts L (k, p); ``joint(L, difference)`` an F test of them.
    """

    covariance: np.ndarray
    single: Callable[[Any], np.ndarray]
    joint: Callable[[Any, Any], JointTest]


class SmallSampleTests:
    """`test` and `anova`, and the uncertainty of the variance parameters; `MixedLMResults` is built on it."""

    model: Any
    freepat: Any
    reml: bool
    k_fe: int
    df_resid: int
    scale: float
    _spec: ModelData
    _fit: Fit
    _free: np.ndarray
    _need_data: Callable[..., None]
    _by_position: Callable[[Any], None]

    @cached_property
    def _free_beta(self) -> np.ndarray:
        """Which coefficients were estimated, bool array (k_fe,)."""
        return np.ones(self.k_fe, bool) if self.freepat is None else np.asarray(self.freepat.fe_params) != 0

    @cached_property
    def _curvature(self) -> Curvature:
        self._need_data("degrees of freedom and standard errors of variance parameters", rows=False)
        design, free = self.model.design, None if np.all(self._free) else self._free != 0
        if not self._free_beta.all():
            design = without_coefficients(design, self._fit.beta, self._free_beta)
        return curvature(design, self._fit.theta, self._fit.sigma, self.reml, free)

    @cached_property
    def _kenward_roger(self) -> kenward_roger.KenwardRoger:
        if not self.reml:
            raise ModelError(
                "ddf='kenward-roger' is defined for REML, and this is an ML fit: refit with fit(reml=True), or use "
                "ddf='satterthwaite'",
                page="p-values.md",
            )
        return kenward_roger.kenward_roger(self._curvature)

    @property
    def vcov_kenward_roger(self) -> pd.DataFrame:
        """Kenward and Roger's (1997) adjusted covariance of the coefficients, (k_fe, k_fe): pbkrtest's ``vcovAdj``.

        Examples
        --------
        >>> result.vcov_kenward_roger.round(3).values.tolist()
        [[46.575, -1.451], [-1.451, 2.389]]
        """
        names = list(self._spec.exog_names)
        return pd.DataFrame(self._denominator("kenward-roger").covariance, index=names, columns=names)

    def _denominator(self, ddf: str) -> Denominator:
        """Degrees of freedom of the given kind, for contrasts of all coefficients."""
        if not isinstance(ddf, str) or ddf not in DDF:
            raise ModelError(f"ddf is {ddf!r}; it must be one of {', '.join(map(repr, DDF))}")
        if ddf != "none" and not (outcome := self._fit.outcome).ok:
            raise ModelError(
                f"ddf={ddf!r}: the fit has no certified optimum ({outcome.name}: {outcome.message}), so that "
                "there are no degrees of freedom to its tests. ddf='none' gives z tests at the estimates as they are, "
                "which are no more certain",
                page="singular.md#outcomes",
            )
        covariance = self._fit.vcov_beta
        if ddf in ("residual", "none"):
            df = float(self.df_resid) if ddf == "residual" else np.inf
            return Denominator(covariance, lambda L: np.full(len(L), df), partial(_wald, covariance, df))
        free = self._free_beta
        if ddf == "satterthwaite":
            bent, own = self._curvature, covariance[np.ix_(free, free)]
            return Denominator(
                covariance,
                lambda L: satterthwaite.degrees_of_freedom(bent, L[:, free]),
                lambda L, difference: satterthwaite.joint_test(bent, L[:, free], difference, own),
            )
        # A coefficient that a penalty has set to zero has no standard error, one that was held has zero.
        own, adjusted = np.ix_(free, free), np.where(np.isnan(covariance), np.nan, 0)
        adjusted[own] += self._kenward_roger.adjusted
        pieces = replace(self._kenward_roger, adjusted=adjusted[own])
        return Denominator(
            adjusted,
            lambda L: kenward_roger.degrees_of_freedom(pieces, L[:, free]),
            lambda L, difference: kenward_roger.joint_test(pieces, L[:, free], difference),
        )

    def test(self, L=None, ddf: str = "satterthwaite") -> pd.DataFrame:
        """Test coefficients, or linear combinations of them, with degrees of freedom for small samples.

        Parameters
        ----------
        L : optional
            What to test; by default every coefficient against zero. One test: an equation ``"Days = 10"``, several
            joined by commas ``"x = 0, z = 0"``, a mapping ``{"x": 0, "z - w": 0}`` of left to right sides, an array
            (k_fe,) or (k, k_fe), or a tuple (array, right-hand side). Several tests: a list of texts, or a mapping of
            names to any of the former.
        ddf : str
            "satterthwaite" (exact derivatives), "kenward-roger" (after REML; adjusted standard errors), "residual"
            (n - p) or "none" (normal).

        Returns
        -------
        DataFrame
            A row for each test: estimate, se, df, t, p. If one of the tests has several equations, the columns are F,
            num_df, den_df, p instead, for all.

        Raises
        ------
        DataError, FormulaError
            For contrasts of the wrong width and for unknown names.
        ModelError
            For an unknown `ddf`, for "kenward-roger" after ML, and for degrees of freedom (any `ddf` but "none") of a
            fit without a certified optimum.

        Notes
        -----
        Satterthwaite: Giesbrecht and Burns (1985), for joint tests Fai and Cornelius (1996), as in lmerTest. At a
        singular fit the rank of the covariance is held, so that a variance of zero counts as known; where lmerTest's
        answer is defined it is the same. Kenward and Roger (1997), as in pbkrtest, with weights as well.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.test()
                  estimate     se    df       t        p
        Intercept  251.405  6.825  17.0  36.838  1.2e-17
        Days        10.467  1.546  17.0   6.771  3.3e-06
        >>> result.test("Days = 10", ddf="kenward-roger")
                  estimate     se    df      t       p
        Days = 10   10.467  1.546  17.0  0.302  0.7661
        """
        if L is not None:
            self._by_position(L)
        tests = read_hypotheses(L, self._spec.exog_names, self._spec.dropped)
        by = self._denominator(ddf)
        table = _joint_table if any(len(one.R) > 1 for one in tests) else _single_table
        return table(tests, self._fit.beta, by)

    def _tests_of_coefficients(self, ddf: str) -> tuple[np.ndarray, np.ndarray | None]:
        """Standard errors of the coefficients and their degrees of freedom, None for normal tests."""
        by = self._denominator(ddf)
        variances = np.diag(by.covariance)
        errors = np.sqrt(np.where(variances >= 0, variances, np.nan))
        return errors, None if ddf == "none" else by.single(np.eye(self.k_fe))

    def anova(self, ddf: str = "satterthwaite", type: int | str = 3) -> pd.DataFrame:
        """F tests of the terms of the fixed part, as lmerTest's anova.

        Parameters
        ----------
        ddf : str
            As in `test`.
        type : int
            3: marginal, as SAS: means over the other factors with equal weights, whatever the coding of the categories.
            2: beyond all terms that do not contain the term. 1: beyond the terms before it.

        Returns
        -------
        DataFrame
            A row for each term but the intercept: sum_sq, mean_sq, num_df, den_df, F, p. The sums of squares are those
            that with ``scale`` give F.

        Raises
        ------
        ModelError
            For another `type` or `ddf`, for "kenward-roger" after ML, and for a fit without a certified optimum.

        Examples
        --------
        >>> import jmixed as jm
        >>> data = jm.datasets.load("machines")
        >>> result = jm.mixedlm("score ~ Machine + (1 | Worker/Machine)", data).fit()
        >>> result.anova()[["F", "num_df", "den_df", "p"]]
                      F num_df den_df       p
        Machine  20.576      2   10.0  0.0003
        """
        if not isinstance(type, int | str) or type not in TYPES:
            raise ModelError(f"anova: type is {type!r}; it must be 3 (marginal), 2 or 1 (sequential)")
        by = self._denominator(ddf)
        contrasts = self._term_contrasts(TYPES[type])
        table = _table_of_F(contrasts, [by.joint(L, L @ self._fit.beta) for L in contrasts.values()])
        mean = table["F"] * self.scale
        table.insert(0, "sum_sq", mean * table["num_df"])
        table.insert(1, "mean_sq", mean)
        return table.reindex(columns=["sum_sq", "mean_sq", "num_df", "den_df", "F", "p"])

    @cached_property
    def _terms(self) -> tuple[CompleteTerms, np.ndarray, list[bool]]:
        """The terms and X by their common triangular factor, all that contrasts need; which terms are constant."""
        self._need_data("anova")
        complete = complete_terms(self._spec)
        k = complete.values.shape[1]
        triangle = np.asarray(np.linalg.qr(np.hstack([complete.values, self._spec.X]), mode="r"))
        constant = [np.ptp(complete.values[:, complete.term == t]) == 0 for t in range(len(complete.names))]
        return replace(complete, values=triangle[:, :k]), triangle[:, k:], constant

    def _term_contrasts(self, kind: int) -> dict[str, np.ndarray]:
        """Contrasts of every term but the intercept, by its name."""
        complete, X, constant = self._terms
        # With a single term all types are one.
        kind = 1 if constant.count(False) <= 1 else kind
        found = term_contrasts(X, complete.values, complete.term, complete.basis, complete.contained_in, kind)
        named = zip(complete.names, found, constant, strict=True)
        return {name: L for name, L, only in named if len(L) and not only}

    def vcov_variance(self, scale: str = "sd") -> pd.DataFrame:
        """Covariance of the variance parameters, from the exact observed information.

        Parameters
        ----------
        scale : str
            "sd": standard deviations and correlations of the random effects and sigma, named as in `confint`.
            "theta": the relative covariance factors and sigma.

        Returns
        -------
        DataFrame (k, k)
            NaN for what has no standard error: a standard deviation of zero, a correlation of one, all of theta of a
            term that is singular.

        Raises
        ------
        ModelError
            For another `scale`.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> import numpy as np
        >>> np.sqrt(np.diag(result.vcov_variance())).round(3).tolist()
        [5.836, 0.325, 1.248, 1.508]
        """
        structures = self.model.design.layout.terms
        if scale == "sd":
            names = [part.name for part in all_components(self._spec, self._fit)]
            found = standard_deviations(self._curvature, structures, self._fit.theta)
        elif scale == "theta":
            names = [*self.model.theta_names, "sigma"]
            found = theta_and_sigma(self._curvature, structures, self._fit.theta)
        else:
            raise ModelError(f"vcov_variance: scale is {scale!r}; use 'sd' or 'theta'")
        return pd.DataFrame(found.covariance, index=names, columns=names)


def read_hypotheses(L, names: Sequence[str], dropped: Sequence[str] = ()) -> list[Hypothesis]:
    """The tests that a user's `L` asks for: see `SmallSampleTests.test`.

    Parameters
    ----------
    L : optional
    names : sequence of str
        Of the p coefficients.
    dropped : sequence of str
        Of the columns that were left out as redundant.

    Returns
    -------
    list of Hypothesis
    """
    if L is None:
        return [Hypothesis(name, row[None], np.zeros(1)) for name, row in zip(names, np.eye(len(names)), strict=True)]
    if isinstance(L, Mapping) and not all(isinstance(right, Real) for right in L.values()):
        return [_one(value, names, dropped)._replace(label=str(name)) for name, value in L.items()]
    if isinstance(L, list | tuple) and len(L) and all(isinstance(part, str) for part in L):
        return [_one(text, names, dropped) for text in L]
    return [_one(L, names, dropped)]


def _one(L, names, dropped) -> Hypothesis:
    """One test, of one or several equations."""
    if isinstance(L, str | Mapping):
        R, q = hypotheses(L, names, dropped)
        require_consistent(R, q)
        return Hypothesis(L if isinstance(L, str) else _described(R, q, names), R, q)
    matrix, right = L if isinstance(L, tuple) and len(L) == 2 and np.ndim(L[0]) > 0 else (L, 0.0)
    try:
        R, q = np.atleast_2d(np.asarray(by_name(matrix, names), FLOAT)), np.asarray(right, FLOAT)
    except (TypeError, ValueError) as error:
        raise DataError(f"test: the contrasts are no array of numbers ({error})") from error
    if R.ndim != 2 or R.shape[1] != len(names) or not len(R):
        raise DataError(
            f"test: contrasts need {len(names)} columns, one for each of {list(names)}; they have the shape "
            f"{np.shape(matrix)}"
        )
    if q.size not in (1, len(R)):
        raise DataError(f"test: the right-hand side has {q.size} values for {len(R)} contrasts")
    if not np.all(np.isfinite(R)) or not np.all(np.any(R != 0, axis=1)):
        raise DataError("test: a contrast must have finite weights that are not all zero")
    q = np.broadcast_to(q.reshape(-1), len(R))
    require_consistent(R, q)
    return Hypothesis(_described(R, q, names), R, q)


def _described(R, q, names) -> str:
    """Equations as text."""
    texts = []
    for row, value in zip(R, q, strict=True):
        parts = [f"{weight:+g}*{name}" for weight, name in zip(row, names, strict=True) if weight]
        left = " ".join(parts).replace("+1*", "+").replace("-1*", "-").removeprefix("+")
        texts.append(f"{left} = {value:g}")
    return ", ".join(texts)


def _single_table(tests, beta, by) -> pd.DataFrame:
    R = np.vstack([np.zeros((0, len(beta))), *(one.R for one in tests)])
    q = np.concatenate([np.zeros(0), *(one.q for one in tests)])
    estimate, df = R @ beta, by.single(R)
    se = np.sqrt(np.diag(contrast_covariance(R, by.covariance)))
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(se > 0, (estimate - q) / se, np.nan)
    columns = {"estimate": estimate, "se": se, "df": df, "t": t, "p": tails.p_of_t(t, df)}
    return noted(pd.DataFrame(columns, index=[one.label for one in tests]))


def _joint_table(tests, beta, by) -> pd.DataFrame:
    found = [by.joint(one.R, one.R @ beta - one.q) for one in tests]
    return _table_of_F([one.label for one in tests], found)


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
