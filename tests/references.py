"""Reference fits made with lme4, and the data they were made on: see refs/README.md."""

import functools
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

import jmixed as jm

ROOT = Path(__file__).parent / "refs"


def names() -> list[str]:
    """Names of all reference fits."""
    return sorted(path.stem for path in (ROOT / "fits").glob("*.json"))


def case(name: str) -> tuple[dict, pd.DataFrame]:
    """One reference fit, as written in its file, and a fresh copy of all rows of its data set."""
    fit = _fit(name)
    return fit, data(fit["dataset"])


def data(name: str) -> pd.DataFrame:
    """A fresh copy of one data set: grouping columns as text, the others as floats, missing cells as nan."""
    return _data(name).copy()


def small_sample(name: str) -> dict | None:
    """Tests of lmerTest and pbkrtest for one reference fit; None for the two that are too large for them."""
    return _small_sample().get(name)


@functools.cache
def _small_sample() -> dict:
    return json.loads((ROOT / "small_sample.json").read_text(encoding="utf-8"))


@functools.cache
def _fit(name: str) -> dict:
    return json.loads((ROOT / "fits" / f"{name}.json").read_text(encoding="utf-8"))


@functools.cache
def _data(name: str) -> pd.DataFrame:
    (path,) = [*ROOT.glob(f"data/{name}.csv.gz"), *ROOT.glob(f"*/data/{name}.csv.gz")]
    text = json.loads((path.parent / "columns.json").read_text(encoding="utf-8"))[name]
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    # Python reads a decimal to the nearest float; the default parser of some pandas versions misses by one bit.
    numbers = {column: frame[column].map(float) for column in frame if column not in text}
    return frame.assign(**numbers)


@functools.cache
def beside(name: str) -> dict:
    """A table of reference values by case: "profile_ci" or "ranova"."""
    return json.loads((ROOT / f"{name}.json").read_text(encoding="utf-8"))


def covariance_of_all(result) -> np.ndarray:
    """Inverse observed information of (beta, theta, sigma, rho) at a fit, from the Hessian of the density."""
    fit, design = result.fitted.fit, result.model.design
    sizes = np.cumsum([len(fit.beta), len(fit.theta), 1])

    def density(parameters):
        beta, theta, sigma, rho = jnp.split(parameters, sizes)
        return jm.log_likelihood(beta, theta, sigma[0], design, rho)

    with jax.enable_x64(True):
        at = np.concatenate([fit.beta, fit.theta, [fit.sigma], fit.rho])
        return np.linalg.inv(-np.asarray(jax.jit(jax.hessian(density))(at)))


def as_in_patsy(fit: dict) -> dict:
    """The fit with the names of a call in statsmodels' manner: the columns of splines are counted from 0."""

    def name(own: str) -> str:
        return re.sub(r"^(bs\(.*\))\[(\d+)\]$", lambda found: f"{found[1]}[{int(found[2]) - 1}]", own)

    return fit | {"fixef": [row | {"name_formulaic": name(row["name_formulaic"])} for row in fit["fixef"]]}


@functools.cache
def residual_fits() -> dict[str, tuple[dict, pd.DataFrame]]:
    """Fits of residuals with a structure by name, each as written in its file and with its data."""
    fits = json.loads((ROOT / "residuals" / "fits.json").read_text(encoding="utf-8"))
    return {name: (fit, data(fit["dataset"])) for name, fit in fits.items()}


@functools.cache
def related_fits() -> dict[str, dict]:
    """Fits of levels with a known covariance by name, each as written in its file."""
    return json.loads((ROOT / "related" / "fits.json").read_text(encoding="utf-8"))


@functools.cache
def generalized_fits() -> dict[str, dict]:
    """Fits of generalized models by name, each as written in its file."""
    return json.loads((ROOT / "generalized" / "fits.json").read_text(encoding="utf-8"))


def known_matrix(name: str) -> pd.DataFrame:
    """The known covariance of the levels of a data set."""
    return data(f"{name}_K").set_index("level").rename_axis(index=None)
