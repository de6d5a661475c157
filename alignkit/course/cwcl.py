"""Exercises of the notebook on CWCL: targets, the weighted term, the whole loss."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size, unit_rows


# Exercise 1: the targets ------------------------------------------------------------
def _target(q):
    """½ + ½ q qᵀ, each row divided by its sum."""
    weights = 0.5 + 0.5 * q @ q.T
    return weights / weights.sum(1, keepdim=True)


def _rows_of(weights):
    return weights / weights.sum(1, keepdim=True)


def _no_diagonal(q):
    weights = 0.5 + 0.5 * q @ q.T
    return _rows_of(weights - torch.diag(weights.diagonal()))


target = Exercise(
    name="target",
    task="A [n, n]: half plus half the cosine of unit rows q, rows divided by their sums",
    reference=_target,
    cases=lambda generator: (
        unit_rows(
            generator, random_size(generator, 3, 8), random_size(generator, 4, 9)
        ),
    ),
    mistakes={
        "not divided": Mistake(
            lambda q: 0.5 + 0.5 * q @ q.T,
            "return the weights. A target is a distribution: divide each row by its "
            "sum.",
        ),
        "one sum": Mistake(
            lambda q: (0.5 + 0.5 * q @ q.T) / (0.5 + 0.5 * q @ q.T).sum(),
            "divide by the sum of the whole matrix. Each row has a sum of its own.",
        ),
        "softmax": Mistake(
            lambda q: (q @ q.T).softmax(1),
            "take a softmax of the cosines. The weights are 0.5 + 0.5 * cosine, without "
            "an exponential.",
        ),
        "cosines": Mistake(
            lambda q: _rows_of(q @ q.T),
            "take the cosines as weights. They may be negative: move them into [0, 1] "
            "first.",
        ),
        "without the pair": Mistake(
            _no_diagonal,
            "leave out the diagonal. The true pair is an answer, too: the best one, "
            "with weight 1.",
        ),
    },
)


# Exercise 2: the weighted term ------------------------------------------------------
def _weighted(logits, weights):
    """Cross entropy of rows with the weights, each row divided by its sum."""
    return -(_rows_of(weights) * logits.log_softmax(1)).sum(1).mean()


def _weighted_case(generator):
    n = random_size(generator, 3, 8)
    return 3 * random_rows(generator, n, n), torch.rand(n, n, generator=generator)


weighted_term = Exercise(
    name="weighted_term",
    task="mean over rows of − Σ A log softmax(logits), A the weights over row sums",
    reference=_weighted,
    cases=_weighted_case,
    mistakes={
        "not divided": Mistake(
            lambda logits, weights: -(weights * logits.log_softmax(1)).sum(1).mean(),
            "use the weights as they are. Divide each row by its sum, or rows with "
            "many neighbours count more.",
        ),
        "columns": Mistake(
            lambda logits, weights: -(_rows_of(weights) * logits.log_softmax(0))
            .sum(1)
            .mean(),
            "take the softmax down the columns. The anchor is the row: its candidates "
            "stand in it.",
        ),
        "no logarithm": Mistake(
            lambda logits, weights: -(_rows_of(weights) * logits.softmax(1))
            .sum(1)
            .mean(),
            "leave out the logarithm: cross entropy is of log softmax.",
        ),
        "mean of everything": Mistake(
            lambda logits, weights: -(_rows_of(weights) * logits.log_softmax(1)).mean(),
            "take the mean over the candidates, too. Sum over them, mean over anchors.",
        ),
        "only the pair": Mistake(
            lambda logits, weights: -logits.log_softmax(1).diagonal().mean(),
            "look at the diagonal alone. That is LiT; here every candidate pulls.",
        ),
    },
)


# Exercise 3: the loss ---------------------------------------------------------------
def _cwcl_loss(p, q, temperature):
    """Weighted rows (trained anchors) plus plain columns (frozen anchors)."""
    logits = p @ q.T / temperature
    plain = F.cross_entropy(logits.T, torch.arange(len(p)))
    return _weighted(logits, 0.5 + 0.5 * q @ q.T) + plain


def _other_anchor(p, q, temperature):
    return _cwcl_loss_of(q, p, q, temperature)


def _cwcl_loss_of(anchors, candidates, weighing, temperature):
    logits = anchors @ candidates.T / temperature
    plain = F.cross_entropy(logits.T, torch.arange(len(anchors)))
    return _weighted(logits, 0.5 + 0.5 * weighing @ weighing.T) + plain


def _both_weighted(p, q, temperature):
    logits, weights = p @ q.T / temperature, 0.5 + 0.5 * q @ q.T
    return _weighted(logits, weights) + _weighted(logits.T, weights)


def _loss_case(generator):
    n, d = random_size(generator, 3, 8), random_size(generator, 4, 9)
    temperature = (0.07, 0.2, 0.5)[random_size(generator, 0, 3)]
    return unit_rows(generator, n, d), unit_rows(generator, n, d), temperature


cwcl_loss = Exercise(
    name="cwcl_loss",
    task="weighted term of trained anchors p plus plain cross entropy of frozen ones q",
    reference=_cwcl_loss,
    cases=_loss_case,
    mistakes={
        "the trained side's weights": Mistake(
            lambda p, q, temperature: _cwcl_loss_of(p, q, p, temperature),
            "take the weights from the trained side p. It knows nothing yet: the "
            "targets would run after the model. The weights are the frozen side's.",
        ),
        "the other anchor": Mistake(
            _other_anchor,
            "put the weights at the frozen anchors. That is the other reading; here "
            "rows of trained anchors carry them.",
        ),
        "both weighted": Mistake(
            _both_weighted,
            "weight both directions. The second one is plain: it tells the pair from "
            "all others.",
        ),
        "mean of the terms": Mistake(
            lambda p, q, temperature: _cwcl_loss(p, q, temperature) / 2,
            "take half of the sum. The two terms are added.",
        ),
        "times the temperature": Mistake(
            lambda p, q, temperature: _cwcl_loss(p, q, 1 / temperature),
            "multiply by the temperature: divide.",
        ),
    },
)
