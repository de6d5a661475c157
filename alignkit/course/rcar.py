"""Exercises of the notebook on regulated attention: a hinge against the k hardest, a length
taken over the wrong axis, and whose gain it is."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: between all and the hardest ------------------------------------------
def _costs(scores, item, margin):
    """The hinge of every wrong answer in each row [n, n]; −1 where the answer is no wrong one."""
    cost = (margin + scores - scores.diagonal()[:, None]).clamp_min(0)
    return cost.masked_fill(item[:, None] == item, -1)


def _largest(cost, k):
    """The sum over rows' k largest costs, the mean over rows; −1 counts nothing."""
    return cost.topk(min(k, len(cost)), dim=1).values.clamp_min(0).sum(dim=1).mean()


def _hinge(scores: torch.Tensor, item: torch.Tensor, margin: float, k: int) -> torch.Tensor:
    """Scores [n, n], items [n] -> the hinge against each row's and column's k hardest."""
    return sum(_largest(_costs(s, item, margin), k) for s in (scores, scores.T))


def _own_item_wrong(scores, item, margin, k):
    return _hinge(scores, torch.arange(len(item)), margin, k)


def _no_mask(scores, item, margin, k):
    return sum(_largest((margin + s - s.diagonal()[:, None]).clamp_min(0), k)
               for s in (scores, scores.T))


def _against_the_answer(scores, item, margin, k):
    total = 0
    for s in (scores, scores.T):
        cost = (margin + s - s.diagonal()[None]).clamp_min(0)
        total = total + _largest(cost.masked_fill(item[:, None] == item, -1), k)
    return total


def _without_hinge(scores, item, margin, k):
    total = 0
    for s in (scores, scores.T):
        cost = (margin + s - s.diagonal()[:, None]).masked_fill(item[:, None] == item, -torch.inf)
        top = cost.topk(min(k, len(cost)), dim=1).values
        total = total + top.masked_fill(top.isinf(), 0).sum(dim=1).mean()
    return total


def _batch(generator: torch.Generator) -> tuple:
    """Three rows of one item, so that some rows have fewer than k wrong answers; and k is at
    times larger than n."""
    n = random_size(generator, 5, 8)
    item = torch.arange(n)
    item[1] = item[2] = item[0]
    scores = 0.4 * torch.randn(n, n, generator=generator) + 0.1 * torch.eye(n)
    k = random_size(generator, 2, 4)
    return scores, item, 0.2, k if random_size(generator, 0, 2) else n + 1


hinge = Exercise(
    name="hinge",
    task="the hinge summed over each row's k hardest wrong answers, the mean over rows, plus the "
         "same of columns",
    reference=_hinge,
    cases=_batch,
    mistakes={
        "one item is no wrong answer": Mistake(
            _own_item_wrong,
            "count rows of the same item as wrong answers. Another caption of the same picture "
            "is right: leave it out.",
        ),
        "the pair itself": Mistake(
            _no_mask,
            "count the pair itself, and rows of its item: it costs the margin in every row and "
            "column, whatever is learned. Leave the diagonal out, and the same item.",
        ),
        "the answer's own pair": Mistake(
            _against_the_answer,
            "measure row i's answers against s_jj. The one that asks is i: against s_ii, "
            "scores.diagonal()[:, None].",
        ),
        "rows alone": Mistake(
            lambda scores, item, margin, k: _largest(_costs(scores, item, margin), k),
            "ask in one direction. Columns ask too: the same of the transposed scores.",
        ),
        "no hinge": Mistake(
            _without_hinge,
            "let an answer that is far enough away give something back. Below zero a cost is "
            "zero.",
        ),
        "all of them": Mistake(
            lambda scores, item, margin, k: _hinge(scores, item, margin, len(item)),
            "sum over all wrong answers. Only each row's k hardest count.",
        ),
        "the hardest alone": Mistake(
            lambda scores, item, margin, k: _hinge(scores, item, margin, 1),
            "take the hardest alone. That is k = 1.",
        ),
        "mean of k": Mistake(
            lambda scores, item, margin, k: (_hinge(scores, item, margin, k)
                                                    / min(k, len(item))),
            "divide by k. The costs of the k hardest are summed.",
        ),
        "sum over rows": Mistake(
            lambda scores, item, margin, k: _hinge(scores, item, margin, k) * len(item),
            "sum over the rows. Of rows, and of columns, it is the mean.",
        ),
        "mean of both": Mistake(
            lambda scores, item, margin, k: _hinge(scores, item, margin, k) / 2,
            "take the mean of rows and columns. The two are added.",
        ),
    },
)


# Exercise 2, transfer: the length over the wrong axis --------------------------------------
def _weights(q: torch.Tensor, c: torch.Tensor, lam: torch.Tensor) -> torch.Tensor:
    """Words [i, d], regions [j, d], λ [i] -> how much each word looks at each region [i, j]."""
    a = torch.nn.functional.leaky_relu(q @ c.T, 0.1)
    return (lam[:, None] * a / a.norm(dim=0, keepdim=True)).softmax(dim=1)


def _over_regions(q, c, lam):
    a = torch.nn.functional.leaky_relu(q @ c.T, 0.1)
    return (lam[:, None] * a / a.norm(dim=1, keepdim=True)).softmax(dim=1)


def _softmax_over_words(q, c, lam):
    a = torch.nn.functional.leaky_relu(q @ c.T, 0.1)
    return (lam[:, None] * a / a.norm(dim=0, keepdim=True)).softmax(dim=0)


def _leaky_last(q, c, lam):
    a = q @ c.T
    a = torch.nn.functional.leaky_relu(a / a.norm(dim=0, keepdim=True), 0.1)
    return (lam[:, None] * a).softmax(dim=1)


