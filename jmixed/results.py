"""The result of a fit: what its bases have, with tables, the summary, profiles of variances, and keeping it."""

import copy
import functools
import os
import pickle
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd

from jmixed.compat.held import without_coefficients
from jmixed.compat.packing import Packing
from jmixed.compat.profile_re import profile_variance
from jmixed.errors import ArgumentError, DataError, ModelError
from jmixed.reports import components, summary
from jmixed.reports import effects as by_effect
from jmixed.reports.comparison import Comparisons
from jmixed.reports.diagnostics import Diagnostics
from jmixed.reports.intervals import Intervals
from jmixed.reports.printed import noted
from jmixed.reports.tests import DDF, SmallSampleTests
from jmixed.runtime.arguments import checked
from jmixed.runtime.files import seal, seal_holds, write_whole

UNREADABLE = (
    *(pickle.UnpicklingError, EOFError, ImportError, AttributeError, LookupError, TypeError, ValueError),
    *(ArithmeticError, MemoryError, RuntimeError, AssertionError),
)
"""What pickle ends in when it is given something else than it wrote."""


@checked
class MixedLMResults(Intervals, Comparisons, SmallSampleTests, Diagnostics):
    """Estimates of a mixed model, complete in themselves: later fits of the same model change nothing here.

    ``params``, ``bse``, ``cov_params()`` and what follows from them hold variance parameters divided by ``scale``, as
    in statsmodels; ``cov_re``, ``vcomp`` and ``bse_re`` are on the scale of the data. Labels are attached when the data
    had labels.

    Parameters
    ----------
    model : MixedLM
    fit : Fit
    reml : bool
    free : MixedLMParams, optional
        Which parameters were estimated (1) or held (0).
    hist : list of dict, optional
        Record of the optimisation, with ``full_output=True``.
    penalty : float, optional
        Value of the penalties at the estimate; ``llf`` is the log-likelihood less this.

    Examples
    --------
    In the examples of the attributes, ``model`` and ``result`` are these:

    >>> import jmixed as jm
    >>> model = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy"))
    >>> result = model.fit()
    >>> result.fe_params.round(3).to_dict()
    {'Intercept': 251.405, 'Days': 10.467}
    >>> round(result.sigma, 3), result.converged, result.singular
    (25.592, True, False)
    """

    def var_corr(self) -> pd.DataFrame:
        """Variances and correlations of the random effects, in the layout of lme4's as.data.frame(VarCorr).

        Returns
        -------
        DataFrame
            Columns group, var1, var2, vcov, sdcor. A variance has var2 None; the last row is the residual.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.var_corr()["sdcor"].round(3).tolist()
        [24.74, 5.922, 0.066, 25.592]
        """
        return components.var_corr(self._spec, self._fit)

    def glance(self) -> pd.DataFrame:
        """One row about the fit, with the column names of broom.mixed.

        Returns
        -------
        DataFrame
            Columns nobs, sigma, logLik, AIC and BIC (lme4's, also under REML), REMLcrit or deviance, df.residual.

        Examples
        --------
        >>> result.glance().round(2).loc[0, ["logLik", "AIC", "BIC"]].tolist()
        [-871.81, 1755.63, 1774.79]
        """
        return components.glance(self._fit, self.nobs, self._n_params, self.reml)

    def tidy(
        self, effects: str | Collection[str] = "fixed", conf_int: bool = False, conf_level: float = 0.95
    ) -> pd.DataFrame:
        """Estimates as rows, with the column names of broom.mixed.

        Parameters
        ----------
        effects : str or list of str
            "fixed" (coefficients), "ran_pars" (standard deviations and correlations), "ran_vals" (conditional modes).
        conf_int : bool
            Add conf.low and conf.high, normal limits; NaN for "ran_pars".
        conf_level : float
            Coverage.

        Returns
        -------
        DataFrame

        Raises
        ------
        ModelError
            For another kind of effects, or a level outside (0, 1).

        Examples
        --------
        >>> result.tidy(conf_int=True)
          effect       term estimate std.error statistic conf.low conf.high
        0  fixed  Intercept  251.405     6.825    36.838  238.029   264.781
        1  fixed       Days   10.467     1.546     6.771    7.438    13.497
        """
        level = components.level_of(conf_level) if conf_int else None
        parts = []
        for effect in [effects] if isinstance(effects, str) else effects:
            if effect == "fixed":
                parts.append(components.tidy_fixed(self._spec, self._fit, level))
            elif effect == "ran_pars":
                parts.append(components.tidy_ran_pars(self._spec, self._fit, level))
            elif effect == "ran_vals":
                modes, covariances = self.ranef(), self._level_covariances
                parts.append(components.tidy_ran_vals(modes, covariances, level))
            else:
                raise ModelError(f"tidy: effects={effect!r}; use 'fixed', 'ran_pars', 'ran_vals' or a list of these")
        return noted(parts[0] if len(parts) == 1 else pd.concat(parts, ignore_index=True))

    def _repr_html_(self) -> str:
        return self.summary().as_html()

    def summary(
        self, yname=None, xname_fe=None, xname_re=None, title=None, alpha: float = 0.05, ddf: str = "none"
    ) -> summary.Summary:
        """Tables of the fit for reading: text when printed, HTML in a notebook, LaTeX by ``as_latex()``.

        Parameters
        ----------
        yname, title : str, optional
            Names to print in place of the model's. A `yname` that is one of the words for `ddf` is taken as such.
        xname_fe, xname_re : list of str, optional
            Names of the coefficients and of the variance parameters.
        alpha : float
            The intervals have level 1 - alpha.
        ddf : str
            "none": z tests. "satterthwaite", "kenward-roger" or "residual": t tests, as in `test`.

        Returns
        -------
        Summary

        Raises
        ------
        DataError
            For a wrong number of names.
        ModelError
            For an unknown `ddf`, and for "kenward-roger" after ML.

        Examples
        --------
        >>> result.summary(ddf="satterthwaite").tables[1].loc["Days"].tolist()
        ['10.467', '1.546', '17.0', '6.771', '0.000', '7.206', '13.729']
        """
        if isinstance(yname, str) and yname in DDF and yname != self._spec.endog_name:
            # By position: nobody calls a response so.
            yname, ddf = None, yname
        fixed = summary.replaced("xname_fe", self._names.fixed, xname_fe)
        variance = summary.replaced("xname_re", self._names.variance, xname_re)
        error, df = self._tests_of_coefficients(ddf)
        body = summary.parameter_table(
            [*fixed, *variance], self._fit.beta, error, self._psi * self.scale, self._bse_re, alpha, df
        )
        right = [
            ("Dependent Variable:", yname or self._spec.endog_name),
            ("Method:", self.method),
            ("Scale:", summary.short(self.scale)),
            ("Log-Likelihood:", summary.short(self.llf)),
            ("Converged:", "Yes" if self.converged else "No"),
        ]
        head = summary.header_table(summary.sizes(self.nobs, self._sizes), right)
        notes = summary.notes(self._spec, self._fit, self.outcome, DDF[ddf])
        return summary.Summary([head, body], title or summary.TITLE, notes)

    def profile_re(
        self,
        re_ix: int | str,
        vtype: str,
        num_low: int = 5,
        dist_low: float = 1.0,
        num_high: int = 5,
        dist_high: float = 1.0,
        **fit_kwargs,
    ) -> np.ndarray:
        """Log-likelihood with one variance held at values around its estimate, all else re-estimated.

        Parameters
        ----------
        re_ix : int or str
            Position of the random effect in ``cov_re`` ("re"), or name of the variance component ("vc").
        vtype : str
            "re" or "vc".
        num_low, num_high : int
            Numbers of values below and above the estimate.
        dist_low, dist_high : float
            Distance of the outermost values from the estimate, on the scale of the data.
        **fit_kwargs
            Options of the refits: method, maxiter, gtol.

        Returns
        -------
        array (num_low + num_high + 1, 2)
            The variance (held relative to the residual variance, which differs between the refits), and the
            log-likelihood.

        Raises
        ------
        ModelError
            For another `vtype`, an unknown variance, or a `dist_low` that leads to variances of zero or less.

        Examples
        --------
        >>> result.profile_re(1, "re", num_low=1, dist_low=20, num_high=1, dist_high=20).round(1)
        array([[  16.5, -873.6],
               [  35.1, -871.8],
               [  53.2, -872.3]])
        """
        if unknown := fit_kwargs.keys() - {"method", "maxiter", "gtol"}:
            raise ArgumentError(f"profile_re has no argument {min(unknown)!r}; refits take method, maxiter and gtol")
        self._need_data("profile_re", rows=False)
        term, column = self._find_variance(re_ix, vtype)
        covariance = self._fit.covariances[self._spec.terms[term].label]
        estimate = covariance[column, column]
        if not 0 <= dist_low < estimate:
            raise ModelError(
                f"profile_re: dist_low is {dist_low:g}, but the variance is {estimate:g}: "
                "dist_low must not be negative, nor reach the variance"
            )
        low = np.linspace((estimate - dist_low) / self.scale, estimate / self.scale, num_low + 1)
        high = np.linspace(estimate / self.scale, (estimate + dist_high) / self.scale, num_high + 1)[1:]
        values = np.concatenate([low, high])
        free = Packing.of(self._spec.terms).theta_from_root(self._free) != 0
        design = self.model.design
        if self.freepat is not None and not np.all(self.freepat.fe_params):
            design = without_coefficients(design, self._fit.beta, np.asarray(self.freepat.fe_params) != 0)
        return profile_variance(design, self.theta, term, column, values, free, self.reml, **fit_kwargs)

    def _find_variance(self, re_ix, vtype) -> tuple[int, int]:
        if vtype not in ("re", "vc"):
            raise ModelError(f"vtype is {vtype!r}; it must be 're' or 'vc'")
        if vtype == "vc":
            names = [term.vc for term in self._spec.terms]
            if re_ix is None or re_ix not in names:
                raise ModelError(f"no variance component {re_ix!r}; the model has {list(self._names.vcomp)}")
            return names.index(re_ix), 0
        if not isinstance(re_ix, int | np.integer) or not 0 <= re_ix < self.k_re:
            raise ModelError(f"re_ix is {re_ix!r}; it must be a position from 0 to {self.k_re - 1} in cov_re")
        random = [(t, term) for t, term in enumerate(self._spec.terms) if term.vc is None]
        return [(t, k) for t, term in random for k in range(len(term.columns))][re_ix]

    def remove_data(self) -> None:
        """Forget the rows of the data, to make the object small; predictions of new data go on working.

        The caller's model is left alone: this result gets a copy of it without rows. Afterwards fitted values,
        residuals, conditional covariances, `profile_re` and `augment` raise `DataError`.

        Examples
        --------
        >>> small = model.fit()
        >>> small.remove_data()
        >>> small.predict({"Days": [10]}).round(2).tolist()
        [356.08]
        """
        if not self._has_data:
            return
        _ = self._sizes
        if by_effect.has_top_level(self._spec):
            _ = self.random_effects
        self._spec = by_effect.without_rows(self._spec)
        for name in ("_fitted", "_groups"):
            self.__dict__.pop(name, None)
        self.model = self.model.without_data(self._spec)
        self._has_data = False

    def save(self, fname, remove_data: bool = False) -> None:
        """Write the result to a file by pickle.

        Parameters
        ----------
        fname : path or binary file
        remove_data : bool
            Write it without the rows of the data; this object keeps them.

        Raises
        ------
        DataError
            When the formulas use a function that pickle cannot store.
        OSError
            When the file cannot be written, as on a full disk. A file that was there is as it was.

        Examples
        --------
        >>> import io
        >>> whole, small = io.BytesIO(), io.BytesIO()
        >>> result.save(whole)
        >>> result.save(small, remove_data=True)
        >>> small.tell() < whole.tell()
        True
        """
        kept = copy.copy(self)
        if remove_data:
            kept.remove_data()
        try:
            content = pickle.dumps(kept)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise DataError(
                f"save: pickle cannot store this result ({error}). A function that the formulas use must be defined at "
                "the top of a module, not inside a function and not as a lambda"
            ) from error
        if isinstance(fname, str | os.PathLike):
            write_whole(fname, seal(content))
        else:
            fname.write(content)

    @classmethod
    def load(cls, fname) -> "MixedLMResults":
        """Read a result that `save` wrote. Open only files that you trust: pickle can run any code.

        Parameters
        ----------
        fname : path or binary file

        Returns
        -------
        MixedLMResults

        Raises
        ------
        DataError
            When the file holds something else, or not all that was written, or was changed since.
        OSError
            When there is no such file, or it cannot be read.

        Examples
        --------
        >>> import io
        >>> import jmixed as jm
        >>> file = io.BytesIO()
        >>> result.save(file)
        >>> _ = file.seek(0)
        >>> jm.MixedLMResults.load(file)
        <MixedLMResults: Reaction ~ Days + (Days | Subject); REML objective 1743.6283>
        """
        read = functools.partial(pickle.load, fname)
        if isinstance(fname, str | os.PathLike):
            content = Path(fname).read_bytes()
            if seal_holds(content) is False:
                raise DataError(f"{fname}: is damaged: its content is not what was saved. Save the result again")
            read = functools.partial(pickle.loads, content)
        try:
            found = read()
        except UNREADABLE as error:
            raise DataError(
                f"{fname}: is no whole file of a saved {cls.__name__} ({type(error).__name__}: {error}). It may be cut "
                "off, of another kind, or saved by another version of jmixed or of a package it needs"
            ) from error
        if not isinstance(found, cls):
            raise DataError(f"{fname}: holds a {type(found).__name__}, not a saved {cls.__name__}")
        return found

    def __repr__(self) -> str:
        state = "" if self.converged else f", {self.outcome.name}"
        formula = self._spec.formula or f"{self._spec.endog_name}, {self.k_fe} fixed effects"
        return f"<MixedLMResults: {formula}; {self.method} objective {self.objective:.4f}{state}>"


@checked
def load(fname) -> MixedLMResults:
    """Read a result that ``result.save`` wrote. Open only files that you trust: pickle can run any code.

    Parameters
    ----------
    fname : path or binary file

    Returns
    -------
    MixedLMResults

    Examples
    --------
    >>> import io
    >>> import jmixed as jm
    >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
    >>> file = io.BytesIO()
    >>> result.save(file)
    >>> _ = file.seek(0)
    >>> jm.load(file).fe_params.equals(result.fe_params)
    True
    """
    return MixedLMResults.load(fname)
