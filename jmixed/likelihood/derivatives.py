"""Value, gradient and Hessian of the profiled deviance in psi, propagated through the elimination in closed form.

The tangents of an eliminated block are closed in its own quantities (see `eliminate`), so that first and second
derivatives are short products of them. With M a direction of Sigma, (C', B') a direction that an earlier stage has put
into C and B, and F = B' - C'U:

    first     logdet: <S, M>             K: E'M E
              logdet: <P, C'>            K: U'B' + B''U - U'C'U
    second    logdet: -<S M S, N>        K: -(E'M S N E) - its transpose                 both in Sigma
              logdet: <T'C'T, M>         K: (T'F)'M E + its transpose                    one in each
              logdet: <P, C''> - <P C'P, D'>    K: F'P H + H'P F + U'B'' + B'''U - U'C''U     both earlier

Where Sigma is not linear in psi its second derivatives are added as first ones are: <S, N> and E'N E.

Automatic differentiation of the criterion gives the same numbers and is what the tests compare with; this form is what
the optimiser runs, because it compiles to a fraction of the code and sums over blocks are thin matrix products.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.algebra.small import bordered
from jmixed.algebra.sums import UNROLLED, diagonal, sum_in_blocks
from jmixed.layout.layout import EQUATIONS
from jmixed.likelihood.crossed import core_jets, crossed_jets
from jmixed.likelihood.eliminate import eliminate, profile_fixed
from jmixed.likelihood.equations import equations_jets
from jmixed.likelihood.gaussian import degrees, deviance
from jmixed.likelihood.jets import Jet, add_to, constant, directions, subtract
from jmixed.likelihood.moments import Moments
from jmixed.likelihood.stages import covariances_of, stage_matrix, sum_by_parent


class Derivatives(NamedTuple):
    """Value, gradient and Hessian of the profiled deviance in psi, and the gradient of the scale r^2 / nu."""

    value: jax.Array
    gradient: jax.Array
    hessian: jax.Array
    scale_gradient: jax.Array


def derivatives(psi, roots, moments: Moments, reml: bool, exact: jax.Array | bool = True) -> Derivatives:
    """Exact derivatives at psi (m,) of preconditioned columns, with square roots (q, q) of the terms' Sigma there.

    Where `exact` is false, the Hessian is the average information (Gilmour, Thompson and Cullis 1995), the mean of
    observed and expected information: positive semidefinite, and much cheaper for crossed factors.
    """
    return derivatives_of(*jets(psi, roots, moments, exact), moments, reml, exact)


class MomentJets(NamedTuple):
    """Jets of cross-products in parameters that they depend on: of C and B by stage, of G and of -sum log w."""

    C: tuple[Jet, ...]
    B: tuple[Jet, ...]
    G: Jet
    logdet: Jet


def jets(
    psi, roots, moments: Moments, exact: jax.Array | bool = True, earlier: MomentJets | None = None
) -> tuple[Jet, Jet]:
    """Jets, in all directions of psi, of log|V W| and of G = [X~ y~]'V^-1[X~ y~]; arguments as of `derivatives`.

    The directions in which the cross-products themselves are jets come after those of psi; none in crossed layouts.
    """
    layout = moments.layout
    if layout.crossed == EQUATIONS:
        return equations_jets(psi, moments, exact)
    if layout.crossed:
        return crossed_jets(psi, roots, moments, exact)
    if layout.is_core() and earlier is None:
        return core_jets(psi, roots, moments)
    return _eliminate_all(psi, roots, moments, earlier)


def derivatives_of(logdet: Jet, G: Jet, moments: Moments, reml: bool, exact: jax.Array | bool = True) -> Derivatives:
    """Derivatives of the profiled deviance from the jets of log|V W| and of G; arguments as of `derivatives`."""
    fixed, rss = _profile_fixed(G)
    fixed = fixed._replace(value=fixed.value + 2 * jnp.sum(jnp.log(jnp.abs(diagonal(moments.R)))))
    logdet = jax.tree.map(lambda a, b: a + jnp.where(reml, b, 0), logdet, fixed)
    nu = degrees(moments, reml)
    slope = rss.first
    bend = nu * rss.second / rss.value
    # E y'P V_i P V_j P y = sigma^2 tr(P V_i P V_j): the average replaces the trace by half of the quadratic form.
    curvature = logdet.second if exact is True else jnp.where(exact, logdet.second, -bend / 2)
    hessian = curvature + bend - nu * slope[:, None] * slope[None] / rss.value**2
    return Derivatives(
        deviance(logdet.value - moments.log_weights, rss.value, nu),
        logdet.first + nu * slope / rss.value,
        (hessian + hessian.T) / 2,
        slope / nu,
    )


def _eliminate_all(psi, roots, moments, earlier):
    layout, m, dtype = moments.layout, len(psi), psi.dtype
    covariances = covariances_of(psi, layout.terms)
    shape, active, last = moments.G.shape, np.zeros(0, int), len(layout.stages) - 1
    if earlier is not None:
        active = m + np.arange(len(earlier.logdet.first))
    m += len(active)
    change = Jet(jnp.zeros(shape, dtype), jnp.zeros((m, *shape), dtype), jnp.zeros((m, m, *shape), dtype))
    zero = jnp.zeros((), dtype)
    logdet = Jet(zero, jnp.zeros(m, dtype), jnp.zeros((m, m), dtype))
    if earlier is None:
        C, B = [constant(c) for c in moments.C], [constant(b) for b in moments.B]
    else:
        C, B = list(earlier.C), list(earlier.B)
        logdet = add_to(logdet, earlier.logdet, active)._replace(value=zero)
        change = add_to(change, earlier.G, active)._replace(value=change.value)
    for s in range(last + 1):
        sigma, root = stage_matrix(layout, s, covariances), stage_matrix(layout, s, roots)
        positions, M, N = directions(layout, s, psi)
        summed = layout.is_summed(s) and moments.repeats is None
        if summed and not len(active) and sigma.shape[0] <= UNROLLED:
            stage_logdet, K = _eliminate_first(sigma, root, M, N, C[s].value, B[s].value, moments.shift[s])
        else:
            repeats = moments.repeats
            stage_logdet, K = _eliminate_stage(sigma, root, M, N, C[s], B[s], moments.shift[s], summed, repeats)
        active = np.concatenate([active, positions])
        logdet = add_to(logdet, stage_logdet, active)
        start = 0
        for t, parent in zip(range(s + 1, last + 1), moments.index.parents[s], strict=True):
            width = layout.stage_width(t)
            explained = jax.tree.map(partial(_explained, layout, t, start, parent, summed), K)
            C[t] = subtract(C[t], jax.tree.map(lambda e, width=width: e[..., :width, :], explained))
            B[t] = subtract(B[t], jax.tree.map(lambda e, width=width: e[..., width:, :], explained))
            start += width
        change = add_to(change, jax.tree.map(partial(_left_for_fixed, summed, start), K), active)
    logdet, change = moments.over_devices((logdet, change))
    return logdet, change._replace(value=moments.G + change.value)


def _explained(layout, t, start, parent, summed, K):
    """What the blocks of a stage explain of stage t's blocks and of all that comes after them."""
    stop = start + layout.stage_width(t)
    if summed:
        return K[..., start:stop, start:, None]
    return sum_by_parent(K[..., start:stop, start:, :], parent, layout.blocks[t])


