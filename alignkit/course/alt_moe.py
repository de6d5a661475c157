"""Exercises of the notebook on one predictor for all directions: how unevenly experts are
used, a colleague's mixture, and which cosines of gradients say something."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: how unevenly experts are used --------------------------------------
def _spread(use: torch.Tensor) -> torch.Tensor:
    return use.var(correction=0) / use.mean().square()


def _uneven(weights: torch.Tensor) -> torch.Tensor:
    """[n, e] -> the squared coefficient of variation of the experts' summed weights."""
    return _spread(weights.sum(0))


def _kept_weights(generator: torch.Generator) -> tuple[torch.Tensor]:
    n, e = random_size(generator, 6, 12), random_size(generator, 3, 6)
    g = (1.5 * random_rows(generator, n, e) + random_rows(generator, 1, e)).softmax(1)
    kept = g.topk(2, dim=1)
    return (torch.zeros_like(g).scatter(1, kept.indices, kept.values),)


uneven = Exercise(
    name="uneven",
    task="the variance of the experts' summed weights (divided by e) over their squared mean",
    reference=_uneven,
    cases=_kept_weights,
    mistakes={
        "row by row": Mistake(
            lambda weights: torch.stack([_spread(row) for row in weights]).mean(),
            "compare the experts within each row and average that. A row shall be one-sided; "
            "sum over the rows first, then compare the experts.",
        ),
        "rows compared": Mistake(
            lambda weights: _spread(weights.sum(1)),
            "sum over the experts: that compares rows. Sum over the rows (dim 0).",
        ),
        "e − 1": Mistake(
            lambda weights: weights.sum(0).var() / weights.sum(0).mean().square(),
            "divide by e − 1, as var() does by itself. Here it is e: correction=0.",
        ),
        "not squared": Mistake(
            lambda weights: weights.sum(0).var(correction=0) / weights.sum(0).mean(),
            "divide by the mean. It must be squared, or ten times the rows give ten times "
            "the loss.",
        ),
        "counted": Mistake(
            lambda weights: _spread((weights > 0).sum(0).float()),
            "count how often an expert is chosen. Sum the weights: a count has no gradient.",
        ),
        "root": Mistake(
            lambda weights: _uneven(weights).sqrt(),
            "give the coefficient of variation. Its square is asked for.",
        ),
        "not divided": Mistake(
            lambda weights: weights.sum(0).var(correction=0),
            "give the variance alone. Divide it by the square of the mean.",
        ),
        "shares": Mistake(
            lambda weights: (weights.sum(0) / weights.sum()).var(correction=0),
            "give the variance of the experts' shares. Their mean is 1/e and not 1: divide "
            "by its square.",
        ),
        "not averaged": Mistake(
            lambda weights: _uneven(weights) * weights.shape[1],
            "add up the squared distances. Average them: divide by the number of experts.",
        ),
    },
)


# Exercise 2, transfer: a colleague's mixture -------------------------------------------
def _mix(gates: torch.Tensor, outputs: torch.Tensor, weights: torch.Tensor,
         k: int) -> torch.Tensor:
    at = gates.topk(k, dim=1).indices
    chosen = outputs.gather(1, at[..., None].expand(-1, -1, outputs.shape[2]))
    return (weights.gather(1, at)[..., None] * chosen).sum(1)


def _mended(gates: torch.Tensor, outputs: torch.Tensor, k: int) -> torch.Tensor:
    """[n, e], [n, e, d], k -> [n, d]"""
    return _mix(gates, outputs, gates.softmax(1), k)


def _renormalised(gates, outputs, k):
    g = gates.softmax(1)
    return _mix(gates, outputs, g / g.topk(k, dim=1).values.sum(1, keepdim=True), k)


