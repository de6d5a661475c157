"""Exercises of the notebook on M3EL: link in two stages, an entity that is in the batch
twice, and whether a level is used or needed."""

import torch
from torch.nn.functional import cross_entropy

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: link in two stages --------------------------------------------------
def _kept(coarse: torch.Tensor, fine: torch.Tensor, k: int) -> torch.Tensor:
    """Fine scores [m, e] of each mention's k best by coarse, -inf for the others."""
    best = coarse.topk(k, dim=1).indices
    return torch.full_like(fine, -torch.inf).scatter(1, best, fine.gather(1, best))


def _linked(coarse: torch.Tensor, fine: torch.Tensor, k: int) -> torch.Tensor:
    """[m, e], [m, e], k -> entity [m]: the best by fine among the k best by coarse."""
    return _kept(coarse, fine, k).argmax(1)


def _place_in_list(coarse: torch.Tensor, fine: torch.Tensor, k: int) -> torch.Tensor:
    return fine.gather(1, coarse.topk(k, dim=1).indices).argmax(1)


def _zeros_left(coarse: torch.Tensor, fine: torch.Tensor, k: int) -> torch.Tensor:
    best = coarse.topk(k, dim=1).indices
    return torch.zeros_like(fine).scatter(1, best, fine.gather(1, best)).argmax(1)


def _by_entity(coarse: torch.Tensor, fine: torch.Tensor, k: int) -> torch.Tensor:
    kept = torch.full_like(fine, -torch.inf)
    best = coarse.topk(min(k, len(coarse)), dim=0).indices
    return kept.scatter(0, best, fine.gather(0, best)).argmax(1)


