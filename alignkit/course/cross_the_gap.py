"""Exercises of the notebook on crossing the gap: the loss, the patches, the figure."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1: the loss of an inversion -------------------------------------------------
def _inversion_loss(found, target):
    return 1 - F.cosine_similarity(found, target, dim=1)


def _pairs(generator):
    n, d = random_size(generator, 3, 7), random_size(generator, 3, 7)
    return 2 * random_rows(generator, n, d), random_rows(generator, n, d)


inversion_loss = Exercise(
    name="inversion_loss",
    task="1 minus the cosine of each row with its own target, [n]",
    reference=_inversion_loss,
    cases=_pairs,
    mistakes={
        "not unit": Mistake(
            lambda found, target: 1 - (found * target).sum(1),
            "take the product without making both rows unit: a longer row would look "
            "nearer.",
        ),
        "all pairs": Mistake(
            lambda found, target: (1 - F.normalize(found, dim=1)
                                   @ F.normalize(target, dim=1).T).mean(1),
            "compare each row with every target. Each query has one target, its own, and "
            "knows nothing of the others.",
        ),
        "the mean": Mistake(
            lambda found, target: _inversion_loss(found, target).mean(),
            "average over the rows. The optimiser wants one number for each query.",
        ),
        "no one": Mistake(
            lambda found, target: F.cosine_similarity(found, target, dim=1),
            "return the cosine itself: minimising it would drive the query away.",
        ),
    },
)


# Exercise 2: pseudo-patches for a whole picture ---------------------------------------
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


# Exercise 3: average precision of a query ----------------------------------------------
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
