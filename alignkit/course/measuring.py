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
        "pooled": Mistake(
            lambda scores, relevant, k: (
                _found(scores, relevant, k).sum() / relevant.sum()
            ),
            "divide all that was found by all right answers: rows with many of them "
            "weigh more. Take the share in each row first, then the mean.",
        ),
    },
)


# Exercise 2: the interval of paired differences ---------------------------------------
def _around(mean, half):
    return torch.stack([mean - half, mean + half])


def _paired_interval(
    baseline: torch.Tensor, method: torch.Tensor, t: float
) -> torch.Tensor:
    """[n], [n], quantile -> [low, high]"""
    difference = method - baseline
    return _around(difference.mean(), t * difference.std() / len(difference) ** 0.5)


def _unpaired(baseline, method, t):
    spread = (baseline.var() + method.var()).sqrt()
    return _around((method - baseline).mean(), t * spread / len(method) ** 0.5)


def _of_one_seed(baseline, method, t):
    difference = method - baseline
    return _around(difference.mean(), t * difference.std())


def _population(baseline, method, t):
    difference = method - baseline
    spread = difference.std(correction=0)
    return _around(difference.mean(), t * spread / len(difference) ** 0.5)


def _interval_cases(generator):
    """Seeds that are lucky for both arms."""
    n = random_size(generator, 5, 12)
    luck = 0.3 * torch.randn(n, generator=generator)
    own = 0.1 * torch.randn(2, n, generator=generator)
    return luck + own[0], luck + own[1] + 0.2, float(stats.t.ppf(0.975, n - 1))


paired_interval = Exercise(
    name="paired_interval",
    task="low and high end, [2]: mean difference of the pairs ± t · sd / √n",
    reference=_paired_interval,
    cases=_interval_cases,
    mistakes={
        "unpaired": Mistake(
            _unpaired,
            "add the two variances, as if the arms had been run with different seeds. "
            "Subtract seed by seed first; the luck that both share drops out.",
        ),
        "spread of one seed": Mistake(
            _of_one_seed,
            "forget √n: that is how far single differences spread. Their mean is "
            "known better, by the factor √n.",
        ),
        "divided by n": Mistake(
            _population,
            "divide the squares by n. The mean was estimated from the same numbers, so "
            "the sample sd divides by n - 1 (torch's default).",
        ),
    },
)
