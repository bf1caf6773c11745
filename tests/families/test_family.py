"""What every family owes: its density and derivatives, moments, draws and distribution function, at any size."""

import functools
from dataclasses import dataclass

import family_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from family_cases import CASES, EXTREMES
from statsmodels.genmod import families as statsmodels_families

from jmixed.errors import ModelError
from jmixed.families import (
    Beta,
    BetaBinomial,
    Binomial,
    Family,
    Gamma,
    Gaussian,
    NegativeBinomial,
    NegativeBinomial1,
    Ordinal,
    Poisson,
)
from jmixed.runtime.precision import double_precision

ETA = np.array([-4.0, -2.2, -1.1, -0.35, 0.01, 0.4, 0.9, 1.6, 2.3, 3.1])
TRIALS = np.array([1.0, 2, 30, 5, 8, 13, 4, 7, 250, 40])
FAR = np.array([-45.0, -33.1, -20.3, -12.7, -6.2, 5.3, 12.1, 18.8, 31.0, 44.0])

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
each_case_and_extreme = pytest.mark.parametrize("case", CASES + EXTREMES, ids=lambda case: case.name)


@functools.partial(jax.jit, static_argnums=0)
def density_and_derivatives(family, y, eta, extras, trials):
    return jnp.stack([family.log_density(y, eta, extras, trials), *family.derivatives(y, eta, extras, trials)])


@functools.partial(jax.jit, static_argnums=0)
def changes(family, y, eta, extras, trials):
    return jax.jacfwd(lambda theta: density_and_derivatives(family, y, eta, theta[:, None] + 0 * extras, trials))(
        extras[:, 0]
    )


def arrays_of(case, y, eta, trials, dtype=float):
    return [np.asarray(array, dtype) for array in (y, eta, case.extras(eta.shape), trials)]


def worked_out(case, y, eta, trials, dtype=float):
    """l, and l', -l'', -l''', -l'''' (5, n)."""
    with double_precision():
        values = density_and_derivatives(case.family, *arrays_of(case, y, eta, trials, dtype))
    assert values.dtype == dtype
    return np.asarray(values)


def close(values, expected, within):
    """Differences relative to one and the size; of the score also to its spread, of what follows to the weight."""
    room = 1 + np.abs(expected)
    room[1] += np.sqrt(np.abs(expected[2]))
    room[3:] += np.abs(expected[2])
    worst = np.max(np.abs(values - expected) / room)
    assert worst < within, worst


@each_case
def test_density_is_that_of_scipy(case):
    y, eta, distribution = case.at(ETA, TRIALS)
    expected = case.density(distribution, y)
    np.testing.assert_allclose(worked_out(case, y, eta, TRIALS)[0], expected, rtol=1e-12, atol=1e-12)


@each_case_and_extreme
def test_density_and_derivatives_are_exact(case):
    y, eta, _ = case.at(ETA, TRIALS)
    close(worked_out(case, y, eta, TRIALS), family_cases.exact_derivatives(case, y, eta, TRIALS), 1e-11)


@pytest.mark.sweep(8)
@pytest.mark.parametrize("case", [case for case in CASES + EXTREMES if case.theta], ids=lambda case: case.name)
def test_their_derivatives_in_further_predictors_are_exact(case):
    y, eta, _ = case.at(ETA, TRIALS)
    rows = y[1::2], eta[1::2], TRIALS[1::2]
    with double_precision():
        values = np.asarray(changes(case.family, *arrays_of(case, *rows)))
    for place in range(len(case.theta)):
        close(values[..., place], family_cases.exact_derivatives(case, *rows, place), 1e-11)


