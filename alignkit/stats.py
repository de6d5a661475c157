"""Intervals, verdicts and the small statistics that a claim reports.

Every function takes plain numbers (a list, an array or a CPU tensor), computes in
float64 and returns Python floats. Nothing here knows about models or data.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

HOLDS, SOME_GAIN, NO_GAIN = "holds", "some gain", "no gain"
OPPOSITE, NOT_RESOLVED = "opposite", "not resolved"
VERDICTS = (HOLDS, SOME_GAIN, NO_GAIN, OPPOSITE, NOT_RESOLVED)


class Interval(NamedTuple):
    """Mean of ``n`` values, an interval ``[low, high]``, and their sample sd."""

    mean: float
    low: float
    high: float
    n: int
    sd: float


def _numbers(values: ArrayLike, name: str, least: int = 2) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) < least:
        raise ValueError(
            f"{name} has shape {array.shape}; give a list of at least {least} numbers"
        )
    if not np.isfinite(array).all():
        bad = np.flatnonzero(~np.isfinite(array)).tolist()
        raise ValueError(f"{name} is not finite at positions {bad}; mend those runs")
    return array


def _fraction(value: float, name: str) -> float:
    if not 0 < value < 1:
        raise ValueError(f"{name} is {value}; it must lie strictly between 0 and 1")
    return float(value)


def _not_negative(value: float, name: str) -> float:
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {value}; it must be a finite number, 0 or more")
    return float(value)


def _quantile(level: float, freedom: int) -> float:
    """Student's t of a two-sided interval."""
    return float(scipy_stats.t.ppf(0.5 + _fraction(level, "level") / 2, freedom))


def _interval(values: ArrayLike, level: float, new_value: bool) -> Interval:
    array = _numbers(values, "values")
    n, mean, sd = len(array), float(array.mean()), float(array.std(ddof=1))
    half = _quantile(level, n - 1) * sd * math.sqrt(new_value + 1 / n)
    return Interval(mean, mean - half, mean + half, n, sd)


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean: mean ± t · sd / √n.

    For a claim, ``values`` are the differences of the paired seeds, one a seed.

    Raises:
        ValueError: fewer than two values, a value that is not finite, or a level
            outside (0, 1).
    """
    return _interval(values, level, new_value=False)


def prediction_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Interval for the value of one new seed: mean ± t · sd · √(1 + 1/n).

    It is about a seed that is not among ``values``. For the values themselves it
    says little: no value of a sample lies further than (n - 1)/√n standard
    deviations from the sample's mean (Samuelson's inequality), and at 95 % the half
    width is larger than that for every n up to 8. So with the default of 8 seeds each
    of the eight lies inside by construction, and a published seed that is run again
    and falls outside shows that something changed. From n = 9 on a value of the
    sample can lie outside.

    Raises:
        ValueError: as :func:`t_interval`.
    """
    return _interval(values, level, new_value=True)


def corrected_interval(
    values: ArrayLike, n_test: int, n_train: int, level: float = 0.95
) -> Interval:
    """Interval for new rows of the same kind, from repeated splits of one pool.

    mean ± t · sd · √(1/n + n_test / n_train), the corrected resampled t interval (Nadeau
    and Bengio 2003, equation 5). Splits of one pool share most of their rows, so their
    differences are not n draws of new data: the t interval says what new *splits of this
    corpus* would give, this one what *new rows* would.

    Args:
        values: the differences of the paired splits.
        n_test, n_train: items in a test and in a training split.
    """
    if n_test < 1 or n_train < 1:
        raise ValueError(f"n_test is {n_test} and n_train {n_train}; both must be 1 or more")
    array = _numbers(values, "values")
    n, mean, sd = len(array), float(array.mean()), float(array.std(ddof=1))
    half = _quantile(level, n - 1) * sd * math.sqrt(1 / n + n_test / n_train)
    return Interval(mean, mean - half, mean + half, n, sd)


def stein_size(
    first: ArrayLike, half_width: float, most: int, level: float = 0.95
) -> int:
    """How many values a second look needs, by Stein's rule (1945).

    N = (t · sd / half_width)², rounded up, at least as many as there are and at most
    `most`; t and sd belong to the first look alone. Because N depends on the first
    look's sd and on nothing else, :func:`second_look` is exact.
    """
    array = _numbers(first, "first")
    if not half_width > 0:
        raise ValueError(f"half_width is {half_width}; it must be above 0")
    t, sd = _quantile(level, len(array) - 1), float(array.std(ddof=1))
    return max(len(array), min(most, math.ceil((t * sd / half_width) ** 2)))


def second_look(values: ArrayLike, n_first: int, level: float = 0.95) -> Interval:
    """Interval after Stein's second look: mean of all N values ± t · sd / √N.

    sd and t are those of the first `n_first` values, so the interval covers the true
    mean with exactly the given level (or more), whatever the variance, for normal values.
    `sd` of the result is the first look's.
    """
    array = _numbers(values, "values")
    first = t_interval(array[:n_first], level)
    half = _quantile(level, n_first - 1) * first.sd / math.sqrt(len(array))
    mean = float(array.mean())
    return Interval(mean, mean - half, mean + half, len(array), first.sd)


