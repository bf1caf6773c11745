"""What people write in R, and what is written here in its place."""

import re

import numpy as np

from jmixed.errors import FormulaError
from jmixed.formulas.evaluate import vocabulary
from jmixed.formulas.marks import find, mark

FUNCTIONS = {
    **dict.fromkeys(("factor", "as.factor"), "categories are written C(x); a grouping factor needs no C()"),
    **dict.fromkeys(("interaction", "paste", "paste0"), "the combinations of a and b are written a:b"),
    **dict.fromkeys(("ordered", "as.ordered"), "an ordered category with polynomials is written C(x, contr.poly)"),
    "relevel": 'a reference level is written C(x, contr.treatment("level"))',
    "cbind": "successes and failures are the response of mixedglm(..., family='binomial')",
    "dummy": 'an indicator is written I(1 * (x == "level"))',
    "ifelse": "conditions are written np.where(condition, a, b)",
    "cut": "intervals are written pd.cut(x, ...), with pandas imported as pd",
    "c": "Python writes a list in brackets, [1, 2]",
    "ns": "the natural cubic splines of ns(x, df=3) are cr(x, df=3, constraints='center')",
    **dict.fromkeys(("as.numeric", "as.integer"), "numbers are made before: data['x'] = pd.to_numeric(data['x'])"),
    **dict.fromkeys(("as.character", "as.logical"), "the type of a column is changed before: data['x'].astype(...)"),
    "is.na": "missing values are marked by np.isnan(x)",
    "s": "smooth terms are none of a mixed model's; splines are written bs(x, df=4) or cr(x, df=4)",
    "t2": "smooth terms are none of a mixed model's; splines are written bs(x, df=4) or cr(x, df=4)",
}
"""Functions of R, and what to write."""

CONSTANTS = {
    "TRUE": "Python writes True",
    "FALSE": "Python writes False",
    "NULL": "Python writes None",
    "NA": "Python writes np.nan",
    "Inf": "Python writes np.inf",
}

_CODINGS = "treatment, sum, helmert, poly, diff and SAS"


def hint(name: str) -> str:
    """What to write in the place of a name that is none here, after a semicolon; nothing if it is not known from R.

    Examples
    --------
    >>> from jmixed.formulas.r_words import hint
    >>> hint("factor"), hint("TRUE"), hint("sqrt"), hint("xyz")
    ('; categories are written C(x); a grouping factor needs no C()', '; Python writes True', '; write np.sqrt', '')
    """
    known = FUNCTIONS.get(name) or CONSTANTS.get(name)
    if not known and isinstance(getattr(np, name, None), np.ufunc):
        known = f"write np.{name}"
    return f"; {known}" if known else ""


def refuse_r(code: str, text: str) -> None:
    """Refuse what R writes in a call, `code` in the formula `text`, and Python could not read or would misread."""
    for name in re.findall(r"(?<![\w.`'\"])([A-Za-z]\w*\.\w+)\s*\(", code):
        if name in FUNCTIONS:
            raise FormulaError(mark(f"{name!r} is a function of R{hint(name)}", text, find(name, text)))
    for name in re.findall(r"(?<![\w.`'\"])contr\.(\w+)", code):
        if not hasattr(vocabulary()["contr"], name):
            advice = "; that of MASS is contr.diff" if name == "sdif" else ""
            message = f"there is no coding contr.{name}: there are {_CODINGS}{advice}"
            raise FormulaError(mark(message, text, find(f"contr.{name}", text)))
    coding = re.search(
        r"""(?<!\w)C\(.*,\s*(["']?)(?:contr\.)?(treatment|sum|helmert|poly|diff|sdif|SAS)\1\s*\)""", code
    )
    if coding and not coding.group(0).rstrip(") ").endswith(f"contr.{coding.group(2)}"):
        message = f"a coding is written contr.{coding.group(2)}, without quotation marks"
        raise FormulaError(mark(message, text, find(coding.group(2), text)))
