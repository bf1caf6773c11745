"""A fit as packages see it that know statsmodels' results: the fixed effects, with tests of one kind."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from jmixed.inference import tails
from jmixed.reports.fitted import Fitted
from jmixed.reports.tests import tests_of_coefficients, usual_ddf
from jmixed.runtime.arguments import checked


@dataclass(frozen=True)
class ModelFacts:
    """What such packages ask of a model.

    Attributes
    ----------
    endog_names : str
    exog_names : list of str
    """

    endog_names: str
    exog_names: list[str]


@checked
@dataclass(frozen=True, eq=False, repr=False)
class FixedEffects:
    """The fixed effects of a fit under statsmodels' names, for summary_col and packages that read results by name.

    Attributes
    ----------
    params, bse, tvalues, pvalues : Series (k_fe,)
    df : array (k_fe,)
        Degrees of freedom of each test; infinite for normal tests.
    model : ModelFacts
    nobs, df_model, df_resid, llf, aic, bic : float
    rsquared : float
        The conditional R2.
    rsquared_adj : float
        NaN: there is none.
    resid, fittedvalues : Series (nobs,)
    use_t : bool
    """

    params: pd.Series
    bse: pd.Series
    tvalues: pd.Series
    pvalues: pd.Series
    df: np.ndarray
    model: ModelFacts
    nobs: float
    df_model: float
    df_resid: float
    llf: float
    aic: float
    bic: float
    rsquared: float
    resid: Any
    fittedvalues: Any
    use_t: bool
    rsquared_adj: float = float("nan")

    def conf_int(self, alpha: float = 0.05) -> pd.DataFrame:
        """Confidence limits of level 1 - `alpha`: columns 0 and 1."""
        half = tails.t_reach(1 - tails.outer(alpha), self.df) * self.bse
        return pd.DataFrame({0: self.params - half, 1: self.params + half})


def for_statsmodels(fitted: Fitted, ddf: str | None, conditional: float, resid: Any, fittedvalues: Any) -> FixedEffects:
    """The fixed effects of a fit under statsmodels' names."""
    errors, df = tests_of_coefficients(fitted, usual_ddf(fitted, ddf))
    nu = np.full(len(errors), np.inf) if df is None else np.asarray(df)
    names = list(fitted.names.fixed)
    t = tails.statistics(fitted.fit.beta, errors)
    return FixedEffects(
        params=pd.Series(fitted.fit.beta, names),
        bse=pd.Series(errors, names),
        tvalues=pd.Series(t, names),
        pvalues=pd.Series(tails.p_of_t(t, nu), names),
        df=nu,
        model=ModelFacts(fitted.spec.endog_name, names),
        nobs=float(fitted.nobs),
        df_model=float(fitted.k_fe - 1),
        df_resid=float(fitted.nobs - fitted.k_fe),
        llf=fitted.llf,
        aic=fitted.aic,
        bic=fitted.bic,
        rsquared=conditional,
        resid=resid,
        fittedvalues=fittedvalues,
        use_t=df is not None,
    )
