"""Losses: forward and backward of n pairs of width 512."""

from collections.abc import Callable

import torch
from torch import Tensor

from alignkit.bench.contest import DEVICE, Contest, seeded
from alignkit.parts import unit
from alignkit.parts.large_batch import tiled_info_nce, tiled_sigmoid

OPEN_CLIP, METRIC_LEARNING = "open_clip_torch", "pytorch-metric-learning"


def loss(make: Callable) -> Callable:
    """A contestant from `make() -> loss of (a, b)`."""
    def prepare(n: int) -> Callable:
        a, b = (unit(x).requires_grad_() for x in seeded(2, n, 512))
        for x in (a, b):
            x.grad = torch.zeros_like(x)
        of = make()

        def work() -> None:
            torch.autograd.backward(of(a, b))
        return work
    return prepare


def scalar(value: float) -> Tensor:
    return torch.tensor(value, device=DEVICE, requires_grad=True)


def open_clip(name: str, *numbers: float) -> Callable:
    """A loss of open_clip with its learned numbers."""
    def make():
        from open_clip import loss as losses

        of, values = getattr(losses, name)(), [scalar(x) for x in numbers]
        return lambda a, b: of(a, b, *values)
    return make


def metric_learning():
    """NT-Xent over both sides together, pytorch-metric-learning's nearest."""
    from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss

    of = SelfSupervisedLoss(NTXentLoss(temperature=0.05))
    return lambda a, b: of(a, b)


INFO_NCE = Contest(
    "InfoNCE of {n} pairs of width 512, value and gradient", 16384, 256,
    {"alignkit, in tiles": loss(lambda: lambda a, b, s=scalar(20.0): tiled_info_nce(a, b, s)),
     "open_clip ClipLoss": loss(open_clip("ClipLoss", 20.0))},
    {"open_clip ClipLoss": OPEN_CLIP})
# NTXentLoss needs the cube of the batch: 69 GB for 2,048 pairs.
SMALL_INFO_NCE = Contest(
    "InfoNCE of {n} pairs of width 512, value and gradient", 256, 32,
    {"alignkit, in tiles": INFO_NCE.contestants["alignkit, in tiles"],
     "open_clip ClipLoss": INFO_NCE.contestants["open_clip ClipLoss"],
     "pytorch-metric-learning NTXentLoss": loss(metric_learning)},
    {"open_clip ClipLoss": OPEN_CLIP, "pytorch-metric-learning NTXentLoss": METRIC_LEARNING})
SIGMOID = Contest(
    "the sigmoid loss of {n} pairs of width 512, value and gradient", 16384, 256,
    {"alignkit, in tiles": loss(lambda: lambda a, b, s=scalar(10.0), c=scalar(-10.0):
                                tiled_sigmoid(a, b, s, c)),
     "open_clip SigLipLoss": loss(open_clip("SigLipLoss", 10.0, -10.0))},
    {"open_clip SigLipLoss": OPEN_CLIP})
