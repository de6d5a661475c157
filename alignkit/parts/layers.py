"""Small layers that many methods share."""

import math

import torch
from torch import Tensor, nn

MAX_SCALE = 100.0  # CLIP's clamp: above it the loss is all but a hard maximum


class Temperature(nn.Module):
    """The factor on cosines, 1 / temperature: fixed, or learned in the log domain.

    `forward()` gives the scale, a scalar tensor that never exceeds 100.
    """

    def __init__(self, initial: float = 0.07, learned: bool = False):
        super().__init__()
        if not 1 / MAX_SCALE <= initial:
            raise ValueError(f"initial temperature must be at least {1 / MAX_SCALE}, "
                             f"got {initial}")
        log_scale = torch.tensor(-math.log(initial))
        if learned:
            self.log_scale = nn.Parameter(log_scale)
        else:
            self.register_buffer("log_scale", log_scale)

    def forward(self) -> Tensor:
        with torch.no_grad():  # in place: above a clamp in the graph no gradient comes back
            self.log_scale.clamp_(max=math.log(MAX_SCALE))
        return self.log_scale.exp()


def projector(d_in: int, d_out: int, kind: str = "linear") -> nn.Module:
    """A head on frozen features, [n, d_in] -> [n, d_out].

    kind: 'linear' (with bias) or 'mlp' (d_in -> d_out -> d_out with GELU).
    """
    if kind == "linear":
        return nn.Linear(d_in, d_out)
    if kind == "mlp":
        return nn.Sequential(nn.Linear(d_in, d_out), nn.GELU(), nn.Linear(d_out, d_out))
    raise ValueError(f"kind must be 'linear' or 'mlp', got {kind!r}")
