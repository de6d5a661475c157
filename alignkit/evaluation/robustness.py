"""Accuracy under attack: inputs that a bounded change makes wrong.

An attack takes `scores(x [b, …]) -> [b, n_classes]` of whole inputs (pixels from 0 to 1,
say), so whatever comes before the scores (a frozen encoder, a head on it) is attacked as
one. An attack gives a lower bound of the harm: what stands it may fall to a better one. So
measure with several, one of them without gradients.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from alignkit.evaluation.checks import class_labels
from alignkit.parts.optimise import pgd

Scores = Callable[[Tensor], Tensor]
HALVED = (0.001, 0.005, 0.02, 0.1, 0.2, 0.4, 0.6, 0.8)  # where Square's squares shrink


def shortfall(scores: Tensor, labels: Tensor) -> Tensor:
    """The best wrong score minus the right one [n]; 0 or more is an error.

    Attacks maximise it. Unlike a cross entropy at a large scale its gradient never
    vanishes, however sure the model is. scores: [n, n_classes], two classes at least;
    labels: LongTensor [n].
    """
    if scores.ndim != 2 or scores.shape[1] < 2:
        raise ValueError(f"scores must be [n, n_classes] with two classes or more, got "
                         f"{tuple(scores.shape)}")
    right = class_labels(labels, "labels", *scores.shape).to(scores.device)[:, None]
    wrong = scores.scatter(1, right, -torch.inf).amax(1)
    return wrong - scores.gather(1, right)[:, 0]


def pgd_attack(scores: Scores, x: Tensor, labels: Tensor, eps: float, *, steps: int = 20,
               restarts: int = 1, step: float | None = None, seed: int = 0,
               low: float = 0.0, high: float = 1.0, chunk: int = 128) -> Tensor:
    """Inputs [n, …] within eps of x that `scores` gets wrong, as far as PGD finds them from
    `restarts` random starts: each row's worst. restarts=0 starts at x itself. See
    `parts.pgd` for the rest. But for its random start a row's result does not depend on
    the other rows, up to rounding.

    Raises ValueError as `pgd` does, and for labels that do not fit.
    """
    class_labels(labels, "labels", len(x))
    drawn = torch.Generator().manual_seed(seed)
    starts = [x + eps * (2 * torch.rand(x.shape, generator=drawn).to(x) - 1)
              for _ in range(restarts)] or [x]
    found = [torch.cat([
        pgd(lambda now, y=y: shortfall(scores(now), y), part, eps, steps, step, start, low,
            high)
        for part, start, y in zip(x.split(chunk), begin.split(chunk), labels.split(chunk),
                                  strict=True)]) for begin in starts]
    return found[0] if len(found) == 1 else worst_of(scores, found, labels, chunk)


def fgsm_attack(scores: Scores, x: Tensor, labels: Tensor, eps: float, *, low: float = 0.0,
                high: float = 1.0, chunk: int = 128) -> Tensor:
    """One step of eps along the gradient's signs (Goodfellow et al. 2015); a row that it
    does not make worse stays as it is."""
    return pgd_attack(scores, x, labels, eps, steps=1, restarts=0, step=eps, low=low,
                      high=high, chunk=chunk)


def square_attack(scores: Scores, x: Tensor, labels: Tensor, eps: float, *,
                  queries: int = 200, share: float = 0.8, seed: int = 0, low: float = 0.0,
                  high: float = 1.0, chunk: int = 128) -> Tensor:
    """Random search without gradients for pictures x [n, channels, h, w]: Square
    (Andriushchenko et al. 2020). It begins with vertical stripes of ± eps; each query sets
    a random square to ± eps, one sign a channel, and a row keeps it if it is worse then.

    share: the part of a picture that the first squares take, halved at `HALVED` of the
    queries, as in the paper.

    Raises ValueError for x of another shape or outside low … high, or eps below 0.
    """
    if x.ndim != 4 or eps < 0 or x.min() < low or x.max() > high:
        raise ValueError(f"x must be [n, channels, h, w] from {low:g} to {high:g} and eps 0 "
                         f"or more, got {tuple(x.shape)} and {eps}")
    drawn = torch.Generator().manual_seed(seed)
    n, channels, height, width = x.shape

    def shifted(*shape: int) -> Tensor:
        signs = 2 * torch.randint(2, shape, generator=drawn) - 1
        return (x + eps * signs.to(x)).clamp(low, high)

    at = shifted(n, channels, 1, width)
    value = _shortfalls(scores, at, labels, chunk)
    for query in range(1, queries):
        part = share * 0.5 ** sum(query >= when * queries for when in HALVED)
        side = min(height, width, max(1, round((part * height * width) ** 0.5)))
        inside = (_window(n, height, side, drawn)[:, None, :, None]
                  & _window(n, width, side, drawn)[:, None, None, :]).to(x.device)
        tried = torch.where(inside, shifted(n, channels, 1, 1), at)
        found = _shortfalls(scores, tried, labels, chunk)
        better = found > value
        at = torch.where(better[:, None, None, None], tried, at)
        value = torch.maximum(value, found)
    return worst_of(scores, [x, at], labels, chunk)


def _window(n: int, length: int, side: int, drawn: torch.Generator) -> Tensor:
    """Bool [n, length]: a random stretch of `side` places in each row."""
    first = torch.randint(length - side + 1, (n, 1), generator=drawn)
    place = torch.arange(length)
    return (place >= first) & (place < first + side)


def robust_accuracy(scores: Scores, x: Tensor, labels: Tensor, chunk: int = 128) -> float:
    """The share of inputs x [n, …] (attacked ones, say) whose right class alone has the
    highest score; ties count against the model."""
    return float((_shortfalls(scores, x, labels, chunk) < 0).double().mean())


def worst_of(scores: Scores, versions: Sequence[Tensor], labels: Tensor, chunk: int = 128,
             ) -> Tensor:
    """Of several versions [n, …] of the same rows, each row's with the largest shortfall
    (the first of equal ones): what stands this one stands them all."""
    values = torch.stack([_shortfalls(scores, x, labels, chunk) for x in versions])
    return torch.stack(list(versions))[values.argmax(0), torch.arange(len(labels))]


@torch.no_grad()
def _shortfalls(scores: Scores, x: Tensor, labels: Tensor, chunk: int) -> Tensor:
    return torch.cat([shortfall(scores(part), y) for part, y in zip(
        x.split(chunk), labels.split(chunk), strict=True)])
