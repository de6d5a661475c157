"""Exercises of the notebook that puts the objectives side by side."""

import torch

from .exercises import Exercise, Mistake, random_size


# Exercise 1: alignment from cosines ---------------------------------------------------
def _squared_distance(cosines: torch.Tensor) -> torch.Tensor:
    """[n] cosines of true pairs of unit rows -> mean |x - y|²."""
    return (2 - 2 * cosines).mean()


squared_distance = Exercise(
    name="squared_distance",
    task="mean squared distance of true pairs of unit rows, from their cosines [n]",
    reference=_squared_distance,
    cases=lambda generator: (
        2 * torch.rand(random_size(generator, 3, 9), generator=generator) - 1,
    ),
    mistakes={
        "once": Mistake(
            lambda cosines: (1 - cosines).mean(),
            "give 1 - cosine. |x - y|² = |x|² + |y|² - 2 x·y, and both lengths are 1: "
            "there are two of them, and the product counts twice.",
        ),
        "root": Mistake(
            lambda cosines: (2 - 2 * cosines).sqrt().mean(),
            "take the root: that is the distance. Alignment is its square.",
        ),
        "sum": Mistake(
            lambda cosines: (2 - 2 * cosines).sum(),
            "take the sum over the pairs: the figure would grow with their number. "
            "Take the mean.",
        ),
    },
)


# Exercise 2: which arms does no other beat? -------------------------------------------
def _beats(hits, seconds, strict_in_one=True):
    """[n, n]: arm j (columns) is as good as arm i in both, and better in one."""
    as_good = (hits >= hits[:, None]) & (seconds <= seconds[:, None])
    better = (hits > hits[:, None]) | (seconds < seconds[:, None])
    return as_good & better if strict_in_one else as_good


def _unbeaten(hits: torch.Tensor, seconds: torch.Tensor) -> torch.Tensor:
    """[n], [n] -> bool [n]"""
    return ~_beats(hits, seconds).any(1)


def _arms(generator):
    """Arms with ties; one has a twin."""
    n = random_size(generator, 4, 9)
    hits = torch.randint(2, 7, (n,), generator=generator) / 10
    seconds = torch.randint(1, 6, (n,), generator=generator).float()
    # An arm that finds as much as another and costs less, and the twin of the best.
    hits = torch.cat([hits, hits[:1], hits.max()[None], hits.max()[None]])
    seconds = torch.cat([seconds, seconds[:1] - 0.5, torch.full((2,), 3.0)])
    return hits, seconds


unbeaten = Exercise(
    name="unbeaten",
    task="bool [n]: no other arm is as good in hits AND seconds and better in one",
    reference=_unbeaten,
    cases=_arms,
    mistakes={
        "twins": Mistake(
            lambda hits, seconds: ~(
                _beats(hits, seconds, strict_in_one=False)
                & ~torch.eye(len(hits), dtype=torch.bool)
            ).any(1),
            "let two equal arms beat each other, so that both go. To be beaten, an arm "
            "must be worse in at least one of the two.",
        ),
        "both": Mistake(
            lambda hits, seconds: ~(
                (hits > hits[:, None]) & (seconds < seconds[:, None])
            ).any(1),
            "ask for a rival that is better in BOTH. One that finds as much in less "
            "time beats it, too.",
        ),
        "one best": Mistake(
            lambda hits, seconds: hits == hits.max(),
            "look at the hits alone. A cheaper arm that finds less may still be the "
            "right one for somebody: compare both figures.",
        ),
    },
)


# Exercise 3: many verdicts, some wrong by chance --------------------------------------
def _some_wrong(chance: torch.Tensor, n: int) -> torch.Tensor:
    """[m] chances that one verdict is wrong, n verdicts -> that at least one is."""
    return 1 - (1 - chance) ** n


some_wrong = Exercise(
    name="some_wrong",
    task="chance that at least one of n independent verdicts is wrong",
    reference=_some_wrong,
    cases=lambda generator: (
        0.05 + 0.3 * torch.rand(4, generator=generator),
        random_size(generator, 2, 12),
    ),
    mistakes={
        "sum": Mistake(
            lambda chance, n: chance * n,
            "multiply the chance by n. That bounds the answer from above, and passes 1 "
            "when n is large: several may be wrong at once.",
        ),
        "all": Mistake(
            lambda chance, n: chance**n,
            "give the chance that ALL are wrong.",
        ),
        "none": Mistake(
            lambda chance, n: (1 - chance) ** n,
            "give the chance that NONE is wrong. At least one is the rest of it.",
        ),
    },
)