def _mixtures(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    n, e, d = (random_size(generator, *ends) for ends in ((5, 8), (4, 7), (3, 5)))
    return (random_rows(generator, n, e),
            random_rows(generator, n, e * d).view(n, e, d), random_size(generator, 2, 3))


mended = Exercise(
    name="mended",
    task="softmax over all experts, the k largest of a row kept as they are",
    reference=_mended,
    cases=_mixtures,
    mistakes={
        "still renormalised": Mistake(
            _renormalised,
            "still let the kept weights sum to one (a softmax of the kept scores does so, "
            "too). Take the softmax over all experts, and keep the k largest as they are.",
        ),
        "all experts": Mistake(
            lambda gates, outputs, k: (gates.softmax(1)[..., None] * outputs).sum(1),
            "mix all experts. A row uses k of them.",
        ),
        "over rows": Mistake(
            lambda gates, outputs, k: _mix(gates, outputs, gates.softmax(0), k),
            "take the softmax over the rows of the batch (dim 0). A row's experts share "
            "its weight: dim 1.",
        ),
        "scores as weights": Mistake(
            lambda gates, outputs, k: _mix(gates, outputs, gates, k),
            "weigh by the gate's raw scores, which may be negative. Take their softmax.",
        ),
        "least chosen": Mistake(
            lambda gates, outputs, k: (_mix(-gates, outputs, gates.softmax(1), k)),
            "keep the experts with the smallest weights.",
        ),
        "softmax twice": Mistake(
            lambda gates, outputs, k: _mix(
                gates, outputs, torch.zeros_like(gates).scatter(
                    1, (kept := gates.softmax(1).topk(k, dim=1)).indices,
                    kept.values.softmax(1)), k),
            "take a second softmax, of the kept weights: it makes them sum to one again, and "
            "nearly equal. Keep them as they are.",
        ),
        "averaged": Mistake(
            lambda gates, outputs, k: _mended(gates, outputs, k) / k,
            "average the k weighted outputs. Their sum is asked for.",
        ),
        "equal weights": Mistake(
            lambda gates, outputs, k: _mix(gates, outputs,
                                           torch.full_like(gates, 1 / k), k),
            "give the chosen experts equal weights: then the gate has no gradient and "
            "never learns.",
        ),
    },
)


# Exercise 3, judge: which cosines say something ----------------------------------------
def _mean_cosine(g: torch.Tensor) -> torch.Tensor:
    """Gradients [t, k, d] -> [t], the mean cosine of two different directions."""
    rows = torch.nn.functional.normalize(g, dim=2)
    k = g.shape[1]
    return (rows.sum(1).square().sum(1) - k) / (k * (k - 1))


def _judge(g: torch.Tensor, cosine: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
    return torch.where(still, -torch.ones(len(g)), (cosine < 0).float())


def _stationary(g: torch.Tensor) -> torch.Tensor:
    return g.mean(1).norm(dim=1) < 0.1 * g.norm(dim=2).mean(1)


def _judged(g: torch.Tensor) -> torch.Tensor:
    """[t, k, d] -> [t]: −1 says nothing, 1 conflict, 0 none."""
    return _judge(g, _mean_cosine(g), _stationary(g))


def _points_of_a_run(generator: torch.Generator) -> tuple[torch.Tensor]:
    """Points that agree, all or all but a weak one, points where one direction pulls against
    the others, points whose sum is nearly zero, and points where two long gradients are
    opposed and the rest agree."""
    t, k, d = random_size(generator, 12, 16), random_size(generator, 5, 6), 8
    g = random_rows(generator, t * k, d).view(t, k, d)
    g = g * (0.3 + 3 * torch.rand(t, k, 1, generator=generator))
    common, kind = 4 * random_rows(generator, t, d)[:, None], torch.arange(t) % 4
    g[kind == 0] += common[kind == 0]
    alone = torch.arange(t) % 8 == 0
    g[alone, 0] -= 1.2 * common[alone, 0]
    g[kind == 1, 0] -= 1.5 * g[kind == 1, 1:].sum(1)
    left = torch.where(torch.arange(t) % 8 == 2, 0.07, 0.001)[kind == 2, None, None]
    g[kind == 2] -= (1 - left) * g[kind == 2].mean(1, keepdim=True)
    g[kind == 3] = 0.1 * g[kind == 3] + common[kind == 3]
    long = 40 * random_rows(generator, t, d)
    g[kind == 3, 0], g[kind == 3, 1] = long[kind == 3], -long[kind == 3]
    return (g[torch.randperm(t, generator=generator)],)


def _cosines(g):
    rows = torch.nn.functional.normalize(g, dim=2)
    return rows @ rows.mT


def _with_itself(g):
    return _judge(g, _cosines(g).mean((1, 2)), _stationary(g))


judged = Exercise(
    name="judged",
    task="for each point −1 where the mean gradient is short, else 1 for a conflict, else 0",
    reference=_judged,
    cases=_points_of_a_run,
    mistakes={
        "every point counts": Mistake(
            lambda g: (_mean_cosine(g) < 0).float(),
            "call every negative mean a conflict. Where the joint loss is nearly "
            "stationary the gradients cancel, and its sign says nothing.",
        ),
        "conflict first": Mistake(
            lambda g: torch.where(_mean_cosine(g) < 0, 1.0, -_stationary(g).float()),
            "look for a conflict first and for a short mean only where there is none. "
            "−1 comes first: at such a point the cosine says nothing.",
        ),
        "one pair": Mistake(
            lambda g: torch.where(_stationary(g), -1.0,
                                  (_cosines(g) < 0).any(2).any(1).float()),
            "call it a conflict where any two gradients disagree. The mean over all pairs "
            "decides.",
        ),
        "lengths added": Mistake(
            lambda g: _judge(g, _mean_cosine(g), g.mean(1).norm(dim=1)
                             < 0.1 * g.norm(dim=2).sum(1)),
            "add up the gradients' lengths. The mean's length is compared with their mean.",
        ),
        "the sum": Mistake(
            lambda g: _judge(g, _mean_cosine(g), g.sum(1).norm(dim=1)
                             < 0.1 * g.norm(dim=2).mean(1)),
            "compare the length of the sum. The task asks for the mean of the gradients.",
        ),
        "with itself": Mistake(
            _with_itself,
            "count each direction's cosine with itself, which is one. Only pairs of "
            "different directions count.",
        ),
        "products": Mistake(
            lambda g: _judge(g, g.sum(1).square().sum(1) - g.square().sum((1, 2)),
                             _stationary(g)),
            "average dot products. There a long gradient outvotes the short ones: divide "
            "each by its length first.",
        ),
        "turned round": Mistake(
            lambda g: _judge(g, -_mean_cosine(g), _stationary(g)),
            "give 1 where the directions agree.",
        ),
    },
)