def anywhere(case):
    """Responses that there may be, whatever is likely."""
    if case.family.response == "successes":
        return np.round(np.resize([0, 1, 0.4], len(TRIALS)) * TRIALS)
    if case.family.response == "categories":
        return np.arange(len(TRIALS)) % case.family.categories * 1.0
    if case.family.name == "Beta":
        return np.resize([1e-5, 0.4, 0.97], len(TRIALS))
    return np.resize([0.0, 3, 1, 80] if case.discrete else [0.02, 3, 1, 80], len(TRIALS))


UNBOUNDED = [case for case in CASES + EXTREMES if not case.positive and case.family.link not in ("sqrt", "identity")]


@pytest.mark.parametrize("case", UNBOUNDED, ids=lambda case: case.name)
def test_far_out_they_are_exact(case):
    y = anywhere(case)
    close(worked_out(case, y, FAR, TRIALS), family_cases.exact_derivatives(case, y, FAR, TRIALS), 1e-10)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", UNBOUNDED, ids=lambda case: case.name)
def test_nothing_overflows(case, dtype):
    y = anywhere(case)
    for reach in (90.0, 500.0):
        assert np.isfinite(worked_out(case, y, np.linspace(-reach, reach, len(y)), TRIALS, dtype)).all()


@each_case
def test_32_bits_are_kept(case):
    eta = (np.exp(0.3 * ETA) if case.positive else ETA).astype(np.float32)
    y = anywhere(case).astype(np.float32)
    single, double = (worked_out(case, y, eta, TRIALS, dtype) for dtype in (np.float32, np.float64))
    close(single, double, 2e-5)


# ---- what people see ----

MODERATE = np.array([-1.2, -0.5, 0.1, 0.6, 1.3])
FEW = np.array([1.0, 2, 3, 8, 13])
WITH_MOMENTS = [case for case in CASES if case.family.response != "categories"]
each_with_moments = pytest.mark.parametrize("case", WITH_MOMENTS, ids=lambda case: case.name)


def predictors(case):
    return np.exp(0.3 * MODERATE) if case.positive else MODERATE


def grid(case, mean):
    """Responses (points, n) all over where there are some, and what to multiply densities by in sums."""
    if case.family.response == "categories":
        y = np.arange(case.family.categories)[:, None] * np.ones_like(mean)
        return y, np.ones_like(y)
    if case.discrete:
        y = np.arange(700.0 if case.family.response == "numbers" else FEW.max() + 1)[:, None] * np.ones_like(mean)
        inside = (y <= FEW) | (case.family.response == "numbers")
        return np.where(inside, y, 0), inside * 1.0
    # The trapezoidal rule is exact to rounding where integrands vanish with all derivatives at both ends.
    s, step = np.linspace(-30, 30, 4001, retstep=True)
    s = s[:, None] * np.ones_like(mean)
    if case.family.name == "Gamma":
        return np.exp(s), step * np.exp(s)
    if case.family.name == "Beta":
        return 1 / (1 + np.exp(-s)), step / (2 + 2 * np.cosh(s))
    return mean + np.sinh(s), step * np.cosh(s)


@each_case
def test_probabilities_sum_to_one_with_the_mean_and_the_variance(case):
    eta, family = predictors(case), case.family
    categories = family.response == "categories"
    centre = np.zeros_like(eta) if categories else case.reference(eta, FEW).mean()
    y, parts = grid(case, centre)
    every = np.broadcast_to(eta, y.shape), case.extras(y.shape), np.broadcast_to(FEW, y.shape)
    with double_precision():
        mass = np.asarray(jax.jit(family.log_density)(y, *every))
        mass = np.exp(mass) * parts
        np.testing.assert_allclose(mass.sum(0), 1, rtol=1e-12)
        if categories:
            return
        mean = np.asarray(family.mean(eta, case.extras(eta.shape)))
        variance = np.asarray(family.variance(eta, case.extras(eta.shape), FEW))
    y = y / FEW if family.response == "successes" else y
    np.testing.assert_allclose(mean, (mass * y).sum(0), rtol=1e-11)
    np.testing.assert_allclose(variance, (mass * (y - mean) ** 2).sum(0), rtol=1e-10)


