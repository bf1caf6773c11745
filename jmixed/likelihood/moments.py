"""Cross-products of the rows, computed once per data set and differentiable in every floating array.

Columns are preconditioned first. The preconditioners are constants to the derivatives: the likelihood does not depend
on them, so that derivatives through the preconditioned columns alone are exact.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.sums import MANY, diagonal, sum_in_blocks
from jmixed.errors import ModelError
from jmixed.layout.design import Rows
from jmixed.layout.index import Array, Index, static
from jmixed.layout.layout import EQUATIONS, Layout
from jmixed.likelihood.counted import Counted, anywhere, can_be_counted, counted_from_estimates, effects_drown
from jmixed.likelihood.preconditioning import Preconditioners, preconditioners, redundancy
from jmixed.likelihood.products import count_rows, stack_stages, sums_over_rows
from jmixed.likelihood.related import prior_log_determinant


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Moments:
    """Weighted cross-products of preconditioned columns: all that the likelihood needs of the data.

    With ``X~ = X R^-1``, ``y~ = y - offset - X beta0`` and ``Z~ = Z T`` (exact reparameterisations, which keep digits);
    with a `shift`, of what is left of X~, y~ and Z~ of later stages once Z~ times the shift is taken out:

    Attributes
    ----------
    C : tuple of arrays (Q, Q, blocks)
        ``Z~'WZ~`` of each stage's blocks.
    B : tuple of arrays (Q, border, blocks)
        ``Z~'W[Z~ of later stages, X~, y~]``; in a crossed layout ``Z~'W[X~, y~]``.
    A : array (q, Q, leaves) or (q, entries), tuple of arrays (q, q, pairs), or None
        ``Z~'WZ~`` between the leaves and the core of a crossed layout, `DENSE` or `SPARSE`; between the levels of each
        two factors of `EQUATIONS`.
    G : array (p + 1, p + 1)
        ``[X~ y~]'W[X~ y~]``.
    R : array (p, p)
        Upper-triangular preconditioner of X.
    beta0 : array (p,)
        Least-squares coefficients taken out of y.
    T : tuple of arrays (q, q)
        Preconditioner of each term.
    log_weights : scalar
        Sum of the log weights, less the log-determinant of the residuals' structure, and of a sparse relationship.
    nobs : scalar
        Number of rows of positive weight.
    total : scalar
        Weighted sum of squares of y - offset, the yardstick for a perfect fit.
    redundant : bool scalar
        Whether the other columns of X explain one of them in the rows at hand.
    layout : Layout
        The order of elimination.
    index : Index
        Where rows and levels belong.
    shift : tuple of (array (Q, border, blocks) or None), one per stage
        From where the random effects are counted, constants, where digits would be lost else (see `eliminate`).
    repeats : array (blocks,), or None
        How often the log-determinant of each block of the only stage counts; None: once (see `likelihood.collapse`).
    axis : str or None
        Axis of the mesh over which the blocks are shared out; inside `jax.shard_map` only.
    padding : scalar, or None
        How many columns of X, the last ones, are not there: orthogonal to all that is, of unit length, with
        coefficients of zero.
    """

    C: tuple[Array, ...]
    B: tuple[Array, ...]
    A: Any
    G: Array
    R: Array
    beta0: Array
    T: tuple[Array, ...]
    log_weights: Array
    nobs: Array
    total: Array
    redundant: Array
    index: Index
    shift: tuple[Array | None, ...]
    layout: Layout = static()
    repeats: Array | None = None
    axis: str | None = static(default=None)
    padding: Array | None = None

    @property
    def fixed(self) -> Any:
        """Number of fixed effects.

        Returns
        -------
        int or scalar
            Traced where there is padding.

        Examples
        --------
        >>> import jax, jmixed as jm
        >>> with jax.enable_x64(True):
        ...     jm.moments(model.design).fixed
        2
        """
        return _true_number(self.G.shape[0] - 1, self.padding)

    def over_devices(self, sums: Any) -> Any:
        """`sums` over the blocks of one device as sums over all blocks.

        Returns
        -------
        pytree of arrays
            Like `sums`.

        Examples
        --------
        >>> import jax, jmixed as jm
        >>> with jax.enable_x64(True):
        ...     jm.moments(model.design).over_devices(3.0)  # not shared out: as it is
        3.0
        """
        return sums if self.axis is None else jax.lax.psum(sums, self.axis)


def _true_number(columns, padding):
    """Of so many columns of X those that are there."""
    return columns if padding is None else columns - padding


def moments(rows: Rows, columns: Preconditioners | None = None, counted: bool | None = None, rho: Any = ()) -> Moments:
    """Precondition the columns and form the cross-products of every stage of the elimination.

    The response goes its own way until the small arrays are put together: a batch of responses shares all the rest.
    Rows of weight zero do not count.

    Parameters
    ----------
    columns : Preconditioners, optional
        Those of other weights on the same columns: exact all the same, and cheaper than new ones.
    counted : bool, optional
        Whether random effects are counted from estimates, which keeps digits where they drown the rest (see
        `Moments.shift` and `is_drowned`). By default the data decide, in a program that holds both ways.
    rho : array (k,), optional
        Parameters of the layout's residual structure, which whitens the rows before anything else.
    """
    residual = rows.layout.residual
    if len(rho) != residual.size:
        raise ModelError(
            "this model has residual= or dispersion=, and what works with its cross-products alone (jm.moments, "
            "jm.profiled_deviance, theta or a penalty held in jm.estimate, likelihoods at given covariances) is there "
            "for independent residuals of one variance only",
            page="structures.md",
        )
    rows, log_determinant = residual.whiten(rho, rows), residual.log_determinant(rho, rows)
    preconditioned = preconditioners(rows) if columns is None else columns
    arrays = {"X": rows.X, "Z": rows.Z, "y": rows.y - rows.offset, "weights": rows.weights}
    C, B, A = stack_stages(rows, arrays, preconditioned)
    G, log_weights, total = sum_in_blocks(sums_over_rows, arrays, preconditioned, axis=0, blocks=MANY)
    nobs, p, absent = count_rows(rows.weights), rows.X.shape[1], None
    fixed = _true_number(p, rows.padding)
    if rows.padding is not None:
        number = jnp.append(jnp.arange(p, dtype=G.dtype), -jnp.ones((), G.dtype))
        absent = jnp.diag((number >= fixed).astype(G.dtype))
        G += absent
    # Of a column's unit length, what the columns before it do not explain.
    redundant = jnp.any(diagonal(G)[:-1] <= redundancy(G.dtype) ** 2)
    beta0, shift, known = preconditioned.beta0, (None,) * len(C), rows.totals
    if counted is not False and can_be_counted(rows):
        plain = Counted(C, B, A, G, tuple(map(jnp.zeros_like, B)), beta0)

        def count():
            counted = counted_from_estimates(rows, arrays, preconditioned, total)
            return counted if absent is None else counted._replace(G=counted.G + absent)

        if counted:
            C, B, A, G, shift, beta0 = count()
        else:
            drown = anywhere(effects_drown(rows.layout, rows.index, C, B, G, nobs - fixed))
            C, B, A, G, shift, beta0 = jax.lax.cond(drown, lambda _: count(), lambda plain: plain, plain)
    if rows.layout.crossed == EQUATIONS:
        log_determinant -= prior_log_determinant(rows.index.system, G.dtype)
    return Moments(
        C=C,
        B=B,
        A=A,
        G=G,
        R=preconditioned.R,
        beta0=beta0,
        T=preconditioned.T,
        log_weights=(log_weights if known is None else known.log_weights) - log_determinant,
        nobs=nobs if known is None else known.nobs,
        total=total,
        redundant=redundant,
        index=rows.index,
        shift=shift,
        layout=rows.layout,
        padding=rows.padding,
    )


def without_padding(moments: Moments) -> Moments:
    """The same cross-products, of numpy arrays, without the columns of X that are not there."""
    if moments.padding is None:
        return moments
    wide = moments.G.shape[0]
    p, columns = wide - 1 - int(moments.padding), int(moments.padding)

    def cut(border):
        return None if border is None else np.delete(border, np.s_[-columns - 1 : -1], axis=1)

    kept = np.append(np.arange(p), wide - 1)
    B, shift = (tuple(map(cut, borders)) for borders in (moments.B, moments.shift))
    G, R, beta0 = moments.G[np.ix_(kept, kept)], moments.R[:p, :p], moments.beta0[:p]
    return replace(moments, B=B, shift=shift, G=G, R=R, beta0=beta0, padding=None)


def is_drowned(rows: Rows, plain: Moments):
    """Whether random effects of these rows should be counted from estimates, by their moments that are not."""
    if not can_be_counted(rows):
        return jnp.zeros((), bool)
    return effects_drown(plain.layout, plain.index, plain.C, plain.B, plain.G, plain.nobs - plain.fixed)
