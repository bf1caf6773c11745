"""Parameters with their covariance, and the tests that rest on it: the part of a result that statsmodels defines.

Everything here is on the scale of ``params``: coefficients as they are, variances divided by ``scale``.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from jmixed.compat import contrasts
from jmixed.compat.packing import Packing
from jmixed.compat.params import MixedLMParams
from jmixed.covariance.scales import diagonal_blocks
from jmixed.errors import DataError, ModelError
from jmixed.fit.host import Fit
from jmixed.formulas.model_data import ModelData
from jmixed.inference import tails
from jmixed.reports.fitted import Fitted, Held
from jmixed.reports.hypotheses import hypotheses, in_words, require_consistent
from jmixed.reports.names import fixed_terms
from jmixed.runtime.precision import FLOAT


def cov_re(spec: ModelData, fit: Fit) -> np.ndarray:
    """Covariance of the random effects that are no variance components, on the scale of the data."""
    return diagonal_blocks(*(fit.covariances[term.label] for term in spec.terms if term.vc is None))


def vcomp(spec: ModelData, fit: Fit) -> np.ndarray:
    """Variance components, on the scale of the data."""
    return np.array([fit.covariances[term.label][0, 0] for term in spec.terms if term.vc is not None], FLOAT)


def params_object(spec: ModelData, fit: Fit, reml: bool | None = None) -> MixedLMParams:
    """The estimates as start values."""
    scale = float(fit.sigma) ** 2
    params = MixedLMParams.from_components(fit.beta, cov_re=cov_re(spec, fit) / scale, vcomp=vcomp(spec, fit) / scale)
    params.reml = reml
    return params


def held(spec: ModelData, fit: Fit, free: MixedLMParams | None) -> Held | None:
    """What a fit estimated, from a pattern of zeros and ones."""
    if free is None:
        return None
    free_psi = Packing.of(spec.terms).pack(free.cov_re, free.vcomp, "free") != 0
    again = {"free": free, "start_params": params_object(spec, fit)}
    return Held(np.asarray(free.fe_params) != 0, free_psi, again)


def estimate(fitted: Fitted) -> np.ndarray:
    """Coefficients and relative variances, array (k,)."""
    return np.concatenate([fitted.fit.beta, fitted.psi])


def covariance(fitted: Fitted) -> np.ndarray:
    """Their covariance, array (k, k)."""
    size = fitted.k_fe + len(fitted.psi)
    return fitted.vcov[:size, :size]


def errors(fitted: Fitted) -> np.ndarray:
    """Their standard errors, array (k,)."""
    variances = np.concatenate([np.diag(fitted.fit.vcov_beta), np.diag(fitted.fit.uncertainty.vcov_psi)])
    return tails.standard_errors(variances)


def tvalues(fitted: Fitted) -> np.ndarray:
    """Estimates over their standard errors, array (k,)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return estimate(fitted) / errors(fitted)


def conf_int(fitted: Fitted, alpha: float, cols: Sequence[int] | None) -> pd.DataFrame:
    """Normal confidence limits."""
    half, middle = tails.quantile(tails.outer(alpha)) * errors(fitted), estimate(fitted)
    if cols is not None:
        fitted.warn_of_positions(cols)
    limits = np.column_stack([middle - half, middle + half])
    table: Any = pd.DataFrame(limits, index=list(fitted.names.all)) if fitted.labelled else limits
    if cols is None:
        return table
    return table.iloc[np.asarray(cols)] if isinstance(table, pd.DataFrame) else table[np.asarray(cols)]


