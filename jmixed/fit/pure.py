"""What a model says at given parameters, as pure functions of arrays: they compose with jit, vmap and grad."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jmixed.covariance.structure import factors_of_theta
from jmixed.errors import DataError, ModelError
from jmixed.fit.estimate import (
    Estimate,
    compiled,
    kappa_of,
    known_design,
    modes_of_residuals,
    moments_at,
    parameters_of,
    rho_of,
    say_once_if_narrowed,
    white_at,
)
from jmixed.fit.penalised_responses import criterion_of
from jmixed.layout.design import Design, Effects, names_of
from jmixed.layout.index import Array
from jmixed.layout.layout import EQUATIONS
from jmixed.likelihood import gaussian
from jmixed.likelihood.estimates import by_level
from jmixed.likelihood.laplace import laplace_deviance
from jmixed.likelihood.products import crossproduct, level_of_rows
from jmixed.likelihood.related import related_draws
from jmixed.likelihood.responses import responses_of
from jmixed.likelihood.stages import sum_by_parent
from jmixed.runtime.arguments import checked
from jmixed.runtime.precision import exact_products

PAGE = "jax.md#at-given-parameters"


@checked
@exact_products
def log_likelihood_by_group(
    beta: Array, theta: Array, sigma: Array | float, design: Design, rho: Array | None = None
) -> jax.Array:
    """The marginal Gaussian log density of each group: they are independent of each other and add up to that of all.

    Of a response with a family, the log-likelihood of each group by the design's approximation.

    Parameters
    ----------
    beta : array (k_fe,)
        Fixed effects.
    theta : array (m,)
        Relative covariance factors; any signs.
    sigma : scalar
        Residual standard deviation; of a response with a family there is none, and what is given does not count.
    design : Design
        With one grouping factor, or with factors inside each other: then the groups are those of the outermost.
    rho : array (k,), optional
        Of a response with a family, coefficients of its further predictors, as in ``Estimate.rho``.

    Returns
    -------
    array (groups,)
        In the order of the factor's levels.

    Raises
    ------
    ModelError
        The model has no groups, or crossed factors that tie them to each other.
    DataError
        For another number of parameters than the design has.

    Examples
    --------
    The scores of the groups are the derivatives, and their outer products estimate the information:

    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     at = np.array([251.4, 10.5]), np.array([1.2]), 31.0
    ...     each = jm.log_likelihood_by_group(*at, design)
    ...     scores = jax.jacobian(jm.log_likelihood_by_group)(*at, design)
    >>> each.shape, scores.shape, round(float(np.sum(np.asarray(each))), 3)
    ((18,), (18, 2), -897.059)
    """
    say_once_if_narrowed(known_design(design))
    design.require_rows("log_likelihood_by_group")
    rows = design.padded_rows()
    layout = rows.layout
    if rows.index.has_related:
        raise ModelError(
            "log_likelihood_by_group needs groups that are independent of each other, and relationship= relates them; "
            "jm.log_likelihood gives the density of all rows",
            page="relationships.md",
        )
    if not layout.stages or layout.crossed or not layout.is_chain(len(layout.stages) - 1):
        what = "crossed factors, which tie them to each other" if layout.stages else "no random effects"
        raise ModelError(
            f"log_likelihood_by_group needs groups that are independent of each other, and this model has {what}; "
            "jm.log_likelihood gives the density of all rows",
            page=PAGE,
        )
    if rows.layout.residual.size:
        raise ModelError(
            "log_likelihood_by_group is there for independent residuals of one variance only; jm.log_likelihood gives "
            "the density of all rows",
            page=PAGE,
        )
    if layout.family is not None:
        beta, theta, _ = parameters_of(rows, beta, theta, 1.0)
        each = compiled(_by_group_of_family, rows, beta, theta, kappa_of(rows, rho))
    else:
        each = compiled(_by_group, rows, *parameters_of(rows, beta, theta, sigma))
    return each[: design.counts[layout.stages[-1][0][0]]]


def _by_group_of_family(rows, beta, theta, kappa):
    rows = jax.tree.map(jnp.asarray, rows)
    each, top = -criterion_of(rows).by_part(theta, beta, kappa) / 2, rows.layout.stages[-1][0][0]
    return each.at[rows.index.position[top]].get(mode="fill", fill_value=0)


def _by_group(rows, beta, theta, sigma):
    moments, layout = moments_at(rows, beta), rows.layout
    roots = gaussian.precondition(gaussian.factors_of(theta, moments), moments.T)
    # With repeats, nothing is summed over blocks before it is known whose block it is.
    apart = replace(moments, repeats=jnp.ones((), moments.G.dtype))
    stages = gaussian.reduce(gaussian.squares(roots), roots, apart).stages
    top, last = layout.stages[-1][0][0], len(stages) - 1
    residual = rows.y - rows.offset - rows.X @ beta
    for f, members in enumerate(layout.factors):
        # What the cross-products are of: the effects are counted from there.
        if (shift := moments.shift[layout.stage_of(f)]) is not None:
            Z = jnp.concatenate([rows.Z[t] @ moments.T[t] for t in members], axis=1)
            residual = residual - jnp.sum(
                Z * shift[:, -1, level_of_rows(rows.index.groupings[f], rows.y.shape[0])].T, axis=1
            )
    arrays = {"weights": rows.weights, "residual": residual}
    (sums,) = crossproduct(rows.index.groupings[top], _sums_of_rows, arrays, ())
    square, log_weights, count = sums[:, 0]
    logdet = jnp.zeros_like(square)
    for s, stage in enumerate(stages):
        pieces = jnp.stack([stage.logdet, stage.K[-1, -1]])
        if s < last:
            pieces = sum_by_parent(pieces, rows.index.parents[s][-1], layout.blocks[last])
        logdet, square = logdet + pieces[0], square - pieces[1]
    each = -(count * jnp.log(2 * jnp.pi * sigma**2) - log_weights + logdet + square / sigma**2) / 2
    return each.at[rows.index.position[top]].get(mode="fill", fill_value=0)


def _sums_of_rows(arrays, _):
    """What is summed over the rows of a group: weighted squares, log weights, and one a row."""
    weights, residual = arrays["weights"], arrays["residual"]
    real = weights > 0
    logs = jnp.where(real, jnp.log(jnp.where(real, weights, 1)), 0)
    left = jnp.stack([weights * residual**2, logs, real.astype(weights.dtype)])
    return left, (jnp.ones_like(weights)[None],)


@checked
@exact_products
def conditional_modes(
    beta: Array, theta: Array, sigma: Array | float, design: Design, rho: Array | None = None
) -> dict[str, jax.Array]:
    """The random effects' conditional modes, their best linear predictions, at given parameters.

    They are arrays (levels, q) by the term's label. Raises DataError for another number of parameters than the design
    has.

    Parameters
    ----------
    beta : array (k_fe,)
        Fixed effects; the columns of X may be collinear.
    theta : array (m,)
        Relative covariance factors; any signs.
    sigma : scalar
        Residual standard deviation. As theta is relative to it, the modes are the same for each. Of a response with a
        family there is none.
    rho : array (k,), optional
        Parameters of the residuals' structure, where the model has residual= or dispersion=, or coefficients of a
        family's further predictors: as in ``Estimate.rho``.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     b = jm.conditional_modes(np.array([251.4, 10.5]), np.array([1.2]), 31.0, design)
    >>> np.asarray(b["1 | Subject"])[:2, 0].round(1).tolist()
    [40.7, -78.0]
    """
    say_once_if_narrowed(known_design(design))
    rows = design.padded_rows()
    beta, theta, _ = parameters_of(rows, beta, theta, sigma)
    if rows.layout.family is None:
        modes = compiled(_modes, rows, beta, theta, rho_of(rows.layout, rho))
    else:
        modes = compiled(_modes_of_family, rows, beta, theta, kappa_of(rows, rho))
    names, key = names_of(design)
    return Effects(modes, key, names, rows.layout).by_label()


def _modes_of_family(rows, beta, theta, kappa):
    return tuple(laplace_deviance(jax.tree.map(jnp.asarray, rows)).effects_at(theta, beta, kappa))


def _modes(rows, beta, theta, rho):
    moments = moments_at(white_at(rows, rho)[0], beta)
    roots = gaussian.precondition(gaussian.factors_of(theta, moments), moments.T)
    return tuple(by_level(modes_of_residuals(roots, moments), moments))


@checked
@exact_products
def predict(estimate: Estimate, design: Design, new_design: Design | None = None) -> jax.Array:
    """The response that an estimate expects: fixed part, offset, and the random effects of the row's levels.

    Of a response with a family, its linear predictor.

    Parameters
    ----------
    estimate : Estimate
        Of `design`; with a leading axis for each fit, from `estimate_many`, it gives as many predictions.
    design : Design
        What the estimate is of.
    new_design : Design, optional
        Other rows of the same model, made from other arrays or data by the same call. Levels are matched by their
        names; those that `design` does not have count with random effects of zero. Not traced itself.

    Returns
    -------
    array (rows,)
        For every row of the new design, or of `design`; those of weight zero too.

    Raises
    ------
    DataError
        The designs have other terms or columns than each other or than the estimate, or levels without names.

    Examples
    --------
    >>> import jax, jmixed as jm
    >>> sleep = jm.datasets.load("sleepstudy")
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", sleep).design
    >>> last = jm.mixedlm("Reaction ~ Days + (1 | Subject)", sleep[sleep.Subject.isin(["371", "372"])]).design
    >>> with jax.enable_x64(True):
    ...     fit = jm.estimate(design)
    ...     here, there = jm.predict(fit, design), jm.predict(fit, design, last)
    >>> round(float(here[170]), 3), round(float(there[10]), 3)
    (269.521, 269.521)
    """
    effects = _effects(estimate, design)
    target = design if new_design is None else known_design(new_design)
    target.require_rows("predict")
    p, wanted = np.shape(estimate.beta)[-1], target.X.shape[-1]
    if p != wanted:
        raise DataError(f"predict: the estimate has {p} fixed effects, and the design has {wanted}")
    matched = None if new_design is None else _matched_levels(design, target)
    rows = target.padded_rows()
    if np.ndim(estimate.beta) == 2:
        fitted = jax.vmap(lambda beta, b: compiled(_fitted, rows, beta, b, matched))(estimate.beta, effects)
    else:
        fitted = compiled(_fitted, rows, estimate.beta, effects, matched)
    return fitted[..., : target.y.shape[-1]]


def _fitted(rows, beta, effects, matched):
    fitted = rows.offset + rows.X @ beta
    for f, members in enumerate(rows.layout.factors):
        level = _levels_of_rows(rows, f)
        if matched is not None:
            level = jnp.asarray(matched[f])[level]
        for t in members:
            fitted = fitted + jnp.sum(rows.Z[t] * effects[t].at[level].get(mode="fill", fill_value=0), axis=1)
    return fitted


def _levels_of_rows(rows, factor):
    """The level of each row, numbered as people do."""
    position, size = rows.index.position[factor], rows.layout.levels[factor]
    numbers = jnp.arange(size, dtype=jnp.int32)
    by_position = jnp.zeros(size, jnp.int32).at[position].set(numbers, mode="drop")
    return by_position[level_of_rows(rows.index.groupings[factor], rows.y.shape[0])]


BEYOND = np.iinfo(np.int32).max
"""A level that there is not."""


def _matched_levels(design, new):
    """For each level of each factor of the new design its number in the other, padded."""
    if sorted(new.labels) != sorted(design.labels) or new.layout.factors != design.layout.factors:
        raise DataError(f"predict: the design has the terms {design.labels}, and the new design {new.labels}")
    if design.levels is None or new.levels is None:
        raise DataError(
            "predict: levels are matched by their names, which a design does not take along into a function that JAX "
            "traces, nor through a tree: let the function close over both designs, and exchange arrays by replace",
            page=PAGE,
        )
    matched = []
    for size, known, asked in zip(new.layout.levels, design.levels, new.levels, strict=True):
        number = {level: k for k, level in enumerate(np.asarray(known).tolist())}
        asked = np.asarray(asked).tolist()
        numbers = [number.get(level, BEYOND) for level in asked]
        kinds = [{type(level) for level in levels} for levels in (number, asked)]
        if all(place == BEYOND for place in numbers) and not kinds[0] & kinds[1]:
            raise DataError(
                f"predict: the levels of the new design, {asked[0]!r}, ..., are of another type than those of the "
                f"design, {next(iter(number))!r}, ...: no level is known"
            )
        matched.append(np.array(numbers + [BEYOND] * (size - len(asked)), np.int32))
    return tuple(matched)


def _effects(estimate, design):
    """The estimate's random effects by the number of the term, after what can be wrong with them."""
    if not isinstance(estimate, Estimate):
        raise DataError(f"estimate is a {type(estimate).__name__}; give what jm.estimate returns")
    known_design(design)
    effects = vars(estimate)["b"]
    if isinstance(effects, Effects) and effects.layout == design.padded_rows().layout:
        names, key = names_of(design)
        if any(isinstance(part, Tracer) for part in (effects.key, key)):
            return effects.arrays
        if effects.names.known_by(effects.key).labels == names.known_by(key).labels:
            return effects.arrays
    b = estimate.b
    counts = {t: n for n, members in zip(design.counts, design.layout.factors, strict=True) for t in members}
    shapes = {label: (counts[t], design.layout.terms[t].q) for t, label in enumerate(design.labels)}
    estimated = {label: np.shape(modes) for label, modes in b.items()}
    if {label: shape[-2:] for label, shape in estimated.items()} != shapes:
        raise DataError(
            f"the estimate has the effects {estimated}, and the design {shapes}: give the design that "
            "the estimate is of"
        )
    return tuple(jnp.asarray(b[label]) for label in design.labels)


