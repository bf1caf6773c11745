"""Tests of linear hypotheses R b = q: normal, t, chi-square and F."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from jmixed.errors import ArgumentError, DataError
from jmixed.inference import tails
from jmixed.reports.printed import Shown, as_text
from jmixed.runtime.arguments import checked


class Values(np.ndarray):
    """An array (k,) whose single entry, if it has one only, is a number as well: for reports and formats."""

    def __float__(self) -> float:
        return float(self.item())

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.size == 1 else np.asarray(self), spec)

    def __round__(self, places: int | None = None):
        return round(self.item(), places)

    def __repr__(self) -> str:
        return repr(np.asarray(self))


@checked
@dataclass(frozen=True, eq=False, repr=False)
class ContrastTest(Shown):
    """Tests of linear hypotheses R b = q: of the rows of R one by one, of all together, or of several sets of rows.

    Attributes
    ----------
    statistic, pvalue : arrays (k,), or float
        Of one joint test they are numbers. Those of a single row can be used as numbers: ``float(test.pvalue)``,
        ``f"{test.pvalue:.3f}"``.
    distribution : str
        "norm" or "t": of rows one by one, (R b - q) / sd. "chi2", or "F" (then the statistic is divided by the number
        of constraints): of rows together.
    df_num : int, or int array (k,)
        Numbers of independent constraints.
    df_denom : float
        Residual degrees of freedom, for "t" and "F"; of a joint test by "chi2" the number of constraints.
    names : tuple of str
        Labels of the tests.
    effect, sd : arrays (k,) or None
        Estimate of R b and its standard error, where rows are tested one by one.
    """

    statistic: Any
    pvalue: Any
    distribution: Literal["norm", "t", "chi2", "F"]
    df_num: Any
    df_denom: float
    names: tuple[str, ...]
    effect: Any = None
    sd: Any = None

    @property
    def tvalue(self) -> np.ndarray:
        """The statistics of rows one by one, array (k,).

        Raises `AttributeError` for a joint test.
        """
        if self.effect is None:
            raise AttributeError("tvalue belongs to tests of rows one by one; this is a joint test: read .statistic")
        return self.statistic

    @property
    def fvalue(self) -> float:
        """The statistic of an F test.

        Raises `AttributeError` for a chi-square test, and for rows one by one.
        """
        if self.distribution != "F":
            kind = "a chi-square test" if self.distribution == "chi2" else "a test of rows one by one"
            raise AttributeError(f"fvalue belongs to an F test; this is {kind}: read .statistic")
        return self.statistic

    @property
    def table(self) -> pd.DataFrame:
        """The tests as rows: columns statistic, pvalue, df_constraint."""
        columns = {"statistic": self.statistic, "pvalue": self.pvalue, "df_constraint": self.df_num}
        return pd.DataFrame({name: np.atleast_1d(values) for name, values in columns.items()}, index=list(self.names))

    @property
    def pvalues(self) -> np.ndarray:
        """The p-values, array (k,)."""
        return np.atleast_1d(self.pvalue)

    @property
    def df_constraints(self) -> np.ndarray:
        """Numbers of independent constraints, array (k,)."""
        return np.atleast_1d(self.df_num)

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Confidence limits of the effects at the level 1 - `alpha`, array (k, 2).

        Raises `AttributeError` for a joint test.
        """
        from scipy import special

        upper = tails.outer(alpha)
        if self.effect is None:
            raise AttributeError("conf_int belongs to tests of rows one by one; a joint test has no limits")
        quantile = special.stdtrit(self.df_denom, upper) if self.distribution == "t" else special.ndtri(upper)
        half = quantile * self.sd
        return np.column_stack([self.effect - half, self.effect + half])

    def summary_frame(self, xname: Sequence[str] | None = None, alpha: float = 0.05) -> pd.DataFrame:
        """Columns coef, std err, the statistic, its p-value and limits; of joint tests statistic, p-value and df.

        Raises `ArgumentError` for another number of labels than there are rows.

        Parameters
        ----------
        xname
            Labels of the rows.
        alpha
            The limits have level 1 - alpha.
        """
        if xname is not None and len(xname) != len(self.names):
            raise ArgumentError(f"xname has {len(xname)} labels for {len(self.names)} rows: give one for each")
        labels, letter = list(xname or self.names), self.distribution
        if self.effect is None:
            columns = {letter: self.statistic, f"P>{letter}": self.pvalue, "df constraint": self.df_num}
            columns |= {"df denom": self.df_denom} if letter == "F" else {}
            return pd.DataFrame({name: np.atleast_1d(values) for name, values in columns.items()}, index=labels)
        letter = "t" if letter == "t" else "z"
        limits = self.conf_int(alpha)
        columns = {
            "coef": self.effect,
            "std err": self.sd,
            letter: self.statistic,
            f"P>|{letter}|": self.pvalue,
            "Conf. Int. Low": limits[:, 0],
            "Conf. Int. Upp.": limits[:, 1],
        }
        return pd.DataFrame(columns, index=labels)

    def summary(self, xname: Sequence[str] | None = None, alpha: float = 0.05, title: str | None = None) -> str:
        """The table as text; of one joint test a line.

        `xname` and `alpha` are as in `summary_frame`, `title` is the first line.

        Examples
        --------
        >>> print(result.t_test("Days = 0").summary(["slope"]))
        Test for Constraints
                 coef std err      z    P>|z| [0.025  0.975]
        slope  10.467   1.546  6.771  1.3e-11  7.438  13.497
        >>> result.wald_test("Days = 0").summary()
        '<Wald test (chi2): statistic=45.853, p-value=1.275e-11, df_denom=1>'
        """
        if np.ndim(self.statistic) == 0:
            if self.distribution == "F":
                numbers = f"F={self.statistic:.6g}, p={self.pvalue:.4g}, df_denom={self.df_denom:.3g}"
                return f"<F test: {numbers}, df_num={self.df_num}>"
            numbers = f"statistic={self.statistic:.6g}, p-value={self.pvalue:.4g}"
            return f"<Wald test (chi2): {numbers}, df_denom={self.df_num}>"
        heading, frame = self._shown(xname, alpha)
        return f"{title or heading}\n{as_text(frame)}"

    def _shown(self, xname: Sequence[str] | None = None, alpha: float = 0.05) -> tuple[str, pd.DataFrame]:
        frame = self.summary_frame(xname, alpha)
        if self.effect is None:
            test = "F test" if self.distribution == "F" else "Wald test"
            return test if np.ndim(self.statistic) == 0 else f"{test}s of the terms", frame
        frame.columns = [*frame.columns[:4], f"[{alpha / 2:g}", f"{1 - alpha / 2:g}]"]
        return "Test for Constraints", frame

    def __str__(self) -> str:
        return self.summary()


