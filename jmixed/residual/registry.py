"""Residual structures by the words by which they are called."""

from jmixed.residual.autoregressive import Autoregressive, ContinuousAutoregressive
from jmixed.residual.compound import CompoundSymmetry
from jmixed.residual.independent import Independent
from jmixed.residual.structure import ResidualStructure
from jmixed.residual.visits import Toeplitz, Unstructured, Visits

STRUCTURES: dict[str, type[ResidualStructure]] = {
    "independent": Independent,
    "ar1": Autoregressive,
    "car1": ContinuousAutoregressive,
    "cs": CompoundSymmetry,
    "toep": Toeplitz,
    "us": Unstructured,
}

VISITS = tuple(word for word, structure in STRUCTURES.items() if issubclass(structure, Visits))
"""Words for correlations that belong to numbered visits."""


def residual_structure(word: str, columns: int, positions: int, by_position: int) -> ResidualStructure:
    """The structure that a word stands for; numbers as of `ResidualStructure`."""
    return STRUCTURES[word](columns, positions, by_position)
