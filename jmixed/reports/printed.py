"""How tables are printed: digits that mean something, within eighty columns; in a notebook as HTML."""

import html
import textwrap

import numpy as np
import pandas as pd

WIDTH = 80
"""Columns of a terminal."""
MANY = 60
"""Rows up to which a table is printed whole."""

MOST = 7
"""Decimals beyond which a number is written with its power of ten."""

ERRORS = ("se", "std.error", "std err", "bse")
BESIDE = {*ERRORS, "estimate", "coef", "bias", "lower", "upper", "conf.low", "conf.high"}
"""Columns in the unit of a row's estimate: they show as many decimals as its standard error needs."""
COUNTS = {"npar", "nobs", "num_df", "den_df", "df", "Df", "df.residual", "df constraint", "df_constraint"}
LIKELIHOODS = {"AIC", "BIC", "logLik", "deviance", "REMLcrit", "objective"}
STATISTICS = {"t", "z", "F", "chi2", "Chisq", "statistic"}
PROBABILITIES = {"p", "pvalue", "p.value", "P>|z|", "P>|t|", "P>chi2", "P>F"}


def fixed(value: float, places: int, least: float = 0.5) -> str:
    """A number with so many decimals, or with four digits where these would bloat it, or hide it.

    What is smaller than `least` units of the last decimal is hidden; zero where decimals that show a standard error
    show what matters of the number beside it.

    Examples
    --------
    >>> from jmixed.reports.printed import fixed
    >>> fixed(2.5, 3), fixed(1e-9, 3), fixed(1e-9, 3, least=0), fixed(float("nan"), 3)
    ('2.500', '1.000e-09', '0.000', 'NaN')
    """
    size = abs(value)
    if not np.isfinite(value):
        return "NaN" if np.isnan(value) else f"{value}"
    if size >= 1e10 or (size > 0 and places > MOST) or 0 < size < least * 10.0**-places:
        return f"{value:.3e}"
    return f"{round(float(value), places) + 0.0:.{places}f}"


def beside(value: float, error: float) -> str:
    """A number with as many decimals as its standard error needs."""
    return fixed(value, _decimals(error), least=0)


def _decimals(error: float) -> int:
    """Decimals that show three digits of a standard error, and three decimals at least: 3 of 6.8, 5 of 0.008265."""
    if not np.isfinite(error) or error <= 0:
        return 3
    return int(np.clip(2 - np.floor(np.log10(error)), 3, 12))


def probability(value: float) -> str:
    """A p-value: four decimals, and two digits of a smaller one."""
    return f"{value:.1e}" if 0 < value < 1e-4 else fixed(value, 4)


def texts(table: pd.DataFrame) -> pd.DataFrame:
    """The cells of a table as they are printed."""
    columns = [_column(table, k) for k in range(table.shape[1])]
    cells = np.array(columns, object).T.reshape(table.shape)
    return pd.DataFrame(cells, index=table.index, columns=table.columns)


def _column(table, k) -> list[str]:
    """The texts of one column: its name says what it holds."""
    name, values = table.columns[k], table.iloc[:, k]
    if values.dtype.kind != "f":
        return ["" if pd.isna(value) else str(value) for value in values]
    numbers = values.to_numpy(dtype=float)
    if name in PROBABILITIES:
        return [probability(value) for value in numbers]
    if name in COUNTS:
        whole = np.all(~np.isfinite(numbers) | (numbers == np.round(numbers)))
        return [fixed(value, 0 if whole and name != "den_df" and name != "df" else 1) for value in numbers]
    if name in LIKELIHOODS:
        return [fixed(value, 2) for value in numbers]
    if name in STATISTICS:
        return [fixed(value, 3) for value in numbers]
    if name in BESIDE or str(name).startswith("[") or str(name).endswith("]"):
        known = _errors(table)
        errors = np.where(np.isfinite(known) & (known > 0), known, np.abs(numbers))
        return list(map(beside, numbers, errors))
    sizes = np.abs(numbers[np.isfinite(numbers) & (numbers != 0)])
    if not len(sizes):
        return [fixed(value, 3) for value in numbers]
    needed = 2 - np.floor(np.log10(max(sizes.min(), 1e-5 * sizes.max())))
    places = int(np.clip(needed, 3 if sizes.max() < 1e6 else 0, 12))
    return [fixed(value, places) for value in numbers]


def _errors(table) -> np.ndarray:
    """A standard error for every row, or what the interval's width says of one; NaN without either."""
    # Of tables that somebody has put side by side it would not be clear which.
    names = {*table} if table.columns.is_unique else set()
    error = next((table[name] for name in ERRORS if name in names), None)
    if error is None and {"lower", "upper"} <= names:
        error = (table["upper"] - table["lower"]) / 4
    return np.full(len(table), np.nan) if error is None else error.to_numpy(dtype=float)


def as_text(table: pd.DataFrame, note: str = "") -> str:
    """A table as text of at most eighty columns, with a note below it.

    Labels that leave no room for the columns become numbers, and stand below.
    """
    notes = [] if not note else note.split("\n")
    if len(table) > MANY:
        body = pd.DataFrame(table).to_string(max_rows=MANY, min_rows=10, line_width=WIDTH, show_dimensions=True)
    else:
        cells = texts(table)
        body, labels = cells.to_string(), [str(label) for label in table.index]
        if max(map(len, body.splitlines())) > WIDTH:
            if max(map(len, labels)) > 3:
                cells.index = pd.RangeIndex(1, len(cells) + 1)
                notes = [*(f"{k}: {label}" for k, label in enumerate(labels, 1)), *notes]
            body = cells.to_string(line_width=WIDTH)
    return "\n".join([body, *map(wrapped, notes)])


def wrapped(line: str) -> str:
    """A sentence, broken between words."""
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)


def latex(text: object) -> str:
    """A text as LaTeX prints it."""
    escapes = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escapes |= {character: "\\" + character for character in "&%$#_{}"}
    escapes |= {"|": r"\textbar{}", "<": r"\textless{}", ">": r"\textgreater{}"}
    return "".join(escapes.get(character, character) for character in str(text))


def as_html(table: pd.DataFrame, note: str = "") -> str:
    """A table as HTML, with a note below it; every cell is escaped."""
    body = pd.DataFrame(table).to_html(max_rows=MANY) if len(table) > MANY else texts(table).to_html()
    return body + "".join(f"<p>{html.escape(line)}</p>" for line in note.split("\n") if line)


class Noted(pd.DataFrame):
    """A table that prints with sensible digits, and a remark below itself, kept in ``attrs["note"]``."""

    @property
    def _constructor(self):
        return Noted

    def __repr__(self) -> str:
        return as_text(self, self.attrs.get("note", ""))

    def _repr_html_(self) -> str:
        return as_html(self, self.attrs.get("note", ""))


def noted(table: pd.DataFrame, note: str = "") -> pd.DataFrame:
    """The table, to be printed with sensible digits and the remark."""
    table = Noted(table)
    if note:
        table.attrs["note"] = note
    return table


class Shown:
    """An object that prints as a title and a table, and shows as HTML in a notebook."""

    def _shown(self) -> tuple[str, pd.DataFrame]:
        raise NotImplementedError

    def __repr__(self) -> str:
        title, table = self._shown()
        return f"{wrapped(title)}\n{as_text(table)}"

    def _repr_html_(self) -> str:
        title, table = self._shown()
        return f"<p>{html.escape(title)}</p>{as_html(table)}"
