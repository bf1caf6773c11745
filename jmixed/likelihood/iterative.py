"""The profiled deviance of crossed factors by conjugate gradients and fixed probes; no dense block of the core is made.

Let f = 0 be the leaves and the others the core, C_f and A the cross-products Z'WZ within levels and between leaves and
core, and Sigma_f = R_f R_f' the relative covariance of a level. With the leaves taken out exactly,

    G_i = R_0 (I + R_0'C_i R_0)^-1 R_0'      E = C_core - A'GA      S = I + R'ER
    log|V W| = sum log|I + R_0'C_i R_0| + log|S|

and S is never formed: a product with E is one with each of the couplings. The blocks E_jj of single levels are summed
exactly; with S_jj = I + R'E_jj R = L_j L_j' and M_j = R L_j^-T,

    K = L^-1 S L^-T = I - Y      Y = -M' E_off M      log|S| = sum log|S_jj| + tr log K

where Y has no diagonal blocks. Solves are by conjugate gradients with K, that is by block Jacobi. What random probes z
are for is what is not known exactly: for z with independent signs, and x = K^-1 z,

    tr log K = E z'(log K + Y) z                                        as tr Y = 0
    sum_j Z_j'V^-1 Z_j = sum_j Theta_j E_jj - E sum_j (Theta_j e_x) (Theta_j e_z)'
        Theta_j = (I + E_jj Sigma)^-1, e_v = E_off M v                  as [Y]_jj = 0 and Y x = x - z

and for the leaves, with Theta_i = (I + C_i Sigma_0)^-1 and a_v = Theta A M v,

    sum_i Z_i'V^-1 Z_i = sum_i Theta_i C_i - sum_ij (Theta_i A_ij M_j) (Theta_i A_ij M_j)' - E sum_i a_(x - z) a_z'.

Nothing is divided by a root, so that a singular covariance is a point like any other. On a small basis, the directions
in which K is farthest from I, traces are taken exactly, and probes are orthogonal to it. Probes are the same at all
covariances, so that the criterion is smooth. The residual sum of squares, the coefficients, the modes and the average
information need no probes: they are exact to the tolerance of the solves.

Kündig and Sigrist (arXiv 2505.09552) for the method; Pandolfi, Papaspiliopoulos and Zanella (arXiv 2411.04729) for why
few steps do; Hutchinson (1990); Meyer, Musco, Musco and Woodruff (2021, Hutch++) for the basis; Gilmour, Thompson and
Cullis (1995, Biometrics 51) for the average information.
"""

from dataclasses import dataclass

import numpy as np

from jmixed.algebra.conjugate import conjugate_gradients, logarithms
from jmixed.likelihood.sparse_moments import SparseMoments

EXACT = 1e-12
"""Relative residual of the solves for what is to be exact."""
LOOSE = 1e-6
"""That of the solves for probes, whose error is below that of the probes by far."""
STEPS = 1000
"""Most steps of a solve."""
BATCH = 1 << 26
"""Numbers that the products with a batch of probes may hold."""
FIRST_BASIS, MOST_BASIS, ROUNDS = 4, 64, 8
"""Directions on which traces are exact, at first and at most, and the products with K that find them."""
NEAR_IDENTITY = 0.3
"""An eigenvalue of Y that is left to the probes."""


@dataclass(frozen=True, eq=False)
class Probes:
    """What is random, fixed for a fit: signs Z (n, probes), and a basis Q (n, k) to which they are orthogonal."""

    Z: np.ndarray
    Q: np.ndarray


@dataclass(frozen=True, eq=False)
class EvaluatedCriterion:
    """The criterion at relative covariances of preconditioned columns, with all that follows.

    Attributes
    ----------
    value, value_error : float
        The deviance and the standard error of it by the probes.
    gradients : tuple of arrays (q, q)
        By factor in the moments' order, the symmetric G with ``d value = <G, d Sigma>``.
    noise : tuple of arrays (probes, q, q)
        The part of each probe in them.
    beta, inverse : arrays (p,), (p, p)
        Coefficients of preconditioned columns, and (X'V^-1X)^-1.
    rss, nu : float
    modes : tuple of arrays (levels, q)
        By factor, of preconditioned columns.
    scores, fixed_scores : tuples of arrays (levels, q), (levels, q, p)
        Z'V^-1(y - X beta) and Z'V^-1X.
    steps : int
        Most steps of a solve.
    solved : bool
        Whether all solves reached their tolerance.
    operator : Operator
        The system that all was solved with.
    """

    value: float
    value_error: float
    gradients: tuple[np.ndarray, ...]
    noise: tuple[np.ndarray, ...]
    beta: np.ndarray
    inverse: np.ndarray
    rss: float
    nu: float
    modes: tuple[np.ndarray, ...]
    scores: tuple[np.ndarray, ...]
    fixed_scores: tuple[np.ndarray, ...]
    steps: int
    solved: bool
    operator: "Operator"


