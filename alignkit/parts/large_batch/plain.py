"""A tile of logits by torch's own operations, on any device.

`left` prepares rows of a once for all their tiles, `factors` what is known of them;
`sums`, `weights` and `sigmoids` make one tile. `kernels.py` has the same functions for GPUs.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from alignkit.parts.product import product

# Rows and columns of a tile on CPU, and on a GPU: 64 MiB of logits, of which there are two
# at most.
TILE, GPU_TILE = 1536, 4096
GROUP = 32768  # columns whose gradient is summed in float32, where the rows have 16 bits
SPREAD = 60.0  # exp(-60) = 1e-26, which float32 still holds with all its digits


def tile_of(a: Tensor, written: bool) -> tuple[int, int]:
    """(rows, columns) of a tile that is only summed up, or whose weights are written."""
    return (GPU_TILE, GPU_TILE) if a.is_cuda else (TILE, TILE)


def left(a: Tensor, scale: Tensor) -> Tensor:
    """scale · a in float32 at least; on a GPU rows of 16 bits stay what they are."""
    return a if _narrow(a) else scale * a.to(torch.promote_types(a.dtype, torch.float32))


def _narrow(a: Tensor) -> bool:
    return a.is_cuda and a.element_size() == 2


def _tile(x: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor) -> tuple:
    """Logits [rows, columns], and the places in them where both are of one item."""
    if _narrow(x):
        logits = _wide_product(x, b).mul_(scale)
    else:
        logits = product(x, b.to(x.dtype))
    return logits, _same(item_a, item_b)


def _wide_product(x: Tensor, b: Tensor) -> Tensor:
    """x bᵀ of 16 bits, summed in 32; only GPUs have it."""
    return torch.mm(x, b.T, out_dtype=torch.float32)


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
    """References of the rows and exp(logits − reference), the same of the columns, in the
    place of the logits. The tile's largest logit serves all where no other is so far below
    it that its exponential would lose digits: half of the exponentials are saved."""
    low, high = logits.aminmax()
    if high - low < SPREAD:
        powers = logits.sub_(high).exp_()
        return high.expand(len(logits)), powers, high.expand(logits.shape[1]), powers
    top, tops = logits.amax(1), logits.amax(0)
    down = (logits - tops).exp_()
    return top, logits.sub_(top[:, None]).exp_(), tops, down


def factors(found: Tensor, share: float) -> Tensor:
    """What `weights` takes for the rows of `found`, `sums` over all columns [n, 4]:
    reference, sum of powers, share, share / number of right answers."""
    reference, total, _, number = found.unbind(1)
    return torch.stack([reference, total, torch.full_like(total, share), share / number], 1)


def weights(x: Tensor, b: Tensor, scale: Tensor, item_a: Tensor, item_b: Tensor,
            by_row: Tensor, by_column: Tensor) -> Tensor:
    """share · (softmax over all columns + softmax over all rows − right answers' targets)
    [rows, columns], the gradient of the loss in the logits.

    The softmax is exp(l − reference) / sum and not exp(l − log sum), which at scale 100
    would round to 1e-5.

    Args:
        by_row, by_column: `factors` of `sums` over all columns, and over all rows. The
            rest: as for `sums`.
    """
    logits, right = _tile(x, b, scale, item_a, item_b)
    (reference, total, share, target), (references, totals, shares, targets) = (
        by_row.unbind(1), by_column.unbind(1))
    top, powers, tops, powers_down = _powers(logits)
    across = ((top - reference).exp_() * share / total)[:, None]
    weight = powers * across if powers is powers_down else powers.mul_(across)
    weight.addcmul_(powers_down, (tops - references).exp_() * shares / totals)
    weight[right] -= target[right[0]] + targets[right[1]]
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
