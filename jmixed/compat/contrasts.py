"""Tests of linear hypotheses R b = q: normal, t, chi-square and F."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jmixed.errors import ArgumentError, DataError
from jmixed.inference import tails
from jmixed.reports.printed import Shown, as_text
from jmixed.runtime.arguments import checked
from jmixed.runtime.facts import Facts


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
    """Tests of single linear combinations, one per row of R.

    Attributes
    ----------
    effect, sd, tvalue, pvalue : arrays (k,)
        Estimate of R b, its standard error, (R b - q) / sd, and the two-sided p-value. Those of one combination are
        numbers too: ``float(test.pvalue)``, ``f"{test.pvalue:.3f}"``.
    df_denom : float
        Residual degrees of freedom; used when the distribution is "t".
    distribution : str
        "norm" or "t".
    names : tuple of str
        Labels of the rows.
    """

    effect: np.ndarray
    sd: np.ndarray
    tvalue: np.ndarray
    pvalue: np.ndarray
    df_denom: float
    distribution: str
    names: tuple[str, ...]

    @property
    def statistic(self) -> np.ndarray:
        """The same as ``tvalue``, array (k,).

        Examples
        --------
        >>> result.t_test("Days = 0").statistic.round(2)
        array([6.77])
        """
        return self.tvalue

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Confidence limits of the effects.

        Parameters
        ----------
        alpha : float
            The level is 1 - alpha.

        Returns
        -------
        array (k, 2)

        Examples
        --------
        >>> result.t_test("Days = 0").conf_int().round(2)
        array([[ 7.44, 13.5 ]])
        """
        from scipy import special

        upper = tails.outer(alpha)
        quantile = special.stdtrit(self.df_denom, upper) if self.distribution == "t" else special.ndtri(upper)
        half = quantile * self.sd
        return np.column_stack([self.effect - half, self.effect + half])

    def summary_frame(self, xname=None, alpha: float = 0.05) -> pd.DataFrame:
        """The table as numbers: coef, std err, statistic, p-value and confidence limits.

        Parameters
        ----------
        xname : sequence of str, optional
            Labels of the rows, by default c0, c1, ...
        alpha : float
            The limits have level 1 - alpha.

        Returns
        -------
        DataFrame

        Raises
        ------
        ArgumentError
            For another number of labels than there are rows.

        Examples
        --------
        >>> result.t_test("Days = 0").summary_frame(["slope"]).round(2).loc["slope"].tolist()
        [10.47, 1.55, 6.77, 0.0, 7.44, 13.5]
        """
        if xname is not None and len(xname) != len(self.effect):
            raise ArgumentError(f"xname has {len(xname)} labels for {len(self.effect)} rows: give one for each")
        letter = "t" if self.distribution == "t" else "z"
        limits = self.conf_int(alpha)
        columns = {
            "coef": self.effect,
            "std err": self.sd,
            letter: self.tvalue,
            f"P>|{letter}|": self.pvalue,
            "Conf. Int. Low": limits[:, 0],
            "Conf. Int. Upp.": limits[:, 1],
        }
        return pd.DataFrame(columns, index=list(xname or self.names))

    def summary(self, xname=None, alpha: float = 0.05, title: str | None = None) -> str:
        """The table as text.

        Parameters
        ----------
        xname : sequence of str, optional
            Labels of the rows, by default c0, c1, ...
        alpha : float
            The limits have level 1 - alpha.
        title : str, optional
            The first line.

        Returns
        -------
        str

        Examples
        --------
        >>> print(result.t_test("Days = 0").summary(["slope"]))
        Test for Constraints
                 coef std err      z    P>|z| [0.025  0.975]
        slope  10.467   1.546  6.771  1.3e-11  7.438  13.497
        """
        heading, frame = self._shown(xname, alpha)
        return f"{title or heading}\n{as_text(frame)}"

    def _shown(self, xname=None, alpha: float = 0.05) -> tuple[str, pd.DataFrame]:
        frame = self.summary_frame(xname, alpha)
        frame.columns = [*frame.columns[:4], f"[{alpha / 2:g}", f"{1 - alpha / 2:g}]"]
        return "Test for Constraints", frame


@checked
@dataclass(frozen=True, repr=False)
class WaldTest(Facts):
    """A joint test of all rows of R b = q.

    Attributes
    ----------
    statistic, pvalue : float
    distribution : str
        "chi2", or "F" (then the statistic is divided by the number of constraints).
    df_num : int
        Number of independent constraints.
    df_denom : float
        Denominator degrees of freedom of F; for "chi2" the number of constraints.
    """

    statistic: float
    pvalue: float
    distribution: str
    df_num: int
    df_denom: float

    @property
    def fvalue(self) -> float:
        """The statistic of an F test.

        Raises
        ------
        AttributeError
            For a chi-square test.

        Examples
        --------
        >>> round(result.f_test("Days = 0").fvalue, 2)
        45.85
        """
        if self.distribution != "F":
            raise AttributeError("fvalue belongs to an F test; this is a chi-square test: read .statistic")
        return self.statistic

    def summary(self) -> str:
        """The test in one line.

        Returns
        -------
        str

        Examples
        --------
        >>> result.wald_test("Days = 0").summary()
        '<Wald test (chi2): statistic=45.853, p-value=1.275e-11, df_denom=1>'
        """
        if self.distribution == "F":
            numbers = f"F={self.statistic:.6g}, p={self.pvalue:.4g}, df_denom={self.df_denom:.3g}"
            return f"<F test: {numbers}, df_num={self.df_num}>"
        numbers = f"statistic={self.statistic:.6g}, p-value={self.pvalue:.4g}"
        return f"<Wald test (chi2): {numbers}, df_denom={self.df_num}>"

    def _facts(self) -> tuple[str, dict[str, object]]:
        if self.distribution == "F":
            degrees = {"df, numerator": self.df_num, "df, denominator": float(self.df_denom)}
            return "F test", {"F": self.statistic, **degrees, "p": self.pvalue}
        return "Wald test", {"chi2": self.statistic, "df": self.df_num, "p": self.pvalue}

    def __str__(self) -> str:
        return self.summary()