class Operator:
    """The eliminated system at one set of covariances, by its products.

    Arrays of coefficients are (levels q, k); those of the core are the factors' below one another.
    """

    def __init__(self, moments: SparseMoments, roots):
        self.moments, self.roots = moments, roots
        self.widths = [root.shape[0] for root in roots]
        self.levels = [len(C) for C in moments.C]
        ends = np.cumsum([0, *(n * q for n, q in zip(self.levels[1:], self.widths[1:], strict=True))])
        self.slices = [slice(a, b) for a, b in zip(ends[:-1], ends[1:], strict=True)]
        self.size = int(ends[-1])
        R, C = roots[0], moments.C[0]
        D = np.eye(len(R)) + R.T @ C @ R
        inverse = np.linalg.inv(D)
        self.G = R @ inverse @ R.T
        # I - C G = (I + C Sigma)^-1, from the inverse without a difference.
        self.leaf_theta = np.linalg.inv(np.eye(len(R)) + C @ (R @ R.T))
        self.logdet_leaves = float(np.sum(np.linalg.slogdet(D)[1]))
        self.left, self.explained, self.M, self.theta, self.logdet_blocks = [], [], [], [], 0.0
        for A, C, R in zip(moments.A, moments.C[1:], roots[1:], strict=True):
            explained = A.congruence(self.G)
            left = C - explained
            self.explained.append(explained)
            S = np.eye(len(R)) + R.T @ left @ R
            L = np.linalg.cholesky((S + S.transpose(0, 2, 1)) / 2)
            self.left.append(left)
            self.M.append(R @ np.linalg.inv(L).transpose(0, 2, 1))
            self.theta.append(np.linalg.inv(np.eye(len(R)) + left @ (R @ R.T)))
            self.logdet_blocks += 2 * float(np.sum(np.log(np.diagonal(L, axis1=1, axis2=2))))

    def split(self, X):
        """The core's coefficients by factor."""
        return [X[part] for part in self.slices]

    def reach(self, W):
        """A W of the leaves, for W of the core."""
        parts = [A.times(part) for A, part in zip(self.moments.A, self.split(W), strict=True)]
        return sum(parts[1:], parts[0])

    def pull(self, X):
        """A'X of the core, for X of the leaves."""
        return np.concatenate([A.transposed_times(X) for A in self.moments.A])

    def meet(self, W):
        """What the core's factors have of each other, C W without the levels' own blocks; None of one factor."""
        if not self.moments.within:
            return None
        parts, out = self.split(W), [np.zeros_like(part) for part in self.split(W)]
        for (f, g), A in self.moments.within.items():
            out[f] += A.times(parts[g])
            out[g] += A.transposed_times(parts[f])
        return np.concatenate(out)

    def blocks(self, tables, W):
        """Products of the core's blocks (levels, q, q) by factor with W."""
        return np.concatenate([multiply(table, part) for table, part in zip(tables, self.split(W), strict=True)])

    def through(self, W):
        """(A W, E_off W) for W of the core."""
        reached = self.reach(W)
        out = -self.pull(multiply(self.G, reached))
        if (met := self.meet(W)) is not None:
            out += met
        for part, explained, w in zip(self.slices, self.explained, self.split(W), strict=True):
            # E_off has no blocks: what the products have of them is taken out again.
            out[part] += multiply(explained, w)
        return reached, out

    def scaled(self, Z):
        """M Z."""
        return self.blocks(self.M, Z)

    def back(self, W):
        """M'W."""
        return self.blocks([M.transpose(0, 2, 1) for M in self.M], W)

    def K(self, Z):
        """K Z."""
        return Z + self.back(self.through(self.scaled(Z))[1])

    def solve(self, leaves, core):
        """What (C + Sigma^-1)^-1 makes of right-hand sides, and what is left of these: b, and (I + C Sigma)^-1 rhs.

        Returned are b of the leaves and of the core, both again for what is left, and the solves.
        """
        right = core - self.pull(multiply(self.G, leaves))
        solves = conjugate_gradients(self.K, self.back(right), EXACT, STEPS)
        b = self.scaled(solves.X)
        reached, off = self.through(b)
        left = multiply(self.leaf_theta, leaves - reached)
        rest = right - off - self.blocks(self.left, b)
        return multiply(self.G, leaves - reached), b, left, rest, solves


def multiply(blocks, X):
    """Products of blocks (levels, a, b) with X (levels b, k): (levels a, k)."""
    levels, a, b = blocks.shape
    if a == b == 1:
        return blocks.reshape(-1, 1) * X
    return np.matmul(blocks, X.reshape(levels, b, -1)).reshape(levels * a, -1)


