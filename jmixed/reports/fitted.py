"""What is known of a fit: the model and its estimates, what follows from them once, and how the optimiser ended."""

import copy
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import numpy as np
import pandas as pd

from jmixed.covariance.scales import diagonal_blocks
from jmixed.errors import DataError, ModelError, Outcome, warn
from jmixed.families.family import Family
from jmixed.fit.host import Fit, MonteCarlo, level_covariances, white_design
from jmixed.fit.information import Information
from jmixed.formulas.complete import CompleteTerms, complete_terms
from jmixed.formulas.model_data import ModelData, ResponseTerm
from jmixed.inference import kenward_roger, responses
from jmixed.inference.curvature import Curvature, curvature, curvature_of_fit
from jmixed.inference.joint_covariance import JointCovariance, joint_covariance
from jmixed.inference.solved_variances import MOST, SolvedVariances, solved_variances
from jmixed.layout.design import Design, without_coefficients
from jmixed.layout.incidence import incidence
from jmixed.layout.stack import unplaced
from jmixed.reports import effects, rows
from jmixed.reports.hypotheses import positional
from jmixed.reports.names import ParameterNames, parameter_names, patsy_order, structure
from jmixed.runtime.facts import Facts

JOINT = (
    "the joint covariance of all effects (variances of predictions with random effects, leverages)",
    "it is dense. ranef(cond_var=True) has the variances of the levels",
)
"""What is refused of many related levels, and why."""


@dataclass(frozen=True)
class Held:
    """What a fit estimated where it held other parameters.

    Attributes
    ----------
    free_beta, free_psi : bool arrays (p,), (m,)
        The parameters that were estimated.
    again : dict
        Arguments of ``model.fit`` that hold the others where they were.
    """

    free_beta: np.ndarray
    free_psi: np.ndarray
    again: dict[str, Any]