def _lam_first(q, c, lam):
    a = torch.nn.functional.leaky_relu(lam[:, None] * (q @ c.T), 0.1)
    return (a / a.norm(dim=0, keepdim=True)).softmax(dim=1)


def _divided(q, c, lam):
    return _weights(q, c, 1 / lam)


def _slope_of_torch(q, c, lam):
    a = torch.nn.functional.leaky_relu(q @ c.T)
    return (lam[:, None] * a / a.norm(dim=0, keepdim=True)).softmax(dim=1)


def _not_scaled(q, c, lam):
    return (lam[:, None] * torch.nn.functional.leaky_relu(q @ c.T, 0.1)).softmax(dim=1)


def _sides(generator: torch.Generator) -> tuple:
    words, regions = random_size(generator, 4, 7), random_size(generator, 3, 5)
    return (random_rows(generator, words, 5), random_rows(generator, regions, 5),
            1 + 9 * torch.rand(words, generator=generator))


mended = Exercise(
    name="mended",
    task="the attention of words over regions, the length taken over the words",
    reference=_weights,
    cases=_sides,
    mistakes={
        "as it was": Mistake(
            _over_regions,
            "still divide by the length over the regions. Then every word's row has length one, "
            "and a word that nothing answers is made as loud as one that is answered. The length "
            "of a region's column goes over the words: dim=0.",
        ),
        "softmax over the words": Mistake(
            _softmax_over_words,
            "share each region out among the words. Each word's weights over the regions must "
            "sum to one: softmax over dim=1.",
        ),
        "LeakyReLU after the length": Mistake(
            _leaky_last,
            "take the length before LeakyReLU. Negative products must be made small first, or "
            "they still fill the length.",
        ),
        "temperature before the length": Mistake(
            _lam_first,
            "multiply by λ before the length is taken: then it is divided out again in part. λ "
            "comes last, before the softmax.",
        ),
        "divided by lambda": Mistake(
            _divided,
            "divide by λ. It multiplies: a large λ makes a sharp look.",
        ),
        "another slope": Mistake(
            _slope_of_torch,
            "leave LeakyReLU its own slope of 0.01. Here it is one tenth: leaky_relu(…, 0.1).",
        ),
        "no length": Mistake(
            _not_scaled,
            "leave the length out. A region whose products are all large would win every word.",
        ),
    },
)


# Exercise 3, judge: whose gain is it -------------------------------------------------------
def _whose(whole: torch.Tensor, own: torch.Tensor, margin: float) -> torch.Tensor:
    """Intervals [n, 2] of the method minus the old baseline and minus the one with its head
    -> 2 the parts' own gain, 1 a gain, but not shown to be theirs, 0 no gain is shown."""
    gain = whole[:, 0] > margin
    return gain * (1.0 + (own[:, 0] > margin))


def _tables(generator: torch.Generator) -> tuple:
    """Every case once, then some at random."""
    n = random_size(generator, 9, 13)
    whole, own = ((0.16 * torch.rand(n, 1, generator=generator) - 0.04)
                  + torch.tensor([-0.02, 0.02]) for _ in range(2))
    whole[:7] = torch.tensor([[0.05, 0.09], [0.05, 0.09], [0.005, 0.045], [-0.02, 0.02],
                              [0.05, 0.09], [0.04, 0.08], [0.02, 0.06]])
    own[:7] = torch.tensor([[0.04, 0.08], [-0.005, 0.035], [0.04, 0.08], [0.05, 0.09],
                            [0.02, 0.06], [-0.09, -0.05], [0.04, 0.08]])
    return whole, own, 0.03


judged = Exercise(
    name="judged",
    task="for each study 2 where the gain is shown to be the new parts' own, 1 where there is a "
         "gain that is not, 0 where none is shown",
    reference=_whose,
    cases=_tables,
    mistakes={
        "old baseline alone": Mistake(
            lambda whole, own, margin: 2.0 * (whole[:, 0] > margin),
            "ask the old baseline alone. What the new head wins without the new parts is not "
            "theirs: the second interval must lie above the margin too.",
        ),
        "control alone": Mistake(
            lambda whole, own, margin: torch.where(own[:, 0] > margin, 2.0,
                                                   (whole[:, 0] > margin).float()),
            "give 2 where the method beats the one with its head, and not what was there before: "
            "then that head may have harmed. Without a gain over the old baseline it is 0.",
        ),
        "added up": Mistake(
            lambda whole, own, margin: (whole[:, 0] > margin).float() + (own[:, 0] > margin),
            "add the two answers up. The second one counts only where the first is yes: with no "
            "gain over the old baseline it is 0.",
        ),
        "own above zero": Mistake(
            lambda whole, own, margin: (whole[:, 0] > margin) * (1.0 + (own[:, 0] > 0)),
            "compare the second interval with zero. A difference is shown above the margin, in "
            "both.",
        ),
        "by the middle": Mistake(
            lambda whole, own, margin: (whole.mean(dim=1) > margin) * (
                1.0 + (own.mean(dim=1) > margin)),
            "judge by the middle of the interval. All of it must lie above the margin.",
        ),
        "above zero": Mistake(
            lambda whole, own, margin: (whole[:, 0] > 0) * (1.0 + (own[:, 0] > 0)),
            "compare with zero. The margin was stated before the run: less is not worth having.",
        ),
        "the upper end": Mistake(
            lambda whole, own, margin: (whole[:, 1] > margin) * (1.0 + (own[:, 1] > margin)),
            "look at the upper end: that a gain may be large is no evidence for it.",
        ),
    },
)
