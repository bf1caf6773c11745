"""Residual structures by the words by which they are called."""

from jmixed.residual.autoregressive import Autoregressive, ContinuousAutoregressive
from jmixed.residual.compound import CompoundSymmetry
from jmixed.residual.independent import Independent
from jmixed.residual.structure import ResidualStructure
from jmixed.residual.visits import Toeplitz, Unstructured

STRUCTURES: dict[str, type[ResidualStructure]] = {
    "independent": Independent,
    "ar1": Autoregressive,
    "car1": ContinuousAutoregressive,
    "cs": CompoundSymmetry,
    "toep": Toeplitz,
    "us": Unstructured,
}


def residual_structure(word: str, columns: int, positions: int) -> ResidualStructure:
    """The structure that a word stands for, with so many columns of its dispersion and places in a series."""
    return STRUCTURES[word](columns, positions)
