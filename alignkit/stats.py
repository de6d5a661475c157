"""Intervals, verdicts and the small statistics that a claim reports.

Every function takes plain numbers (a list, an array or a CPU tensor), computes in
float64 and returns Python floats. Nothing here knows about models or data.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as scipy_stats

HOLDS, OPPOSITE, NOT_RESOLVED = "holds", "opposite", "not resolved at this scale"


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


def _interval(values: ArrayLike, level: float, new_value: bool) -> Interval:
    array = _numbers(values, "values")
    n, mean, sd = len(array), float(array.mean()), float(array.std(ddof=1))
    quantile = scipy_stats.t.ppf(0.5 + _fraction(level, "level") / 2, n - 1)
    half = float(quantile * sd * math.sqrt(new_value + 1 / n))
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


def verdict(interval: Interval, margin: float) -> str:
    """What an interval of paired differences says, given a margin of 0 or more.

    "holds" when the whole interval lies above the margin, "opposite" when it lies
    below minus the margin, else "not resolved at this scale".
    """
    margin = _not_negative(margin, "margin")
    if interval.low > margin:
        return HOLDS
    return OPPOSITE if interval.high < -margin else NOT_RESOLVED


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
