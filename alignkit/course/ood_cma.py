"""Exercises of the notebook on CMA: strangers that pass, a loss to mend, and what an
interval says about equality."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_size


# Exercise 1, build: strangers that pass -------------------------------------------------
def _bar(known, share, up=False):
    """The score that at least `share` of the known reach, the highest such one."""
    n = len(known)
    needed = torch.ceil(torch.tensor(share, dtype=torch.float64) * n - 1e-9).long().item()
    return known.sort(descending=not up).values[needed - 1]


def _passing(known, strange, share):
    """Share of strangers that pass where `share` of the known do."""
    return (strange >= _bar(known, share)).float().mean()


def _passing_case(generator):
    n, m = 10 * random_size(generator, 2, 5), random_size(generator, 15, 30)
    # Scores on a grid, so that strangers stand at the bar itself.
    known = torch.randint(3, 20, (n,), generator=generator) / 10
    strange = torch.randint(0, 14, (m,), generator=generator) / 10
    share = (0.7, 0.8, 0.9)[random_size(generator, 0, 3)]
    strange[:2] = _bar(known, share)
    return known, strange, share


passing = Exercise(
    name="passing",
    task="the highest bar that a share of the known reaches; the share of strangers that "
         "reach it, too (>=)",
    reference=_passing,
    cases=_passing_case,
    mistakes={
        "ties lost": Mistake(
            lambda known, strange, share: (
                strange > _bar(known, share)).float().mean(),
            "let no stranger pass who stands at the bar. The known picture at the bar "
            "passes, so the stranger does: >=.",
        ),
        "the other end": Mistake(
            lambda known, strange, share: (
                strange >= _bar(known, share, up=True)).float().mean(),
            "set the bar from below: then 1 − share of the known pass. Sort so that the "
            "highest scores come first.",
        ),
        "kept out": Mistake(
            lambda known, strange, share: 1 - _passing(known, strange, share),
            "count the strangers that are kept out. Asked for are those that pass.",
        ),
        "bar of the strangers": Mistake(
            lambda known, strange, share: _passing(strange, known, share),
            "set the bar by the strangers. It is set by the known pictures alone: whoever "
            "sets it has never seen a stranger.",
        ),
        "count": Mistake(
            lambda known, strange, share: _passing(known, strange, share) * len(strange),
            "count the strangers. Divide by their number.",
        ),
    },
)


# Exercise 2, transfer: a colleague's loss -----------------------------------------------
def _logit_case(generator):
    n = random_size(generator, 3, 8)
    logits = 3 * torch.randn(n, n, generator=generator)
    return logits, (0.1, 0.3, 0.6)[random_size(generator, 0, 3)]


def _rows(logits):
    return F.cross_entropy(logits, torch.arange(len(logits)))


def _contrast(logits):
    """InfoNCE of logits, pairs on the diagonal."""
    return (_rows(logits) + _rows(logits.T)) / 2


def _pull(logits):
    return -logits.diagonal().mean()


mended = Exercise(
    name="mended",
    task="(1 − weight) · InfoNCE of both directions + weight · (− mean positive logit)",
    reference=lambda s, weight: (1 - weight) * _contrast(s) + weight * _pull(s),
    cases=_logit_case,
    mistakes={
        "as it was": Mistake(
            lambda s, weight: _rows(s) - weight * s.mean(),
            "hand back the colleague's code. Look at the directions, at the weight of the "
            "contrast, and at who is pulled to whom.",
        ),
        "contrast in full": Mistake(
            lambda s, weight: _contrast(s) + weight * _pull(s),
            "add the pull to the whole of InfoNCE. In CMA the log-sum-exp shrinks: "
            "InfoNCE counts 1 − weight.",
        ),
        "sign": Mistake(
            lambda s, weight: (1 - weight) * _contrast(s) - weight * _pull(s),
            "push pairs apart. The positive logit is to grow: it has a minus.",
        ),
        "all pairs": Mistake(
            lambda s, weight: (1 - weight) * _contrast(s) - weight * s.mean(),
            "pull all pictures to all prompts. Only the diagonal belongs together.",
        ),
        "joint term turned round": Mistake(
            lambda s, weight: _contrast(s) + weight * sum(
                x.logsumexp(1).mean() / 2 for x in (s, s.T)),
            "add the log-sum-exp with a plus. R is minus its mean: the joint likelihood "
            "grows.",
        ),
        "one direction": Mistake(
            lambda s, weight: (1 - weight) * _rows(s) + weight * _pull(s),
            "let pictures look for prompts alone. Prompts look for pictures, too: "
            "columns, and half of each.",
        ),
    },
)


# Exercise 3, judge: the same, different, or open ----------------------------------------
def _graded(same, different):
    return same.float() - (different & ~same).float()


def _alike(low, high, margin):
    """1: the interval lies inside ± margin; −1: outside of it; 0: neither."""
    return _graded((low > -margin) & (high < margin), (low > margin) | (high < -margin))


def _alike_case(generator):
    n, margin = random_size(generator, 12, 20), (0.01, 0.02, 0.05)[
        random_size(generator, 0, 3)]
    middle = 2.5 * margin * torch.randn(n, generator=generator)
    half = margin * (0.05 + 1.2 * torch.rand(n, generator=generator))
    middle[:4] = margin * torch.tensor([0.5, 0.2, 1.5, 3.0])  # every kind is there
    half[:4] = margin * torch.tensor([0.3, 1.4, 0.7, 0.5])
    middle[4:6] = margin * torch.tensor([-0.5, -3.0])
    half[4:6] = margin * torch.tensor([0.4, 0.6])
    return middle - half, middle + half, margin


alike = Exercise(
    name="alike",
    task="1 where the interval lies inside ± margin, −1 where it lies outside of it, "
         "else 0",
    reference=_alike,
    cases=_alike_case,
    mistakes={
        "zero inside": Mistake(
            lambda low, high, margin: _graded((low < 0) & (high > 0), (low > 0) | (high < 0)),
            "ask whether zero lies in the interval. A wide interval holds zero and much "
            "else: that no difference was seen does not say that there is none.",
        ),
        "zero outside": Mistake(
            lambda low, high, margin: _graded((low > -margin) & (high < margin),
                                              (low > 0) | (high < 0)),
            "call different whatever is not zero. A difference counts here from the margin "
            "on; between zero and the margin nothing is settled.",
        ),
        "the mean alone": Mistake(
            lambda low, high, margin: _graded(((low + high) / 2).abs() < margin,
                                              ((low + high) / 2).abs() > margin),
            "look at the middle of the interval. The whole of it must lie on one side.",
        ),
        "upper side alone": Mistake(
            lambda low, high, margin: _graded((low > -margin) & (high < margin),
                                              low > margin),
            "look for gains alone. A loss beyond the margin is a difference, too.",
        ),
    },
)
