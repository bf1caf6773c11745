"""What a fit says about its data: rows and groups that matter, explained variance, robust and joint covariances."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd

from jmixed.errors import ModelError, Outcome
from jmixed.fit import host
from jmixed.fit.host import Fit
from jmixed.formulas.frame import new_table
from jmixed.formulas.model_data import ModelData, RandomTerm
from jmixed.inference import tails
from jmixed.inference.leave_one_out import LeftOut, leave_one_out, one_step_of_family
from jmixed.inference.leverage import ENTRIES, RowDiagnostics, cluster_distances, row_diagnostics
from jmixed.inference.responses import averaged, evaluate
from jmixed.inference.sandwich import cluster_sandwich, degrees_of_freedom
from jmixed.inference.variance_explained import (
    IntraclassCorrelation,
    VarianceExplained,
    intraclass_correlation,
    principal_components,
    variance_explained,
    variances_of_predictors,
)
from jmixed.reports import effects, rows
from jmixed.reports.components import all_names, all_values
from jmixed.reports.fitted import Fitted
from jmixed.reports.hypotheses import read_hypotheses
from jmixed.reports.predict import predict
from jmixed.reports.printed import Shown, noted
from jmixed.reports.residuals import relative_deviations
from jmixed.reports.responses import usual_residuals


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
        order = {"ascending": False, "kind": "stable", "na_position": "first"}
        first = table.sort_values("Cook's distance", **order).head(SHOWN)
        most = f"; the first {SHOWN}" if len(table) > SHOWN else ""
        # Without fixed effects there is nothing to lose, and no distance.
        lost = int(self.cooks_distance.isna().sum()) if self.fixed.shape[1] else 0
        without = f"; without {lost} of them some coefficients have no estimate" if lost else ""
        return f"<Influence of {len(table)} levels of {self.group}{most}{without}>", first


SHOWN = 10
"""Levels that a printed table of influence has."""

ALONE = 1e-9
"""How far from one the squared length of a direction in the rows of one group may be, of which it has all."""

UNDETERMINED = (
    Outcome.FLAT,
    Outcome.NOT_FINITE,
    Outcome.PERFECT_FIT,
    Outcome.RANK_DEFICIENT,
    Outcome.DIVERGING,
)
"""Outcomes of fits whose variance parameters are no estimates."""

MOST_ROWS = 20_000
"""Rows of the largest joint covariance that is made whole, 3 GB."""


def augment(fitted: Fitted, data: Any) -> pd.DataFrame:
    """The data with fitted values, residuals and leverages beside them."""
    if data is not None:
        frame = new_table(data)
        values = predict(fitted, frame, random_effects=True, new_levels="population")
        return frame.assign(**{".fitted": values, ".fixed": predict(fitted, frame)})
    fitted.need_data("augment")
    if fitted.family is not None:
        return _augment_generalized(fitted)
    fitted.refuse_iterative("augment()", "augment(data), fittedvalues and resid")
    spec, values = fitted.spec, fitted.fittedvalues
    residuals, fixed, root = spec.y - values, rows.fixed_part(spec, fitted.fit.beta), np.sqrt(spec.weights)
    by_row = _by_row(fitted)
    frame = pd.DataFrame(index=spec.index) if spec.frame is None else spec.frame
    columns = {".fitted": values, ".resid": residuals, ".hat": by_row.hat, ".cooksd": by_row.cooks_distance}
    columns |= {".fixed": fixed, ".mu": values, ".offset": spec.offset, ".sqrtXwt": root, ".sqrtrwt": root}
    columns |= {".weights": spec.weights, ".wtres": residuals * root, ".std.resid": by_row.standardised}
    return frame.assign(**columns, **{".fixed.resid": spec.y - fixed})


def _by_row(fitted: Fitted) -> RowDiagnostics:
    """Leverages and distances of rows that are made independent."""
    return row_diagnostics(fitted.white, fitted.joint, _left(fitted))


def standardised(fitted: Fitted) -> np.ndarray:
    """Conditional residuals (n,) over their standard deviations.

    After an iterative fit, whose leverages are not there, and where they would take seconds, over that of the errors:
    of many rows in each level the difference is small.
    """
    left = _left(fitted)
    if fitted.is_iterative or _width(fitted.joint.rest) * fitted.nobs > ENTRIES:
        return left * np.sqrt(fitted.white.weights) / fitted.fit.sigma
    return _by_row(fitted).standardised


def _width(matrix: Any) -> float:
    """Entries of a sparse array by row."""
    return matrix.nnz / max(matrix.shape[0], 1)


def _left(fitted: Fitted) -> np.ndarray:
    """Conditional residuals (n,) of rows that are made independent."""
    white = fitted.white
    return white.y - rows.mean(white, fitted.fit, rows.in_sample(white, range(len(white.terms))))


def distances(fitted: Fitted) -> pd.Series:
    """Cook's distances of groups at the estimated variance parameters, Series (groups,), named by the factor.

    Of the coarsest factor that holds all others; of crossed ones those of the factor with the largest distance. Empty
    where there is nothing to leave out or to move, or it would take long.
    """
    spec = fitted.spec
    factors = factors_of(spec)
    related = any(term.relationship is not None for term in spec.terms)
    tops = [] if related else [name for name, (codes, _) in factors.items() if _holds_all(spec, codes)]
    if tops:
        top = min(tops, key=lambda name: len(factors[name][1]))
        factors = {top: factors[top]}
    out = pd.Series(dtype=float, name="cooks_distance")
    if not fitted.k_fe:
        return out
    for name, (codes, levels) in factors.items():
        if len(levels) < 2:
            continue
        values = cluster_distances(fitted.white, fitted.joint, _left(fitted), codes, bool(tops))
        if values is not None and (out.empty or np.nanmax(values, initial=-np.inf) > out.max()):
            out = pd.Series(values, pd.Index(levels, name=name), name=out.name)
    return out


def _augment_generalized(fitted: Fitted) -> pd.DataFrame:
    """The data with predictors, means and residuals: as broom.mixed has them of glmer."""
    spec, by_row, fixed = fitted.spec, _by_row(fitted), rows.fixed_part(fitted.spec, fitted.fit.beta)
    frame = pd.DataFrame(index=spec.index) if spec.frame is None else spec.frame
    columns = {".fitted": fitted.predictor, ".resid": usual_residuals(fitted), ".hat": by_row.hat}
    columns |= {".cooksd": by_row.cooks_distance, ".fixed": fixed, ".offset": spec.offset, ".weights": spec.weights}
    columns |= {".std.resid": by_row.standardised}
    if fitted.own_family.response == "categories":
        of_rows = fitted.fittedvalues[np.arange(len(spec.y)), spec.y.astype(int)]
        return frame.assign(**columns, **{".probability": of_rows})
    return frame.assign(**columns, **{".mu": fitted.fittedvalues})


def vcov(fitted: Fitted, full: bool) -> pd.DataFrame:
    """Covariance of the fixed effects, or of the fixed and the random effects together."""
    names = list(fitted.names.fixed)
    if not full:
        return pd.DataFrame(np.array(fitted.fit.vcov_beta), names, names)
    joint = fitted.joint
    for term in fitted.spec.terms:
        labels = [f"{column}|{term.group}" for column in term.columns]
        names += [f"{label}[{level}]" for level in term.levels for label in labels]
    if len(names) > MOST_ROWS:
        raise ModelError(
            f"vcov(full=True): the matrix would have {len(names):,} rows, more than {MOST_ROWS:,}; "
            "ranef(cond_var=True) has its blocks by level, predict(interval=...) the variance of any row"
        )
    return pd.DataFrame(joint.dense(), names, names)


def influence(fitted: Fitted, group: str | None, method: str) -> Influence:
    """Estimates without one group at a time."""
    if method not in ("exact", "onestep"):
        raise ModelError(f"influence: method={method!r}; use 'exact' or 'onestep'")
    fitted.need_data("influence")
    fitted.refuse_iterative("influence")
    if fitted.held is not None or fitted.penalty:
        raise ModelError("influence: a fit with held or penalised parameters cannot be repeated without a group")
    spec, fit = fitted.spec, fitted.fit
    group, codes, levels = clusters(spec, "influence", group)
    if len(levels) < 2:
        raise ModelError(
            f"influence: {group!r} has one level, and without it no data are left; name another factor, group=..."
        )
    if fitted.family is not None:
        refits = _refits_without(fitted, codes, method)
    else:
        refits = leave_one_out(fitted.model.design, fit, codes, fitted.reml, one_step=method == "onestep")
    index, fixed = pd.Index(levels, name=group), list(fitted.names.fixed)
    outcomes = [Outcome(int(code)) for code in refits.outcome]
    # What the model could not be fitted to has no estimates; a flat or unbounded likelihood none of variances.
    unfit = _fewest_levels_left(spec.terms, codes, len(levels)) < 2
    if fitted.family is not None:
        # A linear model's refits say so themselves.
        unfit |= _without_estimates(fitted, codes, len(levels))
    unknown = unfit | np.array([outcome in UNDETERMINED for outcome in outcomes])
    beta = np.where(unfit[:, None], np.nan, refits.beta)
    moved = fit.beta - beta
    error = np.sqrt(np.diagonal(refits.vcov_beta, axis1=1, axis2=2))
    cooks = np.einsum("gi,gi->g", moved, np.linalg.solve(fit.vcov_beta, moved.T).T) / (fitted.k_fe or np.nan)
    values = all_values(fitted, refits.theta, refits.beta, refits.sigma, refits.rho, refits.kappa)[:, fitted.k_fe :]
    ran_pars = pd.DataFrame(values, index, all_names(fitted)[fitted.k_fe :])
    return Influence(
        group,
        pd.DataFrame(beta, index, fixed),
        ran_pars.mask(np.repeat(unknown[:, None], ran_pars.shape[1], axis=1)),
        pd.Series(cooks, index, name="cooks_distance"),
        pd.DataFrame(np.where(unknown[:, None], np.nan, moved) / np.where(error > 0, error, np.nan), index, fixed),
        pd.Series([outcome.ok for outcome in outcomes], index, name="converged") & ~unfit,
    )


def _without_estimates(fitted: Fitted, codes: np.ndarray, count: int) -> np.ndarray:
    """For each group whether the rows of the others leave a coefficient undetermined, bool array (groups,)."""
    X = np.asarray(fitted.spec.X) * (np.asarray(fitted.spec.weights) > 0)[:, None]
    if fitted.own_family.response == "categories":
        X = np.column_stack([np.ones(len(X)), X])
    Q, p = np.linalg.qr(X)[0], X.shape[1]
    # In orthonormal columns a direction that a group alone determines has all of its length in the rows of the group.
    own = [np.bincount(codes, Q[:, i] * Q[:, j], minlength=count) for i in range(p) for j in range(p)]
    lengths = np.linalg.eigvalsh(np.reshape(own, (p, p, count)).transpose(2, 0, 1)) if p else np.zeros((count, 1))
    return lengths[:, -1] > 1 - ALONE


def _refits_without(fitted: Fitted, codes: np.ndarray, method: str) -> LeftOut:
    """Refits of a response with a family without each group, whose rows get a weight of zero."""
    design, fits = fitted.model.design, []
    if method == "onestep":
        return one_step_of_family(design, fitted.fit, codes, np.array_equal(codes, fitted.spec.terms[0].codes))
    for group in range(int(codes.max()) + 1):
        without = design.replace(weights=np.where(codes == group, 0.0, design.weights))
        fits.append(host.fit(without, reml=False, theta0=fitted.fit.theta))
    names = ("theta", "beta", "sigma", "vcov_beta", "outcome", "rho", "kappa")
    return LeftOut(**{name: np.stack([np.asarray(getattr(fit, name)) for fit in fits]) for name in names})


def _fewest_levels_left(terms: Sequence[RandomTerm], codes: np.ndarray, count: int) -> np.ndarray:
    """How many levels the term with fewest has left without each of the clusters, int array (count,)."""
    fewest = np.full(count, np.iinfo(np.int64).max)
    for term in terms:
        if term.shares_variance:
            continue
        first, last = np.full(len(term.levels), count), np.full(len(term.levels), -1)
        np.minimum.at(first, term.codes, codes)
        np.maximum.at(last, term.codes, codes)
        gone = np.bincount(first[first == last], minlength=count)
        fewest = np.minimum(fewest, len(term.levels) - gone)
    return fewest


def factors_of(spec: ModelData) -> dict[str, tuple[np.ndarray, pd.Index]]:
    """Codes of the rows and labels of every factor whose groups can be taken as clusters, by its name."""
    named = {term.group: (term.codes, term.levels) for term in spec.terms}
    if spec.residual is not None and (series := spec.residual.factor) is not None:
        named.setdefault(series.name, (series.codes, series.levels))
    if spec.groups is not None:
        named[spec.group_name or "Group"] = effects.top_level(spec)
    return named


def clusters(spec: ModelData, what: str, group: str | None) -> tuple[str, np.ndarray, pd.Index]:
    """Name, codes of the rows and labels of the factor whose groups are taken as clusters."""
    named = factors_of(spec)
    if group is None:
        tops = [name for name, (codes, _) in named.items() if _holds_all(spec, codes)]
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


def _holds_all(spec: ModelData, codes: np.ndarray) -> bool:
    """Whether every level of every factor, and every series of residuals, lies inside one cluster."""
    factors = [term.codes for term in spec.terms]
    if spec.residual is not None and spec.residual.factor is not None:
        factors.append(spec.residual.factor.codes)
    for levels in factors:
        holder = np.zeros(levels.max() + 1, codes.dtype)
        holder[levels] = codes
        if not np.array_equal(holder[levels], codes):
            return False
    return True


def robust_cov(fitted: Fitted, kind: str, group: str | None) -> pd.DataFrame:
    """Cluster-robust covariance of the fixed effects."""
    codes = _separate_clusters(fitted, "robust_cov", group)
    names = list(fitted.names.fixed)
    return pd.DataFrame(cluster_sandwich(fitted.white, fitted.joint, fitted.fit.beta, codes, kind), names, names)


def robust_test(fitted: Fitted, L: Any, kind: str, group: str | None) -> pd.DataFrame:
    """Tests of linear combinations with cluster-robust standard errors and their degrees of freedom."""
    if not (outcome := fitted.fit.outcome).ok:
        raise ModelError(
            f"robust_test: the fit has no certified optimum ({outcome.name}: {outcome.message}), so that there are no "
            "tests of its estimates",
            page="singular.md#outcomes",
        )
    codes = _separate_clusters(fitted, "robust_test", group)
    hypotheses = read_hypotheses(L, fitted.spec.exog_names, fitted.spec.dropped)
    if several := [hypothesis.label for hypothesis in hypotheses if len(hypothesis.R) > 1]:
        raise ModelError(f"robust_test: {several[0]!r} has several equations; give a list of single ones")
    # Without coefficients there is none to test.
    R = np.vstack([np.zeros((0, fitted.k_fe)), *(hypothesis.R for hypothesis in hypotheses)])
    q = np.concatenate([np.zeros(0), *(hypothesis.q for hypothesis in hypotheses)])
    V = cluster_sandwich(fitted.white, fitted.joint, fitted.fit.beta, codes, kind)
    df = degrees_of_freedom(fitted.white, fitted.joint, codes, kind, R)
    estimate, se = R @ fitted.fit.beta, np.sqrt(np.einsum("ki,ij,kj->k", R, V, R))
    t = (estimate - q) / se
    columns = {"estimate": estimate, "se": se, "df": df, "t": t, "p": tails.p_of_t(t, df)}
    note = f"Cluster-robust ({kind}), {len(np.unique(codes))} clusters, degrees of freedom by Satterthwaite's method."
    return noted(pd.DataFrame(columns, [hypothesis.label for hypothesis in hypotheses]), note)


def _separate_clusters(fitted: Fitted, what: str, group: str | None) -> np.ndarray:
    """Codes (n,) of clusters that share nothing."""
    fitted.need_data(what)
    fitted.refuse_iterative(what)
    fitted.refuse_family(what, "vcov(), or bootstrap()")
    spec = fitted.spec
    if related := [term.group for term in spec.terms if term.relationship is not None]:
        raise ModelError(
            f"{what}: the levels of {related[0]!r} are related, so that rows of different clusters are correlated "
            "and no sum over clusters estimates the covariance; use vcov(), or result.bootstrap()",
            page="relationships.md",
        )
    group, codes, _ = clusters(spec, what, group)
    if not _holds_all(spec, codes):
        raise ModelError(
            f"{what}: levels of other factors reach across the levels of {group!r}, so that rows of different "
            "clusters are correlated; cluster by a factor in which all others are nested"
        )
    return codes


Approximation = Literal["lognormal", "delta", "trigamma"]
"""How the variance of a response is brought to the scale of the linear predictor."""


def r2(fitted: Fitted, approximation: Approximation | None = None) -> VarianceExplained:
    """Marginal and conditional R2."""
    fitted.need_data("r2")
    return variance_explained(*_predictors_and_residual(fitted, approximation))


def icc(fitted: Fitted, approximation: Approximation | None = None) -> IntraclassCorrelation:
    """Intraclass correlations."""
    fitted.need_data("icc")
    return intraclass_correlation(*_predictors_and_residual(fitted, approximation))


def _predictors_and_residual(fitted: Fitted, approximation: Approximation | None) -> tuple[ModelData, Fit, float]:
    """The model, with those of its terms that are no residuals, the fit, and the residual variance, a mean over rows.

    Of a family it is that of an observation on the scale of the predictor, with the random effects that have a level
    for each row, which take up overdispersion; those of related levels do not.
    """
    spec, fit = fitted.spec, fitted.fit
    if fitted.family is not None:
        by_row = [term.relationship is None and len(term.levels) == len(spec.y) for term in spec.terms]
        others = tuple(term for term, alone in zip(spec.terms, by_row, strict=True) if not alone)
        by_rows = tuple(term for term, alone in zip(spec.terms, by_row, strict=True) if alone)
        overdispersion = variances_of_predictors(replace(spec, terms=by_rows), fit)[1]
        variance = _observation_variance(fitted, approximation) + overdispersion
        return replace(spec, terms=others), fit, variance
    variance = float(fit.sigma**2)
    if spec.residual is not None:
        deviations = relative_deviations(spec.residual, fit.rho, spec.residual.columns)
        variance *= float(np.mean(deviations**2))
    return spec, fit, variance


def _observation_variance(fitted: Fitted, approximation: Approximation | None) -> float:
    """The family's observation-level variance, a mean over the rows.

    It is that at the mean response that the model gives at the average of the fixed part: over predictors with the
    variance that fixed and random effects have together, as the mean of a model without predictors.
    """
    spec, family, extras = fitted.spec, fitted.own_family, fitted.at_modes.extras
    n = len(spec.y)
    center = np.full(n, np.mean(rows.fixed_part(spec, fitted.fit.beta)))
    total = np.full(n, sum(variances_of_predictors(spec, fitted.fit)))
    has_mean = family.response != "categories"
    mean = averaged(family, "location", center, extras, total) if has_mean else np.zeros(n)
    known = get_args(Approximation) if family.link == "log" else ("delta",) if has_mean else ()
    if approximation is not None and approximation not in known:
        raise ModelError(
            f"r2 and icc: approximation={approximation!r}; a {family.name} response with the link {family.link} has "
            + (
                f"{', '.join(map(repr, known))}, or None" if known else "None only, the variance of its latent variable"
            ),
            page="responses.md",
        )
    what = "delta_variance" if approximation == "delta" and family.link != "log" else "observation_variance"
    values = evaluate(family, what, mean, extras, fitted.response.trials)
    if family.link == "log" and approximation in ("delta", "trigamma"):
        # The usual value is the logarithm of one and this.
        values = np.expm1(values)
    if approximation == "trigamma":
        from scipy.special import polygamma

        values = polygamma(1, 1 / values)
    return float(np.mean(values))


def re_pca(spec: ModelData, fit: Fit) -> dict[str, pd.DataFrame]:
    """Principal components of the random effects by grouping factor."""
    out = {}
    for group, members in effects.by_factor(spec.terms).items():
        terms = [spec.terms[k] for k in members]
        pca = principal_components([fit.covariances[term.label] for term in terms], fit.sigma)
        share = pca.sd**2 / (np.sum(pca.sd**2) or np.nan)
        index = [f"PC{k + 1}" for k in range(len(share))]
        table = pd.DataFrame({"sd": pca.sd, "proportion": share, "cumulative": np.cumsum(share)}, index)
        loadings = pd.DataFrame(pca.loadings.T, index, effects.factor_columns(terms))
        out[group] = pd.concat([table, loadings], axis=1)
    return out
