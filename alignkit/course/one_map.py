"""Exercises of the notebook that draws one map of six kinds of material."""

import torch

from .exercises import Exercise, Mistake, random_size

FEWEST = 5


# Exercise 1, build: a score that galleries of any size share ------------------------------
def _places(scores, relevant, ties=True):
    """(place of each query's best right answer, 1 is best; does it have one?)"""
    best = scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True)
    above = (scores >= best) if ties else (scores > best)
    return 1 + (above & ~relevant).sum(1), relevant.any(1)


def _tenth(scores: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """[n, m], bool [n, m] -> the share of the queries that ask."""
    place, asks = _places(scores, relevant)
    return (place[asks] <= scores.shape[1] // 10).float().mean()


def _gallery(generator):
    """Scores with ties; some queries have no right answer here, some have several."""
    n, m = random_size(generator, 12, 20), 10 * random_size(generator, 2, 5)
    scores = torch.randint(0, 12, (n, m), generator=generator) / 10
    relevant = torch.rand(n, m, generator=generator) < 2 / m
    relevant[0], relevant[1, 0] = False, True
    scores[1, 0] = 2.0
    relevant[2, :m // 10 + 1], scores[2, :m // 10 + 1] = True, 2.0  # right ones tie
    lifted = scores + 0.6 * relevant * (torch.rand(n, 1, generator=generator) < 0.6)
    return lifted, relevant


nearest_tenth = Exercise(
    name="nearest_tenth",
    task="of the queries with a right answer, the share that has one in the nearest tenth",
    reference=_tenth,
    cases=_gallery,
    mistakes={
        "ties": Mistake(
            lambda scores, relevant: (
                _places(scores, relevant, ties=False)[0][relevant.any(1)]
                <= scores.shape[1] // 10).float().mean(),
            "let the right answer win its ties. A space in which all rows look the same "
            "would find everything: a wrong row with an equal score stands above.",
        ),
        "topk": Mistake(
            lambda scores, relevant: relevant.gather(
                1, scores.topk(scores.shape[1] // 10).indices
            ).any(1)[relevant.any(1)].float().mean(),
            "ask `topk`. Of rows with equal scores it takes whichever it likes: count the "
            "irrelevant rows that score at least as much as the right one.",
        ),
        "from 0": Mistake(
            lambda scores, relevant: (
                _places(scores, relevant)[0][relevant.any(1)] - 1
                <= scores.shape[1] // 10).float().mean(),
            "count places from 0. The best place is 1, so the last that counts is m / 10.",
        ),
        "right above right": Mistake(
            lambda scores, relevant: (
                (scores >= scores.masked_fill(~relevant, -torch.inf).amax(1, keepdim=True))
                .sum(1)[relevant.any(1)] <= scores.shape[1] // 10).float().mean(),
            "let right answers that tie push each other down. Only irrelevant rows stand "
            "above.",
        ),
        "ten": Mistake(
            lambda scores, relevant: (
                _places(scores, relevant)[0][relevant.any(1)] <= 10).float().mean(),
            "take the nearest ten. Of a gallery of twenty that is half of it: take a tenth "
            "of the gallery's rows.",
        ),
        "all queries": Mistake(
            lambda scores, relevant: (
                (_places(scores, relevant)[0] <= scores.shape[1] // 10)
                & relevant.any(1)).float().mean(),
            "divide by all queries. One whose thing the gallery does not have can find "
            "nothing: it does not ask, so it is not counted.",
        ),
        "the gallery asks": Mistake(
            lambda scores, relevant: (
                _places(scores.T, relevant.T)[0][relevant.any(0)]
                <= scores.shape[0] // 10).float().mean(),
            "let the gallery ask. Queries are the rows, and the gallery is the columns.",
        ),
        "every right one": Mistake(
            lambda scores, relevant: (
                ((torch.stack([(scores >= scores[:, j:j + 1]).logical_and(~relevant).sum(1)
                               for j in range(scores.shape[1])], 1)
                  < scores.shape[1] // 10) | ~relevant).all(1)[relevant.any(1)]
            ).float().mean(),
            "want every right answer to be near. One of them is enough.",
        ),
    },
)


# Exercise 2, transfer: a leak ---------------------------------------------------------------
def _first_rows(group: torch.Tensor) -> torch.Tensor:
    """[n]: the first row of each row's group."""
    return (group[:, None] == group).int().argmax(1)


def _deal(group: torch.Tensor, draws: torch.Tensor, kinds: int) -> torch.Tensor:
    """[n] group numbers, [n] draws in [0, 1) -> [n] kinds"""
    return (kinds * draws[_first_rows(group)]).long()


def _groups(generator):
    """Rows of groups that do not lie side by side, numbered as they come."""
    n = random_size(generator, 10, 16)
    group = torch.randint(0, n // 2, (n,), generator=generator)
    group[-1] = group[0]
    return group, torch.rand(n, generator=generator), random_size(generator, 3, 5)


deal = Exercise(
    name="deal",
    task="[n]: the kind of each row, floor(kinds * the draw of its group's first row)",
    reference=_deal,
    cases=_groups,
    mistakes={
        "row by row": Mistake(
            lambda group, draws, kinds: (kinds * draws).long(),
            "deal row by row, as the colleague does: the red heart is seen and the blue "
            "one heard, so two kinds meet in one thing. A group has one draw.",
        ),
        "group's number": Mistake(
            lambda group, draws, kinds: (kinds * draws[group]).long(),
            "take the draw of the row that has the group's number. Each thing is for one "
            "kind then, but the task asks for the draw of the group's first row.",
        ),
        "last row": Mistake(
            lambda group, draws, kinds: (kinds * draws[
                len(group) - 1 - (group[:, None] == group).flip(1).int().argmax(1)]).long(),
            "take the draw of the group's last row. Its first one decides.",
        ),
        "rounded": Mistake(
            lambda group, draws, kinds: (kinds * draws[_first_rows(group)]).round().long(),
            "round. The first kind would get half a share, and there would be one kind too "
            "many: cut off what stands behind the point.",
        ),
    },
)


# Exercise 3, judge: what may be called emergent? ----------------------------------------
def _emergent(hub, control, met, things, t, margin):
    difference = hub - control
    half = t * difference.std(1) / difference.shape[1] ** 0.5
    return ((difference.mean(1) - half > margin) & ~met & (things >= FEWEST)).float()


def _low(difference, t, correction=1):
    return difference.mean(1) - t * difference.std(1, correction=correction) / (
        difference.shape[1] ** 0.5)


def _table(generator):
    """Cells of all kinds: clear ones, clear means with a wide interval, some that met, some
    with next to no things; controls that lie above a tenth."""
    cells, seeds = random_size(generator, 14, 20), 8
    control = 0.14 + 0.02 * torch.randn(cells, seeds, generator=generator)
    gain = torch.rand(cells, 1, generator=generator) * 0.14
    spread = 0.01 + 0.07 * torch.rand(cells, 1, generator=generator)
    hub = control + gain + spread * torch.randn(cells, seeds, generator=generator)
    hub[:3] += 0.3
    met = torch.rand(cells, generator=generator) < 0.25
    things = torch.randint(1, 40, (cells,), generator=generator)
    met[:4], things[:4] = torch.arange(4) == 0, torch.tensor([20, 3, 20, 20])
    # The interval of this one reaches a little below the margin.
    hub[3] += 0.05 - 0.03 * spread[3] - _low(hub - control, 2.365)[3]
    return hub, control, met, things, 2.365, 0.05


emergent = Exercise(
    name="emergent",
    task="[cells]: 1 where the hub alone may be said to have joined two kinds, else 0",
    reference=_emergent,
    cases=_table,
    mistakes={
        "met": Mistake(
            lambda hub, control, met, things, t, margin: (
                (_low(hub - control, t) > margin) & (things >= FEWEST)).float(),
            "count cells that were trained. Kinds that met directly do not show what a hub "
            "can do.",
        ),
        "few things": Mistake(
            lambda hub, control, met, things, t, margin: (
                (_low(hub - control, t) > margin) & ~met).float(),
            "count cells with next to no things. The seeds agree there because they ask "
            "after the same three things.",
        ),
        "the mean": Mistake(
            lambda hub, control, met, things, t, margin: (
                ((hub - control).mean(1) > margin) & ~met & (things >= FEWEST)).float(),
            "look at the mean. The whole interval must lie above the margin.",
        ),
        "chance": Mistake(
            lambda hub, control, met, things, t, margin: (
                (_low(hub - 0.1, t) > margin) & ~met & (things >= FEWEST)).float(),
            "subtract chance, a tenth. Things with several rows are found more often than "
            "that by luck: the control knows how often.",
        ),
        "above zero": Mistake(
            lambda hub, control, met, things, t, margin: (
                (_low(hub - control, t) > 0) & ~met & (things >= FEWEST)).float(),
            "ask for a gain above zero. The margin was stated before: the whole interval "
            "must lie above it.",
        ),
        "seeds, not seeds - 1": Mistake(
            lambda hub, control, met, things, t, margin: (
                (_low(hub - control, t, 0) > margin) & ~met & (things >= FEWEST)).float(),
            "divide by the number of seeds in the sd. It is one less: eight seeds that "
            "gave their own mean know a little less of the spread.",
        ),
        "two samples": Mistake(
            lambda hub, control, met, things, t, margin: (
                ((hub - control).mean(1) - t * ((hub.var(1) + control.var(1))
                                                / hub.shape[1]).sqrt() > margin)
                & ~met & (things >= FEWEST)).float(),
            "add the spreads of hub and control. The seeds are paired: subtract seed by "
            "seed, and take the spread of the differences.",
        ),
        "not paired": Mistake(
            lambda hub, control, met, things, t, margin: (
                (_low(hub, t) - control.mean(1) > margin) & ~met & (things >= FEWEST)
            ).float(),
            "take the spread of the hub's figures alone. The seeds are paired: subtract seed "
            "by seed, then take mean and spread of the differences.",
        ),
    },
)
