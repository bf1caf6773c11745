"""Standard deviations, by column or one for all, times correlations of a few parameters: Sigma = S C(r) S.

psi = theta = (s, r), the standard deviations and what the correlations are made of; S = diag(s). With C_a the first and
C_ab the second derivatives of C in r, and e_i unit vectors,

    dSigma/ds_i = (e_i s' + s e_i') * C       dSigma/dr_a = ss' * C_a       (* entry by entry)

and so on for the second ones. A structure of this kind states C and its derivatives, a lower-triangular root of C, and
angles in which that root is smooth: a correlation at the end of its range is where a sine is one, and so an ordinary
point at which the deviance is even.

One standard deviation is a coordinate of the chart itself: the deviance is even in it. Several are not: beside
correlations of one sign, a column with the opposite sign is not in the structure, and a standard deviation of zero is
an end of its range, with a slope. The chart has their square roots, which make it an ordinary point again.

Correlations of nothing mean nothing: an angle that moves Sigma by less than anybody can tell has no slope, and a unit
of curvature so that it is not taken for a direction in which the data say nothing.
"""

import functools
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from jmixed.covariance.structure import SINGULAR, Readable, Structure, shared_name
from jmixed.runtime.precision import double_precision

UNSEEN = SINGULAR**2
"""A change of Sigma, relative to sigma^2, that is none."""
FAINT = 1e-15
"""What is left of a standard deviation of zero beside others: its correlations are still told."""
UNLIKE = 6
"""Starts with unlike variances and correlations, where there is one by column."""


