"""Exercises of the notebook on contrastive losses."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


def _cosines(generator) -> torch.Tensor:
    """[n, n], drawings against names; no two rows are alike."""
    n, d = random_size(generator, 4, 8), random_size(generator, 3, 7)
    a, b = (F.normalize(random_rows(generator, n, d)) for _ in range(2))
    return a @ b.T


# Exercise 1: what each wrong answer weighs -------------------------------------------
def _without_pairs(logits: torch.Tensor) -> torch.Tensor:
    own = torch.eye(len(logits), dtype=torch.bool)
    return logits.masked_fill(own, -torch.inf)


def _negative_weights(cosines, temperature):
    """Softmax over the wrong answers of each row, 0 on the diagonal, [n, n]."""
    return _without_pairs(cosines / temperature).softmax(1)


def _pair_takes_part(cosines, temperature):
    weights = (cosines / temperature).softmax(1)
    return weights.clone().fill_diagonal_(0)


def _zero_logit(cosines, temperature):
    logits = (cosines / temperature).clone().fill_diagonal_(0)
    return logits.softmax(1).clone().fill_diagonal_(0)


negative_weights = Exercise(
    name="negative_weights",
    task="for each row the softmax over its wrong answers alone, 0 on the diagonal",
    reference=_negative_weights,
    cases=lambda generator: (
        _cosines(generator),
        (0.05, 0.2, 0.5)[random_size(generator, 0, 3)],
    ),
    mistakes={
        "temperature multiplied": Mistake(
            lambda cosines, temperature: _negative_weights(cosines, 1 / temperature),
            "multiply by the temperature. Cosines are DIVIDED by it (or multiplied by "
            "the scale, which is one over the temperature).",
        ),
        "right answer takes part": Mistake(
            _pair_takes_part,
            "let the right answer take part in the softmax: the rows do not sum to 1. "
            "Set the diagonal to −∞ before the softmax, not to 0 after it.",
        ),
        "diagonal left in": Mistake(
            lambda cosines, temperature: (cosines / temperature).softmax(1),
            "leave the right answer in. Each row shares its weight among the wrong "
            "answers alone: set the diagonal to −∞ before the softmax.",
        ),
        "zero is not nothing": Mistake(
            _zero_logit,
            "set the diagonal's logit to 0. exp(0) = 1 still counts in the sum: "
            "what must not take part gets −∞.",
        ),
        "columns": Mistake(
            lambda cosines, temperature: _without_pairs(cosines / temperature).softmax(
                0
            ),
            "take the softmax over columns (dim=0). There names look for drawings; a "
            "drawing's wrong answers stand in its row, dim=1.",
        ),
    },
)


# Exercise 2: several right answers ---------------------------------------------------
def _several_right(cosines, item, temperature):
    """Mean over rows of the mean over their right answers of −log softmax."""
    right = (item[:, None] == item).float()
    log_p = (cosines / temperature).log_softmax(1)
    return -(right * log_p).sum(1).div(right.sum(1)).mean()


def _diagonal_only(cosines, item, temperature):
    return -(cosines / temperature).log_softmax(1).diagonal().mean()


def _sum_of_right(cosines, item, temperature):
    right = (item[:, None] == item).float()
    return -(right * (cosines / temperature).log_softmax(1)).sum(1).mean()


def _log_of_sum(cosines, item, temperature):
    right = (item[:, None] == item).float()
    p = (cosines / temperature).softmax(1)
    return -(right * p).sum(1).log().mean()


def _item_case(generator):
    cosines = _cosines(generator)
    n = len(cosines)
    item = torch.randint(0, n - 1, (n,), generator=generator)
    item[1] = item[0]  # at least one pair of rows that are right for each other
    return cosines, item, (0.1, 0.2, 0.5)[random_size(generator, 0, 3)]


several_right = Exercise(
    name="several_right",
    task="row by row the mean of −log softmax over all rows of its item, then the mean",
    reference=_several_right,
    cases=_item_case,
    mistakes={
        "temperature multiplied": Mistake(
            lambda cosines, item, temperature: _several_right(
                cosines, item, 1 / temperature
            ),
            "multiply by the temperature. Cosines are DIVIDED by it.",
        ),
        "diagonal only": Mistake(
            _diagonal_only,
            "count the diagonal alone as right. Rows with the same item are right "
            "too: item[:, None] == item.",
        ),
        "sum over right answers": Mistake(
            _sum_of_right,
            "sum over the right answers. A row with three of them then counts three "
            "times: divide each row's sum by their number.",
        ),
        "log of the sum": Mistake(
            _log_of_sum,
            "add the probabilities of the right answers and take the log after that. "
            "One right answer found would then be enough; with the log first, all of "
            "them are pulled.",
        ),
    },
)


# Exercise 3, judge: a loss that does not move ------------------------------------------
def _lowest(n: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """InfoNCE of a regular simplex, [m]."""
    return (1 + (n - 1) * (-scale * n / (n - 1)).exp()).log()


def _stuck(first, last, n, scale):
    """1 where the loss came down by less than a tenth of the way to its lowest value."""
    return (first - last < (first - _lowest(n, scale)) / 10).float()


def _runs(generator):
    """Runs that start near ln n and went 0 to 20 % of their way, at scales at which the
    lowest value is far from 0, or near it."""
    m = random_size(generator, 8, 14)
    n = 2.0 ** torch.randint(4, 9, (m,), generator=generator)
    scale = torch.tensor([0.2, 1.0, 3.0, 20.0])[
        torch.randint(4, (m,), generator=generator)]
    first = n.log() + 0.3 * torch.rand(m, generator=generator)
    share = torch.tensor([0.02, 0.06, 0.14, 0.2, 0.9])[
        torch.randint(5, (m,), generator=generator)]
    return first, first - share * (first - _lowest(n, scale)), n, scale


stuck = Exercise(
    name="stuck",
    task="1 where the loss came down by less than a tenth of the way to L_min, else 0",
    reference=_stuck,
    cases=_runs,
    mistakes={
        "down to zero": Mistake(
            lambda first, last, n, scale: (first - last < first / 10).float(),
            "measure the way down to 0. At a small scale the loss cannot get there: a run "
            "that learns well would be called stuck.",
        ),
        "near ln n": Mistake(
            lambda first, last, n, scale: (last > 0.9 * n.log()).float(),
            "call a run stuck because its loss ends near ln n. At temperature 5 a perfect "
            "model ends there too: measure the way that it could go.",
        ),
        "turned round": Mistake(
            lambda first, last, n, scale: 1 - _stuck(first, last, n, scale),
            "give 1 to the runs that learn. 1 is for the stuck ones.",
        ),
        "temperature for scale": Mistake(
            lambda first, last, n, scale: _stuck(first, last, n, 1 / scale),
            "take the scale for a temperature. It multiplies the cosines: s, not 1/s.",
        ),
    },
)
