"""What a fit says about its data: rows and groups that matter, explained variance, robust and joint covariances."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from jmixed.covariance.scales import factors_of_theta, settled
from jmixed.errors import ModelError, Outcome
from jmixed.fitted import FittedModel
from jmixed.formulas.frame import new_table
from jmixed.inference.leave_one_out import leave_one_out
from jmixed.inference.leverage import row_diagnostics
from jmixed.inference.sandwich import cluster_sandwich
from jmixed.inference.variance_explained import (
    IntraclassCorrelation,
    VarianceExplained,
    intraclass_correlation,
    principal_components,
    variance_explained,
)
from jmixed.reports import components, effects, predict
from jmixed.reports.printed import Shown


@dataclass(frozen=True, eq=False, repr=False)
class Influence(Shown):
    """Estimates without one group at a time, and how far each group moves them.

    Attributes
    ----------
    group : str
        The grouping factor whose levels were left out.
    fixed : DataFrame (groups x coefficients)
        Fixed effects without each group; NaN where the other groups do not determine them, and where a grouping factor
        is left with one level, to which the model cannot be fitted.
    ran_pars : DataFrame (groups x parameters)
        Standard deviations, correlations and sigma without each group, named as in ``confint``; NaN, moreover, where
        the likelihood without the group is flat or unbounded.
    cooks_distance : Series (groups,)
        (beta - beta_g)' C^-1 (beta - beta_g) / p with C the covariance of the fixed effects of all data (Cook 1977).
    dfbetas : DataFrame (groups x coefficients)
        Estimate of all data less the one without the group, over the standard error of the latter (Belsley, Kuh and
        Welsch 1980).
    converged : Series (groups,)
        Whether the refit carries its certificate of an optimum; a one-step estimate never does.
    """

    group: str
    fixed: pd.DataFrame
    ran_pars: pd.DataFrame
    cooks_distance: pd.Series
    dfbetas: pd.DataFrame
    converged: pd.Series

    def _shown(self) -> tuple[str, pd.DataFrame]:
        table = self.dfbetas.add_prefix("dfbetas ").assign(converged=self.converged)
        table.insert(0, "Cook's distance", self.cooks_distance)
        first = table.sort_values("Cook's distance", ascending=False, kind="stable").head(SHOWN)
        most = f"; the first {SHOWN}" if len(table) > SHOWN else ""
        return f"<Influence of {len(table)} levels of {self.group}{most}>", first


SHOWN = 10
"""Levels that a printed table of influence has."""

UNDETERMINED = (Outcome.FLAT, Outcome.NOT_FINITE, Outcome.PERFECT_FIT, Outcome.RANK_DEFICIENT)
"""Outcomes of fits whose variance parameters are no estimates."""


class Diagnostics(FittedModel):
    """Diagnostics of a fit; `MixedLMResults` has them."""

    def augment(self, data=None) -> pd.DataFrame:
        """The data with fitted values, residuals and leverages beside them, in the columns of broom.mixed.

        Parameters
        ----------
        data : DataFrame, optional
            New rows; levels that the model has not seen get a random effect of zero. By default the model's rows.

        Returns
        -------
        DataFrame
            A copy with ``.fitted`` and ``.fixed`` (without random effects) and, for the model's rows: ``.resid`` (given
            the random effects), ``.hat`` (leverage, lme4's hatvalues), ``.cooksd``, ``.mu``, ``.offset``, ``.sqrtXwt``,
            ``.sqrtrwt``, ``.weights``, ``.wtres`` (``.resid`` times the root of the weight), ``.std.resid`` (over its
            standard deviation) and ``.fixed.resid`` (response less ``.fixed``).

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.augment()[["Reaction", ".fitted", ".resid", ".hat", ".cooksd"]].round(2).iloc[0].tolist()
        [249.56, 253.66, -4.1, 0.23, 0.0]
        """
        if data is not None:
            frame = new_table(data)
            fitted = self.predict(frame, random_effects=True, new_levels="population")
            return frame.assign(**{".fitted": fitted, ".fixed": self.predict(frame)})
        self._need_data("augment")
        spec, fitted = self._spec, self._fitted
        residuals, fixed, root = spec.y - fitted, predict.fixed_part(spec, self._fit.beta), np.sqrt(spec.weights)
        rows = row_diagnostics(spec, self._joint, residuals)
        frame = pd.DataFrame(index=spec.index) if spec.frame is None else spec.frame
        columns = {".fitted": fitted, ".resid": residuals, ".hat": rows.hat, ".cooksd": rows.cooks_distance}
        columns |= {".fixed": fixed, ".mu": fitted, ".offset": spec.offset, ".sqrtXwt": root, ".sqrtrwt": root}
        columns |= {".weights": spec.weights, ".wtres": residuals * root, ".std.resid": rows.standardised}
        return frame.assign(**columns, **{".fixed.resid": spec.y - fixed})

    def vcov(self, full: bool = False) -> pd.DataFrame:
        """Covariance of the fixed effects, or of the fixed and the random effects together.

        Parameters
        ----------
        full : bool
            The joint covariance of (beta^ - beta, b^ - b) at the estimated variances (Henderson 1975).

        Returns
        -------
        DataFrame (k, k)
            Labelled by the coefficients, then by ``COLUMN|GROUP[LEVEL]``, term by term and level by level.

        Raises
        ------
        ModelError
            When the joint covariance would have more than 20,000 rows.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.vcov(full=True).shape
        (38, 38)
        """
        names = list(self._names.fixed)
        if not full:
            return pd.DataFrame(np.array(self._fit.vcov_beta), names, names)
        joint = self._joint
        for term in self._spec.terms:
            labels = [f"{column}|{term.group}" for column in term.columns]
            names += [f"{label}[{level}]" for level in term.levels for label in labels]
        if len(names) > MOST_ROWS:
            raise ModelError(
                f"vcov(full=True): the matrix would have {len(names):,} rows, more than {MOST_ROWS:,}; "
                "ranef(cond_var=True) has its blocks by level, predict(interval=...) the variance of any row"
            )
        return pd.DataFrame(joint.dense(), names, names)

    def influence(self, group: str | None = None, method: str = "exact") -> Influence:
        """Estimates without one group at a time, all refits in one compiled program.

        Parameters
        ----------
        group : str, optional
            The grouping factor whose levels are left out; by default the one in which all others are nested.
        method : str
            "exact": every refit goes to its optimum. "onestep": one Newton step, with exact derivatives, from the
            estimate of all data.

        Returns
        -------
        Influence

        Raises
        ------
        ModelError
            For an unknown factor or method, and without `group` for crossed factors.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> influence = result.influence()
        >>> influence.cooks_distance.nlargest(2).round(3).to_dict()
        {'309': 0.149, '335': 0.129}
        """
        if method not in ("exact", "onestep"):
            raise ModelError(f"influence: method={method!r}; use 'exact' or 'onestep'")
        self._need_data("influence")
        if self.freepat is not None or self._penalty:
            raise ModelError("influence: a fit with held or penalised parameters cannot be repeated without a group")
        group, codes, levels = self._clusters("influence", group)
        if len(levels) < 2:
            raise ModelError(
                f"influence: {group!r} has one level, and without it no data are left; name another factor, group=..."
            )
        found = leave_one_out(self.model.design, self._fit, codes, self.reml, one_step=method == "onestep")
        index, fixed = pd.Index(levels, name=group), list(self._names.fixed)
        outcomes = [Outcome(int(code)) for code in found.outcome]
        # What the model could not be fitted to has no estimates; a flat or unbounded likelihood none of variances.
        unfit = self._fewest_levels_left(codes, len(levels)) < 2
        unknown = unfit | np.array([outcome in UNDETERMINED for outcome in outcomes])
        beta = np.where(unfit[:, None], np.nan, found.beta)
        moved = self._fit.beta - beta
        error = np.sqrt(np.diagonal(found.vcov_beta, axis1=1, axis2=2))
        cooks = np.einsum("gi,gi->g", moved, np.linalg.solve(self._fit.vcov_beta, moved.T).T) / (self.k_fe or np.nan)
        ran_pars = pd.DataFrame([self._components(*one) for one in zip(found.theta, found.sigma, strict=True)], index)
        return Influence(
            group,
            pd.DataFrame(beta, index, fixed),
            ran_pars.mask(np.repeat(unknown[:, None], ran_pars.shape[1], axis=1)),
            pd.Series(cooks, index, name="cooks_distance"),
            pd.DataFrame(np.where(unknown[:, None], np.nan, moved / error), index, fixed),
            pd.Series([outcome.ok for outcome in outcomes], index, name="converged") & ~unfit,
        )

    def _fewest_levels_left(self, codes, count: int) -> np.ndarray:
        """How many levels the term with fewest has left without each of the clusters, int array (count,)."""
        fewest = np.full(count, np.iinfo(np.int64).max)
        for term in self._spec.terms:
            if term.structure == "identity":
                continue
            first, last = np.full(len(term.levels), count), np.full(len(term.levels), -1)
            np.minimum.at(first, term.codes, codes)
            np.maximum.at(last, term.codes, codes)
            gone = np.bincount(first[first == last], minlength=count)
            fewest = np.minimum(fewest, len(term.levels) - gone)
        return fewest

    def _components(self, theta, sigma) -> dict[str, float]:
        factors = factors_of_theta(self.model.design.layout.terms, settled(self.model.design, theta))
        terms = self._spec.terms
        covariances = {t.label: sigma**2 * (f @ f.T) for t, f in zip(terms, factors, strict=True)}
        moved = replace(self._fit, covariances=covariances, sigma=sigma)
        return {part.name: part.sdcor for part in components.all_components(self._spec, moved)}

    def _clusters(self, what: str, group: str | None) -> tuple[str, np.ndarray, pd.Index]:
        """Name, codes of the rows and labels of the factor whose groups are taken as clusters."""
        named = {term.group: (term.codes, term.levels) for term in self._spec.terms}
        if self._spec.groups is not None:
            named[self._spec.group_name or "Group"] = effects.top_level(self._spec)
        if group is None:
            tops = [name for name, (codes, _) in named.items() if self._holds_all(codes)]
            if not tops:
                raise ModelError(
                    f"{what}: the factors {list(named)} are crossed, so that no one holds all others; "
                    "name one of them, group=..."
                )
            # Of several that hold all others, as with groups= and a factor of the same rows, the coarsest.
            group = min(tops, key=lambda name: len(named[name][1]))
        if group not in named:
            raise ModelError(f"{what}: {group!r} is not a grouping factor of this model; use one of {list(named)}")
        return group, *named[group]

    def _holds_all(self, codes) -> bool:
        """Whether every level of every factor lies inside one cluster."""
        for term in self._spec.terms:
            holder = np.zeros(len(term.levels), codes.dtype)
            holder[term.codes] = codes
            if not np.array_equal(holder[term.codes], codes):
                return False
        return True

    def robust_cov(self, kind: str = "CR2", group: str | None = None) -> pd.DataFrame:
        """Cluster-robust covariance of the fixed effects: right when the model of the covariances is not.

        Parameters
        ----------
        kind : str
            "CR0": the plain sandwich. "CR1": times m / (m - 1) for m clusters. "CR2": bias-reduced, for few clusters
            (Bell and McCaffrey 2002; Pustejovsky and Tipton 2018).
        group : str, optional
            The factor whose levels are the clusters; by default the one in which all others are nested.

        Returns
        -------
        DataFrame (k_fe, k_fe)

        Raises
        ------
        ModelError
            For another `kind`, and where clusters share random effects.

        Examples
        --------
        >>> import numpy as np
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> np.sqrt(np.diag(result.robust_cov("CR2"))).round(3).tolist()
        [6.825, 1.546]
        """
        self._need_data("robust_cov")
        group, codes, _ = self._clusters("robust_cov", group)
        if not self._holds_all(codes):
            raise ModelError(
                f"robust_cov: levels of other factors reach across the levels of {group!r}, so that rows of different "
                "clusters are correlated; cluster by a factor in which all others are nested"
            )
        names = list(self._names.fixed)
        return pd.DataFrame(cluster_sandwich(self._spec, self._joint, self._fit.beta, codes, kind), names, names)

    def r2(self) -> VarianceExplained:
        """Marginal and conditional R2 (Nakagawa and Schielzeth 2013; Johnson 2014).

        Returns
        -------
        VarianceExplained
            Fields marginal, conditional, and the variances fixed, random, residual.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> round(result.r2().marginal, 3), round(result.r2().conditional, 3)
        (0.279, 0.799)
        """
        self._need_data("r2")
        return variance_explained(self._spec, self._fit)

    def icc(self) -> IntraclassCorrelation:
        """Intraclass correlations: the share of the random effects in the variance (Nakagawa et al. 2017).

        Returns
        -------
        IntraclassCorrelation
            Fields adjusted, unadjusted and by_group.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (1 | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> round(result.icc().adjusted, 3)
        0.589
        """
        self._need_data("icc")
        return intraclass_correlation(self._spec, self._fit)

    def re_pca(self) -> dict[str, pd.DataFrame]:
        """Principal components of the random effects by grouping factor, as lme4's rePCA.

        A component without variance is a sign that the random effects are more than the data support.

        Returns
        -------
        dict of str to DataFrame
            Rows PC1, PC2, ...; columns sd (relative to sigma), proportion, cumulative, and the loadings by column.

        Examples
        --------
        >>> import jmixed as jm
        >>> result = jm.mixedlm("Reaction ~ Days + (Days | Subject)", jm.datasets.load("sleepstudy")).fit()
        >>> result.re_pca()["Subject"][["sd", "proportion"]].round(3).values.tolist()
        [[0.967, 0.946], [0.231, 0.054]]
        """
        out = {}
        for group, members in effects.by_factor(self._spec.terms).items():
            own = [self._spec.terms[k] for k in members]
            found = principal_components([self._fit.covariances[term.label] for term in own], self._fit.sigma)
            share = found.sd**2 / (np.sum(found.sd**2) or np.nan)
            index = [f"PC{k + 1}" for k in range(len(share))]
            table = pd.DataFrame({"sd": found.sd, "proportion": share, "cumulative": np.cumsum(share)}, index)
            loadings = pd.DataFrame(found.loadings.T, index, effects.factor_columns(own))
            out[group] = pd.concat([table, loadings], axis=1)
        return out


MOST_ROWS = 20_000
"""Rows of the largest joint covariance that is made whole, 3 GB."""
