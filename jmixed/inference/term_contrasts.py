"""Contrasts of the coefficients that test whole terms: types I, II and III as SAS and lmerTest define them.

A hypothesis belongs to a term, not to the coding of its categories. It is therefore found in complete columns, an
indicator for each combination of categories, and brought to the coefficients of the model at the end: with X the
model's columns and D columns that span the same space, D gamma = X beta gives gamma = D^+ X beta.

Type I    what the term explains beyond the terms before it: rows of the triangular factor of D (Doolittle's method).
Type II   beyond all terms that do not contain it.
Type III  the estimable functions of its own coefficients that are orthogonal to those of the terms that contain it:
          contrasts of means over all other categories with equal weights (SAS Technical Report R-101).
"""

import numpy as np


def term_contrasts(X, values, term, basis, contained_in, kind: int) -> list[np.ndarray]:
    """Contrasts that test each term.

    Parameters
    ----------
    X : array (n, p)
        Columns of the model.
    values : array (n, k)
        Complete columns of all terms.
    term : int array (k,)
        The term of each column.
    basis : int array (p,)
        Complete columns that span all of them, in the order of the terms.
    contained_in : sequence of sequences of int
        For each term those that contain it.
    kind : int
        1, 2 or 3.

    Returns
    -------
    list of arrays (rows, p)
        By term; no rows where the other terms leave nothing of it.
    """
    length = np.linalg.norm(values, axis=0)
    length = np.where(length > 0, length, 1)
    width = np.where((size := np.linalg.norm(X, axis=0)) > 0, size, 1)
    triangle = np.asarray(np.linalg.qr(np.hstack([values / length, X / width]), mode="r"))
    full, model = triangle[:, : len(term)], triangle[:, len(term) :]
    chosen, owner, unit = full[:, basis], np.asarray(term)[basis], length[basis]
    # gamma of the basis from beta, in columns of the model as they are.
    to_basis = np.linalg.lstsq(chosen, model, rcond=None)[0] * width / unit[:, None]
    count = len(contained_in)
    if kind == 3:
        estimable = np.linalg.lstsq(chosen, full, rcond=None)[0] * length / unit[:, None]
        found = [_marginal(estimable, owner, t, contained_in[t])[:, basis] for t in range(count)]
    elif kind == 2:
        found = [_beyond_others(chosen * unit, owner, t, contained_in[t]) for t in range(count)]
    else:
        found = [_rows(chosen * unit, owner == t) for t in range(count)]
    return [rows @ to_basis for rows in found]


def _rows(columns, own):
    """Rows of the unit triangular factor of the columns (m, p) that belong to the term's own."""
    triangle = np.asarray(np.linalg.qr(columns, mode="r"))[own]
    return triangle / triangle[np.arange(len(triangle)), np.flatnonzero(own)][:, None]


def _beyond_others(columns, owner, t, containing):
    """Type II: as type I, with the term after all that do not contain it."""
    if not containing:
        return np.eye(len(owner))[owner == t]
    rank = np.where(owner == t, 1, np.where(np.isin(owner, containing), 2, 0))
    order = np.argsort(rank, kind="stable")
    rows = np.zeros((np.sum(owner == t), len(owner)))
    rows[:, order] = _rows(columns[:, order], rank[order] == 1)
    return rows


def _marginal(estimable, owner, t, containing):
    """Type III: the term's own estimable functions, orthogonal to those of the terms that contain it."""
    own, others = estimable[owner == t], estimable[np.isin(owner, containing)]
    left = own - np.linalg.lstsq(others.T, own.T, rcond=None)[0].T @ others if len(others) else own
    return left[np.sum(np.abs(left), axis=1) > 1e-8 * np.max(np.abs(own), initial=0)]
