"""Optimisation of inputs instead of weights."""

from collections.abc import Callable

import torch
from torch import Tensor


def optimise_inputs(objective: Callable[[Tensor], Tensor], start: Tensor, steps: int,
                    lr: float, weight_decay: float = 0.0) -> Tensor:
    """Minimise `objective(x) -> [b]` over x [b, …] from `start`, each row by itself.

    AdamW, which is Adam without weight_decay, acts on each number alone and the rows'
    objectives are summed, so a row's path does not depend on its neighbours. Works inside
    `no_grad`; no weight gets a gradient. weight_decay pulls x to 0, by its share lr ·
    weight_decay a step.
    """
    with torch.enable_grad():
        x = start.detach().clone().requires_grad_(True)
        adam = torch.optim.AdamW([x], lr=lr, weight_decay=weight_decay)
        for _ in range(steps):
            (x.grad,) = torch.autograd.grad(objective(x).sum(), x)
            adam.step()
    return x.detach()


def pgd(objective: Callable[[Tensor], Tensor], x: Tensor, eps: float, steps: int,
        step: float | None = None, start: Tensor | None = None, low: float = 0.0,
        high: float = 1.0) -> Tensor:
    """Maximise `objective(x) -> [b]` within `eps` of x [b, …] in every number, and within
    low … high: projected gradient ascent by the gradient's signs (Madry et al. 2018).

    Each row gets the best point that its path visits, x itself among them: so no row ends
    lower than it began, and more steps never end lower than fewer. Works inside `no_grad`;
    no weight gets a gradient. One step from x itself with step=eps is FGSM.

    Args:
        step: of each number in each step (None: eps / 4). start: where paths begin (None:
            x); what is outside is put back.
    Raises:
        ValueError: eps or steps below 0, or x outside low … high.
    """
    if eps < 0 or steps < 0:
        raise ValueError(f"eps and steps must be 0 or more, got {eps} and {steps}")
    if x.min() < low or x.max() > high:
        raise ValueError(f"x runs from {x.min():.3g} to {x.max():.3g}, outside {low:g} … "
                         f"{high:g}: scale it first, or give low and high")
    step, x = eps / 4 if step is None else step, x.detach()
    least, most = (x - eps).clamp(min=low), (x + eps).clamp(max=high)
    with torch.enable_grad():
        best, value = x.clone(), objective(x).detach()
        at = (x if start is None else start.detach()).clamp(least, most)
        for k in range(steps + 1):
            at = at.detach().requires_grad_(k < steps)
            now = objective(at)
            better = now.detach() > value
            best[better], value = at.detach()[better], torch.maximum(value, now.detach())
            if k < steps:
                (slope,) = torch.autograd.grad(now.sum(), at)
                at = (at + step * slope.sign()).clamp(least, most)
    return best
