"""Parameters with their covariance, and the tests that rest on it: the part of a result that statsmodels defines."""

from functools import cached_property
from typing import Any, overload

import numpy as np
import pandas as pd

from jmixed.compat import contrasts
from jmixed.covariance.scales import diagonal_blocks
from jmixed.errors import DataError, ModelError, warn
from jmixed.fit.host import Fit
from jmixed.formulas.model_data import ModelData
from jmixed.inference import tails
from jmixed.reports.hypotheses import hypotheses, in_words, positional, require_consistent
from jmixed.reports.names import ParameterNames, fixed_terms, patsy_order
from jmixed.runtime.precision import FLOAT


class WaldInference:
    """Parameters, covariances and Wald tests of a fit; `MixedLMResults` is built on it.

    Everything here is on the scale of ``params``: coefficients as they are, variances divided by ``scale``.
    """

    _spec: ModelData
    _fit: Fit
    _names: ParameterNames
    _labelled: bool
    df_resid: int
    use_t: bool

    # Type checkers are told of the tables that nearly all models give; those of arrays without labels give arrays.
    def _vector(self, values, names) -> pd.Series:
        found: Any = pd.Series(values, index=list(names)) if self._labelled else np.array(values, FLOAT)
        return found

    def _matrix(self, values, names) -> pd.DataFrame:
        names = list(names)
        found: Any = pd.DataFrame(values, index=names, columns=names) if self._labelled else np.array(values, FLOAT)
        return found

    @cached_property
    def _psi(self) -> np.ndarray:
        """Variance parameters divided by the residual variance, in the order of ``params``."""
        pieces = [np.zeros(0)]
        for term in self._spec.terms:
            relative = self._fit.covariances[term.label] / self._fit.sigma**2
            identity = term.structure == "identity"
            pieces.append(relative[:1, 0] if identity else relative[np.tril_indices(len(relative))])
        return np.concatenate(pieces)

    @cached_property
    def _estimate(self) -> np.ndarray:
        return np.concatenate([self._fit.beta, self._psi])

    @cached_property
    def _cov(self) -> np.ndarray:
        return diagonal_blocks(self._fit.vcov_beta, self._fit.uncertainty.vcov_psi)

    @cached_property
    def _bse(self) -> np.ndarray:
        variances = np.diag(self._cov)
        # A negative variance is no variance: the information was not positive definite there.
        return np.sqrt(np.where(variances >= 0, variances, np.nan))

    @cached_property
    def _bse_re(self) -> np.ndarray:
        """Delta method for ``scale * psi``, with the uncertainty of the scale and its covariance with psi."""
        fit, psi, known = self._fit, self._psi, self._fit.uncertainty
        # A variance of zero has no error, and the others have theirs as if it was known.
        across, spread = known.with_scale
        own = fit.sigma**4 * np.diag(known.vcov_psi) + 2 * fit.sigma**2 * psi * across
        variances = own + psi**2 * (spread + fit.scale_variance)
        held = np.diag(known.vcov_psi) == 0
        return np.sqrt(np.where(held, 0.0, np.where(variances >= 0, variances, np.nan)))

    @property
    def params(self) -> pd.Series:
        """Coefficients, then variance parameters divided by ``scale``: Series, or array (k,) without labels.

        Examples
        --------
        >>> result.params.round(3).to_dict()
        {'Intercept': 251.405, 'Days': 10.467, 'Subject Var': 0.935, 'Subject x Days Cov': 0.015, 'Days Var': 0.054}
        """
        return self._vector(self._estimate, self._names.all)

    @property
    def fe_params(self) -> pd.Series:
        """Fixed-effects coefficients, in the response's unit per unit of the column: Series, or array (k_fe,).

        Examples
        --------
        >>> result.fe_params.round(3).to_dict()
        {'Intercept': 251.405, 'Days': 10.467}
        """
        return self._vector(self._fit.beta, self._names.fixed)

    @property
    def bse(self) -> pd.Series:
        """Standard errors of ``params``, on its scale: Series, or array (k,).

        Examples
        --------
        >>> result.bse.round(3).tolist()
        [6.825, 1.546, 0.464, 0.071, 0.024]
        """
        return self._vector(self._bse, self._names.all)

    @property
    def bse_fe(self) -> pd.Series:
        """Standard errors of the coefficients by generalised least squares, sigma^2 (X'V^-1 X)^-1, as `fe_params`.

        Examples
        --------
        >>> result.bse_fe.round(3).to_dict()
        {'Intercept': 6.825, 'Days': 1.546}
        """
        return self._vector(self._bse[: len(self._fit.beta)], self._names.fixed)

    @property
    def bse_re(self) -> pd.Series:
        """Standard errors of the variance parameters on the scale of the data, that of ``cov_re`` and ``vcomp``.

        By the delta method from the joint information of the relative variances and the residual variance. Their
        distribution is skewed: intervals should come from a profile or a bootstrap.

        Examples
        --------
        >>> result.bse_re.round(1).to_dict()
        {'Subject Var': 288.8, 'Subject x Days Cov': 46.7, 'Days Var': 14.8}
        """
        return self._vector(self._bse_re, self._names.variance)

    @property
    def tvalues(self) -> pd.Series:
        """``params / bse``: Series, or array (k,).

        Examples
        --------
        >>> result.tvalues.round(3).tolist()
        [36.838, 6.771, 2.013, 0.206, 2.248]
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._vector(self._estimate / self._bse, self._names.all)

    @property
    def pvalues(self) -> pd.Series:
        """Two-sided normal p-values of ``tvalues``; for variance parameters they mean little.

        Examples
        --------
        >>> float(result.pvalues["Days"]) < 1e-10
        True
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return self._vector(tails.two_sided(self._estimate / self._bse), self._names.all)

    @property
    def normalized_cov_params(self) -> np.ndarray:
        """``cov_params()`` divided by ``scale``, array (k, k).

        Examples
        --------
        >>> result.normalized_cov_params.shape
        (5, 5)
        """
        return self._cov / self._fit.sigma**2

    def conf_int(self, alpha: float = 0.05, cols=None) -> pd.DataFrame:
        """Normal confidence limits of ``params``, for variance parameters too; `confint` has better ones for these.

        Parameters
        ----------
        alpha : float
            The level is 1 - alpha.
        cols : sequence of int, optional
            Positions of the parameters wanted.

        Returns
        -------
        DataFrame with columns 0 and 1, or array (k, 2)

        Examples
        --------
        >>> result.conf_int(cols=[0, 1]).round(2)
                        0       1
        Intercept  238.03  264.78
        Days         7.44   13.50
        """
        half = tails.quantile(tails.outer(alpha)) * self._bse
        if cols is not None:
            self._by_position(cols)
        limits = np.column_stack([self._estimate - half, self._estimate + half])
        table: Any = pd.DataFrame(limits, index=list(self._names.all)) if self._labelled else limits
        if cols is None:
            return table
        return table.iloc[np.asarray(cols)] if isinstance(table, pd.DataFrame) else table[np.asarray(cols)]

    @overload
    def cov_params(
        self, r_matrix: None = None, column: None = None, scale: float | None = None, cov_p=None, other: None = None
    ) -> pd.DataFrame: ...

    @overload
    def cov_params(
        self, r_matrix=None, column=None, scale: float | None = None, cov_p=None, other=None
    ) -> np.ndarray: ...

    def cov_params(self, r_matrix=None, column=None, scale=None, cov_p=None, other=None) -> Any:
        """Covariance of ``params``: generalised least squares for the coefficients, observed information for the rest.

        Parameters
        ----------
        r_matrix : array, optional
            Return ``r_matrix @ cov @ other.T`` instead.
        column : int or sequence of int, optional
            Return the rows and columns at these positions only.
        scale : float, optional
            Use this residual variance in place of the estimate.
        cov_p : array (k, k), optional
            Use this covariance in place of the estimate.
        other : array, optional
            The second matrix; ``r_matrix`` by default.

        Returns
        -------
        DataFrame or array (k, k); an array for ``r_matrix`` and ``column``

        Raises
        ------
        DataError
            For `column` together with a matrix, for `other` alone, and for a matrix of another number of columns.

        Examples
        --------
        >>> result.cov_params(column=[0, 1]).round(3)
        array([[46.575, -1.451],
               [-1.451,  2.389]])
        """
        if column is not None and (r_matrix is not None or other is not None):
            raise DataError("cov_params: give column or r_matrix, not both")
        if other is not None and r_matrix is None:
            raise DataError("cov_params: other needs r_matrix")
        cov = self._cov if scale is None else self._cov / self._fit.sigma**2 * scale
        cov = cov if cov_p is None else np.asarray(cov_p, FLOAT)
        if column is not None:
            self._by_position(column)
            places = np.asarray(column)
            return cov[places, places] if places.ndim == 0 else cov[np.ix_(places, places)]
        if r_matrix is not None:
            left = np.asarray(r_matrix, FLOAT)
            right = left if other is None else np.asarray(other, FLOAT)
            for name, factor in (("r_matrix", left), ("other", right)):
                if factor.shape[-1] != len(cov):
                    raise DataError(f"{name} has shape {factor.shape}: give a column for each of {len(cov)} parameters")
            return left @ cov @ right.T
        return self._matrix(cov, self._names.all)

    def _by_position(self, given) -> None:
        """Warn, once, of coefficients that are `given` by position where statsmodels has another order."""
        theirs, own = patsy_order(self._spec), list(self._names.fixed)
        if theirs == own or not positional(given, own) or self.__dict__.get("_told_of_positions"):
            return
        self.__dict__["_told_of_positions"] = True
        warn(
            f"coefficients by position: here they are in the order of the formula, {own}, where statsmodels puts "
            f"categories first, {theirs}. Use names: t_test({f'{own[-1]} = 0'!r}), or a DataFrame with these columns",
            UserWarning,
        )

    def t_test(self, r_matrix, use_t: bool | None = None) -> contrasts.ContrastTest:
        """Test linear combinations of the coefficients one by one.

        Parameters
        ----------
        r_matrix : array (k, k_fe) or (k_fe,), str, list of str, mapping, or tuple (R, q)
            ``"Days = 10"`` tests against 10, ``"a - b"`` against zero.
        use_t : bool, optional
            Refer to the t distribution with ``df_resid`` degrees of freedom; by default the normal.

        Returns
        -------
        ContrastTest
            With effect, sd, tvalue, pvalue, conf_int(), summary().

        Raises
        ------
        DataError, FormulaError
            For a matrix that has not k_fe columns, and for names or equations that cannot be read.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.t_test("Days = 0").tvalue.round(2)
        array([6.77])
        """
        self._by_position(r_matrix)
        R, q = hypotheses(r_matrix, self._names.fixed, self._spec.dropped)
        use_t = self.use_t if use_t is None else use_t
        return contrasts.contrast_test(R, q, self._fit.beta, self._fit.vcov_beta, self.df_resid, use_t)

    def wald_test(
        self, r_matrix, cov_p=None, invcov=None, use_f=None, df_constraints=None, scalar=True
    ) -> contrasts.WaldTest:
        """Test linear combinations of the parameters jointly, by chi-square.

        Parameters
        ----------
        r_matrix : array with k_fe columns or one per parameter, str, list of str, mapping, or tuple (R, q)
        cov_p : array (k, k), optional
            Covariance of the parameters, in place of ``cov_params()``.
        invcov : array (r, r), optional
            Inverse covariance of the combinations, in place of the one that follows.
        use_f : bool, optional
            Refer to F with ``df_resid`` denominator degrees of freedom, which is too liberal for terms that vary
            between groups.
        df_constraints : int, optional
            Number of constraints, if it should not be found by rank.
        scalar : bool
            Accepted for compatibility; the statistic is always a number.

        Returns
        -------
        WaldTest

        Raises
        ------
        DataError
            For an `invcov` of another shape.

        Examples
        --------
        >>> result.wald_test("Intercept = 250, Days = 10").pvalue > 0.9
        True
        """
        self._by_position(r_matrix)
        R, q = self._hypotheses(r_matrix)
        require_consistent(R, q)
        cov = self._cov if cov_p is None else np.asarray(cov_p, FLOAT)
        # Parameters without a standard error do not matter unless they are tested.
        used = np.any(R != 0, axis=0)
        R, estimate, cov = R[:, used], self._estimate[used], cov[np.ix_(used, used)]
        if invcov is not None:
            if np.shape(invcov) != (len(R), len(R)):
                raise DataError(
                    f"invcov has shape {np.shape(invcov)}: give a row and a column for each of {len(R)} rows"
                )
            estimate, q, cov, R = R @ estimate - q, np.zeros(len(q)), np.linalg.inv(invcov), np.eye(len(q))
        use_f = self.use_t if use_f is None else use_f
        return contrasts.wald_test(R, q, estimate, cov, self.df_resid, use_f, df_constraints)

    def f_test(self, r_matrix, cov_p=None, invcov=None) -> contrasts.WaldTest:
        """``wald_test`` with ``use_f=True``; `test` has denominator degrees of freedom for mixed models.

        Parameters
        ----------
        r_matrix, cov_p, invcov
            As in `wald_test`.

        Returns
        -------
        WaldTest

        Examples
        --------
        >>> round(result.f_test("Days = 0").fvalue, 2)
        45.85
        """
        return self.wald_test(r_matrix, cov_p=cov_p, invcov=invcov, use_f=True)

    def _hypotheses(self, spec):
        """Hypotheses about all parameters; a matrix may also have columns for the coefficients only."""
        matrix = spec[0] if isinstance(spec, tuple) and len(spec) == 2 and not isinstance(spec[0], str) else spec
        if not in_words(spec) and np.atleast_2d(np.asarray(matrix)).shape[1] == len(self._names.fixed):
            R, q = hypotheses(spec, self._names.fixed, self._spec.dropped)
            return np.hstack([R, np.zeros((len(R), len(self._names.variance)))]), q
        return hypotheses(spec, self._names.all, self._spec.dropped)

    def wald_test_terms(
        self, skip_single=False, extra_constraints=None, combine_terms=None, scalar=True
    ) -> contrasts.WaldTable:
        """Joint tests of the terms of the formula: all coefficients of a term are zero.

        Parameters
        ----------
        skip_single : bool
            Leave out terms of one coefficient.
        extra_constraints : sequence of (name, hypotheses), optional
            More tests, as for ``wald_test``.
        combine_terms : sequence of str, optional
            For each text one more test: of all terms whose names contain it, together.
        scalar : bool
            Accepted for compatibility.

        Returns
        -------
        WaldTable

        Raises
        ------
        ModelError
            When no term contains a text of `combine_terms`.

        Examples
        --------
        >>> result.wald_test_terms().table.round(2)
                   statistic  pvalue  df_constraint
        Intercept    1357.06     0.0              1
        Days           45.85     0.0              1
        """
        terms = fixed_terms(self._spec)
        tests = [(name, places) for name, places in terms.items() if len(places) > (1 if skip_single else 0)]
        for text in combine_terms or ():
            places = [place for name, own in terms.items() if text in name for place in own]
            if not places:
                raise ModelError(f"combine_terms: no term contains {text!r}; the terms are {list(terms)}")
            tests.append((text, places))
        own = pd.DataFrame(np.eye(len(self._estimate)), columns=list(self._names.all))
        rows = [(name, self.wald_test(own.iloc[list(places)])) for name, places in tests]
        rows += [(name, self.wald_test(spec)) for name, spec in extra_constraints or ()]
        return contrasts.wald_table(rows)
