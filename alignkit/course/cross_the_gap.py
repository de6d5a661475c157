"""Exercises of the notebook on crossing the gap: the figure, the patches, how many draws."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: average precision of a query --------------------------------------
def _average_precision(scores, relevant):
    found = relevant[scores.argsort(descending=True)].to(scores)
    rank = torch.arange(1, len(scores) + 1)
    return (found * found.cumsum(0) / rank).sum() / found.sum()


def _ranked(generator):
    n = random_size(generator, 6, 12)
    scores = random_rows(generator, n, 1)[:, 0]
    relevant = torch.zeros(n, dtype=torch.bool)
    relevant[torch.randperm(n, generator=generator)[:3]] = True
    return scores, relevant


def _over_all(scores, relevant):
    found = relevant[scores.argsort(descending=True)].to(scores)
    return (found.cumsum(0) / torch.arange(1, len(scores) + 1)).mean()


average_precision = Exercise(
    name="average_precision",
    task="of one query: mean over its relevant rows of (relevant so far) / rank",
    reference=_average_precision,
    cases=_ranked,
    mistakes={
        "lowest first": Mistake(
            lambda scores, relevant: _average_precision(-scores, relevant),
            "put the lowest score first: rank 1 is the nearest row.",
        ),
        "divided by all": Mistake(
            lambda scores, relevant: (
                _average_precision(scores, relevant) * relevant.sum() / len(scores)),
            "divide by the number of rows. The mean is over the relevant rows: divide by "
            "their number.",
        ),
        "over all ranks": Mistake(
            _over_all,
            "average the precision over all ranks. It counts at the ranks of relevant rows "
            "only.",
        ),
        "reciprocal ranks": Mistake(
            lambda scores, relevant: (
                relevant[scores.argsort(descending=True)].to(scores)
                / torch.arange(1, len(scores) + 1)).sum() / relevant.sum(),
            "take 1 / rank. The second relevant row at rank 2 is no mistake: it counts "
            "2 / 2.",
        ),
    },
)


# Exercise 2, transfer: pseudo-patches for a whole picture -----------------------------
def _spread(tokens, places):
    count = tokens.shape[1]
    return tokens[:, torch.arange(places) * count // places]


def _tokens(generator):
    count = random_size(generator, 2, 4)
    n, width = random_size(generator, 2, 5), random_size(generator, 2, 5)
    rows = random_rows(generator, n * count, width).view(n, count, width)
    return rows, count * random_size(generator, 2, 5)


spread = Exercise(
    name="spread",
    task="repeat tokens [n, R, width] by the nearest place: [n, places, width]",
    reference=_spread,
    cases=_tokens,
    mistakes={
        "in turn": Mistake(
            lambda tokens, places: tokens.repeat(1, places // tokens.shape[1], 1),
            "take the tokens in turn, again and again. By nearest place the first stands "
            "at the first run of places, then comes the second.",
        ),
        "the first alone": Mistake(
            lambda tokens, places: tokens[:, :1].expand(-1, places, -1),
            "repeat the first token everywhere. That is right with one token only.",
        ),
        "padding": Mistake(
            lambda tokens, places: F.pad(tokens, (0, 0, 0, places - tokens.shape[1])),
            "leave the other places at zero. Every place takes a token.",
        ),
    },
)


# Exercise 3, judge: each pair of towers counts once -----------------------------------
def _pair_means(differences, towers):
    return torch.stack([differences[towers == k].mean() for k in towers.unique()])


def _mean_and_error(x, n=None, unbiased=True):
    return torch.stack([x.mean(), x.std(correction=int(unbiased)) / (n or len(x)) ** 0.5])


def _by_pair(differences, towers):
    """Mean and standard error over pairs of towers, [2]."""
    return _mean_and_error(_pair_means(differences, towers))


def _shared(generator):
    n, m = random_size(generator, 8, 12), random_size(generator, 4, 7)
    return random_rows(generator, n, 1)[:, 0], torch.arange(n) % m


by_pair = Exercise(
    name="by_pair",
    task="mean over pairs of towers, each counted once, and its standard error: [2]",
    reference=_by_pair,
    cases=_shared,
    mistakes={
        "every seed": Mistake(
            lambda differences, towers: _mean_and_error(differences),
            "count every seed. Seeds that share their towers are not independent: average "
            "within each pair first.",
        ),
        "seeds in the root": Mistake(
            lambda differences, towers: _mean_and_error(
                _pair_means(differences, towers), len(differences)),
            "divide by the root of the number of seeds. There are only as many "
            "independent values as pairs of towers.",
        ),
        "n below the line": Mistake(
            lambda differences, towers: _mean_and_error(
                _pair_means(differences, towers), unbiased=False),
            "take the standard deviation with m below the line. With so few pairs it is "
            "too small: m − 1.",
        ),
        "no root": Mistake(
            lambda differences, towers: torch.stack([
                _pair_means(differences, towers).mean(),
                _pair_means(differences, towers).std()]),
            "return the standard deviation. The error of a mean is smaller: divide by the "
            "root of the number of pairs.",
        ),
    },
)