@checked
@exact_products
def simulate(estimate: Estimate, design: Design, key: Any, n: int) -> jax.Array:
    """Draw responses of the model at an estimate: new random effects and new residuals.

    Differentiable in the estimate: the draws are fixed standard normal numbers, moved and scaled. Of a response with a
    family the random effects are drawn so, and responses from the family at them; those that are counts, of events or
    of successes, have no derivative.

    Parameters
    ----------
    estimate : Estimate
        With a leading axis for each fit, from `estimate_many`, it gives draws for each.
    design : Design
        Whose rows, columns and groups are used; its response is not.
    key : JAX random key, or int
        A seed, or a key of ``jax.random.key``; may be traced.
    n : int
        Number of responses.

    Returns
    -------
    array (n, nobs)
        A row of weight zero has no residual.

    Raises
    ------
    DataError
        The estimate has other terms or columns than the design; n is no whole number.
    ModelError
        Levels are related by a sparse inverse.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     fit = jax.device_get(jm.estimate(design))
    ...     Y = jm.simulate(fit, design, jax.random.key(0), 100)
    ...     again = jax.device_get(jm.estimate_many(design, Y))
    >>> Y.shape, bool(abs(again.beta.mean(0)[1] - fit.beta[1]) < 0.3)
    ((100, 180), True)
    """
    if isinstance(n, bool) or not isinstance(n, int | np.integer) or not 0 <= n < 2**31:
        raise DataError(f"n is {n!r}; give the number of responses, a whole number from 0 to 2^31 - 1")
    known_design(design).require_rows("simulate")
    rows = design.padded_rows()
    if rows.layout.crossed == EQUATIONS:
        raise ModelError(
            "jm.simulate is not there for a sparse relationship of many levels; result.simulate is",
            page="relationships.md#large-pedigrees",
        )
    m, p = sum(term.size for term in rows.layout.terms), rows.X.shape[1]
    if not isinstance(estimate, Estimate):
        raise DataError(f"estimate is a {type(estimate).__name__}; give what jm.estimate returns")
    if np.shape(estimate.beta)[-1:] != (p,) or np.shape(estimate.theta)[-1:] != (m,):
        raise DataError(
            f"simulate: the estimate has {np.shape(estimate.beta)[-1]} fixed effects and "
            f"{np.shape(estimate.theta)[-1]} entries of theta, and the design {p} and {m}"
        )
    key = _known_key(key)
    parameters = estimate.beta, estimate.theta, estimate.sigma, estimate.rho
    extras = () if rows.response is None else rows.response.extras
    more = rows.layout.residual.size + sum(columns.shape[1] for columns in extras)
    if np.shape(estimate.rho)[-1:] != (more,):
        what = "residuals" if rows.response is None else "further predictors"
        raise DataError(
            f"simulate: the estimate has rho of shape {np.shape(estimate.rho)}, and the {what} of the design {more} "
            "parameters: give the design that the estimate is of"
        )
    if np.ndim(estimate.beta) == 2:
        keys = jax.random.split(key, np.shape(estimate.beta)[0])
        drawn = jax.vmap(partial(compiled, _draw, rows, n=int(n)))(*parameters, keys)
    else:
        drawn = compiled(_draw, rows, *parameters, key, n=int(n))
    return drawn[..., : design.y.shape[-1]]


