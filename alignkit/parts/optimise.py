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
