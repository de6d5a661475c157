"""Exercises of the notebook on attribute insertions: the worst pair of words, a rank that
flatters, and what a drop says of a model."""

from collections.abc import Callable

import torch

from .exercises import Exercise, Mistake, random_size


# Exercise 1, build: two words at once ---------------------------------------------------
def _scaled(x: torch.Tensor) -> torch.Tensor:
    return (x - x.min()) / (x.max() - x.min())


def _joint(first: torch.Tensor, second: torch.Tensor, D: torch.Tensor, lam: float,
           ) -> torch.Tensor:
    """Scores [k], [k] of both places, D [k, k] of captions with both words, λ -> (i, j)."""
    total = first[:, None] + second + lam * _scaled(D)
    return torch.stack(torch.unravel_index(total.argmax(), total.shape)).float()


def _greedy(first, second, D, lam):
    i = (first + lam * _scaled(D.mean(dim=1))).argmax()
    j = (second + lam * _scaled(D[i])).argmax()
    return torch.stack([i, j]).float()


def _each_alone(first, second, D, lam):
    i = (first + lam * _scaled(D.mean(dim=1))).argmax()
    j = (second + lam * _scaled(D.mean(dim=0))).argmax()
    return torch.stack([i, j]).float()


def _rows_scaled(first, second, D, lam):
    low, high = D.min(1, keepdim=True).values, D.max(1, keepdim=True).values
    total = first[:, None] + second + lam * (D - low) / (high - low)
    return torch.stack(torch.unravel_index(total.argmax(), total.shape)).float()


def _raw(first, second, D, lam):
    total = first[:, None] + second + lam * D
    return torch.stack(torch.unravel_index(total.argmax(), total.shape)).float()


def _two_places(generator: torch.Generator) -> tuple:
    """Four pairs lead: a, b in D, whose words are poor; e, g in words, whose D is middling;
    e, h where rows are scaled; c, d in the sum. Else rows and columns of the first are near."""
    k = random_size(generator, 4, 7)
    rows = torch.randperm(k, generator=generator)[:4]
    (a, c, e, _), (b, d, g, h) = rows, (rows + 1) % k
    first, second = 0.3 * torch.rand(2, k, generator=generator)
    D = 0.6 + 0.02 * torch.rand(k, k, generator=generator)
    low = 0.59 + 0.005 * torch.rand(k, k, generator=generator)
    D[a], D[c], D[:, b], D[:, d] = low[a], low[c], low[:, b], low[:, d]
    D[a, b], D[c, d], D[e, g], D[e, h] = 0.65, 0.64, 0.605, 0.622
    first[a], first[c], first[e] = 0.05, 0.35, 0.5
    second[b], second[d], second[g], second[h] = 0.05, 0.35, 0.5, 0.3
    return first, second, D, 2.0


worst_pair = Exercise(
    name="worst_pair",
    task="the pair (i, j), as a float tensor, with the largest first_i + second_j + λ D_ij, "
         "where D is scaled to 0 … 1 over all pairs",
    reference=_joint,
    cases=_two_places,
    mistakes={
        "one after another": Mistake(
            _greedy,
            "choose the first word and then the second. A pair can be worst together though "
            "neither word is: look at all pairs.",
        ),
        "each alone": Mistake(
            _each_alone,
            "choose each word by its mean over the other's. What two words do together is in "
            "no mean.",
        ),
        "not scaled": Mistake(
            _raw,
            "leave D as it is. It differs by a few hundredths only and is then not heard "
            "beside the scores: scale it to 0 … 1 first.",
        ),
        "scaled by row": Mistake(
            _rows_scaled,
            "scale D within each row. Then every first word has a worst partner that counts "
            "as 1, however near the caption is: scale over all pairs.",
        ),
        "the nearest": Mistake(
            lambda first, second, D, lam: _joint(first, second, -D, lam),
            "prefer captions that are alike to the picture. D is a dissimilarity: the larger "
            "the better for the attack.",
        ),
        "D alone": Mistake(
            lambda first, second, D, lam: _joint(0 * first, 0 * second, D, lam),
            "use D alone. A word must also be likely and near to an attribute: add both "
            "places' scores.",
        ),
        "the other order": Mistake(
            lambda first, second, D, lam: _joint(first, second, D, lam).flip(0),
            "give (j, i). Rows of D are first words.",
        ),
    },
)


# Exercise 2, transfer: find the bug in a rank --------------------------------------------
def _reciprocal(scores: torch.Tensor) -> torch.Tensor:
    """Captions with pictures [n, n], own ones on the diagonal -> mean of 1 / rank."""
    own = scores.diagonal()[:, None]
    return (1 / (scores >= own).sum(dim=1)).mean()


def _ties_for(scores):
    return (1 / (1 + (scores > scores.diagonal()[:, None]).sum(dim=1))).mean()


