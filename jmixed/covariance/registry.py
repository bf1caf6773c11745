"""The covariance structures that there are, by the words that models are stated with."""

from collections.abc import Callable
from functools import partial

from jmixed.covariance.autoregressive import Autoregressive
from jmixed.covariance.compound import CompoundSymmetry
from jmixed.covariance.diagonal import Diagonal
from jmixed.covariance.identity import Identity
from jmixed.covariance.structure import Structure
from jmixed.covariance.toeplitz import Toeplitz
from jmixed.covariance.unstructured import Unstructured

STRUCTURES: dict[str, Callable[[int, int | None], Structure]] = {
    "unstructured": Unstructured,
    "identity": Identity,
    "diag": Diagonal,
    "cs": CompoundSymmetry,
    "homcs": partial(CompoundSymmetry, homogeneous=True),
    "ar1": partial(Autoregressive, homogeneous=True),
    "hetar1": Autoregressive,
    "toep": Toeplitz,
}


def structure_of(word: str, columns: int, intercept: int | None = None) -> Structure:
    """The covariance structure of a random-effects term with so many columns, by its word.

    `intercept` is the position of a constant column.
    """
    return STRUCTURES[word](columns, intercept)
