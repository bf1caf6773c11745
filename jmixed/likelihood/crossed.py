"""Crossed factors: leaves that are coupled with one dense block, the core of all other factors' columns.

With A_i the couplings of leaf i (see `couplings`), C_c and B_c the core's own cross-products and border, and the leaf's
P, T, S, U, E as in `eliminate`, the core is left with

    C = C_c - sum A'P A        B = B_c - sum A'U

and is then eliminated as one block. For derivatives let M, N be directions of the leaves' Sigma and D, F of the core's,
P, T, S, U, E without index those of the core, H = A P_core A' of a leaf, and

    E^ = E - T'A U_core     S^ = S - T'H T     C' = -sum A' T M T' A     V = -sum A' T M E^

(the leaf's E and S after the core is gone, and the core's change). Then

    first     logdet: sum <S^, M>                  K: sum E^'M E^              for the core <S, D> and E'D E
    second    logdet: -sum <(S - 2 T'H T) M S, N> - <P C'_M P, C'_N>
                                                   K: V_M'P V_N - sum E^'M S N E^, and its transpose
              logdet: <T'C'T, D>                   K: (T'V)'D E and its transpose
              logdet: -<S D S, F>                  K: -(E'D S F E) - its transpose

so that one inverse of the core's size and one product of that size for each direction M give the exact Hessian. A
direction of the core has the same small block at every level: its traces are sums over small blocks. Where a Sigma is
not linear in psi its second derivatives are added as first ones are.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.small import bordered, inverse_and_log_determinant
from jmixed.likelihood.couplings import couplings
from jmixed.likelihood.eliminate import eliminate
from jmixed.likelihood.jets import Jet, directions, on_diagonal, term_directions
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.stages import covariances_of, places, stage_blocks, stage_matrix


def reduce_crossed(covariances, roots, moments: Moments):
    """Eliminate the leaves, then the core: (G, logdet, (leaves, core)), as `gaussian.reduce`."""
    layout, links = moments.layout, couplings(moments)
    leaves = _eliminate_leaves(covariances, roots, moments)
    C = moments.C[1] - links.gram(leaves.P[None])[0][:, :, None]
    B = moments.B[1] - links.border(leaves.U[None])[0][:, :, None]
    sigma, root = stage_matrix(layout, 1, covariances), stage_blocks(layout, 1, roots)
    core = eliminate(sigma, root, C, B, True, moments.shift[1], layout.has_positive_weights)
    return moments.G - leaves.K - core.K, leaves.logdet + core.logdet, (leaves, core)


def _eliminate_leaves(covariances, roots, moments: Moments):
    sigma, root = (stage_matrix(moments.layout, 0, matrices) for matrices in (covariances, roots))
    positive = moments.layout.has_positive_weights
    return eliminate(sigma, root, moments.C[0], moments.B[0], True, moments.shift[0], positive)


class Core(NamedTuple):
    """The core's pieces: ``C, P, S`` (Q, Q) and ``U, E`` (Q, r)."""

    logdet: jax.Array
    K: jax.Array
    C: jax.Array
    P: jax.Array
    S: jax.Array
    U: jax.Array
    E: jax.Array