@dataclass(frozen=True)
class Scaled(Structure):
    """Standard deviations times correlations; see `Structure`.

    Attributes
    ----------
    homogeneous : bool
        Whether all columns share their standard deviation.
    """

    q: int
    intercept: int | None = None
    homogeneous: bool = False

    # ---- what a structure of this kind states ----

    @abstractmethod
    def kinds(self) -> np.ndarray:
        """For each pair of columns (q, q) the parameter that its correlation tells by itself; -1 for none."""

    @abstractmethod
    def correlation(self, r) -> Any:
        """C (q, q) from r (c,)."""

    @abstractmethod
    def correlation_slopes(self, r) -> Any:
        """Derivatives (c, q, q) of C."""

    def correlation_bends(self, r) -> Any:
        """Second derivatives (c, c, q, q) of C; none where it is linear in r, as here."""
        return arrays_of(r).zeros((len(r), len(r), self.q, self.q), r.dtype)

    @abstractmethod
    def angles(self, r) -> Any:
        """Angles (..., c), within a right angle of zero, of the r (..., c) that is nearest to those given."""

    @abstractmethod
    def of_angles(self, angles) -> Any:
        """r (c,) from angles (c,), whatever these are."""

    @abstractmethod
    def lower(self, angles) -> Any:
        """A lower-triangular root (..., q, q) of C, smooth in the angles (..., c), positive within right angles."""

    @abstractmethod
    def names_of_correlations(self) -> list[str]:
        """What the correlations in r are between."""

    # ---- parameters ----

    @functools.cached_property
    def deviations(self) -> int:
        """Number of standard deviations."""
        return 1 if self.homogeneous else self.q

    @functools.cached_property
    def correlations(self) -> int:
        """Number of parameters of the correlations."""
        return int(self.kinds().max(initial=-1)) + 1

    @property
    def size(self):
        return self.deviations + self.correlations

    @property
    def powers(self):
        return np.repeat([1, 0], [self.deviations, self.correlations])

    @property
    def has_several_minima(self):
        return self.q > 1

    def _parts(self, psi):
        """Standard deviations (..., q), and r."""
        s, r = psi[..., : self.deviations], psi[..., self.deviations :]
        return (arrays_of(psi).broadcast_to(s, (*s.shape[:-1], self.q)) if self.homogeneous else s), r

    def factor(self, theta):
        s, r = self._parts(theta)
        return s[..., None] * self.lower(self.angles(r))

    def theta(self, factor):
        return self._read(factor @ factor.swapaxes(-1, -2))

    def covariance(self, psi):
        s, r = self._parts(psi)
        return s[:, None] * s[None] * self.correlation(r)

    def psi(self, covariance):
        return self._read(covariance)

    def _read(self, covariance):
        """psi (..., size) of what is nearly a member: means of standard deviations and of correlations."""
        xp, dtype = arrays_of(covariance), covariance.dtype
        diagonal = covariance * np.eye(self.q, dtype=dtype)
        variances = diagonal.sum(-1)
        if self.homogeneous:
            variances = xp.broadcast_to(variances.mean(-1, keepdims=True), variances.shape)
        positive = variances > 0
        sd = xp.sqrt(xp.where(positive, variances, 1))
        pairs = positive[..., :, None] & positive[..., None, :]
        ratio = xp.where(pairs, covariance / (sd[..., :, None] * sd[..., None, :]), 0)
        means = []
        for kind in range(self.correlations):
            told = (pairs & (self.kinds() == kind)).astype(dtype)
            means.append((ratio * told).sum((-2, -1)) / xp.maximum(told.sum((-2, -1)), 1))
        # A variance below zero is outside of the cone, and so is its root.
        s = xp.where(positive, sd, -xp.sqrt(xp.where(positive, 0, -variances)) if xp is np else 0)
        return xp.concatenate([s[..., : self.deviations], *(mean[..., None] for mean in means)], -1)

    # ---- derivatives of Sigma in psi ----

    @property
    def is_linear(self):
        return False

    def directions(self, psi=None):
        s, r = self._parts(self._somewhere() if psi is None else psi)
        along = _outer_slopes(s) * self.correlation(r)[None]
        along = along.sum(0, keepdims=True) if self.homogeneous else along
        return arrays_of(s).concatenate([along, (s[:, None] * s[None])[None] * self.correlation_slopes(r)])

    def _somewhere(self):
        """A psi at which every entry of Sigma moves that ever does."""
        return np.append(np.ones(self.deviations), np.full(self.correlations, 0.5))

    def bends(self, psi):
        s, r = self._parts(psi)
        xp, unit = arrays_of(s), np.eye(self.q, dtype=s.dtype)
        C, slopes = self.correlation(r), self.correlation_slopes(r)
        both = unit[:, None, :, None] * unit[None, :, None]
        both = (both + both.swapaxes(0, 1)) * C[None, None]
        mixed = _outer_slopes(s)[:, None] * slopes[None]
        if self.homogeneous:
            both, mixed = both.sum((0, 1), keepdims=True), mixed.sum(0, keepdims=True)
        of_correlations = (s[:, None] * s[None])[None, None] * self.correlation_bends(r)
        return xp.concatenate(
            [xp.concatenate([both, mixed], 1), xp.concatenate([mixed.swapaxes(0, 1), of_correlations], 1)],
        )

    # ---- the optimiser's coordinates ----

    def chart(self, covariance, unit):
        psi = self._read(jnp.asarray(covariance))
        s = jnp.maximum(psi[: self.deviations], 0) / unit[: self.deviations]
        s = s if self.homogeneous else jnp.sqrt(jnp.maximum(s - FAINT, 0))
        phi = jnp.concatenate([s, self.angles(psi[self.deviations :])])
        unit = jnp.broadcast_to(unit[:1], unit.shape) if self.homogeneous else unit
        return unit[:, None] * np.eye(self.q, dtype=unit.dtype), phi

    def _deviations(self, phi):
        """Standard deviations (deviations,) in units of the basis, with first and second derivatives."""
        x = phi[: self.deviations]
        if self.homogeneous:
            sign = jnp.where(x < 0, -1, 1).astype(x.dtype)
            return sign * x, sign, jnp.zeros_like(x)
        return x**2 + FAINT, 2 * x, 2 * jnp.ones_like(x)

    def chart_root(self, basis, phi):
        s, _, _ = self._deviations(phi)
        return basis @ (jnp.broadcast_to(s, (self.q,))[:, None] * self.lower(phi[self.deviations :]))

    def chart_slopes(self, basis, root, phi, gradient):
        k = self.deviations
        unit = (basis * np.eye(self.q, dtype=phi.dtype)).sum(1)
        _, slope, bend = self._deviations(phi)
        first, second = jnp.diag(unit[:k] * slope), jnp.diag(unit[:k] * bend * gradient[:k])
        if not self.correlations:
            return first, second
        turns, curls, reach = self._turned(unit, phi)
        seen = (reach > UNSEEN).astype(phi.dtype)
        turns = turns * seen[None]
        curls = jnp.tensordot(gradient[k:], curls, 1) * (seen[:, None] * seen[None]) + jnp.diag(1 - seen)
        pad = ((0, 0), (0, self.correlations)), ((0, 0), (k, 0))
        return (
            jnp.concatenate([jnp.pad(first, pad[0]), jnp.pad(turns, pad[1])]),
            jnp.concatenate([jnp.pad(second, pad[0]), jnp.pad(curls, pad[1])]),
        )

    def _turned(self, unit, phi):
        """Derivatives of r in the angles, (c, c) and (c, c, c), and by how much each angle (c,) moves Sigma."""
        angles = phi[self.deviations :]
        turns, curls = jax.jacfwd(self.of_angles)(angles), jax.jacfwd(jax.jacfwd(self.of_angles))(angles)
        r, s = self.of_angles(angles), unit * jnp.broadcast_to(self._deviations(phi)[0], (self.q,))
        slopes = self.correlation_slopes(r)
        first = jnp.einsum("aij,ak->kij", slopes, turns)
        second = jnp.einsum("aij,akk->kij", slopes, curls)
        second += jnp.einsum("abij,ak,bk->kij", self.correlation_bends(r), turns, turns)
        moved = (jnp.abs(first) + jnp.abs(second)) * (s[:, None] * s[None])[None]
        return turns, curls, jnp.max(moved, axis=(1, 2))

    def chart_sizes(self, phi):
        size = jnp.abs(phi[: self.deviations])
        # Of square roots next to zero: the change that one part in a thousand of sigma makes.
        size = size if self.homogeneous else jnp.maximum(size, 1e-3 / (2 * jnp.maximum(size, 1e-4)))
        return jnp.concatenate([size, jnp.ones_like(phi[self.deviations :])])

    def chart_beside(self, leading, factor, T):
        if not self.has_profile(leading):
            return super().chart_beside(leading, factor, T)
        psi = self.theta(np.linalg.solve(T, factor))
        s, r = psi[: self.deviations], psi[self.deviations :]
        return np.eye(self.q), np.append(s if self.homogeneous else np.sqrt(s), self.angles(r))

    def has_profile(self, leading):
        return not leading or (self.homogeneous and len(leading) == 1)

    # ---- columns of Z ----

    def preconditioner(self, size, triangle):
        unit = np.eye(self.q, dtype=size.dtype)
        return unit / ((size**2).mean() ** 0.5) if self.homogeneous else unit / size[:, None]

    def moment_vectors(self):
        owner = np.zeros(self.q, int) if self.homogeneous else np.arange(self.q)
        if not self.correlations:
            return np.eye(self.q), owner
        return np.vstack([np.eye(self.q), np.ones((1, self.q))]), np.append(owner, self.deviations)

    def nearest(self, covariance):
        psi = self._read(covariance)
        r = self.of_angles(self.angles(psi[self.deviations :]))
        return self.covariance(arrays_of(psi).concatenate([psi[: self.deviations], r]))

    def shapes(self):
        return np.stack([np.eye(self.q), *(self.covariance(psi) for psi in self._elsewhere())])

    def _elsewhere(self):
        """psi with correlations, and by column with unlike variances, from which to start; the same in every run."""
        k, c = self.deviations, self.correlations
        for angle in (0.9, -0.9) if c else ():
            yield np.append(np.ones(k), self.of_angles(np.append(angle, np.zeros(c - 1))))
        if c and not self.homogeneous:
            rng = np.random.default_rng(0)
            for _ in range(UNLIKE):
                yield np.append(np.exp(rng.normal(size=k)), self.of_angles(rng.uniform(-1.4, 1.4, c)))

    # ---- what people read ----

    def readable(self, columns, together=None):
        return self._named(columns, together)

    def _named(self, columns: Sequence[str], together: str | None) -> tuple[Readable, ...]:
        all_of_them = shared_name(columns, together)
        names = [all_of_them] if self.homogeneous else [str(column) for column in columns]
        entries = [Readable(name, None, k, k) for k, name in enumerate(names)]
        for kind, name in enumerate(self.names_of_correlations()):
            row, column = np.argwhere(self.kinds() == kind)[0][::-1]
            entries.append(Readable(all_of_them, name, int(row), int(column), several=not self.homogeneous))
        return tuple(entries)

    def values(self, covariance):
        told = self._told(np.diagonal(covariance, axis1=-2, axis2=-1) > 0)
        told[..., : self.deviations] = True
        return np.where(told, self._read(covariance), np.nan)

    def psi_names(self, columns):
        entries = self._named(columns, None)
        return [f"{e.first} SD" if e.second is None else f"{e.first} {e.second} Cor" for e in entries]

    def theta_names(self, columns, together=None):
        entries = self._named(columns, together)
        return [e.first if e.second is None else f"{e.second}.{e.first}" for e in entries]

    # ---- between the parameters, on the host ----

    def psi_map(self, T):
        return np.diag(np.append(np.diag(T)[: self.deviations], np.ones(self.correlations)))

    def psi_of_theta(self, theta):
        return np.eye(self.size), np.zeros((self.size,) * 3)

    def theta_slopes(self, factor, T):
        return self.psi_map(T)

    def entries_of_theta(self, theta):
        return theta

    def _told(self, positive):
        """Which parameters (..., size) columns that vary, `positive` (..., q), tell: two have a correlation."""
        several = positive.sum(-1, keepdims=True) > 1
        return np.concatenate([positive[..., : self.deviations], np.repeat(several, self.correlations, -1)], -1)

    def told_psi(self, positive):
        return self._told(positive)

    def told_theta(self, factor):
        told = self.told_psi(np.any(factor != 0, axis=-1))
        told[self.deviations :] &= np.all(np.diag(factor) > SINGULAR * np.linalg.norm(factor, axis=1))
        return told

    def settled(self, factor, zero):
        zero = np.broadcast_to(zero.all(-1, keepdims=True), zero.shape) if self.homogeneous else zero
        return np.where(self._told(~zero), self.theta(factor), 0)

    def root_of_psi(self, psi):
        return None if np.any(psi[: self.deviations] < 0) else super().root_of_psi(psi)

    def tangents(self, root, gradient, typical=1.0):
        with double_precision():
            basis, phi = self.chart(root @ root.T, np.ones(self.q))
            slopes, bend = self.chart_slopes(basis, root, phi, gradient)
            varies = [self._deviations(phi)[0] > SINGULAR * typical]
            if self.correlations:
                _, _, reach = self._turned(jnp.ones(self.q), phi)
                varies.append((reach > UNSEEN * typical**2) & (jnp.cos(phi[self.deviations :]) > SINGULAR))
            moves = np.flatnonzero(np.concatenate(varies))
        return np.asarray(slopes)[:, moves], np.asarray(bend)[np.ix_(moves, moves)]


def arrays_of(a) -> Any:
    """numpy for its own arrays, jax.numpy for others."""
    return np if isinstance(a, np.ndarray) else cast(Any, jnp)


def arcsine(sine):
    """The angle within a right angle of zero, with a derivative of zero at the ends, where it has none."""
    xp = arrays_of(sine)
    sine = xp.clip(sine, -1, 1)
    left = 1 - sine**2
    return xp.arctan2(sine, xp.where(left > 0, xp.sqrt(xp.where(left > 0, left, 1)), 0))


def _outer_slopes(s):
    """Derivatives (q, q, q) of s s' in s (q,)."""
    unit = np.eye(len(s), dtype=s.dtype)
    return unit[:, :, None] * s[None, None] + unit[:, None] * s[None, :, None]
