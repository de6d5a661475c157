"""Exercises of the notebook on measuring."""

import torch
from scipy import stats

from .exercises import Exercise, Mistake, random_size


# Exercise 1: recall@k, several right answers, ties against the model ------------------
def _found(scores, relevant, k, ties=True):
    """Which relevant entries stand in the first k places of their row, bool [n, m]."""
    others, own = scores[:, None, :], scores[:, :, None]
    place = (others >= own).sum(2) if ties else (others > own).sum(2) + 1
    return relevant & (place <= k)


def _recall_at_k(scores: torch.Tensor, relevant: torch.Tensor, k: int) -> torch.Tensor:
    """[n, m], bool [n, m] -> mean over rows of the share of relevant entries found."""
    found = _found(scores, relevant, k).sum(1)
    return (found / relevant.sum(1)).mean()


def _recall_cases(generator):
    """Wrong answers tie with right ones; right answers do not tie among themselves."""
    n, m = random_size(generator, 4, 8), random_size(generator, 8, 12)
    scores = torch.randint(0, m, (n, m), generator=generator).float()
    relevant = torch.zeros(n, m, dtype=torch.bool)
    for row in range(n):
        order = torch.randperm(m, generator=generator)
        several = order[: random_size(generator, 1, 5)]
        relevant[row, several] = True
        values = torch.randperm(m, generator=generator)[: len(several)]
        scores[row, several] = values.float()
    return scores, relevant, random_size(generator, 2, 6)


recall_at_k = Exercise(
    name="recall_at_k",
    task="share of a row's right answers among its first k, mean over rows, ties lost",
    reference=_recall_at_k,
    cases=_recall_cases,
    mistakes={
        "hit": Mistake(
            lambda scores, relevant, k: (
                _found(scores, relevant, k).any(1).float().mean()
            ),
            "count a row as 1 when ANY right answer is among its first k. That is "
            "hit@k; recall@k is the SHARE of its right answers.",
        ),
        "precision": Mistake(
            lambda scores, relevant, k: (
                _found(scores, relevant, k).sum(1) / k
            ).mean(),
            "divide by k, which gives precision@k. Recall divides by the number of "
            "right answers of the row.",
        ),
        "ties won": Mistake(
            lambda scores, relevant, k: (
                _found(scores, relevant, k, ties=False).sum(1) / relevant.sum(1)
            ).mean(),
            "count only entries that score strictly more. A collapsed model, all of "
            "whose scores are equal, would then find everything: use >=.",
        ),
        "topk": Mistake(
            lambda scores, relevant, k: (
                relevant.gather(1, scores.topk(k).indices).sum(1) / relevant.sum(1)
            ).mean(),
            "take topk's k entries: of equal scores it takes whichever stands somewhere "
            "first. Count for each entry how many score at least as much.",
        ),
        "strictly first": Mistake(
            lambda scores, relevant, k: (
                (relevant & ((scores[:, None, :] >= scores[:, :, None]).sum(2) < k)).sum(1)
                / relevant.sum(1)
            ).mean(),
            "ask for a place below k. An entry counts itself, so the best place is 1 and "
            "the k-th still counts: <= k.",
        ),
        "pooled": Mistake(
            lambda scores, relevant, k: (
                _found(scores, relevant, k).sum() / relevant.sum()
            ),
            "divide all that was found by all right answers: rows with many of them "
            "weigh more. Take the share in each row first, then the mean.",
        ),
    },
)


# Exercise 2: the interval after Stein's second look -----------------------------------
def _around(mean, half):
    return torch.stack([mean - half, mean + half])


def _second(first, more, t, sd=lambda first, both: first.std(), root=len):
    both = torch.cat([first, more])
    return _around(both.mean(), t * sd(first, both) / root(both) ** 0.5)


def _look_cases(generator):
    """A first look whose spread is not that of all."""
    m = random_size(generator, 4, 14)
    first = 0.02 + 0.05 * torch.randn(8, generator=generator)
    more = 0.03 + 0.02 * torch.randn(m, generator=generator)
    return first, more, float(stats.t.ppf(0.9875, 7))