def crossed_jets(psi, roots, moments: Moments, exact: jax.Array | bool):
    """Jets, in all directions of psi, of log|V W| and of G = [X~ y~]'V^-1[X~ y~].

    Where `exact` is false the second derivatives of log|V W| are zero and cost nothing.
    """
    layout, links, dtype = moments.layout, couplings(moments), psi.dtype
    covariances = covariances_of(psi, layout.terms)
    positions, M, N = directions(layout, 0, psi)
    leaves = _eliminate_leaves(covariances, roots, moments)
    P, T, S = leaves.P, leaves.T, leaves.S
    TM = jnp.einsum("ijg,kjl->kilg", T, M)
    root = stage_blocks(layout, 1, roots)
    C = moments.C[1][:, :, 0] - links.gram(P[None])[0]
    shift = None if moments.shift[1] is None else moments.shift[1][:, :, 0]
    core, V, safe = _eliminate_core(root, C, moments.B[1][:, :, 0] - links.border(leaves.U[None])[0], shift)

    E = leaves.E - jnp.einsum("jig,jrg->irg", T, links.apply(core.U))
    ME = jnp.einsum("kij,jrg->kirg", M, E)
    THT = jnp.einsum("jig,jlg,lmg->img", T, links.pull(core.P), T)
    F = -links.border(jnp.einsum("kijg,jrg->kirg", TM, E))
    bend = jnp.einsum("kirg,ijg,ljsg->klrs", ME, S, ME) - jnp.einsum("kar,ab,lbs->klrs", F, core.P, F)
    terms = [(place, *term_directions(layout, place.term, psi)) for place in places(layout, 1)]
    core_positions, core_first, core_G, mixed_G = _core_directions(layout, terms, core, F)
    G_first = jnp.concatenate([-jnp.einsum("irg,kisg->krs", E, ME), core_G[0]])
    logdet_first = jnp.concatenate([jnp.einsum("kij,ijg->k", M, S - THT), core_first])

    def curvature():
        change = -links.gram(jnp.einsum("kilg,jlg->kijg", TM, T))
        branches = partial(_by_division, terms), partial(_by_products, terms)
        traces, pulled = jax.lax.cond(safe, *branches, root, V, core.P, C, change)
        MS = jnp.einsum("kij,jlg->kilg", M, S)
        of_leaves = -jnp.einsum("kij,jhg,lhig->kl", M, S - 2 * THT, MS) - traces
        if N is not None:
            of_leaves = of_leaves + jnp.einsum("klij,ijg->kl", N, S - THT)
        return bordered(of_leaves, pulled, _core_curvature(terms, core.S))

    def none():
        return jnp.zeros((len(psi), len(psi)), dtype)

    G_leaves = bend + jnp.swapaxes(bend, 2, 3)
    if N is not None:
        G_leaves = G_leaves - jnp.einsum("irg,klij,jsg->klrs", E, N, E)
    second = curvature() if exact is True else jax.lax.cond(exact, curvature, none)
    G_second = bordered(G_leaves, mixed_G, core_G[1])
    order = np.argsort(np.concatenate([positions, core_positions]))
    both = order[:, None], order[None]
    logdet = Jet(leaves.logdet + core.logdet, logdet_first[order], second[both])
    return logdet, Jet(moments.G - leaves.K - core.K, G_first[order], G_second[both])


def core_jets(psi, roots, moments: Moments):
    """As `crossed_jets`, of a core without leaves: of related levels alone."""
    layout = moments.layout
    C, B = moments.C[0][:, :, 0], moments.B[0][:, :, 0]
    core, _, _ = _eliminate_core(stage_blocks(layout, 0, roots), C, B, None)
    terms = [(place, *term_directions(layout, place.term, psi)) for place in places(layout, 0)]
    positions, first, G, _ = _core_directions(layout, terms, core, jnp.zeros((0, *B.shape), psi.dtype))
    order = np.argsort(positions)
    both = order[:, None], order[None]
    logdet = Jet(core.logdet, first[order], _core_curvature(terms, core.S)[both])
    return logdet, Jet(moments.G - core.K, G[0][order], G[1][both])


def _eliminate_core(root, C, B, shift):
    """Eliminate one large block: its pieces, V = (I + Lambda'C Lambda)^-1, and whether Lambda may be divided by."""
    eye = jnp.eye(C.shape[0], dtype=C.dtype)
    V, logdet = inverse_and_log_determinant(eye + root.T.congruence(C))
    P = root.congruence(V)
    # Dividing by the root is cheap and loses digits near a singular one; then two more products each are due.
    safe = root.smallest_singular_value() > jnp.finfo(C.dtype).eps ** 0.125
    S = jax.lax.cond(safe, lambda: root.inverse().T.congruence(eye - V), lambda: C - C @ P @ C)
    S, U = (S + S.T) / 2, P @ B
    E = B - C @ U
    if shift is None:
        return Core(logdet, B.T @ U, C, P, S, U, E), V, safe
    left = jax.lax.cond(safe, lambda: root.times(V @ root.inverse().times(shift)), lambda: shift - P @ (C @ shift))
    U, E = U - left, E + S @ shift
    K = B.T @ U - shift.T @ E
    return Core(logdet, (K + K.T) / 2, C, P, S, U, E), V, safe


