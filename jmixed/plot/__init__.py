"""Pictures of a fit: each takes `ax=`, returns it, and has a function ending in `_data` that gives what it shows.

matplotlib is an extra, ``pip install 'jmixed[plot]'``, imported when the first picture is drawn.
"""

from jmixed.plot.data import (
    bootstrap_data,
    caterpillar_data,
    check_data,
    effects_data,
    fitted_data,
    profile_data,
    qq_data,
    quantile_data,
    residuals_data,
)
from jmixed.plot.pictures import bootstrap, caterpillar, check, effects, fitted, profile, qq, quantile, residuals

__all__ = [
    "bootstrap",
    "bootstrap_data",
    "caterpillar",
    "caterpillar_data",
    "check",
    "check_data",
    "effects",
    "effects_data",
    "fitted",
    "fitted_data",
    "profile",
    "profile_data",
    "qq",
    "qq_data",
    "quantile",
    "quantile_data",
    "residuals",
    "residuals_data",
]


def __dir__() -> list[str]:
    """The pictures and their data, and not the modules that they come from."""
    return sorted(__all__)
