"""Small layers that many methods share."""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alignkit.parts.large_batch import processes

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


class LowRank(nn.Module):
    """x + B A x with A [rank, width] and B [width, rank]: what LoRA (Hu et al. 2022, arXiv
    2106.09685) does to a linear layer, done to features. B starts at 0, so that nothing
    changes before training.
    """

    def __init__(self, width: int, rank: int):
        super().__init__()
        if not 1 <= rank <= width:
            raise ValueError(f"rank must lie between 1 and the width {width}, got {rank}")
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape."""
        return x + self.up(self.down(x))


class Experts(nn.Module):
    """A mixture of experts: a softmax gate weighs their outputs, row by row.

    weights = softmax(W x); only the `top` largest are kept (None: all), and with
    `renormalise` divided by their sum, which is the softmax over the kept logits;
    output = Σ_e weights_e · expert_e(x) (Shazeer et al. 2017, without noise).
    An expert sees the rows that have chosen it and no others; one that no row has chosen is
    not computed, its gradient is None, and an optimiser leaves it alone. bias: of the gate.
    Nothing balances the experts' use: watch the mean of `weights`.
    """

    def __init__(self, width: int, experts: Sequence[nn.Module], top: int | None = None,
                 renormalise: bool = True, bias: bool = False):
        super().__init__()
        self.experts = nn.ModuleList(experts)
        self.top = len(self.experts) if top is None else top
        if not 1 <= self.top <= len(self.experts):
            raise ValueError(f"top must lie between 1 and the number of experts, "
                             f"{len(self.experts)}, got {top}")
        self.gate = nn.Linear(width, len(self.experts), bias=bias)
        self.renormalise = renormalise

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x [..., width] -> mixed [..., d of the experts' output], weights [..., e]."""
        logits = self.gate(x)
        wide = torch.promote_types(logits.dtype, torch.float32)
        weights = logits.to(wide).softmax(-1)
        kept, places = weights.topk(self.top, dim=-1)
        if self.renormalise:
            kept = kept / kept.sum(-1, keepdim=True)
        weights = torch.zeros_like(weights).scatter(-1, places, kept)
        rows, w = x.flatten(0, -2), weights.flatten(0, -2)
        mixed = 0
        for e in self._chosen(w):
            mine = w[:, e].nonzero().flatten()
            out = self.experts[e](rows[mine])
            if not isinstance(mixed, Tensor):
                mixed = out.new_zeros(len(rows), out.shape[-1])
            mixed = mixed.index_add(0, mine, out * w[mine, e, None].to(out))
        return mixed.unflatten(0, x.shape[:-1]), weights

    def _chosen(self, weights: Tensor) -> list[int]:
        """The experts that some row of some process has chosen: shards of an expert can only
        be put together by all processes at once."""
        used = (weights.detach() != 0).any(0).float()
        if self.training and processes()[1] > 1:
            dist.all_reduce(used, dist.ReduceOp.MAX)
        return used.nonzero().flatten().tolist()