class Fitted:
    """A fit and its model, from which the reports are made.

    What takes time is computed when it is first asked for, and kept. p coefficients, m variance parameters psi: of each
    term the lower triangle of its covariance row by row, relative to the residual variance.

    Attributes
    ----------
    model, spec, fit : MixedLM, ModelData, Fit
    reml : bool
    held : Held or None
        None where all parameters were estimated.
    penalty : float
        Value of the penalties at the estimate.
    names : ParameterNames
    labelled : bool
        Whether the data had labels, and tables have them too.
    nobs : int
        Rows that were fitted, also when they are no longer here.
    has_data : bool
        Whether they are.
    """

    def __init__(self, model: Any, fit: Fit, reml: bool, held: Held | None = None, penalty: float = 0.0):
        self.model, self.fit, self.reml, self.held, self.penalty = model, fit, reml, held, penalty
        self.spec: ModelData = model.spec
        self.labelled = bool(model.labelled)
        self.nobs, self.has_data = self.spec.nobs, True
        self.told_of_positions = False

    def state(self) -> dict[str, Any]:
        """What a file holds of it: where the rows are, all that can be computed of them is computed again."""
        names = ("model", "fit", "reml", "held", "penalty", "nobs", "has_data", "told_of_positions")
        known = {} if self.has_data else {name: vars(self)[name] for name in COMPUTED if name in vars(self)}
        return {name: getattr(self, name) for name in names} | {"known": known}

    @classmethod
    def of_state(cls, parts: dict[str, Any]) -> "Fitted":
        """The same again from `state`."""
        fitted = cls(*(parts[name] for name in ("model", "fit", "reml", "held", "penalty")))
        fitted.nobs, fitted.has_data = parts["nobs"], parts["has_data"]
        fitted.told_of_positions = parts["told_of_positions"]
        vars(fitted).update({name: parts["known"][name] for name in COMPUTED if name in parts["known"]})
        return fitted

    @cached_property
    def names(self) -> ParameterNames:
        """The names of the parameters."""
        return parameter_names(self.spec)

    @property
    def family(self) -> Family | None:
        """The family of the response; None for a linear mixed model."""
        return None if self.spec.response is None else self.own_family

    @property
    def own_family(self) -> Family:
        """The family, of a model that has one."""
        return self.model.family

    @property
    def response(self) -> ResponseTerm:
        """What the response is beside its numbers, of a model that has a family."""
        return cast(ResponseTerm, self.spec.response)

    # Sizes and the criterion.

    @property
    def method(self) -> str:
        """The name of the criterion."""
        return "REML" if self.reml else "ML"

    @property
    def k_fe(self) -> int:
        """Number of coefficients."""
        return len(self.fit.beta)

    @property
    def df_resid(self) -> int:
        """Rows less coefficients."""
        return self.nobs - self.k_fe

    @property
    def approximation(self) -> str:
        """How the likelihood of a family of responses was integrated."""
        nodes = self.model.quadrature
        return "Laplace" if nodes == 1 else f"quadrature, {nodes} nodes"

    @property
    def free_beta(self) -> np.ndarray:
        """Which coefficients were estimated, bool array (p,)."""
        return np.ones(self.k_fe, bool) if self.held is None else self.held.free_beta

    @property
    def free_psi(self) -> np.ndarray:
        """Which variance parameters were estimated, bool array (m,)."""
        return np.ones(len(self.psi), bool) if self.held is None else self.held.free_psi

    @property
    def n_params(self) -> int:
        """Number of parameters that were estimated, sigma among them where there is one."""
        scales = len(self.fit.rho) + 1 if self.family is None else len(self.fit.kappa)
        return int(np.count_nonzero(self.free_beta) + np.count_nonzero(self.free_psi) + scales)

    @property
    def llf(self) -> float:
        """(Restricted) log-likelihood at the estimate, less penalties."""
        return float(self.fit.log_likelihood) - self.penalty

    @property
    def aic(self) -> float:
        """Akaike's criterion; of REML, what lme4 makes of the restricted likelihood."""
        return -2 * self.llf + 2 * self.n_params

    @property
    def bic(self) -> float:
        """Schwarz's criterion, likewise."""
        return -2 * self.llf + float(np.log(self.nobs)) * self.n_params

    def by_ml(self, what: str) -> "Fitted":
        """This, or the ML fit of the same model."""
        self.refuse_penalised(what)
        return self.model.fit(reml=False, **self.again).fitted if self.reml else self

    # What is refused.

    def need_data(self, what: str, rows: bool = True) -> None:
        """Refuse what needs the rows of the data, or with ``rows=False`` at least their cross-products."""
        if not self.has_data:
            raise DataError(f"{what}: the rows of the data were removed by remove_data(); use a result that has them")
        if rows and self.spec.represents is not None:
            raise DataError(
                f"{what}: needs the rows of the data, and from_batches keeps their cross-products only. Use "
                "predict(batch, random_effects=True) on one batch after the other, or fit a part that fits into memory "
                "with mixedlm"
            )

    def refuse_penalised(self, what: str) -> None:
        """Refuse what needs a likelihood, after a fit with penalties."""
        if self.penalty:
            raise ModelError(f"{what}: this fit was penalised, and a penalty has no likelihood; fit without it")

    def refuse_family(self, what: str, instead: str) -> None:
        """Refuse what there is for normal responses only."""
        if self.family is not None:
            raise ModelError(
                f"{what} is there for linear mixed models, and the response of this one has the family "
                f"{self.family.name}; use {instead}"
            )

    def refuse_held(self, what: str) -> None:
        """Refuse what needs a fit of all parameters by their likelihood."""
        self.refuse_penalised(what)
        if self.held is not None:
            raise ModelError(f"{what}: some parameters of this fit were held (free=...); fit all of them")

    @property
    def is_iterative(self) -> bool:
        """Whether crossed factors were fitted by conjugate gradients and probes."""
        return self.fit.crossed == "iterative"

    def refuse_iterative(self, what: str, instead: str = "") -> None:
        """Refuse what needs the dense block of crossed factors, after a fit that did without it."""
        if self.is_iterative:
            raise ModelError(
                f"{what}: crossed factors were fitted by conjugate gradients (result.optimizer.crossed is 'iterative'),"
                f" and this needs the dense block of their levels. Use {instead + ', or ' if instead else ''}"
                "fit(crossed='exact') where memory suffices",
                page="scale.md#crossed-factors-of-many-levels",
            )

    @property
    def again(self) -> dict[str, Any]:
        """Arguments of ``model.fit`` that repeat this fit: what was held, and how crossed factors were fitted."""
        if self.is_iterative:
            known = self.fit.monte_carlo
            return {"crossed": "iterative", "probes": known.probes, "seed": known.seed} if known else {}
        return {} if self.held is None else self.held.again

    def warn_of_positions(self, given: Any) -> None:
        """Warn, once, of coefficients that are `given` by position where statsmodels has another order."""
        theirs, ours = patsy_order(self.spec), list(self.names.fixed)
        if theirs == ours or not positional(given, ours) or self.told_of_positions:
            return
        self.told_of_positions = True
        warn(
            f"coefficients by position: here they are in the order of the formula, {ours}, where statsmodels puts "
            f"categories first, {theirs}. Use names: t_test({f'{ours[-1]} = 0'!r}), or a DataFrame with these columns",
            UserWarning,
        )

    # Values with their labels, always copies. Type checkers are told of the tables that nearly all models give; those
    # of arrays without labels give arrays.

    def vector(self, values: np.ndarray, names: Iterable[str]) -> pd.Series:
        """Values with their names."""
        return self._labelled(values, list(names))

    def matrix(self, values: np.ndarray, names: Iterable[str]) -> pd.DataFrame:
        """A square matrix with names."""
        return self._labelled(values, list(names))

    def by_row(self, values: np.ndarray) -> pd.Series:
        """Values of the model's rows with their labels."""
        return self._labelled(values, self.spec.index)

    def _labelled(self, values: np.ndarray, labels: Any) -> Any:
        values = np.array(values)
        if not self.labelled:
            return values
        return pd.Series(values, labels) if values.ndim == 1 else pd.DataFrame(values, labels, labels)

    # Variance parameters.

    @property
    def sigma(self) -> float:
        """Residual standard deviation where all columns of a dispersion are zero."""
        return float(self.spec.sigma_at_zero(self.fit.sigma, self.fit.rho))

    @cached_property
    def psi(self) -> np.ndarray:
        """Variance parameters relative to the residual variance, array (m,)."""
        pieces = [np.zeros(0)]
        for term in self.spec.terms:
            relative = self.fit.covariances[term.label] / self.fit.sigma**2
            pieces.append(structure(term).psi(relative))
        return np.concatenate(pieces)

    @cached_property
    def _powers(self) -> np.ndarray:
        """The power (m,) of sigma with which each of psi is multiplied on the scale of the data."""
        return np.concatenate([np.zeros(0), *(structure(term).powers for term in self.spec.terms)])

    @property
    def variance_values(self) -> np.ndarray:
        """Variance parameters on the scale of the data, array (m,): variances are sigma^2 psi."""
        return self.fit.sigma**self._powers * self.psi

    @cached_property
    def variance_errors(self) -> np.ndarray:
        """Standard errors of `variance_values` by the delta method, with the uncertainty of sigma^2, array (m,)."""
        fit, known = self.fit, self.fit.uncertainty
        # A variance of zero has no error, and the others have theirs as if it was known.
        across, spread = known.with_scale
        size, powers = fit.sigma**self._powers, self._powers
        moved = self.psi * powers / 2 * fit.sigma ** (powers - 2)
        of_psi = size**2 * np.diag(known.vcov_psi) + 2 * size * moved * across
        variances = of_psi + moved**2 * (spread + fit.scale_variance)
        is_held = np.diag(known.vcov_psi) == 0
        return np.sqrt(np.where(is_held, 0.0, np.where(variances >= 0, variances, np.nan)))

    @cached_property
    def vcov(self) -> np.ndarray:
        """Covariance of the estimates of beta, psi and, of a family of responses, kappa: (p + m + k, p + m + k).

        NaN for a variance of zero, which counts as known. Of a linear model beta and psi are independent.
        """
        fit, p, m = self.fit, self.k_fe, len(self.psi)
        if self.family is None:
            return diagonal_blocks(fit.vcov_beta, fit.uncertainty.vcov_psi)
        order = np.concatenate([np.arange(m, m + p), np.arange(m), np.arange(m + p, m + p + len(fit.kappa))])
        whole = cast(Information, fit.uncertainty).vcov[np.ix_(order, order)]
        untold = np.isnan(np.diag(whole))
        whole[untold], whole[:, untold] = 0.0, 0.0
        whole[untold, untold] = np.nan
        whole[:p, :p], whole[p + m :, p + m :] = fit.vcov_beta, fit.vcov_kappa
        return whole

    @property
    def design(self) -> Design:
        """The model's design; after an iterative fit its rows and terms, without places of the levels."""
        if not self.is_iterative:
            return self.model.design
        self.need_data("what is told of rows and levels", rows=False)
        return unplaced(self.spec)

    @property
    def free_design(self) -> Design:
        """The design, with held coefficients in its offset."""
        design = self.design
        return design if self.free_beta.all() else without_coefficients(design, self.fit.beta, self.free_beta)

    @cached_property
    def white(self) -> ModelData:
        """The model's rows, made white where residuals have parameters: independent, with variances sigma^2 / w.

        Of a family of responses they are those of the linear model that it is like at the modes.
        """
        if self.family is None and not len(self.fit.rho):
            return self.spec
        design = self.white_design
        terms = tuple(replace(term, Z=design.Z[term.label]) for term in self.spec.terms)
        arrays = {"y": design.y, "X": design.X, "weights": design.weights, "offset": design.offset}
        return replace(self.spec, **arrays, terms=terms, residual=None)

    @cached_property
    def white_design(self) -> Design:
        """The design of these rows."""
        if self.family is None:
            return white_design(self.design, self.fit.rho)
        return responses.working_design(self.model.design, self.predictor, self.at_modes)

    @cached_property
    def curvature(self) -> Curvature:
        """Derivatives of the criterion and of the covariance of the free coefficients in the variance parameters."""
        self.need_data("degrees of freedom and standard errors of variance parameters", rows=False)
        if self.is_iterative:
            return curvature_of_fit(self.fit, self.nobs, self.reml)
        free = None if self.free_psi.all() else self.free_psi
        return curvature(self.free_design, self.fit.theta, self.fit.sigma, self.reml, free, self.fit.rho)

    # Tests of coefficients and terms.

    @cached_property
    def kenward_roger(self) -> kenward_roger.KenwardRoger:
        """Kenward and Roger's adjusted covariance of the free coefficients, and what their tests need."""
        if not self.reml:
            raise ModelError(
                "ddf='kenward-roger' is defined for REML, and this is an ML fit: refit with fit(reml=True), or use "
                "ddf='satterthwaite'",
                page="p-values.md",
            )
        self.refuse_iterative("ddf='kenward-roger'", "ddf='satterthwaite'")
        return kenward_roger.kenward_roger(self.curvature)

    @cached_property
    def terms(self) -> tuple[CompleteTerms, np.ndarray, list[bool]]:
        """The terms and X by their common triangular factor, all that contrasts need; which terms are constant.

        Where thresholds are in the place of an intercept, X has a column of ones before its own.
        """
        self.need_data("anova")
        spec = self.spec
        if spec.response is not None and spec.response.kind == "categories":
            first = np.zeros(1, spec.kept.dtype)
            spec = replace(spec, X=np.column_stack([np.ones(len(spec.y)), spec.X]), kept=np.append(first, spec.kept))
        complete = complete_terms(spec)
        k = complete.values.shape[1]
        triangle = np.asarray(np.linalg.qr(np.hstack([complete.values, spec.X]), mode="r"))
        constant = [np.ptp(complete.values[:, complete.term == t]) == 0 for t in range(len(complete.names))]
        return replace(complete, values=triangle[:, :k]), triangle[:, k:], constant

    # Rows and groups.

    @cached_property
    def predictor(self) -> np.ndarray:
        """``X beta + offset + Z b``, array (n,): the linear predictor at the modes."""
        self.need_data("fittedvalues and resid")
        return rows.mean(self.spec, self.fit, rows.in_sample(self.spec, range(len(self.spec.terms))))

    @cached_property
    def at_modes(self) -> responses.AtPredictors:
        """What the rows of a family of responses say at the modes."""
        return responses.at_predictors(self.model.design, self.predictor, self.fit.kappa)

    @cached_property
    def mode_slopes(self) -> list[np.ndarray]:
        """Derivatives (levels, q, m + k) of the modes of a response with a family, by term, in psi and kappa."""
        self.need_data("standard errors of predictions with random effects")
        return responses.mode_slopes(self.model.design, self.psi, self.fit)

    @cached_property
    def fittedvalues(self) -> np.ndarray:
        """Means at the modes, array (n,); of a response in categories their probabilities, (n, J)."""
        if self.family is None:
            return self.predictor
        what = "probabilities" if self.family.response == "categories" else "mean"
        return responses.evaluate(self.family, what, self.predictor, self.at_modes.extras).T

    @cached_property
    def joint(self) -> JointCovariance:
        """The joint covariance of (beta^ - beta, b^ - b) at the estimated variances."""
        self.need_data("the joint covariance of fixed and random effects", rows=False)
        terms = self.spec.terms
        self.refuse_iterative("the joint covariance of fixed and random effects (leverages)")
        self.refuse_sparse(*JOINT)
        codes, related = [term.codes for term in terms], [cast(Any, term.relationship) for term in terms]
        return joint_covariance(self.white_design, codes, self.fit, related, self._weights)

    @cached_property
    def solved(self) -> SolvedVariances:
        """Variances of predictions by solves, after an iterative fit."""
        self.need_data("variances of predictions with random effects", rows=False)
        return solved_variances(incidence(self.spec), self.fit)

    @property
    def _weights(self) -> np.ndarray:
        """Weights (n,) of the rows of `white_design`, negative where a log density is not concave at the mode."""
        return self.white_design.weights if self.family is None else self.at_modes.weight

    def refuse_sparse(self, what: str, why: str) -> None:
        """Refuse what is not there where related levels are many."""
        if any(term.precision is not None for term in self.spec.terms):
            raise ModelError(
                f"{what} is not there for a sparse relationship of many levels: {why}",
                page="relationships.md#large-pedigrees",
            )

    @cached_property
    def level_covariances(self) -> dict[str, np.ndarray]:
        """Conditional covariances of the random effects by grouping factor, arrays (levels, q, q)."""
        self.need_data("conditional covariances", rows=False)
        if self.is_iterative and sum(len(modes) * modes.shape[1] for modes in self.fit.b.values()) > MOST:
            self.refuse_iterative(
                f"conditional covariances of more than {MOST:,} random effects", "predict(data, interval=...) for some"
            )
        if any(term.precision is not None for term in self.spec.terms):
            of_factor = level_covariances(self.white_design, self.fit, self._weights)
            return {
                self.spec.terms[members[0]].group: block[: len(self.spec.terms[members[0]].known_levels)]
                for members, block in zip(self.design.layout.factors, of_factor, strict=True)
            }
        blocks = {}
        for group, members in effects.by_factor(self.spec.terms).items():
            variances = [np.diag(self.fit.covariances[self.spec.terms[k].label]) for k in members]
            # Of what does not vary, rounding would leave something of either sign.
            varies = np.concatenate(variances) > 0
            covariances = self.solved.level_blocks(members) if self.is_iterative else self.joint.level_blocks(members)
            blocks[group] = np.where(varies[:, None] & varies[None], covariances, 0)
        return blocks

    @cached_property
    def sizes(self) -> dict[str, effects.GroupSizes]:
        """Sizes of the groups, by factor."""
        return effects.group_sizes(self.spec)

    @cached_property
    def groups(self) -> effects.CoefficientsByGroup:
        """The random coefficients by top-level group."""
        self.need_data("random effects by group", rows=False)
        return effects.groups(self.spec, self.names.random)

    @cached_property
    def random_effects(self) -> dict[Any, pd.Series]:
        """Conditional modes by top-level group."""
        return self.groups.modes(self.fit.b)

    @cached_property
    def random_effects_cov(self) -> dict[Any, pd.DataFrame]:
        """Conditional covariances of `random_effects`, given the parameters."""
        self.need_data("random_effects_cov", rows=False)
        self.refuse_iterative("random_effects_cov")
        self.refuse_sparse(*JOINT)
        return self.groups.covariances(self.white_design, self.fit, self._weights)

    def without_rows(self) -> "Fitted":
        """The same without the rows; what was computed from them stays, if it is not as long as they are."""
        if not self.has_data:
            return self
        _ = self.sizes
        if effects.has_top_level(self.spec):
            _ = self.random_effects
        small = copy.copy(self)
        small.spec, small.has_data = effects.without_rows(self.spec), False
        small.model = self.model.without_data(small.spec)
        for name in ("predictor", "at_modes", "fittedvalues", "groups", "white", "white_design", "solved"):
            with suppress(AttributeError):  # What has not been asked for is not there.
                delattr(small, name)
        return small


