"""Families with what they are compared with: distributions of SciPy, and textbook densities in a hundred digits."""

import functools
import math
from dataclasses import dataclass, replace
from decimal import Decimal, localcontext
from fractions import Fraction
from typing import Any

import numpy as np
import scipy.special
import scipy.stats

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
    StudentT,
    ZeroInflated,
)

DIGITS = 120
STEP = Decimal("1e-12")


@dataclass(frozen=True)
class Case:
    """A family at further predictors `theta`.

    `reference(eta, trials)` is SciPy's distribution; `textbook(*theta)` a log density of y, eta, trials in decimals.
    """

    family: Family
    theta: tuple[float, ...]
    reference: Any
    textbook: Any
    discrete: bool = True
    positive: bool = False
    """Whether linear predictors must be above zero."""
    responses: tuple[float, ...] = ()
    """Responses instead of those at some levels of the distribution."""

    @property
    def name(self):
        return f"{self.family.name} {self.family.link} {list(self.theta)}"

    def extras(self, shape, dtype=float):
        return np.stack([np.full(shape, value, dtype) for value in self.theta]) if self.theta else np.zeros((0, *shape))

    def at(self, eta, trials):
        """Linear predictors that the family can have, responses from the middle and the tails, and the predictors."""
        eta = np.exp(0.3 * eta) if self.positive else eta
        distribution = self.reference(eta, trials)
        if self.responses:
            return np.resize(self.responses, len(eta)), eta, distribution
        levels = np.resize([0.02, 0.3, 0.5, 0.85, 0.999], len(eta))
        y = np.clip(distribution.ppf(levels), -1e6, 1e6) * 1.0
        if self.family.response == "numbers" and self.discrete:
            y = np.where(np.arange(len(y)) % 4 == 0, 0.0, y)
        return y, eta, distribution

    def density(self, distribution, y):
        return distribution.logpmf(y) if self.discrete else distribution.logpdf(y)


# ---- a hundred digits ----


@functools.cache
def bernoulli(n):
    """Bernoulli's number of an even index."""
    row = [Fraction(0)] * (n + 1)
    for m in range(n + 1):
        row[m] = Fraction(1, m + 1)
        for j in range(m, 0, -1):
            row[j - 1] = j * (row[j - 1] - row[j])
    return row[0]


@functools.cache
def stirling(n):
    """The coefficient of z^-(2n - 1) in the logarithm of the gamma function."""
    coefficient = bernoulli(2 * n) / (2 * n * (2 * n - 1))
    return Decimal(coefficient.numerator) / Decimal(coefficient.denominator)


@functools.lru_cache(10_000)
def log_gamma(z):
    """Stirling's series from 60 on, to a hundred digits."""
    shifted, product = z, Decimal(1)
    while shifted < 60:
        product, shifted = product * shifted, shifted + 1
    total = (shifted - Decimal("0.5")) * shifted.ln() - shifted + (2 * pi()).ln() / 2 - product.ln()
    power, square = 1 / shifted, 1 / (shifted * shifted)
    for n in range(1, 60):
        term = stirling(n) * power
        total, power = total + term, power * square
        if abs(term) < Decimal(10) ** -DIGITS:
            break
    return total


@functools.cache
def pi():
    """Machin's formula."""

    def arctan_of_reciprocal(n):
        total, power, k = Decimal(0), Decimal(1) / n, 0
        while abs(power) > Decimal(10) ** -(DIGITS + 5):
            total += (-1) ** k * power / (2 * k + 1)
            power, k = power / (n * n), k + 1
        return total

    with localcontext() as context:
        context.prec = DIGITS + 20
        return 4 * (4 * arctan_of_reciprocal(5) - arctan_of_reciprocal(239))


def normal_cdf(x):
    """By its series in the middle and its continued fraction in the tails."""
    density = (-x * x / 2).exp() / (2 * pi()).sqrt()
    if x > 9:
        return 1 - normal_cdf(-x)
    if x < -9:
        fraction = Decimal(0)
        for k in range(600, 0, -1):
            fraction = k / (-x + fraction)
        return density / (-x + fraction)
    total = term = x
    n = 1
    while abs(term) > Decimal(10) ** -DIGITS:
        term = term * x * x / (2 * n + 1)
        total, n = total + term, n + 1
    return Decimal("0.5") + density * total


def logistic_cdf(x):
    return 1 / (1 + (-x).exp())


