"""Exercises of the notebook on TCL: the parts without a loop, a queue, two gains."""

import torch
from torch import Tensor
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size, unit_rows

TEMPERATURES = (0.2, 0.5)


# Exercise 1, build: against the parts -------------------------------------------------
def _masses(rows, parts, real, tau) -> tuple[Tensor, Tensor]:
    """Logits of own parts [n, k], and Σ e^logit over the real parts of each row [n, n]."""
    logits = torch.einsum("nd,mkd->nmk", rows, parts) / tau
    return logits.diagonal().T, (logits.exp() * real).sum(2)


def _strangers(mass: Tensor, items: Tensor) -> Tensor:
    """What the parts of other items weigh, [n, 1]."""
    return (mass * (items[:, None] != items)).sum(1, keepdim=True)


def _by_row(each: Tensor, real: Tensor) -> Tensor:
    return ((each * real).sum(1) / real.sum(1)).mean()


def _against_parts(rows, parts, real, items, tau):
    own, mass = _masses(rows, parts, real, tau)
    return _by_row((own.exp() + _strangers(mass, items)).log() - own, real)


def _siblings_too(rows, parts, real, items, tau):
    own, mass = _masses(rows, parts, real, tau)
    all_own = mass.diagonal()[:, None] + _strangers(mass, items)
    return _by_row(all_own.log() - own, real)


def _without_own(rows, parts, real, items, tau):
    own, mass = _masses(rows, parts, real, tau)
    return _by_row(_strangers(mass, items).log() - own, real)


def _long_rows_weigh_more(rows, parts, real, items, tau):
    own, mass = _masses(rows, parts, real, tau)
    each = (own.exp() + _strangers(mass, items)).log() - own
    return (each * real).sum() / real.sum()


def _parts_case(generator):
    n, d = random_size(generator, 4, 8), random_size(generator, 3, 7)
    k = random_size(generator, 3, 6)
    parts = F.normalize(random_rows(generator, n * k, d).view(n, k, d), dim=2)
    real = torch.arange(k) < torch.randint(2, k + 1, (n, 1), generator=generator)
    real[0] = torch.arange(k) < 2  # one short row, so that padding matters
    items = torch.arange(n)
    items[1] = 0  # one pair of near-duplicates
    tau = TEMPERATURES[random_size(generator, 0, 2)]
    return unit_rows(generator, n, d), parts, real, items, tau


against_parts = Exercise(
    name="against_parts",
    task="each row against each of its own real parts and all real parts of other items",
    reference=_against_parts,
    cases=_parts_case,
    mistakes={
        "copies as strangers": Mistake(
            lambda rows, parts, real, items, tau: _against_parts(
                rows, parts, real, torch.arange(len(rows)), tau),
            "count the parts of a row's near-duplicates as wrong answers. Rows of one "
            "item are no strangers: compare the items, not the places.",
        ),
        "siblings": Mistake(
            _siblings_too,
            "put all own parts into one denominator. Parts of one picture do not "
            "compete: only those of other items are negatives.",
        ),
        "padding": Mistake(
            lambda rows, parts, real, items, tau: _against_parts(
                rows, parts, torch.ones_like(real), items, tau),
            "count padded parts. They are neither right answers nor negatives.",
        ),
        "no right answer below": Mistake(
            _without_own,
            "leave the own part out of its denominator. That is no probability, and "
            "the loss can fall without end.",
        ),
        "long rows weigh more": Mistake(
            _long_rows_weigh_more,
            "average over all parts at once. First over the parts of a row, then over "
            "rows, or long captions weigh more.",
        ),
        "multiplied": Mistake(
            lambda rows, parts, real, items, tau: _against_parts(
                rows, parts, real, items, 1 / tau),
            "multiply by the temperature. Cosines are divided by it.",
        ),
    },
)


# Exercise 2, transfer: the keys come too early ----------------------------------------
def _loss(rows, columns, tau):
    return F.cross_entropy(rows @ columns.T / tau, torch.arange(len(rows)))


def _pushed(keys, queue):
    return torch.cat([keys, queue])[:len(queue)]


def _step(rows, keys, queue, tau):
    return _loss(rows, torch.cat([keys, queue]), tau), _pushed(keys, queue)


def _too_early(rows, keys, queue, tau):
    return _step(rows, keys, _pushed(keys, queue), tau)[0], _pushed(keys, queue)


def _step_case(generator):
    n, d = random_size(generator, 3, 7), random_size(generator, 3, 8)
    rows, keys = unit_rows(generator, n, d), unit_rows(generator, n, d)
    queue = unit_rows(generator, n + random_size(generator, 1, 6), d)
    return rows, keys, queue, TEMPERATURES[random_size(generator, 0, 2)]


