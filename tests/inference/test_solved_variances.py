"""Variances of predictions by solves, against the dense inverse of the equations of all coefficients."""

from types import SimpleNamespace
from typing import Any

import crossed_rows
import numpy as np
import pytest
import scipy.linalg

from jmixed.inference import solved_variances as module
from jmixed.inference.solved_variances import solved_variances

SIGMA = 1.3


@pytest.fixture(scope="module")
def case():
    rows = crossed_rows.rows(n=140, counts=(25, 12, 6))
    covariances = {"a": np.array([[0.8, -0.1], [-0.1, 0.3]]), "b": np.array([[0.5]]), "c": np.array([[0.2]])}
    fit: Any = SimpleNamespace(covariances={name: SIGMA**2 * own for name, own in covariances.items()}, sigma=SIGMA)
    Z = np.hstack([crossed_rows.dense_Z(rows, t) for t in range(3)])
    priors = [np.linalg.inv(np.kron(np.eye(n), own)) for n, own in zip(rows.counts, covariances.values(), strict=True)]
    P = np.linalg.inv(Z.T @ (rows.weights[:, None] * Z) + scipy.linalg.block_diag(*priors))
    return rows, solved_variances(rows, fit), Z, P


def test_of_predictors(case, monkeypatch):
    rows, solved, Z, P = case
    monkeypatch.setattr(module, "BATCH", 3)
    codes, columns = [code[:7] for code in rows.codes], [own[:7] for own in rows.Z]
    codes[1] = np.where(np.arange(7) == 2, -1, codes[1])
    z = Z[:7].copy()
    z[2, 50:62] = 0  # A level that is not known has no effect.
    directions, beside = solved.spread(rows.X[:7], codes, columns)
    reach = P @ Z.T @ (rows.weights[:, None] * rows.X)
    np.testing.assert_allclose(directions, rows.X[:7] - z @ reach, atol=1e-8)
    np.testing.assert_allclose(beside, SIGMA**2 * np.einsum("ij,jk,ik->i", z, P, z), rtol=1e-8)


def test_of_levels(case, monkeypatch):
    _, solved, _, P = case
    monkeypatch.setattr(module, "BATCH", 10)
    start = 0
    for t, (levels, q) in enumerate(((25, 2), (12, 1), (6, 1))):
        own = [P[i : i + q, i : i + q] for i in range(start, start + levels * q, q)]
        np.testing.assert_allclose(solved.level_blocks([t]), SIGMA**2 * np.array(own), rtol=1e-7, atol=1e-10)
        start += levels * q
