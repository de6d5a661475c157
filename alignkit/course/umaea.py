"""Exercises of the notebook on UMAEA: pictures from neighbours, new links for the next
round, and a gain over a weak baseline."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: the mean of known neighbours ----------------------------------------
def _sums(x: torch.Tensor, here: torch.Tensor, edges: torch.Tensor) -> tuple:
    """Sum of the known neighbours' rows [n, d], and how many they are [n, 1]."""
    source, to = edges
    known = here[:, None].to(x)
    return (torch.zeros_like(x).index_add(0, to, (x * known)[source]),
            torch.zeros_like(known).index_add(0, to, known[source]))


def _filled(x: torch.Tensor, here: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
    """[n, d], bool [n], [2, e] -> [n, d]."""
    total, count = _sums(x, here, edges)
    stand_in = torch.where(count > 0, total / count.clamp_min(1), x[here].mean(0))
    return torch.where(here[:, None], x, stand_in)


def _missing_speak(x, here, edges):
    total, count = _sums(x, torch.ones_like(here), edges)
    stand_in = torch.where(count > 0, total / count.clamp_min(1), x[here].mean(0))
    return torch.where(here[:, None], x, stand_in)


def _alone_zeros(x, here, edges):
    total, count = _sums(x, here, edges)
    return torch.where(here[:, None], x, total / count.clamp_min(1))


def _by_degree(x, here, edges):
    total, count = _sums(x, here, edges)
    degree = torch.zeros(len(x)).index_add(0, edges[1], torch.ones(edges.shape[1]))[:, None]
    stand_in = torch.where(count > 0, total / degree.clamp_min(1), x[here].mean(0))
    return torch.where(here[:, None], x, stand_in)


def _all_changed(x, here, edges):
    total, count = _sums(x, here, edges)
    return torch.where(count > 0, total / count.clamp_min(1), x[here].mean(0))


def _mean_of_all(x, here, edges):
    total, count = _sums(x, here, edges)
    stand_in = torch.where(count > 0, total / count.clamp_min(1), x.mean(0))
    return torch.where(here[:, None], x, stand_in)


def _summed(x, here, edges):
    total, count = _sums(x, here, edges)
    return torch.where(here[:, None], x, torch.where(count > 0, total, x[here].mean(0)))


def _some_missing(generator: torch.Generator) -> tuple:
    """Ten to fourteen nodes; noise stands where pictures are missing. Node 0 hears a known
    and a missing one, node 1 only a missing one, node 2 two known ones; they lack pictures."""
    n = random_size(generator, 10, 14)
    here = torch.rand(n, generator=generator) < 0.5
    here[:4], here[4:6] = False, True
    edges = torch.randint(3, n, (2, 2 * n), generator=generator)
    edges = torch.cat([edges[:, edges[0] != edges[1]],
                       torch.tensor([[4, 3, 3, 4, 5], [0, 0, 1, 2, 2]])], 1)
    return random_rows(generator, n, random_size(generator, 3, 5)), here, edges.unique(dim=1)


from_neighbours = Exercise(
    name="from_neighbours",
    task="missing rows: the mean of the known neighbours, or of all known rows if there are none",
    reference=_filled,
    cases=_some_missing,
    mistakes={
        "missing ones too": Mistake(
            _missing_speak,
            "let missing neighbours speak too: what stands there is noise.",
        ),
        "by the degree": Mistake(
            _by_degree,
            "divide by the number of neighbours. Divide by the number of known ones, or the "
            "mean shrinks where neighbours lack a picture.",
        ),
        "a sum": Mistake(_summed, "add the neighbours up. Divide by how many are known."),
        "zeros for the lonely": Mistake(
            _alone_zeros,
            "leave zeros where no neighbour has a picture. Take the mean of all known rows "
            "there.",
        ),
        "the mean of all rows": Mistake(
            _mean_of_all,
            "take the mean of all rows for those without a known neighbour. Rows that are "
            "missing hold noise: x[here].mean(0).",
        ),
        "known ones changed": Mistake(
            _all_changed,
            "replace the known pictures too. Only rows with here = False change.",
        ),
        "the mean everywhere": Mistake(
            lambda x, here, edges: torch.where(here[:, None], x, x[here].mean(0)),
            "give the mean of all known rows to every missing one. It is only for those "
            "without a known neighbour.",
        ),
        "edges turned": Mistake(
            lambda x, here, edges: _filled(x, here, edges.flip(0)),
            "read the edges the wrong way round: edges[0] speaks, edges[1] hears.",
        ),
    },
)


# Exercise 2, transfer: new links ---------------------------------------------------------
def _mutual(scores: torch.Tensor) -> torch.Tensor:
    """Pairs [p, 2] that are each other's best."""
    there, back = scores.argmax(1), scores.argmax(0)
    rows = torch.arange(len(scores))
    own = back[there] == rows
    return torch.stack([rows[own], there[own]], 1)


def _new_links(scores: torch.Tensor, links: torch.Tensor) -> torch.Tensor:
    """[n, m], [s, 2] -> [p, 2]."""
    rows, columns = (torch.ones(size, dtype=torch.bool) for size in scores.shape)
    rows[links[:, 0]], columns[links[:, 1]] = False, False
    free, open_ = rows.nonzero().flatten(), columns.nonzero().flatten()
    found = _mutual(scores[free][:, open_])
    return torch.stack([free[found[:, 0]], open_[found[:, 1]]], 1)


def _removed_after(scores, links):
    found = _mutual(scores)
    taken = torch.isin(found[:, 0], links[:, 0]) | torch.isin(found[:, 1], links[:, 1])
    return found[~taken]


def _one_sided(scores, links):
    masked = scores.index_fill(1, links[:, 1], -torch.inf)
    rows = torch.arange(len(scores))
    free = ~torch.isin(rows, links[:, 0])
    return torch.stack([rows, masked.argmax(1)], 1)[free]


def _rows_only(scores, links):
    masked = scores.index_fill(0, links[:, 0], -torch.inf)
    found = _mutual(masked)
    return found[~torch.isin(found[:, 0], links[:, 0])]


def _places(scores, links):
    rows, columns = (torch.ones(size, dtype=torch.bool) for size in scores.shape)
    rows[links[:, 0]], columns[links[:, 1]] = False, False
    return _mutual(scores[rows][:, columns])


def _masked_alone(scores, links):
    masked = scores.index_fill(0, links[:, 0], -torch.inf)
    return _mutual(masked.index_fill(1, links[:, 1], -torch.inf))


def _aligned(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores near a true alignment. Entity 0 is linked to 0, and near to counterpart 1; what
    is linked is a hub of the other side, so that who is left out first matters."""
    n, m = random_size(generator, 9, 13), random_size(generator, 14, 17)
    scores = random_rows(generator, n, m)
    scores[range(n), range(n)] += 2.5
    links = torch.stack([torch.arange(0, 6, 2), torch.arange(0, 6, 2)], 1)
    scores[0, 1], scores[3, 2] = 9.0, 9.5  # linked rows and columns that others are near to
    scores[1, 1], scores[3, 3] = 8.0, 8.5
    scores[5, 1] = 7.0  # near to 1 too, and not its best
    return scores, links


new_links = Exercise(
    name="new_links",
    task="pairs of entities without a link that are each other's best, linked ones left out first",
    reference=_new_links,
    cases=_aligned,
    mistakes={
        "the colleague's": Mistake(
            lambda scores, links: torch.stack([torch.arange(len(scores)), scores.argmax(1)], 1),
            "give every row with its best, as the colleague does. Leave linked rows and "
            "columns out, then keep the pairs that are each other's best.",
        ),
        "cells alone": Mistake(
            lambda scores, links: _mutual(
                scores.index_put(tuple(links.T), torch.tensor(-torch.inf))),
            "leave out the linked pairs alone. An entity with a link is taken: its whole row "
            "or column goes.",
        ),
        "masked rows have a best too": Mistake(
            _masked_alone,
            "mask linked rows and columns and keep them. argmax gives such a row a best too, "
            "often the first column: drop linked rows from the answer.",
        ),
        "one side asks": Mistake(
            _one_sided,
            "take every row's best. Several rows may have the same one: the column's best "
            "must be that row too.",
        ),
        "linked ones left in": Mistake(
            lambda scores, links: _mutual(scores),
            "offer entities that have a link already.",
        ),
        "left out afterwards": Mistake(
            _removed_after,
            "leave the linked ones out last. An entity whose best is a linked one is lost "
            "then: take them out of the scores before the best are looked for.",
        ),
        "rows alone": Mistake(
            _rows_only,
            "leave out linked rows and keep linked columns. Both ends of a link are taken.",
        ),
        "places, not numbers": Mistake(
            _places,
            "give places among the entities that are left. Turn them back into their numbers.",
        ),
        "exchanged": Mistake(
            lambda scores, links: _new_links(scores, links).flip(1),
            "exchange the columns: row first, then its counterpart.",
        ),
    },
)


# Exercise 3, judge: a gain over what -----------------------------------------------------
def _weighed(noise: torch.Tensor, zeros: torch.Tensor, margin: float) -> torch.Tensor:
    """Intervals [n, 2] of gains over two baselines -> 2 a gain, 1 over noise alone, 0."""
    over, plain = noise[:, 0] > margin, zeros[:, 0] > margin
    return 2.0 * (over & plain) + 1.0 * (over & ~plain)


def _reports(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    n = random_size(generator, 14, 20)
    low = 0.12 * torch.rand(n, 2, generator=generator) - 0.04
    width = 0.01 + 0.06 * torch.rand(n, 2, generator=generator)
    low[:8] = torch.tensor([[0.05, 0.03], [0.06, 0.01], [0.04, -0.03], [0.01, 0.05],
                            [0.012, 0.005], [-0.09, -0.08], [0.005, 0.005], [-0.03, -0.03]])
    width[:8] = torch.tensor([[0.02, 0.02], [0.02, 0.03], [0.02, 0.02], [0.03, 0.02],
                              [0.03, 0.04], [0.02, 0.02], [0.01, 0.01], [0.06, 0.06]])
    high = low + width
    return (torch.stack([low[:, 0], high[:, 0]], 1), torch.stack([low[:, 1], high[:, 1]], 1),
            0.02)


weighed = Exercise(
    name="weighed",
    task="2 where the gain is shown over both baselines, 1 over noise alone, 0 for the rest",
    reference=_weighed,
    cases=_reports,
    mistakes={
        "noise alone is asked": Mistake(
            lambda noise, zeros, margin: 2.0 * (noise[:, 0] > margin),
            "ask only for the gain over noise. Noise is worse than nothing where pictures "
            "are rare: to beat it may take no more than zeros.",
        ),
        "zeros alone are asked": Mistake(
            lambda noise, zeros, margin: 2.0 * (zeros[:, 0] > margin),
            "ask only for the gain over zeros. A gain that is not shown over noise is none "
            "over the paper's baseline.",
        ),
        "a sum": Mistake(
            lambda noise, zeros, margin: (noise[:, 0] > margin).float() + (zeros[:, 0] > margin),
            "count both. Over zeros alone is 0 here: 1 means over noise alone.",
        ),
        "by the middle": Mistake(
            lambda noise, zeros, margin: _weighed(
                *(x.mean(1, keepdim=True).expand(-1, 2) for x in (noise, zeros)), margin),
            "judge by the middles. The whole interval must lie above the margin.",
        ),
        "above zero": Mistake(
            lambda noise, zeros, margin: _weighed(noise, zeros, 0.0),
            "ask for a gain above 0. Three stages are work: the interval must lie above the "
            "margin.",
        ),
        "above zero over zeros": Mistake(
            lambda noise, zeros, margin: (noise[:, 0] > margin) * (1.0 + (zeros[:, 0] > 0)),
            "ask for a gain above 0 over zeros. The margin is asked of both.",
        ),
        "zeros are enough": Mistake(
            lambda noise, zeros, margin: torch.where(
                zeros[:, 0] > margin, 2.0, (noise[:, 0] > margin).float()),
            "give 2 for a gain over zeros alone. 2 asks for both.",
        ),
        "by the upper end": Mistake(
            lambda noise, zeros, margin: _weighed(noise.flip(1), zeros.flip(1), margin),
            "look at the upper ends. They say what is still possible, the lower ones what is "
            "shown.",
        ),
        "no sign": Mistake(
            lambda noise, zeros, margin: _weighed(noise.abs(), zeros.abs(), margin),
            "drop the sign. An interval below 0 is a loss.",
        ),
        "exchanged": Mistake(
            lambda noise, zeros, margin: _weighed(zeros, noise, margin),
            "exchange the two: 1 is for a gain over noise that is not shown over zeros.",
        ),
    },
)