@functools.partial(jax.jit, static_argnums=0)
def distribution_function(family, y, eta, extras, trials):
    return family.cdf(y, eta, extras, trials)


@pytest.mark.sweep(12)
@each_case
def test_distribution_function_is_that_of_scipy(case):
    eta = np.resize(predictors(case), len(TRIALS))
    distribution = case.reference(eta, TRIALS)
    for level in (0.01, 0.5, 0.97):
        y = np.clip(distribution.ppf(np.full(len(eta), level)), -1e9, 1e9) * 1.0
        for shift in (-1.0, 0.0, 0.5):
            shifted = y + shift if case.discrete or case.family.link in ("identity", "sqrt") else y
            with double_precision():
                probability = distribution_function(case.family, *arrays_of(case, shifted, eta, TRIALS))
            expected = distribution.cdf(np.floor(shifted) if case.discrete else shifted)
            np.testing.assert_allclose(probability, expected, rtol=1e-10, atol=1e-13)


@functools.cache
def drawn(case):
    """Many responses (draws, 5) at five predictors."""
    shape = 6_000, len(MODERATE)
    eta, trials = np.broadcast_to(predictors(case), shape), np.broadcast_to(FEW, shape)
    with double_precision():
        return np.asarray(jax.jit(case.family.draw)(jax.random.key(3), eta, case.extras(shape), trials))


@pytest.mark.sweep(6)
@each_case
def test_draws_are_of_the_distribution(case):
    y, eta = drawn(case), predictors(case)
    n, trials = len(y), np.broadcast_to(FEW, y.shape)
    assert case.family.check(y.ravel(), trials.ravel()) is None
    distribution = case.reference(eta, FEW)
    for level in (0.05, 0.3, 0.7, 0.98):
        at = distribution.ppf(np.full(len(eta), level))
        p = distribution.cdf(at)
        assert np.all(np.abs(np.mean(y <= at, 0) - p) <= 5 * np.sqrt(p * (1 - p) / n) + 1e-12)
    if case.family.response != "categories":
        mean, variance = distribution.mean(), distribution.var()
        assert np.all(np.abs(y.mean(0) - mean) < 5 * np.sqrt(variance / n))
        spread = np.sqrt(np.mean((y - mean) ** 4, 0) / n)
        assert np.all(np.abs(np.mean((y - mean) ** 2, 0) - variance) < 5 * spread)


@pytest.mark.sweep(8)
@each_case
def test_draws_of_32_bits_are_in_range(case):
    eta = np.linspace(0.5, 8, 200, dtype=np.float32)
    trials = np.full(200, 7, np.float32)
    with double_precision():
        y = case.family.draw(jax.random.key(1), eta, case.extras((200,), np.float32), trials)
    assert y.dtype == np.float32
    assert np.isfinite(y).all()
    assert case.family.check(np.asarray(y), trials) is None


@pytest.mark.sweep(8)
@each_case
def test_batches_with_predictors_common_to_all_rows_give_the_same(case):
    y, eta, _ = case.at(ETA, TRIALS)
    shifts = np.array([0.0, 0.1])[:, None]
    thetas = np.asarray(case.theta) + 0 * shifts
    batched = jax.vmap(functools.partial(density_and_derivatives, case.family), in_axes=(None, 0, 0, None))
    with double_precision():
        both = np.asarray(batched(y, eta + shifts, thetas, TRIALS))
    for values, shift in zip(both, shifts, strict=True):
        close(values, worked_out(case, y, eta + shift, TRIALS), 1e-12)


# ---- starts ----


@functools.partial(jax.jit, static_argnums=0)
def starts(family, y, mean, trials, weights):
    return family.start(y, trials), family.start_extras(y, mean, trials, weights)


