"""Exercises of the notebook on LXMERT: two streams that look at each other at once, a loss
of what was hidden, and whether a model looks at the picture."""

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: both look at the other as it came in ------------------------------
def _look(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a @ b.T / a.shape[1] ** 0.5).softmax(1) @ b


def _both(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Words [t, d] and regions [r, d] -> [t + r, d], each with what it saw added."""
    return torch.cat([x + _look(x, y), y + _look(y, x)])


def _one_after_the_other(x, y):
    x = x + _look(x, y)
    return torch.cat([x, y + _look(y, x)])


def _nothing_kept(x, y):
    return torch.cat([_look(x, y), _look(y, x)])


def _at_itself(x, y):
    return torch.cat([x + _look(x, x), y + _look(y, y)])


def _unscaled(x, y):
    return torch.cat([x + (x @ y.T).softmax(1) @ y, y + (y @ x.T).softmax(1) @ x])


def _wrong_axis(x, y):
    scale = x.shape[1] ** 0.5
    return torch.cat([x + (x @ y.T / scale).softmax(0) @ y,
                      y + (y @ x.T / scale).softmax(0) @ x])


both = Exercise(
    name="both",
    task="words and regions [t + r, d], each plus what it saw of the other, at once",
    reference=_both,
    cases=lambda g: tuple(random_rows(g, random_size(g, 2, 6), 4) for _ in range(2)),
    mistakes={
        "one after the other": Mistake(
            _one_after_the_other,
            "let regions look at words that have looked already. Both see the other as "
            "it came in: keep the old x until y is done.",
        ),
        "nothing kept": Mistake(
            _nothing_kept,
            "leave out the residual. What was seen is added to what was there.",
        ),
        "at itself": Mistake(
            _at_itself,
            "let each stream look at itself. Keys and values are the other's.",
        ),
        "unscaled": Mistake(
            _unscaled,
            "forget to divide the scores by the square root of d before the softmax.",
        ),
        "wrong axis": Mistake(
            _wrong_axis,
            "take the softmax over who looks. It is over what is looked at: each row of "
            "weights sums to one.",
        ),
    },
)


# Exercise 2, transfer: find the bug ----------------------------------------------------
def _values_loss(found, wanted, hidden):
    """[n, r, d], [n, r, d], bool [n, r] -> mean over the hidden regions, 0 if none is."""
    off = (found - wanted).abs()
    each = torch.where(off < 1, off * off / 2, off - 0.5).mean(2)
    return (each * hidden).sum() / hidden.sum().clamp(min=1)


def _each(found, wanted):
    off = (found - wanted).abs()
    return torch.where(off < 1, off * off / 2, off - 0.5).mean(2)


def _hidden_case(g):
    n, r = random_size(g, 2, 5), random_size(g, 2, 5)
    hidden = torch.rand(n, r, generator=g) < 0.4
    hidden[0, 0], hidden[-1, -1] = True, False
    if random_size(g, 0, 4) == 0:
        hidden = hidden & False
    return (*(2 * torch.randn(n, r, 3, generator=g) for _ in range(2)), hidden)


masked_loss = Exercise(
    name="masked_loss",
    task="smooth L1 (mean over features), mean over the hidden regions; 0 if none is",
    reference=_values_loss,
    cases=_hidden_case,
    mistakes={
        "all regions": Mistake(
            lambda found, wanted, hidden: _each(found, wanted).mean(),
            "ask for every region. One that is seen can be copied: only those that are "
            "hidden teach anything.",
        ),
        "shared out": Mistake(
            lambda found, wanted, hidden: (_each(found, wanted) * hidden).mean(),
            "divide by the number of all regions. Divide by that of the hidden ones.",
        ),
        "no guard": Mistake(
            lambda found, wanted, hidden: (_each(found, wanted) * hidden).sum()
            / hidden.sum(),
            "divide by zero where no region is hidden. The loss is 0 then.",
        ),
        "squares": Mistake(
            lambda found, wanted, hidden: (((found - wanted) ** 2).mean(2) * hidden).sum()
            / hidden.sum().clamp(min=1),
            "take squares. Smooth L1 is half the square below 1, and the distance less a "
            "half above.",
        ),
    },
)


# Exercise 3, judge: does it look at the picture? ----------------------------------------
def _looks(own, other, prior, margin):
    """[n] each -> 1 where the answers come from the picture, else 0."""
    return ((own - other > margin) & (other <= prior + margin)).float()


def _scores(g):
    n = random_size(g, 10, 16)
    prior = 0.2 + 0.3 * torch.rand(n, generator=g)
    other = prior + 0.5 * torch.rand(n, generator=g) - 0.2
    own = other + 0.6 * torch.rand(n, generator=g) - 0.2
    return own, other, prior, 0.1


judged = Exercise(
    name="judged",
    task="1 where own − other > margin and other ≤ prior + margin, else 0",
    reference=_looks,
    cases=_scores,
    mistakes={
        "own alone": Mistake(
            lambda own, other, prior, margin: (own > prior + margin).float(),
            "compare with words alone. A model may know more of the words than you "
            "think: take the picture away from this very model.",
        ),
        "difference alone": Mistake(
            lambda own, other, prior, margin: (own - other > margin).float(),
            "look at the difference alone. With another's picture it must know no more "
            "than words do, or the other pictures leak the answer.",
        ),
        "other alone": Mistake(
            lambda own, other, prior, margin: (other <= prior + margin).float(),
            "forget its own picture: a model that knows nothing passes, too.",
        ),
    },
)