def differences(function):
    """A function of a small step at zero, and its first four derivatives there."""
    low2, low, middle, high, high2 = (function(k * STEP) for k in range(-2, 3))
    return (
        middle,
        (high - low) / (2 * STEP),
        (high - 2 * middle + low) / STEP**2,
        (high2 - 2 * high + 2 * low - low2) / (2 * STEP**3),
        (high2 - 4 * high + 6 * middle - 4 * low + low2) / STEP**4,
    )


def exact_derivatives(case, y, eta, trials, varied=None):
    """l and its first four derivatives in eta, (5, n); or the derivatives of these in one of the further predictors."""
    with localcontext() as context:
        context.prec = DIGITS
        rows = [
            derivatives_of_row(case, varied, *(Decimal(float(value)) for value in row))
            for row in zip(y, eta, trials, strict=True)
        ]
    return np.array(rows).T * np.array([1, 1, -1, -1, -1])[:, None]


def derivatives_of_row(case, varied, y, eta, trials):
    def at(step):
        theta = [Decimal(value) for value in case.theta]
        if varied is not None:
            theta[varied] += step
        density = case.textbook(*theta)
        return differences(lambda shift: density(y, eta + shift, trials))

    if varied is None:
        return [float(value) for value in at(0)]
    wide = Decimal("1e-10")
    return [float((high - low) / (2 * wide)) for high, low in zip(at(wide), at(-wide), strict=True)]


# ---- textbook densities ----


def log_choose(m, y):
    return log_gamma(m + 1) - log_gamma(y + 1) - log_gamma(m - y + 1)


def binomial(log_probabilities):
    def density(y, eta, trials):
        log_p, log_q = log_probabilities(eta)
        return log_choose(trials, y) + y * log_p + (trials - y) * log_q

    return density


def poisson(mean):
    return lambda y, eta, trials: (y * mean(eta).ln() if y else 0) - mean(eta) - log_gamma(y + 1)


def negative_binomial(size):
    def density(y, eta, trials):
        mu = eta.exp()
        k = size(mu)
        ratio = log_gamma(y + k) - log_gamma(k) - log_gamma(y + 1)
        return ratio + k * (k / (k + mu)).ln() + (y * (mu / (k + mu)).ln() if y else 0)

    return density


def gamma(shape, mean):
    def density(y, eta, trials):
        mu = mean(eta)
        return shape * (shape / mu).ln() + (shape - 1) * y.ln() - shape * y / mu - log_gamma(shape)

    return density


def beta(phi):
    def density(y, eta, trials):
        a, b = phi * logistic_cdf(eta), phi * logistic_cdf(-eta)
        return log_gamma(phi) - log_gamma(a) - log_gamma(b) + (a - 1) * y.ln() + (b - 1) * (1 - y).ln()

    return density


def beta_binomial(phi):
    def log_beta(a, b):
        return log_gamma(a) + log_gamma(b) - log_gamma(a + b)

    def density(y, eta, trials):
        a, b = phi * logistic_cdf(eta), phi * logistic_cdf(-eta)
        return log_choose(trials, y) + log_beta(y + a, trials - y + b) - log_beta(a, b)

    return density


def gaussian(variance, mean):
    return lambda y, eta, trials: -((y - mean(eta)) ** 2) / (2 * variance) - (2 * pi() * variance).ln() / 2


def student(scale, df, mean):
    def density(y, eta, trials):
        z = (y - mean(eta)) / scale
        constant = log_gamma((df + 1) / 2) - log_gamma(df / 2) - (df * pi()).ln() / 2 - scale.ln()
        return constant - (df + 1) / 2 * (1 + z * z / df).ln()

    return density


def ordinal(cdf, thresholds):
    def density(y, eta, trials):
        y = int(y)
        if y == 0:
            return cdf(thresholds[0] - eta).ln()
        if y == len(thresholds):
            return cdf(eta - thresholds[-1]).ln()
        low, high = thresholds[y - 1] - eta, thresholds[y] - eta
        return (cdf(high) - cdf(low) if low < 0 else cdf(-low) - cdf(-high)).ln()

    return density


def inflated(logit, count):
    def density(y, eta, trials):
        p, log_count = logistic_cdf(logit), count(y, eta, trials)
        return (p + (1 - p) * log_count.exp()).ln() if y == 0 else (1 - p).ln() + log_count

    return density


# ---- distributions of SciPy ----


