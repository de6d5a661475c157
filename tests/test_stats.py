"""Intervals and verdicts: worked by hand, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from alignkit.stats import (
    Interval,
    corrected_interval,
    equivalent,
    null_passed,
    p_above,
    p_equivalent,
    pearson,
    prediction_interval,
    second_look,
    slope,
    smallest_detectable,
    spearman,
    stein_size,
    survivors,
    t_interval,
    verdict,
)

EIGHT = st.lists(st.floats(-1e3, 1e3), min_size=8, max_size=8)


def test_t_interval_of_three_values_worked_by_hand():
    # 1, 2, 3: mean 2, sd 1; t with 2 degrees of freedom at 97.5 % is 4.302653 (table),
    # so the half width is 4.302653 / sqrt(3) = 2.484138.
    found = t_interval([1, 2, 3])
    assert (found.mean, found.n, found.sd) == (2.0, 3, 1.0)
    assert found.high - 2 == pytest.approx(2.484138, abs=1e-6)
    assert 2 - found.low == pytest.approx(2.484138, abs=1e-6)


def test_prediction_interval_is_wider_by_sqrt_n_plus_one():
    values = [0.3, 0.1, 0.4, 0.15, 0.92]
    mean, new = t_interval(values), prediction_interval(values)
    assert new.high - new.mean == pytest.approx((mean.high - mean.mean) * math.sqrt(6))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_t_interval_agrees_with_scipy(level):
    values = np.random.default_rng(0).normal(2, 3, 11)
    found = t_interval(values, level)
    low, high = scipy_stats.ttest_1samp(values, 0).confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_the_intervals_cover_what_they_promise():
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(4000, 8))
    means = [t_interval(row) for row in draws]
    news = [prediction_interval(row) for row in draws]
    fresh = rng.normal(size=4000)
    covered = np.mean([i.low <= 0 <= i.high for i in means])
    predicted = np.mean(
        [i.low <= x <= i.high for i, x in zip(news, fresh, strict=True)]
    )
    # A share of 4000 has a standard error of 0.0034 at 0.95.
    assert covered == pytest.approx(0.95, abs=0.014)
    assert predicted == pytest.approx(0.95, abs=0.014)


@given(EIGHT)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_every_one_of_eight_values_lies_in_their_own_prediction_interval(values):
    found = prediction_interval(values)
    room = 1e-9 * (1 + max(map(abs, values)))
    assert all(found.low - room <= value <= found.high + room for value in values)


def test_the_extreme_case_fits_for_up_to_eight_values_and_not_for_nine():
    # One value apart from n - 1 equal ones reaches (n - 1)/sqrt(n) deviations.
    for n in range(2, 13):
        values = [0.0] * (n - 1) + [1.0]
        found = prediction_interval(values)
        assert (1 - found.mean) / found.sd == pytest.approx((n - 1) / math.sqrt(n))
        assert (found.high >= 1) == (n <= 8)


def test_smallest_detectable_worked_by_hand_and_has_the_power_it_names():
    # n = 8: t(0.975, 7) = 2.364624, t(0.8, 7) = 0.896030 (tables); sd = 2.
    small = smallest_detectable(2.0, 8)
    assert small == pytest.approx((2.364624 + 0.896030) * 2 / math.sqrt(8), abs=1e-5)
    # Exact power by the noncentral t: P(t > critical) with shift small / (sd/sqrt n).
    for n in (5, 8, 20):
        shift = smallest_detectable(1.0, n) * math.sqrt(n)
        critical = scipy_stats.t.ppf(0.975, n - 1)
        power = scipy_stats.nct.sf(critical, n - 1, shift)
        assert power == pytest.approx(0.8, abs=0.05)
    assert smallest_detectable(0.0, 8) == 0


def interval(low, high):
    return Interval((low + high) / 2, low, high, 8, 1.0)


@pytest.mark.parametrize(
    ("low", "high", "margin", "expected"),
    [
        (0.02, 0.05, 0.01, "holds"),
        (0.01, 0.05, 0.01, "some gain"),  # touching is not above
        (0.005, 0.05, 0.01, "some gain"),
        (0.001, 0.009, 0.01, "some gain"),
        (0.0, 0.05, 0.01, "not resolved"),
        (-0.05, 0.05, 0.01, "not resolved"),
        (-0.005, 0.01, 0.01, "not resolved"),
        (-0.005, 0.005, 0.01, "no gain"),
        (-0.05, -0.005, 0.01, "no gain"),
        (-0.05, -0.02, 0.01, "opposite"),
    ],
)
def test_verdict(low, high, margin, expected):
    assert verdict(interval(low, high), margin) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (-0.005, 0.009, "holds"),
        (-0.01, 0.005, "not resolved"),  # touching is not inside
        (-0.02, 0.02, "not resolved"),
        (0.011, 0.02, "opposite"),
        (-0.02, -0.011, "opposite"),
    ],
)
def test_verdict_on_equivalence(low, high, expected):
    assert verdict(interval(low, high), 0.01, equivalence=True) == expected
    assert equivalent(interval(low, high), 0.01) == (expected == "holds")


def test_corrected_interval_worked_by_hand():
    # 1, 2, 3: mean 2, sd 1; half of the data tests: 4.302653 * sqrt(1/3 + 1/2).
    found = corrected_interval([1, 2, 3], n_test=50, n_train=100)
    assert found.mean == 2.0
    assert found.high - 2 == pytest.approx(4.302653 * math.sqrt(1 / 3 + 1 / 2), abs=1e-6)


@pytest.mark.slow
def test_the_corrected_interval_covers_under_its_own_model():
    """Nadeau and Bengio's model: splits of one pool whose differences are correlated
    by n_test / (n_test + n_train)."""
    rng, n_test, n_train = np.random.default_rng(3), 20, 70
    rho = n_test / (n_test + n_train)
    shared = rng.normal(size=(20_000, 1)) * math.sqrt(rho)
    draws = shared + rng.normal(size=(20_000, 8)) * math.sqrt(1 - rho)
    right = [corrected_interval(row, n_test, n_train) for row in draws]
    naive = [t_interval(row) for row in draws]
    assert np.mean([i.low <= 0 <= i.high for i in right]) >= 0.94
    assert np.mean([i.low <= 0 <= i.high for i in naive]) < 0.8  # why it is needed


def test_stein_worked_by_hand():
    # sd 1, t(0.975, 2) = 4.302653, half width 0.5: (4.302653 / 0.5)² = 74.05, so 75.
    assert stein_size([1, 2, 3], 0.5, most=100) == 75
    assert stein_size([1, 2, 3], 0.5, most=24) == 24
    assert stein_size([1, 2, 3], 50.0, most=24) == 3  # those that are there
    found = second_look([1, 2, 3, 6], n_first=3)
    assert (found.mean, found.n, found.sd) == (3.0, 4, 1.0)
    assert found.high - 3 == pytest.approx(4.302653 / 2, abs=1e-6)
    assert second_look([1, 2, 3], 3) == pytest.approx(t_interval([1, 2, 3]))


@pytest.mark.slow
@pytest.mark.parametrize("sd", [0.02, 0.3, 3.0])  # the rule asks for few, some, all
def test_two_looks_err_in_five_percent_whatever_the_variance(sd):
    """First look at 97.5 %; where it excludes neither 0 nor the margin, Stein's second.
    An error: the interval that is published misses the truth."""
    rng, truth, margin = np.random.default_rng(4), 0.01, 0.5
    missed = 0
    for draws in rng.normal(truth, sd, (6000, 24)):
        look = t_interval(draws[:8], 0.975)
        missed_first = not look.low <= truth <= look.high
        if verdict(look, margin) in ("some gain", "not resolved"):
            n = stein_size(draws[:8], margin / 2, 24, 0.975)
            look = second_look(draws[:n], 8, 0.975)
        # Both looks together: an error of either would be one, however one stops.
        missed += missed_first or not look.low <= truth <= look.high
    assert missed / 6000 <= 0.06 and missed / 6000 >= 0.02


@pytest.mark.slow
def test_peeking_without_a_rule_errs_more():
    """What the two looks are for: an interval that is looked at after every seed."""
    rng, missed = np.random.default_rng(5), 0
    for draws in rng.normal(0, 1, (2000, 24)):
        looks = [t_interval(draws[:n]) for n in range(5, 25)]
        missed += any(not look.low <= 0 <= look.high for look in looks)
    assert missed / 2000 > 0.12


def test_p_values_agree_with_scipy_and_with_the_interval():
    values = np.random.default_rng(6).normal(0.5, 1, 9)
    p = scipy_stats.ttest_1samp(values, 0.2, alternative="greater").pvalue
    assert p_above(values, 0.2) == pytest.approx(p, rel=1e-9)
    low = t_interval(values).low
    assert p_above(values, low) == pytest.approx(0.025)
    assert p_above(values, second_look(values, 5).low, 5) == pytest.approx(0.025)
    sides = [scipy_stats.ttest_1samp(values, bound, alternative=way).pvalue
             for bound, way in ((-1.2, "greater"), (1.2, "less"))]
    assert p_equivalent(values, 1.2) == pytest.approx(max(sides), rel=1e-9)


def test_survivors_worked_by_hand():
    # Holm at 5 %: .01 <= .05/3, .02 <= .05/2, .06 > .05. BH: .06 > .05, .02 <= 2/3 .05.
    assert survivors([0.02, 0.06, 0.01], "holm") == [True, False, True]
    assert survivors([0.04, 0.03, 0.045], "holm") == [False, False, False]
    assert survivors([0.04, 0.03, 0.045], "fdr_bh") == [True, True, True]


def test_null_passes_only_when_the_whole_interval_lies_inside():
    assert null_passed(interval(-0.01, 0.01), 0.0, 0.02)
    assert null_passed(interval(0.24, 0.26), 0.25, 0.02)
    assert not null_passed(interval(-0.01, 0.03), 0.0, 0.02)
    # Contains the expected value, but is too wide to show anything.
    assert not null_passed(interval(-1.0, 1.0), 0.0, 0.02)


def test_slope_and_correlations_worked_by_hand():
    # x = 0, 1, 2, y = 1, 3, 2: slope = sum(dx dy) / sum(dx^2) = 1/2, r = 1/2.
    assert slope([0, 1, 2], [1, 3, 2]) == pytest.approx(1 / 2)
    assert pearson([0, 1, 2], [1, 3, 2]) == pytest.approx(1 / 2)
    assert spearman([0, 1, 2], [1, 3, 2]) == pytest.approx(1 / 2)
    assert spearman([1, 2, 3, 4], [1, 10, 100, 1e6]) == pytest.approx(1)
    rng = np.random.default_rng(2)
    x, y = rng.integers(0, 5, 30), rng.normal(size=30)  # with ties
    assert spearman(x, y) == pytest.approx(scipy_stats.spearmanr(x, y).statistic)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([1.0]), "at least 2"),
        (lambda: t_interval([[1.0, 2.0]]), r"shape \(1, 2\)"),
        (lambda: t_interval([1.0, math.nan, math.inf]), r"positions \[1, 2\]"),
        (lambda: prediction_interval([1.0, 2.0], level=95), "between 0 and 1"),
        (lambda: smallest_detectable(1.0, 1), "at least 2 pairs"),
        (lambda: smallest_detectable(-1.0, 8), "sd is -1"),
        (lambda: smallest_detectable(1.0, 8, power=1.0), "power is 1"),
        (lambda: verdict(interval(0, 1), -0.1), "margin is -0.1"),
        (lambda: verdict(interval(0, 1), 0.0), "margin is 0.0; it must be above 0"),
        (lambda: corrected_interval([1, 2], 0, 5), "n_test is 0"),
        (lambda: stein_size([1, 2], 0.0, 24), "half_width is 0"),
        (lambda: null_passed(interval(0, 1), math.nan, 0.1), "expected is nan"),
        (lambda: slope([1, 1], [1, 2]), "x is constant"),
        (lambda: spearman([1, 2], [1, 1]), "constant"),
        (lambda: pearson([1, 2, 3], [1, 2]), "paired"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
