"""Why does it not train? The usual causes, looked for one by one."""

import math
from collections.abc import Sequence

import torch

from alignkit.data import Pairs, Tokens
from alignkit.parts import Method, Temperature
from alignkit.training.loop import History, to_device
from alignkit.training.randomness import kept_randomness, seed_all


def diagnose(method: Method, pairs: Pairs, history: History | None = None) -> list[str]:
    """Findings in plain sentences, the likeliest first; an empty list is good news.

    Looks at the features (constant, all alike, the same row twice), the outputs
    (collapsed, not finite), the temperature (at its clamp) and, with `history`,
    the loss (stuck at ln(batch), growing).
    """
    findings = []
    if history and (loss := history.curve()):
        findings += _loss(loss, method, pairs)
    for name, column in pairs.columns.items():
        if (isinstance(column, torch.Tensor) and column.is_floating_point()
                and column.dim() > 1):  # one number a row is no feature
            findings += _features(name, column[pairs.present[name]].flatten(1), pairs)
    findings += _outputs(method, pairs)
    scale = getattr(method, "temperature", None)
    if isinstance(scale, Temperature) and float(scale().detach()) >= 99.9:
        findings.append("the temperature is at its clamp (scale 100): the learning rate is "
                        "too high, or the pairs are already separated")
    return findings


def gradient_cosines(losses: Sequence[torch.Tensor],
                     weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cosines [k, k] between the gradients of k losses on `weights` taken as one vector.

    Below 0 a small step against one loss raises the other (Yu et al. 2020, "Gradient
    surgery", call it conflicting). Where the sum of the losses is stationary the gradients
    cancel, so their mean is then below 0 for any losses: measure while training goes on.
    The graph of the losses stays; no `.grad` is written.

    Raises ValueError for fewer than two losses, or one that no weight moves: a gradient of
    zero has no direction.
    """
    if len(losses) < 2:
        raise ValueError(f"losses must be two or more, got {len(losses)}")
    weights = list(weights)
    rows = []
    for k, loss in enumerate(losses):
        found = torch.autograd.grad(loss, weights, retain_graph=True, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(w) if g is None else g).flatten().float()
                               for g, w in zip(found, weights, strict=True)]))
        if not rows[-1].any():
            raise ValueError(f"loss {k} has no gradient on these weights, so it has no "
                             "direction to compare: are they shared by all losses?")
    rows = torch.nn.functional.normalize(torch.stack(rows), dim=1, eps=0.0)
    return rows @ rows.T


def _loss(loss: list[float], method: Method, pairs: Pairs) -> list[str]:
    first, last = loss[0], sum(loss[-10:]) / len(loss[-10:])
    tail = loss[len(loss) // 2 :]
    if last > 1.5 * first:
        return [f"the loss grew from {first:.3g} to {last:.3g}: lower the learning rate"]
    sizes = range(2, len(pairs) + 1)
    flat = max(tail) - min(tail) < 0.02 * abs(last) and last > 0.95 * first
    near = any(abs(last - math.log(n)) < 0.02 for n in (sizes if flat else ()))
    if near:
        return [f"the loss stays at {last:.2f} = ln({math.exp(last):.0f}), a guess among "
                "the batch: nothing is learned. Raise the learning rate, check that the "
                "rows are pairs, and that the features differ from row to row"]
    return []


def _features(name: str, x: torch.Tensor, pairs: Pairs) -> list[str]:
    if len(x) < 2:
        return []
    found = []
    if float(x.std(0).max()) < 1e-6 * max(1.0, float(x.abs().max())):
        found.append(f"{name}: every row is the same, so nothing can be told apart")
        return found
    rows = torch.nn.functional.normalize(x[:1000].float(), dim=-1)
    mean = float((rows.sum(0).square().sum() - len(rows)) / (len(rows) * (len(rows) - 1)))
    if mean > 0.95:
        found.append(f"{name}: rows are nearly parallel (mean cosine {mean:.3f}): subtract "
                     "the mean of the training rows")
    items = pairs.item[pairs.present[name]]
    same, place = torch.unique(x, dim=0, return_inverse=True)
    lowest = items.new_zeros(len(same)).scatter_reduce(0, place, items, "amin",
                                                       include_self=False)
    clash = int((lowest[place] != items).sum())
    if clash:
        found.append(f"{name}: {clash} rows have the same features as a row of another "
                     "item, so even a perfect model must confuse them")
    return found


@torch.no_grad()
def _outputs(method: Method, pairs: Pairs) -> list[str]:
    was_training = method.training
    method.eval()
    part = pairs.select(torch.arange(min(256, len(pairs))))
    device = next(iter(method.state_dict().values()), torch.zeros(())).device
    with kept_randomness():
        outputs = method.encode(to_device(method.collate(part, seed_all(0)), device))
    method.train(was_training)
    found = []
    for name, z in outputs.items():
        z = z.values[z.mask] if isinstance(z, Tokens) else z
        if not isinstance(z, torch.Tensor) or z.dim() != 2 or len(z) < 2:
            continue
        if not torch.isfinite(z).all():
            found.append(f"outputs of {name} are not finite")
            continue
        z = torch.nn.functional.normalize(z.float(), dim=-1)
        mean = float((z.sum(0).square().sum() - len(z)) / (len(z) * (len(z) - 1)))
        if mean > 0.95:
            found.append(f"outputs of {name} have collapsed (mean cosine {mean:.3f})")
    return found
