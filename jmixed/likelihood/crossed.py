"""Crossed factors: leaves that are coupled with one dense block, the core of all other factors' columns.

With A_i the couplings of leaf i (see `couplings`), C_c and B_c the core's own cross-products and border, and the leaf's
P, T, S, U, E as in `eliminate`, the core is left with

    C = C_c - sum A'P A        B = B_c - sum A'U

and is then eliminated as one block. For derivatives let M, N be directions of the leaves' Sigma and D, F of the core's,
P, T, S, U, E without index those of the core, H = A P_core A' of a leaf, and

    E^ = T'(B_leaf - A U_core)     S^ = S - T'H T     C' = -sum A' T M T' A     V = -sum A' T M E^

(the leaf's E and S after the core is gone, and the core's change). Then

    first     logdet: sum <S^, M>       K: sum E^'M E^           and for the core    <S, D>     E'D E
    second    logdet: -sum <(S - 2 T'H T) M S, N> - <P C'_M P, C'_N>        K: V_M'P V_N - sum E^'M S N E^, and its transpose
              logdet: <T'C'T, D>                                            K: (T'V)'D E and its transpose
              logdet: -<S D S, F>                                           K: -(E'D S F E) - its transpose

so that one inverse of the core's size and one product of that size for each direction M give the exact Hessian. A
direction of the core has the same small block at every level: its traces are sums over small blocks.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.data import Moments
from jmixed.likelihood.couplings import couplings
from jmixed.likelihood.eliminate import eliminate
from jmixed.likelihood.jets import Jet, directions
from jmixed.likelihood.stages import covariances_of, stage_blocks, stage_matrix, term_columns
from jmixed.linalg import log_determinant


def reduce_crossed(covariances, roots, moments: Moments):
    """Eliminate the leaves, then the core: (G, logdet, (leaves, core)), as `criterion.reduce`."""
    layout, links = moments.layout, couplings(moments)
    leaves = eliminate(
        stage_matrix(layout, 0, covariances), stage_matrix(layout, 0, roots), moments.C[0], moments.B[0], True
    )
    C = moments.C[1] - links.gram(leaves.P[None])[0][:, :, None]
    B = moments.B[1] - links.border(leaves.U[None])[0][:, :, None]
    core = eliminate(stage_matrix(layout, 1, covariances), stage_blocks(layout, 1, roots), C, B, True)
    return moments.G - leaves.K - core.K, leaves.logdet + core.logdet, (leaves, core)


class Core(NamedTuple):
    """The core's pieces: ``P, S`` (Q, Q), ``U, E`` (Q, r), ``C`` (Q, Q); and in the leaves' directions M

    ``traces`` (k, k): <P C'_M P, C'_N>; ``pulled``: for each term of the core the blocks (k, levels, q, q) of T'C'T.
    """

    logdet: jax.Array
    K: jax.Array
    C: jax.Array
    P: jax.Array
    S: jax.Array
    U: jax.Array
    E: jax.Array
    traces: jax.Array
    pulled: list[jax.Array]


def crossed_jets(psi, roots, moments: Moments):
    """Jets, in all directions of psi, of log|V W| and of G = [X~ y~]'V^-1[X~ y~]."""
    layout, links, dtype = moments.layout, couplings(moments), psi.dtype
    covariances = covariances_of(psi, layout.terms)
    positions, M = directions(layout, 0, dtype)
    out = eliminate(
        stage_matrix(layout, 0, covariances), stage_matrix(layout, 0, roots), moments.C[0], moments.B[0], True
    )
    P, T, S = out.P, out.T, out.S
    TM = jnp.einsum("ijg,kjl->kilg", T, M)
    tables = links.gram(jnp.concatenate([P[None], jnp.einsum("kilg,jlg->kijg", TM, T)]))
    C, C_1 = moments.C[1][:, :, 0] - tables[0], -tables[1:]
    B = moments.B[1][:, :, 0] - links.border(out.U[None])[0]
    core = _eliminate_core(stage_blocks(layout, 1, roots), C, C_1, B, list(term_columns(layout, 1)))

    E = jnp.einsum("jig,jrg->irg", T, moments.B[0] - links.apply(core.U))
    ME, MS = jnp.einsum("kij,jrg->kirg", M, E), jnp.einsum("kij,jlg->kilg", M, S)
    THT = jnp.einsum("jig,jlg,lmg->img", T, links.pull(core.P), T)
    V = -links.border(jnp.einsum("kijg,jrg->kirg", TM, E))
    leaf_2 = jnp.einsum("kirg,ijg,ljsg->klrs", ME, S, ME) - jnp.einsum("kar,ab,lbs->klrs", V, core.P, V)
    logdet_leaf = (
        jnp.einsum("kij,ijg->k", M, S - THT),
        -jnp.einsum("kij,jhg,lhig->kl", M, S - 2 * THT, MS) - core.traces,
    )
    G_leaf = -jnp.einsum("irg,kisg->krs", E, ME), leaf_2 + jnp.swapaxes(leaf_2, 2, 3)
    own, logdet_core, G_core, mixed = _core_directions(layout, core, V, dtype)
    logdet = out.logdet + core.logdet, logdet_leaf, logdet_core, mixed[0]
    G = moments.G - out.K - core.K, G_leaf, G_core, mixed[1]
    order = np.argsort(np.concatenate([positions, own]))
    return _join(*logdet, order), _join(*G, order)