def _left_for_fixed(summed, start, K):
    """Minus what the blocks of a stage explain of [X y]'W[X y]."""
    return -K[..., start:, start:] if summed else -jnp.sum(K[..., start:, start:, :], -1)


def _eliminate_first(sigma, root, M, N, C, B, shift):
    """As `_eliminate_stage` for many small blocks before any other: the directions wait until blocks are summed."""
    q, r = B.shape[:2]
    rows, columns = np.tril_indices(q)
    place = np.zeros((q, q), int)
    place[rows, columns] = place[columns, rows] = np.arange(len(rows))

    def sums(blocks, covariance):
        (sigma, root), (C, B, shift) = covariance, blocks
        out = eliminate(sigma, root, C, B, True, shift)
        S, E = out.S[rows, columns], out.E.reshape(q * r, -1)
        SE = (S[:, None] * E[None]).reshape(-1, E.shape[1])
        return out.logdet, out.K, jnp.sum(S, -1), S @ S.T, E @ E.T, SE @ E.T

    logdet, K, S, SS, EE, SEE = sum_in_blocks(sums, (C, B, shift), (sigma, root))
    S, SS = S[place], SS[place][:, :, place]
    EE, SEE = EE.reshape(q, r, q, r), SEE.reshape(-1, q, r, q, r)[place]
    bend = -jnp.einsum("kij,lhm,ihjamb->klab", M, M, SEE)
    K_2, L_2 = bend + jnp.swapaxes(bend, 2, 3), -jnp.einsum("kij,lhm,jhmi->kl", M, M, SS)
    if N is not None:
        K_2, L_2 = K_2 + jnp.einsum("klij,iajb->klab", N, EE), L_2 + jnp.einsum("klij,ij->kl", N, S)
    return Jet(logdet, jnp.einsum("kij,ij->k", M, S), L_2), Jet(K, jnp.einsum("kij,iajb->kab", M, EE), K_2)


