"""Cross-products as sparse matrices, against dense ones."""

import crossed_rows
import numpy as np
import pytest

from jmixed.likelihood import sparse_moments as module
from jmixed.likelihood.sparse_moments import sparse_moments


@pytest.fixture(scope="module", params=[True, False], ids=["weighted", "plain"])
def case(request):
    rows = crossed_rows.rows(weighted=request.param)
    return rows, sparse_moments(rows)


def dense(rows, moments):
    """Preconditioned columns by level, in the moments' numbers."""
    whole = []
    for f, rank in zip(moments.order, moments.ranks, strict=True):
        Z = crossed_rows.dense_Z(rows, f).reshape(len(rows.y), rows.counts[f], -1) @ moments.T[f]
        whole.append(Z[:, np.argsort(rank)].reshape(len(rows.y), -1))
    return whole


def test_the_leaves_have_most_columns_and_popular_levels_come_first(case):
    _, moments = case
    assert moments.order == (0, 1, 2)
    rows_of_level = [np.bincount(rank[codes]) for rank, codes in zip(moments.ranks, case[0].codes, strict=True)]
    assert all(np.all(np.diff(counts) <= 0) for counts in rows_of_level)


def test_cross_products_are_those_of_dense_columns(case):
    rows, moments = case
    Z, W = dense(rows, moments), rows.weights[:, None]
    X = np.column_stack([rows.X @ np.linalg.inv(moments.R), rows.y - rows.offset - rows.X @ moments.beta0])
    np.testing.assert_allclose(moments.G, X.T @ (W * X), atol=1e-9)
    for own, C, B in zip(Z, moments.C, moments.B, strict=True):
        q = C.shape[1]
        whole = own.T @ (W * own)
        np.testing.assert_allclose(C, [whole[i : i + q, i : i + q] for i in range(0, len(whole), q)], atol=1e-10)
        np.testing.assert_allclose(B, own.T @ (W * X), atol=1e-9)
    # A preconditioned column has unit root mean square, and beside an intercept no origin.
    np.testing.assert_allclose(np.sum(moments.C[0], axis=0) / len(rows.y), np.eye(2), atol=1e-8)


def test_products_with_couplings_are_those_of_dense_ones(case, monkeypatch):
    rows, moments = case
    monkeypatch.setattr(module, "SHARED", 10)
    monkeypatch.setattr(module, "CHUNK", 50)
    Z, W, rng = dense(rows, moments), rows.weights[:, None], np.random.default_rng(1)
    pairs = [(0, 1, moments.A[0]), (0, 2, moments.A[1]), (1, 2, moments.within[0, 1])]
    for f, g, A in pairs:
        whole = Z[f].T @ (W * Z[g])
        (n, q), (m, r) = A.shape[:2], A.shape[2:]
        left, right = rng.normal(size=(m * r, 3)), rng.normal(size=(n * q, 3))
        np.testing.assert_allclose(A.times(left), whole @ left, atol=1e-9)
        np.testing.assert_allclose(A.transposed_times(right), whole.T @ right, atol=1e-9)
        blocks = whole.reshape(n, q, m, r)
        G, P = (np.eye(k) + 0.1 * rng.normal(size=(count, k, k)) for count, k in ((n, q), (m, r)))
        own = np.einsum("naml,nab,nbmk->mlk", blocks, G, blocks, optimize=True)
        np.testing.assert_allclose(A.congruence(G), own, atol=1e-8)
        back = np.einsum("naml,mlk,nbmk->nab", blocks, P, blocks, optimize=True)
        np.testing.assert_allclose(A.reversed_congruence(P), back, atol=1e-8)
        np.testing.assert_allclose(A.squares(), np.einsum("namk,namk->ak", blocks, blocks), atol=1e-8)
