"""What NumPy and LAPACK do for the steps of a JAX program that decompose matrices, or solve with them."""

import functools
import operator

import numpy as np
from scipy.linalg import get_blas_funcs, get_lapack_funcs

from jmixed.runtime.primitives import UnknownStepError, nothing, step


def _each(function, *stacks):
    """A factorisation of every matrix of stacks, all nan where it fails; as many arrays as it returns."""
    batch = stacks[0].shape[:-2]
    try:
        return function(*stacks)
    except np.linalg.LinAlgError:
        if not batch:
            with np.errstate(all="ignore"):
                return _failed(function, *stacks)
    flat = [stack.reshape((-1, *stack.shape[-2:])) for stack in stacks]
    parts = [_each(function, *matrices) for matrices in zip(*flat, strict=True)]
    return tuple(np.stack(column).reshape(batch + column[0].shape) for column in zip(*parts, strict=True))


def _failed(function, matrix):
    return tuple(np.full_like(out, np.nan) for out in function(np.eye(*matrix.shape, dtype=matrix.dtype)))


def cholesky(A):
    """Lower factors; nan for a matrix that has none."""
    return _each(_cholesky, np.asarray(A))[0]


def _cholesky(A):
    return (np.linalg.cholesky(A),)


def eigh(A, lower):
    """Eigenvectors and eigenvalues, these from the smallest to the largest; nan for a matrix that is none."""
    return _each(_eigh_lower if lower else _eigh_upper, np.asarray(A))


def _eigh_lower(A):
    values, vectors = np.linalg.eigh(A, UPLO="L")
    return vectors, values


def _eigh_upper(A):
    values, vectors = np.linalg.eigh(A, UPLO="U")
    return vectors, values


def qr(A, mode):
    """Orthogonal factors and triangles."""
    return tuple(np.linalg.qr(A, mode=mode))


def svd(A, full):
    """Singular values, then left and right vectors; nan for a matrix that is none."""
    return _each(_svd_full if full else _svd_thin, np.asarray(A))


def _svd_full(A):
    left, values, right = np.linalg.svd(A, full_matrices=True)
    return values, left, right


def _svd_thin(A):
    left, values, right = np.linalg.svd(A, full_matrices=False)
    return values, left, right


def lu(A):
    """Triangular factors of matrices in one, the rows that were exchanged, and the order of rows that this gives."""
    A = np.asarray(A)
    rows, columns = A.shape[-2:]
    (getrf,) = get_lapack_funcs(("getrf",), (A,))
    parts = [getrf(a)[:2] for a in A.reshape((-1, rows, columns))]
    factors, pivots = (np.stack(part) for part in zip(*parts, strict=True))
    pivots = pivots.astype(np.int32).reshape((*A.shape[:-2], -1))
    return factors.astype(A.dtype).reshape(A.shape), pivots, permutation(pivots, rows)


def permutation(pivots, size):
    """The order of rows after rows have been exchanged, one after the other."""
    order = np.broadcast_to(np.arange(size, dtype=np.int32), (*pivots.shape[:-1], size)).copy()
    for k in range(pivots.shape[-1]):
        other = pivots[..., k, None]
        moved = np.take_along_axis(order, other, axis=-1)
        np.put_along_axis(order, other, order[..., k, None], axis=-1)
        order[..., k] = moved[..., 0]
    return order


def triangular_solution(A, B, left, lower, turned, unit):
    """Solutions of triangular equations; a zero on the diagonal gives infinities or nan, and no error."""
    A, B = np.asarray(A), np.asarray(B)
    n = A.shape[-1]
    if n <= FEW_COLUMNS and A.ndim > 2:
        if not left:
            A, B, turned = A, np.swapaxes(B, -1, -2), not turned
        if turned:
            A, lower = np.swapaxes(A, -1, -2), not lower
        X = np.empty_like(B)
        for k in range(n) if lower else reversed(range(n)):
            known = slice(0, k) if lower else slice(k + 1, n)
            rest = B[..., k, :] - np.einsum("...j,...jc->...c", A[..., k, known], X[..., known, :])
            X[..., k, :] = rest if unit else rest / A[..., k, k, None]
        return X if left else np.swapaxes(X, -1, -2)
    (trsm,) = get_blas_funcs(("trsm",), (A, B))
    solve = functools.partial(trsm, 1.0, side=not left, lower=lower, trans_a=turned, diag=unit)
    if A.ndim == 2:
        return solve(A, B)
    flat = zip(A.reshape((-1, n, n)), B.reshape((-1, *B.shape[-2:])), strict=True)
    return np.stack([solve(a, b) for a, b in flat]).reshape(B.shape)


FEW_COLUMNS = 8


@step("cholesky")
def _(_):
    return cholesky, ()


@step("eigh")
def _(equation):
    if equation.params.get("subset_by_index") is not None:
        raise UnknownStepError("eigh of some")
    return eigh, (bool(equation.params["lower"]),)


@step("qr")
def _(equation):
    if equation.params.get("pivoting"):
        raise UnknownStepError("qr with pivots")
    return qr, ("complete" if equation.params["full_matrices"] else "reduced",)


@step("svd")
def _(equation):
    if not equation.params["compute_uv"]:
        raise UnknownStepError("svd without vectors")
    return svd, (bool(equation.params["full_matrices"]),)


@step("lu")
def _(equation):
    if 0 in equation.invars[0].aval.shape:
        raise UnknownStepError("lu of nothing")
    return lu, ()


@step("lu_pivots_to_permutation")
def _(equation):
    return permutation, (equation.params["permutation_size"],)


@step("triangular_solve")
def _(equation):
    names = "left_side", "lower", "transpose_a", "unit_diagonal"
    out = equation.outvars[0].aval
    if 0 in out.shape:
        return nothing, (tuple(out.shape), np.dtype(out.dtype))
    return triangular_solution, tuple(bool(value) for value in operator.itemgetter(*names)(equation.params))