def _by_division(terms, root, V, P, C, change):
    """<P C'_M P, C'_N>, and the mixed derivatives <T'C'T, D> from V Lambda'C'Lambda V, as T = Lambda V Lambda^-1."""
    inverse = root.inverse()
    X = [V @ root.T.congruence(c) for c in change]
    return _traces(X), _pulled(terms, [inverse.T.times(x) for x in X], inverse.T.times(V))


def _by_products(terms, root, V, P, C, change):
    """The same from T = I - P C."""
    T = jnp.eye(V.shape[0], dtype=V.dtype) - P @ C
    return _traces([P @ c for c in change]), _pulled(terms, [T.T @ c for c in change], T.T)


def _traces(X):
    return jnp.stack([jnp.stack([jnp.sum(a * b.T) for b in X]) for a in X])


def _pulled(terms, left, right):
    """Sums over levels of <D, left right'> for the directions D of the core, a row for each of `left`."""
    columns = []
    for place, N, _ in terms:
        blocks = [_by_level(place.rows(x), place.rows(right)) for x in left]
        columns.append(jnp.stack([jnp.einsum("kij,lij->k", N, block) for block in blocks]))
    return jnp.concatenate(columns, axis=1)


def _by_level(a, b):
    """a b' of every level, (levels, q, q), from rows (levels, q, Q)."""
    return jnp.sum(a[:, :, None] * b[:, None], axis=-1)


def _core_directions(layout, terms, core: Core, F):
    """The core's positions in psi; the first derivatives of logdet in them; (first, second) of G; G's mixed ones."""
    starts, dtype = np.cumsum([0, *(s.size for s in layout.terms)]), F.dtype
    positions, NE, first, bends = [], [], [], []
    for place, N, bend in terms:
        at, E = place.columns(), place.rows(core.E)
        positions.append(starts[place.term] + np.arange(len(N)))
        moved = jnp.einsum("kij,ljr->klir", N, E)
        NE.append(jnp.zeros((len(N), *core.E.shape), dtype).at[:, at].set(moved))
        first.append(jnp.einsum("kij,lij->k", N, core.S[at[:, :, None], at[:, None]]))
        bends.append(None if bend is None else jnp.einsum("lir,khij,ljs->khrs", E, bend, E))
    NE = jnp.concatenate(NE)
    bend = jnp.einsum("kar,ab,lbs->klrs", NE, core.S, NE)
    second = bend + jnp.swapaxes(bend, 2, 3)
    if any(bend is not None for bend in bends):
        second = second - on_diagonal(bends, [len(N) for _, N, _ in terms])
    TF = F - jnp.einsum("ab,kbr->kar", core.C, jnp.einsum("ab,kbr->kar", core.P, F))
    cross = -jnp.einsum("kar,las->klrs", TF, NE)
    G = -jnp.einsum("ar,kas->krs", core.E, NE), second
    return np.concatenate(positions), jnp.concatenate(first), G, cross + jnp.swapaxes(cross, 2, 3)


def _core_curvature(terms, S):
    """Second derivatives of the core's logdet in its own directions."""
    pairs = [[_trace(S, a[:2], b[:2]) for b in terms] for a in terms]
    for k, (place, _, bend) in enumerate(terms):
        if bend is not None:
            at = place.columns()
            pairs[k][k] += jnp.einsum("khij,lij->kh", bend, S[at[:, :, None], at[:, None]])
    return jnp.concatenate([jnp.concatenate(row, axis=1) for row in pairs])


def _trace(S, left, right):
    """-<S N S, N'> for the directions of two terms, each with the same block at every level."""
    (rows, N), (columns, M) = left, right
    blocks = jnp.moveaxis(columns.rows(jnp.moveaxis(rows.rows(S), 2, 0)), (0, 1), (2, 3))
    outer = jnp.einsum("limj,lpmr->ijpr", blocks, blocks)
    return -jnp.einsum("ijpr,kpi,hjr->kh", outer, N, M)
