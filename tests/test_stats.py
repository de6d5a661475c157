"""Intervals and verdicts: worked by hand, against scipy, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as scipy_stats

from alignkit.stats import (
    Interval,
    null_passed,
    pearson,
    prediction_interval,
    slope,
    smallest_detectable,
    spearman,
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
        (0.01, 0.05, 0.01, "not resolved at this scale"),  # touching is not above
        (0.005, 0.05, 0.01, "not resolved at this scale"),
        (-0.05, 0.05, 0.0, "not resolved at this scale"),
        (-0.05, -0.005, 0.01, "not resolved at this scale"),
        (-0.05, -0.02, 0.01, "opposite"),
    ],
)
def test_verdict(low, high, margin, expected):
    assert verdict(interval(low, high), margin) == expected


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
        (lambda: null_passed(interval(0, 1), math.nan, 0.1), "expected is nan"),
        (lambda: slope([1, 1], [1, 2]), "x is constant"),
        (lambda: spearman([1, 2], [1, 1]), "constant"),
        (lambda: pearson([1, 2, 3], [1, 2]), "paired"),
    ],
)
def test_refusals_name_the_argument(call, message):
    with pytest.raises(ValueError, match=message):
        call()
