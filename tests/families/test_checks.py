"""What families say of responses that they cannot have, and of words that name none."""

import numpy as np
import pytest

from jmixed.errors import ModelError
from jmixed.families import (
    Beta,
    BetaBinomial,
    Binomial,
    Gamma,
    Gaussian,
    NegativeBinomial,
    NegativeBinomial1,
    Ordinal,
    Poisson,
    StudentT,
    ZeroInflated,
)
from jmixed.families.registry import FAMILIES, SYNONYMS, family_of

COUNTS = [Poisson(), NegativeBinomial(), NegativeBinomial1(), ZeroInflated()]


@pytest.mark.parametrize("family", [Binomial(), BetaBinomial(), ZeroInflated(Binomial())])
def test_successes_are_whole_and_no_more_than_trials(family):
    trials = np.array([1.0, 2, 5, 5, 5])
    assert family.check(np.array([1.0, 0, 5, 2, 3]), trials) is None
    said, bad = family.check(np.array([2.0, -1, 0.5, np.nan, 3]), trials)
    assert said == "successes are whole numbers from 0 to the number of trials"
    np.testing.assert_array_equal(bad, [True, True, True, True, False])


@pytest.mark.parametrize("family", [Binomial(), BetaBinomial()])
def test_trials_are_whole_and_at_least_one(family):
    said, bad = family.check(np.zeros(5), np.array([0.0, 1, 2.5, np.nan, -3]))
    assert said == "numbers of trials are whole and at least 1"
    np.testing.assert_array_equal(bad, [True, False, True, True, True])


@pytest.mark.parametrize("family", COUNTS)
def test_counts_are_whole_and_not_below_zero(family):
    assert family.check(np.array([0.0, 3, 1e9]), np.ones(3)) is None
    said, bad = family.check(np.array([0.0, 1.5, -1, np.nan]), np.ones(4))
    assert said == "counts are whole numbers, zero or more"
    np.testing.assert_array_equal(bad, [False, True, True, True])


@pytest.mark.parametrize(
    ("family", "said", "bad"),
    [
        (Gamma(), "numbers are above zero", [0.0, -1, np.nan]),
        (Beta(), "proportions are above 0 and below 1", [0.0, 1, 1.5, -0.1]),
        (Ordinal(categories=4), "categories are coded 0 to 3", [4.0, -1, 1.5]),
    ],
)
def test_numbers_out_of_range_are_told_with_what_is_allowed(family, said, bad):
    allowed = {"Gamma": 3.0, "Beta": 0.25, "Ordinal": 3.0}[family.name]
    assert family.check(np.array([allowed]), np.ones(1)) is None
    y = np.array([allowed, *bad])
    message, mask = family.check(y, np.ones(len(y)))
    assert message == said
    np.testing.assert_array_equal(mask, [False] + [True] * len(bad))


@pytest.mark.parametrize("family", [Gaussian(), StudentT()])
def test_any_number_is_a_number(family):
    assert family.check(np.array([-1e9, 0.5]), np.ones(2)) is None


@pytest.mark.parametrize(
    ("word", "family"),
    [
        ("binomial", Binomial()),
        ("Bernoulli", Binomial()),
        ("poisson", Poisson()),
        ("negative binomial", NegativeBinomial()),
        ("NegativeBinomial", NegativeBinomial()),
        ("nbinom2", NegativeBinomial()),
        ("nb2", NegativeBinomial()),
        ("nbinom1", NegativeBinomial1()),
        ("nb_1", NegativeBinomial1()),
        ("negativebinomial1", NegativeBinomial1()),
        ("Gamma", Gamma()),
        ("beta", Beta()),
        ("beta-binomial", BetaBinomial()),
        ("t", StudentT()),
        ("student", StudentT()),
        ("StudentT", StudentT()),
        ("ordinal", Ordinal()),
        ("cumulative", Ordinal()),
        ("gaussian", Gaussian()),
        ("normal", Gaussian()),
        (Poisson, Poisson()),
        (Binomial(link="cloglog"), Binomial(link="cloglog")),
    ],
)
def test_words_classes_and_objects_name_families(word, family):
    assert family_of(word) == family


def test_every_word_leads_to_a_family():
    assert set(SYNONYMS.values()) <= set(FAMILIES)
    assert not set(SYNONYMS) & set(FAMILIES)


@pytest.mark.parametrize("family", ["gamm", 3, dict, None])
def test_an_unknown_family_is_answered_with_those_there_are(family):
    with pytest.raises(ModelError, match=r"family is .*; it must be one of binomial, poisson, nbinom2, .*jm\.families"):
        family_of(family)
