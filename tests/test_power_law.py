"""The saturating power law and its rival against hand-made curves."""

import math

import numpy as np
import pytest

from alignkit.evaluation import fit_log_linear, fit_power_law

GRID = [(a, b) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4, 5, 6)]
A, B = map(np.array, zip(*GRID))


def law(a, b):
    return 0.41 - (0.15 * a**-0.75 + 0.13 * b**-1.3)  # the paper's fit for VideoMAEv2


def test_it_finds_the_five_numbers_again():
    fit = fit_power_law(A, B, [law(a, b) for a, b in GRID])
    found = (fit.limit, fit.first, fit.first_power, fit.second, fit.second_power)
    assert found == pytest.approx((0.41, 0.15, 0.75, 0.13, 1.3), abs=1e-4)
    assert fit.r2 == pytest.approx(1, abs=1e-9)
    assert float(fit(1, 1)) == pytest.approx(0.41 - 0.28, abs=1e-6)


def test_nine_points_tell_the_others():
    known = [(a, b) for a, b in GRID if a <= 3 and b <= 3]
    fit = fit_power_law(*map(list, zip(*known)), [law(a, b) for a, b in known])
    assert np.abs(fit(A, B) - law(A, B)).max() < 1e-6


def test_r2_is_the_explained_part():
    score = np.array([law(a, b) for a, b in GRID]) + 0.01 * np.cos(7.0 * np.arange(24))
    fit = fit_power_law(A, B, score)
    left = ((fit(A, B) - score) ** 2).sum() / ((score - score.mean()) ** 2).sum()
    assert fit.r2 == pytest.approx(1 - left, abs=1e-9) and 0.5 < fit.r2 < 0.999


def test_equal_scores_are_a_limit():
    fit = fit_power_law(A, B, np.full(24, 0.04))
    assert fit.r2 == 1 and np.abs(fit(A, B) - 0.04).max() < 1e-6


def test_the_line_is_exact_on_a_line_and_bends_nothing():
    line = fit_log_linear(A, B, 0.1 + 0.05 * np.log(A) + 0.02 * np.log(B))
    assert float(line(10, 100)) == pytest.approx(0.1 + 0.07 * math.log(10) + 0.02 * math.log(10))
    assert np.abs(fit_log_linear(A, B, law(A, B))(A, B) - law(A, B)).max() > 0.005


def test_they_refuse_what_cannot_be_fitted():
    with pytest.raises(ValueError, match="a has 2 different amounts"):
        fit_power_law([1, 2, 1], [1, 2, 3], [0.1, 0.2, 0.3])
    for a, b, score in (([1, 2], [1], [0.1, 0.2]), ([0, 1, 2], [1, 2, 3], [0.1] * 3),
                        ([1, 2, 3], [1, 2, 3], [0.1, 0.2, math.nan]), ([], [], [])):
        for fit in (fit_power_law, fit_log_linear):
            with pytest.raises(ValueError, match="one length|at least 1"):
                fit(a, b, score)
