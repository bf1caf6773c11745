"""Linear mixed models on JAX: statsmodels' calls and lme4's formulas, one fast, certified and differentiable fit."""

from jmixed import datasets
from jmixed.batches import estimate_many
from jmixed.compilation import enable_compilation_cache
from jmixed.errors import (
    ConvergenceWarning,
    DataError,
    FormulaError,
    JmixedError,
    MissingDataError,
    ModelError,
    Outcome,
    PrecisionWarning,
    RankWarning,
    SingularWarning,
)
from jmixed.estimation import Estimate, estimate, log_likelihood, moments, profiled_deviance
from jmixed.minibatch import marginal_loss, take_groups
from jmixed.model import MixedLM, mixedlm
from jmixed.params import MixedLMParams, VCSpec
from jmixed.results import MixedLMResults, load

__version__ = "0.1.0"

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "Estimate",
    "FormulaError",
    "JmixedError",
    "MissingDataError",
    "MixedLM",
    "MixedLMParams",
    "MixedLMResults",
    "ModelError",
    "Outcome",
    "PrecisionWarning",
    "RankWarning",
    "SingularWarning",
    "VCSpec",
    "__version__",
    "datasets",
    "enable_compilation_cache",
    "estimate",
    "estimate_many",
    "load",
    "log_likelihood",
    "marginal_loss",
    "mixedlm",
    "moments",
    "profiled_deviance",
    "take_groups",
]