COMPUTED = (
    *("curvature", "kenward_roger", "terms", "joint", "level_covariances"),
    *("sizes", "random_effects", "random_effects_cov", "mode_slopes"),
)
"""What is computed of the rows once, and stays when they are removed."""


@dataclass(frozen=True, eq=False, repr=False)
class Optimizer(Facts):
    """How the optimiser ended: the certificate of a fit.

    Attributes
    ----------
    outcome : Outcome
    message : str
        What the outcome means and what to do next.
    iterations, evaluations : int
        Of the search that ended at the estimate, and of those from all starts.
    starts : int
        From how many starts the optimum was searched; the lowest is reported. One where the model is known to have
        one minimum, or where `start_params` were given.
    gradient, hessian_eigenvalues : arrays (m,)
        Of the objective at the estimate, in the optimiser's own coordinates: square roots of the terms' relative
        covariances along their principal axes, in columns of unit size. A standard deviation of zero is an ordinary
        point there, and its curvature tells whether the objective rises beyond it. They are not derivatives in theta.
    checked_beyond_zero : bool
        Whether an optimum was found and the objective has, in these coordinates, no direction of negative curvature:
        no variance or direction of a covariance that is zero would lower it if it were not.
    crossed : str
        "exact", or "iterative" where crossed factors were fitted by conjugate gradients and probes: the certificate is
        then that of a deviance which is known with the error in ``result.monte_carlo``.
    """

    outcome: Outcome
    message: str
    iterations: int
    evaluations: int
    starts: int
    gradient: np.ndarray
    hessian_eigenvalues: np.ndarray
    checked_beyond_zero: bool
    crossed: str = "exact"

    def _facts(self) -> tuple[str, dict[str, object]]:
        facts: dict[str, object] = {
            "iterations": self.iterations,
            "evaluations": self.evaluations,
            "largest gradient": float(np.max(np.abs(self.gradient), initial=0)),
            "least curvature": float(np.min(self.hessian_eigenvalues, initial=np.inf)),
            "checked beyond zero": self.checked_beyond_zero,
        }
        if self.crossed != "exact":
            facts["crossed factors"] = self.crossed
        return f"{self.outcome.name}: {self.message}", facts


