"""A tile of logits by torch's own operations, on any device.

`left` prepares rows of a once for all their tiles; `sums`, `weights` and `sigmoids` make
one tile. `kernels.py` has the same four functions for GPUs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.parts.product import product

SPREAD = 60.0  # exp(-60) = 1e-26, which float32 still holds with all its digits


def left(a: Tensor, scale: Tensor) -> Tensor:
    """scale · a in float32 at least; on a GPU rows of 16 bits stay what they are."""
    return a if _narrow(a) else scale * a.to(torch.promote_types(a.dtype, torch.float32))


def _narrow(a: Tensor) -> bool:
    return a.is_cuda and a.element_size() == 2


def _tile(x: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor) -> tuple:
    """Logits [rows, columns], and the places in them where both are of one item."""
    if _narrow(x):  # products in 16 bits, sums in 32
        logits = torch.mm(x, b.T, out_dtype=torch.float32).mul_(scale)
    else:
        logits = product(x, b.to(x.dtype))
    return logits, _same(item_a, item_b)


def _same(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Places (in a, in b) of equal items. Only rows of a that have any are compared: in
    most tiles there are few."""
    rows = torch.isin(a, b).nonzero()[:, 0]
    places, columns = (a[rows, None] == b).nonzero(as_tuple=True)
    return rows[places], columns


def sums(x: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor) -> tuple:
    """([rows, 4], [columns, 4]): for each row and each column of the tile a reference not
    far above its largest logit, the sum of exp(logit − reference), the sum of the right
    answers' logits, their number.

    Args:
        x: from `left`. b: [columns, d]. item_a, item_b: long [rows], [columns].
    """
    logits, right = _tile(x, b, scale, item_a, item_b)
    own = logits[right]
    top, by_row, tops, by_column = _powers(logits)
    return (_with_own(top, by_row.sum(1), own, right[0]),
            _with_own(tops, by_column.sum(0), own, right[1]))


def _with_own(top: Tensor, total: Tensor, own: Tensor, right: Tensor) -> Tensor:
    found = torch.stack([top, total, torch.zeros_like(top), torch.zeros_like(top)], dim=1)
    found[:, 2].index_add_(0, right, own)
    found[:, 3].index_add_(0, right, torch.ones_like(own))
    return found


def _powers(logits: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """References of the rows and exp(logits − reference), the same of the columns. The
    tile's largest logit serves all where no other is so far below it that its exponential
    would lose digits: half of the exponentials are saved."""
    low, high = logits.aminmax()
    if high - low < SPREAD:
        powers = (logits - high).exp_()
        return high.expand(len(logits)), powers, high.expand(logits.shape[1]), powers
    top, tops = logits.amax(1), logits.amax(0)
    return top, (logits - top[:, None]).exp_(), tops, (logits - tops).exp_()


def weights(x: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor,
            by_row: Tensor, by_column: Tensor, share: float) -> Tensor:
    """share · (softmax over all columns + softmax over all rows − right answers' targets)
    [rows, columns], the gradient of the loss in the logits.

    The softmax is exp(l − reference) / sum and not exp(l − log sum), which at scale 100
    would round to 1e-5.

    Args:
        by_row, by_column: `sums` over all columns [rows, 4] and over all rows
            [columns, 4]. The rest: as for `sums`.
    """
    logits, right = _tile(x, b, scale, item_a, item_b)
    (reference, total, _, number), (references, totals, _, numbers) = (
        by_row.unbind(1), by_column.unbind(1))
    top, powers, tops, powers_down = _powers(logits)
    weight = powers * ((top - reference).exp_() * share / total)[:, None]
    weight.addcmul_(powers_down, (tops - references).exp_() * share / totals)
    weight[right] -= share / number[right[0]] + share / numbers[right[1]]
    return weight.to(b.dtype) if _narrow(x) else weight


def sigmoids(x: Tensor, b: Tensor, scale: Tensor, bias: Tensor, item_a: Tensor,
             item_b: Tensor, share: float) -> tuple[Tensor, Tensor, Tensor]:
    """Of the sigmoid loss: its sum over the tile, and share times its gradient in the
    logits, summed and [rows, columns]."""
    logits, right = _tile(x, b, scale, item_a, item_b)
    logits += bias
    logits[right] *= -1  # now every logit should be low
    value = F.softplus(logits).sum()
    weight = logits.sigmoid_().mul_(share)
    weight[right] *= -1
    return value, weight.sum(), weight.to(b.dtype) if _narrow(x) else weight


def nothing(n: int, wide: torch.dtype, device: torch.device) -> Tensor:
    """`sums` [n, 4] of no column yet."""
    found = torch.zeros(n, 4, dtype=wide, device=device)
    found[:, 0] = -math.inf
    return found


def merge(found: Tensor, more: Tensor) -> None:
    """More columns for the rows of `found`, both as of `sums`, in place."""
    reference, total, _, _ = found.unbind(1)
    top, powers, _, _ = more.unbind(1)
    larger = torch.maximum(reference, top)
    total.mul_((reference - larger).exp_()).add_(powers * (top - larger).exp())
    reference.copy_(larger)
    found[:, 2:] += more[:, 2:]