step = Exercise(
    name="step",
    task="the loss against [keys, old queue] / tau, and the new queue, newest keys first",
    reference=_step,
    cases=_step_case,
    mistakes={
        "too early": Mistake(
            _too_early,
            "still put the keys in before the loss. Each then stands among the columns "
            "twice; the loss stays above ln 2, even if you call both of them right.",
        ),
        "queue stands still": Mistake(
            lambda rows, keys, queue, tau: (_step(rows, keys, queue, tau)[0], queue),
            "give the queue back as it came. The keys go in, only later: after the loss.",
        ),
        "at the end": Mistake(
            lambda rows, keys, queue, tau: (
                _step(rows, keys, queue, tau)[0],
                torch.cat([queue, keys])[-len(queue):]),
            "put the new keys at the end. The newest come first here.",
        ),
        "without the queue": Mistake(
            lambda rows, keys, queue, tau: (_loss(rows, keys, tau), _pushed(keys, queue)),
            "leave the queue out of the loss. Its keys are negatives for every row.",
        ),
        "queue first": Mistake(
            lambda rows, keys, queue, tau: (
                _loss(rows, torch.cat([queue, keys]), tau), _pushed(keys, queue)),
            "put the queue before the batch's keys and count the right answers from the "
            "front. The batch's own keys come first.",
        ),
    },
)


# Exercise 3, judge: more with noise? --------------------------------------------------
def _low(x: Tensor, t: float, ddof: int = 1) -> Tensor:
    """Lower end of the interval of each column's mean; x [seeds, m]."""
    return x.mean(0) - t * x.std(0, correction=ddof) / len(x) ** 0.5


def _graded(low: Tensor, margin: float) -> Tensor:
    return (low > margin).float() + (low > 0).float()


def _more(noisy, clean, t, margin):
    return _graded(_low(noisy - clean, t), margin)


def _two_verdicts(noisy, clean, t, margin):
    return 2 * ((_low(noisy, t) > margin) & (_low(clean, t) <= margin)).float()


def _not_paired(noisy, clean, t, margin):
    spread = ((noisy.var(0) + clean.var(0)) / len(noisy)).sqrt()
    return _graded(noisy.mean(0) - clean.mean(0) - t * spread, margin)


# Of gains with few wrong captions and of what is added to them: mean and sd. In order:
# holds, some gain, nothing; one holds alone, but not the difference; both hold, and the
# difference; chance common to both; between n − 1 and n; one seed's spread is too wide.
KINDS = torch.tensor([
    [.03, .02, .06, .02], [.03, .02, .018, .012], [.03, .02, .01, .03],
    [.03, .03, .015, .032], [.05, .02, .05, .02], [.05, .08, .04, .01],
    [.03, .02, .0685, .06], [.01, .01, .06, .03]])


def _gains_case(generator):
    more = random_size(generator, 1, 5)
    drawn = torch.rand(more, 4, generator=generator) * 0.04 + 0.01
    kinds = torch.cat([KINDS, drawn])[torch.randperm(8 + more, generator=generator)]
    # Two orthogonal columns of mean 0 and sd 1 for each figure.
    basis = torch.linalg.qr(torch.cat([torch.ones(len(kinds), 8, 1), torch.randn(
        len(kinds), 8, 2, generator=generator)], dim=2)).Q[:, :, 1:] * 7**0.5
    clean = kinds[:, 0] + kinds[:, 1] * basis[:, :, 0].T
    return clean + kinds[:, 2] + kinds[:, 3] * basis[:, :, 1].T, clean, 2.365, 0.02


more_with_noise = Exercise(
    name="more_with_noise",
    task="is the gain larger with wrong captions? 2 holds, 1 some gain, 0 neither; [m]",
    reference=_more,
    cases=_gains_case,
    mistakes={
        "two verdicts": Mistake(
            _two_verdicts,
            "compare two verdicts: the one holds and the other does not. Both gains may "
            "still be equal. Test their difference.",
        ),
        "not paired": Mistake(
            _not_paired,
            "add up the spreads of both gains, as if the seeds were different ones. They "
            "are paired: subtract seed by seed first.",
        ),
        "by the mean": Mistake(
            lambda noisy, clean, t, margin: _graded((noisy - clean).mean(0), margin),
            "judge by the mean. The whole interval must lie above.",
        ),
        "with noise alone": Mistake(
            lambda noisy, clean, t, margin: _graded(_low(noisy, t), margin),
            "judge the gain with wrong captions alone. Asked is whether it is LARGER than "
            "the one without.",
        ),
        "divided by n": Mistake(
            lambda noisy, clean, t, margin: _graded(
                _low(noisy - clean, t, ddof=0), margin),
            "divide the squares by n. From eight seeds the standard deviation is taken "
            "with n − 1, or the interval is too narrow.",
        ),
        "no root of n": Mistake(
            lambda noisy, clean, t, margin: _graded(
                _low(noisy - clean, t * len(noisy) ** 0.5), margin),
            "take the spread of single seeds. The MEAN of n seeds spreads by 1 / √n of it.",
        ),
    },
)