@pytest.mark.sweep(12)
@each_case
def test_starts_of_drawn_responses_are_near(case):
    y, eta, categories = drawn(case), predictors(case), case.family.response == "categories"
    with double_precision():
        mean = eta if categories else np.asarray(case.family.link_function.mean(eta))
        # Thresholds start from shares at a predictor of zero.
        rows = [2] if categories else slice(None)
        arrays = (np.broadcast_to(array, y.shape)[:, rows].ravel() for array in (y, mean, FEW, np.ones(len(eta))))
        start, theta = (np.asarray(array) for array in starts(case.family, *arrays))
    assert np.isfinite(start).all()
    # Degrees of freedom start from five; zeros of their own and a dispersion explain each other.
    known = 1 if case.family.name == "StudentT" else len(theta)
    room = 1.5 if case.family.name == "ZeroInflated(NegativeBinomial)" else 0.3
    np.testing.assert_allclose(theta[:known], case.theta[:known], atol=room)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@each_case
def test_starts_are_finite_whatever_the_data(case, dtype):
    family, n = case.family, 6
    ones, zeros = np.ones(n, dtype), np.zeros(n, dtype)
    few = np.asarray([0, 0, 0, 0, 0, 1], dtype)
    huge = np.asarray([0, 1e-30, 1, 1e6, 1e12, 1e15], dtype) if family.response == "numbers" else few
    for y in (zeros, ones, few, huge):
        for mean in (0.5 * ones, y.mean() * ones, 0 * ones):
            for weights in (ones, few, zeros, 1e6 * ones):
                with double_precision():
                    start, theta = starts(family, y, mean, ones, weights)
                assert start.dtype == theta.dtype == dtype
                assert theta.shape == (len(family.extras),)
                assert np.isfinite(start).all()
                assert np.isfinite(theta).all()


# ---- residuals, and the scale of the linear predictor ----

DEVIANCES = {
    "Binomial": lambda case: statsmodels_families.Binomial(),
    "Poisson": lambda case: statsmodels_families.Poisson(),
    "NegativeBinomial": lambda case: statsmodels_families.NegativeBinomial(alpha=np.exp(-case.theta[0])),
    "Gamma": lambda case: statsmodels_families.Gamma(),
    "Gaussian": lambda case: statsmodels_families.Gaussian(),
}


