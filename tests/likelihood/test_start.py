"""The start by moments, against the moment equations with matrices of all rows."""

import jax
import layouts
import numpy as np
import pytest

import jmixed as jm
from jmixed.likelihood.start import LARGEST, SMALLEST, moment_covariances
from jmixed.runtime.precision import double_precision

NAMES = ("slope", "identity", "nested three", "nested and crossed", "crossed", "sparse")


def directions(name, term):
    """A basis (k, q, q) of the term's covariances; the core of the sparse layout has its diagonal only."""
    q = term.Z.shape[1]
    if term.structure == "identity":
        return [np.eye(q)]
    units = np.eye(q)
    diagonal = [np.outer(u, u) for u in units]
    if name == "sparse" and not term.label.endswith("| g"):
        return diagonal
    pairs = [np.outer(units[i], units[j]) for i in range(q) for j in range(i)]
    return diagonal + [p + p.T for p in pairs]


def by_rows(name, case, T):
    """The solution of the moment equations, their forms written as n x n matrices."""
    W = np.diag(case.weights)
    root = np.sqrt(case.weights)
    y = case.y - case.offset
    y = y - case.X @ np.linalg.lstsq(root[:, None] * case.X, root * y, rcond=None)[0]
    forms, owners = [np.linalg.inv(W)], [None]
    for t, term in enumerate(case.terms):
        Z = term.Z @ T[t]
        for D in directions(name, term):
            forms.append((Z @ D @ Z.T) * term.same)
            owners.append((t, D))
    weighted = [W @ form @ W for form in forms]
    system = np.array([[np.sum(a * form) for form in forms] for a in weighted])
    solved = np.linalg.solve(system, [y @ a @ y for a in weighted])
    sigma = solved[0] if solved[0] > 0 else y @ W @ y / len(y)
    out = []
    for t in range(len(case.terms)):
        own = sum(v * owner[1] for v, owner in zip(solved, owners, strict=True) if owner and owner[0] == t) / sigma
        values, vectors = np.linalg.eigh(own)
        out.append((vectors * np.clip(values, SMALLEST, LARGEST)) @ vectors.T)
    return out


@pytest.mark.sweep(3)
@pytest.mark.parametrize("name", NAMES)
def test_start_solves_the_moment_equations(name):
    case = layouts.case(name, seed=2)
    with double_precision():
        held = jm.moments(case.design)
        found = jax.device_get(layouts.quick_jit(moment_covariances)(held))
        T = jax.device_get(held.T)
    for own, expected in zip(found, by_rows(name, case, T), strict=True):
        np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-8)
