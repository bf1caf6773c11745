"""Relative covariances by the method of moments, a start that costs no evaluation.

Sigma is written as a sum of v_u uu' over vectors u whose uu' span the symmetric matrices: unit vectors and sums of two.
With z_u = Z u, columns preconditioned and X taken out of y, unweighted quadratic forms, summed over levels, have
expectations that are linear in the v (Rao's MINQUE with V = I, also known as Haseman-Elston regression):

    E sum (z_u'Wy)^2 = sigma^2 sum z_u'Wz_u + sum_w v_w sum (z_u'Wz_w)^2
    E y'Wy = sigma^2 n + sum_w v_w sum z_w'Wz_w

A structure of fewer parameters has fewer of the v. The core of a sparse layout is left without sums of columns.
"""

from functools import partial
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jmixed.algebra.batched import eigh, sweep
from jmixed.algebra.sums import add_up, diagonal, sum_in_blocks
from jmixed.layout.layout import SPARSE
from jmixed.likelihood.couplings import couplings
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.stages import Place, places

SMALLEST, LARGEST = 1e-2, 1e4
"""Bounds of the relative variances: from zero no derivative leads away."""


class BlockPart(NamedTuple):
    """A term in a stage's block: its vectors u (k, q), and which of all v is whose, as indicators (variances, k)."""

    place: Place
    vectors: np.ndarray
    owners: np.ndarray

    def forms(self, C):
        """u'Cu of C (Q, Q), (k,), summed over slots."""
        columns = self.place.columns()
        summed = jnp.sum(C[columns[:, :, None], columns[:, None]], axis=0)
        return jnp.einsum("ki,kj,ij->k", self.vectors, self.vectors, summed)

    def along(self, x):
        """Rows of x (Q, ...) combined by the vectors, (slots, k, ...)."""
        rows = self.place.rows(x)
        return rows if len(self.vectors) == self.place.q else jnp.einsum("kq,lq...->lk...", self.vectors, rows)


def moment_covariances(moments: Moments):
    """Relative covariances of all terms in preconditioned columns, one array (q, q) each."""
    stages = _parts(moments.layout, moments.G.dtype)
    blocks = [(C, B[:, -1:], moments.repeats) for C, B in zip(moments.C, moments.B, strict=True)]
    sums = [sum_in_blocks(partial(_within, parts), block) for parts, block in zip(stages, blocks, strict=True)]
    squares, traces, overlaps = (add_up(tables) for tables in zip(*sums, strict=True))
    for between in _between(moments, stages):
        overlaps = overlaps + between + between.T
    squares, traces, overlaps = moments.over_devices((squares, traces, overlaps))
    system = jnp.block([[moments.nobs[None, None], traces[None]], [traces[:, None], overlaps]])
    observed = jnp.concatenate([moments.G[-1, -1:], squares])
    scale = 1 / jnp.sqrt(diagonal(system))
    inverse = -sweep(system * scale[:, None] * scale[None], len(observed))[0]
    solved = scale * (inverse @ (observed * scale))
    ratio = solved[1:] / jnp.where(solved[0] > 0, solved[0], moments.G[-1, -1] / moments.nobs)
    by_term = {part.place.term: _covariance(part, ratio) for parts in stages for part in parts}
    if any(shift is not None for shift in moments.shift):
        counted = jnp.any(jnp.stack([jnp.any(shift != 0) for shift in moments.shift if shift is not None]))
        for s, parts in enumerate(stages):
            for part in parts:
                covariance = _of_shift(part, moments.C[s], moments.shift[s], moments)
                by_term[part.place.term] = jnp.where(counted, covariance, by_term[part.place.term])
    return [by_term[term] for term in sorted(by_term)]