def cov_params(fitted: Fitted, r_matrix: Any, column: Any, scale: float | None, cov_p: Any, other: Any) -> Any:
    """The covariance, or a part or a product of it."""
    if column is not None and (r_matrix is not None or other is not None):
        raise DataError("cov_params: give column or r_matrix, not both")
    if other is not None and r_matrix is None:
        raise DataError("cov_params: other needs r_matrix")
    cov = covariance(fitted) if cov_p is None else np.asarray(cov_p, FLOAT)
    if scale is not None and cov_p is None:
        cov = cov / fitted.sigma**2 * scale
    if column is not None:
        fitted.warn_of_positions(column)
        places = np.asarray(column)
        return cov[places, places] if places.ndim == 0 else cov[np.ix_(places, places)]
    if r_matrix is not None:
        left = np.asarray(r_matrix, FLOAT)
        right = left if other is None else np.asarray(other, FLOAT)
        for name, factor in (("r_matrix", left), ("other", right)):
            if factor.shape[-1] != len(cov):
                raise DataError(f"{name} has shape {factor.shape}: give a column for each of {len(cov)} parameters")
        return left @ cov @ right.T
    return fitted.matrix(cov, fitted.names.all)


def t_test(fitted: Fitted, r_matrix: Any, use_t: bool) -> contrasts.ContrastTest:
    """Tests of combinations of the coefficients one by one."""
    fitted.warn_of_positions(r_matrix)
    R, q = hypotheses(r_matrix, fitted.names.fixed, fitted.spec.dropped)
    return contrasts.contrast_test(R, q, fitted.fit.beta, fitted.fit.vcov_beta, fitted.df_resid, use_t)


def wald_test(
    fitted: Fitted, r_matrix: Any, cov_p: Any = None, invcov: Any = None, use_f: bool = False, df: int | None = None
) -> contrasts.ContrastTest:
    """A joint test of combinations of the parameters, with `df` constraints."""
    fitted.warn_of_positions(r_matrix)
    R, q = _hypotheses(fitted, r_matrix)
    require_consistent(R, q)
    cov = covariance(fitted) if cov_p is None else np.asarray(cov_p, FLOAT)
    # Parameters without a standard error do not matter unless they are tested.
    used = np.any(R != 0, axis=0)
    R, tested, cov = R[:, used], estimate(fitted)[used], cov[np.ix_(used, used)]
    if invcov is not None:
        if np.shape(invcov) != (len(R), len(R)):
            raise DataError(f"invcov has shape {np.shape(invcov)}: give a row and a column for each of {len(R)} rows")
        if np.linalg.matrix_rank(invcov) < len(R):
            raise DataError("invcov is singular: it must be the inverse covariance of the combinations")
        tested, q, cov, R = R @ tested - q, np.zeros(len(q)), np.linalg.inv(invcov), np.eye(len(q))
    return contrasts.wald_test(R, q, tested, cov, fitted.df_resid, use_f, df)


def _hypotheses(fitted: Fitted, spec: Any) -> tuple[np.ndarray, np.ndarray]:
    """Hypotheses about all parameters; a matrix may also have columns for the coefficients only."""
    names = fitted.names
    matrix = spec[0] if isinstance(spec, tuple) and len(spec) == 2 and not isinstance(spec[0], str) else spec
    if not in_words(spec) and np.atleast_2d(np.asarray(matrix)).shape[1] == len(names.fixed):
        R, q = hypotheses(spec, names.fixed, fitted.spec.dropped)
        return np.hstack([R, np.zeros((len(R), len(names.variance)))]), q
    return hypotheses(spec, names.all, fitted.spec.dropped)


def wald_test_terms(
    fitted: Fitted, skip_single: bool, extra_constraints: Any, combine_terms: Sequence[str] | None, use_f: bool
) -> contrasts.ContrastTest:
    """Joint tests of the terms of the formula."""
    terms = fixed_terms(fitted.spec)
    tests = [(name, places) for name, places in terms.items() if len(places) > (1 if skip_single else 0)]
    for text in combine_terms or ():
        places = [place for name, columns in terms.items() if text in name for place in columns]
        if not places:
            raise ModelError(f"combine_terms: no term contains {text!r}; the terms are {list(terms)}")
        tests.append((text, places))
    rows = pd.DataFrame(np.eye(len(fitted.names.all)), columns=list(fitted.names.all))
    wanted = [(name, rows.iloc[list(places)]) for name, places in tests] + list(extra_constraints or ())
    return contrasts.of_terms([(name, wald_test(fitted, spec, use_f=use_f)) for name, spec in wanted])
