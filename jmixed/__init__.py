"""Linear mixed models on JAX: statsmodels' calls and lme4's formulas, one fast, certified and differentiable fit."""

import importlib
from typing import TYPE_CHECKING

from jmixed import datasets, families
from jmixed.compat.params import MixedLMParams, VCSpec
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
from jmixed.fit.estimate import Estimate, estimate, log_likelihood, moments, profiled_deviance
from jmixed.fit.many import estimate_many
from jmixed.fit.minibatch import marginal_loss, take_groups
from jmixed.fit.pure import conditional_modes, log_likelihood_by_group, predict, simulate
from jmixed.formulas.pedigrees import pedigree
from jmixed.model import MixedGLM, MixedLM, design, from_batches, mixedglm, mixedlm
from jmixed.reports.comparison import compare
from jmixed.reports.comparison import variance_test as test_variance
from jmixed.reports.power import power
from jmixed.reports.table import table
from jmixed.results import MixedGLMResults, MixedLMResults, load
from jmixed.runtime.compilation import enable_compilation_cache
from jmixed.runtime.version import __version__

if TYPE_CHECKING:
    from jmixed import families, interop, plot


def _imported_late(name: str):
    """`jmixed.plot`, `jmixed.interop` and `jmixed.families` are imported when they are first used."""
    if name in ("families", "interop", "plot"):
        return importlib.import_module(f"jmixed.{name}")
    raise AttributeError(f"module 'jmixed' has no attribute {name!r}")


if not TYPE_CHECKING:
    # Hidden from type checkers, which would take any name of the package for one that there is.
    __getattr__ = _imported_late


def __dir__() -> list[str]:
    """What users are given, and not the modules that it comes from."""
    return sorted(__all__)


__all__ = [
    "ConvergenceWarning",
    "DataError",
    "Estimate",
    "FormulaError",
    "JmixedError",
    "MissingDataError",
    "MixedGLM",
    "MixedGLMResults",
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
    "compare",
    "conditional_modes",
    "datasets",
    "design",
    "enable_compilation_cache",
    "estimate",
    "estimate_many",
    "families",
    "from_batches",
    "interop",
    "load",
    "log_likelihood",
    "log_likelihood_by_group",
    "marginal_loss",
    "mixedglm",
    "mixedlm",
    "moments",
    "pedigree",
    "plot",
    "power",
    "predict",
    "profiled_deviance",
    "simulate",
    "table",
    "take_groups",
    "test_variance",
]
