"""The (co)variances of a model's terms as statsmodels lists them, and the way to theta and back.

Covariances are relative to the residual variance. *psi* lists, term by term, the lower triangle of each covariance,
row by row; a *root* lists the lower triangle of its Cholesky factor in the same way. theta holds the numbers of the
root, read down the columns. Everything is computed in psi and theta; roots are what callers give and get.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jmixed.covariance.scales import diagonal_blocks, theta_hessian
from jmixed.covariance.structure import Structure, split
from jmixed.errors import DataError, ModelError
from jmixed.reports import names
from jmixed.runtime.precision import FLOAT

if TYPE_CHECKING:
    from jmixed.formulas.statement import RandomTerm


def psd_cholesky(covariance: np.ndarray) -> np.ndarray:
    """The lower-triangular factor with non-negative diagonal of a positive semidefinite matrix, singular or not."""
    factor = np.zeros(covariance.shape)
    spread = np.sqrt(np.abs(np.diag(covariance)))
    for j in range(len(covariance)):
        rest = covariance[j:, j] - factor[j:, :j] @ factor[j, :j]
        # Rounding leaves a zero pivot at some 1e-16 of its variance; what stands below it is then of the order of 1e-8.
        if rest[0] > 1e-13 * spread[j] ** 2:
            factor[j:, j] = rest / np.sqrt(rest[0])
        elif np.any(np.abs(rest) > 1e-6 * spread[j] * spread[j:]):
            raise ModelError(
                "a covariance of random effects is not positive semidefinite: its smallest eigenvalue is "
                f"{np.linalg.eigvalsh(covariance)[0]:.6g}. Give variances >= 0 and correlations within [-1, 1]"
            )
    return factor


@dataclass(frozen=True)
class Packing:
    """How the (co)variances of a model's terms lie in one vector, and the derivatives of that map.

    The terms stand in the order of theta. Variance components are listed in ``vcomp``; the other terms make up
    ``cov_re``, one diagonal block each.
    """

    structures: tuple[Structure, ...]
    components: tuple[bool, ...] = ()

    @classmethod
    def of(cls, terms: tuple[RandomTerm, ...]) -> Packing:
        """The packing of a model's random-effects terms."""
        structures = tuple(names.structure(term) for term in terms)
        return cls(structures, tuple(term.vc is not None for term in terms))

    @property
    def size(self) -> int:
        """Number of (co)variance parameters."""
        return sum(s.size for s in self.structures)

    def _by_term(self, vector):
        return zip(self.structures, split(self.structures, vector), strict=True)

    def factors(self, theta: np.ndarray) -> list[np.ndarray]:
        """Each term's lower-triangular factor (q, q)."""
        return [structure.factor(piece) for structure, piece in self._by_term(theta)]

    def covariances(self, psi: np.ndarray) -> list[np.ndarray]:
        """Each term's covariance (q, q)."""
        return [structure.covariance(piece) for structure, piece in self._by_term(psi)]

    def identity(self) -> np.ndarray:
        """theta (m,) of unit variances without correlations."""
        return _joined(structure.theta(np.eye(structure.q)) for structure in self.structures)

    def psi(self, theta: np.ndarray) -> np.ndarray:
        """psi (m,) from theta."""
        factors = zip(self.structures, self.factors(theta), strict=True)
        return _joined(structure.psi(factor @ factor.T) for structure, factor in factors)

    def theta(self, psi: np.ndarray) -> np.ndarray:
        """theta (m,), with non-negative pivots, from psi."""
        covariances = zip(self.structures, self.covariances(psi), strict=True)
        return _joined(structure.theta(psd_cholesky(covariance)) for structure, covariance in covariances)

    def root(self, theta: np.ndarray) -> np.ndarray:
        """The numbers of theta (m,) in the order of psi."""
        return _joined(structure.entries_of_theta(piece) for structure, piece in self._by_term(theta))

    def theta_of_root(self, root: np.ndarray) -> np.ndarray:
        """The numbers of a root (m,) in the order of theta."""
        theta = np.empty_like(root)
        theta[self.root(np.arange(self.size, dtype=FLOAT)).astype(int)] = root
        return theta

    def jacobian(self, theta: np.ndarray) -> np.ndarray:
        """Derivative (m, m) of psi in theta."""
        return diagonal_blocks(*(structure.psi_of_theta(piece)[0].T for structure, piece in self._by_term(theta)))

    def hessian(self, theta: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        """A Hessian (m, m) in theta from gradient and Hessian in psi."""
        return theta_hessian(self.structures, theta, gradient, hessian)

    def pack(self, cov_re: np.ndarray, vcomp: np.ndarray, name: str = "params") -> np.ndarray:
        """The entries (m,) of the terms' blocks in ``cov_re`` (k_re, k_re), and of ``vcomp`` (k_vc,)."""
        cov_re, vcomp = np.atleast_2d(np.asarray(cov_re)), np.asarray(vcomp)
        k_re, k_vc = self.shape
        if (cov_re.shape != (k_re, k_re) and (k_re or cov_re.size)) or vcomp.shape != (k_vc,):
            raise DataError(
                f"{name} has cov_re of shape {cov_re.shape} and vcomp of shape {vcomp.shape}, "
                f"but the model has shapes ({k_re}, {k_re}) and ({k_vc},)"
            )
        pieces, start, component = [np.zeros(0)], 0, iter(vcomp)
        for structure, is_component in zip(self.structures, self.components, strict=True):
            stop = start + (0 if is_component else structure.q)
            if is_component:
                pieces.append(np.atleast_1d(next(component)))
            else:
                block = cov_re[start:stop, start:stop]
                pieces.append(structure.psi(block))
            start = stop
        return np.concatenate(pieces)

    def mask(self, free) -> np.ndarray:
        """Which entries (m,) a `MixedLMParams` of zeros and ones leaves free."""
        return self.pack(np.asarray(free.cov_re) != 0, np.asarray(free.vcomp) != 0, "free") != 0

    def unpack(self, psi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``cov_re`` (k_re, k_re) and ``vcomp`` (k_vc,) from psi (m,)."""
        terms = list(zip(self.components, self.covariances(psi), strict=True))
        cov_re = diagonal_blocks(*(covariance for is_component, covariance in terms if not is_component))
        return cov_re, np.array([covariance[0, 0] for is_component, covariance in terms if is_component], FLOAT)

    @property
    def shape(self) -> tuple[int, int]:
        """k_re and k_vc."""
        k_re = sum(s.q for s, component in zip(self.structures, self.components, strict=True) if not component)
        return k_re, sum(self.components)

    def check_held(self, free: np.ndarray, theta: np.ndarray) -> None:
        """Refuse to hold a covariance that its entry of the Cholesky factor alone does not hold.

        An entry of Sigma is a sum of products of entries of two rows of its factor. Holding the entry of the factor
        that has its place holds the sum when every product is constant: both entries held, or one of them held at zero.
        """
        terms = zip(self.structures, self.factors(free.astype(FLOAT)), self.factors(theta), strict=True)
        for structure, mask, factor in terms:
            moves = mask > 0
            zero = ~moves & (factor == 0)
            for i, j in zip(*np.tril_indices(structure.q if structure.size > 1 else 1), strict=True):
                before = slice(0, j + 1)
                varies = (moves[i, before] | moves[j, before]) & ~zero[i, before] & ~zero[j, before]
                if not moves[i, j] and np.any(varies):
                    raise ModelError(
                        f"free holds entry ({i}, {j}) of a covariance, but free entries before it would move it: put "
                        "what is held first in the random-effects formula, start it at zero, or hold those entries too"
                    )


def _joined(pieces: Iterable[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0), *pieces])
