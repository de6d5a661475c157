"""Exercises of the notebook that puts the objectives side by side."""

import torch

from .exercises import Exercise, Mistake, random_size


# Exercise 1, build: which arms does no other beat? ------------------------------------
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


# Exercise 2, transfer: chosen on validation, reported on test -------------------------
def _reported(validation: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """[rates, tuning seeds], [rates, seeds] -> mean test score of the chosen rate."""
    return test[validation.mean(1).argmax()].mean()


def _tried(generator):
    """Rates that are nearly alike, so that luck decides what looks best."""
    rates = random_size(generator, 4, 8)
    level = 0.3 + 0.02 * torch.rand(rates, 1, generator=generator)
    return tuple(level + 0.05 * torch.randn(rates, seeds, generator=generator)
                 for seeds in (3, 8))


reported = Exercise(
    name="reported",
    task="mean over test seeds of the one rate with the best mean over tuning seeds",
    reference=_reported,
    cases=_tried,
    mistakes={
        "on test": Mistake(
            lambda validation, test: test.mean(1).max(),
            "choose the rate on the test seeds, as the colleague does: the more rates you "
            "try, the better you look. Choose by `validation`.",
        ),
        "validation's score": Mistake(
            lambda validation, test: validation.mean(1).max(),
            "report the score by which the rate was chosen. The best of several is partly "
            "luck; report the same rate's mean on `test`.",
        ),
        "one seed": Mistake(
            lambda validation, test: test[validation[:, 0].argmax()].mean(),
            "choose by the first tuning seed alone. One seed is one draw: take the mean "
            "over all of them.",
        ),
        "luckiest": Mistake(
            lambda validation, test: test[validation.max(1).values.argmax()].mean(),
            "choose the rate that had the best single run. Take the mean over the tuning "
            "seeds first.",
        ),
        "best seed": Mistake(
            lambda validation, test: test[validation.mean(1).argmax()].max(),
            "report the best test seed. Report the mean over all of them.",
        ),
    },
)


# Exercise 3, judge: which lines stay when all are looked at together ------------------
def _stays(p: torch.Tensor, level: float, bar=lambda level, left: level / left,
           stop: bool = True) -> torch.Tensor:
    """[n] -> bool [n], Holm's rule; left: n, n - 1, … 1."""
    order = p.argsort()
    good = p[order] <= bar(level, torch.arange(len(p), 0, -1))
    if stop:
        good = good.long().cumprod(0).bool()
    return torch.zeros(len(p), dtype=torch.bool).scatter(0, order, good)


def _lines(generator):
    """p around the bars that the rule sets them, shuffled."""
    n = random_size(generator, 6, 11)
    near = 0.6 + 0.7 * torch.rand(n, generator=generator)
    p = near * 0.05 / torch.arange(n, 0, -1)
    return p[torch.randperm(n, generator=generator)], 0.05


stays = Exercise(
    name="stays",
    task="bool [n], in the order given: is the line kept by Holm's rule?",
    reference=_stays,
    cases=_lines,
    trials=24,
    mistakes={
        "one at a time": Mistake(
            lambda p, level: p <= level,
            "judge each line by itself. Of many lines one then passes by luck: the "
            "smallest p must be below level / n.",
        ),
        "Bonferroni": Mistake(
            lambda p, level: p <= level / len(p),
            "ask level / n of every line. That is safe, but Holm's rule asks less of the "
            "second: level / (n - 1), and so on.",
        ),
        "no stop": Mistake(
            lambda p, level: _stays(p, level, stop=False),
            "go on after a line that did not stay. All larger ones go with it.",
        ),
        "off by one": Mistake(
            lambda p, level: _stays(p, level, lambda level, left: level / (left + 1)),
            "count k from 1. The smallest p is the 0-th: level / n.",
        ),
        "growing": Mistake(
            lambda p, level: _stays(p, level, lambda level, left: (
                level * (len(left) + 1 - left) / len(left))),
            "ask level · (k + 1) / n, which bounds the share of wrong lines among those "
            "that stay (Benjamini and Hochberg). Holm's bound is level / (n - k).",
        ),
        "in order of p": Mistake(
            lambda p, level: _stays(p.sort().values, level),
            "answer in the order of p. Give each line its own answer, in the order given.",
        ),
    },
)
