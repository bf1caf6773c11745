"""The contract of a covariance structure: all that the rest of the package asks of the random effects of one term.

A term with q columns has the relative covariance ``Sigma = lambda lambda'`` (relative to sigma^2), in four ways:

* ``theta``: parameters of the lower-triangular ``lambda``, what users see; for an unstructured covariance its entries,
  column by column (Bates et al. 2015, J. Stat. Softw. 67(1));
* ``psi``: parameters of ``Sigma`` itself, in which derivatives of the likelihood are taken. With D_k the first and
  B_kl the second derivatives of Sigma in psi, the elimination needs nothing else;
* ``phi``: coordinates of the optimiser around a basis that moves along, ``Sigma = R(phi) R(phi)'``: unconstrained, and
  such that a singular Sigma is an ordinary point at which the deviance is even in what vanishes (see `chart`);
* ``lambda``, or any other square root, where only products count.

The columns of Z are preconditioned, Z~ = Z T, before anything is computed, and ``Sigma~ = T^-1 Sigma T^-T`` must have
the structure again. An unstructured covariance allows any T; others fewer, and say so by `preconditioner`.

A structure is one file: a frozen dataclass with the methods below, and a line in `jmixed.covariance.registry`; what its
columns must be is said beside the word that states it, in `formulas/structures.py`. What has a definition here follows
from the rest and is replaced where a structure knows better. Arrays may be numpy's, with leading axes in `factor`, or
traced ones of JAX.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple

import jax.numpy as jnp
import numpy as np

from jmixed.errors import ModelError
from jmixed.runtime.precision import double_precision

SINGULAR = 1e-4
"""A standard deviation below this fraction of sigma is zero, and a pivot below this one of its row, as in lme4."""
DEPENDENT = 1e-9
"""A pivot below this fraction of its row's length is rounding."""


class Readable(NamedTuple):
    """What people read of Sigma: a standard deviation (`second` is None), or a correlation, by the columns' names.

    `row` and `column` are the entry of Sigma that has it, the first of `several` that differ but for their correlation.
    """

    first: str
    second: str | None
    row: int
    column: int
    several: bool = False


