"""Losses: forward and backward of n pairs of width 512."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from alignkit.bench.contest import DEVICE, Contest, seeded
from alignkit.parts import unit
from alignkit.parts.large_batch import tiled_info_nce, tiled_sigmoid

OPEN_CLIP, METRIC_LEARNING = "open_clip_torch", "pytorch-metric-learning"


def fresh(make: Callable) -> Callable:
    """A contestant from `make() -> loss of (a, b)` on rows in bfloat16, whose gradients get
    new places."""
    def prepare(n: int) -> Callable:
        a, b = (unit(x).bfloat16().requires_grad_() for x in seeded(2, n, 512))
        of = make()

        def work() -> None:
            a.grad = b.grad = None
            torch.autograd.backward(of(a, b))
        return work
    return prepare


def inf_cl():
    """Inf-CL's loss of one GPU, in both directions."""
    from inf_cl import cal_flash_loss

    scale = scalar(20.0)
    return lambda a, b: (cal_flash_loss(a, b, scale=scale).mean()
                         + cal_flash_loss(b, a, scale=scale).mean()) / 2


def cut_cross_entropy():
    """Apple's cut cross entropy, in both directions; it leaves out the gradients of blocks
    in which all are small."""
    from cut_cross_entropy import linear_cross_entropy

    scale = scalar(20.0)

    def of(a: Tensor, b: Tensor) -> Tensor:
        right, times = torch.arange(len(a), device=a.device), scale.to(a.dtype)
        return (linear_cross_entropy(times * a, b, right)
                + linear_cross_entropy(times * b, a, right)) / 2
    return of


def in_chunks():
    """Cross entropies of 4,096 rows of logits at a time, made again in the backward pass."""
    scale = scalar(20.0)

    def part(rows: Tensor, columns: Tensor, start: int) -> Tensor:
        logits = scale * (rows @ columns.T).float()
        right = torch.arange(start, start + len(rows), device=rows.device)
        return cross_entropy(logits, right, reduction="sum")

    def of(a: Tensor, b: Tensor) -> Tensor:
        return sum(checkpoint(part, x[k:k + 4096], y, k, use_reentrant=False)
                   for x, y in ((a, b), (b, a)) for k in range(0, len(x), 4096)) / (2 * len(a))
    return of


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
LARGE_INFO_NCE = Contest(
    "InfoNCE of {n} pairs of width 512 in bfloat16, value and gradient", 262144, 512,
    {"alignkit, in tiles": fresh(lambda: lambda a, b, s=scalar(20.0): tiled_info_nce(a, b, s)),
     "torch, in chunks of rows": fresh(in_chunks),
     "Inf-CL": fresh(inf_cl), "cut-cross-entropy, twice": fresh(cut_cross_entropy)},
    {"Inf-CL": "inf_cl", "cut-cross-entropy, twice": "cut-cross-entropy"},
    gpu=frozenset({"Inf-CL", "cut-cross-entropy, twice"}), large=True)
SIGMOID = Contest(
    "the sigmoid loss of {n} pairs of width 512, value and gradient", 16384, 256,
    {"alignkit, in tiles": loss(lambda: lambda a, b, s=scalar(10.0), c=scalar(-10.0):
                                tiled_sigmoid(a, b, s, c)),
     "open_clip SigLipLoss": loss(open_clip("SigLipLoss", 10.0, -10.0))},
    {"open_clip SigLipLoss": OPEN_CLIP})
