"""Exercises of the notebook on FILIP: pointing, the loss of two scores, a lost mask."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: does a word point at its thing? -----------------------------------
def _share(best, mask):
    """Of the places [n], the share where the mask [n, p] is true."""
    return mask.gather(1, best[:, None]).float().mean()


def _points(cosines, own, other):
    """Share of best patches on the own plate minus share on the other one."""
    best = cosines.argmax(1)
    return _share(best, own) - _share(best, other)


def _mean_on(cosines, mask):
    return ((cosines * mask).sum(1) / mask.sum(1)).mean()


def _plates(generator):
    n, p = random_size(generator, 7, 14), random_size(generator, 9, 17)
    label = torch.randint(3, (n, p), generator=generator)
    label[:, 0], label[:, 1] = 1, 2  # neither plate is empty
    cosines = torch.rand(n, p, generator=generator) * 2 - 1
    return cosines + 0.3 * (label == 1), label == 1, label == 2


points = Exercise(
    name="points",
    task="share of nouns whose best patch is on their own plate, minus on the other's",
    reference=_points,
    cases=_plates,
    mistakes={
        "own alone": Mistake(
            lambda cosines, own, other: _share(cosines.argmax(1), own),
            "leave out the other plate. A method that finds plates, and knows no words, "
            "would then score well: subtract its share.",
        ),
        "counted": Mistake(
            lambda cosines, own, other: len(cosines) * _points(cosines, own, other),
            "count the nouns. A share is the count divided by their number.",
        ),
        "mean cosine": Mistake(
            lambda cosines, own, other: _mean_on(cosines, own) - _mean_on(cosines, other),
            "compare mean cosines on the two plates. The noun points at one patch, its "
            "best: ask where that one lies.",
        ),
        "the farthest patch": Mistake(
            lambda cosines, own, other: _points(-cosines, own, other),
            "take the patch with the smallest cosine. The best one has the largest.",
        ),
        "turned round": Mistake(
            lambda cosines, own, other: _points(cosines, other, own),
            "subtract the own plate from the other one. Pointing right is positive.",
        ),
        "every patch asks": Mistake(
            lambda cosines, own, other: (
                _share(cosines.argmax(1), own | other)),
            "count a patch on either plate as right. That is finding, not pointing.",
        ),
    },
)


# Exercise 2, transfer: one score for both ways ----------------------------------------
def _both_ways(s_image, s_text, scale):
    """Rows of the first, columns of the second, halved."""
    right = torch.arange(len(s_image))
    return (F.cross_entropy(scale * s_image, right)
            + F.cross_entropy(scale * s_text.T, right)) / 2


def _score_case(generator):
    n = random_size(generator, 3, 8)
    s_image, s_text = torch.rand(2, n, n, generator=generator) * 2 - 1
    return s_image, s_text, (2.0, 5.0, 14.0)[random_size(generator, 0, 3)]


both_ways = Exercise(
    name="both_ways",
    task="half the sum of two cross entropies, each from the score of those who ask",
    reference=_both_ways,
    cases=_score_case,
    mistakes={
        "one score for both": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_image, s_image, scale),
            "use s_image for both directions. That trains one of the two scores and "
            "leaves the other to itself, without any error message.",
        ),
        "rows of both": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_image, s_text.T, scale),
            "take the rows of s_text. A text looks for its picture among all "
            "pictures: these stand in its column.",
        ),
        "the scores exchanged": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_text, s_image, scale),
            "exchange the two scores. Pictures rank texts by s_image, texts rank "
            "pictures by s_text.",
        ),
        "divided by the scale": Mistake(
            lambda s_image, s_text, scale: _both_ways(s_image, s_text, 1 / scale),
            "divide by the scale. It is 1 / temperature: multiply.",
        ),
        "not halved": Mistake(
            lambda s_image, s_text, scale: 2 * _both_ways(s_image, s_text, scale),
            "add the two directions without the factor one half.",
        ),
    },
)


# Exercise 3, judge: which runs are broken? --------------------------------------------
def _broken(usual, longer, tolerance):
    """[m, n, n] twice -> [m], 1 where some score changes by more than the tolerance."""
    return ((longer - usual).abs().amax((1, 2)) > tolerance).float()


def _runs(generator):
    """Sound models, and models of which one score rises or falls, a pair's own or a
    stranger's, or all change."""
    m, n = random_size(generator, 8, 14), random_size(generator, 4, 8)
    usual = torch.rand(m, n, n, generator=generator) * 2 - 1
    longer = usual + 1e-5 * torch.rand(m, n, n, generator=generator)
    for model, kind in enumerate(torch.randint(5, (m,), generator=generator).tolist()):
        i, j = random_size(generator, 0, n), random_size(generator, 1, n)
        if kind == 3:
            longer[model] -= 0.05
        elif kind == 4:
            longer[model, i, i] -= 0.05
        elif kind:
            longer[model, i, (i + j) % n] += 0.05 if kind == 1 else -0.05
    return usual, longer, 0.01


broken = Exercise(
    name="broken",
    task="for each model 1 if any score changes by more than the tolerance, else 0",
    reference=_broken,
    cases=_runs,
    mistakes={
        "turned round": Mistake(
            lambda usual, longer, tolerance: 1 - _broken(usual, longer, tolerance),
            "give 1 to the sound models. 1 is for those that are broken.",
        ),
        "rises only": Mistake(
            lambda usual, longer, tolerance: (
                (longer - usual).amax((1, 2)) > tolerance).float(),
            "see only scores that rise. Padding may lower a mean as well: take the "
            "absolute change.",
        ),
        "mean change": Mistake(
            lambda usual, longer, tolerance: (
                (longer - usual).abs().mean((1, 2)) > tolerance).float(),
            "average the changes. One caption that is shorter than all others may be the "
            "only one that shows it: take the largest change.",
        ),
        "own pairs only": Mistake(
            lambda usual, longer, tolerance: (
                (longer - usual).diagonal(dim1=1, dim2=2).abs().amax(1)
                > tolerance).float(),
            "look at the diagonal only. The scores of strangers count in every rank.",
        ),
    },
)