def _outer(left, right, width):
    """For every column the sum over levels of the outer products, symmetric: (k, q, q)."""
    k = left.shape[1]
    left, right = (x.reshape(-1, width, k) for x in (left, right))
    products = np.empty((k, width, width))
    for a in range(width):
        for b in range(width):
            products[:, a, b] = np.einsum("lk,lk->k", left[:, a], right[:, b])
    return (products + products.transpose(0, 2, 1)) / 2


@dataclass(frozen=True, eq=False)
class IterativeDeviance:
    """The profiled deviance of `SparseMoments`, by REML or ML, with fixed probes."""

    moments: SparseMoments
    reml: bool
    probes: Probes

    def evaluate(self, roots) -> EvaluatedCriterion:
        """The deviance at roots (q, q) of the factors' relative covariances, with its first derivatives."""
        moments, at = self.moments, Operator(self.moments, roots)
        b0, bc, e0, ec, solves = at.solve(moments.B[0], np.concatenate(moments.B[1:]))
        p = len(moments.G) - 1
        core = np.concatenate(moments.B[1:])
        G = moments.G - moments.B[0].T @ b0 - core.T @ bc
        G = (G + G.T) / 2
        inverse, logdet_fixed = _invert(G[:p, :p])
        beta = inverse @ G[:p, p]
        contrast = np.append(-beta, 1.0)
        rss = float(contrast @ G @ contrast)
        nu = moments.nobs - (p if self.reml else 0)
        logdet_fixed += 2 * np.sum(np.log(np.abs(np.diag(moments.R))))
        scores = self._by_level(at, e0, ec)
        random = self._random(at)
        logdet = at.logdet_leaves + at.logdet_blocks + random.log - moments.log_weights
        value = logdet + (logdet_fixed if self.reml else 0) + nu * (1 + np.log(2 * np.pi * rss / nu))
        gradients = []
        for trace, score in zip(random.traces, scores, strict=True):
            slope = score @ contrast
            gradient = trace - nu / rss * slope.T @ slope
            if self.reml:
                X = score[..., :p]
                gradient = gradient - np.einsum("lap,pr,lbr->ab", X, inverse, X, optimize=True)
            gradients.append(gradient)
        steps = max(solves.steps, random.steps)
        return EvaluatedCriterion(
            value=float(value),
            value_error=random.error,
            gradients=tuple(gradients),
            noise=random.noise,
            beta=beta,
            inverse=inverse,
            rss=rss,
            nu=nu,
            modes=tuple(solution @ contrast for solution in self._by_level(at, b0, bc)),
            scores=tuple(score @ contrast for score in scores),
            fixed_scores=tuple(score[..., :p] for score in scores),
            steps=steps,
            solved=solves.solved and random.solved,
            operator=at,
        )

    def average_information(self, at: EvaluatedCriterion, directions) -> tuple[np.ndarray, np.ndarray, bool]:
        """The average information in directions of the covariances, as second derivatives of the deviance.

        `directions` are pairs (factor, D (q, q)). Returned are the Hessian (m, m), the slope (m,) of the residual sum
        of squares in them, and whether the solves were found.
        """
        operator, moments = at.operator, self.moments
        m, sizes = len(directions), [len(B) for B in moments.B]
        D = [np.zeros((size, m)) for size in sizes]
        slope = np.zeros(m)
        for k, (f, direction) in enumerate(directions):
            moved = at.scores[f] @ direction
            D[f][:, k] = moved.ravel()
            slope[k] = -np.einsum("la,la->", at.scores[f], moved)
        core = np.concatenate(D[1:])
        right_core = operator.blocks(moments.C[1:], core) + operator.pull(D[0])
        if (met := operator.meet(core)) is not None:
            right_core += met
        right = multiply(moments.C[0], D[0]) + operator.reach(core), right_core
        _, _, e0, ec, solves = operator.solve(*right)
        quadratic = D[0].T @ e0 + core.T @ ec
        X = [score.reshape(len(d), -1) for score, d in zip(at.fixed_scores, D, strict=True)]
        across = np.sum([x.T @ d for x, d in zip(X, D, strict=True)], axis=0)
        quadratic = (quadratic + quadratic.T) / 2 - across.T @ at.inverse @ across
        hessian = at.nu * quadratic / at.rss - at.nu * np.outer(slope, slope) / at.rss**2
        return hessian, slope, solves.solved

    def _by_level(self, at, leaves, core):
        parts = [leaves, *at.split(core)]
        return [part.reshape(n, q, -1) for part, n, q in zip(parts, at.levels, at.widths, strict=True)]

    def _random(self, at: Operator) -> "_Random":
        """The log-determinant of K, and the sums of Z'V^-1Z over levels, from basis and probes."""
        moments, Q, Z = self.moments, self.probes.Q, self.probes.Z
        traces = [np.sum(at.leaf_theta @ moments.C[0], axis=0)]
        for theta, left in zip(at.theta, at.left, strict=True):
            traces.append(np.sum(theta @ left, axis=0))
        for A, M in zip(moments.A, at.M, strict=True):
            explained = A.reversed_congruence(M @ M.transpose(0, 2, 1))
            traces[0] = traces[0] - np.einsum("lab,lbc,ldc->ad", at.leaf_theta, explained, at.leaf_theta, optimize=True)
        traces = [(trace + trace.T) / 2 for trace in traces]
        batch = max(int(BATCH / max(at.size, at.levels[0] * at.widths[0])), 4)
        pieces = []
        for columns in (Q, Z):
            for start in range(0, columns.shape[1], batch):
                part = columns[:, start : start + batch]
                if columns is Z:
                    part = part - Q @ (Q.T @ part)
                pieces.append(self._probe(at, part))
        logs = np.concatenate([piece.logs for piece in pieces])
        each = [np.concatenate(traced) for traced in zip(*(piece.traces for piece in pieces), strict=True)]
        k, count = Q.shape[1], Z.shape[1]
        log = float(np.sum(logs[:k]) + np.mean(logs[k:]))
        traces = [
            trace - np.sum(probed[:k], axis=0) - np.mean(probed[k:], axis=0)
            for trace, probed in zip(traces, each, strict=True)
        ]
        error = float(np.std(logs[k:], ddof=1) / np.sqrt(count))
        steps, solved = max(piece.steps for piece in pieces), all(piece.solved for piece in pieces)
        return _Random(log, error, traces, tuple(-probed[k:] for probed in each), steps, solved)

    def _probe(self, at: Operator, Z) -> "_Piece":
        W = at.scaled(Z)
        reached, off = at.through(W)
        YZ = -at.back(off)
        solves = conjugate_gradients(at.K, Z, LOOSE, STEPS, Z - YZ)
        logs = logarithms(Z, solves) + np.einsum("ik,ik->k", Z, YZ)
        difference = at.scaled(solves.X - Z)
        reached_again, off_again = at.through(difference)
        # What x sees: of z, and of the difference.
        off_x = off + off_again
        traces = [_outer(multiply(at.leaf_theta, reached_again), multiply(at.leaf_theta, reached), at.widths[0])]
        for part, theta, width in zip(at.slices, at.theta, at.widths[1:], strict=True):
            traces.append(_outer(multiply(theta, off_x[part]), multiply(theta, off[part]), width))
        return _Piece(logs, traces, solves.steps, solves.solved)

    def starting_basis(self, roots) -> np.ndarray:
        """An orthonormal basis (n, k) of about the directions in which K is farthest from I.

        It begins with `FIRST_BASIS` directions and is doubled while the middle one of them is still far: of ratings one
        is, of factors that are nearly nested there are dozens.
        """
        at = Operator(self.moments, roots)
        rng = np.random.default_rng(0)
        V, count = np.zeros((at.size, 0)), FIRST_BASIS
        while True:
            count = min(count, at.size, MOST_BASIS)
            more = rng.normal(size=(at.size, count - V.shape[1]))
            if not V.shape[1]:
                # What all levels of a column have in common is the direction that fixed effects compete for.
                columns = [(part, j, q) for part, q in zip(at.slices, at.widths[1:], strict=True) for j in range(q)]
                for k, (part, j, q) in enumerate(columns[:count]):
                    more[:, k] = 0
                    more[part, k][j::q] = 1
            V = np.linalg.qr(np.column_stack([V, more]))[0]
            for _ in range(ROUNDS):
                V = np.linalg.qr(V - at.K(V))[0]
            Y = V.T @ (V - at.K(V))
            values = np.sort(np.abs(np.linalg.eigvalsh((Y + Y.T) / 2)))[::-1]
            if count >= min(at.size, MOST_BASIS) or values[count // 2] < NEAR_IDENTITY:
                return V
            count *= 2


@dataclass(frozen=True, eq=False)
class _Piece:
    logs: np.ndarray
    traces: list[np.ndarray]
    steps: int
    solved: bool


@dataclass(frozen=True, eq=False)
class _Random:
    log: float
    error: float
    traces: list[np.ndarray]
    noise: tuple[np.ndarray, ...]
    steps: int
    solved: bool


def _invert(matrix):
    if not len(matrix):
        return matrix, 0.0
    L = np.linalg.cholesky(matrix)
    half = np.linalg.inv(L)
    return half.T @ half, 2 * float(np.sum(np.log(np.diag(L))))


def probes_of(size: int, count: int, seed: int, Q: np.ndarray) -> Probes:
    """Signs for so many probes; the first of more are those of fewer."""
    columns = [np.random.default_rng([seed, k]).integers(0, 2, size) * 2.0 - 1.0 for k in range(count)]
    return Probes(np.stack(columns, axis=1), Q)
