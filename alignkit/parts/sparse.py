"""Weights that are mostly zero."""

import torch
from torch import Tensor


def sparsemax(x: Tensor, dim: int = -1) -> Tensor:
    """The nearest point of the simplex: softmax with exact zeros.

    With x sorted, x_(1) ≥ x_(2) ≥ …, and k the largest number for which
    1 + k x_(k) > Σ_{l ≤ k} x_(l):
        threshold = (Σ_{l ≤ k} x_(l) − 1) / k,   w = max(x − threshold, 0)
    (Martins & Astudillo 2016, algorithm 1.) w ≥ 0 sums to 1 and does not change if a
    constant is added to x; a lead of 1 over the second takes all the weight. The gradient
    of a kept entry is centred over the kept ones, that of the others is 0.

    Args:
        x: scores of any shape; −inf gets no weight, a row of −inf alone or with NaN is NaN.
        dim: the dimension whose weights sum to 1.
    Returns:
        weights, shaped as x, float32 at least.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32)).movedim(dim, -1)
    x = x - x.detach().amax(-1, keepdim=True)  # small numbers lose fewer digits
    ordered = x.sort(dim=-1, descending=True).values
    total = ordered.cumsum(-1)
    k = torch.arange(1, x.shape[-1] + 1, device=x.device)
    kept = (1 + k * ordered > total).sum(-1, keepdim=True).clamp(min=1)  # 0 if NaN
    threshold = (total.gather(-1, kept - 1) - 1) / kept
    # Not a clamp, which passes a gradient to entries that lie exactly at the threshold.
    return torch.where(x <= threshold, 0, x - threshold).movedim(-1, dim)
