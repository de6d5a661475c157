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


# Exercise 1, build: two running sums are one ----------------------------------------
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


# Exercise 2, transfer: where a process's own names stand ----------------------------
def _own_loss(own, everyone, rank: int):
    """Mean cross entropy of own rows [m, d] with the names of all [n, d], at scale 20."""
    return _loss_at(own, everyone, rank * len(own))


def _loss_at(own, everyone, first: int):
    """The names of `own` stand from row `first` on; past the end, from the top again."""
    right = (first + torch.arange(len(own))) % len(everyone)
    return F.cross_entropy(20 * own @ everyone.T, right)


def _not_shared(own, everyone, rank):
    return _loss_at(own, everyone[rank * len(own) : (rank + 1) * len(own)], 0)


def _processes(generator):
    m, d = random_size(generator, 3, 6), random_size(generator, 3, 7)
    processes = random_size(generator, 2, 5)
    everyone = F.normalize(random_rows(generator, processes * m, d))
    rank = random_size(generator, 0, processes)
    own = everyone[rank * m : (rank + 1) * m] + 0.7 * random_rows(generator, m, d)
    return F.normalize(own), everyone, rank


own_loss = Exercise(
    name="own_loss",
    task="cross entropy of this process's drawings with the names of all processes",
    reference=_own_loss,
    cases=_processes,
    mistakes={
        "as on process 0": Mistake(
            lambda own, everyone, rank: _loss_at(own, everyone, 0),
            "take the first m names for the right ones on every process. They belong to "
            "process 0; before those of process `rank` stand rank times m others.",
        ),
        "rank alone": Mistake(
            lambda own, everyone, rank: _loss_at(own, everyone, rank),
            "move on by `rank` names. Each process before this one has brought m names, "
            "not one.",
        ),
        "counted from 1": Mistake(
            lambda own, everyone, rank: _loss_at(own, everyone, (rank + 1) * len(own)),
            "count the processes from 1. The first one's rank is 0, and its names stand "
            "first.",
        ),
        "own names alone": Mistake(
            _not_shared,
            "compare with this process's own names alone. Then nothing is shared: P "
            "processes train with P small batches.",
        ),
        "sum": Mistake(
            lambda own, everyone, rank: _own_loss(own, everyone, rank) * len(own),
            "take the sum over the rows. Gradients are averaged over the processes, so "
            "each must give the mean over its own rows.",
        ),
    },
)


# Exercise 3, judge: which comparison is about the negatives --------------------------
def _same(x: torch.Tensor) -> torch.Tensor:
    return x[:, 0] == x[:, 1]


def _about_negatives(rows, steps, together, rates):
    """[m, 2] each -> float [m]: the arms differ in `together` and in nothing else."""
    return (_same(rows) & _same(steps) & _same(rates) & ~_same(together)).float()


def _equal_passes(rows, steps, together, rates):
    return (_same(rows * steps) & _same(rates) & ~_same(together)).float()


def _comparisons(generator):
    """Five designs, and some of them again: rows, steps, rows in a softmax, rates of both
    arms; sizes and sides are drawn."""
    designs = torch.tensor(
        [  # rows     steps    together rates
            [[8, 8], [1, 1], [8, 1], [4, 4]],  # the negatives alone
            [[8, 1], [1, 8], [8, 1], [4, 4]],  # as many rows seen
            [[8, 1], [1, 1], [8, 1], [4, 4]],  # as many steps
            [[8, 8], [1, 1], [8, 1], [4, 1]],  # one arm was not tuned
            [[8, 8], [1, 1], [8, 8], [4, 4]],  # twice the same
        ]
    )
    again = torch.randint(5, (random_size(generator, 0, 4),), generator=generator)
    chosen = torch.cat([torch.randperm(5, generator=generator), again])
    found = designs[chosen]
    turned = torch.rand(len(found), generator=generator) < 0.5
    found = torch.where(turned[:, None, None], found.flip(2), found)
    rows, steps, together, rates = found.unbind(1)
    small = 2 ** torch.randint(4, 7, (len(found), 1), generator=generator)
    return rows * small, steps * 25, together * small, rates


about_negatives = Exercise(
    name="about_negatives",
    task="float [m]: 1 where the arms differ in the rows of a softmax and nothing else",
    reference=_about_negatives,
    cases=_comparisons,
    mistakes={
        "equal passes": Mistake(
            _equal_passes,
            "ask only that both arms see as many rows. In fewer, larger steps they are "
            "used in another way: rows and steps must each be equal.",
        ),
        "rows forgotten": Mistake(
            lambda rows, steps, together, rates: _about_negatives(
                steps, steps, together, rates
            ),
            "let the arms have different rows in a step. After as many steps one has "
            "seen more data, and that alone may be its lead.",
        ),
        "rates forgotten": Mistake(
            lambda rows, steps, together, rates: _about_negatives(
                rows, steps, together, steps
            ),
            "forget the learning rates. Who may choose from four has an advantage over "
            "who has to take the one.",
        ),
        "nothing differs": Mistake(
            lambda rows, steps, together, rates: (
                _same(rows) & _same(steps) & _same(rates)
            ).float(),
            "let pass two arms that are the same. A comparison of the negatives needs a "
            "difference in the rows of a softmax.",
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
