"""Thousands of fits at once: one compiled program over batches of responses, which share all that they can."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jmixed.errors import DataError, Outcome
from jmixed.fit.estimate import (
    Estimate,
    compiled,
    described,
    implicit_optimum,
    known_design,
    named_estimate,
    say_once_if_narrowed,
    unless_unbounded,
)
from jmixed.fit.outcome import is_unbounded, may_be_unbounded
from jmixed.fit.solve import MAX_ITERATIONS, Search, solve
from jmixed.layout.design import Design
from jmixed.layout.index import Array
from jmixed.likelihood.collapse import Classes, classes_of
from jmixed.likelihood.whitened import reads_rows
from jmixed.residual.series import without_patterns
from jmixed.runtime.arguments import checked, is_traced
from jmixed.runtime.compilation import program
from jmixed.runtime.executables import is_plain
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import FLOAT, double_precision, exact_products
from jmixed.runtime.threads import in_threads, threads

MEMORY = 2**28
"""Bytes that a batch may take, unless told otherwise."""
LANES = 256
"""Fits in one batch at most: enough to hide what a step costs whatever its size, few enough to stay in the cache."""
IN_TURN = 8
"""Fits of one call that are made one after the other."""
FIRST_ROUND = 12
"""Iterations after which the fits that have not ended go on in batches of their own: the others do not wait."""


@dataclass(frozen=True)
class ManyFits:
    """Fits of m responses on one design, numpy arrays with one entry per response: sigma (m,), objective (m,).

    `theta` (m, k) is rectified, `beta` (m, p) has the covariances `vcov_beta` (m, p, p), sigma^2 (X'V^-1 X)^-1;
    `outcome` (m,) has values of `jmixed.Outcome`, and `nobs` (m,) counts rows with a response. `rho` (m, r) are
    parameters of the residuals' structure, or of further predictors of a response with a family, whose `vcov_beta` is
    part of the inverse observed information.
    """

    theta: np.ndarray
    beta: np.ndarray
    sigma: np.ndarray
    objective: np.ndarray
    vcov_beta: np.ndarray
    outcome: np.ndarray
    nobs: np.ndarray
    rho: np.ndarray

    @property
    def converged(self) -> np.ndarray:
        """Whether each optimum carries its certificate, (m,)."""
        return np.isin(self.outcome, [outcome.value for outcome in Outcome if outcome.ok])


@checked
@exact_products
def estimate_many(
    design: Design,
    Y: Array,
    reml: bool = True,
    *,
    X: Array | None = None,
    Z: Mapping[str, Array] | None = None,
    weights: Array | None = None,
    offset: Array | None = None,
) -> Estimate:
    """Fit many responses on one design, or many designs of one shape: one pure, differentiable, compiled function.

    What the fits share is computed once, and groups with the same Z'WZ are put together: a balanced design with
    thousands of groups costs as much as one with a few. Every array of the estimate has a leading axis of length m.

    Parameters
    ----------
    design : Design
        As in ``model.design``; its response is not used.
    Y : array (m, nobs)
        One response a row. NaN marks a missing value: the fit of that response leaves the row out. Under jit, grad or
        vmap values cannot be looked at, and a NaN ends as an outcome; give zeros in `weights` there.
    reml : bool
        Restricted maximum likelihood, or maximum likelihood.
    X : array (m, nobs, k_fe), optional
    Z : dict of arrays (m, nobs, q), optional
    weights, offset : arrays (m, nobs), optional
        What differs between the fits besides the response, in place of the design's own arrays.

    Raises
    ------
    DataError
        When a shape does not match the design.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     many = jm.estimate_many(design, np.stack([design.y, 2 * design.y]))
    >>> np.asarray(many.sigma).round(3)
    array([30.991, 61.982])
    """
    known_design(design).require_rows("estimate_many")
    varying = {"y": Y, "X": X, "Z": Z, "weights": weights, "offset": offset}
    varying = {name: _as_arrays(name, value) for name, value in varying.items() if value is not None}
    m = _check_batch(design, varying)
    say_once_if_narrowed(design)
    Y = varying["y"]
    if not isinstance(Y, Tracer) and np.any(missing := np.isnan(Y)):
        present = jnp.asarray(design.weights if weights is None else varying["weights"])
        varying |= {"y": jnp.where(missing, 0, jnp.asarray(Y)), "weights": jnp.where(missing, 0, present)}
    weights = varying.get("weights")
    linear = Z is None and design.layout.family is None
    concrete = linear and not is_traced(design.Z, design.weights, design.index, weights)
    classes = classes_of(_on_host(design), None if weights is None else np.asarray(weights)) if concrete else None
    rows, lanes = design.rows(), _lanes(design, classes, MEMORY)
    workers = _workers(lanes) if reads_rows(rows) else 1
    rows = rows if weights is None else replace(rows, series=without_patterns(rows.series))
    if "Z" in varying:
        varying["Z"] = tuple(varying["Z"].get(label) for label in design.labels)

    def fit(varying):
        chunks = -(-varying["y"].shape[0] // lanes)
        return compiled(_estimate_many, rows, varying, classes, reml, chunks=chunks, apart=weights is not None)

    together = workers < 2 or m < IN_TURN * workers or is_traced(rows, varying, classes, reml)
    estimates = fit(varying) if together else _in_parts(fit, varying, m, workers)
    estimates = unless_unbounded(estimates, design, reml, varying.get("X"), weights)
    return named_estimate(estimates, design, m)


def _in_parts(fit, varying, m, workers):
    """All fits, in parts of one size, one for each thread; the last one is filled up."""
    size = -(-m // workers)
    places = (np.minimum(np.arange(start, start + size), m - 1) for start in range(0, m, size))

    def fit_at(place):
        return jax.block_until_ready(fit(jax.tree.map(itemgetter(place), varying)))

    fitted = in_threads(fit_at, places, workers)
    return jax.tree.map(lambda *of_parts: jnp.concatenate(of_parts)[:m], *fitted)


def _estimate_many(rows, varying, classes, reml, chunks, apart):
    """Batch after batch; `apart`: each fit has classes of its own."""
    m = varying["y"].shape[0]
    lanes = -(-m // chunks)

    def fit(lane):
        arrays, apart_classes = lane
        if "Z" in arrays:
            Z = zip(arrays["Z"], rows.Z, strict=True)
            arrays = {**arrays, "Z": tuple(kept if new is None else new for new, kept in Z)}
        filled = jax.tree.map(jnp.asarray, replace(rows, **arrays))
        of_lane = apart_classes if apart else classes
        return described(solve(filled, reml, classes=of_lane, differentiable=implicit_optimum))

    def split(array):
        array = jnp.asarray(array)
        last = jnp.broadcast_to(array[-1:], (chunks * lanes - m, *array.shape[1:]))
        return jnp.concatenate([array, last]).reshape(chunks, lanes, *array.shape[1:])

    side_by_side = partial(jax.lax.map, fit) if reads_rows(rows) else jax.vmap(fit)
    batches = jax.lax.map(side_by_side, jax.tree.map(split, (varying, classes if apart else None)))
    return jax.tree.map(lambda a: a.reshape(chunks * lanes, *a.shape[2:])[:m], batches)


def fit_responses(design: Design, Y, reml: bool = True, *, memory: int = MEMORY, progress=None) -> ManyFits:
    """Fit many responses Y (m, nobs) on one design, in double precision: numpy arrays in and out.

    A NaN marks a missing value, and that fit leaves the row out. A batch of fits may take so many bytes of `memory`;
    `progress` is called with the number of fits that each has finished. Raises DataError when the shape of `Y` does not
    match the design, or a value is infinite or of an extreme size.
    """
    Y = np.asarray(Y, design.y.dtype)
    m = _check_batch(design, {"y": Y})
    _check_values(Y)
    missing = np.any(np.isnan(Y), axis=1)
    fits = _allocate(design, m)
    for members, masked in ((np.flatnonzero(~missing), False), (np.flatnonzero(missing), True)):
        if len(members):
            _fit_alike(fits, design, Y, members, masked, bool(reml), memory, progress or (lambda count: None))
            if not reml and may_be_unbounded(design.layout):
                there = np.where(np.isnan(Y[members]), 0, design.weights) if masked else None
                fits.outcome[members[is_unbounded(design, weights=there)]] = Outcome.DIVERGING.value
    return fits


def _allocate(design, m):
    k, p, dtype = sum(s.size for s in design.layout.terms), design.X.shape[1], design.y.dtype
    shapes = {"theta": (k,), "beta": (p,), "sigma": (), "objective": (), "vcov_beta": (p, p)}
    response = design.response
    further = 0 if response is None else sum(np.shape(columns)[1] for columns in response.extras)
    shapes["rho"] = (design.layout.residual.size + further,)
    arrays: dict[str, Any] = {name: np.empty((m, *shape), dtype) for name, shape in shapes.items()}
    return ManyFits(**arrays, outcome=np.empty(m, np.int32), nobs=np.empty(m, np.int64))


def _fit_alike(fits: ManyFits, design, Y, members, masked, reml, memory, progress):
    """Fit the given responses, of which all or none have missing values, into `fits`."""
    rows, linear = _on_host(design), design.layout.family is None
    rows = replace(rows, series=without_patterns(rows.series)) if masked else rows
    weights = np.where(np.isnan(Y[members]), 0, rows.weights) if masked else None
    classes = classes_of(rows, weights) if linear else None
    in_turn = reads_rows(rows)
    lanes = min(IN_TURN if in_turn else _lanes(design, classes, memory), bucket(len(members)))
    room = _room(design, classes, memory)
    workers = _workers(room if in_turn else room // lanes)

    def fit_chosen(chosen, max_iterations):
        """The fits at positions `chosen` of `members`, the last repeated to fill the batch."""
        filled = np.resize(chosen, lanes)
        filled_classes = classes if weights is None or classes is None else Classes(*(a[filled] for a in classes))
        w = None if weights is None else weights[filled]
        y = Y[members[filled]]
        y = np.where(np.isnan(y), 0, y) if masked else y
        fit = partial(_batch_program, rows, y, w, filled_classes, reml, np.int32(max_iterations))
        out, drowned = jax.device_get(fit(counted=False))
        if np.any(drowned):
            out, _ = jax.device_get(fit(counted=True))
        for name, values in out.items():
            getattr(fits, name)[members[chosen]] = values[: len(chosen)]
        return len(chosen)

    def batches(chosen):
        return (chosen[start : start + lanes] for start in range(0, len(chosen), lanes))

    with double_precision():
        first = MAX_ITERATIONS if in_turn else FIRST_ROUND
        fit_first = partial(fit_chosen, max_iterations=first)
        for count in in_threads(fit_first, batches(np.arange(len(members))), workers):
            progress(count)
        # Those that have not ended go on together, and nobody waits for them.
        for chosen in batches(np.flatnonzero(fits.outcome[members] == Outcome.MAX_ITERATIONS)):
            fit_chosen(chosen, MAX_ITERATIONS)


@program(static_argnames=("counted",))
def _batch_program(rows, Y, weights, classes, reml, max_iterations, counted):
    def fit(of_fit):
        y, weights, apart = of_fit
        filled = replace(rows, y=y) if weights is None else replace(rows, y=y, weights=weights)
        of_lane = classes if weights is None else apart
        solved = solve(filled, reml, Search(limit=max_iterations), counted=counted, classes=of_lane)
        numbers = {
            name: value for name, value in solved.estimates.items() if name not in ("modes", "roots", "vcov_rho")
        }
        return numbers | {"nobs": solved.nobs, "outcome": solved.outcome}, solved.drowned

    fits = Y, weights, None if weights is None else classes
    return jax.lax.map(fit, fits) if reads_rows(rows) else jax.vmap(fit)(fits)


def _on_host(design):
    """The rows of a design as numpy arrays."""
    return jax.tree.map(np.asarray, design.rows())


def _lanes(design, classes, memory):
    """How many fits a batch holds."""
    return bucket(max(min(LANES, _room(design, classes, memory)), 1))


def _workers(room):
    """How many threads share fits, of whose batches there is memory for so many.

    Where JAX compiles programs by itself, their calls of LAPACK may wait for those of another thread without end.
    """
    return min(threads(), room) if is_plain() else 1


def _room(design, classes, memory):
    """How many fits there is memory for at a time."""
    layout = design.layout
    blocks = layout.blocks if classes is None else (classes.example.shape[-1],)
    rows, border = design.X.shape[0] * 8, (design.X.shape[1] + 1) * 8
    apart = sum(layout.stage_width(s) * count for s, count in enumerate(layout.blocks)) * border
    each = 8 * rows + 4 * apart + replace(layout, blocks=blocks).fit_bytes(design.X.shape[1])
    return memory // each


def _as_arrays(name, value):
    """What was given for the fits, as arrays of numbers."""
    if name == "Z":
        if not isinstance(value, Mapping):
            raise DataError(f"estimate_many: Z is a {type(value).__name__}; give a dict of arrays by the term's label")
        return {label: _as_arrays(f"Z[{label!r}]", z) for label, z in value.items()}
    if isinstance(value, jax.Array):
        return value
    title = "Y" if name == "y" else name
    if hasattr(value, "columns"):
        raise DataError(
            f"{title} is a {type(value).__name__}, whose columns might be responses or rows: give an array (m, nobs), "
            f"a response a row, as in {title}.to_numpy().T, or use model.fit_many, which takes a response a column"
        )
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise DataError(f"{title} is no array ({error}): give a row for each fit, all of one length") from None
    if array.dtype.kind not in "fiub":
        raise DataError(f"{title} has dtype {array.dtype}; it must hold numbers, with NaN for missing values")
    return array if array.dtype.kind == "f" else array.astype(FLOAT)


def _check_batch(design, varying) -> int:
    """The number of fits, when every array has the design's shape behind a leading axis of one length."""
    sizes = {}
    for name, value in varying.items():
        pairs = {f"Z[{label!r}]": (z, design.Z.get(label)) for label, z in value.items()} if name == "Z" else {}
        for key, (array, of_design) in (pairs or {name: (value, getattr(design, name))}).items():
            title, wanted = "Y" if key == "y" else key, () if of_design is None else np.shape(of_design)
            if of_design is None:
                raise DataError(f"estimate_many: no random-effects term {key[2:-1]}; the terms are {design.labels}")
            if len(np.shape(array)) != len(wanted) + 1 or np.shape(array)[1:] != wanted:
                raise DataError(
                    f"{title} has shape {np.shape(array)}, but (m, {', '.join(map(str, wanted))}) is needed for m fits "
                    "on this design: a row per fit, and an entry per kept row, in the order of model.endog"
                )
            sizes[title] = np.shape(array)[0]
    if len(set(sizes.values())) != 1 or not min(sizes.values()):
        raise DataError(f"the arrays must hold the same number of fits, one at least; they hold {sizes}")
    return sizes["Y"]


def _check_values(Y):
    """Refuse what is no missing value and no number to compute with."""
    size = np.nanmax(np.abs(Y), axis=1, initial=0)
    for k in np.flatnonzero((size > 1e50) | ((size < 1e-50) & (size > 0)))[:1]:
        raise DataError(
            f"the largest value of response {k} of Y is {size[k]:.3g}: use NaN for missing values, and rescale numbers "
            "to between 1e-50 and 1e50 in size"
        )