def _eliminate_stage(sigma, root, M, N, C: Jet, B: Jet, shift, summed, repeats):
    """Jets of logdet (summed over blocks, of an only stage `repeats` times) and of K, in the earlier directions and
    then the stage's own."""
    out = eliminate(sigma, root, C.value, B.value, summed, shift)
    P, T, S, U, E = out.P, out.T, out.S, out.U, out.E
    g = "" if summed else "g"
    ME = jnp.einsum("kij,jag->kiag", M, E)
    MS = jnp.einsum("kij,jlg->kilg", M, S)
    SME = jnp.einsum("ijg,kjag->kiag", S, ME)
    K_1 = [jnp.einsum(f"iag,kibg->kab{g}", E, ME)]
    counted = MS if repeats is None else MS * repeats[None, None, None]
    L_1 = [jnp.einsum("kiig->k", counted)]
    K_oo = -jnp.einsum(f"kiag,libg->klab{g}", ME, SME)
    K_2 = K_oo + jnp.swapaxes(K_oo, 2, 3)
    L_2 = -jnp.einsum("kijg,ljig->kl", counted, MS)
    if N is not None:
        K_2 += jnp.einsum(f"iag,klij,jbg->klab{g}", E, N, E)
        L_2 += jnp.einsum("klij,ijg->kl", N, S if repeats is None else S * repeats)
    if C.first.shape[0]:
        F = B.first - jnp.einsum("kijg,jag->kiag", C.first, U)
        PF = jnp.einsum("ijg,kjag->kiag", P, F)
        PC = jnp.einsum("ijg,kjlg->kilg", P, C.first)
        # U'B' + B''U - U'C'U = U'F + (U'B')', and likewise for the second derivatives of C and B.
        K_1.insert(0, jnp.einsum(f"iag,kibg->kab{g}", U, F) + jnp.einsum(f"kiag,ibg->kab{g}", B.first, U))
        L_1.insert(0, jnp.einsum("kiig->k", PC))
        bend = B.second - jnp.einsum("klijg,jag->kliag", C.second, U)
        K_ee = jnp.einsum(f"kiag,libg->klab{g}", F, PF)
        K_ee = K_ee + jnp.swapaxes(K_ee, 2, 3)
        K_ee += jnp.einsum(f"iag,klibg->klab{g}", U, bend) + jnp.einsum(f"kliag,ibg->klab{g}", B.second, U)
        L_ee = jnp.einsum("ijg,klijg->kl", P, C.second) - jnp.einsum("kijg,ljig->kl", PC, PC)
        TF = jnp.einsum("jig,kjag->kiag", T, F)
        K_eo = jnp.einsum(f"kiag,libg->klab{g}", TF, ME)
        K_eo = K_eo + jnp.swapaxes(K_eo, 2, 3)
        TCT = jnp.einsum("jig,kjlg,lmg->kim", T, C.first, T)
        L_eo = jnp.einsum("kij,lij->kl", TCT, M)
        K_2 = bordered(K_ee, K_eo, K_2)
        L_2 = bordered(L_ee, L_eo, L_2)
    logdet = Jet(jnp.sum(out.logdet if repeats is None else repeats * out.logdet), jnp.concatenate(L_1), L_2)
    return logdet, Jet(out.K, jnp.concatenate(K_1), K_2)


def _profile_fixed(G: Jet):
    """Jets of log|A| and of the residual sum of squares when beta is profiled out of G, A = G[:p, :p].

    The second derivatives of G may be a function that gives their products (k, k) with a matrix (p + 1, p + 1).
    """
    fixed = profile_fixed(G.value)
    p = G.value.shape[0] - 1
    contrast = jnp.append(-fixed.beta, jnp.ones((), G.value.dtype))
    inner = jnp.einsum("ij,kjl->kil", fixed.inverse, G.first[:, :p, :p])
    pulled = jnp.einsum("kij,j->ki", G.first, contrast)
    if callable(G.second):
        curved = G.second(jnp.pad(fixed.inverse, (0, 1))), G.second(contrast[:, None] * contrast[None])
    else:
        curved = (
            jnp.einsum("ij,klij->kl", fixed.inverse, G.second[:, :, :p, :p]),
            jnp.einsum("klij,i,j->kl", G.second, contrast, contrast),
        )
    logdet = Jet(fixed.logdet, jnp.einsum("kii->k", inner), curved[0] - jnp.einsum("kij,lji->kl", inner, inner))
    bend = jnp.einsum("ki,ij,lj->kl", pulled[:, :p], fixed.inverse, pulled[:, :p])
    return logdet, Jet(fixed.rss, pulled @ contrast, curved[1] - 2 * bend)