def _stages(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Scores that agree a little; those of the fine stage may all be below zero."""
    m, e = random_size(generator, 6, 10), random_size(generator, 12, 18)
    coarse = random_rows(generator, m, e)
    fine = 0.5 * coarse + random_rows(generator, m, e) - 2
    return coarse, fine, random_size(generator, 3, 5)


linked_in_two = Exercise(
    name="linked_in_two",
    task="for each mention the entity with the best fine score among its k best by coarse",
    reference=_linked,
    cases=_stages,
    mistakes={
        "the place in the list": Mistake(
            _place_in_list,
            "give the place in the list of k. Which entity is it? topk gave the indices: "
            "look it up there.",
        ),
        "fine alone": Mistake(
            lambda coarse, fine, k: fine.argmax(1),
            "take the best of all by the fine score. That is the search that was too dear: "
            "only k candidates have a fine score in practice.",
        ),
        "coarse alone": Mistake(
            lambda coarse, fine, k: coarse.argmax(1),
            "take the best by the coarse score. It only makes the list; the fine one decides.",
        ),
        "zeros for the rest": Mistake(
            _zeros_left,
            "give 0 to entities that are not in the list. Where all fine scores are below 0 "
            "one of those wins: give them -torch.inf.",
        ),
        "the sum": Mistake(
            lambda coarse, fine, k: (coarse + _kept(coarse, fine, k)).argmax(1),
            "add both scores. The coarse one makes the list and then has no say.",
        ),
        "fine makes the list": Mistake(
            lambda coarse, fine, k: _linked(fine, coarse, k),
            "exchange the two: the coarse scores make the list, the fine ones choose in it.",
        ),
        "lists of mentions": Mistake(
            _by_entity,
            "take the k best mentions of each entity. Each mention (a row) makes a list of "
            "entities: topk along dim=1.",
        ),
    },
)


# Exercise 2, transfer: an entity that is there twice ------------------------------------
def _again(item: torch.Tensor) -> torch.Tensor:
    """[b, b] bool: another row of the same entity."""
    return (item[:, None] == item) & ~torch.eye(len(item), dtype=torch.bool)


def _loss(scores: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    """Mentions by entities [b, b], whose they are [b] -> a number."""
    return cross_entropy(scores.masked_fill(_again(item), -torch.inf), torch.arange(len(item)))


def _first_of_each(scores: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    first = ~_again(item).tril().any(1)
    return cross_entropy(scores[first][:, first], torch.arange(int(first.sum())))


def _first_column(scores: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    first = ~_again(item).tril().any(1)
    return cross_entropy(scores[:, first], (item[:, None] == item[first]).int().argmax(1))


def _all_right(scores: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
    same = (item[:, None] == item).to(scores)
    return cross_entropy(scores, same / same.sum(1, keepdim=True))


def _batch(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch in which some entities have two or three mentions, scores near the truth."""
    b = random_size(generator, 7, 11)
    item = torch.randint(b - 2, (b,), generator=generator)
    item[:3] = item[0]
    scores = random_rows(generator, b, b) + 2 * (item[:, None] == item)
    return scores, item


mended = Exercise(
    name="mended",
    task="cross entropy on the diagonal, without the entity's other copies in the batch",
    reference=_loss,
    cases=_batch,
    mistakes={
        "still negatives": Mistake(
            lambda scores, item: cross_entropy(scores, torch.arange(len(item))),
            "leave the copies among the wrong answers: the loss still pushes a mention away "
            "from its own entity.",
        ),
        "zeros": Mistake(
            lambda scores, item: cross_entropy(scores.masked_fill(_again(item), 0),
                                               torch.arange(len(item))),
            "set their scores to 0. exp(0) = 1 stays in the denominator: -torch.inf leaves "
            "them out.",
        ),
        "several right answers": Mistake(
            _all_right,
            "spread the target over all copies. That is another loss; the task is to leave "
            "the copies out.",
        ),
        "copies right too": Mistake(
            lambda scores, item: (scores.logsumexp(1) - scores.masked_fill(
                item[:, None] != item, -torch.inf).logsumexp(1)).mean(),
            "count a copy as a right answer too. That is another loss; the task is to leave "
            "the copies out, above and below the fraction line.",
        ),
        "first columns": Mistake(
            _first_column,
            "keep the first column of each entity. The right answer of a second mention "
            "is then another row's column; here it stays on the diagonal.",
        ),
        "both ways": Mistake(
            lambda scores, item: (_loss(scores, item) + _loss(scores.T, item)) / 2,
            "add the loss of entities that ask for mentions. Here mentions alone ask.",
        ),
        "rows dropped": Mistake(
            _first_of_each,
            "throw away the second mention of an entity. It is a row to learn from like "
            "any other: only its entity's copy must not count as wrong.",
        ),
        "the other way": Mistake(
            lambda scores, item: _loss(scores.T, item),
            "ask entities for mentions: the softmax goes over entities, along dim=1.",
        ),
        "a sum": Mistake(
            lambda scores, item: len(item) * _loss(scores, item),
            "sum over the mentions. Cross entropy is their mean.",
        ),
    },
)


# Exercise 3, judge: used, needed, or neither --------------------------------------------
def _judge(needed: torch.Tensor, used: torch.Tensor) -> torch.Tensor:
    return 2.0 * needed.float() + (used & ~needed).float()


def _judged(swapped: torch.Tensor, without: torch.Tensor, margin: float) -> torch.Tensor:
    """Intervals [n, 2], [n, 2] of losses in hit@1 -> 2 needed, 1 used, 0 not shown."""
    return _judge(without[:, 0] > margin, swapped[:, 0] > margin)


def _middles(swapped: torch.Tensor, without: torch.Tensor, margin: float) -> torch.Tensor:
    return _judge(without.mean(1) > margin, swapped.mean(1) > margin)


def _evidence(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Every case once, then some at random; to swap mostly costs more than to retrain."""
    n = random_size(generator, 14, 20)
    low = 0.1 * torch.rand(n, 2, generator=generator) - 0.02
    width = 0.01 + 0.05 * torch.rand(n, 2, generator=generator)
    low[:6] = torch.tensor([[0.06, 0.04], [0.08, -0.01], [0.005, 0.03], [0.004, 0.005],
                            [0.012, -0.02], [0.05, -0.07]])
    width[:6] = torch.tensor([[0.02, 0.02], [0.02, 0.02], [0.02, 0.02], [0.05, 0.05],
                              [0.03, 0.03], [0.02, 0.03]])  # the last: better without it
    return (torch.stack([low[:, 0], low[:, 0] + width[:, 0]], 1),
            torch.stack([low[:, 1], low[:, 1] + width[:, 1]], 1), 0.02)


judged = Exercise(
    name="judged",
    task="for each level 2 if it is needed, 1 if it is only used, 0 if neither is shown",
    reference=_judged,
    cases=_evidence,
    mistakes={
        "a swap shows need": Mistake(
            lambda swapped, without, margin: _judge(swapped[:, 0] > margin,
                                                    swapped[:, 0] > margin),
            "call a level needed because the trained model stumbles without its input. "
            "Another model, trained without it, may do as well: ask `without`.",
        ),
        "a sum": Mistake(
            lambda swapped, without, margin: (swapped[:, 0] > margin).float()
            + (without[:, 0] > margin),
            "count both. A level that is needed gets 2, whether the swap shows it or not.",
        ),
        "no sign": Mistake(
            lambda swapped, without, margin: _judged(swapped.abs(), without.abs(), margin),
            "drop the sign. Where the fall is below 0 the model does better without the "
            "level.",
        ),
        "both are asked": Mistake(
            lambda swapped, without, margin: _judge(
                (without[:, 0] > margin) & (swapped[:, 0] > margin), swapped[:, 0] > margin),
            "ask for both before you say needed. That a model trained without the level "
            "links less is enough.",
        ),
        "by the middle": Mistake(
            _middles,
            "judge by the middles. The whole interval must lie above the margin.",
        ),
        "above zero": Mistake(
            lambda swapped, without, margin: _judged(swapped, without, 0.0),
            "ask for a loss above 0. A level costs time: the interval must lie above the "
            "margin.",
        ),
        "by the upper end": Mistake(
            lambda swapped, without, margin: _judge(without[:, 1] > margin,
                                                    swapped[:, 1] > margin),
            "look at the upper ends. They say what is still possible, the lower ones what "
            "is shown.",
        ),
        "exchanged": Mistake(
            lambda swapped, without, margin: _judged(without, swapped, margin),
            "exchange the two: to swap an input at test shows use, to train without it "
            "shows need.",
        ),
    },
)
