"""Exercises of the notebook on ALPRO: soft labels that may be dropped, a region in the wrong
place of a fused sequence, and what a table of gains says of alignment."""

import torch
from torch.nn.functional import pad

from .exercises import Exercise, Mistake, random_rows, random_size, unit


# Exercise 1, build: soft labels of crops -----------------------------------------------
def _labels(crops, told, tau, least):
    """Unit rows of crops [n, d] and of entities in templates [T, M, d], τ, threshold ->
    labels [n, M], rows of zeros where a label is dropped."""
    q = (crops @ told.mean(dim=0).T / tau).softmax(dim=1)
    return q * (q.max(dim=1).values >= least)[:, None]


def _less(crops, told, tau, least):
    q = _labels(crops, told, tau, 0)
    return q * (q.max(dim=1).values > least)[:, None]


def _logits_compared(crops, told, tau, least):
    logits = crops @ told.mean(dim=0).T / tau
    return logits.softmax(dim=1) * (logits.max(dim=1).values >= least)[:, None]


def _unit_again(crops, told, tau, least):
    q = (crops @ unit(told.mean(dim=0)).T / tau).softmax(dim=1)
    return q * (q.max(dim=1).values >= least)[:, None]


def _number_compared(crops, told, tau, least):
    q = (crops @ told.mean(dim=0).T / tau).softmax(dim=1)
    return q * (q.argmax(dim=1) >= least)[:, None]


def _parts_dropped(crops, told, tau, least):
    q = (crops @ told.mean(dim=0).T / tau).softmax(dim=1)
    return q * (q >= least)


def _over_crops(crops, told, tau, least):
    q = (crops @ told.mean(dim=0).T / tau).softmax(dim=0)
    return q * (q.max(dim=1).values >= least)[:, None]


def _mean_of_answers(crops, told, tau, least):
    q = torch.stack([(crops @ p.T / tau).softmax(dim=1) for p in told]).mean(dim=0)
    return q * (q.max(dim=1).values >= least)[:, None]


def _seen(g):
    """Crops near an entity, or near none, so that some are dropped and some are not. The last
    lies off all entities, so that its label is 1 / 4 each: in half of the cases the threshold."""
    n, m, d = random_size(g, 9, 13), 4, 6
    middle = pad(random_rows(g, m, d - 1), (0, 1))
    told = unit(middle + pad(0.8 * torch.randn(3, m, d - 1, generator=g), (0, 1)))
    near = torch.rand(n, 1, generator=g)
    crops = unit(near * middle[torch.arange(n) % m] + (1 - near) * random_rows(g, n, d))
    crops[-1] = torch.eye(d)[-1]
    return crops, told, 0.3, 0.25 * random_size(g, 1, 3)


labelled = Exercise(
    name="labelled",
    task="labels [n, M]: softmax of crop · mean prompt / tau; a row of zeros where its largest "
         "is below the threshold",
    reference=_labels,
    cases=_seen,
    mistakes={
        "unit again": Mistake(
            _unit_again,
            "make the mean of the templates unit again. It stays as it is: a word whose "
            "templates disagree has a short prompt.",
        ),
        "the number of the entity": Mistake(
            _number_compared,
            "compare the number of the entity with the threshold, as the official code does. "
            "Compare its probability.",
        ),
        "entries dropped": Mistake(
            _parts_dropped,
            "drop single entries. A label is kept whole or dropped whole, by its largest.",
        ),
        "none dropped": Mistake(
            lambda crops, told, tau, least: _labels(crops, told, tau, 0),
            "keep every label. One whose largest entry is below the threshold is a row of zeros.",
        ),
        "equal dropped": Mistake(
            _less,
            "drop a label whose largest entry equals the threshold. It is kept.",
        ),
        "logits compared": Mistake(
            _logits_compared,
            "compare products divided by tau with the threshold. Compare probabilities, after "
            "the softmax.",
        ),
        "over crops": Mistake(
            _over_crops,
            "take the softmax over the crops. Each crop shares one among the entities.",
        ),
        "mean of answers": Mistake(
            _mean_of_answers,
            "average the answers of the templates. The mean is of their rows, before the "
            "softmax.",
        ),
        "times tau": Mistake(
            lambda crops, told, tau, least: _labels(crops, told, 1 / tau, least),
            "multiply by tau. Cosines are divided by it: a small tau makes labels sure.",
        ),
    },
)


# Exercise 2, transfer: find the bug ----------------------------------------------------
def _regions(fused, inside, t):
    """Fused [n, t + 1 + k, d], bool [n, k], words t -> mean over the crop's patches [n, d]."""
    patches = fused[:, t + 1:]
    return (patches * inside[:, :, None]).sum(dim=1) / inside.sum(dim=1, keepdim=True)


def _begin(fused, inside, at):
    """As if the patches began at this place."""
    return _regions(fused[:, at:at + inside.shape[1]], inside, -1)


def _as_given(fused, inside, t):
    return (fused[:, t:t + inside.shape[1]] * inside[:, :, None]).mean(dim=1)


def _all_patches(fused, inside, t):
    return (fused[:, t + 1:] * inside[:, :, None]).mean(dim=1)


def _outside(fused, inside, t):
    return _regions(fused, ~inside, t)