second_interval = Exercise(
    name="second_interval",
    task="low and high end, [2]: mean of all N differences ± t · sd of the first / √N",
    reference=_second,
    cases=_look_cases,
    mistakes={
        "sd of all": Mistake(
            lambda first, more, t: _second(first, more, t, lambda _, both: both.std()),
            "take the sd of all differences. N was chosen by the first look's sd, so only "
            "that one, with its t, keeps the interval exact.",
        ),
        "√ of the first": Mistake(
            lambda first, more, t: _second(first, more, t, root=lambda both: len(first)),
            "divide by the root of the first look's size. The mean is of all N "
            "differences, and is known better by √N.",
        ),
        "forget √": Mistake(
            lambda first, more, t: _second(first, more, t, root=lambda both: 1),
            "forget √N: that is how far single differences spread, not their mean.",
        ),
        "mean of the first": Mistake(
            lambda first, more, t: _around(
                first.mean(), t * first.std() / (len(first) + len(more)) ** 0.5),
            "keep the first look's mean: the further seeds were run for nothing.",
        ),
        "the new ones alone": Mistake(
            lambda first, more, t: _around(more.mean(), t * first.std() / len(more) ** 0.5),
            "use the new differences alone. Stein's interval is around the mean of all.",
        ),
        "divided by n": Mistake(
            lambda first, more, t: _second(
                first, more, t, lambda first, _: first.std(correction=0)),
            "divide the squares by n. The mean was estimated from the same numbers, so "
            "the sample sd divides by n - 1 (torch's default).",
        ),
    },
)


# Exercise 3: which word is true -------------------------------------------------------
def _ends(d, t):
    half = t * d.std() / len(d) ** 0.5
    return d.mean() - half, d.mean() + half


def _word(low, high, margin) -> torch.Tensor:
    tests = ((0, low > margin), (3, high < -margin), (1, low > 0), (2, high < margin))
    return torch.tensor(next((float(word) for word, true in tests if true), 4.0))


def _judged(d: torch.Tensor, margin: float, t: float) -> torch.Tensor:
    return _word(*_ends(d, t), margin)


def _verdict_cases(generator):
    """Means and spreads that give every word."""
    kind = random_size(generator, 0, 6)
    mean, sd = ((0.10, 0.01), (0.03, 0.01), (0.0, 0.02), (-0.10, 0.01), (0.05, 0.2),
                (-0.04, 0.02))[kind]
    n = random_size(generator, 6, 12)
    d = mean + sd * torch.randn(n, generator=generator)
    return d, 0.05, float(stats.t.ppf(0.975, n - 1))


judged = Exercise(
    name="judged",
    task="0 holds, 1 some gain, 2 no gain, 3 opposite, 4 not resolved",
    trials=96,  # every word comes up
    reference=_judged,
    cases=_verdict_cases,
    mistakes={
        "by the mean": Mistake(
            lambda d, margin, t: _word(d.mean(), d.mean(), margin),
            "judge by the mean. The whole interval must lie where the word says.",
        ),
        "margin of 0": Mistake(
            lambda d, margin, t: _word(*_ends(d, t), 0.0),
            "ask for a difference above 0 only. Holds and opposite are beyond the margin.",
        ),
        "opposite is no gain": Mistake(
            lambda d, margin, t: torch.where(
                _judged(d, margin, t) == 3, torch.tensor(2.0), _judged(d, margin, t)),
            "ask for 'no gain' before 'opposite': an interval below minus the margin is "
            "below the margin too, and the stronger word is true.",
        ),
        "not resolved is no gain": Mistake(
            lambda d, margin, t: torch.where(
                _judged(d, margin, t) == 4, torch.tensor(2.0), _judged(d, margin, t)),
            "call what is open 'no gain'. An interval that reaches above the margin does "
            "not exclude a gain: it is not resolved.",
        ),
        "√n forgotten": Mistake(
            lambda d, margin, t: _word(d.mean() - t * d.std(), d.mean() + t * d.std(), margin),
            "forget √n: the interval is of the mean, not of one difference.",
        ),
    },
)
