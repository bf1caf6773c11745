"""Families of responses, a file each kind behind one contract."""

from jmixed.families.binomial import BetaBinomial, Binomial
from jmixed.families.continuous import Gaussian, StudentT
from jmixed.families.counts import NegativeBinomial, NegativeBinomial1, Poisson
from jmixed.families.family import Family
from jmixed.families.inflation import ZeroInflated
from jmixed.families.ordinal import Ordinal
from jmixed.families.positive import Gamma
from jmixed.families.proportions import Beta

__all__ = [
    "Beta",
    "BetaBinomial",
    "Binomial",
    "Family",
    "Gamma",
    "Gaussian",
    "NegativeBinomial",
    "NegativeBinomial1",
    "Ordinal",
    "Poisson",
    "StudentT",
    "ZeroInflated",
]
