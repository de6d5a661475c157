"""Losses on unit rows."""

import torch
from torch import Tensor
from torch.nn import functional as F


def positives_of(item: Tensor) -> Tensor:
    """Bool [n, n]: which rows are right answers to each other (`item` [n] equal)."""
    return item[:, None] == item[None, :]


def logits_of(a: Tensor, b: Tensor, scale: Tensor | float) -> Tensor:
    """`scale · a bᵀ` [n, m], in float32 at least whatever the precision of a and b."""
    with torch.autocast(a.device.type, enabled=False):
        wide = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
        return scale * (a.to(wide) @ b.to(wide).T)


def info_nce(a: Tensor, b: Tensor, scale: Tensor | float,
             positives: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE, the mean of both directions.

    L = ½ mean_i[ −1/|P_i| Σ_{j∈P_i} log softmax_j(scale · a_i·b_j) ] + the same from b.
    With one right answer a row this is CLIP's loss (Radford et al. 2021, figure 3);
    with several it is SupCon's L_out (Khosla et al. 2020, equation 2).

    Args:
        a, b: unit rows [n, d] and [m, d]; row i of both is a pair if `positives` is None.
        scale: 1 / temperature, a number or a scalar tensor.
        positives: bool [n, m], True at right answers.
    Raises:
        ValueError: shapes do not fit, or a row or column has no right answer.
    """
    if a.dim() != 2 or b.dim() != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"a and b must be [n, d] and [m, d], got {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    logits = logits_of(a, b, scale)
    if positives is None:
        if len(a) != len(b):
            raise ValueError(f"a has {len(a)} rows and b {len(b)}: without positives "
                             "they must be pairs")
        rows = torch.arange(len(a), device=a.device)
        return (F.cross_entropy(logits, rows) + F.cross_entropy(logits.T, rows)) / 2
    if positives.shape != logits.shape:
        raise ValueError(f"positives must be {tuple(logits.shape)}, got "
                         f"{tuple(positives.shape)}")
    if not (positives.any(0).all() and positives.any(1).all()):
        raise ValueError("positives has a row or column with no right answer")
    target = positives.to(logits.dtype)
    forth = F.cross_entropy(logits, target / target.sum(1, keepdim=True))
    back = F.cross_entropy(logits.T, target.T / target.T.sum(1, keepdim=True))
    return (forth + back) / 2
