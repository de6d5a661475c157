"""Optimisation of inputs instead of weights."""

from collections.abc import Callable

import torch
from torch import Tensor


def optimise_inputs(objective: Callable[[Tensor], Tensor], start: Tensor, steps: int,
                    lr: float) -> Tensor:
    """Minimise `objective(x) -> [b]` over x [b, …] from `start`, each row by itself.

    Adam acts on each number alone and the rows' objectives are summed, so a row's path
    does not depend on its neighbours. Works inside `no_grad`; no weight gets a gradient.
    """
    with torch.enable_grad():
        x = start.detach().clone().requires_grad_(True)
        adam = torch.optim.Adam([x], lr=lr)
        for _ in range(steps):
            (x.grad,) = torch.autograd.grad(objective(x).sum(), x)
            adam.step()
    return x.detach()
