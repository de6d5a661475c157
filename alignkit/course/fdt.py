"""Exercises of the notebook on FDT: shared codes, padding, the choice of T."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: shared codes ------------------------------------------------------
def _members(scores, k):
    return torch.zeros_like(scores).scatter(1, scores.topk(k).indices, 1.0)


def _overlap_of(a, b, k):
    """Jaccard overlap of the k best codes, row by row, [n]."""
    common = (_members(a, k) * _members(b, k)).sum(1)
    return common / (2 * k - common)


def _overlap_case(generator):
    n, c = random_size(generator, 4, 8), random_size(generator, 12, 20)
    a = random_rows(generator, n, c)
    b = a + random_rows(generator, n, c)
    return a, b, random_size(generator, 3, 7)


overlap_of = Exercise(
    name="overlap_of",
    task="row by row: codes among the k best of both, divided by those of either; [n]",
    reference=_overlap_of,
    cases=_overlap_case,
    mistakes={
        "divided by k": Mistake(
            lambda a, b, k: (_members(a, k) * _members(b, k)).sum(1) / k,
            "divide by k. Jaccard divides by the size of the union, 2 k minus what "
            "both have.",
        ),
        "divided by two k": Mistake(
            lambda a, b, k: (_members(a, k) * _members(b, k)).sum(1) / (2 * k),
            "divide by 2 k. What both have is then counted twice.",
        ),
        "same place": Mistake(
            lambda a, b, k: (a.topk(k).indices == b.topk(k).indices).float().mean(1),
            "compare place by place. The order among the k best does not matter.",
        ),
        "every pair": Mistake(
            lambda a, b, k: (c := _members(a, k) @ _members(b, k).T) / (2 * k - c),
            "compare every row with every other one. Row i of a goes with row i of b.",
        ),
    },
)


# Exercise 2, transfer: padding that wins ----------------------------------------------
def _ground(queries, codebook, real):
    """[n, t, d], [C, d], mask [n, t] -> [n, C], the best real token of each code."""
    scores = queries @ codebook.T / codebook.shape[1] ** 0.5
    return scores.masked_fill(~real[:, :, None], -torch.inf).amax(1)


def _zero_wins(queries, codebook, real):
    scores = queries @ codebook.T / codebook.shape[1] ** 0.5
    return (scores * real[:, :, None]).amax(1)


def _mean_for_max(queries, codebook, real):
    scores = queries @ codebook.T / codebook.shape[1] ** 0.5
    return (scores * real[:, :, None]).sum(1) / real.sum(1, keepdim=True)


def _ground_case(generator):
    n, t = random_size(generator, 3, 6), random_size(generator, 3, 6)
    d, c = random_size(generator, 3, 6), random_size(generator, 4, 9)
    queries = random_rows(generator, n * t, d).view(n, t, d)
    real = torch.arange(t) < torch.randint(1, t, (n, 1), generator=generator)
    return queries, random_rows(generator, c, d), real


ground = Exercise(
    name="ground",
    task="q · z / √d, maximum over real tokens; padding must change nothing: [n, C]",
    reference=_ground,
    cases=_ground_case,
    mistakes={
        "no mask": Mistake(
            lambda queries, codebook, real: _ground(
                queries, codebook, torch.ones_like(real)),
            "let padded places take part in the maximum. They stand for nothing, yet "
            "they can win.",
        ),
        "padding is zero": Mistake(
            _zero_wins,
            "give padded places the score zero. That is the authors' rule: it lifts "
            "every negative score to zero. The clean rule is −∞.",
        ),
        "mean for max": Mistake(
            _mean_for_max,
            "take the mean over tokens. A thing that covers few patches would be "
            "averaged away: take the maximum.",
        ),
        "no root of d": Mistake(
            lambda queries, codebook, real: _ground(queries, codebook, real)
            * codebook.shape[1] ** 0.5,
            "forget to divide by √d. The temperature was tuned with it.",
        ),
        "codes made unit": Mistake(
            lambda queries, codebook, real: _ground(
                queries, torch.nn.functional.normalize(codebook, dim=1), real),
            "make the codes unit. Their lengths are learned, and the temperature was "
            "tuned for them: use them as they are.",
        ),
    },
)


# Exercise 3, judge: which temperature -------------------------------------------------
def _ends(best, m, low=True, high=True):
    """[arms] -> the place, or -1 at an end of the list of m."""
    edge = (best == 0) & low | (best == m - 1) & high
    return best.masked_fill(edge, -1).float()


def _chosen(hits):
    """[arms, seeds, m] -> the place of the best mean, -1 at an end, [arms]."""
    return _ends(hits.mean(1).argmax(1), hits.shape[2])


def _table(generator):
    """Many arms; their best mean stands at one end, inside, or at the other end, and one
    seed of each was lucky somewhere else."""
    arms, seeds = random_size(generator, 9, 14), random_size(generator, 3, 5)
    m = random_size(generator, 4, 7)
    hits = 0.1 * torch.rand(arms, seeds, m, generator=generator)
    best = torch.tensor([0, 1, m - 2, m - 1] * 4)[:arms]
    hits[torch.arange(arms), :, best] += 0.4
    hits[torch.arange(arms), torch.arange(arms) % seeds, (best + 2) % m] += 0.6
    return (hits,)


chosen = Exercise(
    name="chosen",
    task="for each arm the place of its best mean over the seeds, -1 at either end",
    reference=_chosen,
    cases=_table,
    mistakes={
        "ends allowed": Mistake(
            lambda hits: _ends(hits.mean(1).argmax(1), hits.shape[2], False, False),
            "accept a best value at an end of the list. What lies beyond it was not tried: "
            "give -1.",
        ),
        "upper end alone": Mistake(
            lambda hits: _ends(hits.mean(1).argmax(1), hits.shape[2], low=False),
            "look at the upper end only. The first place is an end, too.",
        ),
        "lower end alone": Mistake(
            lambda hits: _ends(hits.mean(1).argmax(1), hits.shape[2], high=False),
            "look at the lower end only. The last place is an end, too.",
        ),
        "luckiest seed": Mistake(
            lambda hits: _ends(hits.amax(1).argmax(1), hits.shape[2]),
            "let the luckiest seed decide. The mean over the tuning seeds does.",
        ),
        "first seed": Mistake(
            lambda hits: _ends(hits[:, 0].argmax(1), hits.shape[2]),
            "look at the first seed only. One split decides verdicts by its luck: take the "
            "mean over the tuning seeds.",
        ),
        "one for all arms": Mistake(
            lambda hits: _ends(
                hits.mean((0, 1)).argmax().expand(len(hits)), hits.shape[2]),
            "choose one temperature for all arms. Each arm has its own.",
        ),
        "arms and seeds exchanged": Mistake(
            lambda hits: _ends(hits.mean(0).argmax(1), hits.shape[2]),
            "average over the arms. The seeds stand in the second dimension.",
        ),
    },
)
