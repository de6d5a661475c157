"""How a score saturates with two amounts: a power law, and its plainest rival."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares

# limit, the two shares, the two exponents: each lies between these.
LOW, HIGH = (0.0, 0.0, 0.0, 0.05, 0.05), (1.5, 5.0, 5.0, 5.0, 5.0)
STARTS = (0.5, 1.0, 2.0)  # of each exponent: the error is not convex in them


@dataclass(frozen=True)
class PowerLaw:
    """score(a, b) = limit − (first · a^−first_power + second · b^−second_power).

    r2: part of the variance of the fitted scores that it explains (1 if they are all
    equal and it fits them).
    """

    limit: float
    first: float
    second: float
    first_power: float
    second_power: float
    r2: float

    def __call__(self, a, b) -> np.ndarray:
        """The score at amounts a and b (numbers or arrays)."""
        return _law((self.limit, self.first, self.second, self.first_power,
                     self.second_power), *_floats(a, b))


def fit_power_law(a: Sequence[float], b: Sequence[float], score: Sequence[float],
                  ) -> PowerLaw:
    """Least squares within bounds, from nine starts; the best of them.

    Zhu et al. 2026, Dynamic Reflections (arXiv 2511.02767), for alignment against frames
    a and captions b. Scores lie between 0 and 1.

    Raises ValueError for lengths that differ, amounts below 1, values that are not
    finite, or fewer than three different amounts of either: five numbers are fitted.
    """
    a, b, score = _checked(a, b, score)
    for name, amounts in (("a", a), ("b", b)):
        if len(set(amounts)) < 3:
            raise ValueError(f"{name} has {len(set(amounts))} different amounts, at least "
                             "3 are needed to tell a power")
    found = [least_squares(lambda p: _law(p, a, b) - score,
                           (min(score.max() + 0.05, HIGH[0]), 0.1, 0.1, *powers),
                           bounds=(LOW, HIGH))
             for powers in product(STARTS, STARTS)]
    best = min(found, key=lambda fit: fit.cost)
    spread = float(((score - score.mean()) ** 2).sum())
    return PowerLaw(*map(float, best.x), r2=float(1 - 2 * best.cost / spread) if spread else 1.0)


def fit_log_linear(a: Sequence[float], b: Sequence[float], score: Sequence[float]):
    """The rival that never saturates: score = c + d · log a + e · log b, least squares.

    Gives a function of (a, b). Raises ValueError as `fit_power_law` does, but for the
    number of amounts.
    """
    a, b, score = _checked(a, b, score)
    c, d, e = np.linalg.lstsq(np.stack([np.ones_like(a), np.log(a), np.log(b)], 1), score,
                              rcond=None)[0]

    def line(a, b) -> np.ndarray:
        a, b = _floats(a, b)
        return c + d * np.log(a) + e * np.log(b)

    return line


def _law(p: Sequence[float], a: np.ndarray, b: np.ndarray) -> np.ndarray:
    limit, first, second, first_power, second_power = p
    return limit - (first * a**-first_power + second * b**-second_power)


def _floats(*values) -> list[np.ndarray]:
    return [np.asarray(value, float) for value in values]


def _checked(a, b, score) -> list[np.ndarray]:
    a, b, score = _floats(a, b, score)
    if not a.shape == b.shape == score.shape or a.ndim != 1 or not len(a):
        raise ValueError(f"a, b and score need one length, got shapes {a.shape}, {b.shape} "
                         f"and {score.shape}")
    if not np.isfinite(np.stack([a, b, score])).all() or min(a.min(), b.min()) < 1:
        raise ValueError("a and b must be at least 1, and they and score finite")
    return [a, b, score]
