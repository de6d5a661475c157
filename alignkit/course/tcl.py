"""Exercises of the notebook on TCL: the slow copy, the loss within, the parts."""

import torch
from torch.nn import functional as F

from .exercises import Exercise, Mistake, random_rows, random_size, unit_rows

TEMPERATURES = (0.07, 0.2, 0.5)


# Exercise 1: the slow copy ------------------------------------------------------------
def _follow(slow, fast, decay):
    """decay of the old, the rest of the new."""
    return decay * slow + (1 - decay) * fast


def _follow_case(generator):
    n, d = random_size(generator, 2, 6), random_size(generator, 2, 6)
    decay = (0.6, 0.9, 0.99)[random_size(generator, 0, 3)]
    return random_rows(generator, n, d), random_rows(generator, n, d), decay


follow = Exercise(
    name="follow",
    task="the slow weights one step on: decay · slow + (1 − decay) · fast",
    reference=_follow,
    cases=_follow_case,
    mistakes={
        "exchanged": Mistake(
            lambda slow, fast, decay: _follow(fast, slow, decay),
            "give the fast weights the share of the slow ones. With a decay near one "
            "the copy would follow at once: the decay is what it keeps of itself.",
        ),
        "added": Mistake(
            lambda slow, fast, decay: slow + (1 - decay) * fast,
            "add without taking anything away. The weights would grow with every "
            "step: the two shares sum to one.",
        ),
        "copied": Mistake(
            lambda slow, fast, decay: fast.clone(),
            "take the fast weights as they are. That is a decay of zero.",
        ),
    },
)


# Exercise 2: within a modality --------------------------------------------------------
def _within(rows, keys, queue, tau):
    """Cross entropy over the batch's keys and the queue, own key right."""
    logits = rows @ torch.cat([keys, queue]).T / tau
    return F.cross_entropy(logits, torch.arange(len(rows)))


def _within_case(generator):
    n, d = random_size(generator, 3, 8), random_size(generator, 3, 8)
    rows, keys = unit_rows(generator, n, d), unit_rows(generator, n, d)
    queue = unit_rows(generator, random_size(generator, 2, 9), d)
    return rows, keys, queue, TEMPERATURES[random_size(generator, 0, 3)]


within = Exercise(
    name="within",
    task="cross entropy of rows against [keys, queue] / tau; row i's key i is right",
    reference=_within,
    cases=_within_case,
    mistakes={
        "no queue": Mistake(
            lambda rows, keys, queue, tau: _within(rows, keys, queue[:0], tau),
            "leave the queue out. Its keys are negatives for every row.",
        ),
        "queue first": Mistake(
            lambda rows, keys, queue, tau: F.cross_entropy(
                rows @ torch.cat([queue, keys]).T / tau, torch.arange(len(rows))
            ),
            "put the queue first but count the right answers from the front. The "
            "batch's own keys come first, or the answers move.",
        ),
        "against itself": Mistake(
            lambda rows, keys, queue, tau: _within(rows, rows, queue, tau),
            "compare the rows with themselves. A row is its own nearest: the right "
            "answer is the slow copy's key of the other view.",
        ),
        "multiplied": Mistake(
            lambda rows, keys, queue, tau: _within(rows, keys, queue, 1 / tau),
            "multiply by the temperature. Divide: a small one sharpens.",
        ),
        "both ways": Mistake(
            lambda rows, keys, queue, tau: (
                _within(rows, keys, queue, tau) + _within(keys, rows, queue, tau)
            )
            / 2,
            "ask the keys as well. They carry no gradient: only the rows ask.",
        ),
    },
)


# Exercise 3: against the parts --------------------------------------------------------
def _parts_logits(rows, parts, tau):
    """[n, n, k]: row i against part k of row j."""
    return torch.einsum("nd,mkd->nmk", rows, parts) / tau


def _own_against(logits, real, denominator):
    """Mean over rows of the mean over real own parts of log denominator − own."""
    own = logits.diagonal().T
    each = (denominator.log() - own) * real
    return (each.sum(1) / real.sum(1)).mean()


def _masses(rows, parts, real, tau):
    """logits, and Σ of e^logit over the real parts of each row: [n, n]."""
    logits = _parts_logits(rows, parts, tau)
    return logits, (logits.exp() * real).sum(2)


def _against_parts(rows, parts, real, tau):
    logits, mass = _masses(rows, parts, real, tau)
    others = mass.sum(1) - mass.diagonal()
    return _own_against(logits, real, logits.diagonal().T.exp() + others[:, None])


def _siblings_too(rows, parts, real, tau):
    logits, mass = _masses(rows, parts, real, tau)
    return _own_against(logits, real, mass.sum(1, keepdim=True).expand_as(real))


def _padding_too(rows, parts, real, tau):
    return _against_parts(rows, parts, torch.ones_like(real), tau)


def _without_own(rows, parts, real, tau):
    logits, mass = _masses(rows, parts, real, tau)
    others = mass.sum(1) - mass.diagonal()
    return _own_against(logits, real, others[:, None].expand_as(real))


def _long_rows_weigh_more(rows, parts, real, tau):
    logits, mass = _masses(rows, parts, real, tau)
    others = mass.sum(1) - mass.diagonal()
    own = logits.diagonal().T
    each = ((own.exp() + others[:, None]).log() - own) * real
    return each.sum() / real.sum()


def _parts_case(generator):
    n, d = random_size(generator, 3, 7), random_size(generator, 3, 7)
    k = random_size(generator, 3, 6)
    parts = F.normalize(random_rows(generator, n * k, d).view(n, k, d), dim=2)
    real = torch.arange(k) < torch.randint(2, k + 1, (n, 1), generator=generator)
    real[0] = torch.arange(k) < 2  # one short row, so that padding matters
    tau = TEMPERATURES[1 + random_size(generator, 0, 2)]
    return unit_rows(generator, n, d), parts, real, tau


against_parts = Exercise(
    name="against_parts",
    task="each row against each real part of its own and all real parts of others",
    reference=_against_parts,
    cases=_parts_case,
    mistakes={
        "siblings": Mistake(
            _siblings_too,
            "put all own parts into one denominator. Parts of one picture do not "
            "compete: only those of other rows are negatives.",
        ),
        "padding": Mistake(
            _padding_too,
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
    },
)
