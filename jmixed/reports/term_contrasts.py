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

from jmixed.formulas.checks import independent_columns


def term_contrasts(X, values, term, basis, contained_in, kind: int) -> list[np.ndarray]:
    """Contrasts (rows, p) that test each term, by term; no rows where the other terms leave nothing of it.

    Parameters
    ----------
    X : array (n, p)
        Columns of the model.
    values, term : array (n, k), int array (k,)
        Complete columns of all terms, and the term of each.
    basis : int array (p,)
        Complete columns that span all of them, in the order of the terms.
    contained_in
        For each term those that contain it.
    kind
        1, 2 or 3.
    """
    length = np.linalg.norm(values, axis=0)
    length = np.where(length > 0, length, 1)
    width = np.where((size := np.linalg.norm(X, axis=0)) > 0, size, 1)
    triangle = np.asarray(np.linalg.qr(np.hstack([values / length, X / width]), mode="r"))
    full, model, term = triangle[:, : len(term)], triangle[:, len(term) :], np.asarray(term)
    contrasts = []
    for t, containing in enumerate(contained_in):
        in_term, within = term == t, np.isin(term, containing)
        if kind == 3:
            chosen, rows = basis, _marginal(full, basis, length, in_term, within)
        else:
            # After the terms before it, or after all that do not contain it: these leave of it what they do not span.
            order = np.arange(len(term)) if kind == 1 else np.argsort(in_term + 2 * within, kind="stable")
            chosen = basis if kind == 1 else order[independent_columns(full[:, order])]
            rows = _rows(full[:, chosen] * length[chosen], in_term[chosen])
        # gamma of the chosen columns from beta, in columns of the model as they are.
        to_chosen = np.linalg.lstsq(full[:, chosen], model, rcond=None)[0] * width / length[chosen][:, None]
        contrasts.append(rows @ to_chosen)
    return contrasts


def _rows(columns, in_term):
    """Rows of the unit triangular factor of the columns (m, p) that belong to the term's own."""
    triangle = np.asarray(np.linalg.qr(columns, mode="r"))[in_term]
    return triangle / triangle[np.arange(len(triangle)), np.flatnonzero(in_term)][:, None]


def _marginal(full, basis, length, in_term, within):
    """Type III: functions of the term and of those that contain it, orthogonal to the functions of the latter alone.

    Rows of weights of the basis columns. Without an intercept the first factor's columns span the constant: its
    functions are then contrasts where another factor's columns span it too, since those must have no weight.
    """
    estimable = np.linalg.lstsq(full[:, basis], full, rcond=None)[0]
    functions, others = (_without(estimable, rest) * length for rest in (~(in_term | within), ~within))
    left = functions - np.linalg.lstsq(others.T, functions.T, rcond=None)[0].T @ others if len(others) else functions
    return np.linalg.svd(left, full_matrices=False)[2][: len(functions) - len(others), basis]


def _without(estimable, columns):
    """A basis of the estimable functions (rows) that have no weight in the given columns."""
    left, sizes, _ = np.linalg.svd(estimable[:, columns])
    functions = left[:, np.sum(sizes > 1e-8 * np.max(sizes, initial=0)) :].T @ estimable
    return np.where(columns, 0, functions)
