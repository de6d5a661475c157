"""Exercises of the notebook on XBind: counting faces, a pull that is guided wrongly, and who
may judge."""

import torch

from .exercises import Exercise, Mistake, random_size


# Exercise 1: how many faces -------------------------------------------------------------
def _peaks(scores):
    return (scores > scores.roll(1, 1)) & (scores > scores.roll(-1, 1))


def _faces(scores, threshold):
    """[n, views], a number -> [n]: peaks around the circle above the threshold."""
    return (_peaks(scores) & (scores > threshold)).float().sum(1)


def _faces_cases(generator):
    n, views = random_size(generator, 3, 6), 2 * random_size(generator, 3, 5)
    scores = torch.rand(n, views, generator=generator)
    scores[0, 0], scores[0, 1], scores[0, -1] = 1.5, 0.2, 0.1  # a face across the seam
    scores[1, :3] = torch.tensor([0.7, 0.9, 0.8])  # three above, one face
    scores[2, 2:5] = torch.tensor([0.1, 0.3, 0.2])  # a peak that is no face
    return scores, 0.5


def _on_a_line(scores, threshold):
    inner = (scores[:, 1:-1] > scores[:, :-2]) & (scores[:, 1:-1] > scores[:, 2:])
    return (inner & (scores[:, 1:-1] > threshold)).float().sum(1)


faces = Exercise(
    name="faces",
    task="float32 [n]: how many views are above the threshold and above both neighbours",
    reference=_faces,
    cases=_faces_cases,
    mistakes={
        "a line": Mistake(
            _on_a_line,
            "end at the first and the last view. The camera goes once around: these two are "
            "neighbours.",
        ),
        "all above": Mistake(
            lambda s, t: (s > t).float().sum(1),
            "count every view above the threshold. A face is seen from several sides in a "
            "row: count the highest of them alone.",
        ),
        "no threshold": Mistake(
            lambda s, t: _peaks(s).float().sum(1),
            "count peaks below the threshold. A bump on the back of the head is no face.",
        ),
        "one neighbour": Mistake(
            lambda s, t: ((s > s.roll(1, 1)) & (s > t)).float().sum(1),
            "compare with one neighbour. A peak is higher than both.",
        ),
        "stretches": Mistake(
            lambda s, t: ((s > t) & ~(s > t).roll(1, 1)).float().sum(1),
            "count stretches above the threshold. Between two faces the score need not fall "
            "below it: look for the peaks.",
        ),
        "other solids": Mistake(
            lambda s, t: ((s > s.roll(1, 0)) & (s > s.roll(-1, 0)) & (s > t)).float().sum(1),
            "compare with other solids. Neighbours are views of the same one: roll along "
            "the second axis.",
        ),
        "whole numbers": Mistake(
            lambda s, t: _faces(s, t).long(),
            "return whole numbers. The task asks for float32.",
        ),
    },
)


# Exercise 2: the guided pull ------------------------------------------------------------
def _pull(noisy, noise, told, free, a, s, guidance, off=0):
    clean = free + (guidance + off) * (told - free)
    return s[:, None] * ((noisy - a[:, None] * clean) / s[:, None] - noise)


def _pull_cases(generator):
    n, p = random_size(generator, 3, 6), random_size(generator, 5, 9)
    noise, told, free, x = (torch.randn(n, p, generator=generator) for _ in range(4))
    t = 0.2 + 0.6 * torch.rand(n, generator=generator)
    a, s = torch.cos(t * torch.pi / 2), torch.sin(t * torch.pi / 2)
    return a[:, None] * x + s[:, None] * noise, noise, told, free, a, s, 3.0


pull = Exercise(
    name="pull",
    task="s times (the guided guess of the noise minus the noise that was added), [n, p]",
    reference=_pull,
    cases=_pull_cases,
    mistakes={
        "as it was": Mistake(
            lambda noisy, noise, told, free, a, s, w:
                _pull(noisy, noise, told, free, a, s, w, off=1) / s[:, None],
            "return what the colleague's code returns. Two things are wrong in it: where the "
            "guidance starts from, and the weight of the difference.",
        ),
        "turned round": Mistake(
            lambda noisy, noise, told, free, a, s, w:
                _pull(noisy, noise, told, free, a, s, -w),
            "guide away from the prompt: the difference is told − free.",
        ),
        "guided once more": Mistake(
            lambda *x: _pull(*x, off=1),
            "still start from the guess that was told: told + guidance · (told − free) is "
            "guidance + 1. With guidance 1 the guess must be the one that was told.",
        ),
        "not weighed": Mistake(
            lambda noisy, noise, told, free, a, s, w:
                _pull(noisy, noise, told, free, a, s, w) / s[:, None],
            "leave out the weight s. Where there is hardly any noise the guess of it is "
            "divided by almost nothing, and its errors would rule.",
        ),
        "the other way": Mistake(
            lambda *x: -_pull(*x),
            "point the other way: the guess minus the noise. A step of descent goes against it.",
        ),
        "noise kept": Mistake(
            lambda noisy, noise, told, free, a, s, w:
                _pull(noisy, 0 * noise, told, free, a, s, w),
            "do not take off the noise that was added. Its mean is zero, but each draw of it "
            "shakes the solid.",
        ),
    },
)


# Exercise 3: who may judge --------------------------------------------------------------
def _fair(used, judge, family):
    """Bool [r, k], [r], [k] -> [r]: 1 where no used encoder is of the judge's family."""
    same = family[None] == family[judge][:, None]
    return (~(used & same).any(1)).float()


def _fair_cases(generator):
    runs, kinds = random_size(generator, 8, 12), random_size(generator, 5, 7)
    family = torch.randint(3, (kinds,), generator=generator)
    family[:3] = torch.tensor([0, 0, 1])
    used = torch.rand(runs, kinds, generator=generator) < 0.35
    judge = torch.randint(kinds, (runs,), generator=generator)
    used[0], judge[0] = False, 1
    used[0, 0] = True  # another network, the same family
    used[1], judge[1] = False, 0
    used[1, 2] = True  # a stranger
    return used, judge, family


fair = Exercise(
    name="fair",
    task="1 where no encoder that made the solid is of the judge's family, else 0",
    reference=_fair,
    cases=_fair_cases,
    mistakes={
        "itself alone": Mistake(
            lambda used, judge, family:
                (~used[torch.arange(len(judge)), judge]).float(),
            "ask only whether the judge itself was used. One that was trained from the same "
            "weights or pictures errs where its sibling does: compare families.",
        ),
        "turned round": Mistake(
            lambda used, judge, family: 1 - _fair(used, judge, family),
            "give 1 to the runs that judge themselves. It is the others that may be told.",
        ),
        "a number for a family": Mistake(
            lambda used, judge, family:
                (~(used & (family[None] == judge[:, None])).any(1)).float(),
            "compare families with the number of the judge. Its family is family[judge].",
        ),
        "itself left out": Mistake(
            lambda used, judge, family: _fair(
                used & (torch.arange(len(family)) != judge[:, None]), judge, family),
            "let a judge pass that had a part itself. It is of its own family: count it too.",
        ),
        "all of them": Mistake(
            lambda used, judge, family:
                (used & (family[None] != family[judge][:, None])).any(1).float(),
            "are content with one stranger among the encoders. A single relative of the judge "
            "is enough to flatter it.",
        ),
        "a table of truths": Mistake(
            lambda used, judge, family: _fair(used, judge, family).bool(),
            "return True and False. The task asks for ones and zeros as float32.",
        ),
    },
)