class Structure(ABC):
    """A covariance structure of a term with `q` columns.

    Attributes
    ----------
    q : int
        Number of columns.
    intercept : int or None
        Position of a constant column, on which the others may be centred.
    """

    q: int
    intercept: int | None

    word_in_files: ClassVar[str]
    """What saved results call the structure: it stays, however the class is named."""

    @property
    def name(self) -> str:
        """What messages call the structure."""
        return " ".join(re.findall("[A-Z][a-z]*", type(self).__name__)).lower()

    # ---- parameters ----

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of parameters."""

    @abstractmethod
    def factor(self, theta) -> Any:
        """``lambda`` (..., q, q) from theta (..., size)."""

    @abstractmethod
    def theta(self, factor) -> Any:
        """theta (..., size) from a lower-triangular ``lambda`` (..., q, q)."""

    @abstractmethod
    def covariance(self, psi) -> Any:
        """``Sigma`` (q, q) from psi (size,)."""

    @abstractmethod
    def psi(self, covariance) -> Any:
        """psi (size,) from ``Sigma`` (q, q)."""

    @property
    def powers(self) -> np.ndarray:
        """The power (size,) of the unit of the columns' effects that each entry of psi has: two for (co)variances."""
        return np.full(self.size, 2)

    @property
    def has_several_minima(self) -> bool:
        """Whether the deviance of a term by itself can have several minima, so that one start does not do."""
        return False

    @property
    def any_basis(self) -> bool:
        """Whether every invertible linear map of the columns keeps the structure."""
        return False

    # ---- derivatives of Sigma in psi ----

    @property
    def is_linear(self) -> bool:
        """Whether Sigma is linear in psi."""
        return True

    def directions(self, psi=None) -> Any:
        """D (size, q, q) at psi; constants where Sigma is linear in psi, as here."""
        return np.stack([self.covariance(unit) for unit in np.eye(self.size)])

    def bends(self, psi) -> Any:
        """B (size, size, q, q) at psi; None where Sigma is linear in psi."""
        return None

    # ---- the optimiser's coordinates ----

    @abstractmethod
    def chart(self, covariance, unit) -> tuple[Any, Any]:
        """A basis (q, q) and the coordinates phi (size,) of a Sigma, the vanishing ones last.

        `unit` (q,) is the unit in which each column's standard deviation is measured.
        """

    @abstractmethod
    def chart_root(self, basis, phi) -> Any:
        """R (q, q), a square root of Sigma."""

    @abstractmethod
    def chart_slopes(self, basis, root, phi, gradient) -> tuple[Any, Any]:
        """The derivative (size, size) of psi in phi, and the second ones of its product with `gradient` (size,)."""

    @abstractmethod
    def chart_sizes(self, phi) -> Any:
        """For each coordinate (size,) the deviation of the direction that it belongs to."""

    def chart_of_entries(self, factor, T) -> tuple[Any, Any]:
        """A basis and phi whose coordinates are the entries of ``lambda`` (q, q) of original columns, one for one.

        Asked for where entries of theta are held at their values.
        """
        raise ModelError(
            f"a covariance with the structure {self.name} has no parameters that can be held (free=, profile_re): fit "
            "all of them, or use method='bootstrap' for intervals"
        )

    def chart_beside(self, leading: Sequence[int], factor, T) -> tuple[np.ndarray, np.ndarray]:
        """A basis with the `leading` columns' own directions first, and phi of ``lambda`` (q, q) in it, in numpy.

        phi[0] is then the standard deviation of the first of them, in units of the length of its row of T. Asked for
        where a standard deviation or a correlation is held.
        """
        raise ModelError(f"parameters of the structure {self.name} have no profile: use method='bootstrap'")

    def has_profile(self, leading: Sequence[int]) -> bool:
        """Whether there is a chart beside these columns."""
        return not leading

    # ---- columns of Z ----

    @abstractmethod
    def preconditioner(self, size, triangle) -> Any:
        """T (q, q) under which the columns have about unit root mean square, uncorrelated where the structure allows.

        `size` (q,) holds the columns' root mean squares; `triangle` (q, q) the triangular factor R of the columns so
        scaled, with pivots of one for columns that others explain.
        """

    # ---- a start by the method of moments ----

    @abstractmethod
    def moment_vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Vectors u (k, q) with Sigma a sum of v uu', and which of the v (k,) is each one's."""

    def nearest(self, covariance) -> Any:
        """The member of the structure that is nearest to a covariance (q, q), as a covariance."""
        return covariance

    def shapes(self) -> np.ndarray:
        """Members of the structure (k, q, q) from multiples of which to start, the identity first."""
        return np.eye(self.q)[None]

    # ---- what people read ----

    @abstractmethod
    def readable(self, columns: Sequence[str], together: str | None = None) -> tuple[Readable, ...]:
        """Standard deviations and correlations, column by column of the lower triangle.

        `together` names what all columns share; their names joined, where it is None.
        """

    def values(self, covariance: np.ndarray) -> np.ndarray:
        """The standard deviations and correlations (..., k) that are `readable`, of Sigma (..., q, q).

        A correlation with a standard deviation of zero is nan.
        """
        sd, out = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1)), []
        for _, second, i, j, _ in self.readable([""] * self.q):
            product = sd[..., i] * sd[..., j]
            ratio = np.divide(covariance[..., i, j], product, where=product > 0, out=np.full(product.shape, np.nan))
            out.append(sd[..., j] if second is None else ratio)
        return np.stack(out, axis=-1)

    @abstractmethod
    def psi_names(self, columns: Sequence[str]) -> list[str]:
        """Names of psi's entries: ``a Var``, ``a x b Cov``."""

    @abstractmethod
    def theta_names(self, columns: Sequence[str], together: str | None = None) -> list[str]:
        """Names of theta's entries: ``a``, ``b.a``."""

    # ---- between the parameters, on the host ----

    @cached_property
    def units(self) -> np.ndarray:
        """Derivatives (size, q, q) of ``lambda`` in theta where it is linear in it."""
        return np.asarray(self.factor(np.eye(self.size)))

    def psi_map(self, T: np.ndarray) -> np.ndarray:
        """The derivative (size, size) of psi of Sigma = T Sigma~ T' in psi of Sigma~."""
        return np.stack([self.psi(T @ direction @ T.T) for direction in self.directions()], axis=1)

    def psi_of_theta(self, theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First (size, size) and second derivatives (size, size, size) of psi, the last axis, in theta (size,).

        Here lambda is linear in theta, and so psi a quadratic form.
        """
        products = np.einsum("kij,lhj->klih", self.units, self.units)
        both = products + products.transpose(0, 1, 3, 2)
        second = np.stack([[self.psi(bend) for bend in row] for row in both])
        return theta @ second, second

    def theta_slopes(self, factor: np.ndarray, T: np.ndarray) -> np.ndarray:
        """Derivatives (size, size) of theta in psi of preconditioned columns, for a factor of full rank."""
        slopes, _ = self.psi_of_theta(self.theta(factor))
        return np.linalg.solve(slopes.T, self.psi_map(T))

    def entries_of_theta(self, theta: np.ndarray) -> np.ndarray:
        """The numbers of theta (size,) in the order of psi."""
        return self.psi(self.factor(theta))

    def told_psi(self, positive: np.ndarray) -> np.ndarray:
        """Which entries of psi (size,) belong to columns that all have `positive` (q,) variances, and so an error."""
        return np.array([positive[np.any(direction != 0, axis=1)].all() for direction in self.directions()])

    def told_theta(self, factor: np.ndarray) -> np.ndarray:
        """The same for theta (size,): beside a zero pivot an entry of ``lambda`` has none."""
        positive, pivots = np.any(factor != 0, axis=-1), np.diagonal(factor) != 0
        return np.array(
            [positive[np.any(u != 0, axis=1)].all() and pivots[np.any(u != 0, axis=0)].all() for u in self.units]
        )

    def settled(self, factor: np.ndarray, zero: np.ndarray) -> np.ndarray:
        """theta (..., size) of ``lambda`` (..., q, q) with the standard deviations that are `zero` (..., q) set to 0.

        Here none vanishes without the others.
        """
        return np.where(zero[..., :1], 0, self.theta(factor))

    def is_singular(self, factor: np.ndarray, T: np.ndarray) -> np.ndarray:
        """Whether Sigma (...,) is singular by a measure without units, for ``lambda`` (..., q, q)."""
        root = np.linalg.solve(T, factor)
        pivots = np.abs(np.diagonal(np.linalg.qr(np.swapaxes(root, -1, -2), mode="r"), axis1=-2, axis2=-1))
        length = np.sqrt(np.sum(root**2, axis=-1))
        return np.any((pivots <= SINGULAR * length) | (length <= SINGULAR), axis=-1)

    def root_of_psi(self, psi: np.ndarray) -> np.ndarray | None:
        """A square root (q, q) of Sigma; None where psi is outside the cone."""
        values, vectors = np.linalg.eigh(self.covariance(psi))
        return None if values[0] < -1e-12 * max(values[-1], 0) else vectors * np.sqrt(np.maximum(values, 0))

    def tangents(self, root: np.ndarray, gradient: np.ndarray, typical: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
        """Directions (size, a) in psi that keep the rank of Sigma = root root', and the bend (a, a) of psi along them.

        The bend is <gradient, second derivatives of psi>. What is nothing beside `typical` is zero.
        """
        with double_precision():
            basis, phi = self.chart(root @ root.T, np.ones(self.q))
            slopes, bend = self.chart_slopes(basis, self.chart_root(basis, phi), phi, gradient)
        moves = np.flatnonzero(np.abs(np.asarray(phi)) > SINGULAR * typical)
        return np.asarray(slopes)[:, moves], np.asarray(bend)[moves[:, None], moves]


@dataclass(frozen=True)
class Straightened:
    """A structure whose Sigma goes on along its tangents: all that derivatives of the likelihood in psi ask of one."""

    structure: Structure

    def __getattr__(self, name: str) -> Any:
        return getattr(self.structure, name)

    def bends(self, psi) -> Any:
        """Zeros (size, size, q, q)."""
        size, q = self.structure.size, self.structure.q
        return jnp.zeros((size, size, q, q), psi.dtype)


def shared_name(columns: Sequence[str], together: str | None = None) -> str:
    """What columns are called that share a parameter: f, of f[a] and f[b]; else all their names, or first and last."""
    stems = {re.sub(r"\[[^\]]*\]", "", str(column)) for column in columns}
    if together or (len(columns) > 1 and len(stems) == 1):
        return together or stems.pop()
    return ", ".join(columns if len(columns) < MANY else (columns[0], "...", columns[-1]))


MANY = 5
"""Columns of which not all are named."""


def split(structures, vector):
    """Cut a parameter vector (..., m) into the pieces of its terms."""
    ends = np.cumsum([s.size for s in structures])
    return [vector[..., end - s.size : end] for s, end in zip(structures, ends, strict=True)]


def join(pieces, dtype):
    """Inverse of `split`, also for no pieces."""
    return jnp.concatenate(pieces) if pieces else jnp.zeros(0, dtype)


def factors_of_theta(structures, theta):
    """``lambda`` (..., q, q) of every term from theta (..., m)."""
    return [structure.factor(piece) for structure, piece in zip(structures, split(structures, theta), strict=True)]


def theta_of_factors(structures, factors, dtype):
    """theta (m,) from ``lambda`` (q, q) of every term."""
    return join([s.theta(factor) for s, factor in zip(structures, factors, strict=True)], dtype)


def rectify(root):
    """The canonical Cholesky factor of ``root @ root.T``: non-negative diagonal, zero column below a zero pivot.

    Gram-Schmidt on the rows of `root` (q, q), twice, which keeps the digits that forming the product would lose. A
    pivot below the fraction `DEPENDENT` of its row's length is zero.
    """
    q = root.shape[0]
    directions, rows = [], []
    for i in range(q):
        rest, row = root[i], []
        length = _safe_norm(rest)
        for direction in directions:
            row.append(jnp.dot(rest, direction))
            rest = rest - row[-1] * direction
        for k, direction in enumerate(directions):
            correction = jnp.dot(rest, direction)
            row[k] = row[k] + correction
            rest = rest - correction * direction
        pivot = _safe_norm(rest)
        zero = pivot <= DEPENDENT * length
        directions.append(jnp.where(zero, 0, rest / jnp.where(zero, 1, pivot)))
        rows.append(jnp.stack([*row, jnp.where(zero, 0, pivot)] + [jnp.zeros_like(pivot)] * (q - 1 - i)))
    return jnp.stack(rows)


def rectified(root):
    """As `rectify`, in numpy, for roots (..., q, q)."""
    directions, out = [], np.zeros_like(root)
    for i in range(root.shape[-1]):
        rest = np.array(root[..., i, :])
        length = np.linalg.norm(rest, axis=-1)
        for _ in range(2):
            for k, direction in enumerate(directions):
                along = np.sum(rest * direction, axis=-1)
                out[..., i, k] += along
                rest -= along[..., None] * direction
        pivot = np.linalg.norm(rest, axis=-1)
        zero = pivot <= 1e-9 * length
        directions.append(np.where(zero[..., None], 0, rest / np.where(zero, 1, pivot)[..., None]))
        out[..., i, i] = np.where(zero, 0, pivot)
    return out


def _safe_norm(x):
    """Euclidean norm whose derivative at zero is zero."""
    square = jnp.sum(x * x)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def block_diagonal(blocks):
    """One matrix with the given square blocks on its diagonal."""
    if len(blocks) == 1:
        return blocks[0]
    ends = np.cumsum([block.shape[0] for block in blocks])
    pads = [(end - block.shape[0], ends[-1] - end) for block, end in zip(blocks, ends, strict=True)]
    return jnp.concatenate([jnp.pad(block, ((0, 0), pad)) for block, pad in zip(blocks, pads, strict=True)])