def message_of(fit: Fit, names: Sequence[str] = ()) -> str:
    """What an outcome means for this fit, with the `names` of the columns of X and of what else it is about."""
    about: list[str] = [str(names[column]) for column in fit.concerns.get("columns", ()) if column < len(names)]
    about += [f"the random effects {label!r}" for label in fit.concerns.get("terms", ())]
    about += [f"the predictor {name!r}" for name in fit.concerns.get("further", ())]
    if rows := fit.concerns.get("rows"):
        positions = ", ".join(map(str, rows))
        about.append(
            f"the residual variance of the rows at positions {positions}, which the fixed effects fit exactly, so that "
            "ML has no maximum; REML is bounded"
        )
    return fit.outcome.message + (f". It is about: {', '.join(about)}" if about else "")


def optimizer(fit: Fit, names: Sequence[str] = ()) -> Optimizer:
    """The certificate of a fit."""
    message = message_of(fit, names)
    if fit.outcome.ok and fit.starts > 1:
        message += f"; no lower minimum from {fit.starts} starts"
    counts = fit.iterations, fit.evaluations, fit.starts
    certificate = fit.gradient, fit.hessian_eigenvalues, fit.checked_beyond_zero
    return Optimizer(fit.outcome, message, *counts, *certificate, fit.crossed)


def monte_carlo(fitted: Fitted) -> MonteCarlo | None:
    """The errors of a fit by probes, those of the coefficients by name; None of an exact one."""
    if (known := fitted.fit.monte_carlo) is None:
        return None
    return replace(known, theta=known.theta.copy(), coefficients=fitted.vector(known.coefficients, fitted.names.fixed))
