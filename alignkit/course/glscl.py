"""Exercises of the notebook on global and local video retrieval: the best frames alone, a
score that forgets short videos, and where a cheap head is cheaper."""

from collections.abc import Callable

import torch

from .exercises import Exercise, Mistake, random_rows, random_size


# Exercise 1, build: pool the best frames -----------------------------------------------
def _best(t: torch.Tensor, f: torch.Tensor, real: torch.Tensor, k: int, tau: float,
          ) -> torch.Tensor:
    """Text [d], frames [n, d], bool [n], k, τ -> the best k real frames, weighed [d]."""
    products = (f @ t).masked_fill(~real, -torch.inf)
    top = products.topk(min(k, int(real.sum())))
    return (top.values / tau).softmax(dim=0) @ f[top.indices]


def _weights_cut(t, f, real, k, tau):
    weights = (f @ t / tau).masked_fill(~real, -torch.inf).softmax(dim=0)
    top = weights.topk(min(k, int(real.sum())))
    return top.values @ f[top.indices]


def _even(t, f, real, k, tau):
    return _best(t, f, real, k, 1e9)


def _film(generator: torch.Generator) -> tuple:
    """One to six real frames, so at times fewer than k; what fills up is nearer to the
    text than any of them."""
    n = random_size(generator, 8, 10)
    real = torch.arange(n) < random_size(generator, 1, 7)
    t = torch.randn(5, generator=generator)
    f = torch.randn(n, 5, generator=generator) - 0.5 * t  # some products are below 0
    f[~real] = 3 * t
    order = torch.randperm(n, generator=generator)
    return t, f[order], real[order], random_size(generator, 2, 5), 2.0


best_frames = Exercise(
    name="best_frames",
    task="the k real frames with the largest product with the text, weighed by a softmax "
         "among these k alone",
    reference=_best,
    cases=_film,
    mistakes={
        "padding too": Mistake(
            lambda t, f, real, k, tau: _best(t, f, torch.ones_like(real), k, tau),
            "let padding take part. Set its products to minus infinity before you choose.",
        ),
        "padding as zeros": Mistake(
            lambda t, f, real, k, tau: _best(t, f * real[:, None], torch.ones_like(real), k,
                                             tau),
            "set padding to zero. A product of 0 is more than a negative one: padding can "
            "still be chosen. It must be minus infinity.",
        ),
        "softmax before the cut": Mistake(
            _weights_cut,
            "take the softmax over all frames and then keep k of its weights: they no longer "
            "sum to one. Choose first.",
        ),
        "all frames": Mistake(
            lambda t, f, real, k, tau: _best(t, f, real, len(f), tau),
            "weigh all real frames. Only the best k take part.",
        ),
        "the farthest": Mistake(
            lambda t, f, real, k, tau: -_best(t, -f, real, k, tau),
            "take the frames with the smallest products.",
        ),
        "times tau": Mistake(
            lambda t, f, real, k, tau: _best(t, f, real, k, 1 / tau),
            "multiply by tau. Products are divided by it: a small tau makes the best frame "
            "win.",
        ),
        "even weights": Mistake(
            _even,
            "take the plain mean of the k frames. Weigh them by their softmax.",
        ),
    },
)