@checked
@dataclass(frozen=True, eq=False, repr=False)
class WaldTable(Shown):
    """Joint tests of several hypotheses.

    Attributes
    ----------
    table : DataFrame
        One row per hypothesis: statistic, pvalue, df_constraint.
    distribution : str
        "chi2" or "F".
    """

    table: pd.DataFrame
    distribution: str

    @property
    def statistic(self) -> np.ndarray:
        """The statistics, array (k,).

        Examples
        --------
        >>> result.wald_test_terms().statistic.round(2)
        array([1357.06,   45.85])
        """
        return self.table["statistic"].to_numpy()

    @property
    def pvalues(self) -> np.ndarray:
        """The p-values, array (k,).

        Examples
        --------
        >>> result.wald_test_terms().pvalues.round(3)
        array([0., 0.])
        """
        return self.table["pvalue"].to_numpy()

    @property
    def df_constraints(self) -> np.ndarray:
        """Numbers of constraints, array (k,).

        Examples
        --------
        >>> result.wald_test_terms().df_constraints
        array([1, 1])
        """
        return self.table["df_constraint"].to_numpy()

    def summary_frame(self) -> pd.DataFrame:
        """The table with the distribution in its headings.

        Returns
        -------
        DataFrame

        Examples
        --------
        >>> result.wald_test_terms().summary_frame().columns.tolist()
        ['chi2', 'P>chi2', 'df constraint']
        """
        names = {"statistic": self.distribution, "pvalue": f"P>{self.distribution}", "df_constraint": "df constraint"}
        return self.table.rename(columns=names)

    def _shown(self) -> tuple[str, pd.DataFrame]:
        return "Wald tests of the terms", self.summary_frame()

    def __str__(self) -> str:
        return as_text(self.summary_frame())


def wald_table(tests: Sequence[tuple[str, WaldTest]]) -> WaldTable:
    """Put named joint tests, all of one distribution, into a table.

    Parameters
    ----------
    tests : sequence of (name, WaldTest)
    """
    rows = [(test.statistic, test.pvalue, test.df_num) for _, test in tests]
    table = pd.DataFrame(rows, index=[name for name, _ in tests], columns=["statistic", "pvalue", "df_constraint"])
    return WaldTable(table, tests[0][1].distribution if tests else "chi2")


def contrast_test(R, q, estimate, cov, df: float, use_t: bool = False, names=None) -> ContrastTest:
    """Test each row of R b = q on its own.

    Parameters
    ----------
    R : array (k, p);  q : array (k,)
    estimate : array (p,);  cov : array (p, p)
    df : float
        Degrees of freedom, for ``use_t``.
    use_t : bool
        Refer to the t distribution rather than the normal.
    names : sequence of str, optional
        Labels of the rows; c0, c1, ... by default.

    Returns
    -------
    ContrastTest

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.compat.contrasts import contrast_test
    >>> test = contrast_test(np.eye(2), np.zeros(2), np.array([1.0, 2.0]), np.diag([1.0, 4.0]), df=10)
    >>> test.tvalue.tolist()
    [1.0, 1.0]
    """
    effect = R @ estimate
    sd = np.sqrt(np.einsum("ij,jk,ik->i", R, cov, R))
    difference = effect - q
    with np.errstate(divide="ignore", invalid="ignore"):
        tvalue = np.where(sd > 0, difference / sd, np.nan)
    from scipy import special

    tail = special.stdtr(df, -np.abs(tvalue)) if use_t else special.ndtr(-np.abs(tvalue))
    labels = tuple(names) if names is not None else tuple(f"c{k}" for k in range(len(R)))
    kind = "t" if use_t else "norm"
    return ContrastTest(
        effect.view(Values), sd.view(Values), tvalue.view(Values), (2 * tail).view(Values), df, kind, labels
    )


def wald_test(R, q, estimate, cov, df: float, use_f: bool = False, constraints: int | None = None) -> WaldTest:
    """Test all rows of R b = q together.

    Redundant rows count once: the number of constraints is the rank of R cov R'.

    Parameters
    ----------
    R : array (k, p);  q : array (k,)
    estimate : array (p,);  cov : array (p, p)
    df : float
        Denominator degrees of freedom, for ``use_f``.
    use_f : bool
        Refer to the F distribution rather than the chi-square.
    constraints : int, optional
        Number of constraints, if it should not be found by rank.

    Returns
    -------
    WaldTest
        NaN where nothing is tested.

    Raises
    ------
    DataError
        When a tested parameter has no standard error.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.compat.contrasts import wald_test
    >>> wald_test(np.eye(2), np.zeros(2), np.array([1.0, 2.0]), np.diag([1.0, 4.0]), df=10).statistic
    2.0
    """
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
    from scipy import special

    if not count:
        return WaldTest(float("nan"), float("nan"), "F" if use_f else "chi2", 0, df if use_f else 0)
    if use_f:
        statistic /= count
        return WaldTest(statistic, float(special.fdtrc(count, df, statistic)), "F", count, df)
    return WaldTest(statistic, float(special.chdtrc(count, statistic)), "chi2", count, count)
