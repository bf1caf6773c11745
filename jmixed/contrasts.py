"""Linear hypotheses R b = q: reading them from words or matrices, and their normal, t, chi-square and F tests."""

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from jmixed.errors import FormulaError
from jmixed.precision import FLOAT


def hypotheses(spec, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read linear hypotheses about named coefficients.

    Parameters
    ----------
    spec : str, sequence of str, mapping, array (k, p) or (p,), or tuple (R, q)
        ``"x1 = x2, x3 = 0"``, a list of such texts, ``{"x1 - x2": 0}``, or a matrix with one column per name.
    names : sequence of str
        Names of the p coefficients.

    Returns
    -------
    R : array (k, p)
    q : array (k,)

    Raises
    ------
    FormulaError
        When a text is not a linear equation in the names.
    ValueError
        When a matrix does not have p columns.

    Examples
    --------
    >>> from jmixed.contrasts import hypotheses
    >>> R, q = hypotheses("2 * x1 - x2 = 3", ["Intercept", "x1", "x2"])
    >>> R.tolist(), q.tolist()
    ([[0.0, 2.0, -1.0]], [3.0])
    """
    if isinstance(spec, str):
        return _read_texts([spec], names)
    if isinstance(spec, Mapping):
        return _read_texts([f"{left} = {right}" for left, right in spec.items()], names)
    if isinstance(spec, Sequence) and len(spec) > 0 and all(isinstance(part, str) for part in spec):
        return _read_texts(spec, names)
    if isinstance(spec, tuple) and len(spec) == 2 and np.ndim(spec[0]) > 0:
        R, q = np.atleast_2d(np.asarray(spec[0], FLOAT)), np.asarray(spec[1], FLOAT)
        if not (np.ndim(spec[0]) == 1 and q.ndim == 1 and len(q) == R.shape[1] > 1):
            return _checked(R, q, names)
    return _checked(np.atleast_2d(np.asarray(spec, FLOAT)), np.zeros(()), names)


def _checked(R, q, names):
    if R.ndim != 2 or R.shape[1] != len(names):
        raise ValueError(
            f"r_matrix should have {len(names)} columns, one for each of {list(names)}; its shape is {R.shape}"
        )
    if q.size not in (1, len(R)):
        raise ValueError(f"the right-hand side should have one value or {len(R)}, one per row; it has {q.size}")
    return R, np.broadcast_to(q.ravel() if q.size > 1 else q.reshape(-1)[:1], (len(R),)).astype(FLOAT)


def _read_texts(texts, names):
    rows = [row for text in texts for row in _read_text(text, names)]
    if not rows:
        raise FormulaError("an empty hypothesis: write an equation such as 'x1 = x2' or 'x1 = 0'")
    table = np.array(rows, FLOAT)
    return table[:, :-1], 0.0 - table[:, -1]


def _read_text(text, names):
    """Rows (coefficients, constant) of each equation, everything brought to the left."""
    # Names such as "C(g, Sum)[S.a]" hold commas and brackets: they become plain identifiers before anything is split.
    ordered = sorted(range(len(names)), key=lambda k: -len(names[k]))
    pattern = "|".join(rf"`{re.escape(names[k])}`|(?<![\w.`]){re.escape(names[k])}(?![\w.`\[(:])" for k in ordered)
    lookup = {name: k for k, name in enumerate(names)}
    marked = re.sub(pattern, lambda match: f"_v{lookup[match.group().strip('`')]}_", text) if names else text
    rows = []
    for part in filter(str.strip, marked.split(",")):
        enclosed = re.fullmatch(r"\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)\s*", part)
        part = enclosed.group(1) if enclosed else part
        sides = [_linear(side, len(names), text, names) for side in part.split("=")]
        if len(sides) == 1:
            sides.append(np.zeros(len(names) + 1))
        rows.extend(left - right for left, right in zip(sides[:-1], sides[1:], strict=True))
    return rows


def _linear(expression, p, text, names):
    """An expression such as ``2 * _v1_ - 3`` as a row (coefficients, constant)."""

    def refuse(why):
        return FormulaError(
            f"cannot read the hypothesis {text!r}: {why}. Write linear equations in {list(names)} separated by "
            "commas; put a name that holds spaces in backticks if need be"
        )

    def visit(node):
        match node:
            case ast.Constant(value=bool()):
                raise refuse("a truth value is no number")
            case ast.Constant(value=int() | float() as value):
                return np.append(np.zeros(p), float(value))
            case ast.Name(id=name) if re.fullmatch(r"_v\d+_", name):
                return np.eye(p + 1)[int(name[2:-1])]
            case ast.Name(id=name):
                raise refuse(f"{name!r} is not a coefficient")
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -visit(operand)
            case ast.UnaryOp(op=ast.UAdd(), operand=operand):
                return visit(operand)
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return visit(left) + visit(right)
            case ast.BinOp(left=left, op=ast.Sub(), right=right):
                return visit(left) - visit(right)
            case ast.BinOp(left=left, op=ast.Mult() | ast.Div(), right=right):
                return _product(visit(left), visit(right), isinstance(node.op, ast.Div), refuse)
        raise refuse(f"{ast.unparse(node)!r} is not linear")

    try:
        tree = ast.parse(expression.strip(), mode="eval")
    except SyntaxError as error:
        raise refuse("it is not an equation") from error
    return visit(tree.body)


def _product(left, right, divide, refuse):
    if divide:
        if np.any(right[:-1]) or right[-1] == 0:
            raise refuse("only division by a number other than zero is linear")
        return left / right[-1]
    if np.any(left[:-1]) and np.any(right[:-1]):
        raise refuse("a product of two coefficients is not linear")
    return left * right[-1] if not np.any(right[:-1]) else right * left[-1]


@dataclass(frozen=True, eq=False)
class ContrastTest:
    """Tests of single linear combinations, one per row of R.

    Attributes
    ----------
    effect, sd, tvalue, pvalue : arrays (k,)
        Estimate of R b, its standard error, (R b - q) / sd, and the two-sided p-value.
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
        """The same as ``tvalue``."""
        return self.tvalue

    def conf_int(self, alpha: float = 0.05) -> np.ndarray:
        """Confidence limits of the effects, array (k, 2), at level 1 - alpha."""
        from scipy import special

        upper = 1 - alpha / 2
        quantile = special.stdtrit(self.df_denom, upper) if self.distribution == "t" else special.ndtri(upper)
        half = quantile * self.sd
        return np.column_stack([self.effect - half, self.effect + half])

    def summary_frame(self, xname=None, alpha: float = 0.05) -> pd.DataFrame:
        """The table as numbers: coef, std err, statistic, p-value and confidence limits."""
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
        """The table as text."""
        frame = self.summary_frame(xname, alpha)
        frame.columns = [*frame.columns[:4], f"[{alpha / 2:g}", f"{1 - alpha / 2:g}]"]
        body = frame.to_string(float_format=lambda value: f"{value:.4f}")
        return f"{title or 'Test for Constraints'}\n{body}"

    def __str__(self) -> str:
        return self.summary()


@dataclass(frozen=True)
class WaldTest:
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
        """The statistic of an F test."""
        if self.distribution != "F":
            raise AttributeError("fvalue belongs to an F test; this is a chi-square test: read .statistic")
        return self.statistic

    def summary(self) -> str:
        """The test in one line."""
        if self.distribution == "F":
            numbers = f"F={self.statistic:.6g}, p={self.pvalue:.4g}, df_denom={self.df_denom:.3g}"
            return f"<F test: {numbers}, df_num={self.df_num}>"
        numbers = f"statistic={self.statistic:.6g}, p-value={self.pvalue:.4g}"
        return f"<Wald test (chi2): {numbers}, df_denom={self.df_num}>"

    __str__ = summary


@dataclass(frozen=True, eq=False)
class WaldTable:
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
        """The statistics, array (k,)."""
        return self.table["statistic"].to_numpy()

    @property
    def pvalues(self) -> np.ndarray:
        """The p-values, array (k,)."""
        return self.table["pvalue"].to_numpy()

    @property
    def df_constraints(self) -> np.ndarray:
        """Numbers of constraints, array (k,)."""
        return self.table["df_constraint"].to_numpy()

    def summary_frame(self) -> pd.DataFrame:
        """The table with the distribution in its headings."""
        names = {"statistic": self.distribution, "pvalue": f"P>{self.distribution}", "df_constraint": "df constraint"}
        return self.table.rename(columns=names)

    def __str__(self) -> str:
        return self.summary_frame().to_string()


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
    >>> from jmixed.contrasts import contrast_test
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
    return ContrastTest(effect, sd, tvalue, 2 * tail, df, "t" if use_t else "norm", labels)


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

    Raises
    ------
    ValueError
        When a tested parameter has no standard error.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.contrasts import wald_test
    >>> wald_test(np.eye(2), np.zeros(2), np.array([1.0, 2.0]), np.diag([1.0, 4.0]), df=10).statistic
    2.0
    """
    covariance = R @ cov @ R.T
    if not np.all(np.isfinite(covariance)):
        raise ValueError("a Wald test of a parameter without a standard error: leave that parameter out of r_matrix")
    scales = np.sqrt(np.diag(covariance))
    scales = np.where(scales > 0, scales, 1.0)
    correlation = covariance / np.outer(scales, scales)
    difference = (R @ estimate - q) / scales
    rank = int(np.linalg.matrix_rank(correlation, hermitian=True))
    count = rank if constraints is None else constraints
    statistic = float(difference @ np.linalg.pinv(correlation, hermitian=True) @ difference)
    from scipy import special

    if use_f:
        statistic /= count
        return WaldTest(statistic, float(special.fdtrc(count, df, statistic)), "F", count, df)
    return WaldTest(statistic, float(special.chdtrc(count, statistic)), "chi2", count, count)
