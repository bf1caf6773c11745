"""Families by the words by which they are called."""

from jmixed.errors import ModelError
from jmixed.families.binomial import BetaBinomial, Binomial
from jmixed.families.continuous import Gaussian, StudentT
from jmixed.families.counts import NegativeBinomial, NegativeBinomial1, Poisson
from jmixed.families.family import Family
from jmixed.families.ordinal import Ordinal
from jmixed.families.positive import Gamma
from jmixed.families.proportions import Beta

FAMILIES: dict[str, type[Family]] = {
    "binomial": Binomial,
    "poisson": Poisson,
    "nbinom2": NegativeBinomial,
    "nbinom1": NegativeBinomial1,
    "gamma": Gamma,
    "beta": Beta,
    "betabinomial": BetaBinomial,
    "student": StudentT,
    "ordinal": Ordinal,
    "gaussian": Gaussian,
}
"""The families, by name."""

SYNONYMS = {
    "bernoulli": "binomial",
    "negativebinomial": "nbinom2",
    "nb2": "nbinom2",
    "negativebinomial1": "nbinom1",
    "nb1": "nbinom1",
    "t": "student",
    "studentt": "student",
    "cumulative": "ordinal",
    "normal": "gaussian",
}
"""Other words for them."""


def family_of(family: str | Family | type[Family]) -> Family:
    """The family that a word or a class stands for, with its usual link; a family is itself."""
    if isinstance(family, Family):
        return family
    if isinstance(family, type) and issubclass(family, Family):
        return family()
    word = str(family).lower().replace("_", "").replace("-", "").replace(" ", "")
    word = SYNONYMS.get(word, word)
    if word not in FAMILIES:
        raise ModelError(f"family is {family!r}; it must be one of {', '.join(FAMILIES)}, or an object of jm.families")
    return FAMILIES[word]()