def _of_shift(part, C, shift, moments):
    """Sigma from the effects themselves where they are counted from their least-squares estimates."""
    effects = part.place.rows(shift[:, -1])
    times = jnp.ones(C.shape[2], C.dtype) if moments.repeats is None else moments.repeats
    # In a nest nothing may be left of an outer factor's C; but a level that there is has an effect on some column.
    occurs = jnp.any(part.place.rows(shift) != 0, axis=(1, 2))
    levels = jnp.sum(occurs.astype(times.dtype) @ times)
    squares, levels = moments.over_devices((jnp.einsum("lig,ljg->ij", effects, effects), levels))
    squares = moments.layout.terms[part.place.term].nearest(squares)
    return _bounded(squares / levels * moments.nobs / moments.G[-1, -1], jnp.inf)


def _parts(layout, dtype) -> list[list[BlockPart]]:
    """The terms of every stage."""
    stages = [[(place, *_vectors(layout, s, place)) for place in places(layout, s)] for s in range(len(layout.stages))]
    counts = {place.term: owner.max() + 1 for parts in stages for place, _, owner in parts}
    starts = np.cumsum([0, *(counts[term] for term in range(len(counts)))])

    def part(place, vectors, owner):
        owners = np.zeros((starts[-1], len(vectors)), dtype)
        owners[starts[place.term] + owner, np.arange(len(vectors))] = 1
        return BlockPart(place, vectors.astype(dtype), owners)

    return [[part(*of_term) for of_term in parts] for parts in stages]


def _vectors(layout, stage, place):
    """The vectors u (k, q) of a term, and which v (k,) is each one's."""
    vectors, owner = layout.terms[place.term].moment_vectors()
    if layout.crossed == SPARSE and stage == 1:
        single = np.count_nonzero(vectors, axis=1) == 1
        vectors, owner = vectors[single], np.unique(owner[single], return_inverse=True)[1]
    return vectors, owner


def _covariance(part, ratio):
    """Sigma from the relative v, its eigenvalues kept within bounds."""
    variances = part.owners.T @ jnp.where(jnp.isfinite(ratio), ratio, 1)
    return _bounded(jnp.einsum("k,ki,kj->ij", variances, part.vectors, part.vectors), LARGEST)


def _bounded(covariance, largest):
    values, vectors = eigh(covariance)
    return (vectors * jnp.clip(values, SMALLEST, largest)[None]) @ vectors.T


def _within(parts, blocks, _):
    """Sums over a stage's blocks of (u'y)^2, of u'Cu, and of (u'Cw)^2."""
    C, y, repeats = blocks
    times = jnp.ones(C.shape[2], C.dtype) if repeats is None else repeats
    total = C @ times
    squares = sum(part.owners @ jnp.sum(part.along(y) ** 2, axis=(0, 2, 3)) for part in parts)
    traces = sum(part.owners @ part.forms(total) for part in parts)
    return squares, traces, _overlaps(parts, parts, C, times)


def _overlaps(parts, others, A, times):
    """Sums over blocks of (u'Aw)^2 by the variances of u and w."""
    tables = []
    for part in parts:
        along = jnp.moveaxis(part.along(A), 2, 0)
        for other in others:
            squares = jnp.einsum("mnlkg,g->kn", other.along(along) ** 2, times)
            tables.append(part.owners @ squares @ other.owners.T)
    return add_up(tables)


def _across(parts, others, A, _):
    return _overlaps(parts, others, A, jnp.ones(A.shape[2], A.dtype))


def _between(moments, stages):
    """The overlaps of every two stages."""
    layout = moments.layout
    if layout.crossed == SPARSE:
        links = couplings(moments)
        for part in stages[0]:
            squares = links._replace(A=part.along(links.A)[0]).squares()
            for other in stages[1]:
                yield part.owners @ jnp.sum(other.place.rows(squares.T), axis=0).T @ other.owners.T
        return
    for s, parts in enumerate(stages):
        start = 0
        for t in range(s + 1, len(stages)):
            stop = start + layout.stage_width(t)
            A = moments.A if layout.crossed else moments.B[s][:, start:stop]
            yield sum_in_blocks(partial(_across, parts, stages[t]), A)
            start = stop
