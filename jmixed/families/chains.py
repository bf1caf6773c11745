"""Derivatives up to the fourth of functions of functions."""

from typing import Any, NamedTuple

from jmixed.families.special import logistic


class FourDerivatives(NamedTuple):
    """The first four derivatives of a function of one variable."""

    first: Any
    second: Any
    third: Any
    fourth: Any

    def __add__(self, other):
        return FourDerivatives(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other):
        return FourDerivatives(*(a - b for a, b in zip(self, other, strict=True)))


def times(factor: Any, derivatives: tuple) -> FourDerivatives:
    """Derivatives of a function that is multiplied by a constant."""
    return FourDerivatives(*(factor * derivative for derivative in derivatives))


def composed(outer: tuple, inner: tuple) -> FourDerivatives:
    """Derivatives of f(g(x)) in x from those of f at g(x) and of g: the formula of Faa di Bruno."""
    f1, f2, f3, f4 = outer
    g1, g2, g3, g4 = inner
    square = g1 * g1
    return FourDerivatives(
        f1 * g1,
        f2 * square + f1 * g2,
        f3 * square * g1 + 3 * f2 * g1 * g2 + f1 * g3,
        f4 * square * square + 6 * f3 * square * g2 + f2 * (3 * g2 * g2 + 4 * g1 * g3) + f1 * g4,
    )


def log_logistic_derivatives(eta: Any) -> tuple[FourDerivatives, FourDerivatives]:
    """Of log p and of log(1 - p), p = 1 / (1 + exp(-eta))."""
    p, q, v = logistic(eta)
    higher = -v, -v * (q - p), -v * (1 - 6 * v)
    return FourDerivatives(q, *higher), FourDerivatives(-p, *higher)