# Exercise 2, transfer: find the bug in a score ------------------------------------------
def _scores(t: torch.Tensor, f: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Texts [a, d], frames [b, n, d], bool [b, n] -> t · v [a, b]."""
    products = torch.einsum("ad,bnd->abn", t, f).masked_fill(~real, -torch.inf)
    return torch.einsum("abn,bnd,ad->ab", products.softmax(dim=2), f, t)


def _zeroed_after(t, f, real):
    weights = torch.einsum("ad,bnd->abn", t, f).softmax(dim=2) * real
    return torch.einsum("abn,bnd,ad->ab", weights, f, t)


def _zeroed_before(t, f, real):
    weights = (torch.einsum("ad,bnd->abn", t, f) * real).softmax(dim=2)
    return torch.einsum("abn,bnd,ad->ab", weights, f, t)


def _zeroed_twice(t, f, real):
    weights = (torch.einsum("ad,bnd->abn", t, f) * real).softmax(dim=2) * real
    return torch.einsum("abn,bnd,ad->ab", weights, f, t)


def _padding_read(t, f, real):
    return _scores(t, f, torch.ones_like(real))


def _cosines(t, f, real):
    products = torch.einsum("ad,bnd->abn", t, f).masked_fill(~real, -torch.inf)
    v = torch.einsum("abn,bnd->abd", products.softmax(dim=2), f)
    return torch.cosine_similarity(t[:, None], v, dim=2)


def _over_videos(t, f, real):
    products = torch.einsum("ad,bnd->abn", t, f).masked_fill(~real, -torch.inf)
    weights = products.flatten(1).softmax(dim=1).view_as(products)
    return torch.einsum("abn,bnd,ad->ab", weights, f, t)


def _films(generator: torch.Generator) -> tuple:
    """Videos of different lengths; what fills up is no zero."""
    a, b, n = random_size(generator, 3, 5), random_size(generator, 3, 5), 6
    lengths = torch.tensor([2 + i % 4 for i in range(b)])
    return (random_rows(generator, a, 4), random_rows(generator, b * n, 4).view(b, n, 4),
            torch.arange(n) < lengths[:, None])


mended = Exercise(
    name="mended",
    task="products of each text with each video's pooled frames, weights of the real frames "
         "summing to one",
    reference=_scores,
    cases=_films,
    mistakes={
        "as it was": Mistake(
            _zeroed_after,
            "still set weights to zero after the softmax: of a short video they sum to less "
            "than one, and a product, unlike a cosine, sees that. Set the products to minus "
            "infinity before it.",
        ),
        "zeros before the softmax": Mistake(
            _zeroed_before,
            "set the products of padding to zero before the softmax. exp(0) is 1: padding "
            "still gets weight. It takes minus infinity.",
        ),
        "zeros before and after": Mistake(
            _zeroed_twice,
            "set padding to zero before and after the softmax. Its ones still stand in the "
            "softmax's sum, so that the others' weights sum to less than one.",
        ),
        "padding read": Mistake(
            _padding_read,
            "leave padding in. What fills up a short video must get no weight.",
        ),
        "cosines": Mistake(
            _cosines,
            "give cosines. They hide the bug, and are another score: the task keeps the "
            "product t · v.",
        ),
        "over all videos": Mistake(
            _over_videos,
            "take one softmax over the frames of all videos. Each video has its own.",
        ),
    },
)


# Exercise 3, judge: where a cheap head is cheaper ----------------------------------------
def _cost(head: torch.Tensor, texts: torch.Tensor, videos: torch.Tensor) -> torch.Tensor:
    """FLOPs a text, a video, a text with a video; counts [n] -> the sum [n]."""
    return head[0] * texts + head[1] * videos + head[2] * texts * videos


def _judge(gap, cheap, dear, texts, videos, factor):
    """Intervals [n, 2] of cheap minus the bound, FLOPs [3], [3], counts [n], [n], a factor
    -> 2 as good and cheaper, 1 cheaper, 0 neither."""
    saves = _cost(dear, texts, videos) >= factor * _cost(cheap, texts, videos)
    return saves * (1.0 + (gap[:, 0] > 0))


def _by(cost: Callable = _cost, good: Callable = lambda gap: gap[:, 0] > 0) -> Callable:
    def judge(gap, cheap, dear, texts, videos, factor):
        saves = cost(dear, texts, videos) >= factor * cost(cheap, texts, videos)
        return saves * (1.0 + good(gap))
    return judge


def _per_pair(head, texts, videos):
    return head[2] * texts * videos


def _settings(generator: torch.Generator) -> tuple:
    """Every case once, then some at random. Floats: counts times FLOPs are large."""
    n = random_size(generator, 10, 14)
    middle = 0.1 * torch.rand(n, generator=generator) - 0.05
    gap = torch.stack([middle - 0.03, middle + 0.03], dim=1)
    texts = torch.randint(1, 2000, (n,), generator=generator).float()
    videos = torch.randint(1, 2000, (n,), generator=generator).float()
    gap[:6] = torch.tensor([[0.01, 0.05], [-0.01, 0.04], [0.02, 0.03], [-0.05, -0.01],
                            [0.03, 0.06], [0.02, 0.05]])
    texts[:6] = torch.tensor([1000.0, 1000, 1, 1000, 1, 1])
    videos[:6] = torch.tensor([1000.0, 1000, 20, 1000, 2000, 1])
    return gap, torch.tensor([900.0, 800, 6]), torch.tensor([30.0, 300, 70]), texts, videos, 4.0


judged = Exercise(
    name="judged",
    task="for each use 2 where the cheap head is shown as good as the bound and saves by the "
         "factor, 1 where it only saves, 0 where it does not",
    reference=_judge,
    cases=_settings,
    mistakes={
        "pairs alone": Mistake(
            _by(cost=_per_pair),
            "count what a text with a video costs alone. With few of them what each item "
            "costs once is the larger part: add it.",
        ),
        "items for every pair": Mistake(
            _by(cost=lambda head, texts, videos: head.sum() * texts * videos),
            "pay for every item again with every pair. It is read once and kept: that is "
            "where the cheap head saves.",
        ),
        "by the middle": Mistake(
            _by(good=lambda gap: gap.mean(dim=1) > 0),
            "judge by the middle of the interval. To be shown as good, the whole of it must "
            "lie above the bound.",
        ),
        "by the upper end": Mistake(
            _by(good=lambda gap: gap[:, 1] > 0),
            "judge by the upper end. That says only that it is not shown to be worse.",
        ),
        "good without saving": Mistake(
            lambda gap, cheap, dear, texts, videos, factor: 2.0 * (gap[:, 0] > 0) + (
                gap[:, 0] <= 0) * _judge(gap, cheap, dear, texts, videos, factor),
            "give 2 for a head that is as good and does not save. Without the factor it is 0.",
        ),
        "the other way round": Mistake(
            lambda gap, cheap, dear, texts, videos, factor: _judge(gap, dear, cheap, texts,
                                                                   videos, factor),
            "ask whether the dear head saves.",
        ),
    },
)