def of_terms(tests: Sequence[tuple[str, ContrastTest]]) -> ContrastTest:
    """Named joint tests, all of one distribution, as one object."""
    if not tests:
        return ContrastTest(np.zeros(0), np.zeros(0), "chi2", np.zeros(0, int), np.nan, ())
    statistic, pvalue, df_num = (
        np.array([getattr(test, name) for _, test in tests]) for name in ("statistic", "pvalue", "df_num")
    )
    first, names = tests[0][1], tuple(name for name, _ in tests)
    return ContrastTest(statistic, pvalue, first.distribution, df_num, first.df_denom, names)


def contrast_test(
    R: np.ndarray, q: np.ndarray, estimate: np.ndarray, cov: np.ndarray, df: float, use_t: bool = False
) -> ContrastTest:
    """Test each row of R b = q, R (k, p), on its own: by the normal distribution, or by t with `df` degrees."""
    effect = R @ estimate
    sd = np.sqrt(np.einsum("ij,jk,ik->i", R, cov, R))
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(sd > 0, (effect - q) / sd, np.nan)
    pvalue = tails.p_of_t(statistic, np.full(len(R), df if use_t else np.inf))
    statistic, pvalue, effect, sd = (values.view(Values) for values in (statistic, pvalue, effect, sd))
    kind, count = "t" if use_t else "norm", np.ones(len(R), int)
    return ContrastTest(statistic, pvalue, kind, count, df, tuple(f"c{k}" for k in range(len(R))), effect, sd)


def wald_test(
    R: np.ndarray,
    q: np.ndarray,
    estimate: np.ndarray,
    cov: np.ndarray,
    df: float,
    use_f: bool = False,
    constraints: int | None = None,
) -> ContrastTest:
    """Test all rows of R b = q together: by chi-square, or by F with `df` denominator degrees of freedom.

    Redundant rows count once: the number of constraints is the rank of R cov R', unless it is given. NaN where nothing
    is tested.
    """
    from scipy import special

    covariance = R @ cov @ R.T
    if not np.all(np.isfinite(covariance)):
        raise DataError("a Wald test of a parameter without a standard error: leave that parameter out of r_matrix")
    scales = np.sqrt(np.diag(covariance))
    scales = np.where(scales > 0, scales, 1.0)
    correlation = covariance / np.outer(scales, scales)
    difference = (R @ estimate - q) / scales
    rank = int(np.linalg.matrix_rank(correlation, hermitian=True))
    count = rank if constraints is None else constraints
    statistic = float(difference @ np.linalg.pinv(correlation, hermitian=True) @ difference)
    kind, df_denom = ("F", df) if use_f else ("chi2", count)
    if not count:
        statistic = pvalue = np.nan
    elif use_f:
        statistic /= count
        pvalue = float(special.fdtrc(count, df, statistic))
    else:
        pvalue = float(special.chdtrc(count, statistic))
    return ContrastTest(statistic, pvalue, kind, count, df_denom, ("joint",))