def _in_the_middle(scores):
    own = scores.diagonal()[:, None]
    best, last = 1 + (scores > own).sum(dim=1), (scores >= own).sum(dim=1)
    return (2 / (best + last)).mean()


def _galleries(generator: torch.Generator) -> tuple:
    """Scores with some equal ones, as of a model that has collapsed in part."""
    n = random_size(generator, 5, 9)
    scores = torch.randn(n, n, generator=generator)
    scores.diagonal().add_(1)
    scores[0] = 0.5  # all pictures alike
    scores[1, 3] = scores[1, 1]
    return (scores,)


mended = Exercise(
    name="mended",
    task="the mean of 1 / rank of each caption's own picture, where equal scores count against "
         "it",
    reference=_reciprocal,
    cases=_galleries,
    mistakes={
        "as it was": Mistake(
            _ties_for,
            "still give equal scores the best rank. A model that finds all pictures alike then "
            "ranks every one first: count the pictures that score at least as much.",
        ),
        "in the middle": Mistake(
            _in_the_middle,
            "take the middle of equal ranks. The task counts them against the own picture: "
            "it is the last of them.",
        ),
        "itself too": Mistake(
            lambda scores: (1 / (1 + (scores >= scores.diagonal()[:, None]).sum(dim=1))).mean(),
            "count the own picture among those above it. It scores at least as much as itself: "
            "no 1 must be added.",
        ),
        "pictures ask": Mistake(
            lambda scores: _reciprocal(scores.T),
            "let pictures ask for captions. Rows are captions; each ranks the pictures of its "
            "row.",
        ),
        "one over the mean rank": Mistake(
            lambda scores: 1 / (scores >= scores.diagonal()[:, None]).sum(dim=1).float().mean(),
            "take one over the mean rank. It is the mean of one over each rank.",
        ),
        "first ones only": Mistake(
            lambda scores: ((scores >= scores.diagonal()[:, None]).sum(dim=1) == 1).float().mean(),
            "count first places alone. A second place is worth a half.",
        ),
    },
)


# Exercise 3, judge: what a drop says ------------------------------------------------------
def _judge(every: torch.Tensor, true: torch.Tensor, margin: float) -> torch.Tensor:
    """Intervals [n, 2] of what is lost by all words and by true ones -> 2, 1 or 0."""
    return torch.where(true[:, 0] > margin, 2.0, (every[:, 0] > margin).float())


def _by(end: Callable) -> Callable:
    return lambda every, true, margin: torch.where(end(true) > margin, 2.0,
                                                   (end(every) > margin).float())


def _attacks(generator: torch.Generator) -> tuple:
    """Every case once, then some at random."""
    n = random_size(generator, 9, 14)
    middle = 0.3 * torch.rand(n, 2, 1, generator=generator) - 0.05
    ends = middle + torch.tensor([-0.06, 0.06])
    every, true = ends[:, 0].clone(), ends[:, 1].clone()
    every[:6] = torch.tensor([[.10, .20], [.10, .20], [.02, .20], [.01, .03], [.10, .20],
                              [.02, .12]])
    true[:6] = torch.tensor([[.08, .15], [-.20, -.10], [.01, .20], [-.02, .02], [.02, .12],
                             [.08, .20]])
    return every, true, 0.05


judged = Exercise(
    name="judged",
    task="for each attack 2 where true words alone are shown to cost more than the margin, 1 "
         "where only all words together are, 0 where neither is",
    reference=_judge,
    cases=_attacks,
    mistakes={
        "all words alone": Mistake(
            lambda every, true, margin: 2.0 * (every[:, 0] > margin),
            "call a model fragile as soon as the inserted words cost. Words that are false of "
            "the picture may rightly cost: look at the true ones.",
        ),
        "by the middle": Mistake(
            _by(lambda interval: interval.mean(dim=1)),
            "judge by the middle of the interval. The whole of it must lie above the margin.",
        ),
        "by the upper end": Mistake(
            _by(lambda interval: interval[:, 1]),
            "judge by the upper end. That says only that a cost is not ruled out.",
        ),
        "above zero": Mistake(
            lambda every, true, margin: _judge(every, true, 0.0),
            "compare with zero. What counts is a cost above the margin.",
        ),
        "both needed": Mistake(
            lambda every, true, margin: torch.where(
                (true[:, 0] > margin) & (every[:, 0] > margin), 2.0,
                (every[:, 0] > margin).float()),
            "ask of true words that all words cost, too. False ones can lead nearer by luck; "
            "what true ones cost stands by itself.",
        ),
        "all words first": Mistake(
            lambda every, true, margin: torch.where(
                every[:, 0] > margin, 1.0, 2.0 * (true[:, 0] > margin)),
            "ask of all words before you ask of true ones. Where both are shown the answer is "
            "2: true words come first.",
        ),
        "swapped": Mistake(
            lambda every, true, margin: _judge(true, every, margin),
            "take the one interval for the other. The first is of all words.",
        ),
    },
)