def _join(value, leaf, core, mixed, order) -> Jet:
    """One jet from the derivatives in the leaves' directions, in the core's, and in one of each."""
    first = jnp.concatenate([leaf[0], core[0]])
    upper = jnp.concatenate([leaf[1], mixed], axis=1)
    second = jnp.concatenate([upper, jnp.concatenate([jnp.swapaxes(mixed, 0, 1), core[1]], axis=1)])
    return Jet(value, first[order], second[order[:, None], order[None]])


def _eliminate_core(root, C, C_1, B, columns) -> Core:
    """Eliminate one large block with few inverses and products of its size."""
    eye = jnp.eye(C.shape[0], dtype=C.dtype)
    factor = jnp.linalg.cholesky(eye + root.T.congruence(C))
    V = jax.scipy.linalg.cho_solve((factor, True), eye)
    P = root.congruence(V)
    U = P @ B
    # Dividing by the root is cheap and loses digits near a singular one; then two more products each are due.
    well = [jnp.min(jnp.linalg.svd(block, compute_uv=False)) for block in root.blocks]
    safe = jnp.min(jnp.stack(well)) > jnp.finfo(C.dtype).eps ** 0.125
    S, traces, pulled = jax.lax.cond(safe, _by_division, _by_products, root, V, P, C, C_1, columns)
    logdet = log_determinant(factor)
    return Core(logdet, B.T @ U, C, P, S, U, B - C @ U, traces, pulled)


def _by_division(root, V, P, C, C_1, columns):
    """S = Lambda^-T (I - V) Lambda^-1, and T'C'T from V Lambda'C'Lambda V likewise."""
    inverse = root.inverse()
    X = [V @ root.T.congruence(c) for c in C_1]
    eye = jnp.eye(V.shape[0], dtype=V.dtype)
    traces = jnp.stack([jnp.stack([jnp.sum(a * b.T) for b in X]) for a in X])
    left, right = [inverse.T.times(x) for x in X], inverse.T.times(V)
    pulled = [
        jnp.stack([jnp.einsum("lia,lja->lij", x[at], right[at]) for x in left]) for _, at in columns
    ]
    return inverse.T.congruence(eye - V), traces, pulled


def _by_products(root, V, P, C, C_1, columns):
    """S = C (I - P C), and T'C'T from T = I - P C."""
    T = jnp.eye(V.shape[0], dtype=V.dtype) - P @ C
    X = [P @ c for c in C_1]
    traces = jnp.stack([jnp.stack([jnp.sum(a * b.T) for b in X]) for a in X])
    right = [c @ T for c in C_1]
    pulled = [
        jnp.stack([jnp.einsum("ali,alj->lij", T[:, at], x[:, at]) for x in right]) for _, at in columns
    ]
    S = C @ T
    return (S + S.T) / 2, traces, pulled


def _core_directions(layout, core: Core, V, dtype):
    """Derivatives in the core's directions, and in one of them and one of the leaves'.

    Returns the positions in psi, (first, second) of logdet and of G, and their mixed derivatives.
    """
    starts = np.cumsum([0, *(s.size for s in layout.terms)])
    own, terms, S, E = [], [], core.S, core.E
    NE, logdet_1, logdet_mixed = [], [], []
    for (t, at), pulled in zip(term_columns(layout, 1), core.pulled, strict=True):
        structure = layout.terms[t]
        N = jnp.asarray(np.stack([structure.direction(k) for k in range(structure.size)]), dtype)
        own.append(starts[t] + np.arange(structure.size))
        terms.append((at, N))
        moved = jnp.einsum("kij,ljr->klir", N, E[at])
        NE.append(jnp.zeros((len(N), *E.shape), dtype).at[:, at].set(moved))
        logdet_1.append(jnp.einsum("kij,lij->k", N, S[at[:, :, None], at[:, None]]))
        logdet_mixed.append(jnp.einsum("kij,mlij->mk", N, pulled))
    NE = jnp.concatenate(NE)
    bend = jnp.einsum("kar,ab,lbs->klrs", NE, S, NE)
    TV = V - jnp.einsum("ab,kbr->kar", core.C, jnp.einsum("ab,kbr->kar", core.P, V))
    cross = -jnp.einsum("kar,las->klrs", TV, NE)
    second = jnp.concatenate([jnp.concatenate([_trace(S, a, b) for b in terms], axis=1) for a in terms])
    logdet = jnp.concatenate(logdet_1), second
    G = -jnp.einsum("ar,kas->krs", E, NE), bend + jnp.swapaxes(bend, 2, 3)
    mixed = jnp.concatenate(logdet_mixed, axis=1), cross + jnp.swapaxes(cross, 2, 3)
    return np.concatenate(own), logdet, G, mixed


def _trace(S, left, right):
    """-<S N S, N'> for the directions of two terms, each with the same block at every level."""
    (rows, N), (columns, M) = left, right
    own = S[rows[:, :, None, None], columns[None, None]]
    outer = jnp.einsum("limj,lpmr->ijpr", own, own)
    return -jnp.einsum("ijpr,kpi,hjr->kh", outer, N, M)
