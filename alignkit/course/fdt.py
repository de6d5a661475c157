"""Exercises of the notebook on FDT: sparsemax, grounding, and shared codes."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1: sparsemax ----------------------------------------------------------------
def _sparse_weights(scores):
    """[n, C] -> the nearest point of the simplex, row by row."""
    ordered = scores.sort(dim=1, descending=True).values
    total = ordered.cumsum(1)
    k = torch.arange(1, scores.shape[1] + 1)
    kept = (1 + k * ordered > total).sum(1, keepdim=True)
    threshold = (total.gather(1, kept - 1) - 1) / kept
    return (scores - threshold).clamp(min=0)


def _whole_batch(scores):
    return _sparse_weights(scores.flatten()[None]).view_as(scores)


def _cut_at_mean(scores):
    w = (scores - scores.mean(1, keepdim=True)).clamp(min=0)
    return w / w.sum(1, keepdim=True)


def _no_minus_one(scores):
    ordered = scores.sort(dim=1, descending=True).values
    total = ordered.cumsum(1)
    k = torch.arange(1, scores.shape[1] + 1)
    kept = (1 + k * ordered > total).sum(1, keepdim=True)
    return (scores - total.gather(1, kept - 1) / kept).clamp(min=0)


def _one_too_far(scores):
    ordered = scores.sort(dim=1, descending=True).values
    total = ordered.cumsum(1)
    k = torch.arange(1, scores.shape[1] + 1)
    kept = (1 + k * ordered > total).sum(1, keepdim=True)
    place = kept.clamp(max=scores.shape[1] - 1)
    return (scores - (total.gather(1, place) - 1) / kept).clamp(min=0)


def _scores_case(generator):
    n, c = random_size(generator, 3, 7), random_size(generator, 4, 10)
    return (0.7 * random_rows(generator, n, c),)


sparse_weights = Exercise(
    name="sparse_weights",
    task="sort, find k, threshold = (sum of k largest − 1) / k, max(x − threshold, 0)",
    reference=_sparse_weights,
    cases=_scores_case,
    mistakes={
        "softmax": Mistake(
            lambda scores: scores.softmax(1),
            "take the softmax. Its weights are never zero: every row would use every "
            "code.",
        ),
        "one simplex for all": Mistake(
            _whole_batch,
            "treat the batch as one long row. Then all rows together get the weight "
            "one: sort and sum along the last dimension.",
        ),
        "cut and divided": Mistake(
            _cut_at_mean,
            "cut below the mean and divide by the sum. That sums to one, but it is "
            "not the nearest point of the simplex.",
        ),
        "no minus one": Mistake(
            _no_minus_one,
            "forget the − 1 in the threshold. Then the kept entries are cut at their "
            "own mean, and their weights do not sum to one.",
        ),
        "one place too far": Mistake(
            _one_too_far,
            "take the sum of one entry too many. Places count from 0: the sum of the "
            "k largest stands at place k − 1.",
        ),
    },
)


# Exercise 2: grounding ----------------------------------------------------------------
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
    task="q · z / √d for tokens and codes, padding to −∞, maximum over tokens: [n, C]",
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


# Exercise 3: shared codes -------------------------------------------------------------
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
