"""Words for covariances: before a bar, as in ``cs(0 + f | g)``, and of residuals, as in ``ar1(visit | subject)``.

What a word asks of columns or positions is said here once, beside it.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from jmixed.errors import ModelError

UNSTRUCTURED = "unstructured"
ONE_VARIANCE = "identity"
"""The word for columns that share one variance; `jmixed.covariance.registry` knows what it means."""


@dataclass(frozen=True)
class Word:
    """What a word before a bar asks for.

    Attributes
    ----------
    structure : str
        A word of `jmixed.covariance.registry`.
    means : str
    least, most : int
        Columns that it can have.
    ordered : bool
        Whether the columns are positions one after the other.
    one_variance : bool
        Whether all columns share their variance.
    beyond : str
        The word for more columns than `most`, if there is one.
    entries : str
        Which entries of the covariance vary freely: "each" by itself, each of the "variances", or "alike", variances
        together and covariances together; "" where these are no linear space, and of components.
    linear : int
        Columns up to which that is so.
    """

    structure: str
    means: str
    least: int = 1
    most: int = 10**9
    ordered: bool = False
    one_variance: bool = False
    beyond: str = ""
    entries: Literal["each", "variances", "alike", ""] = ""
    linear: int = 10**9


WORDS = {
    "us": Word(UNSTRUCTURED, "unstructured, as without a word", entries="each"),
    "diag": Word("diag", "a variance for each column", entries="variances"),
    "homdiag": Word(ONE_VARIANCE, "one variance", one_variance=True),
    "cs": Word("cs", "one correlation, a variance for each column", 2, 50, beyond="homcs", entries="each", linear=2),
    "homcs": Word("homcs", "one correlation, one variance", 2, 200, one_variance=True, entries="alike"),
    "ar1": Word(
        "ar1", "autoregressive, one variance", 2, 200, ordered=True, one_variance=True, entries="alike", linear=2
    ),
    "hetar1": Word(
        "hetar1",
        "autoregressive, a variance for each column",
        2,
        50,
        ordered=True,
        beyond="ar1",
        entries="each",
        linear=2,
    ),
    "toep": Word(
        "toep",
        "a correlation for each distance, a variance for each column",
        2,
        50,
        ordered=True,
        beyond="ar1",
        entries="each",
        linear=2,
    ),
}
"""The words, in the order in which messages list them."""

OF_STRUCTURE = {meaning.structure: meaning for meaning in WORDS.values()}
"""The same by structure."""

PAGE = "formula.md#covariance-structures"


@dataclass(frozen=True)
class ResidualWord:
    """What a word for residuals asks for.

    Attributes
    ----------
    structure : str
        A word of `jmixed.residual.registry`.
    by_position : bool
        Whether each position has its variance.
    positions : str
        What they are: "times", "steps" where they are numbers, or "labels".
    ordered : bool
        Whether it matters which labels are neighbours.
    correlations : str
        What has one of its own, of numbered visits: "pairs" of them, or "lags"; "" where visits have no number.
    holds : str
        The random effects of the same groups that say nothing more: "intercepts", "all", or "".
    elsewhere : tuple of str
        What other packages call it, in lower case.
    """

    structure: str
    by_position: bool = False
    positions: Literal["times", "steps", "labels"] = "labels"
    ordered: bool = False
    correlations: Literal["pairs", "lags", ""] = ""
    holds: Literal["intercepts", "all", ""] = ""
    elsewhere: tuple[str, ...] = ()


_AR1 = ResidualWord("ar1", positions="steps", ordered=True, elsewhere=("corar1",))
_CS = ResidualWord("cs", holds="intercepts", elsewhere=("corcompsymm", "exchangeable"))
_TOEP = ResidualWord("toep", ordered=True, correlations="lags", elsewhere=("toeplitz", "homtoep"))

RESIDUALS = {
    "ar1": _AR1,
    "car1": ResidualWord("car1", positions="times", elsewhere=("corcar1", "corexp", "exp", "ou", "sp_exp")),
    "cs": _CS,
    "toep": _TOEP,
    "us": ResidualWord(
        "us", by_position=True, correlations="pairs", holds="all", elsewhere=("un", "unstructured", "corsymm")
    ),
    "ar1h": replace(_AR1, by_position=True, elsewhere=("arh1", "hetar1")),
    "csh": replace(_CS, by_position=True, elsewhere=("hcs", "hetcs")),
    "toeph": replace(_TOEP, by_position=True, elsewhere=()),
}
"""The words for residuals, in the order in which messages list them."""


def listed() -> str:
    """All words with what they mean."""
    return ", ".join(f"{word} ({meaning.means})" for word, meaning in WORDS.items())


def require_columns(
    word: str, label: str, count: int, factors: Sequence[tuple[str, ...]], categories: Collection[str]
) -> None:
    """So many columns, `count`, as a structure can have, of effects whose terms have these factors.

    `categories` says which of the factors are categories.
    """
    meaning = WORDS[word]
    if meaning.ordered and not (len(factors) == 1 and len(factors[0]) == 1 and factors[0][0] in categories):
        numeric = next((f for term in factors for f in term if f not in categories and f != "1"), None)
        odd = "an intercept" if ("1",) in factors else "several terms" if len(factors) > 1 else "an interaction"
        what = f"{numeric} is a column of numbers" if numeric else f"here is {odd}"
        known = next((f for term in factors for f in term if f in categories), None)
        write = f"C({numeric})" if numeric and numeric.isidentifier() else known or "C(time)"
        raise ModelError(
            f"{label!r}: {word} runs over the levels of one category in their order, and {what}. Write "
            f"{word}(0 + {write} | {label.rpartition('|')[2].strip(' )')})",
            page=PAGE,
        )
    if count < meaning.least:
        raise ModelError(
            f"{label!r} has {'one column' if count else 'no columns'}, and {word} is about several: {meaning.means}. "
            f"Use a category, {word}(0 + f | g), or leave the word {word} out",
            page=PAGE,
        )
    if count > meaning.most:
        other = meaning.beyond
        alike = f"{other}, which has one variance, takes up to {WORDS[other].most}; or " if other else ""
        raise ModelError(
            f"{label!r} has {count} columns, and {word} takes up to {meaning.most}: {alike}use fewer levels (wider "
            "intervals of time), or a polynomial or a spline of time as columns of an ordinary term",
            page=PAGE,
        )
