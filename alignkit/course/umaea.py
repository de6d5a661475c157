"""Exercises of the notebook on UMAEA: entity alignment with missing pictures: one that builds, one that transfers, one that
judges. HERE yours; each knows at least two mistakes that students really make.
"""

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


def _pairs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    n, d = random_size(generator, 5, 9), random_size(generator, 3, 6)
    return (normalize(random_rows(generator, n, d)),
            normalize(random_rows(generator, n, d)))


# Exercise 1, build: the targets -----------------------------------------------------
def _targets(n: int, smoothing: float) -> torch.Tensor:
    """[n, n]: 1 − ε on the diagonal, ε shared out over the whole row."""
    return (1 - smoothing) * torch.eye(n) + smoothing / n


def _only_others(n, smoothing):
    off = 1 - torch.eye(n)
    return (1 - smoothing) * torch.eye(n) + smoothing * off / (n - 1)


def _not_shared(n, smoothing):
    return (1 - smoothing) * torch.eye(n) + smoothing


targets = Exercise(
    name="targets",
    task="the table of targets t [n, n] = (1 − ε) I + ε / n",
    reference=_targets,
    cases=lambda generator: (random_size(generator, 3, 9),
                             (0.1, 0.2, 0.5)[random_size(generator, 0, 3)]),
    mistakes={
        "others only": Mistake(
            _only_others,
            "share ε out among the others alone. The pair itself has its part of it: "
            "ε / n everywhere.",
        ),
        "not shared": Mistake(
            _not_shared,
            "give every row ε instead of ε / n: the rows must sum to one.",
        ),
    },
)


# Exercise 2, transfer: find the bug ---------------------------------------------------
def _loss(z: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """InfoNCE at temperature 0.1, the mean of both directions."""
    s = 10 * z @ w.T
    return -(s.log_softmax(1) + s.log_softmax(0)).diagonal().mean() / 2


def _one_way(z, w):
    return -(10 * z @ w.T).log_softmax(1).diagonal().mean()


def _not_halved(z, w):
    return 2 * _loss(z, w)


mended = Exercise(
    name="mended",
    task="InfoNCE of both directions, scores times ten, the mistake taken out",
    reference=_loss,
    cases=_pairs,
    mistakes={
        "one direction": Mistake(
            _one_way,
            "ask in one direction only. Texts ask too: log_softmax over dim=0 as well.",
        ),
        "not halved": Mistake(
            _not_halved,
            "add both directions. InfoNCE is their mean: divide by two.",
        ),
    },
)


# Exercise 3, judge: what may be said -----------------------------------------------
def _graded(values: torch.Tensor, margin: float) -> torch.Tensor:
    return (values > margin).float() + (values > 0).float()


def _verdicts(low: torch.Tensor, high: torch.Tensor, margin: float) -> torch.Tensor:
    """Ends of intervals [n] -> 2 holds, 1 some gain, 0 anything else."""
    return _graded(low, margin)


def _intervals(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    n = random_size(generator, 6, 12)
    low = 0.12 * torch.rand(n, generator=generator) - 0.06
    return low, low + 0.05, 0.02


judged = Exercise(
    name="judged",
    task="for each interval 2 for 'holds', 1 for 'some gain', 0 for all else",
    reference=_verdicts,
    cases=_intervals,
    mistakes={
        "by the middle": Mistake(
            lambda low, high, margin: _graded((low + high) / 2, margin),
            "judge by the middle of the interval. All of it must lie above the margin.",
        ),
        "by the upper end": Mistake(
            lambda low, high, margin: _graded(high, margin),
            "look at the upper end: that the effect may be large is no evidence for it.",
        ),
    },
)
