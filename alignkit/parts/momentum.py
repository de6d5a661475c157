"""A slow copy of modules and a queue of its outputs: many keys from small batches.

Both hold buffers only: the optimiser and the gradient never see them, checkpoints carry
them, and `Method.after_step` is the place to change them (He et al. 2020, MoCo).
"""

import copy

import torch
from torch import Tensor, nn

from alignkit.parts.large_batch import gather_rows
from alignkit.parts.similarity import unit


class Momentum(nn.Module):
    """A copy of `source` that follows it: slow ← decay · slow + (1 − decay) · source.

    It starts equal. Called as `source` is, without gradient. The parameters of the copy
    are buffers of the same names.

    Raises ValueError if decay is not in [0, 1].
    """

    def __init__(self, source: nn.Module, decay: float = 0.995):
        super().__init__()
        if not 0 <= decay <= 1:
            raise ValueError(f"decay must lie in [0, 1], got {decay}")
        self.decay = decay
        self.slow = copy.deepcopy(source)
        for module in self.slow.modules():
            for name, parameter in list(module._parameters.items()):
                if parameter is not None:
                    delattr(module, name)
                    module.register_buffer(name, parameter.detach().clone())

    @torch.no_grad()
    def forward(self, *inputs):
        return self.slow(*inputs)

    @torch.no_grad()
    def update(self, source: nn.Module) -> None:
        """One step of the average; buffers of `source` are taken over as they are."""
        slow = dict(self.slow.named_buffers(remove_duplicate=False))
        for name, parameter in source.named_parameters(remove_duplicate=False):
            slow[name].lerp_(parameter.to(slow[name]), 1 - self.decay)
        for name, buffer in source.named_buffers(remove_duplicate=False):
            slow[name].copy_(buffer)


class FeatureQueue(nn.Module):
    """The newest `length` keys, unit rows [length, width], with the items they are of.

    It starts with random unit rows, which are of no item (−1). A ring: new rows take
    the places of the oldest. length may be 0: no queue.

    Raises ValueError if length is negative.
    """

    def __init__(self, length: int, width: int):
        super().__init__()
        if length < 0:
            raise ValueError(f"length must be 0 or more, got {length}")
        self.register_buffer("rows", unit(torch.randn(length, width)))
        self.register_buffer("item", torch.full((length,), -1))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def keys(self, rows: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """The batch's own keys [b, width] before those of the queue, and their items:
        [b + length, width] and [b + length]."""
        return torch.cat([rows, self.rows.to(rows)]), torch.cat([item, self.item])

    def info_nce(self, rows: Tensor, own: Tensor, scale: Tensor | float) -> Tensor:
        """InfoNCE of unit rows [b, width] with their own keys [b, width]; the wrong answers
        are the queue's alone."""
        right = (rows * own).sum(1, keepdim=True)
        logits = scale * torch.cat([right, rows @ self.rows.to(rows).T], 1)
        return (logits.logsumexp(1) - logits[:, 0]).mean()

    @torch.no_grad()
    def push(self, rows: Tensor, item: Tensor) -> None:
        """Put keys [b, width] of items [b] (0 or more) in, those of all processes; of
        more than `length` the last stay."""
        length, rows, item = len(self.rows), gather_rows(rows), gather_rows(item)
        if not length:
            return
        places = (self.place + torch.arange(len(rows), device=rows.device)) % length
        self.rows[places[-length:]] = rows[-length:].to(self.rows)
        self.item[places[-length:]] = item[-length:]
        self.place.copy_((self.place + len(rows)) % length)
