"""Exercises of the notebook on LXMERT: what a row with another's words can still teach, a
loss of what was hidden, and whether a model looks at the picture."""

import torch

from .exercises import Exercise, Mistake, random_size

NOTHING = -100  # is asked of this row


# Exercise 1, build: what is asked of a row that took another row's words ---------------
def _targets(item, answer, words):
    """Pictures' numbers [n], answers to the rows' texts [n] (-100: none), whose text each
    row takes [n] -> [2, n]: matched or not, and the answer."""
    matched = item[words] == item
    asked = answer[words].masked_fill(~matched, NOTHING)
    return torch.stack([matched.long(), asked])


def _same_row(item, answer, words):
    matched = words == torch.arange(len(item))
    return torch.stack([matched.long(), answer[words].masked_fill(~matched, NOTHING)])


def _own_answer(item, answer, words):
    matched = item[words] == item
    return torch.stack([matched.long(), answer.masked_fill(~matched, NOTHING)])


def _answers_of_strangers(item, answer, words):
    return torch.stack([(item[words] == item).long(), answer[words]])


def _turned(item, answer, words):
    strange = item[words] != item
    return torch.stack([strange.long(), answer[words].masked_fill(strange, NOTHING)])


def _dealt(g):
    """Rows 0 and 1 show one picture, 2 and 3 two; all four take another's text."""
    n = random_size(g, 8, 13)
    item = torch.randint(4, 7, (n,), generator=g)
    item[:4] = torch.tensor([0, 0, 1, 2])
    answer = torch.randint(10, (n,), generator=g)
    answer[torch.rand(n, generator=g) < 0.3] = NOTHING
    answer[:4] = torch.tensor([1, 2, 3, 4])
    words = torch.where(torch.rand(n, generator=g) < 0.5, torch.arange(n),
                        torch.randint(n, (n,), generator=g))
    words[:4] = torch.tensor([1, 0, 3, 2])
    return item, answer, words


targets = Exercise(
    name="targets",
    task="[2, n]: 1 where words and picture belong together, else 0; the answer, or -100",
    reference=_targets,
    cases=_dealt,
    mistakes={
        "the same row": Mistake(
            _same_row,
            "call a text a stranger's because it is of another row. Two rows may show one "
            "picture: compare the pictures, not the rows.",
        ),
        "own answer": Mistake(
            _own_answer,
            "keep the answer of the row. The text has changed, so the answer is that of "
            "the row that the text is from.",
        ),
        "answers of strangers": Mistake(
            _answers_of_strangers,
            "ask for answers about a picture that is not there. Where words and picture do "
            "not belong together, there is no answer: -100.",
        ),
        "turned": Mistake(
            _turned,
            "turn the first row round: 1 says that words and picture belong together.",
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
    if torch.rand((), generator=g) < 0.4:
        hidden[:] = False
    return (*(2 * torch.randn(n, r, 3, generator=g) for _ in range(2)), hidden)


masked_loss = Exercise(
    name="masked_loss",
    task="smooth L1 (mean over features), mean over the hidden regions; 0 if none is",
    reference=_values_loss,
    cases=_hidden_case,
    trials=24,  # so that in some nothing is hidden, and in others something
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
    """[n] each -> 1: it looks; 0: it does not; -1: the comparison is broken."""
    looks = (own - other > margin).float()
    return torch.where(other > prior + margin, -torch.ones_like(own), looks)


def _scores(g):
    """Every kind of model at least once, then some by chance."""
    n = random_size(g, 6, 12)
    prior = 0.2 + 0.3 * torch.rand(n, generator=g)
    other = prior + 0.5 * torch.rand(n, generator=g) - 0.2
    own = other + 0.6 * torch.rand(n, generator=g) - 0.2
    known = torch.tensor([[0.85, 0.25, 0.3], [0.9, 0.7, 0.3], [0.5, 0.5, 0.2],
                          [0.46, 0.39, 0.3], [0.3, 0.3, 0.3], [0.35, 0.2, 0.3]])
    return *torch.cat([known, torch.stack([own, other, prior], 1)]).T.clone().unbind(0), 0.1


judged = Exercise(
    name="judged",
    task="1: it looks; 0: it does not; -1: another's picture answers more than words know",
    reference=_looks,
    cases=_scores,
    mistakes={
        "own alone": Mistake(
            lambda own, other, prior, margin: (own > prior + margin).float(),
            "compare with the prior alone. A model may know more of the words than you "
            "think: give this very model another's picture.",
        ),
        "difference alone": Mistake(
            lambda own, other, prior, margin: (own - other > margin).float(),
            "look at the difference alone. Where another's picture answers more than the "
            "words can know, something leaks, and nothing may be said: -1.",
        ),
        "a leak is a no": Mistake(
            lambda own, other, prior, margin: (
                (own - other > margin) & (other <= prior + margin)).float(),
            "say 0 where something leaks. The model may look or not: this comparison "
            "cannot tell, so it is -1.",
        ),
        "more than the prior": Mistake(
            lambda own, other, prior, margin: torch.where(
                other > prior + margin, -torch.ones_like(own),
                (own - prior > margin).float()),
            "subtract the prior. What the picture gives is what is lost when it is "
            "another's: own minus other.",
        ),
    },
)
