"""A pytest plugin that puts jmixed's classes in the place of statsmodels' own, before its tests import them."""

import gc

import statsmodels.api
import statsmodels.formula.api
from statsmodels.regression import mixed_linear_model

import jmixed


def pytest_configure(config):
    """Substitute where this is a plugin only: looking for examples in docstrings imports this file too."""
    # As in our own suite.
    gc.set_threshold(100_000, 20, 20)
    for place in (mixed_linear_model, statsmodels.api):
        place.MixedLM = jmixed.MixedLM
        place.VCSpec = jmixed.VCSpec
    mixed_linear_model.MixedLMParams = jmixed.MixedLMParams
    mixed_linear_model.MixedLMResults = jmixed.MixedLMResults
    statsmodels.formula.api.mixedlm = jmixed.MixedLM.from_formula
