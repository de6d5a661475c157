"""Exercises of the notebook on a frozen projection: the modality token that looks at its
tokens, rows that a first step may see, and which docks are broken."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: fusion by attention -------------------------------------------------
def _weights(x: torch.Tensor, mask: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    scores = x @ m / x.shape[-1] ** 0.5
    return scores.masked_fill(~mask, -torch.inf).softmax(1)


def _context(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    return (weights[:, :, None] * x).sum(1, keepdim=True)


def _attended(x: torch.Tensor, mask: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    """[n, t, d], bool [n, t], [d] -> [n, t, d]"""
    return x + _context(_weights(x, mask, m), x)


def _sentences(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows of different lengths; what stands at padding is large."""
    n, t, d = (random_size(generator, low, low + 3) for low in (3, 4, 3))
    lengths = torch.randint(1, t, (n,), generator=generator)  # the last place is padding
    mask = torch.arange(t) < lengths[:, None]
    x = torch.randn(n, t, d, generator=generator)
    x = torch.where(mask[:, :, None], x, 3 + x)
    return x, mask, random_rows(generator, 1, d)[0] * 2


def _zeroed(x: torch.Tensor, mask: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
    return x + _context((x @ m / x.shape[-1] ** 0.5).softmax(1) * mask, x)


attended = Exercise(
    name="attended",
    task="x plus the mean of a row's real tokens, weighed by the softmax of m·x / √d",
    reference=_attended,
    cases=_sentences,
    mistakes={
        "padding seen": Mistake(
            lambda x, mask, m: x + _context((x @ m / x.shape[-1] ** 0.5).softmax(1), x),
            "let padding take part: its scores must be minus infinity before the softmax.",
        ),
        "mask turned round": Mistake(
            lambda x, mask, m: x + _context(
                (x @ m / x.shape[-1] ** 0.5).masked_fill(mask, -torch.inf).softmax(1), x),
            "take the real tokens out and keep padding: the mask is True where a token is real.",
        ),
        "zeroed afterwards": Mistake(
            _zeroed,
            "set the weights of padding to 0 after the softmax. The others then sum to less "
            "than 1: take padding out before.",
        ),
        "over the batch": Mistake(
            lambda x, mask, m: x + _context(
                (x @ m / x.shape[-1] ** 0.5).masked_fill(~mask, -1e9).softmax(0) * mask, x),
            "take the softmax over the rows of the batch. Each row attends over its own "
            "tokens, dimension 1.",
        ),
        "not summed": Mistake(
            lambda x, mask, m: x + _weights(x, mask, m)[:, :, None] * x,
            "add to each token its own share. What is added is the sum over the row, the same "
            "for all its tokens.",
        ),
        "summed and divided": Mistake(
            lambda x, mask, m: x + _context(_weights(x, mask, m), x) / x.shape[1],
            "take a mean of the weighed tokens. The weights sum to 1 already: take the sum.",
        ),
        "padding left out": Mistake(
            lambda x, mask, m: x + _context(_weights(x, mask, m), x) * mask[:, :, None],
            "add nothing at padding. The same mean is added at every place; the mask says "
            "only what is looked at.",
        ),
        "padding at nought": Mistake(
            lambda x, mask, m: _attended(x, mask, m) * mask[:, :, None],
            "give 0 at padding. Here x plus the row's mean is asked for there, too.",
        ),
        "by d": Mistake(
            lambda x, mask, m: x + _context(
                (x @ m / x.shape[-1]).masked_fill(~mask, -torch.inf).softmax(1), x),
            "divide by d and not by its root.",
        ),
        "not scaled": Mistake(
            lambda x, mask, m: x + _context(
                (x @ m).masked_fill(~mask, -torch.inf).softmax(1), x),
            "leave out the division by √d.",
        ),
        "without x": Mistake(
            lambda x, mask, m: _context(_weights(x, mask, m), x).expand_as(x),
            "give what was attended alone. It is added to each token.",
        ),
    },
)


# Exercise 2, transfer: a colleague's split ----------------------------------------------
def _free(group: torch.Tensor, *taken: torch.Tensor) -> torch.Tensor:
    rows = torch.stack(taken).any(0)
    return ~torch.isin(group, group[rows])


def _allowed(group: torch.Tensor, dock: torch.Tensor, test: torch.Tensor) -> torch.Tensor:
    """[n], bool [n], bool [n] -> bool [n], the rows that step 1 may use"""
    return _free(group, dock, test)


def _things(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Things of two or three rows, of which one may dock or be measured."""
    n = 3 * random_size(generator, 6, 9)
    group = torch.arange(n) // 3
    group = group[torch.randperm(n, generator=generator)]
    use = torch.randperm(n // 3, generator=generator)
    here = torch.rand(n, generator=generator) < 0.4
    first = torch.tensor([group[k] not in group[:k] for k in range(n)])
    n_dock, n_test = (random_size(generator, 1, 3) for _ in range(2))
    dock, test = (torch.isin(group, use[a:b]) & (first | here)
                  for a, b in ((0, n_dock), (n_dock, n_dock + n_test)))
    return group, dock, test


allowed = Exercise(
    name="allowed",
    task="True for the rows of things of which no row docks and none is measured",
    reference=_allowed,
    cases=_things,
    mistakes={
        "rows alone": Mistake(
            lambda group, dock, test: ~dock & ~test,
            "leave out the rows themselves and keep others of the same thing: the projection "
            "then knows the thing that it is asked for.",
        ),
        "docking may be known": Mistake(
            lambda group, dock, test: _free(group, test) & ~dock,
            "keep things that dock. They then have all three modalities in training, and "
            "'never compared' is no longer true.",
        ),
        "test may be known": Mistake(
            lambda group, dock, test: _free(group, dock) & ~test,
            "keep things that are measured: one of their rows is trained on.",
        ),
        "things that dock forgotten": Mistake(
            lambda group, dock, test: _free(group, test),
            "look at what is measured alone. Things that dock must not be seen either.",
        ),
        "things measured forgotten": Mistake(
            lambda group, dock, test: _free(group, dock),
            "look at what docks alone. Things that are measured must not be seen either.",
        ),
        "places for things": Mistake(
            lambda group, dock, test: ~torch.isin(group, (dock | test).nonzero()[:, 0]),
            "compare things with places in the table. `group[dock | test]` are the things.",
        ),
        "both at once": Mistake(
            lambda group, dock, test: ~torch.isin(group, group[dock & test]),
            "take out only rows that dock and are measured. One of the two is enough.",
        ),
        "turned round": Mistake(
            lambda group, dock, test: ~_free(group, dock, test),
            "mark the rows that must not be used.",
        ),
    },
)


# Exercise 3, judge: which docks are broken ----------------------------------------------
def _verdicts(change: torch.Tensor, found: torch.Tensor, gallery: int,
              tolerance: float = 0.0, least: float = 20.0) -> torch.Tensor:
    empty = torch.where(found <= least / gallery, 1.0, 0.0)
    return torch.where(change > tolerance, 2.0, empty)


def _broken(change: torch.Tensor, found: torch.Tensor, gallery: int) -> torch.Tensor:
    """[n], [n], a number -> 2 not frozen, 1 nothing docked, 0 sound"""
    return _verdicts(change, found, gallery)


def _runs(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Every case once, then some at random."""
    n, gallery = random_size(generator, 12, 18), 40 * random_size(generator, 3, 8)
    change = torch.rand(n, generator=generator)
    change = torch.where(change < 0.5, 0.0, change * 1e-2)
    found = 0.9 * torch.rand(n, generator=generator)
    change[:6] = torch.tensor([0.0, 1e-9, 0.0, 0.0, 1e-3, 0.0])
    found[:6] = torch.tensor([9, 45, 15, 45, 5, 20.0]) / gallery
    return change, found, gallery


def _swapped(change, found, gallery):
    empty = found <= 20.0 / gallery
    return torch.where(empty, 1.0, torch.where(change > 0, 2.0, 0.0))


broken = Exercise(
    name="broken",
    task="for each run 2 where an old embedding moved, 1 where nothing docked, else 0",
    reference=_broken,
    cases=_runs,
    mistakes={
        "nearly frozen": Mistake(
            lambda change, found, gallery: _verdicts(change, found, gallery, 1e-6),
            "allow a small change. What is frozen does not change by a bit: a change of a "
            "billionth says that something was trained, or had dropout.",
        ),
        "nothing docked first": Mistake(
            _swapped,
            "look at hit@10 first. A run whose old embeddings moved is broken whatever it "
            "finds.",
        ),
        "chance of hit@1": Mistake(
            lambda change, found, gallery: _verdicts(change, found, gallery, least=2.0),
            "take 1 / gallery for chance. Ten of the rows count at hit@10.",
        ),
        "below": Mistake(
            lambda change, found, gallery: torch.where(change > 0, 2.0, torch.where(
                found < 20.0 / gallery, 1.0, 0.0)),
            "let a run pass that finds exactly twice what chance finds. *At most* is asked.",
        ),
        "added up": Mistake(
            lambda change, found, gallery: 2.0 * (change > 0) + (found <= 20.0 / gallery),
            "give 3 where both are wrong. A run that is not frozen gets 2, whatever it finds.",
        ),
        "not twice": Mistake(
            lambda change, found, gallery: _verdicts(change, found, gallery, least=10.0),
            "compare with chance itself. Half of the runs that learned nothing lie above "
            "it; here twice the chance is asked for.",
        ),
    },
)
