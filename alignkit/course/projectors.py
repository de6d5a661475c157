"""Exercises of the notebook on projectors: a token projector, CKA, balanced captions."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1: the token projector ------------------------------------------------------
def _two_branches(x, w1, w2, w3):
    """Layer norm, then the straight branch plus the bent one, [..., d_out]."""
    y = F.layer_norm(x, x.shape[-1:])
    return y @ w1.T + F.gelu(y @ w2.T) @ w3.T


def _no_norm(x, w1, w2, w3):
    return x @ w1.T + F.gelu(x @ w2.T) @ w3.T


def _norm_of_one(x, w1, w2, w3):
    return x @ w1.T + F.gelu(F.layer_norm(x, x.shape[-1:]) @ w2.T) @ w3.T


def _in_a_row(x, w1, w2, w3):
    y = F.layer_norm(x, x.shape[-1:])
    return F.gelu(y @ w1.T) @ w3.T


def _bent_only(x, w1, w2, w3):
    y = F.layer_norm(x, x.shape[-1:])
    return F.gelu(y @ w2.T) @ w3.T


def _relu(x, w1, w2, w3):
    y = F.layer_norm(x, x.shape[-1:])
    return y @ w1.T + F.relu(y @ w2.T) @ w3.T


def _weights_case(generator):
    n, t, d, width = (random_size(generator, low, low + 4) for low in (2, 2, 4, 3))
    x = random_rows(generator, n * t, d).view(n, t, d)
    w1, w2 = torch.randn(2, width, d, generator=generator)
    return x, w1, w2, torch.randn(width, width, generator=generator)


two_branches = Exercise(
    name="two_branches",
    task="y = layer norm of x (no weights); return W1 y + W3 gelu(W2 y), token by token",
    reference=_two_branches,
    cases=_weights_case,
    mistakes={
        "no layer norm": Mistake(
            _no_norm,
            "leave out the layer norm. Tokens of frozen encoders differ much in length; "
            "both branches read the normalised token.",
        ),
        "relu": Mistake(
            _relu,
            "bend with ReLU. The bend is a GELU, which lets small negative values "
            "through: F.gelu.",
        ),
        "norm of one branch": Mistake(
            _norm_of_one,
            "give the raw token to the straight branch. The layer norm stands before "
            "both.",
        ),
        "bent branch alone": Mistake(
            _bent_only,
            "forget the straight branch W1 y. It is added to the bent one.",
        ),
        "in a row": Mistake(
            _in_a_row,
            "put W1 before the bend. W1 is a branch of its own, W2 feeds the gelu.",
        ),
    },
)


# Exercise 2: CKA ----------------------------------------------------------------------
def _agreement(x, y):
    """Linear CKA of paired rows, one number."""
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def _not_centred(x, y):
    return (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def _no_square(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y).norm() / ((x.T @ x).norm() * (y.T @ y).norm()).sqrt()


def _lengths_below(x, y):
    x, y = x - x.mean(0), y - y.mean(0)
    return (x.T @ y).norm() ** 2 / (x.norm() ** 2 * y.norm() ** 2)


def _rows_centred(x, y):
    x, y = x - x.mean(1, keepdim=True), y - y.mean(1, keepdim=True)
    return (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def _one_mean(x, y):
    x, y = x - x.mean(), y - y.mean()
    return (x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())


def _pairs_case(generator):
    n, d, e = (random_size(generator, low, low + 5) for low in (6, 3, 4))
    x = random_rows(generator, n, d)
    return x, x @ torch.randn(d, e, generator=generator) + random_rows(generator, n, e)


agreement = Exercise(
    name="agreement",
    task="centre columns; |XᵀY|² / (|XᵀX| |YᵀY|) with Frobenius norms, one number",
    reference=_agreement,
    cases=_pairs_case,
    mistakes={
        "not centred": Mistake(
            _not_centred,
            "do not subtract the mean row. Features of all encoders have large means, "
            "and then everything agrees with everything.",
        ),
        "no square": Mistake(
            _no_square,
            "take the root: the norm above is squared, the two below are not.",
        ),
        "lengths below": Mistake(
            _lengths_below,
            "divide by |X|² |Y|². Below stand |XᵀX| and |YᵀY|, or a matrix would not "
            "agree with itself.",
        ),
        "one mean": Mistake(
            _one_mean,
            "subtract one mean of all entries. Each column has a mean of its own: "
            "x.mean(0).",
        ),
        "rows centred": Mistake(
            _rows_centred,
            "subtract each row's own mean. The mean over rows, one a column, is what "
            "H removes.",
        ),
    },
)


# Exercise 3: balanced captions --------------------------------------------------------
def _taker(scores, per_class, depth, order=None, again=False):
    """The class that takes each caption, −1 if none: long [n]."""
    best, rows = scores.topk(depth, dim=0)
    taker = torch.full((len(scores),), -1)
    for c in (best[-1].argsort().tolist() if order is None else order):
        left = [row for row in rows[:, c].tolist() if again or taker[row] < 0]
        taker[left[:per_class]] = c
    return taker


def _choose(scores, per_class, depth):
    return _taker(scores, per_class, depth)


def _in_file_order(scores, per_class, depth):
    return _taker(scores, per_class, depth, order=range(scores.shape[1]))


def _richest_first(scores, per_class, depth):
    last = scores.topk(depth, dim=0).values[-1]
    return _taker(scores, per_class, depth, order=last.argsort(descending=True).tolist())


def _by_mean(scores, per_class, depth):
    mean = scores.topk(depth, dim=0).values.mean(0)
    return _taker(scores, per_class, depth, order=mean.argsort().tolist())


def _taken_twice(scores, per_class, depth):
    return _taker(scores, per_class, depth, again=True)


def _scores_case(generator):
    n, c = random_size(generator, 14, 20), random_size(generator, 3, 5)
    common = torch.randn(n, 1, generator=generator)  # classes want the same captions
    # A class of much spread has a high mean and a low last score.
    spread = 0.3 + 1.7 * torch.rand(c, generator=generator)
    own = spread * (torch.randn(n, c, generator=generator) - 0.7)
    return common + own + 0.3 * torch.randn(c, generator=generator), 3, 6


choose = Exercise(
    name="choose",
    task="the scarcest class (lowest score at place depth) first; each takes its per_class "
         "best of its list that are left; return the taker of each caption, -1 for none",
    reference=_choose,
    cases=_scores_case,
    mistakes={
        "in the order of the file": Mistake(
            _in_file_order,
            "let classes choose in the order in which they stand. The scarcest one "
            "chooses first, or a common class takes what a rare one has.",
        ),
        "richest first": Mistake(
            _richest_first,
            "let the class with the most good captions choose first: sort ascending.",
        ),
        "by the mean": Mistake(
            _by_mean,
            "order the classes by the mean of their lists. The scarcest class is the one "
            "whose LAST score, at place depth, is lowest.",
        ),
        "taken twice": Mistake(
            _taken_twice,
            "let a class take captions that are taken. It goes on in its list to those "
            "that are left, so that each caption belongs to one class.",
        ),
    },
)
