"""Exercises of the notebook on large batches, and its measure of memory."""

import weakref

import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .exercises import Exercise, Mistake, random_rows, random_size


def _logits(generator, n: int) -> torch.Tensor:
    """[n, n], of unit rows at one of three scales."""
    d, scale = random_size(generator, 3, 7), (2.0, 5.0, 20.0)
    a, b = (F.normalize(random_rows(generator, n, d)) for _ in range(2))
    return scale[random_size(generator, 0, 3)] * a @ b.T


# Exercise 1: two running sums are one ----------------------------------------------
def _merged(top, total, other_top, other_total):
    """log of both sums together, [n]; a sum is total · exp(top)."""
    both = torch.maximum(top, other_top)
    return both + torch.log(
        total * (top - both).exp() + other_total * (other_top - both).exp()
    )


def _not_rescaled(top, total, other_top, other_total):
    return torch.maximum(top, other_top) + (total + other_total).log()


def _second_rescaled(top, total, other_top, other_total):
    both = torch.maximum(top, other_top)
    return both + (total + other_total * (other_top - both).exp()).log()


def _logs_added(top, total, other_top, other_total):
    return top + total.log() + other_top + other_total.log()


def _top_forgotten(top, total, other_top, other_total):
    both = torch.maximum(top, other_top)
    return (total * (top - both).exp() + other_total * (other_top - both).exp()).log()


def _two_halves(generator):
    n = random_size(generator, 6, 9)
    logits = _logits(generator, n) + 3 * torch.randn(n, n, generator=generator)
    halves = logits.split(random_size(generator, 2, n - 1), dim=1)[:2]
    tops = [half.amax(1) for half in halves]
    totals = [
        (half - top[:, None]).exp().sum(1)
        for half, top in zip(halves, tops, strict=True)
    ]
    return tops[0], totals[0], tops[1], totals[1]


merged = Exercise(
    name="merged",
    task="the log-sum-exp [n] of two sets of columns, from (largest, sum) of each",
    reference=_merged,
    cases=_two_halves,
    mistakes={
        "not rescaled": Mistake(
            _not_rescaled,
            "add the sums as they are. Each is a sum of exp(logit − its own largest): "
            "multiply it by exp(its largest − the common largest) first.",
        ),
        "one rescaled": Mistake(
            _second_rescaled,
            "rescale the second sum only. The first one's largest may be the smaller.",
        ),
        "logs added": Mistake(
            _logs_added,
            "add two logarithms. That multiplies the sums; they must be added, at a "
            "common largest, before the logarithm.",
        ),
        "largest forgotten": Mistake(
            _top_forgotten,
            "forget to add the common largest after the logarithm.",
        ),
    },
)


# Exercise 2: the gradient of a tile ------------------------------------------------
def _tile_gradient(logits, by_row, by_column, first_row, first_column, n):
    """dL/dlogits of one tile [r, c]; the softmaxes are over the whole batch."""
    rows = first_row + torch.arange(len(logits))
    columns = first_column + torch.arange(logits.shape[1])
    own = (rows[:, None] == columns).float()
    p = (logits - by_row[:, None]).exp()
    q = (logits - by_column).exp()
    return (p + q - 2 * own) / (2 * n)


def _own_diagonal(logits, by_row, by_column, first_row, first_column, n):
    return _tile_gradient(logits, by_row, by_column, 0, 0, n)


def _rows_only(logits, by_row, by_column, first_row, first_column, n):
    rows = first_row + torch.arange(len(logits))
    columns = first_column + torch.arange(logits.shape[1])
    own = (rows[:, None] == columns).float()
    return ((logits - by_row[:, None]).exp() - own) / n


def _by_tile(logits, by_row, by_column, first_row, first_column, n):
    gradient = _tile_gradient(logits, by_row, by_column, first_row, first_column, n)
    return gradient * n / len(logits)


def _softmax_of_tile(logits, by_row, by_column, first_row, first_column, n):
    by_row, by_column = logits.logsumexp(1), logits.logsumexp(0)
    return _tile_gradient(logits, by_row, by_column, first_row, first_column, n)


def _one_tile(generator):
    n = random_size(generator, 9, 13)
    logits = _logits(generator, n)
    height, width = (random_size(generator, 3, 5) for _ in range(2))
    i = random_size(generator, 1, n - 6)
    j = i + 1 - 2 * random_size(generator, 0, 2)  # beside the diagonal, and across it
    tile = logits[i : i + height, j : j + width]
    by_row, by_column = logits.logsumexp(1), logits.logsumexp(0)
    return tile, by_row[i : i + height], by_column[j : j + width], i, j, n


tile_gradient = Exercise(
    name="tile_gradient",
    task="the gradient of the whole loss to the logits of one tile, [r, c]",
    reference=_tile_gradient,
    cases=_one_tile,
    mistakes={
        "the tile's diagonal": Mistake(
            _own_diagonal,
            "take the diagonal of the tile for the pairs. Row first_row + i and column "
            "first_column + j are a pair if these two numbers are equal.",
        ),
        "rows only": Mistake(
            _rows_only,
            "give the drawings' half alone. Each logit stands in the softmax of its row "
            "and in that of its column; the loss is the mean of both.",
        ),
        "mean over the tile": Mistake(
            _by_tile,
            "divide by the rows of the tile. The loss is a mean over all n rows.",
        ),
        "softmax of the tile": Mistake(
            _softmax_of_tile,
            "take the softmax within the tile. Its sums go over the whole batch: "
            "by_row and by_column are their logarithms.",
        ),
    },
)


# Memory -----------------------------------------------------------------------------
class Peak(TorchDispatchMode):
    """`with Peak() as peak: …`, then `peak.most`: the most bytes that tensors made
    inside have held at one moment. It watches every operation of PyTorch, counts the
    storages that it makes, and takes them off when they are freed."""

    now = most = 0

    def __torch_dispatch__(self, call, types, args=(), kwargs=None):
        made = call(*args, **kwargs or {})
        old, new = (
            {
                x.untyped_storage()._cdata: x.untyped_storage()
                for x in tree_leaves(tensors)
                if isinstance(x, torch.Tensor)
            }
            for tensors in ((args, kwargs), made)
        )
        for key in new.keys() - old.keys():  # no view of an argument
            self._count(new[key].nbytes())
            weakref.finalize(new[key], self._count, -new[key].nbytes())
        return made

    def _count(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)