def _known_key(key):
    """A key that JAX draws from: that of a seed, or the given one, new or old."""
    if isinstance(key, int | np.integer) and not isinstance(key, bool) and 0 <= key < 2**64:
        return jax.random.key(key)
    if isinstance(key, np.ndarray | jax.Array):
        typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
        if key.shape == () if typed else (key.dtype == np.uint32 and key.shape == (2,)):
            return key
    raise DataError(f"key is {key!r}; give a seed, a whole number of zero or more, or one key of jax.random.key")


def _draw(rows, beta, theta, sigma, rho, key, n):
    layout, dtype = rows.layout, jnp.asarray(beta).dtype
    fixed = rows.offset + rows.X @ beta
    first, *others = jax.random.split(key, 1 + len(layout.terms))
    y = jnp.broadcast_to(fixed, (n, *fixed.shape))
    if layout.family is None:
        normal = jax.random.normal(first, (n, rows.y.shape[0]), dtype)
        y = y + sigma * layout.residual.draw(rho, rows, normal)
    factors = factors_of_theta(layout.terms, theta)
    for f, members in enumerate(layout.factors):
        level = _levels_of_rows(rows, f)
        for t in members:
            shape = (n, layout.levels[f], layout.terms[t].q)
            normal = related_draws(rows.index, f, jax.random.normal(others[t], shape, dtype))
            effects = sigma * jnp.einsum("nlj,ij->nli", normal, factors[t])
            y = y + jnp.einsum("rq,nrq->nr", rows.Z[t], effects[:, level])
    return y if layout.family is None else _draw_of_family(rows, y, rho, first)


def _draw_of_family(rows, eta, kappa, key):
    """Responses (n, rows) at predictors eta (n, rows)."""
    rows = jax.tree.map(jnp.asarray, rows)
    responses = responses_of(rows, rows.response.extras)
    extras, keys = responses.extras(kappa), jax.random.split(key, len(eta))

    def respond(replicate):
        return responses.family.draw(replicate[0], replicate[1], extras, responses.trials)

    return jax.lax.map(respond, (keys, eta))
