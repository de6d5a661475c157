"""Exercises of the notebook on a sound in the place of a picture: the length outside a
subspace, patches chosen by a colleague, and what two intervals allow to be said."""

import torch
from torch.nn.functional import normalize

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: outside the pictures' subspace -------------------------------------
def _directions(v: torch.Tensor, k: int, centre: bool = True) -> torch.Tensor:
    rows = v - v.mean(0) if centre else v
    return torch.linalg.svd(rows, full_matrices=False).Vh[:k]


def _shares(x: torch.Tensor, directions: torch.Tensor) -> torch.Tensor:
    rest = x - x @ directions.T @ directions
    return rest.norm(dim=1) / x.norm(dim=1)


def _outside(x: torch.Tensor, v: torch.Tensor, k: int) -> torch.Tensor:
    """[n, d], [m, d], k -> the mean share of a row's length outside."""
    return _shares(x, _directions(v, k)).mean()


def _spaces(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    d = random_size(generator, 4, 7)
    shift = 2 * random_rows(generator, 1, d)
    return (random_rows(generator, random_size(generator, 5, 9), d),
            random_rows(generator, random_size(generator, 9, 14), d) + shift,
            random_size(generator, 1, 3))


outside = Exercise(
    name="outside",
    task="the mean over rows of |(I − P) x| / |x|, P onto the k leading directions of v",
    reference=_outside,
    cases=_spaces,
    mistakes={
        "not centred": Mistake(
            lambda x, v, k: _shares(x, _directions(v, k, centre=False)).mean(),
            "take v's directions without subtracting its mean: the first one then points at "
            "the mean and not to where the pictures differ.",
        ),
        "inside": Mistake(
            lambda x, v, k: ((x @ _directions(v, k).T).norm(dim=1) / x.norm(dim=1)).mean(),
            "give the share inside. Take from x what P keeps, and measure what is left.",
        ),
        "one less inside": Mistake(
            lambda x, v, k: 1 - ((x @ _directions(v, k).T).norm(dim=1)
                                 / x.norm(dim=1)).mean(),
            "take the share inside from one. Lengths do not add up (their squares do): "
            "measure what is left of x.",
        ),
        "one share": Mistake(
            lambda x, v, k: (x - x @ _directions(v, k).T @ _directions(v, k)).norm(
                dim=1).mean() / x.norm(dim=1).mean(),
            "divide one mean by another. Each row has its share; then the mean.",
        ),
        "least": Mistake(
            lambda x, v, k: _shares(x, _directions(v, v.shape[1])[-k:]).mean(),
            "take the directions in which v varies least. The singular vectors come in "
            "falling order (those of eigh in rising order).",
        ),
        "squared": Mistake(
            lambda x, v, k: _shares(x, _directions(v, k)).square().mean(),
            "give shares of the squared length. Lengths are compared, not their squares.",
        ),
        "x centred": Mistake(
            lambda x, v, k: _shares(x - x.mean(0), _directions(v, k)).mean(),
            "subtract the mean of x. A token is taken as it is; only v is centred.",
        ),
    },
)


# Exercise 2, transfer: a colleague's patches -------------------------------------------
def _placed(token: torch.Tensor, patches: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return torch.cat([token[None], patches[at]])


def _mended(token: torch.Tensor, patches: torch.Tensor, k: int) -> torch.Tensor:
    """[d], [p, d], k -> [1 + k, d]"""
    cosines = normalize(patches, dim=1) @ token
    return _placed(token, patches, cosines.topk(k).indices)


def _scene(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, int]:
    p, d = random_size(generator, 9, 14), random_size(generator, 3, 6)
    lengths = 0.2 + 5 * torch.rand(p, 1, generator=generator)
    return (random_rows(generator, 1, d)[0],
            normalize(random_rows(generator, p, d), dim=1) * lengths,
            random_size(generator, 2, 5))


def _first(token, patches, k):
    return _placed(token, patches, torch.arange(k))


mended = Exercise(
    name="mended",
    task="the token, then the k patches of the largest cosine to it, the nearest first",
    reference=_mended,
    cases=_scene,
    mistakes={
        "long ones win": Mistake(
            lambda token, patches, k: _placed(token, patches,
                                              (patches @ token).topk(k).indices),
            "still let a long patch win: divide each patch by its length before you "
            "compare.",
        ),
        "farthest": Mistake(
            lambda token, patches, k: _placed(
                token, patches, (normalize(patches, dim=1) @ token).topk(
                    k, largest=False).indices),
            "take the patches that are least like the token.",
        ),
        "unit patches": Mistake(
            lambda token, patches, k: _placed(
                token, normalize(patches, dim=1),
                (normalize(patches, dim=1) @ token).topk(k).indices),
            "hand over patches of length one. Lengths are for choosing; LLaVA gets the "
            "patches as they are.",
        ),
        "unit token": Mistake(
            lambda token, patches, k: torch.cat([
                normalize(token, dim=0)[None], _mended(token, patches, k)[1:]]),
            "hand over a token of length one. LLaVA gets it as it is.",
        ),
        "by place": Mistake(
            lambda token, patches, k: _placed(
                token, patches, (normalize(patches, dim=1) @ token).topk(
                    k).indices.sort().values),
            "give the right patches in the order of the picture. The nearest comes first.",
        ),
        "the first ones": Mistake(_first, "take the first k patches and compare nothing."),
    },
)


# Exercise 3, judge: what two intervals allow ------------------------------------------
def _judge(off, shown, margin: float, kept) -> torch.Tensor:
    lost = off[:, 0] > margin
    also = shown[:, 0] > margin
    return torch.where(lost & kept(shown, margin), 2.0, torch.where(lost & also, 1.0, 0.0))


def _inside(ends: torch.Tensor, margin: float) -> torch.Tensor:
    return (ends[:, 0] > -margin) & (ends[:, 1] < margin)


def _judged(off: torch.Tensor, shown: torch.Tensor, margin: float) -> torch.Tensor:
    """Ends of intervals [n, 2], [n, 2] -> 2 selective, 1 both are lost, 0 else."""
    return _judge(off, shown, margin, _inside)


def _tables(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Every case once, then some at random: lows and widths that reach all verdicts."""
    n = random_size(generator, 14, 20)
    low = torch.stack([0.16 * torch.rand(n, generator=generator),
                       0.2 * torch.rand(n, generator=generator) - 0.1], 1)
    width = 0.01 + 0.09 * torch.rand(n, 2, generator=generator)
    low[:4] = torch.tensor([[0.08, -0.02], [0.08, -0.08], [0.08, 0.07], [0.03, -0.02]])
    width[:4] = torch.tensor([[0.03, 0.05], [0.03, 0.16], [0.03, 0.03], [0.08, 0.05]])
    return torch.stack([low[:, 0], (low + width)[:, 0]], 1), torch.stack(
        [low[:, 1], (low + width)[:, 1]], 1), 0.05


judged = Exercise(
    name="judged",
    task="for each run 2 for a selective loss, 1 where both words are lost, 0 for all else",
    reference=_judged,
    cases=_tables,
    mistakes={
        "zero inside": Mistake(
            lambda off, shown, margin: _judge(
                off, shown, margin, lambda ends, margin: (ends[:, 0] < 0) & (ends[:, 1] > 0)),
            "take an interval with zero in it as 'kept'. A wide one allows a large loss, "
            "too: 'kept' needs all of it inside ± margin.",
        ),
        "by the middle": Mistake(
            lambda off, shown, margin: _judged(
                off.mean(1, keepdim=True).expand(-1, 2),
                shown.mean(1, keepdim=True).expand(-1, 2), margin),
            "judge by the middles. The whole interval must lie where the verdict says.",
        ),
        "above zero": Mistake(
            lambda off, shown, margin: torch.where(
                (off[:, 0] > 0) & _inside(shown, margin), 2.0,
                torch.where((off[:, 0] > 0) & (shown[:, 0] > 0), 1.0, 0.0)),
            "call a loss what lies above zero. It must lie above the margin.",
        ),
        "one end": Mistake(
            lambda off, shown, margin: _judge(
                off, shown, margin, lambda ends, margin: ends[:, 1] < margin),
            "look at the high end alone. A word that is read much better than before is "
            "not inside ± margin either.",
        ),
        "lost is enough": Mistake(
            lambda off, shown, margin: _judge(
                off, shown, margin, lambda ends, margin: ends[:, 0] <= margin),
            "call a loss selective wherever the other one is not shown to be lost. That "
            "nothing was shown does not show that nothing is lost.",
        ),
    },
)