def smallest_detectable(
    sd: float, n: int, level: float = 0.95, power: float = 0.8
) -> float:
    """Smallest mean difference that ``n`` pairs would probably have shown.

    (t_{1 - α/2, n - 1} + t_{power, n - 1}) · sd / √n, the usual approximation: a true
    difference of this size puts the interval's lower end above 0 with about the
    given power. To pass a margin, the true difference must be larger by that margin.

    Args:
        sd: sample standard deviation of the paired differences.
        n: number of pairs (seeds), at least 2.
    """
    if n < 2:
        raise ValueError(f"n is {n}; at least 2 pairs are needed")
    tail = 0.5 + _fraction(level, "level") / 2
    quantiles = scipy_stats.t.ppf([tail, _fraction(power, "power")], n - 1)
    return float(quantiles.sum() * _not_negative(sd, "sd") / math.sqrt(n))


def verdict(interval: Interval, margin: float, equivalence: bool = False) -> str:
    """What an interval of paired differences says, given the smallest difference worth
    having, `margin` above 0.

    "holds": all of it lies above the margin. "opposite": below minus the margin. "some
    gain": above 0. "no gain": below the margin. "not resolved": none of these.
    For a claim that two things are the same (`equivalence`): "holds" inside ± margin,
    "opposite" wholly outside, else "not resolved".
    """
    margin = _margin(margin)
    if equivalence:
        if equivalent(interval, margin):
            return HOLDS
        outside = interval.low > margin or interval.high < -margin
        return OPPOSITE if outside else NOT_RESOLVED
    if interval.low > margin:
        return HOLDS
    if interval.high < -margin:
        return OPPOSITE
    if interval.low > 0:
        return SOME_GAIN
    return NO_GAIN if interval.high < margin else NOT_RESOLVED


def equivalent(interval: Interval, margin: float) -> bool:
    """Whether the interval lies inside ± margin: a difference that matters is excluded."""
    margin = _margin(margin)
    return -margin < interval.low and interval.high < margin


def p_above(values: ArrayLike, margin: float, n_first: int | None = None) -> float:
    """One-sided p value of 'the mean is at most `margin`'; after a second look
    (`n_first` values in the first) with the first look's sd and degrees of freedom."""
    array = _numbers(values, "values")
    n_first = n_first or len(array)
    sd = float(array[:n_first].std(ddof=1))
    if sd == 0:
        return float(array.mean() <= margin)
    t = (float(array.mean()) - margin) * math.sqrt(len(array)) / sd
    return float(scipy_stats.t.sf(t, n_first - 1))


def p_equivalent(values: ArrayLike, margin: float) -> float:
    """p value of 'the mean lies outside ± margin': two one-sided tests (TOST)."""
    from statsmodels.stats.weightstats import ttost_paired

    array, margin = _numbers(values, "values"), _margin(margin)
    if np.ptp(array) == 0:
        return float(not -margin < array[0] < margin)
    return float(ttost_paired(array, np.zeros_like(array), -margin, margin)[0])


def survivors(p_values: ArrayLike, method: str, level: float = 0.05) -> list[bool]:
    """Which of several tests stay at `level`: method 'holm' (no wrong one among them in
    1 - level of cases) or 'fdr_bh' (Benjamini–Hochberg: at most `level` of them wrong)."""
    from statsmodels.stats.multitest import multipletests

    array = _numbers(p_values, "p_values", least=1)
    return [bool(kept) for kept in multipletests(array, level, method)[0]]


def _margin(value: float) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"margin is {value}; it must be above 0: the smallest difference "
                         "worth having")
    return float(value)


def null_passed(interval: Interval, expected: float, margin: float) -> bool:
    """Whether the interval lies inside ``expected`` ± ``margin`` (ends included).

    An interval that merely contains the expected value is no evidence for it: a
    noisy control would always pass. Here noise makes the control fail.
    """
    margin = _not_negative(margin, "margin")
    if not math.isfinite(expected):
        raise ValueError(f"expected is {expected}; it must be a finite number")
    return expected - margin <= interval.low and interval.high <= expected + margin


def _two_columns(x: ArrayLike, y: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = _numbers(x, "x"), _numbers(y, "y")
    if len(x) != len(y):
        raise ValueError(f"x has {len(x)} values and y {len(y)}; they must be paired")
    return x, y


def slope(x: ArrayLike, y: ArrayLike) -> float:
    """Least-squares slope of ``y`` on ``x`` (units of y per unit of x)."""
    x, y = _two_columns(x, y)
    if np.ptp(x) == 0:
        raise ValueError("x is constant, so it has no slope; give different x values")
    return float(scipy_stats.linregress(x, y).slope)


def pearson(x: ArrayLike, y: ArrayLike) -> float:
    """Pearson's correlation of two paired lists that are not constant."""
    x, y = _two_columns(x, y)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        raise ValueError("x or y is constant; a correlation needs values that vary")
    return float(scipy_stats.pearsonr(x, y).statistic)


def spearman(x: ArrayLike, y: ArrayLike) -> float:
    """Spearman's rank correlation (ties get their mean rank)."""
    x, y = _two_columns(x, y)
    return pearson(scipy_stats.rankdata(x), scipy_stats.rankdata(y))
