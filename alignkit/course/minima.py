"""Exercises of the notebook on MINIMA: which matches to keep, an error that hides mirrors,
and what a test may be called."""

import torch

from .exercises import Exercise, Mistake, random_size


# Exercise 1: the matches to keep --------------------------------------------------------
def _p(scores):
    return scores.softmax(dim=1) * scores.softmax(dim=0)


def _mutual(p):
    return (p == p.amax(1, keepdim=True)) & (p == p.amax(0, keepdim=True))


def _kept(scores, threshold):
    """[p, q] -> [p, q], 1 where the match is kept."""
    p = _p(scores)
    return (_mutual(p) & (p > threshold)).float()


def _kept_cases(generator):
    p = random_size(generator, 5, 9)
    q = p + random_size(generator, 0, 3)
    scores = 2 * torch.randn(p, q, generator=generator)
    scores[range(p - 1), range(p - 1)] += 3.0
    scores[p - 1, 0] = scores[0, 0] - 0.3  # row p − 1 loves a column that loves another
    return scores, 0.2


kept = Exercise(
    name="kept",
    task="1 where P > threshold and P is the largest of its row and of its column, else 0",
    reference=_kept,
    cases=_kept_cases,
    trials=48,  # most scores have the same cells by each rule
    mistakes={
        "one softmax": Mistake(
            lambda s, t: (_mutual(s.softmax(1)) & (s.softmax(1) > t)).float(),
            "take one softmax. P is the softmax over the row times that over the column.",
        ),
        "rows alone": Mistake(
            lambda s, t: ((_p(s) == _p(s).amax(1, keepdim=True)) & (_p(s) > t)).float(),
            "look for the best of each row alone. Two cells may then claim one place: it "
            "must be the best of its column, too.",
        ),
        "columns alone": Mistake(
            lambda s, t: ((_p(s) == _p(s).amax(0, keepdim=True)) & (_p(s) > t)).float(),
            "look for the best of each column alone. It must be the best of its row, too.",
        ),
        "best of S": Mistake(
            lambda s, t: (_mutual(s) & (_p(s) > t)).float(),
            "look for the best among the scores. P is not in their order: it also counts "
            "how strong the rest of the row and of the column is.",
        ),
        "no threshold": Mistake(
            lambda s, t: _mutual(_p(s)).float(),
            "keep every mutual match. Where nothing fits, something is still the best: ask "
            "for P above the threshold.",
        ),
        "threshold alone": Mistake(
            lambda s, t: (_p(s) > t).float(),
            "keep all that is above the threshold. One cell may then have two matches: ask "
            "for the best of row and column.",
        ),
        "a table of truths": Mistake(
            lambda s, t: _kept(s, t).bool(),
            "return True and False. The task asks for ones and zeros as float32.",
        ),
    },
)


# Exercise 2: the error that hides mirrors -----------------------------------------------
def _error(found, truth, lost):
    """[n, 4, 2], [n, 4, 2] -> [n]; `lost` where a corner is not a number."""
    error = (found - truth).norm(dim=-1).mean(-1)
    return torch.where(error.isnan(), lost, error)


def _in_order(corners):
    """Corners sorted by x, then y: what the code of the exercise does."""
    keys = 1000 * corners[..., 0] + corners[..., 1]
    return corners.gather(1, keys.argsort(1)[..., None].expand_as(corners))


def _error_cases(generator):
    n = random_size(generator, 4, 8)
    square = torch.tensor([[0.0, 0], [9, 0], [9, 9], [0, 9]])
    truth = square + torch.rand(n, 4, 2, generator=generator)
    found = truth + torch.randn(n, 4, 2, generator=generator)
    found[0] = truth[0, [1, 0, 3, 2]]  # mirrored
    found[1] = torch.nan  # no homography was found
    found[2, 1] = torch.nan  # one corner at infinity
    return found, truth, 99.0