class Inflated:
    """A distribution of SciPy with more zeros."""

    def __init__(self, counts, p):
        self.counts, self.p = counts, p

    def logpmf(self, y):
        return np.log((1 - self.p) * self.counts.pmf(y) + self.p * (y == 0))

    def cdf(self, y):
        return np.where(y < 0, 0, self.p + (1 - self.p) * self.counts.cdf(y))

    def ppf(self, level):
        return self.counts.ppf(level)

    def mean(self):
        return (1 - self.p) * self.counts.mean()

    def var(self):
        second = (1 - self.p) * (self.counts.var() + self.counts.mean() ** 2)
        return second - self.mean() ** 2


class Categories:
    """Ordered categories by a distribution of SciPy."""

    def __init__(self, latent, thresholds, eta):
        ends = [np.full_like(eta, -np.inf), *(alpha - eta for alpha in thresholds), np.full_like(eta, np.inf)]
        # By the tail that is nearer, in which differences are exact.
        self.p = np.stack(
            [
                np.where(low > 0, latent.sf(low) - latent.sf(high), latent.cdf(high) - latent.cdf(low))
                for low, high in zip(ends[:-1], ends[1:], strict=True)
            ]
        )

    def logpmf(self, y):
        return np.log(np.take_along_axis(self.p, np.asarray(y, int)[None], 0)[0])

    def cdf(self, y):
        codes = np.arange(len(self.p))[:, None]
        return np.sum(np.where(codes <= y, self.p, 0), 0)

    def ppf(self, level):
        return np.sum(np.cumsum(self.p, 0) < level, 0).clip(0, len(self.p) - 1)

    def mean(self):
        return np.nan * self.p[0]

    def var(self):
        return np.nan * self.p[0]


def exp(x):
    return np.exp(x) if isinstance(x, np.ndarray | float) else x.exp()


def square(x):
    return x * x


def inverse(x):
    return 1 / x


def same(x):
    return x


MEANS = {"log": exp, "sqrt": square, "inverse": inverse, "identity": same}


def both_sides(cdf):
    return lambda eta: (cdf(eta).ln(), cdf(-eta).ln())


def complementary(eta):
    hazard = eta.exp()
    return (1 - (-hazard).exp()).ln(), -hazard


SUCCESSES = {
    "logit": (lambda eta: scipy.special.expit(eta), both_sides(logistic_cdf)),
    "probit": (lambda eta: scipy.special.ndtr(eta), both_sides(normal_cdf)),
    "cloglog": (lambda eta: -np.expm1(-np.exp(eta)), complementary),
}
LATENT = {"logit": (scipy.stats.logistic, logistic_cdf), "probit": (scipy.stats.norm, normal_cdf)}


def binomial_case(link):
    probability, exact = SUCCESSES[link]
    return Case(Binomial(link=link), (), lambda eta, m: scipy.stats.binom(m, probability(eta)), lambda: binomial(exact))


def poisson_case(link):
    mean = MEANS[link]
    return Case(
        Poisson(link=link),
        (),
        lambda eta, m: scipy.stats.poisson(mean(eta)),
        lambda: poisson(mean),
        positive=link == "identity",
    )


def nb2_case(log_size):
    size = math.exp(log_size)
    return Case(
        NegativeBinomial(),
        (log_size,),
        lambda eta, m: scipy.stats.nbinom(size, size / (size + np.exp(eta))),
        lambda log_size: negative_binomial(lambda mu: log_size.exp()),
    )


def nb1_case(log_phi):
    phi = math.exp(log_phi)
    return Case(
        NegativeBinomial1(),
        (log_phi,),
        lambda eta, m: scipy.stats.nbinom(np.exp(eta) / phi, 1 / (1 + phi)),
        lambda log_phi: negative_binomial(lambda mu: mu / log_phi.exp()),
    )


def gamma_case(link, log_shape):
    shape, mean = math.exp(log_shape), MEANS[link]
    return Case(
        Gamma(link=link),
        (log_shape,),
        lambda eta, m: scipy.stats.gamma(shape, scale=mean(eta) / shape),
        lambda log_shape: gamma(log_shape.exp(), mean),
        discrete=False,
        positive=link == "inverse",
    )


def beta_case(log_phi):
    phi = math.exp(log_phi)
    return Case(
        Beta(),
        (log_phi,),
        lambda eta, m: scipy.stats.beta(phi * scipy.special.expit(eta), phi * scipy.special.expit(-eta)),
        lambda log_phi: beta(log_phi.exp()),
        discrete=False,
    )


