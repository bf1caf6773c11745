"""The contract of a residual structure: how the residuals of a model vary and hang together.

Residuals have the covariance ``sigma^2 W^-1/2 R(rho) W^-1/2``, W the weights and R a correlation-like matrix that is
block diagonal over groups of rows, with parameters rho. Everything that the likelihood does with rows it does with
whitened ones: with ``R = L L'``, ``W_L = W^1/2 L^-1 W^-1/2`` takes y, X and Z to rows whose residuals are independent
with the variances sigma^2 / W, and

    log|sigma^2 W^-1/2 R W^-1/2| = n log sigma^2 - sum log w + log|R|

so that a structure owes its whitened rows, log|R|, the variances of single rows and a way to draw. A structure is one
file with these, a frozen dataclass without arrays: what it needs of the rows stands in them.
"""

from abc import ABC, abstractmethod
from typing import Any


class ResidualStructure(ABC):
    """How residuals vary, and hang together, apart from sigma and the weights."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of parameters rho."""

    @abstractmethod
    def whiten(self, rho, rows) -> Any:
        """Rows (a `layout.design.Rows`) whose residuals are independent, with the variances sigma^2 / weights."""

    @abstractmethod
    def log_determinant(self, rho, rows) -> Any:
        """log|R|."""

    @abstractmethod
    def variances(self, rho, weights) -> Any:
        """Variances (n,) of the rows' residuals, relative to sigma^2; 0 for a row of weight zero."""

    @abstractmethod
    def draw(self, rho, weights, normal) -> Any:
        """Residuals (..., n) relative to sigma from independent standard normal numbers (..., n)."""
