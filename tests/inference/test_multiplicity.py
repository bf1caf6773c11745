"""Adjusted p-values and simultaneous limits, against scipy's joint distributions."""

import numpy as np
import pytest
from scipy.stats import false_discovery_control, multivariate_t, norm, t

from jmixed.inference.multiplicity import ADJUSTMENTS, half_widths, letter_groups, p_values

R = np.array([[1, 0.5, -0.3], [0.5, 1, 0.2], [-0.3, 0.2, 1]])
T = np.array([2.4, 1.1, -3.0])
DF = np.array([11.5, 11.5, 11.5])


@pytest.mark.parametrize("df", [11.5, np.inf])
@pytest.mark.parametrize("size", [2, 3])
def test_the_joint_distribution_is_scipys(size, df):
    corr, at = R[:size, :size], np.abs(T[:size])
    mine = p_values(T[:size], np.full(size, df), "mvt", 3, corr)
    law = multivariate_t(np.zeros(size), corr, 1e7 if np.isinf(df) else df, seed=1)
    theirs = [1 - law.cdf(np.full(size, bound), lower_limit=np.full(size, -bound), maxpts=100_000) for bound in at]
    np.testing.assert_allclose(mine, theirs, atol=3e-5)
    width = half_widths(0.95, np.full(size, df), "mvt", 3, corr)[0]
    assert p_values(np.full(size, width), np.full(size, df), "mvt", 3, corr)[0] == pytest.approx(0.05, abs=1e-9)


def test_limits_belong_to_p_values():
    """At a limit that just reaches zero the adjusted p-value is 1 - level, for every way that is not stepwise."""
    pairs = np.array([[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]])
    for adjust in ("tukey", "mvt", "bonferroni", "sidak", "none"):
        width = half_widths(0.9, DF, adjust, 3, pairs)
        np.testing.assert_allclose(p_values(width, DF, adjust, 3, pairs), 0.1, atol=1e-6)


def test_equal_variances_make_tukeys_method_the_joint_one():
    pairs = np.array([[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]])
    np.testing.assert_allclose(p_values(T, DF, "tukey", 3, pairs), p_values(T, DF, "mvt", 3, pairs), atol=1e-7)


def test_stepwise_methods():
    single = 2 * t.sf(np.abs(T), DF)
    np.testing.assert_allclose(p_values(T, DF, "fdr", 3, R), false_discovery_control(single), rtol=1e-10)
    np.testing.assert_allclose(p_values(T, DF, "holm", 3, R), [2 * single[0], single[1], 3 * single[2]], rtol=1e-10)


def test_what_has_no_estimate_is_no_test():
    with_gap = np.array([2.4, np.nan, -3.0])
    for adjust in ADJUSTMENTS:
        p = p_values(with_gap, DF, adjust, 3, R)
        assert np.isnan(p[1])
        assert np.all(np.isfinite(p[[0, 2]]))
    both = p_values(with_gap, np.full(3, np.inf), "bonferroni", 3, R)
    np.testing.assert_allclose(both[[0, 2]], 2 * 2 * norm.sf([2.4, 3.0]))


def test_letters_are_shared_by_what_does_not_differ():
    rng = np.random.default_rng(3)
    for _ in range(30):
        k = rng.integers(2, 8)
        upper = np.triu(rng.random((k, k)) < 0.4, 1)
        differ = upper | upper.T
        sets = letter_groups(differ)
        for i in range(k):
            for j in range(k):
                assert any(i in members and j in members for members in sets) == (i == j or not differ[i, j])


@pytest.mark.parametrize("adjust", ["tukey", "mvt"])
def test_far_tails_are_between_those_of_one_test_and_bonferronis(adjust):
    """Integrals ended at 2e-14, or at zero, where the probability is 1e-67."""
    far, df = np.array([25.0, 12.0, 40.0]), np.array([226.0, 226.0, np.inf])
    correlation = np.array([[1, 0.5, -0.5], [0.5, 1, 0.5], [-0.5, 0.5, 1]])
    single = 2 * np.where(np.isinf(df), norm.sf(far), t.sf(far, 226))
    found = p_values(far, df, adjust, 3, correlation)
    assert np.all(found >= single * (1 - 1e-9))
    assert np.all(found <= 3 * single * (1 + 1e-9))
