"""How the (co)variances of a model's terms lie in one vector, and the way from one layout to another.

Covariances are relative to the residual variance. *psi* lists, term by term, the lower triangle of each covariance,
row by row; the *root* layout lists the lower triangle of its Cholesky factor in the same way. theta holds the numbers
of the root, read down the columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from jmixed.covariance.registry import structure_of
from jmixed.covariance.structure import Structure
from jmixed.errors import DataError, ModelError
from jmixed.runtime.precision import FLOAT

if TYPE_CHECKING:
    from jmixed.formulas.statement import RandomTerm


def psd_cholesky(covariance: np.ndarray) -> np.ndarray:
    """The lower-triangular factor with non-negative diagonal of a positive semidefinite matrix, singular or not.

    Parameters
    ----------
    covariance : array (q, q)
        Symmetric.

    Returns
    -------
    array (q, q)

    Raises
    ------
    ModelError
        The matrix has a negative eigenvalue.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.compat.packing import psd_cholesky
    >>> psd_cholesky(np.array([[4.0, 2.0], [2.0, 1.0]]))
    array([[2., 0.],
           [1., 0.]])
    """
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

    Attributes
    ----------
    structures : tuple of Structure
        The random-effects terms, in the order of theta.
    components : tuple of bool
        Which of them are variance components (listed in ``vcomp``). The others make up ``cov_re``, one diagonal block
        per term.

    Examples
    --------
    >>> import numpy as np
    >>> from jmixed.covariance.unstructured import Unstructured
    >>> from jmixed.compat.packing import Packing
    >>> packing = Packing((Unstructured(2), Unstructured(1)))
    >>> packing.psi_from_root(np.array([2.0, 1.0, 3.0, 0.5]))
    array([ 4.  ,  2.  , 10.  ,  0.25])
    """

    structures: tuple[Structure, ...]
    components: tuple[bool, ...] = ()

    @classmethod
    def of(cls, terms: tuple[RandomTerm, ...]) -> Packing:
        """The packing of a model's random-effects terms."""
        structures = tuple(structure_of(t.structure, len(t.columns), t.intercept) for t in terms)
        return cls(structures, tuple(t.vc is not None for t in terms))

    @property
    def size(self) -> int:
        """Number of (co)variance parameters."""
        return sum(s.size for s in self.structures)

    def split(self, vector: np.ndarray) -> list[np.ndarray]:
        """The pieces of the terms."""
        ends = np.cumsum([s.size for s in self.structures])
        return [vector[end - s.size : end] for s, end in zip(self.structures, ends, strict=True)]

    def identity(self) -> np.ndarray:
        """psi, and square roots, of unit variances without correlations."""
        return _pack([np.eye(1 if s.size == 1 else s.q) for s in self.structures])

    def matrices(self, packed: np.ndarray, lower: bool = False) -> list[np.ndarray]:
        """Each term's matrix, symmetric or lower triangular; (1, 1) for a term with one variance."""
        found = []
        for structure, piece in zip(self.structures, self.split(packed), strict=True):
            q = 1 if structure.size == 1 else structure.q
            matrix = np.zeros((q, q))
            matrix[np.tril_indices(q)] = piece
            found.append(matrix if lower else matrix + np.tril(matrix, -1).T)
        return found

    def psi_from_root(self, root: np.ndarray) -> np.ndarray:
        """Covariances from their square roots, both packed (m,)."""
        return _pack([factor @ factor.T for factor in self.matrices(root, lower=True)])

    def root_from_psi(self, psi: np.ndarray) -> np.ndarray:
        """Cholesky factors from covariances, both packed (m,)."""
        return _pack([psd_cholesky(matrix) for matrix in self.matrices(psi)])

    def theta_from_root(self, root: np.ndarray) -> np.ndarray:
        """theta (m,): the same numbers, each factor read down its columns."""
        columns = [matrix.T[np.triu_indices(len(matrix))] for matrix in self.matrices(root, lower=True)]
        return np.concatenate([np.zeros(0), *columns])

    def root_from_theta(self, theta: np.ndarray) -> np.ndarray:
        """Inverse of `theta_from_root`."""
        order = self.theta_from_root(np.arange(self.size, dtype=float)).astype(int)
        root = np.empty(self.size)
        root[order] = theta
        return root

    def root_gradient(self, root: np.ndarray, gradient: np.ndarray) -> np.ndarray:
        """A gradient in the square roots from the gradient in psi.

        With G such that df = <G, dSigma> and Sigma = L L', the gradient in L is 2 G L.
        """
        factors = self.matrices(root, lower=True)
        return _pack([2 * g @ factor for g, factor in zip(self._halved(gradient), factors, strict=True)])

    def jacobian(self, root: np.ndarray) -> np.ndarray:
        """Derivative of psi in the square roots, (m, m)."""
        return np.array([self.root_gradient(root, row) for row in np.eye(self.size)]).reshape(self.size, self.size)

    def root_hessian(self, root: np.ndarray, gradient: np.ndarray, hessian: np.ndarray) -> np.ndarray:
        """A Hessian in the square roots from gradient and Hessian in psi: J' H J plus the bend of L -> L L'."""
        jacobian = self.jacobian(root)
        bend = [self.root_gradient(row, gradient) for row in np.eye(self.size)]
        return jacobian.T @ hessian @ jacobian + np.array(bend).reshape(self.size, self.size)

    def pack(self, cov_re: np.ndarray, vcomp: np.ndarray, name: str = "params") -> np.ndarray:
        """The entries (m,) of the terms' blocks in ``cov_re`` (k_re, k_re), and of ``vcomp`` (k_vc,).

        Raises
        ------
        DataError
            Another number of random effects or of variance components.
        """
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
        k_re, _ = self.shape
        cov_re, vcomp, start = np.zeros((k_re, k_re)), [], 0
        for structure, is_component, matrix in zip(self.structures, self.components, self.matrices(psi), strict=True):
            if is_component:
                vcomp.append(matrix[0, 0])
            else:
                stop = start + structure.q
                cov_re[start:stop, start:stop] = matrix[0, 0] * np.eye(structure.q) if len(matrix) == 1 else matrix
                start = stop
        return cov_re, np.array(vcomp, dtype=FLOAT)

    @property
    def shape(self) -> tuple[int, int]:
        """k_re and k_vc."""
        k_re = sum(s.q for s, component in zip(self.structures, self.components, strict=True) if not component)
        return k_re, sum(self.components)

    def check_held(self, free: np.ndarray, root: np.ndarray) -> None:
        """Refuse to hold a covariance that its entry of the Cholesky factor alone does not hold.

        An entry of Sigma is a sum of products of entries of two rows of its factor. Holding the entry of the factor
        that has its place holds the sum when every product is constant: both entries held, or one of them held at zero.

        Parameters
        ----------
        free : bool array (m,)
            Packed as the square roots.
        root : array (m,)
            Where the others are held.

        Raises
        ------
        ModelError
            A pattern that cannot be held.
        """
        masks = self.matrices(free.astype(FLOAT), lower=True)
        for mask, factor in zip(masks, self.matrices(root, lower=True), strict=True):
            moves = mask > 0
            zero = ~moves & (factor == 0)
            for i, j in zip(*np.tril_indices(len(mask)), strict=True):
                a, b = slice(0, j + 1), (i, j)
                varies = (moves[i, a] | moves[j, a]) & ~zero[i, a] & ~zero[j, a]
                if not moves[b] and np.any(varies):
                    raise ModelError(
                        f"free holds entry ({i}, {j}) of a covariance, but free entries before it would move it: put "
                        "what is held first in the random-effects formula, start it at zero, or hold those entries too"
                    )

    def _halved(self, gradient: np.ndarray) -> list[np.ndarray]:
        """The symmetric G of each term: a covariance occurs twice in Sigma and once in psi."""
        return [(matrix + np.diag(np.diag(matrix))) / 2 for matrix in self.matrices(gradient)]


def _pack(matrices: list[np.ndarray]) -> np.ndarray:
    """The lower triangles of matrices, row by row, one after the other."""
    return np.concatenate([np.zeros(0), *(matrix[np.tril_indices(len(matrix))] for matrix in matrices)])
