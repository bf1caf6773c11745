"""The marginal likelihood as the loss of a training loop: of residuals from any mean function, on batches of groups."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jmixed.errors import DataError, ModelError
from jmixed.fit.estimate import (
    compiled,
    deviance_of_family,
    kappa_of,
    known_design,
    moments_of_residuals,
    rho_of,
    theta_of,
    white_at,
)
from jmixed.layout.design import Design
from jmixed.layout.index import Array, Grouping, Index
from jmixed.likelihood import gaussian
from jmixed.residual.series import taken
from jmixed.runtime.arguments import checked
from jmixed.runtime.memory import bucket
from jmixed.runtime.precision import exact_products

CHUNK = 16
"""Rows of a group that are summed in one written-out step."""


@checked
def take_groups(design: Design, groups: Array) -> tuple[Array, Design]:
    """The rows of some groups and the design on them, of one shape whatever the groups: a mini-batch.

    Groups are padded to the rows of the largest; padding rows have weight zero and count as left out.

    Parameters
    ----------
    design : Design
        With one grouping factor; not traced itself.
    groups : int array (k,)
        Numbers of groups, in the order of the factor's levels; may be traced. A group may occur more than once.

    Returns
    -------
    (rows, design) : int array (n,), Design
        ``rows`` are the numbers of the rows in the whole data, in the order of the new design's arrays. Evaluate the
        mean function on them.

    Raises
    ------
    ModelError
        The model has several grouping factors.
    DataError
        The design is traced: let the jitted function close over it.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     rows, batch = jm.take_groups(design, np.array([3, 5]))
    >>> batch.y.shape, np.unique(np.asarray(rows) // 10).tolist()
    ((20,), [3, 5])
    """
    design.require_rows("take_groups")
    layout = design.layout
    if len(layout.factors) != 1:
        raise ModelError(
            f"take_groups needs a model with one grouping factor, and this one has {len(layout.factors)}: groups of "
            "several factors are not independent of each other",
            page="jax.md#a-neural-network-with-random-effects",
        )
    if design.index.has_related:
        raise ModelError(
            "take_groups needs groups that are independent of each other, and relationship= relates them: use "
            "jm.marginal_loss of all groups",
            page="relationships.md",
        )
    series = design.series
    if series is not None and design.layout.residual.correlations:
        raise ModelError(
            "take_groups is there for independent residuals; of correlated ones use jm.marginal_loss of all groups",
            page="structures.md",
        )
    table = _rows_of_groups(design)
    picked = jnp.asarray(table)[jnp.asarray(groups)]
    k, length = picked.shape
    chunk = min(length, CHUNK)
    flat = picked.reshape(-1)
    rows = jnp.where(flat < 0, 0, flat)
    weights = jnp.asarray(design.weights)[rows]
    order = np.arange(k * length, dtype=np.int32).reshape(-1, chunk).T
    segments = np.repeat(np.arange(k, dtype=np.int32), length // chunk)
    size = bucket(k)
    levels = np.arange(size, dtype=np.int32)
    index = Index(
        groupings=(Grouping(rows=order, segments=segments, size=size),),
        couplings=(),
        block=(levels,),
        slot=(np.zeros(size, np.int32),),
        parents=((),),
        within=((None,),),
        position=(levels,),
    )
    part = replace(
        design,
        y=jnp.asarray(design.y)[rows],
        X=jnp.asarray(design.X)[rows],
        Z={label: jnp.asarray(Z)[rows] for label, Z in design.Z.items()},
        weights=jnp.where(flat < 0, 0, weights),
        offset=jnp.asarray(design.offset)[rows],
        index=index,
        counts=(k,),
        levels=None,
        layout=replace(layout, blocks=(size,), levels=(size,)),
        series=series and taken(series, rows),
        response=None if design.response is None else jax.tree.map(lambda a: jnp.asarray(a)[rows], design.response),
    )
    return rows, part


def _rows_of_groups(design):
    """Row numbers (groups, rows of the largest group), a multiple of the chunk's length; -1 is padding."""
    grouping = design.index.groupings[0]
    if isinstance(grouping.rows, Tracer):
        raise DataError(
            "take_groups: the design is a value that JAX is tracing; close over it instead of passing it in",
            page="jax.md#a-neural-network-with-random-effects",
        )
    of = np.arange(grouping.rows.shape[1]) if grouping.segments is None else np.asarray(grouping.segments)
    real = grouping.rows < np.shape(design.y)[0]
    group, row = np.broadcast_to(of, real.shape)[real], np.asarray(grouping.rows)[real]
    order = np.lexsort((row, group))
    group, row = group[order], row[order]
    sizes = np.bincount(group, minlength=design.counts[0])
    longest = int(sizes.max())
    length = longest if longest <= CHUNK else -(-longest // CHUNK) * CHUNK
    table = np.full((design.counts[0], length), -1, np.int32)
    table[group, np.arange(len(row)) - (np.cumsum(sizes) - sizes)[group]] = row
    return table


@checked
@exact_products
def marginal_loss(
    residual: Array,
    theta: Array,
    design: Design,
    sigma: Array | float | None = None,
    groups: int | None = None,
    rho: Array | None = None,
) -> jax.Array:
    """Negative marginal log-likelihood of residuals from any mean function, a scalar that a training loop minimises.

    The mean function is free: a neural network, a physical model. The random effects are integrated out exactly, so
    that the mean is fitted as generalised least squares would, and the variances with it. Raises DataError for
    residuals or a theta of another length than the design has.

    Parameters
    ----------
    residual : array (n,)
        Response less mean, in the order of the design's rows. Of a response with a family, the linear predictor
        without the random effects: what the network gives.
    theta : array (m,)
        Relative covariance factors; any signs.
    design : Design
        Only its random effects and weights are used; from `take_groups` for a mini-batch.
    sigma : scalar, optional
        Residual standard deviation; by default the best for this theta and these residuals, which is for all groups at
        once only: a mean of profiled losses of mini-batches is another loss.
    groups : int, optional
        Number of groups of the whole data. The loss of a mini-batch is scaled to it: over batches drawn at random its
        gradient has the gradient of the whole loss as its mean.
    rho : array (k,), optional
        Parameters of the residuals' structure, where the model has residual= or dispersion=: as in ``Estimate.rho``.

    Examples
    --------
    >>> import jax, numpy as np, jmixed as jm
    >>> design = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).design
    >>> with jax.enable_x64(True):
    ...     round(float(jm.marginal_loss(design.y - 251.4 - 10.5 * design.X[:, 1], np.array([1.2]), design, 31.0)), 3)
    897.059
    """
    if known_design(design).layout.family is not None:
        rows = design.replace(offset=residual).padded_rows()
        loss = compiled(_loss_of_family, rows, theta_of(rows.layout, theta), kappa_of(rows, rho))
        return loss if groups is None else loss * (groups / design.counts[0])
    rows = design.replace(y=residual).padded_rows()
    theta, rho = theta_of(rows.layout, theta), rho_of(rows.layout, rho)
    if sigma is None:
        return compiled(_profiled_loss, rows, theta, rho)
    loss = compiled(_loss, rows, theta, jnp.asarray(sigma), rho)
    return loss if groups is None else loss * (groups / design.counts[0])


def _loss_of_family(rows, theta, kappa):
    bare = replace(jax.tree.map(jnp.asarray, rows), X=jnp.zeros((*rows.y.shape, 0), jnp.asarray(rows.offset).dtype))
    return deviance_of_family(bare, bare.X[0], theta, kappa) / 2


def _profiled_loss(rows, theta, rho):
    white, logdet = white_at(rows, rho)
    return (gaussian.deviance_of_theta(theta, moments_of_residuals(white, white.y), False) + logdet) / 2


def _loss(rows, theta, sigma, rho):
    white, logdet = white_at(rows, rho)
    moments = moments_of_residuals(white, white.y)
    return logdet / 2 - gaussian.log_density(jnp.zeros(0, moments.G.dtype), theta, sigma, moments)