def beta_binomial_case(log_phi):
    phi = math.exp(log_phi)
    return Case(
        BetaBinomial(),
        (log_phi,),
        lambda eta, m: scipy.stats.betabinom(
            m.astype(int), phi * scipy.special.expit(eta), phi * scipy.special.expit(-eta)
        ),
        lambda log_phi: beta_binomial(log_phi.exp()),
    )


def gaussian_case(link, log_variance):
    mean, deviation = MEANS[link], math.exp(0.5 * log_variance)
    return Case(
        Gaussian(link=link),
        (log_variance,),
        lambda eta, m: scipy.stats.norm(mean(eta), deviation),
        lambda log_variance: gaussian(log_variance.exp(), mean),
        discrete=False,
        positive=link == "inverse",
    )


def student_case(link, log_scale, log_df):
    mean, scale, df = MEANS[link], math.exp(log_scale), math.exp(log_df)
    return Case(
        StudentT(link=link),
        (log_scale, log_df),
        lambda eta, m: scipy.stats.t(df, mean(eta), scale),
        lambda log_scale, log_df: student(log_scale.exp(), log_df.exp(), mean),
        discrete=False,
    )


def ordinal_case(link, theta):
    latent, cdf = LATENT[link]
    thresholds = theta[0] + np.concatenate([[0.0], np.cumsum(np.exp(theta[1:]))])

    def textbook(first, *log_gaps):
        gaps = [log_gap.exp() for log_gap in log_gaps]
        return ordinal(cdf, [first + sum(gaps[:k]) for k in range(len(theta))])

    return Case(
        Ordinal(link=link, categories=len(theta) + 1),
        theta,
        lambda eta, m: Categories(latent, thresholds, eta),
        textbook,
    )


def inflated_case(case, logit):
    p = scipy.special.expit(logit)
    return Case(
        ZeroInflated(case.family),
        (*case.theta, logit),
        lambda eta, m: Inflated(case.reference(eta, m), p),
        lambda *theta: inflated(theta[-1], case.textbook(*theta[:-1])),
    )


CASES = [
    *(binomial_case(link) for link in SUCCESSES),
    *(poisson_case(link) for link in ("log", "sqrt", "identity")),
    nb2_case(0.4),
    nb1_case(-0.3),
    *(gamma_case(link, 0.7) for link in ("log", "inverse")),
    beta_case(2.1),
    beta_binomial_case(1.2),
    *(gaussian_case(link, -0.5) for link in ("identity", "log", "inverse", "sqrt")),
    *(student_case(link, -0.4, 1.8) for link in ("identity", "log")),
    *(ordinal_case(link, (-1.0, -0.3, -2.5, 0.6)) for link in LATENT),
    ordinal_case("logit", (0.2,)),
    inflated_case(poisson_case("log"), -0.4),
    inflated_case(nb2_case(0.4), -1.1),
    inflated_case(binomial_case("logit"), -0.8),
]


def with_responses(*cases, y):
    return [replace(case, responses=y) for case in cases]


EXTREMES = [
    *with_responses(*map(nb2_case, (-12.0, 4.0, 18.4, 40.0)), y=(0.0, 3.0, 1.0, 700.0)),
    *with_responses(*map(nb1_case, (-40.0, -18.4, 4.0, 9.0)), y=(0.0, 3.0, 1.0, 700.0)),
    *with_responses(gamma_case("log", -6.0), gamma_case("log", 4.0), y=(1e-9, 0.3, 4.0, 80.0)),
    *(gamma_case(link, 18.4) for link in ("log", "inverse")),
    *with_responses(beta_case(-6.0), beta_case(5.0), y=(1e-9, 0.4, 0.99)),
    beta_case(18.4),
    *with_responses(*map(beta_binomial_case, (-8.0, 5.0, 18.4, 40.0)), y=(0.0, 1.0, 1.0)),
    *(student_case("identity", scale, df) for scale, df in ((-9.0, -1.0), (6.0, 18.4), (0.0, 40.0))),
    *with_responses(*(ordinal_case(link, (0.5, -14.0, 3.0, -30.0)) for link in LATENT), y=(1.0, 3.0, 2.0, 0.0, 4.0)),
    *with_responses(inflated_case(nb2_case(18.4), -30.0), inflated_case(nb2_case(-3.0), 30.0), y=(0.0, 2.0, 0.0)),
]
"""Dispersions so large or small that the family is near another one, thresholds all but equal, no zeros or all."""

FAMILY_IDS = [case.name for case in CASES]
EXTREME_IDS = [case.name for case in EXTREMES]