def _read(g):
    n, t, k, d = random_size(g, 2, 5), random_size(g, 2, 6), 9, 3
    inside = torch.rand(n, k, generator=g) < 0.4
    inside[:, 0], inside[:, -1] = True, False
    return torch.randn(n, t + 1 + k, d, generator=g), inside, t


regions = Exercise(
    name="regions",
    task="mean over the patches of the crop, from [t words; class token; k patches]",
    reference=_regions,
    cases=_read,
    mistakes={
        "the class token": Mistake(
            lambda fused, inside, t: _begin(fused, inside, t),
            "begin at the picture's class token, so that every patch is its left neighbour. "
            "Patches begin one place later.",
        ),
        "the words": Mistake(
            lambda fused, inside, t: _begin(fused, inside, 0),
            "begin at the first word. The t words and the class token come before the patches.",
        ),
        "divided by all": Mistake(
            _all_patches,
            "divide by the number of all patches. Divide by that of the crop.",
        ),
        "as given": Mistake(
            _as_given,
            "have mended nothing yet. Ask at which place the first patch stands, and how many "
            "patches the mean is of.",
        ),
        "not divided": Mistake(
            lambda fused, inside, t: (fused[:, t + 1:] * inside[:, :, None]).sum(dim=1),
            "return the sum. Divide by the number of patches of the crop.",
        ),
        "outside": Mistake(
            _outside,
            "take what is outside the crop.",
        ),
    },
)


# Exercise 3, judge: what is shown of alignment? ----------------------------------------
def _says(total, alone, start, chance, margin):
    """Intervals [n, 2] of the gain in all and with even wrong pairs, hit@1 of both towers at
    the start [n] -> [n]: 2, 1, 0 or -1."""
    found = (total[:, 0] > margin).float() + (
        (total[:, 0] > margin) & (alone[:, 0] > margin)).float()
    return torch.where(start > 2 * chance, -torch.ones_like(found), found)


def _tables(g):
    """Every kind of table at least once, then some by chance."""
    n = random_size(g, 4, 8)
    low = 0.3 * torch.rand(n, 2, generator=g) - 0.1
    wide = 0.1 * torch.rand(n, 2, generator=g) + 0.02
    start = torch.where(torch.rand(n, generator=g) < 0.3, 0.2, 0.01)
    start[0] = 0.015  # above chance, and not above twice
    total = torch.stack([low[:, 0], low[:, 0] + wide[:, 0]], 1)
    alone = torch.stack([low[:, 1], low[:, 1] + wide[:, 1]], 1)
    known = torch.tensor([  # total, alone, start
        [0.08, 0.12, 0.07, 0.11, 0.01], [0.08, 0.12, 0.01, 0.05, 0.01],
        [0.01, 0.12, 0.07, 0.11, 0.01], [0.08, 0.12, 0.07, 0.11, 0.30],
        [0.03, 0.07, 0.06, 0.09, 0.01], [0.08, 0.12, 0.02, 0.08, 0.01],
        [-0.02, 0.02, -0.02, 0.02, 0.30], [0.08, 0.12, 0.07, 0.11, 0.015]])
    return (torch.cat([known[:, :2], total]), torch.cat([known[:, 2:4], alone]),
            torch.cat([known[:, 4], start]), 0.01, 0.05)


said = Exercise(
    name="said",
    task="2: alignment itself helps; 1: something does; 0: nothing is shown; -1: the towers "
         "knew each other at the start",
    reference=_says,
    cases=_tables,
    mistakes={
        "above zero": Mistake(
            lambda total, alone, start, chance, margin: _says(total, alone, start, chance, 0.0),
            "ask for more than 0. The whole interval must lie above the margin.",
        ),
        "the middle": Mistake(
            lambda total, alone, start, chance, margin: _says(
                total.mean(1, keepdim=True), alone.mean(1, keepdim=True), start, chance,
                margin),
            "look at the middle of the interval. Its lower end must lie above the margin.",
        ),
        "without the start": Mistake(
            lambda total, alone, start, chance, margin: _says(total, alone, 0 * start, chance,
                                                              margin),
            "leave out the start. Towers that know each other have nothing to be aligned: "
            "the condition is absent, so it is -1.",
        ),
        "the upper end": Mistake(
            lambda total, alone, start, chance, margin: _says(
                total.flip(1), alone.flip(1), start, chance, margin),
            "ask for the upper end alone. The whole interval must lie above the margin, so its "
            "lower end must.",
        ),
        "once chance": Mistake(
            lambda total, alone, start, chance, margin: _says(total, alone, start, chance / 2,
                                                              margin),
            "give -1 for every start above chance. The limit is twice chance.",
        ),
        "alone is enough": Mistake(
            lambda total, alone, start, chance, margin: torch.where(
                start > 2 * chance, -1.0, (total[:, 0] > margin).float()
                + (alone[:, 0] > margin).float()),
            "add the two up. Without a gain in all, a gain with even wrong pairs does not say "
            "that the method helps: 0.",
        ),
        "total is enough": Mistake(
            lambda total, alone, start, chance, margin: torch.where(
                start > 2 * chance, -1.0, 2 * (total[:, 0] > margin).float()),
            "credit alignment with what harder wrong pairs may have done: the gain with even "
            "ones must be shown too.",
        ),
    },
)
