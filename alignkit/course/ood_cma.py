"""Exercises of the notebook on CMA: the loss, its gradient, a score of strangers."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


def _logit_case(generator):
    n = random_size(generator, 3, 8)
    logits = 3 * torch.randn(n, n, generator=generator)
    return logits, (0.1, 0.3, 0.6)[random_size(generator, 0, 3)]


# Exercise 1: the loss ---------------------------------------------------------------
def _contrast(logits):
    """InfoNCE of logits, pairs on the diagonal."""
    right = torch.arange(len(logits))
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def _pulled(logits, weight):
    """(1 − weight) · InfoNCE + weight · (−mean positive logit)."""
    return (1 - weight) * _contrast(logits) - weight * logits.diagonal().mean()


def _pull_alone_weighted(logits, weight):
    return _contrast(logits) - weight * logits.diagonal().mean()


def _sign(logits, weight):
    return (1 - weight) * _contrast(logits) + weight * logits.diagonal().mean()


def _all_pulled(logits, weight):
    return (1 - weight) * _contrast(logits) - weight * logits.mean()


def _joint_sign(logits, weight):
    return _contrast(logits) + weight * sum(
        x.logsumexp(1).mean() / 2 for x in (logits, logits.T)
    )


pulled = Exercise(
    name="pulled",
    task="(1 − weight) · InfoNCE of both directions + weight · (− mean positive logit)",
    reference=_pulled,
    cases=_logit_case,
    mistakes={
        "contrast in full": Mistake(
            _pull_alone_weighted,
            "add the pull to the whole of InfoNCE. In CMA the log-sum-exp shrinks: "
            "InfoNCE counts 1 − weight.",
        ),
        "sign": Mistake(
            _sign,
            "push pairs apart. The positive logit shall grow: it has a minus.",
        ),
        "all pairs": Mistake(
            _all_pulled,
            "pull all pictures to all prompts. Only the diagonal belongs together.",
        ),
        "joint term turned round": Mistake(
            _joint_sign,
            "add the log-sum-exp with a plus. R is minus its mean: the joint likelihood "
            "grows.",
        ),
        "one direction": Mistake(
            lambda logits, weight: (
                (1 - weight) * F.cross_entropy(logits, torch.arange(len(logits)))
                - weight * logits.diagonal().mean()
            ),
            "let pictures look for prompts alone. Prompts look for pictures, too: "
            "columns, and half of each.",
        ),
    },
)


# Exercise 2: the pull on each logit ----------------------------------------------------
def _slopes(logits, weight):
    """d loss / d logits, [n, n]."""
    p = logits.softmax(1) + logits.softmax(0)
    n = len(logits)
    return (1 - weight) * p / (2 * n) - torch.eye(n) / n


def _all_faded(logits, weight):
    p = logits.softmax(1) + logits.softmax(0)
    n = len(logits)
    return (1 - weight) * (p / (2 * n) - torch.eye(n) / n)


def _rows_alone(logits, weight):
    n = len(logits)
    return (1 - weight) * logits.softmax(1) / n - torch.eye(n) / n


slopes = Exercise(
    name="slopes",
    task="d loss / d logits: (1 − weight) (p of rows + p of columns) / 2n − 1/n on the "
    "diagonal",
    reference=_slopes,
    cases=_logit_case,
    mistakes={
        "all of it smaller": Mistake(
            _all_faded,
            "let the weight shrink the diagonal's −1/n as well. That would be InfoNCE "
            "with a smaller rate; here the pull on the true pair stays whole.",
        ),
        "plain InfoNCE": Mistake(
            lambda logits, weight: _slopes(logits, 0.0),
            "leave the weight out: that is the gradient of InfoNCE.",
        ),
        "rows alone": Mistake(
            _rows_alone,
            "count the rows' softmax alone. Each logit stands in a row and in a column.",
        ),
        "sum for mean": Mistake(
            lambda logits, weight: len(logits) * _slopes(logits, weight),
            "leave out the mean over the batch: divide by n.",
        ),
    },
)


# Exercise 3: the score ------------------------------------------------------------------
def _known_share(z, class_z, negative_z, temperature):
    """Share [n] of the softmax that falls on the known classes."""
    cosines = torch.cat([z @ class_z.T, z @ negative_z.T], 1)
    return (cosines / temperature).softmax(1)[:, : len(class_z)].sum(1)


def _best_class(z, class_z, negative_z, temperature):
    cosines = torch.cat([z @ class_z.T, z @ negative_z.T], 1)
    return (cosines / temperature).softmax(1)[:, : len(class_z)].amax(1)


def _no_negatives(z, class_z, negative_z, temperature):
    return (z @ class_z.T / temperature).softmax(1).amax(1)


def _multiplied(z, class_z, negative_z, temperature):
    return _known_share(z, class_z, negative_z, 1 / temperature)


def _share_case(generator):
    n, c, m, d = (random_size(generator, low, low + 5) for low in (2, 2, 3, 4))
    z, known, negative = (
        F.normalize(random_rows(generator, k, d).double(), dim=1) for k in (n, c, m)
    )
    return z, known, negative, (0.1, 0.3, 0.5)[random_size(generator, 0, 3)]


known_share = Exercise(
    name="known_share",
    task="softmax over known and negative texts together, summed over the known, [n]",
    reference=_known_share,
    cases=_share_case,
    mistakes={
        "the best class": Mistake(
            _best_class,
            "take the best class instead of the sum. A picture between two known "
            "classes is not a stranger.",
        ),
        "no negatives": Mistake(
            _no_negatives,
            "leave out the negative labels: that is MCM.",
        ),
        "the wrong share": Mistake(
            lambda *case: 1 - _known_share(*case),
            "sum over the negative labels. High shall mean: known.",
        ),
        "times the temperature": Mistake(
            _multiplied,
            "multiply by the temperature: divide.",
        ),
    },
)