error = Exercise(
    name="error",
    task="mean distance of each corner from its own place, [n]; `lost` where one is NaN",
    reference=_error,
    cases=_error_cases,
    mistakes={
        "still sorted": Mistake(
            lambda f, t, lost: _error(_in_order(f), _in_order(t), lost),
            "still put the corners in order first. A mirrored picture has the same four "
            "corners: each must be compared with itself.",
        ),
        "failures left out": Mistake(
            lambda f, t, lost: (f - t).norm(dim=-1).mean(-1).nan_to_num(0.0),
            "give failures the error 0. Where no homography was found the error is `lost`.",
        ),
        "lost before the mean": Mistake(
            lambda f, t, lost: (f - t).norm(dim=-1).nan_to_num(lost).mean(-1),
            "write `lost` for one corner and go on to the mean. A picture with one corner "
            "missing is lost as a whole.",
        ),
        "one root": Mistake(
            lambda f, t, lost: (f - t).flatten(1).norm(dim=1).nan_to_num(lost),
            "take one root over all four corners. Each corner has its own distance; then "
            "the mean.",
        ),
        "NaN": Mistake(
            lambda f, t, lost: (f - t).norm(dim=-1).mean(-1),
            "leave NaN where nothing was found. It would vanish from a mean or spoil it: "
            "write `lost`.",
        ),
        "squared": Mistake(
            lambda f, t, lost: torch.where(
                f.isnan().any(-1).any(-1), lost, ((f - t) ** 2).sum(-1).mean(-1)),
            "forget the root: a distance is the root of the sum of squares.",
        ),
        "summed": Mistake(
            lambda f, t, lost: torch.where(_error(f, t, -1.0) < 0, lost, 4 * _error(f, t, lost)),
            "add the four distances up. The error is their mean.",
        ),
    },
)


# Exercise 3: what a test may be called --------------------------------------------------
def _called(generator_of, trained, seen):
    """[t], [g] bool, [t] bool -> [t]: 2 unseen modality, 1 trained modality, 0 no test."""
    unseen = (~trained[generator_of]).float()
    return (1 + unseen) * (~seen).float()


def _called_cases(generator):
    tests, kinds = random_size(generator, 8, 14), random_size(generator, 4, 7)
    trained = torch.rand(kinds, generator=generator) < 0.5
    trained[:2] = torch.tensor([True, False])
    generator_of = torch.randint(kinds, (tests,), generator=generator)
    seen = torch.rand(tests, generator=generator) < 0.4
    generator_of[:4] = torch.tensor([0, 0, 1, 1])
    seen[:4] = torch.tensor([True, False, True, False])
    return generator_of, trained, seen


called = Exercise(
    name="called",
    task="2 for an unseen modality, 1 for a trained one, 0 where its pictures were trained on",
    reference=_called,
    cases=_called_cases,
    mistakes={
        "pictures forgotten": Mistake(
            lambda g, trained, seen: 1 + (~trained[g]).float(),
            "forget the pictures. In an unseen modality, too, a picture of the training "
            "set tests what was learned by heart.",
        ),
        "excused": Mistake(
            lambda g, trained, seen: torch.where(trained[g], (~seen).float(), 2.0),
            "let an unseen modality excuse pictures that were trained on: what they show "
            "may have been learned by heart all the same.",
        ),
        "turned round": Mistake(
            lambda g, trained, seen: (1 + trained[g].float()) * (~seen).float(),
            "call a modality unseen that was trained on, and the other way round.",
        ),
        "never unseen": Mistake(
            lambda g, trained, seen: (~seen).float(),
            "call every test on new pictures one of a trained modality. Where the generator "
            "was not used in training it is 2.",
        ),
        "pictures the wrong way": Mistake(
            lambda g, trained, seen: (1 + (~trained[g]).float()) * seen.float(),
            "give 0 to new pictures. It is those seen in training that test nothing.",
        ),
        "whole numbers": Mistake(
            lambda g, trained, seen: _called(g, trained, seen).long(),
            "return whole numbers. The task asks for float32.",
        ),
    },
)