@each_case
def test_deviances_are_those_of_statsmodels_or_refused(case):
    y, eta, _ = case.at(ETA, TRIALS)
    arrays = arrays_of(case, y, eta, TRIALS)
    if case.family.name not in DEVIANCES:
        with pytest.raises(ModelError, match=r"does not have a deviance, which is needed for deviance residuals"):
            case.family.deviance(*arrays)
        return
    with double_precision():
        deviance, mean = case.family.deviance(*arrays), np.asarray(case.family.mean(eta, arrays[2]))
    reference = DEVIANCES[case.family.name](case)
    if case.family.response == "successes":
        reference.n = TRIALS
        y = y / TRIALS
    np.testing.assert_allclose(deviance, reference.resid_dev(y, mean) ** 2, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", DEVIANCES)
def test_deviances_are_exact_where_they_vanish(name):
    case = next(case for case in CASES if case.family.name == name)
    y = np.array([1.0, 2, 3, 7])
    trials = np.full(4, 11.0)
    share = y / trials if name == "Binomial" else y
    with double_precision():
        eta = np.asarray(case.family.link_function.predictor(share)) + 1e-6
        deviance = np.asarray(case.family.deviance(y, eta, case.extras((4,)), trials))
        slopes = jax.jvp(case.family.link_function.mean, (eta,), (np.ones(4),))[1]
        per_trial = case.family.variance(eta, case.extras((4,)), trials)
    dispersion = {"Gamma": np.exp(-0.7), "Gaussian": np.exp(-0.5)}.get(name, 1)
    unit = np.asarray(per_trial) / dispersion
    # To the first order, the square of the change in Pearson's residual.
    np.testing.assert_allclose(deviance, (1e-6 * np.asarray(slopes)) ** 2 / unit, rtol=1e-4)


def test_observation_variances_are_those_of_nakagawa_and_others():
    mean, trials = np.array([0.2, 0.5, 0.9]), np.array([1.0, 4, 9])
    extras = np.log(np.array([[2.5]]))
    expected = [
        (Binomial(), scipy.stats.logistic.var()),
        (Binomial(link="probit"), 1.0),
        (Binomial(link="cloglog"), scipy.stats.gumbel_l.var()),
        (Ordinal(categories=2), scipy.stats.logistic.var()),
        (Ordinal(link="probit", categories=2), 1.0),
        (Poisson(), np.log(1 + 1 / mean)),
        (Poisson(link="sqrt"), 0.25),
        (NegativeBinomial(), np.log(1 + 1 / mean + 1 / 2.5)),
        (NegativeBinomial1(), np.log(1 + 3.5 / mean)),
        (Gamma(), np.log(1 + 1 / 2.5)),
        (Gamma(link="inverse"), 1 / (2.5 * mean**2)),
        (Gaussian(), 2.5),
        (Beta(), 1 / (3.5 * mean * (1 - mean))),
        (BetaBinomial(), scipy.stats.logistic.var() + 1 / (3.5 * mean * (1 - mean))),
    ]
    for family, value in expected:
        with double_precision():
            variance = family.observation_variance(mean, extras, trials)
        np.testing.assert_allclose(variance, value * np.ones(3), rtol=1e-12, err_msg=family.name)


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.family.weights_are == "precision"], ids=lambda case: case.name
)
def test_weights_divide_the_variance(case):
    eta, weight = predictors(case), 1e4
    extras = case.extras(eta.shape)
    extras[0] += case.family.precision_sign * np.log(weight)
    with double_precision():
        heavy, light = (case.family.variance(eta, theta, FEW) for theta in (extras, case.extras(eta.shape)))
    ratio = np.asarray(light) / np.asarray(heavy)
    phi = np.exp(case.theta[0])
    np.testing.assert_allclose(ratio, (1 + weight * phi) / (1 + phi) if case.family.name == "Beta" else weight)


# ---- a family of one's own ----


@dataclass(frozen=True)
class Exponential(Family):
    """As the example of the contract has it."""

    links = ("log",)
    link: str = "log"

    def log_density(self, y, eta, extras, trials):
        return -eta - y * jnp.exp(-eta)


def test_a_log_density_is_all_that_a_family_needs():
    y, eta = np.array([0.3, 2.0, 5.0]), np.array([-0.7, 0.4, 1.1])
    with double_precision():
        values = np.asarray(density_and_derivatives(Exponential(), y, eta, np.zeros((0, 3)), np.ones(3)))
        start = Exponential().start(y, np.ones(3))
    gamma = family_cases.gamma_case("log", 0.0)
    close(values, family_cases.exact_derivatives(gamma, y, eta, np.ones(3)), 1e-14)
    np.testing.assert_array_equal(start, 0)
    assert Exponential().extras == ()
    assert Exponential().check(y, np.ones(3)) is None
    for method, use in (
        (lambda family: family.mean(eta, ()), "a mean, which is needed for predictions on the scale of the response"),
        (lambda family: family.variance(eta, (), 1), "a variance, which is needed for Pearson residuals"),
        (lambda family: family.draw(None, eta, (), 1), "draws, which is needed for simulation"),
        (lambda family: family.cdf(y, eta, (), 1), "a distribution function, which is needed for quantile residuals"),
    ):
        with pytest.raises(ModelError, match=f"the family Exponential does not have {use}: define it beside log_dens"):
            method(Exponential())


def test_an_unknown_link_names_those_there_are():
    with pytest.raises(ModelError, match=r"the link of Beta is 'probit'; it must be one of logit"):
        Beta(link="probit")
